package changefeed

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/documents"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// End is the end of a client's stream: where its writer goes on (law 1).
type End struct {
	Sequence uint64 // of the last message, also if it has aged out
	Pos      cdc.Position
	Mark     string
}

// PrepareStream makes the client's stream, or brings its limits up to date, and
// returns its end.
func (s *Store) PrepareStream(ctx context.Context, c Capture) (End, error) {
	want := bus.CDCConfig(c.Client, c.MaxAge.Std(), c.MaxBytes, s.bus.Replicas())
	stream, err := s.bus.JetStream().CreateOrUpdateStream(ctx, want)
	if err != nil {
		return End{}, athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be made or updated: %v", want.Name, err)
	}
	return s.end(ctx, stream)
}

func (s *Store) end(ctx context.Context, stream jetstream.Stream) (End, error) {
	info, err := stream.Info(ctx)
	if err != nil {
		return End{}, athena.Wrap(athena.CodeBusUnavailable, err, "the end of a client's stream cannot be read")
	}
	e := End{Sequence: info.State.LastSeq}
	if info.State.Msgs == 0 {
		return e, nil
	}
	msg, err := stream.GetMsg(ctx, e.Sequence)
	if err != nil {
		return e, athena.Wrap(athena.CodeBusUnavailable, err, "the last message of stream %s cannot be read", info.Config.Name)
	}
	e.Pos, e.Mark = cdc.Position(msg.Header.Get(HeaderPos)), msg.Header.Get(HeaderMark)
	if e.Pos == "" {
		return e, athena.Errorf(athena.CodeConflict, "the last message of stream %s was not written by a capture: it has no header %s", info.Config.Name, HeaderPos)
	}
	return e, nil
}

