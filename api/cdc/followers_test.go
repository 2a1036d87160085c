package cdc_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// A table that is followed by name does not fall out of a capture.
func TestATableThatIsFollowedDoesNotFallOutOfACapture(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.a","public.b","public.c","public.d"]}`).Want(t, http.StatusAccepted, "")
	r := runs.Run{
		ID: "01a20e34-0000-7000-8000-000000000001", Pipeline: "copy", Kind: runs.Stream, Source: "shop", Want: runs.WantRun, State: runs.Streaming,
		Spec: []byte(`{"name":"copy","source":{"client":"shop","cdc":{"tables":["public.a","b"]}},"sink":{"client":"mart","table":"public.a","mode":"upsert"}}`),
	}
	r, err := w.Runs.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range map[string]string{"wide": "public.*", "narrow": "public.c"} {
		if err := w.Changes.PutSubscription(t.Context(), changefeed.Subscription{Client: "shop", Name: name, Tables: []string{table}}, changefeed.Genesis); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "who follows", func() bool { return len(w.Runs.Live()) == 1 && len(w.Changes.Subscriptions("shop")) == 2 })

	a := w.do("POST", "/cdc/shop/enable", `{"tables":["public.d"]}`).Want(t, http.StatusConflict, athena.CodeConflict)
	for _, part := range []string{`pipeline "copy" follows public.a`, `pipeline "copy" follows public.b`, `subscription "narrow" follows public.c`, "stop who follows"} {
		if !strings.Contains(a.Message, part) {
			t.Errorf("the message lacks %q: %s", part, a.Message)
		}
	}
	if list, _ := a.Details["followers"].([]any); len(list) != 3 || a.Details["field"] != "tables" {
		t.Errorf("got %s", a.Raw)
	}
	if c, _ := w.Changes.Capture("shop"); len(c.Tables) != 4 {
		t.Errorf("the capture has the tables %v", c.Tables)
	}
	// What a pattern names may fall out, and what nobody follows any more.
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.a","public.b","public.c"]}`).Want(t, http.StatusAccepted, "")
	if _, err := w.Runs.Change(t.Context(), r.ID, func(r *runs.Run) error { r.State = runs.Stopped; return nil }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the run", func() bool { return len(w.Runs.Live()) == 0 })
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.c"]}`).Want(t, http.StatusAccepted, "")
}

// A capture is changed at the revision that was read, or not at all.
func TestACaptureIsChangedAtTheRevisionThatWasRead(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.do("POST", "/cdc/shop/enable", `{"tables":["a"]}`, `If-Match: "7"`).Want(t, http.StatusConflict, athena.CodeConflict)
	first := w.do("POST", "/cdc/shop/enable", `{"tables":["a"]}`).Want(t, http.StatusAccepted, "").Header.Get("ETag")
	if read := w.do("GET", "/cdc/shop", "").Want(t, http.StatusOK, "").Header.Get("ETag"); first == "" || read != first {
		t.Errorf("the capture is %s, and read as %s", first, read)
	}
	second := w.do("POST", "/cdc/shop/enable", `{"tables":["a","b"]}`, "If-Match: "+first).Want(t, http.StatusAccepted, "").Header.Get("ETag")
	w.do("POST", "/cdc/shop/enable", `{"tables":["a","c"]}`, "If-Match: "+first).Want(t, http.StatusConflict, athena.CodeConflict)
	w.do("POST", "/cdc/shop/enable", `{"tables":["a","c"]}`, "If-Match: "+second).Want(t, http.StatusAccepted, "")
	a := w.do("POST", "/cdc/shop/enable", `{"tables":["a"]}`, "If-Match: 7").Want(t, http.StatusBadRequest, athena.CodeInvalidRequest)
	if a.Details["field"] != "If-Match" {
		t.Errorf("got %s", a.Raw)
	}
}
