package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// notStored are the cases of values whose type no column can have.
var notStored = []string{"void", "record", "unknown", "composite of none"}

// TestTypesAreTheSameEverywhere holds one value of every type, and NULL of every
// built-in type, against each other as a query, the first snapshot, an ad-hoc
// snapshot, the stream, and a pipeline that reads the table or a statement give
// them (docs/types.md).
func TestTypesAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(values)), func(n string) bool { return slices.Contains(notStored, n) })
	var exprs, columns []string
	want := map[string]string{"id": "1"}
	for i, n := range names {
		c := fmt.Sprintf("c%03d", i)
		exprs = append(exprs, values[n][0])
		columns = append(columns, values[n][0]+" AS "+c)
		want[c] = values[n][1]
	}
	for i, b := range builtins {
		switch b.name {
		case "void", "record", "record[]", "unknown", "cstring", "cstring[]", "pg_node_tree", "gtsvector", "gtsvector[]",
			"pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary":
			continue
		}
		c := fmt.Sprintf("n%03d", i)
		exprs = append(exprs, "NULL::"+b.name)
		columns = append(columns, "NULL::"+b.name+" AS "+c)
		want[c] = "null"
	}
	r := newCaptureRig(t, pgtest.DSN(t), typesSetup+`; CREATE TABLE t AS SELECT 0 AS id, `+strings.Join(columns, ", ")+` WITH NO DATA; ALTER TABLE t ADD PRIMARY KEY (id)`, "t")
	r.exec("SELECT pg_drop_replication_slot($1)", r.cfg.Slot)
	r.exec("COMMENT ON PUBLICATION athena_shop IS 'athena: changes of client " + r.cfg.Client + "'")
	r.exec("INSERT INTO t SELECT 1, " + strings.Join(exprs, ", "))

	setup := r.cfg.ChangeSetup
	setup.Tables = []driver.TableName{{Schema: "public", Table: "t"}}
	start, snapshot, err := r.b.StartChanges(t.Context(), setup, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	r.cfg.ChangeSetup = setup
	seen := map[string]map[string]json.RawMessage{}
	take := func(where string, raw []byte) error {
		row := map[string]json.RawMessage{}
		if err := json.Unmarshal(raw, &row); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		seen[where] = row
		return nil
	}
	parts, err := snapshot.Tables(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if err := snapshot.Read(t.Context(), p, func(_, after []byte) error { return take("first snapshot", after) }); err != nil {
			t.Fatal(err)
		}
	}
	columnsThen, err := snapshot.Columns(t.Context(), setup.Tables[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshot.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	s := newRecorder(t)
	r.follow(s, func(c *driver.ChangeConfig) { c.Source, c.Confirmed = start.Source, start.Confirmed })
	r.exec("INSERT INTO t SELECT 2, " + strings.Join(exprs, ", "))
	s.await("the row", s.has(2))
	s.mu.Lock()
	_ = take("stream", s.changes[1].After)
	columnsNow := s.changes[0].Columns
	s.mu.Unlock()
	if !slices.Equal(columnsThen, columnsNow) {
		t.Errorf("the snapshot's columns are not the stream's:\n%v\n%v", columnsThen, columnsNow)
	}
	reader, err := s.stream.Snapshot(t.Context(), driver.SnapshotTable{Table: setup.Tables[0], Where: "id = 2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Next(t.Context(), "", 10, func(_, after []byte) error { return take("ad-hoc snapshot", after) }); err != nil {
		t.Fatal(err)
	}
	adhoc, err := reader.Columns(t.Context())
	if err != nil || !slices.Equal(adhoc, columnsNow) {
		t.Errorf("the ad-hoc snapshot's columns are not the stream's: %v, %v", adhoc, err)
	}
	if err := reader.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows, err := r.b.Query(context.Background(), driver.Statement{Text: "SELECT * FROM t WHERE id = 2"})
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		_ = take("query", rows.AppendJSON(nil))
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	// Records have no room for the last 30 years of PostgreSQL's timestamps; those
	// are refused by name.
	beyond := fmt.Sprintf("c%03d", slices.Index(names, "timestamp last"))
	read := driver.TableRead{Table: setup.Tables[0], Where: []driver.Condition{{Column: "id", Op: "=", Value: json.RawMessage("2")}}}
	into := func(where string) func(*record.Batch) error {
		return func(b *record.Batch) error {
			for _, c := range b.Schema.Columns {
				if named := slices.IndexFunc(columnsNow, func(o cdc.Column) bool { return o.Name == c.Name }); named >= 0 && bareName(c.Native) != columnsNow[named].Type && where == "table" {
					t.Errorf("%s: column %s is of type %q, and of %q in the stream", where, c.Name, c.Native, columnsNow[named].Type)
				}
			}
			return take(where, b.AppendJSON(nil, 0))
		}
	}
	if err := r.b.ReadTable(t.Context(), read, driver.TablePart{}, driver.BatchSize{}, into("none")); err == nil || !strings.Contains(err.Error(), beyond) {
		t.Errorf("a timestamp beyond records: %v", err)
	}
	for c := range want {
		if c != beyond {
			read.Columns = append(read.Columns, c)
		}
	}
	if err := r.b.ReadTable(t.Context(), read, driver.TablePart{}, driver.BatchSize{}, into("table")); err != nil {
		t.Fatal(err)
	}
	text := driver.Statement{Text: "SELECT " + strings.Join(read.Columns, ", ") + " FROM t WHERE id = $1", Params: []json.RawMessage{json.RawMessage("2")}}
	if err := r.b.ReadQuery(t.Context(), text, driver.BatchSize{}, into("statement")); err != nil {
		t.Fatal(err)
	}
	delete(seen, "none")
	for _, where := range []string{"query", "first snapshot", "ad-hoc snapshot", "stream", "table", "statement"} {
		row := seen[where]
		pipeline := where == "table" || where == "statement"
		if n := len(row); n != len(want) && (!pipeline || n != len(want)-1) {
			t.Errorf("%s: %d columns, want %d", where, n, len(want))
		}
		for c, text := range want {
			if pipeline && c == beyond {
				continue
			}
			if c != "id" && string(row[c]) != text {
				t.Errorf("%s: column %s is %s, want %s", where, c, row[c], text)
			}
		}
	}
}

// bareName is a type's name without its size.
func bareName(native string) string { return sizePattern.ReplaceAllString(native, "") }
