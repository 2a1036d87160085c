package scylla

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A columnDecoder appends the values of one column to batches as gocql reads them, from
// their wire form.
type columnDecoder struct {
	name    string
	typ     gocql.TypeInfo
	rec     record.Type
	into    *record.Vector
	scratch []byte
}

func newColumnDecoder(name string, t gocql.TypeInfo) *columnDecoder {
	return &columnDecoder{name: name, typ: t, rec: recordType(t)}
}

// UnmarshalCQL appends a value.
func (d *columnDecoder) UnmarshalCQL(_ gocql.TypeInfo, data []byte) error {
	if err := d.append(d.into, data); err != nil {
		return athena.Wrap(athena.CodeConflict, err, "column %q: %s", d.name, err)
	}
	return nil
}

func (d *columnDecoder) append(v *record.Vector, data []byte) error {
	if data == nil {
		v.AppendNull()
		return nil
	}
	kind := d.typ.Type()
	switch kind {
	case gocql.TypeVarchar, gocql.TypeText, gocql.TypeAscii, gocql.TypeBlob:
		v.AppendBytes(data)
		return nil
	}
	size, fixed := sizes[kind]
	switch {
	case !fixed:
		return d.rendered(v, data)
	case len(data) == 0: // as appendValue has it
		v.AppendNull()
		return nil
	case len(data) != size:
		return fmt.Errorf("a %s has %d bytes, not %d", kind, len(data), size)
	}
	switch kind {
	case gocql.TypeBoolean:
		v.AppendBool(data[0] != 0)
	case gocql.TypeTinyInt:
		v.AppendInt(int64(int8(data[0])))
	case gocql.TypeSmallInt:
		v.AppendInt(int64(int16(binary.BigEndian.Uint16(data))))
	case gocql.TypeInt:
		v.AppendInt(int64(int32(binary.BigEndian.Uint32(data))))
	case gocql.TypeBigInt, gocql.TypeCounter:
		v.AppendInt(int64(binary.BigEndian.Uint64(data)))
	case gocql.TypeFloat:
		v.AppendFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(data))))
	case gocql.TypeDouble:
		v.AppendFloat(math.Float64frombits(binary.BigEndian.Uint64(data)))
	case gocql.TypeUUID, gocql.TypeTimeUUID:
		v.AppendBytes(data)
	case gocql.TypeDate:
		v.AppendInt(int64(binary.BigEndian.Uint32(data)) - 1<<31)
	case gocql.TypeTimestamp:
		ms := int64(binary.BigEndian.Uint64(data))
		if ms > math.MaxInt64/1000-1 || ms < math.MinInt64/1000+1 {
			return fmt.Errorf("%d milliseconds since 1970 are more than rows have room for, which count microseconds", ms)
		}
		v.AppendInt(ms * 1000)
	case gocql.TypeTime:
		ns := int64(binary.BigEndian.Uint64(data))
		if ns < 0 || ns >= dayNanos || ns%1000 != 0 {
			return fmt.Errorf("the time %s is finer than the microseconds that rows have; read it as text, or leave the column out", appendClock(nil, ns))
		}
		v.AppendInt(ns / 1000)
	}
	return nil
}

// rendered takes a value over as its JSON form, or the text in that.
func (d *columnDecoder) rendered(v *record.Vector, data []byte) error {
	text, err := appendValue(d.scratch[:0], d.typ, data)
	d.scratch = text
	switch {
	case err != nil:
		return err
	case string(text) == "null":
		v.AppendNull()
		return nil
	case d.rec.Kind != record.JSON: // within quotes, and nothing in it is escaped
		text = text[1 : len(text)-1]
	}
	return v.AppendParsed(d.rec, text)
}
