package capture

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// messageBytes is where a message ends that has more than one change.
	messageBytes = 256 << 10
	// A group ends at groupMessages or groupBytes.
	groupMessages = 1000
	groupBytes    = 4 << 20
	// groupsAhead is how many groups may be under way: one is sent, and the next
	// one goes when that is answered.
	groupsAhead = 2
	// queueBytes is how much may wait to be sent before the source is held.
	queueBytes = 8 << 20
)

// A writer packs changes into messages and stores them in one stream, of which
// it is the only writer (law 2). Changes are given to it by one goroutine at a
// time; Run sends what has gathered.
//
// A message is complete when it is known whether its last change is the last of
// its transaction: with the next change or with the commit.
type writer struct {
	client string
	out    *bus.Appender
	enc    *cdc.Encoder
	pack   int
	most   int // bytes of one change; larger ones are taken apart
	large  *largeValues
	stored func(*group)       // called in order, when a group is stored
	trace  *telemetry.Tracing // may be nil

	subjects map[driver.TableName]string

	mu      sync.Mutex
	room    *sync.Cond // something was taken out of the queue, or all is over
	wake    chan struct{}
	queue   []*message // complete
	open    *message   // takes changes
	whole   bool       // so is open, were it sent now
	waiting int        // bytes of queue and open
	busy    int        // groups that are not answered
	err     error      // the first failure: all ends with it
	last    cdc.Position
	base    cdc.Position // of the log's last change
	reads   uint64       // rows that snapshots added behind base
	mark    string
	inTx    bool
}

// A message is one that is being made, or waits.
type message struct {
	subject     string
	data        []byte
	prev        cdc.Position // of the change before the first
	first, last cdc.Position
	count       int
	tx          string
	op          cdc.Op // empty if they differ
	mark        string
	committed   time.Time // of the last change's transaction; zero if it has none
	schema      *changefeed.TableVersion
}

// A group is what is sent together.
type group struct {
	messages int
	changes  int
	bytes    int
	last     cdc.Position
	mark     string
	seq      uint64
	// committed is when the last transaction was committed that has a change in
	// it; zero if none has.
	committed time.Time
	schemas   []changefeed.TableVersion
	sent      *bus.Appended
	span      trace.Span
}

// newWriter returns a writer that goes on behind a position and its mark.
func newWriter(c changefeed.Capture, out *bus.Appender, large *largeValues, most int, last cdc.Position, mark string, stored func(*group)) *writer {
	w := &writer{
		client: c.Client, out: out, enc: cdc.NewEncoder(c.Client), pack: c.Pack, most: most, large: large,
		stored: stored, subjects: map[driver.TableName]string{}, wake: make(chan struct{}, 1), mark: mark,
	}
	w.room = sync.NewCond(&w.mu)
	w.last = last
	w.base, w.reads = splitRead(last)
	return w
}

// splitRead takes the position of a snapshot's row apart.
func splitRead(p cdc.Position) (base cdc.Position, reads uint64) {
	i := strings.LastIndexByte(string(p), 'r')
	if i < 0 {
		return p, 0
	}
	n, err := strconv.ParseUint(string(p[i+1:]), 16, 64)
	if err != nil {
		return p, 0
	}
	return p[:i], n
}

// Change takes one change of the log.
func (w *writer) Change(ctx context.Context, c *cdc.Change) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.inTx {
		w.inTx = true
		crashpoint.Here(crashpoint.CDCRead)
	}
	if err := w.append(ctx, c); err != nil {
		return err
	}
	w.base, w.reads = c.Pos, 0
	return nil
}

// Row takes one row of a snapshot, written at a time if that is not 0. It stands
// behind what the log gave so far.
func (w *writer) Row(ctx context.Context, t driver.TableName, version int, written int64, key, after []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	return w.append(ctx, &cdc.Change{
		Pos: w.base.Read(w.reads), Op: cdc.Read, Schema: t.Schema, Table: t.Table,
		Key: key, After: after, SchemaVersion: version, WriteTime: written,
	})
}

// Columns announces the columns of a table whose rows a snapshot has.
func (w *writer) Columns(ctx context.Context, t driver.TableName, version int, columns []cdc.Column) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	return w.append(ctx, &cdc.Change{
		Pos: w.base.Read(w.reads), Op: cdc.Schema, Schema: t.Schema, Table: t.Table,
		SchemaVersion: version, Columns: columns,
	})
}

// Truncate has readers forget the rows of a table, which a snapshot has anew.
func (w *writer) Truncate(ctx context.Context, t driver.TableName, version int, written int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	return w.append(ctx, &cdc.Change{Pos: w.base.Read(w.reads), Op: cdc.Truncate, Schema: t.Schema, Table: t.Table, SchemaVersion: version, WriteTime: written})
}

