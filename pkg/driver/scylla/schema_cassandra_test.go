package scylla_test

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

func onCassandra(t *testing.T) (*cassandratest.Server, *scylla.Backend, string) {
	t.Helper()
	server := cassandratest.Start(t)
	keyspace := server.Keyspace(t)
	b, err := scylla.Open(t.Context(), server.Conn(keyspace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(t.Context()) })
	return server, b, keyspace
}

func TestSchemaOnCassandra(t *testing.T) {
	t.Parallel()
	server, b, ks := onCassandra(t)
	server.Exec(t,
		`CREATE TYPE `+ks+`.geo (lat double, lon double)`,
		`CREATE TYPE `+ks+`."Address" (street text, at frozen<geo>)`,
		`CREATE TABLE `+ks+`."Orders" (shop text, day date, at timeuuid, "Total" decimal, owner text static, "to" frozen<"Address">, tags set<text>, PRIMARY KEY ((shop, day), at, "Total"))
			WITH CLUSTERING ORDER BY (at DESC, "Total" ASC) AND comment = 'what was sold'`,
		`CREATE INDEX by_owner ON `+ks+`."Orders" ("to")`,
		`CREATE TABLE `+ks+`.simple (id int PRIMARY KEY, v text)`,
	)
	columns, err := b.Columns(t.Context(), ks, "Orders")
	if err != nil {
		t.Fatal(err)
	}
	want := []driver.ColumnInfo{
		{Name: "shop", Position: 1, Type: "text", PrimaryKey: 1, Kind: "partition_key"},
		{Name: "day", Position: 2, Type: "date", PrimaryKey: 2, Kind: "partition_key"},
		{Name: "at", Position: 3, Type: "timeuuid", PrimaryKey: 3, Kind: "clustering", Order: "desc"},
		{Name: "Total", Position: 4, Type: "decimal", PrimaryKey: 4, Kind: "clustering", Order: "asc"},
		{Name: "owner", Position: 5, Type: "text", Nullable: true, Kind: "static"},
		{Name: "tags", Position: 6, Type: "set<text>", Nullable: true, Kind: "regular"},
		{Name: "to", Position: 7, Type: `frozen<"Address">`, Nullable: true, Kind: "regular", UserTypes: []string{
			"CREATE TYPE " + ks + ".geo (lat double, lon double)", "CREATE TYPE " + ks + `."Address" (street text, at frozen<geo>)`}},
	}
	if !reflect.DeepEqual(columns, want) {
		t.Errorf("the columns are\n%+v, want\n%+v", columns, want)
	}
	rows, err := b.Query(t.Context(), driver.Statement{Text: `SELECT * FROM "Orders"`})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for i, c := range rows.Columns() {
		if i >= len(want) || c.Name != want[i].Name {
			t.Errorf("SELECT * gives %v, and the columns are told in another order", rows.Columns())
			break
		}
	}
	const key = `PRIMARY KEY ((shop, day), at, "Total") WITH CLUSTERING ORDER BY (at DESC, "Total" ASC)`
	constraints, err := b.Constraints(t.Context(), ks, "Orders")
	if err != nil || len(constraints) != 1 || constraints[0].Definition != key || !slices.Equal(constraints[0].Columns, []string{"shop", "day", "at", "Total"}) {
		t.Errorf("%+v, %v", constraints, err)
	}
	indexes, err := b.Indexes(t.Context(), ks, "Orders")
	if err != nil || len(indexes) != 2 || indexes[0].Definition != key || indexes[1].Name != "by_owner" || !strings.HasPrefix(indexes[1].Definition, "CREATE INDEX by_owner ON "+ks+`."Orders" (`) {
		t.Errorf("%+v, %v", indexes, err)
	}
	tables, err := b.Tables(t.Context(), "")
	if err != nil || !slices.Contains(tables, driver.Table{Schema: ks, Name: "Orders", Kind: "table", EstimatedRows: -1, Comment: "what was sold"}) {
		t.Errorf("%+v, %v", tables, err)
	}
	for _, table := range tables {
		if strings.HasPrefix(table.Schema, "system") {
			t.Errorf("%+v is the cluster's own", table)
		}
	}
	if _, err := b.Columns(t.Context(), ks, "orders"); athena.CodeOf(err) != athena.CodeNotFound {
		t.Errorf("%v, want not_found: names keep their case", err)
	}
}

