package driver

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// TableReader reads tables and queries as typed rows.
type TableReader interface {
	// DescribeTable describes a table or view as its rows are read; not_found if
	// there is none.
	DescribeTable(ctx context.Context, t TableName) (TableShape, error)
	// DescribeQuery describes the rows of a statement without running it. One that
	// may write, or returns no rows, is an invalid_request error.
	DescribeQuery(ctx context.Context, s Statement) (*record.Schema, error)
	// SplitTable divides what is read into parts of about so many bytes each, by
	// ranges of the key: a row that is there throughout is in exactly one of them,
	// whatever else changes meanwhile. A table without a key that sorts, or one
	// that is read with a limit, is one part. Parts are good as long as the key's
	// type stays, for other processes too.
	SplitTable(ctx context.Context, r TableRead, bytes int64) ([]TablePart, error)
	// ReadTable reads one part. Each part is read as of one moment of its own; where
	// the engine has no such moments, each row as it is when it is read.
	// Batches are good during the call of fn only; an error of fn ends the reading
	// and is returned.
	ReadTable(ctx context.Context, r TableRead, p TablePart, size BatchSize, fn func(*record.Batch) error) error
	// ReadQuery reads the rows of a statement that only reads.
	ReadQuery(ctx context.Context, s Statement, size BatchSize, fn func(*record.Batch) error) error
}

// TableCopier reads a table in the engine's own binary form.
type TableCopier interface {
	// CopyForm describes the form in which the rows are: a TableTx whose target has
	// an equal one takes it. Empty if there is none.
	CopyForm(ctx context.Context, r TableRead) (string, error)
	// CopyTable writes one part to w, and returns the number of rows.
	CopyTable(ctx context.Context, r TableRead, p TablePart, w io.Writer) (rows int64, err error)
}

// A TableShape describes a table for reading and writing.
type TableShape struct {
	Schema *record.Schema `json:"schema"`
	Kind   string         `json:"kind"` // as in Table
	// Rows and Bytes are estimated; -1 is not known.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
	// Notes are what else of the engine's own matters to who reads the table.
	Notes []string `json:"notes,omitempty"`
}

// A TableRead says what is read of a table.
type TableRead struct {
	Table TableName `json:"table"`
	// Columns are read, in this order; nil is all of them.
	Columns []string `json:"columns,omitempty"`
	// Where must all hold.
	Where []Condition `json:"where,omitempty"`
	Limit int64       `json:"limit,omitempty"` // rows at most; 0 is no limit
}

// A Condition compares a column with a value.
type Condition = record.Condition

// A TablePart is a share of a table.
type TablePart struct {
	// Range says which; empty is the whole. The driver's business.
	Range string `json:"range,omitempty"`
	// Rows and Bytes are estimated; -1 is not known.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
}

// A BatchSize bounds batches; zero fields stand for 8192 rows and 4 MiB. A batch
// has at least one row, however large that is.
type BatchSize struct{ Rows, Bytes int }

// Or returns s with its defaults.
func (s BatchSize) Or() BatchSize {
	if s.Rows <= 0 {
		s.Rows = 8192
	}
	if s.Bytes <= 0 {
		s.Bytes = 4 << 20
	}
	return s
}

// WriteMode says what becomes of rows that are written and of those that are
// there.
type WriteMode string

// The modes.
const (
	// Append adds rows. Of a stream of changes it adds each change, with what is
	// known of it in columns of its own (ChangeColumns).
	Append WriteMode = "append"
	// Upsert inserts rows, or updates those with the same key. Of a stream of
	// changes deletes delete, and a truncate empties the table.
	Upsert WriteMode = "upsert"
	// Merge makes the table equal to what was read, by key: rows that are not
	// among it are deleted (unless KeepMissing), and equal ones not touched.
	Merge WriteMode = "merge"
	// Overwrite replaces all rows at once.
	Overwrite WriteMode = "overwrite"
)

// Staged reports whether rows are collected first, and take effect at once in
// FinishTable.
func (m WriteMode) Staged() bool { return m == Merge || m == Overwrite }

// TableWriter writes typed rows to tables, each transaction with a checkpoint in
// it, so that a repeated attempt can see what an earlier one has done.
//
// An engine without transactions over several rows keeps the contract by another
// way: what it writes again has the effect of writing it once, whoever does so and
// however late, and its rows may be seen before Commit.
type TableWriter interface {
	// WriteModes are the modes in which the engine's tables can be written. It is
	// asked of the zero value too.
	WriteModes() []WriteMode
	// DescribeTable is TableReader's.
	DescribeTable(ctx context.Context, t TableName) (TableShape, error)
	// PlanTable says what PrepareTable would do, and what stands in the way of
	// writing. It changes nothing.
	PlanTable(ctx context.Context, t TableTarget) (TablePlan, error)
	// PrepareTable makes what writing needs: the table of checkpoints, the target
	// if it is to be created, its new columns as the contract lets them in, and
	// the staging table of a staged mode. Done again it changes nothing.
	PrepareTable(ctx context.Context, t TableTarget) (TablePlan, error)
	// BeginTable begins a transaction that writes to a prepared target, or to its
	// staging table.
	BeginTable(ctx context.Context, t TableTarget) (TableTx, error)
	// Checkpoint returns what was committed last under a key; false if nothing.
	Checkpoint(ctx context.Context, k CheckpointKey) (Checkpoint, bool, error)
	// FinishTable makes the rows of a staged mode take effect at once, with the
	// checkpoint in the same transaction, and returns how many rows of the target
	// were changed. If the checkpoint is there already it does nothing, and returns
	// what it did then; the checkpoint's note is where that is kept.
	FinishTable(ctx context.Context, t TableTarget, c Checkpoint) (changed int64, err error)
	// ForgetTable drops the staging table of a run, if there is one.
	ForgetTable(ctx context.Context, t TableTarget) error
	// ForgetCheckpoints drops the checkpoints of a pipeline's run; of all its runs
	// if run is empty.
	ForgetCheckpoints(ctx context.Context, pipeline, run string) error
}

