// Command scyllacrash kills the processes that capture the change logs of a double
// of a ScyllaDB cluster, again and again, and then holds the stream of changes
// against the logs and against the tables.
//
//	go run ./bench/scyllacrash -seed 1 -kills 40
//
// The double runs in this process; server and workers are real ones. A worker is
// armed to end itself with SIGKILL at one of the points of pkg/crashpoint, or is
// killed from outside. Meanwhile tables of vnodes and of tablets are written to,
// generations of streams follow each other, tablets are split, and some writes
// appear in their log late. It says nothing of a real ScyllaDB.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

const (
	client     = "shop"
	confidence = time.Second
	sweep      = 8 * time.Second
	// late is how late some writes appear in their log: behind the confidence, and
	// before the sweep.
	late = 3 * time.Second
)

var tables = []string{"ks.a", "ks.b", "kt.c"}

func main() {
	seed := flag.Uint64("seed", 1, "what kills and writes are chosen by")
	kills := flag.Int("kills", 40, "how many times a worker is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *seed, *kills); err != nil {
		fmt.Fprintln(os.Stderr, "scyllacrash:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, seed uint64, kills int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	cluster, err := scyllatest.New(scyllatest.Generation(time.Minute, 4, 4))
	if err != nil {
		return err
	}
	defer cluster.Close()
	for _, cql := range []string{
		`CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}`,
		`CREATE KEYSPACE kt WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': true}`,
	} {
		if err := cluster.Exec(cql); err != nil {
			return err
		}
	}
	for _, t := range tables {
		if err := cluster.Exec(`CREATE TABLE ` + t + ` (pk int, ck int, v bigint, w text, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`); err != nil {
			return err
		}
	}
	session, err := gocql.NewCluster(cluster.Hosts()...).CreateSession()
	if err != nil {
		return err
	}
	defer session.Close()
	r, err := rig.Start(ctx, rig.Config{Tags: []string{"crashpoints"}, Workers: 2, Bare: true})
	defer r.Stop()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, r.Logs())
	}
	s := &suite{rig: r, cluster: cluster, session: session, seed: seed, most: int64(kills), by: map[string]int{}}
	return s.run(ctx)
}

type suite struct {
	rig     *rig.Rig
	cluster *scyllatest.Cluster
	session *gocql.Session
	seed    uint64
	most    int64
	writes  atomic.Int64
	kills   atomic.Int64

	mu  sync.Mutex
	by  map[string]int
	err error
}

func (s *suite) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *suite) run(ctx context.Context) error {
	for pk := range 200 { // rows that are there before
		if err := s.write(tables[pk%len(tables)], 1000+pk, 0, 1+pk%3, time.Now()); err != nil {
			return err
		}
	}
	time.Sleep(2 * confidence)
	load, stop := context.WithCancel(ctx)
	defer stop()
	var writers, killers sync.WaitGroup
	for n := range 4 {
		writers.Go(func() { s.load(load, n) })
	}
	writers.Go(func() { s.upheave(load) })
	if err := s.begin(ctx); err != nil {
		return err
	}
	for i, w := range s.rig.Workers {
		killers.Go(func() { s.kill(ctx, w, rand.New(rand.NewPCG(s.seed, uint64(i)))) })
	}
	killers.Wait()
	if err := s.calm(ctx); err != nil {
		return err
	}
	stop()
	writers.Wait()
	if s.err != nil {
		return fmt.Errorf("%w\n%s", s.err, s.rig.Logs())
	}
	var by []string
	for _, p := range append(crashpoint.CDCPoints(), outside) {
		by = append(by, fmt.Sprintf("%s %d", p, s.by[p]))
	}
	fmt.Printf("scyllacrash: seed %d: %d kills (%s) while %d batches were written\n", s.seed, s.kills.Load(), strings.Join(by, ", "), s.writes.Load())
	return s.verdict(ctx)
}

// begin enables the capture, and has workers die when its place is known and not
// stored, and when a part of the first rows is stored.
func (s *suite) begin(ctx context.Context) error {
	for _, w := range s.rig.Workers {
		w.Kill()
	}
	for i, point := range []string{crashpoint.CDCStarted + ":1", crashpoint.CDCSnapshotChunk + ":3"} {
		w := s.rig.Workers[i]
		if err := w.Start(point); err != nil {
			return err
		}
		if i == 0 {
			if err := s.enable(ctx); err != nil {
				return err
			}
		}
		if err := rig.Until(ctx, time.Minute, w.Killed); err != nil {
			return fmt.Errorf("no worker came to %s: %w\n%s", point, err, s.rig.Logs())
		}
		name, _, _ := strings.Cut(point, ":")
		s.by[name]++
		s.kills.Add(1)
	}
	return nil
}

// enable defines the client and its capture, while workers die.
func (s *suite) enable(ctx context.Context) error {
	for _, c := range []struct {
		method, path string
		body         map[string]any
	}{
		{http.MethodPut, "/admin/clients/" + client, map[string]any{
			"client_name": client, "engine": "scylla", "lifecycle": "active",
			"capabilities": map[string]bool{"cdc": true, "schema_read": true},
			"connection":   map[string]any{"hosts": s.cluster.Hosts()},
		}},
		{http.MethodPost, "/cdc/" + client + "/enable", map[string]any{
			"tables": tables, "snapshot": "initial", "confidence": confidence.String(), "sweep": sweep.String(),
		}},
	} {
		var status int
		var reply rig.Reply
		err := rig.Until(ctx, 30*time.Second, func() bool {
			var err error
			status, reply, err = s.rig.Call(c.method, c.path, "", c.body)
			return err == nil && status < 500
		})
		if err != nil || status >= 300 {
			return fmt.Errorf("%s %s: %d %s %w\n%s", c.method, c.path, status, reply.Message, err, s.rig.Logs())
		}
	}
	return nil
}

