// Package documents keeps JSON documents in a JetStream key-value bucket. Reads
// come from this process's copy of the bucket; writes are compare-and-set.
//
// It knows nothing of what the documents mean.
package documents

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/mirror"
)

// A Bucket is one bucket. It is safe for concurrent use.
type Bucket struct {
	name   string
	kv     jetstream.KeyValue
	mirror *mirror.Mirror[[]byte]
}

// Open returns the bucket of that name.
func Open(ctx context.Context, js jetstream.JetStream, name string, log *slog.Logger) (*Bucket, error) {
	kv, err := js.KeyValue(ctx, name)
	if err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "bucket %s cannot be looked up", name)
	}
	decode := func(e jetstream.KeyValueEntry) []byte { return e.Value() }
	return &Bucket{name: name, kv: kv, mirror: mirror.New(kv, decode, log)}, nil
}

// Run follows the bucket until ctx is done.
func (b *Bucket) Run(ctx context.Context) error { return b.mirror.Run(ctx) }

// Ready returns once the copy is complete for the first time.
func (b *Bucket) Ready(ctx context.Context) error { return b.mirror.Wait(ctx) }

// Current reports whether the copy is up to date.
func (b *Bucket) Current() bool { return b.mirror.Current() }

// Sync returns once the copy has everything that was stored when it was called.
func (b *Bucket) Sync(ctx context.Context) error {
	if err := b.mirror.Sync(ctx); err != nil {
		return b.explain(err)
	}
	return nil
}

// Subscribe has fn called with each key that changes. fn must return quickly.
func (b *Bucket) Subscribe(fn func(key string)) (cancel func()) { return b.mirror.Subscribe(fn) }

// KV is the bucket itself.
func (b *Bucket) KV() jetstream.KeyValue { return b.kv }

// Load reads a document from the copy; false if there is none.
func Load[T any](b *Bucket, key string) (v T, revision uint64, ok bool) {
	e := b.mirror.Load(key)
	if e == nil {
		return v, 0, false
	}
	return v, e.Revision, json.Unmarshal(e.Value, &v) == nil
}

// Get reads a document from the bucket, where the copy may lag behind; false if
// there is none.
func Get[T any](ctx context.Context, b *Bucket, key string) (v T, revision uint64, ok bool, err error) {
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return v, 0, false, nil
	}
	if err != nil {
		return v, 0, false, b.explain(err)
	}
	return v, e.Revision(), true, json.Unmarshal(e.Value(), &v)
}

// List reads all documents under a prefix of keys from the copy, in the order of
// their keys. Set, if it is not nil, is told the revision of each.
func List[T any](b *Bucket, prefix string, set func(*T, uint64)) []T {
	type pair struct {
		key string
		v   T
	}
	var found []pair
	b.mirror.Range(func(key string, e *mirror.Entry[[]byte]) bool {
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

// Each calls fn for each document under a prefix of keys in the copy, as it is
// stored, in no order. What it is given must not be changed.
func (b *Bucket) Each(prefix string, fn func(key string, revision uint64, raw []byte)) {
	b.mirror.Range(func(key string, e *mirror.Entry[[]byte]) bool {
		if strings.HasPrefix(key, prefix) {
			fn(key, e.Revision, e.Value)
		}
		return true
	})
}

// Put writes a document: made anew if revision is 0, else over just that
// revision. A conflict error says that somebody else has written.
func (b *Bucket) Put(ctx context.Context, key string, v any, revision uint64) (uint64, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	var now uint64
	if revision == 0 {
		now, err = b.kv.Create(ctx, key, raw)
	} else {
		now, err = b.kv.Update(ctx, key, raw, revision)
	}
	if err != nil {
		return 0, b.explain(err)
	}
	b.mirror.Store(key, now, raw)
	return now, nil
}

// Set writes a document whatever the key holds.
func (b *Bucket) Set(ctx context.Context, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	revision, err := b.kv.Put(ctx, key, raw)
	if err != nil {
		return b.explain(err)
	}
	b.mirror.Store(key, revision, raw)
	return nil
}

// Remove removes a document. What is not there is no error.
func (b *Bucket) Remove(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	if err := b.kv.Delete(ctx, key, opts...); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return b.explain(err)
	}
	return nil
}

// explain is the error for a write or a read that failed.
func (b *Bucket) explain(err error) error {
	var refusal *jetstream.APIError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, jetstream.ErrKeyExists), errors.As(err, &refusal) && refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return athena.Wrap(athena.CodeConflict, err, "it was changed meanwhile; read it again")
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "bucket %s cannot be reached", b.name)
}
