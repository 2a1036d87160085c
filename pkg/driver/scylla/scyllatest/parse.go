package scyllatest

import (
	"slices"
	"strconv"
	"strings"
)

// A statement is parsed CQL that has not met a schema yet.
type statement any

type tableName struct{ ks, name string }

type typeExpr struct {
	ks, name string
	args     []typeExpr
	size     int // of a vector
}

type termKind uint8

const (
	termNull termKind = iota
	termConst
	termMark
	termList
	termBrace // a set, a map or a value of a UDT
	termTuple
	termCall
	termCast // (type) term
	termName
	termStar
	termField   // args[0].text
	termElement // args[0][args[1]]
)

// A term is an expression. The keys of pairs in braces alternate with values.
type term struct {
	kind  termKind
	lit   tokenKind // of a constant
	text  string
	args  []term
	pairs bool
	typ   *typeExpr
	mark  int
}

type selector struct {
	term
	alias string
}

type relation struct {
	cols  []string
	tuple bool
	token bool
	key   *term  // col[key]
	field string // col.field
	op    string
	val   term
}

type ordering struct {
	col  string
	desc bool
}

type using struct{ timestamp, ttl *term }

type selectStmt struct {
	from           tableName
	distinct       bool
	sel            []selector // nil is *
	where          []relation
	order          []ordering
	limit, perPart *term
	filtering      bool
}

type insertStmt struct {
	table tableName
	cols  []string
	vals  []term
	ifNot bool
	using using
}

type assignment struct {
	col   string
	key   *term
	field string
	op    string // = + prepend -
	val   term
}

type updateStmt struct {
	table    tableName
	using    using
	sets     []assignment
	where    []relation
	ifExists bool
	conds    []relation
}

type deleteStmt struct {
	table    tableName
	using    using
	targets  []assignment // op and val are not used
	where    []relation
	ifExists bool
	conds    []relation
}

type batchStmt struct {
	kind  string // LOGGED, UNLOGGED, COUNTER
	using using
	stmts []statement
}

type (
	useStmt      struct{ ks string }
	truncateStmt struct{ table tableName }
	keyspaceStmt struct {
		verb, ks string
		cond     bool
		opts     map[string]option
	}
	columnDef struct {
		name   string
		typ    typeExpr
		static bool
	}
	createTableStmt struct {
		table  tableName
		cond   bool
		cols   []columnDef
		pk, ck []string
		order  []ordering
		opts   map[string]option
	}
	alterTableStmt struct {
		table  tableName
		add    []columnDef
		drop   []string
		rename [][2]string
		opts   map[string]option
	}
	typeStmt struct {
		verb   string // CREATE, ADD, RENAME, DROP
		name   tableName
		cond   bool
		fields []columnDef
		rename [][2]string
	}
	indexStmt struct {
		verb, name   string
		ks           string
		table        tableName
		cond         bool
		target, kind string // kind: values, keys, entries, full, or none
	}
	viewStmt struct {
		verb   string
		name   tableName
		cond   bool
		sel    selectStmt
		pk, ck []string
		order  []ordering
		opts   map[string]option
	}
	dropTableStmt struct {
		table tableName
		cond  bool
	}
	roleStmt struct {
		verb, role string
		cond       bool
		opts       map[string]option
	}
	grantStmt struct {
		verb, perm, role string
		resource         string // as system_auth has it
	}
	listStmt struct{ role string } // LIST ALL PERMISSIONS
	// A describeStmt is known, and answered as servers do that do not know it: then
	// gocql makes the text of a schema itself.
	describeStmt struct{}
)

// An option is the value of a table's or keyspace's option.
type option struct {
	text string
	m    map[string]string
}

type parser struct {
	toks  []token
	marks []string // names of the markers, empty for ?
	depth int
}

// maxDepth bounds how deep terms and types nest.
const maxDepth = 64

