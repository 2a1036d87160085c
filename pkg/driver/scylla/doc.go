// Package scylla is the driver of ScyllaDB clusters, over gocql and scylla-cdc-go.
//
// It was never run against a ScyllaDB: none can be had where this project is
// built. What it was run against is named in docs/scylla.md. Plain CQL is held
// against a real Apache Cassandra; the change log against a double that lays it
// out as ScyllaDB documents it.
package scylla
