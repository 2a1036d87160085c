package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// readAll reads a snapshot with several readers and returns "table key after" of
// every row, sorted.
func readAll(t testing.TB, snap driver.ChangeSnapshot, readers int) []string {
	t.Helper()
	parts, err := snap.Tables(t.Context(), readers)
	if err != nil {
		t.Fatal(err)
	}
	list, err := readParts(t.Context(), snap, parts, readers)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func readParts(ctx context.Context, snap driver.ChangeSnapshot, parts []driver.SnapshotPart, readers int) ([]string, error) {
	var mu sync.Mutex
	list := []string{}
	var g errgroup.Group
	g.SetLimit(readers)
	for _, p := range parts {
		g.Go(func() error {
			return snap.Read(ctx, p, func(key, after []byte) error {
				mu.Lock()
				defer mu.Unlock()
				list = append(list, fmt.Sprintf("%s %s %s", p.Table, key, after))
				return nil
			})
		})
	}
	err := g.Wait()
	slices.Sort(list)
	return list, err
}

func wantRows(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// sentColumns are the columns that the stream describes, by table: the slot is
// read as pgoutput writes it.
func (l *lab) sentColumns(s driver.ChangeSetup) map[string][]cdc.Column {
	l.t.Helper()
	names, err := l.publications(l.t.Context(), s)
	if err != nil {
		l.t.Fatal(err)
	}
	rows, err := l.sql.Query(l.t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)`,
		s.Slot, strings.Join(names, ","))
	if err != nil {
		l.t.Fatal(err)
	}
	defer rows.Close()
	sent := map[string][]cdc.Column{}
	for rows.Next() {
		msg := rows.RawValues()[0]
		if msg[0] != msgRelation {
			continue
		}
		m, err := decodeRelation(&scanner{b: msg[1:]})
		if err != nil {
			l.t.Fatal(err)
		}
		r := &relation{relationMessage: m}
		if err := l.describe(l.t.Context(), r); err != nil {
			l.t.Fatal(err)
		}
		sent[m.schema+"."+m.table] = r.enc.describe(&l.types)
	}
	if err := rows.Err(); err != nil {
		l.t.Fatal(err)
	}
	return sent
}

func TestSnapshotIsOfTheConsistentPoint(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, filler text)`, `CREATE TABLE "bare" (id int, n numeric)`, `CREATE TABLE empty (id int PRIMARY KEY)`,
		// Some 20 MB, so that there are parts to read beside each other.
		`INSERT INTO a SELECT i, repeat('x', 2000) FROM generate_series(1, 9000) i`, `ALTER TABLE bare REPLICA IDENTITY FULL`,
		`INSERT INTO bare VALUES (1, 1.50), (NULL, 'NaN')`, `ANALYZE a`)
	s := l.setup("a", "bare", "empty")
	_, snap := l.started(s)
	l.exec(`DELETE FROM a WHERE id % 2 = 0`, `UPDATE a SET filler = 'late' WHERE id % 3 = 0`, `INSERT INTO a VALUES (9001, 'late')`,
		`VACUUM a`, `INSERT INTO empty VALUES (1)`, `ALTER TABLE empty ADD COLUMN late int`)

	parts, err := snap.Tables(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]int{}
	estimated := int64(0)
	for _, p := range parts {
		if p.N != of[p.Table.Table] {
			t.Errorf("part %+v comes after %d", p, of[p.Table.Table])
		}
		of[p.Table.Table]++
		if p.Table.Table == "a" {
			estimated += p.Rows
		}
	}
	if want := map[string]int{"a": 6, "bare": 1, "empty": 1}; !maps.Equal(of, want) {
		t.Errorf("parts: %v; want %v", of, want)
	}
	if estimated < 4000 || estimated > 9500 { // as VACUUM left it
		t.Errorf("%d rows are estimated", estimated)
	}
	got, err := readParts(t.Context(), snap, parts, 4)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`public.bare  {"id":1,"n":"1.50"}`, `public.bare  {"id":null,"n":"NaN"}`}
	for i := 1; i <= 9000; i++ {
		want = append(want, fmt.Sprintf(`public.a {"id":%d} {"id":%d,"filler":"%s"}`, i, i, strings.Repeat("x", 2000)))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("read %d rows, which are not the %d of the consistent point", len(got), len(want))
	}
	columns, err := snap.Columns(t.Context(), s.Tables[2])
	if err != nil || !slices.Equal(columns, []cdc.Column{{Name: "id", Type: "integer", Key: true}}) {
		t.Errorf("columns: %v, %v", columns, err)
	}
}

