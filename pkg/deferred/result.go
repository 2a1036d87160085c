package deferred

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// ResultSizes bound how a result is kept. A zero field stands for its default.
type ResultSizes struct {
	Inline  int // bytes of rows that stand in the event; 64 KiB
	Segment int // bytes of NDJSON in a segment; 4 MiB
	Chunk   int // bytes of one message of a segment; 256 KiB
}

// WithDefaults returns s with its zero fields filled in.
func (s ResultSizes) WithDefaults() ResultSizes {
	if s.Inline == 0 {
		s.Inline = 64 << 10
	}
	if s.Segment == 0 {
		s.Segment = 4 << 20
	}
	if s.Chunk == 0 {
		s.Chunk = 256 << 10
	}
	return s
}

// A ResultWriter takes the rows of one attempt. Small results stay in memory
// and end up in the event; larger ones are stored in segments while rows still
// come. It holds at most two segments. It is not safe for concurrent use.
type ResultWriter struct {
	store  *Store
	job    *Job
	run    int
	sizes  ResultSizes
	most   int64
	result Result
	buf    []byte // NDJSON not yet in a segment
	rows   int64  // in buf
	flush  chan flushed
	spare  []byte
	// OnSegment, if set, is told of the result so far after each stored
	// segment. It is called from Append and Finish.
	OnSegment func(*Result)
}

type flushed struct {
	segment Segment
	buf     []byte
	err     error
}

// NewResult starts the result of an attempt. Most bounds its bytes.
func (s *Store) NewResult(j *Job, run int, columns []driver.Column, most int64, sizes ResultSizes) *ResultWriter {
	w := &ResultWriter{store: s, job: j, run: run, sizes: sizes.WithDefaults(), most: most}
	w.result = Result{Columns: columns, Run: run}
	return w
}

// Append takes the current row of rows. It reports true once the job's row limit
// is reached and no further row is wanted.
func (w *ResultWriter) Append(ctx context.Context, rows driver.Rows) (full bool, err error) {
	if w.job.RowLimit > 0 && w.result.Rows == w.job.RowLimit {
		w.result.Truncated = true
		return true, nil
	}
	before := len(w.buf)
	w.buf = append(rows.AppendJSON(w.buf), '\n')
	w.result.Rows++
	w.rows++
	w.result.Bytes += int64(len(w.buf) - before)
	if w.result.Bytes > w.most {
		return false, athena.Errorf(athena.CodePayloadTooLarge, "the result is larger than max_result_bytes of the client, which is %d; ask for fewer rows with row_limit", w.most).With("max_result_bytes", w.most)
	}
	if len(w.buf) >= w.sizes.Segment {
		return false, w.cut(ctx)
	}
	return false, nil
}

// cut hands the buffer over to be stored, after the segment before it was.
func (w *ResultWriter) cut(ctx context.Context) error {
	if err := w.settle(); err != nil {
		return err
	}
	n, buf, rows := len(w.result.Segments), w.buf, w.rows
	w.buf, w.spare, w.rows = w.spare[:0], nil, 0
	if w.buf == nil { // one that grew by doubling would take twice its size
		w.buf = make([]byte, 0, w.sizes.Segment+w.sizes.Segment/16)
	}
	w.flush = make(chan flushed, 1)
	go func(done chan<- flushed) {
		seg, err := w.store.putSegment(ctx, w.job, w.run, n, rows, buf, w.sizes.Chunk, w.job.ResultTTL.Std()+w.job.Timeout.Std()+time.Minute)
		done <- flushed{seg, buf, err}
	}(w.flush)
	return nil
}

// settle waits for the segment that is being stored.
func (w *ResultWriter) settle() error {
	if w.flush == nil {
		return nil
	}
	f := <-w.flush
	w.flush, w.spare = nil, f.buf
	if f.err != nil {
		return f.err
	}
	w.result.Segments = append(w.result.Segments, f.segment)
	if w.OnSegment != nil {
		r := w.result
		r.Segments = append([]Segment(nil), r.Segments...)
		w.OnSegment(&r)
	}
	return nil
}

// Large reports whether the result will stand in segments.
func (w *ResultWriter) Large() bool {
	return w.flush != nil || len(w.result.Segments) > 0 || len(w.buf) > w.sizes.Inline
}

