package deferred_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(childVariable); text != "" {
		os.Exit(beChild(text))
	}
	os.Exit(s3test.Run(postgreses{m}))
}

// postgreses runs the tests with PostgreSQL.
type postgreses struct{ m *testing.M }

func (p postgreses) Run() int { return pgtest.Run(p.m) }

// parts is what a process holds to run workers: all but the test itself.
type parts struct {
	bus     *bus.Bus
	store   *deferred.Store
	keyring *secret.Keyring
	catalog *catalog.Catalog
}

// wire puts a process together as the program does.
func wire(ctx context.Context, b *bus.Bus, key string) (*parts, error) {
	p := &parts{bus: b}
	var err error
	if p.keyring, err = secret.Parse(key, func(string) string { return "" }); err != nil {
		return nil, err
	}
	kv, err := b.JetStream().KeyValue(ctx, bus.BucketCatalog)
	if err != nil {
		return nil, err
	}
	supports := func(e athena.Engine) athena.Capabilities { return engines(nil)[e].Supports }
	p.catalog = catalog.New(kv, catalog.Config{Keyring: p.keyring, Supports: supports})
	p.store, err = deferred.NewStore(b)
	return p, err
}

// engines has PostgreSQL, seen through wrap if that is set, and S3.
func engines(wrap func(driver.Backend) driver.Backend) map[athena.Engine]driver.Driver {
	pg := driver.New(postgres.Open)
	if open := pg.Open; wrap != nil {
		pg.Open = func(ctx context.Context, c athena.Connection) (driver.Backend, error) {
			b, err := open(ctx, c)
			if err != nil {
				return nil, err
			}
			return wrap(b), nil
		}
	}
	return map[athena.Engine]driver.Driver{athena.EnginePostgres: pg, athena.EngineS3: driver.New(s3.Open)}
}

type ignored struct{}

func (ignored) Observe(context.Context, dispatch.Outcome)            {}
func (ignored) Started(*athena.Client, deferred.Lane, time.Duration) {}
func (ignored) Ended(*athena.Client, deferred.State, time.Duration)  {}
func (p *parts) resolver(wrap func(driver.Backend) driver.Backend) *resolver.Resolver {
	return resolver.New(p.catalog, engines(wrap), resolver.Config{Open: p.keyring.Open})
}

func (p *parts) config(id string, r *resolver.Resolver, log *slog.Logger) worker.Config {
	return worker.Config{
		ID: id, Bus: p.bus, Store: p.store, Dispatcher: &dispatch.Dispatcher{Resolver: r, Observer: ignored{}},
		Catalog: p.catalog, Leases: bus.NewLeases(p.bus, bus.BucketLeases), Log: log, Observer: ignored{},
		Serves: func(*athena.Client) bool { return true }, Grace: 2 * time.Second,
	}
}

// A deployment is a bus, a catalog and a database, without workers.
type deployment struct {
	*parts
	t      testing.TB
	server *bus.Server
	key    string
	dsn    string
	db     *pgxpool.Pool
	log    *slog.Logger
}

func newKey(t testing.TB) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// deploy starts one, with a client "shop" on a database of its own.
func deploy(t testing.TB) *deployment {
	t.Helper()
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	d := deployOn(t, bustest.Bus(t, s))
	d.server = s
	return d
}

func deployOn(t testing.TB, b *bus.Bus) *deployment {
	t.Helper()
	d := &deployment{t: t, key: newKey(t), dsn: pgtest.DSN(t)}
	var out lockedBuffer
	d.log = slog.New(slog.NewTextHandler(&out, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the workers' log:\n%s", out.String())
		}
	})
	var err error
	if d.parts, err = wire(t.Context(), b, d.key); err != nil {
		t.Fatal(err)
	}
	d.db, err = pgxpool.New(context.Background(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.db.Close)
	d.background(d.catalog.Run)
	d.client("shop", nil)
	return d
}

// in is the deployment as a subtest sees it.
func (d *deployment) in(t testing.TB) *deployment {
	sub := *d
	sub.t = t
	return &sub
}

