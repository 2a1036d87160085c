package plan

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// connect asks the backends. Its own error is the caller's context's.
func (j *judgement) connect(ctx context.Context) error {
	if j.source.Verdict != Refused {
		err := j.lookAtSource(ctx)
		if interrupted(ctx, err) {
			return err
		}
		j.source.refuse(err)
	}
	if j.schema != nil && j.source.Verdict != Refused && j.chain == nil {
		j.compile()
	}
	if j.sink.Verdict != Refused {
		err := j.lookAtSink(ctx)
		if interrupted(ctx, err) {
			return err
		}
		j.sink.refuse(err)
	}
	return nil
}

// lookAtSource describes what is read.
func (j *judgement) lookAtSource(ctx context.Context) error {
	if j.p.Streams() {
		return j.lookAtChanges(ctx)
	}
	return j.withSource(ctx, func(ctx context.Context, s stage.Source) error {
		schema, err := s.Describe(ctx)
		if err != nil {
			return err
		}
		if err := j.conditions(schema.Names()); err != nil {
			return err
		}
		j.schema = schema
		j.compile() // whether it is one task is known by the transforms
		what := fmt.Sprintf("%d columns", len(schema.Columns))
		if t, ok := s.(*source.Table); ok {
			what = strings.Join(append([]string{what}, t.Notes()...), "; ")
		}
		j.source.ok("%s", what)
		return j.divide(ctx, s)
	})
}

// conditions refuses those on columns that there are not. Columns of the table
// that are not read can be asked for too, so all of them are looked at.
func (j *judgement) conditions(known []string) error {
	if len(j.p.Source.Columns) > 0 {
		return nil // the reader says so itself
	}
	for i, c := range j.p.Source.Where {
		if !slices.Contains(known, c.Column) {
			meant := ""
			if near := spec.Nearest(c.Column, known); near != "" {
				meant = fmt.Sprintf("; did you mean %q?", near)
			}
			return athena.Errorf(athena.CodeInvalidRequest, "the source has no column %q%s", c.Column, meant).At(fmt.Sprintf("source.where[%d].column", i))
		}
	}
	return nil
}

// divide says how the work is divided.
func (j *judgement) divide(ctx context.Context, s stage.Source) error {
	whole := j.chain != nil && j.chain.Whole()
	parts, err := s.Split(ctx, whole)
	if err != nil {
		return err
	}
	j.Tasks.Count, j.Tasks.Rows, j.Tasks.Bytes = len(parts), 0, 0
	for _, p := range parts {
		j.Tasks.Rows, j.Tasks.Bytes = sum(j.Tasks.Rows, p.Rows), sum(j.Tasks.Bytes, p.Bytes)
	}
	switch {
	case whole:
		j.Tasks.Reason = "a step looks at all rows"
	case len(parts) != 1:
	case j.p.Source.Limit > 0:
		j.Tasks.Reason = "a limit is read at once"
	case j.schema != nil && len(j.schema.Key) == 0:
		j.Tasks.Reason = "the source has no key that it could be divided by"
	}
	return nil
}

// sum adds estimates up; -1 is not known.
func sum(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// withSource runs fn with the source of a batch, on the road to its client.
func (j *judgement) withSource(ctx context.Context, fn func(context.Context, stage.Source) error) error {
	s, op := j.p.Source, stage.SourceOp(j.p.Source)
	var err error
	switch s.Kind() {
	case stage.KindTable:
		name, perr := driver.ParseTableName(s.Table)
		if perr != nil {
			return perr
		}
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.TableReader) (struct{}, error) {
			return struct{}{}, fn(ctx, &source.Table{Reader: r, Size: j.size(), What: driver.TableRead{Table: name, Columns: s.Columns, Where: s.Where, Limit: s.Limit}})
		})
	case stage.KindQuery:
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.TableReader) (struct{}, error) {
			return struct{}{}, fn(ctx, &source.Query{Reader: r, Size: j.size(), Statement: driver.Statement{Text: s.Query, Params: s.Params, ReadOnly: true}})
		})
	case stage.KindObjects:
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.ObjectReader) (struct{}, error) {
			return struct{}{}, fn(ctx, &source.Objects{Reader: r, What: *s.Objects, Size: j.size()})
		})
	default: // the result is on the bus; its client's backend is not asked
		client, cerr := j.Dispatcher.Check(ctx, op, s.Client)
		if cerr != nil {
			return cerr
		}
		job, _, jerr := j.Jobs.Load(ctx, s.Client, s.Deferred)
		if jerr == nil {
			jerr = deferred.MayRead(principal(ctx), job)
		}
		if jerr != nil {
			return athena.AsError(jerr).At("source.deferred")
		}
		err = fn(ctx, &source.Deferred{Store: j.Jobs, Client: s.Client, Job: s.Deferred, Types: j.types(client.Engine()), Size: j.size()})
	}
	return err
}

