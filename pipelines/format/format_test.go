package format_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// everything has columns of all types, each once with nulls and once without.
var everything = func() *record.Schema {
	s := &record.Schema{Key: []string{"int64"}}
	for _, t := range []record.Type{
		record.TypeBool, record.TypeInt16, record.TypeInt32, record.TypeInt64, record.TypeFloat32, record.TypeFloat64,
		record.TypeDecimal, record.DecimalOf(9, 2), record.DecimalOf(18, 0), record.DecimalOf(20, 20), record.DecimalOf(38, 10),
		record.TypeText, record.TypeBytes, record.TypeDate, record.TypeTime, record.TypeTimestamp, record.TypeTimestampTZ,
		record.TypeUUID, record.TypeJSON,
	} {
		s.Columns = append(s.Columns,
			record.Column{Name: t.String(), Type: t, Native: "native " + t.String()},
			record.Column{Name: t.String() + " or null", Type: t, Nullable: true})
	}
	return s
}()

// drawText draws a value in the form that AppendParsed reads.
func drawText(t *rapid.T, typ record.Type) string {
	switch typ.Kind {
	case record.Bool:
		return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "bool")
	case record.Int:
		limit := int64(1)<<(typ.Bits-1) - 1
		return fmt.Sprint(rapid.Int64Range(-limit-1, limit).Draw(t, "int"))
	case record.Float:
		return rapid.OneOf(rapid.StringMatching(`-?[0-9]{1,6}(\.[0-9]{1,6})?(e-?[1-9])?`), rapid.SampledFrom([]string{"NaN", "Infinity", "-Infinity"})).Draw(t, "float")
	case record.Decimal:
		whole, fraction := 30, 20
		if typ.Precision > 0 {
			whole, fraction = typ.Precision-typ.Scale, typ.Scale
		}
		s := rapid.StringMatching(fmt.Sprintf(`-?[1-9][0-9]{0,%d}`, max(whole-1, 0))).Draw(t, "whole")
		if whole == 0 {
			s = "-0"
		}
		if fraction > 0 {
			s += "." + rapid.StringMatching(fmt.Sprintf(`[0-9]{%d}`, fraction)).Draw(t, "fraction")
		}
		return s
	case record.Text:
		return strings.ToValidUTF8(rapid.OneOf(rapid.String(), rapid.StringMatching(`[",\r\n a]{0,6}`)).Draw(t, "text"), "")
	case record.Bytes:
		return rapid.SampledFrom([]string{"", "AP8Q", "AA==", "aGVsbG8sIHdvcmxk"}).Draw(t, "bytes")
	case record.Date:
		return rapid.StringMatching(`[0-9]{4}-0[1-9]-(0[1-9]|1[0-9]|2[0-8])`).Draw(t, "date")
	case record.Time:
		return rapid.StringMatching(`(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?`).Draw(t, "time")
	case record.Timestamp, record.TimestampTZ:
		s := rapid.StringMatching(`[0-9]{4}-0[1-9]-(0[1-9]|1[0-9]|2[0-8])T(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?`).Draw(t, "timestamp")
		if typ.Kind == record.TimestampTZ {
			s += "Z"
		}
		return s
	case record.UUID:
		return rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).Draw(t, "uuid")
	}
	return rapid.SampledFrom([]string{`{"b": 1.50, "a":[null,{}]}`, `[]`, `"x\ny, \"z\""`, `-0.0`, `true`, `12345678901234567890`}).Draw(t, "json")
}

func drawBatch(t *rapid.T, s *record.Schema, most int) *record.Batch {
	rows := rapid.IntRange(0, most).Draw(t, "rows")
	b := record.New(s, rows)
	for range rows {
		for i, c := range s.Columns {
			if c.Nullable && rapid.IntRange(0, 3).Draw(t, "null") == 0 {
				b.Columns[i].AppendNull()
			} else if err := b.Columns[i].AppendParsed(c.Type, []byte(drawText(t, c.Type))); err != nil {
				t.Fatalf("%s: %v", c.Type, err)
			}
		}
		b.Done()
	}
	return b
}

