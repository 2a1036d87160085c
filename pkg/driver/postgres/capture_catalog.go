package postgres

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// A queryFunc runs a query of our own and hands each row to scan, as
// Backend.catalog does on the pool.
type queryFunc func(ctx context.Context, sql string, args []any, scan func(pgx.Rows) error) (int, error)

// on is catalog on a connection that the caller has.
func on(conn *pgx.Conn) queryFunc {
	return func(ctx context.Context, sql string, args []any, scan func(pgx.Rows) error) (n int, err error) {
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return 0, err
		}
		defer rows.Close()
		for rows.Next() {
			n++
			if scan != nil {
				if err := scan(rows); err != nil {
					return n, err
				}
			}
		}
		if err := rows.Err(); err != nil && ctx.Err() != nil {
			return n, ctx.Err()
		}
		return n, rows.Err()
	}
}

// dial makes a connection beside the pool, for work that must not wait for the
// pool's other users.
func (b *Backend) dial(ctx context.Context, client string) (*pgx.Conn, error) {
	cfg := b.config.Copy()
	cfg.RuntimeParams["application_name"] = replicationName(client)
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readAhead), w)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, &unreachable{err}
}

// hangUp closes a connection, and with it what it had open.
func hangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	conn.Close(ctx)
}

func quoteTable(t driver.TableName) string { return pgx.Identifier{t.Schema, t.Table}.Sanitize() }

func quoteName(name string) string { return pgx.Identifier{name}.Sanitize() }

// namesOf splits names for unnest.
func namesOf(list []driver.TableName) (schemas, tables []string) {
	for _, t := range list {
		schemas, tables = append(schemas, t.Schema), append(tables, t.Table)
	}
	return schemas, tables
}

// identityIndex finds the index k by which the rows of the relation c are told
// apart: that of the replica identity, or with REPLICA IDENTITY FULL the primary
// key's, which the server then logs with all the rest. The conditions are those
// of the server's own choice (RelationGetIndexList).
const identityIndex = `
LEFT JOIN LATERAL (
	SELECT i.indexrelid, i.indkey, i.indnkeyatts, i.indcollation
	FROM pg_catalog.pg_index i
	WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisunique AND i.indpred IS NULL
	  AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
	                          WHEN 'i' THEN i.indisreplident AND i.indimmediate
	                          WHEN 'f' THEN i.indisprimary ELSE false END
	LIMIT 1) k ON true`

// identityOf says by what the server tells the rows of c apart.
const identityOf = `CASE WHEN c.relreplident = 'f' THEN 'full' WHEN k.indexrelid IS NULL THEN 'none'
	WHEN c.relreplident = 'd' THEN 'primary_key' ELSE 'index' END`

// A tableFacts is what the catalog says of a table that is to be captured.
type tableFacts struct {
	name        driver.TableName
	oid         uint32 // 0: there is none of this name
	kind        string // relkind
	persistence string // relpersistence
	system      bool
	ancestors   []uint32 // whose partition it is
	inherited   bool     // has children that are no partitions
	identity    string   // its own, which partitions need not share
	key         []string
	candidate   string // an index that could be the identity; empty if there is none
	primary     bool   // has a primary key that can be the identity
	nothing     bool   // REPLICA IDENTITY NOTHING
	owned       bool   // by a role that we are
	selectable  bool   // with its schema
	secured     bool   // row security would hide rows from us
	rows, bytes int64
	// Of a partitioned table, over its leaves:
	leaves    int
	anonymous string // a leaf that has no identity
	unlogged  string // a leaf whose changes are not in the log
	closed    string // a leaf that we may not read
}

