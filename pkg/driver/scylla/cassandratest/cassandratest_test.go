package cassandratest_test

import (
	"strings"
	"testing"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func TestMain(m *testing.M) { cassandratest.Main(m) }

func TestCassandraAnswersPlainAndThroughTLS(t *testing.T) {
	t.Parallel()
	s := cassandratest.Start(t)
	ks := s.Keyspace(t)
	s.Exec(t, "CREATE TABLE "+ks+".t (k int PRIMARY KEY, v text)", "INSERT INTO "+ks+".t (k, v) VALUES (1, 'a')")

	cluster := gocql.NewCluster(s.Addr)
	cluster.Authenticator = gocql.PasswordAuthenticator{Username: s.Username, Password: s.Password}
	cluster.SslOpts = &gocql.SslOptions{CaPath: s.CAFile, EnableHostVerification: true}
	tls, err := cluster.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tls.Close)
	for name, session := range map[string]*gocql.Session{"plain": s.Session(t), "TLS": tls} {
		var version, v string
		if err := session.Query("SELECT release_version FROM system.local").Scan(&version); err != nil || version != cassandratest.Version {
			t.Errorf("%s: the version is %q, %v; want %s", name, version, err, cassandratest.Version)
		}
		if err := session.Query("SELECT v FROM " + ks + ".t WHERE k = 1").Scan(&v); err != nil || v != "a" {
			t.Errorf("%s: v = %q, %v", name, v, err)
		}
	}
}

func TestCassandraRefusesAWrongPassword(t *testing.T) {
	t.Parallel()
	s := cassandratest.Start(t)
	cluster := gocql.NewCluster(s.Addr)
	cluster.Authenticator = gocql.PasswordAuthenticator{Username: s.Username, Password: "wrong"}
	session, err := cluster.CreateSession()
	if err == nil {
		session.Close()
		t.Fatal("a wrong password was taken")
	}
	if !strings.Contains(err.Error(), "password") {
		t.Errorf("the error is %v; want one that speaks of the password", err)
	}
}

func TestCassandraCanLoseOneDatacenterOfTwo(t *testing.T) {
	t.Parallel()
	s := cassandratest.StartCluster(t, "east", "west")
	ks := s.Keyspace(t)
	s.Exec(t, "CREATE TABLE "+ks+".t (k int PRIMARY KEY, v text)")
	session := s.Session(t)
	write := func(c gocql.Consistency) error {
		return session.Query("INSERT INTO " + ks + ".t (k, v) VALUES (1, 'a')").Consistency(c).Exec()
	}
	if err := write(gocql.EachQuorum); err != nil {
		t.Fatalf("with both: %v", err)
	}
	s.StopNode(t, 1)
	if err := write(gocql.EachQuorum); err == nil {
		t.Error("a write to both datacenters succeeded with one of them gone")
	}
	if err := write(gocql.LocalQuorum); err != nil {
		t.Errorf("a write to the datacenter that is left: %v", err)
	}
}