func texts(b *record.Batch) (rows []string) {
	for i := range b.Rows() {
		rows = append(rows, string(b.AppendJSON(nil, i)))
	}
	return rows
}

// file writes batches to memory.
func file(t testing.TB, name, compression string, s *record.Schema, batches ...*record.Batch) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := format.New(name, compression, &out, s, map[string]string{"athena.run": "r1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range batches {
		rejected, err := w.Write(b, nil)
		if err != nil || rejected != nil {
			t.Fatal(rejected, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(name, compression string, data []byte, o format.ReadOptions) (format.Reader, error) {
	if name == format.Parquet {
		return format.OpenParquet(bytes.NewReader(data), int64(len(data)), o)
	}
	return format.OpenLines(name, compression, bytes.NewReader(data), o)
}

// read reads all rows of a file.
func read(name, compression string, data []byte, o format.ReadOptions, size driver.BatchSize) (rows []string, bad []format.Rejected, last *record.Schema, err error) {
	r, err := open(name, compression, data, o)
	if err != nil {
		return nil, nil, nil, err
	}
	defer r.Close()
	for {
		b, err := r.Next(size)
		if err == io.EOF {
			return rows, bad, r.Schema(), nil
		}
		if err != nil {
			return rows, bad, r.Schema(), err
		}
		rows = append(rows, texts(b.Batch)...)
		bad = append(bad, b.Rejected...)
		if b.Done != int64(len(rows)+len(bad)) {
			return rows, bad, r.Schema(), fmt.Errorf("%d rows done, not %d", b.Done, len(rows)+len(bad))
		}
	}
}

var ways = [][2]string{
	{"parquet", ""}, {"parquet", "snappy"}, {"parquet", "gzip"}, {"parquet", "none"},
	{"ndjson", ""}, {"ndjson", "gzip"}, {"ndjson", "zstd"}, {"csv", ""}, {"csv", "gzip"}, {"csv", "zstd"},
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way[0]+"-"+way[1], func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				a, b := drawBatch(t, everything, 6), drawBatch(t, everything, 6)
				var out bytes.Buffer
				w, err := format.New(way[0], way[1], &out, everything, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, batch := range []*record.Batch{a, b} {
					if rejected, err := w.Write(batch, nil); err != nil || rejected != nil {
						t.Fatal(rejected, err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				o := format.ReadOptions{}
				if way[0] != format.Parquet {
					o.Schema = everything
				}
				rows, bad, s, err := read(way[0], way[1], out.Bytes(), o, driver.BatchSize{Rows: rapid.IntRange(1, 9).Draw(t, "size")})
				if err != nil || bad != nil {
					t.Fatal(bad, err)
				}
				if !s.Equal(everything) {
					t.Fatalf("another schema: %+v", s)
				}
				if want := slices.Concat(texts(a), texts(b)); !slices.Equal(rows, want) {
					t.Fatalf("%q\nis not\n%q", rows, want)
				}
			})
		})
	}
}

func TestRowsThatAreNamedAreWritten(t *testing.T) {
	t.Parallel()
	b := orderRows(2000)
	for _, way := range ways {
		var out bytes.Buffer
		w, err := format.New(way[0], way[1], &out, orders, nil)
		if err != nil {
			t.Fatal(err)
		}
		var some []int
		var want []string
		for i := 1; i < 2000; i += 2 {
			some = append(some, i)
			want = append(want, string(b.AppendJSON(nil, i)))
		}
		if _, err := w.Write(b, some); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		o := format.ReadOptions{}
		if way[0] != format.Parquet {
			o.Schema = orders
		}
		rows, _, _, err := read(way[0], way[1], out.Bytes(), o, driver.BatchSize{})
		if err != nil || !slices.Equal(rows, want) {
			t.Fatal(way, len(rows), err)
		}
	}
}

func TestColumnsThatAreNamedAreRead(t *testing.T) {
	t.Parallel()
	data := file(t, "parquet", "", orders, orderRows(10))
	rows, _, s, err := read("parquet", "", data, format.ReadOptions{Columns: []string{"status", "id"}}, driver.BatchSize{})
	if err != nil || len(rows) != 10 || !strings.HasPrefix(rows[0], `{"status":"`) || !strings.HasSuffix(rows[0], `,"id":1}`) || len(s.Key) != 1 {
		t.Fatal(rows, s, err)
	}
	if _, err := open("parquet", "", data, format.ReadOptions{Columns: []string{"stauts"}}); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Fatal(err)
	}
}

func TestParquetRejectsWhatItCannotHold(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		typ  record.Type
		text string
	}{
		"no number among decimals":    {record.DecimalOf(9, 2), "NaN"},
		"nor among large ones":        {record.DecimalOf(38, 2), "NaN"},
		"the end of dates":            {record.TypeDate, "infinity"},
		"the beginning of timestamps": {record.TypeTimestamp, "-infinity"},
		"the end of instants":         {record.TypeTimestampTZ, "infinity"},
		"the end of a day":            {record.TypeTime, "24:00:00"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt32}, {Name: "x", Type: test.typ, Nullable: true}}}
			b := record.New(s, 3)
			for i := range 3 {
				b.Columns[0].AppendInt(int64(i))
				if i == 1 {
					if err := b.Columns[1].AppendParsed(test.typ, []byte(test.text)); err != nil {
						t.Fatal(err)
					}
				} else {
					b.Columns[1].AppendNull()
				}
				b.Done()
			}
			var out bytes.Buffer
			w, err := format.New("parquet", "", &out, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			rejected, err := w.Write(b, nil)
			if err != nil || len(rejected) != 1 || rejected[0].Row != 1 || rejected[0].Column != "x" || !strings.Contains(rejected[0].Reason, test.text) {
				t.Fatal(rejected, err)
			}
			if rejected, err := w.Write(b, []int{1}); err != nil || len(rejected) != 1 {
				t.Fatal(rejected, err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			rows, _, _, err := read("parquet", "", out.Bytes(), format.ReadOptions{}, driver.BatchSize{})
			if err != nil || !slices.Equal(rows, []string{`{"n":0,"x":null}`, `{"n":2,"x":null}`}) {
				t.Fatal(rows, err)
			}
		})
	}
}

