package runs

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Definition is a stored pipeline.
type Definition struct {
	Name string `json:"name"`
	// ID tells this pipeline from an earlier one of the same name.
	ID string `json:"id"`
	// Generation counts the versions, from 1.
	Generation int             `json:"generation"`
	Spec       json.RawMessage `json:"spec"` // as spec.Decode reads it
	// Key is the public id of the key that applied it. Runs that nobody starts by
	// hand are made with that key's rights.
	Key       string    `json:"key"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	Revision uint64 `json:"-"`
}

// A Standing is what is remembered of a pipeline over its runs.
type Standing struct {
	// Paused says that its schedule starts no runs.
	Paused bool `json:"paused,omitempty"`
	// Stream is the run that follows its source, or was the last to do so, and
	// StreamAt when it was claimed: before the run is stored, so that there is one at
	// most.
	Stream   string    `json:"stream,omitempty"`
	StreamAt time.Time `json:"stream_at,omitzero"`
	// Fired is the last time of the schedule that was seen to.
	Fired time.Time `json:"fired,omitzero"`
	// Schemas is what is expected of the source: what it had in the last run that
	// succeeded, or of a stream, what each table has had.
	Schemas map[string]*record.Schema `json:"schemas,omitempty"`

	Revision uint64 `json:"-"`
}

// Kind says what a run does.
type Kind string

// The kinds.
const (
	Batch   Kind = "batch"   // reads its source once
	Stream  Kind = "stream"  // follows its source until it is stopped
	Redrive Kind = "redrive" // takes on what could not go on before
)

// State is how a run fares.
type State string

// The states.
const (
	Queued       State = "queued"   // no worker leads it yet
	Starting     State = "starting" // source and sink are looked at; tasks are made
	Running      State = "running"  // batch: tasks are at work
	Committing   State = "committing"
	Snapshotting State = "snapshotting" // stream: the rows that were there come first
	Streaming    State = "streaming"
	Degraded     State = "degraded" // it does not get on now, and will by itself
	Draining     State = "draining" // what was read is finished, nothing more is read
	Paused       State = "paused"
	Stopped      State = "stopped"
	Succeeded    State = "succeeded"
	Failed       State = "failed" // it can be resumed once the cause is mended
	Cancelled    State = "cancelled"
)

// Over reports whether nothing more happens unless somebody asks for it.
func (s State) Over() bool {
	switch s {
	case Stopped, Succeeded, Failed, Cancelled:
		return true
	}
	return false
}

// Want says what is wanted of a run.
type Want string

// What can be wanted.
const (
	WantRun    Want = "run"
	WantPause  Want = "pause"
	WantStop   Want = "stop"   // stream: finish what was read, and end
	WantCancel Want = "cancel" // end, and undo what has not taken effect
)

// A Run is one execution of a pipeline.
type Run struct {
	ID         string `json:"id"`
	Pipeline   string `json:"pipeline,omitempty"`    // name; empty for one that was run at once
	PipelineID string `json:"pipeline_id,omitempty"` // what checkpoints are kept under
	Generation int    `json:"generation,omitempty"`
	Kind       Kind   `json:"kind"`
	// Spec is the definition, with the values of its parameters in it.
	Spec json.RawMessage `json:"spec"`
	// Request is the digest of what was asked for under an idempotency key; empty
	// without one.
	Request string `json:"request,omitempty"`
	// Trigger is api, schedule or start.
	Trigger string `json:"trigger"`
	// Key is the public id of the key in whose name it runs.
	Key string `json:"key"`
	// Source and Sink are the clients.
	Source string `json:"source"`
	Sink   string `json:"sink"`

	Want  Want   `json:"want"`
	State State  `json:"state"`
	Cause *Cause `json:"cause,omitempty"`

	CreatedAt time.Time `json:"created_at"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`

	// Tasks is how many there are, once they are made.
	Tasks int `json:"tasks,omitempty"`
	// Made says that all tasks are made; Set names those that are the run's. A
	// leader that came too late may have made others.
	Made bool   `json:"made,omitempty"`
	Set  string `json:"set,omitempty"`
	// Taken counts how often the run was taken up after its tasks were made: what
	// became of an attempt that began before is no word on it.
	Taken int `json:"taken,omitempty"`
	// Parallel is how many tasks run at once.
	Parallel int `json:"parallel"`
	// Schema is what the source had when the run began.
	Schema *record.Schema `json:"schema,omitempty"`
	// Expected is what it was expected to have; nil is anything.
	Expected *record.Schema `json:"expected,omitempty"`
	// Upto is, of a redrive, the last row that it takes on, and Redrives are the runs
	// whose rows they are.
	Upto     uint64   `json:"upto,omitempty"`
	Redrives []string `json:"redrives,omitempty"`
	// Steps is what has happened, the last hundred of it.
	Steps []Step `json:"steps"`
	// Totals are what came of it, once it is over.
	Totals Counts `json:"totals"`

	Revision uint64 `json:"-"`
}

// A Cause says why a run does not get on.
type Cause struct {
	Code    athena.Code    `json:"code"`
	Stage   string         `json:"stage,omitempty"` // source, transforms[2], sink
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
	Since   time.Time      `json:"since"`
	// Final says that trying again is of no use before somebody has mended it.
	Final bool `json:"final,omitempty"`
}

// A Step is one thing that happened to a run.
type Step struct {
	N    int       `json:"n"` // among all steps of the run, from 1
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// stepsMost is how many steps are kept.
const stepsMost = 100

// Log notes what happened.
func (r *Run) Log(format string, args ...any) {
	last := 0
	if n := len(r.Steps); n > 0 {
		last = r.Steps[n-1].N
	}
	r.Steps = append(r.Steps, Step{last + 1, time.Now().UTC(), fmt.Sprintf(format, args...)})
	if n := len(r.Steps) - stepsMost; n > 0 {
		r.Steps = r.Steps[n:]
	}
}

// Counts are sums over rows.
type Counts struct {
	Read      int64 `json:"read"`      // rows from the source
	Bytes     int64 `json:"bytes"`     // of them, as they are held
	Written   int64 `json:"written"`   // rows that the sink took
	Rejected  int64 `json:"rejected"`  // rows that could not go on
	Discarded int64 `json:"discarded"` // rows dropped by the schema contract
	Objects   int64 `json:"objects,omitempty"`
	// Changed is how many rows of a table a merge or overwrite changed.
	Changed int64 `json:"changed,omitempty"`
}

// Add adds o to c.
func (c *Counts) Add(o Counts) {
	c.Read += o.Read
	c.Bytes += o.Bytes
	c.Written += o.Written
	c.Rejected += o.Rejected
	c.Discarded += o.Discarded
	c.Objects += o.Objects
	c.Changed += o.Changed
}

// Busy is how long the stages were at work.
type Busy struct {
	Source    time.Duration `json:"source"`
	Transform time.Duration `json:"transform"`
	Sink      time.Duration `json:"sink"`
}

// Add adds o to b.
func (b *Busy) Add(o Busy) {
	b.Source += o.Source
	b.Transform += o.Transform
	b.Sink += o.Sink
}

// TaskState is how a task fares.
type TaskState string

// The states of a task.
const (
	TaskQueued  TaskState = "queued"
	TaskRunning TaskState = "running" // or it was, when its worker died
	TaskDone    TaskState = "done"
)

// A Task is a share of a batch. Any worker may take it that can reach source and
// sink; what it was when it was killed is done again.
type Task struct {
	Run  string     `json:"run"`
	Set  string     `json:"set"` // of its leader; see Run
	N    int        `json:"n"`   // from 0
	Part stage.Part `json:"part"`

	State   TaskState `json:"state"`
	Slot    int       `json:"slot"` // whose worker has it
	Worker  string    `json:"worker,omitempty"`
	Attempt int       `json:"attempt"`
	Counts  Counts    `json:"counts"`
	Busy    Busy      `json:"busy"`
	// Decided are the objects that are to be published, whatever happens.
	Decided []stage.Object `json:"decided,omitempty"`
	Objects []stage.Object `json:"objects,omitempty"` // that were published
	// Fault is why the last attempt ended; NotBefore is when the next may begin.
	Fault     *Cause    `json:"fault,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`

	Revision uint64 `json:"-"`
}

