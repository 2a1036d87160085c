package cdc_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	model "github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
)

// view is a capture as it is shown.
type view struct {
	Capture *changefeed.Capture
	Status  *changefeed.Status
	Stream  *struct {
		Messages, Bytes uint64
		MaxBytes        int64          `json:"max_bytes"`
		First           model.Position `json:"first_position"`
		Last            model.Position `json:"last_position"`
		Oldest          time.Time
	}
	Subscriptions int
}

// TestTheOrderOfChecks asks the same of clients in every condition: each answer
// is another one, and no backend is asked for before its turn.
func TestTheOrderOfChecks(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.stream().Insert("orders", 1, "")
	w.Client(t, "cold", func(c *athena.Client) { c.Lifecycle = athena.Frozen })
	w.Client(t, "old", func(c *athena.Client) { c.Lifecycle = athena.Inactive })
	w.Client(t, "poor", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery) })
	foreign, err := w.Bus.JetStream().KeyValue(t.Context(), bus.BucketCatalog)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.PutString(t.Context(), "scylla", `{"v":1,"definition":{"client_name":"scylla","engine":"scylla","lifecycle":"active","capabilities":{"cdc":true},"connection":{"hosts":["h"]}}}`); err != nil {
		t.Fatal(err)
	}
	if err := w.Catalog.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, bound, reader := w.Key(t, []string{"query", "schema"}), w.Key(t, []string{"cdc"}, "lake"), w.Key(t, []string{"cdc:read"})
	const tables, named = `{"tables":["public.orders"]}`, `{"name":"s"}`
	for route, kind := range map[string]struct {
		body          string
		writes, holds bool
	}{
		"GET ":                         {"", false, true},
		"POST /check":                  {tables, true, false},
		"POST /enable":                 {tables, true, false},
		"POST /disable":                {"", true, true},
		"GET /snapshots":               {"", false, true},
		"POST /snapshots":              {tables, true, false},
		"DELETE /snapshots/x":          {"", true, true},
		"GET /stream":                  {"", false, false},
		"GET /objects/x":               {"", false, false},
		"GET /subscriptions":           {"", false, true},
		"POST /subscriptions":          {named, true, false},
		"GET /subscriptions/s":         {"", false, true},
		"DELETE /subscriptions/s":      {"", true, true},
		"GET /subscriptions/s/changes": {"", false, false},
		"POST /subscriptions/s/ack":    {`{"cursor":"0"}`, false, true},
	} {
		t.Run(route, func(t *testing.T) {
			method, path, _ := strings.Cut(route, " ")
			steps := []struct {
				who, key, client string
				status           int
				code             athena.Code
			}{
				{"a stranger", "", "shop", 401, athena.CodeUnauthenticated},
				{"a stranger who asks for nobody", "", "nobody", 401, athena.CodeUnauthenticated},
				{"a key without the right", other, "shop", 403, athena.CodeForbidden},
				{"a key of other clients", bound, "shop", 403, athena.CodeForbidden},
				{"a key of other clients that asks for nobody", bound, "nobody", 403, athena.CodeForbidden},
				{"a client that is not there", w.key, "nobody", 404, athena.CodeClientNotFound},
				{"an inactive client", w.key, "old", 410, athena.CodeClientInactive},
				{"a client without the capability", w.key, "poor", 403, athena.CodeCapabilityDenied},
				{"an engine that cannot", w.key, "scylla", 422, athena.CodeCapabilityUnsupported},
			}
			if kind.writes {
				steps = append(steps, steps[0])
				steps[len(steps)-1].who, steps[len(steps)-1].key = "a key that may read", reader
				steps[len(steps)-1].status, steps[len(steps)-1].code = 403, athena.CodeForbidden
			}
			before := w.Opens.Load()
			for _, step := range steps {
				a := w.Do(t, step.key, method, "/cdc/"+step.client+path, kind.body)
				if a.Code != step.status || a.Kind != step.code {
					t.Errorf("%s: got %d %s, want %d %s: %s", step.who, a.Code, a.Kind, step.status, step.code, a.Raw)
				}
			}
			if a := w.do(method, "/cdc/cold"+path, kind.body); kind.holds == (a.Kind == athena.CodeClientFrozen) {
				t.Errorf("a frozen client: %d %s", a.Code, a.Raw)
			}
			if kind.body != "" {
				if a := w.do(method, "/cdc/nobody"+path, `{"x":1}`); a.Kind != athena.CodeInvalidRequest {
					t.Errorf("a wrong body of a client that is not there: %s", a.Raw)
				}
				if a := w.Do(t, other, method, "/cdc/nobody"+path, `{"x":1}`); a.Kind != athena.CodeForbidden {
					t.Errorf("a wrong body without the right: %s", a.Raw)
				}
			}
			if a := w.do(method, "/cdc/nobody"+path+"?verbose=1", kind.body); a.Kind != athena.CodeInvalidRequest {
				t.Errorf("a parameter that there is not: %s", a.Raw)
			}
			if n := w.Opens.Load() - before; n != 0 {
				t.Errorf("%d connections were opened", n)
			}
		})
	}
	w.Do(t, other, "GET", "/cdc", "").Want(t, 403, athena.CodeForbidden)
}

