package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// The demo's tables have no keys, so that a write that is applied twice shows.
// A row of demo_slow_commit makes its COMMIT take two seconds.
const demoSQL = `
CREATE TABLE demo_effects (what text NOT NULL);
CREATE TABLE demo_burst (n int NOT NULL);
CREATE TABLE demo_slow_commit (what text NOT NULL);
CREATE FUNCTION demo_dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON demo_slow_commit DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION demo_dawdle();`

func (d *demo) queryNow(ctx context.Context) error {
	const sql = `select status, count(*) as orders, sum(total) as total from order_totals group by status order by status`
	begin, rows := time.Now(), 0
	for _, err := range sdk.All[struct{ Status, Total string }](d.shop.Query(ctx, sql)) {
		if err != nil {
			return err
		}
		rows++
	}
	took := time.Since(begin)
	if rows != 6 {
		return fmt.Errorf("%d rows, want 6", rows)
	}
	d.tell.fact("%d rows from %q in %s", rows, "select status, count(*), sum(total) …", readable(took))
	var took1 []time.Duration
	for i := range 200 {
		begin := time.Now()
		n, err := d.count(ctx, "select id from orders where id = $1", 1+i)
		if err != nil || n != 1 {
			return fmt.Errorf("%d rows for order %d: %w", n, 1+i, err)
		}
		took1 = append(took1, time.Since(begin))
	}
	p50, p99 := quantile(took1, .5), quantile(took1, .99)
	d.tell.figure("sync_query_p50_ms", ms(p50))
	d.tell.figure("sync_query_p99_ms", ms(p99))
	d.tell.fact("200 look-ups by key, one after the other over HTTP: p50 %s, p99 %s", readable(p50), readable(p99))
	return nil
}

// count runs a query and counts its rows.
func (d *demo) count(ctx context.Context, sql string, params ...any) (n int, err error) {
	rows, err := d.shop.Query(ctx, sql, params...)
	if err != nil {
		return 0, err
	}
	for rows.Next() {
		n++
	}
	return n, rows.Close()
}

func (d *demo) queryLater(ctx context.Context) error {
	begin := time.Now()
	job, err := d.shop.Defer(ctx, sdk.Request{
		Query: `select o.id, o.total from order_totals o, pg_sleep(1) order by o.total desc limit $1`, Params: []any{5},
	})
	if err != nil {
		return err
	}
	d.tell.fact("accepted after %s, and on disk: job %s", since(begin), job.ID)
	var states []string
	for info, err := range job.Events(ctx) {
		if err != nil {
			return err
		}
		states = append(states, fmt.Sprintf("%s after %s", info.State, since(begin)))
		if info.State.Terminal() && info.Err() != nil {
			return info.Err()
		}
	}
	if len(states) < 2 || !strings.HasPrefix(states[len(states)-1], string(sdk.Succeeded)) {
		return fmt.Errorf("the states were %v, want running and succeeded among them", states)
	}
	d.tell.fact("%s", strings.Join(states, ", "))
	begin, n := time.Now(), 0
	for row, err := range sdk.All[struct {
		ID    int64
		Total string
	}](job.Result(ctx)) {
		if err != nil {
			return err
		}
		if n++; n == 1 {
			d.tell.fact("the largest order is no. %d, of %s", row.ID, row.Total)
		}
	}
	if n != 5 {
		return fmt.Errorf("the result has %d rows, want 5", n)
	}
	d.tell.fact("%d rows fetched in %s", n, since(begin))
	return nil
}

