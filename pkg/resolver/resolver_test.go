package resolver_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/resolver"
)

var _ dispatch.Resolver = (*resolver.Resolver)(nil)

// fleet is a driver whose backends know when they are used wrongly.
type fleet struct {
	// onOpen, if set, is asked before each open.
	onOpen func(ctx context.Context, dsn string) error

	opens atomic.Int64
	open  atomic.Int64 // backends open now
	wrong atomic.Int64 // closed while in use, used after close, closed twice
}

type backend struct {
	f      *fleet
	dsn    string
	users  atomic.Int64
	closed atomic.Bool
}

func (b *backend) Ping(context.Context) error { return nil }

func (b *backend) Classify(error) driver.Failure { return driver.Failure{} }

func (b *backend) Close(context.Context) error {
	if b.closed.Swap(true) || b.users.Load() != 0 {
		b.f.wrong.Add(1)
	}
	b.f.open.Add(-1)
	return nil
}

// use is one operation with the backend.
func (b *backend) use(d time.Duration) {
	b.users.Add(1)
	if b.closed.Load() {
		b.f.wrong.Add(1)
	}
	if d > 0 {
		time.Sleep(d)
	}
	if b.closed.Load() {
		b.f.wrong.Add(1)
	}
	b.users.Add(-1)
}

func (f *fleet) driver() driver.Driver {
	return driver.New(func(ctx context.Context, c athena.PostgresConn) (*backend, error) {
		f.opens.Add(1)
		if f.onOpen != nil {
			if err := f.onOpen(ctx, c.DSN.Reveal()); err != nil {
				return nil, err
			}
		}
		f.open.Add(1)
		return &backend{f: f, dsn: c.DSN.Reveal()}, nil
	})
}

func open(path string, s athena.Secret) (athena.Secret, error) {
	if kind, name := s.Reference(); kind == athena.SecretEnv {
		return s, athena.Errorf(athena.CodeBackendUnavailable, "environment variable %s, which %s refers to, is not set on this process", name, path).At(path)
	}
	return s, nil
}

func (f *fleet) resolver(t *testing.T) *resolver.Resolver {
	t.Helper()
	r := resolver.New(nil, map[athena.Engine]driver.Driver{athena.EnginePostgres: f.driver()}, resolver.Config{Open: open})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d backends are open after Close", n)
		}
		if n := f.wrong.Load(); n != 0 {
			t.Errorf("backends were used wrongly %d times", n)
		}
	})
	return r
}

func client(name, dsn string, revision uint64) *athena.Client {
	return &athena.Client{Name: name, Lifecycle: athena.Active, Connection: athena.PostgresConn{DSN: athena.NewSecret(dsn)}, Revision: revision}
}

func must(t *testing.T, r *resolver.Resolver, c *athena.Client) (*backend, func()) {
	t.Helper()
	b, release, err := r.Backend(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*backend), release
}

func wantCause(t *testing.T, err error, cause string) *athena.Error {
	t.Helper()
	e := athena.AsError(err)
	if e == nil || e.Code != athena.CodeBackendUnavailable || e.Details["cause"] != cause {
		t.Fatalf("got %v %v, want backend_unavailable for %s", err, e, cause)
	}
	return e
}

func TestBackendIsSharedAndReopenedForItsConnectionAlone(t *testing.T) {
	t.Parallel()
	f := &fleet{}
	r := f.resolver(t)
	b1, release1 := must(t, r, client("shop", "one", 1))
	frozen := client("shop", "one", 2)
	frozen.Lifecycle = athena.Frozen
	b2, release2 := must(t, r, frozen)
	if b1 != b2 || f.opens.Load() != 1 {
		t.Fatalf("a change of the lifecycle opened %d backends", f.opens.Load())
	}
	_, releaseOther := must(t, r, client("lake", "one", 1))
	if f.opens.Load() != 2 {
		t.Error("two clients share a backend")
	}
	releaseOther()

	b3, release3 := must(t, r, client("shop", "two", 3))
	if b3 == b1 || b3.dsn != "two" {
		t.Fatal("new connection data got the old backend")
	}
	if b1.closed.Load() {
		t.Fatal("a backend in use was closed")
	}
	release1()
	release1() // more calls do nothing
	if b1.closed.Load() {
		t.Fatal("a backend in use was closed after a release that came twice")
	}
	release2()
	for deadline := time.Now().Add(5 * time.Second); !b1.closed.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a superseded backend was not closed after its last release")
		}
	}

	// A definition from before the change does not bring the old backend back.
	_, _, err := r.Backend(t.Context(), client("shop", "one", 2))
	if e := wantCause(t, err, resolver.CauseChanged); e.RetryAfter <= 0 {
		t.Error("no time to retry")
	}
	release3()
}

