package scylla

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/gocql/gocql"
	"pgregory.net/rapid"
)

// handedOver makes of a value on the wire what scylla-cdc-go hands over, by the
// comment of its ChangeRow. That it does is held against it elsewhere, over the
// double.
func handedOver(t testing.TB, info gocql.TypeInfo, data []byte) any {
	t.Helper()
	zero := func() reflect.Value {
		v, err := info.NewWithError()
		if err != nil {
			t.Fatal(err)
		}
		return reflect.ValueOf(v).Elem()
	}
	flat := func(info gocql.TypeInfo, data []byte) reflect.Value {
		v := reflect.ValueOf(handedOver(t, info, data))
		if v.Kind() == reflect.Pointer {
			return v.Elem()
		}
		return v
	}
	switch info := info.(type) {
	case gocql.CollectionType:
		if data == nil {
			return zero().Interface()
		}
		elements, err := readElements(data)
		if err != nil {
			t.Fatal(err)
		}
		v := zero()
		if info.Type() != gocql.TypeMap {
			for _, e := range elements {
				v.Set(reflect.Append(v, flat(info.Elem, e)))
			}
			return v.Interface()
		}
		v.Set(reflect.MakeMap(v.Type()))
		for pair := range slices.Chunk(elements, 2) {
			v.SetMapIndex(flat(info.Key, pair[0]), flat(info.Elem, pair[1]))
		}
		return v.Interface()
	case gocql.UDTTypeInfo:
		if data == nil {
			return map[string]any(nil)
		}
		fields := map[string]any{}
		for _, f := range info.Elements {
			if len(data) == 0 {
				break
			}
			var e []byte
			e, data, _ = cutValue(data)
			fields[f.Name] = handedOver(t, f.Type, e)
		}
		return fields
	case gocql.TupleTypeInfo:
		if data == nil {
			return []any(nil)
		}
		var elements []any
		for _, e := range info.Elems {
			var v []byte
			if len(data) > 0 {
				v, data, _ = cutValue(data)
			}
			elements = append(elements, handedOver(t, e, v))
		}
		return elements
	}
	if info.Type() == gocql.TypeBlob {
		if data == nil {
			return []byte(nil)
		}
		return append([]byte{}, data...)
	}
	v, err := info.NewWithError()
	if err != nil {
		t.Fatal(err)
	}
	p := reflect.New(reflect.TypeOf(v))
	if err := gocql.Unmarshal(info, data, p.Interface()); err != nil {
		t.Fatal(err)
	}
	return p.Elem().Interface()
}

// scalars are the types without parts.
var scalars = []gocql.Type{
	gocql.TypeAscii, gocql.TypeBigInt, gocql.TypeBlob, gocql.TypeBoolean, gocql.TypeDate, gocql.TypeDecimal, gocql.TypeDouble,
	gocql.TypeDuration, gocql.TypeFloat, gocql.TypeInet, gocql.TypeInt, gocql.TypeSmallInt, gocql.TypeVarchar, gocql.TypeTime,
	gocql.TypeTimestamp, gocql.TypeTimeUUID, gocql.TypeTinyInt, gocql.TypeUUID, gocql.TypeVarint,
}

// comparable reports whether scylla-cdc-go can have the type as a map's key.
func comparableKey(t gocql.TypeInfo) bool {
	switch t.Type() {
	case gocql.TypeBlob, gocql.TypeDuration, gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeTuple, gocql.TypeUDT, gocql.TypeCustom:
		return false
	}
	return true
}

func drawType(t *rapid.T, depth int) gocql.TypeInfo {
	native := func(kind gocql.Type) gocql.NativeType { return gocql.NewNativeType(protocol, kind) }
	kind := rapid.IntRange(0, 6).Draw(t, "kind")
	if depth == 0 || kind == 0 {
		return native(rapid.SampledFrom(scalars).Draw(t, "type"))
	}
	inner := func() gocql.TypeInfo { return drawType(t, depth-1) }
	switch kind {
	case 1:
		return gocql.NewCollectionType(native(gocql.TypeList), nil, inner())
	case 2:
		return gocql.NewCollectionType(native(gocql.TypeSet), nil, inner())
	case 3:
		key := rapid.Map(rapid.SampledFrom(scalars), func(k gocql.Type) gocql.TypeInfo { return native(k) }).Filter(comparableKey).Draw(t, "key")
		return gocql.NewCollectionType(native(gocql.TypeMap), key, inner())
	case 4:
		return gocql.NewTupleType(native(gocql.TypeTuple), inner(), inner())
	case 5:
		return gocql.NewUDTType(protocol, "u", "ks", gocql.UDTField{Name: "a", Type: inner()}, gocql.UDTField{Name: "B b", Type: inner()})
	}
	// gocql knows a vector by its class, as the wire has it.
	element := rapid.SampledFrom([]gocql.Type{gocql.TypeFloat, gocql.TypeInt, gocql.TypeVarchar}).Draw(t, "element")
	dimensions := rapid.IntRange(1, 3).Draw(t, "dimensions")
	class := map[gocql.Type]string{gocql.TypeFloat: "FloatType", gocql.TypeInt: "Int32Type", gocql.TypeVarchar: "UTF8Type"}[element]
	class = fmt.Sprintf("%s(org.apache.cassandra.db.marshal.%s , %d)", vectorClass, class, dimensions)
	return gocql.VectorType{NativeType: gocql.NewCustomType(protocol, gocql.TypeCustom, class), SubType: native(element), Dimensions: dimensions}
}

