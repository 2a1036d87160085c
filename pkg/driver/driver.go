// Package driver is the contract between Athena and its engines.
//
// A driver opens a Backend; what the backend can do is what optional interfaces
// it implements, and Supports derives its capabilities from them. Methods
// return the engine's errors as they are: dispatch wraps them, once, with what
// Classify says of them. Drivers know nothing of identity, policy or envelopes.
package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Backend is an open handle to one engine. Its methods, and those of the
// optional interfaces, are safe for concurrent use.
type Backend interface {
	// Ping reports whether the backend answers now.
	Ping(ctx context.Context) error

	// Classify says what err means, which came from one of this backend's own
	// methods, or from opening one: of that the zero value is asked.
	Classify(err error) Failure

	// Close releases the handle. No method is called after it.
	Close(ctx context.Context) error
}

// Failure is what a caller may be told of an engine's error.
type Failure struct {
	// Code fits the error; empty means internal.
	Code athena.Code
	// Message is safe to show: no host, no credential, no statement text of
	// others. Empty stands for a general sentence.
	Message string
	// Details are safe to show, such as the SQLSTATE.
	Details map[string]any
	// NoEffect says that the attempt provably changed nothing and may be made
	// again as it is: a serialization failure, a connection never made.
	NoEffect bool
}

// Language is the language of a statement.
type Language string

// The languages that engines understand.
const (
	SQL Language = "sql"
	CQL Language = "cql"
)

// Capability returns the raw-statement capability of the language.
func (l Language) Capability() athena.Capability {
	if l == CQL {
		return athena.RawCQL
	}
	return athena.RawSQL
}

// A Statement is one statement with its parameters.
type Statement struct {
	Text string
	// Params are JSON values; the driver fits them to the types that the
	// engine wants and answers invalid_request, with the field "params[i]",
	// where one does not fit.
	Params []json.RawMessage
	// Timeout bounds the statement at the server; 0 means none.
	Timeout time.Duration
	// ReadOnly asks the engine to refuse any write: then the statement fails
	// with ErrWrites and has had no effect.
	ReadOnly bool
	// WriteTime is the time that a write counts as made at, for engines that settle
	// by time which of two writes is the later one: the same in all attempts, so
	// that a repetition changes nothing. Zero is now. Others ignore it.
	WriteTime time.Time
}

// ErrWrites is in the chain of the error with which a ReadOnly statement that
// tried to write was refused.
var ErrWrites = errors.New("driver: the statement writes")

// A Column describes one column of a result.
type Column struct {
	Name string `json:"name"` // unique within a result: repeats get _2, _3 …
	Type string `json:"type"` // the engine's own name of the type
}

// Rows is a result that is read row by row and never held in memory. It is not
// safe for concurrent use and must be closed. Errors come from Err, after Next
// returned false.
type Rows interface {
	// Columns describes the result; none if the statement returns no rows.
	Columns() []Column
	// Next moves to the next row.
	Next() bool
	// AppendJSON appends the current row as one JSON object, without newline.
	AppendJSON(dst []byte) []byte
	// RowsAffected is the engine's own count, known once Next returned false; -1
	// where it has none.
	RowsAffected() int64
	// Err is the error that ended the rows, if one did.
	Err() error
	// Close ends the statement; rows not read are dropped. It returns Err.
	Close() error
}

// Querier runs statements in the engine's own language.
type Querier interface {
	Language() Language
	// Analyze tells from the text alone what a statement may do. It never
	// fails: what it does not understand is a Write.
	Analyze(text string) Analysis
	// Query runs a statement. Cancelling ctx reaches the engine. An error
	// that the engine reports before the first row is returned here.
	Query(ctx context.Context, s Statement) (Rows, error)
}

// Effect is what a statement may do to data.
type Effect string

// The effects. A statement that is none of the first three is refused before
// it is sent.
const (
	Read    Effect = "read"    // changes nothing, so that it may be repeated
	Write   Effect = "write"   // may change data, within a transaction where the engine has them
	Outside Effect = "outside" // may change data and cannot run in a transaction
	Refused Effect = "refused" // not a statement for this road, such as BEGIN
)

// Analysis is what is known of a statement by its text.
type Analysis struct {
	Effect Effect
	// Reason says, for Refused, what is wrong and what to do instead.
	Reason string
	// Idempotent says that running the statement twice, as it is, has the
	// effect of running it once. It is always true of a Read.
	Idempotent bool
	// ArraysAdd says that this does not hold where a parameter is an array, which
	// may be a list whose elements are added once more.
	ArraysAdd bool
}

// IdempotentWith is Idempotent for these parameters.
func (a Analysis) IdempotentWith(params []json.RawMessage) bool {
	return a.Idempotent && !(a.ArraysAdd && slices.ContainsFunc(params, func(p json.RawMessage) bool {
		return bytes.HasPrefix(bytes.TrimSpace(p), []byte("["))
	}))
}

// Explainer shows how the engine would run a statement, without running it.
type Explainer interface {
	Explain(ctx context.Context, s Statement) (json.RawMessage, error)
}

