package gateway

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/rows"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/remote"
)

// slack is how much longer than the server's own timeout a statement is waited
// for: past it the server does not answer.
const slack = 5 * time.Second

// querier runs one statement: a backend, or a worker that stands for it.
type querier interface {
	Query(ctx context.Context, s driver.Statement) (driver.Rows, error)
}

// op is what a synchronous query needs. A key that may only read is let
// through; answer holds it to that.
func (f *Family) op(ctx context.Context, q *query) dispatch.Op {
	op := dispatch.Op{Family: "gateway", Right: auth.Query, Access: auth.Read, Needs: []athena.Capability{athena.GatewayQuery}}
	if q.raw {
		op.Needs[0] = f.language(ctx, q).Capability()
	}
	return op
}

// run answers a synchronous query.
func (f *Family) run(c *gin.Context, q *query) {
	ctx := c.Request.Context()
	op := f.op(ctx, q)
	reached := false
	_, err := dispatch.Do(ctx, f.cfg.Dispatcher, op, q.client,
		func(ctx context.Context, call dispatch.Call, b driver.Querier) (struct{}, error) {
			reached = true
			return struct{}{}, f.answer(ctx, c, q, call, b)
		})
	if f.cfg.Remote != nil && !reached && athena.CodeOf(err) == athena.CodeBackendUnavailable {
		err = f.forward(ctx, c, op, q, err)
	}
	if err != nil {
		envelope.Fail(c, err)
	}
}

// forward has a worker run what cannot be run here, because of cause.
func (f *Family) forward(ctx context.Context, c *gin.Context, op dispatch.Op, q *query, cause error) error {
	client, err := f.cfg.Dispatcher.Resolver.Client(ctx, q.client)
	if err != nil {
		return cause
	}
	err = f.answer(ctx, c, q, dispatch.Call{Client: client, Principal: auth.FromContext(ctx)}, workers{f.cfg.Remote, op, q.client})
	if errors.Is(err, remote.ErrNoWorker) {
		e := *athena.AsError(cause) // what keeps us from it says more
		e.Message += "; and no worker that serves it is running"
		return &e
	}
	return err
}

// workers is a client's backend as a worker reaches it.
type workers struct {
	Remote
	op     dispatch.Op
	client string
}

func (r workers) Query(ctx context.Context, s driver.Statement) (driver.Rows, error) {
	return r.Remote.Query(ctx, r.op, r.client, s)
}

// answer runs the statement and writes its rows.
//
// What looks like a read runs read-only. If the engine finds that it writes, it
// has had no effect, and is run again as what it is.
func (f *Family) answer(ctx context.Context, c *gin.Context, q *query, call dispatch.Call, b querier) error {
	limits := call.Client.Limits.WithDefaults()
	if err := q.Check(f.cfg.Drivers[call.Client.Engine()].Language, limits, f.cfg.Bounds); err != nil {
		return err
	}
	text, err := f.analyze(call.Client, q.Query)
	if err != nil {
		return err
	}
	if q.Timeout.Std() > f.cfg.SyncTimeout {
		return athena.Errorf(athena.CodeInvalidRequest, "timeout is %s; a synchronous query may take at most %s; send \"deferred\": true for a longer one", q.Timeout, f.cfg.SyncTimeout).At("timeout")
	}
	readsOnly := readsOnly(call.Principal)
	if readsOnly && text.Effect != driver.Read {
		return errReadsOnly()
	}
	s := driver.Statement{
		Text: q.Query, Params: q.Params, Timeout: min(cmp.Or(q.Timeout, limits.StatementTimeout).Std(), f.cfg.SyncTimeout),
		ReadOnly: text.Effect == driver.Read || readsOnly,
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout+slack)
	defer cancel()
	o := rows.Options{Message: "the query was run", Meta: envelope.Of(call.Client), Limit: q.RowLimit}
	err = write(ctx, c, b, s, o)
	if !errors.Is(err, driver.ErrWrites) {
		return err
	}
	if readsOnly {
		return errReadsOnly()
	}
	if !s.ReadOnly || c.Writer.Written() {
		return err
	}
	s.ReadOnly = false
	return write(ctx, c, b, s, o)
}

func write(ctx context.Context, c *gin.Context, b querier, s driver.Statement, o rows.Options) error {
	r, err := b.Query(ctx, s)
	if err != nil {
		return err
	}
	defer r.Close()
	if !s.ReadOnly {
		r = &whole{Rows: r, limit: o.Limit}
	}
	return rows.Write(c, r, o)
}

// whole reads a write's rows to their end, also those beyond the limit: to cut
// them off might cut off the write.
type whole struct {
	driver.Rows
	limit, n int64
}

// Next moves to the next row, and at the limit behind the last one.
func (w *whole) Next() bool {
	if w.limit == 0 || w.n < w.limit {
		w.n++
		return w.Rows.Next()
	}
	more := false
	for w.Rows.Next() {
		more = true
	}
	return more && w.Rows.Err() == nil
}
