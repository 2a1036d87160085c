package scylla_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A tablesRig is a backend on a keyspace of its own.
type tablesRig struct {
	testing.TB
	b        *scylla.Backend
	keyspace string
}

// tableLaws hold for tables of every server that speaks CQL.
var tableLaws = map[string]func(*testing.T, *tablesRig){
	"what is read and written is the same":         whatIsReadAndWrittenIsTheSame,
	"changes have their effect once, and in order": changesHaveTheirEffectOnceInOrder,
	"plans name what stands in the way":            plansNameWhatStandsInTheWay,
	"new lists are frozen":                         newListsAreFrozen,
	"no row is rejected for a column that is gone": noRowIsRejectedForAColumnThatIsGone,
	"rows are refused one by one":                  rowsAreRefusedOneByOne,
}

func TestTablesDouble(t *testing.T) {
	t.Parallel()
	for name, law := range tableLaws {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := scyllatest.Start(t)
			c.MustExec(t, "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}")
			law(t, newTablesRig(t, athena.ScyllaConn{Hosts: c.Hosts(), Keyspace: "ks"}))
		})
	}
}

func TestTablesCassandra(t *testing.T) {
	t.Parallel()
	s := cassandratest.Start(t)
	for name, law := range tableLaws {
		t.Run(name, func(t *testing.T) { law(t, newTablesRig(t, s.Conn(s.Keyspace(t)))) })
	}
}

func newTablesRig(t *testing.T, conn athena.ScyllaConn) *tablesRig {
	t.Helper()
	b, err := scylla.Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(t.Context()) })
	return &tablesRig{t, b, conn.Keyspace}
}

func (r *tablesRig) exec(cql string, params ...string) {
	r.Helper()
	st := driver.Statement{Text: cql}
	for _, p := range params {
		st.Params = append(st.Params, json.RawMessage(p))
	}
	rows, err := r.b.Query(r.Context(), st)
	if err == nil {
		err = rows.Close()
	}
	if err != nil {
		r.Fatalf("%s: %v", cql, err)
	}
}

// lines are the rows of a statement, as JSON.
func (r *tablesRig) lines(cql string) (list []string) {
	r.Helper()
	rows, err := r.b.Query(r.Context(), driver.Statement{Text: cql})
	if err != nil {
		r.Fatalf("%s: %v", cql, err)
	}
	for rows.Next() {
		list = append(list, string(rows.AppendJSON(nil)))
	}
	if err := rows.Close(); err != nil {
		r.Fatalf("%s: %v", cql, err)
	}
	return list
}

func (r *tablesRig) name(table string) driver.TableName {
	return driver.TableName{Schema: r.keyspace, Table: table}
}

func (r *tablesRig) prepare(t driver.TableTarget) driver.TablePlan {
	r.Helper()
	plan, err := r.b.PrepareTable(r.Context(), t)
	if err != nil {
		r.Fatalf("PrepareTable: %v", err)
	}
	return plan
}

// write writes batches in a transaction, and commits it if c is given.
func (r *tablesRig) write(t driver.TableTarget, c *driver.Checkpoint, batches ...*record.Batch) (rejected []record.Rejected) {
	r.Helper()
	tx, err := r.b.BeginTable(r.Context(), t)
	if err != nil {
		r.Fatalf("BeginTable: %v", err)
	}
	defer tx.Rollback(r.Context())
	for _, b := range batches {
		some, err := tx.Write(r.Context(), b)
		if err != nil {
			r.Fatalf("Write: %v", err)
		}
		rejected = append(rejected, some...)
	}
	if c != nil {
		if err := tx.Commit(r.Context(), *c); err != nil {
			r.Fatalf("Commit: %v", err)
		}
	}
	return rejected
}

func (r *tablesRig) read(read driver.TableRead) *record.Batch {
	r.Helper()
	var all *record.Batch
	err := r.b.ReadTable(r.Context(), read, driver.TablePart{}, driver.BatchSize{}, func(b *record.Batch) error {
		if all == nil {
			all = record.New(b.Schema, b.Rows())
		}
		for i := range b.Rows() {
			all.AppendRow(b, i)
		}
		return nil
	})
	if err != nil {
		r.Fatalf("ReadTable: %v", err)
	}
	return all
}