func TestACaptureIsEnabledChangedAndEnded(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("GET", "/cdc/shop", "").Want(t, 404, athena.CodeNotFound)
	w.do("POST", "/cdc/shop/disable", "").Want(t, 404, athena.CodeNotFound)

	a := w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders","items","public.orders"]}`).Want(t, 202, "")
	v := decode[view](t, a)
	c := v.Capture
	want := changefeed.Capture{Client: "shop", Tables: []driver.TableName{{Schema: "public", Table: "items"}, {Schema: "public", Table: "orders"}}}.WithDefaults()
	if c.ID == "" || c.CreatedAt.IsZero() || !slices.Equal(c.Tables, want.Tables) || c.Slot != "athena_shop" || c.Pack != 512 || c.Snapshot != "initial" || c.MaxAge != want.MaxAge {
		t.Errorf("got %+v", c)
	}
	if v.Status.State != changefeed.Waiting || v.Status.Cause != nil || v.Stream != nil || a.Header.Get("Location") != "/cdc/shop" {
		t.Errorf("got %s", a.Raw)
	}
	if got := w.Source.Asked(); len(got) != 1 || got[0].Slot != "athena_shop" || len(got[0].Tables) != 2 {
		t.Errorf("asked about %+v", got)
	}

	// The same again changes nothing.
	before, _ := w.Changes.Capture("shop")
	a = w.do("POST", "/cdc/shop/enable", `{"tables":["public.items","public.orders"],"pack":512,"snapshot":"initial","on_loss":"fail"}`).Want(t, 200, "")
	if after, _ := w.Changes.Capture("shop"); after.Revision != before.Revision || decode[view](t, a).Capture.ID != c.ID {
		t.Errorf("it went from %d to %d", before.Revision, after.Revision)
	}
	// Another list of tables is put in its place.
	a = w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"],"max_age":"1h","pack":1,"local_only":true,"inserts_only":true}`).Want(t, 202, "")
	if got := decode[view](t, a).Capture; !got.LocalOnly || !got.InsertsOnly || got.ID != c.ID || len(got.Tables) != 1 || got.Pack != 1 || got.MaxAge.Std() != time.Hour || !got.CreatedAt.Equal(c.CreatedAt) {
		t.Errorf("got %+v", got)
	}
	a = w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"],"confidence":"2s","no_sweep":true}`).Want(t, 202, "")
	if got := decode[view](t, a).Capture; got.Confidence.Std() != 2*time.Second || !got.NoSweep || got.Setup().Sweep >= 0 {
		t.Errorf("got %+v", got)
	}
	if kept, ok := w.Changes.Capture("shop"); !ok || !kept.NoSweep { // it can be read as it was written
		t.Errorf("%+v was kept", kept)
	}
	for field, body := range map[string]string{
		"sweep":      `{"tables":["public.orders"],"sweep":"1ms"}`,
		"no_sweep":   `{"tables":["public.orders"],"sweep":"1h","no_sweep":true}`,
		"confidence": `{"tables":["public.orders"],"confidence":"2h"}`,
	} {
		if a := w.do("POST", "/cdc/shop/enable", body).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%s: %s", field, a.Raw)
		}
	}
	for field, body := range map[string]string{
		"slot":        `{"tables":["a"],"slot":"mine"}`,
		"publication": `{"tables":["a"],"publication":"mine"}`,
		"take_over":   `{"tables":["a"],"take_over":true}`,
		"purge":       `{"tables":["a"],"purge":true}`,
	} {
		if a := w.do("POST", "/cdc/shop/enable", body).Want(t, 409, athena.CodeConflict); a.Details["field"] != field {
			t.Errorf("%s: %s", field, a.Raw)
		}
	}

	// As its worker tells.
	st := changefeed.Status{Capture: c.ID, Client: "shop", State: changefeed.Streaming, Worker: "w1", Position: "00000000000003F8.00000001", LagBytes: 7, At: time.Now().UTC()}
	if err := w.Changes.PutStatus(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	s := w.stream()
	first, last := s.Insert("orders", 1, ""), s.Insert("orders", 2, "")
	v = decode[view](t, w.do("GET", "/cdc/shop", "").Want(t, 200, ""))
	if v.Status.State != changefeed.Streaming || v.Status.LagBytes != 7 || v.Stream.Messages != 2 || v.Stream.First != first.Pos || v.Stream.Last != last.Pos ||
		v.Stream.Bytes == 0 || v.Stream.MaxBytes != 1<<30 || v.Stream.Oldest.IsZero() {
		t.Errorf("got %+v, %+v", v.Status, v.Stream)
	}
	st.At = time.Now().Add(-time.Minute).UTC()
	if err := w.Changes.PutStatus(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	v = decode[view](t, w.do("GET", "/cdc/shop", "").Want(t, 200, ""))
	if v.Status.State != changefeed.Waiting || v.Status.Cause == nil || v.Status.Cause.Code != "no_worker" || v.Status.Position != st.Position {
		t.Errorf("got %+v", v.Status)
	}

	// Captures are seen by who may act as their clients.
	w.Client(t, "lake", nil)
	w.do("POST", "/cdc/lake/enable", `{"tables":["a.b"]}`).Want(t, 202, "")
	for key, want := range map[string][]string{
		w.key: {"lake", "shop"}, w.Key(t, []string{"cdc:read"}, "lake"): {"lake"}, w.Key(t, []string{"cdc"}, "nobody"): nil,
	} {
		var got []string
		for _, v := range decode[[]view](t, w.Do(t, key, "GET", "/cdc", "").Want(t, 200, "")) {
			got = append(got, v.Capture.Client)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}

	v = decode[view](t, w.do("POST", "/cdc/shop/disable", "").Want(t, 202, ""))
	if !v.Capture.Removing || v.Capture.Purge || v.Status.State != changefeed.Removing {
		t.Errorf("got %+v, %+v", v.Capture, v.Status)
	}
	if v = decode[view](t, w.do("POST", "/cdc/shop/disable", `{"purge":true}`).Want(t, 202, "")); !v.Capture.Purge {
		t.Errorf("got %+v", v.Capture)
	}
	if v = decode[view](t, w.do("POST", "/cdc/shop/disable", `{"purge":false}`).Want(t, 202, "")); !v.Capture.Purge {
		t.Errorf("what was asked for is not taken back: %+v", v.Capture)
	}
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"]}`).Want(t, 409, athena.CodeConflict)

	// The worker is done. What it has left goes on, unless it is purged.
	gone, _ := w.Changes.Capture("shop")
	if err := w.Changes.ForgetCapture(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the capture to be gone", func() bool { _, ok := w.Changes.Capture("shop"); return !ok })
	if v = decode[view](t, w.do("GET", "/cdc/shop", "").Want(t, 200, "")); v.Capture != nil || v.Stream == nil {
		t.Errorf("got %+v", v)
	}
	v = decode[view](t, w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"]}`).Want(t, 202, ""))
	if v.Capture.ID == c.ID || v.Stream == nil || v.Stream.Messages != 2 || v.Status.State != changefeed.Waiting || v.Status.Position != "" {
		t.Errorf("got %+v, %+v", v, v.Status)
	}
	gone, _ = w.Changes.Capture("shop")
	if err := w.Changes.ForgetCapture(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the capture to be gone", func() bool { _, ok := w.Changes.Capture("shop"); return !ok })
	if v = decode[view](t, w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"],"purge":true}`).Want(t, 202, "")); v.Stream != nil || v.Capture.Purge {
		t.Errorf("got %+v", v)
	}
}

func TestAFrozenClientsCaptureIsSeenAndEnded(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"]}`).Want(t, 202, "")
	lifecycle(athena.Frozen)(w, auth.Key{})
	w.do("GET", "/cdc/shop", "").Want(t, 200, "")
	w.do("POST", "/cdc/shop/disable", "").Want(t, 202, "")
}

func TestWhatStandsInTheWayIsTold(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	check := driver.ChangeCheck{
		Findings: []driver.ChangeFinding{
			{Name: "privileges", Level: "ok", Found: "replication"},
			{Name: "wal_level", Level: "error", Found: "replica", Want: "logical", Mend: "ALTER SYSTEM SET wal_level = logical"},
		},
		Tables: []driver.ChangeTable{{Table: driver.TableName{Schema: "public", Table: "orders"}, Identity: "primary_key", Key: []string{"id"}}},
	}
	w.Source.Answer(check, nil)
	type checked struct {
		OK bool
		driver.ChangeCheck
	}
	if got := decode[checked](t, w.do("POST", "/cdc/shop/check", `{"tables":["orders"],"inserts_only":true}`).Want(t, 200, "")); got.OK || len(got.Findings) != 2 || len(got.Tables) != 1 {
		t.Errorf("got %+v", got)
	}
	if asked := w.Source.Asked(); !asked[0].InsertsOnly {
		t.Errorf("asked about %+v", asked)
	}
	a := w.do("POST", "/cdc/shop/enable", `{"tables":["orders"]}`).Want(t, 409, athena.CodeConflict)
	if list, _ := a.Details["findings"].([]any); len(list) != 1 {
		t.Errorf("got %s", a.Raw)
	}
	w.do("GET", "/cdc/shop", "").Want(t, 404, athena.CodeNotFound)
	w.Source.Answer(driver.ChangeCheck{}, nil)
	if got := decode[checked](t, w.do("POST", "/cdc/shop/check", `{"tables":["orders"]}`).Want(t, 200, "")); !got.OK {
		t.Errorf("got %+v", got)
	}

	// A database that this process does not reach is for a worker to judge.
	w.DB.Inject(func(f *memory.Faults) { f.Unreachable = true })
	w.Client(t, "far", nil)
	w.do("POST", "/cdc/far/check", `{"tables":["orders"]}`).Want(t, 503, athena.CodeBackendUnavailable)
	w.do("POST", "/cdc/far/enable", `{"tables":["orders"]}`).Want(t, 202, "")
}

func TestWrongCapturesAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for body, field := range map[string]string{
		`{}`:                                 "tables",
		`{"tables":[]}`:                      "tables",
		`{"tables":["a.b.c"]}`:               "tables[0]",
		`{"tables":["a",7]}`:                 "tables[1]",
		`{"tables":["a"],"snapshot":"all"}`:  "snapshot",
		`{"tables":["a"],"on_error":"skip"}`: "on_error",
		`{"tables":["a"],"on_loss":"hide"}`:  "on_loss",
		`{"tables":["a"],"max_age":"1s"}`:    "max_age",
		`{"tables":["a"],"max_age":"x"}`:     "max_age",
		`{"tables":["a"],"max_bytes":-1}`:    "max_bytes",
		`{"tables":["a"],"pack":513}`:        "pack",
		`{"tables":["a"],"slot":"` + strings.Repeat("x", 64) + `"}`: "slot",
		`{"tables":["a"],"publication":"a\u0000"}`:                  "publication",
		`{"tables":["` + strings.Repeat("x", 64) + `"]}`:            "tables[0]",
		`{"tables":["a"],"table":"b"}`:                              "table",
	} {
		for _, route := range []string{"check", "enable"} {
			if a := w.do("POST", "/cdc/shop/"+route, body).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
				t.Errorf("%s: %s", body, a.Raw)
			}
		}
	}
	if n := w.Opens.Load(); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("POST", "/cdc/shop/snapshots", `{"tables":["orders"]}`).Want(t, 404, athena.CodeNotFound)
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders","public.items"]}`).Want(t, 202, "")
	type snapshot = changefeed.SnapshotProgress
	if got := decode[[]snapshot](t, w.do("GET", "/cdc/shop/snapshots", "").Want(t, 200, "")); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	// A condition may ask other tables, so it takes the right to query.
	const where = `{"tables":["public.orders","items"],"where":"id > 7"}`
	w.do("POST", "/cdc/shop/snapshots", where).Want(t, 403, athena.CodeForbidden)
	a := w.Do(t, w.Key(t, []string{"cdc", "query:read"}), "POST", "/cdc/shop/snapshots", where).Want(t, http.StatusAccepted, "")
	one := decode[snapshot](t, a)
	if one.ID == "" || one.State != "requested" || len(one.Tables) != 2 || one.Tables[0].Where != "id > 7" || a.Header.Get("Location") != "/cdc/shop/snapshots" {
		t.Errorf("got %s", a.Raw)
	}
	two := decode[snapshot](t, w.do("POST", "/cdc/shop/snapshots", `{"tables":["public.orders"]}`).Want(t, 202, ""))
	requests := w.Changes.SnapshotRequests("shop")
	if len(requests) != 2 || requests[0].ID != one.ID || requests[1].ID != two.ID {
		t.Errorf("the requests are %+v", requests)
	}

	s := w.stream()
	s.Insert("orders", 1, "")
	s.Progress(snapshot{ID: one.ID, State: "running", At: time.Now().UTC(), Tables: []changefeed.TableProgress{{SnapshotTable: requests[0].Tables[0], Rows: 7, Total: 70}}})
	s.Progress(snapshot{ID: one.ID, State: "running", At: time.Now().UTC(), Tables: []changefeed.TableProgress{{SnapshotTable: requests[0].Tables[0], Rows: 14, Total: 70}}})
	list := decode[[]snapshot](t, w.do("GET", "/cdc/shop/snapshots", "").Want(t, 200, ""))
	if len(list) != 2 || list[0].ID != one.ID || list[0].State != "running" || list[0].Tables[0].Rows != 14 || list[1].State != "requested" {
		t.Errorf("got %+v", list)
	}
	w.do("DELETE", "/cdc/shop/snapshots/"+two.ID, "").Want(t, 200, "")
	waitFor(t, "the request to be gone", func() bool { return len(w.Changes.SnapshotRequests("shop")) == 1 })
	w.do("DELETE", "/cdc/shop/snapshots/"+two.ID, "").Want(t, 404, athena.CodeNotFound)

	for body, field := range map[string]string{
		`{}`:                          "tables",
		`{"tables":["public.nope"]}`:  "tables[0]",
		`{"tables":["orders","a.b"]}`: "tables[1]",
		`{"tables":["orders"],"where":"` + strings.Repeat("x", 17<<10) + `"}`: "where",
	} {
		if a := w.do("POST", "/cdc/shop/snapshots", body).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%.40s: %s", body, a.Raw)
		}
	}
	w.do("POST", "/cdc/shop/disable", "").Want(t, 202, "")
	w.do("POST", "/cdc/shop/snapshots", `{"tables":["orders"]}`).Want(t, 409, athena.CodeConflict)
}

func TestLargeValues(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("GET", "/cdc/shop/objects/nothing", "").Want(t, 404, athena.CodeNotFound)
	store, err := w.Bus.JetStream().CreateObjectStore(t.Context(), objects("shop"))
	if err != nil {
		t.Fatal(err)
	}
	value := strings.Repeat("a large value ", 100_000)
	for _, name := range []string{"0000000001B3A2F8.00000003.after.photo", "0000000001B3A2F8.00000003.after.a/b c?%"} {
		if _, err := store.PutString(t.Context(), name, value); err != nil {
			t.Fatal(err)
		}
		a := w.do("GET", "/cdc/shop/objects/"+escape(name), "").Want(t, 200, "")
		if string(a.Raw) != value || a.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %d bytes, %v", name, len(a.Raw), a.Header)
		}
	}
	w.do("GET", "/cdc/shop/objects/nothing", "").Want(t, 404, athena.CodeNotFound)
}
