package memory

import (
	"regexp"
	"strconv"
	"strings"
)

// Grammar is the whole language. Names are words, optionally of a schema
// (s.t); words are not case-sensitive; text stands in single quotes.
const Grammar = `
statement := [nontx] (select | insert | update | delete | create | drop)
select    := select (* | count(*) | name, …) from table [where]
           | select expr [as name], …
           | select generate(n [, width])     n rows of a number and a filler of width bytes
           | select fail(code, n)             n rows, then an error with the code
insert    := insert into table values (expr, …) [returning *]
update    := update table set name = expr, … [where] [returning *]
delete    := delete from table [where] [returning *]
where     := where name = expr [and name = expr …]
create    := create table table (name (int | text | bool | json) [primary key], …)
drop      := drop table table
expr      := $1 | 42 | 'text' | null | true | false
           | sleep(milliseconds)              waits, then is the number
           | fail(code)                       an error with the code
           | put(table, expr, …)              inserts a row: a write that looks like a read
nontx makes a statement one that cannot run in a transaction.
`

type verb int

const (
	verbSelect verb = iota + 1
	verbInsert
	verbUpdate
	verbDelete
	verbCreate
	verbDrop
	verbControl // begin, commit, rollback: never run
)

// A stmt is a parsed statement.
type stmt struct {
	word      string
	verb      verb
	outside   bool
	table     string
	star      bool
	count     bool
	returning bool
	items     []item   // the list of select, the values of insert
	sets      []assign // of update
	where     []assign
	columns   []column // of create
	params    int      // the highest $n
}

// idempotent holds for what sets or removes, with values that stay the same.
func (s *stmt) idempotent() bool { return s.verb == verbUpdate || s.verb == verbDelete }

type item struct {
	expr expr
	name string
}

type assign struct {
	name string
	expr expr
}

// An expr is a parameter (from 1), a literal, a call, or a column's name.
type expr struct {
	param   int
	literal string // JSON
	call    string
	args    []expr
	name    string
}

var (
	identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
	lexeme     = regexp.MustCompile(`^\s*(?:([A-Za-z_][\w]*(?:\.\w+)?)|(-?\d+)|'((?:[^']|'')*)'|\$(\d{1,5})|([(),*=]))`)
)

type parser struct {
	text  string
	rest  string
	depth int
	stmt  stmt
}

// parse reads one statement, with or without a semicolon behind it.
func parse(text string) (_ *stmt, err error) {
	text = strings.TrimRight(text, "; \t\r\n")
	p := &parser{text: text, rest: text}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case syntaxError:
			err = r.err
		default:
			panic(r)
		}
	}()
	p.statement()
	if strings.TrimSpace(p.rest) != "" {
		p.fail("the end")
	}
	return &p.stmt, nil
}

type syntaxError struct{ err error }

func (p *parser) fail(want string) {
	panic(syntaxError{refuse("syntax error at byte %d: %s was expected", len(p.text)-len(p.rest), want)})
}

// peek matches the next lexeme: its end and, of word, number, text, parameter
// and symbol, the one that it is.
func (p *parser) peek() (end, kind int, text string) {
	m := lexeme.FindStringSubmatchIndex(p.rest)
	if m == nil {
		return 0, 0, ""
	}
	for kind = 1; m[2*kind] < 0; kind++ {
	}
	return m[1], kind, p.rest[m[2*kind]:m[2*kind+1]]
}

// take consumes the next lexeme if it is this word or symbol.
func (p *parser) take(want string) bool {
	end, kind, text := p.peek()
	if kind != 1 && kind != 5 || !strings.EqualFold(text, want) {
		return false
	}
	p.rest = p.rest[end:]
	return true
}

func (p *parser) expect(words ...string) {
	for _, w := range words {
		if !p.take(w) {
			p.fail(w)
		}
	}
}

func (p *parser) word(what string) string {
	end, kind, text := p.peek()
	if kind != 1 {
		p.fail(what)
	}
	p.rest = p.rest[end:]
	return strings.ToLower(text)
}

func (p *parser) list(each func()) {
	for each(); p.take(","); {
		each()
	}
}

func (p *parser) statement() {
	s := &p.stmt
	s.outside = p.take("nontx")
	s.word = p.word("a statement")
	switch s.word {
	case "select":
		s.verb = verbSelect
		p.selection()
	case "insert":
		s.verb = verbInsert
		p.expect("into")
		s.table = qualify(p.word("a table"))
		p.expect("values", "(")
		p.list(func() { s.items = append(s.items, item{expr: p.expr()}) })
		p.expect(")")
		p.tail()
	case "update":
		s.verb = verbUpdate
		s.table = qualify(p.word("a table"))
		p.expect("set")
		p.list(func() { s.sets = append(s.sets, p.assign()) })
		p.condition()
		p.tail()
	case "delete":
		s.verb = verbDelete
		p.expect("from")
		s.table = qualify(p.word("a table"))
		p.condition()
		p.tail()
	case "create":
		s.verb = verbCreate
		p.expect("table")
		s.table = qualify(p.word("a table"))
		p.expect("(")
		p.list(p.column)
		p.expect(")")
	case "drop":
		s.verb = verbDrop
		p.expect("table")
		s.table = qualify(p.word("a table"))
	case "begin", "commit", "rollback":
		s.verb = verbControl
	default:
		p.fail("a statement")
	}
}

func (p *parser) selection() {
	s := &p.stmt
	switch {
	case p.take("*"):
		s.star = true
	case p.take("count"):
		p.expect("(", "*", ")")
		s.count = true
	default:
		p.list(func() {
			it := item{expr: p.expr()}
			it.name = it.expr.name + it.expr.call
			if p.take("as") {
				it.name = p.word("a name")
			}
			s.items = append(s.items, it)
		})
	}
	if p.take("from") {
		s.table = qualify(p.word("a table"))
		p.condition()
	} else if s.star || s.count {
		p.fail("from")
	}
}

func (p *parser) condition() {
	if p.take("where") {
		for ok := true; ok; ok = p.take("and") {
			p.stmt.where = append(p.stmt.where, p.assign())
		}
	}
}

func (p *parser) tail() {
	if p.take("returning") {
		p.expect("*")
		p.stmt.returning = true
	}
}

func (p *parser) assign() assign {
	name := p.word("a column")
	p.expect("=")
	return assign{name, p.expr()}
}

func (p *parser) column() {
	c := column{name: p.word("a column")}
	switch c.typ = p.word("a type"); c.typ {
	case "int", "text", "bool", "json":
	default:
		p.fail("int, text, bool or json")
	}
	if p.take("primary") {
		p.expect("key")
		c.key = true
	}
	p.stmt.columns = append(p.stmt.columns, c)
}

func (p *parser) expr() (e expr) {
	if p.depth++; p.depth > 100 {
		p.fail("an expression less deep")
	}
	defer func() { p.depth-- }()
	end, kind, text := p.peek()
	p.rest = p.rest[end:]
	switch kind {
	case 1:
		switch word := strings.ToLower(text); {
		case word == "null" || word == "true" || word == "false":
			e.literal = word
		case p.take("("):
			e.call = word
			p.list(func() { e.args = append(e.args, p.expr()) })
			p.expect(")")
		default:
			e.name = word
		}
	case 2:
		e.literal = text
	case 3:
		e.literal = quote(strings.ReplaceAll(text, "''", "'"))
	case 4:
		e.param, _ = strconv.Atoi(text)
		if e.param == 0 {
			p.fail("a parameter from $1 on")
		}
		p.stmt.params = max(p.stmt.params, e.param)
	default:
		p.fail("an expression")
	}
	return e
}
