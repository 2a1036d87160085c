package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func open(t testing.TB, dsn string, maxConns int) *postgres.Backend {
	t.Helper()
	b, err := postgres.Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(dsn), MaxConns: maxConns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return b
}

// query runs a statement and returns its rows, one JSON object each.
func query(ctx context.Context, b *postgres.Backend, text string, params ...string) ([]string, error) {
	st := driver.Statement{Text: text, Timeout: time.Minute}
	for _, p := range params {
		st.Params = append(st.Params, json.RawMessage(p))
	}
	rows, err := b.Query(ctx, st)
	if err != nil {
		return nil, err
	}
	list := []string{}
	for rows.Next() {
		list = append(list, string(rows.AppendJSON(nil)))
	}
	return list, rows.Close()
}

func must(t testing.TB, b *postgres.Backend, text string, params ...string) []string {
	t.Helper()
	list, err := query(t.Context(), b, text, params...)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return list
}

func TestParamsFitTheirTypes(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE TYPE mood AS ENUM ('sad', 'happy')`)
	must(t, b, `CREATE DOMAIN age AS int CHECK (VALUE >= 0)`)
	fits := map[string][3]string{ // type, value, what comes back
		"int2":                  {"int2", `-32768`, `-32768`},
		"int8 as a string":      {"int8", `"9223372036854775807"`, `9223372036854775807`},
		"oid":                   {"oid", `4294967295`, `4294967295`},
		"float8":                {"float8", `1e-3`, `0.001`},
		"float8 nan":            {"float8", `"NaN"`, `"NaN"`},
		"numeric":               {"numeric", `123456789012345678901234567890.10`, `"123456789012345678901234567890.10"`},
		"numeric as a string":   {"numeric", `"1.50"`, `"1.50"`},
		"bool":                  {"bool", `false`, `false`},
		"bool as a string":      {"bool", `"yes"`, `true`},
		"text":                  {"text", `"a\"b\u0041\n"`, `"a\"bA\n"`},
		"text of a number":      {"text", `1.50`, `"1.50"`},
		"text of true":          {"varchar", `true`, `"true"`},
		"uuid":                  {"uuid", `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`, `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`},
		"timestamptz":           {"timestamptz", `"2026-11-22T10:00:00+02:00"`, `"2026-11-22T08:00:00.000000Z"`},
		"interval":              {"interval", `"P1DT2H"`, `"P1DT2H"`},
		"bytea base64":          {"bytea", `"AP8="`, `"AP8="`},
		"bytea hex":             {"bytea", `"\\x00ff"`, `"AP8="`},
		"jsonb object":          {"jsonb", `{"a": [1, {"b": null}]}`, `{"a": [1, {"b": null}]}`},
		"jsonb string":          {"jsonb", `"a"`, `"a"`},
		"jsonb array":           {"jsonb", `[1, "a"]`, `[1, "a"]`},
		"json number":           {"json", `1.50`, `1.50`},
		"sql null":              {"jsonb", `null`, `null`},
		"int array":             {"int[]", `[1, null, -3]`, `[1,null,-3]`},
		"empty array":           {"text[]", `[]`, `[]`},
		"text array":            {"text[]", `["a,b", "c\"d", "{e}", "NULL", "", "\\", null, 5]`, `["a,b","c\"d","{e}","NULL","","\\",null,"5"]`},
		"two dimensions":        {"int[]", `[[1, 2], [3, 4]]`, `[[1,2],[3,4]]`},
		"jsonb array of jsonb":  {"jsonb[]", `[{"a": 1}, [1, 2], "x"]`, `[{"a": 1},[1, 2],"x"]`},
		"bytea array":           {"bytea[]", `["AP8="]`, `["AP8="]`},
		"array as text":         {"int[]", `"{1,2}"`, `[1,2]`},
		"box array":             {"box[]", `["(3,4),(1,2)", "(1,1),(0,0)"]`, `["(3,4),(1,2)","(1,1),(0,0)"]`},
		"enum":                  {"mood", `"happy"`, `"happy"`},
		"enum array":            {"mood[]", `["happy", "sad"]`, `["happy","sad"]`},
		"domain":                {"age", `7`, `7`},
		"range as text":         {"int4range", `"[1,5)"`, `{"lower":1,"upper":5,"bounds":"[)"}`},
		"inet":                  {"inet", `"10.0.0.1"`, `"10.0.0.1"`},
		"money of a number":     {"money", `12.5`, `"$12.50"`},
		"white space around it": {"int", " \n1\t", `1`},
	}
	for name, tt := range fits {
		got, err := query(t.Context(), b, `SELECT $1::`+tt[0]+` AS v`, tt[1])
		if want := []string{`{"v":` + tt[2] + `}`}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %s as %s gave %v, %v; want %v", name, tt[1], tt[0], got, err, want)
		}
	}

	misfits := map[string][2]string{
		"a word for an int":             {"int4", `"abc"`},
		"beyond int2":                   {"int2", `32768`},
		"beyond int4":                   {"int4", `2147483648`},
		"beyond int8":                   {"int8", `9223372036854775808`},
		"a fraction for an int":         {"int8", `1.5`},
		"true for an int":               {"int4", `true`},
		"an object for an int":          {"int4", `{}`},
		"true for a float":              {"float8", `true`},
		"a word for a float":            {"float8", `"abc"`},
		"a number for a bool":           {"bool", `1`},
		"a word for a bool":             {"bool", `"maybe"`},
		"a word for a date":             {"date", `"yesterweek"`},
		"a number for a date":           {"date", `20261122`},
		"a date that does not exist":    {"timestamptz", `"2026-02-30T00:00:00Z"`},
		"a word for a uuid":             {"uuid", `"abc"`},
		"a word that is not in an enum": {"mood", `"grumpy"`},
		"what a domain refuses":         {"age", `-1`},
		"an array for a text":           {"text", `["a"]`},
		"an object for an array":        {"int[]", `{"a": 1}`},
		"an element that does not fit":  {"int[]", `[1, "x"]`},
		"a ragged array":                {"int[]", `[[1, 2], [3]]`},
		"too many dimensions":           {"int[]", `[[[[[[[1]]]]]]]`},
		"not base64":                    {"bytea", `"§"`},
		"a zero character":              {"text", `"a\u0000b"`},
		"no JSON":                       {"int4", `{"a`},
		"nothing":                       {"int4", ``},
		"two values":                    {"int4", `1 2`},
	}
	for name, tt := range misfits {
		_, err := query(t.Context(), b, `SELECT $1::text, $2::`+tt[0], `"x"`, tt[1])
		var e *athena.Error
		if !errors.As(err, &e) || e.Code != athena.CodeInvalidRequest || e.Details["field"] != "params[1]" {
			t.Errorf("%s: %s as %s gave %v, want invalid_request at params[1]", name, tt[1], tt[0], err)
		}
	}
	if _, err := query(t.Context(), b, `SELECT $1::int`, `1`, `2`); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("one parameter too many gives %v", err)
	}
	must(t, b, `SELECT 1`) // with the one connection of the pool
}

