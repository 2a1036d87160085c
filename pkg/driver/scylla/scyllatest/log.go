package scyllatest

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The log of a table, as ScyllaDB's documentation describes it (features/cdc:
// cdc-log-table, cdc-basic-operations, cdc-advanced-types, cdc-preimages). Where it
// leaves an order open, that of the source (cdc/split.cc of 2026) was read.

const logSuffix = "_scylla_cdc_log"

const (
	opPreImage = iota
	opUpdate
	opInsert
	opRowDelete
	opPartitionDelete
	opStartIncl
	opStartExcl
	opEndIncl
	opEndExcl
	opPostImage
)

// setCDC switches the log of a table on or off as an option says.
func (c *Cluster) setCDC(k *keyspace, t *table, m map[string]string) {
	if m == nil {
		return
	}
	opts := map[string]string{"enabled": "false", "preimage": "false", "postimage": "false", "delta": "full", "ttl": "86400"}
	for n, v := range m {
		v = strings.ToLower(v)
		if opts[n] == "" {
			panic(configError("Invalid CDC option: %s", n))
		}
		ok := v == "true" || v == "false"
		switch n {
		case "preimage":
			ok = ok || v == "full"
		case "delta":
			ok = v == "full" || v == "keys"
		case "ttl":
			n, err := strconv.Atoi(v)
			ok = err == nil && n >= 0
		}
		if !ok {
			panic(configError("Invalid value for CDC option \"%s\": %s", n, v))
		}
		opts[n] = v
	}
	if opts["enabled"] != "true" {
		if t.cdc = nil; t.log != nil && !c.keepLogs {
			c.forget(t.log)
			t.log = nil
		}
		return
	}
	if t.counter() {
		panic(invalid("Cannot create CDC log for table %s.%s. Counter support not implemented", t.ks, t.name))
	}
	if t.base != nil {
		panic(invalid("Cannot create a CDC log for a table %s.%s, because creating nested CDC logs is not allowed", t.ks, t.name))
	}
	t.cdc = opts
	c.makeLog(k, t)
}

// makeLog makes the log of a table, or fits it to the table's columns.
func (c *Cluster) makeLog(k *keyspace, t *table) {
	l := newTable(t.ks, t.name+logSuffix)
	if old := t.log; old != nil {
		l.id, l.parts, l.byKey, l.next, l.opts = old.id, old.parts, old.byKey, old.next, old.opts
		old.gone = true
		c.undescribeTable(l.ks, l.name)
	} else if k.tables[l.name] != nil {
		panic(invalid("Cannot create CDC log table for table %s.%s because a table of name %s.%s already exists", t.ks, t.name, l.ks, l.name))
	}
	add := func(name string, kind columnKind, typ *ctype, pos int) {
		col := l.add(name, kind, typ)
		if col.pos = pos; t.log != nil {
			if old := t.log.column(name); old != nil && old.typ.String() == typ.String() {
				col.idx = old.idx
			}
		}
	}
	add("cdc$stream_id", partitionKind, blobType, 0)
	add("cdc$time", clustering, timeuuidType, 0)
	add("cdc$batch_seq_no", clustering, intType, 1)
	add("cdc$operation", regular, native("tinyint"), -1)
	add("cdc$ttl", regular, bigintType, -1)
	add("cdc$end_of_batch", regular, boolType, -1)
	for _, col := range t.cols {
		add(col.name, regular, logType(col.typ), -1)
		if col.kind == regular || col.kind == static {
			add("cdc$deleted_"+col.name, regular, boolType, -1)
		}
		if col.typ.multi() {
			add("cdc$deleted_elements_"+col.name, regular, setOf(col.typ.key()), -1)
		}
	}
	l.order()
	l.base, t.log = t, l
	k.tables[l.name] = l
	c.describeTable(l)
	if k.tablets && c.tabletStreams[t.ks+"."+t.name] == nil {
		c.splitTablets(t, 2)
	}
}

