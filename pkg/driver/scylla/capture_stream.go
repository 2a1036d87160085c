package scylla

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A changeStream reads the logs of some tables, each of which is many streams that
// have an order of their own and none together. What is read comes through one
// channel to the goroutine of Run, which hands it over one batch after the other;
// so the order of the stream that is written is that of the hand-over, and a
// position says it by a counter.
//
// What the source does not keep, the stream of changes does. A mark says up to
// which time all streams have been handed over, and a place behind which every
// batch stands that is younger; the positions behind it tell the rest, so that each
// batch is handed over once, whenever the process ends. Three laws hold that:
//
//  1. A floor counts only once what was consumed before it has been handed over:
//     both take the same channel.
//  2. A mark without a batch is put on record only when everything is stored that
//     had been handed over before the mark was made.
//  3. What a stream of the log has handed over in order is a prefix of it. What was
//     later written into that prefix is late, and only the sweep finds it.
type changeStream struct {
	backend *Backend
	cfg     driver.ChangeConfig
	pace    pace
	source  source

	main, sweep   []*logReader
	watch, behind *watch // of the sessions of main and sweep; behind is nil without a sweep
	rest          *place // of a batch of which the end is not stored; nil is none
	gates         []*gate

	work       chan func(context.Context, driver.ChangeSink) error
	failed     chan error
	over       atomic.Bool // it has failed: nothing is handed over any more
	interrupts chan struct{}
	silent     atomic.Int32 // seconds since the cluster answered

	// Of the goroutine of Run.
	last  cdc.Position // of what was handed over or stored last
	trail trail
	told  time.Time // when mark was brought up to date

	handed handed // what the sweep need not hand over
	stray  map[batchID]bool

	mu        sync.Mutex
	mark      mark          // as of now
	moved     chan struct{} // closed when mark.floor moves
	confirmed uint64        // counter of the last batch that is stored
	sure      mark          // the highest mark that is confirmed
	complete  []driver.OneStreamLag
	streams   int
	committed time.Time
	heard     time.Time
	refusal   error // the last one
	late      uint64
}

// OpenChanges opens two sessions of its own, one for the sweep. It fails with a
// *driver.SourceLost if the log may have lost what comes next.
func (b *Backend) OpenChanges(ctx context.Context, cfg driver.ChangeConfig) (driver.ChangeStream, error) {
	s, err := b.openChanges(ctx, cfg)
	if err != nil {
		return nil, err // not s: a typed nil would not compare equal to nil
	}
	return s, nil
}

func (b *Backend) openChanges(ctx context.Context, cfg driver.ChangeConfig) (_ *changeStream, err error) {
	if err := b.checkLevel(); err != nil {
		return nil, err
	}
	m, err := parseMark(cfg.Confirmed)
	if err != nil {
		return nil, err
	}
	after, err := parsePlace(cfg.After)
	if err != nil {
		return nil, err
	}
	s := &changeStream{
		backend: b, cfg: cfg, last: cfg.After,
		work: make(chan func(context.Context, driver.ChangeSink) error, workAhead), failed: make(chan error, 1),
		interrupts: make(chan struct{}, 1), moved: make(chan struct{}), heard: time.Now(), stray: map[batchID]bool{},
	}
	counter := max(after.counter, m.counter)
	m.counter = counter
	if newPace(cfg.ChangeSetup).sweep == 0 {
		m.swept, m.since = m.floor, m.behind
	}
	s.mark, s.sure, s.confirmed = m, m, counter
	s.trail.begin(m.since, m.swept)
	if after.n > 0 && !after.last {
		s.rest = &after
	}
	src, err := b.verifySource(ctx, cfg, m.floor)
	if err != nil {
		return nil, err
	}
	s.source = src
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.recall(ctx, after); err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		s.closeSessions()
		return nil, err
	}
	b.captures.add(s)
	return s, nil
}

// workAhead is how much may wait to be handed over.
const workAhead = 64

