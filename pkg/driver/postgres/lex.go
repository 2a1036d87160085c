package postgres

import "strings"

// tokenKind is what the lexer tells apart; the classifier needs no more.
type tokenKind uint8

const (
	tokenEnd    tokenKind = iota
	tokenWord             // a keyword or an unquoted identifier, in lower case
	tokenQuoted           // a quoted identifier, without its quotes
	tokenString           // a string, bit string or dollar-quoted constant
	tokenOther            // a number, a parameter, an operator, punctuation
	tokenBroken           // a string, identifier or comment that does not end
)

type token struct {
	kind tokenKind
	text string
}

func (t token) is(word string) bool { return t.kind == tokenWord && t.text == word }

// A lexer splits a statement as PostgreSQL's scanner does with
// standard_conforming_strings on.
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
		return token{}
	}
	start := l.pos
	c := l.src[start]
	switch {
	case c == '\'':
		return l.quoted('\'', false, tokenString)
	case c == '"':
		return l.quoted('"', false, tokenQuoted)
	case c == '$':
		return l.dollar()
	case isLetter(c):
		if start+1 < len(l.src) && l.src[start+1] == '\'' {
			switch c {
			case 'e', 'E':
				l.pos++
				return l.quoted('\'', true, tokenString)
			case 'b', 'B', 'x', 'X', 'n', 'N':
				l.pos++
				return l.quoted('\'', false, tokenString)
			}
		}
		if rest := l.src[start:]; len(rest) > 2 && (c == 'u' || c == 'U') && rest[1] == '&' {
			if rest[2] == '\'' || rest[2] == '"' {
				l.pos += 2
				kind := tokenString
				if rest[2] == '"' {
					kind = tokenQuoted
				}
				return l.quoted(rest[2], false, kind)
			}
		}
		for l.pos < len(l.src) && isWordPart(l.src[l.pos]) {
			l.pos++
		}
		return token{tokenWord, strings.ToLower(l.src[start:l.pos])}
	case c >= '0' && c <= '9':
		// 1e5 and 0xff are one token, and so is the junk after a number that
		// the server refuses.
		for l.pos < len(l.src) && (isWordPart(l.src[l.pos]) || l.src[l.pos] == '.') {
			l.pos++
		}
		return token{tokenOther, l.src[start:l.pos]}
	}
	l.pos++
	return token{tokenOther, l.src[start:l.pos]}
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isWordPart(c byte) bool { return isLetter(c) || c >= '0' && c <= '9' || c == '$' }

func (l *lexer) broken() token {
	l.pos = len(l.src)
	return token{kind: tokenBroken}
}

// skipBlank passes over white space and comments, which nest. It reports false
// for a comment that does not end.
func (l *lexer) skipBlank() bool {
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		switch {
		case strings.IndexByte(" \t\n\r\f\v", rest[0]) >= 0:
			l.pos++
		case strings.HasPrefix(rest, "--"):
			end := strings.IndexAny(rest, "\r\n")
			if end < 0 {
				end = len(rest)
			}
			l.pos += end
		case strings.HasPrefix(rest, "/*"):
			depth := 0
			for i := 0; ; {
				switch {
				case i >= len(rest):
					return false
				case strings.HasPrefix(rest[i:], "/*"):
					depth++
					i += 2
				case strings.HasPrefix(rest[i:], "*/"):
					depth--
					i += 2
				default:
					i++
				}
				if depth == 0 {
					l.pos += i
					break
				}
			}
		default:
			return true
		}
	}
	return true
}

// quoted reads a quoted token whose opening quote is at pos. A doubled quote
// stands for one; in E” strings a backslash takes the next byte with it. A
// string goes on in a second pair of quotes after a line break, and in the same
// way: without that rule a part of an E” string could pose as a plain one.
func (l *lexer) quoted(quote byte, escapes bool, kind tokenKind) token {
	var text strings.Builder
	for {
		l.pos++ // the opening quote
		start := l.pos
		for {
			if l.pos >= len(l.src) {
				return l.broken()
			}
			c := l.src[l.pos]
			if c == '\\' && escapes {
				l.pos += 2
				continue
			}
			if c != quote {
				l.pos++
				continue
			}
			if l.pos+1 < len(l.src) && l.src[l.pos+1] == quote {
				l.pos += 2
				continue
			}
			break
		}
		text.WriteString(l.src[start:l.pos])
		l.pos++ // the closing quote
		if kind != tokenString || !l.continues() {
			return token{kind, strings.ReplaceAll(text.String(), string([]byte{quote, quote}), string(quote))}
		}
	}
}

// continues reports whether a string goes on after white space that holds a
// line break, and moves to its next quote.
func (l *lexer) continues() bool {
	lineBreak := false
	for i := l.pos; i < len(l.src); i++ {
		switch c := l.src[i]; {
		case c == '\n' || c == '\r':
			lineBreak = true
		case c == ' ' || c == '\t' || c == '\f' || c == '\v':
		case c == '-' && strings.HasPrefix(l.src[i:], "--"):
			end := strings.IndexAny(l.src[i:], "\r\n")
			if end < 0 {
				return false
			}
			i += end - 1
		case c == '\'' && lineBreak:
			l.pos = i
			return true
		default:
			return false
		}
	}
	return false
}

// dollar reads a dollar-quoted constant, a parameter, or a lone dollar.
func (l *lexer) dollar() token {
	start := l.pos
	end := start + 1
	for end < len(l.src) && isWordPart(l.src[end]) && l.src[end] != '$' {
		end++
	}
	tag := l.src[start+1 : end]
	if end < len(l.src) && l.src[end] == '$' && (tag == "" || isLetter(tag[0])) {
		delimiter := l.src[start : end+1]
		body := l.src[end+1:]
		i := strings.Index(body, delimiter)
		if i < 0 {
			return l.broken()
		}
		l.pos = end + 1 + i + len(delimiter)
		return token{tokenString, body[:i]}
	}
	if tag != "" && tag[0] >= '0' && tag[0] <= '9' {
		l.pos = end // $1
	} else {
		l.pos = start + 1
	}
	return token{tokenOther, l.src[start:l.pos]}
}
