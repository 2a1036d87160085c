package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// A lab is a database with a backend, as the role of the DSN.
type lab struct {
	*Backend
	t   testing.TB
	sql *pgx.Conn // of the server's superuser
}

// newLab opens the database, where names of slots, which the whole server
// shares, are the database's own.
func newLab(t testing.TB, dsn string) *lab {
	t.Helper()
	l := &lab{t: t}
	var err error
	if l.sql, err = pgx.Connect(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	l.exec(`SET synchronous_commit = local`) // what is committed can be decoded
	l.Backend = l.as(dsn)
	t.Cleanup(func() { l.sql.Close(context.Background()) })
	return l
}

// as opens a backend with another role.
func (l *lab) as(dsn string) *Backend {
	l.t.Helper()
	b, err := Open(l.t.Context(), athena.PostgresConn{DSN: athena.NewSecret(dsn), MaxConns: 4})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			l.t.Error(err)
		}
	})
	return b
}

func (l *lab) exec(statements ...string) {
	l.t.Helper()
	for _, sql := range statements {
		if _, err := l.sql.Exec(l.t.Context(), sql); err != nil {
			l.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// ask returns the first column of a query's rows as text.
func (l *lab) ask(sql string, args ...any) []string {
	l.t.Helper()
	rows, err := l.sql.Query(l.t.Context(), sql, args...)
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	return list
}

// setup is for tables of schema public, with names that no other test has.
func (l *lab) setup(tables ...string) driver.ChangeSetup {
	client := strings.ReplaceAll(l.sql.Config().Database, "_", "-")
	s := driver.ChangeSetup{Client: client, Slot: defaultName(client), Publication: defaultName(client)}
	for _, t := range tables {
		s.Tables = append(s.Tables, driver.TableName{Schema: "public", Table: t})
	}
	return s
}

func (l *lab) prepare(s driver.ChangeSetup) {
	l.t.Helper()
	if err := l.PrepareChanges(l.t.Context(), s); err != nil {
		l.t.Fatal(err)
	}
}

// started starts a capture and drops it when the test ends.
func (l *lab) started(s driver.ChangeSetup) (driver.ChangeStart, driver.ChangeSnapshot) {
	l.t.Helper()
	l.prepare(s)
	start, snap, err := l.StartChanges(l.t.Context(), s, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		ctx := context.Background()
		if snap != nil {
			if err := snap.Close(ctx); err != nil {
				l.t.Error(err)
			}
		}
		if err := l.DropChanges(ctx, s); err != nil {
			l.t.Error(err)
		}
	})
	return start, snap
}

// role makes a login without any rights and returns its DSN.
func (l *lab) role(dsn, attributes string) (name, own string) {
	l.t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		l.t.Fatal(err)
	}
	name = "role_" + l.sql.Config().Database
	l.exec("CREATE ROLE " + name + " LOGIN PASSWORD 'secret' " + attributes)
	u.User = url.UserPassword(name, "secret")
	return name, u.String()
}

func find(check driver.ChangeCheck, name, table, level string) *driver.ChangeFinding {
	for _, f := range check.Findings {
		if f.Name == name && f.Level == level && (table == "" || f.Table == table) {
			return &f
		}
	}
	return nil
}

func wantFinding(t *testing.T, check driver.ChangeCheck, name, table, level, found, mend string) {
	t.Helper()
	if !slices.ContainsFunc(check.Findings, func(f driver.ChangeFinding) bool {
		return f.Name == name && f.Level == level && (table == "" || f.Table == table) && strings.Contains(f.Found, found) && strings.Contains(f.Mend, mend)
	}) {
		t.Errorf("no %s %s of %q says %q and %q among %+v", level, name, table, found, mend, check.Findings)
	}
}

func wantCode(t *testing.T, err error, code athena.Code, part string) {
	t.Helper()
	if athena.CodeOf(err) != code || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v; want %s with %q", err, code, part)
	}
}

