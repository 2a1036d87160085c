package capture

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// A session captures from one opening of the source to the first thing that goes
// wrong. It is the sink of the source's stream.
type session struct {
	*runner
	capture changefeed.Capture
	source  driver.ChangeSource
	backend driver.Backend // the same, to ask what an error means

	originMu sync.Mutex
	origin   changefeed.Origin

	*writer
	versions *versions
	open     atomic.Pointer[driver.ChangeStream]
	tail     atomic.Pointer[group] // the last one that is stored

	snapshots snapshots
	noStream  bool // large transactions wait at the source: there was no room for them here
}

// run captures until ctx is done, and then returns nil, or until something goes
// wrong.
func (s *session) run(ctx context.Context) error {
	end, err := s.store.PrepareStream(ctx, s.capture)
	if err != nil {
		return err
	}
	known, err := s.store.TableVersions(ctx, s.capture.Client)
	if err != nil {
		return err
	}
	s.versions = &versions{tables: known}
	origin, begun, err := s.store.Origin(ctx, s.capture)
	if err != nil {
		return err
	}
	s.origin = origin
	if begun && end.Sequence < origin.Sequence {
		return &driver.SourceLost{Code: "stream_behind", Message: fmt.Sprintf(
			"the stream ends with message %d, and had %d: it was removed, or restored, and lacks changes that the source has let go of; disable the capture and enable it again, or set on_loss to resnapshot", end.Sequence, origin.Sequence)}
	}
	var snapshot driver.ChangeSnapshot
	var gaps, unread []driver.TableName // of the tables that came
	if !begun {
		snapshot, err = s.begin(ctx, end)
		if snapshot != nil {
			defer func() { _ = snapshot.Close(context.WithoutCancel(ctx)) }()
		}
		if err != nil {
			return err
		}
	} else if gaps, unread, err = s.adapt(ctx); err != nil {
		return err
	}

	// Behind what is stored, or where the capture began if that is later: the
	// stream may hold an earlier capture's changes. Or it holds nothing any more.
	last := max(end.Pos, s.origin.Begin, s.origin.Last)
	s.tail.Store(&group{last: last, seq: end.Sequence})
	confirmed := confirmedAt(end, s.origin)
	out, err := bus.NewAppender(s.Bus.Conn(), bus.CDCStream(s.capture.Client), end.Sequence)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	large := &largeValues{js: s.Bus.JetStream(), client: s.capture.Client, maxAge: s.capture.MaxAge.Std(), replicas: s.Bus.Replicas()}
	most := int(min(s.Bus.Conn().MaxPayload(), bus.MaxPayload)) - headerRoom
	s.writer = newWriter(s.capture, out, large, most, last, confirmed, s.noteStored)
	s.writer.trace = s.Tracing
	gap := end.Pos != "" && end.Pos < s.origin.Begin
	if gap { // the note of it stands behind what the stream has
		s.writer.last = end.Pos
	}
	s.status.begin(last)

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.writer.Run(gctx) })
	g.Go(func() error {
		if gap {
			if err := s.noteGap(gctx, s.origin.Anew); err != nil {
				return err
			}
		}
		if len(gaps) > 0 {
			err := s.noteGap(gctx, gaps)
			if err == nil {
				err = s.Flush(gctx)
			}
			if err == nil {
				err = s.adapted(gctx, unread)
			}
			if err != nil {
				return err
			}
		}
		if err := s.firstSnapshot(gctx, snapshot); err != nil {
			return err
		}
		if snapshot != nil {
			_ = snapshot.Close(gctx) // nothing is read from it any more
		}
		return s.follow(gctx, last, confirmed)
	})
	err = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// confirmedAt is the highest mark that may have been confirmed. That of a message
// which an earlier capture has stored says nothing: this one may have begun at a
// place before it, with other tables.
func confirmedAt(end changefeed.End, o changefeed.Origin) string {
	if end.Pos < o.Begin {
		return o.Confirmed
	}
	return max(end.Mark, o.Confirmed)
}

