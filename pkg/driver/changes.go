package driver

import (
	"context"
	"errors"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// ChangeSource reads the engine's own log of changes.
//
// Setting a capture up takes these steps: PrepareChanges, then StartChanges,
// which says where it begins, then its snapshot as of that point, then
// OpenChanges. The order is law: what is to be captured, then the place from
// which on, then the rows that were there.
type ChangeSource interface {
	// CheckChanges says what stands in the way of capturing, and what an operator
	// should know. It changes nothing. Without tables it lists those that could
	// be captured.
	CheckChanges(ctx context.Context, s ChangeSetup) (ChangeCheck, error)
	// PrepareChanges makes or adapts what names the tables to capture (a
	// publication). Done again it changes nothing. A table without a usable
	// identity is refused, unless s says that inserts are enough: what the
	// application does to its tables works afterwards as it did before. Columns
	// and rows that somebody excepted in the engine stay so.
	PrepareChanges(ctx context.Context, s ChangeSetup) error
	// StartChanges makes the place in the log from which changes are kept for
	// us (a slot), and returns it with the rows that were there before. It
	// waits for the transactions that run, however long they take; progress is
	// told what it waits for, every second or so. If it fails, or ctx is done,
	// it leaves no place behind.
	//
	// What an interrupted start has left behind under the name that is given by
	// default, and nobody has read from, is made anew. Any other place that is
	// there is a conflict error, unless s.TakeOver: then it is used, and the
	// snapshot is nil. To begin again where changes were read, DropChanges comes
	// first.
	StartChanges(ctx context.Context, s ChangeSetup, progress func(string)) (ChangeStart, ChangeSnapshot, error)
	// OpenChanges connects to the log. It fails with a *SourceLost if the place
	// is gone or is not what it was.
	OpenChanges(ctx context.Context, c ChangeConfig) (ChangeStream, error)
	// DropChanges removes what PrepareChanges and StartChanges made, and a place
	// that was taken over. What is not there is no error, and what has the name
	// but cannot be ours is left alone. A reader of ours is ended; another's is a
	// conflict error.
	DropChanges(ctx context.Context, s ChangeSetup) error
	// ChangeHealth describes the place in the log as the engine sees it. If there
	// is none it is a not_found error.
	ChangeHealth(ctx context.Context, s ChangeSetup) (ChangeHealth, error)
}

// ChangeSetup says what is captured and under which names.
type ChangeSetup struct {
	Client string
	// Tables are captured. PrepareChanges needs at least one.
	Tables []TableName
	// Slot and Publication are the engine's names; OpenChanges and all others
	// use just these.
	Slot, Publication string
	// TakeOver lets PrepareChanges and StartChanges use a publication and a
	// slot that are there and that Athena did not make. Then DropChanges leaves
	// the publication alone.
	TakeOver bool
	// LocalOnly leaves out changes that replication brought from elsewhere.
	LocalOnly bool
	// InsertsOnly lets tables without a usable identity in; of all tables
	// without one, inserts alone are captured.
	InsertsOnly bool
	// Confidence is how old a change must be before it is read, in an engine whose
	// log does not say when it is complete: what is written to the log later than
	// that is late. Sweep is how far back late changes are looked for; they are
	// handed over when they are found. 0 stands for the engine's defaults, and a
	// negative Sweep for none. An engine whose log is in order refuses both.
	Confidence, Sweep time.Duration
}

// ChangeCheck is what CheckChanges found.
type ChangeCheck struct {
	Findings []ChangeFinding `json:"findings"`
	Tables   []ChangeTable   `json:"tables"`
}

// OK reports whether nothing stands in the way.
func (c ChangeCheck) OK() bool {
	for _, f := range c.Findings {
		if f.Level == "error" {
			return false
		}
	}
	return true
}

// A ChangeFinding is one thing that was looked at.
type ChangeFinding struct {
	// Name is stable, and that of a setting where it is about one: wal_level,
	// max_replication_slots, privileges, publication, slot, table, identity …
	Name string `json:"name"`
	// Level is ok, warning or error; an error stands in the way.
	Level string `json:"level"`
	Table string `json:"table,omitempty"`
	Found string `json:"found"`
	Want  string `json:"want,omitempty"`
	Mend  string `json:"mend,omitempty"` // the statement or setting that mends it
}

// A ChangeTable describes one table for capturing.
type ChangeTable struct {
	Table TableName `json:"table"`
	// Identity says by what rows are told apart: primary_key, index, full, none.
	Identity string   `json:"identity"`
	Key      []string `json:"key"`
	Rows     int64    `json:"estimated_rows"`
	Bytes    int64    `json:"bytes"`
}

// ChangeStart is where a capture begins.
type ChangeStart struct {
	// Begin is the position before the first change. Rows of the first snapshot
	// have positions behind it and before that change.
	Begin cdc.Position
	// Source identifies the database and its history; it is handed to
	// OpenChanges again, which refuses another one.
	Source string
	// Confirmed is the engine's own mark; see ChangeConfig.
	Confirmed string
}

// ChangeConfig says how to open a stream of changes.
type ChangeConfig struct {
	ChangeSetup
	// Source is what ChangeStart told, or the last stream's Source.
	Source string
	// After is the last position that is stored; what is up to it is skipped.
	// Empty is nothing stored.
	After cdc.Position
	// Confirmed is the highest mark that may have been confirmed: of the last
	// stored transaction, or one that Confirming was told. An engine that is
	// further was moved by somebody else.
	Confirmed string
	// Confirming, if set, is called before a mark beyond those of stored
	// transactions is confirmed, as happens in idle times, and must store it.
	// Of the others it is told now and then, and in the end, so that they
	// outlast the stream that they stand in. It is called every second or so.
	Confirming func(ctx context.Context, mark string) error
	// Version numbers the column set of a table, as the stream that is written
	// has it; fresh says that the set is not the one that the stream had last,
	// so that a schema change comes before the row. It is asked only before
	// rows that are handed over.
	Version func(t TableName, columns []cdc.Column) (version int, fresh bool)
	// Stored hands over the positions of the changes that are stored behind one, in
	// their order; of all that are kept if it is empty. An engine without a mark of
	// its own learns from them what it has handed over before. An error of fn ends
	// it and is returned.
	Stored func(ctx context.Context, behind cdc.Position, fn func(cdc.Position) error) error
	// NoStreaming has the engine keep large transactions until they are
	// committed, so that nothing is spilled here.
	NoStreaming bool
	// SpillDir takes what does not fit into SpillMemory bytes of transactions
	// that are not yet committed; it is emptied by OpenChanges.
	SpillDir    string
	SpillMemory int64
	// SpillMost bounds the bytes in SpillDir; beyond it the stream fails with
	// ErrSpillFull. 0 is no bound.
	SpillMost int64
}

// ChangeStream is an open stream of changes. Run is called once; the other
// methods are safe for concurrent use.
type ChangeStream interface {
	// Run hands changes to sink, in the order of their commits and positions,
	// until ctx is done, the sink fails or the connection does. It returns nil
	// only if ctx is done.
	Run(ctx context.Context, sink ChangeSink) error
	// Confirm tells the engine that everything up to the mark of a Commit is
	// stored, so that it need not keep it. It never goes back.
	Confirm(mark string)
	// Source says what database is read, and in which history: that of
	// ChangeConfig, or what has become of it by a failover. It is asked again when Run
	// has ended: by then it may hold what must not be forgotten.
	Source() string
	// Lag says how far the stream is behind.
	Lag() ChangeLag
	// Interrupt has Run call the sink's Pause soon, also while nothing comes.
	Interrupt()
	// Snapshot opens a reader of one table beside the stream. What it reads
	// while Pause holds the stream has in it every transaction that the stream
	// has handed over, and may have later ones, which the stream hands over
	// again: so the rows belong where the stream is held. Of a table that is
	// fresh it fails with ErrNotYet until all transactions have ended that ran
	// when the stream was opened.
	Snapshot(ctx context.Context, t SnapshotTable) (SnapshotReader, error)
	// Close ends the connection. A stream that still runs fails.
	Close(ctx context.Context) error
}

// ChangeSink takes what a stream reads. Its methods are called by one goroutine,
// and may block: that is the back-pressure.
type ChangeSink interface {
	// Change takes one change. What c points to is valid during the call only.
	Change(ctx context.Context, c *cdc.Change) error
	// Reject takes a change that cannot be encoded. An error ends the stream.
	Reject(ctx context.Context, r Rejected) error
	// Commit says that the transaction is complete whose changes were handed
	// over since the last Commit. mark stands for it when it is confirmed.
	Commit(ctx context.Context, mark string) error
	// Pause is called between transactions, after each and after an Interrupt.
	// As long as it does not return the stream is held.
	Pause(ctx context.Context) error
}

// A Rejected change is one that cannot be encoded.
type Rejected struct {
	Pos    cdc.Position `json:"pos"`
	Op     cdc.Op       `json:"op"`
	Schema string       `json:"schema"`
	Table  string       `json:"table"`
	Reason string       `json:"reason"`
	Raw    []byte       `json:"raw"` // as the engine sent it
}

// ChangeLag says how far a stream is behind its engine.
type ChangeLag struct {
	// Bytes of log between what is confirmed and the engine's end, as last heard.
	Bytes int64
	// Committed is the commit time of the last transaction that was handed over;
	// zero if there was none.
	Committed time.Time
	// Heard is when the engine last spoke.
	Heard time.Time
	// CaughtUp says that nothing is waiting, as far as is known.
	CaughtUp bool
	// Spilled is how many bytes of open transactions are on disk.
	Spilled int64
	// Streams is how it stands with a log of many streams; nil for one that is one.
	Streams *StreamLag
}

// StreamLag is how it stands with a log of many streams.
type StreamLag struct {
	Streams int `json:"streams"` // that are read now, of all tables
	// Complete is the time up to which everything has been handed over.
	Complete time.Time `json:"complete"`
	// Confidence is how old a change is when it is read, at least; Sweep is how far
	// back late ones are looked for, 0 if they are not.
	Confidence athena.Duration `json:"confidence"`
	Sweep      athena.Duration `json:"sweep"`
	// Swept is the time up to which late changes have been looked for.
	Swept time.Time `json:"swept,omitzero"`
	// Late counts the late changes that were found since the stream was opened.
	Late uint64 `json:"late"`
	// Waits says, for people, what the reading waits for that is not there yet; empty
	// is nothing.
	Waits string `json:"waits,omitempty"`
	// Slowest are the streams that are furthest behind, ten at most.
	Slowest []OneStreamLag `json:"slowest,omitempty"`
}

// OneStreamLag is how far one stream has been read.
type OneStreamLag struct {
	Table    TableName `json:"table"`
	Stream   string    `json:"stream"` // its id, in hexadecimal
	Complete time.Time `json:"complete"`
}

// ChangeHealth describes the place in the log as the engine sees it.
type ChangeHealth struct {
	Slot      string `json:"slot"`
	Active    bool   `json:"active"`
	WALStatus string `json:"wal_status"` // reserved, extended, unreserved, lost
	// Invalidated says why the engine gave the place up; empty if it did not.
	Invalidated string `json:"invalidated,omitempty"`
	// Retained is how many bytes of log are kept for us.
	Retained int64 `json:"retained_bytes"`
	// Safe is how many bytes may still be written before the place is lost; -1
	// is no limit.
	Safe      int64 `json:"safe_bytes"`
	Lag       int64 `json:"lag_bytes"` // from what is confirmed to the log's end
	Failover  bool  `json:"failover"`
	TwoPhase  bool  `json:"two_phase"`
	Temporary bool  `json:"-"`
	// Expires is when the oldest change that is not confirmed leaves the log; zero if
	// the log waits for us.
	Expires time.Time `json:"expires,omitzero"`
	// Unpublished are tables that should be captured, and that nothing publishes
	// any more: they were dropped, renamed, or taken out.
	Unpublished []TableName `json:"unpublished,omitempty"`
}

// ChangeSnapshot is the state of all tables at one point. It is good for as long
// as it is open, and read by several goroutines at once.
type ChangeSnapshot interface {
	// Tables lists what is to be read, at least parts of each table that is large
	// enough: partitions one by one, under the name of the table that publishes
	// them. It fails with a conflict error if a table was rewritten since the
	// point; from then on until Close none can be.
	Tables(ctx context.Context, parts int) ([]SnapshotPart, error)
	// Read hands all rows of a part over, in order. The JSON objects are valid
	// during the call of row only; key is nil if the table has none. An error of
	// row ends the reading and is returned.
	Read(ctx context.Context, p SnapshotPart, row func(key, after []byte) error) error
	// Columns describes a table, for its schema change.
	Columns(ctx context.Context, t TableName) ([]cdc.Column, error)
	Close(ctx context.Context) error
}

// A SnapshotPart is a share of a table.
type SnapshotPart struct {
	Table TableName // under which the rows are published
	N, Of int       // number of the part within the table, from 0, and how many there are
	Rows  int64     // estimated
	Range string    // what part it is; the driver's business
}

// SnapshotTable is what an ad-hoc snapshot reads of one table.
type SnapshotTable struct {
	Table TableName `json:"table"`
	// Where restricts the rows, in the engine's language; empty is all.
	Where string `json:"where,omitempty"`
	// Fresh says that the table may be captured only of late, so that what a
	// transaction did before that comes in no other way.
	Fresh bool `json:"fresh,omitempty"`
}

// SnapshotReader reads a table in chunks, ordered by key. It is not safe for
// concurrent use.
type SnapshotReader interface {
	// Columns describes the table as it is now. The rows of Next have the columns
	// that it told last.
	Columns(ctx context.Context) ([]cdc.Column, error)
	// Next reads up to most rows behind a key, as Next itself gave it; empty is
	// the beginning. It returns the key of the last row, empty if there are no
	// further rows. A table without a key is read in one chunk. The JSON objects
	// are valid during the call of row only; key is nil if the table has none.
	// After an error the same chunk can be asked for again; after ErrTableChanged
	// Columns first. A table without a key fails with ErrNotYet at first: its rows
	// are those of a place to which the stream must come, in whose Pause they must
	// be asked for again; between the two it must be asked for in every Pause.
	Next(ctx context.Context, after string, most int, row func(key, after []byte) error) (next string, err error)
	// Total estimates how many rows there are.
	Total(ctx context.Context) (int64, error)
	Close(ctx context.Context) error
}

// TimedRows is a ChangeSnapshot or SnapshotReader of an engine that settles by time
// which of two writes is the later one.
type TimedRows interface {
	// WrittenAt is the time in microseconds since 1970 at which the rows count as
	// written: no change that the stream has yet to hand over is older than what they
	// have of it. Of a SnapshotReader it is that of the rows which Next gives.
	WrittenAt() int64
}

// ErrSpillFull is in the chain of the error with which a stream ends that has no
// room for a transaction which is not yet committed.
var ErrSpillFull = errors.New("driver: there is no room for the open transactions")

// ErrNotYet is in the chain of the error where rows can be read later.
var ErrNotYet = errors.New("driver: the rows cannot be read yet")

// ErrTableChanged is in the chain of Next's error where the table no longer has
// the columns that were told.
var ErrTableChanged = errors.New("driver: the columns of the table have changed")

// SourceLost says that a stream cannot go on from where it was: changes may be
// missing.
type SourceLost struct {
	// Code is stable, and names a section of the runbook: slot_missing,
	// slot_recreated, slot_lost, other_source, publication_missing, log_expired,
	// log_missing.
	Code string
	// Message is for people, and names the mend.
	Message string
}

func (e *SourceLost) Error() string { return e.Message }
