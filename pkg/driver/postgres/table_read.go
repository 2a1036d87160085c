package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Rows are read through the extended protocol and not with COPY: it gives the
// same bytes, it lets each column have its own format, so that types without a
// binary form that we know come as the text that docs/types.md goes by, and it
// takes parameters and any statement that returns rows.

// readStatement is the name of the statement that is read.
const readStatement = "athena_read"

// ReadTable reads one part in a transaction of its own, on a connection beside
// the pool. No timeout of the role's ends it: fn may take its time.
func (b *Backend) ReadTable(ctx context.Context, r driver.TableRead, p driver.TablePart, size driver.BatchSize, fn func(*record.Batch) error) error {
	c, err := b.tableRead(ctx)
	if err != nil {
		return err
	}
	rel, err := b.shape(ctx, c.Conn, r.Table)
	if err != nil {
		b.endTable(c, false)
		return err
	}
	sql, columns, err := selectPart(rel, r, p)
	if err != nil {
		b.endTable(c, false)
		return err
	}
	return b.readRows(ctx, c, driver.Statement{Text: sql}, rel.schema(columns), r.Table.String(), size, fn)
}

// ReadQuery reads the rows of a statement. Its timeout is that of the whole
// reading, fn included; without one nothing ends it, whatever the role's own.
func (b *Backend) ReadQuery(ctx context.Context, s driver.Statement, size driver.BatchSize, fn func(*record.Batch) error) error {
	if err := onlyReads(s.Text); err != nil {
		return err
	}
	c, err := b.tableRead(ctx)
	if err != nil {
		return err
	}
	if s.Timeout > 0 {
		if _, err := c.PgConn().Exec(ctx, "SET LOCAL statement_timeout = "+milliseconds(s.Timeout)).ReadAll(); err != nil {
			b.endTable(c, false)
			return err
		}
	}
	return b.readRows(ctx, c, s, nil, "", size, fn)
}

// DescribeQuery has the server describe the statement, without running it. One that
// is not known to read is shown to the server too: it may be none at all.
func (b *Backend) DescribeQuery(ctx context.Context, s driver.Statement) (*record.Schema, error) {
	unfit := onlyReads(s.Text)
	if unfit != nil && !errors.Is(unfit, errMayWrite) {
		return nil, unfit
	}
	c, err := b.tableRead(ctx)
	if err != nil {
		return nil, err
	}
	defer b.endTable(c, false)
	d, _, err := b.prepareRead(ctx, c, s, nil)
	var e *pgconn.PgError
	switch {
	case unfit != nil && !(errors.As(err, &e) && e.Code == syntaxError):
		return nil, unfit
	case err != nil:
		return nil, err
	}
	return d.schema, nil
}

var errMayWrite = athena.Errorf(athena.CodeInvalidRequest, "the statement may write, or is none that is known here; only one that reads has rows for a pipeline").At("query")

// onlyReads refuses a statement that may write.
func onlyReads(text string) error {
	switch a := analyze(text); {
	case a.empty:
		return athena.Errorf(athena.CodeInvalidRequest, "the statement is empty").At("query")
	case strings.IndexByte(text, 0) >= 0:
		return athena.Errorf(athena.CodeInvalidRequest, "the statement holds the character U+0000, which PostgreSQL cannot read").At("query")
	case a.Effect == driver.Refused:
		return athena.Errorf(athena.CodeInvalidRequest, "%s", a.Reason).At("query")
	case a.Effect != driver.Read:
		return errMayWrite
	}
	return nil
}

// prepareRead makes the statement known, and encodes its parameters. The schema
// is that of the rows; if it is nil the statement's own is made.
func (b *Backend) prepareRead(ctx context.Context, c *tableConn, s driver.Statement, schema *record.Schema) (*rowDecoder, [][]byte, error) {
	sd, err := c.PgConn().Prepare(ctx, readStatement, s.Text, nil)
	if err != nil {
		return nil, nil, explainRead(ctx, err, s, time.Now())
	}
	c.prepared = true
	if len(sd.Fields) == 0 {
		return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "the statement returns no rows").At("query")
	}
	if err := b.types.Load(ctx, c.PgConn(), sd.ParamOIDs...); err != nil {
		return nil, nil, err
	}
	params, err := b.types.encodeParams(sd.ParamOIDs, s.Params)
	if err != nil {
		return nil, nil, err
	}
	d, err := b.decoderOf(ctx, c.Conn, sd, schema)
	return d, params, err
}

// readRows runs a statement and hands its rows over in batches of the schema;
// nil is that of the statement. It ends the connection.
func (b *Backend) readRows(ctx context.Context, c *tableConn, s driver.Statement, schema *record.Schema, from string, size driver.BatchSize, fn func(*record.Batch) error) error {
	began := time.Now()
	d, params, err := b.prepareRead(ctx, c, s, schema)
	if err != nil {
		b.endTable(c, false)
		return err
	}
	size = size.Or()
	batch := record.New(d.schema, min(size.Rows, 8192))
	batch.From = from
	bytes, fixed := 0, 8*len(d.columns)
	var handed error
	hand := func() error {
		handed = fn(batch)
		batch.Reset()
		bytes = 0
		return handed
	}
	err = c.rows(ctx, readStatement, params, d.formats(), func(body []byte) error {
		if n := batch.Rows(); n > 0 && (n >= size.Rows || bytes+len(body)+fixed > size.Bytes) {
			if err := hand(); err != nil {
				return err
			}
		}
		bytes += len(body) + fixed
		return d.row(batch, body)
	})
	if err == nil && batch.Rows() > 0 {
		err = hand()
	}
	b.endTable(c, err != nil)
	if err != nil && err == handed {
		return err
	}
	return explainRead(ctx, err, s, began)
}

