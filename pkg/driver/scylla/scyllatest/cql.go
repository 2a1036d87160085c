package scyllatest

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/message"
)

// lexRE splits CQL into tokens; quoted names keep their quotes so that the
// parser can tell "Name" from name.
var lexRE = regexp.MustCompile(`(?i)"(?:[^"]|"")*"|'(?:[^']|'')*'|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]*|-?\d+(?:\.\d+)?(?:ms|s)?|[a-z][a-z0-9_]*|<=|>=|!=|[?(),.;=<>*{}:\[\]+-]`)

type term struct {
	bind  int // index of the bind marker, or -1
	lit   []byte
	tuple []term
}

type relation struct {
	col   *column
	op    string // = < <= > >= in
	terms []term
}

type selector struct {
	col *column
	fn  string // "", "writetime", "count"
}

type stmt struct {
	kind, text, ks, name string
	t                    *table
	sel                  []selector
	out, binds           []*message.ColumnMetadata
	bindCol              []*column // column a marker is bound to; nil for LIMIT and TTL
	where                []relation
	limit                *term
	cols                 []*column
	vals                 []term
	ifNotExists          bool
	fieldNames           []string
	fieldTypes           []ctype
}

// pkIndices lists which bind markers give the partition key, as protocol v4 wants.
func (st *stmt) pkIndices() (idx []uint16) {
	for _, r := range st.where {
		if r.op != "=" && r.col.kind == "partition_key" {
			return nil
		}
	}
	for _, pk := range st.t.pk {
		n := len(idx)
		for i, c := range st.bindCol {
			if c == pk && len(idx) == n {
				idx = append(idx, uint16(i))
			}
		}
		if len(idx) == n {
			return nil
		}
	}
	return idx
}

type parser struct {
	s    *Cluster
	st   *stmt
	toks []string
}

func (p *parser) next() (t string) {
	if len(p.toks) > 0 {
		t, p.toks = p.toks[0], p.toks[1:]
	}
	return t
}

func (p *parser) accept(words ...string) bool {
	for i, w := range words {
		if i >= len(p.toks) || !strings.EqualFold(p.toks[i], w) {
			return false
		}
	}
	p.toks = p.toks[len(words):]
	return true
}

func (p *parser) expect(w string) {
	if !p.accept(w) {
		panic(syntax("expected %q near %q", w, p.next()))
	}
}

// list parses a comma-separated list up to the closing token.
func (p *parser) list(end string, item func()) {
	for item(); p.accept(","); {
		item()
	}
	p.expect(end)
}

func (p *parser) ident() string {
	t := p.next()
	if strings.HasPrefix(t, `"`) {
		return strings.ReplaceAll(t[1:len(t)-1], `""`, `"`)
	}
	if t == "" || !strings.ContainsAny(t[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		panic(syntax("expected a name near %q", t))
	}
	return strings.ToLower(t)
}

func (p *parser) qname() {
	p.st.ks = p.ident()
	p.expect(".") // a prototype: no USE, so every name is qualified
	p.st.name = p.ident()
}

func (p *parser) table() {
	if p.qname(); p.s.tabs[p.st.ks+"."+p.st.name] == nil {
		panic(invalid("unconfigured table %s", p.st.name))
	}
	p.st.t = p.s.tabs[p.st.ks+"."+p.st.name]
}

func (p *parser) column() *column {
	n := p.ident()
	if p.st.t.by[n] == nil {
		panic(invalid("Unrecognized name %s", n))
	}
	return p.st.t.by[n]
}

func (p *parser) term(c *column, name string, dt datatype.DataType) term {
	t := p.next()
	switch tt, isTuple := dt.(*datatype.Tuple); {
	case t == "?":
		p.st.binds = append(p.st.binds, &message.ColumnMetadata{Keyspace: p.st.ks, Table: p.st.name, Name: name, Type: dt})
		p.st.bindCol = append(p.st.bindCol, c)
		return term{bind: len(p.st.binds) - 1}
	case t == "(" && isTuple:
		out, i := term{bind: -1}, 0
		p.list(")", func() {
			out.tuple = append(out.tuple, p.term(nil, fmt.Sprintf("%s[%d]", name, i), tt.FieldTypes[i]))
			i++
		})
		return out
	case strings.HasPrefix(t, "'"):
		return term{bind: -1, lit: []byte(strings.ReplaceAll(t[1:len(t)-1], "''", "'"))}
	case strings.HasPrefix(t, "0x"), strings.Count(t, "-") == 4:
		b, _ := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(t, "0x"), "-", ""))
		return term{bind: -1, lit: b}
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil {
		panic(syntax("no viable alternative at input %q", t))
	}
	return term{bind: -1, lit: enc(dt, n)}
}

