package athena

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Redacted is what a Secret looks like from outside. A definition that is sent
// back with Redacted in a secret's place keeps the stored secret.
const Redacted = "***"

// A Secret holds a secret or a reference to one. It prints as "***" wherever
// fmt, slog or encoding/json meet it; Reveal is the one way to the text, so
// that every use can be found with a search.
//
// In a stored definition the text is a reference: env:NAME, file:PATH or
// sealed:DATA. A literal is sealed when its definition is saved. Where a
// backend is opened, and nowhere else, references are replaced by what they
// stand for.
type Secret struct {
	text *string // a pointer, since fmt calls no methods on unexported fields
}

// NewSecret makes a Secret of a reference or a literal.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// Reveal returns the text. Callers must not log, store or show it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether no secret is set.
func (s Secret) IsZero() bool { return s.text == nil }

// Equal reports whether both hold the same text.
func (s Secret) Equal(o Secret) bool { return s.Reveal() == o.Reveal() }

// A SecretKind says where a secret's text is to be found.
type SecretKind string

// The kinds of secrets; a literal has no prefix.
const (
	SecretLiteral SecretKind = ""
	SecretEnv     SecretKind = "env"
	SecretFile    SecretKind = "file"
	SecretSealed  SecretKind = "sealed"
)

// Reference splits the text into its kind and what follows the colon; a
// literal's value is the whole text.
func (s Secret) Reference() (SecretKind, string) {
	text := s.Reveal()
	for _, kind := range []SecretKind{SecretEnv, SecretFile, SecretSealed} {
		if rest, ok := strings.CutPrefix(text, string(kind)+":"); ok {
			return kind, rest
		}
	}
	return SecretLiteral, text
}

// Format prints "***" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.redacted()) }

// LogValue prints "***".
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.redacted()) }

// MarshalText gives "***", or nothing for an empty Secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.redacted()), nil }

// UnmarshalText takes a reference or a literal.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}

func (s Secret) redacted() string {
	if s.text == nil {
		return ""
	}
	return Redacted
}
