package gateway_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
)

func TestADeferredQueryIsAcceptedAndDescribed(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	body := stmt{"query": "select * from items where id = $1", "params": []any{"planted"}, "priority": "batch", "labels": map[string]string{"team": "checkout"}}
	a := w.want(202, "", call{do: "POST /gateway/query", header: map[string]string{"Prefer": "respond-async"}, body: body})
	id := decode[view](t, a).ID
	if a.header.Get("Location") != "/gateway/deferred/"+id || a.header.Get("Preference-Applied") != "respond-async" || decode[view](t, a).State != "queued" {
		t.Errorf("got %v %s", a.header, a.raw)
	}
	a = w.want(200, "", call{do: "GET /gateway/deferred/" + id, client: "-", key: "watcher"})
	v := decode[view](t, a)
	if v.State != "queued" || v.Client != "shop" || v.Query != body["query"] || a.header.Get("ETag") != v.ETag || a.Meta.Client != "shop" {
		t.Errorf("got %s", a.raw)
	}
	if strings.Contains(string(a.raw), "planted") {
		t.Errorf("the params are shown: %s", a.raw)
	}
	w.want(404, "not_found", call{do: "GET /gateway/deferred/" + id, key: "other", client: "-"})
	w.want(404, "not_found", call{do: "GET /gateway/deferred/" + id, client: "elsewhere"})
	w.want(403, "forbidden", call{do: "GET /gateway/deferred/" + id, key: "asker"})
	w.want(404, "not_found", call{do: "GET /gateway/deferred/nothing"})
	w.want(404, "not_found", call{do: "GET /gateway/deferred/" + uuid.NewString()})
	// The raw routes ask for their own capability, and remember it.
	a = w.want(202, "", call{do: "POST /gateway/sql", body: stmt{"query": "select 1", "deferred": true}})
	j, _, err := w.store.Load(t.Context(), "shop", decode[view](t, a).ID)
	if err != nil || !j.Raw || j.RequestID == "" || j.Traceparent == "" || j.Principal.Key != "full" {
		t.Errorf("got %+v, %v", j, err)
	}
}

