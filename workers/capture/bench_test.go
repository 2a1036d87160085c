package capture

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// drainSink hands changes to a writer, or nowhere, and stops at the end.
type drainSink struct {
	*writer
	rows, until int
	done        context.CancelFunc
}

func (d *drainSink) Change(ctx context.Context, c *cdc.Change) error {
	if c.Op != cdc.Schema {
		d.rows++
	}
	if d.writer == nil {
		return nil
	}
	return d.writer.Change(ctx, c)
}

func (d *drainSink) Commit(ctx context.Context, mark string) (err error) {
	if d.writer != nil {
		err = d.writer.Commit(ctx, mark)
	}
	if d.rows >= d.until {
		if d.writer != nil {
			err = d.writer.Flush(ctx)
		}
		d.done()
	}
	return err
}

func (*drainSink) Pause(context.Context) error                   { return nil }
func (*drainSink) Reject(context.Context, driver.Rejected) error { return nil }

// BenchmarkDrain reads a log that is there already: pg_recvlogical to nowhere,
// the driver to nowhere, and the driver into a stream that is synced. Rows have
// 200 bytes.
func BenchmarkDrain(b *testing.B) {
	for name, perTx := range map[string]int{"bulk": 10_000, "one-row": 1} {
		b.Run(name, func(b *testing.B) { benchmarkDrain(b, perTx) })
	}
}

func benchmarkDrain(b *testing.B, perTx int) {
	rows := 400_000
	if perTx == 1 {
		rows = 100_000
	}
	srv := pgtest.Server(b, map[string]string{"max_wal_size": "8GB", "synchronous_commit": "off", "shared_buffers": "256MB"})
	dsn := srv.DSN("postgres")
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	run := func(sql string) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			b.Fatal(sql, err)
		}
	}
	run("CREATE TABLE t (id bigint PRIMARY KEY, a int, ts timestamptz, name text, amount numeric, payload text)")
	run("CREATE PUBLICATION p FOR TABLE t")
	for _, s := range []string{"s_raw", "s_null", "s_store"} {
		run("SELECT pg_create_logical_replication_slot('" + s + "', 'pgoutput')")
	}
	const row = "SELECT g, g %% 100, now(), 'name ' || g, g / 7.0, repeat('p', 120) FROM generate_series(%d, %d) g"
	if perTx > 1 {
		for i := 0; i < rows; i += perTx {
			run(fmt.Sprintf("INSERT INTO t "+row, i+1, i+perTx))
		}
	} else {
		run(fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP INSERT INTO t SELECT i, i %% 100, now(), 'name ' || i, i / 7.0, repeat('p', 120); COMMIT; END LOOP; END $$", rows))
	}
	run("SELECT pg_logical_emit_message(true, 'x', '')")
	var end string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()").Scan(&end); err != nil {
		b.Fatal(err)
	}
	run("CHECKPOINT")
	dir, err := localpg.Find()
	if err != nil {
		b.Fatal(err)
	}
	cfg, _ := pgx.ParseConfig(dsn)
	begun := time.Now()
	cmd := exec.Command(filepath.Join(dir, "pg_recvlogical"), "-h", cfg.Host, "-p", fmt.Sprint(cfg.Port), "-U", cfg.User, "-d", "postgres",
		"--slot", "s_raw", "--start", "-o", "proto_version=1", "-o", "publication_names=p", "-f", "/dev/null", "--endpos", end)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+cfg.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	raw := float64(rows) / time.Since(begun).Seconds()

	back, err := postgres.Open(ctx, athena.PostgresConn{DSN: athena.NewSecret(dsn)})
	if err != nil {
		b.Fatal(err)
	}
	defer back.Close(ctx)
	drain := func(slot string, w *writer) float64 {
		sctx, cancel := context.WithCancel(ctx)
		defer cancel()
		v := &versions{tables: map[driver.TableName]changefeed.TableVersion{}}
		stream, err := back.OpenChanges(sctx, driver.ChangeConfig{
			ChangeSetup: driver.ChangeSetup{Client: "bench", Slot: slot, Publication: "p"}, Version: v.number, SpillDir: b.TempDir(),
		})
		if err != nil {
			b.Fatal(err)
		}
		defer stream.Close(ctx)
		sink := &drainSink{writer: w, until: rows, done: cancel}
		begun := time.Now()
		if err := stream.Run(sctx, sink); err != nil {
			b.Fatal(err)
		}
		return float64(rows) / time.Since(begun).Seconds()
	}
	null := drain("s_null", nil)

	bb := bustest.Start(b)
	c := changefeed.Capture{ID: "x", Client: "bench"}.WithDefaults()
	sc := bus.CDCConfig(c.Client, c.MaxAge.Std(), c.MaxBytes, 1)
	if _, err := bb.JetStream().CreateStream(ctx, sc); err != nil {
		b.Fatal(err)
	}
	out, err := bus.NewAppender(bb.Conn(), bus.CDCStream(c.Client), 0)
	if err != nil {
		b.Fatal(err)
	}
	w := newWriter(c, out, &largeValues{}, 4<<20, "", "", func(*group) {})
	wctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(wctx) }()
	stored := drain("s_store", w)
	stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	info, err := bb.JetStream().Stream(ctx, bus.CDCStream(c.Client))
	if err != nil {
		b.Fatal(err)
	}
	st := info.CachedInfo().State
	b.Logf("pg_recvlogical %.0f/s; driver to nowhere %.0f/s (%.2f); stored %.0f/s (%.2f) in %d messages, %d MB",
		raw, null, null/raw, stored, stored/raw, st.Msgs, st.Bytes>>20)
	b.ReportMetric(stored, "changes/s")
	b.ReportMetric(stored/raw, "of-pg_recvlogical")
	b.ReportMetric(0, "ns/op")
	_ = strings.TrimSpace
}
