package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A shape is what the catalog says of a table or view.
type shape struct {
	name driver.TableName
	oid  uint32
	kind string // as in driver.Table
	// rows and bytes are over all leaves of a partitioned table; rows is -1 where
	// the server never counted.
	rows, bytes int64
	blocks      int64 // of the rows themselves, without what is stored beside them
	// inherited says that there are children which are no partitions, so that the
	// key does not tell rows apart.
	inherited bool
	// truncates says that TRUNCATE may be used: we may, nothing references the
	// table, and nothing is checked at the end of a transaction only.
	truncates bool
	secured   bool // row security holds for us
	columns   []shapeColumn
	// key is that of the primary key, or of another unique index without nulls.
	key []string
}

// A shapeColumn is one column. Of a domain the type is its base.
type shapeColumn struct {
	name      string
	oid       uint32
	typmod    int32
	native    string // the declared type's name
	notNull   bool
	generated string // s: stored, v: virtual
	identity  string // a: always, d: by default
	defaults  bool   // there is a default
	loose     bool   // its collation takes different texts for equal ones
	enum      []string
	typ       *typ
}

// column finds a column by its name.
func (r *shape) column(name string) *shapeColumn {
	for i := range r.columns {
		if r.columns[i].name == name {
			return &r.columns[i]
		}
	}
	return nil
}

const shapeQuery = `
WITH leaf AS (
	SELECT l.relid FROM pg_catalog.pg_partition_tree($1) l WHERE l.isleaf
	UNION SELECT $1::oid)
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned_table' WHEN 'v' THEN 'view'
                      WHEN 'm' THEN 'materialized_view' ELSE 'foreign_table' END,
       (SELECT coalesce(sum(l.reltuples) FILTER (WHERE l.reltuples >= 0), -1)::bigint
        FROM leaf JOIN pg_catalog.pg_class l ON l.oid = leaf.relid WHERE l.relkind IN ('r', 'm')),
       (SELECT coalesce(sum(pg_catalog.pg_table_size(l.oid)), -1)::bigint
        FROM leaf JOIN pg_catalog.pg_class l ON l.oid = leaf.relid WHERE l.relkind IN ('r', 'm')),
       (SELECT coalesce(sum(pg_catalog.pg_relation_size(l.oid)) / current_setting('block_size')::bigint, 0)::bigint
        FROM leaf JOIN pg_catalog.pg_class l ON l.oid = leaf.relid WHERE l.relkind IN ('r', 'm')),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
       ARRAY(SELECT a.attname::text
             FROM (SELECT i.indkey[0:i.indnkeyatts - 1] AS columns FROM pg_catalog.pg_index i
                   WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                     AND (i.indisprimary OR i.indimmediate AND NOT EXISTS (
                          SELECT FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (num)
                          JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = k.num WHERE NOT a.attnotnull))
                   ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indexrelid LIMIT 1) k,
                  unnest(k.columns) WITH ORDINALITY AS u (num, n)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = u.num ORDER BY u.n),
       c.relkind IN ('r', 'p') AND pg_catalog.has_table_privilege(c.oid, 'TRUNCATE')
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.confrelid = c.oid AND k.conrelid <> c.oid AND k.contype = 'f')
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND g.tginitdeferred),
       row_security_active(c.oid)
FROM pg_catalog.pg_class c WHERE c.oid = $1`

const shapeColumnsQuery = `
WITH RECURSIVE base AS (
	SELECT a.attnum, a.atttypid AS typ, a.atttypmod AS typmod, a.attnotnull AS filled, 0 AS depth
	FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
	UNION ALL
	SELECT b.attnum, t.typbasetype, t.typtypmod, b.filled OR t.typnotnull, b.depth + 1
	FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ WHERE t.typtype = 'd')
SELECT a.attname, b.typ, b.typmod, pg_catalog.format_type(a.atttypid, a.atttypmod), b.filled, a.attgenerated::text, a.attidentity::text,
       a.atthasdef AND a.attgenerated = '',
       EXISTS (SELECT FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic),
       ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = b.typ ORDER BY e.enumsortorder)
FROM (SELECT DISTINCT ON (attnum) * FROM base ORDER BY attnum, depth DESC) b
JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = b.attnum
ORDER BY a.attnum`

