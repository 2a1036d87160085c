package scylla

import (
	"bytes"
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"
	"gopkg.in/inf.v0"
	"pgregory.net/rapid"
)

// everyType has each scalar type, and one of each that has others within.
var everyType = []string{
	"ascii", "bigint", "blob", "boolean", "counter", "date", "decimal", "double", "duration", "float", "inet", "int",
	"smallint", "text", "time", "timestamp", "timeuuid", "tinyint", "uuid", "varint",
	"list<int>", "set<text>", "map<text, bigint>", "map<int, list<blob>>", "map<set<int>, boolean>", "tuple<int, text>",
	"vector<float, 3>", "vector<text, 2>", "vector<vector<date, 2>, 2>", "home", `"Odd Name"`, "list<home>", "'com.example.Odd'",
}

var parser = typeParser{"ks", map[string]userType{
	"home":     {[]string{"street", "Zip"}, []string{"text", "frozen<map<int, text>>"}},
	"Odd Name": {[]string{"inner"}, []string{"frozen<home>"}},
}}

func typeOf(t testing.TB, text string) gocql.TypeInfo {
	t.Helper()
	typ, err := parser.parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func TestTypesAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for _, text := range everyType {
		if got := typeName(typeOf(t, text)); got != text {
			t.Errorf("%s is written as %s", text, got)
		}
	}
	for text, want := range map[string]string{
		"frozen<list<frozen<set<int>>>>": "list<set<int>>", "varchar": "text", "FROZEN<TUPLE<INT,TEXT>>": "tuple<int, text>",
		"map<text,frozen<\"Odd Name\">>": `map<text, "Odd Name">`, " list < int > ": "list<int>", "unheard_of": "'unheard_of'",
	} {
		if got := typeName(typeOf(t, text)); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "list<int", "list<>", "map<int>", "vector<int>", "vector<int, x>", "list<int> x", `"open`, "'open", "bag<int>", "frozen<int, int>"} {
		if got, err := parser.parse(text); err == nil {
			t.Errorf("%q is taken for %s", text, typeName(got))
		}
	}
	deep := typeParser{"ks", map[string]userType{"a": {[]string{"f"}, []string{"a"}}}}
	if _, err := deep.parse("a"); err == nil {
		t.Error("a type that holds itself was read")
	}
}

// jsonOf draws a value of a type as docs/types.md has it.
func jsonOf(typ gocql.TypeInfo) *rapid.Generator[string] {
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	number := func(low, high int64) *rapid.Generator[string] {
		return rapid.Map(rapid.Int64Range(low, high), func(n int64) string { return big.NewInt(n).String() })
	}
	switch typ := typ.(type) {
	case gocql.CollectionType:
		if typ.Type() == gocql.TypeMap {
			return rapid.Custom(func(t *rapid.T) string {
				members := []string{}
				for _, key := range rapid.SliceOfN(jsonOf(typ.Key), 0, 3).Draw(t, "keys") {
					if key[0] != '"' {
						key = quote(key)
					}
					members = append(members, key+":"+orNull(typ.Elem).Draw(t, "value"))
				}
				return "{" + strings.Join(members, ",") + "}"
			})
		}
		return rapid.Map(rapid.SliceOfN(orNull(typ.Elem), 0, 4), func(l []string) string { return "[" + strings.Join(l, ",") + "]" })
	case gocql.VectorType:
		return rapid.Map(rapid.SliceOfN(jsonOf(typ.SubType), typ.Dimensions, typ.Dimensions), func(l []string) string { return "[" + strings.Join(l, ",") + "]" })
	case gocql.TupleTypeInfo:
		return rapid.Custom(func(t *rapid.T) string {
			list := []string{}
			for _, e := range typ.Elems {
				list = append(list, orNull(e).Draw(t, "element"))
			}
			return "[" + strings.Join(list, ",") + "]"
		})
	case gocql.UDTTypeInfo:
		return rapid.Custom(func(t *rapid.T) string {
			list := []string{}
			for _, f := range typ.Elements {
				list = append(list, quote(f.Name)+":"+orNull(f.Type).Draw(t, f.Name))
			}
			return "{" + strings.Join(list, ",") + "}"
		})
	}
	return rapid.Custom(func(t *rapid.T) string {
		switch typ.Type() {
		case gocql.TypeAscii:
			return quote(rapid.StringMatching(`[ -~]*`).Draw(t, "ascii"))
		case gocql.TypeVarchar:
			return quote(strings.ToValidUTF8(rapid.String().Draw(t, "text"), "?"))
		case gocql.TypeBoolean:
			return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "boolean")
		case gocql.TypeTinyInt:
			return number(math.MinInt8, math.MaxInt8).Draw(t, "tinyint")
		case gocql.TypeSmallInt:
			return number(math.MinInt16, math.MaxInt16).Draw(t, "smallint")
		case gocql.TypeInt:
			return number(math.MinInt32, math.MaxInt32).Draw(t, "int")
		case gocql.TypeBigInt, gocql.TypeCounter:
			return number(math.MinInt64, math.MaxInt64).Draw(t, "bigint")
		case gocql.TypeVarint:
			n := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "bytes"))
			if rapid.Bool().Draw(t, "negative") {
				n.Neg(n)
			}
			return quote(n.String())
		}
		// The rest is drawn as bytes, and written by what is under test: so what is
		// drawn is in its one form.
		data := rapid.SliceOfN(rapid.Byte(), sizes[typ.Type()], max(sizes[typ.Type()], 0)).Draw(t, "data")
		switch typ.Type() {
		case gocql.TypeInet:
			data = rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
			if rapid.Bool().Draw(t, "v4") {
				data = data[:4]
			}
		case gocql.TypeBlob, gocql.TypeCustom:
			data = rapid.SliceOf(rapid.Byte()).Draw(t, "blob")
		case gocql.TypeDecimal:
			data = append(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "scale"), appendTwos(nil, big.NewInt(rapid.Int64().Draw(t, "unscaled")))...)
			if rapid.Bool().Draw(t, "small") {
				data[0], data[1], data[2] = 0, 0, 0
			}
		case gocql.TypeTimeUUID:
			data[6], data[8] = data[6]&0x0f|0x10, data[8]&0x3f|0x80
		case gocql.TypeTime:
			data, _ = encodeScalar(gocql.TypeTime, string(appendClock(nil, rapid.Int64Range(0, dayNanos-1).Draw(t, "ns"))), true)
		case gocql.TypeDuration:
			sign := int64(rapid.SampledFrom([]int{-1, 1}).Draw(t, "sign"))
			months, days := rapid.Int32Min(0).Draw(t, "months"), rapid.Int32Min(0).Draw(t, "days")
			data = appendVint(appendVint(appendVint(nil, sign*int64(months)), sign*int64(days)), sign*rapid.Int64Min(0).Draw(t, "ns"))
		}
		out, err := appendValue(nil, typ, data)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	})
}

