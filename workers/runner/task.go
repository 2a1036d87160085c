package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// tellEvery is how often a task tells how far it is; by the same write it learns
// whether it is still its own.
const tellEvery = time.Second

// attempt does a task that this worker has claimed, and tells what came of it.
func (r *runner) attempt(ctx context.Context, run runs.Run, t runs.Task) {
	j, err := r.job(run)
	if err != nil {
		r.settle(ctx, run, t, err)
		return
	}
	wctx, stop := r.watched(ctx, j)
	defer stop()
	if wctx, err = j.principal(wctx); err != nil {
		r.settle(ctx, run, t, err)
		return
	}
	a := &attempt{job: j, task: t}
	err = a.do(wctx)
	if cause := context.Cause(wctx); err != nil && cause != nil && ctx.Err() == nil {
		err = cause // the client was frozen, the key revoked, the run paused
	}
	r.settle(ctx, run, a.task, err)
}

// settle stores how an attempt ended. Where it is no longer ours nothing is
// stored.
func (r *runner) settle(ctx context.Context, run runs.Run, t runs.Task, err error) {
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	switch {
	case err == nil || t.State == runs.TaskDone:
		return
	case athena.CodeOf(err) == athena.CodeConflict && errors.Is(err, errOvertaken):
		r.Log.Warn("a task was taken over by another worker", "run", t.Run, "task", t.N)
		return
	}
	t.State, t.Worker = runs.TaskQueued, ""
	if len(t.Decided) == 0 { // else they are those of what is to be published
		t.Counts, t.Busy = runs.Counts{}, runs.Busy{}
	}
	now, _ := r.Store.Load(run.ID)
	// A run that has ended meanwhile, or was taken up again, is not to hear of it.
	late := now.State.Over() || now.State == runs.Queued || now.Taken != run.Taken
	if !errors.Is(err, errUnwanted) && ctx.Err() == nil && !late {
		wait, again := retryable(err, t.Attempt)
		t.Fault = causeOf(err)
		t.Fault.Final = !again
		t.NotBefore = time.Now().Add(wait)
		r.Log.Warn("a task of a run failed", "run", t.Run, "task", t.N, "again", again, "code", string(t.Fault.Code), telemetry.KeyError, err, "cause", errors.Unwrap(err))
	} else {
		t.Attempt-- // that it was stopped says nothing of it
	}
	if _, err := r.Store.PutTask(sctx, t); err != nil {
		r.Log.Warn("what came of a task was not stored; it is done again", "run", t.Run, "task", t.N, telemetry.KeyError, err)
	}
}

// errOvertaken is in the chain of the error of an attempt whose task is another
// worker's by now.
var errOvertaken = errors.New("runner: another worker has the task")

// attempt is one attempt at a task of a batch.
type attempt struct {
	*job
	task runs.Task
	told time.Time
	flow *flow
}

func (a *attempt) part() string { return partName(a.task.N) }

// partName names a task in checkpoints, objects and rejected rows.
func partName(n int) string { return fmt.Sprintf("%06d", n) }

// do reads the part, takes it through the transforms and commits it.
func (a *attempt) do(ctx context.Context) error {
	crashpoint.Here(crashpoint.TaskTaken)
	a.told = time.Now()
	return a.withSink(ctx, func(ctx context.Context, to target) error {
		if len(a.task.Decided) > 0 { // an earlier attempt has decided: publish, and that is all
			return a.publish(ctx, to)
		}
		if counts, done, err := to.done(ctx, a.part()); err != nil || done {
			if err == nil {
				a.task.Counts = counts
				err = a.finish(ctx)
			}
			return err
		}
		if a.run.Kind == runs.Redrive {
			return a.redrive(ctx, to)
		}
		return a.withSource(ctx, func(ctx context.Context, from stage.Source) error { return a.move(ctx, from, to) })
	})
}

// move reads, transforms, writes and commits.
func (a *attempt) move(ctx context.Context, from stage.Source, to target) error {
	straight, err := a.straight(ctx, from, to)
	if err == nil {
		err = a.pass(ctx, from, to, straight)
	}
	if straight && errors.Is(err, driver.ErrRefusedRow) { // which is found row by row
		err = a.pass(ctx, from, to, false)
	}
	return err
}

// pass moves the part once: straight, or batch by batch.
func (a *attempt) pass(ctx context.Context, from stage.Source, to target, straight bool) (err error) {
	w := to.begin(a.part())
	defer func() {
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		w.Abort(actx)
	}()
	chains, err := a.batchChains()
	if err != nil {
		return err
	}
	a.flow = &flow{job: a.job, chains: chains, writer: w, name: a.part()}
	if straight {
		err = a.copy(ctx, from.(*source.Table), w.(*sink.TableWriter))
	} else {
		last := time.Now()
		err = from.Read(ctx, a.task.Part, func(b *record.Batch) error {
			a.flow.busy.Source += time.Since(last)
			defer func() { last = time.Now() }()
			if err := a.flow.push(ctx, b); err != nil {
				return err
			}
			return a.tell(ctx)
		}, func(u stage.Unread) error { return a.flow.unread(ctx, u, "") })
		if err == nil {
			err = a.flow.end(ctx, chains.base)
		}
	}
	if err != nil {
		return err
	}
	return a.commit(ctx, w, to)
}

