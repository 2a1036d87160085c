package scylla

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A snapshot is the rows that were there when the log began to be read, as far as
// they can be had: there is no view of that time, so they are read as they are now
// without what was written since, which the log brings. Cells say when they were
// written, but for those of collections and user-defined types that are not frozen;
// these are told as they are.
type snapshot struct {
	backend *Backend
	setup   driver.ChangeSetup
	begin   ticks

	mu     sync.Mutex
	tables map[driver.TableName]*captureTable
}

// leastParts is in how many parts a table is read at least: what fails is read
// again from its beginning.
const leastParts = 16

// Tables parts the ring of tokens evenly.
func (s *snapshot) Tables(ctx context.Context, parts int) (list []driver.SnapshotPart, err error) {
	for _, name := range s.setup.Tables {
		if _, err := s.table(ctx, name); err != nil {
			return nil, err
		}
		n := max(parts, leastParts)
		for i, r := range splitRing(n) {
			list = append(list, driver.SnapshotPart{Table: name, N: i, Of: n, Range: r.String()})
		}
	}
	return list, nil
}

func (s *snapshot) table(ctx context.Context, name driver.TableName) (*captureTable, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tables[name]
	if t != nil {
		return t, nil
	}
	t, err := s.backend.captureTable(ctx, name)
	if err == nil {
		t.client = s.setup.Client
		s.tables[name] = t
	}
	return t, err
}

// Columns describes a table.
func (s *snapshot) Columns(ctx context.Context, name driver.TableName) ([]cdc.Column, error) {
	t, err := s.table(ctx, name)
	if err != nil {
		return nil, err
	}
	return t.columns(), nil
}

// Read hands over the rows of a part in the order of their tokens.
func (s *snapshot) Read(ctx context.Context, p driver.SnapshotPart, row func(key, after []byte) error) error {
	t, err := s.table(ctx, p.Table)
	if err != nil {
		return err
	}
	r, err := parseRing(p.Range)
	if err != nil {
		return err
	}
	f := newRowForm(t, s.begin.time().UnixMicro())
	where, args := r.conditions(t)
	q := s.backend.session.Query(f.selectAll()+where, args...)
	return f.read(q.WithContext(ctx).Idempotent(true).Iter(), row)
}

// WrittenAt is just before the beginning of the capture: what was written later is left
// out.
func (s *snapshot) WrittenAt() int64 { return s.begin.time().UnixMicro() - 1 }

// Close has nothing to let go of.
func (s *snapshot) Close(context.Context) error { return nil }

// A ringRange is a part of the ring of tokens: behind one, up to another one. The
// least token is no row's.
type ringRange struct{ behind, to int64 }

// splitRing parts the ring evenly.
func splitRing(n int) (list []ringRange) {
	step := new(big.Int).Lsh(big.NewInt(1), 64)
	at := func(i int) int64 {
		x := new(big.Int).Mul(step, big.NewInt(int64(i)))
		x.Div(x, big.NewInt(int64(n)))
		return x.Add(x, big.NewInt(math.MinInt64)).Int64()
	}
	for i := range n {
		r := ringRange{at(i), math.MaxInt64}
		if i+1 < n {
			r.to = at(i + 1)
		}
		list = append(list, r)
	}
	return list
}

func (r ringRange) String() string { return fmt.Sprintf("%d:%d", r.behind, r.to) }

func parseRing(text string) (r ringRange, err error) {
	if _, err := fmt.Sscanf(text, "%d:%d", &r.behind, &r.to); err != nil {
		return r, fmt.Errorf("scylla: the range %q is none of ours: %w", text, err)
	}
	return r, nil
}

func (r ringRange) conditions(t *captureTable) (text string, args []any) {
	var key []string
	for _, c := range t.base {
		if c.kind == partitionKey {
			key = append(key, quoteName(c.Name))
		}
	}
	token := "token(" + strings.Join(key, ", ") + ")"
	return " WHERE " + token + " > ? AND " + token + " <= ?", []any{r.behind, r.to}
}

// A rowForm reads rows of a table as changes have them: a row with its key, and
// the static row of a partition, whose key is that of the partition, before the
// first of its rows.
type rowForm struct {
	table *captureTable
	// before is in microseconds since 1970: cells that were written then or later
	// are left out. 0 is none.
	before  int64
	columns []rowColumn

	partition []byte // of the row before
	key, row  []byte
}

// A rowColumn is where a row has a column; written is where it has the time of
// writing, -1 if it is not asked for.
type rowColumn struct {
	*captureColumn
	written int
}

func newRowForm(t *captureTable, before int64) *rowForm {
	f := &rowForm{table: t, before: before}
	n := len(t.base)
	for i := range t.base {
		c := rowColumn{&t.base[i], -1}
		if before > 0 && c.kind > clusteringKey && c.form == atomicForm {
			c.written = n
			n++
		}
		f.columns = append(f.columns, c)
	}
	return f
}

func (f *rowForm) selectAll() string {
	var names, times []string
	for _, c := range f.columns {
		names = append(names, quoteName(c.Name))
		if c.written >= 0 {
			times = append(times, "writetime("+quoteName(c.Name)+")")
		}
	}
	return selectFrom(f.table, append(names, times...))
}

