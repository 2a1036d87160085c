package changefeed

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	pollEvery = 2 * time.Second
	// linger is how long a stream is followed that nobody reads any more: who
	// asks again and again finds what is new at hand.
	linger = 30 * time.Second

	ringBytes  = 8 << 20 // kept of the end of a stream
	fetchBytes = 1 << 20 // asked for at once by a hub
	fetchMost  = 1000    // messages
	// readBytes is what a reader holds at once, while its peer takes it.
	readBytes = 256 << 10
	readMost  = 64 // messages

	// retries is how often a message that is known to be there is asked for
	// again at once, with pauses from 5 ms on: a replica may lag behind.
	retries   = 7
	infoLimit = 5 * time.Second
)

// Feeds follows the streams that are read in this process, each of them once,
// whoever many read it: a reader at the end of a stream costs the bus nothing.
// It is safe for concurrent use. Run must be running for readers to see what is
// new.
type Feeds struct {
	store *Store
	log   *slog.Logger
	ring  int // bytes that each hub keeps of its stream's end

	mu    sync.Mutex
	hubs  map[string]*hub // by client
	start func(*hub)      // set while Run runs
}

// NewFeeds returns the feeds of the store's streams. A nil logger discards.
func NewFeeds(store *Store, log *slog.Logger) *Feeds {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Feeds{store: store, log: log, ring: ringBytes, hubs: map[string]*hub{}}
}

// Run follows the streams until ctx is done. Hints tell it of new messages; what
// they miss is found within two seconds.
func (f *Feeds) Run(ctx context.Context) error {
	hints, err := f.store.bus.Conn().Subscribe(bus.CDCHint(bus.Any), f.hint)
	if err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "hints of changes cannot be subscribed to")
	}
	defer func() { _ = hints.Unsubscribe() }()
	f.mu.Lock()
	var following sync.WaitGroup
	f.start = func(h *hub) { following.Go(func() { h.follow(ctx) }) }
	for _, h := range f.hubs {
		f.start(h)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.start = nil
	f.mu.Unlock()
	following.Wait()
	return nil
}

// hint takes the word of a capture's worker, or of another process, that there
// is more.
func (f *Feeds) hint(msg *nats.Msg) {
	seq, err := strconv.ParseUint(string(msg.Data), 10, 64)
	if err != nil {
		return
	}
	f.mu.Lock()
	h := f.hubs[bus.ParseCDCHint(msg.Subject)]
	f.mu.Unlock()
	if h != nil {
		h.expect(seq)
	}
}

// join returns the hub of a client, with one reader more.
func (f *Feeds) join(client string) *hub {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hubs[client]
	if h == nil {
		h = &hub{
			feeds: f, client: client, stream: bus.CDCStream(client),
			moved: make(chan struct{}), wake: make(chan struct{}, 1),
		}
		f.hubs[client] = h
		if f.start != nil {
			f.start(h)
		}
	}
	h.readers++
	return h
}

func (f *Feeds) leave(h *hub) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h.readers--
	h.left = time.Now()
}

// forget removes a hub that nobody has used for a while, or says no.
func (f *Feeds) forget(h *hub) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.readers > 0 || time.Since(h.left) < linger {
		return false
	}
	delete(f.hubs, h.client)
	return true
}

// A message is one of a stream, as readers share it.
type message struct {
	seq   uint64
	table driver.TableName
	pos   cdc.Position // of the last change; of the one before the message if it holds none
	first cdc.Position // of the first change; empty if it holds none
	prev  cdc.Position // of the change before that; empty if it is not told
	data  []byte       // lines; empty if it holds no changes
}

