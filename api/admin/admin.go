// Package admin is the route families that keep a deployment: client
// definitions, keys, the audit, dead letters, and provisioning.
//
// It changes what other packages keep, in the name of the request's principal,
// and has every change audited. A key that is bound to clients sees and changes
// what belongs to those alone.
package admin

import (
	"context"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// Clients keeps definitions; *catalog.Catalog is one.
type Clients interface {
	Client(ctx context.Context, name string) (*athena.Client, error)
	List(ctx context.Context) ([]*athena.Client, error)
	Put(ctx context.Context, def *athena.Client, expected catalog.Expect) (*athena.Client, error)
	SetLifecycle(ctx context.Context, name string, to athena.Lifecycle, expected catalog.Expect) (*athena.Client, error)
	Delete(ctx context.Context, name string, expected catalog.Expect) error
}

// Keys keeps keys; *auth.Keys is one.
type Keys interface {
	List(ctx context.Context) ([]auth.Key, error)
	Create(ctx context.Context, spec auth.NewKeySpec) (plain string, key auth.Key, err error)
	Revoke(ctx context.Context, id, by string) (auth.Key, error)
}

// Audit keeps who changed what; *ops.Audit is one.
type Audit interface {
	// Do records the change, and then makes it; what cannot be recorded is not
	// made.
	Do(ctx context.Context, c ops.Change, change func(context.Context) error) error
	// Read returns a page, newest first, and the cursor of the next one.
	Read(ctx context.Context, f ops.Filter, cursor string, limit int) (page []ops.Change, next string, err error)
}

// A DeadLetter is a message that was given up.
type DeadLetter struct {
	Seq     uint64            `json:"seq"`
	Kind    string            `json:"kind"`
	Owner   string            `json:"owner"`
	At      time.Time         `json:"at"`
	Reason  string            `json:"reason,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Data    any               `json:"data,omitempty"` // JSON if it is that, else text
	Size    int               `json:"size"`
}

// DeadLetters is where messages are that were given up.
type DeadLetters interface {
	// List returns a page, newest first, and the cursor of the next one. The
	// first page's cursor is empty, and so is an empty kind, which chooses all.
	List(ctx context.Context, kind, cursor string, limit int) (page []DeadLetter, next string, err error)
	// Delete is not_found if there is no such letter.
	Delete(ctx context.Context, seq uint64) error
}

// Signer makes MACs of at least 16 bytes that are good for one purpose;
// *secret.Keyring is one.
type Signer interface {
	Sign(purpose string, data []byte) []byte
}

// Config is what the family works with. All fields but InUse must be set.
type Config struct {
	Dispatcher *dispatch.Dispatcher
	Clients    Clients
	Keys       Keys
	Audit      Audit
	Dead       DeadLetters
	Cursors    Signer
	// WebhookSecret is the secret, whsec_…, that signs the webhooks of a key's
	// jobs.
	WebhookSecret func(keyID string) string
	// InUse is the reason for which a client must not be deleted now; nil if there
	// is none.
	InUse func(client string) error
}

// Family is the routes under /admin and /management.
type Family struct{ cfg Config }

// New makes the family.
func New(cfg Config) *Family { return &Family{cfg} }

// Register adds the routes to r.
func (f *Family) Register(r gin.IRouter) {
	r.GET("/admin/clients", f.listClients)
	r.GET("/admin/clients/:name", f.getClient)
	r.PUT("/admin/clients/:name", f.putClient)
	r.DELETE("/admin/clients/:name", f.deleteClient)
	r.PUT("/admin/clients/:name/lifecycle", f.setLifecycle)
	r.POST("/admin/clients/:name/check", f.checkClient)
	r.GET("/admin/keys", f.listKeys)
	r.POST("/admin/keys", f.createKey)
	r.DELETE("/admin/keys/:id", f.revokeKey)
	r.GET("/admin/audit", f.listChanges)
	r.GET("/admin/dead", f.listDead)
	r.DELETE("/admin/dead/:seq", f.deleteDead)
	r.POST("/management/provision", f.provision)
}