// parse reads one statement, and the names of its markers.
func parse(cql string) (st statement, marks []string, err error) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(syntaxError)
			if !ok {
				panic(r)
			}
			err = e
		}
	}()
	p := &parser{toks: lex(cql)}
	st = p.statement()
	p.accept(";")
	if p.peek().kind != tokEOF {
		panic(p.unexpected())
	}
	return st, p.marks, nil
}

func (e syntaxError) Error() string { return string(e) }

func (p *parser) peek() token { return p.toks[0] }

func (p *parser) next() token {
	t := p.toks[0]
	if t.kind != tokEOF {
		p.toks = p.toks[1:]
	}
	return t
}

func (p *parser) unexpected() syntaxError {
	t := p.peek()
	return syntax("line 1:%d no viable alternative at input '%s'", t.at, t.text)
}

func (t token) is(w string) bool {
	switch t.kind {
	case tokSign:
		return t.text == w
	case tokName:
		return strings.EqualFold(t.text, w)
	}
	return false
}

func (p *parser) looks(words ...string) bool {
	for i, w := range words {
		if i >= len(p.toks) || !p.toks[i].is(w) {
			return false
		}
	}
	return true
}

func (p *parser) accept(words ...string) bool {
	if !p.looks(words...) {
		return false
	}
	p.toks = p.toks[len(words):]
	return true
}

func (p *parser) expect(words ...string) {
	for _, w := range words {
		if !p.accept(w) {
			panic(p.unexpected())
		}
	}
}

// list reads items up to end; there is at least one.
func (p *parser) list(end string, item func()) {
	for item(); p.accept(","); {
		item()
	}
	p.expect(end)
}

func (p *parser) nest() func() {
	if p.depth++; p.depth > maxDepth {
		panic(syntax("line 1:%d nested too deep", p.peek().at))
	}
	return func() { p.depth-- }
}

// reserved are the words that are no names unless quoted.
var reserved = strings.Fields(`add allow alter and apply asc authorize batch begin by columnfamily create delete desc describe drop entries
 execute from full grant if in index infinity insert into is keyspace limit modify nan norecursive not null of on or order primary rename
 replace revoke schema select set table to token truncate unlogged update use using where with`)

func (p *parser) name() string {
	t := p.peek()
	switch {
	case t.kind == tokQuoted && t.text != "":
		return p.next().text
	case t.kind == tokName && !slices.Contains(reserved, strings.ToLower(t.text)):
		return strings.ToLower(p.next().text)
	}
	panic(p.unexpected())
}

func (p *parser) tableName() tableName {
	n := p.name()
	if p.accept(".") {
		return tableName{n, p.name()}
	}
	return tableName{"", n}
}

func (p *parser) ifExists() bool    { return p.accept("if", "exists") }
func (p *parser) ifNotExists() bool { return p.accept("if", "not", "exists") }

func (p *parser) statement() statement {
	switch {
	case p.accept("select"):
		return p.selectStmt()
	case p.accept("insert", "into"):
		return p.insertStmt()
	case p.accept("update"):
		return p.updateStmt()
	case p.accept("delete"):
		return p.deleteStmt()
	case p.accept("begin"):
		return p.batchStmt()
	case p.accept("truncate"):
		p.accept("table")
		return &truncateStmt{p.tableName()}
	case p.accept("use"):
		return &useStmt{p.name()}
	case p.accept("create"):
		return p.createStmt()
	case p.accept("alter"):
		return p.alterStmt()
	case p.accept("drop"):
		return p.dropStmt()
	case p.looks("grant"), p.looks("revoke"):
		return p.grantStmt()
	case p.accept("list", "all"):
		p.accept("permissions")
		st := &listStmt{}
		if p.accept("of") {
			st.role = p.roleName()
		}
		return st
	case p.accept("describe"), p.accept("desc"):
		p.toks = p.toks[len(p.toks)-1:]
		return &describeStmt{}
	}
	panic(p.unexpected())
}

func (p *parser) mark(name string) term {
	p.marks = append(p.marks, name)
	return term{kind: termMark, text: name, mark: len(p.marks) - 1}
}

