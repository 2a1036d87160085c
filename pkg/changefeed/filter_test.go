package changefeed

import (
	"fmt"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestGlobs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, schema, table string
		want                   bool
	}{
		{"public.orders", "public", "orders", true},
		{"public.orders", "public", "order", false},
		{"public.orders", "public", "orders2", false},
		{"orders", "public", "orders", true},
		{"orders", "sales", "orders", false},
		{"public.*", "public", "orders", true},
		{"public.*", "sales", "orders", false},
		{"*.orders", "sales", "orders", true},
		{"*.orders", "sales", "order_items", false},
		{"*", "sales", "anything", true},
		{"*.*", "sales", "anything", true},
		{"public.order_*", "public", "order_items", true},
		{"public.*_items", "public", "order_items", true},
		{"public.*_items", "public", "order_items_", false},
		{"public.a*b*c", "public", "aXbYbZc", true},
		{"public.a*b*c", "public", "aXbYbZcd", false},
		{"public.?", "public", "é", true},
		{"public.?", "public", "ab", false},
		{"public.[a]", "public", "[a]", true},
		{`"my.schema"."a table"`, "my.schema", "a table", true},
		{`"*".t`, "anything", "t", false},
		{`"*".t`, "*", "t", true},
		{`public."say ""so"""`, "public", `say "so"`, true},
		{"public.Orders", "public", "orders", false},
	} {
		g, err := parseGlob("tables", test.pattern)
		if err != nil {
			t.Errorf("%s: %v", test.pattern, err)
			continue
		}
		if got := g.match(driver.TableName{Schema: test.schema, Table: test.table}); got != test.want {
			t.Errorf("%s on %s.%s is %v", test.pattern, test.schema, test.table, got)
		}
	}
	for _, bad := range []string{"", ".", "a.", ".a", "a.b.c", `"a`, `"a"b`, `""`, `a."b"c`, "a b", "a,b", "a\tb.c", strings.Repeat("a", 300)} {
		if g, err := parseGlob("tables", bad); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%q became %v, %v", bad, g, err)
		}
	}
}

// FuzzGlob holds that a table's name, as text, is a pattern that matches it and,
// where it is quoted or plain, nothing else.
func FuzzGlob(f *testing.F) {
	f.Add("public", "orders")
	f.Add(`a"b`, "x.*?")
	f.Fuzz(func(t *testing.T, schema, table string) {
		name := driver.TableName{Schema: schema, Table: table}
		g, err := parseGlob("tables", name.String())
		if err != nil || strings.ContainsAny(schema+table, "?") {
			return
		}
		if !g.match(name) {
			t.Errorf("%s does not match itself", name)
		}
		if g.match(driver.TableName{Schema: schema + "x", Table: table}) {
			t.Errorf("%s matches another", name)
		}
	})
}

