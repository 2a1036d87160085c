package scylla

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"
)

// marshalJSON is the reverse of appendValue: it gives the wire form of a JSON
// value for a type, nil for null. An error says in words what the type takes, to
// stand behind the name of what is of that type: "takes true or false".
func marshalJSON(t gocql.TypeInfo, raw json.RawMessage) ([]byte, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("takes valid JSON")
	}
	return encodeJSON(t, raw)
}

// encodeJSON is for valid JSON.
func encodeJSON(t gocql.TypeInfo, raw []byte) ([]byte, error) {
	if string(raw) == "null" {
		return nil, nil
	}
	switch t := t.(type) {
	case gocql.CollectionType:
		if t.Type() == gocql.TypeMap {
			return encodeMap(t, raw)
		}
		return encodeList(t, raw)
	case gocql.TupleTypeInfo:
		return encodeTuple(t, raw)
	case gocql.UDTTypeInfo:
		return encodeUDT(t, raw)
	case gocql.VectorType:
		return encodeVector(t, raw)
	}
	if t.Type() == gocql.TypeBoolean {
		switch string(raw) {
		case "true":
			return []byte{1}, nil
		case "false":
			return []byte{0}, nil
		}
		return nil, fmt.Errorf("takes true or false")
	}
	text, quoted := string(raw), raw[0] == '"'
	switch {
	case raw[0] == '{', raw[0] == '[':
		return nil, fmt.Errorf("takes %s", wants[t.Type()])
	case quoted:
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, fmt.Errorf("takes another string")
		}
	}
	data, ok := encodeScalar(t.Type(), text, quoted)
	if !ok {
		return nil, fmt.Errorf("takes %s", wants[t.Type()])
	}
	return data, nil
}

// wants says what the scalar types take.
var wants = map[gocql.Type]string{
	gocql.TypeAscii: "a string of ASCII characters", gocql.TypeVarchar: "a string", gocql.TypeText: "a string",
	gocql.TypeTinyInt: "a whole number from -128 to 127", gocql.TypeSmallInt: "a whole number from -32768 to 32767",
	gocql.TypeInt:     "a whole number from -2147483648 to 2147483647",
	gocql.TypeBigInt:  "a whole number from -9223372036854775808 to 9223372036854775807",
	gocql.TypeCounter: "a whole number from -9223372036854775808 to 9223372036854775807",
	gocql.TypeVarint:  `a whole number, or a string such as "12345678901234567890"`,
	gocql.TypeDecimal: `a number, or a string such as "19.90"`,
	gocql.TypeFloat:   `a number in its range, or a string such as "0.5" or "NaN"`,
	gocql.TypeDouble:  `a number in its range, or a string such as "0.5" or "NaN"`,
	gocql.TypeUUID:    "a string such as \"123e4567-e89b-42d3-a456-426614174000\"", gocql.TypeTimeUUID: "the string of a UUID of version 1",
	gocql.TypeInet: "the string of an IPv4 or IPv6 address", gocql.TypeBlob: "a string in base64",
	gocql.TypeTimestamp: `a string such as "2026-11-22T10:00:00.123Z", to the millisecond, or the milliseconds since 1970`,
	gocql.TypeDate:      `a string such as "2026-11-22"`, gocql.TypeTime: `a string such as "10:00:00.5"`,
	gocql.TypeDuration: `a string such as "P1Y2M3DT4H5M6.789S" or "1y2mo3d4h5m6s789ms"`,
	gocql.TypeCustom:   "a string in base64",
}

