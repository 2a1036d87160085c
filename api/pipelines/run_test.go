package pipelines_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

func TestARunIsStoredAsAWorkerNeedsIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	made := w.put("copy", strings.Replace(batch, `{"source"`, `{"parallel":7,"source"`, 1))
	a := w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, "")
	got := decode[run](t, a)
	r, ok := w.Runs.Load(got.ID)
	if !ok || a.Header.Get("Location") != "/runs/"+got.ID {
		t.Fatalf("got %s", a.Raw)
	}
	if r.Pipeline != "copy" || r.PipelineID != made.ID || r.Generation != 1 || r.Kind != runs.Batch || r.Trigger != "api" || r.Key != made.Key ||
		r.Source != "shop" || r.Sink != "mart" || r.Parallel != 7 || r.State != runs.Queued || r.Want != runs.WantRun || r.CreatedAt.IsZero() ||
		len(r.Steps) != 1 || r.Steps[0].N != 1 || string(r.Spec) != string(made.Spec) {
		t.Errorf("got %+v", r)
	}
	// What is run at once belongs to itself.
	got = decode[run](t, w.do("POST", "/pipelines", batch).Want(t, 202, ""))
	r, _ = w.Runs.Load(got.ID)
	if r.Pipeline != "" || r.PipelineID != r.ID || r.Generation != 0 || r.Parallel != 2 {
		t.Errorf("got %+v", r)
	}
	// A template's values are in it.
	w.put("of-table", template)
	for _, path := range []string{"/pipelines/templates/of-table/runs", "/pipelines/of-table/runs"} {
		got = decode[run](t, w.do("POST", path, `{"params":{"table":"items"}}`).Want(t, 202, ""))
		r, _ = w.Runs.Load(got.ID)
		p, err := spec.Decode(r.Spec)
		if err != nil || p.Source.Table != "public.items" || len(p.Params) != 0 {
			t.Errorf("%v: %s", err, r.Spec)
		}
	}
	// The older form is translated.
	got = decode[run](t, w.do("POST", "/pipelines", `{"source":{"client":"shop","table_name":"public.orders","limit":5},"sink":{"client":"mart","table_name":"public.t"}}`).Want(t, 202, ""))
	if r, _ = w.Runs.Load(got.ID); !strings.Contains(string(r.Spec), `"table":"public.orders"`) {
		t.Errorf("got %s", r.Spec)
	}
}

func TestARunIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	// A worker: each new run succeeds.
	done := make(chan struct{})
	defer w.Runs.Subscribe(func(id string) {
		if r, ok := w.Runs.Load(id); ok && r.State == runs.Queued && r.Pipeline == "copy" {
			go func() {
				_, _ = w.Runs.Change(t.Context(), id, func(r *runs.Run) error {
					r.State, r.EndedAt, r.Totals = runs.Succeeded, time.Now().UTC(), runs.Counts{Read: 3, Written: 3}
					return nil
				})
				close(done)
			}()
		}
	})()
	got := decode[run](t, w.do("POST", "/pipelines/copy/runs?wait=20s", "").Want(t, 200, ""))
	<-done
	if got.State != runs.Succeeded || got.Counts.Written != 3 {
		t.Errorf("got %+v", got)
	}
	// Nobody takes this one up.
	if got := decode[run](t, w.do("POST", "/pipelines", `{"wait":"30ms",`+batch[1:]).Want(t, 202, "")); got.State != runs.Queued {
		t.Errorf("got %+v", got)
	}
	w.do("GET", "/runs/"+got.ID+"?wait=20s", "").Want(t, 200, "")
	for route, body := range map[string]string{
		"/pipelines?wait=2m":            batch,
		"/pipelines?wait=1s":            `{"wait":"1s",` + batch[1:],
		"/pipelines":                    `{"wait":"2m",` + batch[1:],
		"/pipelines?wait=soon":          batch,
		"/pipelines/copy/runs":          `{"wait":-1}`,
		"/pipelines/copy/runs?wait=61s": "",
	} {
		w.do("POST", route, body).Want(t, 400, athena.CodeInvalidRequest)
	}
}

