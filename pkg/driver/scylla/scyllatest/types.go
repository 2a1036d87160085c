package scyllatest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
)

// A ctype is a CQL type. Values are kept as CQL encodes them, and decoded only to
// be compared, taken apart or shown.
type ctype struct {
	kind   string // the type's own name, or list, set, map, tuple, udt, vector
	args   []*ctype
	udt    *userType
	size   int // of a vector
	frozen bool
}

type userType struct {
	ks, name string
	fields   []string
	types    []*ctype
}

var natives = map[string]datatype.DataType{
	"ascii": datatype.Ascii, "bigint": datatype.Bigint, "blob": datatype.Blob, "boolean": datatype.Boolean, "counter": datatype.Counter,
	"date": datatype.Date, "decimal": datatype.Decimal, "double": datatype.Double, "duration": datatype.Duration, "float": datatype.Float,
	"inet": datatype.Inet, "int": datatype.Int, "smallint": datatype.Smallint, "text": datatype.Varchar, "time": datatype.Time,
	"timestamp": datatype.Timestamp, "timeuuid": datatype.Timeuuid, "tinyint": datatype.Tinyint, "uuid": datatype.Uuid, "varint": datatype.Varint,
}

func native(name string) *ctype { return &ctype{kind: name} }

var (
	boolType, intType, bigintType, textType, blobType = native("boolean"), native("int"), native("bigint"), native("text"), native("blob")
	timeuuidType, timestampType, smallintType         = native("timeuuid"), native("timestamp"), native("smallint")
)

func listOf(t *ctype) *ctype   { return &ctype{kind: "list", args: []*ctype{t}, frozen: true} }
func setOf(t *ctype) *ctype    { return &ctype{kind: "set", args: []*ctype{t}, frozen: true} }
func mapOf(k, v *ctype) *ctype { return &ctype{kind: "map", args: []*ctype{k, v}, frozen: true} }

// multi reports whether each element of the type's values is a cell of its own.
func (t *ctype) multi() bool {
	switch t.kind {
	case "list", "set", "map", "udt":
		return !t.frozen
	}
	return false
}

// parts are the types of a tuple's or UDT's fields.
func (t *ctype) parts() []*ctype {
	if t.kind == "udt" {
		return t.udt.types
	}
	return t.args
}

// key and value are the types of the cells of a type that is multi.
func (t *ctype) key() *ctype {
	switch t.kind {
	case "list":
		return timeuuidType
	case "udt":
		return smallintType
	}
	return t.args[0]
}

func (t *ctype) freeze() *ctype {
	if natives[t.kind] != nil || t.frozen {
		return t
	}
	f := *t
	f.frozen = true
	return &f
}

// String is the type as system_schema.columns shows it.
func (t *ctype) String() string {
	var s string
	switch t.kind {
	case "udt":
		s = ident(t.udt.name)
	case "vector":
		return fmt.Sprintf("vector<%s, %d>", t.args[0], t.size)
	case "list", "set", "map", "tuple":
		var args []string
		for _, a := range t.args {
			args = append(args, a.String())
		}
		s = t.kind + "<" + strings.Join(args, ", ") + ">"
	default:
		return t.kind
	}
	if t.frozen || t.kind == "tuple" {
		return "frozen<" + s + ">"
	}
	return s
}

// ident is a name as it stands in CQL.
func ident(n string) string {
	if nameRE.FindString(n) == n && n == strings.ToLower(n) && !slices.Contains(reserved, n) {
		return n
	}
	return `"` + strings.ReplaceAll(n, `"`, `""`) + `"`
}

// wire is the type as results and markers carry it.
func (t *ctype) wire() datatype.DataType {
	var args []datatype.DataType
	for _, a := range t.parts() {
		args = append(args, a.wire())
	}
	switch t.kind {
	case "list":
		return datatype.NewList(args[0])
	case "set":
		return datatype.NewSet(args[0])
	case "map":
		return datatype.NewMap(args[0], args[1])
	case "tuple":
		return datatype.NewTuple(args...)
	case "udt":
		return &datatype.UserDefined{Keyspace: t.udt.ks, Name: t.udt.name, FieldNames: t.udt.fields, FieldTypes: args}
	case "vector":
		return datatype.NewCustom(fmt.Sprintf("org.apache.cassandra.db.marshal.VectorType(%s , %d)", class(t.args[0]), t.size))
	}
	return natives[t.kind]
}

