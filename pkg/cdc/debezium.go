package cdc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// debezium is what Debezium's PostgreSQL connector writes with schemas disabled:
// the value of a Kafka record without its schema. What a stream of changes does
// not know, or has in another form, is told as follows.
//
//   - source.name and source.db are the client's name, source.version is
//     "athena".
//   - source.lsn is that of the commit, the same for all changes of a
//     transaction; sequence and xmin are null.
//   - transaction.id is the transaction's id and that LSN with a colon between.
//     How many changes of the same table came before is not known from one
//     change: data_collection_order is left out.
//   - A change that did not come from PostgreSQL has the connector "athena", no
//     LSN, and no number of a transaction.
//   - source.ts_ms and its kin are the time of the commit, and for a change
//     without a transaction the time at which the event is made; the ts_ms that
//     stands outside of source is always that one.
//   - before and after have the columns that are known, in Athena's form of the
//     types; a column that the engine did not log is absent where Debezium
//     writes null, but for unchanged large values, which get its placeholder.
//   - An update that changes the key is one event of op u with the old key in
//     before: there is no record's key for which a deletion would be written.
//   - A change of columns is left out. Deletions that cover more than one row
//     have no form and are refused, and so are changes of which parts of a value
//     or only the key are known: a reader would take what is absent for
//     unchanged.
type debezium struct {
	change Change
	now    func() time.Time
}

func newDebezium() *debezium { return &debezium{now: time.Now} }

// unavailable is Debezium's default for unavailable.value.placeholder.
const unavailable = `"__debezium_unavailable_value"`

func (*debezium) ContentType() string { return "application/json" }

func (e *debezium) Append(dst, line []byte) ([]byte, error) {
	c := &e.change
	if err := Decode(line, c); err != nil {
		return dst, err
	}
	var op byte
	switch c.Op {
	case Insert:
		op = 'c'
	case Update:
		op = 'u'
	case Delete:
		op = 'd'
	case Truncate:
		op = 't'
	case Read:
		op = 'r'
	case Message:
		op = 'm'
	case Schema:
		return dst, nil
	default:
		return dst, fmt.Errorf("a change of op %s has no form in the envelope debezium", c.Op)
	}
	switch {
	case c.Delta != nil:
		return dst, errors.New("a change with a delta has no form in the envelope debezium; a log with the new rows has none (postimage: true)")
	case c.After == nil && (op == 'c' || op == 'u' || op == 'r'):
		return dst, fmt.Errorf("of a change of op %s only the key is known, which has no form in the envelope debezium", c.Op)
	}
	sep := byte('{')
	if op != 'm' { // its value has another schema
		before := c.Before
		if op == 'd' && before == nil {
			before = c.Key
		}
		dst = appendOrNull(append(dst, `{"before":`...), before)
		dst = append(dst, `,"after":`...)
		dst = appendAfter(dst, c)
		sep = ','
	}
	now := e.now()
	dst = append(dst, sep)
	dst = appendSource(dst, c, now)
	dst = appendTransaction(dst, c)
	dst = append(dst, `,"op":"`...)
	dst = append(dst, op, '"')
	dst = appendTimes(dst, now)
	if op == 'm' {
		dst = AppendString(append(dst, `,"message":{"prefix":`...), c.Prefix)
		dst = append(dst, `,"content":`...)
		dst = appendBase64(dst, c.Content)
		dst = append(dst, '}')
	}
	return append(dst, '}'), nil
}

func appendOrNull(dst []byte, raw json.RawMessage) []byte {
	if raw == nil {
		return append(dst, "null"...)
	}
	return append(dst, raw...)
}

// appendAfter is the new row, with placeholders for its unchanged values.
func appendAfter(dst []byte, c *Change) []byte {
	dst = appendOrNull(dst, c.After)
	if c.After == nil || len(c.Unchanged) == 0 {
		return dst
	}
	dst = bytes.TrimRight(dst[:len(dst)-1], " \t")
	for _, name := range c.Unchanged {
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		dst = append(AppendString(dst, name), ':')
		dst = append(dst, unavailable...)
	}
	return append(dst, '}')
}

func appendSource(dst []byte, c *Change, now time.Time) []byte {
	at := now
	if c.Tx != nil {
		at = c.Tx.At
	}
	lsn, logged := c.lsn()
	connector := "athena"
	if logged {
		connector = "postgresql"
	}
	dst = append(append(dst, `"source":{"version":"athena","connector":"`...), connector...)
	dst = AppendString(append(dst, `","name":`...), c.Client)
	dst = append(dst, `,"snapshot":"`...)
	dst = strconv.AppendBool(dst, c.Op == Read)
	dst = AppendString(append(dst, `","db":`...), c.Client)
	dst = append(dst, `,"sequence":null`...)
	dst = appendTimes(dst, at)
	dst = AppendString(append(dst, `,"schema":`...), c.Schema)
	dst = AppendString(append(dst, `,"table":`...), c.Table)
	dst = append(dst, `,"txId":`...)
	if id, ok := c.txID(); ok {
		dst = strconv.AppendUint(dst, id, 10)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"lsn":`...)
	if logged {
		dst = strconv.AppendUint(dst, lsn, 10)
	} else {
		dst = append(dst, "null"...)
	}
	return append(dst, `,"xmin":null}`...)
}

func appendTransaction(dst []byte, c *Change) []byte {
	if c.Tx == nil {
		return append(dst, `,"transaction":null`...)
	}
	dst = append(dst, `,"transaction":{"id":"`...)
	dst = appendText(dst, c.Tx.ID)
	if lsn, ok := c.lsn(); ok {
		dst = strconv.AppendUint(append(dst, ':'), lsn, 10)
	}
	dst = append(dst, `","total_order":`...)
	dst = strconv.AppendUint(dst, c.Tx.N, 10)
	return append(dst, '}')
}

// appendTimes writes a time in three units.
func appendTimes(dst []byte, t time.Time) []byte {
	dst = strconv.AppendInt(append(dst, `,"ts_ms":`...), t.UnixMilli(), 10)
	dst = strconv.AppendInt(append(dst, `,"ts_us":`...), t.UnixMicro(), 10)
	return strconv.AppendInt(append(dst, `,"ts_ns":`...), t.UnixNano(), 10)
}

// txID is the transaction's id as a number, where it is one.
func (c *Change) txID() (uint64, bool) {
	if c.Tx == nil {
		return 0, false
	}
	id, err := strconv.ParseUint(c.Tx.ID, 10, 63)
	return id, err == nil
}

// lsn is the LSN that the driver's positions of PostgreSQL begin with: 16 digits
// in hex, before their only dot.
func (c *Change) lsn() (uint64, bool) {
	digits, rest, ok := strings.Cut(string(c.Pos), ".")
	if !ok || len(digits) != 16 || strings.Contains(rest, ".") {
		return 0, false
	}
	lsn, err := strconv.ParseUint(digits, 16, 64)
	return lsn, err == nil
}
