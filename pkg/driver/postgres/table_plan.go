package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// targetFacts is what else decides whether a table can be written to.
type targetFacts struct {
	owned, inserts, selects, updates, deletes bool
	uniques                                   []string // columns of each unique index, sorted: a, b
	referencedBy                              []string // constraints of other tables
	deferred                                  []string // constraints that are checked at commit
	references                                []string // foreign keys of the table itself
	triggers                                  []string
	numbered                                  []string // columns that a sequence fills
	schemaThere, creates                      bool     // the target's schema; we may create in it
	ownThere, ownUsable, ownCreatable         bool     // our schema
	checkpointsThere, checkpointsUsable       bool
	readOnly                                  bool // the server, or all transactions of the role
}

const targetFactsQuery = `
SELECT coalesce(pg_catalog.pg_has_role(c.relowner, 'USAGE'), false),
       coalesce(has_table_privilege(c.oid, 'INSERT'), false), coalesce(has_table_privilege(c.oid, 'SELECT'), false),
       coalesce(has_table_privilege(c.oid, 'UPDATE'), false), coalesce(has_table_privilege(c.oid, 'DELETE'), false),
       ARRAY(SELECT (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname COLLATE "C") FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (num)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num)
             FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
               AND i.indpred IS NULL AND i.indexprs IS NULL),
       ARRAY(SELECT format('%s of %s', quote_ident(k.conname), k.conrelid::regclass) FROM pg_catalog.pg_constraint k
             WHERE k.confrelid = c.oid AND k.conrelid <> c.oid AND k.contype = 'f' AND k.conparentid = 0 ORDER BY 1),
       ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.condeferred ORDER BY 1),
       ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f' ORDER BY 1),
       ARRAY(SELECT g.tgname::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A') ORDER BY 1),
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class q ON q.oid = d.objid AND q.relkind = 'S'
             JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.classid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.deptype IN ('a', 'i') ORDER BY 1),
       n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'CREATE'), false),
       own.oid IS NOT NULL, coalesce(has_schema_privilege(own.oid, 'USAGE') AND has_schema_privilege(own.oid, 'CREATE'), false), has_database_privilege(current_database(), 'CREATE'),
       p.oid IS NOT NULL, coalesce(has_table_privilege(p.oid, 'SELECT') AND has_table_privilege(p.oid, 'INSERT')
                                   AND has_table_privilege(p.oid, 'UPDATE') AND has_table_privilege(p.oid, 'DELETE'), false),
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool
FROM (SELECT) one
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = $2
LEFT JOIN pg_catalog.pg_namespace own ON own.nspname = '` + ownSchema + `'
LEFT JOIN pg_catalog.pg_class p ON p.relnamespace = own.oid AND p.relname = 'checkpoints'`

func factsOf(ctx context.Context, conn *pgx.Conn, t driver.TableName) (f targetFacts, err error) {
	_, err = on(conn)(ctx, targetFactsQuery, []any{t.Schema, t.Table}, func(rows pgx.Rows) error {
		return rows.Scan(&f.owned, &f.inserts, &f.selects, &f.updates, &f.deletes, &f.uniques, &f.referencedBy, &f.deferred, &f.references, &f.triggers, &f.numbered,
			&f.schemaThere, &f.creates, &f.ownThere, &f.ownUsable, &f.ownCreatable, &f.checkpointsThere, &f.checkpointsUsable, &f.readOnly)
	})
	return f, err
}

// PlanTable holds a target against the database, and changes nothing.
func (b *Backend) PlanTable(ctx context.Context, t driver.TableTarget) (driver.TablePlan, error) {
	if err := checkTarget(t); err != nil {
		return driver.TablePlan{}, err
	}
	conn, err := b.acquire(ctx)
	if err != nil {
		return driver.TablePlan{}, err
	}
	defer release(conn)
	p, err := b.plan(ctx, conn.Conn(), t)
	return p.TablePlan, err
}

