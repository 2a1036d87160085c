package pipelines

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// A page is where a page of rows begins, and how many there may be.
type page struct {
	from  uint64
	limit int
}

func readPage(q *params.Query) (p page) {
	p.limit = q.Int("limit", 100, 1, 1000)
	if text := q.String("cursor"); text != "" {
		var err error
		if p.from, err = strconv.ParseUint(text, 10, 63); err != nil {
			q.Refuse(athena.Errorf(athena.CodeInvalidRequest, "cursor is %.40q; give the next_cursor of the page before", text).At("cursor"))
		}
	}
	return p
}

// listDead answers with the rows of a pipeline that could not go on, the oldest
// first.
func (f *Family) listDead(c *gin.Context) {
	q := params.Of(c)
	p := readPage(q)
	if !allowed(c, auth.Read, q.Err()) {
		return
	}
	if d, _, ok := f.definition(c); ok {
		f.answerDead(c, d.ID, bus.Any, p)
	}
}

// listRunDead is listDead for those of one run.
func (f *Family) listRunDead(c *gin.Context) {
	q := params.Of(c)
	p := readPage(q)
	if !allowed(c, auth.Read, q.Err()) {
		return
	}
	if r, ok := f.run(c); ok {
		f.answerDead(c, r.PipelineID, r.ID, p)
	}
}

func (f *Family) answerDead(c *gin.Context, pipelineID, run string, p page) {
	rows, err := f.cfg.Store.RejectedOf(c.Request.Context(), pipelineID, run, p.from, p.limit+1)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var meta envelope.Meta
	if len(rows) > p.limit {
		meta.NextCursor = strconv.FormatUint(rows[p.limit].Seq, 10)
		rows = rows[:p.limit]
	}
	envelope.OK(c, fmt.Sprintf("%d rows that could not go on", len(rows)), some(rows), meta)
}

// dropDead removes rows that could not go on: all, or those up to one.
func (f *Family) dropDead(c *gin.Context) {
	q := params.Of(c)
	upto := q.String("upto")
	var last uint64
	if upto != "" {
		var err error
		if last, err = strconv.ParseUint(upto, 10, 63); err != nil || last == 0 {
			q.Refuse(athena.Errorf(athena.CodeInvalidRequest, "upto is %.40q; give the seq of the last row that is to go", upto).At("upto"))
		}
	}
	if !allowed(c, auth.Write, q.Err()) {
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	ctx := c.Request.Context()
	var before, after int64
	before, err := f.cfg.Store.CountRejected(ctx, d.ID)
	if err == nil {
		err = f.cfg.Audit.Do(ctx, ops.Change{Action: "pipeline.dead.delete", Client: p.Sink.Client, Target: d.Name}, func(ctx context.Context) error {
			return f.cfg.Store.DropRejected(ctx, d.ID, last)
		})
	}
	if err == nil {
		after, err = f.cfg.Store.CountRejected(ctx, d.ID)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	gone := max(before-after, 0)
	envelope.OK(c, fmt.Sprintf("%d rows were deleted", gone), map[string]int64{"deleted": gone, "left": after}, envelope.Meta{})
}

// redrive makes a run that takes on the rows which could not go on up to now.
func (f *Family) redrive(c *gin.Context) {
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
	r, err := f.runOf(c, d, p, body.Params)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	r.Kind = runs.Redrive
	want := request{idem, values(body.Params)}
	if err := f.redrivable(c.Request.Context(), want, p, &r); err != nil {
		envelope.Fail(c, err)
		return
	}
	f.accept(c, r, want, wait)
}

// redrivable is a conflict if there is nothing to take on, or somebody is at it. A
// request that comes again is let through.
func (f *Family) redrivable(ctx context.Context, q request, p *spec.Pipeline, r *runs.Run) (err error) {
	marked := *r
	q.mark(&marked)
	if _, again := f.cfg.Store.Load(marked.ID); again {
		return nil
	}
	if c := p.Source.CDC; c != nil && (p.Mode() == driver.Upsert || len(c.Tables) > 1) {
		return athena.Errorf(athena.CodeConflict, "the rows of a stream may be older than what the target has by now; have their tables read as they are (athena cdc snapshot start --client %s --tables %s, with --where for some rows), and delete what is kept (athena pipeline dead delete)", p.Source.Client, strings.Join(c.Tables, ","))
	}
	for _, o := range f.cfg.Store.Runs(r.Pipeline) {
		if o.PipelineID == r.PipelineID && o.Kind == runs.Redrive && !o.State.Over() {
			return athena.Errorf(athena.CodeConflict, "run %s takes the rows of pipeline %q on already; wait for its end", o.ID, r.Pipeline).With("run", o.ID)
		}
	}
	if r.Upto, err = f.cfg.Store.LastRejected(ctx, r.PipelineID); err == nil && r.Upto == 0 {
		err = athena.Errorf(athena.CodeConflict, "pipeline %q has no rows that could not go on", r.Pipeline)
	}
	if err != nil {
		return err
	}
	// What an append adds, it adds for good; other modes hold what was read last.
	fresh := p.Sink.Table != "" && p.Mode() != driver.Append
	if r.Redrives, err = f.cfg.Store.Redrivable(ctx, r.PipelineID, fresh); err == nil && len(r.Redrives) == 0 {
		err = athena.Errorf(athena.CodeConflict, "the rows that are kept of pipeline %q are of runs that did not succeed, or that a later run has read again: there is nothing to add them to; delete them with athena pipeline dead delete", r.Pipeline)
	}
	return err
}
