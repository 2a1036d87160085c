package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// migrationTool is how one tool keeps its record.
type migrationTool struct {
	name    string
	table   string
	columns []string // that tell its table from another tool's of the same name
	// query lists version, name, applied_at, dirty of the table %s.
	query string
}

// Rails and golang-migrate share a table's name; the more particular comes
// first.
var migrationTools = []migrationTool{
	{"supabase", "schema_migrations", []string{"version", "statements", "name"},
		`SELECT version::text, coalesce(name, ''), NULL::timestamptz, false FROM %s ORDER BY version`},
	{"golang-migrate", "schema_migrations", []string{"version", "dirty"},
		`SELECT version::text, '', NULL::timestamptz, dirty FROM %s ORDER BY version`},
	{"rails", "schema_migrations", []string{"version"},
		`SELECT version::text, '', NULL::timestamptz, false FROM %s ORDER BY version`},
	// goose writes a row for each up and down; the last one of a version
	// counts, and version 0 is its own beginning.
	{"goose", "goose_db_version", []string{"version_id", "is_applied", "tstamp"},
		`SELECT version_id::text, '', tstamp::timestamptz, false
		 FROM (SELECT DISTINCT ON (version_id) * FROM %s ORDER BY version_id, id DESC) AS last
		 WHERE is_applied AND version_id > 0 ORDER BY version_id`},
}

// Migrations reads the record of golang-migrate, goose, supabase or rails. A
// table on the search path goes before others.
func (b *Backend) Migrations(ctx context.Context) (driver.Migrations, error) {
	type found struct {
		schema, table string
		columns       []string
	}
	var tables []found
	_, err := b.catalog(ctx, `
		SELECT n.nspname, c.relname, ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
		                                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname IN ('schema_migrations', 'goose_db_version') AND c.relkind IN ('r', 'p', 'v')
		ORDER BY pg_table_is_visible(c.oid) DESC, n.nspname = 'supabase_migrations' DESC, 1, 2`, nil,
		func(rows pgx.Rows) error {
			var f found
			err := rows.Scan(&f.schema, &f.table, &f.columns)
			tables = append(tables, f)
			return err
		})
	m := driver.Migrations{Applied: []driver.Migration{}}
	if err != nil {
		return m, err
	}
	for _, f := range tables {
		for _, tool := range migrationTools {
			if tool.table != f.table || slices.ContainsFunc(tool.columns, func(c string) bool { return !slices.Contains(f.columns, c) }) {
				continue
			}
			name := pgx.Identifier{f.schema, f.table}.Sanitize()
			m.Tool, m.Table = tool.name, f.schema+"."+f.table
			_, err := b.catalog(ctx, fmt.Sprintf(tool.query, name), nil, func(rows pgx.Rows) error {
				var one driver.Migration
				var at *time.Time
				err := rows.Scan(&one.Version, &one.Name, &at, &one.Dirty)
				if at != nil {
					utc := at.UTC()
					one.AppliedAt = &utc
				}
				m.Applied = append(m.Applied, one)
				return err
			})
			return m, err
		}
	}
	m.Message = "no table of a known migration tool was found (golang-migrate, goose, supabase, rails)"
	return m, nil
}
