package scylla

import (
	"context"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A tuple has its parts as parameters of their own, since gocql has no value for it as
// a whole; a null one stands in the text.

// bindValue appends what stands for a value in a statement, and its arguments.
func bindValue(text []byte, args []any, t gocql.TypeInfo, c *cell) ([]byte, []any) {
	tuple, ok := t.(gocql.TupleTypeInfo)
	switch {
	case !ok:
		return append(text, '?'), append(args, c)
	case c.data == nil:
		return append(text, "null"...), args
	}
	rest := c.data
	for i, elem := range tuple.Elems {
		var value []byte
		if len(rest) > 0 {
			value, rest, _ = cutValue(rest)
		}
		text = append(text, [...]string{"(", ", "}[min(i, 1)]...)
		text, args = bindValue(text, args, elem, &cell{value})
	}
	return append(text, ')'), args
}

// values encodes a row; a nil cell is of a column whose value is not known. It reports
// false if the row is rejected.
func (w *writing) values(i int) ([]*cell, bool) {
	columns := w.rows.columns
	cells := make([]cell, len(columns))
	list := make([]*cell, len(columns))
	for n, c := range columns {
		v := w.vectors[w.rows.from[n]]
		switch {
		case v.Absent(i):
			continue
		case v.Null(i):
		default:
			start := len(w.buf)
			buf, problem := c.append(w.buf, v, i)
			if problem == noValue {
				break
			}
			if problem != "" {
				w.reject(i, c.name, "column %q %s", c.name, problem)
				return nil, false
			}
			w.buf = buf
			cells[n].data = w.buf[start:len(w.buf):len(w.buf)]
		}
		list[n] = &cells[n]
	}
	return list, true
}

// identify looks at the key of a row: its partition, and whether it has all of it, or
// that of the partition alone. It reports false if the row is rejected.
func (w *writing) identify(i int, list []*cell) (partition string, whole, ok bool) {
	var id []byte
	whole = true
	for n, k := range w.rows.key {
		c := w.rows.columns[k]
		switch {
		case list[k] == nil && n >= w.rows.parts:
			whole = false
		case list[k] == nil:
			w.reject(i, c.name, "column %q is of the partition key, and the row does not have it", c.name)
			return "", false, false
		case list[k].data == nil:
			w.reject(i, c.name, "column %q is null, and it is part of the key", c.name)
			return "", false, false
		case n < w.rows.parts:
			id = appendSized(id, list[k].data)
		}
	}
	return string(id), whole, true
}

// add puts a write behind those of its partition.
func (w *writing) add(partition string, x write) {
	p := w.by[partition]
	if p == nil {
		p = &partitionWrites{}
		w.by[partition] = p
		w.order = append(w.order, p)
	}
	p.writes = append(p.writes, x)
}

// put writes a row. One that is patched is not made to be there by its key alone.
func (w *writing) put(i int, at, ttl int64, patch bool) {
	list, ok := w.values(i)
	if !ok {
		return
	}
	partition, whole, ok := w.identify(i, list)
	if !ok {
		return
	}
	if !whole {
		if !w.shared(i, list) {
			return
		}
		patch = true
	}
	if _, own := w.rowTime(i); !own && (!w.changes || w.rows.logs) {
		at = w.batchTime(list)
	}
	x := write{row: i, size: 64}
	if whole && w.changes && !w.rows.logs && !w.b.Changes[i].Blind() {
		if n := w.lacks(i); n >= 0 {
			x.exists, x.key = w.look(list, nil)
			x.lacks = w.rows.columns[n].name
			patch = true
		}
	}
	if patch {
		x.text, x.args = w.update(list, at, ttl, !whole)
	}
	if x.text == "" && whole {
		x.text, x.args = w.insert(list, at, ttl)
	}
	if x.text == "" {
		return // a partition without a row and without a value is nothing
	}
	for _, c := range list {
		if c != nil {
			x.size += len(c.data) + 8
		}
	}
	w.add(partition, x)
}

// shared reports whether a row without clustering columns has static ones alone, which
// all rows of its partition share; else it is rejected.
func (w *writing) shared(i int, list []*cell) bool {
	column := ""
	for n, c := range list {
		to := w.rows.columns[n]
		if c == nil && to.kind == kindClustering {
			column = to.name
		}
		if c != nil && to.kind != kindPartitionKey && to.kind != kindStatic {
			w.reject(i, column, "column %q is part of the key, and the row does not have it", column)
			return false
		}
	}
	return true
}

// batchTime is the time of a row of a batch, by how often its key has come (law 2).
func (w *writing) batchTime(list []*cell) int64 {
	var id []byte
	for _, k := range w.rows.key {
		if list[k] != nil {
			id = appendSized(id, list[k].data)
		}
	}
	at := w.base + w.repeats[string(id)]
	w.repeats[string(id)]++
	w.tx.clock = max(w.tx.clock, at)
	return at
}

// Texts of statements are made once for each sort, but where a tuple makes them differ.
func (w *writing) text(sort string, build func() string) string {
	if w.rows.tuples {
		return build()
	}
	s, ok := w.tx.texts[sort]
	if !ok {
		s = build()
		w.tx.texts[sort] = s
	}
	return s
}

// using gives the time of a write, and how long it lives.
func using(at, ttl int64) (string, []any) {
	if ttl > 0 {
		return " USING TIMESTAMP ? AND TTL ?", []any{at, int32(min(ttl, mostTTL))}
	}
	return " USING TIMESTAMP ?", []any{at}
}

// mostTTL is the longest time to live that CQL has, 20 years.
const mostTTL = 20 * 365 * 86400

// insert makes the row be there, with the values that are known.
func (w *writing) insert(list []*cell, at, ttl int64) (string, []any) {
	clause, tail := using(at, ttl)
	args := make([]any, 0, len(list)+2)
	if !w.rows.tuples {
		for _, c := range list {
			args = append(args, argument(c))
		}
		return w.text("insert"+clause, func() string {
			names := make([]string, len(w.rows.columns))
			for n, c := range w.rows.columns {
				names[n] = c.name
			}
			return "INSERT INTO " + w.tx.table.from() + " (" + quoteAll(names) + ") VALUES (" + strings.TrimSuffix(strings.Repeat("?, ", len(names)), ", ") + ")" + clause
		}), append(args, tail...)
	}
	var names []string
	var values []byte
	for n, c := range list {
		if c == nil {
			continue
		}
		if len(names) > 0 {
			values = append(values, ", "...)
		}
		names = append(names, w.rows.columns[n].name)
		values, args = bindValue(values, args, w.rows.columns[n].typ, c)
	}
	return "INSERT INTO " + w.tx.table.from() + " (" + quoteAll(names) + ") VALUES (" + string(values) + ")" + clause, append(args, tail...)
}

// argument is the argument for a value that may not be known.
func argument(c *cell) any {
	if c == nil {
		return gocql.UnsetValue
	}
	return c
}

// update sets the values that are known, of a row or of what its partition shares;
// empty if there are none.
func (w *writing) update(list []*cell, at, ttl int64, shared bool) (string, []any) {
	clause, args := using(at, ttl)
	var set []byte
	static, regular := false, false
	for n, c := range list {
		to := w.rows.columns[n]
		if to.key() || shared && to.kind != kindStatic || c == nil && (w.rows.tuples || to.kind == kindStatic) {
			continue
		}
		static, regular = static || to.kind == kindStatic, regular || to.kind == kindRegular
		if len(set) > 0 {
			set = append(set, ", "...)
		}
		set = append(append(set, quoteName(to.name)...), " = "...)
		if c == nil {
			set, args = append(set, '?'), append(args, gocql.UnsetValue)
		} else {
			set, args = bindValue(set, args, to.typ, c)
		}
	}
	if !regular && !static {
		return "", nil
	}
	var where []byte
	where, args = w.where(nil, args, list, !regular)
	return "UPDATE " + w.tx.table.from() + clause + " SET " + string(set) + " WHERE " + string(where), args
}

// where names a row by its key, or its partition; columns that are not known are left
// out.
func (w *writing) where(text []byte, args []any, list []*cell, partition bool) ([]byte, []any) {
	for n, k := range w.rows.key {
		if list[k] == nil || partition && n >= w.rows.parts {
			continue
		}
		if len(text) > 0 {
			text = append(text, " AND "...)
		}
		c := w.rows.columns[k]
		text = append(append(text, quoteName(c.name)...), " = "...)
		text, args = bindValue(text, args, c.typ, list[k])
	}
	return text, args
}

// look asks for a row by its key, and for columns of it.
func (w *writing) look(list []*cell, columns []string) (string, []any) {
	if columns == nil {
		columns = []string{w.rows.columns[w.rows.key[0]].name}
	}
	where, args := w.where(nil, nil, list, false)
	return "SELECT " + quoteAll(columns) + " FROM " + w.tx.table.from() + " WHERE " + string(where) + " LIMIT 1", args
}

// keyOf encodes the key of a row that is deleted.
func (w *writing) keyOf(i int) ([]*cell, bool) {
	list := make([]*cell, len(w.rows.columns))
	for _, k := range w.rows.key {
		c := w.rows.columns[k]
		v := w.vectors[w.rows.from[k]]
		switch {
		case v.Absent(i):
			continue
		case v.Null(i):
			list[k] = &cell{}
			continue
		}
		data, problem := c.append(nil, v, i)
		if problem == noValue {
			data, problem = nil, ""
		}
		if problem != "" {
			w.reject(i, c.name, "column %q %s", c.name, problem)
			return nil, false
		}
		list[k] = &cell{data}
	}
	return list, true
}

// erase deletes a row.
func (w *writing) erase(i int, at int64) {
	list, ok := w.keyOf(i)
	if !ok {
		return
	}
	partition, whole, ok := w.identify(i, list)
	if !ok {
		return
	}
	if !whole {
		w.reject(i, "", "a row is deleted, and not all of its key is known")
		return
	}
	w.add(partition, w.deletion(i, list, at, nil, nil))
}

// deletion deletes what a key names, within bounds.
func (w *writing) deletion(i int, list []*cell, at int64, bounds []string, within []any) write {
	clause, args := using(at, 0)
	where, args := w.where(nil, args, list, false)
	for _, b := range bounds {
		where = append(append(where, " AND "...), b...)
	}
	return write{row: i, size: 128, text: "DELETE FROM " + w.tx.table.from() + clause + " WHERE " + string(where), args: append(args, within...)}
}

// eraseMany deletes the rows of a partition that a change names: those whose clustering
// columns are equal up to one, and lie within bounds there, as CQL deletes them.
func (w *writing) eraseMany(i int, change *record.Change, at int64) {
	list, ok := w.keyOf(i)
	if !ok {
		return
	}
	partition, _, ok := w.identify(i, list)
	if !ok {
		return
	}
	for n, c := range w.rows.columns {
		if !c.key() && !w.vectors[w.rows.from[n]].Absent(i) {
			w.reject(i, c.name, "many rows are deleted by column %q, which is not part of the key", c.name)
			return
		}
	}
	gap := "" // the first clustering column that is not equal
	for _, k := range w.rows.key[w.rows.parts:] {
		name := w.rows.columns[k].name
		if list[k] == nil && gap == "" {
			gap = name
		}
		if list[k] != nil && gap != "" {
			w.reject(i, name, "many rows are deleted by column %q, and not by %q, which comes before it in the key", name, gap)
			return
		}
	}
	var bounds []string
	var args []any
	conditions, err := conditions(w.tx.table, change.Where)
	if err != nil {
		w.reject(i, "", "%s", err)
		return
	}
	for _, c := range conditions {
		if c.column.name != gap || c.column.typ.Type() == tupleType || !strings.Contains("< <= > >=", c.op) {
			w.reject(i, c.column.name, "many rows are deleted within bounds of column %q, by which CQL cannot delete them here", c.column.name)
			return
		}
		bounds = append(bounds, quoteName(c.column.name)+" "+c.op+" ?")
		args = append(args, &cell{c.raw[0]})
	}
	w.add(partition, w.deletion(i, list, at, bounds, args))
}

// move takes a row from one key to another, with the values that the change does not
// give. The old row goes when the new one is there, and stays if that is refused. Where
// the new one is there already, so that what is found under the old key may be another
// row by now, what the change gives is written again.
func (w *writing) move(ctx context.Context, from, to int, at int64) error {
	if err := w.flush(ctx); err != nil {
		return err
	}
	old, ok := w.keyOf(from)
	if !ok {
		return nil
	}
	partition, whole, ok := w.identify(from, old)
	if !ok || !whole {
		return nil
	}
	list, ok := w.values(to)
	if !ok {
		return nil
	}
	target, whole, ok := w.identify(to, list)
	if !ok || !whole {
		return nil
	}
	var names []string
	var places []int
	for n, c := range list {
		if c == nil {
			names, places = append(names, w.rows.columns[n].name), append(places, n)
		}
	}
	after := w.changeTime(to, &w.b.Changes[to])
	text, args := w.look(old, names)
	raw := make([]rawValue, len(names))
	found, err := w.read(ctx, text, args, raw)
	if err != nil {
		return err
	}
	exists, key := w.look(list, nil)
	there, err := w.there(ctx, write{exists: exists, key: key})
	if err != nil {
		return err
	}
	if !there {
		if !found {
			w.reject(to, names[0], "the row is not in the table under its old key, and the change does not have the value of column %q, which it did not touch; have its source log whole rows (PostgreSQL: REPLICA IDENTITY FULL)", names[0])
			return nil
		}
		for n, place := range places {
			list[place] = &cell{raw[n].data}
		}
	}
	x := write{row: to, size: 64}
	if x.text, x.args = w.update(list, after, w.ttl(to, 0, 0), false); !there || x.text == "" {
		x.text, x.args = w.insert(list, after, w.ttl(to, 0, 0))
	}
	w.add(target, x)
	rejected := len(w.rejected)
	if err := w.flush(ctx); err != nil || len(w.rejected) > rejected {
		return err
	}
	w.add(partition, w.deletion(from, old, at, nil, nil))
	return nil
}

// read reads one row's columns as they are on the wire.
func (w *writing) read(ctx context.Context, text string, args []any, into []rawValue) (found bool, err error) {
	err = w.tx.b.retry(ctx, func() error {
		iter := w.tx.b.session.Query(text, args...).WithContext(ctx).SetRequestTimeout(writeTimeout).Idempotent(true).Iter()
		wide := 0
		for _, c := range iter.Columns() {
			if t, ok := c.TypeInfo.(gocql.TupleTypeInfo); ok {
				wide += len(t.Elems) - 1
			}
		}
		plainTuples(iter.Columns())
		dest := make([]any, len(into)+wide)
		for i := range into {
			dest[i] = &into[i]
		}
		found = iter.NumRows() > 0 && iter.Scan(dest...)
		for i := range into { // the page goes with the iterator
			into[i].data = clone(into[i].data)
		}
		return iter.Close()
	})
	return found, err
}

func clone(data []byte) []byte {
	if data == nil {
		return nil
	}
	return append([]byte{}, data...)
}

// empty deletes every partition that is there, at the time of the truncate: CQL's own
// TRUNCATE knows no time, and would take what was written after it.
func (w *writing) empty(ctx context.Context, at int64) error {
	m := w.tx.table
	key := m.of(kindPartitionKey)
	columns := make([]tableColumn, len(key))
	for i, name := range key {
		columns[i], _ = m.column(name)
	}
	s := &tableScan{from: m.name, schema: m.schema(columns), wanted: len(columns)}
	s.text = "SELECT DISTINCT " + quoteAll(key) + " FROM " + m.from()
	for _, c := range columns {
		s.decoders = append(s.decoders, newColumnDecoder(c.name, c.typ))
	}
	q := w.tx.b.session.Query(s.text).Idempotent(true)
	return w.tx.b.scan(ctx, q, s, driver.BatchSize{Rows: 1024}, func(b *record.Batch) error {
		gone := &writing{tx: w.tx, b: b, by: map[string]*partitionWrites{}}
		rows := &rowEncoder{schema: b.Schema, table: m, parts: len(key), time: -1, ttl: -1}
		for i, c := range columns {
			enc, _ := newColumnEncoder(c, s.schema.Columns[i].Type)
			rows.columns, rows.from, rows.key = append(rows.columns, enc), append(rows.from, i), append(rows.key, i)
			gone.vectors = append(gone.vectors, &b.Columns[i])
		}
		gone.rows = rows
		for i := range b.Rows() {
			if list, ok := gone.keyOf(i); ok {
				if partition, _, ok := gone.identify(i, list); ok {
					gone.add(partition, gone.deletion(i, list, at, nil, nil))
				}
			}
		}
		return gone.flush(ctx)
	})
}
