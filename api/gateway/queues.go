package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// counter counts a client's waiting jobs.
type counter interface {
	Queued(ctx context.Context, c *athena.Client) (int, error)
}

// queues holds each client to its max_queued. The count is read at most once a
// second; what was accepted here since then is added to it.
type queues struct {
	counter counter
	mu      sync.Mutex
	of      map[string]*queue
}

// fresh is how old a count may be.
const fresh = time.Second

type queue struct {
	counting sync.Mutex // held while the count is read

	mu      sync.Mutex
	counted int
	at      time.Time
	since   int // accepted since the count was read
	pending int // being submitted now
}

func newQueues(c counter) *queues { return &queues{counter: c, of: map[string]*queue{}} }

func (qs *queues) queue(client string) *queue {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.of[client]
	if q == nil {
		q = &queue{}
		qs.of[client] = q
	}
	return q
}

// reserve takes a place in the client's queue, or is a too_many_requests error.
// Settle is called once, with whether the place was used.
func (qs *queues) reserve(ctx context.Context, c *athena.Client) (settle func(used bool), err error) {
	q := qs.queue(c.Name)
	if err := q.refresh(ctx, qs.counter, c); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	most := c.Limits.WithDefaults().MaxQueued
	if n := q.counted + q.since + q.pending; n >= most {
		return nil, athena.Errorf(athena.CodeTooManyRequests, "client %q has %d jobs waiting, and may have %d; nothing was accepted", c.Name, n, most).
			With("limit", "max_queued").With("max_queued", most).RetryIn(time.Second)
	}
	q.pending++
	return func(used bool) {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.pending--
		if used {
			q.since++
		}
	}, nil
}

func (q *queue) refresh(ctx context.Context, from counter, c *athena.Client) error {
	if q.isFresh() {
		return nil
	}
	q.counting.Lock()
	defer q.counting.Unlock()
	if q.isFresh() {
		return nil
	}
	q.mu.Lock()
	seen := q.since // what comes later may be counted twice, and never not at all
	q.mu.Unlock()
	n, err := from.Queued(ctx, c)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.counted, q.since, q.at = n, q.since-seen, time.Now()
	return nil
}

func (q *queue) isFresh() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.at.IsZero() && time.Since(q.at) < fresh
}
