// Package cqlroad holds the whole road of CQL, from a request over HTTP to a server
// and back, against what the road promises: with a real process of Athena, and with
// a double or a real Apache Cassandra at its end. Neither is a ScyllaDB.
package cqlroad
