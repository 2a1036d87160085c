package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// An upsert applies rows in their order, as if one by one, but many at a time: of
// the rows of one key between two truncates only what they come to is sent,
// deletes first. Where the server refuses that for a row's sake, the rows are
// halved and each half is applied: a single row is applied as it is, so only what
// is refused in its place is rejected, and the order of the rest is kept. What a
// later row of the batch undoes is never judged by the server.

// absentRow says why a row without some of its values cannot be inserted.
const absentRow = "the row is not in the table, and the change does not have the value of column %q, which it did not touch; REPLICA IDENTITY FULL makes the source give it"

// A step is what the rows of one key come to.
type step struct {
	clear bool // delete the row that is there
	row   int  // then write this one; -1 is none
	// from has for each column the row that its value comes from, where they are
	// several; -1 is one whose value is not known.
	from []int32
	last int // the row that the step ends with
	// blind says that the row is to be made if there is none.
	blind bool
}

// upsert applies the batch's encoded rows.
func (tx *tableTx) upsert(ctx context.Context, w *rowWriter, b *record.Batch) error {
	return tx.applyRange(ctx, w, b, 0, len(w.rows))
}

func (tx *tableTx) applyRange(ctx context.Context, w *rowWriter, b *record.Batch, from, to int) error {
	if from >= to {
		return nil
	}
	err := tx.apply(ctx, w, b, from, to)
	e := rowProblem(err)
	if e == nil {
		return err
	}
	if err := tx.undo(ctx); err != nil {
		return err
	}
	middle := (from + to) / 2
	if w.paired(b, middle) { // a delete and the row that it makes room for stay together
		middle++
	}
	if middle >= to && w.paired(b, to-1) {
		middle = to - 2
	}
	if to-from == 1 || middle <= from || middle >= to {
		w.refuse(int(w.rows[to-1]), e)
		return nil
	}
	if err := tx.applyRange(ctx, w, b, from, middle); err != nil {
		return err
	}
	return tx.applyRange(ctx, w, b, middle, to)
}

// bound readies what restricts a delete of many rows, and reports false if the row is
// rejected: it would delete others than its source did.
func (w *rowWriter) bound(row int, c *record.Change) bool {
	refuse := func(column, format string, args ...any) bool {
		w.reject(row, column, fmt.Sprintf(format, args...))
		return false
	}
	known := slices.ContainsFunc(w.vectors, func(v *record.Vector) bool { return !v.Absent(row) })
	if !known && len(c.Where) == 0 {
		return refuse("", "a delete of many rows names none of the columns that are written, so that it would delete them all")
	}
	list, err := conditions(w.table, c.Where)
	if err != nil {
		return refuse("", "%s", athena.AsError(err).Message)
	}
	for i, cond := range c.Where {
		at := slices.IndexFunc(w.columns, func(c *columnWriter) bool { return c.name == cond.Column })
		switch {
		case at < 0 || w.columns[at].from.Kind != record.Text:
		case w.columns[at].oid == textOID || w.columns[at].oid == varcharOID:
			list[i] += ` COLLATE "C"` // the source has the order of bytes
		default:
			return refuse(cond.Column, "a delete of many rows goes by the order of column %q, which as %s has another one", cond.Column, w.columns[at].native)
		}
	}
	if w.bounds == nil {
		w.bounds = map[int][]string{}
	}
	w.bounds[row] = list
	return true
}

// paired reports whether an encoded row comes with the delete before it: both are
// one update, which changed the key.
func (w *rowWriter) paired(b *record.Batch, n int) bool {
	return w.changes && n > 0 && n < len(w.rows) && w.rows[n-1] == w.rows[n]-1 && b.Moves(int(w.rows[n-1]))
}

