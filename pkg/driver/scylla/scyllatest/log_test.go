package scyllatest_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

const newKeyspace = `CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}`

// shownLog gives the log of ks.t as a table: the given columns, rows in the order of
// the writes. Timeuuids are numbered in the order of their appearance.
func shownLog(t *testing.T, c *scyllatest.Cluster, columns string) string {
	t.Helper()
	_, rows, err := c.Rows(`SELECT "cdc$time", "cdc$batch_seq_no", ` + columns + ` FROM ks.t_scylla_cdc_log`)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return strings.Compare(timeText(a[0])+a[1], timeText(b[0])+b[1]) })
	ids := map[string]string{}
	var out []string
	for _, r := range rows {
		line := strings.Join(r[2:], " | ")
		line = timeuuidRE.ReplaceAllStringFunc(line, func(u string) string {
			if ids[u] == "" {
				ids[u] = "t" + string(rune('1'+len(ids)))
			}
			return ids[u]
		})
		out = append(out, r[1]+" | "+line)
	}
	return strings.Join(out, "\n")
}

var timeuuidRE = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// timeText is a timeuuid in an order that is that of its time.
func timeText(u string) string { return u[14:18] + u[9:13] + u[0:8] }

// What is expected is what ScyllaDB's documentation shows (docs/features/cdc, of
// August 2026), the page and section being the name of the case. Times and keys of
// lists are numbered.
func TestDoubleWritesTheLogThatIsDocumented(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		table, columns string
		writes         []string
		want           string
	}{
		"cdc-basic-operations, Updates: null is a deletion (cdc-advanced-types, introduction)": {
			table: `(pk int, ck int, v int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, v, "cdc$deleted_v"`,
			writes: []string{`UPDATE ks.t SET v = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = null WHERE pk = 0 AND ck = 0`},
			want: `0 | 0 | 0 | 0 | null
0 | 0 | 0 | null | True`,
		},
		"cdc-basic-operations, Static rows in CDC": {
			table: `(pk int, ck int, s int static, c int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, s, c, "cdc$operation"`,
			writes: []string{`UPDATE ks.t SET s = 0, c = 0 WHERE pk = 0 AND ck = 0`},
			want: `0 | 0 | null | 0 | null | 1
1 | 0 | 0 | null | 0 | 1`,
		},
		"cdc-basic-operations, Inserts in CDC": {
			table: `(pk int, ck int, v1 int, v2 int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, v1, "cdc$deleted_v1", v2, "cdc$deleted_v2", "cdc$operation"`,
			writes: []string{`INSERT INTO ks.t (pk, ck, v1) VALUES (0, 0, 0)`, `INSERT INTO ks.t (pk, ck, v2) VALUES (0, 0, NULL)`},
			want: `0 | 0 | 0 | 0 | null | null | null | 2
0 | 0 | 0 | null | null | null | True | 2`,
		},
		"cdc-basic-operations, Inserts in CDC: a static column": {
			table: `(pk int, ck int, s int static, c int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, s, c, "cdc$operation"`,
			writes: []string{`INSERT INTO ks.t (pk, ck, s, c) VALUES (0, 0, 0, 0)`},
			want: `0 | 0 | null | 0 | null | 1
1 | 0 | 0 | null | 0 | 2`,
		},
		"cdc-basic-operations, Row range deletions": {
			table: `(pk int, ck int, v int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, v, "cdc$operation"`,
			writes: []string{`INSERT INTO ks.t (pk, ck, v) VALUES (0, 0, 0)`, `INSERT INTO ks.t (pk, ck, v) VALUES (0, 1, 1)`, `INSERT INTO ks.t (pk, ck, v) VALUES (0, 2, 2)`,
				`INSERT INTO ks.t (pk, ck, v) VALUES (0, 3, 3)`, `DELETE FROM ks.t WHERE pk = 0 AND ck <= 2 and ck > 0`, `DELETE FROM ks.t WHERE pk = 0 AND ck < 3`},
			want: `0 | 0 | 0 | 0 | 2
0 | 0 | 1 | 1 | 2
0 | 0 | 2 | 2 | 2
0 | 0 | 3 | 3 | 2
0 | 0 | 0 | null | 6
1 | 0 | 2 | null | 7
0 | 0 | null | null | 5
1 | 0 | 3 | null | 8`,
		},
		"cdc-basic-operations, Range deletions with multi-column clustering keys": {
			table: `(pk int, ck1 int, ck2 int, ck3 int, v int, PRIMARY KEY (pk, ck1, ck2, ck3))`, columns: `pk, ck1, ck2, ck3, v, "cdc$operation"`,
			writes: []string{`DELETE FROM ks.t WHERE pk = 0 and ck1 = 0 AND ck2 > 0 AND ck2 < 3`},
			want: `0 | 0 | 0 | 0 | null | null | 6
1 | 0 | 0 | 3 | null | null | 8`,
		},
		"cdc-basic-operations, Partition deletion": {
			table: `(pk int, ck int, v int, PRIMARY KEY (pk, ck))`, columns: `pk, ck, v, "cdc$operation"`,
			writes: []string{`INSERT INTO ks.t (pk,ck,v) VALUES (0,0,0)`, `INSERT INTO ks.t (pk,ck,v) VALUES (0,1,1)`, `DELETE FROM ks.t WHERE pk = 0`},
			want: `0 | 0 | 0 | 0 | 2
0 | 0 | 1 | 1 | 2
0 | 0 | null | null | 4`,
		},
		"cdc-advanced-types, Maps": {
			table: `(pk int, ck int, v map<int, text>, PRIMARY KEY (pk, ck))`, columns: `v, "cdc$deleted_v", "cdc$deleted_elements_v", "cdc$operation"`,
			writes: []string{
				`UPDATE ks.t SET v = v + {1: 'v1', 2: 'v2'} WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = v - {1, 2, 3} WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = null WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = {} WHERE pk = 0 AND ck = 0`,
				`BEGIN UNLOGGED BATCH UPDATE ks.t SET v = {} WHERE pk = 0 AND ck = 0; UPDATE ks.t SET v = v + {1: 'v1', 2: 'v2'} WHERE pk = 0 AND ck = 0; APPLY BATCH`,
				`UPDATE ks.t SET v = {1: 'v1', 2: 'v2'} WHERE pk = 0 AND ck = 0`,
				`INSERT INTO ks.t (pk, ck, v) VALUES (0, 0, {1: 'v1', 2: 'v2'})`},
			want: `0 | {1: 'v1', 2: 'v2'} | null | null | 1
0 | null | null | {1, 2, 3} | 1
0 | null | True | null | 1
0 | null | True | null | 1
0 | {1: 'v1', 2: 'v2'} | True | null | 1
0 | {1: 'v1', 2: 'v2'} | True | null | 1
0 | {1: 'v1', 2: 'v2'} | True | null | 2`,
		},
		"cdc-advanced-types, Sets": {
			table: `(pk int, ck int, v set<int>, PRIMARY KEY (pk, ck))`, columns: `v, "cdc$deleted_v", "cdc$deleted_elements_v"`,
			writes: []string{`UPDATE ks.t SET v = v + {1, 2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = v - {1, 2, 3} WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = null WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = {} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = {1, 2} WHERE pk = 0 AND ck = 0`},
			want: `0 | {1, 2} | null | null
0 | null | null | {1, 2, 3}
0 | null | True | null
0 | null | True | null
0 | {1, 2} | True | null`,
		},
		"cdc-advanced-types, Lists": {
			table: `(pk int, ck int, v list<int>, PRIMARY KEY (pk, ck))`, columns: `v, "cdc$deleted_v", "cdc$deleted_elements_v"`,
			writes: []string{`UPDATE ks.t SET v = v + [1, 2, 1, 3] WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = v - [1] WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = [] WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = [1, 2] WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v[SCYLLA_TIMEUUID_LIST_INDEX(0dd381f0-2fea-11eb-af55-000000000001)] = 0 WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v[SCYLLA_TIMEUUID_LIST_INDEX(0dd381f0-2fea-11eb-af55-000000000001)] = null WHERE pk = 0 AND ck = 0`},
			want: `0 | {t1: 1, t2: 2, t3: 1, t4: 3} | null | null
0 | null | null | {t1, t3}
0 | null | True | null
0 | {t5: 1, t6: 2} | True | null
0 | {t7: 0} | null | null
0 | null | null | {t7}`,
		},
		"cdc-advanced-types, User Defined Types": {
			table: `(pk int, ck int, v ut, PRIMARY KEY (pk, ck))`, columns: `v, "cdc$deleted_v", "cdc$deleted_elements_v"`,
			writes: []string{`UPDATE ks.t SET v.a = 0, v.b = 1 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v.a = null, v.b = null WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t SET v = null WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = {a: 1, b: 2} WHERE pk = 0 AND ck = 0`},
			want: `0 | {a: 0, b: 1, c: null} | null | null
0 | {a: null, b: null, c: null} | null | {0, 1}
0 | {a: null, b: null, c: null} | True | null
0 | {a: 1, b: 2, c: null} | True | null`,
		},
		"cdc-preimages, Preimage rows": {
			table: `(pk int, ck int, v1 int, v2 map<int, int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`, columns: `"cdc$operation", pk, ck, v1, v2`,
			writes: []string{`UPDATE ks.t SET v1 = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v2 = v2 + {1:1, 2:2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v2 = v2 + {2:3, 3:4} WHERE pk = 0 AND ck = 0`},
			want: `0 | 1 | 0 | 0 | 0 | null
0 | 0 | 0 | 0 | null | null
1 | 1 | 0 | 0 | null | {1: 1, 2: 2}
0 | 0 | 0 | 0 | null | {1: 1, 2: 2}
1 | 1 | 0 | 0 | null | {2: 3, 3: 4}`,
		},
		"cdc-preimages, Preimage rows: full": {
			table: `(pk int, ck int, v1 int, v2 map<int, int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': 'full'}`, columns: `"cdc$operation", pk, ck, v1, v2`,
			writes: []string{`UPDATE ks.t SET v1 = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v2 = v2 + {1:1, 2:2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v2 = v2 + {2:3, 3:4} WHERE pk = 0 AND ck = 0`},
			want: `0 | 1 | 0 | 0 | 0 | null
0 | 0 | 0 | 0 | 0 | null
1 | 1 | 0 | 0 | null | {1: 1, 2: 2}
0 | 0 | 0 | 0 | 0 | {1: 1, 2: 2}
1 | 1 | 0 | 0 | null | {2: 3, 3: 4}`,
		},
		"cdc-preimages, Preimage rows: none for ranges and partitions": {
			table: `(pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`, columns: `"cdc$operation", pk, ck, v`,
			writes: []string{`UPDATE ks.t SET v = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = 0 WHERE pk = 0 AND ck = 1`, `UPDATE ks.t SET v = 0 WHERE pk = 0 AND ck = 2`,
				`UPDATE ks.t SET v = 1 WHERE pk = 0 AND ck = 0`, `INSERT INTO ks.t (pk, ck, v) VALUES (0, 0, 2)`, `DELETE FROM ks.t WHERE pk = 0 AND ck = 0`,
				`DELETE FROM ks.t WHERE pk = 0 AND ck >= 1 AND ck < 2`, `DELETE FROM ks.t WHERE pk = 0`},
			want: `0 | 1 | 0 | 0 | 0
0 | 1 | 0 | 1 | 0
0 | 1 | 0 | 2 | 0
0 | 0 | 0 | 0 | 0
1 | 1 | 0 | 0 | 1
0 | 0 | 0 | 0 | 1
1 | 2 | 0 | 0 | 2
0 | 0 | 0 | 0 | 2
1 | 3 | 0 | 0 | null
0 | 5 | 0 | 1 | null
1 | 8 | 0 | 2 | null
0 | 4 | 0 | null | null`,
		},
		"cdc-preimages, Preimages and non-atomic columns": {
			table: `(pk int, ck int, v set<int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`, columns: `"cdc$operation", pk, ck, v`,
			writes: []string{`UPDATE ks.t SET v = {1, 2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = v + {3} WHERE pk = 0 AND ck = 0`},
			want: `0 | 1 | 0 | 0 | {1, 2}
0 | 0 | 0 | 0 | {1, 2}
1 | 1 | 0 | 0 | {3}`,
		},
		"cdc-preimages, Postimage rows": {
			table: `(pk int, ck int, v1 int, v2 int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': 'full', 'postimage': true}`, columns: `"cdc$operation", pk, ck, v1, v2`,
			writes: []string{`UPDATE ks.t SET v1 = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v2 = 0 WHERE pk = 0 AND ck = 1`, `UPDATE ks.t SET v1 = 0 WHERE pk = 0 AND ck = 2`,
				`INSERT INTO ks.t (pk, ck, v2) VALUES (0, 0, 0)`, `DELETE FROM ks.t WHERE pk = 0 AND ck = 0`, `DELETE FROM ks.t WHERE pk = 0 AND ck >= 1 AND ck < 2`, `DELETE FROM ks.t WHERE pk = 0`},
			want: `0 | 1 | 0 | 0 | 0 | null
1 | 9 | 0 | 0 | 0 | null
0 | 1 | 0 | 1 | null | 0
1 | 9 | 0 | 1 | null | 0
0 | 1 | 0 | 2 | 0 | null
1 | 9 | 0 | 2 | 0 | null
0 | 0 | 0 | 0 | 0 | null
1 | 2 | 0 | 0 | null | 0
2 | 9 | 0 | 0 | 0 | 0
0 | 0 | 0 | 0 | 0 | 0
1 | 3 | 0 | 0 | null | null
0 | 5 | 0 | 1 | null | null
1 | 8 | 0 | 2 | null | null
0 | 4 | 0 | null | null | null`,
		},
		"cdc-preimages, Postimage rows: collections": {
			table: `(pk int, ck int, v map<int, int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}`, columns: `"cdc$operation", pk, ck, v, "cdc$deleted_elements_v", "cdc$deleted_v"`,
			writes: []string{`UPDATE ks.t SET v = {1:1, 2:2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = v + {3:3}, v = v - {2} WHERE pk = 0 AND ck = 0`, `UPDATE ks.t SET v = {4:4} WHERE pk = 0 AND ck = 0`},
			want: `0 | 1 | 0 | 0 | {1: 1, 2: 2} | null | True
1 | 9 | 0 | 0 | {1: 1, 2: 2} | null | null
0 | 0 | 0 | 0 | {1: 1, 2: 2} | null | null
1 | 1 | 0 | 0 | {3: 3} | {2} | null
2 | 9 | 0 | 0 | {1: 1, 3: 3} | null | null
0 | 0 | 0 | 0 | {1: 1, 3: 3} | null | null
1 | 1 | 0 | 0 | {4: 4} | null | True
2 | 9 | 0 | 0 | {4: 4} | null | null`,
		},
		"cdc-log-table, Time-to-live column": {
			table: `(pk int, ck int, a int, b int, PRIMARY KEY (pk, ck))`, columns: `a, "cdc$deleted_a", b, "cdc$deleted_b", "cdc$ttl"`,
			writes: []string{`UPDATE ks.t SET a = 0 WHERE pk = 0 AND ck = 0`, `UPDATE ks.t USING TTL 5 SET a = 0 WHERE pk = 0 AND ck = 0`,
				`UPDATE ks.t USING TTL 5 SET a = null WHERE pk = 0 AND ck = 0`, `UPDATE ks.t USING TTL 5 SET a = 0, b = null WHERE pk = 0 AND ck = 0`},
			want: `0 | 0 | null | null | null | null
0 | 0 | null | null | null | 5
0 | null | True | null | null | null
0 | null | null | null | True | null
1 | 0 | null | null | null | 5`,
		},
		"cdc-intro, the delta parameter: keys alone": {
			table: `(pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'delta': 'keys', 'preimage': true}`, columns: `"cdc$operation", pk, ck, v, "cdc$ttl"`,
			writes: []string{`INSERT INTO ks.t (pk, ck, v) VALUES (1, 2, 3) USING TTL 9`, `UPDATE ks.t SET v = 4 WHERE pk = 1 AND ck = 2`},
			want: `0 | 2 | 1 | 2 | null | 9
0 | 0 | 1 | 2 | 3 | null
1 | 1 | 1 | 2 | null | null`,
		},
		"not in the documentation, but in a comment of cdc/split.cc: an INSERT of two maps with a TTL": {
			table: `(a int PRIMARY KEY, b map<int, int>, c map<int, int>)`, columns: `b, "cdc$deleted_b", c, "cdc$deleted_c", "cdc$ttl", "cdc$operation"`,
			writes: []string{`INSERT INTO ks.t (a, b, c) VALUES (0, {1:1}, {2:2}) USING TTL 5`, `UPDATE ks.t USING TTL 5 SET b = {0:0} WHERE a = 0`},
			want: `0 | null | null | null | null | 5 | 2
1 | null | True | null | True | null | 1
2 | {1: 1} | null | {2: 2} | null | 5 | 1
0 | null | True | null | null | null | 1
1 | {0: 0} | null | null | null | 5 | 1`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := scyllatest.Start(t)
			def := tt.table
			if !strings.Contains(def, "WITH") {
				def += ` WITH cdc = {'enabled': true}`
			}
			c.MustExec(t, newKeyspace, `CREATE TYPE ks.ut (a int, b int, c int)`, `CREATE TABLE ks.t `+def)
			c.MustExec(t, tt.writes...)
			if got := shownLog(t, c, tt.columns); got != tt.want {
				t.Errorf("the log is\n%s\nand should be\n%s", got, tt.want)
			}
		})
	}
}

