package scyllatest_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gocql/gocql"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// Whatever the order in which writes come, the one with the greatest time stands; of
// two at one time a deletion, and then the greater value.
func TestDoubleSettlesWritesByTheirTimeAlone(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		var writes []string
		for range rapid.IntRange(1, 12).Draw(rt, "writes") {
			ts, ck, v := rapid.IntRange(1, 5).Draw(rt, "ts"), rapid.IntRange(0, 2).Draw(rt, "ck"), rapid.IntRange(0, 3).Draw(rt, "v")
			writes = append(writes, rapid.SampledFrom([]string{
				fmt.Sprintf(`INSERT INTO ks.%%s (k, c, v) VALUES (1, %d, %d) USING TIMESTAMP %d`, ck, v, ts),
				fmt.Sprintf(`UPDATE ks.%%s USING TIMESTAMP %d SET v = %d, s = %d WHERE k = 1 AND c = %d`, ts, v, v, ck),
				fmt.Sprintf(`UPDATE ks.%%s USING TIMESTAMP %d SET m = m + {%d: %d} WHERE k = 1 AND c = %d`, ts, v, ck, ck),
				fmt.Sprintf(`UPDATE ks.%%s USING TIMESTAMP %d SET m = {%d: 9} WHERE k = 1 AND c = %d`, ts, v, ck),
				fmt.Sprintf(`UPDATE ks.%%s USING TIMESTAMP %d SET m = m - {%d}, v = null WHERE k = 1 AND c = %d`, ts, v, ck),
				fmt.Sprintf(`DELETE FROM ks.%%s USING TIMESTAMP %d WHERE k = 1 AND c = %d`, ts, ck),
				fmt.Sprintf(`DELETE FROM ks.%%s USING TIMESTAMP %d WHERE k = 1 AND c > %d`, ts, ck),
				fmt.Sprintf(`DELETE m FROM ks.%%s USING TIMESTAMP %d WHERE k = 1 AND c = %d`, ts, ck),
				fmt.Sprintf(`DELETE FROM ks.%%s USING TIMESTAMP %d WHERE k = 1`, ts),
			}).Draw(rt, "write"))
		}
		other := rapid.Permutation(writes).Draw(rt, "other order")
		twice := append(slices.Clone(other), writes...)
		var first [][]string
		for i, order := range [][]string{writes, other, twice} {
			name := fmt.Sprintf("t%d_%d", n, i)
			if err := c.Exec(`CREATE TABLE ks.` + name + ` (k int, c int, s int static, v int, m map<int, int>, PRIMARY KEY (k, c))`); err != nil {
				rt.Fatal(err)
			}
			for _, w := range order {
				if err := c.Exec(fmt.Sprintf(w, name)); err != nil {
					rt.Fatal(w, err)
				}
			}
			_, rows, err := c.Rows(`SELECT k, c, s, v, m FROM ks.` + name)
			if err != nil {
				rt.Fatal(err)
			}
			if i == 0 {
				first = rows
			} else if fmt.Sprint(rows) != fmt.Sprint(first) {
				rt.Fatalf("%v, and in another order %v", first, rows)
			}
			if err := c.Exec(`DROP TABLE ks.` + name); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// By pages of any size the rows are those that come without pages, in order of their
// tokens and clustering keys.
func TestDoubleGivesTheSameRowsByPagesOfAnySize(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k text, c bigint, d int, s int static, v int, PRIMARY KEY (k, c, d)) WITH CLUSTERING ORDER BY (c DESC, d ASC)`)
	rapid.Check(t, func(rt *rapid.T) {
		c.MustExec(t, `TRUNCATE ks.t`)
		for range rapid.IntRange(0, 30).Draw(rt, "rows") {
			k := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "k")
			if rapid.IntRange(0, 5).Draw(rt, "static") == 0 {
				c.MustExec(t, fmt.Sprintf(`UPDATE ks.t SET s = 1 WHERE k = '%s'`, k))
				continue
			}
			ck := rapid.SampledFrom([]int64{math.MinInt64, -1, 0, 1, math.MaxInt64}).Draw(rt, "c")
			c.MustExec(t, fmt.Sprintf(`INSERT INTO ks.t (k, c, d, v) VALUES ('%s', %d, %d, 1)`, k, ck, rapid.IntRange(-2, 2).Draw(rt, "d")))
		}
		cql := rapid.SampledFrom([]string{
			`SELECT token(k), k, c, d, s FROM ks.t`, `SELECT k, c, d FROM ks.t WHERE k = 'a'`, `SELECT k, c, d FROM ks.t WHERE k = 'b' ORDER BY c ASC`,
			`SELECT k, c, d FROM ks.t WHERE k = 'c' AND c < 1 AND c > -5`, `SELECT k, c, d FROM ks.t LIMIT 7`, `SELECT k, c, d FROM ks.t PER PARTITION LIMIT 2`,
			`SELECT k, c, d FROM ks.t WHERE k IN ('a', 'c', 'd') AND c IN (0, 1)`, `SELECT DISTINCT k FROM ks.t`, `SELECT k, c FROM ks.t WHERE d > 0 ALLOW FILTERING`,
			`SELECT k, c FROM ks.t WHERE token(k) > 0`, `SELECT k, c, d FROM ks.t WHERE k = 'a' AND (c, d) > (0, 0) ALLOW FILTERING`,
		}).Draw(rt, "query")
		_, want, err := c.Rows(cql)
		if err != nil {
			rt.Fatal(err)
		}
		size := rapid.IntRange(1, 9).Draw(rt, "size")
		iter := s.Query(cql).PageSize(size).Iter()
		var got []string
		for {
			row, err := iter.RowData()
			if err != nil || !iter.Scan(row.Values...) {
				break
			}
			got = append(got, shown(row))
		}
		if err := iter.Close(); err != nil {
			rt.Fatal(err)
		}
		var flat []string
		for _, r := range want {
			flat = append(flat, strings.ReplaceAll(strings.Join(r, " "), "null", "0"))
		}
		if !slices.Equal(got, flat) {
			rt.Fatalf("%s by %d:\n%v\n%v", cql, size, got, flat)
		}
	})
}

func shown(row gocql.RowData) string {
	var vals []string
	for _, v := range row.Values {
		switch v := v.(type) {
		case *string:
			vals = append(vals, *v)
		case *int:
			vals = append(vals, fmt.Sprint(*v))
		case *int64:
			vals = append(vals, fmt.Sprint(*v))
		}
	}
	return strings.Join(vals, " ")
}
