// Package scyllatest is a double of a ScyllaDB cluster for tests: a server of CQL
// native protocol v3 and v4 on loopback, over tables in memory.
//
// It is not ScyllaDB. It shows what a client sends, and how a client copes with
// rows laid out as ScyllaDB documents them. It shows nothing of a real cluster.
package scyllatest