func TestPartsOfLargeTables(t *testing.T) {
	t.Parallel()
	name := driver.TableName{Schema: "s", Table: "t"}
	leaves := []leaf{{oid: 1, heap: true, blocks: 100_000, rows: 1000, pages: 100}, {oid: 2, heap: true}, {oid: 3, blocks: 100_000, rows: -1}}
	parts := split(name, leaves, 2)
	next := map[uint32]int64{}
	for i, p := range parts {
		r, err := parseBlockRange(p.Range)
		if err != nil || p.N != i || p.Of != len(parts) || p.Table != name || r.from != next[r.oid] || r.to != 0 && r.to <= r.from || (r.to-r.from)*blockSize > partBytes {
			t.Errorf("part %d: %+v, %v", i, p, err)
		}
		next[r.oid] = r.to
	}
	if len(parts) != 13+1+1 || next[1] != 0 || next[3] != 0 { // 800 MB, and what cannot be divided
		t.Errorf("%d parts", len(parts))
	}
	if _, err := parseBlockRange("x"); err == nil {
		t.Error("a range of others")
	}
}

func TestSnapshotOfOddTables(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(
		`CREATE SCHEMA "my schema"`, `CREATE TYPE "my schema"."Mood" AS ENUM ('so so', 'fine')`, `CREATE TYPE pair AS (x int, y text)`, `CREATE DOMAIN age AS int`,
		`CREATE TABLE "my schema"."Odd.Name" ("a""b" int, dropped int, "c'd" text, mood "my schema"."Mood"[], p pair, n age, PRIMARY KEY ("c'd", "a""b"))`,
		`ALTER TABLE "my schema"."Odd.Name" DROP COLUMN dropped`,
		// What COPY escapes, and what looks like its marks.
		`INSERT INTO "my schema"."Odd.Name" VALUES (1, E'tab\there\nand\\there\r\b\f\x0b', '{"so so",NULL}', (1, E'a"b\\\t'), 7), (2, '\N', NULL, NULL, NULL),
			(3, '', '{}', '(,)', 0), (4, '\.', NULL, NULL, NULL), (5, E'\\', NULL, NULL, NULL)`,
		`CREATE TABLE computed (a int, id int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED, z text DEFAULT 'z')`,
		`INSERT INTO computed (id, a) VALUES (1, 10)`,
		`CREATE TABLE parts (id int, at date, n text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)`,
		`CREATE TABLE parts_1 (n text, gone int, at date NOT NULL, id int NOT NULL)`, `ALTER TABLE parts_1 DROP COLUMN gone`,
		`ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')`,
		`CREATE TABLE "parts.2" PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (id)`,
		`CREATE TABLE parts_2_1 PARTITION OF "parts.2" FOR VALUES IN (1)`, `CREATE TABLE parts_2_x PARTITION OF "parts.2" DEFAULT`,
		`INSERT INTO parts VALUES (1, '2026-01-15', 'a'), (1, '2026-02-15', 'b'), (2, '2026-02-15', 'c')`,
		`CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child () INHERITS (parent)`, `INSERT INTO parent VALUES (1)`, `INSERT INTO child VALUES (2)`,
		`CREATE TABLE indexed (a text NOT NULL, b int NOT NULL, c int, PRIMARY KEY (b))`, `CREATE UNIQUE INDEX indexed_a ON indexed (a) INCLUDE (c)`,
		`ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a`, `INSERT INTO indexed VALUES ('x', 1, 2)`,
		`CREATE TABLE whole (a int, id int, b text, PRIMARY KEY (id) INCLUDE (a))`, `ALTER TABLE whole REPLICA IDENTITY FULL`, `INSERT INTO whole VALUES (1, 2, 'x')`,
		`CREATE TABLE bare (a int, b text)`, `INSERT INTO bare VALUES (1, 'x')`,
		`CREATE TABLE nothing ()`, `INSERT INTO nothing DEFAULT VALUES`,
	)
	odd := driver.TableName{Schema: "my schema", Table: "Odd.Name"}
	s := l.setup("computed", "parts", "parent", "indexed", "whole", "bare", "nothing")
	s.Tables = append(s.Tables, odd)
	s.InsertsOnly = true
	_, snap := l.started(s)
	name := `"my schema"."Odd.Name"`
	wantRows(t, readAll(t, snap, 3),
		name+` {"a\"b":1,"c'd":"tab\there\nand\\there\r\u0008\u000c\u000b"} {"a\"b":1,"c'd":"tab\there\nand\\there\r\u0008\u000c\u000b","mood":["so so",null],"p":{"x":1,"y":"a\"b\\\t"},"n":7}`,
		name+` {"a\"b":2,"c'd":"\\N"} {"a\"b":2,"c'd":"\\N","mood":null,"p":null,"n":null}`,
		name+` {"a\"b":3,"c'd":""} {"a\"b":3,"c'd":"","mood":[],"p":{"x":null,"y":null},"n":0}`,
		name+` {"a\"b":4,"c'd":"\\."} {"a\"b":4,"c'd":"\\.","mood":null,"p":null,"n":null}`,
		name+` {"a\"b":5,"c'd":"\\"} {"a\"b":5,"c'd":"\\","mood":null,"p":null,"n":null}`,
		`public.computed {"id":1} {"a":10,"id":1,"z":"z"}`,
		`public.parts {"id":1,"at":"2026-01-15"} {"id":1,"at":"2026-01-15","n":"a"}`,
		`public.parts {"id":1,"at":"2026-02-15"} {"id":1,"at":"2026-02-15","n":"b"}`,
		`public.parts {"id":2,"at":"2026-02-15"} {"id":2,"at":"2026-02-15","n":"c"}`,
		`public.parent {"id":1} {"id":1}`,
		`public.indexed {"a":"x"} {"a":"x","b":1,"c":2}`,
		`public.whole {"id":2} {"a":1,"id":2,"b":"x"}`,
		`public.bare  {"a":1,"b":"x"}`,
		`public.nothing  {}`,
	)

	// The stream describes the tables in the same way.
	l.exec(`INSERT INTO "my schema"."Odd.Name" VALUES (9, 'x')`, `INSERT INTO computed (id) VALUES (9)`, `INSERT INTO parts VALUES (9, '2026-01-09')`,
		`INSERT INTO parent VALUES (9)`, `INSERT INTO indexed VALUES ('y', 9)`, `INSERT INTO whole VALUES (9, 9)`, `INSERT INTO bare VALUES (9)`, `INSERT INTO nothing DEFAULT VALUES`)
	l.sameColumns(s, snap)
}

