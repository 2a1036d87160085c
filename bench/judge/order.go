package judge

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// order checks the order of a stream. The zero value stands before its first
// change.
type order struct {
	last cdc.Position // of the change before
	tx   cdc.Transaction
	open bool // tx has not had its last change
}

// next takes the stream's next change and says what is wrong with its place.
func (o *order) next(c *cdc.Change, report func(string, ...any)) {
	switch {
	case c.Pos == "":
		report("a change of %s.%s has no position", c.Schema, c.Table)
	case c.Pos == o.last:
		report("position %s came twice", c.Pos)
	case c.Pos < o.last:
		report("position %s came after %s", c.Pos, o.last)
	}
	o.last = max(o.last, c.Pos)
	if c.Op == cdc.Schema || c.Op == cdc.Read || ofSnapshot(c) {
		return
	}
	if c.Tx == nil {
		if c.Op != cdc.Message {
			report("%s at %s names no transaction", c.Op, c.Pos)
		}
		return
	}
	t := *c.Tx
	if want := fmt.Sprintf("%s.%08X", t.Pos, t.N); string(c.Pos) != want {
		report("position %s is of change %d in transaction %s, so it should be %s", c.Pos, t.N, t.Pos, want)
	}
	if t.At.IsZero() || t.ID == "" {
		report("the transaction of %s has no id or no time", c.Pos)
	}
	switch {
	case o.open && t.Pos == o.tx.Pos:
		if t.N != o.tx.N+1 {
			report("change %d of transaction %s came after its change %d", t.N, t.Pos, o.tx.N)
		}
		if t.ID != o.tx.ID || !t.At.Equal(o.tx.At) {
			report("transaction %s has two ids or times", t.Pos)
		}
	case o.open:
		report("transaction %s ended with its change %d, which does not say that it is the last", o.tx.Pos, o.tx.N)
		fallthrough
	default:
		if t.N != 1 {
			report("transaction %s begins with its change %d", t.Pos, t.N)
		}
	}
	o.tx, o.open = t, !t.Last
}

// ofSnapshot reports whether a truncate is one with which a snapshot has its
// readers forget the rows of a table without a key, before it gives them anew.
func ofSnapshot(c *cdc.Change) bool {
	return c.Op == cdc.Truncate && c.Tx == nil && strings.Contains(string(c.Pos), "r")
}

// end says what is wrong with a stream that ends here.
func (o *order) end(report func(string, ...any)) {
	if o.open {
		report("the stream ends within transaction %s, after its change %d", o.tx.Pos, o.tx.N)
	}
}

// headers says what is wrong with what a message says of the changes in it.
func (o *order) headers(m Message, client string, changes []cdc.Change, report func(string, ...any)) {
	want := map[string]string{"Ath-Count": strconv.Itoa(len(changes))}
	switch {
	case len(changes) > 0:
		want["Ath-First"], want["Ath-Pos"] = string(changes[0].Pos), string(changes[len(changes)-1].Pos)
		if o.last != "" && changes[0].Prefix != begin { // from there on nothing follows from what was
			want["Ath-Prev"] = string(o.last)
		}
	case o.last != "": // it says how far a snapshot is, and stands where its last row does
		want["Ath-Pos"] = string(o.last)
	}
	for name, value := range want {
		if got := m.Header.Get(name); got != value {
			report("message %d says %s: %q, and it should be %q", m.Sequence, name, got, value)
		}
	}
	for _, c := range changes {
		subject := bus.CDC(client, c.Schema, c.Table)
		if c.Op == cdc.Schema {
			subject = bus.CDCSchema(client, c.Schema, c.Table)
		}
		if subject != m.Subject {
			report("message %d on %s has a %s of %s.%s", m.Sequence, m.Subject, c.Op, c.Schema, c.Table)
			return
		}
	}
}
