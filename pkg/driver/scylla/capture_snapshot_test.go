package scylla_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// wide is a table with all that a snapshot has to part: a static column, cells that
// say when they were written and such that do not.
const wide = `CREATE TABLE ks.w (pk int, ck int, s text static, v int, u text, tags set<text>, pos frozen<tuple<int, text>>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`

func wideFixture(t *testing.T, opts ...scyllatest.Option) *fixture {
	t.Helper()
	f := fixtureOf(t, scyllatest.Start(t, append(opts, scyllatest.NoGeneration())...))
	f.exec(wide)
	f.setup.Tables = []driver.TableName{{Schema: "ks", Table: "w"}}
	return f
}

// readAll reads a snapshot, and gives its rows as text, sorted.
func readAll(t *testing.T, s driver.ChangeSnapshot) (rows []string) {
	t.Helper()
	parts, err := s.Tables(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		err := s.Read(t.Context(), p, func(key, after []byte) error {
			rows = append(rows, fmt.Sprintf("%s %s", key, after))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(rows)
	return rows
}

func TestDoubleSnapshotHasWhatTheLogDoesNotBring(t *testing.T) {
	t.Parallel()
	f := wideFixture(t)
	before := time.Now().Add(-3 * time.Second).UnixMicro()
	for _, cql := range []string{
		`INSERT INTO ks.w (pk, ck, v, u, tags, pos) VALUES (1, 1, 11, 'old', {'a'}, (1, 'x')) USING TIMESTAMP %d`,
		`INSERT INTO ks.w (pk, ck, v, u) VALUES (1, 2, 12, 'old') USING TIMESTAMP %d`,
		`INSERT INTO ks.w (pk, ck) VALUES (1, 3) USING TIMESTAMP %d`,
		`UPDATE ks.w USING TIMESTAMP %d SET s = 'static' WHERE pk = 1`,
		`UPDATE ks.w USING TIMESTAMP %d SET s = 'alone' WHERE pk = 2`,
		`INSERT INTO ks.w (pk, ck, v) VALUES (3, 1, 31) USING TIMESTAMP %d`,
	} {
		f.exec(fmt.Sprintf(cql, before))
	}
	start, snapshot, err := f.backend.StartChanges(t.Context(), f.setup, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	// What comes behind the begin of the log.
	f.exec(`UPDATE ks.w SET v = 110 WHERE pk = 1 AND ck = 1`)
	f.exec(`UPDATE ks.w SET v = 120, u = 'new' WHERE pk = 1 AND ck = 2`)
	f.exec(`INSERT INTO ks.w (pk, ck, v) VALUES (1, 4, 14)`)
	f.exec(`UPDATE ks.w SET s = 'newer' WHERE pk = 2`)
	f.exec(`DELETE FROM ks.w WHERE pk = 3 AND ck = 1`)
	got := strings.Join(readAll(t, snapshot), "\n")
	want := `{"pk":1,"ck":1} {"pk":1,"ck":1,"pos":[1,"x"],"tags":["a"],"u":"old"}
{"pk":1,"ck":3} {"pk":1,"ck":3,"pos":null,"tags":null,"u":null,"v":null}
{"pk":1} {"pk":1,"s":"static"}`
	if got != want {
		t.Errorf("the snapshot has\n%s\nwant\n%s", got, want)
	}
	if err := snapshot.Close(t.Context()); err != nil {
		t.Error(err)
	}
	p := &tape{t: t, want: 5}
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	var log []string
	for _, c := range p.rows() {
		log = append(log, fmt.Sprintf("%s %s", c.Op, c.Key))
	}
	slices.Sort(log)
	if got := strings.Join(log, "\n"); got != `delete {"pk":3,"ck":1}
insert {"pk":1,"ck":4}
update {"pk":1,"ck":1}
update {"pk":1,"ck":2}
update {"pk":2}` {
		t.Errorf("the log brings\n%s", got)
	}
}

func TestDoubleSnapshotPartsTheRing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	before := time.Now().Add(-3 * time.Second)
	for pk := range 300 {
		f.batch("t", before, 2, pk)
	}
	_, snapshot, err := f.backend.StartChanges(t.Context(), f.setup, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	rows := readAll(t, snapshot)
	if n := len(slices.Compact(slices.Clone(rows))); len(rows) != 600 || n != 600 {
		t.Errorf("it has %d rows, %d of them once, want 600", len(rows), n)
	}
}

func TestDoubleSnapshotBesideTheStreamIsReadPageByPage(t *testing.T) {
	t.Parallel()
	f := wideFixture(t)
	for pk := range 20 {
		for ck := range 10 {
			f.exec(`INSERT INTO ks.w (pk, ck, s, v) VALUES (?, ?, 'st', ?)`, pk, ck, pk*100+ck)
		}
	}
	start := f.start()
	p := &tape{t: t}
	stream, err := f.backend.OpenChanges(t.Context(), p.config(f.setup, start))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close(context.Background()) }()
	read := func(table driver.SnapshotTable, most int) (rows []string) {
		t.Helper()
		after := ""
		for {
			// Each page by another reader, as after a crash.
			r, err := stream.Snapshot(t.Context(), table)
			if err != nil {
				t.Fatal(err)
			}
			columns, err := r.Columns(t.Context())
			if err != nil || len(columns) != 7 {
				t.Fatalf("its columns are %v, %v", columns, err)
			}
			after, err = r.Next(t.Context(), after, most, func(key, row []byte) error {
				rows = append(rows, fmt.Sprintf("%s %s", key, row))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Total(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := r.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after == "" {
				return rows
			}
		}
	}
	table := driver.SnapshotTable{Table: f.setup.Tables[0]}
	rows := read(table, 7)
	slices.Sort(rows)
	if rows = slices.Compact(rows); len(rows) != 220 {
		t.Errorf("it has %d rows, want 200 and 20 static ones", len(rows))
	}
	table.Where = "v >= 500 AND v < 600"
	if rows := read(table, 4); len(slices.Compact(rows)) < 10 || len(rows) > 20 {
		t.Errorf("of a part it has %d rows: %s", len(rows), rows)
	}
	if _, err := stream.Snapshot(t.Context(), driver.SnapshotTable{Table: driver.TableName{Schema: "ks", Table: "other"}}); err == nil {
		t.Error("a table is read that is not captured")
	}
	r, err := stream.Snapshot(t.Context(), driver.SnapshotTable{Table: f.setup.Tables[0], Where: "nonsense ="})
	if err != nil {
		t.Fatal(err)
	}
	f.cluster.ExpectUnknown("nonsense")
	if _, err := r.Next(t.Context(), "", 10, func(_, _ []byte) error { return nil }); err == nil {
		t.Error("nonsense is no error")
	}
	if _, err := r.Next(t.Context(), "?", 10, func(_, _ []byte) error { return nil }); err == nil {
		t.Error("a place that is none is no error")
	}
}

func TestDoubleRowsBesideTheStreamHideNoWriteThatWasUnderWay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.exec(`INSERT INTO ks.t (pk, ck, v) VALUES (1, 1, 1)`)
	start := f.start()
	p := &tape{t: t}
	stream, err := f.backend.OpenChanges(t.Context(), p.config(f.setup, start))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close(context.Background()) }()
	r, err := stream.Snapshot(t.Context(), driver.SnapshotTable{Table: f.setup.Tables[0]})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := r.Next(t.Context(), "", 10, func(_, _ []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// A write has its time from before the rows were read, and reaches the table and
	// its log only now; so it may be as old as changes are when they are read.
	f.exec(`UPDATE ks.t USING TIMESTAMP ? SET v = 2 WHERE pk = 1 AND ck = 1`, begun.Add(-testConfidence/2).UnixMicro())
	p.want = 1
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	rows := r.(driver.TimedRows).WrittenAt()
	if c := p.rows()[0]; string(c.Key) != `{"pk":1,"ck":1}` || c.WriteTime <= rows {
		t.Errorf("the rows count as written at %d, and hide the change %s of %d", rows, c.Key, c.WriteTime)
	}
	if rows < begun.Add(-testConfidence).UnixMicro() {
		t.Errorf("the rows count as written at %d, before what was handed over", rows)
	}
}

func TestDoubleRowsBesideTheStreamHaveWhatWasHandedOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	p := &tape{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := map[string]bool{}
	p.pause = func(ctx context.Context) error {
		r, err := p.stream.Snapshot(ctx, driver.SnapshotTable{Table: f.setup.Tables[0]})
		if err != nil {
			return err
		}
		clear(seen)
		for after := "-"; after != ""; {
			if after == "-" {
				after = ""
			}
			if after, err = r.Next(ctx, after, 50, func(key, _ []byte) error {
				seen[string(key)] = true
				return nil
			}); err != nil {
				return err
			}
		}
		for _, c := range p.rows() {
			if c.Op == cdc.Update && !seen[string(c.Key)] {
				t.Errorf("the row %s was handed over, and is not read", c.Key)
			}
		}
		return nil
	}
	go func() {
		for pk := range 40 {
			if ctx.Err() != nil {
				return
			}
			_ = f.session.Query(`UPDATE ks.t SET v = 1 WHERE pk = ? AND ck = 0`, pk).Exec()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	p.want = 40
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestDoubleIsReadAtTheConsistencyOfItsClient(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.exec(`ALTER TABLE ks.t ADD l frozen<list<int>>`) // of which an empty one has its batch read again
	f.setup.Sweep = 2 * time.Second
	b, err := scylla.Open(t.Context(), athena.ScyllaConn{Hosts: f.cluster.Hosts(), Consistency: "ALL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	kinds := map[string]func(string) bool{ // those further up first
		"a log":                 func(cql string) bool { return strings.Contains(cql, "BYPASS CACHE") },
		"a batch again":         func(cql string) bool { return strings.Contains(cql, "t_scylla_cdc_log") },
		"the first rows":        func(cql string) bool { return strings.Contains(cql, "token(") },
		"a row of a late one":   func(cql string) bool { return strings.Contains(cql, "LIMIT 1") },
		"rows of a late delete": func(cql string) bool { return strings.Contains(cql, `WHERE "pk" = `) },
		"rows beside":           func(string) bool { return true },
	}
	order := []string{"a log", "a batch again", "the first rows", "a row of a late one", "rows of a late delete", "rows beside"}
	var mu sync.Mutex
	seen := map[string]map[string]int{}
	f.cluster.Fail(func(r scyllatest.Request) bool {
		if r.Op == "PREPARE" || !strings.HasPrefix(r.CQL, "SELECT ") || !strings.Contains(r.CQL, "ks.t") && !strings.Contains(r.CQL, `"ks"."t`) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		for _, k := range order {
			if kinds[k](r.CQL) {
				if seen[k] == nil {
					seen[k] = map[string]int{}
				}
				seen[k][strings.Fields(r.Consistency)[1]]++
				return false
			}
		}
		return false
	}, scyllatest.Slow(0), -1)
	start, snapshot, err := b.StartChanges(t.Context(), f.setup, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, snapshot)
	p := &tape{t: t}
	early := time.Now()
	release := f.cluster.HoldLog("ks.t")
	f.exec(`DELETE FROM ks.t USING TIMESTAMP ? WHERE pk = 1`, early.UnixMicro())
	f.exec(`UPDATE ks.t USING TIMESTAMP ? SET v = 2 WHERE pk = 2 AND ck = 2`, early.UnixMicro())
	p.until = p.upTo(early.Add(10 * time.Millisecond))
	if err := p.run(b, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	release()
	f.exec(`INSERT INTO ks.t (pk, ck, l) VALUES (3, 3, [])`)
	p.until, p.want = nil, 4 // that, the delete, and the update with its row
	if err := p.run(b, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	r, err := p.stream.Snapshot(t.Context(), driver.SnapshotTable{Table: f.setup.Tables[0]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context(), "", 10, func(_, _ []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range order {
		if len(seen[k]) != 1 || seen[k]["ALL"] == 0 {
			t.Errorf("%s: read with %v", k, seen[k])
		}
	}
}
