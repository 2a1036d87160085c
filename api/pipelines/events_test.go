package pipelines_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func names(list []event) string {
	var out []string
	for _, e := range list {
		out = append(out, e.name)
	}
	return strings.Join(out, " ")
}

func TestARunIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	w := start(t)
	r := decode[run](t, w.do("POST", "/pipelines", batch).Want(t, 202, ""))
	f := w.open(w.key, r.ID)
	if got := names(f.until("state")); got != "step state" {
		t.Errorf("it begins with %s", got)
	}
	w.to(r.ID, runs.Running)
	list := f.until("state")
	if names(list) != "step state" || list[1].run(t).State != runs.Running {
		t.Errorf("got %+v", list)
	}
	seen := list[1].id
	for n := range 3 {
		p := runs.Progress{Run: r.ID, At: time.Now().UTC(), Counts: runs.Counts{Read: int64(n)}, Rows: -1, Bytes: -1}
		if err := w.Runs.PutProgress(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		var got runs.Progress
		if err := json.Unmarshal([]byte(f.until("progress")[0].data), &got); err != nil || got.Counts.Read != int64(n) {
			t.Errorf("%v: %+v", err, got)
		}
	}
	w.change(r.ID, func(r *runs.Run) {
		r.Log("one")
		r.Log("two")
		r.State, r.EndedAt, r.Totals = runs.Succeeded, time.Now().UTC(), runs.Counts{Read: 9}
	})
	list = f.until("end")
	end := list[len(list)-1]
	if names(list) != "step step end" || end.run(t).Counts.Read != 9 {
		t.Errorf("got %+v", list)
	}
	if e, ok := f.next(); ok {
		t.Errorf("behind the end came %+v", e)
	}
	// Who comes again gets what is new, and nothing when all was told.
	f = w.open(w.key, r.ID, "Last-Event-ID: "+seen)
	if got := names(f.until("end")); got != "step step progress end" {
		t.Errorf("behind %s came %s", seen, got)
	}
	w.do("GET", "/runs/"+r.ID+"/events", "", "Last-Event-ID: "+end.id).Want(t, 204, "")
	for _, id := range []string{"x", "1", "1.x", "-1.2"} {
		w.do("GET", "/runs/"+r.ID+"/events", "", "Last-Event-ID: "+id).Want(t, 400, athena.CodeInvalidRequest)
	}
	w.do("GET", "/runs/nope/events", "").Want(t, 404, athena.CodeNotFound)
}

// TestAStreamOfEventsEndsWithItsKey: within a second, though nothing else happens.
func TestAStreamOfEventsEndsWithItsKey(t *testing.T) {
	t.Parallel()
	w := start(t)
	r := decode[run](t, w.do("POST", "/pipelines", batch).Want(t, 202, ""))
	key := w.Key(t, []string{"pipelines:read"})
	f := w.open(key, r.ID)
	f.until("state")
	id := strings.TrimPrefix(strings.Split(key, ".")[0], "ath_")
	if _, err := w.Keys.Revoke(t.Context(), id, "test"); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	list := f.until("error")
	var body struct{ Code athena.Code }
	if err := json.Unmarshal([]byte(list[0].data), &body); err != nil || body.Code != athena.CodeUnauthenticated {
		t.Errorf("got %+v", list)
	}
	if _, ok := f.next(); ok {
		t.Error("it goes on")
	}
	t.Logf("it ended %s after the key", time.Since(since).Round(time.Millisecond))
}

