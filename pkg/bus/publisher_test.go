package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

func job(id string) *nats.Msg {
	m := nats.NewMsg(bus.JobSubject("normal", "postgres", "shop", id))
	m.Data = []byte(id)
	return m
}

// once expects that the job was accepted in no lane and engine.
func once(m *nats.Msg, id string) *nats.Msg {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	m.Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, bus.JobAny("shop", id))
	return m
}

func TestConcurrentPublishesGetTheirOwnSequences(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobs)
	const n = 3000
	seqs := make([]uint64, n)
	var wg sync.WaitGroup
	for w := range 300 {
		wg.Go(func() {
			for i := w; i < n; i += 300 {
				id := strconv.Itoa(i)
				var err error
				if seqs[i], err = p.Publish(t.Context(), once(job(id), id)); err != nil {
					t.Errorf("publish %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	all, err := b.Scan(t.Context(), bus.StreamJobs, "ath.job.>", 1, n+1)
	if err != nil || len(all) != n {
		t.Fatalf("%d messages, %v", len(all), err)
	}
	batched := 0
	for _, m := range all {
		i, err := strconv.Atoi(bus.JobID(m.Subject))
		if err != nil || seqs[i] != m.Sequence {
			t.Fatalf("job %q is at %d, its publisher was told %d", m.Subject, m.Sequence, seqs[i])
		}
		if string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("job %d has body %q", i, m.Data)
		}
		if m.Header.Get("Nats-Batch-Id") != "" {
			batched++
		}
	}
	if batched < n/2 {
		t.Errorf("%d of %d messages went in batches; group commit does not work", batched, n)
	}
}

// Many submit the same few jobs, in different lanes: one wins each.
func TestJobIsAcceptedOnceWhateverTheLane(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobs)
	const jobs, rivals = 40, 25
	var mu sync.Mutex
	won := map[string]int{}
	var wg sync.WaitGroup
	for r := range rivals {
		for j := range jobs {
			wg.Go(func() {
				id := fmt.Sprintf("job%d", j)
				m := once(nats.NewMsg(bus.JobSubject(fmt.Sprintf("lane%d", r), "postgres", "shop", id)), id)
				_, err := p.Publish(t.Context(), m)
				switch {
				case err == nil:
					mu.Lock()
					won[id]++
					mu.Unlock()
				case !errors.Is(err, bus.ErrWrongSequence):
					t.Errorf("lane %d, %s: %v", r, id, err)
				}
			})
		}
	}
	wg.Wait()
	for j := range jobs {
		if id := fmt.Sprintf("job%d", j); won[id] != 1 {
			t.Errorf("%s was accepted %d times", id, won[id])
		}
	}
	all, err := b.Scan(t.Context(), bus.StreamJobs, "ath.job.>", 1, jobs*rivals)
	if err != nil || len(all) != jobs {
		t.Errorf("%d messages are stored, want %d (%v)", len(all), jobs, err)
	}
}

// One state machine that all push on: each step is taken once.
func TestCompareAndSetTakesEachStepOnce(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobEvents)
	subject := bus.JobEvent("shop", "j")
	var mu sync.Mutex
	var steps []uint64
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			var rev uint64
			for range 10 {
				if last, err := b.LastMsg(t.Context(), bus.StreamJobEvents, subject); err == nil {
					rev = last.Sequence
				}
				m := nats.NewMsg(subject)
				m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(rev, 10))
				seq, err := p.Publish(t.Context(), m)
				if err == nil {
					mu.Lock()
					steps = append(steps, rev, seq)
					mu.Unlock()
				} else if !errors.Is(err, bus.ErrWrongSequence) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// The steps form one chain: what one went to, the next went from.
	from, to := map[uint64]bool{}, map[uint64]bool{}
	for i := 0; i < len(steps); i += 2 {
		if from[steps[i]] {
			t.Errorf("two steps were taken from %d", steps[i])
		}
		from[steps[i]], to[steps[i+1]] = true, true
	}
	for f := range from {
		if f != 0 && !to[f] {
			t.Errorf("a step was taken from %d, to which none went", f)
		}
	}
}

func TestAtomicBatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobEvents)
	event, hook := nats.NewMsg(bus.JobEvent("shop", "j")), nats.NewMsg(bus.JobHook("shop", "j"))
	event.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	last, err := p.PublishAtomic(t.Context(), []*nats.Msg{event, hook})
	if err != nil || last != 2 {
		t.Fatalf("last %d, %v", last, err)
	}
	if _, err := p.PublishAtomic(t.Context(), []*nats.Msg{event, hook}); !errors.Is(err, bus.ErrWrongSequence) {
		t.Errorf("the second one gave %v", err)
	}
	if m, err := b.LastMsg(t.Context(), bus.StreamJobEvents, hook.Subject); err != nil || m.Sequence != 2 {
		t.Errorf("the refused batch left a hook: %+v, %v", m, err)
	}
	if len(event.Header) != 1 || len(hook.Header) != 0 {
		t.Errorf("the caller's messages were changed: %v %v", event.Header, hook.Header)
	}
	again := nats.NewMsg(event.Subject)
	if _, err := p.PublishAtomic(t.Context(), []*nats.Msg{event, again}); err == nil {
		t.Error("a batch that touches an expected subject twice was taken")
	}
	many := make([]*nats.Msg, 1000)
	for i := range many {
		many[i] = nats.NewMsg(bus.JobHook("shop", strconv.Itoa(i)))
	}
	if last, err := p.PublishAtomic(t.Context(), many); err != nil || last != 1002 {
		t.Errorf("a batch of 1,000: last %d, %v", last, err)
	}
	if _, err := p.PublishAtomic(t.Context(), append(many, event)); err == nil {
		t.Error("a batch of 1,001 was taken")
	}
}

