package scyllatest

import (
	"bytes"
	"cmp"
	"math"
	"slices"
)

// noTime is before every time of a write.
const noTime = math.MinInt64

// A cell is a value with the time of its write. In the marker of a row, and in
// what is deleted, there is no value.
type cell struct {
	val  []byte
	ts   int64
	ttl  int32
	exp  int64 // when it expires, in seconds since 1970; 0 is never
	dead bool
	set  bool // there is a cell
}

// merge settles which of two writes of a cell stands: the later one; of two at the
// same time a deletion, then what expires, and later, then the greater value.
func (c *cell) merge(n cell) {
	if !c.set {
		*c = n
		return
	}
	d := cmp.Compare(c.ts, n.ts)
	if d == 0 {
		d = cmp.Compare(b2i(c.dead), b2i(n.dead))
	}
	if d == 0 && !c.dead {
		if d = cmp.Compare(b2i(c.exp != 0), b2i(n.exp != 0)); d == 0 {
			d = cmp.Compare(c.exp, n.exp)
		}
	}
	if d == 0 {
		d = bytes.Compare(c.val, n.val)
	}
	if d < 0 {
		*c = n
	}
}

func (c *cell) live(floor, now int64) bool {
	return c.set && !c.dead && c.ts > floor && (c.exp == 0 || c.exp > now)
}

type elem struct {
	key []byte
	cell
}

// A coll is a column whose elements are cells: a collection or a UDT that is not
// frozen.
type coll struct {
	tomb  int64 // elements up to then are deleted
	elems []elem
}

func (c *coll) put(typ *ctype, e elem) {
	i, found := slices.BinarySearchFunc(c.elems, e.key, func(x elem, k []byte) int { return typ.compare(x.key, k) })
	if found {
		c.elems[i].merge(e.cell)
		return
	}
	c.elems = slices.Insert(c.elems, i, e)
}

// read gives the value, as CQL encodes it, or nil.
func (c *coll) read(typ *ctype, floor, now int64) []byte {
	floor = max(floor, c.tomb)
	var parts [][]byte
	n := 0
	if typ.kind == "udt" {
		parts = make([][]byte, len(typ.udt.fields))
	}
	for i := range c.elems {
		e := &c.elems[i]
		if !e.live(floor, now) {
			continue
		}
		n++
		switch typ.kind {
		case "udt":
			if f := int(signed(e.key)); f < len(parts) {
				parts[f] = e.val
			}
		case "list":
			parts = append(parts, e.val)
		case "set":
			parts = append(parts, e.key)
		case "map":
			parts = append(parts, e.key, e.val)
		}
	}
	if n == 0 {
		return nil
	}
	if typ.kind == "udt" {
		b := []byte{}
		for _, p := range parts {
			b = appendSized(b, p)
		}
		return b
	}
	return collect(n, parts...)
}

// A row has its cells by the index of their columns.
type row struct {
	ck    [][]byte
	mark  cell
	tomb  int64
	cells []cell
	colls map[int]*coll
}

func newRow(ck [][]byte) *row { return &row{ck: ck, tomb: noTime} }

func (r *row) cell(i int) *cell {
	if i >= len(r.cells) {
		r.cells = append(r.cells, make([]cell, i+1-len(r.cells))...)
	}
	return &r.cells[i]
}

func (r *row) coll(i int) *coll {
	if r.colls == nil {
		r.colls = map[int]*coll{}
	}
	if r.colls[i] == nil {
		r.colls[i] = &coll{tomb: noTime}
	}
	return r.colls[i]
}

// read gives a column's value, or nil.
func (r *row) read(c *column, floor, now int64) []byte {
	if c.typ.multi() {
		if k := r.colls[c.idx]; k != nil {
			return k.read(c.typ, floor, now)
		}
		return nil
	}
	if c.idx < len(r.cells) && r.cells[c.idx].live(floor, now) {
		return r.cells[c.idx].val
	}
	return nil
}

