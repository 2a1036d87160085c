package runner_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// objects lists what is there below a prefix.
func (d *deployment) objects(prefix string) (keys []string) {
	d.t.Helper()
	page, err := d.lake.Objects(context.Background(), driver.ObjectList{Prefix: prefix})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, o := range page.Objects {
		keys = append(keys, o.Key)
	}
	return keys
}

func (d *deployment) object(key string) []byte {
	d.t.Helper()
	o, err := d.lake.ReadObject(context.Background(), key, driver.ObjectRead{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer o.Close()
	raw, err := io.ReadAll(o)
	if err != nil {
		d.t.Fatal(err)
	}
	return raw
}

// manifests are all of them below a prefix.
func (d *deployment) manifests(prefix string) (all []sink.Manifest) {
	d.t.Helper()
	for _, key := range d.objects(prefix + sink.ManifestFolder) {
		var m sink.Manifest
		if err := json.Unmarshal(d.object(key), &m); err != nil {
			d.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// listed holds the objects that are there below a prefix against those that the
// manifests list, and returns the number of rows.
func (d *deployment) listed(prefix string) (rows int64) {
	d.t.Helper()
	in := map[string]int{}
	for _, m := range d.manifests(prefix) {
		rows += m.Rows
		for _, o := range m.Objects {
			in[o.Key]++
		}
	}
	for _, key := range d.objects(prefix) {
		switch {
		case strings.Contains(key, "/"+sink.ManifestFolder):
		case in[key] != 1:
			d.t.Errorf("object %s is listed %d times", key, in[key])
		}
		delete(in, key)
	}
	for key := range in {
		d.t.Errorf("object %s is listed and not there", key)
	}
	left, err := d.lake.StagedObjects(context.Background(), prefix, time.Now().Add(time.Hour))
	if err != nil || len(left) > 0 {
		d.t.Errorf("uploads are left: %+v, %v", left, err)
	}
	return rows
}

func TestATableGoesToObjectsAndBack(t *testing.T) {
	t.Parallel()
	for _, f := range []string{"parquet", "ndjson", "csv"} {
		t.Run(f, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), created_at timestamptz, day date, ok bool, note jsonb, raw bytea, u uuid);
				INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' WHEN i % 7 = 0 THEN NULL ELSE 'new' END, i * 1.5, '2026-01-01'::timestamptz + i * interval '1 hour', '2026-01-01'::date + i / 24, i % 2 = 0,
					jsonb_build_object('i', i), decode(md5(i::text), 'hex'), md5(i::text)::uuid FROM generate_series(1, 5000) i; ANALYZE`)
			d.config.PartBytes = 200 << 10
			d.work("one")
			r := d.submit(runs.Batch, fmt.Sprintf(`
source: {client: shop, table: public.orders}
sink: {client: lake, objects: {prefix: 'orders/status={{status}}/', format: %s}}
parallel: 3
`, f))
			r = d.state(r.ID, runs.Succeeded)
			if r.Totals.Written != 5000 || r.Totals.Objects < 3 {
				t.Errorf("the totals are %+v", r.Totals)
			}
			if n := d.listed("orders/"); n != 5000 {
				t.Errorf("the manifests list %d rows", n)
			}
			back := d.submit(runs.Batch, `
source: {client: lake, objects: {prefix: orders/}}
sink: {client: copy, table: public.orders, create: true}
`)
			d.state(back.ID, runs.Succeeded)
			columns := "*"
			if f != "parquet" {
				// What a text format does not say is inferred from the rows.
				columns = "id::bigint, status, total::float8, created_at::timestamptz"
			}
			if a, b := sum(t, d.shop, "orders", columns, "id"), sum(t, d.copy, "orders", columns, "id"); a != b {
				t.Errorf("the source has %s, the copy %s", a, b)
			}
		})
	}
}

func TestAStreamGoesToObjects(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2));
		INSERT INTO orders SELECT i, 'new', i FROM generate_series(1, 1000) i`)
	d.capture("orders")
	stop := d.work("one")
	r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.orders]}}
transforms: [{cast: {total: 'decimal(12,2)'}}]
sink: {client: lake, objects: {prefix: 'orders/status={{status}}/', format: ndjson, roll: {rows: 700, every: 1s}}}
`)
	exec(t, d.shop, `UPDATE orders SET status = 'paid' WHERE id % 2 = 0; DELETE FROM orders WHERE id % 5 = 0`)
	rows := func(n int64) {
		await(t, "the rows", func() string {
			var sum int64
			for _, m := range d.manifests("orders/") {
				sum += m.Rows
			}
			if sum == n {
				return ""
			}
			return fmt.Sprint(sum)
		})
	}
	rows(1700)
	stop()
	exec(t, d.shop, `UPDATE orders SET status = 'sent' WHERE id % 2 = 0`)
	d.work("two")
	rows(2100)
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
	if n := d.listed("orders/"); n != 2100 {
		t.Errorf("the manifests list %d rows", n)
	}
	seen := map[string]bool{}
	for _, key := range d.objects("orders/") {
		if !strings.HasSuffix(key, ".ndjson") {
			continue
		}
		for line := range strings.Lines(string(d.object(key))) {
			var row struct {
				Pos string `json:"_pos"`
				Op  string `json:"_op"`
			}
			if err := json.Unmarshal([]byte(line), &row); err != nil || row.Pos == "" || seen[row.Pos] {
				t.Fatalf("the line %s, %v", line, err)
			}
			seen[row.Pos] = true
		}
	}
	if len(seen) != 2100 {
		t.Errorf("%d changes are there", len(seen))
	}
}
