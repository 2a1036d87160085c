package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func TestUsageOfCDC(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		args   []string
		stderr string
	}{
		"no client":                   {[]string{"cdc", "enable", "-t", "public.t"}, "--client"},
		"no table":                    {[]string{"cdc", "enable", "-c", "shop"}, "--tables"},
		"no table to add":             {[]string{"cdc", "add", "-c", "shop"}, "--tables"},
		"no table of a snapshot":      {[]string{"cdc", "snapshot", "start", "-c", "shop"}, "--tables"},
		"a size that is none":         {[]string{"cdc", "enable", "-c", "shop", "-t", "a", "--max-bytes", "much"}, "--max-bytes"},
		"an unknown operation":        {[]string{"cdc", "tail", "-c", "shop", "--ops", "upsert"}, "delete_range"},
		"a negative end":              {[]string{"cdc", "tail", "-c", "shop", "--max", "-1"}, "--max"},
		"a webhook without a URL":     {[]string{"cdc", "subscription", "create", "s", "-c", "shop", "--deliver", "webhook"}, "--webhook"},
		"a URL without a webhook":     {[]string{"cdc", "subscription", "create", "s", "-c", "shop", "--webhook", "http://h"}, "webhook"},
		"a subscription without name": {[]string{"cdc", "subscription", "pull", "-c", "shop"}, "1 arg"},
		"a slip of the pen":           {[]string{"cdc", "tial"}, "did you mean tail?"},
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

func TestTableNames(t *testing.T) {
	t.Parallel()
	if got := tableNames([]string{`public.a, public."b,c"`, "d"}); !slices.Equal(got, []string{"public.a", `public."b,c"`, "d"}) {
		t.Errorf("got %q", got)
	}
}

func TestAChangeIsALineForPeople(t *testing.T) {
	t.Parallel()
	const tx = `"tx":{"id":"1","pos":"A","n":1,"at":"2026-11-22T10:00:00.123456Z"}`
	at := time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC).Local().Format("15:04:05.000") + "  "
	tests := map[string]string{
		`"op":"insert","schema":"public","table":"t","key":{"id":7},"after":{"id":7,"status":"new","n":null},` + tx:                                                                        at + "insert    public.t  id=7  status=new  n=NULL",
		`"op":"update","schema":"public","table":"t","key":{"id":7},"after":{"id":7,"status":"paid"},"unchanged":["note"],` + tx:                                                           at + "update    public.t  id=7  status=paid  note=(as it was)",
		`"op":"update","schema":"public","table":"t","key":{"id":7},"before":{"id":7,"status":"new","n":1},"after":{"id":7,"status":"paid","n":1},` + tx:                                   at + "update    public.t  id=7  status=new→paid",
		`"op":"update","schema":"public","table":"t","key":{"id":8},"before":{"id":7},"after":{"id":8,"n":1},` + tx:                                                                        at + "update    public.t  id=8  id=7→8  n=1",
		`"op":"delete","schema":"public","table":"t","key":{"id":7},"before":{"id":7,"n":1},` + tx:                                                                                         at + "delete    public.t  id=7  n=1",
		`"op":"delete","schema":"public","table":"t","before":{"a":"x","b":2},` + tx:                                                                                                       at + "delete    public.t  a=x  b=2",
		`"op":"truncate","schema":"Odd.","table":"t",` + tx:                                                                                                                                at + `truncate  "Odd.".t`,
		`"op":"read","schema":"public","table":"t","key":{"id":7},"after":{"id":7,"n":"\u001b[31m"}`:                                                                                       "------------  read      public.t  id=7  n=·[31m",
		`"op":"schema","schema":"public","table":"t","columns":[{"name":"id","type":"int8","key":true},{"name":"n","type":"text"}],"schema_version":2,` + tx:                               at + "schema    public.t  id int8 (key),  n text",
		`"op":"message","prefix":"app","content":"aGkKdGhlcmU=",` + tx:                                                                                                                     at + "message   app  hi·there",
		`"op":"message","prefix":"app","content":"/w==",` + tx:                                                                                                                             at + "message   app  1 byte",
		`"op":"insert","schema":"public","table":"t","key":{"id":7},"after":{"id":7,"doc":{"a":[1]},"big":{"$ref":"x","sha256":"y","bytes":1}},"schema_version":1,` + tx:                   at + `insert    public.t  id=7  doc={"a":[1]}  big={"$ref":"x","sha256":"y","bytes":1}`,
		`"op":"update","schema":"s","table":"t","key":{"k":1},"after":{"k":1,"n":2},"unchanged":["b"],"delta":{"tags":{"add":["z"]}},` + tx + `,"writetime":1,"ttl":90`:                    at + `update    s.t  k=1  n=2  tags~{"add":["z"]}  b=(as it was)  for 1m30s`,
		`"op":"delete_range","schema":"s","table":"t","key":{"k":1},"range":{"from":{"key":{"a":1,"b":2},"inclusive":true},"to":{"key":{"a":3},"inclusive":false}},` + tx + `,"late":true`: at + "delete_range  s.t  k=1  a,b>=1,2  a<3  late",
		`"op":"delete_partition","schema":"s","table":"t","key":{"k":1},` + tx:                                                                                                             at + "delete_partition  s.t  k=1",
	}
	p := &program{}
	for line, want := range tests {
		var c cdc.Change
		if err := cdc.Decode([]byte(`{"pos":"A.1",`+line+`}`), &c); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got := p.changeLine(io.Discard, &c); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// fake answers as a server does that captures changes of shop.
func fake(t *testing.T, routes map[string]http.HandlerFunc) (env []string) {
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return []string{"ATHENA_URL=" + srv.URL, "ATHENA_CLIENT=shop"}
}

// data answers with a success.
func data(v string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"success","data":`+v+`}`)
	}
}

func TestTailGoesOnAndEnds(t *testing.T) {
	t.Parallel()
	event := func(n int) string {
		return fmt.Sprintf("id: A.%d\nevent: change\ndata: {\"pos\":\"A.%d\",\"op\":\"insert\",\"client\":\"shop\",\"schema\":\"public\",\"table\":\"t\",\"key\":{\"id\":%d}}\n\n", n, n, n)
	}
	stream := func() map[string]http.HandlerFunc {
		var calls atomic.Int64
		return map[string]http.HandlerFunc{"GET /cdc/shop/stream": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				_, _ = io.WriteString(w, event(1)+event(2)) // and the connection is cut
				return
			}
			if last := r.Header.Get("Last-Event-Id"); last != "A.2" {
				t.Errorf("it goes on behind %q", last)
			}
			_, _ = io.WriteString(w, event(3)+event(4))
		}}
	}
	got := call(t, fake(t, stream()), "", "cdc", "tail", "--max", "3", "--json")
	want := ""
	for n := range 3 {
		want += fmt.Sprintf(`{"pos":"A.%d","op":"insert","client":"shop","schema":"public","table":"t","key":{"id":%d}}`+"\n", n+1, n+1)
	}
	if got.exit != exitOK || got.stdout != want {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	got = call(t, fake(t, stream()), "", "cdc", "tail", "--max", "3")
	if want := strings.Repeat("------------  insert    public.t  id=#\n", 3); got.exit != exitOK || digit(got.stdout) != want {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	refused := fake(t, map[string]http.HandlerFunc{"GET /cdc/shop/stream": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"code":"invalid_request","message":"where is not understood"}`)
	}})
	if got := call(t, refused, "", "cdc", "tail", "--where", "after."); got.exit != exitUsage || !strings.Contains(got.stderr, "where is not understood") {
		t.Errorf("exit %d: %s", got.exit, got.stderr)
	}
}

