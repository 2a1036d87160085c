package plan_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/resolver"
)

type both struct{ m *testing.M }

func (b both) Run() int { return pgtest.Run(b.m) }

func TestMain(m *testing.M) { os.Exit(s3test.Run(both{m})) }

// house is a bus, definitions of clients, and the drivers of all engines.
type house struct {
	t       testing.TB
	planner *plan.Planner
	bus     *bus.Bus
	changes *changefeed.Store
	opens   atomic.Int64

	mu      sync.Mutex
	clients map[string]*athena.Client
	others  []*spec.Pipeline
}

// Client is resolver.Catalog's.
func (h *house) Client(_ context.Context, name string) (*athena.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c, ok := h.clients[name]; ok {
		return c, nil
	}
	return nil, athena.Errorf(athena.CodeClientNotFound, "there is no client %q", name)
}

type unseen struct{}

func (unseen) Observe(context.Context, dispatch.Outcome) {}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, bus: bustest.Start(t), clients: map[string]*athena.Client{}}
	drivers := map[athena.Engine]driver.Driver{athena.EnginePostgres: driver.New(postgres.Open), athena.EngineScylla: scylla.Driver(), athena.EngineS3: s3.Driver()}
	for e, d := range drivers {
		open := d.Open
		d.Open = func(ctx context.Context, conn athena.Connection) (driver.Backend, error) {
			h.opens.Add(1)
			return open(ctx, conn)
		}
		drivers[e] = d
	}
	backends := resolver.New(h, drivers, resolver.Config{Open: func(_ string, s athena.Secret) (athena.Secret, error) { return s, nil }})
	t.Cleanup(func() {
		if err := backends.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	jobs, err := deferred.NewStore(h.bus)
	if err != nil {
		t.Fatal(err)
	}
	changes, feeds := changefeedtest.Store(t, h.bus)
	h.changes = changes
	h.planner = &plan.Planner{
		Dispatcher: &dispatch.Dispatcher{Resolver: backends, Observer: unseen{}}, Drivers: drivers,
		Captures: changes, Feeds: feeds, Jobs: jobs,
		Others: func(context.Context) []*spec.Pipeline { return h.others },
		Clients: func(context.Context) []string {
			h.mu.Lock()
			defer h.mu.Unlock()
			return slices.Sorted(maps.Keys(h.clients))
		},
	}
	return h
}

// everything is what a definition can grant.
var everything = func() athena.Capabilities {
	var set athena.Capabilities
	for c := athena.GatewayQuery; c <= athena.PipelineSink; c++ {
		set |= athena.Allow(c)
	}
	return set
}()

// nowhere are connections that lead to nobody.
var nowhere = map[athena.Engine]athena.Connection{
	athena.EnginePostgres: athena.PostgresConn{DSN: athena.NewSecret("postgres://nobody@127.0.0.1:1/none")},
	athena.EngineScylla:   athena.ScyllaConn{Hosts: []string{"127.0.0.1:1"}, Keyspace: "none"},
	athena.EngineS3:       athena.S3Conn{Endpoint: "http://127.0.0.1:1", Bucket: "none"},
}

// define defines a client.
func (h *house) define(name string, conn athena.Connection, granted athena.Capabilities) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[name] = &athena.Client{Name: name, Lifecycle: athena.Active, Capabilities: granted, Connection: conn}
}

// capture says that tables of a client are captured.
func (h *house) capture(client string, tables ...string) changefeed.Capture {
	h.t.Helper()
	c := changefeed.Capture{ID: "c-" + client, Client: client, CreatedAt: time.Now()}
	for _, t := range tables {
		c.Tables = append(c.Tables, driver.TableName{Schema: "public", Table: t})
	}
	c, err := h.changes.PutCapture(h.t.Context(), c.WithDefaults())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// store adds a definition to those that are stored.
func (h *house) store(text string) {
	h.t.Helper()
	h.others = append(h.others, read(h.t, text))
}

func read(t testing.TB, text string) *spec.Pipeline {
	t.Helper()
	p, err := spec.Decode([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

// as is a context of a key that may run pipelines, bound to clients if any are
// given.
func as(ctx context.Context, clients ...string) context.Context {
	return auth.NewContext(ctx, &auth.Principal{Key: "key", Grants: []auth.Grant{{Right: auth.Pipelines}}, Clients: clients})
}

// plan judges a definition, and holds what every plan must be.
func (h *house) plan(level plan.Level, text string) *plan.Plan {
	h.t.Helper()
	return h.planAs(as(h.t.Context()), level, text)
}

func (h *house) planAs(ctx context.Context, level plan.Level, text string) *plan.Plan {
	h.t.Helper()
	before := h.opens.Load()
	got, err := h.planner.Plan(ctx, read(h.t, text), level)
	if got == nil {
		h.t.Fatalf("there is no plan: %v\n%s", err, text)
		return nil
	}
	if level == plan.Static && h.opens.Load() != before {
		h.t.Errorf("a static plan has dialled\n%s", text)
	}
	if (err != nil) != (got.Verdict == plan.Refused) {
		h.t.Errorf("the verdict is %s, and the error %v", got.Verdict, err)
	}
	var e *athena.Error
	if err != nil && (!errors.As(err, &e) || e.Code != first(got).Code || e.Details["stage"] != first(got).Stage) {
		h.t.Errorf("the error is %v, %v; the stage that is refused %+v", err, e.Details, first(got))
	}
	if _, err := json.Marshal(got); err != nil {
		h.t.Errorf("the plan cannot be shown: %v", err)
	}
	return got
}

// first is the first stage that is refused, or an empty one.
func first(p *plan.Plan) plan.Stage {
	for _, s := range p.Stages {
		if s.Verdict == plan.Refused {
			return s
		}
	}
	return plan.Stage{}
}

func named(p *plan.Plan, name string) plan.Stage {
	for _, s := range p.Stages {
		if s.Stage == name {
			return s
		}
	}
	return plan.Stage{}
}

func describe(p *plan.Plan) string {
	var b strings.Builder
	for _, s := range p.Stages {
		fmt.Fprintf(&b, "%s %s %s: %s %s %s %s\n", s.Stage, s.Client, s.Operation, s.Verdict, s.Code, s.Field, s.Detail)
	}
	return b.String()
}

// database makes a database of PostgreSQL, and a client that is granted all on it.
func (h *house) database(name, sql string) *pgx.Conn {
	h.t.Helper()
	dsn := pgtest.DSN(h.t)
	h.define(name, athena.PostgresConn{DSN: athena.NewSecret(dsn)}, everything)
	conn, err := pgx.Connect(h.t.Context(), dsn)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(h.t.Context(), sql); err != nil {
		h.t.Fatal(err)
	}
	return conn
}
