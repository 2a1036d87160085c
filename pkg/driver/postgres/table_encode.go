package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/record"
)

// A columnWriter writes the values of one column of batches for one column of a
// table. What the server would refuse by what a value holds is found here where
// it can be: a row that never reaches the server costs the others nothing.
type columnWriter struct {
	*shapeColumn
	from record.Type // of the batches' column
	kind record.Kind // its kind
	// wire is the type in which values are sent; if it is not the column's own it
	// is text, for which the statement has a cast.
	wire   uint32
	labels map[string]bool // of an enum
	limit  int             // characters that fit; 0 is no limit
	key    bool

	scratch []byte
}

// newColumnWriter reports false if the column's type takes no such values.
func newColumnWriter(c *shapeColumn, t record.Type) (*columnWriter, bool) {
	w := &columnWriter{shapeColumn: c, from: t, kind: t.Kind, wire: c.oid}
	if len(c.enum) > 0 {
		w.labels = make(map[string]bool, len(c.enum))
		for _, l := range c.enum {
			w.labels[l] = true
		}
	}
	switch {
	case c.oid == nameOID:
		w.limit = 63
	case (c.oid == varcharOID || c.oid == bpcharOID) && c.typmod > 4:
		w.limit = int(c.typmod - 4)
	}
	if sentAsItIs(t.Kind, c.oid) {
		return w, true
	}
	text := c.oid == textOID || c.oid == varcharOID || c.oid == bpcharOID || c.oid == nameOID
	switch {
	case text && t.Kind != record.Bytes:
		return w, true
	case w.labels != nil && t.Kind == record.Text:
		return w, true
	case t.Kind == record.Text: // the server reads it, as it reads literals
		w.wire = textOID
		return w, c.oid != byteaOID
	case t.Kind == record.JSON && c.typ.kind != kindText && c.typ.kind != kindBool && c.typ.kind != kindInt && c.typ.kind != kindFloat:
		w.wire = textOID // arrays, composites, ranges
		switch c.typ.kind {
		case kindArray, kindVector, kindComposite, kindRange, kindMultirange:
			return w, true
		}
	case (t.Kind == record.Int || t.Kind == record.Decimal) && c.oid == moneyOID:
		w.wire = textOID
		return w, true
	}
	return nil, false
}

// sentAsItIs reports whether values of a kind have a binary form for a type.
func sentAsItIs(k record.Kind, oid uint32) bool {
	switch k {
	case record.Bool:
		return oid == boolOID
	case record.Int, record.Decimal:
		switch oid {
		case int2OID, int4OID, int8OID, oidOID, numericOID, float8OID:
			return true
		}
	case record.Float:
		return oid == float4OID || oid == float8OID || oid == numericOID
	case record.Bytes:
		return oid == byteaOID
	case record.Date:
		return oid == dateOID || oid == timestampOID
	case record.Time:
		return oid == timeOID
	case record.Timestamp:
		return oid == timestampOID
	case record.TimestampTZ:
		return oid == timestamptzOID
	case record.UUID:
		return oid == uuidOID
	case record.JSON:
		return oid == jsonOID || oid == jsonbOID
	}
	return false
}

