package drivertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A tableSuite checks a driver that reads and writes tables. It needs nothing but the
// driver itself: the tables are those that it creates.
type tableSuite struct {
	*suite
	r driver.TableReader
	w driver.TableWriter
}

func (s *suite) tables(t *testing.T) {
	c := &tableSuite{suite: s, r: s.b.(driver.TableReader), w: s.b.(driver.TableWriter)}
	t.Run("what is appended is read", c.readBack)
	t.Run("what is read can be chosen", c.choose)
	t.Run("batches are bounded", c.bounds)
	t.Run("parts are the whole", c.parts)
	t.Run("statements are read", c.statements)
	t.Run("what cannot be read is refused", c.unreadable)
	t.Run("rows that are refused hold up no others", c.refused)
	t.Run("a plan changes nothing", c.plan)
	t.Run("upserts", c.upserts)
	t.Run("changes", c.changes)
	t.Run("a log of changes", c.log)
	t.Run("staged modes", c.staged)
	t.Run("checkpoints", c.checkpoints)
	if copier, ok := s.b.(driver.TableCopier); ok {
		t.Run("verbatim copies", func(t *testing.T) { c.copies(t, copier) })
	}
}

var tableCount atomic.Int64

// table is a new name.
func (c *tableSuite) table() driver.TableName {
	return driver.TableName{Schema: c.Schema, Table: fmt.Sprintf("tables_%d", tableCount.Add(1))}
}

// items is the schema of most of the tables here.
var items = &record.Schema{Columns: []record.Column{
	{Name: "id", Type: record.TypeInt64},
	{Name: "name", Type: record.TypeText, Nullable: true},
	{Name: "total", Type: record.DecimalOf(12, 2), Nullable: true},
	{Name: "at", Type: record.TypeTimestampTZ, Nullable: true},
}, Key: []string{"id"}}

// item appends a row.
func item(b *record.Batch, id int64, name string) {
	b.Columns[0].AppendInt(id)
	b.Columns[1].AppendString(name)
	b.Columns[2].AppendString(fmt.Sprintf("%d.50", id))
	b.Columns[3].AppendInt(id * 1_000_001)
	b.Done()
}

func itemRange(from, to int64) *record.Batch {
	b := record.New(items, int(to-from))
	for id := from; id < to; id++ {
		item(b, id, fmt.Sprintf("item %d", id))
	}
	return b
}

// partKey is a checkpoint's key that nobody else has.
func partKey() driver.CheckpointKey {
	return driver.CheckpointKey{Pipeline: "suite", Run: "run", Part: strconv.FormatInt(tableCount.Add(1), 10)}
}

func done() driver.Checkpoint {
	return driver.Checkpoint{CheckpointKey: partKey(), Position: "done"}
}

// prepare prepares a target that is to be created.
func (c *tableSuite) prepare(t *testing.T, target driver.TableTarget) driver.TableTarget {
	t.Helper()
	if target.Table == (driver.TableName{}) {
		target.Table, target.Create = c.table(), true
	}
	if target.Schema == nil {
		target.Schema = items
	}
	if target.Mode.Staged() && target.Run == "" {
		target.Run = fmt.Sprint("run ", tableCount.Add(1))
	}
	if _, err := c.w.PrepareTable(t.Context(), target); err != nil {
		t.Fatalf("PrepareTable: %v", err)
	}
	return target
}

// write commits batches in one transaction.
func (c *tableSuite) write(t *testing.T, target driver.TableTarget, at driver.Checkpoint, batches ...*record.Batch) (rejected []record.Rejected) {
	t.Helper()
	tx := c.begin(t, target)
	defer tx.Rollback(t.Context())
	for _, b := range batches {
		some, err := tx.Write(t.Context(), b)
		if err != nil {
			t.Fatalf("Write: %v", err)
		}
		rejected = append(rejected, some...)
	}
	if err := tx.Commit(t.Context(), at); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	return rejected
}

func (c *tableSuite) begin(t *testing.T, target driver.TableTarget) driver.TableTx {
	t.Helper()
	tx, err := c.w.BeginTable(t.Context(), target)
	if err != nil {
		t.Fatalf("BeginTable: %v", err)
	}
	return tx
}

// lines reads rows as JSON, sorted.
func (c *tableSuite) lines(t *testing.T, read driver.TableRead, parts ...driver.TablePart) (lines []string) {
	t.Helper()
	if parts == nil {
		parts = []driver.TablePart{{}}
	}
	for _, p := range parts {
		err := c.r.ReadTable(t.Context(), read, p, driver.BatchSize{}, func(b *record.Batch) error {
			for i := range b.Rows() {
				lines = append(lines, string(b.AppendJSON(nil, i)))
			}
			return nil
		})
		if err != nil {
			t.Fatalf("ReadTable: %v", err)
		}
	}
	slices.Sort(lines)
	return lines
}

