package scylla

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// appendValue appends the JSON form of one value in CQL's wire form; nil is null.
// It is the one place where CQL becomes JSON, and docs/types.md describes it. The
// result has no line breaks. Data that are not of the type are an error.
func appendValue(dst []byte, t gocql.TypeInfo, data []byte) ([]byte, error) {
	if data == nil {
		return append(dst, "null"...), nil
	}
	switch kind := t.Type(); kind {
	case gocql.TypeVarchar, gocql.TypeText, gocql.TypeAscii:
		return cdc.AppendString(dst, data), nil
	case gocql.TypeBlob:
		return appendBase64(dst, data), nil
	case gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeTuple, gocql.TypeUDT:
		return appendNested(dst, t, data)
	case gocql.TypeCustom:
		if v, ok := t.(gocql.VectorType); ok {
			return appendVector(dst, v, data)
		}
		return appendBase64(dst, data), nil
	default:
		if len(data) == 0 { // what old Thrift clients could write in place of a number
			return append(dst, "null"...), nil
		}
		return appendScalar(dst, kind, data)
	}
}

// sizes are those of the types that have one.
var sizes = map[gocql.Type]int{
	gocql.TypeBoolean: 1, gocql.TypeTinyInt: 1, gocql.TypeSmallInt: 2, gocql.TypeInt: 4, gocql.TypeBigInt: 8,
	gocql.TypeCounter: 8, gocql.TypeFloat: 4, gocql.TypeDouble: 8, gocql.TypeTimestamp: 8, gocql.TypeDate: 4,
	gocql.TypeTime: 8, gocql.TypeUUID: 16, gocql.TypeTimeUUID: 16,
}

func appendScalar(dst []byte, kind gocql.Type, data []byte) ([]byte, error) {
	if size, fixed := sizes[kind]; fixed && size != len(data) {
		return dst, fmt.Errorf("scylla: a %s has %d bytes, not %d", kind, len(data), size)
	}
	switch kind {
	case gocql.TypeBoolean:
		return strconv.AppendBool(dst, data[0] != 0), nil
	case gocql.TypeTinyInt:
		return strconv.AppendInt(dst, int64(int8(data[0])), 10), nil
	case gocql.TypeSmallInt:
		return strconv.AppendInt(dst, int64(int16(binary.BigEndian.Uint16(data))), 10), nil
	case gocql.TypeInt:
		return strconv.AppendInt(dst, int64(int32(binary.BigEndian.Uint32(data))), 10), nil
	case gocql.TypeBigInt, gocql.TypeCounter:
		return strconv.AppendInt(dst, int64(binary.BigEndian.Uint64(data)), 10), nil
	case gocql.TypeFloat:
		return appendFloat(dst, float64(math.Float32frombits(binary.BigEndian.Uint32(data))), 32), nil
	case gocql.TypeDouble:
		return appendFloat(dst, math.Float64frombits(binary.BigEndian.Uint64(data)), 64), nil
	case gocql.TypeVarint:
		return append(appendVarint(append(dst, '"'), data), '"'), nil
	case gocql.TypeDecimal:
		return appendDecimal(dst, data)
	case gocql.TypeUUID, gocql.TypeTimeUUID:
		return append(appendUUID(append(dst, '"'), data), '"'), nil
	case gocql.TypeInet:
		addr, ok := netip.AddrFromSlice(data)
		if !ok {
			return dst, fmt.Errorf("scylla: an inet has %d bytes", len(data))
		}
		return append(addr.AppendTo(append(dst, '"')), '"'), nil
	case gocql.TypeTimestamp:
		ms := int64(binary.BigEndian.Uint64(data))
		return append(appendTimestamp(append(dst, '"'), time.UnixMilli(ms).UTC()), '"'), nil
	case gocql.TypeDate:
		days := int64(binary.BigEndian.Uint32(data)) - 1<<31
		return append(appendDate(append(dst, '"'), time.Unix(days*86400, 0).UTC()), '"'), nil
	case gocql.TypeTime:
		ns := int64(binary.BigEndian.Uint64(data))
		if ns < 0 || ns >= dayNanos {
			return dst, fmt.Errorf("scylla: a time is %d ns after midnight", ns)
		}
		return append(appendClock(append(dst, '"'), ns), '"'), nil
	case gocql.TypeDuration:
		return appendDuration(dst, data)
	}
	return dst, fmt.Errorf("scylla: the type %#x of the wire is unknown", int(kind))
}