// append appends a value as the protocol has it: its length, and its bytes; or
// says why the column does not take it.
func (w *columnWriter) append(dst []byte, v *record.Vector, i int) (_ []byte, problem string) {
	if v.Null(i) {
		if w.notNull {
			return dst, "is null, and the column takes no nulls"
		}
		return append(dst, 0xff, 0xff, 0xff, 0xff), ""
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst, problem = w.value(dst, v, i)
	if problem == "" {
		binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	}
	return dst, problem
}

func (w *columnWriter) value(dst []byte, v *record.Vector, i int) ([]byte, string) {
	be := binary.BigEndian
	if w.wire != w.oid {
		return w.asText(dst, v, i)
	}
	switch w.oid {
	case boolOID:
		return append(dst, byte(v.Ints[i])), ""
	case int2OID, int4OID, int8OID, oidOID:
		n, problem := w.integer(v, i)
		switch w.oid {
		case int2OID:
			return be.AppendUint16(dst, uint16(n)), problem
		case int8OID:
			return be.AppendUint64(dst, uint64(n)), problem
		}
		return be.AppendUint32(dst, uint32(n)), problem
	case float4OID, float8OID:
		f, problem := w.float(v, i)
		if w.oid == float4OID {
			return be.AppendUint32(dst, math.Float32bits(float32(f))), problem
		}
		return be.AppendUint64(dst, math.Float64bits(f)), problem
	case numericOID:
		return w.numeric(dst, v, i)
	case byteaOID:
		return append(dst, v.Bytes(i)...), ""
	case uuidOID:
		p := v.Bytes(i)
		if len(p) != 16 {
			return dst, "is no UUID"
		}
		return append(dst, p...), ""
	case dateOID:
		return w.date(dst, v.Ints[i])
	case timeOID:
		if n := v.Ints[i]; n < 0 || n > 86_400_000_000 {
			return dst, "is no time of a day"
		}
		return be.AppendUint64(dst, uint64(v.Ints[i])), ""
	case timestampOID, timestamptzOID:
		return w.timestamp(dst, v.Ints[i])
	case jsonOID:
		p := v.Bytes(i)
		return append(dst, p...), checkJSON(p, false)
	case jsonbOID:
		p := v.Bytes(i)
		return append(append(dst, 1), p...), checkJSON(p, true)
	}
	return w.asText(dst, v, i)
}

func (w *columnWriter) integer(v *record.Vector, i int) (n int64, problem string) {
	if w.kind == record.Decimal {
		digits, fraction, found := bytes.Cut(v.Bytes(i), []byte("."))
		var err error
		n, err = strconv.ParseInt(string(digits), 10, 64)
		if err != nil || found && len(bytes.Trim(fraction, "0")) > 0 {
			return 0, fmt.Sprintf("is %.60s, and the column takes whole numbers in its range", v.Bytes(i))
		}
	} else {
		n = v.Ints[i]
	}
	ok := true
	switch w.oid {
	case int2OID:
		ok = n == int64(int16(n))
	case int4OID:
		ok = n == int64(int32(n))
	case oidOID:
		ok = n == int64(uint32(n))
	}
	if !ok {
		return 0, fmt.Sprintf("is %d, which is beyond %s", n, w.native)
	}
	return n, ""
}

func (w *columnWriter) float(v *record.Vector, i int) (f float64, problem string) {
	switch w.kind {
	case record.Float:
		f = v.Floats[i]
	case record.Int:
		if f = float64(v.Ints[i]); int64(f) != v.Ints[i] || f >= math.MaxInt64 {
			return 0, fmt.Sprintf("is %d, of which double precision would lose digits", v.Ints[i])
		}
	default:
		var err error
		if f, err = strconv.ParseFloat(string(v.Bytes(i)), 64); err != nil {
			return 0, fmt.Sprintf("is %.60s, which is beyond double precision", v.Bytes(i))
		}
	}
	if w.oid == float4OID && math.Abs(f) > math.MaxFloat32 && !math.IsInf(f, 0) {
		return 0, fmt.Sprintf("is %g, which is beyond real", f)
	}
	return f, ""
}

func (w *columnWriter) date(dst []byte, days int64) ([]byte, string) {
	n := days - daysTo2000
	switch {
	case days == record.Infinity:
		n = math.MaxInt32
	case days == record.MinusInfinity:
		n = math.MinInt32
	case n < -2451545 || n > 2145031948: // 4714-11-24 BC, 5874897-12-31
		return dst, "is a day that PostgreSQL does not have"
	}
	return binary.BigEndian.AppendUint32(dst, uint32(int32(n))), ""
}

func (w *columnWriter) timestamp(dst []byte, n int64) ([]byte, string) {
	if n != record.Infinity && n != record.MinusInfinity {
		if w.kind == record.Date {
			if n < -2451545+daysTo2000 || n > 106751990 {
				return dst, "is a day that timestamps do not have"
			}
			n *= 86_400_000_000
		}
		if n < -210866803200000000+microsTo2000 { // 4714-11-24 BC
			return dst, "is a time that PostgreSQL does not have"
		}
		n -= microsTo2000
	}
	return binary.BigEndian.AppendUint64(dst, uint64(n)), ""
}

// asText writes the text of a value.
func (w *columnWriter) asText(dst []byte, v *record.Vector, i int) (_ []byte, problem string) {
	start := len(dst)
	switch {
	case w.kind == record.Text && (w.typ.kind == kindDate || w.typ.kind == kindTimestamp || w.typ.kind == kindTimestamptz):
		dst = appendYear(dst, v.Bytes(i))
	case w.kind == record.Text:
		dst = append(dst, v.Bytes(i)...)
	case w.kind == record.JSON && w.wire == w.oid: // a column of text
		dst = append(dst, v.Bytes(i)...)
	case w.kind == record.JSON:
		p := v.Bytes(i)
		if !json.Valid(p) {
			return dst, fmt.Sprintf("is %.60q, which is not JSON", p)
		}
		if dst, problem = fitJSON(dst, w.typ, bytes.TrimSpace(p)); problem != "" {
			return dst, fmt.Sprintf("is %.60s; a column of type %s %s", p, w.native, problem)
		}
	default:
		dst = v.AppendText(dst, w.from, i)
	}
	text := dst[start:]
	switch {
	case bytes.IndexByte(text, 0) >= 0:
		return dst, "holds the character U+0000, which PostgreSQL has not in text"
	case !utf8.Valid(text):
		return dst, "holds bytes that are no UTF-8"
	case w.labels != nil && !w.labels[string(text)]:
		return dst, fmt.Sprintf("is %.60q, which is not among the values of %s", text, w.native)
	case w.limit > 0 && len(text) > w.limit:
		return dst, w.tooLong(text)
	}
	return dst, ""
}

// tooLong judges as the server does: blanks beyond the limit are dropped.
func (w *columnWriter) tooLong(text []byte) string {
	if w.oid == nameOID {
		return fmt.Sprintf("has %d bytes, and the column takes %d", len(text), w.limit)
	}
	n := utf8.RuneCount(text)
	if n <= w.limit {
		return ""
	}
	if kept := utf8.RuneCount(bytes.TrimRight(text, " ")); kept <= w.limit {
		return ""
	}
	return fmt.Sprintf("is %.40q… with %d characters, and the column takes %d", string(text[:min(len(text), 60)]), n, w.limit)
}

// checkJSON says what PostgreSQL has against JSON that is JSON. jsonb keeps its
// strings decoded, and so cannot hold all that json can.
func checkJSON(p []byte, decoded bool) string {
	switch {
	case !utf8.Valid(p):
		return "holds bytes that are no UTF-8"
	case bytes.IndexByte(p, 0) >= 0:
		return "holds the character U+0000"
	case len(p) == 0:
		return "is empty, which is not JSON"
	case bytes.Contains(p, []byte(`\u`)):
		return checkEscapes(p, decoded)
	}
	return ""
}

func checkEscapes(p []byte, decoded bool) string {
	high := false // the last thing was the first half of a pair
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\\')
		if high && i != 0 {
			break
		}
		if i < 0 || i+1 >= len(p) {
			return ""
		}
		escaped := p[i+1] == 'u'
		if p = p[i+2:]; !escaped {
			if high {
				break
			}
			continue
		}
		n, err := strconv.ParseUint(string(p[:min(4, len(p))]), 16, 16)
		if err != nil {
			return "is not JSON"
		}
		p = p[min(4, len(p)):]
		low := n >= 0xDC00 && n <= 0xDFFF
		switch {
		case n == 0 && decoded:
			return `holds \u0000, which jsonb cannot keep`
		case low != high:
			return "holds half of a surrogate pair"
		}
		high = n >= 0xD800 && n <= 0xDBFF
	}
	if high {
		return "holds half of a surrogate pair"
	}
	return ""
}