func newMessage(r bus.Raw) *message {
	m := &message{seq: r.Sequence, pos: cdc.Position(r.Header.Get(HeaderPos))}
	_, schema, table, _, ok := bus.ParseCDC(r.Subject)
	if !ok {
		return m // of the progress of a snapshot
	}
	m.table, m.data = driver.TableName{Schema: schema, Table: table}, r.Data
	m.first, m.prev = cdc.Position(r.Header.Get(HeaderFirst)), cdc.Position(r.Header.Get(HeaderPrev))
	if m.first == "" {
		if pos, _, ok := head(m.data); ok {
			m.first = cdc.Position(pos)
		}
	}
	return m
}

func (m *message) size() int { return len(m.data) + 256 }

// begin is the cursor before the message.
func (m *message) begin() cdc.Position {
	switch {
	case m.first == "":
		return max(m.pos, Genesis)
	case m.prev != "":
		return m.prev
	}
	return before(m.first)
}

// A hub follows the end of one stream for all that read it.
type hub struct {
	feeds          *Feeds
	client, stream string
	wake           chan struct{} // holds a token when there is something to look at

	// Under feeds.mu.
	readers int
	left    time.Time // when the last reader left

	mu    sync.Mutex
	born  time.Time     // which stream of this name it is; zero if there is none
	epoch uint64        // counts the streams that were lost
	last  uint64        // the last message that was looked at
	want  uint64        // the last one that is known to be there
	ring  []*message    // consecutive; the last one is last
	bytes int           // of the ring
	moved chan struct{} // closed, and made anew, when any of this changes
}

// expect notes that the stream reaches up to seq.
func (h *hub) expect(seq uint64) {
	h.mu.Lock()
	more := seq > h.want
	h.want = max(h.want, seq)
	h.mu.Unlock()
	if more {
		h.nudge()
	}
}

func (h *hub) nudge() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// follow fetches what is new until ctx is done or nobody reads any more.
func (h *hub) follow(ctx context.Context) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		h.catchUp(ctx)
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-poll.C:
			if h.feeds.forget(h) {
				return
			}
			if _, _, err := h.look(ctx); err != nil && ctx.Err() == nil {
				h.feeds.log.Warn("a stream of changes cannot be looked at", telemetry.KeyClient, h.client, telemetry.KeyError, err.Error())
			}
		}
	}
}

// catchUp fetches up to what is known to be there. What cannot be had now is
// left to the next poll or hint.
func (h *hub) catchUp(ctx context.Context) {
	for tries := 0; tries < retries; {
		h.mu.Lock()
		from, want, born := h.last+1, h.want, h.born
		h.mu.Unlock()
		if from > want || born.IsZero() {
			return
		}
		raws, err := h.feeds.store.bus.Read(ctx, h.stream, from, fetchMost, fetchBytes)
		if len(raws) > 0 {
			h.append(raws, born)
			tries = 0
			continue
		}
		if err != nil && ctx.Err() == nil {
			h.feeds.log.Warn("a stream of changes cannot be read", telemetry.KeyClient, h.client, telemetry.KeyError, err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond << tries):
			tries++
		}
	}
}

// append takes what was read of the stream that was born then.
func (h *hub) append(raws []bus.Raw, born time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.born != born || raws[len(raws)-1].Sequence <= h.last {
		return
	}
	if raws[0].Sequence != h.last+1 { // what is between has been let go of
		h.ring, h.bytes = nil, 0
	}
	for _, r := range raws {
		m := newMessage(r)
		h.ring = append(h.ring, m)
		h.bytes += m.size()
		h.last = m.seq
	}
	for h.bytes > h.feeds.ring && len(h.ring) > 1 {
		h.bytes -= h.ring[0].size()
		h.ring[0] = nil
		h.ring = h.ring[1:]
	}
	h.want = max(h.want, h.last)
	h.broadcast()
}

// broadcast is called under mu.
func (h *hub) broadcast() {
	close(h.moved)
	h.moved = make(chan struct{})
}

