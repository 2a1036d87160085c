package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// TestTheLifeOfACapture runs the program as its users do: a server with a worker,
// a table whose changes are captured, and each way to read them.
func TestTheLifeOfACapture(t *testing.T) {
	t.Parallel()
	dsn, err := url.Parse(dev(t).PostgresDSN)
	if err != nil {
		t.Fatal(err)
	}
	const adminKey = "ath_00000000000000c1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	p := spawn(t, true, []string{"ATHENA_ADMIN_KEY=" + adminKey}, "serve", "--json", "--data", filepath.Join(t.TempDir(), "data"),
		"--listen", "127.0.0.1:0", "--set", "webhooks.allow_private=127.0.0.0/8")
	var ready struct {
		URL string `json:"url"`
	}
	if err := p.line(&ready); err != nil {
		t.Fatal(err)
	}
	env := []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + adminKey, "ATHENA_CLIENT=life"}
	def, err := json.Marshal(map[string]any{
		"client_name": "life", "engine": "postgres", "lifecycle": "active", "connection": map[string]any{"dsn": dsn.String()},
		"capabilities": map[string]bool{"gateway_query": true, "raw_sql": true, "cdc": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "life.yaml")
	if err := os.WriteFile(file, def, 0o600); err != nil {
		t.Fatal(err)
	}
	ok(t, env, "client", "apply", "-f", file)
	sql := func(text string) { t.Helper(); ok(t, env, "query", "--raw", text) }
	sql(`CREATE TABLE cdc_life (id bigint PRIMARY KEY, note text)`)
	sql(`INSERT INTO cdc_life VALUES (1, 'one'), (2, 'two')`)

	if got := ok(t, env, "cdc", "check", "-t", "public.cdc_life"); !strings.Contains(got, "primary_key") {
		t.Errorf("check: %s", got)
	}
	if got := ok(t, env, "cdc", "enable", "-t", "public.cdc_life", "--wait", "40s"); !strings.Contains(got, "streaming") {
		t.Fatalf("enable: %s", got)
	}
	// tailed returns the next changes behind a position, however long they take.
	tailed := func(from, ops string, n int, more ...string) (lines []string, last cdc.Position) {
		t.Helper()
		out := ok(t, env, append([]string{"--json", "cdc", "tail", "--from", from, "--max", fmt.Sprint(n), "--ops", ops}, more...)...)
		for line := range cdc.Lines([]byte(out)) {
			var c cdc.Change
			if err := cdc.Decode(line, &c); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			lines, last = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Op, c.Key, c.After))), c.Pos
		}
		return lines, last
	}
	if got, _ := tailed("earliest", "read", 2); fmt.Sprint(got) != `[read {"id":1} {"id":1,"note":"one"} read {"id":2} {"id":2,"note":"two"}]` {
		t.Errorf("the rows that were there: %v", got)
	}
	if got := ok(t, env, "cdc", "subscription", "create", "puller", "--from", "earliest", "--ops", "insert,update,delete"); !strings.Contains(got, "puller") {
		t.Errorf("create: %s", got)
	}
	sql(`INSERT INTO cdc_life VALUES (3, 'three')`)
	sql(`UPDATE cdc_life SET note = 'zwei' WHERE id = 2`)
	sql(`DELETE FROM cdc_life WHERE id = 1`)
	got, end := tailed("earliest", "insert,update,delete", 3)
	if fmt.Sprint(got) != `[insert {"id":3} {"id":3,"note":"three"} update {"id":2} {"id":2,"note":"zwei"} delete {"id":1}]` {
		t.Errorf("the changes: %v", got)
	}
	if got, _ := tailed("earliest", "insert,update", 1, "--where", "after.note == 'zwei'", "--tables", "public.*"); fmt.Sprint(got) != `[update {"id":2} {"id":2,"note":"zwei"}]` {
		t.Errorf("with a filter: %v", got)
	}

	first := ok(t, env, "cdc", "subscription", "pull", "puller", "--wait", "10s", "--max", "2", "--ack")
	second := ok(t, env, "cdc", "subscription", "pull", "puller", "--wait", "10s", "--ack")
	if !strings.Contains(first, "insert    public.cdc_life  id=3  note=three\n") || !strings.Contains(first, "id=2  note=zwei\n") || !strings.Contains(second, "delete    public.cdc_life  id=1\n") {
		t.Errorf("pulled\n%s and\n%s", first, second)
	}
	if got := call(t, env, "", "cdc", "subscription", "pull", "puller"); got.stdout != "" || !strings.Contains(got.stderr, "no changes") {
		t.Errorf("at the end: %s%s", got.stdout, got.stderr)
	}

	// A webhook, for a key of its own that is then revoked.
	var key sdk.CreatedKey
	if err := json.Unmarshal([]byte(ok(t, env, "--json", "key", "create", "--name", "hooks", "--right", "cdc", "--client", "life")), &key); err != nil {
		t.Fatal(err)
	}
	secret, err := webhook.DecodeSecret(key.WebhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	bodies := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if err := webhook.Verify(secret, r.Header, raw, time.Now(), webhook.Tolerance); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
		bodies <- string(raw)
	}))
	t.Cleanup(receiver.Close)
	mine := []string{"ATHENA_URL=" + ready.URL, "ATHENA_KEY=" + key.Secret, "ATHENA_CLIENT=life"}
	ok(t, mine, "cdc", "subscription", "create", "hook", "--from", string(end), "--deliver", "webhook", "--webhook", receiver.URL, "--envelope", "debezium", "--ops", "insert")
	sql(`INSERT INTO cdc_life VALUES (4, 'four')`)
	select {
	case body := <-bodies:
		if !strings.Contains(body, `"type":"cdc.changes"`) || !strings.Contains(body, `"after":{"id":4,"note":"four"}`) || !strings.Contains(body, `"op":"c"`) {
			t.Errorf("the webhook got %s", body)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the webhook got nothing")
	}
	ok(t, env, "key", "revoke", key.ID)
	sql(`INSERT INTO cdc_life VALUES (5, 'five')`)
	for range 100 {
		if strings.Contains(ok(t, env, "cdc", "subscription", "get", "hook"), "stopped: key_revoked") {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if got := ok(t, env, "cdc", "subscription", "list"); !strings.Contains(got, "stopped: key_revoked") {
		t.Errorf("after its key was revoked:\n%s", got)
	}
	if len(bodies) > 0 {
		t.Errorf("after its key was revoked the webhook got %s", <-bodies)
	}

	id := strings.TrimSpace(ok(t, env, "cdc", "snapshot", "start", "-t", "public.cdc_life", "--where", "id > 3"))
	if got, _ := tailed(string(end), "read", 2); fmt.Sprint(got) != `[read {"id":4} {"id":4,"note":"four"} read {"id":5} {"id":5,"note":"five"}]` {
		t.Errorf("the snapshot: %v", got)
	}
	for range 100 {
		if got := ok(t, env, "cdc", "snapshot", "list"); strings.Contains(got, id+"  done") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if got := ok(t, env, "cdc", "snapshot", "list"); !strings.Contains(got, id+"  done of public.cdc_life: 2 of") {
		t.Errorf("snapshots: %s", got)
	}

	if got := ok(t, env, "cdc", "status", "--check"); !strings.Contains(got, "life") || !strings.Contains(got, "streaming") {
		t.Errorf("status: %s", got)
	}
	if got := ok(t, env, "cdc", "status", "--client", "life"); !strings.Contains(got, "athena_life") || !strings.Contains(got, "2 subscriptions") {
		t.Errorf("status: %s", got)
	}
	ok(t, env, "cdc", "subscription", "delete", "hook", "puller")
	if got := ok(t, env, "cdc", "disable", "--purge", "--wait", "40s"); got != "disabled\n" {
		t.Errorf("disable: %s", got)
	}
	if got := call(t, env, "", "cdc", "status", "--client", "life"); got.exit != exitNotFound {
		t.Errorf("afterwards: exit %d, %s%s", got.exit, got.stdout, got.stderr)
	}
	if got := ok(t, env, "query", "--raw", "--format", "csv", "select count(*) as n from pg_replication_slots where slot_name = 'athena_life'"); got != "n\r\n0\r\n" {
		t.Errorf("the slot is still there: %s", got)
	}
	sql(`DROP TABLE cdc_life`)
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}
