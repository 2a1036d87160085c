package bus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

func TestReconcileIsIdempotentAndMendsLimits(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	js := b.JetStream()
	for _, want := range bus.Topology(bus.Config{}) {
		s, err := js.Stream(t.Context(), want.Name)
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		cfg.MaxAge = time.Hour
		cfg.Metadata = map[string]string{"team": "ops"}
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatalf("%s: %v", want.Name, err)
		}
	}
	for range 2 {
		if err := b.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range bus.Topology(bus.Config{}) {
		s, err := js.Stream(t.Context(), want.Name)
		if err != nil {
			t.Fatal(err)
		}
		got := s.CachedInfo().Config
		if got.MaxAge != want.MaxAge {
			t.Errorf("%s: max age is %s, want %s", want.Name, got.MaxAge, want.MaxAge)
		}
		if got.Metadata["team"] != "ops" {
			t.Errorf("%s: the operator's metadata is gone", want.Name)
		}
		if got.MaxConsumers != -1 {
			t.Errorf("%s takes %d consumers", want.Name, got.MaxConsumers)
		}
	}
	if found, err := b.Check(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("a fresh bus has findings: %v %v", found, err)
	}
	if err := b.Probe(t.Context()); err != nil {
		t.Errorf("probe: %v", err)
	}
}

func TestReconcileRefusesWhatBreaksDurability(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		stream  string
		weaken  func(*jetstream.StreamConfig)
		setting string
	}{
		"memory storage": {bus.StreamJobs, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "storage"},
		"async persistence": {bus.StreamOps, func(c *jetstream.StreamConfig) {
			c.PersistMode, c.AllowAtomicPublish = jetstream.AsyncPersistMode, false
		}, "persist_mode"},
		"work queue retention": {bus.StreamJobs, func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, "retention"},
		"discarding results":   {bus.StreamResults, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, "discard"},
		"no direct reads":      {bus.StreamJobEvents, func(c *jetstream.StreamConfig) { c.AllowDirect = false }, "allow_direct"},
		"no atomic batches":    {bus.StreamJobEvents, func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false }, "allow_atomic"},
		"no time to live":      {bus.StreamResults, func(c *jetstream.StreamConfig) { c.AllowMsgTTL = false }, "allow_msg_ttl"},
		"no schedules":         {bus.StreamJobs, func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = false }, "allow_msg_schedules"},
		"no acknowledgements":  {bus.StreamDead, func(c *jetstream.StreamConfig) { c.NoAck = true }, "no_ack"},
		"a bucket in memory":   {"KV_" + bus.BucketCatalog, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "storage"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir()})
			nc, err := s.Connect()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			b, err := bus.New(nc, bus.Config{Embedded: s, MaxBytes: small()})
			if err != nil {
				t.Fatal(err)
			}
			for _, cfg := range bus.Topology(bus.Config{MaxBytes: small()}) {
				if cfg.Name == tt.stream {
					cfg.MaxBytes = min(cfg.MaxBytes, 1<<20)
					tt.weaken(&cfg)
					if _, err := b.JetStream().CreateStream(t.Context(), cfg); err != nil {
						t.Fatal(err)
					}
				}
			}
			err = b.Reconcile(t.Context())
			var e *athena.Error
			if !errors.As(err, &e) || e.Code != athena.CodeBusUnavailable || e.Details["stream"] != tt.stream || e.Details["setting"] != tt.setting {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(e.Message, tt.stream) || !strings.Contains(e.Message, tt.setting) {
				t.Errorf("the message names too little: %s", e.Message)
			}
			if _, err := b.JetStream().Stream(t.Context(), "KV_"+bus.BucketState); !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Errorf("something was made although Reconcile refused: %v", err)
			}
			found, err := b.Check(t.Context())
			weak := false
			for _, f := range found {
				weak = weak || f.Stream == tt.stream && f.Setting == tt.setting && f.Weak
			}
			if err != nil || !weak {
				t.Errorf("Check does not say it: %v %v", found, err)
			}
		})
	}
}

