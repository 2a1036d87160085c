// Package runner is the worker that runs pipelines.
//
// Each run has a leader, which is the worker with the run's lease: it looks at
// source and sink, makes the tasks of a batch, tells how far they are, and makes
// the whole take effect; or it follows a stream. The tasks of a batch are done by
// any worker that can reach both clients. A run has as many slots as tasks may run
// at once; a slot is a lease, and who has it takes one task after the other. A
// task that is marked as running in a slot which somebody else gets hold of was
// lost with its worker, and is done again.
//
// The laws that are kept here are those of pipelines/stage. The package knows no
// engine: it meets source and sink on the road (pkg/dispatch).
package runner