// prepare makes the readers.
func (s *changeStream) prepare(ctx context.Context) error {
	p := newPace(s.cfg.ChangeSetup)
	shared := newGate(generations{backend: s.backend})
	groups := 0
	for i, name := range s.cfg.Tables {
		if err := checkHashes(s.cfg.Tables[:i+1]); err != nil {
			return err
		}
		tablets, err := s.backend.captureLayout(ctx, name)
		if err != nil {
			return err
		}
		g := shared
		if tablets {
			g = newGate(generations{s.backend, true, name})
		}
		if !slices.Contains(s.gates, g) {
			s.gates = append(s.gates, g)
		}
		n, err := s.countGroups(ctx, g)
		if err != nil {
			return err
		}
		groups += n
		t, err := s.describe(ctx, name)
		if err != nil {
			return err
		}
		if !t.options.enabled {
			s.noteOff(name) // Run fails with it, once the source is kept that says so
		}
		r := s.reader(name, t, g, s.mark.floor)
		r.take = handOver
		s.main = append(s.main, r)
		if err := r.inTime(time.Now()); err != nil {
			return err
		}
		if p.sweep > 0 {
			r := s.reader(name, t, g, s.mark.swept)
			r.take = sweepUp(s.source.Tables[name.String()].Since)
			s.sweep = append(s.sweep, r)
		}
	}
	s.pace = p.with(groups)
	for _, r := range s.main {
		r.advance = s.pace.advance(time.Since(r.start.time()))
	}
	for _, r := range s.sweep {
		r.advance = s.pace.behind(time.Since(r.start.time()))
	}
	return nil
}

func (s *changeStream) reader(name driver.TableName, t *captureTable, g *gate, start ticks) *logReader {
	r := &logReader{stream: s, name: name, hash: tableHash(name), gate: g, start: start, done: map[string]gocql.UUID{}}
	r.floor = &floor{table: name, begin: start}
	r.table.Store(t)
	r.ttl.Store(int64(t.ttl()))
	return r
}

// countGroups is how many groups of streams are read at once, as far as is known.
func (s *changeStream) countGroups(ctx context.Context, g *gate) (int, error) {
	begins, err := g.begins(ctx)
	if err != nil || len(begins) == 0 {
		return 0, err
	}
	at := begins[len(begins)-1]
	if _, err := g.enter(ctx, []time.Time{at}); err != nil {
		return 0, err
	}
	groups, _ := g.known(at)
	return len(groups), nil
}

// describe asks what a table is. One that the library must not read is an error,
// and described nevertheless.
func (s *changeStream) describe(ctx context.Context, name driver.TableName) (*captureTable, error) {
	t, err := s.backend.captureTable(ctx, name)
	if err == nil {
		t.client = s.cfg.Client
		err = t.readable()
	}
	return t, err
}

// connect opens the sessions.
func (s *changeStream) connect(ctx context.Context) (err error) {
	s.watch = &watch{stream: s}
	if s.watch.session, err = s.backend.openWatched(ctx, s.watch); err != nil {
		return err
	}
	s.watch.session.SetPageSize(s.pace.page)
	for _, r := range s.main {
		r.session = s.watch.session
	}
	if len(s.sweep) == 0 {
		return nil
	}
	s.behind = &watch{stream: s}
	if s.behind.session, err = s.backend.openWatched(ctx, s.behind); err != nil {
		return err
	}
	s.behind.session.SetPageSize(s.pace.page)
	for _, r := range s.sweep {
		r.session = s.behind.session
	}
	return nil
}

func (s *changeStream) closeSessions() {
	for _, w := range []*watch{s.watch, s.behind} {
		if w != nil && w.session != nil {
			w.session.Close()
		}
	}
}

