package deferred_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

// TestEveryEnd runs one job to each end that a statement alone can bring about.
func TestEveryEnd(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int PRIMARY KEY)`)
	d.exec(`CREATE FUNCTION quiet(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO effects VALUES (n) RETURNING n'`)
	d.exec(`CREATE SEQUENCE tries`)
	d.exec(`CREATE FUNCTION fails_twice(code text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('tries') < 3 THEN RAISE 'contended' USING ERRCODE = code; END IF; RETURN 1; END $$`)
	d.work("w", nil)
	readOnly := func(j *deferred.Job) {
		j.ReadOnly = true
		j.Principal = &auth.Principal{Key: "reader", Grants: []auth.Grant{{Right: auth.Deferred}, {Right: auth.Query, Access: auth.Read}}}
	}
	tests := map[string]struct {
		query    string
		change   func(*deferred.Job)
		want     deferred.State
		code     athena.Code
		sqlstate string
		rows     string
		attempts int
		effect   int // a row of effects that must be there, or not if negative
	}{
		"a read succeeds":                                    {query: "SELECT 1 AS n", want: deferred.Succeeded, rows: `[{"n":1}]`},
		"a write succeeds":                                   {query: "INSERT INTO effects VALUES (1)", want: deferred.Succeeded, rows: `[]`, effect: 1},
		"a write gives its rows":                             {query: "INSERT INTO effects VALUES (2) RETURNING n", want: deferred.Succeeded, rows: `[{"n":2}]`, effect: 2},
		"a read that writes is run again as a write":         {query: "SELECT quiet(3)", want: deferred.Succeeded, rows: `[{"quiet":3}]`, effect: 3},
		"a key that may only read does not write":            {query: "INSERT INTO effects VALUES (4)", change: readOnly, want: deferred.Failed, code: athena.CodeForbidden, effect: -4},
		"a key that may only read does not write by calling": {query: "SELECT quiet(5)", change: readOnly, want: deferred.Failed, code: athena.CodeForbidden, effect: -5},
		"a statement outside of transactions":                {query: "VACUUM effects", want: deferred.Succeeded},
		"a broken statement fails":                           {query: "SELEC 1", want: deferred.Failed, code: athena.CodeQueryFailed, sqlstate: "42601"},
		"a statement fails while it runs":                    {query: "SELECT 1/0", want: deferred.Failed, code: athena.CodeQueryFailed, sqlstate: "22012"},
		"a write fails in its middle":                        {query: "INSERT INTO effects SELECT 60 / (3 - g) FROM generate_series(1, 3) g", want: deferred.Failed, code: athena.CodeQueryFailed, sqlstate: "22012", effect: -30},
		"a write that conflicts fails":                       {query: "INSERT INTO effects VALUES (7), (7)", want: deferred.Failed, code: athena.CodeConflict, sqlstate: "23505", effect: -7},
		"an outside statement fails":                         {query: "VACUUM nothing_of_this_name", want: deferred.Failed, code: athena.CodeQueryFailed, sqlstate: "42P01"},
		"what is not for this road is refused":               {query: "BEGIN", want: deferred.Failed, code: athena.CodeInvalidRequest},
		"a parameter that does not fit":                      {query: "SELECT $1::int", change: func(j *deferred.Job) { j.Params = []json.RawMessage{[]byte(`"x"`)} }, want: deferred.Failed, code: athena.CodeInvalidRequest},
		"a read that takes too long":                         {query: "SELECT pg_sleep(20)", change: func(j *deferred.Job) { j.Timeout = athena.Duration(200 * time.Millisecond) }, want: deferred.TimedOut, code: athena.CodeTimeout},
		"a write that takes too long": {query: "INSERT INTO effects SELECT 8 FROM pg_sleep(20)", change: func(j *deferred.Job) { j.Timeout = athena.Duration(200 * time.Millisecond) },
			want: deferred.TimedOut, code: athena.CodeTimeout, effect: -8},
		"a deadlock is tried again": {query: "SELECT fails_twice('40P01')", change: func(j *deferred.Job) { j.Query = "DO $$ BEGIN PERFORM fails_twice('40P01'); END $$" }, want: deferred.Succeeded, attempts: 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := d.in(t)
			st := d.ends(d.submit("shop", tt.query, tt.change), tt.want)
			switch {
			case tt.code == "" && st.Error != nil, tt.code != "" && (st.Error == nil || st.Error.Code != tt.code):
				t.Errorf("the error is %+v, want %q", st.Error, tt.code)
			case tt.sqlstate != "" && st.Error.Details["sqlstate"] != tt.sqlstate:
				t.Errorf("details are %v", st.Error.Details)
			}
			if tt.rows != "" && (st.Result == nil || string(st.Result.Inline) != tt.rows || !st.Result.Complete) {
				t.Errorf("the result is %s", show(st))
			}
			if want := max(tt.attempts, 1); tt.query != "BEGIN" && len(st.Attempts) != want {
				t.Errorf("%d attempts, want %d: %s", len(st.Attempts), want, show(st))
			}
			if st.Token != "" || st.Unsafe || st.ResultLost {
				t.Errorf("left over: %s", show(st))
			}
			for _, a := range st.Attempts {
				if a.Ended.IsZero() || a.Ended.Before(a.Started) || a.Worker != "w" {
					t.Errorf("an attempt is told as %+v", a)
				}
			}
			if n := max(tt.effect, -tt.effect); n != 0 {
				if got := d.count("SELECT count(*) FROM effects WHERE n = $1", n); got != btoi(tt.effect > 0) {
					t.Errorf("the effect is there %d times", got)
				}
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestASerializationFailureIsTriedAgain(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE counters (n int); INSERT INTO counters VALUES (0)`)
	d.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$`)
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = 8 })
	d.work("w", nil)
	var jobs []*deferred.Job
	for range 6 {
		jobs = append(jobs, d.submit("shop", "UPDATE counters SET n = n + 1 + 0 * (SELECT 1 FROM pg_sleep(0.2))", nil))
	}
	retried := 0
	for _, j := range jobs {
		st := d.endsIn(j, 40*time.Second, deferred.Succeeded)
		for _, a := range st.Attempts[:len(st.Attempts)-1] {
			if retried++; a.Outcome != string(deferred.RetryWait) {
				t.Errorf("an attempt that failed is told as %+v", a)
			}
		}
	}
	if n := d.count("SELECT n FROM counters"); n != 6 {
		t.Errorf("6 increments gave %d", n)
	}
	if retried == 0 {
		t.Error("none failed to serialize; the test shows nothing")
	}
	t.Logf("%d attempts failed to serialize", retried)
}

func TestWhatWaits(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	now := time.Now()
	queued := d.submit("shop", "SELECT 1", nil)
	scheduled := d.submit("shop", "SELECT 2", func(j *deferred.Job) { j.NotBefore = now.Add(2500 * time.Millisecond) })
	late := d.submit("shop", "SELECT 3", func(j *deferred.Job) { j.Deadline = now.Add(300 * time.Millisecond) })
	gone := d.submit("shop", "SELECT 4", nil)
	if st, err := d.store.Cancel(t.Context(), gone, time.Now()); err != nil || st.State != deferred.Cancelled {
		t.Errorf("cancel of a queued job: %s, %v", show(st), err)
	}
	for j, want := range map[*deferred.Job]deferred.State{queued: deferred.Queued, scheduled: deferred.Scheduled, gone: deferred.Cancelled} {
		if _, got := d.status(j); got != want {
			t.Errorf("%s is %s, want %s", j.Query, got, want)
		}
	}
	time.Sleep(time.Until(now.Add(350 * time.Millisecond)))
	if _, got := d.status(late); got != deferred.Expired {
		t.Errorf("past its deadline a job is %s", got)
	}
	d.work("w", nil)
	d.ends(queued, deferred.Succeeded)
	if st := d.ends(late, deferred.Expired); len(st.Attempts) != 0 || st.Error == nil || st.Error.Code != athena.CodeTimeout {
		t.Errorf("expired: %s", show(st))
	}
	if _, got := d.status(scheduled); got != deferred.Scheduled {
		t.Errorf("before its time a job is %s", got)
	}
	st := d.ends(scheduled, deferred.Succeeded)
	if early := scheduled.NotBefore.Sub(st.Attempts[0].Started); early > 0 || early < -2500*time.Millisecond {
		t.Errorf("started %s before its time", early)
	}
	if st := d.ends(gone, deferred.Cancelled); len(st.Attempts) != 0 {
		t.Errorf("cancelled: %s", show(st))
	}
	d.settled("shop")
}

// TestAFreezeHolds holds that a frozen client's jobs wait without an attempt,
// whether a worker took them before or not, and run at once after the thaw.
func TestAFreezeHolds(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.work("w", nil)
	d.ends(d.submit("shop", "SELECT 0", nil), deferred.Succeeded)
	during := d.submit("shop", "SELECT 1 FROM pg_sleep(1.5)", nil)
	d.reaches(during, 5*time.Second, deferred.Running)
	d.lifecycle("shop", athena.Frozen)
	var held []*deferred.Job
	for range 4 { // some of them while the freeze is on its way to the worker
		held = append(held, d.submit("shop", "SELECT 2", nil))
	}
	d.ends(during, deferred.Succeeded) // what runs goes on
	time.Sleep(1500 * time.Millisecond)
	last := d.submit("shop", "SELECT 3", nil)
	for _, j := range append(held[2:], last) {
		if st, view := d.status(j); view != deferred.Held && view != deferred.Succeeded || view == deferred.Held && len(st.Attempts) != 0 {
			t.Errorf("while the client is frozen a job is %s: %s", view, show(st))
		}
	}
	if _, view := d.status(last); view != deferred.Held {
		t.Fatalf("a job is %s", view)
	}
	thawed := time.Now()
	d.lifecycle("shop", athena.Active)
	st := d.ends(last, deferred.Succeeded)
	took := st.Attempts[0].Started.Sub(thawed)
	t.Logf("running %s after the thaw", took)
	if took > time.Second || len(st.Attempts) != 1 {
		t.Errorf("running %s after the thaw, want at most 1 s: %s", took, show(st))
	}
	for _, j := range held {
		if st := d.ends(j, deferred.Succeeded); len(st.Attempts) != 1 {
			t.Errorf("%d attempts", len(st.Attempts))
		}
	}
}

func TestAClientThatBecomesInactiveFailsItsJobs(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.work("w", nil)
	j := d.submit("shop", "SELECT 1", func(j *deferred.Job) { j.NotBefore = time.Now().Add(time.Second) })
	d.lifecycle("shop", athena.Inactive)
	st := d.ends(j, deferred.Failed)
	if st.Error == nil || st.Error.Code != athena.CodeClientInactive {
		t.Errorf("failed as %s", show(st))
	}
}

func TestARevokedCapabilityFailsJobsBeforeTheyTouchTheBackend(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	j := d.submit("shop", "SELECT 1", nil)
	d.client("shop", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.DeferredQuery) })
	d.work("w", nil)
	if st := d.ends(j, deferred.Failed); st.Error.Code != athena.CodeCapabilityDenied {
		t.Errorf("failed as %s", show(st))
	}
}

