package runner

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Catalog is what a worker needs to know of clients.
type Catalog interface {
	Client(ctx context.Context, name string) (*athena.Client, error)
	// Subscribe has fn called, briefly, after each change of a definition.
	Subscribe(fn func(name string)) (cancel func())
}

// Keys says what the key may do in whose name a run is made.
type Keys interface {
	// Principal returns who has the key, or an unauthenticated error if it was
	// revoked or has expired.
	Principal(ctx context.Context, id string) (*auth.Principal, error)
	// Subscribe has fn called with the id of each key that changes.
	Subscribe(fn func(id string)) (cancel func())
}

// Config says what a worker needs. All fields but the last group are required.
type Config struct {
	// ID names the worker in leases and tasks; unique in the deployment.
	ID         string
	Store      *runs.Store
	Dispatcher *dispatch.Dispatcher
	Catalog    Catalog
	Keys       Keys
	Leases     *bus.Leases
	Changes    *changefeed.Store
	Feeds      *changefeed.Feeds
	Jobs       *deferred.Store
	Drivers    map[athena.Engine]driver.Driver
	Log        *slog.Logger
	// Serves reports whether this worker may and can reach the client.
	Serves func(*athena.Client) bool

	// Tasks is how many tasks of batches this worker runs at once; 4 unless it is
	// set.
	Tasks int
	// PartBytes is about how large a task is that reads a table; that of
	// pipelines/source unless it is set.
	PartBytes int64
	// Lease is how long a worker that died keeps its runs and tasks from others;
	// 10 seconds unless it is set.
	Lease time.Duration
	// Keep is how long runs are kept that are over; 30 days unless it is set.
	Keep time.Duration
}

const (
	// look is how often runs are looked through for what no event tells.
	look = time.Second
	// grace is how long what was begun may take to end when a worker stops.
	grace = 30 * time.Second
)

// A Worker runs pipelines whose clients it serves.
type Worker struct {
	Config
	room *semaphore.Weighted // for tasks
}

// New makes a worker; Run runs it.
func New(cfg Config) *Worker {
	if cfg.Tasks <= 0 {
		cfg.Tasks = 4
	}
	if cfg.Lease <= 0 {
		cfg.Lease = 10 * time.Second
	}
	if cfg.Keep <= 0 {
		cfg.Keep = 30 * 24 * time.Hour
	}
	return &Worker{Config: cfg, room: semaphore.NewWeighted(int64(cfg.Tasks))}
}

// Run runs pipelines until ctx is done. What has not taken effect by then is done
// again by another worker. Run returns nil on a clean stop.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.Store.Ready(ctx); err != nil {
		return err
	}
	if err := w.Changes.Ready(ctx); err != nil {
		return err
	}
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { w.keepHouse(ctx) })

	news := make(chan struct{}, 1)
	poke := func(string) {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	defer w.Store.Subscribe(poke)()
	defer w.Catalog.Subscribe(poke)()
	tick := time.NewTicker(look)
	defer tick.Stop()
	running := map[string]*runner{}
	for {
		for id, r := range running {
			select {
			case <-r.done:
				delete(running, id)
			default:
				r.poke()
			}
		}
		for _, run := range w.Store.Live() {
			if running[run.ID] != nil || !w.calls(ctx, &run) {
				continue
			}
			r := newRunner(w, run.ID)
			running[run.ID] = r
			all.Go(func() { r.run(ctx) })
		}
		select {
		case <-news:
			// What is written together is looked at together.
			pause(ctx, 5*time.Millisecond)
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// calls reports whether a run has something to do that this worker can do.
func (w *Worker) calls(ctx context.Context, run *runs.Run) bool {
	if run.State.Over() || run.State == runs.Paused && run.Want == runs.WantPause {
		return false
	}
	for _, name := range []string{run.Source, run.Sink} {
		c, err := w.Catalog.Client(ctx, name)
		if athena.CodeOf(err) == athena.CodeClientNotFound {
			continue // whoever takes it will say so
		}
		if err != nil || !w.Serves(c) {
			return false
		}
	}
	return true
}

// A runner is one run in this worker: its leader, if it has the lease, and as
// many of its slots as it gets.
type runner struct {
	*Worker
	id   string
	done chan struct{}

	mu    sync.Mutex
	moved chan struct{} // closed, and made anew, when something may have changed
}

func newRunner(w *Worker, id string) *runner {
	return &runner{Worker: w, id: id, done: make(chan struct{}), moved: make(chan struct{})}
}

func (r *runner) poke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// await returns when something may have changed, after d, or when ctx is done.
func (r *runner) await(ctx context.Context, d time.Duration) {
	r.mu.Lock()
	moved := r.moved
	r.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-moved:
	case <-t.C:
	case <-ctx.Done():
	}
}

// run leads the run and does its tasks, until it is over, is paused, or ctx is
// done.
func (r *runner) run(ctx context.Context) {
	defer close(r.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() { r.seek(ctx) })
	both.Go(func() { r.slots(ctx) })
	for {
		run, ok := r.Store.Load(r.id)
		if !ok || !r.calls(ctx, &run) || ctx.Err() != nil {
			break
		}
		r.await(ctx, look)
	}
	cancel()
	both.Wait()
}

// seek leads whenever it has the lease.
func (r *runner) seek(ctx context.Context) {
	for ctx.Err() == nil {
		lease, err := r.Leases.Acquire(ctx, "run."+r.id, r.ID, r.Lease)
		if err != nil {
			if ctx.Err() == nil {
				r.Log.Warn("the lease of a run cannot be had; trying again", "run", r.id, "error", err)
				pause(ctx, look)
			}
			continue
		}
		r.under(ctx, lease, r.lead)
	}
}

// under runs fn for as long as the lease is held, and gives it back.
func (r *runner) under(ctx context.Context, lease *bus.Lease, fn func(context.Context)) {
	held, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-lease.Done():
			cancel()
		case <-held.Done():
		}
	}()
	fn(held)
	rctx, done := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer done()
	if err := lease.Release(rctx); err != nil {
		r.Log.Warn("the lease of a run was not given back", "lease", lease.Key(), "error", err)
	}
}

// lasting returns a context for what is not undone once it is begun, however long
// it takes; when ctx ends, the grace is left to it.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	lasts, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, cancel)
		context.AfterFunc(lasts, func() { t.Stop() })
	})
	return lasts, func() { stop(); cancel() }
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
