package scylla

import (
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

var (
	_ driver.TableReader  = (*Backend)(nil)
	_ driver.TableWriter  = (*Backend)(nil)
	_ driver.ColumnTyper  = (*Backend)(nil)
	_ driver.ColumnSorter = (*Backend)(nil)
)

// recordTypes are those of the types that have no others within. A varint and a
// decimal have as many digits as they have; a time without a fraction of a
// microsecond is the only one that rows can hold.
var recordTypes = map[gocql.Type]record.Type{
	gocql.TypeBoolean: record.TypeBool, gocql.TypeTinyInt: record.TypeInt16, gocql.TypeSmallInt: record.TypeInt16,
	gocql.TypeInt: record.TypeInt32, gocql.TypeBigInt: record.TypeInt64, gocql.TypeCounter: record.TypeInt64,
	gocql.TypeFloat: record.TypeFloat32, gocql.TypeDouble: record.TypeFloat64,
	gocql.TypeVarint: record.TypeDecimal, gocql.TypeDecimal: record.TypeDecimal,
	gocql.TypeVarchar: record.TypeText, gocql.TypeText: record.TypeText, gocql.TypeAscii: record.TypeText,
	gocql.TypeInet: record.TypeText, gocql.TypeDuration: record.TypeText, gocql.TypeBlob: record.TypeBytes,
	gocql.TypeDate: record.TypeDate, gocql.TypeTime: record.TypeTime, gocql.TypeTimestamp: record.TypeTimestampTZ,
	gocql.TypeUUID: record.TypeUUID, gocql.TypeTimeUUID: record.TypeUUID,
}

// recordType is the type of values in records. Collections, tuples, user-defined types
// and vectors are JSON; what has a class of Java alone is the base64 of its bytes.
func recordType(t gocql.TypeInfo) record.Type {
	if r, ok := recordTypes[t.Type()]; ok {
		return r
	}
	if _, vector := t.(gocql.VectorType); t.Type() == gocql.TypeCustom && !vector {
		return record.TypeText
	}
	return record.TypeJSON
}

// ColumnType is the type that values of a type have in records, by CQL's text of it.
// A name that is none of CQL's is that of a user-defined type.
func (*Backend) ColumnType(native string) record.Type {
	t, err := typeParser{}.parse(native)
	switch {
	case err != nil, strings.HasPrefix(native, "'"):
		return record.TypeText
	case t.Type() == gocql.TypeCustom:
		return record.TypeJSON
	}
	return recordType(t)
}

// ColumnSorts reports whether values sort as those of their type in records do.
func (*Backend) ColumnSorts(native string) bool {
	t, err := typeParser{}.parse(native)
	if err != nil {
		return false
	}
	switch t.Type() {
	case gocql.TypeInet, gocql.TypeUUID, gocql.TypeTimeUUID, gocql.TypeDuration, gocql.TypeCustom:
		return false
	}
	return recordType(t).Kind != record.JSON
}

// nativeType is the type of a new column: the one that it has had in CQL, if it needs
// nothing of its keyspace and is none that other engines have by the same name; else
// one that takes the values. A list is frozen (tableColumn.doubles).
func nativeType(c record.Column) string {
	if t, err := (typeParser{}).parse(c.Native); err == nil && recordType(t) == c.Type && ownName(t) {
		if (tableColumn{text: c.Native, typ: t}).doubles() {
			return "frozen<" + c.Native + ">"
		}
		return c.Native
	}
	switch c.Type.Kind {
	case record.Bool:
		return "boolean"
	case record.Int:
		switch c.Type.Bits {
		case 16:
			return "smallint"
		case 32:
			return "int"
		}
		return "bigint"
	case record.Float:
		if c.Type.Bits == 32 {
			return "float"
		}
		return "double"
	case record.Decimal:
		return "decimal"
	case record.Bytes:
		return "blob"
	case record.Date:
		return "date"
	case record.Time:
		return "time"
	case record.Timestamp, record.TimestampTZ:
		return "timestamp"
	case record.UUID:
		return "uuid"
	}
	return "text"
}

// ownName reports whether a type is CQL's and no other engine's.
func ownName(t gocql.TypeInfo) bool {
	switch t := t.(type) {
	case gocql.CollectionType:
		return (t.Key == nil || known(t.Key)) && known(t.Elem)
	case gocql.TupleTypeInfo:
		for _, e := range t.Elems {
			if !known(e) {
				return false
			}
		}
		return true
	case gocql.VectorType:
		return known(t.SubType)
	}
	switch t.Type() {
	case gocql.TypeAscii, gocql.TypeTinyInt, gocql.TypeVarint, gocql.TypeTimeUUID, gocql.TypeDuration:
		return true
	}
	return false
}

// known reports whether a type means the same in every keyspace.
func known(t gocql.TypeInfo) bool {
	_, native := recordTypes[t.Type()]
	return native || ownName(t)
}