// factsQuery takes the wanted names as %s.
const factsQuery = `
WITH wanted AS (%s), found AS (
	SELECT w.n AS place, w.schema, w.name, n.oid AS nspoid, c.*
	FROM wanted w
	LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
	LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name),
leaf AS (
	SELECT f.oid AS root, l.relid AS oid
	FROM found f, LATERAL pg_partition_tree(f.oid) l WHERE f.relkind = 'p' AND l.isleaf
	UNION ALL
	SELECT f.oid, f.oid FROM found f WHERE f.relkind = 'r'),
leaves AS (
	SELECT leaf.root, count(*)::int AS n,
	       sum(greatest(c.reltuples, 0))::bigint AS rows,
	       coalesce(sum(CASE WHEN c.relkind = 'r' THEN pg_table_size(c.oid) END), 0)::bigint AS bytes,
	       min(t.name) FILTER (WHERE %[2]s = 'none') AS anonymous,
	       min(t.name) FILTER (WHERE c.relkind <> 'r' OR c.relpersistence <> 'p') AS unlogged,
	       min(t.name) FILTER (WHERE NOT (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'))) AS closed,
	       bool_or(row_security_active(c.oid)) AS secured
	FROM leaf JOIN pg_catalog.pg_class c ON c.oid = leaf.oid %[3]s
	CROSS JOIN LATERAL (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
	                    FROM pg_catalog.pg_namespace n WHERE n.oid = c.relnamespace) t
	GROUP BY leaf.root)
SELECT c.schema, c.name, coalesce(c.oid, 0)::oid, coalesce(c.relkind::text, ''), coalesce(c.relpersistence::text, ''),
       c.schema IN ('pg_catalog', 'information_schema', 'pg_toast'),
       ARRAY(SELECT a.relid::oid FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class h ON h.oid = i.inhrelid
                                   WHERE i.inhparent = c.oid AND NOT h.relispartition),
       %[2]s,
       ARRAY(SELECT a.attname::text FROM generate_series(1, k.indnkeyatts) p
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.indkey[p - 1] ORDER BY p),
       coalesce((SELECT quote_ident(x.relname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                 WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
                   AND (SELECT bool_and(coalesce(a.attnotnull, false)) FROM generate_series(1, i.indnkeyatts) p
                        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[p - 1])
                 ORDER BY i.indisprimary DESC, x.relname LIMIT 1), ''),
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid),
       coalesce(c.relreplident = 'n', false),
       coalesce(pg_has_role(c.relowner, 'USAGE'), false),
       coalesce(has_schema_privilege(c.nspoid, 'USAGE')
                AND has_table_privilege(c.oid, 'SELECT'), false),
       coalesce(row_security_active(c.oid) OR l.secured, false),
       coalesce(l.rows, 0), coalesce(l.bytes, 0),
       CASE WHEN c.relkind = 'p' THEN coalesce(l.n, 0) ELSE 0 END,
       coalesce(l.anonymous, ''), coalesce(l.unlogged, ''), coalesce(l.closed, '')
FROM found c LEFT JOIN leaves l ON l.root = c.oid %[3]s
ORDER BY c.place`

// tablesFor describes the named tables, in their order; or, if none are named,
// all that could be captured.
func tablesFor(ctx context.Context, query queryFunc, names []driver.TableName) ([]tableFacts, error) {
	wanted := `SELECT u.schema, u.name, u.n FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u (schema, name, n)`
	schemas, tables := namesOf(names)
	args := []any{schemas, tables}
	if len(names) == 0 {
		wanted = `SELECT n.nspname AS schema, c.relname AS name, row_number() OVER (ORDER BY n.nspname, c.relname) AS n
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND ` + notOurs
		args = nil
	}
	var list []tableFacts
	_, err := query(ctx, fmt.Sprintf(factsQuery, wanted, identityOf, identityIndex), args, func(rows pgx.Rows) error {
		var r tableFacts
		err := rows.Scan(&r.name.Schema, &r.name.Table, &r.oid, &r.kind, &r.persistence, &r.system, &r.ancestors, &r.inherited,
			&r.identity, &r.key, &r.candidate, &r.primary, &r.nothing, &r.owned, &r.selectable, &r.secured, &r.rows, &r.bytes,
			&r.leaves, &r.anonymous, &r.unlogged, &r.closed)
		list = append(list, r)
		return err
	})
	return list, err
}

// usable reports whether updates and deletes of all of the table's rows can be
// published: the server goes by the identity of the partition that a row is in.
func (r *tableFacts) usable() bool {
	if r.kind == "p" && r.leaves > 0 {
		return r.anonymous == ""
	}
	return r.identity != "none"
}

// A publishedColumn is a column as a publication sends it.
type publishedColumn struct {
	rowColumn
	index     int    // among the columns
	place     int    // in the key, from 1; 0 outside of it
	collation string // by which the key's index tells values apart, where that is not the column's
}

// A published table is one that publications send, with the columns and rows
// that they send of it.
type published struct {
	name    driver.TableName
	oid     uint32
	parted  bool   // a partitioned table
	filter  string // SQL; empty is all rows
	columns []publishedColumn
	keySize int // columns of the identity's index, published or not
	rows    *rowEncoder
}

// rowColumns are the columns for an encoder.
func (p *published) rowColumns() []rowColumn {
	list := make([]rowColumn, len(p.columns))
	for i, c := range p.columns {
		list[i] = c.rowColumn
	}
	return list
}

