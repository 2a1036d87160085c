// Package changefeed is what is kept of change streams on the bus: which
// captures there are and how they fare, the streams that hold their changes,
// how these are read from any position, and the subscriptions to them.
//
// A stream's message holds one or more changes of one table as lines of JSON in
// the athena envelope, and the position of the last of them as a header. The
// package knows no engine, and who reads what through it is checked elsewhere.
//
// Laws that the code cites:
//
//  1. The stream is the checkpoint: what is in it was captured, what is behind
//     its last position was not. No other record is believed before it.
//  2. A cursor is the position of the last change that a reader has had. Reading
//     on from it gives every later change, once and in order, or an error.
package changefeed
