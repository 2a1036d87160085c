package scyllatest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/datastax/go-cassandra-native-protocol/message"
)

// A plan is a statement that has met the schema.
type plan struct {
	st      statement
	t       *table // nil for statements without one
	marks   []*message.ColumnMetadata
	names   []string
	pk      []uint16
	columns []*message.ColumnMetadata // of results
	sel     *selectPlan
	write   *writePlan
	batch   []*plan
	using   usingPlan // of a batch
}

type aggregate struct {
	name string
	arg  *expr // nil is count(*)
}

type selectPlan struct {
	st      *selectStmt
	t       *table
	items   []*expr
	aggs    []*aggregate
	where   *where
	limit   *expr
	perPart *expr
	reverse bool
	sorted  bool // ORDER BY over several partitions
	static  bool // only columns of the partition are selected
}

func (b *binder) selectPlan(st *selectStmt) (*selectPlan, []*message.ColumnMetadata) {
	if b.t.view != nil {
		panic(syntax("the double has materialized views in the schema only"))
	}
	p := &selectPlan{st: st, t: b.t}
	sel := st.sel
	if sel == nil {
		for _, c := range b.t.cols {
			sel = append(sel, selector{term: term{kind: termName, text: c.name}})
		}
	}
	for _, s := range sel {
		if agg := b.aggregate(s.term); agg != nil {
			p.aggs = append(p.aggs, agg)
			p.items = append(p.items, agg.result())
		} else {
			p.items = append(p.items, b.read(s.term))
		}
		if x := p.items[len(p.items)-1]; s.alias != "" {
			x.name = s.alias
		}
	}
	if len(p.aggs) > 0 && len(p.aggs) < len(p.items) {
		panic(syntax("the double does not mix aggregates and columns"))
	}
	p.where = b.where(st.where)
	if p.where.filtered && !st.filtering {
		panic(invalid(needsFiltering))
	}
	p.limit = b.limit(st.limit, "[limit]")
	p.perPart = b.limit(st.perPart, "[per_partition_limit]")
	if st.distinct {
		for _, s := range st.sel {
			if c := b.t.column(s.text); s.kind != termName || c == nil || c.kind != partitionKind && c.kind != static {
				panic(invalid("SELECT DISTINCT queries must only request partition key columns and/or static columns (not %s)", s.text))
			}
		}
		p.static = true
	}
	p.orderBy(st.order)
	var cols []*message.ColumnMetadata
	for _, x := range p.items {
		cols = append(cols, &message.ColumnMetadata{Keyspace: b.t.ks, Table: b.t.name, Name: x.name, Type: x.typ.wire()})
	}
	return p, cols
}

func (b *binder) limit(t *term, name string) *expr {
	if t == nil {
		return nil
	}
	return b.value(*t, intType, name, nil)
}

func (p *selectPlan) orderBy(order []ordering) {
	if len(order) == 0 {
		return
	}
	if !p.where.keyed {
		panic(invalid("ORDER BY is only supported when the partition key is restricted by an EQ or an IN."))
	}
	skip := 0
	for i, o := range order {
		c := p.t.need(o.col)
		for skip < len(p.t.ck) && p.t.ck[skip] != c && slices.ContainsFunc(p.where.rels, func(r *rel) bool { return r.op == "=" && slices.Contains(r.cols, p.t.ck[skip]) }) {
			skip++
		}
		if skip >= len(p.t.ck) || p.t.ck[skip] != c {
			panic(invalid("Order by currently only supports the ordering of columns following their declared order in the PRIMARY KEY"))
		}
		skip++
		if rev := o.desc != c.desc; i > 0 && rev != p.reverse {
			panic(invalid("Unsupported order by relation"))
		} else {
			p.reverse = rev
		}
	}
	p.sorted = slices.ContainsFunc(p.where.rels, func(r *rel) bool { return r.op == "in" && r.cols[0].kind == partitionKind })
}

func (b *binder) aggregate(t term) *aggregate {
	if t.kind != termCall || !slices.Contains([]string{"count", "min", "max", "sum", "avg"}, t.text) {
		return nil
	}
	if len(t.args) != 1 {
		panic(invalid("Invalid number of arguments in call to function %s: 1 required but %d provided", t.text, len(t.args)))
	}
	if t.args[0].kind == termStar || t.args[0].kind == termConst {
		return &aggregate{name: "count"}
	}
	return &aggregate{t.text, b.read(t.args[0])}
}

func (a *aggregate) result() *expr {
	switch {
	case a.arg == nil:
		return &expr{typ: bigintType, name: "count"}
	case a.name == "count":
		return &expr{typ: bigintType, name: "system.count(" + a.arg.name + ")"}
	}
	return &expr{typ: a.arg.typ, name: "system." + a.name + "(" + a.arg.name + ")"}
}