// lookAtChanges describes the tables that are followed, and the place in the log
// that the capture has.
func (j *judgement) lookAtChanges(ctx context.Context) error {
	client := j.p.Source.Client
	extent, err := j.Captures.Extent(ctx, client)
	if err != nil {
		return err
	}
	if extent == nil {
		j.source.unknown("the capture of client %q has not begun yet; it waits for a worker", client)
		return nil
	}
	versions, err := j.Captures.TableVersions(ctx, client)
	if err != nil {
		return err
	}
	for i, text := range j.p.Source.CDC.Tables {
		name, err := driver.ParseTableName(text)
		if err != nil {
			return err
		}
		v, known := versions[name]
		if !known {
			j.source.unknown("table %s is captured, and nothing of it has been stored yet, so that its columns are not known", name)
			continue
		}
		schema := source.Schema(v.Columns, j.types(j.source.Engine))
		if i == 0 {
			j.schema = schema
			continue
		}
		// The steps are compiled for each table that comes; all must take them.
		other := &judgement{Planner: j.Planner, Plan: &Plan{}, p: j.p, steps: j.steps, sink: j.sink, schema: schema}
		other.compile()
	}
	capture, _ := j.Captures.Capture(client)
	health, err := dispatch.Do(ctx, j.Dispatcher, stage.SourceOp(j.p.Source), client, func(ctx context.Context, _ dispatch.Call, s driver.ChangeSource) (driver.ChangeHealth, error) {
		return s.ChangeHealth(ctx, capture.Setup())
	})
	switch {
	case athena.CodeOf(err) == athena.CodeNotFound:
		j.source.unknown("the capture of client %q has no place in the log yet; it is being made, or waits for a worker", client)
		return nil
	case err != nil:
		return err
	case health.Invalidated != "" || health.WALStatus == "lost":
		return athena.Errorf(athena.CodeConflict, "slot %s is lost (%s), and changes with it; see the runbook of captures", health.Slot, health.Invalidated).At("source.cdc")
	}
	for i, text := range j.p.Source.CDC.Tables {
		if name, err := driver.ParseTableName(text); err == nil && slices.Contains(health.Unpublished, name) {
			return athena.Errorf(athena.CodeConflict, "table %s is captured, and nothing publishes it any more; it was dropped, renamed or taken out", name).At(fmt.Sprintf("source.cdc.tables[%d]", i))
		}
	}
	j.Tasks = Tasks{Count: 1, Parallel: 1, Rows: -1, Bytes: -1, Reason: "changes are followed in their order"}
	if j.schema != nil && j.source.Verdict != Refused && j.source.Detail == checked {
		switch {
		case health.WALStatus != "":
			j.source.ok("slot %s is %s, %d bytes of log behind", health.Slot, health.WALStatus, health.Lag)
		case !health.Expires.IsZero():
			j.source.ok("the log is read, and keeps what is not until %s", health.Expires.UTC().Format(time.RFC3339))
		default:
			j.source.ok("the log is read")
		}
	}
	return nil
}

