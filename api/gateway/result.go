package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/api/rows"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// HeaderResult says of an answer with a result what its data is: "rows", or
// the "manifest" of a large one.
const HeaderResult = "X-Athena-Result"

// manifest describes a result that stands in segments.
type manifest struct {
	Columns      []driver.Column `json:"columns"`
	Rows         int64           `json:"rows"`
	Bytes        int64           `json:"bytes"`
	RowsAffected int64           `json:"rows_affected"`
	Truncated    bool            `json:"truncated"`
	Complete     bool            `json:"complete"`
	ExpiresAt    time.Time       `json:"expires_at,omitzero"`
	Segments     []segment       `json:"segments"`
	// To and Objects say where the rows are, if they went to objects.
	To      *deferred.Destination   `json:"to,omitempty"`
	Objects []deferred.ResultObject `json:"objects,omitempty"`
}

type segment struct {
	N      int    `json:"n"`
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	URL    string `json:"url"`
}

func newManifest(j *deferred.Job, r *deferred.Result) manifest {
	m := manifest{
		Columns: columns(r), Rows: r.Rows, Bytes: r.Bytes, RowsAffected: r.RowsAffected, Truncated: r.Truncated,
		Complete: r.Complete, ExpiresAt: r.ExpiresAt, Segments: make([]segment, 0, len(r.Segments)),
		To: r.To, Objects: r.Objects,
	}
	for _, s := range r.Segments {
		m.Segments = append(m.Segments, segment{s.N, s.Rows, s.Bytes, s.SHA256, location(j) + "/result/" + strconv.Itoa(s.N)})
	}
	return m
}

// result answers with a job's rows, or with the manifest of many.
func (f *Family) result(c *gin.Context) {
	p := params.Of(c)
	var asManifest *bool
	if s := p.OneOf("manifest", "true", "false"); s != "" {
		asManifest = new(bool)
		*asManifest = s == "true"
	}
	if err := p.Err(); err != nil {
		envelope.Fail(c, err)
		return
	}
	j, st, err := f.load(c, auth.Read)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	f.sendResult(c, j, st, f.view(c.Request.Context(), j, st), asManifest)
}

// sendResult answers with what there is of a result. In JSON, few rows come as
// those of a synchronous query do, and many as a manifest, unless the caller
// says which; in NDJSON and CSV, all rows come. Of a result that still grows
// there is the manifest alone: rows would pass for the whole.
func (f *Family) sendResult(c *gin.Context, j *deferred.Job, st deferred.Status, state deferred.State, asManifest *bool) {
	r := st.Result
	if err := available(j, st, state); err != nil {
		envelope.Fail(c, err)
		return
	}
	c.Header("Vary", "Accept")
	kind := form(c.Request.Header, j.Format)
	if asManifest == nil {
		many := kind == rows.TypeJSON && len(r.Segments) > 0
		asManifest = &many
	}
	m := meta(j)
	switch {
	case r.To != nil:
		c.Header(HeaderResult, "manifest")
		envelope.OK(c, "the rows are in objects of client "+r.To.Client, newManifest(j, r), m)
		return
	case *asManifest:
		c.Header(HeaderResult, "manifest")
		envelope.OK(c, "the result stands in segments", newManifest(j, r), m)
		return
	case !r.Complete:
		envelope.Fail(c, unfinished(j, state))
		return
	}
	c.Header(HeaderResult, "rows")
	m.Truncated = r.Truncated
	s := f.open(c.Request.Context(), j, r)
	if err := rows.Write(c, s, rows.Options{Message: "the query was run", Meta: m, Type: kind}); err != nil {
		c.Writer.Header().Del(HeaderResult)
		envelope.Fail(c, err)
	}
}

// form is the media type of rows that the request accepts; the job's own where
// it does not care.
func form(h http.Header, format deferred.Format) string {
	switch format {
	case deferred.NDJSON:
		return envelope.Negotiate(h, rows.TypeNDJSON, rows.TypeJSON, rows.TypeCSV)
	case deferred.CSV:
		return envelope.Negotiate(h, rows.TypeCSV, rows.TypeJSON, rows.TypeNDJSON)
	}
	return rows.Type(h)
}

// available reports why there is no result to be had, or nil.
func available(j *deferred.Job, st deferred.Status, state deferred.State) error {
	r := st.Result
	switch {
	case !state.Terminal() && (r == nil || len(r.Segments) == 0):
		return unfinished(j, state)
	case !state.Terminal():
		return nil
	case state != deferred.Succeeded:
		return ended(j, st, state)
	case r == nil || st.ResultLost:
		return athena.Errorf(athena.CodeNotFound, "job %q succeeded, and its rows were lost with the worker that ran it; they cannot be had again without running it again", j.ID).
			With("state", state).With("result_lost", true)
	case !r.ExpiresAt.IsZero() && time.Now().After(r.ExpiresAt):
		return expired(j, r)
	}
	return nil
}

