package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"

	"github.com/athena-pipelines/athena/pkg/record"
)

// numericSize reads the precision and the scale out of a typmod.
func numericSize(typmod int32) (precision, scale int, ok bool) {
	if typmod < 4 {
		return 0, 0, false
	}
	n := typmod - 4
	// The scale has 11 bits with a sign (PostgreSQL 15; it is positive before).
	return int(n>>16) & 0xffff, int((n&0x7ff)^1024) - 1024, true
}

// appendNumeric writes the digits of a numeric: a count of groups of four
// decimal digits, the weight of the first group, the sign, the number of digits
// behind the point, and the groups.
func appendNumeric(dst, p []byte) ([]byte, bool) {
	if len(p) < 8 {
		return dst, false
	}
	groups := int(binary.BigEndian.Uint16(p))
	weight := int(int16(binary.BigEndian.Uint16(p[2:])))
	scale := int(binary.BigEndian.Uint16(p[6:]))
	if len(p) != 8+2*groups || scale > maxNumericScale {
		return dst, false
	}
	switch binary.BigEndian.Uint16(p[4:]) {
	case 0x0000:
	case 0x4000:
		dst = append(dst, '-')
	case 0xC000:
		return append(dst, "NaN"...), true
	case 0xD000:
		return append(dst, "Infinity"...), true
	case 0xF000:
		return append(dst, "-Infinity"...), true
	default:
		return dst, false
	}
	p = p[8:]
	group := func(i int) uint16 { // i counts from the first
		if i < 0 || i >= groups {
			return 0
		}
		return binary.BigEndian.Uint16(p[2*i:])
	}
	if weight < 0 {
		dst = append(dst, '0')
	} else {
		dst = strconv.AppendUint(dst, uint64(group(0)), 10)
		for i := 1; i <= weight; i++ {
			dst = appendGroup(dst, group(i))
		}
	}
	if scale == 0 {
		return dst, true
	}
	dst = append(dst, '.')
	end := len(dst) + scale
	for i := weight + 1; len(dst) < end; i++ {
		dst = appendGroup(dst, group(i))
	}
	return dst[:end], true
}

// maxNumericScale is the server's own limit.
const maxNumericScale = 16383

func appendGroup(dst []byte, n uint16) []byte {
	return append(dst, byte('0'+n/1000%10), byte('0'+n/100%10), byte('0'+n/10%10), byte('0'+n%10))
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
