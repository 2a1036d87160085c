package cqlroad

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestRoadToNodesThatAreNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := newStage(t, "nobody", "ks", athena.ScyllaConn{Hosts: []string{addr}, Keyspace: "ks"})
	began := time.Now()
	a := s.wants(http.StatusServiceUnavailable, "backend_unavailable", s.cql("SELECT * FROM t"))
	t.Log(a.tell("no node answers"))
	if !a.Retryable {
		t.Errorf("it is not retryable: %s", a.raw)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	check := s.wants(http.StatusOK, "", s.call("POST", "/admin/clients/nobody/check", nil))
	t.Logf("the check: %s", check.Data)
}

func TestRoadToCassandraWithOneDatacenterDown(t *testing.T) {
	c := cassandratest.StartCluster(t, "east", "west")
	ks := c.Keyspace(t)
	c.Exec(t, "CREATE TABLE "+ks+".t (k int PRIMARY KEY, v text)")
	oneDatacenterDown(t, "cassandra", ks, c.Conn(ks), func() { c.StopNode(t, 1) })
}

func TestRoadToDoubleWithOneDatacenterDown(t *testing.T) {
	d := scyllatest.Start(t, scyllatest.Nodes(2), scyllatest.Datacenters("east", "west"))
	d.MustExec(t, "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'east': 1, 'west': 1}",
		"CREATE TABLE ks.t (k int PRIMARY KEY, v text)")
	oneDatacenterDown(t, "double", "ks", athena.ScyllaConn{Hosts: d.Hosts(), Keyspace: "ks"}, func() { d.StopNode(1) })
}

// oneDatacenterDown loses the datacenter west, while clients speak to east.
func oneDatacenterDown(t *testing.T, name, ks string, conn athena.ScyllaConn, lose func()) {
	near, both := conn, conn
	near.Datacenter, both.Datacenter = "east", "east"
	both.Consistency = "EACH_QUORUM"
	local, each := newStage(t, name+"_east", ks, near), newStage(t, name+"_each", ks, both)
	const insert = "INSERT INTO {ks}.t (k, v) VALUES (?, 'x')"
	local.must(insert, 1)
	each.must(insert, 2)
	lose()
	for i := range 20 {
		local.must(insert, 10+i)
	}
	// Until the node is found to be down the write waits for it, and may have been made.
	for tries := 0; ; tries++ {
		a := each.cql(insert, 3)
		t.Log(a.tell("a write to both datacenters"), a.Details)
		if a.Code != "backend_unavailable" || a.Retryable != (a.Details["cql_code"] == "UNAVAILABLE") {
			t.Fatalf("a write to both datacenters: %s", a.raw)
		}
		if a.Retryable {
			break
		}
		if tries == 40 {
			t.Fatal("the node is not found to be down")
		}
	}
	if rows := local.must("SELECT k FROM {ks}.t"); len(rows) < 22 {
		t.Errorf("there are %d rows, and 22 were written", len(rows))
	}
}
