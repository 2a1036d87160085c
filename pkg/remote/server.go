package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// A Server runs the queries of others at this process's backends. Its fields
// are set once, before Run.
type Server struct {
	Conn *nats.Conn
	// Watch calls serve with all clients that are to be served, at once and
	// after each change, until ctx is done.
	Watch func(ctx context.Context, serve func(clients []string) error) error
	// Execute runs a query and puts its result into sink. ctx carries the
	// principal and the request's id; it is done when the caller no longer
	// wants the answer. It is called by several goroutines.
	Execute func(ctx context.Context, r Request, sink RowSink) error
	Log     *slog.Logger
	Version string // a semantic version, shown to `nats micro`; 0.0.0 if empty

	// Zero fields stand for their defaults.
	Concurrency int           // queries at once; 64
	Patience    time.Duration // how long a reader may take no rows; 1 min
	Grace       time.Duration // how long queries under way may take when Run is to end; 10 s
}

// serving is a Server at work.
type serving struct {
	*Server
	slots chan struct{}
	work  context.Context

	mu       sync.Mutex
	services map[string]micro.Service
	stopped  bool
	calls    sync.WaitGroup
}

// Causes for which a query's context is done.
var (
	errStopping   = errors.New("remote: the worker is stopping")
	errCallerGone = errors.New("remote: the caller is gone")
	errCancelled  = errors.New("remote: the caller cancelled")
)

// Run serves until ctx is done, or Watch fails. Then it takes no more queries,
// gives those under way Grace to end, and ends the rest at their backends. It
// returns nil on a clean stop.
func (s *Server) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopping)
	v := &serving{Server: s, work: work, services: map[string]micro.Service{}, slots: make(chan struct{}, orDefault(s.Concurrency, 64))}

	err := s.Watch(ctx, v.serve)
	v.stop()
	timer := time.AfterFunc(orDefault(s.Grace, 10*time.Second), func() { cancel(errStopping) })
	defer timer.Stop()
	v.calls.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// serve makes the set of clients that are served the given one. Each has a
// service of its own, since a service cannot drop one endpoint.
func (v *serving) serve(clients []string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopped {
		return nil
	}
	want := map[string]bool{}
	for _, name := range clients {
		want[name] = true
		if v.services[name] != nil {
			continue
		}
		svc, err := micro.AddService(v.Conn, micro.Config{
			Name: "athena-query", Version: v.version(), QueueGroup: QueueGroup,
			Description: "Synchronous queries for workers that reach the backend",
			Metadata:    map[string]string{telemetry.KeyClient: name},
		})
		if err != nil {
			return fmt.Errorf("remote: serve %q: %w", name, err)
		}
		v.services[name] = svc
		err = svc.AddEndpoint("query", micro.HandlerFunc(func(r micro.Request) { v.accept(name, r) }), micro.WithEndpointSubject(bus.QueryRequest(name)))
		if err != nil {
			return fmt.Errorf("remote: serve %q: %w", name, err)
		}
	}
	for name, svc := range v.services {
		if !want[name] {
			v.end(name, svc)
		}
	}
	return nil
}

func (v *serving) version() string {
	if v.Version == "" {
		return "0.0.0"
	}
	return v.Version
}

func (v *serving) end(name string, svc micro.Service) {
	if err := svc.Stop(); err != nil {
		v.Log.Warn("a query service did not stop cleanly", telemetry.KeyClient, name, telemetry.KeyError, err)
	}
	delete(v.services, name)
}

func (v *serving) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopped = true
	for name, svc := range v.services {
		v.end(name, svc)
	}
}

// accept starts a call, or refuses it: nothing is run then (law 1).
func (v *serving) accept(client string, r micro.Request) {
	wish, _ := time.ParseDuration(r.Headers().Get(headerHeartbeat)) // 0 stands for the default
	c := &session{server: v.Server, inbox: r.Reply(), heartbeat: clampHeartbeat(wish)}
	if c.inbox == "" {
		return // nobody waits for an answer
	}
	var req Request
	if err := athena.DecodeJSON(r.Data(), &req, ""); err != nil {
		c.finish(kindRefuse, end{Error: newFailure(err)})
		return
	}
	req.Client = client
	c.readOnly = req.ReadOnly
	select {
	case v.slots <- struct{}{}:
	default:
		c.finish(kindRefuse, end{Error: newFailure(athena.Errorf(athena.CodeTooManyRequests,
			"the worker that serves client %q runs as many queries as it may", client).RetryIn(time.Second))})
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopped {
		<-v.slots
		c.finish(kindRefuse, end{Error: newFailure(athena.Errorf(athena.CodeBackendUnavailable,
			"the worker that serves client %q is stopping; nothing was run", client).RetryIn(time.Second))})
		return
	}
	v.calls.Go(func() {
		defer func() { <-v.slots }()
		c.run(v.work, req)
	})
}

// run takes a call from its acceptance to its end.
func (c *session) run(ctx context.Context, req Request) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.ctx, c.cancel = ctx, cancel
	c.credited = make(chan struct{}, 1)
	c.heard.Store(time.Now().UnixNano())

	control := c.server.Conn.NewInbox()
	sub, err := c.server.Conn.Subscribe(control, c.control)
	if err != nil {
		return // the connection is closed, and the caller hears so by silence
	}
	defer func() { _ = sub.Unsubscribe() }()

	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel(nil)
	accept := c.message(kindAccept)
	accept.Reply = control
	if c.server.Conn.PublishMsg(accept) != nil {
		return
	}
	beats.Go(c.beat)

	if c.await(1, c.heartbeat) != nil { // law 1
		c.finish(kindRefuse, end{Error: newFailure(athena.Errorf(athena.CodeBackendUnavailable,
			"the worker that serves client %q did not hear from the caller in time; nothing was run", req.Client).RetryIn(time.Second))})
		return
	}
	err = c.execute(ctx, req)
	if e := c.flush(0); err == nil { // rows that came before an error are the caller's
		err = e
	}
	if err == nil && c.result == nil {
		err = errors.New("remote: the query ended without a result")
	}
	if err != nil {
		if athena.CodeOf(err) == athena.CodeCancelled && errors.Is(context.Cause(ctx), errStopping) {
			err = lost(c.readOnly, err)
		}
		c.result = &end{Error: newFailure(err)}
	}
	c.finish(kindEnd, *c.result)
}

func (c *session) execute(ctx context.Context, req Request) (err error) {
	defer func() {
		if p := recover(); p != nil { // one query must not take the others down
			c.server.Log.Error("a query panicked", telemetry.KeyRequest, req.RequestID, telemetry.KeyClient, req.Client,
				telemetry.KeyError, p, "stack", string(debug.Stack()))
			err = fmt.Errorf("remote: panic: %v", p)
		}
	}()
	ctx = auth.NewContext(telemetry.WithRequestID(ctx, req.RequestID), req.Principal)
	return c.server.Execute(ctx, req, c)
}
