package record

import (
	"math"
	"strconv"
)

// Convert appends value i of src, which is of type from, as a value of type to. It
// is exact, or a *ValueError without the column; then nothing was appended. Nulls
// and absent values stay what they are.
//
//   - Numbers keep their value: a fraction does not become an integer, and digits
//     that the target has no place for are an error. A decimal becomes a float if
//     the float's fewest digits are the decimal's.
//   - Text is read as AppendParsed does, and written as AppendText does.
//   - JSON is read as a Parser reads members of that type, but becomes text as it
//     is; other values become the JSON that AppendJSON gives, and text must be
//     JSON.
//   - A timestamp is taken to be in UTC, a date to be its midnight; only a
//     timestamp at midnight is a date.
//   - 0 and 1 are false and true.
func Convert(dst *Vector, to Type, src *Vector, from Type, i int) error {
	switch {
	case src.Absent(i):
		dst.AppendAbsent()
		return nil
	case src.Null(i):
		dst.AppendNull()
		return nil
	case from == to || from.Kind != Decimal && Widens(from, to) && from.Kind == to.Kind:
		dst.AppendFrom(src, i)
		return nil
	}
	if !Convertible(from, to) || !convert(dst, to, src, from, i) {
		return refuse("", src.AppendText(nil, from, i), to)
	}
	return nil
}

// Convertible reports whether any value of one type can become one of the other.
func Convertible(from, to Type) bool {
	if from.Kind == to.Kind {
		return from.Kind != 0
	}
	if from.Kind == 0 || to.Kind == 0 {
		return false
	}
	switch from.Kind {
	case Text, JSON:
		return true
	case Bool:
		return to.Kind == Int || to.Kind == Text || to.Kind == JSON
	case Int:
		return to.Kind == Bool || to.Kind == Float || to.Kind == Decimal || to.Kind == Text || to.Kind == JSON
	case Float, Decimal:
		return to.Kind == Int || to.Kind == Float || to.Kind == Decimal || to.Kind == Text || to.Kind == JSON
	case Date, Timestamp, TimestampTZ:
		return to.Kind == Date || to.Kind == Timestamp || to.Kind == TimestampTZ || to.Kind == Text || to.Kind == JSON
	case UUID, Bytes:
		return to.Kind == UUID || to.Kind == Bytes || to.Kind == Text || to.Kind == JSON
	}
	return to.Kind == Text || to.Kind == JSON
}

// Widens reports whether every value of one type is a value of the other, of the
// same sort and unchanged: int32 of int64, int16 of float32 and decimal(5,0),
// decimal(10,2) of decimal(12,2). Every type widens to itself.
func Widens(from, to Type) bool {
	switch {
	case from == to:
		return from.Kind != 0
	case from.Kind == Int && to.Kind == Int, from.Kind == Float && to.Kind == Float:
		return from.Bits <= to.Bits
	case from.Kind == Int && to.Kind == Float:
		return from.Bits < to.Bits // 24 and 53 bits of them are the digits
	case from.Kind == Int && to.Kind == Decimal:
		digits := map[int]int{16: 5, 32: 10, 64: 19}[from.Bits]
		return to.Precision == 0 || to.Precision-to.Scale >= digits
	case from.Kind == Decimal && to.Kind == Decimal:
		return to.Precision == 0 ||
			from.Precision > 0 && to.Scale >= from.Scale && to.Precision-to.Scale >= from.Precision-from.Scale
	}
	return false
}