// digit replaces the digits of keys.
func digit(s string) string {
	return strings.NewReplacer("id=1", "id=#", "id=2", "id=#", "id=3", "id=#").Replace(s)
}

const shopCapture = `"capture":{"id":"c2","client":"shop","tables":["public.t"],"slot":"athena_shop","publication":"athena_shop","max_age":"168h0m0s","max_bytes":17179869184,"pack":512}`

func TestEnableWaits(t *testing.T) {
	t.Parallel()
	status := func(state, more string) string {
		return `{` + shopCapture + `,"status":{"capture":"c2","client":"shop","state":"` + state + `"` + more + `},"subscriptions":0}`
	}
	steps := []string{
		status("waiting", ``),
		status("starting", `,"progress":"transaction 771 of user app runs for 3 s"`),
		status("snapshot", `,"snapshots":[{"id":"s","state":"running","tables":[{"table":"public.t","rows":10,"total":40}]}]`),
	}
	tests := map[string]struct {
		last   string
		wait   string
		want   exit
		stdout string
		stderr []string
	}{
		"until it streams": {status("streaming", `,"position":"A.1"`), "20s", exitOK, "streaming",
			[]string{"waiting for a worker", "starting: transaction 771", "snapshot, 10 of about 40 rows"}},
		"until it has failed": {status("failed", `,"cause":{"code":"slot_missing","message":"the slot is gone","runbook":"enable it anew"}`), "20s", exitFailure, "enable it anew",
			[]string{"the capture is failed: the slot is gone (slot_missing)"}},
		"until it is held":        {status("held", ``), "20s", exitNotRunnable, "held", []string{"held"}},
		"for no longer than told": {status("starting", ``), "1ms", exitPending, "athena_shop", []string{"time is up"}},
		"not at all":              {"", "0s", exitOK, "waiting", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			env := fake(t, map[string]http.HandlerFunc{
				"POST /cdc/shop/enable": func(w http.ResponseWriter, r *http.Request) {
					raw, _ := io.ReadAll(r.Body)
					if got := string(raw); got != `{"tables":["public.t"],"snapshot":"none","max_age":"24h0m0s","max_bytes":4294967296}` {
						t.Errorf("body = %s", got)
					}
					data(steps[0])(w, r)
				},
				"GET /cdc/shop": func(w http.ResponseWriter, r *http.Request) {
					n := int(calls.Add(1)) - 1
					if n == 0 { // before it is enabled
						w.WriteHeader(http.StatusNotFound)
						_, _ = io.WriteString(w, `{"code":"not_found","message":"not captured"}`)
						return
					}
					if n <= len(steps) {
						data(steps[n-1])(w, r)
						return
					}
					data(tt.last)(w, r)
				},
			})
			got := call(t, env, "", "cdc", "enable", "-t", "public.t", "--snapshot", "none", "--max-age", "24h", "--max-bytes", "4GiB", "--wait", tt.wait)
			if got.exit != tt.want || !strings.Contains(got.stdout, tt.stdout) {
				t.Errorf("exit %d, want %d\n%s%s", got.exit, tt.want, got.stdout, got.stderr)
			}
			for _, s := range tt.stderr {
				if !strings.Contains(got.stderr, s) {
					t.Errorf("stderr lacks %q:\n%s", s, got.stderr)
				}
			}
		})
	}
}