// What is expected is what ScyllaDB's own tests ask for (test/boost/cdc_test.cc, of
// August 2026; the name of the case is that of the test). Times begin at <now>.
func TestDoubleWritesTheLogThatScyllaDBsTestsAskFor(t *testing.T) {
	t.Parallel()
	const splitting = `(pk int, ck int, s int static, v1 int, v2 int, m map<int, int>, PRIMARY KEY (pk, ck))`
	for name, tt := range map[string]struct{ table, columns, write, want string }{
		"test_change_splitting: three times are three batches": {splitting, `s, v1, v2, "cdc$end_of_batch"`,
			`BEGIN UNLOGGED BATCH UPDATE ks.t USING TIMESTAMP <now> SET s = -1 WHERE pk = 0; UPDATE ks.t USING TIMESTAMP <now+1> SET v1 = 1 WHERE pk = 0 AND ck = 0; UPDATE ks.t USING TIMESTAMP <now+2> SET v2 = 2 WHERE pk = 0 AND ck = 0; APPLY BATCH`,
			`0 | -1 | null | null | True
0 | null | 1 | null | True
0 | null | null | 2 | True`},
		"test_change_splitting: four TTLs are four rows": {splitting, `v1, v2, "cdc$deleted_v2", m, "cdc$deleted_elements_m", "cdc$ttl"`,
			`BEGIN UNLOGGED BATCH UPDATE ks.t USING TIMESTAMP <now> AND TTL 5 SET v1 = 5, v2 = null WHERE pk = 0 AND ck = 1; UPDATE ks.t USING TIMESTAMP <now> AND TTL 6 SET m = m + {0:6, 1:6} WHERE pk = 0 AND ck = 1;
			 UPDATE ks.t USING TIMESTAMP <now> AND TTL 7 SET m[2] = 7, m[3] = null WHERE pk = 0 AND ck = 1; UPDATE ks.t USING TIMESTAMP <now> SET m[4] = 0 WHERE pk = 0 AND ck = 1; APPLY BATCH`,
			`0 | null | null | True | {4: 0} | {3} | null
1 | 5 | null | null | null | null | 5
2 | null | null | null | {0: 6, 1: 6} | null | 6
3 | null | null | null | {2: 7} | null | 7`},
		"test_change_splitting: all kinds of changes": {splitting, `v1, v2, m, "cdc$deleted_m", "cdc$operation"`,
			`BEGIN UNLOGGED BATCH DELETE FROM ks.t USING TIMESTAMP <now> WHERE pk = 1; DELETE FROM ks.t USING TIMESTAMP <now+1> WHERE pk = 1 AND ck >= 0 AND ck < 3; DELETE FROM ks.t USING TIMESTAMP <now+2> WHERE pk = 1 AND ck = 0;
			 INSERT INTO ks.t (pk, ck, v1) VALUES (1, 0, 1) USING TIMESTAMP <now+3>; UPDATE ks.t USING TIMESTAMP <now+3> SET v2 = 2 WHERE pk = 1 AND ck = 0; INSERT INTO ks.t (pk, ck, m) VALUES (1, 0, {3:3}) USING TIMESTAMP <now+4>;
			 INSERT INTO ks.t (pk, ck, m) VALUES (1, 1, {4:4}) USING TIMESTAMP <now+5> AND TTL 5; APPLY BATCH`,
			`0 | null | null | null | null | 4
0 | null | null | null | null | 5
1 | null | null | null | null | 8
0 | null | null | null | null | 3
0 | 1 | 2 | null | null | 1
0 | null | null | {3: 3} | True | 2
0 | null | null | null | null | 2
1 | null | null | null | True | 1
2 | null | null | {4: 4} | null | 1`},
		"test_pre_post_image_logging_static_row": {`(pk int, ck int, s int static, s2 int static, val int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}`, `"cdc$operation", pk, ck, s, s2, "cdc$ttl"`,
			"INSERT INTO ks.t (pk, s, s2) VALUES (1, 7, 8) USING TTL 50\nUPDATE ks.t USING TTL 60 SET s = 9 WHERE pk = 1",
			`0 | 1 | 1 | null | 7 | 8 | 50
1 | 9 | 1 | null | 7 | 8 | null
0 | 0 | 1 | null | 7 | null | null
1 | 1 | 1 | null | 9 | null | 60
2 | 9 | 1 | null | 9 | 8 | null`},
		"test_change_splitting: an empty range is nothing": {splitting, `"cdc$operation"`, `DELETE FROM ks.t WHERE pk = 2 AND ck < 1 AND ck > 2`, ``},
		"test_preimage_delete_no_clustering_key": {`(pk int, val int, PRIMARY KEY (pk)) WITH cdc = {'enabled': true, 'preimage': true}`, `"cdc$operation", pk, val`,
			"INSERT INTO ks.t (pk, val) VALUES (1, 2)\nINSERT INTO ks.t (pk, val) VALUES (1, 3)\nDELETE FROM ks.t WHERE pk = 1",
			`0 | 2 | 1 | 2
0 | 0 | 1 | 2
1 | 2 | 1 | 3
0 | 0 | 1 | 3
1 | 4 | 1 | null`},
		"test_postimage_with_no_regular_columns": {`(pk int, ck int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'postimage': true}`, `"cdc$operation", pk, ck`, `INSERT INTO ks.t (pk, ck) VALUES (1, 2)`,
			`0 | 2 | 1 | 2
1 | 9 | 1 | 2`},
		"test_image_deleted_column": {`(pk int, ck int, v int, v2 int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}`, `"cdc$operation", v, "cdc$deleted_v", "cdc$deleted_v2"`,
			"INSERT INTO ks.t (pk, ck, v, v2) VALUES (1, 1, null, 1)\nINSERT INTO ks.t (pk, ck, v2) VALUES (1, 1, 1)\nINSERT INTO ks.t (pk, ck, v, v2) VALUES (1, 1, 2, 2)",
			`0 | 2 | null | True | null
1 | 9 | null | null | null
0 | 0 | null | null | null
1 | 2 | null | null | null
2 | 9 | null | null | null
0 | 0 | null | True | null
1 | 2 | 2 | null | null
2 | 9 | 2 | null | null`},
		"test_batch_with_row_delete": {`(pk int, ck int, v1 int, v2 ut, v3 map<int, int>, v4 set<int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`, `v1, v2, v3, v4, "cdc$operation"`,
			"INSERT INTO ks.t (pk, ck, v1, v2, v3, v4) VALUES (0, 0, 1, (1, 2), {1:2, 3:4}, {1, 2, 3})\nBEGIN UNLOGGED BATCH UPDATE ks.t SET v1 = 9 WHERE pk = 0 AND ck = 0; DELETE FROM ks.t WHERE pk = 0 AND ck = 0; APPLY BATCH",
			`0 | 1 | {a: 1, b: 2, c: null} | {1: 2, 3: 4} | {1, 2, 3} | 2
0 | 1 | {a: 1, b: 2, c: null} | {1: 2, 3: 4} | {1, 2, 3} | 0
1 | 9 | null | null | null | 1
2 | null | null | null | null | 3`},
		"test_list_logging": {`(pk int, ck int, val list<text>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}`, `"cdc$operation", val, "cdc$deleted_val", "cdc$deleted_elements_val"`,
			"UPDATE ks.t SET val = ['a1', 'a2'] WHERE pk = 1 AND ck = 1\nUPDATE ks.t SET val = val + ['a3'] WHERE pk = 1 AND ck = 1\nUPDATE ks.t SET val = ['a0'] + val WHERE pk = 1 AND ck = 1\nDELETE val[0] FROM ks.t WHERE pk = 1 AND ck = 1\nUPDATE ks.t SET val[0] = 'z' WHERE pk = 1 AND ck = 1",
			`0 | 1 | {t1: 'a1', t2: 'a2'} | True | null
1 | 9 | {t1: 'a1', t2: 'a2'} | null | null
0 | 0 | {t1: 'a1', t2: 'a2'} | null | null
1 | 1 | {t3: 'a3'} | null | null
2 | 9 | {t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
0 | 0 | {t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
1 | 1 | {t4: 'a0'} | null | null
2 | 9 | {t4: 'a0', t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
0 | 0 | {t4: 'a0', t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
1 | 1 | null | null | {t4}
2 | 9 | {t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
0 | 0 | {t1: 'a1', t2: 'a2', t3: 'a3'} | null | null
1 | 1 | {t1: 'z'} | null | null
2 | 9 | {t1: 'z', t2: 'a2', t3: 'a3'} | null | null`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := scyllatest.Start(t)
			def := tt.table
			if !strings.Contains(def, "WITH") {
				def += ` WITH cdc = {'enabled': true}`
			}
			c.MustExec(t, newKeyspace, `CREATE TYPE ks.ut (a int, b int, c int)`, `CREATE TABLE ks.t `+def)
			now := c.Now().UnixMicro()
			for i := range 6 {
				tt.write = strings.ReplaceAll(tt.write, fmt.Sprintf("<now+%d>", i), fmt.Sprint(now+int64(i)))
			}
			tt.write = strings.ReplaceAll(tt.write, "<now>", fmt.Sprint(now))
			if strings.HasPrefix(tt.write, "BEGIN") {
				c.MustExec(t, tt.write)
			} else {
				c.MustExec(t, strings.Split(tt.write, "\n")...)
			}
			if got := shownLog(t, c, tt.columns); got != tt.want {
				t.Errorf("the log is\n%s\nand should be\n%s", got, tt.want)
			}
		})
	}
}

