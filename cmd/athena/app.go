package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/admin"
	"github.com/athena-pipelines/athena/api/cdc"
	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/schema"
	"github.com/athena-pipelines/athena/api/storage"
	"github.com/athena-pipelines/athena/api/system"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/ops"
	"github.com/athena-pipelines/athena/pkg/remote"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
	"github.com/athena-pipelines/athena/workers/capture"
	worker "github.com/athena-pipelines/athena/workers/deferred"
	"github.com/athena-pipelines/athena/workers/deliver"
)

// drivers are the engines that this build can open. This is the one place that
// names them.
func drivers() map[athena.Engine]driver.Driver {
	return map[athena.Engine]driver.Driver{
		athena.EnginePostgres: driver.New(postgres.Open),
		athena.EngineScylla:   driver.New(scylla.Open),
		athena.EngineS3:       driver.New(s3.Open),
	}
}

// engines lists what drivers has, in the order of the domain.
func engines() []athena.Engine {
	all := drivers()
	return slices.DeleteFunc(athena.Engines(), func(e athena.Engine) bool { _, ok := all[e]; return !ok })
}

// app is one process: its connection to the bus and all that stands on it. What
// a process does with them is a matter of its parts: the API, workers.
type app struct {
	cfg        *config.Settings
	log        *slog.Logger
	metrics    *telemetry.Metrics
	tracing    *telemetry.Tracing
	keyring    *secret.Keyring
	broker     *broker
	drivers    map[athena.Engine]driver.Driver
	catalog    *catalog.Catalog
	keys       *auth.Keys
	resolver   *resolver.Resolver
	recorder   *ops.Recorder
	observer   *ops.Observer
	dispatcher *dispatch.Dispatcher
	store      *deferred.Store
	changes    *changefeed.Store
	feeds      *changefeed.Feeds
	runs       *runs.Store
}

// newApp connects to the bus, makes sure of its streams, and wires the rest
// together. Close must be called in the end.
func newApp(ctx context.Context, cfg *config.Settings, getenv func(string) string, log *slog.Logger) (_ *app, err error) {
	a := &app{cfg: cfg, log: log, metrics: telemetry.NewMetrics(buildInfo().Version), drivers: drivers()}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if a.tracing, err = telemetry.NewTracing(ctx, telemetry.TraceConfig{Endpoint: cfg.OTLP.Endpoint, Service: "athena", Version: buildInfo().Version}); err != nil {
		return nil, err
	}
	if a.keyring, err = secret.LoadOrCreate(cfg.DataDir, getenv); err != nil {
		return nil, err
	}
	if a.broker, err = openBroker(ctx, cfg, a.keyring, log); err != nil {
		return nil, err
	}
	b := a.broker.bus
	definitions, err := b.JetStream().KeyValue(ctx, bus.BucketCatalog)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bus.BucketCatalog, err)
	}
	keys, err := b.JetStream().KeyValue(ctx, bus.BucketKeys)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bus.BucketKeys, err)
	}
	a.catalog = catalog.New(definitions, catalog.Config{Keyring: a.keyring, Supports: a.supports, Logger: log})
	a.keys = auth.NewKeys(keys, log)
	a.resolver = resolver.New(a.catalog, a.drivers, resolver.Config{Open: a.keyring.Open, Logger: log})
	a.recorder = ops.NewRecorder(b, a.metrics, log)
	a.observer = ops.NewObserver(a.metrics, log, a.recorder)
	a.dispatcher = &dispatch.Dispatcher{Resolver: a.resolver, Observer: a.observer}
	if a.store, err = deferred.NewStore(b); err != nil {
		return nil, err
	}
	if a.changes, err = changefeed.NewStore(ctx, b, log); err != nil {
		return nil, err
	}
	a.feeds = changefeed.NewFeeds(a.changes, log)
	if a.runs, err = runs.NewStore(ctx, b, log); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *app) supports(e athena.Engine) athena.Capabilities { return a.drivers[e].Supports }

// close gives back what newApp has taken, in the reverse order.
func (a *app) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var errs []error
	if a.resolver != nil {
		errs = append(errs, a.resolver.Close(ctx))
	}
	if a.broker != nil {
		errs = append(errs, a.broker.close(ctx))
	}
	errs = append(errs, a.tracing.Shutdown(ctx))
	if err := errors.Join(errs...); err != nil {
		a.log.Warn("not everything was closed well", telemetry.KeyError, err)
	}
}

// run runs the parts until ctx is done, and what they stand on for as long as
// they need it. The first error of a part ends all.
func (a *app) run(ctx context.Context, parts ...func(context.Context) error) error {
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	base, below := errgroup.WithContext(below)
	front, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{a.catalog.Run, a.keys.Run, a.recorder.Run, a.changes.Run, a.feeds.Run, a.runs.Run} {
		base.Go(func() error { return part(below) })
	}
	front.Go(func() error { // the parts end when what they stand on does
		select {
		case <-below.Done():
			return context.Cause(below)
		case <-ctx.Done():
			return nil
		}
	})
	for _, part := range parts {
		front.Go(func() error {
			err := part(ctx)
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				return nil // told to stop before it had begun
			}
			return err
		})
	}
	err := front.Wait()
	stop()
	return errors.Join(err, base.Wait())
}

