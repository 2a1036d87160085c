package postgres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// wide are rows that are told apart by a partition and a place in it.
var wide = &record.Schema{Columns: []record.Column{
	{Name: "p", Type: record.TypeInt32}, {Name: "c", Type: record.TypeText},
	{Name: "v", Type: record.TypeText, Nullable: true}, {Name: "w", Type: record.TypeText, Nullable: true},
}, Key: []string{"p", "c"}}

const wideTable = "CREATE TABLE wide (p int, c text, v text, w text, PRIMARY KEY (p, c))"

// wideChange appends a row of texts, of which "-" is absent and "" null.
func wideChange(b *record.Batch, change record.Change, row ...string) {
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
	change.Pos = cdc.Position(fmt.Sprintf("%06d", b.Rows()))
	b.Changes = append(b.Changes, change)
}

// Changes of an engine that writes without a look at the row, and deletes many rows at
// once, have in a table the effect that they have one by one.
func TestWideChangesHaveTheirEffectInOrder(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, wideTable)
	target := driver.TableTarget{Table: public("wide"), Mode: driver.Upsert, Key: wide.Key, Schema: wide, Changes: true}
	r.prepare(target)
	model := map[string][2]string{}
	marks := []string{"A", "B", "Ä", "a", "b"} // in the order of bytes: A B a b Ä
	rapid.Check(t, func(t *rapid.T) {
		b := record.New(wide, 16)
		for range rapid.IntRange(1, 24).Draw(t, "changes") {
			p, c := rapid.SampledFrom([]string{"1", "2"}).Draw(t, "p"), rapid.SampledFrom(marks).Draw(t, "c")
			value := func(name string) string { return rapid.SampledFrom([]string{"-", "", "x", "y"}).Draw(t, name) }
			switch rapid.IntRange(0, 5).Draw(t, "op") {
			case 0:
				wideChange(b, record.Change{Op: cdc.Delete, WriteTime: 1}, p, c)
				delete(model, p+c)
			case 1:
				wideChange(b, record.Change{Op: cdc.DeletePartition, WriteTime: 1}, p)
				maps.DeleteFunc(model, func(k string, _ [2]string) bool { return k[:1] == p })
			case 2:
				op := rapid.SampledFrom([]string{"<", "<=", ">", ">="}).Draw(t, "bound")
				raw, _ := json.Marshal(c)
				wideChange(b, record.Change{Op: cdc.DeleteRange, WriteTime: 1, Where: []record.Condition{{Column: "c", Op: op, Value: raw}}}, p)
				maps.DeleteFunc(model, func(k string, _ [2]string) bool {
					order := strings.Compare(k[1:], c)
					return k[:1] == p && (order < 0 && op[0] == '<' || order > 0 && op[0] == '>' || order == 0 && len(op) == 2)
				})
			default:
				v, w := value("v"), value("w")
				wideChange(b, record.Change{Op: cdc.Update, WriteTime: 1}, p, c, v, w)
				row := model[p+c]
				for i, s := range []string{v, w} {
					if s != "-" {
						row[i] = s
					}
				}
				model[p+c] = row
			}
		}
		if rejected := r.write(target, done(), b); rejected != nil {
			t.Fatalf("rejected: %+v", rejected)
		}
		var want []string
		for k, row := range model {
			want = append(want, fmt.Sprintf("%s|%s|%s", k, row[0], row[1]))
		}
		slices.Sort(want)
		if got := r.text(`SELECT coalesce(string_agg(p || c || '|' || coalesce(v, '') || '|' || coalesce(w, ''), ' ' ORDER BY p, c COLLATE "C"), '') FROM wide`); got != strings.Join(want, " ") {
			t.Fatalf("the table has\n%s\nwant\n%s", got, strings.Join(want, " "))
		}
	})
}

func TestDeletesOfManyRowsThatWouldDeleteOthersAreRejected(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, wideTable+"; CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE moods (p int, c mood, v text, w text, PRIMARY KEY (p, c))")
	target := driver.TableTarget{Table: public("wide"), Mode: driver.Upsert, Key: wide.Key, Schema: wide, Changes: true}
	less := []record.Condition{{Column: "c", Op: "<", Value: json.RawMessage(`"sad"`)}}
	tests := map[string]struct {
		table  string
		change record.Change
		row    []string
		want   string
	}{
		"one that names nothing":  {"wide", record.Change{Op: cdc.DeletePartition, WriteTime: 1}, nil, "would delete them all"},
		"one by another order":    {"moods", record.Change{Op: cdc.DeleteRange, WriteTime: 1, Where: less}, []string{"1"}, "which as mood has another one"},
		"one by no such column":   {"wide", record.Change{Op: cdc.DeleteRange, WriteTime: 1, Where: []record.Condition{{Column: "x", Op: "<", Value: json.RawMessage("1")}}}, []string{"1"}, `no column "x"`},
		"a row of a partition":    {"wide", record.Change{Op: cdc.Update, WriteTime: 1}, []string{"1", "-", "x"}, "static columns"},
		"a key that is null":      {"wide", record.Change{Op: cdc.Update, WriteTime: 1}, []string{"1", "", "x"}, "is null"},
		"a partial row not blind": {"wide", record.Change{Op: cdc.Update}, []string{"1", "z", "x"}, "REPLICA IDENTITY FULL"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			target := target
			target.Table.Table = tt.table
			r.prepare(target)
			b := record.New(wide, 2)
			wideChange(b, record.Change{Op: cdc.Update, WriteTime: 1}, "1", "sad", "there", "")
			wideChange(b, tt.change, tt.row...)
			rejected := r.write(target, done(), b)
			if len(rejected) != 1 || rejected[0].Row != 1 || !strings.Contains(rejected[0].Reason, tt.want) {
				t.Errorf("rejected: %+v", rejected)
			}
			if got := r.text("SELECT count(*)::text FROM " + tt.table + " WHERE v = 'there'"); got != "1" {
				t.Errorf("%s rows are there", got)
			}
		})
	}
}

func TestTimesOfWritesAreNoneOfPostgreSQL(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, wideTable)
	plan, err := r.b.PlanTable(t.Context(), driver.TableTarget{Table: public("wide"), Mode: driver.Append, Schema: wide, WriteTime: "v", TTL: "w"})
	if err != nil || len(plan.Problems) != 2 || plan.Problems[0].Code != "write_time" || plan.Problems[0].Column != "v" || plan.Problems[1].Column != "w" {
		t.Errorf("%+v, %v", plan.Problems, err)
	}
}
