package scylla

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// WriteModes are those that need no transaction over several rows.
func (*Backend) WriteModes() []driver.WriteMode {
	return []driver.WriteMode{driver.Append, driver.Upsert}
}

// PlanTable holds a target against the keyspace, and changes nothing.
func (b *Backend) PlanTable(ctx context.Context, t driver.TableTarget) (driver.TablePlan, error) {
	p, err := b.plan(ctx, t)
	return p.TablePlan, err
}

// maxName is how many characters the name of a table has at most.
const maxName = 48

// checkTarget refuses what no cluster could make good.
func checkTarget(t driver.TableTarget) error {
	bad := func(path, format string, args ...any) error {
		return athena.Errorf(athena.CodeInvalidRequest, format, args...).At(path)
	}
	switch {
	case t.Mode != driver.Append && t.Mode != driver.Upsert && !t.Mode.Staged():
		return bad("mode", "mode %.40q is unknown; it must be append or upsert", t.Mode)
	case t.Mode == driver.Upsert && len(t.Key) == 0:
		return bad("key", "mode %s needs a key: the columns that tell rows apart", t.Mode)
	case t.Table.Schema == "" || t.Table.Table == "":
		return bad("table", "the table needs a keyspace and a name")
	case t.Schema == nil || len(t.Schema.Columns) == 0:
		return bad("schema", "the rows have no columns")
	}
	seen := map[string]bool{}
	for i, c := range targetColumns(t) {
		if c.Name == "" || seen[c.Name] {
			return bad("schema", "column %d is named %.80q; names of columns are not empty, and differ", i+1, c.Name)
		}
		seen[c.Name] = true
	}
	for _, k := range t.Key {
		if !seen[k] {
			return bad("key", "the rows have no column %.80q, which is part of the key", k)
		}
	}
	return nil
}

// targetColumns are the columns that are written.
func targetColumns(t driver.TableTarget) (list []record.Column) {
	if t.Changes && t.Mode == driver.Append {
		list = slices.Clone(driver.ChangeColumns)
	}
	for _, c := range t.Schema.Columns {
		if c.Name != t.WriteTime && c.Name != t.TTL {
			list = append(list, c)
		}
	}
	return list
}

// A planner gathers what a plan says.
type planner struct {
	driver.TablePlan
	t     driver.TableTarget
	table *tableMeta // nil if it is to be created
}

func (p *planner) problem(code, column, format string, args ...any) {
	p.Problems = append(p.Problems, driver.TableProblem{Code: code, Column: column, Message: fmt.Sprintf(format, args...)})
}

func (p *planner) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (b *Backend) plan(ctx context.Context, t driver.TableTarget) (*planner, error) {
	p := &planner{t: t}
	if err := checkTarget(t); err != nil {
		return p, err
	}
	if t.Mode.Staged() {
		p.problem("mode", "", "mode %s has its effect at once, for which CQL has no transaction; use upsert, or append", t.Mode)
	}
	p.timing()
	m, err := b.tableMeta(ctx, t.Table.Schema, t.Table.Table)
	var own *athena.Error
	switch {
	case errors.As(err, &own) && own.Code == athena.CodeNotFound:
		there, err := b.keyspaceThere(ctx, t.Table.Schema)
		if err != nil {
			return p, err
		}
		p.create(there)
		return p, nil
	case err != nil:
		return p, err
	}
	p.table = m
	p.kind()
	p.columns()
	p.key()
	p.behaviour()
	return p, nil
}

// timing looks at the columns that say when a row counts as written, and how long it
// lives.
func (p *planner) timing() {
	for _, f := range []struct {
		field, column string
		kinds         []record.Kind
	}{
		{"write_time", p.t.WriteTime, []record.Kind{record.Int, record.TimestampTZ, record.Timestamp}},
		{"ttl", p.t.TTL, []record.Kind{record.Int}},
	} {
		if f.column == "" {
			continue
		}
		i := p.t.Schema.Index(f.column)
		switch {
		case i < 0:
			p.problem("write_time", f.column, "the rows have no column %q, which %s names", f.column, f.field)
		case !slices.Contains(f.kinds, p.t.Schema.Columns[i].Type.Kind):
			p.problem("write_time", f.column, "column %q is of type %s; %s takes whole numbers (microseconds since 1970, seconds to live), or a timestamp of the time", f.column, p.t.Schema.Columns[i].Type, f.field)
		}
	}
}

