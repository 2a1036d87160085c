package scylla_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestDoubleGoesFromGenerationToGeneration(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t", "u")
	start := f.start()
	put := func(from int, at time.Time) {
		for i := range 8 {
			f.batch([]string{"t", "u"}[i%2], at.Add(time.Duration(i)*time.Millisecond), 1, from+i)
		}
	}
	put(0, time.Now())
	p := &tape{t: t}
	f.finish(p, start, 0)
	// Two generations that are told of ahead, and batches on both sides of where they
	// begin. The stream meets them while it is open, and when it is opened.
	second, third := time.Now().Add(1500*time.Millisecond), time.Now().Add(3*time.Second)
	f.cluster.NewGeneration(second, 2, 3)
	f.cluster.NewGeneration(third, 1, 2)
	for i, at := range []time.Time{second.Add(-20 * time.Millisecond), second.Add(20 * time.Millisecond), third.Add(-20 * time.Millisecond), third.Add(20 * time.Millisecond)} {
		put(10*i+10, at)
	}
	f.finish(p, start, 6)
	f.checkBatches(p, f.batches())
}

func TestDoubleWithAGenerationWithoutStreamsIsWaitedFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	at := time.Now().Add(time.Second).Truncate(time.Millisecond)
	f.batch("t", time.Now(), 1, 1)
	f.cluster.EmptyGeneration(at)
	f.logged("t", []byte("0123456789abcdef"), at.Add(time.Millisecond), 1, 2)
	p := &tape{t: t}
	told := ""
	p.until = func() bool {
		if w := p.stream.Lag().Streams.Waits; w != "" && told == "" && time.Since(at) > 2*time.Second { // well behind its begin
			told = w
			_ = f.cluster.Exec(fmt.Sprintf(`INSERT INTO system_distributed.cdc_streams_descriptions_v2 (time, range_end, streams) VALUES (%d, 0, {0x%x})`, at.UnixMilli(), "0123456789abcdef"))
		}
		return false
	}
	f.finish(p, start, 0)
	if w := p.stream.Lag().Streams.Waits; !strings.Contains(told, at.UTC().Format(time.RFC3339Nano)+" has no streams") || w != "" {
		t.Errorf("it waits for %q, and in the end for %q", told, w)
	}
	f.checkBatches(p, f.batches())
}

func TestDoubleWhoseKeyspaceWouldBeTakenForOneOfTabletsIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	f.cluster.MustExec(t, `INSERT INTO system_schema.scylla_keyspaces (keyspace_name, storage_type) VALUES ('ks', 'S3')`)
	p := &tape{t: t}
	err := p.run(f.backend, p.config(f.setup, start), 5*time.Second)
	if err == nil || !strings.Contains(err.Error(), "initial_tablets is null") {
		t.Errorf("it is opened, or fails with %v", err)
	}
}

