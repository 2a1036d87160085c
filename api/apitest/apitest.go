// Package apitest serves the whole API to a test: real sockets, a real embedded
// bus, real keys and definitions, and the engine in memory behind them. Each
// exchange is held to the API's description.
package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/admin"
	"github.com/athena-pipelines/athena/api/cdc"
	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/api/pipelines"
	"github.com/athena-pipelines/athena/api/schema"
	"github.com/athena-pipelines/athena/api/storage"
	"github.com/athena-pipelines/athena/api/system"
	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/ops"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// World is a served API and what is behind it.
type World struct {
	URL string
	// Admin is a key with every right.
	Admin      string
	HTTP       *http.Client
	DB         *memory.DB
	Bus        *bus.Bus
	Catalog    *catalog.Catalog
	Keys       *auth.Keys
	Dispatcher *dispatch.Dispatcher
	Changes    *changefeed.Store
	Feeds      *changefeed.Feeds
	Source     *Source
	Runs       *runs.Store
	Plans      *plan.Planner
	Engine     *gin.Engine
	// Opens counts how often a backend was asked for, reached or not.
	Opens atomic.Int64
	Log   *Buffer
}

// Start serves the API until the test ends. change may alter the router's
// configuration; it may be nil.
func Start(t testing.TB, change func(*World, *api.Config)) *World {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	w := &World{DB: memory.New(), Bus: bustest.Start(t), Source: &Source{}, Log: &Buffer{}}
	t.Cleanup(func() { cancel(); running.Wait() })
	run := func(f func(context.Context) error) {
		running.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("apitest: %v", err)
			}
		})
	}
	log := slog.New(slog.NewTextHandler(w.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))

	identity, err := age.GenerateX25519Identity()
	check(t, err)
	keyring, err := secret.Parse(identity.String(), func(string) string { return "" })
	check(t, err)
	drivers := map[athena.Engine]driver.Driver{athena.EnginePostgres: w.driver(), athena.EngineS3: w.counted(s3.Driver())}
	kv, err := w.Bus.JetStream().KeyValue(ctx, bus.BucketCatalog)
	check(t, err)
	w.Catalog = catalog.New(kv, catalog.Config{Keyring: keyring, Supports: func(e athena.Engine) athena.Capabilities { return drivers[e].Supports }, Logger: log})
	run(w.Catalog.Run)
	kv, err = w.Bus.JetStream().KeyValue(ctx, bus.BucketKeys)
	check(t, err)
	w.Keys = auth.NewKeys(kv, log)
	run(w.Keys.Run)
	w.Admin, err = w.Keys.Bootstrap(ctx, "")
	check(t, err)

	metrics := telemetry.NewMetrics("test")
	recorder := ops.NewRecorder(w.Bus, metrics, log)
	run(recorder.Run)
	backends := resolver.New(w.Catalog, drivers, resolver.Config{Open: keyring.Open, Logger: log})
	t.Cleanup(func() { _ = backends.Close(context.Background()) })
	w.Dispatcher = &dispatch.Dispatcher{
		Resolver: backends, Observer: ops.NewObserver(metrics, log, recorder), Admit: middleware.NewClients(0).Admit,
	}
	jobs, err := deferred.NewStore(w.Bus)
	check(t, err)
	w.Changes, err = changefeed.NewStore(ctx, w.Bus, log)
	check(t, err)
	run(w.Changes.Run)
	w.Feeds = changefeed.NewFeeds(w.Changes, log)
	run(w.Feeds.Run)
	w.Runs, err = runs.NewStore(ctx, w.Bus, log)
	check(t, err)
	run(w.Runs.Run)
	w.Plans = &plan.Planner{
		Dispatcher: w.Dispatcher, Drivers: drivers, Captures: w.Changes, Feeds: w.Feeds, Jobs: jobs,
		Others: pipelines.Stored(w.Runs),
		Clients: func(ctx context.Context) (names []string) {
			clients, err := w.Catalog.List(ctx)
			check(t, err)
			for _, c := range clients {
				names = append(names, c.Name)
			}
			return names
		},
	}
	about, err := system.New(system.Config{
		Version: system.Version{Version: "test"}, Bus: system.Bus{Mode: "embedded", Sync: "always", Replicas: 1},
		Prober: system.ProberFunc(func(ctx context.Context) []system.Check {
			err := w.Bus.Probe(ctx)
			return []system.Check{{Name: "bus", OK: err == nil, Detail: detail(err)}}
		}),
		Metrics: metrics.Handler(), Keys: w.Keys,
	})
	check(t, err)
	cfg := api.Config{
		Public: []api.Family{about},
		Families: []api.Family{
			gateway.New(gateway.Config{Dispatcher: w.Dispatcher, Drivers: drivers, Jobs: jobs, Cursors: keyring}),
			schema.New(w.Dispatcher),
			storage.New(storage.Config{Dispatcher: w.Dispatcher, Cursors: keyring}),
			cdc.New(w.CDC()),
			pipelines.New(w.Pipelines()),
			admin.New(admin.Config{
				Dispatcher: w.Dispatcher, Clients: w.Catalog, Keys: w.Keys, Audit: ops.NewAudit(w.Bus, log),
				Dead: admin.NewDeadLetters(w.Bus), Cursors: keyring,
				WebhookSecret: func(id string) string {
					return webhook.EncodeSecret(webhook.Derive(keyring.Derive("webhook", ""), id))
				},
			}),
		},
		Keys: w.Keys, Log: log,
		Rates: middleware.Rates{Strangers: 1e6},
	}
	if change != nil {
		change(w, &cfg)
	}
	w.Engine, err = api.New(cfg)
	check(t, err)
	srv := httptest.NewServer(w.Engine)
	t.Cleanup(srv.Close)
	w.URL, w.HTTP = srv.URL, openapitest.Client(t, srv.Client().Transport)
	return w
}

