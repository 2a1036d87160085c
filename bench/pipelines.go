package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/locals3"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// piped is a table of rows of some 265 bytes, as COPY in binary form has them.
const (
	piped = `create table piped (
		id bigint primary key, customer bigint not null, status text not null, total numeric(12,2), placed_at timestamptz not null,
		day date not null, paid boolean not null, reference uuid not null, note text, payload jsonb)`
	pipedRows = `insert into piped select g, g %% 100000, 'status ' || g %% 7, g %% 1000000 / 100.0, '2026-01-01'::timestamptz + g * interval '1 second',
		'2026-01-01'::date + (g / 86400)::int, g %% 3 = 0, md5(g::text)::uuid, md5(g::text) || ' ' || md5((g + 1)::text), jsonb_build_object('n', g, 'tag', md5((g * 7)::text))
		from generate_series(1, %d) g`
)

// plant is a rig with a table to pipe, a second database and a bucket.
type plant struct {
	*rig.Rig
	api  *sdk.API
	conn *pgx.Conn
	copy string // DSN of the second database
	dir  string // of secrets
	s3   *locals3.Server
	lake *s3.Backend
}

func (p *plant) close(ctx context.Context) {
	if p.conn != nil {
		p.conn.Close(ctx)
	}
	os.RemoveAll(p.dir)
	if p.s3 != nil {
		p.s3.Stop(context.WithoutCancel(ctx))
	}
}

const benchKey, benchSecret = "AKIABENCH", "bench-secret-of-this-machine-alone"

func planted(ctx context.Context, r *rig.Rig, rows int) (p *plant, err error) {
	p = &plant{Rig: r}
	if p.api, err = sdk.New(r.URL, rig.AdminKey, sdk.Options{}); err != nil {
		return p, err
	}
	if err := r.Client("shop", 8, "cdc", "pipeline_source", "pipeline_sink"); err != nil {
		return p, err
	}
	if p.conn, err = pgx.Connect(ctx, r.DSN()); err != nil {
		return p, err
	}
	if _, err := p.conn.Exec(ctx, "create database copy"); err != nil {
		return p, err
	}
	p.copy = r.Database.DSN("copy")
	// The workers do not have the server's key, so secrets are in files.
	if p.dir, err = os.MkdirTemp("", "athena-bench-"); err != nil {
		return p, err
	}
	dsn, secret := filepath.Join(p.dir, "copy.dsn"), filepath.Join(p.dir, "s3.secret")
	if err := errors.Join(os.WriteFile(dsn, []byte(p.copy), 0o600), os.WriteFile(secret, []byte(benchSecret), 0o600)); err != nil {
		return p, err
	}
	if err := p.put("copy", map[string]any{
		"client_name": "copy", "engine": "postgres", "lifecycle": "active", "capabilities": map[string]bool{"gateway_query": true, "pipeline_sink": true},
		"connection": map[string]any{"dsn": "file:" + dsn, "max_conns": 8},
	}); err != nil {
		return p, err
	}
	if p.s3, err = locals3.Start(ctx, locals3.Config{AccessKeyID: benchKey, SecretAccessKey: benchSecret}); err != nil {
		return p, err
	}
	conn := athena.S3Conn{Endpoint: p.s3.Endpoint(), Region: locals3.Region, Bucket: "lake", AccessKeyID: benchKey, SecretAccessKey: athena.NewSecret(benchSecret), PathStyle: true}
	if p.lake, err = s3.Open(ctx, conn); err != nil {
		return p, err
	}
	if _, err := p.lake.Provision(ctx, driver.Provision{Kind: "bucket", Name: "lake"}); err != nil {
		return p, err
	}
	if err := p.put("lake", map[string]any{
		"client_name": "lake", "engine": "s3", "lifecycle": "active",
		"capabilities": map[string]bool{"object_read": true, "object_write": true, "pipeline_source": true, "pipeline_sink": true},
		"connection":   map[string]any{"endpoint": conn.Endpoint, "region": conn.Region, "bucket": "lake", "access_key_id": benchKey, "secret_access_key": "file:" + secret, "path_style": true},
	}); err != nil {
		return p, err
	}
	if _, err := p.conn.Exec(ctx, piped); err != nil {
		return p, err
	}
	if rows > 0 {
		if _, err := p.conn.Exec(ctx, fmt.Sprintf(pipedRows, rows)); err != nil {
			return p, err
		}
		_, err = p.conn.Exec(ctx, "vacuum (analyze, freeze) piped")
	}
	return p, err
}

