// Package mirror keeps a process's own copy of a JetStream key-value bucket:
// reads cost a map look-up, and every process sees a change within moments of
// its being stored.
//
// It knows nothing of what the values mean. It writes nothing.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// probeEvery is how often the copy is held against the bucket. A watch
	// that lost its consumer without being told is found by this alone.
	probeEvery   = time.Second
	probeTimeout = 3 * time.Second
	restartDelay = 200 * time.Millisecond
)

// A Mirror is a copy of one bucket, each value decoded once. All its methods
// may be called concurrently; Run must be running for the copy to follow.
type Mirror[V any] struct {
	kv     jetstream.KeyValue
	decode func(jetstream.KeyValueEntry) V
	log    *slog.Logger

	entries sync.Map // string → *Entry[V]; written under mu, read without
	loaded  chan struct{}
	current atomic.Bool

	mu      sync.Mutex
	applied uint64        // what the watch has delivered, as a revision of the bucket
	moved   chan struct{} // closed, and made anew, when applied moves
	subs    map[*subscription]struct{}
}

type subscription struct{ fn func(key string) }

// An Entry is one value and the revision that it has in the bucket.
type Entry[V any] struct {
	Value    V
	Revision uint64
}

// New makes a mirror of kv. decode must not fail: a value that cannot be read
// is to become a V that says so. A nil logger discards.
func New[V any](kv jetstream.KeyValue, decode func(jetstream.KeyValueEntry) V, log *slog.Logger) *Mirror[V] {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Mirror[V]{
		kv:     kv,
		decode: decode,
		log:    log,
		loaded: make(chan struct{}),
		moved:  make(chan struct{}),
		subs:   map[*subscription]struct{}{},
	}
}

// Run follows the bucket until ctx is done, and then returns nil. A watch that
// ends or falls behind is started again; meanwhile the copy answers as it was,
// and Current is false.
func (m *Mirror[V]) Run(ctx context.Context) error {
	for {
		err := m.follow(ctx)
		m.current.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		m.log.Warn("the watch of a bucket ended and is started again",
			"bucket", m.kv.Bucket(), telemetry.KeyError, err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}
}

// Wait returns once the copy has been complete for the first time. Before that
// a key that is missing here may be in the bucket.
func (m *Mirror[V]) Wait(ctx context.Context) error {
	select {
	case <-m.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Load returns the entry of key, or nil. The entry is shared and must not be
// changed.
func (m *Mirror[V]) Load(key string) *Entry[V] {
	e, ok := m.entries.Load(key)
	if !ok {
		return nil
	}
	return e.(*Entry[V])
}

// Range calls fn for every entry, in no order, until it returns false.
func (m *Mirror[V]) Range(fn func(key string, e *Entry[V]) bool) {
	m.entries.Range(func(k, e any) bool { return fn(k.(string), e.(*Entry[V])) })
}

// Store puts in a value that this process has just written under revision, so
// that it reads its own writes. What the watch has delivered since wins.
func (m *Mirror[V]) Store(key string, revision uint64, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision <= m.applied {
		return
	}
	if old := m.Load(key); old == nil || old.Revision < revision {
		m.entries.Store(key, &Entry[V]{value, revision})
	}
}

// Subscribe has fn called, from Run, after each change that the watch delivers,
// the first ones included; a key that is then missing was deleted. fn must
// return quickly. The returned function ends it.
func (m *Mirror[V]) Subscribe(fn func(key string)) (cancel func()) {
	s := &subscription{fn}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs[s] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.subs, s)
	}
}

// Current reports whether the copy was complete and up to date when it was last
// held against the bucket, a few seconds ago at most.
func (m *Mirror[V]) Current() bool { return m.current.Load() }

// Sync returns once the copy holds everything that was in the bucket when Sync
// was called.
func (m *Mirror[V]) Sync(ctx context.Context) error {
	last, err := m.last(ctx)
	if err != nil {
		return err
	}
	if err := m.Wait(ctx); err != nil {
		return err
	}
	for {
		m.mu.Lock()
		applied, moved := m.applied, m.moved
		m.mu.Unlock()
		if applied >= last {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("mirror: bucket %s is at revision %d, this copy at %d: %w", m.kv.Bucket(), last, applied, ctx.Err())
		}
	}
}

// follow watches until the watch ends or is found to be behind.
func (m *Mirror[V]) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	last, err := m.last(ctx)
	if err != nil {
		cancel()
		return fmt.Errorf("mirror: read the state of bucket %s: %w", m.kv.Bucket(), err)
	}
	written := last // what this process wrote after it is not in the watch's first part
	m.mu.Lock()
	if last < m.applied { // the bucket was made anew, and its revisions with it
		m.applied, written = 0, math.MaxUint64
	}
	m.mu.Unlock()
	w, err := m.kv.WatchAll(ctx)
	if err != nil {
		cancel()
		return fmt.Errorf("mirror: watch bucket %s: %w", m.kv.Bucket(), err)
	}
	var probing sync.WaitGroup
	probes := make(chan probe)
	probing.Go(func() { m.probe(ctx, probes) })
	defer func() {
		// The end of ctx stops the watch. Stop would do so too, and then wait
		// seconds for a server that may be away to delete the consumer.
		cancel()
		probing.Wait()
		for range w.Updates() { // the library waits for room in this channel
		}
	}()

	seen := map[string]bool{}
	var before probe
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return errors.New("mirror: the watch was closed")
			case e == nil:
				m.complete(seen, written, last)
				seen = nil
			default:
				if seen != nil {
					seen[e.Key()] = true
				}
				m.apply(e)
			}
		case p := <-probes:
			if p.err != nil {
				m.current.Store(false)
				continue
			}
			stuck := p.applied < before.last && p.applied == before.applied
			if stuck || p.last < p.applied {
				return fmt.Errorf("mirror: bucket %s is at revision %d, the watch at %d", m.kv.Bucket(), p.last, p.applied)
			}
			m.current.Store(seen == nil && p.applied >= before.last)
			before = p
		}
	}
}

