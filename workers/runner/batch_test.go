package runner_test

import (
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestATableIsCopiedRowByRow(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), created_at timestamptz, note jsonb);
		INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'new' END, i * 1.5, now(), jsonb_build_object('i', i) FROM generate_series(1, 20000) i`)
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
sink: {client: copy, table: public.orders, create: true}
`)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 20000 || r.Totals.Written != 20000 || r.Totals.Rejected != 0 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	if a, b := sum(t, d.shop, "orders", "*", "id"), sum(t, d.copy, "orders", "*", "id"); a != b {
		t.Errorf("the source has %s, the copy %s", a, b)
	}
}

func TestRowsGoThroughTheTransforms(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2));
		INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'new' END, i * 1.5 FROM generate_series(1, 3000) i`)
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
transforms:
  - filter: 'row.status == "paid"'
  - set: {cents: 'int(double(row.total) * 100.0)'}
  - select: [id, cents]
sink: {client: copy, table: public.paid, create: true, mode: upsert, key: [id]}
`)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 3000 || r.Totals.Written != 1000 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	if a, b := sum(t, d.shop, "orders WHERE status = 'paid'", "id, (total * 100)::bigint AS cents", "id"), sum(t, d.copy, "paid", "id, cents", "id"); a != b {
		t.Errorf("the source has %s, the copy %s", a, b)
	}
}

func TestOverwriteAndMergeTakeEffectAtOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"overwrite", "merge"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 5000) i; ANALYZE`)
			exec(t, d.copy, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(2500, 7000) i; UPDATE items SET name = 'old' WHERE id < 2600`)
			d.config.PartBytes = 64 << 10
			d.work("one")
			d.work("two")
			r := d.submit(runs.Batch, `
source: {client: shop, table: public.items}
sink: {client: copy, table: public.items, mode: `+mode+`}
parallel: 4
`)
			r = d.state(r.ID, runs.Succeeded)
			if a, b := sum(t, d.shop, "items", "*", "id"), sum(t, d.copy, "items", "*", "id"); a != b {
				t.Errorf("the source has %s, the copy %s", a, b)
			}
			// 2499 are new, 100 are others, 2000 are gone.
			if want := map[string]int64{"overwrite": 5000, "merge": 2499 + 100 + 2000}[mode]; r.Totals.Changed != want {
				t.Errorf("%d rows were changed, not %d", r.Totals.Changed, want)
			}
			if n := one[int](t, d.copy, "SELECT count(*) FROM pg_tables WHERE schemaname = 'athena' AND tablename LIKE 'stage%'"); n != 0 {
				t.Errorf("%d staging tables are left", n)
			}
		})
	}
}

func TestRowsThatCannotGoOnAreKeptAndRedriven(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, total text); INSERT INTO orders SELECT i, CASE WHEN i % 50 = 0 THEN 'poison' ELSE i::text END FROM generate_series(1, 1000) i`)
	exec(t, d.copy, `CREATE TABLE orders (id bigint PRIMARY KEY, total bigint CHECK (total <> 7))`)
	d.work("one")
	r := d.submit(runs.Batch, `