// apply sends what some rows come to. The savepoints are those of single
// statements: an error leaves what came before it, for undo to drop.
func (tx *tableTx) apply(ctx context.Context, w *rowWriter, b *record.Batch, from, to int) error {
	c := &compaction{w: w, b: b, steps: map[string]*step{}}
	script := &script{tx: tx, w: w}
	for n := from; n < to; n++ {
		op := cdc.Insert
		if w.changes {
			op = b.Changes[w.rows[n]].Op
		}
		if w.changes && b.Changes[w.rows[n]].Many() {
			c.flush(script)
			script.deleteMany(n)
			continue
		}
		if w.vague {
			kind := changeKind{op == cdc.Delete, w.partial(int(w.rows[n]))}
			if kind != c.kind || kind.partial && !kind.deletes {
				c.flush(script)
			}
			c.kind = kind
		}
		switch {
		case op == cdc.Truncate:
			c.steps, c.order = map[string]*step{}, nil // nothing of it would stay
			script.add(tx.emptying(), &arrayParams{}, nil)
		case op == cdc.Delete && n+1 < to && w.paired(b, n+1) && w.partial(int(w.rows[n+1])) && !w.system:
			c.flush(script)
			script.move(n, n+1)
			n++
		case op == cdc.Delete:
			c.delete(n)
		default:
			c.put(n)
		}
	}
	c.flush(script)
	return script.run(ctx)
}

// partial reports whether a row of the batch lacks values.
func (w *rowWriter) partial(row int) bool {
	return slices.ContainsFunc(w.vectors, func(v *record.Vector) bool { return v.Absent(row) })
}

// emptying is the statement that empties the table.
func (tx *tableTx) emptying() string {
	if tx.into.truncates {
		return "TRUNCATE " + quoteTable(tx.into.name)
	}
	return "DELETE FROM " + quoteTable(tx.into.name)
}

// A compaction gathers what rows come to, by key.
type compaction struct {
	w     *rowWriter
	b     *record.Batch
	steps map[string]*step
	order []*step
	key   []byte
	kind  changeKind // of all rows so far, where keys may be equal without being the same
}

// A changeKind tells apart changes that go into different statements.
type changeKind struct{ deletes, partial bool }

// step finds the step of a row's key.
func (c *compaction) step(n int) *step {
	c.key = c.key[:0]
	for _, k := range c.w.keys {
		c.key = c.w.columns[k].appendKey(c.key, c.w.value(n, k))
	}
	s := c.steps[string(c.key)]
	if s == nil {
		s = &step{row: -1}
		c.steps[string(c.key)] = s
		c.order = append(c.order, s)
	}
	s.last = n
	return s
}

func (c *compaction) delete(n int) {
	s := c.step(n)
	s.clear, s.row, s.from = true, -1, nil
}

func (c *compaction) put(n int) {
	s := c.step(n)
	before := s.row
	s.row = n
	if !c.w.partial(int(c.w.rows[n])) {
		s.from = nil
		return
	}
	s.blind = c.w.changes && c.b.Changes[c.w.rows[n]].Blind()
	was := s.from
	s.from = make([]int32, len(c.w.columns))
	for i := range c.w.columns {
		switch {
		case !c.w.vectors[i].Absent(int(c.w.rows[n])):
			s.from[i] = int32(n)
		case was != nil:
			s.from[i] = was[i]
		case before >= 0:
			s.from[i] = int32(before)
		default:
			s.from[i] = -1
		}
	}
	if !slices.Contains(s.from, -1) && !s.mixed() {
		s.from = nil
	}
}

func (s *step) mixed() bool {
	return slices.ContainsFunc(s.from, func(n int32) bool { return n != int32(s.row) })
}

// value is where a step's value of a column is.
func (s *step) value(w *rowWriter, column int) []byte {
	if s.from != nil {
		return w.value(int(s.from[column]), column)
	}
	return w.value(s.row, column)
}

