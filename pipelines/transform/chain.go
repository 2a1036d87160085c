package transform

import (
	"fmt"
	"slices"

	"cel.dev/cel-go/cel"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Env is what a chain must know beside its steps.
type Env struct {
	// Pipeline is the name that masks are keyed with.
	Pipeline string
	// Changes says that rows come from a stream of changes, and ByKey that the
	// sink keeps such rows by key; see law 4.
	Changes, ByKey bool
	// Tables says that routes are names of tables: rows for one table are one part,
	// however it is called, and a name of none is a row that cannot go on.
	Tables bool
}

// A Chain runs steps on batches of one schema. It may hold state, and is used by
// one goroutine for one task of a batch, or for the whole of a stream.
type Chain struct {
	in, out *record.Schema
	steps   []step
	atOnce  bool // all rows must be seen
	flushed bool
	// wanted has the columns of in that the steps look at, or that come out.
	wanted map[string]bool
}

// A Part is rows that go to one place.
type Part struct {
	// Route is what the route step gave; empty without one.
	Route string
	Batch *record.Batch

	// origin has for each row its place in the batch that came in; nil if that is
	// the same.
	origin []int
}

// A RowError says why a row cannot go on.
type RowError struct {
	Column string // where it is about one
	Reason string
}

func (e *RowError) Error() string { return e.Reason }

// Reject is told of a row that cannot go on: which step failed, from 0, or -1 where
// the row lacks a value that is wanted behind them (law 6), and the row's place in the batch that came in; -1 where there is none, since it was
// made of several. The cause is a *RowError.
type Reject func(step, row int, cause error)

// StageName is the stage that a step is, as it is told of a row that failed there.
func StageName(step int) string {
	if step < 0 {
		return "source"
	}
	return fmt.Sprintf("transforms[%d]", step)
}

// A step does one thing to a batch. It may return the same batch, or one that
// shares memory with it.
type step interface {
	// apply returns what becomes of the rows. Those that fail are told to reject,
	// by their place in p.
	apply(p Part, reject func(row int, cause *RowError)) ([]Part, error)
}

// A flusher keeps rows back until all have come.
type flusher interface {
	// flush hands over what was kept.
	flush(emit func(*record.Batch) error) error
}

// A compiler holds what steps are compiled against.
type compiler struct {
	env      *cel.Env
	provider *provider
	schema   *record.Schema // as the step finds it
	Env
}

// Compile checks steps against the schema of the rows that will come in, and
// readies them. Errors are invalid_request and name the step and what in it:
// transforms[1].set.total.
func Compile(steps []spec.Transform, in *record.Schema, env Env) (*Chain, error) {
	c := &compiler{schema: in, Env: env, provider: &provider{changes: env.Changes}}
	chain := &Chain{in: in, wanted: map[string]bool{}}
	source := in.Names() // of each column the one of in that it is; empty where it is none
	for i := range steps {
		c.provider.schema = c.schema
		s, out, err := c.step(&steps[i])
		if err != nil {
			return nil, inStep(i, steps[i].Kind(), err)
		}
		source = chain.follow(s, source)
		chain.steps = append(chain.steps, s)
		chain.atOnce = chain.atOnce || steps[i].Aggregate != nil || steps[i].Dedupe != nil && !env.Changes
		c.schema = out
	}
	chain.out = c.schema
	for _, name := range source {
		chain.wanted[name] = true
	}
	return chain, nil
}

// follow notes what a step wants of the columns that come in, and says where those
// that it gives come from.
func (c *Chain) follow(s step, source []string) []string {
	want := func(columns ...int) {
		for _, i := range columns {
			c.wanted[source[i]] = true
		}
	}
	switch s := s.(type) {
	case *filter:
		want(s.refs...)
	case *route:
		want(s.refs...)
	case *dedupe:
		want(s.columns...)
	case *flatten:
		want(s.column)
		source = append(slices.Clone(source), make([]string, len(s.fields.Columns))...)
	case *set:
		out := append(slices.Clone(source), make([]string, len(s.schema.Columns)-len(source))...)
		for n, e := range s.exprs {
			if out[s.at[n]] = ""; e.column >= 0 {
				out[s.at[n]] = source[e.column]
			} else {
				want(e.refs...)
			}
		}
		return out
	case *pick:
		if s.from == nil {
			return source
		}
		out := make([]string, len(s.from))
		for i, from := range s.from {
			out[i] = source[from]
		}
		return out
	case *aggregate: // not behind changes, whose values alone may not be known
		return make([]string, len(s.schema.Columns))
	}
	return source
}

// inStep says in which step, and where in it, something is wrong.
func inStep(i int, kind string, err error) error {
	e := *athena.AsError(err)
	at := fmt.Sprintf("transforms[%d].%s", i, kind)
	if inner, ok := e.Details["field"].(string); ok {
		at += "." + inner
	}
	e.Message = at + ": " + e.Message
	return e.At(at)
}

func (c *compiler) step(t *spec.Transform) (step, *record.Schema, error) {
	switch t.Kind() {
	case "filter":
		return c.filter(t.Filter)
	case "set":
		return c.set(t.Set)
	case "rename":
		return c.rename(t.Rename)
	case "select":
		return c.choose(t.Select)
	case "drop":
		return c.drop(t.Drop)
	case "cast":
		return c.cast(t.Cast)
	case "mask":
		return c.mask(t.Mask)
	case "flatten":
		return c.flatten(t.Flatten)
	case "route":
		return c.route(t.Route)
	case "dedupe":
		return c.dedupe(t.Dedupe)
	case "aggregate":
		return c.aggregate(t.Aggregate)
	}
	return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "the step does nothing")
}

