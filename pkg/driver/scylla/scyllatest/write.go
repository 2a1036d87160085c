package scyllatest

import (
	"slices"
	"strconv"

	"github.com/datastax/go-cassandra-native-protocol/message"
)

type usingPlan struct{ ts, ttl *expr }

func (b *binder) using(u using) (p usingPlan) {
	if u.timestamp != nil {
		p.ts = b.value(*u.timestamp, bigintType, "[timestamp]", nil)
	}
	if u.ttl != nil {
		p.ttl = b.value(*u.ttl, intType, "[ttl]", nil)
	}
	return p
}

// maxTTL is 20 years.
const maxTTL = 20 * 365 * 24 * 3600

// times gives the time and TTL of a write, which are ts and none if nothing is said.
func (p usingPlan) times(e *env, ts int64) (int64, int32) {
	if p.ts != nil {
		if v := p.ts.eval(e); v != nil && !isUnset(v) {
			ts = signed(v)
		}
	}
	var ttl int64
	if p.ttl != nil {
		if v := p.ttl.eval(e); v != nil && !isUnset(v) {
			ttl = signed(v)
		}
	}
	switch {
	case ttl < 0:
		panic(invalid("A TTL must be greater or equal to 0"))
	case ttl > maxTTL:
		panic(invalid("ttl is too large. requested (%d) maximum (%d)", ttl, maxTTL))
	case p.ts != nil && ts > e.micros+3*86400*1e6:
		panic(invalid("Cannot provide a timestamp more than 3 days into the future. If this was not intended, make sure that all timestamps are in microseconds"))
	}
	return ts, int32(ttl)
}

type opKind uint8

const (
	opSet opKind = iota
	opAdd
	opPrepend
	opSub
	opElem  // col[key] = val
	opField // col.field = val
	opDelete
)

// An op is what a statement does to one column.
type op struct {
	col   *column
	kind  opKind
	key   *expr
	byKey bool // a list's element is named by its own key
	field int
	val   *expr
}

// A writePlan is an INSERT, an UPDATE or a DELETE.
type writePlan struct {
	t      *table
	kind   string // insert, update, delete
	using  usingPlan
	ops    []op
	key    []*expr // of an INSERT, by the columns of the key; nil where there is none
	where  *where
	exists bool // IF EXISTS
	absent bool // IF NOT EXISTS
	conds  []*rel
}

func (w *writePlan) conditional() bool { return w.exists || w.absent || w.conds != nil }

func (b *binder) insert(st *insertStmt) *writePlan {
	if len(st.cols) != len(st.vals) {
		panic(invalid("Unmatched column names/values"))
	}
	w := &writePlan{t: b.t, kind: "insert", absent: st.ifNot, key: make([]*expr, len(b.t.pk)+len(b.t.ck))}
	if b.t.counter() {
		panic(invalid("INSERT statements are not allowed on counter tables, use UPDATE instead"))
	}
	seen := map[string]bool{}
	for i, n := range st.cols {
		c := b.t.need(n)
		if seen[n] {
			panic(invalid("Multiple definitions found for column %s", n))
		}
		seen[n] = true
		v := b.value(st.vals[i], c.typ, c.name, c)
		switch c.kind {
		case partitionKind:
			w.key[c.pos] = v
		case clustering:
			w.key[len(b.t.pk)+c.pos] = v
		default:
			w.ops = append(w.ops, op{col: c, kind: opSet, val: v})
		}
	}
	statics := len(w.ops) > 0 && !slices.ContainsFunc(w.ops, func(o op) bool { return o.col.kind != static })
	for i, c := range slices.Concat(b.t.pk, b.t.ck) {
		if w.key[i] == nil && (c.kind == partitionKind || !statics || slices.ContainsFunc(w.key[len(b.t.pk):], func(x *expr) bool { return x != nil })) {
			panic(invalid("Missing mandatory PRIMARY KEY part %s", c.name))
		}
	}
	w.using = b.using(st.using)
	w.refuseTimes()
	return w
}

func (w *writePlan) refuseTimes() {
	if w.conditional() && w.using.ts != nil {
		panic(invalid("Cannot provide custom timestamp for conditional updates"))
	}
}

