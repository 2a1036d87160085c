package runner

import (
	"context"
	"encoding/json"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// conclude settles a stream that is to end and that nobody follows. A sink that
// cannot be had now does not keep it from ending: then its next start settles it.
func (r *runner) conclude(ctx context.Context, run runs.Run) {
	j, err := r.job(run)
	if err != nil {
		return // it has never begun
	}
	cctx, err := j.principal(ctx)
	if err == nil {
		err = j.withSink(cctx, func(ctx context.Context, to target) error {
			return newFollower(&leader{runner: r, job: j}, to).settle(ctx)
		})
	}
	if err != nil && ctx.Err() == nil {
		r.Log.Warn("a stream that ends was not settled; its next start does it", "run", run.ID, telemetry.KeyError, err)
	}
}

// settle takes up what a session that was killed has left: it moves the cursor to
// what has taken effect, and publishes what was decided.
func (f *follower) settle(ctx context.Context) (err error) {
	if f.cursor, err = f.Store.Cursor(ctx, f.job.checkpoints()); err != nil {
		return err
	}
	if was, is := f.cursor.Source, f.job.spec.Source.Client; was != "" && was != is {
		return at(athena.Errorf(athena.CodeConflict, "how far the pipeline has come, it has come in the stream of client %q, and that says nothing of %q; start it anew with reset", was, is), "source")
	}
	if f.tables {
		err = f.catchUp(ctx)
	} else {
		err = f.publish(ctx)
	}
	if err == nil && f.cursor.Run == f.id {
		f.counts = f.cursor.Counts
	}
	return at(err, "sink")
}

// publish makes the objects appear that were decided on, and lets go of others.
func (f *follower) publish(ctx context.Context) error {
	if err := f.to.sweep(ctx, f.cursor.Decided); err != nil {
		return err
	}
	if len(f.cursor.Decided) == 0 {
		return nil
	}
	err := f.to.publish(ctx, f.cursor.Decided)
	if err == nil {
		err = f.to.list(ctx, f.cursor.Part, f.cursor.Decided, f.cursor.Schema)
	}
	next := f.cursor
	next.Decided, next.Part, next.Schema = nil, "", nil
	switch {
	case athena.CodeOf(err) == athena.CodeNotFound:
		// The store has let go of what was staged: read it again.
		f.Log.Warn("uploads that were to be published are gone; their changes are read again", "run", f.id, telemetry.KeyError, err)
		if err := f.to.undo(ctx, f.cursor.Decided); err != nil {
			return err
		}
		next.Position, next.Counts = f.cursor.Before, f.cursor.CountsBefore
	case err != nil:
		return err
	}
	return f.put(ctx, next)
}

// An effect is what the checkpoint of a stream's tables says beside its position.
type effect struct {
	Run    string      `json:"run"`
	Counts runs.Counts `json:"counts"`
}

// catchUp moves the cursor to the checkpoint that the tables have. Where rows go to
// several of them each has its own, and the cursor, which is behind all, stays.
func (f *follower) catchUp(ctx context.Context) error {
	if f.cursor.Position == "" || f.routes() {
		return nil
	}
	c, ok, err := f.to.reached(ctx, streamPart)
	if err != nil || !ok || c.Position <= f.cursor.Position {
		return err
	}
	var e effect
	if err := json.Unmarshal(c.Note, &e); err != nil {
		return err
	}
	next := f.cursor
	next.Position, next.Run, next.Counts = c.Position, e.Run, e.Counts
	return f.put(ctx, next)
}

func (f *follower) routes() bool {
	for _, t := range f.job.spec.Transforms {
		if t.Route != "" {
			return true
		}
	}
	return false
}
