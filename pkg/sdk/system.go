package sdk

import (
	"context"
	"encoding/json"
)

// Version describes the server.
func (a *API) Version(ctx context.Context) (json.RawMessage, error) {
	v, _, err := answer[json.RawMessage](ctx, a, get("/version", nil))
	return v, err
}

// Ready returns nil if the server takes requests now.
func (a *API) Ready(ctx context.Context) error {
	r := get("/ready", nil)
	r.safe = false
	_, _, err := answer[any](ctx, a, r)
	return err
}

// Health reports what the server says of itself.
func (a *API) Health(ctx context.Context) (json.RawMessage, error) {
	v, _, err := answer[json.RawMessage](ctx, a, get("/health", nil))
	return v, err
}
