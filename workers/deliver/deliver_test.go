package deliver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

const client = "shop"

// jobs has ended with success, unless said otherwise.
type jobs struct {
	mu   sync.Mutex
	says map[string]func() (webhook.Summary, error)
}

var ended = webhook.Summary{State: "succeeded", At: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Ended: true, Attempts: 1, Rows: 3, Bytes: 99, HasResult: true}

func (j *jobs) Summary(_ context.Context, _, id string) (webhook.Summary, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if f := j.says[id]; f != nil {
		return f()
	}
	return ended, nil
}

type secrets struct{}

func (secrets) Secret(key string) []byte { return webhook.Derive([]byte("deployment"), key) }

// A bench is a bus, a receiver, and what workers made of the hooks.
type bench struct {
	t        *testing.T
	srv      *bus.Server
	bus      *bus.Bus
	jobs     *jobs
	outcomes chan Outcome
}

func newBench(t *testing.T) *bench {
	srv := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir()})
	return &bench{t: t, srv: srv, bus: bustest.Bus(t, srv), jobs: &jobs{says: map[string]func() (webhook.Summary, error){}}, outcomes: make(chan Outcome, 10_000)}
}

func loopback() *webhook.Guard {
	return &webhook.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
}

func (b *bench) worker(on *bus.Bus, cfg Config) *Worker {
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	return &Worker{
		Bus: on, Jobs: b.jobs, Secrets: secrets{}, Guard: loopback(), Config: cfg,
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
		Observe: func(o Outcome) { b.outcomes <- o },
	}
}

// start runs a worker until the test ends or the returned function is called,
// which waits for it.
func (b *bench) start(w interface{ Run(context.Context) error }) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					b.t.Errorf("Run: %v", err)
				}
			case <-time.After(20 * time.Second):
				b.t.Error("Run does not end")
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) order(id, url string) {
	b.t.Helper()
	raw, err := json.Marshal(webhook.Hook{Client: client, Job: id, URL: url, Key: "k1", Created: time.Now()})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.bus.JetStream().Publish(b.t.Context(), bus.JobHook(client, id), raw); err != nil {
		b.t.Fatal(err)
	}
}

// await returns the next outcome.
func (b *bench) await() Outcome {
	b.t.Helper()
	select {
	case o := <-b.outcomes:
		return o
	case <-time.After(15 * time.Second):
		b.t.Fatal("nothing became of the hook")
		return Outcome{}
	}
}

func (b *bench) want(want ...Result) {
	b.t.Helper()
	for i, r := range want {
		if o := b.await(); o.Result != r || o.Client != client {
			b.t.Fatalf("outcome %d is %+v, want %s", i, o, r)
		}
	}
}

// letters returns all dead letters.
func (b *bench) letters() (out []Letter) {
	b.t.Helper()
	raws, err := b.bus.Scan(b.t.Context(), bus.StreamDead, bus.Dead("hook", client), 1, 1000)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, raw := range raws {
		var l Letter
		if err := json.Unmarshal(raw.Data, &l); err != nil {
			b.t.Fatalf("dead letter %s: %v", raw.Data, err)
		}
		if c := Cause(raw.Header.Get(bus.HeaderCause)); c != l.Cause {
			b.t.Errorf("the header says %q, the body %q", c, l.Cause)
		}
		out = append(out, l)
	}
	return out
}

// settled fails unless the consumer has nothing left.
func (b *bench) settled() {
	b.t.Helper()
	cons, err := b.bus.JetStream().Consumer(b.t.Context(), bus.StreamJobEvents, Consumer)
	if err != nil {
		b.t.Fatal(err)
	}
	info, err := cons.Info(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if info.NumAckPending != 0 || info.NumPending != 0 {
		b.t.Errorf("%d hooks are not acknowledged and %d not delivered", info.NumAckPending, info.NumPending)
	}
}

// receiver records what it gets and answers as told.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	ids []string
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	rec := &receiver{}
	rec.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := webhook.Verify(secrets{}.Secret("k1"), r.Header, body, time.Now(), webhook.Tolerance); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		rec.mu.Lock()
		rec.ids = append(rec.ids, r.Header.Get(webhook.HeaderID))
		n := len(rec.ids)
		rec.mu.Unlock()
		if answer != nil {
			answer(n, w, r)
		}
	}))
	t.Cleanup(rec.Close)
	return rec
}

