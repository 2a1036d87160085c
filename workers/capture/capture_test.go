package capture_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
	"github.com/athena-pipelines/athena/workers/capture"
)

// A deployment is a bus, a catalog with a client of its own, and a database.
type deployment struct {
	t       *testing.T
	bus     *bus.Bus
	catalog *catalog.Catalog
	store   *changefeed.Store
	config  capture.Config
	db      *pgx.Conn
	client  string
	log     *lockedBuffer
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

func deploy(t *testing.T, ddl string) *deployment {
	t.Helper()
	dsn := pgtest.DSN(t)
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	d := deployTo(t, athena.PostgresConn{DSN: athena.NewSecret(dsn)}, driver.New(postgres.Open))
	d.db = db
	d.exec(ddl)
	return d
}

// deployTo makes a deployment whose client has a connection.
func deployTo(t *testing.T, conn athena.Connection, of driver.Driver) *deployment {
	t.Helper()
	d := &deployment{t: t, bus: bustest.Start(t), client: strings.ToLower(strings.ReplaceAll(t.Name()[4:min(len(t.Name()), 24)], "/", "-")), log: &lockedBuffer{}}
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
	drivers := map[athena.Engine]driver.Driver{conn.Engine(): of}
	supports := func(e athena.Engine) athena.Capabilities { return drivers[e].Supports }
	log := slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d.catalog = catalog.New(kv, catalog.Config{Keyring: keyring, Supports: supports})
	if d.store, err = changefeed.NewStore(ctx, d.bus, log); err != nil {
		t.Fatal(err)
	}
	go d.catalog.Run(ctx)
	go d.store.Run(ctx)
	r := resolver.New(d.catalog, drivers, resolver.Config{Open: keyring.Open})
	t.Cleanup(func() { r.Close(context.Background()) })
	if _, err := d.catalog.Put(ctx, &athena.Client{
		Name: d.client, Lifecycle: athena.Active, Capabilities: athena.Allow(athena.CDC),
		Connection: conn,
	}, catalog.Absent); err != nil {
		t.Fatal(err)
	}
	d.config = capture.Config{
		ID: "one", Bus: d.bus, Store: d.store, Dispatcher: &dispatch.Dispatcher{Resolver: r, Observer: ignored{}},
		Catalog: d.catalog, Leases: bus.NewLeases(d.bus, bus.BucketLeases), Log: log,
		Serves: func(*athena.Client) bool { return true }, SpillDir: t.TempDir(),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", d.log)
		}
	})
	return d
}

func (d *deployment) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.db.Exec(context.Background(), sql, args...); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

// work runs a worker until the returned function is called.
func (d *deployment) work() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := capture.New(d.config).Run(ctx); err != nil {
			d.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	d.t.Cleanup(stop)
	return stop
}

