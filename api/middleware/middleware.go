// Package middleware is what every request passes before its handler: identity
// of the request, its trace, its bounds, its key. Each middleware does one
// thing, and none knows a route.
package middleware

import (
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// HeaderClient names the client in whose name a request is made.
const HeaderClient = "X-Athena-Client"

// RequestID keeps a sane id that came with the request or makes one, and
// returns it. It also marks the request's beginning, so it comes first.
func RequestID() gin.HandlerFunc {
	return func(c *gin.Context) {
		id := c.GetHeader(telemetry.HeaderRequestID)
		if !telemetry.SaneRequestID(id) {
			id = telemetry.NewRequestID()
		}
		c.Header(telemetry.HeaderRequestID, id)
		ctx := telemetry.WithRequestID(envelope.Begin(c.Request.Context()), id)
		c.Request = c.Request.WithContext(ctx)
	}
}

// Security sets the headers that keep a browser from making more of an answer
// than it is. No origin is allowed to read across sites.
func Security() gin.HandlerFunc {
	return func(c *gin.Context) {
		h := c.Writer.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
	}
}

// Log writes one line for each request: at debug level, or higher where a hand
// is needed. It is the one place that shows the cause of an error.
func Log(log *slog.Logger) gin.HandlerFunc {
	return func(c *gin.Context) {
		defer func() {
			ctx, status := c.Request.Context(), c.Writer.Status()
			attrs := []slog.Attr{
				slog.String(telemetry.KeyRequest, telemetry.RequestID(ctx)),
				slog.String("method", c.Request.Method),
				slog.String("route", c.FullPath()),
				slog.Int("status", status),
				slog.Int("bytes", max(c.Writer.Size(), 0)),
				slog.String("remote", c.ClientIP()),
				slog.Float64(telemetry.KeyElapsed, float64(envelope.Elapsed(ctx).Microseconds())/1000),
			}
			if client := c.GetHeader(HeaderClient); client != "" {
				attrs = append(attrs, slog.String(telemetry.KeyClient, client))
			}
			if p := auth.FromContext(ctx); p != nil {
				attrs = append(attrs, slog.String(telemetry.KeyKey, p.Key))
			}
			level := slog.LevelDebug
			if last := c.Errors.Last(); last != nil {
				code := athena.CodeOf(last.Err)
				attrs = append(attrs, slog.String(telemetry.KeyCode, string(code)), slog.String(telemetry.KeyError, last.Error()))
				if cause := errors.Unwrap(last.Err); cause != nil {
					attrs = append(attrs, slog.String("cause", cause.Error()))
				}
				switch code {
				case athena.CodeInternal:
					level = slog.LevelError
				case athena.CodeBackendUnavailable, athena.CodeBusUnavailable:
					level = slog.LevelWarn
				}
			}
			log.LogAttrs(ctx, level, "request", attrs...)
		}()
		c.Next()
	}
}

// Recovery turns a panic into an internal error, with the stack in the log
// alone. It lets http.ErrAbortHandler through, which is how a broken answer is
// cut off.
func Recovery(log *slog.Logger) gin.HandlerFunc {
	return func(c *gin.Context) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(http.ErrAbortHandler)
			}
			log.ErrorContext(c.Request.Context(), "a handler panicked",
				telemetry.KeyRequest, telemetry.RequestID(c.Request.Context()),
				"route", c.FullPath(), "panic", v, "stack", string(debug.Stack()))
			envelope.Fail(c, athena.Errorf(athena.CodeInternal, "internal error; the log has the cause under this request's id"))
		}()
		c.Next()
	}
}

// Headers refuses a request whose path or headers cannot be meant: control
// characters, bytes that are not UTF-8, and more than one value of a header
// that decides who asks for what.
func Headers() gin.HandlerFunc {
	single := []string{HeaderClient, "Idempotency-Key", "If-Match", "If-None-Match", "Content-Type", "Last-Event-Id"}
	return func(c *gin.Context) {
		if !params.Printable(c.Request.URL.Path) {
			envelope.Fail(c, athena.Errorf(athena.CodeInvalidRequest, "the path holds control characters or is not UTF-8"))
			return
		}
		for name, values := range c.Request.Header {
			for _, v := range values {
				if !params.Printable(strings.ReplaceAll(v, "\t", " ")) {
					envelope.Fail(c, athena.Errorf(athena.CodeInvalidRequest, "the header %.80q holds control characters or is not UTF-8", name).At(strings.ToValidUTF8(name, "�")))
					return
				}
			}
		}
		for _, name := range single {
			if n := len(c.Request.Header.Values(name)); n > 1 {
				envelope.Fail(c, athena.Errorf(athena.CodeInvalidRequest, "the header %s is given %d times; give it once", name, n).At(name))
				return
			}
		}
	}
}

// Bounds are the limits of one request. Zero fields stand for their defaults.
type Bounds struct {
	// MaxBody is the most bytes of a body; 8 MiB by default.
	MaxBody int64
	// ReadBody is how long the whole body may take; 30 s by default.
	ReadBody time.Duration
	// Stall is how long one write may wait for a reader who does not read;
	// 30 s by default. A stream may last as long as it moves.
	Stall time.Duration
	// Streams are routes, as "PUT /path/*name", whose bodies may be of any size
	// and last as long as they move.
	Streams []string
}

// WithDefaults returns b with its zero fields filled in.
func (b Bounds) WithDefaults() Bounds {
	if b.MaxBody == 0 {
		b.MaxBody = 8 << 20
	}
	if b.ReadBody == 0 {
		b.ReadBody = 30 * time.Second
	}
	if b.Stall == 0 {
		b.Stall = 30 * time.Second
	}
	return b
}

// Bound holds a request to its limits: the size of its body, the time that the
// body takes to arrive, and the time that a write waits for its reader.
func Bound(b Bounds) gin.HandlerFunc {
	b = b.WithDefaults()
	return func(c *gin.Context) {
		rc := http.NewResponseController(c.Writer)
		if slices.Contains(b.Streams, c.Request.Method+" "+c.FullPath()) {
			body := &movingBody{ReadCloser: c.Request.Body, rc: rc, stall: b.Stall}
			c.Request.Body = body
			c.Writer = &patientWriter{c.Writer, rc, b.Stall}
			c.Next()
			_ = rc.SetWriteDeadline(time.Now().Add(b.Stall))
			if !body.done {
				_ = rc.SetReadDeadline(time.Now().Add(min(b.Stall/2, time.Second)))
			}
			return
		}
		if c.Request.ContentLength > b.MaxBody {
			envelope.Fail(c, athena.Errorf(athena.CodePayloadTooLarge, "the body has %d bytes; the most is %d", c.Request.ContentLength, b.MaxBody).
				With("limit_bytes", b.MaxBody))
			return
		}
		body := &timedBody{ReadCloser: http.MaxBytesReader(c.Writer, c.Request.Body, b.MaxBody), rc: rc, within: b.ReadBody}
		c.Request.Body = body
		c.Writer = &patientWriter{c.Writer, rc, b.Stall}
		c.Next()
		// What is left to read and to write when the handler is done is
		// bounded as well. Recorders of tests know no deadlines.
		_ = rc.SetWriteDeadline(time.Now().Add(b.Stall))
		if !body.done && c.Request.ContentLength != 0 {
			_ = rc.SetReadDeadline(time.Now().Add(min(b.ReadBody, time.Second)))
		}
	}
}
