package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	savepoint     = "SAVEPOINT athena_rows"
	keepRows      = "RELEASE SAVEPOINT athena_rows"
	undoRows      = "ROLLBACK TO SAVEPOINT athena_rows; " + keepRows
	copySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer   = "\xff\xff"
)

// rowProblem returns the server's error if it is about what a row holds: then the
// row is to blame, and not the statement, the server or another transaction.
func rowProblem(err error) *pgconn.PgError {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return nil
	}
	switch {
	case strings.HasPrefix(e.Code, "22"), // data exceptions
		strings.HasPrefix(e.Code, "23"),                          // integrity
		e.Code == "44000",                                        // a view's check option
		e.Code == "42501" && e.Routine == "ExecWithCheckOptions", // row security
		e.Code == "P0001",                                        // a trigger that raised
		e.Code == "21000":                                        // two rows for one, in an upsert
		return e
	}
	return nil
}

// insert adds the rows of the batch.
func (tx *tableTx) insert(ctx context.Context, w *rowWriter) error {
	return tx.insertRange(ctx, w, 0, len(w.rows))
}

// insertRange adds some of the encoded rows. If the server refuses one and says
// which, those before it are sent again, it is rejected, and the rest follows, not
// much more at once than was good so far; if it does not say, the rows are halved
// until it is found.
func (tx *tableTx) insertRange(ctx context.Context, w *rowWriter, from, to int) error {
	for span := to - from; from < to; {
		end := min(from+span, to)
		err := tx.send(ctx, w, from, end)
		if err == nil {
			from, span = end, 2*span
			continue
		}
		e := rowProblem(err)
		if e == nil {
			return err
		}
		if err := tx.undo(ctx); err != nil {
			return err
		}
		bad := copyLine(e) - 1 + from
		switch {
		case bad >= from && bad < end:
			if err := tx.insertRange(ctx, w, from, bad); err != nil {
				return err
			}
			w.refuse(int(w.rows[bad]), e)
			span = max(leastSpan, 2*(bad-from))
			from = bad + 1
		case end-from == 1:
			w.refuse(int(w.rows[from]), e)
			from = end
		default:
			middle := (from + end) / 2
			if err := tx.insertRange(ctx, w, from, middle); err != nil {
				return err
			}
			from, span = middle, end-middle
		}
	}
	return nil
}

// leastSpan is how many rows are worth a statement.
const leastSpan = 64

func (tx *tableTx) undo(ctx context.Context) error {
	_, err := tx.conn.PgConn().Exec(ctx, undoRows).ReadAll()
	return err
}

var linePattern = regexp.MustCompile(`(?m)^COPY .*, line (\d+)`)

