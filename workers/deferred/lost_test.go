package deferred_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/deferred"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

// takeover is how soon a lost worker's job must run elsewhere.
const takeover = 15 * time.Second

// TestALostWorkersJobsRunElsewhere kills a worker process, as kill -9 does, in
// the middle of a read, of a write, and of a statement outside of transactions.
func TestALostWorkersJobsRunElsewhere(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int); CREATE TABLE big (n int)`)
	release := d.hold("INSERT INTO big VALUES (1)") // makes CREATE INDEX CONCURRENTLY wait
	c := d.child("lost", false)
	jobs := map[string]*deferred.Job{
		"read":    d.submit("shop", "SELECT 7 AS n FROM pg_sleep(2)", nil),
		"write":   d.submit("shop", "INSERT INTO effects SELECT 1 FROM pg_sleep(2) RETURNING n", nil),
		"outside": d.submit("shop", "CREATE INDEX CONCURRENTLY big_n ON big (n)", nil),
	}
	for _, j := range jobs {
		d.reaches(j, 10*time.Second, deferred.Running)
	}
	d.until(5*time.Second, "all three run", func() bool { return d.running("pg_sleep(2)")+d.running("CONCURRENTLY") == 3 })
	c.kill()
	killed := time.Now()
	d.work("other", nil)

	var slowest time.Duration
	for name, want := range map[string]string{"read": `[{"n":7}]`, "write": `[{"n":1}]`} {
		st := d.endsIn(jobs[name], 40*time.Second, deferred.Succeeded)
		if len(st.Attempts) != 2 || st.Attempts[0].Outcome != deferred.OutcomeLost || st.Attempts[1].Worker != "other" || string(st.Result.Inline) != want {
			t.Errorf("the %s: %s", name, show(st))
			continue
		}
		slowest = max(slowest, st.Attempts[1].Started.Sub(killed))
	}
	t.Logf("running elsewhere %s after the kill", slowest)
	if slowest > takeover {
		t.Errorf("running elsewhere after %s, want at most %s", slowest, takeover)
	}
	if n := d.count("SELECT count(*) FROM effects"); n != 1 {
		t.Errorf("%d effects", n)
	}
	if st := d.endsIn(jobs["outside"], 20*time.Second, deferred.Indeterminate); len(st.Attempts) != 1 || st.Error == nil {
		t.Errorf("outside: %s", show(st))
	}
	release()
	d.settled("shop")
}

// TestAZombieCommitsNothingBehindItsSuccessorsBack stops a worker process
// between the storing of its token and COMMIT, for so long that another takes
// its job over, and lets it go on.
func TestAZombieCommitsNothingBehindItsSuccessorsBack(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	c := d.child("zombie", true)
	j := d.submit("shop", "INSERT INTO effects VALUES (1) RETURNING n", nil)
	c.says("staged")
	stopped := time.Now()
	if n := d.count("SELECT count(*) FROM effects"); n != 0 {
		t.Fatal("it was committed already")
	}
	d.work("other", nil)
	st := d.await(j, 30*time.Second, "taken over", func(s deferred.Status) bool {
		return s.State.Terminal() || len(s.Attempts) > 1
	})
	t.Logf("taken over %s after the stop", st.At.Sub(stopped))
	c.signal(syscall.SIGCONT)
	st = d.ends(j, deferred.Succeeded)
	if len(st.Attempts) != 2 || string(st.Result.Inline) != `[{"n":1}]` {
		t.Errorf("the end is %s", show(st))
	}
	// The zombie is fully awake once it has run another job.
	for range 4 {
		d.ends(d.submit("shop", "SELECT 1", nil), deferred.Succeeded)
	}
	time.Sleep(500 * time.Millisecond)
	if n := d.count("SELECT count(*) FROM effects"); n != 1 {
		t.Errorf("%d effects", n)
	}
	if again, _ := d.status(j); again.Rev != st.Rev {
		t.Errorf("after the end came %s", show(again))
	}
	d.settled("shop")
}

// take takes the next message of a lane, as a worker would that is then lost.
func (d *deployment) take(lane deferred.Lane, client string) jetstream.Msg {
	d.t.Helper()
	lanes, err := d.store.Lanes(d.t.Context(), client, 20, 9*time.Second)
	if err != nil {
		d.t.Fatal(err)
	}
	for i, l := range deferred.Lanes() {
		if l != lane {
			continue
		}
		batch, err := lanes[i].Fetch(1, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			d.t.Fatal(err)
		}
		for m := range batch.Messages() {
			return m
		}
	}
	d.t.Fatal("the lane is empty")
	return nil
}

func (d *deployment) advance(j *deferred.Job, from deferred.Status, to deferred.Status) deferred.Status {
	d.t.Helper()
	st, err := d.store.Advance(d.t.Context(), j, from, to)
	if err != nil {
		d.t.Fatal(err)
	}
	return st
}

// TestAJobThatKillsItsWorkersBecomesADeadLetter has MaxLost workers begin it and
// never be heard of again.
func TestAJobThatKillsItsWorkersBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	j := d.submit("shop", "SELECT 1", nil)
	msg := d.take(deferred.Normal, "shop")
	var st deferred.Status
	for n := range deferred.MaxLost {
		st = d.advance(j, st, st.Begin(fmt.Sprint("lost", n), false, time.Now()))
	}
	if err := msg.Nak(); err != nil {
		t.Fatal(err)
	}
	d.work("w", nil)
	st = d.ends(j, deferred.Failed)
	lost := 0
	for _, a := range st.Attempts[:len(st.Attempts)-1] {
		lost += btoi(a.Outcome == deferred.OutcomeLost)
	}
	if lost != deferred.MaxLost-1 || st.Error == nil || st.Error.Code != athena.CodeInternal {
		t.Errorf("%d lost: %s", lost, show(st))
	}
	raw, err := d.bus.LastMsg(t.Context(), bus.StreamDead, bus.Dead("job", "shop"))
	if err != nil {
		t.Fatal(err)
	}
	var letter struct {
		Kind   string
		Job    deferred.Job
		Status deferred.Status
	}
	if err := json.Unmarshal(raw.Data, &letter); err != nil || letter.Kind != "job" || letter.Job.ID != j.ID || letter.Status.State != deferred.Failed {
		t.Errorf("the dead letter is %s, %v", raw.Data, err)
	}
	d.settled("shop")
}

// TestTheFateOfALostAttempt sets up what a lost worker leaves behind at each
// step, and holds what the next one makes of it.
func TestTheFateOfALostAttempt(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = 20 })
	now := time.Now()
	tests := map[string]struct {
		leave    func(deferred.Status) []deferred.Status
		cancel   bool
		want     deferred.State
		attempts int
	}{
		"taken and not begun":      {func(s deferred.Status) []deferred.Status { return nil }, false, deferred.Succeeded, 1},
		"begun":                    {func(s deferred.Status) []deferred.Status { return []deferred.Status{s.Begin("lost", false, now)} }, false, deferred.Succeeded, 2},
		"begun outside":            {func(s deferred.Status) []deferred.Status { return []deferred.Status{s.Begin("lost", true, now)} }, false, deferred.Indeterminate, 1},
		"begun and then cancelled": {func(s deferred.Status) []deferred.Status { return []deferred.Status{s.Begin("lost", false, now)} }, true, deferred.Cancelled, 1},
		"an outcome nobody knows": {func(s deferred.Status) []deferred.Status {
			b := s.Begin("lost", false, now)
			return []deferred.Status{b, b.Stage("pg1:1:00000001:3", &deferred.Result{}, now)}
		}, false, deferred.Indeterminate, 1},
		"a token that is no token": {func(s deferred.Status) []deferred.Status {
			b := s.Begin("lost", false, now)
			return []deferred.Status{b, b.Stage("nonsense", &deferred.Result{}, now)}
		}, false, deferred.Indeterminate, 1},
		"spooling a read": {func(s deferred.Status) []deferred.Status {
			b := s.Begin("lost", false, now)
			return []deferred.Status{b, b.Spool(now)}
		}, false, deferred.Succeeded, 2},
		"waiting for another try": {func(s deferred.Status) []deferred.Status {
			b := s.Begin("lost", false, now)
			return []deferred.Status{b, b.Retry(context.DeadlineExceeded, now, now)}
		}, false, deferred.Succeeded, 2},
		"outside and then cancelled": {func(s deferred.Status) []deferred.Status { return []deferred.Status{s.Begin("lost", true, now)} }, true, deferred.Indeterminate, 1},
	}
	jobs := map[string]*deferred.Job{}
	var msgs []jetstream.Msg
	for name, tt := range tests {
		j := d.submit("shop", "INSERT INTO effects SELECT 1 WHERE '"+name+"' <> ''", nil)
		jobs[name] = j
		msgs = append(msgs, d.take(deferred.Normal, "shop"))
		var st deferred.Status
		for _, next := range tt.leave(st) {
			st = d.advance(j, st, next)
		}
		if tt.cancel {
			if _, err := d.store.Cancel(t.Context(), j, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, m := range msgs {
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
	d.work("w", nil)
	effects := 0
	for name, tt := range tests {
		st := d.ends(jobs[name], tt.want)
		if len(st.Attempts) != tt.attempts {
			t.Errorf("%s: %d attempts, want %d: %s", name, len(st.Attempts), tt.attempts, show(st))
		}
		effects += btoi(tt.want == deferred.Succeeded)
	}
	if n := d.count("SELECT count(*) FROM effects"); n != effects {
		t.Errorf("%d effects, want %d", n, effects)
	}
}

// TestARequeueRunsAgain requeues a job, by several at once, and with nothing but
// the wake-up stored.
func TestARequeueRunsAgain(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = 16 })
	d.work("a", nil)
	d.work("b", nil)
	j := d.submit("shop", "INSERT INTO effects SELECT 1 FROM pg_sleep(0.7)", nil)
	st := d.ends(j, deferred.Succeeded)

	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, err := d.store.Requeue(context.Background(), j, st, time.Now()); err != nil {
				t.Errorf("requeue: %v", err)
			}
		})
	}
	wg.Wait()
	began := time.Now()
	again := d.await(j, 20*time.Second, "ended again", func(s deferred.Status) bool { return s.State.Terminal() && s.Rev > st.Rev })
	t.Logf("ended again after %s", time.Since(began))
	if again.State != deferred.Succeeded || again.Requeues != 1 || len(again.Attempts) != 2 || again.Attempts[0].Outcome != string(deferred.Succeeded) || again.Attempts[1].Outcome != string(deferred.Succeeded) {
		t.Errorf("requeued by six at once: %s", show(again))
	}
	if n := d.count("SELECT count(*) FROM effects"); n != 2 {
		t.Errorf("%d effects", n)
	}
	if _, err := d.store.Requeue(t.Context(), j, deferred.Status{State: deferred.Running}, time.Now()); athena.CodeOf(err) != athena.CodeConflict {
		t.Errorf("requeue of a running job: %v", err)
	}

	// The API was lost between the wake-up and the event.
	msg := natsMsg(bus.JobWake(string(j.Lane), string(j.Engine), j.Client, j.ID), j.ID)
	msg.Header.Set(deferred.HeaderRequeue, fmt.Sprint(again.Rev))
	if _, err := d.bus.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	third := d.await(j, 20*time.Second, "ended a third time", func(s deferred.Status) bool { return s.State.Terminal() && s.Rev > again.Rev })
	if third.State != deferred.Succeeded || third.Requeues != 2 || len(third.Attempts) != 3 {
		t.Errorf("%s", show(third))
	}
	d.settled("shop")
}

func TestAForgottenJobLeavesNothing(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.work("w", func(c *worker.Config) { c.Sizes = deferred.ResultSizes{Inline: 100, Segment: 4 << 10, Chunk: 1 << 10} })
	j := d.submit("shop", "SELECT g, md5(g::text) FROM generate_series(1, 1000) g", func(j *deferred.Job) {
		j.NotBefore = time.Now().Add(500 * time.Millisecond)
		j.Webhook = &deferred.Webhook{URL: "https://example.org/hook"}
	})
	d.reaches(j, 10*time.Second, deferred.Running)
	wantCode(t, d.store.Forget(t.Context(), j, deferred.Running), athena.CodeConflict)
	st := d.ends(j, deferred.Succeeded)
	if len(st.Result.Segments) < 2 {
		t.Fatalf("%d segments", len(st.Result.Segments))
	}
	d.settled("shop")
	if err := d.store.Forget(t.Context(), j, st.State); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{bus.StreamJobs, bus.StreamJobEvents, bus.StreamResults, bus.StreamDead} {
		if left := d.messages(stream, j.ID); len(left) != 0 {
			t.Errorf("%s still holds %s", stream, strings.Join(left, ", "))
		}
	}
	_, _, err := d.store.Load(t.Context(), j.Client, j.ID)
	wantCode(t, err, athena.CodeNotFound)
}

// TestStrayWakeUpsDisturbNobody delivers wake-ups to one worker while another
// runs the job.
func TestStrayWakeUpsDisturbNobody(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.work("a", func(c *worker.Config) { c.Concurrency = 1 }) // it has no room for the wake-ups
	j := d.submit("shop", "INSERT INTO effects SELECT 1 FROM pg_sleep(3)", nil)
	d.reaches(j, 5*time.Second, deferred.Running)
	d.work("b", nil)
	for range 8 {
		if err := d.store.Wake(t.Context(), j, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if st := d.ends(j, deferred.Succeeded); len(st.Attempts) != 1 {
		t.Errorf("%s", show(st))
	}
	if n := d.count("SELECT count(*) FROM effects"); n != 1 {
		t.Errorf("%d effects", n)
	}
	d.settled("shop")
}
