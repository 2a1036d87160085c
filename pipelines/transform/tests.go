package transform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A TestResult says how one test of a definition went.
type TestResult struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// Failures say what was not as it should be, each in a line.
	Failures []string `json:"failures,omitempty"`
	// Out has the rows that came out, as JSON.
	Out []json.RawMessage `json:"out,omitempty"`
}

// Members of a test's rows that are no columns: what happened to the row, behind
// cdc; and where a route sends it.
const (
	testOp    = "_op"
	testRoute = "_route"
)

// RunTests runs the tests of a definition. The rows have the schema, or, if it is
// nil, one that is inferred from all rows that go in.
func RunTests(p *spec.Pipeline, schema *record.Schema) []TestResult {
	p = p.Clone()
	p.Normalize()
	known := schema != nil
	if !known {
		schema = infer(p.Tests)
	}
	results := make([]TestResult, len(p.Tests))
	for i := range p.Tests {
		t := &p.Tests[i]
		results[i].Name = t.Name
		if err := runTest(p, t, schema, known, &results[i]); err != nil {
			results[i].fail("%s", athena.AsError(err).Message)
		}
		results[i].Passed = len(results[i].Failures) == 0
	}
	return results
}

func (r *TestResult) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

func runTest(p *spec.Pipeline, t *spec.Test, schema *record.Schema, known bool, result *TestResult) error {
	chain, err := Compile(p.Transforms, schema, Env{
		Pipeline: p.Name, Changes: p.Streams(), ByKey: p.Streams() && p.Sink.Mode == driver.Upsert,
	})
	if err != nil {
		return err
	}
	in, err := testRows(t, schema, p.Streams(), known)
	if err != nil {
		return err
	}
	in.From = from(&p.Source)
	var dead []string
	reject := func(step, row int, cause error) {
		dead = append(dead, fmt.Sprintf("in[%d] at %s: %s", row, StageName(step), cause))
	}
	parts, err := chain.Apply(in, reject)
	if err != nil {
		return err
	}
	rest, err := chain.Flush(reject)
	if err != nil {
		return err
	}
	if len(dead) != t.Dead {
		result.fail("%d rows became dead letters, and %d should have: %s", len(dead), t.Dead, strings.Join(dead, "; "))
	}
	compareOut(t.Out, append(parts, rest...), result)
	return nil
}

func from(s *spec.Source) string {
	if s.CDC != nil {
		return s.CDC.Tables[0]
	}
	return s.Table
}

// testRows makes a batch of a test's rows.
func testRows(t *spec.Test, schema *record.Schema, changes, known bool) (*record.Batch, error) {
	b := record.New(schema, len(t.In))
	parser := record.NewParser(schema)
	parser.Absent = changes
	for i, raw := range t.In {
		unknown, err := parser.Parse(b, raw)
		if err != nil {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "in[%d]: %s", i, err)
		}
		unknown = slices.DeleteFunc(unknown, func(name string) bool { return changes && name == testOp })
		if len(unknown) > 0 && known {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "in[%d]: %s", i, missing(schema, unknown[0]))
		}
		if !changes {
			continue
		}
		var what struct {
			Op cdc.Op `json:"_op"`
		}
		if err := json.Unmarshal(raw, &what); err != nil || what.Op != "" && !slices.Contains([]cdc.Op{cdc.Insert, cdc.Update, cdc.Delete, cdc.Read, cdc.Truncate}, what.Op) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "in[%d]: _op must be insert, update, delete, read or truncate", i)
		}
		if what.Op == "" {
			what.Op = cdc.Insert
		}
		b.Changes = append(b.Changes, record.Change{Op: what.Op, Pos: cdc.Position(fmt.Sprintf("%08d", i+1))})
	}
	return b, nil
}

// compareOut holds the rows that came out against those that should have, in
// order.
func compareOut(want []json.RawMessage, parts []Part, result *TestResult) {
	n := 0
	for _, p := range parts {
		for i := range p.Batch.Rows() {
			row := p.Batch.AppendJSON(nil, i)
			result.Out = append(result.Out, row)
			switch {
			case n >= len(want):
				result.fail("out[%d] should not be there: %s", n, row)
			default:
				for _, wrong := range compareRow(want[n], p, i) {
					result.fail("out[%d].%s", n, wrong)
				}
			}
			n++
		}
	}
	for ; n < len(want); n++ {
		result.fail("out[%d] is missing: %s", n, want[n])
	}
}

// compareRow holds the columns that a test names against a row.
func compareRow(want json.RawMessage, p Part, i int) (wrong []string) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(want, &members); err != nil {
		return []string{"is no object"}
	}
	for _, name := range memberNames(want) {
		value := members[name]
		c := p.Batch.Schema.Index(name)
		switch {
		case c >= 0:
			if got, ok := compareValue(value, &p.Batch.Columns[c], p.Batch.Schema.Columns[c].Type, i); !ok {
				wrong = append(wrong, fmt.Sprintf("%s is %s and should be %s", name, got, value))
			}
		case name == testOp && p.Batch.Changes != nil:
			if got, _ := json.Marshal(p.Batch.Changes[i].Op); !bytes.Equal(got, value) {
				wrong = append(wrong, fmt.Sprintf("%s is %s and should be %s", name, got, value))
			}
		case name == testRoute:
			if got, _ := json.Marshal(p.Route); !bytes.Equal(got, value) {
				wrong = append(wrong, fmt.Sprintf("%s is %s and should be %s", name, got, value))
			}
		default:
			wrong = append(wrong, name+": "+missing(p.Batch.Schema, name))
		}
	}
	return wrong
}

// memberNames lists the members of an object in their order.
func memberNames(object json.RawMessage) (names []string) {
	dec := json.NewDecoder(bytes.NewReader(object))
	dec.Token()
	for dec.More() {
		name, _ := dec.Token()
		names = append(names, name.(string))
		var skip json.RawMessage
		if dec.Decode(&skip) != nil {
			break
		}
	}
	return names
}

// compareValue holds one value against one that is written as JSON, by what they
// mean in the column's type.
func compareValue(want json.RawMessage, v *record.Vector, t record.Type, i int) (got []byte, equal bool) {
	got = v.AppendJSON(nil, t, i)
	if v.Null(i) || string(want) == "null" {
		return got, string(got) == string(want)
	}
	if t.Kind == record.JSON {
		a, err1 := parseJSON(got)
		b, err2 := parseJSON(want)
		return got, errors.Join(err1, err2) == nil && reflect.DeepEqual(a, b)
	}
	s := &record.Schema{Columns: []record.Column{{Name: "v", Type: t}}}
	b := record.New(s, 1)
	if _, err := record.NewParser(s).Parse(b, append(append([]byte(`{"v":`), want...), '}')); err != nil {
		return got, false
	}
	if t.Kind == record.Decimal {
		return got, compareDecimals(v.Bytes(i), b.Columns[0].Bytes(0)) == 0
	}
	return got, bytes.Equal(got, b.Columns[0].AppendJSON(nil, t, 0))
}