// class is a native type's name in Java, which the types of vectors are sent with.
func class(t *ctype) string {
	names := map[string]string{"ascii": "Ascii", "bigint": "Long", "blob": "Bytes", "boolean": "Boolean", "date": "SimpleDate", "decimal": "Decimal",
		"double": "Double", "duration": "Duration", "float": "Float", "inet": "InetAddress", "int": "Int32", "smallint": "Short", "text": "UTF8",
		"time": "Time", "timestamp": "Timestamp", "timeuuid": "TimeUUID", "tinyint": "Byte", "uuid": "UUID", "varint": "Integer"}
	return "org.apache.cassandra.db.marshal." + names[t.kind] + "Type"
}

// width is how many bytes a value of a type has that always has as many, or 0.
func width(kind string) int {
	switch kind {
	case "bigint", "counter", "double", "timestamp", "time":
		return 8
	case "int", "float", "date":
		return 4
	case "uuid", "timeuuid":
		return 16
	case "smallint":
		return 2
	case "tinyint", "boolean":
		return 1
	}
	return 0
}

// check panics if b is no value of t; nil is null and fits.
func (t *ctype) check(b []byte) {
	if b == nil {
		return
	}
	w := width(t.kind)
	switch t.kind {
	case "text", "blob":
		return
	case "ascii":
		for _, c := range b {
			if c > 127 {
				panic(invalid("Validation failed - non-ASCII character in an ASCII string"))
			}
		}
		return
	case "varint", "decimal", "inet", "duration":
		if t.kind == "inet" && len(b) != 0 && len(b) != 4 && len(b) != 16 {
			panic(invalid("Validation failed for type inet: got %d bytes", len(b)))
		}
		if t.kind == "decimal" && len(b) != 0 && len(b) < 5 {
			panic(invalid("Validation failed for type decimal: got %d bytes", len(b)))
		}
		return
	case "list", "set", "map":
		n := 0
		for e := range elements(b) {
			at := t.args[0]
			if t.kind == "map" && n%2 == 1 {
				at = t.args[1]
			}
			if e == nil {
				panic(invalid("null is not supported inside collections"))
			}
			at.check(e)
			n++
		}
		if want := count(b); t.kind == "map" && n != 2*want || t.kind != "map" && n != want {
			panic(invalid("Validation failed: %s has %d of %d elements", t, n, want))
		}
		return
	case "tuple", "udt":
		for i, e := range fields(b) {
			if i >= len(t.parts()) {
				panic(invalid("Invalid remaining data after end of %s value", t.kind))
			}
			t.parts()[i].check(e)
		}
		return
	case "vector":
		if w := width(t.args[0].kind); w > 0 && len(b) != w*t.size {
			panic(invalid("Invalid vector value: %d bytes, expected %d", len(b), w*t.size))
		}
		return
	}
	if len(b) != w && (len(b) != 0 || t.kind == "tinyint" || t.kind == "smallint") {
		panic(invalid("Validation failed for type %s: got %d bytes", t.kind, len(b)))
	}
	if t.kind == "timeuuid" && len(b) == 16 && b[6]>>4 != 1 {
		panic(invalid("Validation failed - Unsupported UUID version (%d)", b[6]>>4))
	}
}

// count is the number of a collection's elements, or pairs.
func count(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(int32(binary.BigEndian.Uint32(b)))
}

// elements gives the elements of a collection; of a map, keys and values in turn.
func elements(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		if len(b) < 4 {
			return
		}
		for b = b[4:]; len(b) > 0; {
			v, rest := sized(b)
			if !yield(v) {
				return
			}
			b = rest
		}
	}
}