func (b *binder) update(st *updateStmt) *writePlan {
	w := &writePlan{t: b.t, kind: "update", exists: st.ifExists, using: b.using(st.using)}
	for _, a := range st.sets {
		w.ops = append(w.ops, b.op(a))
	}
	w.where = b.writeWhere(st.where)
	w.conditions(b, st.conds)
	w.refuseTimes()
	if b.t.counter() && w.using != (usingPlan{}) {
		panic(invalid("Cannot provide custom timestamp or TTL for counter updates"))
	}
	return w
}

func (b *binder) delete(st *deleteStmt) *writePlan {
	w := &writePlan{t: b.t, kind: "delete", exists: st.ifExists}
	for _, a := range st.targets {
		o := b.target(a)
		if o.kind == opSet {
			o.kind = opDelete
		}
		w.ops = append(w.ops, o)
	}
	w.using = b.using(st.using)
	if w.using.ttl != nil {
		panic(invalid("TTL attribute is not allowed for deletes"))
	}
	w.where = b.writeWhere(st.where)
	w.conditions(b, st.conds)
	w.refuseTimes()
	return w
}

func (w *writePlan) conditions(b *binder, list []relation) {
	for _, r := range list {
		if c := b.t.need(r.cols[0]); c.kind == partitionKind || c.kind == clustering {
			panic(invalid("PRIMARY KEY column '%s' cannot have IF conditions", c.name))
		}
		w.conds = append(w.conds, b.relation(r))
	}
}

// writeWhere is the clause of an UPDATE or DELETE.
func (b *binder) writeWhere(list []relation) *where {
	w := b.where(list)
	for _, r := range w.rels {
		switch c := r.cols[0]; {
		case r.token:
			panic(invalid("The token function cannot be used in WHERE clauses for UPDATE and DELETE statements"))
		case c.kind == regular || c.kind == static:
			panic(invalid("Non PRIMARY KEY columns found in where clause: %s", c.name))
		}
	}
	if !w.keyed {
		for _, c := range b.t.pk {
			if !slices.ContainsFunc(w.rels, func(r *rel) bool { return slices.Contains(r.cols, c) }) {
				panic(invalid("Missing mandatory PRIMARY KEY part %s", c.name))
			}
		}
		panic(invalid("Only EQ and IN relation are supported on the partition key (unless you use the token() function)"))
	}
	if w.filtered {
		panic(invalid("Clustering columns may not be skipped in multi-column relations or WHERE clauses of writes"))
	}
	return w
}

func (b *binder) target(a assignment) op {
	c := b.t.need(a.col)
	if c.kind == partitionKind || c.kind == clustering {
		panic(invalid("PRIMARY KEY part %s found in SET part", c.name))
	}
	o := op{col: c}
	switch {
	case a.key != nil:
		o.kind = opElem
		if !c.typ.multi() || c.typ.kind == "udt" {
			panic(invalid("Invalid operation (%s[…]) for frozen or non collection column %s", c.name, c.name))
		}
		switch {
		case a.key.kind == termCall && a.key.text == "scylla_timeuuid_list_index" && c.typ.kind == "list":
			o.byKey, o.key = true, b.value(a.key.args[0], timeuuidType, "key("+c.name+")", nil)
		case c.typ.kind == "list":
			o.key = b.value(*a.key, intType, "idx("+c.name+")", nil)
		default:
			o.key = b.value(*a.key, c.typ.args[0], "key("+c.name+")", nil)
		}
	case a.field != "":
		o.kind = opField
		if c.typ.kind != "udt" || c.typ.frozen {
			panic(invalid("Invalid operation for column %s: it is no non-frozen user type", c.name))
		}
		if o.field = slices.Index(c.typ.udt.fields, a.field); o.field < 0 {
			panic(invalid("UDT column %s does not have a field named %s", c.name, a.field))
		}
	}
	return o
}

