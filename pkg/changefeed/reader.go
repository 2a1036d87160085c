package changefeed

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

const (
	// DefaultHeartbeat is how long Next waits for a change.
	DefaultHeartbeat = 15 * time.Second
	// DefaultBatch is how many changes Next gives at most.
	DefaultBatch = 1000
	// lookMost is how many bytes of changes are looked at before a reader is told
	// how far it has come, though none of them was wanted.
	lookMost = 4 << 20
)

// A Batch is what a reader gets at once.
type Batch struct {
	// Lines are changes in the athena envelope, without line breaks. They are
	// shared and must not be changed.
	Lines [][]byte
	// Cursor stands behind all that was looked at: it is the position of the last
	// of Lines, or of a later change that was not wanted.
	Cursor cdc.Position
	// More says that there is more already.
	More bool
}

// A Reader reads the changes of one client that a filter wants, from a cursor
// on, every one of them, once and in order (law 2). At the end of the stream it
// costs a few hundred bytes. It is not safe for concurrent use.
type Reader struct {
	// Heartbeat is how long Next waits; DefaultHeartbeat unless it is set.
	Heartbeat time.Duration

	hub    *hub
	filter *Filter
	epoch  uint64       // of the hub, as long as the stream is the one that was opened
	seq    uint64       // of the message that is read
	off    int          // how much of it has been looked at
	cursor cdc.Position // behind all that has been looked at
	after  cdc.Position // changes up to it are not wanted; empty once it is passed
	held   []*message   // from seq on, nil where done with
	next   int          // in held
	row    *row         // for the filter
	closed bool
}

// Open returns a reader of a client's changes that begins as ParseFrom reads it.
// Close must be called in the end. A nil filter wants all.
//
// It fails with cursor_expired where changes behind the start may have been let
// go of, and with not_found where the client's changes are not captured. A
// client that is captured and has no stream yet is read from its beginning.
func (f *Feeds) Open(ctx context.Context, client, from string, filter *Filter) (*Reader, error) {
	start, err := ParseFrom(from)
	if err != nil {
		return nil, err
	}
	h := f.join(client)
	r, err := f.open(ctx, h, start, filter)
	if err != nil {
		f.leave(h)
		return nil, err
	}
	return r, nil
}

func (f *Feeds) open(ctx context.Context, h *hub, from Start, filter *Filter) (*Reader, error) {
	info, epoch, err := h.look(ctx)
	if err != nil {
		return nil, err
	}
	var at place
	if seq, ok := h.around(from.cursor); ok {
		at = place{seq, from.cursor}
	} else if at, err = f.store.find(ctx, h.client, info, from); err != nil {
		return nil, err
	}
	r := &Reader{Heartbeat: DefaultHeartbeat, hub: h, filter: filter, epoch: epoch, seq: at.seq, cursor: at.cursor, after: at.cursor}
	if filter != nil && filter.where != nil {
		r.row = &row{}
	}
	return r, nil
}

// Close ends the reader. It may be called more than once.
func (r *Reader) Close() {
	if !r.closed {
		r.closed = true
		r.hub.feeds.leave(r.hub)
	}
}

// Cursor stands behind all that the reader has given or left out.
func (r *Reader) Cursor() cdc.Position { return r.cursor }

// Next waits for changes that are wanted and returns them. If none come within
// Heartbeat, or a lot was looked at in vain, the batch is empty and has the
// cursor up to which it was looked; so it is where ctx is done, with its error.
func (r *Reader) Next(ctx context.Context) (Batch, error) {
	heartbeat := time.NewTimer(r.Heartbeat)
	defer heartbeat.Stop()
	for {
		moved := r.Moved()
		b, err := r.Take(ctx, DefaultBatch)
		if err != nil || len(b.Lines) > 0 || b.More {
			return b, err
		}
		select {
		case <-moved:
		case <-heartbeat.C:
			return b, nil
		case <-ctx.Done():
			return b, ctx.Err()
		}
	}
}

// Moved returns a channel that is closed when there may be something to Take
// that there was not when it was called.
func (r *Reader) Moved() <-chan struct{} {
	_, _, _, moved := r.hub.state()
	return moved
}

// Take returns what there is now, at most so many changes, without waiting for
// any. A batch without changes has all the same the cursor up to which it was
// looked.
//
// An error comes again when Take is called again: cursor_expired if the reader
// was slower than the stream lets go of its oldest, or the stream was made anew;
// not_found if it was removed.
func (r *Reader) Take(ctx context.Context, most int) (Batch, error) {
	var b Batch
	for looked := 0; len(b.Lines) < most && looked < lookMost; {
		if r.next == len(r.held) {
			if err := r.fill(ctx); err != nil {
				if len(b.Lines) > 0 {
					break // they first
				}
				return Batch{Cursor: r.cursor}, err
			}
			if len(r.held) == 0 {
				b.Cursor = r.cursor
				return b, nil
			}
		}
		m := r.held[r.next]
		was := r.off
		err := r.scan(m, &b, most)
		if err != nil && len(b.Lines) == 0 {
			return Batch{Cursor: r.cursor}, err
		}
		if err != nil {
			break
		}
		looked += m.size() - was
	}
	b.Cursor = r.cursor
	_, _, last, _ := r.hub.state()
	b.More = r.seq <= last
	return b, nil
}