// read hands over rows, and closes the iterator.
func (f *rowForm) read(iter *gocql.Iter, each func(key, after []byte) error) error {
	rows := newRawRows(iter)
	for rows.next() {
		if err := f.hand(rows, each); err != nil {
			_ = rows.close()
			return err
		}
	}
	return rows.close()
}

func (f *rowForm) hand(rows *rawRows, each func(key, after []byte) error) error {
	var partition []byte
	static, clustered := false, false
	for i, c := range f.columns {
		data := rows.raw[i].data
		switch c.kind {
		case partitionKey:
			partition = append(binary.BigEndian.AppendUint32(partition, uint32(len(data))), data...)
		case clusteringKey:
			clustered = clustered || data != nil
		case staticColumn:
			static = true
		}
	}
	if static && !bytes.Equal(partition, f.partition) {
		f.partition = partition
		if err := f.emit(rows, false, each); err != nil {
			return err
		}
	}
	if f.table.clustered() && !clustered {
		return nil // a partition that has a static row alone
	}
	return f.emit(rows, true, each)
}

// emit hands over the row, or the static row of its partition.
func (f *rowForm) emit(rows *rawRows, whole bool, each func(key, after []byte) error) (err error) {
	f.key, f.row = append(f.key[:0], '{'), append(f.row[:0], '{')
	later, some := false, false
	put := func(dst []byte, c rowColumn, i int) []byte {
		if len(dst) > 1 {
			dst = append(dst, ',')
		}
		if dst = append(dst, c.json...); err == nil {
			dst, err = appendValue(dst, rows.types[i], rows.raw[i].data)
		}
		return dst
	}
	for i, c := range f.columns {
		switch {
		case c.kind == partitionKey, c.kind == clusteringKey && whole:
			f.key, f.row = put(f.key, c, i), put(f.row, c, i)
			continue
		case c.kind == clusteringKey, (c.kind == staticColumn) == whole:
			continue
		}
		if c.written >= 0 && rows.raw[c.written].data != nil {
			if at := smallInt(rows.raw[c.written].data); at >= f.before {
				later = true
				continue
			}
		}
		some = some || rows.raw[i].data != nil
		f.row = put(f.row, c, i)
	}
	if err != nil {
		return err
	}
	if !some && (later || !whole) {
		return nil // all of it was written later, or there is none
	}
	f.key, f.row = append(f.key, '}'), append(f.row, '}')
	return each(f.key, f.row)
}

// Snapshot reads a table beside the stream, at the consistency with which the log is
// read.
func (s *changeStream) Snapshot(ctx context.Context, t driver.SnapshotTable) (driver.SnapshotReader, error) {
	if !slices.Contains(s.cfg.Tables, t.Table) {
		return nil, athena.Errorf(athena.CodeNotFound, "%s is not captured; add it to the capture's tables", t.Table).At("table")
	}
	return &snapshotReader{stream: s, from: t}, nil
}

// A snapshotReader reads a table page by page, in the order of the tokens of its
// partitions. What it gives as the key of the last row is the server's own word
// for where the page ended.
type snapshotReader struct {
	stream *changeStream
	from   driver.SnapshotTable
	form   *rowForm
	asked  time.Time // when the last rows were
}

// WrittenAt is earlier than the rows were asked for by as much as writes are waited
// for: one that was under way then is not in them, and must not be hidden by them.
func (r *snapshotReader) WrittenAt() int64 {
	return r.asked.Add(-r.stream.pace.confidence).UnixMicro()
}

func (r *snapshotReader) Columns(ctx context.Context) ([]cdc.Column, error) {
	t, err := r.stream.describe(ctx, r.from.Table)
	if err != nil {
		return nil, err
	}
	r.form = newRowForm(t, 0)
	return t.columns(), nil
}

func (r *snapshotReader) Next(ctx context.Context, after string, most int, row func(key, after []byte) error) (string, error) {
	state, err := base64.RawURLEncoding.DecodeString(after)
	if err != nil {
		return "", athena.Errorf(athena.CodeConflict, "the place %.40q is none of a table of ScyllaDB", after)
	}
	if r.form == nil {
		if _, err := r.Columns(ctx); err != nil {
			return "", err
		}
	}
	f := newRowForm(r.form.table, 0)
	text := f.selectAll()
	if r.from.Where != "" {
		text += " WHERE " + r.from.Where + " ALLOW FILTERING"
	}
	r.asked = time.Now()
	iter := r.stream.backend.session.Query(text).WithContext(ctx).Idempotent(true).
		PageSize(most).PageState(state).Iter()
	next := slices.Clone(iter.PageState())
	if err := f.read(iter, row); err != nil {
		if isUnknownTable(err) && r.altered(ctx) {
			return "", errors.Join(driver.ErrTableChanged, err)
		}
		return "", err
	}
	if len(next) == 0 {
		return "", nil
	}
	return base64.RawURLEncoding.EncodeToString(next), nil
}

// altered reports whether the table has other columns than were told.
func (r *snapshotReader) altered(ctx context.Context) bool {
	t, err := r.stream.describe(ctx, r.from.Table)
	return err == nil && !slices.Equal(t.columns(), r.form.table.columns())
}

// Total is not known: the cluster's estimates are of single nodes.
func (r *snapshotReader) Total(context.Context) (int64, error) { return 0, nil }

func (r *snapshotReader) Close(context.Context) error { return nil }
