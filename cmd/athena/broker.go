package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/secret"
)

// broker is the connection to JetStream, embedded or external.
type broker struct {
	server *bus.Server // nil if it is external
	conn   *nats.Conn
	bus    *bus.Bus
}

// openBroker starts or reaches the broker and brings its streams up to date.
func openBroker(ctx context.Context, cfg *config.Settings, keyring *secret.Keyring, log *slog.Logger) (*broker, error) {
	b, err := dialBroker(ctx, cfg, keyring, log)
	if err != nil {
		return nil, err
	}
	if err := b.settle(ctx, cfg.NATS.Replicas); err != nil {
		return nil, errors.Join(err, b.close(context.WithoutCancel(ctx)))
	}
	return b, nil
}

// dialBroker starts or reaches the broker and changes nothing there.
func dialBroker(ctx context.Context, cfg *config.Settings, keyring *secret.Keyring, log *slog.Logger) (b *broker, err error) {
	b = &broker{}
	if cfg.NATS.URL == "" {
		err = b.embed(cfg, keyring, log)
	} else {
		err = b.connect(ctx, cfg.NATS, keyring)
	}
	if err == nil {
		b.bus, err = bus.New(b.conn, bus.Config{Replicas: cfg.NATS.Replicas, Embedded: b.server})
	}
	if err != nil {
		return nil, errors.Join(err, b.close(context.WithoutCancel(ctx)))
	}
	return b, nil
}

// settle brings the streams up to date. A cluster needs a while to elect its
// leaders.
func (b *broker) settle(ctx context.Context, replicas int) error {
	patience := 10 * time.Second
	if replicas > 1 {
		patience = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		// Without a leader the servers do not answer at all: a question that was
		// put too early would use up all the patience.
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := b.bus.Reconcile(try)
		cancel()
		if err == nil || replicas == 1 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (b *broker) embed(cfg *config.Settings, keyring *secret.Keyring, log *slog.Logger) error {
	e := cfg.NATS.Embedded
	password, err := keyring.Open("nats.embedded.password", e.Password)
	if err != nil {
		return err
	}
	server := bus.ServerConfig{
		Dir: filepath.Join(cfg.DataDir, "jetstream"), Name: e.Cluster.Server, SyncInterval: time.Duration(e.Sync),
		Listen: e.Listen, MaxStore: int64(e.MaxStore), Logger: log,
	}
	if e.User != "" {
		server.Users = []bus.User{{Name: e.User, Password: password.Reveal()}}
	}
	if e.TLS.CertFile != "" {
		server.TLS = &bus.TLSFiles{Cert: e.TLS.CertFile, Key: e.TLS.KeyFile}
	}
	if e.Cluster.Name != "" {
		server.Cluster = &bus.ClusterConfig{Name: e.Cluster.Name, Listen: e.Cluster.Listen, Routes: e.Cluster.Routes}
	}
	if b.server, err = bus.StartServer(server); err != nil {
		return err
	}
	b.conn, err = b.server.Connect()
	return err
}

func (b *broker) connect(ctx context.Context, n config.NATS, keyring *secret.Keyring) error {
	password, err := keyring.Open("nats.password", n.Password)
	if err != nil {
		return err
	}
	token, err := keyring.Open("nats.token", n.Token)
	if err != nil {
		return err
	}
	if n.TLS.SkipVerify || n.TLS.ServerName != "" {
		return athena.Errorf(athena.CodeInvalidRequest, "nats.tls.server_name and nats.tls.skip_verify are not supported for the bus; use nats.tls.ca_file").At("nats.tls")
	}
	c := bus.ConnectConfig{CredsFile: n.Creds, User: n.User, Password: password.Reveal(), Token: token.Reveal()}
	for url := range strings.SplitSeq(n.URL, ",") {
		c.URLs = append(c.URLs, strings.TrimSpace(url))
	}
	if t := n.TLS; t.CAFile != "" || t.CertFile != "" {
		c.TLS = &bus.TLSFiles{CA: t.CAFile, Cert: t.CertFile, Key: t.KeyFile}
	}
	b.conn, err = bus.Connect(ctx, c)
	return err
}

func (b *broker) mode() string {
	if b.server != nil {
		return "embedded"
	}
	return "external"
}

// sync says how writes are synced; of an external cluster it is not known.
func (b *broker) sync() string {
	if b.server == nil {
		return "as the cluster is configured"
	}
	return config.Sync(b.server.SyncInterval()).String()
}

// healthy reports a stream that an I/O error has frozen. Of an external cluster
// a write that fails is all that shows.
func (b *broker) healthy() error {
	if b.server == nil {
		return nil
	}
	return b.server.Healthy()
}

func (b *broker) close(ctx context.Context) error {
	if b.conn != nil {
		b.conn.Close()
	}
	if b.server == nil {
		return nil
	}
	if err := b.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("stop the broker: %w", err)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func prefixes(list []netip.Prefix) []string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return texts
}
