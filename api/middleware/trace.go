package middleware

import (
	"crypto/rand"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Trace continues the trace that the request belongs to, or begins one, and
// returns its traceparent (W3C Trace Context). A nil tracing records nothing;
// the trace's identity is carried on all the same.
func Trace(tracing *telemetry.Tracing) gin.HandlerFunc {
	return func(c *gin.Context) {
		ctx := telemetry.Extract(c.Request.Context(), c.Request.Header)
		if tracing == nil && !trace.SpanContextFromContext(ctx).IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, identity())
		}
		ctx, span := tracing.Start(ctx, c.Request.Method+" "+c.FullPath(), trace.SpanKindServer,
			attribute.String("http.request.method", c.Request.Method),
			attribute.String("http.route", c.FullPath()),
			attribute.String(telemetry.KeyClient, c.GetHeader(HeaderClient)))
		telemetry.Inject(ctx, c.Writer.Header())
		c.Request = c.Request.WithContext(ctx)
		var code athena.Code
		defer func() {
			span.SetAttributes(attribute.Int("http.response.status_code", c.Writer.Status()))
			telemetry.End(span, string(code))
		}()
		c.Next()
		if last := c.Errors.Last(); last != nil {
			code = athena.CodeOf(last.Err)
		}
	}
}

// identity makes up a trace that is not recorded.
func identity() trace.SpanContext {
	var cfg trace.SpanContextConfig
	rand.Read(cfg.TraceID[:])
	rand.Read(cfg.SpanID[:])
	return trace.NewSpanContext(cfg)
}
