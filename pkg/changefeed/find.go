package changefeed

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A place is where a reader goes on: behind a cursor, which lies before or in
// the message seq.
type place struct {
	seq    uint64
	cursor cdc.Position
}

// find turns a start into a place. info is the state of the stream, nil if there
// is none: then only the beginning can be found, and only where the client is
// captured, so that a stream will come.
func (s *Store) find(ctx context.Context, client string, info *jetstream.StreamInfo, from Start) (place, error) {
	_, captured := s.Capture(client)
	switch {
	case info == nil && !captured:
		return place{}, athena.Errorf(athena.CodeNotFound, "the changes of client %q are not captured; POST /cdc/%s/enable begins it", client, client)
	case info == nil && from.cursor != "" && from.cursor != Genesis:
		return place{}, expired(client, from.cursor, Genesis)
	case info == nil:
		return place{1, Genesis}, nil
	case from.cursor != "":
		return s.findCursor(ctx, client, info, from.cursor)
	case from.earliest:
		return s.findEarliest(ctx, client, info)
	case !from.at.IsZero():
		return s.findTime(ctx, client, info, from.at)
	}
	return s.findEnd(ctx, client, info)
}

func (s *Store) findEarliest(ctx context.Context, client string, info *jetstream.StreamInfo) (place, error) {
	r, err := s.bus.MsgFrom(ctx, info.Config.Name, 1)
	if errors.Is(err, bus.ErrNoMessage) {
		return s.findEmpty(client, info), nil
	}
	if err != nil {
		return place{}, err
	}
	m := newMessage(*r)
	return place{m.seq, m.begin()}, nil
}

func (s *Store) findEnd(ctx context.Context, client string, info *jetstream.StreamInfo) (place, error) {
	r, err := s.bus.LastMsg(ctx, info.Config.Name, ">")
	if errors.Is(err, bus.ErrNoMessage) {
		return s.findEmpty(client, info), nil
	}
	if err != nil {
		return place{}, err
	}
	return place{r.Sequence + 1, max(newMessage(*r).pos, Genesis)}, nil
}

// findEmpty is the end of a stream that holds nothing, or no longer anything.
func (s *Store) findEmpty(client string, info *jetstream.StreamInfo) place {
	st, _ := s.Status(client)
	return place{info.State.LastSeq + 1, max(st.Position, Genesis)}
}

// findTime goes before the first message that was stored at a time or later. If
// there may have been earlier ones, they are missed: an error.
func (s *Store) findTime(ctx context.Context, client string, info *jetstream.StreamInfo, at time.Time) (place, error) {
	r, err := s.bus.FirstSince(ctx, info.Config.Name, at)
	if errors.Is(err, bus.ErrNoMessage) {
		return s.findEnd(ctx, client, info)
	}
	if err != nil {
		return place{}, err
	}
	m := newMessage(*r)
	// Asked for after the message, so that what stands before it is what stood
	// there then.
	if info, err = s.streamInfo(ctx, client); err != nil {
		return place{}, err
	}
	if info == nil || m.seq > 1 && m.seq <= info.State.FirstSeq {
		return place{}, athena.Errorf(athena.CodeCursorExpired, "the changes since %s are no longer all kept; begin at earliest, and take a snapshot if you need what was there", at.UTC().Format(time.RFC3339Nano)).
			At("from").With("earliest", m.begin())
	}
	return place{m.seq, m.begin()}, nil
}

// findCursor searches the stream for the first message with a change behind the
// cursor: from the end backwards, since most cursors are near it, in steps that
// double, and then by halves. Positions increase with sequences (law 1 of
// package cdc), and sequences have no gaps, but the first ones age out at any
// time.
func (s *Store) findCursor(ctx context.Context, client string, info *jetstream.StreamInfo, cursor cdc.Position) (place, error) {
	last, err := s.bus.LastMsg(ctx, info.Config.Name, ">")
	if errors.Is(err, bus.ErrNoMessage) {
		return s.findInEmpty(ctx, client, info, cursor)
	}
	if err != nil {
		return place{}, err
	}
	switch end := newMessage(*last).pos; {
	case cursor == end:
		return place{last.Sequence + 1, cursor}, nil
	case cursor > end:
		return place{}, s.beyond(ctx, client, info, cursor, end)
	}
	// All of hi is not up to the cursor; all of low is, if had. What is below low
	// does not matter, or is gone.
	low, hi, had := uint64(0), last.Sequence, false
	if n := info.State.FirstSeq; n > 0 {
		low = n - 1
	}
	for step := uint64(1); hi-low > 1; step *= 2 {
		probe := low + (hi-low)/2
		if !had {
			probe = hi - min(step, hi-low-1)
		}
		r, err := s.bus.MsgFrom(ctx, info.Config.Name, probe)
		if err != nil && !errors.Is(err, bus.ErrNoMessage) {
			return place{}, err
		}
		if err != nil || r.Sequence > hi {
			return place{}, s.expiry(ctx, client, info, cursor)
		}
		if r.Sequence > probe {
			low, had = r.Sequence-1, false
		}
		switch {
		case newMessage(*r).pos <= cursor:
			low, had = r.Sequence, true
		default:
			hi = r.Sequence
		}
	}
	if had {
		return place{hi, cursor}, nil
	}
	return s.findFirst(ctx, client, info, cursor, hi)
}