func (p *parser) term() term {
	defer p.nest()()
	t := p.next()
	switch t.kind {
	case tokMark:
		return p.mark(t.text)
	case tokString, tokNumber, tokBlob, tokUUID, tokDuration:
		return term{kind: termConst, lit: t.kind, text: t.text}
	case tokSign:
		switch t.text {
		case "-":
			switch n := p.next(); {
			case n.kind == tokNumber, n.kind == tokDuration:
				return term{kind: termConst, lit: n.kind, text: "-" + n.text}
			case n.is("infinity"):
				return term{kind: termConst, lit: tokNumber, text: "-Infinity"}
			}
		case "[":
			return term{kind: termList, args: p.terms("]")}
		case "(":
			if typ, ok := p.castType(); ok {
				return term{kind: termCast, typ: &typ, args: []term{p.term()}}
			}
			return term{kind: termTuple, args: p.terms(")")}
		case "{":
			return p.brace()
		}
		p.toks = append([]token{t}, p.toks...)
		panic(p.unexpected())
	case tokName:
		switch low := strings.ToLower(t.text); low {
		case "null":
			return term{kind: termNull}
		case "true", "false":
			return term{kind: termConst, lit: tokName, text: low}
		case "nan", "infinity":
			return term{kind: termConst, lit: tokNumber, text: low}
		default:
			if p.accept("(") {
				return term{kind: termCall, text: low, args: p.terms(")")}
			}
			return term{kind: termName, text: low}
		}
	case tokQuoted:
		return term{kind: termName, text: t.text}
	}
	panic(syntax("line 1:%d no viable alternative at input '%s'", t.at, t.text))
}

func (p *parser) terms(end string) (list []term) {
	if !p.accept(end) {
		p.list(end, func() { list = append(list, p.term()) })
	}
	return list
}

// castType reads "type)" of a type hint, if that is what stands there.
func (p *parser) castType() (t typeExpr, ok bool) {
	keep, depth := p.toks, p.depth
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(syntaxError); !is {
				panic(r)
			}
			ok = false
		}
		if !ok {
			p.toks, p.depth = keep, depth
		}
	}()
	if p.peek().kind != tokName {
		return t, false
	}
	t = p.typeExpr()
	return t, p.accept(")") && (p.peek().kind != tokSign || p.looks("-") || p.looks("[") || p.looks("{") || p.looks("("))
}

func (p *parser) brace() term {
	t := term{kind: termBrace}
	if p.accept("}") {
		return t
	}
	p.list("}", func() {
		t.args = append(t.args, p.term())
		switch {
		case p.accept(":"):
			t.pairs = true
			t.args = append(t.args, p.term())
		case p.peek().kind == tokMark && p.peek().text != "": // {k:v} was read as k and a marker v
			v := p.next()
			p.toks = append([]token{{tokName, v.text, v.at}}, p.toks...)
			t.pairs = true
			t.args = append(t.args, p.term())
		case t.pairs:
			panic(p.unexpected())
		}
	})
	return t
}

func (p *parser) typeExpr() typeExpr {
	defer p.nest()()
	t := typeExpr{name: "set"} // a reserved word
	if !p.accept("set") {
		t.name = p.name()
	}
	if p.accept(".") {
		t.ks, t.name = t.name, p.name()
	}
	if p.accept("<") {
		for more := true; more; more = p.accept(",") {
			if n := p.peek(); t.name == "vector" && len(t.args) == 1 && n.kind == tokNumber {
				size, err := strconv.Atoi(p.next().text)
				if err != nil || size < 1 || size > 8192 {
					panic(syntax("line 1:%d wrong size of a vector", n.at))
				}
				t.size = size
				continue
			}
			t.args = append(t.args, p.typeExpr())
		}
		p.expect(">")
	}
	return t
}