func TestSplitTables(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"":                       nil,
		"a":                      {"a"},
		"a.b, c.*":               {"a.b", "c.*"},
		`"a,b".c,d`:              {`"a,b".c`, "d"},
		`public."x"",""y",other`: {`public."x"",""y"`, "other"},
		"a,,b":                   {"a", "", "b"},
	} {
		if got := SplitTables(text); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// A line as the encoder writes it.
func line(t testing.TB, c cdc.Change) []byte {
	t.Helper()
	if c.Pos == "" {
		c.Pos = "0000000000000001.00000001"
	}
	return cdc.NewEncoder("shop").Append(nil, &c)
}

var orders = driver.TableName{Schema: "public", Table: "orders"}

func TestWhere(t *testing.T) {
	t.Parallel()
	update := cdc.Change{Op: cdc.Update, Schema: "public", Table: "orders", Key: []byte(`{"id":7}`),
		Before: []byte(`{"status":"new"}`),
		After: []byte(`{"id":7,"total":"129.90","n":3,"ratio":1.5,"whole":2.0,"big":9223372036854775807,"beyond":18446744073709551616,` +
			`"paid":true,"note":null,"tags":["a","b"],"doc":{"x":{"y":[1,2.5]}},"at":"2026-11-22T10:00:00.123456Z","status":"paid","say \"so\"":1}`)}
	remove := cdc.Change{Op: cdc.Delete, Schema: "public", Table: "orders", Key: []byte(`{"id":8}`), Before: []byte(`{"id":8}`)}
	columns := cdc.Change{Op: cdc.Schema, Schema: "public", Table: "orders", Columns: []cdc.Column{{Name: "id", Type: "int8"}}}
	for where, want := range map[string]struct {
		change cdc.Change
		match  bool
	}{
		`op == "update"`:                          {update, true},
		`op in ["insert", "delete"]`:              {update, false},
		`schema == "public" && table == "orders"`: {update, true},
		`key.id == 7`:                             {update, true},
		`key.id == 7.0`:                           {update, true},
		`after.n > 2`:                             {update, true},
		`after.n > 2.5`:                           {update, true},
		`after.n < 3.5 && after.n >= 3`:           {update, true},
		`after.ratio > 1`:                         {update, true},
		`after.ratio == 1.5`:                      {update, true},
		`after.whole == 2`:                        {update, true},
		`after.big == 9223372036854775807`:        {update, true},
		`after.beyond > 1.0e19`:                   {update, true},
		`double(after.total) > 100.0`:             {update, true},
		`double(after.total) > 100`:               {update, true},
		`after.total > 100`:                       {update, false}, // a text is no number
		`after.total > "100"`:                     {update, true},  // and compared as a text
		`after.paid == true`:                      {update, true},
		`after.note == null`:                      {update, true},
		`"b" in after.tags`:                       {update, true},
		`after.tags.exists(t, t.startsWith("a"))`: {update, true},
		`after.doc.x.y[1] == 2.5`:                 {update, true},
		`timestamp(after.at) > timestamp("2026-01-01T00:00:00Z")`: {update, true},
		`timestamp(after.at).getHours() == 10`:                    {update, true},
		`before.status != after.status`:                           {update, true},
		`after["say \"so\""] == 1`:                                {update, true},
		`after.status.matches("^pa")`:                             {update, true},
		`size(after) == 14`:                                       {update, true},
		`after.missing > 1`:                                       {update, false},
		`!(after.missing > 1)`:                                    {update, false}, // no answer is no match
		`!has(after.missing)`:                                     {update, true},
		`has(after.n) && after.n == 3`:                            {update, true},
		`after.missing > 1 || op == "update"`:                     {update, true},
		`after.n / 0 == 1`:                                        {update, false},
		`double(after.status) > 1.0`:                              {update, false},
		`after == {}`:                                             {remove, true},
		`op == "delete" && before.id == 8`:                        {remove, true},
		`size(before) == 0`:                                       {remove, false},
		`after.id == 999`:                                         {columns, true}, // schema changes are not asked
		`false`:                                                   {columns, true},
		`true`:                                                    {update, true},
		"":                                                        {update, true},
		" \n":                                                     {update, true},
	} {
		f, err := NewFilter(FilterSpec{Where: where})
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		var scratch row
		got, err := f.match(orders, []byte(want.change.Op), line(t, want.change), &scratch)
		if got != want.match || err != nil {
			t.Errorf("%s on %s is %v, %v", where, want.change.Op, got, err)
		}
	}
}

func TestWhereIsRefused(t *testing.T) {
	t.Parallel()
	for where, say := range map[string]string{
		`after.total >`:               "line 1, column 14",
		`nope == 1`:                   "undeclared reference to 'nope'",
		"op == \"a\" &&\n  1 == op.x": "line 2",
		`op == 1`:                     "no matching overload",
		`after.total`:                 "type is not known",
		`op`:                          "type string",
		`1 + 1`:                       "type int",
		`after`:                       "type map(string, dyn)",
		`op.foo() == 1`:               "undeclared reference to 'foo'",
		`"` + strings.Repeat("x", 5000) + `" == op`:                  "5008 bytes",
		strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500): "cannot be understood",
		`op.matches("[")`: "cannot be used",
	} {
		_, err := NewFilter(FilterSpec{Where: where})
		e := athena.AsError(err)
		if e == nil || e.Code != athena.CodeInvalidRequest || e.Details["field"] != "where" || !strings.Contains(e.Message, say) {
			t.Errorf("%.60s: %v", where, err)
		}
	}
	for field, spec := range map[string]FilterSpec{
		"tables": {Tables: []string{"a.b.c"}},
		"ops":    {Ops: []cdc.Op{"upsert"}},
	} {
		if _, err := NewFilter(spec); athena.CodeOf(err) != athena.CodeInvalidRequest || athena.AsError(err).Details["field"] != field {
			t.Errorf("%v: %v", spec, err)
		}
	}
}

func TestAnExpensiveWhereIsAnErrorAndNoSilence(t *testing.T) {
	t.Parallel()
	f, err := NewFilter(FilterSpec{Where: `after.l.all(a, after.l.all(b, after.l.all(c, a + b + c >= 0)))`})
	if err != nil {
		t.Fatal(err)
	}
	list := strings.TrimSuffix(strings.Repeat("1,", 500), ",")
	var scratch row
	for range 2 { // the budget is of one evaluation
		_, err = f.match(orders, []byte("insert"), line(t, cdc.Change{Op: cdc.Insert, Schema: "public", Table: "orders", After: []byte(`{"l":[` + list + `]}`)}), &scratch)
		if athena.CodeOf(err) != athena.CodeInvalidRequest || athena.AsError(err).Details["field"] != "where" {
			t.Errorf("got %v", err)
		}
		if ok, err := f.match(orders, []byte("insert"), line(t, cdc.Change{Op: cdc.Insert, Schema: "public", Table: "orders", After: []byte(`{"l":[1,2]}`)}), &scratch); !ok || err != nil {
			t.Errorf("a small one: %v, %v", ok, err)
		}
	}
}

