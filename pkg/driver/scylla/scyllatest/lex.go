package scyllatest

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/message"
)

// A failure carries an error for the client up to where the request is answered.
type failure struct{ reply message.Message }

func invalid(format string, args ...any) failure {
	return failure{&message.Invalid{ErrorMessage: fmt.Sprintf(format, args...)}}
}

func configError(format string, args ...any) failure {
	return failure{&message.ConfigError{ErrorMessage: fmt.Sprintf(format, args...)}}
}

// A syntaxError is what the parser does not know: CQL that is wrong, or CQL that
// this double does not speak.
type syntaxError string

func syntax(format string, args ...any) syntaxError { return syntaxError(fmt.Sprintf(format, args...)) }

type tokenKind uint8

const (
	tokEOF tokenKind = iota
	tokName
	tokQuoted
	tokString
	tokNumber
	tokBlob
	tokUUID
	tokDuration
	tokMark // ? or :name
	tokSign
)

type token struct {
	kind tokenKind
	text string // of names and strings without quotes; of words as written
	at   int
}

var (
	uuidRE     = regexp.MustCompile(`^(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	durationRE = regexp.MustCompile(`^(?i)(?:\d+(?:mo|ms|us|µs|ns|y|w|d|h|m|s))+`)
	numberRE   = regexp.MustCompile(`^\d+(?:\.\d+)?(?:[eE][+-]?\d+)?`)
	nameRE     = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]*`)
	markRE     = regexp.MustCompile(`^:(?:[a-zA-Z][a-zA-Z0-9_]*|"(?:[^"]|"")+")`)
	signs      = []string{"<=", ">=", "!=", "+=", "-=", "(", ")", "[", "]", "{", "}", ",", ".", ";", ":", "=", "<", ">", "+", "-", "*", "%", "/"}
)

// lex splits a statement. It panics with a syntaxError.
func lex(s string) (toks []token) {
	for at := 0; at < len(s); {
		rest := s[at:]
		add := func(k tokenKind, text string, size int) {
			toks = append(toks, token{k, text, at})
			at += size
		}
		switch c := rest[0]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			at++
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "//"):
			if n := strings.IndexByte(rest, '\n'); n >= 0 {
				at += n
			} else {
				at = len(s)
			}
		case strings.HasPrefix(rest, "/*"):
			n := strings.Index(rest, "*/")
			if n < 0 {
				panic(syntax("line 1:%d comment does not end", at))
			}
			at += n + 2
		case c == '\'' || c == '"':
			text, size, ok := unquote(rest, c)
			if !ok {
				panic(syntax("line 1:%d mismatched character '<EOF>' expecting set null", len(s)))
			}
			add(map[bool]tokenKind{true: tokString, false: tokQuoted}[c == '\''], text, size)
		case strings.HasPrefix(rest, "$$"):
			n := strings.Index(rest[2:], "$$")
			if n < 0 {
				panic(syntax("line 1:%d mismatched character '<EOF>' expecting '$'", len(s)))
			}
			add(tokString, rest[2:2+n], n+4)
		case c == '?':
			add(tokMark, "", 1)
		case markRE.MatchString(rest):
			m := markRE.FindString(rest)
			name := strings.ToLower(m[1:])
			if m[1] == '"' {
				name, _, _ = unquote(m[1:], '"')
			}
			add(tokMark, name, len(m))
		case uuidRE.MatchString(rest):
			m := uuidRE.FindString(rest)
			add(tokUUID, m, len(m))
		case c == '0' && len(rest) > 1 && (rest[1] == 'x' || rest[1] == 'X'):
			n := 2
			for n < len(rest) && strings.IndexByte("0123456789abcdefABCDEF", rest[n]) >= 0 {
				n++
			}
			add(tokBlob, rest[2:n], n)
		case c >= '0' && c <= '9':
			if m := durationRE.FindString(rest); m != "" {
				add(tokDuration, m, len(m))
			} else {
				m := numberRE.FindString(rest)
				add(tokNumber, m, len(m))
			}
		case nameRE.MatchString(rest):
			m := nameRE.FindString(rest)
			add(tokName, m, len(m))
		default:
			sign := ""
			for _, x := range signs {
				if strings.HasPrefix(rest, x) {
					sign = x
					break
				}
			}
			if sign == "" {
				panic(syntax("line 1:%d no viable alternative at character '%c'", at, []rune(rest)[0]))
			}
			add(tokSign, sign, len(sign))
		}
	}
	return append(toks, token{tokEOF, "<EOF>", len(s)})
}

// unquote reads what stands in quotes at the start of s, and its size with them.
func unquote(s string, quote byte) (text string, size int, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != quote {
			b.WriteByte(s[i])
		} else if i+1 < len(s) && s[i+1] == quote {
			b.WriteByte(quote)
			i++
		} else {
			return b.String(), i + 1, true
		}
	}
	return "", 0, false
}
