// Package drivertest is the conformance suite of drivers: it checks the
// contract of pkg/driver, sentence by sentence, against a running engine. A
// driver that passes can be put under dispatch, the workers and the pipelines
// without a line of theirs being changed.
//
// The suite knows no engine. A Harness gives it the engine's own statements;
// what the harness claims and the backend does not implement is a failure, and
// so is the reverse: nothing is skipped.
package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Harness is what the suite must know of an engine.
type Harness struct {
	// Open opens a backend. All that it opens during one Run reach the same
	// data, which may be shared with other runs. The suite closes them.
	Open func(t *testing.T) driver.Backend

	// Claims are the capabilities that the backend must support, no more and
	// no less. The others say which optional interfaces without a capability
	// of their own it must implement, no more and no less.
	Claims                                athena.Capabilities
	Tracked, Explains, Counts, Identifies bool

	// Unreachable opens a backend whose engine does not answer. Either it
	// fails, or all that is asked of the backend does.
	Unreachable func(t *testing.T) (driver.Backend, error)

	// Secrets must never be shown: the password, and the DSN that holds it.
	Secrets []string

	// Schema is where a table is made whose name has no schema.
	Schema string

	// Provision is what Provision is asked to create, twice; it must not be
	// there at first. It is needed if provisioning is claimed.
	Provision driver.Provision

	// Running counts the statements of this harness's data that the engine
	// itself has running now, asked by another way than the backend. Nil says
	// that the engine cannot be told to end a statement: then one that was given
	// up may still have its effect.
	Running func(t *testing.T) int

	// Stall holds up all that is asked of the engine until the function that it
	// returns is called, once or more often. It is for engines without a statement
	// that takes long: with it Slow and SlowWrite are any read and any insert.
	Stall func(t *testing.T) (release func())

	// Rows is how many rows Generate can give; 0 is any number.
	Rows int

	// Upserts says that Insert writes over a row that has its key.
	Upserts bool

	// Uncounted says that the engine does not count what a write affects.
	Uncounted bool

	// Tables says in what tables are not as records have them.
	Tables Tables

	Statements Statements

	// Objects is needed if objects are claimed.
	Objects *Objects
}

// Tables says in what an engine's tables are not as records have them; the zero value
// is in nothing.
type Tables struct {
	// Kept is the type that a column of a type has that was created; nil is the same
	// for all. Where a decimal is kept without its digits, any number fits.
	Kept func(record.Type) record.Type
	// Milliseconds says that timestamps have these, and that what is finer is cut.
	Milliseconds bool
	// Loose says that rows are there before Commit, and stay without it.
	Loose bool
}

// Statements are written in the engine's language, with {t} for the name of a
// scratch table and $1, $2 or whatever the engine has for parameters.
type Statements struct {
	// Create makes {t} with id, a 64-bit integer and the primary key, and
	// name, a text that may be null. Setup comes after it: what HiddenWrite
	// needs. Drop removes {t} and what Setup made.
	Create string
	Setup  []string
	Drop   []string

	Insert          string // a row; parameters id, name; gives no rows
	InsertReturning string // the same, and gives the row back as id, name; empty if there is no such thing
	Select          string // id and name of the row with the id of parameter 1
	All             string // id and name of all rows
	Rename          string // sets the name of parameter 1 where the id is parameter 2, if there is one

	Generate   string // n rows, n being parameter 1, of at least 200 bytes each
	Slow       string // a read that takes 30 s or more
	SlowWrite  string // inserts parameters id, name and takes 30 s or more
	Duplicates string // one row of three columns, all named a
	MidError   string // a read that gives a row or more, and then query_failed
	Syntax     string // an error of syntax

	// HiddenWrite inserts a row into {t}, and the analyzer cannot see it:
	// a function that writes, called by a select. Empty if there is no such
	// thing in the engine.
	HiddenWrite string

	// Outside has an effect and cannot run in a transaction; {t} may stand in
	// it. Empty if the engine knows no such statement.
	Outside string

	// What Analyze must say of these texts, beyond the statements above.
	Reads, Writes, Refused []string

	// SetSession changes a setting of the session, and ShowSession gives one
	// row with its value as its only column. SessionValue is the JSON of the
	// value that SetSession sets, which no other statement may ever see. All
	// are empty if the engine has no such settings.
	SetSession, ShowSession, SessionValue string
}