// add and remove change the tables of what is captured, and nothing else of it.
func TestTablesAreAddedAndRemoved(t *testing.T) {
	t.Parallel()
	const was = `"id":"c2","client":"shop","slot":"mine","publication":"mine","take_over":true,"snapshot":"none","on_error":"stop","on_loss":"fail","max_age":"1h0m0s","max_bytes":1048576,"pack":7`
	tests := map[string]struct {
		args           []string
		want           exit
		tables, stderr string
	}{
		"more":          {[]string{"add", "-t", `u,public."O d"`}, exitOK, `["public.t","public.v","public.u","public.\"O d\""]`, `captured from now on: public.u, public."O d"`},
		"what is there": {[]string{"add", "-t", "v"}, exitOK, `["public.t","public.v"]`, ""},
		"fewer":         {[]string{"remove", "-t", "v"}, exitOK, `["public.t"]`, "no longer captured: public.v"},
		"all":           {[]string{"remove", "-t", "v,t"}, exitConflict, "", "athena cdc disable"},
		"another":       {[]string{"remove", "-t", "x"}, exitNotFound, "", "public.x"},
		"with rows":     {[]string{"add", "-t", "v", "--snapshot", "initial"}, exitOK, `["public.t","public.v"]`, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := fake(t, map[string]http.HandlerFunc{
				"GET /cdc/shop": data(`{"capture":{"tables":["public.t","public.v"],` + was + `},"revision":12,"subscriptions":0}`),
				"POST /cdc/shop/enable": func(w http.ResponseWriter, r *http.Request) {
					raw, _ := io.ReadAll(r.Body)
					var body sdk.Capture
					if err := json.Unmarshal(raw, &body); err != nil {
						t.Error(err)
					}
					tables, _ := json.Marshal(body.Tables)
					if string(tables) != tt.tables || body.Slot != "mine" || !body.TakeOver || body.OnError != "stop" || body.Pack != 7 ||
						body.Snapshot != map[bool]string{true: "initial", false: "none"}[name == "with rows"] {
						t.Errorf("it sends %s", raw)
					}
					if at := r.Header.Get("If-Match"); at != `"12"` {
						t.Errorf("it is changed at %s", at)
					}
					data(`{"capture":{"tables":`+string(tables)+`,`+was+`},"revision":13,"subscriptions":0}`)(w, r)
				},
			})
			got := call(t, env, "", append(append([]string{"cdc"}, tt.args...), "--wait", "0s")...)
			if got.exit != tt.want || !strings.Contains(got.stderr, tt.stderr) || tt.stderr == "" && got.stderr != "" {
				t.Errorf("exit %d, want %d\n%s", got.exit, tt.want, got.stderr)
			}
		})
	}
}