func TestWhoMaySubmit(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	sel := stmt{"query": "select 1", "deferred": true}
	future := time.Now().Add(time.Hour).Format(time.RFC3339)
	for name, test := range map[string]struct {
		status int
		code   string
		call   call
	}{
		"a stranger may not":              {401, "unauthenticated", call{key: "-", body: sel}},
		"query alone is not enough":       {403, "forbidden", call{key: "asker", client: "nobody", body: sel}},
		"deferred alone is not enough":    {403, "forbidden", call{key: "deferrer", client: "nobody", body: sel}},
		"another client's key may not":    {403, "forbidden", call{key: "other", client: "nobody", body: sel}},
		"nobody may, for no client":       {400, "missing_client_header", call{client: "-", body: sel}},
		"nobody may, for nobody":          {404, "client_not_found", call{client: "nobody", body: sel}},
		"for a frozen client: held":       {202, "", call{client: "iced", body: sel}},
		"for an inactive client: no":      {410, "client_inactive", call{client: "gone", body: sel}},
		"without the capability: no":      {403, "capability_denied", call{client: "poor", body: sel}},
		"without deferred_query: no":      {403, "capability_denied", call{client: "cql", body: sel}},
		"where the engine cannot: no":     {422, "capability_unsupported", call{client: "bucket", body: sel}},
		"a refused statement: no":         {400, "invalid_request", call{body: stmt{"query": "begin", "deferred": true}}},
		"no statement: no":                {400, "invalid_request", call{body: stmt{"deferred": true}}},
		"an unknown priority: no":         {400, "invalid_request", call{body: stmt{"query": "select 1", "deferred": true, "priority": "asap"}}},
		"a passed deadline: no":           {400, "invalid_request", call{body: stmt{"query": "select 1", "deferred": true, "deadline": "2020-01-01T00:00:00Z"}}},
		"a deadline before its start: no": {400, "invalid_request", call{body: stmt{"query": "select 1", "deferred": true, "not_before": future, "deadline": future}}},
		"a webhook where there is none":   {400, "invalid_request", call{body: stmt{"query": "select 1", "deferred": true, "webhook": stmt{"url": "https://example.com"}}}},
		"an empty idempotency key: no":    {400, "invalid_request", call{header: map[string]string{"Idempotency-Key": " "}, body: sel}},
		"a long idempotency key: no":      {400, "invalid_request", call{header: map[string]string{"Idempotency-Key": strings.Repeat("k", 256)}, body: sel}},
		"another language: no":            {400, "invalid_request", call{body: stmt{"query": "select 1", "deferred": true, "language": "cql"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.call.do = "POST /gateway/query"
			w.want(test.status, test.code, test.call)
		})
	}
}

func TestAKeyThatMayOnlyReadSubmitsReads(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.want(202, "", call{do: "POST /gateway/query", key: "reader", body: stmt{"query": "insert into items values (9, 'x')", "deferred": true}})
	j, _, err := w.store.Load(t.Context(), "shop", decode[view](t, a).ID)
	if err != nil || !j.ReadOnly {
		t.Errorf("got %+v, %v", j, err)
	}
	// It may not have others' writes run again either.
	id := w.submit("shop", stmt{"query": "insert into items values (8, 'x')"})
	w.finish(id, deferred.ResultSizes{})
	w.want(403, "forbidden", call{do: "POST /gateway/deferred/" + id + "/requeue", key: "reader"})
}

// hooks allows example.com alone.
type hooks struct{}

func (hooks) CheckURL(_ context.Context, url string) error {
	if strings.HasPrefix(url, "https://example.com/") {
		return nil
	}
	return athena.Errorf(athena.CodeInvalidRequest, "webhook.url is not allowed").At("webhook.url")
}

func TestWebhooksAreCheckedAndNotShown(t *testing.T) {
	t.Parallel()
	w := start(t, func(cfg *gateway.Config, _ *api.Config) { cfg.Webhooks = hooks{} })
	a := w.want(400, "invalid_request", call{do: "POST /gateway/query", body: stmt{"query": "select 1", "deferred": true, "webhook": stmt{"url": "http://127.0.0.1/"}}})
	if a.Details["field"] != "webhook.url" {
		t.Errorf("got %s", a.raw)
	}
	id := w.submit("shop", stmt{"query": "select 1", "webhook": stmt{"url": "https://example.com/planted"}})
	if a := w.want(200, "", call{do: "GET /gateway/deferred/" + id}); strings.Contains(string(a.raw), "planted") || !strings.Contains(string(a.raw), `"webhook":true`) {
		t.Errorf("got %s", a.raw)
	}
}

func TestAnIdempotencyKeyMakesOneJob(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	submit := func(key, route string, body stmt) *answer {
		body["deferred"] = true
		return w.do(call{do: "POST " + route, key: key, header: map[string]string{"Idempotency-Key": "k1"}, body: body})
	}
	first := submit("full", "/gateway/query", stmt{"query": "select 1"})
	if first.status != 202 || first.header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("got %d %s", first.status, first.raw)
	}
	again := submit("full", "/gateway/query", stmt{"query": "select 1"})
	if again.status != 202 || again.header.Get("Idempotency-Replayed") != "true" || decode[view](t, again).ID != decode[view](t, first).ID {
		t.Errorf("got %d %v %s", again.status, again.header, again.raw)
	}
	for name, other := range map[string]*answer{
		"another statement": submit("full", "/gateway/query", stmt{"query": "select 2"}),
		"another lane":      submit("full", "/gateway/query", stmt{"query": "select 1", "priority": "batch"}),
		"another route":     submit("full", "/gateway/sql", stmt{"query": "select 1"}),
		"another right":     submit("reader", "/gateway/query", stmt{"query": "select 1"}),
	} {
		if other.status != 422 || other.Code != "idempotency_mismatch" {
			t.Errorf("%s: got %d %s", name, other.status, other.raw)
		}
	}
	// Once it is done, the replay that waits has the rows.
	w.finish(decode[view](t, first).ID, deferred.ResultSizes{})
	a := w.want(200, "", call{do: "POST /gateway/query", header: map[string]string{"Idempotency-Key": "k1", "Prefer": "respond-async, wait=5"}, body: stmt{"query": "select 1", "deferred": true}})
	if a.header.Get("Idempotency-Replayed") != "true" || a.header.Get("Preference-Applied") != "wait=5" || !strings.Contains(string(a.Data), "1") {
		t.Errorf("got %v %s", a.header, a.raw)
	}
}

