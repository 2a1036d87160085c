package scylla

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

var (
	_ driver.Backend      = (*Backend)(nil)
	_ driver.Querier      = (*Backend)(nil)
	_ driver.Counter      = (*Backend)(nil)
	_ driver.SchemaReader = (*Backend)(nil)
	_ driver.Provisioner  = (*Backend)(nil)
	_ driver.Identifier   = (*Backend)(nil)
)

// Backend is a session with one cluster: some connections to each of its nodes,
// and one that hears of changes of the ring and of the schema.
type Backend struct {
	session  *gocql.Session
	conn     athena.ScyllaConn
	captures captures
}

// Driver opens ScyllaDB backends.
func Driver() driver.Driver { return driver.New(Open) }

const (
	defaultConns = 2
	// connectTimeout bounds one step of making a connection: the dial, the
	// handshake, each of the first requests.
	connectTimeout = 5 * time.Second
	// reconnectInterval is how often nodes that were lost are tried again.
	reconnectInterval = 3 * time.Second
)

// Open connects to a cluster and fails if it does not answer. The password must
// be itself, not a reference to one.
func Open(ctx context.Context, conn athena.ScyllaConn) (*Backend, error) {
	cfg, err := clusterConfig(conn)
	if err != nil {
		return nil, err
	}
	session, err := openSession(ctx, cfg)
	if err != nil {
		return nil, explainOpen(ctx, conn, err)
	}
	b := &Backend{session: session, conn: conn}
	if err := b.Ping(ctx); err != nil {
		session.Close()
		return nil, err
	}
	return b, nil
}

// explainOpen says so if it is the keyspace that keeps connections from being set
// up: gocql does not tell.
func explainOpen(ctx context.Context, conn athena.ScyllaConn, err error) error {
	var refused *unreachable
	keyspace := conn.Keyspace
	if keyspace == "" || !errors.As(err, &refused) {
		return err
	}
	conn.Keyspace = ""
	cfg, other := clusterConfig(conn) // a policy belongs to one session
	if other != nil {
		return err
	}
	session, other := openSession(ctx, cfg)
	if other != nil {
		return err
	}
	defer session.Close()
	name := ""
	other = session.Query(`SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?`, keyspace).
		WithContext(ctx).Consistency(gocql.One).Scan(&name)
	if errors.Is(other, gocql.ErrNotFound) {
		return &unreachable{err, fmt.Sprintf("the keyspace %q of the connection does not exist; make it, or leave connection.keyspace out until it is there", keyspace)}
	}
	return err
}

// openSession connects, and waits until a node answers.
func openSession(ctx context.Context, cfg *gocql.ClusterConfig) (*gocql.Session, error) {
	// Not NewSession: that leaves behind what it had started when it fails.
	session, err := gocql.NewSessionNonBlocking(*cfg)
	if err != nil {
		return nil, &unreachable{cause: err}
	}
	ready := make(chan error, 1)
	go func() { ready <- session.WaitUntilReady() }()
	select {
	case err = <-ready:
		if err != nil {
			session.Close()
			return nil, &unreachable{cause: err}
		}
	case <-ctx.Done():
		// gocql cannot be told to stop; its own timeouts end what it does.
		go func() {
			<-ready
			session.Close()
		}()
		return nil, ctx.Err()
	}
	return session, nil
}

// clusterConfig is what gocql is told.
func clusterConfig(conn athena.ScyllaConn) (*gocql.ClusterConfig, error) {
	addresses, err := conn.Addresses()
	if err != nil {
		return nil, err
	}
	cfg := gocql.NewCluster(addresses...)
	// Of the nodes that the contact points tell of.
	_, port, _ := net.SplitHostPort(addresses[0])
	cfg.Port, _ = strconv.Atoi(port)
	cfg.Keyspace = conn.Keyspace
	cfg.Consistency = gocql.LocalQuorum
	if conn.Consistency != "" {
		if err := cfg.Consistency.UnmarshalText([]byte(conn.Consistency)); err != nil {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "connection.consistency %q is not known", conn.Consistency).At("connection.consistency")
		}
	}
	if conn.SerialConsistency != "" {
		if err := cfg.SerialConsistency.UnmarshalText([]byte(conn.SerialConsistency)); err != nil {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "connection.serial_consistency %q is not known", conn.SerialConsistency).At("connection.serial_consistency")
		}
	}
	hosts := gocql.RoundRobinHostPolicy()
	if conn.Datacenter != "" {
		// What LOCAL_QUORUM means must not depend on which nodes answer (invariant 4).
		hosts = gocql.DCAwareRoundRobinPolicy(conn.Datacenter, gocql.HostPolicyOptionDisableDCFailover)
		cfg.HostFilter = gocql.DataCenterHostFilter(conn.Datacenter)
	}
	cfg.PoolConfig.HostSelectionPolicy = &promptPolicy{HostSelectionPolicy: gocql.TokenAwareHostPolicy(hosts)}
	if conn.Username != "" || !conn.Password.IsZero() {
		cfg.Authenticator = gocql.PasswordAuthenticator{Username: conn.Username, Password: conn.Password.Reveal()}
	}
	if conn.TLS != nil {
		protect, err := conn.TLS.Load()
		if err != nil {
			return nil, err
		}
		cfg.SslOpts = &gocql.SslOptions{Config: protect, EnableHostVerification: !conn.TLS.SkipVerify}
	}
	cfg.NumConns = conn.MaxConns
	if cfg.NumConns == 0 {
		cfg.NumConns = defaultConns
	}
	cfg.ProtoVersion = protocol
	cfg.ConnectTimeout = connectTimeout
	cfg.ReconnectInterval = reconnectInterval
	cfg.RetryPolicy = retryPolicy{}
	cfg.Logger = log.New(io.Discard, "", 0) // it would write to the standard error
	return cfg, nil
}

// A promptPolicy lets a session begin once one node is connected. Else gocql would
// wait for the last one, and try one that is silent three times.
type promptPolicy struct {
	gocql.HostSelectionPolicy
	session *gocql.Session
}

// Init is called before all else.
func (p *promptPolicy) Init(s *gocql.Session) {
	p.session = s
	p.HostSelectionPolicy.Init(s)
}

// Ready reports whether a node is connected.
func (p *promptPolicy) Ready() bool {
	ready := false
	p.session.IterateHostPools(func(pool gocql.HostPoolInfo) bool {
		ready = pool.GetConnectionCount() > 0
		return !ready
	})
	return ready
}

// Ping reports whether the cluster answers now.
func (b *Backend) Ping(ctx context.Context) error {
	var key string
	return b.catalog(ctx, `SELECT key FROM system.local WHERE key = 'local'`, nil, []any{&key}, func() error { return nil })
}

// Close closes all connections.
func (b *Backend) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		b.session.Close()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("scylla: statements still run: %w", ctx.Err())
	}
}
