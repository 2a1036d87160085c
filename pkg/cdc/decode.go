package cdc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"unicode/utf8"
)

// Lines yields the lines of NDJSON, such as the body of a message of a stream,
// without their ends. Empty lines are left out.
func Lines(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			line, rest, _ := bytes.Cut(data, []byte("\n"))
			data = rest
			if line = bytes.TrimSuffix(line, []byte("\r")); len(line) > 0 && !yield(line) {
				return
			}
		}
	}
}

// Decode reads one change in the athena envelope into c, all of whose fields it
// sets. Key, Before, After, Delta and Range become slices of line; other memory that c has is
// used again, so a caller that keeps a change decodes the next one into another.
//
// Members that it does not know are skipped. What it knows must be of the right
// type, and pos and op must be there; an op that it does not know is refused,
// since a reader could only guess what it does to a row. After an error c is of
// no use.
func Decode(line []byte, c *Change) error {
	d := decoder{s: line}
	if !utf8.Valid(line) {
		return errors.New("cdc: a change is not UTF-8")
	}
	if err := d.change(c); err != nil {
		return fmt.Errorf("cdc: a change cannot be read at byte %d of %d: %w", d.i, len(line), err)
	}
	return nil
}

// decoder reads JSON without line breaks (law 3). Its methods begin where the
// thing that they read does, and leave i behind it.
type decoder struct {
	s []byte
	i int
}

var (
	errSyntax = errors.New("it is not JSON on one line")
	errType   = errors.New("the value is not of the type that belongs there")
	errDeep   = errors.New("it is nested too deeply")
)

// maxDepth is that of encoding/json.
const maxDepth = 10000

