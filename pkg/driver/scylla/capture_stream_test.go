package scylla_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

var errStop = errors.New("the test has seen enough")

// A tape stands for the stream of changes that a worker writes: what it has taken
// is stored. It fails as it is told.
type tape struct {
	t      testing.TB
	stream driver.ChangeStream // that is confirmed to; may be nil

	mu       sync.Mutex
	changes  []cdc.Change
	marks    []string // with each change: that of the commit before it
	mark     string   // of the last commit
	recorded string   // by Confirming
	rejected []driver.Rejected
	versions map[driver.TableName][]cdc.Column
	crash    int // the change with this number is not taken; 0 is none
	taken    int
	want     int // so many changes of rows end the reading
	pause    func(ctx context.Context) error
	enough   func() bool
	until    func() bool // ends the reading, whatever comes
}

func (p *tape) Change(_ context.Context, c *cdc.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken++; p.taken == p.crash {
		return errStop
	}
	copied := *c
	if c.Tx != nil {
		tx := *c.Tx
		copied.Tx = &tx
	}
	copied.Key, copied.After, copied.Before = slices.Clone(c.Key), slices.Clone(c.After), slices.Clone(c.Before)
	if n := len(p.changes); n > 0 && p.changes[n-1].Pos >= c.Pos {
		p.t.Errorf("position %s does not follow %s", c.Pos, p.changes[n-1].Pos)
	}
	p.changes = append(p.changes, copied)
	p.marks = append(p.marks, p.mark)
	return nil
}

func (p *tape) Reject(_ context.Context, r driver.Rejected) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rejected = append(p.rejected, r)
	return nil
}

func (p *tape) Commit(_ context.Context, mark string) error {
	p.mu.Lock()
	if mark <= p.mark {
		p.t.Errorf("mark %s does not follow %s", mark, p.mark)
	}
	p.mark = mark
	enough := p.enough
	p.mu.Unlock()
	n := len(p.rows())
	p.stream.Confirm(mark)
	if p.want > 0 && n >= p.want || enough != nil && enough() {
		return errStop
	}
	return nil
}

func (p *tape) Pause(ctx context.Context) error {
	if p.pause != nil {
		return p.pause(ctx)
	}
	return nil
}

