package runner

import (
	"context"
	"time"

	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

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
	set := nuid.Next() // what another leader made, or makes yet, is left alone
	for n, p := range parts {
		if _, err := l.Store.PutTask(ctx, runs.Task{Run: l.job.run.ID, Set: set, N: n, Part: p, State: runs.TaskQueued}); err != nil {
			return err
		}
		crashpoint.Here(crashpoint.RunTasks)
	}
	_, err = l.Store.Change(ctx, l.job.run.ID, func(run *runs.Run) error {
		if run.Made { // by another leader
			return errUnwanted
		}
		run.Made, run.Set, run.Tasks, run.Schema, run.State, run.Cause = true, set, len(parts), schema, runs.Running, nil
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
