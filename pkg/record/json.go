package record

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// AppendJSON appends a row as a JSON object on one line, with the values in the
// forms of docs/types.md, and the columns in their order. Absent values are left
// out.
func (b *Batch) AppendJSON(dst []byte, row int) []byte {
	sep := byte('{')
	for c := range b.Columns {
		v := &b.Columns[c]
		if v.Absent(row) {
			continue
		}
		dst = cdc.AppendString(append(dst, sep), b.Schema.Columns[c].Name)
		dst = v.AppendJSON(append(dst, ':'), b.Schema.Columns[c].Type, row)
		sep = ','
	}
	if sep == '{' {
		dst = append(dst, '{')
	}
	return append(dst, '}')
}

// AppendJSON appends value i as JSON; null if it is absent.
func (v *Vector) AppendJSON(dst []byte, t Type, i int) []byte {
	if v.Null(i) {
		return append(dst, "null"...)
	}
	switch v.Kind {
	case Text:
		return cdc.AppendString(dst, v.Bytes(i))
	case JSON:
		return appendOneLine(dst, v.Bytes(i))
	case Bool, Int:
		return v.AppendText(dst, t, i)
	case Float:
		if isFinite(v.Floats[i]) {
			return appendFloat(dst, v.Floats[i], t.Bits)
		}
	}
	return append(v.AppendText(append(dst, '"'), t, i), '"') // none of them has what must be escaped
}

// AppendText appends value i as docs/types.md writes it, without quotes; nothing
// if it is null.
func (v *Vector) AppendText(dst []byte, t Type, i int) []byte {
	if v.Null(i) {
		return dst
	}
	switch v.Kind {
	case Bool:
		return strconv.AppendBool(dst, v.Ints[i] != 0)
	case Int:
		return strconv.AppendInt(dst, v.Ints[i], 10)
	case Float:
		return appendFloat(dst, v.Floats[i], t.Bits)
	case Bytes:
		return base64.StdEncoding.AppendEncode(dst, v.Bytes(i))
	case Date:
		return appendDate(dst, v.Ints[i])
	case Time:
		return appendTimeOfDay(dst, v.Ints[i])
	case Timestamp, TimestampTZ:
		return appendTimestamp(dst, v.Ints[i], v.Kind == TimestampTZ)
	case UUID:
		return appendUUID(dst, v.Bytes(i))
	}
	return append(dst, v.Bytes(i)...)
}

func appendUUID(dst, u []byte) []byte {
	if len(u) != 16 {
		return dst
	}
	dst = hex.AppendEncode(dst, u[:4])
	for i := 4; i < 10; i += 2 {
		dst = hex.AppendEncode(append(dst, '-'), u[i:i+2])
	}
	return hex.AppendEncode(append(dst, '-'), u[10:])
}