// fields gives the fields of a tuple or UDT that are there.
func fields(b []byte) func(func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for i := 0; len(b) > 0; i++ {
			v, rest := sized(b)
			if !yield(i, v) {
				return
			}
			b = rest
		}
	}
}

func sized(b []byte) (v, rest []byte) {
	if len(b) < 4 {
		panic(invalid("Not enough bytes to read a value"))
	}
	n := int32(binary.BigEndian.Uint32(b))
	if n < 0 {
		return nil, b[4:]
	}
	if int64(n) > int64(len(b)-4) {
		panic(invalid("Not enough bytes to read a value"))
	}
	return b[4 : 4+n : 4+n], b[4+n:]
}

func appendSized(b, v []byte) []byte {
	if v == nil {
		return binary.BigEndian.AppendUint32(b, math.MaxUint32)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

// collect encodes a collection of n elements, or pairs.
func collect(n int, parts ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for _, p := range parts {
		b = appendSized(b, p)
	}
	return b
}

// compare orders two values of a type, neither of them null.
func (t *ctype) compare(a, b []byte) int {
	if len(a) == 0 || len(b) == 0 {
		return cmp.Compare(len(a), len(b))
	}
	switch t.kind {
	case "int", "bigint", "counter", "timestamp", "smallint", "tinyint", "time":
		return cmp.Compare(signed(a), signed(b))
	case "varint":
		return bigInt(a).Cmp(bigInt(b))
	case "decimal":
		return ratOf(a).Cmp(ratOf(b))
	case "float":
		return compareFloats(float64(math.Float32frombits(binary.BigEndian.Uint32(a))), float64(math.Float32frombits(binary.BigEndian.Uint32(b))))
	case "double":
		return compareFloats(math.Float64frombits(binary.BigEndian.Uint64(a)), math.Float64frombits(binary.BigEndian.Uint64(b)))
	case "timeuuid":
		return compareTimeUUID(a, b)
	case "uuid":
		if va, vb := a[6]>>4, b[6]>>4; va != vb {
			return cmp.Compare(va, vb)
		} else if va == 1 {
			if d := bytes.Compare(timeBytes(a), timeBytes(b)); d != 0 {
				return d
			}
		}
	case "list", "set", "map":
		return compareSlices(slices.Collect(elements(a)), slices.Collect(elements(b)), func(i int) *ctype {
			if t.kind == "map" {
				return t.args[i%2]
			}
			return t.args[0]
		})
	case "tuple", "udt":
		var as, bs [][]byte
		for _, v := range fields(a) {
			as = append(as, v)
		}
		for _, v := range fields(b) {
			bs = append(bs, v)
		}
		return compareSlices(as, bs, func(i int) *ctype { return t.parts()[i] })
	}
	return bytes.Compare(a, b)
}

func compareSlices(a, b [][]byte, typ func(int) *ctype) int {
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == nil && b[i] == nil:
		case a[i] == nil:
			return -1
		case b[i] == nil:
			return 1
		default:
			if d := typ(i).compare(a[i], b[i]); d != 0 {
				return d
			}
		}
	}
	return cmp.Compare(len(a), len(b))
}

func compareFloats(a, b float64) int {
	switch an, bn := math.IsNaN(a), math.IsNaN(b); {
	case an && bn:
		return 0
	case an:
		return 1
	case bn:
		return -1
	case a == 0 && b == 0:
		return cmp.Compare(b2i(!math.Signbit(a)), b2i(!math.Signbit(b)))
	}
	return cmp.Compare(a, b)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func timeBytes(u []byte) []byte {
	return []byte{u[6] & 0x0f, u[7], u[4], u[5], u[0], u[1], u[2], u[3]}
}

// compareTimeUUID orders by time, then by the other bytes as signed ones.
func compareTimeUUID(a, b []byte) int {
	if d := cmp.Compare(uuidTicks(a), uuidTicks(b)); d != 0 {
		return d
	}
	for i := 8; i < 16; i++ {
		if d := cmp.Compare(int8(a[i]), int8(b[i])); d != 0 {
			return d
		}
	}
	return 0
}

// uuidTicks is the time of a UUID of version 1, in 100 ns since 1582-10-15.
func uuidTicks(u []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(u[6:])&0x0fff)<<48 | uint64(binary.BigEndian.Uint16(u[4:]))<<32 | uint64(binary.BigEndian.Uint32(u))
}

