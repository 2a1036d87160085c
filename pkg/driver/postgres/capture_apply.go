package postgres

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A decoder turns the messages of one connection into changes. It is used by one
// goroutine.
type decoder struct {
	stream    *changeStream
	describe  func(context.Context, *relation) error // makes a table ready
	sink      driver.ChangeSink
	checkText bool // the server lets text through that is not UTF-8

	relations map[uint32]*relation
	overlay   map[uint32]*relation // those of a transaction that is being replayed
	after     cdc.Position         // what is up to it is stored; empty once it is behind us
	recent    recentTransactions

	tx       transaction
	number   uint32 // of the message
	chunk    uint32 // the transaction that messages belong to between stream start and stop
	prepares uint32 // the transaction that is being prepared

	withheld [][]byte // messages; see gate
	bytes    int      // of them

	// Memory that is used again for each change.
	change         cdc.Change
	changeTx       cdc.Transaction
	newRow, oldRow []cell
	buf            []byte
	unchanged      []string
	lsn            [17]byte
}

// A transaction whose changes are being handed over.
type transaction struct {
	open   bool
	lsn    uint64 // of its commit record: known from the beginning, and rising
	xid    uint32
	n      uint64
	handed uint64 // changes that the sink was given
	remote bool   // replication brought it
}

// A relation is a table as the server last described it.
type relation struct {
	relationMessage
	number  uint32 // of the message that described it
	name    driver.TableName
	enc     *rowEncoder
	version int // of its columns in the stream; 0 until the first row that is handed over
}

func (d *decoder) init(s *changeStream) {
	d.stream, d.describe = s, s.backend.describe
	d.relations = map[uint32]*relation{}
	d.after = s.cfg.After
}

// message takes one message of the server. It may write to msg.
func (d *decoder) message(ctx context.Context, msg []byte) error {
	if kept, err := d.withhold(ctx, msg); kept || err != nil {
		return err
	}
	return d.take(ctx, msg)
}

func (d *decoder) take(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return errMalformed
	}
	d.number++
	kind := msg[0]
	sc := scanner{b: msg[1:]}
	switch kind {
	case msgStreamStart:
		d.chunk = sc.uint32()
		return check(&sc, "a stream start")
	case msgStreamStop:
		d.chunk = 0
		return nil
	case msgStreamCommit:
		xid := sc.uint32()
		sc.byte()
		lsn, end, at := sc.uint64(), sc.uint64(), sc.time()
		if err := check(&sc, "a stream commit"); err != nil {
			return err
		}
		return d.replay(ctx, xid, lsn, end, at)
	case msgStreamAbort:
		xid, subxid := sc.uint32(), sc.uint32()
		if err := check(&sc, "a stream abort"); err != nil {
			return err
		}
		return d.stream.spool.abort(xid, subxid)
	case msgBeginPrepare:
		sc.take(24) // where and when it is prepared; the PREPARE says it again
		d.prepares = sc.uint32()
		return check(&sc, "a begin prepare")
	case msgPrepare, msgStreamPrepare:
		sc.byte()
		at := sc.uint64()
		sc.take(16)
		xid := sc.uint32()
		d.prepares = 0
		if err := check(&sc, "a prepare"); err != nil {
			return err
		}
		d.stream.spool.prepare(xid, at)
		d.stream.setFloor()
		return nil
	case msgCommitPrepared:
		sc.byte()
		lsn, end, at, xid := sc.uint64(), sc.uint64(), sc.time(), sc.uint32()
		if err := check(&sc, "a commit prepared"); err != nil {
			return err
		}
		t := d.stream.spool.open[xid]
		if t == nil {
			return fmt.Errorf("%w: COMMIT PREPARED of transaction %d, which was not sent", errMalformed, xid)
		}
		prepared := t.began
		err := d.replay(ctx, xid, lsn, end, at)
		d.stream.decide(prepared, end)
		d.stream.setFloor()
		return err
	case msgRollbackPrep:
		sc.take(1 + 8 + 8 + 8 + 8)
		xid := sc.uint32()
		if err := check(&sc, "a rollback prepared"); err != nil {
			return err
		}
		err := d.stream.spool.abort(xid, xid)
		d.stream.setFloor()
		return err
	}

	switch {
	case d.chunk != 0 && kind == msgOrigin: // bears no subtransaction
		return d.stream.spool.add(d.chunk, d.chunk, d.number, msg)
	case d.chunk != 0:
		// The subtransaction stands behind the kind; without it the message is
		// as it would be outside of a chunk.
		subxid := sc.uint32()
		if err := check(&sc, "a message of an open transaction"); err != nil {
			return err
		}
		msg[4] = kind
		return d.stream.spool.add(d.chunk, subxid, d.number, msg[4:])
	case d.prepares != 0 && kind == msgRelation:
		// Outside of chunks the server describes a table once per connection.
		return d.apply(ctx, msg, d.number)
	case d.prepares != 0:
		return d.stream.spool.add(d.prepares, d.prepares, d.number, msg)
	case kind == msgBegin:
		lsn, at, xid := sc.uint64(), sc.time(), sc.uint32()
		if err := check(&sc, "a begin"); err != nil {
			return err
		}
		d.begin(lsn, xid, at)
		return nil
	case kind == msgCommit:
		sc.byte()
		lsn, end, at := sc.uint64(), sc.uint64(), sc.time()
		if err := check(&sc, "a commit"); err != nil {
			return err
		}
		if lsn != d.tx.lsn {
			return fmt.Errorf("%w: transaction %d began for a commit at %X and was committed at %X", errMalformed, d.tx.xid, d.tx.lsn, lsn)
		}
		return d.commit(ctx, end, at)
	}
	return d.apply(ctx, msg, d.number)
}