// background runs something until the test ends and waits for it.
func (d *deployment) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				d.t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			d.t.Error("Run does not end")
		}
	})
	d.t.Cleanup(stop)
	return stop
}

// client saves a client on the deployment's database.
func (d *deployment) client(name string, change func(*athena.Client)) *athena.Client {
	d.t.Helper()
	def := &athena.Client{
		Name: name, Lifecycle: athena.Active, Capabilities: athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.DeferredQuery),
		Connection: athena.PostgresConn{DSN: athena.NewSecret(d.dsn)},
	}
	if change != nil {
		change(def)
	}
	c, err := d.catalog.Put(d.t.Context(), def, catalog.Any)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.catalog.Ready(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *deployment) lifecycle(name string, l athena.Lifecycle) {
	d.t.Helper()
	if _, err := d.catalog.SetLifecycle(d.t.Context(), name, l, catalog.Any); err != nil {
		d.t.Fatal(err)
	}
}

// work runs a worker until the test ends or stop is called.
func (d *deployment) work(id string, change func(*worker.Config)) (stop func()) {
	return d.workOn(d.parts, id, nil, change)
}

func (d *deployment) workOn(p *parts, id string, wrap func(driver.Backend) driver.Backend, change func(*worker.Config)) (stop func()) {
	r := p.resolver(wrap)
	d.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			d.t.Error(err)
		}
	})
	cfg := p.config(id, r, d.log)
	if change != nil {
		change(&cfg)
	}
	return d.background(worker.New(cfg).Run)
}

// principal may do everything; reader may not write.
func principal() *auth.Principal { return auth.Local() }

// job makes a job as the gateway does.
func (d *deployment) job(client, key string, r deferred.Request) (*deferred.Job, error) {
	c, err := d.catalog.Client(d.t.Context(), client)
	if err != nil {
		return nil, err
	}
	return r.Job(c, principal(), driver.SQL, key, deferred.Bounds{}, time.Now().UTC())
}

// submit accepts a job, changed before it is stored if change is set.
func (d *deployment) submit(client, query string, change func(*deferred.Job)) *deferred.Job {
	d.t.Helper()
	j, err := d.job(client, "", deferred.Request{Query: query})
	if err != nil {
		d.t.Fatal(err)
	}
	if change != nil {
		change(j)
	}
	if j, _, err = d.store.Submit(d.t.Context(), j); err != nil {
		d.t.Fatal(err)
	}
	return j
}

// status is where a job stands now, and what a caller is told of it.
func (d *deployment) status(j *deferred.Job) (deferred.Status, deferred.State) {
	d.t.Helper()
	st, err := d.store.Status(d.t.Context(), j.Client, j.ID)
	if err != nil {
		d.t.Fatal(err)
	}
	c, err := d.catalog.Client(d.t.Context(), j.Client)
	return st, deferred.View(j, st, err == nil && c.Lifecycle == athena.Frozen, time.Now())
}

// await waits until a snapshot of the job satisfies done.
func (d *deployment) await(j *deferred.Job, atMost time.Duration, what string, done func(deferred.Status) bool) deferred.Status {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), atMost)
	defer cancel()
	st, err := d.store.Status(ctx, j.Client, j.ID)
	if err == nil {
		st, err = d.store.Await(ctx, j, st, done)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	if !done(st) {
		d.t.Fatalf("after %s the job %q (%.80s) is not %s: %s", atMost, j.ID, j.Query, what, show(st))
	}
	return st
}

func (d *deployment) reaches(j *deferred.Job, atMost time.Duration, state deferred.State) deferred.Status {
	d.t.Helper()
	return d.await(j, atMost, string(state), func(s deferred.Status) bool { return s.State == state })
}

// ends waits for a job's end and holds it to be the wanted one.
func (d *deployment) ends(j *deferred.Job, want deferred.State) deferred.Status {
	d.t.Helper()
	return d.endsIn(j, 20*time.Second, want)
}

