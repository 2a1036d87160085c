package scylla_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// The contract is one set of tests over several servers. What passes on one of them
// is true of that one.

func TestContractOnDouble(t *testing.T) {
	t.Parallel()
	contract(t, doubleCluster{})
}

func TestContractOnCassandra(t *testing.T) {
	t.Parallel()
	contract(t, cassandraCluster{cassandratest.Start(t)})
}

func TestContractOnRealScyllaDB(t *testing.T) {
	contract(t, openReal(t))
}

// contract holds what is said of CQL, which needs no log of changes.
func contract(t *testing.T, c contractCluster) {
	layout := ""
	if l := c.layouts(); len(l) > 0 {
		layout = l[0]
	}
	for name, test := range map[string]func(*testing.T, *contractRig){
		"a value of every type comes back as it was given":              contractTypes,
		"a misfit of every type is refused by its name":                 contractMisfits,
		"rows of many pages come once each, in their order":             contractPages,
		"a conditional write says whether it was applied":               contractConditional,
		"a batch has the effect of all its statements":                  contractBatch,
		"a write counts as made when its statement says":                contractWriteTime,
		"the schema is described":                                       contractSchema,
		"errors have codes, and say what the server refused":            contractErrors,
		"names of mixed case work wherever a table is named":            contractNames,
		"a table that is read in parts gives each row once":             contractParts,
		"what is written to a table is there, and what is deleted not":  contractSink,
		"rows without a partition key are refused, and the others kept": contractNullKeys,
	} {
		t.Run(name, func(t *testing.T) {
			if _, onDouble := c.(doubleCluster); onDouble {
				t.Parallel()
			}
			test(t, newContractRig(t, c.own(t), layout))
		})
	}
}

// contractRig is a backend with a keyspace for one test.
type contractRig struct {
	contractCluster
	t  *testing.T
	b  *scylla.Backend
	ks string
}

func newContractRig(t *testing.T, c contractCluster, layout string) *contractRig {
	t.Helper()
	ks := c.keyspace(t, layout)
	b, err := scylla.Open(t.Context(), c.conn(ks))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &contractRig{contractCluster: c, t: t, b: b, ks: ks}
}

// query runs a statement and returns its rows as JSON, and its columns.
func (r *contractRig) query(text string, params ...string) (rows []string, columns []driver.Column, err error) {
	s := driver.Statement{Text: text}
	for _, p := range params {
		s.Params = append(s.Params, json.RawMessage(p))
	}
	return r.run(s)
}

func (r *contractRig) run(s driver.Statement) (rows []string, columns []driver.Column, err error) {
	result, err := r.b.Query(r.t.Context(), s)
	if err != nil {
		return nil, nil, err
	}
	defer result.Close()
	for result.Next() {
		rows = append(rows, string(result.AppendJSON(nil)))
	}
	return rows, result.Columns(), result.Err()
}

func (r *contractRig) must(text string, params ...string) []string {
	r.t.Helper()
	rows, _, err := r.query(text, params...)
	if err != nil {
		r.t.Fatalf("%s %s: %v", text, params, err)
	}
	return rows
}

// code is what a caller would be told of an error.
func (r *contractRig) code(err error) (athena.Code, string, map[string]any) {
	var own *athena.Error
	if errors.As(err, &own) {
		return own.Code, own.Message, own.Details
	}
	f := r.b.Classify(err)
	return f.Code, f.Message, f.Details
}