func TestClassify(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	b := open(t, dsn, 2)
	must(t, b, `CREATE TABLE parent (id int PRIMARY KEY)`)
	must(t, b, `CREATE TABLE child (id int CONSTRAINT child_positive CHECK (id > 0), parent int CONSTRAINT child_parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`)
	must(t, b, `INSERT INTO parent VALUES (1)`)
	tests := map[string]struct {
		text     string
		code     athena.Code
		details  map[string]any
		noEffect bool
	}{
		"a unique violation":           {`INSERT INTO parent VALUES (1)`, athena.CodeConflict, map[string]any{"sqlstate": "23505", "table": "parent", "constraint": "parent_pkey", "schema": "public"}, false},
		"a check violation":            {`INSERT INTO child VALUES (-1, 1)`, athena.CodeQueryFailed, map[string]any{"sqlstate": "23514", "constraint": "child_positive"}, false},
		"a deferred constraint":        {`INSERT INTO child VALUES (1, 77)`, athena.CodeQueryFailed, map[string]any{"sqlstate": "23503", "constraint": "child_parent"}, false},
		"a missing table":              {`SELECT * FROM nowhere`, athena.CodeQueryFailed, map[string]any{"sqlstate": "42P01", "position": int32(15)}, false},
		"a syntax error":               {`SELECT FROM WHERE`, athena.CodeQueryFailed, map[string]any{"sqlstate": "42601"}, false},
		"a division by zero":           {`SELECT 1/0`, athena.CodeQueryFailed, map[string]any{"sqlstate": "22012"}, false},
		"a serialization failure":      {`DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$`, athena.CodeQueryFailed, map[string]any{"sqlstate": "40001"}, true},
		"a cancel by an administrator": {`DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57014'; END $$`, athena.CodeCancelled, map[string]any{"sqlstate": "57014"}, false},
		"a shutdown":                   {`SELECT pg_terminate_backend(pg_backend_pid())`, athena.CodeBackendUnavailable, map[string]any{"sqlstate": "57P01"}, false},
		"transaction control":          {`COMMIT`, athena.CodeQueryFailed, nil, false},
	}
	for name, tt := range tests {
		_, err := query(t.Context(), b, tt.text)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		f := b.Classify(err)
		if f.Code != tt.code || f.NoEffect != tt.noEffect || f.Message == "" && f.Code != athena.CodeCancelled {
			t.Errorf("%s: %v is %+v", name, err, f)
		}
		for k, v := range tt.details {
			if f.Details[k] != v {
				t.Errorf("%s: details %v, want %s = %v", name, f.Details, k, v)
			}
		}
	}
	if got := must(t, b, `SELECT count(*) AS n FROM child`); got[0] != `{"n":0}` {
		t.Errorf("child has %s rows after refusals", got)
	}

	wrong := map[string]string{
		"a wrong password":     strings.Replace(dsn, "postgres:", "postgres:x", 2),
		"a database not there": strings.Replace(dsn, "/test_", "/nowhere_", 1),
		"a closed port":        "postgres://someone:s3cret@127.0.0.1:1/db",
	}
	for name, dsn := range wrong {
		_, err := postgres.Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(dsn)})
		if f := b.Classify(err); f.Code != athena.CodeBackendUnavailable || !f.NoEffect || strings.Contains(fmt.Sprint(f), "127.0.0.1") || strings.Contains(fmt.Sprint(f), "postgres") {
			t.Errorf("%s: %v is %+v", name, err, f)
		}
	}
	_, err := postgres.Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret("postgres://u:s3cret@h:port/")})
	if athena.CodeOf(err) != athena.CodeInvalidRequest || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a malformed DSN gives %v", err)
	}
}