// enable asks for a capture of tables.
func (d *deployment) enable(change func(*changefeed.Capture), tables ...string) changefeed.Capture {
	d.t.Helper()
	c := changefeed.Capture{ID: fmt.Sprint(time.Now().UnixNano()), Client: d.client, CreatedAt: time.Now()}
	for _, t := range tables {
		c.Tables = append(c.Tables, driver.TableName{Schema: "public", Table: t})
	}
	if change != nil {
		change(&c)
	}
	// A slot belongs to the server, which tests share.
	c.Slot = "athena_" + strings.ReplaceAll(c.Client, "-", "_") + "_" + c.ID[len(c.ID)-6:]
	c, err := d.store.PutCapture(d.t.Context(), c.WithDefaults())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_, _ = d.db.Exec(context.Background(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", c.Slot)
		for range 100 {
			_, err := d.db.Exec(context.Background(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", c.Slot)
			if err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return c
}

// await waits until ok, asked several times a second.
func (d *deployment) await(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			st, _ := d.store.Status(d.client)
			raw, _ := json.Marshal(st)
			d.t.Fatalf("%s did not come; the status is %s", what, raw)
		}
	}
}

func (d *deployment) awaitState(want changefeed.State) changefeed.Status {
	d.t.Helper()
	var st changefeed.Status
	d.await("the state "+string(want), func() bool {
		st, _ = d.store.Status(d.client)
		return st.State == want
	})
	return st
}

// read reads the whole stream; it must be in order.
func (d *deployment) read() (list []cdc.Change) {
	d.t.Helper()
	ctx := context.Background()
	s, err := d.bus.JetStream().Stream(ctx, bus.CDCStream(d.client))
	if err != nil {
		return nil
	}
	st := s.CachedInfo().State
	for seq := st.FirstSeq; st.Msgs > 0 && seq <= st.LastSeq; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			d.t.Fatal(err)
		}
		if strings.HasPrefix(m.Subject, "ath.cdcsnap.") {
			continue
		}
		for line := range cdc.Lines(m.Data) {
			var c cdc.Change
			if err := json.Unmarshal(line, &c); err != nil {
				d.t.Fatalf("%v: %s", err, line)
			}
			if n := len(list); n > 0 && list[n-1].Pos >= c.Pos {
				d.t.Fatalf("%s comes behind %s", c.Pos, list[n-1].Pos)
			}
			list = append(list, c)
		}
	}
	return list
}

// replay applies the stream to a table, by key.
func replay(list []cdc.Change, table string) map[string]string {
	rows := map[string]string{}
	for _, c := range list {
		if c.Table != table {
			continue
		}
		switch c.Op {
		case cdc.Insert, cdc.Read:
			rows[string(c.Key)] = string(c.After)
		case cdc.Update:
			if c.Before != nil {
				delete(rows, string(c.Before))
			}
			rows[string(c.Key)] = string(c.After)
		case cdc.Delete:
			delete(rows, string(c.Key))
		case cdc.Truncate:
			clear(rows)
		}
	}
	return rows
}

// equal waits until the stream, replayed, is the table.
func (d *deployment) equal(table string) {
	d.t.Helper()
	var want map[string]string
	var got map[string]string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		want = map[string]string{}
		rows, err := d.db.Query(context.Background(), "SELECT id, v FROM "+table)
		if err != nil {
			d.t.Fatal(err)
		}
		for rows.Next() {
			var id int
			var v string
			if err := rows.Scan(&id, &v); err != nil {
				d.t.Fatal(err)
			}
			want[fmt.Sprintf(`{"id":%d}`, id)] = fmt.Sprintf(`{"id":%d,"v":%q}`, id, v)
		}
		if got = replay(d.read(), table); maps.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	n := 0
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got[key] != want[key] && n < 5 {
			n++
			d.t.Errorf("row %s is %s, replayed %q", key, want[key], got[key])
		}
	}
	d.t.Fatalf("the stream replays to %d rows, the table has %d", len(got), len(want))
}

func TestCaptureFromSnapshotToStream(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old ' || g FROM generate_series(1, 5000) g`)
	d.enable(nil, "t")
	stop := d.work()
	d.awaitState(changefeed.Streaming)
	for i := range 50 {
		d.exec("INSERT INTO t VALUES ($1, 'new')", 10000+i)
	}
	d.exec("UPDATE t SET v = 'changed' WHERE id <= 10")
	d.exec("DELETE FROM t WHERE id BETWEEN 11 AND 20")
	d.equal("t")
	ops := map[cdc.Op]int{}
	for _, c := range d.read() {
		ops[c.Op]++
	}
	if want := (map[cdc.Op]int{cdc.Schema: 1, cdc.Read: 5000, cdc.Insert: 50, cdc.Update: 10, cdc.Delete: 10}); !maps.Equal(ops, want) {
		t.Errorf("the stream has %v, want %v", ops, want)
	}
	stop()
	before := len(d.read())
	d.exec("INSERT INTO t VALUES (77777, 'while nobody captures')")
	d.work()
	d.equal("t")
	if got := len(d.read()); got != before+1 {
		t.Errorf("after a restart there are %d changes, want %d", got, before+1)
	}
	st := d.awaitState(changefeed.Streaming)
	if len(st.Snapshots) > 1 {
		t.Errorf("snapshots: %+v", st.Snapshots)
	}
}

