package postgres

import (
	"regexp"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestStatementsAreClassified(t *testing.T) {
	t.Parallel()
	tests := map[driver.Effect][]string{
		driver.Read: {
			"SELECT 1", "select 1;", "SELECT 1 ; -- done", "VALUES (1), (2)", "TABLE t", "SHOW ALL",
			"WITH a AS (SELECT 1) SELECT * FROM a", "((SELECT 1) UNION (SELECT 2))",
			"/* outer /* DELETE FROM t */ still */ SELECT 1", "-- DROP TABLE t\nSELECT 1",
			"SELECT 'DELETE FROM t', $$UPDATE t$$, $q$ INSERT $$ INTO $q$, E'it\\'s; DELETE', U&'\\0061 drop', B'1', X'ff'",
			`SELECT "update", "delete" FROM "insert"`, "SELECT $1, $2::int", "SELECT a$b$c FROM t", "SELECT 1e5, 0xff, 1.5",
			"SELECT E'a'\n'b\\'; DELETE FROM t; --'", "SELECT 'a' -- x\n 'b; DELETE'",
			"EXPLAIN DELETE FROM t", "EXPLAIN (FORMAT JSON) INSERT INTO t VALUES (1)", "EXPLAIN ANALYZE SELECT 1", "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
			"SELECT * FROM t FOR XML", "SELECT deleted_at, is_update FROM t", "SELECT ';'", "SELECT count(*) FROM pg_stat_activity",
			"SELECT pg_sleep(1)", "SELECT currval('s')",
		},
		driver.Write: {
			"", "  -- nothing", "INSERT INTO t VALUES (1)", "insert into t values (1) returning *", "UPDATE t SET a = 1", "DELETE FROM t",
			"MERGE INTO t USING s ON true WHEN MATCHED THEN DO NOTHING", "TRUNCATE t", "SELECT * INTO x FROM t",
			"SELECT * FROM t FOR UPDATE", "SELECT * FROM t FOR NO KEY UPDATE", "SELECT * FROM t FOR SHARE", "SELECT * FROM t FOR KEY SHARE SKIP LOCKED",
			"WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d", "CALL p()", "DO $$ BEGIN END $$", "CREATE TABLE t (a int)", "DROP TABLE t",
			"ALTER TABLE t ADD b int", "GRANT SELECT ON t TO u", "EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN (ANALYZE) UPDATE t SET a = 1",
			"EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
			"SELECT nextval('s')", "SELECT pg_catalog.setval('s', 1)", `SELECT "nextval"('s')`, "SELECT set_config('a.b', 'c', false)", "SELECT pg_advisory_lock(1)",
			"SELECT pg_notify('a', 'b')", "SELECT lo_unlink(1)", "SELECT pg_terminate_backend(1)", "NOTIFY a", "LOCK TABLE t", "ANALYZE t", "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
			"CLUSTER t", "REINDEX TABLE t", "CREATE INDEX i ON t (a)", "DROP INDEX i", "ALTER DATABASE d SET a = 1", "COPY t FROM '/file'", "SET a = 1", "RESET ALL",
			"COMMENT ON TABLE t IS 'BEGIN; COMMIT'", "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM a; DELETE FROM b)",
			"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
			"SELECT 'not closed", "SELECT /* not closed", `SELECT "not closed`, "SELECT $$ not closed", "nonsense", "EXECUTE p(1)", "PREPARE p AS SELECT 1",
		},
		driver.Outside: {
			"VACUUM", "VACUUM FULL t", "CREATE DATABASE d", "DROP DATABASE d", "ALTER DATABASE d SET TABLESPACE x", "CREATE TABLESPACE x LOCATION '/x'",
			"DROP TABLESPACE x", "CREATE INDEX CONCURRENTLY i ON t (a)", "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "DROP INDEX CONCURRENTLY i",
			"REINDEX TABLE CONCURRENTLY t", "REINDEX (CONCURRENTLY) TABLE t", "REINDEX DATABASE d", "REINDEX SCHEMA s", "ALTER SYSTEM SET a = 1",
			"CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", "ALTER SUBSCRIPTION s DISABLE", "DROP SUBSCRIPTION s", "CLUSTER", "CLUSTER VERBOSE",
			"ALTER TABLE t DETACH PARTITION p CONCURRENTLY", "DISCARD ALL",
		},
		driver.Refused: {
			"BEGIN", "begin read only", "START TRANSACTION", "COMMIT", "END", "ROLLBACK", "ROLLBACK TO a", "ABORT", "SAVEPOINT a", "RELEASE a",
			"PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "SET TRANSACTION READ WRITE", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
			"COPY t FROM STDIN", "COPY t TO STDOUT", "COPY (SELECT 1) TO stdout", "LISTEN a", "UNLISTEN *", "DECLARE c CURSOR FOR SELECT 1", "FETCH c",
			"SELECT 1; SELECT 2", "SELECT 1;; DELETE FROM t", "SELECT '\\'; DELETE FROM t; --'", "SELECT $a$;$b$;$a$; DROP TABLE t",
			"-- x\nBEGIN", "/* x */ COMMIT", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; DROP TABLE t",
		},
	}
	for want, texts := range tests {
		for _, text := range texts {
			a := analyze(text)
			if a.Effect != want {
				t.Errorf("%q is %q, want %q", text, a.Effect, want)
			}
			if (a.Reason != "") != (want == driver.Refused) || a.Idempotent != (want == driver.Read) {
				t.Errorf("%q: reason %q, idempotent %v", text, a.Reason, a.Idempotent)
			}
		}
	}
}

func TestStatementsThatChangeTheSessionAreKnown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"SET a = 1": true, "RESET a": true, "PREPARE p AS SELECT 1": true, "DEALLOCATE ALL": true, "DISCARD ALL": true, "LOAD 'x'": true,
		"SELECT set_config('a.b', 'c', false)": true, "SELECT pg_advisory_lock(1)": true, "SELECT pg_try_advisory_lock_shared(1)": true,
		"SELECT pg_advisory_xact_lock(1)": false, "CREATE TEMP TABLE t (a int)": true, "SELECT 1 INTO TEMPORARY t": true, "CREATE TABLE pg_temp.t ()": true,
		"DO $$ BEGIN END $$": true, "CALL p()": true, "SELECT dblink_connect('x')": true,
		"SELECT 1": false, "INSERT INTO t VALUES (1)": false, "SELECT 'SET a = 1'": false, "UPDATE t SET a = 1": false,
	} {
		if got := analyze(text).session; got != want {
			t.Errorf("%q changes the session: %v, want %v", text, got, want)
		}
	}
}

