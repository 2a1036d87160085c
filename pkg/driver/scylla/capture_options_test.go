package scylla_test

import (
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// What means nothing to the engine is refused when it is looked at, before anybody
// stores it.
func TestOptionsOfOtherEnginesAreRefusedOnTheDouble(t *testing.T) {
	t.Parallel()
	double := scyllatest.Start(t)
	double.MustExec(t, "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}",
		"CREATE TABLE ks.t (id int PRIMARY KEY) WITH cdc = {'enabled': true}")
	b, err := scylla.Open(t.Context(), athena.ScyllaConn{Hosts: double.Hosts()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	good := driver.ChangeSetup{Client: "my-shop", Slot: "athena_my_shop", Publication: "athena_my_shop", Tables: []driver.TableName{{Schema: "ks", Table: "t"}}}
	if check, err := b.CheckChanges(t.Context(), good); err != nil || !check.OK() {
		t.Errorf("%+v, %v", check, err)
	}
	for field, change := range map[string]func(*driver.ChangeSetup){
		"slot":         func(s *driver.ChangeSetup) { s.Slot = "mine" },
		"publication":  func(s *driver.ChangeSetup) { s.Publication = "mine" },
		"inserts_only": func(s *driver.ChangeSetup) { s.InsertsOnly = true },
		"local_only":   func(s *driver.ChangeSetup) { s.LocalOnly = true },
		"sweep":        func(s *driver.ChangeSetup) { s.Confidence, s.Sweep = 10*time.Second, 5*time.Second },
	} {
		setup := good
		change(&setup)
		_, err := b.CheckChanges(t.Context(), setup)
		if e := athena.AsError(err); err == nil || e.Code != athena.CodeInvalidRequest || e.Details["field"] != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
