package postgres

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A typeCase is a column's type, the type of its values in records, and values
// for it that come back as they were.
type typeCase struct {
	native string
	typ    record.Type
	draw   func(t *rapid.T, v *record.Vector)
}

func ints(lo, hi int64) func(*rapid.T, *record.Vector) {
	return func(t *rapid.T, v *record.Vector) { v.AppendInt(rapid.Int64Range(lo, hi).Draw(t, "int")) }
}

func texts(of ...string) func(*rapid.T, *record.Vector) {
	return func(t *rapid.T, v *record.Vector) { v.AppendString(rapid.SampledFrom(of).Draw(t, "text")) }
}

// timed are numbers with the two ends of time among them.
func timed(lo, hi int64) func(*rapid.T, *record.Vector) {
	return func(t *rapid.T, v *record.Vector) {
		v.AppendInt(rapid.OneOf(rapid.Int64Range(lo, hi), rapid.SampledFrom([]int64{record.Infinity, record.MinusInfinity, lo, hi, 0, -1})).Draw(t, "time"))
	}
}

// numbers have so many digits before and behind the point.
func numbers(whole, scale int) func(*rapid.T, *record.Vector) {
	return func(t *rapid.T, v *record.Vector) {
		s := rapid.StringMatching(fmt.Sprintf(`[1-9][0-9]{0,%d}|0`, whole-1)).Draw(t, "whole")
		if scale > 0 {
			s += "." + rapid.StringMatching(fmt.Sprintf(`[0-9]{%d}`, scale)).Draw(t, "fraction")
		}
		if strings.Trim(s, "0.") != "" && rapid.Bool().Draw(t, "negative") {
			s = "-" + s
		}
		v.AppendString(s)
	}
}

var anyText = rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 && (r < 0xD800 || r > 0xDFFF) }), 0, 30, -1)

func drawText(t *rapid.T, v *record.Vector) { v.AppendString(anyText.Draw(t, "text")) }

// floats are finite or not; NaN comes back as some NaN.
func floats(bits int) func(*rapid.T, *record.Vector) {
	return func(t *rapid.T, v *record.Vector) {
		f := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{math.Inf(1), math.Inf(-1), math.NaN(), math.Copysign(0, -1)})).Draw(t, "float")
		if bits == 32 {
			f = float64(float32(f))
		}
		v.AppendFloat(f)
	}
}

const typeCasesSetup = `CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'happy'); CREATE DOMAIN small AS numeric(6,2);
	CREATE TYPE point3 AS (x int, "y ""q""" numeric, note text)`

