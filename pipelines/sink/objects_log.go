package sink

import (
	"fmt"

	"github.com/athena-pipelines/athena/pkg/record"
)

// log makes rows of a log of rows of a stream of changes.
type log struct {
	of      *record.Schema
	schema  *record.Schema
	op, pos record.Vector
	ts      record.Vector
	rows    []int
}

// take returns the batch as its rows go to objects, and which of its rows do; nil
// is all of them. Of a stream the deletes that only say that a key was changed are
// none of the log.
func (l *log) take(o *Objects, b *record.Batch) (rows []int, out *record.Batch, err error) {
	if !o.Changes {
		return nil, b, nil
	}
	if len(b.Changes) != b.Rows() {
		return nil, nil, fmt.Errorf("sink: rows of a stream of changes lack what is known of their changes")
	}
	if l.of == nil || l.of != b.Schema && !l.of.Equal(b.Schema) {
		if l.schema, err = o.schema(b.Schema); err != nil {
			return nil, nil, err
		}
	}
	l.of = b.Schema
	l.op.Reset()
	l.pos.Reset()
	l.ts.Reset()
	l.op.Kind, l.pos.Kind, l.ts.Kind = record.Text, record.Text, record.TimestampTZ
	l.rows = l.rows[:0]
	for i, c := range b.Changes {
		l.op.AppendString(string(c.Op))
		l.pos.AppendString(string(c.Pos))
		if c.At == 0 {
			l.ts.AppendNull()
		} else {
			l.ts.AppendInt(c.At)
		}
		if !c.Implied {
			l.rows = append(l.rows, i)
		}
	}
	out = &record.Batch{Schema: l.schema, Columns: append([]record.Vector{l.op, l.pos, l.ts}, b.Columns...)}
	out.SetRows(b.Rows())
	if len(l.rows) == b.Rows() {
		return nil, out, nil
	}
	return l.rows, out, nil
}
