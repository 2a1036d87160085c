package scylla_test

import (
	"flag"
	"os"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "6") // they wait more than they work; -parallel wins
	code := cassandratest.Run(m)
	tellReal()
	os.Exit(code)
}