func (d *deployment) endsIn(j *deferred.Job, atMost time.Duration, want deferred.State) deferred.Status {
	d.t.Helper()
	st := d.await(j, atMost, "ended", func(s deferred.Status) bool { return s.State.Terminal() })
	if st.State != want {
		d.t.Fatalf("%.80s ended as %s, want %s", j.Query, show(st), want)
	}
	return st
}

func show(st deferred.Status) string {
	raw, _ := json.Marshal(st)
	return string(raw)
}

// exec runs a statement in the deployment's database.
func (d *deployment) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.db.Exec(d.t.Context(), sql, args...); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func (d *deployment) count(sql string, args ...any) (n int) {
	d.t.Helper()
	if err := d.db.QueryRow(d.t.Context(), sql, args...).Scan(&n); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// running counts the sessions in which a statement like this runs.
func (d *deployment) running(like string) int {
	d.t.Helper()
	return d.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE $1`, "%"+like+"%")
}

// until waits for something that no event tells.
func (d *deployment) until(atMost time.Duration, what string, ok func() bool) time.Duration {
	d.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > atMost {
			d.t.Fatalf("not within %s: %s", atMost, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// rows reads a job's whole result, one row each.
func (d *deployment) rows(j *deferred.Job, st deferred.Status) (rows []string) {
	d.t.Helper()
	r := st.Result
	if r == nil {
		d.t.Fatalf("no result: %s", show(st))
		return nil
	}
	if len(r.Segments) == 0 {
		var raws []json.RawMessage
		if err := json.Unmarshal(r.Inline, &raws); err != nil {
			d.t.Fatal(err)
		}
		for _, raw := range raws {
			rows = append(rows, string(raw))
		}
		return rows
	}
	for n := range r.Segments {
		text, err := d.store.Segment(d.t.Context(), j, r, n, nil)
		if err != nil {
			d.t.Fatal(err)
		}
		rows = append(rows, strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")...)
	}
	return rows
}

// messages counts what a stream holds that concerns the job.
func (d *deployment) messages(stream, id string) (subjects []string) {
	d.t.Helper()
	for from := uint64(1); ; {
		raws, err := d.bus.Scan(d.t.Context(), stream, ">", from, 1000)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, m := range raws {
			if strings.Contains(m.Subject, id) || bytes.Contains(m.Data, []byte(id)) {
				subjects = append(subjects, m.Subject)
			}
			from = m.Sequence + 1
		}
		if len(raws) < 1000 {
			return subjects
		}
	}
}

// hold opens a transaction in which a statement has been run, and returns what
// ends it.
func (d *deployment) hold(sql string) (release func()) {
	d.t.Helper()
	conn, err := pgx.Connect(context.Background(), d.dsn)
	if err != nil {
		d.t.Fatal(err)
	}
	release = sync.OnceFunc(func() { conn.Close(context.Background()) })
	d.t.Cleanup(release)
	if _, err := conn.Exec(d.t.Context(), "BEGIN; "+sql); err != nil {
		d.t.Fatal(err)
	}
	return release
}

// settled fails unless no consumer of a lane of the client has anything left.
func (d *deployment) settled(client string) {
	d.t.Helper()
	d.until(15*time.Second, "every message of "+client+" is acknowledged", func() bool {
		left := 0
		for _, lane := range deferred.Lanes() {
			cons, err := d.bus.JetStream().Consumer(d.t.Context(), bus.StreamJobs, bus.LaneConsumer(string(lane), client))
			if err != nil {
				d.t.Fatal(err)
			}
			left += cons.CachedInfo().NumAckPending + int(cons.CachedInfo().NumPending)
		}
		return left == 0
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// wantCode holds an error to its code.
func wantCode(t testing.TB, err error, want athena.Code) {
	t.Helper()
	if got := athena.CodeOf(err); err == nil || got != want {
		t.Errorf("the error is %v (%q), want %q", err, got, want)
	}
}

func natsMsg(subject, body string) *nats.Msg {
	msg := nats.NewMsg(subject)
	msg.Data = []byte(body)
	return msg
}