func (b *binder) op(a assignment) op {
	o := b.target(a)
	c := o.col
	switch {
	case o.kind == opElem && c.typ.kind == "set":
		panic(invalid("Invalid operation (%s[…] = …) for set column %s", c.name, c.name))
	case o.kind == opElem:
		o.val = b.value(a.val, c.typ.args[len(c.typ.args)-1], "value("+c.name+")", nil)
		return o
	case o.kind == opField:
		o.val = b.value(a.val, c.typ.udt.types[o.field], c.name+"."+a.field, nil)
		return o
	case a.op == "=":
		if c.typ.kind == "counter" {
			panic(invalid("Cannot set the value of counter column %s (counters can only be incremented/decremented, not set)", c.name))
		}
		o.val = b.value(a.val, c.typ, c.name, nil)
		return o
	}
	o.kind = map[string]opKind{"+": opAdd, "-": opSub, "prepend": opPrepend}[a.op]
	if c.typ.kind != "counter" && (!c.typ.multi() || c.typ.kind == "udt") {
		panic(invalid("Invalid operation (%s = %s %s …) for non counter column %s", c.name, c.name, a.op, c.name))
	}
	if o.kind == opPrepend && c.typ.kind != "list" {
		panic(invalid("Invalid operation (%s = … + %s) for non list column %s", c.name, c.name, c.name))
	}
	typ := c.typ
	if o.kind == opSub && typ.kind == "map" {
		typ = setOf(typ.args[0])
	}
	o.val = b.value(a.val, typ, c.name, nil)
	return o
}

// mods gives what a statement does, with ts as its time if it says none.
func (w *writePlan) mods(e *env, ts int64) (mods []*mod) {
	ts, ttl := w.using.times(e, ts)
	if w.using.ttl == nil && w.kind != "delete" {
		n, _ := strconv.ParseInt(w.t.opts["default_time_to_live"].text, 10, 32)
		ttl = int32(n)
	}
	base := mod{t: w.t, ts: ts, ttl: ttl}
	if w.kind == "insert" {
		return w.insertMods(e, base)
	}
	conds := w.where.eval(e)
	for _, pk := range w.where.keys(conds) {
		m := base
		m.pk = pk
		mods = append(mods, w.keyMods(e, m, conds)...)
	}
	return mods
}

func keyValue(e *env, c *column, x *expr) []byte {
	v := x.eval(e)
	switch {
	case v == nil:
		panic(invalid("Invalid null value in condition for column %s", c.name))
	case isUnset(v):
		panic(invalid("Invalid unset value for column %s", c.name))
	case len(v) > 65535:
		panic(invalid("Key length of %d is longer than maximum of 65535", len(v)))
	}
	return v
}

func (w *writePlan) insertMods(e *env, m mod) (mods []*mod) {
	for i, c := range w.t.pk {
		m.pk = append(m.pk, keyValue(e, c, w.key[i]))
	}
	if len(m.pk) == 1 && len(m.pk[0]) == 0 {
		panic(invalid("Key may not be empty"))
	}
	row := len(w.t.ck) == 0 || w.key[len(w.t.pk)] != nil
	if row {
		for i, c := range w.t.ck {
			m.ck = append(m.ck, keyValue(e, c, w.key[len(w.t.pk)+i]))
		}
	}
	return w.split(e, m, row, true)
}

// split parts what is done to static columns from what is done to a row.
func (w *writePlan) split(e *env, m mod, row, marker bool) (mods []*mod) {
	s := m
	s.kind, s.ck = modStatic, nil
	m.marker = marker
	for _, o := range w.ops {
		to := &m
		if o.col.kind == static {
			to = &s
		}
		if cm, ok := o.mod(e, to); ok {
			to.cells = append(to.cells, cm)
		}
	}
	if len(s.cells) > 0 {
		mods = append(mods, &s)
	}
	if row && (marker || len(m.cells) > 0) {
		mods = append(mods, &m)
	}
	return mods
}

