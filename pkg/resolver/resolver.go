// Package resolver turns a client's name into its definition, and a definition
// into an open backend. The two steps are apart because they fail for different
// reasons.
//
// Invariants:
//
//  1. A backend is opened once for each state of a client's connection data,
//     and shared. A change of anything else, such as a freeze, does not reopen.
//  2. A backend is closed after its last release: when it has been idle, when
//     its connection data was replaced, or when the resolver is closed.
//  3. No lock is held while a backend is opened or closed, so that one engine
//     that is slow holds up its own clients and no others.
//  4. An open belongs to nobody: a caller that gives up leaves it to the others.
//  5. A failed open is remembered, so that a dead backend costs nothing to ask
//     for; it says nothing of hosts and connection strings.
//
// The package knows the contract of drivers and none of the drivers. It does
// not look at lifecycles and capabilities: dispatch does.
package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	firstBackoff = 500 * time.Millisecond // the least; it doubles, with up to half as much jitter
	mostBackoff  = 30 * time.Second
	closeTimeout = 10 * time.Second
)

// Catalog has the definitions.
type Catalog interface {
	// Client returns the definition, or client_not_found.
	Client(ctx context.Context, name string) (*athena.Client, error)
}

// Config says how a Resolver works. Open is required.
type Config struct {
	// Open resolves one secret of a definition on this process. path is its
	// field's path.
	Open func(path string, s athena.Secret) (athena.Secret, error)
	// IdleAfter is how long a backend that nobody uses is kept; 5 min by
	// default.
	IdleAfter time.Duration
	// OpenTimeout bounds one open; 10 s by default.
	OpenTimeout time.Duration
	Logger      *slog.Logger // none by default
}

// A Resolver is safe for concurrent use.
type Resolver struct {
	catalog Catalog
	drivers map[athena.Engine]driver.Driver
	cfg     Config

	mu     sync.Mutex // held for moments only: see invariant 3
	slots  map[string]*slot
	closed bool
	live   sync.WaitGroup // opens and backends that are not over
}

// New makes a resolver of clients in the catalog with the drivers of this
// build.
func New(catalog Catalog, drivers map[athena.Engine]driver.Driver, cfg Config) *Resolver {
	if cfg.IdleAfter == 0 {
		cfg.IdleAfter = 5 * time.Minute
	}
	if cfg.OpenTimeout == 0 {
		cfg.OpenTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Resolver{catalog: catalog, drivers: drivers, cfg: cfg, slots: map[string]*slot{}}
}

// A slot is one state of one client's connection data and the backend that it
// leads to. Its fields are guarded by the resolver's mutex, but for those of
// the attempt.
type slot struct {
	client  *athena.Client // the newest definition with this connection data
	attempt *attempt       // the last one; nil before the first
	refs    int            // those that use the backend or wait for it
	used    time.Time      // when refs last became 0
	idle    *time.Timer

	failures int
	retryAt  time.Time

	retired bool // no longer in the resolver's map
	closing bool
}

// An attempt is one try at opening. The fields below done are set before done
// is closed.
type attempt struct {
	cancel context.CancelFunc
	over   bool // the driver's Open has returned; guarded by the resolver's mutex
	done   chan struct{}

	backend driver.Backend
	err     *athena.Error
}

// Client returns the definition, or client_not_found.
func (r *Resolver) Client(ctx context.Context, name string) (*athena.Client, error) {
	return r.catalog.Client(ctx, name)
}

// Supports returns what the engine's driver implements; nothing if the engine
// is not in this build.
func (r *Resolver) Supports(e athena.Engine) athena.Capabilities { return r.drivers[e].Supports }

// Backend returns the client's open backend. The caller calls release once when
// it no longer uses it; more calls do nothing. The error is backend_unavailable,
// whose detail "cause" is one of the Cause constants, or ctx's own error.
func (r *Resolver) Backend(ctx context.Context, c *athena.Client) (b driver.Backend, release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	d, ok := r.drivers[c.Engine()]
	if !ok {
		return nil, nil, unavailable(c, CauseEngine, nil, "engine %s is not in this build", c.Engine())
	}
	r.mu.Lock()
	s, err := r.slot(c)
	if err != nil {
		r.mu.Unlock()
		return nil, nil, err
	}
	a, err := r.ensure(ctx, s, d)
	if err != nil {
		r.mu.Unlock()
		return nil, nil, err
	}
	s.refs++
	r.mu.Unlock()

	select {
	case <-a.done:
	default:
		select {
		case <-a.done:
		case <-ctx.Done():
			r.release(s)
			return nil, nil, ctx.Err()
		}
	}
	if a.err != nil {
		r.release(s)
		return nil, nil, a.err
	}
	return a.backend, sync.OnceFunc(func() { r.release(s) }), nil
}

// slot returns the slot for c's connection data, and retires one with data that
// c's replace. It is called under mu.
func (r *Resolver) slot(c *athena.Client) (*slot, error) {
	if r.closed {
		return nil, unavailable(c, CauseClosed, nil, "this process is stopping")
	}
	s := r.slots[c.Name]
	switch {
	case s == nil:
	case s.client == c:
		return s, nil
	case reflect.DeepEqual(s.client.Connection, c.Connection):
		if c.Revision > s.client.Revision {
			s.client = c
		}
		return s, nil
	case c.Revision < s.client.Revision:
		// What c is allowed was decided for a backend that is no longer its.
		return nil, unavailable(c, CauseChanged, nil, "its definition has just been changed").RetryIn(100 * time.Millisecond)
	default:
		r.retire(s)
	}
	s = &slot{client: c}
	r.slots[c.Name] = s
	return s, nil
}

// ensure returns the attempt to wait for, and begins one if needed. It is
// called under mu.
func (r *Resolver) ensure(ctx context.Context, s *slot, d driver.Driver) (*attempt, error) {
	if a := s.attempt; a != nil {
		select {
		case <-a.done:
		default:
			return a, nil
		}
		if a.err == nil {
			return a, nil
		}
		if wait := time.Until(s.retryAt); wait > 0 {
			return nil, a.err.RetryIn(wait)
		}
		if !a.over { // a driver that does not heed its context is not asked again meanwhile
			return nil, a.err.RetryIn(mostBackoff)
		}
	}
	open, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.OpenTimeout)
	a := &attempt{cancel: cancel, done: make(chan struct{})}
	s.attempt = a
	s.refs++ // the attempt's own, until it is settled
	conn, name := s.client.Connection, s.client.Name
	r.live.Go(func() {
		defer cancel()
		r.open(open, s, a, d, conn, name)
	})
	return a, nil
}