// TestTypesOfTheUserAreRenderedAtFirstSight uses one connection, so that the
// types must be loaded on the one that runs the statement.
func TestTypesOfTheUserAreRenderedAtFirstSight(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE TYPE pair AS (a int, b text)`)
	must(t, b, `CREATE TYPE mood AS ENUM ('sad', 'happy')`)
	const text = `SELECT ROW(1, 'x,y')::pair AS p, ARRAY['sad']::mood[] AS m`
	want := []string{`{"p":{"a":1,"b":"x,y"},"m":["sad"]}`}
	for range 2 {
		if got := must(t, b, text); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	rows, err := b.QueryTracked(t.Context(), driver.Statement{Text: text})
	if err != nil {
		t.Fatal(err)
	}
	if cols := rows.Columns(); !slices.Equal(cols, []driver.Column{{Name: "p", Type: "pair"}, {Name: "m", Type: "mood[]"}}) {
		t.Errorf("columns are %v", cols)
	}
	rows.Close()
}

func TestStatementsSurviveChangesOfTheirTables(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE TABLE t AS SELECT 1 AS a`)
	const text = `SELECT * FROM t`
	must(t, b, text)
	must(t, b, `ALTER TABLE t ADD b text DEFAULT 'new'`)
	if got := must(t, b, text); got[0] != `{"a":1,"b":"new"}` {
		t.Errorf("after ALTER TABLE the rows are %v", got)
	}
	must(t, b, `ALTER TABLE t ALTER a TYPE text`)
	if got := must(t, b, text); got[0] != `{"a":"1","b":"new"}` {
		t.Errorf("after a change of type the rows are %v", got)
	}
}