func (p *parser) selectStmt() *selectStmt {
	if p.looks("json") && !p.looks("json", "from") && !p.looks("json", ",") {
		panic(syntax("the double does not speak SELECT JSON"))
	}
	st := &selectStmt{distinct: p.accept("distinct")}
	if p.accept("*") {
		p.expect("from")
	} else {
		p.list("from", func() {
			s := selector{term: p.selTerm()}
			if p.accept("as") {
				s.alias = p.name()
			}
			st.sel = append(st.sel, s)
		})
	}
	st.from = p.tableName()
	if p.accept("where") {
		st.where = p.relations()
	}
	if p.looks("group", "by") {
		panic(syntax("the double does not speak GROUP BY"))
	}
	if p.accept("order", "by") {
		for more := true; more; more = p.accept(",") {
			o := ordering{col: p.name()}
			if o.desc = p.accept("desc"); !o.desc {
				p.accept("asc")
			}
			st.order = append(st.order, o)
		}
	}
	for {
		switch {
		case p.accept("per", "partition", "limit"):
			t := p.term()
			st.perPart = &t
		case p.accept("limit"):
			t := p.term()
			st.limit = &t
		case p.accept("allow", "filtering"):
			st.filtering = true
		case p.accept("bypass", "cache"): // there is none
		case p.accept("using", "timeout"):
			p.term()
		default:
			return st
		}
	}
}

// selTerm reads what is selected: a term, with fields and elements behind it.
func (p *parser) selTerm() term {
	defer p.nest()()
	var t term
	switch {
	case p.accept("cast", "("):
		t = term{kind: termCall, text: "cast", args: []term{p.selTerm()}}
		p.expect("as")
		typ := p.typeExpr()
		t.typ = &typ
		p.expect(")")
	case p.accept("token", "("):
		t = term{kind: termCall, text: "token"}
		p.list(")", func() { t.args = append(t.args, p.selTerm()) })
	case p.peek().kind == tokName && len(p.toks) > 1 && p.toks[1].is("("):
		t = term{kind: termCall, text: strings.ToLower(p.next().text)}
		p.next()
		switch {
		case p.accept("*"):
			t.args = []term{{kind: termStar}}
			p.expect(")")
		case p.accept(")"):
		default:
			p.list(")", func() { t.args = append(t.args, p.selTerm()) })
		}
	case p.peek().kind == tokName || p.peek().kind == tokQuoted:
		t = term{kind: termName, text: p.name()}
	default:
		t = p.term()
	}
	for {
		switch {
		case p.accept("."):
			t = term{kind: termField, text: p.name(), args: []term{t}}
		case p.accept("["):
			t = term{kind: termElement, args: []term{t, p.term()}}
			p.expect("]")
		default:
			return t
		}
	}
}

func (p *parser) relations() (list []relation) {
	for more := true; more; more = p.accept("and") {
		list = append(list, p.relation())
	}
	return list
}

func (p *parser) relation() relation {
	defer p.nest()()
	var r relation
	switch {
	case p.accept("token", "("):
		r.token = true
		p.list(")", func() { r.cols = append(r.cols, p.name()) })
	case p.accept("("):
		r.tuple = true
		p.list(")", func() { r.cols = append(r.cols, p.name()) })
	default:
		r.cols = []string{p.name()}
		if p.accept("[") {
			k := p.term()
			r.key = &k
			p.expect("]")
		} else if p.accept(".") {
			r.field = p.name()
		}
	}
	switch {
	case p.accept("in"):
		r.op = "in"
		if p.peek().kind == tokMark {
			r.val = p.term()
		} else {
			p.expect("(")
			r.val = term{kind: termTuple, args: p.terms(")")}
		}
		return r
	case p.accept("contains", "key"):
		r.op = "contains key"
	case p.accept("contains"):
		r.op = "contains"
	case p.accept("is", "not", "null"):
		r.op = "is not null"
		return r
	default:
		for _, op := range []string{"=", "<", "<=", ">", ">=", "!="} {
			if p.accept(op) {
				r.op = op
			}
		}
		if r.op == "" {
			panic(p.unexpected())
		}
	}
	r.val = p.term()
	return r
}

