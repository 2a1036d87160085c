package plan_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/workers/capture"
)

const shopSchema = `
CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), created_at timestamptz NOT NULL DEFAULT now());
INSERT INTO orders SELECT i, CASE WHEN i = 0 THEN 'x' WHEN i % 2 = 0 THEN 'paid' ELSE 'new' END, i * 1.5, '2026-11-22T10:00:00Z' FROM generate_series(0, 50) i;
CREATE TABLE keyless (n int);
CREATE VIEW paid AS SELECT * FROM orders WHERE status = 'paid';
CREATE TABLE narrow (id bigint PRIMARY KEY);
CREATE TABLE wrong (id date PRIMARY KEY);
CREATE TABLE ready (id bigint PRIMARY KEY, status text, total numeric(12,2), created_at timestamptz);`

// count is how many relations, and rows of ready, there are: a plan changes
// neither.
func count(t *testing.T, db *pgx.Conn) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_namespace) + (SELECT count(*) FROM ready)").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAPlanAsksTheDatabase(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	db := h.database("shop", shopSchema)
	h.define("down", nowhere[athena.EnginePostgres], everything)
	before := count(t, db)
	const orders = "source: {client: shop, table: orders}\n"
	const upsert = "\nsink: {client: shop, table: ready, mode: upsert}"
	tests := map[string]struct {
		text   string
		stage  string
		code   athena.Code
		field  string
		detail string
	}{
		"all is well":                     {orders + "transforms: [{filter: 'row.status == \"paid\"'}]" + upsert, "", "", "", ""},
		"a query":                         {"source: {client: shop, query: 'select id, status from orders where id > $1', params: [5]}\nsink: {client: shop, table: ready, mode: upsert, key: [id]}", "", "", "", ""},
		"a table to be created":           {orders + "sink: {client: shop, table: made, mode: overwrite, create: true}", "", "", "", ""},
		"a merge":                         {orders + "sink: {client: shop, table: ready, mode: merge}", "", "", "", ""},
		"a source that is not there":      {"source: {client: shop, table: order}" + upsert, "source", athena.CodeNotFound, "", ""},
		"a column that is not read":       {"source: {client: shop, table: orders, columns: [id, statu]}" + upsert, "source", athena.CodeInvalidRequest, "source.columns[1]", `the source has no column "statu"; did you mean "status"?`},
		"a condition on no column":        {"source: {client: shop, table: orders, where: [{column: statu, op: '=', value: a}]}" + upsert, "source", athena.CodeInvalidRequest, "source.where[0].column", `did you mean "status"?`},
		"a query that writes":             {"source: {client: shop, query: 'delete from orders returning id'}\nsink: {client: shop, table: ready, mode: upsert, key: [id]}", "source", athena.CodeInvalidRequest, "", "the statement may write"},
		"a query that is none":            {"source: {client: shop, query: 'selec 1'}\nsink: {client: shop, table: ready, mode: upsert, key: [id]}", "source", athena.CodeQueryFailed, "", `syntax error at or near "selec"`},
		"a column that does not exist":    {orders + "transforms: [{drop: [total]}, {set: {x: 'row.totl'}}]" + upsert, "transforms[1]", athena.CodeInvalidRequest, "transforms[1].set.x", `"totl"`},
		"a type that does not fit":        {orders + "transforms: [{filter: 'row.id == \"a\"'}]" + upsert, "transforms[0]", athena.CodeInvalidRequest, "transforms[0].filter", "no matching overload"},
		"a key that was dropped":          {orders + "transforms: [{drop: [id]}]" + upsert, "sink", athena.CodeInvalidRequest, "sink.key", "upsert needs a key"},
		"a source without a key":          {"source: {client: shop, table: keyless}" + upsert, "sink", athena.CodeInvalidRequest, "sink.key", "upsert needs a key"},
		"a target that is not there":      {orders + "sink: {client: shop, table: nothing}", "sink", athena.CodeConflict, "sink", "nothing"},
		"a target that lacks columns":     {orders + "schema: {columns: freeze}\nsink: {client: shop, table: narrow, mode: upsert}", "sink", athena.CodeConflict, "sink", "schema.columns: evolve"},
		"a target with another type":      {orders + "sink: {client: shop, table: wrong, mode: upsert}", "sink", athena.CodeConflict, "sink", "of type date"},
		"a key that is not unique":        {orders + "sink: {client: shop, table: ready, mode: upsert, key: [status]}", "sink", athena.CodeConflict, "sink", "no unique index"},
		"a target that is a view":         {orders + "sink: {client: shop, table: paid}", "sink", athena.CodeConflict, "sink", "is a view"},
		"a database that does not answer": {"source: {client: down, table: t}" + upsert, "source", athena.CodeBackendUnavailable, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := h.plan(plan.Connect, tt.text)
			s := first(got)
			if s.Stage != tt.stage || tt.code != "" && s.Code != tt.code || tt.field != "" && s.Field != tt.field || !strings.Contains(s.Detail, tt.detail) {
				t.Errorf("%s", describe(got))
			}
			if tt.stage == "" && got.Verdict != plan.OK {
				t.Errorf("%s", describe(got))
			}
		})
	}
	if after := count(t, db); after != before {
		t.Errorf("there were %d relations and rows, and there are %d: a plan has written", before, after)
	}
}