func TestWhatCannotBeRunIsRefused(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	w.put("changes", follower)
	w.put("of-table", template)
	for name, tt := range map[string]struct {
		route, body string
		code        athena.Code
		field       string
	}{
		"a stream at once":                {"/pipelines", follower, athena.CodeInvalidRequest, "source.cdc"},
		"a schedule at once":              {"/pipelines", strings.Replace(scheduled, `{"source"`, `{"name":"a","source"`, 1), athena.CodeInvalidRequest, "schedule"},
		"a template at once":              {"/pipelines", template, athena.CodeInvalidRequest, "params.table"},
		"an unknown field":                {"/pipelines", `{"sorce":1}`, athena.CodeInvalidRequest, "sorce"},
		"an unknown client":               {"/pipelines", strings.Replace(batch, "shop", "nobody", 1), athena.CodeClientNotFound, "source.client"},
		"a template without its value":    {"/pipelines/templates/of-table/runs", `{}`, athena.CodeInvalidRequest, "params.table"},
		"a value that is none":            {"/pipelines/templates/of-table/runs", `{"params":{"table":"a;b"}}`, athena.CodeInvalidRequest, "params.table"},
		"a parameter that there is not":   {"/pipelines/copy/runs", `{"params":{"x":"1"}}`, athena.CodeInvalidRequest, "params.x"},
		"a field that there is not":       {"/pipelines/copy/runs", `{"parms":{}}`, athena.CodeInvalidRequest, "parms"},
		"a reset of a batch":              {"/pipelines/copy/runs", `{"reset":true}`, athena.CodeInvalidRequest, "reset"},
		"a batch that is started":         {"/pipelines/copy/start", ``, athena.CodeConflict, ""},
		"a stream that is run":            {"/pipelines/changes/runs", ``, athena.CodeConflict, ""},
		"a stream that is waited for":     {"/pipelines/changes/start", `{"wait":"1s"}`, athena.CodeInvalidRequest, "wait"},
		"a pipeline that is not there":    {"/pipelines/nope/runs", ``, athena.CodeNotFound, ""},
		"a batch that is stopped":         {"/pipelines/copy/stop", ``, athena.CodeConflict, ""},
		"a batch without schedule paused": {"/pipelines/copy/pause", ``, athena.CodeConflict, ""},
		"a stream that never ran paused":  {"/pipelines/changes/pause", ``, athena.CodeConflict, ""},
		"a stream that never ran resumed": {"/pipelines/changes/resume", ``, athena.CodeConflict, ""},
		"a stream that never ran stopped": {"/pipelines/changes/stop", ``, athena.CodeConflict, ""},
		"nothing to redrive":              {"/pipelines/copy/dead/redrive", ``, athena.CodeConflict, ""},
		"a run that is not there":         {"/runs/nope/cancel", ``, athena.CodeNotFound, ""},
		"a parameter of the query":        {"/pipelines/changes/start?reset=true", ``, athena.CodeInvalidRequest, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.do("POST", tt.route, tt.body)
			if field, _ := a.Details["field"].(string); a.Kind != tt.code || field != tt.field {
				t.Errorf("got %d %s", a.Code, a.Raw)
			}
		})
	}
	if all := w.Runs.Runs(""); len(all) != 0 {
		t.Errorf("stored were %+v", all)
	}
}

func TestARequestThatComesAgainMakesNoSecondRun(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	w.put("of-table", template)
	w.put("changes", follower)
	for path, body := range map[string]string{"/pipelines": batch, "/pipelines/copy/runs": "", "/pipelines/of-table/runs": `{"params":{"table":"a"}}`, "/pipelines/changes/start": `{"reset":true}`} {
		var ids sync.Map
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				a := w.do("POST", path, body, "Idempotency-Key: k1").Want(t, 202, "")
				ids.Store(decode[run](t, a).ID, true)
			})
		}
		all.Wait()
		n := 0
		ids.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Errorf("%s: %d runs were made", path, n)
		}
		if a := w.do("POST", path, body, "Idempotency-Key: k1").Want(t, 202, ""); a.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s: got %v", path, a.Header)
		}
	}
	w.do("POST", "/pipelines", strings.Replace(batch, "orders", "items", 1), "Idempotency-Key: k1").Want(t, 422, athena.CodeIdempotencyMismatch)
	w.do("POST", "/pipelines/of-table/runs", `{"params":{"table":"b"}}`, "Idempotency-Key: k1").Want(t, 422, athena.CodeIdempotencyMismatch)
	w.do("POST", "/pipelines/copy/runs", "", "Idempotency-Key: "+strings.Repeat("k", 256)).Want(t, 400, athena.CodeInvalidRequest)
	w.do("POST", "/pipelines/copy/runs", "", "Idempotency-Key:  ").Want(t, 400, athena.CodeInvalidRequest)
	if n := len(w.Runs.Runs("")); n != 4 {
		t.Errorf("%d runs are stored", n)
	}
}

