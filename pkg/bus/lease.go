package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// ErrHeld is what a HeldError is.
var ErrHeld = errors.New("bus: the lease is held")

// A HeldError says who holds the lease that was asked for.
type HeldError struct{ Key, Owner string }

func (e *HeldError) Error() string { return fmt.Sprintf("bus: lease %q is held by %q", e.Key, e.Owner) }

// Is makes a HeldError an ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// headerLease tells leases of the same owner apart.
const headerLease = "Ath-Lease"

const headerOperation = "KV-Operation"

// A lease is renewed after renewAt of its time to live, and given up if that has
// not worked by loseAt: well before the server lets another have it.
const (
	renewAt = 0.3
	loseAt  = 0.7
)

// Leases are keys of a bucket that one owner at a time holds. It is safe for
// concurrent use.
type Leases struct {
	bus    *Bus
	bucket string
	pub    *Publisher
}

// NewLeases returns the leases in a bucket whose keys can have a time to live.
func NewLeases(b *Bus, bucket string) *Leases {
	return &Leases{bus: b, bucket: bucket, pub: NewPublisher(b, "KV_"+bucket)}
}

// A Lease is held until it is released or lost. It renews itself. Its methods are
// safe for concurrent use.
type Lease struct {
	leases *Leases
	key    string
	owner  string
	id     string
	ttl    time.Duration
	token  uint64

	rev     uint64 // of the last renewal; run's, then Release's
	until   time.Time
	stop    context.CancelFunc
	stopped chan struct{} // closed when run has ended
	done    chan struct{}
	release sync.Once
	result  error
}

// Acquire waits until the key is free and takes it. If ctx is done first, the
// error is the context's and wraps a HeldError. The lease does not depend on ctx.
func (l *Leases) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (*Lease, error) {
	for {
		lease, err := l.TryAcquire(ctx, key, owner, ttl)
		if err == nil || !errors.Is(err, ErrHeld) {
			return lease, err
		}
		if werr := l.Await(ctx, key); werr != nil {
			return nil, errors.Join(werr, err)
		}
	}
}

// TryAcquire takes the key if it is free, or returns a *HeldError. A ttl below a
// second is refused; the server counts in whole seconds, rounded up. The lease
// does not depend on ctx.
func (l *Leases) TryAcquire(ctx context.Context, key, owner string, ttl time.Duration) (*Lease, error) {
	if ttl < time.Second {
		return nil, fmt.Errorf("bus: a lease lasts at least 1s, not %s", ttl)
	}
	last, live, err := l.last(ctx, key)
	if err != nil {
		return nil, err
	}
	if live {
		return nil, &HeldError{key, string(last.Data)}
	}
	lease := &Lease{leases: l, key: key, owner: owner, id: nuid.Next(), ttl: ttl, stopped: make(chan struct{}), done: make(chan struct{})}
	lease.rev = last.Sequence
	err = lease.renew(ctx)
	switch {
	case err == nil:
	case errors.Is(err, ErrWrongSequence):
		if last, live, err = l.last(ctx, key); err != nil {
			return nil, err
		}
		if !live { // it came and went
			last.Data = nil
		}
		return nil, &HeldError{key, string(last.Data)}
	default:
		return nil, err
	}
	lease.token = lease.rev
	ctx, lease.stop = context.WithCancel(context.WithoutCancel(ctx))
	go lease.run(ctx) // ends by Release, or when the lease is lost
	return lease, nil
}

