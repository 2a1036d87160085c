package cdc

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// Bounds of one pull.
const (
	pullDefault = 500
	pullMost    = 5000
	waitMost    = time.Minute
)

// pulled is what a pull gives.
type pulled struct {
	Changes []json.RawMessage `json:"changes"`
	Cursor  cdc.Position      `json:"cursor"` // to be acknowledged when they are handled
	More    bool              `json:"more"`
}

// pull answers with the changes behind the cursor that was acknowledged, the
// same ones until others are; it waits for the first.
func (f *Family) pull(c *gin.Context) {
	q := params.Of(c)
	most := q.Int("max", pullDefault, 1, pullMost)
	wait := q.Duration("wait", 0, waitMost)
	if !allowed(c, reading, q.Err()) {
		return
	}
	g := f.guard(c)
	defer g.release()
	client := f.client(c, reading)
	if client == nil {
		return
	}
	v, cursor, err := f.subscribed(c)
	if err == nil && v.Deliver != changefeed.Pull {
		err = athena.Errorf(athena.CodeConflict, "subscription %q is delivered to a webhook; make another one to pull from", v.Name)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	got, err := f.await(c.Request.Context(), g, v, cursor.Pos, most, wait)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("%d changes", len(got.Changes)), got, envelope.Of(client))
}

// await takes what there is behind a cursor, as soon as there is something that
// is wanted or the time is over.
func (f *Family) await(ctx context.Context, g *guard, v changefeed.Subscription, from cdc.Position, most int, wait time.Duration) (pulled, error) {
	filter, encode, err := (&query{changefeed.FilterSpec{Tables: v.Tables, Ops: v.Ops, Where: v.Where}, "", v.Envelope}).compile()
	if err != nil {
		return pulled{}, err
	}
	reader, err := f.cfg.Feeds.Open(ctx, v.Client, string(from), filter)
	if err != nil {
		return pulled{}, err
	}
	defer reader.Close()
	over := time.NewTimer(wait)
	defer over.Stop()
	for enough := wait <= 0; ; {
		moved := reader.Moved()
		b, err := reader.Take(ctx, most)
		if err != nil {
			return pulled{}, err
		}
		got := pulled{[]json.RawMessage{}, b.Cursor, b.More}
		if got.Changes, err = inEnvelope(got.Changes, encode, b.Lines); err != nil {
			return pulled{}, err
		}
		if enough || len(got.Changes) > 0 {
			return got, g.changes(ctx)
		}
		if b.More { // and none of what was looked at is wanted
			select {
			case <-over.C:
				enough = true
			default:
			}
			continue
		}
		select {
		case <-moved:
		case <-g.changed:
			err = g.check(ctx)
		case <-over.C:
			enough = true
		case <-api.Draining(ctx):
			enough = true
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return pulled{}, err
		}
	}
}

// inEnvelope appends changes in an envelope, without those that it leaves out.
func inEnvelope(dst []json.RawMessage, encode cdc.Envelope, lines [][]byte) ([]json.RawMessage, error) {
	for _, line := range lines {
		data, err := encode.Append(nil, line)
		if err != nil {
			return dst, noForm(line, err)
		}
		if len(data) > 0 {
			dst = append(dst, data)
		}
	}
	return dst, nil
}

// ack moves a subscription to a cursor: forward only, unless it is told to
// rewind, and no further than the stream has come.
func (f *Family) ack(c *gin.Context) {
	if !allowed(c, reading, params.None(c)) {
		return
	}
	var body struct {
		Cursor string `json:"cursor"`
		Rewind bool   `json:"rewind"`
	}
	err := envelope.Decode(c, &body)
	var to cdc.Position
	if err == nil {
		to, err = changefeed.ParseCursor("cursor", body.Cursor)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	op := reading
	op.Holds = true // what was handled may be said of a frozen client, too
	client := f.client(c, op)
	if client == nil {
		return
	}
	moved, err := f.move(c, to, body.Rewind)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, "the subscription goes on behind "+string(moved.Pos), moved, envelope.Of(client))
}

// move moves the cursor of the subscription that the path names. It begins anew
// when somebody else moves it.
func (f *Family) move(c *gin.Context, to cdc.Position, rewind bool) (changefeed.Cursor, error) {
	ctx := c.Request.Context()
	for {
		v, now, err := f.subscribed(c)
		if err != nil {
			return now, err
		}
		switch {
		case to == now.Pos && now.Stopped == "":
			return now, nil
		case to < now.Pos && !rewind:
			return now, athena.Errorf(athena.CodeConflict, "the cursor %s is before %s, which subscription %q has acknowledged; send \"rewind\": true to read again what lies between", to, now.Pos, v.Name).
				With("cursor", now.Pos)
		}
		if err := f.reachable(ctx, v.Client, to, now.Pos); err != nil {
			return now, err
		}
		// A webhook that was stopped, or waits to try again, begins anew.
		next := changefeed.Cursor{Pos: to, Acked: now.Acked, At: time.Now().UTC().Truncate(time.Millisecond), Revision: now.Revision}
		err = f.cfg.Store.PutCursor(ctx, v.Client, v.Name, next)
		if athena.CodeOf(err) == athena.CodeConflict {
			continue
		}
		return next, err
	}
}

// reachable reports why a subscription cannot be moved to a cursor, or nil.
func (f *Family) reachable(ctx context.Context, client string, to, now cdc.Position) error {
	end, err := f.cfg.Store.CursorAt(ctx, client, changefeed.FromNow)
	if err != nil {
		return err
	}
	if to > max(end, now) {
		return athena.Errorf(athena.CodeInvalidRequest, "the cursor %s stands behind all changes, of which the last is %s; acknowledge what was given", to, end).At("cursor")
	}
	if to < now {
		_, err = f.cfg.Store.CursorAt(ctx, client, string(to))
	}
	return err
}
