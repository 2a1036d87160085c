package judge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// Config says what is judged.
type Config struct {
	Client string
	// Replica is a database with the source's tables, empty, that the judge may
	// fill.
	Replica string
	// Object reads a value that was too large for a message. It may be nil where
	// there are none.
	Object func(ctx context.Context, name string) ([]byte, error)
	// Again says that rows are read while the stream goes on, by a snapshot that
	// was asked for or interrupted: then a change may find its row as later
	// changes have left it.
	Again bool
}

// A Message is one of the stream.
type Message struct {
	Subject  string
	Sequence uint64
	Header   nats.Header
	Data     []byte
}

// DDL is the prefix of messages whose content is SQL that the judge runs on the
// replica, where it stands in the stream.
const DDL = "judge.ddl"

// A Judge reads one stream. It is not safe for concurrent use.
type Judge struct {
	cfg      Config
	order    order
	replica  *replica
	arrived  map[Token]int
	read     map[Token]int // rows of snapshots
	Changes  int           // how many were read
	Ops      map[cdc.Op]int
	Begun    int // times that the capture began anew
	Refs     int // values that were fetched from the object store
	problems []string
	left     int // problems that were not kept
}

// New returns a judge of a stream that stands before its first message.
func New(ctx context.Context, cfg Config) (*Judge, error) {
	j := &Judge{cfg: cfg, arrived: map[Token]int{}, read: map[Token]int{}, Ops: map[cdc.Op]int{}}
	var err error
	j.replica, err = openReplica(ctx, cfg.Replica, j.report)
	if j.replica != nil {
		j.replica.lenient = cfg.Again
	}
	return j, err
}

// begin is the prefix of a message that the capture itself adds: from here on the
// stream does not follow from what is before.
const begin = "athena.begin"

// anew empties the replica where all rows are read anew.
func (j *Judge) anew(ctx context.Context, c *cdc.Change) error {
	var says struct {
		Snapshot string `json:"snapshot"`
	}
	if err := json.Unmarshal(c.Content, &says); err != nil {
		j.report("the message %s at %s: %v", c.Prefix, c.Pos, err)
	}
	j.Begun++
	if says.Snapshot != "initial" {
		return nil
	}
	return j.replica.empty(ctx)
}

// Close ends the judge's connection.
func (j *Judge) Close(ctx context.Context) error { return j.replica.close(ctx) }

const problemsMost = 30

func (j *Judge) report(format string, args ...any) {
	if len(j.problems) >= problemsMost {
		j.left++
		return
	}
	j.problems = append(j.problems, fmt.Sprintf(format, args...))
}

// Message takes the next message of the stream. An error says that the judge
// cannot go on; what is wrong with the stream comes with the verdict.
func (j *Judge) Message(ctx context.Context, m Message) error {
	var changes []cdc.Change
	for raw := range bytes.Lines(m.Data) {
		if m.Header.Get("Ath-Count") == "0" { // the progress of a snapshot
			break
		}
		c, err := parse(raw)
		if err != nil {
			j.report("message %d holds %.200q: %v", m.Sequence, raw, err)
			continue
		}
		changes = append(changes, c)
	}
	j.order.headers(m, j.cfg.Client, changes, j.report)
	for i := range changes {
		if err := j.Change(ctx, &changes[i]); err != nil {
			return err
		}
	}
	return nil
}

// Line takes the next change as a subscriber gets it.
func (j *Judge) Line(ctx context.Context, raw []byte) error {
	c, err := parse(raw)
	if err != nil {
		j.report("the line %.200q: %v", raw, err)
		return nil
	}
	return j.Change(ctx, &c)
}

func parse(raw []byte) (c cdc.Change, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err = d.Decode(&c)
	return c, err
}

// Change takes the next change.
func (j *Judge) Change(ctx context.Context, c *cdc.Change) error {
	j.Changes++
	j.Ops[c.Op]++
	if c.Client != j.cfg.Client {
		j.report("%s says that it is of client %q", c.Pos, c.Client)
	}
	j.order.next(c, j.report)
	switch c.Op {
	case cdc.Message:
		if c.Prefix == begin {
			return j.anew(ctx, c)
		}
		j.arrived[Said(c.Prefix, string(c.Content))]++
		if c.Prefix == DDL {
			return j.replica.define(ctx, string(c.Content))
		}
		return nil
	case cdc.Schema:
		return j.replica.shaped(ctx, c)
	}
	if err := j.fetch(ctx, c); err != nil {
		return err
	}
	j.count(c)
	return j.replica.apply(ctx, c)
}

