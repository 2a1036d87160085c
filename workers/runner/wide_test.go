package runner_test

import (
	"crypto/md5"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// wide adds the client wide, which stands for the double of a ScyllaDB with the
// keyspace ks. What is seen here is seen on the double, and on no ScyllaDB.
func (d *deployment) wide() *scyllatest.Cluster {
	d.t.Helper()
	c := scyllatest.Start(d.t)
	c.MustExec(d.t, "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}")
	if _, err := d.catalog.Put(d.t.Context(), &athena.Client{
		Name: "wide", Lifecycle: athena.Active, Connection: athena.ScyllaConn{Hosts: c.Hosts(), Keyspace: "ks"},
		Capabilities: athena.Allow(athena.GatewayQuery, athena.CDC, athena.PipelineSource, athena.PipelineSink),
	}, catalog.Absent); err != nil {
		d.t.Fatal(err)
	}
	return c
}

// cells are the rows of a statement as texts, sorted.
func cells(t *testing.T, c *scyllatest.Cluster, cql string) []string {
	t.Helper()
	_, rows, err := c.Rows(cql)
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

func TestATableGoesToTheDouble(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	c := d.wide()
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), paid boolean, note text);
		INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'new' END, i * 1.5, i % 2 = 0, CASE WHEN i % 5 > 0 THEN 'n' || i END FROM generate_series(1, 5000) i; ANALYZE`)
	d.config.PartBytes = 64 << 10
	d.work("one")
	d.work("two")
	// Nodes that are overloaded now and then, and answers that are lost, are none of the run's business.
	overloaded := c.Fail(scyllatest.Containing(`INSERT INTO "ks"."orders"`), scyllatest.Overloaded(), 5)
	lost := c.Fail(scyllatest.Containing(`INSERT INTO "ks"."orders"`), scyllatest.WriteTimeout("SIMPLE").After(), 5)
	unknown := c.Fail(scyllatest.Containing(`INSERT INTO "ks".athena_checkpoints`), scyllatest.CASUnknown().After(), 2)
	const definition = `
source: {client: shop, table: public.orders}
sink: {client: wide, table: ks.orders, mode: upsert, create: true}
parallel: 4
`
	r := d.submit(runs.Batch, definition)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 5000 || r.Totals.Written != 5000 || r.Totals.Rejected != 0 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	if overloaded() != 5 || lost() != 5 || unknown() == 0 {
		t.Errorf("the faults came %d, %d, %d times", overloaded(), lost(), unknown())
	}
	same := func() {
		t.Helper()
		want := strings.Split(one[string](t, d.shop, `SELECT string_agg(id || '|' || coalesce(note, 'null') || '|' || initcap(paid::text) || '|' || status || '|' || total, E'\n') FROM orders`), "\n")
		slices.Sort(want)
		if got := cells(t, c, "SELECT id, note, paid, status, total FROM ks.orders"); !slices.Equal(got, want) {
			t.Errorf("the copy has %d rows, the source %d: %.200q and %.200q", len(got), len(want), got, want)
		}
	}
	same()
	// Once more, with other values: the later run counts.
	exec(t, d.shop, `UPDATE orders SET note = NULL, status = 'old' WHERE id <= 100; DELETE FROM orders WHERE id > 5000`)
	again := d.state(d.submit(runs.Batch, definition).ID, runs.Succeeded)
	if again.Totals.Written != 5000 {
		t.Errorf("the totals are %+v", again.Totals)
	}
	same()
}

func TestATableOfTheDoubleGoesToTheLake(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	c := d.wide()
	c.MustExec(t, "CREATE TABLE ks.events (p int, c timeuuid, body text, tags set<text>, PRIMARY KEY (p, c))")
	for p := range 50 {
		for n := range 20 {
			c.MustExec(t, fmt.Sprintf("INSERT INTO ks.events (p, c, body, tags) VALUES (%d, %08x-0000-11ee-8000-000000000000, 'event %d', {'a', 'b%d'})", p, n, p*20+n, n))
		}
	}
	d.config.PartBytes = 2 << 10
	d.work("one")
	d.work("two")
	c.Fail(func(r scyllatest.Request) bool { return r.Op == "EXECUTE" && strings.Contains(r.CQL, "token(") }, scyllatest.ReadTimeout(), 3)
	r := d.submit(runs.Batch, `
source: {client: wide, table: ks.events}
sink: {client: lake, objects: {prefix: events/, format: ndjson}}
parallel: 4
`)
	r = d.state(r.ID, runs.Succeeded)
	if r.Totals.Read != 1000 || r.Totals.Written != 1000 {
		t.Errorf("the totals are %+v", r.Totals)
	}
	lines := d.ndjson("events/")
	slices.Sort(lines)
	if n := len(slices.Compact(lines)); n != 1000 || !strings.Contains(lines[0], `"tags":["a","b0"]`) {
		t.Errorf("%d different rows are in the lake, as %s", n, lines[0])
	}
	if n := len(d.objects("events/")); n < 8 {
		t.Errorf("the table was read in %d parts", n)
	}
}

func TestChangesOfTheDoubleGoToPostgreSQL(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	c := d.wide()
	c.MustExec(t, "CREATE TABLE ks.carts (owner text, item int, n int, note text, shared text static, tags set<text>, PRIMARY KEY (owner, item)) WITH cdc = {'enabled': true}")
	c.MustExec(t, "INSERT INTO ks.carts (owner, item, n) VALUES ('old', 1, 7)", "INSERT INTO ks.carts (owner, item, n) VALUES ('old', 2, 8)")
	d.follow(changefeed.Capture{
		Client: "wide", Tables: []driver.TableName{{Schema: "ks", Table: "carts"}}, Confidence: athena.Duration(200 * time.Millisecond),
	})
	stop := d.work("one")
	definition := `
name: carts
source: {client: wide, cdc: {tables: [ks.carts]}}
transforms: [{drop: [tags, shared]}]
sink: {client: copy, table: public.carts, create: true}
errors: {max_rate: 0.5}
`
	r := d.submit(runs.Stream, definition)
	settled := func(want string) {
		t.Helper()
		await(t, "the copy", func() string {
			var n *string
			err := d.copy.QueryRow(t.Context(), `SELECT string_agg(owner || item || ':' || coalesce(n::text, '-') || coalesce(note, ''), ' ' ORDER BY owner COLLATE "C", item) FROM carts`).Scan(&n)
			switch {
			case err != nil:
				return err.Error()
			case n == nil && want == "" || n != nil && *n == want:
				return ""
			case n == nil:
				return "it is empty"
			}
			return *n
		})
	}
	settled("old1:7 old2:8")
	c.MustExec(t,
		"INSERT INTO ks.carts (owner, item, n) VALUES ('a', 1, 1)", "INSERT INTO ks.carts (owner, item, note) VALUES ('a', 1, 'x')", // what is not named stays
		"UPDATE ks.carts SET note = 'y' WHERE owner = 'a' AND item = 2", // a row is made
		"UPDATE ks.carts SET tags = tags + {'t'} WHERE owner = 'a' AND item = 2",
		"UPDATE ks.carts SET shared = 's' WHERE owner = 'a'",
		"DELETE FROM ks.carts WHERE owner = 'old' AND item < 2",
	)
	for i := range 10 {
		c.MustExec(t, fmt.Sprintf("INSERT INTO ks.carts (owner, item, n) VALUES ('b', %d, %d)", i, i))
	}
	c.MustExec(t, "DELETE FROM ks.carts WHERE owner = 'b' AND item > 1 AND item <= 8", "DELETE FROM ks.carts WHERE owner = 'b' AND item = 9")
	settled("a1:1x a2:-y b0:0 b1:1 old2:8")
	// The worker is gone, and another goes on where it was.
	stop()
	c.MustExec(t, "DELETE FROM ks.carts WHERE owner = 'b'", "UPDATE ks.carts SET n = null WHERE owner = 'a' AND item = 1")
	d.work("two")
	settled("a1:-x a2:-y old2:8")
	dead, err := d.store.ListRejected(t.Context(), r.PipelineID, 1, 10)
	if err != nil || len(dead) != 1 || !strings.Contains(dead[0].Reason, "static columns") {
		t.Errorf("dead are %+v, %v", dead, err)
	}
}

// Changes of PostgreSQL, kept by key in a real Cassandra, while workers come and go.
func TestChangesGoToCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	keyspace := server.Keyspace(t)
	d := deploy(t)
	if _, err := d.catalog.Put(t.Context(), &athena.Client{
		Name: "wide", Lifecycle: athena.Active, Connection: server.Conn(keyspace), Capabilities: athena.Allow(athena.GatewayQuery, athena.PipelineSink),
	}, catalog.Absent); err != nil {
		t.Fatal(err)
	}
	// A large value that an update leaves alone is not logged.
	exec(t, d.shop, `CREATE TABLE items (id int PRIMARY KEY, name text, big text); ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
		INSERT INTO items SELECT i, 'item ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 500) i`)
	d.capture("items")
	stop := d.work("one")
	d.submit(runs.Stream, `
name: items
source: {client: shop, cdc: {tables: [public.items]}}
sink: {client: wide, table: `+keyspace+`.items, create: true}
`)
	session := server.Session(t)
	settled := func() {
		t.Helper()
		want := one[string](t, d.shop, `SELECT count(*) || ' ' || md5(coalesce(string_agg(id || name || big, ',' ORDER BY id), '')) FROM items`)
		await(t, "the copy", func() string {
			var id int
			var name, big string
			rows := map[int]string{}
			iter := session.Query("SELECT id, name, big FROM " + keyspace + ".items").Iter()
			for iter.Scan(&id, &name, &big) {
				rows[id] = fmt.Sprint(id, name, big)
			}
			if err := iter.Close(); err != nil {
				return err.Error()
			}
			var all []string
			for _, id := range slices.Sorted(maps.Keys(rows)) {
				all = append(all, rows[id])
			}
			if got := fmt.Sprintf("%d %x", len(rows), md5.Sum([]byte(strings.Join(all, ",")))); got != want {
				return got + ", want " + want
			}
			return ""
		})
	}
	settled()
	exec(t, d.shop, `UPDATE items SET name = 'renamed ' || id WHERE id % 3 = 0; DELETE FROM items WHERE id % 7 = 0; UPDATE items SET id = id + 10000 WHERE id % 11 = 0; INSERT INTO items SELECT i, 'new', 'b' FROM generate_series(601, 700) i`)
	settled()
	stop()
	exec(t, d.shop, `UPDATE items SET big = 'small' WHERE id % 2 = 0; DELETE FROM items WHERE id > 10000`)
	d.work("two")
	settled()
	exec(t, d.shop, `TRUNCATE items; INSERT INTO items VALUES (1, 'after', 'x')`)
	settled()
}