// A Token identifies one transaction of one database so that its outcome can
// be asked later. It is opaque outside its driver.
type Token string

// TrackedQuerier runs writes whose outcome can be learnt after the process that
// ran them is lost.
type TrackedQuerier interface {
	// QueryTracked starts a transaction and runs s in it. Nothing is committed
	// before Commit.
	QueryTracked(ctx context.Context, s Statement) (TrackedRows, error)
	// Outcome says how the transaction ended. It waits for one that is still
	// in progress, after ending it where the engine can, until ctx is done.
	Outcome(ctx context.Context, t Token) (Outcome, error)
}

// TrackedRows is the result of a tracked statement, not yet committed.
type TrackedRows interface {
	Rows
	// Commit commits, once the rows have been read. It calls record with the
	// transaction's token first and goes on only if record returns nil, so
	// that the token is stored before there is an effect. After an error of
	// its own that is no refusal by the engine the outcome is not known;
	// Outcome tells.
	// Close without Commit rolls back.
	Commit(ctx context.Context, record func(context.Context, Token) error) error
}

// Outcome is how a transaction ended.
type Outcome string

// The outcomes.
const (
	Committed Outcome = "committed"
	Aborted   Outcome = "aborted"
	Unknown   Outcome = "unknown" // it cannot be learnt any more
)

// SchemaReader describes what the engine holds.
type SchemaReader interface {
	Schemas(ctx context.Context) ([]Schema, error)
	// Tables lists tables and views of one schema, or of all but the engine's
	// own if schema is empty.
	Tables(ctx context.Context, schema string) ([]Table, error)
	// Columns, Constraints and Indexes describe one table. A table that does
	// not exist is a not_found error.
	Columns(ctx context.Context, schema, table string) ([]ColumnInfo, error)
	Constraints(ctx context.Context, schema, table string) ([]Constraint, error)
	Indexes(ctx context.Context, schema, table string) ([]Index, error)
}

// Schema is a namespace of tables: a PostgreSQL schema, a keyspace.
type Schema struct {
	Name    string `json:"name"`
	Owner   string `json:"owner,omitempty"`
	Comment string `json:"comment,omitempty"`
}

// Table is a table or view.
type Table struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	// Kind is table, partitioned_table, view, materialized_view or foreign_table.
	Kind string `json:"kind"`
	// EstimatedRows is the engine's own estimate; -1 where it has none.
	EstimatedRows int64  `json:"estimated_rows"`
	Comment       string `json:"comment,omitempty"`
}

// ColumnInfo describes one column of a table.
type ColumnInfo struct {
	Name     string `json:"name"`
	Position int    `json:"position"` // from 1
	Type     string `json:"type"`
	Nullable bool   `json:"nullable"`
	// Default is the default's expression; empty if there is none.
	Default string `json:"default,omitempty"`
	// Generated is stored, virtual, identity_always or identity_by_default.
	Generated string `json:"generated,omitempty"`
	// PrimaryKey is the position in the primary key, from 1; 0 outside it.
	PrimaryKey int    `json:"primary_key,omitempty"`
	Comment    string `json:"comment,omitempty"`
	// Kind is partition_key, clustering, static or regular, and Order asc or desc
	// for a clustering column, in an engine whose tables have partitions.
	Kind  string `json:"kind,omitempty"`
	Order string `json:"order,omitempty"`
	// UserTypes are the statements that make the types of the user's own that the
	// column's type names, inner ones first.
	UserTypes []string `json:"user_types,omitempty"`
}

// Constraint describes one constraint of a table.
type Constraint struct {
	Name string `json:"name"`
	// Kind is primary_key, unique, foreign_key, check or exclusion.
	Kind       string   `json:"kind"`
	Columns    []string `json:"columns"`
	Definition string   `json:"definition"`
	// References is set for a foreign key.
	References *Reference `json:"references,omitempty"`
}

