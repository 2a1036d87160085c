package sdk

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// SubscriptionSpec says what a subscription is to be.
type SubscriptionSpec struct {
	Name     string   `json:"name"`
	Tables   []string `json:"tables,omitempty"`
	Ops      []cdc.Op `json:"ops,omitempty"`
	Where    string   `json:"where,omitempty"`
	From     string   `json:"from,omitempty"`
	Envelope string   `json:"envelope,omitempty"` // athena, debezium or cloudevents
	Deliver  string   `json:"deliver,omitempty"`  // pull or webhook
	// URL and Batch are those of a webhook.
	URL   string `json:"url,omitempty"`
	Batch int    `json:"batch,omitempty"`
}

// Subscription is a durable reader of a client's changes.
type Subscription struct {
	Client string `json:"client"`
	SubscriptionSpec
	Key       string              `json:"key"`
	CreatedAt time.Time           `json:"created_at"`
	Cursor    *SubscriptionCursor `json:"cursor,omitempty"`
	// Pending is how many messages of the stream, wanted or not, lie behind the
	// cursor; nil where that is not known, and in lists.
	Pending *uint64 `json:"pending_messages,omitempty"`
}

// SubscriptionCursor says how far a subscription is.
type SubscriptionCursor struct {
	Pos   cdc.Position `json:"pos"`
	Acked uint64       `json:"acked"`
	At    time.Time    `json:"at"`
	// What follows is a webhook's.
	Attempts   int       `json:"attempts,omitempty"`
	NextTry    time.Time `json:"next_try,omitzero"`
	LastStatus int       `json:"last_status,omitempty"`
	LastError  string    `json:"last_error,omitempty"`
	Stopped    string    `json:"stopped,omitempty"`
}

// Subscribe makes a subscription.
func (c *CDC) Subscribe(ctx context.Context, spec SubscriptionSpec) (*Subscription, error) {
	got, _, err := answer[*Subscription](ctx, c.api, request{method: http.MethodPost, path: c.path("/subscriptions"), body: spec})
	return got, err
}

// Subscriptions lists the client's subscriptions.
func (c *CDC) Subscriptions(ctx context.Context) ([]Subscription, error) {
	list, _, err := answer[[]Subscription](ctx, c.api, get(c.path("/subscriptions"), nil))
	return list, err
}

func (c *CDC) subscription(name, more string) string {
	return c.path("/subscriptions/" + url.PathEscape(name) + more)
}

// Subscription returns one subscription.
func (c *CDC) Subscription(ctx context.Context, name string) (*Subscription, error) {
	got, _, err := answer[*Subscription](ctx, c.api, get(c.subscription(name, ""), nil))
	return got, err
}

// Unsubscribe removes a subscription and forgets how far it was.
func (c *CDC) Unsubscribe(ctx context.Context, name string) error {
	_, _, err := answer[any](ctx, c.api, request{method: http.MethodDelete, path: c.subscription(name, "")})
	return err
}

// Pulled is what a pull gave.
type Pulled struct {
	// Changes are in the subscription's envelope.
	Changes []json.RawMessage `json:"changes"`
	// Cursor is what to acknowledge once they are handled.
	Cursor cdc.Position `json:"cursor"`
	More   bool         `json:"more"` // there are more already
}

// Pull returns the changes behind what was acknowledged, at most so many, and
// waits for the first one if there is none; 0 stands for the server's defaults.
func (c *CDC) Pull(ctx context.Context, name string, most int, wait time.Duration) (Pulled, error) {
	q := url.Values{}
	if most > 0 {
		q.Set("max", strconv.Itoa(most))
	}
	if wait > 0 {
		q.Set("wait", athena.Duration(wait).String())
	}
	got, _, err := answer[Pulled](ctx, c.api, get(c.subscription(name, "/changes"), q))
	return got, err
}

// Ack moves a subscription to a cursor: the next pull begins behind it. It
// refuses to go back, unless rewind is set.
func (c *CDC) Ack(ctx context.Context, name string, cursor cdc.Position, rewind bool) error {
	body := struct {
		Cursor cdc.Position `json:"cursor"`
		Rewind bool         `json:"rewind,omitempty"`
	}{cursor, rewind}
	_, _, err := answer[any](ctx, c.api, request{method: http.MethodPost, path: c.subscription(name, "/ack"), body: body, safe: !rewind})
	return err
}