// appendFloat writes the fewest digits that give the same value back. NaN and the
// infinities are no JSON numbers and become strings.
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(dst, `"-Infinity"`...)
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, bits)
}

func appendBase64(dst, data []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(dst, '"'), data), '"')
}

func appendVarint(dst, data []byte) []byte {
	if len(data) <= 8 {
		return strconv.AppendInt(dst, smallInt(data), 10)
	}
	return bigInt(data).Append(dst, 10)
}

// smallInt reads up to eight bytes in two's complement.
func smallInt(data []byte) int64 {
	var n int64
	if len(data) > 0 && data[0]&0x80 != 0 {
		n = -1
	}
	for _, b := range data {
		n = n<<8 | int64(b)
	}
	return n
}

func bigInt(data []byte) *big.Int {
	n := new(big.Int).SetBytes(data)
	if len(data) > 0 && data[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(len(data))*8))
	}
	return n
}

// mostScale is up to which scale decimals are written without an exponent.
const mostScale = 1000

// appendDecimal keeps every digit, and the scale: 19.90, and 5E3 where the scale
// is below zero or very large.
func appendDecimal(dst, data []byte) ([]byte, error) {
	if len(data) < 5 {
		return dst, fmt.Errorf("scylla: a decimal has %d bytes", len(data))
	}
	scale := int(int32(binary.BigEndian.Uint32(data)))
	dst = append(dst, '"')
	start := len(dst)
	dst = appendVarint(dst, data[4:])
	switch {
	case scale == 0:
	case scale < 0 || scale > mostScale:
		dst = strconv.AppendInt(append(dst, 'E'), -int64(scale), 10)
	default:
		if dst[start] == '-' {
			start++
		}
		for len(dst)-start <= scale { // 5 at the scale 3 is 0.005
			dst = slices.Insert(dst, start, '0')
		}
		dst = slices.Insert(dst, len(dst)-scale, '.')
	}
	return append(dst, '"'), nil
}

func appendUUID(dst, data []byte) []byte {
	const hex = "0123456789abcdef"
	for i, b := range data {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = append(dst, hex[b>>4], hex[b&15])
	}
	return dst
}

// appendDate writes years that RFC 3339 has no form for in the expanded form of
// ISO 8601: a sign and at least six digits.
func appendDate(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	switch {
	case year < 0:
		dst = appendPadded(append(dst, '-'), int64(-year), 6)
	case year > 9999:
		dst = appendPadded(append(dst, '+'), int64(year), 6)
	default:
		dst = appendPadded(dst, int64(year), 4)
	}
	dst = appendPadded(append(dst, '-'), int64(month), 2)
	return appendPadded(append(dst, '-'), int64(day), 2)
}

// appendTimestamp writes microseconds, as everywhere in Athena.
func appendTimestamp(dst []byte, t time.Time) []byte {
	dst = append(appendDate(dst, t), 'T')
	dst = appendPadded(dst, int64(t.Hour()), 2)
	dst = appendPadded(append(dst, ':'), int64(t.Minute()), 2)
	dst = appendPadded(append(dst, ':'), int64(t.Second()), 2)
	dst = appendPadded(append(dst, '.'), int64(t.Nanosecond()/1000), 6)
	return append(dst, 'Z')
}

const dayNanos = 86400e9

// appendClock writes nanoseconds since midnight, with as many digits as they
// need.
func appendClock(dst []byte, ns int64) []byte {
	s := ns / 1e9
	dst = appendPadded(dst, s/3600, 2)
	dst = appendPadded(append(dst, ':'), s/60%60, 2)
	dst = appendPadded(append(dst, ':'), s%60, 2)
	return appendFraction(dst, ns%1e9)
}

