package cdc

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func text() *rapid.Generator[string] {
	return rapid.OneOf(rapid.StringMatching(`[a-z][a-z0-9_]{0,8}`), rapid.String(), rapid.SampledFrom([]string{"", "ü.\"\\ \n\t", "\x00\x7f", "🜁"}))
}

func position() *rapid.Generator[Position] {
	return rapid.Custom(func(t *rapid.T) Position {
		p := Position(rapid.StringMatching(`[0-9A-F]{16}\.[0-9A-F]{8}`).Draw(t, "pos"))
		switch rapid.IntRange(0, 3).Draw(t, "suffix") {
		case 0:
			p = p.Read(rapid.Uint64Range(1, 1<<40-1).Draw(t, "row"))
		case 1:
			p = p.BeforeNext()
		}
		return p
	})
}

// object is a JSON object on one line.
func object() *rapid.Generator[json.RawMessage] {
	value := rapid.OneOf(
		rapid.SampledFrom([]string{`null`, `true`, `false`, `0`, `-1.5e+3`, `"\u00e9\/\ud83d\ude00"`, `[]`, `{}`, `[1,[{"a":null}]]`, `{"$ref":"x","bytes":1}`}),
		rapid.Map(rapid.String(), func(s string) string { return string(AppendString(nil, s)) }),
	)
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		if rapid.IntRange(0, 3).Draw(t, "absent") == 0 {
			return nil
		}
		out := []byte{'{'}
		for i := range rapid.IntRange(0, 4).Draw(t, "members") {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(AppendString(out, text().Draw(t, "name")), ':')
			out = append(out, value.Draw(t, "value")...)
		}
		return append(out, '}')
	})
}

// change draws what a driver may hand over, in the form that Decode gives.
func change() *rapid.Generator[Change] {
	return rapid.Custom(func(t *rapid.T) Change {
		c := Change{
			Pos: position().Draw(t, "pos"), Op: rapid.SampledFrom(Ops()).Draw(t, "op"), Client: text().Draw(t, "client"),
			Schema: text().Draw(t, "schema"), Table: text().Draw(t, "table"),
			Key: object().Draw(t, "key"), Before: object().Draw(t, "before"), After: object().Draw(t, "after"),
			Delta: object().Draw(t, "delta"), Range: object().Draw(t, "range"),
			WriteTime: rapid.Int64().Draw(t, "writetime"), TTL: rapid.Int64().Draw(t, "ttl"), Late: rapid.Bool().Draw(t, "late"),
			SchemaVersion: rapid.IntRange(0, 1<<31-1).Draw(t, "version"),
		}
		if names := rapid.SliceOfN(text(), 0, 3).Draw(t, "unchanged"); len(names) > 0 {
			c.Unchanged = names
		}
		if rapid.Bool().Draw(t, "in a transaction") {
			c.Tx = &Transaction{
				ID: text().Draw(t, "tx"), Pos: position().Draw(t, "tx pos"), N: rapid.Uint64().Draw(t, "n"), Last: rapid.Bool().Draw(t, "last"),
				At: time.UnixMicro(rapid.Int64Range(0, 4102444800e6).Draw(t, "at")).UTC(),
			}
		}
		switch c.Op {
		case Schema:
			c.Columns = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Column {
				return Column{text().Draw(t, "name"), text().Draw(t, "type"), rapid.Bool().Draw(t, "key")}
			}), 0, 3).Draw(t, "columns")
		case Message:
			c.Prefix, c.Content = text().Draw(t, "prefix"), rapid.SliceOf(rapid.Byte()).Draw(t, "content")
		}
		return c
	})
}

// same compares changes, for which nil and empty are one.
func same(a, b *Change) bool {
	x, y := *a, *b
	for _, c := range []*Change{&x, &y} {
		if len(c.Columns) == 0 {
			c.Columns = nil
		}
		if len(c.Content) == 0 {
			c.Content = nil
		}
		if len(c.Unchanged) == 0 {
			c.Unchanged = nil
		}
		for _, s := range []*string{&c.Client, &c.Schema, &c.Table, &c.Prefix} {
			*s = strings.ToValidUTF8(*s, "\uFFFD")
		}
	}
	return reflect.DeepEqual(x, y)
}

func TestAChangeIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	var used Change // with whatever the last one left in it
	rapid.Check(t, func(t *rapid.T) {
		c := change().Draw(t, "change")
		line := NewEncoder(c.Client).Append(nil, &c)
		if bytes.ContainsAny(line, "\r\n") || !json.Valid(line) {
			t.Fatalf("not one line of JSON: %q", line)
		}
		if !bytes.HasPrefix(line, []byte(`{"pos":"`+string(c.Pos)+`","op":"`+string(c.Op)+`"`)) {
			t.Fatalf("%s does not begin with its position and op", line)
		}
		for name, got := range map[string]*Change{"a new one": {}, "a used one": &used} {
			if err := Decode(line, got); err != nil {
				t.Fatalf("%s: %v in %s", name, err, line)
			}
			if !same(got, &c) {
				t.Fatalf("%s: got %+v\nwant %+v\nof %s", name, got, c, line)
			}
		}
		var std Change
		if err := json.Unmarshal(line, &std); err != nil || !same(&std, &c) {
			t.Fatalf("encoding/json reads %+v (%v) of %s", std, err, line)
		}
	})
}

func TestTheEnvelopeIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	c := Change{
		Pos: "0000000001B3A2F8.00000003", Op: Update, Schema: "public", Table: "orders",
		Key: json.RawMessage(`{"id":7}`), Before: json.RawMessage(`{"id":7,"status":"new"}`),
		After: json.RawMessage(`{"id":7,"status":"paid","total":"19.90"}`), Unchanged: []string{"description"},
		Tx:            &Transaction{ID: "771", Pos: "0000000001B3A2F8", N: 3, Last: true, At: time.Date(2026, 11, 22, 11, 0, 0, 123456000, time.FixedZone("CET", 3600))},
		SchemaVersion: 2,
	}
	want := `{"pos":"0000000001B3A2F8.00000003","op":"update","client":"shop","schema":"public","table":"orders",` +
		`"key":{"id":7},"before":{"id":7,"status":"new"},"after":{"id":7,"status":"paid","total":"19.90"},"unchanged":["description"],` +
		`"tx":{"id":"771","pos":"0000000001B3A2F8","n":3,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":2}`
	if got := string(NewEncoder("shop").Append(nil, &c)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTheEnvelopeOfAWideRowIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	tx := &Transaction{ID: "AB.CD", Pos: "0.AB.CD", N: 1, Last: true, At: time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)}
	for want, c := range map[string]Change{
		`{"pos":"0.AB.CD.01","op":"update","client":"shop","schema":"shop","table":"carts","key":{"cart":7,"item":1},"after":{"cart":7,"item":1,"amount":2},` +
			`"unchanged":["note"],"delta":{"tags":{"add":["new"],"remove":["old"]}},"writetime":1795341600123456,"ttl":60,"late":true,` +
			`"tx":{"id":"AB.CD","pos":"0.AB.CD","n":1,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`: {
			Pos: "0.AB.CD.01", Op: Update, Schema: "shop", Table: "carts", Key: json.RawMessage(`{"cart":7,"item":1}`), After: json.RawMessage(`{"cart":7,"item":1,"amount":2}`),
			Unchanged: []string{"note"}, Delta: json.RawMessage(`{"tags":{"add":["new"],"remove":["old"]}}`),
			WriteTime: 1795341600123456, TTL: 60, Late: true, Tx: tx, SchemaVersion: 1,
		},
		`{"pos":"0.AB.CD.01","op":"delete_range","client":"shop","schema":"shop","table":"carts","key":{"cart":7},` +
			`"range":{"from":{"key":{"item":1},"inclusive":true},"to":{"key":{"item":9},"inclusive":false}},"writetime":1795341600123456,` +
			`"tx":{"id":"AB.CD","pos":"0.AB.CD","n":1,"last":true,"at":"2026-11-22T10:00:00.123456Z"},"schema_version":1}`: {
			Pos: "0.AB.CD.01", Op: DeleteRange, Schema: "shop", Table: "carts", Key: json.RawMessage(`{"cart":7}`),
			Range:     json.RawMessage(`{"from":{"key":{"item":1},"inclusive":true},"to":{"key":{"item":9},"inclusive":false}}`),
			WriteTime: 1795341600123456, Tx: tx, SchemaVersion: 1,
		},
	} {
		if got := NewEncoder("shop").Append(nil, &c); string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestMarkLastIsWhatAppendWouldHaveWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		before := rapid.SliceOf(rapid.Byte()).Draw(t, "what stands before it")
		c := change().Draw(t, "change")
		last := c
		if c.Tx != nil {
			tx := *c.Tx
			tx.Last, c.Tx.Last = true, false
			last.Tx = &tx
		}
		e := NewEncoder(c.Client)
		want := e.Append(slices.Clone(before), &last)
		got := e.MarkLast(e.Append(slices.Clone(before), &c))
		if !bytes.Equal(got, want) {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		if marked := e.MarkLast(e.Append(slices.Clone(before), &last)); !bytes.Equal(marked, want) {
			t.Fatalf("marked, though it said so: %s", marked)
		}
		if again := e.MarkLast(got); !bytes.Equal(again, want) {
			t.Fatalf("marked twice: %s", again)
		}
	})
}