// Positions hands over the positions of the changes that are kept behind one, in
// order; of all that are kept if it is empty, or if what came next is no longer
// kept. It sees every change that was stored before it was called. An error of fn
// ends it and is returned.
func (s *Store) Positions(ctx context.Context, client string, behind cdc.Position, fn func(cdc.Position) error) error {
	info, err := s.streamInfo(ctx, client)
	if err != nil || info == nil {
		return err
	}
	from := place{seq: info.State.FirstSeq}
	if behind != "" {
		at, err := s.findCursor(ctx, client, info, behind)
		switch {
		case err == nil:
			from = at
		case athena.CodeOf(err) != athena.CodeCursorExpired:
			return err
		}
	}
	end, err := s.bus.LastMsg(ctx, info.Config.Name, ">")
	if errors.Is(err, bus.ErrNoMessage) {
		return nil
	}
	if err != nil {
		return err
	}
	for seq := from.seq; seq <= end.Sequence; {
		raws, err := s.bus.Read(ctx, info.Config.Name, seq, positionsAtOnce, 4<<20)
		if err != nil {
			return err
		}
		if len(raws) == 0 { // a replica that is behind, or the rest has aged out
			if raws, err = s.oneFrom(ctx, info.Config.Name, seq); err != nil || len(raws) == 0 {
				return err
			}
		}
		for _, r := range raws {
			seq = r.Sequence + 1
			for line := range cdc.Lines(newMessage(r).data) {
				if pos := PositionOf(line); pos > behind {
					if err := fn(pos); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// positionsAtOnce is how many messages Positions asks for at once.
const positionsAtOnce = 1000

func (s *Store) oneFrom(ctx context.Context, stream string, seq uint64) ([]bus.Raw, error) {
	r, err := s.bus.MsgFrom(ctx, stream, seq)
	if errors.Is(err, bus.ErrNoMessage) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []bus.Raw{*r}, nil
}

// DropStream removes a client's stream and its large values. What is not there
// is no error.
func (s *Store) DropStream(ctx context.Context, client string) error {
	js := s.bus.JetStream()
	err := js.DeleteStream(ctx, bus.CDCStream(client))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = nil
	}
	oerr := js.DeleteObjectStore(ctx, bus.CDCObjects(client))
	if errors.Is(oerr, jetstream.ErrBucketNotFound) || errors.Is(oerr, jetstream.ErrStreamNotFound) {
		oerr = nil
	}
	var kerrs []error
	for _, v := range s.tableVersions(client) {
		kerrs = append(kerrs, s.docs.Remove(ctx, tableVersionKey(client, v.Table)))
	}
	return errors.Join(append(kerrs, err, oerr)...)
}

// TableVersions returns the last column set of each table that the client's
// stream has had. What is in the stream counts; the bucket has those that have
// aged out of it, and is told here of what a crash kept from it.
func (s *Store) TableVersions(ctx context.Context, client string) (map[driver.TableName]TableVersion, error) {
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	out := map[driver.TableName]TableVersion{}
	for _, v := range s.tableVersions(client) {
		out[v.Table] = v
	}
	last, err := s.bus.LastOf(ctx, bus.CDCStream(client), bus.CDCSchema(client, bus.Any, bus.Any))
	if err != nil {
		return nil, err
	}
	for _, m := range last {
		var c cdc.Change
		if err := json.Unmarshal(m.Data, &c); err != nil {
			return nil, err
		}
		t := driver.TableName{Schema: c.Schema, Table: c.Table}
		v := TableVersion{Table: t, Version: c.SchemaVersion, Columns: c.Columns}
		if out[t].Version != v.Version {
			if err := s.PutTableVersion(ctx, client, v); err != nil {
				return nil, err
			}
		}
		out[t] = v
	}
	return out, nil
}

// ColumnsOf returns the columns that a table had in a version of the client's
// stream; the last ones if version is 0. A not_found error says that the stream no
// longer tells.
func (s *Store) ColumnsOf(ctx context.Context, client string, t driver.TableName, version int) (TableVersion, error) {
	last, err := s.TableVersions(ctx, client)
	if err != nil {
		return TableVersion{}, err
	}
	if v, ok := last[t]; ok && (v.Version == version || version == 0) {
		return v, nil
	}
	const most = 1000
	for from := uint64(1); ; {
		raws, err := s.bus.Scan(ctx, bus.CDCStream(client), bus.CDCSchema(client, t.Schema, t.Table), from, most)
		if err != nil {
			return TableVersion{}, err
		}
		for _, raw := range raws {
			var c cdc.Change
			if err := json.Unmarshal(raw.Data, &c); err != nil {
				return TableVersion{}, err
			}
			if c.SchemaVersion == version {
				return TableVersion{Table: t, Version: version, Columns: c.Columns}, nil
			}
			from = raw.Sequence + 1
		}
		if len(raws) < most {
			return TableVersion{}, athena.Errorf(athena.CodeNotFound, "the stream of client %q no longer tells which columns table %s had in version %d", client, t, version)
		}
	}
}

func (s *Store) tableVersions(client string) []TableVersion {
	return documents.List[TableVersion](s.docs, kindTable+"."+client+".", nil)
}

// PutTableVersion keeps a column set beyond the time that the stream does. It is
// called behind the stream's own acknowledgement.
func (s *Store) PutTableVersion(ctx context.Context, client string, v TableVersion) error {
	return s.docs.Set(ctx, tableVersionKey(client, v.Table), v)
}

func tableVersionKey(client string, t driver.TableName) string {
	return kindTable + "." + client + "." + bus.Escape(t.Schema) + "." + bus.Escape(t.Table)
}

// Progress returns how far a client's snapshots are, by id, as the stream has it.
func (s *Store) Progress(ctx context.Context, client string) (map[string]SnapshotProgress, error) {
	last, err := s.bus.LastOf(ctx, bus.CDCStream(client), bus.CDCSnapshot(client, bus.Any))
	if err != nil {
		return nil, err
	}
	out := map[string]SnapshotProgress{}
	for _, m := range last {
		var p SnapshotProgress
		if err := json.Unmarshal(m.Data, &p); err != nil {
			return nil, err
		}
		out[p.ID] = p
	}
	return out, nil
}