// Rows are wanted again while the stream goes on: the stream replays to the table
// at the end, whatever was written meanwhile.
func TestAdHocSnapshotWhileWriting(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old ' || g FROM generate_series(1, 20000) g`)
	d.enable(func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotNone }, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	table := driver.TableName{Schema: "public", Table: "t"}
	for i, r := range []changefeed.SnapshotRequest{
		{ID: "a", Tables: []driver.SnapshotTable{{Table: table}}},
		{ID: "b", Tables: []driver.SnapshotTable{{Table: table, Where: "id <= 3"}}},
		{ID: "c", Tables: []driver.SnapshotTable{{Table: table, Where: "nonsense"}}},
	} {
		r.Client, r.At = d.client, time.Now().Add(time.Duration(i))
		if err := d.store.PutSnapshot(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 400 {
		d.exec("UPDATE t SET v = $2 WHERE id = $1", 1+i*37%20000, fmt.Sprint("during ", i))
		d.exec("DELETE FROM t WHERE id = $1", 20000-i)
		d.exec("INSERT INTO t VALUES ($1, 'during')", 30000+i)
	}
	d.await("the end of the snapshots", func() bool { return len(d.store.SnapshotRequests(d.client)) == 0 })
	d.equal("t")
	progress, err := d.store.Progress(t.Context(), d.client)
	if err != nil {
		t.Fatal(err)
	}
	if p := progress["a"]; p.State != "done" || p.Tables[0].Rows < 19500 || !p.Tables[0].Done {
		t.Errorf("snapshot a: %+v", p)
	}
	if p := progress["b"]; p.State != "done" || p.Tables[0].Rows != 3 {
		t.Errorf("snapshot b: %+v", p)
	}
	if p := progress["c"]; p.State != "failed" || !strings.Contains(p.Error, "nonsense") {
		t.Errorf("snapshot c: %+v", p)
	}
}

// A table that cannot be read fails its snapshot, and does not keep the others
// from being read; neither does a key that becomes another one in between.
func TestSnapshotOfATableThatIsGone(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text, w int NOT NULL DEFAULT 0); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 12000) g`)
	d.enable(func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotNone }, "t")
	request := changefeed.SnapshotRequest{ID: "x", Client: d.client, At: time.Now()}
	for _, name := range []string{"gone", "t"} {
		request.Tables = append(request.Tables, driver.SnapshotTable{Table: driver.TableName{Schema: "public", Table: name}})
	}
	stop := d.work()
	d.awaitState(changefeed.Streaming)
	if err := d.store.PutSnapshot(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	var p changefeed.SnapshotProgress
	d.await("the end of the snapshot", func() bool {
		all, err := d.store.Progress(t.Context(), d.client)
		if err != nil {
			t.Fatal(err)
		}
		p = all["x"]
		return p.State == "failed"
	})
	if !strings.Contains(p.Error, "public.gone") || p.Tables[0].Done || !p.Tables[1].Done || p.Tables[1].Rows != 12000 {
		t.Errorf("the snapshot is %+v", p)
	}

	// As a session that ended in its midst would have left it.
	stop()
	request.ID, request.Tables = "y", request.Tables[1:]
	if err := d.store.PutSnapshot(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	p.ID, p.State, p.Error, p.Tables = "y", "running", "", p.Tables[1:]
	p.Tables[0].Done, p.Tables[0].After = false, `{"key":["id 23 "],"values":["5000"]}`
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	last := d.read()
	msg := nats.NewMsg(bus.CDCSnapshot(d.client, "y"))
	msg.Data = body
	msg.Header.Set(changefeed.HeaderPos, string(last[len(last)-1].Pos))
	if _, err := d.bus.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	d.exec("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (w, id)")
	d.work()
	d.await("the end of the other snapshot", func() bool {
		all, err := d.store.Progress(t.Context(), d.client)
		if err != nil {
			t.Fatal(err)
		}
		p = all["y"]
		return p.State == "done"
	})
	if p.Tables[0].Rows != 12000 {
		t.Errorf("the snapshot is %+v", p)
	}
}

// A worker that dies in the first snapshot leaves a rest, which is read beside
// the stream.
func TestInterruptedFirstSnapshot(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old ' || g FROM generate_series(1, 300000) g`)
	d.enable(nil, "t")
	stop := d.work()
	d.await("some rows", func() bool {
		s, err := d.bus.JetStream().Stream(context.Background(), bus.CDCStream(d.client))
		return err == nil && s.CachedInfo().State.Msgs > 20
	})
	stop()
	d.exec("UPDATE t SET v = 'meanwhile' WHERE id % 1000 = 0")
	d.exec("DELETE FROM t WHERE id % 1000 = 1")
	d.work()
	d.awaitState(changefeed.Streaming)
	d.await("the rest", func() bool {
		p, err := d.store.Progress(t.Context(), d.client)
		if err != nil {
			t.Fatal(err)
		}
		for id, one := range p {
			if strings.HasPrefix(id, "initial-") && one.State == "done" {
				return true
			}
		}
		return false
	})
	d.exec("INSERT INTO t VALUES (999999, 'end')")
	d.equal("t")
}