// modifying is a second, cruder reading of a statement: comments and quoted
// parts are cut out by a pattern, and a word that modifies data is looked for
// in what is left.
var (
	quotedParts = regexp.MustCompile(`(?s)--[^\r\n]*|'[^']*'|"[^"]*"`)
	modifying   = regexp.MustCompile(`(?i)(^|[^a-z0-9_$\x80-\xff])(insert|update|delete|merge|truncate)($|[^a-z0-9_$\x80-\xff])`)
	explain     = regexp.MustCompile(`(?i)^[\s;(]*explain`)
)

func FuzzAnalyze(f *testing.F) {
	for _, s := range []string{"SELECT 1", "SELECT 'a' -- b\n; DELETE FROM t", "WITH a AS (UPDATE t SET b = 1 RETURNING *) TABLE a", "/* /* */ */ x", "$a$ $b$ $a$",
		"E'\\'' U&\"x\" b'1'", "select $1a delete", "select 1delete from t", "explain (analyze) delete", "create function begin atomic; end", "\x00\xff", "select e'a'\n'\\''"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a := analyze(text)
		if a.Effect == driver.Refused != (a.Reason != "") {
			t.Fatalf("%q: %q with the reason %q", text, a.Effect, a.Reason)
		}
		if a.Effect != driver.Read {
			return
		}
		if !a.Idempotent {
			t.Fatalf("%q is a read that is not idempotent", text)
		}
		// The crude reading knows neither of these.
		if strings.ContainsAny(text, "\\$") || strings.Contains(text, "/*") || explain.MatchString(quotedParts.ReplaceAllString(text, " ")) {
			return
		}
		if bare := quotedParts.ReplaceAllString(text, "''"); modifying.MatchString(bare) {
			t.Fatalf("%q is called a read", text)
		}
	})
}
