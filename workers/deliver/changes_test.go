package deliver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// changes is a client's stream.
type changes struct {
	*changefeedtest.Stream
	mu  sync.Mutex
	all []cdc.Position
}

// add appends n changes of an operation, each of about size bytes, which are
// numbered from 1.
func (c *changes) add(n int, op cdc.Op, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []cdc.Change
	for range n {
		id := len(c.all) + 1
		list = append(list, c.Change(op, "t", id, fmt.Sprintf(`{"id":%d,"pad":%q}`, id, strings.Repeat("x", size))))
		c.all = append(c.all, list[len(list)-1].Pos)
	}
	c.Write(3, list...)
}

// at is the position of the n-th change.
func (c *changes) at(n int) cdc.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[n-1]
}

// rights are what they are set to be.
type rights struct {
	mu  sync.Mutex
	err error
}

func (r *rights) MaySend(context.Context, string, string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *rights) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// A subscribed is a bench with a stream, and a receiver that keeps what it took.
type subscribed struct {
	*bench
	store   *changefeed.Store
	feeds   *changefeed.Feeds
	changes *changes
	rights  *rights
	begin   cdc.Position

	mu     sync.Mutex
	bodies []body
	answer func(n int, w http.ResponseWriter)
	url    string
}

// A body is what a receiver got.
type body struct {
	id   string
	text string
	Type string
	Data struct {
		Client, Subscription string
		From, Cursor         cdc.Position
		Changes              []struct {
			Pos   cdc.Position
			After struct{ ID int }
		}
	}
}

func (b *body) ids() (ids []int) {
	for _, c := range b.Data.Changes {
		ids = append(ids, c.After.ID)
	}
	return ids
}

func newSubscribed(t *testing.T) *subscribed {
	s := &subscribed{bench: newBench(t), rights: &rights{}}
	s.changes = &changes{Stream: changefeedtest.Make(t, s.bus, client, 1<<20)}
	s.store, s.feeds = changefeedtest.Store(t, s.bus)
	rec := newReceiver(t, nil)
	rec.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if err := webhook.Verify(secrets{}.Secret("k1"), r.Header, raw, time.Now(), webhook.Tolerance); err != nil {
			t.Errorf("%.200s: %v", raw, err)
		}
		got := body{id: r.Header.Get(webhook.HeaderID), text: string(raw)}
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Errorf("%.200s: %v", raw, err)
		}
		s.mu.Lock()
		s.bodies = append(s.bodies, got)
		n, answer := len(s.bodies), s.answer
		s.mu.Unlock()
		if answer != nil {
			answer(n, w)
		}
	})
	s.url = rec.URL
	return s
}

// worker is one on the bench's connection to the bus.
func (s *subscribed) worker(id string, cfg Config) *Subscriptions {
	cfg.Timeout, cfg.Recheck, cfg.Lease = max(cfg.Timeout, 5*time.Second), 20*time.Millisecond, 2*time.Second
	return &Subscriptions{
		ID: id, Bus: s.bus, Store: s.store, Leases: bus.NewLeases(s.bus, bus.BucketLeases), Feeds: s.feeds, Rights: s.rights,
		Secrets: secrets{}, Guard: loopback(), Config: cfg, Log: slog.New(slog.DiscardHandler),
		Observe: func(o Outcome) { s.outcomes <- o },
	}
}

func (s *subscribed) run(id string, cfg Config) (stop func()) { return s.start(s.worker(id, cfg)) }

// elsewhere is a worker with a connection of its own.
func (s *subscribed) elsewhere(on *bus.Bus, id string, cfg Config) *Subscriptions {
	w := s.worker(id, cfg)
	w.Bus, w.Leases = on, bus.NewLeases(on, bus.BucketLeases)
	w.Store, w.Feeds = changefeedtest.Store(s.t, on)
	return w
}

