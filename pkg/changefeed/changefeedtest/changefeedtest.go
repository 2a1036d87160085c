// Package changefeedtest writes streams of changes as captures write them. It is
// imported by tests alone.
package changefeedtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// A Stream is one client's. Its methods are safe for concurrent use, but what
// they write then comes in any order of the calls.
type Stream struct {
	Client string

	t   testing.TB
	bus *bus.Bus
	mu  sync.Mutex
	lsn uint64
	// encoder writes the lines.
	encoder *cdc.Encoder
	last    cdc.Position
}

// Make makes the stream of a client's changes, and gives positions behind lsn.
func Make(t testing.TB, b *bus.Bus, client string, lsn uint64) *Stream {
	t.Helper()
	if _, err := b.JetStream().CreateStream(t.Context(), bus.CDCConfig(client, time.Hour, 1<<30, b.Replicas())); err != nil {
		t.Fatalf("changefeedtest: %v", err)
	}
	return &Stream{
		Client: client, t: t, bus: b, lsn: lsn, encoder: cdc.NewEncoder(client),
		last: cdc.Position(fmt.Sprintf("%016X.00000000", lsn)),
	}
}

// Store returns a store on b that runs until the test ends, and has its feeds
// run with it.
func Store(t testing.TB, b *bus.Bus) (*changefeed.Store, *changefeed.Feeds) {
	t.Helper()
	s, err := changefeed.NewStore(t.Context(), b, nil)
	if err != nil {
		t.Fatalf("changefeedtest: %v", err)
	}
	feeds := changefeed.NewFeeds(s, nil)
	var running sync.WaitGroup
	ctx := t.Context() // done before the clean-ups run
	for _, run := range []func() error{func() error { return s.Run(ctx) }, func() error { return feeds.Run(ctx) }} {
		running.Go(func() {
			if err := run(); err != nil {
				t.Errorf("changefeedtest: %v", err)
			}
		})
	}
	t.Cleanup(running.Wait)
	if err := s.Ready(ctx); err != nil {
		t.Fatalf("changefeedtest: %v", err)
	}
	return s, feeds
}

// Change returns the change of a transaction of its own, behind all that was
// made before. after is the new row as JSON; empty is none.
func (s *Stream) Change(op cdc.Op, table string, id int, after string) cdc.Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lsn += 16
	tx := fmt.Sprintf("%016X", s.lsn)
	c := cdc.Change{
		Pos: cdc.Position(tx + ".00000001"), Op: op, Schema: "public", Table: table,
		Tx: &cdc.Transaction{ID: strconv.FormatUint(s.lsn, 10), Pos: cdc.Position(tx), N: 1, Last: true, At: time.Unix(int64(s.lsn), 0)},
	}
	switch op {
	case cdc.Schema:
		c.Columns = []cdc.Column{{Name: "id", Type: "int8", Key: true}}
	case cdc.Message:
		c.Schema, c.Table, c.Prefix, c.Content = "", "", table, []byte(after)
	case cdc.Truncate:
	default:
		c.Key = json.RawMessage(fmt.Sprintf(`{"id":%d}`, id))
	}
	if after != "" && op != cdc.Message {
		c.After = json.RawMessage(after)
	}
	return c
}

// Insert writes the change of a row that was inserted, in a message of its own.
func (s *Stream) Insert(table string, id int, after string) cdc.Change {
	s.t.Helper()
	if after == "" {
		after = fmt.Sprintf(`{"id":%d}`, id)
	}
	c := s.Change(cdc.Insert, table, id, after)
	s.Write(1, c)
	return c
}

// Write stores changes, as many as pack says in one message and of one table at
// most, and gives the hint. It returns the stream's last sequence.
func (s *Stream) Write(pack int, changes ...cdc.Change) (seq uint64) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && n < pack && subject(s.Client, changes[n]) == subject(s.Client, changes[0]) {
			n++
		}
		seq = s.publish(changes[:n])
		changes = changes[n:]
	}
	s.hint(seq)
	return seq
}

func subject(client string, c cdc.Change) string {
	if c.Op == cdc.Schema {
		return bus.CDCSchema(client, c.Schema, c.Table)
	}
	return bus.CDC(client, c.Schema, c.Table)
}

func (s *Stream) publish(changes []cdc.Change) uint64 {
	msg := nats.NewMsg(subject(s.Client, changes[0]))
	var body bytes.Buffer
	op := changes[0].Op
	for i, c := range changes {
		if i > 0 {
			body.WriteByte('\n')
		}
		body.Write(s.encoder.Append(nil, &c))
		if c.Op != op {
			op = ""
		}
	}
	last := changes[len(changes)-1]
	msg.Data = body.Bytes()
	msg.Header.Set(changefeed.HeaderPos, string(last.Pos))
	msg.Header.Set(changefeed.HeaderFirst, string(changes[0].Pos))
	msg.Header.Set(changefeed.HeaderPrev, string(s.last))
	msg.Header.Set(changefeed.HeaderCount, strconv.Itoa(len(changes)))
	if last.Tx != nil {
		msg.Header.Set(changefeed.HeaderTx, last.Tx.ID)
	}
	if op != "" {
		msg.Header.Set(changefeed.HeaderOp, string(op))
	}
	s.last = last.Pos
	return s.store(msg)
}

func (s *Stream) store(msg *nats.Msg) uint64 {
	s.t.Helper()
	ack, err := s.bus.JetStream().PublishMsg(s.t.Context(), msg)
	if err != nil {
		s.t.Fatalf("changefeedtest: %v", err)
	}
	return ack.Sequence
}

// Progress stores how far a snapshot is: a message without changes.
func (s *Stream) Progress(p changefeed.SnapshotProgress) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	msg := nats.NewMsg(bus.CDCSnapshot(s.Client, p.ID))
	raw, err := json.Marshal(p)
	if err != nil {
		s.t.Fatalf("changefeedtest: %v", err)
	}
	msg.Data = raw
	msg.Header.Set(changefeed.HeaderPos, string(s.last))
	msg.Header.Set(changefeed.HeaderCount, "0")
	s.hint(s.store(msg))
}

func (s *Stream) hint(seq uint64) {
	if err := s.bus.Conn().Publish(bus.CDCHint(s.Client), strconv.AppendUint(nil, seq, 10)); err != nil {
		s.t.Fatalf("changefeedtest: %v", err)
	}
}

// Drop lets go of the oldest messages, up to and without seq, as age does.
func (s *Stream) Drop(seq uint64) {
	s.t.Helper()
	stream, err := s.bus.JetStream().Stream(s.t.Context(), bus.CDCStream(s.Client))
	if err == nil {
		err = stream.Purge(s.t.Context(), jetstream.WithPurgeSequence(seq))
	}
	if err != nil {
		s.t.Fatalf("changefeedtest: %v", err)
	}
}