// flush adds the statements of all steps to a script.
func (c *compaction) flush(to *script) {
	if len(c.order) == 0 {
		return
	}
	var clear []*step
	groups := map[string][]*step{} // by the columns whose values are known
	var names []string
	slices.SortStableFunc(c.order, func(a, b *step) int { return a.last - b.last })
	for _, s := range c.order {
		if s.clear {
			clear = append(clear, s)
		}
		if s.row < 0 {
			continue
		}
		name := s.lacks()
		if name != "" && s.blind {
			name = "blind " + name
		}
		if groups[name] == nil {
			names = append(names, name)
		}
		groups[name] = append(groups[name], s)
	}
	to.delete(clear)
	for _, name := range names {
		if name == "" || groups[name][0].blind {
			to.upsert(groups[name])
		} else {
			to.update(groups[name])
		}
	}
	c.steps, c.order = map[string]*step{}, nil
}

// lacks names the columns whose values are not known; empty if all are.
func (s *step) lacks() string {
	if s.from == nil || !slices.Contains(s.from, -1) {
		return ""
	}
	var b strings.Builder
	for i, n := range s.from {
		if n < 0 {
			b.WriteString(strconv.Itoa(i))
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// A script is statements that are run one after the other in one savepoint.
type script struct {
	tx         *tableTx
	w          *rowWriter
	statements []scripted
}

type scripted struct {
	sql    string
	params *arrayParams
	steps  []*step // of which each must be met, where there are any
	met    []bool
}

func (s *script) add(sql string, p *arrayParams, must []*step) {
	s.statements = append(s.statements, scripted{sql: sql, params: p, steps: must, met: make([]bool, len(must))})
}

// keyMatch compares the key of the table t with that of source.
func (w *rowWriter) keyMatch() string {
	list := make([]string, len(w.keys))
	for i, k := range w.keys {
		list[i] = "t." + quoteName(w.columns[k].name) + " = " + w.expression(k)
	}
	return strings.Join(list, " AND ")
}

// params makes the arrays of some columns of steps.
func (s *script) params(columns []int, steps []*step, value func(st *step, column int) []byte) *arrayParams {
	p := &arrayParams{}
	for _, c := range columns {
		p.add(s.w.columns[c].wire, len(steps), func(i int) []byte { return value(steps[i], c) })
	}
	return p
}

func (s *script) delete(steps []*step) {
	if len(steps) == 0 {
		return
	}
	p := s.params(s.w.keys, steps, func(st *step, c int) []byte { return s.w.value(st.last, c) })
	s.add("DELETE FROM "+quoteTable(s.w.table.name)+" t USING "+s.w.source(s.w.keys)+" WHERE "+s.w.keyMatch(), p, nil)
}

func (s *script) upsert(steps []*step) {
	w := s.w
	var columns []int // that are known
	var keys, set []string
	for _, k := range w.keys {
		keys = append(keys, quoteName(w.columns[k].name))
	}
	for i, c := range w.columns {
		if from := steps[0].from; from != nil && from[i] < 0 {
			continue
		}
		columns = append(columns, i)
		if !c.key && c.identity != "a" {
			name := quoteName(c.name)
			set = append(set, name+" = excluded."+name)
		}
	}
	p := s.params(columns, steps, func(st *step, c int) []byte { return st.value(w, c) })
	sql := w.insertStatement(columns) + " ON CONFLICT (" + strings.Join(keys, ", ") + ") DO "
	if len(set) == 0 {
		sql += "NOTHING"
	} else {
		sql += "UPDATE SET " + strings.Join(set, ", ")
	}
	s.add(sql, p, nil)
}

// update changes the known columns of rows that must be there.
func (s *script) update(steps []*step) {
	w := s.w
	var columns []int
	var set []string
	for i, c := range w.columns {
		if steps[0].from[i] < 0 {
			continue
		}
		columns = append(columns, i)
		if !c.key && c.identity != "a" {
			set = append(set, quoteName(c.name)+" = "+w.expression(i))
		}
	}
	if len(set) == 0 { // only the key is known: it stays as it is
		k := w.keys[0]
		set = append(set, quoteName(w.columns[k].name)+" = "+w.expression(k))
	}
	p := s.params(columns, steps, func(st *step, c int) []byte { return st.value(w, c) })
	s.add("UPDATE "+quoteTable(w.table.name)+" t SET "+strings.Join(set, ", ")+" FROM "+w.source(columns)+" WHERE "+w.keyMatch()+" RETURNING s.n", p, steps)
}

// deleteMany deletes the rows that a change names by what they share.
func (s *script) deleteMany(n int) {
	w := s.w
	row := int(w.rows[n])
	p := &arrayParams{}
	where := slices.Clone(w.bounds[row])
	for i, c := range w.columns {
		if !w.vectors[i].Absent(row) {
			where = append(where, quoteName(c.name)+" = "+s.parameter(p, n, i))
		}
	}
	s.add("DELETE FROM "+quoteTable(w.table.name)+" WHERE "+strings.Join(where, " AND "), p, nil)
}

// parameter adds one value of an encoded row to the parameters, and is an expression
// for it in the type of its column.
func (s *script) parameter(p *arrayParams, n, column int) string {
	c := s.w.columns[column]
	elem := "text"
	if c.wire == c.oid {
		elem = c.element()
	}
	p.add(c.wire, 1, func(int) []byte { return s.w.value(n, column) })
	return "($" + strconv.Itoa(len(p.values)) + "::" + elem + "[])[1]::" + c.native
}

// move applies an update that changed the key and left some values untouched.
func (s *script) move(from, to int) {
	w := s.w
	var columns []int
	var set, where []string
	row := int(w.rows[to])
	p := &arrayParams{}
	for i, c := range w.columns {
		if w.vectors[i].Absent(row) || c.identity == "a" && !c.key {
			continue
		}
		columns = append(columns, i)
		set = append(set, quoteName(c.name)+" = "+w.expression(i))
		p.add(c.wire, 1, func(int) []byte { return w.value(to, i) })
	}
	for _, k := range w.keys { // the old key, behind the others
		where = append(where, "t."+quoteName(w.columns[k].name)+" = "+s.parameter(p, from, k))
	}
	st := &step{row: to, last: to}
	s.add("UPDATE "+quoteTable(w.table.name)+" t SET "+strings.Join(set, ", ")+" FROM "+w.source(columns)+" WHERE "+strings.Join(where, " AND ")+" RETURNING s.n", p, []*step{st})
}

// run runs the statements. Rows that were to be there and are not are rejected.
func (s *script) run(ctx context.Context) error {
	if len(s.statements) == 0 {
		return nil
	}
	pl := s.tx.conn.PgConn().StartPipeline(ctx)
	pl.SendQueryParams(savepoint, nil, nil, nil, nil)
	for _, st := range s.statements {
		pl.SendQueryParams(st.sql, st.params.values, st.params.oids, st.params.formats, nil)
	}
	pl.SendQueryParams(keepRows, nil, nil, nil, nil)
	err := drain(pl, len(s.statements)+2, func(n int, values [][]byte) {
		if at, err := strconv.Atoi(string(bytes.TrimSpace(values[0]))); err == nil {
			s.statements[n-1].met[at-1] = true
		}
	})
	if err != nil {
		return err
	}
	for _, st := range s.statements {
		for i, met := range st.met {
			if !met {
				s.w.missing(st.steps[i])
			}
		}
	}
	return nil
}

// missing rejects the row of a step whose row is not in the table.
func (w *rowWriter) missing(s *step) {
	row := int(w.rows[s.row])
	for i, c := range w.columns {
		if w.vectors[i].Absent(row) {
			w.reject(row, c.name, strings.Replace(absentRow, "%q", strconv.Quote(c.name), 1))
			return
		}
	}
	w.reject(row, "", "the row is not in the table, and not all of its values are known")
}
