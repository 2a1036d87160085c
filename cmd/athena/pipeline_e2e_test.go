package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

// runEvents reads the lines that a followed run is told in.
func runEvents(t *testing.T, out string) (names []string, end *sdk.RunInfo) {
	t.Helper()
	for line := range strings.Lines(out) {
		var e struct {
			Event string
			Run   *sdk.RunInfo
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		names = append(names, e.Event)
		if e.Event == "end" {
			end = e.Run
		}
	}
	return names, end
}

// TestThePipelinesOfDev plans, stores, runs, redrives and deletes on real engines,
// all by the command line.
func TestThePipelinesOfDev(t *testing.T) {
	env := at(dev(t))
	path := file(t, "lines.yaml", `name: e2e-lines
source: {client: shop, query: "select id, case when id % 500 = 0 then 'x' else id::text end as n from orders where id <= 1000"}
transforms:
  - cast: {n: int64}
sink: {client: shop, table: public.e2e_lines, mode: upsert, key: [id], create: true}
errors: {max_rate: 0.5}
tests:
  - {name: makes numbers of texts, in: [{id: 1, n: "7"}], out: [{id: 1, n: 7}]}
`)
	t.Cleanup(func() { call(t, env, "", "query", "--raw", "drop table if exists e2e_lines") })
	must := func(want exit, args ...string) result {
		t.Helper()
		got := call(t, env, "", append([]string{"pipeline"}, args...)...)
		if got.exit != want {
			t.Fatalf("pipeline %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got.exit, want, got.stdout, got.stderr)
		}
		return got
	}
	must(exitOK, "test", "-f", path)
	got := must(exitOK, "plan", "-f", path, "--level", "sample")
	for _, want := range []string{"will be created", "exactly once", "sample: 20 rows read"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the plan lacks %q:\n%s", want, got.stdout)
		}
	}
	must(exitOK, "apply", "-f", path)
	names, end := runEvents(t, must(exitOK, "run", "e2e-lines").stdout)
	if end == nil || end.State != sdk.RunSucceeded || end.Counts.Read != 1000 || end.Counts.Written != 998 || end.Counts.Rejected != 2 || names[0] != "step" {
		t.Fatalf("%v, %+v", names, end)
	}
	if got := call(t, env, "", "query", "--raw", "--format", "csv", "select count(*) as n from e2e_lines"); got.stdout != "n\r\n998\r\n" {
		t.Errorf("the table has %s%s", got.stdout, got.stderr)
	}
	if got := must(exitOK, "dead", "list", "e2e-lines").stdout; strings.Count(got, "at column n") != 2 || !strings.Contains(got, `{"id":500,"n":"x"}`) {
		t.Errorf("dead are\n%s", got)
	}
	if got := must(exitOK, "dead", "list", end.ID, "--json").stdout; strings.Count(got, "\n") != 2 {
		t.Errorf("dead of the run are\n%s", got)
	}

	// Mended, they are taken on.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mended := file(t, "mended.yaml", strings.Replace(string(text), "  - cast: {n: int64}\n", "  - set: {n: 'row.n == \"x\" ? \"0\" : row.n'}\n  - cast: {n: int64}\n", 1))
	if got := must(exitOK, "apply", "-f", mended).stdout; got != "e2e-lines  updated at generation 2\n" {
		t.Errorf("got %s", got)
	}
	if _, end := runEvents(t, must(exitOK, "dead", "redrive", "e2e-lines").stdout); end == nil || end.Kind != sdk.RunRedrive || end.Counts.Written != 2 {
		t.Errorf("got %+v", end)
	}
	if got := call(t, env, "", "query", "--raw", "--format", "csv", "select count(*) as n from e2e_lines where n = 0"); got.stdout != "n\r\n2\r\n" {
		t.Errorf("the table has %s%s", got.stdout, got.stderr)
	}
	if got := must(exitOK, "dead", "list", "e2e-lines").stdout; got != "no rows\n" {
		t.Errorf("dead are\n%s", got)
	}
	if got := must(exitOK, "runs", "e2e-lines").stdout; strings.Count(got, "succeeded") != 2 || !strings.Contains(got, "redrive") {
		t.Errorf("runs are\n%s", got)
	}

	// Too many that cannot go on have a run fail, and say why.
	strict := file(t, "strict.yaml", strings.Replace(strings.Replace(string(text), "max_rate: 0.5", "max_rate: 0.001", 1), "e2e-lines", "e2e-strict", 1))
	failed := must(exitJobFailed, "run", "-f", strict)
	if !strings.Contains(failed.stderr, "athena: the run failed") || !strings.Contains(failed.stderr, "rejected_rows") {
		t.Errorf("it says %s", failed.stderr)
	}
	must(exitNotFound, "watch", "e2e-strict") // it is stored nowhere
	must(exitOK, "delete", "e2e-lines")
	must(exitNotFound, "get", "e2e-lines")
}

// TestAnInterruptLeavesARunToItself: the run of a stream goes on, and is stopped.
func TestAnInterruptLeavesARunToItself(t *testing.T) {
	env := at(dev(t))
	path := file(t, "slow.yaml", `name: e2e-slow
source: {client: shop, query: "select id, pg_sleep(0.02)::text as s from orders where id <= 1500"}
sink: {client: shop, table: public.e2e_slow, create: true}
`)
	t.Cleanup(func() { call(t, env, "", "query", "--raw", "drop table if exists e2e_slow") })
	p := spawn(t, true, env, "pipeline", "run", "-f", path)
	var first struct{ Event string }
	if err := p.line(&first); err != nil || first.Event != "step" {
		t.Fatalf("%v: %+v", err, first)
	}
	var run struct{ Run sdk.RunInfo }
	for run.Run.ID == "" {
		if err := p.line(&run); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for {
		if err := p.line(&run); err != nil {
			break // it ended
		}
	}
	if err := p.cmd.Wait(); err == nil || p.cmd.ProcessState.ExitCode() != int(exitPending) {
		t.Errorf("it ended as %v", err)
	}
	if text := p.stderr.String(); !strings.Contains(text, "athena pipeline cancel "+run.Run.ID) {
		t.Errorf("it said %s", text)
	}
	if got := call(t, env, "", "client", "delete", "shop"); got.exit != exitConflict || !strings.Contains(got.stderr, run.Run.ID) {
		t.Errorf("a client that a run works with is deleted: exit %d: %s", got.exit, got.stderr)
	}
	if got := call(t, env, "", "pipeline", "cancel", run.Run.ID); got.exit != exitOK {
		t.Fatalf("exit %d: %s", got.exit, got.stderr)
	}
	if got := call(t, env, "", "pipeline", "watch", run.Run.ID); got.exit != exitJobFailed || !strings.Contains(got.stderr, "the run was cancelled") {
		t.Errorf("exit %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}
