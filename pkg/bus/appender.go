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
// in order.
//
// Each message, or atomic batch of them, expects the stream to end with the one
// before it, and is sent once that is known to be stored: a sequence that is only
// hoped for may be another writer's by then, and what expects it would be stored
// behind something else than it belongs to. So the first failure fails everything
// behind it, and an appender that was overtaken by another stores nothing any
// more. After a failure it is of no further use: read the end of the stream, and
// make another.
//
// Append is called by one goroutine; Wait by any.
type Appender struct {
	nc     *nats.Conn
	stream string
	inbox  string
	sub    *nats.Subscription
	last   uint64    // sequence of the last message that was sent
	before *Appended // what was sent last; nil is nothing

	mu      sync.Mutex
	pending map[string]*Appended // by the token of the reply
	err     error                // the first failure
}

// Appended is a group that was sent, up to its last message.
type Appended struct {
	Last uint64 // the sequence of its last message, if it is stored
	done chan struct{}
	err  error // set before done is closed
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

// Append sends messages, at most 1,000 of them. It waits for what was sent before,
// and returns when the last of them is sent: Wait tells whether all are stored.
// Their headers are added to. The error is ctx's, or the first failure of any
// group. Once it has returned, the messages' data may be changed.
func (a *Appender) Append(ctx context.Context, msgs []*nats.Msg) (g *Appended, err error) {
	if len(msgs) == 0 || len(msgs) > batchMost {
		return nil, fmt.Errorf("bus: a group has 1 to %d messages, not %d", batchMost, len(msgs))
	}
	size := 0
	for _, m := range msgs {
		size += len(m.Data)
	}
	if len(msgs) >= atomicLeast && size < len(msgs)*atomicSize {
		return a.send(ctx, msgs)
	}
	for i := range msgs {
		if g, err = a.send(ctx, msgs[i:i+1]); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// send sends one message, or several as an atomic batch.
func (a *Appender) send(ctx context.Context, msgs []*nats.Msg) (*Appended, error) {
	if a.before != nil {
		if err := a.Wait(ctx, a.before); err != nil {
			return nil, err
		}
	}
	if !a.nc.IsConnected() {
		return nil, a.fail(unread(a.stream, nats.ErrDisconnected))
	}
	g := &Appended{Last: a.last + uint64(len(msgs)), done: make(chan struct{})}
	token := strconv.FormatUint(g.Last, 36)
	if err := a.expect(token, g); err != nil {
		return nil, err
	}
	msgs[0].Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(a.last, 10))
	if len(msgs) > 1 {
		id := nuid.Next()
		for i, m := range msgs {
			m.Header.Set(headerBatchID, id)
			m.Header.Set(headerBatchSequence, strconv.Itoa(i+1))
		}
		msgs[len(msgs)-1].Header.Set(headerBatchCommit, "1")
	}
	msgs[len(msgs)-1].Reply = a.inbox + "." + token
	for _, m := range msgs {
		if err := a.nc.PublishMsg(m); err != nil {
			return nil, a.fail(unread(a.stream, err))
		}
	}
	a.last, a.before = g.Last, g
	return g, nil
}

// expect registers the answer of what is about to be sent.
func (a *Appender) expect(token string, g *Appended) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	a.pending[token] = g
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
	close(g.done)
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
