package secret_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/secret"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func newIdentity(t testing.TB) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func keyring(t testing.TB, vars map[string]string) *secret.Keyring {
	t.Helper()
	k, err := secret.Parse(newIdentity(t), env(vars))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestLoadOrCreate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, secret.KeyFile)

	first, err := secret.LoadOrCreate(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key file has mode %04o, want 0600", info.Mode().Perm())
	}
	again, err := secret.LoadOrCreate(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Derive("p", ""), again.Derive("p", "")) {
		t.Error("the second start has another key than the first")
	}

	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = secret.LoadOrCreate(dir, env(nil))
	if err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("a key file that the group may read gave %v", err)
	}

	given, err := secret.LoadOrCreate(dir, env(map[string]string{secret.KeyVariable: newIdentity(t)}))
	if err != nil {
		t.Fatalf("the environment's key was not taken before the file: %v", err)
	}
	if bytes.Equal(first.Derive("p", ""), given.Derive("p", "")) {
		t.Error("the environment's key is the file's")
	}
}

func TestLoadOrCreateRefusesWhatIsNoKey(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"a password":              "hunter2-hunter2-hunter2",
		"a key cut short":         newIdentity(t)[:40],
		"nothing but a comment":   "# AGE-SECRET-KEY-1",
		"a key and then a secret": newIdentity(t) + "\nhunter2-hunter2-hunter2",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := secret.LoadOrCreate(t.TempDir(), env(map[string]string{secret.KeyVariable: text}))
			if err == nil || !strings.Contains(err.Error(), secret.KeyVariable) {
				t.Fatalf("got %v, want an error that names %s", err, secret.KeyVariable)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), text) {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

func TestProcessesThatStartAtOnceShareOneKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for range 20 {
		wg.Go(func() {
			k, err := secret.LoadOrCreate(dir, env(nil))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[string(k.Derive("p", ""))] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d different keys", len(seen))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("the directory holds %v (%v), want the key file alone", left, err)
	}
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	k := keyring(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Filter(func(s string) bool {
			kind, _ := athena.NewSecret(s).Reference()
			return kind == athena.SecretLiteral && s != ""
		}).Draw(t, "text")
		sealed, err := k.Seal("connection.dsn", athena.NewSecret(text))
		if err != nil {
			t.Fatal(err)
		}
		kind, value := sealed.Reference()
		if kind != athena.SecretSealed || len(text) > 8 && strings.Contains(value, text) {
			t.Fatalf("sealed to %s:%s", kind, value)
		}
		if again, err := k.Seal("connection.dsn", sealed); err != nil || !again.Equal(sealed) {
			t.Fatalf("sealing twice changed the secret (%v)", err)
		}
		opened, err := k.Open("connection.dsn", sealed)
		if err != nil || opened.Reveal() != text {
			t.Fatalf("opened to another text (%v)", err)
		}
	})
}

func TestReplacedKeyStillOpens(t *testing.T) {
	t.Parallel()
	old, young := newIdentity(t), newIdentity(t)
	before, err := secret.Parse(old, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := before.Seal("p", athena.NewSecret("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	both, err := secret.Parse("# new, then old\n"+young+"\n"+old+"\n", env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := both.Open("p", sealed); err != nil || s.Reveal() != "s3cret" {
		t.Errorf("the old key's secret: %v", err)
	}
	fresh, err := both.Seal("p", athena.NewSecret("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.Open("p", fresh); err == nil {
		t.Error("the old key opens what was sealed with the new one")
	}
}

func TestOpenReferences(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	k := keyring(t, map[string]string{"SHOP_DSN": "pl4nted", "ATHENA_ADMIN_KEY": "pl4nted"})
	other := keyring(t, nil)
	foreign, err := other.Seal("p", athena.NewSecret("pl4nted"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		in, want string
		code     athena.Code
		says     string
	}{
		"a variable":                        {in: "env:SHOP_DSN", want: "pl4nted"},
		"a variable that is not set":        {in: "env:NOPE", code: athena.CodeBackendUnavailable, says: "environment variable NOPE"},
		"a variable of Athena's own":        {in: "env:ATHENA_ADMIN_KEY", code: athena.CodeInvalidRequest, says: "key of Athena itself"},
		"a file":                            {in: "file:" + file("plain", "pl4nted"), want: "pl4nted"},
		"a file with a newline at its end":  {in: "file:" + file("nl", "pl4nted\n"), want: "pl4nted"},
		"a file from Windows":               {in: "file:" + file("crlf", "pl4nted\r\n"), want: "pl4nted"},
		"only one newline is trimmed":       {in: "file:" + file("nlnl", "pl4nted\n\n"), want: "pl4nted\n"},
		"a file that is not there":          {in: "file:" + dir + "/nope", code: athena.CodeBackendUnavailable, says: dir + "/nope"},
		"an empty file":                     {in: "file:" + file("empty", "\n"), code: athena.CodeBackendUnavailable, says: "it is empty"},
		"a file that is far too large":      {in: "file:" + file("big", strings.Repeat("pl4nted", 10_000)), code: athena.CodeBackendUnavailable, says: "larger than 64 KiB"},
		"a directory":                       {in: "file:" + dir, code: athena.CodeBackendUnavailable, says: "not a regular file"},
		"a secret sealed by somebody else":  {in: foreign.Reveal(), code: athena.CodeBackendUnavailable, says: "deployment key"},
		"a sealed secret that is garbage":   {in: "sealed:pl4nted", code: athena.CodeBackendUnavailable, says: "deployment key"},
		"a literal":                         {in: "pl4nted", want: "pl4nted"},
		"nothing":                           {},
		"a colon does not make a reference": {in: "postgres://a:pl4nted@b/c", want: "postgres://a:pl4nted@b/c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := k.Open("connection.dsn", athena.NewSecret(test.in))
			if athena.CodeOf(err) != test.code || got.Reveal() != test.want {
				t.Fatalf("got %q, %v", got.Reveal(), err)
			}
			if err == nil {
				return
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "connection.dsn") {
				t.Errorf("%v does not say %q and the field", err, test.says)
			}
			if shown := fmt.Sprintf("%v %+v", err, err); strings.Contains(shown, "pl4nted") {
				t.Errorf("the error shows the secret: %s", shown)
			}
		})
	}
}

func TestOpenRefusesTheKeyFileItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k, err := secret.LoadOrCreate(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	alias := filepath.Join(t.TempDir(), "innocent")
	if err := os.Symlink(filepath.Join(dir, secret.KeyFile), alias); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, secret.KeyFile), alias} {
		if s, err := k.Open("p", athena.NewSecret("file:"+path)); athena.CodeOf(err) != athena.CodeInvalidRequest || !s.IsZero() {
			t.Errorf("opening %s gave %v", path, err)
		}
	}
}

func TestSealRefusesWhatCouldNotBeOpened(t *testing.T) {
	t.Parallel()
	k := keyring(t, nil)
	for name, text := range map[string]string{
		"a variable without a name":  "env:",
		"a file without a path":      "file:",
		"a sealed secret of nobody":  "sealed:AAAA",
		"a variable of Athena's own": "env:ATHENA_SECRET_KEY",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := k.Seal("connection.dsn", athena.NewSecret(text))
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatalf("got %v", err)
			}
			if e := athena.AsError(err); e.Details["field"] != "connection.dsn" {
				t.Errorf("details are %v", e.Details)
			}
		})
	}
}

func TestPurposesAreKeptApart(t *testing.T) {
	t.Parallel()
	k := keyring(t, nil)
	seen := map[string]string{}
	for _, p := range [][2]string{{"a", ""}, {"a", "b"}, {"ab", ""}, {"a/b", ""}, {"a", "/b"}, {"", "a"}} {
		key := string(k.Derive(p[0], p[1]))
		if len(key) != 32 {
			t.Errorf("%d bytes", len(key))
		}
		if was, ok := seen[key]; ok {
			t.Errorf("%q and %q have the same key", p, was)
		}
		seen[key] = fmt.Sprint(p)
	}
	mac := k.Sign("cursor", []byte("page 2"))
	switch {
	case !k.Verify("cursor", []byte("page 2"), mac):
		t.Error("a good MAC is refused")
	case k.Verify("cursor", []byte("page 3"), mac), k.Verify("webhook", []byte("page 2"), mac),
		k.Verify("cursor", []byte("page 2"), nil), keyring(t, nil).Verify("cursor", []byte("page 2"), mac):
		t.Error("a forged MAC is taken")
	}
}
