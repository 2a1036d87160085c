package drivertest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const missing = "dt_that_is_not_there"

func (s *suite) schema(t *testing.T, r driver.SchemaReader) {
	name, _ := s.scratch(t)
	ctx := t.Context()

	schemas, err := r.Schemas(ctx)
	if err != nil || !slices.ContainsFunc(schemas, func(x driver.Schema) bool { return x.Name == s.Schema }) {
		t.Errorf("Schemas = %v, %v; want %q among them", schemas, err, s.Schema)
	}
	for _, schema := range []string{s.Schema, ""} {
		tables, err := r.Tables(ctx, schema)
		i := slices.IndexFunc(tables, func(x driver.Table) bool { return x.Schema == s.Schema && x.Name == name })
		if err != nil || i < 0 {
			t.Errorf("Tables(%q): %v; %q is not among the %d", schema, err, name, len(tables))
		} else if got := tables[i]; got.Kind != "table" || got.EstimatedRows < -1 {
			t.Errorf("the table is described as %+v", got)
		}
	}
	tables, err := r.Tables(ctx, missing)
	if err != nil || len(tables) != 0 || tables == nil {
		t.Errorf("Tables of a missing schema = %#v, %v; want an empty list", tables, err)
	}

	columns, err := r.Columns(ctx, s.Schema, name)
	if err != nil || len(columns) != 2 {
		t.Fatalf("Columns = %+v, %v; want id and name", columns, err)
	}
	if c := columns[0]; c.Name != "id" || c.Position != 1 || c.PrimaryKey != 1 || c.Nullable || c.Type == "" {
		t.Errorf("id is described as %+v", c)
	}
	if c := columns[1]; c.Name != "name" || c.Position != 2 || c.PrimaryKey != 0 || !c.Nullable || c.Type == "" {
		t.Errorf("name is described as %+v", c)
	}
	constraints, err := r.Constraints(ctx, s.Schema, name)
	if err != nil || !slices.ContainsFunc(constraints, func(c driver.Constraint) bool {
		return c.Kind == "primary_key" && slices.Equal(c.Columns, []string{"id"}) && c.Name != "" && c.Definition != ""
	}) {
		t.Errorf("Constraints = %+v, %v; want the primary key", constraints, err)
	}
	indexes, err := r.Indexes(ctx, s.Schema, name)
	if err != nil || !slices.ContainsFunc(indexes, func(x driver.Index) bool {
		return x.Primary && x.Unique && slices.Equal(x.Columns, []string{"id"}) && x.Name != "" && x.Definition != ""
	}) {
		t.Errorf("Indexes = %+v, %v; want that of the primary key", indexes, err)
	}

	_, err = r.Columns(ctx, s.Schema, missing)
	s.wantCode(t, err, athena.CodeNotFound)
	_, err = r.Constraints(ctx, s.Schema, missing)
	s.wantCode(t, err, athena.CodeNotFound)
	_, err = r.Indexes(ctx, s.Schema, missing)
	s.wantCode(t, err, athena.CodeNotFound)
}

func (s *suite) migrations(t *testing.T, r driver.MigrationReader) {
	m, err := r.Migrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (m.Tool == "") != (m.Message != "") || m.Applied == nil {
		t.Errorf("%+v: without a tool there must be a message, and the list is never null", m)
	}
}

func (s *suite) explain(t *testing.T, e driver.Explainer) {
	_, in := s.scratch(t)
	for _, call := range []driver.Statement{
		statement(in(s.Statements.Select), 1),
		statement(in(s.Statements.Insert), 1, "a"),
	} {
		plan, err := e.Explain(t.Context(), call)
		if err != nil || !json.Valid(plan) {
			t.Errorf("Explain(%q) = %s, %v; want JSON", call.Text, plan, err)
		}
	}
	s.wantIDs(t, in)
	_, err := e.Explain(t.Context(), statement(s.Statements.Syntax))
	s.wantCode(t, err, athena.CodeQueryFailed)
}

func (s *suite) count(t *testing.T, c driver.Counter) {
	name, in := s.scratch(t)
	for i := range 3 {
		s.must(t, in(s.Statements.Insert), i, "x")
	}
	for _, schema := range []string{s.Schema, ""} {
		if n, err := c.Count(t.Context(), schema, name, time.Minute); err != nil || n != 3 {
			t.Errorf("Count in schema %q = %d, %v; want 3", schema, n, err)
		}
	}
	for _, odd := range []string{missing, `x"; drop table y; --`, ""} {
		_, err := c.Count(t.Context(), s.Schema, odd, time.Minute)
		s.wantCode(t, err, athena.CodeNotFound)
	}
}

func (s *suite) provision(t *testing.T, p driver.Provisioner) {
	for _, want := range []bool{true, false} {
		got, err := p.Provision(t.Context(), s.Provision)
		if err != nil || got.Created != want {
			t.Fatalf("Provision(%+v) = %+v, %v; want created %v", s.Provision, got, err, want)
		}
	}
	_, err := p.Provision(t.Context(), driver.Provision{Kind: "no such kind", Name: s.Provision.Name})
	s.wantCode(t, err, athena.CodeInvalidRequest)
}

func (s *suite) identity(t *testing.T, i driver.Identifier) {
	id, err := i.Identity(t.Context())
	if err != nil || id.Product == "" || id.Version == "" {
		t.Fatalf("Identity = %+v, %v; want a product and a version", id, err)
	}
	shown, _ := json.Marshal(id)
	for _, secret := range s.Secrets {
		if strings.Contains(string(shown), secret) {
			t.Errorf("a secret is shown: %s", shown)
		}
	}
}