// encodeScalar reports false for a text that is not of the type; quoted says that
// it was a string.
func encodeScalar(kind gocql.Type, text string, quoted bool) ([]byte, bool) {
	switch kind {
	case gocql.TypeVarchar, gocql.TypeText: // a number or a truth value as it is written
		return []byte(text), true
	case gocql.TypeAscii:
		for i := range len(text) {
			if text[i] >= 0x80 {
				return nil, false
			}
		}
		return []byte(text), true
	case gocql.TypeTinyInt, gocql.TypeSmallInt, gocql.TypeInt, gocql.TypeBigInt, gocql.TypeCounter:
		size := sizes[kind]
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 8*size)
		return binary.BigEndian.AppendUint64(nil, uint64(n))[8-size:], err == nil
	case gocql.TypeVarint:
		n, ok := parseInteger(text)
		if !ok {
			return nil, false
		}
		return appendTwos(nil, n), true
	case gocql.TypeDecimal:
		return encodeDecimal(text)
	case gocql.TypeFloat, gocql.TypeDouble:
		return encodeFloat(text, 8*sizes[kind])
	}
	if !quoted && kind != gocql.TypeTimestamp {
		return nil, false
	}
	switch kind {
	case gocql.TypeUUID, gocql.TypeTimeUUID:
		u, err := gocql.ParseUUID(text)
		if err != nil || len(text) != 36 || kind == gocql.TypeTimeUUID && u.Version() != 1 {
			return nil, false
		}
		return u.Bytes(), true
	case gocql.TypeInet:
		addr, err := netip.ParseAddr(text)
		return addr.AsSlice(), err == nil && addr.Zone() == ""
	case gocql.TypeBlob, gocql.TypeCustom:
		data, err := base64.StdEncoding.DecodeString(text)
		if data == nil {
			data = []byte{}
		}
		return data, err == nil
	case gocql.TypeTimestamp:
		ms, ok := parseTimestamp(text, quoted)
		return binary.BigEndian.AppendUint64(nil, uint64(ms)), ok
	case gocql.TypeDate:
		days, rest, ok := cutDate(text)
		return binary.BigEndian.AppendUint32(nil, uint32(days+1<<31)), ok && rest == "" && days >= -1<<31 && days < 1<<31
	case gocql.TypeTime:
		ns, rest, ok := cutClock(text)
		return binary.BigEndian.AppendUint64(nil, uint64(ns)), ok && rest == ""
	case gocql.TypeDuration:
		months, days, ns, ok := parseDuration(text)
		return appendVint(appendVint(appendVint(nil, months), days), ns), ok
	}
	return nil, false
}

// mostDigits bounds numbers without a bound of their own.
const mostDigits = 100_000

func parseInteger(text string) (*big.Int, bool) {
	text = strings.TrimSpace(text)
	if len(text) > mostDigits || strings.ContainsRune(text, '_') {
		return nil, false
	}
	return new(big.Int).SetString(text, 10)
}

// appendTwos appends n in two's complement with the fewest bytes, at least one.
func appendTwos(dst []byte, n *big.Int) []byte {
	if n.Sign() >= 0 {
		data := n.Bytes()
		if len(data) == 0 || data[0]&0x80 != 0 {
			dst = append(dst, 0)
		}
		return append(dst, data...)
	}
	size := new(big.Int).Not(n).BitLen()/8 + 1
	data := new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(size)*8)).Bytes()
	return append(dst, data...)
}

// encodeDecimal keeps the scale: 1.50 is 150 at the scale 2, and 5E3 is 5 at the
// scale -3.
func encodeDecimal(text string) ([]byte, bool) {
	text = strings.TrimSpace(text)
	exp := int64(0)
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		var err error
		if exp, err = strconv.ParseInt(text[i+1:], 10, 33); err != nil {
			return nil, false
		}
		text = text[:i]
	}
	whole, fraction, point := strings.Cut(text, ".")
	if point && (fraction == "" || strings.ContainsAny(fraction, "+-")) {
		return nil, false
	}
	n, ok := parseInteger(whole + fraction)
	scale := int64(len(fraction)) - exp
	if !ok || scale != int64(int32(scale)) {
		return nil, false
	}
	return appendTwos(binary.BigEndian.AppendUint32(nil, uint32(scale)), n), true
}

func encodeFloat(text string, bits int) ([]byte, bool) {
	text = strings.TrimSpace(text)
	if strings.ContainsAny(text, "xX_pP") {
		return nil, false
	}
	f, err := strconv.ParseFloat(text, bits) // it knows NaN, Infinity and -Infinity
	if bits == 32 {
		return binary.BigEndian.AppendUint32(nil, math.Float32bits(float32(f))), err == nil
	}
	return binary.BigEndian.AppendUint64(nil, math.Float64bits(f)), err == nil
}