func appendFraction(dst []byte, ns int64) []byte {
	if ns == 0 {
		return dst
	}
	dst = appendPadded(append(dst, '.'), ns, 9)
	for dst[len(dst)-1] == '0' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

func appendPadded(dst []byte, n int64, width int) []byte {
	var buf [20]byte
	i := len(buf)
	for ; n > 0 || width > 0; n, width = n/10, width-1 {
		i--
		buf[i] = byte('0' + n%10)
	}
	return append(dst, buf[i:]...)
}

// appendDuration writes months, days and nanoseconds as an ISO 8601 duration,
// with the sign at each number as PostgreSQL writes its intervals.
func appendDuration(dst, data []byte) ([]byte, error) {
	var part [3]int64
	for i := range part {
		n, rest, ok := readVint(data)
		if !ok {
			return dst, fmt.Errorf("scylla: a duration ends early")
		}
		part[i], data = n, rest
	}
	if len(data) > 0 {
		return dst, fmt.Errorf("scylla: a duration has %d bytes too many", len(data))
	}
	months, days, ns := part[0], part[1], part[2]
	dst = append(dst, '"', 'P')
	number := func(n int64, unit byte) {
		if n != 0 {
			dst = append(strconv.AppendInt(dst, n, 10), unit)
		}
	}
	number(months/12, 'Y')
	number(months%12, 'M')
	number(days, 'D')
	if ns != 0 || months == 0 && days == 0 {
		dst = append(dst, 'T')
		number(ns/3600e9, 'H')
		number(ns/60e9%60, 'M')
		if s := ns % 60e9; s != 0 || ns == 0 {
			if s < 0 {
				dst, s = append(dst, '-'), -s
			}
			dst = strconv.AppendInt(dst, s/1e9, 10)
			dst = append(appendFraction(dst, s%1e9), 'S')
		}
	}
	return append(dst, '"'), nil
}

// readUvint reads a number whose first byte tells, by its leading ones, how many
// follow.
func readUvint(data []byte) (n uint64, rest []byte, ok bool) {
	if len(data) == 0 {
		return 0, nil, false
	}
	more := 0
	for b := data[0]; b&0x80 != 0; b <<= 1 {
		more++
	}
	if len(data) <= more {
		return 0, nil, false
	}
	if more < 8 {
		n = uint64(data[0]) & (0xff >> more)
	}
	for _, b := range data[1 : 1+more] {
		n = n<<8 | uint64(b)
	}
	return n, data[1+more:], true
}

// readVint reads a number with its sign in the lowest bit.
func readVint(data []byte) (n int64, rest []byte, ok bool) {
	u, rest, ok := readUvint(data)
	return int64(u>>1) ^ -int64(u&1), rest, ok
}

var errShort = fmt.Errorf("scylla: a value ends early")

// cutValue takes a value off that has its length before it; nil is null.
func cutValue(data []byte) (value, rest []byte, err error) {
	if len(data) < 4 {
		return nil, nil, errShort
	}
	n := int(int32(binary.BigEndian.Uint32(data)))
	data = data[4:]
	if n < 0 {
		return nil, data, nil
	}
	if n > len(data) {
		return nil, nil, errShort
	}
	return data[:n:n], data[n:], nil
}

// appendNested writes what has values within.
func appendNested(dst []byte, t gocql.TypeInfo, data []byte) ([]byte, error) {
	switch t := t.(type) {
	case gocql.CollectionType:
		return appendCollection(dst, t, data)
	case gocql.TupleTypeInfo:
		return appendTuple(dst, t, data)
	case gocql.UDTTypeInfo:
		return appendUDT(dst, t, data)
	}
	return dst, fmt.Errorf("scylla: a %s of no known parts", t.Type())
}

func appendCollection(dst []byte, t gocql.CollectionType, data []byte) ([]byte, error) {
	if len(data) < 4 {
		return dst, errShort
	}
	n := int(int32(binary.BigEndian.Uint32(data)))
	data = data[4:]
	if t.Type() == gocql.TypeMap {
		return appendMap(dst, t, data, n)
	}
	dst = append(dst, '[')
	for i := range n {
		value, rest, err := cutValue(data)
		if err != nil {
			return dst, err
		}
		if data = rest; i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = appendValue(dst, t.Elem, value); err != nil {
			return dst, err
		}
	}
	if len(data) > 0 {
		return dst, trailing(t, data)
	}
	return append(dst, ']'), nil
}

// appendMap writes an object. A key whose JSON form is a string is that string;
// of any other it is the JSON text.
func appendMap(dst []byte, t gocql.CollectionType, data []byte, n int) ([]byte, error) {
	dst = append(dst, '{')
	for i := range n {
		key, rest, err := cutValue(data)
		if err != nil {
			return dst, err
		}
		value, rest, err := cutValue(rest)
		if err != nil {
			return dst, err
		}
		if data = rest; i > 0 {
			dst = append(dst, ',')
		}
		start := len(dst)
		if dst, err = appendValue(dst, t.Key, key); err != nil {
			return dst, err
		}
		if dst[start] != '"' {
			text := append([]byte(nil), dst[start:]...)
			dst = cdc.AppendString(dst[:start], text)
		}
		if dst, err = appendValue(append(dst, ':'), t.Elem, value); err != nil {
			return dst, err
		}
	}
	if len(data) > 0 {
		return dst, trailing(t, data)
	}
	return append(dst, '}'), nil
}

// appendTuple writes an array with all of the type's elements: those that the
// value ends before are null.
func appendTuple(dst []byte, t gocql.TupleTypeInfo, data []byte) (_ []byte, err error) {
	dst = append(dst, '[')
	for i, elem := range t.Elems {
		var value []byte
		if len(data) > 0 {
			if value, data, err = cutValue(data); err != nil {
				return dst, err
			}
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = appendValue(dst, elem, value); err != nil {
			return dst, err
		}
	}
	if len(data) > 0 {
		return dst, trailing(t, data)
	}
	return append(dst, ']'), nil
}

// appendUDT writes an object with all of the type's fields, in order. Fields that
// the type got later are null.
func appendUDT(dst []byte, t gocql.UDTTypeInfo, data []byte) (_ []byte, err error) {
	dst = append(dst, '{')
	for i, field := range t.Elements {
		var value []byte
		if len(data) > 0 {
			if value, data, err = cutValue(data); err != nil {
				return dst, err
			}
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(cdc.AppendString(dst, field.Name), ':')
		if dst, err = appendValue(dst, field.Type, value); err != nil {
			return dst, err
		}
	}
	// A node may know of fields that were added since the type was told.
	return append(dst, '}'), nil
}

func appendVector(dst []byte, t gocql.VectorType, data []byte) ([]byte, error) {
	size := vectorSize(t.SubType)
	dst = append(dst, '[')
	for i := range t.Dimensions {
		n := size
		if size < 0 {
			u, rest, ok := readUvint(data)
			if !ok || u > uint64(len(rest)) {
				return dst, errShort
			}
			n, data = int(u), rest
		}
		if n > len(data) {
			return dst, errShort
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendValue(dst, t.SubType, data[:n:n]); err != nil {
			return dst, err
		}
		data = data[n:]
	}
	if len(data) > 0 {
		return dst, trailing(t, data)
	}
	return append(dst, ']'), nil
}

// vectorSize is how many bytes an element of a vector has; -1 where its length
// stands before it, which is so for some types that have a size too.
func vectorSize(t gocql.TypeInfo) int {
	switch kind := t.Type(); kind {
	case gocql.TypeBoolean, gocql.TypeInt, gocql.TypeFloat, gocql.TypeBigInt, gocql.TypeDouble,
		gocql.TypeTimestamp, gocql.TypeUUID, gocql.TypeTimeUUID:
		return sizes[kind]
	case gocql.TypeCustom:
		if v, ok := t.(gocql.VectorType); ok {
			if n := vectorSize(v.SubType); n >= 0 {
				return n * v.Dimensions
			}
		}
	}
	return -1
}

func trailing(t gocql.TypeInfo, data []byte) error {
	return fmt.Errorf("scylla: a %s has %d bytes too many", typeName(t), len(data))
}
