// Package scyllatest is a double of a ScyllaDB cluster for tests.
package scyllatest

import (
	_ "github.com/datastax/go-cassandra-native-protocol/datacodec"
	_ "github.com/datastax/go-cassandra-native-protocol/frame"
	_ "github.com/datastax/go-cassandra-native-protocol/message"
	_ "github.com/datastax/go-cassandra-native-protocol/primitive"
)
