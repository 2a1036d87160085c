package source_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/record"
)

func TestMain(m *testing.M) { s3test.Main(m) }

func lake(t *testing.T, files map[string]string) *s3.Backend {
	t.Helper()
	b, err := s3.Open(t.Context(), s3test.Bucket(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	for key, body := range files {
		put(t, b, key, body)
	}
	return b
}

func put(t *testing.T, b *s3.Backend, key, body string) {
	t.Helper()
	if _, err := b.WriteObject(t.Context(), key, strings.NewReader(body), driver.ObjectWrite{Bytes: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
}

var numbers = &record.Schema{Columns: []record.Column{{Name: "n", Type: record.TypeInt64}, {Name: "s", Type: record.TypeText, Nullable: true}}}

// parquet is a file of the numbers from..to-1.
func parquet(t *testing.T, from, to int) string {
	t.Helper()
	b := record.New(numbers, to-from)
	for n := from; n < to; n++ {
		b.Columns[0].AppendInt(int64(n))
		b.Columns[1].AppendString(fmt.Sprint("s", n))
		b.Done()
	}
	var out bytes.Buffer
	w, err := format.New(format.Parquet, "", &out, numbers, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rejected, err := w.Write(b, nil); err != nil || rejected != nil {
		t.Fatal(rejected, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func objects(b driver.ObjectReader, what spec.ObjectSource) *source.Objects {
	return &source.Objects{Reader: b, What: what}
}

func all(t *testing.T, o *source.Objects) (rows []string, bad []stage.Unread, err error) {
	t.Helper()
	parts, err := o.Split(t.Context(), false)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range parts {
		err := o.Read(t.Context(), p, func(b *record.Batch) error {
			for i := range b.Rows() {
				rows = append(rows, b.From+" "+string(b.AppendJSON(nil, i)))
			}
			return nil
		}, func(u stage.Unread) error {
			bad = append(bad, u)
			return nil
		})
		if err != nil {
			return rows, bad, err
		}
	}
	return rows, bad, nil
}

func TestObjectsOfEveryFormatAreRead(t *testing.T) {
	t.Parallel()
	b := lake(t, map[string]string{
		"in/1.parquet":           parquet(t, 0, 2),
		"in/2.ndjson":            "{\"n\":2,\"s\":\"x\"}\nnonsense\n{\"n\":3}\n",
		"in/3.csv":               "n,s\r\n4,\r\nx,y\r\n",
		"in/_manifest/run.json":  `{"rows":1}`,
		"in/day=1/.hidden.csv":   "a\n1\n",
		"in/day=1/_SUCCESS":      "",
		"other/1.ndjson":         "{}",
		"in/day=2/4.parquet":     parquet(t, 5, 6),
		"in/day=2/x/y/5.parquet": parquet(t, 6, 7),
	})
	o := objects(b, spec.ObjectSource{Prefix: "in/"})
	rows, bad, err := all(t, o)
	want := []string{
		`in/1.parquet {"n":0,"s":"s0"}`, `in/1.parquet {"n":1,"s":"s1"}`, `in/2.ndjson {"n":2,"s":"x"}`, `in/2.ndjson {"n":3,"s":null}`,
		`in/3.csv {"n":4,"s":null}`, `in/day=2/4.parquet {"n":5,"s":"s5"}`, `in/day=2/x/y/5.parquet {"n":6,"s":"s6"}`,
	}
	if err != nil || !slices.Equal(rows, want) {
		t.Fatal(rows, err)
	}
	if len(bad) != 2 || bad[0].From != "in/2.ndjson:2" || bad[0].Text != "nonsense" || bad[1].From != "in/3.csv:3" || bad[1].Column != "n" {
		t.Fatal(bad)
	}
	s, err := o.Describe(t.Context())
	if err != nil || !s.Equal(numbers) {
		t.Fatal(s, err)
	}
}

func TestColumnsThatTheDefinitionNamesAreRead(t *testing.T) {
	t.Parallel()
	b := lake(t, map[string]string{
		"in/1.parquet": parquet(t, 40000, 40001),
		"in/2.ndjson":  `{"s":"a","n":1,"x":true}`,
		"in/3.csv":     "x,n,s\n,2,b\n",
	})
	o := objects(b, spec.ObjectSource{Prefix: "in/", Columns: []spec.ObjectColumn{{Name: "s", Type: record.TypeText}, {Name: "n", Type: record.TypeInt16}}})
	rows, bad, err := all(t, o)
	if err != nil || !slices.Equal(rows, []string{`in/2.ndjson {"s":"a","n":1}`, `in/3.csv {"s":"b","n":2}`}) {
		t.Fatal(rows, err)
	}
	if len(bad) != 1 || bad[0].Column != "n" || bad[0].From != "in/1.parquet" {
		t.Fatal(bad)
	}
}

func TestAllObjectsAreReadAsTheFirstOneShows(t *testing.T) {
	t.Parallel()
	b := lake(t, map[string]string{
		"1.ndjson": `{"n":1.5}` + "\n",
		"2.ndjson": `{"n":2}` + "\n" + `{"n":3,"more":true}` + "\n",
	})
	o := objects(b, spec.ObjectSource{})
	parts, err := o.Split(t.Context(), false)
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	var seen []string
	err = o.Read(t.Context(), parts[0], func(b *record.Batch) error {
		for _, c := range b.Schema.Columns {
			seen = append(seen, c.Name+" "+c.Type.String())
		}
		return nil
	}, func(u stage.Unread) error { return errors.New(u.Reason) })
	if err != nil || !slices.Equal(seen, []string{"n float64", "n float64", "more bool"}) {
		t.Fatal(seen, err)
	}
}

func TestManyObjectsAreDividedAndEachIsReadOnce(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	large := strings.Repeat(`{"n":1}`+"\n", 3<<20) // 24 MiB
	for i := range 4 {
		files[fmt.Sprintf("in/%d.ndjson", i)] = large
	}
	b := lake(t, files)
	o := objects(b, spec.ObjectSource{Prefix: "in/", Columns: []spec.ObjectColumn{{Name: "n", Type: record.TypeInt64}}})
	parts, err := o.Split(t.Context(), false)
	if err != nil || len(parts) != 2 || parts[0].Bytes != 72<<20 {
		t.Fatal(len(parts), parts, err)
	}
	whole, err := o.Split(t.Context(), true)
	if err != nil || len(whole) != 1 {
		t.Fatal(whole, err)
	}
	rows := 0
	for _, p := range parts {
		if err := o.Read(t.Context(), p, func(b *record.Batch) error { rows += b.Rows(); return nil }, nil); err != nil {
			t.Fatal(err)
		}
	}
	if rows != 12<<20 {
		t.Fatal(rows)
	}
}

func TestObjectsThatChangedSinceTheyWereListedAreRefused(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"in/1.parquet", "in/1.ndjson"} {
		body := map[bool]string{true: parquet(t, 0, 2), false: `{"n":1}`}[strings.HasSuffix(key, "parquet")]
		for name, change := range map[string]func(*s3.Backend){
			"changed": func(b *s3.Backend) { put(t, b, key, body+body) },
			"deleted": func(b *s3.Backend) {
				if err := b.DeleteObjects(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			},
		} {
			b := lake(t, map[string]string{key: body})
			o := objects(b, spec.ObjectSource{Prefix: "in/"})
			parts, err := o.Split(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			change(b)
			err = o.Read(t.Context(), parts[0], func(*record.Batch) error { return nil }, nil)
			if athena.CodeOf(err) != athena.CodeConflict || !strings.Contains(err.Error(), key) {
				t.Errorf("%s, %s: %v", key, name, err)
			}
		}
	}
}

func TestObjectsThatCannotBeReadAreNamed(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		key, body string
		what      spec.ObjectSource
		want      string
	}{
		"no format":       {"in/a.txt", "x", spec.ObjectSource{Prefix: "in/"}, "in/a.txt"},
		"cut off":         {"in/a.parquet", parquet(t, 0, 9)[:200], spec.ObjectSource{Prefix: "in/"}, "in/a.parquet"},
		"no gzip":         {"in/a.csv.gz", "a\n1\n", spec.ObjectSource{Prefix: "in/"}, "in/a.csv.gz"},
		"nothing there":   {"out/a.csv", "a\n1\n", spec.ObjectSource{Prefix: "in/", Format: "csv"}, `"in/"`},
		"a column absent": {"in/a.csv", "a\n1\n", spec.ObjectSource{Prefix: "in/", Columns: []spec.ObjectColumn{{Name: "b", Type: record.TypeText}}}, `"b"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := objects(lake(t, map[string]string{test.key: test.body}), test.what)
			_, _, err := all(t, o)
			if err == nil {
				_, err = o.Describe(t.Context())
			}
			if athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.Contains(err.Error(), test.want) {
				t.Fatal(err)
			}
		})
	}
}

func TestAPartOfObjectsIsSmallAsJSON(t *testing.T) {
	t.Parallel()
	b := lake(t, map[string]string{"in/1.parquet": parquet(t, 0, 1)})
	parts, err := objects(b, spec.ObjectSource{Prefix: "in/"}).Split(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(parts); err != nil || len(text) > 200 {
		t.Fatalf("%s, %v", text, err)
	}
}
