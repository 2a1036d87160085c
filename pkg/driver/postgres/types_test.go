package postgres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// connect opens a bare connection with the settings that rendering needs.
func connect(t testing.TB, dsn string) *pgconn.PgConn {
	t.Helper()
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(cfg.RuntimeParams, SessionSettings())
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	return conn
}

const typesSetup = `
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'happy');
CREATE TYPE point3 AS (x int, "y ""quoted""" numeric, note text);
CREATE TYPE nested AS (id bigint, at point3, tags text[], doc jsonb);
CREATE TYPE nothing AS ();
CREATE DOMAIN age AS int CHECK (VALUE >= 0);
CREATE DOMAIN adult AS age CHECK (VALUE >= 18);
CREATE DOMAIN tags AS text[];
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE TABLE rowtype (id int, gone text, name text);
ALTER TABLE rowtype DROP COLUMN gone;
CREATE SCHEMA shop;
CREATE TYPE shop.status AS ENUM ('new', 'paid')`

// values is one line per case: an expression of a type, and its JSON.
var values = map[string][2]string{
	"bool":                     {`true`, `true`},
	"bool false":               {`false`, `false`},
	"null":                     {`NULL::int`, `null`},
	"int2":                     {`(-32768)::int2`, `-32768`},
	"int4":                     {`2147483647`, `2147483647`},
	"int8":                     {`(-9223372036854775808)::int8`, `-9223372036854775808`},
	"oid":                      {`4294967295::oid`, `4294967295`},
	"float4":                   {`1.1::float4`, `1.1`},
	"float4 nan":               {`'NaN'::float4`, `"NaN"`},
	"float8":                   {`0.1::float8 + 0.2::float8`, `0.30000000000000004`},
	"float8 large":             {`1e300::float8`, `1e+300`},
	"float8 small":             {`'-5e-324'::float8`, `-5e-324`},
	"float8 negative zero":     {`'-0'::float8`, `-0`},
	"float8 infinity":          {`'-Infinity'::float8`, `"-Infinity"`},
	"numeric":                  {`123456789012345678901234567890.1234567890::numeric`, `"123456789012345678901234567890.1234567890"`},
	"numeric scale":            {`19.90::numeric(10,2)`, `"19.90"`},
	"numeric nan":              {`'NaN'::numeric`, `"NaN"`},
	"numeric infinity":         {`'Infinity'::numeric`, `"Infinity"`},
	"money":                    {`'12.34'::money`, `"$12.34"`},
	"text":                     {`E'a "b" \\ \n\t\r\x01 é 日本 😀'`, `"a \"b\" \\ \n\t\r\u0001 é 日本 😀"`},
	"text empty":               {`''`, `""`},
	"varchar":                  {`'abc'::varchar(10)`, `"abc"`},
	"bpchar":                   {`'abc'::char(5)`, `"abc  "`},
	"char":                     {`'x'::"char"`, `"x"`},
	"name":                     {`'abc'::name`, `"abc"`},
	"bytea":                    {`'\x00ff10'::bytea`, `"AP8Q"`},
	"bytea empty":              {`''::bytea`, `""`},
	"bytea long":               {`decode(repeat('00', 100), 'hex')`, `"` + strings.Repeat("A", 134) + `=="`},
	"json":                     {`E'{"b": 1,\n"a": [1, 2.50, "\\n"], "b": null}'::json`, `{"b": 1,"a": [1, 2.50, "\n"], "b": null}`},
	"json null":                {`'null'::json`, `null`},
	"jsonb":                    {`'{"b": 1.50, "a": "x"}'::jsonb`, `{"a": "x", "b": 1.50}`},
	"xml":                      {`'<a>"1"</a>'::xml`, `"<a>\"1\"</a>"`},
	"uuid":                     {`'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid`, `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`},
	"timestamp":                {`'2026-11-22 10:00:00.1234'::timestamp`, `"2026-11-22T10:00:00.123400"`},
	"timestamp whole":          {`'2026-11-22 10:00:00'::timestamp`, `"2026-11-22T10:00:00.000000"`},
	"timestamp infinity":       {`'infinity'::timestamp`, `"infinity"`},
	"timestamp bc":             {`'0044-03-15 12:00:00 BC'::timestamp`, `"-000043-03-15T12:00:00.000000"`},
	"timestamp 1 bc":           {`'0001-01-01 00:00:00 BC'::timestamp`, `"0000-01-01T00:00:00.000000"`},
	"timestamp far":            {`'12345-01-02 03:04:05'::timestamp`, `"+012345-01-02T03:04:05.000000"`},
	"timestamp last":           {`'294276-12-31 23:59:59.999999'::timestamp`, `"+294276-12-31T23:59:59.999999"`},
	"timestamp first":          {`'4714-11-24 00:00:00 BC'::timestamp`, `"-004713-11-24T00:00:00.000000"`},
	"timestamptz":              {`'2026-11-22 10:00:00.123456+05:30'::timestamptz`, `"2026-11-22T04:30:00.123456Z"`},
	"timestamptz infinity":     {`'-infinity'::timestamptz`, `"-infinity"`},
	"timestamptz bc":           {`'0044-03-15 12:00:00+00 BC'::timestamptz`, `"-000043-03-15T12:00:00.000000Z"`},
	"date":                     {`'2026-11-22'::date`, `"2026-11-22"`},
	"date bc":                  {`'0044-03-15 BC'::date`, `"-000043-03-15"`},
	"date last":                {`'5874897-12-31'::date`, `"+5874897-12-31"`},
	"date infinity":            {`'infinity'::date`, `"infinity"`},
	"time":                     {`'10:00:00.5'::time`, `"10:00:00.5"`},
	"time 24":                  {`'24:00:00'::time`, `"24:00:00"`},
	"timetz":                   {`'10:00:00+05:30'::timetz`, `"10:00:00+05:30"`},
	"interval":                 {`'1 year 2 mons -3 days 04:05:06.789'::interval`, `"P1Y2M-3DT4H5M6.789S"`},
	"interval zero":            {`'0'::interval`, `"PT0S"`},
	"bit":                      {`B'101'::bit(3)`, `"101"`},
	"varbit":                   {`B'10'::varbit`, `"10"`},
	"inet":                     {`'192.168.0.1/24'::inet`, `"192.168.0.1/24"`},
	"cidr":                     {`'10.0.0.0/8'::cidr`, `"10.0.0.0/8"`},
	"macaddr":                  {`'08:00:2b:01:02:03'::macaddr`, `"08:00:2b:01:02:03"`},
	"macaddr8":                 {`'08:00:2b:01:02:03:04:05'::macaddr8`, `"08:00:2b:01:02:03:04:05"`},
	"point":                    {`'(1,2)'::point`, `"(1,2)"`},
	"line":                     {`'{1,2,3}'::line`, `"{1,2,3}"`},
	"lseg":                     {`'[(1,2),(3,4)]'::lseg`, `"[(1,2),(3,4)]"`},
	"box":                      {`'(3,4),(1,2)'::box`, `"(3,4),(1,2)"`},
	"box array":                {`ARRAY['(3,4),(1,2)','(7,8),(5,6)']::box[]`, `["(3,4),(1,2)","(7,8),(5,6)"]`},
	"path":                     {`'[(1,2),(3,4)]'::path`, `"[(1,2),(3,4)]"`},
	"polygon":                  {`'((1,2),(3,4))'::polygon`, `"((1,2),(3,4))"`},
	"circle":                   {`'<(1,2),3>'::circle`, `"<(1,2),3>"`},
	"tsvector":                 {`'a:1 b'::tsvector`, `"'a':1 'b'"`},
	"tsquery":                  {`'a & b'::tsquery`, `"'a' & 'b'"`},
	"jsonpath":                 {`'$.a'::jsonpath`, `"$.\"a\""`},
	"pg_lsn":                   {`'16/B374D848'::pg_lsn`, `"16/B374D848"`},
	"xid8":                     {`'18446744073709551615'::xid8`, `"18446744073709551615"`},
	"xid":                      {`'7'::xid`, `"7"`},
	"tid":                      {`'(0,1)'::tid`, `"(0,1)"`},
	"regclass":                 {`'pg_class'::regclass`, `"pg_class"`},
	"txid_snapshot":            {`'10:20:10,14'::txid_snapshot`, `"10:20:10,14"`},
	"int2vector":               {`'1 2 3'::int2vector`, `[1,2,3]`},
	"oidvector":                {`''::oidvector`, `[]`},
	"void":                     {`pg_sleep(0)`, `null`},
	"record":                   {`ROW(1, 'a b')`, `"(1,\"a b\")"`},
	"unknown":                  {`(SELECT x FROM (SELECT 'lit' AS x) s)`, `"lit"`},
	"int array":                {`ARRAY[1,NULL,3]`, `[1,null,3]`},
	"empty array":              {`'{}'::int[]`, `[]`},
	"text array":               {`ARRAY['a,b','c"d','{e}','NULL',NULL,'','\']`, `["a,b","c\"d","{e}","NULL",null,"","\\"]`},
	"array of arrays":          {`ARRAY[[1,2],[3,4]]`, `[[1,2],[3,4]]`},
	"three dimensions":         {`ARRAY[[[true]],[[false]]]`, `[[[true]],[[false]]]`},
	"array from 0":             {`'[0:1]={5,6}'::int[]`, `{"lower":[0],"values":[5,6]}`},
	"array from -1, 3":         {`'[-1:0][3:3]={{5},{6}}'::int[]`, `{"lower":[-1,3],"values":[[5],[6]]}`},
	"timestamptz array":        {`ARRAY['2026-11-22 10:00:00+00','infinity']::timestamptz[]`, `["2026-11-22T10:00:00.000000Z","infinity"]`},
	"bytea array":              {`ARRAY['\x00ff'::bytea]`, `["AP8="]`},
	"jsonb array":              {`ARRAY['{"a": "x\"y"}'::jsonb, 'null', NULL]`, `[{"a": "x\"y"},null,null]`},
	"numeric array":            {`ARRAY[1.50, 'NaN']::numeric[]`, `["1.50","NaN"]`},
	"int4range":                {`int4range(1, 10)`, `{"lower":1,"upper":10,"bounds":"[)"}`},
	"empty range":              {`'empty'::int4range`, `{"empty":true}`},
	"unbounded range":          {`int8range(NULL, NULL)`, `{"lower":null,"upper":null,"bounds":"()"}`},
	"numrange":                 {`numrange(1.5, 2.50, '(]')`, `{"lower":"1.5","upper":"2.50","bounds":"(]"}`},
	"tstzrange":                {`tstzrange('2026-11-22 10:00:00+00', 'infinity')`, `{"lower":"2026-11-22T10:00:00.000000Z","upper":"infinity","bounds":"[)"}`},
	"daterange":                {`daterange('2026-01-01', NULL)`, `{"lower":"2026-01-01","upper":null,"bounds":"[)"}`},
	"range of strange text":    {`textrange('a "q", \', 'b)', '[]')`, `{"lower":"a \"q\", \\","upper":"b)","bounds":"[]"}`},
	"range from empty text":    {`textrange('', 'b')`, `{"lower":"","upper":"b","bounds":"[)"}`},
	"range array":              {`ARRAY[int4range(1,2), 'empty']`, `[{"lower":1,"upper":2,"bounds":"[)"},{"empty":true}]`},
	"multirange":               {`'{[1,3),[5,7)}'::int4multirange`, `[{"lower":1,"upper":3,"bounds":"[)"},{"lower":5,"upper":7,"bounds":"[)"}]`},
	"empty multirange":         {`'{}'::datemultirange`, `[]`},
	"multirange of timestamps": {`tsmultirange(tsrange('2026-01-01', NULL))`, `[{"lower":"2026-01-01T00:00:00.000000","upper":null,"bounds":"[)"}]`},
	"enum":                     {`'so "so"'::mood`, `"so \"so\""`},
	"enum in a schema":         {`'paid'::shop.status`, `"paid"`},
	"enum array":               {`ARRAY['sad','so "so"']::mood[]`, `["sad","so \"so\""]`},
	"domain":                   {`7::age`, `7`},
	"domain on a domain":       {`21::adult`, `21`},
	"domain array":             {`ARRAY[20,30]::adult[]`, `[20,30]`},
	"domain of an array":       {`ARRAY['a','b']::tags`, `["a","b"]`},
	"composite":                {`ROW(1, 2.50, 'a "b", (c) \')::point3`, `{"x":1,"y \"quoted\"":"2.50","note":"a \"b\", (c) \\"}`},
	"composite of nulls":       {`ROW(NULL, NULL, '')::point3`, `{"x":null,"y \"quoted\"":null,"note":""}`},
	"composite of none":        {`ROW()::nothing`, `{}`},
	"composite in composite": {`ROW(1, ROW(2, 3, 'x"y'), ARRAY['p q', NULL], '{"k": "v"}')::nested`,
		`{"id":1,"at":{"x":2,"y \"quoted\"":"3","note":"x\"y"},"tags":["p q",null],"doc":{"k": "v"}}`},
	"composite array":   {`ARRAY[ROW(1, 2, 'a,b')::point3, NULL]`, `[{"x":1,"y \"quoted\"":"2","note":"a,b"},null]`},
	"row of a table":    {`ROW(1, 'n')::rowtype`, `{"id":1,"name":"n"}`},
	"multirange array":  {`ARRAY['{[1,3),[5,7)}'::int4multirange]`, `[[{"lower":1,"upper":3,"bounds":"[)"},{"lower":5,"upper":7,"bounds":"[)"}]]`},
	"extension hstore":  {`'a=>1, b=>NULL'::hstore`, `"\"a\"=>\"1\", \"b\"=>NULL"`},
	"extension citext":  {`'MiXed'::citext`, `"MiXed"`},
	"array of citext":   {`ARRAY['A','b c']::citext[]`, `["A","b c"]`},
	"system composite":  {`(SELECT (p).nspname FROM (SELECT p FROM pg_namespace p WHERE nspname = 'public') s)`, `"public"`},
	"information shape": {`(SELECT table_name FROM information_schema.tables WHERE table_name = 'rowtype')`, `"rowtype"`},
}

