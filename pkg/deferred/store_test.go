package deferred

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/google/uuid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := NewStore(bustest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newJob(client string, labels map[string]string) *Job {
	now := time.Now().UTC()
	return &Job{
		ID: uuid.Must(uuid.NewV7()).String(), Client: client, Engine: athena.EnginePostgres, Lane: Normal, Query: "SELECT 1",
		Language: driver.SQL, Deadline: now.Add(time.Hour), Format: JSON, ResultTTL: athena.Duration(time.Hour),
		Labels: labels, Principal: auth.Local(), SubmittedAt: now,
	}
}

// submit accepts a job from any goroutine.
func submit(s *Store, j *Job) error {
	_, _, err := s.Submit(context.Background(), j)
	return err
}

func never(string) bool { return false }

// TestOneAdvancerWins has several advance one job from the same revision, again
// and again: each revision is left by one of them.
func TestOneAdvancerWins(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	rapid.Check(t, func(rt *rapid.T) {
		j := newJob("shop", nil)
		if err := submit(s, j); err != nil {
			rt.Fatal(err)
		}
		var st Status
		for round := range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			several := rapid.IntRange(2, 8).Draw(rt, "advancers")
			steps := rapid.IntRange(1, 2).Draw(rt, "steps")
			var wins, moved atomic.Int64
			var wg sync.WaitGroup
			won := make([]Status, several)
			for n := range several {
				wg.Go(func() {
					next := []Status{st.Begin(fmt.Sprint(round, n), false, time.Now())}
					if steps == 2 {
						next = append(next, next[0].Spool(time.Now()))
					}
					got, err := s.Advance(context.Background(), j, st, next...)
					switch {
					case err == nil:
						won[wins.Add(1)-1] = got
					case errors.Is(err, ErrMoved):
						moved.Add(1)
					default:
						rt.Errorf("Advance: %v", err)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 || int(moved.Load()) != several-1 {
				rt.Fatalf("of %d advancers %d won and %d were told that it moved", several, wins.Load(), moved.Load())
			}
			now, err := s.Status(context.Background(), "shop", j.ID)
			if err != nil || now.Rev != won[0].Rev || now.Attempt().Worker != won[0].Attempt().Worker {
				rt.Fatalf("stored is revision %d by %s; %d by %s won: %v", now.Rev, now.Attempt().Worker, won[0].Rev, won[0].Attempt().Worker, err)
			}
			st = now
		}
	})
}

// TestAdvanceRefusesWhatCannotFollow holds law 2 where it is enforced.
func TestAdvanceRefusesWhatCannotFollow(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	j := newJob("shop", nil)
	if err := submit(s, j); err != nil {
		t.Fatal(err)
	}
	st, err := s.Advance(t.Context(), j, Status{}, Status{}.Begin("w", false, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	end, err := s.Advance(t.Context(), j, st, st.Succeed(&Result{}, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range States() {
		to := end
		to.State = state
		_, err := s.Advance(t.Context(), j, end, to)
		if state == Queued {
			continue // a requeue
		}
		if err == nil {
			t.Errorf("%s followed %s", state, end.State)
		}
		end, err = s.Status(t.Context(), "shop", j.ID)
		if err != nil {
			t.Fatal(err)
		}
		if end.State == Queued {
			return
		}
	}
}

// TestAListHasNoGapsAndNoRepeats pages through the jobs while others are
// submitted and some are forgotten.
func TestAListHasNoGapsAndNoRepeats(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	clients := 0
	rapid.Check(t, func(rt *rapid.T) {
		var known []string // in the order of submission
		clients++
		client := fmt.Sprint("c", clients)
		for range rapid.IntRange(0, 12).Draw(rt, "before") {
			j := newJob(client, nil)
			if err := submit(s, j); err != nil {
				rt.Fatal(err)
			}
			known = append(known, j.ID)
		}
		if len(known) > 0 && rapid.Bool().Draw(rt, "forget one") {
			n := rapid.IntRange(0, len(known)-1).Draw(rt, "which")
			j, _, err := s.Load(context.Background(), client, known[n])
			if err == nil {
				err = s.Forget(context.Background(), j, Cancelled)
			}
			if err != nil {
				rt.Fatal(err)
			}
			known = slices.Delete(known, n, n+1)
		}
		limit := rapid.IntRange(1, 20).Draw(rt, "page")
		var during []string
		var wg sync.WaitGroup
		extra := rapid.IntRange(0, 5).Draw(rt, "meanwhile")
		wg.Go(func() {
			for range extra {
				j := newJob(client, nil)
				if err := submit(s, j); err != nil {
					rt.Error(err)
				}
				during = append(during, j.ID)
			}
		})
		var seen []string
		for before := uint64(0); ; {
			page, next, err := s.List(context.Background(), Filter{Client: client}, before, limit, never)
			if err != nil {
				rt.Fatal(err)
			}
			if len(page) > limit {
				rt.Fatalf("a page of %d, asked for %d", len(page), limit)
			}
			for _, e := range page {
				seen = append(seen, e.Job.ID)
			}
			if next == 0 {
				break
			}
			before = next
		}
		wg.Wait()
		slices.Reverse(seen) // oldest first
		if len(seen) < len(known) || !slices.Equal(seen[:len(known)], known) {
			rt.Fatalf("listed %d jobs, %d were there before: %v, want %v", len(seen), len(known), seen, known)
		}
		if tail := seen[len(known):]; len(tail) > len(during) || !slices.Equal(tail, during[:len(tail)]) {
			rt.Fatalf("of those submitted meanwhile %v came, of %v", tail, during)
		}
	})
}

func TestAListIsFiltered(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ids := map[string]string{}
	for name, j := range map[string]*Job{
		"a": newJob("shop", map[string]string{"team": "x"}), "b": newJob("shop", map[string]string{"team": "y", "run": "1"}),
		"c": newJob("lake", map[string]string{"team": "x"}), "d": newJob("iced", nil),
	} {
		if err := submit(s, j); err != nil {
			t.Fatal(err)
		}
		ids[j.ID] = name
		if name == "b" {
			if _, err := s.Cancel(t.Context(), j, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		f    Filter
		want string
	}{
		"everything":                      {Filter{}, "abcd"},
		"one client":                      {Filter{Client: "shop"}, "ab"},
		"the clients that one may see":    {Filter{Clients: []string{"lake", "iced"}}, "cd"},
		"one client that one may not see": {Filter{Client: "shop", Clients: []string{"lake"}}, ""},
		"a label":                         {Filter{Labels: map[string]string{"team": "x"}}, "ac"},
		"two labels":                      {Filter{Labels: map[string]string{"team": "y", "run": "1"}}, "b"},
		"a label that none has":           {Filter{Labels: map[string]string{"team": "z"}}, ""},
		"a state of an event":             {Filter{State: Cancelled}, "b"},
		"a state that is derived":         {Filter{State: Held}, "d"},
		"a state and a label":             {Filter{State: Queued, Labels: map[string]string{"team": "x"}}, "ac"},
		"a client that is not there":      {Filter{Client: "nobody"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			page, _, err := s.List(t.Context(), tt.f, 0, 100, func(c string) bool { return c == "iced" })
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for _, e := range page {
				got = append(got, ids[e.Job.ID]...)
			}
			slices.Sort(got)
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestEventsResume holds that a follower that comes back misses and repeats
// nothing, and that Await answers as soon as it can and when its time is up.
func TestEventsResume(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	j := newJob("shop", nil)
	if err := submit(s, j); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const changes = 30
	go func() {
		st := Status{}
		for n := range changes {
			next := st.Begin("w", false, time.Now())
			if n == changes-1 {
				next = st.Succeed(&Result{}, time.Now())
			}
			var err error
			if st, err = s.Advance(ctx, j, st, next); err != nil {
				t.Errorf("advance: %v", err)
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	var revs []uint64
	for after, done := uint64(0), false; !done; { // left after every third
		n := 0
		for st, err := range s.Events(ctx, j, after) {
			if err != nil {
				t.Fatal(err)
			}
			revs, after, done = append(revs, st.Rev), st.Rev, st.State.Terminal()
			if n++; n == 3 || done {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("after %d events: %v", len(revs), ctx.Err())
		}
	}
	if len(revs) != changes || !slices.IsSorted(revs) || len(slices.Compact(slices.Clone(revs))) != changes {
		t.Errorf("%d events of %d: %v", len(revs), changes, revs)
	}

	waiting := newJob("shop", nil)
	if err := submit(s, waiting); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if st, err := s.Await(short, waiting, Status{}, func(s Status) bool { return s.State.Terminal() }); err != nil || st.State != "" {
		t.Errorf("a wait whose time is up: %q, %v", st.State, err)
	}
}
