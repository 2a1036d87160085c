package transform

import (
	"fmt"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

var decimal = rapid.StringMatching(`-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,12})?`)

// Decimals are added up, averaged and compared as numbers of any size are.
func TestDecimalsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(decimal, 1, 20).Draw(t, "decimals")
		var sum total
		want := new(big.Rat)
		for _, s := range list {
			sum.add([]byte(s))
			n, _ := new(big.Rat).SetString(s)
			want.Add(want, n)
		}
		got, ok := new(big.Rat).SetString(string(sum.append(nil)))
		if !ok || got.Cmp(want) != 0 {
			t.Fatalf("the sum of %v is %s, not %s", list, sum.append(nil), want)
		}
		mean, ok := new(big.Rat).SetString(string(sum.appendAverage(nil, int64(len(list)))))
		want.Quo(want, big.NewRat(int64(len(list)), 1))
		unit := new(big.Rat).SetFrac(big.NewInt(1), tenTo(sum.scale+moreDigits))
		if off := new(big.Rat).Sub(mean, want); !ok || off.Abs(off).Cmp(unit.Mul(unit, big.NewRat(1, 2))) > 0 {
			t.Fatalf("the mean of %v is %s, not %s", list, mean, want)
		}
		a, b := decimal.Draw(t, "a"), decimal.Draw(t, "b")
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		if got, want := sign(compareDecimals([]byte(a), []byte(b))), x.Cmp(y); got != want {
			t.Fatalf("%s against %s is %d, not %d", a, b, got, want)
		}
		if (string(normal([]byte(a))) == string(normal([]byte(b)))) != (x.Cmp(y) == 0) && !(x.Sign() == 0 && y.Sign() == 0) {
			t.Fatalf("%s and %s are one key or two", a, b)
		}
	})
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestSumsOfWhatIsNoNumber(t *testing.T) {
	t.Parallel()
	for want, list := range map[string][]string{
		"NaN": {"1", "NaN"}, "Infinity": {"Infinity", "-5", "Infinity"}, "-Infinity": {"-Infinity"}, "0.00": {"-1.00", "1"}, "-0.5": {"-0.5"},
	} {
		var s total
		for _, d := range list {
			s.add([]byte(d))
		}
		if got := string(s.append(nil)); got != want {
			t.Errorf("the sum of %v is %s, not %s", list, got, want)
		}
	}
	var s total
	for _, d := range []string{"Infinity", "-Infinity"} {
		s.add([]byte(d))
	}
	if got := string(s.append(nil)); got != "NaN" {
		t.Errorf("the sum of both infinities is %s", got)
	}
	order := []string{"-Infinity", "-1", "0", "0.5", "1", "Infinity", "NaN"}
	for i := range order[1:] {
		if compareDecimals([]byte(order[i]), []byte(order[i+1])) >= 0 {
			t.Errorf("%s is not below %s", order[i], order[i+1])
		}
	}
}

func numbers(n int) *record.Batch {
	s := &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt64}}}
	b := record.New(s, n)
	for i := range n {
		b.Columns[0].AppendInt(int64(i))
	}
	b.SetRows(n)
	return b
}

// ordered makes members of names and values, one after the other.
func ordered(pairs ...string) (o spec.Ordered[string]) {
	for i := 0; i < len(pairs); i += 2 {
		o = append(o, spec.Member[string]{Name: pairs[i], Value: pairs[i+1]})
	}
	return o
}

// What looks at all rows states how much it holds, and fails above that.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	b := numbers(11)
	for name, step := range map[string]spec.Transform{
		"keys":   {Dedupe: &spec.Dedupe{Key: []string{"n"}}},
		"groups": {Aggregate: &spec.Aggregate{GroupBy: []string{"n"}, Columns: ordered("c", "count()")}},
	} {
		for most, fails := range map[int]bool{10: true, 11: false} {
			chain, err := Compile([]spec.Transform{step}, b.Schema, Env{})
			if err != nil {
				t.Fatal(err)
			}
			switch s := chain.steps[0].(type) {
			case *dedupe:
				s.most = most
			case *aggregate:
				s.most = most
			}
			if _, err := chain.Apply(b, nil); (err != nil) != fails || fails && athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Errorf("11 %s where %d are held: %v", name, most, err)
			}
		}
	}
	chain, err := Compile([]spec.Transform{{Aggregate: &spec.Aggregate{Columns: ordered("s", "sum(n)")}}}, b.Schema, Env{})
	if err != nil {
		t.Fatal(err)
	}
	b.Columns[0].Ints[0] = 1<<63 - 1
	if _, err := chain.Apply(b, nil); err == nil {
		t.Error("a sum has overflown in silence")
	}
}

// An expression that would take for ever, or all memory, is given up.
func TestExpressionsAreBounded(t *testing.T) {
	t.Parallel()
	loop, grown := "true", `"a"`
	for i := range 9 {
		loop = fmt.Sprintf("[1,2,3,4,5,6,7,8,9,10].all(x%d, %s)", i, loop)
	}
	for range 12 {
		grown += `.replace("a", "aaaaaaaaaa")`
	}
	for _, text := range []string{loop, grown + `.size() > 1`} {
		b := numbers(1)
		chain, err := Compile([]spec.Transform{{Filter: text}}, b.Schema, Env{})
		if err != nil {
			t.Fatal(err)
		}
		rejected := 0
		if _, err := chain.Apply(b, func(int, int, error) { rejected++ }); err != nil || rejected != 1 {
			t.Errorf("%s: %d rejected, %v", text, rejected, err)
		}
	}
}

