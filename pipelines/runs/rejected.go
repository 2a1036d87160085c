package runs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A Rejected row is one that could not go on.
type Rejected struct {
	Seq uint64 `json:"seq"` // of the row among all that are kept; set by reading
	Run string `json:"run"`
	// Row names it within the run, so that a repeated attempt keeps it once.
	Row string `json:"row"`
	// Stage is where it could not: source, transforms[2], schema, sink.
	Stage  string `json:"stage"`
	Column string `json:"column,omitempty"`
	Reason string `json:"reason"`
	// Record is the row as the source gave it, or as the sink was given it. Text is
	// what a source gave that is no row.
	Record json.RawMessage `json:"record,omitempty"`
	Text   string          `json:"text,omitempty"`
	Route  string          `json:"route,omitempty"`
	From   string          `json:"from,omitempty"` // table, object and line
	Op     cdc.Op          `json:"op,omitempty"`
	Pos    cdc.Position    `json:"pos,omitempty"`
	At     time.Time       `json:"at"`
}

// rejectedMost is how much of a row is kept; a larger one has its text cut.
const rejectedMost = 1 << 20

// Reject keeps rows of a pipeline. It returns when they are stored.
func (s *Store) Reject(ctx context.Context, pipelineID string, rows []Rejected) error {
	const most = 500
	for len(rows) > 0 {
		n := min(most, len(rows))
		msgs := make([]*nats.Msg, 0, n)
		for _, r := range rows[:n] {
			if len(r.Record) > rejectedMost {
				r.Text, r.Record = fmt.Sprintf("a row of %d bytes, of which no more than its beginning is kept: %s", len(r.Record), r.Record[:1024]), nil
			}
			raw, err := json.Marshal(r)
			if err != nil {
				return err
			}
			m := nats.NewMsg(bus.Rejected(pipelineID, r.Run, r.Row))
			m.Data = raw
			msgs = append(msgs, m)
		}
		if err := s.rejectAll(ctx, msgs); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

func (s *Store) rejectAll(ctx context.Context, msgs []*nats.Msg) error {
	for { // a message that is large goes alone
		n, size := 0, 0
		for n < len(msgs) && (n == 0 || size+msgs[n].Size() < 2<<20) {
			size += msgs[n].Size()
			n++
		}
		var err error
		if n == 1 {
			_, err = s.rejected.Publish(ctx, msgs[0])
		} else {
			_, err = s.rejected.PublishAtomic(ctx, msgs[:n])
		}
		switch {
		case errors.Is(err, bus.ErrAmbiguous): // one subject, one row: it may be stored again
			continue
		case errors.Is(err, bus.ErrFull):
			return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s is full: there is no room for rows that cannot go on; redrive or delete what it holds (athena pipeline dead)", bus.StreamRejected)
		case err != nil:
			return err
		}
		if msgs = msgs[n:]; len(msgs) == 0 {
			return nil
		}
	}
}

// ListRejected returns rows of a pipeline from seq on, at most so many.
func (s *Store) ListRejected(ctx context.Context, pipelineID string, from uint64, most int) ([]Rejected, error) {
	return s.RejectedOf(ctx, pipelineID, bus.Any, from, most)
}

// RejectedOf is ListRejected for the rows of one run.
func (s *Store) RejectedOf(ctx context.Context, pipelineID, run string, from uint64, most int) ([]Rejected, error) {
	raws, err := s.bus.Scan(ctx, bus.StreamRejected, bus.RejectedAny(pipelineID, run), max(1, from), most)
	if err != nil {
		return nil, err
	}
	out := make([]Rejected, 0, len(raws))
	for _, raw := range raws {
		var r Rejected
		if err := json.Unmarshal(raw.Data, &r); err != nil {
			return nil, err
		}
		r.Seq = raw.Sequence
		out = append(out, r)
	}
	return out, nil
}

// LastRejected returns the seq of a pipeline's newest row; 0 if there is none.
func (s *Store) LastRejected(ctx context.Context, pipelineID string) (uint64, error) {
	raw, err := s.bus.LastMsg(ctx, bus.StreamRejected, bus.RejectedAny(pipelineID, bus.Any))
	if errors.Is(err, bus.ErrNoMessage) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return raw.Sequence, nil
}

// CountRejected counts the rows that are kept of a pipeline.
func (s *Store) CountRejected(ctx context.Context, pipelineID string) (int64, error) {
	return s.bus.Count(ctx, bus.StreamRejected, bus.RejectedAny(pipelineID, bus.Any))
}

// RejectedRoom says how many bytes the rows of all pipelines take that could not go
// on, and how many they may.
func (s *Store) RejectedRoom(ctx context.Context) (bytes, most int64, err error) {
	stream, err := s.bus.JetStream().Stream(ctx, bus.StreamRejected)
	if err != nil {
		return 0, 0, athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be asked", bus.StreamRejected)
	}
	info := stream.CachedInfo()
	return int64(info.State.Bytes), info.Config.MaxBytes, nil
}

// Redrivable lists the runs whose rows can be taken on again: those that have
// succeeded, and streams. Of a run that failed nothing stands to which its rows
// could be added. If fresh, what a later batch has read again is left out: its
// rows are older than what the target has by now.
func (s *Store) Redrivable(ctx context.Context, pipelineID string, fresh bool) ([]string, error) {
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(s.Runs(""), func(r Run) bool {
		return r.PipelineID != pipelineID || r.Kind != Stream && r.State != Succeeded
	})
	slices.SortFunc(all, func(a, b Run) int { return a.EndedAt.Compare(b.EndedAt) })
	var found []string
	for _, r := range all {
		if fresh && r.Kind == Batch {
			found = nil
		}
		kept, err := s.RejectedOf(ctx, pipelineID, r.ID, 1, 1)
		if err != nil {
			return nil, err
		}
		if len(kept) > 0 {
			found = append(found, r.ID)
		}
	}
	return found, nil
}

// PruneRejected removes the rows of a run that its last attempts have not
// rejected: those of attempts before them.
func (s *Store) PruneRejected(ctx context.Context, pipelineID, run string, last func(row string) bool) error {
	stream, err := s.bus.JetStream().Stream(ctx, bus.StreamRejected)
	if err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be asked", bus.StreamRejected)
	}
	const page = 500
	for from := uint64(1); ; {
		rows, err := s.RejectedOf(ctx, pipelineID, run, from, page)
		if err != nil {
			return err
		}
		for _, r := range rows {
			from = r.Seq + 1
			if last(r.Row) {
				continue
			}
			if err := stream.DeleteMsg(ctx, r.Seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
				return athena.Wrap(athena.CodeBusUnavailable, err, "rows of stream %s cannot be removed", bus.StreamRejected)
			}
		}
		if len(rows) < page {
			return nil
		}
	}
}

// DropRejected removes a pipeline's rows up to seq; all of them if it is 0.
func (s *Store) DropRejected(ctx context.Context, pipelineID string, upto uint64) error {
	return s.DropRejectedOf(ctx, pipelineID, bus.Any, upto)
}

// DropRejectedOf is DropRejected for the rows of one run.
func (s *Store) DropRejectedOf(ctx context.Context, pipelineID, run string, upto uint64) error {
	stream, err := s.bus.JetStream().Stream(ctx, bus.StreamRejected)
	if err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be asked", bus.StreamRejected)
	}
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(bus.RejectedAny(pipelineID, run))}
	if upto > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upto+1))
	}
	if err := stream.Purge(ctx, opts...); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "rows of stream %s cannot be removed", bus.StreamRejected)
	}
	return nil
}
