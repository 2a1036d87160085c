package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// Rights says whether a subscription may still be served.
type Rights interface {
	// MaySend returns nil if changes of the client may be sent now for the API
	// key with that public id. An unauthenticated error says that the key is
	// gone for good, any other one that it must not be now.
	MaySend(ctx context.Context, client, key string) error
}

// Subscriptions delivers changes to the subscriptions that have a webhook. Its
// fields are set once, before Run.
type Subscriptions struct {
	ID      string // the worker's, which the leases bear
	Bus     *bus.Bus
	Store   *changefeed.Store
	Leases  *bus.Leases
	Feeds   *changefeed.Feeds
	Rights  Rights
	Secrets Secrets
	Guard   *webhook.Guard
	Log     *slog.Logger
	Observe func(Outcome) // may be nil; called by several goroutines
	Config  Config
}

// lookAgain is how often subscriptions are listed without a sign of change.
const lookAgain = 30 * time.Second

// Lease is the key of the lease on a subscription (law 4).
func Lease(client, name string) string { return "cdc-hook." + client + "." + name }

// feeding is a Subscriptions at work.
type feeding struct {
	*Subscriptions
	cfg    Config
	sender *webhook.Sender
	slots  chan struct{} // requests under way
}

// served is a subscription that a goroutine serves.
type served struct {
	revision uint64
	stop     context.CancelFunc
}

// Run delivers until ctx is done. Requests under way get Config.Grace to end;
// what has not ended by then is delivered again. Run returns nil on a clean
// stop.
func (s *Subscriptions) Run(ctx context.Context) error {
	if err := s.Store.Ready(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("deliver: bucket %s: %w", bus.BucketCDC, err)
	}
	r := &feeding{Subscriptions: s, cfg: s.Config.withDefaults()}
	r.sender, r.slots = webhook.NewSender(s.Guard, r.cfg.Timeout), make(chan struct{}, r.cfg.Concurrency)
	defer r.sender.Close()

	news := make(chan struct{}, 1)
	unsubscribe := s.Store.Subscribe(func(string) {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	defer unsubscribe()
	work, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	var wg sync.WaitGroup
	all := map[string]served{}
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for ctx.Err() == nil {
		r.adopt(ctx, work, all, &wg)
		select {
		case <-news:
		case <-look.C:
		case <-ctx.Done():
		}
	}
	timer := time.AfterFunc(r.cfg.Grace, abort)
	defer timer.Stop()
	wg.Wait()
	return nil
}

// adopt has a goroutine serve each subscription that there is, as it is now. One
// that has changed is served anew: the lease keeps the two apart.
func (r *feeding) adopt(ctx, work context.Context, all map[string]served, wg *sync.WaitGroup) {
	there := map[string]bool{}
	for _, sub := range r.Store.Subscriptions("") {
		key := Lease(sub.Client, sub.Name)
		if sub.Deliver != changefeed.Webhook {
			continue
		}
		there[key] = true
		if was, ok := all[key]; ok {
			if was.revision == sub.Revision {
				continue
			}
			was.stop()
		}
		sctx, stop := context.WithCancel(ctx)
		all[key] = served{sub.Revision, stop}
		wg.Go(func() {
			defer stop()
			r.serve(sctx, work, sub)
		})
	}
	for key, s := range all {
		if !there[key] {
			s.stop()
			delete(all, key)
		}
	}
}

// serve takes turns at a subscription until ctx is done.
func (r *feeding) serve(ctx, work context.Context, sub changefeed.Subscription) {
	log := r.Log.With(telemetry.KeyClient, sub.Client, "subscription", sub.Name)
	for told := ""; ctx.Err() == nil; {
		err := r.turn(ctx, work, sub, log)
		switch {
		case ctx.Err() != nil:
		case err == nil, errors.Is(err, errMoved):
			told = ""
		default:
			if text := err.Error(); text != told { // once, however long it lasts
				told = text
				log.Warn("changes are not delivered for now", telemetry.KeyError, err)
			}
			pause(ctx, r.cfg.Recheck)
		}
	}
}

// errMoved says that somebody else has moved the cursor.
var errMoved = errors.New("deliver: the cursor was moved")

// turn serves the subscription for as long as nothing stands in the way, and
// holds its lease meanwhile (law 4).
func (r *feeding) turn(ctx, work context.Context, sub changefeed.Subscription, log *slog.Logger) error {
	cur, err := r.Store.Cursor(ctx, sub.Client, sub.Name)
	if err != nil {
		return err
	}
	if cur.Stopped != "" {
		return fmt.Errorf("deliver: it was stopped: %s", cur.Stopped)
	}
	if err := r.Rights.MaySend(ctx, sub.Client, sub.Key); err != nil && athena.CodeOf(err) != athena.CodeUnauthenticated {
		return err
	}
	lease, err := r.Leases.Acquire(ctx, Lease(sub.Client, sub.Name), r.ID, r.cfg.Lease)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := lease.Release(ctx); err != nil {
			log.Debug("a lease runs out by itself", telemetry.KeyError, err)
		}
	}()
	waits, unwait := context.WithCancel(ctx)
	defer unwait()
	work, unwork := context.WithCancel(work)
	defer unwork()
	go func() { // ends with the turn, or when the lease is lost
		select {
		case <-lease.Done():
			unwait()
			unwork()
		case <-work.Done():
		}
	}()
	d := &delivery{feeding: r, sub: sub, log: log}
	err = d.run(waits, work)
	if ctx.Err() == nil && waits.Err() != nil {
		return errors.New("deliver: the lease was lost")
	}
	return err
}