func TestTheQueueHasALimit(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	q := call{do: "POST /gateway/query", client: "small", header: map[string]string{"Idempotency-Key": "k"}, body: stmt{"query": "select 1", "deferred": true}}
	w.want(202, "", q)
	var wg sync.WaitGroup
	var accepted, refused int
	var mu sync.Mutex
	for range 8 {
		wg.Go(func() {
			a := w.do(call{do: "POST /gateway/query", client: "small", body: stmt{"query": "select 2", "deferred": true}})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.status == 202:
				accepted++
			case a.status == 429 && a.Code == "too_many_requests" && a.header.Get("Retry-After") == "1":
				refused++
			default:
				t.Errorf("got %d %s", a.status, a.raw)
			}
		})
	}
	wg.Wait()
	if accepted != 1 || refused != 7 {
		t.Errorf("%d were accepted and %d refused, of which 1 had room", accepted, refused)
	}
	// What was accepted before is found all the same, and what is new is not.
	if a := w.want(202, "", q); a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("got %v", a.header)
	}
	time.Sleep(1100 * time.Millisecond) // the count is read again
	w.want(429, "too_many_requests", call{do: "POST /gateway/query", client: "small", body: stmt{"query": "select 3", "deferred": true}})
	// A worker that takes them makes room.
	lanes, err := w.store.Lanes(t.Context(), "small", 10, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, lane := range lanes {
		msgs, err := lane.FetchNoWait(10)
		if err != nil {
			t.Fatal(err)
		}
		for m := range msgs.Messages() {
			m.Ack()
		}
	}
	time.Sleep(1100 * time.Millisecond)
	w.want(202, "", call{do: "POST /gateway/query", client: "small", body: stmt{"query": "select 3", "deferred": true}})
}

