package pipelines

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// MaxWait bounds how long a caller may have an answer waited for.
const MaxWait = 60 * time.Second

// A running is what a body of a stored pipeline's run may say.
type running struct {
	Params map[string]string `json:"params"`
	Wait   athena.Duration   `json:"wait"`
	Reset  bool              `json:"reset"` // of start alone
}

// decodeRunning reads a body that may be left out.
func decodeRunning(c *gin.Context) (body running, err error) {
	raw, err := envelope.Body(c)
	if err != nil || len(raw) == 0 {
		return body, err
	}
	return body, athena.DecodeJSON(raw, &body, "")
}

// waiting decides how long the answer is waited for: the parameter or the body
// says so.
func waiting(param time.Duration, body athena.Duration) (time.Duration, error) {
	switch {
	case body == 0:
		return param, nil
	case param != 0:
		return 0, athena.Errorf(athena.CodeInvalidRequest, "wait is given in the query and in the body; give it once").At("wait")
	case body < 0 || body.Std() > MaxWait:
		return 0, athena.Errorf(athena.CodeInvalidRequest, "wait is %s; it must be a span between 0s and %s", body, MaxWait).At("wait")
	}
	return body.Std(), nil
}

// runInline runs a definition that is stored nowhere else than in its run.
func (f *Family) runInline(c *gin.Context) {
	q := params.Of(c)
	wait := q.Duration("wait", 0, MaxWait)
	if !allowed(c, auth.Write, q.Err()) {
		return
	}
	idem, err := idempotencyKey(c)
	var p *spec.Pipeline
	if err == nil {
		p, wait, err = decodeInline(c, wait)
	}
	if err == nil && p.DryRun {
		f.show(c, p, plan.Sample)
		return
	}
	if err == nil && p.Streams() {
		err = athena.Errorf(athena.CodeInvalidRequest, "a source cdc is followed until it is stopped; store the definition with PUT /pipelines/{name} and start it").At("source.cdc")
	}
	if err == nil && p.Schedule != "" {
		err = athena.Errorf(athena.CodeInvalidRequest, "what is run at once has no schedule; store the definition with PUT /pipelines/{name}").At("schedule")
	}
	if err == nil {
		err = f.permit(c.Request.Context(), p)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	r := f.newRun(c, p, "api")
	f.accept(c, r, request{idem, spec.Encode(p)}, wait)
}

func decodeInline(c *gin.Context, param time.Duration) (p *spec.Pipeline, wait time.Duration, err error) {
	raw, fields, err := object(c)
	if err != nil {
		return nil, 0, err
	}
	var body athena.Duration
	if text, given := fields["wait"]; given {
		if err := athena.DecodeJSON(text, &body, "wait"); err != nil {
			return nil, 0, err
		}
		delete(fields, "wait")
		if raw, err = json.Marshal(fields); err != nil {
			return nil, 0, athena.Wrap(athena.CodeInvalidRequest, err, "the body cannot be read")
		}
	}
	if wait, err = waiting(param, body); err != nil {
		return nil, 0, err
	}
	if p, err = spec.Decode(raw); err != nil {
		return nil, 0, err
	}
	p, err = p.Instantiate(nil)
	return p, wait, err
}

// runStored runs a stored batch, with the values of its parameters.
func (f *Family) runStored(c *gin.Context) {
	q := params.Of(c)
	wait := q.Duration("wait", 0, MaxWait)
	if !allowed(c, auth.Write, q.Err()) {
		return
	}
	idem, err := idempotencyKey(c)
	var body running
	if err == nil {
		body, err = decodeRunning(c)
	}
	if err == nil && body.Reset {
		err = athena.Errorf(athena.CodeInvalidRequest, "reset is for POST /pipelines/{name}/start").At("reset")
	}
	if err == nil {
		wait, err = waiting(wait, body.Wait)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	if p.Streams() {
		envelope.Fail(c, athena.Errorf(athena.CodeConflict, "pipeline %q follows changes until it is stopped; start it with POST /pipelines/%s/start", d.Name, d.Name))
		return
	}
	r, err := f.runOf(c, d, p, body.Params)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	f.accept(c, r, request{idem, values(body.Params)}, wait)
}

// values is what of a request for a run tells it from another one.
func values(params map[string]string) []byte {
	raw, _ := json.Marshal(params) // texts, in the order of their names
	return raw
}

// runOf makes a run of a stored definition, which may be run.
func (f *Family) runOf(c *gin.Context, d runs.Definition, p *spec.Pipeline, params map[string]string) (r runs.Run, err error) {
	if p, err = p.Instantiate(params); err != nil {
		return r, err
	}
	if err = f.permit(c.Request.Context(), p); err != nil {
		return r, err
	}
	r = f.newRun(c, p, "api")
	r.Pipeline, r.PipelineID, r.Generation = d.Name, d.ID, d.Generation
	return r, nil
}

// newRun is a run of a definition as it is to be stored.
func (f *Family) newRun(c *gin.Context, p *spec.Pipeline, trigger string) runs.Run {
	key := auth.FromContext(c.Request.Context()).Key
	r := runs.Run{
		ID: uuid.Must(uuid.NewV7()).String(), Kind: kindOf(p), Spec: spec.Encode(p), Trigger: trigger, Key: key,
		Source: p.Source.Client, Sink: p.Sink.Client, Parallel: p.Parallel,
		State: runs.Queued, Want: runs.WantRun, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if r.Parallel == 0 {
		r.Parallel = spec.DefaultParallel
	}
	r.PipelineID = r.ID
	r.Log("asked for by key %s", key)
	return r
}

// A request is what a run is asked for with: an idempotency key, which may be
// empty, and what must be the same when it comes again.
type request struct {
	key     string
	content []byte
}

// keySpace is the name space of ids that are made from idempotency keys.
var keySpace = uuid.MustParse("1c0a5a0e-54a3-4c53-9a64-0d3a4f3c8a11")

// mark gives r the id that belongs to the key, and the digest of the request.
func (q request) mark(r *runs.Run) {
	if q.key == "" {
		return
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", r.Kind, r.Pipeline, q.content))
	inline := r.PipelineID == r.ID
	r.ID = uuid.NewSHA1(keySpace, fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s", r.Source, r.Sink, r.Pipeline, q.key)).String()
	r.Request = hex.EncodeToString(sum[:])
	if inline {
		r.PipelineID = r.ID
	}
}

func idempotencyKey(c *gin.Context) (string, error) {
	const header = "Idempotency-Key"
	values := c.Request.Header.Values(header)
	switch {
	case len(values) == 0:
		return "", nil
	case strings.TrimSpace(values[0]) == "" || len(values[0]) > 255:
		return "", athena.Errorf(athena.CodeInvalidRequest, "the header %s has %d bytes; give 1 to 255", header, len(values[0])).At(header)
	}
	return values[0], nil
}

// accept stores a run and answers, with its end if the caller waits for it and it
// comes in time.
func (f *Family) accept(c *gin.Context, r runs.Run, q request, wait time.Duration) {
	ctx := c.Request.Context()
	q.mark(&r)
	stored, replayed, err := f.submit(ctx, "pipeline.run", r)
	if err == nil && wait > 0 {
		stored, err = f.follow(ctx, stored, wait)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	v := f.brief(stored)
	if wait > 0 && stored.State.Over() {
		c.Header("Location", "/runs/"+stored.ID)
		envelope.OK(c, "the run has "+ended(stored.State), v, envelope.Meta{})
		return
	}
	message := "the run was accepted"
	if replayed {
		message = "the run was accepted before"
	}
	envelope.Accepted(c, "/runs/"+stored.ID, message, v, envelope.Meta{})
}

func ended(s runs.State) string {
	if s == runs.Cancelled || s == runs.Stopped {
		return "been " + string(s)
	}
	return string(s)
}

// submit stores a new run. If its idempotency key was used before, the run of then
// is returned with replayed set, or idempotency_mismatch if that request was
// another one.
func (f *Family) submit(ctx context.Context, action string, r runs.Run) (stored runs.Run, replayed bool, err error) {
	known := func() (runs.Run, bool, error) {
		old, ok := f.cfg.Store.Load(r.ID)
		if ok && old.Request != r.Request {
			return old, false, athena.Errorf(athena.CodeIdempotencyMismatch, "this Idempotency-Key was used for another request; use a new one").With("id", old.ID)
		}
		return old, ok, nil
	}
	if r.Request != "" {
		if old, ok, err := known(); ok || err != nil {
			return old, ok, err
		}
	}
	err = f.cfg.Audit.Do(ctx, change(action, r), func(ctx context.Context) error {
		stored, err = f.cfg.Store.Put(ctx, r)
		return err
	})
	if athena.CodeOf(err) != athena.CodeConflict || r.Request == "" {
		return stored, false, err
	}
	// The same request was faster.
	if err := f.cfg.Store.Sync(ctx); err != nil {
		return stored, false, err
	}
	return known()
}

// change is what the audit says of a change of a run.
func change(action string, r runs.Run) ops.Change {
	target := "run " + r.ID
	if r.Pipeline != "" {
		target = r.Pipeline + " " + target
	}
	return ops.Change{Action: action, Client: r.Sink, Target: target}
}

// follow waits until a run is over, and returns how it is then. It gives up,
// without an error, after a time, and when the server begins to stop.
func (f *Family) follow(ctx context.Context, r runs.Run, wait time.Duration) (runs.Run, error) {
	changed := make(chan struct{}, 1)
	defer f.cfg.Store.Subscribe(notify(changed, r.ID))()
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		if now, ok := f.cfg.Store.Load(r.ID); ok && now.Revision >= r.Revision {
			r = now
		}
		if r.State.Over() {
			return r, nil
		}
		select {
		case <-changed:
		case <-over.C:
			return r, nil
		case <-api.Draining(ctx):
			return r, nil
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// notify has a channel of one element tell of changes of a run.
func notify(to chan struct{}, id string) func(string) {
	return func(run string) {
		if run != id {
			return
		}
		select {
		case to <- struct{}{}:
		default:
		}
	}
}
