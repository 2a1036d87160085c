package deliver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// Bounds of a batch.
const (
	DefaultBatch = 100
	MaxBatch     = 1000
	maxBytes     = 1 << 20 // of its changes; a larger one goes alone
)

// A ChangesLetter is the body of a dead letter of kind cdc-hook in ATH_DEAD: a
// batch that was given up. What was in it can be read again from the stream,
// behind From and up to Cursor, for as long as the stream keeps it.
type ChangesLetter struct {
	Kind         string       `json:"kind"` // "cdc-hook"
	Client       string       `json:"client"`
	Subscription string       `json:"subscription"`
	WebhookID    string       `json:"webhook_id"`
	Host         string       `json:"host,omitempty"`
	From         cdc.Position `json:"from"`
	Cursor       cdc.Position `json:"cursor"`
	Changes      int          `json:"changes"`
	Cause        Cause        `json:"cause"`
	LastStatus   int          `json:"last_status,omitempty"`
	LastError    string       `json:"last_error,omitempty"`
	Attempts     int          `json:"attempts"`
	At           time.Time    `json:"at"`
}

// delivery is one turn at one subscription.
type delivery struct {
	*feeding
	sub      changefeed.Subscription
	log      *slog.Logger
	envelope cdc.Envelope
	reader   *changefeed.Reader

	cur    changefeed.Cursor // as it is stored
	looked time.Time         // when that was last seen
	seen   cdc.Position      // up to here all is in a batch or not wanted
	lines  [][]byte          // read, and not in a batch yet
	ahead  cdc.Position      // the cursor behind lines
}

