package scylla_test

import (
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func TestNoTableOfCassandraCanBeCaptured(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	b, err := scylla.Open(t.Context(), server.Conn(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(t.Context()) })
	for _, tables := range [][]driver.TableName{nil, {{Schema: "shop", Table: "orders"}}} {
		check, err := b.CheckChanges(t.Context(), driver.ChangeSetup{Client: "shop", Tables: tables})
		if err != nil {
			t.Fatal(err)
		}
		if len(check.Findings) != 1 || check.OK() || check.Findings[0].Name != "server_version" || !strings.HasPrefix(check.Findings[0].Found, "Apache Cassandra ") {
			t.Errorf("found %+v", check.Findings)
		}
	}
}
