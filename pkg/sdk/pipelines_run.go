package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// RunKind says what a run does.
type RunKind string

// The kinds.
const (
	RunBatch   RunKind = "batch"   // reads its source once
	RunStream  RunKind = "stream"  // follows its source until it is stopped
	RunRedrive RunKind = "redrive" // takes on what could not go on before
)

// RunState is how a run fares.
type RunState string

// The states.
const (
	RunQueued       RunState = "queued"
	RunStarting     RunState = "starting"
	RunRunning      RunState = "running"
	RunCommitting   RunState = "committing"
	RunSnapshotting RunState = "snapshotting"
	RunStreaming    RunState = "streaming"
	RunDegraded     RunState = "degraded"
	RunDraining     RunState = "draining"
	RunPaused       RunState = "paused"
	RunStopped      RunState = "stopped"
	RunSucceeded    RunState = "succeeded"
	RunFailed       RunState = "failed"
	RunCancelled    RunState = "cancelled"
)

// RunStates lists the states.
func RunStates() []RunState {
	return []RunState{
		RunQueued, RunStarting, RunRunning, RunCommitting, RunSnapshotting, RunStreaming, RunDegraded,
		RunDraining, RunPaused, RunStopped, RunSucceeded, RunFailed, RunCancelled,
	}
}

// Over reports whether nothing more happens to the run unless somebody asks for
// it.
func (s RunState) Over() bool {
	switch s {
	case RunStopped, RunSucceeded, RunFailed, RunCancelled:
		return true
	}
	return false
}