// names maps the ids of a table's rows to their names.
func (c *tableSuite) names(t *testing.T, table driver.TableName) map[int64]string {
	t.Helper()
	m := map[int64]string{}
	err := c.r.ReadTable(t.Context(), driver.TableRead{Table: table, Columns: []string{"id", "name"}}, driver.TablePart{}, driver.BatchSize{}, func(b *record.Batch) error {
		for i := range b.Rows() {
			m[b.Columns[0].Ints[i]] = string(b.Columns[1].Bytes(i))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ReadTable: %v", err)
	}
	return m
}

func (c *tableSuite) wantNames(t *testing.T, table driver.TableName, want map[int64]string) {
	t.Helper()
	if got := c.names(t, table); !maps.Equal(got, want) {
		t.Errorf("the table has %v\nwant %v", got, want)
	}
}

// everyKind has a column of each kind.
func everyKind() *record.Batch {
	s := &record.Schema{Columns: []record.Column{{Name: "id", Type: record.TypeInt64}}, Key: []string{"id"}}
	for _, typ := range []record.Type{record.TypeBool, record.TypeInt16, record.TypeInt32, record.TypeFloat32, record.TypeFloat64, record.TypeDecimal,
		record.DecimalOf(20, 3), record.TypeText, record.TypeBytes, record.TypeDate, record.TypeTime, record.TypeTimestamp, record.TypeTimestampTZ, record.TypeUUID, record.TypeJSON} {
		s.Columns = append(s.Columns, record.Column{Name: "c " + typ.String(), Type: typ, Nullable: true})
	}
	b := record.New(s, 3)
	for id := range 3 {
		b.Columns[0].AppendInt(int64(id))
		for i, col := range s.Columns[1:] {
			v := &b.Columns[i+1]
			switch {
			case id == 0:
				v.AppendNull()
			case col.Type.Kind == record.Float:
				v.AppendFloat(float64(id) / 4)
			case col.Type.Kind == record.Bool:
				v.AppendBool(id == 1)
			case col.Type.Kind == record.Decimal:
				v.AppendString([]string{"", "-12.500", "12345678901234567.001"}[id])
			case col.Type.Kind == record.Text:
				v.AppendString([]string{"", "", "é \" \\ \n 日本"}[id])
			case col.Type.Kind == record.Bytes:
				v.AppendString([]string{"", "", "\x00\xff"}[id])
			case col.Type.Kind == record.UUID:
				v.AppendString(strings.Repeat(string(rune('a'+id)), 16))
			case col.Type.Kind == record.JSON:
				v.AppendString([]string{"", `null`, `{"a": [1.50, "x"]}`}[id])
			default:
				v.AppendInt([]int64{0, -1, 1234}[id] * map[bool]int64{true: -1, false: 1}[col.Type.Kind == record.Time && id == 1])
			}
		}
		b.Done()
	}
	return b
}

func (c *tableSuite) readBack(t *testing.T) {
	b := everyKind()
	target := c.prepare(t, driver.TableTarget{Mode: driver.Append, Schema: b.Schema})
	if rejected := c.write(t, target, done(), b); rejected != nil {
		t.Errorf("rejected: %+v", rejected)
	}
	kept := c.kept(t, b)
	var want []string
	for i := range kept.Rows() {
		want = append(want, string(kept.AppendJSON(nil, i)))
	}
	if got := c.lines(t, driver.TableRead{Table: target.Table, Columns: b.Schema.Names()}); !slices.Equal(got, want) {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	shape, err := c.r.DescribeTable(t.Context(), target.Table)
	if err != nil {
		t.Fatal(err)
	}
	for _, col := range kept.Schema.Columns {
		i := shape.Schema.Index(col.Name)
		if i < 0 {
			t.Fatalf("the table has the columns %v", shape.Schema.Columns)
		}
		if got := shape.Schema.Columns[i]; got.Type != col.Type || got.Nullable != col.Nullable || got.Native == "" {
			t.Errorf("column %+v was created as %+v", col, got)
		}
	}
}

// kept is a batch as the engine's tables keep it.
func (c *tableSuite) kept(t *testing.T, b *record.Batch) *record.Batch {
	t.Helper()
	s := &record.Schema{Columns: slices.Clone(b.Schema.Columns), Key: b.Schema.Key}
	for i := range s.Columns {
		s.Columns[i].Type = c.keptType(s.Columns[i].Type)
	}
	out := record.New(s, b.Rows())
	for i := range s.Columns {
		v := &out.Columns[i]
		for row := range b.Rows() {
			if err := record.Convert(v, s.Columns[i].Type, &b.Columns[i], b.Schema.Columns[i].Type, row); err != nil {
				t.Fatal(err)
			}
		}
		if k := v.Kind; c.Tables.Milliseconds && (k == record.Timestamp || k == record.TimestampTZ) {
			for row, n := range v.Ints {
				v.Ints[row] = n - (n%1000+1000)%1000
			}
		}
	}
	out.SetRows(b.Rows())
	return out
}

func (c *tableSuite) keptType(t record.Type) record.Type {
	if c.Tables.Kept == nil {
		return t
	}
	return c.Tables.Kept(t)
}

func (c *tableSuite) choose(t *testing.T) {
	target := c.prepare(t, driver.TableTarget{Mode: driver.Append})
	b := itemRange(0, 20)
	b.Columns[0].AppendInt(20)
	for i := 1; i < 4; i++ {
		b.Columns[i].AppendNull()
	}
	b.Done()
	c.write(t, target, done(), b)
	for name, x := range map[string]struct {
		where []driver.Condition
		want  int
	}{
		"equal":              {[]driver.Condition{{Column: "id", Op: "=", Value: json.RawMessage("7")}}, 1},
		"not equal":          {[]driver.Condition{{Column: "name", Op: "!=", Value: json.RawMessage(`"item 7"`)}}, 19},
		"less":               {[]driver.Condition{{Column: "total", Op: "<", Value: json.RawMessage(`"3.50"`)}}, 3},
		"two":                {[]driver.Condition{{Column: "id", Op: ">=", Value: json.RawMessage("3")}, {Column: "id", Op: "<=", Value: json.RawMessage("5")}}, 3},
		"greater, of a time": {[]driver.Condition{{Column: "at", Op: ">", Value: json.RawMessage(`"1970-01-01T00:00:17.500000Z"`)}}, 2},
		"like":               {[]driver.Condition{{Column: "name", Op: "like", Value: json.RawMessage(`"item 1_"`)}}, 10},
		"in":                 {[]driver.Condition{{Column: "id", Op: "in", Value: json.RawMessage(`[1, 5, 99]`)}}, 2},
		"null":               {[]driver.Condition{{Column: "name", Op: "is_null"}}, 1},
		"not null":           {[]driver.Condition{{Column: "name", Op: "not_null"}}, 20},
		"a quote":            {[]driver.Condition{{Column: "name", Op: "=", Value: json.RawMessage(`"' OR ''='"`)}}, 0},
	} {
		if got := c.lines(t, driver.TableRead{Table: target.Table, Where: x.where}); len(got) != x.want {
			t.Errorf("%s: %d rows, want %d: %v", name, len(got), x.want, got)
		}
	}
	if got := c.lines(t, driver.TableRead{Table: target.Table, Limit: 5}); len(got) != 5 {
		t.Errorf("%d rows of at most 5", len(got))
	}
	if got := c.lines(t, driver.TableRead{Table: target.Table, Columns: []string{"name", "id"}, Limit: 1}); len(got) != 1 || !strings.HasPrefix(got[0], `{"name":"item `) || strings.Contains(got[0], "total") {
		t.Errorf("two columns: %v", got)
	}
	for field, read := range map[string]driver.TableRead{
		"columns[1]":        {Columns: []string{"id", "none"}},
		"where[0].column":   {Where: []driver.Condition{{Column: "none", Op: "=", Value: json.RawMessage("1")}}},
		"where[0].op":       {Where: []driver.Condition{{Column: "id", Op: "or", Value: json.RawMessage("1")}}},
		"where[1].value":    {Where: []driver.Condition{{Column: "id", Op: "not_null"}, {Column: "id", Op: "=", Value: json.RawMessage(`"x"`)}}},
		"where[0].value":    {Where: []driver.Condition{{Column: "id", Op: "=", Value: json.RawMessage("null")}}},
		"where[0].value[1]": {Where: []driver.Condition{{Column: "id", Op: "in", Value: json.RawMessage(`[1, true]`)}}},
		"limit":             {Limit: -1},
	} {
		read.Table = target.Table
		c.wantField(t, c.r.ReadTable(t.Context(), read, driver.TablePart{}, driver.BatchSize{}, func(*record.Batch) error { return nil }), field)
	}
}

func (c *tableSuite) bounds(t *testing.T) {
	target := c.prepare(t, driver.TableTarget{Mode: driver.Append})
	b := itemRange(0, 100)
	item(b, 100, strings.Repeat("x", 300_000))
	c.write(t, target, done(), b)
	for _, size := range []driver.BatchSize{{Rows: 7}, {Bytes: 2000}, {Rows: 1}, {Bytes: 1}} {
		rows, most := 0, size.Or()
		err := c.r.ReadTable(t.Context(), driver.TableRead{Table: target.Table}, driver.TablePart{}, size, func(b *record.Batch) error {
			rows += b.Rows()
			if b.Rows() == 0 || b.Rows() > most.Rows || b.Size() > most.Bytes && b.Rows() > 1 {
				t.Errorf("a batch of %d rows and %d bytes, at most %+v", b.Rows(), b.Size(), most)
			}
			return nil
		})
		if err != nil || rows != 101 {
			t.Errorf("%+v: %d rows, %v", size, rows, err)
		}
	}
	stop := errors.New("stop")
	calls := 0
	err := c.r.ReadTable(t.Context(), driver.TableRead{Table: target.Table}, driver.TablePart{}, driver.BatchSize{Rows: 10}, func(*record.Batch) error {
		calls++
		return stop
	})
	if err != stop || calls != 1 {
		t.Errorf("reading ended with %v after %d calls", err, calls)
	}
}

func (c *tableSuite) parts(t *testing.T) {
	target := c.prepare(t, driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}})
	c.write(t, target, done(), itemRange(-1000, 3000))
	read := driver.TableRead{Table: target.Table}
	want := c.lines(t, read)
	if len(want) != 4000 {
		t.Fatalf("%d rows", len(want))
	}
	for _, bytes := range []int64{5_000, 50_000, 0} {
		parts, err := c.r.SplitTable(t.Context(), read, bytes)
		if err != nil || len(parts) == 0 {
			t.Fatalf("%d parts, %v", len(parts), err)
		}
		if got := c.lines(t, read, parts...); !slices.Equal(got, want) {
			t.Errorf("%d parts have %d rows", len(parts), len(got))
		}
	}
	read.Limit = 10
	if parts, err := c.r.SplitTable(t.Context(), read, 1); err != nil || len(parts) != 1 {
		t.Errorf("with a limit: %d parts, %v", len(parts), err)
	}
	c.wantCode(t, c.r.ReadTable(t.Context(), driver.TableRead{Table: target.Table}, driver.TablePart{Range: "nonsense"}, driver.BatchSize{}, func(*record.Batch) error { return nil }), athena.CodeInvalidRequest)
}

func (c *tableSuite) statements(t *testing.T) {
	st := driver.Statement{Text: c.Statements.Generate, Params: []json.RawMessage{json.RawMessage("1000")}}
	schema, err := c.r.DescribeQuery(t.Context(), st)
	if err != nil || len(schema.Columns) != 2 {
		t.Fatalf("DescribeQuery: %+v, %v", schema, err)
	}
	rows := 0
	err = c.r.ReadQuery(t.Context(), st, driver.BatchSize{Rows: 300}, func(b *record.Batch) error {
		rows += b.Rows()
		if !b.Schema.Equal(schema) {
			t.Errorf("described as %+v and read as %+v", schema, b.Schema)
		}
		return nil
	})
	if err != nil || rows != 1000 {
		t.Errorf("%d rows, %v", rows, err)
	}
	st.Params = []json.RawMessage{json.RawMessage(`"x"`)}
	c.wantField(t, c.r.ReadQuery(t.Context(), st, driver.BatchSize{}, func(*record.Batch) error { return nil }), "params[0]")
}

func (c *tableSuite) unreadable(t *testing.T) {
	ctx, nothing := t.Context(), func(*record.Batch) error { return nil }
	missing := driver.TableName{Schema: c.Schema, Table: "tables_none"}
	_, err := c.r.DescribeTable(ctx, missing)
	c.wantCode(t, err, athena.CodeNotFound)
	_, err = c.r.SplitTable(ctx, driver.TableRead{Table: missing}, 1)
	c.wantCode(t, err, athena.CodeNotFound)
	c.wantCode(t, c.r.ReadTable(ctx, driver.TableRead{Table: missing}, driver.TablePart{}, driver.BatchSize{}, nothing), athena.CodeNotFound)
	_, in := c.scratch(t)
	for _, text := range []string{in(c.Statements.Insert), c.Statements.Refused[0], ""} {
		_, err := c.r.DescribeQuery(ctx, driver.Statement{Text: text})
		c.wantCode(t, err, athena.CodeInvalidRequest)
		c.wantCode(t, c.r.ReadQuery(ctx, driver.Statement{Text: text}, driver.BatchSize{}, nothing), athena.CodeInvalidRequest)
	}
	if err := c.r.ReadQuery(ctx, driver.Statement{Text: c.Statements.Syntax}, driver.BatchSize{}, nothing); err == nil {
		t.Error("an error of syntax is none")
	} else if f := c.failure(t, c.b, err); f.Code != athena.CodeQueryFailed && f.Code != athena.CodeInvalidRequest {
		t.Errorf("an error of syntax has the code %q: %v", f.Code, err)
	}
	c.wantCode(t, c.r.ReadQuery(ctx, driver.Statement{Text: c.Statements.MidError}, driver.BatchSize{Rows: 1}, nothing), athena.CodeQueryFailed)
	if c.Statements.HiddenWrite != "" {
		if err := c.r.ReadQuery(ctx, driver.Statement{Text: in(c.Statements.HiddenWrite)}, driver.BatchSize{}, nothing); !errors.Is(err, driver.ErrWrites) {
			t.Errorf("a hidden write: %v", err)
		}
		c.wantIDs(t, in)
	}
}

func (c *tableSuite) refused(t *testing.T) {
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert} {
		target := c.prepare(t, driver.TableTarget{Mode: mode, Key: []string{"id"}})
		b := itemRange(0, 2)
		b.Columns[0].AppendNull() // row 2
		b.Columns[1].AppendString("no id")
		b.Columns[2].AppendNull()
		b.Columns[3].AppendNull()
		b.Done()
		item(b, 3, "three")
		b.Columns[0].AppendInt(4) // row 4
		b.Columns[1].AppendString("too much")
		b.Columns[2].AppendString("12345678901.00")
		b.Columns[3].AppendNull()
		b.Done()
		item(b, 5, "five")
		rejected := c.write(t, target, done(), b)
		if len(rejected) == 0 || rejected[0].Row != 2 || rejected[0].Column != "id" || rejected[0].Reason == "" {
			t.Fatalf("%s: rejected %+v", mode, rejected)
		}
		want := map[int64]string{0: "item 0", 1: "item 1", 3: "three", 5: "five"}
		if total := items.Columns[2].Type; c.keptType(total) != total { // any number fits
			want[4] = "too much"
			if len(rejected) != 1 {
				t.Errorf("%s: rejected %+v", mode, rejected)
			}
		} else if len(rejected) != 2 || rejected[1].Row != 4 || rejected[1].Column != "total" || rejected[1].Reason == "" {
			t.Errorf("%s: rejected %+v", mode, rejected)
		}
		c.wantNames(t, target.Table, want)
	}
}

