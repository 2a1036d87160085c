package record

import "slices"

// A Vector holds the values of one column. Where its values are is a matter of
// its Kind; the other slices stay empty. A null has a zero value in its place.
//
// Code that is on the hot road reads and appends to the slices directly, all of
// equal length, and keeps to what the methods do.
type Vector struct {
	Kind   Kind
	Ints   []int64
	Floats []float64
	// Ends has the end of each value in Data; it begins where the one before
	// ends.
	Ends []uint32
	Data []byte

	nulls  bitmap
	absent bitmap
}

// Len is the number of values.
func (v *Vector) Len() int {
	switch v.Kind {
	case Float:
		return len(v.Floats)
	case Decimal, Text, Bytes, UUID, JSON:
		return len(v.Ends)
	}
	return len(v.Ints)
}

// Null reports whether value i is null.
func (v *Vector) Null(i int) bool { return v.nulls.has(i) }

// Nulls reports whether any value is.
func (v *Vector) Nulls() bool { return v.nulls != nil }

// Absent reports whether value i is not known: the source did not give it, as it
// did not change. Absent values are null as well.
func (v *Vector) Absent(i int) bool { return v.absent.has(i) }

// Absents reports whether any value is absent.
func (v *Vector) Absents() bool { return v.absent != nil }

// Bytes returns value i of a kind that is kept in Data. It is valid until the
// vector is changed.
func (v *Vector) Bytes(i int) []byte {
	var from uint32
	if i > 0 {
		from = v.Ends[i-1]
	}
	return v.Data[from:v.Ends[i]:v.Ends[i]]
}

// AppendInt appends to a kind that is kept in Ints.
func (v *Vector) AppendInt(n int64) { v.Ints = append(v.Ints, n) }

// AppendBool appends to a Bool.
func (v *Vector) AppendBool(b bool) {
	var n int64
	if b {
		n = 1
	}
	v.Ints = append(v.Ints, n)
}

// AppendFloat appends to a Float.
func (v *Vector) AppendFloat(f float64) { v.Floats = append(v.Floats, f) }

// AppendBytes appends to a kind that is kept in Data.
func (v *Vector) AppendBytes(b []byte) {
	v.Data = append(v.Data, b...)
	v.Ends = append(v.Ends, uint32(len(v.Data)))
}

// AppendString is AppendBytes.
func (v *Vector) AppendString(s string) {
	v.Data = append(v.Data, s...)
	v.Ends = append(v.Ends, uint32(len(v.Data)))
}

// End ends a value whose bytes were appended to Data directly.
func (v *Vector) End() { v.Ends = append(v.Ends, uint32(len(v.Data))) }

// AppendNull appends a null.
func (v *Vector) AppendNull() {
	v.nulls.set(v.Len())
	v.appendZero()
}

// AppendAbsent appends a value that is not known.
func (v *Vector) AppendAbsent() {
	v.absent.set(v.Len())
	v.AppendNull()
}

func (v *Vector) appendZero() {
	switch v.Kind {
	case Float:
		v.Floats = append(v.Floats, 0)
	case Decimal, Text, Bytes, UUID, JSON:
		v.End()
	default:
		v.Ints = append(v.Ints, 0)
	}
}

// AppendFrom appends value i of a vector of the same kind.
func (v *Vector) AppendFrom(o *Vector, i int) {
	switch {
	case o.Absent(i):
		v.AppendAbsent()
	case o.Null(i):
		v.AppendNull()
	case v.Kind == Float:
		v.Floats = append(v.Floats, o.Floats[i])
	case len(o.Ends) > 0:
		v.AppendBytes(o.Bytes(i))
	default:
		v.Ints = append(v.Ints, o.Ints[i])
	}
}

// Truncate drops all values from n on.
func (v *Vector) Truncate(n int) {
	if n >= v.Len() {
		return
	}
	switch v.Kind {
	case Float:
		v.Floats = v.Floats[:n]
	case Decimal, Text, Bytes, UUID, JSON:
		v.Ends = v.Ends[:n]
		end := uint32(0)
		if n > 0 {
			end = v.Ends[n-1]
		}
		v.Data = v.Data[:end]
	default:
		v.Ints = v.Ints[:n]
	}
	v.nulls = v.nulls.truncate(n)
	v.absent = v.absent.truncate(n)
}

// Reset empties the vector and keeps its memory.
func (v *Vector) Reset() {
	v.Ints, v.Floats, v.Ends, v.Data = v.Ints[:0], v.Floats[:0], v.Ends[:0], v.Data[:0]
	v.nulls, v.absent = nil, nil
}

// Size is the number of bytes that the values take.
func (v *Vector) Size() int { return 8*len(v.Ints) + 8*len(v.Floats) + 4*len(v.Ends) + len(v.Data) }

// A bitmap marks values; nil marks none. Bits past its end are not set.
type bitmap []uint64

func (b bitmap) has(i int) bool { return i>>6 < len(b) && b[i>>6]&(1<<(i&63)) != 0 }

func (b *bitmap) set(i int) {
	for len(*b) <= i>>6 {
		*b = append(*b, 0)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

func (b bitmap) truncate(n int) bitmap {
	b = b[:min(len(b), (n+63)>>6)]
	if n&63 != 0 && len(b) == n>>6+1 {
		b[n>>6] &= 1<<(n&63) - 1
	}
	if !slices.ContainsFunc(b, func(w uint64) bool { return w != 0 }) {
		return nil
	}
	return b
}
