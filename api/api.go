// Package api is the HTTP surface: it builds the router of the route families
// that it is given, and serves it. What a route does is its family's business;
// what every request passes is api/middleware's; what every answer looks like is
// api/envelope's.
package api

import (
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// A Family is a set of routes that belong together.
type Family interface {
	// Register adds the family's routes to r.
	Register(r gin.IRouter)
}

// A Streamer is a Family some of whose routes take bodies of any size.
type Streamer interface {
	Streams() []string // as Bounds.Streams
}

// Config is what a router is made of.
type Config struct {
	// Public families need no key.
	Public []Family
	// Families are reached with a valid key only; the principal is in the
	// request's context.
	Families []Family
	// Keys knows the keys. It must be set; middleware.Open for auth that is
	// switched off.
	Keys middleware.Verifier

	Rates  middleware.Rates
	Bounds middleware.Bounds
	// TrustedProxies are addresses or networks whose X-Forwarded-For is
	// believed; none by default.
	TrustedProxies []string
	Tracing        *telemetry.Tracing // nil records nothing
	Log            *slog.Logger       // nil logs nothing
}

// New builds the router. It fails on a trusted proxy that is no address, and on
// missing Keys: silence never grants.
func New(cfg Config) (*gin.Engine, error) {
	if cfg.Keys == nil {
		return nil, athena.Errorf(athena.CodeInternal, "api: no Keys; use middleware.Open to switch authentication off")
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, f := range cfg.Families {
		if s, ok := f.(Streamer); ok {
			cfg.Bounds.Streams = append(cfg.Bounds.Streams[:len(cfg.Bounds.Streams):len(cfg.Bounds.Streams)], s.Streams()...)
		}
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	if err := e.SetTrustedProxies(cfg.TrustedProxies); err != nil {
		return nil, err
	}
	e.ContextWithFallback = true
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	// An escaped slash stays within its segment: /admin/clients/a%2Fb names a
	// client "a/b", which there is not, and no deeper path.
	e.UseRawPath = true
	e.Use(
		middleware.RequestID(),
		middleware.Trace(cfg.Tracing),
		middleware.Security(),
		middleware.Log(log),
		middleware.Recovery(log),
		middleware.Headers(),
		middleware.Bound(cfg.Bounds),
	)
	e.NoRoute(func(c *gin.Context) {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "there is no route %s %.200q; /docs lists them", c.Request.Method, c.Request.URL.Path))
	})
	e.NoMethod(func(c *gin.Context) {
		envelope.Fail(c, athena.Errorf(athena.CodeMethodNotAllowed, "%s is not allowed here; allowed: %s", c.Request.Method, c.Writer.Header().Get("Allow")).
			With("allow", c.Writer.Header().Get("Allow")))
	})
	for _, f := range cfg.Public {
		f.Register(e)
	}
	private := e.Group("", middleware.Authenticate(cfg.Keys, cfg.Rates))
	for _, f := range cfg.Families {
		f.Register(private)
	}
	return e, nil
}

var _ http.Handler = (*gin.Engine)(nil)
