package cdc

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// batch is how many changes are taken at once. Between them it is seen whether
// the reader may still have them.
const batch = 256

// stream gives changes as they are stored, as server-sent events or over a
// WebSocket, until the reader goes, may no longer have them, or does not take
// them.
func (f *Family) stream(c *gin.Context) {
	q := params.Of(c)
	want := readQuery(q)
	if !allowed(c, reading, q.Err()) {
		return
	}
	if err := want.resume(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	filter, encode, err := want.compile()
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	// Before the client is looked at, so that no change of it is missed.
	g := f.guard(c)
	defer g.release()
	client := f.client(c, reading)
	if client == nil {
		return
	}
	reader, err := f.cfg.Feeds.Open(c.Request.Context(), client.Name, want.from, filter)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	defer reader.Close()
	s := &subscriber{Family: f, guard: g, reader: reader, encode: encode, draining: api.Draining(c.Request.Context())}
	if isWebSocket(c.Request) {
		s.webSocket(c, want.envelope)
		return
	}
	s.events(c)
}

// A query is what a reader asks for.
type query struct {
	changefeed.FilterSpec
	from, envelope string
}

func readQuery(q *params.Query) (want query) {
	want.Tables = changefeed.SplitTables(q.String("tables"))
	if text := q.String("ops"); text != "" {
		for op := range strings.SplitSeq(text, ",") {
			want.Ops = append(want.Ops, cdc.Op(strings.TrimSpace(op)))
		}
	}
	want.Where = q.String("where")
	want.from, want.envelope = q.String("from"), q.String("envelope")
	return want
}

// resume has the id of the last event that a reader had win over where it asked
// to begin.
func (q *query) resume(c *gin.Context) error {
	if _, err := changefeed.ParseFrom(q.from); err != nil {
		return err
	}
	const header = "Last-Event-ID"
	id := c.GetHeader(header)
	if id == "" {
		return nil
	}
	cursor, err := changefeed.ParseCursor(header, id)
	q.from = string(cursor)
	return err
}

func (q *query) compile() (*changefeed.Filter, cdc.Envelope, error) {
	filter, err := changefeed.NewFilter(q.FilterSpec)
	if err != nil {
		return nil, nil, err
	}
	encode, err := changefeed.EnvelopeFor(q.envelope)
	return filter, encode, err
}

// A guard judges an open request anew when the grounds on which it was let in may
// have changed.
type guard struct {
	family  *Family
	key     string        // as it was presented
	client  string        // whose changes they are
	changed chan struct{} // has an element if something may have
	release func()

	mu  sync.Mutex
	cut func() // ends the connection; nil if it needs no end, or is given back
}

// grace is how long the handler has to see that something has changed. After
// that it is held up by a reader who takes nothing.
const grace = 500 * time.Millisecond

// guard begins to watch. release must be called in the end.
func (f *Family) guard(c *gin.Context) *guard {
	presented, _ := auth.FromHeader(c.Request.Header) // which let the request in
	g := &guard{family: f, key: presented, client: c.Param("client"), changed: make(chan struct{}, 1)}
	g.changed <- struct{}{} // the key may be over since
	notice := func(mine string) func(string) {
		return func(name string) {
			if name != mine {
				return
			}
			select {
			case g.changed <- struct{}{}:
				time.AfterFunc(grace, g.enforce)
			default:
			}
		}
	}
	client := f.cfg.Clients.Subscribe(notice(g.client))
	key := f.cfg.Keys.Subscribe(notice(auth.FromContext(c.Request.Context()).Key))
	g.release = func() {
		client()
		key()
		g.onCut(nil)
	}
	return g
}

// onCut says how the connection is ended by another goroutine.
func (g *guard) onCut(cut func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = cut
}

// enforce ends the connection of a reader who may have no more and whose handler
// does not see it.
func (g *guard) enforce() {
	if len(g.changed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if g.check(ctx) == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cut != nil {
		g.cut()
	}
}

// check reports why the reader may no longer have changes, or nil.
func (g *guard) check(ctx context.Context) error {
	p, err := g.family.cfg.Verify.Verify(ctx, g.key)
	if err != nil {
		return err
	}
	_, err = g.family.again.Check(auth.NewContext(ctx, p), reading, g.client)
	return err
}

// changes is check where there is something to look at, and nil else.
func (g *guard) changes(ctx context.Context) error {
	select {
	case <-g.changed:
		return g.check(ctx)
	default:
		return nil
	}
}

// A subscriber is an open stream.
type subscriber struct {
	*Family
	guard    *guard
	reader   *changefeed.Reader
	encode   cdc.Envelope
	draining <-chan struct{}
	cursor   cdc.Position // all up to it was sent, or was not wanted
	told     cdc.Position // the cursor that the peer knows
	buf      []byte
}

// A peer is the other side of a stream. A method that fails has found it gone.
type peer interface {
	// change sends one change, in the envelope that was asked for.
	change(ctx context.Context, pos cdc.Position, data []byte) error
	// flush has what was sent be on its way.
	flush(ctx context.Context, cursor cdc.Position) error
	// beat shows that the stream lives, and tells the cursor unless the peer knows
	// it.
	beat(ctx context.Context, cursor cdc.Position, known bool) error
	// fail says why the stream ends, bye that the server stops.
	fail(err *athena.Error, cursor cdc.Position)
	bye(cursor cdc.Position)
}

var errGone = errors.New("cdc: the reader is gone")

// pump sends until the stream ends, or ctx does, which is that of the connection.
func (s *subscriber) pump(ctx context.Context, p peer) {
	s.cursor = s.reader.Cursor()
	if err := s.run(ctx, p); err != nil && ctx.Err() == nil && !errors.Is(err, errGone) {
		p.fail(athena.AsError(err), s.cursor)
	}
}

func (s *subscriber) run(ctx context.Context, p peer) error {
	heartbeat := time.NewTicker(s.cfg.Heartbeat)
	defer heartbeat.Stop()
	now := make(chan struct{})
	close(now)
	for {
		moved := s.reader.Moved()
		b, err := s.reader.Take(ctx, batch)
		if err != nil {
			return err
		}
		if err := s.send(ctx, p, b); err != nil {
			return err
		}
		if b.More {
			moved = now
		}
		select {
		case <-moved:
		case <-s.guard.changed:
			err = s.guard.check(ctx)
		case <-heartbeat.C:
			err = s.beat(ctx, p)
		case <-s.draining:
			p.bye(s.cursor)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// send sends a batch, as long as the reader may have it.
func (s *subscriber) send(ctx context.Context, p peer, b changefeed.Batch) error {
	for _, line := range b.Lines {
		if err := s.guard.changes(ctx); err != nil {
			return err
		}
		pos := changefeed.PositionOf(line)
		var err error
		if s.buf, err = s.encode.Append(s.buf[:0], line); err != nil {
			return noForm(line, err)
		}
		if len(s.buf) == 0 { // the envelope leaves it out
			s.cursor = pos
			continue
		}
		begun := time.Now()
		if err := p.change(ctx, pos, s.buf); err != nil {
			return errors.Join(errGone, err)
		}
		s.cursor, s.told = pos, pos
		if err := s.late(begun); err != nil {
			return err
		}
	}
	if len(b.Lines) > 0 {
		begun := time.Now()
		if err := p.flush(ctx, b.Cursor); err != nil {
			return errors.Join(errGone, err)
		}
		if err := s.late(begun); err != nil {
			return err
		}
		if cap(s.buf) > 64<<10 {
			s.buf = nil
		}
	}
	s.cursor = b.Cursor
	return nil
}

// noForm is the error for a change that an envelope cannot express.
func noForm(line []byte, err error) error {
	return athena.Wrap(athena.CodeInvalidRequest, err, "the change at %s has no form in this envelope; choose athena, or leave its operation out by ops", changefeed.PositionOf(line)).At("envelope")
}

// beat has the grounds be judged again, whatever was noticed of them.
func (s *subscriber) beat(ctx context.Context, p peer) error {
	if err := s.guard.check(ctx); err != nil {
		return err
	}
	begun := time.Now()
	if err := p.beat(ctx, s.cursor, s.cursor == s.told); err != nil {
		return errors.Join(errGone, err)
	}
	s.told = s.cursor
	return s.late(begun)
}

// late is the error for a reader who took too long for what was written to it.
func (s *subscriber) late(begun time.Time) error {
	if time.Since(begun) <= s.cfg.Patience {
		return nil
	}
	return athena.Errorf(athena.CodeTimeout, "the reader took more than %s for what it was sent; it may come again behind its cursor, and has lost nothing", s.cfg.Patience)
}
