package cqlroad

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestRoadToDouble(t *testing.T) {
	d := scyllatest.Start(t)
	d.ExpectUnknown("SELCT")
	d.ExpectUnknown("nothing(p)")
	d.MustExec(t, "CREATE KEYSPACE road WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}")
	s := newStage(t, "double", "road", athena.ScyllaConn{Hosts: d.Hosts(), Keyspace: "road"})
	s.road()
	t.Run("changes", func(t *testing.T) { s.with(t).badChanges() })
}

func TestRoadToCassandra(t *testing.T) {
	c := cassandratest.Start(t)
	ks := c.Keyspace(t)
	newStage(t, "cassandra", ks, c.Conn(ks)).road()
}

// with is the stage for another test.
func (s *stage) with(t *testing.T) *stage {
	of := *s
	of.T = t
	return &of
}

func (s *stage) road() {
	for _, part := range []struct {
		name string
		run  func(*stage)
	}{
		{"a client is checked", (*stage).check},
		{"statements run", (*stage).statements},
		{"statements run later", (*stage).later},
		{"the schema is described", (*stage).schema},
		{"a keyspace is provisioned", (*stage).provision},
		{"bad statements are refused", (*stage).badStatements},
		{"a table is copied from PostgreSQL", (*stage).copyFrom},
		{"odd tables are read like others", (*stage).oddTables},
		{"bad pipelines are refused", (*stage).badPipelines},
	} {
		s.Run(part.name, func(t *testing.T) { part.run(s.with(t)) })
	}
}

func (s *stage) check() {
	a := s.wants(http.StatusOK, "", s.call("POST", "/admin/clients/"+s.client+"/check", nil))
	var check struct {
		Reachable bool
		Excess    []string
	}
	if err := json.Unmarshal(a.Data, &check); err != nil || !check.Reachable || len(check.Excess) > 0 {
		s.Errorf("the check says %s", a.Data)
	}
	s.Logf("the check: %s", a.Data)
}

func (s *stage) statements() {
	s.must("CREATE TABLE {ks}.items (id bigint PRIMARY KEY, name text, tags set<text>, total decimal)")
	s.must("INSERT INTO {ks}.items (id, name, tags, total) VALUES (?, ?, ?, ?)", 1, "one", []string{"b", "a"}, "1.50")
	s.must("INSERT INTO items (id, name) VALUES (?, ?)", 2, nil) // the client's keyspace
	rows := s.must("SELECT id, name, tags, total FROM {ks}.items WHERE id = ?", 1)
	want := []map[string]any{{"id": 1.0, "name": "one", "tags": []any{"a", "b"}, "total": "1.50"}}
	if !reflect.DeepEqual(rows, want) {
		s.Errorf("the rows are %v", rows)
	}
	a := s.wants(http.StatusOK, "", s.call("POST", "/query/count", map[string]any{"schema": s.ks, "table": "items"}))
	if !strings.Contains(string(a.Data), "2") {
		s.Errorf("the count is %s", a.Data)
	}
	s.wants(http.StatusOK, "", s.call("POST", "/gateway/query", map[string]any{"query": s.in("SELECT * FROM {ks}.items")}))
}

func (s *stage) later() {
	s.must("CREATE TABLE {ks}.later (id int PRIMARY KEY, v text)")
	for text, params := range map[string][]any{
		"INSERT INTO {ks}.later (id, v) VALUES (?, ?)":               {1, "a"},
		"INSERT INTO {ks}.later (id, v) VALUES (?, ?) IF NOT EXISTS": {2, "b"},
		"SELECT * FROM {ks}.later":                                   nil,
	} {
		if state, raw := s.deferred(text, params...); state != "succeeded" {
			s.Errorf("%s: %s %s", text, state, raw)
		}
	}
	if rows := s.must("SELECT id FROM {ks}.later"); len(rows) != 2 {
		s.Errorf("the rows are %v", rows)
	}
	if state, raw := s.deferred("INSERT INTO {ks}.later (id, v) VALUES (?, ?)", "x", "a"); state != "failed" || !strings.Contains(raw, "params[0]") {
		s.Errorf("a parameter that does not fit: %s %s", state, raw)
	}
}