// raw sends a batch as the server sees one, without the Publisher's care.
func raw(t *testing.T, nc *nats.Conn, msgs ...*nats.Msg) (code int) {
	t.Helper()
	id := nuid.Next()
	for i, m := range msgs {
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(msgs)-1 {
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		r, err := nc.RequestMsg(m, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Error struct {
				Code int `json:"err_code"`
			} `json:"error"`
		}
		if err := json.Unmarshal(r.Data, &a); err != nil {
			t.Fatal(err)
		}
		return a.Error.Code
	}
	return 0
}

func header(m *nats.Msg, kv ...string) *nats.Msg {
	for i := 0; i < len(kv); i += 2 {
		m.Header.Set(kv[i], kv[i+1])
	}
	return m
}

// What nats-server 2.15.2 does with each header inside a batch. The Publisher
// rests on it; a server that does otherwise should fail here first.
func TestHeadersInBatchesAsTheServerSeesThem(t *testing.T) {
	t.Parallel()
	const exp, expSubj, expAll = jetstream.ExpectedLastSubjSeqHeader, jetstream.ExpectedLastSubjSeqSubjHeader, jetstream.ExpectedLastSeqHeader
	tests := map[string]struct {
		batch []*nats.Msg
		code  int
	}{
		"two messages of one subject": {
			[]*nats.Msg{job("a"), job("a")}, 0},
		"an expectation that holds": {
			[]*nats.Msg{job("x"), header(job("a"), exp, "0")}, 0},
		"an expectation that does not hold": {
			[]*nats.Msg{job("x"), header(job("a"), exp, "7")}, 10071},
		"an expectation after a message of its subject": {
			[]*nats.Msg{job("a"), header(job("a"), exp, "0")}, 10164},
		"an expectation before a message of its subject": {
			[]*nats.Msg{header(job("a"), exp, "0"), job("a")}, 0},
		"an expectation on the whole stream first": {
			[]*nats.Msg{header(job("a"), expAll, "1"), job("b")}, 0},
		"an expectation on the whole stream second": {
			[]*nats.Msg{job("a"), header(job("b"), expAll, "2")}, 10164},
		"an expected last message id": {
			[]*nats.Msg{job("a"), header(job("b"), jetstream.ExpectedLastMsgIDHeader, "m")}, 10177},
		"a message id twice": {
			[]*nats.Msg{header(job("a"), jetstream.MsgIDHeader, "m"), header(job("b"), jetstream.MsgIDHeader, "m")}, 10201},
		"a message id that was seen before refuses the whole batch": {
			[]*nats.Msg{job("a"), header(job("b"), jetstream.MsgIDHeader, "seen")}, 10201},
		"a schedule twice": {
			[]*nats.Msg{bus.Schedule("ath.jobsched.shop.a", bus.JobWake("n", "p", "shop", "a"), time.Now().Add(time.Hour)),
				bus.Schedule("ath.jobsched.shop.a", bus.JobWake("n", "p", "shop", "a"), time.Now().Add(time.Hour))}, 10111},
		"a time to live": {
			[]*nats.Msg{header(job("a"), jetstream.MsgTTLHeader, "60s"), job("b")}, 0},
		"a wildcard expectation that the batch itself breaks is not noticed": {
			[]*nats.Msg{once(job("a"), "a"), once(header(nats.NewMsg(bus.JobSubject("batch", "p", "shop", "a"))), "a")}, 0},
		"a wildcard expectation that the stream breaks": {
			[]*nats.Msg{job("b"), header(job("a"), exp, "0", expSubj, "ath.job.*.*.shop.seen")}, 10071},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.Start(t)
			if _, err := b.JetStream().PublishMsg(t.Context(), header(job("seen"), jetstream.MsgIDHeader, "seen")); err != nil {
				t.Fatal(err)
			}
			if code := raw(t, b.Conn(), tt.batch...); code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
		})
	}
}