func (b *Backend) keyspaceThere(ctx context.Context, keyspace string) (there bool, err error) {
	var name string
	err = b.catalog(ctx, "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?", []any{keyspace}, []any{&name}, func() error {
		there = true
		return nil
	})
	return there, err
}

// create plans the target's creation. Its key is the target's, that of the rows, or of
// a log the position; the first column is the partition key, and the others order the
// rows in it.
func (p *planner) create(keyspace bool) {
	t := p.t
	key := t.Key
	switch {
	case t.Changes && t.Mode == driver.Append:
		key = []string{driver.ChangeColumns[1].Name}
	case len(key) == 0:
		key = t.Schema.Key
	}
	switch {
	case !t.Create:
		p.problem("no_table", "", "there is no table %s; create it, or let it be created (create: true)", t.Table)
		return
	case !keyspace:
		p.problem("no_table", "", "there is no keyspace %q to create the table in; create it first", t.Table.Schema)
		return
	case len(t.Table.Table) > maxName:
		p.problem("no_table", "", "the name of a table has %d characters at most", maxName)
		return
	case len(key) == 0:
		p.problem("no_key", "", "a table of CQL needs a key, and no columns tell the rows apart; write in mode upsert with their names under key, or create the table first")
		return
	}
	var list []string
	for _, c := range targetColumns(t) {
		native := nativeType(c)
		list = append(list, quoteName(c.Name)+" "+native)
		p.Columns = append(p.Columns, driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: native, New: true})
		p.cut(c, native)
	}
	list = append(list, "PRIMARY KEY ("+quoteAll(key)+")")
	p.Creates = "CREATE TABLE " + quoteName(t.Table.Schema) + "." + quoteName(t.Table.Table) + " (\n\t" + strings.Join(list, ",\n\t") + "\n)"
	if len(key) > 1 {
		p.note("column %q alone is the partition key, and %s order the rows in each partition; create the table first to have it otherwise", key[0], strings.Join(key[1:], ", "))
	}
	p.behaviour()
}

// cut notes where a value loses what is finer than its column.
func (p *planner) cut(c record.Column, native string) {
	if native == "timestamp" && (c.Type.Kind == record.Timestamp || c.Type.Kind == record.TimestampTZ) {
		if t, err := (typeParser{}).parse(c.Native); err == nil && t.Type() == gocql.TypeTimestamp {
			return // it comes from such a column
		}
		p.note("column %q keeps milliseconds; what a time has beyond them is cut", c.Name)
	}
}

// kind refuses what takes no rows.
func (p *planner) kind() {
	switch {
	case p.table.view:
		p.problem("no_rows_of_mode", "", "%s is a materialized view; rows are written to the table that it is of", p.t.Table)
	case p.table.counter:
		p.problem("no_rows_of_mode", "", "%s is a table of counters, which are added to and not written", p.t.Table)
	case p.table.keyspace == "system" || strings.HasPrefix(p.table.keyspace, "system_"):
		p.problem("privilege", "", "%s is a table of the cluster's own", p.t.Table)
	}
}

// columns finds the place of each column.
func (p *planner) columns() {
	for _, c := range targetColumns(p.t) {
		to, ok := p.table.column(c.Name)
		if !ok {
			if !p.t.AddColumns {
				p.problem("no_column", c.Name, "%s has no column %q; add it, leave it out of the rows, or let columns be added (schema.columns: evolve)", p.t.Table, c.Name)
				continue
			}
			native := nativeType(c)
			p.Alters = append(p.Alters, "ALTER TABLE "+p.table.from()+" ADD "+quoteName(c.Name)+" "+native)
			p.Columns = append(p.Columns, driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: native, New: true})
			p.cut(c, native)
			continue
		}
		if _, problem := newColumnEncoder(to, c.Type); problem != "" {
			p.problem("column_type", c.Name, "column %q of %s %s", c.Name, p.t.Table, problem)
			continue
		}
		p.Columns = append(p.Columns, driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: to.text})
		p.cut(c, to.text)
	}
}

