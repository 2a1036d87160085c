package sink_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/record"
)

// However rows are divided into batches, partitions and objects: each is in one
// object of its partition, in the order in which the partition's rows came, no
// object has more rows than it may, and what is counted is there.
func TestEveryRowIsInOneObjectOfItsPartitionInOrder(t *testing.T) {
	t.Parallel()
	store, err := s3.Open(t.Context(), s3test.Fake(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close(context.Background()) })
	wider := &record.Schema{Columns: append(slices.Clone(orders.Columns), record.Column{Name: "note", Type: record.TypeText, Nullable: true})}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		what := spec.ObjectSink{
			Prefix: fmt.Sprintf("run%d/day={{day}}/", run), Format: rapid.SampledFrom([]string{"ndjson", "parquet"}).Draw(rt, "format"),
			Roll: spec.Roll{Rows: rapid.Int64Range(1, 6).Draw(rt, "roll")},
		}
		o, err := sink.NewObjects(store, what, "p", "r", false)
		if err != nil {
			rt.Fatal(err)
		}
		w := o.Begin("t")
		want := map[string][]string{}
		id := 0
		for range rapid.IntRange(0, 4).Draw(rt, "batches") {
			s := rapid.SampledFrom([]*record.Schema{orders, orders, wider}).Draw(rt, "schema")
			b := record.New(s, 0)
			for range rapid.IntRange(0, 8).Draw(rt, "rows") {
				id++
				day := rapid.SampledFrom([]string{"a", "b", "c/d", ""}).Draw(rt, "day")
				if _, err := record.NewParser(s).Parse(b, fmt.Appendf(nil, `{"id":%d,"day":%q}`, id, day)); err != nil {
					rt.Fatal(err)
				}
				folder := strings.ReplaceAll(day, "/", "%2F")
				if day == "" {
					folder = "__empty__"
				}
				want[folder] = append(want[folder], fmt.Sprintf(`{"id":%d,`, id))
			}
			if rejected, err := w.Write(t.Context(), "", b); err != nil || rejected != nil {
				rt.Fatal(rejected, err)
			}
		}
		if n := w.Size().Rows; n != int64(id) {
			rt.Fatalf("%d rows were written, not %d", n, id)
		}
		var decided []stage.Object
		err = w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
			decided = list
			return nil
		})
		if err != nil {
			rt.Fatal(err)
		}
		got, names := map[string][]string{}, map[string]bool{}
		// Of one partition a later object has a higher number.
		slices.SortStableFunc(decided, func(a, b stage.Object) int { return number(a.Key) - number(b.Key) })
		for _, d := range decided {
			folder := strings.TrimPrefix(strings.Split(d.Key, "/")[1], "day=")
			lines := read(t, store, d.Key)
			if int64(len(lines)) != d.Rows || d.Rows > what.Roll.Rows || d.Rows == 0 || names[d.Key] {
				rt.Fatalf("%s has %d rows, %d were counted", d.Key, len(lines), d.Rows)
			}
			names[d.Key] = true
			for _, line := range lines {
				got[folder] = append(got[folder], line[:strings.IndexByte(line, ',')+1])
			}
		}
		for folder := range want {
			if !slices.Equal(got[folder], want[folder]) {
				rt.Fatalf("partition %s has %q, not %q", folder, got[folder], want[folder])
			}
		}
		if len(got) != len(want) {
			rt.Fatalf("partitions %q, not %q", keys(got), keys(want))
		}
	})
}

func number(key string) (n int) {
	name := key[strings.LastIndexByte(key, '/')+1:]
	_, _ = fmt.Sscanf(name, "t-%d.", &n)
	return n
}