// sameColumns compares the snapshot's columns with those of the stream.
func (l *lab) sameColumns(s driver.ChangeSetup, snap driver.ChangeSnapshot) {
	l.t.Helper()
	sent := l.sentColumns(s)
	for _, table := range s.Tables {
		columns, err := snap.Columns(l.t.Context(), table)
		if err != nil {
			l.t.Error(err)
		}
		if want, ok := sent[table.Schema+"."+table.Table]; !ok || !slices.Equal(columns, want) {
			l.t.Errorf("%s: the snapshot has %+v, the stream %+v (%v)", table, columns, want, ok)
		}
	}
}

func TestSnapshotGoesByThePublication(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	if serverMajorOf(l) < 15 {
		t.Log("column lists and row filters came with PostgreSQL 15; nothing to see here")
		return
	}
	l.exec(
		`CREATE TABLE a (secret text, "I d" int PRIMARY KEY, kind text, twice int GENERATED ALWAYS AS (length(kind)) STORED)`,
		`INSERT INTO a VALUES ('s', 1, 'x'), ('s', 2, 'y'), ('s', 3, NULL)`,
		`CREATE TABLE parts (id int PRIMARY KEY, secret text, kind text) PARTITION BY RANGE (id)`,
		`CREATE TABLE parts_1 (kind text, secret text, id int NOT NULL)`, `ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES FROM (0) TO (10)`,
		`INSERT INTO parts VALUES (1, 's', 'x'), (2, 's', 'y')`,
		`CREATE PUBLICATION theirs FOR TABLE a ("I d", kind) WHERE ("I d" <> 2 AND kind IS DISTINCT FROM 'x''y'), parts (kind, id) WHERE (id > 1) WITH (publish_via_partition_root = true)`)
	s := l.setup("a", "parts")
	s.Publication, s.TakeOver = "theirs", true
	_, snap := l.started(s)
	wantRows(t, readAll(t, snap, 2),
		`public.a {"I d":1} {"I d":1,"kind":"x"}`, `public.a {"I d":3} {"I d":3,"kind":null}`, `public.parts {"id":2} {"id":2,"kind":"y"}`)
	l.exec(`INSERT INTO a VALUES ('s', 9, 'x')`, `INSERT INTO parts VALUES (9, 's', 'x')`)
	l.sameColumns(s, snap)

	// Without the root, partitions are published under their own names.
	l.exec(`ALTER PUBLICATION theirs SET TABLE a, parts`, `ALTER PUBLICATION theirs SET (publish_via_partition_root = false)`)
	wantCode(t, l.PrepareChanges(t.Context(), s), athena.CodeConflict, "publish_via_partition_root")

	snap.Close(t.Context()) // it holds the table
	if serverMajorOf(l) >= 18 {
		l.exec(`ALTER PUBLICATION theirs SET TABLE a`, `ALTER PUBLICATION theirs SET (publish_generated_columns = stored)`,
			`ALTER TABLE a ADD COLUMN virtual int GENERATED ALWAYS AS (1)`)
		s = l.setup("a")
		s.Publication, s.TakeOver, s.Slot = "theirs", true, s.Slot+"_2"
		_, snap := l.started(s)
		l.exec(`INSERT INTO a VALUES ('s', 10, 'x')`)
		l.sameColumns(s, snap)
		if got := readAll(t, snap, 1); len(got) != 4 || !strings.Contains(got[0], `"kind":"x","twice":1}`) {
			t.Errorf("%v", got)
		}
	}
}

