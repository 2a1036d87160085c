package transform

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"strconv"
)

// appendFloatKey makes equal floats equal bytes: of zero there is one, and of what
// is no number.
func appendFloatKey(dst []byte, f float64) []byte {
	if f == 0 {
		f = 0 // not -0
	}
	if f != f {
		f = math.NaN()
	}
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(f))
}

// normal cuts the zeros off that say nothing: equal decimals have equal bytes.
func normal(s []byte) []byte {
	if bytes.IndexByte(s, '.') >= 0 {
		s = bytes.TrimSuffix(bytes.TrimRight(s, "0"), []byte("."))
	}
	return s
}

// special reports whether a decimal is no number: NaN, Infinity, -Infinity.
func special(s []byte) bool {
	return len(s) > 0 && (s[len(s)-1] == 'N' || s[len(s)-1] == 'y')
}

// compareDecimals orders decimals by value; NaN is above all, as in PostgreSQL.
func compareDecimals(a, b []byte) int {
	if special(a) || special(b) {
		return rank(a) - rank(b)
	}
	negA, negB := a[0] == '-', b[0] == '-'
	if negA != negB {
		if isZero(a) && isZero(b) {
			return 0
		}
		if negA {
			return -1
		}
		return 1
	}
	if negA {
		return -compareDigits(a[1:], b[1:])
	}
	return compareDigits(a, b)
}

func rank(s []byte) int {
	switch {
	case !special(s):
		return 0
	case s[0] == '-':
		return -1
	case s[0] == 'I':
		return 1
	}
	return 2
}

func isZero(s []byte) bool { return len(bytes.Trim(s, "-0.")) == 0 }

func compareDigits(a, b []byte) int {
	wholeA, fractionA, _ := bytes.Cut(a, []byte("."))
	wholeB, fractionB, _ := bytes.Cut(b, []byte("."))
	wholeA, wholeB = bytes.TrimLeft(wholeA, "0"), bytes.TrimLeft(wholeB, "0")
	if d := len(wholeA) - len(wholeB); d != 0 {
		return d
	}
	if d := bytes.Compare(wholeA, wholeB); d != 0 {
		return d
	}
	return bytes.Compare(bytes.TrimRight(fractionA, "0"), bytes.TrimRight(fractionB, "0"))
}

// A total adds decimals up exactly.
type total struct {
	sum   big.Int // times 10^scale
	scale int
	// mark is what the sum has become if it is no number any more.
	mark string
}

// add takes a decimal as a column has it.
func (t *total) add(s []byte) {
	if special(s) {
		switch text := string(s); {
		case t.mark == "" || t.mark == text:
			t.mark = text
		default:
			t.mark = "NaN" // with itself, or infinity with its opposite
		}
		return
	}
	var n big.Int
	scale := 0
	if i := bytes.IndexByte(s, '.'); i >= 0 {
		scale = len(s) - i - 1
		s = append(append(make([]byte, 0, len(s)), s[:i]...), s[i+1:]...)
	}
	if v, err := strconv.ParseInt(string(s), 10, 64); err == nil {
		n.SetInt64(v)
	} else if _, ok := n.SetString(string(s), 10); !ok {
		t.mark = "NaN" // no decimal is like that
		return
	}
	if scale < t.scale {
		n.Mul(&n, tenTo(t.scale-scale))
	} else if scale > t.scale {
		t.sum.Mul(&t.sum, tenTo(scale-t.scale))
		t.scale = scale
	}
	t.sum.Add(&t.sum, &n)
}

func tenTo(n int) *big.Int {
	return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil)
}

// append writes the sum.
func (t *total) append(dst []byte) []byte {
	if t.mark != "" {
		return append(dst, t.mark...)
	}
	return appendScaled(dst, &t.sum, t.scale)
}

// moreDigits is how many digits an average has behind those of its values.
const moreDigits = 6

// appendAverage writes the sum divided by n, rounded half away from zero.
func (t *total) appendAverage(dst []byte, n int64) []byte {
	if t.mark != "" {
		return append(dst, t.mark...)
	}
	scaled := new(big.Int).Mul(&t.sum, tenTo(moreDigits))
	divisor := big.NewInt(n)
	quotient, rest := new(big.Int).QuoRem(scaled, divisor, new(big.Int))
	if rest.Abs(rest).Lsh(rest, 1).Cmp(divisor) >= 0 {
		quotient.Add(quotient, big.NewInt(int64(scaled.Sign())))
	}
	return appendScaled(dst, quotient, t.scale+moreDigits)
}

func appendScaled(dst []byte, n *big.Int, scale int) []byte {
	digits := new(big.Int).Abs(n).Append(nil, 10)
	if n.Sign() < 0 {
		dst = append(dst, '-')
	}
	if scale == 0 {
		return append(dst, digits...)
	}
	if len(digits) <= scale {
		digits = append(bytes.Repeat([]byte{'0'}, scale+1-len(digits)), digits...)
	}
	dst = append(dst, digits[:len(digits)-scale]...)
	return append(append(dst, '.'), digits[len(digits)-scale:]...)
}