// everyType has a column of each type of CQL.
const everyType = `CREATE TABLE every (id int PRIMARY KEY, bo boolean, ti tinyint, si smallint, n int, bi bigint, vi varint, de decimal, fl float, db double,
	asc_ ascii, te text, bl blob, da date, tm time, ts timestamp, uu uuid, tu timeuuid, ine inet, du duration,
	ls frozen<list<int>>, st set<text>, mp map<int, frozen<list<text>>>, fz frozen<set<int>>, tp tuple<int, text>, nested tuple<int, tuple<text, boolean>>, ud address)`

// Values of every type come through a pipeline as they are: what is read of one table
// and written to another is the same to the last byte, nulls among it.
func whatIsReadAndWrittenIsTheSame(t *testing.T, r *tablesRig) {
	r.exec("CREATE TYPE address (street text, zip int)")
	r.exec(everyType)
	r.exec(strings.Replace(everyType, "TABLE every", "TABLE copied", 1))
	insert := func(values string) { r.exec("INSERT INTO every (" + columnsOf(everyType) + ") VALUES " + values) }
	insert(`(1, true, -128, 32767, -2147483648, 9223372036854775807, 123456789012345678901234567890, -12.500, 1.5, 0.1, 'a', 'é 日本', 0x00ff, '2026-11-22', '23:59:59.999999', '2026-11-22T10:00:00.123Z',
			6ba7b810-9dad-41d1-80b4-00c04fd430c8, 6ba7b810-9dad-11d1-80b4-00c04fd430c8, '::1', 1y2mo3d4h5m6s, [1, 2, 2], {'b', 'a'}, {1: ['x', 'y'], 2: []}, {3, 1}, (1, 'x'), (1, ('y', true)), {street: 'High', zip: 1})`)
	insert(`(2, false, 127, -1, 0, -1, -1, 0, NaN, Infinity, '', '', 0x, '0001-01-01', '00:00:00', '1969-12-31T23:59:59.999Z',
			00000000-0000-4000-8000-000000000000, 00000000-0000-1000-8000-000000000000, '10.0.0.1', 0s, [], {}, {}, {}, (null, null), (null, (null, null)), {street: null})`)
	r.exec("INSERT INTO every (id) VALUES (3)")
	insert(`(4, true, 0, 0, 0, 0, 255, 1000.0, -0.0, -0.0, 'x', 'x', 0x01, '1970-01-01', '12:00:00', '1970-01-01T00:00:00Z',
			6ba7b810-9dad-41d1-80b4-00c04fd430c8, 6ba7b810-9dad-11d1-80b4-00c04fd430c8, '255.255.255.255', -1d, [0], {''}, {0: ['']}, {0}, null, (1, null), null)`)
	all := r.read(driver.TableRead{Table: r.name("every")})
	target := driver.TableTarget{Table: r.name("copied"), Mode: driver.Upsert, Key: []string{"id"}, Schema: all.Schema}
	if plan := r.prepare(target); len(plan.Notes) != 2 {
		t.Errorf("the plan notes %q", plan.Notes)
	}
	if rejected := r.write(target, nil, all); rejected != nil {
		t.Fatalf("rejected: %+v", rejected)
	}
	want, got := r.lines("SELECT * FROM every"), r.lines("SELECT * FROM copied")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// One value has one form, read as a row or as JSON.
	rows := make([]string, all.Rows())
	for i := range rows {
		rows[i] = string(all.AppendJSON(nil, i))
	}
	slices.Sort(rows)
	for i := range rows {
		if rows[i] != want[i] {
			t.Errorf("a row is read as\n%s\nand as JSON it is\n%s", rows[i], want[i])
		}
	}
}

// columnsOf lists the columns that a statement creates, in its order.
func columnsOf(create string) string {
	_, list, _ := strings.Cut(create, "(")
	var names []string
	depth := 0
	start := true
	for _, word := range strings.FieldsFunc(strings.NewReplacer(",", " , ", "<", " < ", ">", " > ", "(", " ( ", ")", " ) ").Replace(list), func(c rune) bool { return c == ' ' || c == '\n' || c == '\t' }) {
		switch word {
		case "<", "(":
			depth++
		case ">", ")":
			depth--
		case ",":
			start = depth == 0
			continue
		default:
			if start && depth == 0 {
				names = append(names, word)
			}
		}
		start = false
	}
	return strings.Join(names, ", ")
}