func (p *parser) using() (u using) {
	if !p.accept("using") {
		return u
	}
	for more := true; more; more = p.accept("and") {
		switch {
		case p.accept("ttl"):
			t := p.term()
			u.ttl = &t
		case p.accept("timestamp"):
			t := p.term()
			u.timestamp = &t
		case p.accept("timeout"):
			p.term()
		default:
			panic(p.unexpected())
		}
	}
	return u
}

func (p *parser) insertStmt() *insertStmt {
	st := &insertStmt{table: p.tableName()}
	if p.looks("json") {
		panic(syntax("the double does not speak INSERT JSON"))
	}
	p.expect("(")
	p.list(")", func() { st.cols = append(st.cols, p.name()) })
	p.expect("values", "(")
	p.list(")", func() { st.vals = append(st.vals, p.term()) })
	st.ifNot = p.ifNotExists()
	st.using = p.using()
	return st
}

func (p *parser) updateStmt() *updateStmt {
	st := &updateStmt{table: p.tableName(), using: p.using()}
	p.expect("set")
	for more := true; more; more = p.accept(",") {
		st.sets = append(st.sets, p.assignment())
	}
	p.expect("where")
	st.where = p.relations()
	st.ifExists, st.conds = p.conditions()
	return st
}

func (p *parser) conditions() (exists bool, conds []relation) {
	if p.ifExists() {
		return true, nil
	}
	if p.accept("if") {
		conds = p.relations()
	}
	return false, conds
}

func (p *parser) assignment() assignment {
	a := p.target()
	switch {
	case p.accept("+="):
		a.op, a.val = "+", p.term()
		return a
	case p.accept("-="):
		a.op, a.val = "-", p.term()
		return a
	}
	p.expect("=")
	a.op = "="
	if a.key == nil && a.field == "" && (p.peek().kind == tokName || p.peek().kind == tokQuoted) && len(p.toks) > 1 && (p.toks[1].is("+") || p.toks[1].is("-")) {
		if n := p.name(); n != a.col {
			panic(syntax("Only expressions of the form X = X +<value> are supported."))
		}
		a.op = p.next().text
		a.val = p.term()
		return a
	}
	a.val = p.term()
	if p.accept("+") {
		if n := p.name(); n != a.col {
			panic(syntax("Only expressions of the form X = <value> + X are supported."))
		}
		a.op = "prepend"
	}
	return a
}

func (p *parser) target() (a assignment) {
	a.col = p.name()
	if p.accept("[") {
		k := p.term()
		a.key = &k
		p.expect("]")
	} else if p.accept(".") {
		a.field = p.name()
	}
	return a
}

func (p *parser) deleteStmt() *deleteStmt {
	st := &deleteStmt{}
	if !p.accept("from") {
		p.list("from", func() { st.targets = append(st.targets, p.target()) })
	}
	st.table, st.using = p.tableName(), p.using()
	p.expect("where")
	st.where = p.relations()
	st.ifExists, st.conds = p.conditions()
	return st
}

func (p *parser) batchStmt() *batchStmt {
	st := &batchStmt{kind: "LOGGED"}
	if p.accept("unlogged") {
		st.kind = "UNLOGGED"
	} else if p.accept("counter") {
		st.kind = "COUNTER"
	} else {
		p.accept("logged")
	}
	p.expect("batch")
	st.using = p.using()
	for !p.accept("apply", "batch") {
		switch {
		case p.accept("insert", "into"):
			st.stmts = append(st.stmts, p.insertStmt())
		case p.accept("update"):
			st.stmts = append(st.stmts, p.updateStmt())
		case p.accept("delete"):
			st.stmts = append(st.stmts, p.deleteStmt())
		default:
			panic(p.unexpected())
		}
		p.accept(";")
	}
	return st
}

