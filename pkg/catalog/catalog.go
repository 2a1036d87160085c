// Package catalog keeps client definitions in a JetStream key-value bucket.
//
// Every process watches the bucket and answers from its own copy, so that a
// change, such as a freeze, is seen everywhere within moments. Changes are
// compare-and-set by the revision of the definition's key. No literal secret
// is stored: what is not a reference is sealed on the way in.
//
// The package knows the definitions and not the engines: what an engine can do
// is told to it. It opens no secret and no backend.
package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/mirror"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Sealer is what the catalog needs of the deployment's key; a secret.Keyring
// is one.
type Sealer interface {
	// Seal turns a literal secret into a sealed reference.
	Seal(path string, s athena.Secret) (athena.Secret, error)
	// Sign returns a MAC of data under the deployment's key.
	Sign(purpose string, data []byte) []byte
}

// Config says what a Catalog works with. Keyring and Supports are required.
type Config struct {
	Keyring Sealer
	// Supports returns what an engine's driver implements; nothing for an
	// engine that is not in this build.
	Supports func(athena.Engine) athena.Capabilities
	Logger   *slog.Logger // none by default
}

// A Catalog is safe for concurrent use. Run must be running for it to answer.
type Catalog struct {
	kv     jetstream.KeyValue
	cfg    Config
	mirror *mirror.Mirror[record]
}

// New makes a catalog over the bucket.
func New(kv jetstream.KeyValue, cfg Config) *Catalog {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Catalog{kv: kv, cfg: cfg}
	c.mirror = mirror.New(kv, func(e jetstream.KeyValueEntry) record {
		r := decode(e)
		if r.err != nil {
			cfg.Logger.Error("a stored client definition cannot be read",
				telemetry.KeyClient, e.Key(), "revision", e.Revision(), telemetry.KeyError, r.err.Error())
		}
		return r
	}, cfg.Logger)
	return c
}

// Run follows the bucket until ctx is done, and then returns nil.
func (c *Catalog) Run(ctx context.Context) error { return c.mirror.Run(ctx) }

// Current reports whether this process's copy was complete and up to date when
// it was last looked at, a few seconds ago at most.
func (c *Catalog) Current() bool { return c.mirror.Current() }

// Ready returns nil once this process has seen every change that was stored
// before the call; otherwise, when ctx is done, bus_unavailable.
func (c *Catalog) Ready(ctx context.Context) error {
	if err := c.mirror.Sync(ctx); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the catalog of clients is not up to date on this process")
	}
	return nil
}

// Subscribe has fn called, one call at a time, with the name of each client
// that was made, changed or deleted, after Client answers accordingly; every
// client that there is counts as made when Run begins. fn must return quickly.
// The returned function ends it.
func (c *Catalog) Subscribe(fn func(name string)) (cancel func()) { return c.mirror.Subscribe(fn) }

// errNotFound is the same for every name, so that it tells nothing of any.
var errNotFound = athena.Errorf(athena.CodeClientNotFound, "there is no client with this name")

// Client returns the definition of the named client: client_not_found if there
// is none, internal if it is there and cannot be read. Right after the start
// it waits for the catalog to be read.
func (c *Catalog) Client(ctx context.Context, name string) (*athena.Client, error) {
	e := c.mirror.Load(name)
	if e == nil {
		if err := c.wait(ctx); err != nil {
			return nil, err
		}
		if e = c.mirror.Load(name); e == nil {
			return nil, errNotFound
		}
	}
	return e.Value.client, e.Value.err
}