func orNull(typ gocql.TypeInfo) *rapid.Generator[string] {
	return rapid.OneOf(jsonOf(typ), rapid.Just("null"))
}

func TestValuesGoThereAndBack(t *testing.T) {
	t.Parallel()
	for _, text := range everyType {
		typ := typeOf(t, text)
		rapid.Check(t, func(t *rapid.T) {
			want := jsonOf(typ).Draw(t, "json")
			data, err := marshalJSON(typ, json.RawMessage(want))
			if err != nil {
				t.Fatalf("%s %s: %v", text, want, err)
			}
			got, err := appendValue(nil, typ, data)
			if err != nil {
				t.Fatalf("%s %s as %x: %v", text, want, data, err)
			}
			if !json.Valid(got) || bytes.ContainsAny(got, "\n\r") {
				t.Fatalf("%s gives %q", text, got)
			}
			if !sameJSON(got, []byte(want)) {
				t.Fatalf("%s %s comes back as %s", text, want, got)
			}
		})
	}
}

// sameJSON compares texts whose strings may be escaped in other ways.
func sameJSON(a, b []byte) bool {
	plain := func(text []byte) string {
		var v any
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.UseNumber()
		if dec.Decode(&v) != nil {
			return "broken"
		}
		out, _ := json.Marshal(v)
		return string(out)
	}
	return string(a) == string(b) || plain(a) == plain(b)
}

// TestWireFormIsThatOfGocql compares with the codec of another author.
func TestWireFormIsThatOfGocql(t *testing.T) {
	t.Parallel()
	for text, tests := range map[string]map[string]any{
		"int":              {`-5`: -5},
		"varint":           {`"-32769"`: big.NewInt(-32769), `"255"`: big.NewInt(255), `0`: big.NewInt(0)},
		"decimal":          {`"19.90"`: inf.NewDec(1990, 2), `"-5E3"`: inf.NewDec(-5, -3)},
		"duration":         {`"P1M2DT3S"`: gocql.Duration{Months: 1, Days: 2, Nanoseconds: 3e9}, `"-P5Y"`: gocql.Duration{Months: -60}, `"1h"`: gocql.Duration{Nanoseconds: 3600e9}},
		"date":             {`"2026-11-22"`: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)},
		"time":             {`"10:00"`: 10 * time.Hour},
		"timestamp":        {`"2026-11-22T10:00:00.123+01:00"`: time.Date(2026, 11, 22, 9, 0, 0, 123e6, time.UTC), `5`: time.UnixMilli(5), `"2026-11-22"`: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)},
		"inet":             {`"::1"`: "::1", `"10.0.0.1"`: "10.0.0.1"},
		"float":            {`0.1`: float32(0.1), `"NaN"`: float32(math.NaN())},
		"double":           {`"-Infinity"`: math.Inf(-1)},
		"list<int>":        {`[1,2]`: []int{1, 2}, `[]`: []int{}},
		"map<int, text>":   {`{"1":"a"}`: map[int]string{1: "a"}},
		"tuple<int, text>": {`[1,"a"]`: []any{1, "a"}},
		"vector<text, 2>":  {`["a","bc"]`: []string{"a", "bc"}},
		"vector<float, 2>": {`[1,2]`: []float32{1, 2}},
		"home":             {`{"street":"x","Zip":{"1":"y"}}`: map[string]any{"street": "x", "Zip": map[int]string{1: "y"}}},
	} {
		typ := typeOf(t, text)
		for value, of := range tests {
			want, err := gocql.Marshal(typ, of)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := marshalJSON(typ, json.RawMessage(value)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s %s is %x, %v; gocql has %x", text, value, got, err, want)
			}
		}
	}
}