const uuidEpoch = 0x01B21DD213814000 // 1970 in ticks

func uuidMicros(u []byte) int64 { return (int64(uuidTicks(u)) - uuidEpoch) / 10 }

// timeUUID makes a UUID of version 1 of a time in microseconds and 8 other bytes.
func timeUUID(micros int64, ticks uint64, rest [8]byte) []byte {
	t := uint64(micros*10+uuidEpoch) + ticks
	u := make([]byte, 16)
	binary.BigEndian.PutUint32(u, uint32(t))
	binary.BigEndian.PutUint16(u[4:], uint16(t>>32))
	binary.BigEndian.PutUint16(u[6:], uint16(t>>48)&0x0fff|0x1000)
	copy(u[8:], rest[:])
	u[8] = u[8]&0x3f | 0x80
	return u
}

func signed(b []byte) (v int64) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		v = -1
	}
	for _, x := range b {
		v = v<<8 | int64(x)
	}
	return v
}

func encodeInt(v int64, size int) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(v))[8-size:]
}

func bigInt(b []byte) *big.Int {
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	return n
}

func encodeBig(n *big.Int) []byte {
	if n.Sign() >= 0 {
		b := n.Bytes()
		if len(b) == 0 || b[0]&0x80 != 0 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	size := len(new(big.Int).Add(n, big.NewInt(1)).Bytes())
	b := new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(size+1)*8)).Bytes()
	for len(b) > 1 && b[0] == 0xff && b[1]&0x80 != 0 {
		b = b[1:]
	}
	return b
}

// maxScale bounds the digits that a decimal is shown and compared with.
const maxScale = 10000

func ratOf(b []byte) *big.Rat {
	scale := signed(b[:4])
	r := new(big.Rat).SetInt(bigInt(b[4:]))
	if scale > maxScale || scale < -maxScale {
		panic(invalid("the double compares decimals with a scale of at most %d", maxScale))
	}
	p := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(max(scale, -scale)), nil))
	if scale > 0 {
		return r.Quo(r, p)
	}
	return r.Mul(r, p)
}

// encode makes a value of a constant.
func (t *ctype) encode(lit tokenKind, s string) []byte {
	bad := func() failure {
		return invalid("Invalid %s constant (%s) for type %s", litName(lit), s, t)
	}
	switch t.kind {
	case "text", "ascii":
		if lit == tokString {
			b := []byte(s)
			t.check(b)
			return b
		}
	case "blob":
		if lit == tokBlob {
			if b, err := hex.DecodeString(s); err == nil {
				return append([]byte{}, b...)
			}
		}
	case "boolean":
		if lit == tokName {
			return []byte{byte(b2i(s == "true"))}
		}
	case "int", "bigint", "counter", "smallint", "tinyint":
		if lit == tokNumber {
			w := width(t.kind)
			if n, err := strconv.ParseInt(s, 10, w*8); err == nil {
				return encodeInt(n, w)
			}
		}
	case "varint":
		if n, ok := new(big.Int).SetString(s, 10); ok && lit == tokNumber {
			return encodeBig(n)
		}
	case "float", "double":
		f, err := strconv.ParseFloat(s, 64)
		if lit == tokNumber && err == nil {
			if t.kind == "float" {
				return binary.BigEndian.AppendUint32(nil, math.Float32bits(float32(f)))
			}
			return binary.BigEndian.AppendUint64(nil, math.Float64bits(f))
		}
	case "decimal":
		if b := encodeDecimal(s); b != nil && lit == tokNumber {
			return b
		}
	case "uuid", "timeuuid":
		if lit == tokUUID {
			b, _ := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
			t.check(b)
			return b
		}
	case "inet":
		if a, err := netip.ParseAddr(s); err == nil && lit == tokString {
			return a.AsSlice()
		}
	case "timestamp", "date", "time":
		if b := t.encodeTime(lit, s); b != nil {
			return b
		}
	case "duration":
		if lit == tokDuration {
			if b := encodeDuration(s); b != nil {
				return b
			}
		}
	}
	panic(bad())
}

