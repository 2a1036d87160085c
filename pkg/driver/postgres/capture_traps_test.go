package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// These are the traps of the design (section 4), each by its name.

// streamingServer has the server stream what is larger than 64 kB.
func streamingServer(t *testing.T) string {
	t.Helper()
	return pgtest.Server(t, map[string]string{"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "10", "fsync": "off"}).DSN("postgres")
}

// other opens one more connection.
func (r *captureRig) other() *pgx.Conn {
	r.t.Helper()
	c, err := pgx.ConnectConfig(context.Background(), r.conn.Config().Copy())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func must(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (r *captureRig) value(sql string) string {
	r.t.Helper()
	var v *string
	if err := r.conn.QueryRow(context.Background(), sql).Scan(&v); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
	if v == nil {
		return ""
	}
	return *v
}

// waitFor waits until a query of one boolean is true.
func (r *captureRig) waitFor(sql string, most time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(most); ; time.Sleep(20 * time.Millisecond) {
		if r.value("SELECT CASE WHEN "+sql+" THEN 'true' END") == "true" {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("after %s it does not hold that %s", most, sql)
		}
	}
}

// Transactions interleave in the log and arrive in the order of their commits:
// one that began long before the last stored position must not be skipped.
func TestLongTransactionAcrossARestart(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	long := r.other()
	must(t, long, "BEGIN")
	must(t, long, "INSERT INTO t SELECT generate_series(1001, 1100)")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	for i := range 50 {
		r.exec("INSERT INTO t VALUES ($1)", i)
	}
	s.await("50 rows", s.has(51))
	must(t, long, "INSERT INTO t SELECT generate_series(1101, 1200)")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	last := s.changes[len(s.changes)-1].Pos
	r.exec("INSERT INTO t VALUES (99)")
	must(t, long, "COMMIT")
	r.follow(s, func(c *driver.ChangeConfig) { c.After = last })
	s.await("all rows", s.has(51+1+200))
	seen := map[string]int{}
	for _, c := range s.changes {
		seen[string(c.Key)]++
	}
	for key, n := range seen {
		if n != 1 && key != "" {
			t.Errorf("row %s came %d times", key, n)
		}
	}
}

// A stream that ended in the midst of a transaction goes on behind the last
// change that was stored, with the same numbers.
func TestResumeInTheMidstOfATransaction(t *testing.T) {
	t.Parallel()
	for name, streaming := range map[string]bool{"sent whole": false, "streamed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.DSN(t)
			if streaming {
				dsn = streamingServer(t)
			}
			r := newCaptureRig(t, dsn, `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
			r.exec("INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 5000) g")
			full := newRecorder(t)
			full.hold = true // nothing is confirmed: all of it comes again
			stop := r.follow(full, nil)
			full.await("5,000 rows", full.has(5001))
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			for _, at := range []int{1, 2, 777, 5000} {
				after := full.changes[at].Pos
				s := newRecorder(t)
				s.hold = true
				s.tables = full.tables
				stop := r.follow(s, func(c *driver.ChangeConfig) { c.After = after })
				r.exec("UPDATE t SET v = 'end' WHERE id = 1")
				s.await("the end", func() bool {
					return len(s.changes) > 0 && s.changes[len(s.changes)-1].Op == cdc.Update
				})
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				want := full.changes[at+1:]
				if len(s.changes) < len(want) {
					t.Fatalf("after %s there came %d changes, want %d", after, len(s.changes), len(want))
				}
				for i, c := range want {
					if tellChange(c) != tellChange(s.changes[i]) || c.Pos != s.changes[i].Pos {
						t.Fatalf("after %s change %d is %s at %s, want %s at %s", after, i, tellChange(s.changes[i]), s.changes[i].Pos, tellChange(c), c.Pos)
					}
				}
			}
		})
	}
}

// Flush never passes an event that is not stored, and does pass what holds
// nothing for us: an idle database does not hoard its log.
func TestIdleDatabaseConfirmsWhatHoldsNothing(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE foreign_table (v text)`, "t")
	s := newRecorder(t)
	var recorded atomic.Value
	recorded.Store("")
	r.follow(s, func(c *driver.ChangeConfig) {
		c.Confirming = func(_ context.Context, mark string) error { recorded.Store(mark); return nil }
	})
	confirmed := "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '" + r.cfg.Slot + "'"
	r.exec("INSERT INTO foreign_table SELECT repeat('f', 1000) FROM generate_series(1, 20000)")
	at := r.value("SELECT pg_current_wal_lsn() - '0/0'")
	r.waitFor("("+confirmed+") >= "+at, 20*time.Second)
	if mark := recorded.Load().(string); mark == "" || mark < formatLSN(mustUint(t, at)) {
		t.Errorf("the mark %q was on record when %s was confirmed", mark, at)
	}

	s.mu.Lock()
	s.hold = true
	s.mu.Unlock()
	r.exec("INSERT INTO t VALUES (1)")
	s.await("the row", s.has(2))
	held := r.value("SELECT pg_current_wal_lsn() - '0/0'")
	r.exec("INSERT INTO foreign_table SELECT repeat('f', 1000) FROM generate_series(1, 5000)")
	time.Sleep(1500 * time.Millisecond) // nothing tells of what must not happen
	if got := r.value(confirmed); mustUint(t, got) >= mustUint(t, held) {
		t.Errorf("the server was told %s, beyond the row at %s that is not stored", got, held)
	}
	s.mu.Lock()
	mark := s.marks[len(s.marks)-1]
	s.mu.Unlock()
	s.stream.Confirm(mark)
	r.waitFor("("+confirmed+") >= "+held, 20*time.Second)
}

func mustUint(t *testing.T, s string) (n uint64) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Keepalives are answered while the sink holds the stream: the server does not
// give us up.
func TestKeepalivesAreAnsweredWhileTheSinkBlocks(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, map[string]string{"wal_sender_timeout": "1s", "fsync": "off"})
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	release := make(chan struct{})
	held := make(chan struct{}, 1)
	s.pause = func() error {
		select {
		case held <- struct{}{}:
			<-release
		default:
		}
		return nil
	}
	stop := r.follow(s, nil)
	r.exec("INSERT INTO t VALUES (1, '')")
	<-held
	r.exec("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(2, 20000) g") // more than the buffers take
	time.Sleep(4 * time.Second)                                                          // of a timeout of one
	close(release)
	s.await("all rows", s.has(20001))
	if err := stop(); err != nil {
		t.Errorf("the stream ended: %v", err)
	}
}

// A clean stop of the server does not wait for us.
func TestServerStopsFastWhileCapturing(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, nil)
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	r.exec("INSERT INTO t SELECT generate_series(1, 1000)")
	s.await("the rows", s.has(1001))
	begun := time.Now()
	if err := srv.Restart(t.Context(), localpg.Fast); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("stopped and started again within %s", took)
	if took > 10*time.Second { // it would wait for ever
		t.Errorf("the server took %s", took)
	}
	if err := stop(); err == nil {
		t.Error("the stream did not say that the server had stopped")
	}
}

// On start the slot is looked at, and nothing carries on in silence.
func TestSourceThatIsNotWhatItWas(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	conn, err := r.b.connectReplication(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	source, err := r.b.source(t.Context(), conn.pg)
	closeReplication(conn)
	if err != nil {
		t.Fatal(err)
	}
	at := formatLSN(mustUint(t, r.value("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '"+r.cfg.Slot+"'")))
	open := func(change func(*driver.ChangeConfig)) string {
		cfg := r.cfg
		cfg.Source, cfg.Confirmed = source, at
		if change != nil {
			change(&cfg)
		}
		st, err := r.b.OpenChanges(t.Context(), cfg)
		if err == nil {
			st.Close(t.Context())
			return ""
		}
		var lost *driver.SourceLost
		if !errors.As(err, &lost) {
			return err.Error()
		}
		if !strings.Contains(lost.Message, "may be missing") && !strings.Contains(lost.Message, "are missing") {
			t.Errorf("%s does not say what is at stake: %s", lost.Code, lost.Message)
		}
		return lost.Code
	}
	if got := open(nil); got != "" {
		t.Fatalf("the slot as it was left: %s", got)
	}
	if got := open(func(c *driver.ChangeConfig) { c.Source = "1" + source }); got != "other_source" {
		t.Errorf("another system: %s", got)
	}
	parts := strings.Split(source, "/")
	if got := open(func(c *driver.ChangeConfig) { c.Source = parts[0] + "/77/" + parts[2] }); got != "other_source" {
		t.Errorf("another timeline: %s", got)
	}
	if got := open(func(c *driver.ChangeConfig) { c.Slot = "athena_none_such" }); got != "slot_missing" {
		t.Errorf("no slot: %s", got)
	}
	r.waitFor("(SELECT NOT active FROM pg_replication_slots WHERE slot_name = '"+r.cfg.Slot+"')", 10*time.Second)
	r.exec("SET synchronous_commit = on")
	r.exec("INSERT INTO t VALUES (1)")
	r.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", r.cfg.Slot)
	if got := open(nil); got != "slot_recreated" {
		t.Errorf("a slot that somebody moved: %s", got)
	}
	r.exec("SELECT pg_drop_replication_slot($1)", r.cfg.Slot)
	r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", r.cfg.Slot)
	if got := open(nil); got != "slot_recreated" {
		t.Errorf("a slot that was made anew: %s", got)
	}
	r.exec("DROP PUBLICATION athena_shop")
	if got := open(func(c *driver.ChangeConfig) { c.Confirmed = "" }); got != "publication_missing" {
		t.Errorf("no publication: %s", got)
	}
}

// A slot that the server gave up is told from one that lags.
func TestSlotLostToTheSizeOfTheLog(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "48MB", "wal_keep_size": "0", "fsync": "off"})
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE f (v text)`, "t")
	for range 8 {
		r.exec("INSERT INTO f SELECT repeat('f', 1000) FROM generate_series(1, 20000)")
		r.exec("SELECT pg_switch_wal()")
		r.exec("CHECKPOINT")
	}
	_, err := r.b.OpenChanges(t.Context(), r.cfg)
	var lost *driver.SourceLost
	if !errors.As(err, &lost) || lost.Code != "slot_lost" {
		t.Errorf("the error is %v, want slot_lost", err)
	}
}

// A slot that a session of ours still holds is taken from it; that of a stranger
// is not.
func TestSlotInUse(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	other := newRecorder(t)
	r.follow(other, nil)
	r.exec("INSERT INTO t VALUES (1)")
	other.await("the row", other.has(2))
	if err := stop(); err == nil && len(s.changes) > 0 {
		t.Error("both have read")
	}
	cfg := r.cfg
	cfg.Client = "stranger"
	if _, err := r.b.OpenChanges(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is in use by the session") {
		t.Errorf("the error is %v", err)
	}
}

// A savepoint that is rolled back within a transaction that the server streams
// takes only its own rows with it; what the memory does not hold goes to disk.
func TestRollbackToSavepointWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, func(c *driver.ChangeConfig) { c.SpillMemory = 64 << 10 })
	c := r.other()
	must(t, c, "BEGIN")
	must(t, c, "INSERT INTO t SELECT g, repeat('a', 100) FROM generate_series(1, 3000) g")
	must(t, c, "SAVEPOINT s")
	must(t, c, "INSERT INTO t SELECT g, repeat('b', 100) FROM generate_series(3001, 6000) g")
	must(t, c, "ROLLBACK TO SAVEPOINT s")
	must(t, c, "INSERT INTO t SELECT g, repeat('c', 100) FROM generate_series(6001, 9000) g")
	// An inner one that is released within one that is rolled back goes with it.
	must(t, c, "SAVEPOINT o")
	must(t, c, "SAVEPOINT i")
	must(t, c, "INSERT INTO t SELECT g, repeat('d', 100) FROM generate_series(9001, 12000) g")
	must(t, c, "RELEASE SAVEPOINT i")
	must(t, c, "ROLLBACK TO SAVEPOINT o")
	must(t, c, "COMMIT")
	s.await("6,000 rows", s.has(6001))
	r.exec("DELETE FROM t WHERE id = 1")
	s.await("the end", func() bool { return s.changes[len(s.changes)-1].Op == cdc.Delete })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(s.changes) != 6002 {
		t.Errorf("there are %d changes, want a schema, 6,000 rows and the end", len(s.changes))
	}
	for i, c := range s.changes[1:6001] {
		want := i + 1
		if i >= 3000 {
			want = i + 3001
		}
		if string(c.Key) != fmt.Sprintf(`{"id":%d}`, want) || c.Tx.N != uint64(i+1) {
			t.Fatalf("change %d is %s", i, tellChange(c))
		}
	}
	if n := s.stream.(*changeStream).spool.spills; n == 0 {
		t.Error("nothing went to disk: the transaction was not streamed, and the test shows nothing")
	}
}

// The chunks of transactions that are streamed interleave; each comes whole, in
// the order of the commits, and one that is rolled back does not come.
func TestStreamedTransactionsInterleave(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, func(c *driver.ChangeConfig) { c.SpillMemory = 256 << 10 })
	conns := []*pgx.Conn{r.other(), r.other(), r.other()}
	for _, c := range conns {
		must(t, c, "BEGIN")
	}
	for part := range 10 {
		for i, c := range conns {
			must(t, c, fmt.Sprintf("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(%d, %d) g", i*100000+part*500+1, i*100000+part*500+500))
		}
	}
	must(t, conns[1], "COMMIT")
	must(t, conns[2], "ROLLBACK")
	must(t, conns[0], "COMMIT")
	s.await("10,000 rows", s.has(10001))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for i, c := range s.changes[1:] {
		want := 100000 + i + 1
		if i >= 5000 {
			want = i - 5000 + 1
		}
		if string(c.Key) != fmt.Sprintf(`{"id":%d}`, want) {
			t.Fatalf("change %d is %s, want row %d", i, tellChange(c), want)
		}
	}
	if n := s.stream.(*changeStream).spool.spills; n == 0 {
		t.Error("nothing went to disk: no transaction was streamed")
	}
}

// Without room for what is not committed the stream says so, and is opened
// again with the transactions left at the server.
func TestNoRoomToSpill(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, func(c *driver.ChangeConfig) { c.SpillMemory, c.SpillMost = 64<<10, 128<<10 })
	r.exec("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 5000) g")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if l := s.stream.Lag(); l.Spilled > 0 {
			break
		}
	}
	time.Sleep(200 * time.Millisecond)
	if err := stop(); !errors.Is(err, driver.ErrSpillFull) && err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	r.follow(s, func(c *driver.ChangeConfig) { c.NoStreaming, c.SpillMemory, c.SpillMost = true, 1, 1 })
	s.await("the rows", s.has(5001))
}

// Only what is committed counts: a prepared transaction comes when it is
// committed, also where the slot decodes it when it is prepared.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	for name, twoPhase := range map[string]bool{"slot of ours": false, "slot with two_phase": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
			r.exec("SELECT pg_drop_replication_slot($1)", r.cfg.Slot)
			r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, $2)", r.cfg.Slot, twoPhase)
			s := newRecorder(t)
			stop := r.follow(s, nil)
			c := r.other()
			for _, gid := range []string{"keep", "drop", "large"} {
				rows := map[string]string{"keep": "1, 3", "drop": "11, 13", "large": "1001, 4000"}[gid]
				must(t, c, "BEGIN")
				must(t, c, "INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series("+rows+") g")
				must(t, c, "PREPARE TRANSACTION '"+gid+"'")
			}
			r.exec("INSERT INTO t VALUES (100, 'between')")
			s.await("the row between", s.has(2))
			s.await("its confirmation", func() bool { return len(s.marks) > 0 })
			// A restart before the decision: what was prepared must come again.
			time.Sleep(100 * time.Millisecond)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			after := s.changes[len(s.changes)-1].Pos
			r.follow(s, func(c *driver.ChangeConfig) { c.After = after })
			must(t, c, "COMMIT PREPARED 'keep'")
			must(t, c, "ROLLBACK PREPARED 'drop'")
			must(t, c, "COMMIT PREPARED 'large'")
			r.exec("INSERT INTO t VALUES (101, 'end')")
			s.await("all", s.has(1+1+3+3000+1))
			s.mu.Lock()
			defer s.mu.Unlock()
			var got []string
			for _, c := range s.changes[1:] {
				got = append(got, string(c.Key))
			}
			want := []string{`{"id":100}`, `{"id":1}`, `{"id":2}`, `{"id":3}`}
			for i := range 3000 {
				want = append(want, fmt.Sprintf(`{"id":%d}`, 1001+i))
			}
			want = append(want, `{"id":101}`)
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("got %.300s", got)
			}
		})
	}
}

// The cache of tables is by OID and per connection: a table that is renamed,
// altered, or dropped and made again is described before its next row.
func TestTablesThatChangeMidStream(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	r.exec("INSERT INTO t VALUES (1, 'a')")
	r.exec("ALTER TABLE t ADD COLUMN w numeric DEFAULT 1.50")
	r.exec("INSERT INTO t VALUES (2, 'b', 2)")
	r.exec("ALTER TABLE t RENAME COLUMN v TO x")
	r.exec("INSERT INTO t VALUES (3, 'c', 3)")
	r.exec("ALTER TABLE t DROP COLUMN w, ALTER COLUMN id TYPE bigint")
	r.exec("UPDATE t SET x = 'd' WHERE id = 3")
	r.exec("ALTER TABLE t RENAME TO u")
	r.exec("INSERT INTO u VALUES (4, 'e')")
	r.exec("ALTER TABLE u RENAME TO t")
	r.exec("INSERT INTO t VALUES (5, 'f')")
	r.exec("DROP TABLE t")
	r.exec("CREATE TABLE t (k text PRIMARY KEY)")
	r.exec("ALTER PUBLICATION athena_shop SET TABLE t")
	r.exec("INSERT INTO t VALUES ('anew')")
	s.want(
		"schema t id:integer* v:text",
		`insert t key={"id":1} after={"id":1,"v":"a"} n=1`,
		"schema t id:integer* v:text w:numeric",
		`insert t key={"id":2} after={"id":2,"v":"b","w":"2"} n=1`,
		"schema t id:integer* x:text w:numeric",
		`insert t key={"id":3} after={"id":3,"x":"c","w":"3"} n=1`,
		"schema t id:bigint* x:text",
		`update t key={"id":3} after={"id":3,"x":"d"} n=1`,
		"schema u id:bigint* x:text",
		`insert u key={"id":4} after={"id":4,"x":"e"} n=1`,
		`insert t key={"id":5} after={"id":5,"x":"f"} n=1`,
		"schema t k:text*",
		`insert t key={"k":"anew"} after={"k":"anew"} n=1`,
	)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// What the publication and the server shape is taken as it comes: partitions
// under their root, generated columns left out.
func TestShapesOfThePublication(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `
		CREATE TABLE p (id int, part int, v text, PRIMARY KEY (part, id)) PARTITION BY LIST (part);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
		CREATE TABLE p2 (v text, id int NOT NULL, part int NOT NULL);
		ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2);
		CREATE TABLE g (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED)`, "p, g")
	s := newRecorder(t)
	r.follow(s, nil)
	r.exec("INSERT INTO p VALUES (1, 1, 'a'), (1, 2, 'b')")
	r.exec("UPDATE p SET part = 2, id = 5 WHERE part = 1")
	r.exec("INSERT INTO g VALUES (1, 21)")
	s.want(
		"schema p id:integer* part:integer* v:text",
		`insert p key={"id":1,"part":1} after={"id":1,"part":1,"v":"a"} n=1`,
		`insert p key={"id":1,"part":2} after={"id":1,"part":2,"v":"b"} n=2`,
		`delete p key={"id":1,"part":1} before={"id":1,"part":1} n=1`,
		`insert p key={"id":5,"part":2} after={"id":5,"part":2,"v":"a"} n=2`,
		"schema g id:integer* a:integer",
		`insert g key={"id":1} after={"id":1,"a":21} n=1`,
	)
}

// So are row filters and column lists: an update that brings a row into the
// filter is an insert.
func TestFiltersOfThePublication(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	b, err := Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(dsn)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	if server, err := serverOf(t.Context(), b.catalog); err != nil || server.version < 150000 {
		t.Skip("PostgreSQL has row filters and column lists from 15 on", err)
	}
	r := newCaptureRig(t, dsn, `CREATE TABLE f (id int PRIMARY KEY, a int, secret text)`, "f (id, a) WHERE (id > 10)")
	s := newRecorder(t)
	r.follow(s, nil)
	r.exec("INSERT INTO f VALUES (1, 1, 'no'), (11, 1, 'hidden')")
	r.exec("UPDATE f SET id = 12 WHERE id = 1")
	s.want(
		"schema f id:integer* a:integer",
		`insert f key={"id":11} after={"id":11,"a":1} n=1`,
		`insert f key={"id":12} after={"id":12,"a":1} n=1`,
	)
}

// What replication brought from elsewhere is left out where that is asked for.
func TestOrigin(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, map[string]string{"fsync": "off"})
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	s := newRecorder(t)
	r.follow(s, func(c *driver.ChangeConfig) { c.LocalOnly = true })
	r.exec("SELECT pg_replication_origin_create('elsewhere')")
	r.exec("SELECT pg_replication_origin_session_setup('elsewhere')")
	r.exec("INSERT INTO t VALUES (1)")
	r.exec("SELECT pg_replication_origin_session_reset()")
	r.exec("INSERT INTO t VALUES (2)")
	s.want("schema t id:integer*", `insert t key={"id":2} after={"id":2} n=1`)
}

// A value that is no text in any encoding is handed over as it is, and never
// changed in silence.
func TestBytesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := admin.Config().Database + "_ascii"
	must(t, admin, "CREATE DATABASE "+name+" ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	t.Cleanup(func() {
		_, _ = admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		admin.Close(context.Background())
	})
	r := newCaptureRig(t, strings.Replace(dsn, admin.Config().Database, name, 1), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	r.follow(s, nil)
	r.exec(`SET standard_conforming_strings = on; INSERT INTO t VALUES (1, 'ok'), (2, E'\xff\xfe'), (3, 'ok')`)
	s.want(
		"schema t id:integer* v:text",
		`insert t key={"id":1} after={"id":1,"v":"ok"} n=1`,
		`insert t key={"id":3} after={"id":3,"v":"ok"} n=3`,
	)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rejects) != 1 || s.rejects[0].Op != cdc.Insert || !strings.Contains(string(s.rejects[0].Raw), "\xff\xfe") || !strings.Contains(s.rejects[0].Reason, `"v"`) {
		t.Errorf("rejected: %+v", s.rejects)
	}
}

// A prepared transaction that was committed and is not yet stored holds back what
// is confirmed: behind its PREPARE the server would not send it again.
func TestPreparedTransactionIsNotConfirmedBeforeItIsStored(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	r.exec("SELECT pg_drop_replication_slot($1)", r.cfg.Slot)
	r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, true)", r.cfg.Slot)
	s := newRecorder(t)
	stop := r.follow(s, nil)
	r.exec("BEGIN")
	r.exec("INSERT INTO t VALUES (1)")
	r.exec("PREPARE TRANSACTION 'p'")
	r.exec("INSERT INTO t VALUES (2)")
	s.await("the row behind it, and its confirmation", func() bool { return len(s.changes) == 2 && len(s.marks) == 1 })
	s.mu.Lock()
	s.hold = true
	after := s.changes[1].Pos
	s.mu.Unlock()
	r.exec("COMMIT PREPARED 'p'")
	s.await("the row", s.has(3))
	time.Sleep(200 * time.Millisecond) // nothing tells of what must not happen
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again := newRecorder(t)
	r.follow(again, func(c *driver.ChangeConfig) { c.After = after })
	again.want("schema t id:integer*", `insert t key={"id":1} after={"id":1} n=1`)
}

// A transaction of which nothing is stored, since all of it was rejected, is
// confirmed like one that holds nothing.
func TestRejectedTransactionIsConfirmed(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := admin.Config().Database + "_rejected"
	must(t, admin, "CREATE DATABASE "+name+" ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	t.Cleanup(func() {
		_, _ = admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		admin.Close(context.Background())
	})
	r := newCaptureRig(t, strings.Replace(dsn, admin.Config().Database, name, 1), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	s.hold = true // a writer that has nothing to store confirms nothing
	r.follow(s, nil)
	r.exec(`SET standard_conforming_strings = on; INSERT INTO t VALUES (2, E'\xff\xfe')`)
	s.await("the row", func() bool { return len(s.rejects) == 1 })
	at := r.value("SELECT pg_current_wal_lsn() - '0/0'")
	r.waitFor("(SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '"+r.cfg.Slot+"') >= "+at, 20*time.Second)
}

// A server that waits is answered, whatever ails the place where marks are put on
// record.
func TestServerIsAnsweredWhileNothingCanBeRecorded(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, map[string]string{"wal_sender_timeout": "1s", "fsync": "off"})
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE f (v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, func(c *driver.ChangeConfig) {
		c.Confirming = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	})
	for range 25 {
		r.exec("INSERT INTO f SELECT repeat('f', 1000) FROM generate_series(1, 100)")
		time.Sleep(200 * time.Millisecond)
	}
	r.exec("INSERT INTO t VALUES (1)")
	s.await("the row", s.has(2))
	if err := stop(); err != nil {
		t.Errorf("the stream ended: %v", err)
	}
}

func TestTransactionWithMoreChangesThanPositions(t *testing.T) {
	t.Parallel()
	d := decoder{}
	d.begin(1, 1, time.Time{})
	d.tx.n = 1<<32 - 2
	pos, wanted, err := d.next()
	if err != nil || !wanted || !strings.HasSuffix(string(pos), ".FFFFFFFF") {
		t.Errorf("%s, %v, %v", pos, wanted, err)
	}
	if _, _, err := d.next(); err == nil {
		t.Error("a position came a second time")
	}
}

// A standby that was promoted may lack what is stored of the server before it,
// and then writes something else in that place.
func TestHistoryHasWhatIsStored(t *testing.T) {
	t.Parallel()
	history := "1\t0/3000158\tno recovery target specified\n\n2\t1/A0\tno recovery target specified\n"
	for _, tt := range []struct {
		timeline string
		at       cdc.Position
		want     bool
	}{
		{"1", "", true},
		{"1", "0000000003000100.00000007", true},
		{"1", "0000000003000158.00000000r0000000001", true},
		{"1", "0000000003000158.00000001", false},
		{"1", "0000000103000158.00000001", false},
		{"2", "0000000003000158.00000001", true},
		{"2", "00000001000000A8.00000001", false},
		{"3", "0000000000000001.00000001", false},
	} {
		if got := has(history, tt.timeline, tt.at); got != tt.want {
			t.Errorf("%s of timeline %s: %v", tt.at, tt.timeline, got)
		}
	}
}

// A standby that was promoted is gone on with where its slot is kept for that, and
// only as long as nothing is stored that it never had.
func TestPromotedStandby(t *testing.T) {
	t.Parallel()
	srv := pgtest.Server(t, map[string]string{"fsync": "off"})
	r := newCaptureRig(t, srv.DSN("postgres"), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	r.exec("INSERT INTO t VALUES (1)")
	s.await("the row", s.has(2))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	kept := serverMajor(r.conn.PgConn()) >= 17
	if kept {
		r.waitFor("(SELECT NOT active FROM pg_replication_slots WHERE slot_name = '"+r.cfg.Slot+"')", 10*time.Second)
		r.exec("SELECT pg_drop_replication_slot($1)", r.cfg.Slot)
		r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)", r.cfg.Slot)
	}
	if err := os.WriteFile(filepath.Join(r.value("SHOW data_directory"), "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(t.Context(), localpg.Fast); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), srv.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	r.conn = conn
	r.exec("SELECT pg_promote()")

	open := func(after cdc.Position) (driver.ChangeStream, string) {
		cfg := r.cfg
		cfg.Source, cfg.After = s.stream.Source(), after
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			stream, err := r.b.OpenChanges(t.Context(), cfg)
			var lost *driver.SourceLost
			switch {
			case err == nil:
				stream.Close(t.Context())
				return stream, ""
			case errors.As(err, &lost):
				return nil, lost.Code
			case time.Now().After(end): // connections of the pool are from before
				t.Fatal(err)
			}
		}
	}
	if _, code := open("FFFFFFFF00000000.00000001"); code != "other_source" {
		t.Errorf("a stream that has more: %q", code)
	}
	stream, code := open(s.changes[1].Pos)
	if !kept {
		if code != "other_source" {
			t.Errorf("a slot that is not kept for it: %q", code)
		}
		return
	}
	if code != "" {
		t.Fatal(code)
	}
	if was, is := s.stream.Source(), stream.Source(); strings.Replace(was, "/1/", "/2/", 1) != is {
		t.Errorf("the source was %s and is %s", was, is)
	}
}

// The identity that counts is that of the partition; the server describes the
// root, which may have none.
func TestPartitionsWithAnIdentityThatTheirRootLacks(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `
		CREATE TABLE p (id int, v text) PARTITION BY LIST (id);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); ALTER TABLE p1 REPLICA IDENTITY FULL`, "p")
	s := newRecorder(t)
	r.follow(s, nil)
	r.exec("INSERT INTO p VALUES (1, 'a')")
	r.exec("UPDATE p SET v = 'b'")
	r.exec("DELETE FROM p")
	s.want(
		"schema p id:integer v:text",
		`insert p after={"id":1,"v":"a"} n=1`,
		`update p before={"id":1,"v":"a"} after={"id":1,"v":"b"} n=1`,
		`delete p before={"id":1,"v":"b"} n=1`,
	)
}

// Positions are never computed from the length of messages, which may lie beyond
// the server's log: a value that is compressed there is longer here. And all three
// of a status are said.
func TestConfirmedPositionsAreTheServersOwn(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, nil)
	confirmed := "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '" + r.cfg.Slot + "'"
	for i := range 5 {
		r.exec("INSERT INTO t VALUES ($1, repeat('x', 4000000))", i)
		end := r.value("SELECT pg_current_wal_insert_lsn() - '0/0'")
		s.await("the row", s.has(2+i))
		if got := r.value(confirmed); mustUint(t, got) > mustUint(t, r.value("SELECT pg_current_wal_insert_lsn() - '0/0'")) {
			t.Fatalf("%s is confirmed, and the log ends at %s", got, end)
		}
	}
	r.waitFor("(SELECT flush_lsn > '0/0' AND write_lsn = flush_lsn AND replay_lsn = flush_lsn FROM pg_stat_replication WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = '"+r.cfg.Slot+"'))", 10*time.Second)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	after := s.changes[len(s.changes)-1].Pos
	r.exec("INSERT INTO t VALUES (9, 'next')")
	r.follow(s, func(c *driver.ChangeConfig) { c.After = after })
	s.await("the next row", s.has(7))
}

// A table that is altered within a transaction that the server streams is
// described in its place there, and known from then on.
func TestTableThatChangesWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, streamingServer(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	s := newRecorder(t)
	stop := r.follow(s, func(c *driver.ChangeConfig) { c.SpillMemory = 64 << 10 })
	r.exec("INSERT INTO t VALUES (0, 'before')")
	r.exec("BEGIN")
	r.exec("INSERT INTO t SELECT g, repeat('a', 100) FROM generate_series(1, 3000) g")
	r.exec("SAVEPOINT s")
	r.exec("ALTER TABLE t ADD COLUMN gone int")
	r.exec("INSERT INTO t SELECT g, repeat('a', 100), 1 FROM generate_series(3001, 6000) g")
	r.exec("ROLLBACK TO SAVEPOINT s")
	r.exec("ALTER TABLE t ADD COLUMN w int DEFAULT 7")
	r.exec("INSERT INTO t SELECT g, repeat('a', 100) FROM generate_series(6001, 9000) g")
	r.exec("COMMIT")
	r.exec("INSERT INTO t VALUES (9001, 'after')")
	s.await("all", s.has(1+1+3000+1+3000+1))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var schemas []string
	for i, c := range s.changes {
		if c.Op == cdc.Schema {
			schemas = append(schemas, fmt.Sprintf("%d %s", i, tellChange(c)))
		} else if i > 3002 && !strings.Contains(string(c.After), `"w":7`) {
			t.Fatalf("change %d is %s", i, tellChange(c))
		}
	}
	if got := strings.Join(schemas, "; "); got != "0 schema t id:integer* v:text; 3002 schema t id:integer* v:text w:integer" {
		t.Errorf("described are %s", got)
	}
	if n := s.stream.(*changeStream).spool.spills; n == 0 {
		t.Error("nothing went to disk: the transaction was not streamed")
	}
}