func typeCases() []typeCase {
	return []typeCase{
		{"boolean", record.TypeBool, ints(0, 1)},
		{"smallint", record.TypeInt16, ints(math.MinInt16, math.MaxInt16)},
		{"integer", record.TypeInt32, ints(math.MinInt32, math.MaxInt32)},
		{"bigint", record.TypeInt64, ints(math.MinInt64, math.MaxInt64)},
		{"oid", record.TypeInt64, ints(0, math.MaxUint32)},
		{"real", record.TypeFloat32, floats(32)},
		{"double precision", record.TypeFloat64, floats(64)},
		{"numeric", record.TypeDecimal, func(t *rapid.T, v *record.Vector) {
			if rapid.IntRange(0, 5).Draw(t, "special") == 0 {
				texts("NaN", "Infinity", "-Infinity", "0", "0.000", "10000", "0.0001", "0.00010000", "-9999.9999", "100000000")(t, v)
			} else {
				numbers(rapid.IntRange(1, 40).Draw(t, "whole digits"), rapid.IntRange(0, 30).Draw(t, "scale"))(t, v)
			}
		}},
		{"numeric(12,2)", record.DecimalOf(12, 2), numbers(10, 2)},
		{"numeric(38,0)", record.DecimalOf(38, 0), numbers(38, 0)},
		{"numeric(40,3)", record.TypeDecimal, numbers(37, 3)},
		{"text", record.TypeText, drawText},
		{"character varying(30)", record.TypeText, drawText},
		{"name", record.TypeText, texts("a", "", "x y")},
		{"mood", record.TypeText, texts("sad", `so "so"`, "happy")},
		{"bytea", record.TypeBytes, func(t *rapid.T, v *record.Vector) {
			v.AppendBytes(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "bytes"))
		}},
		{"date", record.TypeDate, timed(-2451545+daysTo2000, 2145031948+daysTo2000)},
		{"time without time zone", record.TypeTime, ints(0, 86_400_000_000)},
		{"timestamp without time zone", record.TypeTimestamp, timed(-210866803200000000+microsTo2000, math.MaxInt64-1)},
		{"timestamp with time zone", record.TypeTimestampTZ, timed(-210866803200000000+microsTo2000, math.MaxInt64-1)},
		{"uuid", record.TypeUUID, func(t *rapid.T, v *record.Vector) {
			v.AppendBytes(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
		}},
		{"json", record.TypeJSON, texts(`{"b": 1.50,  "a":[null]}`, `null`, `"x\u0000\ud83d\ude00"`, `[]`, `1e400`)},
		{"jsonb", record.TypeJSON, texts(`{"a": [null], "b": 1.50}`, `null`, `"😀\\u"`, `[]`, `-0.0001`)},
		{"small", record.DecimalOf(6, 2), numbers(4, 2)},
		// What the server reads from text:
		{"integer[]", record.TypeJSON, texts(`[]`, `[1,null,-3]`, `[[1,2],[3,4]]`, `{"lower":[0],"values":[5,6]}`, `{"lower":[-1,3],"values":[[5],[6]]}`)},
		{"text[]", record.TypeJSON, texts(`["a,b","c\"d","{e}","NULL",null,"","\\"]`, `[]`)},
		{"bytea[]", record.TypeJSON, texts(`["AP8=",null]`)},
		{"jsonb[]", record.TypeJSON, texts(`[{"a": "x\"y"},null]`, `[[1, 2]]`)},
		{"numeric[]", record.TypeJSON, texts(`["1.50","NaN"]`)},
		{"timestamp with time zone[]", record.TypeJSON, texts(`["2026-11-22T10:00:00.000000Z","infinity","-000043-03-15T12:00:00.000000Z"]`)},
		{"int4range", record.TypeJSON, texts(`{"lower":1,"upper":10,"bounds":"[)"}`, `{"empty":true}`, `{"lower":null,"upper":null,"bounds":"()"}`)},
		{"tstzrange", record.TypeJSON, texts(`{"lower":"2026-11-22T10:00:00.000000Z","upper":"infinity","bounds":"[)"}`)},
		{"int4multirange", record.TypeJSON, texts(`[]`, `[{"lower":1,"upper":3,"bounds":"[)"},{"lower":5,"upper":7,"bounds":"[)"}]`)},
		{"int4range[]", record.TypeJSON, texts(`[{"lower":1,"upper":2,"bounds":"[)"},{"empty":true},null]`)},
		{"point3", record.TypeJSON, texts(`{"x":1,"y \"q\"":"2.50","note":"a \"b\", (c) \\"}`, `{"x":null,"y \"q\"":null,"note":""}`)},
		{"point3[]", record.TypeJSON, texts(`[{"x":1,"y \"q\"":"2","note":"a,b"},null]`)},
		{"int2vector", record.TypeJSON, texts(`[1,2,3]`, `[]`)},
		{"mood[]", record.TypeJSON, texts(`["sad","so \"so\"",null]`)},
		{"interval", record.TypeText, texts("P1Y2M-3DT4H5M6.789S", "PT0S")},
		{"time with time zone", record.TypeText, texts("10:00:00+05:30", "23:59:59.5+00")},
		{"inet", record.TypeText, texts("192.168.0.1", "192.168.0.0/24", "::1")},
		{"macaddr", record.TypeText, texts("08:00:2b:01:02:03")},
		{"bit(3)", record.TypeText, texts("101")},
		{"point", record.TypeText, texts("(1,2)")},
		{"pg_lsn", record.TypeText, texts("16/B374D848")},
		{"tsvector", record.TypeText, texts("'a':1 'b'")},
		{"xml", record.TypeText, texts(`<a>"1"</a>`)},
	}
}

// sameValue compares values of two vectors.
func sameValue(a *record.Vector, i int, b *record.Vector, j int) bool {
	switch {
	case a.Null(i) || b.Null(j):
		return a.Null(i) == b.Null(j)
	case a.Kind != b.Kind:
		return false
	case a.Kind == record.Float:
		x, y := a.Floats[i], b.Floats[j]
		return math.Float64bits(x) == math.Float64bits(y) || math.IsNaN(x) && math.IsNaN(y)
	case len(a.Ends) > 0:
		return bytes.Equal(a.Bytes(i), b.Bytes(j))
	}
	return a.Ints[i] == b.Ints[j]
}

