package scyllatest_test

import (
	"errors"
	"fmt"
	"math/big"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"
	"gopkg.in/inf.v0"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// connect opens a session of gocql, as it is.
func connect(t testing.TB, c *scyllatest.Cluster, conf ...func(*gocql.ClusterConfig)) *gocql.Session {
	t.Helper()
	cl := gocql.NewCluster(c.Hosts()...)
	cl.Logger = quiet{}
	for _, f := range conf {
		f(cl)
	}
	s, err := cl.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

type quiet struct{}

func (quiet) Print(...any)          {}
func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

func must(t testing.TB, s *gocql.Session, cql string, args ...any) {
	t.Helper()
	if err := s.Query(cql, args...).Exec(); err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
}

// texts gives the rows of a query, each as its values with spaces between.
func texts(t testing.TB, s *gocql.Session, cql string, args ...any) []string {
	t.Helper()
	iter := s.Query(cql, args...).Iter()
	out := []string{}
	for {
		row, err := iter.RowData()
		if err != nil {
			t.Fatalf("%s: %v", cql, err)
		}
		if !iter.Scan(row.Values...) {
			break
		}
		var vals []string
		for _, v := range row.Values {
			vals = append(vals, fmt.Sprint(reflect.ValueOf(v).Elem().Interface()))
		}
		out = append(out, strings.Join(vals, " "))
	}
	if err := iter.Close(); err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
	return out
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestDoubleTakesAndGivesEveryType(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	must(t, s, newKeyspace)
	must(t, s, `CREATE TYPE ks.u (a int, b text)`)
	at := time.Date(2026, 11, 22, 10, 0, 0, 123e6, time.UTC)
	id := gocql.UUIDFromTime(at)
	dec, _ := new(inf.Dec).SetString("-12.340")
	for typ, v := range map[string]any{
		"ascii": "a", "text": "ä\x00", "bigint": int64(-1 << 63), "int": 7, "smallint": int16(-7), "tinyint": int8(-128), "varint": new(big.Int).Lsh(big.NewInt(-3), 70),
		"decimal": dec, "float": float32(1.5), "double": -0.1, "boolean": true, "blob": []byte{0, 255}, "uuid": gocql.MustRandomUUID(), "timeuuid": id,
		"timestamp": at, "date": time.Date(1969, 12, 31, 0, 0, 0, 0, time.UTC), "time": 10*time.Hour + 1, "inet": net.ParseIP("2001:db8::1"),
		"duration": gocql.Duration{Months: 14, Days: 3, Nanoseconds: 5}, "list<int>": []int{3, 1, 2}, "set<text>": []string{"a", "b"},
		"map<text, bigint>": map[string]int64{"k": 1}, "frozen<list<frozen<list<int>>>>": [][]int{{1}, {2, 3}}, "frozen<map<int, frozen<set<int>>>>": map[int][]int{1: {1, 2}},
		"u": map[string]any{"a": 1, "b": "x"}, "frozen<u>": map[string]any{"a": 1, "b": "x"}, "list<frozen<u>>": []map[string]any{{"a": 1, "b": "x"}}, "vector<float, 3>": []float32{1, 2, 3},
	} {
		name := "t_" + strings.NewReplacer("<", "_", ">", "", ", ", "_").Replace(typ)
		must(t, s, `CREATE TABLE ks.`+name+` (k int PRIMARY KEY, v `+typ+`)`)
		must(t, s, `INSERT INTO ks.`+name+` (k, v) VALUES (1, ?)`, v)
		back := reflect.New(reflect.TypeOf(v))
		if err := s.Query(`SELECT v FROM ks.` + name).Scan(back.Interface()); err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		if got := back.Elem().Interface(); fmt.Sprint(got) != fmt.Sprint(v) {
			t.Errorf("%s: %v, want %v", typ, got, v)
		}
		must(t, s, `INSERT INTO ks.`+name+` (k, v) VALUES (1, null)`)
		same(t, typ+" is null", len(texts(t, s, `SELECT k FROM ks.`+name+` WHERE k = 1`)), 1)
	}
	if _, err := s.KeyspaceMetadata("ks"); err != nil {
		t.Error(err)
	}
}

func TestDoubleReadsLiteralsOfEveryType(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TYPE ks.u (a int, b frozen<list<text>>)`)
	for typ, lit := range map[string][2]string{
		"ascii": {`'a''b'`, `a'b`}, "bigint": {`-9223372036854775808`, ``}, "varint": {`123456789012345678901234567890`, ``}, "decimal": {`-1.20`, ``}, "double": {`1e3`, `1000`},
		"float": {`-0.5`, ``}, "boolean": {`true`, `True`}, "blob": {`0x00ff`, ``}, "timestamp": {`'2026-11-22 10:00:00.123+0000'`, `2026-11-22 10:00:00.123000+0000`},
		"date": {`'1969-12-31'`, `1969-12-31`}, "time": {`'10:00:00.5'`, `10:00:00.500000000`}, "inet": {`'127.0.0.1'`, `127.0.0.1`}, "duration": {`1y2mo3d4h5ns`, `14mo3d14400000000005ns`},
		"list<int>": {`[2, 1]`, ``}, "set<int>": {`{2, 1, 2}`, `{1, 2}`}, "map<text, boolean>": {`{'a':true, 'b': false}`, `{'a': True, 'b': False}`}, "u": {`{a: 1, b: ['x']}`, ``},
		"tuple<int, text>": {`(1, 'x')`, ``}, "frozen<tuple<int, frozen<u>>>": {`(1, {a:2})`, `(1, {a: 2, b: null})`}, "uuid": {`0dd381f0-2fea-41eb-af55-000000000001`, ``},
		"timeuuid": {`0DD381F0-2fea-11eb-af55-000000000001`, `0dd381f0-2fea-11eb-af55-000000000001`}, "vector<float, 2>": {`[1.5, 2]`, ``}, "text": {`$$it's$$`, `it's`},
	} {
		name := "t_" + strings.NewReplacer("<", "_", ">", "", ", ", "_").Replace(typ)
		c.MustExec(t, `CREATE TABLE ks.`+name+` (k int PRIMARY KEY, v `+typ+`)`, `INSERT INTO ks.`+name+` (k, v) VALUES (1, `+lit[0]+`)`)
		want := lit[1]
		if want == "" {
			want = lit[0]
		}
		_, rows, err := c.Rows(`SELECT v FROM ks.` + name)
		if err != nil || rows[0][0] != want {
			t.Errorf("%s: %v, want %s: %v", typ, rows, want, err)
		}
	}
}

func TestDoubleAnswersSelects(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (a int, b int, c int, d int, s int static, m map<text, int>, v int, PRIMARY KEY ((a, b), c, d)) WITH CLUSTERING ORDER BY (c DESC, d ASC)`,
		`CREATE TABLE ks.one (k int PRIMARY KEY, v int)`)
	for i := range 3 {
		for j := range 2 {
			must(t, s, `INSERT INTO ks.t (a, b, c, d, v, m) VALUES (1, 1, ?, ?, ?, ?)`, i, j, 10*i+j, map[string]int{"x": i})
		}
		must(t, s, `INSERT INTO ks.one (k, v) VALUES (?, ?)`, i, i)
	}
	must(t, s, `UPDATE ks.t USING TTL 100 SET s = 5 WHERE a = 1 AND b = 1`)
	must(t, s, `UPDATE ks.t SET s = 6 WHERE a = 2 AND b = 2`)
	for cql, want := range map[string][]string{
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1`:                                            {"20", "21", "10", "11", "0", "1"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 ORDER BY c ASC, d DESC`:                     {"1", "0", "11", "10", "21", "20"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND c > 0 AND c <= 2`:                       {"20", "21", "10", "11"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND c < 2 LIMIT 3`:                          {"10", "11", "0"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND c IN (0, 2) AND d = 1`:                  {"21", "1"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND (c, d) = (1, 1)`:                        {"11"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND (c, d) IN ((1, 1), (2, 0))`:             {"20", "11"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND c = 1 AND d >= 1`:                       {"11"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND m CONTAINS 2 ALLOW FILTERING`:           {"20", "21"},
		`SELECT v FROM ks.t WHERE a = 1 AND v = 11 ALLOW FILTERING`:                           {"11"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND d = 0 ALLOW FILTERING`:                  {"20", "10", "0"},
		`SELECT count(*) FROM ks.t WHERE a = 1 AND b = 1`:                                     {"6"},
		`SELECT min(v), max(v), sum(v), avg(v), count(v) FROM ks.t WHERE a = 1 AND b = 1`:     {"0 21 63 10 6"},
		`SELECT DISTINCT a, b, s FROM ks.t WHERE a IN (1, 2) AND b IN (1, 2)`:                 {"1 1 5", "2 2 6"},
		`SELECT a, c, s FROM ks.t WHERE a = 2 AND b = 2`:                                      {"2 0 6"},
		`SELECT a, m['x'] AS x FROM ks.t WHERE a = 1 AND b = 1 LIMIT 1`:                       {"1 2"},
		`SELECT k, token(k) FROM ks.one`:                                                      {"1 -4069959284402364209", "0 -3485513579396041028", "2 -3248873570005575792"},
		`SELECT k FROM ks.one WHERE token(k) > -3485513579396041028`:                          {"2"},
		`SELECT k FROM ks.one WHERE token(k) >= -4069959284402364209 AND token(k) < token(2)`: {"1", "0"},
		`SELECT k FROM ks.one WHERE k IN (0, 2, 0) BYPASS CACHE USING TIMEOUT 5s`:             {"0", "2"},
		`SELECT cast(v AS text) FROM ks.one WHERE k = 2`:                                      {"2"},
		`SELECT v FROM ks.one PER PARTITION LIMIT 1 LIMIT 2`:                                  {"1", "0"},
		`SELECT v FROM ks.t WHERE a = 1 AND b IN (1, 2) PER PARTITION LIMIT 2`:                {"20", "21"},
		`SELECT k FROM ks.one WHERE v >= 1 ALLOW FILTERING`:                                   {"1", "2"},
		`SELECT totimestamp(mintimeuuid('2026-11-22')), intasblob(k) FROM ks.one WHERE k = 1`: {"2026-11-22 00:00:00 +0000 UTC [0 0 0 1]"},
		`SELECT v FROM ks.t WHERE a = 1 AND b = 1 AND c > 5`:                                  {},
		`SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'ks'`:              {"one", "t"},
		`SELECT column_name, kind, position, clustering_order, type FROM system_schema.columns WHERE keyspace_name = 'ks' AND table_name = 'one'`: {
			"k partition_key 0 none int", "v regular -1 none int"},
	} {
		same(t, cql, texts(t, s, cql), want)
		for size := 1; size < 4 && !strings.Contains(cql, "ORDER"); size++ {
			var got []string
			iter := s.Query(cql).PageSize(size).Iter()
			n := iter.NumRows()
			for more := true; more; {
				row, _ := iter.RowData()
				if more = iter.Scan(row.Values...); more {
					got = append(got, "")
				}
			}
			if err := iter.Close(); err != nil || len(got) != len(want) || n > size && !strings.Contains(cql, "(*)") {
				t.Errorf("%s by %d: %d rows, %v", cql, size, len(got), err)
			}
		}
	}
}

func TestDoubleRefusesAsAServerDoes(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (a int, b int, c int, v int, PRIMARY KEY (a, b, c))`, `CREATE TABLE ks.n (k int PRIMARY KEY, n counter)`)
	for cql, want := range map[string]string{
		`SELECT * FROM ks.none`:                                                                      "unconfigured table none",
		`SELECT * FROM none.t`:                                                                       "Keyspace 'none' does not exist",
		`SELECT x FROM ks.t`:                                                                         "Unrecognized name x",
		`SELECT * FROM ks.t WHERE v = 1`:                                                             "ALLOW FILTERING",
		`SELECT * FROM ks.t WHERE a = 1 AND c = 1`:                                                   "ALLOW FILTERING",
		`INSERT INTO ks.t (a, b, v) VALUES (1, 1, 1)`:                                                "Missing mandatory PRIMARY KEY part c",
		`INSERT INTO ks.t (a, b, c, v) VALUES (1, 1, 1, 'x')`:                                        "Invalid STRING constant (x) for type int",
		`INSERT INTO ks.t (a, b, c, v) VALUES (1, 1, null, 1)`:                                       "Invalid null value",
		`INSERT INTO ks.n (k, n) VALUES (1, 1)`:                                                      "not allowed on counter tables",
		`UPDATE ks.t SET v = 1 WHERE a = 1 AND b = 1`:                                                "Missing mandatory PRIMARY KEY part c",
		`UPDATE ks.t SET a = 2 WHERE a = 1 AND b = 1 AND c = 1`:                                      "PRIMARY KEY part a found in SET part",
		`UPDATE ks.t SET v = v + 1 WHERE a = 1 AND b = 1 AND c = 1`:                                  "Invalid operation",
		`DELETE v FROM ks.t WHERE a = 1 AND b > 1`:                                                   "Missing mandatory PRIMARY KEY part c",
		`DELETE FROM ks.t WHERE b = 1`:                                                               "Missing mandatory PRIMARY KEY part a",
		`UPDATE ks.t USING TIMESTAMP 1 SET v = 1 WHERE a = 1 AND b = 1 AND c = 1 IF v = 2`:           "custom timestamp for conditional",
		`CREATE TABLE ks.t (a int PRIMARY KEY)`:                                                      "already existing table",
		`CREATE KEYSPACE ks WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}`: "already exists",
		`INSERT INTO system.local (key) VALUES ('x')`:                                                "not user-modifiable",
		`BEGIN BATCH UPDATE ks.n SET n = n + 1 WHERE k = 1; APPLY BATCH`:                             "Cannot include a counter statement in a logged batch",
		`INSERT INTO ks.t (a, b, c) VALUES (1, 1, 1) USING TTL -1`:                                   "A TTL must be greater or equal to 0",
	} {
		if err := s.Query(cql).Exec(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", cql, err, want)
		}
	}
	codes := map[string]int{`SELECT * FROM ks.none`: gocql.ErrCodeInvalid, `CREATE TABLE ks.t (a int PRIMARY KEY)`: gocql.ErrCodeAlreadyExists, `INSERT INTO system.local (key) VALUES ('x')`: gocql.ErrCodeUnauthorized}
	for cql, code := range codes {
		var e interface{ GetCode() int }
		if err := s.Query(cql).Exec(); !errors.As(err, &e) || e.GetCode() != code {
			t.Errorf("%s: %v", cql, err)
		}
	}
	same(t, "Unknown", c.Unknown(), []string(nil))
}

func TestDoubleSaysWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	var e interface{ GetCode() int }
	if err := s.Query(`SELEC * FROM system.local`).Exec(); !errors.As(err, &e) || e.GetCode() != gocql.ErrCodeSyntax {
		t.Error(err)
	}
	if u := c.Unknown(); len(u) != 1 || !strings.Contains(u[0], "SELEC *") {
		t.Error(u)
	}
	c.ExpectUnknown("SELEC")
	same(t, "Unknown", c.Unknown(), []string{})
}

func TestDoubleWritesAndDeletes(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TYPE ks.u (a int, b int)`, `CREATE TABLE ks.t (k int, c int, v int, l list<int>, s set<int>, m map<int, int>, u u, PRIMARY KEY (k, c))`)
	row := func() string {
		return strings.Join(texts(t, s, `SELECT v, l, s, m FROM ks.t WHERE k = 1 AND c = 1`), ";")
	}
	for _, step := range []struct{ cql, want string }{
		{`INSERT INTO ks.t (k, c, v, l, s, m) VALUES (1, 1, 1, [1, 2], {1}, {1: 1})`, "1 [1 2] [1] map[1:1]"},
		{`UPDATE ks.t SET l = l + [3], s = s + {2}, m = m + {2: 2} WHERE k = 1 AND c = 1`, "1 [1 2 3] [1 2] map[1:1 2:2]"},
		{`UPDATE ks.t SET l = [0] + l, s = s - {1}, m[1] = 9 WHERE k = 1 AND c = 1`, "1 [0 1 2 3] [2] map[1:9 2:2]"},
		{`UPDATE ks.t SET l[0] = 7, m = m - {2}, v = null WHERE k = 1 AND c = 1`, "0 [7 1 2 3] [2] map[1:9]"},
		{`DELETE l[1], m[1] FROM ks.t WHERE k = 1 AND c = 1`, "0 [7 2 3] [2] map[]"},
		{`UPDATE ks.t SET l = l - [2, 3], u.a = 1 WHERE k = 1 AND c = 1`, "0 [7] [2] map[]"},
		{`DELETE s FROM ks.t WHERE k = 1 AND c = 1`, "0 [7] [] map[]"},
		{`INSERT INTO ks.t (k, c, v) VALUES (1, 1, 5) USING TIMESTAMP 1`, "0 [7] [] map[]"}, // older than the null
		{`DELETE FROM ks.t WHERE k = 1 AND c >= 1`, ""},
		{`INSERT INTO ks.t (k, c, v) VALUES (1, 1, 5)`, "5 [] [] map[]"},
		{`BEGIN BATCH DELETE FROM ks.t WHERE k = 1 AND c = 1; INSERT INTO ks.t (k, c, v) VALUES (1, 2, 6); APPLY BATCH`, ""},
		{`TRUNCATE ks.t`, ""},
	} {
		must(t, s, step.cql)
		same(t, step.cql, row(), step.want)
	}
	must(t, s, `INSERT INTO ks.t (k, c, v) VALUES (1, 1, 1) USING TTL 10`)
	c.Advance(9e9)
	same(t, "before the TTL", row(), "1 [] [] map[]")
	c.Advance(2e9)
	same(t, "after the TTL", row(), "")
	must(t, s, `ALTER TABLE ks.t WITH default_time_to_live = 20`)
	must(t, s, `INSERT INTO ks.t (k, c, v) VALUES (1, 1, 2)`)
	same(t, "before the TTL of the table", row(), "2 [] [] map[]")
	c.Advance(21e9)
	same(t, "after the TTL of the table", row(), "")
}

func TestDoubleComparesAndSets(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int, c int, v int, w int, s int static, PRIMARY KEY (k, c))`)
	cas := func(cql string, want bool, row ...any) {
		t.Helper()
		m := map[string]any{}
		applied, err := s.Query(cql).MapScanCAS(m)
		if err != nil || applied != want {
			t.Errorf("%s: %v %v", cql, applied, err)
		}
		for i := 0; i < len(row); i += 2 {
			if m[row[i].(string)] != row[i+1] {
				t.Errorf("%s: %v", cql, m)
			}
		}
	}
	cas(`INSERT INTO ks.t (k, c, v) VALUES (1, 1, 1) IF NOT EXISTS`, true)
	cas(`INSERT INTO ks.t (k, c, v) VALUES (1, 1, 2) IF NOT EXISTS`, false, "v", 1, "k", 1)
	cas(`UPDATE ks.t SET v = 2 WHERE k = 1 AND c = 1 IF v = 1`, true)
	cas(`UPDATE ks.t SET v = 3 WHERE k = 1 AND c = 1 IF v IN (1, 5) AND w = null`, false, "v", 2)
	cas(`UPDATE ks.t SET v = 3 WHERE k = 1 AND c = 2 IF EXISTS`, false)
	cas(`UPDATE ks.t SET s = 1 WHERE k = 9 IF s = null`, true)
	cas(`DELETE FROM ks.t WHERE k = 1 AND c = 1 IF v > 1`, true)
	cas(`BEGIN BATCH INSERT INTO ks.t (k, c, v) VALUES (1, 1, 1) IF NOT EXISTS; INSERT INTO ks.t (k, c, v) VALUES (1, 2, 1); APPLY BATCH`, true)
	same(t, "rows", texts(t, s, `SELECT c, v FROM ks.t WHERE k = 1`), []string{"1 1", "2 1"})
}

func TestDoubleCountsAndBatches(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.n (k int PRIMARY KEY, n counter)`, `CREATE TABLE ks.t (k int, c int, v text, PRIMARY KEY (k, c))`)
	must(t, s, `UPDATE ks.n SET n = n + ? WHERE k = ?`, int64(5), 1)
	must(t, s, `UPDATE ks.n SET n = n - 2 WHERE k = 1`)
	b := s.Batch(gocql.CounterBatch)
	b.Query(`UPDATE ks.n SET n = n + ? WHERE k = ?`, int64(4), 1)
	b.Query(`UPDATE ks.n SET n += 1 WHERE k = 1`)
	if err := s.ExecuteBatch(b); err != nil {
		t.Fatal(err)
	}
	same(t, "counter", texts(t, s, `SELECT n FROM ks.n`), []string{"8"})

	u := s.Batch(gocql.UnloggedBatch)
	for i := range 5 {
		u.Query(`INSERT INTO ks.t (k, c, v) VALUES (?, ?, ?)`, 1, i, "x")
	}
	u.Query(`DELETE FROM ks.t WHERE k = 1 AND c = 9`)
	u.WithTimestamp(77)
	if err := s.ExecuteBatch(u); err != nil {
		t.Fatal(err)
	}
	same(t, "rows", texts(t, s, `SELECT count(*), max(c) FROM ks.t`), []string{"5 4"})
	same(t, "time", texts(t, s, `SELECT writetime(v) FROM ks.t LIMIT 1`), []string{"77"})
	must(t, s, `INSERT INTO ks.t (k, c, v) VALUES (:k, :c, :v) USING TTL :ttl`, gocql.NamedValue("k", 2), gocql.NamedValue("c", 3), gocql.NamedValue("v", "named"), gocql.NamedValue("ttl", 60))
	must(t, s, `UPDATE ks.t SET v = ? WHERE k = ? AND c = ?`, gocql.UnsetValue, 2, 3)
	same(t, "named", texts(t, s, `SELECT c, v FROM ks.t WHERE k = 2`), []string{"3 named"})
	var ttl int
	if err := s.Query(`SELECT ttl(v) FROM ks.t WHERE k = 2`).Scan(&ttl); err != nil || ttl < 1 || ttl > 60 {
		t.Errorf("ttl %d, %v", ttl, err)
	}
}

// A page goes on behind the row that it ended with, whatever is written meanwhile.
func TestDoublePagesAreStable(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.PageSize = 2 })
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int, c int, PRIMARY KEY (k, c))`)
	for i := range 6 {
		must(t, s, `INSERT INTO ks.t (k, c) VALUES (1, ?)`, 10*i)
	}
	iter := s.Query(`SELECT c FROM ks.t WHERE k = 1`).Prefetch(0).Iter()
	var v int
	var got []int
	for iter.Scan(&v) {
		got = append(got, v)
		if len(got) == 2 {
			must(t, s, `INSERT INTO ks.t (k, c) VALUES (1, 5)`)
			must(t, s, `INSERT INTO ks.t (k, c) VALUES (1, 25)`)
			must(t, s, `DELETE FROM ks.t WHERE k = 1 AND c = 10`)
		}
	}
	if err := iter.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, "rows", got, []int{0, 10, 20, 25, 30, 40, 50})
}

func TestDoubleChangesItsSchema(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.Keyspace = "system" })
	must(t, s, newKeyspace)
	for _, q := range []string{
		`CREATE TYPE IF NOT EXISTS ks.u (a int)`, `CREATE TABLE ks.t (k int, c int, v u, w text, PRIMARY KEY (k, c)) WITH comment = 'x' AND default_time_to_live = 0`,
		`ALTER TYPE ks.u ADD b text`, `CREATE INDEX i ON ks.t (w)`, `CREATE MATERIALIZED VIEW ks.mv AS SELECT * FROM ks.t WHERE w IS NOT NULL AND k IS NOT NULL AND c IS NOT NULL PRIMARY KEY (w, k, c)`,
	} {
		must(t, s, q)
	}
	must(t, s, `INSERT INTO ks.t (k, c, v, w) VALUES (1, 1, {a: 1, b: 'x'}, ?)`, "w")
	same(t, "by the index", texts(t, s, `SELECT k FROM ks.t WHERE w = ?`, "w"), []string{"1"})
	must(t, s, `ALTER TABLE ks.t ADD x int`)
	must(t, s, `ALTER TABLE ks.t RENAME c TO d`)
	must(t, s, `INSERT INTO ks.t (k, d, x, w) VALUES (1, 1, 3, ?)`, "w2")
	same(t, "altered", texts(t, s, `SELECT k, d, x FROM ks.t WHERE w = ?`, "w2"), []string{"1 1 3"})
	md, err := connect(t, c).KeyspaceMetadata("ks") // a new session: that of the old one is of a while ago
	if err != nil {
		t.Fatal(err)
	}
	tab := md.Tables["t"]
	if tab == nil || tab.Columns["x"] == nil || len(tab.ClusteringColumns) != 1 || md.Types["u"] == nil || len(md.Types["u"].FieldNames) != 2 || md.Views["mv"] == nil || md.Indexes["i"] == nil {
		t.Errorf("%+v", md)
	}
	for _, q := range []string{`DROP MATERIALIZED VIEW ks.mv`, `DROP INDEX ks.i`, `ALTER TABLE ks.t DROP w`, `DROP TABLE ks.t`, `DROP TYPE ks.u`, `DROP KEYSPACE ks`, `DROP KEYSPACE IF EXISTS ks`} {
		must(t, s, q)
	}
}
