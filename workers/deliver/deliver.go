// Package deliver is the worker that announces the end of deferred jobs to
// their webhooks, and that sends changes to the webhooks of subscriptions.
//
// A hook is a message next to the event that ended its job. Any number of
// workers share one consumer of hooks. An attempt that failed is continued by a
// message that the server publishes when its time has come, so that a hook which
// waits for hours holds nothing. The package knows neither statements nor
// results: what is said of a job comes from Jobs.
//
// The laws, cited where they are enforced:
//
//  1. A hook is acknowledged only after its receiver took it, its next attempt
//     is stored, or its dead letter is stored. So each end of a job is announced
//     at least once or stands in ATH_DEAD; a worker that is lost between the
//     receiver's answer and the acknowledgement repeats the message.
//  2. All attempts to announce one end of a job bear the same webhook-id.
//  3. A receiver that is slow or gone takes no more than its share of a worker.
//
// Of subscriptions, each of which is a sequence of batches:
//
//  4. One worker at a time serves a subscription. A batch follows when the one
//     before was taken or stands in ATH_DEAD, and the cursor behind it is
//     stored. So a receiver has the changes in order and each at least once; a
//     worker that is lost in between repeats the batch.
//  5. A batch that failed is tried again with the same changes and the same
//     webhook-id, also by another worker; other changes bear another one. What
//     was sent by a worker that was lost before it could store how that went may
//     come again among more changes.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// Consumer is the durable consumer that all deliver workers share.
const Consumer = "hook-deliver"

// Jobs tells how a job ended.
type Jobs interface {
	// Summary describes the job's last state, or is a not_found error once the
	// job is forgotten.
	Summary(ctx context.Context, client, id string) (webhook.Summary, error)
}

// Secrets has what messages are signed with.
type Secrets interface {
	// Secret returns the secret for the API key with that public id.
	Secret(key string) []byte
}

// Result is what became of a hook that was handled.
type Result string

// The results.
const (
	Delivered Result = "delivered"
	Retried   Result = "retried"  // the attempt failed; the next one is stored
	Parked    Result = "parked"   // made way, since its host was busy
	Dead      Result = "dead"     // given up; the dead letter is stored
	Stopped   Result = "stopped"  // nothing more is sent to the subscription
	Returned  Result = "returned" // to the bus, which could not be reached or lags
)

// An Outcome is what an observer is told of each hook that was handled.
type Outcome struct {
	Client  string
	Result  Result
	Cause   Cause // of a dead letter
	Status  int   // of the receiver's answer; 0 if there was none
	Elapsed time.Duration
}

// Config bounds a worker. A zero field stands for its default.
type Config struct {
	Concurrency int           // requests at once; 32
	PerHost     int           // requests at once to one host and port; 4
	Timeout     time.Duration // of one request; webhook.DefaultTimeout
	// Backoff is the wait before each further attempt, to which up to a tenth
	// is added by chance. By default ten attempts in a bit over three days.
	Backoff []time.Duration
	// AckWait is how long a lost worker's hooks wait for another one; 30 s, and
	// never less than twice Timeout.
	AckWait time.Duration
	// Grace is how long requests under way may take when Run is to end; 10 s.
	Grace time.Duration
	// Recheck is how often a subscription that cannot be served, or for which
	// there is nothing, is looked at again; 5 s.
	Recheck time.Duration
	// Lease is how long a lost worker's subscriptions wait for another one; 15 s.
	Lease time.Duration
}

func (c Config) withDefaults() Config {
	if c.Concurrency <= 0 {
		c.Concurrency = 32
	}
	if c.PerHost <= 0 {
		c.PerHost = 4
	}
	if c.Timeout <= 0 {
		c.Timeout = webhook.DefaultTimeout
	}
	if c.Backoff == nil {
		c.Backoff = []time.Duration{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
			10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		}
	}
	if c.AckWait <= 0 {
		c.AckWait = 30 * time.Second
	}
	c.AckWait = max(c.AckWait, 2*c.Timeout)
	if c.Grace <= 0 {
		c.Grace = 10 * time.Second
	}
	if c.Recheck <= 0 {
		c.Recheck = 5 * time.Second
	}
	if c.Lease <= 0 {
		c.Lease = 15 * time.Second
	}
	return c
}

