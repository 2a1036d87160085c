package sdk

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Admin is the part of the API that changes clients and keys. It needs a key
// with the right manage, or admin for keys and the audit.
type Admin struct{ api *API }

// Admin returns the API's administrative part.
func (a *API) Admin() *Admin { return &Admin{a} }

func clientPath(name string) string { return "/admin/clients/" + url.PathEscape(name) }

// Clients lists the definitions that the key may see, secrets redacted.
func (m *Admin) Clients(ctx context.Context) ([]*athena.Client, error) {
	raws, _, err := answer[[]json.RawMessage](ctx, m.api, get("/admin/clients", nil))
	if err != nil {
		return nil, err
	}
	list := make([]*athena.Client, len(raws))
	for i, raw := range raws {
		if list[i], err = decodeClient(raw); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Client returns one definition, secrets redacted.
func (m *Admin) Client(ctx context.Context, name string) (*athena.Client, error) {
	return m.one(ctx, get(clientPath(name), nil))
}

// The expectations of PutClient that are no revisions.
const (
	// Absent expects that there is no such client yet.
	Absent int64 = 0
	// Any expects nothing.
	Any int64 = -1
)

// PutClient stores a definition with its secrets, which travel to the server
// as they are, and returns it as it is stored. The client must be at the
// expected revision, or the answer is a conflict.
func (m *Admin) PutClient(ctx context.Context, c *athena.Client, expected int64) (*athena.Client, error) {
	body, err := encodeClient(c)
	if err != nil {
		return nil, err
	}
	r := request{method: http.MethodPut, path: clientPath(c.Name), body: body, header: http.Header{}}
	switch {
	case expected == Absent:
		r.header.Set("If-None-Match", "*")
	case expected > 0:
		r.header.Set("If-Match", strconv.Quote(strconv.FormatInt(expected, 10)))
	}
	return m.one(ctx, r)
}

// encodeClient writes a definition with its secrets in clear: this is the one
// road on which they leave the process.
func encodeClient(c *athena.Client) (map[string]any, error) {
	raw, err := json.Marshal(c) // secrets redacted
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the definition of client %q cannot be written as JSON", c.Name)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	conn, ok := fields["connection"].(map[string]any)
	if !ok || c.Connection == nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "connection is missing").At("connection")
	}
	_, err = c.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
		if !s.IsZero() {
			conn[strings.TrimPrefix(path, "connection.")] = s.Reveal()
		}
		return s, nil
	})
	return fields, err
}

// DeleteClient removes a definition.
func (m *Admin) DeleteClient(ctx context.Context, name string) error {
	return m.remove(ctx, clientPath(name))
}

// SetLifecycle changes a client's lifecycle and nothing else.
func (m *Admin) SetLifecycle(ctx context.Context, name string, to athena.Lifecycle) (*athena.Client, error) {
	return m.one(ctx, request{
		method: http.MethodPut, path: clientPath(name) + "/lifecycle",
		body: map[string]athena.Lifecycle{"lifecycle": to}, safe: true,
	})
}

// ClientCheck is what was found when a client's backend was dialled.
type ClientCheck struct {
	Client    string           `json:"client"`
	Engine    athena.Engine    `json:"engine"`
	Lifecycle athena.Lifecycle `json:"lifecycle"`
	Revision  uint64           `json:"revision"`
	Reachable bool             `json:"reachable"`
	OpenMS    float64          `json:"open_ms,omitempty"`
	PingMS    float64          `json:"ping_ms,omitempty"`
	Identity  *Identity        `json:"identity,omitempty"`
	Granted   []string         `json:"granted"`
	Supported []string         `json:"supported"`
	Excess    []string         `json:"excess"`   // granted and not supported
	Problems  []string         `json:"problems"` // in words; empty when all is well
}

// Identity says what stands at the other end of a connection.
type Identity struct {
	Product string            `json:"product"`
	Version string            `json:"version"`
	Facts   map[string]string `json:"facts,omitempty"`
}

// CheckClient dials the client's backend and compares what it supports with
// what is granted. A backend that cannot be reached is a finding, no error.
func (m *Admin) CheckClient(ctx context.Context, name string) (*ClientCheck, error) {
	report, _, err := answer[*ClientCheck](ctx, m.api, request{method: http.MethodPost, path: clientPath(name) + "/check", safe: true})
	return report, err
}

