package transform

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A pick makes batches of some columns of others, under other names.
type pick struct {
	schema *record.Schema
	from   []int             // nil is all of them
	names  map[string]string // new ones by old ones
}

func (s *pick) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	columns := p.Batch.Columns
	keep := all(p.Batch.Rows())
	if s.from != nil {
		columns = make([]record.Vector, len(s.from))
		for i, c := range s.from {
			columns[i] = p.Batch.Columns[c]
		}
		for c := range p.Batch.Columns {
			if !slices.Contains(s.from, c) {
				keep = p.shared(keep, c, false, reject)
			}
		}
	}
	out := p.batch(s.schema, columns)
	if s.names != nil {
		out.Changes = renamed(out.Changes, s.names)
	}
	return p.with(out)[0].keep(keep), nil
}

// renamed are changes with other names of columns in them; the same where none has
// any.
func renamed(changes []record.Change, names map[string]string) []record.Change {
	var out []record.Change
	for i := range changes {
		if len(changes[i].Where) == 0 {
			continue
		}
		if out == nil {
			out = slices.Clone(changes)
		}
		out[i].Where = slices.Clone(out[i].Where)
		for n := range out[i].Where {
			if name, ok := names[out[i].Where[n].Column]; ok {
				out[i].Where[n].Column = name
			}
		}
	}
	if out == nil {
		return changes
	}
	return out
}

// shared rejects the changes that delete many rows and name them by a column which is
// about to go, or to become another one (law 5). Where equal values stay equal, those
// alone are rejected that go by its order.
func (p Part) shared(keep []bool, column int, equal bool, reject func(int, *RowError)) []bool {
	name := p.Batch.Schema.Columns[column].Name
	for i := range p.Batch.Changes {
		c := &p.Batch.Changes[i]
		if !c.Many() || !keep[i] {
			continue
		}
		ordered := slices.ContainsFunc(c.Where, func(w record.Condition) bool { return w.Column == name })
		if ordered || !equal && !p.Batch.Columns[column].Absent(i) {
			keep[i] = drop(keep[i], i, &RowError{Column: name, Reason: fmt.Sprintf("the change deletes many rows and names them by column %q, which this step leaves out or makes another of", name)}, reject)
		}
	}
	return keep
}

func (c *compiler) rename(names map[string]string) (step, *record.Schema, error) {
	out := &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: slices.Clone(c.schema.Key)}
	for _, old := range slices.Sorted(maps.Keys(names)) {
		i, err := c.find(old, old)
		if err != nil {
			return nil, nil, err
		}
		out.Columns[i].Name = names[old]
	}
	for i, k := range out.Key {
		if name, ok := names[k]; ok {
			out.Key[i] = name
		}
	}
	if err := unique(out); err != nil {
		return nil, nil, err
	}
	return &pick{schema: out, names: names}, out, nil
}

// unique refuses a schema in which a name stands for two columns.
func unique(s *record.Schema) error {
	for i, c := range s.Columns {
		if s.Index(c.Name) < i {
			return athena.Errorf(athena.CodeInvalidRequest, "there would be two columns %q; drop or rename the other first", c.Name).At(c.Name)
		}
	}
	return nil
}

func (c *compiler) choose(names []string) (step, *record.Schema, error) {
	s := &pick{schema: &record.Schema{}, from: make([]int, 0, len(names))}
	for _, name := range names {
		i, err := c.find(name, name)
		if err != nil {
			return nil, nil, err
		}
		s.from = append(s.from, i)
		s.schema.Columns = append(s.schema.Columns, c.schema.Columns[i])
	}
	s.schema.Key = surviving(c.schema.Key, s.schema)
	return s, s.schema, nil
}

// surviving is the key if all of its columns are still there; a part of it tells
// no rows apart.
func surviving(key []string, s *record.Schema) []string {
	if slices.ContainsFunc(key, func(k string) bool { return s.Index(k) < 0 }) {
		return nil
	}
	return key
}

func (c *compiler) drop(names []string) (step, *record.Schema, error) {
	for _, name := range names {
		if _, err := c.find(name, name); err != nil {
			return nil, nil, err
		}
	}
	rest := slices.DeleteFunc(c.schema.Names(), func(n string) bool { return slices.Contains(names, n) })
	if len(rest) == 0 {
		return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "no column is left")
	}
	return c.choose(rest)
}

// A cast gives columns other types.
type cast struct {
	schema  *record.Schema
	columns []int
}

func (c *compiler) cast(to map[string]record.Type) (step, *record.Schema, error) {
	s := &cast{schema: &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: c.schema.Key}}
	for _, name := range slices.Sorted(maps.Keys(to)) {
		i, err := c.find(name, name)
		if err != nil {
			return nil, nil, err
		}
		from := &s.schema.Columns[i]
		if !record.Convertible(from.Type, to[name]) {
			return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "no %s can become %s; go by way of text, or compute it in a set", from.Type, to[name]).At(name)
		}
		*from = record.Column{Name: name, Type: to[name], Nullable: from.Nullable || from.Type.Kind == record.JSON}
		s.columns = append(s.columns, i)
	}
	return s, s.schema, nil
}

func (s *cast) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	columns := slices.Clone(p.Batch.Columns)
	keep := all(p.Batch.Rows())
	for _, c := range s.columns {
		to, from := s.schema.Columns[c], p.Batch.Schema.Columns[c].Type
		keep = p.shared(keep, c, true, reject)
		columns[c] = vector(to.Type, len(keep))
		for i := range keep {
			if err := record.Convert(&columns[c], to.Type, &p.Batch.Columns[c], from, i); err != nil {
				columns[c].AppendNull()
				keep[i] = drop(keep[i], i, rowError(to.Name, err), reject)
			}
		}
	}
	return p.with(p.batch(s.schema, columns))[0].keep(keep), nil
}

// drop rejects a row that was not rejected before.
func drop(kept bool, row int, cause *RowError, reject func(int, *RowError)) bool {
	if kept {
		reject(row, cause)
	}
	return false
}

// rowError says of which column an error is.
func rowError(column string, err error) *RowError {
	var value *record.ValueError
	if errors.As(err, &value) && value.Column == "" {
		err = &record.ValueError{Column: column, Value: value.Value, Want: value.Want}
	}
	return &RowError{Column: column, Reason: err.Error()}
}