// Reference is what a foreign key points to.
type Reference struct {
	Schema  string   `json:"schema"`
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

// Index describes one index of a table.
type Index struct {
	Name       string   `json:"name"`
	Method     string   `json:"method"`
	Unique     bool     `json:"unique"`
	Primary    bool     `json:"primary"`
	Columns    []string `json:"columns"` // expressions where they are not columns
	Definition string   `json:"definition"`
}

// MigrationReader reads the table that a migration tool keeps.
type MigrationReader interface {
	Migrations(ctx context.Context) (Migrations, error)
}

// Migrations is what a migration tool has recorded.
type Migrations struct {
	// Tool is golang-migrate, goose, supabase or rails; empty when no known
	// table was found, and then Message says so.
	Tool    string      `json:"tool,omitempty"`
	Table   string      `json:"table,omitempty"`
	Message string      `json:"message,omitempty"`
	Applied []Migration `json:"applied"`
}

// Migration is one applied migration.
type Migration struct {
	Version   string     `json:"version"`
	Name      string     `json:"name,omitempty"`
	AppliedAt *time.Time `json:"applied_at,omitempty"`
	Dirty     bool       `json:"dirty,omitempty"`
}

// Provisioner creates what a new tenant of the engine needs.
type Provisioner interface {
	// Provision creates what is missing and reports what it did; running it
	// again changes nothing.
	Provision(ctx context.Context, p Provision) (Provisioned, error)
}

// Provision names what is wanted.
type Provision struct {
	Kind string `json:"kind"` // schema, database; keyspace; bucket
	Name string `json:"name"`
}

// Provisioned reports what was done.
type Provisioned struct {
	Created bool `json:"created"` // false: it was there
}

// Identifier says what stands at the other end; for `client check` and doctor.
type Identifier interface {
	Identity(ctx context.Context) (Identity, error)
}

// Identity describes a backend.
type Identity struct {
	Product string `json:"product"` // PostgreSQL, ScyllaDB …
	Version string `json:"version"`
	// Facts are small, safe, and specific to the engine: wal_level, read_only.
	Facts map[string]string `json:"facts,omitempty"`
}

// Counter counts rows.
type Counter interface {
	// Count counts a table's rows. A table that does not exist is a not_found
	// error.
	Count(ctx context.Context, schema, table string, timeout time.Duration) (int64, error)
}

// ColumnTyper tells the type of a column by the engine's own name of it, without
// asking the engine.
type ColumnTyper interface {
	ColumnType(native string) record.Type
}

// ColumnSorter tells whether the values of a type, by the engine's own name of it,
// sort in the engine as those of their type in records do. Without one all do.
type ColumnSorter interface {
	ColumnSorts(native string) bool
}

// Supports derives a backend's capabilities from the interfaces that it
// implements, so that a driver cannot claim what it did not write.
func Supports(b Backend) (s athena.Capabilities) {
	if q, ok := b.(Querier); ok {
		s |= athena.Allow(athena.GatewayQuery, athena.DeferredQuery, q.Language().Capability())
	}
	if _, ok := b.(SchemaReader); ok {
		s |= athena.Allow(athena.SchemaRead)
	}
	if _, ok := b.(MigrationReader); ok {
		s |= athena.Allow(athena.MigrationsRead)
	}
	if _, ok := b.(Provisioner); ok {
		s |= athena.Allow(athena.Provisioning)
	}
	if _, ok := b.(ChangeSource); ok {
		s |= athena.Allow(athena.CDC, athena.PipelineSource)
	}
	if _, ok := b.(TableReader); ok {
		s |= athena.Allow(athena.PipelineSource)
	}
	if _, ok := b.(TableWriter); ok {
		s |= athena.Allow(athena.PipelineSink)
	}
	if _, ok := b.(ObjectReader); ok {
		s |= athena.Allow(athena.ObjectRead, athena.PipelineSource)
	}
	if _, ok := b.(ObjectWriter); ok {
		s |= athena.Allow(athena.ObjectWrite)
	}
	if _, ok := b.(ObjectStager); ok {
		s |= athena.Allow(athena.PipelineSink)
	}
	return s
}

// A Driver opens backends of one engine. What its backends are is known without
// opening one.
type Driver struct {
	// Supports is what the backends implement.
	Supports athena.Capabilities
	// Language and Analyze are those of the backends; empty and nil if they
	// are no Queriers.
	Language Language
	Analyze  func(text string) Analysis
	// WriteModes are those of the backends, if they are TableWriters.
	WriteModes []WriteMode
	// ColumnType is that of the backends, if they are ColumnTypers.
	ColumnType func(native string) record.Type
	// ColumnSorts is that of the backends, if they are ColumnSorters.
	ColumnSorts func(native string) bool
	Open        func(ctx context.Context, conn athena.Connection) (Backend, error)
	// Classify says what an error of Open means; nil if that is not known.
	Classify func(error) Failure
}

// Transactional reports whether tables take rows and their checkpoint at once: so does
// who has a mode in which all rows of a run take effect at once.
func (d Driver) Transactional() bool { return slices.ContainsFunc(d.WriteModes, WriteMode.Staged) }

// New makes a Driver of a driver's own constructor, which takes exactly the
// member of the union that it understands. The zero value of B is asked for
// what it supports, so its Language and Analyze must not need an open handle.
func New[C athena.Connection, B Backend](open func(context.Context, C) (B, error)) Driver {
	var zero B
	d := Driver{
		Supports: Supports(zero),
		Classify: zero.Classify,
		Open: func(ctx context.Context, conn athena.Connection) (Backend, error) {
			c, ok := conn.(C)
			if !ok {
				return nil, fmt.Errorf("driver: connection is %T, want %T", conn, c)
			}
			b, err := open(ctx, c)
			if err != nil {
				return nil, err // not b: a typed nil would not compare equal to nil
			}
			return b, nil
		},
	}
	if q, ok := Backend(zero).(Querier); ok {
		d.Language, d.Analyze = q.Language(), q.Analyze
	}
	if w, ok := Backend(zero).(TableWriter); ok {
		d.WriteModes = w.WriteModes()
	}
	if c, ok := Backend(zero).(ColumnTyper); ok {
		d.ColumnType = c.ColumnType
	}
	if c, ok := Backend(zero).(ColumnSorter); ok {
		d.ColumnSorts = c.ColumnSorts
	}
	return d
}
