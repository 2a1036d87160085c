package cdc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	model "github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

func objects(client string) jetstream.ObjectStoreConfig {
	return jetstream.ObjectStoreConfig{Bucket: bus.CDCObjects(client)}
}

func escape(name string) string { return url.PathEscape(name) }

type subscription struct {
	changefeed.Subscription
	Cursor  *changefeed.Cursor
	Pending *uint64 `json:"pending_messages"`
}

type pulled struct {
	Changes []json.RawMessage
	Cursor  model.Position
	More    bool
}

func (p pulled) positions(t testing.TB) (list []model.Position) {
	for _, raw := range p.Changes {
		var c model.Change
		if err := model.Decode(raw, &c); err != nil {
			t.Fatal(err)
		}
		list = append(list, c.Pos)
	}
	return list
}

func TestASubscriptionIsPulledAndAcknowledged(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	reader := w.Key(t, []string{"cdc:read"}, "shop")
	const path = "/cdc/shop/subscriptions"
	w.do("POST", path, `{"name":"billing"}`).Want(t, 404, athena.CodeNotFound) // nothing is captured

	s := w.stream()
	var all []model.Change
	for i := range 10 {
		all = append(all, s.Change(model.Insert, []string{"orders", "orders", "items"}[i%3], i, ""))
	}
	s.Write(2, all...)
	var want []model.Position
	for _, c := range all {
		if c.Table == "orders" {
			want = append(want, c.Pos)
		}
	}
	a := w.do("POST", path, `{"name":"billing","tables":["public.orders"],"from":"earliest"}`).Want(t, 201, "")
	made := decode[subscription](t, a)
	if made.Deliver != changefeed.Pull || made.Envelope != "athena" || made.Key == "" || made.Cursor == nil || made.Cursor.Pos == "" || a.Header.Get("Location") != path+"/billing" {
		t.Errorf("got %s", a.Raw)
	}
	w.do("POST", path, `{"name":"billing"}`).Want(t, 409, athena.CodeConflict)
	if got := decode[[]subscription](t, w.do("GET", path, "").Want(t, 200, "")); len(got) != 1 || got[0].Name != "billing" || got[0].Cursor.Pos != made.Cursor.Pos {
		t.Errorf("got %+v", got)
	}
	if got := decode[view](t, w.do("POST", "/cdc/shop/enable", `{"tables":["orders"]}`).Want(t, 202, "")); got.Subscriptions != 1 {
		t.Errorf("got %+v", got)
	}

	pull := func(query string) pulled {
		t.Helper()
		return decode[pulled](t, w.Do(t, reader, "GET", path+"/billing/changes?"+query, "").Want(t, 200, ""))
	}
	ack := func(cursor model.Position) {
		t.Helper()
		w.Do(t, reader, "POST", path+"/billing/ack", fmt.Sprintf(`{"cursor":%q}`, cursor)).Want(t, 200, "")
	}
	one := pull("max=3")
	if got := one.positions(t); !slices.Equal(got, want[:3]) || one.Cursor != want[2] || !one.More {
		t.Errorf("got %v, %+v", got, one)
	}
	if again := pull("max=3"); !slices.Equal(again.positions(t), want[:3]) {
		t.Errorf("what was not acknowledged came as %v", again.positions(t))
	}
	ack(one.Cursor)
	ack(one.Cursor) // twice is once
	rest := pull("")
	if got := rest.positions(t); !slices.Equal(got, want[3:]) || rest.More || rest.Cursor != all[9].Pos {
		t.Errorf("got %v, %+v", got, rest)
	}
	if got := decode[subscription](t, w.do("GET", path+"/billing", "").Want(t, 200, "")); got.Pending == nil || *got.Pending == 0 || got.Cursor.Pos != one.Cursor {
		t.Errorf("got %+v", got)
	}
	ack(rest.Cursor)
	if got := decode[subscription](t, w.do("GET", path+"/billing", "").Want(t, 200, "")); got.Pending == nil || *got.Pending != 0 {
		t.Errorf("got %+v", got)
	}

	// It waits, and what it does not want moves the cursor.
	if got := pull("wait=20ms"); len(got.Changes) != 0 || got.Cursor != rest.Cursor {
		t.Errorf("got %+v", got)
	}
	came := make(chan pulled, 1)
	go func() { came <- pull("wait=20s") }()
	unwanted := s.Insert("items", 11, "")
	c := s.Insert("orders", 12, "")
	if got := (<-came).positions(t); !slices.Equal(got, []model.Position{c.Pos}) {
		t.Errorf("got %v", got)
	}
	ack(c.Pos)
	unwanted = s.Insert("items", 13, "")
	waitFor(t, "the cursor to move", func() bool { return pull("wait=5ms").Cursor == unwanted.Pos })

	// It moves forward, and back only if it is told to.
	a = w.do("POST", path+"/billing/ack", fmt.Sprintf(`{"cursor":%q}`, want[0])).Want(t, 409, athena.CodeConflict)
	if a.Details["cursor"] != string(c.Pos) {
		t.Errorf("got %s", a.Raw)
	}
	w.do("POST", path+"/billing/ack", fmt.Sprintf(`{"cursor":%q,"rewind":true}`, want[0])).Want(t, 200, "")
	if got := pull("").positions(t); !slices.Equal(got, append(want[1:], c.Pos)) {
		t.Errorf("after going back: %v", got)
	}
	for _, cursor := range []string{"FFFFFFFFFFFFFFFF.00000001", string(unwanted.Pos) + "s", "last", ""} {
		if a := w.do("POST", path+"/billing/ack", fmt.Sprintf(`{"cursor":%q}`, cursor)).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != "cursor" {
			t.Errorf("%s: %s", cursor, a.Raw)
		}
	}
	s.Drop(4)
	w.do("GET", path+"/billing/changes", "").Want(t, 410, athena.CodeCursorExpired)
	w.do("POST", path+"/billing/ack", fmt.Sprintf(`{"cursor":%q,"rewind":true}`, made.Cursor.Pos)).Want(t, 410, athena.CodeCursorExpired)
	if got := decode[subscription](t, w.do("GET", path+"/billing", "").Want(t, 200, "")); got.Pending != nil {
		t.Errorf("got %+v", got)
	}

	w.do("DELETE", path+"/billing", "").Want(t, 200, "")
	waitFor(t, "the subscription to be gone", func() bool { return w.do("GET", path+"/billing", "").Code == 404 })
	w.do("DELETE", path+"/billing", "").Want(t, 404, athena.CodeNotFound)
	w.do("GET", path+"/billing/changes", "").Want(t, 404, athena.CodeNotFound)
	w.do("POST", path+"/billing/ack", `{"cursor":"0"}`).Want(t, 404, athena.CodeNotFound)
	// A new one of the name begins where it is told to.
	made = decode[subscription](t, w.do("POST", path, `{"name":"billing"}`).Want(t, 201, ""))
	if made.Cursor.Pos != unwanted.Pos || made.From != "now" {
		t.Errorf("got %+v", made)
	}
	if got := pull(""); len(got.Changes) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestASubscriptionIsMadeBeforeItsStream(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("POST", "/cdc/shop/enable", `{"tables":["orders"]}`).Want(t, 202, "")
	w.do("POST", "/cdc/shop/subscriptions", `{"name":"early","envelope":"cloudevents"}`).Want(t, 201, "")
	s := w.stream()
	c := s.Insert("orders", 1, "")
	got := decode[pulled](t, w.do("GET", "/cdc/shop/subscriptions/early/changes?wait=20s", "").Want(t, 200, ""))
	if len(got.Changes) != 1 || got.Cursor != c.Pos || !strings.Contains(string(got.Changes[0]), "specversion") {
		t.Errorf("got %+v", got)
	}
}

func TestWrongSubscriptionsAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.stream().Insert("orders", 1, "")
	for body, field := range map[string]string{
		`{}`:                                       "name",
		`{"name":"A"}`:                             "name",
		`{"name":"a","tables":["x.y.z"]}`:          "tables",
		`{"name":"a","ops":["upsert"]}`:            "ops",
		`{"name":"a","where":"1"}`:                 "where",
		`{"name":"a","from":"then"}`:               "from",
		`{"name":"a","envelope":"avro"}`:           "envelope",
		`{"name":"a","deliver":"mail"}`:            "deliver",
		`{"name":"a","url":"https://example.com"}`: "url",
		`{"name":"a","batch":5}`:                   "batch",
		`{"name":"a","deliver":"webhook"}`:         "url",
		`{"name":"a","deliver":"webhook","url":"https://example.com","batch":5000}`: "batch",
		`{"name":"a","deliver":"webhook","url":"http://127.0.0.1/"}`:                "url",
		`{"name":"a","deliver":"webhook","url":"ftp://example.com/"}`:               "url",
		`{"name":"a","filter":"x"}`:                                                 "filter",
	} {
		if a := w.do("POST", "/cdc/shop/subscriptions", body).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%s: %s", body, a.Raw)
		}
	}
	w.do("POST", "/cdc/shop/subscriptions", `{"name":"a","from":"FFFFFFFFFFFFFFFF.00000001"}`).Want(t, 410, athena.CodeCursorExpired)
	for query, field := range map[string]string{"max=0": "max", "max=5001": "max", "wait=2m": "wait", "wait=x": "wait", "most=1": "most"} {
		if a := w.do("GET", "/cdc/shop/subscriptions/a/changes?"+query, "").Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%s: %s", query, a.Raw)
		}
	}
}

