package judge

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A kind is what the catalog says of a type.
type kind struct {
	name  string // without its schema
	class string // typtype: b, c, d, e, r, m
	elem  uint32 // of an array, the base of a domain, the bounds of a range, the ranges of a multirange
	array bool
	attrs []attribute // of a composite
}

type attribute struct {
	name string
	oid  uint32
}

// kinds are all types of a database, by oid.
type kinds map[uint32]*kind

func readKinds(ctx context.Context, conn *pgx.Conn) (kinds, error) {
	all := kinds{}
	rows, err := conn.Query(ctx, `
		select t.oid, t.typname, t.typtype::text, t.typcategory = 'A' and t.typelem <> 0,
			coalesce(nullif(t.typbasetype, 0), r.rngsubtype, m.rngtypid, nullif(t.typelem, 0), 0)::oid
		from pg_type t left join pg_range r on r.rngtypid = t.oid left join pg_range m on m.rngmultitypid = t.oid`)
	if err != nil {
		return nil, err
	}
	var oid uint32
	var k kind
	if _, err := pgx.ForEachRow(rows, []any{&oid, &k.name, &k.class, &k.array, &k.elem}, func() error {
		one := k
		all[oid] = &one
		return nil
	}); err != nil {
		return nil, err
	}
	rows, err = conn.Query(ctx, `
		select t.oid, a.attname, a.atttypid from pg_type t join pg_attribute a on a.attrelid = t.typrelid
		where t.typtype = 'c' and a.attnum > 0 and not a.attisdropped order by t.oid, a.attnum`)
	if err != nil {
		return nil, err
	}
	var a attribute
	_, err = pgx.ForEachRow(rows, []any{&oid, &a.name, &a.oid}, func() error {
		all[oid].attrs = append(all[oid].attrs, a)
		return nil
	})
	return all, err
}

// literal turns the JSON form of a value, which docs/types.md describes, back
// into PostgreSQL's text; nil is NULL.
func (ks kinds) literal(oid uint32, raw json.RawMessage) ([]byte, error) {
	k := ks[oid]
	switch {
	case k == nil:
		return nil, fmt.Errorf("there is no type %d", oid)
	case k.name == "json" || k.name == "jsonb":
		return raw, nil // SQL's NULL is told apart by the caller, where it can be
	case string(raw) == "null":
		return nil, nil
	case k.class == "d":
		return ks.literal(k.elem, raw)
	case k.array && raw[0] == '{':
		var v struct {
			Lower  []int           `json:"lower"`
			Values json.RawMessage `json:"values"`
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, err
		}
		return ks.array(k, v.Values, v.Lower)
	case (k.array || k.name == "int2vector" || k.name == "oidvector") && raw[0] == '[':
		if !k.array || strings.HasSuffix(k.name, "vector") {
			return bytes.ReplaceAll(bytes.Trim(raw, "[]"), []byte(","), []byte(" ")), nil
		}
		return ks.array(k, raw, nil)
	case k.class == "c" && raw[0] == '{':
		return ks.composite(k, raw)
	case k.class == "r" && raw[0] == '{':
		return ks.span(k, raw)
	case k.class == "m" && raw[0] == '[':
		var all []json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil {
			return nil, err
		}
		spans := make([][]byte, len(all))
		for i, one := range all {
			var err error
			if spans[i], err = ks.literal(k.elem, one); err != nil {
				return nil, err
			}
		}
		return append(append([]byte("{"), bytes.Join(spans, []byte(","))...), '}'), nil
	case raw[0] == '"':
		return ks.text(k, raw)
	}
	return raw, nil // numbers, true, false
}

func (ks kinds) text(k *kind, raw json.RawMessage) ([]byte, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	switch k.name {
	case "bytea":
		b, err := base64.StdEncoding.DecodeString(s)
		return []byte(`\x` + hex.EncodeToString(b)), err
	case "date", "timestamp", "timestamptz":
		return []byte(era(s)), nil
	}
	return []byte(s), nil
}

// era turns an expanded year of ISO 8601 into one of PostgreSQL.
func era(s string) string {
	if s == "" || s[0] != '+' && s[0] != '-' && !strings.HasPrefix(s, "0000-") || strings.HasSuffix(s, "infinity") {
		return s
	}
	at := strings.IndexByte(s[1:], '-') + 1
	year, _ := strconv.Atoi(s[:at])
	if year > 0 {
		return fmt.Sprintf("%04d%s", year, s[at:])
	}
	return fmt.Sprintf("%04d%s BC", 1-year, s[at:])
}

func (ks kinds) array(k *kind, raw json.RawMessage, lower []int) ([]byte, error) {
	body, sizes, err := ks.elements(k, raw)
	if err != nil || len(lower) == 0 {
		return body, err
	}
	var b bytes.Buffer
	for i, from := range lower {
		fmt.Fprintf(&b, "[%d:%d]", from, from+sizes[i]-1)
	}
	return append(append(b.Bytes(), '='), body...), nil
}

// elements returns an array's text, and its size in each dimension.
func (ks kinds) elements(k *kind, raw json.RawMessage) ([]byte, []int, error) {
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, nil, err
	}
	// An element that is a JSON array is one of a further dimension, unless the
	// elements themselves have that form.
	elem := ks[k.elem]
	for elem != nil && elem.class == "d" {
		elem = ks[elem.elem]
	}
	nested := elem != nil && elem.class != "m" && elem.name != "json" && elem.name != "jsonb" && !elem.array
	var below []int
	out := []byte("{")
	for i, one := range all {
		if i > 0 {
			out = append(out, ',')
		}
		if nested && one[0] == '[' {
			part, sizes, err := ks.elements(k, one)
			if err != nil {
				return nil, nil, err
			}
			out, below = append(out, part...), sizes
			continue
		}
		if string(one) == "null" {
			out = append(out, "NULL"...)
			continue
		}
		text, err := ks.literal(k.elem, one)
		if err != nil {
			return nil, nil, err
		}
		out = quote(out, text)
	}
	return append(out, '}'), append([]int{len(all)}, below...), nil
}

func (ks kinds) composite(k *kind, raw json.RawMessage) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	out := []byte("(")
	for i, a := range k.attrs {
		if i > 0 {
			out = append(out, ',')
		}
		v, ok := fields[a.name]
		if !ok || string(v) == "null" {
			continue
		}
		text, err := ks.literal(a.oid, v)
		if err != nil {
			return nil, err
		}
		out = quote(out, text)
	}
	return append(out, ')'), nil
}

func (ks kinds) span(k *kind, raw json.RawMessage) ([]byte, error) {
	var v struct {
		Empty        bool
		Lower, Upper json.RawMessage
		Bounds       string
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	if v.Empty {
		return []byte("empty"), nil
	}
	if len(v.Bounds) != 2 {
		return nil, fmt.Errorf("%s is no range", raw)
	}
	out := []byte{v.Bounds[0]}
	for i, bound := range []json.RawMessage{v.Lower, v.Upper} {
		if i > 0 {
			out = append(out, ',')
		}
		if len(bound) == 0 || string(bound) == "null" {
			continue
		}
		text, err := ks.literal(k.elem, bound)
		if err != nil {
			return nil, err
		}
		out = quote(out, text)
	}
	return append(out, v.Bounds[1]), nil
}

// quote appends text so that it is one element of an array, composite or range.
func quote(dst, text []byte) []byte {
	dst = append(dst, '"')
	for _, c := range text {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}
