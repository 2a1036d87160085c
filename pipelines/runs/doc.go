// Package runs keeps what is known of pipelines and their runs, in the bucket
// ath_pipelines: definitions and their generations, runs, the tasks of a run, how
// far streams are, and the rows that could not go on.
//
// Who writes what: definitions are the API's. Of a run the API makes it, and says
// what is wanted of it; all else of it is written by the worker that leads it. A
// task is written by the leader, and by the worker that has its slot. Each write
// is compare-and-set, so that who was overtaken writes nothing.
package runs