// adapt brings the publication up to date where the capture's tables are others
// than before. The rows of those that came are read beside the stream, if the
// capture wants rows; else they are unread. Where the stream had some of these
// before, readers must be told of the gaps, and then adapted be called.
func (s *session) adapt(ctx context.Context) (gaps, unread []driver.TableName, err error) {
	wanted := s.capture.Snapshot == changefeed.SnapshotInitial
	if slices.Equal(s.origin.Tables, s.capture.Tables) && s.origin.InsertsOnly == s.capture.InsertsOnly && !(wanted && len(s.origin.Unread) > 0) {
		return nil, nil, nil
	}
	s.status.set(changefeed.Starting, "prepares the source for other tables")
	if err := s.source.PrepareChanges(ctx, s.capture.Setup()); err != nil {
		return nil, nil, err
	}
	rows := changefeed.SnapshotRequest{
		// The same after a crash in between, so that they are asked for once.
		ID: fmt.Sprintf("tables-%d", s.capture.Revision), Client: s.capture.Client, At: time.Now().UTC(),
	}
	for _, t := range s.capture.Tables {
		comes, known := !slices.Contains(s.origin.Tables, t), s.versions.knows(t)
		if !comes && !slices.Contains(s.origin.Unread, t) {
			continue
		}
		unread = append(unread, t)
		rows.Tables = append(rows.Tables, driver.SnapshotTable{Table: t, Fresh: true})
		if known {
			rows.Anew = append(rows.Anew, t)
		}
		if known && comes {
			gaps = append(gaps, t)
		}
	}
	if !wanted && len(gaps) > 0 {
		return gaps, unread, nil
	}
	if wanted && len(unread) > 0 {
		if err := s.store.PutSnapshot(ctx, rows); err != nil && athena.CodeOf(err) != athena.CodeConflict {
			return nil, nil, err
		}
		unread = nil
	}
	return nil, nil, s.adapted(ctx, unread)
}

// adapted puts on record that the publication has the capture's tables, and those
// whose rows are to be read once rows are wanted.
func (s *session) adapted(ctx context.Context, unread []driver.TableName) error {
	return s.keep(ctx, func(o *changefeed.Origin) {
		o.Tables, o.InsertsOnly, o.Unread = s.capture.Tables, s.capture.InsertsOnly, unread
	})
}

// keep puts a change of the origin on record.
func (s *session) keep(ctx context.Context, change func(*changefeed.Origin)) error {
	s.originMu.Lock()
	defer s.originMu.Unlock()
	o := s.origin
	for again := true; ; again = false {
		change(&o)
		now, err := s.store.PutOrigin(ctx, s.capture.Client, o)
		if err == nil {
			s.origin = now
			return nil
		}
		if !again || athena.CodeOf(err) != athena.CodeConflict {
			return err
		}
		// An earlier one that had no answer was stored after all.
		var begun bool
		if o, begun, err = s.store.Origin(ctx, s.capture); err != nil {
			return err
		}
		if !begun {
			return errRemoved
		}
	}
}

// noteGap tells readers that the capture begins anew, of tables that the stream
// had before: what happened in between is not in it.
func (s *session) noteGap(ctx context.Context, tables []driver.TableName) error {
	content, err := json.Marshal(changefeed.Gap{Capture: s.capture.ID, Begin: s.origin.Begin, Snapshot: s.capture.Snapshot, Tables: append([]driver.TableName{}, tables...)})
	if err != nil {
		return err
	}
	return s.Note(ctx, changefeed.PrefixBegin, content)
}

// headerRoom is what a message's headers may take.
const headerRoom = 4 << 10

// begin makes the place in the source's log and stores where it is.
func (s *session) begin(ctx context.Context, end changefeed.End) (driver.ChangeSnapshot, error) {
	s.status.set(changefeed.Starting, "prepares the source")
	setup := s.capture.Setup()
	if err := s.source.PrepareChanges(ctx, setup); err != nil {
		return nil, err
	}
	start, snapshot, err := s.source.StartChanges(ctx, setup, func(text string) {
		s.status.set(changefeed.Starting, text)
	})
	if err != nil {
		return nil, err
	}
	s.status.set(changefeed.Starting, "")
	crashpoint.Here(crashpoint.CDCStarted)
	if end.Pos > start.Begin {
		if snapshot != nil { // the slot is ours, and of no use
			_ = snapshot.Close(ctx)
			if err := s.source.DropChanges(ctx, setup); err != nil {
				return nil, err
			}
		}
		return nil, &driver.SourceLost{Code: "stream_ahead", Message: fmt.Sprintf(
			"the stream ends at %s, beyond %s where the source begins: it holds changes of another database; enable the capture with purge to start a new stream", end.Pos, start.Begin)}
	}
	s.origin, err = s.store.PutOrigin(ctx, s.capture.Client, changefeed.Origin{
		Capture: s.capture.ID, Source: start.Source, Begin: start.Begin, Confirmed: start.Confirmed, Sequence: end.Sequence,
		Tables: setup.Tables, InsertsOnly: setup.InsertsOnly, Revision: s.origin.Revision,
		Anew: slices.DeleteFunc(slices.Clone(setup.Tables), func(t driver.TableName) bool { return !s.versions.knows(t) }),
	})
	return snapshot, err
}

