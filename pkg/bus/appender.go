package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// An Appender stores messages at the end of a stream that nobody else writes to,
// in order, group after group, without waiting for one before the next is sent.
//
// Each message expects the one before it to be the stream's last. So the first
// failure fails everything behind it, and an appender that was overtaken by
// another stores nothing any more. After a failure it is of no further use: read
// the end of the stream, and make another.
//
// Append is called by one goroutine; Wait by any.
type Appender struct {
	nc     *nats.Conn
	stream string
	inbox  string
	sub    *nats.Subscription
	last   uint64 // sequence of the last message that was sent

	mu      sync.Mutex
	pending map[string]*Appended // by the token of the reply
	err     error                // the first failure
}

// Appended is a group that was sent.
type Appended struct {
	Last    uint64 // the sequence of its last message, if it is stored
	missing int    // answers
	done    chan struct{}
	err     error // set before done is closed
}

// A group is sent as an atomic batch, which is synced once, if it has at least
// atomicLeast messages of less than atomicSize bytes each, on average. A batch
// costs the server a file of its own, into which it writes everything once more;
// a message by itself costs a sync. See BenchmarkAppend.
const (
	atomicLeast = 12
	atomicSize  = 16 << 10
)

// NewAppender returns an appender behind the message with the sequence last.
func NewAppender(nc *nats.Conn, stream string, last uint64) (*Appender, error) {
	a := &Appender{nc: nc, stream: stream, inbox: nc.NewInbox(), last: last, pending: map[string]*Appended{}}
	sub, err := nc.Subscribe(a.inbox+".*", a.answer)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	a.sub = sub
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, errors.Join(err, sub.Unsubscribe())
	}
	return a, nil
}

// Append sends messages, at most 1,000 of them. Their headers are added to. The
// error is the first failure of any group; else Wait tells whether these are
// stored. Once it has returned, the messages' data may be changed.
func (a *Appender) Append(msgs []*nats.Msg) (*Appended, error) {
	if len(msgs) == 0 || len(msgs) > batchMost {
		return nil, fmt.Errorf("bus: a group has 1 to %d messages, not %d", batchMost, len(msgs))
	}
	if !a.nc.IsConnected() {
		return nil, a.fail(unread(a.stream, nats.ErrDisconnected))
	}
	g := &Appended{Last: a.last + uint64(len(msgs)), missing: len(msgs), done: make(chan struct{})}
	size := 0
	for _, m := range msgs {
		size += len(m.Data)
	}
	atomic := len(msgs) >= atomicLeast && size < len(msgs)*atomicSize
	if atomic {
		g.missing = 1
	}
	if err := a.expect(g, atomic, len(msgs)); err != nil {
		return nil, err
	}
	id := ""
	if atomic {
		id = nuid.Next()
	}
	for i, m := range msgs {
		seq := a.last + uint64(i) + 1
		if !atomic || i == 0 {
			m.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(seq-1, 10))
		}
		if atomic {
			m.Header.Set(headerBatchID, id)
			m.Header.Set(headerBatchSequence, strconv.Itoa(i+1))
		}
		if i == len(msgs)-1 && atomic {
			m.Header.Set(headerBatchCommit, "1")
		}
		if !atomic || i == len(msgs)-1 {
			m.Reply = a.inbox + "." + strconv.FormatUint(seq, 36)
		}
		if err := a.nc.PublishMsg(m); err != nil {
			return nil, a.fail(unread(a.stream, err))
		}
	}
	a.last = g.Last
	return g, nil
}

// expect registers the answers of a group that is about to be sent.
func (a *Appender) expect(g *Appended, atomic bool, n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	for i := range n {
		if !atomic || i == n-1 {
			a.pending[strconv.FormatUint(a.last+uint64(i)+1, 36)] = g
		}
	}
	return nil
}

// answer takes the server's answer to one message.
func (a *Appender) answer(m *nats.Msg) {
	token := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	a.mu.Lock()
	g := a.pending[token]
	a.mu.Unlock()
	if g == nil {
		return
	}
	seq, _ := strconv.ParseUint(token, 36, 64)
	if err := a.judge(m, seq); err != nil {
		a.fail(err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[token] != g { // something failed meanwhile
		return
	}
	delete(a.pending, token)
	if g.missing--; g.missing == 0 {
		close(g.done)
	}
}

func (a *Appender) judge(m *nats.Msg, want uint64) error {
	explain := (&Publisher{stream: a.stream}).explain
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return explain(nats.ErrNoResponders)
	}
	var got ack
	switch err := json.Unmarshal(m.Data, &got); {
	case err != nil:
		return ambiguous(a.stream, err)
	case got.Error != nil:
		return explain(got.Error)
	case got.Stream != a.stream || got.Sequence != want:
		return ambiguous(a.stream, fmt.Errorf("stored as %d of %s, not as %d of %s", got.Sequence, got.Stream, want, a.stream))
	}
	return nil
}

// fail ends everything that is under way, and returns the first failure.
func (a *Appender) fail(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
	}
	for token, g := range a.pending {
		delete(a.pending, token)
		if g.err == nil {
			g.err = a.err
			close(g.done)
		}
	}
	return a.err
}

// Wait returns once the group is stored, or why it may not be: an error that
// wraps ErrWrongSequence, ErrFull or ErrAmbiguous, as of Publisher.Publish. An
// answer that does not come in time is ambiguous.
func (a *Appender) Wait(ctx context.Context, g *Appended) error {
	t := time.NewTimer(publishTimeout)
	defer t.Stop()
	select {
	case <-g.done:
	case <-t.C:
		return a.fail(ambiguous(a.stream, context.DeadlineExceeded))
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.err
}

// Close gives back what the appender holds.
func (a *Appender) Close() error { return a.sub.Unsubscribe() }
