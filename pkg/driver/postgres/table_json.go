package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// fitJSON writes the JSON form of an array, a composite, a range or a multirange
// as PostgreSQL's text; it is what encodeParam takes, and the objects of
// docs/types.md besides. raw is valid.
func fitJSON(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	switch {
	case t.kind == kindArray && raw[0] == '{':
		var from struct {
			Lower  []int           `json:"lower"`
			Values json.RawMessage `json:"values"`
		}
		if json.Unmarshal(raw, &from) != nil || len(from.Lower) == 0 || len(from.Values) == 0 || from.Values[0] != '[' {
			return dst, "takes an array"
		}
		level := from.Values
		for _, lower := range from.Lower {
			var items []json.RawMessage
			if json.Unmarshal(level, &items) != nil || len(items) == 0 {
				return dst, "takes an array"
			}
			dst = fmt.Appendf(dst, "[%d:%d]", lower, lower+len(items)-1)
			level = items[0]
		}
		return fitArray(append(dst, '='), t, from.Values, 1)
	case t.kind == kindArray && raw[0] == '[':
		return fitArray(dst, t, raw, 1)
	case t.kind == kindVector && raw[0] == '[':
		var items []json.Number
		if json.Unmarshal(raw, &items) != nil {
			return dst, "takes an array of whole numbers"
		}
		for i, n := range items {
			if i > 0 {
				dst = append(dst, ' ')
			}
			dst = append(dst, n...)
		}
		return dst, ""
	case t.kind == kindComposite && raw[0] == '{':
		return fitComposite(dst, t, raw)
	case t.kind == kindRange && raw[0] == '{':
		return fitRange(dst, t, raw)
	case t.kind == kindMultirange && raw[0] == '[':
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			return dst, "takes an array of ranges"
		}
		dst = append(dst, '{')
		for i, item := range items {
			if i > 0 {
				dst = append(dst, ',')
			}
			if item = bytes.TrimSpace(item); item[0] != '{' {
				return dst, "takes an array of ranges"
			}
			if dst, problem = fitRange(dst, t.elem, item); problem != "" {
				return dst, problem
			}
		}
		return append(dst, '}'), ""
	}
	return encodeParam(dst, t, elemOID(t), raw)
}

func fitArray(dst []byte, t *typ, raw []byte, dimension int) (_ []byte, problem string) {
	var items []json.RawMessage
	if dimension > maxDimensions || json.Unmarshal(raw, &items) != nil {
		return dst, fmt.Sprintf("takes an array of at most %d dimensions", maxDimensions)
	}
	nested := t.elem.kind != kindJSON && t.elem.kind != kindMultirange && t.elem.kind != kindVector
	dst = append(dst, '{')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, t.delim)
		}
		item = bytes.TrimSpace(item)
		switch {
		case string(item) == "null":
			dst = append(dst, "NULL"...)
		case item[0] == '[' && nested:
			if dst, problem = fitArray(dst, t, item, dimension+1); problem != "" {
				return dst, problem
			}
		default:
			if dst, problem = fitQuoted(dst, t.elem, item); problem != "" {
				return dst, fmt.Sprintf("its element %d %s", i, problem)
			}
		}
	}
	return append(dst, '}'), ""
}

// fitQuoted writes a value within quotes, as arrays, composites and ranges take
// it.
func fitQuoted(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	text, problem := fitJSON(nil, t, raw)
	if problem != "" {
		return dst, problem
	}
	dst = append(dst, '"')
	for _, c := range text {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"'), ""
}

func fitComposite(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	var members map[string]json.RawMessage
	if json.Unmarshal(raw, &members) != nil {
		return dst, "takes an object"
	}
	dst = append(dst, '(')
	for i, f := range t.fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		var name string
		if err := json.Unmarshal(f.key[:len(f.key)-1], &name); err != nil {
			return dst, "has an attribute without a name"
		}
		value, ok := members[name]
		delete(members, name)
		if !ok || string(bytes.TrimSpace(value)) == "null" {
			continue
		}
		if dst, problem = fitQuoted(dst, f.typ, bytes.TrimSpace(value)); problem != "" {
			return dst, fmt.Sprintf("its attribute %q %s", name, problem)
		}
	}
	for name := range members {
		return dst, fmt.Sprintf("has no attribute %.60q", name)
	}
	return append(dst, ')'), ""
}

func fitRange(dst []byte, t *typ, raw []byte) (_ []byte, problem string) {
	var r struct {
		Lower, Upper json.RawMessage
		Bounds       string
		Empty        bool
	}
	if json.Unmarshal(raw, &r) != nil || !r.Empty && !slices.Contains([]string{"[]", "[)", "(]", "()"}, r.Bounds) {
		return dst, `takes an object with lower, upper and bounds such as "[)", or {"empty":true}`
	}
	if r.Empty {
		return append(dst, "empty"...), ""
	}
	dst = append(dst, r.Bounds[0])
	for i, bound := range []json.RawMessage{r.Lower, r.Upper} {
		if i > 0 {
			dst = append(dst, ',')
		}
		if bound = bytes.TrimSpace(bound); len(bound) == 0 || string(bound) == "null" {
			continue
		}
		if dst, problem = fitQuoted(dst, t.elem, bound); problem != "" {
			return dst, "its bound " + problem
		}
	}
	return append(dst, r.Bounds[1]), ""
}

// checkJSON says what PostgreSQL has against JSON that is JSON. jsonb keeps its
// strings decoded, and so cannot hold all that json can.
func checkJSON(p []byte, decoded bool) string {
	switch {
	case !utf8.Valid(p):
		return "holds bytes that are no UTF-8"
	case bytes.IndexByte(p, 0) >= 0:
		return "holds the character U+0000"
	case len(p) == 0:
		return "is empty, which is not JSON"
	case bytes.Contains(p, []byte(`\u`)):
		return checkEscapes(p, decoded)
	}
	return ""
}

func checkEscapes(p []byte, decoded bool) string {
	high := false // the last thing was the first half of a pair
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\\')
		if high && i != 0 {
			break
		}
		if i < 0 || i+1 >= len(p) {
			return ""
		}
		escaped := p[i+1] == 'u'
		if p = p[i+2:]; !escaped {
			if high {
				break
			}
			continue
		}
		n, err := strconv.ParseUint(string(p[:min(4, len(p))]), 16, 16)
		if err != nil {
			return "is not JSON"
		}
		p = p[min(4, len(p)):]
		low := n >= 0xDC00 && n <= 0xDFFF
		switch {
		case n == 0 && decoded:
			return `holds \u0000, which jsonb cannot keep`
		case low != high:
			return "holds half of a surrogate pair"
		}
		high = n >= 0xD800 && n <= 0xDBFF
	}
	if high {
		return "holds half of a surrogate pair"
	}
	return ""
}
