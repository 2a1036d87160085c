package runner_test

import (
	"fmt"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
)

const follow = `
name: follow
source: {client: shop, cdc: {tables: [public.orders]}}
sink: {client: copy, table: public.orders, mode: upsert, create: true}
`

// same waits until the copy is as the source.
func (d *deployment) same(table string) {
	d.t.Helper()
	await(d.t, "the copy", func() string {
		if one[*string](d.t, d.copy, "SELECT to_regclass($1)::text", table) == nil {
			return "there is no copy"
		}
		a, b := sum(d.t, d.shop, table, "*", "id"), sum(d.t, d.copy, table, "*", "id")
		if a == b {
			return ""
		}
		return fmt.Sprintf("the source has %s, the copy %s", a, b)
	})
}

func TestAStreamKeepsACopy(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), big text);
		INSERT INTO orders SELECT i, 'new', i, repeat(md5(i::text), 200) FROM generate_series(1, 1000) i`)
	d.capture("orders")
	stop := d.work("one")
	r := d.submit(runs.Stream, follow)
	d.state(r.ID, runs.Streaming)
	d.same("orders")
	exec(t, d.shop, `UPDATE orders SET status = 'paid' WHERE id % 2 = 0; DELETE FROM orders WHERE id % 5 = 0; INSERT INTO orders VALUES (5000, 'new', 1, NULL)`)
	exec(t, d.shop, `UPDATE orders SET id = id + 10000 WHERE id % 7 = 0`)
	d.same("orders")

	// A client that is frozen holds the stream; a thaw lets it go on.
	d.lifecycle("copy", athena.Frozen)
	if r := d.state(r.ID, runs.Degraded); r.Cause == nil || r.Cause.Code != athena.CodeClientFrozen {
		t.Errorf("the cause is %+v", r.Cause)
	}
	exec(t, d.shop, `UPDATE orders SET status = 'sent'`)
	d.lifecycle("copy", athena.Active)
	d.state(r.ID, runs.Streaming)
	d.same("orders")

	// Another worker goes on where the first one stopped.
	stop()
	exec(t, d.shop, `TRUNCATE orders; INSERT INTO orders SELECT i, 'new', i, NULL FROM generate_series(1, 10) i`)
	d.work("two")
	d.same("orders")

	d.want(r.ID, runs.WantPause)
	d.state(r.ID, runs.Paused)
	exec(t, d.shop, `DELETE FROM orders WHERE id = 3`)
	d.resume(r.ID)
	d.same("orders")
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
}

// lifecycle gives a client another lifecycle.
func (d *deployment) lifecycle(name string, l athena.Lifecycle) {
	d.t.Helper()
	d.redefine(name, func(c *athena.Client) { c.Lifecycle = l })
}

// redefine changes a client.
func (d *deployment) redefine(name string, change func(*athena.Client)) {
	d.t.Helper()
	c, err := d.catalog.Client(d.t.Context(), name)
	if err != nil {
		d.t.Fatal(err)
	}
	next := *c
	change(&next)
	if _, err := d.catalog.Put(d.t.Context(), &next, catalog.Expect(c.Revision)); err != nil {
		d.t.Fatal(err)
	}
}
