package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// MinServer is the oldest nats-server with which atomic batches can be trusted.
const MinServer = "2.15.2"

// Bus is a connection with the topology on it. It is safe for concurrent use.
type Bus struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	cfg   Config
	probe string // the key that this process writes to see whether writing works
}

// New returns the bus over nc, which stays the caller's to close. It asks the
// server nothing; Reconcile does.
func New(nc *nats.Conn, cfg Config) (*Bus, error) {
	switch cfg.Replicas {
	case 0:
		cfg.Replicas = 1
	case 1, 3, 5:
	default:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "replicas is %d; it can be 1, 3 or 5", cfg.Replicas).At("replicas")
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	return &Bus{nc: nc, js: js, cfg: cfg, probe: "probe." + nuid.Next()}, nil
}

// Conn is the connection under the bus.
func (b *Bus) Conn() *nats.Conn { return b.nc }

// Replicas is how many copies streams have.
func (b *Bus) Replicas() int { return b.cfg.Replicas }

// JetStream is the connection's JetStream.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Reconcile makes the streams and buckets that are missing and brings the limits
// of those that are there up to date. It changes nothing and returns an error
// with bus_unavailable if a setting that a promise rests on is weaker than
// wanted: who set it may have data there, and it is his to mend.
func (b *Bus) Reconcile(ctx context.Context) error {
	want := Topology(b.cfg)
	have := make([]*jetstream.StreamConfig, len(want))
	for i, w := range want {
		found, err := b.find(ctx, w.Name)
		if err != nil {
			return err
		}
		if have[i] = found; found == nil {
			continue
		}
		if f := weaknesses(w, *found); len(f) > 0 {
			return f[0].err()
		}
	}
	for i, w := range want {
		if err := b.settle(ctx, w, have[i]); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) find(ctx context.Context, name string) (*jetstream.StreamConfig, error) {
	s, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be looked up: %v", name, err)
	}
	return &s.CachedInfo().Config, nil
}

func (b *Bus) settle(ctx context.Context, want jetstream.StreamConfig, have *jetstream.StreamConfig) error {
	var err error
	if have == nil {
		// Another process may make the same stream now; that is no error.
		_, err = b.js.CreateOrUpdateStream(ctx, want)
	} else if merged, differs := merge(want, *have); differs {
		_, err = b.js.UpdateStream(ctx, merged)
	}
	if err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s (%d replicas, up to %d bytes) cannot be made or updated: %v", want.Name, want.Replicas, want.MaxBytes, err).With("stream", want.Name)
	}
	return nil
}

// merge puts what is ours into what is there. Placement, metadata and such are
// the operator's.
func merge(want, have jetstream.StreamConfig) (jetstream.StreamConfig, bool) {
	m := have
	m.Subjects, m.Description = want.Subjects, want.Description
	m.MaxBytes, m.MaxAge, m.MaxMsgs = want.MaxBytes, want.MaxAge, want.MaxMsgs
	m.MaxMsgsPerSubject, m.MaxMsgSize, m.Duplicates = want.MaxMsgsPerSubject, want.MaxMsgSize, want.Duplicates
	m.AllowRollup, m.SubjectDeleteMarkerTTL = want.AllowRollup, want.SubjectDeleteMarkerTTL
	differs := strings.Join(m.Subjects, " ") != strings.Join(have.Subjects, " ") || m.Description != have.Description ||
		m.MaxBytes != have.MaxBytes || m.MaxAge != have.MaxAge || m.MaxMsgs != have.MaxMsgs ||
		m.MaxMsgsPerSubject != have.MaxMsgsPerSubject || m.MaxMsgSize != have.MaxMsgSize || m.Duplicates != have.Duplicates ||
		m.AllowRollup != have.AllowRollup || m.SubjectDeleteMarkerTTL != have.SubjectDeleteMarkerTTL
	return m, differs
}

// A Finding is something about the bus that an operator should know.
type Finding struct {
	Stream  string `json:"stream,omitempty"` // empty: the server
	Setting string `json:"setting"`
	Found   string `json:"found"`
	Want    string `json:"want"`
	Mend    string `json:"mend"`
	// Weak means that a promise of Athena does not hold with this.
	Weak bool `json:"weak"`
}

