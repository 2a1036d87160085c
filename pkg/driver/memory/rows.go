package memory

import (
	"context"
	"fmt"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// rows pulls from next, which gives nil at the end.
type rows struct {
	columns  []driver.Column
	keys     []string // `{"a":`, `,"b":` …
	next     func() ([]string, error)
	row      []string
	count    int64 // rows given
	affected int64
	err      error
	done     bool

	ctx  context.Context // the statement's: Next has no other way to be cancelled
	stop func()
}

func newRows(columns []driver.Column) *rows {
	r := &rows{columns: columns, next: each(nil)}
	used := map[string]bool{}
	for i, c := range columns {
		name := c.Name
		for n := 2; used[name]; n++ {
			name = fmt.Sprintf("%s_%d", c.Name, n)
		}
		used[name] = true
		r.columns[i].Name = name
		r.keys = append(r.keys, fmt.Sprintf("%c%s:", "{,"[min(i, 1)], quote(name)))
	}
	return r
}

func each(list [][]string) func() ([]string, error) {
	return func() (row []string, _ error) {
		if len(list) > 0 {
			row, list = list[0], list[1:]
		}
		return row, nil
	}
}

func (r *rows) Columns() []driver.Column { return r.columns }
func (r *rows) RowsAffected() int64      { return r.affected }
func (r *rows) Err() error               { return r.err }

func (r *rows) Next() bool {
	if r.done {
		return false
	}
	if r.ctx.Err() != nil {
		r.err = interrupted(r.ctx)
	} else {
		r.row, r.err = r.next()
	}
	if r.row == nil || r.err != nil {
		r.done, r.row = true, nil
		return false
	}
	if r.count++; r.count > r.affected {
		r.affected = r.count // a select counts the rows that it gave
	}
	return true
}

func (r *rows) AppendJSON(dst []byte) []byte {
	for i, v := range r.row {
		dst = append(append(dst, r.keys[i]...), v...)
	}
	return append(dst, '}')
}

func (r *rows) Close() error {
	r.done = true
	r.stop()
	return r.err
}

type trackedRows struct {
	*rows
	tx *tx
}

// Commit drops rows that were not read.
func (r *trackedRows) Commit(ctx context.Context, record func(context.Context, driver.Token) error) error {
	if r.err != nil {
		return r.err
	}
	if err := record(ctx, r.tx.token()); err != nil {
		r.tx.rollback()
		return err
	}
	if err := ctx.Err(); err != nil {
		r.tx.rollback()
		return err
	}
	return r.tx.commit()
}

// Close rolls back what was not committed.
func (r *trackedRows) Close() error {
	r.tx.rollback()
	return r.rows.Close()
}