// contractValues are values of every type that both engines have, in the form in
// which they come back.
var contractValues = map[string][]string{
	"ascii":     {`"plain"`, `""`},
	"bigint":    {`9223372036854775807`, `-9223372036854775808`, `0`},
	"blob":      {`"AP8Q"`, `""`},
	"boolean":   {`true`, `false`},
	"date":      {`"2026-11-22"`, `"1969-12-31"`},
	"decimal":   {`"19.90"`, `"-0.000000001"`, `"123456789012345678901234567890"`},
	"double":    {`0.1`, `-1.5e+300`, `"NaN"`, `"Infinity"`},
	"duration":  {`"P1Y2M3DT4H5M6.789S"`},
	"float":     {`0.5`, `"-Infinity"`},
	"inet":      {`"127.0.0.1"`, `"2001:db8::1"`},
	"int":       {`2147483647`, `-2147483648`},
	"smallint":  {`32767`, `-32768`},
	"text":      {`"größe \" \\ 😀"`, `""`},
	"time":      {`"10:00:00.123456789"`},
	"timestamp": {`"2026-11-22T10:00:00.123000Z"`, `"1969-12-31T23:59:59.999000Z"`},
	"timeuuid":  {`"50554d6e-29bb-11e5-b345-feff819cdc9f"`},
	"tinyint":   {`127`, `-128`},
	"uuid":      {`"f47ac10b-58cc-4372-a567-0e02b2c3d479"`},
	"varint":    {`"123456789012345678901234567890"`, `"-1"`},

	"list<int>":                   {`[3,1,3]`},
	"set<text>":                   {`["a","b"]`},
	"map<text, int>":              {`{"a":1,"b":2}`},
	"map<int, text>":              {`{"1":"a","2":"b"}`},
	"frozen<list<text>>":          {`["a"]`, `[]`},
	"frozen<map<text, text>>":     {`{"k":"v"}`, `{}`},
	"frozen<tuple<int, text>>":    {`[1,"a"]`, `[1,null]`},
	"frozen<home>":                {`{"street":"High","zip":1}`, `{"street":"High","zip":null}`},
	"home":                        {`{"street":"High","zip":1}`},
	"list<frozen<home>>":          {`[{"street":"High","zip":1}]`},
	"frozen<map<uuid, set<int>>>": {`{"f47ac10b-58cc-4372-a567-0e02b2c3d479":[1,2]}`},
}

func contractTypes(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TYPE "+r.ks+".home (street text, zip int)")
	i := 0
	for typ, values := range contractValues {
		i++
		table := fmt.Sprintf("%s.types_%d", r.ks, i)
		r.exec(t, fmt.Sprintf("CREATE TABLE %s (k int PRIMARY KEY, v %s)", table, strings.Replace(typ, "home", r.ks+".home", 1)))
		for k, value := range append(slices.Clone(values), "null") {
			if _, _, err := r.query("INSERT INTO "+table+" (k, v) VALUES (?, ?)", strconv.Itoa(k), value); err != nil {
				t.Errorf("%s: %s was refused: %v", typ, value, err)
				continue
			}
			rows, columns, err := r.query("SELECT v FROM "+table+" WHERE k = ?", strconv.Itoa(k))
			if err != nil {
				t.Fatalf("%s: %v", typ, err)
			}
			want := `{"v":` + value + `}`
			if len(rows) != 1 || rows[0] != want {
				t.Errorf("%s: %s came back as %s", typ, value, rows)
			}
			if plain := unfrozen(typ); unfrozen(columns[0].Type) != plain {
				t.Errorf("%s: the column's type is called %q", typ, columns[0].Type)
			}
		}
	}
	t.Run("counters count", func(t *testing.T) {
		r.exec(t, "CREATE TABLE "+r.ks+".counts (k int PRIMARY KEY, c counter)")
		for range 3 {
			r.must("UPDATE "+r.ks+".counts SET c = c + ? WHERE k = 1", "5")
		}
		if rows := r.must("SELECT c FROM " + r.ks + ".counts"); !slices.Equal(rows, []string{`{"c":15}`}) {
			t.Errorf("the counter is %s", rows)
		}
	})
}

// unfrozen takes away what the protocol does not tell of a type.
func unfrozen(typ string) string {
	for strings.Contains(typ, "frozen<") {
		i := strings.Index(typ, "frozen<")
		depth, end := 0, i+len("frozen<")
		for ; end < len(typ); end++ {
			if typ[end] == '<' {
				depth++
			} else if typ[end] == '>' {
				if depth == 0 {
					break
				}
				depth--
			}
		}
		typ = typ[:i] + typ[i+len("frozen<"):end] + typ[end+1:]
	}
	return typ
}