func litName(k tokenKind) string {
	return map[tokenKind]string{tokString: "STRING", tokNumber: "INTEGER", tokBlob: "HEX", tokName: "BOOLEAN", tokUUID: "UUID", tokDuration: "DURATION"}[k]
}

func encodeDecimal(s string) []byte {
	mant, exp := s, int64(0)
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.ParseInt(s[i+1:], 10, 16)
		if err != nil {
			return nil
		}
		mant, exp = s[:i], e
	}
	whole, frac, _ := strings.Cut(mant, ".")
	n, ok := new(big.Int).SetString(whole+frac, 10)
	if !ok {
		return nil
	}
	return append(encodeInt(int64(len(frac))-exp, 4), encodeBig(n)...)
}

var timeLayouts = []string{"2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999-0700", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04Z07:00",
	"2006-01-02 15:04-0700", "2006-01-02 15:04", "2006-01-02"}

func (t *ctype) encodeTime(lit tokenKind, s string) []byte {
	n, err := strconv.ParseInt(s, 10, 64)
	if lit == tokNumber && err == nil {
		if t.kind == "date" {
			return encodeInt(n, 4)
		}
		return encodeInt(n, 8)
	}
	if lit != tokString {
		return nil
	}
	switch t.kind {
	case "timestamp":
		for _, l := range timeLayouts {
			if at, err := time.Parse(l, strings.Replace(s, "T", " ", 1)); err == nil {
				return encodeInt(at.UnixMilli(), 8)
			}
		}
	case "date":
		if at, err := time.Parse("2006-01-02", s); err == nil {
			return encodeInt(at.Unix()/86400+1<<31, 4)
		}
	case "time":
		if at, err := time.Parse("15:04:05.999999999", s); err == nil {
			return encodeInt(int64(at.Sub(at.Truncate(24*time.Hour))), 8)
		}
	}
	return nil
}

func encodeDuration(s string) []byte {
	neg := strings.HasPrefix(s, "-")
	s = strings.ToLower(strings.TrimPrefix(s, "-"))
	var months, days, nanos int64
	for s != "" {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		j := i
		for j < len(s) && (s[j] < '0' || s[j] > '9') {
			j++
		}
		n, err := strconv.ParseInt(s[:i], 10, 32)
		if err != nil {
			return nil
		}
		switch s[i:j] {
		case "y":
			months += 12 * n
		case "mo":
			months += n
		case "w":
			days += 7 * n
		case "d":
			days += n
		case "h":
			nanos += n * int64(time.Hour)
		case "m":
			nanos += n * int64(time.Minute)
		case "s":
			nanos += n * int64(time.Second)
		case "ms":
			nanos += n * int64(time.Millisecond)
		case "us", "µs":
			nanos += n * int64(time.Microsecond)
		case "ns":
			nanos += n
		default:
			return nil
		}
		s = s[j:]
	}
	if neg {
		months, days, nanos = -months, -days, -nanos
	}
	return appendVint(appendVint(appendVint(nil, months), days), nanos)
}

// appendVint writes an integer as section 3 of the protocol has it: zigzag, with
// the number of further bytes in the first one's leading ones.
func appendVint(b []byte, v int64) []byte {
	u := uint64(v<<1) ^ uint64(v>>63)
	extra := 0
	for extra < 8 && u>>(7*(extra+1)) != 0 {
		extra++
	}
	if extra == 8 {
		return binary.BigEndian.AppendUint64(append(b, 0xff), u)
	}
	w := binary.BigEndian.AppendUint64(nil, u)[8-extra-1:]
	w[0] |= ^byte(0xff >> extra)
	return append(b, w...)
}

