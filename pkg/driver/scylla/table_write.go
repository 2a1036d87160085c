package scylla

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// CQL has no transaction over several rows. Writing is safe all the same by these laws:
//
//  1. Each write has a time of its own, and of two writes to a cell the later one
//     stays, in whatever order they arrive. What is written again has its effect once.
//     Columns of which that is not true take no values: counters, and lists that are
//     not frozen.
//  2. The rows of a batch are written at the time at which their transaction began, so
//     that what a worker writes late that was overtaken is hidden by what the next one
//     wrote. Rows of one key have times in their order.
//  3. A change that has a time of its own (record.Change.WriteTime) is written at
//     just that, with what is left of its time to live. Others are written when they
//     were committed, or a microsecond behind the one before, whichever is later; the
//     last time stands in the checkpoint, so that the next transaction goes on behind
//     it and a repetition gives the same times, or later ones.
//  4. The writes of one partition are made in their order, several at a time in an
//     unlogged batch; those of different partitions are not ordered. A truncate, and a
//     row that moves from one key to another, wait for all writes before them.
//  5. The checkpoint is compared and set once all writes have been acknowledged. Who
//     is overtaken learns it then.

const (
	// writers is how many partitions are written to at once.
	writers = 64
	// An unlogged batch has so many statements and bytes at most: Cassandra refuses
	// one of 50 KiB.
	mostStatements = 64
	mostBatchBytes = 16 << 10
	// writeTimeout bounds an attempt, and mostAttempts how many there are; they are
	// some 20 s apart in all.
	writeTimeout = 15 * time.Second
	mostAttempts = 8
)

// A tableTx writes rows; see the laws above.
type tableTx struct {
	b      *Backend
	t      driver.TableTarget
	table  *tableMeta
	began  int64 // in microseconds since 1970
	clock  int64 // the time of the last write
	writer gocql.UUID
	rows   *rowEncoder // for the schema of the last batch
	over   error
	texts  map[string]string
}

var errEnded = errors.New("scylla: the transaction has ended")

// BeginTable begins a transaction.
func (b *Backend) BeginTable(ctx context.Context, t driver.TableTarget) (driver.TableTx, error) {
	if !slices.Contains(b.WriteModes(), t.Mode) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "mode %.40q is none of CQL's; it must be append or upsert", t.Mode).At("mode")
	}
	m, err := b.tableMeta(ctx, t.Table.Schema, t.Table.Table)
	if err != nil {
		return nil, err
	}
	tx := &tableTx{b: b, t: t, table: m, began: time.Now().UnixMicro(), texts: map[string]string{}}
	if tx.writer, err = gocql.RandomUUID(); err != nil {
		return nil, err
	}
	if tx.clock = tx.began - 1; t.Changes {
		tx.clock = 0
		if t.Checkpoint.Pipeline != "" {
			at, _, err := b.checkpoint(ctx, m.keyspace, t.Checkpoint)
			if err != nil {
				return nil, err
			}
			tx.clock = at.clock
		}
	}
	return tx, nil
}

// Write writes the rows of a batch, and returns when they are acknowledged.
func (tx *tableTx) Write(ctx context.Context, b *record.Batch) ([]record.Rejected, error) {
	if tx.over != nil {
		return nil, tx.over
	}
	if b.Rows() == 0 {
		return nil, nil
	}
	changes := b.Changes != nil && tx.t.Changes
	logs := changes && tx.t.Mode == driver.Append
	if tx.rows == nil || tx.rows.schema != b.Schema || tx.rows.logs != logs {
		rows, err := newRowEncoder(tx.table, b.Schema, tx.t.WriteTime, tx.t.TTL, logs, driver.ChangeColumns)
		if err != nil {
			return nil, tx.fail(ctx, err)
		}
		tx.rows, tx.texts = rows, map[string]string{}
	}
	w := &writing{tx: tx, rows: tx.rows, b: b, changes: changes, repeats: map[string]int64{}}
	if err := w.run(ctx); err != nil {
		return nil, tx.fail(ctx, err)
	}
	slices.SortFunc(w.rejected, func(a, b record.Rejected) int { return a.Row - b.Row })
	return w.rejected, nil
}

