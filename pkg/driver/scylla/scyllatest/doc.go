// Package scyllatest is a double of a ScyllaDB cluster for tests: a server of the
// CQL native protocol, versions 3 and 4, on loopback, over tables in memory, which
// keeps the log of changes of a table as ScyllaDB documents it. Its frames are coded
// by a library that is not the one of the driver under test.
//
// It is not ScyllaDB. It shows what a client sends, and how a client copes with
// answers and log rows laid out as documented. It does not show: what a real log
// holds for a given write; consistency between replicas, skew of clocks, and late
// writes as they really come; routing to shards and tablets; compaction and the
// collection of garbage; how errors of a loaded cluster are worded and timed;
// changes of topology; differences between versions; speed.
//
// What holds throughout:
//
//  1. A statement that the double does not know is a SyntaxError for the client, is
//     kept in Unknown, and fails the test that Start was given unless it was expected.
//  2. Of two writes of a cell the later by time stands, whenever they come.
//  3. All nodes answer from the same data; that nodes are down shows in the
//     consistency that can be reached, counted as if each row had a replica on them.
//  4. Rows of a log are derived from base writes by the rules in ScyllaDB's
//     documentation (features/cdc), and held against its examples and against what
//     ScyllaDB's own tests of its log ask for; see log.go and log_test.go. Plain CQL
//     is held against a real Apache Cassandra.
package scyllatest