func TestManyStatementsShareAConnection(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	for round := range 2 {
		for i := range 150 { // more than a connection remembers
			if got := must(t, b, fmt.Sprintf(`SELECT %d AS v`, i)); got[0] != fmt.Sprintf(`{"v":%d}`, i) {
				t.Fatalf("round %d: statement %d gave %v", round, i, got)
			}
		}
		must(t, b, `SELECT 1 AS v -- `+strings.Repeat("long ", 300_000))
	}
	n := must(t, b, `SELECT count(*) < 80 AS few FROM pg_prepared_statements`)
	if n[0] != `{"few":true}` {
		t.Error("the server still holds statements that the driver forgot")
	}
}

// TestSettingsOfAFunctionDoNotLeak changes a setting where the classifier
// cannot see it.
func TestSettingsOfAFunctionDoNotLeak(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE FUNCTION sly() RETURNS text LANGUAGE sql AS $$ SELECT set_config('TimeZone', 'Asia/Tokyo', false) || set_config('DateStyle', 'German', false) $$`)
	must(t, b, `SELECT sly()`)
	if got := must(t, b, `SELECT '2026-11-22 10:00:00+00'::timestamptz AS at`); got[0] != `{"at":"2026-11-22T10:00:00.000000Z"}` {
		t.Errorf("the next statement sees %v", got)
	}
	must(t, b, `CREATE TEMP TABLE mine (a int)`)
	if _, err := query(t.Context(), b, `SELECT * FROM mine`); err == nil {
		t.Error("the next statement sees a temporary table")
	}
}

func TestSchemaIsDescribed(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 0)
	for _, text := range []string{
		`CREATE SCHEMA "Shop"`, `COMMENT ON SCHEMA "Shop" IS 'what we sell'`,
		`CREATE TABLE "Shop".items (b int, id bigint GENERATED ALWAYS AS IDENTITY, gone int, price numeric(10,2) DEFAULT 0 NOT NULL,
			twice numeric GENERATED ALWAYS AS (price * 2) STORED, tag text CHECK (tag <> ''), PRIMARY KEY (id, b), UNIQUE (tag, price))`,
		`ALTER TABLE "Shop".items DROP gone`,
		`COMMENT ON TABLE "Shop".items IS 'things'`, `COMMENT ON COLUMN "Shop".items.price IS 'in euro'`,
		`CREATE TABLE orders (id int PRIMARY KEY, b int, item bigint, CONSTRAINT orders_item FOREIGN KEY (item, b) REFERENCES "Shop".items (id, b))`,
		`CREATE INDEX orders_low ON orders (lower(b::text), item DESC)`,
		`CREATE TABLE parts (day date) PARTITION BY RANGE (day)`, `CREATE VIEW v AS SELECT 1 AS one`, `CREATE MATERIALIZED VIEW mv AS SELECT 1 AS one`,
		`ALTER SCHEMA public OWNER TO pg_database_owner`, // as it is from PostgreSQL 15 on
	} {
		must(t, b, text)
	}
	ctx := t.Context()
	schemas, err := b.Schemas(ctx)
	if want := []driver.Schema{{Name: "Shop", Owner: "postgres", Comment: "what we sell"}, {Name: "public", Owner: "pg_database_owner", Comment: "standard public schema"}}; err != nil || !slices.Equal(schemas, want) {
		t.Errorf("schemas %+v, %v", schemas, err)
	}
	tables, err := b.Tables(ctx, "")
	kinds := map[string]string{}
	for _, x := range tables {
		kinds[x.Schema+"."+x.Name] = x.Kind
	}
	if want := map[string]string{"Shop.items": "table", "public.orders": "table", "public.parts": "partitioned_table", "public.v": "view", "public.mv": "materialized_view"}; err != nil || !maps.Equal(kinds, want) {
		t.Errorf("tables %v, %v", kinds, err)
	}
	columns, err := b.Columns(ctx, "Shop", "items")
	want := []driver.ColumnInfo{
		{Name: "b", Position: 1, Type: "integer", PrimaryKey: 2},
		{Name: "id", Position: 2, Type: "bigint", Generated: "identity_always", PrimaryKey: 1},
		{Name: "price", Position: 3, Type: "numeric(10,2)", Default: "0", Comment: "in euro"},
		{Name: "twice", Position: 4, Type: "numeric", Nullable: true, Generated: "stored"},
		{Name: "tag", Position: 5, Type: "text", Nullable: true},
	}
	if err != nil || !reflect.DeepEqual(columns, want) {
		t.Errorf("columns\n got %+v, %v\nwant %+v", columns, err, want)
	}
	constraints, err := b.Constraints(ctx, "Shop", "items")
	kindsOf := []string{}
	for _, c := range constraints {
		kindsOf = append(kindsOf, c.Kind+" "+strings.Join(c.Columns, ","))
	}
	if err != nil || !slices.Equal(kindsOf, []string{"primary_key id,b", "unique tag,price", "check tag"}) {
		t.Errorf("constraints %v, %v", kindsOf, err)
	}
	constraints, err = b.Constraints(ctx, "", "orders")
	if err != nil || len(constraints) != 2 || !reflect.DeepEqual(constraints[1], driver.Constraint{Name: "orders_item", Kind: "foreign_key", Columns: []string{"item", "b"},
		Definition: `FOREIGN KEY (item, b) REFERENCES "Shop".items(id, b)`, References: &driver.Reference{Schema: "Shop", Table: "items", Columns: []string{"id", "b"}}}) {
		t.Errorf("constraints %+v, %v", constraints, err)
	}
	indexes, err := b.Indexes(ctx, "public", "orders")
	if err != nil || len(indexes) != 2 || !indexes[0].Primary || !slices.Equal(indexes[1].Columns, []string{"lower(b::text)", "item"}) || indexes[1].Method != "btree" || indexes[1].Unique {
		t.Errorf("indexes %+v, %v", indexes, err)
	}
}

func TestMigrationsOfEachTool(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		setup []string
		tool  string
		table string
		want  []driver.Migration
	}{
		"no tool": {nil, "", "", []driver.Migration{}},
		"golang-migrate": {[]string{`CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)`, `INSERT INTO schema_migrations VALUES (20260101, true)`},
			"golang-migrate", "public.schema_migrations", []driver.Migration{{Version: "20260101", Dirty: true}}},
		"rails": {[]string{`CREATE TABLE schema_migrations (version varchar PRIMARY KEY)`, `INSERT INTO schema_migrations VALUES ('20260102'), ('20260101')`},
			"rails", "public.schema_migrations", []driver.Migration{{Version: "20260101"}, {Version: "20260102"}}},
		"goose": {[]string{`CREATE TABLE goose_db_version (id serial, version_id bigint, is_applied boolean, tstamp timestamp DEFAULT '2026-01-02 03:04:05')`,
			`INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, true), (1, true), (2, true), (2, false), (3, false), (3, true)`},
			"goose", "public.goose_db_version", []driver.Migration{{Version: "1"}, {Version: "3"}}},
		"supabase": {[]string{`CREATE SCHEMA supabase_migrations`, `CREATE TABLE supabase_migrations.schema_migrations (version text, statements text[], name text)`,
			`INSERT INTO supabase_migrations.schema_migrations VALUES ('1', '{}', 'init')`},
			"supabase", "supabase_migrations.schema_migrations", []driver.Migration{{Version: "1", Name: "init"}}},
		"a table of that name that is none": {[]string{`CREATE TABLE schema_migrations (other int)`}, "", "", []driver.Migration{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, pgtest.DSN(t), 0)
			for _, s := range tt.setup {
				must(t, b, s)
			}
			m, err := b.Migrations(t.Context())
			if err != nil || m.Tool != tt.tool || m.Table != tt.table || (m.Message != "") != (tt.tool == "") {
				t.Fatalf("%+v, %v", m, err)
			}
			for i := range m.Applied {
				if at := m.Applied[i].AppliedAt; at != nil && at.Year() != 2026 || (at != nil) != (tt.tool == "goose") {
					t.Errorf("applied at %v", at)
				}
				m.Applied[i].AppliedAt = nil
			}
			if !reflect.DeepEqual(m.Applied, tt.want) {
				t.Errorf("applied %+v, want %+v", m.Applied, tt.want)
			}
		})
	}
}

func TestProvision(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 0)
	name := fmt.Sprintf("tenant_%d", time.Now().UnixNano())
	for _, want := range []bool{true, false} {
		got, err := b.Provision(t.Context(), driver.Provision{Kind: "database", Name: name})
		if err != nil || got.Created != want {
			t.Errorf("created %v, %v; want %v", got.Created, err, want)
		}
	}
	must(t, b, `DROP DATABASE `+name)
	for _, p := range []driver.Provision{{Kind: "schema"}, {Kind: "schema", Name: strings.Repeat("x", 64)}, {Kind: "bucket", Name: "x"}} {
		if _, err := b.Provision(t.Context(), p); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%+v gives %v", p, err)
		}
	}
}

func TestTimeoutIsTheServers(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	for _, text := range []string{`SELECT pg_sleep(30)`, `DO $$ BEGIN PERFORM pg_sleep(30); END $$`} {
		_, err := b.Query(t.Context(), driver.Statement{Text: text, Timeout: 50 * time.Millisecond})
		if f := b.Classify(err); f.Code != athena.CodeTimeout {
			t.Errorf("%s: %v is %+v", text, err, f)
		}
	}
}

// TestOutcomeAfterACrash loses the server between record and commit, and after
// the commit. Then it writes more than the lost transaction did: its id must not
// be given out again, or the later commit would pass for its own.
func TestOutcomeAfterACrash(t *testing.T) {
	t.Parallel()
	s := pgtest.Server(t, nil)
	b := open(t, s.DSN("postgres"), 2)
	must(t, b, `CREATE TABLE t (a int)`)
	write := func(crash bool) (token driver.Token, err error) {
		rows, err := b.QueryTracked(t.Context(), driver.Statement{Text: `INSERT INTO t VALUES (1) RETURNING a`})
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		err = rows.Commit(t.Context(), func(_ context.Context, got driver.Token) error {
			token = got
			if crash {
				return s.Restart(t.Context(), localpg.Immediate)
			}
			return nil
		})
		return token, err
	}
	kept, err := write(false)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := write(true)
	if f := b.Classify(err); err == nil || f.Code != athena.CodeBackendUnavailable {
		t.Errorf("Commit on a crashed server: %v is %+v", err, f)
	}
	for range 20 { // the pool may hold connections that died with the server
		if _, err = query(t.Context(), b, `CREATE TABLE IF NOT EXISTS later ()`); err == nil {
			break
		}
	}
	for range 5 {
		must(t, b, `SELECT pg_current_xact_id()`)
	}
	for token, want := range map[driver.Token]driver.Outcome{kept: driver.Committed, lost: driver.Aborted} {
		got, err := b.Outcome(t.Context(), token)
		if err != nil || got != want {
			t.Errorf("Outcome(%s) = %q, %v; want %q", token, got, err, want)
		}
	}
	if got := must(t, b, `SELECT count(*) AS n FROM t`); got[0] != `{"n":1}` {
		t.Errorf("the table holds %v rows", got)
	}

	parts := strings.Split(string(kept), ":")
	for i, other := range []string{1: "7", 2: "00000009", 3: "18446744073709551615"} {
		if i == 0 {
			continue
		}
		forged := slices.Clone(parts)
		forged[i] = other
		if got, err := b.Outcome(t.Context(), driver.Token(strings.Join(forged, ":"))); err != nil || got != driver.Unknown {
			t.Errorf("Outcome of %v = %q, %v; want unknown", forged, got, err)
		}
	}
}

// TestOrphanIsEnded asks for the outcome of a transaction whose worker hangs.
func TestOrphanIsEnded(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	worker, other := open(t, dsn, 1), open(t, dsn, 1)
	must(t, other, `CREATE TABLE t (a int)`)
	rows, err := worker.QueryTracked(t.Context(), driver.Statement{Text: `INSERT INTO t VALUES (1)`})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	err = rows.Commit(t.Context(), func(ctx context.Context, token driver.Token) error {
		start := time.Now()
		got, err := other.Outcome(ctx, token)
		if got != driver.Aborted || err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("Outcome = %q, %v after %v", got, err, time.Since(start))
		}
		return nil
	})
	if err == nil {
		t.Error("Commit succeeded after the transaction was ended")
	}
	if got := must(t, other, `SELECT count(*) AS n FROM t`); got[0] != `{"n":0}` {
		t.Errorf("the table holds %v rows", got)
	}
}

// TestSessionsDieSoon checks the settings that end what a lost worker leaves.
func TestSessionsDieSoon(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	got := must(t, b, `SELECT current_setting('idle_in_transaction_session_timeout') AS idle, current_setting('client_connection_check_interval') AS checked, current_setting('application_name') AS name`)
	if got[0] != `{"idle":"1min","checked":"2s","name":"athena"}` {
		t.Errorf("settings are %v", got)
	}
}

func TestExplainShowsAPlan(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE TABLE t (a int)`)
	plan, err := b.Explain(t.Context(), driver.Statement{Text: `UPDATE t SET a = $1`, Params: []json.RawMessage{json.RawMessage(`1`)}})
	if err != nil || !strings.Contains(string(plan), "ModifyTable") {
		t.Errorf("plan %s, %v", plan, err)
	}
	_, err = b.Explain(t.Context(), driver.Statement{Text: `SELECT nothing FROM t`})
	if f := b.Classify(err); f.Details["position"] != int32(8) {
		t.Errorf("the position is that of the caller's text: %+v", f)
	}
	for _, text := range []string{`SELECT 1; DELETE FROM t`, `ANALYZE DELETE FROM t`} {
		if _, err := b.Explain(t.Context(), driver.Statement{Text: text}); err == nil {
			t.Errorf("%q was explained", text)
		}
	}
}

