package memory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	mainSchema = "main"
	null       = "null"
)

var (
	errWrites  = &Error{Code: athena.CodeQueryFailed, Text: "the statement writes and was to read only", cause: driver.ErrWrites}
	errTimeout = &Error{Code: athena.CodeTimeout, Text: "the statement ran into its timeout"}
	errLost    = &Error{Code: athena.CodeBackendUnavailable, Text: "the connection was lost"}
)

// A table is one version of a table. Values are JSON texts in one canonical
// form for each type, so that they compare with ==.
type table struct {
	columns []column
	rows    [][]string
}

type column struct {
	name, typ string
	key       bool
}

func (t *table) index(name string) int {
	return slices.IndexFunc(t.columns, func(c column) bool { return c.name == name })
}

func (t *table) describe() []driver.Column {
	list := make([]driver.Column, len(t.columns))
	for i, c := range t.columns {
		list[i] = driver.Column{Name: c.name, Type: c.typ}
	}
	return list
}

func qualify(name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return mainSchema + "." + name
}

func split(name string) (schema, bare string) {
	schema, bare, _ = strings.Cut(name, ".")
	return schema, bare
}

func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(s)
	return strings.TrimSuffix(b.String(), "\n")
}

func unquote(v string) string {
	var s string
	if json.Unmarshal([]byte(v), &s) != nil {
		return v
	}
	return s
}

// fit gives a JSON text its canonical form for a type; no type takes any.
func fit(v, typ string) (string, bool) {
	if v == null {
		return v, true
	}
	switch typ {
	case "int":
		n, err := strconv.ParseInt(v, 10, 64)
		return strconv.FormatInt(n, 10), err == nil
	case "bool":
		return v, v == "true" || v == "false"
	case "text":
		return quote(unquote(v)), v[0] == '"'
	}
	return v, true
}

func bind(s *stmt, params []json.RawMessage) ([]string, error) {
	if len(params) != s.params {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the statement wants %d parameters and got %d", s.params, len(params)).At("params")
	}
	bound := make([]string, len(params))
	for i, raw := range params {
		var b bytes.Buffer
		if err := json.Compact(&b, raw); err != nil {
			return nil, athena.Wrap(athena.CodeInvalidRequest, err, "parameter %d is not JSON", i+1).At(fmt.Sprintf("params[%d]", i))
		}
		bound[i] = b.String()
	}
	return bound, nil
}

// A tx is one transaction. It keeps new versions of the tables that it wrote
// to, and their locks, until it ends.
type tx struct {
	db       *DB
	id       uint64
	readOnly bool
	tracked  bool
	latency  time.Duration
	writes   map[string]*table // nil stands for a dropped table
	held     []chan struct{}
	params   []string
}

func (db *DB) token(id uint64) driver.Token {
	return driver.Token(db.id + ":" + strconv.FormatUint(id, 10))
}

func (t *tx) token() driver.Token { return t.db.token(t.id) }

// end settles the transaction, once; db.mu is held. It reports whether it was
// still in progress.
func (t *tx) end(o driver.Outcome) bool {
	if t.db.live[t.id] == nil {
		return false
	}
	delete(t.db.live, t.id)
	if t.tracked {
		t.db.outcomes[t.id] = o
	}
	if o == driver.Committed {
		for name, version := range t.writes {
			if version == nil {
				delete(t.db.tables, name)
			} else {
				t.db.tables[name] = version
			}
		}
	}
	for _, lock := range t.held {
		<-lock
	}
	return true
}

func (t *tx) commit() error {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	f := &t.db.faults
	if t.tracked && f.LoseBeforeCommit > 0 {
		f.LoseBeforeCommit--
		t.end(driver.Aborted)
		return errLost
	}
	if !t.end(driver.Committed) {
		return errLost // Outcome has ended it
	}
	if t.tracked && f.LoseAfterCommit > 0 {
		f.LoseAfterCommit--
		return errLost
	}
	return nil
}

func (t *tx) rollback() {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	t.end(driver.Aborted)
}

// lock gets the right to write a table. A transaction is one statement and
// mostly writes one table; two that wait for each other end by timeout.
func (t *tx) lock(ctx context.Context, name string) error {
	if t.readOnly {
		return errWrites
	}
	if _, mine := t.writes[name]; mine {
		return nil
	}
	t.db.mu.Lock()
	lock := t.db.locks[name]
	if lock == nil {
		lock = make(chan struct{}, 1)
		t.db.locks[name] = lock
	}
	t.db.mu.Unlock()
	select {
	case lock <- struct{}{}:
	case <-ctx.Done():
		return interrupted(ctx)
	}
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	if t.db.live[t.id] == nil { // Outcome has ended it meanwhile
		<-lock
		return errLost
	}
	t.held = append(t.held, lock)
	t.writes[name] = t.db.tables[name]
	return nil
}

func (t *tx) table(name string) (*table, error) {
	version, mine := t.writes[name]
	if !mine {
		version = t.db.table(name)
	}
	if version == nil {
		return nil, refuse("table %q does not exist", name)
	}
	return version, nil
}

