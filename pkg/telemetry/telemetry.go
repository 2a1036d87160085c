// Package telemetry has the names that logs, metrics and messages share: slog
// keys, metric names, headers, and the request's identity in a context; and it
// sets up the logger, the metrics and the tracing of a process. It knows nothing
// of what is measured: callers pass words and numbers.
package telemetry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
)

// Keys of structured logs. The dimensions of metrics bear the same names.
const (
	KeyRequest = "request_id"
	KeyClient  = "client"
	KeyEngine  = "engine"
	KeyFamily  = "family"
	KeyCode    = "code"
	KeyJob     = "job"
	KeyWorker  = "worker"
	KeyKey     = "key"
	KeyError   = "error"
	KeyElapsed = "elapsed_ms"
)

// Headers of HTTP requests and NATS messages.
const (
	HeaderRequestID   = "X-Request-Id"
	HeaderTraceparent = "Traceparent"
)

type requestKey struct{}

// WithRequestID returns ctx carrying the id of the request.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID returns the id of the request, or an empty string.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// NewRequestID makes an id of 128 random bits.
func NewRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// SaneRequestID reports whether an id that came from outside may be kept: 1 to
// 128 characters of letters, digits, and . _ - : only, so that it can stand in
// logs, headers and messages.
func SaneRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '_', c == '-', c == ':':
		default:
			return false
		}
	}
	return true
}