// TestWhatIsWrittenIsReadBack writes random rows with the columns of random types,
// by each of the modes that inserts, and reads them back. The types that have a
// binary form here and those that the server reads from text are mixed and not,
// since they take different roads.
func TestWhatIsWrittenIsReadBack(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, typeCasesSetup)
	cases := typeCases()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		chosen := rapid.SliceOfNDistinct(rapid.IntRange(0, len(cases)-1), 1, 12, rapid.ID[int]).Draw(t, "types")
		if n == 1 {
			chosen = chosen[:0]
			for i := range cases {
				chosen = append(chosen, i)
			}
		}
		mode := rapid.SampledFrom([]driver.WriteMode{driver.Append, driver.Upsert, driver.Overwrite, driver.Merge}).Draw(t, "mode")
		s := &record.Schema{Columns: []record.Column{{Name: "id", Type: record.TypeInt64}}}
		defs := []string{"id bigint PRIMARY KEY"}
		for i, c := range chosen {
			name := fmt.Sprintf(`c "%d"`, i)
			s.Columns = append(s.Columns, record.Column{Name: name, Type: cases[c].typ, Native: cases[c].native, Nullable: true})
			defs = append(defs, quoteName(name)+" "+cases[c].native)
		}
		name := driver.TableName{Schema: "public", Table: fmt.Sprintf("T %d", n)}
		r.exec("CREATE TABLE " + quoteTable(name) + " (" + strings.Join(defs, ", ") + ")")
		target := driver.TableTarget{Table: name, Mode: mode, Key: []string{"id"}, Schema: s, Run: "r"}
		r.prepare(target)
		batch := record.New(s, 8)
		for id := range rapid.IntRange(0, 30).Draw(t, "rows") {
			batch.Columns[0].AppendInt(int64(id))
			for i, c := range chosen {
				if rapid.IntRange(0, 6).Draw(t, "null") == 0 {
					batch.Columns[i+1].AppendNull()
				} else {
					cases[c].draw(t, &batch.Columns[i+1])
				}
			}
			batch.Done()
		}
		if rejected := r.write(target, done(), batch); rejected != nil {
			t.Fatalf("%d rows are rejected: %+v", len(rejected), rejected[0])
		}
		if mode.Staged() {
			if changed, err := r.b.FinishTable(t.Context(), target, done()); err != nil || changed != int64(batch.Rows()) {
				t.Fatalf("%d rows changed, %v", changed, err)
			}
		}
		back := r.read(driver.TableRead{Table: name}, driver.TablePart{})
		if batch.Rows() == 0 && back == nil {
			return
		}
		if back.Rows() != batch.Rows() {
			t.Fatalf("%d rows came back of %d", back.Rows(), batch.Rows())
		}
		for i := range back.Rows() {
			id := int(back.Columns[0].Ints[i])
			for c, col := range s.Columns {
				if !sameValue(&batch.Columns[c], id, &back.Columns[c], i) {
					t.Errorf("%s %s: %s came back as %s", mode, col.Native, batch.Columns[c].AppendJSON(nil, col.Type, id), back.Columns[c].AppendJSON(nil, col.Type, i))
				}
				if got := back.Schema.Columns[c]; c > 0 && (got.Type != col.Type || got.Native != col.Native) {
					t.Errorf("column %+v is described as %+v", col, got)
				}
			}
		}
		r.exec("DROP TABLE " + quoteTable(name))
	})
}

// An upsertModel is a table of id, a and b as a map, by the laws of changes.
type upsertModel map[int64]modelRow

type modelRow struct {
	a int64 // at most 100: a CHECK of the server's
	b string
}

