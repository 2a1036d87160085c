package sink_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/record"
)

func TestMain(m *testing.M) { s3test.Main(m) }

type store interface {
	driver.ObjectReader
	sink.ObjectStore
}

func lake(t *testing.T) store {
	t.Helper()
	b, err := s3.Open(t.Context(), s3test.Bucket(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

func objects(t *testing.T, s sink.ObjectStore, what spec.ObjectSink, changes bool) *sink.Objects {
	t.Helper()
	o, err := sink.NewObjects(s, what, "orders-to-lake", "run1", changes)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

var orders = &record.Schema{Columns: []record.Column{
	{Name: "id", Type: record.TypeInt64},
	{Name: "day", Type: record.TypeText, Nullable: true},
	{Name: "total", Type: record.DecimalOf(12, 2), Nullable: true},
}, Key: []string{"id"}}

// rows parses one JSON object for each row.
func rows(t *testing.T, s *record.Schema, lines ...string) *record.Batch {
	t.Helper()
	b, p := record.New(s, len(lines)), record.NewParser(s)
	p.Absent = true
	for _, line := range lines {
		if unknown, err := p.Parse(b, []byte(line)); err != nil || unknown != nil {
			t.Fatal(unknown, err)
		}
	}
	return b
}

func write(t *testing.T, w stage.Writer, route string, b *record.Batch) {
	t.Helper()
	if rejected, err := w.Write(t.Context(), route, b); err != nil || len(rejected) > 0 {
		t.Fatal(rejected, err)
	}
}

// commit commits, and returns what was decided.
func commit(t *testing.T, w stage.Writer) (decided []stage.Object) {
	t.Helper()
	err := w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
		decided = list
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return decided
}

// content has the rows of all objects, by key.
func content(t *testing.T, s driver.ObjectReader) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for after := ""; ; {
		page, err := s.Objects(t.Context(), driver.ObjectList{After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Objects {
			all[o.Key] = read(t, s, o.Key)
		}
		if after = page.Next; after == "" {
			return all
		}
	}
}

func read(t *testing.T, s driver.ObjectReader, key string) (out []string) {
	t.Helper()
	body, err := s.ReadObject(t.Context(), key, driver.ObjectRead{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	name, compression, _ := format.Of(key)
	var r format.Reader
	if name == format.Parquet {
		r, err = format.OpenParquet(bytes.NewReader(data), int64(len(data)), format.ReadOptions{})
	} else {
		r, err = format.OpenLines(name, compression, bytes.NewReader(data), format.ReadOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := r.Next(driver.BatchSize{})
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Rows() {
			out = append(out, string(b.AppendJSON(nil, i)))
		}
	}
}

func keys[V any](m map[string]V) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

func TestRowsGoToTheObjectsThatTheirColumnsName(t *testing.T) {
	t.Parallel()
	s := lake(t)
	o := objects(t, s, spec.ObjectSink{Prefix: "orders/day={{day}}/"}, false)
	w := o.Begin("run1-3")
	write(t, w, "", rows(t, orders,
		`{"id":1,"day":"2026-11-22","total":"1.50"}`, `{"id":2,"day":"a/b?","total":null}`,
		`{"id":3,"day":null}`, `{"id":4,"day":".."}`, `{"id":5,"day":""}`, `{"id":6,"day":"__null__"}`,
		`{"id":7,"day":"2026-11-22","total":"2"}`))
	write(t, w, "eu/../x y", rows(t, orders, `{"id":8,"day":"2026-11-22"}`))
	if all := content(t, s); len(all) != 0 {
		t.Fatalf("seen before it was decided: %v", keys(all))
	}
	var decided []stage.Object
	err := w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
		if all := content(t, s); len(all) != 0 {
			t.Errorf("seen before it was decided: %v", keys(all))
		}
		decided = list
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all := content(t, s)
	var want []string
	for _, d := range decided {
		want = append(want, d.Key)
		if int(d.Rows) != len(all[d.Key]) || d.Bytes <= 0 {
			t.Errorf("%+v", d)
		}
	}
	slices.Sort(want)
	if got := keys(all); !slices.Equal(got, want) || len(got) != 7 {
		t.Fatalf("%q, decided %q", got, want)
	}
	if got := all["orders/day=2026-11-22/run1-3-0.parquet"]; !slices.Equal(got, []string{`{"id":1,"day":"2026-11-22","total":"1.50"}`, `{"id":7,"day":"2026-11-22","total":"2.00"}`}) {
		t.Fatal(got)
	}
	for _, prefix := range []string{"orders/day=a%2Fb%3F/", "orders/day=__null__/", "orders/day=%2E./", "orders/day=__empty__/", "orders/day=%5F_null__/", "orders/day=2026-11-22/eu/%2E./x%20y/"} {
		if !slices.ContainsFunc(want, func(k string) bool { return strings.HasPrefix(k, prefix) }) {
			t.Errorf("%s is missing among %q", prefix, want)
		}
	}
	if size := w.Size(); size.Rows != 8 || size.Bytes <= 0 {
		t.Fatal(size)
	}
}

func TestObjectsAreEndedWhenTheyAreFull(t *testing.T) {
	t.Parallel()
	s := lake(t)
	o := objects(t, s, spec.ObjectSink{Prefix: "p/", Format: "ndjson", Compression: "gzip", Roll: spec.Roll{Rows: 3}}, false)
	w := o.Begin("t")
	var lines []string
	for i := range 7 {
		lines = append(lines, fmt.Sprintf(`{"id":%d,"day":"x","total":null}`, i))
	}
	write(t, w, "", rows(t, orders, lines[:4]...))
	write(t, w, "", rows(t, orders, lines[4:]...))
	decided := commit(t, w)
	var got []string
	for i, d := range decided {
		if d.Key != fmt.Sprintf("p/t-%d.ndjson.gz", i) {
			t.Error(d.Key)
		}
		got = append(got, read(t, s, d.Key)...)
	}
	if len(decided) != 3 || !slices.Equal(got, lines) {
		t.Fatal(decided, got)
	}
	large := objects(t, s, spec.ObjectSink{Prefix: "q/", Format: "csv", Roll: spec.Roll{Bytes: 100}}, false).Begin("t")
	for _, line := range lines {
		write(t, large, "", rows(t, orders, strings.Replace(line, `"x"`, `"`+strings.Repeat("x", 60)+`"`, 1)))
	}
	if decided := commit(t, large); len(decided) != 4 {
		t.Fatal(decided)
	}
}

func TestWhatIsAbortedLeavesNothing(t *testing.T) {
	t.Parallel()
	s := lake(t)
	o := objects(t, s, spec.ObjectSink{Prefix: "p/{{day}}/", Roll: spec.Roll{Rows: 1}}, false)
	w := o.Begin("t")
	write(t, w, "", rows(t, orders, `{"id":1,"day":"a"}`, `{"id":2,"day":"a"}`, `{"id":3,"day":"b"}`))
	w.Abort(t.Context())
	w.Abort(t.Context())
	left, err := s.StagedObjects(t.Context(), "", time.Now().Add(time.Hour))
	if err != nil || len(left) != 0 || len(content(t, s)) != 0 {
		t.Fatal(left, err)
	}
}

func TestWhatWasDecidedIsPublishedByAnotherAfterACrash(t *testing.T) {
	t.Parallel()
	s := lake(t)
	what := spec.ObjectSink{Prefix: "p/{{day}}/", Format: "ndjson"}
	w := objects(t, s, what, false).Begin("t")
	write(t, w, "", rows(t, orders, `{"id":1,"day":"a"}`, `{"id":2,"day":"b"}`))
	var kept []byte
	crash := errors.New("it is stored, and the answer is lost")
	err := w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) (err error) {
		kept, err = json.Marshal(list)
		return errors.Join(err, crash)
	})
	if !errors.Is(err, crash) {
		t.Fatal(err)
	}
	w.Abort(t.Context())
	if all := content(t, s); len(all) != 0 {
		t.Fatal(keys(all))
	}
	var decided []stage.Object
	if err := json.Unmarshal(kept, &decided); err != nil {
		t.Fatal(err)
	}
	other := objects(t, s, what, false)
	for range 2 { // once more has no effect
		if err := other.Publish(t.Context(), decided); err != nil {
			t.Fatal(err)
		}
	}
	if all := content(t, s); !slices.Equal(keys(all), []string{"p/a/t-0.ndjson", "p/b/t-1.ndjson"}) {
		t.Fatal(keys(all))
	}
}

func TestChangesBecomeALog(t *testing.T) {
	t.Parallel()
	for _, f := range []string{"parquet", "ndjson", "csv"} {
		t.Run(f, func(t *testing.T) {
			t.Parallel()
			s := lake(t)
			w := objects(t, s, spec.ObjectSink{Prefix: "log/", Format: f}, true).Begin("A1")
			b := rows(t, orders, `{"id":1,"day":"a","total":"1.00"}`, `{"id":2}`, `{"id":3,"day":"b","total":"2.00"}`, `{"id":4}`, `{}`)
			b.Changes = []record.Change{
				{Op: cdc.Insert, Pos: "A1", At: 1790000000000000}, {Op: cdc.Delete, Pos: "A2", Implied: true},
				{Op: cdc.Update, Pos: "A2", At: 1790000000000001}, {Op: cdc.Delete, Pos: "A3"}, {Op: cdc.Truncate, Pos: "A4"},
			}
			write(t, w, "", b)
			decided := commit(t, w)
			if len(decided) != 1 || decided[0].Rows != 4 || decided[0].First != "A1" || decided[0].Last != "A4" {
				t.Fatal(decided)
			}
			got := read(t, s, decided[0].Key)
			want := []string{
				`{"_op":"insert","_pos":"A1","_ts":"2026-09-21T14:13:20.000000Z","id":1,"day":"a","total":"1.00"}`,
				`{"_op":"update","_pos":"A2","_ts":"2026-09-21T14:13:20.000001Z","id":3,"day":"b","total":"2.00"}`,
				`{"_op":"delete","_pos":"A3","_ts":null,"id":4,"day":null,"total":null}`,
				`{"_op":"truncate","_pos":"A4","_ts":null,"id":null,"day":null,"total":null}`,
			}
			if f == "csv" { // where numbers are told by their looks
				for i := range want {
					want[i] = strings.NewReplacer(`"1.00"`, `1`, `"2.00"`, `2`).Replace(want[i])
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s", strings.Join(got, "\n"))
			}
		})
	}
}

func TestAnotherSchemaBeginsAnotherObject(t *testing.T) {
	t.Parallel()
	s := lake(t)
	w := objects(t, s, spec.ObjectSink{Prefix: "p/"}, false).Begin("t")
	write(t, w, "", rows(t, orders, `{"id":1,"day":"a"}`))
	wider := &record.Schema{Columns: append(slices.Clone(orders.Columns), record.Column{Name: "note", Type: record.TypeText, Nullable: true})}
	write(t, w, "", rows(t, wider, `{"id":2,"note":"n"}`))
	write(t, w, "", rows(t, wider, `{"id":3,"note":"m"}`))
	decided := commit(t, w)
	if len(decided) != 2 || !decided[0].Schema.Equal(orders) || !decided[1].Schema.Equal(wider) || decided[1].Rows != 2 {
		t.Fatal(decided)
	}
	if got := read(t, s, decided[1].Key); got[0] != `{"id":2,"day":null,"total":null,"note":"n"}` {
		t.Fatal(got)
	}
}

func TestOfManyPartitionsTheOldestAreEnded(t *testing.T) {
	t.Parallel()
	s := lake(t)
	w := objects(t, s, spec.ObjectSink{Prefix: "p/{{day}}/", Format: "ndjson"}, false).Begin("t")
	var lines []string
	for i := range 300 {
		lines = append(lines, fmt.Sprintf(`{"id":%d,"day":"%d","total":null}`, i, i))
	}
	write(t, w, "", rows(t, orders, lines...))
	write(t, w, "", rows(t, orders, lines[0], lines[299]))
	staged, err := s.StagedObjects(t.Context(), "", time.Now().Add(time.Hour))
	if err != nil || len(staged) != 301 {
		t.Fatal(len(staged), err)
	}
	decided := commit(t, w)
	if len(decided) != 301 { // the first one's second row has an object of its own
		t.Fatal(len(decided))
	}
	all := content(t, s)
	if len(all) != 301 || len(all["p/299/t-299.ndjson"]) != 2 || len(all["p/0/t-300.ndjson"]) != 1 {
		t.Fatal(len(all))
	}
}

func TestRowsThatCannotBeWrittenAreRejected(t *testing.T) {
	t.Parallel()
	s := lake(t)
	o := objects(t, s, spec.ObjectSink{Prefix: "p/{{day}}/"}, false)
	w := o.Begin("t")
	b := rows(t, orders, `{"id":1,"day":"`+strings.Repeat("x", 2000)+`"}`, `{"id":2,"day":"a","total":"NaN"}`, `{"id":3,"day":"b"}`)
	rejected, err := w.Write(t.Context(), "", b)
	if err != nil || len(rejected) != 2 || rejected[0].Row != 0 || rejected[1].Row != 1 || rejected[1].Column != "total" {
		t.Fatal(rejected, err)
	}
	if decided := commit(t, w); len(decided) != 1 || decided[0].Rows != 1 || !strings.HasPrefix(decided[0].Key, "p/b/") {
		t.Fatal(decided)
	}
	if left, err := s.StagedObjects(t.Context(), "", time.Now().Add(time.Hour)); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
}

func TestACommitWithoutRowsIsDecidedToo(t *testing.T) {
	t.Parallel()
	w := objects(t, lake(t), spec.ObjectSink{Prefix: "p/"}, false).Begin("t")
	asked := 0
	err := w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
		asked += 1 + len(list)
		return nil
	})
	if err != nil || asked != 1 {
		t.Fatal(asked, err)
	}
}

func TestAManifestNamesWhatWasPublished(t *testing.T) {
	t.Parallel()
	s := lake(t)
	o := objects(t, s, spec.ObjectSink{Prefix: "orders/day={{day}}/", Format: "ndjson"}, false)
	w := o.Begin("t")
	write(t, w, "", rows(t, orders, `{"id":1,"day":"a"}`, `{"id":2,"day":"b"}`, `{"id":3,"day":"b"}`))
	decided := commit(t, w)
	want, err := o.Manifest(t.Context(), "batch", decided, orders)
	if err != nil {
		t.Fatal(err)
	}
	body, err := s.ReadObject(t.Context(), "orders/_manifest/run1-batch.json", driver.ObjectRead{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var m sink.Manifest
	if err := json.NewDecoder(body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	if m.Pipeline != "orders-to-lake" || m.Run != "run1" || m.Commit != "batch" || m.Rows != 3 || m.Bytes != want.Bytes ||
		len(m.Objects) != 2 || m.Objects[1].Rows != 2 || !m.Schema.Equal(orders) {
		t.Fatalf("%+v", m)
	}
}

func TestWhatCannotBeWrittenIsSaidBefore(t *testing.T) {
	t.Parallel()
	s := lake(t)
	logged := &record.Schema{Columns: []record.Column{{Name: "_op", Type: record.TypeText}}}
	for name, err := range map[string]error{
		"a column that is not there": objects(t, s, spec.ObjectSink{Prefix: "{{dya}}/"}, false).Check(orders),
		"a column of the log":        objects(t, s, spec.ObjectSink{Prefix: "p/"}, true).Check(logged),
		"no columns":                 objects(t, s, spec.ObjectSink{Prefix: "p/"}, false).Check(&record.Schema{}),
	} {
		if athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := objects(t, s, spec.ObjectSink{Prefix: "{{day}}/"}, true).Check(orders); err != nil {
		t.Error(err)
	}
	if _, err := sink.NewObjects(s, spec.ObjectSink{Prefix: "p/", Format: "xml"}, "p", "r", false); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Error(err)
	}
}
