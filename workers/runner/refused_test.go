package runner_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// TestOneRowDoesNotHoldUpAVerbatimCopy copies a table straight into another, which
// refuses two of its rows.
func TestOneRowDoesNotHoldUpAVerbatimCopy(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 3000) i`)
	exec(t, d.copy, `CREATE TABLE items (id int PRIMARY KEY, name text CHECK (name <> 'item 2000')); INSERT INTO items VALUES (7, 'mine')`)
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.items}
sink: {client: copy, table: public.items}
errors: {max_rate: 0.01}
`)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 3000 || r.Totals.Written != 2998 || r.Totals.Rejected != 2 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM items"); n != 2999 {
		t.Errorf("the copy has %d rows", n)
	}
}
