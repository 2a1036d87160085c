package bus

import "github.com/athena-pipelines/athena/pkg/athena"

// Healthy returns nil if all streams of the embedded server can be used. One
// that could not be recovered, or that an I/O error has frozen, is
// bus_unavailable.
func (s *Server) Healthy() error {
	h := s.nats.Healthz(nil)
	if h.Status == "ok" {
		return nil
	}
	return athena.Errorf(athena.CodeBusUnavailable, "the embedded NATS server is not healthy: %s; its log has the cause, a full or failing disk for the most part", h.Error)
}
