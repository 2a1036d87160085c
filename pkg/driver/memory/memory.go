// Package memory is the reference backend: a small engine of tables in memory
// with real transactions, statement timeouts and cancellation. It shows what
// the driver contract asks for with nothing in the way, and gives the layers
// above an engine that starts at once and fails on command.
//
// A DB is the engine; Driver opens backends on it, whatever the connection
// says. The language is described at Grammar. Statements see what was committed
// when they began; a write holds its table's lock until its transaction ends.
package memory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/google/uuid"
)

var (
	_ driver.Backend         = (*Backend)(nil)
	_ driver.Querier         = (*Backend)(nil)
	_ driver.TrackedQuerier  = (*Backend)(nil)
	_ driver.SchemaReader    = (*Backend)(nil)
	_ driver.MigrationReader = (*Backend)(nil)
	_ driver.Explainer       = (*Backend)(nil)
	_ driver.Counter         = (*Backend)(nil)
	_ driver.Provisioner     = (*Backend)(nil)
	_ driver.Identifier      = (*Backend)(nil)
)

// Faults are what goes wrong in a DB on purpose. The zero value is health.
type Faults struct {
	// Unreachable fails every opening, ping and statement with
	// backend_unavailable, before any effect.
	Unreachable bool
	// Latency is waited before each statement runs.
	Latency time.Duration
	// LoseBeforeCommit is how many of the next tracked commits lose their
	// connection after the token was recorded and before the effect.
	LoseBeforeCommit int
	// LoseAfterCommit is the same just after the effect.
	LoseAfterCommit int
}

// DB is the engine and its data. It is safe for concurrent use.
type DB struct {
	id string // part of each token, so that another DB's tokens are not known here

	mu       sync.Mutex
	schemas  map[string]bool
	tables   map[string]*table // committed versions, never changed in place
	locks    map[string]chan struct{}
	live     map[uint64]*tx // tracked transactions in progress
	outcomes map[uint64]driver.Outcome
	lastTx   uint64
	faults   Faults
	stats    Stats
}

// Stats counts what has reached a DB.
type Stats struct {
	Opened     int // backends opened, ever
	Open       int // backends open now
	Statements int // statements that began to run, ever
	Running    int // statements whose rows are not closed yet
}

// New returns an empty DB with the one schema "main".
func New() *DB {
	return &DB{
		id:       uuid.NewString(),
		schemas:  map[string]bool{mainSchema: true},
		tables:   map[string]*table{},
		locks:    map[string]chan struct{}{},
		live:     map[uint64]*tx{},
		outcomes: map[uint64]driver.Outcome{},
	}
}

// Driver opens backends on db for any connection.
func Driver(db *DB) driver.Driver {
	return driver.Driver{
		Supports: driver.Supports((*Backend)(nil)),
		Language: (*Backend)(nil).Language(),
		Analyze:  (*Backend)(nil).Analyze,
		Open: func(ctx context.Context, _ athena.Connection) (driver.Backend, error) {
			b, err := db.Open(ctx)
			if err != nil {
				return nil, err
			}
			return b, nil
		},
	}
}

