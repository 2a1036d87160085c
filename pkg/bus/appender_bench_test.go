package bus_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

// BenchmarkAppend stores groups of messages of a size, two of them under way at
// a time, every one synced.
func BenchmarkAppend(b *testing.B) {
	for _, group := range []struct{ n, size int }{{1, 500}, {8, 500}, {16, 500}, {64, 500}, {1000, 500}, {8, 8 << 10}, {64, 8 << 10}, {4, 250 << 10}, {16, 250 << 10}} {
		b.Run(fmt.Sprintf("%dx%dB", group.n, group.size), func(b *testing.B) {
			bb := bustest.Start(b)
			if _, err := bb.JetStream().CreateStream(b.Context(), bus.CDCConfig("shop", 0, -1, 1)); err != nil {
				b.Fatal(err)
			}
			a, err := bus.NewAppender(bb.Conn(), bus.CDCStream("shop"), 0)
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			data := make([]byte, group.size)
			for i := range data {
				data[i] = "0123456789abcdef{}\":,"[i*7919%21]
			}
			var under []*bus.Appended
			b.SetBytes(int64(group.n * group.size))
			for b.Loop() {
				msgs := make([]*nats.Msg, group.n)
				for i := range msgs {
					msgs[i] = &nats.Msg{Subject: bus.CDC("shop", "public", "t"), Header: nats.Header{"Ath-Pos": {"x"}}, Data: data}
				}
				g, err := a.Append(b.Context(), msgs)
				if err != nil {
					b.Fatal(err)
				}
				if under = append(under, g); len(under) == 2 {
					if err := a.Wait(context.Background(), under[0]); err != nil {
						b.Fatal(err)
					}
					under = under[1:]
				}
			}
			b.ReportMetric(float64(group.n*b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}