// delay is the wait after a number of attempts, of which the last one was
// answered so.
func (c Config) delay(attempts int, answer webhook.Answer) time.Duration {
	d := jitter(c.Backoff[attempts-1])
	if answer.Status == http.StatusTooManyRequests || answer.Status == http.StatusServiceUnavailable {
		d = max(d, min(answer.RetryAfter, maxRetryAfter))
	}
	return d
}

// A Worker delivers hooks. Its fields are set once, before Run.
type Worker struct {
	Bus     *bus.Bus
	Jobs    Jobs
	Secrets Secrets
	Guard   *webhook.Guard
	Log     *slog.Logger
	Observe func(Outcome) // may be nil; called by several goroutines
	Config  Config
}

// run is a Worker at work.
type run struct {
	*Worker
	cfg    Config
	sender *webhook.Sender
	state  jetstream.KeyValue

	mu    sync.Mutex
	hosts map[string]int // requests under way
}

// Run delivers until ctx is done. Requests under way get Config.Grace to end;
// what has not ended by then is delivered again. Run returns nil on a clean
// stop, and an error only if it could not start.
func (w *Worker) Run(ctx context.Context) error {
	r := &run{Worker: w, cfg: w.Config.withDefaults(), hosts: map[string]int{}}
	r.sender = webhook.NewSender(w.Guard, r.cfg.Timeout)
	defer r.sender.Close()
	var err error
	if r.state, err = w.Bus.JetStream().KeyValue(ctx, bus.BucketState); err != nil {
		return fmt.Errorf("deliver: bucket %s: %w", bus.BucketState, err)
	}
	cons, err := r.consumer(ctx)
	if err != nil {
		return fmt.Errorf("deliver: consumer %s: %w", Consumer, err)
	}

	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, r.cfg.Concurrency)
	for ctx.Err() == nil {
		if err := r.pull(ctx, work, cons, slots, &wg); err != nil && ctx.Err() == nil {
			w.Log.Warn("hooks cannot be fetched; trying again", telemetry.KeyError, err)
			pause(ctx, time.Second)
			if c, err := r.consumer(ctx); err == nil { // it may have been removed
				cons = c
			}
		}
	}
	timer := time.AfterFunc(r.cfg.Grace, cancel)
	defer timer.Stop()
	wg.Wait()
	return nil
}

func (r *run) consumer(ctx context.Context) (jetstream.Consumer, error) {
	return r.Bus.JetStream().CreateOrUpdateConsumer(ctx, bus.StreamJobEvents, jetstream.ConsumerConfig{
		Durable:        Consumer,
		Description:    "Webhook deliveries",
		FilterSubjects: []string{bus.JobHook(bus.Any, bus.Any), bus.JobHookWake(bus.Any, bus.Any)},
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        r.cfg.AckWait,
		MaxDeliver:     -1,
		MaxAckPending:  1024,
	})
}

// pull takes as many hooks as there are free slots. It takes none that would
// have to wait in this process, where other workers cannot have them.
func (r *run) pull(ctx, work context.Context, cons jetstream.Consumer, slots chan struct{}, wg *sync.WaitGroup) error {
	free := 0
	select {
	case slots <- struct{}{}:
		free = 1
	case <-ctx.Done():
		return nil
	}
fill:
	for free < cap(slots) {
		select {
		case slots <- struct{}{}:
			free++
		default:
			break fill
		}
	}
	defer func() {
		for range free {
			<-slots
		}
	}()
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	batch, err := cons.Fetch(free, jetstream.FetchContext(wait))
	if err != nil {
		return err
	}
	for msg := range batch.Messages() {
		free--
		wg.Go(func() {
			defer func() { <-slots }()
			r.handle(work, msg)
		})
	}
	if err := batch.Error(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// acquire takes one of the host's slots (law 3); false if all are taken.
func (r *run) acquire(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts[host] >= r.cfg.PerHost {
		return false
	}
	r.hosts[host]++
	return true
}

func (r *run) release(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts[host]--; r.hosts[host] == 0 {
		delete(r.hosts, host)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