func (s *stage) schema() {
	s.must("CREATE TABLE {ks}.described (p int, c text, v list<int>, PRIMARY KEY (p, c))")
	for path, want := range map[string]string{
		"/schema":             s.ks,
		"/schema/tables":      `"described"`,
		"/schema/columns":     `"list<int>"`,
		"/schema/constraints": `"primary_key"`,
		"/schema/indexes":     `[`,
	} {
		if path != "/schema" {
			path += "?schema=" + s.ks
		}
		if !strings.HasPrefix(path, "/schema/tables") && strings.Contains(path, "?") {
			path += "&table=described"
		}
		if a := s.wants(http.StatusOK, "", s.call("GET", path, nil)); !strings.Contains(string(a.Data), want) {
			s.Errorf("%s: %s, without %s", path, a.Data, want)
		}
	}
	s.wants(http.StatusNotFound, "not_found", s.call("GET", "/schema/columns?schema="+s.ks+"&table=nothing", nil))
}

func (s *stage) provision() {
	for i, created := range []bool{true, false} {
		a := s.wants(http.StatusOK, "", s.call("POST", "/management/provision", map[string]any{"kind": "keyspace", "name": s.ks + "_tenant"}))
		if !strings.Contains(string(a.Data), fmt.Sprintf(`"created":%v`, created)) {
			s.Errorf("time %d: %s", i+1, a.Data)
		}
	}
	s.must("DROP KEYSPACE " + s.ks + "_tenant")
}

// badStatements are what the issue lists, as a user would send it.
func (s *stage) badStatements() {
	s.must("CREATE TABLE {ks}.bad (p int, c int, v text, n decimal, u uuid, l list<int>, PRIMARY KEY (p, c))")
	s.must("CREATE TABLE {ks}.counts (k int PRIMARY KEY, c counter)")
	s.must(`CREATE TABLE {ks}."Mixed" ("Id" int PRIMARY KEY, v text)`)
	for name, tt := range map[string]struct {
		text   string
		params []any
		status int
		code   string
		field  string
		names  string // what the message must have in it
	}{
		"a syntax error":                       {"SELCT 1", nil, 422, "query_failed", "", "SELCT"},
		"a table that is not there":            {"SELECT * FROM {ks}.nothing", nil, 422, "query_failed", "", "nothing"},
		"a column that is not there":           {"SELECT nothing FROM {ks}.bad", nil, 422, "query_failed", "", "nothing"},
		"a type that is not there":             {"CREATE TABLE {ks}.f (k int PRIMARY KEY, v nothing)", nil, 422, "query_failed", "", "nothing"},
		"a function that is not there":         {"SELECT nothing(p) FROM {ks}.bad", nil, 422, "query_failed", "", "nothing"},
		"a table that is there":                {"CREATE TABLE {ks}.bad (k int PRIMARY KEY)", nil, 409, "conflict", "", ""},
		"a part of the key alone":              {"UPDATE {ks}.bad SET v = 'x' WHERE p = 1", nil, 422, "query_failed", "", ""},
		"a scan without leave":                 {"SELECT * FROM {ks}.bad WHERE v = 'x'", nil, 422, "query_failed", "", "ALLOW FILTERING"},
		"a text for a number":                  {"INSERT INTO {ks}.bad (p, c) VALUES (?, 1)", []any{"x"}, 400, "invalid_request", "params[0]", "int"},
		"a fraction for a whole number":        {"INSERT INTO {ks}.bad (p, c) VALUES (1, ?)", []any{1.5}, 400, "invalid_request", "params[0]", "int"},
		"a number out of range":                {"INSERT INTO {ks}.bad (p, c) VALUES (1, ?)", []any{2147483648}, 400, "invalid_request", "params[0]", "int"},
		"a text for a uuid":                    {"INSERT INTO {ks}.bad (p, c, u) VALUES (1, 1, ?)", []any{"x"}, 400, "invalid_request", "params[0]", "uuid"},
		"a list whose element does not fit":    {"INSERT INTO {ks}.bad (p, c, l) VALUES (1, 1, ?)", []any{[]any{1, "x"}}, 400, "invalid_request", "params[0]", ""},
		"too few parameters":                   {"INSERT INTO {ks}.bad (p, c) VALUES (?, ?)", []any{1}, 400, "invalid_request", "params", ""},
		"too many parameters":                  {"SELECT * FROM {ks}.bad WHERE p = ?", []any{1, 2}, 400, "invalid_request", "params", ""},
		"a key that is null":                   {"INSERT INTO {ks}.bad (p, c) VALUES (?, 1)", []any{nil}, 422, "query_failed", "", ""},
		"an insert into counters":              {"INSERT INTO {ks}.counts (k, c) VALUES (1, 1)", nil, 422, "query_failed", "", ""},
		"a mixed-case name without its quotes": {"SELECT * FROM {ks}.Mixed", nil, 422, "query_failed", "", "mixed"},
		"the session's keyspace":               {"USE {ks}", nil, 400, "invalid_request", "query", "USE"},
		"two statements":                       {"SELECT * FROM {ks}.bad; SELECT * FROM {ks}.bad", nil, 400, "invalid_request", "query", "more than one"},
		"nothing":                              {" ", nil, 422, "query_failed", "", "empty"},
	} {
		a := s.cql(tt.text, tt.params...)
		s.Log(a.tell(name))
		if a.status != tt.status || a.Code != tt.code || tt.field != "" && a.Details["field"] != tt.field || !strings.Contains(a.Message, tt.names) {
			s.Errorf("%s: %s; want %d %s, field %q, a message with %q", name, a.raw, tt.status, tt.code, tt.field, tt.names)
		}
	}
	s.must(`INSERT INTO {ks}."Mixed" ("Id", v) VALUES (?, 'x')`, 1)
	if rows := s.must(`SELECT "Id" FROM {ks}."Mixed"`); len(rows) != 1 || rows[0]["Id"] != 1.0 {
		s.Errorf("the rows of the mixed-case table are %v", rows)
	}
	if rows := s.must("SELECT p FROM {ks}.bad"); len(rows) != 0 {
		s.Errorf("something was written after all: %v", rows)
	}
}

