package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func nothingRecent(xidSnapshot) bool { return false }

// chunks reads a table in chunks and returns its rows, and how many each chunk
// had.
func chunks(t *testing.T, r *tableReader, most int) (rows []string, sizes []int) {
	t.Helper()
	after := ""
	for range 1000 {
		n := 0
		next, err := r.Next(t.Context(), after, most, func(key, after []byte) error {
			n++
			rows = append(rows, fmt.Sprintf("%s %s", key, after))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			sizes = append(sizes, n)
		}
		if next == "" {
			return rows, sizes
		}
		after = next
	}
	t.Fatal("it does not end")
	return nil, nil
}

func (l *lab) reader(s driver.ChangeSetup, table driver.TableName, where string, hidden func(xidSnapshot) bool) *tableReader {
	l.t.Helper()
	r, err := l.newSnapshotReader(l.t.Context(), s, driver.SnapshotTable{Table: table, Where: where}, hidden)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

func TestTableIsReadByItsKey(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	keys := map[string]struct{ columns, key, rows string }{
		"text":        {`id text COLLATE "C"`, `id`, `SELECT chr(65 + i % 26) || ' ''"\,{}' || chr(9) || i FROM generate_series(1, 50) i`},
		"uuid":        {`id uuid`, `id`, `SELECT gen_random_uuid() FROM generate_series(1, 50)`},
		"timestamptz": {`id timestamptz`, `id`, `SELECT '2026-01-01'::timestamptz + i * interval '1.000001 s' FROM generate_series(1, 47) i UNION ALL SELECT unnest('{-infinity,infinity,"0044-03-15 12:00:00 BC"}'::timestamptz[])`},
		"numeric":     {`id numeric(20, 5)`, `id`, `SELECT i / 7.0 FROM generate_series(1, 49) i UNION ALL SELECT 'NaN'`},
		"bytea":       {`id bytea`, `id`, `SELECT decode(lpad(to_hex(i), 4, '0'), 'hex') FROM generate_series(1, 50) i`},
		"char":        {`id char(5)`, `id`, `SELECT i::text FROM generate_series(1, 50) i`},
		"enum":        {`id mood, n int`, `id, n`, `SELECT (ARRAY['sad', 'so so', 'fine'])[1 + i % 3]::mood, i FROM generate_series(1, 50) i`},
		"domain":      {`id age`, `id`, `SELECT i FROM generate_series(1, 50) i`},
		"float":       {`id float8`, `id`, `SELECT i / 3e100 FROM generate_series(1, 50) i`},
		"interval":    {`id interval`, `id`, `SELECT i * interval '1 mon 2 days 3.000004 s' FROM generate_series(1, 50) i`},
		"array":       {`id text[]`, `id`, `SELECT ARRAY['a,"b', i::text] FROM generate_series(1, 50) i`},
		"composite":   {`a int, b text, c date, d bool`, `c, a, b, d`, `SELECT i % 3, chr(97 + i % 5), '2026-01-01'::date + i / 10, i % 2 = 0 FROM generate_series(1, 50) i`},
		"range":       {`id int4range`, `id`, `SELECT int4range(i, i + 1) FROM generate_series(1, 50) i`},
	}
	l.exec(`CREATE TYPE mood AS ENUM ('sad', 'so so', 'fine')`, `CREATE DOMAIN age AS int CHECK (VALUE > 0)`)
	s := l.setup()
	for name, k := range keys {
		l.exec(fmt.Sprintf(`CREATE TABLE "by %s" (%s, PRIMARY KEY (%s))`, name, k.columns, k.key), fmt.Sprintf(`INSERT INTO "by %s" %s`, name, k.rows))
		s.Tables = append(s.Tables, driver.TableName{Schema: "public", Table: "by " + name})
	}
	l.prepare(s)
	for _, table := range s.Tables {
		whole := chunksOf(t, l, s, table, 0)
		for _, most := range []int{1, 7, 50, 51} {
			got := chunksOf(t, l, s, table, most)
			if len(got) != 50 || !slices.Equal(got, whole) {
				t.Errorf("%s in chunks of %d: %d rows, not the %d of one go", table, most, len(got), len(whole))
			}
		}
	}
}

func chunksOf(t *testing.T, l *lab, s driver.ChangeSetup, table driver.TableName, most int) []string {
	t.Helper()
	rows, sizes := chunks(t, l.reader(s, table, "", nothingRecent), most)
	for i, n := range sizes {
		if most > 0 && (n > most || n < most && i < len(sizes)-1) {
			t.Errorf("%s: chunks of %v, where %d was asked", table, sizes, most)
		}
	}
	return rows
}

func TestTableIsReadAsThePublicationHasIt(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(
		`CREATE SCHEMA "my schema"`,
		`CREATE TABLE "my schema"."Odd.Name" ("a""b" int, gone int, "C" text DEFAULT 'c', g int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY ("a""b"))`,
		`ALTER TABLE "my schema"."Odd.Name" DROP COLUMN gone`,
		`INSERT INTO "my schema"."Odd.Name" SELECT i FROM generate_series(1, 10) i`, `ANALYZE "my schema"."Odd.Name"`,
		`CREATE TABLE parts (id int, n text, PRIMARY KEY (id)) PARTITION BY HASH (id)`,
		`CREATE TABLE parts_0 (n text, id int NOT NULL)`, `ALTER TABLE parts ATTACH PARTITION parts_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0)`,
		`CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		`INSERT INTO parts SELECT i, 'n' || i FROM generate_series(1, 9) i`,
		`CREATE TABLE bare (id int)`, `INSERT INTO bare VALUES (1), (1), (NULL)`,
		`CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child () INHERITS (parent)`, `INSERT INTO parent VALUES (1)`, `INSERT INTO child VALUES (2)`,
		`CREATE TABLE other (id int PRIMARY KEY)`)
	odd := driver.TableName{Schema: "my schema", Table: "Odd.Name"}
	s := l.setup("parts", "bare", "parent")
	s.Tables, s.InsertsOnly = append(s.Tables, odd), true
	l.prepare(s)
	name := func(table string) driver.TableName { return driver.TableName{Schema: "public", Table: table} }

	r := l.reader(s, odd, `"C" = 'c' AND "a""b" IN (2, 4, 6) -- even`, nothingRecent)
	got, _ := chunks(t, r, 2)
	wantRows(t, got, `{"a\"b":2} {"a\"b":2,"C":"c"}`, `{"a\"b":4} {"a\"b":4,"C":"c"}`, `{"a\"b":6} {"a\"b":6,"C":"c"}`)
	columns, err := r.Columns(t.Context())
	if want := []cdc.Column{{Name: `a"b`, Type: "integer", Key: true}, {Name: "C", Type: "text"}}; err != nil || !slices.Equal(columns, want) {
		t.Errorf("columns: %v, %v", columns, err)
	}
	if n, err := r.Total(t.Context()); err != nil || n < 1 || n > 10 {
		t.Errorf("total %d, %v", n, err)
	}
	// Columns says what the table is like now, and Next goes by that.
	l.exec(`ALTER TABLE "my schema"."Odd.Name" ADD COLUMN late int DEFAULT 3`)
	if got, _ = chunks(t, r, 10); strings.Contains(got[0], "late") {
		t.Errorf("a column that was not described: %v", got)
	}
	if _, err := r.Columns(t.Context()); err != nil {
		t.Error(err)
	}
	if got, _ = chunks(t, r, 10); !strings.Contains(got[0], `"late":3`) {
		t.Errorf("the column that was described is missing: %v", got)
	}

	got, _ = chunks(t, l.reader(s, name("parts"), "", nothingRecent), 2)
	want := []string{}
	for i := 1; i <= 9; i++ {
		want = append(want, fmt.Sprintf(`{"id":%d} {"id":%d,"n":"n%d"}`, i, i, i))
	}
	wantRows(t, got, want...)
	got, sizes := chunks(t, l.reader(s, name("bare"), "", nothingRecent), 2)
	wantRows(t, got, ` {"id":1}`, ` {"id":1}`, ` {"id":null}`)
	if len(sizes) != 1 {
		t.Errorf("a table without a key was read in %d chunks", len(sizes))
	}
	got, _ = chunks(t, l.reader(s, name("parent"), "", nothingRecent), 2)
	wantRows(t, got, `{"id":1} {"id":1}`)

	_, err = l.newSnapshotReader(t.Context(), s, driver.SnapshotTable{Table: name("other")}, nothingRecent)
	wantCode(t, err, athena.CodeNotFound, "not published")
	_, err = r.Next(t.Context(), `["1","2"]`, 1, nil)
	wantCode(t, err, athena.CodeConflict, "start the snapshot again")

	if serverMajorOf(l) >= 15 {
		l.exec(`ALTER PUBLICATION ` + s.Publication + ` SET TABLE parts (id) WHERE (id > 3)`)
		got, _ = chunks(t, l.reader(s, name("parts"), "id < 6", nothingRecent), 1)
		wantRows(t, got, `{"id":4} {"id":4}`, `{"id":5} {"id":5}`)
	}
}

// A unique index need not tell values apart as the column does.
func TestTableIsReadInTheOrderOfItsIndex(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	if len(l.ask(`SELECT 'x' FROM pg_collation WHERE collprovider = 'i'`)) == 0 {
		t.Log("this server has no ICU, and so no collation that takes different texts for equal")
		return
	}
	l.exec(`CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)`,
		`CREATE TABLE a (id text COLLATE blind NOT NULL)`, `CREATE UNIQUE INDEX a_id ON a (id COLLATE "C")`, `ALTER TABLE a REPLICA IDENTITY USING INDEX a_id`,
		`INSERT INTO a VALUES ('x'), ('X'), ('y'), ('Y'), ('Z')`)
	s := l.setup("a")
	l.prepare(s)
	got, _ := chunks(t, l.reader(s, s.Tables[0], "", nothingRecent), 1)
	wantRows(t, got, `{"id":"X"} {"id":"X"}`, `{"id":"Y"} {"id":"Y"}`, `{"id":"Z"} {"id":"Z"}`, `{"id":"x"} {"id":"x"}`, `{"id":"y"} {"id":"y"}`)
}

func TestConditionsStayWithinTheirParentheses(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, t text)`, `INSERT INTO a VALUES (1, 'x;y)')`, `CREATE FUNCTION sneak() RETURNS bool LANGUAGE sql AS $$ DELETE FROM a RETURNING true $$`)
	s := l.setup("a")
	l.prepare(s)
	for name, where := range map[string]string{
		"a statement behind it":       `true; DROP TABLE a`,
		"a statement behind quotes":   `t = E'\'' ; DROP TABLE a --'`,
		"a parenthesis too many":      `true) OR (true`,
		"a parenthesis too few":       `(true`,
		"a comment that does not end": `true /* `,
		"a string that does not end":  `t = 'x`,
		"a parameter":                 `id > $1`,
		"no expression":               `id = 1 ORDER BY id`,
		"another SELECT":              `true UNION SELECT 1`,
		"no column":                   `nowhere = 1`,
		"no condition":                `id`,
		"nothing but a comment":       `-- true`,
		"a character U+0000":          "id = 1\x00",
	} {
		_, err := l.newSnapshotReader(t.Context(), s, driver.SnapshotTable{Table: s.Tables[0], Where: where}, nothingRecent)
		if athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.HasPrefix(athena.AsError(err).Message, "where ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, where := range []string{`t = 'x;y)'`, `t IN (SELECT ';' || ')' UNION SELECT $$x;y)$$) -- ;)`, `(((id)) = 1)`, " \n"} {
		if got, _ := chunks(t, l.reader(s, s.Tables[0], where, nothingRecent), 10); len(got) != 1 {
			t.Errorf("%q gave %v", where, got)
		}
	}
	r := l.reader(s, s.Tables[0], `sneak()`, nothingRecent)
	if _, err := r.Next(t.Context(), "", 1, func(_, _ []byte) error { return nil }); err == nil {
		t.Error("a condition wrote")
	}
	if got := l.ask(`SELECT t FROM a`); len(got) != 1 {
		t.Error("a row is gone")
	}
}

// What the stream has handed over is in the chunk, though its transaction stays
// in progress for a while; also if it is the newest of all.
func TestChunkHasWhatWasHandedOver(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]string{"the newest transaction": ``, "an older one": `INSERT INTO a VALUES (3)`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Server(t, map[string]string{"fsync": "off"}).DSN("postgres") // others' transactions would be newer
			l := newLab(t, dsn)
			l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`)
			s := l.setup("a")
			l.prepare(s)
			slow := beginWriting(t, dsn, `INSERT INTO a VALUES (2)`)
			var handed uint32
			if err := slow.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&handed); err != nil {
				t.Fatal(err)
			}
			l.exec(later)
			var recent recentTransactions
			recent.add(handed - 1)
			recent.add(handed)
			asked := 0
			r := l.reader(s, s.Tables[0], "id < 3", func(x xidSnapshot) bool {
				hidden := recent.hiddenFrom(x)
				if asked++; asked == 3 {
					if _, err := slow.Exec(t.Context(), "COMMIT"); err != nil {
						t.Error(err)
					}
				}
				return hidden
			})
			got, _ := chunks(t, r, 10)
			wantRows(t, got, `{"id":1} {"id":1}`, `{"id":2} {"id":2}`)
			if asked != 4 {
				t.Errorf("asked %d times", asked)
			}

			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			always := l.reader(s, s.Tables[0], "", func(xidSnapshot) bool { return true })
			if _, err := always.Next(ctx, "", 1, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A transaction that began before ALTER TABLE wrote all rows anew does not see
// them.
func TestChunkHasTheRowsOfATableThatIsRewritten(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	l := newLab(t, dsn)
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, n int) PARTITION BY RANGE (id)`, `CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (5)`,
		`CREATE TABLE a_2 PARTITION OF a FOR VALUES FROM (5) TO (10)`, `INSERT INTO a VALUES (1), (6)`)
	s := l.setup("a")
	l.prepare(s)
	var alter *pgx.Conn
	var committing sync.WaitGroup
	asked := 0
	r := l.reader(s, s.Tables[0], "", func(xidSnapshot) bool {
		if asked++; asked == 1 { // the transaction has its snapshot, and goes on to wait for the lock
			committing.Go(func() {
				l.until(`SELECT 'x' FROM pg_locks WHERE relation = 'a'::regclass AND NOT granted`)
				if _, err := alter.Exec(context.Background(), "COMMIT"); err != nil {
					t.Error(err)
				}
			})
		}
		return false
	})
	alter = beginWriting(t, dsn, `ALTER TABLE a ALTER n TYPE int USING n + 1`)
	got, _ := chunks(t, r, 10)
	committing.Wait()
	wantRows(t, got, `{"id":1} {"id":1,"n":null}`, `{"id":6} {"id":6,"n":null}`)
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// Rows are never given under columns that were described before the table was
// altered.
func TestChunkOfATableThatHasOtherColumnsNow(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY, v int)`, `INSERT INTO a VALUES (1, 2)`)
	s := l.setup("a")
	l.prepare(s)
	r := l.reader(s, s.Tables[0], "", nothingRecent)
	if _, err := r.Columns(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, ddl := range []string{`ALTER TABLE a ALTER v TYPE text USING 'two'`, `ALTER TABLE a RENAME v TO w`, `ALTER TABLE a DROP w`} {
		l.exec(ddl)
		if _, err := r.Next(t.Context(), "", 10, nil); !errors.Is(err, driver.ErrTableChanged) {
			t.Errorf("after %s the error is %v", ddl, err)
		}
		columns, err := r.Columns(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(t.Context(), "", 10, func(_, after []byte) error {
			if !strings.Contains(string(after), `"`+columns[len(columns)-1].Name+`":`) {
				t.Errorf("%s has not the columns %v", after, columns)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// A chunk that takes too long fails its table: the stream is held for it.
func TestChunkThatTakesTooLong(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`)
	s := l.setup("a")
	l.prepare(s)
	r := l.reader(s, s.Tables[0], "pg_sleep(10) IS NULL", nothingRecent)
	r.timeout = 50 * time.Millisecond
	_, err := r.Next(t.Context(), "", 10, nil)
	wantCode(t, err, athena.CodeTimeout, "public.a")
}

