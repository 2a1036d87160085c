package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// A subscription as it is shown.
type subscription struct {
	changefeed.Subscription
	Cursor *changefeed.Cursor `json:"cursor,omitempty"`
	// Pending is how many messages of the stream, of 1 to 512 changes each and
	// wanted or not, lie behind the cursor. It is told of one subscription.
	Pending *uint64 `json:"pending_messages,omitempty"`
}

// Bounds of subscriptions.
const (
	mostSubscriptions = 1000 // of one client
	webhookBatch      = 1000 // changes of one message
)

// subscribing is the body that makes a subscription.
type subscribing struct {
	Name     string              `json:"name"`
	Tables   []string            `json:"tables"`
	Ops      []cdc.Op            `json:"ops"`
	Where    string              `json:"where"`
	From     string              `json:"from"`
	Envelope string              `json:"envelope"`
	Deliver  changefeed.Delivery `json:"deliver"`
	URL      string              `json:"url"`
	Batch    int                 `json:"batch"`
}

// read checks all of the body that can be checked without the bus.
func (b subscribing) read(client string) (v changefeed.Subscription, err error) {
	refuse := func(field, format string, args ...any) (changefeed.Subscription, error) {
		return v, athena.Errorf(athena.CodeInvalidRequest, format, args...).At(field)
	}
	if err := changefeed.CheckSubscriptionName(b.Name); err != nil {
		return v, err
	}
	q := query{changefeed.FilterSpec{Tables: b.Tables, Ops: b.Ops, Where: b.Where}, b.From, b.Envelope}
	if _, _, err := q.compile(); err != nil {
		return v, err
	}
	if b.From == "" {
		b.From = changefeed.FromNow
	}
	if _, err := changefeed.ParseFrom(b.From); err != nil {
		return v, err
	}
	if b.Envelope == "" {
		b.Envelope = cdc.EnvelopeAthena
	}
	switch b.Deliver {
	case "", changefeed.Pull:
		b.Deliver = changefeed.Pull
		if b.URL != "" {
			return refuse("url", "url is for webhooks, and deliver is pull; leave it out, or set deliver to webhook")
		}
		if b.Batch != 0 {
			return refuse("batch", "batch is for webhooks; who pulls says max each time")
		}
	case changefeed.Webhook:
		if b.URL == "" {
			return refuse("url", "url is missing; it is where the webhook goes to")
		}
		if b.Batch < 0 || b.Batch > webhookBatch {
			return refuse("batch", "batch is %d; it must be between 1 and %d", b.Batch, webhookBatch)
		}
	default:
		return refuse("deliver", "deliver is %.40q; it must be pull or webhook", b.Deliver)
	}
	return changefeed.Subscription{
		Client: client, Name: b.Name, Tables: b.Tables, Ops: b.Ops, Where: b.Where, From: b.From,
		Envelope: b.Envelope, Deliver: b.Deliver, URL: b.URL, Batch: b.Batch,
	}, nil
}

// subscribe makes a subscription, which begins where its from says now.
func (f *Family) subscribe(c *gin.Context) {
	if !allowed(c, changing, params.None(c)) {
		return
	}
	var body subscribing
	err := envelope.Decode(c, &body)
	var v changefeed.Subscription
	if err == nil {
		v, err = body.read(c.Param("client"))
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	client := f.client(c, changing)
	if client == nil {
		return
	}
	ctx := c.Request.Context()
	v.Key, v.CreatedAt = auth.FromContext(ctx).Key, time.Now().UTC().Truncate(time.Millisecond)
	begin, err := f.begin(ctx, v)
	if err == nil {
		err = f.cfg.Audit.Do(ctx, ops.Change{Action: "cdc.subscribe", Client: client.Name, Target: v.Name}, func(ctx context.Context) error {
			return f.cfg.Store.PutSubscription(ctx, v, begin)
		})
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.Created(c, "/cdc/"+client.Name+"/subscriptions/"+v.Name, "the subscription begins behind "+string(begin),
		subscription{Subscription: v, Cursor: &changefeed.Cursor{Pos: begin, At: v.CreatedAt}}, envelope.Of(client))
}

func (f *Family) begin(ctx context.Context, v changefeed.Subscription) (cdc.Position, error) {
	if len(f.cfg.Store.Subscriptions(v.Client)) >= mostSubscriptions {
		return "", athena.Errorf(athena.CodeTooManyRequests, "client %q has %d subscriptions, which is the most", v.Client, mostSubscriptions)
	}
	if v.Deliver == changefeed.Webhook {
		if f.cfg.Webhooks == nil {
			return "", athena.Errorf(athena.CodeInvalidRequest, "deliver cannot be webhook here: this server delivers none").At("deliver")
		}
		if err := f.cfg.Webhooks.Check(ctx, "url", v.URL); err != nil {
			return "", err
		}
	}
	return f.cfg.Store.CursorAt(ctx, v.Client, v.From)
}

// listSubscriptions answers with a client's subscriptions, by name. The cursors
// are those that this process last heard of.
func (f *Family) listSubscriptions(c *gin.Context) {
	if !allowed(c, knowing, params.None(c)) {
		return
	}
	client := f.client(c, knowing)
	if client == nil {
		return
	}
	cursors, list := f.cfg.Store.Cursors(client.Name), []subscription{}
	for _, v := range f.cfg.Store.Subscriptions(client.Name) {
		s := subscription{Subscription: v}
		if cursor, ok := cursors[v.Name]; ok {
			s.Cursor = &cursor
		}
		list = append(list, s)
	}
	envelope.OK(c, fmt.Sprintf("%d subscriptions", len(list)), list, envelope.Of(client))
}

func (f *Family) getSubscription(c *gin.Context) {
	if !allowed(c, knowing, params.None(c)) {
		return
	}
	client := f.client(c, knowing)
	if client == nil {
		return
	}
	v, cursor, err := f.subscribed(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	s := subscription{Subscription: v, Cursor: &cursor}
	behind, err := f.cfg.Store.Behind(c.Request.Context(), client.Name, cursor.Pos)
	switch athena.CodeOf(err) {
	case "":
		s.Pending = &behind
	case athena.CodeCursorExpired, athena.CodeNotFound: // then it is not known
	default:
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, "subscription "+v.Name, s, envelope.Of(client))
}

// subscribed returns the subscription that the path names, and how far it is.
func (f *Family) subscribed(c *gin.Context) (changefeed.Subscription, changefeed.Cursor, error) {
	client, name := c.Param("client"), c.Param("name")
	v, ok := f.cfg.Store.Subscription(client, name)
	if !ok {
		return v, changefeed.Cursor{}, athena.Errorf(athena.CodeNotFound, "client %q has no subscription %.80q", client, name)
	}
	cursor, err := f.cfg.Store.Cursor(c.Request.Context(), client, name)
	return v, cursor, err
}

// unsubscribe removes a subscription and forgets how far it was.
func (f *Family) unsubscribe(c *gin.Context) {
	if !allowed(c, settling, params.None(c)) {
		return
	}
	client := f.client(c, settling)
	if client == nil {
		return
	}
	v, ok := f.cfg.Store.Subscription(client.Name, c.Param("name"))
	if !ok {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "client %q has no subscription %.80q", client.Name, c.Param("name")))
		return
	}
	err := f.cfg.Audit.Do(c.Request.Context(), ops.Change{Action: "cdc.unsubscribe", Client: client.Name, Target: v.Name}, func(ctx context.Context) error {
		return f.cfg.Store.ForgetSubscription(ctx, client.Name, v.Name)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, "the subscription was removed", map[string]string{"name": v.Name}, envelope.Of(client))
}
