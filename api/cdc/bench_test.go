package cdc_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	model "github.com/athena-pipelines/athena/pkg/cdc"
)

// BenchmarkIdleSubscribers holds a thousand streams open on which nothing comes,
// and says how much memory of the process each of them takes: goroutines,
// buffers, the request, everything, with the other ends of the connections among
// it, which are bare sockets.
func BenchmarkIdleSubscribers(b *testing.B) {
	const n = 1000
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	for kind, headers := range map[string][]string{"events": nil, "websocket": upgrade} {
		b.Run(kind, func(b *testing.B) {
			w := start(b, nil)
			s := w.stream()
			s.Insert("orders", 1, "")
			for b.Loop() {
				before := resident(b)
				conns := make([]net.Conn, n)
				for i := range conns {
					conns[i] = dial(b, w.URL)
					request(b, conns[i], w.key, "/cdc/shop/stream?tables=public.*", headers...)
				}
				for _, c := range conns {
					expect(b, c, "0000000003F8.00000001")
				}
				c := s.Insert("orders", 2, "") // each has sent something
				for _, conn := range conns {
					expect(b, conn, string(c.Pos))
				}
				grown := resident(b) - before
				b.ReportMetric(float64(grown)/n/1024, "KiB/subscriber")
				for _, c := range conns {
					c.Close()
				}
				waitFor(b, "the streams to end", func() bool { return strings.Count(w.Log.String(), "route=/cdc/:client/stream") >= n })
			}
		})
	}
}

// expect reads until the text has come.
func expect(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 512)
	for !bytes.Contains(got, []byte(text)) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v behind %q", err, got)
		}
		got = append(got, buf[:n]...)
	}
}

// resident is the memory of the process that is in use, in bytes.
func resident(t testing.TB) int64 {
	t.Helper()
	time.Sleep(time.Second)
	debug.FreeOSMemory()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("this system does not tell the resident memory of a process")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// BenchmarkStream reads changes of 200 bytes as fast as they come.
func BenchmarkStream(b *testing.B) {
	for _, where := range []string{"", "after.n >= 0"} {
		b.Run("where="+strings.ReplaceAll(where, " ", ""), func(b *testing.B) {
			w := start(b, nil)
			s := w.stream()
			const n = 20_000
			var all []model.Change
			for i := range n {
				all = append(all, s.Change(model.Insert, "orders", i, fmt.Sprintf(`{"id":%d,"n":%d,"note":%q}`, i, i, strings.Repeat("x", 60))))
			}
			s.Write(512, all...)
			b.ResetTimer()
			for b.Loop() {
				conn := dial(b, w.URL)
				request(b, conn, w.key, "/cdc/shop/stream?from=earliest&where="+strings.ReplaceAll(where, " ", "%20"))
				r := bufio.NewReaderSize(conn, 64<<10)
				last := []byte("id: " + string(all[n-1].Pos))
				for {
					line, err := r.ReadSlice('\n')
					if err != nil && err != io.EOF {
						b.Fatal(err)
					}
					if bytes.HasPrefix(line, last) {
						break
					}
				}
				conn.Close()
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}