func (r *receiver) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.ids...)
}

func status(code int) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestAHookIsDeliveredSigned(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var body atomic.Value
	rec := newReceiver(t, nil)
	inner := rec.Config.Handler
	rec.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		body.Store(string(raw))
		r.Body = io.NopCloser(strings.NewReader(string(raw)))
		inner.ServeHTTP(w, r)
	})
	b.start(b.worker(b.bus, Config{}))
	b.order("j1", rec.URL)
	b.want(Delivered)
	want := `{"type":"deferred.succeeded","timestamp":"2026-03-04T05:06:07Z","data":{"id":"j1","client":"shop","state":"succeeded","attempts":1,"rows":3,"bytes":99,"rows_affected":0,"result_url":"/gateway/deferred/j1/result"}}`
	if got := body.Load(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if ids := rec.got(); len(ids) != 1 || ids[0] != "job_j1_1" {
		t.Errorf("ids are %v", ids)
	}
	b.settled()
}

func TestAFailedAttemptIsRepeatedUnderTheSameID(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	b.start(b.worker(b.bus, Config{Backoff: []time.Duration{time.Second, time.Second}}))
	b.order("j1", rec.URL)
	b.want(Retried, Retried, Delivered)
	if ids := rec.got(); len(ids) != 3 || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("ids are %v, want one three times", ids)
	}
	if l := b.letters(); len(l) != 0 {
		t.Errorf("dead letters: %+v", l)
	}
	b.settled()
}

func TestAfterTheLastAttemptThereIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, status(http.StatusBadGateway))
	b.start(b.worker(b.bus, Config{Backoff: []time.Duration{time.Second}}))
	b.order("j1", rec.URL+"/hook?token=hunter2")
	b.want(Retried, Dead)
	l := b.letters()
	if len(l) != 1 || l[0].Kind != "hook" || l[0].Client != client || l[0].ID != "j1" || l[0].Cause != AttemptsExhausted ||
		l[0].LastStatus != http.StatusBadGateway || l[0].Attempts != 2 || l[0].At.IsZero() {
		t.Errorf("dead letters: %+v", l)
	}
	if strings.Contains(fmt.Sprint(l), "hunter2") {
		t.Error("the dead letter shows the URL's query")
	}
	b.settled()
}

func TestAnEndpointThatIsGoneGetsNothingMore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
		}
	})
	b.start(b.worker(b.bus, Config{}))
	b.order("j1", rec.URL+"/gone")
	b.want(Dead)
	b.order("j2", rec.URL+"/gone")
	b.want(Dead)
	b.order("j3", rec.URL+"/here")
	b.want(Delivered)
	if ids := rec.got(); len(ids) != 2 {
		t.Errorf("%d requests were made, want the first and the third: %v", len(ids), ids)
	}
	l := b.letters()
	if len(l) != 2 || l[0].Cause != EndpointDisabled || l[0].LastStatus != http.StatusGone || l[1].Cause != EndpointDisabled || l[1].Attempts != 0 {
		t.Errorf("dead letters: %+v", l)
	}
	raw, err := b.bus.LastMsg(t.Context(), "KV_"+bus.BucketState, "$KV."+bus.BucketState+"."+DisabledKey(client, rec.URL+"/gone"))
	if err != nil || raw.Header.Get(jetstream.MsgTTLHeader) == "" {
		t.Errorf("the fact has no time to live: %+v, %v", raw, err)
	}
	b.settled()
}