func (s *subscribed) subscription(name string, batch int) changefeed.Subscription {
	return changefeed.Subscription{
		Client: client, Name: name, From: "earliest", Envelope: "athena", Deliver: changefeed.Webhook, URL: s.url, Batch: batch,
		Ops: []cdc.Op{cdc.Insert, cdc.Delete, cdc.DeleteRange}, Key: "k1", CreatedAt: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
	}
}

func (s *subscribed) subscribe(name string, batch int) {
	s.t.Helper()
	if err := s.store.PutSubscription(s.t.Context(), s.subscription(name, batch), changefeed.Genesis); err != nil {
		s.t.Fatal(err)
	}
}

func (s *subscribed) got() []body {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bodies)
}

// until waits for the cursor to be as it should.
func (s *subscribed) until(name string, what string, ok func(changefeed.Cursor) bool) changefeed.Cursor {
	s.t.Helper()
	for range 1500 {
		c, err := s.store.Cursor(s.t.Context(), client, name)
		if err != nil {
			s.t.Fatal(err)
		}
		if ok(c) {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	c, _ := s.store.Cursor(s.t.Context(), client, name)
	s.t.Fatalf("the cursor does not become %s: it is %+v", what, c)
	return c
}

func (s *subscribed) reaches(name string, n int) changefeed.Cursor {
	s.t.Helper()
	return s.until(name, fmt.Sprint("that of ", n), func(c changefeed.Cursor) bool { return c.Pos == s.changes.at(n) && c.Attempts == 0 })
}

// inOrder fails unless the changes came as they are numbered, apart from
// repetitions of whole batches.
func (s *subscribed) inOrder(n int) {
	s.t.Helper()
	next, ids := 1, map[string]string{}
	for _, b := range s.got() {
		list := fmt.Sprint(b.ids())
		if was, again := ids[b.id]; again {
			if was != list {
				s.t.Errorf("%s came with %s and with %s", b.id, was, list)
			}
			continue
		}
		ids[b.id] = list
		for _, id := range b.ids() {
			if id != next {
				s.t.Fatalf("change %d came where %d belongs", id, next)
			}
			next++
		}
	}
	if next != n+1 {
		s.t.Errorf("%d changes came, want %d", next-1, n)
	}
}

func (s *subscribed) changesLetters() (out []ChangesLetter) {
	s.t.Helper()
	raws, err := s.bus.Scan(s.t.Context(), bus.StreamDead, bus.Dead("cdc-hook", client), 1, 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, raw := range raws {
		var l ChangesLetter
		if err := json.Unmarshal(raw.Data, &l); err != nil || string(l.Cause) != raw.Header.Get(bus.HeaderCause) {
			s.t.Fatalf("dead letter %s with %v: %v", raw.Data, raw.Header, err)
		}
		out = append(out, l)
	}
	return out
}

func TestChangesAreDeliveredInOrderAndSigned(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.changes.add(25, cdc.Insert, 10)
	s.run("w1", Config{})
	s.subscribe("orders", 10)
	if c := s.reaches("orders", 25); c.Acked != 25 || c.LastStatus != http.StatusOK || c.LastError != "" {
		t.Errorf("the cursor is %+v", c)
	}
	s.changes.add(1, cdc.Delete, 10)
	s.reaches("orders", 26)
	s.inOrder(26)
	got := s.got()
	b := got[0]
	if b.Type != "cdc.changes" || b.Data.Client != client || b.Data.Subscription != "orders" || b.Data.From != "0" ||
		b.Data.Cursor != b.Data.Changes[len(b.Data.Changes)-1].Pos || !strings.HasPrefix(b.text, `{"type":"cdc.changes","timestamp":"`) {
		t.Errorf("the first batch is %s", b.text)
	}
	for i, b := range got[1:] {
		if b.Data.From != got[i].Data.Cursor {
			t.Errorf("batch %d lies behind %s, and the one before ends at %s", i+1, b.Data.From, got[i].Data.Cursor)
		}
	}
	for range got {
		s.want(Delivered)
	}
}

func TestABatchIsBounded(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.changes.add(10, cdc.Insert, 300<<10)
	s.changes.add(1, cdc.Insert, 2<<20) // larger than a batch: alone
	s.changes.add(20, cdc.Insert, 10)
	s.run("w1", Config{})
	s.subscribe("orders", 7)
	s.reaches("orders", 31)
	s.inOrder(31)
	for _, b := range s.got() {
		if n := len(b.ids()); n > 7 || len(b.text) > maxBytes+1024 && n > 1 {
			t.Errorf("a batch has %d changes and %d bytes", n, len(b.text))
		}
	}
}

func TestWhatIsNotWantedMovesTheCursor(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.run("w1", Config{})
	s.subscribe("orders", 0)
	s.changes.add(50, cdc.Read, 10)
	s.reaches("orders", 50)
	s.changes.add(1, cdc.Insert, 10)
	s.reaches("orders", 51)
	if got := s.got(); len(got) != 1 || got[0].ids()[0] != 51 {
		t.Errorf("got %+v", got)
	}
}

func TestABatchIsTriedAgainAsItWasAlsoByAnotherWorker(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.answer = func(n int, w http.ResponseWriter) {
		if n < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	s.changes.add(9, cdc.Insert, 10) // more than one read
	stop := s.run("w1", Config{Backoff: []time.Duration{time.Second, time.Second, time.Second}})
	s.subscribe("orders", 0)
	s.want(Retried)
	c := s.until("orders", "tried once", func(c changefeed.Cursor) bool { return c.Attempts == 1 })
	if c.Pos != "0" || c.Until == "" || c.NextTry.IsZero() || c.LastStatus != http.StatusInternalServerError {
		t.Errorf("the cursor is %+v", c)
	}
	stop()
	s.changes.add(30, cdc.Insert, 10) // which the batch could hold as well
	s.run("w2", Config{Backoff: []time.Duration{time.Second, time.Second, time.Second}})
	s.want(Retried, Delivered)
	s.reaches("orders", 39)
	got := s.got()
	if got[0].id != got[1].id || got[1].id != got[2].id || got[3].id == got[0].id {
		t.Errorf("the ids are %s, %s, %s and then %s", got[0].id, got[1].id, got[2].id, got[3].id)
	}
	s.inOrder(39)
	if l := s.changesLetters(); len(l) != 0 {
		t.Errorf("dead letters: %+v", l)
	}
}

func TestABatchThatIsGivenUpIsADeadLetterAndTheNextOneFollows(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.answer = func(n int, w http.ResponseWriter) {
		if n <= 2 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}
	s.changes.add(5, cdc.Insert, 10)
	s.run("w1", Config{Backoff: []time.Duration{50 * time.Millisecond}})
	s.subscribe("orders", 5)
	s.want(Retried, Dead)
	s.changes.add(2, cdc.Insert, 10)
	if c := s.reaches("orders", 7); c.Acked != 2 {
		t.Errorf("%d changes are said to be taken, want 2", c.Acked)
	}
	l := s.changesLetters()
	if len(l) != 1 || l[0].Kind != "cdc-hook" || l[0].Client != client || l[0].Subscription != "orders" || l[0].From != "0" || l[0].Cursor != s.changes.at(5) ||
		l[0].Changes != 5 || l[0].Cause != AttemptsExhausted || l[0].LastStatus != http.StatusBadGateway || l[0].Attempts != 2 || l[0].WebhookID != s.got()[0].id {
		t.Errorf("dead letters: %+v", l)
	}
}

func TestASubscriptionIsStopped(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		prepare func(*subscribed, *changefeed.Subscription)
		cause   Cause
	}{
		"by a receiver that is gone": {func(s *subscribed, _ *changefeed.Subscription) {
			s.answer = func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusGone) }
		}, EndpointDisabled},
		"by the guard": {func(_ *subscribed, sub *changefeed.Subscription) { sub.URL = "http://10.0.0.1/" }, TargetForbidden},
		"by a key that is gone": {func(s *subscribed, _ *changefeed.Subscription) {
			s.rights.set(athena.Errorf(athena.CodeUnauthenticated, "this key was revoked"))
		}, KeyRevoked},
		"by changes that are":    {func(s *subscribed, sub *changefeed.Subscription) { s.begin = "FFFFFFFFFFFFFFFF.00000001" }, ChangesLost},
		"by what it wants":       {func(_ *subscribed, sub *changefeed.Subscription) { sub.Where = "after.id" }, FilterFailed},
		"by an unknown envelope": {func(_ *subscribed, sub *changefeed.Subscription) { sub.Envelope = "avro" }, Inexpressible},
		"by a change without one": {func(s *subscribed, sub *changefeed.Subscription) {
			sub.Envelope = "debezium"
			s.changes.add(1, cdc.DeleteRange, 1)
		}, Inexpressible},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSubscribed(t)
			s.changes.add(3, cdc.Insert, 10)
			s.begin = changefeed.Genesis
			sub := s.subscription("orders", 0)
			tc.prepare(s, &sub)
			if err := s.store.PutSubscription(t.Context(), sub, s.begin); err != nil {
				t.Fatal(err)
			}
			s.run("w1", Config{Backoff: []time.Duration{}})
			c := s.until("orders", "stopped", func(c changefeed.Cursor) bool { return c.Stopped != "" })
			if c.Stopped != string(tc.cause) || c.LastError == "" || c.Pos != s.begin {
				t.Errorf("the cursor is %+v, want %s", c, tc.cause)
			}
			if tc.cause != EndpointDisabled {
				if got := s.got(); len(got) != 0 {
					t.Errorf("it was sent %d batches", len(got))
				}
				return
			}
			s.changes.add(3, cdc.Insert, 10)
			s.mu.Lock()
			s.answer = nil
			s.mu.Unlock()
			// Whoever moves the cursor sets the subscription going again.
			if err := s.store.PutCursor(t.Context(), client, "orders", changefeed.Cursor{Pos: s.changes.at(2), Revision: c.Revision}); err != nil {
				t.Fatal(err)
			}
			s.reaches("orders", 6)
			if got := s.got(); fmt.Sprint(got[1].ids()) != "[3 4 5 6]" {
				t.Errorf("it was sent %+v", got)
			}
		})
	}
}