// List returns all definitions that can be read, by name.
func (c *Catalog) List(ctx context.Context) ([]*athena.Client, error) {
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	var list []*athena.Client
	c.mirror.Range(func(_ string, e *mirror.Entry[record]) bool {
		if e.Value.err == nil {
			list = append(list, e.Value.client)
		}
		return true
	})
	slices.SortFunc(list, func(a, b *athena.Client) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (c *Catalog) wait(ctx context.Context) error {
	if err := c.mirror.Wait(ctx); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the catalog of clients has not been read yet on this process")
	}
	return nil
}

// A Problem is a stored definition that this process cannot read.
type Problem struct {
	Name     string
	Revision uint64
	Err      error // internal; its cause says what is wrong
}

// Problems lists the definitions that cannot be read, by name.
func (c *Catalog) Problems() []Problem {
	var list []Problem
	c.mirror.Range(func(name string, e *mirror.Entry[record]) bool {
		if e.Value.err != nil {
			list = append(list, Problem{name, e.Revision, e.Value.err})
		}
		return true
	})
	slices.SortFunc(list, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Expect is the revision that a change is made against. A revision is what
// Client.Revision said; the two constants are never revisions.
type Expect uint64

const (
	// Absent expects that there is no such client.
	Absent Expect = 0
	// Any expects nothing.
	Any Expect = math.MaxUint64
)

// Put stores a definition and returns it as it is stored. It takes the place
// of the one of the same name, if the latter is at the expected revision;
// otherwise the answer is a conflict error. def.Revision is not looked at.
//
// Literal secrets are sealed. A secret given as athena.Redacted keeps the
// stored one. A grant of more than the engine's driver implements is
// capability_unsupported. A bus_unavailable error leaves open whether the
// change was stored.
func (c *Catalog) Put(ctx context.Context, def *athena.Client, expected Expect) (*athena.Client, error) {
	return c.change(ctx, def.Name, expected, func(old record) (record, error) {
		return record{client: def, applied: old.applied}, nil
	})
}

// SetLifecycle changes a client's lifecycle and nothing else.
func (c *Catalog) SetLifecycle(ctx context.Context, name string, to athena.Lifecycle, expected Expect) (*athena.Client, error) {
	return c.change(ctx, name, expected, func(old record) (record, error) {
		switch {
		case old.revision == 0:
			return old, errNotFound
		case old.err != nil:
			return old, old.err
		case old.client.Lifecycle == to:
			return old, errUnchanged
		}
		def := *old.client
		def.Lifecycle = to
		return record{client: &def, applied: old.applied}, nil
	})
}

// Delete removes a client: client_not_found if there is none, conflict if it
// is not at the expected revision. Absent is not a sensible expectation here.
func (c *Catalog) Delete(ctx context.Context, name string, expected Expect) error {
	for attempt := 0; ; attempt++ {
		old, err := c.read(ctx, name)
		if err != nil {
			return err
		}
		if old.revision == 0 {
			return errNotFound
		}
		if expected != Any && old.revision != uint64(expected) {
			return conflict(name, expected, old.revision)
		}
		err = c.kv.Delete(ctx, name, jetstream.LastRevision(old.revision))
		switch {
		case err == nil:
			// The marker's revision is not told, so this process waits to see
			// it. The deletion stands even if it waits in vain.
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			if err := c.mirror.Sync(ctx); err != nil {
				c.cfg.Logger.Warn("a deleted client may still be seen for a moment", telemetry.KeyClient, name, telemetry.KeyError, err.Error())
			}
			return nil
		case !errors.Is(err, jetstream.ErrKeyRevisionMismatch):
			return unavailable(ctx, err)
		}
		if err := c.again(ctx, attempt, name, expected); err != nil {
			return err
		}
	}
}

// errUnchanged ends a change that would change nothing.
var errUnchanged = errors.New("catalog: nothing to change")

// change is the one way to write a definition: it reads what is stored, lets
// derive make the new record of it, and stores that if nobody was faster;
// otherwise, unless a revision was asked for, it begins again.
func (c *Catalog) change(ctx context.Context, name string, expected Expect,
	derive func(old record) (record, error)) (*athena.Client, error) {
	if err := athena.CheckName(name); err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		old, err := c.read(ctx, name)
		if err != nil {
			return nil, err
		}
		if expected != Any && old.revision != uint64(expected) {
			return nil, conflict(name, expected, old.revision)
		}
		next, err := derive(old)
		if errors.Is(err, errUnchanged) {
			return old.client, nil
		}
		if err != nil {
			return nil, err
		}
		raw, err := c.prepare(&next, old)
		if err != nil {
			return nil, err
		}
		rev, err := c.write(ctx, name, raw, old.revision)
		switch {
		case err == nil:
			stored := decodeValue(name, rev, raw)
			c.mirror.Store(name, rev, stored)
			return stored.client, stored.err
		case !errors.Is(err, jetstream.ErrKeyRevisionMismatch) && !errors.Is(err, jetstream.ErrKeyExists):
			return nil, unavailable(ctx, err)
		}
		if err := c.again(ctx, attempt, name, expected); err != nil {
			return nil, err
		}
	}
}

func (c *Catalog) write(ctx context.Context, name string, raw []byte, over uint64) (uint64, error) {
	if over == 0 {
		return c.kv.Create(ctx, name, raw)
	}
	return c.kv.Update(ctx, name, raw, over)
}

// again decides, after somebody else was faster, whether to try once more.
func (c *Catalog) again(ctx context.Context, attempt int, name string, expected Expect) error {
	const most = 50
	if attempt == most {
		return athena.Errorf(athena.CodeConflict, "client %q is being changed by others all the time; try again", name)
	}
	if expected != Any { // what is stored now says which revision won
		old, err := c.read(ctx, name)
		if err != nil {
			return err
		}
		if old.revision != uint64(expected) {
			return conflict(name, expected, old.revision)
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rand.N(time.Duration(attempt+1) * 2 * time.Millisecond)):
		return nil
	}
}

// prepare makes next fit to be stored: secrets kept or sealed, grants within
// what the engine can do, and readable again by DecodeClient.
func (c *Catalog) prepare(next *record, old record) ([]byte, error) {
	def := *next.client
	def.Revision = 0
	if def.Connection == nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "connection is missing").At("connection")
	}
	conn, err := def.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
		if s.Reveal() == athena.Redacted {
			return old.secret(path, def.Engine())
		}
		return c.cfg.Keyring.Seal(path, s)
	})
	if err != nil {
		return nil, err
	}
	def.Connection = conn
	if extra := def.Capabilities.Minus(c.cfg.Supports(def.Engine())); extra != 0 {
		return nil, athena.Errorf(athena.CodeCapabilityUnsupported,
			"client %q is granted %s, which engine %s does not support; leave it out of capabilities", def.Name, extra, def.Engine()).
			At("capabilities."+extra.List()[0].String()).With("capabilities", strings.Split(extra.String(), ", "))
	}
	raw, err := def.EncodeStored()
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the definition of client %q cannot be written as JSON", def.Name)
	}
	if _, err := athena.DecodeClient(raw); err != nil {
		return nil, err
	}
	next.client = &def
	return json.Marshal(envelope{Version: version, Definition: raw, Applied: next.applied})
}

