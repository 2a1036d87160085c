package scylla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// ReadTable reads the rows whose partitions lie in a range of tokens. CQL knows no
// moment that they could be read as of: each is as it is when its page is read.
func (b *Backend) ReadTable(ctx context.Context, r driver.TableRead, p driver.TablePart, size driver.BatchSize, fn func(*record.Batch) error) error {
	m, err := b.tableMeta(ctx, r.Table.Schema, r.Table.Table)
	if err != nil {
		return err
	}
	s, err := newScan(m, r, p)
	if err != nil {
		return err
	}
	if s.limit > 0 && len(s.conditions) == 0 {
		s.text += " LIMIT " + strconv.FormatInt(s.limit, 10)
	}
	q := b.session.Query(s.text, s.args...).Idempotent(true)
	return b.scan(ctx, q, s, size, fn)
}

// A tableScan is a statement whose rows become batches.
type tableScan struct {
	from       string
	text       string
	args       []any
	schema     *record.Schema // nil is that of the result
	decoders   []*columnDecoder
	wanted     int // of the columns; those behind them are for conditions alone
	conditions []condition
	places     []int // of the conditions' columns
	limit      int64
}

// newScan makes the scan of a part of a table.
func newScan(m *tableMeta, r driver.TableRead, p driver.TablePart) (*tableScan, error) {
	s := &tableScan{from: r.Table.String(), limit: r.Limit}
	var columns []tableColumn
	for i, name := range r.Columns {
		c, ok := m.column(name)
		if !ok {
			return nil, noColumn(m, name, fmt.Sprintf("columns[%d]", i))
		}
		columns = append(columns, c)
	}
	if r.Columns == nil {
		columns = slices.Clone(m.columns)
	}
	if len(columns) == 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "no column of %s is to be read", s.from).At("columns")
	}
	if r.Limit < 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "limit is %d; it is the number of rows at most, and 0 for all", r.Limit).At("limit")
	}
	s.schema, s.wanted = m.schema(columns), len(columns)
	var err error
	if s.conditions, err = conditions(m, r.Where); err != nil {
		return nil, err
	}
	for _, c := range s.conditions {
		at := slices.IndexFunc(columns, func(o tableColumn) bool { return o.name == c.column.name })
		if at < 0 {
			at, columns = len(columns), append(columns, c.column)
		}
		s.places = append(s.places, at)
	}
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.name
		s.decoders = append(s.decoders, newColumnDecoder(c.name, c.typ))
	}
	s.text = "SELECT " + quoteAll(names) + " FROM " + m.from()
	where, args, err := tokenConditions(m, p.Range)
	if err != nil {
		return nil, err
	}
	if l := find(m, s.conditions); l != nil && p.Range == "" {
		where, args = l.where, l.args
	}
	if s.args = args; len(where) > 0 {
		s.text += " WHERE " + strings.Join(where, " AND ")
	}
	return s, nil
}

// schema is how rows of some columns are read.
func (m *tableMeta) schema(columns []tableColumn) *record.Schema {
	s := &record.Schema{Columns: make([]record.Column, len(columns))}
	for i, c := range columns {
		s.Columns[i] = record.Column{Name: c.name, Type: recordType(c.typ), Native: c.text, Nullable: !c.key()}
	}
	key := m.key()
	for _, k := range key {
		if s.Index(k) < 0 {
			return s // without all of it rows are not told apart
		}
	}
	s.Key = key
	return s
}

// scan pages through the rows of a query.
func (b *Backend) scan(ctx context.Context, q *gocql.Query, s *tableScan, size driver.BatchSize, fn func(*record.Batch) error) error {
	size = size.Or()
	reading, cancel := context.WithCancel(ctx)
	pages := &pager{query: q.WithContext(reading).SetRequestTimeout(0), size: min(firstPage, size.Rows)}
	defer func() {
		cancel()
		pages.end()
	}()
	var out *batcher
	for {
		page, err := pages.next()
		if err != nil {
			return scanError(ctx, err)
		}
		if out == nil {
			if err := s.describe(page.Columns()); err != nil {
				return err
			}
			out = newBatcher(s, size, fn)
		}
		n := page.NumRows()
		if n > 0 && !s.fits(page.Columns()) {
			return athena.Errorf(athena.CodeConflict, "the columns of %s were altered while it was read", s.from)
		}
		plainTuples(page.Columns())
		dest := s.dest(page.Columns())
		before := out.bytes
		for range n {
			if !page.Scan(dest...) {
				if err := pages.close(); err != nil {
					return scanError(ctx, err)
				}
				return errors.New("scylla: a page has fewer rows than it said")
			}
			more, err := out.row()
			if err != nil || !more {
				return err
			}
		}
		pages.fit(n, out.bytes-before)
		if pages.done() {
			return out.end()
		}
	}
}

