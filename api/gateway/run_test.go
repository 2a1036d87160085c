package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestQueriesAreAnsweredWithTheirRows(t *testing.T) {
	t.Parallel()
	w := start(t, nil)

	a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select id, name from items where id = $1", "params": []any{2}}})
	if string(a.Data) != `[{"id":2,"name":"two"}]` || len(a.Meta.Columns) != 2 || a.Meta.Client != "shop" || a.Meta.Engine != "postgres" {
		t.Errorf("got %s", a.raw)
	}
	a = w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "insert into items values (3, 'three')"}})
	if string(a.Data) != `[]` || *a.Meta.RowsAffected != 1 {
		t.Errorf("got %s", a.raw)
	}
	for _, route := range []string{"/gateway/sql", "/query/sql"} {
		a = w.want(200, "", call{do: "POST " + route, body: stmt{"query": "select count(*) from items", "language": "sql"}})
		if !strings.Contains(string(a.Data), "3") {
			t.Errorf("got %s", a.raw)
		}
	}
	a = w.want(200, "", call{do: "POST /gateway/query", header: map[string]string{"Accept": "application/x-ndjson"}, body: stmt{"query": "select * from items"}})
	if bytes.Count(a.raw, []byte("\n")) != 3 || a.header.Get("X-Athena-Rows") != "3" {
		t.Errorf("got %q %v", a.raw, a.header)
	}
	a = w.want(200, "", call{do: "POST /gateway/query", header: map[string]string{"Accept": "text/csv"}, body: stmt{"query": "select * from items", "row_limit": 1}})
	if string(a.raw) != "id,name\r\n1,one\r\n" || a.header.Get("X-Athena-Truncated") != "true" {
		t.Errorf("got %q %v", a.raw, a.header)
	}
	if got := w.ops.last(); got.Op.Family != "gateway" || got.Client != "shop" || got.Principal != "full" || got.Code != "" {
		t.Errorf("observed %+v", got)
	}
}

