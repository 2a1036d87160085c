package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/ops"
)

func (f *Family) listKeys(c *gin.Context) {
	ctx := c.Request.Context()
	if err := allow(c, auth.Admin, auth.Read, "", params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	list, err := f.cfg.Keys.List(ctx)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	p := auth.FromContext(ctx)
	seen := []key{}
	for _, k := range list {
		if within(p, k) {
			seen = append(seen, view(k))
		}
	}
	envelope.OK(c, fmt.Sprintf("%d keys", len(seen)), seen, envelope.Meta{})
}

// key is how a key is shown.
type key struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Rights     []auth.Grant `json:"rights"`
	Clients    []string     `json:"clients,omitempty"`
	CreatedAt  time.Time    `json:"created_at"`
	CreatedBy  string       `json:"created_by"`
	ExpiresAt  *time.Time   `json:"expires_at,omitempty"`
	LastUsedAt *time.Time   `json:"last_used_at,omitempty"`
	RevokedAt  *time.Time   `json:"revoked_at,omitempty"`
	RevokedBy  string       `json:"revoked_by,omitempty"`
}

func view(k auth.Key) key {
	return key{k.ID, k.Name, k.Grants, k.Clients, k.CreatedAt, k.CreatedBy, k.ExpiresAt, k.LastUsedAt, k.RevokedAt, k.RevokedBy}
}

// newKey is the one answer that holds a key.
type newKey struct {
	key
	Plain         string `json:"key"`
	WebhookSecret string `json:"webhook_secret"`
}

func (f *Family) createKey(c *gin.Context) {
	ctx := c.Request.Context()
	if err := allow(c, auth.Admin, auth.Write, "", params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	var body struct {
		Name      string       `json:"name"`
		Rights    []auth.Grant `json:"rights"`
		Clients   []string     `json:"clients"`
		ExpiresAt *time.Time   `json:"expires_at"`
	}
	err := envelope.Decode(c, &body)
	switch {
	case err != nil:
	case len(body.Rights) == 0:
		err = athena.Errorf(athena.CodeInvalidRequest, "rights is empty; name at least one, such as query or deferred:read").At("rights")
	case !params.Printable(body.Name):
		err = athena.Errorf(athena.CodeInvalidRequest, "name holds control characters").At("name")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var plain string
	var made auth.Key
	err = f.cfg.Audit.Do(ctx, ops.Change{Action: "key.create", Target: body.Name}, func(ctx context.Context) (err error) {
		// Create refuses what the caller's key could not do itself.
		plain, made, err = f.cfg.Keys.Create(ctx, auth.NewKeySpec{
			Name: body.Name, Grants: body.Rights, Clients: body.Clients, ExpiresAt: body.ExpiresAt, By: auth.FromContext(ctx),
		})
		return err
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.Created(c, "/admin/keys", "keep the key now; it is not shown again",
		newKey{view(made), plain, f.cfg.WebhookSecret(made.ID)}, envelope.Meta{})
}

func (f *Family) revokeKey(c *gin.Context) {
	ctx, id := c.Request.Context(), c.Param("id")
	if err := allow(c, auth.Admin, auth.Write, "", params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	p := auth.FromContext(ctx)
	if len(p.Clients) > 0 {
		list, err := f.cfg.Keys.List(ctx)
		if err != nil {
			envelope.Fail(c, err)
			return
		}
		if !slices.ContainsFunc(list, func(k auth.Key) bool { return k.ID == id && within(p, k) }) {
			envelope.Fail(c, errNoSuchKey)
			return
		}
	}
	if !params.Printable(id) || len(id) > 64 {
		envelope.Fail(c, errNoSuchKey)
		return
	}
	var over auth.Key
	err := f.cfg.Audit.Do(ctx, ops.Change{Action: "key.revoke", Target: id}, func(ctx context.Context) (err error) {
		over, err = f.cfg.Keys.Revoke(ctx, id, p.Key)
		return err
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("key %s is revoked", id), view(over), envelope.Meta{})
}

var errNoSuchKey = athena.Errorf(athena.CodeNotFound, "there is no key with this id")

// within reports whether p may see the key: a bound key sees those that are
// bound to no client but its own.
func within(p *auth.Principal, k auth.Key) bool {
	if len(p.Clients) == 0 {
		return true
	}
	return len(k.Clients) > 0 && !slices.ContainsFunc(k.Clients, func(c string) bool { return !p.MayActAs(c) })
}