func logType(t *ctype) *ctype {
	if t.multi() && t.kind == "list" {
		return mapOf(timeuuidType, t.args[0])
	}
	return t.freeze()
}

// A logBatch gathers the log rows of one partition with one time.
type logBatch struct {
	c      *Cluster
	t      *table
	pk     [][]byte
	stream []byte
	ts     int64
	rows   []map[*column][]byte
	static map[*column][]byte            // what is known of rows, for images
	state  map[string]map[*column][]byte // by clustering key; nil is no row
	keep   bool                          // state is kept up
	keys   bool                          // deltas have keys only
	touchS bool                          // the static row was written
}

// A change is a row, or a part of it, that becomes log rows of its own.
type change struct {
	kind     modKind
	r        *row
	marker   bool
	ts       int64
	ttl      int32
	cells    []cellMod
	from, to bound
}

func (c change) key() [][]byte {
	if c.r == nil {
		return nil
	}
	return c.r.ck
}

type changeKey struct {
	ts  int64
	ttl int32
}

// logMods gives the log rows for what is done to one partition of t.
func (c *Cluster) logMods(e *env, t *table, mods []*mod) (out []*mod) {
	delta := newPartition(t, mods[0].pk)
	for _, m := range mods {
		delta.apply(m, e.now)
	}
	pre, post := t.cdc["preimage"] != "false", t.cdc["postimage"] == "true"
	b := &logBatch{c: c, t: t, pk: mods[0].pk, keys: t.cdc["delta"] == "keys", static: map[*column][]byte{}, state: map[string]map[*column][]byte{}}
	if pre || post {
		b.load(e, delta)
	}
	if !shouldSplit(t, delta) {
		b.begin(e, delta, onlyTime(t, delta), post)
		all := unsplit(t, delta)
		b.batch(all, pre, post)
		return b.mods(e)
	}
	times := extract(t, delta)
	order := slices.Sorted(maps.Keys(times))
	for i, ts := range order {
		b.rows = nil
		b.begin(e, delta, ts, post || pre && i < len(order)-1)
		b.batch(times[ts], pre, post)
		out = append(out, b.mods(e)...)
	}
	return out
}

// load reads the rows that are written, as they are before.
func (b *logBatch) load(e *env, delta *partition) {
	p := b.t.part(b.pk)
	if p == nil {
		return
	}
	look := *e
	values := func(r *row, kind columnKind) map[*column][]byte {
		look.at(b.t, p, r)
		m := map[*column][]byte{}
		for _, c := range b.t.cols {
			if c.kind != kind {
				continue
			}
			if v := b.imageValue(&look, c); v != nil {
				m[c] = v
			}
		}
		return m
	}
	if p.static.live(p.floor(b.t, p.static), e.now) {
		b.static = values(nil, static)
	}
	for _, ck := range written(b.t, delta) {
		if i, found := p.find(b.t, ck); found && p.rows[i].live(p.floor(b.t, p.rows[i]), e.now) {
			b.state[keyOf(ck)] = values(p.rows[i], regular)
		}
	}
}

// written are the keys of the rows that are written, or deleted by themselves. The
// one row of a partition without clustering columns is deleted with it.
func written(t *table, delta *partition) (cks [][][]byte) {
	for _, r := range delta.rows {
		cks = append(cks, r.ck)
	}
	if len(t.ck) == 0 && len(cks) == 0 && delta.tomb != noTime {
		cks = append(cks, nil)
	}
	return cks
}

func keyOf(ck [][]byte) string { return string(collect(len(ck), ck...)) }

// imageValue is a column's value in the form that the log has it in.
func (b *logBatch) imageValue(e *env, c *column) []byte {
	if c.typ.kind != "list" || !c.typ.multi() {
		return e.read(c)
	}
	r, floor := e.row, e.floor
	if c.kind == static {
		r, floor = e.part.static, e.sfl
	}
	if r == nil || r.colls[c.idx] == nil {
		return nil
	}
	k := *r.colls[c.idx]
	return k.read(mapOf(timeuuidType, c.typ.args[0]), floor, e.now)
}

