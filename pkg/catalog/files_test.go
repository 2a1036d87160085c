package catalog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/mirror/mirrortest"
)

const shopYAML = `# The shop's own database.
client_name: shop
engine: postgres
lifecycle: active
capabilities: {gateway_query: true, schema_read: true}
connection:
  dsn: env:SHOP_DSN
  max_conns: 4
limits:
  max_running: 2
  statement_timeout: 30s
metadata:
  since: 2024-05-01
  owners: [ann, bob]
`

func TestLoad(t *testing.T) {
	t.Parallel()
	list, err := catalog.Load("x.yaml", []byte(shopYAML+"---\n"+strings.Replace(shopYAML, "client_name: shop", "client_name: lake", 1)+"---\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "shop" || list[1].Name != "lake" {
		t.Fatalf("loaded %v", list)
	}
	c := list[0]
	if c.Limits.MaxRunning != 2 || c.Limits.StatementTimeout.String() != "30s" || !c.Capabilities.Has(athena.SchemaRead) ||
		dsn(c) != "env:SHOP_DSN" || fmt.Sprint(c.Metadata["owners"]) != "[ann bob]" {
		t.Errorf("loaded %+v", c)
	}

	list, err = catalog.Load("x.json", []byte("{\n\t\"client_name\": \"shop\", \"engine\": \"postgres\",\n\t\"lifecycle\": \"frozen\", \"connection\": {\"dsn\": \"env:X\"}}\n"))
	if err != nil || len(list) != 1 || list[0].Lifecycle != athena.Frozen {
		t.Errorf("loaded %v, %v", list, err)
	}
}

func TestLoadNamesFileAndLine(t *testing.T) {
	t.Parallel()
	with := func(old, new string) string {
		if !strings.Contains(shopYAML, old) {
			t.Fatalf("no %q to replace", old)
		}
		return strings.Replace(shopYAML, old, new, 1)
	}
	for name, test := range map[string]struct {
		file, text, want string
	}{
		"an unknown field":                 {"c.yaml", with("lifecycle: active", "lifecycle: active\nlifcycle: frozen"), `c.yaml:5: unknown field "lifcycle"`},
		"an unknown field of a connection": {"c.yaml", with("max_conns", "max_cons"), `c.yaml:8: unknown field "connection.max_cons"`},
		"an unknown capability":            {"c.yaml", with("schema_read", "schema_reed"), `c.yaml:5: unknown capability "schema_reed"`},
		"an unknown field of limits":       {"c.yaml", with("max_running", "max_runing"), `c.yaml:10: unknown field "limits.max_runing"`},
		"a value out of range":             {"c.yaml", with("max_running: 2", "max_running: 2000"), `c.yaml:10: limits.max_running`},
		"a wrong type":                     {"c.yaml", with("max_conns: 4", "max_conns: four"), `c.yaml:8: connection.max_conns`},
		"a missing field":                  {"c.yaml", with("lifecycle: active\n", ""), `c.yaml:2: lifecycle is missing`},
		"bad YAML":                         {"c.yaml", with("engine: postgres", "engine: [postgres"), `c.yaml:`},
		"a key given twice":                {"c.yaml", with("engine: postgres", "engine: postgres\nengine: s3"), `c.yaml:4: not valid YAML: mapping key "engine" already defined`},
		"a list":                           {"c.yaml", "\n- client_name: shop\n", `c.yaml:2: a client definition must be a mapping`},
		"a key that is no string":          {"c.yaml", with("owners:", "7:"), `c.yaml:2: the definition has something that JSON does not`},
		"the second document":              {"c.yaml", shopYAML + "---\n" + with("engine: postgres", "engine: oracle"), `c.yaml:18: engine "oracle"`},
		"an unknown field in JSON":         {"c.json", "{\n\t\"client_name\": \"shop\",\n\t\"enginee\": 1}", `c.json:3: unknown field "enginee"`},
		"bad JSON":                         {"c.json", "{\n\"client_name\":\n\"shop\",,}", `c.json:3: `},
		"JSON that ends too early":         {"c.json", "{\n\"client_name\":", `c.json:`},
		"an empty JSON file":               {"c.json", "", `c.json:1: `},
		"a secret in a field of no type": {"c.yaml", with("dsn: env:SHOP_DSN", "dsn: [pl4nted]"),
			`c.yaml:7: connection.dsn`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list, err := catalog.Load(test.file, []byte(test.text))
			if athena.CodeOf(err) != athena.CodeInvalidRequest || list != nil {
				t.Fatalf("got %v, %v", list, err)
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "pl4nted") {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestLoadDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("10-shop.yaml", shopYAML)
	write("20-lake.yml", strings.Replace(shopYAML, "client_name: shop", "client_name: lake", 1))
	write("30-old.json", `{"client_name":"old","engine":"postgres","lifecycle":"inactive","connection":{"dsn":"env:X"}}`)
	write("README.md", "not a definition")
	list, err := catalog.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
	}
	if fmt.Sprint(names) != "[shop lake old]" {
		t.Errorf("loaded %v", names)
	}

	write("40-again.yaml", shopYAML)
	write("50-bad.yaml", "client_name: [")
	_, err = catalog.LoadDir(dir)
	for _, want := range []string{"40-again.yaml: client \"shop\" is defined in", "10-shop.yaml already", "50-bad.yaml:1: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %s", err, want)
		}
	}
	if _, err := catalog.LoadDir(filepath.Join(dir, "nope")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there gave %v", err)
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := start(t, mirrortest.Bucket(t, "ath_catalog"), keyring(t))
	apply := func(yaml string, want catalog.Verdict) catalog.Applied {
		t.Helper()
		defs, err := catalog.Load("c.yaml", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Apply(ctx, defs)
		if err != nil || len(got) != 1 || got[0].Verdict != want {
			t.Fatalf("got %v, %v; want %s", got, err, want)
		}
		stored, err := c.Client(ctx, "shop")
		if err != nil || stored.Revision != got[0].Revision {
			t.Fatalf("stored %v, %v; reported %v", stored, err, got)
		}
		return got[0]
	}
	lifecycle := func(want athena.Lifecycle) *athena.Client {
		t.Helper()
		got, err := c.Client(ctx, "shop")
		if err != nil || got.Lifecycle != want {
			t.Fatalf("got %v, %v; want %s", got, err, want)
		}
		return got
	}

	apply(shopYAML, catalog.Created)
	apply(shopYAML, catalog.Unchanged)
	apply("# a comment more\n"+shopYAML, catalog.Unchanged)

	// What was done through the API stays while the file says the same.
	if _, err := c.SetLifecycle(ctx, "shop", athena.Frozen, catalog.Any); err != nil {
		t.Fatal(err)
	}
	edited := *lifecycle(athena.Frozen)
	edited.Limits.MaxRunning = 7
	if _, err := c.Put(ctx, &edited, catalog.Any); err != nil {
		t.Fatal(err)
	}
	apply(shopYAML, catalog.Unchanged)
	if got := lifecycle(athena.Frozen); got.Limits.MaxRunning != 7 {
		t.Errorf("an unchanged file took back max_running: %d", got.Limits.MaxRunning)
	}

	// A change of the file is applied, but for the lifecycle, of which the file
	// has not changed its word.
	wider := strings.Replace(shopYAML, "max_conns: 4", "max_conns: 5", 1)
	if got := apply(wider, catalog.Updated); !got.LifecycleKept {
		t.Error("it is not reported that the lifecycle was kept")
	}
	if got := lifecycle(athena.Frozen); got.Limits.MaxRunning != 2 {
		t.Errorf("a changed file was not applied: max_running is %d", got.Limits.MaxRunning)
	}
	apply(strings.Replace(wider, "lifecycle: active", "lifecycle: inactive", 1), catalog.Updated)
	lifecycle(athena.Inactive)

	// A secret alone is a change too, and one deleted elsewhere comes back.
	apply(strings.Replace(wider, "env:SHOP_DSN", "postgres://u:one@h/db", 1), catalog.Updated)
	apply(strings.Replace(wider, "env:SHOP_DSN", "postgres://u:one@h/db", 1), catalog.Unchanged)
	apply(strings.Replace(wider, "env:SHOP_DSN", "postgres://u:two@h/db", 1), catalog.Updated)
	if err := c.Delete(ctx, "shop", catalog.Any); err != nil {
		t.Fatal(err)
	}
	apply(shopYAML, catalog.Created)
}

func TestApplyTakesOverWhatWasMadeElsewhere(t *testing.T) {
	t.Parallel()
	c := start(t, mirrortest.Bucket(t, "ath_catalog"), keyring(t))
	if _, err := c.Put(t.Context(), shop("env:OLD"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	got, err := c.Apply(t.Context(), []*athena.Client{shop("env:NEW")})
	if err != nil || got[0].Verdict != catalog.Updated {
		t.Fatalf("got %v, %v", got, err)
	}
	bad := shop("env:NEW")
	bad.Name, bad.Capabilities = "bad", athena.Allow(athena.ObjectRead)
	got, err = c.Apply(t.Context(), []*athena.Client{shop("env:NEWER"), bad})
	if athena.CodeOf(err) != athena.CodeCapabilityUnsupported || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("c.yaml", shopYAML)
	f.Add("c.json", `{"client_name":"old","engine":"s3","lifecycle":"inactive","connection":{"bucket":"b"}}`)
	f.Add("c.yaml", "a: &a [*a]")
	f.Add("c.yaml", "a: &a {b: *a}\nclient_name: *a")
	f.Add("c.yaml", "<<: {client_name: x}\n---\n!!binary x")
	f.Fuzz(func(t *testing.T, name, text string) {
		list, err := catalog.Load(name, []byte(text))
		if err == nil {
			for _, c := range list {
				if c.Name == "" || c.Connection == nil {
					t.Fatalf("loaded %+v", c)
				}
			}
			return
		}
		if e := athena.AsError(err); e.Code != athena.CodeInvalidRequest || e.Details["line"].(int) < 1 {
			t.Fatalf("%v has no line: %v", err, e.Details)
		}
	})
}