// keyMods are those of an UPDATE or DELETE in one partition.
func (w *writePlan) keyMods(e *env, m mod, conds []cond) (mods []*mod) {
	onlyStatic := len(w.ops) > 0 && !slices.ContainsFunc(w.ops, func(o op) bool { return o.col.kind != static })
	cks, whole := w.rows(conds)
	if onlyStatic && len(cks) == 1 && len(cks[0]) == 0 && len(w.t.ck) > 0 {
		return w.split(e, m, false, false)
	}
	if w.kind == "update" || len(w.ops) > 0 {
		if !whole {
			for _, c := range w.t.ck {
				if !slices.ContainsFunc(w.where.rels, func(r *rel) bool { return slices.Contains(r.cols, c) }) {
					panic(invalid("Missing mandatory PRIMARY KEY part %s", c.name))
				}
			}
			panic(invalid("Invalid operator in where clause: a %s of columns needs rows", w.kind))
		}
		for _, ck := range cks {
			m.ck = ck
			mods = append(mods, w.split(e, m, true, false)...)
		}
		return mods
	}
	switch {
	case len(w.where.rels) == len(w.t.pk) || len(w.t.ck) == 0: // a DELETE without clustering columns
		m.kind = modPartitionDelete
		return []*mod{&m}
	case whole:
		for _, ck := range cks {
			n := m
			n.kind, n.ck = modRowDelete, ck
			mods = append(mods, &n)
		}
		return mods
	}
	if w.where.mixed() || slices.ContainsFunc(conds, func(c cond) bool { return c.op == "in" && c.cols[0].kind == clustering }) {
		panic(e.c.unknown("a DELETE of several ranges"))
	}
	m.kind = modRangeDelete
	m.from, m.to = w.where.bounds(conds)
	if w.t.empty(m.from, m.to) {
		return nil
	}
	return []*mod{&m}
}

// rows gives the clustering keys that a clause names, if it names whole ones.
func (w *writePlan) rows(conds []cond) (cks [][][]byte, whole bool) {
	cks = [][][]byte{nil}
	for i := 0; i < len(w.t.ck); i++ {
		var alts [][][]byte
		for _, c := range conds {
			if c.cols[0] != w.t.ck[i] {
				continue
			}
			switch c.op {
			case "=":
				alts = [][][]byte{c.vals}
			case "in":
				alts = c.any
			}
		}
		if alts == nil {
			return cks, false
		}
		var next [][][]byte
		for _, k := range cks {
			for _, a := range alts {
				next = append(next, append(slices.Clone(k), a...))
			}
		}
		if len(alts) > 0 {
			i += len(alts[0]) - 1
		}
		cks = next
	}
	return cks, true
}

// mod is what the op does to the cells of its column; nothing if its value is unset.
func (o op) mod(e *env, m *mod) (cm cellMod, ok bool) {
	cm.col = o.col
	typ := o.col.typ
	var val []byte
	if o.val != nil {
		if val = o.val.eval(e); isUnset(val) {
			return cm, false
		}
	}
	if typ.kind == "counter" && o.kind != opDelete {
		d := signed(val)
		if val == nil {
			panic(invalid("Invalid null value for counter increment"))
		}
		if o.kind == opSub {
			d = -d
		}
		cm.delta = &d
		return cm, true
	}
	if !typ.multi() {
		cm.val = val
		return cm, true
	}
	switch o.kind {
	case opDelete:
		cm.coll = &collMod{tomb: m.ts}
	case opSet:
		if typ.kind == "list" {
			cm.coll = &collMod{tomb: m.ts - 1, elems: listElems(e, val)}
		} else {
			cm.coll = overwrite(typ, val, m.ts-1)
		}
	case opAdd:
		if typ.kind == "list" {
			cm.coll = &collMod{tomb: noTime, elems: listElems(e, val)}
		} else {
			cm.coll = overwrite(typ, val, noTime)
		}
	case opPrepend:
		cm.coll = &collMod{tomb: noTime, elems: prepended(e, val)}
	case opSub:
		cm.coll = &collMod{tomb: noTime}
		if typ.kind == "list" {
			for _, x := range o.stored(e, m) {
				for v := range elements(val) {
					if typ.args[0].compare(x.val, v) == 0 {
						cm.coll.elems = append(cm.coll.elems, elem{x.key, cell{dead: true}})
					}
				}
			}
		} else {
			for v := range elements(val) {
				cm.coll.elems = append(cm.coll.elems, elem{v, cell{dead: true}})
			}
		}
	case opField:
		cm.coll = &collMod{tomb: noTime, elems: []elem{{encodeInt(int64(o.field), 2), cell{val: val, dead: val == nil}}}}
	case opElem:
		return o.elem(e, m, cm, val)
	}
	return cm, true
}

