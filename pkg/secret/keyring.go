// Package secret holds the deployment's key and turns the references in client
// definitions into what they stand for.
//
// The key is an age X25519 identity: one short line, the same to seal and to
// open, and a sealed secret can be read without Athena by anyone who has the
// line and the age tool. Several lines are allowed, so that a key can be
// replaced: the first one seals, all of them open.
//
// The package knows nothing of clients; it is given a field's path to name in
// errors. It reads the environment through a function that it is given.
package secret

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/athena-pipelines/athena/pkg/athena"
)

const (
	// KeyVariable names the environment variable that takes the key file's
	// place.
	KeyVariable = "ATHENA_SECRET_KEY"
	// KeyFile is the name of the key file in the data directory.
	KeyFile = "secret.key"

	maxFile = 64 << 10 // bytes of a file that a reference names
)

// ownVariables are never given to a connection: whoever may write a definition
// could otherwise have Athena send its own keys to a server of their choice.
var ownVariables = [...]string{KeyVariable, "ATHENA_ADMIN_KEY", "ATHENA_KEY"}

// A Keyring is the deployment's key. It is safe for concurrent use.
type Keyring struct {
	identities []*age.X25519Identity // never empty
	file       string                // where they came from; empty for the environment
	getenv     func(string) string
}

// LoadOrCreate takes the key from the variable ATHENA_SECRET_KEY if it is set,
// else from secret.key in dataDir, which it makes, with mode 0600, if there is
// none. A key file that others may read is refused. Processes that start at
// once in one directory end up with one key.
func LoadOrCreate(dataDir string, getenv func(string) string) (*Keyring, error) {
	if text := getenv(KeyVariable); text != "" {
		k, err := Parse(text, getenv)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", KeyVariable, err)
		}
		return k, nil
	}
	path := filepath.Join(dataDir, KeyFile)
	k, err := load(path, getenv)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path); err == nil {
			k, err = load(path, getenv)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("deployment key: %w", err)
	}
	return k, nil
}

// Parse reads a key from text: lines that start with AGE-SECRET-KEY-, parted by
// any white space. Lines that start with # are comments.
func Parse(text string, getenv func(string) string) (*Keyring, error) {
	k := &Keyring{getenv: getenv}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, word := range strings.Fields(line) {
			id, err := age.ParseX25519Identity(word)
			if err != nil {
				// age's own error may quote what it was given.
				return nil, errors.New("not a deployment key; it must be a line of age-keygen that starts with AGE-SECRET-KEY-1")
			}
			k.identities = append(k.identities, id)
		}
	}
	if len(k.identities) == 0 {
		return nil, errors.New("no deployment key in it; it must hold a line of age-keygen that starts with AGE-SECRET-KEY-1")
	}
	return k, nil
}

func load(path string, getenv func(string) string) (*Keyring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s may be read by others (mode %04o); make it private with: chmod 600 %s", path, mode, path)
	}
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	k, err := Parse(text, getenv)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k.file = path
	return k, nil
}

