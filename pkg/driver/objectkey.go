package driver

import (
	"strings"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// MaxKey is the most bytes that a key has, its prefix included.
const MaxKey = 1024

// CleanKey returns the name in its bucket of the object with this key: prefix
// and key. A key is UTF-8 text of segments parted by "/", of which the last may
// be empty and no other; no segment is "." or "..", and there are no control
// characters, nor U+FFFE and U+FFFF, which the protocol cannot carry. What it
// holds stands for itself: "%2e" is three characters. So what names one object
// here names no other one behind a proxy or on a file system, and nothing
// outside of the prefix.
//
// Errors are invalid_request at the field key.
func CleanKey(prefix, key string) (string, error) {
	if why := unclean(prefix, key); why != "" {
		return "", refuseKey("key", key, why)
	}
	return prefix + key, nil
}

// CleanPrefix is CleanKey for the prefix of a listing, at the field prefix: it
// may be empty and end within a segment.
func CleanPrefix(prefix, of string) (string, error) {
	if of == "" {
		return prefix, nil
	}
	if why := unclean(prefix, of); why != "" {
		return "", refuseKey("prefix", of, why)
	}
	return prefix + of, nil
}

func refuseKey(field, key, why string) error {
	return athena.Errorf(athena.CodeInvalidRequest, "%s %.120q %s", field, key, why).At(field)
}

// unclean says what is wrong with a key.
func unclean(prefix, key string) string {
	switch {
	case key == "":
		return "is empty; name an object"
	case len(prefix)+len(key) > MaxKey:
		return "is too long; with the client's prefix it may have 1024 bytes"
	case !utf8.ValidString(key):
		return "is not UTF-8"
	case strings.ContainsFunc(key, unprintable):
		return "holds a control character; leave it out"
	case key[0] == '/':
		return `begins with "/"; keys are relative to the client's prefix`
	}
	rest := key
	for {
		segment, after, more := strings.Cut(rest, "/")
		switch {
		case segment == "." || segment == "..":
			return `has a segment that is "." or ".."; name the object itself`
		case segment == "" && more:
			return `has an empty segment; write one "/" between two names`
		case !more:
			return ""
		}
		rest = after
	}
}

func unprintable(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff
}
