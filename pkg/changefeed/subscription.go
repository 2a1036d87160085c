package changefeed

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/documents"
)

// Delivery says how a subscription's changes reach its reader.
type Delivery string

// The deliveries.
const (
	Pull    Delivery = "pull"    // the reader asks, and acknowledges
	Webhook Delivery = "webhook" // a worker posts signed batches
)

// A Subscription is a durable reader of a client's changes.
type Subscription struct {
	Client string `json:"client"`
	Name   string `json:"name"`
	// Tables are globs over schema.table; empty is all.
	Tables []string `json:"tables,omitempty"`
	Ops    []cdc.Op `json:"ops,omitempty"`   // empty is all
	Where  string   `json:"where,omitempty"` // CEL; empty is all
	// From is where it began: now, earliest, a cursor or a time.
	From     string   `json:"from"`
	Envelope string   `json:"envelope"`
	Deliver  Delivery `json:"deliver"`
	// URL and Batch are those of a webhook: where to, and the most changes of
	// one message.
	URL   string `json:"url,omitempty"`
	Batch int    `json:"batch,omitempty"`
	// Key is the public id of the key that made it. What is sent is signed for
	// that key, and nothing is sent once it is revoked.
	Key       string    `json:"key"`
	CreatedAt time.Time `json:"created_at"`

	Revision uint64 `json:"-"`
}

// A Cursor says how far a subscription is.
type Cursor struct {
	// Pos is of the last change that was acknowledged or left out by the filter.
	Pos   cdc.Position `json:"pos"`
	Acked uint64       `json:"acked"` // changes that were acknowledged
	At    time.Time    `json:"at"`
	// What follows is a webhook's.
	Attempts int `json:"attempts,omitempty"` // at the next batch
	// Until is the last change of the batch that was tried and is to be tried
	// again as it was.
	Until      cdc.Position `json:"until,omitempty"`
	NextTry    time.Time    `json:"next_try,omitzero"`
	LastStatus int          `json:"last_status,omitempty"`
	LastError  string       `json:"last_error,omitempty"`
	// Stopped says why nothing is sent any more; empty if it is.
	Stopped string `json:"stopped,omitempty"`

	Revision uint64 `json:"-"`
}

var subscriptionName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// CheckSubscriptionName reports whether name can be a subscription's name.
func CheckSubscriptionName(name string) error {
	if !subscriptionName.MatchString(name) {
		return athena.Errorf(athena.CodeInvalidRequest, "name is %.80q; it must start with a letter and hold at most 63 of a-z, 0-9, _ and -", name).At("name")
	}
	return nil
}

// Subscriptions lists a client's subscriptions, or those of all clients if
// client is empty.
func (s *Store) Subscriptions(client string) []Subscription {
	prefix := kindSubscription + "."
	if client != "" {
		prefix += client + "."
	}
	return documents.List(s.docs, prefix, func(v *Subscription, rev uint64) { v.Revision = rev })
}

// Subscription returns one subscription; false if there is none.
func (s *Store) Subscription(client, name string) (Subscription, bool) {
	v, rev, ok := documents.Load[Subscription](s.docs, kindSubscription+"."+client+"."+name)
	v.Revision = rev
	return v, ok
}

// PutSubscription stores a subscription and, with a new one, where it begins. A
// conflict error says that the name is taken.
func (s *Store) PutSubscription(ctx context.Context, v Subscription, begin cdc.Position) error {
	key := kindSubscription + "." + v.Client + "." + v.Name
	if v.Revision == 0 {
		// The cursor first: a subscription without one would begin anywhere.
		if err := s.putBegin(ctx, key, v, begin); err != nil {
			return err
		}
	}
	_, err := s.docs.Put(ctx, key, v, v.Revision)
	return err
}

// putBegin stores a cursor for a subscription that is not there yet, over one
// that was left behind. That of a subscription that is there it leaves alone.
func (s *Store) putBegin(ctx context.Context, key string, v Subscription, begin cdc.Position) error {
	taken := athena.Errorf(athena.CodeConflict, "client %q has a subscription %q already; choose another name, or remove it first", v.Client, v.Name).At("name")
	cursor := kindCursor + "." + v.Client + "." + v.Name
	_, over, _, err := documents.Get[Cursor](ctx, s.docs, cursor)
	if err != nil {
		return err
	}
	if _, _, there, err := documents.Get[Subscription](ctx, s.docs, key); there || err != nil {
		return cmp.Or(err, error(taken))
	}
	_, err = s.docs.Put(ctx, cursor, Cursor{Pos: begin, At: time.Now().UTC()}, over)
	if athena.CodeOf(err) == athena.CodeConflict { // somebody makes the same
		return taken
	}
	return err
}

// ForgetSubscription removes a subscription and its cursor.
func (s *Store) ForgetSubscription(ctx context.Context, client, name string) error {
	return errors.Join(
		s.docs.Remove(ctx, kindSubscription+"."+client+"."+name),
		s.docs.Remove(ctx, kindCursor+"."+client+"."+name),
	)
}

// Cursor returns how far a subscription is, as it is stored now; a not_found
// error if there is none.
func (s *Store) Cursor(ctx context.Context, client, name string) (Cursor, error) {
	c, revision, there, err := documents.Get[Cursor](ctx, s.docs, kindCursor+"."+client+"."+name)
	if err == nil && !there {
		err = athena.Errorf(athena.CodeNotFound, "client %q has no subscription %q", client, name)
	}
	c.Revision = revision
	return c, err
}

// Cursors returns how far a client's subscriptions are, by name, as this process
// last heard.
func (s *Store) Cursors(client string) map[string]Cursor {
	all := map[string]Cursor{}
	for _, v := range s.Subscriptions(client) {
		if c, rev, ok := documents.Load[Cursor](s.docs, kindCursor+"."+client+"."+v.Name); ok {
			c.Revision = rev
			all[v.Name] = c
		}
	}
	return all
}

// PutCursor stores c over the revision that it has; a conflict error says that
// somebody else has moved the cursor.
func (s *Store) PutCursor(ctx context.Context, client, name string, c Cursor) error {
	_, err := s.docs.Put(ctx, kindCursor+"."+client+"."+name, c, c.Revision)
	return err
}
