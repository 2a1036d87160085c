// Package dispatch is the one road from a caller to a backend:
//
//	auth → resolve client → require capability → resolve backend → execute → normalize
//
// Every operation takes it: HTTP routes, workers and pipeline stages alike.
// Every exit is observed, because the observer sits in the road. The package
// knows the contract of drivers and none of the drivers.
package dispatch

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Op describes one kind of operation. Route families declare theirs as package
// variables, which makes the table of what needs what greppable.
type Op struct {
	Family string      // the route family, a dimension of telemetry
	Right  auth.Right  // what the caller's key must have
	Access auth.Access // write unless said otherwise
	Needs  []athena.Capability
	// Holds says that nothing is run now, so that a frozen client is let
	// through: what is asked for waits until it is thawed. For Check alone.
	Holds bool
}

// allows reports why the client may not do this, or nil if it may. What its
// engine cannot do is told before what its definition does not grant: no owner
// could grant it.
func (op Op) allows(c *athena.Client, supports athena.Capabilities) error {
	if op.Holds && c.Lifecycle == athena.Frozen {
		thawed := *c
		thawed.Lifecycle = athena.Active
		c = &thawed
	}
	if err := c.Runnable(); err != nil {
		return err
	}
	if lacks := athena.Allow(op.Needs...).Minus(supports); lacks != 0 {
		return athena.Unsupported(c.Name, c.Engine(), lacks.List()[0])
	}
	return c.Require(op.Needs...)
}

// Outcome carries the Athena-native dimensions of one operation.
type Outcome struct {
	Op        Op
	Client    string
	Engine    athena.Engine // empty if the client was not resolved
	Principal string        // the public id of the key; empty for a stranger
	Code      athena.Code   // empty on success
	Err       error         // with its cause, for the log
	Started   time.Time
	Elapsed   time.Duration
}

// Resolver turns a name into a definition, and a definition into an open
// backend. The two fail for different reasons.
type Resolver interface {
	// Client returns the definition, or client_not_found.
	Client(ctx context.Context, name string) (*athena.Client, error)
	// Supports returns what the engine's driver implements; nothing if the
	// engine is not in this build.
	Supports(athena.Engine) athena.Capabilities
	// Backend returns the client's open backend, or backend_unavailable. The
	// caller calls release once, when it no longer uses the backend.
	Backend(ctx context.Context, c *athena.Client) (b driver.Backend, release func(), err error)
}

// Observer is told of every operation, once, when it is over.
type Observer interface {
	Observe(ctx context.Context, o Outcome)
}

// Dispatcher holds what the road needs. Its fields are set once, before use.
type Dispatcher struct {
	Resolver Resolver
	Observer Observer
	// Admit, if set, may refuse an operation for load, after the client is
	// known to be runnable and before its backend is asked for.
	Admit func(*athena.Client) error
}

// Call is what an operation is given to know of its client.
type Call struct {
	Client    *athena.Client
	Principal *auth.Principal
}

// Do runs fn against the named client's backend, seen as a B: the driver
// interface that the operation needs. The principal is taken from ctx.
//
// Errors of the engine come back as an athena.Error; an error that is one
// already, and context errors, pass as they are.
func Do[B, R any](ctx context.Context, d *Dispatcher, op Op, name string,
	fn func(context.Context, Call, B) (R, error)) (res R, err error) {
	p := auth.FromContext(ctx)
	out := Outcome{Op: op, Client: name, Started: time.Now()}
	if p != nil {
		out.Principal = p.Key
	}
	defer func() {
		out.Code, out.Err, out.Elapsed = athena.CodeOf(err), err, time.Since(out.Started)
		d.Observer.Observe(ctx, out)
	}()

	client, err := d.admit(ctx, p, op, name)
	if client != nil {
		out.Engine = client.Engine()
	}
	if err != nil {
		return res, err
	}
	backend, release, err := d.Resolver.Backend(ctx, client)
	if err != nil {
		return res, err
	}
	defer release()
	b, ok := backend.(B)
	if !ok {
		return res, athena.Unsupported(name, client.Engine(), op.Needs[0])
	}
	res, err = fn(ctx, Call{client, p}, b)
	return res, Normalize(backend, err)
}

// Check takes the road up to, and without, the backend: it answers whether the
// operation would be let through now. A dry run and a submit use it.
func (d *Dispatcher) Check(ctx context.Context, op Op, name string) (*athena.Client, error) {
	p := auth.FromContext(ctx)
	out := Outcome{Op: op, Client: name, Started: time.Now()}
	if p != nil {
		out.Principal = p.Key
	}
	client, err := d.admit(ctx, p, op, name)
	if client != nil {
		out.Engine = client.Engine()
	}
	out.Code, out.Err, out.Elapsed = athena.CodeOf(err), err, time.Since(out.Started)
	d.Observer.Observe(ctx, out)
	return client, err
}

// admit holds the order of checks: a stranger learns nothing of clients, a
// frozen client opens no connection, a missing capability touches no backend.
// The client is returned with the error once the caller may know of it.
func (d *Dispatcher) admit(ctx context.Context, p *auth.Principal, op Op, name string) (*athena.Client, error) {
	if err := p.Authorize(op.Right, op.Access, name); err != nil {
		return nil, err
	}
	if name == "" {
		return nil, athena.Errorf(athena.CodeMissingClientHeader, "no client is named; send its name in the header X-Athena-Client")
	}
	client, err := d.Resolver.Client(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := op.allows(client, d.Resolver.Supports(client.Engine())); err != nil {
		return client, err
	}
	if d.Admit != nil {
		return client, d.Admit(client)
	}
	return client, nil
}

// Normalize gives an engine's raw error a code, once. Context errors, and
// errors that are Athena's own already, pass as they are.
func Normalize(b driver.Backend, err error) error {
	var own *athena.Error
	switch {
	case err == nil, errors.As(err, &own),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	f := b.Classify(err)
	e := athena.Wrap(cmp.Or(f.Code, athena.CodeInternal), err, "%s", cmp.Or(f.Message, "the backend refused the operation"))
	e.Details = f.Details
	return e
}