func (c *tableSuite) plan(t *testing.T) {
	target := driver.TableTarget{Table: c.table(), Mode: driver.Upsert, Key: []string{"id"}, Create: true, Schema: items}
	plan, err := c.w.PlanTable(t.Context(), target)
	if err != nil || plan.Creates == "" || len(plan.Problems) > 0 || len(plan.Columns) != len(items.Columns) {
		t.Fatalf("%+v, %v", plan, err)
	}
	_, err = c.r.DescribeTable(t.Context(), target.Table)
	c.wantCode(t, err, athena.CodeNotFound)
	target.Create = false
	if plan, err = c.w.PlanTable(t.Context(), target); err != nil || len(plan.Problems) != 1 || plan.Problems[0].Code != "no_table" {
		t.Errorf("%+v, %v", plan, err)
	}
	_, err = c.w.PrepareTable(t.Context(), target)
	c.wantCode(t, err, athena.CodeInvalidRequest)
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert, driver.Merge, driver.Overwrite} {
		one := driver.TableTarget{Table: target.Table, Mode: mode, Key: []string{"id"}, Create: true, Schema: items, Run: "run"}
		plan, err := c.w.PlanTable(t.Context(), one)
		fits := err == nil && !slices.ContainsFunc(plan.Problems, func(p driver.TableProblem) bool { return p.Code == "mode" })
		if has := slices.Contains(c.w.WriteModes(), mode); err != nil || fits != has {
			t.Errorf("mode %s is among the engine's: %v; planned with %+v, %v", mode, has, plan.Problems, err)
		} else if !has {
			_, err := c.w.PrepareTable(t.Context(), one)
			c.wantCode(t, err, athena.CodeInvalidRequest)
			_, err = c.w.BeginTable(t.Context(), one)
			c.wantField(t, err, "mode")
			_, err = c.w.FinishTable(t.Context(), one, done())
			c.wantField(t, err, "mode")
			if err := c.w.ForgetTable(t.Context(), one); err != nil {
				t.Error(err)
			}
		}
	}
	_, err = c.r.DescribeTable(t.Context(), target.Table)
	c.wantCode(t, err, athena.CodeNotFound)
	bads := map[string]driver.TableTarget{
		"mode":   {Mode: "replace", Schema: items},
		"key":    {Mode: driver.Upsert, Schema: items},
		"schema": {Mode: driver.Append},
	}
	if slices.Contains(c.w.WriteModes(), driver.Overwrite) {
		bads["run"] = driver.TableTarget{Mode: driver.Overwrite, Schema: items}
	}
	for field, bad := range bads {
		bad.Table = target.Table
		_, err := c.w.PlanTable(t.Context(), bad)
		c.wantField(t, err, field)
	}
}