func (d *decoder) change(c *Change) error {
	tx, unchanged, columns, content := c.Tx, c.Unchanged, c.Columns, c.Content
	*c = Change{Pos: c.Pos, Client: c.Client, Schema: c.Schema, Table: c.Table, Prefix: c.Prefix}
	var has struct{ pos, client, schema, table, prefix bool }
	d.blank()
	for first := true; ; first = false {
		name, more, err := d.member(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		switch string(name) {
		case "pos":
			has.pos = true
			c.Pos, err = d.position(c.Pos)
		case "op":
			c.Op, err = d.op()
		case "client":
			has.client = true
			c.Client, err = d.text(c.Client)
		case "schema":
			has.schema = true
			c.Schema, err = d.text(c.Schema)
		case "table":
			has.table = true
			c.Table, err = d.text(c.Table)
		case "key":
			c.Key, err = d.object()
		case "before":
			c.Before, err = d.object()
		case "after":
			c.After, err = d.object()
		case "unchanged":
			c.Unchanged, err = d.texts(unchanged[:0])
		case "delta":
			c.Delta, err = d.object()
		case "range":
			c.Range, err = d.object()
		case "writetime":
			c.WriteTime, err = d.integer()
		case "ttl":
			c.TTL, err = d.integer()
		case "late":
			c.Late, err = d.boolean()
		case "tx":
			if c.Tx = tx; tx == nil {
				c.Tx = new(Transaction)
			}
			err = d.transaction(c.Tx)
		case "schema_version":
			var n uint64
			n, err = d.count(strconv.IntSize - 1)
			c.SchemaVersion = int(n)
		case "columns":
			c.Columns, err = d.columns(columns[:0])
		case "prefix":
			has.prefix = true
			c.Prefix, err = d.text(c.Prefix)
		case "content":
			c.Content, err = d.bytes(content[:0])
		default:
			err = d.value(0)
		}
		if err != nil {
			return err
		}
	}
	if d.blank(); d.i < len(d.s) {
		return errSyntax
	}
	forget := func(s *string, has bool) { // what was kept for its memory alone
		if !has {
			*s = ""
		}
	}
	forget(&c.Client, has.client)
	forget(&c.Schema, has.schema)
	forget(&c.Table, has.table)
	forget(&c.Prefix, has.prefix)
	switch {
	case !has.pos:
		return errors.New("it has no pos")
	case c.Op == "":
		return errors.New("it has no op")
	}
	return nil
}

func (d *decoder) transaction(t *Transaction) error {
	*t = Transaction{ID: t.ID, Pos: t.Pos}
	var id, pos, n, at bool
	for first := true; ; first = false {
		name, more, err := d.member(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		switch string(name) {
		case "id":
			id = true
			t.ID, err = d.text(t.ID)
		case "pos":
			pos = true
			t.Pos, err = d.position(t.Pos)
		case "n":
			n = true
			t.N, err = d.count(64)
		case "last":
			t.Last, err = d.boolean()
		case "at":
			at = true
			var raw []byte
			if raw, err = d.plain(); err == nil && t.At.UnmarshalText(raw) != nil {
				err = errors.New("tx.at is no time")
			}
		default:
			err = d.value(0)
		}
		if err != nil {
			return err
		}
	}
	if !id || !pos || !n || !at {
		return errors.New("tx lacks one of id, pos, n and at")
	}
	return nil
}

func (d *decoder) columns(list []Column) ([]Column, error) {
	for first := true; ; first = false {
		more, err := d.element(first)
		if err != nil || !more {
			return list, err
		}
		var col Column
		if err := d.column(&col); err != nil {
			return list, err
		}
		list = append(list, col)
	}
}

func (d *decoder) column(col *Column) error {
	for first := true; ; first = false {
		name, more, err := d.member(first)
		if err != nil || !more {
			return err
		}
		switch string(name) {
		case "name":
			col.Name, err = d.text(col.Name)
		case "type":
			col.Type, err = d.text(col.Type)
		case "key":
			col.Key, err = d.boolean()
		default:
			err = d.value(0)
		}
		if err != nil {
			return err
		}
	}
}

func (d *decoder) texts(list []string) ([]string, error) {
	for first := true; ; first = false {
		more, err := d.element(first)
		if err != nil || !more {
			return list, err
		}
		s, err := d.text("")
		if err != nil {
			return list, err
		}
		list = append(list, s)
	}
}

func (d *decoder) position(was Position) (Position, error) {
	s, err := d.text(string(was))
	if p := Position(s); err != nil || p.Valid() {
		return p, err
	}
	return "", errors.New("a position holds digits, letters and dots only")
}

func (d *decoder) op() (Op, error) {
	raw, err := d.plain()
	if err != nil {
		return "", err
	}
	op, ok := knownOp(raw)
	if !ok {
		return "", fmt.Errorf("op %.40q is not known to this version", raw)
	}
	return op, nil
}

func knownOp(raw []byte) (Op, bool) {
	switch Op(raw) {
	case Insert:
		return Insert, true
	case Update:
		return Update, true
	case Delete:
		return Delete, true
	case Truncate:
		return Truncate, true
	case Read:
		return Read, true
	case Schema:
		return Schema, true
	case Message:
		return Message, true
	case DeletePartition:
		return DeletePartition, true
	case DeleteRange:
		return DeleteRange, true
	}
	return "", false
}

// text reads a string. If it is what it was, it takes no memory.
func (d *decoder) text(was string) (string, error) {
	from := d.i
	raw, escaped, err := d.quoted()
	switch {
	case err != nil:
		return "", err
	case escaped:
		return unescape(d.s[from:d.i])
	case string(raw) == was:
		return was, nil
	}
	return string(raw), nil
}

func unescape(quoted []byte) (s string, err error) {
	err = json.Unmarshal(quoted, &s)
	return s, err
}

// plain reads a string of which no byte is escaped.
func (d *decoder) plain() ([]byte, error) {
	raw, escaped, err := d.quoted()
	if escaped && err == nil {
		err = errType
	}
	return raw, err
}

func (d *decoder) bytes(dst []byte) ([]byte, error) {
	s, err := d.text("") // not plain: an encoder may escape base64's /
	if err != nil {
		return dst, err
	}
	dst, err = base64.StdEncoding.AppendDecode(dst, []byte(s))
	if err != nil {
		return dst, errors.New("content is no base64")
	}
	return dst, nil
}

func (d *decoder) boolean() (bool, error) {
	if d.peek() == 't' {
		return true, d.literal("true")
	}
	if d.peek() == 'f' {
		return false, d.literal("false")
	}
	return false, errType
}

func (d *decoder) count(bits int) (uint64, error) {
	from := d.i
	if err := d.number(); err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(d.s[from:d.i]), 10, bits)
	if err != nil {
		return 0, errType
	}
	return n, nil
}

func (d *decoder) integer() (int64, error) {
	from := d.i
	if err := d.number(); err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(d.s[from:d.i]), 10, 64)
	if err != nil {
		return 0, errType
	}
	return n, nil
}