// lookAtSink asks whether what comes out can be written.
func (j *judgement) lookAtSink(ctx context.Context) error {
	if j.p.Sink.Objects != nil {
		return j.lookAtBucket(ctx)
	}
	if j.chain == nil {
		j.sink.unknown("what would be written is not known")
		return nil
	}
	if j.p.Routes() {
		j.sink.unknown("rows are routed; to which tables, the rows tell")
		return nil
	}
	name, err := driver.ParseTableName(j.p.Sink.Table)
	if err != nil {
		return err
	}
	return j.lookAtTable(ctx, name)
}

// target is what a run would write to.
func (j *judgement) target(name driver.TableName) driver.TableTarget {
	s := j.p.Sink
	return driver.TableTarget{
		Table: name, Mode: s.Mode, Key: j.Write.Key, Create: s.Create, Schema: j.chain.Schema(), Changes: j.p.Streams(), Run: "plan",
		AddColumns: j.p.Schema.Columns == spec.Evolve, WidenTypes: j.p.Schema.Types == spec.Evolve,
		WriteTime: s.WriteTime, TTL: s.TTL,
	}
}

// lookAtTable holds the target against the database, which is not changed.
func (j *judgement) lookAtTable(ctx context.Context, name driver.TableName) error {
	plan, err := dispatch.Do(ctx, j.Dispatcher, stage.SinkOp(j.p.Sink), j.p.Sink.Client, func(ctx context.Context, _ dispatch.Call, w driver.TableWriter) (driver.TablePlan, error) {
		return w.PlanTable(ctx, j.target(name))
	})
	if err != nil {
		if field, ok := athena.AsError(err).Details["field"].(string); ok {
			err = athena.AsError(err).At("sink." + field)
		}
		return err
	}
	w := &j.Write
	w.Creates, w.Alters, w.Mapping, w.Problems = plan.Creates, plan.Alters, plan.Columns, plan.Problems
	w.Notes = append(w.Notes, plan.Notes...)
	if len(plan.Problems) > 0 {
		lines := make([]string, len(plan.Problems))
		for i, p := range plan.Problems {
			lines[i] = p.Message
		}
		first := plan.Problems[0]
		return athena.Errorf(athena.CodeConflict, "%s", strings.Join(lines, "; ")).At("sink").With("problem", first.Code).With("column", first.Column)
	}
	switch {
	case plan.Creates != "":
		j.sink.ok("table %s will be created", name)
	case len(plan.Alters) > 0:
		j.sink.ok("table %s will be changed first: %s", name, strings.Join(plan.Alters, "; "))
	default:
		j.sink.ok("table %s takes the rows", name)
	}
	return nil
}

// stager is what an object sink needs of a client.
type stager interface {
	driver.ObjectWriter
	driver.ObjectStager
}

// lookAtBucket writes where the objects will go, and lets go of it: what is staged
// is nowhere to be seen, and nothing of it is left.
func (j *judgement) lookAtBucket(ctx context.Context) error {
	prefix := writes(j.p).prefix
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		prefix = prefix[:i+1]
	} else {
		prefix = ""
	}
	_, err := dispatch.Do(ctx, j.Dispatcher, stage.SinkOp(j.p.Sink), j.p.Sink.Client, func(ctx context.Context, _ dispatch.Call, s stager) (struct{}, error) {
		object, err := s.StageObject(ctx, prefix+"athena-plan-"+strings.ToLower(rand.Text()), driver.ObjectWrite{})
		if err != nil {
			return struct{}{}, err
		}
		_, err = object.Write([]byte{'\n'})
		if err == nil {
			_, err = object.Stage(ctx)
		}
		return struct{}{}, errors.Join(err, object.Discard(context.WithoutCancel(ctx)))
	})
	if err != nil {
		return athena.AsError(err).At("sink.client")
	}
	if j.chain == nil && len(j.steps) > 0 {
		j.sink.unknown("the bucket can be written to; what would be written is not known")
		return nil
	}
	j.sink.ok("the bucket can be written to")
	return nil
}