func TestPositionsSortAsTheyFollow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := Position(rapid.StringMatching(`[0-9A-F]{16}\.[0-9A-F]{8}`).Draw(t, "pos"))
		next := Position(rapid.StringMatching(`[0-9A-F]{16}\.[0-9A-F]{8}`).Filter(func(s string) bool { return s > string(p) }).Draw(t, "the next of the log"))
		a := rapid.Uint64Range(1, 1<<40-2).Draw(t, "row")
		b := rapid.Uint64Range(a+1, 1<<40-1).Draw(t, "a later row")
		order := []Position{"", p, p.Read(a), p.Read(b), p.BeforeNext(), p.BeforeNext().Read(a), p.BeforeNext().Read(b), p.BeforeNext().BeforeNext(), next}
		for i := 1; i < len(order); i++ {
			if order[i-1] >= order[i] || !order[i].Valid() {
				t.Fatalf("%q does not stand before %q", order[i-1], order[i])
			}
		}
	})
	if got := Position("A.1").Read(0xABC); got != "A.1r0000000ABC" {
		t.Errorf("got %s", got)
	}
}

func TestWhatIsNoChangeIsRefused(t *testing.T) {
	t.Parallel()
	const head = `{"pos":"A.1","op":"insert"`
	tests := map[string]string{
		"nothing":                       ``,
		"no object":                     `[]`,
		"half of one":                   head,
		"something behind it":           head + `} x`,
		"two of them":                   head + `}` + head + `}`,
		"no pos":                        `{"op":"insert"}`,
		"no op":                         `{"pos":"A.1"}`,
		"an op of another day":          `{"pos":"A.1","op":"upsert"}`,
		"an op that is null":            `{"pos":"A.1","op":null}`,
		"an empty position":             `{"pos":"","op":"insert"}`,
		"a position with a blank":       `{"pos":"A 1","op":"insert"}`,
		"a position that is a number":   `{"pos":1,"op":"insert"}`,
		"a row that is null":            head + `,"after":null}`,
		"a row that is an array":        head + `,"after":[]}`,
		"a row that is not whole":       head + `,"after":{"a":}}`,
		"a number with a leading zero":  head + `,"after":{"a":01}}`,
		"a trailing comma":              head + `,}`,
		"a comma too many":              head + `,"after":{"a":[1,]}}`,
		"a control character":           head + `,"table":"` + "\x01" + `"}`,
		"a bad escape":                  head + `,"table":"\x"}`,
		"a short escape":                head + `,"table":"\u12"}`,
		"bytes that are not UTF-8":      head + `,"table":"` + "\xff" + `"}`,
		"a line break":                  head + ",\n\"table\":\"t\"}",
		"a time that is none":           head + `,"tx":{"id":"1","pos":"A","n":1,"at":"soon"}}`,
		"a transaction without a time":  head + `,"tx":{"id":"1","pos":"A","n":1}}`,
		"a number that is negative":     head + `,"tx":{"id":"1","pos":"A","n":-1,"at":"2026-01-01T00:00:00Z"}}`,
		"a version that is a fraction":  head + `,"schema_version":1.5}`,
		"content that is no base64":     head + `,"content":"?"}`,
		"unchanged that are no strings": head + `,"unchanged":[1]}`,
		"nesting without end":           head + `,"after":{"a":` + strings.Repeat("[", 20000),
	}
	for name, line := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := Decode([]byte(line), &Change{}); err == nil {
				t.Errorf("%.100s was taken", line)
			}
		})
	}
}