// key checks that the rows have what the table tells its rows apart by.
func (p *planner) key() {
	given := targetColumns(p.t)
	for _, c := range p.table.columns {
		if !c.key() || slices.ContainsFunc(given, func(o record.Column) bool { return o.Name == c.name }) {
			continue
		}
		what := "a clustering column"
		if c.kind == kindPartitionKey {
			what = "of the partition key"
		}
		p.problem("no_key", c.name, "column %q of %s is %s, without which no row can be written, and the rows do not have it; set it (transform set)", c.name, p.t.Table, what)
	}
	key := p.table.key()
	if p.t.Mode != driver.Upsert || len(p.Problems) > 0 {
		return
	}
	for _, k := range p.t.Key {
		if !slices.Contains(key, k) {
			p.problem("key_not_unique", k, "%s tells its rows apart by (%s), and not by %s; name these under key", p.t.Table, strings.Join(key, ", "), strings.Join(p.t.Key, ", "))
			return
		}
	}
	for _, k := range key {
		if !slices.Contains(p.t.Key, k) {
			p.problem("key_not_unique", k, "%s tells its rows apart by (%s), and the key that is given lacks %q", p.t.Table, strings.Join(key, ", "), k)
			return
		}
	}
}

// behaviour notes what the user may want to know.
func (p *planner) behaviour() {
	p.note("rows are seen as they come, and not when a task is done: CQL has no transaction over several rows")
	if p.t.Mode == driver.Append && !p.t.Changes {
		p.note("a row whose key is there already takes the place of that one")
	}
	if p.table != nil && p.table.ttl > 0 && p.t.TTL == "" {
		p.note("rows live %d s, as the table says", p.table.ttl)
	}
	p.note("how far a run is stands in %s.%s", quoteName(p.t.Table.Schema), checkpoints)
}

// PrepareTable makes what is missing. Problems of the plan are an error: nothing is
// made then.
func (b *Backend) PrepareTable(ctx context.Context, t driver.TableTarget) (driver.TablePlan, error) {
	p, err := b.plan(ctx, t)
	if err != nil {
		return p.TablePlan, err
	}
	if len(p.Problems) > 0 {
		return p.TablePlan, refusedPlan(t, p.TablePlan)
	}
	if err := b.prepareCheckpoints(ctx, t.Table.Schema); err != nil {
		return p.TablePlan, err
	}
	statements := slices.Clone(p.Alters)
	if p.Creates != "" {
		statements = append(statements, strings.Replace(p.Creates, "CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1))
	}
	for _, text := range statements {
		if err := b.alter(ctx, text); err != nil {
			// Another worker may have made it meanwhile.
			if now, again := b.plan(ctx, t); again != nil || len(now.Problems) > 0 || len(now.Alters) > 0 || now.Creates != "" {
				return p.TablePlan, err
			}
		}
	}
	return p.TablePlan, nil
}

// alter changes the schema, and waits until the nodes agree on it.
func (b *Backend) alter(ctx context.Context, text string) error {
	if err := b.session.Query(text).WithContext(ctx).SetRequestTimeout(schemaTimeout).Exec(); err != nil {
		return scanError(ctx, err)
	}
	return b.session.AwaitSchemaAgreement(ctx)
}

func refusedPlan(t driver.TableTarget, plan driver.TablePlan) error {
	messages := make([]string, len(plan.Problems))
	for i, p := range plan.Problems {
		messages[i] = p.Message
	}
	return athena.Errorf(athena.CodeInvalidRequest, "rows cannot be written to %s: %s", t.Table, strings.Join(messages, "; ")).At("table")
}

// FinishTable has nothing to do: no mode of CQL's is staged.
func (b *Backend) FinishTable(_ context.Context, t driver.TableTarget, _ driver.Checkpoint) (int64, error) {
	return 0, athena.Errorf(athena.CodeInvalidRequest, "mode %s has no staged rows that could take effect", t.Mode).At("mode")
}

// ForgetTable has nothing to drop.
func (*Backend) ForgetTable(context.Context, driver.TableTarget) error { return nil }
