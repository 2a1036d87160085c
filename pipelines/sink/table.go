package sink

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Table writes to the tables of one client. One is made for a run; Begin makes
// a writer for each task or commit.
type Table struct {
	// Writer is the client's backend.
	Writer driver.TableWriter
	// Target is the table that rows without a route go to; its Schema is ignored.
	Target driver.TableTarget
	// Pipeline and Run are those of checkpoints; Run is empty for a stream, whose
	// checkpoints outlast it.
	Pipeline, Run string

	mu       sync.Mutex
	prepared map[string]*record.Schema // by route, what its target was prepared for
	done     map[string]driver.Checkpoint
}

// prepare makes what writing to a route needs, unless that was done.
func (t *Table) prepare(ctx context.Context, route string, target driver.TableTarget) error {
	t.mu.Lock()
	known := t.prepared[route]
	t.mu.Unlock()
	if target.Schema.Equal(known) {
		return nil
	}
	if _, err := t.Writer.PrepareTable(ctx, target); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.prepared == nil {
		t.prepared = map[string]*record.Schema{}
	}
	t.prepared[route] = target.Schema
	return nil
}

// checkpoint returns what is committed under a key. Of a stream, which one worker
// follows, it is asked once.
func (t *Table) checkpoint(ctx context.Context, key driver.CheckpointKey) (driver.Checkpoint, error) {
	t.mu.Lock()
	c, ok := t.done[key.Part]
	t.mu.Unlock()
	if ok && t.Run == "" {
		return c, nil
	}
	c, _, err := t.Writer.Checkpoint(ctx, key)
	if err == nil {
		t.committed(c, key)
	}
	return c, err
}

func (t *Table) committed(c driver.Checkpoint, key driver.CheckpointKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done == nil {
		t.done = map[string]driver.Checkpoint{}
	}
	t.done[key.Part] = c
}

// Of is the target of a route, for rows of a schema. Without a key of its own it
// has that of the rows.
func (t *Table) Of(route string, s *record.Schema) (driver.TableTarget, error) {
	out := t.Target
	out.Schema = s
	if len(out.Key) == 0 && (out.Mode == driver.Upsert || out.Mode == driver.Merge) {
		out.Key = s.Key
	}
	if route != "" {
		name, err := driver.ParseTableName(route)
		if err != nil {
			return out, err
		}
		out.Table = name
	}
	return out, nil
}

// fault gives an error of the engine its code, where it comes from: it may pass
// through the source's hands on its way up.
func (t *Table) fault(err error) error {
	b, ok := t.Writer.(driver.Backend)
	if !ok || err == nil {
		return err
	}
	return dispatch.Normalize(b, err)
}

// Begin returns a writer whose checkpoint has the key's part. Checkpoints of its
// routes are kept under the part and the route.
func (t *Table) Begin(part string) *TableWriter {
	return &TableWriter{table: t, part: part, routes: map[string]*routed{}}
}

// TableWriter is a stage.Writer over transactions, one for each route.
type TableWriter struct {
	table  *Table
	part   string
	routes map[string]*routed
	order  []*routed
	size   stage.Size
}

var _ stage.Writer = (*TableWriter)(nil)

// routed is the transaction of one route. What an earlier attempt has committed
// to it is left out.
type routed struct {
	key    driver.CheckpointKey
	tx     driver.TableTx
	target driver.TableTarget
	done   driver.Checkpoint // what was committed; the zero value is nothing
	wrote  bool
}

func (w *TableWriter) route(ctx context.Context, name string, s *record.Schema) (*routed, error) {
	if r, ok := w.routes[name]; ok {
		return r, nil
	}
	target, err := w.table.Of(name, s)
	if err != nil {
		return nil, err
	}
	r := &routed{key: driver.CheckpointKey{Pipeline: w.table.Pipeline, Run: w.table.Run, Part: w.part}, target: target}
	if name != "" {
		r.key.Part += " " + target.Table.String()
	}
	if name != "" || w.table.Run == "" {
		// The leader has prepared the target of a batch; that of a route, and of a
		// stream whose columns change, is known here.
		if err := w.table.prepare(ctx, name, target); err != nil {
			return nil, err
		}
	}
	if r.done, err = w.table.checkpoint(ctx, r.key); err != nil {
		return nil, err
	}
	if r.done.Position == "" || w.table.Run == "" {
		target.Checkpoint = r.key
		if r.tx, err = w.table.Writer.BeginTable(ctx, target); err != nil {
			return nil, err
		}
	}
	w.routes[name], w.order = r, append(w.order, r)
	return r, nil
}

