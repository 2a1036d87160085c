package cdc_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/cdc"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/catalog"
	model "github.com/athena-pipelines/athena/pkg/cdc"
)

func positions(changes ...model.Change) (list []model.Position) {
	for _, c := range changes {
		list = append(list, c.Pos)
	}
	return list
}

func TestEventsComeAndGoOn(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	var all []model.Change
	for i := range 5 {
		all = append(all, s.Change(model.Insert, []string{"orders", "items"}[i%2], i, fmt.Sprintf(`{"id":%d,"note":"line\nbreak <&>"}`, i)))
	}
	s.Write(10, all[:3]...)
	r := w.open(w.key, "from=earliest")
	if got := r.changes(3); !slices.Equal(got, positions(all[:3]...)) {
		t.Errorf("got %v", got)
	}
	s.Write(10, all[3:]...)
	if got := r.changes(2); !slices.Equal(got, positions(all[3:]...)) {
		t.Errorf("got %v", got)
	}
	r.close()

	// The id of the last event wins over where the URL says to begin.
	r = w.open(w.key, "from=earliest", "Last-Event-ID: "+string(all[1].Pos))
	if got := r.changes(3); !slices.Equal(got, positions(all[2:]...)) {
		t.Errorf("behind the second: %v", got)
	}
	r.close()
	r = w.open(w.key, "tables=public.items&ops=insert,update&where="+url.QueryEscape(`after.id > 1`)+"&from=0")
	if got := r.changes(1); got[0] != all[3].Pos {
		t.Errorf("filtered: %v", got)
	}
	r.close()

	// Who begins now can come again before anything has come.
	r = w.open(w.key, "")
	first, ok := r.block()
	if !ok || !first.bare || first.id != string(all[4].Pos) {
		t.Errorf("the first block is %+v", first)
	}
	r.close()
	c := s.Insert("orders", 9, "")
	r = w.open(w.key, "", "Last-Event-ID: "+first.id)
	if got := r.changes(1); got[0] != c.Pos {
		t.Errorf("got %v", got)
	}
	r.close()

	r = w.open(w.key, "from=earliest&envelope=debezium")
	if e := r.next(); !strings.Contains(e.data, `"op":"c"`) || e.id != string(all[0].Pos) {
		t.Errorf("as debezium has it: %+v", e)
	}
	r.close()
	r = w.open(w.key, "from=earliest&envelope=cloudevents")
	if e := r.next(); !strings.Contains(e.data, `"specversion":"1.0"`) {
		t.Errorf("as a cloud event: %+v", e)
	}
}