// TestUpsertIsAMapUnderChanges holds the table against a map, over random changes
// of few keys: inserts, updates with and without all values, deletes, updates of
// the key, truncates, and rows that are refused here or by the server. A row that
// the server would refuse is the last of its key in the batch: of others the
// server sees only what they come to.
func TestUpsertIsAMapUnderChanges(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, "")
	s := &record.Schema{Columns: []record.Column{
		{Name: "b", Type: record.TypeText}, {Name: "id", Type: record.TypeInt64}, {Name: "a", Type: record.TypeInt64},
	}, Key: []string{"id"}}
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		name := public(fmt.Sprintf("u%d", n))
		key := rapid.SampledFrom([]string{"bigint", "numeric", "text COLLATE loose"}).Draw(t, "key")
		schema := &record.Schema{Columns: slices.Clone(s.Columns), Key: s.Key}
		switch key {
		case "numeric":
			schema.Columns[1].Type = record.TypeDecimal
		case "text COLLATE loose":
			schema.Columns[1].Type = record.TypeText
			r.exec(`CREATE COLLATION IF NOT EXISTS loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
		}
		r.exec("CREATE TABLE " + quoteTable(name) + " (id " + key + " PRIMARY KEY, a smallint NOT NULL CHECK (a <= 100), b text NOT NULL, c text DEFAULT 'kept')")
		target := driver.TableTarget{Table: name, Mode: driver.Upsert, Key: []string{"id"}, Schema: schema, Changes: true}
		r.prepare(target)
		model := upsertModel{}
		for range rapid.IntRange(1, 3).Draw(t, "batches") {
			batch := record.New(schema, 16)
			batch.Changes = []record.Change{}
			var want []int
			refused := map[int64]bool{}
			appendKey := func(id int64) {
				v := &batch.Columns[1]
				switch {
				case key == "numeric": // equal, and not the same
					v.AppendString(fmt.Sprint(id) + rapid.SampledFrom([]string{"", ".0", ".00"}).Draw(t, "form"))
				case key == "bigint":
					v.AppendInt(id)
				default:
					v.AppendString(rapid.SampledFrom([]string{"k", "K"}).Draw(t, "form") + fmt.Sprint(id))
				}
			}
			change := func(op cdc.Op, implied bool) {
				batch.Changes = append(batch.Changes, record.Change{Op: op, Implied: implied})
				batch.Done()
			}
			remove := func(id int64, implied bool) {
				appendKey(id)
				batch.Columns[0].AppendAbsent()
				batch.Columns[2].AppendAbsent()
				change(cdc.Delete, implied)
			}
			for range rapid.IntRange(1, 25).Draw(t, "changes") {
				id := rapid.Int64Range(1, 8).Draw(t, "id")
				put := modelRow{rapid.SampledFrom([]int64{1, 2, 3, 4, 101, 70000}).Draw(t, "a"), rapid.SampledFrom([]string{"x", "y", "z\x00"}).Draw(t, "b")}
				kind := rapid.IntRange(0, 9).Draw(t, "kind")
				to := id
				if refused[id] {
					continue
				}
				switch kind {
				case 0:
					remove(id, false)
					delete(model, id)
					continue
				case 1:
					if rapid.IntRange(0, 4).Draw(t, "truncate") > 0 || len(refused) > 0 {
						continue
					}
					for i := range batch.Columns {
						batch.Columns[i].AppendAbsent()
					}
					change(cdc.Truncate, false)
					clear(model)
					continue
				case 2, 3: // the key moves, to where nothing is
					if to = id%8 + 1; model[to] != (modelRow{}) || refused[to] {
						to = id
					} else {
						remove(id, true)
					}
				}
				absent := kind == 3 || kind == 4
				appendKey(to)
				batch.Columns[2].AppendInt(put.a)
				was, there := model[id]
				if absent {
					batch.Columns[0].AppendAbsent()
					put.b = was.b
				} else {
					batch.Columns[0].AppendString(put.b)
				}
				row := batch.Rows()
				change(cdc.Update, false)
				switch {
				case put.a > 100, put.b == "z\x00", absent && !there:
					want = append(want, row)
					refused[id], refused[to] = true, true
				default:
					delete(model, id)
					model[to] = put
				}
			}
			var got []int
			for _, rejected := range r.write(target, done(), batch) {
				got = append(got, rejected.Row)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: the rows %v are rejected, want %v", key, got, want)
			}
			var lines []string
			for _, id := range slices.Sorted(maps.Keys(model)) {
				lines = append(lines, fmt.Sprintf("%d %d %s kept", id, model[id].a, model[id].b))
			}
			is := r.text(`SELECT coalesce(string_agg(format('%s %s %s %s', trim_scale(ltrim(id::text, 'kK')::numeric), a, b, c), ', ' ORDER BY ltrim(id::text, 'kK')::numeric), '') FROM ` + quoteTable(name))
			if is != strings.Join(lines, ", ") {
				t.Fatalf("%s: the table has\n%s\nand should have\n%s", key, is, strings.Join(lines, ", "))
			}
		}
		r.exec("DROP TABLE " + quoteTable(name))
	})
}

// TestEveryRowIsInOnePart reads tables in parts while all their rows are updated,
// which moves them about on disk, and others come and go.
func TestEveryRowIsInOnePart(t *testing.T) {
	t.Parallel()
	keys := map[string]string{
		"whole numbers":                    "k bigint PRIMARY KEY|i",
		"text":                             `k text PRIMARY KEY|md5(i::text)`,
		"text of a language":               `k text COLLATE "en-x-icu" PRIMARY KEY|CASE WHEN i % 2 = 0 THEN 'é' ELSE 'E' END || i`,
		"text without accents":             `k text COLLATE loose PRIMARY KEY|'K' || i`,
		"uuid":                             "k uuid PRIMARY KEY|md5(i::text)::uuid",
		"instants":                         "k timestamptz PRIMARY KEY|'2026-01-01'::timestamptz + i * interval '1 min'",
		"numeric":                          "k numeric PRIMARY KEY|i / 7.0",
		"floats":                           "k float8 PRIMARY KEY|CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE sqrt(i) END",
		"fixed width":                      "k char(10) PRIMARY KEY|i::text",
		"a pair of which one tells little": "a int, k text, PRIMARY KEY (a, k)|i % 3, md5(i::text)",
		"an enum and a number":             `"A" mood, k int, PRIMARY KEY ("A", k)|(ARRAY['sad','happy','so "so"'])[1 + i % 3]::mood, i`,
		"no primary key":                   `j int, k text NOT NULL, UNIQUE (j), CONSTRAINT z UNIQUE (k)|i, 'k' || i`,
		"partitions":                       "k int PRIMARY KEY|i",
	}
	for name, spec := range keys {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTableRig(t, typeCasesSetup+`; CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)`)
			columns, exprs, _ := strings.Cut(spec, "|")
			create := "CREATE TABLE t (" + columns + ", n int NOT NULL, filler text)"
			if name == "partitions" {
				create += ` PARTITION BY RANGE (k); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (1000);
					CREATE TABLE t2 PARTITION OF t DEFAULT PARTITION BY HASH (k); CREATE TABLE t21 PARTITION OF t2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
					CREATE TABLE t22 PARTITION OF t2 FOR VALUES WITH (MODULUS 2, REMAINDER 1)`
			}
			r.exec(create)
			r.exec("INSERT INTO t SELECT " + exprs + ", i, repeat('x', 100) FROM generate_series(1, 4000) i; ANALYZE t")
			parts, err := r.b.SplitTable(t.Context(), driver.TableRead{Table: public("t")}, 64<<10)
			if err != nil || len(parts) < 5 {
				t.Fatalf("%d parts, %v", len(parts), err)
			}
			stop, stopped := make(chan struct{}), make(chan error, 1)
			churn := newTableRigOn(t, r.dsn)
			go func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						stopped <- nil
						return
					default:
					}
					// n above 3000 come and go.
					if _, err := churn.sql.PgConn().Exec(t.Context(), fmt.Sprintf("UPDATE t SET filler = repeat('y', %d) WHERE n %% 5 = %d; DELETE FROM t WHERE n > 3000 AND n %% 7 = %[2]d", 50+i%100, i%5)).ReadAll(); err != nil {
						stopped <- err
						return
					}
				}
			}()
			seen := map[int64]int{}
			for _, p := range parts {
				b := r.read(driver.TableRead{Table: public("t"), Columns: []string{"n"}}, p)
				if b == nil {
					continue
				}
				for _, n := range b.Columns[0].Ints {
					seen[n]++
				}
			}
			close(stop)
			if err := <-stopped; err != nil {
				t.Fatal(err)
			}
			for n := int64(1); n <= 4000; n++ {
				if c := seen[n]; c > 1 || c == 0 && n <= 3000 {
					t.Fatalf("row %d was read %d times in %d parts", n, c, len(parts))
				}
			}
		})
	}
}
