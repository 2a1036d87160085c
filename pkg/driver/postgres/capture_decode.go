package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The messages of pgoutput, protocol versions 1 to 4
// (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html).
const (
	msgBegin          = 'B'
	msgCommit         = 'C'
	msgOrigin         = 'O'
	msgRelation       = 'R'
	msgType           = 'Y'
	msgInsert         = 'I'
	msgUpdate         = 'U'
	msgDelete         = 'D'
	msgTruncate       = 'T'
	msgMessage        = 'M'
	msgStreamStart    = 'S'
	msgStreamStop     = 'E'
	msgStreamCommit   = 'c'
	msgStreamAbort    = 'A'
	msgBeginPrepare   = 'b'
	msgPrepare        = 'P'
	msgCommitPrepared = 'K'
	msgRollbackPrep   = 'r'
	msgStreamPrepare  = 'p'
)

// The forms of a column's value.
const (
	cellNull      = 'n'
	cellUnchanged = 'u' // a large value that the update did not touch
	cellText      = 't'
)

// errMalformed says that a message does not have the form that the protocol
// demands.
var errMalformed = errors.New("postgres: the server sent a message that is not of the replication protocol")

// A scanner reads the parts of a message. After a failure everything is zero,
// and ok is false.
type scanner struct {
	b      []byte
	failed bool
}

func (s *scanner) ok() bool { return !s.failed }

func (s *scanner) take(n int) []byte {
	if n < 0 || n > len(s.b) {
		s.failed, s.b = true, nil
		return nil
	}
	part := s.b[:n:n]
	s.b = s.b[n:]
	return part
}

func (s *scanner) byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *scanner) uint16() uint16 {
	if b := s.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (s *scanner) uint32() uint32 {
	if b := s.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (s *scanner) uint64() uint64 {
	if b := s.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text reads up to a zero byte.
func (s *scanner) text() string {
	for i, c := range s.b {
		if c == 0 {
			part := string(s.b[:i])
			s.b = s.b[i+1:]
			return part
		}
	}
	s.failed, s.b = true, nil
	return ""
}

// time reads microseconds since 2000-01-01.
func (s *scanner) time() time.Time { return pgTime(int64(s.uint64())) }

func pgTime(micros int64) time.Time {
	return time.UnixMicro(micros + microsFromUnix).UTC()
}

// microsFromUnix lie between 1970 and 2000.
const microsFromUnix = 946_684_800 * 1_000_000

// A relationMessage describes a table.
type relationMessage struct {
	oid      uint32
	schema   string
	table    string
	identity byte // d default, n nothing, f full, i index
	columns  []rowColumn
}

func decodeRelation(s *scanner) (m relationMessage, err error) {
	m.oid, m.schema, m.table, m.identity = s.uint32(), s.text(), s.text(), s.byte()
	if m.schema == "" {
		m.schema = "pg_catalog" // as the protocol has it
	}
	n := int(s.uint16())
	m.columns = make([]rowColumn, 0, min(n, len(s.b)/10))
	for range n {
		flags := s.byte()
		c := rowColumn{name: s.text(), oid: s.uint32(), key: flags&1 != 0}
		s.uint32() // the type's modifier
		m.columns = append(m.columns, c)
		if !s.ok() {
			break
		}
	}
	if !s.ok() {
		return m, fmt.Errorf("%w: a relation", errMalformed)
	}
	return m, nil
}

// A cell is one column's value in a message.
type cell struct {
	form byte
	text []byte
}

// decodeTuple reads a row into cells, which it returns.
func decodeTuple(s *scanner, cells []cell) ([]cell, error) {
	n := int(s.uint16())
	cells = cells[:0]
	for range n {
		c := cell{form: s.byte()}
		switch c.form {
		case cellNull, cellUnchanged:
		case cellText:
			if c.text = s.take(int(s.uint32())); c.text == nil {
				c.text = []byte{}
			}
		default:
			s.failed = true
		}
		if !s.ok() {
			return cells, fmt.Errorf("%w: a row", errMalformed)
		}
		cells = append(cells, c)
	}
	if !s.ok() {
		return cells, fmt.Errorf("%w: a row", errMalformed)
	}
	return cells, nil
}