// Run reads until ctx is done. The sessions are of no further use then.
func (s *changeStream) Run(ctx context.Context, sink driver.ChangeSink) error {
	g, work := errgroup.WithContext(ctx)
	// The library's questions cannot be cancelled, but they end with the session.
	stop := context.AfterFunc(work, s.closeSessions)
	defer stop()
	g.Go(func() error { return s.record(work) })
	g.Go(func() error { return s.read(work) })
	g.Go(func() error { return s.guard(work, s.source) })
	g.Go(func() error { return s.loop(work, sink) })
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-work.Done():
		select {
		case err = <-done:
		case <-time.After(stopTimeout):
			err = errors.Join(context.Cause(work), errHangs)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// stopTimeout bounds how long the library may take to end.
const stopTimeout = 20 * time.Second

// read runs the readers, once what is left of a batch has been read.
func (s *changeStream) read(ctx context.Context) error {
	if s.rest != nil {
		if err := s.readRest(ctx); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	s.watch.follow(ctx, s.main)
	if s.behind != nil {
		s.behind.follow(ctx, s.sweep)
	}
	for _, readers := range [][]*logReader{s.main, s.sweep} {
		for _, r := range readers {
			g.Go(func() error { return r.run(ctx) })
		}
	}
	return g.Wait()
}

// do has the goroutine of Run do something, after what it was given before.
func (s *changeStream) do(ctx context.Context, fn func(context.Context, driver.ChangeSink) error) error {
	select {
	case s.work <- fn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// abort ends the stream with an error that no goroutine of ours can return.
func (s *changeStream) abort(err error) {
	s.over.Store(true)
	select {
	case s.failed <- err:
	default: // it ends already
	}
}

// loop hands over.
func (s *changeStream) loop(ctx context.Context, sink driver.ChangeSink) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	news := time.NewTicker(newsEvery)
	defer news.Stop()
	for {
		select {
		case fn := <-s.work:
			if err := fn(ctx, sink); err != nil {
				return err
			}
		case <-news.C:
		case <-tick.C:
			s.tellStreams()
			if err := s.alarm(ctx); err != nil {
				return err
			}
		case <-s.interrupts:
			if err := sink.Pause(ctx); err != nil {
				return err
			}
		case err := <-s.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		if now := time.Now(); now.Sub(s.told) >= newsEvery {
			s.told = now
			s.bringUp(now)
		}
	}
}

// newsEvery is how often it is reckoned how far all streams are.
const newsEvery = 50 * time.Millisecond

// bringUp brings the mark up to date.
func (s *changeStream) bringUp(now time.Time) {
	m := s.mark // nobody else writes to it
	m.floor = max(m.floor, lowest(s.main))
	m.behind = max(m.behind, s.trail.before(m.floor))
	if len(s.sweep) > 0 {
		m.swept = max(m.swept, min(m.floor, lowest(s.sweep)))
	} else {
		m.swept = m.floor
	}
	m.since = max(m.since, s.trail.before(m.swept))
	s.trail.forget(m.swept)
	s.handed.forget(m.swept)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.floor > s.mark.floor {
		close(s.moved)
		s.moved = make(chan struct{})
	}
	s.mark = m
}

// tellStreams brings up to date what Lag tells of single streams.
func (s *changeStream) tellStreams() {
	streams := 0
	floors := make([]*floor, len(s.main))
	for i, r := range s.main {
		floors[i] = r.floor
		streams += len(r.floor.of)
	}
	slow := slowest(floors, 10)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete, s.streams = slow, streams
}

func lowest(readers []*logReader) ticks {
	at := readers[0].floor.at()
	for _, r := range readers[1:] {
		at = min(at, r.floor.at())
	}
	return at
}

// hand hands a batch over, and behind a late one the rows that it is about. Of a
// batch that the stream has in part, from says how many of its changes; it is 0
// otherwise. Rows that were told then may have changed since, or have gone: they
// are told all again.
func (s *changeStream) hand(ctx context.Context, sink driver.ChangeSink, b *batch, counter uint64, from uint32) error {
	b.reader.floor.stir(string(b.stream[:]))
	p := place{counter: counter, batchID: b.batchID, late: b.late}
	if len(b.changes)+len(b.rejected) > mostChanges {
		return errTooMany(b)
	}
	for i, r := range b.rejected { // before the last change says that the batch is over
		p.n = uint32(len(b.changes) + i + 1)
		r.Pos = p.position()
		if err := sink.Reject(ctx, r); err != nil {
			return err
		}
	}
	if len(s.sweep) > 0 {
		s.handed.add(b.batchID) // also where all of it is rejected
	}
	if len(b.changes) == 0 {
		return nil
	}
	version, fresh := s.cfg.Version(b.reader.name, b.table.columns())
	if fresh {
		err := sink.Change(ctx, &cdc.Change{
			Pos: s.last.BeforeNext(), Op: cdc.Schema, Client: s.cfg.Client, Schema: b.reader.name.Schema, Table: b.reader.name.Table,
			SchemaVersion: version, Columns: b.table.columns(),
		})
		if err != nil {
			return err
		}
	}
	p.n = from
	h := handing{stream: s, sink: sink, batch: b, place: p, version: version, tx: cdc.Transaction{ID: b.tx(), At: b.at.Time()}}
	for i := int(from); i < len(b.changes); i++ {
		if err := h.change(ctx, &b.changes[i]); err != nil {
			return err
		}
	}
	if b.late {
		if err := s.addRows(ctx, b, h.change); err != nil {
			return err
		}
	}
	if h.held == nil { // the rows that were told are gone: the last change says it again, and that it is the last
		h.held = &b.changes[len(b.changes)-1]
	}
	if err := h.emit(ctx, true); err != nil {
		return err
	}
	if !b.late {
		s.trail.add(counter, ticks(b.at.Timestamp()), time.Now())
	}
	s.mu.Lock()
	s.mark.counter = counter
	m := s.mark
	s.committed = h.tx.At
	if b.late {
		s.late++
	}
	s.mu.Unlock()
	if err := sink.Commit(ctx, m.String()); err != nil {
		return err
	}
	return sink.Pause(ctx)
}

// A handing hands over the changes of one batch, each once the next one is known:
// only the last one says that it is.
type handing struct {
	stream  *changeStream
	sink    driver.ChangeSink
	batch   *batch
	place   place // of the change that was handed over last
	version int
	tx      cdc.Transaction
	held    *cdc.Change
}

func (h *handing) change(ctx context.Context, c *cdc.Change) error {
	if h.held != nil {
		if err := h.emit(ctx, false); err != nil {
			return err
		}
	}
	h.held = c
	return nil
}

// emit hands over the change that is held.
func (h *handing) emit(ctx context.Context, last bool) error {
	c, p := h.held, &h.place
	if p.n++; p.n > mostChanges {
		return errTooMany(h.batch)
	}
	p.last = last
	c.Pos, c.SchemaVersion, c.Late = p.position(), h.version, p.late
	h.tx.Pos, h.tx.N, h.tx.Last = batchPosition(c.Pos), uint64(p.n), last
	c.Tx = &h.tx
	if err := h.sink.Change(ctx, c); err != nil {
		return err
	}
	h.stream.last = c.Pos
	return nil
}

func errTooMany(b *batch) error {
	return fmt.Errorf("scylla: the batch %s of %s has more than %d changes", b.tx(), b.reader.name, mostChanges)
}

// handOver takes a batch that the main reader has read.
func handOver(ctx context.Context, r *logReader, id batchID, change *scyllacdc.Change) error {
	s := r.stream
	if s.stray[id] { // it was late, and is no longer: reading began before it
		return nil
	}
	b, err := r.decode(ctx, id, change)
	if err != nil {
		return err
	}
	return s.do(ctx, func(ctx context.Context, sink driver.ChangeSink) error {
		return s.hand(ctx, sink, b, s.mark.counter+1, 0)
	})
}

// alarm ends a stream that does not move. It is asked every second, but not while
// the sink holds the stream.
func (s *changeStream) alarm(ctx context.Context) error {
	now := time.Now()
	for _, r := range s.main {
		if err := r.inTime(now); err != nil {
			return err
		}
		if err := s.still(r, s.pace.patience); err != nil {
			return err
		}
	}
	for _, r := range s.sweep {
		if r.floor.at() >= s.mark.floor-ticksIn(s.pace.patience) { // it waits for the floor
			for _, g := range r.floor.groups {
				g.still = 0
			}
		}
		if err := s.still(r, s.pace.patience+2*s.pace.behindDelay); err != nil {
			return err
		}
	}
	if n := time.Duration(s.silent.Add(1)) * time.Second; n > s.pace.silence {
		s.silent.Store(0)
		pctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		if err := s.backend.Ping(pctx); err != nil {
			return err
		}
		s.mu.Lock()
		refusal := s.refusal
		s.mu.Unlock()
		return stalled(fmt.Sprintf("no page of a log was read for %s", n), s.waits(), refusal)
	}
	return nil
}

// still reports a group of streams of which there was nothing new for too long.
func (s *changeStream) still(r *logReader, most time.Duration) error {
	for _, g := range r.floor.groups {
		if g.still++; time.Duration(g.still)*time.Second > most {
			s.mu.Lock()
			refusal := s.refusal
			s.mu.Unlock()
			return stalled(fmt.Sprintf("the stream %s of the log of %s was not read for %s; it is read up to %s",
				hexText(g.streams[0]), r.name, most, g.read.time().Format(time.RFC3339Nano)), s.waits(), refusal)
		}
	}
	return nil
}

// stalled is an error for people: it goes on by itself once its cause is gone.
func stalled(what, waits string, refusal error) error {
	if waits != "" {
		what += "; " + waits
	}
	if refusal == nil {
		refusal = errStill
	}
	return athena.Wrap(athena.CodeBackendUnavailable, refusal, "%s", what)
}

var errStill = errors.New("scylla: the log is not read")

// waits says what generation is waited for.
func (s *changeStream) waits() string {
	for _, g := range s.gates {
		if w := g.waits(); w != "" {
			return w
		}
	}
	return ""
}

// answered notes that a page of a log was read.
func (s *changeStream) answered() {
	s.silent.Store(0)
	s.mu.Lock()
	s.heard, s.refusal = time.Now(), nil
	s.mu.Unlock()
}

// refused notes that a page could not be read. The library tries again, unless
// that is of no use.
func (s *changeStream) refused(t driver.TableName, err error) error {
	s.mu.Lock()
	s.refusal = err
	s.mu.Unlock()
	var e serverError // what gocql names RequestError fits none of its errors
	if errors.As(err, &e) {
		switch e.GetCode() {
		case gocql.ErrCodeUnauthorized, gocql.ErrCodeSyntax:
			return fmt.Errorf("scylla: the log of %s: %w", t, err)
		}
	}
	return nil
}

// Confirm notes that everything up to mark is stored.
func (s *changeStream) Confirm(text string) {
	m, err := parseMark(text)
	if err != nil {
		return // no mark of ours: nothing is confirmed by it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.confirmed = max(s.confirmed, m.counter)
	if m.counter >= s.sure.counter { // marks grow together with it
		s.sure = m
	}
}

// recordable is the mark that may be put on record now, and whether it says more
// than those of the stream do (law 2).
func (s *changeStream) recordable() (m mark, idle bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.confirmed >= s.mark.counter {
		return s.mark, true
	}
	return s.sure, false
}

// record puts marks on record: those that no batch carries now and then, so that
// little is read again after an idle time; the others less often; and the last.
func (s *changeStream) record(ctx context.Context) error {
	if s.cfg.Confirming == nil {
		return nil
	}
	tick := time.NewTicker(s.pace.record)
	defer tick.Stop()
	var last mark // on record
	var at time.Time
	put := func(ctx context.Context, m mark) {
		ctx, cancel := context.WithTimeout(ctx, recordTimeout)
		defer cancel()
		if s.cfg.Confirming(ctx, m.String()) == nil { // else the bus is ill, and a little more is read again
			last, at = m, time.Now()
		}
	}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if m, _ := s.recordable(); m != last {
				put(context.WithoutCancel(ctx), m)
			}
			return ctx.Err()
		}
		if m, idle := s.recordable(); m != last && (idle || time.Since(at) > recordEvery) {
			put(ctx, m)
		}
	}
}

const (
	recordEvery   = 10 * time.Second
	recordTimeout = 3 * time.Second
)

// Interrupt has Pause called soon.
func (s *changeStream) Interrupt() {
	select {
	case s.interrupts <- struct{}{}:
	default:
	}
}

// Source says what is read: the cluster and its tables.
func (s *changeStream) Source() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source.String()
}

// Lag says how far behind the stream is.
func (s *changeStream) Lag() driver.ChangeLag {
	s.mu.Lock()
	defer s.mu.Unlock()
	complete := s.mark.floor.time()
	l := driver.ChangeLag{Committed: s.committed, Heard: s.heard}
	l.CaughtUp = s.confirmed >= s.mark.counter && time.Since(complete) < s.pace.current
	l.Streams = &driver.StreamLag{
		Streams: s.streams, Complete: complete, Confidence: athena.Duration(s.pace.confidence),
		Late: s.late, Waits: s.waits(), Slowest: s.complete,
	}
	if len(s.sweep) > 0 {
		l.Streams.Sweep, l.Streams.Swept = athena.Duration(s.handed.horizon(s.pace.sweep)), s.mark.swept.time()
	}
	return l
}

// Close closes the sessions. A stream that still runs fails.
func (s *changeStream) Close(context.Context) error {
	s.backend.captures.remove(s)
	s.closeSessions()
	return nil
}
