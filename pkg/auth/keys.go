package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/mirror"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// touchEvery is how exact LastUsedAt is.
	touchEvery = time.Minute
	// touchQueue bounds the uses that wait to be written. What does not fit is
	// dropped, and written at a later use.
	touchQueue = 256

	// firstID is the id of the key that Bootstrap makes. It is always the same,
	// so that of processes that start at once exactly one can store it.
	firstID = "0000000000000000"
	// usedSuffix follows a key's id in the name of the entry with its last use,
	// apart from the key so that it never meets a change of the key.
	usedSuffix = ".used"
)

// A Key is what is known of a key besides its secret.
type Key struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Grants    []Grant    `json:"grants"`
	Clients   []string   `json:"clients,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	CreatedBy string     `json:"created_by"` // a key's id, or what the process calls itself
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// LastUsedAt is exact to about a minute.
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
	RevokedAt  *time.Time `json:"revoked_at,omitempty"`
	RevokedBy  string     `json:"revoked_by,omitempty"`
}

// stored is the entry of a key.
type stored struct {
	Version int `json:"v"`
	Key
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"` // SHA-256 of salt and secret
}

const storedVersion = 1

// cached is an entry of the bucket, ready to be compared with: a key or, under
// the name with usedSuffix, a last use.
type cached struct {
	stored
	principal *Principal
	used      time.Time
	err       error
	// touched is when a use was last handed on by this process, in Unix
	// seconds.
	touched *atomic.Int64
}

// Keys are the keys of a deployment, in a JetStream key-value bucket that every
// process watches. It is safe for concurrent use; Run must be running for it to
// answer.
type Keys struct {
	kv      jetstream.KeyValue
	log     *slog.Logger
	mirror  *mirror.Mirror[cached]
	touches chan string
	changed chan struct{} // has one element if expiries are to be looked at anew

	mu   sync.Mutex
	subs map[*subscription]struct{}
	told map[string]bool // keys of which subscribers know that they are over
}

type subscription struct{ fn func(id string) }

// NewKeys makes Keys over the bucket. A nil logger discards.
func NewKeys(kv jetstream.KeyValue, log *slog.Logger) *Keys {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k := &Keys{
		kv: kv, log: log,
		touches: make(chan string, touchQueue),
		changed: make(chan struct{}, 1),
		subs:    map[*subscription]struct{}{},
		told:    map[string]bool{},
	}
	k.mirror = mirror.New(kv, func(e jetstream.KeyValueEntry) cached {
		c := decode(e.Key(), e.Value())
		if c.err != nil {
			log.Error("a stored key cannot be read and is refused", telemetry.KeyKey, e.Key(), telemetry.KeyError, c.err.Error())
		}
		return c
	}, log)
	return k
}

func decode(name string, value []byte) (c cached) {
	if strings.HasSuffix(name, usedSuffix) {
		c.err = c.used.UnmarshalText(value)
		return c
	}
	c.touched = new(atomic.Int64)
	if c.err = json.Unmarshal(value, &c.stored); c.err != nil {
		return c
	}
	if c.Version != storedVersion || c.ID != name || len(c.Salt) != saltSize {
		c.err = fmt.Errorf("auth: the entry has version %d and is of key %q", c.Version, c.ID)
		return c
	}
	c.principal = &Principal{Key: c.ID, Name: c.Name, Grants: c.Grants, Clients: c.Clients}
	return c
}

// Run follows the bucket, tells subscribers of keys that are over, and writes
// last uses, until ctx is done; then it returns nil.
func (k *Keys) Run(ctx context.Context) error {
	cancel := k.mirror.Subscribe(func(name string) {
		if strings.HasSuffix(name, usedSuffix) {
			return
		}
		k.look(name)
		select {
		case k.changed <- struct{}{}:
		default:
		}
	})
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { k.touch(ctx) })
	wg.Go(func() { k.expire(ctx) })
	defer wg.Wait()
	return k.mirror.Run(ctx)
}

// Current reports whether this process's copy was complete and up to date when
// it was last looked at, a few seconds ago at most.
func (k *Keys) Current() bool { return k.mirror.Current() }

// Ready returns nil once this process has seen every change that was stored
// before the call; otherwise, when ctx is done, bus_unavailable.
func (k *Keys) Ready(ctx context.Context) error {
	if err := k.mirror.Sync(ctx); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the keys are not up to date on this process")
	}
	return nil
}

