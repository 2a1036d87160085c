package postgres_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// BenchmarkSmallQuery compares a small read through the driver, with its own
// transaction, timeout and JSON, with the same through a bare pgx pool. The two
// take turns, so that they meet the same machine. It reports the medians and
// their ratio; the target is at most 0.2 ms above.
func BenchmarkSmallQuery(b *testing.B) {
	dsn := pgtest.DSN(b)
	ctx := context.Background()
	backend, err := postgres.Open(ctx, athena.PostgresConn{DSN: athena.NewSecret(dsn)})
	if err != nil {
		b.Fatal(err)
	}
	defer backend.Close(ctx)
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `CREATE TABLE small AS SELECT i::bigint AS id, 'name ' || i AS name, now() AS at FROM generate_series(1, 1000) AS i;
		ALTER TABLE small ADD PRIMARY KEY (id); ANALYZE small`); err != nil {
		b.Fatal(err)
	}
	const text = `SELECT id, name, at FROM small WHERE id = $1`

	raw := func() {
		rows, err := pool.Query(ctx, text, int64(7))
		if err != nil {
			b.Fatal(err)
		}
		if got, err := pgx.CollectRows(rows, pgx.RowToMap); err != nil || len(got) != 1 {
			b.Fatal(len(got), err)
		}
	}
	var buf []byte
	driven := func(st driver.Statement) func() {
		return func() {
			rows, err := backend.Query(ctx, st)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for rows.Next() {
				buf = rows.AppendJSON(buf[:0])
				n++
			}
			if err := rows.Close(); err != nil || n != 1 {
				b.Fatal(n, err)
			}
		}
	}
	st := driver.Statement{Text: text, Params: []json.RawMessage{json.RawMessage("7")}, Timeout: time.Minute, ReadOnly: true}
	tracked := func() {
		rows, err := backend.QueryTracked(ctx, driver.Statement{Text: `UPDATE small SET name = $2 WHERE id = $1`, Params: []json.RawMessage{json.RawMessage("7"), json.RawMessage(`"x"`)}, Timeout: time.Minute})
		if err != nil {
			b.Fatal(err)
		}
		if err := rows.Commit(ctx, func(context.Context, driver.Token) error { return nil }); err != nil {
			b.Fatal(err)
		}
		rows.Close()
	}
	took := func(f func()) time.Duration {
		start := time.Now()
		f()
		return time.Since(start)
	}
	var bare, ours, writes []time.Duration
	for b.Loop() {
		bare = append(bare, took(raw))
		ours = append(ours, took(driven(st)))
		writes = append(writes, took(tracked))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds()) / 1e6
	}
	b.ReportMetric(median(bare), "pgx-p50-ms")
	b.ReportMetric(median(ours), "driver-p50-ms")
	b.ReportMetric(median(ours)-median(bare), "above-ms")
	b.ReportMetric(median(ours)/median(bare), "ratio")
	b.ReportMetric(median(writes), "tracked-p50-ms")
}

// BenchmarkManyRows measures rows per second of a large read, as JSON.
func BenchmarkManyRows(b *testing.B) {
	backend, err := postgres.Open(b.Context(), athena.PostgresConn{DSN: athena.NewSecret(pgtest.DSN(b))})
	if err != nil {
		b.Fatal(err)
	}
	defer backend.Close(context.Background())
	const n = 200_000
	var buf []byte
	bytes := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		rows, err := backend.Query(b.Context(), driver.Statement{ReadOnly: true, Text: `SELECT i AS id, 'customer ' || i AS name,
			(i * 1.25)::numeric(12,2) AS total, '2026-11-22 10:00:00+00'::timestamptz + i * interval '1 s' AS at, i % 2 = 0 AS paid
			FROM generate_series(1, 200000) AS i`})
		if err != nil {
			b.Fatal(err)
		}
		got := 0
		for rows.Next() {
			buf = rows.AppendJSON(buf[:0])
			bytes += int64(len(buf))
			got++
		}
		if err := rows.Close(); err != nil || got != n {
			b.Fatal(got, err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "rows/s")
}