func contractMisfits(t *testing.T, r *contractRig) {
	misfits := map[string][]string{
		"int": {`"x"`, `1.5`, `2147483648`, `{}`, `true`}, "bigint": {`9223372036854775808`, `[]`},
		"tinyint": {`128`}, "smallint": {`-32769`}, "varint": {`1.5`, `"x"`}, "decimal": {`"x"`, `true`},
		"boolean": {`1`, `"yes"`}, "uuid": {`"x"`, `7`}, "timeuuid": {`"f47ac10b-58cc-4372-a567-0e02b2c3d479"`},
		"timestamp": {`"yesterday"`}, "date": {`"2026-13-01"`}, "time": {`"25:00:00"`}, "inet": {`"1.2.3"`},
		"blob": {`"***"`}, "duration": {`"soon"`}, "double": {`"x"`}, "float": {`[]`}, "ascii": {`"ö"`},
		"list<int>": {`{"a":1}`, `["x"]`, `7`}, "set<int>": {`[1.5]`}, "map<text, int>": {`[1]`, `{"a":"x"}`},
		"frozen<tuple<int, int>>": {`[1,2,3]`, `{"a":1}`},
	}
	i := 0
	for typ, values := range misfits {
		i++
		table := fmt.Sprintf("%s.misfits_%d", r.ks, i)
		r.exec(t, fmt.Sprintf("CREATE TABLE %s (k int PRIMARY KEY, v %s)", table, typ))
		for _, value := range values {
			_, _, err := r.query("INSERT INTO "+table+" (k, v) VALUES (?, ?)", "1", value)
			if err == nil {
				t.Errorf("%s: %s was taken, as %s", typ, value, r.must("SELECT v FROM "+table))
				continue
			}
			code, message, details := r.code(err)
			if code != athena.CodeInvalidRequest || details["field"] != "params[1]" || !strings.Contains(unfrozen(message), unfrozen(typ)) {
				t.Errorf("%s: of %s it was said %s %q %v; want invalid_request that names the type and params[1]", typ, value, code, message, details)
			}
		}
		if rows := r.must("SELECT k FROM " + table); len(rows) > 0 {
			t.Errorf("%s: there is a row after all: %s", typ, rows)
		}
	}
}

func contractPages(t *testing.T, r *contractRig) {
	const n = 2500
	r.exec(t, "CREATE TABLE "+r.ks+".pages (p int, c int, v text, PRIMARY KEY (p, c))")
	for from := 0; from < n; from += 100 {
		var batch strings.Builder
		batch.WriteString("BEGIN UNLOGGED BATCH ")
		for i := from; i < from+100; i++ {
			fmt.Fprintf(&batch, "INSERT INTO %s.pages (p, c, v) VALUES (1, %d, 'v%d'); ", r.ks, i, i)
		}
		r.must(batch.String() + "APPLY BATCH")
	}
	rows := r.must("SELECT c, v FROM "+r.ks+".pages WHERE p = ?", "1")
	if len(rows) != n {
		t.Fatalf("%d rows, want %d", len(rows), n)
	}
	for i, row := range rows {
		if want := fmt.Sprintf(`{"c":%d,"v":"v%d"}`, i, i); row != want {
			t.Fatalf("row %d is %s", i, row)
		}
	}
	down := r.must("SELECT c, v FROM " + r.ks + ".pages WHERE p = 1 AND c >= 10 AND c < 20 ORDER BY c DESC LIMIT 3")
	if want := []string{`{"c":19,"v":"v19"}`, `{"c":18,"v":"v18"}`, `{"c":17,"v":"v17"}`}; !slices.Equal(down, want) {
		t.Errorf("downwards: %s", down)
	}
}

func contractConditional(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TABLE "+r.ks+".cas (k int PRIMARY KEY, v int)")
	insert := "INSERT INTO " + r.ks + ".cas (k, v) VALUES (?, ?) IF NOT EXISTS"
	applied := func(rows []string) (b bool) {
		t.Helper()
		var row map[string]json.RawMessage
		if len(rows) != 1 || json.Unmarshal([]byte(rows[0]), &row) != nil {
			t.Fatalf("the rows are %s", rows)
		}
		return bytes.Equal(row["[applied]"], []byte("true"))
	}
	if !applied(r.must(insert, "1", "1")) || applied(r.must(insert, "1", "2")) {
		t.Error("the first insert should have been applied, and the second not")
	}
	update := "UPDATE " + r.ks + ".cas SET v = ? WHERE k = ? IF v = ?"
	if !applied(r.must(update, "5", "1", "1")) || applied(r.must(update, "6", "1", "1")) {
		t.Error("the first update should have been applied, and the second not")
	}
	if rows := r.must("SELECT v FROM " + r.ks + ".cas WHERE k = 1"); !slices.Equal(rows, []string{`{"v":5}`}) {
		t.Errorf("v is %s", rows)
	}
	for text, want := range map[string]bool{insert: false, update: false, "UPDATE t SET v = ? WHERE k = ?": true} {
		if got := r.b.Analyze(text).Idempotent; got != want {
			t.Errorf("%s: idempotent %v", text, got)
		}
	}
}

