package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A Caller has queries run by workers. It is safe for concurrent use.
type Caller struct {
	Conn *nats.Conn
	// Heartbeat is how often both sides of a call say that they are there;
	// DefaultHeartbeat if zero. One is lost after three.
	Heartbeat time.Duration
}

// tries is how many workers may refuse a request before it is given up.
const tries = 3

// Query has a worker run the request for a client. The rows come as they are
// read; they are a *Rows. Cancelling ctx, or closing the rows, reaches the
// backend.
//
// Errors are those of the road, and backend_unavailable if no worker serves the
// client or if the worker was lost. If the detail "effect" is athena.EffectUnknown the
// statement may have run; it is never sent a second time.
func (c *Caller) Query(ctx context.Context, client string, req Request) (driver.Rows, error) {
	req.Client = client
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("remote: encode request: %w", err)
	}
	if most := c.Conn.MaxPayload(); c.Conn.IsConnected() && int64(len(body)) > most-4096 {
		return nil, athena.Errorf(athena.CodePayloadTooLarge, "the query and its params take %d bytes; this deployment's bus carries at most %d", len(body), most-4096).At("query")
	}
	for try := 1; ; try++ {
		rows, refused, err := c.call(ctx, client, body, req.ReadOnly)
		if err == nil {
			return rows, nil
		}
		if !refused || try == tries { // law 1
			return nil, err
		}
	}
}

// call puts the request to one worker; refused says that nothing was run.
// ErrNoWorker is in the chain of the error where nobody serves the client.
var ErrNoWorker = errors.New("remote: no worker serves the client")

func (c *Caller) call(ctx context.Context, client string, body []byte, readOnly bool) (_ *Rows, refused bool, err error) {
	if !c.Conn.IsConnected() { // it would be kept and sent too late
		return nil, false, athena.Errorf(athena.CodeBusUnavailable, "the bus cannot be reached; nothing was run").RetryIn(time.Second)
	}
	r := &Rows{
		ctx: ctx, conn: c.Conn, readOnly: readOnly, heartbeat: clampHeartbeat(c.Heartbeat),
		in: make(chan *nats.Msg, window+4), stop: make(chan struct{}),
	}
	r.heard.Store(time.Now().UnixNano())
	msg := nats.NewMsg(bus.QueryRequest(client))
	msg.Reply = c.Conn.NewInbox()
	msg.Header.Set(headerHeartbeat, r.heartbeat.String())
	msg.Data = body
	r.sub, err = c.Conn.Subscribe(msg.Reply, r.hear)
	if err == nil {
		err = c.Conn.PublishMsg(msg)
	}
	if err != nil {
		r.abandon()
		return nil, false, athena.Wrap(athena.CodeBusUnavailable, err, "the bus does not take the query; nothing was run").RetryIn(time.Second)
	}

	first, err := r.receive()
	switch {
	case errors.Is(err, errSilent):
		err = athena.Wrap(athena.CodeBackendUnavailable, err, "the worker that serves client %q does not answer; nothing was run", client)
	case err != nil:
	case first.Header.Get("Status") == "503":
		err = athena.Wrap(athena.CodeBackendUnavailable, ErrNoWorker, "client %q cannot be reached from here, and no worker that serves it is running", client)
	case kind(first.Header.Get(headerKind)) == kindRefuse:
		refused, err = true, r.finished(first)
	case kind(first.Header.Get(headerKind)) != kindAccept || first.Reply == "":
		err = errors.New("remote: the worker answers in a way that is not understood")
	}
	if err == nil {
		r.control, err = first.Reply, ctx.Err() // the last moment to leave without an effect
	}
	if err != nil {
		if r.control != "" {
			_ = r.say(kindCancel, 0)
		}
		r.abandon()
		return nil, refused, err
	}
	r.start()
	if refused, err := r.begin(); err != nil {
		r.Close()
		return nil, refused, err
	}
	return r, false, nil
}

// Rows is the result of a forwarded query.
type Rows struct {
	ctx       context.Context // of the query, which the rows are
	conn      *nats.Conn
	readOnly  bool
	heartbeat time.Duration

	sub     *nats.Subscription
	control string // the worker's inbox
	in      chan *nats.Msg
	heard   atomic.Int64 // when the worker last was, in Unix nanoseconds
	stop    chan struct{}
	beats   sync.WaitGroup

	columns []driver.Column
	chunk   []byte // what is not yet read of the last one
	row     []byte
	partial []byte // a row that began in an earlier chunk
	number  int64  // of the last chunk
	granted int64
	ended   bool
	closed  bool
	end     end
	err     error
}

var _ driver.Rows = (*Rows)(nil)

var (
	errSilent = errors.New("remote: nothing is heard of the worker")
	errGap    = errors.New("remote: a part of the answer did not arrive")
)

// hear takes what the worker says. What it may say without being read is bounded
// by its credit; the channel holds that.
func (r *Rows) hear(m *nats.Msg) {
	r.heard.Store(time.Now().UnixNano())
	if kind(m.Header.Get(headerKind)) == kindAlive {
		return
	}
	select {
	case r.in <- m:
	default: // more than was credited: the gap is noticed when it is read
	}
}

