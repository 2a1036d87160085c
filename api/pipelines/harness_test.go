package pipelines_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/api/pipelines"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// world is a served API with the clients shop, whose changes are captured,
// and mart, and a key that may do
// everything with pipelines.
type world struct {
	*apitest.World
	t   testing.TB
	key string
}

func start(t testing.TB) *world {
	t.Helper()
	w := apitest.Start(t, func(w *apitest.World, cfg *api.Config) {
		c := w.Pipelines()
		c.Heartbeat = 50 * time.Millisecond
		for i, f := range cfg.Families {
			if _, ok := f.(*pipelines.Family); ok {
				cfg.Families[i] = pipelines.New(c)
			}
		}
	})
	for _, name := range []string{"shop", "mart"} {
		w.Client(t, name, nil)
	}
	orders := changefeed.Capture{ID: "c", Client: "shop", Tables: []driver.TableName{{Schema: "public", Table: "orders"}}}.WithDefaults()
	if _, err := w.Changes.PutCapture(t.Context(), orders); err != nil {
		t.Fatal(err)
	}
	return &world{w, t, w.Key(t, []string{"pipelines"})}
}

// do makes a request with the key of the world.
func (w *world) do(method, path, body string, headers ...string) *apitest.Answer {
	w.t.Helper()
	return w.Do(w.t, w.key, method, path, body, headers...)
}

// decode reads the data of an answer.
func decode[T any](t testing.TB, a *apitest.Answer) (v T) {
	t.Helper()
	a.Decode(t, &v)
	return v
}

// Bodies of definitions.
const (
	batch     = `{"source":{"client":"shop","table":"public.orders"},"sink":{"client":"mart","table":"public.copy"}}`
	scheduled = `{"source":{"client":"shop","table":"public.orders"},"sink":{"client":"mart","table":"public.copy"},"schedule":"*/15 * * * *"}`
	follower  = `{"source":{"client":"shop","cdc":{"tables":["public.orders"]}},"sink":{"client":"mart","table":"public.copy"}}`
	template  = `{"source":{"client":"shop","table":"public.${table}"},"sink":{"client":"mart","table":"public.copy"},"params":{"table":{}}}`
)

// pipeline and run are as they are shown.
type pipeline struct {
	Name, ID, Kind, Key string
	Template, Paused    bool
	Generation          int
	Revision            uint64
	NextAt              time.Time `json:"next_at"`
	LastRun             *run      `json:"last_run"`
	Spec                json.RawMessage
	Dead                *int64
}

type run struct {
	ID, Pipeline, Name, Key, Source, Sink, Trigger string
	Kind                                           runs.Kind
	Generation, Parallel, Tasks                    int
	State                                          runs.State
	Want                                           runs.Want
	Cause                                          *runs.Cause
	Counts                                         runs.Counts
	Progress                                       *runs.Progress
	Work                                           *struct{ Queued, Running, Done int }
	Steps                                          []runs.Step
	Spec                                           json.RawMessage
}

// put stores a definition.
func (w *world) put(name, body string) pipeline {
	w.t.Helper()
	a := w.do("PUT", "/pipelines/"+name, body)
	if a.Code != 200 && a.Code != 201 {
		w.t.Fatalf("%s: %d %s", name, a.Code, a.Raw)
	}
	return decode[pipeline](w.t, a)
}

// change plays the worker: it changes a run as one does.
func (w *world) change(id string, change func(*runs.Run)) runs.Run {
	w.t.Helper()
	r, err := w.Runs.Change(context.Background(), id, func(r *runs.Run) error { change(r); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// to has a run be in a state.
func (w *world) to(id string, s runs.State) runs.Run {
	w.t.Helper()
	return w.change(id, func(r *runs.Run) { r.State = s; r.Log("it is %s", s) })
}

// An event is one of the events of a run.
type event struct{ name, id, data string }

func (e event) run(t testing.TB) (r run) {
	t.Helper()
	if err := json.Unmarshal([]byte(e.data), &r); err != nil {
		t.Fatalf("%+v: %v", e, err)
	}
	return r
}

// reader reads events.
type reader struct {
	t      testing.TB
	lines  *bufio.Reader
	cancel func()
}

// open follows a run; the answer must be 200.
func (w *world) open(key, id string, headers ...string) *reader {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL+"/runs/"+id+"/events", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := w.HTTP.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cancel(); resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		raw, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	return &reader{w.t, bufio.NewReader(resp.Body), cancel}
}

// next returns the next event; false at the end. What takes longer than 20 s fails
// the test.
func (r *reader) next() (e event, ok bool) {
	r.t.Helper()
	late := time.AfterFunc(20*time.Second, func() {
		r.t.Error("nothing came for 20 s")
		r.cancel()
	})
	defer late.Stop()
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			return e, false
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.data != "" {
				return e, true
			}
			e = event{}
		}
	}
}

// until reads up to an event of that name and returns all of them.
func (r *reader) until(name string) (list []event) {
	r.t.Helper()
	for {
		e, ok := r.next()
		if !ok {
			r.t.Fatalf("the stream ended before %s: %+v", name, list)
		}
		if list = append(list, e); e.name == name {
			return list
		}
	}
}
