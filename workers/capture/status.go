package capture

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// status is how a capture fares, gathered from all that work on it. It is safe
// for concurrent use.
type status struct {
	capture   string // its ID
	mu        sync.Mutex
	st        changefeed.Status
	committed time.Time // of the last stored transaction
	rateAt    time.Time
	rateFrom  changefeed.Status
}

func newStatus(c changefeed.Capture, worker string) *status {
	return &status{capture: c.ID, st: changefeed.Status{Capture: c.ID, Client: c.Client, Worker: worker, State: changefeed.Starting}}
}

// begin notes where a session begins.
func (s *status) begin(pos cdc.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Position = pos
}

// set moves to a state. Streaming clears what was wrong before.
func (s *status) set(state changefeed.State, progress string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.State, s.st.Progress = state, progress
	if state == changefeed.Streaming || state == changefeed.Snapshot || state == changefeed.Held {
		s.st.Cause = nil
	}
}

// fault notes why a session ended.
func (s *status) fault(state changefeed.State, c changefeed.Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Since = time.Now().UTC()
	if was := s.st.Cause; was != nil && was.Code == c.Code {
		c.Since = was.Since
	}
	s.st.State, s.st.Cause, s.st.Progress = state, &c, ""
	s.st.Restarts++
}

// hold notes that the capture may not run.
func (s *status) hold(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.State, s.st.Cause, s.st.Progress = changefeed.Held, nil, why
	s.st.Slot, s.st.LagBytes = nil, 0 // a frozen client's database is not asked
}

// health notes what the source says of the slot; nil is that it says nothing.
func (s *status) health(h *driver.ChangeHealth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Slot = h
}

func (s *status) stored(g *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Position = g.last
	s.st.Changes += uint64(g.changes)
	s.st.Bytes += uint64(g.bytes)
	if !g.committed.IsZero() {
		s.committed = g.committed
	}
}

func (s *status) rejected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Rejected++
}

// mostSnapshots are told; older ones stand in the stream.
const mostSnapshots = 8

func (s *status) snapshot(p changefeed.SnapshotProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Tables = slices.Clone(p.Tables)
	i := slices.IndexFunc(s.st.Snapshots, func(o changefeed.SnapshotProgress) bool { return o.ID == p.ID })
	if i >= 0 {
		s.st.Snapshots[i] = p
		return
	}
	s.st.Snapshots = append(s.st.Snapshots, p)
	s.st.Snapshots = s.st.Snapshots[max(0, len(s.st.Snapshots)-mostSnapshots):]
}

// report is the status now. Lag is nil if it is not known.
func (s *status) report(now time.Time, lag *driver.ChangeLag) changefeed.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if elapsed := now.Sub(s.rateAt).Seconds(); elapsed >= 1 {
		s.st.ChangesPerSecond = float64(s.st.Changes-s.rateFrom.Changes) / elapsed
		s.st.BytesPerSecond = float64(s.st.Bytes-s.rateFrom.Bytes) / elapsed
		s.rateAt, s.rateFrom = now, s.st
	}
	st := s.st
	st.Snapshots = slices.Clone(st.Snapshots)
	st.At = now.UTC()
	if st.Slot != nil && len(st.Slot.Unpublished) > 0 && st.State == changefeed.Streaming {
		st.State, st.Cause = changefeed.Degraded, unpublished(st.Slot.Unpublished, st.At)
	}
	if st.Slot != nil {
		st.LagBytes = st.Slot.Lag
	}
	st.Streams = nil
	if lag != nil {
		st.Streams = lag.Streams
	}
	switch {
	case lag == nil:
		if st.LagBytes > 0 && !s.committed.IsZero() {
			st.LagSeconds = max(0, now.Sub(s.committed).Seconds())
		}
	case lag.CaughtUp:
		st.LagBytes = lag.Bytes
	default:
		st.Spilled = lag.Spilled
		st.LagBytes = max(st.LagBytes, lag.Bytes)
		if last := s.committed; !last.IsZero() {
			st.LagSeconds = max(0, now.Sub(last).Seconds())
		}
	}
	return st
}

// unpublished is the cause where the publication no longer has what is wanted;
// the other tables are captured on.
func unpublished(tables []driver.TableName, now time.Time) *changefeed.Cause {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
	}
	return &changefeed.Cause{
		Code: "table_unpublished", Since: now, Runbook: runbook["table_unpublished"],
		Message: "changes of " + strings.Join(names, ", ") + " are not published any more: dropped, renamed, or taken out of the publication; the other tables are captured on",
	}
}
