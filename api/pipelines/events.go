package pipelines

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// A told is what a reader of events knows: the run at a revision, and its steps up
// to one. It is the id of an event.
type told struct {
	revision uint64
	step     int
}

func (t told) String() string { return fmt.Sprintf("%d.%d", t.revision, t.step) }

func readTold(c *gin.Context) (t told, resumes bool, err error) {
	const header = "Last-Event-ID"
	text := c.GetHeader(header)
	if text == "" {
		return t, false, nil
	}
	revision, step, ok := strings.Cut(text, ".")
	t.revision, err = strconv.ParseUint(revision, 10, 64)
	if err == nil {
		t.step, err = strconv.Atoi(step)
	}
	if !ok || err != nil {
		return t, false, athena.Errorf(athena.CodeInvalidRequest, "the header %s is %.40q; it must be the id of an event of this stream", header, text).At(header)
	}
	return t, true, nil
}

// events streams how a run fares as server-sent events: step for each thing that
// happened to it, state when it is another one, progress as its worker tells, and
// end, with which the stream is over. Behind Last-Event-ID come the steps that are
// newer. Of progress and of states that pass quickly the newest is told.
func (f *Family) events(c *gin.Context) {
	if !allowed(c, auth.Read, params.None(c)) {
		return
	}
	known, resumes, err := readTold(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	g := f.guard(c)
	defer g.release()
	r, ok := f.run(c)
	if !ok {
		return
	}
	if resumes && r.State.Over() && known.revision >= r.Revision {
		// All was told. 204 is how a browser's EventSource learns to stay away.
		c.Status(http.StatusNoContent)
		c.Writer.WriteHeaderNow()
		return
	}
	g.source, g.sink = r.Source, r.Sink
	middleware.SetStall(c, f.cfg.Stall)
	c.Header("Content-Type", "text/event-stream; charset=utf-8")
	c.Header("X-Accel-Buffering", "no") // nginx would hold events back
	c.Status(http.StatusOK)
	g.onCut(func() { _ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now()) })
	s := &stream{c: c, told: known}
	s.write("retry: 1000\n\n")
	f.pump(s, g, r.ID)
}

// pump writes until the run is over, the reader is gone or may have no more, or the
// server stops.
func (f *Family) pump(s *stream, g *guard, id string) {
	ctx := s.c.Request.Context()
	changed := make(chan struct{}, 1)
	defer f.cfg.Store.Subscribe(notify(changed, id))()
	heartbeat := time.NewTicker(f.cfg.Heartbeat)
	defer heartbeat.Stop()
	for s.err == nil {
		if err := g.changes(ctx); err != nil {
			s.fail(err)
			return
		}
		r, ok := f.cfg.Store.Load(id)
		if !ok {
			s.fail(athena.Errorf(athena.CodeNotFound, "run %s is no longer kept", id))
			return
		}
		if s.send(f, r); r.State.Over() {
			return
		}
		select {
		case <-changed:
		case <-g.changed:
			g.again()
		case <-heartbeat.C:
			if err := g.check(ctx); err != nil {
				s.fail(err)
				return
			}
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
	told     told
	began    bool
	progress time.Time // of the last progress that was told
	err      error
}

// send tells what is new of a run.
func (s *stream) send(f *Family, r runs.Run) {
	for _, step := range r.Steps {
		if step.N > s.told.step {
			s.told.step = step.N
			s.event("step", s.told.String(), step)
		}
	}
	if fresh := r.Revision > s.told.revision; fresh || !s.began {
		s.told.revision = max(s.told.revision, r.Revision)
		if !r.State.Over() {
			s.event("state", s.told.String(), f.brief(r))
		}
	}
	s.began = true
	if p, ok := f.cfg.Store.Progress(r.ID); ok && p.At.After(s.progress) {
		s.progress = p.At
		s.event("progress", "", p)
	}
	if r.State.Over() {
		s.event("end", s.told.String(), f.brief(r))
	}
}

// fail tells why the stream ends.
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

// A guard judges an open stream anew when its key may be over.
type guard struct {
	family       *Family
	key          string // as it was presented
	source, sink string
	changed      chan struct{} // has an element if something may have
	release      func()

	mu  sync.Mutex
	cut func() // ends the connection; nil if it needs no end, or is given back
}

// grace is how long the handler has to see that its key is over. After that it is
// held up by a reader who takes nothing.
const grace = 500 * time.Millisecond

// guard begins to watch. release must be called in the end.
func (f *Family) guard(c *gin.Context) *guard {
	presented, _ := auth.FromHeader(c.Request.Header) // which let the request in
	g := &guard{family: f, key: presented, changed: make(chan struct{}, 1)}
	g.again() // the key may be over since
	mine := auth.FromContext(c.Request.Context()).Key
	cancel := f.cfg.Keys.Subscribe(func(key string) {
		if key == mine {
			g.again()
			time.AfterFunc(grace, g.enforce)
		}
	})
	g.release = func() {
		cancel()
		g.onCut(nil)
	}
	return g
}

// again has the key be judged.
func (g *guard) again() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// onCut says how the connection is ended by another goroutine.
func (g *guard) onCut(cut func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = cut
}

// enforce ends the connection of a reader who may have no more and whose handler
// does not see it.
func (g *guard) enforce() {
	if len(g.changed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cut != nil && g.check(ctx) != nil {
		g.cut()
	}
}

// check reports why the reader may have no more, or nil.
func (g *guard) check(ctx context.Context) error {
	p, err := g.family.cfg.Verify.Verify(ctx, g.key)
	if err != nil {
		return err
	}
	for _, client := range []string{g.source, g.sink} {
		if err := p.Authorize(auth.Pipelines, auth.Read, client); err != nil {
			return err
		}
	}
	return nil
}

// changes is check where there is something to look at, and nil else.
func (g *guard) changes(ctx context.Context) error {
	select {
	case <-g.changed:
		return g.check(ctx)
	default:
		return nil
	}
}