name: totals
source: {client: shop, table: public.orders}
transforms: [{cast: {total: int64}}]
sink: {client: copy, table: public.orders, mode: append}
errors: {max_rate: 0.05}
`)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 1000 || r.Totals.Written != 979 || r.Totals.Rejected != 21 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	dead, err := d.store.ListRejected(t.Context(), r.PipelineID, 1, 100)
	if err != nil || len(dead) != 21 {
		t.Fatalf("%d rows are kept, %v", len(dead), err)
	}
	stages := map[string]int{}
	for _, x := range dead {
		stages[x.Stage]++
		if x.Reason == "" || x.Record == nil || x.From != "public.orders" {
			t.Errorf("a row is kept as %+v", x)
		}
	}
	if stages["transforms[0]"] != 20 || stages["sink"] != 1 {
		t.Errorf("they failed at %v", stages)
	}
	// What the sink refused goes on once it may; what the cast refused fails again.
	exec(t, d.copy, `ALTER TABLE orders DROP CONSTRAINT orders_total_check`)
	upto, err := d.store.LastRejected(t.Context(), r.PipelineID)
	if err != nil {
		t.Fatal(err)
	}
	again := d.resubmit(r, func(n *runs.Run) { n.Kind, n.Upto, n.Redrives = runs.Redrive, upto, []string{r.ID} })
	// All but one fail again: the rate is told as ever.
	again = d.state(again.ID, runs.Succeeded)
	if again.Totals.Written != 1 || again.Totals.Rejected != 20 {
		t.Errorf("the totals of the redrive are %+v", again.Totals)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM orders WHERE total = 7"); n != 1 {
		t.Errorf("%d rows went on", n)
	}
	if n, err := d.store.CountRejected(t.Context(), r.PipelineID); err != nil || n != 20 {
		t.Errorf("%d rows are kept, %v", n, err)
	}
}

func TestTooManyRowsThatCannotGoOnStopARunThatCanBeResumed(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, total text); INSERT INTO orders SELECT i, CASE WHEN i % 20 = 0 THEN 'poison' ELSE i::text END FROM generate_series(1, 1000) i`)
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
transforms: [{cast: {total: int64}}]
sink: {client: copy, table: public.orders, create: true}
`)
	r = d.state(r.ID, runs.Failed)
	if r.Cause == nil || r.Cause.Code != athena.CodeRejectedRows {
		t.Errorf("the cause is %+v", r.Cause)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM orders"); n != 0 {
		t.Errorf("%d rows were written", n)
	}
	if n, err := d.store.CountRejected(t.Context(), r.PipelineID); err != nil || n != 50 {
		t.Errorf("%d rows are kept, %v", n, err)
	}
	exec(t, d.shop, `UPDATE orders SET total = '0' WHERE total = 'poison' AND id <> 500`)
	d.resume(r.ID)
	d.state(r.ID, runs.Succeeded)
	if kept, err := d.store.ListRejected(t.Context(), r.PipelineID, 1, 100); err != nil || len(kept) != 1 || !strings.Contains(string(kept[0].Record), "500") {
		t.Errorf("after the run succeeded %d rows are kept, %v", len(kept), err)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM orders"); n != 999 {
		t.Errorf("%d rows were written", n)
	}
}

func TestARunIsPausedAndCancelled(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i; ANALYZE`)
	exec(t, d.copy, `CREATE TABLE items (id int PRIMARY KEY, name text);
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
		CREATE TRIGGER slow AFTER INSERT ON items FOR EACH STATEMENT EXECUTE FUNCTION slow()`)
	d.config.PartBytes = 100 << 10
	d.work("one")
	const definition = `
source: {client: shop, table: public.items}
sink: {client: copy, table: public.items, mode: %s}
`
	r := d.submit(runs.Batch, strings.Replace(definition, "%s", "append", 1))
	await(t, "the first task", func() string {
		if p, ok := d.store.Progress(r.ID); ok && p.TasksDone > 0 {
			return ""
		}
		return "nothing is done"
	})
	d.want(r.ID, runs.WantPause)
	d.state(r.ID, runs.Paused)
	n := one[int](t, d.copy, "SELECT count(*) FROM items")
	if n == 0 || n == 50000 {
		t.Errorf("%d rows were written when it was paused", n)
	}
	d.resume(r.ID)
	d.state(r.ID, runs.Succeeded)
	if a, b := sum(t, d.shop, "items", "*", "id"), sum(t, d.copy, "items", "*", "id"); a != b {
		t.Errorf("the source has %s, the copy %s", a, b)
	}

	r = d.submit(runs.Batch, strings.Replace(definition, "%s", "overwrite", 1))
	await(t, "the run", func() string {
		if r, _ := d.store.Load(r.ID); r.State == runs.Running {
			return ""
		}
		return "it does not run"
	})
	d.want(r.ID, runs.WantCancel)
	d.state(r.ID, runs.Cancelled)
	if n := one[int](t, d.copy, "SELECT count(*) FROM pg_tables WHERE schemaname = 'athena' AND tablename LIKE 'stage%'"); n != 0 {
		t.Errorf("%d staging tables are left", n)
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM items"); n != 50000 {
		t.Errorf("the target has %d rows", n)
	}
}

