package deferred_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/deferred"
)

// TestAClusterLosesNothing submits and runs writes on three servers with three
// replicas, stops one of them in the middle and starts it again: every job that
// was accepted ends, and has its effect once.
func TestAClusterLosesNothing(t *testing.T) {
	cluster := bustest.StartCluster(t, 3)
	d := deployOn(t, cluster.Bus(3))
	d.exec(`CREATE TABLE effects (n int)`)
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = 8 })
	d.work("a", nil)
	other, err := wire(t.Context(), cluster.Bus(3), d.key)
	if err != nil {
		t.Fatal(err)
	}
	d.background(other.catalog.Run)
	d.workOn(other, "b", nil, nil)

	var mu sync.Mutex
	accepted := map[int]*deferred.Job{}
	var refused, unsure int
	load, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for s := range 4 {
		wg.Go(func() {
			for n := s; load.Err() == nil; n += 4 {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				j, err := d.job("shop", "", deferred.Request{Query: "INSERT INTO effects VALUES ($1::int)", Params: []json.RawMessage{must(t)(json.Marshal(n))}})
				if err == nil {
					j, _, err = d.store.Submit(ctx, j)
				}
				cancel()
				mu.Lock()
				switch {
				case err == nil:
					accepted[n] = j
				case athena.CodeOf(err) == athena.CodeBusUnavailable, errors.Is(err, context.DeadlineExceeded):
					unsure++ // not accepted; it may be stored all the same
				default:
					refused++
					t.Errorf("submit: %v", err)
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	time.Sleep(1500 * time.Millisecond)
	// The one that leads the stream of jobs is missed most.
	str, err := d.bus.JetStream().Stream(t.Context(), bus.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	leader := slices.Index([]string{"node0", "node1", "node2"}, str.CachedInfo().Cluster.Leader)
	if leader < 0 {
		t.Fatalf("the leader is %q", str.CachedInfo().Cluster.Leader)
	}
	cluster.Stop(leader)
	time.Sleep(3 * time.Second)
	cluster.Restart(leader)
	time.Sleep(1500 * time.Millisecond)
	stop()
	wg.Wait()

	began := time.Now()
	lost := 0
	for _, j := range accepted {
		st := d.endsIn(j, 60*time.Second, deferred.Succeeded)
		for _, a := range st.Attempts {
			lost += btoi(a.Outcome == deferred.OutcomeLost)
		}
	}
	t.Logf("%d accepted, %d without an answer; all ended %s after the load; %d attempts were lost", len(accepted), unsure, time.Since(began), lost)
	if len(accepted) < 50 {
		t.Errorf("only %d jobs were accepted; the test shows nothing", len(accepted))
	}
	if n := d.count("SELECT count(*) - count(DISTINCT n) FROM effects"); n != 0 {
		t.Errorf("%d effects came twice", n)
	}
	for n, j := range accepted {
		if got := d.count("SELECT count(*) FROM effects WHERE n = $1", n); got != 1 {
			t.Errorf("job %s has its effect %d times", j.ID, got)
		}
	}
}
