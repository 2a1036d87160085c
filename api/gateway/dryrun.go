package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// verdict is what a dry run tells.
type verdict struct {
	Client    string           `json:"client"`
	Engine    athena.Engine    `json:"engine"`
	Lifecycle athena.Lifecycle `json:"lifecycle"`
	Language  driver.Language  `json:"language,omitempty"`
	Deferred  bool             `json:"deferred"`
	// Outcome is run, held or refused; Error says why it would be refused.
	Outcome string            `json:"outcome"`
	Error   *deferred.Failure `json:"error,omitempty"`
	// The capabilities that the query needs, those of them that the client is
	// granted, and those that its engine supports.
	Needs     []athena.Capability `json:"needs"`
	Held      []athena.Capability `json:"held"`
	Supported []athena.Capability `json:"supported"`
	// Effect is what the statement may do, by its text alone.
	Effect     driver.Effect `json:"effect,omitempty"`
	Idempotent bool          `json:"idempotent"`
	// ReadOnly says that the engine is asked to refuse writes.
	ReadOnly bool `json:"read_only"`
	// Plan is how the engine would run it, where it can tell.
	Plan      json.RawMessage   `json:"plan,omitempty"`
	PlanError *deferred.Failure `json:"plan_error,omitempty"`
}

// The outcomes of a dry run.
const (
	wouldRun     = "run"
	wouldHold    = "held"
	wouldRefused = "refused"
)

// dryRun tells what would become of a query, and leaves no record of it. Who
// may not know of the client gets the same error as without dry_run.
func (f *Family) dryRun(c *gin.Context, q *query) {
	ctx := c.Request.Context()
	client, op, text, err := f.rehearse(c, q)
	if client == nil {
		envelope.Fail(c, err)
		return
	}
	needed := athena.Allow(op.Needs...)
	v := verdict{
		Client: client.Name, Engine: client.Engine(), Lifecycle: client.Lifecycle, Language: f.cfg.Drivers[client.Engine()].Language,
		Deferred: q.deferred, Outcome: wouldRun, Needs: needed.List(),
		Held:      needed.Minus(needed.Minus(client.Capabilities)).List(),
		Supported: needed.Minus(needed.Minus(f.cfg.Dispatcher.Resolver.Supports(client.Engine()))).List(),
		Effect:    text.Effect, Idempotent: text.IdempotentWith(q.Params) || q.Idempotent,
		ReadOnly: text.Effect == driver.Read || readsOnly(auth.FromContext(ctx)),
	}
	switch {
	case err != nil:
		v.Outcome, v.Error = wouldRefused, deferred.NewFailure(err)
	case client.Lifecycle == athena.Frozen:
		v.Outcome = wouldHold
	default:
		v.Plan, v.PlanError = f.explain(ctx, q, op, client)
	}
	envelope.OK(c, "nothing was run", v, envelope.Of(client))
}

// rehearse makes the checks that the query would meet. The client is nil where
// the caller may not know of it, or there is none.
func (f *Family) rehearse(c *gin.Context, q *query) (*athena.Client, dispatch.Op, driver.Analysis, error) {
	ctx := c.Request.Context()
	if q.deferred {
		op := deferred.Op(q.raw, f.language(ctx, q))
		_, client, text, err := f.plan(c, q)
		return client, op, text, err
	}
	op := f.op(ctx, q)
	client, err := f.cfg.Dispatcher.Check(ctx, op, q.client)
	if err != nil {
		return client, op, driver.Analysis{}, err
	}
	if err := q.Check(f.cfg.Drivers[client.Engine()].Language, client.Limits, f.cfg.Bounds); err != nil {
		return client, op, driver.Analysis{}, err
	}
	text, err := f.analyze(client, q.Query)
	return client, op, text, err
}

// explain asks the engine for its plan. That it has none is no error; that it
// cannot be asked is told.
func (f *Family) explain(ctx context.Context, q *query, op dispatch.Op, client *athena.Client) (json.RawMessage, *deferred.Failure) {
	timeout := cmp.Or(q.Timeout, client.Limits.WithDefaults().StatementTimeout).Std()
	ctx, cancel := context.WithTimeout(ctx, min(timeout, 10*time.Second))
	defer cancel()
	plan, err := dispatch.Do(ctx, f.cfg.Dispatcher, op, client.Name,
		func(ctx context.Context, _ dispatch.Call, b driver.Backend) (json.RawMessage, error) {
			e, ok := b.(driver.Explainer)
			if !ok {
				return nil, nil
			}
			return e.Explain(ctx, driver.Statement{Text: q.Query, Params: q.Params, Timeout: timeout, ReadOnly: true})
		})
	if err != nil {
		return nil, deferred.NewFailure(err)
	}
	return plan, nil
}