func TestAPlanShowsWhereColumnsGoAndHowItIsDone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.database("shop", shopSchema)
	got := h.plan(plan.Connect, "source: {client: shop, table: orders}\ntransforms: [{set: {cents: 'int(double(row.total) * 100.0)'}}]\nsink: {client: shop, table: made, mode: merge, create: true}\nparallel: 4")
	if !strings.Contains(got.Write.Creates, "CREATE TABLE") || len(got.Write.Mapping) != 5 || !slices.Equal(got.Write.Key, []string{"id"}) || got.Write.Mode != driver.Merge {
		t.Errorf("%+v", got.Write)
	}
	if got.Source == nil || len(got.Source.Columns) != 4 || got.Result == nil || len(got.Result.Columns) != 5 {
		t.Errorf("%+v %+v", got.Source, got.Result)
	}
	if got.Tasks.Count != 1 || got.Tasks.Parallel != 4 || got.Delivery.Class != plan.ExactlyOnce || got.Checkpoint == "" {
		t.Errorf("%+v %+v", got.Tasks, got.Delivery)
	}
	if got := h.plan(plan.Connect, "source: {client: shop, table: keyless}\nsink: {client: shop, table: made, create: true}"); got.Tasks.Count != 1 || !strings.Contains(got.Tasks.Reason, "no key") {
		t.Errorf("%+v", got.Tasks)
	}
	if got := h.plan(plan.Connect, "source: {client: shop, table: orders}\ntransforms: [{aggregate: {group_by: [status], columns: {n: count()}}}]\nsink: {client: shop, table: made, mode: upsert, create: true}"); !strings.Contains(got.Tasks.Reason, "all rows") || !slices.Equal(got.Write.Key, []string{"status"}) {
		t.Errorf("%+v %+v", got.Tasks, got.Write)
	}
}

func TestASampleGoesThroughTheTransformsAndIsNotWritten(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	db := h.database("shop", shopSchema)
	before := count(t, db)
	got := h.plan(plan.Sample, `
source: {client: shop, table: orders}
transforms:
  - set: {n: '100 / (row.id - 2)'}
  - filter: 'row.status != "new"'
sink: {client: shop, table: ready}
schema: {columns: evolve}
`)
	if got.Rows == nil || got.Rows.Read != 20 || len(got.Rows.Out) != 9 || len(got.Rows.Dead) != 1 {
		t.Fatalf("%+v\n%s", got.Rows, describe(got))
	}
	if d := got.Rows.Dead[0]; d.Stage != "transforms[0]" || d.Column != "n" || !strings.Contains(d.Reason, "division by zero") || !strings.Contains(d.Row, `"id":2`) {
		t.Errorf("%+v", d)
	}
	if row := string(got.Rows.Out[0].Row); !strings.Contains(row, `"id":0`) || !strings.Contains(row, `"n":-50`) {
		t.Error(row)
	}
	h.planner.Rows = 7
	got = h.plan(plan.Sample, "source: {client: shop, query: 'select * from orders order by id'}\ntransforms: [{aggregate: {group_by: [status], columns: {n: count()}}}]\nsink: {client: shop, table: made, create: true}")
	if got.Rows.Read != 7 || len(got.Rows.Out) != 3 || got.Rows.Note == "" {
		t.Errorf("%+v", got.Rows)
	}
	got = h.plan(plan.Sample, "source: {client: shop, table: orders}\ntransforms: [{route: '\"nowhere_\" + row.status'}]\nsink: {client: shop, table: ready}")
	if s := named(got, "sink"); s.Verdict != plan.Refused || s.Code != athena.CodeConflict || !strings.Contains(s.Detail, "nowhere_") {
		t.Errorf("%s", describe(got))
	}
	for rate, warned := range map[string]bool{"0.9": false, "0.2": true} {
		got = h.plan(plan.Sample, "source: {client: shop, table: orders}\ntransforms: [{set: {n: '1 / (row.id / 2)'}}]\nsink: {client: shop, table: ready}\nschema: {columns: evolve}\nerrors: {max_rate: "+rate+"}")
		if told := strings.Contains(strings.Join(got.Write.Notes, "\n"), "of the 7 rows of the sample could not go on"); told != warned || got.Verdict == plan.Refused {
			t.Errorf("at a rate of %s: %v\n%s", rate, got.Write.Notes, describe(got))
		}
	}
	if after := count(t, db); after != before {
		t.Error("a sample was written")
	}
}

