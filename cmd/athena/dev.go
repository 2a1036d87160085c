package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"crypto/rand"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

func (p *program) devCommand() *cobra.Command {
	var dir, listen, level string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine: server, PostgreSQL, S3, a sample shop",
		Long: `Runs a server with broker and worker inside, a private PostgreSQL with a sample shop
and a client "shop" on it, and a private S3-compatible server with a client "lake",
until it is interrupted; then stops all of it.

PostgreSQL is looked for in ATHENA_PG_BIN, in PATH and in the usual places, and
downloaded if there is none. All data is kept in one directory: a second start finds
what the first one left, and the same admin key.

With --json exactly one line is written when all is ready:
  {"url":…,"admin_key":…,"nats_url":…,"postgres_dsn":…,"s3":{"endpoint":…,
   "region":…,"access_key_id":…,"secret_access_key":…,"bucket":…},"clients":[…]}`,
		Example: `  athena dev
  athena dev --data ./athena-dev --listen 127.0.0.1:4052
  athena dev --json | jq -r .url`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.dev(cmd.Context(), cmp.Or(dir, p.devDir()), listen, level)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "", "directory for everything (default athena-dev in the user's data directory)")
	f.StringVar(&listen, "listen", "", "address of the HTTP API; port 0 is a free one (default 127.0.0.1 with the port of the last start)")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

// devDir is where dev keeps its data unless told otherwise. Root's own data
// directory is closed to the user that PostgreSQL runs as then.
func (p *program) devDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/athena-dev"
	}
	return config.Default(p.getenv).DataDir + "-dev"
}

// A devReport is what dev tells when it is ready.
type devReport struct {
	URL         string   `json:"url"`
	AdminKey    string   `json:"admin_key"`
	NATSURL     string   `json:"nats_url"`
	PostgresDSN string   `json:"postgres_dsn"`
	S3          devStore `json:"s3"`
	Clients     []string `json:"clients"`
}

// dev runs everything until ctx is done.
func (p *program) dev(ctx context.Context, dir, listen, level string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := makeDevDir(dir); err != nil {
		return err
	}
	access, err := loadDevAccess(filepath.Join(dir, accessFile))
	if err != nil {
		return err
	}
	if listen == "" {
		listen = lastAddress(dir)
	}
	cfg := config.Default(p.getenv)
	cfg.DataDir, cfg.Listen, cfg.Log.Level = filepath.Join(dir, "server"), listen, level
	cfg.NATS.Embedded.Listen, cfg.NATS.Embedded.User = "127.0.0.1:0", "dev"
	// Webhooks are tried with a receiver on this machine.
	cfg.Webhooks.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	cfg.NATS.Embedded.Password = athena.NewSecret(access.NATS)
	log, err := telemetry.NewLogger(p.stderr, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return usage{err}
	}
	// The server comes first: it locks the directory, and the PostgreSQL of
	// another dev must not be touched.
	s, err := p.newServer(ctx, cfg, access.AdminKey, log)
	if err != nil {
		return inUse(err, dir)
	}
	pg, err := p.startPostgres(ctx, dir)
	if err != nil {
		s.close()
		return err
	}
	defer stopPostgres(ctx, pg)
	store, err := startLake(ctx, dir, access)
	if err != nil {
		s.close()
		return err
	}
	defer store.stop(ctx)
	// The private PostgreSQL has a new port at each start, so the definition
	// refers to a file that says where it is.
	dsn := filepath.Join(dir, "shop.dsn")
	if err := errors.Join(os.WriteFile(dsn, []byte(pg.DSN(sampleDatabase)), 0o600),
		os.WriteFile(filepath.Join(dir, urlFile), []byte(s.url), 0o600)); err != nil {
		s.close()
		return err
	}
	s.parts = append(s.parts, func(ctx context.Context) error {
		if err := errors.Join(s.keys.Ready(ctx), ensureClient(ctx, s.catalog, dsn), store.ensureClient(ctx, s.catalog)); err != nil {
			return err
		}
		clients, err := s.catalog.List(ctx)
		if err != nil {
			return err
		}
		report := devReport{URL: s.url, AdminKey: access.AdminKey, NATSURL: withUser(s.natsURL, "dev", access.NATS), PostgresDSN: pg.DSN(sampleDatabase), S3: store.store}
		for _, c := range clients {
			report.Clients = append(report.Clients, c.Name)
		}
		return p.devReady(report, dir)
	})
	return s.run(ctx, func() {})
}

// urlFile in dev's directory says where the server listens, or did.
const urlFile = "server.url"

func lastURL(dir string) *url.URL {
	text, err := os.ReadFile(filepath.Join(dir, urlFile))
	if err != nil {
		return nil
	}
	u, err := url.Parse(string(text))
	if err != nil {
		return nil
	}
	return u
}