// create makes a key file that is there as a whole or not at all. One that has
// appeared meanwhile is left as it is.
func create(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, KeyFile+".*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintf(tmp, "# Athena's deployment key: without it sealed secrets cannot be read. Keep a copy.\n%s\n", id)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Seal turns a literal into a sealed reference and leaves other references as
// they are. A sealed one must be readable with this deployment's key; it is an
// invalid_request at path otherwise.
func (k *Keyring) Seal(path string, s athena.Secret) (athena.Secret, error) {
	kind, value := s.Reference()
	switch kind {
	case athena.SecretEnv, athena.SecretFile:
		if value == "" {
			return s, athena.Errorf(athena.CodeInvalidRequest, "%s is %s: with nothing behind it", path, kind).At(path)
		}
		if err := k.guard(path, kind, value); err != nil {
			return s, err
		}
		return s, nil
	case athena.SecretSealed:
		if _, err := k.unseal(value); err != nil {
			return s, athena.Wrap(athena.CodeInvalidRequest, err, "%s is a sealed secret that this deployment's key cannot open; give the secret itself", path).At(path)
		}
		return s, nil
	}
	if value == "" {
		return s, nil
	}
	var box bytes.Buffer
	w, err := age.Encrypt(&box, k.identities[0].Recipient())
	if err != nil {
		return athena.Secret{}, fmt.Errorf("secret: seal %s: %w", path, err)
	}
	if _, err := io.WriteString(w, value); err != nil {
		return athena.Secret{}, fmt.Errorf("secret: seal %s: %w", path, err)
	}
	if err := w.Close(); err != nil {
		return athena.Secret{}, fmt.Errorf("secret: seal %s: %w", path, err)
	}
	return athena.NewSecret(string(athena.SecretSealed) + ":" + base64.RawURLEncoding.EncodeToString(box.Bytes())), nil
}

// Open replaces a reference by what it stands for; a literal stays as it is. A
// reference that leads to nothing on this process is a backend_unavailable
// error that names the variable or the file: another process may have it.
func (k *Keyring) Open(path string, s athena.Secret) (athena.Secret, error) {
	kind, value := s.Reference()
	if err := k.guard(path, kind, value); err != nil {
		return athena.Secret{}, err
	}
	switch kind {
	case athena.SecretEnv:
		text := k.getenv(value)
		if text == "" {
			return athena.Secret{}, unresolved(nil, path, "environment variable %s, which %s refers to, is not set on this process", value, path)
		}
		return athena.NewSecret(text), nil
	case athena.SecretFile:
		text, err := readFile(value)
		if err != nil {
			return athena.Secret{}, unresolved(err, path, "file %s, which %s refers to, cannot be read on this process: %s", value, path, reason(err))
		}
		return athena.NewSecret(text), nil
	case athena.SecretSealed:
		text, err := k.unseal(value)
		if err != nil {
			return athena.Secret{}, unresolved(err, path, "the sealed secret at %s cannot be opened with this process's deployment key", path)
		}
		return athena.NewSecret(text), nil
	}
	return s, nil
}

func unresolved(cause error, path, format string, args ...any) error {
	return athena.Wrap(athena.CodeBackendUnavailable, cause, format, args...).At(path)
}

// guard refuses references to Athena's own keys.
func (k *Keyring) guard(path string, kind athena.SecretKind, value string) error {
	own := false
	switch kind {
	case athena.SecretEnv:
		own = slices.Contains(ownVariables[:], value)
	case athena.SecretFile:
		own = k.file != "" && sameFile(k.file, value)
	}
	if own {
		return athena.Errorf(athena.CodeInvalidRequest, "%s refers to a key of Athena itself, which no connection is given", path).At(path)
	}
	return nil
}

func sameFile(a, b string) bool {
	ai, err := os.Stat(a)
	if err != nil {
		return false
	}
	bi, err := os.Stat(b)
	return err == nil && os.SameFile(ai, bi)
}

func (k *Keyring) unseal(value string) (string, error) {
	box, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return "", err
	}
	ids := make([]age.Identity, len(k.identities))
	for i, id := range k.identities {
		ids[i] = id
	}
	r, err := age.Decrypt(bytes.NewReader(box), ids...)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), err
}

// Derive returns 32 bytes that depend on the deployment's key, the purpose and
// info, and tell nothing of the key.
func (k *Keyring) Derive(purpose, info string) []byte {
	context := fmt.Sprintf("athena/%d/%s/%s", len(purpose), purpose, info)
	out, err := hkdf.Key(sha256.New, []byte(k.identities[0].String()), nil, context, 32)
	if err != nil {
		panic(err) // only for lengths that HKDF cannot give
	}
	return out
}

// Sign returns a MAC of data that is good for this purpose alone; Verify
// checks it.
func (k *Keyring) Sign(purpose string, data []byte) []byte {
	h := hmac.New(sha256.New, k.Derive(purpose, ""))
	h.Write(data)
	return h.Sum(nil)
}

// Verify reports, in constant time, whether mac is Sign's answer.
func (k *Keyring) Verify(purpose string, data, mac []byte) bool {
	return hmac.Equal(mac, k.Sign(purpose, data))
}

// readFile reads a small regular file, without the newline at its end.
func readFile(path string) (string, error) {
	info, err := os.Stat(path) // before opening: a pipe would block there
	if err != nil {
		return "", err
	}
	switch {
	case !info.Mode().IsRegular():
		return "", errNotRegular
	case info.Size() > maxFile:
		return "", errTooLarge
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case len(b) > maxFile:
		return "", errTooLarge
	case text == "":
		return "", errEmpty
	}
	return text, nil
}

var (
	errNotRegular = errors.New("it is not a regular file")
	errTooLarge   = fmt.Errorf("it is larger than %d KiB", maxFile>>10)
	errEmpty      = errors.New("it is empty")
)

// reason gives the part of a file error that is fit for a caller.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