func (o op) elem(e *env, m *mod, cm cellMod, val []byte) (cellMod, bool) {
	key := o.key.eval(e)
	if isUnset(key) || key == nil {
		panic(invalid("Invalid null or unset key for column %s", o.col.name))
	}
	if o.col.typ.kind == "list" && !o.byKey {
		have := o.stored(e, m)
		i := signed(key)
		if len(have) == 0 {
			panic(invalid("Attempted to set an element on a list which is null"))
		}
		if i < 0 || int(i) >= len(have) {
			panic(invalid("List index %d out of bound, list has size %d", i, len(have)))
		}
		key = have[i].key
	}
	if o.col.typ.kind == "set" { // DELETE s['x']
		val = nil
	}
	cm.coll = &collMod{tomb: noTime, elems: []elem{{key, cell{val: val, dead: val == nil}}}}
	return cm, true
}

// stored are the live elements of the column as they are kept.
func (o op) stored(e *env, m *mod) (list []elem) {
	p := m.t.part(m.pk)
	if p == nil {
		return nil
	}
	r := p.static
	if o.col.kind != static {
		i, found := p.find(m.t, m.ck)
		if !found {
			return nil
		}
		r = p.rows[i]
	}
	k := r.colls[o.col.idx]
	if k == nil {
		return nil
	}
	for _, x := range k.elems {
		if x.live(max(p.floor(m.t, r), k.tomb), e.now) {
			list = append(list, x)
		}
	}
	return list
}

// listElems gives the elements of a list keys, each greater than those before.
func listElems(e *env, val []byte) (list []elem) {
	for v := range elements(val) {
		list = append(list, elem{e.c.listKey(false), cell{val: v}})
	}
	return list
}

// prepended gives them keys that are less than all others.
func prepended(e *env, val []byte) (list []elem) {
	all := slices.Collect(elements(val))
	for i := len(all) - 1; i >= 0; i-- {
		list = append(list, elem{e.c.listKey(true), cell{val: all[i]}})
	}
	return list
}

// A lwt is what a conditional statement found.
type lwt struct {
	applied bool
	row     [][]byte
}

// check looks whether the conditions of a statement hold for the row that it writes.
func (w *writePlan) check(e *env, m *mod) lwt {
	p := w.t.part(m.pk)
	*e = env{c: e.c, vals: e.vals, now: e.now, micros: e.micros}
	found := false
	if p != nil {
		var r *row
		if m.kind != modStatic {
			if i, ok := p.find(w.t, m.ck); ok {
				r = p.rows[i]
			}
		}
		e.at(w.t, p, r)
		if r != nil && !r.live(e.floor, e.now) {
			e.row = nil
		}
		found = e.row != nil || m.kind == modStatic && p.static.live(e.sfl, e.now)
	}
	out := lwt{applied: true}
	switch {
	case w.absent:
		out.applied = !found
	case w.exists:
		out.applied = found
	}
	for _, r := range w.conds {
		out.applied = out.applied && r.eval(e).holds(e)
	}
	for _, c := range w.casColumns() {
		var v []byte
		if found || c.kind == static {
			v = e.read(c)
		}
		out.row = append(out.row, v)
	}
	return out
}

// casColumns are what the result of a conditional statement shows of the row: as in
// ScyllaDB always, with what was there before.
func (w *writePlan) casColumns() []*column {
	if w.conds == nil {
		return w.t.cols
	}
	var cols []*column
	for _, c := range w.t.cols {
		if slices.ContainsFunc(w.conds, func(r *rel) bool { return r.cols[0] == c }) {
			cols = append(cols, c)
		}
	}
	return cols
}

func (w *writePlan) casMetadata() []*message.ColumnMetadata {
	meta := []*message.ColumnMetadata{{Keyspace: w.t.ks, Table: w.t.name, Name: "[applied]", Type: boolType.wire()}}
	for _, c := range w.casColumns() {
		meta = append(meta, &message.ColumnMetadata{Keyspace: w.t.ks, Table: w.t.name, Name: c.name, Type: c.typ.wire()})
	}
	return meta
}

// target is the one row that a conditional statement is about.
func (w *writePlan) target(mods []*mod) *mod {
	var rows []*mod
	for _, m := range mods {
		if m.kind != modStatic || len(mods) == 1 {
			rows = append(rows, m)
		}
	}
	if len(rows) != 1 || rows[0].kind == modRangeDelete || rows[0].kind == modPartitionDelete && len(w.t.ck) > 0 {
		panic(invalid("Conditional statements must be about one row: IN on the key, and DELETE of ranges, are not supported with IF"))
	}
	return rows[0]
}