// A role that may see certain columns alone captures those, from a publication
// of the table's owner.
func TestSnapshotByARoleThatMayReadSomeColumns(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	l := newLab(t, dsn)
	if serverMajorOf(l) < 15 {
		t.Log("column lists came with PostgreSQL 15; nothing to see here")
		return
	}
	role, own := l.role(dsn, "REPLICATION")
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, secret text, name text)`, `INSERT INTO a VALUES (1, 's', 'n')`,
		`CREATE PUBLICATION theirs FOR TABLE a (id, name)`, `GRANT SELECT (id) ON a TO `+role)
	b, s := l.as(own), l.setup("a")
	s.Publication, s.TakeOver = "theirs", true
	check, err := b.CheckChanges(t.Context(), s)
	if err != nil || check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	wantFinding(t, check, "privileges", "public.a", levelError, "may not read", "GRANT SELECT")
	l.exec(`GRANT SELECT (name) ON a TO ` + role)
	if check, err = b.CheckChanges(t.Context(), s); err != nil || !check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	if err := b.PrepareChanges(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	_, snap, err := b.StartChanges(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantRows(t, readAll(t, snap, 1), `public.a {"id":1} {"id":1,"name":"n"}`)
	if err := errors.Join(snap.Close(t.Context()), b.DropChanges(t.Context(), s)); err != nil {
		t.Error(err)
	}
}

func TestSnapshotRefusesATableThatWasRewritten(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"altered":   `ALTER TABLE a ALTER id TYPE bigint`,
		"truncated": `TRUNCATE a`,
		"dropped":   `DROP TABLE a`,
		"renamed":   `ALTER TABLE a RENAME TO b`,
		"replaced":  `DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, pgtest.DSN(t))
			l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`)
			_, snap := l.started(l.setup("a"))
			l.exec(change)
			_, err := snap.Tables(t.Context(), 1)
			if code := athena.CodeOf(err); code != athena.CodeConflict && code != athena.CodeNotFound {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSnapshotHoldsItsTables(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`, `SET lock_timeout = '100ms'`)
	_, snap := l.started(l.setup("a"))
	parts, err := snap.Tables(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.sql.Exec(t.Context(), `TRUNCATE a`); err == nil {
		t.Error("the table was truncated")
	}
	l.exec(`UPDATE a SET id = 2`) // the application goes on

	stop := errors.New("enough")
	if err := snap.Read(t.Context(), parts[0], func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := snap.Read(ctx, parts[0], func(_, _ []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	got, err := readParts(t.Context(), snap, parts, 1)
	if err != nil {
		t.Error(err)
	}
	wantRows(t, got, `public.a {"id":1} {"id":1}`)
	if err := snap.Close(t.Context()); err != nil {
		t.Error(err)
	}
	l.exec(`TRUNCATE a`)
	if err := snap.Read(t.Context(), parts[0], func(_, _ []byte) error { return nil }); err == nil {
		t.Error("read from a snapshot that is closed")
	}
}

// The locks go with their connection. What is done to a table then is found when
// the next part is read.
func TestSnapshotWhoseLocksWereLost(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`)
	s := l.setup("a")
	_, snap := l.started(s)
	parts, err := snap.Tables(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	lose := `SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = $1`
	if got := l.ask(lose, replicationName(s.Client)); len(got) != 1 {
		t.Fatalf("%d connections were ended", len(got))
	}
	if got, err := readParts(t.Context(), snap, parts, 1); err != nil || len(got) != 1 { // on another connection
		t.Errorf("%v, %v", got, err)
	}
	if got := l.ask(lose, replicationName(s.Client)); len(got) != 1 {
		t.Fatalf("%d connections were ended", len(got))
	}
	l.exec(`VACUUM FULL a`)
	for range 2 { // the first try may find that its connection is gone
		_, err = readParts(t.Context(), snap, parts, 1)
	}
	wantCode(t, err, athena.CodeConflict, "public.a")
}

// BenchmarkSnapshot reads a table of rows of 200 bytes to nowhere, with one
// reader and with two, and compares that with COPY drained raw by as many
// connections in the same run. The target is 200,000 rows/s.
func BenchmarkSnapshot(b *testing.B) {
	l := newLab(b, pgtest.DSN(b))
	const rows = 500_000
	l.exec(`CREATE TABLE a (id bigint PRIMARY KEY, customer int, total numeric(12,2), at timestamptz, paid bool, email text, note text)`,
		fmt.Sprintf(`INSERT INTO a SELECT i, i %% 1000, i * 1.25, '2026-11-22 10:00:00+00'::timestamptz + i * interval '1 s', i %% 2 = 0,
			'customer' || i || '@example.com', repeat('note ', 20) || i FROM generate_series(1, %d) i`, rows), `VACUUM ANALYZE a`)
	_, snap := l.started(l.setup("a"))
	defer snap.Close(context.Background())
	for _, readers := range []int{1, 2} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			parts, err := snap.Tables(b.Context(), 2)
			if err != nil {
				b.Fatal(err)
			}
			run := func(read func(driver.SnapshotPart) (int64, error)) float64 {
				var n atomic.Int64
				var g errgroup.Group
				g.SetLimit(readers)
				began := time.Now()
				for _, p := range parts {
					g.Go(func() error {
						got, err := read(p)
						n.Add(got)
						return err
					})
				}
				if err := g.Wait(); err != nil || n.Load() != rows {
					b.Fatal(n.Load(), err)
				}
				return rows / time.Since(began).Seconds()
			}
			var bytes atomic.Int64
			var ours, raw float64
			for b.Loop() {
				raw += run(func(p driver.SnapshotPart) (int64, error) {
					conn, err := l.dial(b.Context(), "bench")
					if err != nil {
						return 0, err
					}
					defer hangUp(conn)
					r, err := parseBlockRange(p.Range)
					if err != nil {
						return 0, err
					}
					tag, err := conn.PgConn().CopyTo(b.Context(), io.Discard, "COPY (SELECT * FROM a WHERE "+strings.Join(append(r.conditions(), "true"), " AND ")+") TO STDOUT")
					return tag.RowsAffected(), err
				})
				ours += run(func(p driver.SnapshotPart) (n int64, err error) {
					size := int64(0)
					err = snap.Read(b.Context(), p, func(key, after []byte) error { n++; size += int64(len(key) + len(after)); return nil })
					bytes.Add(size)
					return n, err
				})
			}
			b.ReportMetric(ours/float64(b.N), "rows/s")
			b.ReportMetric(raw/float64(b.N), "raw-rows/s")
			b.ReportMetric(ours/raw, "of-raw")
			b.ReportMetric(float64(bytes.Load())/float64(b.N)/rows, "bytes/row")
			b.ReportMetric(0, "ns/op")
		})
	}
}