var (
	errNoKey   = athena.Errorf(athena.CodeUnauthenticated, "no key was given; send one as Authorization: Bearer ath_…")
	errUnknown = athena.Errorf(athena.CodeUnauthenticated, "this key is not known")
	errRevoked = athena.Errorf(athena.CodeUnauthenticated, "this key was revoked").With("reason", "revoked")
	errExpired = athena.Errorf(athena.CodeUnauthenticated, "this key has expired").With("reason", "expired")
)

// Verify returns who presents the key. The errors are unauthenticated. An
// unknown id and a wrong secret look the same, and cost the same; that a key
// was revoked or has expired is told only to one who has its secret. Right
// after the start Verify waits for the keys to be read. The Principal is
// shared and must not be changed.
func (k *Keys) Verify(ctx context.Context, presented string) (*Principal, error) {
	if presented == "" {
		return nil, errNoKey
	}
	p, err := ParseKey(presented)
	if err != nil {
		return nil, err
	}
	e := k.mirror.Load(p.ID)
	if e == nil {
		if err := k.mirror.Wait(ctx); err != nil {
			return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the keys have not been read yet on this process")
		}
		e = k.mirror.Load(p.ID)
	}
	if e == nil || e.Value.err != nil {
		var salt [saltSize]byte
		p.matches(salt[:], salt[:])
		return nil, errUnknown
	}
	c := &e.Value
	if !p.matches(c.Salt, c.Hash) {
		return nil, errUnknown
	}
	now := time.Now()
	if err := c.over(now); err != nil {
		return nil, err
	}
	k.used(c, now)
	return c.principal, nil
}

// Principal returns who the key with a public id stands for: unauthenticated once
// it is over, and not_found if this process has not heard of it. It asks for no
// secret: it is for what a key has ordered and which goes on without it. The
// Principal is shared and must not be changed.
func (k *Keys) Principal(ctx context.Context, id string) (*Principal, error) {
	if err := k.mirror.Wait(ctx); err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the keys have not been read yet on this process")
	}
	e := k.mirror.Load(id)
	if e == nil || e.Value.err != nil || e.Value.principal == nil {
		return nil, errNoSuchKey
	}
	return e.Value.principal, e.Value.over(time.Now())
}

// over says why a key is no longer good, or nil.
func (c *cached) over(now time.Time) error {
	switch {
	case c.RevokedAt != nil:
		return errRevoked
	case c.ExpiresAt != nil && !now.Before(*c.ExpiresAt):
		return errExpired
	}
	return nil
}

// used hands a use on to be written, if none was for a while.
func (k *Keys) used(c *cached, now time.Time) {
	last := c.touched.Load()
	if now.Unix()-last < int64(touchEvery/time.Second) || !c.touched.CompareAndSwap(last, now.Unix()) {
		return
	}
	select {
	case k.touches <- c.ID:
	default:
		c.touched.Store(last)
	}
}

// touch writes last uses, one after the other. A process that sees another's
// recent note leaves it at that.
func (k *Keys) touch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-k.touches:
			name, now := id+usedSuffix, time.Now().UTC().Truncate(time.Second)
			if e := k.mirror.Load(name); e != nil && now.Sub(e.Value.used) < touchEvery {
				continue
			}
			if _, err := k.kv.Put(ctx, name, now.AppendFormat(nil, time.RFC3339)); err != nil && ctx.Err() == nil {
				k.log.Warn("the last use of a key was not written", telemetry.KeyKey, id, telemetry.KeyError, err.Error())
			}
		}
	}
}

// Subscribe has fn called with the id of each key that is over from now on:
// revoked, deleted, or expired. Whoever holds a stream open for the key ends it
// then. fn must return quickly. The returned function ends the subscription.
func (k *Keys) Subscribe(fn func(id string)) (cancel func()) {
	s := &subscription{fn}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.subs[s] = struct{}{}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.subs, s)
	}
}

// look tells subscribers, once, if the key is over.
func (k *Keys) look(id string) {
	e := k.mirror.Load(id)
	over := e == nil || e.Value.err != nil || e.Value.over(time.Now()) != nil
	k.mu.Lock()
	news := over && !k.told[id]
	if over {
		k.told[id] = true
	} else {
		delete(k.told, id)
	}
	var fns []func(string)
	if news {
		for s := range k.subs {
			fns = append(fns, s.fn)
		}
	}
	k.mu.Unlock()
	for _, fn := range fns {
		fn(id)
	}
}

// expire looks at each key when it expires.
func (k *Keys) expire(ctx context.Context) {
	for {
		var next *time.Time
		var due []string
		now := time.Now()
		k.mirror.Range(func(name string, e *mirror.Entry[cached]) bool {
			switch at := e.Value.ExpiresAt; {
			case at == nil || e.Value.RevokedAt != nil:
			case !now.Before(*at):
				due = append(due, name)
			case next == nil || at.Before(*next):
				next = at
			}
			return true
		})
		for _, id := range due {
			k.look(id)
		}
		var alarm <-chan time.Time
		if next != nil {
			alarm = time.After(next.Sub(now))
		}
		select {
		case <-ctx.Done():
			return
		case <-alarm:
		case <-k.changed:
		}
	}
}

