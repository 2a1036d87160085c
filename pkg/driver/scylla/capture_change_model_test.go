package scylla

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// A copyOf is a table that somebody keeps who reads its changes, and does what
// docs/cdc.md says.
type copyOf struct {
	rows    map[string]map[string]any // by key, as JSON of pk and ck
	markers map[string]bool           // rows that an insert made, which stay without values
	statics map[string]map[string]any // by partition
}

func (m *copyOf) apply(t *testing.T, c *cdc.Change) {
	t.Helper()
	object := func(raw json.RawMessage) (o map[string]any) {
		if raw != nil {
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.UseNumber()
			if err := dec.Decode(&o); err != nil {
				t.Fatal(err)
			}
		}
		return o
	}
	key := string(c.Key)
	switch c.Op {
	case cdc.Delete:
		delete(m.rows, key)
		delete(m.markers, key)
	case cdc.DeletePartition:
		partition := strings.TrimSuffix(key, "}") + ","
		for k := range m.rows {
			if strings.HasPrefix(k, partition) {
				delete(m.rows, k)
				delete(m.markers, k)
			}
		}
		delete(m.statics, key)
	case cdc.DeleteRange:
		in := rangeOf(t, bytes.ReplaceAll(c.Range, []byte(`"ck"`), []byte(`"a"`)))
		partition := strings.TrimSuffix(key, "}") + ","
		for k := range m.rows {
			var row struct{ CK int }
			if err := json.Unmarshal([]byte(k), &row); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(k, partition) && in([3]int{row.CK}) {
				delete(m.rows, k)
				delete(m.markers, k)
			}
		}
	case cdc.Insert, cdc.Update:
		at := m.rows
		if !strings.Contains(key, `"ck"`) {
			at = m.statics
		} else if c.Op == cdc.Insert {
			m.markers[key] = true
		}
		row := at[key]
		if row == nil {
			row = map[string]any{}
			at[key] = row
		}
		for name, v := range object(c.After) {
			row[name] = v
		}
		for name, v := range object(c.Delta) {
			row[name] = patched(row[name], v.(map[string]any))
		}
	default:
		t.Fatalf("an %s of %s", c.Op, c.Key)
	}
}

// patched does to a value what a delta says.
func patched(was any, delta map[string]any) any {
	for what, v := range delta {
		switch what {
		case "add":
			set, _ := was.([]any)
			for _, e := range v.([]any) {
				if !slices.Contains(set, e) {
					set = append(set, e)
				}
			}
			slices.SortFunc(set, func(a, b any) int {
				x, _ := a.(json.Number).Int64()
				y, _ := b.(json.Number).Int64()
				return cmp.Compare(x, y)
			})
			was = set
		case "put", "set":
			members, _ := was.(map[string]any)
			if members == nil {
				members = map[string]any{}
			}
			for k, e := range v.(map[string]any) {
				members[k] = e
			}
			was = members
		case "append":
			list, _ := was.([]any)
			for _, e := range v.([]any) {
				list = append(list, e.(map[string]any)["value"])
			}
			was = list
		}
	}
	for what, v := range delta {
		if what != "remove" && what != "unset" {
			continue
		}
		for _, e := range v.([]any) {
			switch w := was.(type) {
			case []any:
				was = slices.DeleteFunc(w, func(x any) bool { return x == e })
			case map[string]any:
				delete(w, fmt.Sprint(e))
			}
		}
	}
	return was
}

// settled is a value as a query shows it: an unfrozen one that is empty is null,
// and a user-defined type has all its fields.
func settled(name string, v any) any {
	switch w := v.(type) {
	case []any:
		if len(w) == 0 && name != "f" {
			return nil
		}
	case map[string]any:
		if name == "u" {
			empty := true
			all := map[string]any{"street": nil, "zip": nil}
			for k, e := range w {
				all[k] = e
				empty = empty && e == nil
			}
			if empty {
				return nil
			}
			return all
		}
		if len(w) == 0 {
			return nil
		}
	}
	return v
}

var values = map[string][]string{
	"v": {"1", "2", "null"}, "tags": {"{1, 2}", "{3}", "{}", "null"}, "m": {"{'a': 1}", "{'b': 2, 'c': 3}", "null"},
	"l": {"[1]", "[2, 3]", "[]"}, "u": {"{street: 'x', zip: 1}", "{zip: 2}", "null"}, "f": {"[]", "[1, 2]", "null"}, "s": {"'one'", "'two'", "null"},
}

var partly = []string{"tags = tags + {4, 5}", "tags = tags - {1, 4}", "m = m + {'d': 4}", "m = m - {'a', 'd'}", "l = l + [7]", "u.street = 'y'", "u.zip = null", "u.street = null, u.zip = 3"}

func anyOf(r *rand.Rand, list []string) string { return list[r.IntN(len(list))] }

