// Package crash kills real processes of a running deployment, again and again,
// and then counts what is in the database.
//
// The broker and the API run in one process, two workers in two more, beside a
// real PostgreSQL. Each is armed to end itself with SIGKILL at one of the points
// of pkg/crashpoint, chosen by the seed, or is killed from outside after a time;
// then it is started again, armed anew, while jobs keep coming.
package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
)

var (
	points = flag.Int("points", 6, "how many times a process is killed")
	seed   = flag.Uint64("seed", 1, "what the kills are chosen by")
)

// killed stands for a kill from outside, beside the points.
const killed = "kill"

// suite is one run of the crash suite.
type suite struct {
	t     *testing.T
	rig   *rig.Rig
	kills atomic.Int64

	mu   sync.Mutex
	jobs map[string]*job // accepted, by id
	by   map[string]int  // kills by point
}

// job is one accepted job.
type job struct {
	key   string
	kind  string
	state string // once it has ended
}

// TestNothingIsLostAndNoWriteIsAppliedTwice is the crash suite.
func TestNothingIsLostAndNoWriteIsAppliedTwice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 55*time.Minute)
	defer cancel()
	r, err := rig.Start(ctx, rig.Config{Tags: []string{"crashpoints"}, Workers: 2})
	t.Cleanup(r.Stop)
	if err == nil {
		err = r.Client("shop", 16)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Logs())
	}
	s := &suite{t: t, rig: r, jobs: map[string]*job{}, by: map[string]int{}}
	s.prepare(ctx)

	load, stop := context.WithCancel(ctx)
	defer stop()
	var loads, killers sync.WaitGroup
	for n := range 8 {
		loads.Go(func() { s.submit(load, n) })
	}
	for i, p := range append([]*rig.Process{r.Server}, r.Workers...) {
		killers.Go(func() { s.kill(ctx, p, rand.New(rand.NewPCG(*seed, uint64(i)))) })
	}
	killers.Wait()
	stop()
	loads.Wait()
	s.verify(ctx)
}

func (s *suite) prepare(ctx context.Context) {
	s.t.Helper()
	conn := s.connect(ctx)
	defer conn.Close(ctx)
	for _, stmt := range []string{
		"create table effects (job text not null)", // no key: what is applied twice is seen
		"create table counters (id int primary key, n bigint not null)",
		"insert into counters select g, 0 from generate_series(0, 3) g",
	} {
		if _, err := conn.Exec(ctx, stmt); err != nil {
			s.t.Fatalf("%s: %v", stmt, err)
		}
	}
}

func (s *suite) connect(ctx context.Context) *pgx.Conn {
	s.t.Helper()
	conn, err := pgx.Connect(ctx, s.rig.DSN())
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// submit keeps asking for jobs, each until it is accepted, whatever happens.
func (s *suite) submit(ctx context.Context, n int) {
	rnd := rand.New(rand.NewPCG(*seed, 100+uint64(n)))
	for i := 0; ctx.Err() == nil; i++ {
		j := &job{key: fmt.Sprintf("job-%d-%d", n, i), kind: []string{"write", "write", "count", "slow", "read", "wrong"}[rnd.IntN(6)]}
		body := map[string]any{"deferred": true}
		switch j.kind {
		case "write":
			body["query"], body["params"] = "insert into effects (job) values ($1) returning job", []any{j.key}
		case "count": // some of these meet at one row
			body["query"], body["params"] = "with c as (update counters set n = n + 1 where id = $2) insert into effects (job) values ($1)", []any{j.key, rnd.IntN(4)}
		case "slow":
			body["query"], body["params"] = "insert into effects (job) select $1::text from pg_sleep(0.3)", []any{j.key}
		case "read":
			body["query"] = "select count(*) from effects"
		case "wrong":
			body["query"], body["params"] = "with e as (insert into effects (job) values ($1) returning job) select 1 / (length(job) - length(job)) from e", []any{j.key}
		}
		// Once asked for, a job is followed up, or nobody knows what it did.
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			status, reply, err := s.rig.Call(http.MethodPost, "/gateway/query", j.key, body)
			if err == nil && (status == http.StatusAccepted || status == http.StatusOK) {
				s.mu.Lock()
				s.jobs[reply.Job().ID] = j
				s.mu.Unlock()
				break
			}
			if err == nil && status < 500 && status != http.StatusTooManyRequests {
				s.t.Errorf("%s was refused with %d: %s", j.key, status, reply.Message)
				return
			}
			time.Sleep(30 * time.Millisecond)
		}
		// The workers are dead half of the time, and have to keep up.
		time.Sleep(time.Duration(50+rnd.IntN(150)) * time.Millisecond)
	}
}

