package transform_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
)

func TestTestsOfADefinitionRunOffline(t *testing.T) {
	t.Parallel()
	p, err := spec.Decode([]byte(`
name: paid
source: {client: shop, table: public.orders}
transforms:
  - filter: 'row.status == "paid"'
  - set: {total_cents: 'int(math.round(double(row.total) * 100.0))', day: 'string(row.created_at).substring(0,10)'}
  - route: '"orders_" + row.day'
sink: {client: lake, objects: {prefix: orders/}}
tests:
  - name: keeps only paid
    in:  [{id: 1, status: paid, total: "19.90", created_at: "2026-11-22T10:00:00Z"}, {id: 2, status: new, total: "2"}]
    out: [{id: 1, total_cents: 1990, day: "2026-11-22", _route: orders_2026-11-22}]
  - name: a total that is none is a dead letter
    in:  [{id: 1, status: paid, total: "x", created_at: "2026-11-22T10:00:00Z"}]
    dead: 1
  - name: fails
    in:  [{id: 1, status: paid, total: "1", created_at: "2026-11-22T10:00:00Z"}, {id: 2, status: paid, total: "x"}]
    out: [{id: 2, total_cents: 7, nothing: 1}, {id: 3}]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := transform.RunTests(p, nil)
	if len(got) != 3 || !got[0].Passed || !got[1].Passed || got[2].Passed {
		t.Fatalf("%+v", got)
	}
	failures := strings.Join(got[2].Failures, "\n")
	for _, want := range []string{
		"1 rows became dead letters, and 0 should have: in[1] at transforms[1]", "out[0].id is 1 and should be 2",
		"out[0].total_cents is 100 and should be 7", `out[0].nothing: there is no column "nothing"`, `out[1] is missing: {"id":3}`,
	} {
		if !strings.Contains(failures, want) {
			t.Errorf("%q is not among the failures\n%s", want, failures)
		}
	}
}

func TestTestsOfChangesSayWhatHappened(t *testing.T) {
	t.Parallel()
	p, err := spec.Decode([]byte(`
source: {client: shop, cdc: {tables: [public.orders]}}
transforms: [{filter: 'row.status == "paid"'}]
sink: {client: copy, table: orders}
tests:
  - name: an order that is no longer paid leaves the copy
    in:  [{id: 1, status: paid, _op: insert}, {id: 1, status: void, _op: update}, {id: 2, _op: delete}]
    out: [{id: 1, _op: insert}, {id: 1, _op: delete}, {id: 2, _op: delete}]
  - name: bad
    in: [{id: 1, _op: upsert}]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := transform.RunTests(p, nil)
	if !got[0].Passed || got[1].Passed || !strings.Contains(got[1].Failures[0], "_op must be") {
		t.Errorf("%+v", got)
	}
}

func TestTestsWithAKnownSchemaAreHeldToIt(t *testing.T) {
	t.Parallel()
	p, err := spec.Decode([]byte(`
source: {client: shop, table: orders}
sink: {client: copy, table: orders}
tests:
  - name: equal by value
    in:  [{id: 1, total: "1.5", doc: {b: 1, a: [2]}}]
    out: [{id: 1, total: 1.50, doc: {a: [2], b: 1}}]
  - name: a column that is none
    in:  [{idd: 1}]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := transform.RunTests(p, orders)
	if !got[0].Passed || got[1].Passed || !strings.Contains(got[1].Failures[0], `there is no column "idd"; did you mean "id"?`) {
		t.Errorf("%+v", got)
	}
}

func TestExpressionsAreCheckedWithoutASchema(t *testing.T) {
	t.Parallel()
	good := "- filter: 'row.a > 1 && meta.op == \"insert\"'\n- set: {b: 'row[\"x y\"].substring(1)', c: 'row.d'}\n- route: 'row.e'"
	if wrong := transform.Check(steps(t, good)); len(wrong) != 0 {
		t.Error(wrong)
	}
	bad := "- filter: '1 +'\n- filter: '1'\n- set: {a: 'nofunction(1)', b: 'rwo.a'}\n- route: '5'"
	wrong := transform.Check(steps(t, bad))
	if len(wrong) != 4 || !strings.Contains(wrong[2].Error(), "transforms[2].set.a: ") || !strings.Contains(wrong[2].Error(), "; b: line 1, column 1 of the expression") {
		t.Error(wrong)
	}
}

// The definitions that the reference shows are good, and their tests pass.
func TestTheReferenceShowsWhatWorks(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/pipelines.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(page, -1) {
		p, err := spec.Decode(block[1])
		if err != nil {
			t.Errorf("%v\n%s", err, block[1])
			continue
		}
		shown++
		for _, r := range transform.RunTests(p, nil) {
			if !r.Passed {
				t.Errorf("%s: %v", r.Name, r.Failures)
			}
		}
	}
	if shown < 2 {
		t.Errorf("the reference shows %d definitions", shown)
	}
}