func TestAGrantThatIsTakenAwayStopsTheStageBeforeItsNextBatch(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i; ANALYZE`)
	exec(t, d.copy, `CREATE TABLE items (id int PRIMARY KEY, name text);
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
		CREATE TRIGGER slow AFTER INSERT ON items FOR EACH STATEMENT EXECUTE FUNCTION slow()`)
	d.config.PartBytes = 100 << 10
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.items}
sink: {client: copy, table: public.items}
`)
	await(t, "the first task", func() string {
		if p, ok := d.store.Progress(r.ID); ok && p.TasksDone > 0 {
			return ""
		}
		return "nothing is done"
	})
	d.redefine("copy", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery) })
	r = d.state(r.ID, runs.Failed)
	if r.Cause == nil || r.Cause.Code != athena.CodeCapabilityDenied || r.Cause.Stage != "sink" {
		t.Errorf("the cause is %+v", r.Cause)
	}
	d.redefine("copy", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery, athena.PipelineSink) })
	d.resume(r.ID)
	d.state(r.ID, runs.Succeeded)
	if a, b := sum(t, d.shop, "items", "*", "id"), sum(t, d.copy, "items", "*", "id"); a != b {
		t.Errorf("the source has %s, the copy %s", a, b)
	}
}

func TestARevokedKeyEndsItsRuns(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY)`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, follow)
	d.state(r.ID, runs.Streaming)
	d.keys.revoke()
	if r = d.state(r.ID, runs.Failed); r.Cause == nil || r.Cause.Code != athena.CodeUnauthenticated {
		t.Errorf("the cause is %+v", r.Cause)
	}
}

func TestASourceWithoutRowsIsARunLikeAnyOther(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE nothing (id bigint PRIMARY KEY, total text)`)
	exec(t, d.copy, `CREATE TABLE over (id bigint PRIMARY KEY, total text); INSERT INTO over VALUES (1, 'old')`)
	d.work("one")
	for _, sink := range []string{
		"{client: copy, table: public.nothing, create: true}", "{client: copy, table: public.over, mode: overwrite}",
		"{client: copy, table: public.kept, create: true, mode: upsert}", "{client: lake, objects: {prefix: nothing/}}",
	} {
		r := d.submit(runs.Batch, "source: {client: shop, table: public.nothing}\ntransforms: [{filter: 'row.id > 0'}]\nsink: "+sink)
		if r = d.state(r.ID, runs.Succeeded); r.Totals.Written != 0 || r.Totals.Objects != 0 {
			t.Errorf("%s: the totals are %+v", sink, r.Totals)
		}
	}
	if n := one[int](t, d.copy, "SELECT count(*) FROM over"); n != 0 {
		t.Errorf("%d old rows are left", n)
	}
	if m := d.manifests("nothing/"); len(m) != 1 || m[0].Rows != 0 || len(m[0].Objects) != 0 {
		t.Errorf("the manifests are %+v", m)
	}
}

func TestRowsThatCannotGoOnAreNotMissing(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string][2]string{
		// After the run, and after its rows were redriven.
		"merge":     {"1:10 2:20 3:30", "1:11 2:20 3:30"},
		"overwrite": {"2:20 3:30", "1:11 2:20 3:30"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, "CREATE TABLE items (id int PRIMARY KEY, q text); INSERT INTO items VALUES (1, 'ten'), (2, '20'), (3, '30')")
			exec(t, d.copy, "CREATE TABLE items (id int PRIMARY KEY, q int); INSERT INTO items VALUES (1, 10), (2, 19), (9, 90)")
			d.work("one")
			r := d.submit(runs.Batch, `
source: {client: shop, table: public.items}
transforms: [{cast: {q: int32}}]
sink: {client: copy, table: public.items, mode: `+mode+`}
`)
			d.state(r.ID, runs.Succeeded)
			rows := func() string {
				return one[string](t, d.copy, "SELECT string_agg(id || ':' || q, ' ' ORDER BY id) FROM items WHERE id < 9")
			}
			if got := rows(); got != want[0] {
				t.Errorf("the target has %s, not %s", got, want[0])
			}
			kept, err := d.store.ListRejected(t.Context(), r.PipelineID, 1, 10)
			if err != nil || len(kept) != 1 {
				t.Fatalf("%d rows are kept, %v", len(kept), err)
			}
			// The definition is mended: what is no number is eleven.
			again := d.resubmit(r, func(n *runs.Run) {
				n.Kind, n.Upto, n.Redrives = runs.Redrive, kept[0].Seq, []string{r.ID}
				n.Spec = []byte(strings.Replace(string(r.Spec), `{"cast":`, `{"set":{"q":"row.q == \"ten\" ? \"11\" : row.q"}},{"cast":`, 1))
			})
			if again = d.state(again.ID, runs.Succeeded); again.Totals.Written != 1 {
				t.Errorf("the totals of the redrive are %+v", again.Totals)
			}
			if got := rows(); got != want[1] {
				t.Errorf("after the redrive the target has %s, not %s", got, want[1])
			}
		})
	}
}
