package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// demoTables are captured in the demo.
var demoTables = []string{"public.orders", "public.order_items"}

// A replica is what a subscriber makes of the changes that it gets.
type replica struct {
	mu     sync.Mutex
	rows   map[string]map[string]json.RawMessage // by table and key
	counts map[cdc.Op]int
	last   cdc.Position
	ended  bool // the last row of the demo has come
	delays []time.Duration
	err    error
}

// apply takes one change, and refuses one that is out of order or twice.
func (r *replica) apply(c *cdc.Change) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Pos <= r.last {
		return fmt.Errorf("a change at %s came behind %s", c.Pos, r.last)
	}
	r.last = c.Pos
	r.counts[c.Op]++
	rows := r.rows[c.Table]
	if rows == nil {
		rows = map[string]json.RawMessage{}
		r.rows[c.Table] = rows
	}
	switch c.Op {
	case cdc.Insert, cdc.Update, cdc.Read:
		if _, there := rows[string(c.Key)]; there == (c.Op == cdc.Insert) && c.Op != cdc.Read {
			return fmt.Errorf("an %s of row %s of %s, which is there: %t", c.Op, c.Key, c.Table, there)
		}
		rows[string(c.Key)] = append(json.RawMessage(nil), c.After...)
	case cdc.Delete:
		if _, there := rows[string(c.Key)]; !there {
			return fmt.Errorf("a delete of row %s of %s, which is not there", c.Key, c.Table)
		}
		delete(rows, string(c.Key))
	}
	if c.Tx != nil {
		r.delays = append(r.delays, time.Since(c.Tx.At))
	}
	r.ended = r.ended || isEnd(c)
	return nil
}

// demoEnd is the note of the last order.
const demoEnd = "the demo ends here"

func isEnd(c *cdc.Change) bool {
	return c.Op == cdc.Insert && strings.Contains(string(c.After), demoEnd)
}

func (d *demo) capture(ctx context.Context) error {
	check, err := d.shop.CDC().Check(ctx, sdk.CaptureSpec{Tables: demoTables})
	if err != nil {
		return err
	}
	d.tell.fact("athena cdc check: %d findings, nothing in the way", len(check.Findings))
	begin := time.Now()
	if _, err := d.shop.CDC().Enable(ctx, sdk.CaptureSpec{Tables: demoTables}); err != nil {
		return err
	}
	var state *sdk.Captured
	if err := until(ctx, time.Minute, func() (bool, error) {
		if state, err = d.shop.CDC().Get(ctx); err != nil || state.Status == nil {
			return false, err
		}
		if state.Status.State == sdk.CaptureFailed {
			return false, fmt.Errorf("the capture failed: %s", state.Status.Cause.Message)
		}
		return state.Status.State == sdk.CaptureStreaming, nil
	}); err != nil {
		return err
	}
	var rows int64
	for _, s := range state.Status.Snapshots {
		for _, t := range s.Tables {
			rows += t.Rows
		}
	}
	d.tell.fact("enabled for %s: publication, slot and stream made, %d rows read, streaming after %s", strings.Join(demoTables, " and "), rows, since(begin))
	return nil
}

// changes writes to the shop while a subscriber follows it and the worker that
// captures it is killed, and compares.
func (d *demo) changes(ctx context.Context) error {
	r := &replica{rows: map[string]map[string]json.RawMessage{}, counts: map[cdc.Op]int{}}
	tctx, stop := context.WithCancel(ctx)
	var tail sync.WaitGroup
	defer tail.Wait()
	defer stop()
	tail.Go(func() {
		for c, err := range d.shop.CDC().Changes(tctx, sdk.ChangesQuery{From: "earliest"}) {
			if err == nil {
				err = r.apply(c)
			}
			if err != nil {
				if tctx.Err() == nil {
					r.mu.Lock()
					r.err = errors.Join(r.err, err)
					r.mu.Unlock()
				}
				return
			}
		}
	})
	want := map[cdc.Op]int{}
	const txs = 600
	for n := range txs {
		if n == txs/2 {
			if err := d.killCapture(ctx, n); err != nil {
				return err
			}
		}
		if err := d.shopping(ctx, n, want); err != nil {
			return err
		}
	}
	if _, err := d.db.Exec(ctx, "INSERT INTO orders (customer_id, placed_at, note) VALUES (1, now(), $1)", demoEnd); err != nil {
		return err
	}
	want[cdc.Insert]++
	begin := time.Now()
	if err := until(ctx, time.Minute, func() (bool, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.ended, r.err
	}); err != nil {
		return fmt.Errorf("the subscriber has had %v, up to %s: %w", r.counts, r.last, err)
	}
	d.tell.fact("%d transactions were committed meanwhile; the subscriber had the last one %s after it", txs+1, since(begin))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range []cdc.Op{cdc.Insert, cdc.Update, cdc.Delete} {
		if r.counts[op] != want[op] {
			return fmt.Errorf("the subscriber has had %d of %d %ss", r.counts[op], want[op], op)
		}
	}
	d.tell.fact("it has had %d inserts, %d updates and %d deletes: as many as were committed, none twice, all in order", want[cdc.Insert], want[cdc.Update], want[cdc.Delete])
	total := 0
	for table, key := range map[string]string{"orders": `{"id":%d}`, "order_items": `{"order_id":%d,"line":%d}`} {
		n, err := d.compare(ctx, table, key, r.rows[table])
		if err != nil {
			return err
		}
		total += n
	}
	d.tell.fact("its copy, made of the changes alone, equals the database: %d rows, value by value", total)
	p50 := quantile(r.delays, .5)
	d.tell.figure("cdc_commit_to_subscriber_p50_ms", ms(p50))
	d.tell.fact("from commit to subscriber: p50 %s, with the kill and the takeover in between", readable(p50))
	return nil
}

