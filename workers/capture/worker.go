package capture

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Catalog is what a worker needs to know of clients.
type Catalog interface {
	Client(ctx context.Context, name string) (*athena.Client, error)
	// Subscribe has fn called, briefly, after each change of a definition.
	Subscribe(fn func(name string)) (cancel func())
}

// Config says what a worker needs. All fields but the last group are required.
type Config struct {
	// ID names the worker in leases and status; unique in the deployment.
	ID         string
	Bus        *bus.Bus
	Store      *changefeed.Store
	Dispatcher *dispatch.Dispatcher
	Catalog    Catalog
	Leases     *bus.Leases
	Log        *slog.Logger
	// Serves reports whether this worker may and can capture the client's
	// changes.
	Serves func(*athena.Client) bool
	// SpillDir takes transactions that are not yet committed and too large for
	// memory.
	SpillDir string

	SpillMemory int64 // bytes in memory, for each capture; the driver's default
	SpillMost   int64 // bytes in SpillDir, for each capture; 0 is no bound
	Tracing     *telemetry.Tracing
}

const (
	// leaseTTL is how long a worker that died keeps its captures from others.
	leaseTTL = 10 * time.Second
	// look is how often captures are looked through for what no event tells.
	look = 2 * time.Second
	// Backoff between sessions, and for those that need a hand.
	firstBackoff  = 250 * time.Millisecond
	maxBackoff    = 5 * time.Second
	failedBackoff = 10 * time.Second
	// settled is how long a session must have streamed for the backoff to begin
	// anew.
	settled = 10 * time.Second
)

// op is what a worker does in a client's name.
var op = dispatch.Op{Family: "cdc", Right: auth.CDC, Needs: []athena.Capability{athena.CDC}}

// A Worker captures the changes of the clients that it serves.
type Worker struct {
	Config
	store *changefeed.Store
}

// New makes a worker; Run runs it.
func New(cfg Config) *Worker { return &Worker{Config: cfg, store: cfg.Store} }

// Run captures until ctx is done. What is stored by then is confirmed; the rest
// is read again by the next worker. Run returns nil on a clean stop.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.store.Ready(ctx); err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	poke := func(string) {
		select {
		case changed <- struct{}{}:
		default: // one that waits stands for all
		}
	}
	defer w.Catalog.Subscribe(poke)()
	defer w.store.Subscribe(poke)()
	tick := time.NewTicker(look)
	defer tick.Stop()

	type entry struct {
		*runner
		cancel context.CancelFunc
		done   chan struct{}
	}
	running := map[string]entry{}
	for {
		wanted := map[string]bool{}
		for _, c := range w.store.Captures() {
			client, err := w.Catalog.Client(ctx, c.Client)
			if err != nil || !w.Serves(client) {
				continue
			}
			wanted[c.Client] = true
			if e, ok := running[c.Client]; ok {
				select {
				case <-e.done: // it gave up its lease
				default:
					e.poke()
					continue
				}
			}
			rctx, cancel := context.WithCancel(ctx)
			e := entry{&runner{Worker: w, client: c.Client, nudge: make(chan struct{}, 1)}, cancel, make(chan struct{})}
			running[c.Client] = e
			go func() {
				defer close(e.done)
				defer cancel()
				e.run(rctx)
			}()
		}
		for name, e := range running {
			if !wanted[name] {
				e.cancel()
				<-e.done
				delete(running, name)
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			for _, e := range running {
				<-e.done
			}
			return nil
		}
	}
}

// A runner captures one client's changes for as long as it has the lease.
type runner struct {
	*Worker
	client string
	nudge  chan struct{} // something about the client may have changed
	status *status
}