func TestTheCursorMovesWhereNothingWantedComes(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *cdc.Config) { c.Heartbeat = 30 * time.Millisecond })
	s := w.stream()
	s.Insert("orders", 1, "")
	r := w.open(w.key, "tables=items")
	if e, ok := r.block(); !ok || !e.bare {
		t.Fatal(e)
	}
	var last model.Change
	for i := range 20 {
		last = s.Insert("orders", i, "")
	}
	for {
		e, ok := r.block()
		if !ok || !e.bare {
			t.Fatalf("got %+v", e)
		}
		if e.id == string(last.Pos) {
			break
		}
	}
	r.close()
	c := s.Insert("items", 1, "")
	r = w.open(w.key, "tables=items", "Last-Event-ID: "+r.lastID)
	if got := r.changes(1); got[0] != c.Pos {
		t.Errorf("got %v", got)
	}
	// A change that an envelope leaves out moves the cursor, too.
	r = w.open(w.key, "envelope=debezium")
	columns := s.Change(model.Schema, "items", 0, "")
	s.Write(1, columns)
	for {
		e, ok := r.block()
		if !ok || !e.bare {
			t.Fatalf("got %+v", e)
		}
		if e.id == string(columns.Pos) {
			break
		}
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	c := s.Insert("orders", 1, "")
	s.Insert("orders", 2, "")
	s.Insert("orders", 3, "")
	s.Drop(3)
	for query, field := range map[string]string{
		"tables=a.b.c":                       "tables",
		"tables=":                            "",
		"ops=upsert":                         "ops",
		"where=after.id":                     "where",
		"where=nope":                         "where",
		"from=yesterday":                     "from",
		"envelope=avro":                      "envelope",
		"from=now&from=now":                  "from",
		"since=now":                          "since",
		"key=ath_0000000000000000":           "key",
		"where=" + strings.Repeat("x", 5000): "where",
	} {
		if field == "" {
			continue
		}
		a := w.do("GET", "/cdc/shop/stream?"+query, "").Want(t, 400, athena.CodeInvalidRequest)
		if a.Details["field"] != field {
			t.Errorf("%.50s: %s", query, a.Raw)
		}
	}
	if a := w.do("GET", "/cdc/shop/stream", "", "Last-Event-ID: 7;").Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != "Last-Event-ID" {
		t.Errorf("got %s", a.Raw)
	}
	a := w.do("GET", "/cdc/shop/stream?from="+string(c.Pos), "").Want(t, 410, athena.CodeCursorExpired)
	if a.Retryable || a.Details["earliest"] == nil || a.Details["earliest"] == string(c.Pos) {
		t.Errorf("got %s", a.Raw)
	}
	w.do("GET", "/cdc/shop/stream", "", "Last-Event-ID: FFFFFFFFFFFFFFFF.00000001").Want(t, 410, athena.CodeCursorExpired)
	w.Client(t, "quiet", nil)
	w.do("GET", "/cdc/quiet/stream", "").Want(t, 404, athena.CodeNotFound)
	if a := w.Do(t, "", "GET", "/cdc/shop/stream?"+"apikey="+w.key, ""); a.Code != 401 {
		t.Errorf("a key in the query was answered with %d", a.Code)
	}
}

// TestAStreamEndsWhenItsGroundsDo: the heartbeat is far away, so that what ends
// the stream is the notice of the change.
func TestAStreamEndsWhenItsGroundsDo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		act  func(w *world, key auth.Key)
		want athena.Code
	}{
		"the key is revoked": {func(w *world, key auth.Key) {
			if _, err := w.Keys.Revoke(w.t.Context(), key.ID, "test"); err != nil {
				w.t.Fatal(err)
			}
		}, athena.CodeUnauthenticated},
		"the key expires":          {nil, athena.CodeUnauthenticated},
		"the client is frozen":     {lifecycle(athena.Frozen), athena.CodeClientFrozen},
		"the client is not active": {lifecycle(athena.Inactive), athena.CodeClientInactive},
		"the client is not granted": {func(w *world, _ auth.Key) {
			w.Client(w.t, "shop", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery) })
		}, athena.CodeCapabilityDenied},
		"the client is deleted": {func(w *world, _ auth.Key) {
			if err := w.Catalog.Delete(w.t.Context(), "shop", catalog.Any); err != nil {
				w.t.Fatal(err)
			}
		}, athena.CodeClientNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *cdc.Config) { c.Heartbeat = time.Hour })
			s := w.stream()
			spec := auth.NewKeySpec{Name: "reader", Grants: []auth.Grant{{Right: auth.CDC, Access: auth.Read}}}
			if test.act == nil {
				soon := time.Now().Add(1500 * time.Millisecond)
				spec.ExpiresAt = &soon
			}
			plain, key, err := w.Keys.Create(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			idle := w.open(plain, "from=earliest")
			other := w.open(w.key, "from=earliest")
			c := s.Insert("orders", 1, "")
			if got := idle.changes(1); got[0] != c.Pos {
				t.Fatal(got)
			}
			other.changes(1)
			if test.act != nil {
				test.act(w, key)
			}
			if code, cursor := idle.next().failure(t); code != test.want || cursor != string(c.Pos) {
				t.Errorf("it ended with %s at %s", code, cursor)
			}
			idle.ends()
			if test.want == athena.CodeUnauthenticated { // another's stream goes on
				c = s.Insert("orders", 2, "")
				if got := other.changes(1); got[0] != c.Pos {
					t.Errorf("got %v", got)
				}
			}
		})
	}
}