// drawValue draws a value as it is on the wire, as the server writes it: sets and
// maps in order, numbers of all their bytes.
func drawValue(t *rapid.T, info gocql.TypeInfo) []byte {
	bits := func(n int) []byte {
		return rapid.OneOf(rapid.SliceOfN(rapid.Byte(), n, n), rapid.Map(rapid.Byte(), func(b byte) []byte { return bytes.Repeat([]byte{b}, n) })).Draw(t, "bytes")
	}
	switch info := info.(type) {
	case gocql.CollectionType:
		n := rapid.IntRange(0, 3).Draw(t, "elements")
		isMap := info.Type() == gocql.TypeMap
		order := info.Elem
		var entries [][2][]byte
		for range n {
			if isMap {
				order = info.Key
				entries = append(entries, [2][]byte{drawValue(t, info.Key), drawValue(t, info.Elem)})
			} else {
				entries = append(entries, [2][]byte{drawValue(t, info.Elem)})
			}
		}
		if info.Type() != gocql.TypeList {
			compare := func(a, b [2][]byte) int { return compareWire(order, a[0], b[0]) }
			slices.SortStableFunc(entries, compare)
			entries = slices.CompactFunc(entries, func(a, b [2][]byte) bool { return compare(a, b) == 0 })
		}
		data := binary.BigEndian.AppendUint32(nil, uint32(len(entries)))
		for _, e := range entries {
			if data = appendSized(data, e[0]); isMap {
				data = appendSized(data, e[1])
			}
		}
		return data
	case gocql.TupleTypeInfo:
		return drawParts(t, info.Elems)
	case gocql.UDTTypeInfo:
		return drawParts(t, []gocql.TypeInfo{info.Elements[0].Type, info.Elements[1].Type})
	case gocql.VectorType:
		data := []byte{}
		for range info.Dimensions {
			e := drawValue(t, info.SubType)
			if vectorSize(info.SubType) < 0 {
				data = appendUvint(data, uint64(len(e)))
			}
			data = append(data, e...)
		}
		return data
	}
	switch kind := info.Type(); kind {
	case gocql.TypeBoolean:
		return []byte{byte(b2i(rapid.Bool().Draw(t, "boolean")))}
	case gocql.TypeAscii:
		return append([]byte{}, rapid.StringMatching(`[ -~]{0,12}`).Draw(t, "ascii")...)
	case gocql.TypeVarchar:
		return append([]byte{}, rapid.String().Draw(t, "text")...)
	case gocql.TypeBlob:
		return append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "blob")...)
	case gocql.TypeTimeUUID:
		u := bits(16)
		u[6], u[8] = 0x10|u[6]&0x0f, 0x80|u[8]&0x3f
		return u
	case gocql.TypeUUID:
		u := bits(16)
		u[6], u[8] = rapid.SampledFrom([]byte{0x10, 0x40}).Draw(t, "version")|u[6]&0x0f, 0x80|u[8]&0x3f
		return u
	case gocql.TypeVarint:
		return appendTwos(nil, drawInteger(t))
	case gocql.TypeDecimal:
		return appendTwos(binary.BigEndian.AppendUint32(nil, uint32(rapid.Int32Range(-40, 40).Draw(t, "scale"))), drawInteger(t))
	case gocql.TypeInet:
		addr, _ := netip.AddrFromSlice(bits(rapid.SampledFrom([]int{4, 16}).Draw(t, "size")))
		return addr.Unmap().AsSlice()
	case gocql.TypeDuration:
		sign := int64(1 - 2*rapid.IntRange(0, 1).Draw(t, "sign"))
		data := appendVint(nil, sign*int64(rapid.Int32Range(0, math.MaxInt32).Draw(t, "months")))
		data = appendVint(data, sign*int64(rapid.Int32Range(0, math.MaxInt32).Draw(t, "days")))
		return appendVint(data, sign*rapid.Int64Range(0, math.MaxInt64).Draw(t, "nanoseconds"))
	case gocql.TypeTime:
		return binary.BigEndian.AppendUint64(nil, uint64(rapid.Int64Range(0, 86400e9-1).Draw(t, "time")))
	case gocql.TypeFloat:
		f := rapid.Float32().Draw(t, "float")
		return binary.BigEndian.AppendUint32(nil, math.Float32bits(f))
	case gocql.TypeDouble:
		f := rapid.Float64().Draw(t, "double")
		return binary.BigEndian.AppendUint64(nil, math.Float64bits(f))
	default:
		return bits(sizes[kind])
	}
}