// numeric encodes a number. Digits beyond the column's scale are refused, unless
// they are zeros; of a floating number, which is not exact anyway, they are
// rounded away by the server.
func (w *columnWriter) numeric(dst []byte, v *record.Vector, i int) ([]byte, string) {
	var text []byte
	switch w.kind {
	case record.Decimal:
		text = v.Bytes(i)
	case record.Int:
		w.scratch = strconv.AppendInt(w.scratch[:0], v.Ints[i], 10)
		text = w.scratch
	default:
		w.scratch = plainFloat(w.scratch[:0], v.Floats[i], w.from.Bits)
		text = w.scratch
	}
	precision, scale, bounded := numericSize(w.typmod)
	switch string(text) {
	case "NaN":
		return append(dst, 0, 0, 0, 0, 0xC0, 0, 0, 0), ""
	case "Infinity", "-Infinity":
		if bounded {
			return dst, fmt.Sprintf("is %s, which %s cannot hold", text, w.native)
		}
		sign := byte(0xD0)
		if text[0] == '-' {
			sign = 0xF0
		}
		return append(dst, 0, 0, 0, 0, sign, 0, 0, 0), ""
	}
	digits := bytes.TrimPrefix(text, []byte("-"))
	whole, fraction, dot := bytes.Cut(digits, []byte("."))
	if !allDigits(whole) || dot && !allDigits(fraction) {
		return dst, fmt.Sprintf("is %.60q, which is no decimal number", text)
	}
	whole = bytes.TrimLeft(whole, "0")
	if len(whole) > 131072 || len(fraction) > maxNumericScale {
		return dst, fmt.Sprintf("has %d digits, more than PostgreSQL takes", len(whole)+len(fraction))
	}
	if bounded {
		if w.kind != record.Float {
			for n := len(fraction); n > max(scale, 0); n-- {
				if fraction[n-1] != '0' {
					return dst, fmt.Sprintf("is %.60s, with more digits behind the point than %s takes", text, w.native)
				}
				fraction = fraction[:n-1]
			}
		}
		if len(whole) > max(precision-scale, 0) {
			return dst, fmt.Sprintf("is %.60s, which is beyond %s", text, w.native)
		}
	}
	return appendNumericGroups(dst, whole, fraction, len(text) != len(digits)), ""
}