// checkTarget refuses what no database could make good.
func checkTarget(t driver.TableTarget) error {
	bad := func(path, format string, args ...any) error {
		return athena.Errorf(athena.CodeInvalidRequest, format, args...).At(path)
	}
	switch t.Mode {
	case driver.Append, driver.Overwrite:
	case driver.Upsert, driver.Merge:
		if len(t.Key) == 0 {
			return bad("key", "mode %s needs a key: the columns that tell rows apart", t.Mode)
		}
	default:
		return bad("mode", "mode %.40q is unknown; it must be append, upsert, merge or overwrite", t.Mode)
	}
	switch {
	case t.Mode.Staged() && t.Changes:
		return bad("mode", "mode %s is for a source that ends; a stream of changes takes append or upsert", t.Mode)
	case t.Mode.Staged() && t.Run == "":
		return bad("run", "mode %s needs a run, which its staging table is named after", t.Mode)
	case t.Table.Table == "" || len(t.Table.Table) > maxName || len(t.Table.Schema) > maxName || strings.IndexByte(t.Table.Schema+t.Table.Table, 0) >= 0:
		return bad("table", "the table's name must have 1 to %d bytes, and so its schema's", maxName)
	case t.Schema == nil || len(t.Schema.Columns) == 0:
		return bad("schema", "the rows have no columns")
	}
	seen := map[string]bool{}
	for i, c := range targetColumns(t) {
		if c.Name == "" || len(c.Name) > maxName || strings.IndexByte(c.Name, 0) >= 0 || seen[c.Name] {
			return bad("schema", "column %d is named %.80q; names of columns have 1 to %d bytes, and differ", i+1, c.Name, maxName)
		}
		seen[c.Name] = true
	}
	for _, k := range t.Key {
		if t.Schema.Index(k) < 0 {
			return bad("key", "the rows have no column %.80q, which is part of the key", k)
		}
	}
	return nil
}

// targetColumns are the columns that are written.
func targetColumns(t driver.TableTarget) []record.Column {
	if t.Changes && t.Mode == driver.Append {
		list := slices.Concat(driver.ChangeColumns, t.Schema.Columns)
		for i := range list { // a delete has its key only, and a truncate nothing
			list[i].Nullable = list[i].Nullable || i >= len(driver.ChangeColumns)
		}
		return list
	}
	return t.Schema.Columns
}

// A planner gathers what a plan says.
type planner struct {
	driver.TablePlan
	t     driver.TableTarget
	facts targetFacts
	table *shape // nil if it is to be created
}

func (p *planner) problem(code, column, format string, args ...any) {
	p.Problems = append(p.Problems, driver.TableProblem{Code: code, Column: column, Message: fmt.Sprintf(format, args...)})
}

func (p *planner) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (b *Backend) plan(ctx context.Context, conn *pgx.Conn, t driver.TableTarget) (*planner, error) {
	p := &planner{t: t}
	var err error
	if p.facts, err = factsOf(ctx, conn, t.Table); err != nil {
		return p, err
	}
	p.table, err = b.shape(ctx, conn, t.Table)
	var own *athena.Error
	if errors.As(err, &own) && own.Code == athena.CodeNotFound {
		err = nil
	}
	if err != nil {
		return p, err
	}
	p.ownSchema()
	for _, f := range []struct{ name, column string }{{"write_time", t.WriteTime}, {"ttl", t.TTL}} {
		if f.column != "" {
			p.problem("write_time", f.column, "PostgreSQL knows no time of a write and no time to live of a value; leave %s out, and store the column", f.name)
		}
	}
	if p.table == nil {
		p.create()
		return p, nil
	}
	p.kind()
	p.columns()
	p.key()
	p.privileges()
	p.behaviour()
	if len(p.Problems) == 0 && len(p.Alters) == 0 && t.Mode != driver.Upsert && !t.Changes {
		columns := make([]shapeColumn, len(t.Schema.Columns))
		for i, c := range t.Schema.Columns {
			columns[i] = *p.table.column(c.Name)
		}
		p.CopyForm = copyForm(columns)
	}
	return p, nil
}