// findFirst judges a cursor before the end of the first message that there is:
// whether changes behind it have been let go of.
func (s *Store) findFirst(ctx context.Context, client string, info *jetstream.StreamInfo, cursor cdc.Position, seq uint64) (place, error) {
	r, err := s.bus.MsgFrom(ctx, info.Config.Name, seq)
	if err != nil && !errors.Is(err, bus.ErrNoMessage) {
		return place{}, err
	}
	if err == nil && r.Sequence == seq {
		// Of the first message ever nothing can have been before, unless it is of
		// a stream that was made anew: that knows where its capture began.
		m := newMessage(*r)
		if cursor >= m.begin() || seq == 1 && (cursor == Genesis || m.prev == "") {
			return place{seq, cursor}, nil
		}
	}
	return place{}, s.expiry(ctx, client, info, cursor)
}

// findInEmpty judges a cursor of a stream that holds nothing.
func (s *Store) findInEmpty(ctx context.Context, client string, info *jetstream.StreamInfo, cursor cdc.Position) (place, error) {
	if st, _ := s.Status(client); info.State.LastSeq > 0 && cursor < st.Position {
		return place{}, s.expiry(ctx, client, info, cursor)
	}
	return place{info.State.LastSeq + 1, cursor}, nil
}

// expiry is the error for a cursor whose next changes have been let go of.
func (s *Store) expiry(ctx context.Context, client string, info *jetstream.StreamInfo, cursor cdc.Position) error {
	at, err := s.findEarliest(ctx, client, info)
	if err != nil {
		return err
	}
	return expired(client, cursor, at.cursor)
}

func expired(client string, cursor, earliest cdc.Position) error {
	return athena.Errorf(athena.CodeCursorExpired, "the changes of client %q behind the cursor %s are no longer all kept; begin at earliest, and take a snapshot if you need what was there", client, cursor).
		With("cursor", cursor).With("earliest", earliest)
}

// beyond is the error for a cursor behind all changes that there are.
func (s *Store) beyond(ctx context.Context, client string, info *jetstream.StreamInfo, cursor, end cdc.Position) error {
	at, err := s.findEarliest(ctx, client, info)
	if err != nil {
		return err
	}
	return athena.Errorf(athena.CodeCursorExpired, "the cursor %s stands behind all changes of client %q, of which the last is %s: it is of another stream, or of one that was made anew; begin at earliest or now", cursor, client, end).
		With("cursor", cursor).With("earliest", at.cursor).With("last", end)
}

// An Extent is what is kept of a client's changes.
type Extent struct {
	Messages uint64
	Bytes    uint64
	MaxBytes int64 // -1 is no limit
	MaxAge   time.Duration
	// First and Last are positions of the first and the last change; empty if
	// there is none.
	First, Last cdc.Position
	// Oldest is when the first message was stored; zero if there is none.
	Oldest time.Time
}

// Extent returns what is kept of a client's changes; nil if there is no stream.
func (s *Store) Extent(ctx context.Context, client string) (*Extent, error) {
	info, err := s.streamInfo(ctx, client)
	if err != nil || info == nil {
		return nil, err
	}
	e := &Extent{Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: info.Config.MaxBytes, MaxAge: info.Config.MaxAge}
	first, err := s.bus.MsgFrom(ctx, info.Config.Name, 1)
	if errors.Is(err, bus.ErrNoMessage) {
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	last, err := s.bus.LastMsg(ctx, info.Config.Name, ">")
	if err != nil && !errors.Is(err, bus.ErrNoMessage) {
		return nil, err
	}
	m := newMessage(*first)
	e.First, e.Oldest = cmp.Or(m.first, m.pos), first.Time
	if last != nil {
		e.Last = newMessage(*last).pos
	}
	return e, nil
}

// Behind returns how many messages hold changes behind a cursor, which may be
// wanted or not: each holds up to 512.
func (s *Store) Behind(ctx context.Context, client string, cursor cdc.Position) (uint64, error) {
	info, err := s.streamInfo(ctx, client)
	if err != nil {
		return 0, err
	}
	at, err := s.find(ctx, client, info, Start{cursor: cursor})
	if err != nil || info == nil || info.State.LastSeq < at.seq {
		return 0, err
	}
	return info.State.LastSeq + 1 - at.seq, nil
}

// CursorAt returns the cursor at which a reader that is opened now from a start,
// as ParseFrom reads it, would begin. It fails as Open does.
func (s *Store) CursorAt(ctx context.Context, client, from string) (cdc.Position, error) {
	start, err := ParseFrom(from)
	if err != nil {
		return "", err
	}
	info, err := s.streamInfo(ctx, client)
	if err != nil {
		return "", err
	}
	at, err := s.find(ctx, client, info, start)
	return at.cursor, err
}
