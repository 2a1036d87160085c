package record

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Kind is the form in which a Vector holds its values.
type Kind uint8

// The kinds. The zero Kind is none.
const (
	Bool        Kind = iota + 1 // Ints, 0 or 1
	Int                         // Ints
	Float                       // Floats
	Decimal                     // Data: digits, "-12.50", or NaN, Infinity, -Infinity
	Text                        // Data: UTF-8
	Bytes                       // Data
	Date                        // Ints: days since 1970-01-01
	Time                        // Ints: microseconds since midnight, up to and with 24:00
	Timestamp                   // Ints: microseconds since 1970-01-01 00:00 of some clock
	TimestampTZ                 // Ints: microseconds since 1970-01-01 00:00 UTC
	UUID                        // Data: 16 bytes
	JSON                        // Data: one JSON value
)

var kindNames = [...]string{
	Bool: "bool", Int: "int", Float: "float", Decimal: "decimal", Text: "text", Bytes: "bytes", Date: "date",
	Time: "time", Timestamp: "timestamp", TimestampTZ: "timestamptz", UUID: "uuid", JSON: "json",
}

// String gives the kind's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) && k != 0 {
		return kindNames[k]
	}
	return "none"
}

// The ends of time, as Date, Timestamp and TimestampTZ have them.
const (
	Infinity      = int64(1<<63 - 1)
	MinusInfinity = -Infinity - 1
)

// A Type is the type of a column. Types compare with ==. The zero Type is none.
type Type struct {
	Kind Kind
	Bits int // of Int: 16, 32 or 64; of Float: 32 or 64
	// Precision and Scale are those of a Decimal; both 0 is any number.
	Precision, Scale int
}

// The types that have no parameters, or the usual ones.
var (
	TypeBool        = Type{Kind: Bool}
	TypeInt16       = Type{Kind: Int, Bits: 16}
	TypeInt32       = Type{Kind: Int, Bits: 32}
	TypeInt64       = Type{Kind: Int, Bits: 64}
	TypeFloat32     = Type{Kind: Float, Bits: 32}
	TypeFloat64     = Type{Kind: Float, Bits: 64}
	TypeDecimal     = Type{Kind: Decimal}
	TypeText        = Type{Kind: Text}
	TypeBytes       = Type{Kind: Bytes}
	TypeDate        = Type{Kind: Date}
	TypeTime        = Type{Kind: Time}
	TypeTimestamp   = Type{Kind: Timestamp}
	TypeTimestampTZ = Type{Kind: TimestampTZ}
	TypeUUID        = Type{Kind: UUID}
	TypeJSON        = Type{Kind: JSON}
)

var plainTypes = []Type{
	TypeBool, TypeInt16, TypeInt32, TypeInt64, TypeFloat32, TypeFloat64, TypeDecimal, TypeText, TypeBytes,
	TypeDate, TypeTime, TypeTimestamp, TypeTimestampTZ, TypeUUID, TypeJSON,
}

// DecimalOf is a Decimal of so many digits, of which scale stand behind the point.
func DecimalOf(precision, scale int) Type {
	return Type{Kind: Decimal, Precision: precision, Scale: scale}
}

// String writes the type as ParseType reads it: int64, float32, decimal(12,2),
// text.
func (t Type) String() string {
	switch {
	case t.Kind == Int || t.Kind == Float:
		return t.Kind.String() + strconv.Itoa(t.Bits)
	case t.Kind == Decimal && t.Precision > 0:
		return fmt.Sprintf("decimal(%d,%d)", t.Precision, t.Scale)
	}
	return t.Kind.String()
}

// ParseType reads the name of a type. A decimal has up to 38 digits.
func ParseType(name string) (Type, error) {
	if i := slices.IndexFunc(plainTypes, func(t Type) bool { return t.String() == name }); i >= 0 {
		return plainTypes[i], nil
	}
	if inner, ok := strings.CutPrefix(name, "decimal("); ok && strings.HasSuffix(inner, ")") {
		p, s, _ := strings.Cut(strings.TrimSuffix(inner, ")"), ",")
		precision, err1 := strconv.Atoi(strings.TrimSpace(p))
		scale, err2 := strconv.Atoi(strings.TrimSpace(s))
		if err1 == nil && err2 == nil && precision >= 1 && precision <= 38 && scale >= 0 && scale <= precision {
			return DecimalOf(precision, scale), nil
		}
	}
	names := make([]string, len(plainTypes))
	for i, t := range plainTypes {
		names[i] = t.String()
	}
	return Type{}, athena.Errorf(athena.CodeInvalidRequest, "type %.60q is unknown; it must be one of %s, or decimal(precision,scale) with a precision of 1 to 38", name, strings.Join(names, ", "))
}

// MarshalText is String.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseType.
func (t *Type) UnmarshalText(text []byte) (err error) {
	*t, err = ParseType(string(text))
	return err
}

// A Column describes one column.
type Column struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
	// Native is the engine's own name of the type, as in ColumnInfo; empty where
	// the column comes from no engine.
	Native   string `json:"native,omitempty"`
	Nullable bool   `json:"nullable,omitempty"`
}

// A Schema describes rows. It is shared and not changed once batches have it.
type Schema struct {
	Columns []Column `json:"columns"`
	// Key names the columns that tell rows apart, in order; empty if none do.
	Key []string `json:"key,omitempty"`
}

// Index returns the place of a column, or -1.
func (s *Schema) Index(name string) int {
	return slices.IndexFunc(s.Columns, func(c Column) bool { return c.Name == name })
}

// Names lists the columns.
func (s *Schema) Names() []string {
	names := make([]string, len(s.Columns))
	for i, c := range s.Columns {
		names[i] = c.Name
	}
	return names
}

// Equal reports whether two schemas describe the same rows.
func (s *Schema) Equal(o *Schema) bool {
	return s == o || s != nil && o != nil && slices.Equal(s.Columns, o.Columns) && slices.Equal(s.Key, o.Key)
}