// parseTimestamp gives milliseconds since 1970. What is finer is refused: it
// would be another time. Without an offset a time is in UTC.
func parseTimestamp(text string, quoted bool) (ms int64, ok bool) {
	if !quoted {
		ms, err := strconv.ParseInt(text, 10, 64)
		return ms, err == nil
	}
	days, rest, ok := cutDate(text)
	if !ok {
		return 0, false
	}
	var ns, offset int64
	if rest != "" {
		if rest[0] != 'T' && rest[0] != 't' && rest[0] != ' ' {
			return 0, false
		}
		if ns, rest, ok = cutClock(rest[1:]); !ok || ns%1e6 != 0 {
			return 0, false
		}
		if offset, ok = parseOffset(rest); !ok {
			return 0, false
		}
	}
	// The first and the last day are longer than what 64 bits hold of them.
	sum := new(big.Int).Mul(big.NewInt(days), big.NewInt(86400_000))
	sum.Add(sum, big.NewInt(ns/1e6-offset*1000))
	return sum.Int64(), sum.IsInt64()
}

// parseOffset gives seconds east of UTC.
func parseOffset(text string) (seconds int64, ok bool) {
	if text == "" || text == "Z" || text == "z" {
		return 0, true
	}
	for _, layout := range [...]string{"-07:00", "-0700", "-07"} {
		if t, err := time.Parse(layout, text); err == nil {
			_, offset := t.Zone()
			return int64(offset), true
		}
	}
	return 0, false
}

