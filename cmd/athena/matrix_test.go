package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

// An operation of the matrix: what it needs, and which engines can do it, as
// the architecture has it.
type operation struct {
	method, path, body string // {kind} is what the engine provisions, {one} a query of one row
	needs              []athena.Capability
	engines            []athena.Engine
}

var (
	sqlAndCQL = []athena.Engine{athena.EnginePostgres, athena.EngineScylla}
	onlySQL   = []athena.Engine{athena.EnginePostgres}
	onlyCQL   = []athena.Engine{athena.EngineScylla}
	onlyS3    = []athena.Engine{athena.EngineS3}
)

func operations() map[string]operation {
	need := func(cs ...athena.Capability) []athena.Capability { return cs }
	return map[string]operation{
		"query":        {"POST", "/gateway/query", `{"query":"{one}"}`, need(athena.GatewayQuery), sqlAndCQL},
		"raw SQL":      {"POST", "/query/sql", `{"query":"select 1 as n","language":"sql"}`, need(athena.RawSQL), onlySQL},
		"raw SQL too":  {"POST", "/gateway/sql", `{"query":"select 1 as n","language":"sql"}`, need(athena.RawSQL), onlySQL},
		"raw CQL":      {"POST", "/query/sql", `{"query":"{one}","language":"cql"}`, need(athena.RawCQL), onlyCQL},
		"count":        {"POST", "/query/count", `{"table":"matrix_items"}`, need(athena.GatewayQuery), sqlAndCQL},
		"deferred":     {"POST", "/gateway/query", `{"query":"{one}","deferred":true}`, need(athena.DeferredQuery, athena.GatewayQuery), sqlAndCQL},
		"deferred raw": {"POST", "/query/sql", `{"query":"select 1 as n","deferred":true,"language":"sql"}`, need(athena.DeferredQuery, athena.RawSQL), onlySQL},
		"deferred CQL": {"POST", "/query/sql", `{"query":"{one}","deferred":true,"language":"cql"}`, need(athena.DeferredQuery, athena.RawCQL), onlyCQL},
		"schema":       {"GET", "/schema", "", need(athena.SchemaRead), sqlAndCQL},
		"tables":       {"GET", "/schema/tables", "", need(athena.SchemaRead), sqlAndCQL},
		"columns":      {"GET", "/schema/columns?table=matrix_items", "", need(athena.SchemaRead), sqlAndCQL},
		"constraints":  {"GET", "/schema/constraints?table=matrix_items", "", need(athena.SchemaRead), sqlAndCQL},
		"indexes":      {"GET", "/schema/indexes?table=matrix_items", "", need(athena.SchemaRead), sqlAndCQL},
		"migrations":   {"GET", "/schema/migrations", "", need(athena.MigrationsRead), onlySQL},
		"provisioning": {"POST", "/management/provision", `{"kind":"{kind}","name":"matrix"}`, need(athena.Provisioning), athena.Engines()},
		"objects":      {"GET", "/storage/objects", "", need(athena.ObjectRead), onlyS3},
		"get object":   {"GET", "/storage/objects/matrix/item", "", need(athena.ObjectRead), onlyS3},
		"put object":   {"PUT", "/storage/objects/matrix/new", "{}", need(athena.ObjectWrite), onlyS3},
		"del object":   {"DELETE", "/storage/objects/matrix/none", "", need(athena.ObjectWrite), onlyS3},
		"copy object":  {"POST", "/storage/copy", `{"from":"matrix/item","to":"matrix/copy"}`, need(athena.ObjectWrite, athena.ObjectRead), onlyS3},
		"presign get":  {"POST", "/storage/presign", `{"method":"GET","key":"matrix/item"}`, need(athena.ObjectRead), onlyS3},
		"presign put":  {"POST", "/storage/presign", `{"method":"PUT","key":"matrix/item"}`, need(athena.ObjectWrite), onlyS3},
	}
}

