package postgres

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// kind says how a type's text is rendered.
type kind uint8

const (
	kindText kind = iota // a string with the type's text
	kindBool
	kindInt
	kindFloat
	kindBytea
	kindJSON
	kindDate
	kindTimestamp
	kindTimestamptz
	kindArray
	kindVector // int2vector, oidvector: numbers between spaces
	kindComposite
	kindRange
	kindMultirange
	kindVoid
)

// maxNesting bounds composites within arrays within composites; deeper values
// are rendered as their text.
const maxNesting = 64

// AppendJSON appends the JSON form of one value in PostgreSQL's text format; a
// nil text is NULL. It is the one place where PostgreSQL becomes JSON, and
// docs/types.md describes it. The result is valid JSON, without line breaks,
// whatever the text: what does not look like its type is rendered as a string.
//
// The text must come from a session with the settings of SessionSettings.
func (ts *Types) AppendJSON(dst []byte, oid uint32, text []byte) []byte {
	return appendValue(dst, ts.lookup(oid), text)
}

func appendValue(dst []byte, t *typ, text []byte) []byte {
	if text == nil {
		return append(dst, "null"...)
	}
	start := len(dst)
	if out, ok := render(dst, t, text, 0); ok {
		return out
	}
	return cdc.AppendString(dst[:start], text)
}

// render reports false for a text that is not of the type; what it appended is
// then of no use.
func render(dst []byte, t *typ, text []byte, depth int) ([]byte, bool) {
	switch t.kind {
	case kindBool:
		if len(text) == 1 && text[0] == 't' {
			return append(dst, "true"...), true
		}
		if len(text) == 1 && text[0] == 'f' {
			return append(dst, "false"...), true
		}
		return dst, false
	case kindInt:
		return append(dst, text...), isInteger(text)
	case kindFloat: // NaN and the infinities are no JSON numbers and become strings
		return append(dst, text...), isNumber(text)
	case kindBytea:
		return appendBytea(dst, text)
	case kindJSON:
		return appendRawJSON(dst, text)
	case kindDate, kindTimestamp, kindTimestamptz:
		return appendTime(dst, t.kind, text)
	case kindArray:
		return appendArray(dst, t, text, depth)
	case kindVector:
		return appendVector(dst, text)
	case kindComposite:
		return appendComposite(dst, t, text, depth)
	case kindRange:
		out, rest, ok := appendRange(dst, t, text, depth)
		return out, ok && len(rest) == 0
	case kindMultirange:
		return appendMultirange(dst, t, text, depth)
	case kindVoid:
		return append(dst, "null"...), true
	}
	return cdc.AppendString(dst, text), true
}

func isInteger(s []byte) bool {
	if len(s) > 0 && s[0] == '-' {
		s = s[1:]
	}
	if len(s) == 0 || s[0] == '0' && len(s) > 1 {
		return false
	}
	return digits(s) == len(s)
}

// isNumber checks against the grammar of JSON.
func isNumber(s []byte) bool {
	if len(s) > 0 && s[0] == '-' {
		s = s[1:]
	}
	n := digits(s)
	if n == 0 || s[0] == '0' && n > 1 {
		return false
	}
	if s = s[n:]; len(s) > 0 && s[0] == '.' {
		if n = digits(s[1:]); n == 0 {
			return false
		}
		s = s[1+n:]
	}
	if len(s) > 0 && (s[0] == 'e' || s[0] == 'E') {
		if s = s[1:]; len(s) > 0 && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		if n = digits(s); n == 0 {
			return false
		}
		s = s[n:]
	}
	return len(s) == 0
}

// digits counts the decimal digits that s begins with.
func digits(s []byte) int {
	for i, c := range s {
		if c < '0' || c > '9' {
			return i
		}
	}
	return len(s)
}

