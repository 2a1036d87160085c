package legacy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog/legacy"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// facts are "kind field" of each note.
func facts(e legacy.Entry) map[string]bool {
	set := map[string]bool{}
	for _, n := range e.Notes {
		set[string(n.Kind)+" "+n.Field] = true
	}
	return set
}

// check reads one entry and holds it against a definition and facts.
func check(t *testing.T, e legacy.Entry, definition string, want ...string) {
	t.Helper()
	got := "none"
	if c := e.Client; c != nil {
		got = fmt.Sprintf("%s %s %s", c.Name, c.Lifecycle, c.Connection.(athena.PostgresConn).DSN.Reveal())
		if c.Capabilities != legacy.Granted() || !facts(e)["assumed capabilities"] {
			t.Errorf("%s: capabilities %v, notes %v", e.Name, c.Capabilities, e.Notes)
		}
		if _, err := athena.DecodeClient(mustJSON(t, c)); err != nil {
			t.Errorf("%s: the definition is not valid: %v", e.Name, err)
		}
	}
	if got != definition {
		t.Errorf("%s: got %s, want %s (%v)", e.Name, got, definition, e.Notes)
	}
	have := facts(e)
	for _, w := range want {
		if !have[w] {
			t.Errorf("%s: the report lacks %q: %v", e.Name, w, e.Notes)
		}
	}
	if e.Client == nil != strings.Contains(fmt.Sprint(have), "refused") {
		t.Errorf("%s: client %v, notes %v", e.Name, e.Client, e.Notes)
	}
	if report := string(mustJSON(t, e)); strings.Contains(report, "pl4nted") {
		t.Errorf("%s: the report shows a secret: %s", e.Name, report)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const uri = "postgres://u:pl4nted@h/db"

func TestEntries(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		yaml string
		want string
		says []string
	}{
		"all as it should be": {
			"{client_name: shop, pg_uri: '" + uri + "', is_active: true, is_frozen: false, metadata: {team: checkout}}",
			"shop active " + uri, []string{"carried pg_uri", "carried lifecycle", "carried metadata"}},
		"a variable":                   {"{name: shop, pg_uri_env_var: SHOP_PG}", "shop active env:SHOP_PG", []string{"changed pg_uri_env_var", "assumed lifecycle"}},
		"a variable and a URI":         {"{name: shop, uri: '" + uri + "', pg_uri_env_var: SHOP_PG}", "shop active env:SHOP_PG", []string{"dropped uri"}},
		"a URI that names a variable":  {"{name: shop, uri: '${SHOP_PG}'}", "shop active env:SHOP_PG", []string{"changed uri"}},
		"a URI with a variable within": {"{name: shop, uri: 'postgres://u:${PW}@h/db'}", "shop active postgres://u:${PW}@h/db", []string{"changed uri"}},
		"a URI in keywords":            {"{name: shop, uri: 'host=h user=u password=pl4nted'}", "shop active host=h user=u password=pl4nted", []string{"carried uri"}},
		"a URI in two fields":          {"{name: shop, uri: '" + uri + "', pg_uri: '" + uri + "'}", "shop active " + uri, []string{"dropped uri"}},
		"no URI":                       {"{name: shop}", "none", []string{"refused pg_uri"}},
		"an empty URI":                 {"{name: shop, uri: '', pg_uri_env_var: null}", "none", []string{"refused pg_uri"}},
		"a URI of something else":      {"{name: shop, uri: 'mysql://u:pl4nted@h/db'}", "none", []string{"refused uri"}},
		"a URI that is a list":         {"{name: shop, uri: [pl4nted]}", "none", []string{"refused uri"}},
		"a variable that cannot be":    {"{name: shop, pg_uri_env_var: 'a b'}", "none", []string{"refused pg_uri_env_var"}},
		"frozen":                       {"{name: shop, uri: '" + uri + "', is_active: 1, is_frozen: 'yes'}", "shop frozen " + uri, nil},
		"inactive wins over frozen":    {"{name: shop, uri: '" + uri + "', is_active: false, is_frozen: true}", "shop inactive " + uri, []string{"dropped is_frozen"}},
		"a flag that is no flag":       {"{name: shop, uri: '" + uri + "', is_active: maybe}", "none", []string{"refused is_active"}},
		"a name that must change":      {"{name: 'Shop EU.1', uri: '" + uri + "'}", "shop-eu-1 active " + uri, []string{"changed client_name"}},
		"a name that begins with 7":    {"{name: '7eleven', uri: '" + uri + "'}", "c-7eleven active " + uri, []string{"changed client_name"}},
		"a name that is too long":      {"{name: " + strings.Repeat("x", 80) + ", uri: '" + uri + "'}", strings.Repeat("x", 63) + " active " + uri, []string{"changed client_name"}},
		"a name of nothing":            {"{name: '--', uri: '" + uri + "'}", "none", []string{"refused client_name"}},
		"no name":                      {"{uri: '" + uri + "'}", "none", []string{"refused client_name"}},
		"unknown fields are named":     {"{name: shop, uri: '" + uri + "', colour: red}", "shop active " + uri, []string{"dropped colour"}},
		"a pool size":                  {"{name: shop, uri: '" + uri + "', max_connections: 12}", "shop active " + uri, []string{"carried max_connections"}},
		"a pool size of none":          {"{name: shop, uri: '" + uri + "', max_connections: 0}", "shop active " + uri, []string{"dropped max_connections"}},
		"facts in metadata are kept and not read": {
			"{name: shop, uri: '" + uri + "', metadata: {engine: scylla, hosts: [a], s3_bucket: b, password: x, note: y}}",
			"shop active " + uri, []string{"kept metadata.engine", "kept metadata.hosts", "kept metadata.s3_bucket", "kept metadata.password"}},
		"metadata as text":            {"{name: shop, uri: '" + uri + "', metadata: '{\"engine\": \"s3\"}'}", "shop active " + uri, []string{"kept metadata.engine"}},
		"metadata that is no object":  {"{name: shop, uri: '" + uri + "', metadata: [1]}", "shop active " + uri, []string{"kept metadata"}},
		"a description":               {"{name: shop, uri: '" + uri + "', description: the shop}", "shop active " + uri, []string{"kept description"}},
		"name and string in one line": {"{shop: '" + uri + "'}", "shop active " + uri, nil},
		"fields below the name":       {"{shop: {uri: '" + uri + "', is_frozen: true}}", "shop frozen " + uri, nil},
		"a list in the list":          {"[1, 2]", "none", []string{"refused "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entries, err := legacy.ReadYAML("config.yaml", []byte("port: 1\npostgres_clients:\n  - "+test.yaml+"\n"))
			if err != nil || len(entries) != 1 {
				t.Fatalf("got %v, %v", entries, err)
			}
			check(t, entries[0], test.want, test.says...)
			if entries[0].Source != "config.yaml:3" {
				t.Errorf("source %s", entries[0].Source)
			}
		})
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	entries, err := legacy.ReadYAML("c.yaml", []byte(`
base: &base {uri: "postgres://u:pl4nted@h/base", is_frozen: true}
postgres_clients:
  shop: "postgres://u:pl4nted@h/db"
  lake: *base
  SHOP: {uri: "postgres://u:pl4nted@h/other"}
  other: {name: elsewhere, pg_uri_env_var: $OTHER_PG}
`))
	if err != nil || len(entries) != 4 {
		t.Fatalf("got %v, %v", entries, err)
	}
	check(t, entries[0], "shop active "+uri)
	check(t, entries[1], "lake frozen postgres://u:pl4nted@h/base")
	check(t, entries[2], "none", "changed client_name", "refused client_name")
	check(t, entries[3], "other active env:OTHER_PG", "dropped name")

	if entries, err := legacy.ReadYAML("c.yaml", []byte("postgres_clients:\n")); err != nil || len(entries) != 0 {
		t.Errorf("an empty section gave %v, %v", entries, err)
	}
	for name, text := range map[string]string{
		"no section":             "clients: []",
		"nothing":                "",
		"a list as the document": "- 1",
		"a section of text":      "postgres_clients: shop",
		"bad YAML":               "postgres_clients: [",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := legacy.ReadYAML("c.yaml", []byte(text))
			if athena.CodeOf(err) != athena.CodeInvalidRequest || !strings.Contains(err.Error(), "c.yaml") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReadTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := pgtest.DSN(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `
		CREATE TABLE athena_clients (client_name text, pg_uri text, pg_uri_env_var text,
			is_active boolean, is_frozen boolean, metadata jsonb);
		INSERT INTO athena_clients VALUES
			('a-shop', 'postgres://u:pl4nted@h/db', NULL, true, false, '{"team": "checkout"}'),
			('b-lake', NULL, 'LAKE_PG', true, true, '{"engine": "s3"}'),
			('c-old', 'postgres://u:pl4nted@h/old', '', false, false, NULL),
			('d-none', NULL, NULL, true, false, '{}'),
			(NULL, 'postgres://u:pl4nted@h/x', NULL, true, false, '{}');
		CREATE SCHEMA old; CREATE TABLE old."odd Name" (client_name text, pg_uri text);
		INSERT INTO old."odd Name" VALUES ('x', 'postgres://u:pl4nted@h/db');`); err != nil {
		t.Fatal(err)
	}
	entries, err := legacy.ReadTable(ctx, dsn, "")
	if err != nil || len(entries) != 5 {
		t.Fatalf("got %v, %v", entries, err)
	}
	check(t, entries[0], "a-shop active "+uri, "carried metadata")
	check(t, entries[1], "b-lake frozen env:LAKE_PG", "kept metadata.engine")
	check(t, entries[2], "c-old inactive postgres://u:pl4nted@h/old")
	check(t, entries[3], "none", "refused pg_uri")
	check(t, entries[4], "none", "refused client_name")

	entries, err = legacy.ReadTable(ctx, dsn, "old.odd Name")
	if err != nil || len(entries) != 1 {
		t.Fatalf("got %v, %v", entries, err)
	}
	check(t, entries[0], "x active "+uri, "assumed lifecycle")

	_, err = legacy.ReadTable(ctx, dsn, `nope"; DROP TABLE athena_clients; --`)
	if athena.CodeOf(err) != athena.CodeQueryFailed || athena.AsError(err).Details["sqlstate"] != "42P01" {
		t.Errorf("a table that is not there gave %v", err)
	}
	_, err = legacy.ReadTable(ctx, "postgres://u:pl4nted@127.0.0.1:1/db", "")
	if athena.CodeOf(err) != athena.CodeBackendUnavailable || strings.Contains(err.Error(), "pl4nted") {
		t.Errorf("a database that is not there gave %v", err)
	}
	_, err = legacy.ReadTable(ctx, "postgres://u:pl4nted@h:x/db", "")
	if athena.CodeOf(err) != athena.CodeInvalidRequest || strings.Contains(err.Error(), "pl4nted") {
		t.Errorf("a connection string that is none gave %v", err)
	}
}

func FuzzReadYAML(f *testing.F) {
	f.Add("postgres_clients: [{shop: 'postgres://h/db'}]")
	f.Add("postgres_clients: {a: {uri: 'host=h', metadata: '{\"x\":1}', is_active: 0}}")
	f.Add("postgres_clients: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := legacy.ReadYAML("c.yaml", []byte(text))
		if err != nil {
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatal(err)
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range entries {
			if e.Client == nil {
				continue
			}
			if err := athena.CheckName(e.Client.Name); err != nil || seen[e.Client.Name] || e.Client.Lifecycle == "" {
				t.Fatalf("%+v: %v", e.Client, err)
			}
			seen[e.Client.Name] = true
		}
	})
}
