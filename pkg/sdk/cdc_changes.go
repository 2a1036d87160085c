package sdk

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// ChangesQuery chooses changes. Empty fields choose all.
type ChangesQuery struct {
	Tables []string // patterns, such as public.orders and public.*
	Ops    []cdc.Op
	Where  string // in CEL, over op, schema, table, key, before and after
	// From is now (if empty), earliest, the Pos of the last change that was
	// seen, or an instant of RFC 3339.
	From string
}

const (
	// maxChange bounds the bytes of one change.
	maxChange = 32 << 20
	// quiet is how long a stream may say nothing: the server speaks every
	// 15 seconds.
	quiet = time.Minute
)

// Changes yields the client's changes, each of them once and in order. A
// connection that breaks is made again and goes on where it was, however long
// that takes; an error that will not pass by itself is yielded and is the last
// thing, and so is ctx's when it is done. The Pos of a change is the cursor to go
// on from another time.
func (a *API) Changes(ctx context.Context, client string, q ChangesQuery) iter.Seq2[*cdc.Change, error] {
	return a.Client(client).CDC().Changes(ctx, q)
}

// Changes is API.Changes for this client.
func (c *CDC) Changes(ctx context.Context, q ChangesQuery) iter.Seq2[*cdc.Change, error] {
	return func(yield func(*cdc.Change, error) bool) {
		s := changes{CDC: c, query: q.values()}
		for failures := 0; ; failures++ {
			ended, err := s.stream(ctx, func(change *cdc.Change) bool { return yield(change, nil) })
			if ended {
				return
			}
			if s.spoke {
				failures, s.spoke = 0, false
			}
			// A reader that took too long for what it was sent is told to come again.
			passes := worthRepeating(err) || athena.CodeOf(err) == athena.CodeTimeout
			again := s.open && c.api.opts.Retries >= 0 && passes &&
				c.api.pause(ctx, failures, min(athena.AsError(err).RetryAfter, quiet/6))
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			if !again {
				yield(nil, err)
				return
			}
		}
	}
}

func (q ChangesQuery) values() url.Values {
	v := optional("where", q.Where)
	list := func(name string, items []string) {
		if len(items) > 0 {
			v.Set(name, strings.Join(items, ","))
		}
	}
	ops := make([]string, len(q.Ops))
	for i, op := range q.Ops {
		ops[i] = string(op)
	}
	list("tables", q.Tables)
	list("ops", ops)
	if q.From != "" {
		v.Set("from", q.From)
	}
	return v
}

// changes is one reading of changes.
type changes struct {
	*CDC
	query url.Values
	last  string // the cursor that was last heard of
	open  bool   // there has been a connection
	spoke bool   // and on the last one something came
}

// stream follows one connection. It reports true once no more is wanted.
func (s *changes) stream(ctx context.Context, yield func(*cdc.Change) bool) (ended bool, err error) {
	r := get(s.path("/stream"), s.query)
	r.header = http.Header{"Accept": {"text/event-stream"}}
	if s.last != "" {
		r.header.Set("Last-Event-Id", s.last)
	}
	conn, cut := context.WithCancel(ctx)
	defer cut()
	resp, err := s.api.send(conn, r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	s.open = true
	silence := time.AfterFunc(quiet, cut)
	defer silence.Stop()
	events := newEventReader(heard{resp.Body, silence}, maxChange)
	for {
		e, err := events.next()
		if events.last != "" {
			s.last, s.spoke = events.last, true
		}
		switch {
		case errors.Is(err, io.EOF):
			return false, lost(ctx, io.ErrUnexpectedEOF)
		case err != nil && conn.Err() != nil && ctx.Err() == nil:
			return false, lost(ctx, errors.New("nothing was heard for a minute"))
		case err != nil:
			return false, lost(ctx, err)
		case e.name == "error":
			if failed := decodeFailure(e.data); failed != nil {
				return false, failed
			}
		case e.name == "change":
			change := new(cdc.Change)
			if err := cdc.Decode(e.data, change); err != nil {
				return false, strange(err)
			}
			if !yield(change) {
				return true, nil
			}
		}
	}
}

// heard puts the silence off whenever something is read.
type heard struct {
	io.Reader
	silence *time.Timer
}

func (h heard) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if n > 0 {
		h.silence.Reset(quiet)
	}
	return n, err
}

// Object opens a value that was too large for its change. Its name is what the
// change has as $ref in the value's place. The caller closes it.
func (c *CDC) Object(ctx context.Context, name string) (io.ReadCloser, error) {
	r := get(c.path("/objects/"+url.PathEscape(name)), nil)
	r.header = http.Header{"Accept": {"application/octet-stream"}}
	resp, err := c.api.send(ctx, r)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
