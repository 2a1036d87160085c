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
	c := scyllatest.Start(t, scyllatest.ShortPages(4), scyllatest.EmptyPages())
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

// The delta rows of a log replay the writes: what they tell, made statements of again,
// leaves the same table. (ScyllaDB's documentation calls that the principle of its
// design, in cdc-preimages.)
func TestDoubleTellsInItsLogAllThatWasWritten(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TYPE ks.u (a int, b int)`)
	const columns = ` (k int, c int, d int, s int static, v int, m map<int, int>, st set<int>, l list<int>, u u, PRIMARY KEY (k, c, d)) `
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		base, copied := fmt.Sprintf("ks.b%d", n), fmt.Sprintf("ks.r%d", n)
		c.MustExec(t, `CREATE TABLE `+base+columns+`WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}`, `CREATE TABLE `+copied+columns)
		now := c.Now().UnixMicro()
		for range rapid.IntRange(1, 8).Draw(rt, "requests") {
			var batch []string
			for range rapid.IntRange(1, 3).Draw(rt, "statements") {
				ck, v, ttl := rapid.IntRange(0, 2).Draw(rt, "ck"), rapid.IntRange(0, 3).Draw(rt, "v"), ""
				ts := now + rapid.Int64Range(0, 4).Draw(rt, "ts")
				if rapid.Bool().Draw(rt, "ttl") {
					ttl = " AND TTL 1000"
				}
				row := fmt.Sprintf(` WHERE k = 1 AND c = %d AND d = 1`, ck)
				using := fmt.Sprintf(` USING TIMESTAMP %d`, ts)
				batch = append(batch, rapid.SampledFrom([]string{
					fmt.Sprintf(`INSERT INTO %s (k, c, d, v, s, m, l, u) VALUES (1, %d, 1, %d, 5, {%d: 1}, [1, %d], {a: %d})`, base, ck, v, v, v, v) + using + ttl,
					fmt.Sprintf(`INSERT INTO %s (k, c, d, v) VALUES (1, %d, 1, null)`, base, ck) + using + ttl,
					`UPDATE ` + base + using + ttl + fmt.Sprintf(` SET v = %d, st = st + {%d}, m = m - {%d}, u.b = %d`, v, v, v, v) + row,
					`UPDATE ` + base + using + ttl + fmt.Sprintf(` SET m[%d] = 4, l = l + [%d], st = {%d}, u = {b: 1}`, v, v, v) + row,
					`UPDATE ` + base + using + fmt.Sprintf(` SET l = [%d] + l, m = {}, u.a = null`, v) + row,
					`UPDATE ` + base + using + ttl + fmt.Sprintf(` SET s = %d WHERE k = 1`, v),
					`DELETE v, m, s FROM ` + base + using + row,
					`DELETE FROM ` + base + using + row,
					`DELETE FROM ` + base + using + fmt.Sprintf(` WHERE k = 1 AND c = %d AND d > %d`, ck, v-1),
					`DELETE FROM ` + base + using + fmt.Sprintf(` WHERE k = 1 AND c >= %d AND c < %d`, ck, v),
					`DELETE FROM ` + base + using + ` WHERE k = 1`,
				}).Draw(rt, "statement"))
			}
			c.MustExec(t, `BEGIN UNLOGGED BATCH `+strings.Join(batch, "; ")+`; APPLY BATCH`)
		}
		log, err := c.LogRows(base)
		if err != nil {
			rt.Fatal(err)
		}
		for _, cql := range replay(copied, log) {
			if err := c.Exec(cql); err != nil {
				rt.Fatal(cql, err)
			}
		}
		const what = `SELECT k, c, d, s, v, m, st, l, u, writetime(v), writetime(s) FROM `
		_, want, _ := c.Rows(what + base)
		_, got, err := c.Rows(what + copied)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Fatalf("replayed: %v\nwritten:  %v\n%v %v", got, want, log, err)
		}
		c.MustExec(t, `DROP TABLE `+base, `DROP TABLE `+copied)
	})
}

// replay makes statements of the delta rows of a log.
func replay(table string, log []map[string]string) (out []string) {
	var start map[string]string
	for _, r := range log {
		using := fmt.Sprintf(" USING TIMESTAMP %d", micros(r["cdc$time"]))
		ttl := ""
		if r["cdc$ttl"] != "" {
			ttl = " AND TTL " + r["cdc$ttl"]
		}
		where := " WHERE k = " + r["k"]
		for _, k := range []string{"c", "d"} {
			if r[k] != "" {
				where += " AND " + k + " = " + r[k]
			}
		}
		set := func(ttl, s string) { out = append(out, "UPDATE "+table+using+ttl+" SET "+s+where) }
		switch r["cdc$operation"] {
		case "2":
			out = append(out, fmt.Sprintf("INSERT INTO %s (k, c, d) VALUES (%s, %s, %s)", table, r["k"], r["c"], r["d"])+using+ttl)
			fallthrough
		case "1":
			for _, col := range []string{"s", "v", "m", "st", "l", "u"} {
				if r["cdc$deleted_"+col] != "" {
					set("", col+" = null")
				}
				switch value, gone := r[col], r["cdc$deleted_elements_"+col]; {
				case col == "s" || col == "v":
					if value != "" {
						set(ttl, col+" = "+value)
					}
				case col == "l":
					for _, pair := range strings.Split(strings.Trim(value, "{}"), ", ") {
						if key, v, ok := strings.Cut(pair, ": "); ok {
							set(ttl, "l[SCYLLA_TIMEUUID_LIST_INDEX("+key+")] = "+v)
						}
					}
				case col == "u":
					for i, pair := range strings.Split(strings.Trim(value, "{}"), ", ") {
						field, v, _ := strings.Cut(pair, ": ")
						if strings.Contains(gone, fmt.Sprint(i)) {
							set("", "u."+field+" = null")
						} else if v != "" && v != "null" {
							set(ttl, "u."+field+" = "+v)
						}
					}
				default:
					if gone != "" {
						set("", col+" = "+col+" - "+gone)
					}
					if value != "" {
						set(ttl, col+" = "+col+" + "+value)
					}
				}
			}
		case "3", "4":
			out = append(out, "DELETE FROM "+table+using+where)
		case "5", "6":
			start = r
		case "7", "8":
			out = append(out, "DELETE FROM "+table+using+" WHERE k = "+r["k"]+ends(start, r))
		}
	}
	return out
}

// ends are the conditions on the clustering columns of a range.
func ends(start, end map[string]string) (cond string) {
	compare := func(r map[string]string, sign string) string {
		switch {
		case r["d"] != "":
			return fmt.Sprintf(" AND (c, d) %s (%s, %s)", sign, r["c"], r["d"])
		case r["c"] != "":
			return fmt.Sprintf(" AND (c) %s (%s)", sign, r["c"])
		}
		return ""
	}
	return compare(start, map[string]string{"5": ">=", "6": ">"}[start["cdc$operation"]]) + compare(end, map[string]string{"7": "<=", "8": "<"}[end["cdc$operation"]])
}

func micros(timeuuid string) int64 {
	u, err := gocql.ParseUUID(timeuuid)
	if err != nil {
		panic(err)
	}
	return u.Time().UnixMicro()
}

// Full images of a row before and after a write are what the table itself shows then.
func TestDoublesImagesAreWhatTheTableShows(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TYPE ks.u (a int, b int)`)
	names := []string{"v", "m", "st", "u"}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		table := fmt.Sprintf("ks.i%d", n)
		c.MustExec(t, `CREATE TABLE `+table+` (k int, c int, s int static, v int, m map<int, int>, st set<int>, u u, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true, 'preimage': 'full', 'postimage': true}`)
		rows := func() map[string]string {
			_, all, err := c.Rows(`SELECT c, v, m, st, u FROM ` + table)
			if err != nil {
				rt.Fatal(err)
			}
			out := map[string]string{}
			for _, r := range all {
				if r[0] != "null" {
					out[r[0]] = strings.Join(r[1:], " ")
				}
			}
			return out
		}
		seen := 0
		for range rapid.IntRange(1, 10).Draw(rt, "writes") {
			ck, v := rapid.IntRange(0, 1).Draw(rt, "c"), rapid.IntRange(0, 2).Draw(rt, "v")
			row := fmt.Sprintf(` WHERE k = 1 AND c = %d`, ck)
			before := rows()
			c.MustExec(t, rapid.SampledFrom([]string{
				fmt.Sprintf(`INSERT INTO %s (k, c, v, m, u) VALUES (1, %d, %d, {%d: 1}, {a: 1})`, table, ck, v, v),
				fmt.Sprintf(`INSERT INTO %s (k, c, st) VALUES (1, %d, {%d}) USING TTL 1000`, table, ck, v),
				fmt.Sprintf(`UPDATE %s SET m = m + {%d: 2}, st = st - {%d}, u.b = %d`, table, v, v, v) + row,
				fmt.Sprintf(`UPDATE %s USING TTL 1000 SET m = {%d: 2}, v = null, u.a = null`, table, v) + row,
				`DELETE m, st FROM ` + table + row,
				`DELETE FROM ` + table + row,
				`DELETE FROM ` + table + ` WHERE k = 1`,
			}).Draw(rt, "write"))
			after := rows()
			log, err := c.LogRows(table)
			if err != nil {
				rt.Fatal(err)
			}
			for _, r := range log[seen:] { // one partition: its stream is in the order of times
				var vals []string
				for _, name := range names {
					if r[name] == "" {
						r[name] = "null"
					}
					vals = append(vals, r[name])
				}
				want := map[string]map[string]string{"0": before, "9": after}[r["cdc$operation"]]
				got := strings.Join(vals, " ")
				if _, shown := want[r["c"]]; !shown && got == "null null null null" {
					continue // all that was written is a deletion: there is no row, and an image of it
				}
				if want != nil && got != want[r["c"]] {
					rt.Fatalf("the image %v shows %s, the table %s", r, got, want[r["c"]])
				}
			}
			seen = len(log)
		}
		c.MustExec(t, `DROP TABLE `+table)
	})
}
