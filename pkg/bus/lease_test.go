package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

func TestLeaseIsHeldByOneAndSaysByWhom(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := bus.NewLeases(b, bus.BucketLeases)
	first, err := l.TryAcquire(t.Context(), "slot.shop.0", "w1", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var held *bus.HeldError
	if _, err := l.TryAcquire(t.Context(), "slot.shop.0", "w2", 2*time.Second); !errors.As(err, &held) || held.Owner != "w1" || !errors.Is(err, bus.ErrHeld) {
		t.Errorf("the second got %v", err)
	}
	// Renewed, it is held well beyond its time to live.
	select {
	case <-first.Done():
		t.Error("the lease was lost")
	case <-time.After(4 * time.Second):
	}
	if _, err := l.TryAcquire(t.Context(), "slot.shop.0", "w2", 2*time.Second); !errors.Is(err, bus.ErrHeld) {
		t.Errorf("after two times to live: %v", err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	select {
	case <-first.Done():
	default:
		t.Error("Done is open after Release")
	}
	second, err := l.TryAcquire(t.Context(), "slot.shop.0", "w2", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if second.Token() <= first.Token() {
		t.Errorf("tokens went from %d to %d", first.Token(), second.Token())
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("a second release: %v", err)
	}
	if _, err := l.TryAcquire(t.Context(), "slot.shop.0", "w3", time.Second); !errors.Is(err, bus.ErrHeld) {
		t.Errorf("the second release freed another's lease: %v", err)
	}
	if err := second.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWaiterTakesOverAtOnceAfterRelease(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := bus.NewLeases(b, bus.BucketLeases)
	first, err := l.TryAcquire(t.Context(), "k", "w1", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	took := make(chan error, 1)
	var at time.Time
	go func() {
		second, err := l.Acquire(t.Context(), "k", "w2", 30*time.Second)
		at = time.Now()
		if err == nil {
			err = second.Release(t.Context())
		}
		took <- err
	}()
	time.Sleep(300 * time.Millisecond)
	start := time.Now()
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-took; err != nil {
		t.Fatal(err)
	}
	if d := at.Sub(start); d > 200*time.Millisecond {
		t.Errorf("the waiter needed %s", d)
	}
}

func TestWaiterGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := bus.NewLeases(b, bus.BucketLeases)
	first, err := l.TryAcquire(t.Context(), "k", "w1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release(t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = l.Acquire(ctx, "k", "w2", time.Minute)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, bus.ErrHeld) {
		t.Errorf("got %v", err)
	}
}

// A holder whose connection dies stops renewing, as one that was killed does.
func TestCrashedHolderIsReplaced(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir()})
	b := bustest.Bus(t, s)
	nc, err := s.Connect(nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	doomed, err := bus.New(nc, bus.Config{Embedded: s})
	if err != nil {
		t.Fatal(err)
	}
	first, err := bus.NewLeases(doomed, bus.BucketLeases).TryAcquire(t.Context(), "k", "w1", ttl)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	died := time.Now()
	second, err := bus.NewLeases(b, bus.BucketLeases).Acquire(t.Context(), "k", "w2", ttl)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Release(t.Context())
	if d := time.Since(died); d > ttl+2*time.Second {
		t.Errorf("takeover took %s", d)
	}
	select {
	case <-first.Done():
	default:
		t.Error("another holds the lease and the first does not know that it lost it")
	}
	if second.Token() <= first.Token() {
		t.Errorf("tokens went from %d to %d", first.Token(), second.Token())
	}
}

// Somebody else writes the key, against all rules: the holder finds out.
func TestLeaseThatWasTakenAwayIsLost(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	first, err := bus.NewLeases(b, bus.BucketLeases).TryAcquire(t.Context(), "k", "w1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := b.JetStream().KeyValue(t.Context(), bus.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "k", "thief"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
	case <-time.After(time.Second):
		t.Error("the holder does not notice within its time to live")
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("releasing a lost lease: %v", err)
	}
	if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value()) != "thief" {
		t.Errorf("the release touched the new holder's key: %v", err)
	}
}

// A fence is a resource that takes writes only with the highest token so far.
type fence struct {
	holders atomic.Int32
	mu      sync.Mutex
	highest uint64
}

// Law 4: whatever workers do, no two believe to hold one key at once, and tokens
// only grow.
func TestNeverTwoHolders(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := bus.NewLeases(b, bus.BucketLeases)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		workers := rapid.IntRange(2, 4).Draw(rt, "workers")
		turns := rapid.IntRange(1, 2).Draw(rt, "turns")
		hold := rapid.SliceOfN(rapid.IntRange(0, 2), workers, workers).Draw(rt, "hold")
		key := fmt.Sprintf("round.%d", round)
		var f fence
		errs := make(chan error, workers*turns*2)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for range turns {
					lease, err := l.Acquire(t.Context(), key, fmt.Sprint(w), time.Second)
					if err != nil {
						errs <- err
						return
					}
					if n := f.holders.Add(1); n != 1 {
						errs <- fmt.Errorf("%d hold at once", n)
					}
					f.mu.Lock()
					if lease.Token() <= f.highest {
						errs <- fmt.Errorf("token %d after %d", lease.Token(), f.highest)
					}
					f.highest = lease.Token()
					f.mu.Unlock()
					time.Sleep(time.Duration(hold[w]) * time.Millisecond)
					f.holders.Add(-1)
					if err := lease.Release(t.Context()); err != nil {
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			rt.Error(err)
		}
	})
}
