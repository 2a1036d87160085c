package scylla

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// sweepUp takes a batch that the sweep has read: behind the main reader, where
// all has been handed over but for what was written late. Before since the table
// was not captured.
func sweepUp(since ticks) func(context.Context, *logReader, batchID, *scyllacdc.Change) error {
	return func(ctx context.Context, r *logReader, id batchID, change *scyllacdc.Change) error {
		at, s := ticks(id.at.Timestamp()), r.stream
		if at < since || at < s.handed.known() {
			return nil
		}
		if err := s.reach(ctx, at); err != nil {
			return err
		}
		if s.handed.has(id) {
			return nil
		}
		b, err := r.decode(ctx, id, change)
		if err != nil {
			return err
		}
		b.late = true
		return s.do(ctx, func(ctx context.Context, sink driver.ChangeSink) error {
			return s.hand(ctx, sink, b, s.mark.counter+1, 0)
		})
	}
}

// reach waits until the main readers have handed over all of a time.
func (s *changeStream) reach(ctx context.Context, at ticks) error {
	for {
		s.mu.Lock()
		floor, moved := s.mark.floor, s.moved
		s.mu.Unlock()
		if floor > at {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// addRows gives the rows that a late batch is about as they are now, or that they
// are gone: so who keeps rows by key ends with the right ones, though what the batch
// wrote or deleted may have been written over before. Those of a partition or a range
// are read page by page, and none is kept.
func (s *changeStream) addRows(ctx context.Context, b *batch, add func(context.Context, *cdc.Change) error) error {
	seen := map[string]bool{}
	for i := range b.changes {
		c := &b.changes[i]
		if id := string(c.Key) + string(c.Range); seen[id] {
			continue
		} else {
			seen[id] = true
		}
		row := func(op cdc.Op, key, after []byte) error {
			return add(ctx, &cdc.Change{
				Op: op, Client: c.Client, Schema: c.Schema, Table: c.Table, Key: slices.Clone(key), After: slices.Clone(after),
				// Who settles by time has what is younger, and must keep it.
				WriteTime: c.WriteTime,
			})
		}
		var err error
		switch c.Op {
		case cdc.Insert, cdc.Update, cdc.Delete:
			var after []byte
			if after, err = s.backend.rowNow(ctx, b.table, c.Key); err != nil {
				return err
			}
			if after == nil {
				err = row(cdc.Delete, c.Key, nil)
			} else {
				err = row(cdc.Read, c.Key, after)
			}
		case cdc.DeletePartition, cdc.DeleteRange:
			err = s.backend.rowsNow(ctx, b.table, c.Key, c.Range, func(key, after []byte) error {
				return row(cdc.Read, key, after)
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// handed are the batches that have been handed over, by minute, as far back as the
// sweep looks: 8 bytes of each. Methods are safe for concurrent use; the zero
// value is empty.
type handed struct {
	mu      sync.Mutex
	seed    maphash.Seed
	minutes map[int64]*minute
	count   int
	from    ticks // of what is older not all is known
}

type minute struct {
	hashes []uint64
	sorted int // so many of them are in order, and the rest is behind
}

const (
	// mostHanded bounds the batches that are remembered, 8 bytes each. Beyond that
	// the sweep does not look back as far as it is told to.
	mostHanded = 16 << 20
	ticksAMin  = ticks(time.Minute / 100)
)

func (h *handed) hash(id batchID) uint64 { return maphash.Comparable(h.seed, id) }

// add notes a batch.
func (h *handed) add(id batchID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.minutes == nil {
		h.minutes, h.seed = map[int64]*minute{}, maphash.MakeSeed()
	}
	at := int64(ticks(id.at.Timestamp()) / ticksAMin)
	m := h.minutes[at]
	if m == nil {
		m = &minute{}
		h.minutes[at] = m
	}
	m.hashes = append(m.hashes, h.hash(id))
	if h.count++; h.count > mostHanded {
		oldest := at
		for m := range h.minutes {
			oldest = min(oldest, m)
		}
		h.drop(oldest)
		h.from = max(h.from, ticks(oldest+1)*ticksAMin)
	}
}

// has reports whether a batch was handed over.
func (h *handed) has(id batchID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.minutes[int64(ticks(id.at.Timestamp())/ticksAMin)]
	if m == nil {
		return false
	}
	hash := h.hash(id)
	if _, ok := slices.BinarySearch(m.hashes[:m.sorted], hash); ok {
		return true
	}
	if len(m.hashes)-m.sorted > unsorted {
		slices.Sort(m.hashes)
		m.sorted = len(m.hashes)
		_, ok := slices.BinarySearch(m.hashes, hash)
		return ok
	}
	return slices.Contains(m.hashes[m.sorted:], hash)
}

// unsorted is how many hashes are looked through one by one.
const unsorted = 64

// forget drops what is older than the sweep is.
func (h *handed) forget(before ticks) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for m := range h.minutes {
		if ticks(m+1)*ticksAMin <= before {
			h.drop(m)
		}
	}
}

func (h *handed) drop(m int64) {
	h.count -= len(h.minutes[m].hashes)
	delete(h.minutes, m)
}

// ignore has all that is older count as handed over.
func (h *handed) ignore(before ticks) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.from = max(h.from, before)
}

// known is since when all that was handed over is known.
func (h *handed) known() ticks {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.from
}

// horizon is how far back the sweep looks, of what it is told to.
func (h *handed) horizon(sweep time.Duration) time.Duration {
	if from := h.known(); from > 0 {
		return min(sweep, time.Since(from.time()))
	}
	return sweep
}
