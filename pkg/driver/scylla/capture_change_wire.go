package scylla

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/gocql/gocql"
	"gopkg.in/inf.v0"
)

// scylla-cdc-go hands values over as Go values: pointers, nil where the log has
// null; slices and maps. They are made wire values again, so that appendValue
// gives them the form that they have in a query.

// isNull reports whether the log has null. An empty frozen list or set looks the
// same; see unclear.
func isNull(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case wireValue:
		return v == nil
	case *int:
		return v == nil
	case *int64:
		return v == nil
	case *string:
		return v == nil
	case *bool:
		return v == nil
	case *time.Time:
		return v == nil
	case *gocql.UUID:
		return v == nil
	case *float64:
		return v == nil
	case []byte:
		return v == nil
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return rv.IsNil()
	}
	return false
}

// isTrue reads a cdc$deleted_ column.
func isTrue(v any) bool {
	switch v := v.(type) {
	case *bool:
		return v != nil && *v
	case wireValue:
		return len(v) == 1 && v[0] != 0
	}
	return false
}

// appendElement appends a value with its length before it; -1 is null.
func appendElement(dst []byte, t gocql.TypeInfo, v any) ([]byte, error) {
	if isNull(v) {
		return append(dst, 0xff, 0xff, 0xff, 0xff), nil
	}
	return appendInner(dst, t, v)
}

// appendInner is appendElement where there are no nulls.
func appendInner(dst []byte, t gocql.TypeInfo, v any) ([]byte, error) {
	from := len(dst)
	dst, err := appendWire(append(dst, 0, 0, 0, 0), t, v)
	if err != nil {
		return dst, err
	}
	binary.BigEndian.PutUint32(dst[from:], uint32(len(dst)-from-4))
	return dst, nil
}

