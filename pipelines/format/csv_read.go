package format

import (
	"bytes"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A csvState is where in a record of csv one stands.
type csvState uint8

const (
	csvFieldBegins csvState = iota
	csvUnquoted
	csvInQuotes
	csvBehindQuote // the end of the quotes, or the first half of a quote
	csvMisplaced
)

// over returns the state behind some bytes of a line.
func (s csvState) over(text []byte) csvState {
	if bytes.IndexByte(text, '"') < 0 && s != csvBehindQuote {
		return s // of no matter which of the two outside of quotes
	}
	for i, c := range text {
		switch {
		case s == csvInQuotes:
			if c == '"' {
				s = csvBehindQuote
			}
		case c == ',':
			s = csvFieldBegins
		case c == '"' && s == csvUnquoted:
			return csvMisplaced
		case c == '"':
			s = csvInQuotes
		case s == csvBehindQuote:
			if c != '\r' || i != len(text)-1 {
				return csvMisplaced
			}
		default:
			s = csvUnquoted
		}
	}
	return s
}

// csvFields calls fn with each value of a record, and whether it stood in quotes.
func csvFields(record, scratch []byte, fn func(i int, value []byte, quoted bool) error) ([]byte, error) {
	for i := 0; ; i++ {
		if len(record) > 0 && record[0] == '"' {
			scratch = scratch[:0]
			record = record[1:]
			for {
				end := bytes.IndexByte(record, '"')
				if end < 0 {
					return scratch, fmt.Errorf("a quoted value does not end")
				}
				scratch = append(scratch, record[:end]...)
				if record = record[end+1:]; len(record) == 0 || record[0] != '"' {
					break
				}
				scratch = append(scratch, '"')
				record = record[1:]
			}
			if err := fn(i, scratch, true); err != nil {
				return scratch, err
			}
			if len(record) == 0 {
				return scratch, nil
			}
			if record[0] != ',' {
				return scratch, fmt.Errorf("a quote stands where none can")
			}
			record = record[1:]
			continue
		}
		end := bytes.IndexByte(record, ',')
		value := record
		if end >= 0 {
			value = record[:end]
		}
		if err := fn(i, value, false); err != nil || end < 0 {
			return scratch, err
		}
		record = record[end+1:]
	}
}

// csvParser appends records to batches, by the names in the header.
type csvParser struct {
	names   []string
	schema  *record.Schema
	places  []int // of the header's columns in the schema, -1 for none
	rest    []int // of the schema's columns, those that are not in the header
	scratch []byte
}

// newCSV reads the header. Strict wants all columns of known in it.
func newCSV(header []byte, known *record.Schema, strict bool) (*csvParser, error) {
	p := &csvParser{}
	_, err := csvFields(header, nil, func(i int, value []byte, _ bool) error {
		name := string(value)
		switch {
		case i >= mostColumns:
			return fmt.Errorf("it has more than %d columns", mostColumns)
		case !utf8.ValidString(name):
			return fmt.Errorf("the name of column %d is not UTF-8", i+1)
		case slices.Contains(p.names, name):
			return fmt.Errorf("two columns have the name %.60q", name)
		}
		p.names = append(p.names, name)
		return nil
	})
	if err != nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the header of the file cannot be read: %s", err)
	}
	for _, c := range known.Columns {
		if strict && !slices.Contains(p.names, c.Name) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "column %.60q is not in the header of the file, which has %.500q", c.Name, p.names)
		}
	}
	return p, nil
}

func (p *csvParser) use(s *record.Schema) {
	p.schema, p.places, p.rest = s, p.places[:0], p.rest[:0]
	for _, name := range p.names {
		p.places = append(p.places, s.Index(name))
	}
	for i, c := range s.Columns {
		if !slices.Contains(p.names, c.Name) {
			p.rest = append(p.rest, i)
		}
	}
}

func (p *csvParser) parse(b *record.Batch, text []byte) ([]string, error) {
	n := 0
	scratch, err := csvFields(text, p.scratch, func(i int, value []byte, quoted bool) error {
		if n = i + 1; i >= len(p.places) {
			return fmt.Errorf("it has more than the %d values of the header", len(p.places))
		}
		c := p.places[i]
		if c < 0 {
			return nil
		}
		if !quoted && len(value) == 0 {
			b.Columns[c].AppendNull()
			return nil
		}
		column := &p.schema.Columns[c]
		if column.Type.Kind == record.Text && !utf8.Valid(value) {
			return &record.ValueError{Column: column.Name, Value: "what stands there", Want: "UTF-8"}
		}
		if err := b.Columns[c].AppendParsed(column.Type, value); err != nil {
			if v, ok := err.(*record.ValueError); ok {
				if v.Column = column.Name; len(value) == 0 {
					v.Value = `""`
				}
			}
			return err
		}
		return nil
	})
	p.scratch = scratch
	if err == nil && n < len(p.places) {
		err = fmt.Errorf("it has %d values, and the header %d", n, len(p.places))
	}
	if err != nil {
		b.Undo()
		return nil, err
	}
	for _, c := range p.rest {
		b.Columns[c].AppendNull()
	}
	b.Done()
	return nil, nil
}

func (p *csvParser) infer(in *inference, text []byte) {
	p.scratch, _ = csvFields(text, p.scratch, func(i int, value []byte, quoted bool) error {
		if i < len(p.names) && (quoted || len(value) > 0) {
			in.text(p.names[i], value)
		}
		return nil
	})
}
