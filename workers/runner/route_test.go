package runner_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// One table may be called by several names, and what names none is a row that
// cannot go on.
func TestRoutesThatNameOneTableAreOneAndThoseThatNameNoneAreKept(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, place text)`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.orders]}}
transforms: [{route: row.place}]
sink: {client: copy, table: public.orders, mode: upsert, create: true}
errors: {max_rate: 1}
`)
	d.state(r.ID, runs.Streaming)
	exec(t, d.shop, `INSERT INTO orders VALUES (1, 'east'), (2, 'public.east'), (3, 'no.such.table'), (4, '"public"."east"'), (5, 'west')`)
	exec(t, d.shop, `UPDATE orders SET place = 'east' WHERE id = 2`)
	await(t, "the copies", func() string {
		if one[*string](t, d.copy, "SELECT to_regclass('west')::text") == nil {
			return "there is none"
		}
		if got := one[string](t, d.copy, `SELECT coalesce(string_agg(id || ' ' || place, ', ' ORDER BY id), '') FROM east`); got != `1 east, 2 east, 4 "public"."east"` {
			return "it has " + got
		}
		return ""
	})
	kept, err := d.store.ListRejected(t.Context(), r.PipelineID, 0, 10)
	if err != nil || len(kept) != 1 || kept[0].Stage != "transforms[0]" || kept[0].Pos == "" {
		t.Errorf("kept are %+v, %v", kept, err)
	}
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
}