// TestTheOrderOfChecks asks all routes the same as callers of every kind.
func TestTheOrderOfChecks(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	w.put("changes", follower)
	id := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, "")).ID
	other, reader := w.Key(t, []string{"query", "cdc"}), w.Key(t, []string{"pipelines:read"})
	half := w.Key(t, []string{"pipelines"}, "shop") // not of the sink
	for route, kind := range map[string]struct {
		body   string
		writes bool
	}{
		"GET /pipelines":                      {"", false},
		"POST /pipelines":                     {batch, true},
		"POST /pipelines/plan":                {batch, false},
		"POST /pipelines/simulate":            {batch, false},
		"GET /pipelines/copy":                 {"", false},
		"PUT /pipelines/copy":                 {batch, true},
		"DELETE /pipelines/copy":              {"", true},
		"GET /pipelines/copy/runs":            {"", false},
		"POST /pipelines/copy/runs":           {`{}`, true},
		"POST /pipelines/templates/copy/runs": {`{}`, true},
		"POST /pipelines/changes/start":       {`{}`, true},
		"POST /pipelines/changes/pause":       {"", true},
		"POST /pipelines/changes/resume":      {"", true},
		"POST /pipelines/changes/stop":        {"", true},
		"GET /pipelines/copy/dead":            {"", false},
		"DELETE /pipelines/copy/dead":         {"", true},
		"POST /pipelines/copy/dead/redrive":   {`{}`, true},
		"GET /runs/" + id:                     {"", false},
		"GET /runs/" + id + "/events":         {"", false},
		"GET /runs/" + id + "/dead":           {"", false},
		"POST /runs/" + id + "/cancel":        {"", true},
		"POST /runs/" + id + "/pause":         {"", true},
		"POST /runs/" + id + "/resume":        {"", true},
	} {
		t.Run(route, func(t *testing.T) {
			method, path, _ := strings.Cut(route, " ")
			w.Do(t, "", method, path, kind.body).Want(t, 401, athena.CodeUnauthenticated)
			w.Do(t, other, method, path, kind.body).Want(t, 403, athena.CodeForbidden)
			w.Do(t, other, method, path+"?verbose=1", kind.body).Want(t, 403, athena.CodeForbidden)
			w.do(method, path+"?verbose=1", kind.body).Want(t, 400, athena.CodeInvalidRequest)
			if kind.writes {
				w.Do(t, reader, method, path, kind.body).Want(t, 403, athena.CodeForbidden)
			}
			if kind.body != "" {
				w.Do(t, other, method, path, `{"x":1}`).Want(t, 403, athena.CodeForbidden)
				w.do(method, path, `{"x":1}`).Want(t, 400, athena.CodeInvalidRequest)
				w.do(method, path, `[]`).Want(t, 400, athena.CodeInvalidRequest)
				w.do(method, path, kind.body, "Content-Encoding: gzip").Want(t, 400, athena.CodeInvalidRequest)
			}
			// For a key of other clients, what is stored is not there.
			switch a := w.Do(t, half, method, path, kind.body); {
			case route == "GET /pipelines":
				if list := decode[[]pipeline](t, a); len(list) != 0 {
					t.Errorf("it sees %s", a.Raw)
				}
			case path == "/pipelines/plan" || path == "/pipelines/simulate":
				a.Want(t, 200, "")
				if !strings.Contains(string(a.Data), "bound to other clients") {
					t.Errorf("got %s", a.Raw)
				}
			case path == "/pipelines" || method == "PUT":
				a.Want(t, 403, athena.CodeForbidden)
			default:
				a.Want(t, 404, athena.CodeNotFound)
			}
		})
	}
	if n := w.Opens.Load(); n != 1 { // the sample of who may act as the source
		t.Errorf("%d connections were opened", n)
	}
	if all := w.Runs.Runs(""); len(all) != 1 || all[0].Want != runs.WantRun {
		t.Errorf("there are %+v", all)
	}
	bound := w.Key(t, []string{"pipelines"}, "shop", "mart")
	if list := decode[[]pipeline](t, w.Do(t, bound, "GET", "/pipelines", "").Want(t, 200, "")); len(list) != 2 {
		t.Errorf("got %+v", list)
	}
	w.Do(t, bound, "POST", "/pipelines/copy/runs", "").Want(t, 202, "")
}

// TestNoSecretIsShown looks for the password of the clients in every answer.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	id := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, "")).ID
	for _, route := range []string{"GET /pipelines", "GET /pipelines/copy", "GET /runs/" + id, "POST /pipelines/plan?level=connect", "POST /pipelines/simulate"} {
		method, path, _ := strings.Cut(route, " ")
		body := ""
		if method == "POST" {
			body = batch
		}
		if a := w.do(method, path, body); strings.Contains(string(a.Raw), apitest.Password) {
			t.Errorf("%s shows the password", route)
		}
	}
	if strings.Contains(w.Log.String(), apitest.Password) {
		t.Error("the log has the password")
	}
}
