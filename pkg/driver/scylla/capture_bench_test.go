package scylla_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// count takes changes and drops them.
type count struct {
	stream driver.ChangeStream
	left   int

	first, last time.Time
}

func (c *count) Change(_ context.Context, ch *cdc.Change) error {
	if c.first.IsZero() {
		c.first = time.Now()
	}
	if ch.Op != cdc.Schema {
		c.left--
	}
	return nil
}

func (c *count) Reject(context.Context, driver.Rejected) error { return nil }
func (c *count) Pause(context.Context) error                   { return nil }

func (c *count) Commit(_ context.Context, mark string) error {
	c.stream.Confirm(mark)
	if c.left <= 0 {
		c.last = time.Now()
		return errStop
	}
	return nil
}

// raw takes a column as it is, and looks at nothing.
type raw struct{}

func (*raw) UnmarshalCQL(gocql.TypeInfo, []byte) error { return nil }

// BenchmarkDoubleLog reads a log of changes of one row each to nowhere: by the
// stream, and by gocql alone, all streams at once with the same pages. The double
// runs in the same process, and has a share in both.
func BenchmarkDoubleLog(b *testing.B) {
	const rows = 100_000
	c := scyllatest.Start(b, scyllatest.NoGeneration())
	f := fixtureOf(b, c, "t")
	f.setup.Confidence = time.Second
	start := f.start()
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := w; i < rows; i += 400 {
				batch := f.session.Batch(gocql.UnloggedBatch)
				for k := 0; k < 400 && i+k < rows; k += 4 {
					batch.Query(`UPDATE ks.t SET v = ? WHERE pk = ? AND ck = ?`, i, i+k, 1)
				}
				if err := batch.Exec(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	writers.Wait()
	time.Sleep(1500 * time.Millisecond)
	b.Run("stream", func(b *testing.B) {
		var read time.Duration // without the opening and the end
		for range b.N {
			p := &tape{t: b}
			stream, err := f.backend.OpenChanges(b.Context(), p.config(f.setup, start))
			if err != nil {
				b.Fatal(err)
			}
			sink := &count{stream: stream, left: rows}
			if err := stream.Run(b.Context(), sink); err != errStop {
				b.Fatal(err)
			}
			read += sink.last.Sub(sink.first)
			_ = stream.Close(b.Context())
		}
		b.ReportMetric(float64(rows*b.N)/read.Seconds(), "changes/s")
	})
	b.Run("gocql", func(b *testing.B) {
		f.session.SetPageSize(5000)
		f.session.SetPrefetch(0)
		for range b.N {
			var all sync.WaitGroup
			for i := range 2 {
				all.Go(func() {
					iter := f.session.Query(`SELECT * FROM ks.t_scylla_cdc_log WHERE "cdc$stream_id" IN (?, ?)`, f.streams[2*i], f.streams[2*i+1]).Iter()
					dest := make([]any, len(iter.Columns()))
					for i := range dest {
						dest[i] = &raw{}
					}
					for iter.Scan(dest...) {
					}
					if err := iter.Close(); err != nil {
						b.Error(err)
					}
				})
			}
			all.Wait()
		}
		b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "changes/s")
	})
}
