package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		args   []string
		env    []string
		want   exit
		stdout string
		stderr string
	}{
		"no command shows the help":              {nil, nil, exitOK, "athena demo", ""},
		"help of a group lists its commands":     {[]string{"deferred"}, nil, exitOK, "watch", ""},
		"help has examples":                      {[]string{"query", "--help"}, nil, exitOK, "Examples:\n  athena query --client shop", ""},
		"exit codes are a help topic":            {[]string{"help", "exit-codes"}, nil, exitOK, "indeterminate", ""},
		"settings are a help topic":              {[]string{"help", "settings"}, nil, exitOK, "nats.embedded.sync", ""},
		"the environment is a help topic":        {[]string{"help", "environment"}, nil, exitOK, "profiles.yaml", ""},
		"the version says what is in it":         {[]string{"version"}, nil, exitOK, "postgres", ""},
		"an unknown command":                     {[]string{"frobnicate"}, nil, exitUsage, "", "unknown command"},
		"an unknown subcommand":                  {[]string{"client", "frobnicate"}, nil, exitUsage, "", "frobnicate"},
		"help on nothing that there is":          {[]string{"help", "nope"}, nil, exitUsage, "", "nope"},
		"help on a slip of the pen":              {[]string{"help", "deferred", "lsit"}, nil, exitUsage, "", "did you mean list?"},
		"help on a subcommand":                   {[]string{"help", "key", "revoke"}, nil, exitOK, "whole key", ""},
		"a slip of the pen":                      {[]string{"clinet", "list"}, nil, exitUsage, "", "did you mean client?"},
		"a slip of the pen in a subcommand":      {[]string{"key", "revok"}, nil, exitUsage, "", "did you mean revoke?"},
		"an unknown flag":                        {[]string{"query", "--frobnicate"}, nil, exitUsage, "", "--frobnicate"},
		"a missing argument":                     {[]string{"query"}, nil, exitUsage, "", "1 arg"},
		"no client":                              {[]string{"query", "select 1"}, nil, exitUsage, "", "--client"},
		"an empty statement":                     {[]string{"query", "-c", "shop", " "}, nil, exitUsage, "", "empty"},
		"an unknown format":                      {[]string{"query", "-c", "shop", "--format", "xml", "select 1"}, nil, exitUsage, "", "table, json, ndjson, csv"},
		"a flag of deferred queries without one": {[]string{"query", "-c", "shop", "--priority", "batch", "select 1"}, nil, exitUsage, "", "--defer"},
		"a wait for no job":                      {[]string{"query", "-c", "shop", "--wait", "1s", "select 1"}, nil, exitUsage, "", "--wait goes with --defer"},
		"a wait too long":                        {[]string{"query", "-c", "shop", "--defer", "--wait", "61s", "select 1"}, nil, exitUsage, "", "1m0s"},
		"a key's id that is none":                {[]string{"key", "revoke", "ath_x"}, nil, exitUsage, "", "16 hex digits"},
		"a deadline that is none":                {[]string{"query", "-c", "shop", "--defer", "--deadline", "soon", "select 1"}, nil, exitUsage, "", "--deadline"},
		"a label without a value":                {[]string{"query", "-c", "shop", "--defer", "--label", "team", "select 1"}, nil, exitUsage, "", "NAME=VALUE"},
		"nothing to apply":                       {[]string{"client", "apply"}, nil, exitUsage, "", "-f FILE"},
		"two sources to import":                  {[]string{"client", "import"}, nil, exitUsage, "", "either"},
		"a key without rights":                   {[]string{"key", "create"}, nil, exitUsage, "", "--right"},
		"a worker without a bus":                 {[]string{"worker"}, nil, exitUsage, "", "--nats"},
		"a setting that is none":                 {[]string{"serve", "--set", "a.b=c"}, nil, exitUsage, "", "unknown key"},
		"every setting that is wrong":            {[]string{"serve", "--set", "listen=x", "--set", "nats.replicas=2"}, nil, exitUsage, "", "replicas"},
		"a setting without a value":              {[]string{"serve", "--set", "listen"}, nil, exitUsage, "", "KEY=VALUE"},
		"auth off in the open":                   {[]string{"serve", "--auth", "off", "--listen", "0.0.0.0:0"}, nil, exitUsage, "", "127.0.0.1"},
		"a burst out of range":                   {[]string{"demo", "--burst", "0"}, nil, exitUsage, "", "--burst"},
		"a URL that is none":                     {[]string{"client", "list", "--url", "athena"}, nil, exitUsage, "", "http://"},
		"a profile that is not there":            {[]string{"client", "list", "--profile", "prod"}, nil, exitUsage, "", "prod"},
		"a profile and a URL":                    {[]string{"client", "list", "--profile", "prod", "--url", "http://h"}, nil, exitUsage, "", "--profile"},
		"nobody listens":                         {[]string{"client", "list", "--url", "http://127.0.0.1:1"}, nil, exitUnavailable, "", "does not answer"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := call(t, tt.env, "", tt.args...)
			if got.exit != tt.want || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("exit %d, want %d\nstdout: %s\nstderr: %s", got.exit, tt.want, got.stdout, got.stderr)
			}
			if tt.want != exitOK && got.stderr == "" {
				t.Error("nothing was said")
			}
		})
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command, example bool)
	walk = func(c *cobra.Command, example bool) {
		example = example || c.Example != ""
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help is %q", c.CommandPath(), c.Short)
		}
		if c.Runnable() && !c.HasSubCommands() && !example && c.Name() != "version" && c.Name() != "demo" && c.Parent().Name() != "completion" {
			t.Errorf("%s has no example, nor has its group", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub, example)
		}
	}
	root := (&program{stdout: io.Discard, stderr: io.Discard}).root()
	root.Example = "" // of the whole program, not of a command
	walk(root, false)
}