// live reports whether there is a row: a marker, or a value.
func (r *row) live(floor, now int64) bool {
	if r.mark.live(floor, now) {
		return true
	}
	for i := range r.cells {
		if r.cells[i].live(floor, now) {
			return true
		}
	}
	for _, k := range r.colls {
		for i := range k.elems {
			if k.elems[i].live(max(floor, k.tomb), now) {
				return true
			}
		}
	}
	return false
}

// A bound is one end of a range of clustering keys; it may name the first columns
// only. An empty one is open.
type bound struct {
	vals [][]byte
	incl bool
}

type rangeTomb struct {
	from, to bound
	ts       int64
}

type partition struct {
	token  int64
	key    []byte
	pk     [][]byte
	tomb   int64
	static *row
	rows   []*row // in clustering order
	ranges []rangeTomb
}

func newPartition(t *table, pk [][]byte) *partition {
	key := partitionKey(pk)
	return &partition{token: t.token(key), key: key, pk: pk, tomb: noTime, static: newRow(nil)}
}

// floor is the time up to which a row's cells are deleted.
func (p *partition) floor(t *table, r *row) int64 {
	f := max(p.tomb, r.tomb)
	if r != p.static {
		for _, rt := range p.ranges {
			if rt.ts > f && t.inside(r.ck, rt.from, rt.to) {
				f = rt.ts
			}
		}
	}
	return f
}

// compareKeys orders clustering keys, or the first columns of them.
func (t *table) compareKeys(a, b [][]byte) int {
	for i := range min(len(a), len(b)) {
		if d := t.ck[i].typ.compare(a[i], b[i]); d != 0 {
			if t.ck[i].desc {
				return -d
			}
			return d
		}
	}
	return 0
}

func (t *table) inside(ck [][]byte, from, to bound) bool {
	if d := t.compareKeys(ck, from.vals); d < 0 || d == 0 && len(from.vals) > 0 && !from.incl {
		return false
	}
	d := t.compareKeys(ck, to.vals)
	return d < 0 || d == 0 && (to.incl || len(to.vals) == 0)
}

// empty reports that no key is inside a range.
func (t *table) empty(from, to bound) bool {
	d := t.compareKeys(from.vals, to.vals)
	return d > 0 || d == 0 && len(from.vals) == len(to.vals) && len(from.vals) > 0 && !(from.incl && to.incl)
}

// row finds a row, or makes it.
func (p *partition) row(t *table, ck [][]byte) *row {
	if n := len(p.rows); n > 0 && t.compareKeys(p.rows[n-1].ck, ck) < 0 { // most are appended
		r := newRow(ck)
		p.rows = append(p.rows, r)
		return r
	}
	i, found := p.find(t, ck)
	if !found {
		p.rows = slices.Insert(p.rows, i, newRow(ck))
	}
	return p.rows[i]
}

func (p *partition) find(t *table, ck [][]byte) (int, bool) {
	return slices.BinarySearchFunc(p.rows, ck, func(r *row, k [][]byte) int { return t.compareKeys(r.ck, k) })
}

// part finds a partition, or nil.
func (t *table) part(pk [][]byte) *partition { return t.byKey[string(partitionKey(pk))] }

func (t *table) makePart(pk [][]byte) *partition {
	if p := t.part(pk); p != nil {
		return p
	}
	p := newPartition(t, pk)
	i, _ := slices.BinarySearchFunc(t.parts, p, comparePartitions)
	t.parts = slices.Insert(t.parts, i, p)
	t.byKey[string(p.key)] = p
	return p
}

func comparePartitions(a, b *partition) int {
	if d := cmp.Compare(a.token, b.token); d != 0 {
		return d
	}
	return bytes.Compare(a.key, b.key)
}

func (t *table) truncate() { t.parts, t.byKey = nil, map[string]*partition{} }

type modKind uint8

const (
	modRow modKind = iota
	modStatic
	modRowDelete
	modRangeDelete
	modPartitionDelete
)

// A mod is what one statement does to one row, range or partition.
type mod struct {
	t        *table
	pk, ck   [][]byte
	kind     modKind
	ts       int64
	ttl      int32
	marker   bool
	cells    []cellMod
	from, to bound
}

type cellMod struct {
	col   *column
	val   []byte // nil deletes
	coll  *collMod
	delta *int64 // of a counter
}

