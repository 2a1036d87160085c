package scylla

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// selectFrom is a SELECT of columns of a table.
func selectFrom(t *captureTable, columns []string) string {
	return "SELECT " + strings.Join(columns, ", ") + " FROM " + quoteName(t.name.Schema) + "." + quoteName(t.name.Table)
}

// rowNow reads the row with a key as it is now; nil if there is none. A key
// without the clustering columns of its table is that of a partition's static row.
func (b *Backend) rowNow(ctx context.Context, t *captureTable, key json.RawMessage) (json.RawMessage, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(key, &values); err != nil {
		return nil, err
	}
	var c keyConditions
	static := false
	for _, column := range t.base {
		switch _, ok := values[column.Name]; {
		case column.kind > clusteringKey:
		case ok:
			c.add([]captureColumn{column}, "=", values)
		default:
			static = true
		}
	}
	names := t.selected(static)
	text := selectFrom(t, quoted(names)) + c.text.String() + " LIMIT 1"
	rows := newRawRows(b.session.Query(text, c.args...).WithContext(ctx).Idempotent(true).Iter())
	if !rows.next() {
		return nil, rows.close()
	}
	after := []byte{'{'}
	some := false
	var err error
	for i, name := range names {
		if i > 0 {
			after = append(after, ',')
		}
		after = append(cdc.AppendString(after, name), ':')
		if after, err = appendValue(after, rows.types[i], rows.raw[i].data); err != nil {
			return nil, err
		}
		some = some || rows.raw[i].data != nil && !slices.ContainsFunc(t.base, func(c captureColumn) bool { return c.Name == name && c.kind <= clusteringKey })
	}
	if err := rows.close(); err != nil {
		return nil, err
	}
	if static && !some {
		return nil, nil
	}
	return append(after, '}'), nil
}

// rowsNow hands over the rows of a partition as they are now, of all of it or of a
// range.
func (b *Backend) rowsNow(ctx context.Context, t *captureTable, key, within json.RawMessage, row func(key, after []byte) error) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(key, &values); err != nil {
		return err
	}
	var bounds struct{ From, To *keyBound }
	if len(within) > 0 {
		if err := json.Unmarshal(within, &bounds); err != nil {
			return err
		}
	}
	c := keyConditions{}
	var clustering []captureColumn
	for _, column := range t.base {
		switch column.kind {
		case partitionKey:
			c.add([]captureColumn{column}, "=", values)
		case clusteringKey:
			clustering = append(clustering, column)
		}
	}
	// What both bounds say is a condition of its own: a row of columns compares only
	// where all of them are in one order.
	common := 0
	for bounds.From != nil && bounds.To != nil && common < len(clustering)-1 {
		name := clustering[common].Name
		from, to := bounds.From.Key[name], bounds.To.Key[name]
		if from == nil || string(from) != string(to) || bounds.From.Key[clustering[common+1].Name] == nil && bounds.To.Key[clustering[common+1].Name] == nil {
			break
		}
		c.add(clustering[common:common+1], "=", bounds.From.Key)
		common++
	}
	c.bound(clustering[common:], bounds.From, ">")
	c.bound(clustering[common:], bounds.To, "<")
	f := newRowForm(t, 0)
	return f.read(b.session.Query(f.selectAll()+c.text.String(), c.args...).WithContext(ctx).Idempotent(true).Iter(), row)
}

// A keyBound is one end of a range, as changes have it.
type keyBound struct {
	Key       map[string]json.RawMessage
	Inclusive bool
}

// keyConditions are those of a SELECT by key.
type keyConditions struct {
	text strings.Builder
	args []any
}

// add adds that columns have values, or come before or behind them.
func (c *keyConditions) add(columns []captureColumn, relation string, values map[string]json.RawMessage) {
	c.text.WriteString([...]string{" WHERE ", " AND "}[min(c.text.Len(), 1)])
	names := make([]string, len(columns))
	for i, column := range columns {
		names[i] = quoteName(column.Name)
	}
	if len(columns) == 1 {
		c.text.WriteString(names[0] + " " + relation + " ")
		c.args = spreadTuple(&c.text, c.args, columns[0].log, param{raw: values[columns[0].Name]})
		return
	}
	c.text.WriteString("(" + strings.Join(names, ", ") + ") " + relation + " (")
	for i, column := range columns {
		if i > 0 {
			c.text.WriteString(", ")
		}
		c.args = spreadTuple(&c.text, c.args, column.log, param{raw: values[column.Name]})
	}
	c.text.WriteString(")")
}

func (c *keyConditions) bound(columns []captureColumn, b *keyBound, relation string) {
	if b == nil {
		return
	}
	n := 0
	for n < len(columns) && b.Key[columns[n].Name] != nil {
		n++
	}
	if n == 0 {
		return
	}
	if b.Inclusive {
		relation += "="
	}
	c.add(columns[:n], relation, b.Key)
}

// selected are the columns of a row, or of a partition's static row.
func (m *captureTable) selected(static bool) (names []string) {
	for _, c := range m.base {
		switch {
		case c.kind == partitionKey,
			c.kind == clusteringKey && !static, c.kind == regularColumn && !static,
			c.kind == staticColumn && static:
			names = append(names, c.Name)
		}
	}
	return names
}

func quoted(names []string) []string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = quoteName(n)
	}
	return list
}

// rawRows reads rows as they are on the wire.
type rawRows struct {
	iter  *gocql.Iter
	types []gocql.TypeInfo
	raw   []rawValue
	dest  []any
}

func newRawRows(iter *gocql.Iter) *rawRows {
	r := &rawRows{iter: iter}
	columns := iter.Columns()
	wide := 0
	for _, c := range columns {
		r.types = append(r.types, c.TypeInfo)
		if tuple, ok := c.TypeInfo.(gocql.TupleTypeInfo); ok {
			wide += len(tuple.Elems) - 1
		}
	}
	r.raw = make([]rawValue, len(columns))
	r.dest = make([]any, max(0, len(columns)+wide))
	for i := range r.raw {
		r.dest[i] = &r.raw[i]
	}
	plainTuples(columns)
	return r
}

func (r *rawRows) next() bool { return len(r.raw) > 0 && r.iter.Scan(r.dest...) }

func (r *rawRows) close() error { return r.iter.Close() }