// lastAddress is loopback with the port of the last start if that is free still,
// so that what people have exported stays valid; else with any free one.
func lastAddress(dir string) string {
	const free = "127.0.0.1:0"
	u := lastURL(dir)
	if u == nil || u.Port() == "" {
		return free
	}
	address := net.JoinHostPort("127.0.0.1", u.Port())
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return free
	}
	ln.Close()
	return address
}

// inUse says where the dev runs that has the directory already.
func inUse(err error, dir string) error {
	if u := lastURL(dir); athena.CodeOf(err) == athena.CodeConflict && u != nil {
		return athena.Wrap(athena.CodeConflict, err, "athena dev runs already over %s, at %s; use that one, or give this one another directory with --data", dir, u)
	}
	return err
}

func (p *program) devReady(r devReport, dir string) error {
	if p.asJSON {
		return writeLine(p.stdout, r)
	}
	b := func(text string) string { return p.paint(p.stdout, bold, text) }
	_, err := fmt.Fprintf(p.stdout, `
%s

  API         %s   (read about it at /docs)
  admin key   %s
  NATS        %s
  PostgreSQL  %s
  S3          %s   (bucket %s, access key %s, secret %s)
  data        %s

Try, in another terminal:

  export ATHENA_URL=%s
  export ATHENA_KEY=%s
  %s query --client shop 'select status, count(*) from orders group by status'
  %s query --client shop --defer --wait 10s 'select * from order_totals order by total desc limit 5'
  %s cdc enable --client shop --tables public.orders,public.order_items
  %s cdc tail --client shop
  %s object put --client lake hello.txt ./README.md
  %s object ls --client lake

Ctrl-C stops everything.
`, b("Athena is ready."), r.URL, r.AdminKey, r.NATSURL, r.PostgresDSN,
		r.S3.Endpoint, r.S3.Bucket, r.S3.AccessKeyID, r.S3.SecretAccessKey, dir, r.URL, r.AdminKey,
		invocation(), invocation(), invocation(), invocation(), invocation(), invocation())
	return err
}

func (p *program) startPostgres(ctx context.Context, dir string) (*localpg.Server, error) {
	log, err := os.OpenFile(filepath.Join(dir, "postgres.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	pg, err := localpg.Start(ctx, localpg.Config{
		Dir: filepath.Join(dir, "postgres"), Log: log, Download: true,
		Progress: func(step string) { fmt.Fprintln(p.stderr, p.paint(p.stderr, dim, step)) },
	})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := ensureShop(ctx, pg); err != nil {
		stopPostgres(ctx, pg)
		return nil, err
	}
	return pg, nil
}

func stopPostgres(ctx context.Context, pg *localpg.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	_ = pg.Stop(ctx, localpg.Fast) // one that does not stop is killed
}

// ensureClient makes the client shop if it is not there. One that is there may
// have been changed on purpose.
func ensureClient(ctx context.Context, clients *catalog.Catalog, dsnFile string) error {
	_, err := clients.Put(ctx, shopClient(dsnFile), catalog.Absent)
	if athena.CodeOf(err) == athena.CodeConflict {
		return nil
	}
	return err
}

func shopClient(dsnFile string) *athena.Client {
	return &athena.Client{
		Name: "shop", Lifecycle: athena.Active,
		Capabilities: athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.SchemaRead, athena.MigrationsRead, athena.DeferredQuery, athena.CDC,
			athena.PipelineSource, athena.PipelineSink),
		Connection: athena.PostgresConn{DSN: athena.NewSecret("file:" + dsnFile)},
		Metadata:   map[string]any{"about": "the sample shop of athena dev"},
	}
}

// makeDevDir makes the directory. PostgreSQL's own user must get through it
// where this process is root.
func makeDevDir(dir string) error {
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// devAccess is what lets people and workers in; it outlives a restart.
type devAccess struct {
	AdminKey          string `json:"admin_key"`
	NATS              string `json:"nats_password"`
	S3AccessKeyID     string `json:"s3_access_key_id"`
	S3SecretAccessKey string `json:"s3_secret_access_key"`
}

// loadDevAccess reads what an earlier dev left, and makes what is missing: all of
// it the first time, and what dev did not have then.
func loadDevAccess(path string) (a devAccess, err error) {
	text, err := readPrivate(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return a, err
	default:
		if err := json.Unmarshal(text, &a); err != nil {
			return a, fmt.Errorf("%s: %w", path, err)
		}
	}
	had := a
	a.AdminKey = cmp.Or(a.AdminKey, auth.NewKey().Reveal())
	a.NATS = cmp.Or(a.NATS, rand.Text())
	a.S3AccessKeyID = cmp.Or(a.S3AccessKeyID, "dev"+rand.Text()[:17])
	a.S3SecretAccessKey = cmp.Or(a.S3SecretAccessKey, rand.Text()+rand.Text()[:14])
	if a == had {
		return a, nil
	}
	if text, err = json.Marshal(a); err != nil {
		return a, err
	}
	return a, os.WriteFile(path, text, 0o600)
}

// withUser puts credentials into a URL.
func withUser(text, user, password string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}