// hooks has what webhooks are signed with: a secret for each key.
type hooks struct{ keyring *secret.Keyring }

func (h hooks) Secret(key string) []byte { return webhook.Derive(h.keyring.Derive("webhook", ""), key) }

func (a *app) guard() *webhook.Guard { return &webhook.Guard{Allow: a.cfg.Webhooks.AllowPrivate} }

// worker is the part that runs deferred queries, delivers webhooks, captures
// changes, and runs pipelines.
func (a *app) worker() func(context.Context) error {
	id := cmp.Or(a.cfg.Worker.ID, defaultWorkerID())
	log := a.log.With(telemetry.KeyWorker, id)
	jobs := worker.New(worker.Config{
		ID: id, Bus: a.broker.bus, Store: a.store, Dispatcher: a.dispatcher,
		Catalog: a.catalog, Leases: bus.NewLeases(a.broker.bus, bus.BucketLeases),
		Log: a.log, Observer: jobMetrics{a.metrics}, Serves: a.serves(),
		Concurrency: a.cfg.Worker.Concurrency,
		Sizes:       deferred.ResultSizes{Inline: int(a.cfg.Deferred.InlineBytes), Segment: int(a.cfg.Deferred.SegmentBytes)},
		Grace:       a.cfg.Limits.ShutdownTimeout.Std() / 2,
	})
	deliveries := &deliver.Worker{
		Bus: a.broker.bus, Jobs: summaries{a.store}, Secrets: hooks{a.keyring}, Guard: a.guard(), Log: log,
		Observe: func(o deliver.Outcome) { a.metrics.WebhookTried(string(o.Result)) },
		Config:  deliver.Config{Grace: a.cfg.Limits.ShutdownTimeout.Std() / 2},
	}
	subscriptions := a.subscriptions(id)
	captures := capture.New(capture.Config{
		ID: id, Bus: a.broker.bus, Store: a.changes, Dispatcher: a.dispatcher, Catalog: a.catalog,
		Leases: bus.NewLeases(a.broker.bus, bus.BucketLeases), Log: a.log, Serves: a.serves(),
		SpillDir: filepath.Join(a.cfg.DataDir, "spill"), SpillMost: int64(a.cfg.CDC.SpillMax), SpillMemory: int64(a.cfg.CDC.SpillMemory),
		Tracing: a.tracing,
	})
	pipelines := a.pipelines(id)
	return func(ctx context.Context) error {
		if err := errors.Join(a.catalog.Ready(ctx), a.keys.Ready(ctx)); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return jobs.Run(ctx) })
		g.Go(func() error { return deliveries.Run(ctx) })
		g.Go(func() error { return subscriptions.Run(ctx) })
		g.Go(func() error { return captures.Run(ctx) })
		g.Go(func() error { return pipelines.Run(ctx) })
		return g.Wait()
	}
}

// serves reports whether this process's worker may run a client's jobs, by its
// settings, and can: it has the driver and the secrets. That secrets were there
// is remembered for each revision, since to open a sealed one takes a while.
func (a *app) serves() func(*athena.Client) bool {
	only := a.cfg.Worker
	var had sync.Map // by name, the revision
	return func(c *athena.Client) bool {
		switch _, known := a.drivers[c.Engine()]; {
		case !known,
			len(only.Clients) > 0 && !slices.Contains(only.Clients, c.Name),
			len(only.Engines) > 0 && !slices.Contains(only.Engines, string(c.Engine())):
			return false
		}
		if rev, ok := had.Load(c.Name); ok && rev == c.Revision {
			return true
		}
		_, err := c.Connection.MapSecrets(a.keyring.Open)
		if err == nil {
			had.Store(c.Name, c.Revision)
		}
		return err == nil
	}
}

// defaultWorkerID is the host and the process.
func defaultWorkerID() string {
	host, _ := os.Hostname()
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, host)
	return fmt.Sprintf("%.48s-%d", cmp.Or(clean, "worker"), os.Getpid())
}