func (b *logBatch) begin(e *env, delta *partition, ts int64, keep bool) {
	b.ts, b.keep = ts, keep
	b.stream = b.c.stream(e, b.t, delta.token, ts)
}

// row begins a log row.
func (b *logBatch) row(op int, ck [][]byte) map[*column][]byte {
	l := b.t.log
	r := map[*column][]byte{l.column("cdc$operation"): {byte(op)}}
	for i, c := range b.t.pk {
		r[l.column(c.name)] = b.pk[i]
	}
	for i, v := range ck {
		r[l.column(b.t.ck[i].name)] = v
	}
	b.rows = append(b.rows, r)
	return r
}

// batch writes the rows of one time: images before, changes, images after.
func (b *logBatch) batch(list []change, pre, post bool) {
	statics := slices.ContainsFunc(list, func(c change) bool { return c.kind == modStatic })
	touched := map[string]map[*column]bool{}
	var rows [][][]byte
	staticCols := map[*column]bool{}
	for _, c := range list {
		cols := staticCols
		whole := c.kind == modRowDelete || c.kind == modPartitionDelete && len(b.t.ck) == 0
		switch {
		case c.kind == modRow || whole:
			k := keyOf(c.key())
			if touched[k] == nil {
				touched[k] = map[*column]bool{}
				rows = append(rows, c.key())
			}
			cols = touched[k]
		case c.kind != modStatic:
			continue
		}
		for _, m := range c.cells {
			cols[m.col] = true
		}
		if whole {
			for _, col := range b.t.cols {
				cols[col] = cols[col] || col.kind == regular
			}
		}
	}
	slices.SortFunc(rows, b.t.compareKeys)
	if pre {
		if statics {
			b.image(opPreImage, nil, staticCols)
		}
		for _, ck := range rows {
			b.image(opPreImage, ck, touched[keyOf(ck)])
		}
	}
	for _, c := range list {
		b.change(c)
	}
	if post {
		if statics {
			b.image(opPostImage, nil, nil)
		}
		for _, ck := range rows {
			b.image(opPostImage, ck, nil)
		}
	}
	if n := len(b.rows); n > 0 {
		b.rows[n-1][b.t.log.column("cdc$end_of_batch")] = []byte{1}
	}
}

// image writes what a row holds, if there is one. Without ck it is the static row,
// in a table that can have one. cols are those to be shown, nil for all.
func (b *logBatch) image(op int, ck [][]byte, cols map[*column]bool) {
	state, kind := b.static, static
	if ck != nil || len(b.t.ck) == 0 {
		kind = regular
		if state = b.state[keyOf(ck)]; state == nil {
			return
		}
	} else if len(state) == 0 && !b.touchS {
		return
	}
	if b.t.cdc["preimage"] == "full" {
		cols = nil
	}
	r := b.row(op, ck)
	for _, c := range b.t.cols {
		if c.kind != kind || cols != nil && !cols[c] {
			continue
		}
		if v := state[c]; v != nil {
			r[b.t.log.column(c.name)] = v
		} else if op == opPreImage {
			r[b.t.log.column("cdc$deleted_"+c.name)] = []byte{1}
		}
	}
}

// change writes the log rows of one change.
func (b *logBatch) change(c change) {
	switch c.kind {
	case modPartitionDelete:
		b.row(opPartitionDelete, nil)
		clear(b.state)
	case modRangeDelete:
		start, end := opStartIncl, opEndIncl
		if len(c.from.vals) > 0 && !c.from.incl {
			start = opStartExcl
		}
		if len(c.to.vals) > 0 && !c.to.incl {
			end = opEndExcl
		}
		b.row(start, c.from.vals)
		b.row(end, c.to.vals)
		if b.keep {
			b.forget(c.from, c.to)
		}
	case modRowDelete:
		b.row(opRowDelete, c.r.ck)
		if b.keep {
			delete(b.state, keyOf(c.r.ck))
		}
	default:
		b.upsert(c)
	}
}

