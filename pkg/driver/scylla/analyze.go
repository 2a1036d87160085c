package scylla

import (
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// analysis is what the text of a statement tells.
type analysis struct {
	driver.Analysis
	// empty: there is nothing but white space and comments. broken: a string, name
	// or comment does not end.
	empty, broken bool
	// text is the statement without what stands around it, in the form by which
	// gocql tells that it is to be prepared.
	text string
	// prepared: it is a SELECT, INSERT, UPDATE, DELETE or BATCH, which take
	// parameters. markers are where: the places of ? in text.
	prepared bool
	markers  []int
	// single: it writes to one partition at most and asks for nothing before, so
	// that what the coordinator refuses was not begun.
	single bool
}

// analyze classifies a statement. It errs on the side of Write: a statement is a
// Read only if its first word says so.
//
// A write is idempotent if, made again at the same time, it writes the same cells.
// That is not so of conditions (IF), of counters and lists that are added to, of
// lists and what is at an index of one, and of values that the server makes, such
// as now(). What cannot be told from the text counts as such, but for parameters: of
// these ArraysAdd speaks.
func analyze(text string) analysis {
	tokens, broken := scan(text)
	a := analysis{broken: broken, empty: len(tokens) == 0 && !broken, text: text}
	a.Effect = driver.Write
	if broken || a.empty {
		return a
	}
	var rest []token
	if tokens, rest = cutStatement(tokens); len(rest) > 0 {
		a.refuse("the text holds more than one statement; send them one by one, or writes in a BATCH")
		return a
	}
	a.classify(tokens)
	a.ArraysAdd = a.Effect == driver.Write && a.Idempotent
	a.normalize(text, tokens)
	return a
}

func scan(text string) (tokens []token, broken bool) {
	l := lexer{src: text}
	for {
		switch t := l.next(); t.kind {
		case tokenEnd:
			return tokens, false
		case tokenBroken:
			return nil, true
		default:
			tokens = append(tokens, t)
		}
	}
}

// cutStatement parts the first statement from what comes behind its semicolon. A
// batch ends with APPLY BATCH and holds semicolons.
func cutStatement(tokens []token) (statement, rest []token) {
	end := slices.IndexFunc(tokens, func(t token) bool { return t.op(";") })
	if tokens[0].is("begin") {
		end = -1
		for i := range tokens[1:] {
			if tokens[i].is("apply") && tokens[i+1].is("batch") {
				end = i + 2
				break
			}
		}
	}
	if end < 0 || end >= len(tokens) {
		return tokens, nil
	}
	statement, rest = tokens[:end], tokens[end:]
	for len(rest) > 0 && rest[0].op(";") {
		rest = rest[1:]
	}
	return statement, rest
}

func (a *analysis) refuse(reason string) {
	a.Effect, a.Reason = driver.Refused, reason
}

func (a *analysis) classify(tokens []token) {
	if len(tokens) == 0 { // nothing but semicolons
		return
	}
	switch first := tokens[0]; {
	case first.is("select"):
		a.Effect, a.Idempotent, a.prepared = driver.Read, true, true
	case first.is("list"), first.is("describe"), first.is("desc"):
		a.Effect, a.Idempotent = driver.Read, true
	case first.is("use"):
		a.refuse("USE would change the connection for others; write the keyspace before the name of the table")
	case first.is("insert"), first.is("update"), first.is("delete"):
		a.prepared = true
		a.Idempotent = idempotent(tokens)
		a.single = !slices.ContainsFunc(tokens, func(t token) bool { return t.is("if") || t.is("in") })
	case first.is("begin"):
		a.prepared = tokens[len(tokens)-1].is("batch")
		a.Idempotent = a.prepared && !tokens[1].is("counter") && idempotent(tokens)
	}
}

// idempotent looks for what makes a write another one when it is made again.
func idempotent(tokens []token) bool {
	at := func(i int) token {
		if i < 0 || i >= len(tokens) {
			return token{}
		}
		return tokens[i]
	}
	for i, t := range tokens {
		switch before, after := at(i-1), at(i+1); {
		case t.is("if"):
			return false
		case t.is("json") && (after.kind != tokenString || strings.Contains(after.text, "[")):
			return false // it may write a list
		case t.op("(") && before.name() && !isTarget(tokens, i-1) && !isPure(before):
			return false
		case t.op("["):
			// m['a'] is in a map; l[0] may be in a list, and so may what is no index.
			if !before.name() || after.kind != tokenString || !at(i+2).op("]") {
				return false
			}
		case t.op("+"), t.op("-"):
			// s + {1} adds to a set or a map: nothing else is written in braces.
			if after.op("=") {
				after = at(i + 2)
			}
			sign := t.op("-") && before.kind == tokenOther && !before.op("?") && !before.op(")") && !before.op("]") && !before.op("}")
			if !sign && !(before.name() && after.op("{")) {
				return false
			}
		}
	}
	return true
}

// isTarget reports whether the name at i is that of the table in INSERT INTO
// keyspace.table (…).
func isTarget(tokens []token, i int) bool {
	for i >= 2 && tokens[i-1].op(".") {
		i -= 2
	}
	return i > 0 && tokens[i-1].is("into")
}

// isPure reports whether the word before a parenthesis is a keyword, or a function
// that gives the same value for the same arguments.
func isPure(t token) bool {
	if t.kind != tokenWord {
		return false
	}
	switch t.text {
	case "values", "in", "and", "where", "set", "or", "not",
		"token", "cast", "dateof", "unixtimestampof", "todate", "totimestamp", "tounixtimestamp", "mintimeuuid", "maxtimeuuid",
		"to_date", "to_timestamp", "to_unix_timestamp", "min_timeuuid", "max_timeuuid":
		return true
	}
	return strings.HasSuffix(t.text, "asblob") || strings.HasPrefix(t.text, "blobas") ||
		strings.HasSuffix(t.text, "_as_blob") || strings.HasPrefix(t.text, "blob_as_")
}

// normalize gives text the form by which gocql tells what is to be prepared: the
// first word between white space, and the last one of a batch. A statement that it
// does not see as such would be sent without its parameters.
func (a *analysis) normalize(text string, tokens []token) {
	if !a.prepared || len(tokens) < 2 {
		return
	}
	first, last := tokens[0], tokens[len(tokens)-1]
	head, body := text[first.start:first.end], text[first.end:last.start]
	shift := -first.start
	if !strings.HasPrefix(body, " ") {
		body = " " + body
		shift++
	}
	if !strings.HasSuffix(body, " ") && last.is("batch") {
		body += " "
	}
	a.text = head + body + text[last.start:last.end]
	for _, t := range tokens {
		if t.op("?") {
			a.markers = append(a.markers, t.start+shift)
		}
	}
}
