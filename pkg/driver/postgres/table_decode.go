package postgres

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// OIDs of built-in types that have a form of their own in records. Those of the
// integers, of numeric and of text are in params.go and types.go.
const (
	boolOID        = 16
	byteaOID       = 17
	nameOID        = 19
	jsonOID        = 114
	float4OID      = 700
	float8OID      = 701
	bpcharOID      = 1042
	varcharOID     = 1043
	dateOID        = 1082
	timeOID        = 1083
	timestampOID   = 1114
	timestamptzOID = 1184
	uuidOID        = 2950
	jsonbOID       = 3802
)

// PostgreSQL counts from 2000-01-01.
const (
	daysTo2000   = 10957
	microsTo2000 = daysTo2000 * 86_400_000_000
)

// recordType is the type that values of a type have in records; typmod is the
// column's, or -1.
func recordType(t *typ, oid uint32, typmod int32) record.Type {
	switch oid {
	case boolOID:
		return record.TypeBool
	case int2OID:
		return record.TypeInt16
	case int4OID:
		return record.TypeInt32
	case int8OID, oidOID:
		return record.TypeInt64
	case float4OID:
		return record.TypeFloat32
	case float8OID:
		return record.TypeFloat64
	case numericOID:
		if p, s, ok := numericSize(typmod); ok && p <= 38 && s >= 0 && s <= p {
			return record.DecimalOf(p, s)
		}
		return record.TypeDecimal
	case byteaOID:
		return record.TypeBytes
	case dateOID:
		return record.TypeDate
	case timeOID:
		return record.TypeTime
	case timestampOID:
		return record.TypeTimestamp
	case timestamptzOID:
		return record.TypeTimestampTZ
	case uuidOID:
		return record.TypeUUID
	}
	switch t.kind {
	case kindJSON, kindArray, kindVector, kindComposite, kindRange, kindMultirange:
		return record.TypeJSON
	}
	return record.TypeText
}

// A decodedColumn says how the values of one column of a result are read.
type decodedColumn struct {
	name string
	oid  uint32
	typ  *typ
}

// binary reports whether the column is read in binary format. All other types
// come as their text, which is what docs/types.md goes by.
func (c *decodedColumn) binary() bool {
	switch c.oid {
	case boolOID, int2OID, int4OID, int8OID, oidOID, float4OID, float8OID, numericOID, byteaOID,
		dateOID, timeOID, timestampOID, timestamptzOID, uuidOID:
		return true
	}
	return false
}

// A rowDecoder reads rows into batches of its schema.
type rowDecoder struct {
	schema  *record.Schema
	columns []decodedColumn
}

// formats are the formats in which the decoder wants the columns.
func (d *rowDecoder) formats() []int16 {
	list := make([]int16, len(d.columns))
	for i := range d.columns {
		if d.columns[i].binary() {
			list[i] = 1
		}
	}
	return list
}

// row appends a row: the number of its values, and of each its length, -1 for
// NULL, and its bytes. After an error nothing of it is in the batch.
func (d *rowDecoder) row(b *record.Batch, body []byte) error {
	if len(body) < 2 || int(binary.BigEndian.Uint16(body)) != len(d.columns) {
		return errMalformed
	}
	body = body[2:]
	for i := range d.columns {
		if len(body) < 4 {
			b.Undo()
			return errMalformed
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		if size < 0 {
			b.Columns[i].AppendNull()
			continue
		}
		if int(size) > len(body) {
			b.Undo()
			return errMalformed
		}
		if err := d.columns[i].append(&b.Columns[i], body[:size:size]); err != nil {
			b.Undo()
			return err
		}
		body = body[size:]
	}
	if len(body) > 0 {
		b.Undo()
		return errMalformed
	}
	b.Done()
	return nil
}

// append appends one value.
func (c *decodedColumn) append(v *record.Vector, p []byte) error {
	switch c.oid {
	case int8OID:
		if len(p) != 8 {
			return errMalformed
		}
		v.Ints = append(v.Ints, int64(binary.BigEndian.Uint64(p)))
	case int4OID:
		if len(p) != 4 {
			return errMalformed
		}
		v.Ints = append(v.Ints, int64(int32(binary.BigEndian.Uint32(p))))
	case int2OID:
		if len(p) != 2 {
			return errMalformed
		}
		v.Ints = append(v.Ints, int64(int16(binary.BigEndian.Uint16(p))))
	case oidOID:
		if len(p) != 4 {
			return errMalformed
		}
		v.Ints = append(v.Ints, int64(binary.BigEndian.Uint32(p)))
	case boolOID:
		if len(p) != 1 {
			return errMalformed
		}
		v.AppendBool(p[0] != 0)
	case float8OID:
		if len(p) != 8 {
			return errMalformed
		}
		v.Floats = append(v.Floats, math.Float64frombits(binary.BigEndian.Uint64(p)))
	case float4OID:
		if len(p) != 4 {
			return errMalformed
		}
		v.Floats = append(v.Floats, float64(math.Float32frombits(binary.BigEndian.Uint32(p))))
	case numericOID:
		data, ok := appendNumeric(v.Data, p)
		if !ok {
			return errMalformed
		}
		v.Data = data
		v.End()
	case byteaOID:
		v.AppendBytes(p)
	case uuidOID:
		if len(p) != 16 {
			return errMalformed
		}
		v.AppendBytes(p)
	case dateOID:
		if len(p) != 4 {
			return errMalformed
		}
		switch days := int32(binary.BigEndian.Uint32(p)); days {
		case math.MaxInt32:
			v.AppendInt(record.Infinity)
		case math.MinInt32:
			v.AppendInt(record.MinusInfinity)
		default:
			v.AppendInt(int64(days) + daysTo2000)
		}
	case timeOID:
		if len(p) != 8 {
			return errMalformed
		}
		v.AppendInt(int64(binary.BigEndian.Uint64(p)))
	case timestampOID, timestamptzOID:
		if len(p) != 8 {
			return errMalformed
		}
		switch micros := int64(binary.BigEndian.Uint64(p)); {
		case micros == math.MaxInt64 || micros == math.MinInt64: // the infinities, which records have as they are
			v.AppendInt(micros)
		case micros >= math.MaxInt64-microsTo2000:
			return athena.Errorf(athena.CodeQueryFailed, "column %q holds a time after 294247-01-10, the last that can be read as microseconds since 1970; leave the column or the row out", c.name).With("column", c.name)
		default:
			v.AppendInt(micros + microsTo2000)
		}
	default:
		c.appendText(v, p)
	}
	return nil
}

// appendText appends a value that came as its text. That is UTF-8: the server
// refuses to send anything else, whatever the encoding of the database.
func (c *decodedColumn) appendText(v *record.Vector, p []byte) {
	switch {
	case v.Kind != record.JSON:
		v.Data = append(v.Data, p...)
	case c.oid == jsonOID || c.oid == jsonbOID: // the server has checked it
		v.Data = appendOneLine(v.Data, p)
	default:
		v.Data = appendValue(v.Data, c.typ, p)
	}
	v.End()
}

// appendOneLine appends JSON without the line breaks between its tokens, and
// without blanks around it.
func appendOneLine(dst, p []byte) []byte {
	if bytes.IndexByte(p, '\n') < 0 && bytes.IndexByte(p, '\r') < 0 {
		return append(dst, bytes.TrimSpace(p)...)
	}
	return append(dst, bytes.TrimSpace(bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, p))...)
}