func TestOpsAndTables(t *testing.T) {
	t.Parallel()
	f, err := NewFilter(FilterSpec{Tables: []string{"public.o*"}, Ops: []cdc.Op{cdc.Insert, cdc.Update}})
	if err != nil {
		t.Fatal(err)
	}
	var scratch row
	for op, want := range map[cdc.Op]bool{cdc.Insert: true, cdc.Update: true, cdc.Delete: false, cdc.Schema: false, cdc.Read: false} {
		// Without an expression nothing behind the line's head is looked at.
		if got, err := f.match(orders, []byte(op), []byte(`{"pos":"1","op":"`+string(op)+`",not JSON`), &scratch); got != want || err != nil {
			t.Errorf("%s: %v, %v", op, got, err)
		}
	}
	if !f.wants(orders) || f.wants(driver.TableName{Schema: "sales", Table: "orders"}) {
		t.Error("tables are chosen wrongly")
	}
	// Messages of the log are of no table. Those that tell of a gap pass.
	for prefix, want := range map[string]bool{"app": false, PrefixBegin: true} {
		line := []byte(`{"pos":"1","op":"message","client":"c","prefix":"` + prefix + `","content":""}`)
		got, err := f.match(driver.TableName{}, []byte(cdc.Message), line, &scratch)
		if !f.wants(driver.TableName{}) || got != want || err != nil {
			t.Errorf("a message %q: %v, %v", prefix, got, err)
		}
	}
	var all *Filter
	if !all.wants(driver.TableName{}) {
		t.Error("no filter leaves messages of the log out")
	}
}

func TestCursorsAndStarts(t *testing.T) {
	t.Parallel()
	base := cdc.Position("0000000001B3A2F8.00000003")
	for _, p := range []cdc.Position{Genesis, base, base.Read(10), base.BeforeNext(), base.Read(0xA).BeforeNext(), base.BeforeNext().Read(0x10), before(base)} {
		if got, err := ParseCursor("cursor", string(p)); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
		if s, err := ParseFrom(string(p)); err != nil || s.cursor != p {
			t.Errorf("%s: %v, %v", p, s, err)
		}
	}
	for _, bad := range []string{"latest", "Now", "-1", "now ", "0000000001B3A2F8.00000003;", "yesterday", "2026-01-01", "0\n", strings.Repeat("0", 300), "é"} {
		if _, err := ParseFrom(bad); athena.CodeOf(err) != athena.CodeInvalidRequest || athena.AsError(err).Details["field"] != "from" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s, err := ParseFrom("2026-11-22T10:00:00+02:00"); err != nil || s.at.UTC().Hour() != 8 {
		t.Errorf("a time: %v, %v", s, err)
	}
	// before is behind all that can precede, and before the position itself.
	for _, p := range []cdc.Position{"0000000001B3A2F8.00000003", "0000000001B3A2F8.00000010", "0000000001B3A2F8.0000000A", base.Read(0), base.Read(0xA), base.Read(0xB), base.BeforeNext()} {
		b := before(p)
		if _, err := ParseCursor("cursor", string(b)); err != nil || b >= p {
			t.Errorf("before %s stands %s (%v)", p, b, err)
		}
	}
	for earlier, later := range map[cdc.Position]cdc.Position{
		base:                                    base.BeforeNext(),
		base.Read(0xFFFFFFFFF):                  base.BeforeNext(),
		base.Read(0xF):                          base.Read(0x10),
		base.Read(0x9):                          base.Read(0xA),
		base.Read(0x9).BeforeNext():             base.Read(0xA),
		"0000000001B3A2F8.00000003s":            "0000000001B3A2F8.00000004",
		"0000000001B3A2F8.0000000Fs":            "0000000001B3A2F8.00000010",
		"0000000001B3A2F8.00000009rFFFFFFFFFFs": "0000000001B3A2F8.0000000A",
	} {
		if b := before(later); b < earlier {
			t.Errorf("before %s stands %s, which is before %s", later, b, earlier)
		}
	}
}

func BenchmarkWhere(b *testing.B) {
	for name, where := range map[string]string{"none": "", "op": `op == "update"`, "column": `double(after.total) > 100.0`} {
		b.Run(name, func(b *testing.B) {
			f, err := NewFilter(FilterSpec{Where: where})
			if err != nil {
				b.Fatal(err)
			}
			l := line(b, cdc.Change{Op: cdc.Update, Schema: "public", Table: "orders", Key: []byte(`{"id":7}`),
				After: []byte(`{"id":7,"total":"129.90","note":"a text of a hundred bytes or so, as they are in tables that people make for shops and such","n":3}`)})
			var scratch row
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := f.match(orders, []byte("update"), l, &scratch); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