// count enters the change that the row's version or id stands for.
func (j *Judge) count(c *cdc.Change) {
	number := func(raw json.RawMessage, name string) int64 {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(raw, &object); err != nil {
			j.report("%s at %s has no row: %v", c.Op, c.Pos, err)
			return -1
		}
		n, err := strconv.ParseInt(string(object[name]), 10, 64)
		if err != nil {
			j.report("%s of %s.%s at %s has no %s: %.300s", c.Op, c.Schema, c.Table, c.Pos, name, raw)
			return -1
		}
		return n
	}
	switch c.Op {
	case cdc.Read:
		j.read[Wrote(number(c.After, "ver"))]++
	case cdc.Insert, cdc.Update:
		j.arrived[Wrote(number(c.After, "ver"))]++
	case cdc.Delete:
		if len(c.Key) > 0 {
			j.arrived[Deleted(number(c.Key, "id"))]++
		} else {
			j.arrived[Dropped(number(c.Before, "ver"))]++
		}
	case cdc.Truncate:
		if c.Tx != nil { // else a snapshot begins of a table without a key
			j.arrived[Truncated(c.Schema, c.Table)]++
		}
	}
}

// A ref stands in a change for a value in the object store.
type ref struct {
	Ref    string `json:"$ref"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

var refMark = []byte(`"$ref"`)

// fetch puts the values that the change refers to in their places.
func (j *Judge) fetch(ctx context.Context, c *cdc.Change) error {
	for _, raw := range []*json.RawMessage{&c.Key, &c.Before, &c.After} {
		if !bytes.Contains(*raw, refMark) {
			continue
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(*raw, &object); err != nil {
			j.report("%s at %s has no row: %v", c.Op, c.Pos, err)
			return nil
		}
		for name, value := range object {
			var r ref
			if !bytes.Contains(value, refMark) || json.Unmarshal(value, &r) != nil || r.Ref == "" {
				continue
			}
			data, err := j.cfg.Object(ctx, r.Ref)
			if err != nil {
				j.report("column %q of %s: object %q: %v", name, c.Pos, r.Ref, err)
				continue
			}
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != r.SHA256 || int64(len(data)) != r.Bytes {
				j.report("column %q of %s: object %q has %d bytes with sum %x, and the change says %d and %s", name, c.Pos, r.Ref, len(data), sum, r.Bytes, r.SHA256)
			}
			j.Refs++
			object[name] = data
		}
		// Not json.Marshal, which takes the blanks out of values in JSON.
		var whole []byte
		for name, value := range object {
			whole = append(cdc.AppendString(append(whole, ','), name), ':')
			whole = append(whole, value...)
		}
		whole[0] = '{'
		*raw = append(whole, '}')
	}
	return nil
}

// Arrived reports whether the change has.
func (j *Judge) Arrived(t Token) bool { return j.arrived[t] > 0 }

// Flush plays what has come so far.
func (j *Judge) Flush(ctx context.Context) error { return j.replica.flush(ctx) }

// Verdict ends the stream: it compares what arrived with the ledger, and the
// tables of the replica with those of the source. It returns what is wrong with
// the stream; nothing, if it told the truth.
func (j *Judge) Verdict(ctx context.Context, source string, tables []Table, l *Ledger) ([]string, error) {
	if err := j.replica.flush(ctx); err != nil {
		return j.found(), err
	}
	j.order.end(j.report)
	l.settle(j.arrived, j.report)
	if !j.cfg.Again {
		for t, n := range j.read {
			if n > 1 {
				j.report("the row of %s was read %d times by the snapshot", t, n)
			}
		}
	}
	differences, err := Compare(ctx, source, j.cfg.Replica, tables)
	return append(j.found(), differences...), err
}

// Read is how many rows of snapshots there were.
func (j *Judge) Read() int { return j.Ops[cdc.Read] }

func (j *Judge) found() []string {
	if j.left > 0 {
		return append(j.problems, fmt.Sprintf("and %d more", j.left))
	}
	return j.problems
}