func check(sc *scanner, what string) error {
	if sc.ok() {
		return nil
	}
	return fmt.Errorf("%w: %s", errMalformed, what)
}

// replay hands over a transaction that was spooled.
func (d *decoder) replay(ctx context.Context, xid uint32, lsn, end uint64, at time.Time) error {
	d.begin(lsn, xid, at)
	d.overlay = map[uint32]*relation{}
	err := d.stream.spool.replay(xid, func(msg []byte, number uint32, aborted bool) error {
		// A description of a table stands also where the subtransaction does
		// not: the server sends it once for the whole transaction.
		if aborted && msg[0] != msgRelation {
			return nil
		}
		return d.apply(ctx, msg, number)
	})
	// From now on the server counts on us to know these tables, unless it has
	// described them anew since.
	for oid, r := range d.overlay {
		if known := d.relations[oid]; known == nil || known.number < r.number {
			d.relations[oid] = r
		}
	}
	d.overlay = nil
	if err != nil {
		return err
	}
	return d.commit(ctx, end, at)
}

func (d *decoder) begin(lsn uint64, xid uint32, at time.Time) {
	d.tx = transaction{open: true, lsn: lsn, xid: xid}
	copy(d.lsn[:], formatLSN(lsn))
	d.lsn[16] = '.'
	d.changeTx = cdc.Transaction{ID: strconv.FormatUint(uint64(xid), 10), Pos: cdc.Position(d.lsn[:16]), At: at}
}

func (d *decoder) commit(ctx context.Context, end uint64, at time.Time) error {
	handed := d.tx.handed > 0
	xid := d.tx.xid
	d.tx = transaction{}
	d.recent.add(xid)
	d.stream.gate.pass(end)
	if !handed { // it has nothing for us, or nothing that is not stored
		d.stream.quiet(end)
	} else {
		d.stream.hand(end, at)
		if err := d.sink.Commit(ctx, formatLSN(end)); err != nil {
			return err
		}
	}
	return d.sink.Pause(ctx)
}