func (r *runner) poke() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// run seeks the lease, and captures until ctx is done, the lease is lost or the
// capture is removed.
func (r *runner) run(ctx context.Context) {
	lease, err := r.Leases.Acquire(ctx, "cdc."+r.client, r.ID, leaseTTL)
	if err != nil {
		if ctx.Err() == nil {
			r.Log.Warn("the lease of a capture cannot be had; trying again", telemetry.KeyClient, r.client, telemetry.KeyError, err)
			pause(ctx, look)
		}
		return
	}
	held, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-lease.Done(): // law 2: whoever has it now is the writer
			cancel()
		case <-held.Done():
		}
	}()
	r.work(held)
	if ctx.Err() == nil && held.Err() != nil {
		r.Log.Warn("the lease of a capture was lost", telemetry.KeyClient, r.client)
	}
	rctx, done := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer done()
	if err := lease.Release(rctx); err != nil {
		r.Log.Warn("the lease of a capture was not given back", telemetry.KeyClient, r.client, telemetry.KeyError, err)
	}
}

var (
	// errChanged ends a session since the capture or its client is another now.
	errChanged = errors.New("capture: the definition has changed")
	// errRemoved ends all sessions: the capture is gone.
	errRemoved = errors.New("capture: it was removed")
)

// work runs one session after the other.
func (r *runner) work(ctx context.Context) {
	backoff, noStream := firstBackoff, false
	for ctx.Err() == nil {
		c, ok := r.store.Capture(r.client)
		if !ok {
			return
		}
		if r.status == nil || r.status.capture != c.ID {
			r.status = newStatus(c, r.ID)
		}
		begun := time.Now()
		err := r.session(ctx, &session{runner: r, capture: c, noStream: noStream})
		switch {
		case ctx.Err() != nil, errors.Is(err, errRemoved):
			return
		case errors.Is(err, errChanged):
			backoff = firstBackoff
			continue
		}
		if time.Since(begun) > settled {
			backoff = firstBackoff
		}
		noStream = noStream || errors.Is(err, driver.ErrSpillFull)
		wait := r.fault(err, backoff)
		r.tell(ctx, nil)
		r.await(ctx, wait+rand.N(wait/4), c)
		backoff = min(2*backoff, maxBackoff)
	}
}

// fault notes why a session ended and returns how long to wait.
func (r *runner) fault(err error, backoff time.Duration) time.Duration {
	cause, failed := causeOf(err)
	switch code := athena.CodeOf(err); {
	case code == athena.CodeClientFrozen, code == athena.CodeClientInactive, code == athena.CodeCapabilityDenied:
		r.status.hold(cause.Message)
		return failedBackoff // it is told at once when the client changes
	case failed:
		r.status.fault(changefeed.Failed, cause)
		backoff = failedBackoff
	default:
		r.status.fault(changefeed.Degraded, cause)
	}
	r.Log.Warn("a capture was interrupted", telemetry.KeyClient, r.client, "cause", cause.Code,
		"again_in", backoff.String(), telemetry.KeyError, err)
	return backoff
}

// session takes the road to the source and captures until something ends it.
func (r *runner) session(ctx context.Context, s *session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client, err := r.Catalog.Client(ctx, r.client)
	if err != nil {
		return err
	}
	ctx = auth.NewContext(ctx, &auth.Principal{
		Key: "worker", Name: r.ID, Grants: []auth.Grant{{Right: auth.CDC}}, Clients: []string{r.client},
	})
	var over error // no failure of the operation
	_, err = dispatch.Do(ctx, r.Dispatcher, op, r.client, func(ctx context.Context, _ dispatch.Call, source driver.ChangeSource) (_ struct{}, err error) {
		defer func() {
			if errors.Is(err, errRemoved) || errors.Is(err, errChanged) {
				over, err = err, nil
			}
		}()
		s.source = source
		s.backend, _ = source.(driver.Backend) // every source is one
		if s.capture.Removing {
			return struct{}{}, s.remove(ctx)
		}
		var watch sync.WaitGroup
		defer watch.Wait()
		sctx, stop := context.WithCancel(ctx)
		defer stop()
		watch.Go(func() { r.watch(sctx, cancel, s.capture, client.Revision) })
		watch.Go(func() { r.report(sctx, s) })
		err = s.run(ctx)
		if err != nil && s.capture.OnLoss == changefeed.Resnapshot {
			err = s.recover(ctx, err)
		}
		return struct{}{}, err
	})
	if cause := context.Cause(ctx); errors.Is(cause, errChanged) {
		return errChanged
	}
	return errors.Join(over, err)
}

