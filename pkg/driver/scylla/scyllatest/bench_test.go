package scyllatest_test

import (
	"testing"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// BenchmarkReadLog reads the rows of a log with gocql: how much of a benchmark's time
// the double and the driver take.
func BenchmarkReadLog(b *testing.B) {
	c := scyllatest.Start(b, scyllatest.Generation(1e12, 1, 1))
	c.MustExec(b, newKeyspace, `CREATE TABLE ks.t (pk int, ck int, v text, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`)
	s := connect(b, c, func(cl *gocql.ClusterConfig) { cl.PageSize = 5000 })
	const rows = 20000
	for i := 0; i < rows; i += 100 {
		batch := s.Batch(gocql.UnloggedBatch)
		for j := range 100 {
			batch.Query(`INSERT INTO ks.t (pk, ck, v) VALUES (?, ?, 'a value of some length')`, i/100, j)
		}
		if err := s.ExecuteBatch(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for b.Loop() {
		iter := s.Query(`SELECT * FROM ks.t_scylla_cdc_log`).Iter()
		row, err := iter.RowData()
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for iter.Scan(row.Values...) {
			n++
		}
		if err := iter.Close(); err != nil || n != rows {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
