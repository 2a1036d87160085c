package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A tableTx writes rows in one transaction.
type tableTx struct {
	b      *Backend
	t      driver.TableTarget
	conn   *tableConn // nil once the transaction has ended
	into   *shape     // the target; of a staged mode the staging table
	writer *rowWriter // for the schema of the last batch
	failed error      // what ended the transaction
}

// WriteModes are all of them.
func (*Backend) WriteModes() []driver.WriteMode {
	return []driver.WriteMode{driver.Append, driver.Upsert, driver.Merge, driver.Overwrite}
}

// BeginTable begins a transaction. The target's columns stay as they are until
// its end.
func (b *Backend) BeginTable(ctx context.Context, t driver.TableTarget) (driver.TableTx, error) {
	conn, err := b.tableConn(ctx, beginWrite)
	if err != nil {
		return nil, err
	}
	tx := &tableTx{b: b, t: t, conn: conn}
	if err := tx.begin(ctx); err != nil {
		tx.end()
		return nil, err
	}
	return tx, nil
}

// beginWrite does not leave the isolation to the role's settings: a checkpoint is
// compared with what others have committed by then.
const beginWrite = "BEGIN ISOLATION LEVEL READ COMMITTED"

func (tx *tableTx) begin(ctx context.Context) error {
	name := tx.t.Table
	if tx.t.Mode.Staged() {
		name = stageName(tx.t)
	}
	_, err := tx.conn.PgConn().Exec(ctx, "LOCK TABLE "+quoteTable(name)+" IN ROW EXCLUSIVE MODE").ReadAll()
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42P01" || e.Code == "3F000") {
		err = noTable(name.Schema, name.Table)
	}
	if err != nil {
		return err
	}
	tx.into, err = tx.b.shape(ctx, tx.conn.Conn, name)
	return err
}

// Write writes a batch's rows. What may be refused for a single row's sake is
// refused before the server sees it, as far as that is possible; what only the
// server sees is found with savepoints.
func (tx *tableTx) Write(ctx context.Context, b *record.Batch) ([]record.Rejected, error) {
	if tx.conn == nil {
		return nil, tx.over()
	}
	if b.Rows() == 0 {
		return nil, nil
	}
	w, err := tx.writerFor(b)
	if err == nil {
		w.load(b)
		if tx.t.Mode == driver.Upsert {
			err = tx.upsert(ctx, w, b)
		} else {
			err = tx.insert(ctx, w)
		}
	}
	if err != nil {
		return nil, tx.fail(ctx, err)
	}
	slices.SortFunc(w.rejected, func(a, b record.Rejected) int { return a.Row - b.Row })
	return w.rejected, nil
}

// writerFor keeps the writer as long as the schema stays.
func (tx *tableTx) writerFor(b *record.Batch) (*rowWriter, error) {
	changes := b.Changes != nil && tx.t.Changes
	if w := tx.writer; w != nil && w.schema == b.Schema && w.changes == changes {
		return w, nil
	}
	w, err := newRowWriter(tx.into, tx.t, b.Schema, changes)
	if err == nil {
		tx.writer = w
	}
	return w, err
}

// Copy hands the rows to the server as they are.
func (tx *tableTx) Copy(ctx context.Context, r io.Reader) (int64, error) {
	switch {
	case tx.conn == nil:
		return 0, tx.over()
	case tx.t.Mode == driver.Upsert || tx.t.Changes:
		return 0, athena.Errorf(athena.CodeInvalidRequest, "rows for mode %s cannot be copied as they are", tx.t.Mode).At("mode")
	}
	sql := "COPY " + quoteTable(tx.into.name) + " (" + strings.Join(quoteAll(tx.t.Schema.Names()), ", ") + ") FROM STDIN (FORMAT binary)"
	tag, err := tx.conn.PgConn().CopyFrom(ctx, r, sql)
	if err != nil {
		if rowProblem(err) != nil {
			err = errors.Join(driver.ErrRefusedRow, err)
		}
		return 0, tx.fail(ctx, err)
	}
	return tag.RowsAffected(), nil
}

// fail ends the transaction.
func (tx *tableTx) fail(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	tx.failed = err
	tx.end()
	return err
}

func (tx *tableTx) end() {
	if tx.conn != nil {
		tx.b.endTable(tx.conn, false)
		tx.conn = nil
	}
}

func (tx *tableTx) over() error {
	if tx.failed != nil {
		return fmt.Errorf("postgres: the transaction has ended: %w", tx.failed)
	}
	return errors.New("postgres: the transaction has ended")
}

// Rollback ends the transaction.
func (tx *tableTx) Rollback(context.Context) error {
	tx.end()
	return nil
}

// A rowWriter encodes batches of one schema for one table.
type rowWriter struct {
	table   *shape
	target  driver.TableTarget
	schema  *record.Schema
	changes bool
	columns []*columnWriter
	keys    []int  // places of the key among columns
	vague   bool   // keys may be equal without having the same bytes
	native  bool   // COPY takes the rows: all values are sent in their columns' own types
	system  bool   // an identity is given its values
	list    string // names of the columns

	// Of the batch:
	vectors  []*record.Vector
	buf      []byte
	rows     []int32  // that have been encoded, by their place in the batch
	starts   []uint32 // where they begin in buf; one more, where the last ends
	values   []uint32 // where their values begin, column by column
	rejected []record.Rejected
	log      [3]record.Vector
	// bounds has, by row, what restricts a delete of many rows beside its columns.
	bounds map[int][]string
}

