package scyllatest

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// An env is what an expression is evaluated in.
type env struct {
	c      *Cluster
	vals   []*primitive.Value
	now    int64 // seconds since 1970
	micros int64 // time of the statement

	// of the row that is looked at:
	t     *table
	part  *partition
	row   *row // nil if there is only a static row
	floor int64
	sfl   int64 // floor of the static row
}

func (e *env) at(t *table, p *partition, r *row) {
	e.t, e.part, e.row = t, p, r
	e.sfl = p.floor(t, p.static)
	if r != nil {
		e.floor = p.floor(t, r)
	}
}

// read gives the value of a column of the row, or nil.
func (e *env) read(c *column) []byte {
	switch {
	case e.part == nil:
		return nil
	case c.kind == partitionKind:
		return e.part.pk[c.pos]
	case c.kind == static:
		return e.part.static.read(c, e.sfl, e.now)
	case e.row == nil:
		return nil
	case c.kind == clustering:
		if c.pos < len(e.row.ck) {
			return e.row.ck[c.pos]
		}
		return nil
	}
	return e.row.read(c, e.floor, e.now)
}

func (e *env) cell(c *column) *cell {
	r, floor := e.row, e.floor
	if c.kind == static {
		r, floor = e.part.static, e.sfl
	}
	if r == nil || c.idx >= len(r.cells) || !r.cells[c.idx].live(floor, e.now) {
		return nil
	}
	return &r.cells[c.idx]
}

// An expr is a term with a type. eval gives nil for null; unset is in unsetValue.
type expr struct {
	typ  *ctype
	name string // as a result shows it
	eval func(*env) []byte
	mark bool
}

// unsetValue stands for a value that a client left unset. It is compared by its
// address.
var unsetValue = []byte("unset")

func isUnset(b []byte) bool { return len(b) == len(unsetValue) && &b[0] == &unsetValue[0] }

func constant(t *ctype, b []byte) *expr {
	return &expr{typ: t, eval: func(*env) []byte { return b }}
}

// A binder gives terms their types, and collects what is known of markers.
type binder struct {
	c     *Cluster
	use   string
	t     *table
	names []string // of the markers, as written
	marks []*message.ColumnMetadata
	cols  []*column // that a marker gives the value of
}

func (c *Cluster) newBinder(use string, names []string) *binder {
	return &binder{c: c, use: use, names: names, marks: make([]*message.ColumnMetadata, len(names)), cols: make([]*column, len(names))}
}

func (b *binder) marker(t term, typ *ctype, name string, col *column) *expr {
	if n := b.names[t.mark]; n != "" {
		name = n
	}
	m := &message.ColumnMetadata{Name: name, Type: typ.wire()}
	if b.t != nil {
		m.Keyspace, m.Table = b.t.ks, b.t.name
	}
	b.marks[t.mark], b.cols[t.mark] = m, col
	i := t.mark
	return &expr{typ: typ, mark: true, eval: func(e *env) []byte {
		if i >= len(e.vals) {
			panic(invalid("Invalid amount of bind variables"))
		}
		v := e.vals[i]
		if v == nil || v.Type == primitive.ValueTypeNull {
			return nil
		}
		if v.Type == primitive.ValueTypeUnset {
			return unsetValue
		}
		if v.Contents == nil {
			return []byte{}
		}
		typ.check(v.Contents)
		return v.Contents
	}}
}

// value makes an expression of a term that is to be of a type. name is that of its
// marker, and col the column whose value it is, if it is one's.
func (b *binder) value(t term, typ *ctype, name string, col *column) *expr {
	mismatch := func() failure { return invalid("Invalid literal for %s of type %s", name, typ) }
	switch t.kind {
	case termMark:
		return b.marker(t, typ, name, col)
	case termNull:
		return constant(typ, nil)
	case termConst:
		return constant(typ, typ.encode(t.lit, t.text))
	case termCast:
		from := b.c.resolveType(b.ks(), *t.typ)
		if from.String() != typ.String() {
			panic(invalid("Cannot assign value of type %s to %s of type %s", from, name, typ))
		}
		return b.value(t.args[0], typ, name, col)
	case termCall:
		x := b.call(t)
		if x.typ.kind != typ.kind && !(x.typ.kind == "timeuuid" && typ.kind == "uuid") && !(x.typ.kind == "counter" || typ.kind == "counter") {
			panic(invalid("Type error: cannot assign result of function %s (type %s) to %s (type %s)", t.text, x.typ, name, typ))
		}
		return x
	case termList:
		switch typ.kind {
		case "list":
			return b.sequence(t.args, typ, name, func(vals [][]byte) []byte { return collect(len(vals), vals...) })
		case "vector":
			if len(t.args) != typ.size {
				panic(invalid("Invalid vector literal for %s: value should have %d dimensions, but has %d", name, typ.size, len(t.args)))
			}
			return b.sequence(t.args, typ, name, func(vals [][]byte) []byte {
				if width(typ.args[0].kind) == 0 {
					panic(syntax("the double knows vectors of fixed width only"))
				}
				return slices.Concat(vals...)
			})
		}
	case termBrace:
		return b.brace(t, typ, name)
	case termTuple:
		if typ.kind != "tuple" && typ.kind != "udt" {
			panic(mismatch())
		}
		types := typ.parts()
		if len(t.args) > len(types) {
			panic(invalid("Invalid tuple literal for %s: too many elements. Type %s expects %d but got %d", name, typ, len(types), len(t.args)))
		}
		var parts []*expr
		for i, a := range t.args {
			parts = append(parts, b.value(a, types[i], fmt.Sprintf("%s[%d]", name, i), nil))
		}
		return b.fields(typ, parts)
	}
	panic(mismatch())
}

