package postgres

import (
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A rowColumn is one published column of a table.
type rowColumn struct {
	name string
	oid  uint32
	key  bool // part of the row's identity
}

// A rowEncoder renders rows of one column set as JSON objects. It is not
// changed once made, and safe for concurrent use.
type rowEncoder struct {
	columns []encodedColumn
	hasKey  bool
}

type encodedColumn struct {
	rowColumn
	label []byte // the name as a JSON key, colon included
	typ   *typ
}

// newRowEncoder makes the encoder of a column set. Types that are not built in
// must have been loaded; others are rendered as text.
func newRowEncoder(ts *Types, columns []rowColumn) *rowEncoder {
	e := &rowEncoder{columns: make([]encodedColumn, len(columns))}
	for i, c := range columns {
		e.columns[i] = encodedColumn{c, append(cdc.AppendString(nil, c.name), ':'), ts.lookup(c.oid)}
		e.hasKey = e.hasKey || c.key
	}
	return e
}

// appendRow appends one row as an object; a nil value is NULL. With keyOnly it
// has the columns of the key alone.
func (e *rowEncoder) appendRow(dst []byte, values [][]byte, keyOnly bool) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for i := range e.columns {
		c := &e.columns[i]
		if keyOnly && !c.key {
			continue
		}
		if len(dst) > start+1 {
			dst = append(dst, ',')
		}
		dst = append(dst, c.label...)
		dst = appendValue(dst, c.typ, values[i])
	}
	return append(dst, '}')
}

// describe is the column set as a schema change has it.
func (e *rowEncoder) describe(ts *Types) []cdc.Column {
	out := make([]cdc.Column, len(e.columns))
	for i, c := range e.columns {
		out[i] = cdc.Column{Name: c.name, Type: ts.Name(c.oid), Key: c.key}
	}
	return out
}