// objectsBelow lists what can be seen, and what is staged.
func objectsBelow(t *testing.T, conn athena.S3Conn) (n int) {
	t.Helper()
	b, err := s3.Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	page, err := b.Objects(t.Context(), driver.ObjectList{})
	if err != nil {
		t.Fatal(err)
	}
	staged, err := b.StagedObjects(t.Context(), "", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return len(page.Objects) + len(staged)
}

func TestAPlanAsksTheBucketAndLeavesNothingThere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.database("shop", shopSchema)
	lake := s3test.Bucket(t)
	h.define("lake", lake, everything)
	h.define("vanished", s3test.Absent(t), everything)
	got := h.plan(plan.Connect, "source: {client: shop, table: orders}\ntransforms: [{set: {day: 'string(row.created_at).substring(0,10)'}}]\nsink: {client: lake, objects: {prefix: 'orders/day={{day}}/'}}")
	if got.Verdict != plan.OK || got.Delivery.Class != plan.EffectivelyOnce || got.Write.Format != "parquet" {
		t.Errorf("%s", describe(got))
	}
	if n := objectsBelow(t, lake); n != 0 {
		t.Errorf("%d objects are left", n)
	}
	got = h.plan(plan.Connect, "source: {client: shop, table: orders}\nsink: {client: vanished, objects: {prefix: orders/}}")
	if s := first(got); s.Stage != "sink" || s.Code != athena.CodeNotFound && s.Code != athena.CodeBackendUnavailable {
		t.Errorf("%s", describe(got))
	}
	got = h.plan(plan.Connect, "source: {client: vanished, objects: {prefix: in/, format: ndjson}}\nsink: {client: shop, table: ready}")
	if s := first(got); s.Stage != "source" {
		t.Errorf("%s", describe(got))
	}
	got = h.plan(plan.Connect, "source: {client: shop, table: orders}\nsink: {client: lake, objects: {prefix: 'orders/day={{dya}}/'}}")
	if s := first(got); s.Field != "sink.objects.prefix" {
		t.Errorf("%s", describe(got))
	}

	s3test.Seed(t, lake, "in/a.ndjson", []byte(`{"id":1,"status":"a"}`+"\n"+`{"id":`+"\n"+`{"id":3,"status":"c"}`+"\n"))
	got = h.plan(plan.Sample, "source: {client: lake, objects: {prefix: in/}}\ntransforms: [{filter: 'row.id > 1'}]\nsink: {client: shop, table: ready, mode: upsert, key: [id]}")
	if got.Verdict != plan.OK || got.Rows.Read != 3 || len(got.Rows.Out) != 1 || len(got.Rows.Dead) != 1 || got.Rows.Dead[0].Stage != "source" {
		t.Errorf("%s%+v", describe(got), got.Rows)
	}
}

func TestAPlanAsksTheCapture(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	db := h.database("shop", shopSchema)
	const text = "source: {client: shop, cdc: {tables: [orders]}}\ntransforms: [{filter: 'row.status == \"paid\"'}]\nsink: {client: shop, table: ready}"
	c := changefeed.Capture{ID: "one", Client: "shop", CreatedAt: time.Now(), Tables: []driver.TableName{{Schema: "public", Table: "orders"}}, Slot: fmt.Sprintf("athena_plan_%d", time.Now().UnixNano())}
	c, err := h.changes.PutCapture(t.Context(), c.WithDefaults())
	if err != nil {
		t.Fatal(err)
	}
	if s := named(h.plan(plan.Connect, text), "source"); s.Verdict != plan.Unknown {
		t.Errorf("before the capture has begun: %+v", s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- capture.New(capture.Config{
			ID: "capture", Bus: h.bus, Store: h.changes, Dispatcher: h.planner.Dispatcher, Catalog: oneClient{h},
			Leases: bus.NewLeases(h.bus, bus.BucketLeases), Serves: func(*athena.Client) bool { return true }, SpillDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		}).Run(ctx)
	}()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if st, _ := h.changes.Status("shop"); st.State == changefeed.Streaming {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the capture does not stream")
		}
	}
	got := h.plan(plan.Sample, text)
	if got.Verdict != plan.OK || got.Rows == nil || got.Rows.Read != 20 || len(got.Rows.Out) == 0 || got.Rows.Out[0].Op != "read" || !slices.Equal(got.Write.Key, []string{"id"}) {
		t.Errorf("%s%+v", describe(got), got.Rows)
	}
	if got := h.plan(plan.Connect, strings.Replace(text, "row.status", "row.state", 1)); first(got).Stage != "transforms[0]" {
		t.Errorf("%s", describe(got))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range 100 { // as soon as the walsender is gone
		if _, err = db.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", c.Slot); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s := named(h.plan(plan.Connect, text), "source"); s.Verdict != plan.Unknown || !strings.Contains(s.Detail, "no place in the log") {
		t.Errorf("after the slot is gone: %+v", s)
	}
}

// oneClient is the catalog of the capture's worker, in which nothing changes.
type oneClient struct{ *house }

func (oneClient) Subscribe(func(string)) func() { return func() {} }

func TestAPlanReadsTheResultOfADeferredQuery(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.database("shop", shopSchema)
	got := h.plan(plan.Connect, "source: {client: shop, deferred: 01a0c6ce-0000-7000-8000-000000000000}\nsink: {client: shop, table: ready, mode: upsert, key: [id]}")
	if s := first(got); s.Stage != "source" || s.Code != athena.CodeNotFound || s.Field != "source.deferred" {
		t.Errorf("%s", describe(got))
	}
}
