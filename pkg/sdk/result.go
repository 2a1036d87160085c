package sdk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Manifest describes a result that is kept in segments.
type Manifest struct {
	Columns      []Column  `json:"columns"`
	Rows         int64     `json:"rows"`
	Bytes        int64     `json:"bytes"`
	RowsAffected int64     `json:"rows_affected"`
	Truncated    bool      `json:"truncated"`
	Complete     bool      `json:"complete"`
	Segments     []Segment `json:"segments"`
	// To and Objects say where the rows are, if they went to objects.
	To      *Destination   `json:"to,omitempty"`
	Objects []ResultObject `json:"objects,omitempty"`
}

// A ResultObject is an object that holds some of the rows.
type ResultObject struct {
	Key   string `json:"key"`
	Rows  int64  `json:"rows"`
	Bytes int64  `json:"bytes"`
}

// Segment is a piece of a large result: NDJSON of some megabytes.
type Segment struct {
	N      int    `json:"n"`
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Result returns the rows of a job that has succeeded; the job's own error if
// it ended otherwise. Those of a large result are fetched segment by segment,
// each checked against its hash before a row of it is given out, so that one
// segment at most is held. Of a result that went to objects the rows are the
// objects: client, key, rows, bytes.
func (j *Job) Result(ctx context.Context) (*Rows, error) {
	resp, err := j.api.send(ctx, get(j.path()+"/result", nil))
	if err != nil {
		return nil, err
	}
	return j.api.rows(ctx, resp, j.ID)
}

// objects lists the objects of a result as rows.
func (m Manifest) objects(meta Meta) *Rows {
	meta.Columns = []Column{{Name: "client", Type: "text"}, {Name: "key", Type: "text"}, {Name: "rows", Type: "bigint"}, {Name: "bytes", Type: "bigint"}}
	meta.RowsAffected, meta.Truncated = &m.RowsAffected, m.Truncated
	rest := m.Objects
	return &Rows{
		meta:  &meta,
		close: func() error { return nil },
		next: func() (json.RawMessage, error) {
			if len(rest) == 0 {
				return nil, io.EOF
			}
			o := rest[0]
			rest = rest[1:]
			return json.Marshal(struct {
				Client string `json:"client"`
				ResultObject
			}{m.To.Client, o})
		},
	}
}

func (j *Job) segments(ctx context.Context, m Manifest, meta Meta) *Rows {
	meta.Columns, meta.RowsAffected, meta.Truncated = m.Columns, &m.RowsAffected, m.Truncated
	var rest []byte
	n := 0
	return &Rows{
		meta:  &meta,
		close: func() error { return nil },
		next: func() (json.RawMessage, error) {
			for len(rest) == 0 {
				if n == len(m.Segments) {
					return nil, io.EOF
				}
				var err error
				if rest, err = j.segment(ctx, m.Segments[n]); err != nil {
					return nil, err
				}
				n++
			}
			var row []byte
			row, rest, _ = bytes.Cut(rest, []byte("\n"))
			return row, nil
		},
	}
}

// segment fetches one segment, again if it broke off on the way.
func (j *Job) segment(ctx context.Context, s Segment) ([]byte, error) {
	r := get(j.path()+"/result/"+strconv.Itoa(s.N), nil)
	r.header = http.Header{"Accept": {"application/x-ndjson"}}
	for attempt := 0; ; attempt++ {
		raw, err := j.fetch(ctx, r, s)
		if err == nil || attempt >= j.api.opts.Retries || !worthRepeating(err) || !j.api.pause(ctx, attempt, 0) {
			return raw, err
		}
	}
}

func (j *Job) fetch(ctx context.Context, r request, s Segment) ([]byte, error) {
	resp, err := j.api.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, s.Bytes+1))
	if err != nil {
		return nil, lost(ctx, err)
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != s.SHA256 {
		return nil, athena.Errorf(athena.CodeInternal, "segment %d of job %s does not match its hash", s.N, j.ID)
	}
	return raw, nil
}
