package pipelines

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// start has a pipeline follow its source, from where it was.
func (f *Family) start(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	idem, err := idempotencyKey(c)
	var body running
	if err == nil {
		body, err = decodeRunning(c)
	}
	if err == nil && body.Wait != 0 {
		err = athena.Errorf(athena.CodeInvalidRequest, "wait is for batches; what follows changes has no end to wait for").At("wait")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	if !p.Streams() {
		envelope.Fail(c, athena.Errorf(athena.CodeConflict, "pipeline %q is a batch; run it with POST /pipelines/%s/runs", d.Name, d.Name))
		return
	}
	r, err := f.runOf(c, d, p, body.Params)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	r.Trigger = "start"
	request{idem, fmt.Appendf(values(body.Params), " reset=%t", body.Reset)}.mark(&r)
	r, replayed, err := f.follows(c.Request.Context(), r, body.Reset)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	envelope.Accepted(c, "/runs/"+r.ID, "a worker takes it up", f.brief(r), envelope.Meta{})
}

// startWithin is how long a run may take to be stored behind its claim; after that
// whoever made the claim is taken for dead.
const startWithin = 30 * time.Second

// errReplayed stops a claim that the run has already.
var errReplayed = errors.New("the run has the claim")

// follows stores a run that follows its source, as the only one of its pipeline.
func (f *Family) follows(ctx context.Context, r runs.Run, reset bool) (stored runs.Run, replayed bool, err error) {
	err = f.claim(ctx, r)
	if errors.Is(err, errReplayed) {
		_, replayed = f.cfg.Store.Load(r.ID) // else whoever claimed it has not come to store it
		err = nil
	}
	if err == nil && reset && !replayed {
		r.Log("it begins anew: how far it was is forgotten")
		err = f.cfg.Store.DropCursor(ctx, r.PipelineID)
	}
	if err != nil {
		return r, false, err
	}
	return f.submit(ctx, "pipeline.start", r)
}

// claim has r be the run that follows its pipeline's source, unless another one
// does.
func (f *Family) claim(ctx context.Context, r runs.Run) error {
	return f.cfg.Store.Claim(ctx, r.PipelineID, func(st *runs.Standing) error {
		if st.Stream == r.ID {
			return errReplayed
		}
		other, ok := f.cfg.Store.Load(st.Stream)
		switch {
		case ok && !other.State.Over():
			return athena.Errorf(athena.CodeConflict, "pipeline %q is %s already; stop it first (POST /pipelines/%s/stop), or resume it if it is paused", r.Pipeline, other.State, r.Pipeline).With("run", other.ID)
		case !ok && time.Since(st.StreamAt) < startWithin:
			return athena.Errorf(athena.CodeConflict, "pipeline %q is being started by somebody else", r.Pipeline).With("run", st.Stream)
		}
		st.Stream, st.StreamAt = r.ID, time.Now().UTC()
		return nil
	})
}

// stream returns the run that follows the pipeline's source, or was the last to do
// so; false if there was none.
func (f *Family) stream(d runs.Definition) (runs.Run, bool) {
	return f.cfg.Store.Load(f.cfg.Store.Standing(d.ID).Stream)
}

// pause has a batch's schedule start no more runs, and has a stream pause.
func (f *Family) pause(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	r, streams := f.stream(d)
	switch {
	case streams && !r.State.Over():
		f.act(c, r, "pipeline.pause", pausing)
	case p.Streams():
		envelope.Fail(c, notLive(d))
	default:
		f.hold(c, d, p, true)
	}
}

// resume takes pause back, and takes a stream up again that has failed.
func (f *Family) resume(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	r, streams := f.stream(d)
	switch {
	case streams && (p.Streams() || !r.State.Over()):
		f.takeUp(c, r, "pipeline.resume")
	case p.Streams():
		envelope.Fail(c, notLive(d))
	default:
		f.hold(c, d, p, false)
	}
}

// stop has a stream finish what it has read, and end.
func (f *Family) stop(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	r, streams := f.stream(d)
	switch {
	case streams && (p.Streams() || !r.State.Over()):
		f.act(c, r, "pipeline.stop", stopping)
	case p.Streams():
		envelope.Fail(c, notLive(d))
	default:
		envelope.Fail(c, athena.Errorf(athena.CodeConflict, "pipeline %q is a batch; cancel its run (POST /runs/{id}/cancel), or pause its schedule (POST /pipelines/%s/pause)", d.Name, d.Name))
	}
}

func notLive(d runs.Definition) error {
	return athena.Errorf(athena.CodeConflict, "pipeline %q is not started; POST /pipelines/%s/start does", d.Name, d.Name)
}

// hold has the schedule of a batch start runs, or not.
func (f *Family) hold(c *gin.Context, d runs.Definition, p *spec.Pipeline, paused bool) {
	if p.Schedule == "" {
		envelope.Fail(c, athena.Errorf(athena.CodeConflict, "pipeline %q has no schedule; its runs are paused one by one (POST /runs/{id}/pause)", d.Name))
		return
	}
	ctx, action := c.Request.Context(), "pipeline.resume"
	if paused {
		action = "pipeline.pause"
	}
	err := f.cfg.Audit.Do(ctx, ops.Change{Action: action, Client: p.Sink.Client, Target: d.Name}, func(ctx context.Context) error {
		return f.cfg.Store.Remember(ctx, d.ID, func(st *runs.Standing) {
			if st.Paused && !paused {
				st.Fired = time.Now().UTC() // what was due meanwhile is not made up for
			}
			st.Paused = paused
		})
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	message := "its schedule starts no more runs; those that are live go on"
	if !paused {
		message = "its schedule starts runs"
	}
	envelope.OK(c, message, f.view(d, p, f.last(d.Name)), envelope.Meta{})
}

// A wish is what somebody wants of a run.
type wish struct {
	want runs.Want
	// is are the states in which it is so already.
	is   []runs.State
	verb string
	told string
}

var (
	pausing    = wish{runs.WantPause, []runs.State{runs.Paused}, "paused", "it pauses once what is under way is finished"}
	stopping   = wish{runs.WantStop, []runs.State{runs.Stopped}, "stopped", "it ends once what it has read is finished"}
	cancelling = wish{runs.WantCancel, []runs.State{runs.Cancelled}, "cancelled", "its worker ends it"}
)

func (w wish) fulfilled(r runs.Run) bool {
	for _, s := range w.is {
		if r.State == s {
			return true
		}
	}
	return false
}

func (f *Family) pauseRun(c *gin.Context)  { f.actOn(c, "pipeline.pause", pausing) }
func (f *Family) cancelRun(c *gin.Context) { f.actOn(c, "pipeline.cancel", cancelling) }

func (f *Family) actOn(c *gin.Context, action string, w wish) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	if r, ok := f.run(c); ok {
		f.act(c, r, action, w)
	}
}

// act says what is wanted of a run that is live. What is so already is no error.
func (f *Family) act(c *gin.Context, r runs.Run, action string, w wish) {
	ctx := c.Request.Context()
	if w.fulfilled(r) && (r.State.Over() || r.Want == w.want) {
		envelope.OK(c, "it is "+string(r.State)+" already", f.brief(r), envelope.Meta{})
		return
	}
	err := f.cfg.Audit.Do(ctx, change(action, r), func(ctx context.Context) (err error) {
		r, err = f.cfg.Store.Change(ctx, r.ID, func(r *runs.Run) error {
			switch {
			case r.State.Over():
				return athena.Errorf(athena.CodeConflict, "run %s has %s and cannot be %s", r.ID, ended(r.State), w.verb).With("state", r.State)
			case r.Want == runs.WantCancel && w.want != runs.WantCancel:
				return athena.Errorf(athena.CodeConflict, "run %s is being cancelled and cannot be %s", r.ID, w.verb).With("state", r.State)
			case r.Want != w.want:
				r.Want = w.want
				r.Log("key %s wants it %s", auth.FromContext(ctx).Key, w.verb)
			}
			return nil
		})
		return err
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.Accepted(c, "/runs/"+r.ID, w.told, f.brief(r), envelope.Meta{})
}

func (f *Family) resumeRun(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	if r, ok := f.run(c); ok {
		f.takeUp(c, r, "pipeline.resume")
	}
}

// takeUp has a run go on that is paused, is about to be, or has failed.
func (f *Family) takeUp(c *gin.Context, r runs.Run, action string) {
	ctx := c.Request.Context()
	err := f.admit(ctx, stored(r.Spec))
	if err == nil && r.State == runs.Failed && r.Kind == runs.Stream {
		if err = f.claim(ctx, r); errors.Is(err, errReplayed) {
			err = nil
		}
	}
	if err == nil {
		err = f.cfg.Audit.Do(ctx, change(action, r), func(ctx context.Context) (err error) {
			r, err = f.cfg.Store.Change(ctx, r.ID, func(r *runs.Run) error { return again(r, auth.FromContext(ctx).Key) })
			return err
		})
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.Accepted(c, "/runs/"+r.ID, "it goes on", f.brief(r), envelope.Meta{})
}

// again has a run be taken up by a worker.
func again(r *runs.Run, key string) error {
	switch {
	case r.State == runs.Failed || r.State == runs.Paused:
		r.Log("key %s had it go on; it was %s", key, r.State)
		r.State, r.Cause, r.EndedAt = runs.Queued, nil, time.Time{}
	case r.State.Over():
		return athena.Errorf(athena.CodeConflict, "run %s has %s and cannot go on; make a new one", r.ID, ended(r.State)).With("state", r.State)
	case r.Want == runs.WantCancel || r.Want == runs.WantStop:
		return athena.Errorf(athena.CodeConflict, "run %s is being ended; make a new one once it is over", r.ID).With("state", r.State)
	case r.Want == runs.WantPause:
		r.Log("key %s had it go on", key)
	}
	r.Want = runs.WantRun
	return nil
}
