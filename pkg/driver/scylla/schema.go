package scylla

import (
	"context"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// internal reports whether a keyspace is the cluster's own.
func internal(keyspace string) bool {
	return keyspace == "system" || strings.HasPrefix(keyspace, "system_")
}

// Schemas lists all keyspaces but the cluster's own.
func (b *Backend) Schemas(ctx context.Context) ([]driver.Schema, error) {
	list := []driver.Schema{}
	var s driver.Schema
	err := b.catalog(ctx, `SELECT keyspace_name FROM system_schema.keyspaces`, nil, []any{&s.Name}, func() error {
		if !internal(s.Name) {
			list = append(list, s)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b driver.Schema) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// Tables lists tables and materialized views.
func (b *Backend) Tables(ctx context.Context, schema string) ([]driver.Table, error) {
	list := []driver.Table{}
	for _, from := range []struct{ kind, cql string }{
		{"table", `SELECT keyspace_name, table_name, comment FROM system_schema.tables`},
		{"materialized_view", `SELECT keyspace_name, view_name, comment FROM system_schema.views`},
	} {
		cql, args := from.cql, []any(nil)
		if schema != "" {
			cql, args = cql+` WHERE keyspace_name = ?`, []any{schema}
		}
		t := driver.Table{Kind: from.kind, EstimatedRows: -1}
		err := b.catalog(ctx, cql, args, []any{&t.Schema, &t.Name, &t.Comment}, func() error {
			if schema != "" || !internal(t.Schema) {
				list = append(list, t)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b driver.Table) int {
		return strings.Compare(a.Schema+"\x00"+a.Name, b.Schema+"\x00"+b.Name)
	})
	return list, nil
}

// Columns describes a table's columns in the order of SELECT *.
func (b *Backend) Columns(ctx context.Context, schema, table string) ([]driver.ColumnInfo, error) {
	m, err := b.tableMeta(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	list := make([]driver.ColumnInfo, len(m.columns))
	for i, c := range m.columns {
		info := driver.ColumnInfo{Name: c.name, Position: i + 1, Type: c.text, Nullable: !c.key(), Kind: c.kind, UserTypes: createTypes(c.typ, m.keyspace)}
		if c.key() {
			info.PrimaryKey = i + 1 // the key comes first
		}
		if c.kind == kindClustering {
			info.Order = "asc"
			if c.desc {
				info.Order = "desc"
			}
		}
		list[i] = info
	}
	return list, nil
}

// keyName names the primary key, which has no name of its own.
const keyName = "PRIMARY KEY"

// Constraints has the primary key: there are no others.
func (b *Backend) Constraints(ctx context.Context, schema, table string) ([]driver.Constraint, error) {
	m, err := b.tableMeta(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	return []driver.Constraint{{Name: keyName, Kind: "primary_key", Columns: m.key(), Definition: m.keyDefinition()}}, nil
}

// key names the columns of the primary key.
func (m *tableMeta) key() []string {
	names := []string{}
	for _, c := range m.columns {
		if c.key() {
			names = append(names, c.name)
		}
	}
	return names
}

// keyDefinition is PRIMARY KEY ((a, b), c) WITH CLUSTERING ORDER BY (c DESC), the
// latter where the order is not the usual one.
func (m *tableMeta) keyDefinition() string {
	var partition, rest, order []string
	desc := false
	for _, c := range m.columns {
		name := nameText(c.name)
		switch c.kind {
		case kindPartitionKey:
			partition = append(partition, name)
		case kindClustering:
			rest = append(rest, name)
			direction := " ASC"
			if c.desc {
				desc, direction = true, " DESC"
			}
			order = append(order, name+direction)
		}
	}
	text := strings.Join(partition, ", ")
	if len(partition) > 1 {
		text = "(" + text + ")"
	}
	text = keyName + " (" + strings.Join(append([]string{text}, rest...), ", ") + ")"
	if desc {
		text += " WITH CLUSTERING ORDER BY (" + strings.Join(order, ", ") + ")"
	}
	return text
}

// Indexes lists the primary key and the secondary indexes.
func (b *Backend) Indexes(ctx context.Context, schema, table string) ([]driver.Index, error) {
	m, err := b.tableMeta(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	list := []driver.Index{{Name: keyName, Method: "primary_key", Unique: true, Primary: true, Columns: m.key(), Definition: m.keyDefinition()}}
	var name, kind string
	var options map[string]string
	err = b.catalog(ctx, `SELECT index_name, kind, options FROM system_schema.indexes WHERE keyspace_name = ? AND table_name = ?`,
		[]any{m.keyspace, m.name}, []any{&name, &kind, &options}, func() error {
			list = append(list, m.index(name, kind, options))
			options = nil
			return nil
		})
	return list, err
}

// index describes a secondary index. What it is on is told as the engine tells it:
// a column, values(m), or ScyllaDB's JSON of the key of a local index.
func (m *tableMeta) index(name, kind string, options map[string]string) driver.Index {
	target, class := options["target"], options["class_name"]
	x := driver.Index{Name: name, Method: strings.ToLower(kind), Columns: []string{target}}
	create, using := "CREATE INDEX ", ""
	if strings.EqualFold(kind, "CUSTOM") {
		x.Method = class
		create, using = "CREATE CUSTOM INDEX ", " USING '"+strings.ReplaceAll(class, "'", "''")+"'"
	}
	on := target
	if slices.ContainsFunc(m.columns, func(c tableColumn) bool { return c.name == target }) {
		on = nameText(target)
	}
	x.Definition = create + nameText(name) + " ON " + nameText(m.keyspace) + "." + nameText(m.name) + " (" + on + ")" + using
	return x
}
