package source

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

var wideColumns = []cdc.Column{
	{Name: "p", Type: "int", Key: true}, {Name: "c", Type: "text", Key: true}, {Name: "at", Type: "timeuuid", Key: true},
	{Name: "v", Type: "text"}, {Name: "tags", Type: "set<text>"}, {Name: "shared", Type: "text"},
}

func wideTypes(native string) record.Type {
	switch native {
	case "int":
		return record.TypeInt32
	case "timeuuid":
		return record.TypeUUID
	case "set<text>":
		return record.TypeJSON
	}
	return record.TypeText
}

// What an engine that writes without a look at the row logs becomes rows that say as
// much as it does, and no more.
func TestChangesOfWideRowsBecomeRows(t *testing.T) {
	t.Parallel()
	const at = `"at":"5c4d0000-0000-11ee-8000-000000000000"`
	tests := map[string]struct {
		change string
		want   []string // op, row, and what else is known
		wrong  string
	}{
		"an insert that names some columns": {`{"op":"insert","key":{"p":1,"c":"x",` + at + `},"after":{"p":1,"c":"x",` + at + `,"v":null},"unchanged":["tags","shared"],"writetime":7,"ttl":60}`,
			[]string{`insert {"p":1,"c":"x",` + at + `,"v":null} at 7 for 60`}, ""},
		"an update whose key stands beside the row alone": {`{"op":"update","key":{"p":1,"c":"x",` + at + `},"after":{"v":"y"},"writetime":7}`,
			[]string{`update {"p":1,"c":"x",` + at + `,"v":"y"} at 7`}, ""},
		"a part of a collection": {`{"op":"update","key":{"p":1,"c":"x",` + at + `},"after":{"v":"y"},"delta":{"tags":{"add":["a"]}},"writetime":7}`,
			[]string{`update {"p":1,"c":"x",` + at + `,"v":"y"} at 7 parts tags`}, ""},
		"a change of what a partition shares": {`{"op":"update","key":{"p":1},"after":{"shared":"s"},"writetime":7}`,
			[]string{`update {"p":1,"shared":"s"} at 7`}, ""},
		"keys alone":                {`{"op":"update","key":{"p":1,"c":"x",` + at + `},"writetime":7}`, nil, "delta': 'keys'"},
		"a delete with a pre-image": {`{"op":"delete","key":{"p":1,"c":"x",` + at + `},"before":{"v":"was"},"writetime":7}`, []string{`delete {"p":1,"c":"x",` + at + `,"v":"was"} at 7`}, ""},
		"a late one":                {`{"op":"delete","key":{"p":1,"c":"x",` + at + `},"writetime":7,"late":true}`, []string{`delete {"p":1,"c":"x",` + at + `} at 7`}, ""},
		"a partition":               {`{"op":"delete_partition","key":{"p":1},"writetime":7}`, []string{`delete_partition {"p":1} at 7`}, ""},
		"a range of one column": {`{"op":"delete_range","key":{"p":1},"range":{"from":{"key":{"c":"a"},"inclusive":true},"to":{"key":{"c":"m"},"inclusive":false}},"writetime":7}`,
			[]string{`delete_range {"p":1} where c >= "a" c < "m" at 7`}, ""},
		"a range that is open": {`{"op":"delete_range","key":{"p":1},"range":{"to":{"key":{"c":"m"},"inclusive":true}},"writetime":7}`, []string{`delete_range {"p":1} where c <= "m" at 7`}, ""},
		"all that begins alike": {`{"op":"delete_range","key":{"p":1},"range":{"from":{"key":{"c":"a"},"inclusive":true},"to":{"key":{"c":"a"},"inclusive":true}},"writetime":7}`,
			[]string{`delete_range {"c":"a","p":1} at 7`}, ""},
		"by an order that is the engine's own": {`{"op":"delete_range","key":{"p":1},"range":{"from":{"key":{"c":"a",` + at + `},"inclusive":true},"to":{"key":{"c":"a"},"inclusive":true}},"writetime":7}`, nil, `order of column "at"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &Changes{Types: wideTypes, Sorts: func(native string) bool { return native != "inet" }}
			line := strings.Replace(tt.change, `{"op"`, `{"pos":"1","client":"c","schema":"k","table":"t","op"`, 1)
			if err := json.Unmarshal([]byte(line), &c.line); err != nil {
				t.Fatal(err)
			}
			name := driver.TableName{Schema: "k", Table: "t"}
			c.know(name, 1, wideColumns)
			table := c.tables[name]
			b := record.New(table.schema, 4)
			err := c.rows(t.Context(), table, b)
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Errorf("the error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i, m := range b.Changes {
				s := string(m.Op) + " " + sorted(b.AppendJSON(nil, i))
				if len(m.Where) > 0 {
					s += " where"
				}
				for _, w := range m.Where {
					s += " " + w.Column + " " + w.Op + " " + string(w.Value)
				}
				s += " at " + string(rune('0'+m.WriteTime))
				if m.TTL != 0 {
					s += " for 60"
				}
				if m.Parts != nil {
					s += " parts " + strings.Join(m.Parts, " ")
				}
				got = append(got, s)
			}
			want := slices.Clone(tt.want)
			for i, w := range want {
				from, to := strings.IndexByte(w, '{'), strings.LastIndexByte(w, '}')+1
				want[i] = w[:from] + sorted([]byte(w[from:to])) + w[to:]
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// sorted writes an object by its sorted members.
func sorted(raw []byte) string {
	var m map[string]any
	_ = json.Unmarshal(raw, &m)
	out, _ := json.Marshal(m)
	return string(out)
}