func TestTheStatusHasAnExit(t *testing.T) {
	t.Parallel()
	one := func(client, state string) string {
		return `{"capture":{"id":"c","client":"` + client + `","tables":["public.t"],"max_age":"1h0m0s"},"status":{"capture":"c","client":"` + client + `","state":"` + state + `","worker":"w1","lag_bytes":2048,"lag_seconds":1.5,"cause":{"code":"slot_lost","message":"its log is gone","runbook":"enable it anew with --purge"}}}`
	}
	tests := map[string]struct {
		list []string
		want exit
	}{
		"all is well":       {[]string{one("a", "streaming"), one("b", "snapshot")}, exitOK},
		"one will get on":   {[]string{one("a", "degraded"), one("b", "streaming")}, exitUnavailable},
		"one is held":       {[]string{one("a", "degraded"), one("b", "held")}, exitNotRunnable},
		"one has failed":    {[]string{one("a", "degraded"), one("b", "failed"), one("c", "held")}, exitFailure},
		"no worker has one": {[]string{one("a", "waiting")}, exitUnavailable},
		"there are none":    {nil, exitOK},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := fake(t, map[string]http.HandlerFunc{"GET /cdc": data(`[` + strings.Join(tt.list, ",") + `]`)})
			if got := call(t, env, "", "cdc", "status", "--check"); got.exit != tt.want {
				t.Errorf("exit %d, want %d\n%s%s", got.exit, tt.want, got.stdout, got.stderr)
			}
			if got := call(t, env, "", "cdc", "status"); got.exit != exitOK {
				t.Errorf("without --check: exit %d\n%s", got.exit, got.stderr)
			}
		})
	}
	env := fake(t, map[string]http.HandlerFunc{"GET /cdc/shop": data(one("shop", "failed"))})
	got := call(t, env, "", "cdc", "status", "--client", "shop", "--check")
	for _, s := range []string{"its log is gone (slot_lost", "mend         enable it anew with --purge", "lag          2048 bytes, 1.5s"} {
		if !strings.Contains(got.stdout, s) {
			t.Errorf("it lacks %q:\n%s", s, got.stdout)
		}
	}
	if got.exit != exitFailure {
		t.Errorf("exit %d", got.exit)
	}
	var back sdk.Captured
	if got := call(t, env, "", "--json", "cdc", "status", "--client", "shop"); json.Unmarshal([]byte(got.stdout), &back) != nil || back.Status.Cause.Code != "slot_lost" {
		t.Errorf("as JSON: %s", got.stdout)
	}
}

