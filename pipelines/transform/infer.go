package transform

import (
	"encoding/json"
	"regexp"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/record"
)

// infer guesses a schema from the rows that go into tests. A text is taken for a
// timestamptz, a timestamp, a date or a decimal where all texts of the column are
// written just as docs/types.md writes those.
func infer(tests []spec.Test) *record.Schema {
	s := &record.Schema{}
	guesses := map[string]*guess{}
	for _, t := range tests {
		for _, row := range t.In {
			var members map[string]json.RawMessage
			if json.Unmarshal(row, &members) != nil {
				continue
			}
			for _, name := range memberNames(row) {
				if name == testOp {
					continue
				}
				g := guesses[name]
				if g == nil {
					g = &guess{}
					guesses[name] = g
					s.Columns = append(s.Columns, record.Column{Name: name, Nullable: true})
				}
				g.see(members[name])
			}
		}
	}
	for i := range s.Columns {
		s.Columns[i].Type = guesses[s.Columns[i].Name].typ()
	}
	return s
}

// A guess is what a column may be, by the values that it was seen to have.
type guess struct {
	types map[record.Type]bool
}

var texts = []struct {
	form *regexp.Regexp
	typ  record.Type
}{
	{regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$`), record.TypeTimestampTZ},
	{regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?$`), record.TypeTimestamp},
	{regexp.MustCompile(`^\d{4}-\d\d-\d\d$`), record.TypeDate},
	{regexp.MustCompile(`^-?(0|[1-9]\d*)\.\d+$`), record.TypeDecimal},
}

func (g *guess) see(value json.RawMessage) {
	if g.types == nil {
		g.types = map[record.Type]bool{}
	}
	switch c := value[0]; {
	case c == 'n':
	case c == 't' || c == 'f':
		g.types[record.TypeBool] = true
	case c == '{' || c == '[':
		g.types[record.TypeJSON] = true
	case c != '"':
		var n int64
		if json.Unmarshal(value, &n) == nil {
			g.types[record.TypeInt64] = true
		} else {
			g.types[record.TypeFloat64] = true
		}
	default:
		var text string
		if json.Unmarshal(value, &text) == nil {
			g.types[textType(text)] = true
		}
	}
}

func textType(text string) record.Type {
	for _, t := range texts {
		if t.form.MatchString(text) {
			v := record.Vector{Kind: t.typ.Kind}
			if v.AppendParsed(t.typ, []byte(text)) == nil {
				return t.typ
			}
		}
	}
	return record.TypeText
}

func (g *guess) typ() record.Type {
	switch {
	case len(g.types) == 1:
		for t := range g.types {
			return t
		}
	case g.types[record.TypeJSON]:
		return record.TypeJSON
	case len(g.types) == 2 && g.types[record.TypeInt64] && g.types[record.TypeFloat64]:
		return record.TypeFloat64
	}
	return record.TypeText
}