// follow reads the log.
func (s *session) follow(ctx context.Context, last cdc.Position, confirmed string) error {
	s.status.set(changefeed.Starting, "opens the log")
	// Rows of the first snapshot stand before every change of the log.
	after := max(last, s.Position())
	stream, err := s.source.OpenChanges(ctx, driver.ChangeConfig{
		ChangeSetup: s.capture.Setup(), Source: s.origin.Source, After: after, Confirmed: confirmed,
		Confirming: s.confirming, Version: s.versions.number, Stored: s.stored,
		NoStreaming: s.noStream, SpillDir: filepath.Join(s.SpillDir, s.capture.Client), SpillMemory: s.SpillMemory, SpillMost: s.SpillMost,
	})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close(context.WithoutCancel(ctx)) }()
	source := stream.Source()
	if source != s.origin.Source { // before anything of it is stored
		if err := s.keep(ctx, func(o *changefeed.Origin) { o.Source = source }); err != nil {
			return err
		}
	}
	s.open.Store(&stream)
	defer s.open.Store(nil)
	s.status.set(changefeed.Streaming, "")
	s.Log.Info("capture streams", telemetry.KeyClient, s.capture.Client, "after", after)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer s.snapshots.stop()
		err := stream.Run(ctx, s)
		if now := stream.Source(); now != source { // what was seen of it must not be forgotten
			kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
			defer cancel()
			err = errors.Join(err, s.keep(kctx, func(o *changefeed.Origin) { o.Source = now }))
		}
		return err
	})
	g.Go(func() error { s.tend(ctx, stream); return nil })
	return g.Wait()
}

// keepTimeout bounds how long a session that ends takes to keep what it knows.
const keepTimeout = 5 * time.Second

// confirming puts a mark on record before it is confirmed without a transaction
// behind it, with the end of the stream that it may outlast.
func (s *session) confirming(ctx context.Context, mark string) error {
	return s.keep(ctx, func(o *changefeed.Origin) {
		o.Confirmed = max(o.Confirmed, mark)
		if g := s.tail.Load(); g.seq > o.Sequence {
			o.Last, o.Sequence = g.last, g.seq
		}
	})
}

// stored tells the source what the stream has of it.
func (s *session) stored(ctx context.Context, behind cdc.Position, fn func(cdc.Position) error) error {
	return s.store.Positions(ctx, s.capture.Client, behind, fn)
}

// noteStored is called when a group is stored: only now may the source forget it
// (law 1).
func (s *session) noteStored(g *group) {
	s.tail.Store(g)
	if stream := s.open.Load(); stream != nil { // nil while the first snapshot is read
		(*stream).Confirm(g.mark)
	}
	s.status.stored(g)
	// A hint that is lost costs readers a moment.
	_ = s.Bus.Conn().Publish(bus.CDCHint(s.capture.Client), fmt.Appendf(nil, "%d", g.seq))
	for _, v := range g.schemas {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := s.store.PutTableVersion(ctx, s.capture.Client, v); err != nil {
			// The stream has it, and is asked first.
			s.Log.Debug("a column set is kept by the stream alone", telemetry.KeyClient, s.capture.Client, telemetry.KeyError, err)
		}
		cancel()
	}
}

// Reject buries a change that cannot be encoded, or stops (law 3).
func (s *session) Reject(ctx context.Context, r driver.Rejected) error {
	s.status.rejected()
	if s.capture.OnError == changefeed.Stop {
		return &unencodable{r}
	}
	letter := struct {
		Kind   string `json:"kind"`
		Client string `json:"client"`
		driver.Rejected
		RawRef json.RawMessage `json:"raw_ref,omitempty"` // in place of raw, where that is too large
		At     time.Time       `json:"at"`
	}{Kind: "cdc", Client: s.capture.Client, Rejected: r, At: time.Now().UTC()}
	if base64.StdEncoding.EncodedLen(len(r.Raw)) > s.most-headerRoom {
		ref, err := s.large.put(ctx, r.Pos, "raw", r.Raw)
		if err != nil {
			return err
		}
		letter.Raw, letter.RawRef = nil, ref
	}
	body, err := json.Marshal(letter)
	if err != nil {
		return err
	}
	msg := nats.NewMsg(bus.Dead("cdc", s.capture.Client))
	msg.Data = body
	msg.Header.Set(bus.HeaderCause, line(r.Reason))
	// A replay within the stream's memory is dropped by the id.
	msg.Header.Set(jetstream.MsgIDHeader, "cdc:"+s.capture.Client+":"+string(r.Pos))
	if _, err := s.Bus.JetStream().PublishMsg(ctx, msg); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "a dead letter could not be stored")
	}
	s.Log.Warn("a change could not be encoded and is a dead letter", telemetry.KeyClient, s.capture.Client,
		"position", r.Pos, "table", r.Schema+"."+r.Table, "reason", r.Reason)
	return nil
}

// line is a text as a header takes it: one line that is not long.
func line(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 500)], "")
}

// unencodable stops a capture whose policy says so.
type unencodable struct{ driver.Rejected }

func (e *unencodable) Error() string {
	return fmt.Sprintf("the %s at %s of %s.%s cannot be encoded: %s", e.Op, e.Pos, e.Schema, e.Table, e.Reason)
}