// commit makes the part take effect (law 2). What the sink has committed, and what
// was decided, is not undone by a cancellation that comes now.
func (a *attempt) commit(ctx context.Context, w stage.Writer, to target) error {
	if err := a.withinRate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	a.task.Counts, a.task.Busy = a.flow.counts, a.flow.busy
	note, err := json.Marshal(a.task.Counts)
	if err != nil {
		return err
	}
	crashpoint.Here(crashpoint.TaskWritten)
	err = w.Commit(ctx, driver.Checkpoint{
		CheckpointKey: driver.CheckpointKey{Pipeline: a.checkpoints(), Run: a.run.ID, Part: a.part()},
		Position:      cdc.Position("done"), Note: note,
	}, func(ctx context.Context, objects []stage.Object) error {
		crashpoint.Here(crashpoint.TaskStaged)
		a.task.Decided = objects
		a.task.Counts.Objects = int64(len(objects))
		if err := a.put(ctx); err != nil {
			return err
		}
		crashpoint.Here(crashpoint.TaskDecided)
		return nil
	})
	if err != nil {
		return at(err, "sink")
	}
	crashpoint.Here(crashpoint.TaskCommitted)
	return a.finish(ctx)
}

// publish makes the objects appear that an earlier attempt has decided on.
func (a *attempt) publish(ctx context.Context, to target) error {
	if err := to.publish(ctx, a.task.Decided); err != nil {
		if athena.CodeOf(err) == athena.CodeNotFound {
			// What was staged is gone, and the object is not there: begin anew.
			a.task.Decided = nil
			a.task.Counts = runs.Counts{}
			if perr := a.put(ctx); perr != nil {
				return perr
			}
			return athena.Wrap(athena.CodeBackendUnavailable, err, "the store has let go of uploads that were to be published; the task is done again")
		}
		return err
	}
	return a.finish(ctx)
}

// finish stores that the task is done. Where that fails, what was decided on stays
// so: the next attempt publishes it again, and writes nothing anew.
func (a *attempt) finish(ctx context.Context) error {
	was := a.task
	a.task.State, a.task.Worker = runs.TaskDone, a.ID
	a.task.Objects, a.task.Decided = a.task.Decided, nil
	if err := a.put(ctx); err != nil {
		a.task = was
		return err
	}
	crashpoint.Here(crashpoint.TaskDone)
	return nil
}

// put stores the task as it is, if it still is ours.
func (a *attempt) put(ctx context.Context) error {
	t, err := a.Store.PutTask(ctx, a.task)
	if athena.CodeOf(err) == athena.CodeConflict {
		return athena.Wrap(athena.CodeConflict, errors.Join(errOvertaken, err), "another worker has taken task %d of run %s over", a.task.N, a.run.ID)
	}
	if err == nil {
		a.task = t
	}
	return err
}

// tell stores how far the attempt is, now and then.
func (a *attempt) tell(ctx context.Context) error {
	if time.Since(a.told) < tellEvery {
		return nil
	}
	a.told = time.Now()
	a.task.Counts, a.task.Busy = a.flow.counts, a.flow.busy
	if err := a.withinRate(); err != nil {
		return err
	}
	return a.put(ctx)
}

// withinRate holds the rows that could not go on, of all tasks, against what the
// definition allows.
func (a *attempt) withinRate() error {
	sum := a.flow.counts
	for _, t := range a.Store.Tasks(a.run.ID) {
		if t.N != a.task.N {
			sum.Add(t.Counts)
		}
	}
	return a.tooMany(sum)
}

// straight reports whether rows can go from table to table in the engine's own
// form.
func (a *attempt) straight(ctx context.Context, from stage.Source, to target) (bool, error) {
	src, ok := from.(*source.Table)
	if !ok || len(a.spec.Transforms) > 0 {
		return false, nil
	}
	t, ok := to.(*tableTarget)
	if !ok || t.Target.Mode == driver.Upsert {
		return false, nil
	}
	form, err := src.CopyForm(ctx)
	if err != nil || form == "" {
		return false, err
	}
	has, err := t.copyForm(ctx, a.run.Schema)
	return has == form, err
}

// copy passes rows on without looking at them.
func (a *attempt) copy(ctx context.Context, from *source.Table, w *sink.TableWriter) error {
	pr, pw := io.Pipe()
	read := make(chan error, 1)
	go func() {
		_, err := from.Copy(ctx, a.task.Part, pw)
		pw.CloseWithError(err)
		read <- err
	}()
	rows, err := w.Copy(ctx, a.run.Schema, &tellingReader{Reader: pr, a: a, ctx: ctx})
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	rerr := <-read
	if rerr != nil && !errors.Is(rerr, io.ErrClosedPipe) {
		return at(rerr, "source")
	}
	if err != nil {
		return at(err, "sink")
	}
	a.flow.counts.Read, a.flow.counts.Written = rows, rows
	return nil
}

// tellingReader tells how many bytes have come.
type tellingReader struct {
	io.Reader
	a   *attempt
	ctx context.Context
}

func (r *tellingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	c := &r.a.flow.counts
	c.Bytes += int64(n)
	if est := r.a.task.Part; est.Bytes > 0 && est.Rows > 0 { // told again when it is known
		c.Read = c.Bytes * est.Rows / est.Bytes
		c.Written = c.Read
	}
	if terr := r.a.tell(r.ctx); terr != nil && err == nil {
		err = terr
	}
	return n, err
}
