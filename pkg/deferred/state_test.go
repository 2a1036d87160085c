package deferred

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// The model of one job: what has happened to its effect, as only the backend
// knows, beside the status that the laws are to be true to.
type jobModel struct {
	job     Job
	status  Status
	now     time.Time
	rev     uint64
	tracked bool // the engine can tell outcomes
	effects int  // how often the write was applied
	open    bool // a transaction is open, its token stored
	asked   bool // somebody asked for the cancellation
	runs    int
}

func (m *jobModel) step(t *rapid.T, to Status) {
	if !CanFollow(m.status.State, to.State) {
		t.Fatalf("%q cannot follow %q", to.State, m.status.State)
	}
	m.rev++
	to.Rev = m.rev
	m.status = to
}

// TestNoWriteIsAppliedTwice drives a job through lost workers, cancellations,
// retries and lost answers in any order, and holds that its write is applied at
// most once in silence, that success means that it was applied, and that every
// other end is true.
func TestNoWriteIsAppliedTwice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &jobModel{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), tracked: rapid.Bool().Draw(t, "tracked")}
		m.job = Job{ID: "j", SubmittedAt: m.now, Deadline: m.now.Add(time.Hour)}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			m.now = m.now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "seconds")) * time.Second)
			if rapid.IntRange(0, 9).Draw(t, "cancel?") == 0 && !m.status.State.Terminal() && m.status.State != Cancelling {
				m.asked = true
				m.step(t, m.status.Cancel(m.now))
				continue
			}
			m.deliver(t)
			m.check(t)
		}
	})
}

// deliver hands the job to a worker that may be lost at any point.
func (m *jobModel) deliver(t *rapid.T) {
	d := Decide(&m.job, m.status, 0, m.now)
	if d.Step == Ask {
		committed := m.effects > 0
		known := rapid.IntRange(0, 4).Draw(t, "known") > 0
		if !known && rapid.Bool().Draw(t, "unreachable") {
			if m.status.State != Cancelling {
				m.step(t, m.status.Touch("w", m.now).Retry(athena.Errorf(athena.CodeBackendUnavailable, "gone"), m.now.Add(time.Second), m.now))
			}
			return
		}
		m.open = false // the backend has ended it before it answers
		d = AfterOutcome(&m.job, m.status, known && committed, known && !committed)
	}
	switch d.Step {
	case Drop, Later:
		return
	case End:
		if d.State == Succeeded {
			m.step(t, m.status.Succeed(nil, m.now))
		} else {
			m.step(t, m.status.Fail(d.State, nil, m.now))
		}
		return
	}
	m.attempt(t)
}

// attempt runs the write, and may be lost or fail after each step.
func (m *jobModel) attempt(t *rapid.T) {
	lost := func(at string) bool { return rapid.IntRange(0, 3).Draw(t, "lost at "+at) == 0 }
	m.runs++
	m.step(t, m.status.Begin("w", !m.tracked, m.now))
	if lost("begin") {
		return
	}
	if !m.tracked {
		m.effects++ // a statement outside a transaction has its effect at once
		if lost("sent") {
			return
		}
		m.step(t, m.status.Succeed(&Result{}, m.now))
		return
	}
	switch rapid.IntRange(0, 5).Draw(t, "fails") {
	case 0:
		m.step(t, m.status.Retry(athena.Errorf(athena.CodeConflict, "deadlock"), m.now.Add(time.Second), m.now))
		return
	case 1:
		m.step(t, m.status.Fail(Failed, athena.Errorf(athena.CodeQueryFailed, "no"), m.now))
		return
	}
	m.step(t, m.status.Stage("xid", &Result{}, m.now))
	m.open = true
	if lost("staged") {
		if rapid.Bool().Draw(t, "the commit got through") {
			m.effects++
		}
		return
	}
	m.effects++
	m.open = false
	if lost("committed") {
		return
	}
	m.step(t, m.status.Succeed(m.status.Result, m.now))
}

func (m *jobModel) check(t *rapid.T) {
	switch {
	case m.effects > 1:
		t.Fatalf("the write was applied %d times in %d runs", m.effects, m.runs)
	case m.status.State == Succeeded && m.effects != 1:
		t.Fatalf("succeeded with %d effects", m.effects)
	case (m.status.State == Failed || m.status.State == Expired || m.status.State == TimedOut) && m.effects != 0:
		t.Fatalf("%s with %d effects", m.status.State, m.effects)
	case m.status.State == Cancelled && (m.effects != 0 || !m.asked):
		t.Fatalf("cancelled with %d effects, asked: %v", m.effects, m.asked)
	}
}

// TestViewTellsWhatTheEventsDoNot holds the states that are derived.
func TestViewTellsWhatTheEventsDoNot(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	job := Job{SubmittedAt: now, Deadline: now.Add(time.Hour)}
	later := job
	later.NotBefore = now.Add(time.Minute)
	tests := map[string]struct {
		job    Job
		status Status
		frozen bool
		at     time.Duration
		want   State
	}{
		"no event yet is queued":                      {job, Status{}, false, 0, Queued},
		"not yet due is scheduled":                    {later, Status{}, false, 0, Scheduled},
		"due is queued":                               {later, Status{}, false, 2 * time.Minute, Queued},
		"a frozen client holds what waits":            {job, Status{}, true, 0, Held},
		"a frozen client holds a retry":               {job, Status{State: RetryWait}, true, 0, Held},
		"a frozen client does not hide what runs":     {job, Status{State: Running}, true, 0, Running},
		"past its deadline it has expired":            {job, Status{}, true, 2 * time.Hour, Expired},
		"an effect to be asked about does not expire": {job, Status{State: RetryWait, Token: "x"}, false, 2 * time.Hour, RetryWait},
		"a running job does not expire":               {job, Status{State: Running}, false, 2 * time.Hour, Running},
		"what has ended stays so":                     {job, Status{State: Succeeded}, true, 2 * time.Hour, Succeeded},
		"a requeue gives new time":                    {job, Status{State: Queued, Until: now.Add(3 * time.Hour)}, false, 2 * time.Hour, Queued},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := View(&tt.job, tt.status, tt.frozen, now.Add(tt.at)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestAJobThatKillsItsWorkersIsGivenUp holds the bound on lost attempts.
func TestAJobThatKillsItsWorkersIsGivenUp(t *testing.T) {
	t.Parallel()
	now := time.Now()
	job := &Job{SubmittedAt: now, Deadline: now.Add(time.Hour)}
	var s Status
	for n := range MaxLost {
		if d := Decide(job, s, 0, now); d.Step != Start {
			t.Fatalf("attempt %d: %v", n+1, d)
		}
		s = s.Begin("w", false, now)
	}
	if d := Decide(job, s, 0, now); d.Step != End || d.State != Failed {
		t.Errorf("after %d lost attempts: %v", MaxLost, d)
	}
}

// TestARequeueWakesOnce holds that a wake-up that names an older end is dropped.
func TestARequeueWakesOnce(t *testing.T) {
	t.Parallel()
	now := time.Now()
	job := &Job{SubmittedAt: now, Deadline: now.Add(time.Hour)}
	s := Status{State: Failed, Rev: 7}
	if d := Decide(job, s, 7, now); d.Step != Start {
		t.Errorf("the requeue of the current end: %v", d)
	}
	if d := Decide(job, s, 5, now); d.Step != Drop {
		t.Errorf("the requeue of an older end: %v", d)
	}
}
