package runner_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// Changes of columns that wait together, with rows before, between and behind them,
// are taken over one after the other.
func TestColumnsThatChangeWhileAStreamIsPausedAreTakenOver(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text); INSERT INTO orders VALUES (1, 'new')`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, follow)
	d.state(r.ID, runs.Streaming)
	d.same("orders")
	d.want(r.ID, runs.WantPause)
	d.state(r.ID, runs.Paused)
	for _, sql := range []string{
		`INSERT INTO orders VALUES (2, 'new')`, `ALTER TABLE orders ADD COLUMN note text`, `INSERT INTO orders VALUES (3, 'new', 'a')`,
		`ALTER TABLE orders ADD COLUMN total int`, `INSERT INTO orders VALUES (4, 'new', 'b', 4)`, `UPDATE orders SET status = 'paid', note = 'c' WHERE id = 2`,
	} {
		exec(t, d.shop, sql)
	}
	d.resume(r.ID)
	d.same("orders")
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
}
