package spec_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

var (
	word   = rapid.StringMatching(`[a-z][a-z0-9_]{0,8}`)
	column = rapid.OneOf(word, rapid.SampledFrom([]string{"with blank", "Größe", `q"uote`, "a.b", "null", "1", "<&>", "\u2028"}))
	typ    = rapid.SampledFrom([]record.Type{record.TypeInt64, record.TypeText, record.DecimalOf(12, 2), record.TypeTimestampTZ})
	value  = rapid.SampledFrom([]string{`1`, `"a"`, `1.50`, `true`, `"<x>"`, `""`, `-0.0`, `1e400`})
)

func distinct(t *rapid.T, name string) []string {
	return rapid.SliceOfNDistinct(column, 1, 4, rapid.ID[string]).Draw(t, name)
}

// ordered draws members in any order.
func ordered[V any](t *rapid.T, value *rapid.Generator[V]) (o spec.Ordered[V]) {
	for _, name := range distinct(t, "names") {
		o = append(o, spec.Member[V]{Name: name, Value: value.Draw(t, name)})
	}
	return o
}

func drawTransform(t *rapid.T, batch bool) (s spec.Transform) {
	kinds := 8
	if batch {
		kinds = 9
	}
	switch rapid.IntRange(0, kinds).Draw(t, "kind") {
	case 0:
		s.Filter = rapid.StringMatching(`row\.[a-z]+ == "[^"$]*"`).Draw(t, "filter")
	case 1:
		s.Set = ordered(t, rapid.SampledFrom([]string{"1", `row.a < 2 && "é" != '\n'`}))
	case 2:
		s.Rename = map[string]string{column.Draw(t, "old"): column.Draw(t, "new")}
	case 3:
		s.Select = distinct(t, "select")
	case 4:
		s.Drop = distinct(t, "drop")
	case 5:
		s.Cast = rapid.MapOfN(column, typ, 1, 3).Draw(t, "cast")
	case 6:
		s.Mask = rapid.MapOfN(column, rapid.SampledFrom([]string{"hash", "redact", "last4"}), 1, 3).Draw(t, "mask")
	case 7:
		s.Flatten = &spec.Flatten{Column: column.Draw(t, "column"), Fields: ordered(t, typ), Prefix: rapid.SampledFrom([]string{"", "p_"}).Draw(t, "prefix")}
	case 8:
		s.Dedupe = &spec.Dedupe{Key: distinct(t, "key")}
	default:
		s.Aggregate = &spec.Aggregate{Columns: ordered(t, rapid.SampledFrom([]string{"count()", "sum(a)"}))}
	}
	return s
}

func draw(t *rapid.T) *spec.Pipeline {
	p := &spec.Pipeline{
		Name:        word.Draw(t, "name"),
		Description: rapid.StringMatching(`[^$]*`).Draw(t, "description"),
		Parallel:    rapid.IntRange(0, 64).Draw(t, "parallel"),
		DryRun:      rapid.Bool().Draw(t, "dry"),
	}
	p.Source.Client, p.Sink.Client = word.Draw(t, "from"), word.Draw(t, "to")
	switch rapid.IntRange(0, 3).Draw(t, "source") {
	case 0:
		p.Source.Table, p.Source.Limit = "public."+word.Draw(t, "table"), rapid.Int64Range(0, 9).Draw(t, "limit")
		p.Source.Where = []driver.Condition{{Column: column.Draw(t, "where"), Op: "=", Value: json.RawMessage(value.Draw(t, "value"))}, {Column: "b", Op: "is_null"}}
	case 1:
		p.Source.Query, p.Source.Params = "select 1 where a < $1", []json.RawMessage{json.RawMessage(value.Draw(t, "param")), json.RawMessage(`null`)}
	case 2:
		p.Source.CDC = &spec.CDCSource{Tables: []string{"public.t"}, Snapshot: rapid.SampledFrom([]string{"", "never"}).Draw(t, "snapshot")}
	default:
		p.Source.Objects = &spec.ObjectSource{Prefix: "in/", Format: "csv", Columns: []spec.ObjectColumn{{Name: column.Draw(t, "column"), Type: typ.Draw(t, "type")}}}
	}
	if rapid.Bool().Draw(t, "objects") {
		p.Sink.Objects = &spec.ObjectSink{Prefix: "out/{{a b}}/", Roll: spec.Roll{
			Rows: rapid.Int64Range(0, 1<<40).Draw(t, "rows"), Bytes: spec.Bytes(rapid.Int64Min(0).Draw(t, "bytes")),
			Every: spec.Duration(rapid.Int64Range(1, 12*3600).Draw(t, "every") * 1e9),
		}}
	} else {
		p.Sink.Table, p.Sink.Create = word.Draw(t, "target"), rapid.Bool().Draw(t, "create")
		if rapid.Bool().Draw(t, "timed") {
			p.Sink.WriteTime, p.Sink.TTL = "w "+word.Draw(t, "write time"), "t "+word.Draw(t, "ttl")
		}
	}
	if rapid.Bool().Draw(t, "rated") {
		rate := rapid.Float64Range(0, 1).Draw(t, "rate")
		p.Errors = spec.Errors{MaxRate: &rate, To: "drop"}
	}
	for range rapid.IntRange(0, 4).Draw(t, "steps") {
		p.Transforms = append(p.Transforms, drawTransform(t, !p.Streams()))
	}
	if rapid.Bool().Draw(t, "tested") {
		p.Tests = []spec.Test{{Name: "t", In: []json.RawMessage{json.RawMessage(`{"a b":[1,{"x":null}],"y":"<\u2028"}`)}, Dead: 1}}
	}
	return p
}

// A definition that is encoded and decoded is the same one.
func TestDecodeUndoesEncode(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := draw(t)
		raw := spec.Encode(p)
		first, err := spec.Decode(raw)
		if err != nil {
			t.Fatalf("%v\n%s", err, raw)
		}
		if len(p.Tests) == 0 && !reflect.DeepEqual(first, p) { // rows of tests take their canonical form
			t.Fatalf("got  %s\nwant %s", spec.Encode(first), raw)
		}
		second, err := spec.Decode(spec.Encode(first))
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Fatalf("%v\ngot  %s\nwant %s", err, spec.Encode(second), spec.Encode(first))
		}
		read := new(spec.Pipeline)
		if err := json.Unmarshal(spec.Encode(first), read); err != nil || string(spec.Encode(read)) != string(spec.Encode(first)) {
			t.Fatalf("%v: encoding/json reads %s as %s", err, raw, spec.Encode(read))
		}
		if clone := first.Clone(); !reflect.DeepEqual(clone, first) {
			t.Fatalf("the copy is %s", spec.Encode(clone))
		}
	})
}