func TestNullsInAColumnThatHasNoneAreRejected(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "x", Type: record.TypeText}}}
	b := record.New(s, 1)
	b.Columns[0].AppendNull()
	b.Done()
	w, err := format.New("parquet", "", io.Discard, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rejected, err := w.Write(b, nil); err != nil || len(rejected) != 1 {
		t.Fatal(rejected, err)
	}
}

func TestColumnsMayHaveAnyName(t *testing.T) {
	t.Parallel()
	s := &record.Schema{}
	for _, name := range []string{"b", "a", "a,b", "a.b", "", "Ä \"q\"", "list", "Id", "id"} {
		s.Columns = append(s.Columns, record.Column{Name: name, Type: record.TypeText, Nullable: true})
	}
	b := record.New(s, 1)
	for i := range s.Columns {
		b.Columns[i].AppendString(s.Columns[i].Name)
	}
	b.Done()
	for _, way := range ways {
		o := format.ReadOptions{}
		if way[0] != format.Parquet {
			o.Schema = s
		}
		rows, bad, _, err := read(way[0], way[1], file(t, way[0], way[1], s, b), o, driver.BatchSize{})
		if err != nil || bad != nil || !slices.Equal(rows, texts(b)) {
			t.Fatal(way, rows, bad, err)
		}
	}
	twice := &record.Schema{Columns: []record.Column{s.Columns[0], s.Columns[0]}}
	if _, err := format.New("csv", "", io.Discard, twice, nil); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Fatal(err)
	}
}

func TestARowGroupIsEndedBeforeItIsTooLarge(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "x", Type: record.TypeBytes}}}
	b := record.New(s, 1)
	b.Columns[0].AppendBytes(bytes.Repeat([]byte{7}, 8<<20))
	b.Done()
	w, err := format.New("parquet", "none", io.Discard, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 12 {
		if _, err := w.Write(b, nil); err != nil {
			t.Fatal(err)
		}
		if n := w.Buffered(); n > 48<<20 {
			t.Fatalf("%d bytes are held", n)
		}
	}
	if w.Size() < 96<<20 {
		t.Fatal(w.Size())
	}
}