// copyLine is the number of the row that a COPY failed at, from 1; 0 if the error
// does not tell.
func copyLine(e *pgconn.PgError) int {
	m := linePattern.FindStringSubmatch(e.Where)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// send adds rows in one statement and a savepoint of their own.
func (tx *tableTx) send(ctx context.Context, w *rowWriter, from, to int) error {
	if !w.native {
		return tx.run(ctx, w.insertStatement(w.all()), w.arrays(w.all(), from, to))
	}
	sql := savepoint + "; COPY " + quoteTable(w.table.name) + " (" + w.list + ") FROM STDIN (FORMAT binary); " + keepRows
	r := io.MultiReader(strings.NewReader(copySignature), bytes.NewReader(w.buf[w.starts[from]:w.starts[to]]), strings.NewReader(copyTrailer))
	_, err := tx.conn.PgConn().CopyFrom(ctx, r, sql)
	return err
}

// all are the places of all columns.
func (w *rowWriter) all() []int {
	list := make([]int, len(w.columns))
	for i := range list {
		list[i] = i
	}
	return list
}

// arrays makes a parameter of each of some columns: the array of its values in
// some of the encoded rows.
func (w *rowWriter) arrays(columns []int, from, to int) *arrayParams {
	p := &arrayParams{}
	for _, c := range columns {
		p.add(w.columns[c].wire, to-from, func(i int) []byte { return w.value(from+i, c) })
	}
	return p
}

// value is an encoded value with its length.
func (w *rowWriter) value(row, column int) []byte {
	start := w.values[row*len(w.columns)+column]
	if size := int32(binary.BigEndian.Uint32(w.buf[start:])); size > 0 {
		return w.buf[start : start+4+uint32(size)]
	}
	return w.buf[start : start+4]
}

// arrayParams are parameters of a statement, all of them arrays.
type arrayParams struct {
	values  [][]byte
	oids    []uint32
	formats []int16
}

// add makes an array of n values.
func (p *arrayParams) add(elem uint32, n int, value func(i int) []byte) {
	size := 20
	for i := range n {
		size += len(value(i))
	}
	dst := make([]byte, 0, size)
	dst = binary.BigEndian.AppendUint32(dst, 1) // dimensions
	dst = binary.BigEndian.AppendUint32(dst, 1) // there may be nulls
	dst = binary.BigEndian.AppendUint32(dst, elem)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	dst = binary.BigEndian.AppendUint32(dst, 1) // the lower bound
	for i := range n {
		dst = append(dst, value(i)...)
	}
	p.values, p.oids, p.formats = append(p.values, dst), append(p.oids, 0), append(p.formats, 1)
}

// source is the FROM item that makes rows of the arrays of some columns, with
// names c0, c1 … and, in the order of the arrays, n.
func (w *rowWriter) source(columns []int) string {
	params, names := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		native := "text"
		if cw := w.columns[c]; cw.wire == cw.oid {
			native = cw.element()
		}
		params[i], names[i] = fmt.Sprintf("$%d::%s[]", i+1, native), "c"+strconv.Itoa(c)
	}
	return "unnest(" + strings.Join(params, ", ") + ") WITH ORDINALITY AS s (" + strings.Join(names, ", ") + ", n)"
}

// element is the type of a column without its size.
func (w *columnWriter) element() string {
	if w.oid == bpcharOID {
		return "bpchar" // character is character(1)
	}
	if t := static[w.oid]; t != nil {
		return t.name
	}
	return w.typ.name
}

// expression is a column of source in the type of its column.
func (w *rowWriter) expression(c int) string {
	cw := w.columns[c]
	if cw.wire == cw.oid {
		return "s.c" + strconv.Itoa(c)
	}
	return "s.c" + strconv.Itoa(c) + "::" + cw.native
}

// insertStatement adds rows of the arrays of some columns.
func (w *rowWriter) insertStatement(columns []int) string {
	names, list := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i], list[i] = quoteName(w.columns[c].name), w.expression(c)
	}
	return "INSERT INTO " + quoteTable(w.table.name) + " (" + strings.Join(names, ", ") + ")" + w.overriding() + " SELECT " + strings.Join(list, ", ") + " FROM " + w.source(columns)
}

func (w *rowWriter) overriding() string {
	if w.system {
		return " OVERRIDING SYSTEM VALUE"
	}
	return ""
}

// run runs a statement in a savepoint of its own, in one round trip. After a
// failure undo is to be called.
func (tx *tableTx) run(ctx context.Context, sql string, p *arrayParams) error {
	pl := tx.conn.PgConn().StartPipeline(ctx)
	pl.SendQueryParams(savepoint, nil, nil, nil, nil)
	pl.SendQueryParams(sql, p.values, p.oids, p.formats, nil)
	pl.SendQueryParams(keepRows, nil, nil, nil, nil)
	return drain(pl, 3, nil)
}

// drain sends a pipeline of n statements and reads what they return.
func drain(pl *pgconn.Pipeline, n int, row func(statement int, values [][]byte)) error {
	err := pl.Sync()
	for i := 0; err == nil && i < n; i++ {
		var got any
		if got, err = pl.GetResults(); err != nil {
			break
		}
		r, ok := got.(*pgconn.ResultReader)
		if !ok {
			err = errors.New("postgres: the server's answers are out of order")
			break
		}
		for r.NextRow() {
			if row != nil {
				row(i, r.Values())
			}
		}
		_, err = r.Close()
	}
	if closed := pl.Close(); err == nil {
		err = closed
	}
	return err
}
