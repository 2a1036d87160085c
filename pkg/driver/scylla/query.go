package scylla

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Language is CQL.
func (*Backend) Language() driver.Language { return driver.CQL }

// Analyze classifies a statement by its text.
func (*Backend) Analyze(text string) driver.Analysis { return analyze(text).Analysis }

// Query runs a statement. The protocol has no message that ends one: when ctx or
// the timeout is over nobody waits for it any more, and no further page is asked
// for; a write may still be made. Of reads RowsAffected counts the rows, of writes
// it is -1.
func (b *Backend) Query(ctx context.Context, st driver.Statement) (driver.Rows, error) {
	a := analyze(st.Text)
	switch {
	case a.Effect == driver.Refused:
		return nil, athena.Errorf(athena.CodeQueryFailed, "%s", a.Reason)
	case a.empty:
		return nil, athena.Errorf(athena.CodeQueryFailed, "the statement is empty")
	case a.broken:
		return nil, athena.Errorf(athena.CodeQueryFailed, "a string, a quoted name or a comment in the statement does not end")
	case st.ReadOnly && a.Effect != driver.Read:
		return nil, fmt.Errorf("scylla: the statement is no SELECT: %w", driver.ErrWrites)
	}
	args, err := bind(a, st.Params)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := &rows{caller: ctx, analysis: a, size: firstPage}
	if st.Timeout > 0 {
		r.ctx, r.cancel = context.WithTimeout(ctx, st.Timeout)
	} else {
		r.ctx, r.cancel = context.WithCancel(ctx)
	}
	if err := b.begin(r, st.WriteTime, args); err != nil {
		return nil, r.fail(err)
	}
	return r, nil
}

// begin sends the statement and reads up to its first row.
func (b *Backend) begin(r *rows, at time.Time, args []any) error {
	if at.IsZero() {
		at = time.Now()
	}
	query := func(text string, args []any) *gocql.Query {
		// No timeout of gocql's beside that of ctx: what a dead connection owes is
		// given up by the heartbeat.
		q := b.session.Query(text, args...).WithContext(r.ctx).SetRequestTimeout(0).Idempotent(r.analysis.Effect == driver.Read)
		if r.analysis.prepared && r.analysis.Effect == driver.Write {
			q = q.WithTimestamp(at.UnixMicro())
		}
		return q
	}
	err := r.start(query(r.analysis.text, args))
	if err != nil && countsTuples(err) {
		text, spread, spreadErr := b.spreadTuples(r.ctx, r.analysis, args)
		if spreadErr != nil {
			return spreadErr
		}
		r.err = nil
		err = r.start(query(text, spread))
	}
	return err
}

// The number of rows of a page follows their size: a page is to have pageBytes.
// The second page is asked for when half of the first is read, since many readers
// want no more than that; the others early.
const (
	firstPage = 256
	leastPage = 16
	mostPage  = 5000
	pageBytes = 1 << 20
)

// rows is one statement under way. It holds a page, and the next one.
type rows struct {
	caller   context.Context // its end is an error of the caller's
	ctx      context.Context // its end ends the statement
	cancel   context.CancelFunc
	analysis analysis
	query    *gocql.Query

	page  *gocql.Iter
	ahead chan *gocql.Iter // the next page, once it was asked for
	left  int              // rows of the page that were not read
	askAt int              // how many are left when the next page is asked for
	size  int              // rows of the next page
	total int              // bytes of the rows that were read
	count int64            // of these rows

	columns []driver.Column
	keys    [][]byte // the columns' names as JSON keys: {"id":  ,"name":
	types   []gocql.TypeInfo
	raw     []rawValue
	dest    []any

	row      []byte // the current row
	peeked   bool   // it was not given out yet
	finished bool
	err      error
}

// A rawValue takes a column as it is on the wire.
type rawValue struct{ data []byte }

// UnmarshalCQL keeps data, which are there until the page is closed.
func (v *rawValue) UnmarshalCQL(_ gocql.TypeInfo, data []byte) error {
	v.data = data
	return nil
}

// start sends the statement and reads up to its first row.
func (r *rows) start(q *gocql.Query) error {
	r.query = q.PageSize(r.size).PageState(nil)
	r.page = r.query.Iter()
	r.describe(r.page.Columns())
	r.left = r.page.NumRows()
	r.askAt = r.left / 2
	r.peeked = r.next()
	return r.err
}

// describe makes what the columns need.
func (r *rows) describe(columns []gocql.ColumnInfo) {
	wide := 0
	for i, name := range uniqueNames(columns) {
		t := columns[i].TypeInfo
		if tuple, ok := t.(gocql.TupleTypeInfo); ok {
			wide += len(tuple.Elems) - 1
		}
		key := []byte{','}
		if i == 0 {
			key[0] = '{'
		}
		r.keys = append(r.keys, append(cdc.AppendString(key, name), ':'))
		r.types = append(r.types, t)
		r.columns = append(r.columns, driver.Column{Name: name, Type: typeName(t)})
	}
	r.raw = make([]rawValue, len(columns))
	// gocql counts a tuple as so many columns.
	r.dest = make([]any, max(0, len(columns)+wide))
	for i := range r.raw {
		r.dest[i] = &r.raw[i]
	}
	plainTuples(columns)
}