// appendNumericGroups is the opposite of appendNumeric.
func appendNumericGroups(dst, whole, fraction []byte, negative bool) []byte {
	start := len(dst)
	scale := len(fraction)
	dst = append(dst, 0, 0, 0, 0, 0, 0, byte(scale>>8), byte(scale))
	groups, weight := 0, (len(whole)+3)/4-1
	put := func(digits []byte, width int) {
		n := uint16(0)
		for _, c := range digits {
			n = n*10 + uint16(c-'0')
		}
		for range width - len(digits) {
			n *= 10
		}
		if groups == 0 && n == 0 { // leading zeros
			weight--
			return
		}
		dst = binary.BigEndian.AppendUint16(dst, n)
		groups++
	}
	for len(whole) > 0 {
		n := (len(whole)-1)%4 + 1
		put(whole[:n], n)
		whole = whole[n:]
	}
	for len(fraction) > 0 {
		n := min(4, len(fraction))
		put(fraction[:n], 4)
		fraction = fraction[n:]
	}
	for groups > 0 && binary.BigEndian.Uint16(dst[len(dst)-2:]) == 0 {
		dst = dst[:len(dst)-2]
		groups--
	}
	if groups == 0 {
		weight, negative = 0, false
	}
	binary.BigEndian.PutUint16(dst[start:], uint16(groups))
	binary.BigEndian.PutUint16(dst[start+2:], uint16(int16(weight)))
	if negative {
		dst[start+4] = 0x40
	}
	return dst
}

func allDigits(p []byte) bool { return len(p) > 0 && digits(p) == len(p) }

// plainFloat writes the fewest digits that give the number back, without an
// exponent.
func plainFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	}
	return strconv.AppendFloat(dst, f, 'f', -1, bits)
}

// fitJSON writes the JSON form of an array, a composite, a range or a multirange
// as PostgreSQL's text; it is what encodeParam takes, and the objects of
// docs/types.md besides. raw is valid.
func fitJSON(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	switch {
	case t.kind == kindArray && raw[0] == '{':
		var from struct {
			Lower  []int           `json:"lower"`
			Values json.RawMessage `json:"values"`
		}
		if json.Unmarshal(raw, &from) != nil || len(from.Lower) == 0 || len(from.Values) == 0 || from.Values[0] != '[' {
			return dst, "takes an array"
		}
		level := from.Values
		for _, lower := range from.Lower {
			var items []json.RawMessage
			if json.Unmarshal(level, &items) != nil || len(items) == 0 {
				return dst, "takes an array"
			}
			dst = fmt.Appendf(dst, "[%d:%d]", lower, lower+len(items)-1)
			level = items[0]
		}
		return fitArray(append(dst, '='), t, from.Values, 1)
	case t.kind == kindArray && raw[0] == '[':
		return fitArray(dst, t, raw, 1)
	case t.kind == kindVector && raw[0] == '[':
		var items []json.Number
		if json.Unmarshal(raw, &items) != nil {
			return dst, "takes an array of whole numbers"
		}
		for i, n := range items {
			if i > 0 {
				dst = append(dst, ' ')
			}
			dst = append(dst, n...)
		}
		return dst, ""
	case t.kind == kindComposite && raw[0] == '{':
		return fitComposite(dst, t, raw)
	case t.kind == kindRange && raw[0] == '{':
		return fitRange(dst, t, raw)
	case t.kind == kindMultirange && raw[0] == '[':
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			return dst, "takes an array of ranges"
		}
		dst = append(dst, '{')
		for i, item := range items {
			if i > 0 {
				dst = append(dst, ',')
			}
			if item = bytes.TrimSpace(item); item[0] != '{' {
				return dst, "takes an array of ranges"
			}
			if dst, problem = fitRange(dst, t.elem, item); problem != "" {
				return dst, problem
			}
		}
		return append(dst, '}'), ""
	}
	return encodeParam(dst, t, elemOID(t), raw)
}

