package mirror_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/mirror"
	"github.com/athena-pipelines/athena/pkg/mirror/mirrortest"
)

func bucket(t *testing.T) (jetstream.JetStream, jetstream.KeyValue) {
	t.Helper()
	js, _ := mirrortest.JetStream(t)
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "things", History: 3})
	if err != nil {
		t.Fatal(err)
	}
	return js, kv
}

func text(e jetstream.KeyValueEntry) string { return string(e.Value()) }

func put(t *testing.T, kv jetstream.KeyValue, key, value string) uint64 {
	t.Helper()
	rev, err := kv.PutString(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func sync5(t *testing.T, m *mirror.Mirror[string]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Sync(ctx); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, m *mirror.Mirror[string], want map[string]string) {
	t.Helper()
	got := map[string]string{}
	m.Range(func(k string, e *mirror.Entry[string]) bool { got[k] = e.Value; return true })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the mirror holds %v, want %v", got, want)
	}
}

func TestMirrorFollowsItsBucket(t *testing.T) {
	t.Parallel()
	_, kv := bucket(t)
	put(t, kv, "a", "1")
	put(t, kv, "b", "1")
	m := mirror.New(kv, text, nil)
	var mu sync.Mutex
	var told []string
	m.Subscribe(func(key string) { mu.Lock(); defer mu.Unlock(); told = append(told, key) })
	if m.Current() {
		t.Error("a mirror that does not run calls itself current")
	}
	mirrortest.Run(t, m.Run)
	sync5(t, m)
	want(t, m, map[string]string{"a": "1", "b": "1"})
	if !m.Current() {
		t.Error("a complete mirror does not call itself current")
	}

	put(t, kv, "a", "2")
	if err := kv.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	put(t, kv, "c", "1")
	sync5(t, m)
	want(t, m, map[string]string{"a": "2", "c": "1"})
	// Subscribers are told after the change, not with it.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		got := fmt.Sprint(told)
		mu.Unlock()
		if got == "[a b a b c]" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("told of %v", got)
		}
	}
}

func TestMirrorOfAnEmptyBucketIsComplete(t *testing.T) {
	t.Parallel()
	_, kv := bucket(t)
	m := mirror.New(kv, text, nil)
	mirrortest.Run(t, m.Run)
	sync5(t, m)
	want(t, m, map[string]string{})
}

func TestOwnWritesAreReadAtOnceAndNeverGoBack(t *testing.T) {
	t.Parallel()
	_, kv := bucket(t)
	m := mirror.New(kv, text, nil)
	first := put(t, kv, "a", "1")
	second := put(t, kv, "a", "2")
	m.Store("a", second, "2")
	m.Store("a", first, "1") // two writers finish in another order than they wrote
	want(t, m, map[string]string{"a": "2"})
	mirrortest.Run(t, m.Run)
	sync5(t, m)
	third := put(t, kv, "a", "3")
	if err := kv.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	sync5(t, m)
	m.Store("a", third, "3") // late: the watch has seen the deletion
	want(t, m, map[string]string{})
}

func TestMirrorComesBackAfterItsBucketWasMadeAnew(t *testing.T) {
	t.Parallel()
	js, kv := bucket(t)
	m := mirror.New(kv, text, nil)
	mirrortest.Run(t, m.Run)
	for i := range 20 {
		put(t, kv, fmt.Sprint("old", i), "1")
	}
	sync5(t, m)
	if err := js.DeleteKeyValue(t.Context(), "things"); err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "things"})
	if err != nil {
		t.Fatal(err)
	}
	put(t, kv, "new", "1")
	deadline := time.Now().Add(20 * time.Second)
	for m.Load("new") == nil || m.Load("old3") != nil || !m.Current() {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s: new %v, old %v, current %v", m.Load("new"), m.Load("old3"), m.Current())
		}
		time.Sleep(50 * time.Millisecond)
	}
	want(t, m, map[string]string{"new": "1"})
}

// TestKeysThatWentWhileNobodyWatched deletes and purges between two runs, so
// that no marker is left to tell of it.
func TestKeysThatWentWhileNobodyWatched(t *testing.T) {
	t.Parallel()
	_, kv := bucket(t)
	put(t, kv, "a", "1")
	put(t, kv, "b", "1")
	m := mirror.New(kv, text, nil)
	stop := mirrortest.Run(t, m.Run)
	sync5(t, m)
	stop()
	if err := kv.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := kv.PurgeDeletes(t.Context(), jetstream.DeleteMarkersOlderThan(-1)); err != nil {
		t.Fatal(err)
	}
	mirrortest.Run(t, m.Run)
	sync5(t, m)
	want(t, m, map[string]string{"a": "1"})
}

// TestMirrorOutlivesItsServer stops the server and starts another on the same
// data and port.
func TestMirrorOutlivesItsServer(t *testing.T) {
	t.Parallel()
	opts := server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	begin := func() *server.Server {
		s, err := server.NewServer(&opts)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("the server did not start within 10 s")
		}
		return s
	}
	first := begin()
	opts.Port = first.Addr().(*net.TCPAddr).Port
	nc, err := nats.Connect(first.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "things"})
	if err != nil {
		t.Fatal(err)
	}
	put(t, kv, "a", "1")
	m := mirror.New(kv, text, nil)
	mirrortest.Run(t, m.Run)
	sync5(t, m)

	first.Shutdown()
	first.WaitForShutdown()
	within := func(d time.Duration, what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(d); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within %s: %s", d, what)
			}
		}
	}
	within(10*time.Second, "not current without a server", func() bool { return !m.Current() })
	want(t, m, map[string]string{"a": "1"}) // what it knew, it knows

	begin()
	within(10*time.Second, "the server is back", nc.IsConnected)
	put(t, kv, "b", "2")
	within(20*time.Second, "the mirror follows again", func() bool { return m.Load("b") != nil && m.Current() })
	want(t, m, map[string]string{"a": "1", "b": "2"})
}

func TestManyChangesWhileRunning(t *testing.T) {
	t.Parallel()
	_, kv := bucket(t)
	m := mirror.New(kv, text, nil)
	mirrortest.Run(t, m.Run)
	model := map[string]string{}
	for i := range 2000 {
		key := fmt.Sprint("k", i%37)
		if i%11 == 0 {
			delete(model, key)
			if err := kv.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			continue
		}
		value := fmt.Sprint(i)
		rev := put(t, kv, key, value)
		m.Store(key, rev, value)
		model[key] = value
		if e := m.Load(key); e == nil || e.Value != value {
			t.Fatalf("after writing %s=%s the mirror holds %v", key, value, e)
		}
	}
	sync5(t, m)
	want(t, m, model)
}