func (p *parser) options(special func() bool) map[string]option {
	opts := map[string]option{}
	if !p.accept("with") {
		return opts
	}
	for more := true; more; more = p.accept("and") {
		if special != nil && special() {
			continue
		}
		n := p.name()
		p.expect("=")
		opts[n] = p.option()
	}
	return opts
}

func (p *parser) option() option {
	t := p.term()
	switch {
	case t.kind == termBrace && (t.pairs || len(t.args) == 0):
		o := option{m: map[string]string{}}
		for i := 0; i+1 < len(t.args); i += 2 {
			o.m[t.args[i].text] = t.args[i+1].text
		}
		return o
	case t.kind == termConst, t.kind == termName:
		return option{text: t.text}
	}
	panic(syntax("wrong value of an option"))
}

func (p *parser) createStmt() statement {
	switch {
	case p.accept("keyspace"), p.accept("schema"):
		st := &keyspaceStmt{verb: "CREATE", cond: p.ifNotExists(), ks: p.name()}
		st.opts = p.options(nil)
		return st
	case p.accept("table"), p.accept("columnfamily"):
		return p.createTable()
	case p.accept("type"):
		st := &typeStmt{verb: "CREATE", cond: p.ifNotExists(), name: p.tableName()}
		p.expect("(")
		p.list(")", func() { st.fields = append(st.fields, columnDef{name: p.name(), typ: p.typeExpr()}) })
		return st
	case p.accept("index"):
		return p.createIndex()
	case p.accept("materialized", "view"):
		return p.createView()
	case p.accept("role"), p.accept("user"):
		st := &roleStmt{verb: "CREATE", cond: p.ifNotExists(), role: p.roleName()}
		st.opts = p.options(nil)
		return st
	}
	panic(p.unexpected())
}

func (p *parser) primaryKey() (pk, ck []string) {
	p.expect("(")
	if p.accept("(") {
		p.list(")", func() { pk = append(pk, p.name()) })
	} else {
		pk = []string{p.name()}
	}
	for p.accept(",") {
		ck = append(ck, p.name())
	}
	p.expect(")")
	return pk, ck
}

func (p *parser) clusteringOrder(order *[]ordering) func() bool {
	return func() bool {
		if p.accept("compact", "storage") {
			panic(syntax("the double does not speak COMPACT STORAGE"))
		}
		if !p.accept("clustering", "order", "by", "(") {
			return false
		}
		p.list(")", func() {
			o := ordering{col: p.name()}
			if o.desc = p.accept("desc"); !o.desc {
				p.accept("asc")
			}
			*order = append(*order, o)
		})
		return true
	}
}

func (p *parser) createTable() *createTableStmt {
	st := &createTableStmt{cond: p.ifNotExists(), table: p.tableName()}
	p.expect("(")
	p.list(")", func() {
		if p.accept("primary", "key") {
			if st.pk != nil {
				panic(syntax("Multiple PRIMARY KEYs specified (exactly one required)"))
			}
			st.pk, st.ck = p.primaryKey()
			return
		}
		c := columnDef{name: p.name(), typ: p.typeExpr(), static: p.accept("static")}
		st.cols = append(st.cols, c)
		if p.accept("primary", "key") {
			st.pk = []string{c.name}
		}
	})
	st.opts = p.options(p.clusteringOrder(&st.order))
	return st
}

func (p *parser) createIndex() *indexStmt {
	st := &indexStmt{verb: "CREATE", cond: p.ifNotExists()}
	if !p.looks("on") {
		st.name = p.name()
	}
	p.expect("on")
	st.table = p.tableName()
	p.expect("(")
	for _, k := range []string{"values", "keys", "entries", "full"} {
		if p.accept(k, "(") {
			st.kind, st.target = k, p.name()
			p.expect(")")
		}
	}
	if st.target == "" {
		st.target = p.name()
	}
	p.expect(")")
	if p.accept("using") {
		p.term()
	}
	return st
}

