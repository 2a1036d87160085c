package runner

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A job is what a run asks for, as one worker has it before it.
type job struct {
	*Worker
	run  runs.Run
	spec *spec.Pipeline
}

func (w *Worker) job(run runs.Run) (*job, error) {
	p, err := spec.Decode(run.Spec)
	if err != nil {
		return nil, err
	}
	p.Normalize()
	return &job{Worker: w, run: run, spec: p}, nil
}

// checkpoints is the name under which the run's checkpoints are kept.
func (j *job) checkpoints() string { return j.run.PipelineID }

// principal puts who the run is made for into ctx. A key that was revoked is an
// error.
func (j *job) principal(ctx context.Context) (context.Context, error) {
	p, err := j.Keys.Principal(ctx, j.run.Key)
	if err != nil {
		return nil, err
	}
	return auth.NewContext(ctx, p), nil
}

// allowed reports why the run may not go on now, or nil: its key, its clients'
// lifecycles and grants. It is asked when any of them changes, so a stage stops
// before its next batch.
func (j *job) allowed(ctx context.Context) error {
	ctx, err := j.principal(ctx)
	if err != nil {
		return err
	}
	if j.run.Kind != runs.Redrive {
		if _, err := j.Dispatcher.Check(ctx, stage.SourceOp(j.spec.Source), j.spec.Source.Client); err != nil {
			return at(err, "source")
		}
	}
	_, err = j.Dispatcher.Check(ctx, stage.SinkOp(j.spec.Sink), j.spec.Sink.Client)
	return at(err, "sink")
}

// at names the stage that an error comes from.
func at(err error, name string) error {
	var e *athena.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	if _, told := e.Details["stage"]; told {
		return err
	}
	return e.With("stage", name)
}

// errUnwanted ends work because something else is wanted of the run.
var errUnwanted = errors.New("runner: the run is to pause or to end")

// watched returns a context that ends, with the cause, when the run may not go on
// or is not to.
func (r *runner) watched(ctx context.Context, j *job) (context.Context, context.CancelFunc) {
	wctx, cancel := context.WithCancelCause(ctx)
	changed := make(chan struct{}, 1)
	poke := func(string) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	source, sink := j.spec.Source.Client, j.spec.Sink.Client
	drop := []func(){
		j.Catalog.Subscribe(func(name string) {
			if name == source || name == sink {
				poke(name)
			}
		}),
		j.Keys.Subscribe(func(id string) {
			if id == j.run.Key {
				poke(id)
			}
		}),
	}
	go func() {
		for {
			r.mu.Lock()
			moved := r.moved
			r.mu.Unlock()
			if run, ok := r.Store.Load(r.id); !ok || run.Want != runs.WantRun || run.State.Over() {
				cancel(errUnwanted)
				return
			}
			select {
			case <-changed:
				if err := j.allowed(wctx); err != nil && wctx.Err() == nil {
					cancel(err)
					return
				}
			case <-moved:
			case <-wctx.Done():
				return
			}
		}
	}()
	return wctx, func() {
		cancel(nil)
		for _, f := range drop {
			f()
		}
	}
}

// withSource runs fn with the source of a batch, on the road to its client.
func (j *job) withSource(ctx context.Context, fn func(context.Context, stage.Source) error) error {
	s, op := j.spec.Source, stage.SourceOp(j.spec.Source)
	client, err := j.Catalog.Client(ctx, s.Client)
	if err != nil {
		return at(err, "source")
	}
	types := j.Drivers[client.Engine()].ColumnType
	road := func(ctx context.Context, src stage.Source) (struct{}, error) { return struct{}{}, fn(ctx, src) }
	switch stage.SourceKind(s) {
	case stage.KindTable:
		name, perr := driver.ParseTableName(s.Table)
		if perr != nil {
			return perr
		}
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.TableReader) (struct{}, error) {
			return road(ctx, &source.Table{Reader: r, What: driver.TableRead{Table: name, Columns: s.Columns, Where: s.Where, Limit: s.Limit}, PartBytes: j.PartBytes})
		})
	case stage.KindQuery:
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.TableReader) (struct{}, error) {
			return road(ctx, &source.Query{Reader: r, Statement: driver.Statement{Text: s.Query, Params: s.Params, ReadOnly: true}})
		})
	case stage.KindObjects:
		_, err = dispatch.Do(ctx, j.Dispatcher, op, s.Client, func(ctx context.Context, _ dispatch.Call, r driver.ObjectReader) (struct{}, error) {
			return road(ctx, &source.Objects{Reader: r, What: *s.Objects, PartBytes: j.PartBytes})
		})
	default: // the result is on the bus; its client's database is not asked
		if _, err = j.Dispatcher.Check(ctx, op, s.Client); err == nil {
			err = fn(ctx, &source.Deferred{Store: j.Jobs, Client: s.Client, Job: s.Deferred, Types: types})
		}
	}
	return at(err, "source")
}

// retryable reports whether what failed may work later as it is, and after what
// time it is worth another try.
func retryable(err error, attempt int) (time.Duration, bool) {
	wait := min(time.Duration(250*time.Millisecond)<<min(attempt, 7), 10*time.Second)
	wait += rand.N(wait / 4)
	switch code := athena.CodeOf(err); {
	case code == athena.CodeClientFrozen:
		return time.Second, true
	case code.Retryable():
		return wait, true
	case code == athena.CodeInternal, code == athena.CodeQueryFailed && passing(err):
		return wait, attempt < 4
	}
	return 0, false
}

// passing reports whether the engine says that a failure is of the moment.
func passing(err error) bool {
	var e *athena.Error
	return errors.As(err, &e) && e.Details["retryable"] == true
}

// causeOf tells a run why it does not get on.
func causeOf(err error) *runs.Cause {
	e := athena.AsError(err)
	c := &runs.Cause{Code: e.Code, Message: e.Message, Details: e.Details, Since: time.Now().UTC()}
	c.Stage, _ = e.Details["stage"].(string)
	return c
}
