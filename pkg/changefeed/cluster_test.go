package changefeed_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
)

// TestReadersOfACluster: messages are asked for of any replica, of which one lags
// behind, or is gone.
func TestReadersOfACluster(t *testing.T) {
	t.Parallel()
	c := bustest.StartCluster(t, 3)
	w := &world{t: t, bus: c.Bus(3)}
	w.store, w.feeds = changefeedtest.Store(t, w.bus)
	w.feeds.KeepLittle()
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	var all []cdc.Change
	for i := range 300 {
		all = append(all, s.Change(cdc.Insert, "orders", i, ""))
	}
	want := positions(all)
	// read comes again where the bus is away.
	read := func(from string, n int) (got []cdc.Position) {
		for len(got) < n {
			r, err := w.feeds.Open(t.Context(), "shop", from, nil)
			for err == nil && len(got) < n {
				moved := r.Moved()
				var b changefeed.Batch
				if b, err = r.Take(t.Context(), n-len(got)); err != nil {
					break
				}
				got, from = append(got, of(t, b)...), string(b.Cursor)
				if len(b.Lines) == 0 {
					select {
					case <-moved:
					case <-time.After(time.Second):
					}
				}
			}
			if r != nil {
				r.Close()
			}
			if err != nil && code(err) != athena.CodeBusUnavailable {
				t.Errorf("behind %s: %v", from, err)
				return got
			}
		}
		return got
	}
	var reading sync.WaitGroup
	half := make(chan struct{}, 4)
	for range 4 {
		reading.Go(func() {
			got := read("earliest", 150)
			half <- struct{}{}
			if got = append(got, read(string(got[len(got)-1]), 150)...); !slices.Equal(got, want) {
				t.Error("a reader did not get every change once and in order")
			}
		})
	}
	for i := 0; i < 150; i += 3 {
		s.Write(2, all[i:i+3]...)
	}
	for range 4 {
		<-half
	}
	s.Write(1, all[150:]...)
	c.Stop(1)
	reading.Wait()
}
