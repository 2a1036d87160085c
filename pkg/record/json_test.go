package record_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/record"
)

// everything has a column of each type.
var everything = &record.Schema{Columns: []record.Column{
	{Name: "bool", Type: record.TypeBool},
	{Name: "int16", Type: record.TypeInt16},
	{Name: "int32", Type: record.TypeInt32},
	{Name: "int64", Type: record.TypeInt64},
	{Name: "float32", Type: record.TypeFloat32},
	{Name: "float64", Type: record.TypeFloat64},
	{Name: "decimal", Type: record.TypeDecimal},
	{Name: "money", Type: record.DecimalOf(12, 2)},
	{Name: "text", Type: record.TypeText},
	{Name: "bytes", Type: record.TypeBytes},
	{Name: "date", Type: record.TypeDate},
	{Name: "time", Type: record.TypeTime},
	{Name: "timestamp", Type: record.TypeTimestamp},
	{Name: "timestamptz", Type: record.TypeTimestampTZ},
	{Name: "uuid", Type: record.TypeUUID},
	{Name: "json", Type: record.TypeJSON},
}}

// drawValue appends any value of a type.
func drawValue(t *rapid.T, v *record.Vector, typ record.Type) {
	switch rapid.IntRange(0, 9).Draw(t, "shape") {
	case 0:
		v.AppendNull()
		return
	case 1:
		v.AppendAbsent()
		return
	}
	switch typ.Kind {
	case record.Bool:
		v.AppendBool(rapid.Bool().Draw(t, "bool"))
	case record.Int:
		limit := int64(1)<<(typ.Bits-1) - 1
		v.AppendInt(rapid.Int64Range(-limit-1, limit).Draw(t, "int"))
	case record.Float:
		if typ.Bits == 32 {
			v.AppendFloat(float64(rapid.Float32().Draw(t, "float32")))
		} else {
			v.AppendFloat(rapid.Float64().Draw(t, "float64"))
		}
	case record.Decimal:
		pattern := `-?[1-9][0-9]{0,30}(\.[0-9]{1,20})?|0|0\.[0-9]{0,9}[1-9]|NaN|-?Infinity`
		if typ.Precision > 0 {
			pattern = fmt.Sprintf(`-?[1-9][0-9]{0,%d}`, typ.Precision-typ.Scale-1)
			if typ.Scale > 0 {
				pattern += fmt.Sprintf(`\.[0-9]{%d}`, typ.Scale)
			}
			pattern += "|NaN"
		}
		v.AppendString(rapid.StringMatching(`^(`+pattern+`)$`).Draw(t, "decimal"))
	case record.Text:
		v.AppendString(strings.ToValidUTF8(rapid.String().Draw(t, "text"), ""))
	case record.Bytes:
		v.AppendBytes(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
	case record.Date:
		v.AppendInt(rapid.OneOf(rapid.Int64Range(-2440588, 2145031948), rapid.SampledFrom([]int64{record.Infinity, record.MinusInfinity})).Draw(t, "date"))
	case record.Time:
		v.AppendInt(rapid.Int64Range(0, 24*3600*1e6).Draw(t, "time"))
	case record.Timestamp, record.TimestampTZ:
		v.AppendInt(rapid.OneOf(rapid.Int64Range(-210866803200000000, 9223371331200000000-1), rapid.SampledFrom([]int64{record.Infinity, record.MinusInfinity})).Draw(t, "timestamp"))
	case record.UUID:
		v.AppendBytes(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
	case record.JSON:
		v.AppendString(rapid.SampledFrom([]string{`{"b": 1.50, "a":[null,{}]}`, `[]`, `"x\ny"`, `-0.0`, `true`, `12345678901234567890`}).Draw(t, "json"))
	}
}

func drawBatch(t *rapid.T, rows int) *record.Batch {
	b := record.New(everything, rows)
	for range rows {
		for i, c := range everything.Columns {
			drawValue(t, &b.Columns[i], c.Type)
		}
		b.Done()
	}
	return b
}

func same(t interface{ Fatalf(string, ...any) }, a, b *record.Batch) {
	if a.Rows() != b.Rows() {
		t.Fatalf("%d rows, not %d", b.Rows(), a.Rows())
	}
	for c := range a.Columns {
		for i := range a.Rows() {
			x, y := &a.Columns[c], &b.Columns[c]
			if x.Null(i) != y.Null(i) || x.Absent(i) != y.Absent(i) {
				t.Fatalf("column %s, row %d: another null", a.Schema.Columns[c].Name, i)
			}
			typ := a.Schema.Columns[c].Type
			if g, w := y.AppendText(nil, typ, i), x.AppendText(nil, typ, i); !bytes.Equal(g, w) {
				t.Fatalf("column %s, row %d: %s, not %s", a.Schema.Columns[c].Name, i, g, w)
			}
		}
	}
}

func TestARowAsJSONIsTheSameRowAgain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := drawBatch(t, rapid.IntRange(0, 5).Draw(t, "rows"))
		back := record.New(everything, 0)
		p := record.NewParser(everything)
		p.Absent = true
		for i := range b.Rows() {
			line := b.AppendJSON(nil, i)
			if !json.Valid(line) || bytes.IndexByte(line, '\n') >= 0 {
				t.Fatalf("not JSON on one line: %s", line)
			}
			if unknown, err := p.Parse(back, line); err != nil || unknown != nil {
				t.Fatalf("%s: %v, unknown %v", line, err, unknown)
			}
		}
		same(t, b, back)
	})
}

