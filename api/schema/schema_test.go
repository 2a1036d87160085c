package schema_test

import (
	"net/http"
	"testing"

	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestSchemaRoutes(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Client(t, "shop", nil)
	w.Run(t, "create table orders (id int primary key, note text)")
	w.Run(t, "insert into orders values (1, 'a')")
	key := w.Key(t, []string{"schema:read"})
	const shop = "X-Athena-Client: shop"

	t.Run("overview has schemas and tables", func(t *testing.T) {
		t.Parallel()
		var got struct {
			Schemas []driver.Schema
			Tables  []driver.Table
		}
		a := w.Do(t, key, "GET", "/schema", "", shop).Want(t, http.StatusOK, "")
		a.Decode(t, &got)
		if len(got.Schemas) != 1 || len(got.Tables) != 1 || got.Tables[0].Name != "orders" || a.Meta.Client != "shop" || a.Meta.Engine != "postgres" {
			t.Errorf("got %s", a.Raw)
		}
	})
	t.Run("tables of a schema that is empty are an empty list", func(t *testing.T) {
		t.Parallel()
		if a := w.Do(t, key, "GET", "/schema/tables?schema=nowhere", "", shop).Want(t, http.StatusOK, ""); string(a.Data) != "[]" {
			t.Errorf("got %s", a.Data)
		}
	})
	t.Run("columns, constraints and indexes describe one table", func(t *testing.T) {
		t.Parallel()
		var columns []driver.ColumnInfo
		w.Do(t, key, "GET", "/schema/columns?table=orders&schema=main", "", shop).Want(t, http.StatusOK, "").Decode(t, &columns)
		if len(columns) != 2 || columns[0].PrimaryKey != 1 {
			t.Errorf("columns are %+v", columns)
		}
		var constraints []driver.Constraint
		w.Do(t, key, "GET", "/schema/constraints?table=orders", "", shop).Want(t, http.StatusOK, "").Decode(t, &constraints)
		var indexes []driver.Index
		w.Do(t, key, "GET", "/schema/indexes?table=orders", "", shop).Want(t, http.StatusOK, "").Decode(t, &indexes)
		if len(constraints) != 1 || len(indexes) != 1 {
			t.Errorf("constraints are %+v, indexes %+v", constraints, indexes)
		}
	})
	t.Run("no migrations is an empty list and a message", func(t *testing.T) {
		t.Parallel()
		var m driver.Migrations
		w.Do(t, key, "GET", "/schema/migrations", "", shop).Want(t, http.StatusOK, "").Decode(t, &m)
		if m.Applied == nil || len(m.Applied) != 0 || m.Message == "" {
			t.Errorf("got %+v", m)
		}
	})

	for name, test := range map[string]struct {
		path   string
		status int
		code   athena.Code
		field  string
	}{
		"a table that is not there":       {"/schema/columns?table=nothing", 404, athena.CodeNotFound, ""},
		"no table":                        {"/schema/columns", 400, athena.CodeInvalidRequest, "table"},
		"a parameter that is not known":   {"/schema/tables?shcema=main", 400, athena.CodeInvalidRequest, "shcema"},
		"a parameter that is given twice": {"/schema/tables?schema=a&schema=b", 400, athena.CodeInvalidRequest, "schema"},
		"a parameter with a NUL":          {"/schema/tables?schema=a%00b", 400, athena.CodeInvalidRequest, "schema"},
		"a parameter that is not UTF-8":   {"/schema/tables?schema=%ff", 400, athena.CodeInvalidRequest, "schema"},
		"a query that is not one":         {"/schema/tables?schema=%zz", 400, athena.CodeInvalidRequest, ""},
		"a parameter where there is none": {"/schema?x=1", 400, athena.CodeInvalidRequest, "x"},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			t.Parallel()
			a := w.Do(t, key, "GET", test.path, "", shop).Want(t, test.status, test.code)
			if field, _ := a.Details["field"].(string); field != test.field {
				t.Errorf("the field is %q, want %q: %s", field, test.field, a.Raw)
			}
		})
	}
}
