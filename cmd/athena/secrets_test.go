package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// seen collects everything that left the process, by where it was seen.
type seen struct {
	mu    sync.Mutex
	texts map[string][]byte
}

func (s *seen) add(where string, text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[where] = append(append(s.texts[where], text...), '\n')
}

// TestNoSecretLeaves runs a server with a password, an API key and a webhook
// secret that are known here, has it do what goes well and what does not, and
// looks for them in everything that it wrote.
func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	const (
		adminKey   = "ath_00112233445566bb.QkFEQ0FGRUJBRENBRkVCQURDQUZFQkFEQ0FGRUJBREM"
		password   = "plantedP4ssw0rdOfTheDatabase"
		wrong      = "plantedWr0ngPassword"
		brokerPass = "plantedBr0kerPassword"
		wrongS3    = "plantedWr0ngSecretAccessKey"
	)
	shop := dev(t)
	admin, err := pgx.Connect(t.Context(), shop.PostgresDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	if _, err := admin.Exec(t.Context(), "CREATE ROLE planted LOGIN PASSWORD '"+password+"'; GRANT pg_read_all_data TO planted"); err != nil {
		t.Fatal(err)
	}
	dsn := func(password string, port string) string {
		u, err := url.Parse(shop.PostgresDSN)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("planted", password)
		if port != "" {
			u.Host = "127.0.0.1:" + port
		}
		return u.String()
	}

	all := &seen{texts: map[string][]byte{}}
	hooks := make(chan struct{}, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := httputil.DumpRequest(r, true)
		all.add("a webhook", raw)
		hooks <- struct{}{}
	}))
	defer receiver.Close()

	p := spawn(t, true, []string{"ATHENA_ADMIN_KEY=" + adminKey, "ATHENA_NATS_EMBEDDED_USER=ops", "ATHENA_NATS_EMBEDDED_PASSWORD=" + brokerPass},
		"serve", "--json", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--log-level", "debug",
		"--set", "nats.embedded.listen=127.0.0.1:0", "--set", "webhooks.allow_private=127.0.0.0/8")
	var ready struct {
		URL  string `json:"url"`
		NATS string `json:"nats_url"`
	}
	if err := p.line(&ready); err != nil {
		t.Fatal(err)
	}

	// do makes a request and keeps the answer, unless it shows a secret on purpose.
	do := func(keep bool, key, method, path, client, body string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, ready.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		if client != "" {
			req.Header.Set("X-Athena-Client", client)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if keep {
			head, _ := httputil.DumpResponse(resp, false)
			all.add(method+" "+path, append(head, raw...))
		}
		return resp.StatusCode, raw
	}
	want := func(status int, key, method, path, client, body string) []byte {
		t.Helper()
		got, raw := do(true, key, method, path, client, body)
		if got != status {
			t.Errorf("%s %s (%s): %d, want %d: %s", method, path, client, got, status, raw)
		}
		return raw
	}

	// Clients: one that works, one with a wrong password, one that nothing
	// listens for, one whose DSN cannot be parsed, one that is refused.
	for name, dsn := range map[string]string{
		"good": dsn(password, ""), "wrong": dsn(wrong, ""), "far": dsn(password, "1"), "odd": "postgres://planted:" + password + "@127.0.0.1:notaport/shop",
	} {
		def := map[string]any{"client_name": name, "engine": "postgres", "lifecycle": "active",
			"capabilities": map[string]bool{"gateway_query": true, "raw_sql": true, "deferred_query": true, "schema_read": true, "migrations_read": true},
			"connection":   map[string]any{"dsn": dsn}}
		raw, err := json.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		if status, raw := do(true, adminKey, "PUT", "/admin/clients/"+name, "", string(raw)); status >= 500 || status >= 300 && name != "odd" {
			t.Fatalf("%s: %d %s", name, status, raw)
		}
		def["surprise"] = true
		raw, _ = json.Marshal(def)
		want(400, adminKey, "PUT", "/admin/clients/"+name, "", string(raw))
		do(true, adminKey, "PUT", "/admin/clients/"+name, "", `{"client_name":"`+name+`","engine":"postgres","connection":{"dsn":"`+dsn)
		do(true, adminKey, "GET", "/admin/clients/"+name, "", "")
		do(true, adminKey, "POST", "/admin/clients/"+name+"/check", "", "")
	}

	// Buckets: one that works, one with a wrong secret, one that nothing listens
	// for. Their objects, and URLs that are good without a key.
	bucket := s3test.Bucket(t)
	for name, change := range map[string]func(map[string]any){
		"lake": func(map[string]any) {}, "lakewrong": func(c map[string]any) { c["secret_access_key"] = wrongS3 }, "lakefar": func(c map[string]any) { c["endpoint"] = "http://127.0.0.1:1" },
	} {
		conn := map[string]any{"endpoint": bucket.Endpoint, "bucket": bucket.Bucket, "prefix": "p", "path_style": true,
			"access_key_id": s3test.AccessKeyID, "secret_access_key": s3test.SecretAccessKey}
		change(conn)
		def := map[string]any{"client_name": name, "engine": "s3", "lifecycle": "active", "connection": conn,
			"capabilities": map[string]bool{"object_read": true, "object_write": true, "provisioning": true}}
		raw, err := json.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		want(201, adminKey, "PUT", "/admin/clients/"+name, "", string(raw))
		want(400, adminKey, "PUT", "/admin/clients/"+name, "", strings.Replace(string(raw), `"bucket"`, `"bukcet"`, 1))
		do(true, adminKey, "GET", "/admin/clients/"+name, "", "")
		do(true, adminKey, "POST", "/admin/clients/"+name+"/check", "", "")
		ok := map[bool]int{true: 200, false: 503}[name == "lake"]
		want(ok, adminKey, "PUT", "/storage/objects/a/b", name, "an object")
		want(ok, adminKey, "GET", "/storage/objects/a/b", name, "")
		want(ok, adminKey, "GET", "/storage/objects", name, "")
		want(ok, adminKey, "POST", "/storage/copy", name, `{"from":"a/b","to":"c"}`)
		do(true, adminKey, "POST", "/management/provision", name, `{"kind":"bucket","name":"`+bucket.Bucket+`"}`)
		do(true, adminKey, "GET", "/storage/objects/nothing", name, "")
		want(400, adminKey, "GET", "/storage/objects/..%2Fx", name, "")
		want(400, adminKey, "POST", "/storage/presign", name, `{"method":"GET","key":"../x"}`)
	}
	var signed []string // by method
	for _, method := range []string{"GET", "PUT"} {
		status, raw := do(false, adminKey, "POST", "/storage/presign", "lake", `{"method":"`+method+`","key":"a/b"}`)
		var got struct{ Data struct{ URL string } }
		if err := json.Unmarshal(raw, &got); err != nil || status != 200 {
			t.Fatalf("%d %s: %v", status, raw, err)
		}
		u, err := url.Parse(got.Data.URL)
		if err != nil || u.Query().Get("X-Amz-Signature") == "" {
			t.Fatalf("%s: %v", got.Data.URL, err)
		}
		signed = append(signed, u.Query().Get("X-Amz-Signature"))
	}

	// A key with a secret of its own, and one for webhooks.
	status, raw := do(false, adminKey, "POST", "/admin/keys", "", `{"name":"hooked","rights":["query","deferred","schema"]}`)
	var made struct {
		Data json.RawMessage
	}
	var key sdk.CreatedKey
	if err := json.Unmarshal(raw, &made); err != nil || status != 201 && status != 200 {
		t.Fatalf("%d %s: %v", status, raw, err)
	}
	var fields map[string]any
	if err := json.Unmarshal(made.Data, &fields); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(made.Data, &key); err != nil || key.Secret == "" {
		t.Fatalf("%s: %v", made.Data, err)
	}
	_, keySecret, _ := strings.Cut(key.Secret, ".")
	_, adminSecret, _ := strings.Cut(adminKey, ".")
	webhookSecret := ""
	for _, v := range fields {
		if s, _ := v.(string); strings.HasPrefix(s, "whsec_") {
			webhookSecret = s
		}
	}
	if webhookSecret == "" || keySecret == "" {
		t.Fatal("the new key shows no webhook secret")
	}

	// What is asked, well and badly.
	want(200, key.Secret, "POST", "/gateway/query", "good", `{"query":"select count(*) from orders"}`)
	want(422, key.Secret, "POST", "/gateway/query", "good", `{"query":"selec 1"}`)
	want(200, key.Secret, "GET", "/schema/tables", "good", "")
	do(true, key.Secret, "GET", "/schema/migrations", "good", "")
	for _, name := range []string{"wrong", "far"} {
		want(503, key.Secret, "POST", "/gateway/query", name, `{"query":"select 1"}`)
		want(503, key.Secret, "GET", "/schema", name, "")
	}
	do(true, key.Secret, "POST", "/gateway/query", "odd", `{"query":"select 1"}`)
	want(403, key.Secret, "GET", "/admin/clients", "", "")
	want(401, key.Secret[:len(key.Secret)-2]+"xx", "POST", "/gateway/query", "good", `{"query":"select 1"}`)
	var ids []string
	for _, name := range []string{"good", "good", "wrong", "far"} {
		query := `select 1`
		if len(ids) == 1 {
			query = `select 1/0`
		}
		raw := want(202, key.Secret, "POST", "/gateway/query", name, `{"deferred":true,"query":"`+query+`","webhook":{"url":"`+receiver.URL+`"}}`)
		var got struct{ Data struct{ ID string } }
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, got.Data.ID)
	}
	for i, id := range ids {
		wait := "10s"
		if i > 1 {
			wait = "2s"
		}
		do(true, key.Secret, "GET", "/gateway/deferred/"+id+"?wait="+wait, "", "")
		do(true, key.Secret, "GET", "/gateway/deferred/"+id+"/result", "", "")
	}
	for range 2 {
		select {
		case <-hooks:
		case <-time.After(15 * time.Second):
			t.Fatal("no webhook came")
		}
	}
	for _, path := range []string{"/admin/clients", "/admin/keys", "/admin/audit", "/admin/dead", "/metrics", "/health", "/ready", "/version", "/openapi.yaml"} {
		want(200, adminKey, "GET", path, "", "")
	}
	want(200, key.Secret, "GET", "/gateway/deferred", "", "")
	for _, id := range ids[2:] {
		do(true, key.Secret, "POST", "/gateway/deferred/"+id+"/cancel", "", "")
	}

	// Everything that is stored.
	nc, err := nats.Connect(ready.NATS, nats.UserInfo("ops", brokerPass))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	messages := 0
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	names := js.StreamNames(t.Context())
	for name := range names.Name() {
		str, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		config, _ := json.Marshal(str.CachedInfo())
		all.add("stream "+name, config)
		for seq := str.CachedInfo().State.FirstSeq; seq <= str.CachedInfo().State.LastSeq; seq++ {
			msg, err := str.GetMsg(t.Context(), seq)
			if err != nil {
				continue // replaced or expired
			}
			messages++
			all.add("stream "+name, fmt.Appendf(nil, "%s %v %s", msg.Subject, msg.Header, msg.Data))
		}
	}
	if err := names.Err(); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	all.add("the log", []byte(p.stderr.String()))

	if n := len(all.texts["the log"]); messages < 20 || n < 1000 || !bytes.Contains(all.texts["stream KV_ath_catalog"], []byte("sealed:")) {
		t.Fatalf("%d messages and %d bytes of log were looked at; the test shows nothing", messages, n)
	}
	total := 0
	for where, text := range all.texts {
		total += len(text)
		for what, secret := range map[string]string{
			"the database's password": password, "the wrong password": wrong, "the broker's password": brokerPass, "the admin key": adminSecret,
			"the bucket's secret key": s3test.SecretAccessKey, "the wrong secret key": wrongS3, "a presigned URL": signed[0], "another": signed[1],
			"the key": keySecret, "the webhook secret": strings.TrimPrefix(webhookSecret, "whsec_"), "a sealed secret": "sealed:",
		} {
			if secret == "sealed:" && (where == "stream KV_ath_catalog" || where == "GET /openapi.yaml") {
				continue
			}
			if i := bytes.Index(text, []byte(secret)); i >= 0 {
				t.Errorf("%s is in %s: …%.120q…", what, where, text[max(0, i-60):min(len(text), i+60)])
			}
		}
	}
	t.Logf("looked at %d bytes from %d places, %d stored messages", total, len(all.texts), messages)
}