// TestSegmentsCanBeReadWhileTheQueryRuns holds the promise of a growing result.
func TestSegmentsCanBeReadWhileTheQueryRuns(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.work("w", func(c *worker.Config) { c.Sizes = deferred.ResultSizes{Inline: 1 << 10, Segment: 16 << 10} })
	release := d.hold("SELECT pg_advisory_xact_lock(1)")
	j := d.submit("shop", `SELECT g AS n, repeat('x', 100) AS text, CASE WHEN g = 2900 THEN pg_advisory_xact_lock_shared(1)::text END AS wait FROM generate_series(1, 3000) g`, nil)
	st := d.await(j, 10*time.Second, "growing", func(s deferred.Status) bool {
		return s.Result != nil && len(s.Result.Segments) > 0 && !s.State.Terminal()
	})
	if st.State != deferred.Running || st.Result.Complete {
		t.Errorf("while it runs: %s", show(st))
	}
	first := d.rows(j, st)
	if !strings.HasPrefix(first[0], `{"n":1,`) || int64(len(first)) < st.Result.Segments[0].Rows {
		t.Errorf("%d rows, the first is %s", len(first), first[0])
	}
	release()
	st = d.ends(j, deferred.Succeeded)
	all := d.rows(j, st)
	if len(all) != 3000 || !slices.Equal(all[:len(first)], first) || st.Result.Rows != 3000 {
		t.Errorf("%d rows in the end", len(all))
	}
	spooled := false
	for s, err := range d.store.Events(timeout(t, 5*time.Second), j, 0) {
		if err != nil {
			t.Fatal(err)
		}
		spooled = spooled || s.State == deferred.Spooling
		if s.State.Terminal() {
			break
		}
	}
	if !spooled {
		t.Error("spooling was not told")
	}
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestAnUnreachableBackendIsWaitedFor stops a server and starts it again.
func TestAnUnreachableBackendIsWaitedFor(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	pg := pgtest.Server(t, nil)
	d.client("far", func(c *athena.Client) {
		c.Connection = athena.PostgresConn{DSN: athena.NewSecret(pg.DSN("postgres"))}
	})
	d.work("w", nil)
	d.ends(d.submit("far", "CREATE TABLE effects (n int)", nil), deferred.Succeeded)

	// One is under way when the server crashes, one comes when it is down.
	under := d.submit("far", "INSERT INTO effects SELECT 1 FROM pg_sleep(1)", nil)
	d.reaches(under, 5*time.Second, deferred.Running)
	time.Sleep(200 * time.Millisecond)
	if err := pg.Stop(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	down := d.submit("far", "INSERT INTO effects VALUES (2)", nil)
	for _, j := range []*deferred.Job{under, down} {
		st := d.reaches(j, 15*time.Second, deferred.RetryWait)
		if a := st.Attempt(); st.Error == nil || st.Error.Code != athena.CodeBackendUnavailable || a == nil || a.Code != athena.CodeBackendUnavailable || st.NextAt.Before(st.At) {
			t.Errorf("waiting: %s", show(st))
		}
	}
	if err := pg.Restart(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	for _, j := range []*deferred.Job{under, down} {
		if st := d.endsIn(j, 40*time.Second, deferred.Succeeded); len(st.Attempts) < 2 {
			t.Errorf("%d attempts", len(st.Attempts))
		}
	}
	db, err := pgxpool.New(t.Context(), pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var all, distinct int
	if err := db.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT n) FROM effects").Scan(&all, &distinct); err != nil || all != 2 || distinct != 2 {
		t.Errorf("%d effects, %d distinct, want 2: %v", all, distinct, err)
	}
}

func TestACancellationReachesTheBackend(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.work("w", nil)
	for name, query := range map[string]string{
		"of a read":  "SELECT 'cancel me' FROM pg_sleep(30)",
		"of a write": "INSERT INTO effects SELECT 1 FROM pg_sleep(30) WHERE 'cancel this' <> ''",
	} {
		t.Run(name, func(t *testing.T) {
			d := d.in(t)
			like := "'cancel me' FROM"
			if name == "of a write" {
				like = "'cancel this'"
			}
			j := d.submit("shop", query, nil)
			d.reaches(j, 5*time.Second, deferred.Running)
			d.until(5*time.Second, "the statement runs", func() bool { return d.running(like) == 1 })
			st, err := d.store.Cancel(t.Context(), j, time.Now())
			if err != nil || st.State != deferred.Cancelling {
				t.Fatalf("%s, %v", show(st), err)
			}
			took := d.until(time.Second, "the statement is gone", func() bool { return d.running(like) == 0 })
			t.Logf("gone from the backend after %s", took)
			d.ends(j, deferred.Cancelled)
			if _, err := d.store.Cancel(t.Context(), j, time.Now()); err != nil {
				t.Errorf("a second cancellation: %v", err)
			}
		})
	}
	if n := d.count("SELECT count(*) FROM effects"); n != 0 {
		t.Errorf("%d effects of what was cancelled", n)
	}
	done := d.submit("shop", "SELECT 1", nil)
	d.ends(done, deferred.Succeeded)
	_, err := d.store.Cancel(t.Context(), done, time.Now())
	wantCode(t, err, athena.CodeConflict)
}

// TestACancellationThatComesTooLate asks for it after the token is stored, when
// COMMIT is about to be sent: what happened is told.
func TestACancellationThatComesTooLate(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	staged, goOn := make(chan struct{}, 1), make(chan struct{})
	d.workOn(d.parts, "w", func(b driver.Backend) driver.Backend {
		return hooked{b.(everything), func() { staged <- struct{}{}; <-goOn }}
	}, nil)
	j := d.submit("shop", "INSERT INTO effects VALUES (1) RETURNING n", nil)
	<-staged
	st, err := d.store.Cancel(t.Context(), j, time.Now())
	if err != nil || st.State != deferred.Cancelling {
		t.Fatalf("%s, %v", show(st), err)
	}
	time.Sleep(100 * time.Millisecond) // for the hint to come
	close(goOn)
	st = d.ends(j, deferred.Succeeded)
	if string(st.Result.Inline) != `[{"n":1}]` || d.count("SELECT count(*) FROM effects") != 1 {
		t.Errorf("%s", show(st))
	}
}

// TestACancellationRacesTheCommit asks for it at all moments of a short write.
func TestACancellationRacesTheCommit(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.work("w", nil)
	seen := map[deferred.State]int{}
	for n := range 60 {
		j := d.submit("shop", "INSERT INTO effects SELECT $1::int FROM pg_sleep(0.005)", func(j *deferred.Job) {
			j.Params = []json.RawMessage{must(t)(json.Marshal(n))}
		})
		time.Sleep(time.Duration(n%15) * 6 * time.Millisecond)
		if _, err := d.store.Cancel(t.Context(), j, time.Now()); err != nil && athena.CodeOf(err) != athena.CodeConflict {
			t.Fatal(err)
		}
		st := d.await(j, 15*time.Second, "ended", func(s deferred.Status) bool { return s.State.Terminal() })
		seen[st.State]++
		effects := d.count("SELECT count(*) FROM effects WHERE n = $1", n)
		if st.State == deferred.Succeeded && effects != 1 || st.State == deferred.Cancelled && effects != 0 || st.State != deferred.Succeeded && st.State != deferred.Cancelled {
			t.Errorf("%d effects and %s", effects, show(st))
		}
	}
	t.Logf("ends: %v", seen)
	if seen[deferred.Succeeded] == 0 || seen[deferred.Cancelled] == 0 {
		t.Errorf("only one of the two won: %v", seen)
	}
}

func must(t testing.TB) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// TestADeletedClientsJobsAreNotRun holds that jobs of a client that
// is gone from the catalog are not run, and can be cancelled.
func TestADeletedClientsJobsAreNotRun(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	j := d.submit("shop", "SELECT 1", nil)
	if err := d.catalog.Delete(t.Context(), "shop", catalog.Any); err != nil {
		t.Fatal(err)
	}
	d.work("w", nil)
	time.Sleep(500 * time.Millisecond)
	if st, _ := d.status(j); st.State != "" {
		t.Errorf("%s", show(st))
	}
	if st, err := d.store.Cancel(t.Context(), j, time.Now()); err != nil || st.State != deferred.Cancelled {
		t.Errorf("%s, %v", show(st), err)
	}
}