// Run checks the contract.
func Run(t *testing.T, h Harness) {
	b := h.Open(t)
	s := &suite{Harness: h, b: b, other: h.Open(t)}
	t.Cleanup(func() {
		for _, b := range []driver.Backend{s.b, s.other} {
			if err := b.Close(context.Background()); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	t.Run("what is claimed is what is implemented", s.claims)
	t.Run("ping and close", s.lifecycle)
	t.Run("unreachable", s.unreachable)
	if _, ok := b.(driver.Querier); ok {
		t.Run("analyze", s.analyze)
		t.Run("params", s.params)
		t.Run("rows", s.rows)
		t.Run("errors", s.errors)
		t.Run("read only", s.readOnly)
		t.Run("cancel and timeout", s.interrupt)
		t.Run("many at once", s.concurrency)
		t.Run("sessions do not leak", s.sessions)
	}
	if tracked, ok := b.(driver.TrackedQuerier); ok {
		t.Run("tracked", func(t *testing.T) { s.tracked(t, tracked) })
	}
	if r, ok := b.(driver.SchemaReader); ok {
		t.Run("schema", func(t *testing.T) { s.schema(t, r) })
	}
	if r, ok := b.(driver.MigrationReader); ok {
		t.Run("migrations", func(t *testing.T) { s.migrations(t, r) })
	}
	if e, ok := b.(driver.Explainer); ok {
		t.Run("explain", func(t *testing.T) { s.explain(t, e) })
	}
	if c, ok := b.(driver.Counter); ok {
		t.Run("count", func(t *testing.T) { s.count(t, c) })
	}
	if _, ok := b.(driver.ObjectReader); ok {
		t.Run("objects", s.objects)
	}
	if _, ok := b.(driver.TableWriter); ok {
		t.Run("tables", s.tables)
	}
	if p, ok := b.(driver.Provisioner); ok {
		t.Run("provision", func(t *testing.T) { s.provision(t, p) })
	}
	if i, ok := b.(driver.Identifier); ok {
		t.Run("identity", func(t *testing.T) { s.identity(t, i) })
	}
}

type suite struct {
	Harness
	b, other driver.Backend // two handles to the same data
}

func (s *suite) claims(t *testing.T) {
	if got := driver.Supports(s.b); got != s.Claims {
		t.Errorf("the backend supports %q; the claim is %q", got, s.Claims)
	}
	claim := func(name string, claimed, implemented bool) {
		if claimed != implemented {
			t.Errorf("%s: claimed %v, implemented %v", name, claimed, implemented)
		}
	}
	_, tracked := s.b.(driver.TrackedQuerier)
	_, explains := s.b.(driver.Explainer)
	_, counts := s.b.(driver.Counter)
	_, identifies := s.b.(driver.Identifier)
	claim("TrackedQuerier", s.Tracked, tracked)
	claim("Explainer", s.Explains, explains)
	claim("Counter", s.Counts, counts)
	claim("Identifier", s.Identifies, identifies)
	if q, ok := s.b.(driver.Querier); ok && q.Language() != driver.SQL && q.Language() != driver.CQL {
		t.Errorf("Language() = %q, want a language of the contract", q.Language())
	}
}

func (s *suite) lifecycle(t *testing.T) {
	t.Run("a backend that is open answers", func(t *testing.T) {
		if err := s.b.Ping(t.Context()); err != nil {
			t.Errorf("Ping: %v", err)
		}
	})
	t.Run("a ping whose context is over fails", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.b.Ping(ctx); err == nil {
			t.Error("Ping succeeded with a cancelled context")
		}
	})
	t.Run("closing one handle leaves the others alone", func(t *testing.T) {
		b := s.Open(t)
		if err := b.Ping(t.Context()); err != nil {
			t.Fatalf("Ping: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := s.b.Ping(t.Context()); err != nil {
			t.Errorf("Ping of another handle: %v", err)
		}
	})
	t.Run("classify takes an error that it does not know", func(t *testing.T) {
		if f := s.b.Classify(errors.New("strange")); f.NoEffect {
			t.Error("an error of unknown kind was classified as without effect")
		}
	})
}

func (s *suite) unreachable(t *testing.T) {
	b, err := s.Unreachable(t)
	if err != nil {
		return // the resolver makes it backend_unavailable
	}
	defer b.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	check := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s succeeded", what)
		}
		f := s.failure(t, b, err)
		if f.Code != athena.CodeBackendUnavailable || !f.NoEffect {
			t.Errorf("%s: %v was classified as %q, no effect %v; want backend_unavailable, true", what, err, f.Code, f.NoEffect)
		}
	}
	check("Ping", b.Ping(ctx))
	if q, ok := b.(driver.Querier); ok {
		_, err := q.Query(ctx, driver.Statement{Text: s.Statements.Duplicates})
		check("Query", err)
	}
	if q, ok := b.(driver.TrackedQuerier); ok {
		_, err := q.QueryTracked(ctx, driver.Statement{Text: s.Statements.Duplicates})
		check("QueryTracked", err)
	}
	if w, ok := b.(driver.TableWriter); ok {
		_, err := w.DescribeTable(ctx, driver.TableName{Schema: s.Schema, Table: "x"})
		check("DescribeTable", err)
		_, err = w.BeginTable(ctx, driver.TableTarget{Table: driver.TableName{Schema: s.Schema, Table: "x"}, Mode: driver.Append, Schema: items})
		check("BeginTable", err)
	}
	if r, ok := b.(driver.TableReader); ok {
		check("ReadTable", r.ReadTable(ctx, driver.TableRead{Table: driver.TableName{Schema: s.Schema, Table: "x"}}, driver.TablePart{}, driver.BatchSize{}, func(*record.Batch) error { return nil }))
	}
	if r, ok := b.(driver.ObjectReader); ok {
		_, err := r.Objects(ctx, driver.ObjectList{})
		check("Objects", err)
	}
	if w, ok := b.(driver.ObjectWriter); ok {
		_, err := w.WriteObject(ctx, "unreachable", strings.NewReader("x"), driver.ObjectWrite{})
		check("WriteObject", err)
	}
}

// failure is what a caller would be told of err, and checks that it tells no
// secret.
func (s *suite) failure(t *testing.T, b driver.Backend, err error) driver.Failure {
	t.Helper()
	var own *athena.Error
	var f driver.Failure
	switch {
	case errors.As(err, &own):
		f = driver.Failure{Code: own.Code, Message: own.Message, Details: own.Details}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		f = driver.Failure{Code: athena.CodeOf(err)}
	default:
		f = b.Classify(err)
	}
	details, jsonErr := json.Marshal(f.Details)
	if jsonErr != nil {
		t.Errorf("the details of %v are not JSON: %v", err, jsonErr)
	}
	for _, secret := range s.Secrets {
		if strings.Contains(f.Message+string(details), secret) {
			t.Errorf("a secret is shown: %s %s", f.Message, details)
		}
	}
	return f
}

// wantCode fails the test unless err has the code.
func (s *suite) wantCode(t *testing.T, err error, want athena.Code) driver.Failure {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", want)
	}
	f := s.failure(t, s.b, err)
	if f.Code != want {
		t.Errorf("%v has the code %q, want %q", err, f.Code, want)
	}
	return f
}