func TestWhatDoesNotFitIsSaid(t *testing.T) {
	t.Parallel()
	for text, tests := range map[string]map[string]string{
		"boolean":          {`1`: "true or false", `"true"`: "true or false"},
		"tinyint":          {`128`: "-128 to 127", `1.0`: "whole number", `"x"`: "whole number", `{}`: "whole number"},
		"bigint":           {`9223372036854775808`: "whole number", `true`: "whole number"},
		"varint":           {`1.5`: "whole number", `"1_000"`: "whole number"},
		"decimal":          {`"1.2.3"`: "19.90", `"1e99999999999"`: "19.90", `"0x10"`: "19.90", `"."`: "19.90", `true`: "number"},
		"float":            {`1e39`: "in its range", `"0x1p3"`: "number"},
		"double":           {`1e309`: "in its range"},
		"uuid":             {`"123"`: "such as", `5`: "such as", `"123e4567e89b42d3a456426614174000"`: "such as"},
		"timeuuid":         {`"123e4567-e89b-42d3-a456-426614174000"`: "version 1"},
		"inet":             {`"1.2.3"`: "IPv4", `"fe80::1%eth0"`: "IPv4"},
		"blob":             {`"x"`: "base64", `5`: "base64"},
		"ascii":            {`"é"`: "ASCII"},
		"timestamp":        {`"2026-11-22T10:00:00.123456Z"`: "millisecond", `"2026-02-30"`: "such as", `"noon"`: "such as", `1.5`: "such as", `"2026-11-22T10:00:00+25"`: "such as"},
		"date":             {`"2026-11-22T00:00:00Z"`: "such as", `"2026-13-01"`: "such as", `5`: "such as", `"+5881580-07-12"`: "such as"},
		"time":             {`"24:00:00"`: "such as", `"10"`: "such as", `"10:00:00.1234567890"`: "such as"},
		"duration":         {`"P"`: "such as", `"P1D1D"`: "such as", `"PT"`: "such as", `"P1M-1D"`: "such as", `"1h1h"`: "such as", `""`: "such as", `"P99999999999Y"`: "such as", `"PT9999999999999H"`: "such as", `"P1.5D"`: "such as"},
		"text":             {`{}`: "takes a string", `[1]`: "takes a string"},
		"list<int>":        {`{}`: "an array", `[1,"x"]`: "element 1"},
		"map<int, text>":   {`[]`: "an object", `{"x":"y"}`: `the key "x"`, `{"1":[]}`: `that of "1"`},
		"tuple<int, text>": {`[1]`: "2 elements", `[1,{}]`: "element 1"},
		"vector<float, 2>": {`[1]`: "2 elements", `[1,null]`: "no null", `[1,"x"]`: "element 1"},
		"home":             {`[]`: "an object", `{"zip":1}`: `no field "zip"`, `{"street":[]}`: "the field street"},
	} {
		typ := typeOf(t, text)
		for value, want := range tests {
			if data, err := marshalJSON(typ, json.RawMessage(value)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s is %x, %v; want an error with %q", text, value, data, err, want)
			}
		}
	}
}

// FuzzAppendValue holds what is read from the wire to its promise: JSON or an error.
func FuzzAppendValue(f *testing.F) {
	for i, text := range everyType {
		f.Add(i, []byte(text))
		f.Add(i, []byte{0, 0, 0, 1, 0, 0, 0, 1, 5})
		f.Add(i, []byte{0xff, 0xff, 0xff, 0xff, 1})
		f.Add(i, []byte{})
	}
	f.Fuzz(func(t *testing.T, n int, data []byte) {
		text := everyType[(n%len(everyType)+len(everyType))%len(everyType)]
		out, err := appendValue([]byte("before"), typeOf(t, text), data)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(out, []byte("before")) || !json.Valid(out[6:]) || bytes.ContainsAny(out, "\n\r") {
			t.Errorf("%s %x gives %q", text, data, out)
		}
	})
}

// FuzzMarshalJSON holds what is written to the wire to be readable.
func FuzzMarshalJSON(f *testing.F) {
	for i := range everyType {
		for _, value := range []string{`null`, `1`, `"P1Y"`, `"2026-11-22"`, `[1,"a"]`, `{"1":2}`, `{"street":"x"}`, `"1E5"`} {
			f.Add(i, value)
		}
	}
	f.Fuzz(func(t *testing.T, n int, value string) {
		text := everyType[(n%len(everyType)+len(everyType))%len(everyType)]
		typ := typeOf(t, text)
		data, err := marshalJSON(typ, json.RawMessage(value))
		if err != nil {
			return
		}
		if out, err := appendValue(nil, typ, data); err != nil || !json.Valid(out) {
			t.Errorf("%s %s is %x, which gives %q, %v", text, value, data, out, err)
		}
	})
}