func TestFirstUsersShareOneOpen(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	f := &fleet{onOpen: func(context.Context, string) error { <-gate; return nil }}
	r := f.resolver(t)
	c := client("shop", "one", 1)
	first, giveUp := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := r.Backend(first, c); !errors.Is(err, context.Canceled) || athena.CodeOf(err) != athena.CodeCancelled {
			t.Errorf("the caller that gave up got %v", err)
		}
	})
	for f.opens.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 50 {
		wg.Go(func() {
			b, release, err := r.Backend(t.Context(), c)
			if err != nil {
				t.Error(err)
				return
			}
			b.(*backend).use(0)
			release()
		})
	}
	giveUp() // the open goes on for the others
	time.Sleep(5 * time.Millisecond)
	close(gate)
	wg.Wait()
	if n := f.opens.Load(); n != 1 {
		t.Errorf("%d opens, want 1", n)
	}
}

func TestASlowEngineHoldsUpItsOwnClientsOnly(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	f := &fleet{onOpen: func(_ context.Context, dsn string) error {
		if dsn == "slow" {
			<-gate
		}
		return nil
	}}
	r := f.resolver(t)
	slow := make(chan struct{})
	go func() {
		defer close(slow)
		if _, release, err := r.Backend(t.Context(), client("slow", "slow", 1)); err != nil {
			t.Error(err)
		} else {
			release()
		}
	}()
	for f.opens.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	for i := range 100 {
		_, release := must(t, r, client(fmt.Sprint("fast", i), "fast", 1))
		release()
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("100 other clients took %s", took)
	}
	close(gate)
	<-slow
}

func TestAFailedOpenIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		dead.Store(true)
		f := &fleet{onOpen: func(context.Context, string) error {
			if dead.Load() {
				return errors.New("dial tcp db.internal:5432: password pl4nted refused")
			}
			return nil
		}}
		r := f.resolver(t)
		c := client("shop", "one", 1)
		var waits []time.Duration
		for range 12 {
			opens := f.opens.Load()
			_, _, err := r.Backend(t.Context(), c)
			e := wantCause(t, err, resolver.CauseConnect)
			if f.opens.Load() != opens+1 {
				t.Fatal("the time to retry had come and nothing was tried")
			}
			for _, shown := range []string{e.Error(), fmt.Sprint(e.Details)} {
				if strings.Contains(shown, "db.internal") || strings.Contains(shown, "pl4nted") {
					t.Fatalf("shown: %s", shown)
				}
			}
			if !strings.Contains(errors.Unwrap(e).Error(), "db.internal") {
				t.Error("the cause is lost to the log")
			}
			// Asking again costs nothing, and the wait counts down.
			time.Sleep(e.RetryAfter / 2)
			for range 100 {
				_, _, err = r.Backend(t.Context(), c)
				if again := wantCause(t, err, resolver.CauseConnect); again.RetryAfter > e.RetryAfter/2+time.Millisecond {
					t.Fatalf("after half of %s one is to wait %s", e.RetryAfter, again.RetryAfter)
				}
			}
			if f.opens.Load() != opens+1 {
				t.Fatal("a dead backend was tried again before its time")
			}
			waits = append(waits, e.RetryAfter)
			time.Sleep(e.RetryAfter)
		}
		for i, w := range waits {
			if w < 500*time.Millisecond || w > 30*time.Second || i > 0 && i < 5 && w <= waits[i-1] {
				t.Errorf("waits are %v", waits)
				break
			}
		}
		if last := waits[len(waits)-1]; last < 20*time.Second {
			t.Errorf("the last wait is %s", last)
		}
		dead.Store(false)
		_, release := must(t, r, c)
		release()
	})
}

