// Package source gives the rows of a pipeline: those of a table, of a query, of
// objects, of a deferred query's result, of what could not go on before, and the
// changes that a capture has stored.
package source

import (
	"cmp"
	"context"
	"encoding/json"
	"io"

	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// PartBytes is about how large a part of a table is unless something else is said:
// what is read again if its worker is killed.
const PartBytes = 64 << 20

// fault gives an error of the engine its code where it comes from: it may pass
// through the sink's hands on its way up.
func fault(backend any, err error) error {
	b, ok := backend.(driver.Backend)
	if !ok || err == nil {
		return err
	}
	return dispatch.Normalize(b, err)
}

// A Table is a stage.Source over a table or view.
type Table struct {
	Reader driver.TableReader
	What   driver.TableRead
	Size   driver.BatchSize
	// PartBytes is about how large a part is; PartBytes if it is 0.
	PartBytes int64

	notes []string
}

// Notes are what else Describe was told of the table.
func (t *Table) Notes() []string { return t.notes }

var _ stage.Source = (*Table)(nil)

// Describe describes the columns that are read.
func (t *Table) Describe(ctx context.Context) (*record.Schema, error) {
	shape, err := t.Reader.DescribeTable(ctx, t.What.Table)
	if err != nil {
		return nil, fault(t.Reader, err)
	}
	t.notes = shape.Notes
	return Only(shape.Schema, t.What.Columns)
}

// Split divides the table by its key.
func (t *Table) Split(ctx context.Context, whole bool) ([]stage.Part, error) {
	bytes := cmp.Or(t.PartBytes, PartBytes)
	if whole {
		bytes = 1 << 62
	}
	parts, err := t.Reader.SplitTable(ctx, t.What, bytes)
	if err != nil {
		return nil, fault(t.Reader, err)
	}
	out := make([]stage.Part, len(parts))
	for i, p := range parts {
		what, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		out[i] = stage.Part{What: what, Rows: p.Rows, Bytes: p.Bytes}
	}
	return out, nil
}

// Read reads a part as of one moment.
func (t *Table) Read(ctx context.Context, part stage.Part, fn func(*record.Batch) error, _ func(stage.Unread) error) error {
	p, err := tablePart(part)
	if err != nil {
		return err
	}
	from := t.What.Table.String()
	return fault(t.Reader, t.Reader.ReadTable(ctx, t.What, p, t.Size, func(b *record.Batch) error {
		b.From = from
		return fn(b)
	}))
}

// CopyForm is the form in which Copy gives the rows; empty if it cannot.
func (t *Table) CopyForm(ctx context.Context) (string, error) {
	c, ok := t.Reader.(driver.TableCopier)
	if !ok {
		return "", nil
	}
	form, err := c.CopyForm(ctx, t.What)
	return form, fault(t.Reader, err)
}

// Copy gives the rows of a part in the engine's own form.
func (t *Table) Copy(ctx context.Context, part stage.Part, to io.Writer) (rows int64, err error) {
	p, err := tablePart(part)
	if err != nil {
		return 0, err
	}
	rows, err = t.Reader.(driver.TableCopier).CopyTable(ctx, t.What, p, to)
	return rows, fault(t.Reader, err)
}

func tablePart(part stage.Part) (p driver.TablePart, err error) {
	return p, json.Unmarshal(part.What, &p)
}

// Only is the schema of some columns of s, in their order; s itself if none are
// named. A column that is not there is an invalid_request error at source.columns.
func Only(s *record.Schema, columns []string) (*record.Schema, error) {
	if columns == nil {
		return s, nil
	}
	out := &record.Schema{Key: s.Key}
	for i, name := range columns {
		at := s.Index(name)
		if at < 0 {
			return nil, noColumn(s, name, i)
		}
		out.Columns = append(out.Columns, s.Columns[at])
	}
	for _, k := range s.Key {
		if out.Index(k) < 0 {
			out.Key = nil
		}
	}
	return out, nil
}

// A Query is a stage.Source over a statement that reads. It is one part.
type Query struct {
	Reader    driver.TableReader
	Statement driver.Statement
	Size      driver.BatchSize
}

var _ stage.Source = (*Query)(nil)

// Describe describes the statement's rows without running it.
func (q *Query) Describe(ctx context.Context) (*record.Schema, error) {
	s, err := q.Reader.DescribeQuery(ctx, q.Statement)
	return s, fault(q.Reader, err)
}

// Split returns one part.
func (q *Query) Split(context.Context, bool) ([]stage.Part, error) { return onePart, nil }

var onePart = []stage.Part{{Rows: -1, Bytes: -1}}

// Read runs the statement.
func (q *Query) Read(ctx context.Context, _ stage.Part, fn func(*record.Batch) error, _ func(stage.Unread) error) error {
	return fault(q.Reader, q.Reader.ReadQuery(ctx, q.Statement, q.Size, func(b *record.Batch) error {
		b.From = "query"
		return fn(b)
	}))
}
