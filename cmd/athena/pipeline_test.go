package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

const definition = `name: paid
source: {client: shop, table: public.orders}
transforms:
  - filter: 'row.status == "paid"'
sink: {client: mart, table: public.paid}
schedule: '*/15 * * * *'
tests:
  - name: keeps only paid
    in:  [{id: 1, status: paid}, {id: 2, status: new}]
    out: [{id: 1}]
`

// file writes a file of the test and returns its path.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsageOfPipelines(t *testing.T) {
	t.Parallel()
	template := file(t, "t.yaml", "source: {client: shop, table: 'public.${table}'}\nsink: {client: mart, table: a}\nparams: {table: {}}\n")
	tests := map[string]struct {
		args   []string
		stderr string
	}{
		"no pipeline":               {[]string{"pipeline", "run"}, "-f FILE"},
		"a name and a file":         {[]string{"pipeline", "run", "a", "-f", "b.yaml"}, "either"},
		"a file that is not there":  {[]string{"pipeline", "plan", "-f", "/nowhere.yaml"}, "nowhere.yaml"},
		"a parameter that is none":  {[]string{"pipeline", "run", "a", "--param", "x"}, "NAME=VALUE"},
		"a parameter that is twice": {[]string{"pipeline", "run", "a", "--param", "x=1", "--param", "x=2"}, "twice"},
		"a template without values": {[]string{"pipeline", "run", "-f", template}, "table"},
		"nothing to apply":          {[]string{"pipeline", "apply"}, "-f FILE"},
		"nothing to test":           {[]string{"pipeline", "test"}, "-f FILE"},
		"an empty directory":        {[]string{"pipeline", "apply", "-f", t.TempDir()}, "no definitions"},
		"a state that is none":      {[]string{"pipeline", "runs", "a", "--state", "done"}, "succeeded"},
		"a limit that is none":      {[]string{"pipeline", "runs", "a", "--limit", "0"}, "--limit"},
		"a run without a name":      {[]string{"pipeline", "cancel"}, "1 arg"},
		"a slip of the pen":         {[]string{"pipeline", "aplly"}, "did you mean apply?"},
		"a definition to store without a name": {[]string{"pipeline", "apply", "-f",
			file(t, "n.yaml", "source: {client: shop, table: a}\nsink: {client: mart, table: a}\n")}, "name"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := call(t, nil, "", tt.args...); got.exit != exitUsage || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("exit %d: %s", got.exit, got.stderr)
			}
		})
	}
}

func TestWhatIsWrongWithAFileIsToldByItsLines(t *testing.T) {
	t.Parallel()
	path := file(t, "wrong.yaml", "name: a\nsource:\n  client: shop\n  tabel: public.orders\nsink: {client: mart, table: a, mode: replace}\n")
	got := call(t, nil, "", "pipeline", "plan", "-f", path)
	if got.exit != exitUsage || !strings.Contains(got.stderr, path+":4: source.tabel: ") || !strings.Contains(got.stderr, path+":5: sink.mode: ") {
		t.Errorf("exit %d: %s", got.exit, got.stderr)
	}
	got = call(t, nil, definition+"x: 1\n", "pipeline", "test", "-f", "-", "--json")
	var body struct {
		Code    string
		Details struct{ Problems []struct{ Line int } }
	}
	if err := json.Unmarshal([]byte(got.stderr), &body); err != nil || body.Code != "invalid_request" || len(body.Details.Problems) != 1 || body.Details.Problems[0].Line != 11 {
		t.Errorf("%v: %s", err, got.stderr)
	}
}

