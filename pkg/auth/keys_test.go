package auth_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/mirror/mirrortest"
)

func start(t testing.TB, kv jetstream.KeyValue) *auth.Keys {
	t.Helper()
	k := auth.NewKeys(kv, nil)
	mirrortest.Run(t, k.Run)
	ready(t, k)
	return k
}

func ready(t testing.TB, k *auth.Keys) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := k.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func grants(t testing.TB, words ...string) (list []auth.Grant) {
	t.Helper()
	for _, w := range words {
		g, err := auth.ParseGrant(w)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, g)
	}
	return list
}

func wantCode(t testing.TB, err error, want athena.Code) *athena.Error {
	t.Helper()
	if got := athena.CodeOf(err); got != want {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
	return athena.AsError(err)
}

func wrongSecret(plain string) string {
	id, _, _ := strings.Cut(plain, ".")
	return id + "." + strings.Repeat("A", 43)
}

func TestKeysLiveAndEnd(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv := mirrortest.Bucket(t, "ath_keys")
	here, there := start(t, kv), start(t, kv)
	_, err := here.Verify(ctx, "")
	if e := wantCode(t, err, athena.CodeUnauthenticated); !strings.Contains(e.Message, "Authorization: Bearer") {
		t.Errorf("nothing got %v", e)
	}
	over := make(chan string, 10)
	there.Subscribe(func(id string) { over <- id })

	plain, key, err := here.Create(ctx, auth.NewKeySpec{Name: "ci", Grants: grants(t, "query", "deferred:read"), Clients: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := here.Verify(ctx, plain)
	if err != nil || p.Key != key.ID || p.Name != "ci" || fmt.Sprint(p.Grants) != "[query deferred:read]" || fmt.Sprint(p.Clients) != "[shop]" {
		t.Fatalf("right after it was made: %v, %v", p, err)
	}
	ready(t, there)
	if _, err := there.Verify(ctx, plain); err != nil {
		t.Fatalf("on another process: %v", err)
	}

	if p, err := there.Principal(ctx, key.ID); err != nil || p.Key != key.ID || fmt.Sprint(p.Clients) != "[shop]" {
		t.Errorf("by its id: %v, %v", p, err)
	}
	for _, id := range []string{"", "0123456789abcdef", key.ID + ".used"} {
		_, err = there.Principal(ctx, id)
		wantCode(t, err, athena.CodeNotFound)
	}

	entry, err := kv.Get(ctx, key.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(plain, ".")
	if bytes.Contains(entry.Value(), []byte(secret)) {
		t.Errorf("the secret is stored: %s", entry.Value())
	}

	_, err = there.Verify(ctx, wrongSecret(plain))
	wrong := wantCode(t, err, athena.CodeUnauthenticated)
	_, err = there.Verify(ctx, auth.NewKey().Reveal())
	if unknown := wantCode(t, err, athena.CodeUnauthenticated); unknown.Error() != wrong.Error() || fmt.Sprint(unknown.Details) != fmt.Sprint(wrong.Details) {
		t.Errorf("an unknown id (%v) and a wrong secret (%v) can be told apart", unknown, wrong)
	}

	revoked, err := here.Revoke(ctx, key.ID, "0000000000000000")
	if err != nil || revoked.RevokedAt == nil || revoked.RevokedBy != "0000000000000000" {
		t.Fatalf("%v, %v", revoked, err)
	}
	_, err = here.Verify(ctx, plain)
	if e := wantCode(t, err, athena.CodeUnauthenticated); !strings.Contains(e.Message, "revoked") {
		t.Errorf("a revoked key got %v", e)
	}
	_, err = here.Principal(ctx, key.ID)
	if e := wantCode(t, err, athena.CodeUnauthenticated); !strings.Contains(e.Message, "revoked") {
		t.Errorf("by its id a revoked key got %v", e)
	}
	select {
	case id := <-over:
		if id != key.ID {
			t.Errorf("told of %s", id)
		}
	case <-time.After(time.Second):
		t.Fatal("a revocation was not told to another process within a second")
	}
	_, err = there.Verify(ctx, wrongSecret(plain))
	if e := wantCode(t, err, athena.CodeUnauthenticated); e.Error() != wrong.Error() {
		t.Errorf("without the secret one learns of the revocation: %v", e)
	}
	again, err := there.Revoke(ctx, key.ID, "somebody else")
	if err != nil || !again.RevokedAt.Equal(*revoked.RevokedAt) || again.RevokedBy != revoked.RevokedBy {
		t.Errorf("revoked twice: %v, %v", again, err)
	}
	for _, id := range []string{"", "0123456789abcdef", "..", ">", key.ID + ".used"} {
		_, err = here.Revoke(ctx, id, "x")
		wantCode(t, err, athena.CodeNotFound)
	}
}

// TestOnTheDeploymentsBucket runs on the bucket with the settings that a
// deployment gives it.
func TestOnTheDeploymentsBucket(t *testing.T) {
	t.Parallel()
	kv, err := bustest.Start(t).JetStream().KeyValue(t.Context(), bus.BucketKeys)
	if err != nil {
		t.Fatal(err)
	}
	k := start(t, kv)
	plain, err := k.Bootstrap(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.Verify(t.Context(), plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Revoke(t.Context(), p.Key, "x"); err != nil {
		t.Fatal(err)
	}
	_, err = k.Verify(t.Context(), plain)
	wantCode(t, err, athena.CodeUnauthenticated)
	if !k.Current() {
		t.Error("the keys are not current")
	}
}

func TestKeysExpire(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	k := start(t, mirrortest.Bucket(t, "ath_keys"))
	over := make(chan string, 10)
	k.Subscribe(func(id string) { over <- id })
	at := time.Now().Add(300 * time.Millisecond)
	plain, key, err := k.Create(ctx, auth.NewKeySpec{Name: "short", Grants: grants(t, "query"), ExpiresAt: &at})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Verify(ctx, plain); err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-over:
		if id != key.ID || time.Now().Before(at) {
			t.Errorf("told of %s, %s early", id, time.Until(at))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("an expiry is not told")
	}
	_, err = k.Verify(ctx, plain)
	if e := wantCode(t, err, athena.CodeUnauthenticated); !strings.Contains(e.Message, "expired") {
		t.Errorf("an expired key got %v", e)
	}
}

func TestCreateGivesNoMoreThanItsMakerHas(t *testing.T) {
	t.Parallel()
	k := start(t, mirrortest.Bucket(t, "ath_keys"))
	past := time.Now().Add(-time.Second)
	admin := &auth.Principal{Key: "a", Grants: grants(t, "admin")}
	bound := &auth.Principal{Key: "b", Grants: grants(t, "admin"), Clients: []string{"shop"}}
	reader := &auth.Principal{Key: "r", Grants: grants(t, "admin:read")}
	for name, test := range map[string]struct {
		spec auth.NewKeySpec
		code athena.Code
	}{
		"no name":                     {auth.NewKeySpec{Grants: grants(t, "query")}, athena.CodeInvalidRequest},
		"a name without end":          {auth.NewKeySpec{Name: strings.Repeat("x", 101), Grants: grants(t, "query")}, athena.CodeInvalidRequest},
		"no right":                    {auth.NewKeySpec{Name: "n"}, athena.CodeInvalidRequest},
		"an unknown right":            {auth.NewKeySpec{Name: "n", Grants: []auth.Grant{{Right: "root"}}}, athena.CodeInvalidRequest},
		"a client that cannot be":     {auth.NewKeySpec{Name: "n", Grants: grants(t, "query"), Clients: []string{"*"}}, athena.CodeInvalidRequest},
		"expired before it began":     {auth.NewKeySpec{Name: "n", Grants: grants(t, "query"), ExpiresAt: &past}, athena.CodeInvalidRequest},
		"an admin gives anything":     {auth.NewKeySpec{Name: "n", Grants: grants(t, "admin", "cdc"), By: admin}, ""},
		"a reader gives reading":      {auth.NewKeySpec{Name: "n", Grants: grants(t, "query:read"), By: reader}, ""},
		"a reader gives no writing":   {auth.NewKeySpec{Name: "n", Grants: grants(t, "query"), By: reader}, athena.CodeForbidden},
		"a bound key gives its own":   {auth.NewKeySpec{Name: "n", Grants: grants(t, "admin"), Clients: []string{"shop"}, By: bound}, ""},
		"a bound key gives no other":  {auth.NewKeySpec{Name: "n", Grants: grants(t, "query"), Clients: []string{"shop", "lake"}, By: bound}, athena.CodeForbidden},
		"a bound key gives not all":   {auth.NewKeySpec{Name: "n", Grants: grants(t, "query"), By: bound}, athena.CodeForbidden},
		"the process itself gives it": {auth.NewKeySpec{Name: "n", Grants: grants(t, "admin")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain, key, err := k.Create(t.Context(), test.spec)
			wantCode(t, err, test.code)
			if (plain == "") != (err != nil) {
				t.Errorf("got key %v with error %v", key, err)
			}
			if err == nil && test.spec.By != nil && key.CreatedBy != test.spec.By.Key {
				t.Errorf("made by %q", key.CreatedBy)
			}
		})
	}
}

func TestLastUseIsWrittenOffTheRoad(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv := mirrortest.Bucket(t, "ath_keys")
	k, other := start(t, kv), start(t, kv)
	plain, key, err := k.Create(ctx, auth.NewKeySpec{Name: "ci", Grants: grants(t, "query")})
	if err != nil {
		t.Fatal(err)
	}
	used := func() *time.Time {
		list, err := k.List(ctx)
		if err != nil || len(list) != 1 || list[0].ID != key.ID {
			t.Fatalf("listed %v, %v", list, err)
		}
		return list[0].LastUsedAt
	}
	if used() != nil {
		t.Error("a key is used before it was used")
	}
	for range 1000 {
		if _, err := k.Verify(ctx, plain); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); used() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the last use was not written within 5 s")
		}
	}
	if ago := time.Since(*used()); ago < 0 || ago > time.Minute {
		t.Errorf("last used %s ago", ago)
	}
	ready(t, other)
	if _, err := other.Verify(ctx, plain); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for a second note, which must not come
	status, err := kv.Status(ctx)
	if err != nil || status.Values() != 2 {
		t.Errorf("the bucket holds %d values (%v), want the key and one note", status.Values(), err)
	}
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv := mirrortest.Bucket(t, "ath_keys")
	var mu sync.Mutex
	var plains []string
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			plain, err := auth.NewKeys(kv, nil).Bootstrap(ctx, "")
			if err != nil {
				t.Error(err)
			}
			if plain != "" {
				mu.Lock()
				defer mu.Unlock()
				plains = append(plains, plain)
			}
		})
	}
	wg.Wait()
	if len(plains) != 1 {
		t.Fatalf("%d processes got a first key, want 1", len(plains))
	}
	k := start(t, kv)
	p, err := k.Verify(ctx, plains[0])
	if err != nil || !p.May(auth.Admin, auth.Write) || !p.MayActAs("anybody") {
		t.Fatalf("the first key is %v, %v", p, err)
	}
	if _, err := k.Revoke(ctx, p.Key, "x"); err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Bootstrap(ctx, ""); plain != "" || err != nil {
		t.Errorf("a bucket with keys gave another first key (%v)", err)
	}
}

func TestBootstrapFromTheEnvironment(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	k := start(t, mirrortest.Bucket(t, "ath_keys"))
	given := auth.NewKey().Reveal()
	for range 3 { // each start of the process
		if plain, err := k.Bootstrap(ctx, given); plain != "" || err != nil {
			t.Fatalf("got %q, %v", plain, err)
		}
	}
	if list, err := k.List(ctx); err != nil || len(list) != 1 {
		t.Fatalf("listed %v, %v", list, err)
	}
	p, err := k.Verify(ctx, given)
	if err != nil || !p.May(auth.Admin, auth.Write) {
		t.Fatalf("%v, %v", p, err)
	}

	_, err = k.Bootstrap(ctx, "hunter2")
	if e := wantCode(t, err, athena.CodeInvalidRequest); strings.Contains(e.Message, "hunter2") || !strings.Contains(e.Message, "ATHENA_ADMIN_KEY") {
		t.Errorf("message %q", e.Message)
	}
	_, err = k.Bootstrap(ctx, wrongSecret(given))
	wantCode(t, err, athena.CodeConflict)
	weak, _, err := k.Create(ctx, auth.NewKeySpec{Name: "weak", Grants: grants(t, "query")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Bootstrap(ctx, weak)
	wantCode(t, err, athena.CodeConflict)
	if _, err := k.Revoke(ctx, p.Key, "x"); err != nil {
		t.Fatal(err)
	}
	_, err = k.Bootstrap(ctx, given)
	wantCode(t, err, athena.CodeConflict)
}

func TestUnreadableKeysAreRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kv := mirrortest.Bucket(t, "ath_keys")
	p := auth.NewKey()
	for name, value := range map[string]string{
		p.ID:               `{"v": 1, "id": "` + p.ID + `", "grants": ["admin"]}`,
		"0123456789abcdef": "garbage",
		"cafe.used":        "not a time",
		"unexpected":       `{}`,
	} {
		if _, err := kv.PutString(ctx, name, value); err != nil {
			t.Fatal(err)
		}
	}
	k := start(t, kv)
	_, err := k.Verify(ctx, p.Reveal())
	wantCode(t, err, athena.CodeUnauthenticated)
	if list, err := k.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	_, err = k.Revoke(ctx, p.ID, "x")
	wantCode(t, err, athena.CodeInternal)
}

func TestBeforeTheKeysWereRead(t *testing.T) {
	t.Parallel()
	k := auth.NewKeys(mirrortest.Bucket(t, "ath_keys"), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := k.Verify(ctx, auth.NewKey().Reveal())
	wantCode(t, err, athena.CodeBusUnavailable)
	_, err = k.List(ctx)
	wantCode(t, err, athena.CodeBusUnavailable)
	wantCode(t, k.Ready(ctx), athena.CodeBusUnavailable)
}

func BenchmarkVerify(b *testing.B) {
	k := start(b, mirrortest.Bucket(b, "ath_keys"))
	plain, _, err := k.Create(b.Context(), auth.NewKeySpec{Name: "ci", Grants: grants(b, "query")})
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	for name, key := range map[string]string{"good": plain, "wrong secret": wrongSecret(plain), "unknown": auth.NewKey().Reveal()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Verify(ctx, key); (err == nil) != (name == "good") {
					b.Fatal(err)
				}
			}
		})
	}
}
