package bus_test

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

// BenchmarkPublish measures synced submits: messages a second, and how long the
// slowest percent took.
func BenchmarkPublish(b *testing.B) {
	for _, callers := range []int{1, 4, 8, 16, 32, 64, 256, 1000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			bs := bustest.Start(b)
			p := bus.NewPublisher(bs, bus.StreamJobs)
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for i := c; i < b.N; i += callers {
						m := submit(strconv.Itoa(i))
						start := time.Now()
						if _, err := p.Publish(b.Context(), m); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(start)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkBatch measures atomic batches by size; batchLeast rests on it.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{2, 8, 16, 64, 256, 1000} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			bs := bustest.Start(b)
			p := bus.NewPublisher(bs, bus.StreamJobs)
			batch := make([]*nats.Msg, size)
			for i := range b.N {
				for k := range batch {
					batch[k] = submit(fmt.Sprintf("%d-%d", i, k))
				}
				if _, err := p.PublishAtomic(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// submit is a job of a usual size.
func submit(id string) *nats.Msg {
	m := once(job(id), id)
	m.Data = make([]byte, 400)
	m.Header.Set(jetstream.MsgTTLHeader, "3600s")
	return m
}
