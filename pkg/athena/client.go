package athena

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Lifecycle is the owner's policy for a client, never its health. The zero
// value is not active: silence never grants.
type Lifecycle string

// The lifecycles.
const (
	Active   Lifecycle = "active"   // requests are resolved and dispatched
	Frozen   Lifecycle = "frozen"   // known, and held on purpose
	Inactive Lifecycle = "inactive" // kept, and not runnable
)

// UnmarshalText refuses every word but the three.
func (l *Lifecycle) UnmarshalText(b []byte) error {
	switch v := Lifecycle(b); v {
	case Active, Frozen, Inactive:
		*l = v
		return nil
	}
	return Errorf(CodeInvalidRequest, "lifecycle is %q; it must be active, frozen or inactive", clip(string(b), 40)).At("lifecycle")
}

// Limits bound what is done in a client's name. A zero field stands for its
// default.
type Limits struct {
	// MaxRunning is how many deferred queries run at once over all workers;
	// 4 by default.
	MaxRunning int `json:"max_running,omitempty"`
	// MaxQueued is how many may wait; 10,000 by default. It is checked on
	// submit against a count that may be a second old.
	MaxQueued int `json:"max_queued,omitempty"`
	// StatementTimeout bounds one statement, and is the most that a request
	// may ask for; 60 s by default.
	StatementTimeout Duration `json:"statement_timeout,omitempty"`
	// MaxResultBytes bounds one deferred result, before compression; 10 GiB
	// by default.
	MaxResultBytes int64 `json:"max_result_bytes,omitempty"`
	// RequestsPerSecond bounds the HTTP requests in the client's name, per
	// API process; none by default.
	RequestsPerSecond float64 `json:"requests_per_second,omitempty"`
}

// WithDefaults returns l with its zero fields filled in.
func (l Limits) WithDefaults() Limits {
	if l.MaxRunning == 0 {
		l.MaxRunning = 4
	}
	if l.MaxQueued == 0 {
		l.MaxQueued = 10_000
	}
	if l.StatementTimeout == 0 {
		l.StatementTimeout = Duration(time.Minute)
	}
	if l.MaxResultBytes == 0 {
		l.MaxResultBytes = 10 << 30
	}
	return l
}

func (l Limits) validate() error {
	for _, f := range []struct {
		name  string
		value float64
		most  float64
	}{
		{"max_running", float64(l.MaxRunning), 1000},
		{"max_queued", float64(l.MaxQueued), 100_000_000},
		{"statement_timeout", l.StatementTimeout.Std().Seconds(), 24 * 3600},
		{"max_result_bytes", float64(l.MaxResultBytes), 1 << 50},
		{"requests_per_second", l.RequestsPerSecond, 1e9},
	} {
		if f.value < 0 || f.value > f.most {
			return Errorf(CodeInvalidRequest, "limits.%s is %v; it must be between 0 (the default) and %.0f", f.name, f.value, f.most).At("limits." + f.name)
		}
	}
	return nil
}

// A Client is a logical backend binding: who it is, what it may do, and how
// its backend is reached. Values are shared between goroutines and must not be
// changed; copy one to change it.
type Client struct {
	Name         string
	Lifecycle    Lifecycle
	Capabilities Capabilities
	Connection   Connection
	Limits       Limits
	// Metadata is for people and their tools. The program never reads it.
	Metadata map[string]any
	// Revision orders the states of a definition; 0 is one not yet saved.
	Revision uint64
}

// Engine is the connection's tag: the two cannot disagree.
func (c *Client) Engine() Engine {
	if c.Connection == nil {
		return ""
	}
	return c.Connection.Engine()
}

// Runnable reports why nothing may be done in the client's name now, or nil:
// client_frozen or client_inactive.
func (c *Client) Runnable() error {
	switch c.Lifecycle {
	case Active:
		return nil
	case Frozen:
		return Errorf(CodeClientFrozen, "client %q is frozen by its owner; thaw it or wait", c.Name)
	}
	return Errorf(CodeClientInactive, "client %q is not active", c.Name)
}