// Times are cut to where their minute, hour, day, week or month begins.
func TestTimesAreCut(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"minute 2026-11-22T10:11:12.5Z": "2026-11-22T10:11:00.000000Z",
		"hour 2026-11-22T10:11:12.5Z":   "2026-11-22T10:00:00.000000Z",
		"day 1969-12-31T23:59:59Z":      "1969-12-31T00:00:00.000000Z",
		"week 2026-11-22T10:11:12Z":     "2026-11-16T00:00:00.000000Z",
		"week 1970-01-01T00:00:00Z":     "1969-12-29T00:00:00.000000Z",
		"month 2026-11-22T10:11:12Z":    "2026-11-01T00:00:00.000000Z",
		"month 1969-12-31T10:11:12Z":    "1969-12-01T00:00:00.000000Z",
		"month infinity":                "infinity",
	} {
		var unit, at string
		fmt.Sscan(text, &unit, &at)
		v := record.Vector{Kind: record.TimestampTZ}
		if err := v.AppendParsed(record.TypeTimestampTZ, []byte(at)); err != nil {
			t.Fatal(err)
		}
		v.Ints[0] = cutTime(v.Ints[0], v.Kind, unit)
		if got := string(v.AppendText(nil, record.TypeTimestampTZ, 0)); got != want {
			t.Errorf("%s is %s, not %s", text, got, want)
		}
	}
	v := record.Vector{Kind: record.Date}
	if err := v.AppendParsed(record.TypeDate, []byte("2026-11-22")); err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]string{"hour": "2026-11-22", "day": "2026-11-22", "week": "2026-11-16", "month": "2026-11-01"} {
		cut := record.Vector{Kind: record.Date, Ints: []int64{cutTime(v.Ints[0], record.Date, unit)}}
		if got := string(cut.AppendText(nil, record.TypeDate, 0)); got != want {
			t.Errorf("the %s of a date is %s, not %s", unit, got, want)
		}
	}
}

// Where rows are cut into batches makes no difference to what comes of them.
func TestBatchesMayBeCutAnywhere(t *testing.T) {
	t.Parallel()
	in := &record.Schema{Columns: []record.Column{
		{Name: "k", Type: record.TypeInt64, Nullable: true}, {Name: "s", Type: record.TypeText, Nullable: true}, {Name: "d", Type: record.DecimalOf(9, 3), Nullable: true},
	}}
	lists := map[string][]spec.Transform{
		"steps that see one row": {
			{Filter: "row.k % 3 != 0"}, {Set: ordered("n", "10 / row.k", "u", "row.s.upperAscii()")},
			{Cast: map[string]record.Type{"k": record.TypeText}}, {Mask: map[string]string{"s": "hash"}}, {Rename: map[string]string{"n": "m"}}, {Select: []string{"m", "k", "s"}},
		},
		"a route":      {{Route: `"r" + string(row.k % 2)`}, {Drop: []string{"d"}}},
		"a dedupe":     {{Dedupe: &spec.Dedupe{Key: []string{"s"}}}},
		"an aggregate": {{Aggregate: &spec.Aggregate{GroupBy: []string{"s"}, Columns: ordered("n", "count()", "t", "sum(d)", "a", "avg(d)", "lo", "min(k)", "hi", "max(d)")}}},
	}
	rapid.Check(t, func(t *rapid.T) {
		b := record.New(in, 0)
		for range rapid.IntRange(0, 30).Draw(t, "rows") {
			if rapid.Bool().Draw(t, "null") {
				b.Columns[0].AppendNull()
			} else {
				b.Columns[0].AppendInt(rapid.Int64Range(-5, 5).Draw(t, "k"))
			}
			b.Columns[1].AppendString(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "s"))
			if err := b.Columns[2].AppendParsed(record.DecimalOf(9, 3), []byte(rapid.StringMatching(`-?[0-9]{1,4}\.[0-9]{3}`).Draw(t, "d"))); err != nil {
				t.Fatal(err)
			}
			b.Done()
		}
		cut := rapid.IntRange(0, b.Rows()).Draw(t, "cut")
		for name, list := range lists {
			whole, rejected := through(t, list, b)
			parts, again := through(t, list, b.Slice(0, cut), b.Slice(cut, b.Rows()))
			if fmt.Sprint(whole) != fmt.Sprint(parts) || rejected != again {
				t.Fatalf("%s, cut at %d of %d:\n%v, %d rejected\n%v, %d rejected", name, cut, b.Rows(), whole, rejected, parts, again)
			}
		}
	})
}

// through takes batches through steps, and returns the rows by where they go.
func through(t *rapid.T, steps []spec.Transform, batches ...*record.Batch) (out map[string][]string, rejected int) {
	chain, err := Compile(steps, batches[0].Schema, Env{Pipeline: "p"})
	if err != nil {
		t.Fatal(err)
	}
	out = map[string][]string{}
	reject := func(int, int, error) { rejected++ }
	take := func(parts []Part, err error) {
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			for i := range p.Batch.Rows() {
				out[p.Route] = append(out[p.Route], string(p.Batch.AppendJSON(nil, i)))
			}
		}
	}
	for _, b := range batches {
		take(chain.Apply(b, reject))
	}
	take(chain.Flush(reject))
	return out, rejected
}
