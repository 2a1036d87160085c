package judge_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/bench/judge"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const tables = `
	create table orders (id bigint primary key, ver bigint, status text, note text);
	create table logs (ver bigint, line text, at timestamptz);
	alter table logs replica identity full;`

// What the source holds after the stream below.
const rows = `
	insert into orders values (2, 5, 'paid', 'long'), (3, 3, 'new', null);
	insert into logs values (11, 'twin', '2026-11-22 10:00:00+00'), (12, 'twin', '2026-11-22 10:00:00+00');
	alter table orders add column total numeric;
	insert into orders values (4, 7, 'new', null, 19.90);`

// stream is a true one: each line a message.
var stream = []string{
	`{"pos":"0000000000000000r0000000001","op":"read","client":"shop","schema":"public","table":"orders","key":{"id":1},"after":{"id":1,"ver":1,"status":"old","note":"long"},"schema_version":1}`,
	`{"pos":"00000000000000A0.00000001","op":"insert","client":"shop","schema":"public","table":"orders","key":{"id":3},"after":{"id":3,"ver":3,"status":"new","note":null},"tx":{"id":"771","pos":"00000000000000A0","n":1,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`,
	`{"pos":"00000000000000A0.00000002","op":"update","client":"shop","schema":"public","table":"orders","key":{"id":2},"before":{"id":1},"after":{"id":2,"ver":4,"status":"new"},"unchanged":["note"],"tx":{"id":"771","pos":"00000000000000A0","n":2,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`,
	`{"pos":"00000000000000B0.00000001","op":"update","client":"shop","schema":"public","table":"orders","key":{"id":2},"after":{"id":2,"ver":5,"status":"paid"},"unchanged":["note"],"tx":{"id":"772","pos":"00000000000000B0","n":1,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`,
	`{"pos":"00000000000000C0.00000001","op":"insert","client":"shop","schema":"public","table":"logs","after":{"ver":10,"line":"gone","at":"2026-11-22T10:00:00.000000Z"},"tx":{"id":"773","pos":"00000000000000C0","n":1,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}
{"pos":"00000000000000C0.00000002","op":"insert","client":"shop","schema":"public","table":"logs","after":{"ver":11,"line":"twin","at":"2026-11-22T10:00:00.000000Z"},"tx":{"id":"773","pos":"00000000000000C0","n":2,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}
{"pos":"00000000000000C0.00000003","op":"insert","client":"shop","schema":"public","table":"logs","after":{"ver":12,"line":"twin","at":"2026-11-22T10:00:00.000000Z"},"tx":{"id":"773","pos":"00000000000000C0","n":3,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}
{"pos":"00000000000000C0.00000004","op":"delete","client":"shop","schema":"public","table":"logs","before":{"ver":10,"line":"gone","at":"2026-11-22T10:00:00.000000Z"},"tx":{"id":"773","pos":"00000000000000C0","n":4,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`,
	`{"pos":"00000000000000D0.00000001","op":"message","client":"shop","tx":{"id":"774","pos":"00000000000000D0","n":1,"at":"2026-11-22T10:00:00.123456Z"},"prefix":"judge.ddl","content":"YWx0ZXIgdGFibGUgb3JkZXJzIGFkZCBjb2x1bW4gdG90YWwgbnVtZXJpYw=="}`,
	`{"pos":"00000000000000D0.00000001s","op":"schema","client":"shop","schema":"public","table":"orders","schema_version":2,"columns":[{"name":"id","type":"bigint","key":true},{"name":"ver","type":"bigint"},{"name":"status","type":"text"},{"name":"note","type":"text"},{"name":"total","type":"numeric"}]}`,
	`{"pos":"00000000000000D0.00000002","op":"insert","client":"shop","schema":"public","table":"orders","key":{"id":4},"after":{"id":4,"ver":7,"status":"new","note":null,"total":"19.90"},"tx":{"id":"774","pos":"00000000000000D0","n":2,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":2}`,
}

func ledger() *judge.Ledger {
	var l judge.Ledger
	for _, ver := range []int64{3, 4, 5, 7, 10, 11, 12} {
		l.Committed(judge.Wrote(ver))
	}
	l.Committed(judge.Dropped(10), judge.Said(judge.DDL, "alter table orders add column total numeric"))
	return &l
}

// TestTheJudgeFindsEachLie shows that a true stream is accepted and that each
// way of being wrong is not.
func TestTheJudgeFindsEachLie(t *testing.T) {
	t.Parallel()
	change := func(n int, from, to string) func([]string) {
		return func(lines []string) {
			if !strings.Contains(lines[n], from) {
				panic(from)
			}
			lines[n] = strings.Replace(lines[n], from, to, 1)
		}
	}
	tests := map[string]struct {
		lie  func(lines []string)
		want string // part of a problem; none for no problem
	}{
		"the truth":                               {func([]string) {}, ""},
		"a change left out":                       {func(l []string) { l[3] = "" }, "1 changes were committed and did not arrive: [w5]"},
		"a transaction sent twice":                {func(l []string) { l[4] = l[3] + "\n" + l[4] }, "position 00000000000000B0.00000001 came twice"},
		"the same change at a new position":       {func(l []string) { l[3] += "\n" + strings.ReplaceAll(l[3], "B0", "B8") }, "1 changes arrived more often than they were made: [w5]"},
		"two transactions in the wrong order":     {func(l []string) { l[3], l[4] = l[4], l[3] }, "position 00000000000000B0.00000001 came after 00000000000000C0.00000004"},
		"a change that was rolled back":           {change(3, `"ver":5`, `"ver":6`), "1 changes arrived and were never committed by anyone: [w6]"},
		"a number left out":                       {change(2, `"n":2`, `"n":3`), "change 3 of transaction 00000000000000A0 came after its change 1"},
		"a transaction that begins in the middle": {func(l []string) { l[1] = "" }, "transaction 00000000000000A0 begins with its change 2"},
		"a last change that does not say so":      {change(2, `"last":true,`, ``), "transaction 00000000000000A0 ended with its change 2, which does not say that it is the last"},
		"a last change too early":                 {change(1, `"n":1,`, `"n":1,"last":true,`), "transaction 00000000000000A0 begins with its change 2"},
		"a stream that ends within a transaction": {func(l []string) { l[7] = "" }, "the stream ends within transaction 00000000000000D0"},
		"a wrong value":                           {change(3, `"paid"`, `"piad"`), "row 1 of \"public\".\"orders\" is ("},
		"an unchanged value as null":              {change(3, `"status":"paid"},"unchanged":["note"]`, `"status":"paid","note":null}`), "row 1 of \"public\".\"orders\" is ("},
		"an update of a row that is not there":    {change(3, `"key":{"id":2}`, `"key":{"id":9}`), "touched 0 rows of the replica"},
		"a column that is not there":              {change(3, `"status":"paid"`, `"state":"paid"`), `there is no column "state"`},
		"columns that are wrong":                  {change(6, `"type":"numeric"`, `"type":"money"`), "the schema change at 00000000000000D0.00000001s says"},
		"a row read twice":                        {func(l []string) { l[0] += "\n" + strings.Replace(l[0], "r0000000001", "r0000000002", 1) }, "the row of w1 was read 2 times"},
		"another client's change":                 {change(3, `"client":"shop"`, `"client":"lake"`), `says that it is of client "lake"`},
		"a field that is not of the envelope":     {change(3, `"op"`, `"lsn":1,"op"`), `unknown field "lsn"`},
		"too many of equal rows":                  {change(4, `"op":"delete","client":"shop","schema":"public","table":"logs","before":{"ver":10,"line":"gone"`, `"op":"delete","client":"shop","schema":"public","table":"logs","before":{"ver":10,"line":"gnoe"`), "touched 0 rows of the replica"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, replica := pgtest.DSN(t), pgtest.DSN(t)
			execute(t, source, tables+rows)
			execute(t, replica, tables)
			j, err := judge.New(t.Context(), judge.Config{Client: "shop", Replica: replica})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close(context.Background())
			lines := append([]string(nil), stream...)
			tt.lie(lines)
			for _, message := range lines {
				for line := range strings.Lines(message) {
					if err := j.Line(t.Context(), []byte(line)); err != nil {
						t.Fatal(err)
					}
				}
			}
			problems, err := j.Verdict(t.Context(), source, []judge.Table{{"public", "orders"}, {"public", "logs"}}, ledger())
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(problems, "\n")
			if tt.want == "" && all != "" || !strings.Contains(all, tt.want) {
				t.Errorf("the judge finds %q, want %q", all, tt.want)
			}
		})
	}
}

// TestTheJudgeReadsMessages shows that headers are held against what is in a
// message, and that values are fetched from where they are.
func TestTheJudgeReadsMessages(t *testing.T) {
	t.Parallel()
	note := []byte(`"a \"long\" one"`)
	sum := sha256.Sum256(note)
	refer := func(name, sum string) []byte {
		return fmt.Appendf(nil, `{"pos":"00000000000000A0.00000001","op":"insert","client":"shop","schema":"public","table":"orders","key":{"id":1},"after":{"id":1,"ver":1,"status":"new","note":{"$ref":%q,"sha256":%q,"bytes":%d}},"tx":{"id":"1","pos":"00000000000000A0","n":1,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`+"\n", name, sum, len(note))
	}
	header := nats.Header{"Ath-Pos": {"00000000000000A0.00000001"}, "Ath-First": {"00000000000000A0.00000001"}, "Ath-Count": {"1"}}
	tests := map[string]struct {
		header nats.Header
		data   []byte
		want   string
	}{
		"the truth":                   {header, refer("big", hex.EncodeToString(sum[:])), ""},
		"a wrong count":               {nats.Header{"Ath-Pos": header["Ath-Pos"], "Ath-First": header["Ath-First"], "Ath-Count": {"2"}}, refer("big", hex.EncodeToString(sum[:])), `message 1 says Ath-Count: "2"`},
		"a wrong position":            {nats.Header{"Ath-Pos": {"00000000000000A0.00000002"}, "Ath-First": header["Ath-First"], "Ath-Count": {"1"}}, refer("big", hex.EncodeToString(sum[:])), `message 1 says Ath-Pos`},
		"a wrong sum":                 {header, refer("big", "00"), `object "big" has 16 bytes`},
		"the wrong table":             {header, bytes.Replace(refer("big", hex.EncodeToString(sum[:])), []byte(`"table":"orders"`), []byte(`"table":"logs"`), 1), `message 1 on ath.cdc.shop.public.orders has a insert of public.logs`},
		"an object that is not there": {header, refer("small", "00"), `object "small": not there`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, replica := pgtest.DSN(t), pgtest.DSN(t)
			execute(t, source, tables+`insert into orders values (1, 1, 'new', 'a "long" one')`)
			execute(t, replica, tables)
			j, err := judge.New(t.Context(), judge.Config{Client: "shop", Replica: replica, Object: func(_ context.Context, name string) ([]byte, error) {
				if name != "big" {
					return nil, errors.New("not there")
				}
				return note, nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close(context.Background())
			if err := j.Message(t.Context(), judge.Message{Subject: "ath.cdc.shop.public.orders", Sequence: 1, Header: tt.header, Data: tt.data}); err != nil {
				t.Fatal(err)
			}
			var l judge.Ledger
			l.Committed(judge.Wrote(1))
			problems, err := j.Verdict(t.Context(), source, []judge.Table{{"public", "orders"}}, &l)
			if all := strings.Join(problems, "\n"); tt.want == "" && (all != "" || err != nil) || !strings.Contains(all, tt.want) {
				t.Errorf("the judge finds %q, %v; want %q", all, err, tt.want)
			}
		})
	}
}

// TestValuesComeBack shows that each form of docs/types.md is turned back into
// the value that it stands for.
func TestValuesComeBack(t *testing.T) {
	t.Parallel()
	values := []struct{ typ, sql, form string }{
		{"bigint", `9223372036854775807`, `9223372036854775807`},
		{"double precision", `'NaN'`, `"NaN"`},
		{"numeric", `'19.90'`, `"19.90"`},
		{"boolean", `true`, `true`},
		{"timestamptz", `'2026-11-22 10:00:00.123456+00'`, `"2026-11-22T10:00:00.123456Z"`},
		{"timestamp", `'0044-03-15 10:00:00 BC'`, `"-000043-03-15T10:00:00.000000"`},
		{"timestamp", `'294276-12-31 23:59:59.999999'`, `"+294276-12-31T23:59:59.999999"`},
		{"date", `'-infinity'`, `"-infinity"`},
		{"date", `'0001-01-01 BC'`, `"0000-01-01"`},
		{"interval", `'1 year 2 mons -3 days 04:05:06.789'`, `"P1Y2M-3DT4H5M6.789S"`},
		{"bytea", `'\x00ff10'`, `"AP8Q"`},
		{"jsonb", `'{"b": 1.50, "a": null}'`, `{"a": null, "b": 1.50}`},
		{"json", `'{"b" : [1, "x"]}'`, `{"b" : [1, "x"]}`},
		{"int[]", `'{{1,2},{3,NULL}}'`, `[[1,2],[3,null]]`},
		{"int[]", `'[0:1]={5,6}'`, `{"lower":[0],"values":[5,6]}`},
		{"text[]", `array['a,b', 'say "x"', 'back\slash', null, '', 'NULL']`, `["a,b","say \"x\"","back\\slash",null,"","NULL"]`},
		{"bytea[]", `array['\x01'::bytea]`, `["AQ=="]`},
		{"jsonb[]", `array['[1, 2]'::jsonb]`, `[[1, 2]]`},
		{"int4range", `'[1,10)'`, `{"lower":1,"upper":10,"bounds":"[)"}`},
		{"tstzrange", `'[2026-01-01 00:00:00+00,)'`, `{"lower":"2026-01-01T00:00:00.000000Z","upper":null,"bounds":"[)"}`},
		{"int4range", `'empty'`, `{"empty":true}`},
		{"int4multirange", `'{[1,3),[5,7)}'`, `[{"lower":1,"upper":3,"bounds":"[)"},{"lower":5,"upper":7,"bounds":"[)"}]`},
		{"pair", `row(1, 'a "b", c')`, `{"x":1,"note":"a \"b\", c"}`},
		{"pair", `row(null, '')`, `{"x":null,"note":""}`},
		{"pair[]", `array[row(1, 'z')::pair]`, `[{"x":1,"note":"z"}]`},
		{"positive", `7`, `7`},
		{"mood", `'so so'`, `"so so"`},
		{"point", `'(1,2)'`, `"(1,2)"`},
		{"inet", `'10.0.0.1/8'`, `"10.0.0.1/8"`},
		{"text", `null`, `null`},
	}
	const types = `create type pair as (x int, note text); create domain positive as int check (value > 0); create type mood as enum ('so so', 'fine');`
	var table, insert, after strings.Builder
	for i, v := range values {
		fmt.Fprintf(&table, ", c%d %s", i, v.typ)
		fmt.Fprintf(&insert, ", %s", v.sql)
		fmt.Fprintf(&after, `,"c%d":%s`, i, v.form)
	}
	ddl := types + "create table v (id bigint primary key, ver bigint" + table.String() + ")"
	source, replica := pgtest.DSN(t), pgtest.DSN(t)
	execute(t, source, ddl+"; insert into v values (1, 1"+insert.String()+")")
	execute(t, replica, ddl)
	j, err := judge.New(t.Context(), judge.Config{Client: "shop", Replica: replica})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close(context.Background())
	if err := j.Line(t.Context(), []byte(`{"pos":"00000000000000A0.00000001","op":"insert","client":"shop","schema":"public","table":"v","key":{"id":1},"after":{"id":1,"ver":1`+after.String()+`},"tx":{"id":"1","pos":"00000000000000A0","n":1,"last":true,"at":"2026-11-22T10:00:00.123456Z"}}`)); err != nil {
		t.Fatal(err)
	}
	var l judge.Ledger
	l.Committed(judge.Wrote(1))
	problems, err := j.Verdict(t.Context(), source, []judge.Table{{"public", "v"}}, &l)
	if err != nil || len(problems) > 0 {
		t.Errorf("%q, %v", problems, err)
	}
}

func execute(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}
