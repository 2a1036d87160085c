package changefeed

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/mirror"
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
	bus    *bus.Bus
	kv     jetstream.KeyValue
	mirror *mirror.Mirror[[]byte]
}

// NewStore returns the store on b.
func NewStore(ctx context.Context, b *bus.Bus, log *slog.Logger) (*Store, error) {
	kv, err := b.JetStream().KeyValue(ctx, bus.BucketCDC)
	if err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "bucket %s cannot be looked up", bus.BucketCDC)
	}
	decode := func(e jetstream.KeyValueEntry) []byte { return e.Value() }
	return &Store{bus: b, kv: kv, mirror: mirror.New(kv, decode, log)}, nil
}

// Bus is the bus that the store is on.
func (s *Store) Bus() *bus.Bus { return s.bus }

// Run follows the bucket until ctx is done.
func (s *Store) Run(ctx context.Context) error { return s.mirror.Run(ctx) }

// Ready returns once the copy is complete for the first time.
func (s *Store) Ready(ctx context.Context) error { return s.mirror.Wait(ctx) }

// Current reports whether the copy is up to date.
func (s *Store) Current() bool { return s.mirror.Current() }

// Sync returns once the copy has everything that was stored when it was called.
func (s *Store) Sync(ctx context.Context) error { return s.mirror.Sync(ctx) }

// Subscribe has fn called with the client of each thing that changes, status
// and cursors left out. fn must return quickly.
func (s *Store) Subscribe(fn func(client string)) (cancel func()) {
	return s.mirror.Subscribe(func(key string) {
		kind, rest, _ := strings.Cut(key, ".")
		if kind == kindStatus || kind == kindCursor || kind == kindOrigin || kind == kindTable {
			return
		}
		client, _, _ := strings.Cut(rest, ".")
		fn(client)
	})
}

// load reads one key of the copy into a T; false if it is not there.
func load[T any](s *Store, key string) (v T, revision uint64, ok bool) {
	e := s.mirror.Load(key)
	if e == nil {
		return v, 0, false
	}
	return v, e.Revision, json.Unmarshal(e.Value, &v) == nil
}

// list reads all keys with a prefix, in the order of the keys.
func list[T any](s *Store, prefix string, set func(*T, uint64)) []T {
	type pair struct {
		key string
		v   T
	}
	var found []pair
	s.mirror.Range(func(key string, e *mirror.Entry[[]byte]) bool {
		var v T
		if strings.HasPrefix(key, prefix) && json.Unmarshal(e.Value, &v) == nil {
			if set != nil {
				set(&v, e.Revision)
			}
			found = append(found, pair{key, v})
		}
		return true
	})
	slices.SortFunc(found, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	out := make([]T, len(found))
	for i, p := range found {
		out[i] = p.v
	}
	return out
}

// put writes a key: made anew if revision is 0, else over just that revision.
func (s *Store) put(ctx context.Context, key string, v any, revision uint64) (uint64, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	var now uint64
	if revision == 0 {
		now, err = s.kv.Create(ctx, key, raw)
	} else {
		now, err = s.kv.Update(ctx, key, raw, revision)
	}
	if err != nil {
		return 0, unavailable(err)
	}
	s.mirror.Store(key, now, raw)
	return now, nil
}

// set writes a key whatever it holds.
func (s *Store) set(ctx context.Context, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	revision, err := s.kv.Put(ctx, key, raw)
	if err != nil {
		return unavailable(err)
	}
	s.mirror.Store(key, revision, raw)
	return nil
}

func (s *Store) remove(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	if err := s.kv.Delete(ctx, key, opts...); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return unavailable(err)
	}
	return nil
}

// unavailable is the error for a write or a read that failed.
func unavailable(err error) error {
	var refusal *jetstream.APIError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, jetstream.ErrKeyExists), errors.As(err, &refusal) && refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return athena.Wrap(athena.CodeConflict, err, "it was changed meanwhile; read it again")
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "bucket %s cannot be reached", bus.BucketCDC)
}

// Captures lists all captures.
func (s *Store) Captures() []Capture {
	return list(s, kindCapture+".", func(c *Capture, rev uint64) { c.Revision = rev })
}

// Capture returns a client's capture; false if there is none.
func (s *Store) Capture(client string) (Capture, bool) {
	c, rev, ok := load[Capture](s, kindCapture+"."+client)
	c.Revision = rev
	return c, ok
}

// PutCapture stores c, over the revision that it has; 0 is a new one. A conflict
// error says that somebody else was faster.
func (s *Store) PutCapture(ctx context.Context, c Capture) (Capture, error) {
	rev, err := s.put(ctx, kindCapture+"."+c.Client, c, c.Revision)
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
		errs = append(errs, s.remove(ctx, kind+"."+c.Client))
	}
	return errors.Join(append(errs, s.remove(ctx, kindCapture+"."+c.Client, jetstream.LastRevision(c.Revision)))...)
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
	rev, err := s.put(ctx, kindOrigin+"."+client, o, o.Revision)
	if err == nil {
		o.Revision = rev
	}
	return o, err
}

// Status returns how a client's capture fares, as far as was told.
func (s *Store) Status(client string) (Status, bool) {
	st, _, ok := load[Status](s, kindStatus+"."+client)
	return st, ok
}

// PutStatus stores how a capture fares.
func (s *Store) PutStatus(ctx context.Context, st Status) error {
	return s.set(ctx, kindStatus+"."+st.Client, st)
}

// SnapshotRequests lists a client's snapshots that are asked for and not done,
// in the order of their ids.
func (s *Store) SnapshotRequests(client string) []SnapshotRequest {
	return list(s, kindSnapshot+"."+client+".", func(r *SnapshotRequest, rev uint64) { r.Revision = rev })
}

// PutSnapshot asks for a snapshot.
func (s *Store) PutSnapshot(ctx context.Context, r SnapshotRequest) error {
	_, err := s.put(ctx, kindSnapshot+"."+r.Client+"."+r.ID, r, 0)
	return err
}

// ForgetSnapshot removes a request, when it is done or no longer wanted.
func (s *Store) ForgetSnapshot(ctx context.Context, client, id string) error {
	return s.remove(ctx, kindSnapshot+"."+client+"."+id)
}