func TestForgetAndNewDataClearAFailure(t *testing.T) {
	t.Parallel()
	f := &fleet{onOpen: func(_ context.Context, dsn string) error {
		if dsn == "bad" {
			return athena.Errorf(athena.CodeInvalidRequest, "cannot parse postgres://u:pl4nted@h")
		}
		return nil
	}}
	r := f.resolver(t)
	for i := range 3 {
		_, _, err := r.Backend(t.Context(), client("shop", "bad", 1))
		if e := wantCause(t, err, resolver.CauseInvalid); strings.Contains(fmt.Sprint(e, e.Details), "pl4nted") {
			t.Errorf("shown: %v %v", e, e.Details)
		}
		if n := f.opens.Load(); n != int64(i+1) {
			t.Errorf("%d opens after %d times of forgetting", n, i)
		}
		r.Forget("shop")
	}
	_, _, err := r.Backend(t.Context(), client("shop", "bad", 1))
	wantCause(t, err, resolver.CauseInvalid)
	_, release := must(t, r, client("shop", "good", 2))
	release()
}

func TestAnOpenIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		deaf := make(chan struct{})
		f := &fleet{onOpen: func(ctx context.Context, dsn string) error {
			if dsn == "deaf" {
				<-deaf // a driver that does not heed its context
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		r := f.resolver(t)
		for _, dsn := range []string{"heeds", "deaf"} {
			began := time.Now()
			_, _, err := r.Backend(t.Context(), client(dsn, dsn, 1))
			wantCause(t, err, resolver.CauseTimeout)
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("%s: took %s", dsn, took)
			}
		}
		opens := f.opens.Load()
		time.Sleep(time.Minute)
		_, _, err := r.Backend(t.Context(), client("deaf", "deaf", 1))
		wantCause(t, err, resolver.CauseTimeout)
		if f.opens.Load() != opens {
			t.Error("a driver that hangs was asked a second time meanwhile")
		}
		close(deaf) // what comes late is closed
		synctest.Wait()
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d backends are open", n)
		}
	})
}

func TestIdleBackendsAreClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{}
		r := f.resolver(t)
		c := client("shop", "one", 1)
		b, release := must(t, r, c)
		time.Sleep(time.Hour) // in use, however long
		if b.closed.Load() {
			t.Fatal("a backend in use was closed")
		}
		release()
		for range 5 { // each use begins the time anew
			time.Sleep(4 * time.Minute)
			again, release := must(t, r, c)
			if again != b {
				t.Fatal("closed before its time")
			}
			release()
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if !b.closed.Load() {
			t.Fatal("an idle backend was not closed after 5 min")
		}
		again, release := must(t, r, c)
		if again == b {
			t.Fatal("a closed backend was handed out")
		}
		release()
	})
}

func TestCanOpenDoesNotDial(t *testing.T) {
	t.Parallel()
	f := &fleet{}
	r := f.resolver(t)
	if err := r.CanOpen(t.Context(), client("shop", "one", 1)); err != nil {
		t.Error(err)
	}
	e := wantCause(t, r.CanOpen(t.Context(), client("shop", "env:SHOP_DSN", 1)), resolver.CauseSecret)
	if !strings.Contains(e.Message, "SHOP_DSN") || e.Details["field"] != "connection.dsn" {
		t.Errorf("%v %v", e, e.Details)
	}
	s3 := &athena.Client{Name: "lake", Connection: athena.S3Conn{Bucket: "b"}}
	wantCause(t, r.CanOpen(t.Context(), s3), resolver.CauseEngine)
	_, _, err := r.Backend(t.Context(), s3)
	wantCause(t, err, resolver.CauseEngine)
	_, _, err = r.Backend(t.Context(), client("shop", "env:SHOP_DSN", 1))
	wantCause(t, err, resolver.CauseSecret)
	if f.opens.Load() != 0 {
		t.Error("it dialled")
	}
	if r.Supports(athena.EngineS3) != 0 {
		t.Error("an engine outside the build supports something")
	}
}

