package format_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pkg/driver"
)

type line struct {
	SKU    string    `parquet:"sku"`
	Amount uint32    `parquet:"amount"`
	Sent   time.Time `parquet:"sent,timestamp(microsecond)"`
}

type nestedRow struct {
	ID      uint64            `parquet:"id"`
	Lines   []line            `parquet:"lines,list"`
	Tags    []string          `parquet:"tags"`
	Labels  map[string]string `parquet:"labels"`
	Places  map[int32]float32 `parquet:"places"`
	Address *struct {
		City string  `parquet:"city"`
		Zip  *string `parquet:"zip,optional"`
	} `parquet:"address,optional"`
	Deep [][]int16 `parquet:"deep,list"`
}

// nested is a file of another writer.
func nested(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := parquet.NewGenericWriter[nestedRow](&out)
	zip := "10115"
	rows := []nestedRow{
		{ID: 1<<64 - 1, Lines: []line{{"a", 4294967295, time.UnixMicro(1790000000000001)}, {"b", 0, time.UnixMicro(0)}}, Tags: []string{"x", "y"},
			Labels: map[string]string{"k": "v\n"}, Places: map[int32]float32{-1: 0.5}},
		{},
	}
	rows[0].Address = &struct {
		City string  `parquet:"city"`
		Zip  *string `parquet:"zip,optional"`
	}{"Berlin", &zip}
	rows[0].Deep = [][]int16{{1, 2}, {}, {3}}
	if _, err := w.Write(rows); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestNestedColumnsBecomeJSON(t *testing.T) {
	t.Parallel()
	rows, bad, _, err := read(format.Parquet, "", nested(t), format.ReadOptions{}, driver.BatchSize{})
	want := []string{
		`{"id":"18446744073709551615","lines":[{"sku":"a","amount":4294967295,"sent":"2026-09-21T14:13:20.000001Z"},{"sku":"b","amount":0,"sent":"1970-01-01T00:00:00.000000Z"}],` +
			`"tags":["x","y"],"labels":{"k":"v\n"},"places":[{"key":-1,"value":0.5}],"address":{"city":"Berlin","zip":"10115"},"deep":[[1,2],[],[3]]}`,
		`{"id":"0","lines":[],"tags":[],"labels":{},"places":[],"address":null,"deep":[]}`,
	}
	if err != nil || bad != nil || !slices.Equal(rows, want) {
		t.Fatalf("%s %v %v", rows, bad, err)
	}
	rows, _, _, err = read(format.Parquet, "", nested(t), format.ReadOptions{Columns: []string{"deep", "id"}}, driver.BatchSize{})
	if err != nil || rows[0] != `{"deep":[[1,2],[],[3]],"id":"18446744073709551615"}` {
		t.Fatal(rows, err)
	}
}
