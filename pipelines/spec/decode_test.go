package spec_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

const whole = `# everything that the design's example has
name: paid-orders-to-lake
source:
  client: shop
  table: public.orders
transforms:
  - filter: 'row.status == "paid"'
  - set: {total_cents: 'int(double(row.total) * 100.0)', day: 'string(row.created_at).substring(0,10)'}
  - rename: {total: total_text}
  - select: [id, customer_id, total_cents, day]
  - cast: {id: int32, price: "decimal(12,2)"}
sink:
  client: lake
  objects: {prefix: 'orders/day={{day}}/', format: parquet, roll: {rows: 500000, bytes: 128MiB, every: 60s}}
schedule: '*/15 * * * *'
schema: {columns: evolve, types: freeze}
errors: {max_rate: 0.01, to: dead}
parallel: 4
tests:
  - name: keeps only paid
    in:  [{id: 1, status: paid, total: "1.50", at: 2026-11-22}, {id: 2, status: new, total: 2.50, big: 0x10}]
    out: [{id: 1, total_cents: 150}]
`

func decode(t *testing.T, text string) *spec.Pipeline {
	t.Helper()
	p, err := spec.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheExampleOfTheDesignIsRead(t *testing.T) {
	t.Parallel()
	p := decode(t, whole)
	if p.Source.Kind() != "table" || p.Sink.Kind() != "objects" || len(p.Transforms) != 5 {
		t.Fatalf("%+v", p)
	}
	if got := p.Transforms[4].Cast["price"]; got != record.DecimalOf(12, 2) {
		t.Errorf("price is cast to %v", got)
	}
	if r := p.Sink.Objects.Roll; r.Rows != 500_000 || r.Bytes != 128<<20 || r.Every.Std() != time.Minute {
		t.Errorf("roll is %+v", r)
	}
	if got := string(p.Tests[0].In[1]); got != `{"id":2,"status":"new","total":2.50,"big":16}` {
		t.Errorf("a row is %s", got)
	}
	if got := string(p.Tests[0].In[0]); got != `{"id":1,"status":"paid","total":"1.50","at":"2026-11-22"}` {
		t.Errorf("a row is %s", got)
	}
}

// problems are those of a document that Decode refuses.
func problems(t *testing.T, text string) []spec.Problem {
	t.Helper()
	_, err := spec.Decode([]byte(text))
	var e *athena.Error
	if !errors.As(err, &e) || e.Code != athena.CodeInvalidRequest {
		t.Fatalf("the error is %v", err)
	}
	list := e.Details["problems"].([]spec.Problem)
	if len(list) == 0 || e.Details["field"] != list[0].Field {
		t.Errorf("details are %v", e.Details)
	}
	for _, p := range list {
		if !strings.Contains(e.Message, p.String()) {
			t.Errorf("the message %q lacks %q", e.Message, p)
		}
	}
	return list
}

const head = "source: {client: shop, table: public.orders}\n"
const tail = "\nsink: {client: lake, objects: {prefix: orders/}}"

func TestWhatIsWrongIsNamedWithPathAndLine(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want string // of the one problem, or "problem; problem"
	}{
		"an unknown field, with what was meant":             {head + "schedul: '* * * * *'" + tail, "line 2, schedul: this field is unknown; did you mean schedule?"},
		"an unknown field of which two letters are swapped": {"nmae: a\nsource: {client: shop, tabel: public.orders, table: t}" + tail, "line 1, nmae: this field is unknown; did you mean name?; line 2, source.tabel: this field is unknown; did you mean table?"},
		"an unknown field deep down":                        {head + "transforms:\n  - aggregate:\n      grup_by: [a]\n      columns: {n: count()}" + tail, "line 4, transforms[0].aggregate.grup_by: this field is unknown; did you mean group_by?"},
		"an unknown field that is like nothing":             {head + "sink: {client: lake, table: t, zzzzzz: 1}", "line 2, sink.zzzzzz: this field is unknown; the known ones are client, create, key, mode, objects, table, ttl, write_time"},
		"a credential":                                      {"source: {client: shop, table: t, password: hunter2}" + tail, "line 1, source.password: this field is unknown; connections and credentials belong to the client's definition, and a pipeline names the client"},
		"a field given twice":                               {head + "name: a\nname: b" + tail, "line 3, name: it is given twice; the first stands on line 2"},
		"an anchor":                                         {"source: &s {client: shop, table: t}\nsink: *s", "line 1, source: anchors and aliases are not understood here; write the value out; line 2, sink: anchors and aliases are not understood here; write the value out"},
		"a number where a text belongs":                     {head + "transforms:\n  - set: {one: 1}" + tail, "line 3, transforms[0].set.one: it is the number 1; it must be a text: write it in quotes"},
		"a text where a number belongs":                     {head + "parallel: many" + tail, `line 2, parallel: it is "many"; it must be a whole number`},
		"a list where an object belongs":                    {"source: []" + tail, "line 1, source: it is a list; it must be an object"},
		"a step of two kinds":                               {head + "transforms:\n- filter: 'true'\n  drop: [a]" + tail, "line 4, transforms[0].drop: the step has filter already; make a step of each"},
		"a step of no kind":                                 {head + "transforms:\n- set: {}" + tail, "line 3, transforms[0]: the step does nothing"},
		"two sources":                                       {"source: {client: shop, table: t, query: select 1}" + tail, "line 1, source.query: there is table already"},
		"no source":                                         {"source: {client: shop}" + tail, "line 1, source: it says nothing of what is read"},
		"two sinks":                                         {head + "sink: {client: a, table: t, objects: {prefix: x/}}", "line 2, sink.objects: there is table already"},
		"no sink":                                           {head, "line 1, sink: it says nothing of what is written"},
		"a client that cannot be one":                       {"source: {client: 'postgres://u:p@h/db', table: t}" + tail, "line 1, source.client: client name"},
		"a table that cannot be one":                        {"source: {client: shop, table: a.b.c}" + tail, "line 1, source.table: table"},
		"a limit behind a query":                            {"source: {client: shop, query: select 1, limit: 3}" + tail, "line 1, source.limit: it belongs to a source table"},
		"an operator that is none":                          {"source: {client: shop, table: t, where: [{column: a, op: '~', value: 1}]}" + tail, `line 1, source.where[0].op: it is "~"; it must be =, !=`},
		"a null compared":                                   {"source: {client: shop, table: t, where: [{column: a, op: '=', value: null}]}" + tail, "line 1, source.where[0]: = needs a value; a null is asked for with is_null"},
		"merge behind cdc":                                  {"source: {client: shop, cdc: {tables: [t]}}\nsink: {client: b, table: t, mode: merge}", "line 2, sink.mode: merge takes all rows at once and cannot follow changes"},
		"overwrite behind a route":                          {head + "transforms:\n- route: row.a\nsink: {client: b, table: t, mode: overwrite}", "line 3, transforms[0].route: overwrite takes effect in the one table of the sink"},
		"upsert of a query without a key":                   {"source: {client: shop, query: select 1}\nsink: {client: b, table: t, mode: upsert}", "line 2, sink: upsert needs a key, and a source query has none"},
		"a time of writing without a table":                 {head + "sink: {client: lake, objects: {prefix: o/}, write_time: at, ttl: left}", "line 2, sink.write_time: it belongs to a sink table; line 2, sink.ttl: it belongs to a sink table"},
		"a time of writing of all rows at once":             {head + "sink: {client: b, table: t, mode: merge, key: [id], ttl: left}", "line 2, sink.ttl: merge takes all rows at once, as if they were written then; it is of append and upsert"},
		"a time of writing that is a key":                   {head + "sink: {client: b, table: t, mode: upsert, key: [at], write_time: at}", "line 2, sink.write_time: column \"at\" is part of the key, and this one is not written"},
		"a time to live that is the time of writing":        {head + "sink: {client: b, table: t, write_time: at, ttl: at}", "line 2, sink.ttl: column \"at\" is the write time already"},
		"a key that nothing needs":                          {head + "sink: {client: b, table: t, key: [id]}", "line 2, sink.key: append has no use for a key"},
		"a mode of objects":                                 {head + "sink: {client: b, objects: {prefix: a/}, mode: append}", "line 2, sink.mode: it belongs to a sink table"},
		"a schedule behind cdc":                             {"name: a\nsource: {client: shop, cdc: {tables: [t]}}\nschedule: '* * * * *'" + tail, "line 3, schedule: a source cdc runs until it is stopped"},
		"a schedule that is none":                           {"name: a\n" + head + "schedule: 'every day'" + tail, `line 3, schedule: "every day" is not a cron expression of five fields`},
		"a schedule of six fields":                          {"name: a\n" + head + "schedule: '* * * * * *'" + tail, `line 3, schedule: "* * * * * *" is not a cron expression of five fields`},
		"a schedule without a name":                         {head + "schedule: '* * * * *'" + tail, "line 2, schedule: a pipeline without a name cannot be stored"},
		"an aggregate behind cdc":                           {"source: {client: shop, cdc: {tables: [t]}}\ntransforms:\n- aggregate: {columns: {n: count()}}" + tail, "line 3, transforms[0].aggregate: changes have no end"},
		"two tables to one place":                           {"source: {client: shop, cdc: {tables: [a, b]}}" + tail, "line 1, source.cdc.tables: the rows of 2 tables cannot go to one place"},
		"an aggregation that is none":                       {head + "transforms:\n- aggregate: {columns: {n: median(x)}}" + tail, `line 3, transforms[0].aggregate.columns.n: "median(x)" is no aggregation`},
		"a type that is none":                               {head + "transforms:\n- cast: {a: int63}" + tail, `line 3, transforms[0].cast.a: type "int63" is unknown`},
		"a mask that is none":                               {head + "transforms:\n- mask: {a: rot13}" + tail, `line 3, transforms[0].mask.a: it is "rot13"; it must be hash, redact or last4`},
		"two columns of one name":                           {head + "transforms:\n- rename: {a: c, b: c}" + tail, `line 3, transforms[0].rename.b: "c" becomes the name of two columns, a and b`},
		"a route before an aggregate":                       {head + "transforms:\n- route: row.a\n- aggregate: {columns: {n: count()}}" + tail, "line 4, transforms[1].aggregate: it looks at all rows, which transforms[0] has parted"},
		"a prefix that leads out":                           {head + "sink: {client: b, objects: {prefix: a/../b/}}", `line 2, sink.objects.prefix: prefix "a/../b/" has the segment ..`},
		"a prefix that begins at the root":                  {head + "sink: {client: b, objects: {prefix: /a/}}", `line 2, sink.objects.prefix: prefix "/a/" begins with a slash`},
		"a prefix that is not closed":                       {head + "sink: {client: b, objects: {prefix: 'a={{x/'}}", `line 2, sink.objects.prefix: prefix "a={{x/" has a {{ that is not closed`},
		"snappy for csv":                                    {head + "sink: {client: b, objects: {prefix: a/, format: csv, compression: snappy}}", "line 2, sink.objects.compression: snappy is for parquet"},
		"bytes that are none":                               {head + "sink: {client: b, objects: {prefix: a/, roll: {bytes: 128MiBs}}}", `line 2, sink.objects.roll.bytes: "128MiBs" is not a number of bytes`},
		"a rate above one":                                  {head + "errors: {max_rate: 1.5}" + tail, "line 2, errors.max_rate: it is 1.5; it must be between 0 and 1"},
		"a policy that is none":                             {head + "schema: {columns: ignore}" + tail, `line 2, schema.columns: it is "ignore"; it must be evolve, freeze`},
		"a test row that is none":                           {head + "tests: [{name: x, in: [1]}]" + tail, "line 2, tests[0].in[0]: a row is an object of its columns"},
		"a parameter that is not declared":                  {head + "params: {a: {}}\ndescription: '${b}'" + tail, "line 3, description: ${b} names no parameter"},
		"a parameter's place without params":                {head + "description: '${b}'" + tail, "line 2, description: ${b} is a parameter's place, and the definition has no params"},
		"a default that does not match":                     {head + "params: {a: {default: x, pattern: '[0-9]+'}}" + tail, `line 2, params.a.default: parameter a is "x"; it must match [0-9]+`},
		"a second document":                                 {head + tail + "\n---\na: 1", "line 4: a second document begins here"},
		"YAML that is none":                                 {"source: {client: shop\nsink: x", "this is neither YAML nor JSON"},
		"nothing":                                           {" \n", "the definition is empty"},
		"a comment":                                         {"# nothing\n", "the definition is empty"},
		"a text":                                            {"hello", `line 1: it is "hello"; it must be an object`},
		"not a number that JSON has":                        {"source: {client: a, query: x, params: [.nan]}" + tail, `line 1, source.params[0]: ".nan" is no number that JSON has`},
		"a null in a list":                                  {head + "transforms: [{drop: [a, ~]}]" + tail, "line 2, transforms[0].drop[1]: it is empty"},
		"an older condition that is none":                   {"source: {client: a, table_name: t, conditions: [{eq_col: a, eq_value: 1}]}" + tail, "line 1, source.where[0].eq_col: this field is unknown"},
		"an older field beside today's":                     {"source: {client: a, table_name: t, table: t}" + tail, "line 1, source.table_name: table is given as well"},
		"an older transform with an unknown field":          {head + "transform: {groupby: a}" + tail, "line 2, transform.groupby: this field is unknown; did you mean group_by?"},
		"all problems of a document, in the order of it":    {"source: {clint: shop, table: public.orders}\nparallel: 99\nsink: {client: lake}", "line 1, source.clint: this field is unknown; did you mean client?; line 1, source: no client is named; line 2, parallel: it is 99; it must be between 1 and 64; line 3, sink: it says nothing"},
		"a column name that is none stands in a path well":  {head + "transforms:\n- set: {'a b': 1}" + tail, `line 3, transforms[0].set["a b"]: it is the number 1`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			for _, p := range problems(t, tt.text) {
				lines = append(lines, p.String())
			}
			if got := strings.Join(lines, "; "); !strings.HasPrefix(got, tt.want) && !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if strings.Contains(strings.Join(lines, ""), "hunter2") {
				t.Error("a credential is shown")
			}
		})
	}
}

