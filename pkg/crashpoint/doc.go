// Package crashpoint names the moments at which the crash suite kills a process.
//
// In an ordinary build Here does nothing and is compiled away. A build with the
// tag "crashpoints" reads ATHENA_CRASHPOINT, written "name:n", and ends the
// process with SIGKILL when the point of that name is passed for the n-th time;
// written "name:n:freeze", it stops the process there, until SIGCONT lets it go on.
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

// The points, in the order in which the run of a pipeline passes them.
const (
	RunPrepared     = "run.prepared"     // target and checkpoints are made; there are no tasks yet
	RunTasks        = "run.tasks"        // a task is made; not all of them are
	TaskTaken       = "task.taken"       // a worker has a task and has read nothing
	TaskWritten     = "task.written"     // all its rows are written; nothing has taken effect
	TaskStaged      = "task.staged"      // its objects are staged; nothing is decided
	TaskDecided     = "task.decided"     // it is decided to publish them; nothing is published
	TaskCommitted   = "task.committed"   // it has taken effect; that it is done is not stored
	TaskDone        = "task.done"        // it is done
	RunFinishing    = "run.finishing"    // all tasks are done; nothing is swapped or listed
	RunFinished     = "run.finished"     // it is; the end of the run is not stored
	StreamRead      = "stream.read"      // changes were read; none is written
	StreamWritten   = "stream.written"   // they are written; nothing has taken effect
	StreamDecided   = "stream.decided"   // it is decided to publish their objects
	StreamCommitted = "stream.committed" // they have taken effect; the cursor is not stored
	StreamStored    = "stream.stored"    // the cursor is stored
)

// PipelinePoints lists the points of pipelines.
func PipelinePoints() []string {
	return []string{
		RunPrepared, RunTasks, TaskTaken, TaskWritten, TaskStaged, TaskDecided, TaskCommitted, TaskDone, RunFinishing, RunFinished,
		StreamRead, StreamWritten, StreamDecided, StreamCommitted, StreamStored,
	}
}

// CDCPoints lists the points of captures.
func CDCPoints() []string {
	return []string{CDCStarted, CDCSnapshotChunk, CDCSpilled, CDCRead, CDCPacked, CDCPublished, CDCStored, CDCConfirmed}
}

// Points lists the points of jobs.
func Points() []string {
	return []string{SubmitReceived, SubmitStored, JobTaken, JobBegun, JobExecuted, JobStaged, JobCommitted, JobSettled, JobRetried}
}
