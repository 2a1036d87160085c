package scyllatest

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// A rel is a relation of a WHERE or IF clause with its types.
type rel struct {
	cols  []*column
	token bool
	op    string
	read  *expr   // left side, of relations that are not on whole columns
	vals  []*expr // right side: one, one of each column, or those of IN
	list  *expr   // right side of IN ?, a list
	rows  [][]*expr
}

// A cond is a relation whose right side was evaluated.
type cond struct {
	*rel
	vals [][]byte   // one for each column
	any  [][][]byte // of IN: one list for each alternative
}

const inMark = "in("

func (b *binder) relation(r relation) *rel {
	out := &rel{token: r.token, op: r.op}
	if r.op == "is not null" {
		panic(syntax("IS NOT NULL is for materialized views"))
	}
	for _, n := range r.cols {
		out.cols = append(out.cols, b.t.need(n))
	}
	c := out.cols[0]
	switch {
	case r.token:
		if len(out.cols) != len(b.t.pk) || slices.ContainsFunc(b.t.pk, func(c *column) bool { return out.cols[c.pos] != c }) {
			panic(invalid("The token() function must contains only partition key components"))
		}
		if r.val.kind == termCall {
			out.vals = []*expr{b.call(r.val)}
		} else {
			out.vals = []*expr{b.value(r.val, bigintType, "partition key token", nil)}
		}
	case r.key != nil:
		in := &expr{typ: c.typ, name: c.name, eval: func(e *env) []byte { return e.read(c) }}
		if c.typ.kind == "list" {
			idx := b.value(*r.key, intType, "idx("+c.name+")", nil)
			out.read = &expr{typ: c.typ.args[0], eval: func(e *env) []byte {
				all := slices.Collect(elements(in.eval(e)))
				if i := signed(idx.eval(e)); i >= 0 && int(i) < len(all) {
					return all[i]
				}
				return nil
			}}
		} else {
			out.read = b.read(term{kind: termElement, args: []term{{kind: termName, text: c.name}, *r.key}})
		}
		out.scalar(b, r, out.read.typ, "value("+c.name+")", nil)
	case r.field != "":
		out.read = b.read(term{kind: termField, text: r.field, args: []term{{kind: termName, text: c.name}}})
		out.scalar(b, r, out.read.typ, c.name+"."+r.field, nil)
	case r.tuple:
		out.tuple(b, r)
	case r.op == "contains":
		if len(c.typ.args) == 0 || c.typ.kind == "tuple" {
			panic(invalid("Cannot use CONTAINS on non-collection column \"%s\"", c.name))
		}
		out.vals = []*expr{b.value(r.val, c.typ.args[len(c.typ.args)-1], "value("+c.name+")", nil)}
	case r.op == "contains key":
		if c.typ.kind != "map" {
			panic(invalid("Cannot use CONTAINS KEY on non-map column %s", c.name))
		}
		out.vals = []*expr{b.value(r.val, c.typ.args[0], "key("+c.name+")", nil)}
	default:
		out.scalar(b, r, c.typ, c.name, c)
	}
	return out
}

func (out *rel) scalar(b *binder, r relation, typ *ctype, name string, col *column) {
	switch {
	case r.op == "in" && r.val.kind == termMark:
		out.list = b.value(r.val, listOf(typ.freeze()), inMark+name+")", nil)
	case r.op == "in":
		for _, a := range r.val.args {
			out.vals = append(out.vals, b.value(a, typ, name, nil))
		}
	default:
		if r.op != "=" {
			col = nil
		}
		out.vals = []*expr{b.value(r.val, typ, name, col)}
	}
}

// tuple reads a relation on several clustering columns.
func (out *rel) tuple(b *binder, r relation) {
	typ := &ctype{kind: "tuple", frozen: true}
	for i, c := range out.cols {
		if c.kind != clustering || i > 0 && c.pos != out.cols[i-1].pos+1 {
			panic(invalid("Multi-column relations can only be applied to clustering columns in their order: %s", strings.Join(r.cols, ", ")))
		}
		typ.args = append(typ.args, c.typ)
	}
	one := func(t term) []*expr {
		if t.kind != termTuple || len(t.args) != len(out.cols) {
			panic(invalid("Expected %d elements in value tuple", len(out.cols)))
		}
		var list []*expr
		for i, a := range t.args {
			list = append(list, b.value(a, typ.args[i], out.cols[i].name, nil))
		}
		return list
	}
	name := "(" + strings.Join(r.cols, ",") + ")"
	switch {
	case r.op == "in" && r.val.kind == termMark:
		out.list = b.value(r.val, listOf(typ), inMark+name+")", nil)
	case r.op == "in":
		for _, t := range r.val.args {
			if t.kind == termMark {
				panic(syntax("the double does not speak IN (?, …) of tuples"))
			}
			out.rows = append(out.rows, one(t))
		}
	case r.val.kind == termMark:
		whole := b.value(r.val, typ, name, nil)
		for i := range out.cols {
			out.vals = append(out.vals, &expr{typ: typ.args[i], eval: func(e *env) []byte {
				for j, v := range fields(whole.eval(e)) {
					if i == j {
						return v
					}
				}
				return nil
			}})
		}
	default:
		out.vals = one(r.val)
	}
}