// versions numbers the column sets of tables. It is safe for concurrent use.
type versions struct {
	mu     sync.Mutex
	tables map[driver.TableName]changefeed.TableVersion
}

func (v *versions) number(t driver.TableName, columns []cdc.Column) (version int, fresh bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := v.tables[t]
	if last.Version > 0 && slices.Equal(last.Columns, columns) {
		return last.Version, false
	}
	next := changefeed.TableVersion{Table: t, Version: last.Version + 1, Columns: columns}
	v.tables[t] = next
	return next.Version, true
}

// knows reports whether the stream has had a table.
func (v *versions) knows(t driver.TableName) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tables[t].Version > 0
}

// causeOf tells why a session ended, for people. Failed says that it needs a
// hand.
func causeOf(err error) (c changefeed.Cause, failed bool) {
	var lost *driver.SourceLost
	var bad *unencodable
	var own *athena.Error
	c.Message = err.Error()
	switch {
	case errors.As(err, &lost):
		c.Code, c.Message, failed = lost.Code, lost.Message, true
	case errors.As(err, &bad):
		c.Code, failed = "unencodable", true
	case errors.Is(err, driver.ErrSpillFull):
		c.Code = "spill_full"
		c.Message = "there was no room for a transaction that is not yet committed; until the next restart such transactions wait at the source"
	case errors.Is(err, bus.ErrFull):
		c.Code, c.Message = "stream_full", "the stream is full; nothing is read from the source until there is room"
	case errors.Is(err, bus.ErrWrongSequence):
		c.Code, c.Message = "overtaken", "somebody else has written to the stream"
	case errors.Is(err, bus.ErrAmbiguous), athena.CodeOf(err) == athena.CodeBusUnavailable:
		c.Code, c.Message = "bus_unavailable", "JetStream does not store now"
	case errors.As(err, &own):
		c.Code, c.Message = string(own.Code), own.Message
		if own.Code == athena.CodeInternal {
			c.Code, c.Message = "source_error", "the source ended the stream of changes"
		}
		switch own.Code {
		case athena.CodeInvalidRequest, athena.CodeConflict, athena.CodeCapabilityUnsupported, athena.CodeCapabilityDenied, athena.CodeNotFound:
			failed = true
		}
	default:
		c.Code, c.Message = "source_error", "the source ended the stream of changes"
	}
	c.Runbook = cmp.Or(runbook[c.Code], "see the log of the worker, and docs/cdc.md#runbook")
	return c, failed
}

// runbook has what to do, by code; docs/cdc.md says more under the same names.
var runbook = map[string]string{
	"slot_missing":          "athena cdc disable, then enable: the rows are read anew; or enable with on_loss=resnapshot",
	"slot_recreated":        "find out who uses the slot; then athena cdc disable and enable",
	"slot_lost":             "raise max_slot_wal_keep_size; then athena cdc disable and enable, or on_loss=resnapshot",
	"log_expired":           "athena cdc disable, then enable: the rows are read anew; or enable with on_loss=resnapshot; a longer ttl of the log bears a longer downtime",
	"log_missing":           "switch the cdc option of the table on, then athena cdc disable and enable: the rows are read anew; or enable with on_loss=resnapshot",
	"other_source":          "point the client at the database where the capture began, or disable and enable the capture with purge",
	"publication_missing":   "athena cdc disable, then enable: the rows are read anew",
	"table_unpublished":     "mend the publication (ALTER PUBLICATION … ADD TABLE), then athena cdc remove and athena cdc add with the table, which read its rows anew",
	"stream_ahead":          "athena cdc disable --purge, then enable: the stream is made anew",
	"stream_behind":         "athena cdc disable, then enable: the rows are read anew; or enable with on_loss=resnapshot",
	"unencodable":           "mend the row at the source, or enable with on_error=dead_letter",
	"spill_full":            "give the worker's data directory more room, or raise cdc.spill_max; nothing is lost",
	"stream_full":           "raise max_bytes with athena cdc enable, or shorten max_age; it goes on by itself",
	"overtaken":             "nothing, if another worker has the capture now; else look for a second deployment on this bus",
	"bus_unavailable":       "see that the NATS servers run and have room; it goes on by itself",
	"backend_unavailable":   "see that the database runs and lets the client's user in; it goes on by itself",
	"source_error":          "see the log of the worker; it goes on by itself",
	"conflict":              "do what the message says, then wait for the next try",
	"invalid_request":       "do what the message says with athena cdc enable",
	"capability_denied":     "grant cdc in the client's definition",
	"client_not_found":      "define the client, or disable the capture",
	"query_failed":          "see the message of the database; athena cdc check says what is missing",
	"publication_not_found": "athena cdc disable, then enable",
}
