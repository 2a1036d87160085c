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