// interrupted is the engine's own timeout, or the caller's context error.
func interrupted(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return errTimeout
	}
	return ctx.Err()
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	}
}

func (t *tx) run(ctx context.Context, s *stmt, params []string) (*rows, error) {
	if err := wait(ctx, t.latency); err != nil {
		return nil, err
	}
	t.params = params
	switch s.verb {
	case verbSelect:
		if s.table == "" {
			return t.selectValues(ctx, s)
		}
		return t.selectTable(ctx, s)
	case verbCreate, verbDrop:
		return t.define(ctx, s)
	}
	return t.change(ctx, s)
}

func (t *tx) define(ctx context.Context, s *stmt) (*rows, error) {
	if err := t.lock(ctx, s.table); err != nil {
		return nil, err
	}
	schema, _ := split(s.table)
	t.db.mu.Lock()
	known := t.db.schemas[schema]
	t.db.mu.Unlock()
	old := t.writes[s.table]
	switch {
	case !known:
		return nil, refuse("schema %q does not exist", schema)
	case s.verb == verbCreate && old != nil:
		return nil, refuse("table %q exists", s.table)
	case s.verb == verbDrop && old == nil:
		return nil, refuse("table %q does not exist", s.table)
	case s.verb == verbDrop:
		t.writes[s.table] = nil
	default:
		t.writes[s.table] = &table{columns: s.columns}
	}
	return newRows(nil), nil
}

// change inserts, updates or deletes, all at once.
func (t *tx) change(ctx context.Context, s *stmt) (*rows, error) {
	if err := t.lock(ctx, s.table); err != nil {
		return nil, err
	}
	old, err := t.table(s.table)
	if err != nil {
		return nil, err
	}
	var touched [][]string
	if s.verb == verbInsert {
		row, err := t.insert(ctx, s.table, exprs(s.items))
		if err != nil {
			return nil, err
		}
		touched = [][]string{row}
	} else {
		match, err := t.matcher(ctx, old, s.where)
		if err != nil {
			return nil, err
		}
		set, err := t.assignments(ctx, old, s.sets)
		if err != nil {
			return nil, err
		}
		version := &table{columns: old.columns}
		for _, row := range old.rows {
			if match(row) {
				row = slices.Clone(row)
				for i, v := range set {
					row[i] = v
				}
				touched = append(touched, row)
				if s.verb == verbDelete {
					continue
				}
			}
			if err := version.add(row); err != nil {
				return nil, err
			}
		}
		t.writes[s.table] = version
	}
	r := newRows(nil)
	if s.returning {
		r = newRows(old.describe())
		r.next = each(touched)
	}
	r.affected = int64(len(touched))
	return r, nil
}

func exprs(items []item) []expr {
	list := make([]expr, len(items))
	for i, it := range items {
		list[i] = it.expr
	}
	return list
}

func (t *tx) insert(ctx context.Context, name string, values []expr) ([]string, error) {
	old, err := t.table(name)
	if err != nil {
		return nil, err
	}
	if len(values) != len(old.columns) {
		return nil, refuse("table %q has %d columns, not %d", name, len(old.columns), len(values))
	}
	row := make([]string, len(values))
	for i, e := range values {
		if row[i], err = t.eval(ctx, e, old.columns[i].typ); err != nil {
			return nil, err
		}
	}
	// Rows beyond its length belong to no other version that is still read.
	version := &table{columns: old.columns, rows: old.rows}
	if err := version.add(row); err != nil {
		return nil, err
	}
	t.writes[name] = version
	return row, nil
}

func (t *table) add(row []string) error {
	for i, c := range t.columns {
		switch {
		case !c.key:
		case row[i] == null:
			return refuse("column %q is the primary key and cannot be null", c.name)
		case slices.ContainsFunc(t.rows, func(r []string) bool { return r[i] == row[i] }):
			return &Error{Code: athena.CodeConflict, Text: fmt.Sprintf("a row with the same %q exists", c.name)}
		}
	}
	t.rows = append(t.rows, row)
	return nil
}

// assignments evaluates name = expr pairs to values by the column's index.
func (t *tx) assignments(ctx context.Context, of *table, list []assign) (map[int]string, error) {
	set := map[int]string{}
	for _, a := range list {
		i := of.index(a.name)
		if i < 0 {
			return nil, refuse("column %q does not exist", a.name)
		}
		v, err := t.eval(ctx, a.expr, of.columns[i].typ)
		if err != nil {
			return nil, err
		}
		set[i] = v
	}
	return set, nil
}

func (t *tx) matcher(ctx context.Context, of *table, where []assign) (func([]string) bool, error) {
	want, err := t.assignments(ctx, of, where)
	return func(row []string) bool {
		for i, v := range want {
			if row[i] != v || v == null {
				return false
			}
		}
		return true
	}, err
}

