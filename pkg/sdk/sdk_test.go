package sdk_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// serve starts a server that answers as mux says, and returns its API.
func serve(t *testing.T, routes map[string]http.HandlerFunc) *sdk.API {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	api, err := sdk.New(srv.URL, "ath_key", sdk.Options{Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func text(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestNewRefusesWhatIsNoServer(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "athena", "ftp://h", "http://", "http://user:pw@h", "http://h?x=1", "::"} {
		if _, err := sdk.New(url, "", sdk.Options{}); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("New(%q) = %v, want invalid_request", url, err)
		}
	}
}

func TestQueryStreamsRows(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	api := serve(t, map[string]http.HandlerFunc{"POST /gateway/query": func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if got := string(body); got != `{"query":"select $1","params":[7]}` {
			t.Errorf("body = %s", got)
		}
		if r.Header.Get("X-Athena-Client") != "shop" || r.Header.Get("Authorization") != "Bearer ath_key" {
			t.Errorf("headers = %v", r.Header)
		}
		io.WriteString(w, `{"status":"success","message":"ok","data":[{"id":1}`)
		w.(http.Flusher).Flush()
		<-release // the rest comes only after the first row was read
		io.WriteString(w, `,{"id":2}],"request_id":"r1","meta":{"client":"shop","columns":[{"name":"id","type":"int4"}],"rows_affected":2}}`)
	}})
	rows, err := api.Client("shop").Query(t.Context(), "select $1", 7)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if !rows.Next() || string(rows.Row()) != `{"id":1}` {
		t.Fatalf("first row = %s, %v", rows.Row(), rows.Err())
	}
	close(release)
	var row struct{ ID int }
	if !rows.Next() || rows.Scan(&row) != nil || row.ID != 2 {
		t.Fatalf("second row = %s, %v", rows.Row(), rows.Err())
	}
	if rows.Next() || rows.Err() != nil {
		t.Fatalf("after the last row: %s, %v", rows.Row(), rows.Err())
	}
	if m := rows.Meta(); len(m.Columns) != 1 || *m.RowsAffected != 2 || m.RequestID != "r1" {
		t.Errorf("meta = %+v", m)
	}
}

func TestABrokenAnswerIsNoShortResult(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		body string
		rows int
	}{
		"between two rows":    {`{"data":[{"id":1},`, 1},
		"within a row":        {`{"data":[{"id":1},{"id"`, 1},
		"before the envelope": {`{"data":[{"id":1}]`, 1},
		"at once":             {`{"data":[`, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := serve(t, map[string]http.HandlerFunc{"POST /gateway/query": func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, tt.body)
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}})
			n := 0
			var last error
			for _, err := range sdk.All[map[string]int](api.Client("c").Query(t.Context(), "q")) {
				if err != nil {
					last = err
					break
				}
				n++
			}
			if n != tt.rows || athena.CodeOf(last) != athena.CodeBackendUnavailable {
				t.Errorf("%d rows, then %v; want %d and backend_unavailable", n, last, tt.rows)
			}
		})
	}
}

func TestErrorsKeepWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	api := serve(t, map[string]http.HandlerFunc{"POST /gateway/query": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3")
		text(http.StatusLocked, `{"status":"error","message":"frozen","error":"frozen","code":"client_frozen","request_id":"r7","retryable":true,"details":{"field":"x"}}`)(w, nil)
	}})
	_, err := api.Client("shop").Query(t.Context(), "select 1")
	var e *athena.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T: %v", err, err)
	}
	if e.Code != athena.CodeClientFrozen || e.Message != "frozen" || e.RetryAfter != 3*time.Second || e.Details["field"] != "x" || sdk.RequestID(err) != "r7" {
		t.Errorf("error = %+v", e)
	}
}

func TestAnAnswerOfSomethingElse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		body   string
		want   athena.Code
	}{
		"a proxy's page":        {502, "<html>bad gateway</html>", athena.CodeBackendUnavailable},
		"another server's 404":  {404, "not found", athena.CodeNotFound},
		"a redirect":            {302, "", athena.CodeInternal},
		"no JSON at all":        {200, "hello", athena.CodeBackendUnavailable},
		"JSON of another shape": {200, `[1,2]`, athena.CodeInternal},
		"no rows in it":         {200, `{"data":"x"}`, athena.CodeInternal},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := serve(t, map[string]http.HandlerFunc{"/": text(tt.status, tt.body)})
			if _, err := api.Client("c").Query(t.Context(), "q"); athena.CodeOf(err) != tt.want {
				t.Errorf("error = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestOnlySafeRequestsAreRepeated(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		call func(context.Context, *sdk.API) error
		want int64
	}{
		"a read is": {func(ctx context.Context, a *sdk.API) error {
			_, err := a.Job("j").Get(ctx)
			return err
		}, 3},
		"a submit with an idempotency key is": {func(ctx context.Context, a *sdk.API) error {
			_, err := a.Client("c").Defer(ctx, sdk.Request{Query: "q", IdempotencyKey: "k"})
			return err
		}, 3},
		"a submit without one is not": {func(ctx context.Context, a *sdk.API) error {
			_, err := a.Client("c").Defer(ctx, sdk.Request{Query: "q"})
			return err
		}, 1},
		"a statement is not": {func(ctx context.Context, a *sdk.API) error {
			_, err := a.Client("c").Query(ctx, "q")
			return err
		}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			api := serve(t, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
				if calls.Add(1) < 3 {
					text(503, `{"code":"bus_unavailable","message":"no"}`)(w, nil)
					return
				}
				text(200, `{"data":{"id":"j","state":"queued"}}`)(w, nil)
			}})
			err := tt.call(t.Context(), api)
			if got := calls.Load(); got != tt.want || (tt.want == 3) != (err == nil) {
				t.Errorf("%d calls and %v, want %d", got, err, tt.want)
			}
		})
	}
}

