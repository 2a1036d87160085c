package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// sizePattern is the size in a type's name: numeric(12,2), timestamp(3) with time zone.
var sizePattern = regexp.MustCompile(`\(\d+(,-?\d+)?\)`)

// nativeType is the type of a new column: the one that the column has had in
// PostgreSQL, if it is built in and fits what the values are now; else one that
// takes them.
func nativeType(c record.Column) string {
	bare := sizePattern.ReplaceAllString(c.Native, "")
	for _, b := range builtins {
		if b.name != bare || !creatable(bare) {
			continue
		}
		t := recordType(static[b.oid], b.oid, -1)
		if t == c.Type || t.Kind == record.Decimal && c.Type.Kind == record.Decimal && b.oid == numericOID {
			if b.oid == numericOID || c.Native == "character" || c.Native == "bit" {
				break // its size is that of the values; without one these two would take a single character
			}
			return c.Native
		}
	}
	switch c.Type.Kind {
	case record.Bool:
		return "boolean"
	case record.Int:
		switch c.Type.Bits {
		case 16:
			return "smallint"
		case 32:
			return "integer"
		}
		return "bigint"
	case record.Float:
		if c.Type.Bits == 32 {
			return "real"
		}
		return "double precision"
	case record.Decimal:
		if c.Type.Precision > 0 {
			return strings.Replace(c.Type.String(), "decimal", "numeric", 1)
		}
		return "numeric"
	case record.Bytes:
		return "bytea"
	case record.Date:
		return "date"
	case record.Time:
		return "time without time zone"
	case record.Timestamp:
		return "timestamp without time zone"
	case record.TimestampTZ:
		return "timestamp with time zone"
	case record.UUID:
		return "uuid"
	case record.JSON:
		return "jsonb"
	}
	return "text"
}

// creatable reports whether a column of a built-in type can be made in another
// database and takes the text of its values there.
func creatable(name string) bool {
	name = strings.TrimSuffix(name, "[]")
	switch name {
	case "record", "cstring", "void", "unknown", "gtsvector", "aclitem", "tid", "xid", "cid", "refcursor", "txid_snapshot":
		return false
	case "pg_lsn", "pg_snapshot":
		return true
	}
	return !strings.HasPrefix(name, "reg") && !strings.HasPrefix(name, "pg_") && !strings.HasPrefix(name, `"`)
}

// widened is the wider type that a column needs for the values; empty if it needs
// none.
func widened(to *shapeColumn, c record.Column) string {
	rank := map[uint32]int{int2OID: 16, int4OID: 32, int8OID: 64}
	switch {
	case c.Type.Kind == record.Int && rank[to.oid] > 0 && rank[to.oid] < c.Type.Bits,
		c.Type.Kind == record.Float && to.oid == float4OID && c.Type.Bits == 64:
		return nativeType(record.Column{Type: c.Type})
	case c.Type.Kind == record.Decimal && rank[to.oid] > 0:
		return nativeType(record.Column{Type: c.Type})
	case c.Type.Kind == record.Decimal && to.oid == numericOID:
		p, s, bounded := numericSize(to.typmod)
		switch {
		case !bounded:
			return ""
		case c.Type.Precision == 0:
			return "numeric"
		case c.Type.Scale > s || c.Type.Precision-c.Type.Scale > p-s:
			scale := max(s, c.Type.Scale)
			return nativeType(record.Column{Type: record.DecimalOf(max(p-s, c.Type.Precision-c.Type.Scale)+scale, scale)})
		}
	case c.Type.Kind == record.Text && (to.oid == varcharOID || to.oid == bpcharOID) && to.typmod > 4 && c.Native != "":
		var most int32
		if i := strings.IndexByte(c.Native, '('); i > 0 && strings.HasPrefix(c.Native, "character") {
			_, _ = fmt.Sscanf(c.Native[i:], "(%d)", &most)
		}
		if most == 0 || most > to.typmod-4 {
			return "text"
		}
	}
	return ""
}

// create plans the target's creation.
func (p *planner) create() {
	t := p.t
	switch {
	case !t.Create:
		p.problem("no_table", "", "there is no table %s; create it, or let it be created (create: true)", t.Table)
		return
	case !p.facts.schemaThere:
		p.problem("no_table", "", "there is no schema %q to create the table in; create it first", t.Table.Schema)
		return
	case !p.facts.creates:
		p.problem("privilege", "", "the role may not create tables in the schema %q; GRANT CREATE ON SCHEMA %s TO …", t.Table.Schema, quoteName(t.Table.Schema))
	}
	keyed := t.Mode == driver.Upsert || t.Mode == driver.Merge
	var list []string
	for _, c := range targetColumns(t) {
		native := nativeType(c)
		line := quoteName(c.Name) + " " + native
		if !c.Nullable || keyed && slices.Contains(t.Key, c.Name) {
			line += " NOT NULL"
		}
		list = append(list, line)
		p.Columns = append(p.Columns, driver.ColumnMapping{Column: c.Name, Type: c.Type, Native: native, New: true})
	}
	if keyed {
		list = append(list, "PRIMARY KEY ("+strings.Join(quoteAll(t.Key), ", ")+")")
	}
	p.Creates = "CREATE TABLE " + quoteTable(t.Table) + " (\n\t" + strings.Join(list, ",\n\t") + "\n)"
}

