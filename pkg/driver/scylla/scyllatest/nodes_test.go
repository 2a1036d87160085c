package scyllatest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

type coded interface{ GetCode() int }

func TestDoubleGoesWrongAsItIsTold(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c, func(cl *gocql.ClusterConfig) {
		cl.Timeout = 10 * time.Second
		cl.RetryPolicy = &gocql.SimpleRetryPolicy{}
	})
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY, v int)`)
	for name, tt := range map[string]struct {
		fault scyllatest.Fault
		code  int
	}{
		"overloaded":         {scyllatest.Overloaded(), gocql.ErrCodeOverloaded},
		"unavailable":        {scyllatest.Unavailable(), gocql.ErrCodeUnavailable},
		"a read times out":   {scyllatest.ReadTimeout(), gocql.ErrCodeReadTimeout},
		"a write times out":  {scyllatest.WriteTimeout("SIMPLE"), gocql.ErrCodeWriteTimeout},
		"a read fails":       {scyllatest.ReadFailure(), gocql.ErrCodeReadFailure},
		"a write fails":      {scyllatest.WriteFailure("SIMPLE"), gocql.ErrCodeWriteFailure},
		"a CAS is not known": {scyllatest.CASUnknown(), gocql.ErrCodeCASWriteUnknown},
		"something broke":    {scyllatest.ServerError("broken"), gocql.ErrCodeServer},
		"not valid":          {scyllatest.Invalid("no"), gocql.ErrCodeInvalid},
	} {
		hits := c.Fail(scyllatest.Containing("INSERT INTO ks.t"), tt.fault, 1)
		err := s.Query(`INSERT INTO ks.t (k, v) VALUES (?, 1)`, 1).Exec()
		var e coded
		if !errors.As(err, &e) || e.GetCode() != tt.code || hits() != 1 {
			t.Errorf("%s: %v", name, err)
		}
		same(t, name, texts(t, s, `SELECT k FROM ks.t`), []string{})
	}
	c.Fail(scyllatest.Containing("VALUES (?, 2)"), scyllatest.WriteTimeout("SIMPLE").After(), 1)
	if err := s.Query(`INSERT INTO ks.t (k, v) VALUES (?, 2)`, 2).Exec(); err == nil {
		t.Error("no error")
	}
	same(t, "it took effect", texts(t, s, `SELECT k FROM ks.t`), []string{"2"})
	c.Fail(scyllatest.Containing("VALUES (?, 3)"), scyllatest.Dropped().After(), 1)
	if err := s.Query(`INSERT INTO ks.t (k, v) VALUES (?, 3)`, 3).Exec(); err == nil {
		t.Error("no error")
	}
	c.Fail(scyllatest.Containing("VALUES (4, 4)"), scyllatest.Slow(time.Millisecond), 1)
	eventually(t, s, `INSERT INTO ks.t (k, v) VALUES (4, 4)`)
	same(t, "rows", texts(t, s, `SELECT count(*) FROM ks.t`), []string{"3"})
	c.Heal()
	seen := 0
	for _, x := range c.Statements() {
		if x.Statement == `PREPARE INSERT INTO ks.t (k, v) VALUES (?, 2)` {
			seen += x.Count
		}
	}
	same(t, "ledger", seen, 1)
}

func TestDoubleIsAClusterOfNodes(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t, scyllatest.Nodes(4), scyllatest.Datacenters("east", "west"), scyllatest.Shards(2))
	s := connect(t, c, func(cl *gocql.ClusterConfig) {
		cl.Hosts = cl.Hosts[:1]
		cl.PoolConfig.HostSelectionPolicy = gocql.TokenAwareHostPolicy(gocql.DCAwareRoundRobinPolicy("east"))
		cl.Consistency = gocql.LocalQuorum
		cl.ReconnectInterval = 50 * time.Millisecond
		cl.RetryPolicy = &gocql.SimpleRetryPolicy{}
	})
	same(t, "hosts", len(s.GetHosts()), 4)
	c.MustExec(t, `CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'east': 2, 'west': 2}`, `CREATE TABLE ks.t (k int PRIMARY KEY)`)
	for i := range 10 {
		eventually(t, s, fmt.Sprintf(`INSERT INTO ks.t (k) VALUES (%d)`, i))
	}
	c.StopNode(1)
	c.StopNode(3) // west is down
	must(t, s, `INSERT INTO ks.t (k) VALUES (?)`, 1)
	var e coded
	if err := s.Query(`INSERT INTO ks.t (k) VALUES (?)`, 1).Consistency(gocql.Quorum).Exec(); !errors.As(err, &e) || e.GetCode() != gocql.ErrCodeUnavailable {
		t.Error(err)
	}
	if err := s.Query(`SELECT k FROM ks.t`).Consistency(gocql.All).Exec(); !errors.As(err, &e) || e.GetCode() != gocql.ErrCodeUnavailable {
		t.Error(err)
	}
	same(t, "local", len(texts(t, s, `SELECT k FROM ks.t`)), 10)
	for _, i := range []int{1, 3} {
		if err := c.StartNode(i); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, s, `SELECT k FROM ks.t`, gocql.All)
}

// eventually runs a statement until the driver has a connection for it again.
func eventually(t *testing.T, s *gocql.Session, cql string, cl ...gocql.Consistency) {
	t.Helper()
	var err error
	for range 500 {
		q := s.Query(cql)
		if len(cl) > 0 {
			q.Consistency(cl[0])
		}
		if err = q.Exec(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
}

func TestDoubleAsksForAPassword(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t, scyllatest.Password("admin", "pw"))
	as := func(user, pw string) func(*gocql.ClusterConfig) {
		return func(cl *gocql.ClusterConfig) {
			cl.Authenticator = gocql.PasswordAuthenticator{Username: user, Password: pw}
		}
	}
	wrong := gocql.NewCluster(c.Hosts()...)
	wrong.Logger = quiet{}
	as("admin", "no")(wrong)
	if _, err := wrong.CreateSession(); err == nil || !strings.Contains(err.Error(), "Username and/or password are incorrect") {
		t.Error(err)
	}
	s := connect(t, c, as("admin", "pw"))
	for _, q := range []string{newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY)`, `CREATE ROLE reader WITH PASSWORD = 'r' AND LOGIN = true`, `GRANT SELECT ON ks.t TO reader`} {
		must(t, s, q)
	}
	r := connect(t, c, as("reader", "r"))
	texts(t, r, `SELECT k FROM ks.t`)
	for cql, want := range map[string]string{
		`INSERT INTO ks.t (k) VALUES (1)`:       "User reader has no MODIFY permission on <table ks.t> or any of its parents",
		`CREATE TABLE ks.u (k int PRIMARY KEY)`: "User reader has no CREATE permission on <keyspace ks> or any of its parents",
		`DROP KEYSPACE ks`:                      "User reader has no DROP permission on <keyspace ks> or any of its parents",
	} {
		var e coded
		if err := r.Query(cql).Exec(); !errors.As(err, &e) || e.GetCode() != gocql.ErrCodeUnauthorized || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", cql, err)
		}
	}
	same(t, "permissions", texts(t, s, `LIST ALL PERMISSIONS OF reader`), []string{"reader reader <table ks.t> SELECT"})
}

func TestDoubleSpeaksTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	c := scyllatest.Start(t, scyllatest.TLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
	s := connect(t, c, func(cl *gocql.ClusterConfig) {
		cl.SslOpts = &gocql.SslOptions{Config: &tls.Config{RootCAs: pool}, EnableHostVerification: true}
	})
	same(t, "rows", len(texts(t, s, `SELECT key FROM system.local`)), 1)
}

func TestDoubleGrows(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	host, err := c.AddNode("datacenter1")
	if err != nil {
		t.Fatal(err)
	}
	for try := 0; len(s.GetHosts()) < 2; try++ { // gocql waits a second before it looks
		if time.Sleep(10 * time.Millisecond); try == 1000 {
			t.Fatal("the driver did not learn of the node")
		}
	}
	same(t, "hosts", len(c.Hosts()), 2)
	direct := gocql.NewCluster(host)
	direct.Logger = quiet{}
	d, err := direct.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	same(t, "peers", len(texts(t, d, `SELECT peer FROM system.peers`)), 1)
}

// Sessions that are open learn of changes of the schema and of nodes by events.
func TestDoubleTellsOfEvents(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t, scyllatest.Nodes(2))
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY)`)
	must(t, s, `INSERT INTO ks.t (k) VALUES (?)`, 1)
	c.MustExec(t, `ALTER TABLE ks.t ADD v int`)
	must(t, s, `INSERT INTO ks.t (k) VALUES (?)`, 2) // what was prepared is void, and prepared again
	must(t, s, `INSERT INTO ks.t (k, v) VALUES (?, ?)`, 3, 3)
	c.MustExec(t, `DROP TABLE ks.t`)
	if err := s.Query(`INSERT INTO ks.t (k) VALUES (?)`, 2).Exec(); err == nil || !strings.Contains(err.Error(), "unconfigured table") {
		t.Error(err)
	}
}

// While a table is altered its clients see no errors: what was prepared is prepared
// again.
func TestDoubleIsAlteredWhileItIsUsed(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY, v int) WITH cdc = {'enabled': true}`)
	s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.RetryPolicy = &gocql.SimpleRetryPolicy{} })
	done := make(chan error)
	for w := range 3 {
		go func() {
			var err error
			for i := 0; i < 200 && err == nil; i++ {
				if err = s.Query(`INSERT INTO ks.t (k, v) VALUES (?, ?)`, w*1000+i, i).Exec(); err == nil {
					err = s.Query(`SELECT k FROM ks.t_scylla_cdc_log LIMIT ?`, 1).Exec()
				}
			}
			done <- err
		}()
	}
	for i := range 40 {
		c.MustExec(t, fmt.Sprintf(`ALTER TABLE ks.t ADD x%d int`, i))
	}
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	rows, err := c.LogRows("ks.t")
	if err != nil || len(rows) != 600 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}
