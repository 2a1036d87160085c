package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// quoted are names of tables as patterns that match just them.
func quoted(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		t, err := driver.ParseTableName(n)
		if err != nil {
			out[i] = n // refused by the filter
			continue
		}
		out[i] = changefeed.Pattern(t)
	}
	return out
}

// begin decides where a stream begins that has not (law 6).
func (f *follower) begin(ctx context.Context) error {
	s := f.job.spec.Source
	if f.cursor.Position == "" {
		if err := f.to.forget(ctx); err != nil { // of a stream that begins anew
			return at(err, "sink")
		}
		next, text, err := f.start(ctx)
		if err != nil {
			return err
		}
		if err := f.put(ctx, next); err != nil {
			return err
		}
		if _, err := f.Store.Change(ctx, f.id, func(r *runs.Run) error { r.Log("%s", text); return nil }); err != nil {
			return err
		}
	}
	if f.cursor.Snapshot == "" {
		_, err := f.become(ctx, runs.Streaming, nil, "streaming from %s", f.cursor.Position)
		return err
	}
	// Asked for again after a crash: the request is there, or its rows are.
	found, err := f.Changes.SnapshotProgress(ctx, s.Client)
	if err != nil {
		return err
	}
	for _, p := range found {
		if p.ID == f.cursor.Snapshot {
			return f.snapshotting(ctx, p.State)
		}
	}
	req := changefeed.SnapshotRequest{ID: f.cursor.Snapshot, Client: s.Client, At: time.Now().UTC()}
	for _, name := range s.CDC.Tables {
		t, err := driver.ParseTableName(name)
		if err != nil {
			return err
		}
		req.Tables = append(req.Tables, driver.SnapshotTable{Table: t})
	}
	if err := f.Changes.PutSnapshot(ctx, req); err != nil && athena.CodeOf(err) != athena.CodeConflict {
		return err
	}
	return f.snapshotting(ctx, "running")
}

func (f *follower) snapshotting(ctx context.Context, state string) error {
	switch state {
	case "failed":
		return athena.Errorf(athena.CodeConflict, "the snapshot of the tables has failed; see athena cdc snapshot list, and start the pipeline anew with reset")
	case "running":
		_, err := f.become(ctx, runs.Snapshotting, nil, "the rows that are there are read into the stream (snapshot %s)", f.cursor.Snapshot)
		return err
	}
	_, err := f.become(ctx, runs.Streaming, nil, "streaming from %s", f.cursor.Position)
	return err
}

// start is where a stream begins: with everything, if the client's stream has
// everything; else with what comes from now on, and with a snapshot in it if the
// rows that are there are wanted.
func (f *follower) start(ctx context.Context) (runs.Cursor, string, error) {
	next := f.cursor
	s := f.job.spec.Source
	next.Source = s.Client
	if s.CDC.Snapshot != spec.SnapshotNever {
		whole, err := f.Changes.Whole(ctx, s.Client)
		if err != nil {
			return next, "", err
		}
		if whole {
			next.Position = changefeed.Genesis
			return next, "the stream has everything since its first snapshot; it is read from its beginning", nil
		}
		next.Snapshot = "pipeline-" + f.job.run.ID
	}
	reader, err := f.Feeds.Open(ctx, s.Client, changefeed.FromNow, nil)
	if err != nil {
		return next, "", err
	}
	defer reader.Close()
	next.Position = reader.Cursor()
	if next.Snapshot != "" {
		return next, fmt.Sprintf("the stream no longer has everything; a snapshot is asked for, behind %s", next.Position), nil
	}
	return next, fmt.Sprintf("from now on, behind %s", next.Position), nil
}

// handOver notes when the rows of a snapshot have taken effect (law 6): the stream
// has its end, and all that was read up to that is committed.
func (f *follower) handOver(ctx context.Context) error {
	if f.end == "" {
		if over, err := f.snapshotOver(ctx); err != nil || !over {
			return err
		}
	}
	next := f.cursor
	if f.late != nil {
		next = *f.late
	}
	if f.writer == nil {
		next.Position = f.at
	}
	if next.Position < f.end {
		return nil
	}
	next.Snapshot, f.late = "", nil
	if err := f.put(ctx, next); err != nil {
		return err
	}
	_, err := f.become(ctx, runs.Streaming, nil, "the snapshot is over; streaming from %s", f.cursor.Position)
	return err
}

// snapshotOver reports whether the stream has all rows of the snapshot, and notes
// where they end.
func (f *follower) snapshotOver(ctx context.Context) (bool, error) {
	client := f.job.spec.Source.Client
	found, err := f.Changes.SnapshotProgress(ctx, client)
	if err != nil {
		return false, err
	}
	for _, p := range found {
		switch {
		case p.ID != f.cursor.Snapshot || p.State == "running":
		case p.State == "failed":
			return false, f.snapshotting(ctx, p.State)
		default:
			reader, err := f.Feeds.Open(ctx, client, changefeed.FromNow, nil)
			if err != nil {
				return false, at(err, "source")
			}
			defer reader.Close()
			f.end = reader.Cursor()
			return true, nil
		}
	}
	return false, nil
}
