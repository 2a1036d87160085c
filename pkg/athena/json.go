package athena

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DecodeJSON reads exactly one JSON value into v, which must be a pointer, and
// refuses unknown fields. Errors are invalid_request and name the field by its
// path below prefix, which may be empty.
func DecodeJSON(raw []byte, v any, prefix string) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return Errorf(CodeInvalidRequest, "%s is missing; a JSON object is expected", where(prefix)).at(prefix)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeError(err, raw, reflect.TypeOf(v), prefix)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeInvalidRequest, "%s has something after its JSON value at byte %d", where(prefix), dec.InputOffset()).at(prefix)
	}
	return nil
}

func decodeError(err error, raw []byte, t reflect.Type, prefix string) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return Errorf(CodeInvalidRequest, "%s is not valid JSON at byte %d: %s", where(prefix), syntax.Offset, syntax.Error()).at(prefix)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return Errorf(CodeInvalidRequest, "%s is not valid JSON: it ends too early", where(prefix)).at(prefix)
	}
	inner, err := blame(raw, t, err)
	path := join(prefix, inner)
	var own *Error
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &own):
		if _, ok := own.Details["field"]; ok || path == "" {
			return own
		}
		own = own.At(path)
		own.Message = path + ": " + own.Message
		return own
	case errors.Is(err, errUnknownField):
		return Errorf(CodeInvalidRequest, "unknown field %q", path).At(path)
	case errors.As(err, &typ):
		return Errorf(CodeInvalidRequest, "%s is %s; it must be %s", where(path), valueName(typ.Value), kindName(typ.Type)).at(path)
	}
	return Wrap(CodeInvalidRequest, err, "%s cannot be read: %s", where(path), clip(err.Error(), 200)).at(path)
}

// at is At for a path that is empty for the whole.
func (e *Error) at(path string) *Error {
	if path == "" {
		return e
	}
	return e.At(path)
}

var errUnknownField = errors.New("unknown field")

// blame finds the innermost value of raw that does not fit its place in a t,
// which the library does not tell in all cases. It returns its path, empty for
// the whole, and why it does not fit; err is why the whole does not.
func blame(raw []byte, t reflect.Type, err error) (string, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if decodesItself(t) {
		return "", err
	}
	inner := func(path string, raw []byte, t reflect.Type, err error) (string, error) {
		rest, err := blame(raw, t, err)
		return join(path, rest), err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	switch t.Kind() {
	case reflect.Struct:
		var fields map[string]json.RawMessage
		if dec.Decode(&fields) != nil {
			return "", err
		}
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			ft, ok := fieldType(t, name)
			if !ok {
				return clip(name, 80), errUnknownField
			}
			if err := fits(fields[name], ft); err != nil {
				return inner(name, fields[name], ft, err)
			}
		}
	case reflect.Slice, reflect.Array:
		var items []json.RawMessage
		if dec.Decode(&items) != nil {
			return "", err
		}
		for i, item := range items {
			if err := fits(item, t.Elem()); err != nil {
				return inner("["+strconv.Itoa(i)+"]", item, t.Elem(), err)
			}
		}
	}
	return "", err
}

func fits(raw []byte, t reflect.Type) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	return dec.Decode(reflect.New(t).Interface())
}

// fieldType finds a field by its name in JSON, as the library does.
func fieldType(t reflect.Type, name string) (reflect.Type, bool) {
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && tag == "" {
			continue // its fields are visible themselves
		}
		if strings.EqualFold(cmp.Or(tag, f.Name), name) {
			return f.Type, true
		}
	}
	return nil, false
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler)
}

func where(path string) string {
	if path == "" {
		return "the body"
	}
	return path
}

func join(prefix, field string) string {
	switch {
	case prefix == "":
		return field
	case field == "":
		return prefix
	case field[0] == '[':
		return prefix + field
	}
	return prefix + "." + field
}

// valueName gives the library's word for a JSON value its article; a number
// comes with its digits.
func valueName(v string) string {
	v = clip(v, 40)
	if strings.HasPrefix(v, "a") || strings.HasPrefix(v, "o") {
		return "an " + v
	}
	return "a " + v
}

func kindName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[Duration]() {
		return "a duration, such as \"60s\""
	}
	if reflect.PointerTo(t).Implements(textUnmarshaler) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	}
	return "an object"
}

// A Duration is a time span that is written as Go writes it: "60s", "1h30m".
type Duration time.Duration

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes d as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads, and refuses negative
// spans.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return Errorf(CodeInvalidRequest, "%q is not a duration; write it as 500ms, 60s or 1h30m", clip(string(b), 40))
	}
	*d = Duration(v)
	return nil
}
