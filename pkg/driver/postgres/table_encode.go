package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
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
