package scylla_test

import (
	"os"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func TestMain(m *testing.M) {
	code := cassandratest.Run(m)
	tellReal()
	os.Exit(code)
}