// look asks for the stream's state and takes it over. The state is nil if there
// is no stream; epoch is the hub's with it.
func (h *hub) look(ctx context.Context) (info *jetstream.StreamInfo, epoch uint64, err error) {
	for {
		h.mu.Lock()
		known := h.position()
		h.mu.Unlock()
		if info, err = h.feeds.store.streamInfo(ctx, h.client); err != nil {
			return nil, 0, err
		}
		if epoch, ok := h.adopt(info, known); ok {
			return info, epoch, nil
		}
	}
}

// position is what a hub knows of its stream.
type position struct{ epoch, last, want uint64 }

func (h *hub) position() position { return position{h.epoch, h.last, h.want} }

// adopt takes over the state that was asked for when the hub knew so much. It is
// not ok if somebody else has seen another stream meanwhile: then nobody knows
// which of the two is the newer one.
func (h *hub) adopt(info *jetstream.StreamInfo, known position) (epoch uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.epoch != known.epoch:
		return 0, false
	case info == nil && h.born.IsZero():
	case info == nil:
		h.lose(time.Time{}, 0)
	case h.born.IsZero():
		h.born, h.last, h.want = info.Created, info.State.LastSeq, info.State.LastSeq
		h.broadcast()
	case h.born != info.Created || info.State.LastSeq < known.last:
		h.lose(info.Created, info.State.LastSeq)
	default:
		if h.want == known.want { // no hint came meanwhile
			h.want = max(h.last, info.State.LastSeq)
		}
		if h.want > h.last {
			h.nudge()
		}
	}
	return h.epoch, true
}

// lose takes note that the stream is not the one that it was. It is called under
// mu.
func (h *hub) lose(born time.Time, last uint64) {
	h.born, h.last, h.want = born, last, last
	h.ring, h.bytes = nil, 0
	h.epoch++
	h.broadcast()
}

// take appends messages from seq on to dst, as many as a reader may hold. If
// there are none the reader is at the end or, if behind is true, must fetch them
// himself.
func (h *hub) take(dst []*message, seq uint64) (_ []*message, behind bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if seq > h.last {
		return dst, false
	}
	begin := h.last + 1 - uint64(len(h.ring))
	if seq < begin {
		return dst, true
	}
	bytes := 0
	for _, m := range h.ring[seq-begin:] {
		if dst = append(dst, m); len(dst) == readMost {
			break
		}
		if bytes += m.size(); bytes >= readBytes {
			break
		}
	}
	return dst, false
}

// around returns the first message at hand whose changes are not all up to a
// cursor, and whether it is known to be the first of all such.
func (h *hub) around(cursor cdc.Position) (seq uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, _ := slices.BinarySearchFunc(h.ring, cursor, func(m *message, cursor cdc.Position) int {
		if m.pos > cursor {
			return 1
		}
		return -1
	})
	if n == 0 || n == len(h.ring) {
		return 0, false
	}
	return h.ring[n].seq, true
}

// state says which stream the hub follows, and up to where it has looked at it.
func (h *hub) state() (epoch uint64, born time.Time, last uint64, moved <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.epoch, h.born, h.last, h.moved
}

// streamInfo asks for the state of a client's stream; nil if there is none.
func (s *Store) streamInfo(ctx context.Context, client string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, infoLimit)
	defer cancel()
	stream, err := s.bus.JetStream().Stream(ctx, bus.CDCStream(client))
	switch {
	case err == nil:
		return stream.CachedInfo(), nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, nil
	}
	return nil, unreadable(client, err)
}

// Whole reports whether a client's stream has everything since its first snapshot:
// who reads it from its beginning needs no other.
func (s *Store) Whole(ctx context.Context, client string) (bool, error) {
	c, ok := s.Capture(client)
	if !ok || c.Snapshot != SnapshotInitial {
		return false, nil
	}
	info, err := s.streamInfo(ctx, client)
	return err == nil && (info == nil || info.State.FirstSeq <= 1), err
}

func unreadable(client string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "the changes of client %q cannot be read now", client).RetryIn(time.Second)
}