func (d *demo) frozen(ctx context.Context) error {
	admin := d.api.Admin()
	if _, err := admin.SetLifecycle(ctx, "shop", athena.Frozen); err != nil {
		return err
	}
	if _, err := d.count(ctx, "select 1"); athena.CodeOf(err) != athena.CodeClientFrozen {
		return fmt.Errorf("a query of the frozen client gave %v, want client_frozen", err)
	}
	d.tell.fact("frozen: a query now is refused with client_frozen")
	job, err := d.shop.Defer(ctx, sdk.Request{Query: "select count(*) from customers"})
	if err != nil {
		return err
	}
	info, err := job.WaitFor(ctx, 2*time.Second)
	if err != nil {
		return err
	}
	if info.State != sdk.Held || len(info.Attempts) != 0 {
		return fmt.Errorf("two seconds later the job is %s with %d attempts, want held with none", info.State, len(info.Attempts))
	}
	d.tell.fact("a deferred one is accepted, and two seconds later still held, without an attempt")
	thawed := time.Now()
	if _, err := admin.SetLifecycle(ctx, "shop", athena.Active); err != nil {
		return err
	}
	if info, err = job.Wait(ctx); err != nil {
		return err
	}
	if info.State != sdk.Succeeded {
		return fmt.Errorf("the job ended as %s: %w", info.State, info.Err())
	}
	wait := info.Attempts[0].Started.Sub(thawed)
	if wait > 3*time.Second {
		return fmt.Errorf("it ran only %s after the thaw", readable(wait))
	}
	d.tell.figure("thaw_to_running_ms", ms(wait))
	d.tell.fact("thawed: running %s later (promised: 1 s)", readable(wait))
	return nil
}

func (d *demo) twice(ctx context.Context) error {
	if _, err := d.db.Exec(ctx, demoSQL); err != nil {
		return err
	}
	q := sdk.Request{Query: "insert into demo_effects values ($1)", Params: []any{"twice"}, IdempotencyKey: "demo-order-4711"}
	first, err := d.shop.Defer(ctx, q)
	if err != nil {
		return err
	}
	again, err := d.shop.Defer(ctx, q)
	if err != nil {
		return err
	}
	if first.Replayed || !again.Replayed || again.ID != first.ID {
		return fmt.Errorf("the second submit gave job %s (replayed: %t), want %s", again.ID, again.Replayed, first.ID)
	}
	d.tell.fact("the second submit with the same Idempotency-Key gave the same job")
	q.Params = []any{"something else"}
	if _, err := d.shop.Defer(ctx, q); athena.CodeOf(err) != athena.CodeIdempotencyMismatch {
		return fmt.Errorf("another statement with that key gave %v, want idempotency_mismatch", err)
	}
	d.tell.fact("another statement with that key is refused: idempotency_mismatch")
	return d.exactlyOnce(ctx, first, "twice")
}

// exactlyOnce waits for the job's success and counts its effects in the
// database.
func (d *demo) exactlyOnce(ctx context.Context, job *sdk.Job, what string) error {
	info, err := job.Wait(ctx)
	if err != nil {
		return err
	}
	if info.State != sdk.Succeeded {
		return fmt.Errorf("the job of %q ended as %s: %w", what, info.State, info.Err())
	}
	var n int
	if err := d.db.QueryRow(ctx, `select (select count(*) from demo_effects where what = $1) + (select count(*) from demo_slow_commit where what = $1)`, what).Scan(&n); err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("the write %q was applied %d times", what, n)
	}
	d.tell.fact("effects of %q in the database: exactly 1, after %s", what, attempts(info))
	return nil
}

// attempts tells a job's attempts in a few words.
func attempts(i *sdk.JobInfo) string {
	var list []string
	for _, a := range i.Attempts {
		list = append(list, dash(a.Outcome)+" on "+a.Worker)
	}
	if len(list) == 1 {
		return "1 attempt: " + list[0]
	}
	return strconv.Itoa(len(list)) + " attempts: " + strings.Join(list, ", ")
}