// Whatever headers come together, each message gets the verdict that it would
// get alone.
func TestEachMemberGetsItsOwnVerdict(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobs)
	if _, err := p.Publish(t.Context(), job("old")); err != nil {
		t.Fatal(err)
	}
	type sent struct {
		msg *nats.Msg
		bad bool
	}
	var all []sent
	for i := range 100 {
		id := strconv.Itoa(i)
		all = append(all,
			sent{job("plain" + id), false},
			sent{once(job("once"+id), "once"+id), false},
			sent{once(job("again"+id), "old"), true},
			sent{header(job("id"+id), jetstream.MsgIDHeader, "same"), false},
			sent{header(job("msgid"+id), jetstream.ExpectedLastMsgIDHeader, "never"), true},
			sent{bus.Schedule(bus.JobSchedule("shop", "one"), bus.JobWake("n", "p", "shop", "one"), time.Now().Add(time.Hour)), false},
		)
	}
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() {
			_, err := p.Publish(t.Context(), s.msg)
			if s.bad != errors.Is(err, bus.ErrWrongSequence) || !s.bad && err != nil {
				t.Errorf("%s %v: %v", s.msg.Subject, s.msg.Header, err)
			}
		})
	}
	wg.Wait()
	stored, err := b.Scan(t.Context(), bus.StreamJobs, "ath.job.>", 1, 1000)
	if err != nil || len(stored) != 1+100+100+1 {
		t.Errorf("%d messages are stored, want 202 (%v)", len(stored), err)
	}
}

