package scyllatest_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/gocql/gocql"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestMain(m *testing.M) { cassandratest.Main(m) }

// A pair is the double and a real Apache Cassandra, which are given the same
// statements. What both have in common is plain CQL; nothing is said of ScyllaDB.
type pair struct {
	double, real *gocql.Session
	keyspace     string // of the real one; that of the double is ks
}

func newPair(t *testing.T) *pair {
	server := cassandratest.Start(t)
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace)
	return &pair{connect(t, c, func(cl *gocql.ClusterConfig) { cl.RetryPolicy = &gocql.SimpleRetryPolicy{} }), server.Session(t), server.Keyspace(t)}
}

// answer is what a statement comes to: its rows, or the code of its error.
func answer(s *gocql.Session, cql string) string {
	iter := s.Query(cql).Consistency(gocql.One).Iter()
	var rows []string
	for {
		row, err := iter.RowData()
		if err != nil || !iter.Scan(row.Values...) {
			break
		}
		var vals []string
		for i, v := range row.Values {
			if row.Columns[0] == "[applied]" && i > 0 { // ScyllaDB shows more of the row than Cassandra
				continue
			}
			vals = append(vals, fmt.Sprint(reflect.ValueOf(v).Elem().Interface()))
		}
		rows = append(rows, strings.Join(vals, " | "))
	}
	if err := iter.Close(); err != nil {
		var e coded
		if errors.As(err, &e) {
			return fmt.Sprintf("error %#x", e.GetCode())
		}
		return err.Error()
	}
	return strings.Join(rows, "\n")
}

func (p *pair) same(t interface{ Errorf(string, ...any) }, cql string) {
	double, real := answer(p.double, cql), answer(p.real, strings.ReplaceAll(cql, "ks.", p.keyspace+"."))
	if double != real {
		t.Errorf("%s\nthe double: %s\nCassandra:  %s", cql, double, real)
	}
}

func TestDoubleAnswersAsCassandraDoes(t *testing.T) {
	p := newPair(t)
	for _, cql := range strings.Split(script, "\n") {
		if cql = strings.TrimSpace(cql); cql != "" {
			p.same(t, cql)
		}
	}
	// The order of clustering columns, and that of tokens, by type.
	for typ, vals := range map[string][]string{
		"varint": {"0", "-1", "256", "-256", "99999999999999999999", "-99999999999999999999"}, "decimal": {"0", "1.0", "-1.5", "100", "0.001", "-1e10"},
		"double": {"0.0", "-1.5", "NaN", "Infinity", "-Infinity", "1e300"}, "float": {"0.5", "-0.5", "2"}, "boolean": {"true", "false"}, "tinyint": {"-128", "127", "0"},
		"timeuuid": {"0dd381f0-2fea-11eb-af55-000000000001", "0dd381f0-2fea-11eb-2f55-000000000001", "0dd381f0-2fea-11ea-af55-000000000001", "ffd381f0-2fea-11ea-af55-0000000000ff"},
		"uuid":     {"0dd381f0-2fea-11eb-af55-000000000001", "0dd381f0-2fea-41eb-2f55-000000000001", "ffd381f0-2fea-41ea-af55-000000000001", "00d381f0-2fea-11ec-af55-0000000000ff"},
		"inet":     {"'127.0.0.1'", "'255.0.0.1'", "'::1'", "'2001:db8::1'"}, "date": {"'1969-12-31'", "'2026-01-01'", "'0001-01-01'"}, "time": {"'00:00:00'", "'23:59:59.9'"},
		"timestamp": {"'1960-01-01'", "'2026-01-01 10:00:00+0000'", "0"}, "text": {"''", "'a'", "'ä'", "'Z'"}, "blob": {"0x", "0x00", "0xff", "0x0001"}, "ascii": {"'a'", "'B'"},
		"frozen<list<int>>": {"[1]", "[1, 2]", "[-1]", "[]"}, "frozen<set<text>>": {"{'a'}", "{'b', 'a'}"}, "frozen<map<int, text>>": {"{1: 'a'}", "{1: 'b'}", "{0: 'z', 2: 'x'}"},
		"frozen<tuple<int, text>>": {"(1, 'a')", "(1, null)", "(0, 'z')"}, "bigint": {"-9223372036854775808", "9223372036854775807", "0"}, "int": {"-1", "0", "1"}, "smallint": {"-32768", "1"},
	} {
		name := "ks.o_" + strings.NewReplacer("<", "_", ">", "", ", ", "_").Replace(typ)
		p.same(t, `CREATE TABLE `+name+` (k `+typ+`, c `+typ+`, PRIMARY KEY (k, c))`)
		for _, k := range []string{vals[0], vals[1]} {
			for _, c := range vals {
				p.same(t, `INSERT INTO `+name+` (k, c) VALUES (`+k+`, `+c+`)`)
			}
		}
		p.same(t, `SELECT token(k), k, c FROM `+name)
		p.same(t, `SELECT c FROM `+name+` WHERE k = `+vals[1]+` AND c > `+vals[0]+` ORDER BY c DESC`)
	}
}

