package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
)

// describe gives the statements that make a table and the types of its keyspace, by
// what system_schema says.
func (r *recorder) describe(ctx context.Context, keyspace, table string) (create []string, err error) {
	ks, name := param(keyspace), param(table)
	types, err := r.query(ctx, "SELECT type_name, field_names, field_types FROM system_schema.types WHERE keyspace_name = ?", ks)
	if err != nil {
		return nil, err
	}
	if create, err = createTypes(types); err != nil {
		return nil, err
	}
	columns, err := r.query(ctx, "SELECT column_name, kind, position, clustering_order, type FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ?", ks, name)
	if err != nil {
		return nil, err
	}
	if len(columns) == 0 {
		return nil, fmt.Errorf("there is no table %s.%s", keyspace, table)
	}
	rows, err := r.query(ctx, "SELECT cdc FROM system_schema.scylla_tables WHERE keyspace_name = ? AND table_name = ?", ks, name)
	if err != nil {
		return nil, err
	}
	var cdc map[string]string
	if len(rows) == 1 && rows[0]["cdc"] != nil {
		if err := json.Unmarshal(rows[0]["cdc"], &cdc); err != nil {
			return nil, fmt.Errorf("the table's option cdc: %w", err)
		}
	}
	return append(create, createTable(columns, cdc)), nil
}

// createTypes puts types behind those that they are made of.
func createTypes(types []cdcfixture.Row) (create []string, err error) {
	type udt struct{ Names, Types []string }
	left := map[string]udt{}
	for _, row := range types {
		var t udt
		if err := json.Unmarshal(row["field_names"], &t.Names); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(row["field_types"], &t.Types); err != nil {
			return nil, err
		}
		left[text(row["type_name"])] = t
	}
	for len(left) > 0 {
		before := len(left)
		for _, name := range slices.Sorted(maps.Keys(left)) {
			t, waits := left[name], false
			var fields []string
			for i, f := range t.Names {
				fields = append(fields, quote(f)+" "+t.Types[i])
				for other := range left {
					waits = waits || other != name && mentions(t.Types[i], other)
				}
			}
			if !waits {
				create = append(create, "CREATE TYPE {keyspace}."+quote(name)+" ("+strings.Join(fields, ", ")+")")
				delete(left, name)
			}
		}
		if len(left) == before {
			return nil, fmt.Errorf("the types of the keyspace are made of each other")
		}
	}
	return create, nil
}

// mentions reports whether a type's text has a name in it.
func mentions(typ, name string) bool {
	return slices.Contains(strings.FieldsFunc(typ, func(r rune) bool { return strings.ContainsRune("<>, \"", r) }), name)
}

func createTable(columns []cdcfixture.Row, cdc map[string]string) string {
	position := func(c cdcfixture.Row) int {
		n, _ := strconv.Atoi(string(c["position"]))
		return n
	}
	slices.SortStableFunc(columns, func(a, b cdcfixture.Row) int {
		return cmp.Or(cmp.Compare(position(a), position(b)), cmp.Compare(text(a["column_name"]), text(b["column_name"])))
	})
	var lines, partition, clustering, order []string
	for _, c := range columns {
		name := quote(text(c["column_name"]))
		line := name + " " + text(c["type"])
		switch text(c["kind"]) {
		case "partition_key":
			partition = append(partition, name)
		case "clustering":
			clustering = append(clustering, name)
			order = append(order, name+" "+strings.ToUpper(text(c["clustering_order"])))
		case "static":
			line += " static"
		}
		lines = append(lines, line)
	}
	key := "(" + strings.Join(append([]string{"(" + strings.Join(partition, ", ") + ")"}, clustering...), ", ") + ")"
	var options []string
	if len(order) > 0 {
		options = append(options, "CLUSTERING ORDER BY ("+strings.Join(order, ", ")+")")
	}
	if len(cdc) > 0 {
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(cdc)) {
			pairs = append(pairs, "'"+k+"': '"+cdc[k]+"'")
		}
		options = append(options, "cdc = {"+strings.Join(pairs, ", ")+"}")
	}
	s := "CREATE TABLE {table} (" + strings.Join(lines, ", ") + ", PRIMARY KEY " + key + ")"
	if len(options) > 0 {
		s += " WITH " + strings.Join(options, " AND ")
	}
	return s
}

// layout says how the keyspace's data is spread, and with it the streams of its
// logs: by vnodes, or by tablets. Only a keyspace of tablets has a number of them.
func (r *recorder) layout(ctx context.Context, keyspace string) (string, error) {
	rows, err := r.query(ctx, "SELECT initial_tablets FROM system_schema.scylla_keyspaces WHERE keyspace_name = ?", param(keyspace))
	if err != nil {
		return "", err
	}
	if len(rows) == 1 && rows[0]["initial_tablets"] != nil {
		return "tablets", nil
	}
	return "vnodes", nil
}

func param(s string) json.RawMessage {
	raw, _ := json.Marshal(s)
	return raw
}
