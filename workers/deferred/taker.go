package deferred

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// taker takes the jobs of one client, higher lanes first, as long as there are
// slots for them.
//
// While there is nothing to do it holds no slot and waits with one pull on each
// lane. A first message brings a slot; then the lanes are emptied from the top,
// without waiting, until nothing is left.
type taker struct {
	w      *Worker
	client atomic.Pointer[athena.Client]
	slots  *slots
	lanes  []jetstream.Consumer
	runs   sync.WaitGroup
	freed  chan struct{} // a run ended
}

func newTaker(w *Worker, c *athena.Client) *taker {
	t := &taker{w: w, slots: &slots{leases: w.Leases, client: c.Name, owner: w.ID}, freed: make(chan struct{}, 1)}
	t.client.Store(c)
	return t
}

func (t *taker) most() int { return t.client.Load().Limits.WithDefaults().MaxRunning }

// run takes jobs until ctx is done. Runs go on under work, and are waited for.
func (t *taker) run(ctx, work context.Context) {
	name := t.client.Load().Name
	log := t.w.Log.With(telemetry.KeyClient, name)
	defer t.slots.release(context.WithoutCancel(ctx), 0)
	defer t.runs.Wait()

	log.Debug("taking deferred jobs")
	limit, backoff := 0, 250*time.Millisecond
	for ctx.Err() == nil {
		if most := t.most(); limit != most { // at first, and when the owner changes it
			lanes, err := t.w.Store.Lanes(ctx, name, most, ackWait)
			if err != nil {
				log.Warn("the client's queues cannot be reached", telemetry.KeyError, err)
				pause(ctx, backoff)
				backoff = min(2*backoff, 10*time.Second)
				continue
			}
			t.lanes, limit = lanes, most
		}
		first := t.wait(ctx)
		if len(first) == 0 {
			continue
		}
		t.begin(ctx, work, first)
		t.drain(ctx, work)
	}
}

// wait blocks until a lane has a message or ctx is done. More than one lane may
// have given one by then; they are ordered by lane.
func (t *taker) wait(ctx context.Context) []jetstream.Msg {
	// What is there already is asked for first: what is on its way to a pull that
	// is cancelled comes again only after ackWait.
	for _, lane := range t.lanes {
		if batch, err := lane.FetchNoWait(1); err == nil {
			for msg := range batch.Messages() {
				return []jetstream.Msg{msg}
			}
		}
	}
	// Short pulls: an idle slot is given back between two of them.
	const long = 2 * time.Second
	pull, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	got := make([]jetstream.Msg, len(t.lanes))
	var wg sync.WaitGroup
	for i, lane := range t.lanes {
		wg.Go(func() {
			batch, err := lane.Fetch(1, jetstream.FetchContext(pull))
			if err != nil {
				pause(pull, 250*time.Millisecond)
				return
			}
			for msg := range batch.Messages() {
				got[i] = msg
				cancel() // the others need wait no longer
			}
		})
	}
	wg.Wait()
	t.slots.release(context.WithoutCancel(ctx), slotIdle)
	msgs := got[:0]
	for _, m := range got {
		if m != nil {
			msgs = append(msgs, m)
		}
	}
	return msgs
}

// begin starts runs for messages that were pulled without a slot. What finds
// none within a moment is handed back for another worker, or for later.
func (t *taker) begin(ctx, work context.Context, msgs []jetstream.Msg) {
	for _, msg := range msgs {
		p := t.place(ctx, time.Second)
		if p == nil {
			msg.NakWithDelay(200 * time.Millisecond)
			continue
		}
		t.start(work, msg, p)
	}
}

// drain takes from the lanes, highest first, until they are empty or ctx is
// done.
func (t *taker) drain(ctx, work context.Context) {
	for ctx.Err() == nil {
		first := t.place(ctx, 0)
		if first == nil {
			return
		}
		places := []*place{first}
		for len(places) < t.most() {
			p := t.tryPlace(ctx)
			if p == nil {
				break
			}
			places = append(places, p)
		}
		for _, lane := range t.lanes {
			if len(places) == 0 {
				break
			}
			batch, err := lane.FetchNoWait(len(places))
			if err != nil {
				continue
			}
			for msg := range batch.Messages() {
				t.start(work, msg, places[0])
				places = places[1:]
			}
		}
		empty := len(places) > 0
		for _, p := range places {
			p.free()
		}
		if empty {
			return
		}
	}
}

// A place is the right to run one job: room in this worker and a slot of the
// client.
type place struct {
	t    *taker
	slot *slot
}

// place waits for a place until ctx is done or, if atMost is positive, for that
// long; nil if there was none.
func (t *taker) place(ctx context.Context, atMost time.Duration) *place {
	if atMost > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, atMost)
		defer cancel()
	}
	for {
		if t.w.room.Acquire(ctx, 1) != nil {
			return nil
		}
		if s := t.slots.take(ctx, t.most()); s != nil {
			return &place{t, s}
		}
		t.w.room.Release(1) // it would be kept from other clients' jobs
		select {
		case <-ctx.Done():
			return nil
		case <-t.freed:
		case <-time.After(250 * time.Millisecond): // other workers' slots
		}
	}
}

// tryPlace returns a place if there is one now.
func (t *taker) tryPlace(ctx context.Context) *place {
	if !t.w.room.TryAcquire(1) {
		return nil
	}
	s := t.slots.take(ctx, t.most())
	if s == nil {
		t.w.room.Release(1)
		return nil
	}
	return &place{t, s}
}

func (p *place) free() {
	p.t.slots.put(p.slot)
	p.t.w.room.Release(1)
	select {
	case p.t.freed <- struct{}{}:
	default:
	}
}

// start runs the job of a message in a place of its own.
func (t *taker) start(work context.Context, msg jetstream.Msg, p *place) {
	t.runs.Go(func() {
		defer p.free()
		r := newRun(work, t.w, t.client.Load(), msg)
		defer r.stop()
		r.do()
	})
}

// pause waits; false if ctx is done first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
