package format

import (
	"encoding/binary"
	"math/bits"
)

// An int128 is a number in two's complement.
type int128 struct {
	hi int64
	lo uint64
}

// unscaled reads a decimal of so many digits behind its point as the whole number
// of its smallest unit. False for what is no number, and for one of other digits,
// or of more than precision.
func unscaled(s []byte, precision, scale int) (n int128, ok bool) {
	neg := len(s) > 0 && s[0] == '-'
	if neg {
		s = s[1:]
	}
	whole := len(s)
	if scale > 0 {
		if whole = len(s) - scale - 1; whole < 1 || s[whole] != '.' {
			return n, false
		}
	}
	if whole == 0 || precision < len(s)-min(scale, 1) && s[0] != '0' || len(s) > 40 {
		return n, false
	}
	var hi, lo uint64
	for i, c := range s {
		if i == whole {
			continue
		}
		d := uint64(c - '0')
		if d > 9 {
			return n, false
		}
		var carry uint64
		if hi == 0 && lo < 1<<60 {
			lo = lo*10 + d
			continue
		}
		h, l := bits.Mul64(lo, 10)
		lo, carry = bits.Add64(l, d, 0)
		hi = hi*10 + h + carry
	}
	n = int128{int64(hi), lo}
	if neg {
		n = n.negated()
	}
	return n, true
}

func (n int128) negated() int128 {
	lo, borrow := bits.Sub64(0, n.lo, 0)
	hi, _ := bits.Sub64(0, uint64(n.hi), borrow)
	return int128{int64(hi), lo}
}

// appendBytes appends the last so many bytes of n, big-endian.
func (n int128) appendBytes(dst []byte, size int) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(n.hi))
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return append(dst, b[16-size:]...)
}

// int128Of reads bytes in two's complement, big-endian; false if they are more
// than fit.
func int128Of(s []byte) (n int128, ok bool) {
	for len(s) > 16 && (s[0] == 0 && s[1] < 0x80 || s[0] == 0xFF && s[1] >= 0x80) {
		s = s[1:]
	}
	if len(s) > 16 {
		return n, false
	}
	var b [16]byte
	if len(s) > 0 && s[0] >= 0x80 {
		for i := range b {
			b[i] = 0xFF
		}
	}
	copy(b[16-len(s):], s)
	return int128{int64(binary.BigEndian.Uint64(b[:8])), binary.BigEndian.Uint64(b[8:])}, true
}

// appendDecimal writes n with its last scale digits behind the point.
func (n int128) appendDecimal(dst []byte, scale int) []byte {
	var buf [64]byte
	i := len(buf)
	neg := n.hi < 0
	if neg {
		n = n.negated()
	}
	hi, lo := uint64(n.hi), n.lo
	for digits := 0; hi != 0 || lo != 0 || digits <= scale; digits++ {
		if digits == scale && scale > 0 {
			i--
			buf[i] = '.'
		}
		var r uint64
		hi, r = hi/10, hi%10
		lo, r = bits.Div64(r, lo, 10)
		i--
		buf[i] = byte('0' + r)
	}
	if neg {
		i--
		buf[i] = '-'
	}
	return append(dst, buf[i:]...)
}

// decimalBytes is how many bytes a decimal of so many digits takes.
func decimalBytes(precision int) int {
	most := int128{lo: 127}
	for size := 1; ; size++ {
		if decimalDigits(most) > precision || size == 16 {
			return size
		}
		most = int128{most.hi<<8 | int64(most.lo>>56), most.lo<<8 | 0xFF}
	}
}

func decimalDigits(n int128) int { return len(n.appendDecimal(nil, 0)) }
