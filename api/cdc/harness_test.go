package cdc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/api/cdc"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	model "github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a served API with a client "shop", and a key that may do everything
// with changes.
type world struct {
	*apitest.World
	t   testing.TB
	key string
}

// start serves the API. change may alter the family's configuration.
func start(t testing.TB, change func(*cdc.Config)) *world {
	t.Helper()
	w := apitest.Start(t, func(w *apitest.World, cfg *api.Config) {
		c := w.CDC()
		c.Webhooks = &webhook.Guard{}
		if change != nil {
			change(&c)
		}
		for i, f := range cfg.Families {
			if _, ok := f.(*cdc.Family); ok {
				cfg.Families[i] = cdc.New(c)
			}
		}
	})
	w.Client(t, "shop", nil)
	return &world{w, t, w.Key(t, []string{"cdc"})}
}

// do makes a request with the key of the world.
func (w *world) do(method, path, body string, headers ...string) *apitest.Answer {
	w.t.Helper()
	return w.Do(w.t, w.key, method, path, body, headers...)
}

// decode reads the data of an answer.
func decode[T any](t testing.TB, a *apitest.Answer) (v T) {
	t.Helper()
	a.Decode(t, &v)
	return v
}

// stream makes the stream of shop.
func (w *world) stream() *changefeedtest.Stream {
	w.t.Helper()
	return changefeedtest.Make(w.t, w.Bus, "shop", 1000)
}

// An event is one of the events of a stream, as a browser would have it.
type event struct {
	name, id, data string
	bare           bool // a block without data, which is no event to a page
}

func (e event) change(t testing.TB) (c model.Change) {
	t.Helper()
	if e.name != "change" {
		t.Fatalf("got %+v, want a change", e)
	}
	if err := model.Decode([]byte(e.data), &c); err != nil {
		t.Fatalf("%v: %s", err, e.data)
	}
	if string(c.Pos) != e.id {
		t.Fatalf("the event %s has the change at %s", e.id, c.Pos)
	}
	return c
}

// failure is the code of an event error.
func (e event) failure(t testing.TB) (code athena.Code, cursor string) {
	t.Helper()
	var body struct {
		Status, Message, Error string
		Code                   athena.Code
		Details                map[string]any
	}
	if e.name != "error" {
		t.Fatalf("got %+v, want an error", e)
	}
	if err := json.Unmarshal([]byte(e.data), &body); err != nil || body.Status != "error" || body.Message == "" || body.Error != body.Message {
		t.Fatalf("%v: %s", err, e.data)
	}
	cursor, _ = body.Details["cursor"].(string)
	return body.Code, cursor
}

// reader reads events.
type reader struct {
	t      testing.TB
	body   io.ReadCloser
	lines  *bufio.Reader
	lastID string
	cancel context.CancelFunc
}

// open opens a stream, which must be answered with 200.
func (w *world) open(key, query string, headers ...string) *reader {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL+"/cdc/shop/stream?"+query, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := w.HTTP.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	r := newReader(w.t, resp.Body, cancel)
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		raw, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("%s: %d %s", query, resp.StatusCode, raw)
	}
	return r
}

func newReader(t testing.TB, body io.ReadCloser, cancel context.CancelFunc) *reader {
	r := &reader{t: t, body: body, lines: bufio.NewReader(body), cancel: cancel}
	t.Cleanup(r.close)
	return r
}

func (r *reader) close() {
	r.cancel()
	r.body.Close()
}

// block returns the next block that has an id or data; false at the end. What
// takes longer than 20 s fails the test.
func (r *reader) block() (e event, ok bool) {
	r.t.Helper()
	late := time.AfterFunc(20*time.Second, r.cancel)
	defer late.Stop()
	e.bare = true
	has := false
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			return event{}, false
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			if has {
				e.id = r.lastID
				return e, true
			}
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			r.lastID, has = value, true
		case "event":
			e.name = value
		case "data":
			e.data, e.bare, has = value, false, true
		}
	}
}

// next returns the next event.
func (r *reader) next() event {
	r.t.Helper()
	for {
		e, ok := r.block()
		if !ok {
			r.t.Fatal("the stream ended")
		}
		if !e.bare {
			return e
		}
	}
}

// changes returns the positions of the next n changes.
func (r *reader) changes(n int) (list []model.Position) {
	r.t.Helper()
	for range n {
		list = append(list, r.next().change(r.t).Pos)
	}
	return list
}

// ends reads to the end of the stream, at which no event may come.
func (r *reader) ends() {
	r.t.Helper()
	for {
		e, ok := r.block()
		if !ok {
			return
		}
		if !e.bare {
			r.t.Errorf("behind the end came %+v", e)
		}
	}
}

// serve serves an engine by a server that can be told to stop.
func (w *world) serve() (url string, stop func() error) {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&api.Server{Handler: w.Engine}).Run(ctx, ln) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	w.t.Cleanup(func() { _ = stop() })
	return "http://" + ln.Addr().String(), stop
}

var _ = openapitest.Walk
