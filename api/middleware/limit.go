package middleware

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// limiters keeps one token bucket for each name, for at most so many names. It
// is safe for concurrent use.
type limiters struct {
	most int

	mu     sync.Mutex
	byName map[string]*list.Element
	recent *list.List // of *bucket, the latest first
}

type bucket struct {
	name string
	*rate.Limiter
}

func newLimiters(most int) *limiters {
	return &limiters{most: most, byName: map[string]*list.Element{}, recent: list.New()}
}

// take takes one token of the named bucket, or says how long to wait for one.
// A limit that changed holds from now on.
func (l *limiters) take(name string, limit rate.Limit, burst int) time.Duration {
	b := l.bucket(name, limit, burst)
	now := time.Now()
	r := b.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now) // who is turned away does not stand in the queue
	}
	return wait
}

func (l *limiters) bucket(name string, limit rate.Limit, burst int) *bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.byName[name]; ok {
		l.recent.MoveToFront(e)
		b := e.Value.(*bucket)
		if b.Limit() != limit || b.Burst() != burst {
			b.SetLimit(limit)
			b.SetBurst(burst)
		}
		return b
	}
	if l.recent.Len() >= l.most {
		oldest := l.recent.Back()
		l.recent.Remove(oldest)
		delete(l.byName, oldest.Value.(*bucket).name)
	}
	b := &bucket{name: name, Limiter: rate.NewLimiter(limit, burst)}
	l.byName[name] = l.recent.PushFront(b)
	return b
}

// Clients bounds the requests in each client's name by the client's own limit.
// Its Admit is the Dispatcher's.
type Clients struct{ limiters *limiters }

// NewClients keeps at most so many clients in mind; 10,000 if most is 0.
func NewClients(most int) *Clients {
	if most == 0 {
		most = 10_000
	}
	return &Clients{newLimiters(most)}
}

// Admit takes one of the client's requests per second, or is a
// too_many_requests error. A second's worth may come at once.
func (l *Clients) Admit(c *athena.Client) error {
	limit := c.Limits.RequestsPerSecond
	if limit <= 0 {
		return nil
	}
	wait := l.limiters.take(c.Name, rate.Limit(limit), max(1, int(limit)))
	if wait == 0 {
		return nil
	}
	return athena.Errorf(athena.CodeTooManyRequests, "client %q has a limit of %g requests per second", c.Name, limit).
		With("limit", "client").RetryIn(wait)
}
