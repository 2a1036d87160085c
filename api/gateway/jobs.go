package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
)

// load returns the job that the path names and where it stands, if the caller
// may do this with it. A job of a client that the key is not bound to is as if
// it were not there. The client's header is a hint that makes it cheaper.
func (f *Family) load(c *gin.Context, access auth.Access) (*deferred.Job, deferred.Status, error) {
	ctx := c.Request.Context()
	p := auth.FromContext(ctx)
	if err := p.Authorize(auth.Deferred, access, ""); err != nil {
		return nil, deferred.Status{}, err
	}
	name, err := client(c)
	if err != nil {
		return nil, deferred.Status{}, err
	}
	j, st, err := f.cfg.Jobs.Load(ctx, name, c.Param("id"))
	if err != nil {
		return nil, deferred.Status{}, err
	}
	return j, st, deferred.MayRead(p, j)
}

func meta(j *deferred.Job) envelope.Meta { return envelope.Meta{Client: j.Client, Engine: j.Engine} }

// job answers with where a job stands: at once, or as soon as that changes.
func (f *Family) job(c *gin.Context) {
	p := params.Of(c)
	wait := p.Duration("wait", 0, MaxWait)
	if err := p.Err(); err != nil {
		envelope.Fail(c, err)
		return
	}
	known, err := etags(c.GetHeader("If-None-Match"))
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	j, st, err := f.load(c, auth.Read)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx := c.Request.Context()
	first := f.view(ctx, j, st)
	st, state, err := f.await(ctx, j, st, wait, func(st deferred.Status, state deferred.State) bool {
		if known != nil {
			return !known.match(etag(st, state))
		}
		return state.Terminal() || state != first
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	tag := etag(st, state)
	c.Header("ETag", tag)
	if known.match(tag) {
		c.Status(http.StatusNotModified)
		c.Writer.WriteHeaderNow()
		return
	}
	envelope.OK(c, "the job is "+string(state), newJob(j, st, state), meta(j))
}

// tags is the header If-None-Match; nil if there is none.
type tags []string

func etags(header string) (tags, error) {
	if strings.TrimSpace(header) == "" {
		return nil, nil
	}
	list := tags{}
	for item := range strings.SplitSeq(header, ",") {
		item = strings.TrimPrefix(strings.TrimSpace(item), "W/")
		if item != "*" && (len(item) < 2 || item[0] != '"' || item[len(item)-1] != '"') {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "the header If-None-Match holds %.80q, which is no entity tag; send back the ETag as it was, in its quotes", item).At("If-None-Match")
		}
		list = append(list, item)
	}
	return list, nil
}

func (t tags) match(tag string) bool {
	for _, item := range t {
		if item == "*" || item == tag {
			return true
		}
	}
	return false
}

// cancel asks for a job to be cancelled.
func (f *Family) cancel(c *gin.Context) {
	f.change(c, func(ctx context.Context, j *deferred.Job, st deferred.Status, state deferred.State) error {
		switch {
		case state == deferred.Cancelled:
			envelope.OK(c, "the job was cancelled already", newJob(j, st, state), meta(j))
			return nil
		case state.Terminal(): // also where no event says so yet
			return athena.Errorf(athena.CodeConflict, "job %q has ended as %s", j.ID, state).With("state", state)
		}
		st, err := f.cfg.Jobs.Cancel(ctx, j, time.Now())
		if err != nil {
			return err
		}
		state = f.view(ctx, j, st)
		envelope.Accepted(c, location(j), "the job is "+string(state), newJob(j, st, state), meta(j))
		return nil
	})
}

// requeue has a job that has ended run again, in the name of the key that
// submitted it. So the key that asks must be allowed to run it, too.
func (f *Family) requeue(c *gin.Context) {
	f.change(c, func(ctx context.Context, j *deferred.Job, st deferred.Status, state deferred.State) error {
		access := auth.Write
		if j.ReadOnly {
			access = auth.Read
		}
		if err := auth.FromContext(ctx).Authorize(auth.Query, access, j.Client); err != nil {
			return err
		}
		if !state.Terminal() {
			return athena.Errorf(athena.CodeConflict, "job %q is %s; only one that has ended can be requeued", j.ID, state).With("state", state)
		}
		op := deferred.Op(j.Raw, j.Language)
		op.Holds = true
		client, err := f.cfg.Dispatcher.Check(ctx, op, j.Client)
		if err != nil {
			return err
		}
		settle, err := f.queues.reserve(ctx, client)
		if err != nil {
			return err
		}
		if st, err = f.written(ctx, j, st, state); err == nil {
			st, err = f.cfg.Jobs.Requeue(ctx, j, st, time.Now())
		}
		settle(err == nil)
		if err != nil {
			return err
		}
		state = f.view(ctx, j, st)
		envelope.Accepted(c, location(j), "the job is "+string(state), newJob(j, st, state), meta(j))
		return nil
	})
}

// written stores that a job has expired where so far it was only derived.
func (f *Family) written(ctx context.Context, j *deferred.Job, st deferred.Status, state deferred.State) (deferred.Status, error) {
	if st.State == state {
		return st, nil
	}
	next, err := f.cfg.Jobs.Advance(ctx, j, st,
		st.Fail(state, athena.Errorf(athena.CodeTimeout, "the deadline passed before the job could run"), time.Now()))
	if errors.Is(err, deferred.ErrMoved) {
		return f.cfg.Jobs.Status(ctx, j.Client, j.ID)
	}
	return next, err
}

// forget removes a job that has ended, and its result.
func (f *Family) forget(c *gin.Context) {
	f.change(c, func(ctx context.Context, j *deferred.Job, _ deferred.Status, state deferred.State) error {
		if err := f.cfg.Jobs.Forget(ctx, j, state); err != nil {
			return err
		}
		envelope.OK(c, "the job and its result were forgotten", forgotten{j.ID}, meta(j))
		return nil
	})
}

type forgotten struct {
	ID string `json:"id"`
}

// change is what the routes that change a job have in common. They touch no
// backend, and so are observed here and not on the road.
func (f *Family) change(c *gin.Context, act func(context.Context, *deferred.Job, deferred.Status, deferred.State) error) {
	ctx := c.Request.Context()
	p := auth.FromContext(ctx)
	out := dispatch.Outcome{Op: dispatch.Op{Family: "deferred", Right: auth.Deferred}, Started: time.Now()}
	if p != nil {
		out.Principal = p.Key
	}
	err := params.None(c)
	if err == nil {
		var j *deferred.Job
		var st deferred.Status
		if j, st, err = f.load(c, auth.Write); err == nil {
			out.Client, out.Engine = j.Client, j.Engine
			err = act(ctx, j, st, f.view(ctx, j, st))
		}
	}
	out.Code, out.Err, out.Elapsed = athena.CodeOf(err), err, time.Since(out.Started)
	f.cfg.Dispatcher.Observer.Observe(ctx, out)
	if err != nil {
		envelope.Fail(c, err)
	}
}
