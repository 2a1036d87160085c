// Package system is the route family about the process itself: whether it lives,
// whether it can do its work, its metrics, and the description of the API. It
// knows nothing of clients.
package system

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/openapi"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
)

// A Check is one thing that must hold for the process to do its work.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // shown to everybody
}

// Prober looks at everything that the process needs.
type Prober interface {
	// Ready makes each check, within ctx. An empty list is ready.
	Ready(ctx context.Context) []Check
}

// ProberFunc is a function as a Prober.
type ProberFunc func(ctx context.Context) []Check

// Ready calls f.
func (f ProberFunc) Ready(ctx context.Context) []Check { return f(ctx) }

// Version says what was built, when, and of what.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Built   string `json:"built,omitempty"`
	Go      string `json:"go"` // filled in
}

// Bus says how the bus keeps its promise.
type Bus struct {
	Mode     string `json:"mode"` // embedded or external
	Sync     string `json:"sync"` // always, or the interval
	Replicas int    `json:"replicas,omitempty"`
}

// Config is what the family works with.
type Config struct {
	Version Version
	Bus     Bus
	// Weaknesses are settings that weaken what Athena promises, in words. They
	// are shown to everybody.
	Weaknesses []string
	Prober     Prober       // nil has no checks
	Metrics    http.Handler // nil answers not_found
	// MetricsOpen lets everybody read the metrics; for a process that listens
	// on loopback only, or whose owner said so. Otherwise a key with the right
	// admin:read is needed.
	MetricsOpen bool
	Keys        middleware.Verifier // for the metrics; nil knows no key
	Rates       middleware.Rates
}

// Family is the system routes.
type Family struct {
	cfg     Config
	started time.Time
	page    page
	yaml    page
	ready   readiness
}

// New makes the family. It renders the documentation, and fails if that cannot
// be done.
func New(cfg Config) (*Family, error) {
	cfg.Version.Go = runtime.Version()
	if cfg.Keys == nil {
		cfg.Keys = nobody{}
	}
	html, policy, err := openapi.Render()
	if err != nil {
		return nil, err
	}
	return &Family{
		cfg: cfg, started: time.Now(),
		page:  newPage("text/html; charset=utf-8", policy, html),
		yaml:  newPage("application/yaml", "", openapi.Document()),
		ready: readiness{prober: cfg.Prober},
	}, nil
}

// Register adds the routes to r, which must not ask for a key.
func (f *Family) Register(r gin.IRouter) {
	r.GET("/health", f.health)
	r.GET("/ready", f.readyz)
	r.GET("/version", f.version)
	r.GET("/openapi.yaml", f.yaml.serve)
	r.GET("/docs", f.page.serve)
	metrics := r.Group("")
	if !f.cfg.MetricsOpen {
		metrics.Use(middleware.Authenticate(f.cfg.Keys, f.cfg.Rates), middleware.Require(auth.Admin, auth.Read))
	}
	metrics.GET("/metrics", f.metrics)
}

// nobody holds a key.
type nobody struct{}

func (nobody) Verify(context.Context, string) (*auth.Principal, error) { return nil, nil }

// health is the body of /health.
type health struct {
	Version    string   `json:"version"`
	UptimeS    int64    `json:"uptime_s"`
	Bus        Bus      `json:"bus"`
	Weaknesses []string `json:"weaknesses"`
}

func (f *Family) health(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	message := "alive"
	if len(f.cfg.Weaknesses) > 0 {
		message = "alive, with weakened promises: see weaknesses"
	}
	envelope.OK(c, message, health{
		f.cfg.Version.Version, int64(time.Since(f.started).Seconds()), f.cfg.Bus, append([]string{}, f.cfg.Weaknesses...),
	}, envelope.Meta{})
}

func (f *Family) version(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, f.cfg.Version.Version, f.cfg.Version, envelope.Meta{})
}

func (f *Family) metrics(c *gin.Context) {
	if f.cfg.Metrics == nil {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "this process exports no metrics"))
		return
	}
	f.cfg.Metrics.ServeHTTP(c.Writer, c.Request)
}

func (f *Family) readyz(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx := c.Request.Context()
	checks := []Check{{Name: "serving", OK: false, Detail: "the process is stopping"}}
	if !api.IsDraining(ctx) {
		checks = append([]Check{{Name: "serving", OK: true}}, f.ready.checks(ctx)...)
	}
	var failed []string
	for _, check := range checks {
		if !check.OK {
			failed = append(failed, check.Name+": "+check.Detail)
		}
	}
	if len(failed) > 0 {
		envelope.Fail(c, athena.Errorf(athena.CodeBusUnavailable, "not ready: %s", strings.Join(failed, "; ")).
			With("checks", checks).RetryIn(time.Second))
		return
	}
	envelope.OK(c, "ready", map[string]any{"checks": checks}, envelope.Meta{})
}

// readiness shares one look among those who ask at about the same time: a check
// stores something, and everybody may ask.
type readiness struct {
	prober Prober

	mu   sync.Mutex
	at   time.Time
	last []Check
}

// How long one look is good for, and how long it may take.
const (
	readyFresh  = 250 * time.Millisecond
	readyWithin = 3 * time.Second
)

func (r *readiness) checks(ctx context.Context) []Check {
	if r.prober == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) > readyFresh {
		// The look is for all who wait for it, so it outlives the one who asks.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyWithin)
		defer cancel()
		r.last = r.prober.Ready(ctx)
		r.at = time.Now()
	}
	return slices.Clone(r.last)
}
