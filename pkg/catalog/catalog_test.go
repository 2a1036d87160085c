package catalog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/mirror/mirrortest"
	"github.com/athena-pipelines/athena/pkg/secret"
)

func keyring(t testing.TB) *secret.Keyring {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	k, err := secret.Parse(id.String(), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// supports is what a build with PostgreSQL alone would say.
func supports(e athena.Engine) athena.Capabilities {
	if e == athena.EnginePostgres {
		return athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.DeferredQuery, athena.SchemaRead)
	}
	return 0
}

func start(t testing.TB, kv jetstream.KeyValue, k *secret.Keyring) *catalog.Catalog {
	t.Helper()
	c := catalog.New(kv, catalog.Config{Keyring: k, Supports: supports})
	mirrortest.Run(t, c.Run)
	ready(t, c)
	return c
}

func ready(t testing.TB, c *catalog.Catalog) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func shop(dsn string) *athena.Client {
	return &athena.Client{
		Name: "shop", Lifecycle: athena.Active,
		Capabilities: athena.Allow(athena.GatewayQuery),
		Connection:   athena.PostgresConn{DSN: athena.NewSecret(dsn)},
		Metadata:     map[string]any{"team": "checkout"},
	}
}

func dsn(c *athena.Client) string { return c.Connection.(athena.PostgresConn).DSN.Reveal() }

func wantCode(t testing.TB, err error, want athena.Code) *athena.Error {
	t.Helper()
	if got := athena.CodeOf(err); got != want {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
	return athena.AsError(err)
}

func TestPutIsCompareAndSet(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := start(t, mirrortest.Bucket(t, "ath_catalog"), keyring(t))

	first, err := c.Put(ctx, shop("env:SHOP"), catalog.Absent)
	if err != nil {
		t.Fatal(err)
	}
	if first.Revision == 0 {
		t.Fatal("a stored definition has revision 0")
	}
	if got, err := c.Client(ctx, "shop"); err != nil || got.Revision != first.Revision {
		t.Fatalf("a process does not read its own write: %v, %v", got, err)
	}
	_, err = c.Put(ctx, shop("env:SHOP"), catalog.Absent)
	e := wantCode(t, err, athena.CodeConflict)
	if e.Details["current_revision"] != first.Revision {
		t.Errorf("details are %v", e.Details)
	}
	second, err := c.Put(ctx, shop("env:OTHER"), catalog.Expect(first.Revision))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Put(ctx, shop("env:LATE"), catalog.Expect(first.Revision))
	e = wantCode(t, err, athena.CodeConflict)
	for _, rev := range []uint64{first.Revision, second.Revision} {
		if !strings.Contains(e.Message, fmt.Sprint(rev)) {
			t.Errorf("%q does not name revision %d", e.Message, rev)
		}
	}
	if _, err := c.Put(ctx, shop("env:ANY"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	_, err = c.Put(ctx, shop("env:FUTURE"), 1<<40)
	wantCode(t, err, athena.CodeConflict)

	wantCode(t, c.Delete(ctx, "shop", catalog.Expect(first.Revision)), athena.CodeConflict)
	if err := c.Delete(ctx, "shop", catalog.Any); err != nil {
		t.Fatal(err)
	}
	_, err = c.Client(ctx, "shop")
	wantCode(t, err, athena.CodeClientNotFound)
	wantCode(t, c.Delete(ctx, "shop", catalog.Any), athena.CodeClientNotFound)
	_, err = c.Put(ctx, shop("env:X"), catalog.Expect(second.Revision))
	wantCode(t, err, athena.CodeConflict)
	if _, err := c.Put(ctx, shop("env:AGAIN"), catalog.Absent); err != nil {
		t.Fatalf("a deleted client cannot be made again: %v", err)
	}
}

func TestMissingClientsAllLookTheSame(t *testing.T) {
	t.Parallel()
	c := start(t, mirrortest.Bucket(t, "ath_catalog"), keyring(t))
	if _, err := c.Put(t.Context(), shop("env:SHOP"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), "shop", catalog.Any); err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for _, name := range []string{"shop", "nobody", "", "no such.name >", strings.Repeat("x", 10_000)} {
		_, err := c.Client(t.Context(), name)
		said[wantCode(t, err, athena.CodeClientNotFound).Error()] = true
	}
	if len(said) != 1 {
		t.Errorf("answers differ: %v", said)
	}
}

func TestPutRules(t *testing.T) {
	t.Parallel()
	kr := keyring(t)
	kv := mirrortest.Bucket(t, "ath_catalog")
	c := start(t, kv, kr)
	scylla := athena.ScyllaConn{Hosts: []string{"h"}}
	for name, test := range map[string]struct {
		change func(*athena.Client)
		code   athena.Code
		field  string
		says   string
	}{
		"a redacted secret needs a stored one": {
			func(d *athena.Client) { d.Connection = athena.PostgresConn{DSN: athena.NewSecret(athena.Redacted)} },
			athena.CodeInvalidRequest, "connection.dsn", "none is stored"},
		"a grant beyond the driver is refused": {
			func(d *athena.Client) { d.Capabilities = athena.Allow(athena.RawSQL, athena.RawCQL, athena.ObjectRead) },
			athena.CodeCapabilityUnsupported, "capabilities.raw_cql", "raw_cql, object_read"},
		"an engine outside the build supports nothing": {
			func(d *athena.Client) { d.Connection = scylla },
			athena.CodeCapabilityUnsupported, "capabilities.gateway_query", "engine scylla"},
		"a bad name": {
			func(d *athena.Client) { d.Name = "Shop" }, athena.CodeInvalidRequest, "client_name", "Shop"},
		"a name that is a wildcard": {
			func(d *athena.Client) { d.Name = ">" }, athena.CodeInvalidRequest, "client_name", ""},
		"no lifecycle": {
			func(d *athena.Client) { d.Lifecycle = "" }, athena.CodeInvalidRequest, "lifecycle", ""},
		"no connection": {
			func(d *athena.Client) { d.Connection = nil }, athena.CodeInvalidRequest, "connection", ""},
		"a connection without what it needs": {
			func(d *athena.Client) { d.Connection = athena.PostgresConn{} }, athena.CodeInvalidRequest, "connection.dsn", ""},
		"a limit out of range": {
			func(d *athena.Client) { d.Limits.MaxRunning = -1 }, athena.CodeInvalidRequest, "limits.max_running", ""},
		"metadata that is no JSON": {
			func(d *athena.Client) { d.Metadata = map[string]any{"f": func() {}} }, athena.CodeInvalidRequest, "", "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			def := shop("postgres://u:pl4nted@h/db")
			test.change(def)
			_, err := c.Put(t.Context(), def, catalog.Any)
			e := wantCode(t, err, test.code)
			if field, _ := e.Details["field"].(string); field != test.field {
				t.Errorf("the field is %q, want %q", field, test.field)
			}
			if !strings.Contains(e.Message, test.says) || strings.Contains(e.Message, "pl4nted") {
				t.Errorf("message %q", e.Message)
			}
		})
	}
	t.Cleanup(func() {
		if keys, err := kv.Keys(context.Background()); !errors.Is(err, jetstream.ErrNoKeysFound) {
			t.Errorf("a refused definition was stored: %v (%v)", keys, err)
		}
	})
}

func TestSecretsAreSealedAndKept(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kr := keyring(t)
	kv := mirrortest.Bucket(t, "ath_catalog")
	c := start(t, kv, kr)

	stored, err := c.Put(ctx, shop("postgres://u:pl4nted@h/db"), catalog.Absent)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := kv.Get(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw.Value(), []byte("pl4nted")) || !bytes.Contains(raw.Value(), []byte(`"sealed:`)) {
		t.Fatalf("stored: %s", raw.Value())
	}
	opened, err := kr.Open("connection.dsn", stored.Connection.(athena.PostgresConn).DSN)
	if err != nil || opened.Reveal() != "postgres://u:pl4nted@h/db" {
		t.Fatalf("the sealed secret opens to something else (%v)", err)
	}

	// What an editor of the definition does: read it redacted, send it back.
	shown, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(shown, []byte("sealed:")) {
		t.Fatalf("shown: %s", shown)
	}
	edited, err := athena.DecodeClient(bytes.Replace(shown, []byte("checkout"), []byte("payments"), 1))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := c.Put(ctx, edited, catalog.Expect(stored.Revision))
	if err != nil {
		t.Fatal(err)
	}
	if dsn(kept) != dsn(stored) || kept.Metadata["team"] != "payments" {
		t.Errorf("kept %v", kept.Metadata)
	}

	ref, err := c.Put(ctx, shop("file:/run/secrets/shop"), catalog.Any)
	if err != nil || dsn(ref) != "file:/run/secrets/shop" {
		t.Errorf("a reference was not kept as it is: %v", err)
	}

	// Of another engine there is no secret to keep.
	s3 := shop("")
	s3.Capabilities = 0
	s3.Connection = athena.S3Conn{Bucket: "b", AccessKeyID: "id", SecretAccessKey: athena.NewSecret(athena.Redacted)}
	_, err = c.Put(ctx, s3, catalog.Any)
	wantCode(t, err, athena.CodeInvalidRequest)
}

// TestOnTheDeploymentsBucket runs on the bucket with the settings that a
// deployment gives it.
func TestOnTheDeploymentsBucket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv, err := bustest.Start(t).JetStream().KeyValue(ctx, bus.BucketCatalog)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, kv, keyring(t))
	stored, err := c.Put(ctx, shop("env:SHOP"), catalog.Absent)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 { // more than the bucket's history
		to := []athena.Lifecycle{athena.Frozen, athena.Active}[i%2]
		if stored, err = c.SetLifecycle(ctx, "shop", to, catalog.Expect(stored.Revision)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Delete(ctx, "shop", catalog.Expect(stored.Revision)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Client(ctx, "shop")
	wantCode(t, err, athena.CodeClientNotFound)
	if _, err := c.Put(ctx, shop("env:SHOP"), catalog.Absent); err != nil {
		t.Fatal(err)
	}
	if !c.Current() {
		t.Error("the catalog is not current")
	}
}

func TestSetLifecycle(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := start(t, mirrortest.Bucket(t, "ath_catalog"), keyring(t))
	_, err := c.SetLifecycle(ctx, "shop", athena.Frozen, catalog.Any)
	wantCode(t, err, athena.CodeClientNotFound)
	stored, err := c.Put(ctx, shop("postgres://u:p@h/db"), catalog.Any)
	if err != nil {
		t.Fatal(err)
	}
	frozen, err := c.SetLifecycle(ctx, "shop", athena.Frozen, catalog.Expect(stored.Revision))
	if err != nil || frozen.Lifecycle != athena.Frozen || dsn(frozen) != dsn(stored) {
		t.Fatalf("%v, %v", frozen, err)
	}
	again, err := c.SetLifecycle(ctx, "shop", athena.Frozen, catalog.Any)
	if err != nil || again.Revision != frozen.Revision {
		t.Errorf("freezing a frozen client made revision %v (%v), was %d", again, err, frozen.Revision)
	}
	_, err = c.SetLifecycle(ctx, "shop", athena.Active, catalog.Expect(stored.Revision))
	wantCode(t, err, athena.CodeConflict)
	_, err = c.SetLifecycle(ctx, "shop", "melted", catalog.Any)
	wantCode(t, err, athena.CodeInvalidRequest)
}

func TestAFreezeIsSeenByOtherProcesses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kr := keyring(t)
	kv := mirrortest.Bucket(t, "ath_catalog")
	here, there := start(t, kv, kr), start(t, kv, kr)
	told := make(chan string, 10)
	cancel := there.Subscribe(func(name string) {
		c, err := there.Client(ctx, name)
		if err != nil {
			told <- string(athena.CodeOf(err))
			return
		}
		told <- string(c.Lifecycle)
	})
	next := func(want string) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told of %q, want %q", got, want)
			}
		case <-time.After(time.Second):
			t.Errorf("not told of %q within a second", want)
		}
	}
	if _, err := here.Put(ctx, shop("env:SHOP"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	next("active")
	if _, err := here.SetLifecycle(ctx, "shop", athena.Frozen, catalog.Any); err != nil {
		t.Fatal(err)
	}
	next("frozen")
	if err := here.Delete(ctx, "shop", catalog.Any); err != nil {
		t.Fatal(err)
	}
	next("client_not_found")
	cancel()
	if _, err := here.Put(ctx, shop("env:SHOP"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	ready(t, there)
	select {
	case got := <-told:
		t.Errorf("told of %q after the subscription ended", got)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestUnreadableDefinitionsStopNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv := mirrortest.Bucket(t, "ath_catalog")
	var log lockedBuffer
	c := catalog.New(kv, catalog.Config{Keyring: keyring(t), Supports: supports, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for key, value := range map[string]string{
		"garbage": "\x00\xff",
		"newer":   `{"v": 2, "definition": {}}`,
		"field":   `{"v": 1, "definition": {"client_name":"field","engine":"postgres","lifecycle":"active","connection":{"dsn":"env:X"},"shiny":true}}`,
		"other":   `{"v": 1, "definition": {"client_name":"someone","engine":"postgres","lifecycle":"active","connection":{"dsn":"env:X"}}}`,
	} {
		if _, err := kv.PutString(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	mirrortest.Run(t, c.Run)
	ready(t, c)
	if _, err := c.Put(ctx, shop("env:SHOP"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range c.Problems() {
		names = append(names, p.Name)
		_, err := c.Client(ctx, p.Name)
		if e := wantCode(t, err, athena.CodeInternal); errors.Unwrap(e) == nil {
			t.Errorf("%v has no cause", e)
		}
		_, err = c.SetLifecycle(ctx, p.Name, athena.Frozen, catalog.Any)
		wantCode(t, err, athena.CodeInternal)
		if !strings.Contains(log.String(), "client="+p.Name) {
			t.Errorf("the log does not name %s", p.Name)
		}
	}
	if got := fmt.Sprint(names); got != "[field garbage newer other]" {
		t.Errorf("problems: %s", got)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].Name != "shop" {
		t.Errorf("listed %v, %v", list, err)
	}
	fixed := shop("env:X")
	fixed.Name = "newer"
	if _, err := c.Put(ctx, fixed, catalog.Any); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client(ctx, "newer"); err != nil {
		t.Errorf("a definition that was stored again: %v", err)
	}
}

func TestAnswersBeforeTheCatalogWasRead(t *testing.T) {
	t.Parallel()
	c := catalog.New(mirrortest.Bucket(t, "ath_catalog"), catalog.Config{Keyring: keyring(t), Supports: supports})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Client(ctx, "shop")
	wantCode(t, err, athena.CodeBusUnavailable)
	_, err = c.List(ctx)
	wantCode(t, err, athena.CodeBusUnavailable)
	wantCode(t, c.Ready(ctx), athena.CodeBusUnavailable)
	if c.Current() {
		t.Error("a catalog that does not run calls itself current")
	}
}

func TestBusUnavailable(t *testing.T) {
	t.Parallel()
	js, nc := mirrortest.JetStream(t)
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "ath_catalog"})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, kv, keyring(t))
	if _, err := c.Put(t.Context(), shop("env:SHOP"), catalog.Any); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	_, err = c.Put(t.Context(), shop("env:SHOP"), catalog.Any)
	wantCode(t, err, athena.CodeBusUnavailable)
	if _, err := c.Client(t.Context(), "shop"); err != nil {
		t.Errorf("a known client cannot be had while the bus is away: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); c.Current(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the catalog calls itself current 10 s after the bus went away")
		}
	}
}

// TestCompareAndSetModel runs changes from several writers, each with its own
// catalog over the one bucket, against a model of what compare-and-set must
// answer.
func TestCompareAndSetModel(t *testing.T) {
	t.Parallel()
	kr := keyring(t)
	kv := mirrortest.Bucket(t, "ath_catalog")
	writers := []*catalog.Catalog{start(t, kv, kr), start(t, kv, kr), start(t, kv, kr)}
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		type state struct {
			revision  uint64
			dsn       string
			lifecycle athena.Lifecycle
		}
		model := map[string]state{}
		names := []string{"a", "b"}
		for _, name := range names {
			if err := writers[0].Delete(ctx, name, catalog.Any); err != nil && athena.CodeOf(err) != athena.CodeClientNotFound {
				t.Fatal(err)
			}
		}
		pick := func(t *rapid.T) (*catalog.Catalog, string, catalog.Expect) {
			name := rapid.SampledFrom(names).Draw(t, "name")
			expected := rapid.SampledFrom([]catalog.Expect{
				catalog.Any, catalog.Absent, catalog.Expect(model[name].revision), 1 << 50,
			}).Draw(t, "expected")
			return rapid.SampledFrom(writers).Draw(t, "writer"), name, expected
		}
		meets := func(name string, e catalog.Expect) bool {
			return e == catalog.Any || uint64(e) == model[name].revision
		}
		check := func(t *rapid.T, name string, want athena.Code, c *athena.Client, err error) bool {
			if got := athena.CodeOf(err); got != want {
				t.Fatalf("%s: got %q (%v), want %q", name, got, err, want)
			}
			if err == nil && c != nil && c.Revision < model[name].revision {
				t.Fatalf("%s went from revision %d to %d", name, model[name].revision, c.Revision)
			}
			return err == nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				w, name, e := pick(t)
				def := shop(rapid.SampledFrom([]string{"env:A", "env:B", athena.Redacted}).Draw(t, "dsn"))
				def.Name = name
				want := athena.Code("")
				switch {
				case !meets(name, e):
					want = athena.CodeConflict
				case dsn(def) == athena.Redacted && model[name].revision == 0:
					want = athena.CodeInvalidRequest
				}
				got, err := w.Put(ctx, def, e)
				if check(t, name, want, got, err) {
					next := state{got.Revision, dsn(def), athena.Active}
					if next.dsn == athena.Redacted {
						next.dsn = model[name].dsn
					}
					model[name] = next
				}
			},
			"lifecycle": func(t *rapid.T) {
				w, name, e := pick(t)
				to := rapid.SampledFrom([]athena.Lifecycle{athena.Active, athena.Frozen, athena.Inactive}).Draw(t, "to")
				want := athena.Code("")
				switch {
				case !meets(name, e):
					want = athena.CodeConflict
				case model[name].revision == 0:
					want = athena.CodeClientNotFound
				}
				got, err := w.SetLifecycle(ctx, name, to, e)
				if check(t, name, want, got, err) {
					model[name] = state{got.Revision, model[name].dsn, to}
				}
			},
			"delete": func(t *rapid.T) {
				w, name, e := pick(t)
				want := athena.Code("")
				switch {
				case model[name].revision == 0:
					want = athena.CodeClientNotFound
				case !meets(name, e):
					want = athena.CodeConflict
				}
				if check(t, name, want, nil, w.Delete(ctx, name, e)) {
					delete(model, name)
				}
			},
			"": func(t *rapid.T) {
				for _, w := range writers {
					bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
					err := w.Ready(bounded)
					cancel()
					if err != nil {
						t.Fatal(err)
					}
					for _, name := range names {
						got, err := w.Client(ctx, name)
						m, ok := model[name]
						switch {
						case !ok && athena.CodeOf(err) != athena.CodeClientNotFound:
							t.Fatalf("%s is deleted and answers %v, %v", name, got, err)
						case ok && err != nil:
							t.Fatalf("%s: %v", name, err)
						case ok && (state{got.Revision, dsn(got), got.Lifecycle}) != m:
							t.Fatalf("%s is %d %s %s, want %v", name, got.Revision, dsn(got), got.Lifecycle, m)
						}
					}
				}
			},
		})
	})
}

// TestConcurrentWritersLoseNothing has writers count in one client's metadata,
// each against the revision that it read: the count comes out right only if
// compare-and-set lets exactly one win each round.
func TestConcurrentWritersLoseNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kr := keyring(t)
	kv := mirrortest.Bucket(t, "ath_catalog")
	const writers, each = 5, 20
	first := start(t, kv, kr)
	def := shop("env:SHOP")
	def.Metadata = map[string]any{"n": 0.0}
	if _, err := first.Put(ctx, def, catalog.Absent); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range writers {
		c := start(t, kv, kr)
		wg.Go(func() {
			for done := 0; done < each; {
				old, err := c.Client(ctx, "shop")
				if err != nil {
					t.Error(err)
					return
				}
				next := *old
				next.Metadata = map[string]any{"n": old.Metadata["n"].(float64) + 1}
				_, err = c.Put(ctx, &next, catalog.Expect(old.Revision))
				switch athena.CodeOf(err) {
				case "":
					done++
				case athena.CodeConflict:
					if err := c.Ready(ctx); err != nil {
						t.Error(err)
						return
					}
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	// Blind changes of the lifecycle run between them and must not undo a count.
	wg.Go(func() {
		for i := range 30 {
			to := []athena.Lifecycle{athena.Active, athena.Frozen}[i%2]
			if _, err := first.SetLifecycle(ctx, "shop", to, catalog.Any); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	ready(t, first)
	got, err := first.Client(ctx, "shop")
	if err != nil || got.Metadata["n"] != float64(writers*each) {
		t.Errorf("counted %v (%v), want %d", got.Metadata["n"], err, writers*each)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
