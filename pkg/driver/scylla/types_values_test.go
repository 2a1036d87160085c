package scylla_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
)

// cqlValues has a value of every type: as a literal of CQL, and as docs/types.md
// has it.
var cqlValues = map[string][]struct{ literal, json string }{
	"ascii":    {{`'a"b'`, `"a\"b"`}, {`''`, `""`}},
	"text":     {{`'ünï 🐘'`, `"ünï 🐘"`}, {`''`, `""`}, {`null`, `null`}},
	"boolean":  {{`true`, `true`}, {`false`, `false`}},
	"tinyint":  {{`-128`, `-128`}, {`127`, `127`}},
	"smallint": {{`-32768`, `-32768`}},
	"int":      {{`2147483647`, `2147483647`}, {`0`, `0`}},
	"bigint":   {{`-9223372036854775808`, `-9223372036854775808`}, {`9007199254740993`, `9007199254740993`}},
	"varint": {
		{`123456789012345678901234567890`, `"123456789012345678901234567890"`}, {`-1`, `"-1"`}, {`0`, `"0"`},
		{`-128`, `"-128"`}, {`128`, `"128"`}, {`-32769`, `"-32769"`}, {`-9223372036854775809`, `"-9223372036854775809"`},
	},
	"decimal": {
		{`19.90`, `"19.90"`}, {`-0.001`, `"-0.001"`}, {`0`, `"0"`}, {`5E3`, `"5E3"`},
		{`123456789012345678901234567890.5`, `"123456789012345678901234567890.5"`}, {`1E-2000`, `"1E-2000"`},
	},
	"float":  {{`0.1`, `0.1`}, {`NaN`, `"NaN"`}, {`-Infinity`, `"-Infinity"`}, {`3.4028235E38`, `3.4028235e+38`}},
	"double": {{`0.1`, `0.1`}, {`1E-7`, `1e-07`}, {`Infinity`, `"Infinity"`}, {`-1.5`, `-1.5`}},
	"blob":   {{`0x00ff10`, `"AP8Q"`}, {`0x`, `""`}},
	"uuid":   {{`123E4567-e89b-42d3-a456-426614174000`, `"123e4567-e89b-42d3-a456-426614174000"`}},
	"timeuuid": {{`50554d6e-29bb-11e5-b345-feff819cdc9f`,
		`"50554d6e-29bb-11e5-b345-feff819cdc9f"`}},
	"inet": {{`'192.168.0.1'`, `"192.168.0.1"`}, {`'2001:db8::1'`, `"2001:db8::1"`}},
	"timestamp": {
		{`'2026-11-22T10:00:00.123Z'`, `"2026-11-22T10:00:00.123000Z"`}, {`0`, `"1970-01-01T00:00:00.000000Z"`}, {`-1`, `"1969-12-31T23:59:59.999000Z"`},
		{`-62198755200000`, `"-000001-01-01T00:00:00.000000Z"`}, {`253402300800000`, `"+010000-01-01T00:00:00.000000Z"`},
		{`9223372036854775807`, `"+292278994-08-17T07:12:55.807000Z"`}, {`-9223372036854775808`, `"-292275055-05-16T16:47:04.192000Z"`},
	},
	"date": {
		{`'2026-11-22'`, `"2026-11-22"`}, {`'1969-12-31'`, `"1969-12-31"`},
		{`0`, `"-5877641-06-23"`}, {`4294967295`, `"+5881580-07-11"`},
	},
	"time": {{`'10:00:00.5'`, `"10:00:00.5"`}, {`'00:00:00'`, `"00:00:00"`}, {`'23:59:59.999999999'`, `"23:59:59.999999999"`}},
	"duration": {
		{`1y2mo3d4h5m6s789ms`, `"P1Y2M3DT4H5M6.789S"`}, {`-1mo2d`, `"P-1M-2D"`}, {`0s`, `"PT0S"`}, {`1ns`, `"PT0.000000001S"`}, {`-1500ms`, `"PT-1.5S"`}, {`25h`, `"PT25H"`},
	},
	"list<int>":                        {{`[3, 1, 1]`, `[3,1,1]`}},
	"set<text>":                        {{`{'b', 'a'}`, `["a","b"]`}},
	"map<text, bigint>":                {{`{'b': 2, 'a': 1}`, `{"a":1,"b":2}`}},
	"map<int, text>":                   {{`{10: 'x', 2: 'y'}`, `{"2":"y","10":"x"}`}},
	"map<boolean, int>":                {{`{true: 1}`, `{"true":1}`}},
	"map<timestamp, int>":              {{`{0: 1}`, `{"1970-01-01T00:00:00.000000Z":1}`}},
	"map<frozen<list<int>>, blob>":     {{`{[1, 2]: 0x00}`, `{"[1,2]":"AA=="}`}},
	"map<text, frozen<map<int, int>>>": {{`{'a': {1: 2}}`, `{"a":{"1":2}}`}},
	"frozen<list<frozen<set<int>>>>":   {{`[{2, 1}, {}]`, `[[1,2],[]]`}},
	"frozen<set<int>>":                 {{`{}`, `[]`}},
	"set<int>":                         {{`{}`, `null`}}, // one that is not frozen and empty is null
	"tuple<int, text, frozen<tuple<boolean, int>>>": {
		{`(1, 'a', (true, 2))`, `[1,"a",[true,2]]`}, {`(null, null, null)`, `[null,null,null]`}, {`null`, `null`}, {`(1, null, (null, 2))`, `[1,null,[null,2]]`},
	},
	`"Address"`:                            {{`{street: 'High', "zip code": 1, tags: {'a'}}`, `{"street":"High","zip code":1,"tags":["a"]}`}, {`{street: 'x'}`, `{"street":"x","zip code":null,"tags":null}`}},
	`frozen<map<text, frozen<"Address">>>`: {{`{'home': {street: 'x', "zip code": 2}}`, `{"home":{"street":"x","zip code":2,"tags":null}}`}},
	"vector<float, 3>":                     {{`[0.5, -1, 2]`, `[0.5,-1,2]`}},
	"vector<text, 2>":                      {{`['a', 'longer']`, `["a","longer"]`}},
	"vector<smallint, 2>":                  {{`[1, 2]`, `[1,2]`}},
	"vector<frozen<list<int>>, 2>":         {{`[[1], []]`, `[[1],[]]`}},
	"vector<vector<int, 2>, 2>":            {{`[[1, 2], [3, 4]]`, `[[1,2],[3,4]]`}},
}

