package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

// ok calls the program and expects success.
func ok(t *testing.T, env []string, args ...string) string {
	t.Helper()
	got := call(t, env, "", args...)
	if got.exit != exitOK {
		t.Fatalf("%v: exit %d\n%s", args, got.exit, got.stderr)
	}
	return got.stdout
}

func TestQueriesOnTheSampleShop(t *testing.T) {
	t.Parallel()
	env := at(dev(t))
	tests := map[string]struct {
		args []string
		want exit
		out  string
	}{
		"rows as a table":             {[]string{"query", "select count(*) as n from orders"}, exitOK, "   n\n----\n4000\n(1 row)\n"},
		"parameters of several types": {[]string{"query", "--format", "ndjson", "-p", "42", "-p", "abc", "-p", `"7"`, "-p", "null", "select $1::int as i, $2::text as t, $3::text as s, $4::int as n"}, exitOK, `{"i":42,"t":"abc","s":"7","n":null}` + "\n"},
		"a row limit":                 {[]string{"query", "--row-limit", "2", "--format", "csv", "select id from orders order by id"}, exitOK, "id\r\n1\r\n2\r\n"},
		"a raw statement":             {[]string{"query", "--raw", "--format", "ndjson", "select 1 as one"}, exitOK, `{"one":1}` + "\n"},
		"a refused statement":         {[]string{"query", "selec 1"}, exitRefused, ""},
		"an unknown client":           {[]string{"query", "-c", "nobody", "select 1"}, exitNotFound, ""},
		"a parameter that misfits":    {[]string{"query", "-p", "abc", "select $1::int"}, exitUsage, ""},
		"an unknown job":              {[]string{"deferred", "get", "01a20e34-4573-7d31-9946-4af3565f103b"}, exitNotFound, ""},
		"deferred, and waited for":    {[]string{"query", "--defer", "--wait", "20s", "--format", "ndjson", "select 3 as n"}, exitOK, `{"n":3}` + "\n"},
		"deferred, and not done yet":  {[]string{"query", "--defer", "--wait", "1s", "select pg_sleep(4)"}, exitPending, ""},
		"a dry run":                   {[]string{"query", "--dry-run", "--json", "delete from orders"}, exitOK, ""},
		"tables":                      {[]string{"schema", "tables", "public"}, exitOK, ""},
		"migrations":                  {[]string{"schema", "migrations"}, exitOK, ""},
		"a table that is not there":   {[]string{"schema", "columns", "nothing"}, exitNotFound, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := call(t, env, "", tt.args...)
			if got.exit != tt.want || tt.out != "" && got.stdout != tt.out {
				t.Errorf("exit %d, want %d; stdout %q, want %q\n%s", got.exit, tt.want, got.stdout, tt.out, got.stderr)
			}
		})
	}
	t.Run("a statement from standard input", func(t *testing.T) {
		t.Parallel()
		if got := call(t, env, "select 5 as n", "query", "--format", "ndjson", "-"); got.stdout != `{"n":5}`+"\n" {
			t.Errorf("%q\n%s", got.stdout, got.stderr)
		}
	})
}

