package postgres

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// encodeParams fits JSON values to the types that the server wants, in its text
// format. Errors are invalid_request and name the parameter.
func (ts *Types) encodeParams(oids []uint32, params []json.RawMessage) ([][]byte, error) {
	if len(params) != len(oids) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the statement has %d parameters and params holds %d", len(oids), len(params)).At("params")
	}
	if len(params) == 0 {
		return nil, nil
	}
	out := make([][]byte, len(params))
	for i, raw := range params {
		path := "params[" + strconv.Itoa(i) + "]"
		raw = bytes.TrimSpace(raw)
		if !json.Valid(raw) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "%s is not valid JSON", path).At(path)
		}
		if string(raw) == "null" {
			continue
		}
		t := ts.lookup(oids[i])
		text, problem := encodeParam(nil, t, oids[i], raw)
		if problem != "" {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "%s is %s; parameter $%d is of type %s and %s", path, jsonKind(raw), i+1, t.name, problem).At(path)
		}
		out[i] = text
	}
	return out, nil
}

// jsonKind names what a valid JSON value is.
func jsonKind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return string(raw)
	case 'n':
		return "null"
	}
	if len(raw) > 40 {
		return "a number"
	}
	return "the number " + string(raw)
}

const (
	int2OID, int4OID, int8OID = 21, 23, 20
	numericOID                = 1700
	moneyOID                  = 790
)

// encodeParam appends the text form of one value, not null, or says in words
// what the type takes.
func encodeParam(dst []byte, t *typ, oid uint32, raw []byte) (_ []byte, problem string) {
	switch t.kind {
	case kindJSON: // as it is: a JSON string becomes a JSON string
		return append(dst, raw...), ""
	case kindArray, kindVector:
		if raw[0] == '[' && t.kind == kindArray {
			return encodeArray(dst, t, oid, raw, 1)
		}
	case kindBool:
		if raw[0] == 't' || raw[0] == 'f' {
			return append(dst, raw...), ""
		}
	}

	c := raw[0]
	if c == '{' || c == '[' {
		if t.kind == kindArray || t.kind == kindVector {
			return nil, "takes an array, or a string in PostgreSQL's own form"
		}
		return nil, "takes a string in PostgreSQL's own form"
	}
	text := raw
	if c == '"' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, "takes another string"
		}
		if strings.IndexByte(s, 0) >= 0 {
			return nil, "cannot hold the character U+0000"
		}
		text = []byte(s)
	}

	switch {
	case t.kind == kindInt:
		bits := 64
		switch t {
		case static[int2OID]:
			bits = 16
		case static[int4OID]:
			bits = 32
		}
		// A string is taken too: a number beyond 2^53 cannot be written
		// otherwise in some languages.
		trimmed := strings.TrimSpace(string(text))
		var err error
		if t == static[oidOID] {
			_, err = strconv.ParseUint(trimmed, 10, 32)
		} else {
			_, err = strconv.ParseInt(trimmed, 10, bits)
		}
		if err != nil {
			return nil, "takes a whole number in its range"
		}
		return append(dst, trimmed...), ""
	case t.kind == kindFloat || t == static[numericOID]:
		if c == 't' || c == 'f' {
			return nil, "takes a number, or a string such as \"1.50\" or \"NaN\""
		}
		return append(dst, text...), ""
	case t.kind == kindBytea:
		if c != '"' {
			return nil, "takes a string in base64"
		}
		if bytes.HasPrefix(text, []byte(`\x`)) { // PostgreSQL's own form
			return append(dst, text...), ""
		}
		data, err := base64.StdEncoding.DecodeString(string(text))
		if err != nil {
			return nil, `takes a string in base64, or in hexadecimal after \x`
		}
		dst = append(dst, `\x`...)
		return hex.AppendEncode(dst, data), ""
	case c == '"' && (t.kind == kindDate || t.kind == kindTimestamp || t.kind == kindTimestamptz):
		return appendYear(dst, text), ""
	case c == '"':
		return append(dst, text...), ""
	case isText(oid) || t.kind == kindText && t == textType || t == static[moneyOID]:
		// A text column takes a number or a truth value as it is written.
		return append(dst, text...), ""
	case t.kind == kindBool:
		return nil, "takes true or false"
	}
	return nil, "takes a string"
}

// appendYear appends the text of a time, with a year in the expanded form of ISO
// 8601 as PostgreSQL reads it: -000043-03-15 is 0044-03-15 BC.
func appendYear(dst, text []byte) []byte {
	year, bc := 4, bytes.HasPrefix(text, []byte("0000-"))
	if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
		if year = digits(text[1:]); year < 6 || year > 9 {
			return append(dst, text...)
		}
		bc, text = text[0] == '-', text[1:]
	} else if !bc {
		return append(dst, text...)
	}
	n, _ := strconv.Atoi(string(text[:year]))
	if bc {
		n++ // year 0 is 1 BC
	}
	dst = append(appendPadded(dst, n, 4), text[year:]...)
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst
}

const oidOID = 26

// isText reports whether the type holds any text: text, varchar, bpchar, name,
// unknown.
func isText(oid uint32) bool {
	switch oid {
	case textOID, 1043, 1042, 19, 705:
		return true
	}
	return false
}

// encodeArray writes a JSON array as a PostgreSQL array; arrays within arrays
// are further dimensions, unless the elements are json.
func encodeArray(dst []byte, t *typ, oid uint32, raw []byte, dimension int) (_ []byte, problem string) {
	var items []json.RawMessage
	if dimension > maxDimensions || json.Unmarshal(raw, &items) != nil {
		return nil, fmt.Sprintf("takes an array of at most %d dimensions", maxDimensions)
	}
	dst = append(dst, '{')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, t.delim)
		}
		item = bytes.TrimSpace(item)
		switch {
		case string(item) == "null":
			dst = append(dst, "NULL"...)
		case item[0] == '[' && t.elem.kind != kindJSON:
			if dst, problem = encodeArray(dst, t, oid, item, dimension+1); problem != "" {
				return nil, problem
			}
		default:
			text, problem := encodeParam(nil, t.elem, elemOID(t.elem), item)
			if problem != "" {
				return nil, fmt.Sprintf("its element %d %s", i, problem)
			}
			dst = append(dst, '"')
			for _, c := range text {
				if c == '"' || c == '\\' {
					dst = append(dst, '\\')
				}
				dst = append(dst, c)
			}
			dst = append(dst, '"')
		}
	}
	return append(dst, '}'), ""
}

// elemOID is the OID of a text-like built-in type, 0 for any other.
func elemOID(t *typ) uint32 {
	for _, oid := range [...]uint32{textOID, 1043, 1042, 19, 705} {
		if t == static[oid] {
			return oid
		}
	}
	return 0
}
