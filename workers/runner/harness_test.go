package runner_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
	"github.com/athena-pipelines/athena/workers/capture"
	"github.com/athena-pipelines/athena/workers/runner"
)

func TestMain(m *testing.M) { os.Exit(s3test.Run(postgreses{cassandras{m}})) }

// postgreses runs the tests with PostgreSQL.
type postgreses struct{ m interface{ Run() int } }

func (p postgreses) Run() int { return pgtest.Run(p.m) }

// cassandras runs the tests with Cassandra, where that is switched on.
type cassandras struct{ m *testing.M }

func (c cassandras) Run() int { return cassandratest.Run(c.m) }

// A deployment is a bus, a catalog with the clients shop, copy and lake, and what
// they stand for.
type deployment struct {
	t       *testing.T
	bus     *bus.Bus
	catalog *catalog.Catalog
	store   *runs.Store
	changes *changefeed.Store
	config  runner.Config
	shop    *pgx.Conn
	copy    *pgx.Conn
	s3      athena.S3Conn
	lake    *s3.Backend
	log     *lockedBuffer
	keys    *keys
}

type ignored struct{}

func (ignored) Observe(context.Context, dispatch.Outcome) {}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// keys has one key, which may be revoked.
type keys struct {
	mu      sync.Mutex
	revoked bool
	told    []func(string)
}

func (k *keys) Principal(context.Context, string) (*auth.Principal, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.revoked {
		return nil, athena.Errorf(athena.CodeUnauthenticated, "the key is revoked")
	}
	return &auth.Principal{Key: "key", Grants: []auth.Grant{{Right: auth.Pipelines}}}, nil
}

func (k *keys) Subscribe(fn func(string)) func() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, fn)
	return func() {}
}

func (k *keys) revoke() {
	k.mu.Lock()
	k.revoked = true
	told := k.told
	k.mu.Unlock()
	for _, fn := range told {
		fn("key")
	}
}

func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, bus: bustest.Start(t), log: &lockedBuffer{}, keys: &keys{}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	keyring, err := secret.Parse(id.String(), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	kv, err := d.bus.JetStream().KeyValue(ctx, bus.BucketCatalog)
	if err != nil {
		t.Fatal(err)
	}
	drivers := map[athena.Engine]driver.Driver{athena.EnginePostgres: driver.New(postgres.Open), athena.EngineS3: driver.New(s3.Open), athena.EngineScylla: scylla.Driver()}
	log := slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d.catalog = catalog.New(kv, catalog.Config{Keyring: keyring, Supports: func(e athena.Engine) athena.Capabilities { return drivers[e].Supports }})
	if d.changes, err = changefeed.NewStore(ctx, d.bus, log); err != nil {
		t.Fatal(err)
	}
	if d.store, err = runs.NewStore(ctx, d.bus, log); err != nil {
		t.Fatal(err)
	}
	jobs, err := deferred.NewStore(d.bus)
	if err != nil {
		t.Fatal(err)
	}
	feeds := changefeed.NewFeeds(d.changes, log)
	go d.catalog.Run(ctx)
	go d.changes.Run(ctx)
	go d.store.Run(ctx)
	go feeds.Run(ctx)
	r := resolver.New(d.catalog, drivers, resolver.Config{Open: keyring.Open})
	t.Cleanup(func() { r.Close(context.Background()) })
	for name, conn := range map[string]**pgx.Conn{"shop": &d.shop, "copy": &d.copy} {
		dsn := pgtest.DSN(t)
		if *conn, err = pgx.Connect(ctx, dsn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*conn).Close(context.Background()) })
		if _, err := d.catalog.Put(ctx, &athena.Client{
			Name: name, Lifecycle: athena.Active,
			Capabilities: athena.Allow(athena.GatewayQuery, athena.CDC, athena.PipelineSource, athena.PipelineSink),
			Connection:   athena.PostgresConn{DSN: athena.NewSecret(dsn)},
		}, catalog.Absent); err != nil {
			t.Fatal(err)
		}
	}
	d.s3 = s3test.Bucket(t)
	if _, err := d.catalog.Put(ctx, &athena.Client{
		Name: "lake", Lifecycle: athena.Active, Connection: d.s3,
		Capabilities: athena.Allow(athena.ObjectRead, athena.ObjectWrite, athena.PipelineSource, athena.PipelineSink),
	}, catalog.Absent); err != nil {
		t.Fatal(err)
	}
	if d.lake, err = s3.Open(ctx, d.s3); err != nil {
		t.Fatal(err)
	}
	d.config = runner.Config{
		ID: "one", Store: d.store, Dispatcher: &dispatch.Dispatcher{Resolver: r, Observer: ignored{}},
		Catalog: d.catalog, Keys: d.keys, Leases: bus.NewLeases(d.bus, bus.BucketLeases), Log: log,
		Changes: d.changes, Feeds: feeds, Jobs: jobs, Drivers: drivers,
		Serves: func(*athena.Client) bool { return true },
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", d.log)
		}
	})
	return d
}

