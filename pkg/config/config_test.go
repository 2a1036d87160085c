package config_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/config"
)

func write(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "athena.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fields lists the paths that a joined error is about.
func fields(err error) []string {
	var list []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			var own *athena.Error
			if errors.As(e, &own) {
				list = append(list, fmt.Sprint(own.Details["field"]))
			}
		}
	}
	return list
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s, err := config.Load(config.Config{Environ: []string{"HOME=/home/ada"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Listen != "127.0.0.1:4052" || s.Auth != "on" || s.Limits.BodyBytes != 8<<20 || s.NATS.Embedded.Sync != 0 ||
		!s.Worker.Enabled || s.Limits.ShutdownTimeout.Std() != 20*time.Second || s.Deferred.InlineBytes != 65536 {
		t.Errorf("defaults are %+v", s)
	}
	tests := map[string]struct {
		environ []string
		want    string
	}{
		"the home directory":                {[]string{"HOME=/home/ada"}, "/home/ada/.local/share/athena"},
		"the XDG directory before it":       {[]string{"HOME=/home/ada", "XDG_DATA_HOME=/data"}, "/data/athena"},
		"no XDG directory that is relative": {[]string{"HOME=/home/ada", "XDG_DATA_HOME=data"}, "/home/ada/.local/share/athena"},
		"the place itself without a home":   {nil, "athena-data"},
	}
	for name, tt := range tests {
		t.Run("data stands in "+name, func(t *testing.T) {
			t.Parallel()
			s, err := config.Load(config.Config{Environ: tt.environ})
			if err != nil || s.DataDir != tt.want {
				t.Errorf("data_dir = %q, %v; want %q", s.DataDir, err, tt.want)
			}
		})
	}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	path := write(t, "log: {level: debug}\nlisten: 127.0.0.1:1\nworker: {concurrency: 2}\n")
	environ := []string{"ATHENA_LISTEN=127.0.0.1:2", "ATHENA_WORKER_CONCURRENCY=3", "ATHENA_CONFIG=" + path, "ATHENA_AUTH="}
	s, err := config.Load(config.Config{Environ: environ, Overrides: map[string]any{"worker.concurrency": 4}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Log.Level != "debug" || s.Listen != "127.0.0.1:2" || s.Worker.Concurrency != 4 || s.Auth != "on" {
		t.Errorf("level %s, listen %s, concurrency %d, auth %s; want the file's, the environment's, the flag's, the default",
			s.Log.Level, s.Listen, s.Worker.Concurrency, s.Auth)
	}
}

func TestEveryForm(t *testing.T) {
	t.Parallel()
	path := write(t, `
trusted_proxies: [10.1.2.3/8, "::1"]
nats:
  url: nats://a:4222, tls://b:4222
  user: ada
  password: env:NATS_PASSWORD
  embedded:
limits:
  body_bytes: 1MiB
  requests_per_second: 2.5
worker:
  clients: [shop, lake]
  enabled: false
deferred:
  inline_bytes: 1024
  result_ttl: 90m
`)
	environ := []string{"ATHENA_WORKER_ENGINES=postgres, s3", "ATHENA_NATS_EMBEDDED_SYNC=2m", "ATHENA_WEBHOOKS_ALLOW_PRIVATE=127.0.0.0/8,10.0.0.1"}
	s, err := config.Load(config.Config{File: path, Environ: environ, Overrides: map[string]any{"limits.sync_timeout": 5 * time.Second, "worker.id": "w1"}})
	if err != nil {
		t.Fatal(err)
	}
	prefixes := func(list ...string) (ps []netip.Prefix) {
		for _, p := range list {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return ps
	}
	check := map[string][2]any{
		"networks are masked":     {s.TrustedProxies, prefixes("10.0.0.0/8", "::1/128")},
		"lists from environment":  {s.Worker.Engines, []string{"postgres", "s3"}},
		"networks in environment": {s.Webhooks.AllowPrivate, prefixes("127.0.0.0/8", "10.0.0.1/32")},
		"lists":                   {s.Worker.Clients, []string{"shop", "lake"}},
		"booleans":                {s.Worker.Enabled, false},
		"sizes":                   {s.Limits.BodyBytes, config.Bytes(1 << 20)},
		"plain sizes":             {s.Deferred.InlineBytes, config.Bytes(1024)},
		"numbers":                 {s.Limits.RequestsPerSecond, 2.5},
		"durations":               {s.Deferred.ResultTTL.Std(), 90 * time.Minute},
		"durations of flags":      {s.Limits.SyncTimeout.Std(), 5 * time.Second},
		"sync":                    {time.Duration(s.NATS.Embedded.Sync), 2 * time.Minute},
		"secrets":                 {s.NATS.Password.Reveal(), "env:NATS_PASSWORD"},
	}
	for name, c := range check {
		if !reflect.DeepEqual(c[0], c[1]) {
			t.Errorf("%s: got %v, want %v", name, c[0], c[1])
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		file      string
		environ   []string
		overrides map[string]any
		field     string
		says      []string
	}{
		"an unknown key":                {file: "nats: {embeded: {sync: always}}", field: "nats.embeded.sync", says: []string{"nats.embedded.sync", "athena.yaml"}},
		"a key with a slip":             {file: "listn: x", field: "listn", says: []string{"nearest known one is listen"}},
		"a variable with a slip":        {environ: []string{"ATHENA_LITSEN=:80"}, field: "ATHENA_LITSEN", says: []string{"did you mean ATHENA_LISTEN"}},
		"a flag that is no setting":     {overrides: map[string]any{"log.levels": "x"}, field: "log.levels", says: []string{"log.level"}},
		"a word that is not one":        {environ: []string{"ATHENA_LOG_LEVEL=loud"}, field: "log.level", says: []string{`"loud"`, "ATHENA_LOG_LEVEL", "debug, info, warn or error"}},
		"a boolean where words are":     {file: "auth: on", field: "", says: nil},
		"a wrong engine":                {file: "worker: {engines: [mysql]}", field: "worker.engines", says: []string{"mysql", "postgres, scylla or s3"}},
		"a section for a value":         {file: "listen: {host: a}", field: "listen", says: []string{"is a section", "text"}},
		"a value for a section":         {file: "nats: fast", field: "nats", says: []string{"is a section", "nats.creds"}},
		"a number for a text":           {file: "listen: 4052", field: "listen", says: []string{"4052", "quotes"}},
		"a text for a number":           {file: "worker: {concurrency: many}", field: "worker.concurrency", says: []string{`"many"`, "whole number"}},
		"a fraction for a whole number": {file: "worker: {concurrency: 1.5}", field: "worker.concurrency", says: []string{"1.5"}},
		"a number out of range":         {file: "worker: {concurrency: 0}", field: "worker.concurrency", says: []string{"1 to 10000"}},
		"a size out of range":           {file: "limits: {body_bytes: 2GiB}", field: "limits.body_bytes", says: []string{"2GiB", "1KiB to 1GiB"}},
		"a size without sense":          {file: "limits: {body_bytes: 2 elephants}", field: "limits.body_bytes", says: []string{"8MiB"}},
		"a duration out of range":       {file: "limits: {header_timeout: 10m}", field: "limits.header_timeout", says: []string{"100ms to 5m"}},
		"a duration without a unit":     {file: "limits: {header_timeout: 10}", field: "limits.header_timeout", says: []string{"1h30m"}},
		"a sync that is too short":      {file: "nats: {embedded: {sync: 1ms}}", field: "nats.embedded.sync", says: []string{"always"}},
		"not a number":                  {file: "limits: {requests_per_second: .nan}", field: "limits.requests_per_second", says: nil},
		"a network that is none":        {environ: []string{"ATHENA_TRUSTED_PROXIES=10.0.0.0/8,home"}, field: "trusted_proxies", says: []string{"entry 2"}},
		"an address without a port":     {file: "listen: localhost", field: "listen", says: []string{"host:port"}},
		"a port out of range":           {file: `listen: "localhost:70000"`, field: "listen", says: []string{"65535"}},
		"no auth in the open":           {file: "listen: 0.0.0.0:4052\nauth: \"off\"", field: "auth", says: []string{"127.0.0.1"}},
		"no auth on every interface":    {file: "listen: \":4052\"\nauth: \"off\"", field: "auth", says: []string{"127.0.0.1"}},
		"a broker in the open":          {file: `nats: {embedded: {listen: "0.0.0.0:4222"}}`, field: "nats.embedded.listen", says: []string{"password"}},
		"half a certificate":            {file: "tls: {cert_file: a.pem}", field: "tls", says: []string{"key_file"}},
		"an even number of replicas":    {file: "nats: {url: nats://a, replicas: 2}", field: "nats.replicas", says: []string{"1, 3 or 5"}},
		"replicas of one broker":        {file: "nats: {replicas: 3}", field: "nats.replicas", says: []string{"alone"}},
		"half a cluster":                {file: "nats: {embedded: {cluster: {name: c}}}", field: "nats.embedded.cluster", says: []string{"routes"}},
		"credentials of no cluster":     {file: "nats: {user: a}", field: "nats.user", says: []string{"nats.url"}},
		"a client name that is none":    {file: "worker: {clients: [Shop]}", field: "worker.clients", says: []string{"Shop"}},
		"a worker's id with a dot":      {file: "worker: {id: a.b}", field: "worker.id", says: []string{"a.b"}},
		"a deadline above the most":     {file: "deferred: {default_deadline: 200h}", field: "deferred.default_deadline", says: []string{"200h"}},
		"an endpoint that is no URL":    {file: "otlp: {endpoint: collector}", field: "otlp.endpoint", says: []string{"4318"}},
		"a list that holds null":        {file: "worker: {clients: [a, null]}", field: "worker.clients", says: []string{"null"}},
		"a key that stands twice":       {file: "listen: a\nlisten: b", field: "<nil>", says: []string{"athena.yaml", "already defined"}},
		"no YAML":                       {file: "\t{", field: "<nil>", says: []string{"athena.yaml"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config.Config{Environ: tt.environ, Overrides: tt.overrides}
			if tt.file != "" {
				c.File = write(t, tt.file)
			}
			_, err := config.Load(c)
			if tt.field == "" { // YAML 1.2 reads on as a text
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if got := fields(err); !slices.Equal(got, []string{tt.field}) {
				t.Fatalf("errors at %v, want at %s: %v", got, tt.field, err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
		})
	}
	t.Run("all that is wrong is told at once", func(t *testing.T) {
		t.Parallel()
		_, err := config.Load(config.Config{Environ: []string{"ATHENA_LOG_LEVEL=x", "ATHENA_LOG_FORMAT=y", "ATHENA_WORKER_ENABLED=yes"}})
		if got := fields(err); !slices.Equal(got, []string{"log.level", "log.format", "worker.enabled"}) {
			t.Errorf("errors at %v", got)
		}
	})
	t.Run("a file that is not there", func(t *testing.T) {
		t.Parallel()
		if _, err := config.Load(config.Config{File: filepath.Join(t.TempDir(), "no.yaml")}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	const planted = "planted-4711"
	for name, file := range map[string]string{
		"as they should be":      "nats: {url: nats://a, user: u, password: " + planted + ", token: " + planted + "}",
		"in a URL":               "nats: {url: nats://u:" + planted + "@a}",
		"in a route":             "nats: {embedded: {cluster: {name: a, server: b, listen: 'a:1', routes: ['nats-route://u:" + planted + "@a']}}}",
		"in a collector's URL":   "otlp: {endpoint: 'http://u:" + planted + "@a'}",
		"as a list":              "nats: {url: nats://a, token: [" + planted + "]}",
		"as a section":           "nats: {url: nats://a, user: u, password: {x: " + planted + "}}",
		"for an embedded broker": "nats: {password: " + planted + "}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := config.Load(config.Config{File: write(t, file)})
			if shown := fmt.Sprintf("%v %+v %#v", err, s, s); strings.Contains(shown, planted) {
				t.Errorf("the secret is shown: %s", shown)
			}
		})
	}
}

func TestIgnoredVariables(t *testing.T) {
	t.Parallel()
	s, err := config.Load(config.Config{Environ: []string{
		"ATHENA_PORT=tcp://10.0.0.1:4052", "ATHENA_SERVICE_HOST=10.0.0.1", "ATHENA_NATS_PORT=tcp://10.0.0.2:4222",
		"ATHENA_URL=http://x", "ATHENA_KEY=ath_x", "ATHENA_SHOP_DSN=postgres://x", "LISTEN=x", "=strange", "ATHENA_",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ATHENA_NATS_PORT", "ATHENA_PORT", "ATHENA_SERVICE_HOST", "ATHENA_SHOP_DSN"}; !slices.Equal(s.Ignored, want) {
		t.Errorf("ignored are %v, want %v", s.Ignored, want)
	}
}

// Each key can be set, by each of its names, to its own default.
func TestDescribe(t *testing.T) {
	t.Parallel()
	envs := map[string]string{}
	var environ []string
	overrides := map[string]any{}
	for _, k := range config.Describe() {
		if k.Doc == "" || k.Type == "" || !strings.HasPrefix(k.Env, "ATHENA_") {
			t.Errorf("%s is not described: %+v", k.Path, k)
		}
		if other, taken := envs[k.Env]; taken {
			t.Errorf("%s and %s share the variable %s", k.Path, other, k.Env)
		}
		envs[k.Env] = k.Path
		if k.Path != "data_dir" && k.Default != "" {
			environ = append(environ, k.Env+"="+k.Default)
			overrides[k.Path] = k.Default
		}
	}
	plain, err := config.Load(config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]config.Config{"environment": {Environ: environ}, "flags": {Overrides: overrides}} {
		if got, err := config.Load(c); err != nil || !reflect.DeepEqual(got, plain) {
			t.Errorf("the defaults by %s give %+v, %v; want %+v", name, got, err, plain)
		}
	}
	if n := len(slices.Collect(maps.Keys(envs))); n < 40 {
		t.Errorf("%d keys are described; sections are missing", n)
	}
}

func FuzzLoad(f *testing.F) {
	for _, text := range []string{
		"listen: 127.0.0.1:1", "nats: {url: x, embedded: {cluster: {routes: [a]}}}", "a.b: {c.d: 1}", "? [1]\n: 2", "1: {2: 3}",
		"nats:\n  null: x", "&a [*a]", "limits: {body_bytes: -1, requests_per_second: 1e400}", "worker: {clients: [[1]]}", "- a", "trusted_proxies: fe80::1%eth0",
		"listen: !!binary aGk=", "log: {level: 2024-01-01}", "<<: {listen: a}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := config.Load(config.Config{File: write(t, text)})
		if (s == nil) == (err == nil) {
			t.Fatalf("Load gave %v and %v", s, err)
		}
	})
}