// one runs a statement that gives one value, named v, at most and gives its JSON.
func one(t *testing.T, b driver.Querier, cql string, params ...string) string {
	t.Helper()
	st := driver.Statement{Text: cql}
	for _, p := range params {
		st.Params = append(st.Params, json.RawMessage(p))
	}
	rows, err := b.Query(t.Context(), st)
	if err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
	defer rows.Close()
	var row string
	for rows.Next() {
		row = string(rows.AppendJSON(nil))
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
	row, _ = strings.CutPrefix(row, `{"v":`)
	return strings.TrimSuffix(row, "}")
}

func TestEveryTypeOnCassandra(t *testing.T) {
	t.Parallel()
	_, b, keyspace := onCassandra(t)
	valuesOfEveryType(t, b, keyspace)
}

func TestEveryTypeOnTheDouble(t *testing.T) {
	t.Parallel()
	_, b := onDouble(t, nil)
	// Of vectors the double knows those of numbers, and its codec writes smallint in
	// them without the lengths that Cassandra has there.
	valuesOfEveryType(t, b, "shop", "vector<text, 2>", "vector<frozen<list<int>>, 2>", "vector<vector<int, 2>, 2>", "vector<smallint, 2>")
}

// valuesOfEveryType writes and reads the values of all types but some.
func valuesOfEveryType(t *testing.T, b *scylla.Backend, keyspace string, without ...string) {
	t.Helper()
	one(t, b, `CREATE TYPE "Address" (street text, "zip code" int, tags frozen<set<text>>)`)
	table := `CREATE TABLE every (k int PRIMARY KEY`
	column := map[string]string{}
	for cqlType := range cqlValues {
		if slices.Contains(without, cqlType) {
			continue
		}
		column[cqlType] = "c" + string(rune('a'+len(column)/26)) + string(rune('a'+len(column)%26))
		table += ", " + column[cqlType] + " " + cqlType
	}
	one(t, b, table+")")

	columns, err := b.Columns(t.Context(), keyspace, "every")
	if err != nil {
		t.Fatal(err)
	}
	native := map[string]string{}
	for _, c := range columns {
		native[c.Name] = c.Type
	}
	for cqlType, name := range column {
		values := cqlValues[cqlType]
		for _, v := range values {
			one(t, b, `INSERT INTO every (k, `+name+`) VALUES (1, `+v.literal+`)`)
			if got := one(t, b, `SELECT `+name+` AS v FROM every WHERE k = 1`); got != v.json {
				t.Errorf("%s %s is %s, want %s", cqlType, v.literal, got, v.json)
			}
			one(t, b, `INSERT INTO every (k, `+name+`) VALUES (2, ?)`, v.json)
			if got := one(t, b, `SELECT `+name+` AS v FROM every WHERE k = 2`); got != v.json {
				t.Errorf("%s: %s comes back as %s", cqlType, v.json, got)
			}
		}
		want := cqlType
		if strings.HasPrefix(cqlType, "tuple") {
			want = "frozen<" + cqlType + ">" // as CQL shows it
		}
		if got := native[name]; got != want {
			t.Errorf("the column of type %s is described as %s", want, got)
		}
	}
	one(t, b, `CREATE TABLE every_counter (k int PRIMARY KEY, n counter)`)
	one(t, b, `UPDATE every_counter SET n = n + ? WHERE k = 1`, `5`)
	if got := one(t, b, `SELECT n AS v FROM every_counter WHERE k = 1`); got != `5` {
		t.Errorf("the counter is %s, want 5", got)
	}
}
