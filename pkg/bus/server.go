package bus

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// ServerConfig says how the embedded server runs. Only Dir is required.
type ServerConfig struct {
	// Dir holds the streams. One process at a time may use it.
	Dir string
	// Name of the server; must differ in a cluster. The host's name.
	Name string
	// SyncInterval is how long an acknowledged message may be unsynced. 0, the
	// default, syncs before the acknowledgement.
	SyncInterval time.Duration
	// Listen is the address for NATS clients, "host:port"; empty means that only
	// this process can connect. Without Token or Users it must be loopback.
	Listen string
	TLS    *TLSFiles // of Listen; nil means plain TCP
	Token  string    // lets a client in
	Users  []User    // so do these
	// MaxStore bounds the bytes of all streams on disk; 0 leaves it to the
	// limits of the streams.
	MaxStore int64
	Cluster  *ClusterConfig // nil means a single server
	Logger   *slog.Logger   // nil logs nothing
}

// A User may connect to the listener.
type User struct{ Name, Password string }

// TLSFiles are the paths of PEM files. With CA set, a server asks its clients
// for a certificate, and a client trusts this authority alone.
type TLSFiles struct{ Cert, Key, CA string }

// ClusterConfig joins servers to a cluster.
type ClusterConfig struct {
	Name   string   // of the cluster, the same on all servers
	Listen string   // "host:port" for the other servers
	Routes []string // "nats://host:port" of the servers of the cluster
}

// Server is an embedded NATS server. It does not touch the process's signals.
type Server struct {
	nats   *server.Server
	lock   *dirLock
	sync   time.Duration
	secret string // lets this process in
	stop   sync.Once
}

// startWithin bounds how long streams on disk may take to be opened.
const startWithin = 2 * time.Minute

// StartServer starts a server and returns once it takes connections.
func StartServer(cfg ServerConfig) (*Server, error) {
	opts, secret, err := cfg.options()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		lock.release()
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the embedded NATS server refused its settings: %v", err)
	}
	s := &Server{nats: ns, lock: lock, sync: cfg.SyncInterval, secret: secret}
	ns.SetLoggerV2(&logger{cfg.Logger}, false, false, false)
	ns.Start()
	if !ns.ReadyForConnections(startWithin) {
		s.halt()
		return nil, athena.Errorf(athena.CodeBusUnavailable, "the embedded NATS server in %q was not ready within %s; its log has the cause (an address in use, a damaged directory)", cfg.Dir, startWithin)
	}
	if !ns.JetStreamEnabled() {
		s.halt()
		return nil, athena.Errorf(athena.CodeBusUnavailable, "JetStream could not be started in %q; the log has the cause", cfg.Dir)
	}
	return s, nil
}

func (cfg ServerConfig) options() (*server.Options, string, error) {
	if cfg.Dir == "" {
		return nil, "", athena.Errorf(athena.CodeInvalidRequest, "the embedded NATS server needs a data directory").At("dir")
	}
	name := cfg.Name
	if name == "" {
		name, _ = os.Hostname()
	}
	opts := &server.Options{
		ServerName:         name,
		JetStream:          true,
		StoreDir:           cfg.Dir,
		JetStreamMaxMemory: 64 << 20, // no stream of ours is in memory
		JetStreamMaxStore:  cfg.MaxStore,
		SyncInterval:       cfg.SyncInterval,
		SyncAlways:         cfg.SyncInterval == 0,
		MaxPayload:         MaxPayload,
		NoSigs:             true,
		DontListen:         true,
		// One consumer per lane and client: the server's own default of 1,000 a
		// stream would be the limit on clients.
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
	}
	if opts.SyncAlways {
		opts.SyncInterval = time.Minute // of files that SyncAlways does not cover
	}
	if opts.JetStreamMaxStore == 0 {
		opts.JetStreamMaxStore = 1 << 50
	}
	secret := rand.Text()
	if cfg.Listen != "" {
		host, port, err := splitAddr("listen", cfg.Listen)
		if err != nil {
			return nil, "", err
		}
		open := cfg.Token == "" && len(cfg.Users) == 0
		if open && !loopback(host) {
			return nil, "", athena.Errorf(athena.CodeInvalidRequest, "the NATS listener %q can be reached from other machines and asks for no credentials; set a token or users, or listen on 127.0.0.1", cfg.Listen).At("listen")
		}
		opts.DontListen, opts.Host, opts.Port = false, host, port
		if !open {
			opts.CustomClientAuthentication = &gate{token: cfg.Token, users: cfg.Users, secret: secret}
		}
		if cfg.TLS != nil {
			if opts.TLSConfig, err = cfg.TLS.server(); err != nil {
				return nil, "", err
			}
			opts.TLS = true
		}
	}
	if c := cfg.Cluster; c != nil {
		host, port, err := splitAddr("cluster.listen", c.Listen)
		if err != nil {
			return nil, "", err
		}
		opts.Cluster = server.ClusterOpts{Name: c.Name, Host: host, Port: port}
		for _, r := range c.Routes {
			u, err := url.Parse(r)
			if err != nil {
				return nil, "", athena.Errorf(athena.CodeInvalidRequest, "a cluster route is not a URL like nats://host:6222").At("cluster.routes")
			}
			opts.Routes = append(opts.Routes, u)
		}
	}
	return opts, secret, nil
}

