// Package legacy reads client catalogs of the former, Postgres-shaped kind and
// makes definitions of today's kind from them, with a report on each entry of
// what was carried over and what was not.
//
// It takes connection data from the fields that are meant for it and from
// nowhere else: metadata stays metadata, whatever it seems to say. It stores
// nothing.
package legacy

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Granted is what every client that is carried over is allowed: what the former
// catalog allowed to each.
func Granted() athena.Capabilities {
	return athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.SchemaRead, athena.MigrationsRead, athena.DeferredQuery)
}

// An Entry is one client of the former catalog.
type Entry struct {
	// Source says where it stands: a file and line, or a table and row.
	Source string `json:"source"`
	// Name is the one that it had.
	Name string `json:"name"`
	// Client is the definition made of it; nil if none could be made.
	Client *athena.Client `json:"client,omitempty"`
	Notes  []Note         `json:"notes"`
}

// A Kind says what became of a part of an entry.
type Kind string

// The kinds.
const (
	Carried Kind = "carried" // it stands in the definition, with the same meaning
	Changed Kind = "changed" // it stands in the definition in another form
	Assumed Kind = "assumed" // it was not given
	Kept    Kind = "kept"    // it is kept as metadata and has no effect
	Dropped Kind = "dropped" // it is not in the definition
	Refused Kind = "refused" // there is no definition because of it
)

// A Note says what became of one part of an entry. It holds no secret.
type Note struct {
	Kind  Kind   `json:"kind"`
	Field string `json:"field"`
	Text  string `json:"text"`
}

// The spellings of a field that are known, the first being the usual one.
var (
	nameKeys     = []string{"client_name", "name", "client"}
	uriKeys      = []string{"pg_uri", "uri", "url", "dsn", "postgres_uri", "database_url", "connection_string"}
	envKeys      = []string{"pg_uri_env_var", "uri_env_var", "pg_uri_env", "uri_env", "env_var", "env"}
	activeKeys   = []string{"is_active", "active", "enabled"}
	frozenKeys   = []string{"is_frozen", "frozen"}
	metadataKeys = []string{"metadata", "meta"}
	maxConnsKeys = []string{"max_conns", "max_connections", "pool_size"}
	// describing are kept as metadata under their own name.
	describing = []string{"description", "source", "created_at", "updated_at"}
)

// telling are names in metadata that look like facts of an engine or of a
// connection, on which the former catalog's readers relied.
var telling = regexp.MustCompile(`(?i)^(engine|backend|driver|type|kind|provider|hosts?|hostname|port|nodes?|contact_points|keyspace|datacenter|database|db|dbname|schema|bucket|region|endpoint|prefix|user|username|role|scylla.*|cassandra.*|s3.*|supabase.*|.*(uri|url|dsn|ssl|tls|connection|capabilit).*)$`)

// secretive are names in metadata that look like those of a secret.
var secretive = regexp.MustCompile(`(?i)(passw|secret|token|api_?key|access_?key|private|credential)`)

// converter makes the entries of one catalog.
type converter struct {
	taken map[string]string // name → source of the entry that has it
}