// scanError is the caller's own error where the caller has ended the reading.
func scanError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// describe makes the decoders of a result whose schema was not known before.
func (s *tableScan) describe(columns []gocql.ColumnInfo) error {
	if s.schema != nil {
		return nil
	}
	if len(columns) == 0 {
		return athena.Errorf(athena.CodeInvalidRequest, "the statement returns no rows").At("query")
	}
	s.schema = resultSchema(columns)
	for i, c := range s.schema.Columns {
		s.decoders = append(s.decoders, newColumnDecoder(c.Name, columns[i].TypeInfo))
	}
	s.wanted = len(s.decoders)
	return nil
}

// resultSchema describes the rows of a result.
func resultSchema(columns []gocql.ColumnInfo) *record.Schema {
	s := &record.Schema{}
	for i, name := range uniqueNames(columns) {
		t := columns[i].TypeInfo
		s.Columns = append(s.Columns, record.Column{Name: name, Type: recordType(t), Native: typeName(t), Nullable: true})
	}
	return s
}

// fits reports whether a page has the columns that were described.
func (s *tableScan) fits(columns []gocql.ColumnInfo) bool {
	return slices.EqualFunc(columns, s.decoders, func(c gocql.ColumnInfo, d *columnDecoder) bool {
		return c.TypeInfo.Type() == gocql.TypeBlob && d.typ.Type() == tupleType || typeName(c.TypeInfo) == typeName(d.typ)
	})
}

const tupleType = gocql.TypeTuple

// dest is what gocql reads a row into; it counts a tuple as so many columns.
func (s *tableScan) dest(columns []gocql.ColumnInfo) []any {
	n := 0
	for _, d := range s.decoders {
		if t, ok := d.typ.(gocql.TupleTypeInfo); ok {
			n += len(t.Elems) - 1
		}
	}
	list := make([]any, max(0, len(columns)+n))
	for i, d := range s.decoders {
		list[i] = d
	}
	return list
}

// A pager reads the pages of a query, one ahead. The size of the next page follows the
// size of the rows.
type pager struct {
	query *gocql.Query
	size  int
	page  *gocql.Iter
	ahead chan *gocql.Iter
	last  bool
}

func (p *pager) fetch(state []byte) {
	ahead := make(chan *gocql.Iter, 1)
	q := p.query.WithContext(p.query.Context()).PageSize(p.size).PageState(slices.Clone(state))
	go func() { ahead <- q.Iter() }()
	p.ahead = ahead
}

// next waits for the next page, and asks for the one behind it.
func (p *pager) next() (*gocql.Iter, error) {
	if p.ahead == nil {
		p.fetch(nil)
	}
	if err := p.close(); err != nil {
		return nil, err
	}
	p.page, p.ahead = <-p.ahead, nil
	if p.page.NumRows() == 0 && len(p.page.Columns()) == 0 { // an error, or no result
		return p.page, p.close()
	}
	state := p.page.PageState()
	if p.last = len(state) == 0; !p.last {
		p.fetch(state)
	}
	return p.page, nil
}

// fit sizes the pages to come by the rows of one.
func (p *pager) fit(rows, bytes int) {
	if rows > 0 {
		p.size = min(max(leastPage, pageBytes/(bytes/rows+1)), mostPage, 8*p.size)
	}
}

func (p *pager) done() bool { return p.last }

// end lets go of all pages, once the query's context is over.
func (p *pager) end() {
	_ = p.close()
	if p.ahead != nil {
		_ = (<-p.ahead).Close()
	}
}

// close ends the page that is read.
func (p *pager) close() error {
	if p.page == nil {
		return nil
	}
	err := p.page.Close()
	p.page = nil
	return err
}

// A batcher makes batches of rows that are read one by one.
type batcher struct {
	*tableScan
	size  driver.BatchSize
	fn    func(*record.Batch) error
	batch *record.Batch
	all   *record.Schema // with the columns of conditions
	count int64          // of the rows that were kept
	bytes int            // of all rows
}

func newBatcher(s *tableScan, size driver.BatchSize, fn func(*record.Batch) error) *batcher {
	b := &batcher{tableScan: s, size: size, fn: fn, all: s.schema}
	if len(s.decoders) > s.wanted {
		b.all = &record.Schema{Columns: slices.Clone(s.schema.Columns)}
		for _, d := range s.decoders[s.wanted:] {
			b.all.Columns = append(b.all.Columns, record.Column{Name: d.name, Type: d.rec})
		}
	}
	b.renew()
	return b
}

func (b *batcher) renew() {
	b.batch = record.New(b.all, min(b.size.Rows, 8192))
	b.batch.From = b.from
	b.aim()
}

// aim has the decoders append to the batch.
func (b *batcher) aim() {
	for i, d := range b.decoders {
		d.into = &b.batch.Columns[i]
	}
}

