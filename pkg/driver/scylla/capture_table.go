package scylla

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A captureTable is a captured table as the server described it: what its log
// rows are read by. It is safe for concurrent use. When a change has columns
// that it does not know, another one is asked for.
type captureTable struct {
	name driver.TableName
	// client is written into the changes.
	client  string
	base    []captureColumn // in the order of tableMeta
	options cdcOptions
	// again reads rows of one batch of the log once more: their numbers and
	// operations, and some columns as they are on the wire. Nil where there is no
	// server to ask.
	again func(ctx context.Context, stream []byte, at gocql.UUID, columns []string) ([]logRow, error)

	problem string                    // what scylla-cdc-go cannot read of it
	layout  atomic.Pointer[logLayout] // of the rows that were read last
}

// captureColumn is one column of the base table.
type captureColumn struct {
	cdc.Column
	kind columnKind
	desc bool // of a clustering column
	json []byte
	log  gocql.TypeInfo // of its values in the log
	form logForm
}

// columnKind says what a column belongs to.
type columnKind uint8

const (
	partitionKey columnKind = iota
	clusteringKey
	staticColumn
	regularColumn
)

var columnKinds = map[string]columnKind{
	kindPartitionKey: partitionKey, kindClustering: clusteringKey, kindStatic: staticColumn, kindRegular: regularColumn,
}

// logForm is how a log has the values of a column.
type logForm uint8

const (
	atomicForm logForm = iota // whole or not at all, as with all that is frozen
	listForm                  // elements by their keys
	setForm
	mapForm
	udtForm
)

// cdcOptions is what the table's option cdc says of its log.
type cdcOptions struct {
	enabled   bool
	keysOnly  bool   // delta: keys
	preimage  string // false, true, full
	postimage bool
	ttl       time.Duration // of the log's rows; 0 is for ever
}

// defaultLogTTL is how long a log keeps rows if the option does not say it.
const defaultLogTTL = 24 * time.Hour

// readOptions reads the option as ScyllaDB keeps it.
func readOptions(raw map[string]string) (o cdcOptions, err error) {
	if raw == nil {
		return o, nil
	}
	o = cdcOptions{enabled: raw["enabled"] == "true", keysOnly: raw["delta"] == "keys",
		preimage: cmp.Or(raw["preimage"], "false"), postimage: raw["postimage"] == "true", ttl: defaultLogTTL}
	if text, ok := raw["ttl"]; ok {
		seconds, err := strconv.ParseInt(text, 10, 32)
		if err != nil || seconds < 0 {
			return o, fmt.Errorf("scylla: the ttl %q of a log is no number of seconds", text)
		}
		o.ttl = time.Duration(seconds) * time.Second
	}
	return o, nil
}

// captureTable describes a table by what the server has of it now. If there is
// none it is a not_found error.
func (b *Backend) captureTable(ctx context.Context, name driver.TableName) (*captureTable, error) {
	meta, err := b.tableMeta(ctx, name.Schema, name.Table)
	if err != nil {
		return nil, err
	}
	m, err := newCaptureTable(name, meta)
	if err != nil {
		return nil, err
	}
	m.again = func(ctx context.Context, stream []byte, at gocql.UUID, columns []string) ([]logRow, error) {
		return b.logRows(ctx, name, stream, at, columns)
	}
	return m, nil
}

func newCaptureTable(name driver.TableName, meta *tableMeta) (m *captureTable, err error) {
	m = &captureTable{name: name}
	if m.options, err = meta.logOptions(); err != nil {
		return nil, err
	}
	for _, c := range meta.columns {
		kind, ok := columnKinds[c.kind]
		if !ok {
			return nil, fmt.Errorf("scylla: the column %s of %s is of the kind %q, which is not known", c.name, name, c.kind)
		}
		b := captureColumn{
			Column: cdc.Column{Name: c.name, Type: c.text, Key: c.key()}, kind: kind, desc: c.desc,
			json: append(cdc.AppendString(nil, c.name), ':'), log: c.typ,
		}
		m.problem = cmp.Or(m.problem, unreadable(c))
		if c.multiCell() {
			switch c.typ.Type() {
			case gocql.TypeList:
				b.form = listForm
				b.log = gocql.NewCollectionType(gocql.NewNativeType(protocol, gocql.TypeMap),
					gocql.NewNativeType(protocol, gocql.TypeTimeUUID), c.typ.(gocql.CollectionType).Elem)
			case gocql.TypeSet:
				b.form = setForm
			case gocql.TypeMap:
				b.form = mapForm
			case gocql.TypeUDT:
				b.form = udtForm
			}
		}
		m.base = append(m.base, b)
	}
	return m, nil
}

