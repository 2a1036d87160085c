package changefeed

import (
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A glob is a pattern over table names: schema.table, where each part may hold
// * for any text and ? for any one character, or is quoted as in
// driver.TableName and then means itself. A part alone is a table of the schema
// public; * alone is every table.
type glob struct{ schema, table matcher }

// matcher is one part of a pattern.
type matcher struct {
	text   string
	quoted bool
}

const mostPattern = 256 // bytes

// parseGlob reads a pattern; its error is invalid_request at the field.
func parseGlob(field, text string) (glob, error) {
	fail := func() (glob, error) {
		return glob{}, athena.Errorf(athena.CodeInvalidRequest, `%s holds %.80q, which is no pattern of tables; write schema.table, with * for any text, such as public.*, a part with a dot or a blank in it as "in quotes"`, field, text).At(field)
	}
	if text == "*" {
		return glob{matcher{text: "*"}, matcher{text: "*"}}, nil
	}
	if len(text) > mostPattern {
		return fail()
	}
	first, rest, ok := parsePart(text)
	switch {
	case !ok:
		return fail()
	case rest == "":
		return glob{matcher{text: "public"}, first}, nil
	case rest[0] != '.':
		return fail()
	}
	second, rest, ok := parsePart(rest[1:])
	if !ok || rest != "" {
		return fail()
	}
	return glob{first, second}, nil
}

// Pattern is the pattern that matches just one table.
func Pattern(t driver.TableName) string {
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	return quote(t.Schema) + "." + quote(t.Table)
}

// parsePart takes the part that s begins with.
func parsePart(s string) (m matcher, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ".\"\t\r\n ,")
		if i < 0 {
			i = len(s)
		}
		return matcher{text: s[:i]}, s[i:], i > 0
	}
	end := 1
	for end < len(s) {
		if s[end] != '"' {
			end++
			continue
		}
		if !strings.HasPrefix(s[end:], `""`) {
			text := strings.ReplaceAll(s[1:end], `""`, `"`)
			return matcher{text, true}, s[end+1:], text != ""
		}
		end += 2
	}
	return m, "", false
}

func (g glob) match(t driver.TableName) bool {
	return g.schema.match(t.Schema) && g.table.match(t.Table)
}

// match walks the text once, and goes back to behind the last star at most.
func (m matcher) match(s string) bool {
	if m.quoted {
		return m.text == s
	}
	pattern, star, resume := []rune(m.text), -1, 0
	text := []rune(s)
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			resume++
			p, t = star+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// ShellTables are the names of tables as one word of a shell's command, which
// SplitTables reads.
func ShellTables(names ...string) string {
	text := strings.Join(names, ",")
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.,-", r)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// SplitTables reads a list of patterns that are separated by commas, as in a
// query string. A comma within quotes separates nothing.
func SplitTables(text string) []string {
	var list []string
	quoted, from := false, 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"':
			quoted = !quoted // a doubled quote changes it twice
		case text[i] == ',' && !quoted:
			list = append(list, strings.TrimSpace(text[from:i]))
			from = i + 1
		}
	}
	if text == "" {
		return nil
	}
	return append(list, strings.TrimSpace(text[from:]))
}