// TestConnectionsComeBack leaves statements in every way there is, with one
// connection in the pool.
func TestConnectionsComeBack(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.DSN(t), 1)
	must(t, b, `CREATE TABLE t (a int)`)
	big := driver.Statement{Text: `SELECT i FROM generate_series(1, 1000000) AS i`, ReadOnly: true}
	ways := map[string]func(ctx context.Context, cancel func()){
		"closed early": func(ctx context.Context, _ func()) {
			if rows, err := b.Query(ctx, big); err == nil {
				rows.Next()
				rows.Close()
			}
		},
		"cancelled": func(ctx context.Context, cancel func()) {
			if rows, err := b.Query(ctx, big); err == nil {
				cancel()
				for rows.Next() {
				}
				rows.Close()
			}
		},
		"failed":             func(ctx context.Context, _ func()) { query(ctx, b, `SELECT 1/0`) },
		"a bad parameter":    func(ctx context.Context, _ func()) { query(ctx, b, `SELECT $1::int`, `"x"`) },
		"tracked, closed":    func(ctx context.Context, _ func()) { tracked(ctx, b, `INSERT INTO t VALUES (1)`, false) },
		"tracked, unread":    func(ctx context.Context, _ func()) { tracked(ctx, b, big.Text, false) },
		"tracked, committed": func(ctx context.Context, _ func()) { tracked(ctx, b, `INSERT INTO t VALUES (1)`, true) },
		"outside":            func(ctx context.Context, _ func()) { query(ctx, b, `VACUUM t`) },
		"a write as a read": func(ctx context.Context, _ func()) {
			b.Query(ctx, driver.Statement{Text: `INSERT INTO t VALUES (1)`, ReadOnly: true})
		},
	}
	for name, leave := range ways {
		ctx, cancel := context.WithCancel(t.Context())
		leave(ctx, cancel)
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := query(ctx, b, `SELECT 1`); err != nil {
			t.Fatalf("%s: the next statement gets %v", name, err)
		}
		cancel()
	}
	if got := must(t, b, `SELECT count(*) AS n FROM t`); got[0] != `{"n":1}` {
		t.Errorf("the table holds %v rows, want the one that was committed", got)
	}
}

func tracked(ctx context.Context, b *postgres.Backend, text string, commit bool) {
	rows, err := b.QueryTracked(ctx, driver.Statement{Text: text})
	if err != nil {
		return
	}
	if commit {
		rows.Commit(ctx, func(context.Context, driver.Token) error { return nil })
	}
	rows.Close()
}

// TestTimeoutCoversPreparing waits for a lock in the step that makes a
// statement known to the server.
func TestTimeoutCoversPreparing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	b := open(t, dsn, 1)
	must(t, b, `CREATE TABLE t (a int)`)
	holder, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(t.Context())
	if _, err := holder.Exec(t.Context(), `BEGIN; LOCK TABLE t`); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = b.Query(t.Context(), driver.Statement{Text: `SELECT * FROM t`, Timeout: 100 * time.Millisecond})
	if f := b.Classify(err); f.Code != athena.CodeTimeout || time.Since(start) > 3*time.Second {
		t.Errorf("%v is %+v after %v", err, f, time.Since(start))
	}
}