func contractBatch(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TABLE "+r.ks+".b (p int, c int, v text, PRIMARY KEY (p, c))")
	r.must("BEGIN BATCH INSERT INTO "+r.ks+".b (p, c, v) VALUES (?, 1, ?); INSERT INTO "+r.ks+".b (p, c, v) VALUES (2, ?, 'x'); "+
		"UPDATE "+r.ks+".b SET v = 'y' WHERE p = 3 AND c = 1; APPLY BATCH", "1", `"a"`, "7")
	rows := r.must("SELECT p, c, v FROM " + r.ks + ".b")
	slices.Sort(rows)
	if want := []string{`{"p":1,"c":1,"v":"a"}`, `{"p":2,"c":7,"v":"x"}`, `{"p":3,"c":1,"v":"y"}`}; !slices.Equal(rows, want) {
		t.Errorf("the rows are %s", rows)
	}
}

func contractWriteTime(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TABLE "+r.ks+".w (k int PRIMARY KEY, v text)")
	// A retry that comes after a later write must not undo it.
	early := driver.Statement{Text: "UPDATE " + r.ks + ".w SET v = 'early' WHERE k = 1", WriteTime: contractStart}
	late := driver.Statement{Text: "UPDATE " + r.ks + ".w SET v = 'late' WHERE k = 1", WriteTime: contractStart.Add(1e9)}
	for _, s := range []driver.Statement{early, late, early} {
		if _, _, err := r.run(s); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf(`{"v":"late","writetime(v)":%d}`, contractStart.Add(1e9).UnixMicro())
	if rows := r.must("SELECT v, writetime(v) FROM " + r.ks + ".w"); !slices.Equal(rows, []string{want}) {
		t.Errorf("the row is %s, want %s", rows, want)
	}
	r.must("INSERT INTO " + r.ks + ".w (k, v) VALUES (2, 'short') USING TTL 5000")
	var row struct {
		TTL int `json:"ttl(v)"`
	}
	if rows := r.must("SELECT ttl(v) FROM " + r.ks + ".w WHERE k = 2"); len(rows) != 1 || json.Unmarshal([]byte(rows[0]), &row) != nil || row.TTL < 4000 || row.TTL > 5000 {
		t.Errorf("the time to live is %s", rows)
	}
}

func contractSchema(t *testing.T, r *contractRig) {
	r.exec(t,
		"CREATE TYPE "+r.ks+".home (street text, zip int)",
		"CREATE TABLE "+r.ks+".orders (shop text, day date, id timeuuid, total decimal, tags set<text>, home frozen<"+r.ks+".home>, owner text static, PRIMARY KEY ((shop, day), id)) WITH CLUSTERING ORDER BY (id DESC)",
		"CREATE INDEX orders_total ON "+r.ks+".orders (total)",
	)
	schemas, err := r.b.Schemas(t.Context())
	if err != nil || !slices.ContainsFunc(schemas, func(s driver.Schema) bool { return s.Name == r.ks }) {
		t.Errorf("the keyspace is not among %v (%v)", schemas, err)
	}
	tables, err := r.b.Tables(t.Context(), r.ks)
	if err != nil || !slices.ContainsFunc(tables, func(s driver.Table) bool { return s.Schema == r.ks && s.Name == "orders" && s.Kind == "table" }) {
		t.Errorf("the table is not among %v (%v)", tables, err)
	}
	columns, err := r.b.Columns(t.Context(), r.ks, "orders")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range columns {
		got[c.Name] = fmt.Sprintf("%s key %d", c.Type, c.PrimaryKey)
	}
	for name, want := range map[string]string{
		"shop": "text key 1", "day": "date key 2", "id": "timeuuid key 3", "total": "decimal key 0",
		"tags": "set<text> key 0", "home": "frozen<home> key 0", "owner": "text key 0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	constraints, err := r.b.Constraints(t.Context(), r.ks, "orders")
	if err != nil || len(constraints) != 1 || !slices.Equal(constraints[0].Columns, []string{"shop", "day", "id"}) || constraints[0].Kind != "primary_key" {
		t.Errorf("the constraints are %+v (%v)", constraints, err)
	}
	indexes, err := r.b.Indexes(t.Context(), r.ks, "orders")
	if err != nil || !slices.ContainsFunc(indexes, func(i driver.Index) bool {
		return i.Name == "orders_total" && slices.Equal(i.Columns, []string{"total"})
	}) {
		t.Errorf("the indexes are %+v (%v)", indexes, err)
	}
	if _, err := r.b.Columns(t.Context(), r.ks, "nothing"); err == nil {
		t.Error("a table that is not there has columns")
	} else if code, _, _ := r.code(err); code != athena.CodeNotFound {
		t.Errorf("a table that is not there: %s %v", code, err)
	}
	if id, err := r.b.Identity(t.Context()); err != nil || id.Product == "" || id.Version == "" {
		t.Errorf("the identity is %+v (%v)", id, err)
	}
}

func contractErrors(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TABLE "+r.ks+".e (p int, c int, v text, PRIMARY KEY (p, c))", "CREATE TABLE "+r.ks+".n (k int PRIMARY KEY, c counter)")
	for name, tt := range map[string]struct {
		text   string
		params []string
	}{
		"a syntax error":                     {"SELCT 1", nil},
		"a table that is not there":          {"SELECT * FROM " + r.ks + ".nothing", nil},
		"a column that is not there":         {"SELECT nothing FROM " + r.ks + ".e", nil},
		"a keyspace that is not there":       {"SELECT * FROM nothing_at_all.e", nil},
		"a part of the key alone":            {"UPDATE " + r.ks + ".e SET v = 'x' WHERE p = 1", nil},
		"a condition without an index":       {"SELECT * FROM " + r.ks + ".e WHERE v = 'x'", nil},
		"a key that is null":                 {"INSERT INTO " + r.ks + ".e (p, c, v) VALUES (?, 1, 'x')", []string{"null"}},
		"an insert into counters":            {"INSERT INTO " + r.ks + ".n (k, c) VALUES (1, 1)", nil},
		"a type that is not there":           {"CREATE TABLE " + r.ks + ".f (k int PRIMARY KEY, v nothing)", nil},
		"two statements":                     {"SELECT * FROM " + r.ks + ".e; SELECT * FROM " + r.ks + ".e", nil},
		"a literal that does not fit":        {"INSERT INTO " + r.ks + ".e (p, c) VALUES ('x', 1)", nil},
		"an order by what is no clustering":  {"SELECT * FROM " + r.ks + ".e WHERE p = 1 ORDER BY v", nil},
		"a counter within a batch of others": {"BEGIN BATCH UPDATE " + r.ks + ".n SET c = c + 1 WHERE k = 1; INSERT INTO " + r.ks + ".e (p, c) VALUES (1, 1); APPLY BATCH", nil},
	} {
		_, _, err := r.query(tt.text, tt.params...)
		if err == nil {
			t.Errorf("%s was taken", name)
			continue
		}
		if code, message, _ := r.code(err); code != athena.CodeQueryFailed || message == "" {
			t.Errorf("%s: %s %q; want query_failed with a message", name, code, message)
		}
	}
	_, _, err := r.query("CREATE TABLE " + r.ks + ".e (k int PRIMARY KEY)")
	if code, message, _ := r.code(err); code != athena.CodeConflict {
		t.Errorf("a table that is there: %s %q, want conflict", code, message)
	}
}

func contractNames(t *testing.T, r *contractRig) {
	r.exec(t, `CREATE TABLE `+r.ks+`."MixedCase" ("Key" int PRIMARY KEY, "select" text, "a""b" int)`)
	r.must(`INSERT INTO `+r.ks+`."MixedCase" ("Key", "select", "a""b") VALUES (?, ?, ?)`, "1", `"x"`, "2")
	if rows := r.must(`SELECT "Key", "select", "a""b" FROM ` + r.ks + `."MixedCase"`); !slices.Equal(rows, []string{`{"Key":1,"select":"x","a\"b":2}`}) {
		t.Errorf("the row is %s", rows)
	}
	table := driver.TableName{Schema: r.ks, Table: "MixedCase"}
	rows := r.table(t, table)
	if len(rows) != 1 || !strings.Contains(rows[0], `"Key":1`) {
		t.Errorf("read as a table it is %s", rows)
	}
	if columns, err := r.b.Columns(t.Context(), r.ks, "MixedCase"); err != nil || len(columns) != 3 {
		t.Errorf("the columns are %v, %v", columns, err)
	}
}

// table reads a table in parts.
func (r *contractRig) table(t *testing.T, name driver.TableName) (rows []string) {
	t.Helper()
	read := driver.TableRead{Table: name}
	parts, err := r.b.SplitTable(t.Context(), read, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		err := r.b.ReadTable(t.Context(), read, p, driver.BatchSize{Rows: 100}, func(b *record.Batch) error {
			for i := range b.Rows() {
				rows = append(rows, string(b.AppendJSON(nil, i)))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(rows)
	return rows
}

func contractParts(t *testing.T, r *contractRig) {
	r.exec(t, "CREATE TABLE "+r.ks+".parts (p int, c int, v text, PRIMARY KEY (p, c))")
	var want []string
	for p := range 200 {
		r.must("BEGIN UNLOGGED BATCH INSERT INTO "+r.ks+".parts (p, c, v) VALUES (?, 1, 'a'); INSERT INTO "+r.ks+".parts (p, c, v) VALUES (?, 2, 'b'); APPLY BATCH", strconv.Itoa(p), strconv.Itoa(p))
		want = append(want, fmt.Sprintf(`{"p":%d,"c":1,"v":"a"}`, p), fmt.Sprintf(`{"p":%d,"c":2,"v":"b"}`, p))
	}
	slices.Sort(want)
	if got := r.table(t, driver.TableName{Schema: r.ks, Table: "parts"}); !slices.Equal(got, want) {
		t.Errorf("%d rows, want %d: %.300s", len(got), len(want), got)
	}
	if n, err := r.b.Count(t.Context(), r.ks, "parts", 0); err != nil || n != int64(len(want)) {
		t.Errorf("counted %d, %v", n, err)
	}
}

// contractTarget is a table for rows of contractRows.
func contractTarget(ks, table string) driver.TableTarget {
	return driver.TableTarget{Table: driver.TableName{Schema: ks, Table: table}, Mode: driver.Upsert, Key: []string{"id"}, Create: true, Run: "run",
		Schema: &record.Schema{Columns: []record.Column{{Name: "id", Type: record.TypeInt64, Nullable: true}, {Name: "name", Type: record.TypeText, Nullable: true}}, Key: []string{"id"}}}
}

// write commits one batch. A row with a negative id has none.
func (r *contractRig) write(t *testing.T, target driver.TableTarget, part string, ids ...int64) []record.Rejected {
	t.Helper()
	b := record.New(target.Schema, len(ids))
	for _, id := range ids {
		if id < 0 {
			b.Columns[0].AppendNull()
		} else {
			b.Columns[0].AppendInt(id)
		}
		b.Columns[1].AppendString(fmt.Sprint("row ", id))
		b.Done()
	}
	tx, err := r.b.BeginTable(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	rejected, err := tx.Write(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context(), driver.Checkpoint{CheckpointKey: driver.CheckpointKey{Pipeline: "contract", Run: "run", Part: part}, Position: "done"}); err != nil {
		t.Fatal(err)
	}
	return rejected
}

func contractSink(t *testing.T, r *contractRig) {
	target := contractTarget(r.ks, "sink")
	if _, err := r.b.PrepareTable(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if rejected := r.write(t, target, "1", 1, 2, 3); len(rejected) > 0 {
		t.Errorf("refused: %v", rejected)
	}
	r.write(t, target, "2", 3, 4)
	want := []string{`{"id":1,"name":"row 1"}`, `{"id":2,"name":"row 2"}`, `{"id":3,"name":"row 3"}`, `{"id":4,"name":"row 4"}`}
	if got := r.table(t, target.Table); !slices.Equal(got, want) {
		t.Errorf("the rows are %s", got)
	}
	at, ok, err := r.b.Checkpoint(t.Context(), driver.CheckpointKey{Pipeline: "contract", Run: "run", Part: "2"})
	if err != nil || !ok || at.Position != "done" {
		t.Errorf("the checkpoint is %+v %v %v", at, ok, err)
	}
	tx, err := r.b.BeginTable(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if err := tx.Commit(t.Context(), driver.Checkpoint{CheckpointKey: driver.CheckpointKey{Pipeline: "contract", Run: "run", Part: "2"}, Position: "again"}); err == nil {
		t.Error("a checkpoint that is there was replaced by one who did not know of it")
	}
}

func contractNullKeys(t *testing.T, r *contractRig) {
	target := contractTarget(r.ks, "keys")
	if _, err := r.b.PrepareTable(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	rejected := r.write(t, target, "1", 1, -1, 2)
	if len(rejected) != 1 || rejected[0].Row != 1 || !strings.Contains(rejected[0].Reason, "id") {
		t.Errorf("refused: %+v; want row 1, by the name of its key", rejected)
	}
	if got := r.table(t, target.Table); len(got) != 2 {
		t.Errorf("the rows are %s", got)
	}
}