func TestAStreamIsStartedOncePausedResumedAndStopped(t *testing.T) {
	t.Parallel()
	w := start(t)
	made := w.put("changes", follower)
	// Of many who start it at once, one does.
	var all sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 8 {
		all.Go(func() {
			a := w.do("POST", "/pipelines/changes/start", "")
			mu.Lock()
			defer mu.Unlock()
			codes[a.Code]++
		})
	}
	all.Wait()
	if codes[202] != 1 || codes[409] != 7 {
		t.Fatalf("got %v", codes)
	}
	r := w.Runs.Runs("changes")[0]
	if r.Kind != runs.Stream || r.Trigger != "start" || r.PipelineID != made.ID {
		t.Errorf("got %+v", r)
	}
	wants := func(path string, want runs.Want) {
		t.Helper()
		w.do("POST", "/pipelines/changes/"+path, "").Want(t, 202, "")
		if now, _ := w.Runs.Load(r.ID); now.Want != want {
			t.Errorf("after %s it is wanted to %s", path, now.Want)
		}
	}
	w.to(r.ID, runs.Streaming)
	w.do("DELETE", "/pipelines/changes", "").Want(t, 409, athena.CodeConflict)
	wants("pause", runs.WantPause)
	wants("resume", runs.WantRun) // before the worker came to it
	wants("pause", runs.WantPause)
	w.to(r.ID, runs.Paused)
	w.do("POST", "/pipelines/changes/pause", "").Want(t, 200, "") // it is so already
	wants("resume", runs.WantRun)
	if now, _ := w.Runs.Load(r.ID); now.State != runs.Queued {
		t.Errorf("it is %s, and no worker would take it up", now.State)
	}
	wants("stop", runs.WantStop)
	w.do("POST", "/pipelines/changes/resume", "").Want(t, 409, athena.CodeConflict)
	w.to(r.ID, runs.Stopped)
	w.do("POST", "/pipelines/changes/stop", "").Want(t, 200, "")
	w.do("POST", "/pipelines/changes/pause", "").Want(t, 409, athena.CodeConflict)
	w.do("POST", "/runs/"+r.ID+"/resume", "").Want(t, 409, athena.CodeConflict)

	// The next one goes on from the cursor, unless that is dropped.
	if _, err := w.Runs.PutCursor(t.Context(), made.ID, runs.Cursor{Position: cdc.Position("A.1")}); err != nil {
		t.Fatal(err)
	}
	second := decode[run](t, w.do("POST", "/pipelines/changes/start", "").Want(t, 202, ""))
	if c, _ := w.Runs.Cursor(t.Context(), made.ID); c.Position != "A.1" {
		t.Errorf("the cursor is at %q", c.Position)
	}
	w.do("POST", "/pipelines/changes/start", `{"reset":true}`).Want(t, 409, athena.CodeConflict)
	if c, _ := w.Runs.Cursor(t.Context(), made.ID); c.Position != "A.1" {
		t.Error("a start that was refused has dropped the cursor")
	}
	w.change(second.ID, func(r *runs.Run) {
		r.State, r.Cause, r.EndedAt = runs.Failed, &runs.Cause{Code: athena.CodeSchemaChanged, Message: "x"}, time.Now()
	})
	third := decode[run](t, w.do("POST", "/pipelines/changes/start", `{"reset":true}`).Want(t, 202, ""))
	if c, _ := w.Runs.Cursor(t.Context(), made.ID); c.Position != "" {
		t.Errorf("the cursor is at %q", c.Position)
	}
	// The one that failed cannot be resumed beside it, but after it.
	w.do("POST", "/runs/"+second.ID+"/resume", "").Want(t, 409, athena.CodeConflict)
	w.to(third.ID, runs.Stopped)
	got := decode[run](t, w.do("POST", "/runs/"+second.ID+"/resume", "").Want(t, 202, ""))
	if now, _ := w.Runs.Load(second.ID); got.State != runs.Queued || now.Cause != nil || !now.EndedAt.IsZero() || !strings.Contains(now.Steps[len(now.Steps)-1].Text, "failed") {
		t.Errorf("got %+v", now)
	}
	w.do("POST", "/pipelines/changes/start", "").Want(t, 409, athena.CodeConflict)
	// A batch in its place leaves the stream to be stopped.
	w.put("changes", batch)
	w.do("POST", "/pipelines/changes/stop", "").Want(t, 202, "")
}