func TestTransactionsThatASnapshotDoesNotSee(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		handed   []uint32
		snapshot string
		hidden   bool
	}{
		"nothing was handed over":      {nil, "5:9:5,7", false},
		"all are done":                 {[]uint32{4, 6, 8}, "5:9:5,7", false},
		"one is open":                  {[]uint32{4, 7, 8}, "5:9:5,7", true},
		"one is the newest":            {[]uint32{9, 4}, "5:9:", true},
		"one is newer than the newest": {[]uint32{12}, "9:9:", true},
		"before the ids wrapped":       {[]uint32{4294967290}, "4294967300:4294967301:4294967300", false},
		"open since before that":       {[]uint32{4294967290, 3}, "4294967290:4294967305:4294967290", true},
		"newest, behind the wrap":      {[]uint32{4294967290, 6}, "4294967301:4294967302:", true},
	}
	for name, tt := range tests {
		var r recentTransactions
		for _, xid := range tt.handed {
			r.add(xid)
		}
		x, err := parseXIDs(tt.snapshot)
		if err != nil || r.hiddenFrom(x) != tt.hidden {
			t.Errorf("%s: %v, %v", name, !tt.hidden, err)
		}
	}
	for _, text := range []string{"", "1:2", "1:x:", "1:2:x"} {
		if x, err := parseXIDs(text); err == nil {
			t.Errorf("%q is %v", text, x)
		}
	}
}

func TestReaderGoesOnAfterItsConnectionWasLost(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a SELECT generate_series(1, 5)`)
	s := l.setup("a")
	l.prepare(s)
	r := l.reader(s, s.Tables[0], "", nothingRecent)
	read := func(after string) (string, []string, error) {
		var got []string
		next, err := r.Next(t.Context(), after, 2, func(key, _ []byte) error { got = append(got, string(key)); return nil })
		return next, got, err
	}
	next, _, err := read("")
	if err != nil {
		t.Fatal(err)
	}
	l.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '` + replicationName(s.Client) + `'`)
	if _, _, err := read(next); err == nil {
		t.Error("read on a connection that is gone")
	}
	stop := errors.New("enough")
	if _, err := r.Next(t.Context(), next, 2, func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if _, got, err := read(next); err != nil || !slices.Equal(got, []string{`{"id":3}`, `{"id":4}`}) {
		t.Errorf("%v, %v", got, err)
	}
}
