package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// sse writes an event of a change.
func sse(n int) string {
	return fmt.Sprintf("id: A.%d\nevent: change\ndata: {\"pos\":\"A.%d\",\"op\":\"insert\",\"client\":\"shop\",\"schema\":\"public\",\"table\":\"orders\",\"after\":{\"id\":%d}}\n\n", n, n, n)
}

func TestChangesGoOnWhereTheyWere(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	api := serve(t, map[string]http.HandlerFunc{"GET /cdc/shop/stream": func(w http.ResponseWriter, r *http.Request) {
		q, last := r.URL.Query(), r.Header.Get("Last-Event-Id")
		if r.Header.Get("Accept") != "text/event-stream" || q.Get("where") != "after.id > 0" || q.Get("from") != "earliest" ||
			q.Get("tables") != "public.orders,public.*" || q.Get("ops") != "insert,delete" {
			t.Errorf("%v with %v", q, r.Header)
		}
		want := map[int64]string{1: "", 2: "A.2", 3: "A.2", 4: "A.4"}[calls.Load()+1]
		if last != want {
			t.Errorf("request %d goes on behind %q, want %q", calls.Load()+1, last, want)
		}
		switch calls.Add(1) {
		case 1: // and it breaks in the middle of an event
			io.WriteString(w, ": hello\n\n"+sse(1)+sse(2)+"id: A.3\nevent: change\ndata: {\"pos\"")
		case 2:
			text(503, `{"code":"bus_unavailable","message":"stopping"}`)(w, r)
		case 3: // nothing that is wanted, but the cursor moves
			io.WriteString(w, "id: A.4\n\n: still here\n\nevent: error\ndata: {\"code\":\"timeout\",\"message\":\"too slow\"}\n\n")
		case 4:
			io.WriteString(w, sse(5)+"event: later\ndata: {}\n\nevent: error\ndata: {\"code\":\"client_frozen\",\"message\":\"frozen\"}\n\n"+sse(6))
		default:
			t.Error("it was asked again after an error that does not pass")
		}
	}})
	var got []cdc.Position
	var last error
	for c, err := range api.Changes(t.Context(), "shop", sdk.ChangesQuery{
		Tables: []string{"public.orders", "public.*"}, Ops: []cdc.Op{cdc.Insert, cdc.Delete}, Where: "after.id > 0", From: "earliest",
	}) {
		if last = err; err == nil {
			got = append(got, c.Pos)
			if c.Table != "orders" || string(c.After) != fmt.Sprintf(`{"id":%s}`, c.Pos[2:]) {
				t.Errorf("got %+v", c)
			}
		}
	}
	if fmt.Sprint(got) != "[A.1 A.2 A.5]" || athena.CodeOf(last) != athena.CodeClientFrozen {
		t.Errorf("got %v, then %v", got, last)
	}
}

func TestChangesEnd(t *testing.T) {
	t.Parallel()
	answer := func(h http.HandlerFunc) *sdk.API {
		return serve(t, map[string]http.HandlerFunc{"GET /cdc/shop/stream": h})
	}
	t.Run("with an error at the start", func(t *testing.T) {
		t.Parallel()
		n := 0
		for c, err := range answer(text(400, `{"code":"invalid_request","message":"where"}`)).Changes(t.Context(), "shop", sdk.ChangesQuery{}) {
			if n++; c != nil || athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Errorf("got %v, %v", c, err)
			}
		}
		if n != 1 {
			t.Errorf("%d things came", n)
		}
	})
	t.Run("with a change that is none", func(t *testing.T) {
		t.Parallel()
		for _, err := range answer(text(200, "id: 1\nevent: change\ndata: {}\n\n")).Changes(t.Context(), "shop", sdk.ChangesQuery{}) {
			if athena.CodeOf(err) != athena.CodeInternal {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("with the context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		api := answer(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, sse(1))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		var last error
		for c, err := range api.Changes(ctx, "shop", sdk.ChangesQuery{}) {
			if last = err; c != nil {
				cancel()
			}
		}
		if !errors.Is(last, context.Canceled) {
			t.Errorf("got %v", last)
		}
	})
	t.Run("with the loop", func(t *testing.T) {
		t.Parallel()
		for range answer(text(200, sse(1)+sse(2))).Changes(t.Context(), "shop", sdk.ChangesQuery{}) {
			break
		}
	})
	t.Run("at once where nothing is to be repeated", func(t *testing.T) {
		t.Parallel()
		api := newFake(t, []byte(sse(1)))
		var last error
		for _, err := range api.Changes(t.Context(), "shop", sdk.ChangesQuery{}) {
			last = err
		}
		if athena.CodeOf(last) != athena.CodeBackendUnavailable {
			t.Errorf("got %v", last)
		}
	})
}

func TestSubscriptionsArePulledAndAcknowledged(t *testing.T) {
	t.Parallel()
	body := func(r *http.Request) string {
		raw, _ := io.ReadAll(r.Body)
		return string(raw)
	}
	api := serve(t, map[string]http.HandlerFunc{
		"POST /cdc/shop/subscriptions": func(w http.ResponseWriter, r *http.Request) {
			if got := body(r); got != `{"name":"s","tables":["public.*"],"from":"earliest","deliver":"pull"}` {
				t.Errorf("body = %s", got)
			}
			text(201, `{"data":{"client":"shop","name":"s","deliver":"pull","cursor":{"pos":"A.1","acked":0}}}`)(w, r)
		},
		"GET /cdc/shop/subscriptions/s/changes": func(w http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); q.Get("max") != "10" || q.Get("wait") != "5s" {
				t.Errorf("query = %v", q)
			}
			text(200, `{"data":{"changes":[{"pos":"A.2","op":"insert"}],"cursor":"A.3","more":true}}`)(w, r)
		},
		"POST /cdc/shop/subscriptions/s/ack": func(w http.ResponseWriter, r *http.Request) {
			if got := body(r); got != `{"cursor":"A.3"}` {
				t.Errorf("body = %s", got)
			}
			text(200, `{"data":{"pos":"A.3"}}`)(w, r)
		},
		"DELETE /cdc/shop/subscriptions/s": text(204, ""),
		"GET /cdc/shop/objects/a%2Fb": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept") != "application/octet-stream" {
				t.Errorf("headers = %v", r.Header)
			}
			io.WriteString(w, `"large"`)
		},
	})
	shop := api.Client("shop").CDC()
	sub, err := shop.Subscribe(t.Context(), sdk.SubscriptionSpec{Name: "s", Tables: []string{"public.*"}, From: "earliest", Deliver: "pull"})
	if err != nil || sub.Name != "s" || sub.Cursor.Pos != "A.1" {
		t.Fatalf("got %+v, %v", sub, err)
	}
	got, err := shop.Pull(t.Context(), "s", 10, 5*time.Second)
	if err != nil || len(got.Changes) != 1 || got.Cursor != "A.3" || !got.More {
		t.Errorf("got %+v, %v", got, err)
	}
	large, err := shop.Object(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if raw, err := io.ReadAll(large); err != nil || string(raw) != `"large"` {
		t.Errorf("got %s, %v", raw, err)
	}
	if err := errors.Join(shop.Ack(t.Context(), "s", got.Cursor, false), shop.Unsubscribe(t.Context(), "s")); err != nil {
		t.Error(err)
	}
}

func FuzzChanges(f *testing.F) {
	f.Add([]byte(sse(1)))
	f.Add([]byte("id: 1\n\nevent: error\ndata: {}\n\nevent: change\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for range newFake(t, stream).Changes(t.Context(), "shop", sdk.ChangesQuery{}) { // must end, and not panic
		}
	})
}