// read returns what is stored under name; the record's revision is 0 if
// there is nothing.
func (c *Catalog) read(ctx context.Context, name string) (record, error) {
	if athena.CheckName(name) != nil {
		return record{}, nil
	}
	e, err := c.kv.Get(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return record{}, nil
	case err != nil:
		return record{}, unavailable(ctx, err)
	}
	// In a cluster the answer may come from a replica that lags behind what
	// this process has seen already.
	if seen := c.mirror.Load(name); seen != nil && seen.Revision > e.Revision() {
		return seen.Value, nil
	}
	return decode(e), nil
}

func conflict(name string, expected Expect, current uint64) error {
	var e *athena.Error
	switch {
	case expected == Absent:
		e = athena.Errorf(athena.CodeConflict, "client %q is there already, at revision %d", name, current)
	case current == 0:
		e = athena.Errorf(athena.CodeConflict, "client %q was expected at revision %d and is not there", name, uint64(expected))
	default:
		e = athena.Errorf(athena.CodeConflict, "client %q is at revision %d, not %d; read it again and repeat the change", name, current, uint64(expected))
	}
	return e.With("expected_revision", uint64(expected)).With("current_revision", current)
}

func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "the catalog of clients cannot be reached; a change may or may not have been stored")
}

// version is that of the envelope. A later one may not be readable.
const version = 1

// envelope is what is stored under a client's name.
type envelope struct {
	Version    int             `json:"v"`
	Definition json.RawMessage `json:"definition"`
	Applied    *applied        `json:"applied,omitempty"`
}

// applied remembers what a file last said of a client; see Apply.
type applied struct {
	Mark      string           `json:"mark"` // a MAC, since a file may hold secrets
	Lifecycle athena.Lifecycle `json:"lifecycle"`
}

// record is a stored definition, or why it cannot be read.
type record struct {
	client   *athena.Client
	applied  *applied
	revision uint64
	err      error
}

// secret returns the stored secret at path, to stand for a redacted one.
func (r record) secret(path string, engine athena.Engine) (athena.Secret, error) {
	var kept athena.Secret
	if r.client != nil && r.client.Engine() == engine {
		r.client.Connection.MapSecrets(func(p string, s athena.Secret) (athena.Secret, error) {
			if p == path {
				kept = s
			}
			return s, nil
		})
	}
	if kept.IsZero() {
		return kept, athena.Errorf(athena.CodeInvalidRequest, "%s is %q, which stands for the stored secret, and none is stored; give the secret or a reference to it", path, athena.Redacted).At(path)
	}
	return kept, nil
}

func decode(e jetstream.KeyValueEntry) record { return decodeValue(e.Key(), e.Revision(), e.Value()) }

func decodeValue(name string, revision uint64, value []byte) record {
	fail := func(err error) record {
		return record{revision: revision, err: athena.Wrap(athena.CodeInternal, err,
			"the stored definition of client %q cannot be read by this version of Athena; store it again, or use the version that stored it", name)}
	}
	var env envelope
	if err := json.Unmarshal(value, &env); err != nil {
		return fail(err)
	}
	if env.Version != version {
		return fail(fmt.Errorf("catalog: the envelope has version %d, want %d", env.Version, version))
	}
	client, err := athena.DecodeClient(env.Definition)
	if err != nil {
		return fail(err)
	}
	if client.Name != name {
		return fail(fmt.Errorf("catalog: key %q holds client %q", name, client.Name))
	}
	client.Revision = revision
	return record{client: client, applied: env.Applied, revision: revision}
}