// newRowWriter fits a schema to a table.
func newRowWriter(table *shape, t driver.TableTarget, s *record.Schema, changes bool) (*rowWriter, error) {
	w := &rowWriter{table: table, target: t, schema: s, changes: changes, native: !table.secured} // COPY does not go with row security
	columns := s.Columns
	if w.logs() {
		columns = slices.Concat(driver.ChangeColumns, columns)
	}
	var names []string
	for _, c := range columns {
		to := table.column(c.Name)
		if to == nil {
			return nil, noColumn(table, c.Name, "columns")
		}
		cw, ok := newColumnWriter(to, c.Type)
		if !ok {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "column %q of %s is of type %s, which takes no values of type %s; cast them", c.Name, table.name, to.native, c.Type).At("columns")
		}
		w.native = w.native && cw.wire == cw.oid
		w.system = w.system || to.identity == "a"
		w.columns, names = append(w.columns, cw), append(names, quoteName(c.Name))
	}
	w.list = strings.Join(names, ", ")
	if t.Mode == driver.Upsert || t.Mode == driver.Merge {
		for _, k := range t.Key {
			i := slices.IndexFunc(w.columns, func(c *columnWriter) bool { return c.name == k })
			if i < 0 {
				return nil, athena.Errorf(athena.CodeInvalidRequest, "the rows have no column %q of the key", k).At("key")
			}
			w.columns[i].key = true
			w.keys = append(w.keys, i)
			w.vague = w.vague || w.columns[i].vague()
		}
	}
	return w, nil
}

// logs reports whether changes become rows of a log.
func (w *rowWriter) logs() bool { return w.changes && w.target.Mode != driver.Upsert }

// load encodes a batch. Rows that the table would not take are rejected.
func (w *rowWriter) load(b *record.Batch) {
	w.vectors = w.vectors[:0]
	if w.logs() {
		for i, c := range driver.ChangeColumns {
			w.log[i].Reset()
			w.log[i].Kind = c.Type.Kind
		}
		for _, c := range b.Changes {
			w.log[0].AppendString(string(c.Op))
			w.log[1].AppendString(string(c.Pos))
			if c.At == 0 {
				w.log[2].AppendNull()
			} else {
				w.log[2].AppendInt(c.At)
			}
		}
		w.vectors = append(w.vectors, &w.log[0], &w.log[1], &w.log[2])
	}
	for i := range b.Columns {
		w.vectors = append(w.vectors, &b.Columns[i])
	}
	w.buf, w.rows, w.starts, w.values, w.rejected = w.buf[:0], w.rows[:0], w.starts[:0], w.values[:0], nil
	w.bounds = nil
	for i := range b.Rows() {
		if w.logs() && b.Changes[i].Implied {
			continue
		}
		if last := len(w.rows) - 1; !w.encode(b, i) && last >= 0 && w.changes && int(w.rows[last]) == i-1 && b.Moves(i-1) {
			// The update is refused as a whole: the row stays under its old key.
			w.buf, w.values = w.buf[:w.starts[last]], w.values[:last*len(w.columns)]
			w.rows, w.starts = w.rows[:last], w.starts[:last]
		}
	}
	w.starts = append(w.starts, uint32(len(w.buf)))
}

// encode appends one row as binary COPY has it, and reports false if it is
// rejected.
func (w *rowWriter) encode(b *record.Batch, i int) bool {
	start, values := len(w.buf), len(w.values)
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(len(w.columns)))
	keyOnly, nothing, many := false, false, false
	if w.changes && !w.logs() {
		change := &b.Changes[i]
		keyOnly, nothing, many = change.Op == cdc.Delete, change.Op == cdc.Truncate, change.Many()
		if many && !w.bound(i, change) {
			w.buf = w.buf[:start]
			return false
		}
	}
	for n, c := range w.columns {
		w.values = append(w.values, uint32(len(w.buf)))
		v := w.vectors[n]
		problem := ""
		switch {
		case nothing, keyOnly && !c.key, v.Absent(i) && (many || !c.key) && w.target.Mode == driver.Upsert:
			w.buf = append(w.buf, 0xff, 0xff, 0xff, 0xff)
		case c.key && v.Absent(i) && w.changes:
			problem = "is part of the key, and the change does not give it; what all rows of a partition share (static columns) has its place where the key is that of the partition"
		case c.key && v.Null(i):
			problem = "is null, and it is part of the key"
		default:
			w.buf, problem = c.append(w.buf, v, i)
		}
		if problem != "" {
			w.reject(i, c.name, fmt.Sprintf("column %q %s", c.name, problem))
			w.buf, w.values = w.buf[:start], w.values[:values]
			return false
		}
	}
	w.rows, w.starts = append(w.rows, int32(i)), append(w.starts, uint32(start))
	return true
}

const maxReason = 1000

func (w *rowWriter) reject(row int, column, reason string) {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	w.rejected = append(w.rejected, record.Rejected{Row: row, Column: column, Reason: strings.ToValidUTF8(reason, "\uFFFD")})
}

// refuse rejects a row by what the server said of it.
func (w *rowWriter) refuse(row int, e *pgconn.PgError) {
	reason := e.Message
	if e.Detail != "" {
		reason += ": " + e.Detail
	}
	w.reject(row, e.ColumnName, reason)
}