// appendWire appends a value that is not null.
func appendWire(dst []byte, t gocql.TypeInfo, v any) ([]byte, error) {
	switch v := v.(type) {
	case wireValue:
		return append(dst, v...), nil
	case *int:
		if t.Type() == gocql.TypeInt {
			return binary.BigEndian.AppendUint32(dst, uint32(*v)), nil
		}
	case *int64:
		if t.Type() == gocql.TypeBigInt {
			return binary.BigEndian.AppendUint64(dst, uint64(*v)), nil
		}
	case *float64:
		return binary.BigEndian.AppendUint64(dst, math.Float64bits(*v)), nil
	case *gocql.UUID:
		return append(dst, v[:]...), nil
	case *string:
		return appendTextWire(dst, t, *v)
	case string:
		return appendTextWire(dst, t, v)
	case []byte:
		return append(dst, v...), nil
	case *time.Time:
		return appendTimeWire(dst, t, *v)
	case time.Time:
		return appendTimeWire(dst, t, v)
	case **inf.Dec:
		return appendDecimalWire(dst, t, *v)
	case *inf.Dec:
		return appendDecimalWire(dst, t, v)
	case nil:
		return dst, fmt.Errorf("scylla: a %s has no value", typeName(t))
	}
	switch t := t.(type) {
	case gocql.CollectionType:
		return appendCollectionWire(dst, t, reflect.ValueOf(v))
	case gocql.TupleTypeInfo:
		elements, ok := v.([]any)
		if !ok || len(elements) > len(t.Elems) {
			return dst, unfit(t, v)
		}
		for i, e := range elements {
			var err error
			if dst, err = appendElement(dst, t.Elems[i], e); err != nil {
				return dst, err
			}
		}
		return dst, nil
	case gocql.UDTTypeInfo:
		fields, ok := v.(map[string]any)
		if !ok {
			return dst, unfit(t, v)
		}
		for _, f := range t.Elements {
			var err error
			if dst, err = appendElement(dst, f.Type, fields[f.Name]); err != nil {
				return dst, err
			}
		}
		return dst, nil
	case gocql.VectorType:
		return appendVectorWire(dst, t, reflect.Indirect(reflect.ValueOf(v)))
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && rv.IsNil() {
		return dst, unfit(t, v)
	}
	data, err := gocql.Marshal(t, v)
	return append(dst, data...), err
}

func unfit(t gocql.TypeInfo, v any) error {
	return fmt.Errorf("scylla: a %s is no %T", typeName(t), v)
}

// appendTextWire writes what scylla-cdc-go has as a string.
func appendTextWire(dst []byte, t gocql.TypeInfo, s string) ([]byte, error) {
	if t.Type() != gocql.TypeInet || s == "" {
		return append(dst, s...), nil
	}
	addr, err := netip.ParseAddr(s)
	return append(dst, addr.AsSlice()...), err
}

// appendTimeWire does not go by gocql, which writes nothing for the first
// instant of the year 1. What has no bytes is that instant for scylla-cdc-go.
func appendTimeWire(dst []byte, t gocql.TypeInfo, v time.Time) ([]byte, error) {
	if t.Type() == gocql.TypeDate {
		return binary.BigEndian.AppendUint32(dst, uint32(v.Unix()/86400+1<<31)), nil
	}
	return binary.BigEndian.AppendUint64(dst, uint64(v.UnixMilli())), nil
}

// appendDecimalWire keeps the scale of what is 0, which gocql does not.
func appendDecimalWire(dst []byte, t gocql.TypeInfo, v *inf.Dec) ([]byte, error) {
	if v == nil {
		return dst, unfit(t, v)
	}
	return appendTwos(binary.BigEndian.AppendUint32(dst, uint32(v.Scale())), v.UnscaledBig()), nil
}

func appendCollectionWire(dst []byte, t gocql.CollectionType, rv reflect.Value) (_ []byte, err error) {
	if t.Type() == gocql.TypeMap {
		return appendMapWire(dst, t, rv)
	}
	if rv.Kind() != reflect.Slice {
		return dst, fmt.Errorf("scylla: a %s is no %s", typeName(t), rv.Type())
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(rv.Len()))
	for i := range rv.Len() {
		if dst, err = appendInner(dst, t.Elem, rv.Index(i).Interface()); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// appendMapWire writes entries in the order of their keys, which a Go map lost.
func appendMapWire(dst []byte, t gocql.CollectionType, rv reflect.Value) (_ []byte, err error) {
	if rv.Kind() != reflect.Map {
		return dst, fmt.Errorf("scylla: a %s is no %s", typeName(t), rv.Type())
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(rv.Len()))
	type entry struct {
		key   []byte
		value any
	}
	entries := make([]entry, 0, rv.Len())
	for i := rv.MapRange(); i.Next(); {
		key, err := appendWire(nil, t.Key, i.Key().Interface())
		if err != nil {
			return dst, err
		}
		entries = append(entries, entry{key, i.Value().Interface()})
	}
	slices.SortFunc(entries, func(a, b entry) int { return compareWire(t.Key, a.key, b.key) })
	for _, e := range entries {
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(e.key))), e.key...)
		if dst, err = appendInner(dst, t.Elem, e.value); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func appendVectorWire(dst []byte, t gocql.VectorType, rv reflect.Value) (_ []byte, err error) {
	if rv.Kind() != reflect.Slice {
		return dst, fmt.Errorf("scylla: a %s is no %s", typeName(t), rv.Type())
	}
	for i := range rv.Len() {
		element, err := appendWire(nil, t.SubType, rv.Index(i).Interface())
		if err != nil {
			return dst, err
		}
		if vectorSize(t.SubType) < 0 {
			dst = appendUvint(dst, uint64(len(element)))
		}
		dst = append(dst, element...)
	}
	return dst, nil
}

// readElements reads the elements of a list or set, or keys and values in turn of
// a map.
func readElements(data []byte) (elements [][]byte, err error) {
	if len(data) < 4 {
		return nil, errShort
	}
	for data = data[4:]; len(data) > 0; {
		var e []byte
		if e, data, err = cutValue(data); err != nil {
			return nil, err
		}
		elements = append(elements, e)
	}
	return elements, nil
}

// A listElement is one element of an unfrozen list, which has a timeuuid of its
// own; they stand in the order of these.
type listElement struct{ key, value []byte }

func listElements(t gocql.TypeInfo, v any) ([]listElement, error) {
	data, err := appendWire(nil, t, v)
	if err != nil {
		return nil, err
	}
	both, err := readElements(data)
	if err != nil || len(both)%2 != 0 {
		return nil, cmp.Or(err, errShort)
	}
	elements := make([]listElement, 0, len(both)/2)
	for pair := range slices.Chunk(both, 2) {
		elements = append(elements, listElement{pair[0], pair[1]})
	}
	return elements, nil
}

// udtFields reads the fields of a user-defined type; nil is null.
func udtFields(t gocql.TypeInfo, v any) ([][]byte, error) {
	data, err := appendWire(nil, t, v)
	if err != nil {
		return nil, err
	}
	fields := make([][]byte, len(t.(gocql.UDTTypeInfo).Elements))
	for i := 0; i < len(fields) && len(data) > 0; i++ {
		if fields[i], data, err = cutValue(data); err != nil {
			return nil, err
		}
	}
	return fields, nil
}

// compareWire orders two values as the keys of a map are.
func compareWire(t gocql.TypeInfo, a, b []byte) int {
	if fixed, ok := sizes[t.Type()]; ok && (len(a) != fixed || len(b) != fixed) {
		return bytes.Compare(a, b)
	}
	switch t.Type() {
	case gocql.TypeTinyInt, gocql.TypeSmallInt, gocql.TypeInt, gocql.TypeBigInt, gocql.TypeTimestamp, gocql.TypeTime:
		return cmp.Compare(smallInt(a), smallInt(b))
	case gocql.TypeFloat:
		return compareFloats(float64(math.Float32frombits(binary.BigEndian.Uint32(a))), float64(math.Float32frombits(binary.BigEndian.Uint32(b))))
	case gocql.TypeDouble:
		return compareFloats(math.Float64frombits(binary.BigEndian.Uint64(a)), math.Float64frombits(binary.BigEndian.Uint64(b)))
	case gocql.TypeVarint:
		return bigInt(a).Cmp(bigInt(b))
	case gocql.TypeDecimal:
		if len(a) < 4 || len(b) < 4 {
			return bytes.Compare(a, b)
		}
		return compareDecimals(decimalOf(a), decimalOf(b))
	case gocql.TypeTimeUUID:
		return compareTimeUUID(a, b)
	case gocql.TypeUUID:
		if v := cmp.Compare(a[6]>>4, b[6]>>4); v != 0 {
			return v
		}
		if a[6]>>4 == 1 {
			return cmp.Or(cmp.Compare(timeOf(a), timeOf(b)), bytes.Compare(a[8:], b[8:]))
		}
		return bytes.Compare(a, b)
	case gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeTuple, gocql.TypeUDT:
		return compareNested(t, a, b)
	case gocql.TypeCustom:
		if v, ok := t.(gocql.VectorType); ok && vectorSize(v.SubType) > 0 {
			for n := vectorSize(v.SubType); len(a) >= n && len(b) >= n; a, b = a[n:], b[n:] {
				if c := compareWire(v.SubType, a[:n], b[:n]); c != 0 {
					return c
				}
			}
			return cmp.Compare(len(a), len(b))
		}
	}
	return bytes.Compare(a, b)
}

// compareFloats has -0 before 0, and NaN last.
func compareFloats(a, b float64) int {
	switch {
	case math.IsNaN(a) || math.IsNaN(b):
		return cmp.Compare(b2i(math.IsNaN(a)), b2i(math.IsNaN(b)))
	case a == 0 && b == 0:
		return cmp.Compare(b2i(math.Signbit(b)), b2i(math.Signbit(a)))
	}
	return cmp.Compare(a, b)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func decimalOf(data []byte) *inf.Dec {
	return inf.NewDecBig(new(big.Int).Set(bigInt(data[4:])), inf.Scale(int32(binary.BigEndian.Uint32(data))))
}

// compareDecimals brings numbers to one scale only if they are near each other: a
// scale may be so large that there is no memory for the digits.
func compareDecimals(a, b *inf.Dec) int {
	sign := a.Sign()
	if sign != b.Sign() || sign == 0 {
		return cmp.Compare(sign, b.Sign())
	}
	magnitude := func(d *inf.Dec) int64 {
		return int64(len(new(big.Int).Abs(d.UnscaledBig()).Text(10))) - int64(d.Scale())
	}
	if c := cmp.Compare(magnitude(a), magnitude(b)); c != 0 {
		return c * sign
	}
	return a.Cmp(b)
}

func timeOf(u []byte) int64 { return gocql.UUID(u).Timestamp() }

// compareTimeUUID goes by the time and then by the other half's bytes, which
// count as signed.
func compareTimeUUID(a, b []byte) int {
	if c := cmp.Compare(timeOf(a), timeOf(b)); c != 0 {
		return c
	}
	for i := 8; i < 16; i++ {
		if c := cmp.Compare(int8(a[i]), int8(b[i])); c != 0 {
			return c
		}
	}
	return 0
}

// compareNested goes element by element; null comes first.
func compareNested(t gocql.TypeInfo, a, b []byte) int {
	var types []gocql.TypeInfo
	switch t := t.(type) {
	case gocql.CollectionType:
		if len(a) < 4 || len(b) < 4 {
			return bytes.Compare(a, b)
		}
		a, b = a[4:], b[4:]
		if types = []gocql.TypeInfo{t.Elem}; t.Type() == gocql.TypeMap {
			types = []gocql.TypeInfo{t.Key, t.Elem}
		}
	case gocql.TupleTypeInfo:
		types = t.Elems
	case gocql.UDTTypeInfo:
		for _, f := range t.Elements {
			types = append(types, f.Type)
		}
	}
	for i := 0; len(a) > 0 && len(b) > 0 && len(types) > 0; i++ {
		var x, y []byte
		var err1, err2 error
		x, a, err1 = cutValue(a)
		y, b, err2 = cutValue(b)
		if err1 != nil || err2 != nil {
			return 0
		}
		if x == nil || y == nil {
			if c := cmp.Compare(b2i(x != nil), b2i(y != nil)); c != 0 {
				return c
			}
			continue
		}
		if c := compareWire(types[i%len(types)], x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}
