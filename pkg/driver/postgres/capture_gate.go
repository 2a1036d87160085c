package postgres

import (
	"context"
	"sync"
)

// A gate finds the place in the stream where a snapshot belongs that was taken
// somewhere ahead of it: what it sees is before that place, and what it does not
// see behind. Rows with a key may be read from behind the place where the stream
// is held, since what comes again leads to the same rows; rows without one would
// come twice.
//
// It is closed by who takes the snapshot and reads in it, while the stream is
// held. Its methods are safe for concurrent use.
type gate struct {
	mu      sync.Mutex
	passed  uint64 // all commits that begin before it were handed over
	closed  bool
	seen    xidSnapshot
	until   uint64 // where the log ended when the snapshot had been taken
	reached bool   // the stream is held at the place
	spoiled bool   // there is no such place: one that it sees comes behind one that it does not
}

func (g *gate) close(seen xidSnapshot, until uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.seen, g.until, g.reached, g.spoiled = true, seen, until, g.passed >= until, false
}

// open says that the snapshot is of no further use.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

// here reports whether the stream is held at the place, or will never be.
func (g *gate) here() (here, spoiled bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reached && !g.spoiled, g.spoiled
}

// pass notes that all commits that begin before lsn were handed over, and reports
// whether that is the place.
func (g *gate) pass(lsn uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passed = max(g.passed, lsn)
	g.reached = g.closed && !g.spoiled && g.passed >= g.until
	return g.reached
}

// What a transaction is to a gate.
type passage int

const (
	passes  passage = iota // it may go on
	behind                 // the place is before it
	unknown                // the place may be before it; what follows tells
)

func (g *gate) judge(lsn uint64, xid uint32) passage {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.closed || g.spoiled:
		return passes
	case lsn >= g.until:
		return behind
	case g.seen.sees(xid):
		return passes
	}
	return unknown
}

// waits reports whether a place is sought, and is where the log up to end holds
// nothing further.
func (g *gate) waits(end uint64) (waiting, here bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	waiting = g.closed && !g.spoiled
	return waiting, waiting && end >= g.until
}

// decide says whether the stream is at the place.
func (g *gate) decide(here bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reached, g.spoiled = here, !here
}

// sees reports whether a snapshot sees a transaction that is committed.
func (s xidSnapshot) sees(xid uint32) bool {
	if int32(uint32(s.next)-xid) <= 0 { // ids wrap around
		return false
	}
	for _, open := range s.open {
		if uint32(open) == xid {
			return false
		}
	}
	return true
}

// mostWithheld bounds what is withheld, in bytes. It came while one snapshot was
// taken.
const mostWithheld = 16 << 20

// withhold looks whether a transaction that a message begins to hand over is
// behind the place of a snapshot, and keeps it back where only what follows can
// tell, with all that follows. It reports whether the message is to be kept back.
func (d *decoder) withhold(ctx context.Context, msg []byte) (bool, error) {
	g := &d.stream.gate
	what := passes
	if lsn, xid, ok := begins(msg); ok && d.chunk == 0 {
		what = g.judge(lsn, xid)
	}
	switch {
	case what == behind:
		return false, d.hold(ctx, true)
	case what == unknown, d.withheld != nil:
		if d.withheld != nil && what == passes && startsCommit(msg) || d.bytes > mostWithheld {
			return false, d.hold(ctx, false)
		}
		d.withheld = append(d.withheld, append([]byte(nil), msg...))
		d.bytes += len(msg)
		return true, nil
	}
	return false, nil
}

// hold has the sink read the snapshot, if this is its place, and then hands over
// what was withheld.
func (d *decoder) hold(ctx context.Context, here bool) error {
	g := &d.stream.gate
	g.decide(here)
	if here {
		if err := d.sink.Pause(ctx); err != nil {
			return err
		}
		g.decide(false) // it is passed
	}
	list := d.withheld
	d.withheld, d.bytes = nil, 0
	for _, msg := range list {
		if err := d.take(ctx, msg); err != nil {
			return err
		}
	}
	return nil
}

func startsCommit(msg []byte) bool {
	_, _, ok := begins(msg)
	return ok
}

// begins reads where the commit record of the transaction stands that a message
// begins to hand over, and its id.
func begins(msg []byte) (lsn uint64, xid uint32, ok bool) {
	if len(msg) == 0 {
		return 0, 0, false
	}
	sc := scanner{b: msg[1:]}
	switch msg[0] {
	case msgBegin:
		lsn = sc.uint64()
		sc.take(8)
		xid = sc.uint32()
	case msgStreamCommit:
		xid = sc.uint32()
		sc.byte()
		lsn = sc.uint64()
	case msgCommitPrepared:
		sc.byte()
		lsn = sc.uint64()
		sc.take(16)
		xid = sc.uint32()
	default:
		return 0, 0, false
	}
	return lsn, xid, sc.ok()
}

// keepalive takes note that all of the log up to a place was sent.
func (d *decoder) keepalive(ctx context.Context, end uint64) error {
	if d.withheld != nil {
		waiting, here := d.stream.gate.waits(end)
		if waiting && !here {
			return nil // what is withheld is not handed over
		}
		if err := d.hold(ctx, here); err != nil {
			return err
		}
	}
	d.stream.quiet(end)
	if !d.tx.open && d.stream.gate.pass(end) {
		d.stream.Interrupt()
	}
	return nil
}