// From one table of the double to another all writes keep their own times: what was
// written over, deleted or set to end is so in the copy.
func TestChangesOfTheDoubleKeepTheirTimes(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	c := d.wide()
	const columns = "(p int, c int, v text, w int, shared text static, PRIMARY KEY (p, c))"
	c.MustExec(t, "CREATE TABLE ks.wide_source "+columns+" WITH cdc = {'enabled': true}", "CREATE TABLE ks.wide_copy "+columns)
	for i := range 20 {
		c.MustExec(t, fmt.Sprintf("INSERT INTO ks.wide_source (p, c, v, w) VALUES (%d, %d, 'before', %d)", i%4, i, i))
	}
	d.follow(changefeed.Capture{
		Client: "wide", Tables: []driver.TableName{{Schema: "ks", Table: "wide_source"}}, Confidence: athena.Duration(200 * time.Millisecond),
	})
	// These are read by the pipeline when it begins, and later than they were made.
	c.MustExec(t, "UPDATE ks.wide_source SET v = 'soon' WHERE p = 1 AND c = 1", "DELETE FROM ks.wide_source WHERE p = 2", "INSERT INTO ks.wide_source (p, c, v) VALUES (2, 2, 'again')")
	stop := d.work("one")
	r := d.submit(runs.Stream, `
name: wide
source: {client: wide, cdc: {tables: [ks.wide_source]}}
sink: {client: wide, table: ks.wide_copy}
`)
	settled := func() {
		t.Helper()
		await(t, "the copy", func() string {
			const all = "SELECT p, c, v, w, shared FROM ks."
			want, got := cells(t, c, all+"wide_source"), cells(t, c, all+"wide_copy")
			if slices.Equal(got, want) {
				return ""
			}
			return strings.Join(got, " ") + "; want " + strings.Join(want, " ")
		})
	}
	settled()
	c.MustExec(t,
		"UPDATE ks.wide_source SET v = 'changed', w = null WHERE p = 0 AND c = 0", "UPDATE ks.wide_source SET shared = 's' WHERE p = 0", "UPDATE ks.wide_source SET v = 'made' WHERE p = 9 AND c = 9",
		"DELETE FROM ks.wide_source WHERE p = 3 AND c > 7 AND c < 19", "DELETE FROM ks.wide_source WHERE p = 1 AND c = 5", "INSERT INTO ks.wide_source (p, c, v) VALUES (5, 5, 'ends') USING TTL 3000")
	settled()
	stop()
	d.work("two")
	c.MustExec(t, "DELETE FROM ks.wide_source WHERE p = 0", "INSERT INTO ks.wide_source (p, c, v, w) VALUES (0, 0, 'last', 1)")
	settled()
	for _, row := range []string{"p = 9 AND c = 9", "p = 0 AND c = 0", "p = 5 AND c = 5"} {
		want, got := cells(t, c, "SELECT writetime(v) FROM ks.wide_source WHERE "+row), cells(t, c, "SELECT writetime(v) FROM ks.wide_copy WHERE "+row)
		if !slices.Equal(got, want) {
			t.Errorf("%s was written at %v, and its copy at %v", row, want, got)
		}
	}
	if left := cells(t, c, "SELECT ttl(v) FROM ks.wide_copy WHERE p = 5 AND c = 5"); len(left) != 1 || len(left[0]) != 4 || left[0] > "3000" {
		t.Errorf("a value that ends is left %v seconds", left)
	}
	if dead, err := d.store.ListRejected(t.Context(), r.PipelineID, 1, 10); err != nil || len(dead) != 0 {
		t.Errorf("dead are %+v, %v", dead, err)
	}
}
