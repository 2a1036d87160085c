package format

import (
	"math"
	"time"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/athena-pipelines/athena/pkg/record"
)

// A decode appends a value, which is not null, to a vector; false if the vector's
// type has no such value.
type decode func(v *record.Vector, x parquet.Value) bool

// leafType tells what a column of a file is as a record type, and how its values
// are read.
func leafType(t parquet.Type) (record.Type, decode) {
	var logical any
	if l := t.LogicalType(); l != nil {
		logical = l.Value
	}
	switch l := logical.(type) {
	case *format.StringType, *format.EnumType:
		return record.TypeText, decodeText
	case *format.JsonType:
		return record.TypeJSON, func(v *record.Vector, x parquet.Value) bool {
			return v.AppendParsed(record.TypeJSON, x.ByteArray()) == nil
		}
	case *format.UUIDType:
		return record.TypeUUID, decodeBytes
	case *format.DateType:
		return record.TypeDate, decodeInt32
	case *format.TimeType:
		return record.TypeTime, decodeTime(l.Unit, t.Kind())
	case *format.TimestampType:
		if l.IsAdjustedToUTC {
			return record.TypeTimestampTZ, decodeTime(l.Unit, t.Kind())
		}
		return record.TypeTimestamp, decodeTime(l.Unit, t.Kind())
	case *format.DecimalType:
		return decimalType(l, t.Kind())
	case *format.IntType:
		return intType(l)
	}
	switch t.Kind() {
	case parquet.Boolean:
		return record.TypeBool, func(v *record.Vector, x parquet.Value) bool { v.AppendBool(x.Boolean()); return true }
	case parquet.Int32:
		return record.TypeInt32, decodeInt32
	case parquet.Int64:
		return record.TypeInt64, decodeInt64
	case parquet.Int96:
		return record.TypeTimestamp, decodeInt96
	case parquet.Float:
		return record.TypeFloat32, func(v *record.Vector, x parquet.Value) bool { v.AppendFloat(float64(x.Float())); return true }
	case parquet.Double:
		return record.TypeFloat64, func(v *record.Vector, x parquet.Value) bool { v.AppendFloat(x.Double()); return true }
	}
	return record.TypeBytes, decodeBytes
}

func decodeInt32(v *record.Vector, x parquet.Value) bool { v.AppendInt(int64(x.Int32())); return true }
func decodeInt64(v *record.Vector, x parquet.Value) bool { v.AppendInt(x.Int64()); return true }
func decodeBytes(v *record.Vector, x parquet.Value) bool { v.AppendBytes(x.ByteArray()); return true }

func decodeText(v *record.Vector, x parquet.Value) bool {
	b := x.ByteArray()
	if !utf8.Valid(b) {
		return false
	}
	v.AppendBytes(b)
	return true
}

// decodeTime reads whole microseconds; nanoseconds between them do not fit.
func decodeTime(unit format.TimeUnit, kind parquet.Kind) decode {
	number := func(x parquet.Value) int64 { return x.Int64() }
	if kind == parquet.Int32 {
		number = func(x parquet.Value) int64 { return int64(x.Int32()) }
	}
	switch unit.Value.(type) {
	case *format.MilliSeconds:
		return func(v *record.Vector, x parquet.Value) bool {
			n := number(x)
			if n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
				return false
			}
			v.AppendInt(n * 1000)
			return true
		}
	case *format.NanoSeconds:
		return func(v *record.Vector, x parquet.Value) bool {
			n := number(x)
			if n%1000 != 0 {
				return false
			}
			v.AppendInt(n / 1000)
			return true
		}
	}
	return func(v *record.Vector, x parquet.Value) bool { v.AppendInt(number(x)); return true }
}

// decodeInt96 reads nanoseconds of a day, and the day by the Julian calendar.
func decodeInt96(v *record.Vector, x parquet.Value) bool {
	const epoch = 2440588
	n := x.Int96()
	nanos := int64(uint64(n[1])<<32 | uint64(n[0]))
	day := int64(int32(n[2])) - epoch
	if nanos%1000 != 0 || nanos < 0 || nanos > int64(25*time.Hour) || day > 100_000_000 || day < -100_000_000 {
		return false
	}
	v.AppendInt(day*24*60*60*1e6 + nanos/1000)
	return true
}

func intType(l *format.IntType) (record.Type, decode) {
	switch {
	case l.IsSigned && l.BitWidth <= 16:
		return record.TypeInt16, decodeInt32
	case l.IsSigned && l.BitWidth == 32:
		return record.TypeInt32, decodeInt32
	case l.IsSigned:
		return record.TypeInt64, decodeInt64
	case l.BitWidth == 8:
		return record.TypeInt16, decodeInt32
	case l.BitWidth == 16:
		return record.TypeInt32, decodeInt32
	case l.BitWidth == 32:
		return record.TypeInt64, func(v *record.Vector, x parquet.Value) bool {
			v.AppendInt(int64(uint32(x.Int32())))
			return true
		}
	}
	return record.DecimalOf(20, 0), func(v *record.Vector, x parquet.Value) bool {
		v.Data = int128{lo: uint64(x.Int64())}.appendDecimal(v.Data, 0)
		v.End()
		return true
	}
}

func decimalType(l *format.DecimalType, kind parquet.Kind) (record.Type, decode) {
	t, scale := record.TypeDecimal, int(l.Scale)
	if l.Precision >= 1 && l.Precision <= 38 && l.Scale >= 0 && l.Scale <= l.Precision {
		t = record.DecimalOf(int(l.Precision), scale)
	}
	return t, func(v *record.Vector, x parquet.Value) bool {
		var n int128
		switch kind {
		case parquet.Int32:
			n = int128Int(int64(x.Int32()))
		case parquet.Int64:
			n = int128Int(x.Int64())
		default:
			var ok bool
			if n, ok = int128Of(x.ByteArray()); !ok {
				return false
			}
		}
		if scale < 0 || scale > 38 {
			return false
		}
		from := len(v.Data)
		v.Data = n.appendDecimal(v.Data, scale)
		if digits := len(v.Data) - from; t.Precision > 0 && digits > t.Precision+1 {
			if _, ok := unscaled(v.Data[from:], t.Precision, t.Scale); !ok {
				v.Data = v.Data[:from]
				return false
			}
		}
		v.End()
		return true
	}
}

func int128Int(n int64) int128 { return int128{n >> 63, uint64(n)} }