func TestNothingIsSentWhileItMustNotBe(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.rights.set(athena.Errorf(athena.CodeClientFrozen, "client %q is frozen", client))
	s.changes.add(3, cdc.Insert, 10)
	s.run("w1", Config{})
	s.subscribe("orders", 0)
	time.Sleep(200 * time.Millisecond)
	if n := len(s.got()); n != 0 {
		t.Fatalf("%d batches were sent for a frozen client", n)
	}
	s.rights.set(nil)
	s.reaches("orders", 3)
	s.rights.set(athena.Errorf(athena.CodeForbidden, "this key is bound to other clients"))
	s.changes.add(3, cdc.Insert, 10)
	time.Sleep(200 * time.Millisecond)
	if n := len(s.got()); n != 1 {
		t.Fatalf("%d batches were sent, want the first alone", n)
	}
	s.rights.set(nil)
	s.reaches("orders", 6)
	s.inOrder(6)
}

func TestTheCursorMayBeMovedBack(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.changes.add(4, cdc.Insert, 10)
	s.run("w1", Config{})
	s.subscribe("orders", 0)
	c := s.reaches("orders", 4)
	if err := s.store.PutCursor(t.Context(), client, "orders", changefeed.Cursor{Pos: s.changes.at(2), Revision: c.Revision}); err != nil {
		t.Fatal(err)
	}
	s.until("orders", "that of the end again", func(now changefeed.Cursor) bool { return now.Pos == s.changes.at(4) && now.Acked == 2 })
	if got := s.got(); len(got) != 2 || fmt.Sprint(got[1].ids()) != "[3 4]" {
		t.Errorf("got %+v", got)
	}
}

