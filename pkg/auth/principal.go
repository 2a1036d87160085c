package auth

import (
	"context"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Right names a part of the API that a key may use. Written alone it covers
// reading and writing; with ":read" behind it, reading only.
type Right string

// The rights. Admin covers all the others, for the clients that the key is
// bound to.
const (
	Query     Right = "query"     // run statements
	Deferred  Right = "deferred"  // submit, follow and cancel deferred queries
	CDC       Right = "cdc"       // subscribe to changes; write: enable and disable
	Pipelines Right = "pipelines" // see runs; write: start and change them
	Schema    Right = "schema"    // describe tables and migrations
	Objects   Right = "objects"   // read objects; write: change them
	Manage    Right = "manage"    // see client definitions; write: change them
	Admin     Right = "admin"     // keys, audit, and everything else
)

// Rights lists all rights.
func Rights() []Right {
	return []Right{Query, Deferred, CDC, Pipelines, Schema, Objects, Manage, Admin}
}

// Access is what an operation does to the part that its right names. The zero
// value is the stronger one.
type Access uint8

// The accesses.
const (
	Write Access = iota
	Read
)

// A Grant is one right of a key.
type Grant struct {
	Right  Right
	Access Access
}

// ParseGrant reads "query" or "query:read".
func ParseGrant(s string) (Grant, error) {
	name, suffix, cut := strings.Cut(s, ":")
	g := Grant{Right: Right(name)}
	if cut {
		g.Access = Read
	}
	if !slices.Contains(Rights(), g.Right) || cut && suffix != "read" {
		return Grant{}, athena.Errorf(athena.CodeInvalidRequest,
			"right %q is unknown; it must be one of query, deferred, cdc, pipelines, schema, objects, manage, admin, each optionally followed by :read", s).At("rights")
	}
	return g, nil
}

// String writes the grant as ParseGrant reads it.
func (g Grant) String() string {
	if g.Access == Read {
		return string(g.Right) + ":read"
	}
	return string(g.Right)
}

// MarshalText writes the grant as ParseGrant reads it.
func (g Grant) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText is ParseGrant.
func (g *Grant) UnmarshalText(b []byte) (err error) {
	*g, err = ParseGrant(string(b))
	return err
}

func (g Grant) covers(right Right, access Access) bool {
	return (g.Right == right || g.Right == Admin) && (g.Access == Write || access == Read)
}

// A Principal is who asks. The zero value may do nothing.
type Principal struct {
	// Key is the public id of the key; "local" where auth is off.
	Key    string  `json:"key"`
	Name   string  `json:"name,omitempty"`
	Grants []Grant `json:"grants"`
	// Clients are those that the key is bound to; empty means all.
	Clients []string `json:"clients,omitempty"`
}

// Local is the principal of everybody where auth is switched off.
func Local() *Principal {
	return &Principal{Key: "local", Name: "auth is off", Grants: []Grant{{Right: Admin}}}
}

// May reports whether p has the right.
func (p *Principal) May(right Right, access Access) bool {
	return p != nil && slices.ContainsFunc(p.Grants, func(g Grant) bool { return g.covers(right, access) })
}

// MayActAs reports whether p is not bound to other clients than this one.
func (p *Principal) MayActAs(client string) bool {
	return p != nil && (len(p.Clients) == 0 || slices.Contains(p.Clients, client))
}

// Authorize reports why p may not do this in the client's name, or nil:
// unauthenticated if p is nil, else forbidden. An empty client is not checked.
func (p *Principal) Authorize(right Right, access Access, client string) error {
	switch {
	case p == nil:
		return athena.Errorf(athena.CodeUnauthenticated, "no key was given; send one as Authorization: Bearer ath_…")
	case !p.May(right, access):
		return athena.Errorf(athena.CodeForbidden, "this key lacks the right %q", Grant{right, access}).
			With("right", Grant{right, access}.String())
	case client != "" && !p.MayActAs(client):
		return athena.Errorf(athena.CodeForbidden, "this key is bound to other clients")
	}
	return nil
}

type contextKey struct{}

// NewContext returns ctx carrying p.
func NewContext(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// FromContext returns the principal in ctx, or nil.
func FromContext(ctx context.Context) *Principal {
	p, _ := ctx.Value(contextKey{}).(*Principal)
	return p
}
