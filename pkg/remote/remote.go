// Package remote forwards synchronous queries over the bus, from a process that
// cannot reach a client's backend to a worker that can.
//
// A Server answers for the clients that its worker serves; a Caller hands a
// query to one of them and reads the rows as they come. Neither holds a result
// in memory. The worker takes the same road as any other query, through the
// function that it is given. The package knows no engine and no HTTP.
//
// The bus lies within the trust boundary. The principal travels in the request,
// and a worker believes it; so only processes of the deployment may be permitted
// to publish on ath.query.> and to subscribe there.
//
// A call, each line one message:
//
//	caller → ath.query.<client>   the request; its reply subject is the caller's inbox
//	worker → caller's inbox       accept (its reply subject is the worker's inbox), or refuse
//	caller → worker's inbox       credit: chunks up to this number may be sent
//	worker → caller's inbox       columns, rows, rows … end; alive in between
//	caller → worker's inbox       credit …; alive in between; cancel
//
// The laws, cited where they are enforced:
//
//  1. Nothing is run before the caller's first credit. Until then a request may
//     be put to another worker; from then on it is never sent again.
//  2. No more chunks are under way than were credited.
//  3. Each side takes the other for lost after three heartbeats without a word;
//     a worker then ends the statement at its backend.
//  4. Chunks are numbered: a gap is an error and never a shorter result.
package remote

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A Request is one query for a client.
type Request struct {
	Client    string            `json:"client"` // set by Query
	Statement string            `json:"statement"`
	Params    []json.RawMessage `json:"params,omitempty"`
	Language  driver.Language   `json:"language,omitempty"`
	Timeout   athena.Duration   `json:"timeout,omitempty"` // at the backend's server
	ReadOnly  bool              `json:"read_only,omitempty"`
	// RowLimit ends the statement after so many rows, so that it is for reads.
	RowLimit int64 `json:"row_limit,omitempty"`
	// Raw says that the query came by a raw-statement route.
	Raw bool `json:"raw,omitempty"`
	// Op names the operation. The worker looks up in its own table what the
	// operation needs; that is not taken from a message.
	Op          string          `json:"op"`
	Principal   *auth.Principal `json:"principal"`
	RequestID   string          `json:"request_id,omitempty"`
	Traceparent string          `json:"traceparent,omitempty"`
}

// QueueGroup is the group of all workers, of which one gets each request.
const QueueGroup = "athena"

const (
	headerKind      = "Ath-Kind"
	headerNumber    = "Ath-N"         // of a chunk; or the last one credited
	headerHeartbeat = "Ath-Heartbeat" // of the call, as the caller wishes

	chunkSize = 128 << 10
	window    = 16 // chunks under way at most
)

type kind string

const (
	kindAccept  kind = "accept"
	kindRefuse  kind = "refuse" // nothing was run; another worker may
	kindColumns kind = "columns"
	kindRows    kind = "rows" // a piece of the result's NDJSON, cut anywhere
	kindEnd     kind = "end"
	kindAlive   kind = "alive"
	kindCredit  kind = "credit"
	kindCancel  kind = "cancel"
)

const (
	// DefaultHeartbeat is how often each side of a call lets the other know
	// that it is there.
	DefaultHeartbeat = 5 * time.Second

	minHeartbeat = 10 * time.Millisecond
	maxHeartbeat = time.Minute
)

// silence is for how long a side of a call is not taken for lost.
func silence(heartbeat time.Duration) time.Duration { return 3 * heartbeat }

func clampHeartbeat(d time.Duration) time.Duration {
	if d <= 0 {
		return DefaultHeartbeat
	}
	return min(max(d, minHeartbeat), maxHeartbeat)
}

// end is the body of the last message.
type end struct {
	RowsAffected int64    `json:"rows_affected"`
	Truncated    bool     `json:"truncated,omitempty"`
	Error        *failure `json:"error,omitempty"`
}

// failure is an athena.Error without its cause, which stays where it arose.
type failure struct {
	Code       athena.Code     `json:"code"`
	Message    string          `json:"message"`
	Details    map[string]any  `json:"details,omitempty"`
	RetryAfter athena.Duration `json:"retry_after,omitempty"`
	// Writes says that driver.ErrWrites was in the chain, by which a caller
	// knows that there was no effect.
	Writes bool `json:"writes,omitempty"`
}

func newFailure(err error) *failure {
	e := athena.AsError(err)
	return &failure{e.Code, e.Message, e.Details, athena.Duration(max(0, e.RetryAfter)), errors.Is(err, driver.ErrWrites)}
}

func (f *failure) err() error {
	var cause error
	if f.Writes {
		cause = driver.ErrWrites
	}
	e := athena.Wrap(f.Code, cause, "%s", f.Message)
	e.Details, e.RetryAfter = f.Details, f.RetryAfter.Std()
	return e
}

// lost is the error of a statement that was started and of which no more was
// heard (law 1).
func lost(readOnly bool, cause error) error {
	if readOnly {
		return athena.Wrap(athena.CodeBackendUnavailable, cause, "the worker that ran the query was lost; the query only reads and may be sent again")
	}
	return athena.Wrap(athena.CodeBackendUnavailable, cause, "the worker that ran the statement was lost; the statement may have run, so look at its effect before you send it again").
		With("effect", athena.EffectUnknown)
}

// A RowSink takes the answer to a request. Its methods are called by one
// goroutine at a time; after an error nothing more is wanted.
type RowSink interface {
	// Columns begins the answer. It is called once, before any row, even if
	// there are no columns.
	Columns([]driver.Column) error
	// Row adds a row, one JSON object without line breaks. It waits while the
	// caller reads slower than rows come, and does not keep the bytes.
	Row(json []byte) error
	// Done says how the statement ended; without it the answer is an error.
	Done(rowsAffected int64, truncated bool)
}

// Copy moves a result into a sink, at most limit rows if limit is positive, and
// closes it. Reaching the limit ends the statement: one that may write must have
// none.
func Copy(sink RowSink, rows driver.Rows, limit int64) error {
	truncated, err := move(sink, rows, limit)
	if e := rows.Close(); err == nil {
		err = e
	}
	if err == nil {
		sink.Done(rows.RowsAffected(), truncated)
	}
	return err
}

func move(sink RowSink, rows driver.Rows, limit int64) (truncated bool, err error) {
	if err := sink.Columns(rows.Columns()); err != nil {
		return false, err
	}
	var buf []byte
	for n := int64(0); rows.Next(); n++ {
		if limit > 0 && n == limit {
			return true, nil
		}
		buf = rows.AppendJSON(buf[:0])
		if err := sink.Row(buf); err != nil {
			return false, err
		}
	}
	return false, rows.Err()
}