func TestJSONIsReadAsYAMLIsWithLines(t *testing.T) {
	t.Parallel()
	text := "{\t\"source\": {\"client\": \"shop\", \"table\": \"public.orders\"},\n\t\"sink\": {\"client\": \"b\", \"table\": \"t\"},\n\t\"description\": \"\\ud83d\\ude00 \\/\",\n\t\"parallel\": 3}"
	p := decode(t, text)
	if p.Description != "😀 /" || p.Parallel != 3 {
		t.Errorf("%+v", p)
	}
	list := problems(t, strings.Replace(text, "parallel", "paralel", 1))
	if len(list) != 1 || list[0] != (spec.Problem{Field: "paralel", Line: 4, Message: "this field is unknown; did you mean parallel?"}) {
		t.Errorf("%+v", list)
	}
	if list := problems(t, `{"name":"a","name":"b"}`); list[0].Message != "it is given twice; the first stands on line 1" {
		t.Errorf("%+v", list)
	}
	if list := problems(t, strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)); !strings.Contains(list[0].Message, "nested") {
		t.Errorf("%+v", list)
	}
}

func TestDefaultsAreThoseOfTheReference(t *testing.T) {
	t.Parallel()
	p := decode(t, "source: {client: shop, cdc: {tables: [public.orders]}}\nsink: {client: b, table: t}")
	p.Normalize()
	if p.Source.CDC.Snapshot != "initial" || p.Sink.Mode != driver.Upsert || p.Parallel != 2 || *p.Errors.MaxRate != 0.01 ||
		p.Errors.To != "dead" || p.Schema != (spec.Contract{Columns: spec.Evolve, Types: spec.Freeze}) {
		t.Errorf("%+v", p)
	}
	p = decode(t, head+"transforms: [{flatten: {column: doc, fields: {a: text}}}]"+tail)
	p.Normalize()
	o := p.Sink.Objects
	if o.Format != "parquet" || o.Compression != "zstd" || o.Roll != (spec.Roll{Rows: 1_000_000, Bytes: 128 << 20}) || p.Transforms[0].Flatten.Prefix != "doc_" {
		t.Errorf("%+v", o)
	}
	p = decode(t, head+"sink: {client: b, table: t}")
	if p.Normalize(); p.Sink.Mode != driver.Append {
		t.Errorf("mode %s", p.Sink.Mode)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
}

func TestTheOlderFormBecomesTodays(t *testing.T) {
	t.Parallel()
	older := decode(t, `{"source": {"client": "shop", "table_name": "orders", "columns": ["id", "total"], "limit": 10,
		"conditions": [{"eq_column": "status", "eq_value": "paid"}, {"column": "total", "operator": "GTE", "value": 5}]},
		"transform": {"group_by": "customer", "aggregation_column": "total", "aggregation_strategy": "SUM", "column_aliases": {"total": "revenue", "customer": "buyer"}},
		"sink": {"client": "shop", "table_name": "revenue"}, "dry_run": true}`)
	today := decode(t, `
source: {client: shop, table: orders, columns: [id, total], limit: 10, where: [{column: status, op: '=', value: paid}, {column: total, op: '>=', value: 5}]}
transforms:
  - aggregate: {group_by: [customer], columns: {total_sum: sum(total)}}
  - rename: {total_sum: revenue, customer: buyer}
sink: {client: shop, table: revenue}
dry_run: true
`)
	if !reflect.DeepEqual(older, today) {
		t.Errorf("got  %s\nwant %s", spec.Encode(older), spec.Encode(today))
	}
}

func TestATemplateIsFilledInAndCheckedAnew(t *testing.T) {
	t.Parallel()
	p := decode(t, `
name: by-region
source: {client: '${client}', query: 'select * from orders where region = $1', params: ['${region}']}
transforms: [{filter: 'row.region == "${region}" && row.text != "$${x}"'}]
sink: {client: lake, objects: {prefix: 'orders/${region}/'}}
params:
  client: {default: shop}
  region: {pattern: '[a-z]+'}
`)
	got, err := p.Instantiate(map[string]string{"region": "eu"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Source.Client != "shop" || got.Transforms[0].Filter != `row.region == "eu" && row.text != "${x}"` ||
		got.Sink.Objects.Prefix != "orders/eu/" || string(got.Source.Params[0]) != `"eu"` || got.Params != nil {
		t.Errorf("%s", spec.Encode(got))
	}
	for name, values := range map[string]map[string]string{
		"parameter region is missing":                    {},
		`parameter region is "EU"; it must match [a-z]+`: {"region": "EU"},
		`parameter client is "a\" || true"; without`:     {"region": "eu", "client": `a" || true`},
		`parameter "regoin" is unknown; did you mean`:    {"regoin": "eu"},
		"client name \"A\" is not allowed":               {"region": "eu", "client": "A"},
	} {
		if _, err := p.Instantiate(values); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %s, got %v", name, err)
		}
	}
}

func TestBytesAreReadAndWritten(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]spec.Bytes{"128MiB": 128 << 20, "1048576": 1 << 20, "64 KB": 64000, "0": 0, "5B": 5, "1TiB": 1 << 40} {
		var b spec.Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%s is %d, %v", text, b, err)
		}
		var again spec.Bytes
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%s is written %s", text, b)
		}
	}
	for _, text := range []string{"", "-1", "1.5MiB", "9999999TiB", "MiB"} {
		var b spec.Bytes
		if b.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is taken for %d bytes", text, b)
		}
	}
}

func TestValuesThatNoDocumentGivesAreRefused(t *testing.T) {
	t.Parallel()
	p := decode(t, "source: {client: a, query: x, params: [1]}"+tail)
	p.Source.Params[0] = json.RawMessage("{")
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "source.params: it is not JSON") {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"source":{"client":"a","cdc":{"tables":["t"]}},"sink":{"client":"b","table":"t"}}`))
	f.Add([]byte("source: {client: a, table_name: t, conditions: [{eq_column: a, eq_value: 1}]}\ntransform: {group_by: a, aggregation_strategy: count, column_aliases: {count: n}}\nsink: {client: a, table_name: t}"))
	f.Add([]byte("a: &a [*a]\n<<: *a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := spec.Decode(data)
		if err != nil {
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatalf("the error is %v", err)
			}
			return
		}
		again, err := spec.Decode(spec.Encode(p))
		if err != nil || !reflect.DeepEqual(p, again) {
			t.Fatalf("%v\nfirst  %s\nsecond %s", err, spec.Encode(p), spec.Encode(again))
		}
	})
}
