package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// KeyTrace is the trace's id on lines that were logged within one.
const KeyTrace = "trace_id"

// NewLogger makes a logger that writes lines of a level (debug, info, warn,
// error) or above, as text or json. Lines logged with a context carry the id of
// its request and of its trace.
//
// Nothing is redacted by its name: a secret is an athena.Secret, which prints
// as "***" in either format, and text that may hold one is not logged.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("telemetry: log level: %w", err)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "text":
		return slog.New(contextHandler{slog.NewTextHandler(w, options)}), nil
	case "json":
		return slog.New(contextHandler{slog.NewJSONHandler(w, options)}), nil
	}
	return nil, fmt.Errorf("telemetry: log format is %q; it must be text or json", format)
}

// contextHandler adds what a line's context knows.
type contextHandler struct{ slog.Handler }

func (h contextHandler) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	if id := RequestID(ctx); id != "" && !has(r, KeyRequest) {
		r.AddAttrs(slog.String(KeyRequest, id))
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String(KeyTrace, span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// has reports whether the line names the key itself.
func has(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

func (h contextHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return contextHandler{h.Handler.WithAttrs(attrs)}
}

func (h contextHandler) WithGroup(name string) slog.Handler {
	return contextHandler{h.Handler.WithGroup(name)}
}