func TestCheckSaysTheMend(t *testing.T) {
	t.Parallel()
	env := fake(t, map[string]http.HandlerFunc{"POST /cdc/shop/check": data(`{"findings":[
		{"name":"wal_level","level":"error","found":"replica","want":"logical","mend":"ALTER SYSTEM SET wal_level = logical"},
		{"name":"slots","level":"ok","found":"1 of 10 in use"}],
		"tables":[{"table":"public.t","identity":"primary_key","key":["id"],"estimated_rows":12,"bytes":8192}]}`)})
	got := call(t, env, "", "cdc", "check", "-t", "public.t")
	for _, s := range []string{"wal_level", "replica", "error: wal_level\n  ALTER SYSTEM SET wal_level = logical", "public.t  primary_key  id   12           8192 bytes"} {
		if !strings.Contains(got.stdout, s) {
			t.Errorf("it lacks %q:\n%s", s, got.stdout)
		}
	}
	if got.exit != exitConflict {
		t.Errorf("exit %d\n%s", got.exit, got.stderr)
	}
	env = fake(t, map[string]http.HandlerFunc{"POST /cdc/shop/enable": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"code":"conflict","message":"1 things stand in the way","details":{"findings":[{"name":"wal_level","level":"error","found":"replica","want":"logical","mend":"ALTER SYSTEM"}]}}`)
	}})
	if got := call(t, env, "", "cdc", "enable", "-t", "public.t"); got.exit != exitConflict || !strings.Contains(got.stderr, "error: wal_level\n  ALTER SYSTEM\n") {
		t.Errorf("enable: exit %d\n%s", got.exit, got.stderr)
	}
}

func TestDisableWaitsForTheSource(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	env := fake(t, map[string]http.HandlerFunc{
		"POST /cdc/shop/disable": data(`{}`),
		"GET /cdc/shop": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				data(`{`+shopCapture+`,"status":{"capture":"c2","state":"removing"}}`)(w, r)
				return
			}
			data(`{"stream":{"messages":3},"subscriptions":0}`)(w, r) // what is stored stays
		},
	})
	if got := call(t, env, "", "cdc", "disable"); got.exit != exitOK || got.stdout != "disabled\n" || calls.Load() != 2 {
		t.Errorf("exit %d after %d looks\n%s%s", got.exit, calls.Load(), got.stdout, got.stderr)
	}
	if got := call(t, env, "", "cdc", "status", "--client", "shop", "--check"); got.exit != exitOK || !strings.Contains(got.stdout, "not captured") || !strings.Contains(got.stdout, "3 messages") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

func TestAPullIsAcknowledgedOnceItIsWritten(t *testing.T) {
	t.Parallel()
	var acked atomic.Value
	env := fake(t, map[string]http.HandlerFunc{
		"GET /cdc/shop/subscriptions/s/changes": data(`{"changes":[{"pos":"A.1","op":"truncate","client":"shop","schema":"public","table":"t"},{"specversion":"1.0"}],"cursor":"A.2","more":true}`),
		"POST /cdc/shop/subscriptions/s/ack": func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			acked.Store(string(raw))
			data(`{}`)(w, r)
		},
	})
	got := call(t, env, "", "cdc", "sub", "pull", "s")
	if got.exit != exitOK || got.stdout != "------------  truncate  public.t\n{\"specversion\":\"1.0\"}\n" || !strings.Contains(got.stderr, "ack s A.2; there are more") || acked.Load() != nil {
		t.Errorf("exit %d, acknowledged %v\n%s%s", got.exit, acked.Load(), got.stdout, got.stderr)
	}
	if got := call(t, env, "", "--json", "cdc", "sub", "pull", "s", "--ack"); got.exit != exitOK || acked.Load() != `{"cursor":"A.2"}` || !strings.Contains(got.stdout, `"more": true`) {
		t.Errorf("exit %d, acknowledged %v\n%s%s", got.exit, acked.Load(), got.stdout, got.stderr)
	}
}