func TestValuesHaveTheFormsOfTheDocument(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		typ      record.Type
		in, want string // want is in, if it is empty; "!" is refused
	}{
		"a large integer keeps its digits":          {record.TypeInt64, `9223372036854775807`, ``},
		"an integer beyond its bits":                {record.TypeInt16, `32768`, `!`},
		"an integer in quotes":                      {record.TypeInt32, `"-12"`, `-12`},
		"an integer with a fraction of zeros":       {record.TypeInt32, `1.20e1`, `12`},
		"an integer with a fraction":                {record.TypeInt32, `1.5`, `!`},
		"beyond 64 bits":                            {record.TypeInt64, `9223372036854775808`, `!`},
		"the least of 64 bits":                      {record.TypeInt64, `-9223372036854775808`, ``},
		"a float in its fewest digits":              {record.TypeFloat64, `0.10`, `0.1`},
		"a float with an exponent":                  {record.TypeFloat64, `1e15`, `1e+15`},
		"a float of 32 bits":                        {record.TypeFloat32, `0.1`, ``},
		"not a number":                              {record.TypeFloat64, `"NaN"`, ``},
		"infinity":                                  {record.TypeFloat32, `"-Infinity"`, ``},
		"a float beyond its range":                  {record.TypeFloat32, `1e39`, `!`},
		"a float in hexadecimal":                    {record.TypeFloat64, `"0x10"`, `!`},
		"a float by another name":                   {record.TypeFloat64, `"inf"`, `!`},
		"a decimal digit for digit":                 {record.TypeDecimal, `"19.90"`, ``},
		"a decimal as a number":                     {record.TypeDecimal, `19.90`, `"19.90"`},
		"a decimal with an exponent":                {record.TypeDecimal, `"1.5e-3"`, `"0.0015"`},
		"a decimal with a large exponent":           {record.TypeDecimal, `1e200000`, `!`},
		"a decimal gets the digits of its scale":    {record.DecimalOf(5, 2), `1.5`, `"1.50"`},
		"a decimal loses zeros":                     {record.DecimalOf(5, 2), `"1.500"`, `"1.50"`},
		"a decimal that would lose a digit":         {record.DecimalOf(5, 2), `"1.505"`, `!`},
		"a decimal of too many digits":              {record.DecimalOf(5, 2), `1000`, `!`},
		"a decimal of leading zeros":                {record.DecimalOf(5, 2), `"000999.99"`, `"999.99"`},
		"minus zero":                                {record.TypeDecimal, `"-0.00"`, `"0.00"`},
		"no number at all":                          {record.TypeDecimal, `"."`, `!`},
		"an infinite decimal with digits":           {record.DecimalOf(5, 2), `"Infinity"`, `!`},
		"text":                                      {record.TypeText, `"a\u0041\n\ud83d\ude00"`, `"aA\n😀"`},
		"half of a character":                       {record.TypeText, `"\ud83d"`, `!`},
		"a number for text":                         {record.TypeText, `1.50`, `"1.50"`},
		"an object for text":                        {record.TypeText, `{"a":1}`, `"{\"a\":1}"`},
		"bytes":                                     {record.TypeBytes, `"AP8Q"`, ``},
		"bytes without padding":                     {record.TypeBytes, `"AP8"`, `!`},
		"a date":                                    {record.TypeDate, `"2026-11-22"`, ``},
		"a date that never was":                     {record.TypeDate, `"2026-02-29"`, `!`},
		"a leap day":                                {record.TypeDate, `"2000-02-29"`, ``},
		"a date before Christ":                      {record.TypeDate, `"-000043-03-15"`, ``},
		"the year before the first":                 {record.TypeDate, `"0000-12-31"`, ``},
		"a date far ahead":                          {record.TypeDate, `"+5874897-12-31"`, ``},
		"no end of dates":                           {record.TypeDate, `"infinity"`, ``},
		"a time":                                    {record.TypeTime, `"10:00:00.5"`, ``},
		"the end of a day":                          {record.TypeTime, `"24:00:00"`, ``},
		"behind the end of a day":                   {record.TypeTime, `"24:00:01"`, `!`},
		"a timestamp":                               {record.TypeTimestamp, `"2026-11-22T10:00:00.123456"`, ``},
		"a timestamp with a space":                  {record.TypeTimestamp, `"2026-11-22 10:00"`, `"2026-11-22T10:00:00.000000"`},
		"a timestamp with an offset":                {record.TypeTimestamp, `"2026-11-22T10:00:00Z"`, `!`},
		"an instant":                                {record.TypeTimestampTZ, `"2026-11-22T10:00:00.123456Z"`, ``},
		"an instant elsewhere":                      {record.TypeTimestampTZ, `"2026-11-22T10:00:00+05:30"`, `"2026-11-22T04:30:00.000000Z"`},
		"an instant without an offset":              {record.TypeTimestampTZ, `"2026-11-22T10:00:00"`, `!`},
		"nanoseconds":                               {record.TypeTimestampTZ, `"2026-11-22T10:00:00.123456789Z"`, `!`},
		"nanoseconds that are zeros":                {record.TypeTimestampTZ, `"2026-11-22T10:00:00.123456000Z"`, `"2026-11-22T10:00:00.123456Z"`},
		"the last timestamp that there is room for": {record.TypeTimestamp, `"+294245-12-31T23:59:59.999999"`, ``},
		"a timestamp that there is no room for":     {record.TypeTimestamp, `"+294276-12-31T23:59:59.999999"`, `!`},
		"a uuid":                                    {record.TypeUUID, `"6BA7B810-9dad-11d1-80b4-00c04fd430c8"`, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`},
		"a uuid with dashes elsewhere":              {record.TypeUUID, `"6ba7b8109-dad-11d1-80b4-00c04fd430c8"`, `!`},
		"true in quotes":                            {record.TypeBool, `"t"`, `true`},
		"one for true":                              {record.TypeBool, `1`, `!`},
		"json untouched":                            {record.TypeJSON, `{"b": 1.50,"a":[1e2]}`, ``},
		"json over lines":                           {record.TypeJSON, "{\"b\":\n1}", `{"b":1}`},
		"null":                                      {record.TypeJSON, `null`, ``},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &record.Schema{Columns: []record.Column{{Name: "a", Type: test.typ}, {Name: "b", Type: record.TypeInt32}}}
			b := record.New(s, 1)
			unknown, err := record.NewParser(s).Parse(b, []byte(`{"a":`+test.in+`, "c": [1], "b" :7}`))
			if test.want == "!" {
				var v *record.ValueError
				if !errors.As(err, &v) || v.Column != "a" || b.Rows() != 0 || b.Columns[0].Len() != 0 || len(b.Columns[0].Data) != 0 {
					t.Fatalf("not refused: %v", err)
				}
				return
			}
			if err != nil || len(unknown) != 1 || unknown[0] != "c" {
				t.Fatal(unknown, err)
			}
			want := test.want
			if want == "" {
				want = test.in
			}
			if got := string(b.AppendJSON(nil, 0)); got != `{"a":`+want+`,"b":7}` {
				t.Fatal(got)
			}
		})
	}
}

func TestWhatIsNoRowLeavesTheBatchAsItWas(t *testing.T) {
	t.Parallel()
	p := record.NewParser(everything)
	b := record.New(everything, 1)
	if _, err := p.Parse(b, []byte(` { "text" : "a" , "int32" : 1 } `)); err != nil {
		t.Fatal(err)
	}
	before := string(b.AppendJSON(nil, 0))
	for _, bad := range []string{
		``, `[]`, `{`, `{}{}`, `{"text":"b","text":"c"}`, `{"text":"b","int32":x}`, `{"text":"b",}`, `{"text" "b"}`,
		`{"text":"b`, `{"text":"b"} x`, "{\"text\":\"\xff\"}", "{\"text\":\"a\tb\"}", `{"text":"b","json":[}`, `{"unknown":{"a"}}`,
		`{"json":` + strings.Repeat("[", 10002) + strings.Repeat("]", 10002) + `}`,
	} {
		if _, err := p.Parse(b, []byte(bad)); err == nil {
			t.Errorf("%.40s was taken", bad)
		}
		if b.Rows() != 1 || string(b.AppendJSON(nil, 0)) != before {
			t.Fatalf("%.40s changed the batch", bad)
		}
		for c := range b.Columns {
			if b.Columns[c].Len() != 1 {
				t.Fatalf("%.40s left a value behind", bad)
			}
		}
	}
}

func TestAValueInAMessageIsShort(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt32}}}
	_, err := record.NewParser(s).Parse(record.New(s, 1), []byte(`{"n":"`+strings.Repeat("é", 4000)+`"}`))
	if err == nil || len(err.Error()) > 200 || !json.Valid([]byte(`"`+strings.ReplaceAll(err.Error(), `"`, `\"`)+`"`)) {
		t.Fatal(err)
	}
}

