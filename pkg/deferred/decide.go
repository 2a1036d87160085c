package deferred

import "time"

// A Step is what a worker does with a message that it was given.
type Step string

// The steps.
const (
	// Drop: there is nothing left to do; acknowledge.
	Drop Step = "drop"
	// Start a new attempt. If one was under way, its worker is lost and it
	// provably had no effect.
	Start Step = "start"
	// Ask the backend how the transaction of Status.Token ended.
	Ask Step = "ask"
	// Later: arrange for a wake-up at Decision.At and acknowledge.
	Later Step = "later"
	// End the job in the state Decision.State without an attempt.
	End Step = "end"
)

// A Decision is a step and what goes with it.
type Decision struct {
	Step  Step
	State State     // for End
	At    time.Time // for Later
}

// MaxLost is how many attempts may lose their worker before the job is taken to
// be what kills them.
const MaxLost = 5

// Decide says what a worker does with a job that was just delivered to it and
// that it is not running already. A delivery while an attempt is under way
// means that its worker is lost. Requeue is the revision that a requeue message
// names, 0 for any other message.
func Decide(j *Job, s Status, requeue uint64, now time.Time) Decision {
	late := now.After(j.Due(s))
	switch {
	case s.State.Terminal():
		// A requeue is stored before the event that shows it (law 1), so a
		// worker may meet it first.
		if requeue != 0 && requeue == s.Rev {
			return Decision{Step: Start}
		}
		return Decision{Step: Drop}

	case s.State == RetryWait && now.Before(s.NextAt):
		return Decision{Step: Later, At: s.NextAt}

	case s.Token != "":
		return Decision{Step: Ask}

	case s.State.Active() && s.Unsafe:
		return Decision{Step: End, State: Indeterminate}

	case s.State == Cancelling:
		return Decision{Step: End, State: Cancelled}

	case s.State.Active() && s.lost() >= MaxLost-1:
		return Decision{Step: End, State: Failed}

	case late:
		return Decision{Step: End, State: Expired}

	case s.State == "" && now.Before(j.NotBefore):
		return Decision{Step: Later, At: j.NotBefore}
	}
	return Decision{Step: Start}
}

// AfterOutcome says what follows once the backend has told how the transaction
// of s.Token ended.
func AfterOutcome(j *Job, s Status, committed, aborted bool) Decision {
	switch {
	case committed:
		return Decision{Step: End, State: Succeeded}
	case s.State == Cancelling && aborted:
		return Decision{Step: End, State: Cancelled}
	case s.State == Cancelling: // nobody wants it run again
		return Decision{Step: End, State: Indeterminate}
	case aborted, j.Idempotent:
		return Decision{Step: Start}
	}
	return Decision{Step: End, State: Indeterminate}
}

// lost counts the attempts whose worker was lost.
func (s Status) lost() (n int) {
	for _, a := range s.Attempts {
		if a.Outcome == OutcomeLost {
			n++
		}
	}
	return n
}