// ownSchema looks at what Athena itself needs in the database.
func (p *planner) ownSchema() {
	f := p.facts
	switch {
	case f.readOnly:
		p.problem("privilege", "", "the database takes no writes: it is a standby, or default_transaction_read_only is on; write to the primary, or ALTER ROLE … RESET default_transaction_read_only")
	case !f.ownThere && !f.ownCreatable:
		p.problem("privilege", "", "the schema %s, for checkpoints and staging tables, is not there, and the role may not create it; GRANT CREATE ON DATABASE … or CREATE SCHEMA %[1]s AUTHORIZATION …", ownSchema)
	case f.ownThere && !f.ownUsable && (!f.checkpointsThere || p.t.Mode.Staged()):
		p.problem("privilege", "", "the role may not create in the schema %s, where checkpoints and staging tables are; GRANT USAGE, CREATE ON SCHEMA %[1]s TO …", ownSchema)
	case f.checkpointsThere && !f.checkpointsUsable:
		p.problem("privilege", "", "the role may not write to %s; GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s TO …", checkpoints)
	}
}

// kind refuses what takes no rows.
func (p *planner) kind() {
	switch {
	case p.table.kind != "table" && p.table.kind != "partitioned_table":
		p.problem("no_rows_of_mode", "", "%s is a %s; rows are written to tables", p.t.Table, strings.ReplaceAll(p.table.kind, "_", " "))
	case p.t.Mode == driver.Overwrite && len(p.facts.referencedBy) > 0:
		p.problem("no_rows_of_mode", "", "%s is referenced by %s, so that its rows cannot be replaced at once; use mode merge", p.t.Table, p.facts.referencedBy[0])
	case p.t.Mode == driver.Overwrite && !p.table.truncates:
		p.note("all rows are deleted one by one, since TRUNCATE is not to be had")
	}
}

// columns finds the place of each column.
func (p *planner) columns() {
	for _, c := range targetColumns(p.t) {
		to := p.table.column(c.Name)
		if to == nil {
			if !p.t.AddColumns {
				p.problem("no_column", c.Name, "%s has no column %q; add it, leave it out of the rows, or let columns be added (schema.columns: evolve)", p.t.Table, c.Name)
				continue
			}
			native := nativeType(c)
			p.Alters = append(p.Alters, "ALTER TABLE "+quoteTable(p.t.Table)+" ADD COLUMN "+quoteName(c.Name)+" "+native)
			p.Columns = append(p.Columns, driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: native, New: true})
			continue
		}
		if to.generated != "" {
			p.problem("generated", c.Name, "column %q of %s is generated, and takes no values; leave it out of the rows", c.Name, p.t.Table)
			continue
		}
		mapping := driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: to.native}
		if wider := widened(to, c); wider != "" && p.t.WidenTypes {
			p.Alters = append(p.Alters, "ALTER TABLE "+quoteTable(p.t.Table)+" ALTER COLUMN "+quoteName(c.Name)+" TYPE "+wider)
			p.note("column %q becomes %s, for which the server may write the whole table anew under an exclusive lock", c.Name, wider)
			mapping.Native = wider
		} else if _, ok := newColumnWriter(to, c.Type); !ok {
			p.problem("column_type", c.Name, "column %q of %s is of type %s, which takes no values of type %s; cast them (transform cast), or write to another column", c.Name, p.t.Table, to.native, c.Type)
			continue
		}
		p.Columns = append(p.Columns, mapping)
	}
	for i := range p.table.columns {
		c := &p.table.columns[i]
		given := slices.ContainsFunc(targetColumns(p.t), func(o record.Column) bool { return o.Name == c.name })
		if !given && c.notNull && !c.defaults && c.generated == "" && c.identity == "" {
			p.problem("not_null", c.name, "column %q of %s takes no nulls and has no default, and the rows do not have it; give it a default, or set it (transform set)", c.name, p.t.Table)
		}
	}
}

