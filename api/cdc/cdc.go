// Package cdc is the route family of changes: which clients' changes are
// captured and how that fares, and how they are read, as a live stream, by
// durable subscriptions, or one large value at a time.
//
// What is wanted is stored (pkg/changefeed), and workers make it true; changes
// are read from the bus. The package captures nothing itself, knows no engine,
// and meets workers on the bus alone. Rights and client are checked when a
// stream is opened, and again whenever they may have changed while it is open.
package cdc

import (
	"cmp"
	"context"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// Webhooks says which targets of webhooks are allowed; *webhook.Guard is one.
type Webhooks interface {
	// Check is an invalid_request error at the field where the URL is not.
	Check(ctx context.Context, field, url string) error
}

// Notices has fn called with the name of what changed: a client's definition, or
// a key that is over. *catalog.Catalog and *auth.Keys are some.
type Notices interface {
	Subscribe(fn func(name string)) (cancel func())
}

// Audit keeps who changed what; *ops.Audit is one.
type Audit interface {
	// Do records the change, and then makes it; what cannot be recorded is not
	// made.
	Do(ctx context.Context, c ops.Change, change func(context.Context) error) error
}

// Runs knows the runs of pipelines; *runs.Store is one.
type Runs interface {
	Ready(ctx context.Context) error
	// Live lists the runs that are not over.
	Live() []runs.Run
}

// Config is what the family works with. All fields down to Audit must be set.
type Config struct {
	Dispatcher *dispatch.Dispatcher
	Store      *changefeed.Store
	Feeds      *changefeed.Feeds
	// Verify knows the keys, and Clients and Keys tell when a definition or a key
	// is no longer what it was: then open streams are judged anew.
	Verify  middleware.Verifier
	Clients Notices
	Keys    Notices
	Runs    Runs
	Audit   Audit
	// Webhooks, if not set, refuses all of them.
	Webhooks Webhooks
	// Heartbeat is how often a quiet stream shows that it lives; 15 s by default.
	Heartbeat time.Duration
	// Patience is how long a reader of a stream may take for what it is sent
	// before it is told to come again; 30 s by default. After Limit, twice that by
	// default, it is cut off.
	Patience time.Duration
	Limit    time.Duration
}

// Family is the routes under /cdc. It is safe for concurrent use.
type Family struct {
	cfg Config
	// again is the road for streams that are open already: they count once.
	again *dispatch.Dispatcher
}

// New returns the family.
func New(cfg Config) *Family {
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 15*time.Second)
	cfg.Patience = cmp.Or(cfg.Patience, 30*time.Second)
	cfg.Limit = cmp.Or(cfg.Limit, 2*cfg.Patience)
	return &Family{cfg, &dispatch.Dispatcher{Resolver: cfg.Dispatcher.Resolver, Observer: uncounted{}}}
}

type uncounted struct{}

func (uncounted) Observe(context.Context, dispatch.Outcome) {}

// Register adds the family's routes to r.
func (f *Family) Register(r gin.IRouter) {
	r = r.Group("", f.ready)
	r.GET("/cdc", f.list)
	r.GET("/cdc/:client", f.get)
	r.POST("/cdc/:client/check", f.check)
	r.POST("/cdc/:client/enable", f.enable)
	r.POST("/cdc/:client/disable", f.disable)

	r.GET("/cdc/:client/snapshots", f.listSnapshots)
	r.POST("/cdc/:client/snapshots", f.addSnapshot)
	r.DELETE("/cdc/:client/snapshots/:id", f.cancelSnapshot)

	r.GET("/cdc/:client/stream", f.stream)
	r.GET("/cdc/:client/objects/:name", f.object)

	r.GET("/cdc/:client/subscriptions", f.listSubscriptions)
	r.POST("/cdc/:client/subscriptions", f.subscribe)
	r.GET("/cdc/:client/subscriptions/:name", f.getSubscription)
	r.DELETE("/cdc/:client/subscriptions/:name", f.unsubscribe)
	r.GET("/cdc/:client/subscriptions/:name/changes", f.pull)
	r.POST("/cdc/:client/subscriptions/:name/ack", f.ack)
}

// readyWithin is how long a request waits for this process's copy of what is kept.
const readyWithin = 5 * time.Second

// ready waits until what is kept has been read: before that nothing can be said
// not to be there.
func (f *Family) ready(c *gin.Context) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), readyWithin)
	defer cancel()
	if err := f.cfg.Store.Ready(ctx); err != nil {
		envelope.Fail(c, athena.Wrap(athena.CodeBusUnavailable, err, "what is kept of captures cannot be read yet").RetryIn(time.Second))
		c.Abort()
	}
}

// What the routes need. Those that touch no backend are open for a frozen client,
// whose capture is held; its changes are not.
var (
	knowing  = operation(auth.Read, true)   // what is kept of a capture
	reading  = operation(auth.Read, false)  // changes
	settling = operation(auth.Write, true)  // ending what was asked for
	changing = operation(auth.Write, false) // asking for something
)

func operation(access auth.Access, holds bool) dispatch.Op {
	return dispatch.Op{Family: "cdc", Right: auth.CDC, Access: access, Needs: []athena.Capability{athena.CDC}, Holds: holds}
}

// allowed is the first part of the order of checks: the right, the client's
// binding, then what is wrong with the request. It has answered if it is false.
func allowed(c *gin.Context, op dispatch.Op, bad error) bool {
	err := auth.FromContext(c.Request.Context()).Authorize(op.Right, op.Access, c.Param("client"))
	if err == nil {
		err = bad
	}
	if err != nil {
		envelope.Fail(c, err)
	}
	return err == nil
}

// client is the second part: the client, its lifecycle, its capabilities. It has
// answered if it returns nil.
func (f *Family) client(c *gin.Context, op dispatch.Op) *athena.Client {
	client, err := f.cfg.Dispatcher.Check(c.Request.Context(), op, c.Param("client"))
	if err != nil {
		envelope.Fail(c, err)
		return nil
	}
	return client
}