// kill lets a process die until there have been enough kills over all, and
// leaves it running.
func (s *suite) kill(ctx context.Context, p *rig.Process, rnd *rand.Rand) {
	for ctx.Err() == nil && s.kills.Load() < int64(*points) {
		// The first two points are the API's, the others the workers'.
		mine := crashpoint.Points()[2:]
		if p == s.rig.Server {
			mine = crashpoint.Points()[:2]
		}
		point, wait := mine[rnd.IntN(len(mine))], 12*time.Second
		if rnd.IntN(4) == 0 {
			point, wait = killed, time.Duration(500+rnd.IntN(2500))*time.Millisecond
		}
		armed := ""
		if point != killed {
			armed = fmt.Sprintf("%s:%d", point, 1+rnd.IntN(30))
		}
		if err := p.Start(armed); err != nil {
			s.t.Error(err)
			return
		}
		select {
		case <-p.Done():
		case <-time.After(wait):
			point = killed
			p.Kill()
		case <-ctx.Done():
			return
		}
		if !p.Killed() { // it could not start while the broker was away
			time.Sleep(200 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		s.by[point]++
		accepted := len(s.jobs)
		s.mu.Unlock()
		if n := s.kills.Add(1); n%20 == 0 {
			s.t.Logf("%d of %d kills, %d jobs accepted", n, *points, accepted)
		}
		if p == s.rig.Server { // nothing works without it, so it lives for a while
			if err := p.Start(""); err != nil {
				s.t.Error(err)
			}
			select {
			case <-time.After(3 * time.Second):
			case <-ctx.Done():
			}
		}
	}
	if err := p.Start(""); err != nil {
		s.t.Error(err)
	}
}

// verify waits for every accepted job to end, and holds what it says of itself
// against what the database says.
func (s *suite) verify(ctx context.Context) {
	s.t.Helper()
	if err := s.rig.Ready(ctx); err != nil {
		s.t.Fatalf("the server after the last kill: %v\n%s", err, s.rig.Logs())
	}
	err := rig.Until(ctx, 5*time.Minute, func() bool {
		open := 0
		for id, j := range s.jobs {
			if j.state != "" {
				continue
			}
			if open == 50 { // look at the others when these have ended
				return false
			}
			status, reply, err := s.rig.Call(http.MethodGet, "/gateway/deferred/"+id, "", nil)
			switch {
			case err == nil && status == http.StatusNotFound:
				s.t.Errorf("job %s (%s) was accepted and is lost", id, j.key)
				j.state = "lost"
			case err == nil && reply.Job().Ended():
				j.state = reply.Job().State
			default:
				open++
			}
		}
		return open == 0
	})
	if err != nil {
		open := map[string]int{}
		for id, j := range s.jobs {
			if j.state == "" {
				_, reply, _ := s.rig.Call(http.MethodGet, "/gateway/deferred/"+id, "", nil)
				open[reply.Job().State]++
			}
		}
		s.t.Errorf("jobs that have not ended: %v\n%s", open, s.rig.Logs())
	}
	effects, counted := s.effects(ctx)
	states := map[string]int{}
	for id, j := range s.jobs {
		states[j.state]++
		writes := j.kind == "write" || j.kind == "count" || j.kind == "slow"
		switch got := effects[j.key]; {
		case got > 1:
			s.t.Errorf("job %s (%s, %s) was applied %d times", id, j.key, j.state, got)
		case j.state == "succeeded" && writes && got != 1:
			s.t.Errorf("job %s (%s) says that it succeeded and has no effect", id, j.key)
		case j.state == "indeterminate":
			s.t.Errorf("job %s (%s) says that nobody knows, and PostgreSQL does", id, j.key)
		case j.state != "succeeded" && got != 0:
			s.t.Errorf("job %s (%s) says %s and has an effect", id, j.key, j.state)
		case j.kind == "wrong" && j.state != "failed":
			s.t.Errorf("job %s (%s) cannot succeed and says %s", id, j.key, j.state)
		}
		if j.kind == "count" {
			counted -= effects[j.key]
		}
	}
	if counted != 0 {
		s.t.Errorf("the counters differ from the jobs that counted by %d", counted)
	}
	by := make([]string, 0, len(s.by))
	for _, p := range append(crashpoint.Points(), killed) {
		by = append(by, fmt.Sprintf("%s %d", p, s.by[p]))
	}
	s.t.Logf("%d kills (%s); %d jobs accepted, ended as %v; %d effects", s.kills.Load(), strings.Join(by, ", "), len(s.jobs), states, len(effects))
	if int64(len(s.jobs)) < 5*s.kills.Load() {
		s.t.Errorf("only %d jobs for %d kills: the load did not run", len(s.jobs), s.kills.Load())
	}
}

// effects counts what the database holds: by job, and in the counters.
func (s *suite) effects(ctx context.Context) (map[string]int, int) {
	s.t.Helper()
	conn := s.connect(ctx)
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "select job, count(*) from effects group by job")
	if err != nil {
		s.t.Fatal(err)
	}
	effects := map[string]int{}
	var key string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&key, &n}, func() error { effects[key] = n; return nil }); err != nil {
		s.t.Fatal(err)
	}
	if err := conn.QueryRow(ctx, "select sum(n)::int from counters").Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return effects, n
}