func (d *demo) killed(ctx context.Context) error {
	inWrite, err := d.shop.Defer(ctx, sdk.Request{
		Query: `with effect as (insert into demo_effects values ($1) returning 1) select pg_sleep(2) from effect`, Params: []any{"killed in the write"},
	})
	if err != nil {
		return err
	}
	inCommit, err := d.shop.Defer(ctx, sdk.Request{Query: `insert into demo_slow_commit values ($1)`, Params: []any{"killed in the COMMIT"}})
	if err != nil {
		return err
	}
	// Both are to be seen in the database itself, and the token of the second
	// to be stored, which its state tells.
	const activity = `select count(*) filter (where query like '%pg_sleep(2) from effect%') > 0 and count(*) filter (where lower(query) like 'commit%') > 0
		from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()`
	if err := until(ctx, 10*time.Second, func() (bool, error) {
		var both bool
		if err := d.db.QueryRow(ctx, activity).Scan(&both); err != nil || !both {
			return false, err
		}
		info, err := inCommit.Get(ctx)
		return err == nil && info.State == sdk.Spooling, err
	}); err != nil {
		return fmt.Errorf("wait for both writes to be under way: %w", err)
	}
	if err := d.startWorker("worker-2"); err != nil {
		return err
	}
	if err := d.worker["worker-1"].kill(); err != nil {
		return err
	}
	at := time.Now()
	delete(d.worker, "worker-1")
	d.tell.fact("one job is in its statement, another in its COMMIT; worker-1 gets SIGKILL")
	for _, j := range []struct {
		job  *sdk.Job
		what string
	}{{inWrite, "killed in the write"}, {inCommit, "killed in the COMMIT"}} {
		if err := d.exactlyOnce(ctx, j.job, j.what); err != nil {
			return err
		}
	}
	info, err := inWrite.Get(ctx)
	if err != nil {
		return err
	}
	if len(info.Attempts) != 2 || info.Attempts[0].Outcome != "lost" {
		return fmt.Errorf("the job killed in its write has %s; want a lost one and another", attempts(info))
	}
	took := info.Attempts[1].Started.Sub(at)
	if took > 20*time.Second {
		return fmt.Errorf("the lost worker was noticed only after %s", readable(took))
	}
	d.tell.figure("takeover_seconds", took.Seconds())
	d.tell.fact("the lost worker's job ran elsewhere %s after the kill (promised: 15 s)", readable(took))
	return nil
}

func (d *demo) flood(ctx context.Context) error {
	const callers = 64
	var mu sync.Mutex
	var took []time.Duration
	begin := time.Now()
	next := make(chan int)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(next)
		for n := range d.burst {
			select {
			case next <- n:
			case <-gctx.Done():
				return nil
			}
		}
		return nil
	})
	for range callers {
		g.Go(func() error {
			for n := range next {
				begin := time.Now()
				if _, err := d.shop.Defer(gctx, sdk.Request{Query: "insert into demo_burst values ($1)", Params: []any{n}}); err != nil {
					return err
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	all := time.Since(begin)
	rate, p50, p99 := float64(d.burst)/all.Seconds(), quantile(took, .5), quantile(took, .99)
	d.tell.figure("submit_per_second", rate)
	d.tell.figure("submit_p99_ms", ms(p99))
	d.tell.fact("%d submits by %d callers in %s: %.0f a second, p50 %s, p99 %s; callers, server, worker and PostgreSQL share this machine",
		d.burst, callers, readable(all), rate, readable(p50), readable(p99))
	var rows, distinct int
	err := until(ctx, time.Minute, func() (bool, error) {
		err := d.db.QueryRow(ctx, "select count(*), count(distinct n) from demo_burst").Scan(&rows, &distinct)
		return rows >= d.burst, err
	})
	if err != nil {
		return fmt.Errorf("%d of %d were run: %w", rows, d.burst, err)
	}
	all = time.Since(begin)
	if rows != d.burst || distinct != d.burst {
		return fmt.Errorf("%d rows, %d different ones, want %d", rows, distinct, d.burst)
	}
	d.tell.figure("jobs_per_second", float64(d.burst)/all.Seconds())
	d.tell.fact("all %d were run, each exactly once, %s after the first submit: %.0f jobs a second from end to end", d.burst, readable(all), float64(d.burst)/all.Seconds())
	return nil
}

// errNotYet is the error of what did not come true in time.
var errNotYet = errors.New("it did not come true in time")

// until asks, several times a second, until the answer is yes.
func until(ctx context.Context, within time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, errNotYet)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func quantile(list []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
