package cdc_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	model "github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
)

// large writes n changes of 200 KB: more than the buffers of a connection hold.
func large(s *changefeedtest.Stream, n int) (all []model.Change) {
	text := strings.Repeat("x", 200<<10)
	for i := range n {
		all = append(all, s.Change(model.Insert, "orders", i, fmt.Sprintf(`{"id":%d,"text":%q}`, i, text)))
	}
	s.Write(1, all...)
	return all
}

// dial connects with little room for what is not read.
func dial(t testing.TB, url string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	return conn
}

func request(t testing.TB, conn net.Conn, key, path string, headers ...string) {
	t.Helper()
	text := "GET " + path + " HTTP/1.1\r\nHost: " + conn.RemoteAddr().String() + "\r\nAuthorization: Bearer " + key + "\r\n"
	for _, h := range headers {
		text += h + "\r\n"
	}
	if _, err := conn.Write([]byte(text + "\r\n")); err != nil {
		t.Fatal(err)
	}
}

// answer begins to read what is on the connection.
func (w *world) answer(conn net.Conn) *reader {
	w.t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("got %d", resp.StatusCode)
	}
	return newReader(w.t, resp.Body, func() { conn.Close() })
}

// over is a client that makes its one request on the connection.
func over(conn net.Conn) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
}

func keyID(key string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(key, "ath_"), ".")
	return id
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
