package cdc

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// An Encoder appends changes of one client as athena envelopes. The zero value
// is not ready; use NewEncoder. It is not safe for concurrent use.
type Encoder struct {
	client []byte // ,"client":"…"
	tail   int    // how many bytes of the last change stand behind its tx.n
}

// NewEncoder returns an encoder for changes of the client.
func NewEncoder(client string) *Encoder {
	return &Encoder{client: AppendString([]byte(`,"client":`), client)}
}

// Append appends c as one JSON object without a line break (law 3). It takes no
// memory but dst's. Fields come in the order of Change, whose Client is not
// looked at; readers of Athena's own streams may rely on pos and op being first.
//
// Positions must be valid, the op one of Ops, and Key, Before, After, Delta and
// Range JSON objects without line breaks.
func (e *Encoder) Append(dst []byte, c *Change) []byte {
	dst = append(dst, `{"pos":"`...)
	dst = append(dst, c.Pos...)
	dst = append(dst, `","op":"`...)
	dst = append(dst, c.Op...)
	dst = append(dst, '"')
	dst = append(dst, e.client...)
	if c.Schema != "" || c.Table != "" {
		dst = AppendString(append(dst, `,"schema":`...), c.Schema)
		dst = AppendString(append(dst, `,"table":`...), c.Table)
	}
	dst = appendRaw(dst, `,"key":`, c.Key)
	dst = appendRaw(dst, `,"before":`, c.Before)
	dst = appendRaw(dst, `,"after":`, c.After)
	if len(c.Unchanged) > 0 {
		sep := `,"unchanged":[`
		for _, name := range c.Unchanged {
			dst = AppendString(append(dst, sep...), name)
			sep = ","
		}
		dst = append(dst, ']')
	}
	dst = appendRaw(dst, `,"delta":`, c.Delta)
	dst = appendRaw(dst, `,"range":`, c.Range)
	dst = appendNumber(dst, `,"writetime":`, c.WriteTime)
	dst = appendNumber(dst, `,"ttl":`, c.TTL)
	if c.Late {
		dst = append(dst, `,"late":true`...)
	}
	e.tail = 0
	if t := c.Tx; t != nil {
		dst = AppendString(append(dst, `,"tx":{"id":`...), t.ID)
		dst = append(dst, `,"pos":"`...)
		dst = append(dst, t.Pos...)
		dst = append(dst, `","n":`...)
		dst = strconv.AppendUint(dst, t.N, 10)
		e.tail = len(dst)
		if t.Last {
			dst, e.tail = append(dst, last...), 0 // it is marked
		}
		dst = append(dst, `,"at":"`...)
		dst = appendTime(dst, t.At)
		dst = append(dst, `"}`...)
	}
	dst = appendNumber(dst, `,"schema_version":`, int64(c.SchemaVersion))
	if c.Op == Schema {
		dst = appendColumns(dst, c.Columns)
	}
	if c.Op == Message {
		dst = AppendString(append(dst, `,"prefix":`...), c.Prefix)
		dst = appendBase64(append(dst, `,"content":`...), c.Content)
	}
	dst = append(dst, '}')
	if e.tail > 0 {
		e.tail = len(dst) - e.tail
	}
	return dst
}

const last = `,"last":true`

// MarkLast says of the change that dst ends with, and that Append wrote last,
// that it is the last of its transaction. It does nothing to a change without a
// transaction, and to one that says so already.
func (e *Encoder) MarkLast(dst []byte) []byte {
	if e.tail == 0 {
		return dst
	}
	at := len(dst) - e.tail
	e.tail = 0
	dst = append(dst, last...)
	copy(dst[at+len(last):], dst[at:])
	copy(dst[at:], last)
	return dst
}

func appendRaw(dst []byte, name string, raw json.RawMessage) []byte {
	if raw == nil {
		return dst
	}
	return append(append(dst, name...), raw...)
}

func appendNumber(dst []byte, name string, n int64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, name...), n, 10)
}

func appendBase64(dst, content []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(dst, '"'), content), '"')
}

func appendColumns(dst []byte, columns []Column) []byte {
	dst = append(dst, `,"columns":[`...)
	for i, c := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(append(dst, `{"name":`...), c.Name)
		dst = AppendString(append(dst, `,"type":`...), c.Type)
		if c.Key {
			dst = append(dst, `,"key":true`...)
		}
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

// appendTime is RFC 3339 in UTC, always with microseconds.
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = appendPadded(dst, year, 4)
	dst = appendPadded(append(dst, '-'), int(month), 2)
	dst = appendPadded(append(dst, '-'), day, 2)
	dst = appendPadded(append(dst, 'T'), hour, 2)
	dst = appendPadded(append(dst, ':'), minute, 2)
	dst = appendPadded(append(dst, ':'), second, 2)
	dst = appendPadded(append(dst, '.'), t.Nanosecond()/1000, 6)
	return append(dst, 'Z')
}

func appendPadded(dst []byte, n, width int) []byte {
	for scale := pow10(width - 1); scale > 0; scale /= 10 {
		dst = append(dst, byte('0'+n/scale%10))
	}
	return dst
}

func pow10(n int) int {
	p := 1
	for range n {
		p *= 10
	}
	return p
}

const hexDigits = "0123456789abcdef"

// plain has the bytes that stand for themselves in a JSON string.
var plain = func() (set [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		set[c] = c != '"' && c != '\\'
	}
	return set
}()

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD.
func AppendString[T string | []byte](dst []byte, s T) []byte {
	return append(appendText(append(dst, '"'), s), '"')
}

// appendText is AppendString without the quotes.
func appendText[T string | []byte](dst []byte, s T) []byte {
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(dst, s[from:i]...)
			dst = append(dst, `\ufffd`...)
		} else {
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, `\n`...)
			case '\r':
				dst = append(dst, `\r`...)
			case '\t':
				dst = append(dst, `\t`...)
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
		i++
		from = i
	}
	return append(dst, s[from:]...)
}