func TestAFrozenClientIsNotHammered(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	api := serve(t, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		text(423, `{"code":"client_frozen","message":"no"}`)(w, nil)
	}})
	if _, err := api.Client("c").Columns(t.Context(), "", "t"); athena.CodeOf(err) != athena.CodeClientFrozen || calls.Load() != 1 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(nil)
	srv.Close()
	api, err := sdk.New(srv.URL, "secret-key", sdk.Options{Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = api.Job("j").Get(t.Context())
	if athena.CodeOf(err) != athena.CodeBackendUnavailable || strings.Contains(err.Error(), "secret-key") || !strings.Contains(err.Error(), srv.URL) {
		t.Errorf("error = %v", err)
	}
}

func TestDeferAnswers(t *testing.T) {
	t.Parallel()
	api := serve(t, map[string]http.HandlerFunc{"POST /gateway/sql": func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Idempotency-Key") != "k" {
			t.Errorf("Idempotency-Key = %q", r.Header.Get("Idempotency-Key"))
		}
		switch r.Header.Get("Prefer") {
		case "respond-async":
			w.Header().Set("Idempotency-Replayed", "true")
			text(202, `{"data":{"id":"j1","state":"queued"}}`)(w, r)
		case "respond-async, wait=2":
			text(200, `{"data":[{"n":1}],"meta":{}}`)(w, r)
		default:
			t.Errorf("Prefer = %q", r.Header.Get("Prefer"))
		}
	}})
	c, q := api.Client("c"), sdk.Request{Query: "q", Raw: true, IdempotencyKey: "k"}
	job, err := c.Defer(t.Context(), q)
	if err != nil || job.ID != "j1" || !job.Replayed {
		t.Errorf("job = %+v, %v", job, err)
	}
	rows, job, err := c.DeferWait(t.Context(), q, 1500*time.Millisecond)
	if err != nil || job != nil || !rows.Next() {
		t.Fatalf("rows = %v, job = %v, %v", rows, job, err)
	}
	rows.Close()
}

func TestResultInSegments(t *testing.T) {
	t.Parallel()
	parts := []string{"{\"n\":0}\n{\"n\":1}\n", "{\"n\":2}\n"}
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	manifest := func(second string) string {
		return fmt.Sprintf(`{"data":{"columns":[{"name":"n","type":"int4"}],"rows":3,"bytes":24,"rows_affected":3,"complete":true,"segments":[
			{"n":0,"rows":2,"bytes":16,"sha256":%q,"url":"x"},{"n":1,"rows":1,"bytes":8,"sha256":%q,"url":"x"}]},"request_id":"r","meta":{"client":"c"}}`, sum(parts[0]), second)
	}
	var broken atomic.Bool
	routes := func(m string) map[string]http.HandlerFunc {
		return map[string]http.HandlerFunc{
			"GET /gateway/deferred/j/result":   text(200, m),
			"GET /gateway/deferred/j/result/0": text(200, parts[0]),
			"GET /gateway/deferred/j/result/1": func(w http.ResponseWriter, r *http.Request) {
				if broken.CompareAndSwap(false, true) { // breaks off once
					w.Header().Set("Content-Length", "8")
					io.WriteString(w, parts[1][:3])
					panic(http.ErrAbortHandler)
				}
				text(200, parts[1])(w, r)
			},
		}
	}
	var got []int
	for row, err := range sdk.All[struct{ N int }](serve(t, routes(manifest(sum(parts[1])))).Job("j").Result(t.Context())) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, row.N)
	}
	if fmt.Sprint(got) != "[0 1 2]" || !broken.Load() {
		t.Errorf("rows = %v, broken = %v", got, broken.Load())
	}
	n := 0
	var last error
	for _, err := range sdk.All[struct{ N int }](serve(t, routes(manifest(sum("other")))).Job("j").Result(t.Context())) {
		if last = err; err == nil {
			n++
		}
	}
	if n != 2 || athena.CodeOf(last) != athena.CodeInternal {
		t.Errorf("a forged segment: %d rows, then %v", n, last)
	}
}