// RunInfo says how a run fares. The fields behind Counts are told of one run only.
type RunInfo struct {
	ID         string    `json:"id"`
	Pipeline   string    `json:"pipeline,omitempty"` // empty for one that is stored nowhere
	Name       string    `json:"name,omitempty"`     // that such a one gave itself
	Generation int       `json:"generation,omitempty"`
	Kind       RunKind   `json:"kind"`
	Trigger    string    `json:"trigger"` // api, schedule, start
	Key        string    `json:"key"`     // in whose name it runs
	Source     string    `json:"source,omitempty"`
	Sink       string    `json:"sink"`
	State      RunState  `json:"state"`
	Want       string    `json:"want"` // run, pause, stop, cancel
	Cause      *RunCause `json:"cause,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	EndedAt    time.Time `json:"ended_at,omitzero"`
	Parallel   int       `json:"parallel"`
	Tasks      int       `json:"tasks,omitempty"`
	// Counts are the totals of a run that is over, else what was last told.
	Counts RunCounts `json:"counts"`

	Progress *RunProgress    `json:"progress,omitempty"`
	Work     *RunWork        `json:"work,omitempty"`
	Schema   json.RawMessage `json:"schema,omitempty"` // what the source had
	Steps    []RunStep       `json:"steps,omitempty"`
	Spec     json.RawMessage `json:"spec,omitempty"`
}

// Err is the run's end as an error: nil unless it has failed or was cancelled.
func (i *RunInfo) Err() error {
	switch {
	case i.State == RunCancelled:
		return athena.Errorf(athena.CodeCancelled, "run %s was cancelled", i.ID).With("state", string(i.State))
	case i.State != RunFailed:
		return nil
	case i.Cause == nil:
		return athena.Errorf(athena.CodeInternal, "run %s failed", i.ID).With("state", string(i.State))
	}
	e := athena.Errorf(i.Cause.Code, "%s", i.Cause.Message)
	e.Details = i.Cause.Details
	return e.With("state", string(i.State)).With("stage", i.Cause.Stage)
}

// RunCause says why a run does not get on.
type RunCause struct {
	Code    athena.Code    `json:"code"`
	Stage   string         `json:"stage,omitempty"` // source, transforms[2], sink
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
	Since   time.Time      `json:"since"`
	// Final says that trying again is of no use before somebody has mended it.
	Final bool `json:"final,omitempty"`
}

// RunCounts are sums over rows.
type RunCounts struct {
	Read      int64 `json:"read"`
	Bytes     int64 `json:"bytes"`
	Written   int64 `json:"written"`
	Rejected  int64 `json:"rejected"`  // could not go on
	Discarded int64 `json:"discarded"` // dropped by the schema contract
	Objects   int64 `json:"objects,omitempty"`
	Changed   int64 `json:"changed,omitempty"` // of a table, by a merge or overwrite
}

// RunStep is one thing that happened to a run.
type RunStep struct {
	N    int       `json:"n"` // from 1
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// RunProgress is how far a run is, as its workers last told.
type RunProgress struct {
	Run    string    `json:"run"`
	At     time.Time `json:"at"`
	Worker string    `json:"worker,omitempty"`
	Counts RunCounts `json:"counts"`
	// Rows and TotalBytes is how much there is in all, estimated; -1 is not known.
	Rows           int64     `json:"rows"`
	TotalBytes     int64     `json:"total_bytes"`
	RowsPerSecond  float64   `json:"rows_per_second"`
	BytesPerSecond float64   `json:"bytes_per_second"`
	ETA            time.Time `json:"eta,omitzero"`
	TasksDone      int       `json:"tasks_done,omitempty"`
	Tasks          int       `json:"tasks,omitempty"`
	Position       string    `json:"position,omitempty"`
	LagSeconds     float64   `json:"lag_seconds,omitempty"`
	// Stages splits the time: what each stage was busy with, as a share of 1.
	Stages map[string]float64 `json:"stages,omitempty"`
}

// RunWork is how the tasks of a batch stand.
type RunWork struct {
	Queued  int        `json:"queued"`
	Running int        `json:"running"`
	Done    int        `json:"done"`
	Faults  []RunFault `json:"faults,omitempty"`
}

// RunFault is why the last attempt at a task ended.
type RunFault struct {
	Task    int       `json:"task"`
	Attempt int       `json:"attempt"`
	Cause   *RunCause `json:"cause"`
}

// Run is a run of a pipeline on a server. It is safe for concurrent use.
type Run struct {
	api *API
	ID  string
}

// Run returns the run with the given id. Whether there is one shows in the first
// request.
func (a *API) Run(id string) *Run { return &Run{a, id} }

func (r *Run) path(more string) string { return "/runs/" + url.PathEscape(r.ID) + more }

// Get says how the run fares now.
func (r *Run) Get(ctx context.Context) (*RunInfo, error) {
	info, _, err := answer[*RunInfo](ctx, r.api, get(r.path(""), nil))
	return info, err
}

// Cancel has the run ended, and what has not taken effect undone.
func (r *Run) Cancel(ctx context.Context) (*RunInfo, error) { return r.act(ctx, "/cancel") }

// Pause has the run wait once what is under way is finished.
func (r *Run) Pause(ctx context.Context) (*RunInfo, error) { return r.act(ctx, "/pause") }

// Resume has a run go on that is paused or has failed.
func (r *Run) Resume(ctx context.Context) (*RunInfo, error) { return r.act(ctx, "/resume") }

func (r *Run) act(ctx context.Context, what string) (*RunInfo, error) {
	info, _, err := answer[*RunInfo](ctx, r.api, request{method: http.MethodPost, path: r.path(what)})
	return info, err
}

// Dead yields the rows of the run that could not go on, oldest first.
func (r *Run) Dead(ctx context.Context) iter.Seq2[DeadRow, error] {
	return pages[DeadRow](ctx, r.api, r.path("/dead"), url.Values{})
}

// A RunEvent is one thing that is told of a run: exactly one of its fields is set.
type RunEvent struct {
	Run      *RunInfo     // it is another one, or over
	Step     *RunStep     // something happened to it
	Progress *RunProgress // it is so far
}

// Events yields what is told of the run, now and as it changes, until it is over:
// the last event has that run. A connection that breaks is made again and goes on
// where it was.
func (r *Run) Events(ctx context.Context) iter.Seq2[RunEvent, error] {
	return func(yield func(RunEvent, error) bool) {
		s, heard := runEvents{Run: r}, time.Now()
		for quick := 0; ; quick++ {
			ended, err := s.follow(ctx, func(e RunEvent) bool {
				quick = 0
				return yield(e, nil)
			})
			if ended {
				return
			}
			if s.open {
				heard, s.open = time.Now(), false
			}
			if err == nil {
				err = lost(ctx, io.ErrUnexpectedEOF)
			}
			if !worthRepeating(err) || time.Since(heard) > r.api.patience() || !r.api.pause(ctx, quick, 0) {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				yield(RunEvent{}, err)
				return
			}
		}
	}
}

// runEvents is one following of a run.
type runEvents struct {
	*Run
	last string // id of the last event
	open bool   // there was a connection
}

// follow follows one connection. It reports true once no more is wanted.
func (s *runEvents) follow(ctx context.Context, yield func(RunEvent) bool) (ended bool, err error) {
	q := get(s.path("/events"), nil)
	q.header = http.Header{"Accept": {"text/event-stream"}}
	if s.last != "" {
		q.header.Set("Last-Event-Id", s.last)
	}
	conn, cut := context.WithCancel(ctx)
	defer cut()
	resp, err := s.api.send(conn, q)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	s.open = true
	if resp.StatusCode == http.StatusNoContent {
		return true, nil // it is over, and that was told
	}
	silence := time.AfterFunc(quiet, cut)
	defer silence.Stop()
	events := newEventReader(heard{resp.Body, silence}, maxEvent)
	for {
		e, err := events.next()
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil && conn.Err() != nil && ctx.Err() == nil:
			return false, lost(ctx, errors.New("nothing was heard for a minute"))
		case err != nil:
			return false, lost(ctx, err)
		}
		told, err := decodeRunEvent(e)
		if err != nil {
			return false, err
		}
		if e.id != "" {
			s.last = e.id
		}
		if told != (RunEvent{}) && !yield(told) || e.name == "end" {
			return true, nil
		}
	}
}

// decodeRunEvent reads an event; one of a later version is empty.
func decodeRunEvent(e event) (told RunEvent, err error) {
	switch e.name {
	case "error":
		if failed := decodeFailure(e.data); failed != nil {
			return told, failed
		}
	case "state", "end":
		err = json.Unmarshal(e.data, &told.Run)
	case "step":
		err = json.Unmarshal(e.data, &told.Step)
	case "progress":
		err = json.Unmarshal(e.data, &told.Progress)
	}
	if err != nil {
		return RunEvent{}, strange(err)
	}
	return told, nil
}