// explainRead adds to an error what only the reading knows.
func explainRead(ctx context.Context, err error, s driver.Statement, began time.Time) error {
	var e *pgconn.PgError
	isPg := errors.As(err, &e)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case isPg && e.Code == readOnlyTransaction:
		return errors.Join(driver.ErrWrites, err)
	case isPg && e.Code == queryCanceled && s.Timeout > 0 && time.Since(began) >= s.Timeout:
		return &statementError{err: err, timedOut: true}
	}
	return err
}

// selectPart is the statement that reads a part, with the columns that it gives.
func selectPart(rel *shape, r driver.TableRead, p driver.TablePart) (sql string, columns []shapeColumn, err error) {
	columns = rel.columns
	if r.Columns != nil {
		columns = make([]shapeColumn, len(r.Columns))
		for i, name := range r.Columns {
			c := rel.column(name)
			if c == nil {
				return "", nil, noColumn(rel, name, fmt.Sprintf("columns[%d]", i))
			}
			columns[i] = *c
		}
	}
	if len(columns) == 0 {
		return "", nil, athena.Errorf(athena.CodeInvalidRequest, "%s has no columns to read", rel.name).At("columns")
	}
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = quoteName(c.name)
	}
	sql = "SELECT " + strings.Join(names, ", ") + " FROM " + quoteTable(rel.name)
	where, err := conditions(rel, r.Where)
	if err != nil {
		return "", nil, err
	}
	within, err := rangeConditions(rel, p.Range)
	if err != nil {
		return "", nil, err
	}
	if where = append(where, within...); len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	switch {
	case r.Limit < 0:
		return "", nil, athena.Errorf(athena.CodeInvalidRequest, "limit is %d; it is the number of rows at most, and 0 for all", r.Limit).At("limit")
	case r.Limit > 0:
		sql += " LIMIT " + strconv.FormatInt(r.Limit, 10)
	}
	return sql, columns, nil
}

func noColumn(rel *shape, name, path string) error {
	return athena.Errorf(athena.CodeInvalidRequest, "%s has no column %.80q", rel.name, name).At(path)
}

const maxInValues = 10_000

// conditions are the caller's, with their values as literals: COPY takes no
// parameters.
func conditions(rel *shape, list []driver.Condition) (out []string, err error) {
	for i, cond := range list {
		path := fmt.Sprintf("where[%d]", i)
		c := rel.column(cond.Column)
		if c == nil {
			return nil, noColumn(rel, cond.Column, path+".column")
		}
		name := quoteName(c.name)
		switch cond.Op {
		case "is_null", "not_null":
			if len(cond.Value) > 0 {
				return nil, athena.Errorf(athena.CodeInvalidRequest, "%s.value is given, and %s takes none", path, cond.Op).At(path + ".value")
			}
			op := " IS NOT DISTINCT FROM NULL" // IS NULL is another thing for composites
			if cond.Op == "not_null" {
				op = " IS DISTINCT FROM NULL"
			}
			out = append(out, name+op)
		case "=", "!=", "<", "<=", ">", ">=", "like":
			value, err := literal(c, cond.Value, path+".value")
			if err != nil {
				return nil, err
			}
			out = append(out, name+" "+strings.Replace(cond.Op, "!=", "<>", 1)+" "+value)
		case "in":
			var items []json.RawMessage
			if json.Unmarshal(cond.Value, &items) != nil || len(items) == 0 || len(items) > maxInValues {
				return nil, athena.Errorf(athena.CodeInvalidRequest, "%s.value must be an array of 1 to %d values", path, maxInValues).At(path + ".value")
			}
			values := make([]string, len(items))
			for n, item := range items {
				if values[n], err = literal(c, item, fmt.Sprintf("%s.value[%d]", path, n)); err != nil {
					return nil, err
				}
			}
			out = append(out, name+" IN ("+strings.Join(values, ", ")+")")
		default:
			return nil, athena.Errorf(athena.CodeInvalidRequest, "%s.op %.20q is unknown; it must be one of =, !=, <, <=, >, >=, like, in, is_null and not_null", path, cond.Op).At(path + ".op")
		}
	}
	return out, nil
}

// literal writes a JSON value for a comparison with a column, whose type the
// server then gives it.
func literal(c *shapeColumn, raw json.RawMessage, path string) (string, error) {
	raw = bytes.TrimSpace(raw)
	if !json.Valid(raw) || string(raw) == "null" {
		return "", athena.Errorf(athena.CodeInvalidRequest, "%s must be a value; NULL is compared with is_null and not_null", path).At(path)
	}
	text, problem := encodeParam(nil, c.typ, c.oid, raw)
	if problem != "" {
		return "", athena.Errorf(athena.CodeInvalidRequest, "%s is %s; column %q is of type %s and %s", path, jsonKind(raw), c.name, c.native, problem).At(path)
	}
	return quoteLiteral(string(text)), nil
}