// A Cursor says how far a stream pipeline is whose sink keeps no checkpoint of its
// own, and what is to be published.
type Cursor struct {
	Position cdc.Position `json:"position"`
	// Source is the client of whose stream it is a position.
	Source string `json:"source,omitempty"`
	// Commit counts commits, from 1.
	Commit  int64          `json:"commit"`
	Decided []stage.Object `json:"decided,omitempty"`
	// Part and Schema are those of the commit that was decided on, for its manifest.
	Part   string         `json:"part,omitempty"`
	Schema *record.Schema `json:"schema,omitempty"`
	// Run is the run that moved the cursor last, and Counts what it has counted up to
	// Position: what it reads again behind that is counted once.
	Run    string `json:"run,omitempty"`
	Counts Counts `json:"counts,omitzero"`
	// Before is the position to which the cursor goes back, with its counts, if what
	// was decided cannot be published any more.
	Before       cdc.Position `json:"before,omitempty"`
	CountsBefore Counts       `json:"counts_before,omitzero"`
	// Snapshot is that whose rows are still to come, behind Position.
	Snapshot string `json:"snapshot,omitempty"`

	Revision uint64 `json:"-"`
}

// Progress is how far a run is, as its workers last told.
type Progress struct {
	Run    string    `json:"run"`
	At     time.Time `json:"at"`
	Worker string    `json:"worker,omitempty"` // that leads it
	Counts Counts    `json:"counts"`
	// Rows and Bytes is how much there is in all, estimated; -1 is not known.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"total_bytes"`
	// RowsPerSecond and BytesPerSecond are of the last seconds.
	RowsPerSecond  float64 `json:"rows_per_second"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	// ETA is when it will be over at that rate; zero is not known.
	ETA       time.Time `json:"eta,omitzero"`
	TasksDone int       `json:"tasks_done,omitempty"`
	Tasks     int       `json:"tasks,omitempty"`
	// Position is, of a stream, how far it is, and Lag how old that is.
	Position   cdc.Position `json:"position,omitempty"`
	LagSeconds float64      `json:"lag_seconds,omitempty"`
	// Stages splits the time: what each stage was busy with, as a share of 1.
	Stages map[string]float64 `json:"stages,omitempty"`
}