// Note tells readers something that the log does not, as a logical message.
func (w *writer) Note(ctx context.Context, prefix string, content []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	err := w.append(ctx, &cdc.Change{Pos: w.base.Read(w.reads), Op: cdc.Message, Prefix: prefix, Content: content})
	w.poke() // nothing may follow for long
	return err
}

// Progress stores how far a snapshot is, behind the rows that it speaks of.
func (w *writer) Progress(ctx context.Context, p changefeed.SnapshotProgress) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seal()
	w.queue = append(w.queue, &message{subject: bus.CDCSnapshot(w.client, p.ID), data: raw, first: w.last, last: w.last, mark: w.mark})
	w.waiting += len(raw)
	return w.hold(ctx)
}

// Position is of the last change that was taken.
func (w *writer) Position() cdc.Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// Commit says that the transaction is complete.
func (w *writer) Commit(_ context.Context, mark string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inTx, w.mark = false, mark
	if w.open != nil {
		before := len(w.open.data)
		w.open.data = w.enc.MarkLast(w.open.data)
		w.waiting += len(w.open.data) - before
		w.open.mark = mark
		w.whole = true
	}
	w.poke()
	return w.err
}

// append encodes a change into the open message. The lock is held.
func (w *writer) append(ctx context.Context, c *cdc.Change) error {
	if w.err != nil {
		return w.err
	}
	subject := w.subject(c)
	if m := w.open; m == nil || m.subject != subject || m.count >= w.pack || len(m.data) >= messageBytes {
		w.seal()
		w.open = &message{subject: subject, prev: w.last, first: c.Pos, op: c.Op, data: takeBuffer()}
	}
	m := w.open
	before := len(m.data)
	if m.count > 0 {
		m.data = append(m.data, '\n')
	}
	at := len(m.data)
	m.data = w.enc.Append(m.data, c)
	if over := len(m.data) - at - w.most; over > 0 {
		smaller, err := w.large.shrink(ctx, c, over)
		if err != nil {
			return w.fail(err)
		}
		m.data = w.enc.Append(m.data[:at], smaller)
	}
	if m.count > 0 && len(m.data) > w.most { // it must be alone
		last := takeBuffer()
		last = append(last, m.data[at:]...)
		m.data = m.data[:before]
		w.seal()
		m = &message{subject: subject, prev: w.last, first: c.Pos, op: c.Op, data: last}
		w.open, before = m, 0
	}
	m.last, m.mark, w.last = c.Pos, w.mark, c.Pos
	m.count++
	if m.op != c.Op {
		m.op = ""
	}
	m.tx, m.committed = "", time.Time{}
	if c.Tx != nil {
		m.tx, m.committed = c.Tx.ID, c.Tx.At
	}
	if c.Op == cdc.Schema {
		m.schema = &changefeed.TableVersion{Table: driver.TableName{Schema: c.Schema, Table: c.Table}, Version: c.SchemaVersion, Columns: c.Columns}
	}
	w.whole = !w.inTx // else the commit's mark must go with it
	w.waiting += len(m.data) - before
	return w.hold(ctx)
}

// subject of a change; those of tables are made once.
func (w *writer) subject(c *cdc.Change) string {
	t := driver.TableName{Schema: c.Schema, Table: c.Table}
	if c.Op == cdc.Schema {
		return bus.CDCSchema(w.client, t.Schema, t.Table)
	}
	s, ok := w.subjects[t]
	if !ok {
		s = bus.CDC(w.client, t.Schema, t.Table)
		w.subjects[t] = s
	}
	return s
}

// seal completes the open message. The lock is held.
func (w *writer) seal() {
	if w.open == nil {
		return
	}
	w.queue = append(w.queue, w.open)
	w.open, w.whole = nil, false
	w.poke()
}

// hold waits while too much waits to be sent. The lock is held.
func (w *writer) hold(ctx context.Context) error {
	if w.waiting <= queueBytes || w.err != nil {
		return w.err
	}
	w.poke()
	stop := context.AfterFunc(ctx, w.rouse)
	defer stop()
	for w.waiting > queueBytes && w.err == nil && ctx.Err() == nil {
		w.room.Wait()
	}
	if w.err != nil {
		return w.err
	}
	return ctx.Err()
}

// Flush returns once everything that was taken is stored.
func (w *writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seal()
	w.poke()
	stop := context.AfterFunc(ctx, w.rouse)
	defer stop()
	for (w.waiting > 0 || w.busy > 0) && w.err == nil && ctx.Err() == nil {
		w.room.Wait()
	}
	if w.err != nil {
		return w.err
	}
	return ctx.Err()
}

