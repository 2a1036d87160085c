package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Key describes one setting, for documentation and help.
type Key struct {
	Path    string `json:"key"`           // nats.embedded.sync
	Env     string `json:"env"`           // ATHENA_NATS_EMBEDDED_SYNC
	Type    string `json:"type"`          // text, true or false, duration, size …
	Default string `json:"default"`       // as it would be written; empty if there is none
	Allowed string `json:"allowed"`       // the range or the words; empty if anything goes
	Doc     string `json:"documentation"` // what it is

	min, max string
	words    []string
	index    [][]int // the way through the struct, one step for each section
	typ      reflect.Type
}

// Describe lists all settings in the order of the documentation.
func Describe() []Key {
	d := reflect.ValueOf(Default(func(string) string { return "" })).Elem()
	keys := walk(d.Type(), "", nil)
	for i, k := range keys {
		keys[i].Default = write(k.in(d))
		if k.Path == "data_dir" {
			keys[i].Default = "$XDG_DATA_HOME/athena, or ~/.local/share/athena, or ./athena-data"
		}
	}
	return keys
}

// walk lists the fields of a section that are settings, in order.
func walk(t reflect.Type, prefix string, index [][]int) []Key {
	var keys []Key
	for _, f := range reflect.VisibleFields(t) {
		name := f.Tag.Get("koanf")
		if name == "" {
			continue
		}
		at := append(append([][]int{}, index...), f.Index)
		doc, leaf := f.Tag.Lookup("doc")
		if !leaf {
			keys = append(keys, walk(f.Type, prefix+name+".", at)...)
			continue
		}
		k := Key{
			Path: prefix + name, Env: envName(prefix + name), Type: typeName(f.Type), Doc: doc,
			min: f.Tag.Get("min"), max: f.Tag.Get("max"), words: strings.Fields(f.Tag.Get("oneof")), index: at, typ: f.Type,
		}
		switch {
		case len(k.words) > 0:
			k.Allowed = orList(k.words)
		case k.max != "":
			k.Allowed = k.min + " to " + k.max
		case k.min != "":
			k.Allowed = k.min + " or more"
		}
		keys = append(keys, k)
	}
	return keys
}

func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// in returns the setting's field within a Settings value.
func (k Key) in(v reflect.Value) reflect.Value {
	for _, step := range k.index {
		v = v.FieldByIndex(step)
	}
	return v
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[athena.Duration]():
		return "duration"
	case reflect.TypeFor[Bytes]():
		return "size"
	case reflect.TypeFor[Sync]():
		return "always or a duration"
	case reflect.TypeFor[athena.Secret]():
		return "secret"
	case reflect.TypeFor[[]netip.Prefix]():
		return "list of networks"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	}
	return "text"
}

// write gives a value as it would be written in the environment.
func write(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = write(v.Index(i))
		}
		return strings.Join(parts, ",")
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	return fmt.Sprint(v.Interface())
}

func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// nearest returns the name that differs from s in the fewest letters, and in
// how many.
func nearest(s string, names []string) (best string, edits int) {
	edits = len(s) + 1
	for _, name := range names {
		if d := distance(s, name); d < edits {
			best, edits = name, d
		}
	}
	return best, edits
}

// distance counts the letters to insert, remove, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
