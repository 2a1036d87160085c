package runner_test

import (
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// What a run keeps in the target's database beside its rows goes when the run does.
func TestARunThatIsForgottenLeavesNothingButItsRows(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 200) i`)
	exec(t, d.copy, `CREATE TABLE choosy (id int PRIMARY KEY, name text CHECK (name = 'item 1'))`)
	stop := d.work("one")
	good := d.submit(runs.Batch, "source: {client: shop, table: public.items}\nsink: {client: copy, table: public.items, create: true}")
	d.state(good.ID, runs.Succeeded)
	bad := d.submit(runs.Batch, "source: {client: shop, table: public.items}\nsink: {client: copy, table: public.choosy, mode: merge}")
	d.state(bad.ID, runs.Failed)
	const kept = `SELECT (SELECT count(*) FROM athena.checkpoints) || ' checkpoints, ' || (SELECT count(*) FROM pg_tables WHERE schemaname = 'athena' AND tablename LIKE 'stage%') || ' tables'`
	if got := one[string](t, d.copy, kept); got != "1 checkpoints, 1 tables" {
		t.Errorf("there are %s", got)
	}
	stop()
	d.config.Keep = time.Nanosecond
	d.work("two")
	for _, r := range []runs.Run{good, bad} {
		await(t, "the end of run "+r.ID, func() string {
			if _, ok := d.store.Load(r.ID); ok {
				return "it is there"
			}
			return ""
		})
	}
	if got := one[string](t, d.copy, kept); got != "0 checkpoints, 0 tables" {
		t.Errorf("%s are left", got)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM items"); n != 200 {
		t.Errorf("the copy has %d rows", n)
	}
}

// How far a pipeline has come says nothing of another client's stream.
func TestAStreamDoesNotGoOnInTheStreamOfAnotherClient(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 10)`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, follow)
	d.same("orders")
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
	next := d.resubmit(r, func(n *runs.Run) {
		n.Spec = []byte(strings.Replace(string(r.Spec), `"client":"shop"`, `"client":"copy"`, 1))
		n.Source = "copy"
	})
	if next = d.state(next.ID, runs.Failed); next.Cause == nil || next.Cause.Code != athena.CodeConflict || next.Cause.Stage != "source" {
		t.Errorf("the cause is %+v", next.Cause)
	}
}