// Write writes rows to the table of their route.
func (w *TableWriter) Write(ctx context.Context, route string, b *record.Batch) ([]record.Rejected, error) {
	r, err := w.route(ctx, route, b.Schema)
	if err != nil {
		return nil, w.table.fault(err)
	}
	w.size.Rows += int64(b.Rows())
	w.size.Bytes += int64(b.Size())
	if r.tx == nil { // an earlier attempt has committed it all
		return nil, nil
	}
	if b, err = r.news(b); b.Rows() == 0 || err != nil {
		return nil, err
	}
	r.wrote = true
	rejected, err := r.tx.Write(ctx, b)
	return rejected, w.table.fault(err)
}

// news leaves out the changes that are committed already.
func (r *routed) news(b *record.Batch) (*record.Batch, error) {
	if r.done.Position == "" || len(b.Changes) == 0 || b.Changes[0].Pos > r.done.Position {
		return b, nil
	}
	keep := make([]bool, b.Rows())
	for i := range keep {
		keep[i] = b.Changes[i].Pos > r.done.Position
	}
	return b.Keep(keep), nil
}

// Copy writes rows in the engine's own form, to the target without a route.
func (w *TableWriter) Copy(ctx context.Context, s *record.Schema, from io.Reader) (rows int64, err error) {
	r, err := w.route(ctx, "", s)
	if err != nil {
		return 0, w.table.fault(err)
	}
	if r.tx == nil {
		return 0, nil
	}
	counted := &counter{Reader: from}
	r.wrote = true
	rows, err = r.tx.Copy(ctx, counted)
	w.size.Rows += rows
	w.size.Bytes += counted.n
	return rows, w.table.fault(err)
}

type counter struct {
	io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// Done reports whether an earlier attempt has committed everything that goes
// without a route.
func (w *TableWriter) Done(ctx context.Context) (driver.Checkpoint, bool, error) {
	c, ok, err := w.table.Writer.Checkpoint(ctx, driver.CheckpointKey{Pipeline: w.table.Pipeline, Run: w.table.Run, Part: w.part})
	return c, ok, w.table.fault(err)
}

// Size is what was written.
func (w *TableWriter) Size() stage.Size { return w.size }

// Commit commits each route with a checkpoint. Between two of them a crash leaves
// the first committed; the next attempt leaves its rows out.
func (w *TableWriter) Commit(ctx context.Context, c driver.Checkpoint, _ func(context.Context, []stage.Object) error) error {
	if w.table.Run != "" && len(w.order) == 0 { // no rows: the checkpoint tells so
		if _, err := w.route(ctx, "", &record.Schema{}); err != nil {
			return w.table.fault(err)
		}
	}
	for _, r := range w.order {
		if r.tx == nil || w.table.Run == "" && !r.wrote {
			continue
		}
		next := driver.Checkpoint{CheckpointKey: r.key, Before: r.done.Position, Position: c.Position, Note: c.Note}
		if err := r.tx.Commit(ctx, next); err != nil {
			if errors.Is(err, driver.ErrOvertaken) { // the next attempt begins behind it
				return athena.Wrap(athena.CodeBackendUnavailable, err, "another worker has committed part %q of this pipeline meanwhile", r.key.Part)
			}
			return w.table.fault(err)
		}
		r.tx, r.done = nil, next
		w.table.committed(next, r.key)
	}
	return nil
}

// Abort rolls back what was not committed.
func (w *TableWriter) Abort(ctx context.Context) {
	for _, r := range w.order {
		if r.tx != nil {
			_ = r.tx.Rollback(ctx) // the server does it when the connection ends
			r.tx = nil
		}
	}
}