func TestValuesOfEveryTypeBecomeJSON(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	if _, err := conn.Exec(t.Context(), typesSetup).ReadAll(); err != nil {
		t.Fatal(err)
	}
	types := &Types{}
	covered := map[uint32]bool{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		expr, want := values[name][0], values[name][1]
		result := conn.ExecParams(t.Context(), "SELECT "+expr, nil, nil, nil, nil).Read()
		if result.Err != nil {
			t.Errorf("%s: %v", name, result.Err)
			continue
		}
		oid := result.FieldDescriptions[0].DataTypeOID
		covered[oid] = true
		if err := types.Load(t.Context(), conn, oid); err != nil {
			t.Fatal(err)
		}
		got := types.AppendJSON(nil, oid, result.Rows[0][0])
		if string(got) != want {
			t.Errorf("%s: %s\n got %s\nwant %s", name, expr, got, want)
		}
		if !json.Valid(got) {
			t.Errorf("%s: not valid JSON: %s", name, got)
		}
	}
	for oid, name := range map[uint32]string{
		connOID(t, conn, "mood"): "mood", connOID(t, conn, "shop.status"): "shop.status", connOID(t, conn, "nested"): "nested",
		1184: "timestamp with time zone", 1007: "integer[]",
	} {
		if got := types.Name(oid); got != name {
			t.Errorf("type %d is named %q, want %q", oid, got, name)
		}
	}

	// Every built-in that a column can have was walked, or is a plain text.
	for _, b := range builtins {
		if b.kind != kindText && b.kind != kindArray && b.kind != kindRange && b.kind != kindMultirange && !covered[b.oid] {
			t.Errorf("built-in type %s has a form of its own and no case", b.name)
		}
	}
}

