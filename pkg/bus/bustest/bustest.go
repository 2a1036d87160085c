// Package bustest starts real embedded servers for tests. It is imported by
// tests alone.
package bustest

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/bus"
)

// limits are sizes that fit a test machine.
func limits(cfg bus.Config) bus.Config {
	cfg.MaxBytes = map[string]int64{}
	for _, s := range bus.Topology(bus.Config{}) {
		cfg.MaxBytes[s.Name] = min(s.MaxBytes, 1<<30)
	}
	return cfg
}

// Start returns a reconciled bus on an embedded server that syncs every write,
// in a directory of its own. Both are gone when the test ends.
func Start(t testing.TB) *bus.Bus {
	t.Helper()
	s := Server(t, bus.ServerConfig{Dir: t.TempDir()})
	return Bus(t, s)
}

// Server starts an embedded server that stops when the test ends.
func Server(t testing.TB, cfg bus.ServerConfig) *bus.Server {
	t.Helper()
	s, err := bus.StartServer(cfg)
	if err != nil {
		t.Fatalf("bustest: %v", err)
	}
	t.Cleanup(func() { shutdown(t, s) })
	return s
}

// Bus returns a reconciled bus on s.
func Bus(t testing.TB, s *bus.Server) *bus.Bus {
	t.Helper()
	b := open(t, s, bus.Config{Embedded: s})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Reconcile(ctx); err != nil {
		t.Fatalf("bustest: %v", err)
	}
	return b
}

func open(t testing.TB, s *bus.Server, cfg bus.Config) *bus.Bus {
	t.Helper()
	nc, err := s.Connect()
	if err != nil {
		t.Fatalf("bustest: %v", err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.New(nc, limits(cfg))
	if err != nil {
		t.Fatalf("bustest: %v", err)
	}
	return b
}

func shutdown(t testing.TB, s *bus.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("bustest: %v", err)
	}
}

// Cluster is several servers in this process. Its methods are not safe for
// concurrent use.
type Cluster struct {
	t       testing.TB
	configs []bus.ServerConfig
	servers []*bus.Server // nil while stopped
	urls    []string
}

// StartCluster starts n servers and waits until every stream, with n replicas,
// is there. All stop when the test ends.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, servers: make([]*bus.Server, n)}
	routes := make([]string, n)
	ports := freePorts(t, 2*n)
	for i := range n {
		routes[i] = fmt.Sprintf("nats://127.0.0.1:%d", ports[i])
		c.urls = append(c.urls, fmt.Sprintf("nats://127.0.0.1:%d", ports[n+i]))
	}
	for i := range n {
		c.configs = append(c.configs, bus.ServerConfig{
			Dir:     t.TempDir(),
			Name:    fmt.Sprintf("node%d", i),
			Listen:  fmt.Sprintf("127.0.0.1:%d", ports[n+i]),
			Cluster: &bus.ClusterConfig{Name: "test", Listen: fmt.Sprintf("127.0.0.1:%d", ports[i]), Routes: routes},
		})
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.Stop(i)
		}
	})
	for i := range n {
		c.Restart(i)
	}
	c.reconcile(n)
	return c
}

// reconcile tries until the servers have found each other.
func (c *Cluster) reconcile(replicas int) {
	c.t.Helper()
	b := c.Bus(replicas)
	deadline := time.Now().Add(time.Minute)
	for leader := false; !leader; { // without one the servers do not answer at all
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		_, err := b.JetStream().AccountInfo(ctx)
		cancel()
		leader = err == nil
		if time.Now().After(deadline) {
			c.t.Fatalf("bustest: the cluster chooses no leader: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		err := b.Reconcile(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("bustest: the cluster does not come up: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Bus returns a bus on a connection that moves to another server when its own
// stops.
func (c *Cluster) Bus(replicas int) *bus.Bus {
	c.t.Helper()
	nc, err := bus.Connect(context.Background(), bus.ConnectConfig{URLs: c.urls})
	if err != nil {
		c.t.Fatalf("bustest: %v", err)
	}
	c.t.Cleanup(nc.Close)
	b, err := bus.New(nc, limits(bus.Config{Replicas: replicas}))
	if err != nil {
		c.t.Fatalf("bustest: %v", err)
	}
	return b
}

// Conn connects to server i alone.
func (c *Cluster) Conn(i int) *nats.Conn {
	c.t.Helper()
	nc, err := c.servers[i].Connect()
	if err != nil {
		c.t.Fatalf("bustest: %v", err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// Stop stops server i; it is no error if it is stopped.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	if s := c.servers[i]; s != nil {
		c.servers[i] = nil
		shutdown(c.t, s)
	}
}

// Restart starts server i on its old data.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	s, err := bus.StartServer(c.configs[i])
	if err != nil {
		c.t.Fatalf("bustest: %v", err)
	}
	c.servers[i] = s
}

// freePorts asks the system for ports. Servers of a cluster must know each
// other's before they start.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("bustest: %v", err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}
