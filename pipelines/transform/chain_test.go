package transform_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// orders is the schema of most tests.
var orders = &record.Schema{
	Columns: []record.Column{
		{Name: "id", Type: record.TypeInt64},
		{Name: "status", Type: record.TypeText, Nullable: true},
		{Name: "total", Type: record.DecimalOf(12, 2), Nullable: true},
		{Name: "weight", Type: record.TypeFloat64, Nullable: true},
		{Name: "paid", Type: record.TypeBool, Nullable: true},
		{Name: "created_at", Type: record.TypeTimestampTZ, Nullable: true},
		{Name: "day", Type: record.TypeDate, Nullable: true},
		{Name: "ref", Type: record.TypeUUID, Nullable: true},
		{Name: "doc", Type: record.TypeJSON, Nullable: true},
		{Name: "raw", Type: record.TypeBytes, Nullable: true},
		{Name: "with blank", Type: record.TypeText, Nullable: true},
	},
	Key: []string{"id"},
}

// batch makes rows of JSON objects.
func batch(t testing.TB, s *record.Schema, rows ...string) *record.Batch {
	t.Helper()
	b := record.New(s, len(rows))
	p := record.NewParser(s)
	for _, row := range rows {
		if _, err := p.Parse(b, []byte(row)); err != nil {
			t.Fatalf("%s: %v", row, err)
		}
	}
	b.From = "public.orders"
	return b
}

// changes makes rows that come from a stream of changes: "op {row}". What a row
// lacks is absent.
func changes(t testing.TB, s *record.Schema, rows ...string) *record.Batch {
	t.Helper()
	b := record.New(s, len(rows))
	p := record.NewParser(s)
	p.Absent = true
	for i, row := range rows {
		op, object, _ := strings.Cut(row, " ")
		op, written, _ := strings.Cut(op, "@")
		at, _ := strconv.ParseInt(written, 10, 64)
		if _, err := p.Parse(b, []byte(object)); err != nil {
			t.Fatalf("%s: %v", row, err)
		}
		b.Changes = append(b.Changes, record.Change{Op: cdc.Op(op), Pos: cdc.Position(fmt.Sprintf("%04d", i)), At: 1_700_000_000_000_000, WriteTime: at})
	}
	b.From = "public.orders"
	return b
}

func lines(parts []transform.Part) (out []string) {
	for _, p := range parts {
		for i := range p.Batch.Rows() {
			line := string(p.Batch.AppendJSON(nil, i))
			if p.Batch.Changes != nil {
				line = string(p.Batch.Changes[i].Op) + " " + line
			}
			if p.Route != "" {
				line = p.Route + ": " + line
			}
			out = append(out, line)
		}
	}
	return out
}

