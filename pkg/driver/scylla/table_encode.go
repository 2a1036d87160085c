package scylla

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A cell is one value for a statement, in its wire form; nil is null.
type cell struct{ data []byte }

// MarshalCQL gives the value as it is.
func (c *cell) MarshalCQL(gocql.TypeInfo) ([]byte, error) { return c.data, nil }

// A columnEncoder makes values of one column of batches into those of one column of a
// table.
type columnEncoder struct {
	tableColumn
	from    record.Type
	rec     record.Type // of the column
	scratch record.Vector
}

// newColumnEncoder says why, if the column takes no such values.
func newColumnEncoder(c tableColumn, from record.Type) (_ *columnEncoder, problem string) {
	e := &columnEncoder{tableColumn: c, from: from, rec: recordType(c.typ)}
	e.scratch.Kind = e.rec.Kind
	if c.doubles() {
		return nil, fmt.Sprintf("is of type %s, whose elements would come twice if a write were repeated; make it frozen<%s>, or leave it out", c.text, c.text)
	}
	if c.typ.Type() == gocql.TypeCounter {
		return nil, "is a counter, which can be added to and not be set; leave it out"
	}
	if !e.takes() {
		return nil, fmt.Sprintf("is of type %s, which takes no values of type %s; cast them (transform cast), or write to another column", c.text, from)
	}
	return e, ""
}

func (e *columnEncoder) takes() bool {
	switch kind := e.typ.Type(); {
	case kind == gocql.TypeCounter:
		return false
	case e.rec.Kind == record.JSON, kind == gocql.TypeInet, kind == gocql.TypeDuration, kind == gocql.TypeCustom:
		return e.from.Kind == record.JSON || e.from.Kind == record.Text
	case e.from.Kind == record.Bytes || e.rec.Kind == record.Bytes:
		return e.from.Kind == e.rec.Kind
	}
	return record.Convertible(e.from, e.rec)
}

// noValue is in place of a problem where a value becomes a null.
const noValue = "null"

// append appends a value that is not null, or says why the column does not take it.
func (e *columnEncoder) append(dst []byte, v *record.Vector, i int) (_ []byte, problem string) {
	if e.from != e.rec {
		e.scratch.Reset()
		if err := record.Convert(&e.scratch, e.rec, v, e.from, i); err != nil {
			return dst, "takes no such value: " + err.Error()
		}
		if e.scratch.Null(0) { // JSON's null
			return dst, noValue
		}
		v, i = &e.scratch, 0
	}
	switch kind := e.typ.Type(); kind {
	case gocql.TypeVarchar, gocql.TypeText:
		return append(dst, v.Bytes(i)...), ""
	case gocql.TypeAscii:
		if bytes.IndexFunc(v.Bytes(i), func(r rune) bool { return r >= 0x80 }) >= 0 {
			return dst, "takes ASCII alone"
		}
		return append(dst, v.Bytes(i)...), ""
	case gocql.TypeBlob, gocql.TypeUUID:
		return append(dst, v.Bytes(i)...), ""
	case gocql.TypeTimeUUID:
		if u := v.Bytes(i); len(u) != 16 || u[6]>>4 != 1 {
			return dst, "takes a UUID of version 1 alone"
		}
		return append(dst, v.Bytes(i)...), ""
	case gocql.TypeBoolean:
		return append(dst, byte(v.Ints[i]&1)), ""
	case gocql.TypeTinyInt:
		if n := v.Ints[i]; n != int64(int8(n)) {
			return dst, fmt.Sprintf("takes -128 to 127, and not %d", n)
		}
		return append(dst, byte(v.Ints[i])), ""
	case gocql.TypeSmallInt:
		return binary.BigEndian.AppendUint16(dst, uint16(v.Ints[i])), ""
	case gocql.TypeInt:
		return binary.BigEndian.AppendUint32(dst, uint32(v.Ints[i])), ""
	case gocql.TypeBigInt:
		return binary.BigEndian.AppendUint64(dst, uint64(v.Ints[i])), ""
	case gocql.TypeFloat:
		return binary.BigEndian.AppendUint32(dst, math.Float32bits(float32(v.Floats[i]))), ""
	case gocql.TypeDouble:
		return binary.BigEndian.AppendUint64(dst, math.Float64bits(v.Floats[i])), ""
	case gocql.TypeDecimal:
		return appendDigits(dst, v.Bytes(i), true)
	case gocql.TypeVarint:
		return appendDigits(dst, v.Bytes(i), false)
	case gocql.TypeDate, gocql.TypeTimestamp, gocql.TypeTime:
		return e.appendTime(dst, v.Ints[i])
	}
	raw := v.Bytes(i)
	if e.rec.Kind == record.Text {
		raw = cdc.AppendString(nil, raw)
	}
	data, err := marshalJSON(e.typ, raw)
	if err != nil {
		return dst, err.Error()
	}
	return append(dst, data...), ""
}