func TestFilesThatAreCutOffAreRefused(t *testing.T) {
	t.Parallel()
	b := orderRows(300)
	for _, way := range ways {
		data := file(t, way[0], way[1], orders, b)
		o := format.ReadOptions{}
		if way[0] != format.Parquet {
			o.Schema = orders
		}
		for _, n := range []int{0, 1, len(data) / 3, len(data) / 2, len(data) - 9, len(data) - 5} {
			rows, bad, _, err := read(way[0], way[1], data[:n], o, driver.BatchSize{})
			if way[1] == "" && way[0] != format.Parquet {
				// Only where a line ends can nothing be seen of it.
				if err == nil && len(rows)+len(bad) >= 300 && n < len(data)-2 && len(bad) == 0 {
					t.Errorf("%v cut off at %d of %d: nothing is amiss", way, n, len(data))
				}
				continue
			}
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Errorf("%v cut off at %d of %d: %d rows, %v", way, n, len(data), len(rows), err)
			}
		}
	}
}

func TestPoisonLinesAreRejectedAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt32}, {Name: "s", Type: record.TypeText, Nullable: true}}}
	rows, bad, _, err := read("ndjson", "", []byte("\ufeff{\"n\":1}\n\n{\"n\":\"x\"}\r\n{\"n\":2,\"s\":\"a\",\"t\":[]}\nnonsense\n{\"n\":3}"), format.ReadOptions{Schema: s}, driver.BatchSize{Rows: 2})
	if err != nil || !slices.Equal(rows, []string{`{"n":1,"s":null}`, `{"n":2,"s":"a"}`, `{"n":3,"s":null}`}) {
		t.Fatal(rows, err)
	}
	if len(bad) != 2 || bad[0].Line != 3 || bad[0].Column != "n" || bad[1].Line != 5 || string(bad[1].Row) != "nonsense" {
		t.Fatal(bad)
	}
	rows, bad, _, err = read("csv", "", []byte("s,n,other\r\n\"a \"\"b\"\"\nc\",1,\n5\" pipe,2,\n,x,\n\"\",3,o\n1,2\n1,2,3,4\n\n\"a\"b,2,\nz,4,\n"), format.ReadOptions{Schema: s}, driver.BatchSize{})
	if err != nil || !slices.Equal(rows, []string{`{"n":1,"s":"a \"b\"\nc"}`, `{"n":3,"s":""}`, `{"n":4,"s":"z"}`}) {
		t.Fatal(rows, bad, err)
	}
	var lines []int64
	for _, r := range bad {
		lines = append(lines, r.Line)
	}
	if !slices.Equal(lines, []int64{4, 5, 7, 8, 10}) {
		t.Fatal(bad)
	}
	if _, bad, _, err = read("csv", "", []byte("s,n\nx,\"\"\n"), format.ReadOptions{Schema: s}, driver.BatchSize{}); err != nil || len(bad) != 1 || !strings.Contains(bad[0].Reason, `"" is no int32`) {
		t.Fatal(bad, err)
	}
}

func TestTypesAreInferredFromTheFirstRows(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ format, data, want string }{
		"numbers widen":          {"ndjson", `{"a":1,"b":1,"c":1}` + "\n" + `{"a":2,"b":1.5,"c":"x"}`, "a int64, b float64, c text"},
		"numbers of many digits": {"ndjson", `{"a":12345678901234567890,"b":9007199254740993}` + "\n" + `{"b":0.5}`, "a decimal, b decimal"},
		"nulls alone":            {"ndjson", `{"a":null}`, "a text"},
		"true beside numbers":    {"ndjson", `{"a":true,"b":false}` + "\n" + `{"a":1}`, "a text, b bool"},
		"objects and arrays":     {"ndjson", `{"a":{"x":1},"b":[1]}` + "\n" + `{"a":"s"}`, "a json, b json"},
		"csv":                    {"csv", "a,b,c,d,e,f\n1,1.5,true,007,,x\n2,2,false,1,,\"y,z\"\n", "a int64, b float64, c bool, d text, e text, f text"},
		"csv without rows":       {"csv", "a,b\n", "a text, b text"},
		"poison is left out":     {"ndjson", "{\"a\":1}\nnonsense\n", "a int64"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := open(test.format, "", []byte(test.data), format.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range r.Schema().Columns {
				got = append(got, c.Name+" "+c.Type.String())
			}
			if s := strings.Join(got, ", "); s != test.want {
				t.Fatal(s)
			}
		})
	}
}