// appendBytea turns the hex form into base64.
func appendBytea(dst, text []byte) ([]byte, bool) {
	src, ok := bytes.CutPrefix(text, []byte(`\x`))
	if !ok || len(src)%2 != 0 {
		return dst, false
	}
	dst = append(dst, '"')
	var raw [48]byte // a multiple of three: only the last piece is padded
	for len(src) > 0 {
		piece := src[:min(len(src), 2*len(raw))]
		n, err := hex.Decode(raw[:], piece)
		if err != nil {
			return dst, false
		}
		dst = base64.StdEncoding.AppendEncode(dst, raw[:n])
		src = src[len(piece):]
	}
	return append(dst, '"'), true
}

// appendRawJSON embeds json and jsonb as they are, but for line breaks between
// tokens, since a row is one line.
func appendRawJSON(dst, text []byte) ([]byte, bool) {
	if !json.Valid(text) || !utf8.Valid(text) {
		return dst, false
	}
	for {
		i := bytes.IndexAny(text, "\r\n")
		if i < 0 {
			return append(dst, bytes.TrimSpace(text)...), true
		}
		dst = append(dst, text[:i]...)
		text = text[i+1:]
	}
}

// appendTime renders date, timestamp and timestamptz in the form of RFC 3339,
// with microseconds. Years outside 0001 to 9999, which RFC 3339 has no form
// for, take the expanded form of ISO 8601: a sign and at least six digits, with
// 1 BC as year 0. A timestamp without time zone gets no offset, because it has
// none: "Z" would claim an instant that the database does not know.
func appendTime(dst []byte, k kind, text []byte) ([]byte, bool) {
	if len(text) == 0 {
		return dst, false
	}
	if c := text[len(text)-1]; c == 'y' { // infinity, -infinity
		s := string(text)
		return cdc.AppendString(dst, text), s == "infinity" || s == "-infinity"
	}
	s, bc := bytes.CutSuffix(text, []byte(" BC"))
	year := digits(s)
	if year < 4 || year > 9 {
		return dst, false
	}
	rest := s[year:]
	if !shaped(rest, "-00-00") {
		return dst, false
	}
	dst = append(dst, '"')
	switch {
	case bc:
		n := 0
		for _, c := range s[:year] {
			n = n*10 + int(c-'0')
		}
		if n == 1 {
			dst = append(dst, "0000"...)
			break
		}
		dst = append(dst, '-')
		dst = appendPadded(dst, n-1, 6)
	case year > 4:
		dst = append(dst, '+')
		for range 6 - year {
			dst = append(dst, '0')
		}
		fallthrough
	default:
		dst = append(dst, s[:year]...)
	}
	dst = append(dst, rest[:6]...)
	rest = rest[6:]
	if k == kindDate {
		return append(dst, '"'), len(rest) == 0
	}

	if !shaped(rest, " 00:00:00") {
		return dst, false
	}
	dst = append(dst, 'T')
	dst = append(dst, rest[1:9]...)
	rest = rest[9:]
	fraction := 0
	dst = append(dst, '.')
	if len(rest) > 0 && rest[0] == '.' {
		fraction = digits(rest[1:])
		if fraction == 0 || fraction > 6 {
			return dst, false
		}
		dst = append(dst, rest[1:1+fraction]...)
		rest = rest[1+fraction:]
	}
	dst = append(dst, "000000"[fraction:]...)
	if k == kindTimestamp {
		return append(dst, '"'), len(rest) == 0
	}

	switch {
	case string(rest) == "+00":
		dst = append(dst, 'Z')
	case len(rest) == 3 && (shaped(rest, "+00") || shaped(rest, "-00")):
		dst = append(dst, rest...)
		dst = append(dst, ":00"...)
	case len(rest) == 6 && (shaped(rest, "+00:00") || shaped(rest, "-00:00")):
		dst = append(dst, rest...)
	default:
		return dst, false
	}
	return append(dst, '"'), true
}

// shaped reports whether s begins as pattern does, where a 0 stands for any
// digit.
func shaped(s []byte, pattern string) bool {
	if len(s) < len(pattern) {
		return false
	}
	for i := range len(pattern) {
		if pattern[i] == '0' {
			if s[i] < '0' || s[i] > '9' {
				return false
			}
		} else if s[i] != pattern[i] {
			return false
		}
	}
	return true
}