// A probe is where the watch stood, and where the bucket stood after that.
type probe struct {
	applied, last uint64
	err           error
}

func (m *Mirror[V]) probe(ctx context.Context, to chan<- probe) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		p := probe{applied: m.applied}
		m.mu.Unlock()
		p.last, p.err = m.last(ctx)
		select {
		case <-ctx.Done():
			return
		case to <- p:
		}
	}
}

// last returns the newest revision of the bucket.
func (m *Mirror[V]) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, err := m.kv.Status(ctx)
	if err != nil {
		return 0, err
	}
	s, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return 0, fmt.Errorf("mirror: the state of a bucket is a %T", status)
	}
	return s.StreamInfo().State.LastSeq, nil
}

// apply takes over one change. A watch that was started again repeats changes;
// those are known by their revision.
func (m *Mirror[V]) apply(e jetstream.KeyValueEntry) {
	m.mu.Lock()
	if e.Revision() <= m.applied {
		m.mu.Unlock()
		return
	}
	if e.Operation() != jetstream.KeyValuePut {
		m.entries.Delete(e.Key())
	} else if old := m.Load(e.Key()); old == nil || old.Revision != e.Revision() {
		m.entries.Store(e.Key(), &Entry[V]{m.decode(e), e.Revision()})
	}
	m.advance(e.Revision())
	m.mu.Unlock()
	m.tell(e.Key())
}

// complete ends the first part of a watch, which told of every key that there
// is: keys of which it did not tell have gone while nobody watched, except for
// what this process wrote after the revision written. The watch then stands at
// least at revision upTo.
func (m *Mirror[V]) complete(seen map[string]bool, written, upTo uint64) {
	var gone []string
	m.mu.Lock()
	m.Range(func(key string, e *Entry[V]) bool {
		if !seen[key] && e.Revision <= written {
			m.entries.Delete(key)
			gone = append(gone, key)
		}
		return true
	})
	m.advance(upTo)
	m.mu.Unlock()
	for _, key := range gone {
		m.tell(key)
	}
	m.current.Store(true)
	select {
	case <-m.loaded:
	default:
		close(m.loaded)
	}
}

// advance is called under mu.
func (m *Mirror[V]) advance(to uint64) {
	if to <= m.applied {
		return
	}
	m.applied = to
	close(m.moved)
	m.moved = make(chan struct{})
}

func (m *Mirror[V]) tell(key string) {
	m.mu.Lock()
	subs := slices.Collect(maps.Keys(m.subs))
	m.mu.Unlock()
	for _, s := range subs {
		s.fn(key)
	}
}