// CDC is the configuration of the family of changes.
func (w *World) CDC() cdc.Config {
	return cdc.Config{
		Dispatcher: w.Dispatcher, Store: w.Changes, Feeds: w.Feeds, Verify: w.Keys, Clients: w.Catalog, Keys: w.Keys,
		Runs: w.Runs, Audit: ops.NewAudit(w.Bus, slog.New(slog.DiscardHandler)),
	}
}

// Pipelines is the configuration of the family of pipelines.
func (w *World) Pipelines() pipelines.Config {
	return pipelines.Config{
		Dispatcher: w.Dispatcher, Store: w.Runs, Plans: w.Plans, Verify: w.Keys, Keys: w.Keys,
		Audit: ops.NewAudit(w.Bus, slog.New(slog.DiscardHandler)),
	}
}

func (w *World) driver() driver.Driver {
	d := memory.Driver(w.DB)
	// Pipelines are asked for here, and run nowhere.
	d.Supports = driver.Supports(&changing{}) | athena.Allow(athena.PipelineSource, athena.PipelineSink)
	d.Open = func(ctx context.Context, _ athena.Connection) (driver.Backend, error) {
		w.Opens.Add(1)
		b, err := w.DB.Open(ctx)
		if err != nil {
			return nil, err
		}
		return &changing{b, w.Source}, nil
	}
	return d
}

// counted counts in Opens.
func (w *World) counted(d driver.Driver) driver.Driver {
	open := d.Open
	d.Open = func(ctx context.Context, conn athena.Connection) (driver.Backend, error) {
		w.Opens.Add(1)
		return open(ctx, conn)
	}
	return d
}

func detail(err error) string {
	if err == nil {
		return ""
	}
	return athena.AsError(err).Message
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("apitest: %v", err)
	}
}