// Await returns when nobody holds the key, or with ctx's error when it is done.
func (l *Leases) Await(ctx context.Context, key string) error {
	kv, err := l.bus.js.KeyValue(ctx, l.bucket)
	if err != nil {
		return unread("KV_"+l.bucket, err)
	}
	w, err := kv.Watch(ctx, key)
	if err != nil {
		return unread("KV_"+l.bucket, err)
	}
	defer w.Stop()
	look := time.NewTicker(5 * time.Second) // should the watch be cut off
	defer look.Stop()
	found, updates := false, w.Updates()
	for {
		select {
		case e, ok := <-updates:
			switch {
			case !ok:
				updates = nil
			case e == nil && !found: // all there was has been seen
				return nil
			case e == nil:
			case e.Operation() != jetstream.KeyValuePut:
				return nil
			default:
				found = true
			}
		case <-look.C:
			if _, live, err := l.last(ctx, key); err == nil && !live {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// last returns the last message of a key, the zero Raw if there is none, and
// whether it is somebody's lease and not the mark of one that has ended.
func (l *Leases) last(ctx context.Context, key string) (*Raw, bool, error) {
	raw, err := l.bus.LastMsg(ctx, "KV_"+l.bucket, l.subject(key))
	if errors.Is(err, ErrNoMessage) {
		return &Raw{}, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return raw, raw.Header.Get(headerOperation) == "" && raw.Header.Get(jetstream.MarkerReasonHeader) == "", nil
}

func (l *Leases) subject(key string) string { return "$KV." + l.bucket + "." + key }

// Key is what the lease is on.
func (l *Lease) Key() string { return l.key }

// Token is the fencing token: every later lease of the key has a higher one.
func (l *Lease) Token() uint64 { return l.token }

// Done is closed when the lease is lost or released. A holder that works on
// after it works beside another one.
func (l *Lease) Done() <-chan struct{} { return l.done }

func (l *Lease) run(ctx context.Context) {
	defer close(l.stopped)
	defer close(l.done)
	wait := l.part(renewAt)
	for {
		select {
		case <-time.After(min(wait, time.Until(l.until))):
		case <-ctx.Done():
			return
		}
		rctx, cancel := context.WithDeadline(ctx, l.until)
		err := l.renew(rctx)
		cancel()
		switch {
		case err == nil:
			wait = l.part(renewAt)
		case errors.Is(err, ErrWrongSequence), !time.Now().Before(l.until):
			return
		default:
			wait = l.part(0.05)
		}
	}
}

func (l *Lease) part(share float64) time.Duration { return time.Duration(share * float64(l.ttl)) }

// renew writes the lease anew if it still is what it was. KeyValue.Update would
// do but for the time to live, which it drops.
func (l *Lease) renew(ctx context.Context) error {
	for again := true; ; again = false {
		sent := time.Now()
		seq, err := l.write(ctx, []byte(l.owner), TTL(l.ttl), "")
		if err == nil {
			l.rev, l.until = seq, sent.Add(l.part(loseAt))
			return nil
		}
		if !again || !l.caughtUp(ctx, err) {
			return err
		}
	}
}

// caughtUp reports whether a write failed because an earlier one, which had no
// answer, was stored after all. Then the lease is still ours, at that revision.
func (l *Lease) caughtUp(ctx context.Context, err error) bool {
	if !errors.Is(err, ErrAmbiguous) && !errors.Is(err, ErrWrongSequence) {
		return false
	}
	last, live, err := l.leases.last(ctx, l.key)
	if err != nil || !live || last.Header.Get(headerLease) != l.id {
		return false
	}
	l.rev = last.Sequence
	return true
}

func (l *Lease) write(ctx context.Context, data []byte, ttl, operation string) (uint64, error) {
	msg := nats.NewMsg(l.leases.subject(l.key))
	msg.Data = data
	msg.Header.Set(jetstream.MsgTTLHeader, ttl)
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(l.rev, 10))
	msg.Header.Set(headerLease, l.id)
	if operation != "" {
		msg.Header.Set(headerOperation, operation)
	}
	return l.leases.pub.Publish(ctx, msg)
}

// Release gives the lease back, so that another can have it at once. It is no
// error if the lease was lost. Without an answer from the bus the key becomes
// free when its time has passed. Further calls return what the first did.
func (l *Lease) Release(ctx context.Context) error {
	l.release.Do(func() {
		l.stop()
		<-l.stopped
		l.result = l.delete(ctx)
	})
	return l.result
}

func (l *Lease) delete(ctx context.Context) error {
	_, err := l.write(ctx, nil, TTL(MarkerTTL), "DEL")
	if err != nil && l.caughtUp(ctx, err) { // a renewal was under way when run was stopped
		_, err = l.write(ctx, nil, TTL(MarkerTTL), "DEL")
	}
	if err == nil || errors.Is(err, ErrWrongSequence) {
		return nil
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "lease %q was not released; it ends within %s", l.key, l.ttl)
}
