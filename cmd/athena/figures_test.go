package main

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// TestPipelinesHaveFigures follows a store with runs that were there before, that
// come, that get on, and that go.
func TestPipelinesHaveFigures(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, err := runs.NewStore(ctx, bustest.Start(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = store.Run(ctx) }()
	if err := store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	define := func(name string) runs.Definition {
		t.Helper()
		d, err := store.PutDefinition(ctx, runs.Definition{Name: name, ID: "id-" + name})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	begun := time.Now()
	put := func(r runs.Run) runs.Run {
		t.Helper()
		if r.CreatedAt.IsZero() {
			r.CreatedAt = time.Now()
		}
		out, err := store.Put(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	progress := func(p runs.Progress) {
		t.Helper()
		if err := store.PutProgress(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	define("orders")
	gone := define("gone")
	put(runs.Run{ID: "before", Pipeline: "orders", Kind: runs.Batch, State: runs.Failed, Totals: runs.Counts{Read: 1000, Rejected: 3}, CreatedAt: begun.Add(-time.Hour)})
	if err := store.Reject(ctx, "id-orders", []runs.Rejected{{Run: "before", Row: "1"}, {Run: "before", Row: "2"}, {Run: "before", Row: "3"}}); err != nil {
		t.Fatal(err)
	}

	figures, metrics := newPipelineFigures(store, slog.New(slog.DiscardHandler)), telemetry.NewMetrics("test")
	metrics.Pipelines(figures.figures)
	go func() { _ = figures.run(ctx) }()
	scrape := func() string {
		w := httptest.NewRecorder()
		metrics.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/metrics", nil))
		return w.Body.String()
	}
	shows := func(when string, want ...string) {
		t.Helper()
		var missing []string
		if err := until(ctx, 10*time.Second, func() (bool, error) {
			text := scrape()
			missing = slices.DeleteFunc(slices.Clone(want), func(line string) bool { return strings.Contains(text, line+"\n") })
			return len(missing) == 0, nil
		}); err != nil {
			t.Fatalf("%s: %v: the scrape lacks %q:\n%s", when, err, missing, regexp.MustCompile(`(?m)^athena_pipeline.*$`).FindAllString(scrape(), -1))
		}
	}
	shows("what was there before is no news",
		`athena_pipeline_state{pipeline="orders",state="failed"} 1`,
		`athena_pipeline_runs{pipeline="orders",state="failed"} 1`,
		`athena_pipeline_rows_read_total{pipeline="orders"} 0`,
		`athena_pipeline_rows_read_total{pipeline="gone"} 0`,
		`athena_pipeline_rejected_rows{pipeline="orders"} 3`,
		`athena_pipeline_rejected_bytes_limit 1.073741824e+09`)

	stream := put(runs.Run{ID: "stream", Pipeline: "orders", Kind: runs.Stream, State: runs.Streaming})
	put(runs.Run{ID: "redrive", Pipeline: "orders", Kind: runs.Redrive, State: runs.Succeeded, Totals: runs.Counts{Read: 3}, CreatedAt: begun.Add(time.Hour)})
	put(runs.Run{ID: "nameless", Kind: runs.Batch, State: runs.Succeeded, Totals: runs.Counts{Read: 7, Written: 7, Bytes: 70, Objects: 2}})
	progress(runs.Progress{Run: "stream", At: time.Now(), LagSeconds: 12, Counts: runs.Counts{Read: 100, Written: 90, Rejected: 6, Discarded: 4}})
	shows("a run that goes on is counted, and a redrive is not how a pipeline fares",
		`athena_pipeline_state{pipeline="orders",state="streaming"} 1`,
		`athena_pipeline_rows_read_total{pipeline="orders"} 103`,
		`athena_pipeline_rows_written_total{pipeline="orders"} 90`,
		`athena_pipeline_rows_rejected_total{pipeline="orders"} 6`,
		`athena_pipeline_rows_discarded_total{pipeline="orders"} 4`,
		`athena_pipeline_lag_seconds{pipeline="orders"} 12`,
		`athena_pipeline_rows_read_total{pipeline=""} 7`,
		`athena_pipeline_bytes_total{pipeline=""} 70`,
		`athena_pipeline_objects_total{pipeline=""} 2`)

	progress(runs.Progress{Run: "stream", At: time.Now(), Counts: runs.Counts{Read: 80}}) // it reads again what a crash has lost
	shows("it is not behind", `athena_pipeline_lag_seconds{pipeline="orders"} 0`, `athena_pipeline_rows_read_total{pipeline="orders"} 103`)
	stream.State, stream.Totals = runs.Stopped, runs.Counts{Read: 120, Written: 120}
	put(stream)
	shows("what is told again is counted once",
		`athena_pipeline_state{pipeline="orders",state="stopped"} 1`,
		`athena_pipeline_rows_read_total{pipeline="orders"} 123`,
		`athena_pipeline_rows_written_total{pipeline="orders"} 120`)
	if text := scrape(); strings.Contains(text, `athena_pipeline_lag_seconds{`) || strings.Contains(text, `athena_pipeline_progress_age_seconds{`) {
		t.Error("a run that is over has a lag")
	}

	if err := store.RemoveDefinition(ctx, gone); err != nil {
		t.Fatal(err)
	}
	if err := store.Forget(ctx, runs.Run{ID: "before"}); err != nil {
		t.Fatal(err)
	}
	if err := until(ctx, 10*time.Second, func() (bool, error) {
		text := scrape()
		return !strings.Contains(text, `"gone"`) && !strings.Contains(text, `state="failed"`), nil
	}); err != nil {
		t.Errorf("what is gone is told still: %v", err)
	}
	shows("sums do not shrink when runs are forgotten", `athena_pipeline_rows_read_total{pipeline="orders"} 123`)
}

func TestTheNamesOfPipelinesInMetricsAreBounded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, err := runs.NewStore(ctx, bustest.Start(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = store.Run(ctx) }()
	if err := store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	const more = 20
	for i := range mostFigured + more {
		name := fmt.Sprintf("p%04d", i)
		if _, err := store.PutDefinition(ctx, runs.Definition{Name: name, ID: name}); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Put(ctx, runs.Run{ID: name, Pipeline: name, Kind: runs.Batch, State: runs.Succeeded}); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	f := newPipelineFigures(store, slog.New(slog.DiscardHandler))
	f.catchUp()
	for _, r := range store.Runs("") {
		f.note(r, true)
	}
	all := f.figures().Each
	if len(all) != mostFigured+2 { // with the others, and what is stored nowhere
		t.Fatalf("%d pipelines are told of, want %d", len(all), mostFigured+2)
	}
	for _, p := range all {
		if p.Name == otherPipelines && p.Runs["succeeded"] != more {
			t.Errorf("the others have %v runs, want %d", p.Runs, more)
		}
	}
}
