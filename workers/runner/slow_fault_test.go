package runner_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// wide is a table whose rows cannot be compressed: 64,000 of 2 KiB each.
const (
	wideRows = 64_000
	wide     = `CREATE TABLE wide (id bigint PRIMARY KEY, body bytea);
		ALTER TABLE wide ALTER body SET STORAGE external;
		INSERT INTO wide SELECT i, decode(repeat(md5(i::text), 128), 'hex') FROM generate_series(1, 64000) i; ANALYZE`
)

// blocked waits until the servers of shop that send rows wait for their reader, and
// returns how many rows they have sent.
func (d *deployment) blocked(t *testing.T, readers int) (rows int64) {
	t.Helper()
	var n int
	await(t, "a reader that is waited for", func() string {
		row := d.shop.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE a.wait_event = 'ClientWrite'), coalesce(sum(p.tuples_processed), 0)::bigint
			FROM pg_stat_activity a LEFT JOIN pg_stat_progress_copy p USING (pid) WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.state = 'active'`)
		if err := row.Scan(&n, &rows); err != nil {
			t.Fatal(err)
		}
		if n == readers {
			return ""
		}
		return fmt.Sprintf("%d readers of %d are waited for, %d rows are sent", n, readers, rows)
	})
	return rows
}

func TestASlowTableSlowsItsSource(t *testing.T) {
	t.Parallel()
	for name, transforms := range map[string]string{
		"row by row":               "transforms: [{set: {twice: 'row.id * 2'}}, {select: [id, body]}]",
		"in the engine's own form": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, wide)
			exec(t, d.copy, `CREATE TABLE wide (id bigint PRIMARY KEY, body bytea);
				CREATE TABLE gate ();
				CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE gate IN ACCESS SHARE MODE; RETURN NEW; END $$;
				CREATE TRIGGER pass BEFORE INSERT ON wide FOR EACH ROW EXECUTE FUNCTION pass()`)
			keeper, err := pgx.Connect(t.Context(), d.copy.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			defer keeper.Close(t.Context())
			exec(t, keeper, "BEGIN; LOCK TABLE gate IN ACCESS EXCLUSIVE MODE")
			d.work("one")
			r := d.submit(runs.Batch, `
source: {client: shop, table: public.wide}
sink: {client: copy, table: public.wide}
parallel: 1
`+transforms)
			// What is read and not written is a batch or two, and what is on the way.
			if rows := d.blocked(t, 1); rows > wideRows/4 {
				t.Errorf("%d of %d rows are sent while the sink takes none", rows, wideRows)
			}
			exec(t, keeper, "COMMIT")
			if r = d.state(r.ID, runs.Succeeded); r.Totals.Written != wideRows {
				t.Errorf("the totals are %+v", r.Totals)
			}
		})
	}
}

func TestASlowStoreSlowsItsSource(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, wide)
	f := d.front()
	var held, most atomic.Int64
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	defer let() // or the store's server would wait for ever
	f.fail(parts, func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		most.Store(max(most.Load(), held.Add(1)))
		defer held.Add(-1)
		<-release
		store.ServeHTTP(w, r)
	})
	d.work("one")
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.wide}
sink: {client: lake, objects: {prefix: wide/, format: ndjson}}
parallel: 1
`)
	await(t, "the parts that are held", func() string {
		if n := held.Load(); n != 2 {
			return fmt.Sprint(n)
		}
		return ""
	})
	rows := d.blocked(t, 1)
	// Of an object two parts of 8 MiB are sent and one fills; base64 makes them
	// larger by a third.
	if held.Load() != 2 || rows > wideRows/3 {
		t.Errorf("%d parts are under way and %d of %d rows are sent while the store takes none", held.Load(), rows, wideRows)
	}
	f.heal()
	let()
	if r = d.state(r.ID, runs.Succeeded); r.Totals.Written != wideRows || most.Load() != 2 {
		t.Errorf("the totals are %+v, with %d parts at once", r.Totals, most.Load())
	}
	if n := d.listed("wide/"); n != wideRows {
		t.Errorf("the manifests list %d rows", n)
	}
}