// watch ends the session when the capture or its client becomes another one.
func (r *runner) watch(ctx context.Context, cancel context.CancelCauseFunc, c changefeed.Capture, revision uint64) {
	for {
		select {
		case <-r.nudge:
		case <-ctx.Done():
			return
		}
		if r.changed(ctx, c, revision) {
			cancel(errChanged)
			return
		}
	}
}

func (r *runner) changed(ctx context.Context, c changefeed.Capture, revision uint64) bool {
	now, ok := r.store.Capture(r.client)
	if !ok || now.Revision != c.Revision {
		return true
	}
	client, err := r.Catalog.Client(ctx, r.client)
	return ctx.Err() == nil && (err != nil || client.Revision != revision)
}

// await waits, and no longer than until the capture or its client has changed.
func (r *runner) await(ctx context.Context, d time.Duration, c changefeed.Capture) {
	var revision uint64
	if client, err := r.Catalog.Client(ctx, r.client); err == nil {
		revision = client.Revision
	}
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-r.nudge:
			if r.changed(ctx, c, revision) {
				return
			}
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// remove takes back what the capture made at the source, and the capture.
func (s *session) remove(ctx context.Context) error {
	s.status.set(changefeed.Removing, "removes what was made at the source")
	if err := s.source.DropChanges(ctx, s.capture.Setup()); err != nil {
		return err
	}
	if s.capture.Purge {
		if err := s.store.DropStream(ctx, s.capture.Client); err != nil {
			return err
		}
	}
	if err := s.store.ForgetCapture(ctx, s.capture); err != nil {
		return err
	}
	s.Log.Info("a capture was removed", telemetry.KeyClient, s.capture.Client, "purged", s.capture.Purge)
	return errRemoved
}

// recover begins anew, by the capture's policy, where the source no longer has
// what comes next. Readers are told by a message; the rows are read again.
func (s *session) recover(ctx context.Context, err error) error {
	var lost *driver.SourceLost
	if !errors.As(err, &lost) || lost.Code == "other_source" || lost.Code == "stream_ahead" {
		return err
	}
	s.Log.Warn("changes were lost at the source; the capture begins anew", telemetry.KeyClient, s.capture.Client, "cause", lost.Code, telemetry.KeyError, err)
	if err := s.source.DropChanges(ctx, s.capture.Setup()); err != nil {
		return err
	}
	next := s.capture
	next.ID = nuid.Next()
	if _, err := s.store.PutCapture(ctx, next); err != nil {
		return err
	}
	return errChanged
}

const (
	reportEvery = time.Second
	healthEvery = 5 * time.Second
)

// report stores how the capture fares, until ctx is done.
func (r *runner) report(ctx context.Context, s *session) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	var asked time.Time
	for {
		if time.Since(asked) > healthEvery {
			asked = time.Now()
			hctx, cancel := context.WithTimeout(ctx, healthEvery)
			h, err := s.source.ChangeHealth(hctx, s.capture.Setup())
			switch {
			case err == nil:
				r.status.health(&h)
			case ctx.Err() == nil: // no slot, or no answer: then nothing is known
				r.status.health(nil)
			}
			cancel()
		}
		r.tell(ctx, s)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tell stores the status; that of a session that is over is without its lag.
func (r *runner) tell(ctx context.Context, s *session) {
	var lag *driver.ChangeLag
	if s != nil {
		if stream := s.open.Load(); stream != nil {
			l := (*stream).Lag()
			lag = &l
		}
	}
	if err := r.store.PutStatus(ctx, r.status.report(time.Now(), lag)); err != nil && ctx.Err() == nil {
		r.Log.Debug("the status of a capture was not stored", telemetry.KeyClient, r.client, telemetry.KeyError, err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