// key checks that the server can tell rows apart by the key.
func (p *planner) key() {
	if len(p.t.Key) == 0 || p.t.Mode != driver.Upsert && p.t.Mode != driver.Merge {
		return
	}
	for _, k := range p.t.Key {
		if p.table.column(k) == nil {
			p.problem("no_key", k, "%s has no column %q, which is part of the key", p.t.Table, k)
			return
		}
	}
	names := slices.Sorted(slices.Values(p.t.Key))
	for i, n := range names {
		names[i] = quoteIdent(n)
	}
	if !slices.Contains(p.facts.uniques, strings.Join(names, ", ")) {
		p.problem("key_not_unique", "", "%s has no unique index on just %s; CREATE UNIQUE INDEX ON %s (%s)", p.t.Table, strings.Join(p.t.Key, ", "), quoteTable(p.t.Table), strings.Join(quoteAll(p.t.Key), ", "))
	}
}

// privileges checks what the mode does.
func (p *planner) privileges() {
	f := p.facts
	type need struct {
		has  bool
		name string
	}
	needs := []need{{f.inserts, "INSERT"}}
	if p.t.Mode != driver.Append {
		needs = append(needs, need{f.selects, "SELECT"})
	}
	if p.t.Mode == driver.Upsert || p.t.Mode == driver.Merge {
		needs = append(needs, need{f.updates, "UPDATE"})
	}
	if p.t.Mode == driver.Upsert && p.t.Changes || p.t.Mode == driver.Merge || p.t.Mode == driver.Overwrite && !p.table.truncates {
		needs = append(needs, need{f.deletes, "DELETE"})
	}
	var missing []string
	for _, n := range needs {
		if !n.has {
			missing = append(missing, n.name)
		}
	}
	if len(missing) > 0 {
		p.problem("privilege", "", "the role may not do all that mode %s does; GRANT %s ON %s TO …", p.t.Mode, strings.Join(missing, ", "), quoteTable(p.t.Table))
	}
	if len(p.Alters) > 0 && !f.owned {
		p.problem("privilege", "", "%s has to be altered, which only its owner may do", p.t.Table)
	}
	if p.table.secured && p.t.Mode.Staged() {
		p.problem("privilege", "", "row security hides rows of %s from the role, so that mode %s cannot replace them; ALTER ROLE … BYPASSRLS, or use mode upsert", p.t.Table, p.t.Mode)
	}
}

// behaviour notes what the user may want to know.
func (p *planner) behaviour() {
	if len(p.facts.triggers) > 0 {
		p.note("triggers fire for each row: %s", strings.Join(p.facts.triggers, ", "))
	}
	for _, c := range p.facts.numbered {
		if p.t.Schema.Index(c) >= 0 {
			p.note("column %q is given its values, and its sequence does not move: setval it before others insert rows", c)
		}
	}
	if len(p.facts.deferred) > 0 {
		p.note("constraints are checked at commit only, where a row that breaks one fails all rows of its transaction: %s", strings.Join(p.facts.deferred, ", "))
	}
	if len(p.facts.references) > 0 && p.t.Mode.Staged() {
		p.note("foreign keys are checked when the run finishes, where a row that breaks one fails it: %s", strings.Join(p.facts.references, ", "))
	}
	switch p.t.Mode {
	case driver.Overwrite:
		p.note("the rows are replaced in one transaction that has the table locked: readers wait from its TRUNCATE until its end")
	case driver.Merge:
		p.note("the rows are merged in one transaction, during which other writers to the table wait, and readers do not")
	}
}

// quoteIdent is the server's quote_ident, but for keywords.
func quoteIdent(name string) string {
	plain := name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && (name[0] < '0' || name[0] > '9')
	if plain {
		return name
	}
	return quoteName(name)
}