func TestDaysAreThoseOfTheCalendar(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		days := rapid.Int64Range(-719528+1, 2932896).Draw(t, "days") // years 0 to 9999
		var v record.Vector
		v.Kind = record.Date
		v.AppendInt(days)
		want := time.Unix(days*86400, 0).UTC().Format(time.DateOnly)
		if got := string(v.AppendText(nil, record.TypeDate, 0)); got != want {
			t.Fatalf("%d is %s, not %s", days, got, want)
		}
	})
}

func FuzzParser(f *testing.F) {
	f.Add([]byte(`{"text":"a\u00e9","int32":1,"decimal":"1.50","json":{"a":[1,2]},"timestamp":"2026-11-22T10:00:00"}`))
	f.Add([]byte(`{"float64":1e5,"uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","bytes":"AP8Q","x":null}`))
	f.Add([]byte(`{"date":"-000043-03-15","time":"24:00:00","timestamptz":"infinity","bool":false,"money":-1.5}`))
	f.Fuzz(func(t *testing.T, object []byte) {
		p := record.NewParser(everything)
		p.Absent = true
		b := record.New(everything, 1)
		_, err := p.Parse(b, object)
		if err != nil {
			for c := range b.Columns {
				if b.Columns[c].Len() != 0 || len(b.Columns[c].Data) != 0 {
					t.Fatalf("%v left something behind", err)
				}
			}
			return
		}
		if !json.Valid(object) {
			t.Fatal("taken, and no JSON")
		}
		line := b.AppendJSON(nil, 0)
		back := record.New(everything, 1)
		if _, err := p.Parse(back, line); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		same(t, b, back)
	})
}