// cutDate reads 2026-11-22, and years in the expanded form of ISO 8601; it gives
// days since 1970.
func cutDate(text string) (days int64, rest string, ok bool) {
	sign, width := int64(1), 4
	if text != "" && (text[0] == '+' || text[0] == '-') {
		if text[0] == '-' {
			sign = -1
		}
		text = text[1:]
		if width = countDigits(text); width < 6 || width > 9 {
			return 0, "", false
		}
	}
	if countDigits(text) != width {
		return 0, "", false
	}
	year, _ := strconv.ParseInt(text[:width], 10, 64)
	text = text[width:]
	month, text, ok1 := cutTwo(text, "-")
	day, text, ok2 := cutTwo(text, "-")
	t := time.Date(int(sign*year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC)
	if !ok1 || !ok2 || int64(t.Month()) != month || int64(t.Day()) != day {
		return 0, "", false
	}
	return t.Unix() / 86400, text, true
}

// cutClock reads 10:00, 10:00:00 and 10:00:00.123456789; it gives nanoseconds
// since midnight.
func cutClock(text string) (ns int64, rest string, ok bool) {
	hour, text, ok1 := cutTwo(text, "")
	minute, text, ok2 := cutTwo(text, ":")
	if !ok1 || !ok2 || hour > 23 || minute > 59 {
		return 0, "", false
	}
	ns = (hour*60 + minute) * 60e9
	if !strings.HasPrefix(text, ":") {
		return ns, text, true
	}
	second, text, ok := cutTwo(text, ":")
	if !ok || second > 59 {
		return 0, "", false
	}
	ns += second * 1e9
	if strings.HasPrefix(text, ".") {
		n := countDigits(text[1:])
		if n == 0 || n > 9 {
			return 0, "", false
		}
		fraction, _ := strconv.ParseInt((text[1:1+n] + "00000000")[:9], 10, 64)
		ns, text = ns+fraction, text[1+n:]
	}
	return ns, text, true
}

// cutTwo reads two digits after a separator.
func cutTwo(text, separator string) (n int64, rest string, ok bool) {
	text, ok = strings.CutPrefix(text, separator)
	if !ok || len(text) < 2 || countDigits(text[:2]) < 2 {
		return 0, text, false
	}
	return int64(text[0]-'0')*10 + int64(text[1]-'0'), text[2:], true
}

// countDigits counts the decimal digits that s begins with.
func countDigits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

// parseDuration reads ISO 8601 durations, with a sign before all or at each
// number, and CQL's own form 1y2mo3d4h5m6s7ms8us9ns.
func parseDuration(text string) (months, days, ns int64, ok bool) {
	sign := int64(1)
	if rest, negative := strings.CutPrefix(text, "-"); negative {
		sign, text = -1, rest
	}
	if rest, iso := strings.CutPrefix(text, "P"); iso {
		months, days, ns, ok = isoDuration(rest)
	} else {
		months, days, ns, ok = cqlDuration(text)
	}
	mixed := (months < 0 || days < 0 || ns < 0) && (months > 0 || days > 0 || ns > 0)
	fits := months == int64(int32(months)) && days == int64(int32(days)) && ns != math.MinInt64
	return sign * months, sign * days, sign * ns, ok && fits && !mixed
}

func isoDuration(text string) (months, days, ns int64, ok bool) {
	units := map[byte]unit{'Y': {&months, 12}, 'M': {&months, 1}, 'W': {&days, 7}, 'D': {&days, 1}}
	clock := map[byte]unit{'H': {&ns, 3600e9}, 'M': {&ns, 60e9}, 'S': {&ns, 1e9}}
	any := false
	for text != "" {
		if text[0] == 'T' {
			units, text = clock, text[1:]
			any = false
			continue
		}
		i := strings.IndexFunc(text, func(r rune) bool { return r >= 'A' && r <= 'Z' })
		if i < 0 {
			return 0, 0, 0, false
		}
		u, known := units[text[i]]
		if !known || !u.add(text[:i]) {
			return 0, 0, 0, false
		}
		delete(units, text[i])
		text, any = text[i+1:], true
	}
	return months, days, ns, any
}

func cqlDuration(text string) (months, days, ns int64, ok bool) {
	units := map[string]unit{
		"y": {&months, 12}, "mo": {&months, 1}, "w": {&days, 7}, "d": {&days, 1}, "h": {&ns, 3600e9}, "m": {&ns, 60e9},
		"s": {&ns, 1e9}, "ms": {&ns, 1e6}, "us": {&ns, 1e3}, "µs": {&ns, 1e3}, "ns": {&ns, 1},
	}
	any := false
	for text != "" {
		n := countDigits(text)
		end := n
		for end < len(text) && (text[end] < '0' || text[end] > '9') {
			end++
		}
		name := strings.ToLower(text[n:end])
		u, known := units[name]
		if !known || !u.add(text[:n]) {
			return 0, 0, 0, false
		}
		delete(units, name)
		text, any = text[end:], true
	}
	return months, days, ns, any
}

// A unit of durations counts into one of their three numbers.
type unit struct {
	into *int64
	each int64
}

// add adds a decimal number of the unit; only seconds may have a fraction.
func (u unit) add(text string) bool {
	whole, fraction, point := strings.Cut(text, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n > math.MaxInt64/u.each || n < -(math.MaxInt64/u.each) {
		return false
	}
	n *= u.each
	if point {
		if u.each != 1e9 || fraction == "" || len(fraction) > 9 || countDigits(fraction) < len(fraction) {
			return false
		}
		f, _ := strconv.ParseInt((fraction + "00000000")[:9], 10, 64)
		if strings.HasPrefix(whole, "-") {
			f = -f
		}
		n += f
	}
	sum := *u.into + n
	if (sum < *u.into) != (n < 0) {
		return false // it went around
	}
	*u.into = sum
	return true
}

// appendUvint is the reverse of readUvint.
func appendUvint(dst []byte, u uint64) []byte {
	more := 0
	for more < 8 && u>>(7*(more+1)) != 0 {
		more++
	}
	if more == 8 {
		return binary.BigEndian.AppendUint64(append(dst, 0xff), u)
	}
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], u)
	start := len(dst)
	dst = append(dst, buf[7-more:]...)
	dst[start] |= ^byte(0xff >> more)
	return dst
}

func appendVint(dst []byte, n int64) []byte {
	return appendUvint(dst, uint64(n<<1)^uint64(n>>63))
}

// appendSized appends a value with its length before it.
func appendSized(dst, value []byte) []byte {
	if value == nil {
		return append(dst, 0xff, 0xff, 0xff, 0xff)
	}
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(value))), value...)
}

// items takes a JSON array apart.
func items(raw []byte) ([]json.RawMessage, bool) {
	var list []json.RawMessage
	return list, raw[0] == '[' && json.Unmarshal(raw, &list) == nil
}

func encodeList(t gocql.CollectionType, raw []byte) ([]byte, error) {
	list, ok := items(raw)
	if !ok {
		return nil, fmt.Errorf("takes an array")
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(list)))
	for i, item := range list {
		value, err := encodeJSON(t.Elem, bytes.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("has elements of type %s: its element %d %w", typeName(t.Elem), i, err)
		}
		data = appendSized(data, value)
	}
	return data, nil
}

