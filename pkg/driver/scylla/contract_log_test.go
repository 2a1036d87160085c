package scylla_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
)

// contractStart is an instant that lies behind all tests.
var contractStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestContractOfLogsOnDouble(t *testing.T) {
	t.Parallel()
	logContract(t, doubleCluster{})
}

func TestContractOfLogsOnRealScyllaDB(t *testing.T) {
	logContract(t, openReal(t))
}

// logContract holds what is said of changes: what is done to a table comes out as
// the changes that fixtures say.
func logContract(t *testing.T, c contractCluster) {
	fixtures, err := cdcfixture.Load("testdata/fixtures")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fixtures: %s", cdcfixture.Tally(fixtures))
	fixtures = slices.DeleteFunc(fixtures, func(f *cdcfixture.Fixture) bool {
		return len(f.Statements) == 0 || len(f.Changes) == 0 || f.Origin == cdcfixture.Recorded
	})
	for _, layout := range c.layouts() {
		t.Run(layout, func(t *testing.T) {
			t.Run("fixtures", func(t *testing.T) {
				t.Parallel()
				for some := range slices.Chunk(fixtures, c.atOnce()) {
					contractFixtures(t, newContractRig(t, c.own(t), layout), layout, some)
				}
			})
			for name, test := range map[string]func(*testing.T, *contractRig, string){
				"a stream goes on where another ended":              contractResume,
				"rows that were there come before the changes":      contractSnapshot,
				"new streams are read from their first change":      contractGenerations,
				"what cannot be captured is refused with its mend":  contractRefused,
				"an altered table tells its columns before its row": contractAltered,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, newContractRig(t, c.own(t), layout), layout)
				})
			}
		})
	}
}

// contractFixtures does what fixtures say was done, with one capture of them all.
func contractFixtures(t *testing.T, r *contractRig, layout string, fixtures []*cdcfixture.Fixture) {
	tables := make([]driver.TableName, len(fixtures))
	for i, f := range fixtures {
		tables[i] = driver.TableName{Schema: r.contractCluster.keyspace(t, layout), Table: f.Table}
		for _, s := range f.Create {
			r.exec(t, cdcfixture.In(s, tables[i].Schema, f.Table))
		}
	}
	capture := r.capture(t, tables...)
	capture.open(t, "")
	wants, n := make([][]string, len(fixtures)), 0
	for i, f := range fixtures {
		for _, s := range cdcfixture.AtPresent(f.Statements, time.Now()) {
			r.exec(t, cdcfixture.In(s, tables[i].Schema, f.Table))
		}
		for _, c := range f.Changes {
			wants[i] = append(wants[i], essence(t, string(c)))
		}
		n += len(wants[i])
	}
	got := capture.await(t, n)
	for i, f := range fixtures {
		t.Run(strings.TrimSuffix(f.File, ".json"), func(t *testing.T) {
			var mine []string
			for _, change := range got {
				if change.Schema == tables[i].Schema {
					mine = append(mine, change.essence)
				}
			}
			want := wants[i]
			slices.Sort(want) // partitions have no order among each other
			slices.Sort(mine)
			if !slices.Equal(mine, want) {
				t.Errorf("the changes are\n%s\nwant\n%s\nthe log is\n%s", strings.Join(mine, "\n"), strings.Join(want, "\n"), r.dump(tables[i]))
			}
		})
	}
}

// essence is what of a change does not differ from one cluster to the next: neither
// where it stands, nor its time, nor the keys that elements of lists were given.
func essence(t *testing.T, change string) string {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(change))
	dec.UseNumber()
	var c map[string]any
	if err := dec.Decode(&c); err != nil {
		t.Fatalf("%s: %v", change, err)
	}
	for _, name := range []string{"pos", "tx", "client", "schema", "table", "schema_version", "writetime"} {
		delete(c, name)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	return timeUUID.ReplaceAllStringFunc(string(raw), func(key string) string {
		if keys[key] == "" {
			keys[key] = fmt.Sprintf("key %d", len(keys)+1)
		}
		return keys[key]
	})
}