func (b *binder) ks() string {
	if b.t != nil {
		return b.t.ks
	}
	return b.use
}

func (b *binder) fields(typ *ctype, parts []*expr) *expr {
	return &expr{typ: typ, eval: func(e *env) []byte {
		out := []byte{}
		for _, p := range parts {
			var v []byte
			if p != nil {
				v = p.eval(e)
			}
			if isUnset(v) {
				panic(invalid("Invalid unset value in a tuple or user type"))
			}
			out = appendSized(out, v)
		}
		return out
	}}
}

func (b *binder) sequence(args []term, typ *ctype, name string, join func([][]byte) []byte) *expr {
	var parts []*expr
	for _, a := range args {
		parts = append(parts, b.value(a, typ.args[0], "value("+name+")", nil))
	}
	return &expr{typ: typ, eval: func(e *env) []byte {
		vals := [][]byte{}
		for _, p := range parts {
			v := p.eval(e)
			if v == nil || isUnset(v) {
				panic(invalid("null is not supported inside collections"))
			}
			vals = append(vals, v)
		}
		return join(vals)
	}}
}

func (b *binder) brace(t term, typ *ctype, name string) *expr {
	switch {
	case typ.kind == "set" && !t.pairs:
		return b.sequence(t.args, typ, name, func(vals [][]byte) []byte {
			slices.SortFunc(vals, typ.args[0].compare)
			vals = slices.CompactFunc(vals, func(a, b []byte) bool { return typ.args[0].compare(a, b) == 0 })
			return collect(len(vals), vals...)
		})
	case typ.kind == "map" && (t.pairs || len(t.args) == 0):
		var parts []*expr
		for i, a := range t.args {
			parts = append(parts, b.value(a, typ.args[i%2], []string{"key(", "value("}[i%2]+name+")", nil))
		}
		return &expr{typ: typ, eval: func(e *env) []byte {
			m := map[string][]byte{}
			for i := 0; i < len(parts); i += 2 {
				k, v := parts[i].eval(e), parts[i+1].eval(e)
				if k == nil || v == nil || isUnset(k) || isUnset(v) {
					panic(invalid("null is not supported inside collections"))
				}
				m[string(k)] = v
			}
			return typ.sorted(m)
		}}
	case typ.kind == "udt" && (t.pairs || len(t.args) == 0):
		parts := make([]*expr, len(typ.udt.fields))
		for i := 0; i < len(t.args); i += 2 {
			f := slices.Index(typ.udt.fields, t.args[i].text)
			if t.args[i].kind != termName || f < 0 {
				panic(invalid("Unknown field '%s' in value of user defined type %s", t.args[i].text, typ.udt.name))
			}
			parts[f] = b.value(t.args[i+1], typ.udt.types[f], name+"."+t.args[i].text, nil)
		}
		return b.fields(typ, parts)
	}
	panic(invalid("Invalid set, map or user type literal for %s of type %s", name, typ))
}

// sorted encodes a map whose keys and values are encoded.
func (t *ctype) sorted(m map[string][]byte) []byte {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return t.args[0].compare([]byte(a), []byte(b)) })
	var parts [][]byte
	for _, k := range keys {
		parts = append(parts, []byte(k), m[k])
	}
	return collect(len(keys), parts...)
}

