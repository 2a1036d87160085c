package cassandratest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Switch is the environment variable that switches these tests on.
const Switch = "ATHENA_TEST_CASSANDRA"

// shared is the test process's one server and the account of what ran on it. It is
// the package's only state, and it is there because a testing.T cannot carry it
// from test to test.
var shared struct {
	main  atomic.Bool
	once  sync.Once
	nodes []*node
	err   error
	next  atomic.Int64

	mu           sync.Mutex
	ran, skipped map[string]bool // names of tests
}

// Main runs the tests, stops the shared server and says last what ran on it:
//
//	func TestMain(m *testing.M) { cassandratest.Main(m) }
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has something else to do at the end.
func Run(m *testing.M) int {
	shared.main.Store(true)
	code := m.Run()
	stopAll(shared.nodes)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if n := len(shared.ran); n > 0 {
		fmt.Printf("Apache Cassandra %s: %d tests ran on it\n", Version, n)
	}
	if n := len(shared.skipped); n > 0 {
		fmt.Printf("Apache Cassandra: 0 run, %d skipped (no %s=1)\n", n, Switch)
	}
	return code
}

// enter counts t, and skips it where the switch is off.
func enter(t testing.TB) {
	t.Helper()
	on := os.Getenv(Switch) == "1"
	shared.mu.Lock()
	set := &shared.ran
	if !on {
		set = &shared.skipped
	}
	if *set == nil {
		*set = map[string]bool{}
	}
	(*set)[t.Name()] = true
	shared.mu.Unlock()
	if !on {
		t.Skipf("no %s=1: not run against a real Cassandra", Switch)
	}
	if !shared.main.Load() {
		t.Fatal("cassandratest: call cassandratest.Main from TestMain, or the server outlives the tests")
	}
}

// A Server is a cluster of Cassandra nodes, one for each datacenter.
type Server struct {
	// Addr is the first node's, host:port.
	Addr string
	// Username and Password are a superuser's.
	Username, Password string
	// CAFile holds the certificate that the nodes' TLS is verified with, in PEM.
	// The name that they answer by is localhost.
	CAFile string

	nodes []*node
}

// Start gives the test process's one server, of one node, starting it if this is
// the first call. Tests keep apart by keyspaces: see Keyspace.
func Start(t testing.TB) *Server {
	t.Helper()
	enter(t)
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		shared.nodes, shared.err = start(ctx, []string{"datacenter1"})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return server(t, shared.nodes)
}

// StartCluster starts a cluster for this test alone, with one node in each of the
// datacenters, on 127.0.0.1, 127.0.0.2 and so on. It takes any password: roles are
// data, and go with the node that is lost. It is stopped when the test ends.
func StartCluster(t testing.TB, datacenters ...string) *Server {
	t.Helper()
	enter(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	nodes, err := start(ctx, datacenters)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopAll(nodes) })
	return server(t, nodes)
}

func server(t testing.TB, nodes []*node) *Server {
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range nodes {
				if n.log.last() == "" {
					continue
				}
				t.Logf("the last that %s logged:\n%s", n.addr(), n.log.last())
			}
		}
	})
	n := nodes[0]
	return &Server{Addr: n.addr(), Username: "cassandra", Password: "cassandra", CAFile: n.caFile(), nodes: nodes}
}

// Hosts are the addresses of all nodes, host:port.
func (s *Server) Hosts() []string {
	hosts := make([]string, len(s.nodes))
	for i, n := range s.nodes {
		hosts[i] = n.addr()
	}
	return hosts
}

// Conn is the connection of a client with all rights and a default keyspace, which
// may be empty.
func (s *Server) Conn(keyspace string) athena.ScyllaConn {
	return athena.ScyllaConn{Hosts: s.Hosts(), Keyspace: keyspace, Username: s.Username, Password: athena.NewSecret(s.Password)}
}

// StopNode kills the node of one datacenter, by its number from 0, as a power cut
// does. It does not come again.
func (s *Server) StopNode(t testing.TB, i int) {
	t.Helper()
	if len(s.nodes) == len(shared.nodes) && s.nodes[0] == shared.nodes[0] {
		t.Fatal("cassandratest: the shared server is not one test's to stop; use StartCluster")
	}
	s.nodes[i].stop()
}

// Session opens a session of gocql's own, for what a test does behind the
// driver's back. It is closed when the test ends.
func (s *Server) Session(t testing.TB) *gocql.Session {
	t.Helper()
	session, err := s.nodes[0].connect(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return session
}

// Keyspace makes a keyspace and returns its name. It is dropped when the test ends.
func (s *Server) Keyspace(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", shared.next.Add(1))
	s.Exec(t, "CREATE KEYSPACE "+name+" WITH replication = "+replication(s.nodes))
	if len(s.nodes) == 1 { // a cluster of a test's own goes as a whole
		t.Cleanup(func() { s.Exec(t, "DROP KEYSPACE "+name) })
	}
	return name
}

// Exec runs statements behind the driver's back, as the superuser.
func (s *Server) Exec(t testing.TB, statements ...string) {
	t.Helper()
	session, err := s.nodes[0].connect(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for _, text := range statements {
		if err := session.Query(text).Exec(); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}
