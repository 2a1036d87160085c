// Package deferred runs deferred queries: it takes jobs from the bus, runs them
// on the road, and stores what came of them.
//
// A Worker serves the clients that it can open, each by a taker of its own. How
// many statements of a client run at once, over all workers, is held by slot
// leases. What to do with a delivered job is decided by the laws of pkg/deferred
// alone; this package carries the decisions out.
package deferred

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/semaphore"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Catalog is what a worker needs to know of clients.
type Catalog interface {
	// List returns all definitions.
	List(ctx context.Context) ([]*athena.Client, error)
	// Subscribe has fn called, briefly, after each change of a definition.
	Subscribe(fn func(name string)) (cancel func())
}

// Observer is told what becomes of jobs, for metrics.
type Observer interface {
	// Started is told how long a job waited since it could have run.
	Started(c *athena.Client, lane deferred.Lane, waited time.Duration)
	// Ended is told of each attempt's end and the state it led to.
	Ended(c *athena.Client, state deferred.State, took time.Duration)
}

// Config says what a worker needs. All fields but the last group are required.
type Config struct {
	// ID names the worker in attempts and leases; unique in the deployment.
	ID         string
	Bus        *bus.Bus
	Store      *deferred.Store
	Dispatcher *dispatch.Dispatcher
	Catalog    Catalog
	Leases     *bus.Leases
	Log        *slog.Logger
	Observer   Observer
	// Serves reports whether this worker may and can run the client's jobs.
	Serves func(*athena.Client) bool

	// Concurrency is how many jobs run at once in this worker; 64 by default.
	Concurrency int
	Sizes       deferred.ResultSizes
	// Grace is how long running statements may go on when the worker stops,
	// before they are cancelled and left to other workers; 10 s by default.
	Grace time.Duration
}

// How long a worker may be silent before its jobs are given to another.
const (
	ackWait   = 9 * time.Second
	heartbeat = 2500 * time.Millisecond
	slotTTL   = 9 * time.Second
)

// Worker runs jobs. Make one with New.
type Worker struct {
	Config
	room   *semaphore.Weighted
	mu     sync.Mutex
	active map[string]*run // by job id
}

// New makes a worker; Run runs it.
func New(cfg Config) *Worker {
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 64
	}
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Second
	}
	return &Worker{Config: cfg, room: semaphore.NewWeighted(int64(cfg.Concurrency)), active: map[string]*run{}}
}

// Run serves clients until ctx is done, then lets running statements end within
// Grace. It returns nil on a clean stop.
func (w *Worker) Run(ctx context.Context) error {
	w.Log.Info("deferred worker starts", telemetry.KeyWorker, w.ID, "concurrency", w.Concurrency)
	// Work outlives ctx by the grace.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)

	sub, err := w.Bus.Conn().Subscribe(bus.CancelHint("*"), func(m *nats.Msg) { w.hint(m.Subject) })
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()

	// serve ends with the last run, so the grace begins when ctx is done.
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(w.Grace):
			stop(errStopping)
		case <-work.Done():
		}
	})()
	var beats sync.WaitGroup
	beats.Go(func() { w.beat(work) })
	w.serve(ctx, work)

	w.room.Acquire(context.Background(), int64(w.Concurrency)) // all runs have ended
	stop(nil)
	beats.Wait()
	w.Log.Info("deferred worker stopped", telemetry.KeyWorker, w.ID)
	return nil
}

// errStopping cancels statements that outlived the grace.
var errStopping = errors.New("the worker is stopping")

// serve keeps one taker for each client that can be served, until ctx is done.
func (w *Worker) serve(ctx, work context.Context) {
	changed := make(chan struct{}, 1)
	defer w.Catalog.Subscribe(func(string) {
		select {
		case changed <- struct{}{}:
		default: // one that waits stands for all
		}
	})()
	retry := time.NewTicker(5 * time.Second) // what could not be opened may have become so
	defer retry.Stop()

	type entry struct {
		taker *taker
		stop  context.CancelFunc
	}
	takers := map[string]entry{}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		clients, err := w.Catalog.List(ctx)
		if err != nil && ctx.Err() == nil {
			w.Log.Warn("the catalog cannot be read", telemetry.KeyError, err)
		}
		seen := map[string]bool{}
		for _, c := range clients {
			// The jobs of an inactive client are taken too: to be failed.
			if c.Lifecycle == athena.Frozen || !c.Capabilities.Has(athena.DeferredQuery) || !w.Serves(c) {
				continue
			}
			seen[c.Name] = true
			if t, ok := takers[c.Name]; ok {
				t.taker.client.Store(c)
				continue
			}
			tctx, cancel := context.WithCancel(ctx)
			t := newTaker(w, c)
			takers[c.Name] = entry{t, cancel}
			wg.Go(func() { t.run(tctx, work) })
		}
		for name, t := range takers {
			if err == nil && !seen[name] {
				t.stop()
				delete(takers, name)
			}
		}
		select {
		case <-ctx.Done():
			for _, t := range takers {
				t.stop()
			}
			return
		case <-changed:
		case <-retry.C:
		}
	}
}

// beat tells the bus that the jobs in hand are worked on, and looks for
// cancellations whose hint was missed.
func (w *Worker) beat(ctx context.Context) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	looking := make(chan struct{}, 1) // one round of looks at a time: a slow bus must not delay the beats
	for {
		select {
		case <-ctx.Done():
			looking <- struct{}{}
			return
		case <-tick.C:
		}
		runs := w.running()
		for _, r := range runs {
			r.msg.InProgress()
		}
		select {
		case looking <- struct{}{}:
			go func() {
				defer func() { <-looking }()
				for _, r := range runs {
					if time.Since(r.started) > heartbeat {
						r.look(ctx)
					}
				}
			}()
		default:
		}
	}
}

func (w *Worker) running() []*run {
	w.mu.Lock()
	defer w.mu.Unlock()
	runs := make([]*run, 0, len(w.active))
	for _, r := range w.active {
		runs = append(runs, r)
	}
	return runs
}

// hint cancels the job that a cancel hint names, if it runs here.
func (w *Worker) hint(subject string) {
	id := bus.CancelHintID(subject)
	w.mu.Lock()
	r := w.active[id]
	w.mu.Unlock()
	if r != nil {
		r.cancel(errCancelled)
	}
}

// enter puts a run into the list of those in hand, or returns the one that runs
// the job here already.
func (w *Worker) enter(r *run) *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	if other, ok := w.active[r.id]; ok {
		return other
	}
	w.active[r.id] = r
	return nil
}

func (w *Worker) leave(r *run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.active, r.id)
}
