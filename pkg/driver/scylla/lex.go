package scylla

import "strings"

// tokenKind is what the lexer tells apart; the classifier needs no more.
type tokenKind uint8

const (
	tokenEnd    tokenKind = iota
	tokenWord             // a keyword or an unquoted name, in lower case
	tokenQuoted           // a quoted name, without its quotes
	tokenString           // a string, in quotes or between $$
	tokenNumber           // a number, a UUID, a blob
	tokenOther            // a parameter, an operator, punctuation: one character
	tokenBroken           // a string, name or comment that does not end
)

// A token is a piece of a statement; it stands from start to end.
type token struct {
	kind       tokenKind
	text       string
	start, end int
}

func (t token) is(word string) bool { return t.kind == tokenWord && t.text == word }
func (t token) op(c string) bool    { return t.kind == tokenOther && t.text == c }
func (t token) name() bool          { return t.kind == tokenWord || t.kind == tokenQuoted }

// A lexer splits a statement as CQL's grammar does.
type lexer struct {
	src string
	pos int
}

// next returns the next token, or tokenEnd for ever.
func (l *lexer) next() token {
	if !l.skipBlank() {
		return l.broken()
	}
	if l.pos >= len(l.src) {
		return token{start: l.pos, end: l.pos}
	}
	start, rest := l.pos, l.src[l.pos:]
	cut := func(kind tokenKind, n int) token {
		l.pos += n
		return token{kind, rest[:n], start, l.pos}
	}
	c := rest[0]
	switch {
	case c == '\'':
		return l.quoted('\'', tokenString)
	case c == '"':
		return l.quoted('"', tokenQuoted)
	case strings.HasPrefix(rest, "$$"):
		body, _, ok := strings.Cut(rest[2:], "$$")
		if !ok {
			return l.broken()
		}
		t := cut(tokenString, len(body)+4)
		t.text = body
		return t
	case isUUID(rest):
		return cut(tokenNumber, uuidLength)
	case c >= '0' && c <= '9':
		return cut(tokenNumber, numberLength(rest))
	case isLetter(c):
		n := 1
		for n < len(rest) && isWordPart(rest[n]) {
			n++
		}
		t := cut(tokenWord, n)
		t.text = strings.ToLower(t.text)
		return t
	}
	return cut(tokenOther, 1)
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isWordPart(c byte) bool { return isLetter(c) || c >= '0' && c <= '9' }

const uuidLength = 36

// isUUID reports whether s begins with a UUID, which stands without quotes.
func isUUID(s string) bool {
	if len(s) < uuidLength {
		return false
	}
	for i := range uuidLength {
		c := s[i] | 0x20
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (s[i] == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// numberLength is how long the number is that s begins with; 1e-5 and 0xff are one
// token, and so is what the server refuses, such as 1x.
func numberLength(s string) int {
	n := 0
	for n < len(s) {
		switch c := s[n]; {
		case isWordPart(c), c == '.':
		case (c == '+' || c == '-') && s[n-1]|0x20 == 'e' && !strings.HasPrefix(s, "0x"):
		default:
			return n
		}
		n++
	}
	return n
}

func (l *lexer) broken() token {
	start := l.pos
	l.pos = len(l.src)
	return token{kind: tokenBroken, start: start, end: l.pos}
}

// skipBlank passes over white space and comments, which do not nest. It reports
// false for a comment that does not end.
func (l *lexer) skipBlank() bool {
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		switch {
		case strings.IndexByte(" \t\n\r\f\v", rest[0]) >= 0:
			l.pos++
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "//"):
			end := strings.IndexAny(rest, "\r\n")
			if end < 0 {
				end = len(rest)
			}
			l.pos += end
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				return false
			}
			l.pos += end + 4
		default:
			return true
		}
	}
	return true
}

// quoted reads what stands in quotes; a doubled quote stands for one.
func (l *lexer) quoted(quote byte, kind tokenKind) token {
	start := l.pos
	for i := start + 1; i < len(l.src); i++ {
		if l.src[i] != quote {
			continue
		}
		if i+1 < len(l.src) && l.src[i+1] == quote {
			i++
			continue
		}
		l.pos = i + 1
		one := string(quote)
		return token{kind, strings.ReplaceAll(l.src[start+1:i], one+one, one), start, l.pos}
	}
	return l.broken()
}
