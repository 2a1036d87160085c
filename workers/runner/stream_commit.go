package runner

import (
	"context"
	"encoding/json"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// due reports whether it is time to commit.
func (f *follower) due(chunk source.Chunk) bool {
	if f.writer == nil {
		return f.tables && time.Since(f.stored) > cursorEvery && f.at != f.cursor.Position
	}
	size, age := f.writer.Size(), time.Since(f.begun)
	switch {
	case chunk.Columns != "" || len(chunk.Gaps) > 0: // what comes next is of another shape
		return true
	case f.tables:
		return !chunk.More || size.Rows >= commitRows || age >= commitEvery
	}
	return size.Rows >= f.roll.Rows || size.Bytes >= int64(f.roll.Bytes) || age >= time.Duration(f.roll.Every)
}

// commit makes what was read take effect, and moves the cursor behind it (law 2).
func (f *follower) commit(ctx context.Context) error {
	ctx, cancel := lasting(ctx)
	defer cancel()
	if f.flow != nil {
		if err := f.flow.store(ctx); err != nil {
			return err
		}
		sum := f.counts
		sum.Add(f.flow.counts)
		if err := f.job.tooMany(sum); err != nil {
			return err
		}
	}
	next := f.cursor
	next.Before, next.Position, next.Decided = f.cursor.Position, f.at, nil
	next.Run, next.CountsBefore, next.Counts = f.id, f.counts, f.counts
	if f.writer != nil {
		crashpoint.Here(crashpoint.StreamWritten)
		next.Commit++
		next.Part = f.named
		sum := f.counts
		sum.Add(f.flow.counts)
		note, err := json.Marshal(effect{f.id, sum})
		if err != nil {
			return err
		}
		err = f.writer.Commit(ctx, driver.Checkpoint{
			CheckpointKey: driver.CheckpointKey{Pipeline: f.job.checkpoints(), Part: f.named}, Position: f.at, Note: note,
		}, func(ctx context.Context, objects []stage.Object) error {
			next.Decided = objects
			f.flow.counts.Objects += int64(len(objects))
			next.Counts.Add(f.flow.counts)
			if n := len(objects); n > 0 {
				next.Schema = objects[n-1].Schema
			}
			err := f.put(ctx, next)
			next = f.cursor
			crashpoint.Here(crashpoint.StreamDecided)
			return err
		})
		if err == nil {
			err = f.to.list(ctx, next.Part, next.Decided, next.Schema)
		}
		if err != nil {
			return at(err, "sink")
		}
		crashpoint.Here(crashpoint.StreamCommitted)
		f.counts.Add(f.flow.counts)
		f.busy.Add(f.flow.busy)
		next.Decided, next.Part, next.Schema, next.Counts = nil, "", nil, f.counts
	}
	f.writer, f.flow = nil, nil
	if f.tables && time.Since(f.stored) < cursorEvery && next.Snapshot == f.cursor.Snapshot {
		f.late = &next // the checkpoint says it as well
		return nil
	}
	return f.store(ctx, next)
}

// store stores the cursor of what has taken effect.
func (f *follower) store(ctx context.Context, next runs.Cursor) error {
	f.stored, f.late = time.Now(), nil
	if err := f.put(ctx, next); err != nil {
		return err
	}
	crashpoint.Here(crashpoint.StreamStored)
	return nil
}

func (f *follower) put(ctx context.Context, next runs.Cursor) error {
	c, err := f.Store.PutCursor(ctx, f.job.checkpoints(), next)
	if athena.CodeOf(err) == athena.CodeConflict {
		return athena.Wrap(athena.CodeBusUnavailable, err, "another worker follows this stream")
	}
	if err == nil {
		f.cursor = c
	}
	return err
}

// drain commits what was read whole before the run was to end.
func (f *follower) drain(ctx context.Context, why error) error {
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	f.stored = time.Time{}
	switch {
	case f.clean && (f.writer != nil || f.at != f.cursor.Position):
		if err := f.commit(ctx); err != nil {
			f.Log.Warn("what was read was not written; it is read again", "run", f.id, telemetry.KeyError, err)
		}
	case f.late != nil:
		if err := f.store(dctx, *f.late); err != nil {
			f.Log.Warn("how far a stream has come was not stored; its checkpoint tells", "run", f.id, telemetry.KeyError, err)
		}
	}
	f.told = time.Time{}
	if err := f.tell(dctx, source.Chunk{}); err != nil {
		f.Log.Debug("the progress of a run was not stored", "run", f.id, telemetry.KeyError, err)
	}
	return why
}