// stageName is the staging table of a run. Runs have names of their own, which
// need not be names of PostgreSQL.
func stageName(t driver.TableTarget) driver.TableName {
	sum := sha256.Sum256([]byte(t.Run + "\x00" + t.Table.String()))
	return driver.TableName{Schema: ownSchema, Table: "stage_" + hex.EncodeToString(sum[:10])}
}

// PrepareTable makes what is missing. Problems of the plan are an error: nothing
// is made then.
func (b *Backend) PrepareTable(ctx context.Context, t driver.TableTarget) (driver.TablePlan, error) {
	if err := checkTarget(t); err != nil {
		return driver.TablePlan{}, err
	}
	conn, err := b.acquire(ctx)
	if err != nil {
		return driver.TablePlan{}, err
	}
	defer release(conn)
	pc := conn.Conn().PgConn()
	if _, err := pc.Exec(ctx, beginWrite+"; SELECT pg_catalog.pg_advisory_xact_lock("+ownLock+")").ReadAll(); err != nil {
		return driver.TablePlan{}, err
	}
	p, err := b.plan(ctx, conn.Conn(), t)
	plan := p.TablePlan
	if err != nil {
		return plan, err
	}
	if len(plan.Problems) > 0 {
		return plan, refusedPlan(t, plan)
	}
	if err := prepareCheckpoints(ctx, conn.Conn(), p.facts); err != nil {
		return plan, err
	}
	statements := slices.Clone(plan.Alters)
	if plan.Creates != "" {
		statements = append(statements, plan.Creates)
	}
	for _, sql := range statements {
		if _, err := pc.Exec(ctx, sql).ReadAll(); err != nil {
			return plan, err
		}
	}
	if len(statements) > 0 { // the target takes now what it did not take before
		now, err := b.plan(ctx, conn.Conn(), t)
		if err != nil {
			return plan, err
		}
		plan.CopyForm = now.CopyForm
	}
	if t.Mode.Staged() {
		if err := b.stage(ctx, conn.Conn(), t); err != nil {
			return plan, err
		}
	}
	return plan, commit(ctx, conn.Conn())
}

func refusedPlan(t driver.TableTarget, plan driver.TablePlan) error {
	messages := make([]string, len(plan.Problems))
	for i, p := range plan.Problems {
		messages[i] = p.Message
	}
	return athena.Errorf(athena.CodeInvalidRequest, "rows cannot be written to %s: %s", t.Table, strings.Join(messages, "; ")).At("table")
}

// stage makes the staging table, unless it is there: logged, for what was
// committed to it must be there after a crash of the server; with the checks and
// the unique indexes of the target, so that rows which the target would refuse
// are found one by one and not all at the end.
func (b *Backend) stage(ctx context.Context, conn *pgx.Conn, t driver.TableTarget) error {
	name := stageName(t)
	var there bool
	if _, err := on(conn)(ctx, "SELECT to_regclass($1) IS NOT NULL", []any{quoteTable(name)}, func(rows pgx.Rows) error { return rows.Scan(&there) }); err != nil || there {
		return err
	}
	_, err := conn.PgConn().Exec(ctx, "CREATE TABLE "+quoteTable(name)+" (LIKE "+quoteTable(t.Table)+" INCLUDING CONSTRAINTS INCLUDING INDEXES)").ReadAll()
	if err != nil {
		return err
	}
	var drops []string
	if _, err := on(conn)(ctx, `SELECT format('DROP INDEX %s', i.indexrelid::regclass) FROM pg_catalog.pg_index i
		WHERE i.indrelid = $1::regclass AND NOT i.indisunique`, []any{quoteTable(name)}, func(rows pgx.Rows) error {
		var drop string
		err := rows.Scan(&drop)
		drops = append(drops, drop)
		return err
	}); err != nil {
		return err
	}
	staged, err := b.shape(ctx, conn, name)
	if err != nil {
		return err
	}
	for _, c := range staged.columns {
		switch {
		case t.Schema.Index(c.name) >= 0:
		case slices.Contains(staged.key, c.name): // the target fills it in
			drops = append(drops, "ALTER TABLE "+quoteTable(name)+" DROP COLUMN "+quoteName(c.name)+" CASCADE")
		case c.notNull:
			drops = append(drops, "ALTER TABLE "+quoteTable(name)+" ALTER COLUMN "+quoteName(c.name)+" DROP NOT NULL")
		}
	}
	for _, sql := range drops {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

// ForgetTable drops the staging table.
func (b *Backend) ForgetTable(ctx context.Context, t driver.TableTarget) error {
	_, err := b.catalog(ctx, "DROP TABLE IF EXISTS "+quoteTable(stageName(t)), nil, nil)
	if noSuchTable(err) { // not even the schema is there
		return nil
	}
	return err
}
