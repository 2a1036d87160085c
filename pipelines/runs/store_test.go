package runs_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

// A leader that was frozen while it made tasks may go on when another one has made
// them: what it makes then is not the run's.
func TestTheTasksOfARunAreOfOneSet(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, err := runs.NewStore(ctx, bustest.Start(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	put := func(set string, n int) {
		t.Helper()
		if _, err := s.PutTask(ctx, runs.Task{Run: "run", Set: set, N: n, State: runs.TaskQueued}); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Put(ctx, runs.Run{ID: "run", State: runs.Starting})
	if err != nil {
		t.Fatal(err)
	}
	put("late", 0)
	if got := s.Tasks("run"); got != nil {
		t.Errorf("a run whose tasks are not all made has %d", len(got))
	}
	put("won", 0)
	put("won", 1)
	r.Made, r.Set = true, "won"
	if _, err := s.Put(ctx, r); err != nil {
		t.Fatal(err)
	}
	put("late", 1)
	put("late", 2)
	got := s.Tasks("run")
	if len(got) != 2 || got[0].Set != "won" || got[1].N != 1 || got[1].Set != "won" {
		t.Errorf("the run has %+v", got)
	}
	got[1].State = runs.TaskDone
	if _, err := s.PutTask(ctx, got[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.ForgetTasks(ctx, "run"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"won", "late"} {
		r, _ := s.Load("run")
		r.Set = set
		if _, err := s.Put(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if got := s.Tasks("run"); len(got) != 0 {
			t.Errorf("%d tasks of set %s are left", len(got), set)
		}
	}
}