// TestTheMatrix takes every operation to a client of every engine: those that
// are granted and can be done are done, and the others are refused with the
// right code, before a connection is opened.
func TestTheMatrix(t *testing.T) {
	t.Parallel()
	t.Run("the engine in memory", func(t *testing.T) {
		t.Parallel()
		db := memory.New()
		matrix(t, memory.Driver(db), "memory")
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		matrix(t, drivers()[athena.EnginePostgres], dev(t).PostgresDSN)
	})
}

func matrix(t *testing.T, engine driver.Driver, dsn string) {
	const key = "ath_00112233445566cc.QkFEQ0FGRUJBRENBRkVCQURDQUZFQkFEQ0FGRUJBREM"
	cfg, err := config.Load(config.Config{Overrides: map[string]any{"data_dir": t.TempDir(), "listen": "127.0.0.1:0", "worker.enabled": false}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := (&program{stdout: io.Discard, stderr: io.Discard}).newServer(t.Context(), cfg, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var opens atomic.Int64
	counting := func(d driver.Driver) driver.Driver {
		open := d.Open
		d.Open = func(ctx context.Context, c athena.Connection) (driver.Backend, error) {
			opens.Add(1)
			return open(ctx, c)
		}
		return d
	}
	s.drivers[athena.EnginePostgres] = counting(engine) // nothing runs yet
	for _, e := range []athena.Engine{athena.EngineS3, athena.EngineScylla} {
		s.drivers[e] = counting(s.drivers[e])
	}
	wide := scyllatest.Start(t)
	wide.MustExec(t, `CREATE KEYSPACE matrix_ks WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}`)
	bucket := s3test.Bucket(t)
	s3test.Seed(t, bucket, "matrix/item", []byte("{}"))

	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- s.run(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("the server does not come up")
	}

	// Definitions as a build with all drivers would have stored them.
	kv, err := s.broker.bus.JetStream().KeyValue(t.Context(), bus.BucketCatalog)
	if err != nil {
		t.Fatal(err)
	}
	var everything athena.Capabilities
	for c := athena.Capability(0); c.String() != "unknown"; c++ {
		everything |= athena.Allow(c)
	}
	wider := catalog.New(kv, catalog.Config{Keyring: s.keyring, Supports: func(athena.Engine) athena.Capabilities { return everything }})
	connections := map[athena.Engine]athena.Connection{
		athena.EnginePostgres: athena.PostgresConn{DSN: athena.NewSecret(dsn)},
		athena.EngineScylla:   athena.ScyllaConn{Hosts: wide.Hosts(), Keyspace: "matrix_ks"},
		athena.EngineS3:       bucket,
	}
	ones := map[athena.Engine]string{athena.EnginePostgres: "select 1 as n", athena.EngineScylla: "select cluster_name from system.local where key = 'local'"}
	kinds := map[athena.Engine]string{athena.EnginePostgres: "schema", athena.EngineScylla: "keyspace", athena.EngineS3: "bucket"}
	define := func(name string, e athena.Engine, caps athena.Capabilities) string {
		t.Helper()
		def := &athena.Client{Name: name, Lifecycle: athena.Active, Capabilities: caps, Connection: connections[e]}
		if _, err := wider.Put(t.Context(), def, catalog.Any); err != nil {
			t.Fatal(err)
		}
		if err := s.catalog.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		return name
	}
	background, stop := context.WithCancel(context.Background())
	watched := make(chan error, 1)
	go func() { watched <- wider.Run(background) }()
	defer func() { stop(); <-watched }()

	call := func(op operation, client string) (int, athena.Code, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), op.method, s.url+op.path, strings.NewReader(op.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Athena-Client", client)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var envelope struct{ Code athena.Code }
		if err := json.Unmarshal(raw, &envelope); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		return resp.StatusCode, envelope.Code, string(raw)
	}
	setup := operation{method: "POST", path: "/gateway/query", body: `{"query":"create table matrix_items (id int primary key)"}`}
	for _, e := range sqlAndCQL {
		if status, _, raw := call(setup, define("setup-"+string(e), e, athena.Allow(athena.GatewayQuery))); status != 200 {
			t.Fatalf("%s: %d %s", e, status, raw)
		}
	}

	cells, n := 0, 0
	refused := func(name string, op operation, client string, wantStatus int, want athena.Code) {
		t.Helper()
		cells++
		before := opens.Load()
		status, code, raw := call(op, client)
		if status != wantStatus || code != want {
			t.Errorf("%s: %d %q, want %d %q: %s", name, status, code, wantStatus, want, raw)
		}
		if got := opens.Load() - before; got != 0 {
			t.Errorf("%s: %d connections were opened", name, got)
		}
	}
	for _, e := range athena.Engines() {
		for name, op := range operations() {
			n++
			at := fmt.Sprintf("%s on %s", name, e)
			needs := athena.Allow(op.needs...)
			op.body = strings.NewReplacer("{kind}", kinds[e], "{one}", ones[e]).Replace(op.body)
			inBuild := needs.Minus(s.supports(e)) == 0
			if inBuild != slices.Contains(op.engines, e) {
				t.Errorf("%s: this build can do it: %v; the matrix says otherwise", at, inBuild)
			}
			status, code := 403, athena.CodeCapabilityDenied
			if !inBuild {
				// Whatever the definition grants: granting more would not help.
				status, code = 422, athena.CodeCapabilityUnsupported
				refused(at+", all granted", op, define(fmt.Sprintf("all%d", n), e, everything), status, code)
			}
			// All but one of what it needs.
			for _, c := range op.needs {
				poor := define(fmt.Sprintf("poor%d-%s", n, c), e, everything.Minus(athena.Allow(c)))
				refused(at+" without "+c.String(), op, poor, status, code)
			}
			refused(at+" with nothing granted", op, define(fmt.Sprintf("none%d", n), e, 0), status, code)
			if !inBuild {
				continue
			}
			// Just what it needs.
			cells++
			before := opens.Load()
			status, _, raw := call(op, define(fmt.Sprintf("just%d", n), e, needs))
			if status/100 != 2 {
				t.Errorf("%s: %d %s", at, status, raw)
			}
			if got, submits := opens.Load()-before, strings.Contains(op.body, "deferred"); got != 1 && !submits || got != 0 && submits {
				t.Errorf("%s: %d connections were opened", at, got)
			}
		}

		// The abilities that have no route yet are refused on the road alike.
		for _, c := range everything.List() {
			client := define(fmt.Sprintf("road-%s-%s", e, c), e, everything)
			before := opens.Load()
			ran := false
			ctx := auth.NewContext(t.Context(), auth.Local())
			_, err := dispatch.Do(ctx, s.dispatcher, dispatch.Op{Family: "matrix", Right: auth.Admin, Needs: []athena.Capability{c}}, client,
				func(context.Context, dispatch.Call, driver.Backend) (struct{}, error) {
					ran = true
					return struct{}{}, nil
				})
			cells++
			switch can := s.supports(e)&athena.Allow(c) != 0; {
			case can && (err != nil || !ran):
				t.Errorf("%s on %s: %v", c, e, err)
			case !can && (athena.CodeOf(err) != athena.CodeCapabilityUnsupported || ran || opens.Load() != before):
				t.Errorf("%s on %s: %v, %d connections", c, e, err, opens.Load()-before)
			}
			// Nor is a grant saved that the build cannot keep.
			def := &athena.Client{Name: "grant", Lifecycle: athena.Active, Capabilities: athena.Allow(c), Connection: connections[e]}
			_, err = s.catalog.Put(t.Context(), def, catalog.Any)
			if can := s.supports(e)&athena.Allow(c) != 0; can != (err == nil) || !can && athena.CodeOf(err) != athena.CodeCapabilityUnsupported {
				t.Errorf("saving a grant of %s to a client on %s: %v", c, e, err)
			}
		}
	}
	t.Logf("%d cells", cells)
}