// partitioned are rows of partitions.
var partitioned = &record.Schema{Columns: []record.Column{
	{Name: "p", Type: record.TypeInt32}, {Name: "c", Type: record.TypeInt32},
	{Name: "v", Type: record.TypeText, Nullable: true}, {Name: "w", Type: record.TypeText, Nullable: true},
	{Name: "l", Type: record.TypeJSON, Nullable: true}, {Name: "s", Type: record.TypeJSON, Nullable: true}, {Name: "m", Type: record.TypeJSON, Nullable: true},
}, Key: []string{"p", "c"}}

const partitionedTable = "(p int, c int, v text, w text, l frozen<list<int>>, s set<text>, m map<int, text>, PRIMARY KEY (p, c))"

// partitionedValues are those that rows have behind their key, beside null.
var partitionedValues = [5][]string{{"x", "y"}, {"x", "y"}, {`[1]`, `[1,2]`}, {`["a"]`, `["a","b"]`}, {`{"1":"a"}`, `{"1":"b","2":"b"}`}}

// partitionedRow appends a row of texts, of which "-" is absent and "" null.
func partitionedRow(b *record.Batch, row ...string) {
	for i := range b.Columns {
		switch v := &b.Columns[i]; {
		case i >= len(row) || row[i] == "-":
			v.AppendAbsent()
		case row[i] == "":
			v.AppendNull()
		case v.Kind == record.Int:
			n, _ := strconv.Atoi(row[i])
			v.AppendInt(int64(n))
		default:
			v.AppendString(row[i])
		}
	}
	b.Done()
}

