package runner

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// objectTarget writes to objects.
type objectTarget struct {
	*sink.Objects
	owner string // what the names of its objects begin with
}

func newObjectTarget(j *job, store sink.ObjectStore) (*objectTarget, error) {
	owner := j.run.ID
	if j.run.Kind == runs.Stream {
		owner = j.checkpoints() // its commits outlast the run
	}
	o, err := sink.NewObjects(store, *j.spec.Sink.Objects, j.spec.Name, owner, j.spec.Source.CDC != nil)
	return &objectTarget{o, owner}, err
}

func (t *objectTarget) prepare(_ context.Context, s *record.Schema) error { return t.Check(s) }

func (t *objectTarget) begin(part string) stage.Writer { return t.Begin(t.owner + "-" + part) }

func (t *objectTarget) done(context.Context, string) (runs.Counts, bool, error) {
	return runs.Counts{}, false, nil
}

func (t *objectTarget) reached(context.Context, string) (driver.Checkpoint, bool, error) {
	return driver.Checkpoint{}, false, nil
}

func (t *objectTarget) publish(ctx context.Context, objects []stage.Object) error {
	return t.Publish(ctx, objects)
}

// list writes the manifest of a commit of a stream; that of a batch is written
// when all of its tasks are done.
func (t *objectTarget) list(ctx context.Context, part string, objects []stage.Object, s *record.Schema) error {
	if !t.Changes || len(objects) == 0 {
		return nil
	}
	_, err := t.Manifest(ctx, part, objects, s)
	return err
}

func (t *objectTarget) finish(ctx context.Context, objects []stage.Object, s *record.Schema, _ bool) (int64, error) {
	if err := t.sweep(ctx, nil); err != nil {
		return 0, err
	}
	_, err := t.Manifest(ctx, finished, objects, s)
	return 0, err
}

func (t *objectTarget) undo(ctx context.Context, objects []stage.Object) error {
	if err := t.Discard(ctx, objects); err != nil {
		return err
	}
	keys := make([]string, len(objects))
	for i, o := range objects {
		keys[i] = o.Key
	}
	if len(keys) > 0 {
		if err := t.Store.DeleteObjects(ctx, keys...); err != nil {
			return err
		}
	}
	return t.sweep(ctx, nil)
}

func (t *objectTarget) clear(context.Context) error { return nil }

func (t *objectTarget) forget(context.Context) error { return nil }

// sweep lets go of uploads that attempts which were killed have left behind, but
// for those that were decided on. It is called when no attempt is under way.
func (t *objectTarget) sweep(ctx context.Context, decided []stage.Object) error {
	keep := map[string]bool{}
	for _, o := range decided {
		keep[o.ID] = true
	}
	staged, err := t.Store.StagedObjects(ctx, spec.StaticPrefix(t.What.Prefix), time.Now().Add(time.Hour))
	if err != nil {
		return err
	}
	for _, s := range staged {
		if keep[s.ID] || !strings.HasPrefix(path.Base(s.Key), t.owner+"-") {
			continue
		}
		if err := t.Store.DiscardObject(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
