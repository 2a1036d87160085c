// Package bus owns the JetStream topology: the names of streams, buckets and
// subjects, their settings, and the few moves that Athena makes on them: the
// embedded server, group commit, leases and direct reads. It hides nothing of
// NATS; callers get the *nats.Conn and the jetstream.JetStream.
//
// It knows what a subject is called, and nothing of what a message says.
//
// Laws that the code cites:
//
//  1. What Publish acknowledged is stored, and synced if the server syncs.
//  2. No two messages whose expectations touch the same subject share an atomic
//     batch: the server checks a batch against the stream as it was before it.
//  3. A publish without an answer is reported as such and never sent twice.
//  4. Of all leases of one key the one with the highest token is the newest, and
//     a holder knows that it lost its lease before another can have it.
package bus