// row takes the row over that the decoders have appended; more is false once there are
// as many as are wanted.
func (b *batcher) row() (more bool, err error) {
	n := b.batch.Rows()
	before := b.bytes
	b.batch.Done()
	for i := range b.conditions {
		if !b.conditions[i].holds(&b.batch.Columns[b.places[i]], n) {
			b.batch.Drop(n)
			return true, nil
		}
	}
	b.bytes = before + b.rowSize(n)
	switch {
	case n > 0 && b.batch.Size() > b.size.Bytes: // the row begins the next batch
		full := b.batch
		b.renew()
		b.batch.AppendRow(full, n)
		full.Drop(n)
		err = b.hand(full)
	case n+1 >= b.size.Rows:
		err = b.hand(b.batch)
		b.batch.Reset()
	}
	b.count++
	if err == nil && b.limit > 0 && b.count >= b.limit {
		return false, b.end()
	}
	return err == nil, err
}

func (b *batcher) rowSize(n int) int {
	size := 0
	for i := range b.batch.Columns {
		v := &b.batch.Columns[i]
		if size += 8; len(v.Ends) > 0 {
			size += len(v.Bytes(n))
		}
	}
	return size
}

// hand hands a batch over, without the columns that only conditions needed.
func (b *batcher) hand(batch *record.Batch) error {
	if b.all == b.schema {
		return b.fn(batch)
	}
	out := &record.Batch{Schema: b.schema, Columns: batch.Columns[:b.wanted:b.wanted], From: batch.From}
	out.SetRows(batch.Rows())
	return b.fn(out)
}

// end hands the last batch over.
func (b *batcher) end() error {
	if b.batch.Rows() == 0 {
		return nil
	}
	err := b.hand(b.batch)
	b.batch.Reset()
	return err
}

// onlyReads refuses a statement that may write, or is none.
func onlyReads(text string) (analysis, error) {
	a := analyze(text)
	switch {
	case a.empty:
		return a, athena.Errorf(athena.CodeInvalidRequest, "the statement is empty").At("query")
	case a.Effect == driver.Refused:
		return a, athena.Errorf(athena.CodeInvalidRequest, "%s", a.Reason).At("query")
	case a.broken:
		return a, athena.Errorf(athena.CodeInvalidRequest, "a string, a quoted name or a comment in the statement does not end").At("query")
	case a.Effect != driver.Read:
		return a, athena.Errorf(athena.CodeInvalidRequest, "the statement may write, or is none that is known here; only a SELECT has rows for a pipeline").At("query")
	}
	return a, nil
}

// ReadQuery reads the rows of a SELECT. Its timeout is that of the whole reading, fn
// included.
func (b *Backend) ReadQuery(ctx context.Context, st driver.Statement, size driver.BatchSize, fn func(*record.Batch) error) error {
	a, err := onlyReads(st.Text)
	if err != nil {
		return err
	}
	args, err := bind(a, st.Params)
	if err != nil {
		return err
	}
	caller := ctx
	if st.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, st.Timeout)
		defer cancel()
	}
	var handed error
	read := func(text string, args []any) error {
		return b.scan(ctx, b.session.Query(text, args...).Idempotent(true), &tableScan{}, size, func(batch *record.Batch) error {
			handed = fn(batch)
			return handed
		})
	}
	if err = read(a.text, args); err != nil && handed == nil && countsTuples(err) {
		text, spread, spreadErr := b.spreadTuples(ctx, a, args)
		if spreadErr != nil {
			return spreadErr
		}
		err = read(text, spread)
	}
	switch {
	case err == nil || handed != nil && err == handed, caller.Err() != nil:
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &statementError{err: context.DeadlineExceeded, analysis: a}
	}
	return queryError(err, a)
}

// queryError adds to an engine's error what only the statement tells.
func queryError(err error, a analysis) error {
	var own *athena.Error
	if errors.As(err, &own) {
		return err
	}
	return &statementError{err: err, analysis: a}
}

// DescribeQuery has the server prepare the statement, and does not run it.
func (b *Backend) DescribeQuery(ctx context.Context, st driver.Statement) (*record.Schema, error) {
	a, err := onlyReads(st.Text)
	if err != nil {
		return nil, err
	}
	var schema *record.Schema
	q := b.session.Bind(a.text, func(info *gocql.QueryInfo) ([]any, error) {
		schema = resultSchema(info.Rval)
		for i, p := range st.Params { // a value that does not fit is found without running it
			if i < len(info.Args) && json.Valid(p) {
				if _, err := (param{i, p}).MarshalCQL(info.Args[i].TypeInfo); err != nil {
					return nil, err
				}
			}
		}
		return nil, errDescribed
	})
	err = q.WithContext(ctx).SetRequestTimeout(0).Exec()
	switch {
	case err == nil:
		return nil, errors.New("scylla: a statement was run that was to be described")
	case !errors.Is(err, errDescribed):
		return nil, queryError(scanError(ctx, err), a)
	case len(schema.Columns) == 0:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the statement returns no rows").At("query")
	}
	return schema, nil
}