// Changes are applied as if one by one, in whatever batches they come, by whatever
// number of attempts, and however late an attempt writes that was overtaken.
func changesHaveTheirEffectOnceInOrder(t *testing.T, r *tablesRig) {
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		if n > 25 && strings.Contains(r.Name(), "Cassandra") {
			return // each makes a table
		}
		name := fmt.Sprintf("wide_%d", n)
		r.exec("CREATE TABLE " + name + " " + partitionedTable)
		key := driver.CheckpointKey{Pipeline: "law", Part: name}
		target := driver.TableTarget{Table: r.name(name), Mode: driver.Upsert, Key: partitioned.Key, Schema: partitioned, Changes: true, Checkpoint: key}
		r.prepare(target)
		// At their source changes were made at times that do not always rise: clocks of
		// PostgreSQL's do not. Those of an engine that settles by time have their own.
		timed := rapid.Bool().Draw(t, "timed")
		model := map[string][len(partitionedValues)]string{}
		var stream []func(*record.Batch)
		at := time.Now().Add(-time.Hour).UnixMicro()
		for i := range rapid.IntRange(1, 30).Draw(t, "changes") {
			change := record.Change{Pos: cdc.Position(fmt.Sprintf("%06d", i+1)), At: at + rapid.Int64Range(-3, 3).Draw(t, "jitter")}
			if at++; timed {
				at += 10
				change.WriteTime = at
			}
			p, c := rapid.SampledFrom([]string{"1", "2"}).Draw(t, "p"), rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "c")
			row := []string{p, c}
			// give has the row get values, which some may lack that keep what they were.
			give := func(some ...string) {
				old := model[p+c]
				for i, values := range partitionedValues {
					v := rapid.SampledFrom(slices.Concat([]string{""}, values, some)).Draw(t, partitioned.Columns[i+2].Name)
					if row = append(row, v); v != "-" {
						old[i] = v
					}
				}
				model[p+c] = old
			}
			var old []string // the key that it had before
			kind := rapid.IntRange(0, 9).Draw(t, "op")
			switch {
			case kind >= 8 && !timed:
				from := p + c
				p, c = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "to p"), rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "to c")
				_, there := model[from]
				if _, taken := model[p+c]; !there || taken {
					continue
				}
				change.Op, old, row = cdc.Update, row, []string{p, c}
				model[p+c] = model[from]
				delete(model, from)
				give("-")
			case kind == 0:
				change.Op = cdc.Delete
				delete(model, p+c)
			case kind == 1:
				change.Op, row = cdc.Truncate, nil
				clear(model)
			case kind == 2:
				change.Op, row = cdc.DeletePartition, []string{p}
				maps.DeleteFunc(model, func(k string, _ [len(partitionedValues)]string) bool { return k[:1] == p })
			case kind == 3:
				op := rapid.SampledFrom([]string{"<", "<=", ">", ">="}).Draw(t, "bound")
				change.Op, row, change.Where = cdc.DeleteRange, []string{p}, []record.Condition{{Column: "c", Op: op, Value: json.RawMessage(c)}}
				maps.DeleteFunc(model, func(k string, _ [len(partitionedValues)]string) bool {
					order := strings.Compare(k[1:], c)
					return k[:1] == p && (order < 0 && op[0] == '<' || order > 0 && op[0] == '>' || order == 0 && len(op) == 2)
				})
			case timed: // what is not given stays
				change.Op = cdc.Insert
				give("-")
			default:
				change.Op = cdc.Update
				if _, there := model[p+c]; there && rapid.Bool().Draw(t, "partial") {
					give("-")
				} else {
					give()
				}
			}
			stream = append(stream, func(b *record.Batch) {
				if old != nil {
					partitionedRow(b, old...)
					b.Changes = append(b.Changes, record.Change{Op: cdc.Delete, Pos: change.Pos, At: change.At, Implied: true})
				}
				partitionedRow(b, row...)
				b.Changes = append(b.Changes, change)
			})
		}
		batches := func(from int) (list []*record.Batch) {
			for from < len(stream) {
				b := record.New(partitioned, 8)
				for range rapid.IntRange(1, 10).Draw(t, "batch") {
					if from < len(stream) {
						stream[from](b)
						from++
					}
				}
				list = append(list, b)
			}
			return list
		}
		// An attempt that is overtaken: it has begun, and writes on when another is done.
		zombie, err := r.b.BeginTable(r.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		lost := batches(0)
		early := rapid.IntRange(0, len(lost)).Draw(t, "written early")
		for _, b := range lost[:early] {
			if _, err := zombie.Write(r.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		r.write(target, &driver.Checkpoint{CheckpointKey: key, Position: "1"}, batches(0)...)
		for _, b := range lost[early:] {
			if _, err := zombie.Write(r.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		if err := zombie.Commit(r.Context(), driver.Checkpoint{CheckpointKey: key, Position: "2"}); err == nil {
			t.Fatal("who was overtaken has committed")
		}
		var want []string
		for k, row := range model {
			want = append(want, fmt.Sprintf(`{"p":%s,"c":%s,"v":%s,"w":%s,"l":%s,"s":%s,"m":%s}`, k[:1], k[1:], text(row[0]), text(row[1]), cmp.Or(row[2], "null"), cmp.Or(row[3], "null"), cmp.Or(row[4], "null")))
		}
		slices.Sort(want)
		got := r.lines("SELECT p, c, v, w, l, s, m FROM " + name)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("the table has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func text(s string) string {
	if s == "" {
		return "null"
	}
	return strconv.Quote(s)
}

func plansNameWhatStandsInTheWay(t *testing.T, r *tablesRig) {
	r.exec("CREATE TABLE taken (p int, q int, c timestamp, v int, PRIMARY KEY ((p, q), c)) WITH default_time_to_live = 3600")
	r.exec("CREATE TABLE counted (p int PRIMARY KEY, n counter)")
	r.exec("CREATE TABLE listed (p int PRIMARY KEY, l list<int>)")
	column := func(name string, t record.Type) record.Column {
		return record.Column{Name: name, Type: t, Nullable: true}
	}
	schema := func(columns ...record.Column) *record.Schema { return &record.Schema{Columns: columns} }
	p, q, c, v := column("p", record.TypeInt32), column("q", record.TypeInt32), column("c", record.TypeTimestampTZ), column("v", record.TypeInt64)
	tests := map[string]struct {
		target driver.TableTarget
		code   string
		column string
		text   string
	}{
		"the partition key is not in the rows":   {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, c, v)}, "no_key", "q", "partition key"},
		"a clustering column is not in the rows": {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, q, v)}, "no_key", "c", "clustering column"},
		"the key is a part of the table's":       {driver.TableTarget{Table: r.name("taken"), Mode: driver.Upsert, Key: []string{"p", "q"}, Schema: schema(p, q, c, v)}, "key_not_unique", "c", "(p, q, c)"},
		"the key is another one":                 {driver.TableTarget{Table: r.name("taken"), Mode: driver.Upsert, Key: []string{"p", "q", "c", "v"}, Schema: schema(p, q, c, v)}, "key_not_unique", "v", "(p, q, c)"},
		"a column is not there":                  {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, q, c, column("x", record.TypeText))}, "no_column", "x", "let columns be added"},
		"a column takes no such values":          {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, q, c, column("v", record.TypeBytes))}, "column_type", "v", "cast"},
		"a list that would double":               {driver.TableTarget{Table: r.name("listed"), Mode: driver.Append, Schema: schema(p, column("l", record.TypeJSON))}, "column_type", "l", "frozen<list<int>>"},
		"a table of counters":                    {driver.TableTarget{Table: r.name("counted"), Mode: driver.Append, Schema: schema(p, column("n", record.TypeInt64))}, "no_rows_of_mode", "", "counters"},
		"a mode that CQL has not":                {driver.TableTarget{Table: r.name("taken"), Mode: driver.Merge, Key: []string{"p", "q", "c"}, Run: "r", Schema: schema(p, q, c, v)}, "mode", "", "upsert"},
		"no keyspace":                            {driver.TableTarget{Table: driver.TableName{Schema: "nowhere", Table: "t"}, Mode: driver.Append, Create: true, Schema: schema(p)}, "no_table", "", "keyspace"},
		"no key to create a table with":          {driver.TableTarget{Table: r.name("fresh"), Mode: driver.Append, Create: true, Schema: schema(p, v)}, "no_key", "", "upsert"},
		"a time of writing that is none":         {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, q, c, column("at", record.TypeText)), WriteTime: "at"}, "write_time", "at", "microseconds"},
		"nothing":                                {driver.TableTarget{Table: r.name("taken"), Mode: driver.Append, Schema: schema(p, q, c, v, column("x", record.TypeUUID), column("left", record.TypeInt32)), TTL: "left", AddColumns: true}, "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			plan, err := r.b.PlanTable(t.Context(), tt.target)
			if err != nil {
				t.Fatal(err)
			}
			if tt.code == "" {
				if len(plan.Problems) > 0 || len(plan.Alters) != 1 || !slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, `"c" keeps milliseconds`) }) {
					t.Errorf("the plan is %+v", plan)
				}
				return
			}
			if i := slices.IndexFunc(plan.Problems, func(p driver.TableProblem) bool { return p.Code == tt.code }); i < 0 || plan.Problems[i].Column != tt.column || !strings.Contains(plan.Problems[i].Message, tt.text) {
				t.Errorf("problems are %+v", plan.Problems)
			}
		})
	}
}