// handler is the API.
func (a *app) handler() (http.Handler, error) {
	verify := middleware.Verifier(a.keys)
	if a.cfg.Auth == "off" {
		verify = middleware.Open()
	}
	host, _, _ := net.SplitHostPort(a.cfg.Listen)
	rates := middleware.Rates{PerKey: a.cfg.Limits.RequestsPerSecond}
	weak, err := a.weaknesses()
	if err != nil {
		return nil, err
	}
	a.metrics.Captures(a.captureFigures)
	about := buildInfo()
	public, err := system.New(system.Config{
		Version:    system.Version{Version: about.Version, Commit: about.Commit, Built: about.Built},
		Bus:        system.Bus{Mode: a.broker.mode(), Sync: a.broker.sync(), Replicas: a.cfg.NATS.Replicas},
		Weaknesses: weak, Prober: system.ProberFunc(a.ready),
		Metrics: a.metrics.Handler(), MetricsOpen: isLoopback(host), Keys: verify, Rates: rates,
	})
	if err != nil {
		return nil, err
	}
	// The limit of requests is the API's; jobs have limits of their own.
	road := &dispatch.Dispatcher{Resolver: a.resolver, Observer: a.observer, Admit: middleware.NewClients(0).Admit}
	d := a.cfg.Deferred
	return api.New(api.Config{
		Public: []api.Family{public},
		Families: []api.Family{
			gateway.New(gateway.Config{
				Dispatcher: road, Drivers: a.drivers, Jobs: a.store, Cursors: a.keyring, Webhooks: a.guard(),
				SyncTimeout: a.cfg.Limits.SyncTimeout.Std(),
				Remote:      forwarding{&remote.Caller{Conn: a.broker.conn}},
				Bounds:      deferred.Bounds{Deadline: d.DefaultDeadline.Std(), MaxDeadline: d.MaxDeadline.Std(), ResultTTL: d.ResultTTL.Std()},
			}),
			schema.New(road),
			storage.New(storage.Config{Dispatcher: road, Cursors: a.keyring}),
			cdc.New(cdc.Config{
				Dispatcher: road, Store: a.changes, Feeds: a.feeds, Verify: verify, Clients: a.catalog, Keys: a.keys,
				Runs: a.runs, Audit: ops.NewAudit(a.broker.bus, a.log), Webhooks: a.guard(),
			}),
			a.pipelineRoutes(a.runs, road, verify),
			admin.New(admin.Config{
				Dispatcher: road, Clients: a.catalog, Keys: a.keys, Audit: ops.NewAudit(a.broker.bus, a.log),
				Dead: admin.NewDeadLetters(a.broker.bus), Cursors: a.keyring,
				InUse:         a.inUse,
				WebhookSecret: func(key string) string { return webhook.EncodeSecret(hooks{a.keyring}.Secret(key)) },
			}),
		},
		Keys: verify, Rates: rates,
		Bounds:         middleware.Bounds{MaxBody: int64(a.cfg.Limits.BodyBytes)},
		TrustedProxies: prefixes(a.cfg.TrustedProxies),
		Tracing:        a.tracing,
		Log:            a.log,
	})
}

// server is the part that answers HTTP on ln.
func (a *app) server(ln net.Listener) (func(context.Context) error, error) {
	h, err := a.handler()
	if err != nil {
		return nil, err
	}
	s := &api.Server{
		Handler: h, ReadHeaderTimeout: a.cfg.Limits.HeaderTimeout.Std(),
		Grace: a.cfg.Limits.ShutdownTimeout.Std(), Log: a.log,
	}
	if t := a.cfg.TLS; t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	}
	return func(ctx context.Context) error { return s.Run(ctx, ln) }, nil
}

// ready makes the checks of /ready.
func (a *app) ready(ctx context.Context) []system.Check {
	check := func(name string, err error) system.Check {
		if err == nil {
			return system.Check{Name: name, OK: true}
		}
		return system.Check{Name: name, Detail: athena.AsError(err).Message}
	}
	behind := func(current bool, what string) error {
		if current {
			return nil
		}
		return athena.Errorf(athena.CodeBusUnavailable, "this process's copy of the %s is not up to date", what)
	}
	return []system.Check{
		check("bus", a.broker.bus.Probe(ctx)),
		check("streams", a.broker.healthy()),
		check("catalog", behind(a.catalog.Current(), "client definitions")),
		check("keys", behind(a.keys.Current(), "keys")),
	}
}

// weaknesses are the settings that weaken what Athena promises.
func (a *app) weaknesses() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var weak []string
	if a.cfg.Auth == "off" {
		weak = append(weak, "auth is off: everybody on this machine may do everything")
	}
	findings, err := a.broker.bus.Check(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		if f.Weak {
			weak = append(weak, f.String())
		}
	}
	for _, w := range weak {
		a.log.Warn("a promise is weakened by a setting", "weakness", w)
	}
	return weak, nil
}

// definitions is the part that applies clients_dir, at start and when its files
// change.
func (a *app) definitions() func(context.Context) error {
	return func(ctx context.Context) error {
		dir := a.cfg.ClientsDir
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for last := ""; ; {
			if now := fingerprint(dir); now != last {
				last = now
				a.apply(ctx, dir)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

func (a *app) apply(ctx context.Context, dir string) {
	defs, err := catalog.LoadDir(dir)
	if err != nil {
		a.log.Error("the client definitions cannot be read; nothing was applied", "dir", dir, telemetry.KeyError, err)
		return
	}
	reports, err := a.catalog.Apply(ctx, defs)
	for _, r := range reports {
		if r.Verdict != catalog.Unchanged {
			a.log.Info("client definition applied", telemetry.KeyClient, r.Name, "verdict", string(r.Verdict), "revision", r.Revision)
		}
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error("a client definition was not applied", "dir", dir, telemetry.KeyError, err)
	}
}

// fingerprint changes when the files of a directory do.
func fingerprint(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", e.Name(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}