func encodeTuple(t gocql.TupleTypeInfo, raw []byte) ([]byte, error) {
	list, ok := items(raw)
	if !ok || len(list) != len(t.Elems) {
		return nil, fmt.Errorf("takes an array of %d elements", len(t.Elems))
	}
	data := []byte{}
	for i, item := range list {
		value, err := encodeJSON(t.Elems[i], bytes.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("has a %s as its element %d, which %w", typeName(t.Elems[i]), i, err)
		}
		data = appendSized(data, value)
	}
	return data, nil
}

func encodeVector(t gocql.VectorType, raw []byte) ([]byte, error) {
	list, ok := items(raw)
	if !ok || len(list) != t.Dimensions {
		return nil, fmt.Errorf("takes an array of %d elements", t.Dimensions)
	}
	data, sized := []byte{}, vectorSize(t.SubType) < 0
	for i, item := range list {
		value, err := encodeJSON(t.SubType, bytes.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("has elements of type %s: its element %d %w", typeName(t.SubType), i, err)
		}
		if value == nil {
			return nil, fmt.Errorf("holds no null, as its element %d is", i)
		}
		if sized {
			data = appendUvint(data, uint64(len(value)))
		}
		data = append(data, value...)
	}
	return data, nil
}

// member is one member of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// members takes a JSON object apart, in its own order.
func members(raw []byte) ([]member, bool) {
	if raw[0] != '{' {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	var list []member
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, false
		}
		m := member{name: name.(string)}
		if dec.Decode(&m.value) != nil {
			return nil, false
		}
		list = append(list, m)
	}
	return list, true
}

// encodeMap reads keys as appendMap writes them.
func encodeMap(t gocql.CollectionType, raw []byte) ([]byte, error) {
	list, ok := members(raw)
	if !ok {
		return nil, fmt.Errorf("takes an object")
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(list)))
	for _, m := range list {
		key, err := encodeKey(t.Key, m.name)
		if err != nil {
			return nil, fmt.Errorf("has keys of type %s: the key %q %w", typeName(t.Key), clip(m.name), err)
		}
		value, err := encodeJSON(t.Elem, bytes.TrimSpace(m.value))
		if err != nil {
			return nil, fmt.Errorf("has values of type %s: that of %q %w", typeName(t.Elem), clip(m.name), err)
		}
		data = appendSized(appendSized(data, key), value)
	}
	return data, nil
}

// encodeKey reads the name of a member as a value of the type.
func encodeKey(t gocql.TypeInfo, name string) ([]byte, error) {
	switch t.Type() {
	case gocql.TypeBoolean, gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeTuple, gocql.TypeUDT:
		return marshalJSON(t, json.RawMessage(name))
	case gocql.TypeCustom:
		if _, ok := t.(gocql.VectorType); ok {
			return marshalJSON(t, json.RawMessage(name))
		}
	}
	data, ok := encodeScalar(t.Type(), name, true)
	if !ok {
		return nil, fmt.Errorf("is not %s", wants[t.Type()])
	}
	return data, nil
}

func encodeUDT(t gocql.UDTTypeInfo, raw []byte) ([]byte, error) {
	list, ok := members(raw)
	if !ok {
		return nil, fmt.Errorf("takes an object")
	}
	values := make([][]byte, len(t.Elements))
	for _, m := range list {
		i := 0
		for i < len(t.Elements) && t.Elements[i].Name != m.name {
			i++
		}
		if i == len(t.Elements) {
			return nil, fmt.Errorf("has no field %q", clip(m.name))
		}
		value, err := encodeJSON(t.Elements[i].Type, bytes.TrimSpace(m.value))
		if err != nil {
			return nil, fmt.Errorf("has the field %s of type %s, which %w", m.name, typeName(t.Elements[i].Type), err)
		}
		values[i] = value
	}
	data := []byte{}
	for _, value := range values {
		data = appendSized(data, value)
	}
	return data, nil
}

// clip bounds what is shown of a text of others.
func clip(text string) string {
	const most = 4 << 10
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