// rouse wakes all that wait for room. The lock has none of them miss it.
func (w *writer) rouse() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.room.Broadcast()
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fail ends everything. The lock is held.
func (w *writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	w.room.Broadcast()
	w.poke()
	return w.err
}

// Run sends until ctx is done or something fails. What was taken and is not
// stored when it returns will be read again.
func (w *writer) Run(ctx context.Context) error {
	sent := make(chan *group, groupsAhead)
	var wg sync.WaitGroup
	wg.Go(func() { w.settle(ctx, sent) })
	defer wg.Wait()
	defer close(sent)
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			_ = w.fail(ctx.Err())
			return nil
		}
		for {
			msgs := w.take()
			if msgs == nil {
				break
			}
			g, err := w.send(ctx, msgs)
			if err != nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.fail(err)
			}
			sent <- g // never full: take keeps to groupsAhead
		}
		w.mu.Lock()
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// take takes the messages that go next out of the queue: nil if it is better to
// wait. One group alone is sent at once; what comes while it is under way goes
// together.
func (w *writer) take() []*message {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || w.busy >= groupsAhead || w.busy > 0 && w.waiting < groupBytes && len(w.queue) < groupMessages {
		return nil
	}
	if w.open != nil && w.whole && len(w.queue) < groupMessages {
		w.queue = append(w.queue, w.open)
		w.open, w.whole = nil, false
	}
	n, size := 0, 0
	for n < len(w.queue) && n < groupMessages && (n == 0 || size+len(w.queue[n].data) <= groupBytes) {
		size += len(w.queue[n].data)
		n++
	}
	if n == 0 {
		return nil
	}
	msgs := make([]*message, n)
	copy(msgs, w.queue)
	left := copy(w.queue, w.queue[n:])
	clear(w.queue[left:])
	w.queue = w.queue[:left]
	w.waiting -= size
	w.busy++
	w.room.Broadcast()
	return msgs
}

func (w *writer) send(ctx context.Context, msgs []*message) (*group, error) {
	crashpoint.Here(crashpoint.CDCPacked)
	g := &group{messages: len(msgs)}
	// Each group begins a trace; its messages carry it to who reads them.
	tctx, span := w.trace.Start(context.Background(), "cdc store", trace.SpanKindProducer, attribute.String(telemetry.KeyClient, w.client))
	g.span = span
	out := make([]*nats.Msg, len(msgs))
	for i, m := range msgs {
		h := nats.Header{
			changefeed.HeaderPos:   {string(m.last)},
			changefeed.HeaderFirst: {string(m.first)},
			changefeed.HeaderCount: {strconv.Itoa(m.count)},
			changefeed.HeaderMark:  {m.mark},
		}
		telemetry.Inject(tctx, h)
		if m.prev != "" {
			h[changefeed.HeaderPrev] = []string{string(m.prev)}
		}
		if m.tx != "" {
			h[changefeed.HeaderTx] = []string{m.tx}
		}
		if m.op != "" {
			h[changefeed.HeaderOp] = []string{string(m.op)}
		}
		out[i] = &nats.Msg{Subject: m.subject, Header: h, Data: m.data}
		g.changes += m.count
		g.bytes += len(m.data)
		g.last, g.mark = m.last, m.mark
		if !m.committed.IsZero() {
			g.committed = m.committed
		}
		if m.schema != nil {
			g.schemas = append(g.schemas, *m.schema)
		}
	}
	sent, err := w.out.Append(ctx, out)
	if err != nil {
		telemetry.End(span, string(athena.CodeOf(err)))
		return nil, err
	}
	for _, m := range msgs {
		giveBuffer(m.data)
	}
	g.sent, g.seq = sent, sent.Last
	crashpoint.Here(crashpoint.CDCPublished)
	return g, nil
}

// settle waits for the answers, in order.
func (w *writer) settle(ctx context.Context, sent <-chan *group) {
	for g := range sent {
		err := w.out.Wait(ctx, g.sent)
		telemetry.End(g.span, string(athena.CodeOf(err)))
		if err == nil {
			crashpoint.Here(crashpoint.CDCStored)
			w.stored(g) // law 1: only now
			crashpoint.Here(crashpoint.CDCConfirmed)
		}
		w.mu.Lock()
		w.busy--
		if err != nil {
			_ = w.fail(fmt.Errorf("capture: changes up to %s are not stored: %w", g.last, err))
		}
		w.room.Broadcast()
		w.mu.Unlock()
		w.poke()
	}
}

// Buffers of messages are used again.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

func takeBuffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

func giveBuffer(b []byte) {
	if cap(b) <= 2*messageBytes {
		buffers.Put(&b)
	}
}