// Copy is for engines that have a form of their own; CQL has none.
func (tx *tableTx) Copy(ctx context.Context, _ io.Reader) (int64, error) {
	return 0, tx.fail(ctx, athena.Errorf(athena.CodeInvalidRequest, "CQL has no form in which rows could be copied as they are").At("mode"))
}

// Commit stores the checkpoint. What was written is there already.
func (tx *tableTx) Commit(ctx context.Context, c driver.Checkpoint) error {
	if tx.over != nil {
		return tx.over
	}
	err := tx.b.store(ctx, tx.table.keyspace, c, tx.clock, tx.writer)
	if noSuchTable(err) {
		err = athena.Errorf(athena.CodeConflict, "the table %s of keyspace %s is gone; start again", checkpoints, tx.table.keyspace)
	}
	if err != nil {
		return tx.fail(ctx, err)
	}
	tx.over = errEnded
	return nil
}

// Rollback ends the transaction. Rows that were written stay.
func (tx *tableTx) Rollback(context.Context) error {
	if tx.over == nil {
		tx.over = errEnded
	}
	return nil
}

func (tx *tableTx) fail(ctx context.Context, err error) error {
	err = scanError(ctx, err)
	tx.over = fmt.Errorf("%w: %w", errEnded, err)
	return err
}

// transient reports an error after which a write that can be repeated may well succeed.
func transient(err error) bool {
	var e serverError
	if errors.As(err, &e) {
		switch e.GetCode() {
		case gocql.ErrCodeUnavailable, gocql.ErrCodeOverloaded, gocql.ErrCodeBootstrapping, gocql.ErrCodeWriteTimeout,
			gocql.ErrCodeReadTimeout, gocql.ErrCodeWriteFailure, gocql.ErrCodeReadFailure, gocql.ErrCodeCASWriteUnknown, gocql.ErrCodeCDCWriteFailure:
			return true
		}
		return false
	}
	return notSent(err) || isLost(err) || errors.Is(err, gocql.ErrTimeoutNoResponse)
}

