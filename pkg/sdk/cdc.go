package sdk

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// CDC is the part of the API about one client's changes. It needs a key with the
// right cdc. It is safe for concurrent use.
type CDC struct {
	api    *API
	client string
}

// CDC returns the part of the API about the client's changes.
func (c *Client) CDC() *CDC { return &CDC{c.api, c.name} }

func (c *CDC) path(more string) string { return "/cdc/" + url.PathEscape(c.client) + more }

// CaptureSpec says what of a client is captured, and how. Zero fields stand for
// the server's defaults.
type CaptureSpec struct {
	Tables []string `json:"tables"` // as schema.table
	// Slot and Publication are the engine's names for what is made there.
	Slot        string `json:"slot,omitempty"`
	Publication string `json:"publication,omitempty"`
	// TakeOver uses a slot and a publication that Athena did not make.
	TakeOver bool `json:"take_over,omitempty"`
	// InsertsOnly lets tables in of which no row can be told from another.
	InsertsOnly bool `json:"inserts_only,omitempty"`
	// LocalOnly leaves out changes that replication brought from elsewhere.
	LocalOnly bool `json:"local_only,omitempty"`
	// Confidence is how old a change must be before it is read, and Sweep how far
	// back late ones are looked for, unless NoSweep, in engines whose log is not in
	// order.
	Confidence athena.Duration `json:"confidence,omitempty"`
	Sweep      athena.Duration `json:"sweep,omitempty"`
	NoSweep    bool            `json:"no_sweep,omitempty"`
	// Snapshot is initial (the rows that are there come first) or none.
	Snapshot string `json:"snapshot,omitempty"`
	// OnError is dead_letter or stop: what becomes of a change that cannot be
	// encoded.
	OnError string `json:"on_error,omitempty"`
	// OnLoss is fail or resnapshot: what is done when the source no longer has
	// what comes next.
	OnLoss   string          `json:"on_loss,omitempty"`
	MaxAge   athena.Duration `json:"max_age,omitempty"`   // how long changes are kept
	MaxBytes int64           `json:"max_bytes,omitempty"` // and how many bytes of them
	Pack     int             `json:"pack,omitempty"`      // most changes in one message
	// Purge drops the stream of an earlier capture first.
	Purge bool `json:"purge,omitempty"`
}

// Capture is how a client's changes are captured.
type Capture struct {
	ID     string `json:"id"`
	Client string `json:"client"`
	CaptureSpec
	CreatedAt time.Time `json:"created_at"`
	Removing  bool      `json:"removing,omitempty"`
}

// CaptureState is how a capture fares.
type CaptureState string

// The states.
const (
	CaptureWaiting   CaptureState = "waiting"   // no worker has it
	CaptureStarting  CaptureState = "starting"  // the place in the source's log is being made, or the connection
	CaptureSnapshot  CaptureState = "snapshot"  // the rows that were there are being read
	CaptureStreaming CaptureState = "streaming" // changes are stored as they come
	CaptureDegraded  CaptureState = "degraded"  // it does not get on now, and will by itself
	CaptureFailed    CaptureState = "failed"    // it does not get on, and needs a hand
	CaptureHeld      CaptureState = "held"      // its client is frozen or not granted cdc
	CaptureRemoving  CaptureState = "removing"
)

// Cause says why a capture is degraded or has failed.
type Cause struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Runbook string    `json:"runbook"` // what to do, in one line
	Since   time.Time `json:"since"`
}

// CaptureStatus is how a capture fares, as its worker last told.
type CaptureStatus struct {
	Capture          string               `json:"capture"`
	Client           string               `json:"client"`
	State            CaptureState         `json:"state"`
	Cause            *Cause               `json:"cause,omitempty"`
	Progress         string               `json:"progress,omitempty"` // what a starting capture waits for
	Worker           string               `json:"worker,omitempty"`
	Position         cdc.Position         `json:"position,omitempty"` // of the last stored change
	LagBytes         int64                `json:"lag_bytes"`
	LagSeconds       float64              `json:"lag_seconds"`
	Changes          uint64               `json:"changes"` // since the worker took it
	Bytes            uint64               `json:"bytes"`
	Rejected         uint64               `json:"rejected"`
	ChangesPerSecond float64              `json:"changes_per_second"`
	BytesPerSecond   float64              `json:"bytes_per_second"`
	SpilledBytes     int64                `json:"spilled_bytes"`
	Streams          *driver.StreamLag    `json:"streams,omitempty"`
	Slot             *driver.ChangeHealth `json:"slot,omitempty"`
	Snapshots        []Snapshot           `json:"snapshots,omitempty"`
	Restarts         int                  `json:"restarts"`
	At               time.Time            `json:"at"`
}

// Snapshot is how far the reading of rows is that were there before.
type Snapshot struct {
	ID      string          `json:"id"`
	Capture string          `json:"capture,omitempty"`
	State   string          `json:"state"` // requested, running, done, failed
	Tables  []SnapshotTable `json:"tables"`
	Error   string          `json:"error,omitempty"`
	At      time.Time       `json:"at"`
}