func TestTooFewReplicasAreRefused(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	strict, err := bus.New(b.Conn(), bus.Config{Replicas: 3, MaxBytes: small()})
	if err != nil {
		t.Fatal(err)
	}
	var e *athena.Error
	if err := strict.Reconcile(t.Context()); !errors.As(err, &e) || e.Details["setting"] != "num_replicas" || !strings.Contains(e.Message, "--replicas=3") {
		t.Errorf("got %v", err)
	}
	if _, err := bus.New(b.Conn(), bus.Config{Replicas: 2}); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("two replicas: %v", err)
	}
}

func TestCheckSaysThatTheServerDoesNotSync(t *testing.T) {
	t.Parallel()
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir(), SyncInterval: time.Minute})
	found, err := bustest.Bus(t, s).Check(t.Context())
	if err != nil || len(found) != 1 || found[0].Setting != "sync_interval" || !found[0].Weak {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestDataDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bus.StartServer(bus.ServerConfig{Dir: dir}); athena.CodeOf(err) != athena.CodeConflict || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second server: %v", err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	bustest.Server(t, bus.ServerConfig{Dir: dir}) // fails if the lock is left
}

func TestListenerIsClosedToStrangers(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]bus.ServerConfig{
		"all addresses":       {Listen: "0.0.0.0:0"},
		"no host":             {Listen: ":0"},
		"not an address":      {Listen: "4222", Token: "t"},
		"not a port":          {Listen: "127.0.0.1:nats", Token: "t"},
		"a cert without file": {Listen: "127.0.0.1:0", TLS: &bus.TLSFiles{Cert: "none.pem", Key: "none.pem"}},
	} {
		cfg.Dir = t.TempDir()
		if s, err := bus.StartServer(cfg); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				s.Shutdown(t.Context())
			}
		}
	}
	const secret = "correct-horse-battery"
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: secret, Users: []bus.User{{Name: "w", Password: secret + "2"}, {Name: "nopass"}}})
	bustest.Bus(t, s) // in-process, without credentials
	good := map[string]bus.ConnectConfig{
		"token": {Token: secret}, "user": {User: "w", Password: secret + "2"},
	}
	bad := map[string]bus.ConnectConfig{
		"nothing": {}, "other token": {Token: "x"}, "other password": {User: "w", Password: secret},
		"unknown user": {User: "v", Password: secret + "2"}, "empty password": {User: "nopass"}, "the insider's name": {User: "_athena"},
	}
	for name, cfg := range good {
		cfg.URLs = []string{s.URL()}
		nc, err := bus.Connect(t.Context(), cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		nc.Close()
	}
	for name, cfg := range bad {
		cfg.URLs = []string{strings.Replace(s.URL(), "nats://", "nats://me:"+secret+"0@", 1)}
		if cfg.User != "" || cfg.Token != "" || name == "nothing" {
			cfg.URLs = []string{s.URL()}
		}
		nc, err := bus.Connect(t.Context(), cfg)
		if err == nil {
			nc.Close()
		}
		if athena.CodeOf(err) != athena.CodeBusUnavailable || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := bus.Connect(t.Context(), bus.ConnectConfig{URLs: []string{"nats://me:" + secret + "@127.0.0.1:1"}})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a URL with a password in it: %v", err)
	}
}

func TestConnectIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never speaks
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := bus.Connect(ctx, bus.ConnectConfig{URLs: []string{"nats://" + l.Addr().String()}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %s", d)
	}
}

