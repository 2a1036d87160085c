package source

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// The deletes that a range becomes delete what is between its bounds, each row once,
// and nothing else.
func TestARangeIsTheRowsBetweenItsBounds(t *testing.T) {
	t.Parallel()
	columns := []string{"a", "b", "c"}
	const most = 4
	rapid.Check(t, func(t *rapid.T) {
		end := func(name string) (*bound, []int) {
			n := rapid.IntRange(0, len(columns)).Draw(t, name+" columns")
			if n == 0 {
				return nil, nil
			}
			b := &bound{Key: map[string]json.RawMessage{}, Inclusive: rapid.Bool().Draw(t, name+" inclusive")}
			values := make([]int, n)
			for i := range values {
				values[i] = rapid.IntRange(0, most-1).Draw(t, fmt.Sprint(name, columns[i]))
				b.Key[columns[i]] = json.RawMessage(strconv.Itoa(values[i]))
			}
			return b, values
		}
		from, lower := end("from")
		to, upper := end("to")
		compare := func(row, prefix []int) int {
			for i, v := range prefix {
				if row[i] != v {
					return row[i] - v
				}
			}
			return 0
		}
		if n := min(len(lower), len(upper)); compare(lower[:n], upper[:n]) > 0 {
			return // no engine logs bounds that are the wrong way round
		}
		spans := between(columns, from, to)
		for n := range most * most * most {
			row := []int{n / most / most, n / most % most, n % most}
			want := from == nil || compare(row, lower) > 0 || compare(row, lower) == 0 && from.Inclusive
			want = want && (to == nil || compare(row, upper) < 0 || compare(row, upper) == 0 && to.Inclusive)
			got := 0
			for _, s := range spans {
				all := true
				for _, c := range append(s.equal[:len(s.equal):len(s.equal)], s.where...) {
					v, _ := strconv.Atoi(string(c.Value))
					is := row[c.Column[0]-'a']
					all = all && map[string]bool{"=": is == v, "<": is < v, "<=": is <= v, ">": is > v, ">=": is >= v}[c.Op]
				}
				if all {
					got++
				}
			}
			if want && got != 1 || !want && got != 0 {
				t.Fatalf("row %v is deleted by %d of %+v; want %v", row, got, spans, want)
			}
		}
	})
}