// SnapshotTable is how far the snapshot of one table is.
type SnapshotTable struct {
	driver.SnapshotTable
	Rows  int64 `json:"rows"`
	Total int64 `json:"total"` // estimated
	Done  bool  `json:"done"`
}

// Rows counts the rows that were read, and about how many there are.
func (s Snapshot) Rows() (read, total int64) {
	for _, t := range s.Tables {
		read, total = read+t.Rows, total+max(t.Rows, t.Total)
	}
	return read, total
}

// ChangeStream is what is kept of a client's changes.
type ChangeStream struct {
	Messages uint64          `json:"messages"` // of one or more changes each
	Bytes    uint64          `json:"bytes"`
	MaxBytes int64           `json:"max_bytes"`
	MaxAge   athena.Duration `json:"max_age"`
	First    cdc.Position    `json:"first_position,omitempty"`
	Last     cdc.Position    `json:"last_position,omitempty"`
	Oldest   time.Time       `json:"oldest,omitzero"`
}

// Captured is all that is known of how a client's changes are captured.
type Captured struct {
	// Capture and Status are nil where there is only the stream of an earlier
	// capture.
	Capture *Capture `json:"capture,omitempty"`
	// Revision is that of the capture; Change expects it.
	Revision uint64         `json:"revision,omitempty"`
	Status   *CaptureStatus `json:"status,omitempty"`
	// Stream is nil where there is none, and in lists.
	Stream        *ChangeStream `json:"stream,omitempty"`
	Subscriptions int           `json:"subscriptions"`
}

// Captures lists the captures that the key may see.
func (a *API) Captures(ctx context.Context) ([]Captured, error) {
	list, _, err := answer[[]Captured](ctx, a, get("/cdc", nil))
	return list, err
}

// Get says how the client's changes are captured; not_found if they are not, and
// there is no stream of an earlier capture.
func (c *CDC) Get(ctx context.Context) (*Captured, error) {
	got, _, err := answer[*Captured](ctx, c.api, get(c.path(""), nil))
	return got, err
}

// Check looks at what stands in the way of capturing, and changes nothing. What
// it finds is no error.
func (c *CDC) Check(ctx context.Context, spec CaptureSpec) (driver.ChangeCheck, error) {
	found, _, err := answer[driver.ChangeCheck](ctx, c.api, request{method: http.MethodPost, path: c.path("/check"), body: spec, safe: true})
	return found, err
}

// Enable has the client's changes captured, or captured in another way. A worker
// sets the capture up afterwards: Get tells how far it is. A conflict error says
// what stands in the way; its detail findings has all that does.
func (c *CDC) Enable(ctx context.Context, spec CaptureSpec) (*Captured, error) {
	got, _, err := answer[*Captured](ctx, c.api, request{method: http.MethodPost, path: c.path("/enable"), body: spec})
	return got, err
}

// Change is Enable for a capture that is at a revision; a conflict error says that
// it is another one now.
func (c *CDC) Change(ctx context.Context, spec CaptureSpec, revision uint64) (*Captured, error) {
	r := request{method: http.MethodPost, path: c.path("/enable"), body: spec, header: http.Header{}}
	r.header.Set("If-Match", strconv.Quote(strconv.FormatUint(revision, 10)))
	got, _, err := answer[*Captured](ctx, c.api, r)
	return got, err
}

// Disable ends the capture and has a worker remove what it made at the source.
// The changes that are stored stay until they age out, unless purge is set.
func (c *CDC) Disable(ctx context.Context, purge bool) error {
	_, _, err := answer[any](ctx, c.api, request{method: http.MethodPost, path: c.path("/disable"), body: map[string]bool{"purge": purge}})
	return err
}

// StartSnapshot has the rows of tables read as they are now, while the stream
// goes on, and returns the snapshot's id. where is a condition in the engine's
// language on each table; empty is all rows.
func (c *CDC) StartSnapshot(ctx context.Context, tables []string, where string) (id string, err error) {
	body := struct {
		Tables []string `json:"tables"`
		Where  string   `json:"where,omitempty"`
	}{tables, where}
	got, _, err := answer[struct {
		ID string `json:"id"`
	}](ctx, c.api, request{method: http.MethodPost, path: c.path("/snapshots"), body: body})
	return got.ID, err
}

// Snapshots lists the client's snapshots.
func (c *CDC) Snapshots(ctx context.Context) ([]Snapshot, error) {
	list, _, err := answer[[]Snapshot](ctx, c.api, get(c.path("/snapshots"), nil))
	return list, err
}

// CancelSnapshot ends a snapshot. The rows that were read stay in the stream.
func (c *CDC) CancelSnapshot(ctx context.Context, id string) error {
	_, _, err := answer[any](ctx, c.api, request{method: http.MethodDelete, path: c.path("/snapshots/" + url.PathEscape(id))})
	return err
}