func TestACallerMayWaitForTheRows(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	play := func(act func(id string)) {
		go func() {
			for {
				entries, _, err := w.store.List(t.Context(), deferred.Filter{State: deferred.Queued}, 0, 1, func(string) bool { return false })
				if err != nil {
					return
				}
				if len(entries) == 1 {
					act(entries[0].Job.ID)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
	}
	prefer := map[string]string{"Prefer": "respond-async, wait=20"}
	play(func(id string) { w.finish(id, deferred.ResultSizes{}) })
	a := w.want(200, "", call{do: "POST /gateway/query", header: prefer, body: stmt{"query": "select * from items"}})
	if rows := decode[[]any](t, a); len(rows) != 2 || len(a.Meta.Columns) != 2 || a.Meta.RowsAffected == nil || a.header.Get("Location") == "" {
		t.Errorf("got %s", a.raw)
	}
	play(func(id string) {
		w.begin(id)
		w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status {
			return s.Fail(deferred.Failed, athena.Errorf(athena.CodeQueryFailed, "division by zero").With("sqlstate", "22012"), time.Now())
		})
	})
	a = w.want(422, "query_failed", call{do: "POST /gateway/query", header: prefer, body: stmt{"query": "select 1"}})
	if a.Details["sqlstate"] != "22012" || a.Details["job"] == nil {
		t.Errorf("got %s", a.raw)
	}
	begun := time.Now()
	a = w.want(202, "", call{do: "POST /gateway/query", header: map[string]string{"Prefer": `respond-async; x=y, wait="1", handling=strict`}, body: stmt{"query": "select 1"}})
	if waited := time.Since(begun); waited < 900*time.Millisecond || waited > 5*time.Second || a.header.Get("Preference-Applied") != "respond-async, wait=1" {
		t.Errorf("waited %s, %v", waited, a.header)
	}
}

func TestADryRunTellsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	type verdict struct {
		Client, Lifecycle, Outcome, Effect string
		Deferred                           bool
		ReadOnly                           bool `json:"read_only"`
		Needs, Held, Supported             []string
		Error                              *deferred.Failure
		Plan                               json.RawMessage
	}
	for name, test := range map[string]struct {
		key, client, route string
		body               stmt
		want               string
	}{
		"a read":                 {"", "shop", "/gateway/query", stmt{"query": "select * from items"}, "run read ro needs [gateway_query] held [gateway_query] supported [gateway_query] plan"},
		"a write":                {"", "shop", "/gateway/query", stmt{"query": "insert into items values (5, 'x')"}, "run write needs [gateway_query] held [gateway_query] supported [gateway_query] plan"},
		"a reader's write":       {"reader", "shop", "/gateway/query", stmt{"query": "insert into items values (5, 'x')"}, "run write ro needs [gateway_query] held [gateway_query] supported [gateway_query] plan"},
		"raw, not granted":       {"", "cql", "/query/sql", stmt{"query": "select 1"}, "refused capability_denied needs [raw_sql] held [] supported [raw_sql]"},
		"raw, granted, not able": {"", "cql", "/query/sql", stmt{"query": "select 1", "language": "cql"}, "refused capability_unsupported needs [raw_cql] held [raw_cql] supported []"},
		"a refused statement":    {"", "shop", "/gateway/query", stmt{"query": "begin"}, "refused refused invalid_request needs [gateway_query] held [gateway_query] supported [gateway_query]"},
		"a frozen client, now":   {"", "iced", "/gateway/query", stmt{"query": "select 1"}, "refused client_frozen needs [gateway_query] held [gateway_query] supported [gateway_query]"},
		"a frozen client, later": {"", "iced", "/gateway/query", stmt{"query": "select 1", "deferred": true}, "held read ro needs [gateway_query deferred_query] held [gateway_query deferred_query] supported [gateway_query deferred_query]"},
		"an inactive client":     {"", "gone", "/gateway/query", stmt{"query": "select 1", "deferred": true}, "refused client_inactive needs [gateway_query deferred_query] held [gateway_query deferred_query] supported [gateway_query deferred_query]"},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.want(200, "", call{do: "POST " + test.route + "?dry_run=true", key: test.key, client: test.client, body: test.body})
			v := decode[verdict](t, a)
			got := v.Outcome
			if v.Effect != "" {
				got += " " + v.Effect
			}
			if v.Error != nil {
				got += " " + string(v.Error.Code)
			}
			if v.ReadOnly {
				got += " ro"
			}
			got += fmt.Sprintf(" needs %v held %v supported %v", v.Needs, v.Held, v.Supported)
			if v.Plan != nil {
				got += " plan"
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	w.want(404, "client_not_found", call{do: "POST /gateway/query?dry_run=true", client: "nobody", body: stmt{"query": "select 1"}})
	w.want(403, "forbidden", call{do: "POST /gateway/query?dry_run=true", key: "other", body: stmt{"query": "select 1"}})
	if a := w.want(200, "", call{do: "GET /gateway/deferred"}); string(a.Data) != "[]" || len(w.db.Rows("items")) != 2 {
		t.Errorf("a dry run left something: %s", a.raw)
	}
}

func TestJobsAreListedPageByPage(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	var ids []string
	for i := range 7 {
		ids = append(ids, w.submit("shop", stmt{"query": "select 1", "labels": map[string]string{"n": strconv.Itoa(i), "odd": strconv.FormatBool(i%2 == 1)}}))
	}
	elsewhere := w.submit("elsewhere", stmt{"query": strings.Repeat("é", 3000)})
	w.finish(ids[3], deferred.ResultSizes{})

	list := func(query string) (got []string, cursor string) {
		t.Helper()
		a := w.want(200, "", call{do: "GET /gateway/deferred?" + query, client: "-"})
		for _, v := range decode[[]view](t, a) {
			got = append(got, v.ID)
		}
		return got, a.Meta.NextCursor
	}
	var got []string
	for cursor, pages := "", 0; ; pages++ {
		page, next := list("client=shop&limit=3&cursor=" + cursor)
		got = append(got, page...)
		if cursor = next; cursor == "" || pages > 10 {
			break
		}
	}
	want := []string{ids[6], ids[5], ids[4], ids[3], ids[2], ids[1], ids[0]}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, _ := list("label=odd%3Dtrue&label=n%3D5"); fmt.Sprint(got) != fmt.Sprint([]string{ids[5]}) {
		t.Errorf("by label: got %v", got)
	}
	if got, _ := list("state=succeeded"); fmt.Sprint(got) != fmt.Sprint([]string{ids[3]}) {
		t.Errorf("by state: got %v", got)
	}
	a := w.want(200, "", call{do: "GET /gateway/deferred", key: "other", client: "-"})
	page := decode[[]view](t, a)
	if len(page) != 1 || page[0].ID != elsewhere || len(page[0].Query) > 1024 || !strings.HasSuffix(page[0].Query, "é") {
		t.Errorf("a bound key sees %s", a.raw)
	}
	w.want(403, "forbidden", call{do: "GET /gateway/deferred?client=shop", key: "other"})
	w.want(403, "forbidden", call{do: "GET /gateway/deferred", key: "asker"})

	_, cursor := list("limit=2")
	if cursor == "" {
		t.Fatal("there is no cursor")
	}
	for _, query := range []string{
		"limit=0", "limit=1001", "limit=x", "state=done", "label=odd", "label==x", "client=No", "page=2", "cursor=AAAA", "cursor=!",
		"label=a%3Db&label=a%3Dc",
		"limit=2&client=shop&cursor=" + cursor, // of another list
		"limit=2&cursor=" + strings.ToUpper(cursor),
		"limit=2&cursor=B" + cursor[1:],
		"limit=2&cursor=" + cursor + "&cursor=" + cursor,
	} {
		w.want(400, "invalid_request", call{do: "GET /gateway/deferred?" + query})
	}
}

func TestAPollWaitsForAChange(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select 1"})
	path := "GET /gateway/deferred/" + id
	tag := w.want(200, "", call{do: path}).header.Get("ETag")
	match := map[string]string{"If-None-Match": tag}

	a := w.want(304, "", call{do: path, header: match})
	if a.header.Get("ETag") != tag || len(a.raw) != 0 {
		t.Errorf("got %v %s", a.header, a.raw)
	}
	w.want(200, "", call{do: path, header: map[string]string{"If-None-Match": `"0-held", W/"x"`}})
	w.want(400, "invalid_request", call{do: path, header: map[string]string{"If-None-Match": "0-queued"}})
	w.want(304, "", call{do: path + "?wait=50ms", header: match})
	for _, wait := range []string{"61s", "-1s", "soon", "5"} {
		w.want(400, "invalid_request", call{do: path + "?wait=" + wait})
	}

	type step struct {
		name string
		do   func()
		want string
	}
	for _, s := range []step{
		{"the client is frozen", func() { w.catalog.lifecycle("shop", athena.Frozen) }, "held"},
		{"the client is thawed", func() { w.catalog.lifecycle("shop", athena.Active) }, "queued"},
		{"an attempt begins", func() { w.begin(id) }, "running"},
		{"it ends", func() {
			w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status {
				return s.Fail(deferred.TimedOut, athena.Errorf(athena.CodeTimeout, "too long"), time.Now())
			})
		}, "timed_out"},
	} {
		begun := time.Now()
		polls := map[string]chan *answer{"by state": make(chan *answer), "by tag": make(chan *answer)}
		go func() { polls["by state"] <- w.do(call{do: path + "?wait=20s"}) }()
		go func() { polls["by tag"] <- w.do(call{do: path + "?wait=20s", header: match}) }()
		time.Sleep(100 * time.Millisecond)
		s.do()
		for name, poll := range polls {
			a := <-poll
			if a.status != 200 || decode[view](t, a).State != s.want || time.Since(begun) > 10*time.Second {
				t.Errorf("%s, %s: got %d %s after %s", s.name, name, a.status, a.raw, time.Since(begun))
			}
			match = map[string]string{"If-None-Match": a.header.Get("ETag")}
		}
	}
	// What has ended is answered at once.
	begun := time.Now()
	w.want(200, "", call{do: path + "?wait=20s"})
	if time.Since(begun) > 5*time.Second {
		t.Error("a job that has ended was waited for")
	}
}

// sse is an open stream of events.
type sse struct {
	lines *bufio.Scanner
	close func() error
	resp  *http.Response
}

func (w *world) follow(id, last string) *sse {
	w.t.Helper()
	q := call{do: "GET /gateway/deferred/" + id + "/events", key: "watcher", client: "-"}
	if last != "" {
		q.header = map[string]string{"Last-Event-ID": last}
	}
	resp, err := w.http.Do(w.request(w.t.Context(), q))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return &sse{bufio.NewScanner(resp.Body), resp.Body.Close, resp}
}

// next reads up to the next event with data: "id state"; empty at the end.
func (s *sse) next(t *testing.T) string {
	t.Helper()
	id := ""
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch name {
		case "id":
			id = value
		case "data":
			var v view
			if err := json.Unmarshal([]byte(value), &v); err != nil {
				t.Fatal(err)
			}
			return id + " " + v.State
		}
	}
	return ""
}

func TestAJobIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select 1"})
	s := w.follow(id, "")
	if got := s.next(t); got != "0 queued" || s.resp.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
		t.Errorf("got %q, %v", got, s.resp.Header)
	}
	w.catalog.lifecycle("shop", athena.Frozen)
	if got := s.next(t); got != "0 held" {
		t.Errorf("got %q", got)
	}
	w.catalog.lifecycle("shop", athena.Active)
	if got := s.next(t); got != "0 queued" {
		t.Errorf("got %q", got)
	}
	time.Sleep(150 * time.Millisecond) // a heartbeat goes by
	w.begin(id)
	running := s.next(t)
	if !strings.HasSuffix(running, " running") {
		t.Errorf("got %q", running)
	}
	w.advance(id, func(_ *deferred.Job, st deferred.Status) deferred.Status {
		return st.Succeed(&deferred.Result{Complete: true, Inline: []byte("[]")}, time.Now())
	})
	ended := s.next(t)
	if !strings.HasSuffix(ended, " succeeded") || s.next(t) != "" {
		t.Errorf("got %q and more", ended)
	}

	// Later, all of it, the rest of it, and nothing.
	all := w.follow(id, "")
	if got := []string{all.next(t), all.next(t), all.next(t)}; fmt.Sprint(got) != fmt.Sprint([]string{running, ended, ""}) {
		t.Errorf("from the beginning: got %q", got)
	}
	seen, _, _ := strings.Cut(running, " ")
	rest := w.follow(id, seen)
	if got := []string{rest.next(t), rest.next(t)}; fmt.Sprint(got) != fmt.Sprint([]string{ended, ""}) {
		t.Errorf("resumed: got %q", got)
	}
	last, _, _ := strings.Cut(ended, " ")
	for _, last := range []string{last, "18446744073709551615"} {
		if none := w.follow(id, last); none.resp.StatusCode != http.StatusNoContent {
			t.Errorf("after the end: got %d", none.resp.StatusCode)
		}
	}
	w.want(400, "invalid_request", call{do: "GET /gateway/deferred/" + id + "/events", header: map[string]string{"Last-Event-ID": "x"}})
	w.want(400, "invalid_request", call{do: "GET /gateway/deferred/" + id + "/events?from=1"})
	w.want(404, "not_found", call{do: "GET /gateway/deferred/" + id + "/events", key: "other", client: "-"})

	// A requeue leaves history as it was, and does not end the stream in it.
	w.want(202, "", call{do: "POST /gateway/deferred/" + id + "/requeue"})
	again := w.follow(id, "")
	got := []string{again.next(t), again.next(t), again.next(t)}
	if got[0] != running || got[1] != ended || !strings.HasSuffix(got[2], " queued") {
		t.Errorf("got %q", got)
	}
}

