// Package deferred is the life of deferred queries on the bus: what a job is,
// the law of its states, and the store that API and workers share.
//
// A job is one message in ATH_JOBS, which is both the promise and the work
// item, and a row of status snapshots in ATH_JOB_EVENTS, of which the last one
// is the current state. Every change of state is a compare-and-set on that last
// snapshot, so that of two who act at once only one does. The package knows no
// HTTP and runs no statement.
//
// The laws, cited where they are enforced:
//
//  1. A job is accepted by one durable message or not at all.
//  2. No state is left but by a compare-and-set; a terminal one only by requeue.
//  3. An effect is committed only after its token is stored.
//  4. A message is acknowledged only after the state that ends its work, or the
//     wake-up that continues it, is stored.
package deferred

import (
	"encoding/json"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Lane is a job's priority. Each lane of each client has its own queue, and a
// worker takes from a higher lane first.
type Lane string

// The lanes, highest first.
const (
	Interactive Lane = "interactive"
	Normal      Lane = "normal"
	Batch       Lane = "batch"
)

// Lanes lists the lanes, highest first.
func Lanes() []Lane { return []Lane{Interactive, Normal, Batch} }

// Format is how a result is written out.
type Format string

// The formats of a result.
const (
	JSON   Format = "json"
	NDJSON Format = "ndjson"
	CSV    Format = "csv"
	// Parquet is for results that go to objects.
	Parquet Format = "parquet"
)

// A Job is what was accepted. It never changes.
type Job struct {
	ID       string            `json:"id"`
	Client   string            `json:"client"`
	Engine   athena.Engine     `json:"engine"`
	Lane     Lane              `json:"priority"`
	Query    string            `json:"query"`
	Params   []json.RawMessage `json:"params,omitempty"`
	Language driver.Language   `json:"language"`
	// Raw says that the job came by a raw-statement route, which needs the
	// raw capability of its language as well.
	Raw bool `json:"raw,omitempty"`
	// ReadOnly holds the statement to reading, for a key that may only read.
	ReadOnly bool `json:"read_only,omitempty"`
	// Timeout bounds one attempt at the server.
	Timeout athena.Duration `json:"timeout"`
	// RowLimit bounds the rows that are kept; 0 means no bound.
	RowLimit   int64           `json:"row_limit,omitempty"`
	Idempotent bool            `json:"idempotent,omitempty"`
	NotBefore  time.Time       `json:"not_before,omitzero"`
	Deadline   time.Time       `json:"deadline"`
	Format     Format          `json:"format"`
	ResultTTL  athena.Duration `json:"result_ttl"`
	// To, if set, is where the rows go instead of being kept.
	To      *Destination      `json:"to,omitempty"`
	Webhook *Webhook          `json:"webhook,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Principal is who asked; the road is taken in its name.
	Principal   *auth.Principal `json:"principal"`
	SubmittedAt time.Time       `json:"submitted_at"`
	RequestID   string          `json:"request_id,omitempty"`
	Traceparent string          `json:"traceparent,omitempty"`
	// Digest is the hash of the request, by which a second request with the
	// same idempotency key is told from another one.
	Digest string `json:"digest,omitempty"`
}

// A Destination is a prefix of a client's objects.
type Destination struct {
	Client string `json:"client"`
	Prefix string `json:"prefix"`
}

// Webhook is where the end of a job is announced.
type Webhook struct {
	URL string `json:"url"`
}

// An Attempt is one try to run a job.
type Attempt struct {
	N       int         `json:"n"` // from 1
	Worker  string      `json:"worker"`
	Started time.Time   `json:"started"`
	Ended   time.Time   `json:"ended,omitzero"`
	Outcome string      `json:"outcome,omitempty"` // a State, or "lost"
	Code    athena.Code `json:"code,omitempty"`
}

// OutcomeLost is the outcome of an attempt whose worker was lost.
const OutcomeLost = "lost"

// Status is a snapshot of where a job stands. Each event holds a whole one.
type Status struct {
	State    State     `json:"state"`
	At       time.Time `json:"at"`
	Attempts []Attempt `json:"attempts,omitempty"`
	// Error says why the last attempt, or the job, failed.
	Error *Failure `json:"error,omitempty"`
	// NextAt is when a job in retry_wait is tried again.
	NextAt time.Time `json:"next_at,omitzero"`
	// Result is what there is of it: complete in a terminal state, growing
	// before.
	Result *Result `json:"result,omitempty"`
	// ResultLost says that the statement was committed and its rows are gone.
	ResultLost bool `json:"result_lost,omitempty"`
	// Token identifies the transaction that holds the effect. It is stored
	// before COMMIT is sent (law 3): without one there is no effect.
	Token driver.Token `json:"token,omitempty"`
	// Unsafe is set while a statement runs that may have an effect of which
	// nobody can learn: it has no transaction.
	Unsafe bool `json:"unsafe,omitempty"`
	// WriteTime is that of driver.Statement for writes without a transaction: when
	// the first attempt began that may have had an effect.
	WriteTime time.Time `json:"write_time,omitzero"`
	// Msg is the sequence of the message under which the last attempt began. Its
	// worker is lost when that message, and no other, is delivered again.
	Msg uint64 `json:"msg,omitempty"`
	// Requeues counts how often the job was asked to run again, and Until is
	// the deadline that the last requeue gave it.
	Requeues int       `json:"requeues,omitempty"`
	Until    time.Time `json:"until,omitzero"`

	// Rev is the sequence of the event that this snapshot was read from; 0 if
	// none has been written. It is what a compare-and-set compares.
	Rev uint64 `json:"-"`
}

// Failure is what a caller is told of an error.
type Failure struct {
	Code    athena.Code    `json:"code"`
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
}

// NewFailure tells what may be told of err.
func NewFailure(err error) *Failure {
	e := athena.AsError(err)
	return &Failure{e.Code, e.Message, e.Details}
}

// Result describes the rows of a job. Small ones stand in it, large ones in
// segments.
type Result struct {
	Columns      []driver.Column `json:"columns"`
	Rows         int64           `json:"rows"`
	Bytes        int64           `json:"bytes"` // of NDJSON
	RowsAffected int64           `json:"rows_affected"`
	Truncated    bool            `json:"truncated,omitempty"` // by row_limit
	Inline       json.RawMessage `json:"inline,omitempty"`    // an array of rows
	Segments     []Segment       `json:"segments,omitempty"`
	// Run is the attempt that wrote the segments.
	Run       int       `json:"run,omitempty"`
	Complete  bool      `json:"complete"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// To and Objects say where the rows are that were not kept here.
	To      *Destination   `json:"to,omitempty"`
	Objects []ResultObject `json:"objects,omitempty"`
}

// A ResultObject is an object that holds some of the rows.
type ResultObject struct {
	Key   string `json:"key"`
	Rows  int64  `json:"rows"`
	Bytes int64  `json:"bytes"`
}

// A Segment is a piece of a large result: NDJSON of at most the configured
// size, save that one row is never split.
type Segment struct {
	N      int    `json:"n"` // from 0
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`  // of NDJSON
	SHA256 string `json:"sha256"` // of the NDJSON
	Chunks int    `json:"chunks"` // messages that hold it, compressed
}

// Attempt returns the attempt under way or the last one, or nil.
func (s *Status) Attempt() *Attempt {
	if len(s.Attempts) == 0 {
		return nil
	}
	return &s.Attempts[len(s.Attempts)-1]
}

// Due is when a job that has not started is given up.
func (j *Job) Due(s Status) time.Time {
	if s.Until.After(j.Deadline) {
		return s.Until
	}
	return j.Deadline
}

// ReadySince is since when the job could have been running.
func (j *Job) ReadySince(s Status) time.Time {
	since := j.SubmittedAt
	for _, t := range []time.Time{j.NotBefore, s.NextAt} {
		if t.After(since) {
			since = t
		}
	}
	return since
}

// Requeued is the terminal status s waiting to run again. The job gets the time
// that it had, as long as it is kept.
func (j *Job) Requeued(s Status, now time.Time) Status {
	until := now.Add(j.Deadline.Sub(j.SubmittedAt))
	if kept := j.KeptUntil(); until.After(kept) {
		until = kept
	}
	return s.Requeue(until, now)
}

// Op is what a job needs: of its client's capabilities, and of the key in whose
// name it runs. Raw is for the raw-statement routes.
func Op(raw bool, lang driver.Language) dispatch.Op {
	op := dispatch.Op{Family: "deferred", Right: auth.Deferred, Needs: []athena.Capability{athena.DeferredQuery, athena.GatewayQuery}}
	if raw {
		op.Needs[1] = lang.Capability()
	}
	return op
}

// ToOp is what a job needs of the client to whose objects its rows go.
var ToOp = dispatch.Op{Family: "deferred", Right: auth.Objects, Needs: []athena.Capability{athena.ObjectWrite}}

// KeptUntil is when the job itself is forgotten.
func (j *Job) KeptUntil() time.Time { return j.Deadline.Add(max(j.ResultTTL.Std(), 24*time.Hour)) }

// View derives the state that a caller sees from the last snapshot, the
// client's lifecycle and the time.
func View(j *Job, s Status, frozen bool, now time.Time) State {
	switch {
	case s.State == "" || s.State == Queued || s.State == RetryWait:
	default:
		return s.State
	}
	switch {
	// A token that is still to be asked about may stand for an effect.
	case now.After(j.Due(s)) && s.Token == "":
		return Expired
	case frozen:
		return Held
	case s.State == RetryWait:
		return RetryWait
	case s.State == "" && now.Before(j.NotBefore):
		return Scheduled
	}
	return Queued
}