// plainTuples has gocql hand tuples over in one piece: else one that is null could
// not be told from one that holds nulls. The columns are the page's own.
func plainTuples(columns []gocql.ColumnInfo) {
	for i := range columns {
		if columns[i].TypeInfo.Type() == gocql.TypeTuple {
			columns[i].TypeInfo = gocql.NewNativeType(protocol, gocql.TypeBlob)
		}
	}
}

// uniqueNames gives repeated names a number that no other column has.
func uniqueNames(columns []gocql.ColumnInfo) []string {
	seen := make(map[string]bool, len(columns))
	for _, c := range columns {
		seen[c.Name] = true
	}
	taken := make(map[string]bool, len(columns))
	names := make([]string, len(columns))
	for i, c := range columns {
		name := c.Name
		for n := 2; taken[name] || name != c.Name && seen[name]; n++ {
			name = c.Name + "_" + strconv.Itoa(n)
		}
		taken[name] = true
		names[i] = name
	}
	return names
}

// next reads a row into r.row. It reports false at the end of all pages, and sets
// r.err if that is an error.
func (r *rows) next() bool {
	for r.left == 0 {
		if !r.turn() {
			return false
		}
	}
	if !r.page.Scan(r.dest...) {
		r.err = r.closePage()
		if r.err == nil {
			r.err = errors.New("scylla: a page has fewer rows than it said")
		}
		return false
	}
	r.left--
	if r.row, r.err = r.render(r.row[:0]); r.err != nil {
		return false
	}
	r.count++
	r.total += len(r.row)
	if r.ahead == nil && r.left <= r.askAt {
		r.fetchAhead()
	}
	return true
}

func (r *rows) render(dst []byte) (_ []byte, err error) {
	for i, key := range r.keys {
		dst = append(dst, key...)
		if dst, err = appendValue(dst, r.types[i], r.raw[i].data); err != nil {
			return dst, fmt.Errorf("scylla: column %d: %w", i+1, err)
		}
	}
	if len(r.keys) == 0 {
		dst = append(dst, '{')
	}
	return append(dst, '}'), nil
}

// fetchAhead asks for the page behind this one.
func (r *rows) fetchAhead() {
	state := r.page.PageState()
	if len(state) == 0 {
		return
	}
	if r.count > 0 {
		r.size = min(max(leastPage, pageBytes/(r.total/int(r.count)+1)), mostPage, 8*r.size)
	}
	ahead := make(chan *gocql.Iter, 1)
	query := r.query.WithContext(r.ctx).PageSize(r.size).PageState(slices.Clone(state))
	go func() { ahead <- query.Iter() }()
	r.ahead = ahead
}

// turn goes to the next page; it reports false if there is none, or it could not
// be had.
func (r *rows) turn() bool {
	if r.ahead == nil {
		r.fetchAhead()
	}
	if r.err = r.closePage(); r.err != nil || r.ahead == nil {
		return false
	}
	if r.err = r.ctx.Err(); r.err != nil {
		return false
	}
	r.page, r.ahead = <-r.ahead, nil
	r.left = r.page.NumRows()
	r.askAt = r.left - r.left/8
	columns := r.page.Columns()
	if r.left > 0 && !r.sameColumns(columns) {
		r.err = errors.New("scylla: the columns of the result were altered between two of its pages")
		return false
	}
	plainTuples(columns)
	return true
}

func (r *rows) sameColumns(columns []gocql.ColumnInfo) bool {
	return slices.EqualFunc(columns, r.types, func(c gocql.ColumnInfo, t gocql.TypeInfo) bool {
		return typeName(c.TypeInfo) == typeName(t)
	})
}

func (r *rows) closePage() error {
	if r.page == nil {
		return nil
	}
	err := r.page.Close()
	r.page = nil
	return err
}

// Columns describes the result.
func (r *rows) Columns() []driver.Column { return r.columns }

// Next moves to the next row.
func (r *rows) Next() bool {
	if r.finished {
		return false
	}
	if r.peeked {
		r.peeked = false
		return true
	}
	if r.count > 0 && r.next() {
		return true
	}
	r.finish()
	return false
}

// AppendJSON appends the current row.
func (r *rows) AppendJSON(dst []byte) []byte { return append(dst, r.row...) }

// RowsAffected is how many rows a read gave, and -1 for writes, which CQL does not
// count.
func (r *rows) RowsAffected() int64 {
	if r.analysis.Effect != driver.Read {
		return -1
	}
	return r.count
}

// Err is the error that ended the rows.
func (r *rows) Err() error { return r.err }

// Close drops what was not read.
func (r *rows) Close() error {
	r.finish()
	return r.err
}

// finish gives back what the statement holds. An error of before stays.
func (r *rows) finish() {
	if r.finished {
		return
	}
	r.finished = true
	over := r.ctx.Err() // before it is made so
	r.cancel()
	r.closePage()
	if r.ahead != nil {
		(<-r.ahead).Close() // it ends at once, with its context
	}
	if r.err != nil {
		r.err = r.explain(r.err, over)
	}
}

// fail is finish for a statement that has not begun.
func (r *rows) fail(err error) error {
	r.err = err
	r.finish()
	return r.err
}

// explain adds to an error what only the statement knows.
func (r *rows) explain(err, over error) error {
	switch {
	case r.caller.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
		return r.caller.Err()
	case errors.Is(over, context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded):
		return &statementError{err: context.DeadlineExceeded, analysis: r.analysis}
	}
	return &statementError{err: err, analysis: r.analysis}
}