func fitArray(dst []byte, t *typ, raw []byte, dimension int) (_ []byte, problem string) {
	var items []json.RawMessage
	if dimension > maxDimensions || json.Unmarshal(raw, &items) != nil {
		return dst, fmt.Sprintf("takes an array of at most %d dimensions", maxDimensions)
	}
	nested := t.elem.kind != kindJSON && t.elem.kind != kindMultirange && t.elem.kind != kindVector
	dst = append(dst, '{')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, t.delim)
		}
		item = bytes.TrimSpace(item)
		switch {
		case string(item) == "null":
			dst = append(dst, "NULL"...)
		case item[0] == '[' && nested:
			if dst, problem = fitArray(dst, t, item, dimension+1); problem != "" {
				return dst, problem
			}
		default:
			if dst, problem = fitQuoted(dst, t.elem, item); problem != "" {
				return dst, fmt.Sprintf("its element %d %s", i, problem)
			}
		}
	}
	return append(dst, '}'), ""
}

// fitQuoted writes a value within quotes, as arrays, composites and ranges take
// it.
func fitQuoted(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	text, problem := fitJSON(nil, t, raw)
	if problem != "" {
		return dst, problem
	}
	dst = append(dst, '"')
	for _, c := range text {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"'), ""
}

func fitComposite(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	var members map[string]json.RawMessage
	if json.Unmarshal(raw, &members) != nil {
		return dst, "takes an object"
	}
	dst = append(dst, '(')
	for i, f := range t.fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		var name string
		if err := json.Unmarshal(f.key[:len(f.key)-1], &name); err != nil {
			return dst, "has an attribute without a name"
		}
		value, ok := members[name]
		delete(members, name)
		if !ok || string(bytes.TrimSpace(value)) == "null" {
			continue
		}
		if dst, problem = fitQuoted(dst, f.typ, bytes.TrimSpace(value)); problem != "" {
			return dst, fmt.Sprintf("its attribute %q %s", name, problem)
		}
	}
	for name := range members {
		return dst, fmt.Sprintf("has no attribute %.60q", name)
	}
	return append(dst, ')'), ""
}

func fitRange(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	var r struct {
		Lower, Upper json.RawMessage
		Bounds       string
		Empty        bool
	}
	if json.Unmarshal(raw, &r) != nil || !r.Empty && !slices.Contains([]string{"[]", "[)", "(]", "()"}, r.Bounds) {
		return dst, `takes an object with lower, upper and bounds such as "[)", or {"empty":true}`
	}
	if r.Empty {
		return append(dst, "empty"...), ""
	}
	dst = append(dst, r.Bounds[0])
	for i, bound := range []json.RawMessage{r.Lower, r.Upper} {
		if i > 0 {
			dst = append(dst, ',')
		}
		if bound = bytes.TrimSpace(bound); len(bound) == 0 || string(bound) == "null" {
			continue
		}
		if dst, problem = fitQuoted(dst, t.elem, bound); problem != "" {
			return dst, "its bound " + problem
		}
	}
	return append(dst, r.Bounds[1]), ""
}

// appendKey appends an encoded value so that values which are equal to the server
// have the same bytes, unless the column is vague.
func (w *columnWriter) appendKey(dst, value []byte) []byte {
	start := len(dst)
	dst = append(dst, value...)
	switch p := dst[start+4:]; {
	case w.wire == numericOID && len(p) >= 8: // 1.0 is 1.00
		p[6], p[7] = 0, 0
	case (w.wire == float4OID || w.wire == float8OID) && len(p) > 0 && p[0] == 0x80 && len(bytes.Trim(p[1:], "\x00")) == 0:
		p[0] = 0 // the zero that is negative
	case w.wire == bpcharOID:
		for len(dst) > start+4 && dst[len(dst)-1] == ' ' {
			dst = dst[:len(dst)-1]
		}
		binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	}
	return dst
}

// vague reports whether values can be equal to the server in ways that are not
// known here.
func (w *columnWriter) vague() bool { return w.wire != w.oid || w.loose }
