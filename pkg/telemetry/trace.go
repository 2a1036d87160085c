package telemetry

import (
	"context"
	"fmt"
	"net/textproto"
	"net/url"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const scope = "github.com/athena-pipelines/athena"

// Tracing begins the spans of a process. It touches none of OpenTelemetry's
// globals. A nil *Tracing records nothing and still passes traces on.
type Tracing struct {
	tracer trace.Tracer
	stop   func(context.Context) error
}

// TraceConfig says where traces go.
type TraceConfig struct {
	// Endpoint is the URL of an OTLP/HTTP collector. Without a path it gets
	// /v1/traces. Empty means that nothing is recorded or sent. Headers and the
	// like come from the OTEL_EXPORTER_OTLP_… variables.
	Endpoint string
	// Service and Version describe this process to the collector.
	Service, Version string
}

// NewTracing sets tracing up; Shutdown must be called in the end. With an
// endpoint the OpenTelemetry SDK starts one goroutine, which sends batches; an
// endpoint that does not answer costs dropped spans and nothing else.
func NewTracing(ctx context.Context, cfg TraceConfig) (*Tracing, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("telemetry: the OTLP endpoint is no URL")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", cfg.Service), attribute.String("service.version", cfg.Version))),
	)
	return &Tracing{provider.Tracer(scope), provider.Shutdown}, nil
}

// Shutdown sends what is left until ctx is done.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.stop(ctx)
}

// Start begins the span of something that this process was asked for from
// outside: kind is trace.SpanKindServer for a request, SpanKindConsumer for a
// message. Its parent is what Extract found, if anything. End ends it.
func (t *Tracing) Start(ctx context.Context, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	if t == nil {
		return noop.Tracer{}.Start(ctx, name)
	}
	return t.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
}

// Span begins a span below the one in ctx. Where that is not recorded, neither
// is this.
func Span(ctx context.Context, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, noop.Span{}
	}
	return parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
}

// End ends a span. code is an athena.Code, empty on success; the error itself is
// not recorded, for its text may hold what only the log may.
func End(span trace.Span, code string) {
	if code != "" {
		span.SetStatus(codes.Error, code)
		span.SetAttributes(attribute.String(KeyCode, code))
	}
	span.End()
}

// Inject writes the request's id and the trace that ctx is in to the headers of
// a message or request: an http.Header or a nats.Header, not nil.
func Inject(ctx context.Context, header map[string][]string) {
	if id := RequestID(ctx); id != "" {
		header[HeaderRequestID] = []string{id}
	}
	propagation.TraceContext{}.Inject(ctx, carrier(header))
}

// Extract returns ctx with the request's id, if it is sane and ctx has none,
// and the trace that the headers name.
func Extract(ctx context.Context, header map[string][]string) context.Context {
	if ids := header[HeaderRequestID]; len(ids) > 0 && RequestID(ctx) == "" && SaneRequestID(ids[0]) {
		ctx = WithRequestID(ctx, ids[0])
	}
	return propagation.TraceContext{}.Extract(ctx, carrier(header))
}

// carrier spells keys as net/http does, so that both kinds of headers agree:
// those of NATS are case-sensitive.
type carrier map[string][]string

func (c carrier) Get(key string) string {
	if v := c[textproto.CanonicalMIMEHeaderKey(key)]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c carrier) Set(key, value string) {
	c[textproto.CanonicalMIMEHeaderKey(key)] = []string{value}
}

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
