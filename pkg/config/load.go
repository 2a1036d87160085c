package config

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
)

const envPrefix = "ATHENA_"

// reserved are the variables of other parts of the program. ATHENA_CONFIG
// names the file if Config.File does not.
var reserved = [...]string{
	"ATHENA_CONFIG", "ATHENA_URL", "ATHENA_KEY", "ATHENA_PROFILE", "ATHENA_ADMIN_KEY", "ATHENA_SECRET_KEY",
	"ATHENA_CLIENT", "ATHENA_CONFIG_DIR", "ATHENA_PG_BIN", "ATHENA_CRASHPOINT",
}

// Config says where the settings come from.
type Config struct {
	// File is a YAML file; empty reads what ATHENA_CONFIG names, or none.
	File string
	// Environ is the environment in the form of os.Environ.
	Environ []string
	// Overrides are the flags that were given: values by key, such as
	// "log.level". They win over the rest.
	Overrides map[string]any
}

// Load reads and checks the settings. Its error joins one athena.Error with
// the code invalid_request for each thing that is wrong, which names the key,
// the value, where it came from and the mend. Secrets are taken as they are
// written, references unresolved.
func Load(c Config) (*Settings, error) {
	getenv := lookup(c.Environ)
	l := &loader{keys: map[string]Key{}, from: map[string]string{}, k: koanf.New(".")}
	for _, k := range Describe() {
		l.keys[k.Path] = k
	}
	s := Default(getenv)
	l.file(cmp.Or(c.File, getenv("ATHENA_CONFIG")))
	s.Ignored = l.environ(c.Environ)
	l.layer(c.Overrides, func(path string) string { return "the flag for " + path })

	v := reflect.ValueOf(s).Elem()
	for _, key := range Describe() {
		if raw := l.k.Get(key.Path); raw != nil {
			l.set(key, key.in(v), raw)
		}
	}
	if len(l.problems) == 0 {
		l.problems = s.check()
	}
	if err := errors.Join(l.problems...); err != nil {
		return nil, err
	}
	return s, nil
}

type loader struct {
	keys     map[string]Key
	k        *koanf.Koanf
	from     map[string]string // where each key's value came from
	problems []error
}

func (l *loader) problem(path, format string, args ...any) {
	l.problems = append(l.problems, athena.Errorf(athena.CodeInvalidRequest, format, args...).At(path))
}

func (l *loader) file(path string) {
	if path == "" {
		return
	}
	read := koanf.New(".")
	if err := read.Load(file.Provider(path), yaml.Parser()); err != nil {
		l.problems = append(l.problems, athena.Wrap(athena.CodeInvalidRequest, err, "configuration file %s cannot be read: %v", path, err))
		return
	}
	l.layer(read.All(), func(string) string { return path })
}

// environ takes the variables that are settings, refuses those that look like
// a slip of the pen, and returns the others that begin with ATHENA_. A
// variable that is empty counts as not set.
func (l *loader) environ(environ []string) (ignored []string) {
	paths, names := map[string]string{}, slices.Clone(reserved[:])
	for path, k := range l.keys {
		paths[k.Env] = path
		names = append(names, k.Env)
	}
	slices.Sort(names)
	vars := koanf.New(".")
	provider := env.Provider(".", env.Opt{
		Prefix: envPrefix,
		EnvironFunc: func() []string {
			return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool { return !strings.Contains(kv, "=") })
		},
		TransformFunc: func(name, value string) (string, any) {
			if path, ok := paths[name]; ok {
				if value == "" {
					return "", nil
				}
				return path, value
			}
			if slices.Contains(reserved[:], name) {
				return "", nil
			}
			if best, edits := nearest(name, names); edits <= 2 {
				l.problem(name, "the environment variable %s is no setting; did you mean %s?", name, best)
			} else {
				ignored = append(ignored, name)
			}
			return "", nil
		},
	})
	if err := vars.Load(provider, nil); err != nil {
		l.problems = append(l.problems, err)
	}
	slices.Sort(ignored)
	l.layer(vars.All(), func(path string) string { return l.keys[path].Env })
	return ignored
}

// layer puts values over those that are there, by key. Keys that are null are
// not set.
func (l *loader) layer(values map[string]any, from func(path string) string) {
	known := slices.Sorted(maps.Keys(l.keys))
	good := map[string]any{}
	for _, path := range slices.Sorted(maps.Keys(values)) {
		_, is := l.keys[path]
		section := slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, path+".") })
		value := values[path]
		empty, isMap := value.(map[string]any)
		switch {
		case is && value == nil, section && (value == nil || isMap && len(empty) == 0):
		case is:
			good[path], l.from[path] = value, from(path)
		case section:
			l.problem(path, "%s in %s is a section; give its keys below it, such as %s", path, from(path), l.member(known, path))
		default:
			l.unknown(path, from(path), known)
		}
	}
	// confmap cannot fail: it hands on the map.
	_ = l.k.Load(confmap.Provider(good, "."), nil)
}

func (l *loader) member(known []string, section string) string {
	return known[slices.IndexFunc(known, func(k string) bool { return strings.HasPrefix(k, section+".") })]
}

func (l *loader) unknown(path, from string, known []string) {
	for _, k := range known {
		if strings.HasPrefix(path, k+".") {
			l.problem(k, "%s in %s is a section; it must be %s", k, from, l.keys[k].Type)
			return
		}
	}
	shown := clip(path)
	best, _ := nearest(shown, known)
	l.problem(shown, "unknown key %q in %s; the nearest known one is %s", shown, from, best)
}