func connOID(t *testing.T, conn *pgconn.PgConn, name string) uint32 {
	t.Helper()
	r := conn.ExecParams(t.Context(), "SELECT $1::text::regtype::oid", [][]byte{[]byte(name)}, nil, nil, nil).Read()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	return parseOID(r.Rows[0][0])
}

// TestEveryBuiltinRendersNullAndEmpty gives each built-in type a NULL, an
// empty array and an array of NULL through the server's own input functions.
func TestEveryBuiltinRendersNullAndEmpty(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	types := &Types{}
	for _, b := range builtins {
		expr, want := "NULL::"+b.name, "null"
		switch {
		case b.kind == kindArray && b.name != "record[]":
			expr, want = "'{NULL}'::"+b.name, "[null]"
		case b.kind == kindRange:
			expr, want = "'empty'::"+b.name, `{"empty":true}`
		case b.kind == kindMultirange:
			expr, want = "'{empty}'::"+b.name, `[]`
		case b.name == "void" || b.name == "record" || b.name == "record[]" || b.name == "unknown" || b.name == "cstring":
			continue // no value of these can be cast
		}
		r := conn.ExecParams(t.Context(), "SELECT "+expr, nil, nil, nil, nil).Read()
		if r.Err != nil {
			t.Errorf("%s: %v", expr, r.Err)
			continue
		}
		if got := types.AppendJSON(nil, r.FieldDescriptions[0].DataTypeOID, r.Rows[0][0]); string(got) != want {
			t.Errorf("%s is %s, want %s", expr, got, want)
		}
	}
}