func TestDoctorSaysWhatItLooksAt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "server"), 0o700), os.WriteFile(filepath.Join(dir, accessFile), []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	env := []string{"ATHENA_URL=http://127.0.0.1:1"}
	if got := call(t, env, "", "doctor", "--data", dir); got.exit != exitOK || !strings.Contains(got.stdout, "data in "+filepath.Join(dir, "server")) || strings.Contains(got.stdout, "not at the server") {
		t.Errorf("in the directory of dev: exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	if got := call(t, env, "", "doctor"); !strings.Contains(got.stdout, "not at the server of ATHENA_URL") {
		t.Errorf("with nothing but a URL:\n%s%s", got.stdout, got.stderr)
	}
}

func TestDevPrefersItsLastPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got := lastAddress(dir); got != "127.0.0.1:0" {
		t.Errorf("at the first start: %s", got)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	if err := os.WriteFile(filepath.Join(dir, urlFile), []byte("http://"+address), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastAddress(dir); got != "127.0.0.1:0" {
		t.Errorf("while the port is taken: %s", got)
	}
	ln.Close()
	if got := lastAddress(dir); got != address {
		t.Errorf("once it is free: %s, want %s", got, address)
	}
}

func TestKeyID(t *testing.T) {
	t.Parallel()
	const id = "0f3a9c1e5b7d2468"
	for _, text := range []string{id, "ath_" + id, "ath_" + id + ".c2VjcmV0", "ath_" + id + ".***"} {
		if got, err := keyID(text); got != id || err != nil {
			t.Errorf("keyID(%q) = %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "ath_", "0f3a", "ath_0F3A9C1E5B7D2468", id + "0", "../" + id[3:]} {
		if got, err := keyID(text); err == nil {
			t.Errorf("keyID(%q) = %q", text, got)
		}
	}
}

func TestAFailedChangeIsOneLineOfTheAudit(t *testing.T) {
	t.Parallel()
	entry := func(request, details string) sdk.AuditEvent {
		return sdk.AuditEvent{Action: "client.lifecycle", Client: "shop", RequestID: request, Details: json.RawMessage(details)}
	}
	got := auditLines([]sdk.AuditEvent{
		entry("2", `{"before":"active","after":"frozen","failed":"conflict"}`),
		entry("2", `{"before":"active","after":"frozen"}`),
		entry("1", `{"before":"frozen","after":"active"}`),
		entry("", ""),
	})
	var short []string
	for _, line := range got {
		short = append(short, line[4]+", "+line[5])
	}
	if want := []string{"active -> frozen, failed: conflict", "frozen -> active, done", "-, done"}; !slices.Equal(short, want) {
		t.Errorf("got %q, want %q", short, want)
	}
}

func TestTheEndOfAJobHasOneExit(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]exit{
		"failed": exitJobFailed, "timed_out": exitJobFailed, "cancelled": exitJobFailed, "expired": exitJobFailed,
		"indeterminate": exitIndeterminate, "running": exitConflict, "succeeded": exitConflict,
	} {
		if got := exitOf(ended(athena.Errorf(athena.CodeConflict, "x").With("state", state))); got != want {
			t.Errorf("%s exits with %d, want %d", state, got, want)
		}
	}
}

func TestEveryCodeHasAnExit(t *testing.T) {
	t.Parallel()
	help := exitHelp()
	for _, code := range athena.Codes() {
		got := exitOf(athena.Errorf(code, "x"))
		if (got == exitFailure) != (code == athena.CodeInternal) || got == exitOK {
			t.Errorf("%s exits with %d", code, got)
		}
	}
	for _, e := range exits() {
		if !strings.Contains(help, e.meaning) {
			t.Errorf("exit code %d is not in the help", e.code)
		}
	}
}

func TestErrorsAreJSONForPrograms(t *testing.T) {
	t.Parallel()
	got := call(t, nil, "", "--json", "client", "list", "--url", "http://127.0.0.1:1")
	var body struct {
		Code     string `json:"code"`
		Message  string `json:"message"`
		ExitCode int    `json:"exit_code"`
	}
	if err := json.Unmarshal([]byte(got.stderr), &body); err != nil || body.Code != "backend_unavailable" || body.ExitCode != 5 || body.Message == "" || got.stdout != "" {
		t.Errorf("%v: %+v, stdout %q", err, body, got.stdout)
	}
}

// echo answers every request with the key that it came with.
func echo(t *testing.T) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		row, err := json.Marshal(map[string]string{"key": r.Header.Get("Authorization"), "client": r.Header.Get("X-Athena-Client")})
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"data":[`+string(row)+`],"meta":{}}`)
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestAKeyGoesToItsOwnServerAlone(t *testing.T) {
	t.Parallel()
	one, two := echo(t), echo(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("profiles.yaml", "default: one\nprofiles:\n  one: {url: "+one.URL+", key: profile-key, client: lake}\n")
	file := write("key", "file-key\n")
	conf := "ATHENA_CONFIG_DIR=" + dir
	tests := map[string]struct {
		env  []string
		args []string
		want string
	}{
		"the default profile":                   {[]string{conf}, nil, `{"client":"lake","key":"Bearer profile-key"}`},
		"a named profile":                       {[]string{conf, "ATHENA_URL=" + two.URL}, []string{"--profile", "one"}, `{"client":"lake","key":"Bearer profile-key"}`},
		"the environment before the default":    {[]string{conf, "ATHENA_URL=" + two.URL, "ATHENA_KEY=env-key"}, []string{"-c", "shop"}, `{"client":"shop","key":"Bearer env-key"}`},
		"a profile's key stays with its server": {[]string{conf}, []string{"--url", two.URL, "-c", "shop"}, `{"client":"shop","key":""}`},
		"the environment's key does so too":     {[]string{"ATHENA_URL=" + one.URL, "ATHENA_KEY=env-key"}, []string{"--url", two.URL, "-c", "shop"}, `{"client":"shop","key":""}`},
		"a key from a file":                     {nil, []string{"--url", two.URL, "-c", "shop", "--key-file", file}, `{"client":"shop","key":"Bearer file-key"}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := call(t, tt.env, "", append([]string{"query", "--format", "ndjson", "select 1"}, tt.args...)...)
			if got.exit != exitOK || strings.TrimSpace(got.stdout) != tt.want {
				t.Errorf("exit %d, %s, want %s\n%s", got.exit, got.stdout, tt.want, got.stderr)
			}
		})
	}
}

func TestAFileThatOthersMayReadIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "profiles.yaml")
	if err := os.WriteFile(path, []byte("default: p\nprofiles: {p: {url: 'http://h', key: planted}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"client", "list"}, {"client", "list", "--url", "http://h", "--key-file", path}} {
		got := call(t, []string{"ATHENA_CONFIG_DIR=" + dir}, "", args...)
		if got.exit == exitOK || !strings.Contains(got.stderr, "chmod 600") || strings.Contains(got.stderr, "planted") {
			t.Errorf("%v: exit %d, %s", args, got.exit, got.stderr)
		}
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	const rows = `[{"id":1,"name":"a,b","at":null,"doc":{"x":[1]}},{"id":20,"name":"","at":"2026-01-01","doc":null},{"id":3,"name":"\u001b[31mred\nline","at":null,"doc":null}]`
	answer := func(data, meta string) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"data":`+data+`,"meta":`+meta+`}`)
		}))
		t.Cleanup(srv.Close)
		return srv
	}
	full := answer(rows, `{"rows_affected":3}`)
	empty := answer(`[]`, `{"columns":[{"name":"id","type":"int4"},{"name":"n","type":"text"}],"rows_affected":0}`)
	none := answer(`[]`, `{"columns":[],"rows_affected":1}`)
	uncounted := answer(`[]`, `{"columns":[],"rows_affected":-1}`)
	tests := map[string]struct {
		url    string
		format string
		want   string
	}{
		"table": {full.URL, "table", "" +
			"id  name           at          doc\n" +
			"--  -------------  ----------  ---------\n" +
			" 1  a,b            NULL        {\"x\":[1]}\n" +
			"20                 2026-01-01  NULL\n" +
			" 3  ·[31mred·line  NULL        NULL\n" +
			"(3 rows)\n"},
		"csv":                     {full.URL, "csv", "id,name,at,doc\r\n1,\"a,b\",,\"{\"\"x\"\":[1]}\"\r\n20,\"\",2026-01-01,\r\n3,\"\x1b[31mred\nline\",,\r\n"},
		"ndjson":                  {full.URL, "ndjson", `{"id":1,"name":"a,b","at":null,"doc":{"x":[1]}}` + "\n" + `{"id":20,"name":"","at":"2026-01-01","doc":null}` + "\n" + `{"id":3,"name":"\u001b[31mred\nline","at":null,"doc":null}` + "\n"},
		"an empty table":          {empty.URL, "table", "id  n\n--  -\n(0 rows)\n"},
		"an empty csv":            {empty.URL, "csv", "id,n\r\n"},
		"an empty json":           {empty.URL, "json", "[\n]\n"},
		"a statement without any": {none.URL, "table", "1 row affected\n"},
		"an engine without count": {uncounted.URL, "table", "done; the engine counts no rows\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := call(t, nil, "", "query", "--url", tt.url, "-c", "shop", "--format", tt.format, "select 1")
			if got.stdout != tt.want {
				t.Errorf("got\n%q, want\n%q\n%s", got.stdout, tt.want, got.stderr)
			}
		})
	}
	t.Run("json is one document", func(t *testing.T) {
		t.Parallel()
		got := call(t, nil, "", "--json", "query", "--url", full.URL, "-c", "shop", "select 1")
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(got.stdout), &list); err != nil || len(list) != 3 {
			t.Errorf("%v in %s", err, got.stdout)
		}
	})
}

func TestSplitTable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"postgres://u:p@h/db/athena_clients?sslmode=disable": {"postgres://u:p@h/db?sslmode=disable", "athena_clients"},
		"postgres://h/db":  {"postgres://h/db", ""},
		"host=h dbname=db": {"host=h dbname=db", ""},
	} {
		if dsn, table := splitTable(in); dsn != want[0] || table != want[1] {
			t.Errorf("splitTable(%q) = %q, %q", in, dsn, table)
		}
	}
}