func TestDoubleWithTabletsIsReadThroughSplits(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t") // of vnodes, beside those
	f.exec(`CREATE KEYSPACE kt WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': true}`)
	f.table("kt", "w", "'enabled': true")
	f.table("kt", "x", "'enabled': true")
	start := f.start()
	put := func(from int) {
		for i := range 9 {
			f.batch([]string{"ks.t", "kt.w", "kt.x"}[i%3], time.Now(), 1+i%2, from+i)
		}
	}
	p := &tape{t: t}
	put(0)
	f.cluster.SplitTablets("kt", "w", 4)
	put(10)
	f.finish(p, start, 5)
	pctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // while it is read
		defer close(done)
		for i := range 6 {
			put(20 + 10*i)
			f.cluster.SplitTablets("kt", []string{"w", "x"}[i%2], 2+i)
			select {
			case <-time.After(300 * time.Millisecond):
			case <-pctx.Done():
				return
			}
		}
	}()
	for range 3 {
		p.crash = 9
		if err := p.run(f.backend, p.config(f.setup, start), 3*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	stop()
	f.finish(p, start, 7)
	f.checkBatches(p, f.batches())
}

// lost holds an error against what it must say.
func lost(t *testing.T, err error, code string) {
	t.Helper()
	var l *driver.SourceLost
	if !errors.As(err, &l) || l.Code != code {
		t.Fatalf("it fails with %v, want %s", err, code)
	}
	t.Logf("%s: %s", l.Code, l.Message)
}

func TestDoubleWhoseLogHasLetGoOfChangesIsLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.table("ks", "short", "'enabled': true, 'ttl': '9'")
	start := f.start()
	p := &tape{t: t}
	// As long as it is read nothing is lost.
	if err := p.run(f.backend, p.config(f.setup, start), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if p.recorded == "" {
		t.Fatal("no mark was put on record")
	}
	if err := p.run(f.backend, p.config(f.setup, start), time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(9 * time.Second)
	lost(t, p.run(f.backend, p.config(f.setup, start), 5*time.Second), "log_expired")
}

func TestDoubleWhoseStreamIsHeldUntilTheLogHasLetGoIsLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.table("ks", "short", "'enabled': true, 'ttl': '9'")
	start := f.start()
	f.batch("short", time.Now(), 1, 1)
	p := &tape{t: t, pause: func(ctx context.Context) error {
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
		}
		return nil
	}}
	lost(t, p.run(f.backend, p.config(f.setup, start), 30*time.Second), "log_expired")
}

func TestDoubleThatIsNotWhatTheCaptureBeganWithIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	p := &tape{t: t}
	other := func(change func(src map[string]any, table map[string]any)) driver.ChangeStart {
		var src map[string]any
		if err := json.Unmarshal([]byte(start.Source), &src); err != nil {
			t.Fatal(err)
		}
		change(src, src["tables"].(map[string]any)["ks.t"].(map[string]any))
		raw, err := json.Marshal(src)
		if err != nil {
			t.Fatal(err)
		}
		s := start
		s.Source = string(raw)
		return s
	}
	id := gocql.TimeUUID().String()
	lost(t, p.run(f.backend, p.config(f.setup, other(func(src, _ map[string]any) { src["cluster"] = "another" })), time.Second), "other_source")
	lost(t, p.run(f.backend, p.config(f.setup, other(func(_, t map[string]any) { t["table"] = id })), time.Second), "log_missing")
	lost(t, p.run(f.backend, p.config(f.setup, other(func(_, t map[string]any) { t["log"] = id })), time.Second), "log_missing")
	f.setup.Tables = append(f.setup.Tables, driver.TableName{Schema: "ks", Table: "gone"})
	lost(t, p.run(f.backend, p.config(f.setup, start), time.Second), "log_missing")
}