// read makes an expression of what is selected.
func (b *binder) read(t term) *expr {
	switch t.kind {
	case termName:
		c := b.t.need(t.text)
		return &expr{typ: c.typ, name: c.name, eval: func(e *env) []byte { return e.read(c) }}
	case termField:
		in := b.read(t.args[0])
		if in.typ.kind != "udt" {
			panic(invalid("Invalid field selection: %s of type %s is not a user type", in.name, in.typ))
		}
		i := slices.Index(in.typ.udt.fields, t.text)
		if i < 0 {
			panic(invalid("%s of type %s has no field %s", in.name, in.typ, t.text))
		}
		return &expr{typ: in.typ.udt.types[i], name: in.name + "." + t.text, eval: func(e *env) []byte {
			for j, v := range fields(in.eval(e)) {
				if i == j {
					return v
				}
			}
			return nil
		}}
	case termElement:
		in := b.read(t.args[0])
		if in.typ.kind != "map" && in.typ.kind != "set" {
			panic(invalid("Invalid element selection: %s of type %s is not a collection", in.name, in.typ))
		}
		key, typ := b.value(t.args[1], in.typ.args[0], "key("+in.name+")", nil), in.typ.args[len(in.typ.args)-1]
		return &expr{typ: typ, name: in.name + "[...]", eval: func(e *env) []byte {
			k, found := key.eval(e), false
			for i, v := range slices.Collect(elements(in.eval(e))) {
				switch {
				case found && in.typ.kind == "map":
					return v
				case in.typ.kind == "map" && i%2 == 1:
				case in.typ.args[0].compare(v, k) == 0:
					if found = true; in.typ.kind == "set" {
						return v
					}
				}
			}
			return nil
		}}
	case termCall:
		return b.call(t)
	case termCast:
		typ := b.c.resolveType(b.ks(), *t.typ)
		return b.value(t.args[0], typ, typ.String(), nil)
	}
	panic(syntax("the double does not select such a term"))
}

// arg is an argument of a function: a column, or a constant of the type it wants.
func (b *binder) arg(t term, want *ctype) *expr {
	switch t.kind {
	case termName, termField, termElement, termCall:
		return b.read(t)
	}
	if want == nil {
		panic(invalid("Ambiguous call to a function: use type casts to disambiguate"))
	}
	return b.value(t, want, "arg0(function)", nil)
}

// call makes an expression of a function's call.
func (b *binder) call(t term) *expr {
	args := func(n int) {
		if len(t.args) != n {
			panic(invalid("Invalid number of arguments in call to function %s: %d required but %d provided", t.text, n, len(t.args)))
		}
	}
	fn := func(typ *ctype, eval func(*env) []byte) *expr {
		return &expr{typ: typ, name: "system." + t.text + "()", eval: eval}
	}
	one := func(name string, want, typ *ctype, f func([]byte) []byte) *expr {
		args(1)
		in := b.arg(t.args[0], want)
		return &expr{typ: typ, name: "system." + name + "(" + in.name + ")", eval: func(e *env) []byte {
			v := in.eval(e)
			if v == nil {
				return nil
			}
			return f(v)
		}}
	}
	switch t.text {
	case "token":
		return b.tokenCall(t)
	case "writetime", "ttl":
		return b.timeCall(t)
	case "cast":
		return b.castCall(t)
	case "now":
		args(0)
		return fn(timeuuidType, func(e *env) []byte { return timeUUID(e.c.nextMicros(), 0, randomBytes()) })
	case "uuid":
		args(0)
		return fn(native("uuid"), func(*env) []byte {
			u := make([]byte, 16)
			_, _ = rand.Read(u)
			u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
			return u
		})
	case "currenttimestamp":
		args(0)
		return fn(timestampType, func(e *env) []byte { return encodeInt(e.micros/1000, 8) })
	case "currentdate":
		args(0)
		return fn(native("date"), func(e *env) []byte { return encodeInt(e.micros/86400e6+1<<31, 4) })
	case "totimestamp", "dateof", "todate", "tounixtimestamp", "unixtimestampof":
		args(1)
		in := b.arg(t.args[0], timeuuidType)
		typ := map[string]*ctype{"totimestamp": timestampType, "dateof": timestampType, "todate": native("date")}[t.text]
		if typ == nil {
			typ = bigintType
		}
		return &expr{typ: typ, name: "system." + t.text + "(" + in.name + ")", eval: func(e *env) []byte {
			v := in.eval(e)
			if v == nil {
				return nil
			}
			millis := signed(v)
			switch in.typ.kind {
			case "timeuuid":
				millis = uuidMicros(v) / 1000
			case "date":
				millis = (int64(binary.BigEndian.Uint32(v)) - 1<<31) * 86400e3
			}
			if t.text == "todate" {
				return encodeInt(millis/86400e3+1<<31, 4)
			}
			return encodeInt(millis, 8)
		}}
	case "mintimeuuid":
		return one(t.text, timestampType, timeuuidType, func(v []byte) []byte { return bareTimeUUID(signed(v)*1000, 0, 0x80) })
	case "maxtimeuuid":
		return one(t.text, timestampType, timeuuidType, func(v []byte) []byte { return bareTimeUUID(signed(v)*1000, 9999, 0x7f) })
	}
	if typ, ok := strings.CutSuffix(t.text, "asblob"); ok && natives[strings.Replace(typ, "varchar", "text", 1)] != nil {
		return one(t.text, native(strings.Replace(typ, "varchar", "text", 1)), blobType, func(v []byte) []byte { return v })
	}
	if typ, ok := strings.CutPrefix(t.text, "blobas"); ok && natives[strings.Replace(typ, "varchar", "text", 1)] != nil {
		to := native(strings.Replace(typ, "varchar", "text", 1))
		return one(t.text, blobType, to, func(v []byte) []byte { to.check(v); return v })
	}
	panic(b.c.unknown("function %s", t.text))
}