func (p *plant) put(name string, definition map[string]any) error {
	status, reply, err := p.Call(http.MethodPut, "/admin/clients/"+name, "", definition)
	if err == nil && status >= 300 {
		err = fmt.Errorf("client %s: %d %s", name, status, reply.Message)
	}
	return err
}

// exec runs statements one by one: some must not be in a transaction.
func (p *plant) exec(ctx context.Context, statements ...string) error {
	for _, s := range statements {
		if _, err := p.conn.Exec(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// run runs a batch, and returns it when it is over, with how long its work took.
func (p *plant) run(ctx context.Context, definition map[string]any) (*sdk.RunInfo, time.Duration, error) {
	raw, err := json.Marshal(definition)
	if err != nil {
		return nil, 0, err
	}
	begin := time.Now()
	info, err := p.api.Pipelines().Run(ctx, raw, sdk.RunOptions{})
	if err != nil {
		return nil, 0, err
	}
	run := p.api.Run(info.ID)
	for end := begin.Add(10 * time.Minute); !info.State.Over(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return nil, 0, fmt.Errorf("after 10 minutes the run is %s", info.State)
		}
		if info, err = run.Get(ctx); err != nil {
			return nil, 0, err
		}
	}
	return info, time.Since(begin), info.Err()
}

// psql runs PostgreSQL's own client, or several in a pipe, as a shell would.
func (p *plant) psql(ctx context.Context, script string) (time.Duration, error) {
	bin, err := localpg.Find()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(script, "psql", filepath.Join(bin, "psql")+" -qX -v ON_ERROR_STOP=1")).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return time.Since(begin), nil
}

func perSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// toParquet measures a table going to parquet, beside the same table going to
// nowhere through psql, before and after.
func toParquet(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 2_000_000
	if quick {
		n = 400_000
	}
	p, err := planted(ctx, r, n)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	raw := fmt.Sprintf(`psql -d '%s' -c "copy piped to stdout (format binary)" > /dev/null`, r.DSN())
	before, err := p.psql(ctx, raw)
	if err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, took, err := p.run(ctx, map[string]any{
		"source": map[string]any{"client": "shop", "table": "public.piped"},
		"sink":   map[string]any{"client": "lake", "objects": map[string]any{"prefix": "piped/"}},
	})
	rss := stop()
	if err != nil {
		return nil, err
	}
	if info.Counts.Written != int64(n) {
		return nil, fmt.Errorf("%d rows were written of %d", info.Counts.Written, n)
	}
	after, err := p.psql(ctx, raw)
	if err != nil {
		return nil, err
	}
	limit := min(before, after)
	return []figure{
		{"PostgreSQL to parquet, of psql's rate to nowhere", perSecond(n, took) / perSecond(n, limit), "", 0.5, false,
			note("%.0f rows/s of %.0f; %d objects, zstd, by multipart upload to the S3 server on this machine", perSecond(n, took), perSecond(n, limit), info.Counts.Objects)},
		{"worker RSS, to parquet", mib(rss), "MiB", 256, true, "peak"},
	}, nil
}

// toTable measures a table going to another database, beside psql doing it.
func toTable(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 1_000_000
	if quick {
		n = 300_000
	}
	p, err := planted(ctx, r, n)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	to, err := pgx.Connect(ctx, p.copy)
	if err != nil {
		return nil, err
	}
	defer to.Close(ctx)
	if _, err := to.Exec(ctx, piped); err != nil {
		return nil, err
	}
	raw := fmt.Sprintf(`psql -d '%s' -c "copy piped to stdout (format binary)" | psql -d '%s' -c "copy piped from stdin (format binary)"`, r.DSN(), p.copy)
	piping := func() (time.Duration, error) {
		if _, err := to.Exec(ctx, "truncate piped"); err != nil {
			return 0, err
		}
		return p.psql(ctx, raw)
	}
	before, err := piping()
	if err != nil {
		return nil, err
	}
	if _, err := to.Exec(ctx, "truncate piped"); err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, took, err := p.run(ctx, map[string]any{
		"source": map[string]any{"client": "shop", "table": "public.piped"},
		"sink":   map[string]any{"client": "copy", "table": "public.piped"},
	})
	rss := stop()
	if err != nil {
		return nil, err
	}
	var there int
	if err := to.QueryRow(ctx, "select count(*) from piped").Scan(&there); err != nil || there != n || info.Counts.Written != int64(n) {
		return nil, errors.Join(err, fmt.Errorf("%d rows are there of %d, and %d are told", there, n, info.Counts.Written))
	}
	after, err := piping()
	if err != nil {
		return nil, err
	}
	limit := min(before, after)
	return []figure{
		{"PostgreSQL to PostgreSQL, of psql | psql", perSecond(n, took) / perSecond(n, limit), "", 0.9, false,
			note("%.0f rows/s of %.0f; no transforms, exactly once", perSecond(n, took), perSecond(n, limit))},
		{"worker RSS, to a table", mib(rss), "MiB", 150, true, "peak"},
	}, nil
}

// changesToTable measures how fast a backlog of changes is applied by key.
func changesToTable(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 300_000
	if quick {
		n = 50_000
	}
	p, err := planted(ctx, r, 0)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	to, err := pgx.Connect(ctx, p.copy)
	if err != nil {
		return nil, err
	}
	defer to.Close(ctx)
	for _, conn := range []*pgx.Conn{p.conn, to} {
		if conn == to {
			if _, err := to.Exec(ctx, piped); err != nil {
				return nil, err
			}
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(pipedRows, n)); err != nil {
			return nil, err
		}
	}
	status, reply, err := p.Call(http.MethodPost, "/cdc/shop/enable", "", map[string]any{"tables": []string{"public.piped"}, "snapshot": changefeed.SnapshotNone})
	if err != nil || status >= 300 {
		return nil, errors.Join(err, fmt.Errorf("enable: %d %s", status, reply.Message))
	}
	if err := streams(ctx, r); err != nil {
		return nil, err
	}
	definition, err := json.Marshal(map[string]any{
		"source": map[string]any{"client": "shop", "cdc": map[string]any{"tables": []string{"public.piped"}, "snapshot": "never"}},
		"sink":   map[string]any{"client": "copy", "table": "public.piped", "mode": "upsert", "key": []string{"id"}},
	})
	if err != nil {
		return nil, err
	}
	if _, err := p.api.Pipelines().Put(ctx, "follow", definition, 0); err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, err := p.api.Pipelines().Start(ctx, "follow", sdk.RunOptions{})
	if err != nil {
		return nil, err
	}
	run := p.api.Run(info.ID)
	if err := rig.Until(ctx, time.Minute, func() bool { info, err = run.Get(ctx); return err == nil && info.State == "streaming" }); err != nil {
		return nil, fmt.Errorf("the stream does not begin: %w", err)
	}
	begin := time.Now()
	if _, err := p.conn.Exec(ctx, "update piped set note = 'sent'"); err != nil {
		return nil, err
	}
	written := time.Since(begin)
	var there int
	if err := rig.Until(ctx, 10*time.Minute, func() bool {
		return to.QueryRow(ctx, "select count(*) from piped where note = 'sent'").Scan(&there) == nil && there == n
	}); err != nil {
		return nil, fmt.Errorf("%d changes were applied of %d: %w", there, n, err)
	}
	took := time.Since(begin)
	return []figure{
		{"changes to a table, upsert", perSecond(n, took), "changes/s", 20_000, false,
			note("from the update's begin to the last row in the copy, its capture and the update itself (%.1f s) on the same cores", written.Seconds())},
		{"worker RSS, changes to a table", mib(stop()), "MiB", 256, true, "peak; the capture runs in it too"},
	}, nil
}

// planOfHundred measures a static plan over HTTP.
func planOfHundred(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	p, err := planted(ctx, r, 0)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	steps := make([]any, 98)
	for i := range steps {
		steps[i] = map[string]any{"set": map[string]string{fmt.Sprintf("c%d", i): fmt.Sprintf("row.id + %d", i)}}
	}
	raw, err := json.Marshal(map[string]any{
		"source": map[string]any{"client": "shop", "table": "public.piped"}, "transforms": steps,
		"sink": map[string]any{"client": "lake", "objects": map[string]any{"prefix": "plan/"}},
	})
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for range 20 {
		begin := time.Now()
		if _, err := p.api.Pipelines().Plan(ctx, sdk.PlanQuestion{Definition: raw, Level: "static"}); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return []figure{{"static plan of 100 stages", ms(quantile(took, 0.5)), "ms", 50, true, "p50 over HTTP"}}, nil
}

// poison measures what one row in a hundred that cannot go on costs.
func poison(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 500_000
	if quick {
		n = 100_000
	}
	p, err := planted(ctx, r, n)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.exec(ctx, "alter table piped add amount text", "update piped set amount = id::text", "vacuum full analyze piped"); err != nil {
		return nil, err
	}
	definition := func(to string) map[string]any {
		return map[string]any{
			"source": map[string]any{"client": "shop", "table": "public.piped"}, "transforms": []any{map[string]any{"cast": map[string]string{"amount": "int64"}}},
			"sink": map[string]any{"client": "copy", "table": "public." + to, "create": true}, "errors": map[string]any{"max_rate": 0.02},
		}
	}
	_, clean, err := p.run(ctx, definition("clean"))
	if err != nil {
		return nil, err
	}
	if err := p.exec(ctx, "update piped set amount = 'poison' where id % 100 = 0", "vacuum full analyze piped"); err != nil {
		return nil, err
	}
	info, poisoned, err := p.run(ctx, definition("poisoned"))
	if err != nil {
		return nil, err
	}
	if info.Counts.Rejected != int64(n/100) {
		return nil, fmt.Errorf("%d rows were rejected of %d", info.Counts.Rejected, n/100)
	}
	_, again, err := p.run(ctx, definition("again"))
	if err != nil {
		return nil, err
	}
	return []figure{{"throughput with 1% poison, of that without", clean.Seconds() / min(poisoned, again).Seconds(), "", 0.9, false,
		note("%.0f rows/s of %.0f; each of the %d rows is kept with its cause", perSecond(n, min(poisoned, again)), perSecond(n, clean), n/100)}}, nil
}

// manyRows measures the worker's memory over a long run.
func manyRows(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 10_000_000
	if quick {
		n = 1_000_000
	}
	p, err := planted(ctx, r, n)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, took, err := p.run(ctx, map[string]any{
		"source":     map[string]any{"client": "shop", "table": "public.piped"},
		"transforms": []any{map[string]any{"filter": "row.paid || row.id > 0"}, map[string]any{"set": map[string]string{"cents": "int(double(row.total) * 100.0)"}}},
		"sink":       map[string]any{"client": "lake", "objects": map[string]any{"prefix": "many/day={{day}}/"}},
	})
	rss := stop()
	if err != nil {
		return nil, err
	}
	if info.Counts.Written != int64(n) {
		return nil, fmt.Errorf("%d rows were written of %d", info.Counts.Written, n)
	}
	return []figure{{"worker RSS, " + millions(n) + " rows", mib(rss), "MiB", 256, true,
		note("peak; filter, set, parquet by day: %.0f rows/s", perSecond(n, took))}}, nil
}