func TestDoubleWhoseTableOrLogIsGoneIsLost(t *testing.T) {
	t.Parallel()
	for name, cql := range map[string][]string{
		"dropped":          {`DROP TABLE ks.t`},
		"made anew":        {`DROP TABLE ks.t`, `CREATE TABLE ks.t (pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`},
		"without a log":    {`ALTER TABLE ks.t WITH cdc = {'enabled': false}`},
		"with another log": {`ALTER TABLE ks.t WITH cdc = {'enabled': false}`, `ALTER TABLE ks.t WITH cdc = {'enabled': true}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "t")
			start := f.start()
			f.batch("t", time.Now(), 1, 1)
			p := &tape{t: t}
			p.enough = func() bool {
				f.cluster.MustExec(t, cql...)
				return false
			}
			lost(t, p.run(f.backend, p.config(f.setup, start), 40*time.Second), "log_missing")
			lost(t, p.run(f.backend, p.config(f.setup, start), 40*time.Second), "log_missing")
			h, err := f.backend.ChangeHealth(t.Context(), f.setup)
			if (len(cql) == 1) != (athena.CodeOf(err) == athena.CodeNotFound) {
				t.Errorf("its health is %+v, %v", h, err)
			}
		})
	}
}

func TestDoubleWhoseLogIsKeptWhileItIsOffIsLost(t *testing.T) {
	t.Parallel()
	const off, on = `ALTER TABLE ks.t WITH cdc = {'enabled': false}`, `ALTER TABLE ks.t WITH cdc = {'enabled': true}`
	for _, opened := range []bool{true, false} {
		t.Run(fmt.Sprintf("while it is read %v", opened), func(t *testing.T) {
			t.Parallel()
			f := fixtureOf(t, scyllatest.Start(t, scyllatest.NoGeneration(), scyllatest.KeepLogs()), "t")
			start := f.start()
			f.batch("t", time.Now(), 1, 1)
			p := &tape{t: t, want: 1}
			if opened {
				p.want, p.enough = 0, func() bool {
					f.cluster.MustExec(t, off)
					return false
				}
			}
			err := p.run(f.backend, p.config(f.setup, start), 40*time.Second)
			if !opened && err == nil {
				f.cluster.MustExec(t, off)
				p.want = 0
				err = p.run(f.backend, p.config(f.setup, start), 40*time.Second)
			}
			lost(t, err, "log_missing")
			start.Source = p.stream.Source() // which the worker keeps
			f.batch("t", time.Now(), 1, 2)   // in no log
			f.cluster.MustExec(t, on)        // the same log goes on
			p.enough = nil
			f.batch("t", time.Now(), 1, 3)
			lost(t, p.run(f.backend, p.config(f.setup, start), 40*time.Second), "log_missing")
			if n := len(p.rows()); n != 1 {
				t.Errorf("the stream has %d changes", n)
			}
			// Begun anew it is read.
			anew := f.start()
			f.batch("t", time.Now(), 1, 4)
			p = &tape{t: t, want: 1}
			if err := p.run(f.backend, p.config(f.setup, anew), 20*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDoubleOutOfReachOfItsRoleEndsTheStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	f.cluster.Fail(scyllatest.Containing("FROM ks.t_scylla_cdc_log"), scyllatest.Invalid("unconfigured table t_scylla_cdc_log"), -1)
	p := &tape{t: t}
	lost(t, p.run(f.backend, p.config(f.setup, start), 40*time.Second), "log_missing")
}

func TestDoubleWhoseLogIsGoneIsToldWhileAnotherWaitsForStreams(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.exec(`CREATE KEYSPACE kt WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': true}`)
	f.table("kt", "w", "'enabled': true")
	start := f.start()
	f.cluster.EmptyGeneration(time.Now().Add(-time.Millisecond)) // of ks.t, and it stays so
	f.cluster.Fail(scyllatest.Containing("FROM kt.w_scylla_cdc_log"), scyllatest.Invalid("unconfigured table w_scylla_cdc_log"), -1)
	p := &tape{t: t}
	lost(t, p.run(f.backend, p.config(f.setup, start), 40*time.Second), "log_missing")
}

func TestDoubleThatFailsNowAndThenIsReadOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	for i := range 60 {
		f.batch("t", time.Now().Add(time.Duration(i)*time.Millisecond), 1+i%3, i)
	}
	log := scyllatest.Containing("BYPASS CACHE") // the library's questions alone
	var hits []func() int
	for _, fault := range []scyllatest.Fault{scyllatest.Overloaded(), scyllatest.Unavailable(), scyllatest.ReadFailure(), scyllatest.Dropped(), scyllatest.Dropped().After()} {
		hits = append(hits, f.cluster.Fail(log, fault, 2))
	}
	second := func(r scyllatest.Request) bool { return r.Page == 1 && log(r) }
	for _, fault := range []scyllatest.Fault{scyllatest.ReadTimeout(), scyllatest.Dropped()} {
		hits = append(hits, f.cluster.Fail(second, fault, 3))
	}
	p := &tape{t: t}
	f.finish(p, start, 0)
	f.checkBatches(p, f.batches())
	for i, n := range hits {
		if n() == 0 {
			t.Errorf("fault %d did not happen", i)
		}
	}
}

func TestDoubleWhoseTableIsAlteredWhileItIsRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	f.batch("t", time.Now(), 2, 1)
	p := &tape{t: t}
	altered := false
	p.enough = func() bool {
		if !altered {
			altered = true
			f.cluster.MustExec(t, `ALTER TABLE ks.t ADD w text`, `INSERT INTO ks.t (pk, ck, w) VALUES (9, 9, 'new')`)
		}
		return len(p.rows()) == 3
	}
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	f.checkBatches(p, f.batches())
	var seen []string
	for _, c := range p.changes {
		seen = append(seen, fmt.Sprintf("%s %d", c.Op, len(c.Columns)))
	}
	if got := strings.Join(seen, ", "); got != "schema 3, update 0, update 0, schema 4, insert 0" {
		t.Errorf("the stream has %s", got)
	}
}