func lifecycle(to athena.Lifecycle) func(*world, auth.Key) {
	return func(w *world, _ auth.Key) {
		if _, err := w.Catalog.SetLifecycle(w.t.Context(), "shop", to, catalog.Any); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestAStreamEndsWithItsServer(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	url, stop := w.serve()
	w.URL = url
	c := s.Insert("orders", 1, "")
	r := w.open(w.key, "from=earliest")
	r.changes(1)
	if err := stop(); err != nil {
		t.Errorf("the server did not stop well: %v", err)
	}
	r.ends()
	if r.lastID != string(c.Pos) {
		t.Errorf("the last id is %s", r.lastID)
	}
}

func TestAStreamEndsWhenTheStreamIsRemoved(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	s.Insert("orders", 1, "")
	r := w.open(w.key, "from=earliest")
	r.changes(1)
	if err := w.Changes.DropStream(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if code, _ := r.next().failure(t); code != athena.CodeNotFound {
		t.Errorf("it ended with %s", code)
	}
}

// TestASlowReaderIsToldToComeAgain: for a server without patience every reader is
// slow.
func TestASlowReaderIsToldToComeAgain(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *cdc.Config) { c.Patience, c.Limit = time.Nanosecond, time.Hour })
	s := w.stream()
	var all []model.Change
	for i := range 5 {
		all = append(all, s.Change(model.Insert, "orders", i, ""))
	}
	s.Write(3, all...)
	var got []model.Position
	for query, last := "from=earliest", ""; len(got) < len(all); {
		var headers []string
		if last != "" {
			headers = []string{"Last-Event-ID: " + last}
		}
		r := w.open(w.key, query, headers...)
		got = append(got, r.changes(1)...)
		code, cursor := r.next().failure(t)
		if code != athena.CodeTimeout || cursor != string(got[len(got)-1]) {
			t.Errorf("it ended with %s at %s, behind %v", code, cursor, got)
		}
		r.ends()
		last = r.lastID
	}
	if !slices.Equal(got, positions(all...)) {
		t.Errorf("got %v", got)
	}
}

// TestAReaderThatNeverTakesIsCutOff: the server lets go of it.
func TestAReaderThatNeverTakesIsCutOff(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *cdc.Config) { c.Limit = 200 * time.Millisecond })
	s := w.stream()
	large := large(s, 120)
	conn := dial(t, w.URL)
	request(t, conn, w.key, "/cdc/shop/stream?from=earliest")
	waitFor(t, "the request to be over", func() bool { return strings.Contains(w.Log.String(), "route=/cdc/:client/stream") })
	r := w.answer(conn)
	had := 0
	for {
		e, ok := r.block()
		if !ok {
			break
		}
		if e.bare {
			continue
		}
		if e.name != "change" || e.change(t).Pos != large[had].Pos {
			t.Fatalf("number %d is %+v", had, e)
		}
		had++
	}
	if had == len(large) {
		t.Error("all of it went into the buffers of the system: the test proves nothing")
	}
}

// TestAReaderThatNeverTakesIsCutOffWhenItsGroundsEnd: the limit is far longer than
// the test.
func TestAReaderThatNeverTakesIsCutOffWhenItsGroundsEnd(t *testing.T) {
	t.Parallel()
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	for kind, headers := range map[string][]string{"events": nil, "websocket": upgrade} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := start(t, func(c *cdc.Config) { c.Limit = time.Hour })
			large(w.stream(), 120)
			request(t, dial(t, w.URL), w.key, "/cdc/shop/stream?from=earliest", headers...)
			time.Sleep(300 * time.Millisecond) // by now it is held up, most likely; if not, it ends sooner
			lifecycle(athena.Frozen)(w, auth.Key{})
			waitFor(t, "the request to be over", func() bool { return strings.Contains(w.Log.String(), "route=/cdc/:client/stream") })
		})
	}
}

func TestKeysOfBrowsers(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.stream().Insert("orders", 1, "")
	r := w.open("ath_none", "from=earliest", "Authorization: Basic x", "Sec-WebSocket-Protocol: athena, "+w.key)
	r.changes(1)
	a := w.Do(t, w.key, http.MethodGet, "/cdc/shop", "", "Sec-WebSocket-Protocol: athena, "+w.Admin)
	a.Want(t, 400, athena.CodeInvalidRequest) // two keys
}