// compute gives the aggregate of the values, null ones among them.
func (a *aggregate) compute(vals [][]byte) []byte {
	n := len(vals)
	if a.arg != nil {
		vals = slices.DeleteFunc(vals, func(v []byte) bool { return v == nil })
		n = len(vals)
	}
	switch {
	case a.name == "count":
		return encodeInt(int64(n), 8)
	case a.name == "min" && n > 0:
		return slices.MinFunc(vals, a.arg.typ.compare)
	case a.name == "max" && n > 0:
		return slices.MaxFunc(vals, a.arg.typ.compare)
	case a.name == "min", a.name == "max":
		return nil
	}
	return a.sum(vals)
}

func (a *aggregate) sum(vals [][]byte) []byte {
	typ := a.arg.typ
	switch typ.kind {
	case "double", "float":
		var f float64
		for _, v := range vals {
			if typ.kind == "float" {
				f += float64(math.Float32frombits(binary.BigEndian.Uint32(v)))
			} else {
				f += math.Float64frombits(binary.BigEndian.Uint64(v))
			}
		}
		if a.name == "avg" && len(vals) > 0 {
			f /= float64(len(vals))
		}
		return typ.encode(tokNumber, fmt.Sprint(f))
	case "int", "bigint", "counter", "smallint", "tinyint", "varint":
		s := new(big.Int)
		for _, v := range vals {
			s.Add(s, bigInt(v))
		}
		if a.name == "avg" && len(vals) > 0 {
			s.Quo(s, big.NewInt(int64(len(vals))))
		}
		if typ.kind == "varint" {
			return encodeBig(s)
		}
		return encodeInt(s.Int64(), width(typ.kind))
	}
	panic(syntax("the double does not compute %s of %s", a.name, typ))
}

// A pageState is where the next page begins: behind a row, wherever it is by then.
type pageState struct {
	token   int64
	key     []byte
	static  bool // behind the row of a partition without rows, or all of a partition
	ck      [][]byte
	left    int64 // of LIMIT
	inPart  int64 // rows of the partition that were given
	page    int64
	resumed bool
}

func (s *pageState) encode() []byte {
	b := []byte{'D', 1, byte(b2i(s.static))}
	for _, n := range []int64{s.token, s.left, s.inPart, s.page} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = appendSized(b, s.key)
	for _, v := range s.ck {
		b = appendSized(b, v)
	}
	return b
}

func decodePage(b []byte) (s pageState) {
	if len(b) == 0 {
		return pageState{left: math.MaxInt64}
	}
	bad := failure{&message.ProtocolError{ErrorMessage: "Invalid value for the paging state"}}
	if len(b) < 35 || b[0] != 'D' || b[1] != 1 {
		panic(bad)
	}
	defer func() {
		if r := recover(); r != nil {
			panic(bad)
		}
	}()
	s.static, s.resumed = b[2] == 1, true
	n := func(i int) int64 { return int64(binary.BigEndian.Uint64(b[3+8*i:])) }
	s.token, s.left, s.inPart, s.page = n(0), n(1), n(2), n(3)
	var rest []byte
	s.key, rest = sized(b[35:])
	for len(rest) > 0 {
		var v []byte
		v, rest = sized(rest)
		s.ck = append(s.ck, v)
	}
	return s
}

type results struct {
	rows  [][][]byte
	state []byte // of the next page
}

// run reads a page.
func (p *selectPlan) run(e *env, size int, state []byte) results {
	s := decodePage(state)
	conds := p.where.eval(e)
	if !s.resumed && p.limit != nil {
		s.left = p.limited(e, p.limit)
	}
	perPart := int64(math.MaxInt64)
	if p.perPart != nil {
		perPart = p.limited(e, p.perPart)
	}
	if len(p.aggs) > 0 {
		return results{rows: [][][]byte{p.aggregate(e, conds)}}
	}
	if p.sorted {
		if size > 0 {
			panic(invalid("Cannot page queries with both ORDER BY and a IN restriction on the partition key; you must either remove the ORDER BY or the IN and sort client side, or disable paging for this query"))
		}
		return p.runSorted(e, conds, s.left)
	}
	switch {
	case size <= 0:
		size = math.MaxInt
	case e.c.shortPages > 0:
		size = min(size, e.c.shortPages)
	}
	if e.c.emptyPages && s.resumed && s.page%2 == 1 {
		s.page++
		return results{state: s.encode()}
	}
	var out results
	if size < 1000 {
		out.rows = make([][][]byte, 0, size)
	}
	last := s
	p.scan(e, conds, s, func(st *pageState) bool {
		if st.inPart >= perPart {
			return true
		}
		if len(out.rows) >= size {
			last.page++
			out.state = last.encode()
			return false
		}
		out.rows = append(out.rows, p.emit(e))
		st.inPart++
		st.left--
		last = *st
		return st.left > 0
	})
	return out
}

func (p *selectPlan) limited(e *env, x *expr) int64 {
	v := x.eval(e)
	if isUnset(v) {
		return math.MaxInt64
	}
	if v == nil || signed(v) <= 0 {
		panic(invalid("LIMIT must be strictly positive"))
	}
	return signed(v)
}

func (p *selectPlan) emit(e *env) [][]byte {
	row := make([][]byte, len(p.items))
	for i, x := range p.items {
		row[i] = x.eval(e)
	}
	return row
}