// Require reports why the client may not perform an operation that needs want,
// or nil if it may.
func (c *Client) Require(want ...Capability) error {
	if err := c.Runnable(); err != nil {
		return err
	}
	for _, w := range want {
		if !c.Capabilities.Has(w) {
			return Errorf(CodeCapabilityDenied, "client %q is not granted %s; its owner can grant it in the client's definition", c.Name, w).
				With("capability", w.String())
		}
	}
	return nil
}

// Unsupported is the error for an operation that the client's engine cannot do.
func Unsupported(client string, engine Engine, want Capability) *Error {
	return Errorf(CodeCapabilityUnsupported, "client %q cannot do %s: engine %s does not support it", client, want, engine).
		With("capability", want.String())
}

var clientName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// CheckName reports whether name can be a client's name.
func CheckName(name string) error {
	if !clientName.MatchString(name) {
		return Errorf(CodeInvalidRequest, "client name %q is not allowed; it must start with a letter and hold at most 63 of a-z, 0-9, _ and -", clip(name, 80)).At("client_name")
	}
	return nil
}

// wire is the definition's shape outside the process.
type wire struct {
	Name         string          `json:"client_name"`
	Engine       Engine          `json:"engine"`
	Lifecycle    Lifecycle       `json:"lifecycle"`
	Capabilities Capabilities    `json:"capabilities"`
	Connection   json.RawMessage `json:"connection"`
	Limits       Limits          `json:"limits,omitzero"`
	Metadata     map[string]any  `json:"metadata,omitempty"`
	Revision     uint64          `json:"revision,omitempty"`
}

// MarshalJSON writes the definition with its secrets redacted.
func (c *Client) MarshalJSON() ([]byte, error) {
	raw, err := json.Marshal(c.Connection)
	if err != nil {
		return nil, err
	}
	return json.Marshal(c.wire(raw))
}

// EncodeStored writes the definition with its secrets' references in clear,
// for the catalog's storage alone. It refuses a literal secret, which must be
// sealed first.
func (c *Client) EncodeStored() ([]byte, error) {
	redacted, err := json.Marshal(c.Connection)
	if err != nil {
		return nil, err
	}
	// Each secret's text is written over its redacted form.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(redacted, &fields); err != nil {
		return nil, err
	}
	_, err = c.Connection.MapSecrets(func(path string, s Secret) (Secret, error) {
		kind, _ := s.Reference()
		switch {
		case s.IsZero():
			return s, nil
		case kind == SecretLiteral:
			return s, fmt.Errorf("athena: %s of client %q is a literal and was not sealed", path, c.Name)
		}
		raw, err := json.Marshal(s.Reveal())
		fields[strings.TrimPrefix(path, "connection.")] = raw
		return s, err
	})
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	return json.Marshal(c.wire(raw))
}

func (c *Client) wire(conn json.RawMessage) wire {
	return wire{c.Name, c.Engine(), c.Lifecycle, c.Capabilities, conn, c.Limits, c.Metadata, c.Revision}
}

// DecodeClient reads and checks a definition. Unknown fields, unknown
// capability names and values out of range are invalid_request errors that
// carry the field's path. A missing lifecycle is an error too.
func DecodeClient(raw []byte) (*Client, error) {
	var w wire
	if err := DecodeJSON(raw, &w, ""); err != nil {
		return nil, err
	}
	if err := CheckName(w.Name); err != nil {
		return nil, err
	}
	if w.Lifecycle == "" {
		return nil, Errorf(CodeInvalidRequest, "lifecycle is missing; it must be active, frozen or inactive").At("lifecycle")
	}
	if w.Engine == "" {
		return nil, Errorf(CodeInvalidRequest, "engine is missing; it must be postgres, scylla or s3").At("engine")
	}
	conn, err := DecodeConnection(w.Engine, w.Connection)
	if err != nil {
		return nil, err
	}
	if err := w.Limits.validate(); err != nil {
		return nil, err
	}
	return &Client{w.Name, w.Lifecycle, w.Capabilities, conn, w.Limits, w.Metadata, w.Revision}, nil
}
