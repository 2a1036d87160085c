package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// notOurs leaves out the server's own schemas.
const notOurs = `n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp\_%'`

// Schemas lists all schemas but the server's own.
func (b *Backend) Schemas(ctx context.Context) ([]driver.Schema, error) {
	list := []driver.Schema{}
	_, err := b.catalog(ctx, `
		SELECT n.nspname, pg_get_userbyid(n.nspowner), coalesce(obj_description(n.oid, 'pg_namespace'), '')
		FROM pg_catalog.pg_namespace n WHERE `+notOurs+` ORDER BY 1`, nil,
		func(rows pgx.Rows) error {
			var s driver.Schema
			err := rows.Scan(&s.Name, &s.Owner, &s.Comment)
			list = append(list, s)
			return err
		})
	return list, err
}

// Tables lists tables and views.
func (b *Backend) Tables(ctx context.Context, schema string) ([]driver.Table, error) {
	list := []driver.Table{}
	_, err := b.catalog(ctx, `
		SELECT n.nspname, c.relname,
		       CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned_table' WHEN 'v' THEN 'view'
		                      WHEN 'm' THEN 'materialized_view' ELSE 'foreign_table' END,
		       CASE WHEN c.relkind = 'v' THEN -1 ELSE c.reltuples END::bigint,
		       coalesce(obj_description(c.oid, 'pg_class'), '')
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND CASE WHEN $1 = '' THEN `+notOurs+` ELSE n.nspname = $1 END
		ORDER BY 1, 2`, []any{schema},
		func(rows pgx.Rows) error {
			var t driver.Table
			err := rows.Scan(&t.Schema, &t.Name, &t.Kind, &t.EstimatedRows, &t.Comment)
			list = append(list, t)
			return err
		})
	return list, err
}

// table returns the OID of a table or view. An empty schema stands for the
// search path.
func (b *Backend) table(ctx context.Context, schema, table string) (oid uint32, err error) {
	n, err := b.catalog(ctx, `
		SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		  AND CASE WHEN $1 = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = $1 END`, []any{schema, table},
		func(rows pgx.Rows) error { return rows.Scan(&oid) })
	if err == nil && n == 0 {
		err = noTable(schema, table)
	}
	return oid, err
}

func noTable(schema, table string) error {
	name := table
	if schema != "" {
		name = schema + "." + table
	}
	if len(name) > 130 {
		name = name[:130] + "…"
	}
	return athena.Errorf(athena.CodeNotFound, "there is no table %q", name)
}

// Columns describes a table's columns in their order.
func (b *Backend) Columns(ctx context.Context, schema, table string) ([]driver.ColumnInfo, error) {
	oid, err := b.table(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	list := []driver.ColumnInfo{}
	_, err = b.catalog(ctx, `
		SELECT a.attname, row_number() OVER (ORDER BY a.attnum)::int, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
		       CASE WHEN a.attgenerated = '' THEN coalesce(pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END,
		       CASE WHEN a.attgenerated = 's' THEN 'stored' WHEN a.attgenerated = 'v' THEN 'virtual'
		            WHEN a.attidentity = 'a' THEN 'identity_always' WHEN a.attidentity = 'd' THEN 'identity_by_default' ELSE '' END,
		       coalesce(array_position(k.conkey, a.attnum), 0)::int,
		       coalesce(col_description(a.attrelid, a.attnum), '')
		FROM pg_catalog.pg_attribute a
		LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = a.attrelid AND k.contype = 'p'
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY a.attnum`, []any{oid},
		func(rows pgx.Rows) error {
			var c driver.ColumnInfo
			err := rows.Scan(&c.Name, &c.Position, &c.Type, &c.Nullable, &c.Default, &c.Generated, &c.PrimaryKey, &c.Comment)
			list = append(list, c)
			return err
		})
	return list, err
}

// Constraints lists a table's constraints, the primary key first.
func (b *Backend) Constraints(ctx context.Context, schema, table string) ([]driver.Constraint, error) {
	oid, err := b.table(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	list := []driver.Constraint{}
	_, err = b.catalog(ctx, `
		SELECT c.conname,
		       CASE c.contype WHEN 'p' THEN 'primary_key' WHEN 'u' THEN 'unique' WHEN 'f' THEN 'foreign_key'
		                      WHEN 'c' THEN 'check' ELSE 'exclusion' END,
		       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k (num, n)
		             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num ORDER BY k.n),
		       pg_get_constraintdef(c.oid), coalesce(rn.nspname, ''), coalesce(r.relname, ''),
		       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k (num, n)
		             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.num ORDER BY k.n)
		FROM pg_catalog.pg_constraint c
		LEFT JOIN pg_catalog.pg_class r ON c.contype = 'f' AND r.oid = c.confrelid
		LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
		WHERE c.conrelid = $1 AND c.contype IN ('p', 'u', 'f', 'c', 'x')
		ORDER BY position(c.contype::text IN 'pufcx'), 1`, []any{oid},
		func(rows pgx.Rows) error {
			var c driver.Constraint
			var ref driver.Reference
			err := rows.Scan(&c.Name, &c.Kind, &c.Columns, &c.Definition, &ref.Schema, &ref.Table, &ref.Columns)
			if ref.Table != "" {
				c.References = &ref
			}
			list = append(list, c)
			return err
		})
	return list, err
}

// Indexes lists a table's indexes, that of the primary key first.
func (b *Backend) Indexes(ctx context.Context, schema, table string) ([]driver.Index, error) {
	oid, err := b.table(ctx, schema, table)
	if err != nil {
		return nil, err
	}
	list := []driver.Index{}
	_, err = b.catalog(ctx, `
		SELECT c.relname, m.amname, i.indisunique, i.indisprimary,
		       ARRAY(SELECT coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, n, true))
		             FROM generate_series(1, i.indnkeyatts) AS n
		             LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n - 1] AND a.attnum <> 0
		             ORDER BY n),
		       pg_get_indexdef(i.indexrelid)
		FROM pg_catalog.pg_index i
		JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
		JOIN pg_catalog.pg_am m ON m.oid = c.relam
		WHERE i.indrelid = $1
		ORDER BY i.indisprimary DESC, 1`, []any{oid},
		func(rows pgx.Rows) error {
			var x driver.Index
			err := rows.Scan(&x.Name, &x.Method, &x.Unique, &x.Primary, &x.Columns, &x.Definition)
			list = append(list, x)
			return err
		})
	return list, err
}