func (f Finding) String() string {
	on := "the NATS server"
	if f.Stream != "" {
		on = "stream " + f.Stream
	}
	return fmt.Sprintf("%s has %s %s where Athena needs %s: %s", on, f.Setting, f.Found, f.Want, f.Mend)
}

func (f Finding) err() error {
	return athena.Errorf(athena.CodeBusUnavailable, "%s", f).
		With("stream", f.Stream).With("setting", f.Setting).With("found", f.Found).With("want", f.Want)
}

// weaknesses lists where have promises less than want.
func weaknesses(want, have jetstream.StreamConfig) []Finding {
	var out []Finding
	note := func(bad bool, setting string, found, wanted any, mend string) {
		if bad {
			out = append(out, Finding{want.Name, setting, fmt.Sprint(found), fmt.Sprint(wanted), mend, true})
		}
	}
	anew := "this cannot be changed in place; back the stream up, remove it, and start Athena again"
	edit := func(flag string) string { return fmt.Sprintf("nats stream edit %s %s", want.Name, flag) }
	note(have.Storage != want.Storage, "storage", have.Storage, want.Storage, anew)
	note(have.PersistMode != jetstream.DefaultPersistMode, "persist_mode", have.PersistMode, jetstream.DefaultPersistMode, anew)
	note(have.Replicas < want.Replicas, "num_replicas", have.Replicas, want.Replicas, edit(fmt.Sprintf("--replicas=%d", want.Replicas)))
	note(have.Retention != want.Retention, "retention", have.Retention, want.Retention, anew)
	note(have.Discard != want.Discard, "discard", have.Discard, want.Discard, edit("--discard="+strings.TrimPrefix(strings.ToLower(want.Discard.String()), "discard")))
	note(have.Sealed, "sealed", true, false, anew)
	note(have.NoAck, "no_ack", true, false, edit("--ack"))
	note(want.AllowDirect && !have.AllowDirect, "allow_direct", false, true, edit("--allow-direct"))
	note(want.AllowAtomicPublish && !have.AllowAtomicPublish, "allow_atomic", false, true, edit("--allow-batch"))
	note(want.AllowMsgTTL && !have.AllowMsgTTL, "allow_msg_ttl", false, true, edit("--allow-msg-ttl"))
	note(want.AllowMsgSchedules && !have.AllowMsgSchedules, "allow_msg_schedules", false, true, edit("--allow-schedules"))
	return out
}

// Check looks for everything that weakens what Athena promises, and for what
// cannot be seen from here.
func (b *Bus) Check(ctx context.Context) ([]Finding, error) {
	var out []Finding
	if v := b.nc.ConnectedServerVersion(); older(v, MinServer) {
		out = append(out, Finding{"", "version", v, MinServer + " or later", "update nats-server; older ones can tear an atomic batch", true})
	}
	switch s := b.cfg.Embedded; {
	case s == nil:
		out = append(out, Finding{"", "sync_interval", "not visible to clients", "always", "see that each server has `jetstream { sync_interval: always }`", false})
	case s.sync > 0:
		out = append(out, Finding{"", "sync_interval", s.sync.String(), "always", "remove the setting; as it is, a power cut can lose what was acknowledged", true})
	}
	for _, w := range Topology(b.cfg) {
		found, err := b.find(ctx, w.Name)
		if err != nil {
			return out, err
		}
		if found == nil {
			out = append(out, Finding{w.Name, "existence", "none", "a stream", "start `athena serve`, which makes it", true})
			continue
		}
		out = append(out, weaknesses(w, *found)...)
	}
	return out, nil
}

// older compares versions like 2.15.2; a pre-release counts as its release, an
// unreadable one as old.
func older(v, than string) bool {
	a, b := numbers(v), numbers(than)
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

func numbers(v string) (n [3]int) {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "v"), "-")
	for i, s := range strings.SplitN(v, ".", 3) {
		n[i], _ = strconv.Atoi(s)
	}
	return n
}

// Probe reports whether the bus stores now, by storing something small.
func (b *Bus) Probe(ctx context.Context) error {
	msg := nats.NewMsg("$KV." + BucketState + "." + b.probe)
	msg.Header.Set(jetstream.MsgTTLHeader, TTL(MarkerTTL))
	msg.Data = []byte(time.Now().UTC().Format(time.RFC3339Nano))
	if _, err := b.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0)); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the bus does not store")
	}
	return nil
}
