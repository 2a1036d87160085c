package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Two publications are made of one name: the tables whose rows can be told apart
// are in the one, with all that happens to them, and those without an identity in
// the other, which publishes inserts alone. A publication of updates would make
// the server refuse the application's own UPDATE and DELETE on the latter.
//
// Both are made at once, even if the second one stays empty: a slot cannot be
// read with a publication that is younger than the log that is read.
const (
	insertsSuffix = "_inserts"
	allActions    = "insert, update, delete, truncate"
)

// maxName is the length of the server's names, in bytes.
const maxName = 63

// publicationMark is the comment by which we know our publications again.
func publicationMark(client string) string { return "athena: changes of client " + client }

// defaultName is the slot's and the publication's name where none is given.
func defaultName(client string) string { return "athena_" + strings.ReplaceAll(client, "-", "_") }

// checkNames refuses what the server would refuse, or cut off without an error.
func checkNames(s driver.ChangeSetup) error {
	if s.Confidence != 0 {
		return inOrder("confidence", s.Confidence)
	}
	if s.Sweep != 0 {
		return inOrder("sweep", s.Sweep)
	}
	if len(s.Slot) < 1 || len(s.Slot) > maxName || strings.Trim(s.Slot, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return athena.Errorf(athena.CodeInvalidRequest, "slot %.80q cannot be a slot's name; PostgreSQL allows 1 to %d of the characters a-z, 0-9 and _", s.Slot, maxName).At("slot")
	}
	if most := maxName - len(insertsSuffix); len(s.Publication) < 1 || len(s.Publication) > most || strings.IndexByte(s.Publication, 0) >= 0 {
		return athena.Errorf(athena.CodeInvalidRequest, "publication %.80q is %d bytes long; give it a name of 1 to %d bytes", s.Publication, len(s.Publication), most).At("publication")
	}
	return nil
}

func inOrder(field string, d time.Duration) error {
	return athena.Errorf(athena.CodeInvalidRequest, "%s is %s, and PostgreSQL's log is in order and complete: there is nothing to wait for or to look back at; leave it out", field, d).At(field)
}

// A publication is one as the server has it.
type publication struct {
	name      string
	there     bool
	ours      bool
	everyone  bool   // FOR ALL TABLES
	actions   string // what it publishes, as PostgreSQL's option has it
	viaRoot   bool
	members   []driver.TableName // named one by one
	sent      []driver.TableName // whose changes it sends, under these names
	narrowed  []driver.TableName // those of which not all columns or rows are sent
	narrowing []string           // how
}

// publicationOf describes a publication.
func publicationOf(ctx context.Context, query queryFunc, version int, name, client string) (publication, error) {
	p := publication{name: name}
	if _, err := query(ctx, `
		SELECT coalesce(obj_description(p.oid, 'pg_publication') = $2, false), p.puballtables, p.pubviaroot,
		       concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
		                       CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END)
		FROM pg_catalog.pg_publication p WHERE p.pubname = $1`, []any{name, publicationMark(client)},
		func(rows pgx.Rows) error {
			p.there = true
			return rows.Scan(&p.ours, &p.everyone, &p.viaRoot, &p.actions)
		}); err != nil || !p.there {
		return p, err
	}
	if _, err := query(ctx, `
		SELECT n.nspname, c.relname FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
		JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE p.pubname = $1 ORDER BY 1, 2`, []any{name},
		func(rows pgx.Rows) error {
			var t driver.TableName
			err := rows.Scan(&t.Schema, &t.Table)
			p.members = append(p.members, t)
			return err
		}); err != nil {
		return p, err
	}
	narrowing := `''`
	if version >= 150000 {
		// The view lists all columns where there is no list; which of them a
		// list leaves out is told by comparison.
		narrowing = `concat_ws(' and ',
			CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
			                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			                  WHERE n.nspname = t.schemaname AND c.relname = t.tablename AND a.attnum > 0 AND NOT a.attisdropped
			                    AND a.attgenerated = '' AND a.attname <> ALL (t.attnames))
			     THEN 'the columns ' || array_to_string(t.attnames, ', ') END,
			CASE WHEN t.rowfilter IS NOT NULL THEN 'the rows where ' || t.rowfilter END)`
	}
	_, err := query(ctx, `SELECT t.schemaname, t.tablename, `+narrowing+`
		FROM pg_catalog.pg_publication_tables t WHERE t.pubname = $1 ORDER BY 1, 2`, []any{name},
		func(rows pgx.Rows) error {
			var t driver.TableName
			var how string
			err := rows.Scan(&t.Schema, &t.Table, &how)
			p.sent = append(p.sent, t)
			if how != "" {
				p.narrowed, p.narrowing = append(p.narrowed, t), append(p.narrowing, how)
			}
			return err
		})
	return p, err
}