func TestTestsOfDefinitionsRunOffline(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", definition)
	env := []string{"ATHENA_URL=http://127.0.0.1:1"} // nobody is asked
	got := call(t, env, "", "pipeline", "test", "-f", dir)
	if got.exit != exitOK || !strings.Contains(got.stdout, "pass  "+filepath.Join(dir, "a.yaml")+": keeps only paid") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	write("b.yaml", strings.Replace(definition, "out: [{id: 1}]", "out: [{id: 2}]", 1))
	got = call(t, env, "", "pipeline", "test", "-f", dir)
	if got.exit != exitFailure || !strings.Contains(got.stdout, "FAIL  "+filepath.Join(dir, "b.yaml")) || !strings.Contains(got.stdout, "came out: ") || !strings.Contains(got.stderr, "1 of 2 tests failed") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	got = call(t, env, "", "pipeline", "test", "-f", dir, "--json")
	var results []tested
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || len(results) != 2 || results[0].failed() != 0 || results[1].failed() != 1 || got.exit != exitFailure {
		t.Errorf("exit %d, %v\n%s", got.exit, err, got.stdout)
	}
	// What cannot be tested keeps nothing else from it.
	write("b.yaml", "params: {region: {pattern: '[a-z]{2}'}}\n"+strings.Replace(definition, "client: shop", "client: '${region}'", 1))
	got = call(t, env, "", "pipeline", "test", "-f", dir)
	if got.exit != exitOK || !strings.Contains(got.stdout, "pass  "+filepath.Join(dir, "a.yaml")) || !strings.Contains(got.stdout, "skip  "+filepath.Join(dir, "b.yaml")+": keeps only paid: needs --param region") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	for value, want := range map[string]string{"eu": "pass  ", "europe": "BAD   "} {
		got = call(t, env, "", "pipeline", "test", "-f", dir, "--param", "region="+value)
		if (got.exit == exitOK) != (value == "eu") || !strings.Contains(got.stdout, want+filepath.Join(dir, "b.yaml")+": ") {
			t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
		}
	}
	write("0.yaml", definition+"x: 1\ny: 2\n")
	got = call(t, env, "", "pipeline", "test", "-f", dir)
	if got.exit != exitUsage || strings.Count(got.stdout, "BAD   "+filepath.Join(dir, "0.yaml")+":1") != 2 || !strings.Contains(got.stdout, "pass  "+filepath.Join(dir, "a.yaml")) ||
		!strings.Contains(got.stderr, "1 of 3 files could not be tested") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

func TestTheTestsOfTheExamplesPass(t *testing.T) {
	t.Parallel()
	got := call(t, nil, "", "pipeline", "test", "-f", "../../pipelines/examples")
	if got.exit != exitOK || strings.Count(got.stdout, "pass  ") < 10 || strings.Contains(got.stdout, "FAIL") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

// refusal is the answer to a definition that the sink's client may not take.
const refusal = `{"status":"error","code":"capability_denied","message":"client \"mart\" is not granted pipeline_sink","details":{"field":"sink.client","stage":"sink","plan":` + refusedPlan + `}}`

const refusedPlan = `{"level":"static","verdict":"refused","stages":[
	{"stage":"source","client":"shop","engine":"postgres","operation":"table","required":["pipeline_source","gateway_query"],"granted":["pipeline_source","gateway_query"],"supported":["pipeline_source","gateway_query"],"verdict":"unknown","detail":"the client lets it through; its backend was not asked, so that whether it is there is not known yet"},
	{"stage":"sink","client":"mart","engine":"postgres","operation":"table append","required":["pipeline_sink","gateway_query"],"granted":["gateway_query"],"supported":["pipeline_sink","gateway_query"],"verdict":"refused","code":"capability_denied","field":"sink.client","detail":"client \"mart\" is not granted pipeline_sink"}],
	"write":{"mode":"append"},"checkpoint":"in the target's database","delivery":{"class":"exactly_once","reason":"one transaction"},"tasks":{"count":0,"parallel":2,"estimated_rows":-1,"estimated_bytes":-1},"elapsed_ms":1}`

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestAPlanIsATableAndItsRefusalAnExitCode(t *testing.T) {
	t.Parallel()
	path := file(t, "a.yaml", definition)
	env := fake(t, map[string]http.HandlerFunc{"POST /pipelines/plan": data(refusedPlan), "POST /pipelines": answer(403, refusal)})
	got := call(t, env, "", "pipeline", "plan", "-f", path)
	for _, want := range []string{"STAGE", "mart (postgres)", "pipeline_sink (not granted), gateway_query", "so that whether it is there is not known yet", "refused: sink.client:", "exactly once: one transaction", "in the target's database"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("it lacks %q:\n%s", want, got.stdout)
		}
	}
	if got.exit != exitDenied {
		t.Errorf("exit %d: %s", got.exit, got.stderr)
	}
	got = call(t, env, "", "pipeline", "run", "-f", path)
	if got.exit != exitDenied || got.stdout != "" || !strings.Contains(got.stderr, "VERDICT") || !strings.Contains(got.stderr, "is not granted pipeline_sink") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	got = call(t, env, "", "pipeline", "plan", "-f", path, "--json")
	var plan sdk.PipelinePlan
	if err := json.Unmarshal([]byte(got.stdout), &plan); err != nil || plan.Verdict != sdk.PlanRefused || got.exit != exitDenied {
		t.Errorf("exit %d, %v\n%s", got.exit, err, got.stdout)
	}
}

func TestADryRunIsAPlanOfLevelSample(t *testing.T) {
	t.Parallel()
	path := file(t, "a.yaml", definition+"dry_run: true\n")
	got := call(t, fake(t, map[string]http.HandlerFunc{"POST /pipelines/plan": func(w http.ResponseWriter, r *http.Request) {
		var q sdk.PlanQuestion
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q.Level != sdk.PlanSample || strings.Contains(string(q.Definition), "dry_run") {
			t.Errorf("%v: it asks for %+v", err, q)
		}
		data(refusedPlan)(w, r)
	}}), "", "pipeline", "run", "-f", path)
	if got.exit != exitDenied || !strings.Contains(got.stdout, "VERDICT") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

func TestApplyReportsOnEachDefinition(t *testing.T) {
	t.Parallel()
	var stored atomic.Value
	env := fake(t, map[string]http.HandlerFunc{
		"GET /pipelines/paid": func(w http.ResponseWriter, _ *http.Request) {
			if stored.Load() == nil {
				answer(404, `{"code":"not_found","message":"there is none"}`)(w, nil)
				return
			}
			data(`{"name":"paid","generation":1,"revision":7}`)(w, nil)
		},
		"PUT /pipelines/paid": func(w http.ResponseWriter, r *http.Request) {
			if stored.Load() == nil && r.Header.Get("If-None-Match") != "*" || stored.Load() != nil && r.Header.Get("If-Match") != `"7"` {
				t.Errorf("got %v", r.Header)
			}
			raw, _ := io.ReadAll(r.Body)
			stored.Store(string(raw))
			data(`{"name":"paid","generation":1,"revision":7}`)(w, nil)
		},
	})
	path := file(t, "a.yaml", definition)
	if got := call(t, env, "", "pipeline", "apply", "-f", path); got.exit != exitOK || got.stdout != "paid  created at generation 1\n" {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	if body, _ := stored.Load().(string); !strings.Contains(body, `"schedule":"*/15 * * * *"`) {
		t.Errorf("it sent %s", body)
	}
	if got := call(t, env, "", "pipeline", "apply", "-f", path); got.exit != exitOK || got.stdout != "paid  unchanged at generation 1\n" {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

// events of a run that ends in a state.
func runStream(t *testing.T, state, cause string) map[string]http.HandlerFunc {
	info := func(state string) string {
		return fmt.Sprintf(`{"id":"%s","kind":"batch","trigger":"api","key":"k","sink":"mart","state":%q,"want":"run","created_at":"2026-11-22T10:00:00Z","parallel":2,"counts":{"read":3,"bytes":30,"written":2,"rejected":1,"discarded":0}%s}`, runID, state, cause)
	}
	var calls atomic.Int64
	return map[string]http.HandlerFunc{
		"POST /pipelines": func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			if strings.Contains(string(raw), "schedule") || r.Header.Get("Idempotency-Key") == "" {
				t.Errorf("it sent %s", raw)
			}
			data(info("queued"))(w, r)
		},
		"GET /runs/" + runID: data(info(state)),
		"GET /runs/" + runID + "/events": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				_, _ = fmt.Fprintf(w, "id: 5.1\nevent: step\ndata: {\"n\":1,\"at\":\"2026-11-22T10:00:00Z\",\"text\":\"asked for\"}\n\nid: 5.1\nevent: state\ndata: %s\n\n", info("running"))
				return // and the connection is cut
			}
			if last := r.Header.Get("Last-Event-Id"); last != "5.1" {
				t.Errorf("it goes on behind %q", last)
			}
			_, _ = fmt.Fprintf(w, "event: progress\ndata: {\"run\":\"%s\",\"counts\":{\"read\":3}}\n\nid: 6.1\nevent: end\ndata: %s\n\n", runID, info(state))
		},
	}
}

const runID = "0199b3b0-5cf4-7d6b-9d2e-0a4b6c8d0e1f"

func TestARunIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	path := file(t, "a.yaml", definition)
	got := call(t, fake(t, runStream(t, "succeeded", "")), "", "pipeline", "run", "-f", path)
	var names []string
	for line := range strings.Lines(got.stdout) {
		var e struct{ Event string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		names = append(names, e.Event)
	}
	if got.exit != exitOK || strings.Join(names, " ") != "step state progress end" {
		t.Errorf("exit %d: %v\n%s", got.exit, names, got.stderr)
	}
	failed := runStream(t, "failed", `,"cause":{"code":"rejected_rows","stage":"transforms[0]","message":"too many rows cannot go on","since":"2026-11-22T10:00:00Z"}`)
	got = call(t, fake(t, failed), "", "pipeline", "run", "-f", path)
	if got.exit != exitJobFailed || !strings.Contains(got.stderr, "athena: the run failed in transforms[0]: too many rows cannot go on (rejected_rows") {
		t.Errorf("exit %d: %s", got.exit, got.stderr)
	}
	got = call(t, fake(t, runStream(t, "cancelled", "")), "", "pipeline", "watch", runID)
	if got.exit != exitJobFailed || !strings.Contains(got.stderr, "the run was cancelled") {
		t.Errorf("exit %d: %s", got.exit, got.stderr)
	}
	got = call(t, fake(t, runStream(t, "queued", "")), "", "pipeline", "run", "-f", path, "--detach")
	if got.exit != exitOK || !strings.Contains(got.stdout, "athena pipeline watch "+runID) {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

func TestCommandsOfAPipelineAndOfARun(t *testing.T) {
	t.Parallel()
	const info = `{"name":"paid","kind":"batch","source":{"client":"shop","kind":"table"},"sink":{"client":"mart","kind":"table"},"schedule":"*/15 * * * *","paused":true,"generation":3,"revision":9,"updated_at":"2026-11-22T10:00:00Z","key":"k","dead":7,"spec":{"name":"paid","source":{"client":"shop"}},
		"last_run":{"id":"` + runID + `","state":"failed","counts":{"written":12345}}}`
	const aRun = `{"id":"` + runID + `","kind":"batch","state":"paused","want":"cancel","counts":{"read":1},"steps":[{"n":1,"text":"asked for"}],"work":{"done":1,"faults":[{"task":2,"attempt":3,"cause":{"code":"timeout","message":"slow"}}]}}`
	env := fake(t, map[string]http.HandlerFunc{
		"GET /pipelines":                    data("[" + info + "]"),
		"GET /pipelines/paid":               data(info),
		"DELETE /pipelines/paid":            data("{}"),
		"POST /pipelines/paid/pause":        data(info),
		"POST /pipelines/paid/stop":         answer(409, `{"code":"conflict","message":"it is a batch"}`),
		"GET /pipelines/paid/runs":          data("[" + aRun + "]"),
		"GET /runs":                         data(`[{"id":"` + runID + `","name":"ad-hoc","kind":"batch","state":"succeeded"}]`),
		"GET /runs/" + runID:                data(aRun),
		"POST /runs/" + runID + "/pause":    data(aRun),
		"POST /runs/" + runID + "/cancel":   data(aRun),
		"GET /pipelines/paid/dead":          data(`[{"seq":7,"run":"r","row":"1","stage":"sink","column":"id","reason":"it is \u001b[31mnull","record":{"id":null},"from":"public.orders"}]`),
		"DELETE /pipelines/paid/dead":       data(`{"deleted":7,"left":0}`),
		"POST /pipelines/paid/dead/redrive": answer(409, `{"code":"conflict","message":"there are none"}`),
		"POST /pipelines/changes/start":     data(aRun),
		"POST /pipelines/paid/runs":         answer(404, `{"code":"client_not_found","message":"no client"}`),
		"GET /pipelines/nope":               answer(404, `{"code":"not_found","message":"there is none"}`),
		"GET /pipelines/nope/runs":          data("[]"),
	})
	for args, want := range map[string]struct {
		exit exit
		out  string
	}{
		"list":                              {exitOK, "shop table to mart table"},
		"list --json":                       {exitOK, `"dead": 7`},
		"runs":                              {exitOK, "ad-hoc"},
		"get paid":                          {exitOK, "# generation 3"},
		"delete paid":                       {exitOK, "paid deleted"},
		"pause paid":                        {exitOK, "paused"},
		"pause " + runID:                    {exitOK, "run " + runID},
		"stop paid":                         {exitConflict, "it is a batch"},
		"runs paid":                         {exitOK, runID},
		"runs " + runID:                     {exitOK, "attempt 3: slow (timeout)"},
		"cancel paid":                       {exitOK, "is being cancelled"},
		"cancel nope":                       {exitNotFound, "no runs"},
		"dead list paid":                    {exitOK, "it is ·[31mnull"},
		"dead list paid --json":             {exitOK, `"seq":7`},
		"dead list paid --stage sink":       {exitOK, "it is ·[31mnull"},
		"dead list paid --stage source":     {exitOK, "no rows"},
		"dead list paid --run r":            {exitUsage, "--run is \"r\""},
		"dead list paid --run " + runID:     {exitNotFound, "is none of pipeline"},
		"dead delete paid --upto 7":         {exitOK, "7 rows deleted"},
		"dead redrive paid":                 {exitConflict, "there are none"},
		"start changes --param a=b":         {exitOK, runID},
		"run paid":                          {exitNotFound, "no client"},
		"get nope":                          {exitNotFound, "there is none"},
		"__complete pipeline get ":          {exitOK, "paid\tbatch"},
		"__complete pipeline runs --state ": {exitOK, "succeeded"},
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			words := strings.Split(args, " ")
			if words[0] != "__complete" {
				words = append([]string{"pipeline"}, words...)
			}
			if got := call(t, env, "", words...); got.exit != want.exit || !strings.Contains(got.stdout+got.stderr, want.out) {
				t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
			}
		})
	}
}

func TestTheBarFitsItsTerminalAndIsDrawnInPlace(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 10, 1, 5, 0, time.UTC)
	info := &sdk.RunInfo{ID: runID, Pipeline: "paid-orders-to-lake", Kind: sdk.RunBatch, State: sdk.RunRunning, StartedAt: now.Add(-65 * time.Second)}
	progress := &sdk.RunProgress{
		Counts: sdk.RunCounts{Read: 580000, Bytes: 142 << 20, Rejected: 12}, Rows: 1000000, RowsPerSecond: 48000.4, BytesPerSecond: 12 << 20,
		ETA: now.Add(9 * time.Second), TasksDone: 5, Tasks: 8, Stages: map[string]float64{"sink": 0.876, "source": 0.41, "transform": 0.1},
	}
	var out strings.Builder
	width := 120
	b := &bar{w: &out, width: func() int { return width }, now: func() time.Time { return now }, plain: true, info: info}
	for _, e := range []sdk.RunEvent{{Step: &sdk.RunStep{N: 1, Text: "8 tasks were made\x1b[2J"}}, {Progress: progress}} {
		if err := b.tell(e); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"paid-orders-to-lake  running  ##################################..........................  58%  01:05",
		"580,000 of about 1,000,000 rows  142 MiB  48,000 rows/s  12.0 MiB/s  00:09 left  5 of 8 tasks  12 dead",
		"source 41%  transform 10%  sink 88%",
		"8 tasks were made·[2J",
	}
	if got := b.lines(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(out.String(), "\x1b[2A\r"+want[0]) { // over the two lines of before
		t.Errorf("it wrote %q", out.String())
	}
	for width = 5; width < 130; width++ {
		for _, line := range b.lines() {
			if n := utf8.RuneCountInString(line); n >= max(width, 21) {
				t.Errorf("in a terminal of %d columns a line has %d: %q", width, n, line)
			}
		}
	}
	width = 120
	info.Kind, info.State, progress.Position, progress.LagSeconds, progress.Tasks = sdk.RunStream, sdk.RunDegraded, "A.1", 2.25, 0
	info.Cause = &sdk.RunCause{Code: athena.CodeClientFrozen, Stage: "sink", Message: "client is frozen"}
	if got := strings.Join(b.lines(), "\n"); strings.Contains(got, "%  01") || !strings.Contains(got, "2.2s behind") || !strings.Contains(got, "sink: client is frozen") {
		t.Errorf("got\n%s", got)
	}
}

func TestNumbersForPeople(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 150 << 30: "150 GiB"} {
		if got := volume(n); got != want {
			t.Errorf("%v is %s, want %s", n, got, want)
		}
	}
	if got := lasted(1250*time.Millisecond) + " " + lasted(70*time.Second); got != "1.2s 01:10" {
		t.Errorf("got %s", got)
	}
	for d, want := range map[time.Duration]string{0: "00:00", 61 * time.Second: "01:01", 3*time.Hour + 2*time.Second: "3:00:02"} {
		if got := clock(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

// TestWhatGetShowsIsWhatApplyReads: also texts that YAML would take for something
// else.
func TestWhatGetShowsIsWhatApplyReads(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(
			rapid.SampledFrom([]string{"*/15", "yes", "1", "1e3", "null", "~", "a: b", "#x", " lead", "trail ", "two\nlines\n", "2026-01-01", "0x10", "&a", "!b", "- c", "{d}", "'", `"`, "\t", "é", "<<", "=", "%"}),
			rapid.StringMatching(`[ -~]{1,12}`),
		).Draw(t, "text")
		def := &spec.Pipeline{
			Name: "a", Description: text, Schedule: "*/15 * * * *",
			Source:     spec.Source{Client: "shop", Query: "select " + text},
			Transforms: []spec.Transform{{Rename: map[string]string{text: "b"}}, {Select: []string{text}}},
			Sink:       spec.Sink{Client: "mart", Table: "t"},
		}
		want := spec.Encode(def)
		shown, err := definitionYAML(want)
		if err != nil {
			t.Fatal(err)
		}
		read, err := spec.Decode(shown)
		if err != nil {
			t.Fatalf("%v in\n%s", err, shown)
		}
		if got := spec.Encode(read); string(got) != string(want) {
			t.Errorf("got  %s\nwant %s\nby\n%s", got, want, shown)
		}
	})
}