type collMod struct {
	tomb  int64
	elems []elem // key, val and dead
}

// apply writes m to a partition. now is in seconds.
func (p *partition) apply(m *mod, now int64) {
	put := func(val []byte, dead bool) cell {
		c := cell{val: val, ts: m.ts, dead: dead, set: true}
		if m.ttl > 0 && !dead {
			c.ttl, c.exp = m.ttl, now+int64(m.ttl)
		}
		return c
	}
	var r *row
	switch m.kind {
	case modPartitionDelete:
		p.tomb = max(p.tomb, m.ts)
		return
	case modRangeDelete:
		p.ranges = append(p.ranges, rangeTomb{m.from, m.to, m.ts})
		return
	case modStatic:
		r = p.static
	case modRow:
		r = p.row(m.t, m.ck)
	case modRowDelete:
		r = p.row(m.t, m.ck)
		r.tomb = max(r.tomb, m.ts)
		return
	}
	if m.marker {
		r.mark.merge(put(nil, false))
	}
	for _, cm := range m.cells {
		switch {
		case cm.delta != nil:
			c := r.cell(cm.col.idx)
			old := int64(0)
			if c.live(p.floor(m.t, r), now) {
				old = signed(c.val)
			}
			*c = cell{val: encodeInt(old+*cm.delta, 8), ts: max(c.ts, m.ts), set: true}
		case cm.coll != nil:
			k := r.coll(cm.col.idx)
			k.tomb = max(k.tomb, cm.coll.tomb)
			for _, e := range cm.coll.elems {
				k.put(cm.col.typ.key(), elem{e.key, put(e.val, e.dead)})
			}
		default:
			r.cell(cm.col.idx).merge(put(cm.val, cm.val == nil))
		}
	}
}

// purge takes rows out as if they had never been: of a partition all, or those
// whose clustering key begins with ck.
func (t *table) purge(pk [][]byte, ck ...[]byte) {
	p := t.part(pk)
	if p == nil {
		return
	}
	p.rows = slices.DeleteFunc(p.rows, func(r *row) bool { return t.compareKeys(r.ck, ck) == 0 })
	if len(p.rows) == 0 {
		t.parts = slices.DeleteFunc(t.parts, func(x *partition) bool { return x == p })
		delete(t.byKey, string(p.key))
	}
}

// put writes a row of a system table by the names of its columns.
func (t *table) put(vals map[string][]byte) {
	m := mod{t: t, ts: 1, marker: true}
	for _, c := range t.pk {
		m.pk = append(m.pk, vals[c.name])
	}
	for _, c := range t.ck {
		m.ck = append(m.ck, vals[c.name])
	}
	p := t.makePart(m.pk)
	t.purgeRow(p, m.ck)
	for _, c := range t.cols {
		if v := vals[c.name]; v != nil && c.kind == regular {
			if c.typ.multi() {
				m.cells = append(m.cells, cellMod{col: c, coll: overwrite(c.typ, v, noTime)})
			} else {
				m.cells = append(m.cells, cellMod{col: c, val: v})
			}
		}
	}
	p.apply(&m, 0)
}

func (t *table) purgeRow(p *partition, ck [][]byte) {
	if i, found := p.find(t, ck); found {
		p.rows = slices.Delete(p.rows, i, i+1)
	}
}

// overwrite takes a value apart into the cells that it is written as. Lists need
// keys and are not for it.
func overwrite(typ *ctype, val []byte, tomb int64) *collMod {
	m := &collMod{tomb: tomb}
	add := func(k, v []byte, dead bool) {
		m.elems = append(m.elems, elem{k, cell{val: v, dead: dead}})
	}
	switch typ.kind {
	case "udt":
		for i, v := range fields(val) {
			if v != nil {
				add(encodeInt(int64(i), 2), v, false)
			}
		}
	case "set":
		for e := range elements(val) {
			add(e, []byte{}, false)
		}
	case "map":
		var k []byte
		for e := range elements(val) {
			if k == nil {
				k = e
			} else {
				add(k, e, false)
				k = nil
			}
		}
	}
	return m
}
