package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A flow takes the rows of a task, or of a stream, through the transforms into a
// writer. It is used by one goroutine.
type flow struct {
	job    *job
	chains chains
	writer stage.Writer
	counts runs.Counts
	busy   runs.Busy
	// name makes the names of rejected rows that have no position.
	name string
	n    int
	// rejected are rows that are not stored yet.
	rejected []runs.Rejected
}

// chains gives what takes the rows of a batch through.
type chains interface {
	of(*record.Batch) (*chained, error)
}

// rejectedHeld is how many rejected rows are held before they are stored.
const rejectedHeld = 500

// push takes a batch of the source's rows.
func (f *flow) push(ctx context.Context, b *record.Batch) error {
	f.counts.Read += counted(b)
	f.counts.Bytes += int64(b.Size())
	begun := time.Now()
	c, err := f.chains.of(b)
	if err != nil {
		return err
	}
	whole := b
	b, dropped := c.agreed.Apply(b, func(row int, cause *transform.RowError) {
		f.reject(runs.Rejected{Stage: "schema", Reason: cause.Reason, Column: cause.Column}, whole, row)
	})
	f.counts.Discarded += int64(dropped)
	parts, err := c.Apply(b, f.failed(b))
	f.busy.Transform += time.Since(begun)
	if err != nil {
		return at(err, "transforms")
	}
	return f.write(ctx, parts)
}

// failed is told of rows of b that a step of the transforms rejects.
func (f *flow) failed(b *record.Batch) transform.Reject {
	return func(step, row int, cause error) {
		r := runs.Rejected{Stage: transform.StageName(step), Reason: cause.Error()}
		var e *transform.RowError
		if errors.As(cause, &e) {
			r.Column = e.Column
		}
		f.reject(r, b, row)
	}
}

// end takes what transforms have held back until all rows had come.
func (f *flow) end(ctx context.Context, c *transform.Chain) error {
	parts, err := c.Flush(f.failed(&record.Batch{}))
	if err != nil {
		return at(err, "transforms")
	}
	if err := f.write(ctx, parts); err != nil {
		return err
	}
	return f.store(ctx)
}

// counted is how many rows a batch counts for: a change of a key is one change,
// though the old row goes with it.
func counted(b *record.Batch) int64 {
	n := b.Rows()
	for i := range b.Changes {
		if b.Changes[i].Implied {
			n--
		}
	}
	return int64(n)
}

func (f *flow) write(ctx context.Context, parts []transform.Part) error {
	for _, p := range parts {
		if p.Batch.Rows() == 0 {
			continue
		}
		begun, rows := time.Now(), counted(p.Batch)
		rejected, err := f.writer.Write(ctx, p.Route, p.Batch)
		f.busy.Sink += time.Since(begun)
		if err != nil {
			return at(err, "sink")
		}
		for _, r := range rejected {
			if p.Batch.Changes == nil || !p.Batch.Changes[r.Row].Implied {
				rows--
			}
			f.reject(runs.Rejected{Stage: "sink", Reason: r.Reason, Column: r.Column, Route: p.Route}, p.Batch, r.Row)
		}
		f.counts.Written += rows
	}
	if len(f.rejected) >= rejectedHeld {
		return f.store(ctx)
	}
	return nil
}

// reject notes a row that cannot go on (law 5).
func (f *flow) reject(r runs.Rejected, b *record.Batch, row int) {
	if f.job.spec.Errors.To != spec.ToDrop {
		r.From = b.From
		if row >= 0 {
			r.Record = b.AppendJSON(nil, row)
		}
		if row >= 0 && b.Changes != nil {
			r.Op, r.Pos = b.Changes[row].Op, b.Changes[row].Pos
		}
	}
	f.note(r)
}

// unread notes what a source gave that is no row.
func (f *flow) unread(ctx context.Context, u stage.Unread, pos cdc.Position) error {
	f.counts.Read++
	r := runs.Rejected{Stage: "source", Reason: u.Reason, Column: u.Column, From: u.From, Pos: pos}
	if json.Valid([]byte(u.Text)) {
		r.Record = json.RawMessage(u.Text)
	} else {
		r.Text = u.Text
	}
	f.note(r)
	if len(f.rejected) >= rejectedHeld {
		return f.store(ctx)
	}
	return nil
}

func (f *flow) note(r runs.Rejected) {
	f.counts.Rejected++
	if f.job.spec.Errors.To == spec.ToDrop {
		return
	}
	f.n++
	r.Run, r.Row, r.At = f.job.run.ID, rejectedName(f.name, f.n), time.Now().UTC()
	if r.Pos != "" { // the same after a crash
		r.Row = fmt.Sprintf("%s-%s", r.Pos, r.Stage)
	}
	f.rejected = append(f.rejected, r)
}

// rejectedName names the n-th rejected row of a part, from 1.
func rejectedName(part string, n int) string { return fmt.Sprintf("%s-%08d", part, n) }

// store keeps the rejected rows; before that nothing behind them is committed.
func (f *flow) store(ctx context.Context) error {
	err := f.job.Store.Reject(ctx, f.job.checkpoints(), f.rejected)
	if err == nil {
		f.rejected = f.rejected[:0]
	}
	return err
}

// rateFrom is from how many rows on their share of rejected ones is looked at.
const rateFrom = 100

// tooMany reports that more rows could not go on than the definition allows.
func (j *job) tooMany(c runs.Counts) error {
	most := spec.DefaultMaxRate
	if j.spec.Errors.MaxRate != nil {
		most = *j.spec.Errors.MaxRate
	}
	if c.Read < rateFrom || float64(c.Rejected) <= most*float64(c.Read) {
		return nil
	}
	return athena.Errorf(athena.CodeRejectedRows, "%d of %d rows could not go on, which is more than errors.max_rate allows (%g); see why with athena pipeline dead list; mend the rows and resume the run, or apply a mended definition and start another run", c.Rejected, c.Read, most).
		With("rejected", c.Rejected).With("read", c.Read).With("stage", "").At("errors.max_rate")
}