// shape describes a table or view on a connection, types loaded.
func (b *Backend) shape(ctx context.Context, conn *pgx.Conn, name driver.TableName) (*shape, error) {
	r := &shape{name: name}
	query := on(conn)
	n, err := query(ctx, `SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`, []any{name.Schema, name.Table},
		func(rows pgx.Rows) error { return rows.Scan(&r.oid) })
	if err == nil && n == 0 {
		err = noTable(name.Schema, name.Table)
	}
	if err != nil {
		return nil, err
	}
	n, err = query(ctx, shapeQuery, []any{r.oid}, func(rows pgx.Rows) error {
		return rows.Scan(&r.kind, &r.rows, &r.bytes, &r.blocks, &r.inherited, &r.key, &r.truncates, &r.secured)
	})
	if err == nil && n == 0 {
		err = noTable(name.Schema, name.Table)
	}
	if err != nil {
		return nil, err
	}
	_, err = query(ctx, shapeColumnsQuery, []any{r.oid}, func(rows pgx.Rows) error {
		var c shapeColumn
		err := rows.Scan(&c.name, &c.oid, &c.typmod, &c.native, &c.notNull, &c.generated, &c.identity, &c.defaults, &c.loose, &c.enum)
		r.columns = append(r.columns, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	oids := make([]uint32, len(r.columns))
	for i, c := range r.columns {
		oids[i] = c.oid
	}
	if err := b.types.Load(ctx, conn.PgConn(), oids...); err != nil {
		return nil, err
	}
	for i := range r.columns {
		r.columns[i].typ = b.types.lookup(r.columns[i].oid)
	}
	return r, nil
}

// schema is how the rows of some columns are read; nil is all of them.
func (r *shape) schema(columns []shapeColumn) *record.Schema {
	s := &record.Schema{Columns: make([]record.Column, len(columns))}
	for i, c := range columns {
		s.Columns[i] = record.Column{Name: c.name, Type: recordType(c.typ, c.oid, c.typmod), Native: c.native, Nullable: !c.notNull}
	}
	for _, k := range r.key {
		if s.Index(k) < 0 {
			return s // without all of it rows are not told apart
		}
	}
	if !r.inherited {
		s.Key = r.key
	}
	return s
}

// DescribeTable describes a table or view.
func (b *Backend) DescribeTable(ctx context.Context, t driver.TableName) (driver.TableShape, error) {
	conn, err := b.acquire(ctx)
	if err != nil {
		return driver.TableShape{}, err
	}
	defer release(conn)
	r, err := b.shape(ctx, conn.Conn(), t)
	if err != nil {
		return driver.TableShape{}, err
	}
	return driver.TableShape{Schema: r.schema(r.columns), Kind: r.kind, Rows: r.rows, Bytes: r.bytes}, nil
}

// namesQuery gives types their names as the server writes them, size included.
const namesQuery = `SELECT coalesce(pg_catalog.format_type(t.oid, t.typmod), 'text')
	FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS t (oid, typmod, n) ORDER BY t.n`

// decoderOf makes the decoder of a prepared statement's rows, whose schema is
// made unless it is given: then the rows must have it still.
func (b *Backend) decoderOf(ctx context.Context, conn *pgx.Conn, sd *pgconn.StatementDescription, schema *record.Schema) (*rowDecoder, error) {
	oids, typmods := make([]uint32, len(sd.Fields)), make([]int32, len(sd.Fields))
	for i, f := range sd.Fields {
		oids[i], typmods[i] = f.DataTypeOID, f.TypeModifier
	}
	if err := b.types.Load(ctx, conn.PgConn(), oids...); err != nil {
		return nil, err
	}
	d := &rowDecoder{schema: schema}
	types := make([]record.Type, len(oids))
	for i, c := range newPrepared(sd).columns {
		t := b.types.lookup(oids[i])
		d.columns = append(d.columns, decodedColumn{name: c.Name, oid: oids[i], typ: t})
		types[i] = recordType(t, oids[i], typmods[i])
	}
	if schema != nil {
		for i, c := range schema.Columns { // the table may have been altered since it was described
			if types[i] != c.Type {
				return nil, athena.Errorf(athena.CodeConflict, "column %q was altered while it was read", c.Name)
			}
		}
		return d, nil
	}
	d.schema = &record.Schema{}
	_, err := on(conn)(ctx, namesQuery, []any{oids, typmods}, func(rows pgx.Rows) error {
		i := len(d.schema.Columns)
		c := record.Column{Name: d.columns[i].name, Type: types[i], Nullable: true}
		err := rows.Scan(&c.Native)
		d.schema.Columns = append(d.schema.Columns, c)
		return err
	})
	return d, err
}
