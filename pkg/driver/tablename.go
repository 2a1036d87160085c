package driver

import (
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A TableName names a table. As text it is schema.table, a part in double
// quotes where it holds a dot, a quote, a blank, a comma or a star.
type TableName struct{ Schema, Table string }

// ParseTableName reads what String writes. Without a schema it is public's.
func ParseTableName(text string) (TableName, error) {
	fail := func() (TableName, error) {
		return TableName{}, athena.Errorf(athena.CodeInvalidRequest, `table %.80q is not understood; write it as schema.table, a part with a dot or a blank in it as "in quotes"`, text)
	}
	var parts []string
	for rest := text; ; {
		part, after, ok := namePart(rest)
		if !ok || part == "" || len(parts) == 2 {
			return fail()
		}
		parts = append(parts, part)
		if after == "" {
			break
		}
		if rest, ok = strings.CutPrefix(after, "."); !ok {
			return fail()
		}
	}
	if len(parts) == 1 {
		return TableName{"public", parts[0]}, nil
	}
	return TableName{parts[0], parts[1]}, nil
}

// namePart takes the part that s begins with.
func namePart(s string) (part, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, "."+special)
		if i < 0 {
			return s, "", true
		}
		return s[:i], s[i:], s[i] == '.'
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] != '"':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == '"':
			b.WriteByte('"')
			i++
		default:
			return b.String(), s[i+1:], true
		}
	}
	return "", "", false
}

const special = "\"\t\r\n ,*"

// String writes the name as ParseTableName reads it.
func (t TableName) String() string { return quotePart(t.Schema) + "." + quotePart(t.Table) }

func quotePart(s string) string {
	if s != "" && !strings.ContainsAny(s, "."+special) {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// MarshalText is String.
func (t TableName) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseTableName.
func (t *TableName) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTableName(string(text))
	return err
}
