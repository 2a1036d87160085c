package judge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A replica plays changes into a database.
type replica struct {
	conn    *pgx.Conn
	lenient bool // what a change is about may have been changed already by later ones
	report  func(string, ...any)
	kinds   kinds
	tables  map[string]map[string]column // by schema.table and name

	batch  *pgconn.Batch
	queued []queued
}

// A column's type, as a number and as SQL.
type column struct {
	oid uint32
	sql string
}

// A queued statement has to touch a row, if it says so.
type queued struct {
	touch bool
	what  string
}

func openReplica(ctx context.Context, dsn string, report func(string, ...any)) (*replica, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	// No foreign keys or triggers, and nothing that waits for the disk.
	for _, stmt := range []string{"set session_replication_role = replica", "set synchronous_commit = off", "set TimeZone = 'UTC'", "set IntervalStyle = 'iso_8601'"} {
		if _, err := conn.Exec(ctx, stmt); err != nil {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	r := &replica{conn: conn, report: report}
	if err := r.forget(ctx); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return r, nil
}

// forget reads the catalog anew.
func (r *replica) forget(ctx context.Context) (err error) {
	r.tables = map[string]map[string]column{}
	r.kinds, err = readKinds(ctx, r.conn)
	return err
}

func (r *replica) columns(ctx context.Context, schema, table string) (map[string]column, error) {
	name := pgx.Identifier{schema, table}.Sanitize()
	if c := r.tables[name]; c != nil {
		return c, nil
	}
	found := map[string]column{}
	rows, err := r.conn.Query(ctx, "select attname, atttypid, format_type(atttypid, atttypmod) from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped", name)
	if err != nil {
		return nil, err
	}
	var attribute string
	var c column
	if _, err := pgx.ForEachRow(rows, []any{&attribute, &c.oid, &c.sql}, func() error { found[attribute] = c; return nil }); err != nil {
		return nil, err
	}
	r.tables[name] = found
	return found, nil
}

// row is a JSON object by column, in the order of the names, as SQL takes it.
type row struct {
	names  []string
	types  []string
	values [][]byte
}

func (r *replica) row(ctx context.Context, c *cdc.Change, raw json.RawMessage) (row, error) {
	var object map[string]json.RawMessage
	if len(raw) == 0 {
		return row{}, nil
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return row{}, err
	}
	columns, err := r.columns(ctx, c.Schema, c.Table)
	if err != nil {
		return row{}, err
	}
	var out row
	for _, name := range slices.Sorted(maps.Keys(object)) {
		column, ok := columns[name]
		if !ok {
			return row{}, fmt.Errorf("there is no column %q", name)
		}
		var text []byte
		// JSON's null in a column of JSON is rare, and SQL's common: the tables
		// that are judged hold only the latter.
		if string(object[name]) != "null" {
			if text, err = r.kinds.literal(column.oid, object[name]); err != nil {
				return row{}, fmt.Errorf("column %q: %w", name, err)
			}
		}
		out.names, out.types, out.values = append(out.names, name), append(out.types, column.sql), append(out.values, text)
	}
	return out, nil
}

const flushAt = 500

// apply plays one change. An error is the replica's; what a change has wrong is
// reported.
func (r *replica) apply(ctx context.Context, c *cdc.Change) error {
	what := fmt.Sprintf("%s of %s.%s at %s", c.Op, c.Schema, c.Table, c.Pos)
	table := pgx.Identifier{c.Schema, c.Table}.Sanitize()
	var rows [3]row
	for i, raw := range []json.RawMessage{c.Key, c.Before, c.After} {
		var err error
		if rows[i], err = r.row(ctx, c, raw); err != nil {
			r.report("%s cannot be played: %v", what, err)
			return nil
		}
	}
	key, before, after := rows[0], rows[1], rows[2]
	keyed := len(key.names) > 0
	switch c.Op {
	case cdc.Insert, cdc.Read:
		if len(after.names) == 0 {
			r.report("%s has no columns", what)
			return nil
		}
		if keyed && (r.lenient || c.Op == cdc.Read) {
			r.upsert(table, key, after, what)
		} else {
			r.add(true, what, "insert into "+table+" ("+list(after.names)+") values ("+places(after.names)+")", after.values)
		}
	case cdc.Update:
		was := before
		if keyed {
			was = pick(before, key) // the key as it was, if that changed
			r.moved(table, was, key, what)
		} else if len(before.names) == 0 {
			r.report("%s does not say of which row", what)
			return nil
		}
		if len(after.names) > 0 {
			r.add(!r.lenient, what,
				"update "+table+" set "+assign(after.names, 1)+" where "+which(table, was, keyed, len(after.names)+1),
				append(slices.Clone(after.values), was.values...))
		}
		if keyed && r.lenient {
			r.upsert(table, key, after, what)
		}
	case cdc.Delete:
		was := key
		if !keyed {
			was = before
		}
		if len(was.names) == 0 {
			r.report("%s does not say of which row", what)
			return nil
		}
		r.add(!r.lenient, what, "delete from "+table+" where "+which(table, was, keyed, 1), was.values)
	case cdc.Truncate:
		r.add(false, what, "truncate "+table, nil)
	default:
		r.report("nobody knows what a %q is", c.Op)
	}
	if len(r.queued) >= flushAt {
		return r.flush(ctx)
	}
	return nil
}

// pick returns the columns of key, with before's values where it has them.
func pick(before, key row) row {
	out := row{key.names, key.types, slices.Clone(key.values)}
	for i, name := range key.names {
		if at := slices.Index(before.names, name); at >= 0 {
			out.values[i] = before.values[at]
		}
	}
	return out
}

// moved makes room for a row that gets another key, where later changes may
// have put it already.
func (r *replica) moved(table string, was, is row, what string) {
	if !r.lenient || slices.EqualFunc(was.values, is.values, func(a, b []byte) bool { return string(a) == string(b) }) {
		return
	}
	n := len(was.names)
	r.add(false, what, "delete from "+table+" where "+match(was.names, 1)+" and exists (select 1 from "+table+" where "+match(is.names, n+1)+")",
		append(slices.Clone(was.values), is.values...))
}

func (r *replica) upsert(table string, key, after row, what string) {
	set := join(after.names, ", ", func(_ int, name string) string { return ident(name) + " = excluded." + ident(name) })
	r.add(true, what, "insert into "+table+" ("+list(after.names)+") values ("+places(after.names)+") on conflict ("+list(key.names)+") do update set "+set, after.values)
}

// which tells one row: by its key, or among equal ones any.
func which(table string, is row, keyed bool, from int) string {
	if keyed {
		return match(is.names, from)
	}
	return "ctid = (select ctid from " + table + " where " + join(is.names, " and ", func(i int, name string) string {
		return fmt.Sprintf("%s::text is not distinct from cast($%d as %s)::text", ident(name), from+i, is.types[i])
	}) + " limit 1)"
}

func (r *replica) add(touch bool, what, sql string, values [][]byte) {
	if r.batch == nil {
		r.batch = &pgconn.Batch{}
	}
	r.batch.ExecParams(sql, values, nil, nil, nil)
	r.queued = append(r.queued, queued{touch, what})
}

// flush plays what is queued, and reports each statement that did not do what
// it had to.
func (r *replica) flush(ctx context.Context) error {
	batch, queue := r.batch, r.queued
	r.batch, r.queued = nil, nil
	if len(queue) == 0 {
		return nil
	}
	results, err := r.conn.PgConn().ExecBatch(ctx, batch).ReadAll()
	for i, result := range results {
		if result.Err == nil && queue[i].touch && result.CommandTag.RowsAffected() != 1 {
			r.report("%s touched %d rows of the replica", queue[i].what, result.CommandTag.RowsAffected())
		}
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		what := queue[min(len(results), len(queue)-1)].what
		return fmt.Errorf("the replica refused %s: %w", what, err)
	}
	return err
}

// define runs a statement that changes tables.
func (r *replica) define(ctx context.Context, sql string) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	if _, err := r.conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return r.forget(ctx)
}

// empty truncates all tables.
func (r *replica) empty(ctx context.Context) error {
	return r.define(ctx, `do $$ declare t regclass; begin
		for t in select c.oid from pg_class c where relkind in ('r', 'p') and relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
		loop execute format('truncate %s', t); end loop; end $$`)
}

// shaped says what is wrong with a schema change, which must describe a table
// as it is.
func (r *replica) shaped(ctx context.Context, c *cdc.Change) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	name := pgx.Identifier{c.Schema, c.Table}.Sanitize()
	rows, err := r.conn.Query(ctx, `
		select a.attname, format_type(a.atttypid, null), coalesce(a.attnum = any(i.indkey), false)
		from pg_attribute a join pg_class c on c.oid = a.attrelid
		left join pg_index i on i.indrelid = c.oid and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end
		where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped order by a.attnum`, name)
	if err != nil {
		return err
	}
	want, err := pgx.CollectRows(rows, pgx.RowToStructByPos[cdc.Column])
	if err != nil {
		return err
	}
	if !slices.Equal(c.Columns, want) {
		r.report("the schema change at %s says of %s that it is %v, and it is %v", c.Pos, name, c.Columns, want)
	}
	return nil
}

func (r *replica) close(ctx context.Context) error { return r.conn.Close(ctx) }

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

func join(names []string, sep string, form func(i int, name string) string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = form(i, n)
	}
	return strings.Join(out, sep)
}

func list(names []string) string {
	return join(names, ", ", func(_ int, n string) string { return ident(n) })
}

func places(names []string) string {
	return join(names, ", ", func(i int, _ string) string { return fmt.Sprintf("$%d", 1+i) })
}

func assign(names []string, from int) string {
	return join(names, ", ", func(i int, n string) string { return fmt.Sprintf("%s = $%d", ident(n), from+i) })
}

func match(names []string, from int) string {
	return join(names, " and ", func(i int, n string) string { return fmt.Sprintf("%s = $%d", ident(n), from+i) })
}