func TestAPassedDeadlineEndsAStream(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select 1", "deadline": time.Now().Add(1500 * time.Millisecond).Format(time.RFC3339Nano)})
	s := w.follow(id, "")
	if got := []string{s.next(t), s.next(t), s.next(t)}; fmt.Sprint(got) != fmt.Sprint([]string{"0 queued", "0 expired", ""}) {
		t.Errorf("got %q", got)
	}
	w.want(409, "conflict", call{do: "POST /gateway/deferred/" + id + "/cancel"})
	w.want(409, "conflict", call{do: "GET /gateway/deferred/" + id + "/result"})
	a := w.want(202, "", call{do: "POST /gateway/deferred/" + id + "/requeue"})
	if v := decode[view](t, a); v.State != "queued" || v.Requeues != 1 {
		t.Errorf("got %s", a.raw)
	}
}

func TestAStoppingServerEndsWaitsAndStreams(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select 1"})
	s := w.follow(id, "")
	s.next(t)
	polled := make(chan *answer)
	go func() { polled <- w.do(call{do: "GET /gateway/deferred/" + id + "?wait=50s"}) }()
	time.Sleep(100 * time.Millisecond)
	begun := time.Now()
	go w.stop()
	if a := <-polled; a.status != 200 || decode[view](t, a).State != "queued" {
		t.Errorf("got %d %s", a.status, a.raw)
	}
	rest, err := io.ReadAll(s.resp.Body)
	if err != nil {
		t.Error(err)
	}
	_ = rest // the scanner may have read it already
	if time.Since(begun) > 5*time.Second {
		t.Errorf("it took %s", time.Since(begun))
	}
	w.stop()
}

