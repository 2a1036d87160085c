package transform_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// Whatever an expression is, it is refused, or a row is rejected, or there is a
// value that can be written.
func FuzzExpression(f *testing.F) {
	for _, text := range []string{
		`row.status == "paid"`, `int(double(row.total) * 100.0)`, `string(row.created_at).substring(0,10)`, `row["with blank"]`, `row.doc.a[0]`,
		`[1, 2].map(x, x * row.id)`, `{"a": row.raw}`, `has(row.doc.b) ? row.doc.b : null`, `math.round(row.weight)`, `meta.op + meta.table`,
		`"%s".format([row.id])`, `row.created_at.getFullYear()`, `timestamp(row.day + "T00:00:00Z") - row.created_at`, `row`, `type(row.id)`, `optional.none()`,
	} {
		f.Add(text)
	}
	rows := []string{
		`{"id":1,"status":"paid","total":"19.90","weight":1.5,"paid":true,"created_at":"2026-11-22T10:00:00Z","day":"2026-11-22","ref":"8f14e45f-ceea-467f-ab3c-1234567890ab","doc":{"a":[1,2.5],"b":null},"raw":"AP8Q","with blank":"x"}`,
		`{"id":2,"created_at":"infinity","doc":[[]]}`,
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, env := range []transform.Env{{Pipeline: "p"}, {Pipeline: "p", Changes: true, ByKey: true}} {
			for _, step := range []spec.Transform{{Filter: text}, {Set: spec.Ordered[string]{{Name: "x", Value: text}}}, {Route: text}} {
				chain, err := transform.Compile([]spec.Transform{step}, orders, env)
				if err != nil {
					if athena.CodeOf(err) != athena.CodeInvalidRequest {
						t.Fatalf("%q: %v", text, err)
					}
					continue
				}
				in := batch(t, orders, rows...)
				if env.Changes {
					in = changes(t, orders, "insert "+rows[0], "update "+rows[1], `delete {"id":3}`)
				}
				n := 0
				parts, err := chain.Apply(in, func(int, int, error) { n++ })
				if err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				for _, p := range parts {
					for i := range p.Batch.Rows() {
						p.Batch.AppendJSON(nil, i)
						n++
					}
				}
				if n > in.Rows() || step.Filter == "" && n != in.Rows() {
					t.Fatalf("%q: of %d rows there are %d", text, in.Rows(), n)
				}
			}
		}
	})
}