func TestCheckOfAServerThatIsReady(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE orders (a int, b int, filler text, PRIMARY KEY (b, a))`,
		`INSERT INTO orders SELECT i, i, repeat('x', 100) FROM generate_series(1, 1000) i`, `ANALYZE orders`)
	s := l.setup("orders")
	check, err := l.CheckChanges(t.Context(), s)
	if err != nil || !check.OK() {
		t.Fatalf("%+v, %v", check, err)
	}
	for _, name := range []string{"server_version", "wal_level", "privileges", "replication_connection", "max_replication_slots", "max_wal_senders",
		"publication", "slot", "wal_sender_timeout", "wal_keep_size", "logical_decoding_work_mem"} {
		if find(check, name, "", levelOK) == nil {
			t.Errorf("nothing is found of %s", name)
		}
	}
	wantFinding(t, check, "max_slot_wal_keep_size", "", levelWarning, "disk", "ALTER SYSTEM SET max_slot_wal_keep_size")
	wantFinding(t, check, "identity", "public.orders", levelOK, "primary_key", "")
	if len(check.Tables) != 1 || check.Tables[0].Identity != "primary_key" || !slices.Equal(check.Tables[0].Key, []string{"b", "a"}) ||
		check.Tables[0].Rows != 1000 || check.Tables[0].Bytes < 100_000 {
		t.Errorf("tables: %+v", check.Tables)
	}
	if n := l.ask(`SELECT count(*)::text FROM pg_publication`); n[0] != "0" {
		t.Error("the check made a publication")
	}

	s.Tables = nil
	l.exec(`CREATE VIEW seen AS SELECT 1`, `CREATE UNLOGGED TABLE scratch (id int)`, `CREATE TABLE bare (id int)`)
	check, err = l.CheckChanges(t.Context(), s)
	if err != nil || !check.OK() || len(check.Tables) != 2 || check.Tables[0].Table.Table != "bare" || check.Tables[0].Identity != "none" {
		t.Errorf("without tables: %+v, %v", check.Tables, err)
	}
}

func TestCheckOfAServerThatIsNot(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, map[string]string{"fsync": "off", "wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1",
		"max_slot_wal_keep_size": "100MB", "wal_sender_timeout": "0", "synchronous_standby_names": "*", "synchronous_commit": "local"})
	l := newLab(t, server.DSN("postgres"))
	l.exec(`CREATE TABLE t (id int PRIMARY KEY)`, `SELECT pg_create_physical_replication_slot('other')`)
	s := l.setup("t")
	check, err := l.CheckChanges(t.Context(), s)
	if err != nil || check.OK() {
		t.Fatalf("%+v, %v", check, err)
	}
	wantFinding(t, check, "wal_level", "", levelError, "replica", "ALTER SYSTEM SET wal_level = logical")
	wantFinding(t, check, "max_replication_slots", "", levelError, "1 of 1", "ALTER SYSTEM SET max_replication_slots = 5")
	wantFinding(t, check, "max_slot_wal_keep_size", "", levelWarning, "100MB", "50GB")
	wantFinding(t, check, "wal_sender_timeout", "", levelWarning, "gone", "wal_sender_timeout")
	wantFinding(t, check, "synchronous_standby_names", "", levelWarning, "*", "standbys")
	// The connection that was tried has its own sender, which is gone again or not.
	if find(check, "replication_connection", "", levelOK) == nil {
		t.Errorf("%+v", check.Findings)
	}
	if _, _, err := l.StartChanges(t.Context(), s, nil); err == nil {
		t.Error("a slot without wal_level=logical")
	}
}

func TestFindingsOfServersThatAreRare(t *testing.T) {
	t.Parallel()
	ready := func(change func(*serverFacts)) serverFacts {
		f := serverFacts{version: 180004, text: "18.4", user: "shop", replication: true, settings: map[string]setting{
			"wal_level": {0, "logical"}, "max_slot_wal_keep_size": {51200, "50GB"}, "wal_sender_timeout": {60000, "1min"},
			"idle_replication_slot_timeout": {0, "0"}, "hot_standby_feedback": {0, "on"},
		}}
		change(&f)
		return f
	}
	tests := map[string]struct {
		change            func(*serverFacts)
		name, level, text string
	}{
		"nothing is amiss":              {func(*serverFacts) {}, "max_slot_wal_keep_size", levelOK, "50GB"},
		"too old":                       {func(f *serverFacts) { f.version, f.text = 130011, "13.11" }, "server_version", levelError, "13.11"},
		"a standby that cannot decode":  {func(f *serverFacts) { f.version, f.standby = 150004, true }, "standby", levelError, "a standby"},
		"a standby that can":            {func(f *serverFacts) { f.standby = true }, "standby", levelWarning, "at its primary"},
		"a standby without feedback":    {func(f *serverFacts) { f.standby, f.settings["hot_standby_feedback"] = true, setting{0, "off"} }, "hot_standby_feedback", levelWarning, "catalog"},
		"slots that are lost when idle": {func(f *serverFacts) { f.settings["idle_replication_slot_timeout"] = setting{3600, "1h"} }, "idle_replication_slot_timeout", levelWarning, "1h"},
		"a role that may not replicate": {func(f *serverFacts) { f.replication = false }, "privileges", levelError, "may not replicate"},
		"a superuser need not":          {func(f *serverFacts) { f.replication, f.superuser = false, true }, "privileges", levelOK, "may replicate"},
		"commits that wait for us alone": {func(f *serverFacts) {
			f.settings["synchronous_standby_names"] = setting{0, "FIRST 1 (athena-cdc-shop)"}
		}, "synchronous_standby_names", levelWarning, "athena-cdc-shop"},
	}
	for name, tt := range tests {
		f := ready(tt.change)
		check := driver.ChangeCheck{Findings: f.findings(driver.ChangeSetup{Client: "shop"})}
		found := find(check, tt.name, "", tt.level)
		if found == nil || !strings.Contains(found.Found, tt.text) || found.Level == levelError && found.Mend == "" {
			t.Errorf("%s: %+v", name, check.Findings)
		}
	}
}

func TestCheckOfTables(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(
		`CREATE TABLE keyed (id int PRIMARY KEY)`,
		`CREATE TABLE bare (id int)`,
		`CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE)`,
		`CREATE TABLE hidden (id int PRIMARY KEY)`, `ALTER TABLE hidden REPLICA IDENTITY NOTHING`,
		`CREATE TABLE whole (id int)`, `ALTER TABLE whole REPLICA IDENTITY FULL`,
		`CREATE TABLE "un.ique" (a int NOT NULL, b text)`, `CREATE UNIQUE INDEX "by a" ON "un.ique" (a)`,
		`CREATE TABLE indexed (a int NOT NULL, b text NOT NULL)`, `CREATE UNIQUE INDEX indexed_b ON indexed (b, a)`, `ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_b`,
		`CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)`,
		`CREATE VIEW viewed AS SELECT 1 AS id`,
		`CREATE SEQUENCE counted`,
		`CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child () INHERITS (parent)`,
		`CREATE TABLE parts (id int PRIMARY KEY, n int) PARTITION BY RANGE (id)`,
		`CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id)`,
		`CREATE TABLE parts_1_1 PARTITION OF parts_1 FOR VALUES FROM (0) TO (5)`,
		`CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)`,
		`CREATE TABLE loose (id int, n int) PARTITION BY RANGE (id)`,
		`CREATE TABLE loose_1 PARTITION OF loose FOR VALUES FROM (0) TO (10)`,
		`CREATE TABLE loose_2 PARTITION OF loose FOR VALUES FROM (10) TO (20)`,
		`ALTER TABLE loose_1 REPLICA IDENTITY FULL`,
	)
	errs := map[string][4]string{ // name of the finding, found, mend
		"bare":      {"identity", "has no replica identity", `ADD PRIMARY KEY`},
		"deferred":  {"identity", "has no replica identity", `REPLICA IDENTITY FULL`},
		"hidden":    {"identity", "has no replica identity", `ALTER TABLE "public"."hidden" REPLICA IDENTITY DEFAULT`},
		"un.ique":   {"identity", "has no replica identity", `ALTER TABLE "public"."un.ique" REPLICA IDENTITY USING INDEX "by a"`},
		"unlogged":  {"table", "unlogged", ""},
		"viewed":    {"table", "is a view", ""},
		"counted":   {"table", "is no table", ""},
		"nowhere":   {"table", "does not exist", ""},
		"loose":     {"identity", "has no replica identity", "ADD PRIMARY KEY"},
		"parts_1_1": {"partitions", "is a partition of public.parts", "leave out"},
	}
	s := l.setup("keyed", "whole", "indexed", "parent", "parts")
	for name := range errs {
		s.Tables = append(s.Tables, driver.TableName{Schema: "public", Table: name})
	}
	s.Tables = append(s.Tables, driver.TableName{Schema: "pg_catalog", Table: "pg_class"})
	check, err := l.CheckChanges(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range errs {
		wantFinding(t, check, want[0], driver.TableName{Schema: "public", Table: name}.String(), levelError, want[1], want[2])
		alone := l.setup(name)
		if want[0] == "partitions" {
			alone = l.setup(name, "parts")
		}
		wantCode(t, l.PrepareChanges(t.Context(), alone), map[bool]athena.Code{true: athena.CodeConflict, false: athena.CodeInvalidRequest}[want[0] == "identity"], want[1])
	}
	wantFinding(t, check, "table", "pg_catalog.pg_class", levelError, "server's own", "")
	wantFinding(t, check, "partitions", "public.parent", levelWarning, "inherit", "")
	for name, identity := range map[string]string{"keyed": "primary_key", "whole": "full", "indexed": "index", "parts": "primary_key"} {
		wantFinding(t, check, "identity", "public."+name, levelOK, identity, "")
		i := slices.IndexFunc(check.Tables, func(c driver.ChangeTable) bool { return c.Table.Table == name })
		if i < 0 || check.Tables[i].Identity != identity {
			t.Errorf("%s: %+v", name, check.Tables)
		} else if name == "indexed" && !slices.Equal(check.Tables[i].Key, []string{"b", "a"}) {
			t.Errorf("key of indexed: %v", check.Tables[i].Key)
		}
	}

	l.exec(`ALTER TABLE loose_2 REPLICA IDENTITY FULL`)
	check, err = l.CheckChanges(t.Context(), l.setup("loose"))
	if err != nil || !check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	wantFinding(t, check, "identity", "public.loose", levelWarning, "a new partition", "ADD PRIMARY KEY")
}

func TestCheckOfPrivileges(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	l := newLab(t, dsn)
	role, own := l.role(dsn, "")
	l.exec(`CREATE TABLE orders (id int PRIMARY KEY, customer text)`, `ALTER TABLE orders ENABLE ROW LEVEL SECURITY`)
	b, s := l.as(own), l.setup("orders")
	check, err := b.CheckChanges(t.Context(), s)
	if err != nil || check.OK() {
		t.Fatalf("%+v, %v", check, err)
	}
	database := quoteName(l.sql.Config().Database)
	wantMend := func(table, mend string) {
		t.Helper()
		if !slices.ContainsFunc(check.Findings, func(f driver.ChangeFinding) bool {
			return f.Level == levelError && f.Table == table && strings.Contains(f.Mend, mend)
		}) {
			t.Errorf("no finding says %q: %+v", mend, check.Findings)
		}
	}
	wantMend("", fmt.Sprintf("ALTER ROLE %q REPLICATION", role))
	wantMend("", fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %q", database, role))
	wantMend("", "pg_hba.conf")
	wantMend("public.orders", "the role that owns")
	wantMend("public.orders", fmt.Sprintf(`GRANT SELECT ON "public"."orders" TO %q`, role))
	wantMend("public.orders", fmt.Sprintf("ALTER ROLE %q BYPASSRLS", role))

	l.exec(`CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)`, `CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)`, `GRANT SELECT ON parts TO `+role)
	if check, err = b.CheckChanges(t.Context(), l.setup("parts")); err != nil {
		t.Fatal(err)
	}
	wantMend("public.parts", fmt.Sprintf("GRANT SELECT ON public.parts_1 TO %q", role))

	// What it asks for is enough, and nothing more is needed.
	l.exec("ALTER ROLE "+role+" REPLICATION BYPASSRLS", "GRANT CREATE ON DATABASE "+database+" TO "+role, "GRANT SELECT ON orders TO "+role)
	l.exec("ALTER TABLE orders OWNER TO " + role)
	if check, err = b.CheckChanges(t.Context(), s); err != nil || !check.OK() {
		t.Fatalf("%+v, %v", check, err)
	}
	if err := b.PrepareChanges(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	_, snap, err := b.StartChanges(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, snap, 2); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if err := errors.Join(snap.Close(t.Context()), b.DropChanges(t.Context(), s)); err != nil {
		t.Error(err)
	}
}

func TestPrepareMakesAndAdapts(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`, `CREATE TABLE bare (id int)`,
		`CREATE SCHEMA "my schema"`, `CREATE TABLE "my schema"."Odd.Name" ("a""b" int PRIMARY KEY)`,
		`CREATE TABLE child () INHERITS (a)`, `INSERT INTO bare VALUES (1)`)
	published := func() string {
		return strings.Join(l.ask(`SELECT pubname || ' ' || schemaname || ' ' || tablename FROM pg_publication_tables ORDER BY 1`), ", ")
	}
	// xmin changes with every write of a row.
	state := func() string {
		return strings.Join(append(l.ask(`SELECT xmin::text FROM pg_publication ORDER BY oid`), l.ask(`SELECT xmin::text FROM pg_publication_rel ORDER BY oid`)...), " ")
	}
	s := l.setup("a", "b")
	s.Tables = append(s.Tables, driver.TableName{Schema: "my schema", Table: "Odd.Name"})
	p := s.Publication
	l.prepare(s)
	if got, want := published(), p+" my schema Odd.Name, "+p+" public a, "+p+" public b"; got != want {
		t.Errorf("published: %s; want %s", got, want)
	}
	if got, err := l.publications(t.Context(), s); err != nil || !slices.Equal(got, []string{p, p + "_inserts"}) {
		t.Errorf("publications: %v, %v", got, err)
	}
	before := state()
	l.prepare(s)
	if after := state(); after != before {
		t.Error("prepared again, it changed something")
	}

	s = l.setup("b", "bare")
	wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeConflict, "inserts_only")
	s.InsertsOnly = true
	l.prepare(s)
	if got, want := published(), p+" public b, "+p+"_inserts public bare"; got != want {
		t.Errorf("published: %s; want %s", got, want)
	}
	l.exec(`UPDATE bare SET id = 2`, `DELETE FROM bare`) // the application's own
	l.exec(`ALTER TABLE bare ADD PRIMARY KEY (id)`)
	l.prepare(s)
	if got, want := published(), p+" public b, "+p+" public bare"; got != want {
		t.Errorf("published: %s; want %s", got, want)
	}

	// What somebody changed of ours is put right, but nothing that hides data.
	l.exec(`ALTER PUBLICATION `+p+` SET (publish = 'insert', publish_via_partition_root = false)`, `ALTER PUBLICATION `+p+` ADD TABLE a`)
	l.prepare(s)
	if got := l.ask(`SELECT (pubupdate AND pubdelete AND pubtruncate AND pubviaroot)::text FROM pg_publication WHERE pubname = $1`, p); got[0] != "true" {
		t.Error("the publication's options were not put right")
	}
	if got, want := published(), p+" public b, "+p+" public bare"; got != want {
		t.Errorf("published: %s; want %s", got, want)
	}

	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if n := l.ask(`SELECT pubname::text FROM pg_publication`); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Errorf("dropped again: %v", err)
	}
}

func TestPreparedByTwoAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`)
	for _, s := range []driver.ChangeSetup{l.setup("a"), l.setup("a", "b"), l.setup("b")} {
		var g errgroup.Group
		for range 4 {
			g.Go(func() error { return l.PrepareChanges(t.Context(), s) })
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		if got := l.ask(`SELECT tablename::text FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1`, s.Publication); len(got) != len(s.Tables) {
			t.Errorf("published: %v", got)
		}
	}
}

func TestOfOthersPublications(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, secret text)`, `CREATE TABLE b (id int PRIMARY KEY)`, `CREATE TABLE c (id int PRIMARY KEY)`,
		`CREATE PUBLICATION theirs FOR TABLE a, c WITH (publish = 'insert, update')`)
	s := l.setup("a")
	s.Publication = "theirs"
	wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeConflict, "take_over")
	check, err := l.CheckChanges(t.Context(), s)
	if err != nil || check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	s.TakeOver = true
	l.prepare(s)
	check, err = l.CheckChanges(t.Context(), s)
	if err != nil || !check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	wantFinding(t, check, "publication", "", levelWarning, "insert, update only", "SET (publish")
	if !slices.ContainsFunc(check.Findings, func(f driver.ChangeFinding) bool { return strings.Contains(f.Found, "1 more tables") }) {
		t.Errorf("nothing of the other table: %+v", check.Findings)
	}
	if got, err := l.publications(t.Context(), s); err != nil || !slices.Equal(got, []string{"theirs"}) {
		t.Errorf("publications: %v, %v", got, err)
	}
	s.Tables = l.setup("a", "b").Tables
	wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeConflict, `ALTER PUBLICATION "theirs" ADD TABLE "public"."b"`)
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Error(err)
	}
	if got := l.ask(`SELECT pubname::text FROM pg_publication`); !slices.Equal(got, []string{"theirs"}) {
		t.Errorf("publications after the drop: %v", got)
	}
	l.exec(`CREATE PUBLICATION everyones FOR ALL TABLES`)
	all := l.setup("a")
	all.Publication, all.TakeOver = "everyones", true
	check, err = l.CheckChanges(t.Context(), all)
	if err != nil || !check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	wantFinding(t, check, "publication", "", levelWarning, "FOR ALL TABLES", "")
	if serverMajorOf(l) >= 15 {
		l.exec(`ALTER PUBLICATION theirs SET TABLE a (id) WHERE (id > 5)`)
		s.Tables = s.Tables[:1]
		check, err = l.CheckChanges(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		wantFinding(t, check, "publication", "public.a", levelWarning, "the columns id and the rows where (id > 5)", "")
	}
}