func TestALongAnswerIsStreamed(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select generate(50000, 100)"}})
	if rows := decode[[]json.RawMessage](t, a); len(rows) != 50000 {
		t.Errorf("got %d rows", len(rows))
	}
	// One that breaks is never a shorter valid one.
	resp, err := w.http.Do(w.request(t.Context(), call{do: "POST /gateway/query", body: stmt{"query": "select fail('query_failed', 50000)"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err == nil || b.Len() < 1000 {
		t.Errorf("read %d bytes, %v; want a broken body", b.Len(), err)
	}
}

func TestAWriteThatLooksLikeAReadIsRunAsWhatItIs(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select put(items, 7, 'seven')"}})
	if rows := w.db.Rows("items"); len(rows) != 3 {
		t.Errorf("the table has %v", rows)
	}
}

func TestAWriteIsRunToItsEndBeyondTheRowLimit(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "update items set name = 'x' returning *", "row_limit": 1}})
	if rows := decode[[]any](t, a); len(rows) != 1 || !a.Meta.Truncated || *a.Meta.RowsAffected != 2 {
		t.Errorf("got %s", a.raw)
	}
	if rows := w.db.Rows("items"); strings.Contains(strings.Join(rows, ""), "one") {
		t.Errorf("the write was cut off: %v", rows)
	}
}

func TestAKeyThatMayOnlyReadIsHeldToIt(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.want(200, "", call{do: "POST /gateway/query", key: "reader", body: stmt{"query": "select * from items"}})
	for _, q := range []string{"insert into items values (9, 'x')", "select put(items, 9, 'x')", "nontx delete from items"} {
		w.want(403, "forbidden", call{do: "POST /gateway/query", key: "reader", body: stmt{"query": q}})
	}
	if rows := w.db.Rows("items"); len(rows) != 2 {
		t.Errorf("the table has %v", rows)
	}
}

func TestQueriesAreRefusedForTheRightReason(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	sel := stmt{"query": "select 1"}
	for name, test := range map[string]struct {
		status int
		code   string
		field  string
		call   call
	}{
		"a stranger":                          {401, "unauthenticated", "", call{key: "-", body: sel}},
		"a key without the right":             {403, "forbidden", "", call{key: "nothing", client: "nobody", body: sel}},
		"a key bound to other clients":        {403, "forbidden", "", call{key: "other", client: "nobody", body: sel}},
		"no client":                           {400, "missing_client_header", "", call{client: "-", body: sel}},
		"a client's name that cannot be":      {400, "invalid_request", "X-Athena-Client", call{client: "No One", body: sel}},
		"an unknown client":                   {404, "client_not_found", "", call{client: "nobody", body: sel}},
		"a frozen client":                     {423, "client_frozen", "", call{client: "iced", body: sel}},
		"an inactive client":                  {410, "client_inactive", "", call{client: "gone", body: sel}},
		"a missing capability":                {403, "capability_denied", "", call{client: "poor", body: sel}},
		"an engine that cannot":               {422, "capability_unsupported", "", call{client: "bucket", body: sel}},
		"raw CQL where only SQL is granted":   {422, "capability_unsupported", "", call{do: "POST /gateway/sql", body: stmt{"query": "x", "language": "cql"}}},
		"raw CQL where the engine has none":   {422, "capability_unsupported", "", call{do: "POST /gateway/sql", client: "cql", body: stmt{"query": "x", "language": "cql"}}},
		"raw SQL without its capability":      {403, "capability_denied", "", call{do: "POST /query/sql", client: "cql", body: sel}},
		"another language than the engine's":  {400, "invalid_request", "language", call{body: stmt{"query": "x", "language": "cql"}}},
		"an unknown language":                 {400, "invalid_request", "language", call{body: stmt{"query": "x", "language": "xquery"}}},
		"an unknown field":                    {400, "invalid_request", "querry", call{body: stmt{"querry": "select 1"}}},
		"a field of the wrong type":           {400, "invalid_request", "row_limit", call{body: stmt{"query": "select 1", "row_limit": "many"}}},
		"no query":                            {400, "invalid_request", "query", call{body: stmt{}}},
		"no body":                             {400, "invalid_request", "", call{}},
		"null":                                {400, "invalid_request", "query", call{body: "null"}},
		"two bodies":                          {400, "invalid_request", "", call{body: `{"query":"select 1"} {}`}},
		"an unknown parameter":                {400, "invalid_request", "dry", call{do: "POST /gateway/query?dry=1", body: sel}},
		"a parameter that does not fit":       {400, "invalid_request", "dry_run", call{do: "POST /gateway/query?dry_run=yes", body: sel}},
		"a statement that is not for us":      {400, "invalid_request", "query", call{body: stmt{"query": "begin"}}},
		"a timeout beyond the client's":       {400, "invalid_request", "timeout", call{body: stmt{"query": "select 1", "timeout": "10m"}}},
		"a negative row limit":                {400, "invalid_request", "row_limit", call{body: stmt{"query": "select 1", "row_limit": -1}}},
		"a field for deferred ones":           {400, "invalid_request", "priority", call{body: stmt{"query": "select 1", "priority": "batch"}}},
		"an idempotency key":                  {400, "invalid_request", "Idempotency-Key", call{header: map[string]string{"Idempotency-Key": "k"}, body: sel}},
		"a wait that is no number":            {400, "invalid_request", "Prefer", call{header: map[string]string{"Prefer": "wait=soon"}, body: sel}},
		"another content type":                {400, "invalid_request", "Content-Type", call{header: map[string]string{"Content-Type": "text/plain"}, body: sel}},
		"a statement that the engine refuses": {422, "query_failed", "", call{body: stmt{"query": "selekt"}}},
		"a param that does not fit":           {400, "invalid_request", "params[0]", call{body: stmt{"query": "insert into items values ($1, 'x')", "params": []any{"one"}}}},
		"a statement that takes too long":     {504, "timeout", "", call{body: stmt{"query": "select sleep(5000)", "timeout": "50ms"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := test.call
			if q.do == "" {
				q.do = "POST /gateway/query"
			}
			a := w.want(test.status, test.code, q)
			if field, _ := a.Details["field"].(string); test.field != "" && field != test.field {
				t.Errorf("the field is %q, want %q: %s", field, test.field, a.raw)
			}
		})
	}
}

func TestWhoGoesAwayCancelsTheBackend(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		resp, err := w.http.Do(w.request(ctx, call{do: "POST /gateway/query", body: stmt{"query": "select sleep(20000)"}}))
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	eventually(t, "the statement runs", func() bool { return w.db.Stats().Running == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the request ended with %v", err)
	}
	eventually(t, "the statement is cancelled", func() bool { return w.db.Stats().Running == 0 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// worker takes forwarded queries to a backend of its own.
type worker struct {
	db    *memory.DB
	calls []driver.Statement
	op    dispatch.Op
	who   string
}

func (r *worker) Query(ctx context.Context, op dispatch.Op, client string, s driver.Statement) (driver.Rows, error) {
	r.calls = append(r.calls, s)
	r.op, r.who = op, auth.FromContext(ctx).Key+" as "+client
	b, err := r.db.Open(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := b.Query(ctx, s)
	return rows, dispatch.Normalize(b, err)
}

func TestWhatCannotBeReachedHereIsForwarded(t *testing.T) {
	t.Parallel()
	far := &worker{db: memory.New()}
	w := start(t, func(cfg *gateway.Config, _ *api.Config) { cfg.Remote = far })
	(&world{t: t, db: far.db}).seed("create table items (id int primary key, name text)")
	w.db.Inject(func(f *memory.Faults) { f.Unreachable = true })

	a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select put(items, 1, 'far')", "timeout": "3s"}})
	if len(far.db.Rows("items")) != 1 || len(w.db.Rows("items")) != 2 || a.Meta.Client != "shop" {
		t.Errorf("got %s", a.raw)
	}
	if n := len(far.calls); n != 2 || !far.calls[0].ReadOnly || far.calls[1].ReadOnly || far.calls[1].Timeout != 3*time.Second || far.who != "full as shop" || !slices.Equal(far.op.Needs, []athena.Capability{athena.GatewayQuery}) {
		t.Errorf("the worker was asked %+v by %s", far.calls, far.who)
	}
	w.want(403, "forbidden", call{do: "POST /gateway/query", key: "reader", body: stmt{"query": "select put(items, 2, 'far')"}})
	// What the road refuses is not forwarded.
	before := len(far.calls)
	w.want(423, "client_frozen", call{do: "POST /gateway/query", client: "iced", body: stmt{"query": "select 1"}})
	w.want(400, "invalid_request", call{do: "POST /gateway/query", body: stmt{"query": "begin"}})
	if len(far.calls) != before {
		t.Errorf("the worker was asked %+v", far.calls[before:])
	}
}

func TestWithoutAWorkerItIsUnavailable(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.db.Inject(func(f *memory.Faults) { f.Unreachable = true })
	w.want(503, "backend_unavailable", call{do: "POST /gateway/query", body: stmt{"query": "select 1"}})
}

func TestTablesAreCounted(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, body := range []stmt{{"table": "items"}, {"table": "main.items"}, {"table": "items", "schema": "main", "timeout": "1s"}} {
		a := w.want(200, "", call{do: "POST /query/count", key: "reader", body: body})
		if string(a.Data) != `{"count":2}` {
			t.Errorf("%v: got %s", body, a.raw)
		}
	}
	for name, test := range map[string]struct {
		status int
		code   string
		body   any
	}{
		"neither":               {400, "invalid_request", stmt{}},
		"both":                  {400, "invalid_request", stmt{"table": "items", "query": "select 1"}},
		"half a name":           {400, "invalid_request", stmt{"table": ".items"}},
		"params for a table":    {400, "invalid_request", stmt{"table": "items", "params": []any{1}}},
		"a schema for a query":  {400, "invalid_request", stmt{"query": "select 1", "schema": "main"}},
		"a table that is not":   {404, "not_found", stmt{"table": "nothing"}},
		"a timeout beyond":      {400, "invalid_request", stmt{"table": "items", "timeout": "1h"}},
		"an unknown field":      {400, "invalid_request", stmt{"tabel": "items"}},
		"a query that writes":   {400, "invalid_request", stmt{"query": "delete from items"}},
		"two queries":           {400, "invalid_request", stmt{"query": "select 1; select 2"}},
		"another language":      {400, "invalid_request", stmt{"query": "select 1", "language": "cql"}},
		"not a word of a table": {400, "invalid_request", stmt{"table": "a\nb"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w.want(test.status, test.code, call{do: "POST /query/count", body: test.body})
		})
	}
}

func TestOnPostgreSQL(t *testing.T) {
	t.Parallel()
	w := start(t, func(cfg *gateway.Config, _ *api.Config) {
		cfg.Drivers[athena.EnginePostgres] = postgres.Driver()
	})
	w.catalog.put(athena.Client{
		Name: "shop", Lifecycle: athena.Active, Capabilities: athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.DeferredQuery),
		Connection: athena.PostgresConn{DSN: athena.NewSecret(pgtest.DSN(t)), MaxConns: 4},
	})
	w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "create table t (id int primary key, v numeric)"}})
	w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "create function sneak() returns int language sql as 'insert into t values (1000, 0) returning id'"}})

	a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "insert into t select i, 1.5 from generate_series(1, 1000) i returning id", "row_limit": 10}})
	if rows := decode[[]any](t, a); len(rows) != 10 || !a.Meta.Truncated || *a.Meta.RowsAffected != 1000 {
		t.Errorf("got %s", a.raw)
	}
	for query, want := range map[string]string{
		"select * from t":                               `{"count":1000}`,
		"select * from t where id <= $1; ":              `{"count":7}`,
		"select * from t -- all of it, in a comment":    `{"count":1000}`,
		"with x as (select 1 union select 2) table x":   `{"count":2}`,
		"(select id from t limit 3) union all select 1": `{"count":4}`,
	} {
		body := stmt{"query": query}
		if strings.Contains(query, "$1") {
			body["params"] = []any{7}
		}
		if a := w.want(200, "", call{do: "POST /query/count", key: "reader", body: body}); string(a.Data) != want {
			t.Errorf("%s: got %s", query, a.raw)
		}
	}
	for _, query := range []string{
		"select 1) x; delete from t; select count(*) from (select 1",
		"select 1) x union all select sneak() from (select 1",
		"with d as (delete from t returning *) select * from d",
		"select sneak()",
		"show server_version",
	} {
		if a := w.do(call{do: "POST /query/count", body: stmt{"query": query}}); a.status != 400 && a.status != 422 {
			t.Errorf("%s: got %d %s", query, a.status, a.raw)
		}
	}
	w.want(403, "forbidden", call{do: "POST /gateway/query", key: "reader", body: stmt{"query": "delete from t"}})
	if a := w.want(200, "", call{do: "POST /query/count", body: stmt{"table": "public.t"}}); string(a.Data) != `{"count":1000}` {
		t.Errorf("something wrote: %s", a.raw)
	}
	// A cut-off read is fine, and so is the next one on the same connection.
	for range 8 {
		a := w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select * from generate_series(1, 100000) i", "row_limit": 2}})
		if rows := decode[[]any](t, a); len(rows) != 2 || !a.Meta.Truncated {
			t.Errorf("got %s", a.raw)
		}
	}
	// A write that only the engine can tell from a read.
	w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "delete from t where id = 1000"}})
	w.want(200, "", call{do: "POST /gateway/query", body: stmt{"query": "select sneak()"}})

	a = w.want(200, "", call{do: "POST /gateway/query?dry_run=true", body: stmt{"query": "select * from t where id = $1", "params": []any{1}}})
	if v := decode[map[string]any](t, a); v["plan"] == nil || v["effect"] != "read" || v["outcome"] != "run" {
		t.Errorf("got %s", a.raw)
	}
}
