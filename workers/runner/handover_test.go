package runner_test

import (
	"fmt"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/bus"
)

// A stream is past a snapshot once the rows have taken effect, and not already when
// they can be read.
func TestASnapshotIsOverOnceItsRowsHaveTakenEffect(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 1000)`)
	d.capture("orders")
	s, err := d.bus.JetStream().Stream(t.Context(), bus.CDCStream("shop"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the rows", func() string {
		found, err := d.changes.SnapshotProgress(t.Context(), "shop")
		if err == nil && len(found) == 1 && found[0].State == "done" {
			return ""
		}
		return "the first snapshot is not over"
	})
	if err := s.Purge(t.Context()); err != nil { // so that another one is needed
		t.Fatal(err)
	}
	d.work("one")
	r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.orders]}}
sink: {client: lake, objects: {prefix: orders/, format: ndjson, roll: {every: 5s}}}
`)
	d.state(r.ID, runs.Snapshotting)
	d.state(r.ID, runs.Streaming)
	if n := d.listed("orders/"); n != 1000 {
		t.Errorf("the manifests list %d rows", n)
	}
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
}

// What a stream has read when it is told to stop or to pause is finished first.
func TestAStreamFinishesWhatItHasReadBeforeItEnds(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 1000)`)
	d.capture("orders")
	d.work("one")
	r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.orders]}}
sink: {client: lake, objects: {prefix: orders/, format: ndjson, roll: {every: 1h}}}
`)
	read := func(n int64) {
		await(t, "the rows", func() string {
			p, _ := d.store.Progress(r.ID)
			if p.Counts.Read == n {
				return ""
			}
			return fmt.Sprint(p.Counts)
		})
	}
	read(1000)
	d.want(r.ID, runs.WantPause)
	d.state(r.ID, runs.Paused)
	if n := d.listed("orders/"); n != 1000 {
		t.Errorf("the manifests list %d rows", n)
	}
	d.resume(r.ID)
	exec(t, d.shop, `INSERT INTO orders SELECT generate_series(1001, 1500)`)
	read(1500)
	d.want(r.ID, runs.WantStop)
	d.state(r.ID, runs.Stopped)
	if n := d.listed("orders/"); n != 1500 {
		t.Errorf("the manifests list %d rows", n)
	}
}