func TestWhatCannotBeAnnouncedIsBuriedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, nil)
	b.jobs.says = map[string]func() (webhook.Summary, error){
		"gone":     func() (webhook.Summary, error) { return webhook.Summary{}, athena.Errorf(athena.CodeNotFound, "gone") },
		"requeued": func() (webhook.Summary, error) { return webhook.Summary{State: "running", Revision: 1 << 40}, nil },
	}
	b.start(b.worker(b.bus, Config{}))
	tests := []struct {
		id, url string
		cause   Cause
	}{
		{"gone", rec.URL, JobGone},
		{"requeued", rec.URL, Superseded},
		{"private", "http://10.0.0.1/", TargetForbidden},
	}
	for _, tc := range tests {
		b.order(tc.id, tc.url)
		if o := b.await(); o.Result != Dead || o.Cause != tc.cause {
			t.Errorf("%s: got %+v, want %s", tc.id, o, tc.cause)
		}
	}
	if _, err := b.bus.JetStream().Publish(t.Context(), bus.JobHook(client, "noise"), []byte("noise")); err != nil {
		t.Fatal(err)
	}
	if o := b.await(); o.Result != Dead || o.Cause != Malformed {
		t.Errorf("noise: got %+v, want %s", o, Malformed)
	}
	if l := b.letters(); len(l) != len(tests)+1 {
		t.Errorf("dead letters: %+v", l)
	}
	if ids := rec.got(); len(ids) != 0 {
		t.Errorf("requests were made: %v", ids)
	}
	b.settled()
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	elsewhere := newReceiver(t, nil)
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusPermanentRedirect)
	})
	b.start(b.worker(b.bus, Config{Backoff: []time.Duration{}}))
	b.order("j1", rec.URL)
	b.want(Dead)
	if l := b.letters(); len(l) != 1 || l[0].LastStatus != http.StatusPermanentRedirect {
		t.Errorf("dead letters: %+v", l)
	}
	if ids := elsewhere.got(); len(ids) != 0 {
		t.Error("the redirect was followed")
	}
}

func TestAReceiverMayAskForTime(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status   int
		after    string
		min, max time.Duration
	}{
		"an hour, while it is busy":      {http.StatusServiceUnavailable, "3600", time.Hour, time.Hour + 2*time.Second},
		"an hour, of too many requests":  {http.StatusTooManyRequests, "3600", time.Hour, time.Hour + 2*time.Second},
		"a month, which is cut to a day": {http.StatusServiceUnavailable, "2592000", maxRetryAfter, maxRetryAfter + 2*time.Second},
		"less than the backoff":          {http.StatusServiceUnavailable, "1", time.Minute, 67 * time.Second},
		"with a status that has no say":  {http.StatusInternalServerError, "3600", time.Minute, 67 * time.Second},
	}
	b := newBench(t)
	b.start(b.worker(b.bus, Config{Backoff: []time.Duration{time.Minute}}))
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rec := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", tc.after)
				w.WriteHeader(tc.status)
			})
			id := strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", "")
			start := time.Now()
			b.order(id, rec.URL)
			b.want(Retried)
			raws, err := b.bus.Scan(t.Context(), bus.StreamJobEvents, bus.JobHookSchedule(client, id)+".*", 1, 10)
			if err != nil || len(raws) != 1 {
				t.Fatalf("schedules: %v, %v", raws, err)
			}
			at, err := time.Parse("@at "+time.RFC3339, raws[0].Header.Get(jetstream.ScheduleHeader))
			if wait := at.Sub(start); err != nil || wait < tc.min || wait > tc.max {
				t.Errorf("the next attempt is %s away (%v), want between %s and %s", wait, err, tc.min, tc.max)
			}
		})
	}
}

// A hook does not wait for longer than the stream keeps it.
func TestAHookThatIsTooOldIsGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, status(http.StatusInternalServerError))
	b.start(b.worker(b.bus, Config{}))
	raw, _ := json.Marshal(webhook.Hook{Client: client, Job: "old", URL: rec.URL, Key: "k1", Created: time.Now().Add(-maxAge)})
	if _, err := b.bus.JetStream().Publish(t.Context(), bus.JobHook(client, "old"), raw); err != nil {
		t.Fatal(err)
	}
	if o := b.await(); o.Cause != AttemptsExhausted || len(rec.got()) != 1 {
		t.Errorf("got %+v after %d requests", o, len(rec.got()))
	}
}

// A receiver that hangs holds up its own hooks only, and they are not lost.
func TestASlowReceiverHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	release := make(chan struct{})
	slow := newReceiver(t, func(int, http.ResponseWriter, *http.Request) { <-release })
	quick := newReceiver(t, nil)
	b.start(b.worker(b.bus, Config{Concurrency: 4, PerHost: 2, Timeout: time.Minute}))
	for i := range 12 {
		b.order(fmt.Sprintf("slow%d", i), slow.URL)
	}
	for i := range 12 {
		b.order(fmt.Sprintf("quick%d", i), quick.URL)
	}
	parked := 0
	for delivered := 0; delivered < 12; {
		switch o := b.await(); o.Result {
		case Delivered:
			delivered++
		case Parked:
			parked++
		default:
			t.Fatalf("got %+v", o)
		}
	}
	if n := len(slow.got()); n != 2 || parked < 10 {
		t.Errorf("the slow one has %d requests, want 2; %d hooks were parked, want 10 or more", n, parked)
	}
	close(release)
	for delivered := 0; delivered < 12; {
		if b.await().Result == Delivered {
			delivered++
		}
	}
	seen := map[string]bool{}
	for _, id := range slow.got() {
		seen[id] = true
	}
	if len(seen) != 12 {
		t.Errorf("the slow one got %d hooks, want 12", len(seen))
	}
	b.settled()
}

