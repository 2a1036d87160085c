// Package schema is the route family that describes what a client's backend
// holds: schemas, tables, columns, constraints, indexes, migrations. It asks the
// driver through the road and knows no engine.
package schema

import (
	"context"
	"fmt"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Family is the routes under /schema.
type Family struct{ dispatcher *dispatch.Dispatcher }

// New makes the family.
func New(d *dispatch.Dispatcher) *Family { return &Family{d} }

// Register adds the routes to r.
func (f *Family) Register(r gin.IRouter) {
	r.GET("/schema", f.overview)
	r.GET("/schema/tables", f.tables)
	r.GET("/schema/columns", table(f, "columns", driver.SchemaReader.Columns))
	r.GET("/schema/constraints", table(f, "constraints", driver.SchemaReader.Constraints))
	r.GET("/schema/indexes", table(f, "indexes", driver.SchemaReader.Indexes))
	r.GET("/schema/migrations", f.migrations)
}

func reads(needs athena.Capability) dispatch.Op {
	return dispatch.Op{Family: "schema", Right: auth.Schema, Access: auth.Read, Needs: []athena.Capability{needs}}
}

// overview is what there is, at one look.
type overview struct {
	Schemas []driver.Schema `json:"schemas"`
	Tables  []driver.Table  `json:"tables"`
}

func (f *Family) overview(c *gin.Context) {
	answer(c, f, athena.SchemaRead, params.None(c), func(ctx context.Context, b driver.SchemaReader) (o overview, err error) {
		if o.Schemas, err = b.Schemas(ctx); err != nil {
			return o, err
		}
		o.Tables, err = b.Tables(ctx, "")
		o.Schemas, o.Tables = list(o.Schemas), list(o.Tables)
		return o, err
	}, func(o overview) string {
		return fmt.Sprintf("%d schemas, %d tables", len(o.Schemas), len(o.Tables))
	})
}

func (f *Family) tables(c *gin.Context) {
	q := params.Of(c)
	schema := q.String("schema")
	answer(c, f, athena.SchemaRead, q.Err(), func(ctx context.Context, b driver.SchemaReader) ([]driver.Table, error) {
		found, err := b.Tables(ctx, schema)
		return list(found), err
	}, count[driver.Table]("tables"))
}

// table makes the handler of a route that lists something of one table.
func table[T any](f *Family, what string, read func(b driver.SchemaReader, ctx context.Context, schema, table string) ([]T, error)) gin.HandlerFunc {
	return func(c *gin.Context) {
		q := params.Of(c)
		name, schema := q.Required("table", "the name of a table or view"), q.String("schema")
		answer(c, f, athena.SchemaRead, q.Err(), func(ctx context.Context, b driver.SchemaReader) ([]T, error) {
			found, err := read(b, ctx, schema, name)
			return list(found), err
		}, count[T](what))
	}
}

func (f *Family) migrations(c *gin.Context) {
	answer(c, f, athena.MigrationsRead, params.None(c), func(ctx context.Context, b driver.MigrationReader) (driver.Migrations, error) {
		m, err := b.Migrations(ctx)
		m.Applied = list(m.Applied)
		return m, err
	}, func(m driver.Migrations) string {
		if m.Tool == "" {
			return m.Message
		}
		return fmt.Sprintf("%d migrations by %s", len(m.Applied), m.Tool)
	})
}

// answer takes the road and answers with what read returns. The parameters are
// judged behind the key and before the client: bad is what is wrong with them.
func answer[B, R any](c *gin.Context, f *Family, needs athena.Capability, bad error,
	read func(context.Context, B) (R, error), message func(R) string) {
	if bad != nil {
		envelope.Fail(c, bad)
		return
	}
	var meta envelope.Meta
	found, err := dispatch.Do(c.Request.Context(), f.dispatcher, reads(needs), c.GetHeader(middleware.HeaderClient),
		func(ctx context.Context, call dispatch.Call, b B) (R, error) {
			meta = envelope.Of(call.Client)
			ctx, cancel := context.WithTimeout(ctx, call.Client.Limits.WithDefaults().StatementTimeout.Std())
			defer cancel()
			return read(ctx, b)
		})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, message(found), found, meta)
}

func count[T any](what string) func([]T) string {
	return func(l []T) string { return fmt.Sprintf("%d %s", len(l), what) }
}

// list is l, and empty where it is nil, so that JSON has [] and not null.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