// run delivers batch after batch until something stands in the way. ctx ends the
// waiting, work also what is under way. It returns nil if the subscription was
// stopped.
func (d *delivery) run(ctx, work context.Context) (err error) {
	if err := d.load(ctx); err != nil || d.cur.Stopped != "" {
		return err
	}
	if err := d.permitted(ctx, work); err != nil || d.cur.Stopped != "" {
		return err
	}
	if d.envelope, err = cdc.NewEnvelope(d.sub.Envelope); err != nil {
		return d.stop(work, Inexpressible, err)
	}
	filter, err := changefeed.NewFilter(changefeed.FilterSpec{Tables: d.sub.Tables, Ops: d.sub.Ops, Where: d.sub.Where})
	if err != nil {
		return d.unreadable(work, err)
	}
	if d.reader, err = d.Feeds.Open(ctx, d.sub.Client, string(d.cur.Pos), filter); err != nil {
		return d.unreadable(work, err)
	}
	defer d.reader.Close()
	d.reader.Heartbeat = d.cfg.Recheck
	for ctx.Err() == nil && d.cur.Stopped == "" {
		b, err := d.gather(ctx, work)
		if err != nil || b == nil {
			return err
		}
		if err := d.send(ctx, work, b); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// load reads the cursor anew.
func (d *delivery) load(ctx context.Context) (err error) {
	if d.cur, err = d.Store.Cursor(ctx, d.sub.Client, d.sub.Name); err != nil {
		return err
	}
	d.looked, d.seen, d.ahead = time.Now(), d.cur.Pos, d.cur.Pos
	return nil
}

// gather makes the next batch of what is at hand, and waits for the first
// change. One that was tried before is made as it was (law 5). It returns
// nothing if the subscription was stopped.
func (d *delivery) gather(ctx, work context.Context) (*webhook.Changes, error) {
	b := &webhook.Changes{Client: d.sub.Client, Subscription: d.sub.Name, Since: d.sub.CreatedAt, From: d.seen}
	most := min(cmp.Or(d.sub.Batch, DefaultBatch), MaxBatch)
	for {
		full, err := d.fill(b, most)
		if err != nil {
			return nil, d.stop(work, Inexpressible, err)
		}
		if full || b.Count > 0 && b.Last >= d.cur.Until {
			b.Cursor, b.At = d.seen, time.Now()
			return b, nil
		}
		if b.Count == 0 && time.Since(d.looked) > d.cfg.Recheck {
			if err := d.look(ctx, work); err != nil || d.cur.Stopped != "" {
				return nil, err
			}
		}
		read, err := d.reader.Next(ctx)
		if err != nil {
			return nil, d.unreadable(work, err)
		}
		d.lines, d.ahead = read.Lines, read.Cursor
	}
}

// look stores a cursor that has moved past changes which the subscription does
// not want, and sees whether somebody else has moved it or the rights are gone.
func (d *delivery) look(ctx, work context.Context) error {
	if d.seen != d.cur.Pos {
		cur := d.cur
		cur.Pos = d.seen
		if err := d.put(work, cur); err != nil {
			return err
		}
	} else if err := d.unmoved(ctx); err != nil {
		return err
	}
	d.looked = time.Now()
	return d.permitted(ctx, work)
}

// unmoved reports whether the cursor is the one that is known.
func (d *delivery) unmoved(ctx context.Context) error {
	now, err := d.Store.Cursor(ctx, d.sub.Client, d.sub.Name)
	if err == nil && now.Revision != d.cur.Revision {
		err = errMoved
	}
	return err
}

// await returns when the next attempt is due, and sooner with an error if
// somebody moves the cursor meanwhile, such as past the batch.
func (d *delivery) await(ctx context.Context) error {
	for left := time.Until(d.cur.NextTry); left > 0; left = time.Until(d.cur.NextTry) {
		if pause(ctx, min(left, d.cfg.Recheck)); ctx.Err() != nil {
			break
		}
		if err := d.unmoved(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// fill takes the lines into the batch until it is full, or none is left.
func (d *delivery) fill(b *webhook.Changes, most int) (full bool, err error) {
	for len(d.lines) > 0 {
		pos := changefeed.PositionOf(d.lines[0])
		if pos == "" {
			return false, fmt.Errorf("deliver: what follows %s is no change", d.seen)
		}
		out := b.JSON
		if b.Count > 0 {
			if d.cur.Until != "" && pos > d.cur.Until {
				return true, nil
			}
			out = append(out, ',')
		}
		start := len(out)
		if out, err = d.envelope.Append(out, d.lines[0]); err != nil {
			return false, fmt.Errorf("the change at %s: %w", pos, err)
		}
		if len(out) > start {
			if b.Count > 0 && len(out) > maxBytes {
				return true, nil
			}
			if b.Count++; b.Count == 1 {
				b.First = pos
			}
			b.JSON, b.Last = out, pos
		}
		d.lines, d.seen = d.lines[1:], pos
		if b.Count == most || b.Count > 0 && pos == d.cur.Until {
			if len(d.lines) == 0 {
				d.seen = d.ahead
			}
			return true, nil
		}
	}
	d.seen = d.ahead
	return false, nil
}

// send makes attempts at a batch until it is taken or given up.
func (d *delivery) send(ctx, work context.Context, b *webhook.Changes) error {
	id, body, host := b.ID(), b.Payload(), host(d.sub.URL)
	for {
		if err := d.await(ctx); err != nil {
			return err
		}
		if err := d.permitted(ctx, work); err != nil || d.cur.Stopped != "" {
			return err
		}
		select {
		case d.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		out := Outcome{Client: d.sub.Client}
		start := time.Now()
		answer, err := d.sender.Send(work, d.sub.URL, id, d.Secrets.Secret(d.sub.Key), body, start)
		<-d.slots
		if work.Err() != nil {
			return fmt.Errorf("deliver: stopped in the middle of a request: %w", work.Err())
		}
		done, err := d.answered(work, b, id, host, answer, err, &out)
		out.Status, out.Elapsed = answer.Status, time.Since(start)
		if err != nil {
			out.Result = Returned
		}
		if d.Observe != nil {
			d.Observe(out)
		}
		if done || err != nil {
			return err
		}
	}
}

// permitted returns why nothing may be sent now, and stops the subscription if
// nothing ever will.
func (d *delivery) permitted(ctx, work context.Context) error {
	if now, ok := d.Store.Subscription(d.sub.Client, d.sub.Name); !ok || now.Revision != d.sub.Revision {
		return errors.New("deliver: the subscription was removed or changed")
	}
	err := d.Rights.MaySend(ctx, d.sub.Client, d.sub.Key)
	if athena.CodeOf(err) == athena.CodeUnauthenticated {
		return d.stop(work, KeyRevoked, err)
	}
	return err
}

// answered stores what follows from an attempt. It reports true once the batch
// is behind.
func (d *delivery) answered(ctx context.Context, b *webhook.Changes, id, host string, answer webhook.Answer, sendErr error, out *Outcome) (done bool, err error) {
	cur := d.cur
	cur.Attempts++
	cur.LastStatus, cur.LastError = answer.Status, ""
	if sendErr != nil {
		cur.LastError = sendErr.Error()
	}
	behind := func() error {
		cur.Pos, cur.Attempts, cur.Until, cur.NextTry = b.Cursor, 0, "", time.Time{}
		return d.put(ctx, cur)
	}
	switch {
	case answer.OK():
		out.Result = Delivered
		cur.Acked += uint64(b.Count)
		return true, behind()
	case errors.Is(sendErr, webhook.ErrForbidden):
		out.Result, out.Cause = Stopped, TargetForbidden
		return true, d.stop(ctx, TargetForbidden, sendErr)
	case answer.Status == http.StatusGone:
		out.Result, out.Cause = Stopped, EndpointDisabled
		return true, d.stop(ctx, EndpointDisabled, errors.New("the receiver answered 410 Gone"))
	case cur.Attempts > len(d.cfg.Backoff):
		out.Result, out.Cause = Dead, AttemptsExhausted
		if err := d.bury(ctx, b, id, host, cur); err != nil {
			return false, err
		}
		return true, behind()
	}
	out.Result = Retried
	delay := d.cfg.delay(cur.Attempts, answer)
	cur.NextTry, cur.Until = time.Now().Add(delay).UTC(), b.Last
	return false, d.put(ctx, cur)
}

// put stores the cursor over the one that is known, and tries until that is
// done, is refused, or ctx is.
func (d *delivery) put(ctx context.Context, cur changefeed.Cursor) error {
	cur.At = time.Now().UTC()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := d.Store.PutCursor(ctx, d.sub.Client, d.sub.Name, cur)
		if err == nil {
			var now changefeed.Cursor
			if now, err = d.Store.Cursor(ctx, d.sub.Client, d.sub.Name); err == nil {
				if now.Pos != cur.Pos || !now.At.Equal(cur.At) {
					return errMoved
				}
				d.cur, d.looked = now, time.Now()
				return nil
			}
		}
		switch {
		case athena.CodeOf(err) == athena.CodeConflict:
			return errMoved
		case !athena.CodeOf(err).Retryable():
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// stop ends the deliveries until somebody moves the cursor or makes the
// subscription anew.
func (d *delivery) stop(ctx context.Context, cause Cause, why error) error {
	cur := d.cur
	cur.Stopped, cur.LastError = string(cause), athena.AsError(why).Message
	if !errors.As(why, new(*athena.Error)) {
		cur.LastError = why.Error()
	}
	if err := d.put(ctx, cur); err != nil {
		return err
	}
	d.log.Warn("a subscription was stopped", "cause", cause, telemetry.KeyError, why)
	return nil
}

// unreadable stops the subscription if what comes next is lost or cannot be
// chosen, and returns any other reason.
func (d *delivery) unreadable(work context.Context, err error) error {
	switch athena.CodeOf(err) {
	case athena.CodeCursorExpired:
		return d.stop(work, ChangesLost, err)
	case athena.CodeInvalidRequest:
		return d.stop(work, FilterFailed, err)
	}
	return err
}

// bury stores the dead letter of a batch.
func (d *delivery) bury(ctx context.Context, b *webhook.Changes, id, host string, cur changefeed.Cursor) error {
	body, err := json.Marshal(ChangesLetter{
		Kind: "cdc-hook", Client: b.Client, Subscription: b.Subscription, WebhookID: id, Host: host,
		From: b.From, Cursor: b.Cursor, Changes: b.Count, Cause: AttemptsExhausted,
		LastStatus: cur.LastStatus, LastError: cur.LastError, Attempts: cur.Attempts, At: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	msg := nats.NewMsg(bus.Dead("cdc-hook", b.Client))
	msg.Data = body
	msg.Header.Set(bus.HeaderCause, string(AttemptsExhausted))
	msg.Header.Set(jetstream.MsgIDHeader, "cdc-hook:"+id)
	if _, err := d.Bus.JetStream().PublishMsg(ctx, msg); err != nil {
		return err
	}
	d.log.Warn("a batch of changes was given up", "from", b.From, "cursor", b.Cursor, "changes", b.Count,
		"host", host, "attempts", cur.Attempts, "last_status", cur.LastStatus)
	return nil
}
