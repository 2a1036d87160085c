package transform_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// wide are rows that are told apart by a partition and a place in it.
var wide = &record.Schema{Columns: []record.Column{
	{Name: "p", Type: record.TypeInt64}, {Name: "c", Type: record.TypeInt64},
	{Name: "v", Type: record.TypeText, Nullable: true}, {Name: "tags", Type: record.TypeJSON, Nullable: true},
}, Key: []string{"p", "c"}}

// Of changes that delete many rows: they pass, or are rejected where they would delete
// others than they name.
func TestDeletesOfManyRowsAreNeverOfOthers(t *testing.T) {
	t.Parallel()
	where := []record.Condition{{Column: "c", Op: ">", Value: json.RawMessage("5")}}
	tests := map[string]struct {
		steps  string
		want   string // columns of the condition of the range; "rejected" if it is
		rows   int    // that come out, the partition's delete among them
		reject string
	}{
		"a filter lets them through":                 {"- filter: 'row.v == \"x\"'", "c", 2, ""},
		"a rename renames what they name":            {"- rename: {c: place, p: part}", "place", 2, ""},
		"a column that they do not name may go":      {"- drop: [v]", "c", 2, ""},
		"a column of a bound may not go":             {"- drop: [c]", "", 1, `column "c"`},
		"nor one that both name":                     {"- select: [c, v]", "", 0, `column "p"`},
		"nor become another one":                     {"- set: {c: row.c + 1}", "", 1, `column "c"`},
		"nor one that both name, become another":     {"- set: {p: row.p + 1}", "", 0, `column "p"`},
		"what is equal stays equal in another type":  {"- cast: {p: text}", "c", 2, ""},
		"what is ordered does not stay so":           {"- cast: {c: text}", "", 1, `column "c"`},
		"what is equal stays equal as a hash":        {"- mask: {p: hash}", "c", 2, ""},
		"a mask that makes all equal takes them all": {"- mask: {p: redact}", "", 0, `column "p"`},
		"a dedupe keeps them":                        {"- dedupe: {key: [p]}", "c", 2, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chain, err := transform.Compile(steps(t, tt.steps), wide, transform.Env{Pipeline: "p", Changes: true, ByKey: true})
			if err != nil {
				t.Fatal(err)
			}
			in := record.New(wide, 2)
			parser := record.NewParser(wide)
			parser.Absent = true
			for _, c := range []record.Change{{Op: cdc.DeletePartition, Pos: "1"}, {Op: cdc.DeleteRange, Pos: "2", Where: where}} {
				if _, err := parser.Parse(in, []byte(`{"p":1}`)); err != nil {
					t.Fatal(err)
				}
				in.Changes = append(in.Changes, c)
			}
			var rejected []string
			parts, err := chain.Apply(in, func(step, row int, cause error) { rejected = append(rejected, cause.Error()) })
			if err != nil {
				t.Fatal(err)
			}
			rows, named := 0, ""
			for _, p := range parts {
				rows += p.Batch.Rows()
				for _, c := range p.Batch.Changes {
					for _, w := range c.Where {
						named += w.Column
					}
				}
			}
			if rows != tt.rows || named != tt.want || len(rejected) != 2-tt.rows || tt.reject != "" && !strings.Contains(rejected[0], tt.reject) {
				t.Errorf("%d rows, bounds on %q, rejected %q", rows, named, rejected)
			}
			if in.Changes[1].Where[0].Column != "c" {
				t.Error("the batch that came in was changed")
			}
		})
	}
}

// A value of which only a part is known is not taken for one that did not change.
func TestPartsOfAValueAreNoValue(t *testing.T) {
	t.Parallel()
	for text, rejected := range map[string]bool{
		"- filter: 'row.v == \"x\"'":                                                    true, // it comes out
		"- drop: [tags]":                                                                false,
		"- select: [p, c]":                                                              false,
		"- rename: {tags: labels}":                                                      true,
		"- rename: {tags: labels}\n- drop: [labels]":                                    false,
		"- set: {n: row.tags.size()}\n- drop: [tags]":                                   true,
		"- set: {other: row.tags}\n- drop: [tags]":                                      true,
		"- set: {tags: row.v}":                                                          false,
		"- filter: 'row.tags != null'\n- drop: [tags]":                                  true,
		"- flatten: {column: tags, fields: {a: text}}\n- drop: [tags]":                  true,
		"- drop: [tags]\n- set: {tags: row.v}\n- route: row.tags":                       false,
		"- route: string(row.tags[0])\n- drop: [tags]":                                  true,
		"- filter: 'row[\"tags\"] != null'\n- rename: {tags: labels}\n- drop: [labels]": true,
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			chain, err := transform.Compile(steps(t, text), wide, transform.Env{Pipeline: "p", Changes: true, ByKey: true})
			if err != nil {
				t.Fatal(err)
			}
			in := record.New(wide, 1)
			parser := record.NewParser(wide)
			parser.Absent = true
			if _, err := parser.Parse(in, []byte(`{"p":1,"c":2,"v":"x"}`)); err != nil {
				t.Fatal(err)
			}
			in.Changes = []record.Change{{Op: cdc.Update, Pos: "1", Parts: []string{"tags"}}}
			var got []string
			parts, err := chain.Apply(in, func(step, row int, cause error) {
				got = append(got, fmt.Sprint(transform.StageName(step), " ", row, ": ", cause))
			})
			switch {
			case err != nil:
				t.Error(err)
			case rejected && (len(parts) != 0 || len(got) != 1 || !strings.HasPrefix(got[0], "source 0: ") || !strings.Contains(got[0], `"tags"`)):
				t.Errorf("it is not rejected: %d parts, %q", len(parts), got)
			case !rejected && (len(parts) != 1 || got != nil):
				t.Errorf("it is rejected: %q", got)
			case !rejected && slices.ContainsFunc(parts, func(p transform.Part) bool { return p.Batch.Rows() != 1 }):
				t.Errorf("%v", lines(parts))
			}
		})
	}
}
