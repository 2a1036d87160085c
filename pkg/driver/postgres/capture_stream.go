package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// A changeStream reads a slot. Four goroutines share the work while it runs: one
// receives, so that the network is drained while changes are encoded; one decodes
// and hands over; one puts marks on record; one answers the server, whatever the
// others wait for.
type changeStream struct {
	backend *Backend
	cfg     driver.ChangeConfig
	conn    *logConn
	source  string
	before  xidSnapshot // of the transactions that ran when it was opened
	spool   *spool
	decoder decoder
	gate    gate

	interrupts chan struct{}
	wake       chan struct{} // the server is to be told something
	urgent     atomic.Bool   // at once
	expedite   chan struct{} // and waits for a mark to be on record
	interval   time.Duration // the server is told at least this often
	patience   time.Duration // a server that is silent for longer is not there
	listening  atomic.Int64  // since when we wait for its next word, in ns; 0 while we do not

	mu sync.Mutex
	// handed is the mark of the last transaction that the sink was given;
	// confirmed the highest mark that it has confirmed; idle is how far the log
	// is known to hold nothing for us behind handed.
	handed, confirmed, idle uint64
	floor                   uint64 // of undecided prepared transactions; 0 is none
	decided                 []decided
	covered                 uint64 // the highest mark that is on record or in the stream: see ChangeConfig.Confirmed
	told                    uint64 // to the server
	serverEnd               uint64
	committed, heard        time.Time
	behind                  bool // messages wait to be decoded
	spilled                 int64
}

const (
	defaultSpillMemory = 16 << 20
	// batchesAhead is how many batches may wait to be decoded.
	batchesAhead = 8
	// coverEvery is how often an idle mark is put on record, unless the server
	// waits for it; recordEvery how often one that stands in the stream is.
	coverEvery    = time.Second
	recordEvery   = 10 * time.Second
	recordTimeout = 3 * time.Second
)

// OpenChanges connects to the slot and starts to read it. It fails with a
// *driver.SourceLost if the slot is gone, or is not where it was left.
func (b *Backend) OpenChanges(ctx context.Context, cfg driver.ChangeConfig) (driver.ChangeStream, error) {
	s, err := b.openChanges(ctx, cfg)
	if err != nil {
		return nil, err // not s: a typed nil would not compare equal to nil
	}
	return s, nil
}