// The worker is lost after the receiver answered and before it can acknowledge.
func TestALostWorkersHookIsRepeatedUnderTheSameID(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lost := bustest.Bus(t, b.srv)
	rec := newReceiver(t, func(n int, _ http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			lost.Conn().Close() // nothing more leaves this worker
		}
	})
	cfg := Config{Timeout: 500 * time.Millisecond, AckWait: time.Second}
	stop := b.start(b.worker(lost, cfg))
	b.order("j1", rec.URL)
	b.want(Returned)
	stop()
	b.start(b.worker(b.bus, cfg))
	b.want(Delivered)
	if ids := rec.got(); len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("ids are %v, want one twice", ids)
	}
	b.settled()
}

func TestWorkersShareTheHooks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rec := newReceiver(t, func(int, http.ResponseWriter, *http.Request) { time.Sleep(2 * time.Millisecond) })
	const n = 200
	for i := range n {
		b.order(fmt.Sprintf("j%d", i), rec.URL)
	}
	var by [2]atomic.Int32
	for i := range by {
		w := b.worker(bustest.Bus(t, b.srv), Config{Concurrency: 8, PerHost: 8})
		w.Observe = func(o Outcome) { by[i].Add(1); b.outcomes <- o }
		b.start(w)
	}
	for range n {
		b.want(Delivered)
	}
	seen := map[string]bool{}
	for _, id := range rec.got() {
		seen[id] = true
	}
	if got := len(rec.got()); got != n || len(seen) != n {
		t.Errorf("%d requests for %d hooks, want %d", got, len(seen), n)
	}
	if by[0].Load() == 0 || by[1].Load() == 0 {
		t.Errorf("the workers delivered %d and %d", by[0].Load(), by[1].Load())
	}
	b.settled()
}

func TestStoppingFinishesTheRequestUnderWay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	rec := newReceiver(t, func(int, http.ResponseWriter, *http.Request) { close(arrived); <-release })
	stop := b.start(b.worker(b.bus, Config{}))
	b.order("j1", rec.URL)
	<-arrived
	go func() { time.Sleep(100 * time.Millisecond); close(release) }()
	stop()
	b.want(Delivered)
	b.settled()
}

// A request that outlives the grace is cut off, counts as no attempt, and is
// made again by the next worker.
func TestStoppingGivesUpAHangingRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	rec := newReceiver(t, func(n int, _ http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			close(arrived)
			<-release
		}
	})
	t.Cleanup(func() { close(release) })
	stop := b.start(b.worker(b.bus, Config{Timeout: time.Minute, Grace: 50 * time.Millisecond}))
	b.order("j1", rec.URL)
	<-arrived
	stop()
	b.want(Returned)
	b.start(b.worker(b.bus, Config{Timeout: time.Minute}))
	b.want(Delivered)
	if ids := rec.got(); len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("ids are %v, want one twice", ids)
	}
}

// A replica that lags may still show the job at work: the hook waits for it.
func TestAStateThatLagsIsReadAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var asked atomic.Int32
	b.jobs.says["j1"] = func() (webhook.Summary, error) {
		if asked.Add(1) == 1 {
			return webhook.Summary{State: "running"}, nil
		}
		return ended, nil
	}
	rec := newReceiver(t, nil)
	b.start(b.worker(b.bus, Config{}))
	b.order("j1", rec.URL)
	b.want(Returned, Delivered)
}

func TestTheDefaultScheduleFitsIntoWhatTheStreamKeeps(t *testing.T) {
	t.Parallel()
	var sum time.Duration
	for _, d := range (Config{}).withDefaults().Backoff {
		sum += d + d/10
	}
	if sum < 48*time.Hour || sum > maxAge {
		t.Errorf("the attempts take %s", sum)
	}
}