// bareTimeUUID is a bound of the timeuuids of a time.
func bareTimeUUID(micros int64, ticks uint64, fill byte) []byte {
	u := timeUUID(micros, ticks, [8]byte{})
	for i := 8; i < 16; i++ {
		u[i] = fill
	}
	return u
}

func randomBytes() (b [8]byte) {
	_, _ = rand.Read(b[:])
	return b
}

func (b *binder) tokenCall(t term) *expr {
	if len(t.args) != len(b.t.pk) {
		panic(invalid("Invalid number of arguments in call to function token: %d required but %d provided", len(b.t.pk), len(t.args)))
	}
	var parts []*expr
	var names []string
	for i, a := range t.args {
		parts = append(parts, b.arg(a, b.t.pk[i].typ))
		names = append(names, parts[i].name)
	}
	tab := b.t
	return &expr{typ: bigintType, name: "system.token(" + strings.Join(names, ", ") + ")", eval: func(e *env) []byte {
		var key [][]byte
		for _, p := range parts {
			v := p.eval(e)
			if v == nil {
				return nil
			}
			key = append(key, v)
		}
		return encodeInt(tab.token(partitionKey(key)), 8)
	}}
}

func (b *binder) timeCall(t term) *expr {
	if len(t.args) != 1 || t.args[0].kind != termName {
		panic(invalid("%s() takes the name of a column", t.text))
	}
	c := b.t.need(t.args[0].text)
	if c.kind == partitionKind || c.kind == clustering {
		panic(invalid("Cannot use selection function %s on PRIMARY KEY part %s", t.text, c.name))
	}
	if c.typ.multi() {
		panic(invalid("Cannot use selection function %s on non-frozen collections", t.text))
	}
	typ := bigintType
	if t.text == "ttl" {
		typ = intType
	}
	return &expr{typ: typ, name: t.text + "(" + c.name + ")", eval: func(e *env) []byte {
		k := e.cell(c)
		switch {
		case k == nil:
			return nil
		case t.text == "writetime":
			return encodeInt(k.ts, 8)
		case k.exp == 0:
			return nil
		}
		return encodeInt(k.exp-e.now, 4)
	}}
}

func (b *binder) castCall(t term) *expr {
	in, to := b.read(t.args[0]), b.c.resolveType(b.ks(), *t.typ)
	ints := []string{"tinyint", "smallint", "int", "bigint", "counter", "varint"}
	var f func([]byte) []byte
	switch {
	case in.typ.kind == to.kind:
		f = func(v []byte) []byte { return v }
	case to.kind == "text" || to.kind == "ascii":
		f = func(v []byte) []byte { return []byte(in.typ.show(v)) }
	case slices.Contains(ints, in.typ.kind) && slices.Contains(ints, to.kind):
		f = func(v []byte) []byte {
			if to.kind == "varint" {
				return encodeBig(bigInt(v))
			}
			return encodeInt(new(big.Int).Set(bigInt(v)).Int64(), width(to.kind))
		}
	case slices.Contains(ints, in.typ.kind) && (to.kind == "double" || to.kind == "float" || to.kind == "decimal"):
		f = func(v []byte) []byte { return to.encode(tokNumber, bigInt(v).String()) }
	case in.typ.kind == "timeuuid" && to.kind == "timestamp":
		f = func(v []byte) []byte { return encodeInt(uuidMicros(v)/1000, 8) }
	default:
		panic(invalid("%s cannot be cast to %s", in.typ, to))
	}
	return &expr{typ: to, name: "cast(" + in.name + " as " + to.String() + ")", eval: func(e *env) []byte {
		if v := in.eval(e); v != nil {
			return f(v)
		}
		return nil
	}}
}