func TestCloseWaitsForUsers(t *testing.T) {
	t.Parallel()
	f := &fleet{}
	r := f.resolver(t)
	b, release := must(t, r, client("shop", "one", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 clients") {
		t.Errorf("Close with a user returned %v", err)
	}
	if b.closed.Load() {
		t.Error("a backend in use was closed")
	}
	_, _, err := r.Backend(t.Context(), client("shop", "one", 1))
	wantCause(t, err, resolver.CauseClosed)
	release()
	if err := r.Close(t.Context()); err != nil || !b.closed.Load() {
		t.Errorf("after the last release: %v", err)
	}
}

func TestCloseEndsOpensUnderWay(t *testing.T) {
	t.Parallel()
	f := &fleet{onOpen: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}
	r := f.resolver(t)
	got := make(chan error)
	go func() {
		_, _, err := r.Backend(t.Context(), client("shop", "one", 1))
		got <- err
	}()
	for f.opens.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-got; athena.CodeOf(err) != athena.CodeBackendUnavailable {
		t.Errorf("got %v", err)
	}
}

// TestStress rotates, forgets, fails and uses a few clients from many
// goroutines; the backends themselves tell of a wrong use, and the clean-up of
// one left open.
func TestStress(t *testing.T) {
	t.Parallel()
	f := &fleet{onOpen: func(ctx context.Context, dsn string) error {
		time.Sleep(rand.N(500 * time.Microsecond))
		if strings.HasSuffix(dsn, "7") {
			return errors.New("refused")
		}
		return nil
	}}
	r := resolver.New(nil, map[athena.Engine]driver.Driver{athena.EnginePostgres: f.driver()},
		resolver.Config{Open: open, IdleAfter: 2 * time.Millisecond})
	var current [3]atomic.Pointer[athena.Client]
	var revision atomic.Uint64
	rotate := func(i int) {
		rev := revision.Add(1)
		current[i].Store(client(fmt.Sprint("c", i), fmt.Sprint("dsn", rev/2), rev))
	}
	for i := range current {
		rotate(i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var served, refused atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c := current[rand.N(len(current))].Load()
				waiting, giveUp := context.WithTimeout(ctx, rand.N(2*time.Millisecond))
				b, release, err := r.Backend(waiting, c)
				giveUp()
				if err != nil {
					if code := athena.CodeOf(err); code != athena.CodeBackendUnavailable && code != athena.CodeTimeout {
						t.Error(err)
					}
					refused.Add(1)
					continue
				}
				if want := c.Connection.(athena.PostgresConn).DSN.Reveal(); b.(*backend).dsn != want {
					t.Errorf("asked for %s, got %s", want, b.(*backend).dsn)
				}
				b.(*backend).use(rand.N(200 * time.Microsecond))
				release()
				served.Add(1)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(rand.N(2 * time.Millisecond))
			switch i := rand.N(len(current)); rand.N(4) {
			case 0:
				r.Forget(fmt.Sprint("c", i))
			default:
				rotate(i)
			}
		}
	})
	wg.Wait()
	closing, done := context.WithTimeout(context.Background(), 10*time.Second)
	defer done()
	if err := r.Close(closing); err != nil {
		t.Error(err)
	}
	t.Logf("%d uses, %d refusals, %d opens", served.Load(), refused.Load(), f.opens.Load())
	if f.open.Load() != 0 || f.wrong.Load() != 0 {
		t.Errorf("%d backends left open, %d wrong uses", f.open.Load(), f.wrong.Load())
	}
	if served.Load() < 100 || f.opens.Load() < 100 {
		t.Errorf("only %d uses and %d opens: this stressed nothing", served.Load(), f.opens.Load())
	}
}

func BenchmarkBackend(b *testing.B) {
	f := &fleet{}
	r := resolver.New(nil, map[athena.Engine]driver.Driver{athena.EnginePostgres: f.driver()}, resolver.Config{Open: open})
	c := client("shop", "one", 1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, release, err := r.Backend(context.Background(), c)
			if err != nil {
				b.Fatal(err)
			}
			release()
		}
	})
}

func TestWhyOpeningFailedIsToldAsItsDriverKnowsIt(t *testing.T) {
	t.Parallel()
	refused := errors.New(`FATAL: database "pl4nted" does not exist`)
	d := (&fleet{onOpen: func(context.Context, string) error { return refused }}).driver()
	for told, want := range map[string]string{"the database does not exist": "the database does not exist", "": "it did not let us connect"} {
		d.Classify = func(err error) driver.Failure {
			if !errors.Is(err, refused) {
				t.Errorf("asked what %v means", err)
			}
			return driver.Failure{Code: athena.CodeBackendUnavailable, Message: told}
		}
		r := resolver.New(nil, map[athena.Engine]driver.Driver{athena.EnginePostgres: d}, resolver.Config{Open: open})
		_, _, err := r.Backend(t.Context(), client("shop", "one", 1))
		if e := wantCause(t, err, resolver.CauseConnect); !strings.Contains(e.Message, want) || strings.Contains(e.Message, "pl4nted") {
			t.Errorf("told %q: %s", told, e.Message)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