// A list that a table is given holds against being written twice.
func newListsAreFrozen(t *testing.T, r *tablesRig) {
	r.exec("CREATE TABLE plain (id int PRIMARY KEY)")
	s := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt32, Native: "int"}, {Name: "l", Type: record.TypeJSON, Native: "list<int>", Nullable: true},
		{Name: "f", Type: record.TypeJSON, Native: "frozen<list<int>>", Nullable: true}, {Name: "s", Type: record.TypeJSON, Native: "set<frozen<list<int>>>", Nullable: true},
	}, Key: []string{"id"}}
	for _, table := range []string{"plain", "fresh"} {
		target := driver.TableTarget{Table: r.name(table), Mode: driver.Upsert, Key: s.Key, Schema: s, Changes: true, Create: true, AddColumns: true}
		r.prepare(target)
		b := record.New(s, 1)
		for range 3 {
			if _, err := record.NewParser(s).Parse(b, []byte(`{"id":1,"l":[1,2],"f":[2,1],"s":[[1],[2,2]]}`)); err != nil {
				t.Fatal(err)
			}
			b.Changes = append(b.Changes, record.Change{Op: cdc.Update, Pos: "1", WriteTime: 1795341600123456})
			if rejected := r.write(target, nil, b); rejected != nil {
				t.Fatalf("rejected: %+v", rejected)
			}
		}
		if got, want := r.lines("SELECT id, l, f, s FROM "+table), []string{`{"id":1,"l":[1,2],"f":[2,1],"s":[[1],[2,2]]}`}; !slices.Equal(got, want) {
			t.Errorf("%s has %s", table, got)
		}
	}
}