func TestTheCursorMayBeMovedPastABatchThatFails(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.answer = func(n int, w http.ResponseWriter) {
		if n == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	s.changes.add(4, cdc.Insert, 10)
	s.run("w1", Config{Backoff: []time.Duration{time.Hour}})
	s.subscribe("orders", 2)
	s.want(Retried)
	c := s.until("orders", "tried once", func(c changefeed.Cursor) bool { return c.Attempts == 1 })
	if err := s.store.PutCursor(t.Context(), client, "orders", changefeed.Cursor{Pos: s.changes.at(2), Revision: c.Revision}); err != nil {
		t.Fatal(err)
	}
	s.reaches("orders", 4)
	if got := s.got(); len(got) != 2 || fmt.Sprint(got[1].ids()) != "[3 4]" {
		t.Errorf("got %+v", got)
	}
}

func TestASubscriptionThatIsRemovedGetsNothingMore(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.changes.add(1, cdc.Insert, 10)
	s.run("w1", Config{})
	s.subscribe("orders", 0)
	s.subscribe("other", 0)
	s.reaches("orders", 1)
	s.reaches("other", 1)
	if err := s.store.ForgetSubscription(t.Context(), client, "orders"); err != nil {
		t.Fatal(err)
	}
	for there := true; there; _, there = s.store.Subscription(client, "orders") {
		time.Sleep(time.Millisecond)
	}
	s.changes.add(1, cdc.Insert, 10)
	s.reaches("other", 2)
	for _, b := range s.got() {
		if b.Data.Subscription == "orders" && b.ids()[0] == 2 {
			t.Error("it was sent what came after")
		}
	}
}

// One worker serves a subscription, and another goes on where it stopped.
func TestWorkersTakeOverFromEachOther(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	s.subscribe("orders", 3)
	stops := []func(){s.run("w1", Config{})}
	for i := range 3 {
		other := bustest.Bus(t, s.srv)
		stops = append(stops, s.start(s.elsewhere(other, fmt.Sprint("w", i+2), Config{})))
	}
	for i, stop := range stops {
		s.changes.add(20, cdc.Insert, 10)
		if i < len(stops)-1 {
			stop()
		}
	}
	s.reaches("orders", 80)
	s.inOrder(80)
	seen := map[string]bool{}
	for _, b := range s.got() {
		if seen[b.id] {
			t.Errorf("%s was sent twice, although no worker was lost", b.id)
		}
		seen[b.id] = true
	}
}

// The worker is lost after the receiver answered and before the cursor is
// stored.
func TestALostWorkersBatchIsRepeatedUnderTheSameID(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	lost := bustest.Bus(t, s.srv)
	s.answer = func(n int, _ http.ResponseWriter) {
		if n == 1 {
			lost.Conn().Close() // nothing more leaves this worker
		}
	}
	s.subscribe("orders", 5)
	s.changes.add(5, cdc.Insert, 10)
	stop := s.start(s.elsewhere(lost, "w1", Config{Grace: 100 * time.Millisecond}))
	for len(s.got()) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	s.run("w2", Config{})
	s.reaches("orders", 5)
	if got := s.got(); len(got) != 2 || got[0].id != got[1].id {
		t.Errorf("got %+v, want one batch twice", got)
	}
}

func TestStoppingFinishesTheBatchUnderWay(t *testing.T) {
	t.Parallel()
	s := newSubscribed(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	s.answer = func(int, http.ResponseWriter) { close(arrived); <-release }
	s.subscribe("orders", 5)
	s.changes.add(5, cdc.Insert, 10)
	stop := s.run("w1", Config{})
	<-arrived
	go func() { time.Sleep(100 * time.Millisecond); close(release) }()
	stop()
	s.want(Delivered)
	s.reaches("orders", 5)
}
