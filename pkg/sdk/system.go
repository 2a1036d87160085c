package sdk

import "context"

// Health is what a server says of itself.
type Health struct {
	Version string `json:"version"`
	UptimeS int64  `json:"uptime_s"`
	Bus     struct {
		Mode     string `json:"mode"` // embedded or external
		Sync     string `json:"sync"` // always, or the interval
		Replicas int    `json:"replicas"`
	} `json:"bus"`
	// Weaknesses are settings that weaken what Athena promises, in words.
	Weaknesses []string `json:"weaknesses"`
}

// Health asks whether the server lives.
func (a *API) Health(ctx context.Context) (*Health, error) {
	h, _, err := answer[*Health](ctx, a, get("/health", nil))
	return h, err
}

// Ready returns nil if the server can do its work now, and otherwise an error
// that says why not.
func (a *API) Ready(ctx context.Context) error {
	r := get("/ready", nil)
	r.safe = false
	_, _, err := answer[any](ctx, a, r)
	return err
}

// Version describes a server.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Built   string `json:"built,omitempty"`
	Go      string `json:"go"`
}

// Version asks which version the server is.
func (a *API) Version(ctx context.Context) (*Version, error) {
	v, _, err := answer[*Version](ctx, a, get("/version", nil))
	return v, err
}
