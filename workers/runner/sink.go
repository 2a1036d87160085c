package runner

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A target is a sink as a run uses it.
type target interface {
	// prepare makes what writing rows of this schema needs.
	prepare(ctx context.Context, s *record.Schema) error
	// begin returns a writer for a part: a task, or a commit of a stream, which
	// begins behind a position.
	begin(part string) stage.Writer
	// done reports whether an earlier attempt at a part of a batch has committed
	// it, and what it counted.
	done(ctx context.Context, part string) (runs.Counts, bool, error)
	// reached returns the checkpoint of a part of a stream; false if the sink keeps
	// none.
	reached(ctx context.Context, part string) (driver.Checkpoint, bool, error)
	// publish makes objects appear that were decided on.
	publish(ctx context.Context, objects []stage.Object) error
	// list tells which objects a commit of a stream has published.
	list(ctx context.Context, part string, objects []stage.Object, s *record.Schema) error
	// sweep lets go of what attempts that were killed have left behind, but for
	// what was decided on. No attempt is under way.
	sweep(ctx context.Context, decided []stage.Object) error
	// finish makes the tasks of a batch take effect as a whole.
	// Short says that rows are missing among them that could not go on.
	finish(ctx context.Context, objects []stage.Object, schema *record.Schema, short bool) (changed int64, err error)
	// undo takes back what a batch that is cancelled has left that has not taken
	// effect as a whole.
	undo(ctx context.Context, objects []stage.Object) error
	// clear drops what is kept of a batch that is over beside its rows.
	clear(ctx context.Context) error
	// forget drops the checkpoints of a stream.
	forget(ctx context.Context) error
}

// withSink runs fn with the sink of a run, on the road to its client.
func (j *job) withSink(ctx context.Context, fn func(context.Context, target) error) error {
	s, op := j.spec.Sink, stage.SinkOp(j.spec.Sink)
	var err error
	switch {
	case s.Objects != nil:
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, store sink.ObjectStore) (struct{}, error) {
			t, err := newObjectTarget(j, store)
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, fn(ctx, t)
		})
	default:
		name, perr := driver.ParseTableName(s.Table)
		if perr != nil {
			return perr
		}
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, w driver.TableWriter) (struct{}, error) {
			return struct{}{}, fn(ctx, newTableTarget(j, w, name))
		})
	}
	return at(err, "sink")
}

// tableTarget writes to tables.
type tableTarget struct {
	*sink.Table
	job *job
}

func newTableTarget(j *job, w driver.TableWriter, name driver.TableName) *tableTarget {
	s := j.spec.Sink
	t := &sink.Table{Writer: w, Pipeline: j.checkpoints(), Run: j.run.ID, Target: driver.TableTarget{
		Table: name, Mode: s.Mode, Key: s.Key, Create: s.Create, Run: j.run.ID, Changes: j.spec.Source.CDC != nil,
		AddColumns: j.spec.Schema.Columns == spec.Evolve, WidenTypes: j.spec.Schema.Types == spec.Evolve,
		WriteTime: s.WriteTime, TTL: s.TTL,
	}}
	switch {
	case j.run.Kind == runs.Stream:
		t.Run = "" // its checkpoints outlast it
	case j.run.Kind == runs.Redrive && s.Mode == driver.Merge:
		t.Target.Mode = driver.Upsert // some rows are not the whole
	case j.run.Kind == runs.Redrive && s.Mode == driver.Overwrite:
		t.Target.Mode = driver.Append
	}
	return &tableTarget{t, j}
}

func (t *tableTarget) prepare(ctx context.Context, s *record.Schema) error {
	target, err := t.Of("", s)
	if err != nil {
		return err
	}
	plan, err := t.Writer.PrepareTable(ctx, target)
	if err != nil {
		return t.fault(err)
	}
	if len(plan.Problems) > 0 {
		p := plan.Problems[0]
		return athena.Errorf(athena.CodeConflict, "%s", p.Message).With("problem", p.Code).With("column", p.Column)
	}
	return nil
}

func (t *tableTarget) fault(err error) error {
	if b, ok := t.Writer.(driver.Backend); ok {
		return dispatch.Normalize(b, err)
	}
	return err
}

func (t *tableTarget) begin(part string) stage.Writer { return t.Begin(part) }

func (t *tableTarget) done(ctx context.Context, part string) (c runs.Counts, ok bool, err error) {
	cp, ok, err := t.Begin(part).Done(ctx)
	if ok && err == nil {
		err = json.Unmarshal(cp.Note, &c)
	}
	return c, ok, err
}

func (t *tableTarget) reached(ctx context.Context, part string) (driver.Checkpoint, bool, error) {
	return t.Begin(part).Done(ctx)
}

func (t *tableTarget) publish(context.Context, []stage.Object) error { return nil }

func (t *tableTarget) list(context.Context, string, []stage.Object, *record.Schema) error { return nil }

func (t *tableTarget) sweep(context.Context, []stage.Object) error { return nil }

// finished is the part under which it is kept that a batch has taken effect.
const finished = "finish"

func (t *tableTarget) finish(ctx context.Context, _ []stage.Object, s *record.Schema, short bool) (int64, error) {
	if !t.Target.Mode.Staged() {
		return 0, nil
	}
	target, err := t.Of("", s)
	if err != nil {
		return 0, err
	}
	target.KeepMissing = short // what was there of a row that could not go on stays
	changed, err := t.Writer.FinishTable(ctx, target, driver.Checkpoint{
		CheckpointKey: driver.CheckpointKey{Pipeline: t.Pipeline, Run: t.Run, Part: finished}, Position: cdc.Position(finished),
	})
	if err == nil {
		err = t.Writer.ForgetTable(ctx, target)
	}
	return changed, t.fault(err)
}

func (t *tableTarget) undo(ctx context.Context, _ []stage.Object) error {
	if !t.Target.Mode.Staged() {
		return nil
	}
	return t.fault(t.Writer.ForgetTable(ctx, t.Target))
}

func (t *tableTarget) clear(ctx context.Context) error {
	if t.Run == "" { // those of a stream outlast it
		return nil
	}
	if err := t.undo(ctx, nil); err != nil {
		return err
	}
	return t.fault(t.Writer.ForgetCheckpoints(ctx, t.Pipeline, t.Run))
}

func (t *tableTarget) forget(ctx context.Context) error {
	return t.fault(t.Writer.ForgetCheckpoints(ctx, t.Pipeline, ""))
}

// copyForm is the form in which the target takes rows as they are.
func (t *tableTarget) copyForm(ctx context.Context, s *record.Schema) (string, error) {
	target, err := t.Of("", s)
	if err != nil {
		return "", err
	}
	plan, err := t.Writer.PlanTable(ctx, target)
	return plan.CopyForm, t.fault(err)
}

// published are the objects of all tasks, in the tasks' order.
func published(tasks []runs.Task) (all []stage.Object) {
	slices.SortFunc(tasks, func(a, b runs.Task) int { return a.N - b.N })
	for _, t := range tasks {
		all = append(all, t.Objects...)
	}
	return all
}
