package transform

import (
	"errors"
	"slices"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A set computes columns. All of its expressions see the row as it came.
type set struct {
	schema *record.Schema
	exprs  []*expr
	at     []int // the place of each in the schema
	row    row
}

func (c *compiler) set(texts spec.Ordered[string]) (step, *record.Schema, error) {
	s := &set{schema: &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: c.schema.Key}}
	var wrong error
	for _, m := range texts {
		name := m.Name
		e, column, err := c.computed(m.Value)
		if err != nil {
			wrong = also(wrong, name, err)
			continue
		}
		column.Name = name
		i := s.schema.Index(name)
		switch {
		case i < 0:
			i = len(s.schema.Columns)
			s.schema.Columns = append(s.schema.Columns, column)
		default:
			s.schema.Columns[i] = column
		}
		// A key that is computed anew tells rows apart only as far as the key that it
		// is computed of did, and of deletes nothing else is known.
		if slices.Contains(c.schema.Key, name) && e.column != i {
			s.schema.Key = nil
		}
		s.exprs, s.at = append(s.exprs, e), append(s.at, i)
	}
	if wrong != nil {
		return nil, nil, wrong
	}
	return s, s.schema, nil
}

// computed compiles an expression, and says what column it makes.
func (c *compiler) computed(text string) (*expr, record.Column, error) {
	e, err := c.compile(text)
	if err != nil {
		return nil, record.Column{}, err
	}
	column, err := e.result(c.schema, c.Changes)
	return e, column, err
}

// also puts what is wrong with a member of a step behind what is wrong with others:
// it is one error, at the first of them.
func also(wrong error, name string, err error) error {
	if wrong == nil {
		return athena.AsError(err).At(name)
	}
	e := *athena.AsError(wrong)
	e.Message += "; " + name + ": " + athena.AsError(err).Message
	return &e
}

func (s *set) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	columns := make([]record.Vector, len(s.schema.Columns))
	copy(columns, p.Batch.Columns)
	keep := all(p.Batch.Rows())
	s.row.batch = p.Batch
	for n, e := range s.exprs {
		at := s.at[n]
		if at < len(p.Batch.Columns) && e.column != at {
			keep = p.shared(keep, at, false, reject)
		}
		if e.column >= 0 {
			columns[at] = p.Batch.Columns[e.column]
			continue
		}
		columns[at] = vector(s.schema.Columns[at].Type, len(keep))
		for i := range keep {
			s.row.i = i
			if err := s.value(e, &columns[at]); err != nil {
				columns[at].AppendNull()
				keep[i] = drop(keep[i], i, &RowError{Column: s.schema.Columns[at].Name, Reason: err.Error()}, reject)
			}
		}
	}
	return p.with(p.batch(s.schema, columns))[0].keep(keep), nil
}

// value appends what an expression gives for the row.
func (s *set) value(e *expr, dst *record.Vector) error {
	v, err := e.eval(&s.row)
	switch {
	case errors.Is(err, errAbsent) && (lost(s.row.op()) || e.blank(&s.row)): // law 3
		dst.AppendAbsent()
		return nil
	case err != nil:
		return err
	}
	return appendValue(dst, v)
}
