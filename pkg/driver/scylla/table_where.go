package scylla

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// CQL looks for rows by their partition, and in it by a range. Conditions that are such
// are the server's; all others are held against the rows as they come, so that no
// condition makes a server read its table through until a page times out.

// A condition is one of the caller's, ready to be held against rows.
type condition struct {
	column tableColumn
	op     string
	typ    record.Type
	values record.Vector // what the column is compared with
	raw    [][]byte      // the same on the wire
}

const maxInValues = 10_000

// conditions reads the caller's. Values are fitted to the types of their columns, and
// compare as those do.
func conditions(m *tableMeta, list []driver.Condition) (out []condition, err error) {
	for i, given := range list {
		path := fmt.Sprintf("where[%d]", i)
		bad := func(at, format string, args ...any) error {
			return athena.Errorf(athena.CodeInvalidRequest, format, args...).At(path + at)
		}
		column, ok := m.column(given.Column)
		if !ok {
			return nil, noColumn(m, given.Column, path+".column")
		}
		c := condition{column: column, op: given.Op, typ: recordType(column.typ)}
		c.values.Kind = c.typ.Kind
		items := []json.RawMessage{given.Value}
		switch given.Op {
		case "is_null", "not_null":
			if len(given.Value) > 0 {
				return nil, bad(".value", "%s.value is given, and %s takes none", path, given.Op)
			}
			items = nil
		case "=", "!=", "<", "<=", ">", ">=":
		case "like":
			if c.typ.Kind != record.Text {
				return nil, bad(".op", "%s.op like is for texts, and column %q is of type %s", path, column.name, column.text)
			}
		case "in":
			items = nil
			if json.Unmarshal(given.Value, &items) != nil || len(items) == 0 || len(items) > maxInValues {
				return nil, bad(".value", "%s.value must be an array of 1 to %d values", path, maxInValues)
			}
		default:
			return nil, bad(".op", "%s.op %.20q is unknown; it must be one of =, !=, <, <=, >, >=, like, in, is_null and not_null", path, given.Op)
		}
		if c.typ.Kind == record.JSON && items != nil {
			return nil, bad(".op", "%s.op: values of type %s are compared with nothing here; ask for is_null or not_null, or filter in a transform", path, column.text)
		}
		for n, item := range items {
			at := ".value"
			if given.Op == "in" {
				at = fmt.Sprintf(".value[%d]", n)
			}
			if item = bytes.TrimSpace(item); !json.Valid(item) || string(item) == "null" {
				return nil, bad(at, "%s%s must be a value; nulls are asked for with is_null and not_null", path, at)
			}
			if err := c.add(item); err != nil {
				return nil, bad(at, "%s%s is %s; column %q is of type %s and %s", path, at, jsonKind(item), column.name, column.text, err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// add takes a value to compare with. A pattern is no value of the column's type.
func (c *condition) add(item json.RawMessage) error {
	if c.op == "like" {
		var pattern string
		if json.Unmarshal(item, &pattern) != nil {
			return fmt.Errorf("is compared with a pattern, a string")
		}
		c.values.AppendString(pattern)
		return nil
	}
	data, err := marshalJSON(c.column.typ, item)
	if err == nil {
		err = newColumnDecoder(c.column.name, c.column.typ).append(&c.values, data)
	}
	c.raw = append(c.raw, data)
	return err
}

// holds reports whether a value of the column meets the condition; a null meets none
// but is_null.
func (c *condition) holds(v *record.Vector, i int) bool {
	switch c.op {
	case "is_null":
		return v.Null(i)
	case "not_null":
		return !v.Null(i)
	}
	if v.Null(i) {
		return false
	}
	if c.op == "like" {
		return like(v.Bytes(i), c.values.Bytes(0))
	}
	for n := range c.values.Len() {
		order := compare(v, i, &c.values, n)
		var ok bool
		switch c.op {
		case "=", "in":
			ok = order == 0
		case "!=":
			ok = order != 0
		case "<":
			ok = order < 0
		case "<=":
			ok = order <= 0
		case ">":
			ok = order > 0
		case ">=":
			ok = order >= 0
		}
		if ok {
			return true
		}
	}
	return false
}

// compare orders two values of a type.
func compare(a *record.Vector, i int, b *record.Vector, j int) int {
	switch a.Kind {
	case record.Float:
		return cmp.Compare(a.Floats[i], b.Floats[j])
	case record.Decimal:
		return compareDigits(a.Bytes(i), b.Bytes(j))
	case record.Text, record.Bytes, record.UUID, record.JSON:
		return bytes.Compare(a.Bytes(i), b.Bytes(j))
	}
	return cmp.Compare(a.Ints[i], b.Ints[j])
}

// compareDigits orders decimals as records have them.
func compareDigits(a, b []byte) int {
	neg := func(s []byte) bool { return len(s) > 0 && s[0] == '-' && bytes.ContainsAny(s, "123456789") }
	if x, y := neg(a), neg(b); x != y {
		if x {
			return -1
		}
		return 1
	} else if x {
		a, b = b, a
	}
	parts := func(s []byte) (whole, fraction []byte) {
		whole, fraction, _ = bytes.Cut(bytes.TrimLeft(s, "-0"), []byte{'.'})
		return whole, bytes.TrimRight(fraction, "0")
	}
	w1, f1 := parts(a)
	w2, f2 := parts(b)
	return cmp.Or(len(w1)-len(w2), bytes.Compare(w1, w2), bytes.Compare(f1, f2))
}

// like matches a text as SQL's LIKE does: % is any text, _ any character, and \ has the
// next one stand for itself.
func like(text, pattern []byte) bool {
	for len(pattern) > 0 {
		switch pattern[0] {
		case '%':
			for pattern = pattern[1:]; len(pattern) > 0 && pattern[0] == '%'; pattern = pattern[1:] {
			}
			if len(pattern) == 0 {
				return true
			}
			for ; ; text = text[1:] {
				if like(text, pattern) {
					return true
				}
				if len(text) == 0 {
					return false
				}
			}
		case '_':
			if len(text) == 0 {
				return false
			}
			_, n := utf8.DecodeRune(text)
			text, pattern = text[n:], pattern[1:]
			continue
		case '\\':
			if len(pattern) > 1 {
				pattern = pattern[1:]
			}
		}
		if len(text) == 0 || text[0] != pattern[0] {
			return false
		}
		text, pattern = text[1:], pattern[1:]
	}
	return len(text) == 0
}

// A lookup is what of the conditions the server is asked: one value of each column of
// the partition key, and then of clustering columns as long as they have one.
type lookup struct {
	where []string
	args  []any
}

// find makes a lookup of conditions, or nil if the partition is not among them.
func find(m *tableMeta, list []condition) *lookup {
	var l lookup
	for _, column := range m.columns {
		if !column.key() {
			break
		}
		i := slices.IndexFunc(list, func(c condition) bool { return c.column.name == column.name && c.op == "=" })
		if i < 0 {
			if column.kind == kindPartitionKey {
				return nil
			}
			break
		}
		if column.typ.Type() == tupleType { // gocql has no value for one
			if column.kind == kindPartitionKey {
				return nil
			}
			break
		}
		l.where = append(l.where, quoteName(column.name)+" = ?")
		l.args = append(l.args, &cell{data: list[i].raw[0]})
	}
	return &l
}

func noColumn(m *tableMeta, name, path string) error {
	return athena.Errorf(athena.CodeInvalidRequest, "%s.%s has no column %.80q", m.keyspace, m.name, name).At(path)
}

// column finds a column.
func (m *tableMeta) column(name string) (tableColumn, bool) {
	i := slices.IndexFunc(m.columns, func(c tableColumn) bool { return c.name == name })
	if i < 0 {
		return tableColumn{}, false
	}
	return m.columns[i], true
}

// of lists the names of the columns of a kind, in their order.
func (m *tableMeta) of(kind string) (names []string) {
	for _, c := range m.columns {
		if c.kind == kind {
			names = append(names, c.name)
		}
	}
	return names
}

// from writes the table's name for a statement.
func (m *tableMeta) from() string { return quoteName(m.keyspace) + "." + quoteName(m.name) }

func quoteAll(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = quoteName(n)
	}
	return strings.Join(out, ", ")
}
