package capture

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// snapshotReaders read the parts of the first snapshot at once.
	snapshotReaders = 2
	// chunkRows is how many rows of an ad-hoc snapshot are read while the stream
	// is held.
	chunkRows = 5000
	// progressEvery is how often it is stored how far a snapshot is: each time it
	// tells of all its tables.
	progressEvery = time.Second
)

// initialID is the id of the first snapshot of a capture.
func initialID(c changefeed.Capture) string { return "initial-" + c.ID }

// firstSnapshot reads the rows that were there when the capture began. What an
// earlier session left is read beside the stream, since its view of the
// database is gone; so is everything where the slot is older than the capture.
func (s *session) firstSnapshot(ctx context.Context, snapshot driver.ChangeSnapshot) error {
	if s.capture.Snapshot != changefeed.SnapshotInitial || s.origin.Read {
		return nil
	}
	if snapshot != nil {
		if err := s.readAll(ctx, snapshot); err != nil {
			return err
		}
		if err := s.Flush(ctx); err != nil {
			return err
		}
		return s.keep(ctx, wasRead)
	}
	progress, err := s.store.Progress(ctx, s.capture.Client)
	if err != nil {
		return err
	}
	id := initialID(s.capture)
	p, ok := progress[id]
	if ok && p.State != "running" {
		return s.keep(ctx, wasRead)
	}
	rest := changefeed.SnapshotRequest{ID: id, Client: s.capture.Client, Initial: true, Anew: s.origin.Anew}
	done := map[driver.TableName]bool{}
	for _, t := range p.Tables {
		done[t.Table] = t.Done
	}
	for _, t := range s.capture.Tables {
		if !done[t] {
			rest.Tables = append(rest.Tables, driver.SnapshotTable{Table: t, Fresh: s.capture.TakeOver})
		}
	}
	s.snapshots.rest.Store(&rest)
	return nil
}

