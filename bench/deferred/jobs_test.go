// Package deferred holds the benchmarks of deferred queries within one process:
// what the bus, the store and the worker cost without HTTP in front of them.
package deferred

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/resolver"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// one is a catalog of one client.
type one struct{ client *athena.Client }

func (o one) Client(context.Context, string) (*athena.Client, error) { return o.client, nil }
func (o one) List(context.Context) ([]*athena.Client, error)         { return []*athena.Client{o.client}, nil }
func (o one) Subscribe(func(string)) func()                          { return func() {} }

type counter struct {
	ended atomic.Int64
	want  int64
	done  chan struct{}
	once  sync.Once
}

func (*counter) Observe(context.Context, dispatch.Outcome)            {}
func (*counter) Started(*athena.Client, deferred.Lane, time.Duration) {}
func (c *counter) Ended(_ *athena.Client, s deferred.State, _ time.Duration) {
	if s.Terminal() && c.ended.Add(1) >= c.want {
		c.once.Do(func() { close(c.done) })
	}
}

// BenchmarkNoopJobs runs no-op jobs from a backlog to their recorded ends.
func BenchmarkNoopJobs(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	client := &athena.Client{
		Name: "shop", Lifecycle: athena.Active, Capabilities: athena.Allow(athena.GatewayQuery, athena.DeferredQuery),
		Connection: athena.PostgresConn{DSN: athena.NewSecret(pgtest.DSN(b)), MaxConns: 50}, Limits: athena.Limits{MaxRunning: 48},
	}
	js := bustest.Start(b)
	store, err := deferred.NewStore(js)
	if err != nil {
		b.Fatal(err)
	}
	count := &counter{want: int64(b.N), done: make(chan struct{})}
	catalog := one{client}
	res := resolver.New(catalog, map[athena.Engine]driver.Driver{athena.EnginePostgres: driver.New(postgres.Open)},
		resolver.Config{Open: func(_ string, s athena.Secret) (athena.Secret, error) { return s, nil }})
	defer res.Close(context.Background())
	w := worker.New(worker.Config{
		ID: "bench", Bus: js, Store: store, Catalog: catalog, Leases: bus.NewLeases(js, bus.BucketLeases),
		Dispatcher: &dispatch.Dispatcher{Resolver: res, Observer: count},
		Log:        slog.New(slog.DiscardHandler), Observer: count,
		Serves: func(*athena.Client) bool { return true },
	})
	var wg sync.WaitGroup
	next := make(chan int, b.N)
	for i := range b.N {
		next <- i
	}
	close(next)
	for range 64 {
		wg.Go(func() {
			for range next {
				r := deferred.Request{Query: "select 1 as one", Params: []json.RawMessage{}}
				j, err := r.Job(client, auth.Local(), driver.SQL, "", deferred.Bounds{}, time.Now())
				if err == nil {
					_, _, err = store.Submit(ctx, j)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ResetTimer()
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	select {
	case <-count.done:
	case <-time.After(5 * time.Minute):
		b.Fatalf("only %d of %d jobs ended", count.ended.Load(), b.N)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	cancel()
	running.Wait()
}
