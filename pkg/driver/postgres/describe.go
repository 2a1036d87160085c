package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Explain shows the server's plan, without running the statement.
func (b *Backend) Explain(ctx context.Context, st driver.Statement) (json.RawMessage, error) {
	const explain = "EXPLAIN (FORMAT JSON) "
	if a := analyze(st.Text); a.Effect == driver.Refused {
		return nil, athena.Errorf(athena.CodeQueryFailed, "%s", a.Reason)
	}
	st.Text, st.ReadOnly = explain+st.Text, true
	value, err := b.value(ctx, st)
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Position > int32(len(explain)) {
		e.Position -= int32(len(explain)) // in the caller's text, not in ours
	}
	return value, err
}

// value runs a read and returns its one value.
func (b *Backend) value(ctx context.Context, st driver.Statement) ([]byte, error) {
	r, err := b.run(ctx, st, readOnly)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var value []byte
	for r.Next() {
		value = append(value[:0], r.result.Values()[0]...)
	}
	return value, r.Err()
}

// Count counts a table's rows.
func (b *Backend) Count(ctx context.Context, schema, table string, timeout time.Duration) (int64, error) {
	if table == "" || strings.IndexByte(schema+table, 0) >= 0 {
		return 0, noTable(schema, strings.ReplaceAll(table, "\x00", ""))
	}
	name := pgx.Identifier{table}
	if schema != "" {
		name = pgx.Identifier{schema, table}
	}
	value, err := b.value(ctx, driver.Statement{Text: "SELECT count(*) FROM " + name.Sanitize(), Timeout: timeout})
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42P01" || e.Code == "3F000") {
		return 0, noTable(schema, table)
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(value), 10, 64)
}

// Identity describes the server.
func (b *Backend) Identity(ctx context.Context) (driver.Identity, error) {
	id := driver.Identity{Product: "PostgreSQL", Facts: map[string]string{}}
	_, err := b.catalog(ctx, `
		SELECT 'version', current_setting('server_version')
		UNION ALL SELECT 'database', current_database()
		UNION ALL SELECT 'user', current_user
		UNION ALL SELECT 'read_only', (pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool)::text
		UNION ALL SELECT name, current_setting(name, true)
		FROM unnest(ARRAY['wal_level', 'server_encoding', 'max_connections', 'max_replication_slots', 'max_wal_senders']) AS name
		WHERE current_setting(name, true) IS NOT NULL`, nil,
		func(rows pgx.Rows) error {
			var name, value string
			err := rows.Scan(&name, &value)
			if name == "version" {
				id.Version = value
			} else {
				id.Facts[name] = value
			}
			return err
		})
	return id, err
}

// Provision creates a schema, or a database in the same cluster.
func (b *Backend) Provision(ctx context.Context, p driver.Provision) (driver.Provisioned, error) {
	if p.Name == "" || len(p.Name) > 63 || strings.IndexByte(p.Name, 0) >= 0 {
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, "name is %d bytes long; PostgreSQL's names have 1 to 63", len(p.Name)).At("name")
	}
	var exists, create string
	switch p.Kind {
	case "schema":
		exists, create = `SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1`, "CREATE SCHEMA "
	case "database":
		exists, create = `SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1`, "CREATE DATABASE "
	default:
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, "kind %.40q is unknown to PostgreSQL; it must be schema or database", p.Kind).At("kind")
	}
	there, err := b.catalog(ctx, exists, []any{p.Name}, nil)
	if err != nil || there > 0 {
		return driver.Provisioned{}, err
	}
	rows, err := b.Query(ctx, driver.Statement{Text: create + pgx.Identifier{p.Name}.Sanitize()})
	if err == nil {
		err = rows.Close()
	}
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42P06" || e.Code == "42P04" || e.Code == uniqueViolation) {
		return driver.Provisioned{}, nil // somebody was faster
	}
	return driver.Provisioned{Created: err == nil}, err
}