// write writes rows of one partition as one batch, with a time of its own.
func (s *suite) write(table string, pk int, v int64, rows int, at time.Time) error {
	b := s.session.Batch(gocql.UnloggedBatch).WithTimestamp(at.UnixMicro())
	for ck := range rows {
		b.Query(`UPDATE `+table+` SET v = ?, w = ? WHERE pk = ? AND ck = ?`, v, strings.Repeat("x", int(v%40)), pk, ck)
	}
	s.writes.Add(1)
	return b.Exec()
}

// load writes to partitions of its own, with times that grow, until ctx is done.
func (s *suite) load(ctx context.Context, n int) {
	rnd := rand.New(rand.NewPCG(s.seed, 100+uint64(n)))
	for v := int64(1); ctx.Err() == nil; v++ {
		pk := n*100 + rnd.IntN(30)
		table := tables[pk%len(tables)]
		var err error
		switch rnd.IntN(12) {
		case 0:
			err = s.session.Query(`DELETE FROM `+table+` WHERE pk = ? AND ck = ?`, pk, rnd.IntN(4)).Exec()
			s.writes.Add(1)
		case 1:
			err = s.session.Query(`DELETE FROM `+table+` WHERE pk = ? AND ck > 2`, pk).Exec()
			s.writes.Add(1)
		case 2:
			// Now and then a message of the stream ends in the midst of a batch.
			err = s.write(table, pk, v, 50+rnd.IntN(150), time.Now())
		default:
			err = s.write(table, pk, v, 1+rnd.IntN(5), time.Now())
		}
		if err != nil {
			s.fail(fmt.Errorf("a write: %w", err))
			return
		}
		time.Sleep(time.Duration(5+rnd.IntN(30)) * time.Millisecond)
	}
}

// upheave has the cluster change under way.
func (s *suite) upheave(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(s.seed, 200))
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(2000+rnd.IntN(4000)) * time.Millisecond):
		case <-ctx.Done():
			return
		}
		switch rnd.IntN(3) {
		case 0:
			s.cluster.NewGeneration(time.Now().Add(2*time.Second), 1+rnd.IntN(4), 1+rnd.IntN(5))
		case 1:
			s.cluster.SplitTablets("kt", "c", 1+rnd.IntN(8))
		case 2:
			s.delay(tables[rnd.IntN(len(tables))])
		}
	}
}

// delay has some writes appear late in the log of a table.
func (s *suite) delay(table string) {
	end := s.cluster.DelayLog(table, late)
	time.Sleep(150 * time.Millisecond)
	end()
}

// calm lets the capture catch up, and has writes be late then, which are not while
// it is behind.
func (s *suite) calm(ctx context.Context) error {
	err := rig.Until(ctx, 2*time.Minute, func() bool {
		_, reply, err := s.rig.Call(http.MethodGet, "/cdc/"+client, "", nil)
		var data struct {
			Status struct {
				Streams *struct {
					Complete time.Time `json:"complete"`
				} `json:"streams"`
			} `json:"status"`
		}
		return err == nil && json.Unmarshal(reply.Data, &data) == nil && data.Status.Streams != nil && time.Since(data.Status.Streams.Complete) < 2*confidence+time.Second
	})
	if err != nil {
		return fmt.Errorf("the capture does not catch up: %w\n%s", err, s.rig.Logs())
	}
	for i := range 6 {
		s.delay(tables[i%len(tables)])
		time.Sleep(time.Second)
	}
	return nil
}

// outside stands for a kill from outside, beside the points.
const outside = "kill"

// kill lets a worker die until there have been enough kills over all, and leaves it
// running.
func (s *suite) kill(ctx context.Context, w *rig.Process, rnd *rand.Rand) {
	points := slices.DeleteFunc(crashpoint.CDCPoints(), func(p string) bool {
		return p == crashpoint.CDCSpilled || p == crashpoint.CDCStarted || p == crashpoint.CDCSnapshotChunk
	})
	for ctx.Err() == nil && s.kills.Load() < s.most {
		point, wait := points[rnd.IntN(len(points))], 30*time.Second
		armed := fmt.Sprintf("%s:%d", point, 1+rnd.IntN(60))
		if rnd.IntN(4) == 0 {
			point, armed, wait = outside, "", time.Duration(3000+rnd.IntN(9000))*time.Millisecond
		}
		if err := w.Start(armed); err != nil {
			s.fail(err)
			return
		}
		select {
		case <-w.Done():
		case <-time.After(wait): // the other one has the capture
			point = outside
			w.Kill()
		case <-ctx.Done():
			return
		}
		if !w.Killed() {
			s.fail(fmt.Errorf("%s has ended by itself", w.Name))
			return
		}
		s.mu.Lock()
		s.by[point]++
		s.mu.Unlock()
		s.kills.Add(1)
	}
	if err := w.Start(""); err != nil {
		s.fail(err)
	}
}