// run runs a pipeline and waits for its end. One that is refused ends as refused.
func (s *stage) run(def any) (state string, written float64, raw string) {
	s.Helper()
	a := s.call("POST", "/pipelines", def)
	if a.status >= 400 && a.status < 500 {
		return "refused", 0, a.raw
	}
	s.wants(http.StatusAccepted, "", a)
	var run struct {
		ID     string
		State  string
		Counts struct{ Written float64 }
	}
	if err := json.Unmarshal(a.Data, &run); err != nil || run.ID == "" {
		s.Fatalf("no run: %s", a.raw)
	}
	for range 600 {
		a = s.wants(http.StatusOK, "", s.call("GET", "/runs/"+run.ID, nil))
		if err := json.Unmarshal(a.Data, &run); err != nil {
			s.Fatal(err)
		}
		if slices.Contains([]string{"succeeded", "failed", "cancelled"}, run.State) {
			return run.State, run.Counts.Written, a.raw
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.Fatalf("the run does not end: %s", a.raw)
	return "", 0, ""
}

// pipeline is a definition of one source and one sink.
func pipeline(source, sink map[string]any) map[string]any {
	return map[string]any{"source": source, "sink": sink}
}

func (s *stage) copyFrom() {
	if err := s.rig.Client("shop", 4, "pipeline_source", "pipeline_sink"); err != nil {
		s.Fatal(err)
	}
	shop := *s
	shop.client = "shop"
	for _, text := range []string{
		"DROP TABLE IF EXISTS orders",
		"CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(12,2), at timestamptz, note jsonb)",
		"INSERT INTO orders SELECT i, 'c' || i, i * 1.25, '2026-01-01'::timestamptz + i * interval '1 minute', '{}' FROM generate_series(1, 500) i",
	} {
		shop.wants(http.StatusOK, "", shop.call("POST", "/gateway/sql", map[string]any{"query": text}))
	}
	def := pipeline(map[string]any{"client": "shop", "table": "public.orders"},
		map[string]any{"client": s.client, "table": s.ks + ".orders", "mode": "upsert", "key": []string{"id"}, "create": true})
	for range 2 { // again has the effect of once
		if state, written, raw := s.run(def); state != "succeeded" || written != 500 {
			s.Fatalf("the run %s: %s", state, raw)
		}
		if rows := s.must("SELECT count(*) AS n FROM {ks}.orders"); rows[0]["n"] != 500.0 {
			s.Errorf("there are %v", rows)
		}
	}
	rows := s.must("SELECT id, customer, total, at FROM {ks}.orders WHERE id = 3")
	if want := []map[string]any{{"id": 3.0, "customer": "c3", "total": "3.75", "at": "2026-01-01T00:03:00.000000Z"}}; !reflect.DeepEqual(rows, want) {
		s.Errorf("the row is %v", rows)
	}
	back := pipeline(map[string]any{"client": s.client, "table": s.ks + ".orders"},
		map[string]any{"client": "shop", "table": "public.orders_back", "mode": "append", "create": true})
	if state, written, raw := s.run(back); state != "succeeded" || written != 500 {
		s.Fatalf("the run back %s: %s", state, raw)
	}
}

// oddTables are tables that are read like others.
func (s *stage) oddTables() {
	s.must("UPDATE {ks}.counts SET c = c + 7 WHERE k = 1")
	for name, source := range map[string]string{"counters": "counts", "a mixed-case name": `"Mixed"`} {
		copied := strings.ToLower(strings.Trim(source, `"`)) + "_copied"
		state, written, raw := s.run(pipeline(map[string]any{"client": s.client, "table": s.ks + "." + source},
			map[string]any{"client": "shop", "table": "public." + copied + "_" + s.client, "mode": "append", "create": true}))
		if state != "succeeded" || written != 1 {
			s.Errorf("%s: the run %s: %s", name, state, raw)
		}
	}
}

// badPipelines are definitions that a plan must refuse, and a run too, with nothing
// written.
func (s *stage) badPipelines() {
	s.must("CREATE TABLE {ks}.sink (shop text, day date, id int, v text, PRIMARY KEY ((shop, day), id))")
	s.must("CREATE TABLE {ks}.plain (id int PRIMARY KEY, v text)")
	table := func(name string) map[string]any {
		return map[string]any{"client": s.client, "table": s.ks + "." + name}
	}
	sink := func(name, mode string, more ...any) map[string]any {
		m := table(name)
		m["mode"] = mode
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	key := []string{"id"}
	for name, tt := range map[string]struct {
		source, sink map[string]any
		names        []string // what the refusals must have in them
	}{
		"a sink without the partition key": {table("later"), sink("sink", "upsert", "key", key), []string{"no_key", "shop"}},
		"a merge":                          {table("later"), sink("sink", "merge", "key", key), []string{"merge", "sink.mode"}},
		"an overwrite":                     {table("later"), sink("sink", "overwrite"), []string{"overwrite", "sink.mode"}},
		"a source that is not there":       {table("nothing"), sink("plain", "append"), []string{"nothing"}},
		"a sink that is not there":         {table("later"), sink("nothing", "append"), []string{"nothing"}},
		"a sink of counters":               {table("later"), sink("counts", "append"), []string{"counter"}},
		"a keyspace that is not there":     {map[string]any{"client": s.client, "table": "nowhere.t"}, sink("plain", "append"), []string{"nowhere"}},
		"a write time that is no column":   {table("later"), sink("plain", "upsert", "key", key, "write_time", "absent"), []string{"absent"}},
		"a column that the sink lacks":     {table("bad"), sink("plain", "append"), []string{"partition key", "id"}},
		"a statement that writes":          {map[string]any{"client": s.client, "query": s.in("DELETE FROM {ks}.later WHERE id = 1")}, sink("plain", "append"), []string{"source"}},
	} {
		def := pipeline(tt.source, tt.sink)
		plan := s.call("POST", "/pipelines/plan?level=connect", def)
		state, _, _ := s.run(def)
		s.Logf("%s: the run %s; %s", name, state, plan.Message)
		if state != "refused" && state != "failed" {
			s.Errorf("%s: the run %s", name, state)
		}
		for _, what := range tt.names {
			if !strings.Contains(plan.raw, what) {
				s.Errorf("%s: the plan does not name %q: %s", name, what, plan.raw)
			}
		}
	}
	if rows := s.must("SELECT id FROM {ks}.plain"); len(rows) > 0 {
		s.Errorf("something was written after all: %v", rows)
	}
}

// badChanges are captures that cannot be.
func (s *stage) badChanges() {
	s.must(`CREATE TABLE {ks}."Logged" (k int PRIMARY KEY) WITH cdc = {'enabled': true}`)
	for name, tt := range map[string]struct{ table, names string }{
		"a table without its log":   {"bad", "cdc = {'enabled': true}"},
		"a table of counters":       {"counts", "counter"},
		"a mixed-case name":         {`"Logged"`, "Logged"},
		"a table that is not there": {"nothing", "nothing"},
	} {
		body := map[string]any{"tables": []string{s.ks + "." + tt.table}}
		check := s.wants(http.StatusOK, "", s.call("POST", "/cdc/"+s.client+"/check", body))
		if !strings.Contains(check.raw, `"error"`) || !strings.Contains(check.raw, tt.names) {
			s.Errorf("%s: the check says %s", name, check.raw)
		}
		a := s.call("POST", "/cdc/"+s.client+"/enable", body)
		s.Log(a.tell(name))
		if a.status < 400 || a.status >= 500 || !strings.Contains(a.raw, strings.Trim(tt.table, `"`)) {
			s.Errorf("%s: enabled it says %d %s", name, a.status, a.raw)
		}
	}
}