// shopping commits one transaction and counts the changes that it makes.
func (d *demo) shopping(ctx context.Context, n int, want map[cdc.Op]int) error {
	tx, err := d.db.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var id int64
	if err := tx.QueryRow(ctx, "INSERT INTO orders (customer_id, status, placed_at, note) VALUES ($1, 'placed', now(), $2) RETURNING id", 1+n%100, fmt.Sprintf("demo %d", n)).Scan(&id); err != nil {
		return err
	}
	items := 1 + n%3
	if _, err := tx.Exec(ctx, "INSERT INTO order_items SELECT $1, l, l, 1 + l, 9.90 FROM generate_series(1, $2::int) l", id, items); err != nil {
		return err
	}
	inserts, updates, deletes := 1+items, 0, 0
	if n%3 == 0 {
		tag, err := tx.Exec(ctx, "UPDATE orders SET status = 'paid' WHERE id = $1 OR id = $2", id, id-1)
		if err != nil {
			return err
		}
		updates = int(tag.RowsAffected())
	}
	if n%7 == 0 { // its items go with it
		if _, err := tx.Exec(ctx, "DELETE FROM orders WHERE id = $1", id); err != nil {
			return err
		}
		deletes = 1 + items
	}
	if rand.N(10) == 0 { // nobody may see this one
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	want[cdc.Insert] += inserts
	want[cdc.Update] += updates
	want[cdc.Delete] += deletes
	return nil
}

// killCapture kills the worker that captures the shop, and starts another one.
func (d *demo) killCapture(ctx context.Context, n int) error {
	state, err := d.shop.CDC().Get(ctx)
	if err != nil {
		return err
	}
	name := state.Status.Worker
	w := d.worker[name]
	if w == nil {
		return fmt.Errorf("the shop is captured by %q, which is none of the demo's workers", name)
	}
	if err := w.kill(); err != nil {
		return err
	}
	delete(d.worker, name)
	also := ""
	if name == d.follower {
		also = " and runs the pipeline"
	}
	d.tell.fact("after %d transactions %s, which captures the shop%s, is killed with SIGKILL", n, name, also)
	return d.startWorker(fmt.Sprintf("worker-cdc-%d", n))
}

// compare holds a table against the subscriber's copy.
func (d *demo) compare(ctx context.Context, table, key string, have map[string]json.RawMessage) (int, error) {
	rows, err := d.shop.Query(ctx, "SELECT * FROM "+table)
	if err != nil {
		return 0, err
	}
	n := 0
	for rows.Next() {
		n++
		var k struct{ ID, Order_ID, Line int64 }
		if err := rows.Scan(&k); err != nil {
			return 0, err
		}
		name := fmt.Sprintf(key, k.ID)
		if table == "order_items" {
			name = fmt.Sprintf(key, k.Order_ID, k.Line)
		}
		if got := have[name]; string(got) != string(rows.Row()) {
			return 0, fmt.Errorf("row %s of %s is %s in the database and %s at the subscriber", name, table, rows.Row(), got)
		}
	}
	if err := rows.Close(); err != nil {
		return 0, err
	}
	if n != len(have) {
		return 0, fmt.Errorf("%s has %d rows, the subscriber has %d", table, n, len(have))
	}
	return n, nil
}