// from is the table for a FROM clause: with its partitions, but without what else
// inherits from it.
func (p *published) from() string {
	if p.parted {
		return quoteTable(p.name)
	}
	return "ONLY " + quoteTable(p.name)
}

// selected lists the columns for a SELECT.
func (p *published) selected() string {
	quoted := make([]string, len(p.columns))
	for i, c := range p.columns {
		quoted[i] = quoteName(c.name)
	}
	return strings.Join(quoted, ", ")
}

// key lists the columns by which rows can be told apart and ordered, in the
// order of the identity's index; none if not all of them are published.
func (p *published) key() []publishedColumn {
	list := make([]publishedColumn, 0, p.keySize)
	for _, c := range p.columns {
		if c.key {
			list = append(list, c)
		}
	}
	if len(list) < p.keySize {
		return nil
	}
	slices.SortFunc(list, func(a, b publishedColumn) int { return a.place - b.place })
	return list
}

// sentQuery has a row for each publication that sends the table. Column lists
// and row filters came with PostgreSQL 15.
func sentQuery(version int) string {
	if version < 150000 {
		return `SELECT NULL::text[] AS columns, NULL::text AS filter FROM pg_catalog.pg_publication_tables
			WHERE pubname = ANY ($1) AND schemaname = $2 AND tablename = $3`
	}
	return `SELECT attnames::text[] AS columns, rowfilter AS filter FROM pg_catalog.pg_publication_tables
		WHERE pubname = ANY ($1) AND schemaname = $2 AND tablename = $3`
}

// publishedTable describes what the publications send of a table, as the stream
// will have it. It returns nil if they do not send it.
func publishedTable(ctx context.Context, query queryFunc, version int, publications []string, name driver.TableName) (*published, error) {
	args := []any{publications, name.Schema, name.Table}
	sent, all := 0, false
	var filters []string
	var only []string
	if _, err := query(ctx, sentQuery(version), args, func(rows pgx.Rows) error {
		var filter *string
		var columns []string
		err := rows.Scan(&columns, &filter)
		if filter == nil {
			all = true
		} else {
			filters = append(filters, "("+*filter+")")
		}
		only = columns // of several publications all must say the same
		sent++
		return err
	}); err != nil || sent == 0 {
		return nil, err
	}
	p := &published{name: name}
	if !all {
		p.filter = strings.Join(filters, " OR ")
	}
	n, err := query(ctx, `
		SELECT c.oid, c.relkind = 'p', coalesce(k.indnkeyatts, 0)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace `+identityIndex+`
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')`, []any{name.Schema, name.Table},
		func(rows pgx.Rows) error { return rows.Scan(&p.oid, &p.parted, &p.keySize) })
	if err != nil || n == 0 {
		return nil, err
	}
	// Before 18 generated columns are not sent, though 15 lists them.
	generated := ` AND a.attgenerated = ''`
	if version >= 180000 {
		generated = ``
	}
	_, err = query(ctx, `
		SELECT a.attname, a.atttypid, coalesce(p.place, 0),
		       CASE WHEN p.collation <> a.attcollation AND p.collation <> 0
		            THEN (SELECT quote_ident(s.nspname) || '.' || quote_ident(l.collname) FROM pg_catalog.pg_collation l
		                  JOIN pg_catalog.pg_namespace s ON s.oid = l.collnamespace WHERE l.oid = p.collation)
		            ELSE '' END
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped `+identityIndex+`
		LEFT JOIN LATERAL (SELECT g AS place, k.indcollation[g - 1] AS collation FROM generate_series(1, k.indnkeyatts) g
		                   WHERE k.indkey[g - 1] = a.attnum LIMIT 1) p ON true
		WHERE c.oid = $1 AND ($2::text[] IS NULL OR a.attname = ANY ($2))`+generated+`
		ORDER BY a.attnum`, []any{p.oid, only},
		func(rows pgx.Rows) error {
			c := publishedColumn{index: len(p.columns)}
			err := rows.Scan(&c.name, &c.oid, &c.place, &c.collation)
			c.key = c.place > 0
			p.columns = append(p.columns, c)
			return err
		})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// identityKey are the columns of the key of a relation, in no order.
func identityKey(ctx context.Context, query queryFunc, oid uint32) (names []string, err error) {
	_, err = query(ctx, `
		SELECT a.attname FROM pg_catalog.pg_class c `+identityIndex+`
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((k.indkey::int2[])[0:k.indnkeyatts - 1])
		WHERE c.oid = $1`, []any{oid},
		func(rows pgx.Rows) error {
			var name string
			err := rows.Scan(&name)
			names = append(names, name)
			return err
		})
	return names, err
}