// publications are the names with which the slot is read: those of our
// publications that exist, or that of one that was taken over.
func (b *Backend) publications(ctx context.Context, s driver.ChangeSetup) ([]string, error) {
	list := []string{}
	_, err := b.catalog(ctx, `
		SELECT pubname FROM pg_catalog.pg_publication
		WHERE pubname = $1 OR pubname = $1 || '`+insertsSuffix+`' AND obj_description(oid, 'pg_publication') = $2
		ORDER BY length(pubname)`, []any{s.Publication, publicationMark(s.Client)},
		func(rows pgx.Rows) error {
			var name string
			err := rows.Scan(&name)
			list = append(list, name)
			return err
		})
	return list, err
}

// PrepareChanges makes the publications, or adds and takes out tables where they
// differ from what is wanted. Column lists and row filters that somebody gave
// them stay. A publication that is not ours is only looked at, if s.TakeOver
// allows it at all.
func (b *Backend) PrepareChanges(ctx context.Context, s driver.ChangeSetup) error {
	if err := checkNames(s); err != nil {
		return err
	}
	if len(s.Tables) == 0 {
		return athena.Errorf(athena.CodeInvalidRequest, "tables is empty; name at least one table as schema.table").At("tables")
	}
	conn, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	defer release(conn) // and roll back what was not committed
	p := preparation{query: on(conn.Conn()), setup: s}
	if err := p.plan(ctx); err != nil || len(p.statements) == 0 {
		return err
	}
	if p.server.standby {
		return athena.Errorf(athena.CodeConflict, "the database is a standby, where nothing can be created; run this at its primary first: %s", strings.Join(p.statements, "; "))
	}
	if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
		return err
	}
	// Two that prepare the same at once do it one after the other.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "athena publication "+s.Publication); err != nil {
		return err
	}
	if err := p.plan(ctx); err != nil {
		return err
	}
	for _, statement := range append(p.statements, "COMMIT") {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// A preparation finds what must be done for PrepareChanges.
type preparation struct {
	query      queryFunc
	setup      driver.ChangeSetup
	server     serverFacts
	statements []string
}

func (p *preparation) plan(ctx context.Context) (err error) {
	s := p.setup
	p.statements = nil
	if p.server, err = serverOf(ctx, p.query); err != nil {
		return err
	}
	tables, err := tablesFor(ctx, p.query, s.Tables)
	if err != nil {
		return err
	}
	main, err := publicationOf(ctx, p.query, p.server.version, s.Publication, s.Client)
	if err != nil {
		return err
	}
	for _, f := range tableFindings(s, tables, main) {
		if f.Level == levelError {
			return refused(f)
		}
	}
	if main.there && !main.ours {
		return refusedFirst(publicationFindings(s, p.server, main))
	}
	inserts, err := publicationOf(ctx, p.query, p.server.version, s.Publication+insertsSuffix, s.Client)
	if err != nil {
		return err
	}
	if inserts.there && !inserts.ours {
		return athena.Errorf(athena.CodeConflict, "the publication %q, which holds what has no identity, is not of client %q; choose another name than %q, or drop it: DROP PUBLICATION %s",
			inserts.name, s.Client, s.Publication, quoteName(inserts.name)).At("publication")
	}
	if !main.there || !inserts.there {
		slot, err := slotOf(ctx, p.query, p.server.version, s.Slot)
		if err != nil {
			return err
		}
		if slot.there && slot.database == p.server.database && !slot.leftOver(s) {
			return athena.Errorf(athena.CodeConflict, "the slot %q is there and the publication %q is not: what the slot has kept cannot be read with a publication that is made now; drop the slot first: SELECT pg_drop_replication_slot(%s)",
				s.Slot, s.Publication, quoteLiteral(s.Slot)).At("slot")
		}
	}
	var whole, partly []driver.TableName
	for _, t := range tables {
		if t.usable() {
			whole = append(whole, t.name)
		} else {
			partly = append(partly, t.name)
		}
	}
	// A table leaves the one publication before it is added to the other.
	first, then := main.become(s.Client, allActions, whole), inserts.become(s.Client, "insert", partly)
	p.statements = slices.Concat(first.out, then.out, first.in, then.in)
	return nil
}

type adaptation struct{ out, in []string }

// become are the statements by which a publication of ours gets what it should
// have.
func (p *publication) become(client, actions string, want []driver.TableName) (a adaptation) {
	name := quoteName(p.name)
	// ONLY, or the tables that inherit from it would come along under their own
	// names. Partitions do so all the same.
	only := func(list []driver.TableName) string {
		quoted := make([]string, len(list))
		for i, t := range list {
			quoted[i] = "ONLY " + quoteTable(t)
		}
		return strings.Join(quoted, ", ")
	}
	options := fmt.Sprintf("publish = '%s', publish_via_partition_root = true", actions)
	if !p.there {
		tables := ""
		if len(want) > 0 {
			tables = " FOR TABLE " + only(want)
		}
		a.in = []string{
			"CREATE PUBLICATION " + name + tables + " WITH (" + options + ")",
			"COMMENT ON PUBLICATION " + name + " IS " + quoteLiteral(publicationMark(client)),
		}
		return a
	}
	if p.actions != actions || !p.viaRoot {
		a.out = append(a.out, "ALTER PUBLICATION "+name+" SET ("+options+")")
	}
	without := func(list, other []driver.TableName) []driver.TableName {
		return slices.DeleteFunc(slices.Clone(list), func(t driver.TableName) bool { return slices.Contains(other, t) })
	}
	if old := without(p.members, want); len(old) > 0 {
		a.out = append(a.out, "ALTER PUBLICATION "+name+" DROP TABLE "+only(old))
	}
	if fresh := without(want, p.members); len(fresh) > 0 {
		a.in = append(a.in, "ALTER PUBLICATION "+name+" ADD TABLE "+only(fresh))
	}
	return a
}

// refused makes an error of a finding.
func refused(f driver.ChangeFinding) error {
	text := f.Found
	if f.Mend != "" {
		text += "; " + f.Mend
	}
	code := athena.CodeConflict
	switch f.Name {
	case findTable, findPartitions:
		code = athena.CodeInvalidRequest
	}
	err := athena.Errorf(code, "%s", text).With("finding", f.Name)
	if f.Table != "" {
		err = err.At("tables")
	}
	return err
}

func refusedFirst(findings []driver.ChangeFinding) error {
	for _, f := range findings {
		if f.Level == levelError {
			return refused(f)
		}
	}
	return nil
}

// DropChanges drops the slot, and those of the publications that bear our mark.
// A slot of another database or plugin is not ours, whatever its name. The
// publications of a standby are its primary's, and stay.
func (b *Backend) DropChanges(ctx context.Context, s driver.ChangeSetup) error {
	server, err := serverOf(ctx, b.catalog)
	if err != nil {
		return err
	}
	if err := b.dropSlot(ctx, server, s); err != nil || server.standby {
		return err
	}
	for _, name := range []string{s.Publication, s.Publication + insertsSuffix} {
		p, err := publicationOf(ctx, b.catalog, server.version, name, s.Client)
		if err != nil {
			return err
		}
		if !p.ours {
			continue
		}
		if _, err := b.catalog(ctx, "DROP PUBLICATION IF EXISTS "+quoteName(name), nil, nil); err != nil {
			return err
		}
	}
	return nil
}
