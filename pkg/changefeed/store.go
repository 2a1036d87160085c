package changefeed

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/documents"
)

// Kinds of keys in the bucket: kind.client, or kind.client.name.
const (
	kindCapture      = "capture"
	kindOrigin       = "origin"
	kindStatus       = "status"
	kindSnapshot     = "snapshot"
	kindTable        = "table"
	kindSubscription = "sub"
	kindCursor       = "cursor"
)

// Store keeps captures, their status, and subscriptions. Reads come from this
// process's copy of the bucket, which Run keeps. It is safe for concurrent use.
type Store struct {
	bus  *bus.Bus
	docs *documents.Bucket
}

// NewStore returns the store on b.
func NewStore(ctx context.Context, b *bus.Bus, log *slog.Logger) (*Store, error) {
	docs, err := documents.Open(ctx, b.JetStream(), bus.BucketCDC, log)
	return &Store{bus: b, docs: docs}, err
}

// Bus is the bus that the store is on.
func (s *Store) Bus() *bus.Bus { return s.bus }

// Run follows the bucket until ctx is done.
func (s *Store) Run(ctx context.Context) error { return s.docs.Run(ctx) }

// Ready returns once the copy is complete for the first time.
func (s *Store) Ready(ctx context.Context) error { return s.docs.Ready(ctx) }

// Current reports whether the copy is up to date.
func (s *Store) Current() bool { return s.docs.Current() }

// Sync returns once the copy has everything that was stored when it was called.
func (s *Store) Sync(ctx context.Context) error { return s.docs.Sync(ctx) }

// Subscribe has fn called with the client of each thing that changes, status
// and cursors left out. fn must return quickly.
func (s *Store) Subscribe(fn func(client string)) (cancel func()) {
	return s.docs.Subscribe(func(key string) {
		kind, rest, _ := strings.Cut(key, ".")
		if kind == kindStatus || kind == kindCursor || kind == kindOrigin || kind == kindTable {
			return
		}
		client, _, _ := strings.Cut(rest, ".")
		fn(client)
	})
}

// Captures lists all captures.
func (s *Store) Captures() []Capture {
	return documents.List(s.docs, kindCapture+".", func(c *Capture, rev uint64) { c.Revision = rev })
}

// Capture returns a client's capture; false if there is none.
func (s *Store) Capture(client string) (Capture, bool) {
	c, rev, ok := documents.Load[Capture](s.docs, kindCapture+"."+client)
	c.Revision = rev
	return c, ok
}

// PutCapture stores c, over the revision that it has; 0 is a new one. A conflict
// error says that somebody else was faster.
func (s *Store) PutCapture(ctx context.Context, c Capture) (Capture, error) {
	rev, err := s.docs.Put(ctx, kindCapture+"."+c.Client, c, c.Revision)
	c.Revision = rev
	return c, err
}

// ForgetCapture removes a capture, at the revision that it has, with all that is
// kept of it but its stream, its subscriptions and their cursors. A conflict error
// says that it is another one now.
func (s *Store) ForgetCapture(ctx context.Context, c Capture) error {
	var errs []error
	for _, r := range s.SnapshotRequests(c.Client) {
		errs = append(errs, s.ForgetSnapshot(ctx, c.Client, r.ID))
	}
	for _, kind := range []string{kindStatus, kindOrigin} {
		errs = append(errs, s.docs.Remove(ctx, kind+"."+c.Client))
	}
	return errors.Join(append(errs, s.docs.Remove(ctx, kindCapture+"."+c.Client, jetstream.LastRevision(c.Revision)))...)
}

// Origin returns what is kept of a capture's beginning, or of an earlier capture's
// and false if this one has not begun.
func (s *Store) Origin(ctx context.Context, c Capture) (o Origin, begun bool, err error) {
	// Not the copy, which may lag behind another worker's writes.
	m, err := s.bus.LastMsg(ctx, "KV_"+bus.BucketCDC, "$KV."+bus.BucketCDC+"."+kindOrigin+"."+c.Client)
	if errors.Is(err, bus.ErrNoMessage) || err == nil && len(m.Data) == 0 { // or what marks its removal
		return Origin{}, false, nil
	}
	if err != nil {
		return Origin{}, false, err
	}
	if err := json.Unmarshal(m.Data, &o); err != nil {
		return Origin{}, false, err
	}
	o.Revision = m.Sequence
	return o, o.Capture == c.ID, nil
}

// PutOrigin stores what is kept of a capture's beginning, over the revision that
// it has; 0 is a new one. A worker that was overtaken gets a conflict error, also
// where its write comes late.
func (s *Store) PutOrigin(ctx context.Context, client string, o Origin) (Origin, error) {
	rev, err := s.docs.Put(ctx, kindOrigin+"."+client, o, o.Revision)
	if err == nil {
		o.Revision = rev
	}
	return o, err
}

// Status returns how a client's capture fares, as far as was told.
func (s *Store) Status(client string) (Status, bool) {
	st, _, ok := documents.Load[Status](s.docs, kindStatus+"."+client)
	return st, ok
}

// PutStatus stores how a capture fares.
func (s *Store) PutStatus(ctx context.Context, st Status) error {
	return s.docs.Set(ctx, kindStatus+"."+st.Client, st)
}

// SnapshotRequests lists a client's snapshots that are asked for and not done,
// in the order of their ids.
func (s *Store) SnapshotRequests(client string) []SnapshotRequest {
	return documents.List(s.docs, kindSnapshot+"."+client+".", func(r *SnapshotRequest, rev uint64) { r.Revision = rev })
}

// PutSnapshot asks for a snapshot.
func (s *Store) PutSnapshot(ctx context.Context, r SnapshotRequest) error {
	_, err := s.docs.Put(ctx, kindSnapshot+"."+r.Client+"."+r.ID, r, 0)
	return err
}

// ForgetSnapshot removes a request, when it is done or no longer wanted.
func (s *Store) ForgetSnapshot(ctx context.Context, client, id string) error {
	return s.docs.Remove(ctx, kindSnapshot+"."+client+"."+id)
}
