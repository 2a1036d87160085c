package runner

import (
	"cmp"
	"context"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/adhocore/gronx"
	"github.com/google/uuid"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// fireEvery is how often schedules are looked at.
	fireEvery = time.Second
	// sweepEvery is how often what is over is cleared away.
	sweepEvery = 10 * time.Minute
	// stale is how old an upload is that nobody will publish any more.
	stale = 24 * time.Hour
)

// keepHouse starts the runs of schedules and clears away what is over. One worker
// of the deployment does it.
func (w *Worker) keepHouse(ctx context.Context) {
	for ctx.Err() == nil {
		lease, err := w.Leases.Acquire(ctx, "pipelines.house", w.ID, w.Lease)
		if err != nil {
			pause(ctx, look)
			continue
		}
		r := &runner{Worker: w}
		r.under(ctx, lease, func(ctx context.Context) {
			fire := time.NewTicker(fireEvery)
			defer fire.Stop()
			var swept time.Time
			for {
				w.fire(ctx, time.Now().UTC())
				if time.Since(swept) > sweepEvery {
					swept = time.Now()
					w.sweep(ctx, swept.UTC())
				}
				select {
				case <-fire.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

// fire makes the runs that are due by a schedule. A run's id is made of the
// pipeline and the time, so there is one however often it is made.
func (w *Worker) fire(ctx context.Context, now time.Time) {
	for _, d := range w.Store.Definitions() {
		p, err := spec.Decode(d.Spec)
		if err != nil || p.Schedule == "" {
			continue
		}
		st := w.Store.Standing(d.ID)
		due, err := gronx.PrevTickBefore(p.Schedule, now, true)
		if err != nil || !due.After(st.Fired) || due.Before(d.UpdatedAt) {
			continue
		}
		if !st.Paused && !w.live(d.Name) { // one that still runs is not overtaken
			if err := w.start(ctx, d, p, due); err != nil && athena.CodeOf(err) != athena.CodeConflict {
				if ctx.Err() == nil {
					w.Log.Warn("a scheduled run was not made; it is tried again", "pipeline", d.Name, telemetry.KeyError, err)
				}
				continue
			}
		}
		if err := w.Store.Remember(ctx, d.ID, func(s *runs.Standing) { s.Fired = due }); err != nil && ctx.Err() == nil {
			w.Log.Warn("that a schedule was seen to is not stored", "pipeline", d.Name, telemetry.KeyError, err)
		}
	}
}

func (w *Worker) live(pipeline string) bool {
	return slices.ContainsFunc(w.Store.Live(), func(r runs.Run) bool { return r.Pipeline == pipeline })
}

// space is that of the ids of scheduled runs.
var space = uuid.MustParse("2f9a3d52-6d5b-4c34-9f0e-6d1a0f3b7c11")

func (w *Worker) start(ctx context.Context, d runs.Definition, p *spec.Pipeline, due time.Time) error {
	r := runs.Run{
		ID:       uuid.NewSHA1(space, []byte(d.ID+" "+due.Format(time.RFC3339))).String(),
		Pipeline: d.Name, PipelineID: d.ID, Generation: d.Generation, Kind: runs.Batch, Spec: d.Spec,
		Trigger: "schedule", Key: d.Key, Source: p.Source.Client, Sink: p.Sink.Client,
		Want: runs.WantRun, State: runs.Queued, CreatedAt: time.Now().UTC(), Parallel: cmp.Or(p.Parallel, spec.DefaultParallel),
	}
	r.Log("by the schedule %s, of %s", p.Schedule, due.Format(time.RFC3339))
	_, err := w.Store.Put(ctx, r)
	return err
}

// sweep forgets runs that have been over for long, and uploads that a crash has
// left behind.
func (w *Worker) sweep(ctx context.Context, now time.Time) {
	sinks := map[string]bool{}
	for _, r := range w.Store.Runs("") {
		if !r.State.Over() || now.Sub(r.EndedAt) < w.Keep {
			continue
		}
		err := w.clear(ctx, r)
		if err == nil {
			err = w.Store.Forget(ctx, r)
		}
		if err != nil && ctx.Err() == nil {
			w.Log.Warn("a run that is over was not forgotten", "run", r.ID, telemetry.KeyError, err)
		}
	}
	for _, r := range w.Store.Runs("") {
		j, err := w.job(r)
		if err != nil || j.spec.Sink.Objects == nil || sinks[r.Sink] {
			continue
		}
		sinks[r.Sink] = true
		if n, err := w.discard(ctx, r.Sink, now); err != nil && ctx.Err() == nil {
			w.Log.Warn("uploads that were left behind were not cleared away", telemetry.KeyClient, r.Sink, telemetry.KeyError, err)
		} else if n > 0 {
			w.Log.Info("uploads that were left behind were cleared away", telemetry.KeyClient, r.Sink, "uploads", n)
		}
	}
}

// clear lets go of what a run keeps at its sink beside its rows: checkpoints, and
// the staging table of one that has failed. An error says that this may work later.
func (w *Worker) clear(ctx context.Context, r runs.Run) error {
	c, err := w.Catalog.Client(ctx, r.Sink)
	if err != nil || !w.Serves(c) {
		return nil
	}
	j, err := w.job(r)
	if err != nil {
		return nil
	}
	if err = j.withSink(w.as(ctx, r.Sink), func(ctx context.Context, to target) error { return to.clear(ctx) }); athena.CodeOf(err).Retryable() {
		return err
	}
	return nil
}

var sweeping = dispatch.Op{Family: "pipelines", Right: auth.Pipelines, Needs: []athena.Capability{athena.PipelineSink, athena.ObjectWrite}}

// ours is how objects are named that runs and jobs write: after the run, the job
// or the pipeline. Uploads of others below the same prefix are none of our
// business.
var ours = regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9A-Za-z]{22})-[^/]*\.(parquet|ndjson|csv)(\.(gz|zst))?$`)

// discard lets go of a client's uploads that no run will publish: they are old,
// have our names, and are none of those that was decided on.
func (w *Worker) discard(ctx context.Context, client string, now time.Time) (n int, err error) {
	if c, err := w.Catalog.Client(ctx, client); err != nil || !w.Serves(c) || c.Lifecycle != athena.Active {
		return 0, err
	}
	decided, err := w.decidedOn(ctx)
	if err != nil {
		return 0, err
	}
	return dispatch.Do(w.as(ctx, client), w.Dispatcher, sweeping, client, func(ctx context.Context, _ dispatch.Call, s driver.ObjectStager) (int, error) {
		old, err := s.StagedObjects(ctx, "", now.Add(-stale))
		if err != nil {
			return 0, err
		}
		for _, o := range old {
			if decided[o.ID] || !ours.MatchString(path.Base(o.Key)) {
				continue
			}
			if err := s.DiscardObject(ctx, o); err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	})
}

// as has the worker itself act as a client, and no other.
func (w *Worker) as(ctx context.Context, client string) context.Context {
	return auth.NewContext(ctx, &auth.Principal{Key: "worker", Name: w.ID, Grants: []auth.Grant{{Right: auth.Pipelines}}, Clients: []string{client}})
}

// decidedOn has the ids of uploads that will be published.
func (w *Worker) decidedOn(ctx context.Context) (map[string]bool, error) {
	if err := w.Store.Sync(ctx); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	add := func(objects []stage.Object) {
		for _, o := range objects {
			ids[o.ID] = true
		}
	}
	for _, r := range w.Store.Runs("") {
		for _, t := range w.Store.Tasks(r.ID) {
			add(t.Decided)
		}
		c, err := w.Store.Cursor(ctx, r.PipelineID)
		if err != nil {
			return nil, err
		}
		add(c.Decided)
	}
	return ids, nil
}