// A TableTarget says what is written to and how.
type TableTarget struct {
	Table  TableName `json:"table"`
	Mode   WriteMode `json:"mode"`
	Key    []string  `json:"key,omitempty"` // of upsert and merge
	Create bool      `json:"create,omitempty"`
	// Schema is that of the rows that will be written. Columns of the target that
	// are not in it keep their values, or take their defaults.
	Schema *record.Schema `json:"schema"`
	// AddColumns lets columns be added to the target, and WidenTypes lets columns
	// take a wider type: integer to bigint, varchar(10) to text.
	AddColumns bool `json:"add_columns,omitempty"`
	WidenTypes bool `json:"widen_types,omitempty"`
	// KeepMissing leaves rows alone in a merge that did not come.
	KeepMissing bool `json:"keep_missing,omitempty"`
	// Changes says that rows come from a stream of changes.
	Changes bool `json:"changes,omitempty"`
	// WriteTime and TTL name columns of the rows that are not stored as such: the
	// time in microseconds since 1970 that a write counts as made at, and the
	// seconds that its values live; null, or no column, is the engine's default.
	// For engines that settle writes by time; of others it is a problem of
	// PlanTable.
	WriteTime string `json:"write_time,omitempty"`
	TTL       string `json:"ttl,omitempty"`
	// Run names the staging table.
	Run string `json:"run"`
	// Checkpoint says whose checkpoint the transaction will commit, where that is known
	// when it begins: who settles writes by time keeps the last of them there.
	Checkpoint CheckpointKey `json:"checkpoint,omitzero"`
}

// ChangeColumns are the columns of a change in a log, before those of its row.
var ChangeColumns = []record.Column{
	{Name: "_op", Type: record.TypeText},
	{Name: "_pos", Type: record.TypeText},
	{Name: "_ts", Type: record.TypeTimestampTZ, Nullable: true},
}

// A TablePlan is what writing to a table comes to.
type TablePlan struct {
	// Creates has the statement that creates the target.
	Creates string `json:"creates,omitempty"`
	// Alters has the statements that change it.
	Alters []string `json:"alters,omitempty"`
	// Columns shows where each column goes.
	Columns []ColumnMapping `json:"columns"`
	// Problems stand in the way; each names the mend.
	Problems []TableProblem `json:"problems,omitempty"`
	Notes    []string       `json:"notes,omitempty"`
	// CopyForm is the form that the target takes as it is; see TableCopier.
	CopyForm string `json:"-"`
}

// A ColumnMapping shows where one column goes.
type ColumnMapping struct {
	Column string      `json:"column"`
	Type   record.Type `json:"type"`
	Native string      `json:"native"` // type of the target's column
	New    bool        `json:"new,omitempty"`
}

// A TableProblem is one thing that stands in the way of writing.
type TableProblem struct {
	// Code is stable: no_table, no_column, column_type, no_key, key_not_unique,
	// not_null, generated, privilege, no_rows_of_mode, mode, write_time.
	Code    string `json:"code"`
	Column  string `json:"column,omitempty"`
	Message string `json:"message"`
}

// TableTx writes rows in one transaction. It is not safe for concurrent use.
type TableTx interface {
	// Write writes the rows of a batch in their order. Rows that the engine
	// refuses by what they hold are returned and have no effect; any other error
	// ends the transaction. The batch may have another schema than the target was
	// prepared for, if the target has all its columns.
	Write(ctx context.Context, b *record.Batch) ([]record.Rejected, error)
	// Copy writes rows in the engine's own form, as CopyTable gives them. An error
	// ends the transaction; ErrRefusedRow is in its chain if it is for one row's
	// sake.
	Copy(ctx context.Context, r io.Reader) (rows int64, err error)
	// Commit stores the checkpoint and commits. ErrOvertaken says that somebody
	// else has committed under the key meanwhile: then nothing is.
	Commit(ctx context.Context, c Checkpoint) error
	// Rollback ends the transaction if Commit did not. It may be called always.
	Rollback(ctx context.Context) error
}

// ErrOvertaken is in the chain of Commit's error where another has committed.
var ErrOvertaken = errors.New("driver: another has committed meanwhile")

// ErrRefusedRow is in the chain of Copy's error where the engine refused a row by
// what it holds: given to Write in another transaction, that row is rejected and
// the others are written.
var ErrRefusedRow = errors.New("driver: the engine refused a row")

// A CheckpointKey says whose checkpoint it is.
type CheckpointKey struct {
	Pipeline string `json:"pipeline"`
	Run      string `json:"run"` // empty for one that outlasts runs: that of a stream
	Part     string `json:"part"`
}

// A Checkpoint says what has been committed.
type Checkpoint struct {
	CheckpointKey
	// Before is the Position that must be there, and is replaced; empty is none
	// must be there.
	Before cdc.Position `json:"before,omitempty"`
	// Position is how far it is; any text that is not empty for a part that is
	// done as a whole.
	Position cdc.Position `json:"position"`
	// Note is kept with it, at most 64 KiB.
	Note json.RawMessage `json:"note,omitempty"`
}
