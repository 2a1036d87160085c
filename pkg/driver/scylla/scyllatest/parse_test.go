package scyllatest

import (
	"bytes"
	"testing"
)

// No statement makes the parser panic, and what it reads is read again the same.
func FuzzParse(f *testing.F) {
	for _, def := range systemTables {
		f.Add("CREATE TABLE " + def)
	}
	for _, cql := range []string{
		`SELECT a, "B" AS x, count(*), writetime(c), token(a, b), m['k'], u.f, cast(v AS text) FROM ks.t WHERE a = ? AND b IN (1, 2) AND (c, d) > (1, :x) AND token(a) >= -1 ORDER BY c DESC PER PARTITION LIMIT 2 LIMIT ? ALLOW FILTERING BYPASS CACHE USING TIMEOUT 60000ms`,
		`INSERT INTO t (a, b) VALUES ({'k':true, 'l':null}, [(1, 'x')]) IF NOT EXISTS USING TTL ? AND TIMESTAMP 5`,
		`UPDATE t USING TTL 5 SET a = a + {1}, b = [1] + b, c[1] = 2, d.e = {f: 1}, n -= 1 WHERE k = 0dd381f0-2fea-11eb-af55-000000000001 IF a = 1 AND b != null`,
		`DELETE a, m['x'] FROM t USING TIMESTAMP 1 WHERE k = 0xff AND c > 1y2mo IF EXISTS`,
		`BEGIN UNLOGGED BATCH USING TIMESTAMP 1 INSERT INTO t (a) VALUES (1); UPDATE t SET a = $$x$$ WHERE k = -1.5e3; APPLY BATCH;`,
		`CREATE KEYSPACE IF NOT EXISTS "K" WITH replication = {'class': 'X', 'replication_factor': 1} AND tablets = {'enabled': true}`,
		`ALTER TABLE t ADD (a int, b frozen<map<text, vector<float, 3>>>)`, `CREATE INDEX ON t (keys(m))`, `GRANT SELECT ON TABLE ks.t TO 'r' -- x`, `LIST ALL PERMISSIONS OF r`,
	} {
		f.Add(cql)
	}
	f.Fuzz(func(t *testing.T, cql string) {
		_, marks, err := parse(cql)
		_, again, err2 := parse(cql)
		if (err == nil) != (err2 == nil) || len(marks) != len(again) {
			t.Errorf("%v, %v", err, err2)
		}
	})
}

// No bytes of a value make it panic otherwise than with an error for the client.
func FuzzValue(f *testing.F) {
	types := []string{"map<text, frozen<list<int>>>", "frozen<tuple<int, text, set<uuid>>>", "decimal", "varint", "duration", "timeuuid", "vector<float, 2>", "inet"}
	for i := range types {
		f.Add(i, []byte{0, 0, 0, 1, 0, 0, 0, 1, 5, 0, 0, 0, 4, 0, 0, 0, 0})
	}
	c := &Cluster{}
	f.Fuzz(func(t *testing.T, i int, b []byte) {
		p := &parser{toks: lex(types[uint(i)%uint(len(types))])}
		typ := c.resolveType("", p.typeExpr())
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(failure); !ok {
					panic(r)
				}
			}
		}()
		typ.check(b)
		if typ.compare(b, bytes.Clone(b)) != 0 {
			t.Errorf("%x is not equal to itself as %s", b, typ)
		}
		_ = typ.show(b)
	})
}

// No statement breaks the double, whatever it does to tables and their logs.
func FuzzExec(f *testing.F) {
	c, err := New()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.Close)
	setup := []string{
		`CREATE KEYSPACE IF NOT EXISTS ks WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}`, `CREATE TYPE IF NOT EXISTS ks.u (a int, b text)`,
		`CREATE TABLE IF NOT EXISTS ks.t (k int, c int, d text, s int static, v int, l list<int>, st set<text>, m map<text, int>, u u, f frozen<u>, PRIMARY KEY (k, c, d)) WITH CLUSTERING ORDER BY (c DESC) AND cdc = {'enabled': true, 'preimage': true, 'postimage': true}`,
		`CREATE TABLE IF NOT EXISTS ks.n (k int PRIMARY KEY, n counter)`,
	}
	for _, cql := range append([]string{
		`INSERT INTO ks.t (k, c, d, s, v, l, st, m, u, f) VALUES (1, 1, 'a', 5, 1, [1], {'b'}, {'x': 1}, {a: 1, b: 'b'}, {a: 2}) USING TTL 5`,
		`UPDATE ks.t SET l = [0] + l, st = st - {'a'}, m['x'] = 7, u.a = null WHERE k = 1 AND c = 1 AND d = 'a' IF v = 1 AND m['x'] = 1`,
		`DELETE l[0], m['z'], v FROM ks.t USING TIMESTAMP 5 WHERE k IN (1, 2) AND c = 1 AND d = 'a'`, `DELETE FROM ks.t WHERE k = 1 AND (c, d) > (1, 'a') AND c < 5`, `UPDATE ks.n SET n = n + 1 WHERE k = 1`,
		`SELECT DISTINCT k, s FROM ks.t WHERE token(k) > token(1) PER PARTITION LIMIT 1 LIMIT 2`, `SELECT max(v), count(*) FROM ks.t WHERE k = 1 AND c IN (1, 2) ORDER BY c ASC ALLOW FILTERING`,
		`SELECT u.a, m['x'], cast(v AS text), writetime(v), ttl(s), token(k), mintimeuuid('2026-01-01') FROM ks.t WHERE st CONTAINS 'b' ALLOW FILTERING`,
		`ALTER TABLE ks.t ADD x vector<float, 3>`, `ALTER TYPE ks.u ADD c int`, `BEGIN BATCH INSERT INTO ks.t (k, c, d) VALUES (1, 1, 'a') IF NOT EXISTS; APPLY BATCH`, `SELECT * FROM ks.t_scylla_cdc_log`,
		`CREATE MATERIALIZED VIEW ks.mv AS SELECT k, c, d, v FROM ks.t WHERE v IS NOT NULL PRIMARY KEY (v, k, c, d)`, `CREATE INDEX ON ks.t (v)`, `ALTER TABLE ks.t RENAME c TO e`, `TRUNCATE ks.t`, `DROP TABLE ks.n`, `SELECT * FROM system.local`,
	}, setup...) {
		f.Add(cql)
	}
	f.Fuzz(func(t *testing.T, cql string) {
		for _, s := range setup {
			_ = c.Exec(s) // what an earlier statement dropped
		}
		_ = c.Exec(cql)
		if err := c.Exec(`SELECT release_version FROM system.local`); err != nil {
			t.Error(err)
		}
	})
}