func TestWhatALaterVersionAddsIsSkipped(t *testing.T) {
	t.Parallel()
	var c Change
	line := `{ "shard":{"n":[1,2,{"x":"\""}]},"pos":"A.1","op":"\u0064elete" }`
	if err := Decode([]byte(line), &c); err == nil {
		t.Error("an op that is escaped was taken, and Athena writes none")
	}
	line = `{ "shard":{"n":[1,2,{"x":"\""}]}, "pos":"A.1" ,"op":"delete","tx":{"id":"1","pos":"A","n":1,"at":"2026-01-01T00:00:00Z","origin":"x"},"t\u0061ble":"t" } `
	if err := Decode([]byte(line), &c); err != nil || c.Pos != "A.1" || c.Op != Delete || c.Tx.ID != "1" || c.Table != "t" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	for data, want := range map[string][]string{
		"": nil, "\n\n": nil, "a": {"a"}, "a\n": {"a"}, "a\r\nb\n\nc": {"a", "b", "c"},
	} {
		var got []string
		for line := range Lines([]byte(data)) {
			got = append(got, string(line))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", data, got, want)
		}
	}
	for line := range Lines([]byte("a\nb")) {
		if string(line) != "a" {
			t.Errorf("after the end: %s", line)
		}
		break
	}
}

func TestStringsAreThoseOfEncodingJSON(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) + text().Draw(t, "text")
		got := AppendString(nil, s)
		if string(got) != string(AppendString(nil, []byte(s))) {
			t.Fatalf("the bytes of %q become something else", s)
		}
		var back string
		if err := json.Unmarshal(got, &back); err != nil || back != strings.ToValidUTF8(s, "\uFFFD") && !strings.Contains(back, "\uFFFD") {
			t.Fatalf("%q becomes %s, and that %q (%v)", s, got, back, err)
		}
	})
}

func sample() *Change {
	return &Change{
		Pos: "0000000001B3A2F8.00000003", Op: Update, Schema: "public", Table: "orders",
		Key: json.RawMessage(`{"id":7}`), After: json.RawMessage(`{"id":7,"status":"paid","total":"19.90","note":"` + strings.Repeat("x", 120) + `"}`),
		Unchanged: []string{"description"},
		Tx:        &Transaction{ID: "771", Pos: "0000000001B3A2F8", N: 3, At: time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)}, SchemaVersion: 2,
	}
}