func (c *tableSuite) upserts(t *testing.T) {
	target := c.prepare(t, driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}})
	b := itemRange(0, 5)
	item(b, 2, "the last one wins")
	c.write(t, target, done(), b)
	second := record.New(items, 2)
	item(second, 4, "changed")
	item(second, 9, "new")
	c.write(t, target, done(), second)
	c.wantNames(t, target.Table, map[int64]string{0: "item 0", 1: "item 1", 2: "the last one wins", 3: "item 3", 4: "changed", 9: "new"})

	// Columns that the rows do not have stay as they are.
	some := &record.Schema{Columns: items.Columns[:2]}
	target.Schema, target.Create = some, false
	c.prepare(t, target)
	third := record.New(some, 1)
	third.Columns[0].AppendInt(9)
	third.Columns[1].AppendString("renamed")
	third.Done()
	c.write(t, target, done(), third)
	if got := c.lines(t, driver.TableRead{Table: target.Table, Where: []driver.Condition{{Column: "id", Op: "=", Value: json.RawMessage("9")}}}); len(got) != 1 || !strings.Contains(got[0], `"renamed","total":"9.50"`) {
		t.Error(got)
	}
}

// change makes the last row of a batch a change, or the first half of the next one.
func change(b *record.Batch, op cdc.Op, implied bool) {
	n := b.Rows()
	if implied {
		n++
	}
	b.Changes = append(b.Changes, record.Change{Op: op, Pos: cdc.Position(fmt.Sprintf("%04d", n)), At: 1_000_000, Implied: implied})
}

