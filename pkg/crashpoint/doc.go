// Package crashpoint names the moments at which the crash suite kills a process.
//
// In an ordinary build Here does nothing and is compiled away. A build with the
// tag "crashpoints" reads ATHENA_CRASHPOINT, written "name:n", and ends the
// process with SIGKILL when the point of that name is passed for the n-th time.
package crashpoint

// The points, in the order in which a job passes them.
const (
	SubmitReceived = "submit.received" // the API has checked a job and not yet stored it
	SubmitStored   = "submit.stored"   // the job is stored and not yet answered
	JobTaken       = "job.taken"       // a worker has a message and has decided nothing
	JobBegun       = "job.begun"       // the attempt is stored as running
	JobExecuted    = "job.executed"    // the statement has run; nothing is committed
	JobStaged      = "job.staged"      // token and result are stored; COMMIT is not sent
	JobCommitted   = "job.committed"   // COMMIT is answered; the end is not stored
	JobSettled     = "job.settled"     // the end is stored; the message is not acknowledged
	JobRetried     = "job.retried"     // retry_wait is stored; the wake-up is not
)

// The points, in the order in which a capture and its changes pass them.
const (
	CDCStarted       = "cdc.started"        // the slot is made; where it begins is not stored
	CDCSnapshotChunk = "cdc.snapshot.chunk" // a part of a snapshot is stored; the next is not begun
	CDCSpilled       = "cdc.spilled"        // a part of an open transaction went to disk
	CDCRead          = "cdc.read"           // the first change of a transaction was read
	CDCPacked        = "cdc.packed"         // a group of messages is complete; nothing is sent
	CDCPublished     = "cdc.published"      // it is sent; there is no answer yet
	CDCStored        = "cdc.stored"         // it is stored; nothing is confirmed to the source
	CDCConfirmed     = "cdc.confirmed"      // it is confirmed
)

// CDCPoints lists the points of captures.
func CDCPoints() []string {
	return []string{CDCStarted, CDCSnapshotChunk, CDCSpilled, CDCRead, CDCPacked, CDCPublished, CDCStored, CDCConfirmed}
}

// Points lists the points of jobs.
func Points() []string {
	return []string{SubmitReceived, SubmitStored, JobTaken, JobBegun, JobExecuted, JobStaged, JobCommitted, JobSettled, JobRetried}
}