func (b *logBatch) forget(from, to bound) {
	for k := range b.state {
		if b.t.inside(slices.Collect(elements([]byte(k))), from, to) {
			delete(b.state, k)
		}
	}
}

func (b *logBatch) upsert(c change) {
	op, state := opUpdate, b.static
	if c.kind == modStatic {
		b.touchS = true
	} else {
		if c.marker {
			op = opInsert
		}
		k := keyOf(c.r.ck)
		if state = b.state[k]; state == nil {
			state = map[*column][]byte{}
			if b.keep {
				b.state[k] = state
			}
		}
	}
	r := b.row(op, c.r.ck)
	if c.ttl > 0 && (c.marker || slices.ContainsFunc(c.cells, cellMod.live)) {
		r[b.t.log.column("cdc$ttl")] = encodeInt(int64(c.ttl), 8)
	}
	for _, m := range c.cells {
		value, deleted, gone := m.logValues()
		if !b.keys {
			if value != nil {
				r[b.t.log.column(m.col.name)] = value
			}
			if deleted {
				r[b.t.log.column("cdc$deleted_"+m.col.name)] = []byte{1}
			}
			if gone != nil {
				r[b.t.log.column("cdc$deleted_elements_"+m.col.name)] = gone
			}
		}
		if !b.keep {
			continue
		}
		if next := m.merged(state[m.col]); next != nil {
			state[m.col] = next
		} else {
			delete(state, m.col)
		}
	}
}

func (m cellMod) live() bool {
	if m.coll != nil {
		return slices.ContainsFunc(m.coll.elems, func(e elem) bool { return !e.dead })
	}
	return m.val != nil
}

// logValues are a column's three log columns: what is written, whether it was
// deleted as a whole, and the keys of deleted elements.
func (m cellMod) logValues() (value []byte, deleted bool, gone []byte) {
	if m.coll == nil {
		return m.val, m.val == nil, nil
	}
	var parts, keys [][]byte
	n := 0
	if m.col.typ.kind == "udt" {
		parts = make([][]byte, len(m.col.typ.udt.fields))
	}
	for _, e := range m.coll.elems {
		switch {
		case e.dead:
			keys = append(keys, e.key)
			continue
		case m.col.typ.kind == "udt":
			parts[signed(e.key)] = e.val
		case m.col.typ.kind == "set":
			parts = append(parts, e.key)
		default:
			parts = append(parts, e.key, e.val)
		}
		n++
	}
	if len(keys) > 0 {
		gone = collect(len(keys), keys...)
	}
	switch {
	case m.col.typ.kind == "udt": // shown in any case, fields that were not written as null
		value = []byte{}
		for _, p := range parts {
			value = appendSized(value, p)
		}
	case n > 0:
		value = collect(n, parts...)
	}
	return value, m.coll.tomb != noTime, gone
}

// merged is the column's value in the log's form after m.
func (m cellMod) merged(old []byte) []byte {
	if m.coll == nil {
		return m.val
	}
	typ := m.col.typ
	k := &coll{tomb: noTime}
	if m.coll.tomb == noTime && old != nil {
		if typ.kind == "list" {
			k.elems = overwrite(mapOf(timeuuidType, typ.args[0]), old, 0).elems
		} else {
			k.elems = overwrite(typ, old, 0).elems
		}
		for i := range k.elems {
			k.elems[i].set, k.elems[i].ts = true, 0
		}
	}
	for _, e := range m.coll.elems {
		k.put(typ.key(), elem{e.key, cell{val: e.val, dead: e.dead, ts: 1, set: true}})
	}
	if typ.kind == "list" {
		typ = mapOf(timeuuidType, typ.args[0])
	}
	return k.read(typ, noTime, 0)
}