func TestFrozenClientIsNotCaptured(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	if _, err := d.catalog.SetLifecycle(t.Context(), d.client, athena.Frozen, catalog.Any); err != nil {
		t.Fatal(err)
	}
	d.awaitState(changefeed.Held)
	before := len(d.read())
	d.exec("INSERT INTO t VALUES (1, 'frozen')")
	time.Sleep(300 * time.Millisecond) // nothing tells of what must not happen
	if n := len(d.read()) - before; n != 0 {
		t.Errorf("%d changes of a frozen client were stored", n)
	}
	if _, err := d.catalog.SetLifecycle(t.Context(), d.client, athena.Active, catalog.Any); err != nil {
		t.Fatal(err)
	}
	d.awaitState(changefeed.Streaming)
	d.equal("t")
}

// A full stream stops the capture, loses nothing, and is gone on with when there
// is room.
func TestFullStream(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	c := d.enable(func(c *changefeed.Capture) { c.MaxBytes = 200 << 10 }, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	for i := range 40 {
		d.exec("INSERT INTO t VALUES ($1, repeat('x', 20000))", i)
	}
	st := d.awaitState(changefeed.Degraded)
	if st.Cause == nil || st.Cause.Code != "stream_full" || st.Cause.Runbook == "" {
		t.Errorf("the cause is %+v", st.Cause)
	}
	c.MaxBytes = 100 << 20
	if _, err := d.store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.equal("t")
	if st := d.awaitState(changefeed.Streaming); st.Cause != nil {
		t.Errorf("the cause stays: %+v", st.Cause)
	}
}

// A slot that is gone is never passed over in silence: the capture fails, or
// begins anew where its policy says so, and tells its readers.
func TestSlotThatIsGone(t *testing.T) {
	t.Parallel()
	for _, policy := range []changefeed.LossPolicy{changefeed.Fail, changefeed.Resnapshot} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
			c := d.enable(func(c *changefeed.Capture) { c.OnLoss = policy }, "t")
			stop := d.work()
			d.awaitState(changefeed.Streaming)
			d.exec("INSERT INTO t VALUES (1, 'before')")
			d.equal("t")
			stop()
			d.await("the slot's release", func() bool {
				_, err := d.db.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", c.Slot)
				return err == nil
			})
			d.exec("INSERT INTO t VALUES (2, 'unseen'); DELETE FROM t WHERE id = 1")
			d.work()
			if policy == changefeed.Fail {
				st := d.awaitState(changefeed.Failed)
				if st.Cause.Code != "slot_missing" || !strings.Contains(st.Cause.Message, "missing") {
					t.Errorf("the cause is %+v", st.Cause)
				}
				return
			}
			d.equal("t")
			began := false
			for _, ch := range d.read() {
				began = began || ch.Op == cdc.Message && ch.Prefix == "athena.begin"
			}
			if !began {
				t.Error("readers are not told that the capture began anew")
			}
		})
	}
}

// Tables that are added to a capture are published from then on, and their rows
// are read beside the stream; those that are taken out are not captured any more.
func TestTablesOfACaptureChange(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
		INSERT INTO u SELECT g, 'old' FROM generate_series(1, 100) g`)
	c := d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	c.Tables = []driver.TableName{{Schema: "public", Table: "u"}}
	if _, err := d.store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.equal("u")
	d.exec("INSERT INTO t VALUES (1, 'no longer captured')")
	d.exec("UPDATE u SET v = 'new' WHERE id < 10")
	d.exec("INSERT INTO u VALUES (1000, 'new')")
	d.equal("u")
	for _, change := range d.read() {
		if change.Table == "t" && change.Op != cdc.Schema {
			t.Errorf("a change of a table that was taken out: %+v", change)
		}
	}
}

// What a transaction wrote to a table before that was captured comes with the
// table's rows, though the transaction ends long after.
func TestTableThatComesWhileATransactionHasWrittenToIt(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)`)
	c := d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	long, err := pgx.ConnectConfig(t.Context(), d.db.Config().Copy())
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close(context.Background())
	if _, err := long.Exec(t.Context(), "BEGIN; INSERT INTO u VALUES (1, 'long')"); err != nil {
		t.Fatal(err)
	}
	c.Tables = append(c.Tables, driver.TableName{Schema: "public", Table: "u"})
	if _, err := d.store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.await("the table", func() bool {
		var n int
		err := d.db.QueryRow(t.Context(), "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'u'").Scan(&n)
		return err == nil && n == 1
	})
	d.exec("INSERT INTO t VALUES (1, 'goes on'); INSERT INTO u VALUES (2, 'short')")
	d.equal("t")
	d.await("what is waited for", func() bool {
		st, _ := d.store.Status(d.client)
		return st.State == changefeed.Streaming && strings.Contains(st.Progress, "still runs")
	})
	if _, err := long.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	d.equal("u")
	d.await("its end", func() bool {
		st, _ := d.store.Status(d.client)
		return st.Progress == "" && len(d.store.SnapshotRequests(d.client)) == 0
	})
}