func TestNothingIsAllocatedForAChange(t *testing.T) {
	e, dst := NewEncoder("shop"), make([]byte, 0, 4096)
	for _, op := range Ops() {
		c := sample()
		c.Op, c.Columns, c.Content = op, []Column{{"id", "int8", true}}, []byte("x")
		c.Delta, c.Range, c.WriteTime, c.TTL, c.Late = c.Key, c.Key, 1795341600123456, 60, true
		if n := testing.AllocsPerRun(100, func() { dst = e.MarkLast(e.Append(dst[:0], c)) }); n != 0 {
			t.Errorf("%s: %v allocations", op, n)
		}
		var into Change
		line := e.Append(nil, c)
		if n := testing.AllocsPerRun(100, func() {
			if err := Decode(line, &into); err != nil {
				t.Fatal(err)
			}
		}); n > 6 { // strings within lists
			t.Errorf("%s: reading it makes %v allocations", op, n)
		}
	}
	c := sample()
	c.Unchanged, c.WriteTime, c.TTL, c.Late = nil, 1795341600123456, 60, true
	line := e.Append(nil, c)
	var into Change
	if n := testing.AllocsPerRun(100, func() { _ = Decode(line, &into) }); n != 0 {
		t.Errorf("reading a change like the last one makes %v allocations", n)
	}
	for _, name := range EnvelopeNames() {
		env, err := NewEnvelope(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { dst, _ = env.Append(dst[:0], line) }); n != 0 {
			t.Errorf("envelope %s makes %v allocations", name, n)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	e, c, dst := NewEncoder("shop"), sample(), make([]byte, 0, 4096)
	for b.Loop() {
		dst = e.Append(dst[:0], c)
	}
	b.SetBytes(int64(len(dst)))
}

func BenchmarkDecode(b *testing.B) {
	line := NewEncoder("shop").Append(nil, sample())
	b.SetBytes(int64(len(line)))
	var c Change
	for b.Loop() {
		if err := Decode(line, &c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeByEncodingJSON(b *testing.B) {
	line := NewEncoder("shop").Append(nil, sample())
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		var c Change
		if err := json.Unmarshal(line, &c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkString(b *testing.B) {
	for name, s := range map[string][]byte{
		"ascii":   []byte(strings.Repeat("customer 1234 ", 8)),
		"german":  []byte(strings.Repeat("Größe für Übung ", 7)),
		"escapes": []byte(strings.Repeat("a\tb\"c\\d\n", 14)),
	} {
		b.Run(name, func(b *testing.B) {
			dst := make([]byte, 0, 4096)
			b.SetBytes(int64(len(s)))
			for b.Loop() {
				dst = AppendString(dst[:0], s)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(NewEncoder("shop").Append(nil, sample()))
	f.Add([]byte(`{"pos":"A.1","op":"schema","columns":[{"name":"id","type":"int4","key":true}],"x":[1e9,-0,null,"\ud800"]}`))
	f.Add([]byte(`{"pos":"A.1","op":"message","prefix":"p","content":"AQI="}`))
	f.Add([]byte(`{"pos":"A.1","op":"update","key":{"pk":1},"after":{"pk":1},"delta":{"tags":{"add":["a"]}},"writetime":1795341600123456,"ttl":60,"late":true}`))
	f.Add([]byte(`{"pos":"A.1","op":"delete_range","key":{"pk":1},"range":{"from":{"key":{"ck":1},"inclusive":true}},"writetime":-1}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var c, again Change
		if Decode(line, &c) != nil {
			return
		}
		if !json.Valid(line) || bytes.ContainsAny(line, "\r\n") {
			t.Fatalf("%q was taken", line)
		}
		for _, raw := range []json.RawMessage{c.Key, c.Before, c.After, c.Delta, c.Range} {
			if raw != nil && (!json.Valid(raw) || raw[0] != '{') {
				t.Fatalf("%q has the row %q", line, raw)
			}
		}
		if c.Op != Schema {
			c.Columns = nil
		}
		if c.Op != Message {
			c.Prefix, c.Content = "", nil
		}
		if c.Tx != nil {
			c.Tx.At = c.Tx.At.UTC().Truncate(time.Microsecond)
		}
		out := NewEncoder(c.Client).Append(nil, &c)
		if err := Decode(out, &again); err != nil || !same(&again, &c) {
			t.Fatalf("%q is written as %q (%v)", line, out, err)
		}
	})
}
