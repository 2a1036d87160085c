package spec

import (
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A PrefixPart is a piece of a sink's prefix: a text, or the value of a column.
type PrefixPart struct {
	Text   string
	Column string // if set, Text is empty
}

// ParsePrefix reads a prefix such as orders/day={{day}}/.
func ParsePrefix(text string) ([]PrefixPart, error) {
	refuse := func(format string, args ...any) ([]PrefixPart, error) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "prefix %q "+format, append([]any{clip(text)}, args...)...)
	}
	var parts []PrefixPart
	for rest := text; rest != ""; {
		literal, after, opened := strings.Cut(rest, "{{")
		if strings.Contains(literal, "}}") {
			return refuse("has a }} that nothing opens; write the value of a column as {{column}}")
		}
		if literal != "" {
			parts = append(parts, PrefixPart{Text: literal})
		}
		if !opened {
			break
		}
		column, next, closed := strings.Cut(after, "}}")
		column = strings.TrimSpace(column)
		if !closed || column == "" || strings.Contains(column, "{{") {
			return refuse("has a {{ that is not closed over a column's name; write it as {{column}}")
		}
		parts = append(parts, PrefixPart{Column: column})
		rest = next
	}
	// Values are written so that they are one segment or a piece of one; any word
	// stands for them here.
	var flat strings.Builder
	for _, p := range parts {
		flat.WriteString(p.Text)
		if p.Column != "" {
			flat.WriteByte('v')
		}
	}
	if err := checkKey(flat.String()); err != "" {
		return refuse("%s", err)
	}
	return parts, nil
}

// checkKey says what is wrong with a prefix of keys; "" if nothing is. Below the
// client's own prefix there is no way out.
func checkKey(key string) string {
	switch {
	case len(key) > 512:
		return "is longer than 512 bytes"
	case strings.HasPrefix(key, "/"):
		return "begins with a slash; it is below the client's own prefix already"
	case strings.Contains(key, `\`):
		return "has a backslash; parts are separated by slashes"
	case strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "has a control character"
	}
	for i, segment := range strings.Split(key, "/") {
		if segment == "." || segment == ".." {
			return "has the segment " + segment + ", which keys must not have"
		}
		if segment == "" && key != "" && i < strings.Count(key, "/") {
			return "has two slashes in a row"
		}
	}
	return ""
}

// StaticPrefix is what all keys of a prefix begin with: what stands before its
// first column.
func StaticPrefix(text string) string {
	literal, _, _ := strings.Cut(text, "{{")
	return literal
}