// open makes one attempt. It settles the attempt when the time is over even if
// the driver is not done then.
func (r *Resolver) open(ctx context.Context, s *slot, a *attempt, d driver.Driver, conn athena.Connection, name string) {
	type opened struct {
		backend driver.Backend
		err     *athena.Error
	}
	result := make(chan opened, 1)
	go func() {
		b, err := r.dial(ctx, d, conn, name)
		result <- opened{b, err}
	}()
	select {
	case o := <-result:
		r.settle(s, a, o.backend, o.err, true)
	case <-ctx.Done():
		err := failed(name, CauseTimeout, ctx.Err(), "opening it took longer than %s", r.cfg.OpenTimeout)
		if errors.Is(ctx.Err(), context.Canceled) {
			err = failed(name, CauseClosed, ctx.Err(), "this process is stopping")
		}
		r.settle(s, a, nil, err, false)
		o := <-result
		r.mu.Lock()
		a.over = true
		r.mu.Unlock()
		if o.backend != nil {
			r.close(ctx, name, o.backend)
		}
	}
}

// dial resolves the secrets and opens the backend.
func (r *Resolver) dial(ctx context.Context, d driver.Driver, conn athena.Connection, name string) (driver.Backend, *athena.Error) {
	conn, err := conn.MapSecrets(r.cfg.Open)
	if err != nil {
		return nil, secretError(name, err)
	}
	b, err := d.Open(ctx, conn)
	switch {
	case err == nil:
		return b, nil
	case athena.CodeOf(err) == athena.CodeInvalidRequest:
		return nil, failed(name, CauseInvalid, err, "its connection data is not valid")
	case errors.Is(err, context.DeadlineExceeded):
		return nil, failed(name, CauseTimeout, err, "it did not answer in time")
	}
	why := "it did not let us connect"
	if d.Classify != nil {
		why = cmp.Or(d.Classify(err).Message, why)
	}
	return nil, failed(name, CauseConnect, err, "%s", why)
}

// settle ends an attempt.
func (r *Resolver) settle(s *slot, a *attempt, b driver.Backend, err *athena.Error, over bool) {
	r.mu.Lock()
	a.over = over
	if err != nil {
		most := min(mostBackoff, firstBackoff*3/2<<min(s.failures, 10))
		wait := most - rand.N(most/3)
		s.failures++
		s.retryAt = time.Now().Add(wait)
		err = err.RetryIn(wait)
	} else {
		s.failures = 0
		r.live.Add(1) // for the backend, until it is closed
	}
	a.backend, a.err = b, err
	close(a.done)
	r.mu.Unlock()
	r.release(s)
}