// A table that is altered while it is written to ends the transaction, and no rows are
// taken for such as it does not take; in the next one the rest goes on.
func noRowIsRejectedForAColumnThatIsGone(t *testing.T, r *tablesRig) {
	column := func(name string, t record.Type) record.Column {
		return record.Column{Name: name, Type: t, Nullable: true}
	}
	for _, changes := range []bool{false, true} {
		for name, alter := range map[string]string{
			"dropped": "ALTER TABLE %s DROP o", "renamed": "ALTER TABLE %s RENAME id TO number", "made_anew": "DROP TABLE %s; CREATE TABLE %s (p int, id int, n int, o text, q int, PRIMARY KEY (p, id, q))",
		} {
			table := fmt.Sprintf("%s_%v", name, changes)
			r.exec("CREATE TABLE " + table + " (p int, id int, n int, o text, PRIMARY KEY (p, id))")
			s := &record.Schema{Columns: []record.Column{column("p", record.TypeInt32), column("id", record.TypeInt32), column("n", record.TypeInt32), column("o", record.TypeText)}, Key: []string{"p", "id"}}
			rows := func(lines ...string) *record.Batch {
				b := record.New(s, len(lines))
				for _, line := range lines {
					if _, err := record.NewParser(s).Parse(b, []byte(line)); err != nil {
						t.Fatal(err)
					}
					if changes {
						b.Changes = append(b.Changes, record.Change{Op: cdc.Update, Pos: "1", At: 1795341600123456})
					}
				}
				return b
			}
			target := driver.TableTarget{Table: r.name(table), Mode: driver.Upsert, Key: s.Key, Schema: s, Changes: changes, Run: "r"}
			r.prepare(target)
			tx, err := r.b.BeginTable(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			if rejected, err := tx.Write(t.Context(), rows(`{"p":1,"id":1,"n":1,"o":"x"}`)); err != nil || rejected != nil {
				t.Fatal(rejected, err)
			}
			for _, text := range strings.Split(alter, "; ") {
				r.exec(strings.ReplaceAll(text, "%s", table))
			}
			rejected, err := tx.Write(t.Context(), rows(`{"p":1,"id":2,"n":2,"o":"y"}`, `{"p":1,"id":3,"n":3,"o":"z"}`, `{"p":2,"id":1,"n":1,"o":"x"}`))
			if athena.CodeOf(err) != athena.CodeConflict || rejected != nil || !strings.Contains(err.Error(), "altered") {
				t.Errorf("%s: rejected %+v, %v", table, rejected, err)
			}
			if err := tx.Commit(t.Context(), driver.Checkpoint{}); err == nil {
				t.Errorf("%s: the transaction was committed", table)
			}
		}
	}
}

func rowsAreRefusedOneByOne(t *testing.T, r *tablesRig) {
	r.exec("CREATE TABLE strict (p text, c timestamp, s text static, u timeuuid, d date, n tinyint, a ascii, PRIMARY KEY (p, c))")
	s := &record.Schema{Columns: []record.Column{
		{Name: "p", Type: record.TypeText}, {Name: "c", Type: record.TypeTimestampTZ}, {Name: "u", Type: record.TypeUUID, Nullable: true}, {Name: "d", Type: record.TypeDate, Nullable: true},
		{Name: "n", Type: record.TypeInt64, Nullable: true}, {Name: "a", Type: record.TypeText, Nullable: true}, {Name: "wrote", Type: record.TypeInt64, Nullable: true}, {Name: "lives", Type: record.TypeInt64, Nullable: true},
	}, Key: []string{"p", "c"}}
	rows := []struct{ row, column, reason string }{
		{`{"p":"good","c":"2026-11-22T10:00:00Z","n":1}`, "", ""},
		{`{"p":null,"c":"2026-11-22T10:00:00Z"}`, "p", "part of the key"},
		{`{"p":"finer","c":"2026-11-22T10:00:00.000001Z"}`, "c", "milliseconds"},
		{`{"p":"","c":"2026-11-22T10:00:00Z"}`, "", "empty"}, // what only the server says
		{`{"p":"uuid","c":"2026-11-22T10:00:00Z","u":"6ba7b810-9dad-41d1-80b4-00c04fd430c8"}`, "u", "version 1"},
		{`{"p":"ends","c":"2026-11-22T10:00:00Z","d":"infinity"}`, "d", "infinite"},
		{`{"p":"much","c":"2026-11-22T10:00:00Z","n":128}`, "n", "-128 to 127"},
		{`{"p":"é","c":"2026-11-22T10:00:00Z","a":"é"}`, "a", "ASCII"},
		{`{"p":"` + strings.Repeat("x", 70_000) + `","c":"2026-11-22T10:00:00Z"}`, "", "65535"},
		{`{"p":"old","c":"2026-11-22T10:00:00Z","n":2,"wrote":1000000,"lives":5000}`, "", ""},
		{`{"p":"good","c":"2026-11-22T10:00:01Z","a":"last"}`, "", ""},
		{`{"p":"good","c":"2026-11-22T10:00:00Z","n":3}`, "", ""}, // the key came before: the last one counts
	}
	b := record.New(s, len(rows))
	for _, x := range rows {
		if _, err := record.NewParser(s).Parse(b, []byte(x.row)); err != nil {
			t.Fatal(err)
		}
	}
	target := driver.TableTarget{Table: r.name("strict"), Mode: driver.Upsert, Key: s.Key, Schema: s, WriteTime: "wrote", TTL: "lives"}
	r.prepare(target)
	rejected := r.write(target, nil, b)
	for i, x := range rows {
		at := slices.IndexFunc(rejected, func(r record.Rejected) bool { return r.Row == i })
		switch {
		case x.reason == "" && at >= 0, x.reason != "" && at < 0:
			t.Errorf("row %.60s: rejected %v", x.row, at >= 0)
		case at >= 0 && (rejected[at].Column != x.column || !strings.Contains(rejected[at].Reason, x.reason)):
			t.Errorf("row %.60s is rejected as %+v", x.row, rejected[at])
		}
	}
	// A row that is refused under another key stays under the one that it had.
	changes := record.New(s, 2)
	for _, row := range []string{`{"p":"old","c":"2026-11-22T10:00:00Z"}`, `{"p":"moved","c":"2026-11-22T10:00:00Z","n":128}`} {
		if _, err := record.NewParser(s).Parse(changes, []byte(row)); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Now().UnixMicro()
	changes.Changes = []record.Change{{Op: cdc.Delete, Pos: "1", At: at, Implied: true}, {Op: cdc.Update, Pos: "1", At: at}}
	target.Changes = true
	if rejected := r.write(target, nil, changes); len(rejected) != 1 || rejected[0].Row != 1 || rejected[0].Column != "n" {
		t.Errorf("rejected: %+v", rejected)
	}
	got := r.lines("SELECT p, n, a FROM strict")
	slices.Sort(got)
	if want := []string{`{"p":"good","n":3,"a":null}`, `{"p":"good","n":null,"a":"last"}`, `{"p":"old","n":2,"a":null}`}; !slices.Equal(got, want) {
		t.Errorf("the table has %v", got)
	}
	if got := r.lines("SELECT writetime(n) AS at, ttl(n) AS lives FROM strict WHERE p = 'old'"); len(got) != 1 || !strings.HasPrefix(got[0], `{"at":1000000,"lives":`) || strings.Contains(got[0], "null") {
		t.Errorf("the row that says when it was written has %v", got)
	}
}
