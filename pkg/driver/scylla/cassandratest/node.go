package cassandratest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"
)

// A node is one JVM that runs Cassandra.
type node struct {
	host, datacenter string
	open             bool // asks nobody for a password
	cql, storage     int  // ports
	dir              string
	cmd              *exec.Cmd
	log              tail
	done             chan struct{} // closed when it has ended
}

func (n *node) addr() string   { return net.JoinHostPort(n.host, strconv.Itoa(n.cql)) }
func (n *node) caFile() string { return filepath.Join(n.dir, "ca.pem") }

// start starts one node for each datacenter and returns when CQL answers on all.
func start(ctx context.Context, datacenters []string) (nodes []*node, err error) {
	java, err := findJava(ctx)
	if err != nil {
		return nil, err
	}
	jars, err := fetch(ctx)
	if err != nil {
		return nil, err
	}
	cql, storage, err := freePorts(len(datacenters))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			stopAll(nodes)
		}
	}()
	// One after the other: a node that joins asks the first for the ring.
	for i, dc := range datacenters {
		n := &node{host: fmt.Sprintf("127.0.0.%d", i+1), datacenter: dc, open: len(datacenters) > 1, cql: cql, storage: storage, done: make(chan struct{})}
		if n.dir, err = os.MkdirTemp("", "athena-cassandra-"); err != nil {
			return nodes, fmt.Errorf("cassandratest: %w", err)
		}
		nodes = append(nodes, n)
		if err := n.configure(); err != nil {
			return nodes, err
		}
		if err := n.spawn(java, jars); err != nil {
			return nodes, err
		}
		if err := n.ready(ctx); err != nil {
			return nodes, err
		}
	}
	if len(nodes) > 1 {
		return nodes, together(ctx, nodes)
	}
	return nodes, nil
}

// together waits until each node knows that all the others are there: they tell
// each other by gossip, after CQL answers.
func together(ctx context.Context, nodes []*node) error {
	statements := []string{
		"CREATE KEYSPACE IF NOT EXISTS together WITH replication = " + replication(nodes),
		"CREATE TABLE IF NOT EXISTS together.t (k int PRIMARY KEY)",
		"INSERT INTO together.t (k) VALUES (1)",
	}
	written := func(n *node) error {
		session, err := n.connect(5 * time.Second)
		if err != nil {
			return err
		}
		defer session.Close()
		for _, text := range statements {
			if err := session.Query(text).Consistency(gocql.All).Exec(); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range nodes {
		for {
			err := written(n)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("cassandratest: %s does not see the others: %w", n.addr(), err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// replication is the option that gives each node's datacenter one replica.
func replication(nodes []*node) string {
	o := "{'class': 'NetworkTopologyStrategy'"
	for _, n := range nodes {
		o += fmt.Sprintf(", '%s': 1", n.datacenter)
	}
	return o + "}"
}

// spawn starts the program. Linux ties the signal that a child gets on its
// parent's death to the thread that started it, so one thread is kept for as long
// as the child lives.
func (n *node) spawn(java, jars string) error {
	args := append(options(n.dir), "-cp", n.dir+string(os.PathListSeparator)+filepath.Join(jars, "*"),
		"org.apache.cassandra.service.CassandraDaemon")
	n.cmd = exec.Command(java, args...)
	n.cmd.Dir = n.dir
	n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
	n.cmd.SysProcAttr = processAttributes()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := n.cmd.Start()
		started <- err
		if err == nil {
			n.cmd.Wait() // how it ended is in its log
		}
		close(n.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cassandratest: %w", err)
	}
	return nil
}

// ready waits until CQL answers.
func (n *node) ready(ctx context.Context) error {
	for {
		session, err := n.connect(5 * time.Second)
		if err == nil {
			session.Close()
			n.log.drop() // what it complains of when it starts explains no test
			return nil
		}
		select {
		case <-n.done:
			return fmt.Errorf("cassandratest: %s ended before it was ready; it logged:\n%s", n.addr(), n.log.last())
		case <-ctx.Done():
			return fmt.Errorf("cassandratest: %s is not ready (%w); it logged:\n%s", n.addr(), err, n.log.last())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// connect opens a session to this node alone.
func (n *node) connect(timeout time.Duration) (*gocql.Session, error) {
	conn, err := net.DialTimeout("tcp", n.addr(), time.Second)
	if err != nil {
		return nil, err // at once, and without the driver's own complaints
	}
	conn.Close()
	cluster := gocql.NewCluster(n.host)
	cluster.Port = n.cql
	cluster.Authenticator = gocql.PasswordAuthenticator{Username: "cassandra", Password: "cassandra"}
	cluster.Timeout, cluster.ConnectTimeout = timeout, timeout
	cluster.Consistency = gocql.One
	cluster.ReconnectInterval = 0
	cluster.Logger = silent{}
	cluster.HostFilter = gocql.WhiteListHostFilter(n.host)
	return cluster.CreateSession()
}

// stop kills the node and removes what it wrote.
func (n *node) stop() {
	if n.cmd != nil && n.cmd.Process != nil {
		n.cmd.Process.Kill()
		<-n.done
	}
	os.RemoveAll(n.dir)
}

func stopAll(nodes []*node) {
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error { n.stop(); return nil })
	}
	g.Wait()
}

// freePorts finds two ports that are free on the first n addresses of loopback.
func freePorts(n int) (cql, storage int, err error) {
	var ports []int
	var held []io.Closer
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, fmt.Errorf("cassandratest: %w", err)
		}
		held = append(held, first)
		port, free := first.Addr().(*net.TCPAddr).Port, true
		for i := 2; i <= n; i++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:%d", i, port))
			if free = err == nil; !free {
				break
			}
			held = append(held, l)
		}
		if free {
			ports = append(ports, port)
		}
		if len(ports) == 2 {
			return ports[0], ports[1], nil
		}
	}
	return 0, 0, errors.New("cassandratest: no port is free on all addresses")
}

// tail keeps the end of a log.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - 16<<10; over > 0 {
		t.buf = t.buf[:copy(t.buf, t.buf[over:])]
	}
	return len(b), nil
}

func (t *tail) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// silent drops what gocql logs of nodes that are not there yet.
type silent struct{}

func (silent) Print(...any)          {}
func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}
