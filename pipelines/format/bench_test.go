package format_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

var orders = &record.Schema{Columns: []record.Column{
	{Name: "id", Type: record.TypeInt64},
	{Name: "customer_id", Type: record.TypeInt32, Nullable: true},
	{Name: "status", Type: record.TypeText, Nullable: true},
	{Name: "total", Type: record.DecimalOf(12, 2), Nullable: true},
	{Name: "weight", Type: record.TypeFloat64, Nullable: true},
	{Name: "paid", Type: record.TypeBool, Nullable: true},
	{Name: "ref", Type: record.TypeUUID, Nullable: true},
	{Name: "created_at", Type: record.TypeTimestampTZ, Nullable: true},
	{Name: "note", Type: record.TypeText, Nullable: true},
	{Name: "attributes", Type: record.TypeJSON, Nullable: true},
}, Key: []string{"id"}}

// orderRows has rows of 265 bytes, of words that do not repeat too much.
func orderRows(n int) *record.Batch {
	words := []string{"lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do", "eiusmod", "tempor"}
	states := []string{"new", "paid", "sent", "returned"}
	r := rand.New(rand.NewPCG(1, 2))
	b := record.New(orders, n)
	for i := range n {
		c := b.Columns
		c[0].AppendInt(int64(i + 1))
		c[1].AppendInt(r.Int64N(100000))
		c[2].AppendString(states[r.IntN(4)])
		c[3].AppendString(fmt.Sprintf("%d.%02d", r.IntN(10000), r.IntN(100)))
		c[4].AppendFloat(float64(r.IntN(100000)) / 16)
		c[5].AppendBool(r.IntN(2) == 0)
		c[6].AppendBytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, r.Uint64()), r.Uint64()))
		c[7].AppendInt(1790000000000000 + int64(i)*1000 + r.Int64N(1000))
		note := ""
		for len(note) < 120 {
			note += words[r.IntN(len(words))] + " "
		}
		c[8].AppendString(note)
		c[9].AppendString(fmt.Sprintf(`{"colour": "c%03d", "size": %d, "tags": ["a%d", "b%d"]}`, r.IntN(1000), r.IntN(50), r.IntN(100), r.IntN(100)))
		b.Done()
	}
	return b
}

func benchmarkWriter(b *testing.B, name, compression string) {
	batch := orderRows(8192)
	w, err := format.New(name, compression, io.Discard, orders, nil)
	if err != nil {
		b.Fatal(err)
	}
	rows := 0
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Write(batch, nil); err != nil {
			b.Fatal(err)
		}
		rows += batch.Rows()
	}
	size := w.Size()
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(size)/float64(rows), "B/row")
}

func BenchmarkWriters(b *testing.B) {
	for _, f := range [][2]string{{"parquet", "zstd"}, {"parquet", "snappy"}, {"parquet", "none"}, {"ndjson", "none"}, {"ndjson", "zstd"}, {"csv", "none"}, {"csv", "gzip"}} {
		b.Run(f[0]+"-"+f[1], func(b *testing.B) { benchmarkWriter(b, f[0], f[1]) })
	}
}

func BenchmarkReaders(b *testing.B) {
	for _, f := range [][2]string{{"parquet", "zstd"}, {"ndjson", "none"}, {"csv", "none"}} {
		b.Run(f[0]+"-"+f[1], func(b *testing.B) {
			batch := orderRows(8192)
			data := file(b, f[0], f[1], orders, batch, batch, batch, batch)
			rows := 0
			b.ReportAllocs()
			for b.Loop() {
				r, err := open(f[0], f[1], data, format.ReadOptions{Schema: orders})
				if err != nil {
					b.Fatal(err)
				}
				for {
					batch, err := r.Next(driver.BatchSize{})
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					rows += batch.Rows()
				}
				_ = r.Close()
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
