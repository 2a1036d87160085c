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
	var where strings.Builder
	var args []any
	static := false
	for _, c := range t.base {
		if c.kind > clusteringKey {
			break
		}
		v, ok := values[c.Name]
		if !ok {
			static = true
			continue
		}
		where.WriteString([...]string{" WHERE ", " AND "}[min(len(args), 1)] + quoteName(c.Name) + " = ")
		args = spreadTuple(&where, args, c.log, param{raw: v})
	}
	names := t.selected(static)
	text := selectFrom(t, quoted(names)) + where.String() + " LIMIT 1"
	rows := newRawRows(b.session.Query(text, args...).WithContext(ctx).Consistency(gocql.LocalQuorum).Idempotent(true).Iter())
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