func TestTheLifeOfAJob(t *testing.T) {
	t.Parallel()
	env := at(dev(t))
	id := strings.TrimSpace(ok(t, env, "query", "--defer", "--label", "test=life", "select g from generate_series(1, 3) g, pg_sleep(0.2)"))
	var last sdk.JobInfo
	if got := ok(t, env, "deferred", "watch", id); !strings.Contains(got, " succeeded ") || strings.Contains(got, "{") {
		t.Errorf("watch = %s", got)
	}
	for line := range strings.Lines(ok(t, env, "deferred", "watch", id, "--json")) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
	}
	if last.State != sdk.Succeeded || last.ID != id {
		t.Errorf("the last state is %+v", last)
	}
	if got := ok(t, env, "deferred", "result", id, "--format", "csv"); got != "g\r\n1\r\n2\r\n3\r\n" {
		t.Errorf("result = %q", got)
	}
	if got := ok(t, env, "deferred", "list", "--label", "test=life"); !strings.Contains(got, id) || !strings.Contains(got, "succeeded") {
		t.Errorf("list = %s", got)
	}
	if got := ok(t, env, "deferred", "requeue", id, "--json"); !strings.Contains(got, id) {
		t.Errorf("requeue = %s", got)
	}
	ok(t, env, "deferred", "result", id, "--wait", "20s")
	ok(t, env, "deferred", "delete", id)
	if got := call(t, env, "", "deferred", "get", id); got.exit != exitNotFound {
		t.Errorf("a forgotten job: exit %d\n%s", got.exit, got.stderr)
	}

	broken := strings.TrimSpace(ok(t, env, "query", "--defer", "select 1/0"))
	if got := call(t, env, "", "deferred", "watch", broken); got.exit != exitJobFailed || !strings.Contains(got.stderr, "division by zero") {
		t.Errorf("watch of a job that fails: exit %d, %s", got.exit, got.stderr)
	}

	long := strings.TrimSpace(ok(t, env, "query", "--defer", "select pg_sleep(60)"))
	time.Sleep(300 * time.Millisecond) // whether it runs by now or not, the cancel must hold
	ok(t, env, "deferred", "cancel", long)
	if got := call(t, env, "", "deferred", "result", long, "--wait", "20s"); got.exit != exitJobFailed || !strings.Contains(got.stderr, "cancelled") {
		t.Errorf("a cancelled job: exit %d, %s", got.exit, got.stderr)
	}
	for _, command := range []string{"result", "watch"} {
		if got := call(t, env, "", "deferred", command, long); got.exit != exitJobFailed || strings.Contains(got.stderr, "query_failed") {
			t.Errorf("%s of a cancelled job: exit %d, %s", command, got.exit, got.stderr)
		}
	}
}