func (s *Cluster) parse(cql string) *stmt {
	p := &parser{s: s, st: &stmt{text: cql}, toks: lexRE.FindAllString(cql, -1)}
	switch {
	case p.accept("select"):
		p.selectStmt()
	case p.accept("insert", "into"):
		p.insertStmt()
	case p.accept("create", "keyspace"):
		p.st.kind, p.st.ks, p.toks = "KEYSPACE", p.ident(), nil
	case p.accept("create", "type"):
		p.st.kind = "TYPE"
		p.qname()
		p.expect("(")
		p.list(")", func() {
			p.st.fieldNames = append(p.st.fieldNames, p.ident())
			p.st.fieldTypes = append(p.st.fieldTypes, p.typeName())
		})
	case p.accept("create", "table"):
		p.createTable()
	}
	if p.accept(";"); len(p.toks) > 0 || p.st.kind == "" {
		panic(syntax("no viable alternative at input %q", p.next()))
	}
	return p.st
}

func (p *parser) selectStmt() {
	st, all := p.st, p.toks
	st.kind = "select"
	for len(p.toks) > 0 && !p.accept("from") { // find the table first, for the types
		p.next()
	}
	p.table()
	rest := p.toks
	p.toks = all
	add := func(c *column, fn, name string, dt datatype.DataType) {
		st.sel = append(st.sel, selector{c, fn})
		st.out = append(st.out, &message.ColumnMetadata{Keyspace: st.ks, Table: st.name, Name: name, Type: dt})
	}
	p.list("from", func() {
		switch {
		case p.accept("*"):
			for _, c := range st.t.cols {
				add(c, "", c.name, c.typ.dt)
			}
		case p.accept("count", "(", "*", ")"):
			add(nil, "count", "count", datatype.Bigint)
		case p.accept("writetime", "("):
			c := p.column()
			p.expect(")")
			add(c, "writetime", "writetime("+c.name+")", datatype.Bigint)
		default:
			c := p.column()
			add(c, "", c.name, c.typ.dt)
		}
	})
	if p.toks = rest; p.accept("where") {
		for more := true; more; more = p.accept("and") {
			r := relation{col: p.column(), op: strings.ToLower(p.next())}
			one := func() { r.terms = append(r.terms, p.term(r.col, r.col.name, r.col.typ.dt)) }
			if r.op == "in" {
				p.expect("(")
				p.list(")", one)
			} else {
				one()
			}
			st.where = append(st.where, r)
		}
	}
	for len(p.toks) > 0 {
		switch {
		case p.accept("limit"):
			t := p.term(nil, "[limit]", datatype.Int)
			st.limit = &t
		case p.accept("allow", "filtering"), p.accept("bypass", "cache"): // BYPASS CACHE: ScyllaDB only
		case p.accept("using", "timeout"): // ScyllaDB only
			p.next()
		default:
			return
		}
	}
}

func (p *parser) insertStmt() {
	p.st.kind = "insert"
	p.table()
	p.expect("(")
	p.list(")", func() { p.st.cols = append(p.st.cols, p.column()) })
	p.expect("values")
	p.expect("(")
	p.list(")", func() {
		c := p.st.cols[len(p.st.vals)]
		p.st.vals = append(p.st.vals, p.term(c, c.name, c.typ.dt))
	})
	if p.accept("using", "ttl") {
		p.term(nil, "[ttl]", datatype.Int) // accepted and ignored: nothing expires here
	}
}

func (p *parser) createTable() {
	p.st.kind, p.st.ifNotExists = "TABLE", p.accept("if", "not", "exists")
	p.qname()
	t := &table{ks: p.st.ks, name: p.st.name, by: map[string]*column{}}
	p.st.t = t
	var order []string
	key := func(kind string) func() {
		return func() {
			n := p.ident()
			t.by[n].kind, order = kind, append(order, n)
		}
	}
	p.expect("(")
	p.list(")", func() {
		if p.accept("primary", "key", "(") {
			if p.accept("(") {
				p.list(")", key("partition_key"))
			} else {
				key("partition_key")()
			}
			for p.accept(",") {
				key("clustering")()
			}
			p.expect(")")
			return
		}
		c := &column{name: p.ident(), kind: "regular", typ: p.typeName()}
		if t.by[c.name] = c; p.accept("static") {
			c.kind = "static"
		} else if p.accept("primary", "key") {
			c.kind, order = "partition_key", append(order, c.name)
		}
	})
	for p.accept("with") || p.accept("and") {
		if p.accept("clustering", "order", "by", "(") {
			p.list(")", func() {
				c := t.by[p.ident()]
				c.desc = p.next() == "DESC"
			})
		} else if p.accept("cdc", "=", "{") {
			t.cdc = map[string]string{}
			p.list("}", func() {
				k := strings.Trim(p.next(), "'")
				p.expect(":")
				t.cdc[k] = strings.Trim(p.next(), "'")
			})
		}
	}
	t.finish(order)
}

func (p *parser) typeName() ctype {
	n := p.ident()
	var args []ctype
	if p.accept("<") {
		p.list(">", func() { args = append(args, p.typeName()) })
	}
	if n == "frozen" {
		args[0].text, args[0].frozen = "frozen<"+args[0].text+">", true
		return args[0]
	} else if len(args) > 0 {
		return collection(n, args)
	} else if dt := primitives[n]; dt != nil {
		return ctype{text: n, dt: dt}
	} else if u := p.s.udts[p.st.ks+"."+n]; u != nil {
		return ctype{text: n, dt: u, coll: "udt"}
	}
	panic(invalid("Unknown type %s.%s", p.st.ks, n))
}
