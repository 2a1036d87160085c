package sdk

import (
	"context"
	"net/url"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// Overview is what a client's backend holds, at a glance.
type Overview struct {
	Schemas []driver.Schema `json:"schemas"`
	Tables  []driver.Table  `json:"tables"`
}

// Schema lists the client's schemas and tables.
func (c *Client) Schema(ctx context.Context) (Overview, error) {
	return describe[Overview](ctx, c, "/schema", nil)
}

// Tables lists the tables and views of a schema, or of all if it is empty.
func (c *Client) Tables(ctx context.Context, schema string) ([]driver.Table, error) {
	return describe[[]driver.Table](ctx, c, "/schema/tables", optional("schema", schema))
}

// Columns describes the columns of a table. The schema may be empty.
func (c *Client) Columns(ctx context.Context, schema, table string) ([]driver.ColumnInfo, error) {
	return describe[[]driver.ColumnInfo](ctx, c, "/schema/columns", of(schema, table))
}

// Constraints describes the constraints of a table.
func (c *Client) Constraints(ctx context.Context, schema, table string) ([]driver.Constraint, error) {
	return describe[[]driver.Constraint](ctx, c, "/schema/constraints", of(schema, table))
}

// Indexes describes the indexes of a table.
func (c *Client) Indexes(ctx context.Context, schema, table string) ([]driver.Index, error) {
	return describe[[]driver.Index](ctx, c, "/schema/indexes", of(schema, table))
}

// Migrations lists what a migration tool has recorded.
func (c *Client) Migrations(ctx context.Context) (driver.Migrations, error) {
	return describe[driver.Migrations](ctx, c, "/schema/migrations", nil)
}

func describe[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	r := get(path, query)
	r.client = c.name
	data, _, err := answer[T](ctx, c.api, r)
	return data, err
}

func of(schema, table string) url.Values {
	q := optional("schema", schema)
	q.Set("table", table)
	return q
}

func optional(name, value string) url.Values {
	q := url.Values{}
	if value != "" {
		q.Set(name, value)
	}
	return q
}
