package pipelines

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A run as it is shown. The fields behind Counts are told of one run only.
type run struct {
	ID         string      `json:"id"`
	Pipeline   string      `json:"pipeline,omitempty"`
	Name       string      `json:"name,omitempty"` // that a definition which was run at once gave itself
	Generation int         `json:"generation,omitempty"`
	Kind       runs.Kind   `json:"kind"`
	Trigger    string      `json:"trigger"`
	Key        string      `json:"key"`
	Source     string      `json:"source,omitempty"`
	Sink       string      `json:"sink"`
	State      runs.State  `json:"state"`
	Want       runs.Want   `json:"want"`
	Cause      *runs.Cause `json:"cause,omitempty"`
	CreatedAt  time.Time   `json:"created_at"`
	StartedAt  time.Time   `json:"started_at,omitzero"`
	EndedAt    time.Time   `json:"ended_at,omitzero"`
	Parallel   int         `json:"parallel"`
	Tasks      int         `json:"tasks,omitempty"`
	// Counts are the totals of a run that is over, else what was last told.
	Counts runs.Counts `json:"counts"`

	Progress *runs.Progress  `json:"progress,omitempty"`
	Work     *work           `json:"work,omitempty"`
	Schema   *record.Schema  `json:"schema,omitempty"`
	Steps    []runs.Step     `json:"steps,omitempty"`
	Spec     json.RawMessage `json:"spec,omitempty"`
}

// work is how the tasks of a batch stand.
type work struct {
	Queued  int     `json:"queued"`
	Running int     `json:"running"`
	Done    int     `json:"done"`
	Faults  []fault `json:"faults,omitempty"`
}

// A fault is why the last attempt at a task ended.
type fault struct {
	Task    int         `json:"task"`
	Attempt int         `json:"attempt"`
	Cause   *runs.Cause `json:"cause"`
}

// mostFaults is how many are told of one run.
const mostFaults = 20

// silence is how long a run may wait for a worker before that is said to be so.
const silence = 30 * time.Second

// brief shows a run in short.
func (f *Family) brief(r runs.Run) run {
	v := run{
		ID: r.ID, Pipeline: r.Pipeline, Generation: r.Generation, Kind: r.Kind, Trigger: r.Trigger, Key: r.Key,
		Source: r.Source, Sink: r.Sink, State: r.State, Want: r.Want, Cause: r.Cause,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt,
		Parallel: r.Parallel, Tasks: r.Tasks, Counts: r.Totals,
	}
	if r.Pipeline == "" {
		v.Name = label(r.Spec)
	}
	if p, told := f.cfg.Store.Progress(r.ID); told && !r.State.Over() {
		v.Counts = p.Counts
	}
	if since := queuedSince(r); v.Cause == nil && r.State == runs.Queued && time.Since(since) > silence {
		v.Cause = &runs.Cause{
			Code:    athena.CodeBackendUnavailable,
			Message: "no worker has taken the run up; start one that has the secrets of its clients and can reach them, or see why the one that had it does not",
			Since:   since,
		}
	}
	return v
}

// label is the name that a definition has.
func label(raw json.RawMessage) string {
	var named struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(raw, &named) != nil {
		return ""
	}
	return named.Name
}

// queuedSince is when a run that is queued became so.
func queuedSince(r runs.Run) time.Time {
	if n := len(r.Steps); n > 0 {
		return r.Steps[n-1].At
	}
	return r.CreatedAt
}

// whole shows all that is known of a run.
func (f *Family) whole(r runs.Run) run {
	v := f.brief(r)
	v.Schema, v.Steps, v.Spec = r.Schema, r.Steps, r.Spec
	if p, told := f.cfg.Store.Progress(r.ID); told {
		v.Progress = &p
	}
	if tasks := f.cfg.Store.Tasks(r.ID); len(tasks) > 0 {
		v.Work = &work{}
		for _, t := range tasks {
			v.Work.add(t)
		}
	}
	return v
}

func (w *work) add(t runs.Task) {
	switch t.State {
	case runs.TaskDone:
		w.Done++
		return
	case runs.TaskRunning:
		w.Running++
	default:
		w.Queued++
	}
	if t.Fault != nil && len(w.Faults) < mostFaults {
		w.Faults = append(w.Faults, fault{t.N, t.Attempt, t.Fault})
	}
}

func (f *Family) getRun(c *gin.Context) {
	q := params.Of(c)
	wait := q.Duration("wait", 0, MaxWait)
	if !allowed(c, auth.Read, q.Err()) {
		return
	}
	r, ok := f.run(c)
	if !ok {
		return
	}
	if wait > 0 {
		var err error
		if r, err = f.follow(c.Request.Context(), r, wait); err != nil {
			envelope.Fail(c, err)
			return
		}
	}
	envelope.OK(c, "the run is "+string(r.State), f.whole(r), envelope.Meta{})
}

// A choice is which runs are listed, and how many of them.
type choice struct {
	limit  int
	state  string
	before *runs.Run // the last one of the page before
}

func readChoice(q *params.Query) choice {
	ch := choice{limit: q.Int("limit", 100, 1, 1000), state: q.String("state")}
	var err error
	if ch.before, err = readBefore(q.String("cursor")); err != nil {
		q.Refuse(err)
	}
	return ch
}

// listRuns answers with the runs of a pipeline, the newest first.
func (f *Family) listRuns(c *gin.Context) {
	q := params.Of(c)
	ch := readChoice(q)
	if !allowed(c, auth.Read, q.Err()) {
		return
	}
	if d, _, ok := f.definition(c); ok {
		f.answerRuns(c, f.cfg.Store.Runs(d.Name), ch)
	}
}

// listAllRuns answers with the runs of all pipelines, and of what was run at once.
func (f *Family) listAllRuns(c *gin.Context) {
	q := params.Of(c)
	ch := readChoice(q)
	if allowed(c, auth.Read, q.Err()) {
		f.answerRuns(c, f.cfg.Store.Runs(""), ch)
	}
}

// answerRuns answers with those of the runs that the key may see.
func (f *Family) answerRuns(c *gin.Context, all []runs.Run, ch choice) {
	slices.SortFunc(all, newer)
	list, meta := []run{}, envelope.Meta{}
	for _, r := range all {
		if ch.state != "" && string(r.State) != ch.state || ch.before != nil && newer(*ch.before, r) >= 0 || !sees(c.Request.Context(), r.Source, r.Sink) {
			continue
		}
		if len(list) == ch.limit {
			meta.NextCursor = writeBefore(list[ch.limit-1])
			break
		}
		list = append(list, f.brief(r))
	}
	envelope.OK(c, fmt.Sprintf("%d runs", len(list)), list, meta)
}

// A cursor of runs names the last one of its page: when it was made, and its id.
func writeBefore(r run) string { return strconv.FormatInt(r.CreatedAt.UnixNano(), 36) + "." + r.ID }

func readBefore(text string) (*runs.Run, error) {
	if text == "" {
		return nil, nil
	}
	at, id, ok := strings.Cut(text, ".")
	ns, err := strconv.ParseInt(at, 36, 64)
	if !ok || err != nil || id == "" {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "cursor is %.80q; give the next_cursor of the page before", text).At("cursor")
	}
	return &runs.Run{ID: id, CreatedAt: time.Unix(0, ns).UTC()}, nil
}