// release takes back one reference.
func (r *Resolver) release(s *slot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.refs--
	if s.refs > 0 {
		return
	}
	s.used = time.Now()
	if s.retired {
		r.finish(s)
		return
	}
	if s.idle == nil {
		s.idle = time.AfterFunc(r.cfg.IdleAfter, func() { r.reap(s) })
	}
}

// reap retires a slot that nobody has used for a while, and comes back later to
// one that somebody has.
func (r *Resolver) reap(s *slot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.retired {
		return
	}
	wait := r.cfg.IdleAfter
	if s.refs == 0 {
		if wait = time.Until(s.used.Add(r.cfg.IdleAfter)); wait <= 0 {
			r.retire(s)
			return
		}
	}
	s.idle.Reset(wait)
}

// retire takes a slot out of the map; it is closed after its last release. It is
// called under mu.
func (r *Resolver) retire(s *slot) {
	s.retired = true
	delete(r.slots, s.client.Name)
	if s.idle != nil {
		s.idle.Stop()
	}
	if s.refs == 0 {
		r.finish(s)
	}
}

// finish closes the backend of a retired slot that nobody uses. It is called
// under mu.
func (r *Resolver) finish(s *slot) {
	a := s.attempt
	if s.closing || a == nil || a.backend == nil {
		return
	}
	s.closing = true
	name := s.client.Name
	go func() {
		defer r.live.Done()
		r.close(context.Background(), name, a.backend)
	}()
}

func (r *Resolver) close(ctx context.Context, name string, b driver.Backend) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := b.Close(ctx); err != nil {
		r.cfg.Logger.Warn("a backend was not closed cleanly", telemetry.KeyClient, name, telemetry.KeyError, err.Error())
	}
}

// Forget retires what is open for the named client, after its last release, and
// forgets a failed open, so that the next Backend opens anew.
func (r *Resolver) Forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.slots[name]; s != nil {
		r.retire(s)
	}
}

// CanOpen reports, without dialling, whether this process has what is needed to
// open the client's backend: its driver and its secrets. The error is
// backend_unavailable and says what is missing.
func (r *Resolver) CanOpen(ctx context.Context, c *athena.Client) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, ok := r.drivers[c.Engine()]; !ok {
		return unavailable(c, CauseEngine, nil, "engine %s is not in this build", c.Engine())
	}
	if _, err := c.Connection.MapSecrets(r.cfg.Open); err != nil {
		return secretError(c.Name, err)
	}
	return nil
}

// Close refuses new uses, ends the opens that are under way, and waits until
// every backend was released and closed, or ctx is done: then its error says how
// many clients still hold one.
func (r *Resolver) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	var left []*slot
	for _, s := range r.slots {
		left = append(left, s)
		if s.attempt != nil {
			s.attempt.cancel()
		}
		r.retire(s)
	}
	r.mu.Unlock()

	over := make(chan struct{})
	go func() {
		r.live.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range left {
		if s.refs > 0 {
			n++
		}
	}
	return fmt.Errorf("resolver: the backends of %d clients are still in use: %w", n, ctx.Err())
}

// The classes of reasons for which a backend cannot be had, as in the detail
// "cause" of a backend_unavailable error. They do not depend on the engine.
const (
	CauseEngine  = "engine_not_in_build"
	CauseSecret  = "secret_unresolved"
	CauseInvalid = "connection_invalid"
	CauseConnect = "connect_failed"
	CauseTimeout = "connect_timeout"
	CauseChanged = "definition_changed"
	CauseClosed  = "process_stopping"
)

func unavailable(c *athena.Client, cause string, err error, format string, args ...any) *athena.Error {
	return failed(c.Name, cause, err, format, args...)
}

func failed(name, cause string, err error, format string, args ...any) *athena.Error {
	return athena.Wrap(athena.CodeBackendUnavailable, err, "the backend of client %q is not available: %s", name, fmt.Sprintf(format, args...)).
		With("cause", cause)
}

// secretError keeps the message of a reference that leads nowhere: it names the
// variable or the file and nothing of the secret.
func secretError(name string, err error) *athena.Error {
	own := athena.AsError(err)
	e := failed(name, CauseSecret, err, "%s", own.Message)
	if field, ok := own.Details["field"]; ok {
		e = e.With("field", field)
	}
	return e
}