func TestDoubleEndsEachBatchAndGivesItOneTimeAndStream(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (pk int, ck int, s int static, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`,
		`BEGIN BATCH INSERT INTO ks.t (pk, ck, v) VALUES (1, 1, 1); INSERT INTO ks.t (pk, ck, v) VALUES (1, 2, 2); UPDATE ks.t SET s = 3 WHERE pk = 1;
		 INSERT INTO ks.t (pk, ck, v) VALUES (2, 1, 1); INSERT INTO ks.t (pk, ck, v) VALUES (2, 1, 9); APPLY BATCH`)
	rows, err := c.LogRows("ks.t")
	if err != nil || len(rows) != 4 {
		t.Fatal(rows, err)
	}
	ends := map[string]string{}
	for _, r := range rows {
		if r["cdc$end_of_batch"] == "True" {
			ends[r["pk"]] += r["cdc$batch_seq_no"] + r["v"]
		}
	}
	if ends["1"] != "22" || ends["2"] != "09" { // of two writes of a cell in one batch the greater stands
		t.Errorf("batches end at %v", ends)
	}
}

func TestDoubleKeepsTheLogWithItsTable(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (pk int PRIMARY KEY, v int, w int)`)
	refused := func(cql, want string) {
		t.Helper()
		if err := c.Exec(cql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", cql, err, want)
		}
	}
	logged := func(want int) {
		t.Helper()
		rows, err := c.LogRows("ks.t")
		if err != nil || len(rows) != want {
			t.Errorf("%d rows, want %d: %v", len(rows), want, err)
		}
	}
	refused(`SELECT * FROM ks.t_scylla_cdc_log`, "unconfigured table t_scylla_cdc_log")
	c.MustExec(t, `ALTER TABLE ks.t WITH cdc = {'enabled': true, 'ttl': 10}`, `INSERT INTO ks.t (pk, v) VALUES (1, 1)`, `ALTER TABLE ks.t ADD x text`, `INSERT INTO ks.t (pk, x) VALUES (1, 'x')`)
	logged(2)
	refused(`ALTER TABLE ks.t_scylla_cdc_log DROP x`, "Modify the base table")
	refused(`ALTER TABLE ks.t_scylla_cdc_log WITH cdc = {'enabled': true}`, "nested")
	refused(`DROP TABLE ks.t_scylla_cdc_log`, "Cannot drop")
	c.MustExec(t, `ALTER TABLE ks.t DROP w`)
	refused(`SELECT w FROM ks.t_scylla_cdc_log`, "Unrecognized name w")
	logged(2)
	c.Advance(11e9)
	logged(0)
	c.MustExec(t, `DROP TABLE ks.t`)
	refused(`SELECT * FROM ks.t_scylla_cdc_log`, "unconfigured table")
	refused(`CREATE TABLE ks.n (pk int PRIMARY KEY, n counter) WITH cdc = {'enabled': true}`, "Counter support not implemented")
}
