package spec

import (
	"bytes"
	"encoding"
	"encoding/json"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// decode fills v, a pointer, with what a node holds. What is null or empty is as
// if it were not there.
func (d *decoder) decode(n *yaml.Node, path string, v any) {
	d.into(n, path, reflect.ValueOf(v).Elem())
}

var (
	rawType  = reflect.TypeFor[json.RawMessage]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *decoder) into(n *yaml.Node, path string, v reflect.Value) {
	if _, ok := d.lines[path]; !ok {
		d.lines[path] = n.Line
	}
	switch {
	case v.Type() == rawType:
		if raw := d.raw(nil, n, path); raw != nil {
			v.SetBytes(raw)
		}
		return
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return
	case reflect.PointerTo(v.Type()).Implements(textType):
		d.text(n, path, v)
		return
	}
	if m, ok := v.Addr().Interface().(members); ok {
		d.members(n, path, m.value(), m.put)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.into(n, path, v.Elem())
	case reflect.Struct:
		if d.kind(n, path, yaml.MappingNode, "an object") {
			d.fields(n, path, v)
		}
	case reflect.Map:
		d.members(n, path, v.Type().Elem(), func(name string, e reflect.Value) {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(name), e)
		})
	case reflect.Slice:
		if d.kind(n, path, yaml.SequenceNode, "a list") && len(n.Content) > 0 {
			list := reflect.MakeSlice(v.Type(), 0, len(n.Content))
			for i, item := range n.Content {
				d.item(item, index(path, i), v.Type().Elem(), func(e reflect.Value) { list = reflect.Append(list, e) })
			}
			v.Set(list)
		}
	default:
		if d.kind(n, path, yaml.ScalarNode, kindName(v)) {
			d.scalar(n, path, v)
		}
	}
}

// members decodes what is in an object whose names are free.
func (d *decoder) members(n *yaml.Node, path string, t reflect.Type, put func(name string, value reflect.Value)) {
	if !d.kind(n, path, yaml.MappingNode, "an object") {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		d.item(n.Content[i+1], join(path, name), t, func(e reflect.Value) { put(name, e) })
	}
}

// item decodes what is in a list or map, where a null has no meaning.
func (d *decoder) item(n *yaml.Node, path string, t reflect.Type, add func(reflect.Value)) {
	e := reflect.New(t).Elem()
	if t != rawType && n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		d.at(n.Line, path, "it is empty; give a value or leave it out")
	} else {
		d.into(n, path, e)
	}
	add(e)
}

func (d *decoder) kind(n *yaml.Node, path string, want yaml.Kind, name string) bool {
	if n.Kind != want {
		d.at(n.Line, path, "it is %s; it must be %s", nodeName(n), name)
		return false
	}
	return true
}

func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value) {
	wrong := func() { d.at(n.Line, path, "it is %s; it must be %s", nodeName(n), kindName(v)) }
	tag := n.ShortTag()
	switch v.Kind() {
	case reflect.String:
		if tag != "!!str" && tag != "!!timestamp" {
			d.at(n.Line, path, "it is %s; it must be a text: write it in quotes", nodeName(n))
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if tag != "!!bool" {
			wrong()
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if tag != "!!int" || err != nil {
			wrong()
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if tag != "!!int" && tag != "!!float" || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			wrong()
			return
		}
		v.SetFloat(f)
	default:
		panic("spec: no way to decode a " + v.Type().String())
	}
}

func (d *decoder) text(n *yaml.Node, path string, v reflect.Value) {
	if !d.kind(n, path, yaml.ScalarNode, "a text") {
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		d.at(n.Line, path, "%s", athena.AsError(err).Message)
	}
}

func (d *decoder) fields(n *yaml.Node, path string, v reflect.Value) {
	known := map[string]int{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		known[name] = i
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		if f, ok := known[key.Value]; ok {
			d.lines[at] = key.Line
			d.into(value, at, v.Field(f))
			continue
		}
		d.at(key.Line, at, "this field is unknown%s", hint(key.Value, slices.Sorted(maps.Keys(known))))
	}
}

// secretive are names under which people look for credentials; a definition has
// none, by its shape.
var secretive = []string{"dsn", "url", "uri", "password", "secret", "token", "access_key_id", "secret_access_key", "connection", "credentials", "endpoint", "host", "username", "user"}

// hint says what may have been meant.
func hint(name string, known []string) string {
	if slices.Contains(secretive, strings.ToLower(name)) {
		return "; connections and credentials belong to the client's definition, and a pipeline names the client"
	}
	if best := Nearest(name, known); best != "" {
		return "; did you mean " + best + "?"
	}
	if len(known) == 0 {
		return "; there are none here"
	}
	return "; the known ones are " + strings.Join(known, ", ")
}

// Nearest returns the candidate that a name may be a slip of, or "".
func Nearest(name string, candidates []string) string {
	best, least := "", max(1, min(3, len(name)/3))+1
	for _, c := range candidates {
		if n := distance(strings.ToLower(name), strings.ToLower(c)); n < least {
			best, least = c, n
		}
	}
	return best
}

// distance counts the letters to change, add or drop, and the neighbours to swap.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	older, old, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		older, old, row = old, row, older
		row[0] = i + 1
		for j := range len(b) {
			cost := old[j]
			if a[i] != b[j] {
				cost++
			}
			row[j+1] = min(cost, row[j]+1, old[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

// raw appends what a node holds as JSON in one line; nil if it cannot be.
func (d *decoder) raw(dst []byte, n *yaml.Node, path string) []byte {
	switch n.Kind {
	case yaml.MappingNode:
		dst = append(dst, '{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				dst = append(dst, ',')
			}
			name := n.Content[i].Value
			dst = append(appendString(dst, name), ':')
			if dst = d.raw(dst, n.Content[i+1], join(path, name)); dst == nil {
				return nil
			}
		}
		return append(dst, '}')
	case yaml.SequenceNode:
		dst = append(dst, '[')
		for i, item := range n.Content {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst = d.raw(dst, item, index(path, i)); dst == nil {
				return nil
			}
		}
		return append(dst, ']')
	}
	switch n.ShortTag() {
	case "!!null":
		return append(dst, "null"...)
	case "!!bool":
		return append(dst, strings.ToLower(n.Value)...)
	case "!!int", "!!float":
		if json.Valid([]byte(n.Value)) {
			return append(dst, n.Value...)
		}
		var v any
		if err := n.Decode(&v); err == nil {
			if text, err := json.Marshal(v); err == nil {
				return append(dst, text...)
			}
		}
		d.at(n.Line, path, "%.40q is no number that JSON has; write it as a text", n.Value)
		return nil
	}
	return appendString(dst, n.Value)
}

func appendString(dst []byte, s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string can be encoded
	}
	return append(dst, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

func nodeName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + clip(n.Value)
	case "!!bool":
		return n.Value
	}
	return strconv.Quote(clip(n.Value))
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return "a text"
}

// clip shortens what is quoted back.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