// eval evaluates the right side.
func (r *rel) eval(e *env) cond {
	c := cond{rel: r}
	get := func(x *expr) []byte {
		v := x.eval(e)
		if isUnset(v) {
			panic(invalid("Invalid unset value for column %s", r.cols[0].name))
		}
		return v
	}
	switch {
	case r.list != nil:
		l := get(r.list)
		if l == nil {
			panic(invalid("Invalid null value for IN tuple"))
		}
		for v := range elements(l) {
			alt := [][]byte{v}
			if len(r.cols) > 1 {
				alt = nil
				for _, f := range fields(v) {
					alt = append(alt, f)
				}
			}
			c.any = append(c.any, alt)
		}
	case r.rows != nil:
		for _, row := range r.rows {
			var alt [][]byte
			for _, x := range row {
				alt = append(alt, get(x))
			}
			c.any = append(c.any, alt)
		}
	case r.op == "in":
		for _, x := range r.vals {
			c.any = append(c.any, [][]byte{get(x)})
		}
	default:
		for _, x := range r.vals {
			c.vals = append(c.vals, get(x))
		}
	}
	return c
}

// notNull refuses null in what a WHERE clause compares with.
func (c cond) notNull() cond {
	for _, v := range c.vals {
		if v == nil && !c.token {
			panic(invalid("Invalid null value in condition for column %s", c.cols[0].name))
		}
	}
	return c
}

// holds reports whether the row that e looks at fits.
func (c cond) holds(e *env) bool {
	if c.token {
		return c.ordered(cmp.Compare(e.part.token, signed(c.vals[0])))
	}
	typ := c.cols[0].typ
	var left []byte
	if c.read != nil {
		typ, left = c.read.typ, c.read.eval(e)
	} else {
		left = e.read(c.cols[0])
	}
	switch c.op {
	case "contains", "contains key":
		for i, v := range slices.Collect(elements(left)) {
			at := typ.args[0]
			if typ.kind == "map" {
				if (c.op == "contains key") != (i%2 == 0) {
					continue
				}
				at = typ.args[i%2]
			}
			if at.compare(v, c.vals[0]) == 0 {
				return true
			}
		}
		return false
	case "in":
		return slices.ContainsFunc(c.any, func(alt [][]byte) bool {
			if len(c.cols) == 1 {
				return alt[0] == nil && left == nil || alt[0] != nil && left != nil && typ.compare(left, alt[0]) == 0
			}
			return compareColumns(e, c.cols, alt) == 0
		})
	}
	if len(c.cols) > 1 {
		return c.ordered(compareColumns(e, c.cols, c.vals))
	}
	right := c.vals[0]
	if left == nil || right == nil { // null is equal to null in IF, and nothing else
		switch c.op {
		case "=":
			return left == nil && right == nil
		case "!=":
			return (left == nil) != (right == nil)
		}
		return false
	}
	return c.ordered(typ.compare(left, right))
}

func (c cond) ordered(d int) bool {
	switch c.op {
	case "=":
		return d == 0
	case "!=":
		return d != 0
	case "<":
		return d < 0
	case "<=":
		return d <= 0
	case ">":
		return d > 0
	}
	return d >= 0
}

func compareColumns(e *env, cols []*column, vals [][]byte) int {
	for i, c := range cols {
		v := e.read(c)
		if v == nil || i >= len(vals) || vals[i] == nil {
			return -2
		}
		if d := c.typ.compare(v, vals[i]); d != 0 {
			return d
		}
	}
	return 0
}

const needsFiltering = "Cannot execute this query as it might involve data filtering and thus may have unpredictable performance. If you want to execute this query despite the performance unpredictability, use ALLOW FILTERING"

// A where is a WHERE clause that was looked through.
type where struct {
	t        *table
	rels     []*rel
	keyed    bool // the partition key is given in full
	filtered bool // it asks for what the key does not order
}

