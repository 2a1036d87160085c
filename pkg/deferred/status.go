package deferred

import (
	"slices"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// maxAttempts is how many attempts a snapshot keeps; the oldest go first.
const maxAttempts = 20

// Begin is s with a new attempt by worker under way. An attempt that was under
// way before is marked as lost. Token and result are dropped: Begin is for a
// job that provably has no effect to find.
func (s Status) Begin(worker string, unsafe bool, now time.Time) Status {
	n := 1
	if a := s.Attempt(); a != nil {
		n = a.N + 1
	}
	next := s.edit(now)
	next.lose(now)
	next.Attempts = append(next.Attempts, Attempt{N: n, Worker: worker, Started: now.UTC()})
	if extra := len(next.Attempts) - maxAttempts; extra > 0 {
		next.Attempts = next.Attempts[extra:]
	}
	next.State, next.Unsafe = Running, unsafe
	next.Error, next.Result, next.Token, next.NextAt, next.ResultLost = nil, nil, "", time.Time{}, false
	return next
}

// Stage is s with its complete result and the token of the transaction that is
// about to be committed (law 3).
func (s Status) Stage(token driver.Token, r *Result, now time.Time) Status {
	next := s.edit(now)
	next.State, next.Token, next.Result = Spooling, token, r
	return next
}

// Spool is s with the statement over and its result still to be stored.
func (s Status) Spool(now time.Time) Status {
	next := s.edit(now)
	next.State = Spooling
	return next
}

// Touch is s with an attempt by worker that is still to come to anything: for
// one that fails before a statement was sent.
func (s Status) Touch(worker string, now time.Time) Status {
	next := s.Begin(worker, false, now)
	next.State, next.Token, next.Result = s.State, s.Token, s.Result
	return next
}

// Grow is s with what there is of the result so far.
func (s Status) Grow(r *Result, now time.Time) Status {
	next := s.edit(now)
	next.Result = r
	return next
}

// Succeed is s with the job done. A nil r keeps the result that was staged.
func (s Status) Succeed(r *Result, now time.Time) Status {
	next := s.end(Succeeded, "", now)
	if r != nil {
		next.Result = r
	}
	next.Error, next.Token = nil, ""
	next.ResultLost = next.Result == nil
	return next
}

// Fail is s ended in a terminal state other than Succeeded.
func (s Status) Fail(state State, err error, now time.Time) Status {
	next := s.end(state, athena.CodeOf(err), now)
	next.Error, next.Result, next.Token = nil, nil, ""
	if err != nil {
		next.Error = NewFailure(err)
	}
	return next
}

// Retry is s waiting for another attempt. The token is kept: if there is one,
// the next attempt asks for its outcome first.
func (s Status) Retry(err error, at, now time.Time) Status {
	next := s.end(RetryWait, athena.CodeOf(err), now)
	next.NextAt = at.UTC()
	if err != nil {
		next.Error = NewFailure(err)
	}
	if next.Token == "" {
		next.Result = nil
	}
	return next
}

// Cancel is s with a cancellation asked for: at once if no attempt is under way
// and no effect may exist, else for the worker to carry out.
func (s Status) Cancel(now time.Time) Status {
	if s.State.Active() || s.Token != "" {
		next := s.edit(now)
		next.State = Cancelling
		return next
	}
	return s.Fail(Cancelled, nil, now)
}

// Requeue is s, which is terminal, waiting to run again until a new deadline.
func (s Status) Requeue(until, now time.Time) Status {
	next := s.edit(now)
	next.State, next.Requeues, next.Until = Queued, s.Requeues+1, until.UTC()
	next.Error, next.Result, next.ResultLost, next.Unsafe = nil, nil, false, false
	next.WriteTime = time.Time{} // somebody wants it made again
	return next
}

// Failures counts the attempts at the end of the list, before one that is under
// way, that ended in retry_wait with the given code: it is what backoff grows
// with.
func (s Status) Failures(code athena.Code) (n int) {
	past := s.Attempts
	if a := s.Attempt(); a != nil && a.Ended.IsZero() {
		past = past[:len(past)-1]
	}
	for _, a := range slices.Backward(past) {
		if a.Outcome != string(RetryWait) || a.Code != code {
			break
		}
		n++
	}
	return n
}

// edit returns a copy that shares nothing that changes with s.
func (s Status) edit(now time.Time) Status {
	s.At = now.UTC()
	s.Attempts = append([]Attempt(nil), s.Attempts...)
	return s
}

// end closes the attempt under way.
func (s Status) end(state State, code athena.Code, now time.Time) Status {
	next := s.edit(now)
	if a := next.Attempt(); a != nil && a.Ended.IsZero() {
		a.Ended, a.Outcome, a.Code = now.UTC(), string(state), code
	}
	next.State, next.NextAt, next.Unsafe = state, time.Time{}, false
	return next
}

// lose marks the attempt under way as lost with its worker.
func (s *Status) lose(now time.Time) {
	if a := s.Attempt(); a != nil && a.Ended.IsZero() {
		a.Ended, a.Outcome = now.UTC(), OutcomeLost
	}
}
