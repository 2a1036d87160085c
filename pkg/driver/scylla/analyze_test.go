package scylla

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestAnalyzeTellsWhatAWriteMayBeMadeAgain(t *testing.T) {
	t.Parallel()
	for text, idempotent := range map[string]bool{
		`INSERT INTO ks.t (id, name) VALUES (?, ?)`:                                                  true,
		`INSERT INTO "Ks"."T" (id) VALUES (1) USING TTL 60 AND TIMESTAMP ?`:                          true,
		`insert into t(id)values(1)`:                                                                 true,
		`INSERT INTO t (id, l) VALUES (1, [1, 2])`:                                                   false, // elements of a list get keys of their own
		`INSERT INTO t (id, s) VALUES (1, {1, 2})`:                                                   true,
		`INSERT INTO t (id, u) VALUES (1, 123e4567-e89b-42d3-a456-426614174000)`:                     true,
		`INSERT INTO t (id, d) VALUES (1, -5)`:                                                       true,
		`INSERT INTO t (id, d) VALUES (1, 1e-5)`:                                                     true,
		`INSERT INTO t (id, at) VALUES (1, now())`:                                                   false,
		`INSERT INTO t (id, at) VALUES (uuid(), 1)`:                                                  false,
		`INSERT INTO t (id, at) VALUES (1, toTimestamp(now()))`:                                      false,
		`INSERT INTO t (id, at) VALUES (1, currentTimestamp())`:                                      false,
		`INSERT INTO t (id, at) VALUES (1, current_timestamp())`:                                     false,
		`INSERT INTO t (id, b) VALUES (1, textAsBlob('x'))`:                                          true,
		`INSERT INTO t (id, b) VALUES (1, ks.random_of_mine(2))`:                                     false,
		`INSERT INTO t (id, b) VALUES (1, "Mine"(2))`:                                                false,
		`INSERT INTO t (id) VALUES (1) IF NOT EXISTS`:                                                false,
		`INSERT INTO t (id, note) VALUES (1, 'if now() l = l + [1]')`:                                true,
		`INSERT INTO t (id, note) VALUES (1, $$ if it's now() $$)`:                                   true,
		`INSERT INTO t JSON '{"id": 1}'`:                                                             true,
		`INSERT INTO t JSON '{"id": 1, "l": [1]}'`:                                                   false,
		`INSERT INTO t JSON ?`:                                                                       false,
		`INSERT INTO now (id) VALUES (1)`:                                                            true,
		`UPDATE t SET a = 1, b = ? WHERE id = 1`:                                                     true,
		`UPDATE t SET a = 1 WHERE id IN (1, 2)`:                                                      true,
		`UPDATE t SET c = c + 1 WHERE id = 1`:                                                        false,
		`UPDATE t SET c = c - 1 WHERE id = 1`:                                                        false,
		`UPDATE t SET c = c + ? WHERE id = 1`:                                                        false,
		`UPDATE t SET c += ? WHERE id = 1`:                                                           false,
		`UPDATE t SET c += {'a'} WHERE id = 1`:                                                       true,
		`UPDATE t SET l = l + [1] WHERE id = 1`:                                                      false,
		`UPDATE t SET l = [1] + l WHERE id = 1`:                                                      false,
		`UPDATE t SET l = ? + l WHERE id = 1`:                                                        false,
		`UPDATE t SET l = l - [1] WHERE id = 1`:                                                      false,
		`UPDATE t SET l[0] = 1 WHERE id = 1`:                                                         false,
		`UPDATE t SET s = s + {1} WHERE id = 1`:                                                      true,
		`UPDATE t SET s = s - {1} WHERE id = 1`:                                                      true,
		`UPDATE t SET m = m + {'a': 1} WHERE id = 1`:                                                 true,
		`UPDATE t SET m['a'] = 1 WHERE id = 1`:                                                       true,
		`UPDATE t SET m[?] = 1 WHERE id = 1`:                                                         false, // it may be a list
		`UPDATE t SET m[5] = 1 WHERE id = 1`:                                                         false,
		`UPDATE t SET a.street = 'x' WHERE id = 1`:                                                   true,
		`UPDATE t SET a = -1 WHERE id = 1`:                                                           true,
		`UPDATE t SET a = 1 WHERE id = 1 IF a = 2`:                                                   false,
		`DELETE FROM t WHERE id = 1 AND c > 3`:                                                       true,
		`DELETE m['a'], b FROM t USING TIMESTAMP 5 WHERE id = 1`:                                     true,
		`DELETE l[0] FROM t WHERE id = 1`:                                                            false,
		`DELETE FROM t WHERE id = 1 IF EXISTS`:                                                       false,
		`BEGIN BATCH INSERT INTO t (id) VALUES (1); DELETE FROM t WHERE id = 2; APPLY BATCH`:         true,
		`BEGIN UNLOGGED BATCH UPDATE t SET a = 1 WHERE id = 1 APPLY BATCH;`:                          true,
		`BEGIN BATCH INSERT INTO t (id) VALUES (1); INSERT INTO t (id) VALUES (uuid()); APPLY BATCH`: false,
		`BEGIN COUNTER BATCH UPDATE t SET c = c + 1 WHERE id = 1; APPLY BATCH`:                       false,
		`TRUNCATE t`: false, `CREATE TABLE t (id int PRIMARY KEY)`: false, `DROP TABLE IF EXISTS t`: false,
		`GRANT SELECT ON t TO x`: false, `nonsense`: false, `BEGIN`: false, `;`: false,
	} {
		if got := analyze(text); got.Effect != driver.Write || got.Idempotent != idempotent {
			t.Errorf("%s: %s, idempotent %v; want a write, %v", text, got.Effect, got.Idempotent, idempotent)
		}
	}
}

