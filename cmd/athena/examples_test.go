package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/athena-pipelines/athena/pipelines/examples"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
	"github.com/athena-pipelines/athena/pkg/record"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// shopAndLake is an `athena dev` of its own, since examples change the shop.
type shopAndLake struct {
	dir  string
	env  []string
	api  *sdk.API
	lake *sdk.Client
	db   *pgxpool.Pool // of the shop, apart from Athena
	// events is the double that the client events stands for. What is seen of it is
	// seen of no ScyllaDB.
	events *scyllatest.Cluster
}

func newShopAndLake(t *testing.T) *shopAndLake {
	t.Helper()
	dir := filepath.Join(suite.dir, "examples")
	p := spawn(t, true, nil, "dev", "--json", "--data", dir)
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	var r devReport
	if err := p.line(&r); err != nil {
		t.Fatal(err)
	}
	s := &shopAndLake{dir: dir, env: at(r)}
	var err error
	if s.api, err = sdk.New(r.URL, r.AdminKey, sdk.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.api.Close)
	s.lake = s.api.Client(lakeBucket)
	if s.db, err = pgxpool.New(t.Context(), r.PostgresDSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.db.Close)
	s.events = scyllatest.Start(t)
	s.events.MustExec(t, "CREATE KEYSPACE web WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}",
		"CREATE TABLE web.visits (visitor uuid, at timestamp, page text, seconds int, tags set<text>, PRIMARY KEY (visitor, at))",
		"CREATE TABLE web.carts (owner text, item int, amount int, note text, labels set<text>, PRIMARY KEY (owner, item)) WITH cdc = {'enabled': true}")
	for i := range 300 {
		s.events.MustExec(t, fmt.Sprintf("INSERT INTO web.visits (visitor, at, page, seconds, tags) VALUES (%08x-0000-4000-8000-000000000000, '2026-02-%02dT10:00:%02dZ', '/p%d', %d, {'a', 'b%d'})", i%50, i%3+1, i%60, i, i%10, i))
	}
	for i := range 20 {
		s.events.MustExec(t, fmt.Sprintf("INSERT INTO web.carts (owner, item, amount) VALUES ('before', %d, 1)", i))
	}
	definition, err := json.Marshal(map[string]any{
		"client_name": "events", "engine": "scylla", "lifecycle": "active", "connection": map[string]any{"hosts": s.events.Hosts(), "keyspace": "web"},
		"capabilities": map[string]bool{"gateway_query": true, "cdc": true, "pipeline_source": true, "pipeline_sink": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := call(t, s.env, string(definition), "client", "apply", "-f", "-"); got.exit != exitOK {
		t.Fatalf("client apply: exit %d\n%s", got.exit, got.stderr)
	}
	return s
}

// texts are the rows of a statement to the double as texts, sorted.
func (s *shopAndLake) texts(t *testing.T, cql string) []string {
	t.Helper()
	_, rows, err := s.events.Rows(cql)
	if err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
	list := make([]string, len(rows))
	for i, r := range rows {
		list[i] = strings.Join(r, "|")
	}
	slices.Sort(list)
	return list
}

// number is the one number that a statement gives.
func (s *shopAndLake) number(t *testing.T, sql string) (n int64) {
	t.Helper()
	if err := s.db.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (s *shopAndLake) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.db.Exec(t.Context(), sql); err != nil { // without parameters: several statements are one transaction
		t.Fatalf("%s: %v", sql, err)
	}
}

// same fails unless two queries give the same rows, and returns how many.
func (s *shopAndLake) same(t *testing.T, a, b string) int64 {
	t.Helper()
	if n := s.number(t, fmt.Sprintf("select count(*) from ((%[1]s except all %[2]s) union all (%[2]s except all %[1]s)) d", "("+a+")", "("+b+")")); n != 0 {
		t.Errorf("%d rows are in one of these and not in the other:\n%s\n%s", n, a, b)
	}
	return s.number(t, "select count(*) from ("+a+") a")
}

// rows reads what stands below a prefix of the lake: how many rows there are of
// each value of a column, and in how many objects.
func (s *shopAndLake) rows(ctx context.Context, t *testing.T, prefix, column string) (by map[string]int64, all int64, objects []string) {
	t.Helper()
	by = map[string]int64{}
	if err := lakeRows(ctx, s.lake, prefix, func(b *record.Batch) error {
		if !slices.Contains(objects, b.From) {
			objects = append(objects, b.From)
		}
		c := b.Schema.Index(column)
		if c < 0 {
			return fmt.Errorf("%s has no column %s, but %v", b.From, column, b.Schema.Names())
		}
		for i := range b.Rows() {
			by[string(b.Columns[c].AppendText(nil, b.Schema.Columns[c].Type, i))]++
			all++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return by, all, objects
}

func (s *shopAndLake) put(t *testing.T, key string, lines ...string) {
	t.Helper()
	if _, err := s.lake.WriteObject(t.Context(), key, strings.NewReader(strings.Join(lines, "\n")+"\n"), driver.ObjectWrite{}); err != nil {
		t.Fatal(err)
	}
}

// run runs a stored batch and expects it to succeed.
func (s *shopAndLake) run(t *testing.T, name string, params ...string) *sdk.RunInfo {
	t.Helper()
	got := call(t, s.env, "", append([]string{"pipeline", "run", name}, params...)...)
	if got.exit != exitOK {
		t.Fatalf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	_, end := runEvents(t, got.stdout)
	return end
}

func equal(t *testing.T, what string, got, want int64) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %d, want %d", what, got, want)
	}
}

// An exampleCase says what an example comes to on the sample shop.
type exampleCase struct {
	// params gives a template's values, as the command line takes them.
	params func(*testing.T, *shopAndLake) []string
	// ran judges the first run of a batch, and may run it again.
	ran func(t *testing.T, s *shopAndLake, run *sdk.RunInfo)
	// followed judges a stream, once exampleWrites were made to the shop.
	followed func(*testing.T, *shopAndLake)
}

// exampleWrites are written to the shop while streams follow it: 45 changes of
// orders, 70 of items, 6 of customers.
const exampleWrites = `
INSERT INTO orders (customer_id, status, placed_at, note) SELECT n, 'placed', now(), 'example' FROM generate_series(1, 30) n;
INSERT INTO order_items SELECT id, l, l, 1, 9.90 FROM orders, generate_series(1, 2) l WHERE note = 'example';
UPDATE orders SET status = 'paid' WHERE note = 'example' AND customer_id <= 10;
DELETE FROM orders WHERE note = 'example' AND customer_id > 25;
INSERT INTO customers (email, name, country, created_at) SELECT n || '@example.org', 'New', 'DE', now() FROM generate_series(1, 3) n;
UPDATE customers SET country = 'NL' WHERE email IN ('1@example.org', '2@example.org');
DELETE FROM customers WHERE email = '3@example.org';`

var exampleCases = map[string]exampleCase{
	"orders-by-month": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		by, all, objects := s.rows(t.Context(), t, "orders/", "month")
		equal(t, "rows in the lake", all, s.number(t, "select count(*) from orders where status <> 'cart'"))
		equal(t, "rows written", run.Counts.Written, all)
		equal(t, "months", int64(len(by)), s.number(t, "select count(distinct to_char(placed_at at time zone 'UTC', 'YYYY-MM')) from orders where status <> 'cart'"))
		for month, n := range by {
			if !slices.ContainsFunc(objects, func(key string) bool { return strings.HasPrefix(key, "orders/month="+month+"/") }) {
				t.Errorf("%d rows of %s are in none of %v", n, month, objects)
			}
		}
	}},
	"sales-by-country": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		rows := func() int64 {
			return s.same(t, "select country, sum(orders) as n, sum(total) as total from sales_by_country group by country",
				"select c.country::text as country, count(*) as n, sum(t.total) as total from order_totals t join customers c on c.id = t.customer_id where status = 'delivered' group by c.country")
		}
		equal(t, "countries", rows(), 8)
		equal(t, "rows written", run.Counts.Written, s.number(t, "select count(*) from sales_by_country"))
		s.run(t, "sales-by-country")
		equal(t, "countries after another run", rows(), 8)
	}},
	"products-copy": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		for range 2 {
			equal(t, "rows", s.same(t, "select * from products", "select * from products_copy"), run.Counts.Written)
			s.exec(t, "update products set stock = stock + 1 where id <= 10")
			run = s.run(t, "products-copy")
		}
	}},
	"products-sync": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		synced := func(run *sdk.RunInfo, changed int64) {
			t.Helper()
			rows := s.same(t, "select id, sku, name, upper(category) as category, price from products", "select id, sku, name, category, price from catalogue")
			equal(t, "rows written", run.Counts.Written, rows)
			equal(t, "rows changed", run.Counts.Changed, changed)
		}
		synced(run, s.number(t, "select count(*) from products"))
		s.exec(t, "insert into products (sku, name, category, price, stock) values (gen_random_uuid(), 'Oak example', 'light', 1, 0)")
		synced(s.run(t, "products-sync"), 1)
		s.exec(t, "delete from products where name = 'Oak example'; update products set price = price + 1 where id <= 3")
		synced(s.run(t, "products-sync"), 4)
		synced(s.run(t, "products-sync"), 0)
	}},
	"sales-by-day": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		rows := s.same(t, "select day, orders, total, largest from sales_by_day",
			"select date_trunc('day', placed_at, 'UTC') as day, count(*) as orders, sum(total) as total, max(total) as largest from order_totals where status not in ('cart', 'cancelled') group by 1")
		equal(t, "rows written", run.Counts.Written, rows)
	}},
	"addresses": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		rows := s.same(t, "select id, country, address_street, address_zip from addresses",
			"select id, country, address->>'street' as address_street, address->>'zip' as address_zip from customers where address is not null")
		equal(t, "rows written", run.Counts.Written, rows)
		s.exec(t, "alter table customers add column vat_id text; update customers set vat_id = 'x' where id in (select id from addresses order by id limit 2)")
		run = s.run(t, "addresses")
		equal(t, "rows that were put aside", run.Counts.Rejected, 2)
		equal(t, "rows written of the others", run.Counts.Written, rows-2)
		if got := call(t, s.env, "", "pipeline", "dead", "list", "addresses").stdout; strings.Count(got, "schema at column vat_id") != 2 {
			t.Errorf("dead are\n%s", got)
		}
	}},
	"supplier-prices": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		equal(t, "lines that are no row", run.Counts.Rejected, 1)
		equal(t, "rows written", run.Counts.Written, 18)
		equal(t, "rows", s.number(t, "select count(*) from supplier_prices where price = 1.50 and valid_from = '2026-01-01'"), 18)
		s.run(t, "supplier-prices")
		equal(t, "rows after another run", s.number(t, "select count(*) from supplier_prices"), 18)
	}},
	"product-reviews": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		equal(t, "rows written", run.Counts.Written, 9)
		equal(t, "rows", s.number(t, "select count(*) from product_reviews where stars between 1 and 5 and at = '2026-01-05 09:00+00'"), 9)
	}},
	"orders-of-country": {
		params: func(*testing.T, *shopAndLake) []string { return []string{"--param", "country=FR"} },
		ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
			by, all, _ := s.rows(t.Context(), t, "countries/FR/", "country")
			equal(t, "rows in the lake", all, s.number(t, "select count(*) from orders o join customers c on c.id = o.customer_id where c.country = 'FR'"))
			equal(t, "rows of that country", by["FR"], all)
			equal(t, "rows written", run.Counts.Written, all)
			if got := call(t, s.env, "", "pipeline", "run", "orders-of-country", "--param", "country=../x"); got.exit != exitUsage || !strings.Contains(got.stderr, "country") {
				t.Errorf("a country that leads elsewhere: exit %d, %s", got.exit, got.stderr)
			}
		},
	},
	"nightly-stock": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		by, all, _ := s.rows(t.Context(), t, "reports/stock/", "urgent")
		equal(t, "rows in the lake", all, s.number(t, "select count(*) from products where stock < 20"))
		equal(t, "urgent ones", by["true"], s.number(t, "select count(*) from products where stock < 5"))
		equal(t, "rows written", run.Counts.Written, all)
		info, err := s.api.Pipelines().Get(t.Context(), "nightly-stock", 0)
		if err != nil || info.NextAt.UTC().Hour() != 3 || time.Until(info.NextAt) > 24*time.Hour {
			t.Errorf("%v: it is next run at %v, want three o'clock", err, info.NextAt)
		}
	}},
	"result-to-lake": {
		params: func(t *testing.T, s *shopAndLake) []string {
			job, err := s.api.Client("shop").Defer(t.Context(), sdk.Request{Query: "select id, total from order_totals where total > 1000"})
			if err != nil {
				t.Fatal(err)
			}
			if info, err := job.Wait(t.Context()); err != nil || info.State != sdk.Succeeded {
				t.Fatalf("%v: the job is %+v", err, info)
			}
			return []string{"--param", "job=" + job.ID}
		},
		ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
			by, all, _ := s.rows(t.Context(), t, "results/", "id")
			equal(t, "rows in the lake", all, s.number(t, "select count(*) from order_totals where total > 1000"))
			equal(t, "different rows", int64(len(by)), all)
			equal(t, "rows written", run.Counts.Written, all)
		},
	},
	"scylla-to-lake": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		by, all, objects := s.rows(t.Context(), t, "visits/", "day")
		equal(t, "rows in the lake", all, 270) // a tenth took no time
		equal(t, "rows written", run.Counts.Written, all)
		if fmt.Sprint(by) != "map[2026-02-01:90 2026-02-02:90 2026-02-03:90]" || len(objects) < 3 {
			t.Errorf("the days are %v, in %d objects", by, len(objects))
		}
	}},
	"postgres-to-scylla": {ran: func(t *testing.T, s *shopAndLake, run *sdk.RunInfo) {
		for range 2 {
			var want []string
			rows, err := s.db.Query(t.Context(), "select concat_ws('|', category, name, price, sku, stock) from products")
			if err == nil {
				want, err = pgx.CollectRows(rows, pgx.RowTo[string])
			}
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(want)
			if got := s.texts(t, "SELECT category, name, price, sku, stock FROM web.products"); !slices.Equal(got, want) {
				t.Errorf("there are %d products of %d: %.200q and %.200q", len(got), len(want), got, want)
			}
			equal(t, "rows written", run.Counts.Written, int64(len(want)))
			s.exec(t, "update products set stock = stock + 1 where id <= 10")
			run = s.run(t, "postgres-to-scylla")
		}
	}},
	"scylla-changes-to-postgres": {followed: func(t *testing.T, s *shopAndLake) {
		for i := range 40 {
			s.events.MustExec(t, fmt.Sprintf("INSERT INTO web.carts (owner, item, amount) VALUES ('o%d', %d, 1)", i%4, i), fmt.Sprintf("UPDATE web.carts SET note = 'n%d' WHERE owner = 'o%d' AND item = %d", i, i%4, i))
		}
		s.events.MustExec(t, "DELETE FROM web.carts WHERE owner = 'o0'", "DELETE FROM web.carts WHERE owner = 'o1' AND item > 20", "DELETE FROM web.carts WHERE owner = 'o2' AND item = 2",
			"UPDATE web.carts SET labels = {'x'}, amount = 5 WHERE owner = 'o3' AND item = 3")
		want := s.texts(t, "SELECT owner, item, amount, note FROM web.carts")
		s.eventually(t, "the copy has the carts", func() bool {
			rows, err := s.db.Query(t.Context(), "select owner || '|' || item || '|' || coalesce(amount::text, 'null') || '|' || coalesce(note, 'null') from web_carts")
			if err != nil {
				return false
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			slices.Sort(got)
			return err == nil && slices.Equal(got, want)
		})
		equal(t, "carts", int64(len(want)), 20+5+9+10)
	}},
	"customers-masked": {followed: func(t *testing.T, s *shopAndLake) {
		s.eventually(t, "the copy has the customers", func() bool {
			return s.number(t, "select count(*) from customers c full join customers_masked m using (id) where c.id is null or m.id is null or c.country <> m.country") == 0
		})
		rows := s.number(t, "select count(*) from customers")
		equal(t, "rows without a name or mail address", s.number(t, "select count(*) from customers_masked where name = '***' and email ~ '^[0-9a-f]{64}$'"), rows)
		equal(t, "different customers", s.number(t, "select count(distinct email) from customers_masked"), rows)
		equal(t, "addresses of the network", s.number(t, `select count(*) from customers_masked where last_ip !~ '^\*{4}'`), 0)
		equal(t, "columns that were not chosen", s.number(t, "select count(*) from information_schema.columns where table_name = 'customers_masked' and column_name in ('vat_id', 'address', 'tags')"), 0)
	}},
	"order-changes": {followed: func(t *testing.T, s *shopAndLake) {
		var by map[string]int64
		s.eventually(t, "the lake has the changes of orders", func() bool {
			var all int64
			by, all, _ = s.rows(t.Context(), t, "changes/orders/", "_op")
			return all >= 4045
		})
		if fmt.Sprint(by) != "map[delete:5 insert:30 read:4000 update:10]" {
			t.Errorf("the changes are %v", by)
		}
		days, _, _ := s.rows(t.Context(), t, "changes/orders/", "day")
		equal(t, "rows that were there before", days["before"], 4000)
	}},
	"shop-changes": {followed: func(t *testing.T, s *shopAndLake) {
		var orders, items map[string]int64
		s.eventually(t, "the lake has the changes of both tables", func() bool {
			var n, m int64
			orders, n, _ = s.rows(t.Context(), t, "feed/public.orders/", "_op")
			items, m, _ = s.rows(t.Context(), t, "feed/public.order_items/", "_op")
			return n >= 45 && m >= 70
		})
		if got := fmt.Sprint(orders, items); got != "map[delete:5 insert:30 update:10] map[delete:10 insert:60]" {
			t.Errorf("the changes are %s", got)
		}
	}},
}