func unfinished(j *deferred.Job, state deferred.State) error {
	return athena.Errorf(athena.CodeConflict, "job %q is %s; its result is not complete yet", j.ID, state).With("state", state)
}

func expired(j *deferred.Job, r *deferred.Result) error {
	return athena.Errorf(athena.CodeNotFound, "the result of job %q was kept until %s", j.ID, r.ExpiresAt.UTC().Format(time.RFC3339)).
		With("expired_at", r.ExpiresAt)
}

// ended is the error with which a job ended. What is nobody's error, and what
// would say that this request failed inside, is a conflict that tells of it.
func ended(j *deferred.Job, st deferred.Status, state deferred.State) error {
	f := st.Error
	if state == deferred.Failed || state == deferred.TimedOut {
		if f != nil && f.Code != athena.CodeInternal && f.Code != athena.CodeCancelled {
			return (&athena.Error{Code: f.Code, Message: f.Message, Details: maps.Clone(f.Details)}).With("job", j.ID).With("state", state)
		}
	}
	e := athena.Errorf(athena.CodeConflict, "job %q has ended as %s and has no result", j.ID, state).With("job", j.ID).With("state", state)
	if f != nil {
		e = e.With("error", f)
	}
	return e
}

// segment answers with one segment of a result, also before the query has
// ended. Parts of it can be asked for with Range.
func (f *Family) segment(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	n, err := strconv.Atoi(c.Param("n"))
	if err != nil || n < 0 || strconv.Itoa(n) != c.Param("n") {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "%.40q is not the number of a segment", c.Param("n")))
		return
	}
	j, st, err := f.load(c, auth.Read)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx := c.Request.Context()
	if err := available(j, st, f.view(ctx, j, st)); err != nil {
		envelope.Fail(c, err)
		return
	}
	if n >= len(st.Result.Segments) {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "the result of job %q has %d segments; there is no segment %d", j.ID, len(st.Result.Segments), n).
			With("segments", len(st.Result.Segments)).With("complete", st.Result.Complete))
		return
	}
	ndjson, err := f.fetch(ctx, j, st.Result, n, nil)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	c.Header("Content-Type", rows.TypeNDJSON+"; charset=utf-8")
	c.Header("ETag", `"`+st.Result.Segments[n].SHA256+`"`)
	http.ServeContent(c.Writer, c.Request, "", time.Time{}, bytes.NewReader(ndjson))
}

func (f *Family) fetch(ctx context.Context, j *deferred.Job, r *deferred.Result, n int, buf []byte) ([]byte, error) {
	ndjson, err := f.cfg.Jobs.Segment(ctx, j, r, n, buf)
	if athena.CodeOf(err) == athena.CodeNotFound {
		return nil, expired(j, r)
	}
	return ndjson, err
}

// kept is a result as rows. It holds one segment at a time.
type kept struct {
	result *deferred.Result
	next   func() ([]byte, error) // the next piece of NDJSON; nil at the end
	piece  []byte
	row    []byte
	err    error
}

var _ driver.Rows = (*kept)(nil)

// open returns the rows of a complete result.
func (f *Family) open(ctx context.Context, j *deferred.Job, r *deferred.Result) *kept {
	n := 0
	k := &kept{result: r}
	var buf []byte // each segment takes the place of the one before it
	k.next = func() (_ []byte, err error) {
		if n == len(r.Segments) {
			return nil, nil
		}
		n++
		buf, err = f.fetch(ctx, j, r, n-1, buf)
		return buf, err
	}
	if len(r.Segments) == 0 {
		k.next = func() ([]byte, error) {
			n++
			if n > 1 {
				return nil, nil
			}
			return lines(r.Inline)
		}
	}
	return k
}

// lines makes NDJSON of an array of rows.
func lines(array json.RawMessage) ([]byte, error) {
	if len(array) == 0 {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(array, &list); err != nil {
		return nil, fmt.Errorf("gateway: inline result: %w", err)
	}
	out := make([]byte, 0, len(array))
	for _, row := range list {
		out = append(append(out, row...), '\n')
	}
	return out, nil
}

func (k *kept) Columns() []driver.Column { return k.result.Columns }

func (k *kept) Next() bool {
	for len(k.piece) == 0 {
		k.piece = nil // let go of it before the next one is fetched
		if k.piece, k.err = k.next(); k.err != nil || k.piece == nil {
			return false
		}
	}
	k.row, k.piece, _ = bytes.Cut(k.piece, []byte{'\n'})
	return true
}

func (k *kept) AppendJSON(dst []byte) []byte { return append(dst, k.row...) }

func (k *kept) RowsAffected() int64 { return k.result.RowsAffected }

func (k *kept) Err() error { return k.err }

func (k *kept) Close() error { return k.err }
