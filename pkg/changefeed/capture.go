package changefeed

import (
	"cmp"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A Capture says that a client's changes are wanted, and how. It is written by
// the API; a worker makes it true.
type Capture struct {
	// ID tells this capture from an earlier one of the same client.
	ID          string             `json:"id"`
	Client      string             `json:"client"`
	Tables      []driver.TableName `json:"tables"`
	Slot        string             `json:"slot"`
	Publication string             `json:"publication"`
	// TakeOver, InsertsOnly and LocalOnly are those of driver.ChangeSetup.
	TakeOver    bool `json:"take_over,omitempty"`
	InsertsOnly bool `json:"inserts_only,omitempty"`
	LocalOnly   bool `json:"local_only,omitempty"`
	// Confidence and Sweep are those of driver.ChangeSetup.
	Confidence athena.Duration `json:"confidence,omitempty"`
	Sweep      athena.Duration `json:"sweep,omitempty"`
	// NoSweep says that late changes are not looked for.
	NoSweep bool `json:"no_sweep,omitempty"`
	// Snapshot says whether the rows that are there are read first.
	Snapshot SnapshotMode `json:"snapshot"`
	// OnError says what becomes of a change that cannot be encoded.
	OnError ErrorPolicy `json:"on_error"`
	// OnLoss says what is done when the source no longer has what comes next.
	OnLoss LossPolicy `json:"on_loss"`
	// MaxAge and MaxBytes bound the stream. A full stream stops the capture.
	MaxAge   athena.Duration `json:"max_age"`
	MaxBytes int64           `json:"max_bytes"`
	// Pack is the most changes in one message, 1 to 512.
	Pack      int       `json:"pack"`
	CreatedAt time.Time `json:"created_at"`
	// Removing asks the worker to drop slot and publication and then the
	// capture; Purge drops the stream with it.
	Removing bool `json:"removing,omitempty"`
	Purge    bool `json:"purge,omitempty"`

	Revision uint64 `json:"-"`
}

// SnapshotMode says whether the rows that are there are read first.
type SnapshotMode string

// The snapshot modes.
const (
	SnapshotInitial SnapshotMode = "initial"
	SnapshotNone    SnapshotMode = "none"
)

// ErrorPolicy says what becomes of a change that cannot be encoded.
type ErrorPolicy string

// The error policies.
const (
	DeadLetter ErrorPolicy = "dead_letter"
	Stop       ErrorPolicy = "stop"
)

// LossPolicy says what is done when the source no longer has what comes next.
type LossPolicy string

// The loss policies.
const (
	Fail       LossPolicy = "fail"
	Resnapshot LossPolicy = "resnapshot"
)

// Defaults of a capture.
const (
	DefaultMaxAge   = 7 * 24 * time.Hour
	DefaultMaxBytes = 16 << 30
	DefaultPack     = 512
	MaxPack         = 512
)

// WithDefaults returns c with its zero fields filled in.
func (c Capture) WithDefaults() Capture {
	own := "athena_" + strings.ReplaceAll(c.Client, "-", "_") // the alphabet of a slot's name
	c.Slot, c.Publication = cmp.Or(c.Slot, own), cmp.Or(c.Publication, own)
	if c.Snapshot == "" {
		c.Snapshot = SnapshotInitial
	}
	if c.OnError == "" {
		c.OnError = DeadLetter
	}
	if c.OnLoss == "" {
		c.OnLoss = Fail
	}
	if c.MaxAge == 0 {
		c.MaxAge = athena.Duration(DefaultMaxAge)
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.Pack == 0 {
		c.Pack = DefaultPack
	}
	return c
}

// Setup is what the driver is told.
func (c Capture) Setup() driver.ChangeSetup {
	s := driver.ChangeSetup{
		Client: c.Client, Tables: c.Tables, Slot: c.Slot, Publication: c.Publication,
		TakeOver: c.TakeOver, InsertsOnly: c.InsertsOnly, LocalOnly: c.LocalOnly,
		Confidence: c.Confidence.Std(), Sweep: c.Sweep.Std(),
	}
	if c.NoSweep {
		s.Sweep = -1
	}
	return s
}

// Origin is what the worker keeps of a capture's beginning. The stream alone
// says how far it has come (law 1).
type Origin struct {
	Capture string `json:"capture"` // its ID
	Source  string `json:"source"`  // driver.ChangeStart.Source
	// Tables are those that the publication has, made with InsertsOnly.
	Tables      []driver.TableName `json:"tables"`
	InsertsOnly bool               `json:"inserts_only,omitempty"`
	// Anew are the tables that the stream had before the capture began.
	Anew []driver.TableName `json:"anew,omitempty"`
	// Unread are tables that came to a capture without snapshot; their rows are read
	// once it has one.
	Unread []driver.TableName `json:"unread,omitempty"`
	Begin  cdc.Position       `json:"begin"`
	// Confirmed is the highest mark that may have been confirmed without a
	// transaction of the stream behind it; see driver.ChangeConfig.
	Confirmed string `json:"confirmed"`
	// Read says that the first snapshot is over.
	Read bool `json:"read,omitempty"`
	// Last and Sequence are where the stream ended at some time since. It says so
	// itself as long as it holds anything; it is not the same one if it ends
	// before.
	Last     cdc.Position `json:"last,omitempty"`
	Sequence uint64       `json:"sequence,omitempty"`

	Revision uint64 `json:"-"`
}

// State is how a capture fares.
type State string

// The states.
const (
	Waiting   State = "waiting"   // no worker has it
	Starting  State = "starting"  // publication and slot are being made, or the connection
	Snapshot  State = "snapshot"  // the rows that were there are being read
	Streaming State = "streaming" // changes are stored as they come
	Degraded  State = "degraded"  // it does not get on now, and will by itself
	Failed    State = "failed"    // it does not get on, and needs a hand
	Held      State = "held"      // its client is frozen or not granted cdc
	Removing  State = "removing"
)

// A Cause says why a capture is degraded or has failed.
type Cause struct {
	// Code is stable; the runbook (docs/cdc.md) has a section of that name.
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Runbook string    `json:"runbook"` // what to do, in one line
	Since   time.Time `json:"since"`
}

// Status is how a capture fares, as its worker last told.
type Status struct {
	Capture  string       `json:"capture"` // its ID
	Client   string       `json:"client"`
	State    State        `json:"state"`
	Cause    *Cause       `json:"cause,omitempty"`
	Progress string       `json:"progress,omitempty"` // what a starting capture waits for
	Worker   string       `json:"worker,omitempty"`
	Position cdc.Position `json:"position,omitempty"` // of the last stored change
	// LagBytes and LagSeconds say how far what is stored is behind the source.
	LagBytes   int64   `json:"lag_bytes"`
	LagSeconds float64 `json:"lag_seconds"`
	// Changes and Bytes count since the worker took the capture.
	Changes          uint64  `json:"changes"`
	Bytes            uint64  `json:"bytes"`
	Rejected         uint64  `json:"rejected"`
	ChangesPerSecond float64 `json:"changes_per_second"`
	BytesPerSecond   float64 `json:"bytes_per_second"`
	Spilled          int64   `json:"spilled_bytes"`
	// Streams is that of driver.ChangeLag.
	Streams   *driver.StreamLag    `json:"streams,omitempty"`
	Slot      *driver.ChangeHealth `json:"slot,omitempty"`
	Snapshots []SnapshotProgress   `json:"snapshots,omitempty"`
	Restarts  int                  `json:"restarts"`
	At        time.Time            `json:"at"`
}

// A SnapshotRequest asks for rows as they are now, while the stream goes on.
type SnapshotRequest struct {
	ID     string                 `json:"id"`
	Client string                 `json:"client"`
	Tables []driver.SnapshotTable `json:"tables"`
	At     time.Time              `json:"at"`
	// Initial marks the rest of a first snapshot that was interrupted.
	Initial bool `json:"initial,omitempty"`
	// Anew names tables that the stream has had and that were not captured without
	// a break since: a truncate stands before their rows, for what was deleted
	// meanwhile.
	Anew []driver.TableName `json:"anew,omitempty"`

	Revision uint64 `json:"-"`
}

// SnapshotProgress says how far a snapshot is. It is stored in the stream with
// the rows that it speaks of, so that the two cannot disagree.
type SnapshotProgress struct {
	ID      string          `json:"id"`
	Capture string          `json:"capture"`
	State   string          `json:"state"` // running, done, failed
	Tables  []TableProgress `json:"tables"`
	Error   string          `json:"error,omitempty"`
	At      time.Time       `json:"at"`
}

// TableProgress says how far the snapshot of one table is.
type TableProgress struct {
	driver.SnapshotTable
	Rows  int64 `json:"rows"`
	Total int64 `json:"total"` // estimated
	Done  bool  `json:"done"`
	// After is the key of the last chunk's last row, for the next chunk.
	After string `json:"after,omitempty"`
}

// Headers of a message of changes.
const (
	HeaderPos   = "Ath-Pos"   // position of the last change
	HeaderFirst = "Ath-First" // position of the first change
	HeaderPrev  = "Ath-Prev"  // position of the change before the first; of the first one ever, where its capture began
	HeaderCount = "Ath-Count" // number of changes
	HeaderTx    = "Ath-Tx"    // transaction of the last change
	HeaderOp    = "Ath-Op"    // operation, if all changes have the same
	HeaderMark  = "Ath-Mark"  // the engine's mark of the last transaction that is complete with this message
)

// A TableVersion is a numbered column set of a table.
type TableVersion struct {
	Table   driver.TableName `json:"table"`
	Version int              `json:"version"`
	Columns []cdc.Column     `json:"columns"`
}