func (s *shopAndLake) eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	if err := until(t.Context(), 20*time.Second, func() (bool, error) { return ask(), nil }); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestEveryExampleRuns tests, plans and runs each definition of pipelines/examples
// on the real parts, and judges what came of it.
func TestEveryExampleRuns(t *testing.T) {
	t.Parallel()
	const dir = "../../pipelines/examples"
	files, err := examples.Files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".yaml")
		if _, judged := exampleCases[name]; !judged {
			t.Errorf("what comes of %s is not judged; add it to exampleCases", f.Name())
			continue
		}
		names = append(names, name)
		text, err := examples.Files.ReadFile(f.Name())
		if err != nil || !strings.HasPrefix(string(text), "# ") || !strings.Contains(string(text), "\nname: "+name+"\n") {
			t.Errorf("%v: %s must say first what it is for, and have the name of its pipeline", err, f.Name())
		}
	}
	equal(t, "examples that are judged", int64(len(names)), int64(len(exampleCases)))

	var tests []tested
	got := call(t, nil, "", "pipeline", "--json", "test", "-f", dir, "--param", "country=FR", "--param", "job=0198c2f0-0000-7000-8000-000000000000")
	if err := json.Unmarshal([]byte(got.stdout), &tests); err != nil || got.exit != exitOK {
		t.Fatalf("%v: exit %d\n%s%s", err, got.exit, got.stdout, got.stderr)
	}
	for _, f := range tests {
		if len(f.Tests) == 0 {
			t.Errorf("%s has no tests", f.File)
		}
	}

	s := newShopAndLake(t)
	csv := []string{"sku,price,valid_from"}
	var reviews []string
	for i := range 18 {
		csv = append(csv, fmt.Sprintf("00000000-0000-4000-8000-%012d,1.50,2026-01-01", i))
	}
	for i := range 9 {
		reviews = append(reviews, fmt.Sprintf(`{"id":"r%d","product_id":%d,"stars":%d,"text":"Fine.","at":"2026-01-05T10:00:00+01:00","app":"web"}`, i, i+1, i%5+1))
	}
	s.put(t, "incoming/prices/january.csv", append(csv, csv[1], "00000000-0000-4000-8000-000000000099,free,2026-01-01")...)
	s.put(t, "incoming/reviews/today.ndjson", append(reviews, strings.Replace(reviews[0], `"stars":1`, `"stars":11`, 1))...)
	ok(t, s.env, "cdc", "enable", "-t", "public.orders,public.order_items,public.customers", "--wait", "40s")
	ok(t, s.env, "cdc", "enable", "--client", "events", "-t", "web.carts", "--confidence", "200ms", "--wait", "40s")
	if got := ok(t, s.env, "pipeline", "apply", "-f", dir); strings.Count(got, " created ") != len(names) {
		t.Fatalf("apply: %s", got)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { s.begin(t, name, exampleCases[name]) })
	}
	s.exec(t, exampleWrites)
	for _, name := range names {
		c := exampleCases[name]
		if c.followed == nil {
			continue
		}
		t.Run(name+", once the shop was written to", func(t *testing.T) {
			c.followed(t, s)
			ok(t, s.env, "pipeline", "stop", name)
			got := call(t, s.env, "", "pipeline", "watch", name)
			if _, end := runEvents(t, got.stdout); end == nil || end.State != sdk.RunStopped || end.Counts.Rejected != 0 {
				t.Errorf("it ended as %+v", end)
			}
		})
	}
	s.told(t)
}