// Finish stores what is left and returns the complete result.
func (w *ResultWriter) Finish(ctx context.Context, affected int64) (*Result, error) {
	if !w.Large() {
		w.result.Inline = array(w.buf)
	} else {
		if len(w.buf) > 0 {
			if err := w.cut(ctx); err != nil {
				return nil, err
			}
		}
		if err := w.settle(); err != nil {
			return nil, err
		}
	}
	w.result.RowsAffected, w.result.Complete = affected, true
	w.result.ExpiresAt = time.Now().UTC().Add(w.job.ResultTTL.Std()).Truncate(time.Second)
	r := w.result
	return &r, nil
}

// Abandon waits for what is being stored, of an attempt whose result is not
// wanted.
func (w *ResultWriter) Abandon() {
	w.OnSegment = nil
	w.settle()
}

// array makes a JSON array of NDJSON.
func array(ndjson []byte) []byte {
	out := make([]byte, 0, len(ndjson)+2)
	out = append(out, '[')
	out = append(out, bytes.ReplaceAll(bytes.TrimSuffix(ndjson, []byte("\n")), []byte("\n"), []byte(","))...)
	return append(out, ']')
}

func (s *Store) putSegment(ctx context.Context, j *Job, run, n int, rows int64, ndjson []byte, chunk int, keep time.Duration) (seg Segment, err error) {
	sum := sha256.Sum256(ndjson)
	seg = Segment{N: n, Rows: rows, Bytes: int64(len(ndjson)), SHA256: hex.EncodeToString(sum[:])}
	packed := s.zip.EncodeAll(ndjson, make([]byte, 0, len(ndjson)/4))
	for wait := 250 * time.Millisecond; ; wait *= 2 {
		// Again is harmless: the last message of a subject counts.
		if seg.Chunks, err = s.putChunks(ctx, j, run, n, packed, chunk, keep); err == nil || ctx.Err() != nil || wait > 8*time.Second {
			return seg, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// putChunks stores a segment's chunks at once and waits for all of them.
func (s *Store) putChunks(ctx context.Context, j *Job, run, n int, packed []byte, chunk int, keep time.Duration) (chunks int, err error) {
	var acks []jetstream.PubAckFuture
	for ; len(packed) > 0; chunks++ {
		piece := packed[:min(chunk, len(packed))]
		packed = packed[len(piece):]
		msg := nats.NewMsg(bus.Result(j.Client, j.ID, run, n, chunks))
		msg.Data = piece
		msg.Header.Set(jetstream.MsgTTLHeader, bus.TTL(keep))
		ack, err := s.bus.JetStream().PublishMsgAsync(msg)
		if err != nil {
			return chunks, stored(err)
		}
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return chunks, stored(err)
		case <-ctx.Done():
			return chunks, ctx.Err()
		}
	}
	return chunks, nil
}

func stored(err error) error {
	return athena.Wrap(athena.CodeBusUnavailable, err, "a segment of the result could not be stored")
}

// Segment returns a segment's NDJSON, checked against its hash; not_found once
// the result has expired. It is written over buf, which may be nil, where it
// fits.
func (s *Store) Segment(ctx context.Context, j *Job, r *Result, n int, buf []byte) ([]byte, error) {
	if !r.ExpiresAt.IsZero() && time.Now().After(r.ExpiresAt) {
		return nil, athena.Errorf(athena.CodeNotFound, "the result of job %q has expired", j.ID)
	}
	if n < 0 || n >= len(r.Segments) {
		return nil, athena.Errorf(athena.CodeNotFound, "the result has no segment %d", n)
	}
	seg := r.Segments[n]
	packed := s.packed.Get().(*bytes.Buffer)
	defer s.packed.Put(packed)
	packed.Reset()
	for c := range seg.Chunks {
		raw, err := s.bus.LastMsg(ctx, bus.StreamResults, bus.Result(j.Client, j.ID, r.Run, n, c))
		if err != nil {
			return nil, lookup(err, j.ID)
		}
		packed.Write(raw.Data)
	}
	ndjson, err := s.unzip.DecodeAll(packed.Bytes(), slices.Grow(buf[:0], int(seg.Bytes)))
	if err != nil {
		return nil, fmt.Errorf("deferred: segment %d of job %s: %w", n, j.ID, err)
	}
	if sum := sha256.Sum256(ndjson); hex.EncodeToString(sum[:]) != seg.SHA256 {
		return nil, fmt.Errorf("deferred: segment %d of job %s does not match its hash", n, j.ID)
	}
	return ndjson, nil
}
