package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
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

// prepare looks at source and sink, and makes the tasks of a batch.
func (l *leader) prepare(ctx context.Context) error {
	if _, err := l.become(ctx, runs.Starting, nil, "led by worker %s", l.ID); err != nil {
		return err
	}
	var schema *record.Schema
	var parts []stage.Part
	var err error
	if l.job.run.Kind == runs.Redrive {
		schema, parts, err = l.prepareRedrive(ctx)
	} else {
		err = l.job.withSource(ctx, func(ctx context.Context, from stage.Source) error {
			var err error
			if schema, err = from.Describe(ctx); err != nil {
				return err
			}
			chain, err := l.job.compile(schema)
			if err != nil {
				return err
			}
			parts, err = from.Split(ctx, chain.Whole())
			return err
		})
	}
	if err != nil {
		return err
	}
	l.job.run.Schema, l.job.run.Expected = schema, l.Store.Standing(l.job.run.PipelineID).Schemas[""]
	chains, err := l.job.batchChains()
	if err != nil {
		return err
	}
	out, news := chains.base.Schema(), chains.by[schema].agreed.News
	if err := l.job.withSink(ctx, func(ctx context.Context, to target) error { return to.prepare(ctx, out) }); err != nil {
		return err
	}
	crashpoint.Here(crashpoint.RunPrepared)
	if err := l.Store.Sync(ctx); err != nil {
		return err
	}
	if err := l.Store.ForgetTasks(ctx, l.job.run.ID); err != nil { // of a leader that died
		return err
	}
	for n, p := range parts {
		if _, err := l.Store.PutTask(ctx, runs.Task{Run: l.job.run.ID, N: n, Part: p, State: runs.TaskQueued}); err != nil {
			return err
		}
		crashpoint.Here(crashpoint.RunTasks)
	}
	_, err = l.Store.Change(ctx, l.job.run.ID, func(run *runs.Run) error {
		run.Made, run.Tasks, run.Schema, run.State, run.Cause = true, len(parts), schema, runs.Running, nil
		run.Expected = l.job.run.Expected
		for _, n := range news {
			run.Log("%s", n)
		}
		run.Log("tasks: %d, at most %d at once", len(parts), run.Parallel)
		return nil
	})
	return err
}