func serverMajorOf(l *lab) int { return serverMajor(l.sql.PgConn()) }

func TestNamesAreChecked(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	for _, slot := range []string{"", "A", "a-b", "a b", strings.Repeat("x", 64)} {
		s := l.setup("a")
		s.Slot = slot
		wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeInvalidRequest, "slot")
	}
	for _, name := range []string{"", strings.Repeat("x", 56), "a\x00"} {
		s := l.setup("a")
		s.Publication = name
		wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeInvalidRequest, "publication")
	}
	wantCode(t, l.PrepareChanges(t.Context(), l.setup()), athena.CodeInvalidRequest, "tables")
	s := l.setup("a")
	s.Publication = `Odd "name".` + strings.Repeat("é", 10)
	l.prepare(s)
	if got, err := l.publications(t.Context(), s); err != nil || got[0] != s.Publication {
		t.Errorf("%q, %v", got, err)
	}
}

// A slot keeps the log from before a publication that is made anew, and cannot be
// read with it.
func TestPublicationIsNotMadeBehindASlot(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	s := l.setup("a")
	l.started(s)
	l.read(s)
	l.exec(`DROP PUBLICATION ` + s.Publication)
	wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeConflict, "pg_drop_replication_slot")
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	l.prepare(s)
}

// read reads from the slot as somebody would who is not Athena.
func (l *lab) read(s driver.ChangeSetup) {
	l.t.Helper()
	l.exec(`INSERT INTO a SELECT coalesce(max(id), 0) + 1 FROM a`)
	l.exec(`SELECT count(*) FROM pg_logical_slot_get_binary_changes('` + s.Slot + `', NULL, NULL, 'proto_version', '1', 'publication_names', '` + s.Publication + `')`)
	// The statistics of PostgreSQL 14 take a moment.
	l.until(`SELECT 'x' FROM pg_stat_replication_slots WHERE slot_name = $1 AND total_bytes > 0`, s.Slot)
}

// until waits until a query has rows.
func (l *lab) until(sql string, args ...any) {
	l.t.Helper()
	for range 1000 {
		if len(l.ask(sql, args...)) > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("no rows in time: %s", sql)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, filler text)`)
	s := l.setup("a")
	if _, err := l.ChangeHealth(t.Context(), s); athena.CodeOf(err) != athena.CodeNotFound {
		t.Errorf("health of no slot: %v", err)
	}
	_, snap := l.started(s)
	snap.Close(t.Context())
	l.exec(`INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i`)
	h, err := l.ChangeHealth(t.Context(), s)
	if err != nil || h.Slot != s.Slot || h.WALStatus != "reserved" || h.Invalidated != "" || h.Lag < 1_000_000 || h.Retained < h.Lag || h.Safe != -1 || h.TwoPhase || h.Temporary {
		t.Errorf("%+v, %v", h, err)
	}
	if want := serverMajorOf(l) >= 17; h.Failover != want {
		t.Errorf("failover is %v", h.Failover)
	}
}