// isUnknownTable reports whether a statement named a table, or a column of it,
// that the server does not have.
func isUnknownTable(err error) bool {
	return isCode(err, gocql.ErrCodeInvalid)
}

// againTimeout bounds the reading of one batch.
const againTimeout = 30 * time.Second

// logRows reads the rows of one batch of the log: number, operation and the given
// columns, as wireValues.
func (b *Backend) logRows(ctx context.Context, name driver.TableName, stream []byte, at gocql.UUID, columns []string) (rows []logRow, err error) {
	ctx, cancel := context.WithTimeout(ctx, againTimeout)
	defer cancel()
	names := []string{quoteName(columnSeq), quoteName(columnOperation)}
	for _, c := range columns {
		names = append(names, quoteName(c))
	}
	iter := b.session.Query(fmt.Sprintf(`SELECT %s FROM %s.%s WHERE %s = ? AND %s = ?`, strings.Join(names, ", "),
		quoteName(name.Schema), quoteName(name.Table+logSuffix), quoteName(columnStream), quoteName(columnTime)),
		stream, at).Idempotent(true).WithContext(ctx).Iter()
	var seq int32
	var op int8
	dest := []any{&seq, &op}
	infos := iter.Columns()
	var cells []*wireCell
	for i := 2; i < len(infos); i++ {
		n := 1
		if t, ok := infos[i].TypeInfo.(gocql.TupleTypeInfo); ok {
			n = len(t.Elems) // gocql scans them one by one
		}
		for range n {
			cells = append(cells, new(wireCell))
			dest = append(dest, cells[len(cells)-1])
		}
	}
	for iter.Scan(dest...) {
		r := logRow{op: scyllacdc.OperationType(op), seq: seq}
		rest := cells
		for i := 2; i < len(infos); i++ {
			v := rest[0].value
			if t, ok := infos[i].TypeInfo.(gocql.TupleTypeInfo); ok {
				v = wireValue{}
				for _, e := range rest[:len(t.Elems)] {
					if v, err = appendElement(v, nil, e.value); err != nil {
						return nil, err
					}
				}
				rest = rest[len(t.Elems)-1:]
			}
			r.values, rest = append(r.values, v), rest[1:]
		}
		rows = append(rows, r)
	}
	return rows, iter.Close()
}

// wireCell takes a value as it is on the wire.
type wireCell struct{ value wireValue }

func (w *wireCell) UnmarshalCQL(_ gocql.TypeInfo, data []byte) error {
	if w.value = nil; data != nil {
		w.value = append(wireValue{}, data...)
	}
	return nil
}

func (m *captureTable) ttl() time.Duration { return m.options.ttl }

// readable fails if the log has, or may come to have, rows that would end the
// process when scylla-cdc-go reads them, or that it would try to read for ever. It
// has to be asked before a reader starts, and again when the table was altered.
func (m *captureTable) readable() error {
	if m.problem == "" {
		return nil
	}
	return athena.Errorf(athena.CodeInvalidRequest, "the log of %s cannot be read: %s; take the table out of the capture, or drop the column", m.name, m.problem).With("table", m.name.String())
}

// columns describes the table for its schema change.
func (m *captureTable) columns() []cdc.Column {
	list := make([]cdc.Column, len(m.base))
	for i, c := range m.base {
		list[i] = c.Column
	}
	return list
}

