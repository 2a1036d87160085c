package scylla

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestReaderThatDropsWhatItReadsMovesNoFloor(t *testing.T) {
	t.Parallel()
	s := &changeStream{work: make(chan func(context.Context, driver.ChangeSink) error, 8), failed: make(chan error, 1)}
	name := driver.TableName{Schema: "ks", Table: "t"}
	id := make([]byte, streamBytes)
	id[0] = 1
	now := time.Now()
	begin := ticksOf(now.Add(-time.Minute))
	taken := 0
	ctx, another := context.WithCancel(t.Context())
	r := &logReader{stream: s, name: name, hash: tableHash(name), gate: &gate{}, start: begin, ctx: ctx}
	r.take = func(context.Context, *logReader, batchID, *scyllacdc.Change) error {
		taken++
		return nil
	}
	r.floor = &floor{table: name, begin: begin}
	r.floor.start(begin, [][]string{{string(id)}})
	r.floor.look(nil, ticksOf(now))
	w := &watch{stream: s}
	w.follow(t.Context(), []*logReader{r}) // which outlasts the readers
	read := func(at, next time.Time) {
		t.Helper()
		if err := (consumer{r}).Consume(t.Context(), scyllacdc.Change{StreamID: id, Time: gocql.UUIDFromTime(at)}); err != nil {
			t.Fatal(err)
		}
		w.ObserveQuery(t.Context(), gocql.ObservedQuery{
			Statement: `SELECT * FROM ks.t_scylla_cdc_log WHERE "cdc$stream_id" = ?`,
			Values:    []any{scyllacdc.StreamID(id), gocql.UUIDFromTime(next), gocql.UUIDFromTime(now)},
		})
		for len(s.work) > 0 {
			if err := (<-s.work)(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	read(now.Add(-50*time.Second), now.Add(-40*time.Second))
	if at := r.floor.at(); taken != 1 || at != ticksOf(now.Add(-40*time.Second)) {
		t.Fatalf("%d batches are taken, and the floor is %s ago", taken, now.Sub(at.time()))
	}
	another() // reader has failed
	read(now.Add(-30*time.Second), now.Add(-20*time.Second))
	if at := r.floor.at(); taken != 1 || at != ticksOf(now.Add(-40*time.Second)) {
		t.Errorf("%d batches are taken, and the floor is %s ago, beyond what was dropped", taken, now.Sub(at.time()))
	}
}

func TestDoubleIsNotWaitedForWhereABatchIsReadAgain(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t)
	cluster.MustExec(t, `CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}`,
		`CREATE TABLE ks.t (pk int PRIMARY KEY, l frozen<list<int>>) WITH cdc = {'enabled': true}`, `INSERT INTO ks.t (pk, l) VALUES (1, [])`)
	b := openDouble(t, cluster)
	name := driver.TableName{Schema: "ks", Table: "t"}
	m, err := b.captureTable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	batch := readLog(t, b, name, 1)[0]
	hits := cluster.Fail(scyllatest.Containing(`"cdc$operation", "l" FROM`), scyllatest.Slow(3*time.Second), -1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for hits() == 0 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	if _, _, err := m.decode(ctx, &batch); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}
