package format

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"

	"github.com/athena-pipelines/athena/pkg/record"
)

// An inference finds types for columns by the values that they show: true and
// false are bool, whole numbers of 64 bits int64, other numbers float64, or decimal
// where a float64 would lose digits; objects and arrays, and whatever stands beside
// them, are json; and everything else, and a column of nulls alone, is text.
type inference struct {
	known *record.Schema // columns that have a type
	only  bool           // columns that were not named are not added
	order []string
	seen  map[string]*shown
}

// shown is what a column has shown.
type shown struct{ bool, int, large, float, decimal, text, json bool }

func newInference(known *record.Schema) *inference {
	return &inference{known: known, seen: map[string]*shown{}}
}

// column names a column; nil if it has a type, or is one too many.
func (in *inference) column(name string) *shown {
	s := in.seen[name]
	if s == nil && in.known.Index(name) < 0 && !in.only && len(in.order)+len(in.known.Columns) < mostColumns {
		s = &shown{}
		in.seen[name] = s
		in.order = append(in.order, name)
	}
	return s
}

// object looks at the members of a JSON object. What is none is left alone.
func (in *inference) object(line []byte) {
	d := json.NewDecoder(bytes.NewReader(line))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') || !json.Valid(line) {
		return
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return
		}
		text, _ := name.(string)
		s := in.column(text)
		if s == nil {
			continue
		}
		switch value[0] {
		case 'n':
		case 't', 'f':
			s.bool = true
		case '"':
			s.text = true
		case '{', '[':
			s.json = true
		default:
			s.number(value)
		}
	}
}

// text looks at a value of csv.
func (in *inference) text(column string, value []byte) {
	s := in.column(column)
	switch {
	case s == nil:
	case string(value) == "true" || string(value) == "false":
		s.bool = true
	case len(value) > 0 && (value[0] == '-' || value[0]-'0' <= 9) && json.Valid(value):
		s.number(value)
	default:
		s.text = true
	}
}

// number looks at a number in JSON's form.
func (s *shown) number(value []byte) {
	if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && string(value) != "-0" {
		s.int = true
		s.large = s.large || n > 1<<53 || n < -1<<53
		return
	}
	f, err := strconv.ParseFloat(string(value), 64)
	exact := record.Vector{Kind: record.Decimal}
	back := record.Vector{Kind: record.Float}
	if err == nil && !math.IsInf(f, 0) && exact.AppendParsed(record.TypeDecimal, value) == nil &&
		record.Convert(&back, record.TypeFloat64, &exact, record.TypeDecimal, 0) == nil {
		s.float = true
	} else {
		s.decimal = true
	}
}

func (s *shown) typ() record.Type {
	number := s.int || s.float || s.decimal
	switch {
	case s.json:
		return record.TypeJSON
	case s.text || s.bool && number:
		return record.TypeText
	case s.bool:
		return record.TypeBool
	case s.decimal || s.large && s.float:
		return record.TypeDecimal
	case s.float:
		return record.TypeFloat64
	case s.int:
		return record.TypeInt64
	}
	return record.TypeText
}

// addTo appends the columns that were found.
func (in *inference) addTo(s *record.Schema) {
	for _, name := range in.order {
		s.Columns = append(s.Columns, record.Column{Name: name, Type: in.seen[name].typ(), Nullable: true})
	}
}