// gone appends the key of a row that is deleted; nothing for a truncate.
func gone(b *record.Batch, id int64, op cdc.Op, implied bool) {
	if op == cdc.Truncate {
		b.Columns[0].AppendAbsent()
	} else {
		b.Columns[0].AppendInt(id)
	}
	for i := 1; i < len(b.Columns); i++ {
		b.Columns[i].AppendAbsent()
	}
	b.Done()
	change(b, op, implied)
}

func put(b *record.Batch, id int64, name string) {
	item(b, id, name)
	change(b, cdc.Update, false)
}

// keep appends an update that does not give the name.
func keep(b *record.Batch, id int64) {
	b.Columns[0].AppendInt(id)
	b.Columns[1].AppendAbsent()
	b.Columns[2].AppendString("7.00")
	b.Columns[3].AppendNull()
	b.Done()
	change(b, cdc.Update, false)
}

func (c *tableSuite) changes(t *testing.T) {
	at := driver.Checkpoint{CheckpointKey: partKey(), Position: "1"} // one stream
	target := c.prepare(t, driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}, Changes: true, Checkpoint: at.CheckpointKey})
	next := func() driver.Checkpoint {
		now := at
		at.Before, at.Position = at.Position, at.Position+"1"
		return now
	}
	b := record.New(items, 16)
	put(b, 1, "gone with the truncate")
	gone(b, 0, cdc.Truncate, false)
	put(b, 2, "two")
	put(b, 3, "three")
	put(b, 4, "four")
	put(b, 5, "five")
	gone(b, 3, cdc.Delete, false)
	keep(b, 2)
	gone(b, 4, cdc.Delete, true)
	put(b, 40, "moved")
	gone(b, 5, cdc.Delete, true)
	keep(b, 50)
	put(b, 6, "six")
	gone(b, 6, cdc.Delete, false)
	put(b, 6, "six again")
	if rejected := c.write(t, target, next(), b); rejected != nil {
		t.Errorf("rejected: %+v", rejected)
	}
	c.wantNames(t, target.Table, map[int64]string{2: "two", 40: "moved", 50: "five", 6: "six again"})
	if got := c.lines(t, driver.TableRead{Table: target.Table, Where: []driver.Condition{{Column: "id", Op: "in", Value: json.RawMessage("[2, 50]")}}}); len(got) != 2 || strings.Count(strings.Join(got, ""), `"7.00"`) != 2 {
		t.Errorf("what the change gave is not there: %v", got)
	}
	// Of an update that changed the key a step may have taken the second half away, or
	// made a delete of it: then nothing moves.
	halves := record.New(items, 8)
	put(halves, 70, "a")
	put(halves, 71, "b")
	put(halves, 72, "c")
	gone(halves, 70, cdc.Delete, true)
	halves.Changes[len(halves.Changes)-1].Pos += "0"
	gone(halves, 71, cdc.Delete, false)
	gone(halves, 72, cdc.Delete, true)
	gone(halves, 73, cdc.Delete, false)
	if rejected := c.write(t, target, next(), halves); rejected != nil {
		t.Errorf("rejected: %+v", rejected)
	}
	c.wantNames(t, target.Table, map[int64]string{2: "two", 40: "moved", 50: "five", 6: "six again"})
	lone := record.New(items, 1)
	keep(lone, 77)
	if rejected := c.write(t, target, next(), lone); len(rejected) != 1 || rejected[0].Row != 0 || rejected[0].Reason == "" {
		t.Errorf("a change whose row is not there is not rejected: %+v", rejected)
	}
	all := record.New(items, 1)
	gone(all, 0, cdc.Truncate, false)
	c.write(t, target, next(), all)
	c.wantNames(t, target.Table, map[int64]string{})
}