func exec(t *testing.T, db *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// one reads one value.
func one[T any](t *testing.T, db *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// work runs a worker until the returned function is called.
func (d *deployment) work(id string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	cfg := d.config
	cfg.ID = id
	go func() {
		defer close(done)
		if err := runner.New(cfg).Run(ctx); err != nil {
			d.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	d.t.Cleanup(stop)
	return stop
}

// capture captures tables of shop.
func (d *deployment) capture(tables ...string) {
	d.t.Helper()
	c := changefeed.Capture{Client: "shop", Slot: fmt.Sprintf("athena_runner_%d", time.Now().UnixNano())}
	for _, t := range tables {
		c.Tables = append(c.Tables, driver.TableName{Schema: "public", Table: t})
	}
	d.t.Cleanup(func() {
		for range 100 {
			if _, err := d.shop.Exec(context.Background(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", c.Slot); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	d.follow(c)
}

// follow has a worker do a capture, and waits until it streams.
func (d *deployment) follow(c changefeed.Capture) {
	d.t.Helper()
	c.ID, c.CreatedAt = fmt.Sprint(time.Now().UnixNano()), time.Now()
	if _, err := d.changes.PutCapture(d.t.Context(), c.WithDefaults()); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := capture.New(capture.Config{
			ID: "capture", Bus: d.bus, Store: d.changes, Dispatcher: d.config.Dispatcher, Catalog: d.catalog,
			Leases: d.config.Leases, Log: d.config.Log, Serves: d.config.Serves, SpillDir: d.t.TempDir(),
		})
		if err := w.Run(ctx); err != nil {
			d.t.Error(err)
		}
	}()
	d.t.Cleanup(func() {
		cancel()
		<-done
	})
	await(d.t, "the capture", func() string {
		st, _ := d.changes.Status(c.Client)
		if st.State == changefeed.Streaming {
			return ""
		}
		raw, _ := json.Marshal(st)
		return string(raw)
	})
}

// submit makes a run of a definition.
func (d *deployment) submit(kind runs.Kind, yaml string) runs.Run {
	d.t.Helper()
	p, err := spec.Decode([]byte(yaml))
	if err != nil {
		d.t.Fatal(err)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		d.t.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7()).String()
	r := runs.Run{
		ID: id, Pipeline: p.Name, PipelineID: id, Kind: kind, Spec: raw, Trigger: "api", Key: "key",
		Source: p.Source.Client, Sink: p.Sink.Client, Want: runs.WantRun, State: runs.Queued, CreatedAt: time.Now(), Parallel: cmp.Or(p.Parallel, 2),
	}
	if r, err = d.store.Put(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
	return r
}

// await waits until what is asked returns nothing.
func await(t *testing.T, what string, ask func() string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		missing := ask()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s did not come: %s", what, missing)
		}
	}
}

// state waits until the run is in a state.
func (d *deployment) state(id string, want runs.State) (r runs.Run) {
	d.t.Helper()
	await(d.t, "the state "+string(want), func() string {
		var ok bool
		if r, ok = d.store.Load(id); ok && r.State == want {
			return ""
		}
		raw, _ := json.Marshal(r)
		return string(raw)
	})
	return r
}

// want says what is wanted of a run.
func (d *deployment) want(id string, w runs.Want) {
	d.t.Helper()
	d.change(id, func(r *runs.Run) { r.Want = w })
}

// resume has a run go on that was paused or has failed, as the API does.
func (d *deployment) resume(id string) {
	d.t.Helper()
	d.change(id, func(r *runs.Run) { r.Want, r.State, r.Cause, r.EndedAt = runs.WantRun, runs.Queued, nil, time.Time{} })
}

func (d *deployment) change(id string, change func(*runs.Run)) {
	d.t.Helper()
	if _, err := d.store.Change(d.t.Context(), id, func(r *runs.Run) error { change(r); return nil }); err != nil {
		d.t.Fatal(err)
	}
}

// resubmit makes another run of the same pipeline.
func (d *deployment) resubmit(r runs.Run, change func(*runs.Run)) runs.Run {
	d.t.Helper()
	n := runs.Run{
		ID: uuid.Must(uuid.NewV7()).String(), Pipeline: r.Pipeline, PipelineID: r.PipelineID, Kind: r.Kind, Spec: r.Spec, Trigger: r.Trigger,
		Key: r.Key, Source: r.Source, Sink: r.Sink, Want: runs.WantRun, State: runs.Queued, CreatedAt: time.Now(), Parallel: r.Parallel,
	}
	change(&n)
	if n.Kind == runs.Stream { // as who starts it does
		if err := d.store.Remember(d.t.Context(), n.PipelineID, func(st *runs.Standing) { st.Stream = n.ID }); err != nil {
			d.t.Fatal(err)
		}
	}
	n, err := d.store.Put(d.t.Context(), n)
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// sum is a table's rows and a hash of them, in the order of a column.
func sum(t *testing.T, db *pgx.Conn, table, columns, order string) string {
	t.Helper()
	return one[string](t, db, fmt.Sprintf("SELECT count(*)::text || ' ' || coalesce(md5(string_agg(r::text, E'\\n' ORDER BY %s)), '') FROM (SELECT %s FROM %s) r", order, columns, table))
}
