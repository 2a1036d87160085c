package scylla_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func TestMain(m *testing.M) { cassandratest.Main(m) }
