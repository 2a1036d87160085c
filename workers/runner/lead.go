package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// lead leads the run until it is over or paused, or ctx is done.
func (r *runner) lead(ctx context.Context) {
	attempt := 0
	for ctx.Err() == nil {
		run, ok := r.Store.Load(r.id)
		if !ok || !r.calls(ctx, &run) {
			return
		}
		if over, err := r.asked(ctx, run); over || err != nil {
			if err != nil {
				r.stumble(ctx, run, err, &attempt)
			}
			continue
		}
		j, err := r.job(run)
		if err != nil {
			r.stumble(ctx, run, err, &attempt)
			continue
		}
		wctx, stop := r.watched(ctx, j)
		if wctx, err = j.principal(wctx); err == nil {
			l := &leader{runner: r, job: j}
			switch {
			case run.Kind == runs.Stream:
				err = l.follow(wctx, &attempt)
			case !run.Made:
				err = l.prepare(wctx)
			default:
				err = l.oversee(wctx)
			}
		}
		cause := context.Cause(wctx)
		stop()
		if err != nil && cause != nil && ctx.Err() == nil {
			err = cause
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			attempt = 0
		case !errors.Is(err, errUnwanted):
			r.stumble(ctx, run, err, &attempt)
		}
	}
}

// stumble notes why a run does not get on, and waits if that may pass.
func (r *runner) stumble(ctx context.Context, run runs.Run, err error, attempt *int) {
	*attempt++
	wait, again := retryable(err, *attempt)
	cause := causeOf(err)
	cause.Final = !again
	r.Log.Warn("a run does not get on", "run", run.ID, telemetry.KeyClient, run.Sink, "code", string(cause.Code), "again", again, telemetry.KeyError, err, "cause", errors.Unwrap(err))
	state := runs.Degraded
	if !again {
		state = runs.Failed
	}
	if _, err := r.become(ctx, state, cause, "%s: %s", cause.Code, cause.Message); err != nil && ctx.Err() == nil {
		r.Log.Warn("the state of a run was not stored", "run", run.ID, telemetry.KeyError, err)
		wait = max(wait, look)
	}
	if !again {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		r.mu.Lock()
		moved := r.moved
		r.mu.Unlock()
		if now, ok := r.Store.Load(r.id); !ok || now.Want != run.Want {
			return
		}
		select {
		case <-t.C:
			return
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// become stores a state of the run, unless it is in it, or over already.
func (r *runner) become(ctx context.Context, state runs.State, cause *runs.Cause, format string, args ...any) (runs.Run, error) {
	if now, ok := r.Store.Load(r.id); ok && now.State == state && same(now.Cause, cause) {
		return now, nil
	}
	run, err := r.Store.Change(ctx, r.id, func(run *runs.Run) error {
		if run.State.Over() {
			return errUnwanted
		}
		if run.State == state && same(run.Cause, cause) {
			return nil
		}
		run.State, run.Cause = state, cause
		if run.StartedAt.IsZero() && state != runs.Queued {
			run.StartedAt = time.Now().UTC()
		}
		if state.Over() {
			run.EndedAt = time.Now().UTC()
			run.Totals = r.totals(ctx, run)
		}
		if format != "" {
			run.Log(format, args...)
		}
		return nil
	})
	if errors.Is(err, errUnwanted) {
		return run, nil
	}
	return run, err
}

func same(a, b *runs.Cause) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Code == b.Code && a.Message == b.Message && a.Stage == b.Stage
}

// totals are what a run has come to by now; of a stream they are kept with its
// cursor, or if that cannot be had, as they were last told.
func (r *runner) totals(ctx context.Context, run *runs.Run) (sum runs.Counts) {
	if run.Kind == runs.Stream {
		if c, err := r.Store.Cursor(ctx, run.PipelineID); err == nil && c.Run == run.ID {
			return c.Counts
		}
		p, _ := r.Store.Progress(run.ID)
		return p.Counts
	}
	for _, t := range r.Store.Tasks(run.ID) {
		if t.State == runs.TaskDone {
			sum.Add(t.Counts)
		}
	}
	sum.Changed = run.Totals.Changed
	return sum
}

// asked does what is wanted of the run, if that is not to run.
func (r *runner) asked(ctx context.Context, run runs.Run) (bool, error) {
	switch run.Want {
	case runs.WantPause:
		if err := r.quiet(ctx, run); err != nil {
			return true, err
		}
		_, err := r.become(ctx, runs.Paused, nil, "paused")
		return true, err
	case runs.WantStop:
		if run.Kind == runs.Stream {
			r.conclude(ctx, run)
			_, err := r.become(ctx, runs.Stopped, nil, "stopped")
			return true, err
		}
		fallthrough
	case runs.WantCancel:
		return true, r.cancel(ctx, run)
	}
	return false, nil
}

// quiet returns when no slot of the run is held any more.
func (r *runner) quiet(ctx context.Context, run runs.Run) error {
	for k := range run.Parallel {
		if err := r.Leases.Await(ctx, slotKey(run.ID, k)); err != nil {
			return err
		}
	}
	return nil
}

// cancel ends a run, and undoes what has not taken effect as a whole.
func (r *runner) cancel(ctx context.Context, run runs.Run) error {
	if run.Kind == runs.Stream {
		r.conclude(ctx, run)
		_, err := r.become(ctx, runs.Cancelled, nil, "cancelled; what was written stays")
		return err
	}
	if err := r.quiet(ctx, run); err != nil {
		return err
	}
	if err := r.Store.Sync(ctx); err != nil {
		return err
	}
	tasks := r.Store.Tasks(run.ID)
	text := "cancelled before anything was written"
	if run.Made {
		j, err := r.job(run)
		if err != nil {
			return err
		}
		cctx, err := j.principal(ctx)
		if err == nil {
			err = j.withSink(cctx, func(ctx context.Context, to target) error { return to.undo(ctx, decided(tasks)) })
		}
		switch {
		case err == nil && (j.spec.Sink.Objects != nil || j.spec.Sink.Mode.Staged()):
			text = "cancelled; what had been staged was removed"
		case err == nil:
			text = fmt.Sprintf("cancelled; %d rows had been written and stay", r.totals(ctx, &run).Written)
		default: // it ends all the same
			text = fmt.Sprintf("cancelled; what had been staged was not removed: %s", athena.AsError(err).Message)
		}
	}
	if _, err := r.become(ctx, runs.Cancelled, nil, "%s", text); err != nil {
		return err
	}
	return r.Store.ForgetTasks(ctx, run.ID)
}

// decided are all objects that are or may be there.
func decided(tasks []runs.Task) (all []stage.Object) {
	for _, t := range tasks {
		all = append(append(all, t.Objects...), t.Decided...)
	}
	return all
}

// A leader leads one run.
type leader struct {
	*runner
	job  *job
	rate rate
	told time.Time // when its progress was
	done int       // tasks that were done then
}

// tell stores how far a batch is.
func (l *leader) tell(ctx context.Context, tasks []runs.Task) {
	now := time.Now().UTC()
	p := runs.Progress{Run: l.job.run.ID, At: now, Worker: l.ID, Tasks: l.job.run.Tasks}
	var busy runs.Busy
	for _, t := range tasks {
		p.Counts.Add(t.Counts)
		busy.Add(t.Busy)
		if t.State == runs.TaskDone {
			p.TasksDone++
		}
		p.Rows, p.Bytes = plus(p.Rows, t.Part.Rows), plus(p.Bytes, t.Part.Bytes)
	}
	p.Stages = shares(busy)
	p.RowsPerSecond, p.BytesPerSecond = l.rate.of(now, p.Counts.Read, p.Counts.Bytes)
	if left := p.Rows - p.Counts.Read; p.Rows >= 0 && left > 0 && p.RowsPerSecond > 0 {
		p.ETA = now.Add(time.Duration(float64(left) / p.RowsPerSecond * float64(time.Second)))
	}
	if err := l.Store.PutProgress(ctx, p); err != nil && ctx.Err() == nil {
		l.Log.Debug("the progress of a run was not stored", "run", l.job.run.ID, telemetry.KeyError, err)
	}
}
