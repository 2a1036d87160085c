package deferred

import (
	"context"
	"errors"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// attempt runs the job once against its backend, after asking, if told to, for
// the outcome of an earlier transaction. Fate is what became of the statement,
// for the road to observe; err is what keeps the job from being settled.
func (r *run) attempt(ctx context.Context, call dispatch.Call, b backend, ask bool) (fate, err error) {
	if ask {
		goOn, fate, err := r.ask(ctx, b)
		if !goOn {
			return fate, err
		}
	}
	// Beside the server's own timeout: a server that has stopped keeps none.
	ctx, cancel := context.WithTimeout(ctx, r.job.Timeout.Std()+slack)
	defer cancel()
	text := b.Analyze(r.job.Query)
	tracked, tracks := b.(driver.TrackedQuerier)
	e := &execution{run: r, call: call, b: b, stmt: driver.Statement{
		Text: r.job.Query, Params: r.job.Params, Timeout: r.job.Timeout.Std(),
	}}
	switch {
	case text.Effect == driver.Refused:
		fate := athena.Errorf(athena.CodeInvalidRequest, "%s", text.Reason).At("query")
		return fate, r.advance(r.status.Fail(deferred.Failed, fate, time.Now()))
	case r.job.ReadOnly && text.Effect != driver.Read:
		// A READ ONLY transaction does not hold everything: a function may
		// reach out of it.
		return e.refuseWrite()
	case r.job.To != nil: // it was a read when it was accepted
		return e.toObjects(ctx)
	case text.Effect == driver.Read:
		fate, err = e.read(ctx)
		if err == nil && errors.Is(fate, driver.ErrWrites) && !r.job.ReadOnly && tracks {
			return e.write(ctx, tracked)
		}
		if errors.Is(fate, driver.ErrWrites) {
			return e.refuseWrite()
		}
		return fate, err
	case text.Effect == driver.Write && tracks:
		return e.write(ctx, tracked)
	}
	e.unsafe = !r.job.Idempotent && !text.IdempotentWith(r.job.Params)
	return e.plain(ctx)
}

// ask learns how the transaction of an earlier attempt ended, and settles the
// job if that settles it.
func (r *run) ask(ctx context.Context, b backend) (goOn bool, fate, err error) {
	tracked, ok := b.(driver.TrackedQuerier)
	if !ok {
		return false, nil, r.end(deferred.Indeterminate)
	}
	outcome, fate := tracked.Outcome(ctx, r.status.Token)
	if fate != nil {
		return false, fate, nil
	}
	d := deferred.AfterOutcome(r.job, r.status, outcome == driver.Committed, outcome == driver.Aborted)
	r.log().Info("learnt the outcome of a lost attempt", "outcome", string(outcome))
	if d.Step == deferred.End {
		return false, nil, r.end(d.State)
	}
	if time.Now().After(r.job.Due(r.status)) {
		return false, nil, r.end(deferred.Expired)
	}
	return true, nil, nil
}

// slack is how much longer than the server's own timeout an attempt is waited
// for.
const slack = 30 * time.Second

// execution is one attempt under way.
type execution struct {
	*run
	call   dispatch.Call
	b      backend
	stmt   driver.Statement
	unsafe bool
	timed  bool // the write has a time of its own, which this attempt has given it
	n      int  // of this attempt
	start  *beginning
	grown  time.Time
}

// beginning is the event that tells that an attempt is under way. It is stored a
// moment after the statement was sent: before there is a token there is no
// effect, so nothing need wait for it. An attempt that is over by then stores it
// together with what came of it.
type beginning struct {
	to    deferred.Status
	timer *time.Timer
	store func()        // stores it and closes done
	done  chan struct{} // then to and err tell what came of it
	err   error
}

// beginAfter is that moment.
const beginAfter = 10 * time.Millisecond

// begin has the beginning stored: soon, or now if the job was delivered before
// and may be one that kills its workers.
func (e *execution) begin() {
	now := time.Now()
	if n := len(e.status.Attempts); n == 0 || e.status.State == deferred.RetryWait {
		e.w.Observer.Started(e.client, e.job.Lane, now.Sub(e.job.ReadySince(e.status)))
	}
	b := &beginning{to: e.status.Begin(e.w.ID, e.unsafe, now), done: make(chan struct{})}
	b.to.Msg = e.seq
	e.n, e.start = b.to.Attempt().N, b
	from := e.status
	b.store = func() {
		defer close(b.done)
		if b.to, b.err = e.w.Store.Advance(e.store(), e.job, from, b.to); b.err != nil {
			e.cancel(errFenced)
			return
		}
		crashpoint.Here(crashpoint.JobBegun)
	}
	wait := beginAfter
	if e.unsafe || !e.fresh {
		wait = 0
	}
	b.timer = time.AfterFunc(wait, b.store)
}

// join waits until the beginning is stored.
func (e *execution) join() error {
	b := e.start
	if b == nil {
		return nil
	}
	e.start = nil
	if b.timer.Stop() {
		b.store()
	}
	<-b.done
	if b.err != nil {
		return b.err
	}
	e.status = b.to
	return nil
}

// advance stores what comes next, behind the beginning if that is still to be
// stored.
func (e *execution) advance(next func(deferred.Status) deferred.Status) error {
	if b := e.start; b != nil && b.timer.Stop() {
		e.start = nil
		return e.run.advance(b.to, next(b.to))
	}
	if err := e.join(); err != nil {
		return err
	}
	return e.run.advance(next(e.status))
}

// read runs a statement that the engine holds to reading.
func (e *execution) read(ctx context.Context) (fate, err error) {
	e.begin()
	e.stmt.ReadOnly = true
	rows, fate := e.b.Query(ctx, e.stmt)
	e.stmt.ReadOnly = false
	var result *deferred.Result
	if fate == nil {
		result, fate = e.collect(ctx, rows, true)
	}
	switch {
	case errors.Is(fate, driver.ErrWrites):
		return fate, nil // and the attempt goes on
	case fate != nil:
		return fate, e.failed(fate, true)
	}
	return nil, e.settle(func(s deferred.Status) deferred.Status { return s.Succeed(result, time.Now()) })
}

// refuseWrite ends a job that must not write and tried to.
func (e *execution) refuseWrite() (fate, err error) {
	if e.n == 0 {
		e.begin()
	}
	fate = athena.Errorf(athena.CodeForbidden, "the statement writes, and this key may only read")
	return fate, e.settle(func(s deferred.Status) deferred.Status { return s.Fail(deferred.Failed, fate, time.Now()) })
}

// write runs a statement in a transaction whose token is stored, with the
// result, before it is committed (law 3).
func (e *execution) write(ctx context.Context, b driver.TrackedQuerier) (fate, err error) {
	if e.n == 0 {
		e.begin()
	}
	rows, fate := b.QueryTracked(ctx, e.stmt)
	var result *deferred.Result
	if fate == nil {
		result, fate = e.collect(ctx, rows, false)
	}
	if rows != nil {
		defer rows.Close()
	}
	if fate == nil {
		fate = ctx.Err()
	}
	if fate != nil {
		if rows != nil {
			rows.Close() // rolls back, before anybody is told
		}
		return fate, e.failed(fate, true)
	}
	crashpoint.Here(crashpoint.JobExecuted)
	// From here on a cancellation comes too late.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	staged := false
	fate = rows.Commit(ctx, func(ctx context.Context, token driver.Token) error {
		err := e.advance(func(s deferred.Status) deferred.Status { return s.Stage(token, result, time.Now()) })
		if err != nil {
			return err
		}
		staged = true
		crashpoint.Here(crashpoint.JobStaged)
		return nil
	})
	switch {
	case fate == nil:
		crashpoint.Here(crashpoint.JobCommitted)
		return nil, e.settle(func(s deferred.Status) deferred.Status { return s.Succeed(result, time.Now()) })
	case !staged:
		rows.Close()
		if errors.Is(fate, deferred.ErrMoved) {
			return nil, e.overtaken()
		}
		return fate, e.failed(fate, true)
	}
	return e.uncertain(ctx, b, fate)
}

// uncertain settles a job whose COMMIT was not answered.
func (e *execution) uncertain(ctx context.Context, b driver.TrackedQuerier, cause error) (fate, err error) {
	outcome, asked := b.Outcome(ctx, e.status.Token)
	switch {
	case asked != nil: // ask again later: the token is kept
		return athena.Wrap(athena.CodeBackendUnavailable, cause, "the backend was lost during COMMIT; its outcome will be asked for"), nil
	case outcome == driver.Committed:
		return nil, e.settle(func(s deferred.Status) deferred.Status { return s.Succeed(s.Result, time.Now()) })
	case outcome == driver.Aborted:
		e.status.Token = "" // provably without effect
		return cause, e.failed(cause, true)
	}
	return cause, e.settle(func(s deferred.Status) deferred.Status {
		return s.Fail(deferred.Indeterminate, athena.Wrap(athena.CodeInternal, cause, "the backend was lost during COMMIT, and its outcome cannot be learnt"), time.Now())
	})
}

// plain runs a statement outside any transaction of ours. What it does cannot be
// learnt later, so that it may have an effect is stored before it is sent.
//
// All attempts make a write at one time, so that who settles writes by time has
// them as one; it is that of the first attempt which may have had an effect.
func (e *execution) plain(ctx context.Context) (fate, err error) {
	if e.timed = e.status.WriteTime.IsZero(); e.timed {
		e.status.WriteTime = time.Now().UTC()
	}
	e.begin()
	if err := e.join(); err != nil {
		return nil, err
	}
	e.stmt.WriteTime = e.status.WriteTime
	rows, fate := e.b.Query(ctx, e.stmt)
	var result *deferred.Result
	if fate == nil {
		result, fate = e.collect(ctx, rows, false)
	}
	if fate != nil {
		return fate, e.failed(fate, !e.unsafe)
	}
	return nil, e.settle(func(s deferred.Status) deferred.Status { return s.Succeed(result, time.Now()) })
}

// collect takes the rows into the job's result. It closes rows, save for tracked
// ones that ended well, which are still to be committed.
func (e *execution) collect(ctx context.Context, rows driver.Rows, spool bool) (*deferred.Result, error) {
	out := e.w.Store.NewResult(e.job, e.n, rows.Columns(), e.call.Client.Limits.WithDefaults().MaxResultBytes, e.w.Sizes)
	out.OnSegment = func(r *deferred.Result) { e.grow(r) }
	full := false
	var err error
	for !full && err == nil && rows.Next() {
		full, err = out.Append(ctx, rows)
	}
	if err == nil && !full {
		err = rows.Err()
	}
	_, tracked := rows.(driver.TrackedRows)
	if err == nil && !tracked {
		if err = rows.Close(); full && err != nil && ctx.Err() == nil {
			err = nil // rows that nobody wants were cut off
		}
	}
	if err != nil {
		out.Abandon()
		rows.Close()
		return nil, err
	}
	affected := rows.RowsAffected()
	if spool && out.Large() {
		// The statement is over: from here on it is the upload that is waited for.
		err := e.advance(func(s deferred.Status) deferred.Status { return s.Spool(time.Now()) })
		if err != nil && !errors.Is(err, deferred.ErrMoved) {
			return nil, err
		}
	}
	return out.Finish(ctx, affected)
}

// grow shows the segments that are stored while the statement still runs, at
// most once a second. It is a courtesy: what fails here shows elsewhere.
func (e *execution) grow(r *deferred.Result) {
	if time.Since(e.grown) < time.Second {
		return
	}
	e.grown = time.Now()
	e.advance(func(s deferred.Status) deferred.Status { return s.Grow(r, time.Now()) })
}

// failed settles an attempt whose statement failed. Safe says that it provably
// had no effect unless the engine says that it was done.
func (e *execution) failed(cause error, safe bool) error {
	if err := e.join(); err != nil {
		return err
	}
	now := time.Now()
	f := e.b.Classify(cause)
	if f.NoEffect && e.timed {
		e.status.WriteTime = time.Time{}
	}
	own := athena.AsError(dispatch.Normalize(e.b, cause))
	// What could not be stored on the bus is as lost as what the backend lost.
	lost := own.Code == athena.CodeBackendUnavailable || own.Code == athena.CodeBusUnavailable
	switch why := context.Cause(e.ctx); {
	case errors.Is(why, errFenced):
		return deferred.ErrMoved
	case errors.Is(why, errCancelled) && safe:
		return e.settle(func(s deferred.Status) deferred.Status { return s.Fail(deferred.Cancelled, nil, now) })
	case errors.Is(why, errStopping) && safe:
		if err := e.settle(func(s deferred.Status) deferred.Status { return s.Retry(why, now, now) }); err != nil {
			return err
		}
		return e.w.Store.Wake(e.store(), e.job, now)
	case !safe && (why != nil || lost || errors.Is(cause, context.DeadlineExceeded)):
		return e.settle(func(s deferred.Status) deferred.Status {
			return s.Fail(deferred.Indeterminate, athena.Wrap(athena.CodeInternal, cause, "the statement was cut off and cannot be looked up; look at the data before running it again"), now)
		})
	case own.Code == athena.CodeTimeout:
		return e.settle(func(s deferred.Status) deferred.Status { return s.Fail(deferred.TimedOut, own, now) })
	case lost:
		return e.retry(own, unreachable)
	case f.NoEffect && !errors.As(cause, new(*athena.Error)) && e.status.Failures(own.Code) < 10:
		return e.retry(own, contended)
	}
	return e.settle(func(s deferred.Status) deferred.Status { return s.Fail(deferred.Failed, own, now) })
}

// settle writes what came of the attempt, also where a cancellation was asked
// for in the meantime: what happened is what is told.
func (e *execution) settle(next func(deferred.Status) deferred.Status) error {
	for range 5 {
		err := e.advance(next)
		if !errors.Is(err, deferred.ErrMoved) {
			return err
		}
		if err := e.reload(); err != nil {
			return err
		}
	}
	return deferred.ErrMoved
}

// overtaken settles an attempt whose commit was refused because the job's state
// had changed: a cancellation, or another worker's.
func (e *execution) overtaken() error {
	if err := e.reload(); err != nil {
		return err
	}
	return e.settle(func(s deferred.Status) deferred.Status { return s.Fail(deferred.Cancelled, nil, time.Now()) })
}

// reload reads the job's state again; ErrMoved if the attempt under way is no
// longer this one.
func (e *execution) reload() error {
	mine := e.status.Attempt()
	st, err := e.w.Store.Status(e.store(), e.job.Client, e.id)
	if err != nil {
		return err
	}
	a := st.Attempt()
	if mine == nil || a == nil || a.N != mine.N || a.Worker != mine.Worker || !st.State.Active() {
		e.cancel(errFenced)
		return deferred.ErrMoved
	}
	e.status = st
	return nil
}
