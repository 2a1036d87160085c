package sink

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// What the writers of one task or commit hold at most: objects that are open, and
// bytes in memory. Beyond it the object that was written to the longest time ago is
// ended, and its next rows begin another.
const (
	mostOpen   = 256
	mostMemory = 96 << 20
	mostParts  = 24 << 20 // of an object that is being sent
)

// An ObjectStore is what an object sink needs of a client.
type ObjectStore interface {
	driver.ObjectWriter
	driver.ObjectStager
}

// Objects writes to the objects of one client. One is made for a run; Begin makes
// a writer for each task or commit.
//
// What a task or commit writes is staged, and seen by nobody until it is decided.
// Keys are made of the prefix, the route, the name of the task or commit and a
// number, so that what is written again has the names that it had. Behind
// everything else a manifest says which objects belong together.
type Objects struct {
	Store ObjectStore
	What  spec.ObjectSink // with its defaults
	// Pipeline and Run are what manifests tell.
	Pipeline, Run string
	// Changes says that rows come from a stream of changes: they become a log, with
	// driver.ChangeColumns before the columns of the row.
	Changes bool

	prefix []spec.PrefixPart
}

// NewObjects returns a sink for a valid definition. Its prefix is one of folders,
// also where it does not end in a slash: by the names in them upkeep tells our
// uploads from those of others.
func NewObjects(store ObjectStore, what spec.ObjectSink, pipeline, run string, changes bool) (*Objects, error) {
	if what.Prefix != "" && !strings.HasSuffix(what.Prefix, "/") {
		what.Prefix += "/"
	}
	prefix, err := spec.ParsePrefix(what.Prefix)
	if err != nil {
		return nil, err
	}
	if what.Format == "" {
		what.Format = format.Parquet
	}
	if err := format.Check(what.Format, what.Compression); err != nil {
		return nil, err
	}
	if what.Roll.Rows <= 0 {
		what.Roll.Rows = 1_000_000
	}
	if what.Roll.Bytes <= 0 {
		what.Roll.Bytes = 128 << 20
	}
	return &Objects{Store: store, What: what, Pipeline: pipeline, Run: run, Changes: changes, prefix: prefix}, nil
}

// Check says what stands in the way of writing rows of a schema: columns of the
// prefix that it lacks, names that are those of the log, columns that the format
// does not take.
func (o *Objects) Check(s *record.Schema) error {
	for _, p := range o.prefix {
		if p.Column != "" && s.Index(p.Column) < 0 {
			return athena.Errorf(athena.CodeInvalidRequest, "sink.objects.prefix names the column %.60q, which the rows do not have; they have %.1000q", p.Column, s.Names()).At("sink.objects.prefix")
		}
	}
	out, err := o.schema(s)
	if err != nil {
		return err
	}
	w, err := format.New(o.What.Format, o.What.Compression, discard{}, out, nil)
	if err != nil {
		return err
	}
	return w.Close()
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// schema is that of the objects for rows of a schema. In a log no column but the
// first ones has a value always: of a delete the key alone is known.
func (o *Objects) schema(s *record.Schema) (*record.Schema, error) {
	if !o.Changes {
		return s, nil
	}
	out := &record.Schema{Columns: slices.Clone(driver.ChangeColumns)}
	for _, c := range s.Columns {
		if out.Index(c.Name) >= 0 {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "the column %q has the name of a column of the log; rename it by a transform", c.Name)
		}
		c.Nullable = true
		out.Columns = append(out.Columns, c)
	}
	return out, nil
}

// fault gives an error of the engine its code, where it comes from.
func (o *Objects) fault(err error) error {
	b, ok := o.Store.(driver.Backend)
	if !ok || err == nil {
		return err
	}
	return dispatch.Normalize(b, err)
}

// Publish makes staged objects appear. After a crash it is called again, by
// anybody, with what was decided.
func (o *Objects) Publish(ctx context.Context, objects []stage.Object) error {
	return o.each(ctx, objects, func(ctx context.Context, s stage.Object) error {
		_, err := o.Store.PublishObject(ctx, s.StagedObject)
		return err
	})
}

// Discard lets go of staged objects that were not published.
func (o *Objects) Discard(ctx context.Context, objects []stage.Object) error {
	return o.each(ctx, objects, func(ctx context.Context, s stage.Object) error {
		return o.Store.DiscardObject(ctx, s.StagedObject)
	})
}

func (o *Objects) each(ctx context.Context, objects []stage.Object, fn func(context.Context, stage.Object) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, s := range objects {
		group.Go(func() error { return o.fault(fn(ctx, s)) })
	}
	return group.Wait()
}