func TestBuiltinsAreTheServers(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	r := conn.ExecParams(t.Context(), fmt.Sprintf(`
		SELECT t.oid, format_type(t.oid, NULL), CASE WHEN t.typoutput = 'array_out'::regproc THEN t.typelem ELSE coalesce(r.rngsubtype, m.rngtypid, 0) END,
		       coalesce(e.typdelim, ',')
		FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem
		LEFT JOIN pg_range r ON r.rngtypid = t.oid LEFT JOIN pg_range m ON m.rngmultitypid = t.oid
		WHERE t.oid < %d AND t.typtype IN ('b','r','m')`, firstVariableOID), nil, nil, nil, nil).Read()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if len(r.Rows) < 150 {
		t.Fatalf("the server lists %d types", len(r.Rows))
	}
	for _, row := range r.Rows {
		typ := static[parseOID(row[0])]
		if typ == nil {
			continue // newer than the table: loaded on demand
		}
		if typ.name != string(row[1]) {
			t.Errorf("type %s is %q here and %q there", row[0], typ.name, row[1])
		}
		if elem := parseOID(row[2]); elem != 0 && typ.elem != static[elem] {
			t.Errorf("type %s has another element than %d", typ.name, elem)
		}
		if typ.kind == kindArray && typ.delim != row[3][0] {
			t.Errorf("type %s is delimited by %q, want %q", typ.name, typ.delim, row[3])
		}
	}
}