func TestAColumnThatShowsLaterIsAdded(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt32}}}
	data := []byte("{\"n\":1}\n{\"n\":2,\"x\":1.5}\n{\"n\":3,\"y\":[1],\"z\":null}\n{\"n\":4,\"x\":\"text\"}\n")
	r, err := open("ndjson", "", data, format.ReadOptions{Schema: s, Evolve: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	rows, bad, last, err := read("ndjson", "", data, format.ReadOptions{Schema: s, Evolve: true}, driver.BatchSize{})
	if err != nil || len(bad) != 0 || len(rows) != 4 || len(last.Columns) != 4 || last.Columns[1].Type != record.TypeText {
		t.Fatal(rows, bad, last, err)
	}
	// Beyond what types are inferred from, the row that shows a column gives it
	// its type.
	long := strings.Repeat("{\"n\":1}\n", 1500) + "{\"n\":2,\"x\":1.5}\n{\"n\":3,\"x\":\"text\"}\n"
	rows, bad, last, err = read("ndjson", "", []byte(long), format.ReadOptions{}, driver.BatchSize{})
	if err != nil || len(rows) != 1501 || rows[1500] != `{"n":2,"x":1.5}` || len(bad) != 1 || bad[0].Line != 1502 || last.Columns[1].Type != record.TypeFloat64 {
		t.Fatal(len(rows), bad, last, err)
	}
}

func TestANullAndAnEmptyTextDifferInCSV(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{{Name: "a", Type: record.TypeText, Nullable: true}, {Name: "b", Type: record.TypeText, Nullable: true}}}
	b := record.New(s, 1)
	b.Columns[0].AppendNull()
	b.Columns[1].AppendString("")
	b.Done()
	if got := string(file(t, "csv", "", s, b)); got != "a,b\r\n,\"\"\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestALineWithoutEndIsNotKept(t *testing.T) {
	t.Parallel()
	long := `{"a":"` + strings.Repeat("x", 17<<20) + "\"}\n{\"a\":\"y\"}\n"
	rows, bad, _, err := read("ndjson", "", []byte(long), format.ReadOptions{}, driver.BatchSize{})
	if err != nil || len(rows) != 1 || len(bad) != 1 || len(bad[0].Row) != 64<<10 || bad[0].Line != 1 {
		t.Fatal(len(rows), len(bad), err)
	}
}

// brokenReader is a network that fails.
type brokenReader struct{ err error }

func (r brokenReader) ReadAt([]byte, int64) (int, error) { return 0, &format.ReadError{Err: r.err} }
func (r brokenReader) Read([]byte) (int, error)          { return 0, &format.ReadError{Err: r.err} }

func TestErrorsOfWhatIsReadPassUntouched(t *testing.T) {
	t.Parallel()
	cause := errors.New("the network is gone")
	if _, err := format.OpenParquet(brokenReader{cause}, 1000, format.ReadOptions{}); err != cause {
		t.Fatal(err)
	}
	for _, compression := range []string{"none", "gzip", "zstd"} {
		r, err := format.OpenLines("ndjson", compression, brokenReader{cause}, format.ReadOptions{Schema: orders})
		if err == nil {
			_, err = r.Next(driver.BatchSize{})
		}
		if err != cause {
			t.Fatal(compression, err)
		}
	}
}

func TestNamesTellFormats(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		f, c, ok := format.Of("a/b" + format.Suffix(way[0], way[1]))
		if want := way[1]; !ok || f != way[0] || f != format.Parquet && want != "" && c != want {
			t.Error(way, f, c, ok)
		}
	}
	if _, _, ok := format.Of("a.csv/b"); ok {
		t.Error("a folder told the format")
	}
}
