package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/system"
)

// serve runs a server until stop, which returns what Run returned.
func serve(t *testing.T, s api.Server, bounds middleware.Bounds, routes func(gin.IRouter)) (addr string, stop context.CancelFunc, done <-chan error) {
	t.Helper()
	about, err := system.New(system.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Handler, err = api.New(api.Config{Keys: middleware.Open(), Bounds: bounds, Public: []api.Family{about, family(routes)}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, ln) }()
	return ln.Addr().String(), cancel, ended
}

func TestAServerStopsInOrder(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, 2), make(chan struct{})
	addr, stop, done := serve(t, api.Server{Linger: 300 * time.Millisecond, Grace: 10 * time.Second}, middleware.Bounds{}, func(r gin.IRouter) {
		r.GET("/poll", func(c *gin.Context) {
			entered <- struct{}{}
			select {
			case <-api.Draining(c):
				envelope.OK(c, "told to end", nil, envelope.Meta{})
			case <-time.After(10 * time.Second):
				envelope.OK(c, "never told", nil, envelope.Meta{})
			}
		})
		r.GET("/work", func(c *gin.Context) {
			entered <- struct{}{}
			<-release
			if c.Err() != nil { // ContextWithFallback: the request's own
				envelope.Fail(c, c.Err())
				return
			}
			envelope.OK(c, "finished", nil, envelope.Meta{})
		})
	})
	get := func(path string) chan string {
		out := make(chan string, 1)
		go func() {
			resp, err := http.Get("http://" + addr + path)
			if err != nil {
				out <- err.Error()
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			out <- fmt.Sprint(resp.StatusCode, " ", string(body), err)
		}()
		return out
	}
	if got := <-get("/ready"); !strings.HasPrefix(got, "200") {
		t.Fatalf("before the stop: %s", got)
	}
	poll, work := get("/poll"), get("/work")
	<-entered
	<-entered
	stop()
	if got := <-poll; !strings.Contains(got, "told to end") {
		t.Errorf("the long poll got %s", got)
	}
	if got := <-get("/ready"); !strings.HasPrefix(got, "503") || !strings.Contains(got, "the process is stopping") {
		t.Errorf("during the stop, readiness was %s", got)
	}
	select {
	case err := <-done:
		t.Fatalf("the server ended with a request under way: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("the listener was still open after Linger")
	}
	close(release)
	if got := <-work; !strings.Contains(got, "finished") {
		t.Errorf("the request under way got %s", got)
	}
	if err := <-done; err != nil {
		t.Errorf("a clean stop ended with %v", err)
	}
}

func TestAServerCutsOffWhatOutlivesItsGrace(t *testing.T) {
	t.Parallel()
	entered, cut := make(chan struct{}), make(chan struct{})
	addr, stop, done := serve(t, api.Server{Grace: 200 * time.Millisecond}, middleware.Bounds{}, func(r gin.IRouter) {
		r.GET("/stuck", func(c *gin.Context) {
			close(entered)
			<-c.Request.Context().Done()
			close(cut)
		})
	})
	go func() {
		if resp, err := http.Get("http://" + addr + "/stuck"); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	stop()
	if err := <-done; err == nil {
		t.Error("the server says that it stopped cleanly")
	}
	select {
	case <-cut:
	case <-time.After(5 * time.Second):
		t.Error("the request's context was not cancelled")
	}
}

func TestASlowPeerDoesNotHoldTheServer(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	read := make(chan error, 1)
	bounds := middleware.Bounds{ReadBody: 200 * time.Millisecond, Stall: 200 * time.Millisecond}
	addr, _, _ := serve(t, api.Server{ReadHeaderTimeout: 200 * time.Millisecond, MaxHeaderBytes: 4096}, bounds, func(r gin.IRouter) {
		r.POST("/body", func(c *gin.Context) {
			_, err := envelope.Body(c)
			read <- err
			envelope.Fail(c, err)
		})
		r.GET("/endless", func(c *gin.Context) {
			chunk := make([]byte, 1<<20)
			for {
				if _, err := c.Writer.Write(chunk); err != nil {
					ended <- err
					return
				}
			}
		})
		r.POST("/quiet", func(c *gin.Context) {
			if _, err := envelope.Body(c); err != nil {
				envelope.Fail(c, err)
				return
			}
			select { // longer than any deadline above
			case <-time.After(600 * time.Millisecond):
				envelope.OK(c, "still here", nil, envelope.Meta{})
			case <-c.Done():
				envelope.Fail(c, c.Err())
			}
		})
	})
	dial := func(request string) net.Conn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	within := func(what string, ch <-chan error) {
		t.Helper()
		select {
		case err := <-ch:
			if err == nil {
				t.Errorf("%s ended well", what)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s held the handler", what)
		}
	}
	dial("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
	within("a body that does not come", read)
	dial("GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
	within("a reader who does not read", ended)

	conn := dial("GET /health HTTP/1.1\r\nHost: ")
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("a header that does not come: %v", err)
	}
	conn = dial("GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header too large: %v, %v", resp, err)
	}

	// A deadline of the body must not end the wait that follows.
	resp, err := http.Post("http://"+addr+"/quiet", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Errorf("a quiet request got %d %s", resp.StatusCode, body)
	}
}

// TestAQuietStreamOverHTTP2Lives: a deadline left on a stream of HTTP/2 would
// end it by itself.
func TestAQuietStreamOverHTTP2Lives(t *testing.T) {
	t.Parallel()
	certified := httptest.NewUnstartedServer(nil)
	certified.EnableHTTP2 = true
	certified.StartTLS()
	t.Cleanup(certified.Close)
	server := api.Server{TLS: &tls.Config{Certificates: certified.TLS.Certificates}}
	bounds := middleware.Bounds{ReadBody: 100 * time.Millisecond, Stall: 100 * time.Millisecond}
	addr, stop, done := serve(t, server, bounds, func(r gin.IRouter) {
		r.POST("/stream", func(c *gin.Context) {
			if _, err := envelope.Body(c); err != nil {
				envelope.Fail(c, err)
				return
			}
			for range 3 {
				if _, err := c.Writer.WriteString("tick "); err != nil {
					return
				}
				c.Writer.Flush()
				time.Sleep(250 * time.Millisecond)
			}
		})
	})
	resp, err := certified.Client().Post("https://"+addr+"/stream", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || err != nil || string(body) != "tick tick tick " {
		t.Errorf("over %s got %q, %v", resp.Proto, body, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