func splitAddr(field, addr string) (string, int, error) {
	host, text, err := net.SplitHostPort(addr)
	port, perr := strconv.Atoi(text)
	if err != nil || perr != nil || port < 0 || port > 65535 {
		return "", 0, athena.Errorf(athena.CodeInvalidRequest, "%q is not an address like 127.0.0.1:4222", addr).At(field)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Connect connects within the process: no socket, no credentials.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{
		nats.Name("athena"), nats.InProcessServer(s.nats), nats.UserInfo(insider, s.secret),
		nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.Timeout(10 * time.Second),
	}, opts...)
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the embedded NATS server refused a connection")
	}
	return nc, nil
}

// URL is where clients connect; empty without a listener.
func (s *Server) URL() string {
	if s.nats.Addr() == nil {
		return ""
	}
	return s.nats.ClientURL()
}

// SyncInterval is how long an acknowledged message may be unsynced; 0 means not
// at all.
func (s *Server) SyncInterval() time.Duration { return s.sync }

// Shutdown stops the server and waits until its files are closed, or until ctx
// is done.
func (s *Server) Shutdown(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.halt()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("bus: the embedded server is still stopping: %w", ctx.Err())
	}
}

func (s *Server) halt() {
	s.stop.Do(func() {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		s.lock.release()
	})
}

// insider is the name under which the server's own process connects.
const insider = "_athena"

// A gate lets clients in by token or by name and password.
type gate struct {
	token  string
	users  []User
	secret string
}

// Check implements server.Authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	if o.Username == "" {
		return g.token != "" && same(g.token, o.Token)
	}
	if o.Username == insider {
		return same(g.secret, o.Password)
	}
	for _, u := range g.users {
		if u.Name == o.Username {
			return u.Password != "" && same(u.Password, o.Password)
		}
	}
	return false
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (t *TLSFiles) server() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the TLS certificate %q and its key %q cannot be loaded: %v", t.Cert, t.Key, err).At("tls")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if t.CA != "" {
		if c.ClientCAs, err = authority(t.CA); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

func authority(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = errors.New("it holds no PEM certificate")
	}
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the TLS authority %q cannot be loaded: %v", path, err).At("tls.ca")
	}
	return pool, nil
}

// lockDir makes dir and locks it against other processes.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the data directory %q cannot be made: %v", dir, err).At("dir")
	}
	lock, err := acquire(filepath.Join(dir, "athena.lock"))
	if errors.Is(err, errLocked) {
		return nil, athena.Wrap(athena.CodeConflict, err, "the data directory %q is in use by another process; stop that one, or give this one another directory", dir).At("dir")
	}
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the data directory %q cannot be locked: %v", dir, err).At("dir")
	}
	return lock, nil
}

var errLocked = errors.New("locked by another process")

// logger passes the server's log on.
type logger struct{ to *slog.Logger }

func (l *logger) log(level slog.Level, format string, v []any) {
	if l.to != nil {
		l.to.Log(context.Background(), level, fmt.Sprintf(format, v...), "component", "nats")
	}
}

// The server's notices are many and of no use to an operator of Athena.
func (l *logger) Noticef(format string, v ...any) { l.log(slog.LevelDebug, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logger) Fatalf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logger) Debugf(format string, v ...any)  {}
func (l *logger) Tracef(format string, v ...any)  {}