func TestDoubleWithABatchThatDoesNotEndIsNotTakenForAnother(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	a, b := gocql.UUIDFromTime(time.Now()), gocql.UUIDFromTime(time.Now().Add(time.Millisecond))
	f.row("t", f.streams[0], a, 0, 1, false, 1, 1, 1) // its last row is missing
	f.row("t", f.streams[0], b, 0, 1, true, 2, 2, 2)
	p := &tape{t: t, want: 1}
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := p.rows(); len(got) != 1 || string(got[0].Key) != `{"pk":2,"ck":2}` {
		t.Errorf("the stream has %+v", got)
	}
	if len(p.rejected) != 1 {
		t.Errorf("rejected is %+v", p.rejected)
	}
}

func TestDoubleIsIdleAndItsMarksGoOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.setup.Sweep = 2 * time.Second
	start := f.start()
	p := &tape{t: t}
	f.batch("t", time.Now(), 2, 1)
	p.until = p.upTo(time.Now().Add(time.Second))
	if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	p.until = nil
	if !(p.recorded > start.Confirmed) {
		t.Errorf("the mark on record is %q, begun with %q", p.recorded, start.Confirmed)
	}
	f.batch("t", time.Now(), 1, 2)
	f.finish(p, start, 0)
	f.checkBatches(p, f.batches())
}

