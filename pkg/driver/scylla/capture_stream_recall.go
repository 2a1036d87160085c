package scylla

import (
	"context"
	"fmt"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// recall learns from the stream of changes what has been handed over, up to after:
// how far each stream of the log is, and what the sweep need not hand over.
func (s *changeStream) recall(ctx context.Context, after place) error {
	behind := s.mark.since
	if after.counter <= behind {
		return nil
	}
	if s.cfg.Stored == nil {
		return fmt.Errorf("scylla: changes are stored behind batch %d, up to %d, and nothing tells which", behind, after.counter)
	}
	readers := map[uint32]*logReader{}
	for _, r := range s.main {
		readers[r.hash] = r
	}
	var last batchID
	first := true
	newest := s.mark.swept - 1
	err := s.cfg.Stored(ctx, counterPosition(behind+1), func(pos cdc.Position) error {
		p, err := parsePlace(pos)
		if err != nil {
			return err
		}
		if p.counter <= behind || p.n == 0 || !first && p.batchID == last {
			return nil
		}
		if first && p.counter > behind+1 {
			// The stream has let go of some: the sweep cannot tell what is late there.
			s.handed.ignore(s.mark.floor)
		}
		first, last = false, p.batchID
		at := ticks(p.at.Timestamp())
		if len(s.sweep) > 0 && at >= s.mark.swept {
			s.handed.add(p.batchID)
		}
		if p.late {
			if at >= s.mark.floor {
				s.stray[p.batchID] = true
			}
			return nil
		}
		newest = max(newest, at)
		s.trail.learn(p.counter, newest)
		if r := readers[p.table]; r != nil && at >= s.mark.floor {
			stream := string(p.stream[:])
			if done, ok := r.done[stream]; !ok || scyllacdc.CompareTimeUUID(done, p.at) < 0 {
				r.done[stream] = p.at
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(s.sweep) > 0 && first { // nothing of it is kept any more
		s.handed.ignore(s.mark.floor)
	}
	return nil
}

// readRest reads a batch again of which the stream of changes does not have the
// end, and hands that over, at the places where it belongs. Rows that were added to
// a late one are read anew. No other batch is read meanwhile.
func (s *changeStream) readRest(ctx context.Context) error {
	var r *logReader
	for _, m := range s.main {
		if m.hash == s.rest.table {
			r = s.reader(m.name, m.table.Load(), m.gate, ticks(s.rest.at.Timestamp())-1)
			r.advance = m.advance
		}
	}
	if r == nil {
		return nil // the table is captured no more
	}
	// A session of its own: where the library is stopped it leaves questions behind,
	// which would be taken for those of the reader that follows.
	w := &watch{stream: s}
	var err error
	if w.session, err = s.backend.openWatched(ctx, w); err != nil {
		return err
	}
	defer w.session.Close()
	r.session = w.session
	stream := string(s.rest.stream[:])
	r.done[stream] = gocql.UUID{}
	r.others = gocql.MaxTimeUUID(time.Now().Add(24 * time.Hour)) // they are not read
	found := make(chan struct{})
	r.take = func(ctx context.Context, r *logReader, id batchID, change *scyllacdc.Change) error {
		if id != s.rest.batchID {
			return nil
		}
		b, err := r.decode(ctx, id, change)
		if err != nil {
			return err
		}
		b.late = s.rest.late
		return s.do(ctx, func(ctx context.Context, sink driver.ChangeSink) error {
			defer close(found)
			return s.hand(ctx, sink, b, s.rest.counter, s.rest.n)
		})
	}
	r.passed = func(begin ticks) error {
		select {
		case <-found:
			return nil
		default:
		}
		if begin <= ticks(s.rest.at.Timestamp()) {
			return nil
		}
		return &driver.SourceLost{Code: "log_expired", Message: fmt.Sprintf(
			"the log of %s no longer has the batch %s, of which only a part is stored; disable the capture and enable it again, or set on_loss to resnapshot", r.name, s.rest.tx())}
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.follow(rctx, []*logReader{r})
	ended := make(chan error, 1)
	go func() { ended <- r.run(rctx) }()
	select {
	case err := <-ended:
		return err
	case <-found:
		cancel()
		<-ended
		return nil
	}
}

// checkHashes refuses tables that positions could not tell apart.
func checkHashes(tables []driver.TableName) error {
	last := tables[len(tables)-1]
	for _, t := range tables[:len(tables)-1] {
		if t != last && tableHash(t) == tableHash(last) {
			return athena.Errorf(athena.CodeInvalidRequest, "the tables %s and %s cannot be captured together, since their names have one hash; capture one of them with another client", t, last).At("tables")
		}
	}
	return nil
}
