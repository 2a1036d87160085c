package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A tableReader reads a table in chunks beside the stream. Each chunk is a
// transaction of its own that sees all that the stream has handed over. It
// orders by the columns of the identity's index, in the index's own order.
type tableReader struct {
	backend *Backend
	setup   driver.ChangeSetup
	name    driver.TableName
	where   string
	hidden  func(xidSnapshot) bool
	timeout time.Duration // of one chunk, for which the stream is held

	gate    *gate     // of the stream; nil if there is none
	waits   bool      // a transaction is open whose place the stream has not reached
	again   time.Time // when the next one may be tried
	conn    *pgx.Conn // nil until it is needed, and after a failure
	version int
	table   *published // as Columns last described it
	buf     []byte
}

// chunkTimeout bounds the reading of one chunk. A table without a key is one
// chunk, and takes what it takes.
const chunkTimeout = 5 * time.Minute

// placeAgain is the pause before another snapshot is taken where one had no place
// in the stream.
const placeAgain = 50 * time.Millisecond

// newSnapshotReader opens a reader of t. hidden reports whether the stream has
// handed over a transaction that the snapshot does not see.
func (b *Backend) newSnapshotReader(ctx context.Context, s driver.ChangeSetup, t driver.SnapshotTable, hidden func(xidSnapshot) bool) (*tableReader, error) {
	if err := checkCondition(t.Where); err != nil {
		return nil, err
	}
	r := &tableReader{backend: b, setup: s, name: t.Table, where: strings.TrimSpace(t.Where), hidden: hidden, timeout: chunkTimeout}
	if _, err := r.Total(ctx); err != nil { // which has the server parse the condition
		r.Close(ctx)
		return nil, err
	}
	return r, nil
}

// checkCondition refuses what would not stay within its parentheses, or take the
// parameters of the statement that it becomes a part of. All else is the
// server's to judge.
func checkCondition(where string) error {
	fail := func(why string) error {
		return athena.Errorf(athena.CodeInvalidRequest, "where %s; write one condition on the table's columns, such as total > 100", why).At("where")
	}
	if strings.IndexByte(where, 0) >= 0 {
		return fail("holds the character U+0000")
	}
	depth := 0
	for l := (&lexer{src: where}); ; {
		switch t := l.next(); {
		case t.kind == tokenEnd && depth == 0:
			return nil
		case t.kind == tokenEnd:
			return fail("has a parenthesis that is not closed")
		case t.kind == tokenBroken:
			return fail("has a string, an identifier or a comment that does not end")
		case t.kind != tokenOther:
		case t.text == ";":
			return fail("holds a semicolon")
		case len(t.text) > 1 && t.text[0] == '$':
			return fail("holds the parameter " + t.text)
		case t.text == "(":
			depth++
		case t.text == ")":
			if depth--; depth < 0 {
				return fail("closes a parenthesis that it did not open")
			}
		}
	}
}

// ready connects, and describes the table where that was not done yet.
func (r *tableReader) ready(ctx context.Context) (err error) {
	if r.conn == nil {
		if r.conn, err = r.backend.dial(ctx, r.setup.Client); err != nil {
			r.conn = nil
			return err
		}
		r.version = serverMajor(r.conn.PgConn()) * 10_000
	}
	if r.table != nil {
		return nil
	}
	publications, err := r.backend.publications(ctx, r.setup)
	if err != nil {
		return err
	}
	r.table, err = r.backend.published(ctx, r.conn, r.version, publications, r.name)
	return err
}

// broken gives the connection up after a failure, which it may be the cause of.
func (r *tableReader) broken(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, driver.ErrNotYet) {
		return err // nothing is broken
	}
	r.Close(ctx)
	var e *pgconn.PgError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &e) && e.Code == queryCanceled:
		return athena.Wrap(athena.CodeTimeout, err, "to read a chunk of %s took longer than %s; leave where out, or give it an index", r.name, r.timeout).At("where")
	case errors.As(err, &e) && r.where != "" && (strings.HasPrefix(e.Code, "42") || strings.HasPrefix(e.Code, "22")):
		return athena.Wrap(athena.CodeInvalidRequest, err, "where cannot be used: %s", clip(e.Message)).At("where").With("sqlstate", e.Code)
	}
	return err
}

// Columns describes the table as it is now. Next goes by what it said last.
func (r *tableReader) Columns(ctx context.Context) ([]cdc.Column, error) {
	r.table = nil
	if err := r.ready(ctx); err != nil {
		return nil, r.broken(ctx, err)
	}
	return r.table.rows.describe(&r.backend.types), nil
}

// conditions are those of the publication and of the caller.
func (r *tableReader) conditions() (list []string) {
	for _, c := range []string{r.table.filter, r.where} {
		if c != "" {
			list = append(list, "("+c+"\n)") // which ends a comment too
		}
	}
	return list
}

