package transform_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Of changes: what is absent stays so, and what leaves a filter leaves the target.
func TestChangesKeepTheTargetRight(t *testing.T) {
	t.Parallel()
	small := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt64}, {Name: "status", Type: record.TypeText, Nullable: true}, {Name: "big", Type: record.TypeText, Nullable: true},
	}, Key: []string{"id"}}
	tests := map[string]struct {
		steps  string
		byKey  bool
		rows   []string
		want   []string
		reject []string
	}{
		"deletes and truncates pass every filter": {`- filter: 'row.status == "paid"'`, true,
			[]string{`insert {"id":1,"status":"new","big":"x"}`, `delete {"id":2}`, `truncate {}`}, []string{`delete {"id":2}`, `truncate {}`}, nil},
		"an update that a filter does not keep becomes a delete where rows are kept by key": {`- filter: 'row.status == "paid"'`, true,
			[]string{`update {"id":1,"status":"new","big":"x"}`, `update {"id":2,"status":null,"big":"x"}`, `read {"id":3,"status":"new","big":"x"}`, `update {"id":4,"status":"paid","big":"x"}`},
			[]string{`delete {"id":1,"status":"new","big":"x"}`, `delete {"id":2,"status":null,"big":"x"}`, `update {"id":4,"status":"paid","big":"x"}`}, nil},
		"so does what was made without a look at the row, which may have been there": {`- filter: 'row.status == "paid"'`, true,
			[]string{`insert@1 {"id":1,"status":"paid","big":"x"}`, `insert@2 {"id":1,"status":"new","big":"x"}`, `read@1 {"id":2,"status":"new","big":"x"}`, `insert {"id":3,"status":"new"}`},
			[]string{`insert {"id":1,"status":"paid","big":"x"}`, `delete {"id":1,"status":"new","big":"x"}`, `delete {"id":2,"status":"new","big":"x"}`}, nil},
		"and is dropped where they are a log": {`- filter: 'row.status == "paid"'`, false,
			[]string{`update {"id":1,"status":"new","big":"x"}`}, nil, nil},
		"an update whose filter needs what was not given is rejected": {`- filter: 'row.big.size() > 1'`, true,
			[]string{`update {"id":1,"status":"new"}`, `update {"id":2,"big":"long"}`}, []string{`update {"id":2,"big":"long"}`}, []string{"0 0: a column that the expression needs was not given by the source"}},
		"what is computed of absent values is absent": {`- set: {size: row.big.size(), u: row.big.upperAscii(), s: row.status}`, true,
			[]string{`update {"id":1,"status":"new"}`, `delete {"id":2}`, `truncate {}`},
			[]string{`update {"id":1,"status":"new","s":"new"}`, `delete {"id":2}`, `truncate {}`}, nil},
		"what is computed of absent values and others is rejected, but not of a delete": {`- set: {x: row.big + string(row.id)}`, true,
			[]string{`update {"id":1,"status":"new"}`, `delete {"id":2}`, `update {"id":3,"status":"a","big":"b"}`},
			[]string{`delete {"id":2}`, `update {"id":3,"status":"a","big":"b","x":"b3"}`}, []string{"0 0: a column that the expression needs"}},
		"what is computed of the key alone is there for a delete too": {`- set: {k: '"k" + string(row.id)', source: '"shop"', op: meta.op, at: meta.ts, pos: meta.pos}`, true,
			[]string{`delete {"id":2}`}, []string{`delete {"id":2,"k":"k2","source":"shop","op":"delete","at":"2023-11-14T22:13:20.000000Z","pos":"0000"}`}, nil},
		"masks, casts and fields of absent values are absent": {"- mask: {big: hash}\n- cast: {status: json}\n- flatten: {column: status, fields: {a: text}}", true,
			[]string{`delete {"id":2}`, `update {"id":1}`}, []string{`delete {"id":2}`, `update {"id":1}`}, nil},
		"dedupe keeps the last of each key up to a truncate": {`- dedupe: {key: [id]}`, true,
			[]string{`insert {"id":1,"status":"a"}`, `truncate {}`, `insert {"id":1,"status":"b"}`, `update {"id":1,"status":"c","big":null}`, `insert {"id":2,"status":"d"}`, `delete {"id":2}`, `update {"status":"keyless"}`},
			[]string{`insert {"id":1,"status":"a"}`, `truncate {}`, `update {"id":1,"status":"c","big":null}`, `delete {"id":2}`, `update {"status":"keyless"}`}, nil},
		"dedupe leaves no value out that a later change does not give": {`- dedupe: {key: [id]}`, true,
			[]string{`update {"id":1,"status":"a","big":"x"}`, `update {"id":1,"status":"b"}`, `insert@1 {"id":2,"status":"a"}`, `insert@2 {"id":2,"big":"x"}`, `insert@3 {"id":3,"big":"x"}`, `delete@4 {"id":3}`},
			[]string{`update {"id":1,"status":"a","big":"x"}`, `update {"id":1,"status":"b"}`, `insert {"id":2,"status":"a"}`, `insert {"id":2,"big":"x"}`, `delete {"id":3}`}, nil},
		"nor a change for one that came late": {`- dedupe: {key: [id]}`, true,
			[]string{`insert@5 {"id":1,"status":"a","big":"x"}`, `insert@2 {"id":1,"status":"b","big":"x"}`, `insert@5 {"id":2,"status":"a","big":"x"}`, `delete@2 {"id":2}`},
			[]string{`insert {"id":1,"status":"a","big":"x"}`, `insert {"id":1,"status":"b","big":"x"}`, `insert {"id":2,"status":"a","big":"x"}`, `delete {"id":2}`}, nil},
		"a route by the table takes all changes along": {`- route: meta.table`, true,
			[]string{`insert {"id":1}`, `delete {"id":2}`, `truncate {}`}, []string{`public.orders: insert {"id":1}`, `public.orders: delete {"id":2}`, `public.orders: truncate {}`}, nil},
		"a route by a column that a delete has not rejects it": {`- route: row.status`, true,
			[]string{`insert {"id":1,"status":"a"}`, `delete {"id":2}`}, []string{`a: insert {"id":1,"status":"a"}`}, []string{"0 1: a column that the expression needs"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chain, err := transform.Compile(steps(t, tt.steps), small, transform.Env{Pipeline: "p", Changes: true, ByKey: tt.byKey})
			if err != nil {
				t.Fatal(err)
			}
			var rejected []string
			in := changes(t, small, tt.rows...)
			before := lines([]transform.Part{{Batch: in}})
			parts, err := chain.Apply(in, func(step, row int, cause error) {
				rejected = append(rejected, fmt.Sprintf("%d %d: %s", step, row, cause))
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := lines(parts); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if !slices.EqualFunc(rejected, tt.reject, func(got, want string) bool { return strings.HasPrefix(got, want) }) {
				t.Errorf("rejected\n%s\nwant\n%s", strings.Join(rejected, "\n"), strings.Join(tt.reject, "\n"))
			}
			if after := lines([]transform.Part{{Batch: in}}); !slices.Equal(before, after) {
				t.Errorf("the batch that came in was changed to\n%s", strings.Join(after, "\n"))
			}
		})
	}
}

func TestTheKeyGoesAsFarAsItTellsRowsApart(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"- filter: 'true'":                        {"id"},
		"- rename: {id: n}":                       {"n"},
		"- select: [status]":                      nil,
		"- drop: [status]":                        {"id"},
		"- set: {id: row.id + 1}":                 nil,
		"- set: {id: row.id, b: row.id}":          {"id"},
		"- cast: {id: text}":                      {"id"},
		"- mask: {id: hash}":                      {"id"},
		"- mask: {id: last4}":                     nil,
		"- drop: [id]\n- dedupe: {key: [status]}": {"status"},
		"- dedupe: {key: [status]}":               {"id"},
		"- aggregate: {group_by: [day, status], columns: {n: count()}}":   {"day", "status"},
		"- aggregate: {columns: {n: count()}}":                            nil,
		"- flatten: {column: doc, fields: {a: text}}\n- route: row.doc_a": {"id"},
	} {
		chain, err := transform.Compile(steps(t, text), orders, transform.Env{Pipeline: "p"})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := chain.Schema().Key; !slices.Equal(got, want) {
			t.Errorf("behind %s the key is %v, not %v", text, got, want)
		}
		if whole := strings.Contains(text, "dedupe") || strings.Contains(text, "aggregate"); chain.Whole() != whole {
			t.Errorf("%s: whole is %v", text, chain.Whole())
		}
	}
}

// What a snapshot found is told by changes as well: a filter that drops it deletes
// nothing, or a table that is begun would get a delete for each row that it has not.
func TestAFilterDropsWhatASnapshotFound(t *testing.T) {
	t.Parallel()
	chain, err := transform.Compile(steps(t, "- filter: 'row.v == \"x\"'"), wide, transform.Env{Pipeline: "p", Changes: true, ByKey: true})
	if err != nil {
		t.Fatal(err)
	}
	in := changes(t, wide, `read@5 {"p":1,"c":1,"v":"y"}`, `read@5 {"p":1,"c":2,"v":"x"}`)
	for i := range in.Changes {
		in.Changes[i].At = 0
	}
	parts, err := chain.Apply(in, func(_, _ int, cause error) { t.Error(cause) })
	if got := lines(parts); err != nil || !slices.Equal(got, []string{`read {"p":1,"c":2,"v":"x"}`}) {
		t.Errorf("%s, %v", got, err)
	}
}
