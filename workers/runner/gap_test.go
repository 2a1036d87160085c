package runner_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// recapture has shop's capture made anew, with something in between.
func (d *deployment) recapture(between func(), change func(*changefeed.Capture)) {
	d.t.Helper()
	c, _ := d.changes.Capture("shop")
	was := c
	was.Removing = true
	if _, err := d.changes.PutCapture(d.t.Context(), was); err != nil {
		d.t.Fatal(err)
	}
	await(d.t, "the end of the capture", func() string {
		if _, there := d.changes.Capture("shop"); there {
			return "it is there"
		}
		return ""
	})
	between()
	c.ID, c.Revision = fmt.Sprint(time.Now().UnixNano()), 0
	change(&c)
	if _, err := d.changes.PutCapture(d.t.Context(), c); err != nil {
		d.t.Fatal(err)
	}
}

// A copy has what its source has, though rows were deleted while nobody captured
// them: one that is kept all along, and one that begins behind that.
func TestACopyEqualsItsSourceBehindACaptureMadeAnew(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text); INSERT INTO orders SELECT i, 'new' FROM generate_series(1, 3000) i`)
	d.capture("orders")
	d.work("one")
	kept := d.submit(runs.Stream, follow)
	d.state(kept.ID, runs.Streaming)
	d.same("orders")
	d.recapture(func() {
		exec(t, d.shop, `DELETE FROM orders WHERE id % 3 = 0; UPDATE orders SET status = 'old' WHERE id % 3 = 1`)
	}, func(*changefeed.Capture) {})
	d.same("orders")
	begun := d.submit(runs.Stream, strings.NewReplacer("name: follow", "name: again", "table: public.orders, mode", "table: public.again, mode").Replace(follow))
	exec(t, d.shop, `UPDATE orders SET status = 'last' WHERE id = 1`)
	d.same("orders")
	want := sum(t, d.shop, "orders", "*", "id")
	await(t, "the other copy", func() string {
		if one[*string](t, d.copy, "SELECT to_regclass('again')::text") == nil {
			return "there is none"
		}
		if got := sum(t, d.copy, "again", "*", "id"); got != want {
			return fmt.Sprintf("the source has %s, the copy %s", want, got)
		}
		return ""
	})
	for _, r := range []runs.Run{kept, begun} {
		d.want(r.ID, runs.WantStop)
		d.state(r.ID, runs.Stopped)
	}
}

// Without rows behind the gap a copy by key does not go on as if it were right. It
// does once they are read.
func TestACopyDoesNotPassOverAGapWithoutRows(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text); INSERT INTO orders SELECT i, 'new' FROM generate_series(1, 100) i`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, follow)
	d.state(r.ID, runs.Streaming)
	d.same("orders")
	d.recapture(func() { exec(t, d.shop, `DELETE FROM orders WHERE id <= 50`) }, func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotNone })
	failed := d.state(r.ID, runs.Failed)
	if c := failed.Cause; c.Code != athena.CodeCursorExpired || c.Stage != "source" ||
		!strings.Contains(c.Message, "athena cdc add --client shop --tables public.orders --snapshot initial") || !strings.Contains(c.Message, r.ID) {
		t.Errorf("the cause is %+v", c)
	}
	c, _ := d.changes.Capture("shop")
	c.Snapshot = changefeed.SnapshotInitial
	if _, err := d.changes.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	await(t, "the change", func() string {
		if now, _ := d.changes.Capture("shop"); now.Snapshot != changefeed.SnapshotInitial {
			return "it is as it was"
		}
		return ""
	})
	d.resume(r.ID)
	d.same("orders")
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
}
