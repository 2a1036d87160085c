package scylla_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// refusals are connections that no server lets in, whatever it is.
func refusals(t *testing.T, good athena.ScyllaConn) {
	for name, tt := range map[string]struct {
		change  func(*athena.ScyllaConn)
		message string
	}{
		"a wrong password":         {func(c *athena.ScyllaConn) { c.Password = athena.NewSecret("pl4nted-wrong") }, "login"},
		"a datacenter of no node":  {func(c *athena.ScyllaConn) { c.Datacenter = "elsewhere" }, "datacenter"},
		"a keyspace that is not":   {func(c *athena.ScyllaConn) { c.Keyspace = "no_such_keyspace" }, `keyspace "no_such_keyspace" of the connection does not exist`},
		"a port without a server":  {func(c *athena.ScyllaConn) { c.Hosts = []string{"127.0.0.1:1"} }, "cannot be reached"},
		"a name that is of nobody": {func(c *athena.ScyllaConn) { c.Hosts = []string{"no-such-host.invalid"} }, "cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := good
			tt.change(&conn)
			began := time.Now()
			b, err := scylla.Open(t.Context(), conn)
			if err == nil {
				b.Close(t.Context())
				t.Fatal("it was opened")
			}
			f := (*scylla.Backend)(nil).Classify(err)
			if f.Code != athena.CodeBackendUnavailable || !f.NoEffect || !strings.Contains(f.Message, tt.message) {
				t.Errorf("%v is told as %+v, want backend_unavailable with %q", err, f, tt.message)
			}
			for _, secret := range []string{conn.Password.Reveal(), good.Password.Reveal()} {
				if secret != "cassandra" && strings.Contains(err.Error()+f.Message, secret) {
					t.Errorf("the password is shown: %v, %s", err, f.Message)
				}
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestOpenRefusedByTheDouble(t *testing.T) {
	t.Parallel()
	double := scyllatest.Start(t, scyllatest.Password("tester", "pl4nted-right"))
	refusals(t, athena.ScyllaConn{Hosts: double.Hosts(), Username: "tester", Password: athena.NewSecret("pl4nted-right")})
}

func TestOpenRefusedByCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	refusals(t, server.Conn(""))
}

func TestOpenOverTLSOnCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	overTLS(t, server.Conn(""), server.CAFile, "localhost")
}

func TestOpenOverTLSOnTheDouble(t *testing.T) {
	t.Parallel()
	cert, ca := certificate(t, "node.example")
	double := scyllatest.Start(t, scyllatest.TLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	overTLS(t, athena.ScyllaConn{Hosts: double.Hosts()}, ca, "node.example")
}

// certificate makes one that signs itself, and a file of it.
func certificate(t *testing.T, name string) (cert tls.Certificate, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// overTLS opens connections to nodes whose certificate is for name.
func overTLS(t *testing.T, conn athena.ScyllaConn, ca, name string) {
	t.Helper()
	conn.TLS = &athena.TLS{CAFile: ca, ServerName: name}
	b, err := scylla.Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	if err := b.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for what, protect := range map[string]*athena.TLS{
		"roots that have not signed it": {ServerName: name},
		"a name that is another's":      {CAFile: ca, ServerName: "elsewhere.example"},
	} {
		conn.TLS = protect
		if b, err := scylla.Open(t.Context(), conn); err == nil {
			b.Close(t.Context())
			t.Errorf("%s: it was opened", what)
		} else if f := b.Classify(err); f.Code != athena.CodeBackendUnavailable || !strings.Contains(f.Message, "certificate") {
			t.Errorf("%s: %v is told as %+v", what, err, f)
		}
	}
	conn.TLS = &athena.TLS{ServerName: "elsewhere.example", SkipVerify: true}
	if b, err := scylla.Open(t.Context(), conn); err != nil {
		t.Errorf("without verification: %v", err)
	} else {
		b.Close(t.Context())
	}
	conn.TLS = &athena.TLS{CAFile: filepath.Join(t.TempDir(), "none")}
	if _, err := scylla.Open(t.Context(), conn); athena.CodeOf(err) != athena.CodeBackendUnavailable {
		t.Errorf("a missing file: %v", err)
	}
}

// A server that takes connections and says nothing must not hold up who opens it.
func TestOpenEndsWithItsContextOnTheDouble(t *testing.T) {
	t.Parallel()
	double := scyllatest.Start(t)
	front := newRelay(t, double.Hosts()[0])
	release := front.hold()
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := scylla.Open(ctx, athena.ScyllaConn{Hosts: []string{front.addr()}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A node that takes connections and says nothing is one of several.
func TestASilentNodeDoesNotHoldUpAnOpenOnTheDouble(t *testing.T) {
	t.Parallel()
	double := scyllatest.Start(t, scyllatest.Nodes(2))
	double.StopNode(1)
	silent, err := net.Listen("tcp", double.Hosts()[1])
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // what the resolver gives
	defer cancel()
	b, err := scylla.Open(ctx, athena.ScyllaConn{Hosts: double.Hosts()[:1]})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	for range 10 {
		if err := b.Ping(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestANodeThatComesAgainIsUsedAgainOnTheDouble(t *testing.T) {
	t.Parallel()
	double, b := onDouble(t, nil)
	double.StopNode(0)
	wantUnavailable(t, b, b.Ping(t.Context()))
	_, err := all(t, b, `INSERT INTO items (id) VALUES (1)`)
	wantUnavailable(t, b, err)
	if err := double.StartNode(0); err != nil {
		t.Fatal(err)
	}
	wantPing(t, b)
}

// wantUnavailable wants an error that says that nothing was done, and that later it
// may be.
func wantUnavailable(t *testing.T, b driver.Backend, err error) {
	t.Helper()
	if f := b.Classify(err); err == nil || f.Code != athena.CodeBackendUnavailable || !f.NoEffect {
		t.Errorf("%v is told as %+v, want backend_unavailable without effect", err, f)
	}
}

// wantPing waits until the backend answers.
func wantPing(t *testing.T, b driver.Backend) {
	t.Helper()
	var err error
	for range 300 {
		if err = b.Ping(t.Context()); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("it does not answer again: %v", err)
}

func TestADatacenterThatIsDownIsNotReplacedByAnotherOnTheDouble(t *testing.T) {
	t.Parallel()
	double, b := onDouble(t, func(c *athena.ScyllaConn) { c.Datacenter = "near" }, scyllatest.Nodes(2), scyllatest.Datacenters("near", "far"))
	far := double.Hosts()[1]
	asked := double.Fail(func(r scyllatest.Request) bool {
		return r.Node == far && strings.Contains(r.CQL, "FROM items")
	}, scyllatest.ServerError("the far node was asked"), -1)
	for range 10 {
		if _, err := all(t, b, `SELECT id FROM items`); err != nil {
			t.Fatal(err)
		}
	}
	double.StopNode(0)
	_, err := all(t, b, `SELECT id FROM items`)
	wantUnavailable(t, b, err)
	if err := double.StartNode(0); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if _, err = all(t, b, `SELECT id FROM items`); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("it is not used again: %v", err)
	}
	if n := asked(); n != 0 {
		t.Errorf("the far datacenter was asked %d times", n)
	}
}

func TestADatacenterThatIsDownOnCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.StartCluster(t, "near", "far")
	keyspace := server.Keyspace(t)
	server.Exec(t, `CREATE TABLE `+keyspace+`.items (id int PRIMARY KEY)`)
	open := func(datacenter string) *scylla.Backend {
		conn := server.Conn(keyspace)
		conn.Datacenter = datacenter
		b, err := scylla.Open(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close(t.Context()) })
		return b
	}
	near, far := open("near"), open("far")
	for _, b := range []*scylla.Backend{near, far} {
		if _, err := all(t, b, `INSERT INTO items (id) VALUES (?)`, `1`); err != nil {
			t.Fatal(err)
		}
	}
	server.StopNode(t, 1)
	if _, err := all(t, near, `INSERT INTO items (id) VALUES (?)`, `2`); err != nil {
		t.Errorf("the datacenter that is up does not answer: %v", err)
	}
	_, err := all(t, far, `SELECT id FROM items`)
	wantUnavailable(t, far, err)
	_, err = all(t, near, `SELECT id FROM items`)
	if err != nil {
		t.Errorf("the datacenter that is up does not answer: %v", err)
	}
}