// told holds what the metrics and the doctor say of pipelines.
func (s *shopAndLake) told(t *testing.T) {
	line := `athena_pipeline_state{pipeline="sales-by-day",state="succeeded"} 1`
	s.eventually(t, "the metrics have "+line, func() bool {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.api.URL()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(text), line)
	})
	got := call(t, s.env, "", "doctor", "--json", "--data", s.dir)
	var findings []finding
	if err := json.Unmarshal([]byte(got.stdout), &findings); err != nil || got.exit != exitOK {
		t.Fatalf("%v: doctor: exit %d\n%s%s", err, got.exit, got.stdout, got.stderr)
	}
	for _, want := range []finding{
		{Check: "client lake", Verdict: fine, Detail: "its bucket is present"},
		{Check: "pipeline sales-by-day", Verdict: fine, Detail: "succeeded"},
		{Check: "pipeline addresses", Verdict: unwell, Detail: "could not go on"},
	} {
		if !slices.ContainsFunc(findings, func(f finding) bool {
			return f.Check == want.Check && f.Verdict == want.Verdict && strings.Contains(f.Detail, want.Detail)
		}) {
			t.Errorf("the doctor does not say %+v:\n%s", want, got.stdout)
		}
	}
}

// begin plans an example, and runs it to its end or has it follow the shop.
func (s *shopAndLake) begin(t *testing.T, name string, c exampleCase) {
	var params []string
	if c.params != nil {
		params = c.params(t, s)
	}
	var plan sdk.PipelinePlan
	got := call(t, s.env, "", append([]string{"pipeline", "--json", "plan", name, "--level", "connect"}, params...)...)
	if err := json.Unmarshal([]byte(got.stdout), &plan); err != nil || got.exit != exitOK || plan.Verdict != sdk.PlanOK {
		t.Fatalf("%v: plan: exit %d\n%s%s", err, got.exit, got.stdout, got.stderr)
	}
	if c.ran != nil {
		c.ran(t, s, s.run(t, name, params...))
		return
	}
	ok(t, s.env, "pipeline", "start", name)
	s.eventually(t, "it streams", func() bool {
		info, err := s.api.Pipelines().Get(t.Context(), name, 0)
		if err != nil {
			t.Fatal(err)
		}
		return info.LastRun != nil && info.LastRun.State == sdk.RunStreaming
	})
}