func (m *Admin) one(ctx context.Context, r request) (*athena.Client, error) {
	raw, _, err := answer[json.RawMessage](ctx, m.api, r)
	if err != nil {
		return nil, err
	}
	return decodeClient(raw)
}

func decodeClient(raw []byte) (*athena.Client, error) {
	c, err := athena.DecodeClient(raw)
	if err != nil {
		return nil, strange(err)
	}
	return c, nil
}

// Key describes an API key.
type Key struct {
	ID         string    `json:"id"`
	Name       string    `json:"name,omitempty"`
	Rights     []string  `json:"rights"`
	Clients    []string  `json:"clients,omitempty"` // those that it is bound to; none for all
	CreatedAt  time.Time `json:"created_at,omitzero"`
	CreatedBy  string    `json:"created_by,omitempty"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"`
}

// CreatedKey is a key with what is told of it this once.
type CreatedKey struct {
	Key
	// Secret is the key itself, as it is sent in requests.
	Secret string `json:"key"`
	// WebhookSecret verifies the webhooks of the jobs that the key submits.
	WebhookSecret string `json:"webhook_secret"`
}

// KeySpec says what a key is to be.
type KeySpec struct {
	Name      string     `json:"name,omitempty"`
	Rights    []string   `json:"rights"`
	Clients   []string   `json:"clients,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Keys lists the keys, without their secrets.
func (m *Admin) Keys(ctx context.Context) ([]Key, error) {
	keys, _, err := answer[[]Key](ctx, m.api, get("/admin/keys", nil))
	return keys, err
}

// CreateKey makes a key that may do no more than the one that asks.
func (m *Admin) CreateKey(ctx context.Context, k KeySpec) (CreatedKey, error) {
	key, _, err := answer[CreatedKey](ctx, m.api, request{method: http.MethodPost, path: "/admin/keys", body: k})
	return key, err
}

// RevokeKey makes a key invalid for good.
func (m *Admin) RevokeKey(ctx context.Context, id string) error {
	return m.remove(ctx, "/admin/keys/"+url.PathEscape(id))
}

// AuditEvent is one change, and who made it.
type AuditEvent struct {
	At        time.Time       `json:"at"`
	Actor     string          `json:"actor"` // the public id of the key
	ActorName string          `json:"actor_name,omitempty"`
	Action    string          `json:"action"`
	Client    string          `json:"client,omitempty"`
	Target    string          `json:"target,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	Details   json.RawMessage `json:"details,omitempty"`
}

// AuditFilter chooses changes. Empty fields choose all.
type AuditFilter struct {
	Client string
	Actor  string
	Since  time.Time
}

// Audit yields who changed what, newest first.
func (m *Admin) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEvent, error] {
	query := optional("client", f.Client)
	if f.Actor != "" {
		query.Set("actor", f.Actor)
	}
	if !f.Since.IsZero() {
		query.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	return pages[AuditEvent](ctx, m.api, "/admin/audit", query)
}

// DeadLetter is a message that was given up.
type DeadLetter struct {
	Seq     uint64            `json:"seq"`
	Kind    string            `json:"kind"`
	Owner   string            `json:"owner"`
	At      time.Time         `json:"at"`
	Reason  string            `json:"reason,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Data    json.RawMessage   `json:"data,omitempty"`
	Size    int               `json:"size,omitempty"`
}

// Dead yields the messages that were given up, newest first; of one kind, or
// all if it is empty.
func (m *Admin) Dead(ctx context.Context, kind string) iter.Seq2[DeadLetter, error] {
	return pages[DeadLetter](ctx, m.api, "/admin/dead", optional("kind", kind))
}

// DeleteDead removes a dead letter.
func (m *Admin) DeleteDead(ctx context.Context, seq uint64) error {
	return m.remove(ctx, "/admin/dead/"+strconv.FormatUint(seq, 10))
}

func (m *Admin) remove(ctx context.Context, path string) error {
	_, _, err := answer[any](ctx, m.api, request{method: http.MethodDelete, path: path})
	return err
}