// appendTime fits a time. What a timestamp has beyond milliseconds is cut; in a key
// that would make one of two rows.
func (e *columnEncoder) appendTime(dst []byte, n int64) ([]byte, string) {
	if n == record.Infinity || n == record.MinusInfinity {
		return dst, "takes no time that is infinite"
	}
	switch e.typ.Type() {
	case gocql.TypeDate:
		if n != int64(int32(n)) {
			return dst, fmt.Sprintf("takes no date %d days from 1970", n)
		}
		return binary.BigEndian.AppendUint32(dst, uint32(n+1<<31)), ""
	case gocql.TypeTime:
		if n < 0 || n >= 86_400_000_000 {
			return dst, "takes no time of day at 24:00"
		}
		return binary.BigEndian.AppendUint64(dst, uint64(n*1000)), ""
	}
	ms := n / 1000
	if n%1000 < 0 {
		ms--
	}
	if ms*1000 != n && e.key() {
		return dst, "is part of the key and has milliseconds, in which this time and its neighbours are one"
	}
	return binary.BigEndian.AppendUint64(dst, uint64(ms)), ""
}

// appendDigits makes a decimal of its digits, or a varint of those before its point.
func appendDigits(dst, digits []byte, decimal bool) ([]byte, string) {
	if digits[len(digits)-1] > '9' { // NaN, Infinity, -Infinity
		return dst, fmt.Sprintf("takes no %s", digits)
	}
	point := bytes.IndexByte(digits, '.')
	scale := 0
	if point >= 0 {
		scale = len(digits) - point - 1
	}
	if !decimal && scale > 0 {
		if len(bytes.TrimRight(digits[point+1:], "0")) > 0 {
			return dst, fmt.Sprintf("takes whole numbers, and not %.80s", digits)
		}
		digits, point, scale = digits[:point], -1, 0
	}
	if decimal {
		dst = binary.BigEndian.AppendUint32(dst, uint32(scale))
	}
	if len(digits) <= 18 {
		var n int64
		for i, c := range digits {
			if c != '.' && (c != '-' || i > 0) {
				n = 10*n + int64(c-'0')
			}
		}
		if digits[0] == '-' {
			n = -n
		}
		return appendSmallTwos(dst, n), ""
	}
	text := digits
	if point >= 0 {
		text = append(append(make([]byte, 0, len(digits)), digits[:point]...), digits[point+1:]...)
	}
	n, ok := new(big.Int).SetString(string(text), 10)
	if !ok {
		return dst, fmt.Sprintf("takes no %.80s", digits)
	}
	return appendTwos(dst, n), ""
}

// appendSmallTwos is appendTwos without an allocation.
func appendSmallTwos(dst []byte, n int64) []byte {
	size := 8
	for size > 1 && n>>(8*size-9) == n>>63 {
		size--
	}
	for i := size - 1; i >= 0; i-- {
		dst = append(dst, byte(n>>(8*i)))
	}
	return dst
}

// A rowEncoder fits batches of one schema to a table.
type rowEncoder struct {
	schema *record.Schema
	table  *tableMeta
	logs   bool // changes become rows of a log
	// columns are encoders of those that are stored, and from their places among the
	// batch's vectors, behind those of a log.
	columns []*columnEncoder
	from    []int
	key     []int // places of the primary key among columns, in its order
	parts   int   // how many of these are of the partition key
	time    int   // place of the write time among the batch's columns; -1 is none
	ttl     int
	tuples  bool
}

// newRowEncoder fits a schema to a table.
func newRowEncoder(m *tableMeta, s *record.Schema, writeTime, ttl string, logs bool, logColumns []record.Column) (*rowEncoder, error) {
	e := &rowEncoder{schema: s, table: m, logs: logs, time: -1, ttl: -1}
	if !logs {
		logColumns = nil
	}
	add := func(c record.Column, from int) error {
		to, ok := m.column(c.Name)
		if !ok {
			return noColumn(m, c.Name, "columns")
		}
		enc, problem := newColumnEncoder(to, c.Type)
		if problem != "" {
			return athena.Errorf(athena.CodeInvalidRequest, "column %q of %s.%s %s", c.Name, m.keyspace, m.name, problem).At("columns")
		}
		e.tuples = e.tuples || to.typ.Type() == tupleType
		e.columns, e.from = append(e.columns, enc), append(e.from, from)
		return nil
	}
	for i, c := range logColumns {
		if err := add(c, i); err != nil {
			return nil, err
		}
	}
	for i, c := range s.Columns {
		switch c.Name {
		case writeTime:
			e.time = i
		case ttl:
			e.ttl = i
		default:
			if err := add(c, len(logColumns)+i); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range m.columns {
		if !k.key() {
			break
		}
		i := -1
		for n, c := range e.columns {
			if c.name == k.name {
				i = n
			}
		}
		if i < 0 {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "the rows have no column %q of the key of %s.%s", k.name, m.keyspace, m.name).At("key")
		}
		if k.kind == kindPartitionKey {
			e.parts++
		}
		e.key = append(e.key, i)
	}
	return e, nil
}
