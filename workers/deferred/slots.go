package deferred

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/bus"
)

// slots are this worker's share of a client's max_running. Each is a lease, so
// that the limit holds over all workers; one is kept while there is work and
// given back when it has been idle.
type slots struct {
	leases *bus.Leases
	client string
	owner  string

	mu   sync.Mutex
	held []*slot
}

type slot struct {
	n     int
	lease *bus.Lease
	busy  bool
	since time.Time // when it became idle
}

// slotIdle is how long an idle slot is kept from other workers.
const slotIdle = 2 * time.Second

// take returns a free slot, leasing one more if none is free and fewer than most
// are held; nil if all are in use, here or elsewhere.
func (s *slots) take(ctx context.Context, most int) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
	mine := map[int]bool{}
	for _, h := range s.held {
		if !h.busy && h.n < most {
			h.busy = true
			return h
		}
		mine[h.n] = true
	}
	if len(s.held) >= most {
		return nil
	}
	for _, n := range rand.Perm(most) {
		if mine[n] {
			continue
		}
		lease, err := s.leases.TryAcquire(ctx, fmt.Sprintf("slot.%s.%d", s.client, n), s.owner, slotTTL)
		if err == nil {
			h := &slot{n: n, lease: lease, busy: true}
			s.held = append(s.held, h)
			return h
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// put makes a slot free again.
func (s *slots) put(h *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.busy, h.since = false, time.Now()
}

// drop forgets slots whose lease was lost.
func (s *slots) drop() {
	kept := s.held[:0]
	for _, h := range s.held {
		select {
		case <-h.lease.Done():
			if h.busy { // its statement runs on, beyond the limit for a moment
				kept = append(kept, h)
			}
		default:
			kept = append(kept, h)
		}
	}
	s.held = kept
}

// release gives back the slots that have been idle for a while.
func (s *slots) release(ctx context.Context, idle time.Duration) {
	s.mu.Lock()
	var free []*slot
	kept := s.held[:0]
	for _, h := range s.held {
		if !h.busy && time.Since(h.since) >= idle {
			free = append(free, h)
		} else {
			kept = append(kept, h)
		}
	}
	s.held = kept
	s.mu.Unlock()
	for _, h := range free {
		h.lease.Release(ctx)
	}
}