// A logLayout says where the rows of a log have what.
type logLayout struct {
	columns []gocql.ColumnInfo // of the rows, those of the log itself too
	base    []logColumn        // by captureTable.base
	// known says that these are the columns that the table had when it was described.
	known bool
}

// logColumn is where a log row has one column of the base table. An index is -1
// where it has no such column.
type logColumn struct {
	value, deleted, elements int
	form                     logForm // as captureColumn has it
}

const (
	metaPrefix      = "cdc$"
	deletedPrefix   = "cdc$deleted_"
	elementsPrefix  = "cdc$deleted_elements_"
	logSuffix       = "_scylla_cdc_log"
	columnStream    = "cdc$stream_id"
	columnTime      = "cdc$time"
	columnSeq       = "cdc$batch_seq_no"
	columnOperation = "cdc$operation"
	columnTTL       = "cdc$ttl"
)

// layoutOf finds the layout of rows with these columns. All rows of a page share
// the slice, and most pages have the same columns.
func (m *captureTable) layoutOf(columns []gocql.ColumnInfo) *logLayout {
	last := m.layout.Load()
	if last != nil && sameColumns(last.columns, columns) {
		return last
	}
	l := m.newLayout(columns)
	m.layout.Store(l)
	return l
}

func (m *captureTable) newLayout(columns []gocql.ColumnInfo) *logLayout {
	l := &logLayout{columns: columns, known: true}
	at := make(map[string]int, len(columns))
	data := 0
	for i, c := range columns {
		at[c.Name] = i
		if !strings.HasPrefix(c.Name, metaPrefix) {
			data++
		}
	}
	index := func(name string) int {
		if i, ok := at[name]; ok {
			return i
		}
		return -1
	}
	for _, b := range m.base {
		c := logColumn{value: index(b.Name), deleted: index(deletedPrefix + b.Name), elements: index(elementsPrefix + b.Name), form: b.form}
		l.known = l.known && c.value >= 0 && sameType(columns[c.value].TypeInfo, b.log) &&
			(b.kind <= clusteringKey || c.deleted >= 0) && (c.elements >= 0) == (b.form != atomicForm)
		l.base = append(l.base, c)
	}
	if data != len(m.base) {
		l.known = false
	}
	return l
}

// sameColumns compares names and types.
func sameColumns(a, b []gocql.ColumnInfo) bool {
	if len(a) != len(b) {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] {
		return true
	}
	return slices.EqualFunc(a, b, func(a, b gocql.ColumnInfo) bool {
		return a.Name == b.Name && sameType(a.TypeInfo, b.TypeInfo)
	})
}

func sameType(a, b gocql.TypeInfo) bool {
	if a.Type() != b.Type() {
		return false
	}
	switch a := a.(type) {
	case gocql.CollectionType:
		b, ok := b.(gocql.CollectionType)
		return ok && (a.Key == nil) == (b.Key == nil) && (a.Key == nil || sameType(a.Key, b.Key)) && sameType(a.Elem, b.Elem)
	case gocql.TupleTypeInfo:
		b, ok := b.(gocql.TupleTypeInfo)
		return ok && slices.EqualFunc(a.Elems, b.Elems, sameType)
	case gocql.UDTTypeInfo:
		b, ok := b.(gocql.UDTTypeInfo)
		return ok && a.KeySpace == b.KeySpace && a.Name == b.Name && slices.EqualFunc(a.Elements, b.Elements, func(a, b gocql.UDTField) bool {
			return a.Name == b.Name && sameType(a.Type, b.Type)
		})
	case gocql.VectorType:
		b, ok := b.(gocql.VectorType)
		return ok && a.Dimensions == b.Dimensions && sameType(a.SubType, b.SubType)
	}
	return a.Custom() == b.Custom()
}

// anyRow returns a row of the change; nil if it has none.
func anyRow(c *scyllacdc.Change) *scyllacdc.ChangeRow {
	for _, rows := range [][]*scyllacdc.ChangeRow{c.Delta, c.PreImage, c.PostImage} {
		if len(rows) > 0 {
			return rows[0]
		}
	}
	return nil
}