// Open opens a backend.
func (db *DB) Open(ctx context.Context) (*Backend, error) {
	if err := db.reach(ctx); err != nil {
		return nil, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.stats.Opened++
	db.stats.Open++
	return &Backend{db}, nil
}

// Inject changes what goes wrong from now on.
func (db *DB) Inject(change func(*Faults)) {
	db.mu.Lock()
	defer db.mu.Unlock()
	change(&db.faults)
}

// Stats returns the counts of now.
func (db *DB) Stats() Stats {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.stats
}

// Rows returns the committed rows of a table, each a JSON object, in the order
// in which they were inserted; nil if there is no such table.
func (db *DB) Rows(name string) []string {
	t := db.table(qualify(name))
	if t == nil {
		return nil
	}
	list := make([]string, 0, len(t.rows))
	r := newRows(t.describe())
	for _, r.row = range t.rows {
		list = append(list, string(r.AppendJSON(nil)))
	}
	return list
}

func (db *DB) table(name string) *table {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.tables[name]
}

func (db *DB) reach(ctx context.Context) error {
	db.mu.Lock()
	down := db.faults.Unreachable
	db.mu.Unlock()
	if down {
		return &Error{Code: athena.CodeBackendUnavailable, Text: "the engine cannot be reached", noEffect: true}
	}
	return ctx.Err()
}

// Error is an error of the engine.
type Error struct {
	Code     athena.Code
	Text     string
	cause    error
	noEffect bool
}

func (e *Error) Error() string { return "memory: " + e.Text }

// Unwrap returns the cause, such as driver.ErrWrites.
func (e *Error) Unwrap() error { return e.cause }

func refuse(format string, args ...any) error {
	return &Error{Code: athena.CodeQueryFailed, Text: fmt.Sprintf(format, args...)}
}

// Backend is an open handle to a DB.
type Backend struct{ db *DB }

// Ping fails while the DB is unreachable.
func (b *Backend) Ping(ctx context.Context) error { return b.db.reach(ctx) }

// Classify reads the code off the engine's errors.
func (b *Backend) Classify(err error) driver.Failure {
	var e *Error
	if !errors.As(err, &e) {
		return driver.Failure{Code: athena.CodeOf(err)}
	}
	return driver.Failure{Code: e.Code, Message: e.Text, NoEffect: e.noEffect}
}

// Close releases the handle.
func (b *Backend) Close(context.Context) error {
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	b.db.stats.Open--
	return nil
}

// Language is SQL, of a kind.
func (*Backend) Language() driver.Language { return driver.SQL }

// Analyze judges by the leading word. A select that calls put looks like a
// read and is none: only running it ReadOnly finds that out.
func (*Backend) Analyze(text string) driver.Analysis {
	s, err := parse(text)
	switch {
	case err != nil:
		return driver.Analysis{Effect: driver.Write}
	case s.verb == verbControl:
		return driver.Analysis{Effect: driver.Refused, Reason: "transactions are made by Athena; send the statements alone"}
	case s.outside:
		return driver.Analysis{Effect: driver.Outside}
	case s.verb == verbSelect:
		return driver.Analysis{Effect: driver.Read, Idempotent: true}
	}
	return driver.Analysis{Effect: driver.Write, Idempotent: s.idempotent()}
}

// Query runs a statement and commits it before its rows are read.
func (b *Backend) Query(ctx context.Context, s driver.Statement) (driver.Rows, error) {
	r, t, err := b.begin(ctx, s, false)
	if err != nil {
		return nil, err
	}
	if err := t.commit(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// QueryTracked runs a statement in a transaction that is left open.
func (b *Backend) QueryTracked(ctx context.Context, s driver.Statement) (driver.TrackedRows, error) {
	r, t, err := b.begin(ctx, s, true)
	if err != nil {
		return nil, err
	}
	return &trackedRows{rows: r, tx: t}, nil
}

// begin parses, waits for the injected latency, and runs s in a transaction
// of its own.
func (b *Backend) begin(ctx context.Context, s driver.Statement, tracked bool) (*rows, *tx, error) {
	if err := b.db.reach(ctx); err != nil {
		return nil, nil, err
	}
	st, err := parse(s.Text)
	switch {
	case err != nil:
		return nil, nil, err
	case st.verb == verbControl:
		return nil, nil, refuse("%s is not a statement for this engine", st.word)
	case st.outside && tracked:
		return nil, nil, refuse("a nontx statement cannot run in a transaction")
	}
	params, err := bind(st, s.Params)
	if err != nil {
		return nil, nil, err
	}
	stop := func() {}
	if s.Timeout > 0 {
		ctx, stop = context.WithTimeoutCause(ctx, s.Timeout, errTimeout)
	}
	t := b.db.begin(s.ReadOnly, tracked)
	r, err := t.run(ctx, st, params)
	if err != nil {
		t.rollback()
		b.db.finished()
		stop()
		return nil, nil, err
	}
	r.ctx, r.stop = ctx, sync.OnceFunc(func() { stop(); b.db.finished() })
	return r, t, nil
}

func (db *DB) begin(readOnly, tracked bool) *tx {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.lastTx++
	db.stats.Statements++
	db.stats.Running++
	t := &tx{db: db, id: db.lastTx, readOnly: readOnly, tracked: tracked, latency: db.faults.Latency, writes: map[string]*table{}}
	db.live[t.id] = t
	return t
}

func (db *DB) finished() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.stats.Running--
}

// Outcome ends a transaction that is still in progress.
func (b *Backend) Outcome(ctx context.Context, token driver.Token) (driver.Outcome, error) {
	if err := b.db.reach(ctx); err != nil {
		return "", err
	}
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	_, n, _ := strings.Cut(string(token), ":")
	id, err := strconv.ParseUint(n, 10, 64)
	if err != nil || b.db.token(id) != token {
		return driver.Unknown, nil
	}
	if t := b.db.live[id]; t != nil && t.tracked {
		t.end(driver.Aborted)
	}
	return cmp.Or(b.db.outcomes[id], driver.Unknown), nil
}

// Explain tells the verb and the table that a statement would touch.
func (b *Backend) Explain(ctx context.Context, s driver.Statement) (json.RawMessage, error) {
	if err := b.db.reach(ctx); err != nil {
		return nil, err
	}
	st, err := parse(s.Text)
	if err != nil {
		return nil, err
	}
	if _, err := bind(st, s.Params); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"do":%s,"table":%s}`, quote(st.word), quote(cmp.Or(st.table, "none"))), nil
}

// Identity says that this is the engine in memory.
func (b *Backend) Identity(ctx context.Context) (driver.Identity, error) {
	return driver.Identity{Product: "memory", Version: "1", Facts: map[string]string{"read_only": "no"}}, b.db.reach(ctx)
}

// Provision creates a schema.
func (b *Backend) Provision(ctx context.Context, p driver.Provision) (driver.Provisioned, error) {
	if err := b.db.reach(ctx); err != nil {
		return driver.Provisioned{}, err
	}
	if p.Kind != "schema" || !identifier.MatchString(p.Name) {
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest,
			"this engine provisions a schema whose name is a plain word, not a %q named %q", p.Kind, p.Name).At("kind")
	}
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	done := driver.Provisioned{Created: !b.db.schemas[p.Name]}
	b.db.schemas[p.Name] = true
	return done, nil
}

// Count counts a table's rows.
func (b *Backend) Count(ctx context.Context, schema, name string, _ time.Duration) (int64, error) {
	t, err := b.lookup(ctx, schema, name)
	if err != nil {
		return 0, err
	}
	return int64(len(t.rows)), nil
}

func (b *Backend) lookup(ctx context.Context, schema, name string) (*table, error) {
	if err := b.db.reach(ctx); err != nil {
		return nil, err
	}
	t := b.db.table(cmp.Or(schema, mainSchema) + "." + name)
	if t == nil {
		return nil, athena.Errorf(athena.CodeNotFound, "table %q does not exist", name)
	}
	return t, nil
}

// Schemas lists "main" and what was provisioned.
func (b *Backend) Schemas(ctx context.Context) ([]driver.Schema, error) {
	if err := b.db.reach(ctx); err != nil {
		return nil, err
	}
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	list := []driver.Schema{}
	for _, name := range slices.Sorted(maps.Keys(b.db.schemas)) {
		list = append(list, driver.Schema{Name: name})
	}
	return list, nil
}

// Tables lists the tables of one schema, or of all.
func (b *Backend) Tables(ctx context.Context, schema string) ([]driver.Table, error) {
	if err := b.db.reach(ctx); err != nil {
		return nil, err
	}
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	list := []driver.Table{}
	for _, name := range slices.Sorted(maps.Keys(b.db.tables)) {
		in, bare := split(name)
		if schema == "" || schema == in {
			list = append(list, driver.Table{Schema: in, Name: bare, Kind: "table", EstimatedRows: int64(len(b.db.tables[name].rows))})
		}
	}
	return list, nil
}

// Columns describes a table's columns.
func (b *Backend) Columns(ctx context.Context, schema, name string) ([]driver.ColumnInfo, error) {
	t, err := b.lookup(ctx, schema, name)
	if err != nil {
		return nil, err
	}
	list := []driver.ColumnInfo{}
	for i, c := range t.columns {
		info := driver.ColumnInfo{Name: c.name, Position: i + 1, Type: c.typ, Nullable: !c.key}
		if c.key {
			info.PrimaryKey = 1
		}
		list = append(list, info)
	}
	return list, nil
}

// Constraints lists the primary key, if there is one.
func (b *Backend) Constraints(ctx context.Context, schema, name string) ([]driver.Constraint, error) {
	t, err := b.lookup(ctx, schema, name)
	if err != nil {
		return nil, err
	}
	list := []driver.Constraint{}
	for _, c := range t.columns {
		if c.key {
			list = append(list, driver.Constraint{Name: name + "_pkey", Kind: "primary_key", Columns: []string{c.name}, Definition: "primary key (" + c.name + ")"})
		}
	}
	return list, nil
}

// Indexes lists the primary key's index, if there is one.
func (b *Backend) Indexes(ctx context.Context, schema, name string) ([]driver.Index, error) {
	keys, err := b.Constraints(ctx, schema, name)
	if err != nil {
		return nil, err
	}
	list := []driver.Index{}
	for _, k := range keys {
		list = append(list, driver.Index{Name: k.Name, Method: "scan", Unique: true, Primary: true, Columns: k.Columns, Definition: k.Definition})
	}
	return list, nil
}

// Migrations reads the table schema_migrations in the form of golang-migrate.
func (b *Backend) Migrations(ctx context.Context) (driver.Migrations, error) {
	m := driver.Migrations{Applied: []driver.Migration{}}
	if err := b.db.reach(ctx); err != nil {
		return m, err
	}
	t := b.db.table(qualify("schema_migrations"))
	if t == nil || t.index("version") != 0 {
		m.Message = "no table schema_migrations (version, …) was found"
		return m, nil
	}
	m.Tool, m.Table = "golang-migrate", "schema_migrations"
	for _, row := range t.rows {
		m.Applied = append(m.Applied, driver.Migration{Version: unquote(row[0])})
	}
	return m, nil
}