// statement is the SELECT of a chunk, without its parameters.
func (r *tableReader) statement(key []publishedColumn, after bool, most int) string {
	sql := "SELECT " + r.table.selected() + " FROM " + r.table.from()
	where := r.conditions()
	var names, params []string
	for i, c := range key {
		name := quoteName(c.name)
		if c.collation != "" {
			name += " COLLATE " + c.collation
		}
		names, params = append(names, name), append(params, fmt.Sprintf("$%d", i+1))
	}
	if after {
		where = append(where, "("+strings.Join(names, ", ")+") > ("+strings.Join(params, ", ")+")")
	}
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	if len(key) > 0 {
		sql += " ORDER BY " + strings.Join(names, ", ")
		if most > 0 {
			sql += fmt.Sprintf(" LIMIT %d", most)
		}
	}
	return sql
}

// Next reads a chunk. A table without a key is read in one, whatever most is.
func (r *tableReader) Next(ctx context.Context, after string, most int, row func(key, after []byte) error) (next string, err error) {
	next, err = r.next(ctx, after, most, row)
	return next, r.broken(ctx, err)
}

func (r *tableReader) next(ctx context.Context, after string, most int, row func(key, after []byte) error) (string, error) {
	if err := r.ready(ctx); err != nil {
		return "", err
	}
	key := r.table.key()
	params, err := keyParams(r.name, key, after)
	if err != nil {
		return "", err
	}
	if err := r.place(ctx, len(key) > 0); err != nil {
		return "", err
	}
	oids := make([]uint32, len(params))
	for i := range params {
		oids[i] = key[i].oid
	}
	result := r.conn.PgConn().ExecParams(ctx, r.statement(key, after != "", most), params, oids, nil, nil)
	last := make([]string, len(key))
	n := 0
	for result.NextRow() {
		values := result.Values()
		if n++; n == most {
			for i, c := range key {
				last[i] = string(values[c.index])
			}
		}
		if err := handRow(r.table.rows, &r.buf, values, row); err != nil {
			return "", err
		}
	}
	if _, err := result.Close(); err != nil {
		return "", err
	}
	if _, err := r.conn.PgConn().Exec(ctx, "COMMIT").ReadAll(); err != nil {
		return "", err
	}
	if len(key) == 0 || most <= 0 || n < most {
		return "", nil
	}
	text, err := json.Marshal(rowKey{keyNames(key), last})
	return string(text), err
}

// A rowKey says behind which row a chunk begins, and by which key that is meant.
type rowKey struct {
	Key    []string `json:"key"`
	Values []string `json:"values"` // their texts
}

func keyNames(key []publishedColumn) []string {
	names := make([]string, len(key))
	for i, c := range key {
		names[i] = fmt.Sprintf("%s %d %s", c.name, c.oid, c.collation)
	}
	return names
}

// keyParams reads what Next gave as the key of its last row.
func keyParams(name driver.TableName, key []publishedColumn, after string) (params [][]byte, err error) {
	if after == "" {
		return nil, nil
	}
	var k rowKey
	if err := json.Unmarshal([]byte(after), &k); err != nil || !slices.Equal(k.Key, keyNames(key)) || len(k.Values) != len(key) {
		return nil, athena.Errorf(athena.CodeConflict, "the key of %s is not the one by which its snapshot was read so far; start the snapshot again", name).At("table")
	}
	for _, t := range k.Values {
		params = append(params, []byte(t))
	}
	return params, nil
}

// place begins the transaction in which a chunk is read. Of a table without a key
// it fails with ErrNotYet until the stream is where the transaction's snapshot
// belongs.
func (r *tableReader) place(ctx context.Context, keyed bool) error {
	if !r.waits {
		if time.Now().Before(r.again) {
			return driver.ErrNotYet
		}
		if err := r.begin(ctx, keyed); err != nil || keyed || r.gate == nil {
			return err
		}
		rows, err := simpleQuery(ctx, r.conn.PgConn(), `SELECT pg_catalog.pg_current_snapshot()::text,
			CASE WHEN pg_catalog.pg_is_in_recovery() THEN '' ELSE (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::text END`)
		if err != nil || len(rows) != 1 {
			return fmt.Errorf("postgres: the place of a snapshot: %w", err)
		}
		if rows[0][1] == "" { // a standby does not say which transactions run
			return nil
		}
		seen, err := parseXIDs(rows[0][0])
		if err != nil {
			return err
		}
		until, err := strconv.ParseUint(rows[0][1], 10, 64)
		if err != nil {
			return err
		}
		r.gate.close(seen, until)
		r.waits = true
	}
	here, spoiled := r.gate.here()
	switch {
	case spoiled:
		r.gate.open()
		r.waits, r.again = false, time.Now().Add(placeAgain)
		if _, err := simpleQuery(ctx, r.conn.PgConn(), "ROLLBACK"); err != nil {
			return err
		}
		return driver.ErrNotYet
	case !here:
		return driver.ErrNotYet
	}
	r.gate.open()
	r.waits = false
	return nil
}

