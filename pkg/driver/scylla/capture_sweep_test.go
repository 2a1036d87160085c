package scylla_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// ageMark makes a mark older.
func ageMark(t *testing.T, mark string, d time.Duration) string {
	t.Helper()
	parts := strings.Split(mark, ".")
	for _, i := range []int{0, 2} {
		n, err := strconv.ParseInt(parts[i], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		parts[i] = fmt.Sprintf("%016X", n-int64(d/100))
	}
	return strings.Join(parts, ".")
}

func TestDoubleSweepFindsWhatWasWrittenLate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.setup.Sweep = 3 * time.Second
	start := f.start()
	early := time.Now()
	f.batch("t", early, 2, 1)
	release := f.cluster.HoldLog("ks.t")
	f.batch("t", early.Add(-time.Millisecond), 1, 7)
	f.batch("t", early.Add(time.Millisecond), 1, 8)
	f.exec(`DELETE FROM ks.t USING TIMESTAMP ? WHERE pk = 7 AND ck = 5`, early.UnixMicro())
	f.exec(`DELETE FROM ks.t USING TIMESTAMP ? WHERE pk = 9`, early.UnixMicro())
	f.exec(`DELETE FROM ks.t USING TIMESTAMP ? WHERE pk = 10 AND ck > 3 AND ck <= 6`, early.UnixMicro())
	p := &tape{t: t}
	// The reader is beyond before the late ones appear: one of a row that was written
	// over since, one of a row that is gone.
	p.until = p.upTo(early.Add(10 * time.Millisecond))
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	p.until = nil
	if n := len(p.rows()); n != 2 {
		t.Fatalf("the stream has %d changes", n)
	}
	release()
	late := f.batches()
	f.cluster.MustExec(t, `UPDATE ks.t SET v = 777 WHERE pk = 7 AND ck = 0`, `DELETE FROM ks.t WHERE pk = 8 AND ck = 0`)
	f.cluster.MustExec(t, `INSERT INTO ks.t (pk, ck, v) VALUES (9, 1, 91)`, `INSERT INTO ks.t (pk, ck, v) VALUES (10, 3, 3)`, `INSERT INTO ks.t (pk, ck, v) VALUES (10, 4, 4)`, `INSERT INTO ks.t (pk, ck, v) VALUES (10, 6, 6)`)
	// A late change comes with its row; those of a partition and of a range with all
	// that are there; and eight changes are not late.
	all := func() bool {
		ended, onTime := 0, 0
		for _, c := range p.rows() {
			switch {
			case !c.Late:
				onTime++
			case c.Tx.Last:
				ended++
			}
		}
		return ended == 5 && onTime == 8
	}
	p.enough = all
	for round := 0; !all(); round++ {
		if round > 30 {
			t.Fatal("it does not come to an end")
		}
		p.crash = 2 + round%2 // in the midst of a batch that is late, too
		if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	p.enough = nil
	// And nothing comes again.
	p.crash, p.want = 0, 0
	swept := time.Now()
	p.until = func() bool { return p.stream.Lag().Streams.Swept.After(swept) }
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, c := range p.rows() {
		if c.Late {
			found = append(found, fmt.Sprintf("%s %s %s", c.Op, c.Key, c.After))
		}
	}
	slices.Sort(found)
	got := strings.Join(slices.Compact(found), "\n") // rows that were told before a crash come again
	if got != `delete {"pk":7,"ck":5} 
delete {"pk":8,"ck":0} 
delete_partition {"pk":9} 
delete_range {"pk":10} 
read {"pk":10,"ck":4} {"pk":10,"ck":4,"v":4}
read {"pk":10,"ck":6} {"pk":10,"ck":6,"v":6}
read {"pk":7,"ck":0} {"pk":7,"ck":0,"v":777}
read {"pk":9,"ck":1} {"pk":9,"ck":1,"v":91}
update {"pk":7,"ck":0} {"pk":7,"ck":0,"v":700}
update {"pk":8,"ck":0} {"pk":8,"ck":0,"v":800}` {
		t.Errorf("the late changes are\n%s", got)
	}
	// Each batch is whole, and there once, with what was added to the late ones.
	more := map[string]int{}
	for _, c := range p.rows() {
		if c.Late {
			more[c.Tx.ID] = int(c.Tx.N)
		}
	}
	batches := f.batches()
	for i, b := range batches {
		parts := strings.Fields(b)
		if n, ok := more[parts[1]]; ok && slices.Contains(late, b) {
			batches[i] = fmt.Sprintf("%s %s %d", parts[0], parts[1], n)
		}
	}
	if len(more) != 5 {
		t.Errorf("%d batches are late", len(more))
	}
	f.checkBatches(p, batches)
}

func TestDoubleSweepHandsNothingOverTwice(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t", "u")
	f.setup.Sweep = 1500 * time.Millisecond
	start := f.start()
	p := &tape{t: t}
	for round := range 4 {
		for i := range 30 {
			f.batch([]string{"t", "u"}[i%2], time.Now().Add(time.Duration(i)*time.Millisecond), 1+i%2, round*100+i)
		}
		f.finish(p, start, 23)
	}
	swept := time.Now()
	p.until = func() bool { return p.stream.Lag().Streams.Swept.After(swept) }
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	f.checkBatches(p, f.batches())
	for _, c := range p.rows() {
		if c.Late {
			t.Errorf("%s is late", c.Pos)
		}
	}
}

func TestDoubleSweepLeavesATableAloneThatCameToTheCapture(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t", "u")
	f.setup.Sweep = 2 * time.Second
	both := f.setup.Tables
	f.setup.Tables = both[:1]
	start := f.start()
	f.batch("t", time.Now(), 1, 1)
	f.batch("u", time.Now(), 1, 2) // before it is captured
	p := &tape{t: t}
	p.until = p.upTo(time.Now())
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	p.until = nil
	f.setup.Tables = both
	before := f.batches()
	cfg := p.config(f.setup, start)
	stream, err := f.backend.OpenChanges(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	start.Source = stream.Source()
	if err := stream.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.batch("u", time.Now(), 1, 3)
	swept := time.Now()
	p.until = func() bool { return p.stream.Lag().Streams.Swept.After(swept) }
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	f.checkBatches(p, slices.DeleteFunc(f.batches(), func(b string) bool {
		return strings.HasPrefix(b, "u ") && slices.Contains(before, b)
	}))
}

// lateDelete has the stream of ks.t have the inserts of n rows of the partition 9,
// and not yet a delete of the partition, that is older than they are.
func (f *fixture) lateDelete(p *tape, start driver.ChangeStart, n int) {
	f.t.Helper()
	f.setup.Sweep = time.Hour // it finds nothing
	early := time.Now()
	release := f.cluster.HoldLog("ks.t")
	f.exec(`DELETE FROM ks.t USING TIMESTAMP ? WHERE pk = 9`, early.UnixMicro())
	p.until = p.upTo(early.Add(10 * time.Millisecond))
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		f.t.Fatal(err)
	}
	p.until = nil
	release()
	f.batch("t", time.Now(), n, 9)
	p.want = n
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		f.t.Fatal(err)
	}
	p.want = 0
	f.setup.Sweep = time.Second // it finds the delete
}