func TestEventsResume(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	api := serve(t, map[string]http.HandlerFunc{"GET /gateway/deferred/j/events": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		switch calls.Add(1) {
		case 1:
			io.WriteString(w, ": hello\r\n\r\nretry: 10\n\nid: 4\nevent: queued\ndata: {\"id\":\"j\",\ndata: \"state\":\"queued\"}\n\nid: 5\nevent: running\ndata: {\"state\":\"running\"}\n\nid: 6\ndata: {\"state\":\"half")
		default:
			if last := r.Header.Get("Last-Event-Id"); last != "5" {
				t.Errorf("Last-Event-ID = %q, want 5", last)
			}
			io.WriteString(w, "id: 6\nevent: succeeded\ndata: {\"state\":\"succeeded\"}\n\n")
		}
	}})
	var states []sdk.State
	for info, err := range api.Job("j").Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, info.State)
	}
	if fmt.Sprint(states) != "[queued running succeeded]" {
		t.Errorf("states = %v", states)
	}
}

func TestWaitSurvivesARestart(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	api := serve(t, map[string]http.HandlerFunc{"GET /gateway/deferred/j": func(w http.ResponseWriter, r *http.Request) {
		switch n := calls.Add(1); {
		case n == 1:
			text(200, `{"data":{"id":"j","state":"running"}}`)(w, r)
		case n < 10: // more than one request's repetitions
			text(503, `{"code":"bus_unavailable","message":"stopping"}`)(w, r)
		default:
			text(200, `{"data":{"id":"j","state":"failed","error":{"code":"query_failed","message":"no","details":{"sqlstate":"42601"}}}}`)(w, r)
		}
	}})
	info, err := api.Job("j").Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if end := info.Err(); athena.CodeOf(end) != athena.CodeQueryFailed {
		t.Errorf("end = %v", end)
	}
}

func TestJobsPages(t *testing.T) {
	t.Parallel()
	api := serve(t, map[string]http.HandlerFunc{"GET /gateway/deferred": func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("client") != "shop" || q.Get("label") != "team=a" {
			t.Errorf("query = %v", q)
		}
		switch q.Get("cursor") {
		case "":
			text(200, `{"data":[{"id":"a","state":"queued"}],"meta":{"next_cursor":"x"}}`)(w, r)
		case "x": // a page may be empty and have a next one
			text(200, `{"data":[],"meta":{"next_cursor":"y"}}`)(w, r)
		case "y":
			text(200, `{"data":[{"id":"b","state":"queued"}],"meta":{}}`)(w, r)
		}
	}})
	var ids []string
	for info, err := range api.Client("shop").Jobs(t.Context(), sdk.Filter{Labels: map[string]string{"team": "a"}}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, info.ID)
	}
	if fmt.Sprint(ids) != "[a b]" {
		t.Errorf("ids = %v", ids)
	}
}

func TestPutClientCarriesSecretsAndRevision(t *testing.T) {
	t.Parallel()
	def := `{"client_name":"shop","engine":"postgres","lifecycle":"active","capabilities":{"raw_sql":true},"connection":{"dsn":"postgres://u:planted@h/db","max_conns":3}}`
	c, err := athena.DecodeClient([]byte(def))
	if err != nil {
		t.Fatal(err)
	}
	api := serve(t, map[string]http.HandlerFunc{"PUT /admin/clients/shop": func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Connection struct {
				DSN      string `json:"dsn"`
				MaxConns int    `json:"max_conns"`
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Connection.DSN != "postgres://u:planted@h/db" || body.Connection.MaxConns != 3 {
			t.Errorf("body = %+v, %v", body, err)
		}
		switch r.Header.Get("If-Match") {
		case `"7"`:
			text(200, `{"data":{"client_name":"shop","engine":"postgres","lifecycle":"active","capabilities":{},"connection":{"dsn":"***"},"revision":8}}`)(w, r)
		default:
			text(409, `{"code":"conflict","message":"`+r.Header.Get("If-None-Match")+`"}`)(w, r)
		}
	}})
	stored, err := api.Admin().PutClient(t.Context(), c, 7)
	if err != nil || stored.Revision != 8 {
		t.Errorf("stored = %v, %v", stored, err)
	}
	if _, err := api.Admin().PutClient(t.Context(), c, sdk.Absent); err == nil || !strings.Contains(err.Error(), "*") {
		t.Errorf("absent: %v", err)
	}
	if text := fmt.Sprintf("%v %+v", stored, c.Connection); strings.Contains(text, "planted") {
		t.Errorf("the secret shows in %s", text)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\ndata: {\"state\":\"queued\"}\n\n"))
	f.Add([]byte("data\n\n\r\n:\nevent: x\ndata: {\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		api := newFake(t, stream)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for range api.Job("j").Events(ctx) { // must end, and not panic
		}
	})
}

// newFake answers every request with the same stream, without a socket.
func newFake(t *testing.T, stream []byte) *sdk.API {
	api, err := sdk.New("http://fake", "", sdk.Options{Retries: -1, Backoff: time.Nanosecond, HTTP: &http.Client{
		Transport: roundTrip(func(r *http.Request) *http.Response {
			rec := httptest.NewRecorder()
			if r.Header.Get("Last-Event-Id") == "" {
				rec.Write(stream)
			} else {
				rec.WriteHeader(http.StatusTeapot)
			}
			return rec.Result()
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }
