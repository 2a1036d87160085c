package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// mostFigured is how many pipelines have figures of their own; what others come
	// to is summed up under otherPipelines, which no pipeline can be called.
	mostFigured    = 500
	otherPipelines = "_other"
	// figureEvery is how often what has changed is looked at, and keptEvery how often
	// the rows that could not go on are counted.
	figureEvery = time.Second
	keptEvery   = 30 * time.Second
)

// pipelineFigures has what the metrics tell of pipelines. It follows the store, so
// that a scrape asks nobody.
type pipelineFigures struct {
	store *runs.Store
	log   *slog.Logger

	mu      sync.Mutex
	changed map[string]bool   // runs; "" stands for definitions
	ids     map[string]string // of pipelines, by name
	label   map[string]string // by name
	runs    map[string]figuredRun
	sums    map[string]runs.Counts // by label
	kept    map[string]int64       // by label
	bytes   int64                  // of all rows that could not go on
	limit   int64
}

// A figuredRun is what is kept in mind of a run.
type figuredRun struct {
	pipeline string
	kind     runs.Kind
	state    runs.State
	created  time.Time
	told     time.Time // its last progress, or when it was made
	lag      float64
	counts   runs.Counts // the most that was told
}

func newPipelineFigures(store *runs.Store, log *slog.Logger) *pipelineFigures {
	return &pipelineFigures{
		store: store, log: log, changed: map[string]bool{"": true}, ids: map[string]string{}, label: map[string]string{},
		runs: map[string]figuredRun{}, sums: map[string]runs.Counts{}, kept: map[string]int64{},
	}
}

// run follows the store until ctx is done. What runs have come to by now counts as
// nothing: the sums begin with this process.
func (f *pipelineFigures) run(ctx context.Context) error {
	if err := f.store.Ready(ctx); err != nil {
		return err
	}
	defer f.store.Subscribe(func(run string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changed[run] = true
	})()
	for _, r := range f.store.Runs("") {
		f.note(r, false)
	}
	tick := time.NewTicker(figureEvery)
	defer tick.Stop()
	for counted := (time.Time{}); ; {
		f.catchUp()
		if time.Since(counted) >= keptEvery {
			f.count(ctx)
			counted = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// catchUp looks at what has changed.
func (f *pipelineFigures) catchUp() {
	f.mu.Lock()
	changed := f.changed
	f.changed = map[string]bool{}
	f.mu.Unlock()
	if changed[""] {
		f.define()
	}
	for id := range changed {
		if id == "" {
			continue
		}
		r, ok := f.store.Load(id)
		if ok {
			f.note(r, true)
			continue
		}
		f.mu.Lock()
		delete(f.runs, id)
		f.mu.Unlock()
	}
}

// define notes which pipelines there are. A name keeps its label as long as it is
// there, so that sums only grow.
func (f *pipelineFigures) define() {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := map[string]string{}
	for _, d := range f.store.Definitions() {
		ids[d.Name] = d.ID
	}
	own := 0
	for name, label := range f.label {
		if ids[name] == "" || ids[name] != f.ids[name] { // it is gone, or another one
			delete(f.label, name)
			if label == name {
				delete(f.sums, name)
				delete(f.kept, name)
			}
		} else if label == name {
			own++
		}
	}
	for name := range ids {
		if f.label[name] != "" {
			continue
		}
		if f.label[name] = otherPipelines; own < mostFigured {
			f.label[name] = name
			own++
		}
	}
	f.ids = ids
}

// note keeps a run in mind, and adds what it has come to since it was noted last.
func (f *pipelineFigures) note(r runs.Run, add bool) {
	now := figuredRun{pipeline: r.Pipeline, kind: r.Kind, state: r.State, created: r.CreatedAt, told: r.CreatedAt, counts: r.Totals}
	if p, ok := f.store.Progress(r.ID); ok {
		now.told, now.lag = p.At, p.LagSeconds
		if !r.State.Over() {
			now.counts = p.Counts
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.runs[r.ID].counts
	now.counts = most(before, now.counts)
	f.runs[r.ID] = now
	if !add {
		return
	}
	label := f.label[r.Pipeline] // empty for what is stored nowhere, or no longer
	sum := f.sums[label]
	sum.Add(grown(before, now.counts))
	f.sums[label] = sum
}

// most is, of each count, the larger one: a run that goes on after a crash may tell
// again what it told before.
func most(a, b runs.Counts) runs.Counts {
	return runs.Counts{
		Read: max(a.Read, b.Read), Bytes: max(a.Bytes, b.Bytes), Written: max(a.Written, b.Written),
		Rejected: max(a.Rejected, b.Rejected), Discarded: max(a.Discarded, b.Discarded), Objects: max(a.Objects, b.Objects),
	}
}

// grown is what counts have grown by.
func grown(from, to runs.Counts) runs.Counts {
	return runs.Counts{
		Read: to.Read - from.Read, Bytes: to.Bytes - from.Bytes, Written: to.Written - from.Written,
		Rejected: to.Rejected - from.Rejected, Discarded: to.Discarded - from.Discarded, Objects: to.Objects - from.Objects,
	}
}

// count counts the rows that could not go on. Those of a run that failed for them
// are in no run's counts.
func (f *pipelineFigures) count(ctx context.Context) {
	bytes, limit, err := f.store.RejectedRoom(ctx)
	if err != nil {
		f.failed(ctx, err)
		return
	}
	f.mu.Lock()
	ids, labels := f.ids, maps.Clone(f.label)
	f.mu.Unlock()
	kept := map[string]int64{}
	for name, id := range ids {
		if bytes == 0 {
			break
		}
		n, err := f.store.CountRejected(ctx, id)
		if err != nil {
			f.failed(ctx, err)
			return
		}
		kept[labels[name]] += n
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept, f.bytes, f.limit = kept, bytes, limit
}

func (f *pipelineFigures) failed(ctx context.Context, err error) {
	if ctx.Err() == nil {
		f.log.Debug("rows that could not go on were not counted", telemetry.KeyError, err)
	}
}

// figures is what a scrape is told.
func (f *pipelineFigures) figures() telemetry.Pipelines {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := map[string]*telemetry.Pipeline{"": {}}
	for _, label := range f.label {
		by[label] = &telemetry.Pipeline{Name: label}
	}
	newest, now := map[string]time.Time{}, time.Now()
	for _, r := range f.runs {
		label := f.label[r.pipeline]
		p := by[label]
		if p.Runs == nil {
			p.Runs = map[string]int{}
		}
		p.Runs[string(r.state)]++
		if !r.state.Over() && r.state != runs.Paused {
			p.Live, p.Age = true, max(p.Age, now.Sub(r.told))
			if r.kind == runs.Stream {
				p.Stream, p.LagSeconds = true, max(p.LagSeconds, r.lag)
			}
		}
		// A redrive says nothing of how the pipeline itself fares.
		if label == r.pipeline && label != "" && r.kind != runs.Redrive && r.created.After(newest[label]) {
			newest[label], p.State = r.created, string(r.state)
		}
	}
	out := telemetry.Pipelines{RejectedBytes: f.bytes, RejectedMost: f.limit}
	for label, p := range by {
		sum := f.sums[label]
		p.Read, p.Written, p.Rejected, p.Discarded, p.Bytes, p.Objects = sum.Read, sum.Written, sum.Rejected, sum.Discarded, sum.Bytes, sum.Objects
		p.Kept = f.kept[label]
		out.Each = append(out.Each, *p)
	}
	slices.SortFunc(out.Each, func(a, b telemetry.Pipeline) int { return strings.Compare(a.Name, b.Name) })
	return out
}
