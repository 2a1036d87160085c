package record

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// A SyntaxError says that something is not the JSON that it should be.
type SyntaxError struct {
	At     int // byte
	Reason string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("byte %d: %s", e.At, e.Reason) }

// maxDepth is that of encoding/json.
const maxDepth = 10000

// A scanner passes over JSON. Its methods begin where the thing that they read
// does, and leave i behind it, or where it goes wrong.
type scanner struct {
	s []byte
	i int
}

func (d *scanner) fail(reason string) error { return &SyntaxError{At: d.i, Reason: reason} }

// peek is the next byte; 0 at the end.
func (d *scanner) peek() byte {
	if d.i < len(d.s) {
		return d.s[d.i]
	}
	return 0
}

func (d *scanner) blank() {
	for d.i < len(d.s) && (d.s[d.i] == ' ' || d.s[d.i] == '\t' || d.s[d.i] == '\n' || d.s[d.i] == '\r') {
		d.i++
	}
}

// next goes to an object's or array's next item; false if it has ended.
func (d *scanner) next(first bool, end byte) (more bool, err error) {
	if first {
		d.i++
		if d.blank(); d.peek() == end {
			d.i++
			return false, nil
		}
		return true, nil
	}
	d.blank()
	switch d.peek() {
	case ',':
		d.i++
		d.blank()
		return true, nil
	case end:
		d.i++
		return false, nil
	}
	if d.i >= len(d.s) {
		return false, d.fail("it ends in the middle")
	}
	return false, d.fail("a comma or the end was expected")
}

// name reads the name of a member and goes to its value.
func (d *scanner) name() (raw []byte, escaped bool, err error) {
	if d.peek() != '"' {
		return nil, false, d.fail("a name in quotes was expected")
	}
	if raw, escaped, err = d.quoted(); err != nil {
		return nil, false, err
	}
	if d.peek() != ':' {
		if d.blank(); d.peek() != ':' {
			return nil, false, d.fail("a colon was expected")
		}
	}
	d.i++
	d.blank()
	return raw, escaped, nil
}

// ordinary has the bytes that neither end a string nor need a look.
var ordinary = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return set
}()

// quoted reads a string and returns what stands between its quotes.
func (d *scanner) quoted() (raw []byte, escaped bool, err error) {
	s, from := d.s, d.i+1
	for i := from; i < len(s); i++ {
		c := s[i]
		if ordinary[c] {
			continue
		}
		if c == '"' {
			d.i = i + 1
			return s[from:i], escaped, nil
		}
		if d.i = i; c != '\\' {
			return nil, false, d.fail("a control character stands in a string")
		}
		escaped = true
		n := escapeLen(s[i:])
		if n == 0 {
			return nil, false, d.fail("a backslash begins nothing that is known")
		}
		i += n - 1
	}
	d.i = len(s)
	return nil, false, d.fail("a string does not end")
}

// escapeLen is the length of the escape that s begins with; 0 if it is none.
func escapeLen(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) >= 6 && hex4(s[2:6]) >= 0 {
			return 6
		}
	}
	return 0
}

func hex4(s []byte) (r rune) {
	for _, c := range s[:4] {
		n := unhex(c)
		if n < 0 {
			return -1
		}
		r = r<<4 | rune(n)
	}
	return r
}

func unhex(c byte) int {
	switch {
	case c-'0' <= 9:
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// appendUnescaped appends what a string stands for. False if it has half of a
// character of two halves.
func appendUnescaped(dst, raw []byte) ([]byte, bool) {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...), true
		}
		dst = append(dst, raw[:i]...)
		c := raw[i+1]
		raw = raw[i+2:]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := hex4(raw)
			raw = raw[4:]
			if r&0xFC00 == 0xD800 && len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
				if low := hex4(raw[2:]); low&0xFC00 == 0xDC00 {
					r = 0x10000 + (r&0x3FF)<<10 | low&0x3FF
					raw = raw[6:]
				}
			}
			if r >= 0xD800 && r < 0xE000 {
				return dst, false
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
}

// value passes over a value of any type.
func (d *scanner) value(depth int) (err error) {
	if depth > maxDepth {
		return d.fail("it is nested too deeply")
	}
	switch d.peek() {
	case '{':
		for first, more := true, true; ; first = false {
			if more, err = d.next(first, '}'); err != nil || !more {
				return err
			}
			if _, _, err = d.name(); err != nil {
				return err
			}
			if err = d.value(depth + 1); err != nil {
				return err
			}
		}
	case '[':
		for first, more := true, true; ; first = false {
			if more, err = d.next(first, ']'); err != nil || !more {
				return err
			}
			if err = d.value(depth + 1); err != nil {
				return err
			}
		}
	case '"':
		_, _, err = d.quoted()
		return err
	case 't':
		return d.literal("true")
	case 'f':
		return d.literal("false")
	case 'n':
		return d.literal("null")
	}
	return d.number()
}

func (d *scanner) literal(word string) error {
	if len(d.s)-d.i < len(word) || string(d.s[d.i:d.i+len(word)]) != word {
		return d.fail("a value was expected")
	}
	d.i += len(word)
	return nil
}

func (d *scanner) number() error {
	if d.peek() == '-' {
		d.i++
	}
	if d.peek() == '0' {
		d.i++
	} else if !d.digits() {
		return d.fail("a value was expected")
	}
	if d.peek() == '.' {
		if d.i++; !d.digits() {
			return d.fail("a digit was expected")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.i++
		if c := d.peek(); c == '+' || c == '-' {
			d.i++
		}
		if !d.digits() {
			return d.fail("a digit was expected")
		}
	}
	return nil
}

func (d *scanner) digits() bool {
	from := d.i
	for d.i < len(d.s) && d.s[d.i]-'0' <= 9 {
		d.i++
	}
	return d.i > from
}