func (c *tableSuite) log(t *testing.T) {
	target := c.prepare(t, driver.TableTarget{Mode: driver.Append, Changes: true})
	b := record.New(items, 4)
	put(b, 1, "one")
	gone(b, 1, cdc.Delete, true)
	put(b, 2, "one")
	gone(b, 2, cdc.Delete, false)
	gone(b, 0, cdc.Truncate, false)
	if rejected := c.write(t, target, done(), b); rejected != nil {
		t.Errorf("rejected: %+v", rejected)
	}
	got := c.lines(t, driver.TableRead{Table: target.Table, Columns: []string{"_pos", "_op", "_ts", "id", "name"}})
	want := []string{
		`{"_pos":"0001","_op":"update","_ts":"1970-01-01T00:00:01.000000Z","id":1,"name":"one"}`,
		`{"_pos":"0003","_op":"update","_ts":"1970-01-01T00:00:01.000000Z","id":2,"name":"one"}`,
		`{"_pos":"0004","_op":"delete","_ts":"1970-01-01T00:00:01.000000Z","id":2,"name":null}`,
		`{"_pos":"0005","_op":"truncate","_ts":"1970-01-01T00:00:01.000000Z","id":null,"name":null}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has\n%s", strings.Join(got, "\n"))
	}
}

func (c *tableSuite) staged(t *testing.T) {
	for _, mode := range c.w.WriteModes() {
		if !mode.Staged() { // plan has seen that the other staged ones are refused
			continue
		}
		first := c.prepare(t, driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}})
		c.write(t, first, done(), itemRange(0, 10))
		target := c.prepare(t, driver.TableTarget{Table: first.Table, Mode: mode, Key: []string{"id"}})
		b := itemRange(5, 12)
		item(b, 20, "new")
		c.write(t, target, done(), b.Slice(0, 4))
		tx := c.begin(t, target)
		if _, err := tx.Write(t.Context(), itemRange(50, 60)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
		c.prepare(t, target) // as another worker does
		c.write(t, target, done(), b.Slice(4, 8))
		if got := len(c.names(t, target.Table)); got != 10 {
			t.Errorf("%s: %d rows before the end", mode, got)
		}
		at := done()
		changed, err := c.w.FinishTable(t.Context(), target, at)
		if err != nil || mode == driver.Merge && changed != 8 || changed < 8 {
			t.Errorf("%s: %d rows changed, %v", mode, changed, err)
		}
		want := map[int64]string{20: "new"}
		for id := int64(5); id < 12; id++ {
			want[id] = fmt.Sprintf("item %d", id)
		}
		c.wantNames(t, target.Table, want)
		if again, err := c.w.FinishTable(t.Context(), target, at); err != nil || again != changed {
			t.Errorf("%s, finished again: %d, %v; it was %d", mode, again, err, changed)
		}
		other := at
		other.Before, other.Position = "never", "later"
		if _, err := c.w.FinishTable(t.Context(), target, other); !errors.Is(err, driver.ErrOvertaken) {
			t.Errorf("%s: finished in spite of another's checkpoint: %v", mode, err)
		}
		for range 2 {
			if err := c.w.ForgetTable(t.Context(), target); err != nil {
				t.Error(err)
			}
		}
		c.wantNames(t, target.Table, want)
	}
}

func (c *tableSuite) checkpoints(t *testing.T) {
	ctx := t.Context()
	target := c.prepare(t, driver.TableTarget{Mode: driver.Append})
	k := partKey()
	k.Pipeline = "suite " + k.Part
	want := func(at driver.CheckpointKey, position cdc.Position, note string) {
		t.Helper()
		got, ok, err := c.w.Checkpoint(ctx, at)
		if err != nil || ok != (position != "") || got.Position != position || string(got.Note) != note {
			t.Errorf("the checkpoint is %+v, %v, %v; want %q %s", got, ok, err, position, note)
		}
	}
	want(k, "", "")
	tx := c.begin(t, target)
	if _, err := tx.Write(ctx, itemRange(0, 5)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(ctx, driver.Checkpoint{CheckpointKey: k, Position: "0"}); err == nil {
		t.Error("a transaction is committed that was rolled back")
	}
	want(k, "", "")
	c.write(t, target, driver.Checkpoint{CheckpointKey: k, Position: "1", Note: json.RawMessage(`{"rows": 5}`)}, itemRange(0, 5))
	want(k, "1", `{"rows": 5}`)
	for _, before := range []cdc.Position{"", "0", "2"} {
		tx := c.begin(t, target)
		if _, err := tx.Write(ctx, itemRange(100, 105)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx, driver.Checkpoint{CheckpointKey: k, Before: before, Position: "3"}); !errors.Is(err, driver.ErrOvertaken) {
			t.Errorf("committed behind %q: %v", before, err)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Error(err)
		}
	}
	want(k, "1", `{"rows": 5}`)
	var wg sync.WaitGroup
	var won atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			tx, err := c.w.BeginTable(ctx, target)
			if err != nil {
				t.Error(err)
				return
			}
			defer tx.Rollback(ctx)
			if _, err := tx.Write(ctx, itemRange(int64(10*i+10), int64(10*i+15))); err != nil {
				t.Error(err)
				return
			}
			switch err := tx.Commit(ctx, driver.Checkpoint{CheckpointKey: k, Before: "1", Position: "2"}); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, driver.ErrOvertaken):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(c.names(t, target.Table)); won.Load() != 1 || n != 10 && !(c.Tables.Loose && n >= 10) {
		t.Errorf("%d have committed, and %d rows are there", won.Load(), n)
	}
	want(k, "2", "")
	other, stream := k, k
	other.Run, stream.Run = "other", ""
	for _, at := range []driver.CheckpointKey{other, stream} {
		c.write(t, target, driver.Checkpoint{CheckpointKey: at, Position: "x"})
	}
	if err := c.w.ForgetCheckpoints(ctx, k.Pipeline, k.Run); err != nil {
		t.Error(err)
	}
	want(k, "", "")
	want(other, "x", "")
	if err := c.w.ForgetCheckpoints(ctx, k.Pipeline, ""); err != nil {
		t.Error(err)
	}
	want(other, "", "")
	want(stream, "", "")
}

func (c *tableSuite) copies(t *testing.T, copier driver.TableCopier) {
	from := c.prepare(t, driver.TableTarget{Mode: driver.Append})
	c.write(t, from, done(), itemRange(0, 100))
	to := c.prepare(t, driver.TableTarget{Mode: driver.Append})
	plan, err := c.w.PlanTable(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	read := driver.TableRead{Table: from.Table, Columns: items.Names(), Where: []driver.Condition{{Column: "id", Op: "<", Value: json.RawMessage("60")}}}
	form, err := copier.CopyForm(t.Context(), read)
	if err != nil || form == "" || form != plan.CopyForm {
		t.Fatalf("the form is %q, %v, and the target's %q", form, err, plan.CopyForm)
	}
	var data strings.Builder
	rows, err := copier.CopyTable(t.Context(), read, driver.TablePart{}, &data)
	if err != nil || rows != 60 {
		t.Fatal(rows, err)
	}
	tx := c.begin(t, to)
	defer tx.Rollback(t.Context())
	if rows, err = tx.Copy(t.Context(), strings.NewReader(data.String())); err != nil || rows != 60 {
		t.Fatal(rows, err)
	}
	if err := tx.Commit(t.Context(), done()); err != nil {
		t.Fatal(err)
	}
	if got, want := c.lines(t, driver.TableRead{Table: to.Table}), c.lines(t, read); !slices.Equal(got, want) {
		t.Errorf("the copy has %d rows that are not all those of the source", len(got))
	}
	read.Columns = []string{"name"}
	if other, err := copier.CopyForm(t.Context(), read); err != nil || other == form {
		t.Errorf("other columns have the form %q, %v", other, err)
	}
	keyed := c.prepare(t, driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}})
	c.write(t, keyed, done(), itemRange(7, 8))
	keyed.Mode = driver.Append
	twice := c.begin(t, keyed)
	defer twice.Rollback(t.Context())
	if _, err := twice.Copy(t.Context(), strings.NewReader(data.String())); !errors.Is(err, driver.ErrRefusedRow) {
		t.Errorf("a copy with a row whose key is there: %v", err)
	}
	if rejected := c.write(t, keyed, done(), itemRange(0, 60)); len(rejected) != 1 || rejected[0].Row != 7 {
		t.Errorf("the same rows one by one: %+v", rejected)
	}
	broken := c.begin(t, to)
	defer broken.Rollback(t.Context())
	if _, err := broken.Copy(t.Context(), strings.NewReader(data.String()[:data.Len()-30])); err == nil {
		t.Error("a copy that was cut off is taken")
	}
}
