package main

import (
	"context"
	"slices"
	"time"

	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/remote"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// forwarding has workers run the queries whose backend cannot be opened here.
type forwarding struct{ caller *remote.Caller }

var _ gateway.Remote = forwarding{}

func (f forwarding) Query(ctx context.Context, op dispatch.Op, client string, s driver.Statement) (driver.Rows, error) {
	trace := map[string][]string{}
	telemetry.Inject(ctx, trace)
	req := remote.Request{
		Statement: s.Text, Params: s.Params, Timeout: athena.Duration(s.Timeout), ReadOnly: s.ReadOnly,
		Raw: !slices.Contains(op.Needs, athena.GatewayQuery), Op: op.Family,
		Principal: auth.FromContext(ctx), RequestID: telemetry.RequestID(ctx),
	}
	if tp := trace[telemetry.HeaderTraceparent]; len(tp) > 0 {
		req.Traceparent = tp[0]
	}
	rows, err := f.caller.Query(ctx, client, req)
	if err != nil {
		return nil, err // not rows: a typed nil would not compare equal to nil
	}
	return rows, nil
}

// queries is the part of a worker that runs the synchronous queries which other
// processes forward. They take the same road as all others.
func (a *app) queries() func(context.Context) error {
	s := &remote.Server{
		Conn: a.broker.conn, Log: a.log, Concurrency: a.cfg.Worker.Concurrency,
		Grace: a.cfg.Limits.ShutdownTimeout.Std() / 2,
		Watch: a.watchServed, Execute: a.execute,
	}
	return s.Run
}

// watchServed tells which clients this process can run queries for, now and
// after each change.
func (a *app) watchServed(ctx context.Context, serve func([]string) error) error {
	changed := make(chan struct{}, 1)
	defer a.catalog.Subscribe(func(string) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})()
	can := a.serves()
	again := time.NewTicker(5 * time.Second) // a secret may have come
	defer again.Stop()
	for {
		clients, err := a.catalog.List(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, c := range clients {
			if can(c) {
				names = append(names, c.Name)
			}
		}
		if err := serve(names); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again.C:
		}
	}
}

// execute runs one forwarded query. What it needs is looked up here: a message
// says what is wanted, never what that takes.
func (a *app) execute(ctx context.Context, r remote.Request, sink remote.RowSink) error {
	op, err := a.forwardedOp(ctx, r)
	if err != nil {
		return err
	}
	ctx = telemetry.Extract(ctx, map[string][]string{telemetry.HeaderTraceparent: {r.Traceparent}})
	_, err = dispatch.Do(ctx, a.dispatcher, op, r.Client, func(ctx context.Context, _ dispatch.Call, b driver.Querier) (struct{}, error) {
		rows, err := b.Query(ctx, driver.Statement{Text: r.Statement, Params: r.Params, Timeout: r.Timeout.Std(), ReadOnly: r.ReadOnly})
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, remote.Copy(sink, rows, r.RowLimit)
	})
	return err
}

func (a *app) forwardedOp(ctx context.Context, r remote.Request) (dispatch.Op, error) {
	if r.Op != "gateway" {
		return dispatch.Op{}, athena.Errorf(athena.CodeInvalidRequest, "operation %.40q is not forwarded", r.Op).At("op")
	}
	op := dispatch.Op{Family: r.Op, Right: auth.Query, Access: auth.Read, Needs: []athena.Capability{athena.GatewayQuery}}
	if !r.ReadOnly {
		op.Access = auth.Write
	}
	if r.Raw {
		c, err := a.catalog.Client(ctx, r.Client)
		if err != nil {
			return op, err
		}
		op.Needs[0] = a.drivers[c.Engine()].Language.Capability()
	}
	return op, nil
}