func TestDoubleTellsHowFarItsStreamsAre(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.setup.Sweep = 2 * time.Second
	start := f.start()
	f.batch("t", time.Now(), 2, 1)
	begun := time.Now()
	p := &tape{t: t}
	stream, err := f.backend.OpenChanges(t.Context(), p.config(f.setup, start))
	if err != nil {
		t.Fatal(err)
	}
	p.stream = stream
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- stream.Run(ctx, p) }()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l := stream.Lag()
		if l.CaughtUp && l.Streams.Streams == 4 && len(l.Streams.Slowest) == 2 && !l.Committed.IsZero() && l.Streams.Swept.After(begun) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not catch up: %+v, %+v", l, l.Streams)
		}
		time.Sleep(50 * time.Millisecond)
	}
	h, err := f.backend.ChangeHealth(t.Context(), f.setup)
	if err != nil || !h.Active || h.Expires.Before(time.Now().Add(23*time.Hour)) || len(h.Unpublished) > 0 {
		t.Errorf("its health is %+v, %v", h, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := stream.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if h, err := f.backend.ChangeHealth(t.Context(), f.setup); err != nil || h.Active || !h.Expires.IsZero() {
		t.Errorf("closed, its health is %+v, %v", h, err)
	}
}

func TestDoubleThatWasNotReadForLongIsCaughtUpWithInMoments(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	old := f.cluster.NewGeneration(time.Now().Add(-20*time.Hour), 2, 2)
	start := f.start()
	start.Confirmed = ageMark(t, start.Confirmed, 19*time.Hour)
	f.logged("t", old[0], time.Now().Add(-10*time.Hour), 2, 1)
	f.batch("t", time.Now(), 1, 2)
	p := &tape{t: t}
	f.finish(p, start, 0)
	f.checkBatches(p, f.batches())
}

func TestDoubleWithoutTheRestOfABatchIsLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	f.batch("t", time.Now(), 3, 1)
	p := &tape{t: t, crash: 3} // behind the columns and a change
	if err := p.run(f.backend, p.config(f.setup, start), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := len(p.rows()); n != 1 {
		t.Fatalf("%d changes are stored", n)
	}
	p.crash = 0
	f.cluster.MustExec(t, `TRUNCATE ks.t_scylla_cdc_log`)
	lost(t, p.run(f.backend, p.config(f.setup, start), 20*time.Second), "log_expired")
}

func TestDoubleIsNotOpenedByPlacesThatAreNotOurs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	p := &tape{t: t}
	for name, change := range map[string]func(*driver.ChangeConfig){
		"another's mark":     func(c *driver.ChangeConfig) { c.Confirmed = "0000000000000001" },
		"another's position": func(c *driver.ChangeConfig) { c.After = "0000000000000001" },
		"no source":          func(c *driver.ChangeConfig) { c.Source = "" },
		"changes that nothing tells of": func(c *driver.ChangeConfig) {
			c.Stored, c.After = nil, "FFFFFFFFFFFFFFFF"+c.After[16:]
		},
	} {
		cfg := p.config(f.setup, start)
		change(&cfg)
		if _, err := f.backend.OpenChanges(t.Context(), cfg); err == nil {
			t.Errorf("%s: it is opened", name)
		}
	}
}

func TestDoubleIsNotCapturedAsItCannotBe(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	f.exec(`CREATE TABLE ks.plain (pk int PRIMARY KEY, v int)`)
	for field, change := range map[string]func(*driver.ChangeSetup){
		"tables":       func(s *driver.ChangeSetup) { s.Tables = nil },
		"take_over":    func(s *driver.ChangeSetup) { s.TakeOver = true },
		"inserts_only": func(s *driver.ChangeSetup) { s.InsertsOnly = true },
		"local_only":   func(s *driver.ChangeSetup) { s.LocalOnly = true },
		"confidence":   func(s *driver.ChangeSetup) { s.Confidence = -1 },
		"sweep":        func(s *driver.ChangeSetup) { s.Sweep = s.Confidence },
	} {
		s := f.setup
		change(&s)
		if err := f.backend.PrepareChanges(t.Context(), s); athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: it fails with %v", field, err)
		}
	}
	s := f.setup
	s.Tables = []driver.TableName{{Schema: "ks", Table: "plain"}}
	err := f.backend.PrepareChanges(t.Context(), s)
	if athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.Contains(err.Error(), `ALTER TABLE "ks"."plain" WITH cdc = {'enabled': true}`) {
		t.Errorf("without a log it fails with %v", err)
	}
	if err := f.backend.DropChanges(t.Context(), f.setup); err != nil {
		t.Error(err)
	}
}

func TestDoubleThatIsAwayForAWhileIsReadOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	f.batch("t", time.Now(), 2, 1)
	p := &tape{t: t, want: 3}
	away := false
	p.enough = func() bool {
		if !away {
			away = true
			f.cluster.StopNode(0)
			time.AfterFunc(time.Second, func() {
				if err := f.cluster.StartNode(0); err != nil {
					t.Error(err)
				}
				_ = f.cluster.Exec(`UPDATE ks.t SET v = 2 WHERE pk = 2 AND ck = 2`)
			})
		}
		return false
	}
	if err := p.run(f.backend, p.config(f.setup, start), 40*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := p.rows(); string(got[2].Key) != `{"pk":2,"ck":2}` {
		t.Errorf("the stream goes on with %+v", got[2])
	}
}