// receive waits for the next message, and no longer than the worker is heard of
// (law 3).
func (r *Rows) receive() (*nats.Msg, error) {
	for {
		select {
		case m := <-r.in:
			return m, nil
		default:
		}
		left := silence(r.heartbeat) - time.Since(time.Unix(0, r.heard.Load()))
		if left <= 0 {
			return nil, errSilent
		}
		t := time.NewTimer(left)
		select {
		case m := <-r.in:
			t.Stop()
			return m, nil
		case <-r.ctx.Done():
			t.Stop()
			return nil, r.ctx.Err()
		case <-t.C:
		}
	}
}

func (r *Rows) say(k kind, n int64) error {
	m := nats.NewMsg(r.control)
	m.Header.Set(headerKind, string(k))
	if n > 0 {
		m.Header.Set(headerNumber, strconv.FormatInt(n, 10))
	}
	return r.conn.PublishMsg(m)
}

// start gives the first credit: from here on the statement may run.
func (r *Rows) start() {
	r.granted = window
	_ = r.say(kindCredit, r.granted) // if it is not heard, the worker falls silent
	r.beats.Go(func() {
		t := time.NewTicker(r.heartbeat)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				_ = r.say(kindAlive, 0)
			case <-r.ctx.Done():
				_ = r.say(kindCancel, 0)
				return
			case <-r.stop:
				return
			}
		}
	})
}

// begin reads the columns, or what came instead of them: an error, or that the
// worker did not start after all.
func (r *Rows) begin() (refused bool, err error) {
	m, err := r.next()
	switch {
	case err != nil:
		return false, err
	case m == nil:
		return false, errors.New("remote: the answer has no columns")
	case kind(m.Header.Get(headerKind)) == kindRefuse:
		r.ended = true
		return true, r.finished(m)
	case kind(m.Header.Get(headerKind)) != kindColumns:
		return false, lost(r.readOnly, errGap)
	}
	return false, json.Unmarshal(m.Data, &r.columns)
}

// next returns the next chunk, and nil at the end; it gives new credit (law 2)
// and notices gaps (law 4).
func (r *Rows) next() (*nats.Msg, error) {
	m, err := r.receive()
	if errors.Is(err, errSilent) {
		err = lost(r.readOnly, err)
	}
	if err != nil {
		return nil, err
	}
	r.number++
	if n, err := strconv.ParseInt(m.Header.Get(headerNumber), 10, 64); err != nil || n != r.number {
		return nil, lost(r.readOnly, errGap)
	}
	if kind(m.Header.Get(headerKind)) == kindEnd {
		r.ended = true
		return nil, r.finished(m)
	}
	if r.granted-r.number <= window*3/4 {
		r.granted = r.number + window
		_ = r.say(kindCredit, r.granted) // if it is not heard, the worker tells
	}
	return m, nil
}

// finished reads the last message.
func (r *Rows) finished(m *nats.Msg) error {
	if err := json.Unmarshal(m.Data, &r.end); err != nil {
		return fmt.Errorf("remote: the end of the answer: %w", err)
	}
	if r.end.Error != nil {
		return r.end.Error.err()
	}
	return nil
}

// Columns describes the result.
func (r *Rows) Columns() []driver.Column { return r.columns }

// Next moves to the next row.
func (r *Rows) Next() bool {
	r.row, r.partial = nil, r.partial[:0]
	for r.err == nil && !r.ended && !r.closed {
		if i := bytes.IndexByte(r.chunk, '\n'); i >= 0 {
			r.row, r.chunk = r.chunk[:i], r.chunk[i+1:]
			if len(r.partial) > 0 {
				r.partial = append(r.partial, r.row...)
				r.row = r.partial
			}
			return true
		}
		r.partial = append(r.partial, r.chunk...)
		r.chunk = nil
		m, err := r.next()
		if err != nil {
			r.err = err
		} else if m != nil {
			r.chunk = m.Data
		}
	}
	return false
}

// AppendJSON appends the current row.
func (r *Rows) AppendJSON(dst []byte) []byte { return append(dst, r.row...) }

// RowsAffected is the engine's count, known once Next returned false.
func (r *Rows) RowsAffected() int64 { return r.end.RowsAffected }

// Truncated reports whether the request's row limit left rows out, known once
// Next returned false.
func (r *Rows) Truncated() bool { return r.end.Truncated }

// Err is the error that ended the rows.
func (r *Rows) Err() error { return r.err }

// Close ends the query at its backend if it has not ended, and returns Err.
func (r *Rows) Close() error {
	if r.closed {
		return r.err
	}
	r.closed = true
	close(r.stop)
	r.beats.Wait()
	if !r.ended {
		_ = r.say(kindCancel, 0)
	}
	r.abandon()
	return r.err
}

// abandon stops listening.
func (r *Rows) abandon() {
	if r.sub != nil {
		_ = r.sub.Unsubscribe()
	}
}
