package scylla

import (
	"math/big"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Digits compare as the numbers that they are.
func TestDigitsCompareAsNumbers(t *testing.T) {
	t.Parallel()
	digits := rapid.StringMatching(`-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,6})?`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := digits.Draw(t, "a"), digits.Draw(t, "b")
		if rapid.Bool().Draw(t, "alike") {
			b = strings.TrimRight(a, "0")
			if !strings.Contains(a, ".") || strings.HasSuffix(b, ".") || b == "" || b == "-" {
				b = a + ".0"
				if strings.Contains(a, ".") {
					b = a + "0"
				}
			}
		}
		x, ok1 := new(big.Rat).SetString(a)
		y, ok2 := new(big.Rat).SetString(b)
		if !ok1 || !ok2 {
			t.Fatalf("%q, %q", a, b)
		}
		sign := func(n int) int { return min(1, max(-1, n)) }
		if got, want := sign(compareDigits([]byte(a), []byte(b))), x.Cmp(y); got != want {
			t.Fatalf("%s and %s compare as %d, not %d", a, b, got, want)
		}
	})
}

// A pattern matches what the regular expression does that says the same.
func TestLikeMatchesAsItsPatternSays(t *testing.T) {
	t.Parallel()
	letters := rapid.SampledFrom([]string{"a", "b", "é", "%", "_", "\\"})
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(letters, 0, 6).Draw(t, "pattern"), "")
		text := strings.Join(rapid.SliceOfN(letters, 0, 6).Draw(t, "text"), "")
		var re strings.Builder
		re.WriteString(`(?s)\A`)
		runes := []rune(pattern)
		for i := 0; i < len(runes); i++ {
			switch c := runes[i]; {
			case c == '%':
				re.WriteString(".*")
			case c == '_':
				re.WriteString(".")
			case c == '\\' && i+1 < len(runes):
				i++
				re.WriteString(regexp.QuoteMeta(string(runes[i])))
			default:
				re.WriteString(regexp.QuoteMeta(string(c)))
			}
		}
		re.WriteString(`\z`)
		if got, want := like([]byte(text), []byte(pattern)), regexp.MustCompile(re.String()).MatchString(text); got != want {
			t.Fatalf("%q like %q is %v, not %v", text, pattern, got, want)
		}
	})
}

// Small numbers take the same bytes as large ones do.
func TestNumbersInTwosComplementAreTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64().Draw(t, "n") >> rapid.IntRange(0, 63).Draw(t, "shift")
		if got, want := appendSmallTwos(nil, n), appendTwos(nil, big.NewInt(n)); string(got) != string(want) {
			t.Fatalf("%d is % x, not % x", n, got, want)
		}
	})
}

// The parts of the ring are the whole, and each token is in one.
func TestThePartsOfTheRingAreTheWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, mostParts).Draw(t, "parts")
		bounds := tokens(n)
		for i := 1; i < len(bounds); i++ {
			if bounds[i] <= bounds[i-1] {
				t.Fatalf("bound %d is %d, behind %d", i, bounds[i], bounds[i-1])
			}
		}
		if len(bounds) != n-1 {
			t.Fatalf("%d bounds of %d parts", len(bounds), n)
		}
	})
}

// The types that people read are those that records have.
func TestTypesOfColumns(t *testing.T) {
	t.Parallel()
	for native, want := range map[string]string{
		"int": "int32", "counter": "int64", "tinyint": "int16", "varint": "decimal", "decimal": "decimal", "ascii": "text", "inet": "text", "timeuuid": "uuid",
		"timestamp": "timestamptz", "time": "time", "date": "date", "blob": "bytes", "frozen<list<int>>": "json", "map<text, frozen<set<int>>>": "json",
		"tuple<int, text>": "json", "vector<float, 3>": "json", "address": "json", "frozen<address>": "json", `"Odd Type"`: "json", "duration": "text",
		"'org.apache.cassandra.db.marshal.DynamicCompositeType'": "text",
	} {
		if got := (*Backend)(nil).ColumnType(native).String(); got != want {
			t.Errorf("%s is %s, not %s", native, got, want)
		}
	}
	for native, want := range map[string]bool{"int": true, "text": true, "timestamp": true, "timeuuid": false, "uuid": false, "inet": false, "frozen<list<int>>": false, "address": false} {
		if got := (*Backend)(nil).ColumnSorts(native); got != want {
			t.Errorf("%s sorts: %v", native, got)
		}
	}
}
