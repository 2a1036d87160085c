// Package scylla is the driver of ScyllaDB clusters, over gocql and scylla-cdc-go.
//
// It was never run against a ScyllaDB: none can be had where this project is
// built. What it was run against is named in docs/scylla.md. Plain CQL is held
// against a real Apache Cassandra; the change log against a double that lays it
// out as ScyllaDB documents it.
//
// A Backend is a session with one cluster. Statements are prepared where CQL lets
// them be, parameters fitted to the types that the server tells, and rows rendered
// from their wire form page by page. The package knows nothing of clients,
// capabilities or envelopes.
//
// Invariants:
//
//  1. A value has one JSON form, made in appendValue alone, in queries, snapshots
//     and streams.
//  2. A write is sent once. What failed is made again here only if it was not sent,
//     or if it reads; everything else is for those to decide who know the time at
//     which it counts as made.
//  3. A failure is told as without effect only if the statement read, was not sent,
//     or was refused before it began; where a write may have been made, that is
//     said.
//  4. A connection with a datacenter asks no node of another one.
//  5. No error text leaves through Classify that names a host, the user or the
//     password.
package scylla
