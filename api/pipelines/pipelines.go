// Package pipelines is the route family of pipelines: what they are, whether they
// can be run, and how their runs fare.
//
// It stores what is wanted (pipelines/runs), and workers make it true; the package
// moves no rows and meets workers on the bus alone. Nothing is stored of a
// definition or of a run before its plan is made and refuses nothing.
//
// A key that is bound to clients sees and touches only pipelines and runs both of
// whose clients it may act as; others are not there for it.
package pipelines

import (
	"cmp"
	"context"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// Notices has fn called with the id of each key that is over; *auth.Keys is one.
type Notices interface {
	Subscribe(fn func(key string)) (cancel func())
}

// Audit keeps who changed what; *ops.Audit is one.
type Audit interface {
	// Do records the change, and then makes it; what cannot be recorded is not
	// made.
	Do(ctx context.Context, c ops.Change, change func(context.Context) error) error
}

// Config is what the family works with. All fields down to Audit must be set.
type Config struct {
	Dispatcher *dispatch.Dispatcher
	Store      *runs.Store
	Plans      Planner
	// Verify knows the keys, and Keys tells when one is over: then open streams are
	// judged anew.
	Verify middleware.Verifier
	Keys   Notices
	Audit  Audit
	// Heartbeat is how often a quiet stream shows that it lives; 15 s by default.
	Heartbeat time.Duration
	// Stall is how long a stream's reader may take for what it is sent; 30 s by
	// default.
	Stall time.Duration
}

// Family is the routes under /pipelines and /runs. It is safe for concurrent use.
type Family struct {
	cfg Config
}

// New returns the family.
func New(cfg Config) *Family {
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 15*time.Second)
	cfg.Stall = cmp.Or(cfg.Stall, 30*time.Second)
	return &Family{cfg}
}

// Register adds the family's routes to r.
func (f *Family) Register(r gin.IRouter) {
	read, write := r.Group("", f.ready), r.Group("", f.fresh)

	write.POST("/pipelines", f.runInline)
	write.POST("/pipelines/plan", f.plan)
	write.POST("/pipelines/simulate", f.simulate)

	read.GET("/pipelines", f.list)
	read.GET("/pipelines/:name", f.get)
	write.PUT("/pipelines/:name", f.put)
	write.DELETE("/pipelines/:name", f.remove)

	read.GET("/pipelines/:name/runs", f.listRuns)
	write.POST("/pipelines/:name/runs", f.runStored)
	write.POST("/pipelines/templates/:name/runs", f.runStored)
	write.POST("/pipelines/:name/start", f.start)
	write.POST("/pipelines/:name/pause", f.pause)
	write.POST("/pipelines/:name/resume", f.resume)
	write.POST("/pipelines/:name/stop", f.stop)

	read.GET("/pipelines/:name/dead", f.listDead)
	write.DELETE("/pipelines/:name/dead", f.dropDead)
	write.POST("/pipelines/:name/dead/redrive", f.redrive)

	read.GET("/runs", f.listAllRuns)
	read.GET("/runs/:id", f.getRun)
	read.GET("/runs/:id/events", f.events)
	read.GET("/runs/:id/dead", f.listRunDead)
	write.POST("/runs/:id/cancel", f.cancelRun)
	write.POST("/runs/:id/pause", f.pauseRun)
	write.POST("/runs/:id/resume", f.resumeRun)
}

// readyWithin is how long a request waits for this process's copy of what is kept.
const readyWithin = 5 * time.Second

// ready waits until what is kept has been read: before that nothing can be said
// not to be there.
func (f *Family) ready(c *gin.Context) { f.await(c, f.cfg.Store.Ready) }

// fresh waits until the copy has everything that was stored when the request came:
// what is decided on must not be older than what the caller has seen.
func (f *Family) fresh(c *gin.Context) { f.await(c, f.cfg.Store.Sync) }

func (f *Family) await(c *gin.Context, until func(context.Context) error) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), readyWithin)
	defer cancel()
	if err := until(ctx); err != nil {
		envelope.Fail(c, athena.Wrap(athena.CodeBusUnavailable, err, "what is kept of pipelines cannot be read yet").RetryIn(time.Second))
	}
}

// A side is one end of a pipeline: a client, and what is done in its name.
type side struct {
	client string
	op     dispatch.Op
}

// sides are the ends of a pipeline. A frozen client is let through: the run waits
// for it.
func sides(p *spec.Pipeline) []side {
	both := []side{{p.Source.Client, stage.SourceOp(p.Source)}, {p.Sink.Client, stage.SinkOp(p.Sink)}}
	for i := range both {
		both[i].op.Holds = true
	}
	return both
}

// authorize reports why the key may not have this definition run.
func authorize(ctx context.Context, p *spec.Pipeline) error {
	for _, s := range sides(p) {
		if err := auth.FromContext(ctx).Authorize(auth.Pipelines, auth.Write, s.client); err != nil {
			return err
		}
	}
	return nil
}

// admit takes the road for each client of a definition, up to the backends.
func (f *Family) admit(ctx context.Context, p *spec.Pipeline) (err error) {
	for _, s := range sides(p) {
		if _, refused := f.cfg.Dispatcher.Check(ctx, s.op, s.client); err == nil {
			err = refused
		}
	}
	return err
}

// allowed is the first part of the order of checks: the right, then what is wrong
// with the request. It has answered if it is false.
func allowed(c *gin.Context, access auth.Access, bad error) bool {
	err := auth.FromContext(c.Request.Context()).Authorize(auth.Pipelines, access, "")
	if err == nil {
		err = bad
	}
	if err != nil {
		envelope.Fail(c, err)
	}
	return err == nil
}

// sees reports whether the key may know of what runs between two clients.
func sees(ctx context.Context, source, sink string) bool {
	p := auth.FromContext(ctx)
	return p.MayActAs(source) && p.MayActAs(sink)
}

// definition returns the pipeline that the path names, and what its definition
// says. It has answered if ok is false.
func (f *Family) definition(c *gin.Context) (d runs.Definition, p *spec.Pipeline, ok bool) {
	name := c.Param("name")
	d, ok = found(f, c, name, f.cfg.Store.Definition)
	if ok {
		p = stored(d.Spec)
		ok = sees(c.Request.Context(), p.Source.Client, p.Sink.Client)
	}
	if !ok && !c.IsAborted() {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "there is no pipeline %.80q; list them with GET /pipelines", name))
	}
	return d, p, ok
}

// run returns the run that the path names. It has answered if ok is false.
func (f *Family) run(c *gin.Context) (r runs.Run, ok bool) {
	id := c.Param("id")
	r, ok = found(f, c, id, f.cfg.Store.Load)
	if ok = ok && sees(c.Request.Context(), r.Source, r.Sink); !ok && !c.IsAborted() {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "there is no run %.80q; list them with GET /runs", id))
	}
	return r, ok
}

// found looks up what another process may have stored just now: before it is said
// not to be there, the copy is brought up to date.
func found[T any](f *Family, c *gin.Context, key string, look func(string) (T, bool)) (v T, ok bool) {
	if v, ok = look(key); ok {
		return v, true
	}
	if f.fresh(c); c.IsAborted() {
		return v, false
	}
	return look(key)
}

// some is l, and empty where it is nil, so that JSON has [] and not null.
func some[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