// apply takes a message of a transaction, or between transactions.
func (d *decoder) apply(ctx context.Context, msg []byte, number uint32) error {
	sc := scanner{b: msg[1:]}
	switch msg[0] {
	case msgInsert, msgUpdate, msgDelete, msgTruncate:
		if !d.tx.open {
			return fmt.Errorf("%w: a change (%q) outside of a transaction", errMalformed, msg[0])
		}
	}
	switch msg[0] {
	case msgRelation:
		m, err := decodeRelation(&sc)
		if err != nil {
			return err
		}
		r := &relation{relationMessage: m, number: number, name: driver.TableName{Schema: m.schema, Table: m.table}}
		if d.overlay != nil {
			d.overlay[m.oid] = r
		} else {
			d.relations[m.oid] = r
		}
		return nil
	case msgType:
		return nil // types are read from the catalog
	case msgOrigin:
		d.tx.remote = d.stream.cfg.LocalOnly
		return nil
	case msgInsert, msgUpdate, msgDelete:
		return d.row(ctx, msg, &sc)
	case msgTruncate:
		return d.truncate(ctx, &sc)
	case msgMessage:
		return d.logical(ctx, &sc)
	}
	return fmt.Errorf("%w: kind %q", errMalformed, msg[0])
}

// position of the n-th change of the transaction.
func (d *decoder) position(n uint64) cdc.Position {
	const digits = "0123456789ABCDEF"
	var p [25]byte
	copy(p[:], d.lsn[:])
	for i := 24; i > 16; i-- {
		p[i] = digits[n&15]
		n >>= 4
	}
	return cdc.Position(p[:])
}

// next counts a change and returns its position, or false if it is to be left
// out: since it is stored, or not wanted. Changes that are left out count too,
// or a replay would number the others differently.
func (d *decoder) next() (pos cdc.Position, wanted bool, err error) {
	if d.tx.n++; d.tx.n > math.MaxUint32 {
		return "", false, fmt.Errorf("postgres: transaction %d has more changes than positions can tell apart", d.tx.xid)
	}
	if d.tx.remote {
		return "", false, nil
	}
	pos = d.position(d.tx.n)
	if d.after != "" {
		if pos <= d.after {
			return "", false, nil
		}
		d.after = ""
	}
	d.tx.handed++
	return pos, true, nil
}