// Key makes a key with rights such as "query" or "schema:read", bound to the
// clients, if any.
func (w *World) Key(t testing.TB, rights []string, clients ...string) string {
	t.Helper()
	spec := auth.NewKeySpec{Name: "test key", Clients: clients}
	for _, r := range rights {
		g, err := auth.ParseGrant(r)
		check(t, err)
		spec.Grants = append(spec.Grants, g)
	}
	plain, _, err := w.Keys.Create(t.Context(), spec)
	check(t, err)
	return plain
}

// Client stores a definition with everything granted that the engine can do,
// after change.
func (w *World) Client(t testing.TB, name string, change func(*athena.Client)) *athena.Client {
	t.Helper()
	def := &athena.Client{
		Name: name, Lifecycle: athena.Active, Capabilities: w.driver().Supports,
		Connection: athena.PostgresConn{DSN: athena.NewSecret("postgres://user:" + Password + "@db.invalid/" + name)},
	}
	if change != nil {
		change(def)
	}
	stored, err := w.Catalog.Put(t.Context(), def, catalog.Any)
	check(t, err)
	return stored
}

// Lake stores a definition of a client on a bucket, with everything granted that
// its engine can do, after change.
func (w *World) Lake(t testing.TB, name string, conn athena.S3Conn, change func(*athena.Client)) *athena.Client {
	t.Helper()
	return w.Client(t, name, func(def *athena.Client) {
		def.Connection, def.Capabilities = conn, s3.Driver().Supports
		if change != nil {
			change(def)
		}
	})
}

// Password stands in the DSN of each client, and must be seen nowhere.
const Password = "s3cr3t-pa55word"

// Run runs a statement in the engine.
func (w *World) Run(t testing.TB, text string) {
	t.Helper()
	b, err := w.DB.Open(t.Context())
	check(t, err)
	defer func() { _ = b.Close(context.Background()) }()
	r, err := b.Query(t.Context(), driver.Statement{Text: text})
	check(t, err)
	for r.Next() {
	}
	check(t, r.Close())
}

// An Answer is an answer of the API.
type Answer struct {
	Code   int
	Header http.Header
	Raw    []byte

	Status    string          `json:"status"`
	Message   string          `json:"message"`
	Error     string          `json:"error"`
	Kind      athena.Code     `json:"code"`
	Retryable bool            `json:"retryable"`
	Details   map[string]any  `json:"details"`
	Data      json.RawMessage `json:"data"`
	RequestID string          `json:"request_id"`
	Meta      struct {
		Client     string `json:"client"`
		Engine     string `json:"engine"`
		NextCursor string `json:"next_cursor"`
	} `json:"meta"`
}

// Decode reads the data into v.
func (a *Answer) Decode(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.Data, v); err != nil {
		t.Fatalf("the data does not decode: %v: %s", err, a.Raw)
	}
}

// Want fails the test if the status is another one.
func (a *Answer) Want(t testing.TB, status int, code athena.Code) *Answer {
	t.Helper()
	if a.Code != status || a.Kind != code {
		t.Fatalf("got %d %q, want %d %q: %s", a.Code, a.Kind, status, code, a.Raw)
	}
	return a
}

// Do makes a request. Headers are "Name: value". It fails the test on an
// answer that is said to be JSON and is not.
func (w *World) Do(t testing.TB, key, method, path, body string, headers ...string) *Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, w.URL+path, strings.NewReader(body))
	check(t, err)
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Content-Type" {
			req.Header.Del(name)
		}
		req.Header.Add(name, value)
	}
	resp, err := w.HTTP.Do(req)
	check(t, err)
	defer resp.Body.Close()
	a := &Answer{Code: resp.StatusCode, Header: resp.Header}
	a.Raw, err = io.ReadAll(resp.Body)
	check(t, err)
	if len(a.Raw) > 0 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(a.Raw, a); err != nil {
			t.Fatalf("%s %s: the answer is not JSON: %v: %s", method, path, err, a.Raw)
		}
	}
	return a
}

// Buffer is a log that can be read while it is written.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