// config is what a worker would open the stream with now.
func (p *tape) config(setup driver.ChangeSetup, start driver.ChangeStart) driver.ChangeConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.versions == nil {
		p.versions = map[driver.TableName][]cdc.Column{}
	}
	cfg := driver.ChangeConfig{
		ChangeSetup: setup, Source: start.Source, After: start.Begin, Confirmed: start.Confirmed,
		Version: func(t driver.TableName, columns []cdc.Column) (int, bool) {
			if slices.Equal(p.versions[t], columns) {
				return 1, false
			}
			p.versions[t] = columns
			return 1, true
		},
		Confirming: func(_ context.Context, mark string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.recorded = max(p.recorded, mark)
			return nil
		},
		Stored: func(_ context.Context, behind cdc.Position, fn func(cdc.Position) error) error {
			p.mu.Lock()
			list := slices.Clone(p.changes)
			p.mu.Unlock()
			for _, c := range list {
				if c.Pos > behind {
					if err := fn(c.Pos); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	if n := len(p.changes); n > 0 {
		cfg.After = p.changes[n-1].Pos
		cfg.Confirmed = max(cfg.Confirmed, p.marks[n-1])
	}
	cfg.Confirmed = max(cfg.Confirmed, p.recorded)
	// A process that ended has not seen what was not stored.
	p.mark, p.taken = "", 0
	return cfg
}

// run reads until the tape has enough, crashes, or the time is over.
func (p *tape) run(b *scylla.Backend, cfg driver.ChangeConfig, d time.Duration) error {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), d)
	defer cancel()
	stream, err := b.OpenChanges(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close(context.Background()) }()
	p.stream = stream
	if until := p.until; until != nil {
		go func() {
			for ctx.Err() == nil && !until() {
				time.Sleep(20 * time.Millisecond)
			}
			cancel()
		}()
	}
	err = stream.Run(ctx, p)
	if errors.Is(err, errStop) {
		return nil
	}
	if err == nil && p.want > 0 {
		return fmt.Errorf("after %s it has %d changes of %d; lag: %+v", d, len(p.rows()), p.want, stream.Lag().Streams)
	}
	return err
}

// upTo ends the reading once all of a time has been handed over.
func (p *tape) upTo(at time.Time) func() bool {
	return func() bool { return p.stream.Lag().Streams.Complete.After(at) }
}

// rows are the changes of rows, without schema changes.
func (p *tape) rows() (list []cdc.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.changes {
		if c.Op != cdc.Schema {
			list = append(list, c)
		}
	}
	return list
}

// A fixture is a double with tables and a generation of two vnodes with two streams
// each.
type fixture struct {
	t       testing.TB
	cluster *scyllatest.Cluster
	session *gocql.Session
	backend *scylla.Backend
	setup   driver.ChangeSetup
	streams [][]byte
}

const (
	testConfidence = 500 * time.Millisecond
	keyspaceCQL    = `CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}`
)

// newFixture makes tables of the keyspace ks that have a log.
func newFixture(t testing.TB, tables ...string) *fixture {
	t.Helper()
	return fixtureOf(t, scyllatest.Start(t, scyllatest.NoGeneration(), scyllatest.ShortPages(3)), tables...)
}

func fixtureOf(t testing.TB, c *scyllatest.Cluster, tables ...string) *fixture {
	t.Helper()
	f := &fixture{t: t, cluster: c}
	var err error
	if f.session, err = gocql.NewCluster(f.cluster.Hosts()...).CreateSession(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.session.Close)
	f.exec(keyspaceCQL)
	f.setup = driver.ChangeSetup{Client: "c", Confidence: testConfidence, Sweep: -1}
	f.streams = c.NewGeneration(time.Now().Add(-time.Minute), 2, 2)
	for _, name := range tables {
		f.table("ks", name, "'enabled': true")
	}
	f.backend = openDouble(t, c)
	return f
}

func openDouble(t testing.TB, c *scyllatest.Cluster) *scylla.Backend {
	t.Helper()
	b, err := scylla.Open(t.Context(), athena.ScyllaConn{Hosts: c.Hosts()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// table makes a table and takes it into the capture.
func (f *fixture) table(keyspace, name, cdc string) {
	f.t.Helper()
	f.exec(fmt.Sprintf(`CREATE TABLE %s.%s (pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {%s}`, keyspace, name, cdc))
	f.setup.Tables = append(f.setup.Tables, driver.TableName{Schema: keyspace, Table: name})
}

func (f *fixture) exec(cql string, args ...any) {
	f.t.Helper()
	if err := f.session.Query(cql, args...).Exec(); err != nil {
		f.t.Fatalf("%s: %v", cql, err)
	}
}

// row puts one row of a log there.
func (f *fixture) row(table string, stream []byte, at gocql.UUID, seq, op int, end bool, pk, ck, v int) {
	f.t.Helper()
	last := "null"
	if end {
		last = "true"
	}
	f.cluster.MustExec(f.t, fmt.Sprintf(`INSERT INTO ks.%s_scylla_cdc_log ("cdc$stream_id", "cdc$time", "cdc$batch_seq_no", "cdc$operation", "cdc$end_of_batch", pk, ck, v) VALUES (0x%x, %s, %d, %d, %s, %d, %d, %d)`,
		table, stream, at, seq, op, last, pk, ck, v))
}

// logged puts a batch of updates into a log, and into no table.
func (f *fixture) logged(table string, stream []byte, at time.Time, rows, pk int) {
	f.t.Helper()
	id := gocql.UUIDFromTime(at)
	for i := range rows {
		f.row(table, stream, id, i, 1, i+1 == rows, pk, i, pk*100+i)
	}
}

// batch updates rows of one partition at a time.
func (f *fixture) batch(table string, at time.Time, rows, pk int) {
	f.t.Helper()
	if !strings.Contains(table, ".") {
		table = "ks." + table
	}
	b := f.session.Batch(gocql.UnloggedBatch).WithTimestamp(at.UnixMicro())
	for i := range rows {
		b.Query(`UPDATE `+table+` SET v = ? WHERE pk = ? AND ck = ?`, pk*100+i, pk, i)
	}
	if err := b.Exec(); err != nil {
		f.t.Fatal(err)
	}
}

// batches are those of all logs, each with the number of its rows.
func (f *fixture) batches() (list []string) {
	f.t.Helper()
	for _, t := range f.setup.Tables {
		iter := f.session.Query(`SELECT "cdc$stream_id", "cdc$time" FROM ` + t.String() + `_scylla_cdc_log`).Iter()
		var stream []byte
		var at gocql.UUID
		count := map[string]int{}
		for iter.Scan(&stream, &at) {
			count[fmt.Sprintf("%s 0x%x:%s", t.Table, stream, at)]++
		}
		if err := iter.Close(); err != nil {
			f.t.Fatal(err)
		}
		for id, n := range count {
			list = append(list, fmt.Sprintf("%s %d", id, n))
		}
	}
	return list
}

// start begins a capture.
func (f *fixture) start() driver.ChangeStart {
	f.t.Helper()
	if err := f.backend.PrepareChanges(f.t.Context(), f.setup); err != nil {
		f.t.Fatal(err)
	}
	start, snapshot, err := f.backend.StartChanges(f.t.Context(), f.setup, func(string) {})
	if err != nil {
		f.t.Fatal(err)
	}
	_ = snapshot.Close(f.t.Context())
	return start
}

// finish reads until all is there that the logs have, with crashes on the way.
func (f *fixture) finish(p *tape, start driver.ChangeStart, crash int) {
	f.t.Helper()
	want := 0
	for _, b := range f.batches() {
		var n int
		_, _ = fmt.Sscan(b[strings.LastIndexByte(b, ' ')+1:], &n)
		want += n
	}
	for round := 0; len(p.rows()) < want; round++ {
		if round > 60 {
			f.t.Fatal("it does not come to an end")
		}
		if p.want = want; crash > 0 {
			p.crash = crash + round%5
		}
		if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
			f.t.Fatalf("round %d: %v", round, err)
		}
	}
	p.crash, p.want = 0, 0
}

// checkBatches holds the tape against what the log has: each batch once and whole,
// and those of a stream in the order of their times.
func (f *fixture) checkBatches(p *tape, want []string) {
	f.t.Helper()
	var got []string
	last := map[string]string{}
	rows := p.rows()
	for i := 0; i < len(rows); {
		first := rows[i]
		n := 0
		for i < len(rows) && rows[i].Tx != nil && rows[i].Tx.Pos == first.Tx.Pos {
			n++
			if rows[i].Tx.N != uint64(n) {
				f.t.Errorf("change %d of batch %s is at %s", rows[i].Tx.N, first.Tx.ID, rows[i].Pos)
			}
			i++
		}
		if !rows[i-1].Tx.Last {
			f.t.Errorf("the last change of batch %s does not say so", first.Tx.ID)
		}
		got = append(got, fmt.Sprintf("%s %s %d", first.Table, first.Tx.ID, n))
		stream, _, _ := strings.Cut(first.Tx.ID, ":")
		stream = first.Table + stream
		at := first.Tx.At.Format("2006-01-02T15:04:05.0000000")
		if at < last[stream] && !first.Late {
			f.t.Errorf("batch %s of %s comes behind one of %s", first.Tx.ID, at, last[stream])
		}
		last[stream] = max(last[stream], at)
	}
	slices.Sort(got)
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		f.t.Errorf("the stream has %d batches, the log %d:\n%s\nwant\n%s", len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDoubleIsReadBatchByBatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t", "u")
	start := f.start()
	for i := range 40 {
		f.batch([]string{"t", "u"}[i%2], time.Now().Add(time.Duration(i)*time.Millisecond), i%3+1, i)
	}
	p := &tape{t: t}
	f.finish(p, start, 0)
	f.checkBatches(p, f.batches())
	if c := p.rows()[0]; c.Client != "c" || c.Schema != "ks" || c.SchemaVersion != 1 || c.WriteTime == 0 {
		t.Errorf("the first change is %+v", c)
	}
}

func TestDoubleIsReadOnceHoweverOftenTheProcessEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t", "u")
	start := f.start()
	for i := range 30 {
		f.batch([]string{"t", "u"}[i%2], time.Now().Add(time.Duration(i)*time.Millisecond), i%4+1, i)
	}
	p := &tape{t: t}
	f.finish(p, start, 3)
	f.checkBatches(p, f.batches())
}