// oversee looks after the tasks of a batch until they are done, then finishes it.
func (l *leader) oversee(ctx context.Context) error {
	if l.job.run.State == runs.Queued {
		if err := l.pardon(ctx); err != nil {
			return err
		}
	}
	for {
		tasks := l.Store.Tasks(l.job.run.ID)
		done := 0
		var fault *runs.Cause
		for _, t := range tasks {
			switch {
			case t.State == runs.TaskDone:
				done++
			case t.Fault == nil:
			case t.Fault.Final:
				return l.fail(ctx, t.Fault)
			case t.State == runs.TaskQueued:
				fault = t.Fault
			}
		}
		if done != l.done || time.Since(l.told) >= tellEvery {
			l.tell(ctx, tasks)
			l.told, l.done = time.Now(), done
		}
		if done == l.job.run.Tasks {
			return l.finish(ctx)
		}
		state := runs.Running
		if fault != nil {
			state = runs.Degraded
		}
		text, args := "", []any{}
		if now, ok := l.Store.Load(l.job.run.ID); ok && (now.State != state || !same(now.Cause, fault)) {
			if text = "running"; fault != nil {
				text, args = "%s: %s", []any{fault.Code, fault.Message}
			}
		}
		if _, err := l.become(ctx, state, fault, text, args...); err != nil {
			return err
		}
		l.await(ctx, look)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// pardon lets tasks be tried again whose failures somebody has seen to.
func (l *leader) pardon(ctx context.Context) error {
	run, err := l.Store.Change(ctx, l.id, func(run *runs.Run) error { run.Taken++; return nil })
	if err != nil {
		return err
	}
	l.job.run = run
	for _, t := range l.Store.Tasks(l.job.run.ID) {
		if t.Fault == nil {
			continue
		}
		t.Fault, t.NotBefore, t.Attempt = nil, time.Time{}, 0
		if _, err := l.Store.PutTask(ctx, t); err != nil && athena.CodeOf(err) != athena.CodeConflict {
			return err
		}
	}
	return nil
}

// fail ends the run, until somebody resumes it.
func (l *leader) fail(ctx context.Context, c *runs.Cause) error {
	_, err := l.become(ctx, runs.Failed, c, "failed: %s: %s", c.Code, c.Message)
	return err
}

// finish makes the whole take effect.
func (l *leader) finish(ctx context.Context) error {
	if err := l.Store.Sync(ctx); err != nil {
		return err
	}
	tasks := l.Store.Tasks(l.job.run.ID)
	var sum runs.Counts
	for _, t := range tasks {
		sum.Add(t.Counts)
	}
	if err := l.job.tooMany(sum); err != nil {
		return err
	}
	if err := l.prune(ctx, tasks); err != nil {
		return err
	}
	if _, err := l.become(ctx, runs.Committing, nil, "all tasks are done"); err != nil {
		return err
	}
	crashpoint.Here(crashpoint.RunFinishing)
	chains, err := l.job.batchChains()
	if err != nil {
		return err
	}
	short := sum.Rejected+sum.Discarded > 0
	var changed int64
	err = l.job.withSink(ctx, func(ctx context.Context, to target) (err error) {
		changed, err = to.finish(ctx, published(tasks), chains.base.Schema(), short)
		return err
	})
	if err != nil {
		return err
	}
	crashpoint.Here(crashpoint.RunFinished)
	if l.job.run.Kind == runs.Redrive {
		for _, r := range l.job.run.Redrives {
			if err := l.Store.DropRejectedOf(ctx, l.job.run.PipelineID, r, l.job.run.Upto); err != nil {
				return err
			}
		}
	} else if l.job.run.Pipeline != "" {
		if err := l.Store.Remember(ctx, l.job.run.PipelineID, func(s *runs.Standing) {
			s.Schemas = map[string]*record.Schema{"": chains.by[l.job.run.Schema].agreed.Expected}
		}); err != nil {
			return err
		}
	}
	_, err = l.Store.Change(ctx, l.job.run.ID, func(run *runs.Run) error {
		run.State, run.Cause, run.EndedAt = runs.Succeeded, nil, time.Now().UTC()
		run.Totals = sum
		run.Totals.Changed = changed
		if short && l.job.spec.Sink.Mode == driver.Merge && l.job.run.Kind == runs.Batch {
			run.Log("rows of the target that did not come were left there, since %d rows could not go on", sum.Rejected+sum.Discarded)
		}
		run.Log("succeeded: %d rows read, %d written, %d rejected", sum.Read, sum.Written, sum.Rejected)
		return nil
	})
	if err != nil {
		return err
	}
	l.tell(ctx, tasks)
	return l.Store.ForgetTasks(ctx, l.job.run.ID)
}

// prune lets go of rows that earlier attempts at the tasks have rejected, and the
// last ones have not.
func (l *leader) prune(ctx context.Context, tasks []runs.Task) error {
	again := false
	last := map[string]bool{}
	for _, t := range tasks {
		again = again || t.Attempt > 1 || l.job.run.Taken > 0
		for n := range t.Counts.Rejected {
			last[rejectedName(partName(t.N), int(n)+1)] = true
		}
	}
	if !again || l.job.run.Kind != runs.Batch {
		return nil
	}
	return l.Store.PruneRejected(ctx, l.job.run.PipelineID, l.job.run.ID, func(row string) bool { return last[row] })
}

// A rate is what has been counted in the last seconds.
type rate struct{ samples []sample }

type sample struct {
	at          time.Time
	rows, bytes int64
}

// of adds a sample and returns rows and bytes a second.
func (r *rate) of(now time.Time, rows, bytes int64) (float64, float64) {
	r.samples = append(r.samples, sample{now, rows, bytes})
	for len(r.samples) > 2 && now.Sub(r.samples[0].at) > 5*time.Second {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	d := now.Sub(first.at).Seconds()
	if d < 0.2 {
		return 0, 0
	}
	return max(0, float64(rows-first.rows)/d), max(0, float64(bytes-first.bytes)/d)
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

// plus adds estimates, of which -1 is not known.
func plus(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

func shares(b runs.Busy) map[string]float64 {
	all := float64(b.Source + b.Transform + b.Sink)
	if all == 0 {
		return nil
	}
	return map[string]float64{"source": float64(b.Source) / all, "transform": float64(b.Transform) / all, "sink": float64(b.Sink) / all}
}