func appendPadded(dst []byte, n, width int) []byte {
	var buf [20]byte
	i := len(buf)
	for ; n > 0 || width > 0; n, width = n/10, width-1 {
		i--
		buf[i] = byte('0' + n%10)
	}
	return append(dst, buf[i:]...)
}

// appendArray renders {…}, and [l:u]={…} for lower bounds that are not 1:
// {"lower":[l],"values":[…]}.
func appendArray(dst []byte, t *typ, text []byte, depth int) ([]byte, bool) {
	bounds := len(text) > 0 && text[0] == '['
	if bounds {
		dst = append(dst, `{"lower":`...)
		sep := byte('[')
		for len(text) > 0 && text[0] == '[' {
			colon := bytes.IndexByte(text, ':')
			end := bytes.IndexByte(text, ']')
			if colon < 0 || end < colon || !isInteger(text[1:colon]) {
				return dst, false
			}
			dst = append(dst, sep)
			dst = append(dst, text[1:colon]...)
			sep = ','
			text = text[end+1:]
		}
		if len(text) == 0 || text[0] != '=' {
			return dst, false
		}
		text = text[1:]
		dst = append(dst, `],"values":`...)
	}
	dst, rest, ok := appendElements(dst, t, text, depth, 1)
	if bounds {
		dst = append(dst, '}')
	}
	return dst, ok && len(rest) == 0
}

// maxDimensions is PostgreSQL's own limit.
const maxDimensions = 6

func appendElements(dst []byte, t *typ, s []byte, depth, dimension int) (_, rest []byte, ok bool) {
	if depth > maxNesting || dimension > maxDimensions || len(s) < 2 || s[0] != '{' {
		return dst, s, false
	}
	dst = append(dst, '[')
	if s = s[1:]; s[0] == '}' {
		return append(dst, ']'), s[1:], true
	}
	for {
		if len(s) == 0 {
			return dst, s, false
		}
		if s[0] == '{' {
			dst, s, ok = appendElements(dst, t, s, depth, dimension+1)
		} else {
			quoted := s[0] == '"'
			var item []byte
			if quoted {
				item, s, ok = unquote(s, false)
			} else {
				item, s, ok = until(s, t.delim, '}')
			}
			switch {
			case !ok:
			case !quoted && string(item) == "NULL":
				dst = append(dst, "null"...)
			default:
				dst, ok = render(dst, t.elem, item, depth+1)
			}
		}
		if !ok || len(s) == 0 {
			return dst, s, false
		}
		switch s[0] {
		case t.delim:
			dst = append(dst, ',')
		case '}':
			return append(dst, ']'), s[1:], true
		default:
			return dst, s, false
		}
		s = s[1:]
	}
}

// appendVector renders numbers between spaces as an array.
func appendVector(dst, text []byte) ([]byte, bool) {
	dst = append(dst, '[')
	for first := true; len(text) > 0; first = false {
		if !first {
			if text[0] != ' ' {
				return dst, false
			}
			text = text[1:]
			dst = append(dst, ',')
		}
		item, rest, found := bytes.Cut(text, []byte(" "))
		if !isInteger(item) {
			return dst, false
		}
		dst = append(dst, item...)
		if !found {
			break
		}
		text = text[len(text)-len(rest)-1:]
	}
	return append(dst, ']'), true
}

// appendComposite renders (a,b,…) as an object with the attributes' names.
func appendComposite(dst []byte, t *typ, s []byte, depth int) ([]byte, bool) {
	if depth > maxNesting || len(s) < 2 || s[0] != '(' {
		return dst, false
	}
	if len(t.fields) == 0 {
		return append(dst, "{}"...), string(s) == "()"
	}
	dst = append(dst, '{')
	for i, f := range t.fields {
		s = s[1:] // the parenthesis or the comma
		item, null, rest, ok := part(s, ',', ')')
		if !ok {
			return dst, false
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, f.key...)
		if null {
			dst = append(dst, "null"...)
		} else if dst, ok = render(dst, f.typ, item, depth+1); !ok {
			return dst, false
		}
		s = rest
		if last := i == len(t.fields)-1; last != (s[0] == ')') {
			return dst, false
		}
	}
	return append(dst, '}'), len(s) == 1
}