// readAll reads the first snapshot as of the place where the capture begins.
func (s *session) readAll(ctx context.Context, snapshot driver.ChangeSnapshot) error {
	s.status.set(changefeed.Snapshot, "")
	parts, err := snapshot.Tables(ctx, snapshotReaders)
	if err != nil {
		return err
	}
	p := changefeed.SnapshotProgress{ID: initialID(s.capture), Capture: s.capture.ID, State: "running"}
	left := map[driver.TableName]int{}
	index := map[driver.TableName]int{}
	for _, part := range parts {
		if _, ok := index[part.Table]; !ok {
			index[part.Table] = len(p.Tables)
			p.Tables = append(p.Tables, changefeed.TableProgress{SnapshotTable: driver.SnapshotTable{Table: part.Table}})
		}
		p.Tables[index[part.Table]].Total += part.Rows
		left[part.Table]++
	}
	for _, t := range s.capture.Tables {
		if _, ok := index[t]; !ok { // it has no rows to read
			p.Tables = append(p.Tables, changefeed.TableProgress{SnapshotTable: driver.SnapshotTable{Table: t}, Done: true})
		}
	}
	rows := make([]atomic.Int64, len(p.Tables))
	var mu sync.Mutex
	var told time.Time
	tell := func(update func()) error {
		mu.Lock()
		defer mu.Unlock()
		update()
		if p.State == "running" && time.Since(told) < progressEvery {
			return nil
		}
		told = time.Now()
		for i := range p.Tables {
			p.Tables[i].Rows = rows[i].Load()
		}
		p.At = time.Now().UTC()
		s.status.snapshot(p)
		return s.Progress(ctx, p)
	}
	for _, t := range s.origin.Anew {
		columns, err := snapshot.Columns(ctx, t)
		if err != nil {
			return err
		}
		version, err := s.announce(ctx, t, columns)
		if err == nil {
			err = s.Truncate(ctx, t, version, before(writtenAt(snapshot)))
		}
		if err != nil {
			return err
		}
	}
	if err := tell(func() {}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(snapshotReaders)
	for _, part := range parts {
		if ctx.Err() != nil {
			break
		}
		i := index[part.Table]
		columns, err := snapshot.Columns(ctx, part.Table)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		version, err := s.announce(ctx, part.Table, columns)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			err := snapshot.Read(ctx, part, func(key, after []byte) error {
				rows[i].Add(1)
				return s.Row(ctx, part.Table, version, writtenAt(snapshot), key, after)
			})
			if err != nil {
				return err
			}
			err = tell(func() {
				left[part.Table]--
				p.Tables[i].Done = left[part.Table] == 0
			})
			crashpoint.Here(crashpoint.CDCSnapshotChunk)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return tell(func() { p.State = "done" })
}

// writtenAt is when rows count as written, where their engine settles by that; 0 is
// that it does not.
func writtenAt(rows any) int64 {
	if t, ok := rows.(driver.TimedRows); ok {
		return t.WrittenAt()
	}
	return 0
}

// before is the time of what must not touch rows that were written at one.
func before(written int64) int64 { return max(0, written-1) }

// announce tells of the columns of a table whose rows are to come, where they are
// others than before.
func (s *session) announce(ctx context.Context, t driver.TableName, columns []cdc.Column) (version int, err error) {
	version, isNew := s.versions.number(t, columns)
	if isNew {
		err = s.Columns(ctx, t, version, columns)
	}
	return version, err
}

// wasRead notes that the first snapshot is over, since the stream lets go of what
// it says of it.
func wasRead(o *changefeed.Origin) { o.Read = true }

// snapshots are those that are read beside the stream, one after the other.
type snapshots struct {
	rest    atomic.Pointer[changefeed.SnapshotRequest] // of the first snapshot; nil if there is none
	current *adhoc
	due     atomic.Bool // Pause has something to do
}

// An adhoc snapshot is under way.
type adhoc struct {
	changefeed.SnapshotRequest
	progress changefeed.SnapshotProgress
	stored   time.Time // when progress was
	table    int       // index of the one that is read
	reader   driver.SnapshotReader
	waits    bool // its rows cannot be read yet
	told     bool // the columns of the table that is read, for the next chunk
	version  int  // of the columns
	keyed    bool // they have a key
}

func (a *adhoc) close() {
	if a != nil && a.reader != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = a.reader.Close(ctx)
		a.reader, a.told = nil, false
	}
}

// fail gives up the table that is read where the request is at fault, a where or
// a table that is gone: its other tables are read, and the stream goes on. Any
// other error it returns.
func (a *adhoc) fail(err *athena.Error) (done bool, _ error) {
	t := &a.progress.Tables[a.table]
	switch err.Code {
	case athena.CodeConflict: // it has another key now
		if t.After == "" {
			return false, err
		}
		t.After, t.Rows = "", 0
		return false, nil
	case athena.CodeQueryFailed, athena.CodeInvalidRequest, athena.CodeNotFound, athena.CodeTimeout:
	default:
		return false, err
	}
	a.progress.Error = cmp.Or(a.progress.Error, t.Table.String()+": "+err.Message)
	a.close()
	a.table++
	return a.table == len(a.progress.Tables), nil
}

func (n *snapshots) stop() {
	n.current.close()
	n.current = nil
}

// tend wakes the stream for snapshots that are asked for.
func (s *session) tend(ctx context.Context, stream driver.ChangeStream) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.snapshots.rest.Load() != nil || len(s.store.SnapshotRequests(s.capture.Client)) > 0 {
			s.snapshots.due.Store(true)
			stream.Interrupt()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Pause reads the next chunk of a snapshot that was asked for. The stream is
// held meanwhile (law 4).
func (s *session) Pause(ctx context.Context) error {
	if !s.snapshots.due.Swap(false) {
		return nil
	}
	n := &s.snapshots
	if n.current == nil {
		a, err := s.nextSnapshot(ctx)
		if a == nil || err != nil {
			return err
		}
		n.current = a
	}
	a := n.current
	if s.cancelled(a) {
		a.progress.State = "cancelled"
		n.stop()
		return s.tellProgress(ctx, a)
	}
	done, err := s.chunk(ctx, a)
	if errors.Is(err, driver.ErrNotYet) {
		if !a.waits {
			a.waits = true
			s.status.set(changefeed.Streaming, "a snapshot waits: "+err.Error())
		}
		n.due.Store(a.reader != nil) // its place must not be missed; else tend asks again
		return nil
	}
	if a.waits {
		a.waits = false
		s.status.set(changefeed.Streaming, "")
	}
	if err != nil {
		if done, err = a.fail(athena.AsError(dispatch.Normalize(s.backend, err))); err != nil {
			return err
		}
	}
	switch {
	case done && a.progress.Error != "":
		a.progress.State = "failed"
	case done:
		a.progress.State = "done"
	}
	if err := s.tellProgress(ctx, a); err != nil {
		return err
	}
	crashpoint.Here(crashpoint.CDCSnapshotChunk)
	if !done {
		n.due.Store(true)
		(*s.open.Load()).Interrupt() // after what has come meanwhile
		return nil
	}
	n.stop()
	if err := s.Flush(ctx); err != nil {
		return err
	}
	if a.Initial {
		n.rest.Store(nil)
		return s.keep(ctx, wasRead)
	}
	// It is done as the stream says, so that a request that stays here is not
	// begun again.
	if err := s.store.ForgetSnapshot(ctx, s.capture.Client, a.ID); err != nil {
		s.Log.Warn("a snapshot that is done is still asked for", telemetry.KeyClient, s.capture.Client, telemetry.KeyError, err)
	}
	return nil
}

// tellProgress says how far a snapshot is. What it leaves out while the snapshot
// runs is read again after a crash.
func (s *session) tellProgress(ctx context.Context, a *adhoc) error {
	if a.progress.State == "running" && time.Since(a.stored) < progressEvery {
		return nil
	}
	a.stored = time.Now()
	a.progress.At = a.stored.UTC()
	s.status.snapshot(a.progress)
	return s.Progress(ctx, a.progress)
}

// cancelled reports whether a snapshot is no longer asked for.
func (s *session) cancelled(a *adhoc) bool {
	if a.Initial {
		return false
	}
	for _, r := range s.store.SnapshotRequests(s.capture.Client) {
		if r.ID == a.ID {
			return false
		}
	}
	return true
}

// nextSnapshot finds what is to be read, and how far an earlier session was; nil
// if there is nothing.
func (s *session) nextSnapshot(ctx context.Context) (*adhoc, error) {
	progress, err := s.store.Progress(ctx, s.capture.Client)
	if err != nil {
		return nil, err
	}
	requests := s.store.SnapshotRequests(s.capture.Client)
	if rest := s.snapshots.rest.Load(); rest != nil {
		requests = append([]changefeed.SnapshotRequest{*rest}, requests...)
	}
	for _, r := range requests {
		p, known := progress[r.ID]
		if known && p.State != "running" {
			if err := s.store.ForgetSnapshot(ctx, s.capture.Client, r.ID); err != nil {
				return nil, err
			}
			continue
		}
		a := &adhoc{SnapshotRequest: r, progress: changefeed.SnapshotProgress{ID: r.ID, Capture: s.capture.ID, State: "running"}}
		before := map[driver.SnapshotTable]changefeed.TableProgress{}
		for _, t := range p.Tables {
			before[t.SnapshotTable] = t
			if r.Initial && t.Done {
				a.progress.Tables = append(a.progress.Tables, t)
				a.table++
			}
		}
		for _, t := range r.Tables {
			was := before[t]
			was.SnapshotTable = t
			if was.After == "" && !was.Done { // of a part that was read otherwise
				was.Rows = 0
			}
			a.progress.Tables = append(a.progress.Tables, was)
		}
		return a, nil
	}
	return nil, nil
}

// chunk reads the next rows; done says that there are no more.
func (s *session) chunk(ctx context.Context, a *adhoc) (done bool, err error) {
	for a.table < len(a.progress.Tables) && a.progress.Tables[a.table].Done {
		a.table++
	}
	if a.table == len(a.progress.Tables) {
		return true, nil
	}
	t := &a.progress.Tables[a.table]
	if a.reader == nil {
		if a.reader, err = (*s.open.Load()).Snapshot(ctx, t.SnapshotTable); err != nil {
			return false, err
		}
		if t.Total, err = a.reader.Total(ctx); err != nil {
			return false, err
		}
	}
	if !a.told {
		columns, err := a.reader.Columns(ctx)
		if err != nil {
			return false, err
		}
		if a.version, err = s.announce(ctx, t.Table, columns); err != nil {
			return false, err
		}
		a.told = true
		a.keyed = slices.ContainsFunc(columns, func(c cdc.Column) bool { return c.Key })
	}
	// The rows of a table without a key cannot be told from those that readers
	// have already; of one with a key they have rows that are gone, unless it was
	// captured all along. Of a part of the rows nothing can be said. What begins at
	// the first row reads all of them, also where it begins for the second time.
	anew := t.After == "" && slices.Contains(a.Anew, t.Table)
	forget := sync.OnceValue(func() error {
		if a.keyed && !anew || t.Where != "" {
			return nil
		}
		return s.Truncate(ctx, t.Table, a.version, before(writtenAt(a.reader)))
	})
	next, err := a.reader.Next(ctx, t.After, chunkRows, func(key, after []byte) error {
		if err := forget(); err != nil {
			return err
		}
		t.Rows++
		return s.Row(ctx, t.Table, a.version, writtenAt(a.reader), key, after)
	})
	if errors.Is(err, driver.ErrNotYet) {
		return false, err
	}
	a.told = false
	if err == nil {
		err = forget() // if there are none
	}
	if errors.Is(err, driver.ErrTableChanged) {
		return false, nil // the next chunk begins with what they are now
	}
	if err != nil {
		return false, err
	}
	t.After = next
	if next == "" {
		t.Done = true
		a.close()
		a.table++
	}
	return a.table == len(a.progress.Tables), nil
}
