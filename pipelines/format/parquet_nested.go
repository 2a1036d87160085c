package format

import (
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A node is a column below a nested one, which is read as JSON: groups as objects,
// lists as arrays, maps with texts as keys as objects, and values in the forms of
// docs/types.md.
type node struct {
	name               string
	optional, repeated bool
	// list and entries mark groups whose one repeated child has the elements of a
	// list, and the keys and values of a map.
	list, entries bool
	bare          bool // a repeated group that stands for its one field
	rep, def      int  // levels of the node itself
	children      []*node
	leaves        int // below it, or 1

	typ    record.Type
	decode decode
	vector record.Vector
}

func newNode(c *parquet.Column) *node {
	n := &node{name: c.Name(), optional: c.Optional(), repeated: c.Repeated(), rep: c.MaxRepetitionLevel(), def: c.MaxDefinitionLevel()}
	if c.Leaf() {
		n.typ, n.decode = leafType(c.Type())
		n.vector.Kind, n.leaves = n.typ.Kind, 1
		return n
	}
	for _, child := range c.Columns() {
		n.children = append(n.children, newNode(child))
		n.leaves += n.children[len(n.children)-1].leaves
	}
	if len(n.children) != 1 || !n.children[0].repeated {
		return n
	}
	item := n.children[0]
	var logical any
	if t := c.Type(); t != nil {
		if l := t.LogicalType(); l != nil {
			logical = l.Value
		}
	}
	switch logical.(type) {
	case *format.ListType:
		n.list = true
		item.bare = len(item.children) == 1 && item.name != "array" && item.name != n.name+"_tuple"
	case *format.MapType:
		n.list = true
		n.entries = len(item.children) == 2 && item.children[0].typ.Kind == record.Text && !item.children[0].repeated
	}
	return n
}

// append appends the value of a row, of which rows has the values of each leaf.
// False if the file contradicts itself, or a value has no form.
func (n *node) append(dst []byte, rows [][]parquet.Value) ([]byte, bool) {
	for _, leaf := range rows {
		if len(leaf) == 0 {
			return dst, false
		}
	}
	if len(rows) == 0 { // a group without columns
		return append(dst, "{}"...), true
	}
	if n.repeated {
		return n.appendElements(dst, rows, '[', ']', n.appendOne)
	}
	if n.optional && rows[0][0].DefinitionLevel() < n.def {
		return append(dst, "null"...), true
	}
	switch {
	case n.entries:
		item := n.children[0]
		return item.appendElements(dst, rows, '{', '}', item.appendEntry)
	case n.list:
		return n.children[0].append(dst, rows)
	}
	return n.appendOne(dst, rows)
}

// appendElements appends the repetitions of n, one after the other.
func (n *node) appendElements(dst []byte, rows [][]parquet.Value, begin, end byte, one func([]byte, [][]parquet.Value) ([]byte, bool)) ([]byte, bool) {
	dst = append(dst, begin)
	if len(rows) == 0 || rows[0][0].DefinitionLevel() < n.def {
		return append(dst, end), true
	}
	element, at := make([][]parquet.Value, len(rows)), make([]int, len(rows))
	for first := true; at[0] < len(rows[0]); first = false {
		for i, leaf := range rows {
			from := at[i]
			if from >= len(leaf) {
				return dst, false
			}
			to := from + 1
			for to < len(leaf) && leaf[to].RepetitionLevel() > n.rep {
				to++
			}
			element[i], at[i] = leaf[from:to], to
		}
		if !first {
			dst = append(dst, ',')
		}
		var ok bool
		if dst, ok = one(dst, element); !ok {
			return dst, false
		}
	}
	return append(dst, end), true
}

// appendOne appends a value of n that is there.
func (n *node) appendOne(dst []byte, rows [][]parquet.Value) (_ []byte, ok bool) {
	if n.bare {
		return n.children[0].append(dst, rows)
	}
	if n.children == nil {
		x := rows[0][0]
		if x.IsNull() {
			return append(dst, "null"...), true
		}
		n.vector.Reset()
		if !n.decode(&n.vector, x) {
			return dst, false
		}
		return n.vector.AppendJSON(dst, n.typ, 0), true
	}
	sep := byte('{')
	for _, child := range n.children {
		dst = append(cdc.AppendString(append(dst, sep), child.name), ':')
		if dst, ok = child.append(dst, rows[:child.leaves]); !ok {
			return dst, false
		}
		rows, sep = rows[child.leaves:], ','
	}
	return append(dst, '}'), true
}

// appendEntry appends a key and its value.
func (n *node) appendEntry(dst []byte, rows [][]parquet.Value) (_ []byte, ok bool) {
	key, value := n.children[0], n.children[1]
	if rows[0][0].IsNull() {
		return dst, false
	}
	if dst, ok = key.appendOne(dst, rows[:1]); !ok {
		return dst, false
	}
	return value.append(append(dst, ':'), rows[1:])
}
