package record

import (
	"bytes"
	"math"
	"strconv"
)

// A number is a decimal number taken apart: ±whole.fraction × 10^exp.
type number struct {
	neg             bool
	whole, fraction []byte
	exp             int
}

// The most digits that a number has before and behind its point, as PostgreSQL
// has it. They bound what an exponent can ask for.
const (
	mostWhole    = 131072
	mostFraction = 16383
)

// scanNumber takes 12, -12.50, .5, +1e3 and the like apart.
func scanNumber(s []byte) (n number, ok bool) {
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		n.neg = s[0] == '-'
		s = s[1:]
	}
	n.whole, s = digits(s)
	if len(s) > 0 && s[0] == '.' {
		n.fraction, s = digits(s[1:])
	}
	if len(n.whole)+len(n.fraction) == 0 {
		return n, false
	}
	if len(s) > 0 && (s[0] == 'e' || s[0] == 'E') {
		exp, err := strconv.Atoi(string(s[1:]))
		if err != nil || exp > 1<<20 || exp < -1<<20 {
			return n, false
		}
		n.exp, s = exp, nil
	}
	return n, len(s) == 0
}

// digits cuts s behind the digits that it begins with.
func digits(s []byte) (head, tail []byte) {
	for i, c := range s {
		if c-'0' > 9 {
			return s[:i], s[i:]
		}
	}
	return s, nil
}

// plain returns n with the same value and without exponent, in memory of its own
// if it had one. It fails if that has more digits than a number can have.
func (n number) plain() (number, bool) {
	if n.exp != 0 {
		all := append(append(make([]byte, 0, len(n.whole)+len(n.fraction)), n.whole...), n.fraction...)
		point := len(n.whole) + n.exp
		if lead := len(all) - len(bytes.TrimLeft(all, "0")); lead > 0 {
			all, point = all[lead:], point-lead
		}
		switch {
		case len(all) == 0:
			n.whole, n.fraction = nil, nil
		case point > mostWhole || point < -mostFraction:
			return n, false
		case point <= 0:
			n.whole, n.fraction = nil, append(bytes.Repeat([]byte{'0'}, -point), all...)
		case point >= len(all):
			n.whole, n.fraction = append(all, bytes.Repeat([]byte{'0'}, point-len(all))...), nil
		default:
			n.whole, n.fraction = all[:point], all[point:]
		}
		n.exp = 0
	}
	for len(n.whole) > 0 && n.whole[0] == '0' {
		n.whole = n.whole[1:]
	}
	return n, len(n.whole) <= mostWhole && len(n.fraction) <= mostFraction
}

// isZero reports whether s has zeros alone.
func isZero(s []byte) bool {
	for _, c := range s {
		if c != '0' {
			return false
		}
	}
	return true
}

// appendDecimal appends the number or special value that s is, with the digits
// that t says: those of s if t says none. False if it does not fit exactly.
func appendDecimal(dst, s []byte, t Type) ([]byte, bool) {
	if special := specialNumber(s); special != "" {
		return append(dst, special...), t.Precision == 0 || special == "NaN"
	}
	n, ok := scanNumber(s)
	if !ok {
		return dst, false
	}
	if n, ok = n.plain(); !ok {
		return dst, false
	}
	fraction, pad := n.fraction, 0
	if t.Precision > 0 {
		if len(n.whole) > t.Precision-t.Scale {
			return dst, false
		}
		if len(fraction) > t.Scale {
			if !isZero(fraction[t.Scale:]) {
				return dst, false
			}
			fraction = fraction[:t.Scale]
		}
		pad = t.Scale - len(fraction)
	}
	if n.neg && (len(n.whole) > 0 || !isZero(fraction)) {
		dst = append(dst, '-')
	}
	if len(n.whole) == 0 {
		dst = append(dst, '0')
	}
	dst = append(dst, n.whole...)
	if len(fraction)+pad > 0 {
		dst = append(append(dst, '.'), fraction...)
		for range pad {
			dst = append(dst, '0')
		}
	}
	return dst, true
}

// specialNumber returns the name of the value that is no number, where s is one.
func specialNumber(s []byte) string {
	if len(s) == 0 || s[len(s)-1] != 'N' && s[len(s)-1] != 'y' {
		return ""
	}
	switch string(s) {
	case "NaN":
		return "NaN"
	case "Infinity":
		return "Infinity"
	case "-Infinity":
		return "-Infinity"
	}
	return ""
}

// parseInt reads a whole number, which may be written with a fraction of zeros
// or an exponent, and must fit into so many bits.
func parseInt(s []byte, bits int) (int64, bool) {
	var v uint64
	neg, i := false, 0
	if len(s) > 0 && s[0] == '-' {
		neg, i = true, 1
	}
	if n := len(s) - i; n == 0 || n > 18 {
		return parseOddInt(s, bits)
	}
	for ; i < len(s); i++ {
		c := s[i] - '0'
		if c > 9 {
			return parseOddInt(s, bits)
		}
		v = v*10 + uint64(c)
	}
	n := int64(v)
	if neg {
		n = -n
	}
	return n, fitsInt(n, bits)
}

func parseOddInt(s []byte, bits int) (int64, bool) {
	n, ok := scanNumber(s)
	if !ok {
		return 0, false
	}
	if n, ok = n.plain(); !ok || !isZero(n.fraction) || len(n.whole) > 19 {
		return 0, false
	}
	if len(n.whole) == 0 {
		return 0, true
	}
	var text [20]byte
	buf := text[:0]
	if n.neg {
		buf = append(buf, '-')
	}
	v, err := strconv.ParseInt(string(append(buf, n.whole...)), 10, 64)
	return v, err == nil && fitsInt(v, bits)
}

func fitsInt(n int64, bits int) bool { return bits == 64 || n == n<<(64-bits)>>(64-bits) }

// parseFloat reads a number or a special value: the nearest float that there is.
func parseFloat(s []byte, bits int) (float64, bool) {
	switch specialNumber(s) {
	case "NaN":
		return math.NaN(), true
	case "Infinity":
		return math.Inf(1), true
	case "-Infinity":
		return math.Inf(-1), true
	}
	if bytes.ContainsAny(s, "xX_iIpPnN") { // what strconv takes and is no decimal number
		return 0, false
	}
	f, err := strconv.ParseFloat(string(s), bits)
	return f, err == nil
}

// appendFloat writes the fewest digits that give the float back, in the form
// that PostgreSQL has for it.
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case f != f:
		return append(dst, "NaN"...)
	case f > math.MaxFloat64:
		return append(dst, "Infinity"...)
	case f < -math.MaxFloat64:
		return append(dst, "-Infinity"...)
	}
	form, most := byte('f'), 1e15
	if bits == 32 {
		most = 1e6
	}
	if a := math.Abs(f); a >= most || a < 1e-4 && a != 0 {
		form = 'e'
	}
	return strconv.AppendFloat(dst, f, form, -1, bits)
}

// isFinite reports whether f is a number.
func isFinite(f float64) bool { return f-f == 0 }