// Schema is that of the rows that come out. Its key has the columns that tell rows
// apart as far as the steps leave them.
func (c *Chain) Schema() *record.Schema { return c.out }

// Whole reports whether the chain must see all rows of a run: then the run is one
// task.
func (c *Chain) Whole() bool { return c.atOnce }

// Apply runs the steps on a batch of the schema that the chain was compiled for.
// What it returns may share memory with b. Its own errors end the task.
func (c *Chain) Apply(b *record.Batch, reject Reject) ([]Part, error) {
	if !b.Schema.Equal(c.in) {
		return nil, fmt.Errorf("transform: the batch has the columns %v, and the chain was made for %v", b.Schema.Names(), c.in.Names())
	}
	return c.from(0, c.whole(b, reject), reject)
}

// whole rejects the rows of which a wanted value is known in parts alone (law 6).
func (c *Chain) whole(b *record.Batch, reject Reject) []Part {
	var keep []bool
	for i := range b.Changes {
		for _, name := range b.Changes[i].Parts {
			if !c.wanted[name] {
				continue
			}
			if keep == nil {
				keep = all(b.Rows())
			}
			keep[i] = false
			reject(-1, i, &RowError{Column: name, Reason: fmt.Sprintf("the source says what was done to a part of column %q, and not what its value is now; have it log whole rows ('postimage': true), or leave the column out (transform drop)", name)})
			break
		}
	}
	if keep == nil {
		return []Part{{Batch: b}}
	}
	return Part{Batch: b}.keep(keep)
}

// Flush hands over what steps have kept until all rows had come. Nothing is
// applied after it.
func (c *Chain) Flush(reject Reject) ([]Part, error) {
	if c.flushed {
		return nil, nil
	}
	c.flushed = true
	var out []Part
	for i, s := range c.steps {
		f, ok := s.(flusher)
		if !ok {
			continue
		}
		err := f.flush(func(b *record.Batch) error {
			parts, err := c.from(i+1, []Part{{Batch: b, origin: nowhere(b.Rows())}}, reject)
			out = append(out, parts...)
			return err
		})
		if err != nil {
			return nil, stepError(i, err)
		}
	}
	return out, nil
}

func stepError(i int, err error) error {
	e := *athena.AsError(err)
	at := StageName(i)
	e.Message = at + ": " + e.Message
	return e.At(at)
}

// nowhere is the origin of rows that were made of several.
func nowhere(n int) []int {
	origin := make([]int, n)
	for i := range origin {
		origin[i] = -1
	}
	return origin
}

func (c *Chain) from(first int, parts []Part, reject Reject) ([]Part, error) {
	for i := first; i < len(c.steps) && len(parts) > 0; i++ {
		var next []Part
		for _, p := range parts {
			out, err := c.steps[i].apply(p, func(row int, cause *RowError) { reject(i, p.at(row), cause) })
			if err != nil {
				return nil, stepError(i, err)
			}
			for _, o := range out {
				if o.Batch.Rows() > 0 {
					next = append(next, o)
				}
			}
		}
		parts = next
	}
	return parts, nil
}

// at is the place of a row in the batch that came in.
func (p Part) at(row int) int {
	if p.origin == nil {
		return row
	}
	return p.origin[row]
}

// with is the part with a batch of the same rows.
func (p Part) with(b *record.Batch) []Part {
	p.Batch = b
	return []Part{p}
}

// keep is the part with some of its rows.
func (p Part) keep(keep []bool) []Part {
	b := p.Batch.Keep(keep)
	if b == p.Batch {
		return []Part{p}
	}
	origin := make([]int, 0, b.Rows())
	for i, k := range keep {
		if k {
			origin = append(origin, p.at(i))
		}
	}
	return []Part{{p.Route, b, origin}}
}

// batch puts columns together to a batch of the rows of p.
func (p Part) batch(s *record.Schema, columns []record.Vector) *record.Batch {
	b := &record.Batch{Schema: s, Columns: columns, Changes: p.Batch.Changes, From: p.Batch.From}
	b.SetRows(p.Batch.Rows())
	return b
}

// all marks every row.
func all(n int) []bool {
	keep := make([]bool, n)
	for i := range keep {
		keep[i] = true
	}
	return keep
}

// vector returns an empty column for so many values.
func vector(t record.Type, rows int) record.Vector {
	return record.New(&record.Schema{Columns: []record.Column{{Type: t}}}, rows).Columns[0]
}

// find gives the place of a column, or an error that names the nearest.
func (c *compiler) find(field, name string) (int, error) {
	i := c.schema.Index(name)
	if i < 0 {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "%s", missing(c.schema, name)).At(field)
	}
	return i, nil
}
