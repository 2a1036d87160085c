package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A tableRig is a backend on a database of its own, and SQL beside it.
type tableRig struct {
	testing.TB
	b   *Backend
	sql *pgx.Conn
	dsn string
}

func newTableRig(t testing.TB, setup string) *tableRig {
	t.Helper()
	r := newTableRigOn(t, pgtest.DSN(t))
	r.exec(setup)
	return r
}

func newTableRigOn(t testing.TB, dsn string) *tableRig {
	t.Helper()
	r := &tableRig{TB: t, dsn: dsn}
	cfg, err := pgx.ParseConfig(r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range SessionSettings() {
		cfg.RuntimeParams[k] = v
	}
	if r.sql, err = pgx.ConnectConfig(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if r.b, err = Open(context.Background(), athena.PostgresConn{DSN: athena.NewSecret(r.dsn)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.b.Close(context.Background())
		_ = r.sql.Close(context.Background())
	})
	return r
}

func (r *tableRig) exec(sql string) {
	r.Helper()
	if _, err := r.sql.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		r.Fatalf("%.200s: %v", sql, err)
	}
}

// text is the value of a query of one row and column.
func (r *tableRig) text(sql string) string {
	r.Helper()
	results, err := r.sql.PgConn().Exec(context.Background(), sql).ReadAll()
	if err != nil {
		r.Fatalf("%.200s: %v", sql, err)
	}
	last := results[len(results)-1]
	if len(last.Rows) != 1 {
		r.Fatalf("%.200s: %d rows", sql, len(last.Rows))
	}
	return string(last.Rows[0][0])
}

func public(table string) driver.TableName { return driver.TableName{Schema: "public", Table: table} }

// read reads a table whole.
func (r *tableRig) read(read driver.TableRead, part driver.TablePart) *record.Batch {
	r.Helper()
	var all *record.Batch
	err := r.b.ReadTable(r.Context(), read, part, driver.BatchSize{}, func(b *record.Batch) error {
		if all == nil {
			all = record.New(b.Schema, b.Rows())
		}
		for i := range b.Rows() {
			all.AppendRow(b, i)
		}
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return all
}

// prepare prepares a target.
func (r *tableRig) prepare(t driver.TableTarget) driver.TablePlan {
	r.Helper()
	p, err := r.b.PrepareTable(r.Context(), t)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// write writes batches in one transaction.
func (r *tableRig) write(t driver.TableTarget, c driver.Checkpoint, batches ...*record.Batch) (rejected []record.Rejected) {
	r.Helper()
	tx, err := r.b.BeginTable(r.Context(), t)
	if err != nil {
		r.Fatal(err)
	}
	defer tx.Rollback(r.Context())
	for _, b := range batches {
		some, err := tx.Write(r.Context(), b)
		if err != nil {
			r.Fatal(err)
		}
		rejected = append(rejected, some...)
	}
	if err := tx.Commit(r.Context(), c); err != nil {
		r.Fatal(err)
	}
	return rejected
}

// done is a checkpoint of a part that nobody else has.
func done() driver.Checkpoint {
	return driver.Checkpoint{CheckpointKey: driver.CheckpointKey{Pipeline: "p", Run: "r", Part: uuid.NewString()}, Position: "done"}
}

// TestATableIsCopiedInParts goes the way of a batch run: describe, create, split,
// and read and write each part.
func TestATableIsCopiedInParts(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE a (id bigint PRIMARY KEY, n numeric(12,2), t text, at timestamptz, tags text[], d date, ok boolean, j jsonb, u uuid, f real);
		INSERT INTO a SELECT i, i * 1.25, 'row ' || i, '2026-01-01'::timestamptz + i * interval '1 s', ARRAY['a', NULL, i::text], '2026-01-01', i % 2 = 0,
			jsonb_build_object('i', i), gen_random_uuid(), i / 3.0 FROM generate_series(1, 20000) i; ANALYZE a`)
	shape, err := r.b.DescribeTable(t.Context(), public("a"))
	if err != nil || shape.Rows != 20000 || shape.Bytes < 1<<20 || shape.Kind != "table" || !slices.Equal(shape.Schema.Key, []string{"id"}) {
		t.Fatalf("%+v, %v", shape, err)
	}
	target := driver.TableTarget{Table: public("b"), Mode: driver.Append, Create: true, Schema: shape.Schema}
	const create = `CREATE TABLE "public"."b" (
	"id" bigint NOT NULL,
	"n" numeric(12,2),
	"t" text,
	"at" timestamp with time zone,
	"tags" text[],
	"d" date,
	"ok" boolean,
	"j" jsonb,
	"u" uuid,
	"f" real
)`
	if plan := r.prepare(target); plan.Creates != create {
		t.Errorf("created by %s", plan.Creates)
	}
	parts, err := r.b.SplitTable(t.Context(), driver.TableRead{Table: public("a")}, 1<<18)
	if err != nil || len(parts) < 12 || len(parts) > 16 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	for i, p := range parts {
		b := r.read(driver.TableRead{Table: public("a")}, p)
		if b.Rows() < 500 || b.Rows() > 3000 {
			t.Errorf("part %d has %d rows", i, b.Rows())
		}
		if rejected := r.write(target, done(), b); rejected != nil {
			t.Fatal(rejected[0])
		}
	}
	if got := r.text("SELECT count(*) FROM a FULL JOIN b USING (id) WHERE a IS DISTINCT FROM b"); got != "0" {
		t.Errorf("%s rows differ", got)
	}
}

func TestChangesAreUpserted(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE a (id int PRIMARY KEY, n smallint NOT NULL, t text UNIQUE)`)
	s := &record.Schema{Columns: []record.Column{{Name: "id", Type: record.TypeInt32}, {Name: "n", Type: record.TypeInt32}, {Name: "t", Type: record.TypeText, Nullable: true}}, Key: []string{"id"}}
	target := driver.TableTarget{Table: public("a"), Mode: driver.Upsert, Key: []string{"id"}, Schema: s, Changes: true}
	r.prepare(target)
	b := record.New(s, 10)
	b.Changes = []record.Change{}
	add := func(op cdc.Op, implied bool, values ...any) {
		for i, v := range values {
			switch v := v.(type) {
			case int:
				b.Columns[i].AppendInt(int64(v))
			case string:
				b.Columns[i].AppendString(v)
			case nil:
				b.Columns[i].AppendNull()
			default:
				b.Columns[i].AppendAbsent()
			}
		}
		b.Changes = append(b.Changes, record.Change{Op: op, Implied: implied})
		b.Done()
	}
	absent := struct{}{}
	add(cdc.Insert, false, 1, 1, "a")
	add(cdc.Insert, false, 2, 2, "b")
	add(cdc.Update, false, 1, 11, absent)
	add(cdc.Insert, false, 3, 70000, "c")    // 3: beyond smallint
	add(cdc.Insert, false, 4, 4, "b")        // 4: not unique
	add(cdc.Update, false, 5, 5, absent)     // 5: not there
	add(cdc.Delete, true, 2, absent, absent) // moves
	add(cdc.Update, false, 20, 20, absent)
	add(cdc.Insert, false, 6, 6, "a\x00") // 8
	add(cdc.Insert, false, 7, 7, "q")
	add(cdc.Delete, false, 7, absent, absent)
	rejected := r.write(target, done(), b)
	if got := rowsOf(rejected); !slices.Equal(got, []int{3, 4, 5, 8}) {
		t.Errorf("rejected %+v", rejected)
	}
	for i, want := range []string{`column "n" is 70000, which is beyond smallint`, "Key (t)=(b) already exists", "REPLICA IDENTITY FULL", "U+0000"} {
		if i < len(rejected) && !strings.Contains(rejected[i].Reason, want) {
			t.Errorf("row %d: %s", rejected[i].Row, rejected[i].Reason)
		}
	}
	if got := r.text("SELECT string_agg(a::text, ' ' ORDER BY id) FROM a"); got != "(1,11,a) (20,20,b)" {
		t.Error(got)
	}
}

// TestReadersAndWritersDoNotWaitForThePool reads, writes and asks on a backend
// whose pool has one connection.
func TestReadersAndWritersDoNotWaitForThePool(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE a (id bigint PRIMARY KEY, name text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 3) i; CREATE TABLE b (LIKE a)`)
	one, err := Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(r.dsn), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close(t.Context())
	target := driver.TableTarget{Table: public("b"), Mode: driver.Append, Schema: people}
	if _, err := one.PrepareTable(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	c := done()
	err = one.ReadTable(t.Context(), driver.TableRead{Table: public("a")}, driver.TablePart{}, driver.BatchSize{}, func(b *record.Batch) error {
		for range 2 {
			tx, err := one.BeginTable(t.Context(), target)
			if err != nil {
				return err
			}
			defer tx.Rollback(t.Context())
			if _, err := tx.Write(t.Context(), b); err != nil {
				return err
			}
			if _, there, err := one.Checkpoint(t.Context(), c.CheckpointKey); err != nil || there {
				return fmt.Errorf("a checkpoint is there, %v", err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestACancelledReadMeetsNoOtherStatement cancels reads at any time, whose
// connections may be used again at once.
func TestACancelledReadMeetsNoOtherStatement(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, "")
	st := driver.Statement{Text: "SELECT i FROM generate_series(1, 3000) i"}
	for i := range 60 {
		ctx, cancel := context.WithCancel(t.Context())
		batches := 0
		err := r.b.ReadQuery(ctx, st, driver.BatchSize{Rows: 100}, func(*record.Batch) error {
			if batches++; batches == i {
				cancel()
			}
			return nil
		})
		cancel()
		if err != nil && (!errors.Is(err, context.Canceled) || i > 31) {
			t.Fatalf("cancelled in batch %d: %v", i, err)
		}
		rows := 0
		if err := r.b.ReadQuery(t.Context(), st, driver.BatchSize{}, func(b *record.Batch) error { rows += b.Rows(); return nil }); err != nil || rows != 3000 {
			t.Fatalf("after a cancel in batch %d: %d rows, %v", i, rows, err)
		}
	}
	slow := driver.Statement{Text: "SELECT pg_sleep(60)", Timeout: 50 * time.Millisecond}
	err := r.b.ReadQuery(t.Context(), slow, driver.BatchSize{}, func(*record.Batch) error { return nil })
	if f := r.b.Classify(err); f.Code != athena.CodeTimeout {
		t.Errorf("a statement that takes too long: %+v, %v", f, err)
	}
}