// retry makes an attempt again as long as it fails by what may pass.
func (b *Backend) retry(ctx context.Context, attempt func() error) error {
	wait := 50 * time.Millisecond
	for n := 1; ; n++ {
		err := attempt()
		if err == nil || n == mostAttempts || ctx.Err() != nil || !transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// A writing is one call of Write.
type writing struct {
	tx       *tableTx
	rows     *rowEncoder
	b        *record.Batch
	changes  bool
	log      [3]record.Vector
	vectors  []*record.Vector
	buf      []byte             // of values
	base     int64              // the time of the rows of a batch
	repeats  map[string]int64   // how often a key has come in it
	order    []*partitionWrites // that have writes, as they came
	by       map[string]*partitionWrites
	mu       sync.Mutex
	rejected []record.Rejected
	refused  bool // the server refused some of what was not flushed yet
}

// partitionWrites are the writes to one partition that were not made yet, in their order.
type partitionWrites struct{ writes []write }

// A write is one statement.
type write struct {
	row  int
	text string
	args []any
	size int
	// exists, if it is set, asks first for the row; the write is rejected without it.
	exists string
	key    []any
	lacks  string // the column whose value is not known
}

func (w *writing) reject(row int, column, format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	const most = 1000
	if len(reason) > most {
		reason = strings.ToValidUTF8(reason[:most], "") + "…"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rejected = append(w.rejected, record.Rejected{Row: row, Column: column, Reason: strings.ToValidUTF8(reason, "\uFFFD")})
}

func (w *writing) run(ctx context.Context) error {
	w.by = map[string]*partitionWrites{}
	w.base = max(w.tx.clock+1, w.tx.began)
	if w.rows.logs {
		w.logColumns()
	}
	for i := range w.b.Columns {
		w.vectors = append(w.vectors, &w.b.Columns[i])
	}
	for i := 0; i < w.b.Rows(); i++ {
		var err error
		switch {
		case w.changes && w.rows.logs && w.b.Changes[i].Implied:
		case !w.changes || w.rows.logs:
			at, _ := w.rowTime(i)
			w.put(i, at, w.ttl(i, 0, 0), false)
		default:
			i, err = w.change(ctx, i)
		}
		if err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// logColumns makes the columns that a log has before those of its rows.
func (w *writing) logColumns() {
	for i, c := range driver.ChangeColumns {
		w.log[i].Kind = c.Type.Kind
		w.vectors = append(w.vectors, &w.log[i])
	}
	for _, c := range w.b.Changes {
		w.log[0].AppendString(string(c.Op))
		w.log[1].AppendString(string(c.Pos))
		if c.At == 0 {
			w.log[2].AppendNull()
		} else {
			w.log[2].AppendInt(c.At)
		}
	}
}

// flush makes the writes that are waiting. What the server refuses for what a row holds
// it refuses in the same words where it is the table that has become another one.
func (w *writing) flush(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for _, p := range w.order {
		group.Go(func() error { return w.partition(gctx, p) })
	}
	err := group.Wait()
	if err == nil && w.refused {
		err = w.unaltered(ctx)
	}
	w.refused = false
	w.order = w.order[:0]
	clear(w.by)
	return err
}

// partition makes the writes of one partition (law 4).
func (w *writing) partition(ctx context.Context, p *partitionWrites) error {
	for from := 0; from < len(p.writes); {
		if p.writes[from].exists != "" {
			there, err := w.there(ctx, p.writes[from])
			if err != nil {
				return err
			}
			if !there {
				w.reject(p.writes[from].row, p.writes[from].lacks, "the row is not in the table, and the change does not have the value of column %q, which it did not touch; have its source log whole rows (PostgreSQL: REPLICA IDENTITY FULL)", p.writes[from].lacks)
				from++
				continue
			}
		}
		to, size := from+1, p.writes[from].size
		for to < len(p.writes) && to-from < mostStatements && size+p.writes[to].size <= mostBatchBytes && p.writes[to].exists == "" {
			size += p.writes[to].size
			to++
		}
		if err := w.send(ctx, p.writes[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// send makes some writes of one partition. If the server refuses them for what a row
// holds they are made one by one, and that row is rejected.
func (w *writing) send(ctx context.Context, writes []write) error {
	b := w.tx.b
	err := b.retry(ctx, func() error {
		if len(writes) == 1 {
			return b.session.Query(writes[0].text, writes[0].args...).WithContext(ctx).SetRequestTimeout(writeTimeout).DefaultTimestamp(false).Idempotent(true).Exec()
		}
		batch := b.session.Batch(gocql.UnloggedBatch).WithContext(ctx).DefaultTimestamp(false)
		batch.SetRequestTimeout(writeTimeout)
		for i := range writes {
			batch.Entries = append(batch.Entries, gocql.BatchEntry{Stmt: writes[i].text, Args: writes[i].args, Idempotent: true})
		}
		return batch.Exec()
	})
	reason := rowProblem(err)
	switch {
	case reason == "":
		return err
	case len(writes) == 1:
		w.reject(writes[0].row, "", "%s", reason)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.refused = true
		return nil
	}
	for i := range writes {
		if err := w.send(ctx, writes[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// unaltered is an error if the columns that are written are not as they were when the
// transaction began.
func (w *writing) unaltered(ctx context.Context) error {
	m := w.tx.table
	if err := w.tx.b.session.AwaitSchemaAgreement(ctx); err != nil {
		return err
	}
	now, err := w.tx.b.tableMeta(ctx, m.keyspace, m.name)
	if err != nil {
		return err
	}
	for _, c := range w.rows.columns {
		is, ok := now.column(c.name)
		switch {
		case now.id != m.id:
			err = errors.New("it was dropped, and is another one")
		case !ok:
			err = fmt.Errorf("column %q is gone", c.name)
		case is.kind != c.kind || is.text != c.text:
			err = fmt.Errorf("column %q is of type %s (%s) now", c.name, is.text, is.kind)
		default:
			continue
		}
		return athena.Errorf(athena.CodeConflict, "the table %s.%s was altered while rows were written to it: %s; run it again, with columns that fit", m.keyspace, m.name, err).At("table")
	}
	return nil
}

// rowProblem is what the server says of a row that it does not take for what it holds:
// a key that is empty or too long, a value that is too large.
func rowProblem(err error) string {
	var e serverError
	if !errors.As(err, &e) || noSuchTable(err) {
		return ""
	}
	text := e.GetMessage()
	switch e.GetCode() {
	case gocql.ErrCodeInvalid:
		return text
	case gocql.ErrCodeServer, gocql.ErrCodeWriteFailure:
		if strings.Contains(strings.ToLower(text), "too large") {
			return text
		}
	}
	return ""
}

// there asks whether a row is there.
func (w *writing) there(ctx context.Context, x write) (there bool, err error) {
	err = w.tx.b.retry(ctx, func() error {
		iter := w.tx.b.session.Query(x.exists, x.key...).WithContext(ctx).SetRequestTimeout(writeTimeout).Idempotent(true).Iter()
		there = iter.NumRows() > 0
		return iter.Close()
	})
	return there, err
}

// rowTime is the time that a row itself says that it is written at.
func (w *writing) rowTime(i int) (at int64, ok bool) {
	if w.rows.time < 0 || w.b.Columns[w.rows.time].Null(i) {
		return 0, false
	}
	return w.b.Columns[w.rows.time].Ints[i], true
}

// ttl is how long a row lives, in seconds; 0 is as the table says.
func (w *writing) ttl(i int, ttl, at int64) int64 {
	if w.rows.ttl >= 0 {
		if v := &w.b.Columns[w.rows.ttl]; !v.Null(i) {
			return v.Ints[i]
		}
	}
	if ttl > 0 && at > 0 { // it ends when it ends at its source
		ttl = max(1, ttl-(time.Now().UnixMicro()-at)/1_000_000)
	}
	return ttl
}

// changeTime is the time of a change (law 3).
func (w *writing) changeTime(i int, c *record.Change) int64 {
	if at, ok := w.rowTime(i); ok {
		return at
	}
	if c.WriteTime != 0 {
		return c.WriteTime
	}
	at := c.At
	if at == 0 { // a row as a snapshot found it
		at = w.tx.began
	}
	w.tx.clock = max(at, w.tx.clock+1)
	return w.tx.clock
}

// change takes a change, and returns the row that it ends with.
func (w *writing) change(ctx context.Context, i int) (int, error) {
	c := &w.b.Changes[i]
	at := w.changeTime(i, c)
	switch {
	case c.Op == cdc.Truncate:
		return i, errors.Join(w.flush(ctx), w.empty(ctx, at))
	case c.Many():
		w.eraseMany(i, c, at)
	case w.b.Moves(i) && w.partial(i+1):
		return i + 1, w.move(ctx, i, i+1, at)
	case w.b.Moves(i):
		rejected := len(w.rejected)
		_, err := w.change(ctx, i+1)
		if len(w.rejected) == rejected { // else the row stays under its old key
			w.erase(i, at)
		}
		return i + 1, err
	case c.Op == cdc.Delete:
		w.erase(i, at)
	default:
		w.put(i, at, w.ttl(i, c.TTL, c.WriteTime), c.Op == cdc.Update && c.Blind())
	}
	return i, nil
}

// partial reports whether a row lacks values that the table has.
func (w *writing) partial(i int) bool { return w.lacks(i) >= 0 }

// lacks is the place of the first column whose value a row lacks; -1 if it has all.
func (w *writing) lacks(i int) int {
	for n, from := range w.rows.from {
		if w.vectors[from].Absent(i) && !w.rows.columns[n].key() {
			return n
		}
	}
	return -1
}
