// Package gateway is the route family of queries: synchronous ones, which are
// answered with their rows, and deferred ones, which are accepted, kept and
// followed.
//
// A query is read and checked here and takes the road (pkg/dispatch) to its
// backend; a deferred one goes into the store (pkg/deferred), where workers
// find it. The package runs nothing itself, knows no engine, and meets workers
// on the bus alone.
package gateway

import (
	"cmp"
	"context"
	"iter"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Jobs is where deferred queries are kept; *deferred.Store is one.
type Jobs interface {
	Submit(ctx context.Context, j *deferred.Job) (accepted *deferred.Job, replayed bool, err error)
	Load(ctx context.Context, client, id string) (*deferred.Job, deferred.Status, error)
	Status(ctx context.Context, client, id string) (deferred.Status, error)
	Events(ctx context.Context, j *deferred.Job, after uint64) iter.Seq2[deferred.Status, error]
	List(ctx context.Context, f deferred.Filter, before uint64, limit int, frozen func(client string) bool) ([]deferred.Entry, uint64, error)
	Queued(ctx context.Context, c *athena.Client) (int, error)
	Advance(ctx context.Context, j *deferred.Job, from deferred.Status, steps ...deferred.Status) (deferred.Status, error)
	Cancel(ctx context.Context, j *deferred.Job, now time.Time) (deferred.Status, error)
	Requeue(ctx context.Context, j *deferred.Job, st deferred.Status, now time.Time) (deferred.Status, error)
	Forget(ctx context.Context, j *deferred.Job, st deferred.State) error
	Segment(ctx context.Context, j *deferred.Job, r *deferred.Result, n int, buf []byte) ([]byte, error)
}

var _ Jobs = (*deferred.Store)(nil)

// Remote takes the road where a client's backend can be reached: on a worker.
// The principal and the request's id are taken from ctx. A refused write comes
// back with driver.ErrWrites in its chain, other errors as an athena.Error.
type Remote interface {
	Query(ctx context.Context, op dispatch.Op, client string, s driver.Statement) (driver.Rows, error)
}

// Signer makes and checks MACs that are good for one purpose;
// *secret.Keyring is one.
type Signer interface {
	Sign(purpose string, data []byte) []byte
	Verify(purpose string, data, mac []byte) bool
}

// Webhooks says which targets of webhooks are allowed; *webhook.Guard is one.
type Webhooks interface {
	CheckURL(ctx context.Context, url string) error
}

// Config is what the family works with. Dispatcher, Drivers, Jobs and Cursors
// must be set.
type Config struct {
	Dispatcher *dispatch.Dispatcher
	// Drivers are those of this build. They judge a statement's text also where
	// its backend cannot be opened from here.
	Drivers map[athena.Engine]driver.Driver
	Jobs    Jobs
	Cursors Signer
	// Remote, if set, runs synchronous queries whose backend cannot be opened
	// from here.
	Remote Remote
	// Webhooks, if not set, refuses all of them.
	Webhooks Webhooks
	Bounds   deferred.Bounds
	// SyncTimeout bounds a synchronous query, beside its client's own limit;
	// 60 s by default.
	SyncTimeout time.Duration
	// Heartbeat is how often a quiet stream of events shows that it lives;
	// 15 s by default.
	Heartbeat time.Duration
	// Glance is how often a job that is being watched is looked at for what no
	// event tells: a frozen client, a passed deadline. 500 ms by default.
	Glance time.Duration
}

// Family is the route family. It is safe for concurrent use.
type Family struct {
	cfg    Config
	queues *queues
}

// New returns the family.
func New(cfg Config) *Family {
	cfg.Bounds = cfg.Bounds.WithDefaults()
	cfg.SyncTimeout = cmp.Or(cfg.SyncTimeout, time.Minute)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 15*time.Second)
	cfg.Glance = cmp.Or(cfg.Glance, 500*time.Millisecond)
	return &Family{cfg: cfg, queues: newQueues(cfg.Jobs)}
}

// Register adds the family's routes to r.
func (f *Family) Register(r gin.IRouter) {
	r.POST("/gateway/query", f.query(false))
	r.POST("/gateway/sql", f.query(true))
	r.POST("/query/sql", f.query(true))
	r.POST("/query/count", f.count)

	r.GET("/gateway/deferred", f.list)
	r.GET("/gateway/deferred/:id", f.job)
	r.DELETE("/gateway/deferred/:id", f.forget)
	r.GET("/gateway/deferred/:id/events", f.events)
	r.GET("/gateway/deferred/:id/result", f.result)
	r.GET("/gateway/deferred/:id/result/:n", f.segment)
	r.POST("/gateway/deferred/:id/cancel", f.cancel)
	r.POST("/gateway/deferred/:id/requeue", f.requeue)
}

// frozen reports whether the client is frozen now.
func (f *Family) frozen(ctx context.Context) func(client string) bool {
	return func(name string) bool {
		c, err := f.cfg.Dispatcher.Resolver.Client(ctx, name)
		return err == nil && c.Lifecycle == athena.Frozen
	}
}

// view is the state that a caller sees.
func (f *Family) view(ctx context.Context, j *deferred.Job, st deferred.Status) deferred.State {
	return deferred.View(j, st, f.frozen(ctx)(j.Client), time.Now())
}
