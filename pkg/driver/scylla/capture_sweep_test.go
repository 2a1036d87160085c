package scylla_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
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
	// that are there; and six changes are not late.
	want := 2 + 2 + 2 + 2 + 2 + 3 + 6
	for round := 0; len(p.rows()) < want; round++ {
		if round > 30 {
			t.Fatal("it does not come to an end")
		}
		p.crash, p.want = 2+round%2, want // in the midst of a batch that is late, too
		if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
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
	got := strings.Join(found, "\n")
	if got != `delete {"pk":7,"ck":5} 
delete {"pk":7,"ck":5} 
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
	all := f.batches()
	for i, b := range all {
		parts := strings.Fields(b)
		if n, ok := more[parts[1]]; ok && slices.Contains(late, b) {
			all[i] = fmt.Sprintf("%s %s %d", parts[0], parts[1], n)
		}
	}
	if len(more) != 5 {
		t.Errorf("%d batches are late", len(more))
	}
	f.checkBatches(p, all)
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
