// Package rows writes a driver's rows as an HTTP answer, row by row and in
// constant memory: a JSON envelope, NDJSON or CSV, as the request accepts.
//
// An answer is complete or visibly broken. The first bytes are held back, so
// that an error that comes early is answered as an error; one that comes later
// ends in envelope.Fail, which cuts the connection.
package rows

import (
	"cmp"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Media types of rows.
const (
	TypeJSON   = "application/json"
	TypeNDJSON = "application/x-ndjson"
	TypeCSV    = "text/csv"
)

// Held is how many bytes are held back before the answer begins.
const Held = 128 << 10

// chunk is how many bytes are gathered for one write once it has begun.
const chunk = 32 << 10

// Headers of an NDJSON or CSV answer, which has no envelope to say these
// things. A short answer has them as headers, a long one as trailers.
const (
	HeaderRows         = "X-Athena-Rows"
	HeaderRowsAffected = "X-Athena-Rows-Affected"
	HeaderTruncated    = "X-Athena-Truncated"
)

// Options say what goes with the rows.
type Options struct {
	Message string
	// Meta gets the columns and the rows affected, and is marked as truncated
	// where Limit ended the rows.
	Meta envelope.Meta
	// Type is the media type to write; by default that which the request
	// accepts.
	Type string
	// Limit is the most rows that are written; 0 means no limit.
	Limit int64
}

// Type is the media type in which the request wants its rows.
func Type(h http.Header) string {
	return envelope.Negotiate(h, TypeJSON, TypeNDJSON, TypeCSV)
}

// Write answers the request with all of r. The caller closes r. On an error the
// caller must answer with envelope.Fail, and with nothing else: whether the
// answer has begun by then is Fail's business. So it can be called within
// dispatch.Do, which gives the engine's error its code:
//
//	_, err := dispatch.Do(ctx, d, op, name, func(ctx context.Context, call dispatch.Call, q driver.Querier) (struct{}, error) {
//		r, err := q.Query(ctx, stmt)
//		if err != nil {
//			return struct{}{}, err
//		}
//		defer r.Close()
//		return struct{}{}, rows.Write(c, r, rows.Options{Meta: envelope.Of(call.Client)})
//	})
//	if err != nil {
//		envelope.Fail(c, err)
//	}
func Write(c *gin.Context, r driver.Rows, o Options) error {
	kind := cmp.Or(o.Type, Type(c.Request.Header))
	w := &writer{c: c, kind: kind, hold: true}
	c.Header("Vary", "Accept")
	f, err := newFormat(c, kind, r.Columns(), o)
	if err != nil {
		return err
	}
	w.buf = f.begin(w.buf)
	var n int64
	var limited bool
	var row []byte
	for r.Next() {
		if o.Limit > 0 && n == o.Limit {
			limited = true
			break
		}
		row = r.AppendJSON(row[:0])
		if w.buf, err = f.row(w.buf, row, n); err != nil {
			return err
		}
		n++
		if err := w.spill(); err != nil {
			return err
		}
	}
	truncated := limited || o.Meta.Truncated
	if limited {
		// The rest is dropped; what the engine says of that is no error here.
		_ = r.Close()
	} else if err := r.Err(); err != nil {
		return err
	}
	if w.buf, err = f.end(w.buf, r.RowsAffected(), truncated); err != nil {
		return err
	}
	if kind != TypeJSON {
		w.note(HeaderRows, strconv.FormatInt(n, 10))
		w.note(HeaderRowsAffected, strconv.FormatInt(r.RowsAffected(), 10))
		w.note(HeaderTruncated, strconv.FormatBool(truncated))
	}
	return w.flush()
}

// writer holds bytes back until there are many, or the answer is whole.
type writer struct {
	c    *gin.Context
	kind string
	buf  []byte
	hold bool // nothing was sent yet
}

func (w *writer) spill() error {
	if w.hold && len(w.buf) < Held || len(w.buf) < chunk {
		return nil
	}
	return w.flush()
}

func (w *writer) flush() error {
	if w.hold {
		w.hold = false
		w.c.Header("Content-Type", w.kind+"; charset=utf-8")
		w.c.Status(http.StatusOK)
	}
	_, err := w.c.Writer.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return athena.Wrap(athena.CodeCancelled, err, "the reader of the answer went away")
	}
	return nil
}

func (w *writer) note(name, value string) {
	if !w.hold {
		name = http.TrailerPrefix + name
	}
	w.c.Header(name, value)
}

// format is one way to write rows down.
type format interface {
	begin(dst []byte) []byte
	row(dst, object []byte, n int64) ([]byte, error)
	end(dst []byte, affected int64, truncated bool) ([]byte, error)
}

func newFormat(c *gin.Context, kind string, columns []driver.Column, o Options) (format, error) {
	switch kind {
	case TypeNDJSON:
		return ndjson{}, nil
	case TypeCSV:
		return csv{columns}, nil
	}
	if columns == nil {
		columns = []driver.Column{}
	}
	o.Meta.Columns = columns
	message, err := envelope.Encode(o.Message)
	if err != nil {
		return nil, err
	}
	return &enveloped{c, message, o.Meta}, nil
}

// enveloped writes the success envelope with the rows as its data. What is
// known only after the rows stands behind them.
type enveloped struct {
	c       *gin.Context
	message []byte
	meta    envelope.Meta
}

func (f *enveloped) begin(dst []byte) []byte {
	dst = append(dst, `{"status":"success","message":`...)
	dst = append(dst, f.message...)
	return append(dst, `,"data":[`...)
}

func (f *enveloped) row(dst, object []byte, n int64) ([]byte, error) {
	if n > 0 {
		dst = append(dst, ',')
	}
	return append(dst, object...), nil
}

func (f *enveloped) end(dst []byte, affected int64, truncated bool) ([]byte, error) {
	ctx := f.c.Request.Context()
	f.meta.RowsAffected, f.meta.Truncated = &affected, truncated
	f.meta.ElapsedMS = envelope.Elapsed(ctx).Milliseconds()
	meta, err := envelope.Encode(f.meta)
	if err != nil {
		return nil, err
	}
	id, err := envelope.Encode(telemetry.RequestID(ctx))
	if err != nil {
		return nil, err
	}
	dst = append(dst, `],"request_id":`...)
	dst = append(dst, id...)
	dst = append(dst, `,"meta":`...)
	dst = append(dst, meta...)
	return append(dst, '}'), nil
}

type ndjson struct{}

func (ndjson) begin(dst []byte) []byte { return dst }

func (ndjson) row(dst, object []byte, _ int64) ([]byte, error) {
	return append(append(dst, object...), '\n'), nil
}

func (ndjson) end(dst []byte, _ int64, _ bool) ([]byte, error) { return dst, nil }

type csv struct{ columns []driver.Column }

func (f csv) begin(dst []byte) []byte { return AppendCSVHeader(dst, f.columns) }

func (f csv) row(dst, object []byte, _ int64) ([]byte, error) { return AppendCSV(dst, object) }

func (csv) end(dst []byte, _ int64, _ bool) ([]byte, error) { return dst, nil }
