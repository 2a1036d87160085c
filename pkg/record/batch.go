package record

import (
	"encoding/json"
	"fmt"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A Batch is some rows of one schema. It is used by one goroutine at a time.
type Batch struct {
	Schema  *Schema
	Columns []Vector // as in Schema, all of the same length
	// Changes says of each row what it is, where rows come from a stream of
	// changes; else it is nil.
	Changes []Change
	// From is what the rows come from, for people: a table, a key of an object.
	From string

	rows int
}

// A Change is what is known of a row that comes from a stream of changes. Of a
// delete the row has the columns of the key, the others are absent.
type Change struct {
	// Op is Insert, Update, Delete, Read; Truncate, whose row is empty; or
	// DeletePartition or DeleteRange, whose rows have the columns of the key that
	// are the same for all that is deleted.
	Op  cdc.Op
	Pos cdc.Position
	// At is when it was committed, in microseconds since 1970 UTC; 0 is not known.
	At int64
	// Implied marks the delete that goes before an update which changed the key.
	// It is a change for who keeps rows by key, and none for who keeps a log.
	Implied bool
	// Where says what a DeletePartition or DeleteRange deletes: the rows for which
	// all of it holds. One change may come as several such deletes.
	Where []Condition
	// WriteTime and TTL are those of cdc.Change.
	WriteTime, TTL int64
	// Parts names the columns of which the change says what it did to a part, and
	// not what the value is now. They are absent, and have changed all the same.
	Parts []string
}

// Many reports whether the change deletes all rows that it names.
func (c *Change) Many() bool { return c.Op == cdc.DeletePartition || c.Op == cdc.DeleteRange }

// Blind reports whether the change was made without a look at the row: then it makes
// the row where there is none, with nulls for what it does not give. So are the
// changes of engines that settle by time which write is the later one.
func (c *Change) Blind() bool { return c.WriteTime != 0 && !c.Many() && c.Op != cdc.Delete }

// A Condition compares a column with a value.
type Condition struct {
	Column string `json:"column"`
	// Op is =, !=, <, <=, >, >=, like, in, is_null or not_null.
	Op string `json:"op"`
	// Value is a JSON value in the form of docs/types.md; an array for in; absent
	// for the last two.
	Value json.RawMessage `json:"value,omitempty"`
}

// New returns an empty batch with room for so many rows.
func New(s *Schema, rows int) *Batch {
	b := &Batch{Schema: s, Columns: make([]Vector, len(s.Columns))}
	for i, c := range s.Columns {
		v := &b.Columns[i]
		v.Kind = c.Type.Kind
		switch v.Kind {
		case Float:
			v.Floats = make([]float64, 0, rows)
		case Decimal, Text, Bytes, UUID, JSON:
			v.Ends = make([]uint32, 0, rows)
		default:
			v.Ints = make([]int64, 0, rows)
		}
	}
	return b
}

// Moves reports whether a row and the next one are the two halves of an update that
// changed the key. A step behind the source may have taken the second away, or made a
// delete of it.
func (b *Batch) Moves(i int) bool {
	if i+1 >= len(b.Changes) || !b.Changes[i].Implied {
		return false
	}
	next := &b.Changes[i+1]
	return next.Op == cdc.Update && next.Pos == b.Changes[i].Pos
}

// Rows is the number of rows.
func (b *Batch) Rows() int { return b.rows }

// Done counts a row whose values have been appended to all columns.
func (b *Batch) Done() { b.rows++ }

// SetRows says how many rows there are, after values were appended directly. It
// panics if a column has another number of values.
func (b *Batch) SetRows(n int) {
	for i := range b.Columns {
		if have := b.Columns[i].Len(); have != n {
			panic(fmt.Sprintf("record: column %q has %d values, not %d", b.Schema.Columns[i].Name, have, n))
		}
	}
	b.rows = n
}

// Undo drops what was appended to columns since the last Done.
func (b *Batch) Undo() {
	for i := range b.Columns {
		b.Columns[i].Truncate(b.rows)
	}
}

// Drop takes back the rows from n on.
func (b *Batch) Drop(n int) {
	if n >= b.rows {
		return
	}
	b.rows = n
	b.Undo()
	if b.Changes != nil {
		b.Changes = b.Changes[:n]
	}
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	for i := range b.Columns {
		b.Columns[i].Reset()
	}
	b.Changes, b.rows = b.Changes[:0], 0
}

// Size is the number of bytes that the values take.
func (b *Batch) Size() int {
	n := 0
	for i := range b.Columns {
		n += b.Columns[i].Size()
	}
	return n
}

// Column returns a column by its name; nil if there is none.
func (b *Batch) Column(name string) *Vector {
	if i := b.Schema.Index(name); i >= 0 {
		return &b.Columns[i]
	}
	return nil
}

// AppendRow appends row i of a batch of the same schema.
func (b *Batch) AppendRow(o *Batch, i int) {
	for c := range b.Columns {
		b.Columns[c].AppendFrom(&o.Columns[c], i)
	}
	if o.Changes != nil {
		b.Changes = append(b.Changes, o.Changes[i])
	}
	b.rows++
}

// Slice returns a new batch of rows from..to-1.
func (b *Batch) Slice(from, to int) *Batch {
	out := New(b.Schema, to-from)
	out.From = b.From
	for i := from; i < to; i++ {
		out.AppendRow(b, i)
	}
	return out
}

// Keep returns a batch of the rows for which keep is true; b itself if it is for
// all of them.
func (b *Batch) Keep(keep []bool) *Batch {
	n := 0
	for _, k := range keep {
		if k {
			n++
		}
	}
	if n == b.rows {
		return b
	}
	out := New(b.Schema, n)
	out.From = b.From
	for c := range b.Columns {
		for i, k := range keep {
			if k {
				out.Columns[c].AppendFrom(&b.Columns[c], i)
			}
		}
	}
	if b.Changes != nil {
		out.Changes = make([]Change, 0, n)
		for i, k := range keep {
			if k {
				out.Changes = append(out.Changes, b.Changes[i])
			}
		}
	}
	out.rows = n
	return out
}

// A Rejected row is one that cannot go on.
type Rejected struct {
	Row    int // in its batch
	Reason string
	Column string // where it is about one
}
