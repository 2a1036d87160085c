package transform_test

import (
	"cmp"
	"maps"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A timed value is one that was written at some time; the later one stays.
type timed struct {
	at    int64
	value string
}

// timedRows are a table that keeps rows by key. They have the values of their columns,
// and under "" and "deleted" when they were written and deleted as a whole.
type timedRows map[int64]map[string]timed

func (rows timedRows) apply(b *record.Batch) {
	for i, c := range b.Changes {
		n, _ := strconv.ParseInt(string(c.Pos), 10, 64)
		at := cmp.Or(c.WriteTime, n)
		id := b.Columns[0].Ints[i]
		if rows[id] == nil {
			rows[id] = map[string]timed{}
		}
		set := func(column, value string) {
			if at > rows[id][column].at {
				rows[id][column] = timed{at, value}
			}
		}
		if c.Op == cdc.Delete {
			set("deleted", "")
			continue
		}
		set("", "")
		for n := 1; n < len(b.Columns); n++ {
			if v := &b.Columns[n]; !v.Absent(i) {
				set(b.Schema.Columns[n].Name, string(v.Bytes(i)))
			}
		}
	}
}

// there are the rows that can be seen: id, status and big.
func (rows timedRows) there() map[int64][2]string {
	seen := map[int64][2]string{}
	for id, row := range rows {
		value := func(column string) string {
			if row[column].at < row["deleted"].at {
				return ""
			}
			return row[column].value
		}
		if row[""].at > row["deleted"].at {
			seen[id] = [2]string{value("status"), value("big")}
		}
	}
	return seen
}

// A table that gets changes through a filter ends with the rows of the whole table that
// the filter keeps, and through a dedupe with just the same rows: in whatever order
// changes come that have times of their own, and whatever they leave out.
func TestATableBehindAChainHasTheRowsThatItWouldHave(t *testing.T) {
	t.Parallel()
	schema := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt64}, {Name: "status", Type: record.TypeText, Nullable: true}, {Name: "big", Type: record.TypeText, Nullable: true},
	}, Key: []string{"id"}}
	const filter, dedupe = "- filter: 'row.status == \"paid\"'", "- dedupe: {key: [id]}"
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.SampledFrom([]string{filter, dedupe, dedupe + "\n" + filter, filter + "\n" + dedupe}).Draw(rt, "steps")
		chain, err := transform.Compile(steps(t, text), schema, transform.Env{Pipeline: "p", Changes: true, ByKey: true})
		if err != nil {
			rt.Fatal(err)
		}
		n := rapid.IntRange(1, 20).Draw(rt, "changes")
		times := make([]int64, n) // none: as they come
		if rapid.Bool().Draw(rt, "timed") {
			for i := range times {
				times[i] = int64(i + 1)
			}
			times = rapid.Permutation(times).Draw(rt, "times")
		}
		through, straight := timedRows{}, timedRows{}
		for i := 0; i < n; {
			in := record.New(schema, n)
			for range min(n-i, rapid.IntRange(1, n).Draw(rt, "batch")) {
				c := record.Change{Op: rapid.SampledFrom([]cdc.Op{cdc.Update, cdc.Update, cdc.Delete}).Draw(rt, "op"), Pos: cdc.Position(strconv.Itoa(i + 1)), At: 1, WriteTime: times[i]}
				if c.Op == cdc.Update && c.WriteTime != 0 {
					c.Op = rapid.SampledFrom([]cdc.Op{cdc.Update, cdc.Insert, cdc.Read}).Draw(rt, "blind op")
				}
				in.Columns[0].AppendInt(rapid.Int64Range(1, 2).Draw(rt, "id"))
				for column, values := range [][]string{{"paid", "new"}, {"x", "y"}} {
					v := &in.Columns[column+1]
					if c.Op == cdc.Delete || text == dedupe && rapid.Bool().Draw(rt, "absent") {
						v.AppendAbsent()
					} else {
						v.AppendString(rapid.SampledFrom(values).Draw(rt, "value"))
					}
				}
				in.Changes = append(in.Changes, c)
				in.Done()
				i++
			}
			straight.apply(in)
			parts, err := chain.Apply(in, func(_, row int, cause error) { rt.Errorf("row %d is rejected: %v", row, cause) })
			if err != nil {
				rt.Fatal(err)
			}
			for _, p := range parts {
				through.apply(p.Batch)
			}
		}
		want := straight.there()
		maps.DeleteFunc(want, func(_ int64, row [2]string) bool { return text != dedupe && row[0] != "paid" })
		if got := through.there(); !maps.Equal(got, want) {
			rt.Errorf("behind\n%s\nthe table has %v, and should have %v", text, got, want)
		}
	})
}