// A capture that is enabled with inserts_only lets a table that has lost its key
// go on, which the publication of updates would not.
func TestInsertsOnlyOfACaptureThatRuns(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')`)
	c := d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	d.exec("ALTER TABLE t DROP CONSTRAINT t_pkey")
	if _, err := d.db.Exec(t.Context(), "UPDATE t SET v = 'b'"); err == nil {
		t.Fatal("the server lets updates be that have no identity")
	}
	c.InsertsOnly = true
	if _, err := d.store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.await("the application's update", func() bool {
		_, err := d.db.Exec(t.Context(), "UPDATE t SET v = 'b'")
		return err == nil
	})
}

// What the stream has let go of, all of it, is no loss of the source's; and who
// reads it is told as ever.
func TestStreamThatHoldsNothingAnyMore(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	d.enable(nil, "t")
	stop := d.work()
	d.awaitState(changefeed.Streaming)
	d.exec("INSERT INTO t VALUES (1, 'one'); INSERT INTO t VALUES (2, 'two')")
	d.equal("t")
	list := d.read()
	first, last := list[0].Pos, list[len(list)-1].Pos
	stop()
	s, err := d.bus.JetStream().Stream(t.Context(), bus.CDCStream(d.client))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.work()
	d.exec("INSERT INTO t VALUES (3, 'three')")
	d.await("the change", func() bool { return len(d.read()) == 1 })
	if st := d.awaitState(changefeed.Streaming); st.Restarts > 0 {
		t.Errorf("it stumbled: %+v", st)
	}
	if _, err := d.store.CursorAt(t.Context(), d.client, string(first)); athena.CodeOf(err) != athena.CodeCursorExpired {
		t.Errorf("a reader from before is told %v", err)
	}
	if _, err := d.store.CursorAt(t.Context(), d.client, string(last)); err != nil {
		t.Errorf("a reader who had all is told %v", err)
	}
}

// A stream that was removed, or restored, lacks what the source has let go of.
func TestStreamThatWasRemoved(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	d.exec("INSERT INTO t VALUES (1, 'one')")
	d.equal("t")
	// It is removed behind the record of how far it was.
	d.await("the record", func() bool {
		c, _ := d.store.Capture(d.client)
		o, _, err := d.store.Origin(t.Context(), c)
		return err == nil && o.Sequence > 1
	})
	if err := d.bus.JetStream().DeleteStream(t.Context(), bus.CDCStream(d.client)); err != nil {
		t.Fatal(err)
	}
	d.exec("INSERT INTO t VALUES (2, 'two')")
	if st := d.awaitState(changefeed.Failed); st.Cause.Code != "stream_behind" || st.Cause.Runbook == "" {
		t.Errorf("the cause is %+v", st.Cause)
	}
}

