package scylla

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// The kinds of columns, as system_schema has them.
const (
	kindPartitionKey = "partition_key"
	kindClustering   = "clustering"
	kindStatic       = "static"
	kindRegular      = "regular"
)

// tableMeta is what system_schema says of a table or materialized view.
type tableMeta struct {
	keyspace, name string
	id             gocql.UUID
	// columns are in the order of SELECT *: the partition key, the clustering
	// columns, then the others by name.
	columns []tableColumn
	// view says that it is a materialized view; counter that it is a table of
	// counters.
	view, counter bool
	// cdc are the options of the change log, if the table has ever had one:
	// enabled, delta, preimage, postimage, ttl. If they are there and cannot be read
	// cdcErr says so: that matters only to those who capture.
	cdc    map[string]string
	cdcErr error
	// ttl is the table's default_time_to_live in seconds.
	ttl     int
	comment string
}

type tableColumn struct {
	name string
	kind string
	// position counts from 0 within the partition key and within the clustering
	// columns; of others it is -1.
	position int
	desc     bool   // of a clustering column: its order is descending
	text     string // the type as CQL has it, with frozen
	typ      gocql.TypeInfo
}

// multiCell says that the parts of the value are written one by one: a collection
// or user-defined type that is not frozen.
func (c tableColumn) multiCell() bool {
	switch c.typ.Type() {
	case gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeUDT:
		return !strings.HasPrefix(c.text, "frozen<")
	}
	return false
}

// doubles reports whether a value that is written again at the same time does not take
// the place of itself: what a list held before ends just before that time, and its
// elements have new keys in each write. Of sets, maps and user-defined types the keys
// are the values' own.
func (c tableColumn) doubles() bool { return c.typ.Type() == gocql.TypeList && c.multiCell() }

// key reports whether the column is of the primary key.
func (c tableColumn) key() bool { return c.kind == kindPartitionKey || c.kind == kindClustering }

func (c tableColumn) rank() int {
	switch c.kind {
	case kindPartitionKey:
		return 0
	case kindClustering:
		return 1
	}
	return 2
}