// drawStatement draws one statement of each kind.
func drawStatement(r *rand.Rand, table string) string {
	pk, ck := r.IntN(2), r.IntN(4)
	where := fmt.Sprintf(" WHERE pk = %d AND ck = %d", pk, ck)
	switch r.IntN(10) {
	case 0, 1, 2:
		columns, given := "pk, ck", fmt.Sprintf("%d, %d", pk, ck)
		for _, name := range []string{"v", "tags", "m", "l", "u", "f", "s"} {
			if r.IntN(2) == 0 {
				columns, given = columns+", "+name, given+", "+anyOf(r, values[name])
			}
		}
		return "INSERT INTO " + table + " (" + columns + ") VALUES (" + given + ")"
	case 3, 4:
		name := anyOf(r, []string{"v", "tags", "m", "l", "u", "f"})
		return "UPDATE " + table + " SET " + name + " = " + anyOf(r, values[name]) + where
	case 5, 6:
		return "UPDATE " + table + " SET " + anyOf(r, partly) + where
	case 7:
		return "UPDATE " + table + " SET s = " + anyOf(r, values["s"]) + fmt.Sprintf(" WHERE pk = %d", pk)
	case 8:
		return "DELETE FROM " + table + where
	}
	switch r.IntN(4) {
	case 0:
		return fmt.Sprintf("DELETE FROM %s WHERE pk = %d", table, pk)
	case 1:
		return fmt.Sprintf("DELETE FROM %s WHERE pk = %d AND ck %s %d", table, pk, anyOf(r, []string{"<", "<=", ">", ">="}), ck)
	case 2:
		return fmt.Sprintf("DELETE FROM %s WHERE pk = %d AND ck > %d AND ck <= %d", table, pk, ck-2, ck)
	}
	return "DELETE " + anyOf(r, []string{"v", "tags", "m['b']", "u"}) + " FROM " + table + where
}

func TestWhoDoesTheChangesHasTheTableDouble(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t)
	b := openDouble(t, cluster)
	for i, options := range []string{"", ", 'preimage': 'full'", ", 'postimage': true", ", 'preimage': true, 'postimage': true", ", 'delta': 'keys', 'postimage': true"} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%d with%s", seed, options), func(t *testing.T) {
				t.Parallel()
				// A keyspace of its own: gocql keeps for a while what it knows of one.
				name := driver.TableName{Schema: fmt.Sprintf("shop_%d_%d", i, seed), Table: "t"}
				cluster.MustExec(t, strings.Replace(createShop, "shop", name.Schema, 1), `CREATE TYPE `+name.Schema+`.address (street text, zip int)`)
				order := anyOf(rand.New(rand.NewPCG(seed, 7)), []string{"ASC", "DESC"})
				cluster.MustExec(t, fmt.Sprintf(`CREATE TABLE %s (pk int, ck int, s text static, v int, tags set<int>, m map<text, int>, l list<int>, u address, f frozen<list<int>>,
					PRIMARY KEY (pk, ck)) WITH CLUSTERING ORDER BY (ck %s) AND cdc = {'enabled': true%s}`, name, order, options))
				m, err := b.captureTable(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				var done []string
				for range 60 {
					done = append(done, drawStatement(r, name.String()))
				}
				cluster.MustExec(t, done...)
				logged, err := cluster.LogRows(name.String())
				if err != nil {
					t.Fatal(err)
				}
				batches := map[string]bool{}
				for _, row := range logged {
					batches[row[columnStream]+row[columnTime]] = true
				}
				read := readLog(t, b, name, len(batches))
				slices.SortFunc(read, func(a, b scyllacdc.Change) int { return cmp.Compare(a.Time.Timestamp(), b.Time.Timestamp()) })
				kept := &copyOf{map[string]map[string]any{}, map[string]bool{}, map[string]map[string]any{}}
				for _, batch := range read {
					changes, rejected, err := m.decode(t.Context(), &batch)
					if err != nil || len(rejected) > 0 {
						t.Fatalf("%v, rejected %+v", err, rejected)
					}
					for _, c := range changes {
						kept.apply(t, &c)
					}
				}
				if got, want := kept.text(t), tableText(t, b, name); got != want {
					t.Errorf("the copy is\n%s\nthe table\n%s\nafter\n%s", got, want, strings.Join(done, "\n"))
				}
			})
		}
	}
}

// text writes rows in order, with their static columns.
func (m *copyOf) text(t *testing.T) string {
	var lines []string
	shown := map[string]bool{}
	for key, row := range m.rows {
		alive := m.markers[key]
		full := map[string]any{}
		for _, name := range []string{"v", "tags", "m", "l", "u", "f"} {
			full[name] = settled(name, row[name])
			alive = alive || full[name] != nil
		}
		if !alive {
			continue
		}
		partition := key[:strings.Index(key, ",")] + "}"
		shown[partition] = true
		full["s"] = m.statics[partition]["s"]
		lines = append(lines, key+" "+string(marshal(t, full)))
	}
	for partition, row := range m.statics {
		if s := row["s"]; s != nil && !shown[partition] {
			lines = append(lines, partition+" "+string(marshal(t, map[string]any{"s": s})))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// tableText is the same of a table.
func tableText(t *testing.T, b *Backend, name driver.TableName) string {
	rows, err := b.Query(t.Context(), driver.Statement{Text: "SELECT * FROM " + name.String()})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		var row map[string]any
		dec := json.NewDecoder(bytes.NewReader(rows.AppendJSON(nil)))
		dec.UseNumber()
		if err := dec.Decode(&row); err != nil {
			t.Fatal(err)
		}
		pk, ck := row["pk"], row["ck"]
		delete(row, "pk")
		delete(row, "ck")
		if ck == nil {
			lines = append(lines, fmt.Sprintf(`{"pk":%s} %s`, pk, marshal(t, map[string]any{"s": row["s"]})))
			continue
		}
		lines = append(lines, fmt.Sprintf(`{"pk":%s,"ck":%s} %s`, pk, ck, marshal(t, row)))
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
