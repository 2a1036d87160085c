package runner

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
)

// slots takes free slots of a batch while there are tasks to do.
func (r *runner) slots(ctx context.Context) {
	var mu sync.Mutex
	mine := map[int]bool{}
	held := map[int]time.Time{} // by others, when that was last seen
	var work sync.WaitGroup
	defer work.Wait()
	for ctx.Err() == nil {
		run, ok := r.Store.Load(r.id)
		if ok && run.Made && run.Want == runs.WantRun && !run.State.Over() {
			for k := range run.Parallel {
				mu.Lock()
				have := mine[k]
				mu.Unlock()
				if have || time.Since(held[k]) < look || !r.wanted(k) || !r.room.TryAcquire(1) {
					continue
				}
				lease, err := r.Leases.TryAcquire(ctx, slotKey(r.id, k), r.ID, r.Lease)
				if err != nil {
					r.room.Release(1)
					held[k] = time.Now()
					if !errors.Is(err, bus.ErrHeld) && ctx.Err() == nil {
						r.Log.Warn("the lease of a slot cannot be had", "run", r.id, "error", err)
					}
					continue
				}
				mu.Lock()
				mine[k] = true
				mu.Unlock()
				work.Go(func() {
					defer r.room.Release(1)
					r.under(ctx, lease, func(ctx context.Context) { r.slot(ctx, k) })
					mu.Lock()
					delete(mine, k)
					mu.Unlock()
					r.poke()
				})
			}
		}
		r.await(ctx, look)
	}
}

func slotKey(run string, k int) string {
	return "run." + run + ".slot" + string(rune('0'+k/10)) + string(rune('0'+k%10))
}

// wanted reports whether slot k has something to do for whoever gets it.
func (r *runner) wanted(k int) bool {
	now := time.Now()
	for _, t := range r.Store.Tasks(r.id) {
		if claimable(&t, k, now) {
			return true
		}
	}
	return false
}

// claimable reports whether a task can be taken by who has slot k: it is queued
// and has not failed for good, or was lost with the slot's last owner.
func claimable(t *runs.Task, k int, now time.Time) bool {
	return t.State == runs.TaskQueued && !now.Before(t.NotBefore) && (t.Fault == nil || !t.Fault.Final) || t.State == runs.TaskRunning && t.Slot == k
}

// slot does one task after the other.
func (r *runner) slot(ctx context.Context, k int) {
	for ctx.Err() == nil {
		run, ok := r.Store.Load(r.id)
		if !ok || run.Want != runs.WantRun || run.State.Over() {
			return
		}
		t, ok := r.claim(ctx, k)
		if !ok {
			return
		}
		r.attempt(ctx, run, t)
	}
}

// claim takes a task; false if there is none.
func (r *runner) claim(ctx context.Context, k int) (runs.Task, bool) {
	now := time.Now()
	for _, lost := range []bool{true, false} { // what was lost comes first
		for _, t := range r.Store.Tasks(r.id) {
			if (t.State == runs.TaskRunning) != lost || !claimable(&t, k, now) {
				continue
			}
			t.State, t.Slot, t.Worker = runs.TaskRunning, k, r.ID
			t.Attempt++
			t.Fault, t.NotBefore = nil, time.Time{}
			claimed, err := r.Store.PutTask(ctx, t)
			switch {
			case err == nil:
				return claimed, true
			case athena.CodeOf(err) != athena.CodeConflict:
				if ctx.Err() == nil {
					r.Log.Warn("a task cannot be taken", "run", r.id, "task", t.N, "error", err)
				}
				return t, false
			}
		}
	}
	return runs.Task{}, false
}
