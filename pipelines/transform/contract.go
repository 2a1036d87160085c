package transform

import (
	"fmt"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// An Agreement says what becomes of rows whose schema is not the one that was
// expected, as a contract has it. It holds no state.
type Agreement struct {
	// In is the schema of the rows that come, Out that of those that go on.
	In, Out *record.Schema
	// Expected is what is expected from now on: what was, with what has evolved.
	Expected *record.Schema
	// News says in a line each what was not as expected.
	News []string

	columns []agreed
	freeze  string // why the run stops
}

// agreed is what is done with a column that comes.
type agreed struct {
	name     string
	out      int // its place in Out; -1 if it is left out
	from, to record.Type
	policy   spec.Policy // of what does not fit; "" where all does
	fresh    bool        // it was not expected
}

// Agree holds the schema of the rows that come against the one that is expected:
// of the sink, or as it was recorded last. A type that the expected one can hold
// is no change, and a column that is gone none either, since the others can do
// without it; but for one of the key.
//
// The error is schema_changed, where the contract or what it asks for says that
// the run must stop.
func Agree(expected, actual *record.Schema, c spec.Contract) (*Agreement, error) {
	if c.Columns == "" {
		c.Columns = spec.Evolve
	}
	if c.Types == "" {
		c.Types = spec.Freeze
	}
	a := &Agreement{
		In: actual, Out: &record.Schema{Key: actual.Key},
		Expected: &record.Schema{Columns: slices.Clone(expected.Columns), Key: expected.Key},
	}
	for _, k := range expected.Key {
		if actual.Index(k) < 0 {
			return nil, athena.Errorf(athena.CodeSchemaChanged, "column %q of the key does not come any more", k).With("column", k)
		}
	}
	for _, column := range actual.Columns {
		step := agreed{name: column.Name, from: column.Type, to: column.Type}
		at := expected.Index(column.Name)
		switch {
		case at < 0:
			a.newColumn(&step, column, c.Columns)
		case !record.Widens(column.Type, expected.Columns[at].Type):
			a.newType(&step, column, at, c.Types)
		default:
			step.to = expected.Columns[at].Type
		}
		if a.freeze != "" {
			return nil, athena.Errorf(athena.CodeSchemaChanged, "%s", a.freeze).With("column", column.Name)
		}
		if step.out >= 0 {
			step.out = len(a.Out.Columns)
			out := column
			if out.Type = step.to; step.to != step.from {
				out.Native = ""
			}
			out.Nullable = out.Nullable || step.policy == spec.DiscardValue
			a.Out.Columns = append(a.Out.Columns, out)
		}
		a.columns = append(a.columns, step)
	}
	a.Out.Key = surviving(a.Out.Key, a.Out)
	return a, nil
}

func (a *Agreement) newColumn(step *agreed, column record.Column, p spec.Policy) {
	what := fmt.Sprintf("column %q (%s) is new", column.Name, column.Type)
	step.fresh, step.policy = true, p
	switch p {
	case spec.Evolve:
		step.policy = ""
		column.Nullable = true // of the rows before it
		a.Expected.Columns = append(a.Expected.Columns, column)
		a.News = append(a.News, what)
	case spec.Freeze:
		a.freeze = what + ", and the contract (schema.columns: freeze) lets none in; leave it out with a drop, or let it evolve"
	default:
		step.out = -1
		a.News = append(a.News, what+"; "+outcomes[p])
	}
}

func (a *Agreement) newType(step *agreed, column record.Column, at int, p spec.Policy) {
	want := a.Expected.Columns[at].Type
	what := fmt.Sprintf("column %q was %s and is %s", column.Name, want, column.Type)
	step.to, step.policy = want, p
	switch {
	case p == spec.Freeze:
		a.freeze = what + ", and the contract (schema.types: freeze) lets no type change; cast it, or let it evolve"
	case p != spec.Evolve && !record.Convertible(column.Type, want):
		a.freeze = what + ", which none of its values can become again; cast it by way of text"
	case p != spec.Evolve:
		a.News = append(a.News, what+"; of values that do not fit, "+outcomes[p])
	case !record.Widens(want, column.Type):
		a.freeze = what + ", which is not wider, so that what is there has no place in it; cast it, or begin a new target"
	default:
		step.to, step.policy = column.Type, ""
		a.Expected.Columns[at].Type, a.Expected.Columns[at].Native = column.Type, column.Native
		a.News = append(a.News, what)
	}
}

var outcomes = map[spec.Policy]string{
	spec.DiscardRow:   "rows that show it are dropped",
	spec.DiscardValue: "the values are dropped",
	spec.Quarantine:   "rows that show it are dead letters",
}

// Plain reports whether rows go on as they come.
func (a *Agreement) Plain() bool {
	return !slices.ContainsFunc(a.columns, func(c agreed) bool { return c.out < 0 || c.from != c.to || c.policy != "" })
}

// Apply makes of a batch of the schema In one of the schema Out. Rows that are
// quarantined are told to reject, by their place in b; how many were dropped by the
// contract is returned.
func (a *Agreement) Apply(b *record.Batch, reject func(row int, cause *RowError)) (out *record.Batch, dropped int) {
	if a.Plain() {
		return b, 0
	}
	keep := all(b.Rows())
	refuse := func(i int, p spec.Policy, cause *RowError) {
		if keep[i] {
			keep[i] = false
			if p == spec.DiscardRow {
				dropped++
			} else {
				reject(i, cause)
			}
		}
	}
	columns := make([]record.Vector, len(a.Out.Columns))
	for c, step := range a.columns {
		src := &b.Columns[c]
		switch {
		case step.out < 0 && step.policy != spec.DiscardValue:
			for i := range keep {
				if !src.Null(i) {
					refuse(i, step.policy, &RowError{step.name, fmt.Sprintf("column %q is not expected", step.name)})
				}
			}
		case step.out < 0:
		case step.from == step.to:
			columns[step.out] = *src
		default:
			columns[step.out] = vector(step.to, len(keep))
			for i := range keep {
				err := record.Convert(&columns[step.out], step.to, src, step.from, i)
				if err == nil {
					continue
				}
				if columns[step.out].AppendNull(); step.policy != spec.DiscardValue {
					refuse(i, step.policy, rowError(step.name, err))
				}
			}
		}
	}
	return Part{Batch: b}.batch(a.Out, columns).Keep(keep), dropped
}

// String lists what was not as expected.
func (a *Agreement) String() string { return strings.Join(a.News, "; ") }
