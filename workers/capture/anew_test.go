package capture_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// disable has a worker remove the capture, and keep its stream.
func (d *deployment) disable() {
	d.t.Helper()
	c, _ := d.store.Capture(d.client)
	c.Removing = true
	if _, err := d.store.PutCapture(d.t.Context(), c); err != nil {
		d.t.Fatal(err)
	}
	d.await("the end of the capture", func() bool { _, there := d.store.Capture(d.client); return !there })
}

// tables makes the tables of the capture others.
func (d *deployment) tables(names ...string) {
	d.t.Helper()
	c, _ := d.store.Capture(d.client)
	c.Tables = nil
	for _, name := range names {
		c.Tables = append(c.Tables, driver.TableName{Schema: "public", Table: name})
	}
	c, err := d.store.PutCapture(d.t.Context(), c)
	if err != nil {
		d.t.Fatal(err)
	}
	d.await("the tables", func() bool {
		o, begun, err := d.store.Origin(d.t.Context(), c)
		if err != nil {
			d.t.Fatal(err)
		}
		return begun && fmt.Sprint(o.Tables) == fmt.Sprint(c.Tables)
	})
}

// truncates counts those of each table.
func truncates(list []cdc.Change) map[string]int {
	n := map[string]int{}
	for _, c := range list {
		if c.Op == cdc.Truncate {
			n[c.Table]++
		}
	}
	return n
}

// What was deleted while nobody captured is gone for readers too: they forget the
// rows that an earlier capture gave them before they have those of the next.
func TestACaptureMadeAnewHasReadersForgetRowsThatAreGone(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g;
		CREATE TABLE emptied (id int PRIMARY KEY, v text); INSERT INTO emptied VALUES (1, 'old');
		CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'old')`)
	d.enable(nil, "t", "emptied")
	d.work()
	d.awaitState(changefeed.Streaming)
	d.exec("UPDATE t SET v = 'new' WHERE id = 1")
	d.equal("t")
	d.equal("emptied")
	d.disable()
	d.exec("DELETE FROM t WHERE id > 50; DELETE FROM emptied")
	d.enable(nil, "t", "emptied", "u")
	for _, table := range []string{"t", "emptied", "u"} {
		d.equal(table)
	}
	if n := truncates(d.read()); n["t"] != 1 || n["emptied"] != 1 || n["u"] != 0 {
		t.Errorf("the stream has the truncates %v", n)
	}
}

// A table that was taken out and put in again was not captured in between.
func TestATableThatComesAgainHasReadersForgetRowsThatAreGone(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text); CREATE TABLE x (id int PRIMARY KEY, v text);
		INSERT INTO t VALUES (1, 'old'); INSERT INTO u SELECT g, 'old' FROM generate_series(1, 12000) g; INSERT INTO x VALUES (1, 'old')`)
	d.enable(nil, "t", "u")
	d.work()
	d.equal("t")
	d.equal("u")
	d.tables("t")
	d.exec("DELETE FROM u WHERE id % 2 = 0")
	d.tables("t", "u", "x")
	for _, table := range []string{"t", "u", "x"} {
		d.equal(table)
	}
	if n := truncates(d.read()); n["u"] != 1 || n["t"]+n["x"] != 0 {
		t.Errorf("the stream has the truncates %v", n)
	}
	// One that somebody asks for reads beside what readers have.
	if err := d.store.PutSnapshot(t.Context(), changefeed.SnapshotRequest{
		ID: "asked", Client: d.client, Tables: []driver.SnapshotTable{{Table: driver.TableName{Schema: "public", Table: "u"}}},
	}); err != nil {
		t.Fatal(err)
	}
	d.await("the snapshot", func() bool { return len(d.store.SnapshotRequests(d.client)) == 0 })
	d.equal("u")
	if n := truncates(d.read()); n["u"] != 1 {
		t.Errorf("after a snapshot that was asked for the stream has the truncates %v", n)
	}
}