// appendRange renders the range that s begins with.
func appendRange(dst []byte, t *typ, s []byte, depth int) (_, rest []byte, ok bool) {
	if rest, found := bytes.CutPrefix(s, []byte("empty")); found {
		return append(dst, `{"empty":true}`...), rest, true
	}
	if depth > maxNesting || len(s) < 3 || s[0] != '[' && s[0] != '(' {
		return dst, s, false
	}
	open := s[0]
	lower, lowerNull, s, ok := part(s[1:], ',', ',')
	if !ok {
		return dst, s, false
	}
	upper, upperNull, s, ok := part(s[1:], ')', ']')
	if !ok {
		return dst, s, false
	}
	for _, bound := range [...]struct {
		key  string
		text []byte
		null bool
	}{{`{"lower":`, lower, lowerNull}, {`,"upper":`, upper, upperNull}} {
		dst = append(dst, bound.key...)
		if bound.null { // no bound on this side
			dst = append(dst, "null"...)
		} else if dst, ok = render(dst, t.elem, bound.text, depth+1); !ok {
			return dst, s, false
		}
	}
	dst = append(dst, `,"bounds":"`...)
	return append(dst, open, s[0], '"', '}'), s[1:], true
}

// appendMultirange renders {r,r,…} as an array of ranges.
func appendMultirange(dst []byte, t *typ, s []byte, depth int) ([]byte, bool) {
	if len(s) < 2 || s[0] != '{' {
		return dst, false
	}
	dst = append(dst, '[')
	if s = s[1:]; s[0] == '}' {
		return append(dst, ']'), len(s) == 1
	}
	for {
		var ok bool
		dst, s, ok = appendRange(dst, t.elem, s, depth+1)
		if !ok || len(s) == 0 {
			return dst, false
		}
		switch s[0] {
		case ',':
			dst = append(dst, ',')
		case '}':
			return append(dst, ']'), len(s) == 1
		default:
			return dst, false
		}
		s = s[1:]
	}
}

// part takes one part of a composite or a range, up to one of two stops; an
// empty part without quotes is NULL. The rest begins with the stop.
func part(s []byte, stop1, stop2 byte) (item []byte, null bool, rest []byte, ok bool) {
	if len(s) > 0 && s[0] == '"' {
		item, rest, ok = unquote(s, true)
		return item, false, rest, ok && len(rest) > 0 && (rest[0] == stop1 || rest[0] == stop2)
	}
	item, rest, ok = until(s, stop1, stop2)
	return item, len(item) == 0, rest, ok
}

func until(s []byte, stop1, stop2 byte) (item, rest []byte, ok bool) {
	for i, c := range s {
		if c == stop1 || c == stop2 {
			return s[:i], s[i:], true
		}
	}
	return nil, s, false
}

// unquote takes the quoted string that s begins with. A backslash quotes the
// next byte; in composites and ranges a doubled quote stands for one. Memory is
// taken only if something is quoted.
func unquote(s []byte, doubled bool) (item, rest []byte, ok bool) {
	var buf []byte
	from := 1
	for i := 1; i < len(s); i++ {
		switch {
		case i+1 < len(s) && (s[i] == '\\' || s[i] == '"' && doubled && s[i+1] == '"'):
			buf = append(buf, s[from:i]...)
			i++
			from = i
		case s[i] == '"' && from == 1: // nothing was quoted: the string is in place
			return s[1:i], s[i+1:], true
		case s[i] == '"':
			return append(buf, s[from:i]...), s[i+1:], true
		}
	}
	return nil, s, false
}
