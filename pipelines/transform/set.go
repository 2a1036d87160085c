package transform

import (
	"errors"
	"maps"
	"slices"

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

func (c *compiler) set(texts map[string]string) (step, *record.Schema, error) {
	s := &set{schema: &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: c.schema.Key}}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		e, err := c.compile(texts[name])
		if err != nil {
			return nil, nil, athena.AsError(err).At(name)
		}
		column, err := e.result(c.schema, c.Changes)
		if err != nil {
			return nil, nil, athena.AsError(err).At(name)
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
	return s, s.schema, nil
}

func (s *set) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	columns := make([]record.Vector, len(s.schema.Columns))
	copy(columns, p.Batch.Columns)
	keep := all(p.Batch.Rows())
	s.row.batch = p.Batch
	for n, e := range s.exprs {
		at := s.at[n]
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