// appendOneLine appends JSON without the line breaks between its tokens.
func appendOneLine(dst, s []byte) []byte {
	for {
		i := bytes.IndexAny(s, "\r\n")
		if i < 0 {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		s = s[i+1:]
	}
}

// A ValueError says that a value is none of its column's type.
type ValueError struct {
	Column string
	Value  string // as it came, and no more of it than fits into a message
	Want   string // the type, and its form where that is in question
}

func (e *ValueError) Error() string {
	if e.Column == "" {
		return fmt.Sprintf("%s is no %s", e.Value, e.Want)
	}
	return fmt.Sprintf("column %q: %s is no %s", e.Column, e.Value, e.Want)
}

// refuse makes a ValueError of a value as it came.
func refuse(column string, value []byte, t Type) error {
	return &ValueError{Column: column, Value: bounded(value), Want: want(t)}
}

func want(t Type) string {
	switch t.Kind {
	case Bytes:
		return "bytes in base64"
	case Date:
		return "date (2026-11-22)"
	case Time:
		return "time (10:00:00.5)"
	case Timestamp:
		return "timestamp (2026-11-22T10:00:00, without an offset)"
	case TimestampTZ:
		return "timestamptz (2026-11-22T10:00:00Z, with an offset)"
	}
	return t.String()
}

// bounded cuts a value to what a message has room for, at a whole character.
func bounded(s []byte) string {
	const most = 80
	if len(s) <= most {
		return string(bytes.ToValidUTF8(s, []byte("\ufffd")))
	}
	s = s[:most]
	for i := 0; i < utf8.UTFMax && len(s) > 0; i++ {
		if r, n := utf8.DecodeLastRune(s); r != utf8.RuneError || n != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return string(bytes.ToValidUTF8(s, []byte("\ufffd"))) + "…"
}

// A Parser appends rows that come as JSON objects to batches of one schema. It is
// not safe for concurrent use.
//
// Values come in the forms of docs/types.md. Numbers may stand in strings too,
// and every other value may stand for text, as it is written.
type Parser struct {
	// Absent makes columns that an object lacks absent; else they are null.
	Absent bool

	columns []Column
	places  map[string]int
	scratch []byte // of strings with escapes
}

// NewParser returns a parser of objects with these columns.
func NewParser(s *Schema) *Parser {
	p := &Parser{columns: s.Columns, places: make(map[string]int, len(s.Columns))}
	for i, c := range s.Columns {
		p.places[c.Name] = i
	}
	return p
}

// Parse appends one object as a row of b, and returns the names of the members
// that are no columns. A value that does not fit, or a column that is given
// twice, is a *ValueError, what is no JSON object a *SyntaxError; then b is as it
// was. The object is not kept.
func (p *Parser) Parse(b *Batch, object []byte) (unknown []string, err error) {
	end, unknown, err := p.ParseAt(b, object, 0)
	if err != nil {
		return unknown, err
	}
	d := scanner{object, end}
	if d.blank(); d.i < len(object) {
		b.Truncate(b.rows - 1)
		return unknown, d.fail("something stands behind the object")
	}
	return unknown, nil
}

// ParseAt is Parse for the object that begins at byte i of s, and returns where
// it ends: for an object that is part of something that is read itself.
func (p *Parser) ParseAt(b *Batch, s []byte, i int) (end int, unknown []string, err error) {
	d := scanner{s, i}
	if unknown, err = p.object(b, &d); err == nil && !utf8.Valid(s[i:d.i]) {
		err = &SyntaxError{At: i, Reason: "it is not UTF-8"}
	}
	if err != nil {
		b.Undo()
		return d.i, unknown, err
	}
	b.Done()
	return d.i, unknown, nil
}

// Truncate drops the rows from n on.
func (b *Batch) Truncate(n int) {
	b.rows = min(n, b.rows)
	b.Undo()
	if len(b.Changes) > n {
		b.Changes = b.Changes[:n]
	}
}

func (p *Parser) object(b *Batch, d *scanner) (unknown []string, err error) {
	if d.blank(); d.peek() != '{' {
		return nil, d.fail("an object was expected")
	}
	guess := 0 // columns mostly come in order
	for first := true; ; first = false {
		more, err := d.next(first, '}')
		if err != nil {
			return unknown, err
		}
		if !more {
			break
		}
		name, escaped, err := d.name()
		if err != nil {
			return unknown, err
		}
		if escaped {
			text, ok := appendUnescaped(p.scratch[:0], name)
			if p.scratch = text; !ok {
				return unknown, d.fail("a name holds half of a character")
			}
			name = text
		}
		if guess == len(p.columns) || p.columns[guess].Name != string(name) {
			at, ok := p.places[string(name)]
			if !ok {
				unknown = append(unknown, string(name))
				if err := d.value(1); err != nil {
					return unknown, err
				}
				continue
			}
			guess = at
		}
		column, v := &p.columns[guess], &b.Columns[guess]
		if v.Len() > b.rows {
			return unknown, &ValueError{Column: column.Name, Value: "a second value", Want: "part of the row"}
		}
		if err := p.member(v, column, d); err != nil {
			return unknown, err
		}
		guess++
	}
	for c := range b.Columns {
		if v := &b.Columns[c]; v.Len() == b.rows {
			if p.Absent {
				v.AppendAbsent()
			} else {
				v.AppendNull()
			}
		}
	}
	return unknown, nil
}

// member appends the value that d is at.
func (p *Parser) member(v *Vector, column *Column, d *scanner) error {
	from := d.i
	if v.Kind == JSON {
		if err := d.value(1); err != nil {
			return err
		}
		appendJSONValue(v, d.s[from:d.i])
		return nil
	}
	switch c := d.peek(); c {
	case '"':
		text, escaped, err := d.quoted()
		if err != nil {
			return err
		}
		if escaped {
			var ok bool
			if text, ok = appendUnescaped(p.scratch[:0], text); !ok {
				return refuse(column.Name, d.s[from:d.i], column.Type)
			}
			p.scratch = text
		}
		if !appendParsed(v, column.Type, text) {
			return refuse(column.Name, d.s[from:d.i], column.Type)
		}
		return nil
	case 'n':
		v.AppendNull()
		return d.literal("null")
	case '{', '[':
		if err := d.value(1); err != nil {
			return err
		}
		if v.Kind != Text {
			return refuse(column.Name, d.s[from:d.i], column.Type)
		}
		v.Data = appendOneLine(v.Data, d.s[from:d.i])
		v.End()
		return nil
	case 't', 'f':
		if err := d.value(1); err != nil {
			return err
		}
		if v.Kind == Bool {
			v.AppendBool(c == 't')
			return nil
		}
	default:
		if err := d.number(); err != nil {
			return err
		}
		if v.Kind == Int || v.Kind == Float || v.Kind == Decimal {
			if appendParsed(v, column.Type, d.s[from:d.i]) {
				return nil
			}
			return refuse(column.Name, d.s[from:d.i], column.Type)
		}
	}
	if v.Kind != Text {
		return refuse(column.Name, d.s[from:d.i], column.Type)
	}
	v.AppendBytes(d.s[from:d.i])
	return nil
}

// appendJSONValue appends a valid JSON value; JSON's null is a null.
func appendJSONValue(v *Vector, s []byte) {
	if string(s) == "null" {
		v.AppendNull()
		return
	}
	v.Data = appendOneLine(v.Data, s)
	v.End()
}

// AppendParsed appends the value that text stands for, in the forms of
// docs/types.md; text itself to a Text, and one JSON value to a JSON. The error is
// a *ValueError without the column; then nothing was appended.
func (v *Vector) AppendParsed(t Type, text []byte) error {
	if !appendParsed(v, t, text) {
		return refuse("", text, t)
	}
	return nil
}

func appendParsed(v *Vector, t Type, s []byte) (ok bool) {
	switch t.Kind {
	case Text:
		v.AppendBytes(s)
		return true
	case Int:
		n, ok := parseInt(s, t.Bits)
		if ok {
			v.Ints = append(v.Ints, n)
		}
		return ok
	case Float:
		f, ok := parseFloat(s, t.Bits)
		if ok {
			v.Floats = append(v.Floats, f)
		}
		return ok
	case Date, Time, Timestamp, TimestampTZ:
		n, ok := parseTime(s, t.Kind)
		if ok {
			v.Ints = append(v.Ints, n)
		}
		return ok
	case Bool:
		switch string(s) {
		case "true", "t":
			v.Ints = append(v.Ints, 1)
			return true
		case "false", "f":
			v.Ints = append(v.Ints, 0)
			return true
		}
		return false
	case JSON:
		d := scanner{s: s}
		d.blank()
		from := d.i
		if d.value(1) != nil || !utf8.Valid(s) {
			return false
		}
		to := d.i
		if d.blank(); d.i < len(s) {
			return false
		}
		appendJSONValue(v, s[from:to])
		return true
	}
	data := v.Data
	switch t.Kind {
	case Decimal:
		data, ok = appendDecimal(data, s, t)
	case Bytes:
		var err error
		data, err = base64.StdEncoding.AppendDecode(data, s)
		ok = err == nil && !bytes.ContainsAny(s, "\r\n")
	case UUID:
		data, ok = parseUUID(data, s)
	}
	if ok {
		v.Data = data
		v.End()
	}
	return ok
}

// parseUUID reads 32 hexadecimal digits, in groups of 8-4-4-4-12 or in one.
func parseUUID(dst, s []byte) ([]byte, bool) {
	if len(s) != 36 && len(s) != 32 {
		return dst, false
	}
	for i := 0; i < len(s); {
		if len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23) {
			if s[i] != '-' {
				return dst, false
			}
			i++
			continue
		}
		high, low := unhex(s[i]), unhex(s[i+1])
		if high < 0 || low < 0 {
			return dst, false
		}
		dst = append(dst, byte(high<<4|low))
		i += 2
	}
	return dst, true
}
