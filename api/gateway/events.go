package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// events streams a job's states as Server-Sent Events: those stored after
// Last-Event-ID, then each change as it comes, also of what is only derived (a
// frozen client, a passed deadline). The id of an event is the revision. The
// stream ends behind a terminal state.
func (f *Family) events(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	after, resumes, err := lastEventID(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	j, st, err := f.load(c, auth.Read)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	after = min(after, st.Rev)
	ctx := c.Request.Context()
	state := f.view(ctx, j, st)
	if resumes && after == st.Rev && state.Terminal() && state == st.State {
		// All was told. 204 is how a browser's EventSource learns to stay away.
		c.Status(http.StatusNoContent)
		c.Writer.WriteHeaderNow()
		return
	}
	c.Header("Content-Type", "text/event-stream; charset=utf-8")
	c.Header("X-Accel-Buffering", "no") // nginx would hold events back
	c.Status(http.StatusOK)
	s := &stream{c: c, job: j, revision: after}
	s.write("retry: 1000\n\n")
	f.pump(s, st, state)
}

func lastEventID(c *gin.Context) (after uint64, resumes bool, err error) {
	const header = "Last-Event-ID"
	text := c.GetHeader(header)
	if text == "" {
		return 0, false, nil
	}
	after, err = strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, false, athena.Errorf(athena.CodeInvalidRequest, "the header %s is %.40q; it must be the id of an event of this stream", header, text).At(header)
	}
	return after, true, nil
}

// pump writes until the job has ended, the reader is gone or the server stops.
// St and state are the job as it was when the stream began.
func (f *Family) pump(s *stream, st deferred.Status, state deferred.State) {
	ctx := s.c.Request.Context()
	glance := time.NewTicker(f.cfg.Glance)
	defer glance.Stop()
	heartbeat := time.NewTicker(f.cfg.Heartbeat)
	defer heartbeat.Stop()
	feed := f.feed(ctx, s.job, s.revision)
	defer feed.Stop()

	now, begun := st, st.Rev
	if s.revision == begun && state != st.State { // nothing stored is to come that would say it
		s.send(st, state)
	}
	for s.err == nil && !(s.revision >= begun && s.state.Terminal()) {
		select {
		case e, ok := <-feed.C:
			switch {
			case !ok:
				return
			case e.err != nil:
				s.fail(e.err)
				return
			}
			now = e.Status
			if now.Rev < begun { // history, told as it was
				s.send(now, now.State)
				continue
			}
			s.send(now, f.view(ctx, s.job, now))
		case <-glance.C:
			// Derived changes are told once what is stored has been.
			if state := f.view(ctx, s.job, now); s.revision >= begun && state != s.state && (s.state != "" || state != now.State) {
				s.send(now, state)
			}
		case <-heartbeat.C:
			s.write(": heartbeat\n\n")
		case <-api.Draining(ctx):
			s.write(": the server is stopping; come again\nretry: 1000\n\n")
			return
		case <-ctx.Done():
			return
		}
	}
}

// stream writes events to a reader.
type stream struct {
	c        *gin.Context
	job      *deferred.Job
	revision uint64         // of the last event, or that the reader had before
	state    deferred.State // as it was told last; empty if nothing was
	err      error
}

func (s *stream) send(st deferred.Status, state deferred.State) {
	s.revision, s.state = st.Rev, state
	s.event("state", strconv.FormatUint(st.Rev, 10), brief(s.job, st, state))
}

// fail tells of an error; the reader may come again.
func (s *stream) fail(err error) {
	_ = s.c.Error(err)
	e := athena.AsError(err)
	s.event("error", "", envelope.Error{
		Status: "error", Message: e.Message, Error: e.Message, Code: e.Code,
		RequestID: telemetry.RequestID(s.c.Request.Context()), Retryable: e.Retryable(), Details: map[string]any{},
	})
}

func (s *stream) event(name, id string, data any) {
	raw, err := envelope.Encode(data)
	if err != nil {
		s.err = err
		return
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	s.write(fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, name, raw))
}

func (s *stream) write(text string) {
	if s.err != nil {
		return
	}
	if _, s.err = s.c.Writer.WriteString(text); s.err == nil {
		s.c.Writer.Flush()
	}
}