func TestARunIsPausedResumedAndCancelled(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", scheduled)
	r := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, ""))
	path := "/runs/" + r.ID
	w.do("POST", path+"/pause", "").Want(t, 202, "")
	w.to(r.ID, runs.Paused)
	w.do("POST", path+"/pause", "").Want(t, 200, "")
	w.do("POST", path+"/resume", "").Want(t, 202, "")
	w.do("POST", path+"/cancel", "").Want(t, 202, "")
	w.do("POST", path+"/cancel", "").Want(t, 202, "") // once more changes nothing
	w.do("POST", path+"/pause", "").Want(t, 409, athena.CodeConflict)
	w.do("POST", path+"/resume", "").Want(t, 409, athena.CodeConflict)
	before, _ := w.Runs.Load(r.ID)
	var steps []string
	for _, s := range before.Steps {
		steps = append(steps, s.Text)
	}
	if got := strings.ReplaceAll(strings.Join(steps, "; "), before.Key, "K"); got != "asked for by key K; key K wants it paused; it is paused; key K had it go on; it was paused; key K wants it cancelled" {
		t.Errorf("its steps are %s", got)
	}
	w.to(r.ID, runs.Cancelled)
	w.do("POST", path+"/cancel", "").Want(t, 200, "")
	w.do("POST", path+"/resume", "").Want(t, 409, athena.CodeConflict)
	w.do("POST", path+"/cancel", "", "Content-Type: application/json").Want(t, 200, "")

	// Pausing the pipeline is pausing its schedule.
	if p := decode[pipeline](t, w.do("POST", "/pipelines/copy/pause", "").Want(t, 200, "")); !p.Paused || !p.NextAt.IsZero() {
		t.Errorf("got %+v", p)
	}
	if p := decode[pipeline](t, w.do("GET", "/pipelines/copy", "").Want(t, 200, "")); !p.Paused {
		t.Errorf("got %+v", p)
	}
	if p := decode[pipeline](t, w.do("POST", "/pipelines/copy/resume", "").Want(t, 200, "")); p.Paused || p.NextAt.IsZero() {
		t.Errorf("got %+v", p)
	}
}

