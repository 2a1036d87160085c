package deferred

import "slices"

// State is where a job stands.
type State string

// The states. Scheduled, Queued, Held and, before a first attempt, Expired
// need no event: View derives them.
const (
	Scheduled     State = "scheduled"
	Queued        State = "queued"
	Held          State = "held"
	Running       State = "running"
	Spooling      State = "spooling"
	RetryWait     State = "retry_wait"
	Cancelling    State = "cancelling"
	Succeeded     State = "succeeded"
	Failed        State = "failed"
	TimedOut      State = "timed_out"
	Cancelled     State = "cancelled"
	Expired       State = "expired"
	Indeterminate State = "indeterminate"
)

// States lists all states.
func States() []State {
	return []State{Scheduled, Queued, Held, Running, Spooling, RetryWait, Cancelling,
		Succeeded, Failed, TimedOut, Cancelled, Expired, Indeterminate}
}

// Terminal reports whether nothing more happens to the job unless somebody
// asks for it.
func (s State) Terminal() bool {
	switch s {
	case Succeeded, Failed, TimedOut, Cancelled, Expired, Indeterminate:
		return true
	}
	return false
}

// Waiting reports whether the job waits for an attempt to start.
func (s State) Waiting() bool {
	switch s {
	case Scheduled, Queued, Held, RetryWait:
		return true
	}
	return false
}

// Active reports whether an attempt is under way.
func (s State) Active() bool { return s == Running || s == Spooling || s == Cancelling }

// follows says which states an event may write after which. The empty state is
// a job of which no event has been written. Running follows Running and
// Spooling where a worker was lost; Queued follows a terminal state on requeue.
var follows = map[State][]State{
	"":         {Running, Cancelled, Expired, Failed, RetryWait},
	Queued:     {Running, Cancelled, Expired, Failed, RetryWait},
	RetryWait:  {Running, RetryWait, Cancelling, Cancelled, Expired, Failed, Succeeded, Indeterminate},
	Running:    {Running, Spooling, RetryWait, Cancelling, Succeeded, Failed, TimedOut, Cancelled, Expired, Indeterminate},
	Spooling:   {Running, Spooling, RetryWait, Cancelling, Succeeded, Failed, TimedOut, Cancelled, Expired, Indeterminate},
	Cancelling: {Cancelling, Succeeded, Failed, TimedOut, Cancelled, Indeterminate},
	Succeeded:  {Queued}, Failed: {Queued}, TimedOut: {Queued},
	Cancelled: {Queued}, Expired: {Queued}, Indeterminate: {Queued},
}

// CanFollow reports whether an event may take a job from one state to another.
func CanFollow(from, to State) bool { return slices.Contains(follows[from], to) }
