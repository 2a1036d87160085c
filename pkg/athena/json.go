package athena

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// DecodeJSON reads exactly one JSON value into v, which must be a pointer, and
// refuses unknown fields. Errors are invalid_request and name the field by its
// path below prefix, which may be empty.
func DecodeJSON(raw []byte, v any, prefix string) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return Errorf(CodeInvalidRequest, "%s is missing; a JSON object is expected", where(prefix)).At(prefix)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeError(err, prefix)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeInvalidRequest, "%s has something after its JSON value at byte %d", where(prefix), dec.InputOffset()).At(prefix)
	}
	return nil
}

func decodeError(err error, prefix string) error {
	var own *Error
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &syntax):
		return Errorf(CodeInvalidRequest, "%s is not valid JSON at byte %d: %s", where(prefix), syntax.Offset, syntax.Error()).At(prefix)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return Errorf(CodeInvalidRequest, "%s is not valid JSON: it ends too early", where(prefix)).At(prefix)
	case errors.As(err, &typ):
		path := join(prefix, typ.Field)
		return Errorf(CodeInvalidRequest, "%s is a %s; it must be %s", where(path), typ.Value, kindName(typ.Type)).At(path)
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if plain, e := strconv.Unquote(name); e == nil {
			name = plain
		}
		path := join(prefix, clip(name, 80))
		return Errorf(CodeInvalidRequest, "unknown field %q", path).At(path)
	}
	return Wrap(CodeInvalidRequest, err, "%s cannot be read: %s", where(prefix), clip(err.Error(), 200)).At(prefix)
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
	}
	return prefix + "." + field
}

func kindName(t reflect.Type) string {
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
