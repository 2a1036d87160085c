package postgres

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// SessionSettings are the settings that AppendJSON and the statement classifier
// depend on, as startup parameters of a connection, replication connections
// included.
func SessionSettings() map[string]string {
	return map[string]string{
		"client_encoding":             "UTF8",
		"DateStyle":                   "ISO",
		"IntervalStyle":               "iso_8601",
		"TimeZone":                    "UTC",
		"extra_float_digits":          "1", // the shortest text that gives the same number
		"bytea_output":                "hex",
		"standard_conforming_strings": "on",
	}
}

// Types knows how the values of a database's types are rendered. The built-in
// types are always known; others are loaded from the database by Load. The zero
// value is ready to use. Methods are safe for concurrent use.
type Types struct {
	// loaded holds a map that is replaced as a whole, so that rendering takes
	// no lock.
	loaded atomic.Pointer[map[uint32]*typ]
	mu     sync.Mutex // held while the map is replaced
}

// A typ says how one type's values are rendered.
type typ struct {
	name   string
	kind   kind
	delim  byte    // of an array
	elem   *typ    // of an array, a range, a multirange
	fields []field // of a composite
	at     time.Time
}

type field struct {
	key []byte // the name as a JSON key, colon included
	typ *typ
}

// staleAfter is how long a composite's attributes are believed: ALTER TYPE and
// ALTER TABLE change them, and nobody tells us.
const staleAfter = 30 * time.Second

var (
	textType = &typ{name: "text"}
	// static holds the built-in types by OID.
	static = buildStatic()
)

func buildStatic() map[uint32]*typ {
	m := make(map[uint32]*typ, len(builtins))
	for _, b := range builtins {
		m[b.oid] = &typ{name: b.name, kind: b.kind, delim: ','}
	}
	for _, b := range builtins {
		if b.elem != 0 {
			m[b.oid].elem = m[b.elem]
		}
	}
	m[boxArrayOID].delim = ';' // the one type whose text has commas
	return m
}

const (
	boxArrayOID = 1020
	textOID     = 25
	// firstVariableOID is where OIDs begin that differ between servers.
	firstVariableOID = 10000
)

func (ts *Types) lookup(oid uint32) *typ {
	if t := static[oid]; t != nil {
		return t
	}
	if m := ts.loaded.Load(); m != nil {
		if t := (*m)[oid]; t != nil {
			return t
		}
	}
	return textType
}

// Name is the server's name of the type, such as "timestamp with time zone" or
// "shop.status[]"; "text" if the type is not known.
func (ts *Types) Name(oid uint32) string { return ts.lookup(oid).name }

// Missing returns those of the given types that AppendJSON does not know, or
// may no longer know rightly, so that Load should be called for them.
func (ts *Types) Missing(oids ...uint32) (missing []uint32) {
	var loaded map[uint32]*typ
	if m := ts.loaded.Load(); m != nil {
		loaded = *m
	}
	for _, oid := range oids {
		if oid == 0 || static[oid] != nil {
			continue
		}
		if t := loaded[oid]; t == nil || time.Since(t.at) > staleAfter {
			missing = append(missing, oid)
		}
	}
	return missing
}

const typesQuery = `
SELECT t.oid, format_type(t.oid, NULL), t.typtype,
       CASE WHEN t.typtype = 'd' THEN t.typbasetype
            WHEN t.typoutput = 'pg_catalog.array_out'::regproc THEN t.typelem
            ELSE coalesce(r.rngsubtype, m.rngtypid, 0) END,
       t.typoutput = 'pg_catalog.array_out'::regproc,
       coalesce(e.typdelim, ','),
       a.attname, a.atttypid
FROM pg_catalog.pg_type t
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid
LEFT JOIN pg_catalog.pg_attribute a ON t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
WHERE t.oid = ANY ($1)
ORDER BY t.oid, a.attnum`

// loadedType is a row of typesQuery: links are OIDs still.
type loadedType struct {
	typ
	typtype byte
	elem    uint32
	fields  []loadedField
}

type loadedField struct {
	name string
	oid  uint32
}

// Load reads the given types, and those that they are made of, from the
// database at the other end of conn, which may be in a transaction. A type that
// does not exist there is rendered as text.
func (ts *Types) Load(ctx context.Context, conn *pgconn.PgConn, oids ...uint32) error {
	found := map[uint32]*loadedType{}
	for want := ts.Missing(oids...); len(want) > 0; {
		list := make([]string, len(want))
		for i, oid := range want {
			list[i] = strconv.FormatUint(uint64(oid), 10)
			found[oid] = &loadedType{typ: typ{name: "text"}}
		}
		result := conn.ExecParams(ctx, typesQuery, [][]byte{[]byte("{" + strings.Join(list, ",") + "}")}, []uint32{oidArrayOID}, nil, nil).Read()
		if result.Err != nil {
			return fmt.Errorf("postgres: load types: %w", result.Err)
		}
		var links []uint32
		for _, row := range result.Rows {
			t := found[parseOID(row[0])]
			if t.typtype == 0 {
				t.name, t.typtype, t.elem, t.delim = string(row[1]), row[2][0], parseOID(row[3]), row[5][0]
				t.kind = kindOf(t.typtype, string(row[4]) == "t")
				links = append(links, t.elem)
			}
			if row[6] != nil {
				t.fields = append(t.fields, loadedField{string(row[6]), parseOID(row[7])})
				links = append(links, parseOID(row[7]))
			}
		}
		want = want[:0]
		for _, oid := range ts.Missing(links...) {
			if found[oid] == nil {
				want = append(want, oid)
			}
		}
	}
	ts.publish(found)
	return nil
}

const oidArrayOID = 1028

func kindOf(typtype byte, array bool) kind {
	switch {
	case array:
		return kindArray
	case typtype == 'c':
		return kindComposite
	case typtype == 'r':
		return kindRange
	case typtype == 'm':
		return kindMultirange
	}
	return kindText // base types of extensions, enums; domains become their base
}

// publish links the types that were found and replaces the map.
func (ts *Types) publish(found map[uint32]*loadedType) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	next := map[uint32]*typ{}
	if m := ts.loaded.Load(); m != nil {
		next = maps.Clone(*m)
	}
	now := time.Now()
	for oid, f := range found {
		next[oid] = &typ{name: f.name, kind: f.kind, delim: f.delim, at: now}
	}
	resolve := func(oid uint32) *typ {
		// A domain is rendered as its base; domains may stand on domains.
		for range maxNesting {
			f := found[oid]
			if f == nil || f.typtype != 'd' {
				break
			}
			oid = f.elem
		}
		if t := static[oid]; t != nil {
			return t
		}
		if t := next[oid]; t != nil {
			return t
		}
		return textType
	}
	for oid, f := range found {
		t := next[oid]
		switch f.kind {
		case kindArray, kindRange, kindMultirange:
			t.elem = resolve(f.elem)
		}
		for _, a := range f.fields {
			key := append(cdc.AppendString(nil, a.name), ':')
			t.fields = append(t.fields, field{key, resolve(a.oid)})
		}
	}
	for oid, f := range found {
		if f.typtype == 'd' { // last, when its base is complete
			base := *resolve(oid)
			base.name, base.at = f.name, now
			next[oid] = &base
		}
	}
	ts.loaded.Store(&next)
}

func parseOID(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32)
	return uint32(n)
}