// mods are the writes of the gathered rows to the log.
func (b *logBatch) mods(e *env) (out []*mod) {
	l := b.t.log
	ttl, _ := strconv.Atoi(b.t.cdc["ttl"])
	at := timeUUID(b.ts, 0, randomBytes())
	for i, r := range b.rows {
		m := &mod{t: l, pk: [][]byte{b.stream}, ck: [][]byte{at, encodeInt(int64(i), 4)}, ts: b.ts, ttl: int32(ttl)}
		for _, c := range l.cols {
			if v := r[c]; v != nil {
				m.cells = append(m.cells, cellMod{col: c, val: v})
			}
		}
		out = append(out, m)
	}
	return out
}

// visit goes through what is written to a partition, in the order of the source.
// row is told of rows with a marker or cells, gone of deleted ones.
func visit(t *table, p *partition, statics func(), row func(*row), gone func(*row), ranges func(rangeTomb), all func()) {
	if len(p.static.cells) > 0 || len(p.static.colls) > 0 {
		statics()
	}
	for _, r := range p.rows {
		if r.mark.set || len(r.cells) > 0 || len(r.colls) > 0 {
			row(r)
		}
		if r.tomb != noTime {
			gone(r)
		}
	}
	for _, rt := range p.ranges {
		ranges(rt)
	}
	if p.tomb != noTime {
		all()
	}
}

// shouldSplit reports whether what is written has several times, TTLs or kinds of
// changes, so that it takes several changes to tell of it.
func shouldSplit(t *table, p *partition) (split bool) {
	var first *changeKey
	var hadStatic, hadRow, hadUpsert, hadRange bool
	see := func(ts int64, ttl int32) {
		k := changeKey{ts, ttl}
		if first != nil && *first != k {
			split = true
		}
		first = &k
	}
	cells := func(r *row) {
		for i := range r.cells {
			if r.cells[i].set {
				see(r.cells[i].ts, r.cells[i].ttl)
			}
		}
		for _, k := range r.colls {
			if k.tomb != noTime {
				see(k.tomb+1, 0)
			}
			for _, e := range k.elems {
				see(e.ts, e.ttl)
			}
		}
	}
	visit(t, p, func() {
		hadStatic = true
		cells(p.static)
	}, func(r *row) {
		split = split || hadStatic
		hadRow, hadUpsert = true, true
		if r.mark.set {
			see(r.mark.ts, r.mark.ttl)
			for _, k := range r.colls { // an INSERT cannot tell of elements without what was there
				split = split || slices.ContainsFunc(k.elems, func(e elem) bool { return !e.dead })
			}
		}
		cells(r)
	}, func(r *row) {
		split = split || hadStatic || hadUpsert
		hadRow = true
		see(r.tomb, 0)
	}, func(rt rangeTomb) {
		split = split || hadStatic || hadRow
		hadRange = true
		see(rt.ts, 0)
	}, func() {
		split = split || hadStatic || hadRow || hadRange
	})
	return split || first == nil
}

// onlyTime is the time of all that is written, where there is one.
func onlyTime(t *table, p *partition) int64 {
	times := slices.Collect(maps.Keys(extract(t, p)))
	return times[0]
}

// unsplit makes one change of each row.
func unsplit(t *table, p *partition) (list []change) {
	whole := func(kind modKind, r *row) {
		c := change{kind: kind, r: r, marker: r.mark.set, ttl: r.mark.ttl}
		for _, parts := range partsOf(t, r, kind == modStatic) {
			c.cells = append(c.cells, parts.cells...)
			c.ttl = max(c.ttl, parts.ttl)
		}
		slices.SortStableFunc(c.cells, func(a, b cellMod) int { return cmp.Compare(a.col.idx, b.col.idx) })
		list = append(list, c)
	}
	visit(t, p, func() { whole(modStatic, p.static) }, func(r *row) { whole(modRow, r) },
		func(r *row) { list = append(list, change{kind: modRowDelete, r: r}) },
		func(rt rangeTomb) { list = append(list, change{kind: modRangeDelete, from: rt.from, to: rt.to}) },
		func() { list = append(list, change{kind: modPartitionDelete}) })
	return list
}