// scan looks at what is left of a message until the batch is full.
func (r *Reader) scan(m *message, b *Batch, most int) error {
	if m.prev > r.cursor && r.cursor != Genesis { // there was something between
		return expired(r.hub.client, r.cursor, m.begin())
	}
	if r.after != "" && m.pos <= r.after || !r.filter.wants(m.table) {
		r.done(m)
		return nil
	}
	var at []byte // position of the last change that was looked at
	var err error
	for r.off < len(m.data) && len(b.Lines) < most {
		line, _, _ := bytes.Cut(m.data[r.off:], []byte{'\n'})
		if len(line) == 0 {
			r.off++
			continue
		}
		pos, op, ok := head(line)
		if !ok {
			err = athena.Errorf(athena.CodeInternal, "message %d of stream %s holds a line that is no change", m.seq, r.hub.stream)
			break
		}
		if r.after == "" || string(pos) > string(r.after) {
			r.after = ""
			var wanted bool
			if wanted, err = r.filter.match(m.table, op, line, r.row); err != nil {
				break
			}
			if wanted {
				b.Lines = append(b.Lines, line)
			}
			at = pos
		}
		r.off += len(line) + 1
	}
	if err == nil && r.off >= len(m.data) {
		r.done(m)
	} else if at != nil {
		r.cursor = cdc.Position(at)
	}
	return err
}

// done leaves a message behind.
func (r *Reader) done(m *message) {
	r.held[r.next] = nil
	r.next++
	r.seq, r.off = m.seq+1, 0
	if m.first != "" { // one without changes may stand behind a gap, and does not tell
		r.cursor = max(r.cursor, m.pos)
	}
}

// fill gets hold of messages from seq on; of none at the end of the stream.
func (r *Reader) fill(ctx context.Context) error {
	for try := range retries {
		r.held, r.next = r.held[:0], 0
		if err := r.foreign(); err != nil {
			return err
		}
		var behind bool
		if r.held, behind = r.hub.take(r.held, r.seq); !behind {
			return nil
		}
		raws, err := r.hub.feeds.store.bus.Read(ctx, r.hub.stream, r.seq, readMost, readBytes)
		if err != nil && !errors.Is(err, nats.ErrNoResponders) { // which is what a stream that is gone says
			return err
		}
		if len(raws) > 0 && raws[0].Sequence == r.seq {
			for _, raw := range raws {
				r.held = append(r.held, newMessage(raw))
			}
			return nil
		}
		moved, err := r.relocate(ctx)
		if err != nil {
			return err
		}
		if !moved { // it is there, but not on the replica that was asked
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Millisecond << try):
			}
		}
	}
	return unreadable(r.hub.client, errors.New("changefeed: a message that is there was not given"))
}

// relocate finds the cursor anew where the message that comes next is not to be
// had: it may have been let go of, and have held no change, or none that was
// still to come.
func (r *Reader) relocate(ctx context.Context) (moved bool, err error) {
	info, epoch, err := r.hub.look(ctx)
	if err != nil {
		return false, err
	}
	if info == nil || epoch != r.epoch {
		return false, r.foreign()
	}
	at, err := r.hub.feeds.store.find(ctx, r.hub.client, info, Start{cursor: r.cursor})
	if err != nil {
		return false, err
	}
	moved = at.seq != r.seq
	r.seq, r.off, r.after = at.seq, 0, r.cursor
	return moved, nil
}

// foreign reports that the stream is not the one that was opened, or nil if it is.
func (r *Reader) foreign() error {
	epoch, born, _, _ := r.hub.state()
	switch {
	case epoch == r.epoch:
		return nil
	case born.IsZero():
		return athena.Errorf(athena.CodeNotFound, "the stream of changes of client %q is gone; it was removed", r.hub.client).With("cursor", r.cursor)
	}
	return athena.Errorf(athena.CodeCursorExpired, "the stream of changes of client %q was made anew, and the cursor %s says nothing of it; begin at earliest", r.hub.client, r.cursor).
		With("cursor", r.cursor)
}

// EnvelopeFor returns the envelope of that name; the empty name is athena's. Its
// error is invalid_request at the field envelope.
func EnvelopeFor(name string) (cdc.Envelope, error) {
	e, err := cdc.NewEnvelope(name)
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "%v", err).At("envelope")
	}
	return e, nil
}