// lookup finds a table and makes it ready.
func (d *decoder) lookup(ctx context.Context, oid uint32) (*relation, error) {
	r := d.overlay[oid]
	if r == nil {
		r = d.relations[oid]
	}
	if r == nil {
		return nil, fmt.Errorf("%w: a change of table %d, which was not described", errMalformed, oid)
	}
	if r.enc == nil {
		if err := d.describe(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func opOf(kind byte) cdc.Op {
	switch kind {
	case msgInsert:
		return cdc.Insert
	case msgUpdate:
		return cdc.Update
	}
	return cdc.Delete
}

// describe loads what the server's description of a table lacks.
func (b *Backend) describe(ctx context.Context, r *relation) error {
	oids := make([]uint32, len(r.columns))
	for i, c := range r.columns {
		oids[i] = c.oid
	}
	missing := b.types.Missing(oids...)
	if len(missing) > 0 || r.identity == 'f' {
		conn, err := b.acquire(ctx)
		if err != nil {
			return err
		}
		defer release(conn)
		if err := b.types.Load(ctx, conn.Conn().PgConn(), missing...); err != nil {
			return err
		}
		if r.identity == 'f' {
			// All columns bear the mark of the identity. The key is the primary
			// key still, if the table has one.
			key, err := identityKey(ctx, on(conn.Conn()), r.oid)
			if err != nil {
				return err
			}
			for i := range r.columns {
				r.columns[i].key = slices.Contains(key, r.columns[i].name)
			}
		}
	}
	r.enc = newRowEncoder(&b.types, r.columns)
	return nil
}

// announce hands over the table's columns before the first row that has them.
// While stored changes are being left out it is not called: what the stream
// knows of the table is from behind them.
func (d *decoder) announce(ctx context.Context, r *relation) error {
	if r.version != 0 {
		return nil
	}
	columns := r.enc.describe(&d.stream.backend.types)
	var fresh bool
	if r.version, fresh = d.stream.cfg.Version(r.name, columns); !fresh {
		return nil
	}
	return d.sink.Change(ctx, &cdc.Change{
		Pos: d.position(d.tx.n - 1).BeforeNext(), Op: cdc.Schema, Schema: r.schema, Table: r.table,
		SchemaVersion: r.version, Columns: columns,
	})
}

func (d *decoder) row(ctx context.Context, msg []byte, sc *scanner) error {
	oid := sc.uint32()
	pos, wanted, err := d.next()
	if err != nil {
		return err
	}
	if !wanted {
		return check(sc, "a row")
	}
	r, err := d.lookup(ctx, oid)
	if err != nil {
		return err
	}
	op := opOf(msg[0])
	old, err := d.tuples(sc, op, r)
	if err != nil {
		return err
	}
	if d.checkText {
		if column, bad := d.notUTF8(r); bad {
			d.tx.handed-- // no commit of it need be stored
			return d.sink.Reject(ctx, driver.Rejected{
				Pos: pos, Op: op, Schema: r.schema, Table: r.table, Raw: msg,
				Reason: fmt.Sprintf("column %q holds bytes that are not UTF-8", column),
			})
		}
	}
	if err := d.announce(ctx, r); err != nil {
		return err
	}
	c := &d.change
	*c = cdc.Change{Pos: pos, Op: op, Schema: r.schema, Table: r.table, SchemaVersion: r.version, Tx: d.txOf()}
	d.fill(c, r, old)
	return d.sink.Change(ctx, c)
}

func (d *decoder) txOf() *cdc.Transaction {
	d.changeTx.N = d.tx.n
	return &d.changeTx
}

// tuples reads the rows that a change of that kind must have into newRow and
// oldRow. It tells the form of the old one: 'K' has the identity alone, 'O' all
// columns, 0 there is none.
func (d *decoder) tuples(sc *scanner, op cdc.Op, r *relation) (old byte, err error) {
	d.newRow, d.oldRow = d.newRow[:0], d.oldRow[:0]
	fresh := false
	for len(sc.b) > 0 {
		var row []cell
		switch form := sc.byte(); form {
		case 'K', 'O':
			old = form
			d.oldRow, err = decodeTuple(sc, d.oldRow)
			row = d.oldRow
		case 'N':
			fresh = true
			d.newRow, err = decodeTuple(sc, d.newRow)
			row = d.newRow
		default:
			err = fmt.Errorf("%w: a row of form %q", errMalformed, form)
		}
		if err != nil {
			return old, err
		}
		if len(row) != len(r.columns) {
			return old, fmt.Errorf("%w: a row of %d columns for table %s, which has %d", errMalformed, len(row), r.name, len(r.columns))
		}
	}
	if fresh != (op != cdc.Delete) || op == cdc.Delete && old == 0 {
		return old, fmt.Errorf("%w: an %s of %s without its row", errMalformed, op, r.name)
	}
	return old, nil
}

func (d *decoder) notUTF8(r *relation) (string, bool) {
	for _, row := range [...][]cell{d.newRow, d.oldRow} {
		for i, c := range row {
			if c.form == cellText && !utf8.Valid(c.text) {
				return r.columns[i].name, true
			}
		}
	}
	return "", false
}

// fill renders the rows.
func (d *decoder) fill(c *cdc.Change, r *relation, old byte) {
	buf := d.buf[:0]
	d.unchanged = d.unchanged[:0]
	var after, before int
	if c.Op != cdc.Delete {
		var other []cell
		if old == 'O' { // has the large values that the new row leaves out
			other = d.oldRow
		}
		buf = d.appendCells(buf, r.enc, d.newRow, other, false)
		after = len(buf)
	}
	switch old {
	case 'O':
		buf = d.appendCells(buf, r.enc, d.oldRow, nil, false)
	case 'K':
		buf = d.appendCells(buf, r.enc, d.oldRow, nil, true)
	}
	before = len(buf)
	if r.enc.hasKey {
		if c.Op != cdc.Delete {
			buf = d.appendCells(buf, r.enc, d.newRow, d.oldRow, true)
		} else {
			buf = d.appendCells(buf, r.enc, d.oldRow, nil, true)
		}
	}
	d.buf = buf
	if after > 0 {
		c.After = buf[:after:after]
	}
	if before > after {
		c.Before = buf[after:before:before]
	}
	if len(buf) > before {
		c.Key = buf[before:]
	}
	if len(d.unchanged) > 0 {
		c.Unchanged = d.unchanged
	}
}

// appendCells appends a row as an object. A value that was not sent is taken
// from the other row if that has it, and else left out; of the new row such
// columns are noted. With keyOnly it has the columns of the key; where the server
// names none, since it describes a partitioned table and goes by the identity of
// the partition, those that it sent.
func (d *decoder) appendCells(dst []byte, e *rowEncoder, row, other []cell, keyOnly bool) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for i := range e.columns {
		col := &e.columns[i]
		v := row[i]
		if keyOnly && (!col.key && e.hasKey || v.form == cellNull) { // no key is null
			continue
		}
		if v.form == cellUnchanged && len(other) > 0 {
			v = other[i]
		}
		if v.form == cellUnchanged {
			if !keyOnly {
				d.unchanged = append(d.unchanged, col.name)
			}
			continue
		}
		if len(dst) > start+1 {
			dst = append(dst, ',')
		}
		dst = append(dst, col.label...)
		dst = appendValue(dst, col.typ, v.text)
	}
	return append(dst, '}')
}

// truncate is one change for each table.
func (d *decoder) truncate(ctx context.Context, sc *scanner) error {
	n := sc.uint32()
	sc.byte() // CASCADE, RESTART IDENTITY: the tables are all listed
	for range n {
		oid := sc.uint32()
		if err := check(sc, "a truncate"); err != nil {
			return err
		}
		pos, wanted, err := d.next()
		if err != nil {
			return err
		}
		if !wanted {
			continue
		}
		r, err := d.lookup(ctx, oid)
		if err != nil {
			return err
		}
		if err := d.announce(ctx, r); err != nil {
			return err
		}
		if err := d.sink.Change(ctx, &cdc.Change{
			Pos: pos, Op: cdc.Truncate, Schema: r.schema, Table: r.table, SchemaVersion: r.version, Tx: d.txOf(),
		}); err != nil {
			return err
		}
	}
	return nil
}

// logical is a message of pg_logical_emit_message. Those of Athena itself, which
// flush the log, are nobody's business.
func (d *decoder) logical(ctx context.Context, sc *scanner) error {
	transactional, lsn := sc.byte()&1 != 0, sc.uint64()
	prefix := sc.text()
	content := sc.take(int(sc.uint32()))
	if err := check(sc, "a logical message"); err != nil {
		return err
	}
	if prefix == flushPrefix || strings.HasPrefix(prefix, flushPrefix+".") {
		return nil
	}
	c := &cdc.Change{Op: cdc.Message, Prefix: prefix, Content: content}
	if !transactional {
		// It stands by itself, between transactions, at the end of its record;
		// the first change of a commit that begins there is number 1.
		c.Pos = cdc.Position(formatLSN(lsn) + ".00000000")
		if d.after != "" && c.Pos <= d.after {
			return nil
		}
		if err := d.sink.Change(ctx, c); err != nil {
			return err
		}
		d.stream.hand(lsn, time.Now())
		return d.sink.Commit(ctx, formatLSN(lsn))
	}
	if !d.tx.open {
		return fmt.Errorf("%w: a message of a transaction outside of one", errMalformed)
	}
	pos, wanted, err := d.next()
	if !wanted || err != nil {
		return err
	}
	c.Pos, c.Tx = pos, d.txOf()
	return d.sink.Change(ctx, c)
}
