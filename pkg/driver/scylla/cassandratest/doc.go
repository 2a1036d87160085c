// Package cassandratest gives tests a real Apache Cassandra.
//
// It is for what Cassandra and ScyllaDB have in common: CQL, its types, paging,
// conditional writes, batches, errors, schemas, token scans. It is no ScyllaDB, has
// no log of changes, and what passes on it must be told as passed on Cassandra.
//
// The server comes as Maven's artifacts, fetched once into the user's cache
// directory, and runs on a Java 17 of this machine: one JVM with 1 GiB of heap that
// listens on loopback alone, asks for a password and speaks both plain and TLS on
// its one port. It is not part of `go test ./...`: tests that call Start or
// StartCluster are skipped, with their number told last, unless
// ATHENA_TEST_CASSANDRA=1. When that is set, a server that cannot be had is a
// failure.
package cassandratest