// object takes an object as it is.
func (d *decoder) object() (json.RawMessage, error) {
	if d.peek() != '{' {
		return nil, errType
	}
	from := d.i
	err := d.value(0)
	return json.RawMessage(d.s[from:d.i:d.i]), err
}

// member goes to the value of an object's next member and returns its name;
// false if the object has ended.
func (d *decoder) member(first bool) (name []byte, more bool, err error) {
	if more, err = d.next(first, '{', '}'); !more || err != nil {
		return nil, false, err
	}
	from := d.i
	name, escaped, err := d.quoted()
	if err != nil {
		return nil, false, err
	}
	if escaped {
		s, err := unescape(d.s[from:d.i])
		if err != nil {
			return nil, false, err
		}
		name = []byte(s)
	}
	d.blank()
	if d.peek() != ':' {
		return nil, false, errSyntax
	}
	d.i++
	d.blank()
	return name, true, nil
}

// element goes to an array's next element; false if the array has ended.
func (d *decoder) element(first bool) (more bool, err error) { return d.next(first, '[', ']') }

func (d *decoder) next(first bool, begin, end byte) (more bool, err error) {
	if first {
		if d.peek() != begin {
			return false, errType
		}
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
	return false, errSyntax
}

// value passes over a value of any type.
func (d *decoder) value(depth int) (err error) {
	if depth > maxDepth {
		return errDeep
	}
	switch c := d.peek(); c {
	case '{':
		for first, more := true, true; ; first = false {
			if _, more, err = d.member(first); err != nil || !more {
				return err
			}
			if err := d.value(depth + 1); err != nil {
				return err
			}
		}
	case '[':
		for first, more := true, true; ; first = false {
			if more, err = d.element(first); err != nil || !more {
				return err
			}
			if err := d.value(depth + 1); err != nil {
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

func (d *decoder) literal(word string) error {
	if !bytes.HasPrefix(d.s[d.i:], []byte(word)) {
		return errSyntax
	}
	d.i += len(word)
	return nil
}

func (d *decoder) number() error {
	if d.peek() == '-' {
		d.i++
	}
	switch c := d.peek(); {
	case c == '0':
		d.i++
	case !d.digits():
		return errSyntax
	}
	if d.peek() == '.' {
		if d.i++; !d.digits() {
			return errSyntax
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.i++
		if c := d.peek(); c == '+' || c == '-' {
			d.i++
		}
		if !d.digits() {
			return errSyntax
		}
	}
	return nil
}

func (d *decoder) digits() bool {
	from := d.i
	for d.i < len(d.s) && d.s[d.i] >= '0' && d.s[d.i] <= '9' {
		d.i++
	}
	return d.i > from
}

// quoted passes over a string and returns what stands between its quotes.
func (d *decoder) quoted() (raw []byte, escaped bool, err error) {
	if d.peek() != '"' {
		return nil, false, errType
	}
	s, from := d.s, d.i+1
	for i := from; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			d.i = i + 1
			return s[from:i], escaped, nil
		case c < ' ':
			d.i = i
			return nil, false, errSyntax
		case c == '\\':
			escaped = true
			n := escape(s[i:])
			if d.i = i; n == 0 {
				return nil, false, errSyntax
			}
			i += n - 1
		}
	}
	d.i = len(s)
	return nil, false, errSyntax
}

// escape returns the length of the escape that s begins with; 0 if it is none.
func escape(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) < 6 {
			return 0
		}
		for _, c := range s[2:6] {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return 0
			}
		}
		return 6
	}
	return 0
}

// peek is the next byte; 0 at the end.
func (d *decoder) peek() byte {
	if d.i < len(d.s) {
		return d.s[d.i]
	}
	return 0
}

// blank passes over spaces. Line breaks are none here (law 3).
func (d *decoder) blank() {
	for d.i < len(d.s) && (d.s[d.i] == ' ' || d.s[d.i] == '\t') {
		d.i++
	}
}