// scan goes through the rows that fit, behind s, until fn says that it is enough.
func (p *selectPlan) scan(e *env, conds []cond, s pageState, fn func(*pageState) bool) {
	for _, part := range p.partitions(conds, s) {
		resumed := s.resumed && bytes.Equal(part.key, s.key)
		if resumed && s.static {
			continue
		}
		st := pageState{token: part.token, key: part.key, left: s.left, page: s.page}
		if resumed {
			st.inPart = s.inPart
		}
		if !p.rows(e, part, conds, s, resumed, &st, fn) {
			return
		}
		s.left = st.left
	}
}

func (p *selectPlan) fits(e *env, conds []cond) bool {
	for i := range conds {
		if !conds[i].holds(e) {
			return false
		}
	}
	return true
}

// rows goes through the rows of a partition.
func (p *selectPlan) rows(e *env, part *partition, conds []cond, s pageState, resumed bool, st *pageState, fn func(*pageState) bool) bool {
	lo, hi := p.where.span(part, conds)
	if resumed && len(s.ck) > 0 {
		i, found := part.find(p.t, s.ck)
		if p.reverse {
			hi = min(hi, i)
		} else {
			lo = max(lo, i+b2i(found))
		}
	}
	some := resumed
	for n := hi - lo; n > 0; n-- {
		r := part.rows[hi-n]
		if p.reverse {
			r = part.rows[lo+n-1]
		}
		e.at(p.t, part, r)
		if !r.live(e.floor, e.now) {
			continue
		}
		some = true
		if !p.fits(e, conds) {
			continue
		}
		st.ck, st.static = r.ck, p.static || len(p.t.ck) == 0
		if !fn(st) {
			return false
		}
		if p.static {
			return true
		}
	}
	// A partition with nothing but static columns is one row, unless rows were asked for.
	if some || len(p.t.ck) == 0 || slices.ContainsFunc(conds, func(c cond) bool { return c.cols[0].kind == clustering }) || p.anyRow(e, part) {
		return true
	}
	e.at(p.t, part, nil)
	if !part.static.live(e.sfl, e.now) || !p.fits(e, conds) {
		return true
	}
	st.ck, st.static = nil, true
	return fn(st)
}

func (p *selectPlan) anyRow(e *env, part *partition) bool {
	return slices.ContainsFunc(part.rows, func(r *row) bool { return r.live(part.floor(p.t, r), e.now) })
}

// partitions are those that may have rows: in the order of their tokens, but of their
// keys where those are given.
func (p *selectPlan) partitions(conds []cond, s pageState) []*partition {
	if p.where.keyed {
		var list []*partition
		for _, k := range p.where.keys(conds) {
			if part := p.t.part(k); part != nil {
				list = append(list, part)
			}
		}
		if i := slices.IndexFunc(list, func(x *partition) bool { return s.resumed && bytes.Equal(x.key, s.key) }); i >= 0 {
			return list[i:]
		}
		return list
	}
	list := p.t.parts
	for _, c := range conds {
		if c.token && (c.op == ">" || c.op == ">=" || c.op == "=") {
			lo := signed(c.vals[0])
			i, _ := slices.BinarySearchFunc(list, lo, func(p *partition, t int64) int {
				if p.token < t || p.token == t && c.op == ">" {
					return -1
				}
				return 1
			})
			list = list[i:]
		}
	}
	if !s.resumed {
		return list
	}
	i, _ := slices.BinarySearchFunc(list, &partition{token: s.token, key: s.key}, comparePartitions)
	return list[i:]
}

func (p *selectPlan) aggregate(e *env, conds []cond) [][]byte {
	vals := make([][][]byte, len(p.aggs))
	p.scan(e, conds, pageState{left: math.MaxInt64}, func(*pageState) bool {
		for i, a := range p.aggs {
			var v []byte
			if a.arg != nil {
				v = a.arg.eval(e)
			}
			vals[i] = append(vals[i], v)
		}
		return true
	})
	var row [][]byte
	for i, a := range p.aggs {
		row = append(row, a.compute(vals[i]))
	}
	return row
}

// runSorted reads several partitions and gives their rows in the order of their
// clustering keys.
func (p *selectPlan) runSorted(e *env, conds []cond, limit int64) results {
	type keyed struct{ ck, row [][]byte }
	var all []keyed
	p.scan(e, conds, pageState{left: math.MaxInt64}, func(st *pageState) bool {
		all = append(all, keyed{st.ck, p.emit(e)})
		return true
	})
	slices.SortStableFunc(all, func(a, b keyed) int {
		d := p.t.compareKeys(a.ck, b.ck)
		if p.reverse {
			return -d
		}
		return d
	})
	var out results
	for _, k := range all[:min(int64(len(all)), limit)] {
		out.rows = append(out.rows, k.row)
	}
	return out
}

// pkIndices are the markers that give the partition key, if they give it all.
func (b *binder) pkIndices() (idx []uint16) {
	if b.t == nil {
		return nil
	}
	for _, pk := range b.t.pk {
		i := slices.Index(b.cols, pk)
		if i < 0 {
			return nil
		}
		idx = append(idx, uint16(i))
	}
	return idx
}
