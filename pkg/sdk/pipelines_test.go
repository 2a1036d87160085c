package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// scripted serves answers by method and path, and returns the API of that server.
func scripted(t *testing.T, routes map[string]http.HandlerFunc) *sdk.API {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	api, err := sdk.New(srv.URL, "k", sdk.Options{Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestPipelinesArePutOverTheRevisionThatWasSeen(t *testing.T) {
	t.Parallel()
	var headers []string
	api := scripted(t, map[string]http.HandlerFunc{"PUT /pipelines/a": func(w http.ResponseWriter, r *http.Request) {
		headers = append(headers, r.Header.Get("If-Match")+r.Header.Get("If-None-Match"))
		raw, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, `{"status":"success","data":{"name":"a","revision":4,"generation":2,"spec":%s}}`, raw)
	}})
	for _, expected := range []int64{sdk.Absent, sdk.Any, 7} {
		info, err := api.Pipelines().Put(t.Context(), "a", json.RawMessage(`{"name":"a"}`), expected)
		if err != nil || info.Generation != 2 || string(info.Spec) != `{"name":"a"}` {
			t.Errorf("%v: %+v", err, info)
		}
	}
	if want := []string{"*", "", `"7"`}; !slices.Equal(headers, want) {
		t.Errorf("got %q, want %q", headers, want)
	}
}

func TestARefusedRunHasItsPlan(t *testing.T) {
	t.Parallel()
	api := scripted(t, map[string]http.HandlerFunc{
		"POST /pipelines": says(403, `{"code":"capability_denied","message":"it is not granted","details":{"plan":{"verdict":"refused","stages":[{"stage":"sink","verdict":"refused","code":"capability_denied","field":"sink.client","detail":"no"}]}}}`),
		"POST /pipelines/plan": func(w http.ResponseWriter, r *http.Request) {
			var q sdk.PlanQuestion
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q.Name != "a" || q.Level != sdk.PlanSample || q.Params["x"] != "1" {
				t.Errorf("got %+v, %v", q, err)
			}
			says(200, `{"data":{"verdict":"ok","stages":[{"stage":"sink","verdict":"ok"}]}}`)(w, r)
		},
	})
	_, err := api.Pipelines().Run(t.Context(), json.RawMessage(`{}`), sdk.RunOptions{})
	plan := sdk.PlanOf(err)
	if athena.CodeOf(err) != athena.CodeCapabilityDenied || plan == nil || plan.Verdict != sdk.PlanRefused {
		t.Fatalf("got %v, %+v", err, plan)
	}
	if why := plan.Err(); athena.CodeOf(why) != athena.CodeCapabilityDenied || athena.AsError(why).Details["field"] != "sink.client" {
		t.Errorf("got %v", why)
	}
	if sdk.PlanOf(errors.New("x")) != nil || sdk.PlanOf(nil) != nil {
		t.Error("there is a plan where there is none")
	}
	plan, err = api.Pipelines().Plan(t.Context(), sdk.PlanQuestion{Name: "a", Level: sdk.PlanSample, Params: map[string]string{"x": "1"}})
	if err != nil || plan.Err() != nil {
		t.Errorf("got %v, %v", err, plan.Err())
	}
}

// TestRunsAreAskedForWithTheirOptions: one with an idempotency key is asked for
// again when the server is away.
func TestRunsAreAskedForWithTheirOptions(t *testing.T) {
	t.Parallel()
	var asked []string
	var calls atomic.Int64
	record := func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			says(503, `{"code":"bus_unavailable","message":"not now"}`)(w, r)
			return
		}
		raw, _ := io.ReadAll(r.Body)
		asked = append(asked, r.URL.RequestURI()+" "+r.Header.Get("Idempotency-Key")+" "+string(raw))
		says(202, `{"data":{"id":"r","state":"queued"}}`)(w, r)
	}
	api := scripted(t, map[string]http.HandlerFunc{
		"POST /pipelines/a/runs": record, "POST /pipelines/a/start": record, "POST /pipelines/a/dead/redrive": record,
		"POST /pipelines/a/pause": record, "POST /pipelines/a/resume": record, "POST /pipelines/a/stop": record,
		"POST /runs/r/cancel": record, "POST /runs/r/pause": record, "POST /runs/r/resume": record,
	})
	pl, ctx := api.Pipelines(), t.Context()
	_, err := pl.RunStored(ctx, "a", sdk.RunOptions{Params: map[string]string{"x": "1"}, Wait: 30 * time.Second, IdempotencyKey: "k"})
	_, err2 := pl.Start(ctx, "a", sdk.RunOptions{Reset: true})
	info, err3 := pl.Redrive(ctx, "a", sdk.RunOptions{})
	run := api.Run(info.ID)
	_, err4 := run.Cancel(ctx)
	_, err5 := run.Pause(ctx)
	_, err6 := run.Resume(ctx)
	if err := errors.Join(err, err2, err3, err4, err5, err6, pl.Pause(ctx, "a"), pl.Resume(ctx, "a"), pl.Stop(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`/pipelines/a/runs?wait=30s k {"params":{"x":"1"}}`, `/pipelines/a/start  {"reset":true}`, `/pipelines/a/dead/redrive  {}`,
		"/runs/r/cancel  ", "/runs/r/pause  ", "/runs/r/resume  ", "/pipelines/a/pause  ", "/pipelines/a/resume  ", "/pipelines/a/stop  ",
	}
	if !slices.Equal(asked, want) {
		t.Errorf("got\n%s", strings.Join(asked, "\n"))
	}
}

func TestRunsAndDeadRowsAreReadPageByPage(t *testing.T) {
	t.Parallel()
	pages := func(field string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("cursor") == "" {
				_, _ = fmt.Fprintf(w, `{"data":[{%s1%s},{%s2%s}],"meta":{"next_cursor":"c"}}`, field, field[:1], field, field[:1])
				return
			}
			_, _ = fmt.Fprintf(w, `{"data":[{%s3%s}],"meta":{}}`, field, field[:1])
		}
	}
	api := scripted(t, map[string]http.HandlerFunc{
		"GET /runs": pages(`"id":"`), "GET /pipelines/a/runs": pages(`"id":"`), "GET /pipelines/a/dead": pages(`"row":"`), "GET /runs/r/dead": pages(`"row":"`),
		"DELETE /pipelines/a/dead": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("upto") != "9" {
				t.Errorf("got %s", r.URL)
			}
			says(200, `{"data":{"deleted":2,"left":1}}`)(w, r)
		},
	})
	var got []string
	all := 0
	for _, err := range api.Pipelines().AllRuns(t.Context(), sdk.RunFilter{State: sdk.RunFailed, Page: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		all++
	}
	if all != 3 {
		t.Errorf("there are %d runs", all)
	}
	for info, err := range api.Pipelines().Runs(t.Context(), "a", sdk.RunFilter{State: sdk.RunFailed, Page: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.ID)
	}
	for row, err := range api.Pipelines().Dead(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, row.Row)
	}
	for row, err := range api.Run("r").Dead(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, row.Row)
	}
	if strings.Join(got, "") != strings.Repeat(`123`, 3) {
		t.Errorf("got %q", got)
	}
	if n, err := api.Pipelines().DeleteDead(t.Context(), "a", 9); err != nil || n != 2 {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestEventsOfARunGoOnWhereTheyWere(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	api := scripted(t, map[string]http.HandlerFunc{"GET /runs/r/events": func(w http.ResponseWriter, r *http.Request) {
		switch n := calls.Add(1); n {
		case 1:
			_, _ = io.WriteString(w, "retry: 1000\n\n: heartbeat\n\nid: 3.1\nevent: step\ndata: {\"n\":1,\"text\":\"asked for\"}\n\nevent: step\ndata: {\"n\":2") // and it breaks
		case 2:
			says(503, `{"code":"bus_unavailable","message":"not now"}`)(w, r)
		case 3:
			if last := r.Header.Get("Last-Event-Id"); last != "3.1" {
				t.Errorf("it goes on behind %q", last)
			}
			_, _ = io.WriteString(w, "id: 4.2\nevent: step\ndata: {\"n\":2,\"text\":\"led\"}\n\nevent: weather\ndata: {}\n\nid: 5.2\nevent: state\ndata: {\"id\":\"r\",\"state\":\"running\"}\n\nevent: progress\ndata: {\"run\":\"r\",\"rows\":7}\n\nid: 6.2\nevent: end\ndata: {\"id\":\"r\",\"state\":\"failed\",\"cause\":{\"code\":\"timeout\",\"stage\":\"sink\",\"message\":\"slow\"}}\n\n")
		default:
			t.Errorf("it is asked %d times", n)
		}
	}})
	var got []string
	for e, err := range api.Run("r").Events(t.Context()) {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Step != nil:
			got = append(got, e.Step.Text)
		case e.Progress != nil:
			got = append(got, fmt.Sprint(e.Progress.Rows))
		case e.Run != nil:
			got = append(got, string(e.Run.State))
			if err := e.Run.Err(); e.Run.State.Over() && (athena.CodeOf(err) != athena.CodeTimeout || athena.AsError(err).Details["stage"] != "sink") {
				t.Errorf("got %v", err)
			}
		}
	}
	if strings.Join(got, " ") != "asked for led running 7 failed" {
		t.Errorf("got %q", got)
	}
}

func TestEventsOfARunEndWithAnErrorThatStays(t *testing.T) {
	t.Parallel()
	api := scripted(t, map[string]http.HandlerFunc{
		"GET /runs/revoked/events": says(200, "event: error\ndata: {\"code\":\"unauthenticated\",\"message\":\"revoked\"}\n\n"),
		"GET /runs/none/events":    says(404, `{"code":"not_found","message":"none"}`),
		"GET /runs/told/events":    says(204, ""),
		"GET /runs/strange/events": says(200, "event: step\ndata: 7\n\n"),
	})
	for id, want := range map[string]athena.Code{"revoked": athena.CodeUnauthenticated, "none": athena.CodeNotFound, "told": "", "strange": athena.CodeInternal} {
		var last error
		for _, err := range api.Run(id).Events(t.Context()) {
			last = err
		}
		if athena.CodeOf(last) != want {
			t.Errorf("%s: %v", id, last)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range api.Run("told").Events(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}
