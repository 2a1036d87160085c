package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/pkg/deferred"
)

// A feed brings a job's snapshots as they are stored.
type feed struct {
	C <-chan snapshot // closed when there will be no more
	// Stop ends the feed and waits for it.
	Stop func()
}

type snapshot struct {
	deferred.Status
	err error
}

// feed brings the snapshots with a revision above after.
func (f *Family) feed(ctx context.Context, j *deferred.Job, after uint64) *feed {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan snapshot)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(ch)
		for st, err := range f.cfg.Jobs.Events(ctx, j, after) {
			select {
			case ch <- snapshot{st, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	return &feed{C: ch, Stop: func() { cancel(); wg.Wait() }}
}

// follow waits until the state that a caller sees is one that is wanted, and
// returns what there is then. It gives up, without an error, after a time, and
// when the server begins to stop.
func (f *Family) follow(ctx context.Context, j *deferred.Job, st deferred.Status, wait time.Duration, wanted func(deferred.State) bool) (deferred.Status, deferred.State, error) {
	return f.await(ctx, j, st, wait, func(_ deferred.Status, state deferred.State) bool { return wanted(state) })
}

func (f *Family) await(ctx context.Context, j *deferred.Job, st deferred.Status, wait time.Duration, done func(deferred.Status, deferred.State) bool) (deferred.Status, deferred.State, error) {
	state := f.view(ctx, j, st)
	if done(st, state) || wait <= 0 {
		return st, state, nil
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	glance := time.NewTicker(f.cfg.Glance)
	defer glance.Stop()
	feed := f.feed(ctx, j, st.Rev)
	defer feed.Stop()
	for {
		select {
		case s, ok := <-feed.C:
			if !ok {
				return st, state, ctx.Err()
			}
			if s.err != nil {
				return st, state, s.err
			}
			st = s.Status
		case <-glance.C:
		case <-over.C:
			return st, state, nil
		case <-api.Draining(ctx):
			return st, state, nil
		case <-ctx.Done():
			return st, state, ctx.Err()
		}
		if state = f.view(ctx, j, st); done(st, state) {
			return st, state, nil
		}
	}
}