// set puts a raw value, of YAML, text or Go, into a field.
func (l *loader) set(key Key, field reflect.Value, raw any) {
	if err := assign(field, raw); err != nil {
		shown := quoted(raw)
		if field.Type() == reflect.TypeFor[athena.Secret]() {
			shown = "not readable" // and is not shown
		}
		l.problem(key.Path, "%s is %s (from %s); %s", key.Path, shown, l.from[key.Path], err)
		return
	}
	if err := key.permit(field); err != nil {
		l.problem(key.Path, "%s is %s (from %s); %s", key.Path, quoted(raw), l.from[key.Path], err)
	}
}

// permit checks a value against the range or the words of its key.
func (k Key) permit(field reflect.Value) error {
	must := fmt.Errorf("it must be %s", k.Allowed)
	if len(k.words) > 0 {
		if field.Kind() != reflect.Slice && !slices.Contains(k.words, field.String()) {
			return must
		}
		for i := 0; field.Kind() == reflect.Slice && i < field.Len(); i++ {
			if !slices.Contains(k.words, field.Index(i).String()) {
				return fmt.Errorf("each must be %s", k.Allowed)
			}
		}
	}
	for _, limit := range []struct {
		text string
		sign float64
	}{{k.min, 1}, {k.max, -1}} {
		if limit.text == "" {
			continue
		}
		bound := reflect.New(k.typ).Elem()
		if err := assign(bound, limit.text); err != nil {
			return fmt.Errorf("its limit %q cannot be read: %w", limit.text, err)
		}
		if (number(field)-number(bound))*limit.sign < 0 {
			return must
		}
	}
	return nil
}

func number(v reflect.Value) float64 {
	if v.CanInt() {
		return float64(v.Int())
	}
	return v.Float()
}

// assign gives field the value of raw. Text is read by the field's type; a
// list may be one text with commas.
func assign(field reflect.Value, raw any) error {
	// A flag may bring a value of the field's own type. Text and numbers take
	// the same way as those of other sources.
	if given := reflect.ValueOf(raw); given.Type() == field.Type() && given.Kind() != reflect.String && given.Kind() != reflect.Float64 && given.Kind() != reflect.Slice {
		field.Set(given)
		return nil
	}
	if field.Kind() == reflect.Slice {
		return assignList(field, raw)
	}
	text, isText := raw.(string)
	switch n := raw.(type) {
	case time.Duration:
		text, isText = n.String(), true
	case int:
		if field.Kind() != reflect.String && field.Kind() != reflect.Struct {
			text, isText = strconv.Itoa(n), true
		}
	case float64: // not to a whole number, even if it is one
		if field.Kind() == reflect.Float64 {
			text, isText = strconv.FormatFloat(n, 'g', -1, 64), true
		}
	}
	if !isText {
		return fmt.Errorf("it must be %s%s", typeName(field.Type()), quoteHint(field))
	}
	text = strings.TrimSpace(text)
	if field.Type() == reflect.TypeFor[netip.Prefix]() {
		p, err := network(text)
		field.Set(reflect.ValueOf(p))
		return err
	}
	if u, ok := field.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("it must be %s", form(field.Type()))
		}
		return nil
	}
	return assignText(field, text)
}

func assignText(field reflect.Value, text string) error {
	var err error
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
	case reflect.Bool:
		switch text {
		case "true", "false":
			field.SetBool(text == "true")
		default:
			err = errors.New("it must be true or false")
		}
	case reflect.Int:
		var n int
		if n, err = strconv.Atoi(text); err != nil {
			err = errors.New("it must be a whole number")
		}
		field.SetInt(int64(n))
	case reflect.Float64:
		var n float64
		if n, err = strconv.ParseFloat(text, 64); err != nil || n != n {
			n, err = 0, errors.New("it must be a number")
		}
		field.SetFloat(n)
	default:
		err = fmt.Errorf("settings of type %s cannot be read", field.Type())
	}
	return err
}

func assignList(field reflect.Value, raw any) error {
	var items []any
	switch list := raw.(type) {
	case []any:
		items = list
	case []string:
		for _, item := range list {
			items = append(items, item)
		}
	case string:
		for item := range strings.SplitSeq(list, ",") {
			if strings.TrimSpace(item) != "" {
				items = append(items, item)
			}
		}
	default:
		return errors.New("it must be a list")
	}
	out := reflect.MakeSlice(field.Type(), len(items), len(items))
	for i, item := range items {
		if item == nil {
			return errors.New("the list holds null")
		}
		if err := assign(out.Index(i), item); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
	}
	field.Set(out)
	return nil
}

// network reads a network, or one address.
func network(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, errors.New("it must be a network such as 10.0.0.0/8, or an address")
}

func form(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[athena.Duration]():
		return "a duration such as 500ms, 60s or 1h30m"
	case reflect.TypeFor[Bytes]():
		return "a size such as 64KiB, 8MiB or 10GiB"
	case reflect.TypeFor[Sync]():
		return "always, or an interval of 1s or more"
	}
	return typeName(t)
}

func quoteHint(field reflect.Value) string {
	if field.Kind() == reflect.String || field.Type() == reflect.TypeFor[athena.Secret]() {
		return "; put it in quotes"
	}
	return ""
}

func quoted(raw any) string {
	if text, ok := raw.(string); ok {
		return strconv.Quote(clip(text))
	}
	return clip(fmt.Sprint(raw))
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// lookup reads a variable of an environment, of which the last one counts.
func lookup(environ []string) func(string) string {
	return func(name string) (value string) {
		for _, kv := range environ {
			if rest, ok := strings.CutPrefix(kv, name+"="); ok {
				value = rest
			}
		}
		return value
	}
}

// dataDir follows the XDG Base Directory Specification, which wants paths that
// are not absolute to be ignored.
func dataDir(getenv func(string) string) string {
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "athena")
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "athena")
	}
	return "athena-data"
}
