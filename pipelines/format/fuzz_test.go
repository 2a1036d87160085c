package format_test

import (
	"encoding/json"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// fuzz holds that a file of any bytes ends in rows that are JSON, or in an error
// that is the caller's to read.
func fuzz(t *testing.T, name string, data []byte, o format.ReadOptions) {
	rows, bad, _, err := read(name, "none", data, o, driver.BatchSize{Rows: 100})
	if err != nil && athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !json.Valid([]byte(row)) {
			t.Fatalf("%q", row)
		}
	}
	for _, r := range bad {
		if r.Line < 1 || r.Reason == "" || len(r.Row) > 64<<10 {
			t.Fatalf("%+v", r)
		}
	}
}

func FuzzNDJSON(f *testing.F) {
	f.Add([]byte("{\"a\":1,\"b\":[1,{\"c\":null}]}\r\n\n{\"a\":1.5,\"d\":\"x\"}\nnonsense\n{\"a\":12345678901234567890}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzz(t, format.NDJSON, data, format.ReadOptions{})
		fuzz(t, format.NDJSON, data, format.ReadOptions{Schema: &record.Schema{Columns: []record.Column{{Name: "a", Type: record.TypeDecimal}}}, Evolve: true})
	})
}

func FuzzCSV(f *testing.F) {
	f.Add([]byte("a,\"b\"\"c\"\r\n1,\"x\ny\"\n5\" pipe,\n\"\",true\n1,2,3\n\"a"))
	f.Add([]byte("a\n\n1\n"))
	f.Fuzz(func(t *testing.T, data []byte) { fuzz(t, format.CSV, data, format.ReadOptions{}) })
}

func FuzzParquet(f *testing.F) {
	b := orderRows(20)
	f.Add(file(f, "parquet", "none", orders, b))
	f.Add(file(f, "parquet", "snappy", orders, b, b))
	f.Add(nested(f))
	f.Fuzz(func(t *testing.T, data []byte) { fuzz(t, format.Parquet, data, format.ReadOptions{}) })
}