// The elements of a list get keys of their own each time, and go behind those that
// the same write has left before.
func TestAParameterThatMayBeAListIsNotWrittenTwice(t *testing.T) {
	t.Parallel()
	write, read := analyze(`INSERT INTO t (id, l) VALUES (?, ?)`), analyze(`SELECT * FROM t WHERE id IN ?`)
	for params, want := range map[string]bool{`[1, "x"]`: true, `[1, [5]]`: false, `[1, {"l": [5]}]`: true, `[]`: true} {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(params), &list); err != nil {
			t.Fatal(err)
		}
		if got := write.IdempotentWith(list); got != want {
			t.Errorf("with %s the write may be made again: %v, want %v", params, got, want)
		}
		if !read.IdempotentWith(list) {
			t.Errorf("with %s a read may not be made again", params)
		}
	}
}

func TestAnalyzePartsStatements(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]driver.Effect{
		`SELECT 1;`: driver.Read, `SELECT 1; -- DELETE`: driver.Read, `SELECT 1;;`: driver.Read, `select/**/1`: driver.Read,
		`SELECT ';' FROM t`: driver.Read, `// DELETE
			SELECT 1`: driver.Read,
		`SELECT 1; SELECT 2`: driver.Refused, `INSERT INTO t (a) VALUES (1); INSERT INTO t (a) VALUES (2)`: driver.Refused,
		`BEGIN BATCH INSERT INTO t (a) VALUES (1); APPLY BATCH; SELECT 1`: driver.Refused,
		`USE ks`:                     driver.Refused,
		`BEGIN BATCH APPLY; BATCH`:   driver.Write,
		`SELECT 'it does not end`:    driver.Write,
		`SELECT "it does not end`:    driver.Write,
		`SELECT 1 /* does not end`:   driver.Write,
		`SELECT $$ does not end $`:   driver.Write,
		`  `:                         driver.Write,
		`SELECT * FROM t /* ; */`:    driver.Read,
		`DESC KEYSPACES`:             driver.Read,
		`LIST ALL PERMISSIONS OF me`: driver.Read,
		`"select" 1`:                 driver.Write,
	} {
		if got := analyze(text).Effect; got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// gocql prepares a statement, and sends its parameters, if the first word between
// white space says so, or the last one of a batch.
func TestStatementsAreInTheFormThatGocqlPrepares(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"SELECT*FROM t WHERE a=?":                                    "SELECT *FROM t WHERE a=?",
		"/* x */ SELECT a FROM t -- ?\n ;":                           "SELECT a FROM t",
		"-- x\ninsert\tinto t (a) values (?)":                        "insert \tinto t (a) values (?)",
		"BEGIN BATCH DELETE FROM t WHERE a=?;APPLY/**/BATCH /* ? */": "BEGIN BATCH DELETE FROM t WHERE a=?;APPLY/**/ BATCH",
		"UPDATE/**/t SET a='?'":                                      "UPDATE /**/t SET a='?'",
		"CREATE TABLE t (a int PRIMARY KEY)":                         "CREATE TABLE t (a int PRIMARY KEY)",
	} {
		a := analyze(text)
		if a.text != want {
			t.Errorf("%q is sent as %q, want %q", text, a.text, want)
		}
		if n := strings.Count(want, "=?") + strings.Count(want, "(?"); len(a.markers) != n {
			t.Errorf("%q has %d parameters, want %d", text, len(a.markers), n)
		}
	}
}

func FuzzAnalyze(f *testing.F) {
	for _, text := range []string{"SELECT ?", "BEGIN BATCH ; APPLY BATCH;", "insert into t (a) values ($$?$$, '?')", "UPDATE t SET a[0]=?--", "begin"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a := analyze(text)
		for _, at := range a.markers {
			if a.text[at] != '?' {
				t.Fatalf("%q has no parameter at %d", a.text, at)
			}
		}
		if again := analyze(a.text); again.Effect != a.Effect && a.Effect != driver.Refused {
			t.Fatalf("%q is %s, and what is sent of it, %q, is %s", text, a.Effect, a.text, again.Effect)
		}
	})
}