// kept is what somebody has who keeps rows by key.
func (p *tape) kept() (keys []string) {
	rows := map[string]bool{}
	for _, c := range p.rows() {
		switch c.Op {
		case cdc.DeletePartition:
			partition := strings.TrimSuffix(string(c.Key), "}") + ","
			maps.DeleteFunc(rows, func(key string, _ bool) bool { return strings.HasPrefix(key, partition) })
		case cdc.Delete:
			delete(rows, string(c.Key))
		default:
			rows[string(c.Key)] = true
		}
	}
	return slices.Sorted(maps.Keys(rows))
}

func TestDoubleLateBatchThatIsStoredInPartIsFinishedWithTheRowsThatAreThere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cql        []string // between the crash and what follows
		late, kept string
		more       int // changes that follow the late ones
	}{
		"those that were told are gone": {
			cql:  []string{`DELETE FROM ks.t WHERE pk = 9 AND ck = 0`, `DELETE FROM ks.t WHERE pk = 9 AND ck = 1`},
			late: `delete_partition {"pk":9}, read {"pk":9,"ck":0}, read {"pk":9,"ck":1}, read {"pk":9,"ck":2}, read {"pk":9,"ck":3}, read {"pk":9,"ck":4}`,
			kept: `{"pk":9,"ck":2} {"pk":9,"ck":3} {"pk":9,"ck":4}`, more: 2,
		},
		"all are gone": {
			cql:  []string{`DELETE FROM ks.t WHERE pk = 9`},
			late: `delete_partition {"pk":9}, read {"pk":9,"ck":0}, read {"pk":9,"ck":1}, delete_partition {"pk":9}`, more: 1,
		},
		"nothing has changed": {
			late: `delete_partition {"pk":9}, read {"pk":9,"ck":0}, read {"pk":9,"ck":1}, read {"pk":9,"ck":0}, read {"pk":9,"ck":1}, read {"pk":9,"ck":2}, read {"pk":9,"ck":3}, read {"pk":9,"ck":4}`,
			kept: `{"pk":9,"ck":0} {"pk":9,"ck":1} {"pk":9,"ck":2} {"pk":9,"ck":3} {"pk":9,"ck":4}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "t")
			start := f.start()
			p := &tape{t: t}
			f.lateDelete(p, start, 5)
			p.crash = 4 // the delete and two of five rows are stored
			if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil || len(p.rows()) != 8 {
				t.Fatalf("%d changes are stored, %v", len(p.rows()), err)
			}
			p.crash = 0
			f.cluster.MustExec(t, c.cql...)
			p.until = p.upTo(time.Now())
			if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			var late []string
			rows := p.rows()
			for i, r := range rows {
				if !r.Late {
					continue
				}
				late = append(late, fmt.Sprintf("%s %s", r.Op, r.Key))
				if ends := i == len(rows)-1-c.more; r.Tx.N != uint64(len(late)) || r.Tx.Last != ends {
					t.Errorf("change %d of the batch is %+v", len(late), *r.Tx)
				}
			}
			if got := strings.Join(late, ", "); got != c.late {
				t.Errorf("the late ones are\n%s\nwant\n%s", got, c.late)
			}
			if got := strings.Join(p.kept(), " "); got != c.kept {
				t.Errorf("kept is %s, want %s", got, c.kept)
			}
		})
	}
}

func TestDoubleRowsBehindALateDeleteAreReadPageByPage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	p := &tape{t: t}
	f.lateDelete(p, start, 300)
	pages := f.cluster.Fail(scyllatest.Containing(`FROM "ks"."t" WHERE "pk" =`), scyllatest.Slow(0), -1)
	p.crash = 7
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if n, stored := pages(), len(p.rows()); n == 0 || n > 10 || stored != 306 {
		t.Errorf("%d changes are stored, and %d pages of three rows were read", stored, n)
	}
}

func TestDoubleSweepLeavesABatchAloneThatWasRejected(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.setup.Sweep = 1500 * time.Millisecond
	start := f.start()
	f.row("t", f.streams[0], gocql.UUIDFromTime(time.Now()), 0, 42, true, 1, 1, 1) // no operation that is known
	written := time.Now()
	p := &tape{t: t}
	p.until = func() bool { return p.stream.Lag().Streams.Swept.After(written) }
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if len(p.rejected) != 1 {
		t.Errorf("rejected are %+v", p.rejected)
	}
}
