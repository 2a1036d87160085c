package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// submit accepts a deferred query, and waits for its rows if the caller does.
func (f *Family) submit(c *gin.Context, q *query) {
	ctx := c.Request.Context()
	j, client, _, err := f.plan(c, q)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	j, st, replayed, err := f.accept(ctx, client, j)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	c.Header("Location", location(j))
	if replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	state := f.view(ctx, j, st)
	if q.wait > 0 {
		if st, state, err = f.follow(ctx, j, st, q.wait, deferred.State.Terminal); err != nil {
			envelope.Fail(c, err)
			return
		}
		if state.Terminal() {
			setPreferenceApplied(c, q.prefer.applied(false))
			f.sendResult(c, j, st, state, nil)
			return
		}
	}
	setPreferenceApplied(c, q.prefer.applied(true))
	envelope.Accepted(c, location(j), "the query was accepted", accepted{j.ID, state}, envelope.Of(client))
}

type accepted struct {
	ID    string         `json:"id"`
	State deferred.State `json:"state"`
}

func location(j *deferred.Job) string { return "/gateway/deferred/" + j.ID }

func setPreferenceApplied(c *gin.Context, applied string) {
	if applied != "" {
		c.Header("Preference-Applied", applied)
	}
}

// plan checks whether a deferred query may be asked for, and makes its job. A
// frozen client's is accepted, to be held; an inactive client's is not. The
// client is returned with the error once the caller may know of it.
func (f *Family) plan(c *gin.Context, q *query) (*deferred.Job, *athena.Client, driver.Analysis, error) {
	ctx := c.Request.Context()
	p := auth.FromContext(ctx)
	if err := p.Authorize(auth.Query, auth.Read, q.client); err != nil {
		return nil, nil, driver.Analysis{}, err
	}
	op := deferred.Op(q.raw, f.language(ctx, q))
	op.Holds = true
	client, err := f.cfg.Dispatcher.Check(ctx, op, q.client)
	if err != nil {
		return nil, client, driver.Analysis{}, err
	}
	j, err := q.Job(client, p, f.cfg.Drivers[client.Engine()].Language, q.key, f.cfg.Bounds, time.Now().UTC())
	if err != nil {
		return nil, client, driver.Analysis{}, err
	}
	text, err := f.analyze(client, q.Query)
	if err != nil {
		return nil, client, text, err
	}
	if err := f.checkWebhook(ctx, j); err != nil {
		return nil, client, text, err
	}
	if err := f.checkDestination(ctx, j, text); err != nil {
		return nil, client, text, err
	}
	j.Raw, j.ReadOnly = q.raw, readsOnly(p)
	if j.Digest != "" { // by another route, or with other rights, it is another request
		if j.Raw {
			j.Digest += "+raw"
		}
		if j.ReadOnly {
			j.Digest += "+read"
		}
	}
	j.RequestID, j.Traceparent = telemetry.RequestID(ctx), c.Writer.Header().Get(telemetry.HeaderTraceparent)
	return j, client, text, nil
}

// checkDestination takes the road to the objects that the rows go to.
func (f *Family) checkDestination(ctx context.Context, j *deferred.Job, text driver.Analysis) error {
	if j.To == nil {
		return nil
	}
	if text.Effect != driver.Read {
		return athena.Errorf(athena.CodeInvalidRequest, "result.to is for statements that only read, and this one may write").At("result.to")
	}
	op := deferred.ToOp
	op.Holds = true
	_, err := f.cfg.Dispatcher.Check(ctx, op, j.To.Client)
	var e *athena.Error
	if errors.As(err, &e) {
		return e.At("result.to.client")
	}
	return err
}

func (f *Family) checkWebhook(ctx context.Context, j *deferred.Job) error {
	switch {
	case j.Webhook == nil:
		return nil
	case f.cfg.Webhooks == nil:
		return athena.Errorf(athena.CodeInvalidRequest, "webhook is not possible here: this server delivers none").At("webhook")
	}
	return f.cfg.Webhooks.CheckURL(ctx, j.Webhook.URL)
}

// accept stores the job, within the client's limit of waiting ones. A job that
// was accepted before is no new one, and is found also where the queue is full.
func (f *Family) accept(ctx context.Context, client *athena.Client, j *deferred.Job) (_ *deferred.Job, st deferred.Status, replayed bool, err error) {
	settle, err := f.queues.reserve(ctx, client)
	if err != nil {
		if j.Digest == "" || athena.CodeOf(err) != athena.CodeTooManyRequests {
			return nil, st, false, err
		}
		old, st, missing := f.cfg.Jobs.Load(ctx, j.Client, j.ID)
		if missing != nil || old.Digest != j.Digest {
			return nil, st, false, err
		}
		return old, st, true, nil
	}
	j, replayed, err = f.cfg.Jobs.Submit(ctx, j)
	settle(err == nil && !replayed)
	if err == nil && replayed {
		st, err = f.cfg.Jobs.Status(ctx, j.Client, j.ID)
	}
	return j, st, replayed, err
}