func TestSmallResultsComeAsRows(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select * from items", "row_limit": 1})
	path := "GET /gateway/deferred/" + id + "/result"
	if a := w.want(409, "conflict", call{do: path}); a.Details["state"] != "queued" {
		t.Errorf("got %s", a.raw)
	}
	w.finish(id, deferred.ResultSizes{})
	w.catalog.lifecycle("shop", athena.Frozen) // what is there stays readable
	a := w.want(200, "", call{do: path, key: "watcher"})
	if string(a.Data) != `[{"id":1,"name":"one"}]` || len(a.Meta.Columns) != 2 || !a.Meta.Truncated || a.Meta.Client != "shop" || a.header.Get("X-Athena-Result") != "rows" {
		t.Errorf("got %s", a.raw)
	}
	for accept, want := range map[string]string{"text/csv": "id,name\r\n1,one\r\n", "application/x-ndjson": `{"id":1,"name":"one"}` + "\n"} {
		if a := w.want(200, "", call{do: path, header: map[string]string{"Accept": accept}}); string(a.raw) != want || a.header.Get("X-Athena-Truncated") != "true" {
			t.Errorf("%s: got %q", accept, a.raw)
		}
	}
	a = w.want(200, "", call{do: path + "?manifest=true"})
	if a.header.Get("X-Athena-Result") != "manifest" || !strings.Contains(string(a.Data), `"segments":[]`) {
		t.Errorf("got %s", a.raw)
	}
	w.want(404, "not_found", call{do: path + "/0"})
	w.want(400, "invalid_request", call{do: path + "?manifest=1"})
	w.want(404, "not_found", call{do: path, key: "other", client: "-"})
	w.want(403, "forbidden", call{do: path, key: "asker"})

	// The job's own format is the default.
	id = w.submit("elsewhere", stmt{"query": "select * from items", "result": stmt{"format": "csv"}})
	w.finish(id, deferred.ResultSizes{})
	path = "GET /gateway/deferred/" + id + "/result"
	if a := w.want(200, "", call{do: path, client: "-"}); string(a.raw) != "id,name\r\n1,one\r\n2,two\r\n" {
		t.Errorf("got %q", a.raw)
	}
	if a := w.want(200, "", call{do: path, client: "-", header: map[string]string{"Accept": "application/json"}}); len(decode[[]any](t, a)) != 2 {
		t.Errorf("got %q", a.raw)
	}
}

