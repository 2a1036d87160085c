package runner_test

import (
	"fmt"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// TestASourceThatChangesIsHeldAgainstTheContract changes the columns of a table
// while a stream follows it.
func TestASourceThatChangesIsHeldAgainstTheContract(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		contract string
		change   string
		// What is there afterwards; empty is that the run fails.
		copied             string
		discarded, refused int64
	}{
		"a new column evolves": {
			"{columns: evolve}", "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (3, 30, 7), (4, 40, NULL)",
			"1:10: 2:20: 3:30:7 4:40:", 0, 0},
		"a new column is frozen out": {
			"{columns: freeze}", "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (3, 30, 7)", "", 0, 0},
		"the values of a new column are dropped": {
			"{columns: discard_value}", "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (3, 30, 7), (4, 40, NULL)",
			"1:10 2:20 3:30 4:40", 0, 0},
		"rows with a new column are dropped": {
			"{columns: discard_row}", "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (3, 30, 7), (4, 40, NULL)",
			"1:10 2:20 4:40", 1, 0},
		"rows with a new column are kept apart": {
			"{columns: quarantine}", "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (3, 30, 7), (4, 40, NULL)",
			"1:10 2:20 4:40", 0, 1},
		"a wider type evolves": {
			"{types: evolve}", "ALTER TABLE items ALTER n TYPE bigint; INSERT INTO items VALUES (3, 3000000000)",
			"1:10 2:20 3:3000000000", 0, 0},
		"another type is frozen out": {
			"{types: freeze}", "ALTER TABLE items ALTER n TYPE bigint; INSERT INTO items VALUES (3, 30)", "", 0, 0},
		"values that do not fit any more are dropped": {
			"{types: discard_value}", "ALTER TABLE items ALTER n TYPE text; INSERT INTO items VALUES (3, '30'), (4, 'four')",
			"1:10 2:20 3:30 4:", 0, 0},
		"rows that do not fit any more are dropped": {
			"{types: discard_row}", "ALTER TABLE items ALTER n TYPE text; INSERT INTO items VALUES (3, '30'), (4, 'four')",
			"1:10 2:20 3:30", 1, 0},
		"rows that do not fit any more are kept apart": {
			"{types: quarantine}", "ALTER TABLE items ALTER n TYPE text; INSERT INTO items VALUES (3, '30'), (4, 'four')",
			"1:10 2:20 3:30", 0, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, "CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 10), (2, 20)")
			d.capture("items")
			d.work("one")
			r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.items]}}
sink: {client: copy, table: public.items, create: true}
errors: {max_rate: 1}
schema: `+tt.contract)
			d.state(r.ID, runs.Streaming)
			d.same("items")
			exec(t, d.shop, tt.change)
			if tt.copied == "" {
				if r = d.state(r.ID, runs.Failed); r.Cause == nil || r.Cause.Code != athena.CodeSchemaChanged {
					t.Errorf("the cause is %+v", r.Cause)
				}
				// Once the contract allows it, it goes on where it was.
				d.change(r.ID, func(r *runs.Run) {
					r.Spec = []byte(`{"source": {"client": "shop", "cdc": {"tables": ["public.items"]}}, "sink": {"client": "copy", "table": "public.items", "create": true}, "schema": {"columns": "evolve", "types": "evolve"}}`)
				})
				d.resume(r.ID)
				d.same("items")
				return
			}
			await(t, "the copy", func() string {
				got := one[string](t, d.copy, `SELECT string_agg(concat_ws(':', variadic array(SELECT coalesce(v, '') FROM jsonb_each_text(to_jsonb(i)) AS e(k, v) ORDER BY array_position('{id,n,extra}', k))), ' ' ORDER BY id) FROM items i`)
				if got == tt.copied {
					return ""
				}
				return fmt.Sprintf("it has %s, not %s", got, tt.copied)
			})
			await(t, "the counts", func() string {
				p, _ := d.store.Progress(r.ID)
				if p.Counts.Discarded == tt.discarded && p.Counts.Rejected == tt.refused {
					return ""
				}
				return fmt.Sprintf("%+v", p.Counts)
			})
			if n, err := d.store.CountRejected(t.Context(), r.PipelineID); err != nil || n != tt.refused {
				t.Errorf("%d rows are kept, %v", n, err)
			}
		})
	}
}