func drawInteger(t *rapid.T) *big.Int {
	return new(big.Int).Mul(big.NewInt(rapid.Int64().Draw(t, "integer")), big.NewInt(rapid.Int64().Draw(t, "factor")))
}

func drawParts(t *rapid.T, types []gocql.TypeInfo) []byte {
	data := []byte{}
	for _, info := range types {
		if rapid.IntRange(0, 3).Draw(t, "null") == 0 {
			data = append(data, 0xff, 0xff, 0xff, 0xff)
		} else {
			data = appendSized(data, drawValue(t, info))
		}
	}
	return data
}

func TestAValueHasOneFormInAQueryAndInAChange(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		info := drawType(r, 2)
		data := drawValue(r, info)
		v := handedOver(t, info, data)
		if unclear(info, v) {
			return // it is read again
		}
		if isNull(v) {
			r.Fatalf("a %s of %x counts as null", typeName(info), data)
		}
		want, err := appendValue(nil, info, data)
		if err != nil {
			r.Fatalf("a %s of %x has no form in a query: %v", typeName(info), data, err)
		}
		wire, err := appendWire([]byte{}, info, v)
		if err != nil {
			r.Fatalf("a %s is not written: %v", typeName(info), err)
		}
		got, err := appendValue(nil, info, wire)
		if err != nil || !bytes.Equal(got, want) {
			r.Fatalf("a %s of %x is %s in a change (%x, %v), and %s in a query", typeName(info), data, got, wire, err, want)
		}
	})
}

func TestANullIsNone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		info := drawType(r, 2)
		if v := handedOver(t, info, nil); !isNull(v) {
			r.Fatalf("the null of a %s is %#v", typeName(info), v)
		}
	})
}

func TestKeysAreOrderedAsTheServerOrdersThem(t *testing.T) {
	t.Parallel()
	tests := map[string][]string{
		"int":                      {`-2147483648`, `-1`, `0`, `1`, `2147483647`},
		"tinyint":                  {`-128`, `-1`, `0`, `127`},
		"bigint":                   {`-9223372036854775808`, `-1`, `9223372036854775807`},
		"text":                     {`""`, `"B"`, `"a"`, `"aa"`, `"é"`},
		"boolean":                  {`false`, `true`},
		"float":                    {`"-Infinity"`, `-1.5`, `0`, `1e-9`, `2`, `"Infinity"`, `"NaN"`},
		"double":                   {`"-Infinity"`, `-1.5`, `0`, `1e-9`, `2`, `"Infinity"`, `"NaN"`},
		"decimal":                  {`"-1E2000000000"`, `"-10"`, `"-1.01"`, `"0"`, `"1E-2000000000"`, `"0.1"`, `"0.11"`, `"1E3"`, `"1E2000000000"`},
		"varint":                   {`"-99999999999999999999"`, `"-1"`, `"0"`, `"128"`, `"99999999999999999999"`},
		"date":                     {`"-000044-03-15"`, `"1969-12-31"`, `"1970-01-01"`, `"2026-11-22"`},
		"time":                     {`"00:00:00"`, `"10:00:00.5"`},
		"timestamp":                {`"1969-12-31T23:59:59.000000Z"`, `"1970-01-01T00:00:00.000000Z"`},
		"timeuuid":                 {`"00000000-0000-1000-8080-808080808080"`, `"ffffffff-0000-1000-8080-808080808080"`, `"00000001-0001-1000-8080-808080808080"`, `"00000001-0001-1000-0080-808080808080"`},
		"uuid":                     {`"ffffffff-0000-1000-8000-000000000000"`, `"00000000-0001-1000-8000-000000000000"`, `"00000000-0000-4000-8000-000000000000"`, `"00000000-0001-4000-8000-000000000000"`},
		"inet":                     {`"1.2.3.4"`, `"10.0.0.1"`},
		"frozen<list<int>>":        {`[]`, `[-1,5]`, `[1]`, `[1,0]`},
		"frozen<tuple<int, text>>": {`[null,"z"]`, `[-1,"z"]`, `[1,"a"]`, `[1,"b"]`},
		"frozen<map<int, int>>":    {`{}`, `{"1":1}`, `{"1":2}`, `{"2":0}`},
		"vector<float, 2>":         {`[-1,9]`, `[0,1]`, `[0,2]`},
	}
	for text, values := range tests {
		info, err := typeParser{}.parse(text)
		if err != nil {
			t.Fatal(err)
		}
		var wire [][]byte
		for _, v := range values {
			data, err := marshalJSON(info, []byte(v))
			if err != nil {
				t.Fatalf("%s %s: %v", text, v, err)
			}
			wire = append(wire, data)
		}
		for i := range wire {
			for j := range wire {
				want := 0
				if i != j {
					want = 1 - 2*b2i(i < j)
				}
				if got := compareWire(info, wire[i], wire[j]); got != want {
					t.Errorf("%s: %s with %s is %d, want %d", text, values[i], values[j], got, want)
				}
			}
		}
	}
}