// Wherever a worker stops, what goes on forgets no row that it does not read again,
// and every row that is gone.
func TestASnapshotOfACaptureMadeAnewThatIsInterrupted(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct{ leave, come func(*deployment) }{
		"of a capture": {(*deployment).disable, func(d *deployment) { d.enable(nil, "t", "u") }},
		"of a table":   {func(d *deployment) { d.tables("u") }, func(d *deployment) { d.tables("t", "u") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t, `CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'old');
				CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100000) g`)
			d.enable(nil, "t", "u")
			stop := d.work()
			d.awaitState(changefeed.Streaming)
			d.equal("t")
			stop = d.interrupt(stop, func() {
				how.leave(d)
				d.exec("DELETE FROM t WHERE id % 1000 = 1")
				how.come(d)
			})
			d.exec("DELETE FROM t WHERE id % 1000 = 2; DELETE FROM u")
			for range 3 {
				stop = d.interrupt(stop, func() {})
			}
			d.exec("INSERT INTO t VALUES (999999, 'end')")
			d.equal("t")
			d.equal("u")
		})
	}
}

// interrupt lets a worker store some messages more, while what is to happen
// happens, and has another one go on.
func (d *deployment) interrupt(stop func(), meanwhile func()) func() {
	d.t.Helper()
	last := func() uint64 {
		s, err := d.bus.JetStream().Stream(context.Background(), bus.CDCStream(d.client))
		if err != nil {
			d.t.Fatal(err)
		}
		return s.CachedInfo().State.LastSeq
	}
	before := last()
	meanwhile()
	d.await("some rows", func() bool {
		st, _ := d.store.Status(d.client)
		return last() > before+15 || st.State == changefeed.Streaming
	})
	stop()
	return d.work()
}

// Where a capture wants no rows, readers are told which tables have a gap; once it
// wants them, the rows that are gone are forgotten.
func TestACaptureThatWantsNoRowsTellsOfTheGap(t *testing.T) {
	t.Parallel()
	none := func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotNone }
	for name, gap := range map[string]func(*deployment){
		"a capture": func(d *deployment) {
			d.disable()
			d.exec("DELETE FROM t WHERE id = 1")
			d.enable(none, "t", "u")
		},
		"a table": func(d *deployment) {
			d.change(none)
			d.tables("u")
			d.exec("DELETE FROM t WHERE id = 1")
			d.tables("t", "u", "x")
			d.tables("t", "u") // is told once
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old'), (2, 'old');
				CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'old'); CREATE TABLE x (id int PRIMARY KEY, v text)`)
			d.enable(nil, "t")
			d.work()
			d.equal("t")
			gap(d)
			var told []changefeed.Gap
			d.await("the message", func() bool {
				told = nil
				for _, c := range d.read() {
					var g changefeed.Gap
					if c.Prefix != changefeed.PrefixBegin {
						continue
					}
					if err := json.Unmarshal(c.Content, &g); err != nil {
						t.Fatal(err)
					}
					told = append(told, g)
				}
				return len(told) > 0
			})
			if g := told[0]; len(told) != 1 || g.Snapshot != changefeed.SnapshotNone || fmt.Sprint(g.Tables) != "[public.t]" {
				t.Errorf("readers are told %+v", told)
			}
			d.change(func(c *changefeed.Capture) { c.Snapshot = changefeed.SnapshotInitial })
			d.equal("t")
			d.equal("u")
		})
	}
}

// change has the capture be another one.
func (d *deployment) change(change func(*changefeed.Capture)) {
	d.t.Helper()
	c, _ := d.store.Capture(d.client)
	change(&c)
	if _, err := d.store.PutCapture(d.t.Context(), c); err != nil {
		d.t.Fatal(err)
	}
	d.await("the change", func() bool { now, _ := d.store.Capture(d.client); return now.Revision > c.Revision })
}