func TestChangedCompositeIsLoadedAgain(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	if _, err := conn.Exec(t.Context(), `CREATE TYPE pair AS (a int)`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	oid := connOID(t, conn, "pair")
	types := &Types{}
	if err := types.Load(t.Context(), conn, oid); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `ALTER TYPE pair ADD ATTRIBUTE b text`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	if got := string(types.AppendJSON(nil, oid, []byte(`(1,x)`))); got != `"(1,x)"` {
		t.Errorf("before it is loaded again: %s", got)
	}
	types.lookup(oid).at = types.lookup(oid).at.Add(-staleAfter)
	if got := types.Missing(oid, 23, 0); !slices.Equal(got, []uint32{oid}) {
		t.Fatalf("missing %v", got)
	}
	if err := types.Load(t.Context(), conn, oid); err != nil {
		t.Fatal(err)
	}
	if got := string(types.AppendJSON(nil, oid, []byte(`(1,x)`))); got != `{"a":1,"b":"x"}` {
		t.Errorf("after it is loaded again: %s", got)
	}
}

// fuzzTypes has one type of each kind that must be loaded.
func fuzzTypes() *Types {
	ts := &Types{}
	comp := &typ{name: "c", kind: kindComposite, fields: []field{{[]byte(`"a":`), static[23]}, {[]byte(`"b":`), static[1009]}, {[]byte(`"c":`), static[3904]}}}
	arr := &typ{name: "c[]", kind: kindArray, delim: ',', elem: comp}
	rng := &typ{name: "r", kind: kindRange, elem: arr}
	ts.loaded.Store(&map[uint32]*typ{20001: comp, 20002: arr, 20003: rng, 20004: {name: "m", kind: kindMultirange, elem: rng}})
	return ts
}

func FuzzAppendJSON(f *testing.F) {
	ts := fuzzTypes()
	oids := []uint32{20001, 20002, 20003, 20004, 999999}
	for _, b := range builtins {
		oids = append(oids, b.oid)
	}
	for i, seed := range []string{"t", "-1", "1e+20", "NaN", `\x00ff`, "{1,NULL}", `{"a\"b",c}`, "[0:1]={1,2}", "[1,2)", `["a","b")`, "empty",
		"{[1,2),empty}", `(1,"{a}","[1,2)")`, `{"(1,\"{a}\",\"[1,2)\")"}`, "2026-11-22 10:00:00.5+00", "0001-01-01 BC", "infinity", "1 2 3",
		"{\"a\":\n1}", "\xff\xfe", "{}", "()", "(,,)", "{{{{{{{1}}}}}}}", "[", "{", "(", `"`, `{"`, `\`, "[1:", "[1:2]", "[x:y]=", ""} {
		f.Add(i, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, which int, text []byte) {
		for _, oid := range []uint32{oids[uint(which)%uint(len(oids))], 20001, 20002, 20003, 20004, 1184, 1007, 17, 114, 701} {
			out := ts.AppendJSON([]byte("["), oid, text)
			if out = append(out, ']'); !json.Valid(out) || strings.ContainsAny(string(out), "\r\n") {
				t.Fatalf("type %d of %q is %q", oid, text, out)
			}
		}
	})
}

func BenchmarkAppendJSON(b *testing.B) {
	ts := fuzzTypes()
	for _, c := range []struct {
		name string
		oid  uint32
		text string
	}{
		{"int8", 20, "1234567890123"},
		{"float8", 701, "0.30000000000000004"},
		{"numeric", 1700, "12345.6789"},
		{"bool", 16, "t"},
		{"text20", 25, "twenty characters ok"},
		{"text200", 25, strings.Repeat("twenty characters ok", 10)},
		{"timestamptz", 1184, "2026-11-22 10:00:00.123456+00"},
		{"uuid", 2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
		{"bytea32", 17, `\x` + strings.Repeat("0f", 32)},
		{"jsonb", 3802, `{"a": 1, "b": [1, 2, 3], "c": "text"}`},
		{"int4array", 1007, "{1,2,3,4,5}"},
		{"composite", 20001, `(1,"{a,b}","[1,2)")`},
	} {
		b.Run(c.name, func(b *testing.B) {
			dst, text := make([]byte, 0, 1024), []byte(c.text)
			b.ReportAllocs()
			for b.Loop() {
				dst = ts.AppendJSON(dst[:0], c.oid, text)
			}
		})
	}
}

func FuzzEncodeParams(f *testing.F) {
	ts := fuzzTypes()
	oids := []uint32{20001, 20002, 20003, 20004, 999999}
	for _, b := range builtins {
		oids = append(oids, b.oid)
	}
	for i, seed := range []string{`1`, `"a"`, `[1,[2]]`, `{"a":1}`, `null`, `true`, ``, `{`, `[null,"\u0000"]`, `"\ud800"`, `1e999`} {
		f.Add(i, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, which int, raw []byte) {
		got, err := ts.encodeParams([]uint32{oids[uint(which)%uint(len(oids))]}, []json.RawMessage{raw})
		if err == nil && len(got) != 1 || err != nil && athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Fatalf("%q gives %q, %v", raw, got, err)
		}
		if err == nil && strings.IndexByte(string(got[0]), 0) >= 0 {
			t.Fatalf("%q gives a zero byte: %q", raw, got[0])
		}
	})
}

// TestYearsGoBackAsTheyCame gives the expanded years of docs/types.md to the
// server as parameters.
func TestYearsGoBackAsTheyCame(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	ts := &Types{}
	for want, oid := range map[string]uint32{
		`"-000043-03-15"`: dateOID, `"0000-01-01"`: dateOID, `"+5874897-12-31"`: dateOID, `"+012345-01-02"`: dateOID, `"9999-12-31"`: dateOID, `"infinity"`: dateOID,
		`"-004713-11-24T00:00:00.000000"`: timestampOID, `"+294276-12-31T23:59:59.999999"`: timestampOID, `"-000043-03-15T12:00:00.500000Z"`: timestamptzOID,
	} {
		params, err := ts.encodeParams([]uint32{oid}, []json.RawMessage{json.RawMessage(want)})
		if err != nil {
			t.Fatal(err)
		}
		r := conn.ExecParams(t.Context(), "SELECT $1", params, []uint32{oid}, nil, nil).Read()
		if r.Err != nil {
			t.Errorf("%s: %v", want, r.Err)
			continue
		}
		if got := string(ts.AppendJSON(nil, oid, r.Rows[0][0])); got != want {
			t.Errorf("%s came back as %s", want, got)
		}
	}
}