func (p *parser) createView() *viewStmt {
	st := &viewStmt{verb: "CREATE", cond: p.ifNotExists(), name: p.tableName()}
	p.expect("as", "select")
	st.sel = *p.selectStmt()
	p.expect("primary", "key")
	st.pk, st.ck = p.primaryKey()
	st.opts = p.options(p.clusteringOrder(&st.order))
	return st
}

func (p *parser) alterStmt() statement {
	switch {
	case p.accept("keyspace"), p.accept("schema"):
		st := &keyspaceStmt{verb: "ALTER", ks: p.name()}
		st.opts = p.options(nil)
		return st
	case p.accept("table"), p.accept("columnfamily"):
		st := &alterTableStmt{table: p.tableName()}
		one := func(item func()) {
			if p.accept("(") {
				p.list(")", item)
				return
			}
			for item(); p.accept(","); {
				item()
			}
		}
		switch {
		case p.accept("add"):
			one(func() {
				st.add = append(st.add, columnDef{name: p.name(), typ: p.typeExpr(), static: p.accept("static")})
			})
		case p.accept("drop"):
			one(func() { st.drop = append(st.drop, p.name()) })
		case p.accept("rename"):
			for more := true; more; more = p.accept("and") {
				from := p.name()
				p.expect("to")
				st.rename = append(st.rename, [2]string{from, p.name()})
			}
		case p.looks("with"):
			st.opts = p.options(nil)
		default:
			panic(p.unexpected())
		}
		return st
	case p.accept("type"):
		st := &typeStmt{name: p.tableName()}
		if p.accept("add") {
			st.verb = "ADD"
			st.fields = []columnDef{{name: p.name(), typ: p.typeExpr()}}
			return st
		}
		p.expect("rename")
		st.verb = "RENAME"
		for more := true; more; more = p.accept("and") {
			from := p.name()
			p.expect("to")
			st.rename = append(st.rename, [2]string{from, p.name()})
		}
		return st
	}
	panic(p.unexpected())
}

func (p *parser) dropStmt() statement {
	switch {
	case p.accept("keyspace"), p.accept("schema"):
		return &keyspaceStmt{verb: "DROP", cond: p.ifExists(), ks: p.name()}
	case p.accept("table"), p.accept("columnfamily"):
		return &dropTableStmt{cond: p.ifExists(), table: p.tableName()}
	case p.accept("type"):
		return &typeStmt{verb: "DROP", cond: p.ifExists(), name: p.tableName()}
	case p.accept("index"):
		st := &indexStmt{verb: "DROP", cond: p.ifExists()}
		n := p.tableName()
		st.ks, st.name = n.ks, n.name
		return st
	case p.accept("materialized", "view"):
		return &viewStmt{verb: "DROP", cond: p.ifExists(), name: p.tableName()}
	case p.accept("role"), p.accept("user"):
		return &roleStmt{verb: "DROP", cond: p.ifExists(), role: p.roleName()}
	}
	panic(p.unexpected())
}

func (p *parser) roleName() string {
	if p.peek().kind == tokString {
		return p.next().text
	}
	return p.name()
}

func (p *parser) grantStmt() *grantStmt {
	st := &grantStmt{verb: strings.ToUpper(p.next().text), perm: strings.ToUpper(p.next().text)}
	if !slices.Contains([]string{"ALL", "SELECT", "MODIFY", "CREATE", "ALTER", "DROP", "AUTHORIZE", "DESCRIBE"}, st.perm) {
		panic(syntax("no viable alternative at input '%s'", st.perm))
	}
	if !p.accept("permissions") {
		p.accept("permission")
	}
	p.expect("on")
	switch {
	case p.accept("all", "keyspaces"):
		st.resource = "data"
	case p.accept("keyspace"):
		st.resource = "data/" + p.name()
	default:
		p.accept("table")
		t := p.tableName()
		st.resource = "data/" + t.ks + "/" + t.name
	}
	if st.verb == "GRANT" {
		p.expect("to")
	} else {
		p.expect("from")
	}
	st.role = p.roleName()
	return st
}