// A NewKeySpec says what a key is to be.
type NewKeySpec struct {
	// Name is for people; required, 100 bytes at most.
	Name   string  `json:"name"`
	Grants []Grant `json:"grants"` // at least one
	// Clients binds the key to these; empty means all.
	Clients   []string   `json:"clients,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// By is who makes the key. It cannot give what it does not have: a right,
	// or a client that it is not bound to. Nil is the process itself.
	By *Principal `json:"-"`
}

func (s NewKeySpec) validate(now time.Time) error {
	switch {
	case strings.TrimSpace(s.Name) == "" || len(s.Name) > 100:
		return athena.Errorf(athena.CodeInvalidRequest, "name must be given, with 100 bytes at most, so that the key can be told from others").At("name")
	case len(s.Grants) == 0:
		return athena.Errorf(athena.CodeInvalidRequest, "grants is empty; name at least one right, such as query or deferred:read").At("grants")
	case s.ExpiresAt != nil && !s.ExpiresAt.After(now):
		return athena.Errorf(athena.CodeInvalidRequest, "expires_at is %s, which is past", s.ExpiresAt.Format(time.RFC3339)).At("expires_at")
	}
	for i, g := range s.Grants {
		if !slices.Contains(Rights(), g.Right) {
			return athena.Errorf(athena.CodeInvalidRequest, "right %q is unknown", g.Right).At(fmt.Sprintf("grants[%d]", i))
		}
		if s.By != nil && !s.By.May(g.Right, g.Access) {
			return athena.Errorf(athena.CodeForbidden, "the right %q cannot be given by a key that lacks it", g).With("right", g.String())
		}
	}
	for i, c := range s.Clients {
		if athena.CheckName(c) != nil {
			return athena.Errorf(athena.CodeInvalidRequest, "clients[%d] cannot be a client's name", i).At(fmt.Sprintf("clients[%d]", i))
		}
		if s.By != nil && !s.By.MayActAs(c) {
			return athena.Errorf(athena.CodeForbidden, "a key that is bound to clients can make keys for those alone")
		}
	}
	if s.By != nil && len(s.By.Clients) > 0 && len(s.Clients) == 0 {
		return athena.Errorf(athena.CodeForbidden, "a key that is bound to clients can make keys for those alone; name them in clients").At("clients")
	}
	return nil
}

// Create makes a key and returns it in plain, for this once, and what is known
// of it.
func (k *Keys) Create(ctx context.Context, spec NewKeySpec) (plain string, key Key, err error) {
	if err := spec.validate(time.Now()); err != nil {
		return "", Key{}, err
	}
	p := NewKey()
	key, err = k.create(ctx, p, spec)
	if err != nil {
		return "", Key{}, err
	}
	return p.Reveal(), key, nil
}

// create stores a key; the error wraps jetstream.ErrKeyExists if its id is
// taken.
func (k *Keys) create(ctx context.Context, p Presented, spec NewKeySpec) (Key, error) {
	s := stored{
		Version: storedVersion,
		Key: Key{
			ID: p.ID, Name: spec.Name, Grants: spec.Grants, Clients: spec.Clients,
			CreatedAt: time.Now().UTC().Truncate(time.Millisecond), CreatedBy: "athena", ExpiresAt: spec.ExpiresAt,
		},
		Salt: make([]byte, saltSize),
	}
	if spec.By != nil {
		s.CreatedBy = spec.By.Key
	}
	rand.Read(s.Salt)
	sum := p.hash(s.Salt)
	s.Hash = sum[:]
	raw, err := json.Marshal(s)
	if err != nil {
		return Key{}, fmt.Errorf("auth: encode a key: %w", err)
	}
	rev, err := k.kv.Create(ctx, p.ID, raw)
	if err != nil {
		return Key{}, unavailable(ctx, err)
	}
	k.mirror.Store(p.ID, rev, decode(p.ID, raw))
	return s.Key, nil
}

// List returns all keys, revoked ones too, the oldest first.
func (k *Keys) List(ctx context.Context) ([]Key, error) {
	if err := k.mirror.Wait(ctx); err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the keys have not been read yet on this process")
	}
	var list []Key
	k.mirror.Range(func(name string, e *mirror.Entry[cached]) bool {
		if e.Value.principal == nil {
			return true
		}
		key := e.Value.Key
		if used := k.mirror.Load(name + usedSuffix); used != nil && used.Value.err == nil {
			key.LastUsedAt = &used.Value.used
		}
		list = append(list, key)
		return true
	})
	slices.SortFunc(list, func(a, b Key) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Revoke ends a key for good: not_found if there is none with this id. A key
// that was revoked before stays as it is. by stands in the key's record.
func (k *Keys) Revoke(ctx context.Context, id, by string) (Key, error) {
	if !isID(id) {
		return Key{}, errNoSuchKey
	}
	for {
		e, err := k.kv.Get(ctx, id)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return Key{}, errNoSuchKey
		}
		if err != nil {
			return Key{}, unavailable(ctx, err)
		}
		c := decode(id, e.Value())
		if c.err != nil {
			return Key{}, athena.Wrap(athena.CodeInternal, c.err, "the stored key %s cannot be read by this version of Athena", id)
		}
		if c.RevokedAt != nil {
			return c.Key, nil
		}
		now := time.Now().UTC().Truncate(time.Millisecond)
		c.RevokedAt, c.RevokedBy = &now, by
		raw, err := json.Marshal(c.stored)
		if err != nil {
			return Key{}, fmt.Errorf("auth: encode a key: %w", err)
		}
		rev, err := k.kv.Update(ctx, id, raw, e.Revision())
		switch {
		case err == nil:
			k.mirror.Store(id, rev, decode(id, raw))
			k.look(id)
			return c.Key, nil
		case !errors.Is(err, jetstream.ErrKeyRevisionMismatch):
			return Key{}, unavailable(ctx, err)
		}
	}
}

var errNoSuchKey = athena.Errorf(athena.CodeNotFound, "there is no key with this id")

func isID(s string) bool {
	return len(s) == idLen && strings.Trim(s, "0123456789abcdef") == ""
}

// Bootstrap sees to it that there is an admin key. With fromEnv, the value of
// ATHENA_ADMIN_KEY, that key is made one if it is not there yet. Without, and
// only in a bucket without any key, it makes one and returns it in plain, to be
// shown for this once; of processes that start at once exactly one gets it. It
// needs no Run.
func (k *Keys) Bootstrap(ctx context.Context, fromEnv string) (plain string, err error) {
	spec := NewKeySpec{Grants: []Grant{{Right: Admin}}}
	if fromEnv != "" {
		p, err := ParseKey(fromEnv)
		if err != nil {
			return "", athena.Errorf(athena.CodeInvalidRequest, "ATHENA_ADMIN_KEY is not a key; it must look like ath_{16 hex digits}.{43 characters of base64url}")
		}
		spec.Name = "from ATHENA_ADMIN_KEY"
		if _, err := k.create(ctx, p, spec); errors.Is(err, jetstream.ErrKeyExists) {
			return "", k.confirm(ctx, p)
		} else if err != nil {
			return "", err
		}
		return "", nil
	}
	keys, err := k.kv.ListKeys(ctx)
	if err != nil {
		return "", unavailable(ctx, err)
	}
	empty := true
	for range keys.Keys() { // to its end: the library waits for it to be read
		empty = false
	}
	if !empty {
		return "", nil
	}
	p := newKey(firstID)
	spec.Name = "first admin key"
	if _, err := k.create(ctx, p, spec); errors.Is(err, jetstream.ErrKeyExists) {
		return "", nil // another process was first
	} else if err != nil {
		return "", err
	}
	return p.Reveal(), nil
}

// confirm checks that the key in the environment is the stored one.
func (k *Keys) confirm(ctx context.Context, p Presented) error {
	e, err := k.kv.Get(ctx, p.ID)
	if err != nil {
		return unavailable(ctx, err)
	}
	c := decode(p.ID, e.Value())
	switch {
	case c.err != nil:
		return athena.Wrap(athena.CodeInternal, c.err, "the stored key %s cannot be read by this version of Athena", p.ID)
	case !p.matches(c.Salt, c.Hash):
		return athena.Errorf(athena.CodeConflict, "ATHENA_ADMIN_KEY has the id %s of another key; give one with an id of its own", p.ID)
	case c.over(time.Now()) != nil:
		return athena.Errorf(athena.CodeConflict, "ATHENA_ADMIN_KEY names key %s, which was revoked or has expired; give another", p.ID)
	case !c.principal.May(Admin, Write):
		return athena.Errorf(athena.CodeConflict, "ATHENA_ADMIN_KEY names key %s, which is not an admin key", p.ID)
	}
	return nil
}

func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "the keys cannot be reached; a change may or may not have been stored")
}