// tableMeta reads what there is of a table; an empty keyspace is that of the
// connection. A table that does not exist is a not_found error.
func (b *Backend) tableMeta(ctx context.Context, keyspace, table string) (*tableMeta, error) {
	if keyspace == "" {
		keyspace = b.conn.Keyspace
	}
	m := &tableMeta{keyspace: keyspace, name: table}
	found, err := b.readTable(ctx, m)
	if err == nil && !found {
		found, err = b.readView(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, noTable(keyspace, table)
	}
	types, err := b.userTypes(ctx, keyspace)
	if err != nil {
		return nil, err
	}
	return m, b.readColumns(ctx, m, typeParser{keyspace, types})
}

func noTable(keyspace, table string) error {
	name := table
	if keyspace != "" {
		name = keyspace + "." + table
	}
	if len(name) > 130 {
		name = name[:130] + "…"
	}
	if keyspace == "public" { // what a name without one stands for elsewhere
		return athena.Errorf(athena.CodeNotFound, "there is no table %q; name it as keyspace.table", name)
	}
	return athena.Errorf(athena.CodeNotFound, "there is no table %q", name)
}

// catalog runs a query of our own and calls row for each row, which is scanned
// into dest.
func (b *Backend) catalog(ctx context.Context, cql string, args, dest []any, row func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	iter := b.session.Query(cql, args...).WithContext(ctx).Idempotent(true).Consistency(b.catalogConsistency()).Iter()
	for iter.Scan(dest...) {
		if err := row(); err != nil {
			iter.Close()
			return err
		}
	}
	if err := iter.Close(); err != nil {
		return readError(err)
	}
	return nil
}

// catalogConsistency is for tables that every node has a copy of.
func (b *Backend) catalogConsistency() gocql.Consistency {
	if b.conn.Datacenter != "" {
		return gocql.LocalOne
	}
	return gocql.One
}

func (b *Backend) readTable(ctx context.Context, m *tableMeta) (found bool, err error) {
	var extensions map[string][]byte
	var flags []string
	err = b.catalog(ctx, `SELECT id, comment, default_time_to_live, extensions, flags FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?`,
		[]any{m.keyspace, m.name}, []any{&m.id, &m.comment, &m.ttl, &extensions, &flags}, func() error {
			found = true
			if raw, ok := extensions["cdc"]; ok {
				if m.cdc, ok = decodeOptions(raw); !ok {
					m.cdcErr = fmt.Errorf("scylla: the extension cdc of the table %s.%s has a form that is not known", m.keyspace, m.name)
				}
			}
			m.counter = slices.Contains(flags, "counter")
			return nil
		})
	return found, err
}

func (b *Backend) readView(ctx context.Context, m *tableMeta) (found bool, err error) {
	err = b.catalog(ctx, `SELECT id, comment, default_time_to_live FROM system_schema.views WHERE keyspace_name = ? AND view_name = ?`,
		[]any{m.keyspace, m.name}, []any{&m.id, &m.comment, &m.ttl}, func() error {
			found, m.view = true, true
			return nil
		})
	return found, err
}

// logOptions reads the options of the change log.
func (m *tableMeta) logOptions() (cdcOptions, error) {
	if m.cdcErr != nil {
		return cdcOptions{}, m.cdcErr
	}
	return readOptions(m.cdc)
}

// decodeOptions reads a map as ScyllaDB writes it into an extension: numbers have
// their lowest byte first.
func decodeOptions(raw []byte) (map[string]string, bool) {
	number := func() (int, bool) {
		if len(raw) < 4 {
			return 0, false
		}
		n := binary.LittleEndian.Uint32(raw)
		raw = raw[4:]
		return int(n), true
	}
	text := func() (string, bool) {
		n, ok := number()
		if !ok || n > len(raw) {
			return "", false
		}
		s := string(raw[:n])
		raw = raw[n:]
		return s, true
	}
	n, ok := number()
	if !ok || n > len(raw) {
		return nil, false
	}
	options := make(map[string]string)
	for range n {
		key, ok1 := text()
		value, ok2 := text()
		if !ok1 || !ok2 {
			return nil, false
		}
		options[key] = value
	}
	return options, len(raw) == 0
}

// userTypes reads the types that a keyspace has.
func (b *Backend) userTypes(ctx context.Context, keyspace string) (map[string]userType, error) {
	list := map[string]userType{}
	var name string
	var t userType
	err := b.catalog(ctx, `SELECT type_name, field_names, field_types FROM system_schema.types WHERE keyspace_name = ?`,
		[]any{keyspace}, []any{&name, &t.fields, &t.types}, func() error {
			if len(t.fields) != len(t.types) {
				return fmt.Errorf("scylla: the type %s has %d fields and %d types", name, len(t.fields), len(t.types))
			}
			list[name] = t
			t = userType{} // gocql would write into the slices again
			return nil
		})
	return list, err
}

func (b *Backend) readColumns(ctx context.Context, m *tableMeta, types typeParser) error {
	var c tableColumn
	var order string
	err := b.catalog(ctx, `SELECT column_name, kind, position, clustering_order, type FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ?`,
		[]any{m.keyspace, m.name}, []any{&c.name, &c.kind, &c.position, &order, &c.text}, func() (err error) {
			c.desc = strings.EqualFold(order, "desc")
			if c.typ, err = types.parse(c.text); err != nil {
				return err
			}
			m.counter = m.counter || c.typ.Type() == gocql.TypeCounter
			m.columns = append(m.columns, c)
			return nil
		})
	slices.SortFunc(m.columns, func(a, b tableColumn) int {
		return cmp.Or(a.rank()-b.rank(), a.position-b.position, strings.Compare(a.name, b.name))
	})
	return err
}
