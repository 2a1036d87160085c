package runner_test

import (
	"context"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// A worker that lost its slot may still commit what it was about to. Whoever does
// the task again finds that out when it commits, and takes it as done.
func TestATaskThatAnotherWorkerCommitsMeanwhileIsDone(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 10) i`)
	exec(t, d.copy, `CREATE TABLE items (id int, name text)`)
	d.work("one")
	const definition = `
source: {client: shop, table: public.items}
sink: {client: copy, table: public.items}
`
	d.state(d.submit(runs.Batch, definition).ID, runs.Succeeded) // makes what checkpoints are kept in
	exec(t, d.copy, `TRUNCATE items`)

	other, err := d.copy.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.Background())
	if _, err := other.Exec(t.Context(), `LOCK TABLE items IN SHARE MODE`); err != nil { // holds up who writes
		t.Fatal(err)
	}
	r := d.submit(runs.Batch, definition)
	await(t, "the attempt", func() string {
		var waits bool
		if err := other.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'items'::regclass AND NOT granted)`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		if waits {
			return ""
		}
		return "nobody waits to write"
	})
	if _, err := other.Exec(t.Context(), `INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 10) i`); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `INSERT INTO athena.checkpoints (pipeline, run, part, position, note) VALUES ($1, $2, '000000', 'done', '{"read": 10, "written": 10}')`, r.PipelineID, r.ID); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r = d.state(r.ID, runs.Succeeded); r.Totals.Written != 10 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM items"); n != 10 {
		t.Errorf("the copy has %d rows", n)
	}
}
