package cassandratest

import "context"

// StartAlone starts a server of one node for a program that is no test; stop ends it.
func StartAlone(ctx context.Context) (s *Server, stop func(), err error) {
	nodes, err := start(ctx, []string{"datacenter1"})
	if err != nil {
		return nil, nil, err
	}
	n := nodes[0]
	return &Server{Addr: n.addr(), Username: "cassandra", Password: "cassandra", CAFile: n.caFile(), nodes: nodes}, func() { stopAll(nodes) }, nil
}
