package sdk

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Pipelines is the part of the API about pipelines. It needs a key with the right
// pipelines. It is safe for concurrent use.
type Pipelines struct{ api *API }

// Pipelines returns the part of the API about pipelines.
func (a *API) Pipelines() *Pipelines { return &Pipelines{a} }

func pipelinePath(name, more string) string { return "/pipelines/" + url.PathEscape(name) + more }

// PipelineInfo is a stored pipeline.
type PipelineInfo struct {
	Name        string      `json:"name"`
	ID          string      `json:"id"` // tells it from an earlier one of the same name
	Description string      `json:"description,omitempty"`
	Kind        RunKind     `json:"kind"` // RunBatch or RunStream
	Template    bool        `json:"template,omitempty"`
	Source      PipelineEnd `json:"source"`
	Sink        PipelineEnd `json:"sink"`
	Schedule    string      `json:"schedule,omitempty"`
	Generation  int         `json:"generation"` // counts the versions, from 1
	// Revision is what PutPipeline expects; 0 of an earlier generation.
	Revision uint64 `json:"revision,omitempty"`
	Key      string `json:"key"` // the public id of the key that stored it
	// Paused says that the schedule starts no runs.
	Paused    bool      `json:"paused,omitempty"`
	NextAt    time.Time `json:"next_at,omitzero"`
	LastRun   *RunInfo  `json:"last_run,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	// Dead is how many rows are kept that could not go on; of List and Get.
	Dead int64 `json:"dead,omitempty"`
	// Spec is the definition; nil in lists.
	Spec json.RawMessage `json:"spec,omitempty"`
}

// PipelineEnd is one end of a pipeline.
type PipelineEnd struct {
	Client string `json:"client,omitempty"`
	Kind   string `json:"kind"` // table, query, cdc, objects, deferred
}

// List returns the pipelines that the key may see, by name.
func (p *Pipelines) List(ctx context.Context) ([]PipelineInfo, error) {
	list, _, err := answer[[]PipelineInfo](ctx, p.api, get("/pipelines", nil))
	return list, err
}

// Get returns a pipeline as it was at a generation; the newest if that is 0.
func (p *Pipelines) Get(ctx context.Context, name string, generation int) (*PipelineInfo, error) {
	query := url.Values{}
	if generation > 0 {
		query.Set("generation", strconv.Itoa(generation))
	}
	info, _, err := answer[*PipelineInfo](ctx, p.api, get(pipelinePath(name, ""), query))
	return info, err
}

// Put stores a definition in JSON. The pipeline must be at the expected revision,
// which may be Absent or Any, or the answer is a conflict. One that cannot be run
// is refused, with its plan in the error's detail plan.
func (p *Pipelines) Put(ctx context.Context, name string, definition json.RawMessage, expected int64) (*PipelineInfo, error) {
	r := request{method: http.MethodPut, path: pipelinePath(name, ""), body: definition, header: http.Header{}}
	switch {
	case expected == Absent:
		r.header.Set("If-None-Match", "*")
	case expected > 0:
		r.header.Set("If-Match", strconv.Quote(strconv.FormatInt(expected, 10)))
	}
	info, _, err := answer[*PipelineInfo](ctx, p.api, r)
	return info, err
}

// Delete removes a pipeline, and what could not go on of it. Its runs are kept.
func (p *Pipelines) Delete(ctx context.Context, name string) error {
	_, _, err := answer[any](ctx, p.api, request{method: http.MethodDelete, path: pipelinePath(name, "")})
	return err
}

// RunOptions say how a run is asked for. Zero fields ask for nothing.
type RunOptions struct {
	Params map[string]string // values of a template's parameters
	// Wait is how long the answer waits for the end, at most a minute.
	Wait time.Duration
	// IdempotencyKey makes asking again harmless: the same run is returned.
	IdempotencyKey string
	// Reset has a stream begin anew; for Start alone.
	Reset bool
}

func (o RunOptions) request(path string, body any) request {
	r := request{method: http.MethodPost, path: path, query: url.Values{}, header: http.Header{}, body: body}
	if o.Wait > 0 {
		r.query.Set("wait", o.Wait.String())
	}
	if o.IdempotencyKey != "" {
		r.header.Set("Idempotency-Key", o.IdempotencyKey)
		r.safe = true
	}
	return r
}

func (o RunOptions) values() map[string]any {
	body := map[string]any{}
	if len(o.Params) > 0 {
		body["params"] = o.Params
	}
	if o.Reset {
		body["reset"] = true
	}
	return body
}

func (p *Pipelines) start(ctx context.Context, r request) (*RunInfo, error) {
	info, _, err := answer[*RunInfo](ctx, p.api, r)
	return info, err
}

// Run runs a definition in JSON that is stored nowhere.
func (p *Pipelines) Run(ctx context.Context, definition json.RawMessage, o RunOptions) (*RunInfo, error) {
	return p.start(ctx, o.request("/pipelines", definition))
}

// RunStored runs a stored batch.
func (p *Pipelines) RunStored(ctx context.Context, name string, o RunOptions) (*RunInfo, error) {
	return p.start(ctx, o.request(pipelinePath(name, "/runs"), o.values()))
}

// Start has a pipeline follow its source from where it was.
func (p *Pipelines) Start(ctx context.Context, name string, o RunOptions) (*RunInfo, error) {
	return p.start(ctx, o.request(pipelinePath(name, "/start"), o.values()))
}

// Redrive runs the rows of a pipeline that could not go on.
func (p *Pipelines) Redrive(ctx context.Context, name string, o RunOptions) (*RunInfo, error) {
	return p.start(ctx, o.request(pipelinePath(name, "/dead/redrive"), o.values()))
}

// Pause has a batch's schedule start no more runs, and has a stream wait.
func (p *Pipelines) Pause(ctx context.Context, name string) error { return p.act(ctx, name, "/pause") }

// Resume takes Pause back, and takes a stream up again that has failed.
func (p *Pipelines) Resume(ctx context.Context, name string) error {
	return p.act(ctx, name, "/resume")
}

// Stop has a stream finish what it has read, and end.
func (p *Pipelines) Stop(ctx context.Context, name string) error { return p.act(ctx, name, "/stop") }

func (p *Pipelines) act(ctx context.Context, name, what string) error {
	_, _, err := answer[any](ctx, p.api, request{method: http.MethodPost, path: pipelinePath(name, what)})
	return err
}

// RunFilter chooses runs. Empty fields choose all.
type RunFilter struct {
	State RunState
	// Page is how many are asked for at once; the server's default if 0.
	Page int
}

func (f RunFilter) query() url.Values {
	query := optional("state", string(f.State))
	if f.Page > 0 {
		query.Set("limit", strconv.Itoa(f.Page))
	}
	return query
}

// Runs yields the runs of a pipeline, newest first.
func (p *Pipelines) Runs(ctx context.Context, name string, f RunFilter) iter.Seq2[*RunInfo, error] {
	return pages[*RunInfo](ctx, p.api, pipelinePath(name, "/runs"), f.query())
}

// AllRuns yields the runs of all pipelines, and of definitions that were run at once,
// newest first: those that the key may see.
func (p *Pipelines) AllRuns(ctx context.Context, f RunFilter) iter.Seq2[*RunInfo, error] {
	return pages[*RunInfo](ctx, p.api, "/runs", f.query())
}

// A DeadRow is a row that could not go on.
type DeadRow struct {
	Seq    uint64 `json:"seq"`
	Run    string `json:"run"`
	Row    string `json:"row"`   // names it within the run
	Stage  string `json:"stage"` // source, transforms[2], schema, sink
	Column string `json:"column,omitempty"`
	Reason string `json:"reason"`
	// Record is the row. Text is what the source gave, if it is none.
	Record json.RawMessage `json:"record,omitempty"`
	Text   string          `json:"text,omitempty"`
	Route  string          `json:"route,omitempty"`
	From   string          `json:"from,omitempty"` // table, object and line
	Op     string          `json:"op,omitempty"`
	Pos    string          `json:"pos,omitempty"`
	At     time.Time       `json:"at"`
}

// Dead yields the rows of a pipeline that could not go on, oldest first.
func (p *Pipelines) Dead(ctx context.Context, name string) iter.Seq2[DeadRow, error] {
	return pages[DeadRow](ctx, p.api, pipelinePath(name, "/dead"), url.Values{})
}

// DeleteDead removes the rows of a pipeline that could not go on, up to a seq; all
// of them if that is 0. It returns how many were removed.
func (p *Pipelines) DeleteDead(ctx context.Context, name string, upto uint64) (int64, error) {
	query := url.Values{}
	if upto > 0 {
		query.Set("upto", strconv.FormatUint(upto, 10))
	}
	gone, _, err := answer[struct {
		Deleted int64 `json:"deleted"`
	}](ctx, p.api, request{method: http.MethodDelete, path: pipelinePath(name, "/dead"), query: query})
	return gone.Deleted, err
}
