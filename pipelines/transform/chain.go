package transform

import (
	"fmt"

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
	whole   bool
	flushed bool
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

// Reject is told of a row that cannot go on: which step failed, from 0, and the
// row's place in the batch that came in; -1 where there is none, since it was
// made of several. The cause is a *RowError.
type Reject func(step, row int, cause error)

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
	chain := &Chain{in: in}
	for i := range steps {
		c.provider.schema = c.schema
		s, out, err := c.step(&steps[i])
		if err != nil {
			return nil, inStep(i, steps[i].Kind(), err)
		}
		chain.steps = append(chain.steps, s)
		chain.whole = chain.whole || steps[i].Aggregate != nil || steps[i].Dedupe != nil && !env.Changes
		c.schema = out
	}
	chain.out = c.schema
	return chain, nil
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
func (c *Chain) Whole() bool { return c.whole }

// Apply runs the steps on a batch of the schema that the chain was compiled for.
// What it returns may share memory with b. Its own errors end the task.
func (c *Chain) Apply(b *record.Batch, reject Reject) ([]Part, error) {
	if !b.Schema.Equal(c.in) {
		return nil, fmt.Errorf("transform: the batch has the columns %v, and the chain was made for %v", b.Schema.Names(), c.in.Names())
	}
	return c.from(0, []Part{{Batch: b}}, reject)
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
	at := fmt.Sprintf("transforms[%d]", i)
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