var timeUUID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// dump is the log as it is, for a failure.
func (r *contractRig) dump(table driver.TableName) string {
	rows, _, err := r.query(`SELECT * FROM ` + table.Schema + `."` + table.Table + `_scylla_cdc_log"`)
	if err != nil {
		return err.Error()
	}
	return strings.Join(rows, "\n")
}

// contractCapture captures one table or more, and keeps what comes.
type contractCapture struct {
	setup driver.ChangeSetup
	b     *scylla.Backend
	start driver.ChangeStart

	mu      sync.Mutex
	moved   chan struct{} // closed, and made anew, at each change
	enc     *cdc.Encoder
	changes []string // envelopes
	columns map[driver.TableName][]cdc.Column
	mark    string
	stream  driver.ChangeStream
	ended   error
}

// contractConfidence is how old changes are when they are read.
const contractConfidence = 2 * time.Second

// capture sets a capture up, and reads the rows that are there.
func (r *contractRig) capture(t *testing.T, tables ...driver.TableName) *contractCapture {
	t.Helper()
	c := &contractCapture{b: r.b, moved: make(chan struct{}), enc: cdc.NewEncoder("contract"), columns: map[driver.TableName][]cdc.Column{}}
	c.setup = driver.ChangeSetup{Client: "contract", Slot: "athena_contract", Publication: "athena_contract", Confidence: contractConfidence, Sweep: -1, Tables: tables}
	check, err := r.b.CheckChanges(t.Context(), c.setup)
	if err != nil || !check.OK() {
		t.Fatalf("the check: %+v, %v", check.Findings, err)
	}
	if err := r.b.PrepareChanges(t.Context(), c.setup); err != nil {
		t.Fatal(err)
	}
	start, snapshot, err := r.b.StartChanges(t.Context(), c.setup, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	c.start = start
	if snapshot == nil {
		return c
	}
	defer snapshot.Close(context.WithoutCancel(t.Context()))
	parts, err := snapshot.Tables(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		err := snapshot.Read(t.Context(), p, func(key, after []byte) error {
			c.changes = append(c.changes, fmt.Sprintf(`{"op":"read","key":%s,"after":%s}`, key, after))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// open reads the changes behind a position, until the test or stop ends it.
func (c *contractCapture) open(t *testing.T, after cdc.Position) (stop func()) {
	t.Helper()
	if after == "" {
		after = c.start.Begin
	}
	stored := c.positions(t)
	stream, err := c.b.OpenChanges(t.Context(), driver.ChangeConfig{
		ChangeSetup: c.setup, Source: c.start.Source, After: after, Confirmed: max(c.mark, c.start.Confirmed),
		Confirming: func(context.Context, string) error { return nil },
		Version:    c.version,
		Stored: func(_ context.Context, behind cdc.Position, fn func(cdc.Position) error) error {
			for _, p := range stored {
				if p > behind {
					if err := fn(p); err != nil {
						return err
					}
				}
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.stream = stream
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := stream.Run(ctx, c)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = err
		c.event()
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := stream.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// positions are those of the changes that have come in order.
func (c *contractCapture) positions(t *testing.T) (list []cdc.Position) {
	t.Helper()
	for _, text := range c.changes {
		var p struct{ Pos cdc.Position }
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatal(err)
		}
		if p.Pos != "" {
			list = append(list, p.Pos)
		}
	}
	return list
}

func (c *contractCapture) event() {
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *contractCapture) version(t driver.TableName, columns []cdc.Column) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := !slices.Equal(c.columns[t], columns)
	c.columns[t] = slices.Clone(columns)
	return 1, fresh
}

// Change, Reject, Commit and Pause are the sink's.
func (c *contractCapture) Change(_ context.Context, change *cdc.Change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.event()
	c.changes = append(c.changes, string(c.enc.Append(nil, change)))
	return nil
}

func (c *contractCapture) Reject(_ context.Context, r driver.Rejected) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.event()
	c.changes = append(c.changes, fmt.Sprintf(`{"op":"rejected","reason":%q}`, r.Reason))
	return nil
}

func (c *contractCapture) Commit(_ context.Context, mark string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark = mark
	c.stream.Confirm(mark)
	return nil
}

func (c *contractCapture) Pause(context.Context) error { return nil }

// A contractChange is what is looked at of a change.
type contractChange struct{ Op, Schema, essence string }

// await waits for n changes, and a little for one too many, and returns all of them
// but those of the schema.
func (c *contractCapture) await(t *testing.T, n int) []contractChange {
	t.Helper()
	late := time.After(90 * time.Second)
	var enough <-chan time.Time
	for {
		c.mu.Lock()
		all, moved, ended := slices.Clone(c.changes), c.moved, c.ended
		c.mu.Unlock()
		var got []contractChange
		for _, text := range all {
			change := contractChange{essence: essence(t, text)}
			if err := json.Unmarshal([]byte(text), &change); err != nil {
				t.Fatal(err)
			}
			if change.Op != "schema" {
				got = append(got, change)
			}
		}
		switch {
		case ended != nil:
			t.Fatalf("the stream ended: %v; there are\n%v", ended, got)
		case len(got) > n:
			return got
		case len(got) == n && enough == nil:
			enough = time.After(300 * time.Millisecond)
		}
		select {
		case <-moved:
		case <-enough:
			return got
		case <-late:
			t.Fatalf("of %d changes %d have come:\n%v", n, len(got), got)
		}
	}
}

const contractTable = "CREATE TABLE %s.t (pk int, ck int, v text, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}"

// insert writes rows from..to-1, one in each partition, and returns their changes.
func (r *contractRig) insert(t *testing.T, from, to int) (want []string) {
	t.Helper()
	for i := from; i < to; i++ {
		r.exec(t, fmt.Sprintf("INSERT INTO %s.t (pk, ck, v) VALUES (%d, 1, 'v')", r.ks, i))
		want = append(want, essence(t, fmt.Sprintf(`{"op":"insert","key":{"pk":%d,"ck":1},"after":{"pk":%d,"ck":1,"v":"v"}}`, i, i)))
	}
	return want
}

func wantChanges(t *testing.T, changes []contractChange, want []string) {
	t.Helper()
	var got []string
	for _, c := range changes {
		got = append(got, c.essence)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the changes are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func contractResume(t *testing.T, r *contractRig, _ string) {
	r.exec(t, fmt.Sprintf(contractTable, r.ks))
	c := r.capture(t, driver.TableName{Schema: r.ks, Table: "t"})
	stop := c.open(t, "")
	want := r.insert(t, 0, 5)
	c.await(t, 5)
	stop()
	want = append(want, r.insert(t, 5, 10)...)
	stored := c.positions(t)
	c.open(t, stored[len(stored)-1])
	wantChanges(t, c.await(t, 10), want)
	if now := c.positions(t); !slices.IsSorted(now) || len(slices.Compact(now)) != len(c.positions(t)) {
		t.Errorf("positions do not increase: %s", c.positions(t))
	}
}

func contractSnapshot(t *testing.T, r *contractRig, _ string) {
	r.exec(t, fmt.Sprintf(contractTable, r.ks))
	r.insert(t, 0, 3)
	time.Sleep(2 * contractConfidence) // what is younger may come as a change
	c := r.capture(t, driver.TableName{Schema: r.ks, Table: "t"})
	c.open(t, "")
	want := r.insert(t, 3, 5)
	for i := range 3 {
		want = append(want, essence(t, fmt.Sprintf(`{"op":"read","key":{"pk":%d,"ck":1},"after":{"pk":%d,"ck":1,"v":"v"}}`, i, i)))
	}
	wantChanges(t, c.await(t, 5), want)
}

func contractGenerations(t *testing.T, r *contractRig, layout string) {
	r.exec(t, fmt.Sprintf(contractTable, r.ks))
	c := r.capture(t, driver.TableName{Schema: r.ks, Table: "t"})
	c.open(t, "")
	want := r.insert(t, 0, 3)
	c.await(t, 3)
	before := r.streams(t)
	r.newGeneration(t, r.ks, "t", layout)
	deadline := time.Now().Add(5 * time.Minute)
	for n := 3; ; n++ {
		want = append(want, r.insert(t, n, n+1)...)
		if now := r.streams(t); len(now) > len(before) && !before[r.streamOf(t, n)] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no new streams were seen")
		}
		time.Sleep(200 * time.Millisecond)
	}
	wantChanges(t, c.await(t, len(want)), want)
}

// streams are the streams that the log has rows in.
func (r *contractRig) streams(t *testing.T) map[string]bool {
	t.Helper()
	set := map[string]bool{}
	for _, s := range r.logRows(t) {
		set[s.stream] = true
	}
	return set
}

// streamOf is the stream of the change of a partition.
func (r *contractRig) streamOf(t *testing.T, pk int) string {
	t.Helper()
	for _, s := range r.logRows(t) {
		if s.pk == pk {
			return s.stream
		}
	}
	t.Fatalf("the log has no row of partition %d", pk)
	return ""
}

type contractLogRow struct {
	stream string
	pk     int
}

func (r *contractRig) logRows(t *testing.T) (list []contractLogRow) {
	t.Helper()
	rows, _, err := r.query(`SELECT "cdc$stream_id" AS stream, pk FROM ` + r.ks + `.t_scylla_cdc_log`)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		var x struct {
			Stream string
			PK     int
		}
		if err := json.Unmarshal([]byte(row), &x); err != nil {
			t.Fatal(err)
		}
		list = append(list, contractLogRow{x.Stream, x.PK})
	}
	return list
}

func contractRefused(t *testing.T, r *contractRig, _ string) {
	r.exec(t,
		"CREATE TABLE "+r.ks+".off (k int PRIMARY KEY, v text)",
		"CREATE TABLE "+r.ks+".counts (k int PRIMARY KEY, c counter)",
		"CREATE TABLE "+r.ks+`."Mixed" (k int PRIMARY KEY, v text) WITH cdc = {'enabled': true}`,
	)
	for table, mend := range map[string]string{"off": "cdc = {'enabled': true}", "counts": "", "Mixed": "", "nothing": ""} {
		setup := driver.ChangeSetup{Client: "contract", Tables: []driver.TableName{{Schema: r.ks, Table: table}}}
		check, err := r.b.CheckChanges(t.Context(), setup)
		if err != nil {
			t.Errorf("%s: %v", table, err)
			continue
		}
		if check.OK() || mend != "" && !slices.ContainsFunc(check.Findings, func(f driver.ChangeFinding) bool { return strings.Contains(f.Mend, mend) }) {
			t.Errorf("%s: the findings are %+v", table, check.Findings)
		}
		err = r.b.PrepareChanges(t.Context(), setup)
		if err == nil {
			t.Errorf("%s: it was prepared", table)
			continue
		}
		if code, message, _ := r.code(err); code != athena.CodeInvalidRequest && code != athena.CodeNotFound && code != athena.CodeConflict || !strings.Contains(message, table) {
			t.Errorf("%s: %s %q; want a code of the caller's, and the table's name", table, code, message)
		}
	}
}

func contractAltered(t *testing.T, r *contractRig, _ string) {
	r.exec(t, fmt.Sprintf(contractTable, r.ks))
	c := r.capture(t, driver.TableName{Schema: r.ks, Table: "t"})
	c.open(t, "")
	want := r.insert(t, 0, 1)
	c.await(t, 1)
	r.exec(t, "ALTER TABLE "+r.ks+".t ADD more int", "INSERT INTO "+r.ks+".t (pk, ck, v, more) VALUES (1, 1, 'v', 7)")
	want = append(want, essence(t, `{"op":"insert","key":{"pk":1,"ck":1},"after":{"pk":1,"ck":1,"v":"v","more":7}}`))
	wantChanges(t, c.await(t, 2), want)
	c.mu.Lock()
	defer c.mu.Unlock()
	names := func(change string) []string {
		var s struct{ Columns []cdc.Column }
		json.Unmarshal([]byte(change), &s)
		set := map[string]bool{}
		for _, c := range s.Columns {
			set[c.Name] = true
		}
		return slices.Sorted(maps.Keys(set))
	}
	var told [][]string
	for _, change := range c.changes {
		if strings.Contains(change, `"op":"schema"`) {
			told = append(told, names(change))
		}
	}
	if len(told) != 2 || !slices.Equal(told[0], []string{"ck", "pk", "v"}) || !slices.Equal(told[1], []string{"ck", "more", "pk", "v"}) {
		t.Errorf("the columns were told as %s", told)
	}
}