func (t *tx) selectTable(ctx context.Context, s *stmt) (*rows, error) {
	from, err := t.table(s.table)
	if err != nil {
		return nil, err
	}
	match, err := t.matcher(ctx, from, s.where)
	if err != nil {
		return nil, err
	}
	if s.count {
		n := 0
		for _, row := range from.rows {
			if match(row) {
				n++
			}
		}
		r := newRows([]driver.Column{{Name: "count", Type: "int"}})
		r.next = each([][]string{{strconv.Itoa(n)}})
		return r, nil
	}
	all := from.describe()
	columns, pick := all, make([]int, 0, len(s.items))
	for _, it := range s.items {
		i := from.index(it.expr.name)
		if i < 0 {
			return nil, refuse("column %q does not exist", it.name)
		}
		pick = append(pick, i)
	}
	if !s.star {
		columns = nil
		for k, i := range pick {
			columns = append(columns, driver.Column{Name: s.items[k].name, Type: all[i].Type})
		}
	}
	r, source := newRows(columns), each(from.rows)
	r.next = func() ([]string, error) {
		for {
			row, err := source()
			switch {
			case row == nil || err != nil:
				return nil, err
			case !match(row):
			case s.star:
				return row, nil
			default:
				picked := make([]string, len(pick))
				for k, i := range pick {
					picked[k] = row[i]
				}
				return picked, nil
			}
		}
	}
	return r, nil
}

// selectValues runs a select without a table: one row of expressions, or the
// rows of generate or fail.
func (t *tx) selectValues(ctx context.Context, s *stmt) (*rows, error) {
	if e := s.items[0].expr; len(s.items) == 1 && (e.call == "generate" || e.call == "fail" && len(e.args) == 2) {
		return t.generate(ctx, e)
	}
	row, columns := make([]string, len(s.items)), make([]driver.Column, len(s.items))
	for i, it := range s.items {
		v, err := t.eval(ctx, it.expr, "")
		if err != nil {
			return nil, err
		}
		row[i], columns[i] = v, driver.Column{Name: it.name, Type: "json"}
		if it.name == "" {
			columns[i].Name = "value"
		}
	}
	r := newRows(columns)
	r.next = each([][]string{row})
	return r, nil
}

func (t *tx) generate(ctx context.Context, e expr) (*rows, error) {
	args, fails := e.args, e.call == "fail"
	if fails {
		args = args[1:]
	}
	var numbers [2]int
	for i, a := range args[:min(len(args), 2)] {
		v, err := t.eval(ctx, a, "int")
		if err != nil {
			return nil, err
		}
		numbers[i], _ = strconv.Atoi(v)
	}
	columns, filler := []driver.Column{{Name: "n", Type: "int"}}, quote(strings.Repeat("x", min(max(numbers[1], 0), 1<<20)))
	if !fails {
		columns = append(columns, driver.Column{Name: "filler", Type: "text"})
	}
	r, n := newRows(columns), 0
	r.next = func() ([]string, error) {
		switch n++; {
		case n <= numbers[0]:
			return []string{strconv.Itoa(n), filler}[:len(columns)], nil
		case fails:
			_, err := t.eval(ctx, expr{call: "fail", args: e.args[:1]}, "")
			return nil, err
		}
		return nil, nil
	}
	return r, nil
}

func (t *tx) eval(ctx context.Context, e expr, typ string) (string, error) {
	switch {
	case e.param > 0:
		v, ok := fit(t.params[e.param-1], typ)
		if !ok {
			return "", athena.Errorf(athena.CodeInvalidRequest, "parameter %d does not fit the type %s", e.param, typ).At(fmt.Sprintf("params[%d]", e.param-1))
		}
		return v, nil
	case e.name != "":
		return "", refuse("column %q is not known here", e.name)
	case e.call != "":
		return t.call(ctx, e)
	}
	v, ok := fit(e.literal, typ)
	if !ok {
		return "", refuse("%s does not fit the type %s", e.literal, typ)
	}
	return v, nil
}

func (t *tx) call(ctx context.Context, e expr) (string, error) {
	switch {
	case e.call == "sleep" && len(e.args) == 1:
		v, err := t.eval(ctx, e.args[0], "int")
		if err != nil {
			return "", err
		}
		ms, _ := strconv.ParseInt(v, 10, 64)
		return v, wait(ctx, time.Duration(min(ms, 1<<40))*time.Millisecond)
	case e.call == "fail" && len(e.args) == 1:
		v, err := t.eval(ctx, e.args[0], "text")
		if err != nil {
			return "", err
		}
		return "", &Error{Code: athena.Code(unquote(v)), Text: "the statement asked to fail"}
	case e.call == "put" && len(e.args) > 1 && e.args[0].name != "":
		name := qualify(e.args[0].name)
		if err := t.lock(ctx, name); err != nil {
			return "", err
		}
		row, err := t.insert(ctx, name, e.args[1:])
		if err != nil {
			return "", err
		}
		return row[0], nil
	}
	return "", refuse("there is no function %s of %d arguments", e.call, len(e.args))
}