// script is statements that both must answer alike, in their order. Where ScyllaDB is
// known to answer otherwise (as with 0x2300 to a DROP of what is not there), they are
// not among them.
const script = `
CREATE TYPE ks.u (a int, b text)
CREATE TABLE ks.t (k int, c int, d text, s int static, v int, l list<int>, st set<text>, m map<text, int>, u u, f frozen<u>, PRIMARY KEY (k, c, d)) WITH CLUSTERING ORDER BY (c DESC, d ASC)
CREATE TABLE ks.t (k int PRIMARY KEY)
INSERT INTO ks.t (k, c, d, s, v, l, st, m, u, f) VALUES (1, 1, 'a', 5, 1, [1, 2, 3], {'b', 'a'}, {'x': 1, 'y': 2}, {a: 1, b: 'b'}, {a: 2})
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'b', 2)
INSERT INTO ks.t (k, c, d, v) VALUES (1, 2, 'a', 3)
INSERT INTO ks.t (k, c, d, v) VALUES (1, 3, 'a', null)
UPDATE ks.t SET s = 9 WHERE k = 2
SELECT k, c, d, s, v, l, st, m FROM ks.t WHERE k = 1
SELECT k, c, d, s FROM ks.t
SELECT u.a, f.b FROM ks.t WHERE k = 1
SELECT DISTINCT k, s FROM ks.t
SELECT c, d FROM ks.t WHERE k = 1 ORDER BY c ASC, d DESC
SELECT c, d FROM ks.t WHERE k = 1 ORDER BY c ASC
SELECT c, d FROM ks.t WHERE k = 1 ORDER BY c ASC, d ASC
SELECT c, d FROM ks.t WHERE k = 1 ORDER BY d ASC
SELECT c, d FROM ks.t ORDER BY c ASC
SELECT c, d FROM ks.t WHERE k = 1 AND c >= 2
SELECT c, d FROM ks.t WHERE k = 1 AND c > 1 AND c < 3
SELECT c, d FROM ks.t WHERE k = 1 AND c = 1 AND d > 'a'
SELECT c, d FROM ks.t WHERE k = 1 AND d = 'a'
SELECT c, d FROM ks.t WHERE k = 1 AND d = 'a' ALLOW FILTERING
SELECT c, d FROM ks.t WHERE k = 1 AND (c, d) IN ((1, 'b'), (2, 'a'))
SELECT c, d FROM ks.t WHERE k = 1 AND c IN (1, 3)
SELECT c, d FROM ks.t WHERE k IN (2, 1) AND c IN (3, 2) AND d = 'a'
SELECT c, d FROM ks.t WHERE v = 2
SELECT c, d FROM ks.t WHERE v = 2 ALLOW FILTERING
SELECT c, d FROM ks.t WHERE k = 1 AND m CONTAINS KEY 'x' ALLOW FILTERING
SELECT c, d FROM ks.t WHERE k = 1 AND st CONTAINS 'a' ALLOW FILTERING
SELECT c, d FROM ks.t WHERE k = 1 LIMIT 2
SELECT c, d FROM ks.t PER PARTITION LIMIT 1
SELECT c, d FROM ks.t WHERE k = 1 LIMIT 0
SELECT count(*) FROM ks.t
SELECT count(v), sum(v), min(d), max(c), avg(c) FROM ks.t WHERE k = 1
SELECT count(*) FROM ks.t WHERE k = 77
SELECT max(c) FROM ks.t WHERE k = 77
SELECT writetime(c) FROM ks.t
SELECT writetime(s), ttl(v) FROM ks.t WHERE k = 77
SELECT nothing FROM ks.t
SELECT * FROM ks.nothing
SELECT c FROM ks.t WHERE k = 'x'
SELECT c FROM ks.t WHERE k = null
SELECT c FROM ks.t WHERE k > 1
SELECT c FROM ks.t WHERE token(k) > token(1)
SELECT token(k), c FROM ks.t WHERE token(k) <= token(1)
SELECT cast(v AS text), cast(c AS bigint), cast(v AS double) FROM ks.t WHERE k = 1 AND c = 2
SELECT intasblob(v), blobasint(intasblob(v)) FROM ks.t WHERE k = 1 AND c = 2
UPDATE ks.t SET l = l + [4], st = st + {'c'}, m = m + {'z': 3} WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET l = [0] + l, st = st - {'a', 'q'}, m['x'] = 7 WHERE k = 1 AND c = 1 AND d = 'a'
SELECT l, st, m FROM ks.t WHERE k = 1 AND c = 1
UPDATE ks.t SET l[1] = 11, m = m - {'y'}, u.b = 'c' WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET l = l - [2, 4] WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET l[9] = 1 WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET f.a = 1 WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET v = v + 1 WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET v = 1 WHERE k = 1 AND c = 1
UPDATE ks.t SET v = 1 WHERE k = 1 AND c = 1 AND d > 'a'
UPDATE ks.t SET k = 1 WHERE k = 1 AND c = 1 AND d = 'a'
UPDATE ks.t SET v = 1 WHERE k = 1 AND c = 1 AND d = 'a' AND v = 1
SELECT l, st, m, u.a, u.b FROM ks.t WHERE k = 1 AND c = 1
DELETE l[0], m['z'], st['b'] FROM ks.t WHERE k = 1 AND c = 1 AND d = 'a'
SELECT l, st, m FROM ks.t WHERE k = 1 AND c = 1
DELETE v, u, l FROM ks.t WHERE k = 1 AND c = 1 AND d = 'a'
SELECT l, v FROM ks.t WHERE k = 1 AND c = 1
INSERT INTO ks.t (k, c, d, v) VALUES (3, 1, 'a', 1) USING TIMESTAMP 100
UPDATE ks.t USING TIMESTAMP 99 SET v = 2 WHERE k = 3 AND c = 1 AND d = 'a'
SELECT v, writetime(v) FROM ks.t WHERE k = 3
DELETE FROM ks.t USING TIMESTAMP 100 WHERE k = 3 AND c = 1
SELECT v FROM ks.t WHERE k = 3
INSERT INTO ks.t (k, c, d, v) VALUES (3, 1, 'a', 1) USING TIMESTAMP 100
SELECT v FROM ks.t WHERE k = 3
INSERT INTO ks.t (k, c, d, v) VALUES (3, 1, 'a', 1) USING TIMESTAMP 101
SELECT v FROM ks.t WHERE k = 3
UPDATE ks.t USING TIMESTAMP 102 SET v = 8 WHERE k = 4 AND c = 1 AND d = 'a'
DELETE v FROM ks.t USING TIMESTAMP 103 WHERE k = 4 AND c = 1 AND d = 'a'
SELECT v FROM ks.t WHERE k = 4
INSERT INTO ks.t (k, c, d) VALUES (4, 1, 'a')
SELECT c, v FROM ks.t WHERE k = 4
DELETE FROM ks.t WHERE k = 1 AND c <= 2 AND c > 1
SELECT c, d FROM ks.t WHERE k = 1
CREATE TABLE ks.r (k int, a int, b int, c int, PRIMARY KEY (k, a, b, c)) WITH CLUSTERING ORDER BY (a ASC, b ASC, c DESC)
INSERT INTO ks.r (k, a, b, c) VALUES (1, 1, 1, 1)
INSERT INTO ks.r (k, a, b, c) VALUES (1, 1, 2, 1)
INSERT INTO ks.r (k, a, b, c) VALUES (1, 1, 2, 2)
INSERT INTO ks.r (k, a, b, c) VALUES (1, 2, 1, 1)
INSERT INTO ks.r (k, a, b, c) VALUES (1, 3, 1, 1)
SELECT a, b, c FROM ks.r WHERE k = 1 AND (a, b) > (1, 1) AND (a, b) <= (2, 1)
SELECT a, b, c FROM ks.r WHERE k = 1 AND (a, b) > (1, 1) AND (a) < (3)
SELECT a, b, c FROM ks.r WHERE k = 1 AND (a, b, c) >= (1, 2, 2)
SELECT a, b, c FROM ks.r WHERE k = 1 AND a = 1 AND (b, c) > (1, 5)
SELECT a, b, c FROM ks.r WHERE k = 1 AND (a, b) = (1, 2) AND c < 2
DELETE FROM ks.r WHERE k = 1 AND (a, b) > (1, 1) AND (a, b) < (2, 1)
SELECT a, b, c FROM ks.r WHERE k = 1
DELETE FROM ks.r WHERE k = 1 AND (a, b) = (2, 1)
SELECT a, b, c FROM ks.r WHERE k = 1
DELETE FROM ks.r WHERE k = 1 AND (a) >= (3)
SELECT a, b, c FROM ks.r WHERE k = 1
DELETE FROM ks.r WHERE k = 1 AND c = 1
DELETE FROM ks.t WHERE k IN (1, 3)
DELETE FROM ks.t WHERE c = 1
DELETE FROM ks.t WHERE k = 1 AND d = 'a'
SELECT k, c, d FROM ks.t
INSERT INTO ks.t (k, c, d) VALUES (1, 1)
INSERT INTO ks.t (k, c, v) VALUES (1, 1, 1)
INSERT INTO ks.t (k, k, c, d) VALUES (1, 1, 1, 'a')
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, null, 1)
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'a', 'x')
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'a', 99999999999)
INSERT INTO ks.t (k, c, d, l) VALUES (1, 1, 'a', {1})
INSERT INTO ks.t (k, c, d, u) VALUES (1, 1, 'a', {z: 1})
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'a', 1) USING TTL -5
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'a', 1) IF NOT EXISTS
INSERT INTO ks.t (k, c, d, v) VALUES (1, 1, 'a', 2) IF NOT EXISTS
UPDATE ks.t SET v = 3 WHERE k = 1 AND c = 1 AND d = 'a' IF v = 1
UPDATE ks.t SET v = 3 WHERE k = 1 AND c = 1 AND d = 'a' IF v = 1
UPDATE ks.t SET v = 4 WHERE k = 1 AND c = 1 AND d = 'a' IF v > 2 AND s = null
UPDATE ks.t SET v = 5 WHERE k = 1 AND c = 1 AND d = 'zz' IF EXISTS
UPDATE ks.t SET s = 5 WHERE k = 1 IF s = null
UPDATE ks.t SET v = 5 WHERE k = 1 AND c = 1 AND d = 'a' IF v IN (4, 5)
UPDATE ks.t SET v = 6 WHERE k = 1 AND c = 1 AND d = 'a' IF m['x'] = 1
UPDATE ks.t SET v = 6 WHERE k = 1 AND c = 1 AND d = 'a' IF k = 1
UPDATE ks.t USING TIMESTAMP 5 SET v = 6 WHERE k = 1 AND c = 1 AND d = 'a' IF v = 5
DELETE FROM ks.t WHERE k = 1 AND c = 1 AND d = 'a' IF v = 9
DELETE FROM ks.t WHERE k = 1 AND c = 1 AND d = 'a' IF EXISTS
DELETE FROM ks.t WHERE k = 1 AND c = 1 AND d = 'a' IF EXISTS
SELECT k, c, s, v FROM ks.t WHERE k = 1
CREATE TABLE ks.n (k int, c int, n counter, m counter, PRIMARY KEY (k, c))
UPDATE ks.n SET n = n + 5, m = m - 1 WHERE k = 1 AND c = 1
UPDATE ks.n SET n += 2 WHERE k = 1 AND c = 1
UPDATE ks.n SET n = 1 WHERE k = 1 AND c = 1
INSERT INTO ks.n (k, c, n) VALUES (1, 1, 1)
UPDATE ks.n USING TTL 5 SET n = n + 1 WHERE k = 1 AND c = 1
SELECT k, c, n, m FROM ks.n
BEGIN BATCH UPDATE ks.n SET n = n + 1 WHERE k = 1 AND c = 1; APPLY BATCH
BEGIN COUNTER BATCH UPDATE ks.n SET n = n + 1 WHERE k = 1 AND c = 1; UPDATE ks.n SET n = n + 1 WHERE k = 1 AND c = 2; APPLY BATCH
BEGIN COUNTER BATCH INSERT INTO ks.t (k, c, d) VALUES (1, 1, 'a'); APPLY BATCH
SELECT k, c, n, m FROM ks.n
BEGIN BATCH INSERT INTO ks.t (k, c, d, v) VALUES (6, 1, 'a', 1); UPDATE ks.t SET v = 2 WHERE k = 6 AND c = 2 AND d = 'b'; DELETE FROM ks.t WHERE k = 6 AND c = 3; APPLY BATCH
BEGIN UNLOGGED BATCH USING TIMESTAMP 77 INSERT INTO ks.t (k, c, d, v) VALUES (7, 1, 'a', 1); UPDATE ks.t SET v = 2 WHERE k = 7 AND c = 1 AND d = 'a'; APPLY BATCH
SELECT k, c, d, v FROM ks.t WHERE k IN (6, 7)
CREATE TABLE ks.s (k text, v int, PRIMARY KEY (k))
INSERT INTO ks.s (k, v) VALUES ('', 1)
INSERT INTO ks.s (k, v) VALUES ('a', 1)
ALTER TABLE ks.s ADD w text
ALTER TABLE ks.s ADD w text
ALTER TABLE ks.s DROP k
ALTER TABLE ks.s DROP nothing
INSERT INTO ks.s (k, w) VALUES ('a', 'b')
SELECT k, v, w FROM ks.s
ALTER TABLE ks.s DROP v
SELECT v FROM ks.s
CREATE TABLE ks.bad (a int)
CREATE TABLE ks.bad (a int, b int, PRIMARY KEY (c))
CREATE TABLE ks.bad (a list<int> PRIMARY KEY)
CREATE TABLE ks.bad (a int PRIMARY KEY, b list<list<int>>)
CREATE TABLE ks.bad (a int PRIMARY KEY, b nothing)
CREATE TABLE ks.bad (a int PRIMARY KEY, b int static)
CREATE TABLE ks.bad (a int PRIMARY KEY, b counter, c int)
DROP TABLE IF EXISTS ks.nothing
DROP TYPE ks.u
TRUNCATE ks.t
SELECT k FROM ks.t
DROP TABLE ks.t
SELECT k FROM ks.t
`