// partsOf parts a row by time and TTL, in their order.
func partsOf(t *table, r *row, statics bool) (list []change) {
	by := map[changeKey][]cellMod{}
	if r.mark.set {
		by[changeKey{r.mark.ts, r.mark.ttl}] = nil
	}
	for _, c := range t.cols {
		if (c.kind == static) != statics || c.kind == partitionKind || c.kind == clustering {
			continue
		}
		if !c.typ.multi() {
			if c.idx < len(r.cells) && r.cells[c.idx].set {
				x := r.cells[c.idx]
				k := changeKey{x.ts, x.ttl}
				by[k] = append(by[k], cellMod{col: c, val: x.val})
			}
			continue
		}
		k := r.colls[c.idx]
		if k == nil {
			continue
		}
		colls := map[changeKey]*collMod{}
		at := func(key changeKey) *collMod {
			if colls[key] == nil {
				colls[key] = &collMod{tomb: noTime}
			}
			return colls[key]
		}
		if k.tomb != noTime {
			at(changeKey{k.tomb + 1, 0}).tomb = k.tomb
		}
		for _, e := range k.elems {
			m := at(changeKey{e.ts, e.ttl})
			m.elems = append(m.elems, e)
		}
		for key, m := range colls {
			by[key] = append(by[key], cellMod{col: c, coll: m})
		}
	}
	keys := slices.SortedFunc(maps.Keys(by), func(a, b changeKey) int { return cmp.Or(cmp.Compare(a.ts, b.ts), cmp.Compare(a.ttl, b.ttl)) })
	for _, k := range keys {
		list = append(list, change{r: r, ts: k.ts, ttl: k.ttl, cells: by[k], marker: r.mark.set && r.mark.ts == k.ts && r.mark.ttl == k.ttl})
	}
	return list
}

// extract parts what is written by time; the changes of one are in the order of the
// log: static row, INSERTs, UPDATEs, deletions of rows, of ranges, of the partition.
func extract(t *table, p *partition) map[int64][]change {
	byTime := map[int64][6][]change{}
	put := func(ts int64, class int, c change) {
		k := byTime[ts]
		k[class] = append(k[class], c)
		byTime[ts] = k
	}
	visit(t, p, func() {
		for _, c := range partsOf(t, p.static, true) {
			c.kind = modStatic
			put(c.ts, 0, c)
		}
	}, func(r *row) {
		for _, c := range partsOf(t, r, false) {
			c.kind = modRow
			if !c.marker {
				put(c.ts, 2, c)
				continue
			}
			// Elements that come without a deletion of what was there are no part of an
			// INSERT; they are an UPDATE beside it.
			rest := c
			rest.marker, rest.cells = false, nil
			var own []cellMod
			for _, m := range c.cells {
				if m.coll != nil && m.coll.tomb == noTime {
					rest.cells = append(rest.cells, m)
				} else {
					own = append(own, m)
				}
			}
			c.cells = own
			put(c.ts, 1, c)
			if rest.cells != nil {
				put(c.ts, 2, rest)
			}
		}
	}, func(r *row) { put(r.tomb, 3, change{kind: modRowDelete, r: r}) },
		func(rt rangeTomb) { put(rt.ts, 4, change{kind: modRangeDelete, from: rt.from, to: rt.to}) },
		func() { put(p.tomb, 5, change{kind: modPartitionDelete}) })
	out := map[int64][]change{}
	for ts, k := range byTime {
		out[ts] = slices.Concat(k[0], k[1], k[2], k[3], k[4], k[5])
	}
	return out
}
