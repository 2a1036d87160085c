package source

import (
	"bytes"
	"encoding/json"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A bound is an end of what a delete_range deletes: rows whose key begins with less
// columns than the table's are beyond it or before it as a whole.
type bound struct {
	Key       map[string]json.RawMessage `json:"key"`
	Inclusive bool                       `json:"inclusive"`
}

// A span is rows of which the first columns of the key have one value each, and the
// next one lies between two.
type span struct {
	equal []record.Condition
	where []record.Condition
}

// ranges appends the rows that a delete_range comes to. Its bounds are those of keys
// of several columns, one behind the other; conditions are on one column each. So a
// range becomes several deletes, each of rows that are equal up to a column. All but
// the last are implied: the change is one.
func (c *Changes) ranges(t *changedTable, b *record.Batch, mark record.Change) error {
	var r struct{ From, To *bound }
	if err := json.Unmarshal(c.line.Range, &r); err != nil {
		return err
	}
	var key map[string]json.RawMessage
	if err := json.Unmarshal(c.line.Key, &key); err != nil {
		return err
	}
	var columns []record.Column // of the key, within the partition
	for _, name := range t.schema.Key {
		if _, ok := key[name]; !ok {
			columns = append(columns, t.schema.Columns[t.schema.Index(name)])
		}
	}
	names := make([]string, len(columns))
	for i, col := range columns {
		names[i] = col.Name
	}
	list := between(names, r.From, r.To)
	for i, s := range list {
		for _, w := range s.where {
			if col := t.schema.Columns[t.schema.Index(w.Column)]; !c.sorts(col) {
				return athena.Errorf(athena.CodeInvalidRequest, "a range of rows was deleted by the order of column %q, and values of type %s sort otherwise elsewhere; have the table read anew (athena cdc snapshot start)", col.Name, col.Native).At(col.Name)
			}
		}
		row := c.line.Key
		if len(s.equal) > 0 {
			all := make(map[string]json.RawMessage, len(key)+len(s.equal))
			for name, v := range key {
				all[name] = v
			}
			for _, e := range s.equal {
				all[e.Column] = e.Value
			}
			var err error
			if row, err = json.Marshal(all); err != nil {
				return err
			}
		}
		if _, err := t.rows.Parse(b, row); err != nil {
			return err
		}
		one := mark
		one.Where, one.Implied = s.where, i < len(list)-1
		b.Changes = append(b.Changes, one)
	}
	return nil
}

// sorts reports whether a column's values sort as those of its type do.
func (c *Changes) sorts(col record.Column) bool {
	switch col.Type.Kind {
	case record.UUID, record.JSON:
		return false
	}
	return c.Sorts == nil || c.Sorts(col.Native)
}

// between parts the rows between two bounds, by the columns that order them; the widest
// comes last. Nothing is between bounds that exclude each other.
func between(columns []string, from, to *bound) []span {
	lower, upper := values(columns, from), values(columns, to)
	var equal []record.Condition
	n := 0
	for n < len(lower) && n < len(upper) && bytes.Equal(lower[n], upper[n]) {
		equal = append(equal, condition(columns[n], "=", lower[n]))
		n++
	}
	// A bound that ends here has all of what begins like it on one side.
	if from != nil && n == len(lower) && n > 0 && !from.Inclusive || to != nil && n == len(upper) && n > 0 && !to.Inclusive {
		return nil
	}
	var list []span
	side := func(b *bound, values []json.RawMessage, beyond string) {
		op := beyond
		if b != nil && b.Inclusive {
			op += "="
		}
		at := append([]record.Condition(nil), equal...)
		var steps []span
		for i := n; i < len(values)-1; i++ {
			at = append(at[:len(at):len(at)], condition(columns[i], "=", values[i]))
			ends := beyond
			if i+1 == len(values)-1 {
				ends = op
			}
			steps = append(steps, span{at, []record.Condition{condition(columns[i+1], ends, values[i+1])}})
		}
		list = append(list, steps...)
	}
	side(from, lower, ">")
	side(to, upper, "<")
	middle := span{equal: equal}
	for _, end := range []struct {
		b      *bound
		values []json.RawMessage
		op     string
	}{{from, lower, ">"}, {to, upper, "<"}} {
		if len(end.values) <= n {
			continue
		}
		op := end.op
		if len(end.values) == n+1 && end.b.Inclusive {
			op += "="
		}
		middle.where = append(middle.where, condition(columns[n], op, end.values[n]))
	}
	return append(list, middle)
}

// values are those of a bound's key, up to the first that it does not have.
func values(columns []string, b *bound) (list []json.RawMessage) {
	for i := 0; b != nil && i < len(columns); i++ {
		v, ok := b.Key[columns[i]]
		if !ok || string(v) == "null" {
			break
		}
		list = append(list, v)
	}
	return list
}

func condition(column, op string, value json.RawMessage) record.Condition {
	return record.Condition{Column: column, Op: op, Value: value}
}
