package deferred

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// run is one delivery of one job, from the message to its acknowledgement.
type run struct {
	w       *Worker
	client  *athena.Client // as it was when the message was taken
	msg     jetstream.Msg
	id      string
	seq     uint64 // of the message in its stream
	job     *deferred.Job
	status  deferred.Status
	loaded  uint64 // the revision of the status when the message was taken
	wrote   bool   // this run has written a status
	fresh   bool   // the message was not delivered before
	started time.Time
	ctx     context.Context // ends with the run, and with a cancellation
	cancel  context.CancelCauseFunc
}

// errCancelled cancels a run because somebody asked for it; errFenced because
// another worker has taken the job over.
var (
	errCancelled = errors.New("the job was cancelled")
	errFenced    = errors.New("another worker has taken the job over")
)

func newRun(work context.Context, w *Worker, c *athena.Client, msg jetstream.Msg) *run {
	r := &run{w: w, client: c, msg: msg, id: bus.JobID(msg.Subject()), started: time.Now()}
	r.ctx, r.cancel = context.WithCancelCause(work)
	return r
}

func (r *run) stop() { r.cancel(nil) }

// do decides what the delivery asks for and carries it out. The message is
// acknowledged only after what it stood for is stored (law 4); on any error it
// is left, to be delivered again.
func (r *run) do() {
	meta, err := r.msg.Metadata()
	if err != nil {
		r.log().Error("a message without metadata", telemetry.KeyError, err)
		return
	}
	r.seq, r.fresh = meta.Sequence.Stream, meta.NumDelivered == 1
	if other := r.w.enter(r); other != nil {
		if other.seq != r.seq { // else delivered twice; the run under way will acknowledge
			r.msg.NakWithDelay(500 * time.Millisecond)
		}
		return
	}
	defer r.w.leave(r)
	crashpoint.Here(crashpoint.JobTaken)
	err = r.load()
	if errors.Is(err, errForgotten) {
		r.msg.Ack()
		return
	}
	if err == nil {
		err = r.carryOut(r.decide())
	}
	switch {
	case err == nil:
		crashpoint.Here(crashpoint.JobSettled)
		r.msg.Ack()
	case errors.Is(err, deferred.ErrMoved) && r.elsewhere():
		// The message is another worker's now: a nak would take it from it.
	case errors.Is(err, deferred.ErrMoved):
		r.msg.NakWithDelay(100 * time.Millisecond) // decide anew
	case athena.CodeOf(err) == athena.CodeClientFrozen:
		r.msg.NakWithDelay(500 * time.Millisecond)
	default:
		r.log().Warn("a deferred job is left for later", telemetry.KeyError, err, "cause", errors.Unwrap(err))
		r.msg.NakWithDelay(time.Second)
	}
}

var errForgotten = errors.New("the job has been forgotten")

// load reads the job and where it stands. A first delivery carries the job and
// has no events, save for a cancellation; the compare-and-set finds that out.
func (r *run) load() error {
	if job, ok := deferred.DecodeJob(r.msg.Data()); ok && r.fresh {
		r.job = job
		return nil
	}
	var err error
	r.job, r.status, err = r.w.Store.Load(r.ctx, r.client.Name, r.id)
	r.loaded = r.status.Rev
	if athena.CodeOf(err) == athena.CodeNotFound {
		return errForgotten
	}
	return err
}

// elsewhere reports whether another worker runs the job by now.
func (r *run) elsewhere() bool {
	st, err := r.w.Store.Status(r.store(), r.client.Name, r.id)
	a := st.Attempt()
	return err != nil || st.State.Active() && a != nil && a.Ended.IsZero() && a.Worker != r.w.ID
}

func (r *run) decide() deferred.Decision {
	// A wake-up that comes while the job runs under another message says nothing
	// of its worker.
	if s := r.status; s.State.Active() && s.Attempt().Ended.IsZero() && s.Msg != 0 && s.Msg != r.seq {
		return deferred.Decision{Step: deferred.Drop}
	}
	requeue, _ := strconv.ParseUint(r.msg.Headers().Get(deferred.HeaderRequeue), 10, 64)
	return deferred.Decide(r.job, r.status, requeue, time.Now())
}

func (r *run) carryOut(d deferred.Decision) error {
	switch d.Step {
	case deferred.Drop:
		return nil
	case deferred.Later:
		return r.w.Store.Wake(r.ctx, r.job, d.At)
	case deferred.End:
		return r.end(d.State)
	}
	if r.status.State.Terminal() {
		// A requeue of which only the wake-up was stored.
		if err := r.advance(r.job.Requeued(r.status, time.Now())); err != nil {
			return err
		}
	}
	return r.onRoad(d.Step == deferred.Ask)
}