func TestMessagesEndWithTheirTime(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamResults)
	short, long := nats.NewMsg(bus.Result("shop", "a", 1, 0, 0)), nats.NewMsg(bus.Result("shop", "b", 1, 0, 0))
	short.Header.Set(jetstream.MsgTTLHeader, bus.TTL(1))
	long.Header.Set(jetstream.MsgTTLHeader, bus.TTL(time.Hour))
	for _, m := range []*nats.Msg{short, long} {
		if _, err := p.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := b.LastMsg(t.Context(), bus.StreamResults, short.Subject)
		if errors.Is(err, bus.ErrNoMessage) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("a message of 1s is still there after 5s (%v)", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := b.LastMsg(t.Context(), bus.StreamResults, long.Subject); err != nil {
		t.Errorf("the one of an hour: %v", err)
	}
}

// The wake-up reaches the lane's consumer, not before its time, and a schedule
// that went in a batch fires like any other.
func TestScheduleWakesItsLaneAndNotEarly(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	cons, err := b.JetStream().CreateOrUpdateConsumer(t.Context(), bus.StreamJobs, jetstream.ConsumerConfig{
		Durable: bus.LaneConsumer("normal", "shop"), FilterSubject: bus.JobLane("normal", "shop"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(1200 * time.Millisecond)
	later := time.Now().Add(time.Hour)
	wake := func(id string) string { return bus.JobWake("normal", "postgres", "shop", id) }
	alone, batched, replaced := bus.Schedule(bus.JobSchedule("shop", "a"), wake("a"), at), bus.Schedule(bus.JobSchedule("shop", "b"), wake("b"), at), bus.Schedule(bus.JobSchedule("shop", "c"), wake("c"), at)
	alone.Data = []byte("body")
	p := bus.NewPublisher(b, bus.StreamJobs)
	for _, m := range []*nats.Msg{alone, replaced, bus.Schedule(bus.JobSchedule("shop", "c"), wake("c"), later)} {
		if _, err := p.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.PublishAtomic(t.Context(), []*nats.Msg{batched, nats.NewMsg("ath.job.batch.postgres.other.x")}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for range 2 {
		m, err := cons.Next(jetstream.FetchMaxWait(5 * time.Second))
		if err != nil {
			t.Fatalf("have %v: %v", got, err)
		}
		if time.Now().Before(at) {
			t.Errorf("%s came %s early", m.Subject(), time.Until(at))
		}
		got[m.Subject()] = string(m.Data())
		m.Ack()
	}
	if body, ok := got[wake("a")]; !ok || body != "body" {
		t.Errorf("got %v", got)
	}
	if _, ok := got[wake("b")]; !ok {
		t.Errorf("the schedule in a batch did not fire: %v", got)
	}
	if m, err := cons.Next(jetstream.FetchMaxWait(300 * time.Millisecond)); err == nil {
		t.Errorf("the replaced schedule fired: %s", m.Subject())
	}
}

func TestReadsFindTheLastAndPage(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bus.NewPublisher(b, bus.StreamJobEvents)
	if _, err := b.LastMsg(t.Context(), bus.StreamJobEvents, bus.JobEvent("shop", "0")); !errors.Is(err, bus.ErrNoMessage) {
		t.Errorf("an empty stream: %v", err)
	}
	if m, err := b.Scan(t.Context(), bus.StreamJobEvents, "ath.jobev.>", 0, 10); err != nil || len(m) != 0 {
		t.Errorf("an empty stream: %v %v", m, err)
	}
	if m, err := b.LastFor(t.Context(), bus.StreamJobEvents, []string{bus.JobEvent("shop", "0")}); err != nil || len(m) != 0 {
		t.Errorf("an empty stream: %v %v", m, err)
	}
	const jobs = 1500
	var wg sync.WaitGroup
	subjects := make([]string, jobs+1)
	subjects[jobs] = bus.JobEvent("shop", "none")
	for i := range jobs {
		subjects[i] = bus.JobEvent("shop", fmt.Sprint(i))
		wg.Go(func() {
			for _, body := range []string{"first", "last"} {
				m := nats.NewMsg(subjects[i])
				// 9 MB in all: more than one answer may hold.
				m.Data = append(make([]byte, 6<<10), body...)
				m.Header.Set("Ath-State", body)
				if _, err := p.Publish(t.Context(), m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last, err := b.LastFor(t.Context(), bus.StreamJobEvents, subjects)
	if err != nil || len(last) != jobs {
		t.Fatalf("LastFor gave %d of %d: %v", len(last), jobs, err)
	}
	for s, m := range last {
		if !strings.HasSuffix(string(m.Data), "last") || m.Header.Get("Ath-State") != "last" || m.Subject != s || m.Time.IsZero() {
			t.Fatalf("%s: %q at %d", s, m.Header, m.Sequence)
		}
	}
	all, err := b.Scan(t.Context(), bus.StreamJobEvents, "ath.jobev.shop.*", 501, 2*jobs)
	if err != nil || len(all) != 2*jobs-500 {
		t.Fatalf("Scan gave %d of %d: %v", len(all), 2*jobs-500, err)
	}
	for i, m := range all {
		if m.Sequence != uint64(501+i) {
			t.Fatalf("message %d is %d", i, m.Sequence)
		}
	}
	for filter, want := range map[string]int64{"ath.jobev.shop.*": 2 * jobs, "ath.jobev.>": 2 * jobs, "ath.jobev.shop.none": 0} {
		if n, err := b.Count(t.Context(), bus.StreamJobEvents, filter); err != nil || n != want {
			t.Errorf("Count of %s gave %d, %v; want %d", filter, n, err, want)
		}
	}
	if some, err := b.Scan(t.Context(), bus.StreamJobEvents, "ath.jobev.shop.*", 10, 7); err != nil || len(some) != 7 || some[6].Sequence != 16 {
		t.Errorf("a page: %d, %v", len(some), err)
	}
	if m, err := b.LastMsg(t.Context(), bus.StreamJobEvents, "ath.jobev.*.7"); err != nil || m.Sequence != last[bus.JobEvent("shop", "7")].Sequence {
		t.Errorf("the last by a wildcard: %+v, %v", m, err)
	}
	if _, err := b.LastMsg(t.Context(), "ATH_NONE", "x"); athena.CodeOf(err) != athena.CodeBusUnavailable {
		t.Errorf("no such stream: %v", err)
	}
}

// Law 1, against kill -9: all that the child said was acknowledged is there.
func TestKilledServerKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[string]string{}
	for round := range 2 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, stop := bufio.NewScanner(out), 300+200*round
		for n := 0; lines.Scan(); n++ {
			if n == stop {
				cmd.Process.Kill() // what is in the pipe was acknowledged too
			}
			if seq, subject, ok := strings.Cut(lines.Text(), " "); ok && strings.HasPrefix(subject, "ath.job.") {
				acked[seq] = subject
			}
		}
		cmd.Wait()
		if len(acked) < stop {
			t.Fatalf("the child acknowledged %d: %s", len(acked), stderr.String())
		}
	}
	b := bustest.Bus(t, bustest.Server(t, bus.ServerConfig{Dir: dir}))
	all, err := b.Scan(t.Context(), bus.StreamJobs, "ath.job.>", 1, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]string{}
	for _, m := range all {
		stored[fmt.Sprint(m.Sequence)] = m.Subject
	}
	// The last line may have been cut by the kill.
	wrong := 0
	for seq, subject := range acked {
		if !strings.HasPrefix(stored[seq], subject) || stored[seq] == "" {
			wrong++
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d acknowledged messages are gone; %d are stored", wrong, len(acked), len(stored))
	}
	t.Logf("%d acknowledged, %d stored", len(acked), len(stored))
}

// One of three servers stops and comes back while messages come: all that was
// acknowledged is there.
func TestClusterLosesNothingWhenANodeStops(t *testing.T) {
	t.Parallel()
	c := bustest.StartCluster(t, 3)
	b := c.Bus(3)
	p := bus.NewPublisher(b, bus.StreamJobs)
	s, err := b.JetStream().Stream(t.Context(), bus.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	var leader int
	if _, err := fmt.Sscanf(s.CachedInfo().Cluster.Leader, "node%d", &leader); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked := map[uint64]string{}
	var unsure, total atomic.Int64
	var wg sync.WaitGroup
	for w := range 30 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("%d-%d", w, i)
				seq, err := p.Publish(t.Context(), once(job(id), id))
				switch {
				case err == nil:
					total.Add(1)
					mu.Lock()
					acked[seq] = bus.JobSubject("normal", "postgres", "shop", id)
					mu.Unlock()
				case errors.Is(err, bus.ErrWrongSequence):
					t.Errorf("%s: %v", id, err)
				default:
					unsure.Add(1)
				}
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		for start, until := total.Load(), time.Now().Add(25*time.Second); total.Load() < start+n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("no progress for 25s")
			}
		}
	}
	more(300)
	c.Stop(leader)
	more(300)
	c.Restart(leader)
	more(300)
	cancel()
	wg.Wait()
	for seq, subject := range acked {
		m, err := b.LastMsg(t.Context(), bus.StreamJobs, subject)
		if err != nil || m.Sequence != seq {
			t.Fatalf("%s was acknowledged at %d and is %+v: %v", subject, seq, m, err)
		}
	}
	t.Logf("%d acknowledged, %d without an answer", len(acked), unsure.Load())
}