type manifest struct {
	Rows, Bytes int64
	Complete    bool
	Segments    []struct {
		N           int
		Rows, Bytes int64
		SHA256, URL string
	}
}

func TestLargeResultsComeInSegments(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	const n = 3000
	sizes := deferred.ResultSizes{Inline: 1 << 10, Segment: 64 << 10, Chunk: 16 << 10}
	id := w.submit("shop", stmt{"query": fmt.Sprintf("select generate(%d, 100)", n)})
	path := "GET /gateway/deferred/" + id + "/result"

	// While it runs: what there is so far, and nothing that could pass for all.
	w.begin(id)
	var early bool
	var result *deferred.Result
	j, _, err := w.store.Load(t.Context(), "shop", id)
	if err != nil {
		t.Fatal(err)
	}
	result = w.collect(j, sizes, func(r *deferred.Result) {
		if early {
			return
		}
		early = true
		w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status {
			return s.Spool(time.Now()).Grow(r, time.Now())
		})
		m := decode[manifest](t, w.want(200, "", call{do: path}))
		if m.Complete || len(m.Segments) != 1 {
			t.Errorf("early: got %+v", m)
		}
		if a := w.want(200, "", call{do: path + "/0"}); int64(len(a.raw)) != m.Segments[0].Bytes {
			t.Errorf("early: the segment has %d bytes", len(a.raw))
		}
		w.want(404, "not_found", call{do: path + "/1"})
		w.want(409, "conflict", call{do: path, header: map[string]string{"Accept": "application/x-ndjson"}})
		w.want(409, "conflict", call{do: path + "?manifest=false"})
	})
	if !early {
		t.Fatal("no segment was stored on the way")
	}
	w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status { return s.Succeed(result, time.Now()) })

	a := w.want(200, "", call{do: path})
	m := decode[manifest](t, a)
	if !m.Complete || m.Rows != n || len(m.Segments) < 3 || a.header.Get("X-Athena-Result") != "manifest" {
		t.Fatalf("got %s", a.raw)
	}
	var all []byte
	for _, s := range m.Segments {
		a := w.want(200, "", call{do: "GET " + s.URL})
		sum := sha256.Sum256(a.raw)
		if hex.EncodeToString(sum[:]) != s.SHA256 || a.header.Get("ETag") != `"`+s.SHA256+`"` || int64(len(a.raw)) != s.Bytes {
			t.Errorf("segment %d is not what the manifest says", s.N)
		}
		all = append(all, a.raw...)
	}
	a = w.want(200, "", call{do: path, header: map[string]string{"Accept": "application/x-ndjson"}})
	if string(a.raw) != string(all) {
		t.Errorf("NDJSON has %d bytes, the segments have %d", len(a.raw), len(all))
	}
	a = w.want(200, "", call{do: path, header: map[string]string{"Accept": "text/csv"}})
	if lines := strings.Count(string(a.raw), "\r\n"); lines != n+1 {
		t.Errorf("CSV has %d lines", lines)
	}
	a = w.want(200, "", call{do: path + "?manifest=false"})
	if rows := decode[[]any](t, a); len(rows) != n || len(a.Meta.Columns) == 0 {
		t.Errorf("JSON has %d rows", len(rows))
	}

	first := "GET " + m.Segments[0].URL
	a = w.want(206, "", call{do: first, header: map[string]string{"Range": "bytes=10-19"}})
	if string(a.raw) != string(all[10:20]) {
		t.Errorf("got %q", a.raw)
	}
	w.want(304, "", call{do: first, header: map[string]string{"If-None-Match": `"` + m.Segments[0].SHA256 + `"`}})
	if a := w.do(call{do: first, header: map[string]string{"Range": "bytes=99999999-"}}); a.status != 416 {
		t.Errorf("got %d", a.status)
	}
	for _, n := range []string{"99", "-1", "x", "01", "+1", "99999999999999999999"} {
		w.want(404, "not_found", call{do: path + "/" + n})
	}
	w.want(400, "invalid_request", call{do: path + "/0?part=1"})

	// Forgotten, it is gone.
	w.want(200, "", call{do: strings.Replace(strings.TrimSuffix(path, "/result"), "GET", "DELETE", 1)})
	w.want(404, "not_found", call{do: path})
	w.want(404, "not_found", call{do: first})
}