func convert(dst *Vector, to Type, src *Vector, from Type, i int) bool {
	switch to.Kind {
	case JSON:
		if from.Kind == Text {
			return appendParsed(dst, to, src.Bytes(i))
		}
		dst.Data = src.AppendJSON(dst.Data, from, i)
		dst.End()
		return true
	case Text:
		dst.Data = src.AppendText(dst.Data, from, i)
		dst.End()
		return true
	}
	switch from.Kind {
	case Text:
		return appendParsed(dst, to, src.Bytes(i))
	case JSON:
		return convertJSON(dst, to, src.Bytes(i))
	case Bool:
		dst.AppendInt(src.Ints[i])
	case Int:
		return convertInt(dst, to, src.Ints[i])
	case Float:
		return convertFloat(dst, to, src.Floats[i], from.Bits)
	case Decimal:
		if to.Kind == Float {
			return decimalToFloat(dst, to, src.Bytes(i))
		}
		return appendParsed(dst, to, src.Bytes(i))
	case Date, Timestamp, TimestampTZ:
		return convertTime(dst, to, src.Ints[i], from)
	case UUID, Bytes:
		if to.Kind == UUID && len(src.Bytes(i)) != 16 {
			return false
		}
		dst.AppendBytes(src.Bytes(i))
	}
	return true
}

func convertJSON(dst *Vector, to Type, value []byte) bool {
	p, d := Parser{}, scanner{s: value}
	d.blank()
	n := dst.Len()
	if p.member(dst, &Column{Type: to}, &d) != nil {
		dst.Truncate(n)
		return false
	}
	d.blank()
	if d.i < len(value) {
		dst.Truncate(n)
		return false
	}
	return true
}

func convertInt(dst *Vector, to Type, n int64) bool {
	switch to.Kind {
	case Bool, Int:
		if to.Kind == Bool && n>>1 != 0 || to.Kind == Int && !fitsInt(n, to.Bits) {
			return false
		}
		dst.AppendInt(n)
	case Float:
		f := float64(n)
		if to.Bits == 32 {
			f = float64(float32(n))
		}
		if f >= 1<<63 || int64(f) != n {
			return false
		}
		dst.AppendFloat(f)
	case Decimal:
		var buf [20]byte
		return appendParsed(dst, to, strconv.AppendInt(buf[:0], n, 10))
	}
	return true
}

func convertFloat(dst *Vector, to Type, f float64, bits int) bool {
	switch to.Kind {
	case Int:
		if !(f >= -1<<63 && f < 1<<63) || f != math.Trunc(f) || !fitsInt(int64(f), to.Bits) {
			return false
		}
		dst.AppendInt(int64(f))
	case Float: // to fewer bits
		if f == f && float64(float32(f)) != f {
			return false
		}
		dst.AppendFloat(f)
	case Decimal:
		var buf [32]byte
		return appendParsed(dst, to, appendFloat(buf[:0], f, bits))
	}
	return true
}

// decimalToFloat takes a decimal that the float gives back.
func decimalToFloat(dst *Vector, to Type, s []byte) bool {
	f, ok := parseFloat(s, to.Bits)
	if !ok {
		return false
	}
	if isFinite(f) {
		var buf [32]byte
		back, _ := appendDecimal(nil, appendFloat(buf[:0], f, to.Bits), TypeDecimal)
		if !sameNumber(back, s) {
			return false
		}
	}
	dst.AppendFloat(f)
	return true
}

// sameNumber compares the values of two decimals.
func sameNumber(a, b []byte) bool {
	x, ok1 := scanNumber(a)
	y, ok2 := scanNumber(b)
	x, ok3 := x.plain()
	y, ok4 := y.plain()
	if !ok1 || !ok2 || !ok3 || !ok4 || string(x.whole) != string(y.whole) {
		return false
	}
	short, long := x.fraction, y.fraction
	if len(short) > len(long) {
		short, long = long, short
	}
	if string(short) != string(long[:len(short)]) || !isZero(long[len(short):]) {
		return false
	}
	return x.neg == y.neg || len(x.whole) == 0 && isZero(long)
}

func convertTime(dst *Vector, to Type, n int64, from Type) bool {
	switch {
	case n == Infinity || n == MinusInfinity || from.Kind != Date && to.Kind != Date:
	case from.Kind == Date:
		if n > mostDays || n < -mostDays {
			return false
		}
		n *= dayMicros
	default:
		days := floorDiv(n, dayMicros)
		if days*dayMicros != n {
			return false
		}
		n = days
	}
	dst.AppendInt(n)
	return true
}