func TestCountOnCassandra(t *testing.T) {
	t.Parallel()
	server, b, ks := onCassandra(t)
	server.Exec(t, `CREATE TABLE `+ks+`."Wide" (p int, "Q" text, c int, PRIMARY KEY ((p, "Q"), c))`)
	const partitions, each = 40, 25
	for p := range partitions {
		batch := "BEGIN UNLOGGED BATCH "
		for c := range each {
			batch += `INSERT INTO ` + ks + `."Wide" (p, "Q", c) VALUES (` + strconv.Itoa(p) + `, 'x', ` + strconv.Itoa(c) + `); `
		}
		if _, err := all(t, b, batch+"APPLY BATCH"); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.Count(t.Context(), ks, "Wide", time.Minute); err != nil || n != partitions*each {
		t.Errorf("%d, %v; want %d", n, err, partitions*each)
	}
	if n, err := b.Count(t.Context(), ks, "Wide", time.Nanosecond); athena.CodeOf(err) != athena.CodeTimeout {
		t.Errorf("%d, %v; want a timeout", n, err)
	}
}

func TestIdentityOnCassandra(t *testing.T) {
	t.Parallel()
	_, b, _ := onCassandra(t)
	id, err := b.Identity(t.Context())
	if err != nil || id.Product != "Apache Cassandra" || id.Version != cassandratest.Version || id.Facts["partitioner"] != "Murmur3Partitioner" || id.Facts["nodes"] != "1" {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestProvisionOnCassandra(t *testing.T) {
	t.Parallel()
	server, b, ks := onCassandra(t)
	for _, p := range []driver.Provision{{Kind: "schema", Name: "x"}, {Kind: "keyspace"}, {Kind: "keyspace", Name: `a"b`}, {Kind: "keyspace", Name: strings.Repeat("x", 49)}} {
		if _, err := b.Provision(t.Context(), p); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%+v: %v, want invalid_request", p, err)
		}
	}
	name := "Made_" + ks
	if done, err := b.Provision(t.Context(), driver.Provision{Kind: "keyspace", Name: name}); err != nil || !done.Created {
		t.Fatalf("%+v, %v", done, err)
	}
	t.Cleanup(func() { server.Exec(t, `DROP KEYSPACE "`+name+`"`) })
	rows, err := all(t, b, `SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?`, `"`+name+`"`)
	if err != nil || len(rows) != 1 || !strings.Contains(rows[0], "NetworkTopologyStrategy") || !strings.Contains(rows[0], `"datacenter1":"1"`) {
		t.Errorf("%v, %v; want one copy in the one datacenter of one node", rows, err)
	}
}

func TestConditionsAndBatchesOnCassandra(t *testing.T) {
	t.Parallel()
	server, b, ks := onCassandra(t)
	server.Exec(t, `CREATE TABLE `+ks+`.items (id int PRIMARY KEY, name text, tags list<text>)`)
	for _, want := range []string{`{"[applied]":true}`, `{"[applied]":false,"id":1,"name":"a","tags":null}`} {
		if rows, err := all(t, b, `INSERT INTO items (id, name) VALUES (?, ?) IF NOT EXISTS`, `1`, `"a"`); err != nil || len(rows) != 1 || rows[0] != want {
			t.Errorf("%v, %v; want %s", rows, err, want)
		}
	}
	if _, err := all(t, b, `begin unlogged batch insert into items (id, name) values (?, ?); update items set tags = tags + ? where id = ?; apply batch -- done`, `2`, `"b"`, `["x"]`, `2`); err != nil {
		t.Fatal(err)
	}
	if rows, err := all(t, b, `SELECT name, tags FROM items WHERE id IN ? LIMIT ?`, `[2, 3]`, `5`); err != nil || len(rows) != 1 || rows[0] != `{"name":"b","tags":["x"]}` {
		t.Errorf("%v, %v", rows, err)
	}
	at := time.UnixMicro(1_700_000_000_123_456)
	r, err := b.Query(t.Context(), driver.Statement{Text: `BEGIN BATCH INSERT INTO items (id, name) VALUES (3, 'c'); APPLY BATCH`, WriteTime: at})
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := all(t, b, `SELECT writetime(name) AS at, ttl(name) AS ttl FROM items WHERE id = 3`); err != nil || rows[0] != `{"at":1700000000123456,"ttl":null}` {
		t.Errorf("%v, %v; want the time of the statement", rows, err)
	}
	for cql, want := range map[string]string{
		`SELECT nothing FROM items`: "INVALID", `CREATE TABLE items (id int PRIMARY KEY)`: "ALREADY_EXISTS", `SELEC`: "SYNTAX_ERROR",
	} {
		_, err := all(t, b, cql)
		if f := b.Classify(err); f.Details["cql_code"] != want || f.NoEffect {
			t.Errorf("%s: %+v, want the code %s", cql, f, want)
		}
	}
}
