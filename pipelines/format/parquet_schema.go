package format

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/athena-pipelines/athena/pkg/record"
)

// schemaKey is where a file keeps the schema that its rows had before. It tells
// what parquet's types do not: which texts are decimals of any digits, native
// types, keys.
const schemaKey = "athena.schema"

// A group is a parquet group whose fields keep their order.
type group struct {
	parquet.Group
	fields []parquet.Field
}

func (g *group) Fields() []parquet.Field { return g.fields }
func (g *group) GoType() reflect.Type    { return reflect.TypeFor[map[string]any]() }

// A field is a column of a group.
type field struct {
	parquet.Node
	name string
}

func (f field) Name() string                          { return f.name }
func (f field) Value(row reflect.Value) reflect.Value { return row.MapIndex(reflect.ValueOf(f.name)) }

func parquetSchema(s *record.Schema) *parquet.Schema {
	g := &group{}
	for _, c := range s.Columns {
		node := parquetNode(c.Type)
		if c.Nullable {
			node = parquet.Optional(node)
		}
		g.fields = append(g.fields, field{node, c.Name})
	}
	return parquet.NewSchema("rows", g)
}

func parquetNode(t record.Type) parquet.Node {
	switch t.Kind {
	case record.Bool:
		return parquet.Leaf(parquet.BooleanType)
	case record.Int:
		return parquet.Int(t.Bits)
	case record.Float:
		if t.Bits == 32 {
			return parquet.Leaf(parquet.FloatType)
		}
		return parquet.Leaf(parquet.DoubleType)
	case record.Decimal:
		switch {
		case t.Precision == 0:
			return parquet.String()
		case t.Precision <= 9:
			return parquet.Decimal(t.Scale, t.Precision, parquet.Int32Type)
		case t.Precision <= 18:
			return parquet.Decimal(t.Scale, t.Precision, parquet.Int64Type)
		}
		large := parquet.Decimal(t.Scale, t.Precision, parquet.FixedLenByteArrayType(decimalBytes(t.Precision)))
		return parquet.Leaf(largeDecimal{large.Type()})
	case record.Bytes:
		return parquet.Leaf(parquet.ByteArrayType)
	case record.Date:
		return parquet.Date()
	case record.Time:
		return parquet.TimeAdjusted(parquet.Microsecond, false)
	case record.Timestamp, record.TimestampTZ:
		return parquet.TimestampAdjusted(parquet.Microsecond, t.Kind == record.TimestampTZ)
	case record.UUID:
		return parquet.UUID()
	case record.JSON:
		return parquet.JSON()
	}
	return parquet.String()
}

// largeDecimal is the type of decimals in bytes. The library orders bytes without
// their sign, so bounds of pages and columns are found here.
type largeDecimal struct{ parquet.Type }

func (t largeDecimal) Compare(a, b parquet.Value) int {
	return compareSigned(a.ByteArray(), b.ByteArray())
}

func (t largeDecimal) NewColumnIndexer(int) parquet.ColumnIndexer { return &signedIndexer{} }

func (t largeDecimal) NewColumnBuffer(column, values int) parquet.ColumnBuffer {
	return signedBuffer{t.Type.NewColumnBuffer(column, values)}
}

func compareSigned(a, b []byte) int {
	if negative := a[0] >= 0x80; negative != (b[0] >= 0x80) {
		if negative {
			return -1
		}
		return 1
	}
	return bytes.Compare(a, b)
}

type signedBuffer struct{ parquet.ColumnBuffer }

func (b signedBuffer) Page() parquet.Page { return signedPage{b.ColumnBuffer.Page()} }

type signedPage struct{ parquet.Page }

func (p signedPage) Bounds() (low, high parquet.Value, ok bool) {
	values := p.Data()
	data, size := values.FixedLenByteArray()
	if len(data) == 0 {
		return low, high, false
	}
	least, most := data[:size], data[:size]
	for ; len(data) >= size; data = data[size:] {
		switch v := data[:size]; {
		case compareSigned(v, least) < 0:
			least = v
		case compareSigned(v, most) > 0:
			most = v
		}
	}
	return parquet.FixedLenByteArrayValue(least), parquet.FixedLenByteArrayValue(most), true
}

// signedIndexer is the page index of a column of decimals in bytes.
type signedIndexer struct{ index format.ColumnIndex }

func (x *signedIndexer) Reset() { x.index = format.ColumnIndex{} }

func (x *signedIndexer) IndexPage(values, nulls int64, low, high parquet.Value) {
	x.index.NullPages = append(x.index.NullPages, values == nulls)
	x.index.NullCounts = append(x.index.NullCounts, nulls)
	x.index.MinValues = append(x.index.MinValues, bytes.Clone(low.ByteArray()))
	x.index.MaxValues = append(x.index.MaxValues, bytes.Clone(high.ByteArray()))
}

func (x *signedIndexer) ColumnIndex() format.ColumnIndex { return x.index }

func schemaNote(s *record.Schema) string {
	note, err := json.Marshal(s)
	if err != nil { // it has texts and numbers only
		return ""
	}
	return string(note)
}