func TestWhyThereIsNoResult(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	now := time.Now()
	end := func(state deferred.State, err error) func(*deferred.Job, deferred.Status) deferred.Status {
		return func(_ *deferred.Job, s deferred.Status) deferred.Status { return s.Fail(state, err, now) }
	}
	succeed := func(r *deferred.Result) func(*deferred.Job, deferred.Status) deferred.Status {
		return func(_ *deferred.Job, s deferred.Status) deferred.Status { return s.Succeed(r, now) }
	}
	old := now.Add(-time.Minute)
	for name, test := range map[string]struct {
		end    func(*deferred.Job, deferred.Status) deferred.Status
		status int
		code   string
	}{
		"the statement failed":         {end(deferred.Failed, athena.Errorf(athena.CodeQueryFailed, "no")), 422, "query_failed"},
		"it took too long":             {end(deferred.TimedOut, athena.Errorf(athena.CodeTimeout, "no")), 504, "timeout"},
		"it failed inside":             {end(deferred.Failed, athena.Errorf(athena.CodeInternal, "no")), 409, "conflict"},
		"it was cancelled":             {end(deferred.Cancelled, nil), 409, "conflict"},
		"nobody knows":                 {end(deferred.Indeterminate, athena.Errorf(athena.CodeInternal, "no")), 409, "conflict"},
		"the rows were lost":           {succeed(nil), 404, "not_found"},
		"the rows have expired":        {succeed(&deferred.Result{Complete: true, Inline: []byte("[]"), ExpiresAt: old}), 404, "not_found"},
		"the segments have been swept": {succeed(&deferred.Result{Complete: true, Segments: []deferred.Segment{{Rows: 1, Bytes: 3, Chunks: 1, SHA256: strings.Repeat("0", 64)}}}), 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := w.submit("shop", stmt{"query": "select 1"})
			w.begin(id)
			w.advance(id, test.end)
			path := "GET /gateway/deferred/" + id + "/result"
			w.want(test.status, test.code, call{do: path})
			if test.status == 200 { // the manifest is there, and nothing behind it
				w.want(404, "not_found", call{do: path + "/0"})
				w.want(404, "not_found", call{do: path, header: map[string]string{"Accept": "text/csv"}})
			}
		})
	}
}

func TestJobsAreCancelledRequeuedAndForgotten(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	id := w.submit("shop", stmt{"query": "select 1"})
	path := "/gateway/deferred/" + id
	for _, q := range []string{"POST " + path + "/cancel", "POST " + path + "/requeue", "DELETE " + path} {
		w.want(403, "forbidden", call{do: q, key: "watcher"})
		w.want(404, "not_found", call{do: q, key: "other", client: "-"})
		w.want(400, "invalid_request", call{do: q + "?force=true"})
	}
	w.want(409, "conflict", call{do: "POST " + path + "/requeue"})
	w.want(409, "conflict", call{do: "DELETE " + path})
	if a := w.want(202, "", call{do: "POST " + path + "/cancel"}); decode[view](t, a).State != "cancelled" {
		t.Errorf("got %s", a.raw)
	}
	if got := w.ops.last(); got.Op.Family != "deferred" || got.Client != "shop" || got.Principal != "full" {
		t.Errorf("observed %+v", got)
	}
	w.want(200, "", call{do: "POST " + path + "/cancel"})
	if a := w.want(202, "", call{do: "POST " + path + "/requeue"}); decode[view](t, a).State != "queued" {
		t.Errorf("got %s", a.raw)
	}
	w.begin(id)
	if a := w.want(202, "", call{do: "POST " + path + "/cancel"}); decode[view](t, a).State != "cancelling" {
		t.Errorf("got %s", a.raw)
	}
	w.want(202, "", call{do: "POST " + path + "/cancel"})
	w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status {
		return s.Succeed(&deferred.Result{Complete: true, Inline: []byte("[]")}, time.Now())
	})
	w.want(409, "conflict", call{do: "POST " + path + "/cancel"})
	w.catalog.lifecycle("shop", athena.Inactive)
	w.want(410, "client_inactive", call{do: "POST " + path + "/requeue"})
	w.catalog.lifecycle("shop", athena.Frozen)
	if a := w.want(202, "", call{do: "POST " + path + "/requeue"}); decode[view](t, a).State != "held" {
		t.Errorf("got %s", a.raw)
	}
	w.want(202, "", call{do: "POST " + path + "/cancel"})
	w.want(200, "", call{do: "DELETE " + path})
	w.want(404, "not_found", call{do: "DELETE " + path})
	w.want(404, "not_found", call{do: "GET " + path})
}