// A capture that cannot begin, since its stream is another database's, leaves
// nothing at the source.
func TestStreamOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	if _, err := d.bus.JetStream().CreateStream(t.Context(), bus.CDCConfig(d.client, time.Hour, 1<<20, 1)); err != nil {
		t.Fatal(err)
	}
	msg := nats.NewMsg(bus.CDC(d.client, "public", "t"))
	msg.Header.Set(changefeed.HeaderPos, "FFFFFFFF00000000.00000001")
	if _, err := d.bus.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	c := d.enable(nil, "t")
	d.work()
	if st := d.awaitState(changefeed.Failed); st.Cause.Code != "stream_ahead" {
		t.Errorf("the cause is %+v", st.Cause)
	}
	var left int
	if err := d.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1) +
		(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'athena-cdc-%' AND datname = current_database())`, c.Slot).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d slots and connections are left, %v", left, err)
	}
}

// The rows of a table without a key are read, while it is written to, so that
// none comes twice and none is missing; readers forget what they had of it.
func TestSnapshotOfATableWithoutAKey(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE l (v text); ALTER TABLE l REPLICA IDENTITY FULL; INSERT INTO l SELECT 'old ' || g % 500 FROM generate_series(1, 2000) g`)
	d.enable(func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotNone }, "l")
	d.work()
	d.awaitState(changefeed.Streaming)
	same := func() (missing, more int) {
		has := map[string]int{}
		for _, c := range d.read() {
			switch {
			case c.Table != "l":
			case c.Op == cdc.Truncate:
				clear(has)
			case c.Op == cdc.Read, c.Op == cdc.Insert:
				has[string(c.After)]++
			case c.Op == cdc.Delete:
				has[string(c.Before)]--
			}
		}
		rows, err := d.db.Query(t.Context(), "SELECT v, count(*) FROM l GROUP BY v")
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var v string
			var n int
			if err := rows.Scan(&v, &n); err != nil {
				t.Fatal(err)
			}
			has[fmt.Sprintf(`{"v":%q}`, v)] -= n
		}
		for _, n := range has {
			more, missing = more+max(0, n), missing+max(0, -n)
		}
		return missing, more
	}
	for round := range 3 {
		id := fmt.Sprint("s", round)
		var writing sync.WaitGroup
		stop := make(chan struct{})
		for w := range 3 {
			conn, err := pgx.ConnectConfig(t.Context(), d.db.Config().Copy())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close(context.Background()) })
			writing.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(2 * time.Millisecond):
					}
					if _, err := conn.Exec(context.Background(), "INSERT INTO l VALUES ($1)", fmt.Sprintf("%d.%d.%d", round, w, i%50)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := d.store.PutSnapshot(t.Context(), changefeed.SnapshotRequest{
			ID: id, Client: d.client, At: time.Now(), Tables: []driver.SnapshotTable{{Table: driver.TableName{Schema: "public", Table: "l"}}},
		}); err != nil {
			t.Fatal(err)
		}
		d.await("the snapshot", func() bool {
			p, err := d.store.Progress(t.Context(), d.client)
			if err != nil {
				t.Fatal(err)
			}
			return p[id].State == "done"
		})
		close(stop)
		writing.Wait()
		d.exec("DELETE FROM l WHERE v = 'old 1'")
		missing, more := 1, 0
		for end := time.Now().Add(30 * time.Second); missing+more > 0 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			missing, more = same()
		}
		if missing+more > 0 {
			t.Errorf("round %d: %d rows are missing and %d too many", round, missing, more)
		}
	}
	// On a database where nothing happens, too.
	if err := d.store.PutSnapshot(t.Context(), changefeed.SnapshotRequest{
		ID: "idle", Client: d.client, At: time.Now(), Tables: []driver.SnapshotTable{{Table: driver.TableName{Schema: "public", Table: "l"}}},
	}); err != nil {
		t.Fatal(err)
	}
	d.await("the last snapshot", func() bool { return len(d.store.SnapshotRequests(d.client)) == 0 })
	if missing, more := same(); missing+more > 0 {
		t.Errorf("%d rows are missing and %d too many", missing, more)
	}
}

func TestRemoval(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	c := d.enable(nil, "t")
	d.work()
	d.awaitState(changefeed.Streaming)
	c, _ = d.store.Capture(d.client)
	c.Removing, c.Purge = true, true
	if _, err := d.store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.await("the end of the capture", func() bool { _, there := d.store.Capture(d.client); return !there })
	var left int
	if err := d.db.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1) + (SELECT count(*) FROM pg_publication)", c.Slot).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d slots and publications are left, %v", left, err)
	}
	if d.read() != nil {
		t.Error("the stream is left")
	}
}

// Two workers share captures by leases; when one leaves, the other goes on.
func TestTakeover(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	d.enable(nil, "t")
	stop := d.work()
	d.awaitState(changefeed.Streaming)
	d.config.ID = "two"
	d.work()
	d.exec("INSERT INTO t VALUES (1, 'one')")
	d.equal("t")
	begun := time.Now()
	stop()
	d.exec("INSERT INTO t VALUES (2, 'two')")
	d.equal("t")
	t.Logf("taken over, and stored, after %s", time.Since(begun))
	if st, _ := d.store.Status(d.client); st.Worker != "two" {
		t.Errorf("the worker is %q", st.Worker)
	}
}
