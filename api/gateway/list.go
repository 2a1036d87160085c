package gateway

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
)

// How long a page is.
const (
	pageDefault = 100
	pageMost    = 1000
)

// list answers with jobs, newest first, a page at a time.
func (f *Family) list(c *gin.Context) {
	ctx := c.Request.Context()
	filter, cursor, limit, err := readList(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	p := auth.FromContext(ctx)
	if err := p.Authorize(auth.Deferred, auth.Read, filter.Client); err != nil {
		envelope.Fail(c, err)
		return
	}
	filter.Clients = p.Clients
	before, err := f.openCursor(cursor, filter)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	entries, next, err := f.cfg.Jobs.List(ctx, filter, before, limit, f.frozen(ctx))
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	page := make([]job, 0, len(entries))
	for _, e := range entries {
		page = append(page, brief(e.Job, e.Status, e.State))
	}
	m := envelope.Meta{Client: filter.Client}
	if next != 0 {
		m.NextCursor = f.cursor(next, filter)
	}
	envelope.OK(c, "jobs, newest first", page, m)
}

func readList(c *gin.Context) (filter deferred.Filter, cursor string, limit int, err error) {
	p := params.Of(c)
	var states []string
	for _, s := range deferred.States() {
		states = append(states, string(s))
	}
	filter.Client = p.Client("client")
	filter.State = deferred.State(p.OneOf("state", states...))
	labels := p.Strings("label")
	cursor = p.String("cursor")
	limit = p.Int("limit", pageDefault, 1, pageMost)
	if err := p.Err(); err != nil {
		return filter, "", 0, err
	}
	for _, text := range labels {
		k, v, ok := strings.Cut(text, "=")
		if !ok || k == "" {
			return filter, "", 0, athena.Errorf(athena.CodeInvalidRequest, "parameter label is %.80q; it must be name=value", text).At("label")
		}
		if old, twice := filter.Labels[k]; twice && old != v {
			return filter, "", 0, athena.Errorf(athena.CodeInvalidRequest, "parameter label asks for two values of %.80q; a job has one", k).At("label")
		}
		if filter.Labels == nil {
			filter.Labels = map[string]string{}
		}
		filter.Labels[k] = v
	}
	return filter, cursor, limit, nil
}

// cursorPurpose is what the MAC of a cursor is good for.
const cursorPurpose = "gateway/deferred/cursor"

// A cursor is a position and a MAC over it and the filter: it is good for the
// list that it was given with, and cannot be made up.
func (f *Family) cursor(position uint64, filter deferred.Filter) string {
	raw := binary.BigEndian.AppendUint64(nil, position)
	return base64.RawURLEncoding.EncodeToString(append(raw, f.cfg.Cursors.Sign(cursorPurpose, signed(raw, filter))...))
}

func (f *Family) openCursor(text string, filter deferred.Filter) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < 8 || !f.cfg.Cursors.Verify(cursorPurpose, signed(raw[:8], filter), raw[8:]) {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "the cursor was not given for this list; send it unchanged with the same filter, or start without one").At("cursor")
	}
	return binary.BigEndian.Uint64(raw), nil
}

func signed(position []byte, filter deferred.Filter) []byte {
	raw, err := json.Marshal(filter) // maps are written in the order of their keys
	if err != nil {
		panic("gateway: a filter of strings does not encode: " + err.Error())
	}
	return append(append([]byte(nil), position...), raw...)
}