var tenColumns = &record.Schema{Columns: []record.Column{
	{Name: "id", Type: record.TypeInt64},
	{Name: "customer_id", Type: record.TypeInt64},
	{Name: "status", Type: record.TypeText},
	{Name: "total", Type: record.DecimalOf(12, 2)},
	{Name: "weight", Type: record.TypeFloat64},
	{Name: "paid", Type: record.TypeBool},
	{Name: "ref", Type: record.TypeUUID},
	{Name: "created_at", Type: record.TypeTimestampTZ},
	{Name: "note", Type: record.TypeText},
	{Name: "attributes", Type: record.TypeJSON},
}}

const tenColumnsRow = `{"id":123456,"customer_id":9876,"status":"paid","total":"19.90","weight":1.25,"paid":true,` +
	`"ref":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","created_at":"2026-11-22T10:00:00.123456Z","note":"a note of some words","attributes":{"a":1,"b":[1,2]}}`

func BenchmarkParser(b *testing.B) {
	p, batch, row := record.NewParser(tenColumns), record.New(tenColumns, 8192), []byte(tenColumnsRow)
	b.ReportAllocs()
	b.SetBytes(int64(len(row)))
	for b.Loop() {
		if batch.Rows() == 8192 {
			batch.Reset()
		}
		if _, err := p.Parse(batch, row); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkAppendJSON(b *testing.B) {
	batch := record.New(tenColumns, 1)
	if _, err := record.NewParser(tenColumns).Parse(batch, []byte(tenColumnsRow)); err != nil {
		b.Fatal(err)
	}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = batch.AppendJSON(dst[:0], 0)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func ExampleParser() {
	schema := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt64},
		{Name: "total", Type: record.DecimalOf(10, 2)},
		{Name: "note", Type: record.TypeText, Nullable: true},
	}}
	batch := record.New(schema, 8)
	p := record.NewParser(schema)
	unknown, err := p.Parse(batch, []byte(`{"id": 7, "total": 1.5, "colour": "red"}`))
	fmt.Println(unknown, err)
	_, err = p.Parse(batch, []byte(`{"id": 8, "total": "1.505"}`))
	fmt.Println(err)
	fmt.Println(string(batch.AppendJSON(nil, 0)))
	// Output:
	// [colour] <nil>
	// column "total": "1.505" is no decimal(10,2)
	// {"id":7,"total":"1.50","note":null}
}

func TestFloatsKeepTheirBits(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "f", Type: record.TypeFloat64}}}
	for _, f := range []float64{math.MaxFloat64, math.SmallestNonzeroFloat64, math.Copysign(0, -1), 1e15, 999999999999999, 1e-4, 0.0000999} {
		b := record.New(s, 1)
		b.Columns[0].AppendFloat(f)
		b.Done()
		back := record.New(s, 1)
		if _, err := record.NewParser(s).Parse(back, b.AppendJSON(nil, 0)); err != nil || math.Float64bits(back.Columns[0].Floats[0]) != math.Float64bits(f) {
			t.Errorf("%v came back as %v, %v", f, back.Columns[0].Floats, err)
		}
	}
}