func TestRunsAreListedAndShown(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	var ids []string
	for i := range 5 {
		key := ""
		if i%2 == 0 {
			key = fmt.Sprintf("k%d", i) // its id is not in the order of time
		}
		var headers []string
		if key != "" {
			headers = []string{"Idempotency-Key: " + key}
		}
		ids = append([]string{decode[run](t, w.do("POST", "/pipelines/copy/runs", "", headers...).Want(t, 202, "")).ID}, ids...)
		time.Sleep(2 * time.Millisecond) // a run is known by the millisecond
	}
	w.to(ids[1], runs.Failed)
	var got []string
	query := "?limit=2"
	for pages := 0; ; pages++ {
		a := w.do("GET", "/pipelines/copy/runs"+query, "").Want(t, 200, "")
		for _, r := range decode[[]run](t, a) {
			got = append(got, r.ID)
			if r.Spec != nil || r.Steps != nil {
				t.Errorf("a list has %+v", r)
			}
		}
		if a.Meta.NextCursor == "" || pages > 5 {
			break
		}
		query = "?limit=2&cursor=" + a.Meta.NextCursor
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("got %q, want %q", got, ids)
	}
	if list := decode[[]run](t, w.do("GET", "/pipelines/copy/runs?state=failed", "").Want(t, 200, "")); len(list) != 1 || list[0].ID != ids[1] {
		t.Errorf("got %+v", list)
	}
	if p := decode[pipeline](t, w.do("GET", "/pipelines/copy", "").Want(t, 200, "")); p.LastRun == nil || p.LastRun.ID != ids[0] {
		t.Errorf("got %+v", p.LastRun)
	}
	for _, query := range []string{"cursor=x", "limit=0", "limit=1001", "state=failed&state=x", "x=1", "cursor=.a"} {
		w.do("GET", "/pipelines/copy/runs?"+query, "").Want(t, 400, athena.CodeInvalidRequest)
	}
	w.do("GET", "/pipelines/nope/runs", "").Want(t, 404, athena.CodeNotFound)

	// Among those of all, what was run at once is told by its own name, and no stored
	// pipeline has it.
	once := decode[run](t, w.do("POST", "/pipelines", strings.Replace(batch, "{", `{"name":"copy",`, 1)).Want(t, 202, ""))
	if once.Name != "copy" || once.Pipeline != "" {
		t.Errorf("got %+v", once)
	}
	a := w.do("GET", "/runs?limit=2", "").Want(t, 200, "")
	if list := decode[[]run](t, a); len(list) != 2 || list[0].ID != once.ID || list[0].Name != "copy" || list[1].ID != ids[0] || list[1].Name != "" || list[1].Pipeline != "copy" {
		t.Errorf("got %+v", list)
	}
	if list := decode[[]run](t, w.do("GET", "/runs?limit=9&cursor="+a.Meta.NextCursor, "").Want(t, 200, "")); len(list) != 4 || list[0].ID != ids[1] {
		t.Errorf("got %+v", list)
	}
	if list := decode[[]run](t, w.do("GET", "/pipelines/copy/runs", "").Want(t, 200, "")); len(list) != 5 {
		t.Errorf("got %+v", list)
	}
	w.do("GET", "/runs?limit=0", "").Want(t, 400, athena.CodeInvalidRequest)
	for _, clients := range [][]string{{"shop"}, {"shop", "mart"}} {
		list := decode[[]run](t, w.Do(t, w.Key(t, []string{"pipelines:read"}, clients...), "GET", "/runs", "").Want(t, 200, ""))
		if (len(list) == 6) != (len(clients) == 2) || len(clients) == 1 && len(list) != 0 {
			t.Errorf("a key of %v sees %d runs", clients, len(list))
		}
	}
	w.Do(t, w.Key(t, []string{"query"}), "GET", "/runs", "").Want(t, 403, athena.CodeForbidden)

	// As its workers tell.
	ctx := t.Context()
	if _, err := w.Runs.Change(ctx, ids[0], func(r *runs.Run) error { r.Made, r.Set = true, "one"; return nil }); err != nil {
		t.Fatal(err)
	}
	for n, s := range []runs.TaskState{runs.TaskDone, runs.TaskRunning, runs.TaskQueued} {
		if _, err := w.Runs.PutTask(ctx, runs.Task{Run: ids[0], Set: "one", N: n, State: s, Fault: &runs.Cause{Code: athena.CodeTimeout, Message: "slow"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Runs.PutProgress(ctx, runs.Progress{Run: ids[0], At: time.Now().UTC(), Counts: runs.Counts{Read: 7}, Rows: 100, Tasks: 3, Stages: map[string]float64{"sink": 1}}); err != nil {
		t.Fatal(err)
	}
	w.to(ids[0], runs.Running)
	r := decode[run](t, w.do("GET", "/runs/"+ids[0], "").Want(t, 200, ""))
	if r.Counts.Read != 7 || r.Progress == nil || r.Work == nil || r.Work.Done != 1 || r.Work.Running != 1 || r.Work.Queued != 1 || len(r.Steps) != 2 || !json.Valid(r.Spec) {
		t.Errorf("got %+v", r)
	}
	// Nobody takes this one up.
	w.change(ids[2], func(r *runs.Run) { r.Steps[0].At = time.Now().Add(-time.Minute) })
	if r := decode[run](t, w.do("GET", "/runs/"+ids[2], "").Want(t, 200, "")); r.Cause == nil || !strings.Contains(r.Cause.Message, "no worker") {
		t.Errorf("got %+v", r.Cause)
	}
}