func (s *suite) wantField(t *testing.T, err error, field string) {
	t.Helper()
	if f := s.wantCode(t, err, athena.CodeInvalidRequest); f.Details["field"] != field {
		t.Errorf("the error names the field %v, want %q", f.Details["field"], field)
	}
}

var tables atomic.Int64

// scratch makes a table for one test and returns the function that puts its
// name into statements.
func (s *suite) scratch(t *testing.T) (name string, in func(string) string) {
	t.Helper()
	name = fmt.Sprintf("dt_%d_%d", tables.Add(1), time.Now().UnixNano())
	in = func(text string) string { return strings.ReplaceAll(text, "{t}", name) }
	for _, text := range append([]string{s.Statements.Create}, s.Statements.Setup...) {
		s.must(t, in(text))
	}
	t.Cleanup(func() {
		for _, text := range s.Statements.Drop {
			if _, err := read(context.Background(), s.b, statement(in(text))); err != nil {
				t.Errorf("%s: %v", in(text), err)
			}
		}
	})
	return name, in
}

// A result is all that a statement gave.
type result struct {
	columns  []driver.Column
	rows     []map[string]json.RawMessage
	affected int64
}

// read runs a statement and reads its rows.
func read(ctx context.Context, b driver.Backend, st driver.Statement) (result, error) {
	rows, err := b.(driver.Querier).Query(ctx, st)
	if err != nil {
		return result{}, err
	}
	return drain(rows)
}

func drain(rows driver.Rows) (result, error) {
	res, err := drainOpen(rows)
	if closeErr := rows.Close(); !errors.Is(closeErr, err) {
		err = fmt.Errorf("rows end with %v from Close and %v from Err: they must agree", closeErr, err)
	}
	return res, err
}

// drainOpen reads all rows and leaves them open.
func drainOpen(rows driver.Rows) (result, error) {
	res := result{columns: rows.Columns()}
	for rows.Next() {
		raw := rows.AppendJSON(nil)
		var row map[string]json.RawMessage
		if err := json.Unmarshal(raw, &row); err != nil {
			return res, fmt.Errorf("AppendJSON gave %q: %w", raw, err)
		}
		if len(row) != len(res.columns) {
			return res, fmt.Errorf("AppendJSON gave %q, which has %d members for %d columns", raw, len(row), len(res.columns))
		}
		res.rows = append(res.rows, row)
	}
	res.affected = rows.RowsAffected()
	return res, rows.Err()
}

// must runs a statement on the first handle.
func (s *suite) must(t *testing.T, text string, params ...any) result {
	t.Helper()
	res, err := read(t.Context(), s.b, statement(text, params...))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return res
}

// statement makes one of Go values that encoding/json can write.
func statement(text string, params ...any) driver.Statement {
	st := driver.Statement{Text: text, Timeout: 20 * time.Second}
	for _, p := range params {
		raw, err := json.Marshal(p)
		if err != nil {
			panic(err) // a mistake in the suite
		}
		st.Params = append(st.Params, raw)
	}
	return st
}

// ids lists the ids that another handle sees in the table, sorted.
func (s *suite) ids(t *testing.T, in func(string) string) []string {
	t.Helper()
	res, err := read(context.WithoutCancel(t.Context()), s.other, statement(in(s.Statements.All)))
	if err != nil {
		t.Fatalf("reading the table: %v", err)
	}
	list := []string{}
	for _, row := range res.rows {
		list = append(list, string(row["id"]))
	}
	slices.Sort(list)
	return list
}

func (s *suite) wantIDs(t *testing.T, in func(string) string, want ...string) {
	t.Helper()
	if got := s.ids(t, in); !slices.Equal(got, want) {
		t.Errorf("the table holds the ids %v, want %v", got, want)
	}
}