func readVint(b []byte) (v int64, rest []byte) {
	if len(b) == 0 {
		return 0, nil
	}
	extra := 0
	for extra < 8 && b[0]&(0x80>>extra) != 0 {
		extra++
	}
	if len(b) < extra+1 {
		return 0, nil
	}
	u := uint64(b[0] & (0xff >> extra))
	if extra == 8 {
		u = 0
	}
	for _, x := range b[1 : extra+1] {
		u = u<<8 | uint64(x)
	}
	return int64(u>>1) ^ -int64(u&1), b[extra+1:]
}

// show gives a value as cqlsh shows it.
func (t *ctype) show(b []byte) string {
	if b == nil {
		return "null"
	}
	if len(b) == 0 && t.kind != "text" && t.kind != "ascii" && t.kind != "blob" {
		return ""
	}
	nested := func(t *ctype, b []byte) string {
		if s := t.show(b); b != nil && slices.Contains([]string{"text", "ascii", "inet", "timestamp", "date", "time"}, t.kind) {
			return "'" + strings.ReplaceAll(s, "'", "''") + "'"
		} else {
			return s
		}
	}
	switch t.kind {
	case "text", "ascii":
		return string(b)
	case "blob":
		return "0x" + hex.EncodeToString(b)
	case "boolean":
		return map[bool]string{true: "True", false: "False"}[b[0] != 0]
	case "int", "bigint", "counter", "smallint", "tinyint":
		return strconv.FormatInt(signed(b), 10)
	case "varint":
		return bigInt(b).String()
	case "decimal":
		if scale := signed(b[:4]); scale >= 0 && scale <= maxScale {
			return ratOf(b).FloatString(int(scale))
		}
		return fmt.Sprintf("%sE%d", bigInt(b[4:]), -signed(b[:4]))
	case "float":
		return strconv.FormatFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(b))), 'g', -1, 32)
	case "double":
		return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64(b)), 'g', -1, 64)
	case "uuid", "timeuuid":
		return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	case "inet":
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case "timestamp":
		return time.UnixMilli(signed(b)).UTC().Format("2006-01-02 15:04:05.000000+0000")
	case "date":
		return time.Unix((int64(binary.BigEndian.Uint32(b))-1<<31)*86400, 0).UTC().Format("2006-01-02")
	case "time":
		return time.Unix(0, signed(b)).UTC().Format("15:04:05.000000000")
	case "duration":
		mo, rest := readVint(b)
		d, rest := readVint(rest)
		ns, _ := readVint(rest)
		return fmt.Sprintf("%dmo%dd%dns", mo, d, ns)
	case "list", "set", "vector":
		var s []string
		if t.kind == "vector" {
			w := width(t.args[0].kind)
			for ; w > 0 && len(b) >= w; b = b[w:] {
				s = append(s, nested(t.args[0], b[:w]))
			}
		}
		for e := range elements(b) {
			s = append(s, nested(t.args[0], e))
		}
		if t.kind == "set" {
			return "{" + strings.Join(s, ", ") + "}"
		}
		return "[" + strings.Join(s, ", ") + "]"
	case "map":
		var s []string
		for e := range elements(b) {
			s = append(s, nested(t.args[len(s)%2], e))
		}
		var pairs []string
		for i := 0; i+1 < len(s); i += 2 {
			pairs = append(pairs, s[i]+": "+s[i+1])
		}
		return "{" + strings.Join(pairs, ", ") + "}"
	case "tuple", "udt":
		s := make([]string, len(t.parts()))
		for i, p := range t.parts() {
			s[i] = nested(p, nil)
		}
		for i, v := range fields(b) {
			s[i] = nested(t.parts()[i], v)
		}
		if t.kind == "tuple" {
			return "(" + strings.Join(s, ", ") + ")"
		}
		for i := range s {
			s[i] = t.udt.fields[i] + ": " + s[i]
		}
		return "{" + strings.Join(s, ", ") + "}"
	}
	return "0x" + hex.EncodeToString(b)
}