func TestAWebhooksSubscription(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	c := s.Insert("orders", 1, "")
	a := w.do("POST", "/cdc/shop/subscriptions", `{"name":"search","deliver":"webhook","url":"https://192.0.2.7/changes","batch":10,"from":"earliest"}`)
	if a.Code == http.StatusBadRequest { // 192.0.2.0/24 is for documents, which the guard minds
		a = w.do("POST", "/cdc/shop/subscriptions", `{"name":"search","deliver":"webhook","url":"https://8.8.8.8/changes","batch":10,"from":"earliest"}`)
	}
	made := decode[subscription](t, a.Want(t, 201, ""))
	w.do("GET", "/cdc/shop/subscriptions/search/changes", "").Want(t, 409, athena.CodeConflict)

	// It was stopped by its receiver; who says where to go on starts it again.
	cur, err := w.Changes.Cursor(t.Context(), "shop", "search")
	if err != nil {
		t.Fatal(err)
	}
	cur.Stopped, cur.Attempts, cur.LastError, cur.Acked = "gone", 7, "410", 3
	if err := w.Changes.PutCursor(t.Context(), "shop", "search", cur); err != nil {
		t.Fatal(err)
	}
	got := decode[subscription](t, w.do("GET", "/cdc/shop/subscriptions/search", "").Want(t, 200, ""))
	if got.Cursor.Stopped != "gone" || got.Cursor.Acked != 3 || got.URL == "" || got.Batch != 10 {
		t.Errorf("got %+v", got)
	}
	w.do("POST", "/cdc/shop/subscriptions/search/ack", fmt.Sprintf(`{"cursor":%q}`, made.Cursor.Pos)).Want(t, 200, "")
	if cur, err = w.Changes.Cursor(t.Context(), "shop", "search"); err != nil || cur.Stopped != "" || cur.Attempts != 0 || cur.Acked != 3 || cur.Pos != made.Cursor.Pos {
		t.Errorf("got %+v, %v", cur, err)
	}
	w.do("POST", "/cdc/shop/subscriptions/search/ack", fmt.Sprintf(`{"cursor":%q}`, c.Pos)).Want(t, 200, "")
}

// TestALongPullEndsWhenItsGroundsDo: nobody gets changes by a key that is over.
func TestALongPullEndsWhenItsGroundsDo(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	s.Insert("orders", 1, "")
	w.do("POST", "/cdc/shop/subscriptions", `{"name":"s"}`).Want(t, 201, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL+"/cdc/shop/subscriptions/s/changes?wait=50s", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	got := make(chan int, 1)
	go func() {
		resp, err := w.HTTP.Do(req)
		if err != nil {
			got <- 0
			return
		}
		resp.Body.Close()
		got <- resp.StatusCode
	}()
	time.Sleep(200 * time.Millisecond) // it is most likely waiting by now; if not, it is refused sooner
	if _, err := w.Keys.Revoke(t.Context(), keyID(w.key), "test"); err != nil {
		t.Fatal(err)
	}
	if status := <-got; status != http.StatusUnauthorized {
		t.Errorf("it was answered with %d", status)
	}
}
