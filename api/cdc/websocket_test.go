package cdc_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/athena-pipelines/athena/api/cdc"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	model "github.com/athena-pipelines/athena/pkg/cdc"
)

// socket is a WebSocket that is read.
type socket struct {
	t    testing.TB
	conn *websocket.Conn
}

func (w *world) dial(key, query string, headers ...string) *socket {
	w.t.Helper()
	h := http.Header{}
	if key != "" {
		h.Set("Authorization", "Bearer "+key)
	}
	for _, text := range headers {
		name, value, _ := strings.Cut(text, ": ")
		h.Set(name, value)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, w.URL+"/cdc/shop/stream?"+query, &websocket.DialOptions{HTTPHeader: h})
	if err != nil {
		w.t.Fatalf("%s: %v, %v", query, err, resp)
	}
	conn.SetReadLimit(1 << 20)
	w.t.Cleanup(func() { _ = conn.CloseNow() })
	return &socket{w.t, conn}
}

// read returns the next frame.
func (s *socket) read() (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	kind, data, err := s.conn.Read(ctx)
	if err == nil && kind != websocket.MessageText {
		s.t.Errorf("a frame is of kind %s", kind)
	}
	return string(data), err
}

// frame is a change, or where the stream is.
type frame struct {
	Pos    model.Position `json:"pos"`
	Cursor model.Position `json:"cursor"`
	Op     string         `json:"op"`
}

func (s *socket) next() (f frame) {
	s.t.Helper()
	text, err := s.read()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	return f
}

func (s *socket) changes(n int) (list []model.Position) {
	s.t.Helper()
	for len(list) < n {
		if f := s.next(); f.Cursor == "" {
			list = append(list, f.Pos)
		}
	}
	return list
}

// closed reads up to the end and returns how it was closed.
func (s *socket) closed() (code websocket.StatusCode, reason string) {
	s.t.Helper()
	for {
		_, err := s.read()
		if err == nil {
			continue
		}
		var c websocket.CloseError
		if !errors.As(err, &c) {
			s.t.Fatalf("it was not closed, but ended with %v", err)
		}
		return c.Code, c.Reason
	}
}

func TestWebSockets(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *cdc.Config) { c.Heartbeat = 30 * time.Millisecond })
	st := w.stream()
	var all []model.Change
	for i := range 4 {
		all = append(all, st.Change(model.Insert, []string{"orders", "items"}[i%2], i, ""))
	}
	st.Write(10, all...)

	s := w.dial(w.key, "from=earliest")
	if f := s.next(); f.Cursor == "" || f.Cursor >= all[0].Pos {
		t.Errorf("the first frame is %+v", f)
	}
	if got := s.changes(4); !slices.Equal(got, positions(all...)) {
		t.Errorf("got %v", got)
	}
	c := st.Insert("orders", 5, "")
	if got := s.changes(1); got[0] != c.Pos {
		t.Errorf("got %v", got)
	}
	if s := w.dial(w.key, "", "Last-Event-ID: "+string(all[2].Pos)); !slices.Equal(s.changes(2), []model.Position{all[3].Pos, c.Pos}) {
		t.Error("it does not go on behind a cursor")
	}

	// Nothing that is wanted comes, and the cursor moves; pings are answered.
	s = w.dial(w.key, "tables=nothing")
	c = st.Insert("orders", 6, "")
	for s.next().Cursor != c.Pos {
	}
	reading := s.conn.CloseRead(t.Context())
	time.Sleep(100 * time.Millisecond)
	if err := s.conn.Ping(reading); err != nil {
		t.Errorf("a quiet socket is %v", err)
	}

	// An envelope that does not tell positions.
	s = w.dial(w.key, "envelope=debezium&from="+string(all[3].Pos))
	for s.next().Cursor != c.Pos {
	}

	// A browser's way to send a key; and one that offers what is not known.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, w.URL+"/cdc/shop/stream", &websocket.DialOptions{Subprotocols: []string{"athena", w.key}})
	if err != nil || conn.Subprotocol() != "athena" {
		t.Fatalf("got %v, %v", conn, err)
	}
	_ = conn.CloseNow()
}

func TestWebSocketsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.stream().Insert("orders", 1, "")
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	for name, test := range map[string]struct {
		headers []string
		query   string
		status  int
		code    athena.Code
	}{
		"another origin":  {append(upgrade, "Origin: https://evil.example"), "", 403, athena.CodeForbidden},
		"another version": {append(upgrade[:2:2], "Sec-WebSocket-Version: 8", upgrade[3]), "", 400, athena.CodeInvalidRequest},
		"no key of it":    {upgrade[:3:3], "", 400, athena.CodeInvalidRequest},
		"a wrong filter":  {upgrade, "?where=x", 400, athena.CodeInvalidRequest},
	} {
		a := w.do("GET", "/cdc/shop/stream"+test.query, "", test.headers...)
		if a.Code != test.status || a.Kind != test.code || a.Message == "" {
			t.Errorf("%s: %d %s", name, a.Code, a.Raw)
		}
	}
	if a := w.Do(t, "", "GET", "/cdc/shop/stream", "", upgrade...); a.Code != 401 {
		t.Errorf("a stranger: %d", a.Code)
	}
}

func TestHowWebSocketsAreClosed(t *testing.T) {
	t.Parallel()
	t.Run("by a frozen client", func(t *testing.T) {
		t.Parallel()
		w := start(t, nil)
		w.stream()
		s := w.dial(w.key, "from=earliest")
		s.next()
		lifecycle(athena.Frozen)(w, auth.Key{})
		if code, reason := s.closed(); code != websocket.StatusPolicyViolation || reason != string(athena.CodeClientFrozen) {
			t.Errorf("got %d %s", code, reason)
		}
	})
	t.Run("by a key that is revoked", func(t *testing.T) {
		t.Parallel()
		w := start(t, nil)
		w.stream()
		s := w.dial(w.key, "from=earliest")
		s.next()
		if _, err := w.Keys.Revoke(t.Context(), keyID(w.key), "test"); err != nil {
			t.Fatal(err)
		}
		if code, reason := s.closed(); code != websocket.StatusPolicyViolation || reason != string(athena.CodeUnauthenticated) {
			t.Errorf("got %d %s", code, reason)
		}
	})
	t.Run("by a server that stops", func(t *testing.T) {
		t.Parallel()
		w := start(t, nil)
		w.stream()
		url, stop := w.serve()
		w.URL = url
		s := w.dial(w.key, "from=earliest")
		s.next()
		go func() { _ = stop() }()
		if code, reason := s.closed(); code != websocket.StatusGoingAway || !strings.Contains(reason, "cursor=") {
			t.Errorf("got %d %s", code, reason)
		}
	})
	t.Run("by a reader that is slow", func(t *testing.T) {
		t.Parallel()
		w := start(t, func(c *cdc.Config) { c.Patience, c.Limit = time.Nanosecond, time.Hour })
		st := w.stream()
		c := st.Insert("orders", 1, "")
		st.Insert("orders", 2, "")
		s := w.dial(w.key, "from=earliest")
		if got := s.changes(1); got[0] != c.Pos {
			t.Errorf("got %v", got)
		}
		if code, reason := s.closed(); code != websocket.StatusTryAgainLater || reason != "timeout cursor="+string(c.Pos) {
			t.Errorf("got %d %s", code, reason)
		}
	})
	t.Run("by a reader that takes nothing", func(t *testing.T) {
		t.Parallel()
		w := start(t, func(c *cdc.Config) { c.Limit = 200 * time.Millisecond })
		large(w.stream(), 120)
		conn := dial(t, w.URL)
		client, _, err := websocket.Dial(t.Context(), w.URL+"/cdc/shop/stream?from=earliest", &websocket.DialOptions{
			HTTPHeader: http.Header{"Authorization": {"Bearer " + w.key}}, HTTPClient: over(conn),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.CloseNow() }()
		waitFor(t, "the request to be over", func() bool { return strings.Contains(w.Log.String(), "route=/cdc/:client/stream") })
	})
	t.Run("by a reader that says something", func(t *testing.T) {
		t.Parallel()
		w := start(t, nil)
		w.stream()
		s := w.dial(w.key, "from=earliest")
		s.next()
		if err := s.conn.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if code, _ := s.closed(); code != websocket.StatusPolicyViolation {
			t.Errorf("got %d", code)
		}
	})
}