// begin begins a transaction that has in it all that the stream has handed over,
// and sees the table's rows.
//
// The log has a commit before other sessions see it: the transaction stays in
// progress for a moment, and with synchronous replication until the standbys
// have answered. A snapshot that has such a one in progress does not see what
// the stream has handed over, so another one is taken a little later. On a
// standby, which decodes only what it has replayed, there is no such moment.
func (r *tableReader) begin(ctx context.Context, bounded bool) error {
	timeout := "0"
	if bounded {
		timeout = milliseconds(r.timeout)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		rows, err := simpleQuery(ctx, r.conn.PgConn(), `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;
			SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = `+timeout+`; SELECT pg_catalog.pg_current_snapshot()::text`)
		if err != nil {
			return err
		}
		if len(rows) != 1 {
			return errors.New("postgres: there is no answer to pg_current_snapshot")
		}
		seen, err := parseXIDs(rows[0][0])
		if err != nil {
			return err
		}
		if !r.hidden(seen) {
			if same, err := r.locked(ctx); same || err != nil {
				return err
			}
		}
		if _, err := simpleQuery(ctx, r.conn.PgConn(), "ROLLBACK"); err != nil {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// locked takes the table's lock, and reports whether the rows lie where the
// transaction expects them. An ALTER TABLE that it waited for may have written
// all of them anew: a snapshot that was taken before sees none.
func (r *tableReader) locked(ctx context.Context) (same bool, err error) {
	if _, err := simpleQuery(ctx, r.conn.PgConn(), "SELECT FROM "+r.table.from()+" LIMIT 0"); err != nil {
		return false, err
	}
	if _, err := on(r.conn)(ctx, leavesOf+`SELECT coalesce(bool_and(pg_relation_filenode(oid) = relfilenode), true) FROM leaf`, []any{r.table.oid},
		func(rows pgx.Rows) error { return rows.Scan(&same) }); err != nil || !same {
		return false, err
	}
	told := r.table
	r.table = nil
	if err := r.ready(ctx); err != nil {
		return false, err
	}
	is := r.table
	r.table = told
	for _, c := range told.columns {
		if i := slices.IndexFunc(is.columns, func(o publishedColumn) bool { return o.name == c.name }); i >= 0 {
			c.index = i // others may have come
			if is.columns[i] == c {
				continue
			}
		}
		return false, driver.ErrTableChanged
	}
	if is.oid != told.oid {
		return false, driver.ErrTableChanged
	}
	return true, nil
}

// An xidSnapshot tells which transactions a snapshot sees: those before next
// that are not open. What is committing may be the newest of all, and then is
// not among the open ones, but stands at next or behind it.
type xidSnapshot struct {
	open []uint64
	next uint64
}

// parseXIDs reads a pg_snapshot: the oldest open transaction, next, and all that
// are open.
func parseXIDs(text string) (s xidSnapshot, err error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return s, fmt.Errorf("postgres: the answer to pg_current_snapshot is %q", text)
	}
	if s.next, err = strconv.ParseUint(parts[1], 10, 64); err != nil || parts[2] == "" {
		return s, err
	}
	for _, xid := range strings.Split(parts[2], ",") {
		n, err := strconv.ParseUint(xid, 10, 64)
		if err != nil {
			return s, err
		}
		s.open = append(s.open, n)
	}
	return s, nil
}

// Total is the planner's estimate.
func (r *tableReader) Total(ctx context.Context) (int64, error) {
	if err := r.ready(ctx); err != nil {
		return 0, r.broken(ctx, err)
	}
	n, err := r.planned(ctx)
	return n, r.broken(ctx, err)
}

func (r *tableReader) planned(ctx context.Context) (int64, error) {
	pc := r.conn.PgConn()
	if _, err := simpleQuery(ctx, pc, `BEGIN READ ONLY; SET LOCAL row_security = off`); err != nil {
		return 0, err
	}
	// The extended protocol takes one statement only.
	result := pc.ExecParams(ctx, "EXPLAIN (FORMAT JSON) "+r.statement(nil, false, 0), nil, nil, nil, nil).Read()
	if result.Err != nil {
		return 0, result.Err
	}
	if _, err := simpleQuery(ctx, pc, "COMMIT"); err != nil {
		return 0, err
	}
	var plan []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if len(result.Rows) != 1 || json.Unmarshal(result.Rows[0][0], &plan) != nil || len(plan) != 1 {
		return 0, errors.New("postgres: the plan is not understood")
	}
	return int64(plan[0].Plan.Rows), nil
}

// Close ends the connection.
func (r *tableReader) Close(context.Context) error {
	if r.waits {
		r.gate.open()
		r.waits = false
	}
	if r.conn != nil {
		hangUp(r.conn)
		r.conn = nil
	}
	return nil
}