func TestFullStreamsRefuse(t *testing.T) {
	t.Parallel()
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir()})
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	limits := small()
	limits[bus.StreamResults], limits[bus.StreamJobs] = 64<<10, 64<<10
	b, err := bus.New(nc, bus.Config{Embedded: s, MaxBytes: limits})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}

	fill := func(stream string, msg func(i int) *nats.Msg) (stored int, err error) {
		p := bus.NewPublisher(b, stream)
		deadline := time.Now().Add(10 * time.Second)
		for time.Now().Before(deadline) {
			m := msg(stored)
			m.Data = make([]byte, 8<<10)
			if _, err := p.Publish(t.Context(), m); err != nil {
				return stored, err
			}
			stored++
			time.Sleep(20 * time.Millisecond)
		}
		return stored, nil
	}
	stored, err := fill(bus.StreamResults, func(i int) *nats.Msg { return nats.NewMsg(bus.Result("shop", "j", 1, 0, i)) })
	if !errors.Is(err, bus.ErrFull) || stored < 6 {
		t.Errorf("results: after %d messages: %v", stored, err)
	}
	var many []*nats.Msg
	for i := range 50 {
		many = append(many, nats.NewMsg(bus.Result("shop", "k", 1, 0, i)))
		many[i].Data = make([]byte, 1<<10)
	}
	if _, err := bus.NewPublisher(b, bus.StreamResults).PublishAtomic(t.Context(), many); !errors.Is(err, bus.ErrFull) {
		t.Errorf("a batch that does not fit: %v", err)
	}
	if _, err := b.LastMsg(t.Context(), bus.StreamResults, bus.ResultAny("shop", "k")); !errors.Is(err, bus.ErrNoMessage) {
		t.Errorf("a part of it was stored: %v", err)
	}

	// The job stream cannot refuse by itself; the Publisher does within about a
	// second, and lets pass what an accepted job needs.
	_, err = fill(bus.StreamJobs, func(i int) *nats.Msg { return job(strconv.Itoa(i)) })
	if !errors.Is(err, bus.ErrFull) {
		t.Errorf("jobs: %v", err)
	}
	wake := nats.NewMsg(bus.JobWake("normal", "postgres", "shop", "0"))
	if _, err := bus.NewPublisher(b, bus.StreamJobs).Publish(t.Context(), wake); err != nil {
		t.Errorf("a wake-up in a full stream: %v", err)
	}
}

func TestPublishRefusesWithoutSending(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobs)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Publish(gone, job("a")); !errors.Is(err, context.Canceled) || errors.Is(err, bus.ErrAmbiguous) {
		t.Errorf("a context that had ended: %v", err)
	}
	big := job("b")
	big.Data = make([]byte, bus.MaxPayload)
	if _, err := p.Publish(t.Context(), big); athena.CodeOf(err) != athena.CodePayloadTooLarge {
		t.Errorf("too large: %v", err)
	}
	if _, err := p.Publish(t.Context(), nats.NewMsg("ath.jobev.shop.a")); err == nil {
		t.Error("a subject of another stream was taken")
	}
	if _, err := b.LastMsg(t.Context(), bus.StreamJobs, "ath.job.>"); !errors.Is(err, bus.ErrNoMessage) {
		t.Errorf("something was stored: %v", err)
	}
}

func TestPublishWithoutServerIsTypedAndRecovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	url := s.URL()
	nc, err := bus.Connect(t.Context(), bus.ConnectConfig{URLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.New(nc, bus.Config{MaxBytes: small()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := bus.NewPublisher(b, bus.StreamJobs)
	if _, err := p.Publish(t.Context(), job("before")); err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := p.Publish(short, job("during")); athena.CodeOf(err) != athena.CodeBusUnavailable {
		t.Errorf("without a server: %v", err)
	}
	bustest.Server(t, bus.ServerConfig{Dir: dir, Listen: url[len("nats://"):]})
	if _, err := p.Publish(t.Context(), job("after")); err != nil {
		t.Errorf("with the server back: %v", err)
	}
	all, err := b.Scan(t.Context(), bus.StreamJobs, "ath.job.>", 1, 10)
	ids := make([]string, len(all))
	for i, m := range all {
		ids[i] = bus.JobID(m.Subject)
	}
	if err != nil || !slices.Equal(ids, []string{"before", "after"}) {
		t.Errorf("stored are %v, %v", ids, err)
	}
}