func (b *Backend) openChanges(ctx context.Context, cfg driver.ChangeConfig) (_ *changeStream, err error) {
	conn, err := b.connectReplication(ctx, cfg.Client)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeReplication(conn)
		}
	}()
	covered, err := parseLSN(cfg.Confirmed)
	if err != nil {
		return nil, fmt.Errorf("postgres: the mark %q is none of ours: %w", cfg.Confirmed, err)
	}
	source, err := b.verifySource(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	slot, err := b.claimSlot(ctx, conn, cfg, covered)
	if err != nil {
		return nil, err
	}
	publications, err := b.publications(ctx, cfg.ChangeSetup)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(publications, cfg.Publication) { // that for inserts alone may be left
		return nil, &driver.SourceLost{Code: "publication_missing", Message: fmt.Sprintf(
			"the publication %q does not exist any more, so that changes made since it was dropped may be missing; disable the capture and enable it again", cfg.Publication)}
	}
	pool, err := newSpool(cfg.SpillDir, cmp.Or(cfg.SpillMemory, defaultSpillMemory), cfg.SpillMost)
	if err != nil {
		return nil, err
	}
	s := &changeStream{
		backend: b, cfg: cfg, conn: conn, spool: pool,
		interrupts: make(chan struct{}, 1), wake: make(chan struct{}, 1), expedite: make(chan struct{}, 1),
		handed: slot.confirmed, confirmed: slot.confirmed, told: slot.confirmed, covered: max(covered, slot.confirmed),
		source: source,
	}
	s.decoder.init(s)
	s.gate.pass(slot.confirmed)
	settings, err := simpleQuery(ctx, conn.pg, `SELECT setting, (SELECT setting FROM pg_settings WHERE name = 'server_encoding')
		FROM pg_settings WHERE name = 'wal_sender_timeout'`)
	if err != nil || len(settings) != 1 {
		return nil, fmt.Errorf("postgres: settings of the server: %w", err)
	}
	s.interval, s.patience = statusInterval(settings[0][0])
	if settings[0][1] == "SQL_ASCII" {
		// Asked for UTF-8 the server would end the stream at the first bytes
		// that are none; so they come as they are, and are looked at here.
		if _, err := simpleQuery(ctx, conn.pg, "SET client_encoding = 'SQL_ASCII'"); err != nil {
			return nil, err
		}
		s.decoder.checkText = true
	}
	running, err := simpleQuery(ctx, conn.pg, "SELECT pg_catalog.pg_current_snapshot()::text")
	if err != nil || len(running) != 1 {
		return nil, fmt.Errorf("postgres: the transactions that run: %w", err)
	}
	if s.before, err = parseXIDs(running[0][0]); err != nil {
		return nil, err
	}
	version := serverMajor(conn.pg)
	err = pglogrepl.StartReplication(ctx, conn.pg, cfg.Slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication, PluginArgs: pluginArgs(version, cfg, publications, slot.twoPhase),
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// pluginArgs are what pgoutput is asked for: the highest version of the protocol
// that the server speaks.
func pluginArgs(version int, cfg driver.ChangeConfig, publications []string, twoPhase bool) []string {
	names := make([]string, len(publications))
	for i, p := range publications {
		names[i] = quoteName(p)
	}
	proto := 2 // 14: streaming of large transactions
	switch {
	case version >= 16: // streaming by parallel workers, which we do not ask for
		proto = 4
	case version >= 15: // two-phase commit
		proto = 3
	}
	args := []string{
		fmt.Sprintf("proto_version '%d'", proto),
		"publication_names " + quoteLiteral(strings.Join(names, ",")),
		"messages 'true'",
	}
	if !cfg.NoStreaming {
		args = append(args, "streaming 'on'")
	}
	if version >= 16 && cfg.LocalOnly {
		args = append(args, "origin 'none'")
	}
	if version >= 15 && twoPhase {
		args = append(args, "two_phase 'on'")
	}
	return args
}

// statusInterval is well below the time after which the server gives us up.
// Patience is well above it: for as long as that, a server may decode what holds
// nothing for us, and say nothing.
func statusInterval(walSenderTimeout string) (interval, patience time.Duration) {
	d, err := time.ParseDuration(walSenderTimeout + "ms")
	if err != nil || d <= 0 {
		return 10 * time.Second, 5 * time.Minute
	}
	return max(200*time.Millisecond, min(10*time.Second, d/4)), max(30*time.Second, 3*d)
}

// Run reads until ctx is done. The connection is of no further use then.
func (s *changeStream) Run(ctx context.Context, sink driver.ChangeSink) error {
	g, work := errgroup.WithContext(ctx)
	full := make(chan *batch, batchesAhead)
	empty := make(chan *batch, batchesAhead+2)
	for range cap(empty) {
		empty <- &batch{}
	}
	stop := context.AfterFunc(work, s.conn.interrupt)
	defer stop()
	g.Go(func() error {
		defer close(full)
		return s.receive(work, full, empty)
	})
	recorded := make(chan struct{})
	g.Go(func() error {
		defer close(recorded)
		return s.record(work)
	})
	g.Go(func() error { return s.answer(work, recorded) })
	g.Go(func() error { return s.decode(work, sink, full, empty) })
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *changeStream) receive(ctx context.Context, full chan<- *batch, empty <-chan *batch) error {
	for {
		var b *batch
		select {
		case b = <-empty:
		case <-ctx.Done():
			return ctx.Err()
		}
		b.data, b.items = b.data[:0], b.items[:0]
		if cap(b.data) > 8*batchBytes {
			b.data = nil // a large value passed
		}
		s.listening.Store(time.Now().UnixNano())
		err := s.conn.receive(b, s.hurry)
		s.listening.Store(0)
		if len(b.items) > 0 {
			s.mu.Lock()
			s.heard, s.behind = time.Now(), true
			s.mu.Unlock()
			select {
			case full <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
}

func (s *changeStream) decode(ctx context.Context, sink driver.ChangeSink, full <-chan *batch, empty chan<- *batch) error {
	defer func() { _ = s.spool.close() }() // its files are removed at the next start too
	d := &s.decoder
	d.sink = sink
	for {
		select {
		case b, ok := <-full:
			if !ok {
				return nil // receive has the error
			}
			for _, it := range b.items {
				if it.keepalive {
					if err := d.keepalive(ctx, it.end); err != nil {
						return err
					}
					continue
				}
				if err := d.message(ctx, b.data[it.from:it.to]); err != nil {
					return err
				}
			}
			s.mu.Lock()
			s.behind = len(full) > 0
			s.spilled = s.spool.disk
			s.mu.Unlock()
			empty <- b
		case <-s.interrupts:
			if d.tx.open {
				continue // Pause follows the transaction
			}
			if err := sink.Pause(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// quiet notes that the log holds nothing for us up to a place, behind what was
// handed over.
func (s *changeStream) quiet(end uint64) {
	s.mu.Lock()
	s.serverEnd = max(s.serverEnd, end)
	if !s.decoder.tx.open {
		s.idle = max(s.idle, end)
	}
	s.mu.Unlock()
	s.poke()
}

// hand notes that a transaction is handed over.
func (s *changeStream) hand(end uint64, at time.Time) {
	s.mu.Lock()
	s.handed, s.committed = end, at
	s.serverEnd = max(s.serverEnd, end)
	s.mu.Unlock()
}

// setFloor notes the oldest undecided prepared transaction. The server sends it
// again after a restart only if nothing behind its PREPARE was confirmed.
func (s *changeStream) setFloor() {
	at, ok := s.spool.floor()
	if !ok {
		at = 0
	}
	s.mu.Lock()
	s.floor = at
	s.mu.Unlock()
}

// A decided prepared transaction was handed over, and is not yet known to be
// stored: it is sent again only if its PREPARE is not confirmed.
type decided struct{ prepared, mark uint64 }

// decide notes that a prepared transaction was committed.
func (s *changeStream) decide(prepared, mark uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handed == mark { // else it had nothing for us
		s.decided = append(s.decided, decided{prepared, mark})
	}
}

// Confirm notes that everything up to mark is stored.
func (s *changeStream) Confirm(mark string) {
	lsn, err := parseLSN(mark)
	if err != nil {
		return // no mark of ours: nothing is confirmed by it
	}
	s.mu.Lock()
	s.confirmed = max(s.confirmed, lsn)
	s.covered = max(s.covered, lsn) // it stands in the stream
	s.mu.Unlock()
	s.poke()
}

// flushable is what the server may forget: no more than what is stored, beyond
// that only what holds nothing for us, and nothing of an undecided prepared
// transaction.
func (s *changeStream) flushable() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.confirmed
	if s.confirmed >= s.handed {
		f = max(f, s.idle)
	}
	if s.floor > 0 {
		f = min(f, s.floor)
	}
	s.decided = slices.DeleteFunc(s.decided, func(d decided) bool { return d.mark <= s.confirmed })
	for _, d := range s.decided {
		f = min(f, d.prepared)
	}
	return max(f, s.told) // it never goes back
}

// answer tells the server how far we are: when there is news, when it asks, and
// often enough that it does not give us up. Nothing else holds it up.
func (s *changeStream) answer(ctx context.Context, recorded <-chan struct{}) error {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		urgent := false
		select {
		case <-s.wake:
			urgent = s.urgent.Swap(false)
		case <-tick.C:
			urgent = true
			if silent := s.silent(); silent > s.patience {
				return fmt.Errorf("%w for %s", errSilent, silent.Round(time.Second))
			}
		case <-ctx.Done():
			// A last word, so that a clean stop leaves nothing to send again.
			<-recorded
			_ = s.tell()
			return ctx.Err()
		}
		now, later := s.sayable()
		if urgent && later > now {
			select {
			case s.expedite <- struct{}{}:
			default:
			}
		}
		if !urgent && now == s.toldSoFar() {
			continue
		}
		if err := s.tell(); err != nil {
			return err
		}
		if !urgent { // news is gathered for a moment
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// record puts marks on record: those beyond the marks of the stream before the
// server is told of them, or a slot that was made anew could not be told from
// this one; the others now and then, and in the end.
func (s *changeStream) record(ctx context.Context) error {
	if s.cfg.Confirming == nil {
		return nil
	}
	tick := time.NewTicker(coverEvery)
	defer tick.Stop()
	var last uint64 // on record
	var at time.Time
	for {
		select {
		case <-s.expedite:
		case <-tick.C:
		case <-ctx.Done():
			if _, later := s.sayable(); later > last {
				_ = s.put(context.WithoutCancel(ctx), later)
			}
			return ctx.Err()
		}
		now, later := s.sayable()
		if later > now || later > last && time.Since(at) > recordEvery {
			if s.put(ctx, later) == nil { // else the bus is ill; the server keeps a little more
				last, at = later, time.Now()
			}
		}
	}
}

func (s *changeStream) put(ctx context.Context, mark uint64) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	if err := s.cfg.Confirming(ctx, formatLSN(mark)); err != nil {
		return err
	}
	s.mu.Lock()
	s.covered = max(s.covered, mark)
	s.mu.Unlock()
	s.poke()
	return nil
}

// sayable is what the server may be told now, and what it may be told once that
// is on record.
func (s *changeStream) sayable() (now, later uint64) {
	later = s.flushable()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Confirming == nil {
		s.covered = max(s.covered, later)
	}
	return min(later, s.covered), later
}

// tell sends a status.
func (s *changeStream) tell() error {
	to, _ := s.sayable()
	if err := s.conn.status(to, s.silent() > s.interval/2); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = max(s.told, to)
	return nil
}

// errSilent: what is between us and the server lets nothing through, and tells
// neither side.
var errSilent = errors.New("postgres: the server has said nothing")

// silent is how long we have waited for the server's next word.
func (s *changeStream) silent() time.Duration {
	since := s.listening.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

func (s *changeStream) toldSoFar() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// poke has the server told the news.
func (s *changeStream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// hurry has the server told at once: it waits for it.
func (s *changeStream) hurry() {
	s.urgent.Store(true)
	s.poke()
}

// Interrupt has Pause called soon.
func (s *changeStream) Interrupt() {
	select {
	case s.interrupts <- struct{}{}:
	default:
	}
}

// Source says what database it is that is read.
func (s *changeStream) Source() string { return s.source }

// Snapshot opens a reader of one table beside the stream.
func (s *changeStream) Snapshot(ctx context.Context, t driver.SnapshotTable) (driver.SnapshotReader, error) {
	if t.Fresh {
		if err := s.await(ctx, t.Table); err != nil {
			return nil, err
		}
	}
	r, err := s.backend.newSnapshotReader(ctx, s.cfg.ChangeSetup, t, s.decoder.recent.hiddenFrom)
	if err != nil {
		return nil, err
	}
	r.gate = &s.gate
	return r, nil
}

// await fails with ErrNotYet while a transaction runs that ran before. What it
// wrote to a table before that was published is not in the log for us, and not in
// a snapshot before it ends.
func (s *changeStream) await(ctx context.Context, name driver.TableName) error {
	var now string
	if _, err := s.backend.catalog(ctx, "SELECT pg_catalog.pg_current_snapshot()::text", nil, func(rows pgx.Rows) error { return rows.Scan(&now) }); err != nil {
		return err
	}
	seen, err := parseXIDs(now)
	if err != nil {
		return err
	}
	for _, xid := range s.before.open {
		if slices.Contains(seen.open, xid) {
			return fmt.Errorf("%w: transaction %d still runs, which may have written to %s before it was captured", driver.ErrNotYet, xid, name)
		}
	}
	return nil
}

// Lag says how far behind the stream is.
func (s *changeStream) Lag() driver.ChangeLag {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := driver.ChangeLag{Committed: s.committed, Heard: s.heard, Spilled: s.spilled}
	l.CaughtUp = !s.behind && s.confirmed >= s.handed
	if done := max(s.confirmed, s.told); s.serverEnd > done {
		l.Bytes = int64(s.serverEnd - done)
	}
	return l
}

// Close ends the connection.
func (s *changeStream) Close(ctx context.Context) error {
	closeReplication(s.conn)
	return nil
}

// closeReplication cuts a connection in the midst of replication; the server
// sees it at once, and frees the slot.
func closeReplication(c *logConn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	_ = c.pg.Close(ctx)
}

// recentTransactions are the last ones that were handed over. Methods are safe
// for concurrent use.
type recentTransactions struct {
	mu   sync.Mutex
	ring []uint32
	next int
	set  map[uint32]struct{}
	last uint32 // of them all, the id that was given out last; 0 is none
}

// recentMost is more than the connections of a server: of each only the last
// transaction can still be on its way to being visible.
const recentMost = 1 << 14

func (r *recentTransactions) add(xid uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set == nil {
		r.set = map[uint32]struct{}{}
	}
	if len(r.ring) < recentMost {
		r.ring = append(r.ring, xid)
	} else {
		delete(r.set, r.ring[r.next])
		r.ring[r.next] = xid
		r.next = (r.next + 1) % recentMost
	}
	r.set[xid] = struct{}{}
	if r.last == 0 || int32(xid-r.last) > 0 { // ids wrap around
		r.last = xid
	}
}

// hiddenFrom reports whether a snapshot does not see one of them.
func (r *recentTransactions) hiddenFrom(s xidSnapshot) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, xid := range s.open {
		if _, ok := r.set[uint32(xid)]; ok {
			return true
		}
	}
	return r.last != 0 && int32(r.last-uint32(s.next)) >= 0
}
