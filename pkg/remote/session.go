package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A session is the worker's side of one call, and the sink of its rows.
type session struct {
	server    *Server
	inbox     string // the caller's
	heartbeat time.Duration
	readOnly  bool
	ctx       context.Context // of the call, which the session is
	cancel    context.CancelCauseFunc

	heard    atomic.Int64 // when the caller last was, in Unix nanoseconds
	granted  atomic.Int64 // the last chunk that may be sent
	credited chan struct{}

	sent   int64 // chunks
	begun  bool
	broken error // why no more chunks can be sent
	buf    []byte
	result *end
}

var _ RowSink = (*session)(nil)

func (c *session) message(k kind) *nats.Msg {
	m := nats.NewMsg(c.inbox)
	m.Header.Set(headerKind, string(k))
	return m
}

// control hears what the caller says.
func (c *session) control(m *nats.Msg) {
	c.heard.Store(time.Now().UnixNano())
	switch kind(m.Header.Get(headerKind)) {
	case kindCredit:
		n, err := strconv.ParseInt(m.Header.Get(headerNumber), 10, 64)
		if err != nil || n <= c.granted.Load() {
			return
		}
		c.granted.Store(n) // by this goroutine alone
		select {
		case c.credited <- struct{}{}:
		default:
		}
	case kindCancel:
		c.cancel(errCancelled)
	}
}

// beat says that the worker is there and notices when the caller is not (law 3).
func (c *session) beat() {
	t := time.NewTicker(c.heartbeat)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		if time.Since(time.Unix(0, c.heard.Load())) > silence(c.heartbeat) {
			c.cancel(errCallerGone)
			return
		}
		// A message that cannot be sent is heard as silence.
		_ = c.server.Conn.PublishMsg(c.message(kindAlive))
	}
}

// await waits until chunk n is credited.
func (c *session) await(n int64, patience time.Duration) error {
	if c.granted.Load() >= n {
		return c.gone()
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	for c.granted.Load() < n {
		select {
		case <-c.credited:
		case <-c.ctx.Done():
			return c.gone()
		case <-t.C:
			return athena.Errorf(athena.CodeTimeout, "the result was not read any further for %s; the query was ended", patience)
		}
	}
	return c.gone()
}

func (c *session) gone() error {
	if c.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", c.ctx.Err(), context.Cause(c.ctx))
}

// send sends the next chunk once it is credited (law 2), with its number (law 4).
func (c *session) send(k kind, data []byte) error {
	if c.broken == nil {
		c.broken = c.await(c.sent+1, orDefault(c.server.Patience, time.Minute))
	}
	if c.broken != nil {
		return c.broken
	}
	c.sent++
	m := c.message(k)
	m.Header.Set(headerNumber, strconv.FormatInt(c.sent, 10))
	m.Data = data
	return c.server.Conn.PublishMsg(m)
}

// Columns begins the answer.
func (c *session) Columns(cols []driver.Column) error {
	if c.begun {
		return errors.New("remote: columns were given twice")
	}
	c.begun = true
	if cols == nil {
		cols = []driver.Column{}
	}
	raw, err := json.Marshal(cols)
	if err != nil {
		return err
	}
	return c.send(kindColumns, raw)
}

// Row adds a row.
func (c *session) Row(row []byte) error {
	if !c.begun {
		return errors.New("remote: a row came before the columns")
	}
	c.buf = append(append(c.buf, row...), '\n')
	return c.flush(chunkSize)
}

// flush sends full chunks until less than keep is left; with 0, all.
func (c *session) flush(keep int) error {
	rest := c.buf
	for len(rest) > 0 && len(rest) >= keep {
		n := min(len(rest), chunkSize)
		if err := c.send(kindRows, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if len(rest) < len(c.buf) {
		c.buf = append(c.buf[:0], rest...)
	}
	return nil
}

// Done says how the statement ended.
func (c *session) Done(rowsAffected int64, truncated bool) {
	c.result = &end{RowsAffected: rowsAffected, Truncated: truncated}
}

// finish sends the last message, which needs no credit.
func (c *session) finish(k kind, e end) {
	raw, err := json.Marshal(e)
	if err != nil { // details of a driver that do not encode
		raw, _ = json.Marshal(end{Error: newFailure(err)})
	}
	m := c.message(k)
	m.Header.Set(headerNumber, strconv.FormatInt(c.sent+1, 10))
	m.Data = raw
	_ = c.server.Conn.PublishMsg(m) // or the caller hears of it by silence
}
