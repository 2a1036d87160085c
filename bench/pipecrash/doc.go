// Package pipecrash kills the processes that run pipelines, again and again, and
// then holds what they have written against what they have read, row by row.
//
// Server, workers, PostgreSQL and the store of objects are real processes. A worker
// is armed to end itself with SIGKILL at one of the points of pkg/crashpoint, or is
// killed or frozen from outside at a moment that the seed chooses; in some scenarios
// the server dies, and the broker with it. Then it is started again, armed anew.
//
// What there has to be is told by the databases alone: a view over the source, and
// for streams a table that triggers keep. Nothing of Athena's is asked what is right.
package pipecrash
