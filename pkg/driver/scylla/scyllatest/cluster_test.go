package scyllatest_test

import (
	"testing"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestDoubleAnswersGocql(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t,
		`CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}`,
		`CREATE TABLE ks.t (pk int, ck int, v text, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`)
	s, err := gocql.NewCluster(c.Hosts()...).CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Query(`INSERT INTO ks.t (pk, ck, v) VALUES (?, ?, ?)`, 1, 2, "x").Exec(); err != nil {
		t.Fatal(err)
	}
	var v string
	if err := s.Query(`SELECT v FROM ks.t WHERE pk = ? AND ck = ?`, 1, 2).Scan(&v); err != nil || v != "x" {
		t.Fatal(v, err)
	}
}