// convert makes an entry of one former client. name is its key in a map, if it
// was one.
func (c *converter) convert(source, name string, fields map[string]any) Entry {
	e := Entry{Source: source, Name: name}
	note := func(k Kind, field, format string, args ...any) {
		e.Notes = append(e.Notes, Note{k, field, fmt.Sprintf(format, args...)})
	}
	rest := maps.Clone(fields)
	take := func(keys []string) (value any, key string) {
		for _, k := range keys {
			v, ok := rest[k]
			delete(rest, k)
			if !ok || v == nil || v == "" {
				continue
			}
			if key != "" {
				note(Dropped, k, "%s says the same and was taken", key)
				continue
			}
			value, key = v, k
		}
		return value, key
	}

	if v, key := take(nameKeys); key != "" {
		text, ok := v.(string)
		switch {
		case !ok:
			note(Refused, key, "the name is not a text")
			return e
		case e.Name != "" && e.Name != text:
			note(Dropped, key, "it is %q; the entry's own key %q was taken", text, e.Name)
		default:
			e.Name = text
		}
	}
	def := &athena.Client{Capabilities: Granted(), Metadata: map[string]any{}}
	var ok bool
	if def.Name, ok = mend(e.Name); !ok {
		note(Refused, "client_name", "%q cannot be made a name of a-z, 0-9, _ and -", e.Name)
		return e
	}
	if def.Name != e.Name {
		note(Changed, "client_name", "%q became %q, since names have a-z, 0-9, _ and - alone; callers must send the new one in X-Athena-Client", e.Name, def.Name)
	}
	if first, ok := c.taken[def.Name]; ok {
		note(Refused, "client_name", "the name %q is that of %s already", def.Name, first)
		return e
	}

	conn, ok := connection(take, note)
	if !ok {
		return e
	}
	if v, key := take(maxConnsKeys); key != "" {
		if n, ok := whole(v); ok && n >= 1 && n <= 1000 {
			conn.MaxConns = n
			note(Carried, key, "as connection.max_conns")
		} else {
			note(Dropped, key, "it is not a number from 1 to 1000; the default stands")
		}
	}
	def.Connection = conn
	if def.Lifecycle, ok = lifecycle(take, note); !ok {
		return e
	}
	note(Assumed, "capabilities", "granted: %s; the former catalog allowed these to every client", def.Capabilities)

	metadata(take, note, def.Metadata)
	for _, key := range describing {
		if v, k := take([]string{key}); k != "" {
			if _, ok := def.Metadata[key]; !ok {
				def.Metadata[key] = v
				note(Kept, key, "as metadata.%s", key)
			} else {
				note(Dropped, key, "metadata has a %s of its own", key)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rest)) {
		note(Dropped, key, "this field is not known")
	}
	c.taken[def.Name] = source
	e.Client = def
	return e
}

type (
	takeFunc func(keys []string) (value any, key string)
	noteFunc func(k Kind, field, format string, args ...any)
)

var (
	envName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	placeholder = regexp.MustCompile(`^\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))$`)
	keywords    = regexp.MustCompile(`^\s*[a-z_]+\s*=`)
)

// connection makes the connection data of the URI or the variable.
func connection(take takeFunc, note noteFunc) (conn athena.PostgresConn, ok bool) {
	uri, uriKey := take(uriKeys)
	env, envKey := take(envKeys)
	switch {
	case envKey != "":
		name, ok := env.(string)
		if name = strings.TrimPrefix(name, "$"); !ok || !envName.MatchString(name) {
			note(Refused, envKey, "it is not the name of an environment variable")
			return conn, false
		}
		conn.DSN = athena.NewSecret("env:" + name)
		note(Changed, envKey, "connection.dsn is env:%s; it must be set on the processes that open this client", name)
		if uriKey != "" {
			note(Dropped, uriKey, "%s is given too and was taken, so that no secret is copied; store the client again with the connection string if the variable is not in use", envKey)
		}
		return conn, true
	case uriKey == "":
		note(Refused, uriKeys[0], "there is no connection string and no variable that has one")
		return conn, false
	}
	text, ok := uri.(string)
	if !ok {
		note(Refused, uriKey, "the connection string is not a text")
		return conn, false
	}
	text = strings.TrimSpace(text)
	if m := placeholder.FindStringSubmatch(text); m != nil {
		conn.DSN = athena.NewSecret("env:" + m[1] + m[2])
		note(Changed, uriKey, "it names a variable: connection.dsn is env:%s", m[1]+m[2])
		return conn, true
	}
	switch {
	case strings.HasPrefix(text, "postgres://"), strings.HasPrefix(text, "postgresql://"), keywords.MatchString(text):
	default:
		note(Refused, uriKey, "it is not a connection string of PostgreSQL, such as postgres://user:password@host/database")
		return conn, false
	}
	conn.DSN = athena.NewSecret(text)
	note(Carried, uriKey, "as connection.dsn, which is sealed when it is stored")
	if strings.Contains(text, "${") {
		note(Changed, uriKey, "it has a ${…} within, which is not filled in any more; give the whole string in a variable, as env:NAME")
	}
	return conn, true
}

// lifecycle makes one policy of the two flags.
func lifecycle(take takeFunc, note noteFunc) (athena.Lifecycle, bool) {
	active, activeKey := take(activeKeys)
	frozen, frozenKey := take(frozenKeys)
	isActive, isFrozen := true, false
	if activeKey == "" {
		note(Assumed, "lifecycle", "%s is not given, which stood for active", activeKeys[0])
	} else if b, ok := flag(active); ok {
		isActive = b
	} else {
		note(Refused, activeKey, "it is neither true nor false")
		return "", false
	}
	if frozenKey != "" {
		b, ok := flag(frozen)
		if !ok {
			note(Refused, frozenKey, "it is neither true nor false")
			return "", false
		}
		isFrozen = b
	}
	l := athena.Active
	switch {
	case !isActive:
		l = athena.Inactive
		if isFrozen {
			note(Dropped, frozenKey, "the client is inactive, which is the stronger of the two")
		}
	case isFrozen:
		l = athena.Frozen
	}
	note(Carried, "lifecycle", "%s", l)
	return l, true
}

// metadata copies the metadata and names what in it no longer has an effect.
func metadata(take takeFunc, note noteFunc, into map[string]any) {
	v, key := take(metadataKeys)
	if text, ok := v.(string); ok {
		var parsed map[string]any
		if json.Unmarshal([]byte(text), &parsed) == nil {
			v = parsed
		}
	}
	m, ok := v.(map[string]any)
	switch {
	case key == "":
		return
	case !ok:
		into["legacy_metadata"] = v
		note(Kept, key, "it is not an object; it is kept as metadata.legacy_metadata")
		return
	}
	maps.Copy(into, m)
	if len(m) > 0 {
		note(Carried, key, "%d entries", len(m))
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		field := key + "." + name
		switch {
		case secretive.MatchString(name):
			note(Kept, field, "it looks like a secret; metadata is readable to everyone who may see definitions: move it away")
		case telling.MatchString(name):
			note(Kept, field, "it looks like a fact of an engine or a connection; metadata is never read by the program, so that it has no effect any more")
		}
	}
}

// mend makes a name of today's form.
func mend(name string) (string, bool) {
	if athena.CheckName(name) == nil {
		return name, true
	}
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(name)) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_', r == '-':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	s := strings.Trim(b.String(), "-_")
	if s == "" {
		return "", false
	}
	if s[0] < 'a' || s[0] > 'z' {
		s = "c-" + s
	}
	if len(s) > 63 {
		s = strings.TrimRight(s[:63], "-_")
	}
	return s, athena.CheckName(s) == nil
}

func flag(v any) (value, ok bool) {
	switch v := v.(type) {
	case bool:
		return v, true
	case string:
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "true", "t", "yes", "y", "on", "1":
			return true, true
		case "false", "f", "no", "n", "off", "0":
			return false, true
		}
	}
	if n, isNumber := whole(v); isNumber && (n == 0 || n == 1) {
		return n == 1, true
	}
	return false, false
}

func whole(v any) (int, bool) {
	switch v := v.(type) {
	case int:
		return v, true
	case float64:
		return int(v), v == float64(int(v))
	case string:
		n, err := strconv.Atoi(v)
		return n, err == nil
	}
	return 0, false
}