func (b *binder) where(list []relation) *where {
	w := &where{t: b.t}
	for _, r := range list {
		w.rels = append(w.rels, b.relation(r))
	}
	eq := func(c *column) bool {
		return slices.ContainsFunc(w.rels, func(r *rel) bool {
			return !r.token && r.read == nil && slices.Contains(r.cols, c) && (r.op == "=" || r.op == "in")
		})
	}
	restricted := func(c *column) bool {
		return slices.ContainsFunc(w.rels, func(r *rel) bool { return !r.token && slices.Contains(r.cols, c) })
	}
	seen := map[*column]bool{}
	for _, r := range w.rels {
		if len(r.cols) == 1 && r.read == nil && (r.op == "=" || r.op == "in") {
			if seen[r.cols[0]] {
				panic(invalid("%s cannot be restricted by more than one relation if it includes an Equal", r.cols[0].name))
			}
			seen[r.cols[0]] = true
		}
	}
	w.keyed = !slices.ContainsFunc(b.t.pk, func(c *column) bool { return !eq(c) })
	if !w.keyed && slices.ContainsFunc(b.t.pk, restricted) {
		w.filtered = true
	}
	gap := ""
	var joint []*column // of a relation on several columns
	for _, c := range b.t.ck {
		switch {
		case slices.Contains(joint, c):
		case restricted(c) && (gap != "" || !w.keyed):
			w.filtered = true
		case !eq(c) && gap == "":
			gap = c.name
		}
		for _, r := range w.rels {
			if len(r.cols) > 1 && r.cols[0] == c {
				joint = append(joint, r.cols...)
			}
		}
	}
	for _, r := range w.rels {
		c := r.cols[0]
		indexed := slices.ContainsFunc(b.t.indexes, func(x *index) bool { return x.target == c.name })
		if !r.token && (c.kind == regular || c.kind == static) && !indexed || (r.op == "contains" || r.op == "contains key") && !indexed {
			w.filtered = true
		}
	}
	return w
}

func (w *where) eval(e *env) (conds []cond) {
	for _, r := range w.rels {
		conds = append(conds, r.eval(e).notNull())
	}
	return conds
}

// keys gives the partition keys that a clause with the whole key names, each once, in
// the order of their values.
func (w *where) keys(conds []cond) [][][]byte {
	out := [][][]byte{nil}
	for _, col := range w.t.pk {
		var alts [][]byte
		for _, c := range conds {
			if c.token || c.cols[0] != col || c.read != nil {
				continue
			}
			switch c.op {
			case "=":
				alts = [][]byte{c.vals[0]}
			case "in":
				alts = nil
				for _, a := range c.any {
					if a[0] == nil {
						panic(invalid("Invalid null value for partition key part %s", col.name))
					}
					alts = append(alts, a[0])
				}
			}
		}
		slices.SortFunc(alts, col.typ.compare)
		var next [][][]byte
		for _, k := range out {
			for i, a := range alts {
				if len(a) == 0 && len(w.t.pk) == 1 {
					panic(invalid("Key may not be empty"))
				}
				if !slices.ContainsFunc(alts[:i], func(x []byte) bool { return bytes.Equal(x, a) }) {
					next = append(next, append(slices.Clone(k), a))
				}
			}
		}
		out = next
	}
	return out
}

// mixed reports a relation on several columns whose orders differ: what it leaves is
// not one range.
func (w *where) mixed() bool {
	return slices.ContainsFunc(w.rels, func(r *rel) bool {
		return !r.token && len(r.cols) > 1 && r.op != "=" && r.op != "in" && slices.ContainsFunc(r.cols, func(c *column) bool { return c.desc != r.cols[0].desc })
	})
}

// span narrows the rows of a partition to those whose clustering key can fit, in
// the order in which they are kept.
func (w *where) span(p *partition, conds []cond) (lo, hi int) {
	from, to := w.bounds(conds)
	t := w.t
	lo, _ = slices.BinarySearchFunc(p.rows, from, func(r *row, b bound) int {
		if len(b.vals) == 0 {
			return 1
		}
		if d := t.compareKeys(r.ck, b.vals); d != 0 {
			return d
		}
		return 2*b2i(b.incl) - 1
	})
	hi, _ = slices.BinarySearchFunc(p.rows, to, func(r *row, b bound) int {
		if len(b.vals) == 0 {
			return -1
		}
		if d := t.compareKeys(r.ck, b.vals); d != 0 {
			return d
		}
		return 1 - 2*b2i(b.incl)
	})
	return lo, max(lo, hi)
}

// bounds are the ends of the range of clustering keys that relations leave, in the
// order in which rows are kept.
func (w *where) bounds(conds []cond) (from, to bound) {
	var prefix [][]byte
	for _, col := range w.t.ck {
		var eq []byte
		var ranged bool
		lo, hi := bound{vals: prefix, incl: true}, bound{vals: prefix, incl: true}
		for _, c := range conds {
			if c.token || c.read != nil || c.cols[0] != col {
				continue
			}
			if len(c.cols) > 1 {
				if c.op == "in" || slices.ContainsFunc(c.cols, func(x *column) bool { return x.desc != col.desc }) {
					continue
				}
				if c.op == "=" {
					return bound{append(slices.Clone(prefix), c.vals...), true}, bound{append(slices.Clone(prefix), c.vals...), true}
				}
			}
			op := c.op
			b := bound{append(slices.Clone(prefix), c.vals...), strings.HasSuffix(op, "=")}
			switch {
			case op == "=":
				eq = c.vals[0]
			case op == ">" || op == ">=":
				if ranged = true; col.desc {
					hi = b
				} else {
					lo = b
				}
			case op == "<" || op == "<=":
				if ranged = true; col.desc {
					lo = b
				} else {
					hi = b
				}
			}
		}
		if eq == nil {
			if ranged {
				return lo, hi
			}
			break
		}
		prefix = append(slices.Clone(prefix), eq)
	}
	return bound{prefix, true}, bound{prefix, true}
}