// end writes a terminal state that needs no attempt.
func (r *run) end(state deferred.State) error {
	now := time.Now()
	var next deferred.Status
	switch state {
	case deferred.Succeeded:
		next = r.status.Succeed(nil, now)
	case deferred.Indeterminate:
		next = r.status.Fail(state, athena.Errorf(athena.CodeInternal, "the worker was lost while the statement ran, and its outcome cannot be learnt; look at the data before running it again"), now)
	case deferred.Failed:
		next = r.status.Fail(state, athena.Errorf(athena.CodeInternal, "the job lost its worker %d times and is not tried again", deferred.MaxLost), now)
		if err := r.w.Store.Dead(r.ctx, r.job, next); err != nil {
			return err
		}
	case deferred.Expired:
		next = r.status.Fail(state, athena.Errorf(athena.CodeTimeout, "the deadline passed before the job could run"), now)
	default:
		next = r.status.Fail(state, nil, now)
	}
	return r.advance(next)
}

// advance takes the job through steps and keeps the last as its status.
func (r *run) advance(steps ...deferred.Status) error {
	st, err := r.w.Store.Advance(r.store(), r.job, r.status, steps...)
	if err != nil {
		return err
	}
	r.status, r.wrote = st, true
	if a := st.Attempt(); !st.State.Active() && a != nil {
		r.w.Observer.Ended(r.client, st.State, time.Since(r.started))
	}
	return nil
}

// store is the context for what must be stored also while the run is being
// cancelled.
func (r *run) store() context.Context { return context.WithoutCancel(r.ctx) }

// look reads the job's state to see a cancellation, or another owner.
func (r *run) look(ctx context.Context) {
	st, err := r.w.Store.Status(ctx, r.client.Name, r.id)
	switch {
	case err != nil:
	case st.State == deferred.Cancelling:
		r.cancel(errCancelled)
	case st.Rev > r.loaded && st.Attempt() != nil && st.State.Active() && st.Attempt().Worker != r.w.ID:
		r.cancel(errFenced)
	}
}

func (r *run) log() *slog.Logger {
	return r.w.Log.With(telemetry.KeyClient, r.client.Name, telemetry.KeyJob, r.id)
}

// op is what the job needs of its client and of its submitter.
func op(j *deferred.Job) dispatch.Op { return deferred.Op(j.Raw, j.Language) }

// backend is what running a job asks of a driver.
type backend interface {
	driver.Backend
	driver.Querier
}

// onRoad takes the job to its backend and runs it there, or asks first how the
// transaction of an earlier attempt ended.
func (r *run) onRoad(ask bool) error {
	ctx := auth.NewContext(telemetry.WithRequestID(r.ctx, r.job.RequestID), r.job.Principal)
	ctx = telemetry.Extract(ctx, map[string][]string{telemetry.HeaderTraceparent: {r.job.Traceparent}})
	var internal error // what must not be taken for the statement's own failure
	_, err := dispatch.Do(ctx, r.w.Dispatcher, op(r.job), r.job.Client,
		func(ctx context.Context, call dispatch.Call, b backend) (struct{}, error) {
			var fate error
			fate, internal = r.attempt(ctx, call, b, ask)
			return struct{}{}, fate
		})
	switch code := athena.CodeOf(err); {
	case internal != nil:
		return internal
	case err == nil || r.settled():
		return nil
	case r.ctx.Err() != nil: // cut off before the statement: cancelled, or the worker stops
		return err
	case code == athena.CodeClientFrozen:
		return err
	case code == athena.CodeBackendUnavailable, code == athena.CodeTooManyRequests:
		return r.retry(err, unreachable)
	default: // the road is closed for good: inactive, not found, denied
		if r.status.Token != "" {
			return r.retry(err, unreachable) // there may be an effect to learn of
		}
		return r.advance(r.status.Fail(deferred.Failed, err, time.Now()))
	}
}

// settled reports whether this run has already written what came of the job.
func (r *run) settled() bool {
	return r.wrote && (r.status.State.Terminal() || r.status.State == deferred.RetryWait)
}

// Backoff of attempts that failed without effect.
const (
	unreachable = 5 * time.Minute
	contended   = 10 * time.Second
)

// retry has the job tried again after 1 s, doubling with each failure of the
// same kind up to most, with full jitter.
func (r *run) retry(cause error, most time.Duration) error {
	if r.status.State == deferred.Cancelling {
		return cause // stays so, and is looked at again
	}
	next := r.status
	if a := next.Attempt(); a == nil || !a.Ended.IsZero() {
		next = next.Touch(r.w.ID, time.Now())
	}
	wait := time.Second << min(next.Failures(athena.CodeOf(cause)), 20)
	wait = time.Duration(rand.Int64N(int64(min(wait, most)))) + 50*time.Millisecond
	at := time.Now().Add(wait)
	if err := r.advance(next.Retry(cause, at, time.Now())); err != nil {
		return err
	}
	crashpoint.Here(crashpoint.JobRetried)
	return r.w.Store.Wake(r.store(), r.job, at)
}