// steps reads the transforms of a definition.
func steps(t testing.TB, text string) []spec.Transform {
	t.Helper()
	p, err := spec.Decode([]byte("source: {client: a, table: t}\nsink: {client: b, objects: {prefix: x/}}\ntransforms:\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return p.Transforms
}

func TestStepsDoWhatTheySay(t *testing.T) {
	t.Parallel()
	const row = `{"id":1,"status":"paid","total":"19.90","weight":1.5,"paid":true,"created_at":"2026-11-22T10:00:00.123456Z","day":"2026-11-22","ref":"8f14e45f-ceea-467f-ab3c-1234567890ab","doc":{"a":[1,2.5],"b":null},"raw":"AP8Q","with blank":"x"}`
	const nulls = `{"id":2}`
	tests := map[string]struct {
		steps  string
		rows   []string
		want   []string
		reject []string // "step row: reason"
	}{
		"a filter keeps rows that are equal to something":                {`- filter: 'row.status == "paid"'`, []string{row, `{"id":3,"status":"new"}`}, []string{row}, nil},
		"a filter keeps no row of which it is null":                      {`- filter: 'double(row.total) > 1.0'`, []string{nulls}, nil, nil},
		"a filter can ask for nulls":                                     {`- filter: 'row.status == null'` + "\n- select: [id]", []string{row, nulls}, []string{`{"id":2}`}, nil},
		"a filter can ask with has":                                      {`- filter: 'has(row.status)'` + "\n- select: [id]", []string{row, nulls}, []string{`{"id":1}`}, nil},
		"a filter can ask for a column whose name is no identifier":      {`- filter: 'row["with blank"] == "x"'` + "\n- select: [id]", []string{row, nulls}, []string{`{"id":1}`}, nil},
		"a filter knows where rows come from":                            {`- filter: 'meta.table == "public.orders"'` + "\n- select: [id]", []string{nulls}, []string{`{"id":2}`}, nil},
		"a filter can look into JSON":                                    {`- filter: 'row.doc.a[0] == 1 && row.doc.a[1] > 2.0'` + "\n- select: [id]", []string{row}, []string{`{"id":1}`}, nil},
		"a row on which a filter fails is rejected and the others go on": {`- filter: '10 / (row.id - 1) > 1'` + "\n- select: [id]", []string{row, nulls}, []string{`{"id":2}`}, []string{"0 0:  division by zero"}},
		"the example of the design": {`- set: {total_cents: 'int(double(row.total) * 100.0)', d: 'string(row.created_at).substring(0,10)'}` + "\n- select: [id, total_cents, d]",
			[]string{strings.Replace(row, "19.90", "1.50", 1), nulls}, []string{`{"id":1,"total_cents":150,"d":"2026-11-22"}`, `{"id":2,"total_cents":null,"d":null}`}, nil},
		"set sees the row as it was":                          {`- set: {id: 'row.id + 1', b: 'row.id'}` + "\n- select: [id, b]", []string{nulls}, []string{`{"id":3,"b":2}`}, nil},
		"columns come in the order in which they are written": {"- select: [id, doc]\n- set: {z: 'row.id', id: 'row.id + 1', a: 'row.id'}\n- flatten: {column: doc, fields: {n: int32, a: text}}\n- drop: [doc]", []string{`{"id":1,"doc":{"a":"x","n":2}}`}, []string{`{"id":2,"z":1,"a":1,"doc_n":2,"doc_a":"x"}`}, nil},
		"set takes a column over with its type": {`- set: {t: row.total, r: row.ref, e: row.raw, j: row.doc}` + "\n- select: [t, r, e, j]", []string{row},
			[]string{`{"t":"19.90","r":"8f14e45f-ceea-467f-ab3c-1234567890ab","e":"AP8Q","j":{"a":[1,2.5],"b":null}}`}, nil},
		"set makes columns of all sorts": {`- set: {b: 'row.id > 0', s: 'row.status.upperAscii()', f: 'row.weight * 2.0', t: 'row.created_at + duration("1h")', l: '[row.id, 2]', m: '{"k": row.status}', y: 'bytes(row.status)', d: 'row.day + "!"', u: 'row.ref.substring(0, 8)', n: 'row.doc.b', g: 'math.greatest(row.id, 7)'}` + "\n- select: [b, s, f, t, l, m, y, d, u, n, g]", []string{row},
			[]string{`{"b":true,"s":"PAID","f":3,"t":"2026-11-22T11:00:00.123456Z","l":[1,2],"m":{"k":"paid"},"y":"cGFpZA==","d":"2026-11-22!","u":"8f14e45f","n":null,"g":7}`}, nil},
		"a row of which a column cannot be computed is rejected": {`- set: {n: 'int(row.status)'}` + "\n- select: [id, n]", []string{row, `{"id":3,"status":"7"}`, nulls},
			[]string{`{"id":3,"n":7}`, `{"id":2,"n":null}`}, []string{"0 0: n"}},
		"a row that fails twice is rejected once": {`- set: {m: 'int(row.status)', n: 'int(row.status)'}`, []string{row}, nil, []string{"0 0: m"}},
		"rename, select and drop":                 {"- rename: {id: n, status: s}\n- select: [s, n, total]\n- drop: [total]", []string{row}, []string{`{"s":"paid","n":1}`}, nil},
		"rename can swap":                         {"- select: [id, status]\n- rename: {id: status, status: id}", []string{row}, []string{`{"status":1,"id":"paid"}`}, nil},
		"cast": {"- select: [id, status, total, created_at]\n- cast: {id: text, total: float64, created_at: date, status: int32}", []string{`{"id":1,"status":"7","total":"1.50","created_at":"2026-11-22T00:00:00Z"}`, row},
			[]string{`{"id":"1","status":7,"total":1.5,"created_at":"2026-11-22"}`}, []string{`1 1: created_at column "created_at": 2026-11-22T10:00:00.123456Z is no date`}},
		"mask": {"- select: [id, status, total, ref]\n- mask: {id: hash, status: redact, ref: last4, total: last4}", []string{row, nulls},
			[]string{`{"id":"` + hash1 + `","status":"***","total":"****","ref":"****90ab"}`, `{"id":"` + hash2 + `","status":null,"total":null,"ref":null}`}, nil},
		"flatten": {"- flatten: {column: doc, fields: {a: json, b: text, n: int32}}\n- select: [id, doc_a, doc_b, doc_n]", []string{row, nulls, `{"id":3,"doc":{"b":5,"n":"6"}}`, `{"id":4,"doc":[1]}`, `{"id":5,"doc":{"n":"x"}}`},
			[]string{`{"id":1,"doc_a":[1,2.5],"doc_b":null,"doc_n":null}`, `{"id":2,"doc_a":null,"doc_b":null,"doc_n":null}`, `{"id":3,"doc_a":null,"doc_b":"5","doc_n":6}`}, []string{"0 3: ", "0 4: "}},
		"route": {"- route: '\"orders_\" + row.status'\n- select: [id]", []string{`{"id":1,"status":"a"}`, `{"id":2,"status":"b"}`, `{"id":3,"status":"a"}`, nulls},
			[]string{`orders_a: {"id":1}`, `orders_a: {"id":3}`, `orders_b: {"id":2}`}, []string{"0 3:  the route gave nothing"}},
		"dedupe keeps the first": {"- dedupe: {key: [status, weight]}\n- select: [id]", []string{`{"id":1,"status":"a"}`, `{"id":2,"status":"a","weight":0.0}`, `{"id":3,"status":"a"}`, `{"id":4,"status":"a","weight":-0.0}`},
			[]string{`{"id":1}`, `{"id":2}`}, nil},
		"aggregate": {"- aggregate: {group_by: [status, created_at], time: {created_at: day}, columns: {n: count(), w: count(weight), total: sum(total), mean: avg(total), ids: sum(id), lo: min(total), hi: max(created_at), heavy: max(weight), mid: avg(id)}}",
			[]string{`{"id":1,"status":"a","total":"0.10","created_at":"2026-11-22T10:00:00Z","weight":1}`, `{"id":2,"status":"a","total":"10.20","created_at":"2026-11-22T11:00:00Z"}`, `{"id":4,"status":"b","created_at":"2026-11-22T11:00:00Z"}`},
			[]string{
				`{"status":"a","created_at":"2026-11-22T00:00:00.000000Z","n":2,"w":1,"total":"10.30","mean":"5.15000000","ids":3,"lo":"0.10","hi":"2026-11-22T11:00:00.000000Z","heavy":1,"mid":"1.500000"}`,
				`{"status":"b","created_at":"2026-11-22T00:00:00.000000Z","n":1,"w":0,"total":null,"mean":null,"ids":4,"lo":null,"hi":"2026-11-22T11:00:00.000000Z","heavy":null,"mid":"4.000000"}`,
			}, nil},
		"aggregate without groups gives one row always": {"- filter: 'false'\n- aggregate: {columns: {n: count(), s: sum(total)}}", []string{row}, []string{`{"n":0,"s":null}`}, nil},
		"steps behind an aggregate see its rows": {"- aggregate: {group_by: [status], columns: {n: count()}}\n- filter: 'row.n > 1'\n- rename: {n: orders}", []string{`{"id":1,"status":"a"}`, `{"id":2,"status":"b"}`, `{"id":3,"status":"a"}`},
			[]string{`{"status":"a","orders":2}`}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chain, err := transform.Compile(steps(t, tt.steps), orders, transform.Env{Pipeline: "p"})
			if err != nil {
				t.Fatal(err)
			}
			var rejected []string
			reject := func(step, row int, cause error) {
				e := cause.(*transform.RowError)
				rejected = append(rejected, strings.TrimSpace(fmt.Sprintf("%d %d: %s %s", step, row, e.Column, e.Reason)))
			}
			parts, err := chain.Apply(batch(t, orders, tt.rows...), reject)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := chain.Flush(reject)
			if err != nil {
				t.Fatal(err)
			}
			got := lines(append(parts, rest...))
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if !slices.EqualFunc(rejected, tt.reject, func(got, want string) bool { return strings.HasPrefix(got, want) }) {
				t.Errorf("rejected\n%s\nwant\n%s", strings.Join(rejected, "\n"), strings.Join(tt.reject, "\n"))
			}
			for _, p := range append(parts, rest...) {
				if !p.Batch.Schema.Equal(chain.Schema()) {
					t.Errorf("the rows have the schema %v, and the chain says %v", p.Batch.Schema, chain.Schema())
				}
			}
		})
	}
}

// Of HMAC-SHA-256 with the key p over 1 and 2, from openssl.
const (
	hash1 = "afa04cb80ac6d17ba2bd8b42de822043fb4feb75f5478b038b8c62a9cb04ab1b"
	hash2 = "20be96f330669c81dc8d0e092c0e6e4c3333d1c7ca98e3c270bf20dec822f7a3"
)

func TestExpressionsThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ steps, want string }{
		"an unknown column":              {`- filter: 'row.statsu == "paid"'`, `transforms[0].filter: line 1, column 4 of the expression is not understood: there is no column "statsu"; did you mean "status"?`},
		"an unknown column by index":     {`- filter: 'row["withblank"] == "x"'`, `did you mean "with blank"?`},
		"a type that does not fit":       {`- filter: 'row.status > 5'`, "found no matching overload"},
		"a filter that gives no bool":    {`- filter: 'row.id'`, "transforms[0].filter: the expression gives a value of type int; it must give a value of type bool"},
		"a column that was dropped":      {"- drop: [status]\n- set: {a: row.status}", `transforms[1].set.a: line 1, column 4 of the expression is not understood: there is no column "status"`},
		"a syntax error":                 {"- filter: 'row.id >'", "transforms[0].filter: line 1, column "},
		"two expressions of one set":     {"- set: {b: 'row.statsu', ok: 'row.id', a: 'row.id + \"x\"'}", `transforms[0].set.b: line 1, column 4 of the expression is not understood: there is no column "statsu"; did you mean "status"?; a: line 1, column 8 of the expression`},
		"a row as a whole":               {"- set: {a: row}", "transforms[0].set.a: the expression gives"},
		"a duration":                     {"- set: {a: 'duration(\"1s\")'}", "of which no column can be made"},
		"an operation of no change":      {`- filter: 'meta.op == "insert"'`, "meta.op is known of changes"},
		"an unknown member of meta":      {`- filter: 'meta.lsn == "1"'`, `meta has no "lsn"`},
		"a select of no column":          {"- select: [id, statu]", `transforms[0].select.statu: there is no column "statu"; did you mean "status"?`},
		"a rename to a name that is one": {"- rename: {id: status}", `there would be two columns "status"`},
		"a cast that cannot be":          {"- cast: {paid: date}", "no bool can become date"},
		"a flatten of no JSON":           {"- flatten: {column: id, fields: {a: text}}", "transforms[0].flatten.column: column \"id\" is int64"},
		"a sum of text":                  {"- aggregate: {columns: {n: sum(status)}}", `transforms[0].aggregate.columns.n: column "status" is text; sum is of numbers`},
		"an hour of a text":              {"- aggregate: {group_by: [status], time: {status: hour}, columns: {n: count()}}", "only dates and timestamps are cut"},
		"a route that is a number":       {"- route: row.id", "it must give a value of type string"},
		"no column is left":              {"- select: [id]\n- drop: [id]", "no column is left"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := transform.Compile(steps(t, tt.steps), orders, transform.Env{Pipeline: "p"})
			if athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	chain, err := transform.Compile(steps(b, `- filter: 'row.status == "paid" && row.id > 10'`), orders, transform.Env{})
	if err != nil {
		b.Fatal(err)
	}
	rows := make([]string, 8192)
	for i := range rows {
		rows[i] = fmt.Sprintf(`{"id":%d,"status":"%s","total":"1.00"}`, i, []string{"paid", "new"}[i%2])
	}
	in := batch(b, orders, rows...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := chain.Apply(in, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(rows)), "ns/row")
}

func BenchmarkSet(b *testing.B) {
	chain, err := transform.Compile(steps(b, `- set: {cents: 'int(double(row.total) * 100.0)', day: 'string(row.created_at).substring(0,10)'}`), orders, transform.Env{})
	if err != nil {
		b.Fatal(err)
	}
	rows := make([]string, 8192)
	for i := range rows {
		rows[i] = fmt.Sprintf(`{"id":%d,"status":"paid","total":"1.00","created_at":"2026-11-22T10:00:00Z"}`, i)
	}
	in := batch(b, orders, rows...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := chain.Apply(in, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(rows)), "ns/row")
}