func TestClientsAndKeys(t *testing.T) {
	t.Parallel()
	r := dev(t)
	env := at(r)
	dir := t.TempDir()
	file := filepath.Join(dir, "extra.yaml")
	def := "client_name: extra\nengine: postgres\nlifecycle: active\ncapabilities: {gateway_query: true, deferred_query: true}\nconnection:\n  dsn: " + strconv.Quote(r.PostgresDSN) + "\n"
	if err := os.WriteFile(file, []byte(def), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ok(t, env, "client", "apply", "-f", file); !strings.Contains(got, "extra  created") {
		t.Errorf("apply = %s", got)
	}
	// What get writes, apply reads; the secret stays.
	text := ok(t, env, "client", "get", "extra")
	if got := call(t, env, strings.Replace(text, "lifecycle: active", "lifecycle: frozen", 1), "client", "apply", "-f", "-"); got.exit != exitOK || !strings.Contains(got.stdout, "updated") {
		t.Errorf("apply of what get wrote: exit %d, %s%s", got.exit, got.stdout, got.stderr)
	}
	if got := call(t, env, "", "query", "-c", "extra", "select 1"); got.exit != exitNotRunnable {
		t.Errorf("a frozen client: exit %d", got.exit)
	}
	ok(t, env, "client", "thaw", "extra")
	ok(t, env, "query", "-c", "extra", "select 1")
	ok(t, env, "client", "check", "extra")
	if got := call(t, env, "", "query", "-c", "extra", "--raw", "select 1"); got.exit != exitDenied {
		t.Errorf("a capability that is not granted: exit %d\n%s", got.exit, got.stderr)
	}

	var key sdk.CreatedKey
	if err := json.Unmarshal([]byte(ok(t, env, "key", "create", "--json", "--name", "reader", "--right", "query:read", "--client", "extra")), &key); err != nil {
		t.Fatal(err)
	}
	bound := []string{"ATHENA_URL=" + r.URL, "ATHENA_KEY=" + key.Secret, "ATHENA_CLIENT=extra"}
	ok(t, bound, "query", "select 1")
	for name, args := range map[string][]string{
		"a write":        {"query", "update products set stock = stock"},
		"another client": {"query", "-c", "shop", "select 1"},
		"another right":  {"client", "list"},
	} {
		if got := call(t, bound, "", args...); got.exit != exitDenied {
			t.Errorf("%s with a key that may not: exit %d\n%s", name, got.exit, got.stderr)
		}
	}
	if got := ok(t, env, "key", "list"); !strings.Contains(got, "reader") || strings.Contains(got, key.Secret) {
		t.Errorf("key list = %s", got)
	}
	if got := ok(t, env, "key", "revoke", key.Secret); strings.TrimSpace(got) != key.ID+" revoked" {
		t.Errorf("revoke says %q", got)
	}
	if err := until(t.Context(), 5*time.Second, func() (bool, error) {
		return call(t, bound, "", "query", "select 1").exit == exitDenied, nil
	}); err != nil {
		t.Errorf("a revoked key: %v", err)
	}
	if got := ok(t, env, "__complete", "query", "--client", ""); !strings.Contains(got, "shop\t") {
		t.Errorf("completion = %s", got)
	}
	ok(t, env, "client", "delete", "extra")
	if got := ok(t, env, "audit", "--client", "extra"); !strings.Contains(got, "client.put") || !strings.Contains(got, "client.delete") {
		t.Errorf("audit = %s", got)
	}
}

func TestImportOfAFormerCatalog(t *testing.T) {
	t.Parallel()
	r := dev(t)
	env := at(r)
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("postgres_clients:\n  former: "+strconv.Quote(r.PostgresDSN)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok(t, env, "client", "import", "--postgres-clients", file, "--dry-run")
	if got := call(t, env, "", "client", "get", "former"); got.exit != exitNotFound {
		t.Errorf("after a dry run: exit %d", got.exit)
	}
	ok(t, env, "client", "import", "--postgres-clients", file)
	ok(t, env, "query", "-c", "former", "select 1")

	ok(t, env, "query", "create table athena_clients (client_name text, pg_uri text, pg_uri_env_var text, is_active bool, is_frozen bool, metadata jsonb)")
	ok(t, env, "query", "insert into athena_clients values ('from_table', $1, null, true, true, '{}')", "-p", r.PostgresDSN)
	table := strings.Replace(r.PostgresDSN, "/shop?", "/shop/athena_clients?", 1)
	if got := ok(t, env, "client", "import", "--table", table); !strings.Contains(got, "from_table  created") {
		t.Errorf("import = %s", got)
	}
	if got := ok(t, env, "client", "get", "from_table"); !strings.Contains(got, "lifecycle: frozen") {
		t.Errorf("from_table = %s", got)
	}
	for _, name := range []string{"former", "from_table"} {
		ok(t, env, "client", "delete", name)
	}
}

func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	r := dev(t)
	env := at(r)
	u, err := url.Parse(r.PostgresDSN)
	if err != nil {
		t.Fatal(err)
	}
	planted, _ := u.User.Password()
	file := filepath.Join(t.TempDir(), "c.yaml")
	def := "client_name: secretive\nengine: postgres\nlifecycle: active\ncapabilities: {gateway_query: true}\nconnection:\n  dsn: " + strconv.Quote(strings.Replace(r.PostgresDSN, u.Port(), "1", 1)) + "\n"
	if err := os.WriteFile(file, []byte(def), 0o600); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for _, args := range [][]string{
		{"client", "apply", "-f", file}, {"client", "get", "secretive"}, {"client", "list", "--json"}, {"client", "check", "secretive"},
		{"query", "-c", "secretive", "select 1"}, {"audit", "--json"}, {"client", "delete", "secretive"},
	} {
		got := call(t, env, "", args...)
		seen.WriteString(got.stdout + got.stderr)
	}
	seen.WriteString(suite.running.stderr.String())
	if strings.Contains(seen.String(), planted) {
		t.Errorf("the password is in what was written:\n%s", seen.String())
	}
}

func TestAWorkerElsewhere(t *testing.T) {
	t.Parallel()
	r := dev(t)
	env := at(r)
	file := filepath.Join(t.TempDir(), "far.yaml")
	def := "client_name: far\nengine: postgres\nlifecycle: active\ncapabilities: {gateway_query: true, deferred_query: true}\nconnection: {dsn: 'env:FAR_DSN'}\n"
	if err := os.WriteFile(file, []byte(def), 0o600); err != nil {
		t.Fatal(err)
	}
	ok(t, env, "client", "apply", "-f", file)
	id := strings.TrimSpace(ok(t, env, "query", "-c", "far", "--defer", "select count(*) as n from customers"))
	// Nobody here has the secret, so nobody takes the job.
	if got := call(t, env, "", "deferred", "result", id, "--wait", "1s"); got.exit != exitPending {
		t.Fatalf("without a worker: exit %d\n%s", got.exit, got.stderr)
	}
	if got := call(t, env, "", "query", "-c", "far", "select 1"); got.exit != exitUnavailable {
		t.Errorf("a query now, without a worker: exit %d\n%s", got.exit, got.stderr)
	}
	w := spawn(t, true, []string{"FAR_DSN=" + r.PostgresDSN}, "worker", "--nats", r.NATSURL, "--clients", "far", "--id", "far-worker", "--data", t.TempDir())
	if got := ok(t, env, "deferred", "result", id, "--wait", "30s", "--format", "ndjson"); got != `{"n":800}`+"\n" {
		t.Errorf("result = %q", got)
	}
	if got := ok(t, env, "deferred", "get", id); !strings.Contains(got, "far-worker") {
		t.Errorf("job = %s", got)
	}
	// Synchronous queries are forwarded to it, a write that looks like a read too.
	if err := until(t.Context(), 10*time.Second, func() (bool, error) {
		return call(t, env, "", "query", "-c", "far", "select 1").exit == exitOK, nil
	}); err != nil {
		t.Errorf("queries are not forwarded: %v", err)
	}
	if got := ok(t, env, "query", "-c", "far", "--format", "ndjson", "select count(*) as n from products"); got != `{"n":240}`+"\n" {
		t.Errorf("forwarded = %q", got)
	}
	ok(t, env, "query", "-c", "far", "create table far_effects (n int)")
	ok(t, env, "query", "-c", "far", "create function far_effect() returns int language sql as 'insert into far_effects values (1) returning n'")
	ok(t, env, "query", "-c", "far", "select far_effect()")
	if got := ok(t, env, "query", "-c", "shop", "--format", "ndjson", "select count(*) as n from far_effects"); got != `{"n":1}`+"\n" {
		t.Errorf("effects = %q", got)
	}
	if got := call(t, env, "", "query", "-c", "far", "selec 1"); got.exit != exitRefused || !strings.Contains(got.stderr, "42601") {
		t.Errorf("a refused statement: exit %d\n%s", got.exit, got.stderr)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	ok(t, env, "client", "delete", "far")
}

func TestASecondServerOnTheSameBus(t *testing.T) {
	t.Parallel()
	r := dev(t)
	p := spawn(t, true, nil, "serve", "--json", "--no-worker", "--nats", r.NATSURL, "--data", t.TempDir(), "--listen", "127.0.0.1:0")
	var ready struct{ URL string }
	if err := p.line(&ready); err != nil {
		t.Fatal(err)
	}
	second := r
	second.URL = ready.URL
	ok(t, at(second), "query", "select 1")
	// What one accepts, the other knows.
	id := strings.TrimSpace(ok(t, at(second), "query", "--defer", "select 6 as n"))
	if got := ok(t, at(r), "deferred", "result", id, "--wait", "20s", "--format", "ndjson"); got != `{"n":6}`+"\n" {
		t.Errorf("result = %q", got)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

func TestALargeResultThroughTheSDK(t *testing.T) {
	t.Parallel()
	r := dev(t)
	api, err := sdk.New(r.URL, r.AdminKey, sdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	const n = 200_000
	q := sdk.Request{Query: fmt.Sprintf("select g, repeat('x', 80) as pad from generate_series(1, %d) g", n), IdempotencyKey: "large-" + rand.Text()}
	job, err := api.Client("shop").Defer(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	info, err := job.Wait(t.Context())
	if err != nil || info.State != sdk.Succeeded || info.Result == nil || info.Result.Segments < 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	sum := func(rows *sdk.Rows, err error) (count, total int) {
		for row, err := range sdk.All[struct{ G int }](rows, err) {
			if err != nil {
				t.Fatal(err)
			}
			count, total = count+1, total+row.G
		}
		return count, total
	}
	if count, total := sum(job.Result(t.Context())); count != n || total != n*(n+1)/2 {
		t.Errorf("%d rows with sum %d", count, total)
	}
	// The same submit again is the same job, whose rows come at once.
	rows, again, err := api.Client("shop").DeferWait(t.Context(), q, 20*time.Second)
	if again != nil {
		t.Fatalf("job %s, %v", again.ID, err)
	}
	if count, total := sum(rows, err); count != n || total != n*(n+1)/2 {
		t.Errorf("waited for: %d rows with sum %d", count, total)
	}
	if err := job.Forget(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDevKeepsItsDataAndStopsWhole(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(suite.dir, "kept")
	var first, second devReport
	p := spawn(t, true, nil, "dev", "--json", "--data", dir)
	if err := p.line(&first); err != nil {
		t.Fatal(err)
	}
	if first.AdminKey == "" || first.NATSURL == "" || fmt.Sprint(first.Clients) != "[lake shop]" || first.S3.Endpoint == "" {
		t.Errorf("report = %+v", first)
	}
	if got := call(t, at(first), "kept", "object", "put", "--client", "lake", "kept/a b.txt", "-"); got.exit != 0 {
		t.Errorf("object put: exit %d, %s", got.exit, got.stderr)
	}
	ok(t, at(first), "query", "update products set stock = 4711 where id = 1")
	ok(t, at(first), "client", "freeze", "shop")
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{first.URL, first.NATSURL, first.PostgresDSN, first.S3.Endpoint} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if conn, err := net.DialTimeout("tcp", u.Host, time.Second); err == nil {
			conn.Close()
			t.Errorf("something still listens at %s", u.Host)
		}
	}

	p = spawn(t, true, nil, "dev", "--json", "--data", dir)
	if err := p.line(&second); err != nil {
		t.Fatal(err)
	}
	if second.AdminKey != first.AdminKey {
		t.Error("the second start has another admin key")
	}
	if got := call(t, nil, "", "dev", "--data", dir); got.exit != exitConflict || !strings.Contains(got.stderr, second.URL) {
		t.Errorf("a third at the same time: exit %d, %s", got.exit, got.stderr)
	}
	ok(t, at(second), "client", "thaw", "shop") // it was still frozen
	if got := ok(t, at(second), "query", "--format", "ndjson", "select stock from products where id = 1"); got != `{"stock":4711}`+"\n" {
		t.Errorf("stock = %s", got)
	}
	if got := ok(t, at(second), "object", "get", "--client", "lake", "kept/a b.txt"); got != "kept" {
		t.Errorf("the object holds %q", got)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(p.out)
	if err != nil || len(rest) > 0 {
		t.Errorf("more than one line: %q, %v", rest, err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGINT: %v\n%s", err, p.stderr)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var ready struct{ URL string }
	start := func(env ...string) (*process, time.Duration) {
		begin := time.Now()
		p := spawn(t, true, env, "serve", "--json", "--data", dir, "--listen", "127.0.0.1:0")
		if err := p.line(&ready); err != nil {
			t.Fatal(err)
		}
		return p, time.Since(begin)
	}
	binary(t) // not within the measured time

	p, _ := start()
	var key string
	if err := until(t.Context(), 10*time.Second, func() (bool, error) { // it comes by another pipe than the line
		key = regexp.MustCompile(`ath_[0-9a-f]{16}\.[A-Za-z0-9_-]{43}`).FindString(p.stderr.String())
		return key != "", nil
	}); err != nil {
		t.Fatalf("no first admin key in\n%s", p.stderr)
	}
	env := []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + key}
	ok(t, env, "client", "list")
	if got := call(t, []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + key[:len(key)-2] + "AA"}, "", "client", "list"); got.exit != exitDenied {
		t.Errorf("a wrong key: exit %d", got.exit)
	}
	if got := call(t, nil, "", "doctor", "--data", dir); got.exit != exitOK || !strings.Contains(got.stdout, "a running server has it") {
		t.Errorf("doctor beside a server: exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
	second := spawn(t, true, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	if err := second.cmd.Wait(); err == nil || !strings.Contains(second.stderr.String(), "in use by another process") {
		t.Errorf("two servers on one directory: %v\n%s", err, second.stderr)
	}
	rss, own := residentMiB(t, p.cmd.Process.Pid)
	if rss > 80 {
		t.Errorf("the idle server takes %d MiB, want at most 80", rss)
	}
	if own > 32 {
		t.Errorf("the idle server takes %d MiB of its own, want at most 32", own)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if got := call(t, nil, "", "doctor", "--data", dir); got.exit != exitOK || !strings.Contains(got.stdout, "embedded broker") {
		t.Errorf("doctor without a server: exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}

	const mine = "ath_00112233445566aa.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	p, took := start("ATHENA_ADMIN_KEY=" + mine)
	t.Logf("ready on an existing data directory after %s (target 500 ms)", took.Round(time.Millisecond))
	if took > 3*time.Second { // the target, with room for a machine under the load of other tests
		t.Errorf("ready only after %s", took)
	}
	for _, k := range []string{key, mine} {
		ok(t, []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + k}, "client", "list")
	}
	if strings.Contains(p.stderr.String(), "ath_") {
		t.Errorf("a key is in the log:\n%s", p.stderr)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
}

// residentMiB is how much memory a process holds, and how much of it no other could
// share; 0 where that is not known. The rest is the mapped program.
func residentMiB(t *testing.T, pid int) (rss, own int) {
	if runtime.GOOS != "linux" {
		t.Logf("memory is not measured on %s", runtime.GOOS)
		return 0, 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kb := map[string]int{}
	for _, name := range []string{"VmRSS", "RssAnon"} {
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(raw)
		if m == nil {
			t.Fatalf("no %s in %s", name, raw)
		}
		if kb[name], err = strconv.Atoi(string(m[1])); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the idle server takes %d MiB (target 80), %d of them its own", kb["VmRSS"]>>10, kb["RssAnon"]>>10)
	return kb["VmRSS"] >> 10, kb["RssAnon"] >> 10
}

func TestClientsDirectory(t *testing.T) {
	t.Parallel()
	clients := t.TempDir()
	write := func(lifecycle string) {
		def := "client_name: filed\nengine: postgres\nlifecycle: " + lifecycle + "\nconnection: {dsn: 'env:NOWHERE'}\n"
		if err := os.WriteFile(filepath.Join(clients, "filed.yaml"), []byte(def), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("active")
	const key = "ath_00112233445566aa.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	p := spawn(t, true, []string{"ATHENA_ADMIN_KEY=" + key}, "serve", "--json", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--clients-dir", clients)
	var ready struct{ URL string }
	if err := p.line(&ready); err != nil {
		t.Fatal(err)
	}
	env := []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + key}
	shows := func(lifecycle string) {
		t.Helper()
		if err := until(t.Context(), 10*time.Second, func() (bool, error) {
			return strings.Contains(call(t, env, "", "client", "get", "filed").stdout, "lifecycle: "+lifecycle), nil
		}); err != nil {
			t.Errorf("the client is not %s: %v", lifecycle, err)
		}
	}
	shows("active")
	write("frozen")
	shows("frozen")
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		suite.skipped = "athena demo was not run: leave out -short to run it (a minute)"
		t.Skip(suite.skipped)
	}
	t.Parallel()
	p := spawn(t, true, nil, "demo", "--json", "--burst", "300")
	raw, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("demo: %v\n%s\n%s", err, raw, p.stderr)
	}
	var report struct {
		OK      bool               `json:"ok"`
		Figures map[string]float64 `json:"figures"`
		Steps   []demoStep         `json:"steps"`
	}
	if err := json.Unmarshal(raw, &report); err != nil || !report.OK || len(report.Steps) != 12 {
		t.Errorf("%v: %s", err, raw)
	}
	t.Logf("figures: %v", report.Figures)
}