// Statements of any kind and order, at any times, leave the same rows in the double
// as in Cassandra.
func TestDoubleHoldsWhatCassandraHolds(t *testing.T) {
	p := newPair(t)
	p.same(t, `CREATE TABLE ks.t (k int, c int, d int, s int static, v int, l list<int>, st set<int>, m map<int, int>, PRIMARY KEY (k, c, d)) WITH CLUSTERING ORDER BY (c ASC, d DESC)`)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		for range rapid.IntRange(1, 15).Draw(rt, "writes") {
			k, c, d := n, rapid.IntRange(0, 2).Draw(rt, "c"), rapid.IntRange(0, 1).Draw(rt, "d")
			ts, v := rapid.IntRange(1, 6).Draw(rt, "ts"), rapid.IntRange(0, 3).Draw(rt, "v")
			row := fmt.Sprintf(`k = %d AND c = %d AND d = %d`, k, c, d)
			p.same(rt, rapid.SampledFrom([]string{
				fmt.Sprintf(`INSERT INTO ks.t (k, c, d, v, m) VALUES (%d, %d, %d, %d, {%d: 1}) USING TIMESTAMP %d`, k, c, d, v, v, ts),
				fmt.Sprintf(`INSERT INTO ks.t (k, c, d, s, st) VALUES (%d, %d, %d, %d, {%d}) USING TIMESTAMP %d`, k, c, d, v, v, ts),
				fmt.Sprintf(`INSERT INTO ks.t (k, s) VALUES (%d, %d) USING TIMESTAMP %d`, k, v, ts),
				fmt.Sprintf(`UPDATE ks.t USING TIMESTAMP %d SET v = %d, l = [%d, 1] WHERE %s`, ts, v, v, row),
				fmt.Sprintf(`UPDATE ks.t USING TIMESTAMP %d SET m = m + {%d: %d}, st = st - {%d} WHERE %s`, ts, v, c, v, row),
				fmt.Sprintf(`UPDATE ks.t USING TIMESTAMP %d SET m[%d] = null, v = null WHERE %s`, ts, v, row),
				fmt.Sprintf(`DELETE v, m, s FROM ks.t USING TIMESTAMP %d WHERE %s`, ts, row),
				fmt.Sprintf(`DELETE FROM ks.t USING TIMESTAMP %d WHERE %s`, ts, row),
				fmt.Sprintf(`DELETE FROM ks.t USING TIMESTAMP %d WHERE k = %d AND c = %d`, ts, k, c),
				fmt.Sprintf(`DELETE FROM ks.t USING TIMESTAMP %d WHERE k = %d AND c = %d AND d > %d`, ts, k, c, d),
				fmt.Sprintf(`DELETE FROM ks.t USING TIMESTAMP %d WHERE k = %d AND c >= %d AND c < %d`, ts, k, c, v),
				fmt.Sprintf(`DELETE FROM ks.t USING TIMESTAMP %d WHERE k = %d`, ts, k),
			}).Draw(rt, "write"))
		}
		for _, q := range []string{`SELECT c, d, s, v, st, m, writetime(v), writetime(s) FROM ks.t WHERE k = %d`, `SELECT c, d FROM ks.t WHERE k = %d ORDER BY c DESC, d ASC`,
			`SELECT DISTINCT k, s FROM ks.t WHERE k = %d`, `SELECT c, d FROM ks.t WHERE k = %d AND c >= 1 AND c < 3`, `SELECT d, v FROM ks.t WHERE k = %d AND c IN (0, 2) LIMIT 3`, `SELECT count(*), max(v) FROM ks.t WHERE k = %d`} {
			p.same(rt, fmt.Sprintf(q, n))
		}
	})
}
