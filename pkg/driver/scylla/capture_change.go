package scylla

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// The operations that scylla-cdc-go does not name: what the server deleted by
// itself, since rows of their own had lived long enough.
const (
	serviceRowDelete       scyllacdc.OperationType = -3
	servicePartitionDelete scyllacdc.OperationType = -4
)

// errColumns says that a table was altered since it was described.
var errColumns = errors.New("scylla: the log has other columns than the table had when it was last described")

// A logRow is one row of a log. A value is what scylla-cdc-go makes of it, or a
// wireValue.
type logRow struct {
	op     scyllacdc.OperationType
	seq    int32
	ttl    int64
	values []any // by logLayout.columns
}

// A wireValue is a value as it is on the wire; nil is null.
type wireValue []byte

// decode makes changes of a batch of the log, in its order: an insert, an update
// or a delete of each row, partition or range. They have no Pos and no Tx. What
// cannot be told is rejected, each row of its own. An error says that nothing is
// known of the batch: errColumns, or one of the server's.
//
//   - An image belongs to the change of the row with the same key: the one before
//     to the first such change of the batch, the one after to the last.
//   - With an image after it a change has the whole row; one that lives for a time
//     has what was written, since the other columns do not live as long.
//   - What removes a partition removes a row where the key has no further columns.
//   - A log that holds keys alone says nothing of the row: such changes have
//     neither After nor Unchanged, unless there is an image.
func (m *captureTable) decode(ctx context.Context, c *scyllacdc.Change) (changes []cdc.Change, rejected []driver.Rejected, err error) {
	row := anyRow(c)
	if row == nil {
		return nil, nil, nil
	}
	d := batchDecoder{table: m, layout: m.layoutOf(row.Columns())}
	if !d.layout.known {
		return nil, nil, errColumns
	}
	n := len(c.PreImage) + len(c.Delta) + len(c.PostImage)
	d.rows = make([]logRow, 0, n)
	for _, rows := range [][]*scyllacdc.ChangeRow{c.PreImage, c.Delta, c.PostImage} {
		for _, r := range rows {
			if !sameColumns(r.Columns(), d.layout.columns) { // a page of its own, and an ALTER before it
				return nil, nil, errColumns
			}
			d.rows = append(d.rows, logRow{op: r.GetOperation(), seq: r.GetSeqNo(), ttl: r.GetTTL(), values: r.GetRawData()})
		}
	}
	return d.decode(ctx, c.StreamID, c.Time)
}

// batchDecoder decodes one batch.
type batchDecoder struct {
	table  *captureTable
	layout *logLayout
	rows   []logRow
	micros int64

	before, after map[string]*logRow // the images by key, once used they are gone
	// emptied has the unfrozen columns that a row of the batch has emptied, by
	// column and key: what a later one adds to them is all that they hold.
	emptied  map[string]bool
	buf      []byte // of the JSON of all changes
	wire     []byte
	changes  []cdc.Change
	rejected []driver.Rejected
}

func (d *batchDecoder) decode(ctx context.Context, stream []byte, at gocql.UUID) ([]cdc.Change, []driver.Rejected, error) {
	d.micros = (at.Timestamp() - unixEpoch) / 10
	slices.SortStableFunc(d.rows, func(a, b logRow) int { return cmp.Compare(a.seq, b.seq) })
	if err := d.sift(ctx, stream, at); err != nil {
		return nil, nil, err
	}
	if err := d.clear(ctx, stream, at); err != nil {
		return nil, nil, err
	}
	if err := d.pair(); err != nil {
		return nil, nil, err
	}
	for i := 0; i < len(d.rows); i++ {
		r := &d.rows[i]
		var err error
		switch r.op {
		case scyllacdc.PreImage, scyllacdc.PostImage:
			continue
		case scyllacdc.RangeDeleteStartInclusive, scyllacdc.RangeDeleteStartExclusive:
			if i+1 == len(d.rows) || !endsRange(d.rows[i+1].op) {
				err = errors.New("a range of rows that begins does not end")
				break
			}
			if err = d.rangeDelete(r, &d.rows[i+1]); err != nil {
				d.reject(&d.rows[i+1], err)
			}
			i++
		default:
			err = d.change(r)
		}
		if err != nil {
			d.reject(r, err)
		}
	}
	for _, images := range []map[string]*logRow{d.before, d.after} {
		for _, r := range images {
			d.reject(r, errors.New("it is the image of a row of which the batch has no change"))
		}
	}
	return d.changes, d.rejected, nil
}

// unixEpoch is 1970 in a UUID's time: units of 100 ns since October 1582.
const unixEpoch = 0x01b21dd213814000

func endsRange(op scyllacdc.OperationType) bool {
	return op == scyllacdc.RangeDeleteEndInclusive || op == scyllacdc.RangeDeleteEndExclusive
}

// hasImages reports whether changes of the operation can have images.
func hasImages(op scyllacdc.OperationType) bool {
	switch op {
	case scyllacdc.Insert, scyllacdc.Update, scyllacdc.RowDelete, serviceRowDelete:
		return true
	}
	return false
}

// pair sorts the images out by the key of their rows.
func (d *batchDecoder) pair() error {
	for i := range d.rows {
		r := &d.rows[i]
		var images *map[string]*logRow
		switch r.op {
		case scyllacdc.PreImage:
			images = &d.before
		case scyllacdc.PostImage:
			images = &d.after
		default:
			continue
		}
		key, err := d.keyOf(r)
		if err != nil {
			d.reject(r, err)
			continue
		}
		if *images == nil {
			*images = map[string]*logRow{}
		}
		if was := (*images)[key]; was != nil {
			d.reject(was, errors.New("the batch has two images of the row"))
		}
		(*images)[key] = r
	}
	return nil
}

// lastOf reports whether no later change of the batch can have the image.
func (d *batchDecoder) lastOf(r *logRow, key string) bool {
	for i := range d.rows {
		later := &d.rows[i]
		if later.seq <= r.seq || !hasImages(later.op) {
			continue
		}
		if k, err := d.keyOf(later); err == nil && k == key {
			return false
		}
	}
	return true
}

// keyOf is the row's key in a form that compares.
func (d *batchDecoder) keyOf(r *logRow) (string, error) {
	d.wire = d.wire[:0]
	for i, b := range d.table.base {
		if b.kind > clusteringKey {
			break
		}
		var err error
		if d.wire, err = d.appendValueOf(d.wire, r, d.layout.base[i].value); err != nil {
			return "", err
		}
	}
	return string(d.wire), nil
}

func (d *batchDecoder) appendValueOf(dst []byte, r *logRow, i int) ([]byte, error) {
	return appendElement(dst, d.layout.columns[i].TypeInfo, r.values[i])
}

// change makes the change of a row or of a partition.
func (d *batchDecoder) change(r *logRow) (err error) {
	c := cdc.Change{
		Client: d.table.client, Schema: d.table.name.Schema, Table: d.table.name.Table,
		WriteTime: d.micros, TTL: r.ttl,
	}
	switch r.op {
	case scyllacdc.Insert:
		c.Op = cdc.Insert
	case scyllacdc.Update:
		c.Op = cdc.Update
	case scyllacdc.RowDelete, serviceRowDelete:
		c.Op = cdc.Delete
	case scyllacdc.PartitionDelete, servicePartitionDelete:
		c.Op = cdc.DeletePartition
		if !d.table.clustered() {
			c.Op = cdc.Delete
		}
	default:
		return fmt.Errorf("its cdc$operation %d is not known to this version", r.op)
	}
	clustered := d.table.clustered() && c.Op != cdc.DeletePartition && !d.static(r)
	if c.Key, err = d.object(func() error { return d.key(r, clustered) }); err != nil {
		return err
	}
	var before, after *logRow
	if hasImages(r.op) && (d.before != nil || d.after != nil) {
		key, err := d.keyOf(r)
		if err != nil {
			return err
		}
		before = d.before[key]
		delete(d.before, key)
		if after = d.after[key]; after != nil {
			if d.lastOf(r, key) {
				delete(d.after, key)
			} else {
				after = nil
			}
		}
	}
	if before != nil {
		if c.Before, err = d.object(func() error { return d.image(before, clustered, false) }); err != nil {
			return err
		}
	}
	switch {
	case c.Op != cdc.Insert && c.Op != cdc.Update:
	case after != nil && (r.ttl == 0 || d.table.options.keysOnly):
		c.After, err = d.object(func() error { return d.image(after, clustered, true) })
		c.Unchanged = d.untold(clustered)
	case after != nil:
		err = d.lasting(&c, r, after, clustered)
	case !d.table.options.keysOnly:
		err = d.written(&c, r, clustered)
	}
	if err != nil {
		return err
	}
	d.changes = append(d.changes, c)
	return nil
}

// clustered reports whether rows have a key within their partition.
func (m *captureTable) clustered() bool {
	return slices.ContainsFunc(m.base, func(c captureColumn) bool { return c.kind == clusteringKey })
}

// static reports whether a row is the static one of its partition.
func (d *batchDecoder) static(r *logRow) bool {
	for i, b := range d.table.base {
		if b.kind == clusteringKey && !isNull(r.values[d.layout.base[i].value]) {
			return false
		}
	}
	return d.table.clustered()
}

// object collects the members that fn appends to d.buf. The memory of all
// objects of a batch is one piece.
func (d *batchDecoder) object(fn func() error) (json.RawMessage, error) {
	from := len(d.buf)
	d.buf = append(d.buf, '{')
	if err := fn(); err != nil {
		d.buf = d.buf[:from]
		return nil, err
	}
	d.buf = append(d.buf, '}')
	return json.RawMessage(d.buf[from:len(d.buf):len(d.buf)]), nil
}

// name begins a member.
func (d *batchDecoder) name(b *captureColumn) {
	if d.buf[len(d.buf)-1] != '{' {
		d.buf = append(d.buf, ',')
	}
	d.buf = append(d.buf, b.json...)
}

// member appends the value at i.
func (d *batchDecoder) member(b *captureColumn, r *logRow, i int) error {
	d.name(b)
	return d.value(b, d.layout.columns[i].TypeInfo, r.values[i])
}

func (d *batchDecoder) value(b *captureColumn, t gocql.TypeInfo, v any) (err error) {
	d.wire, err = appendWire(d.wire[:0], t, v)
	if err == nil {
		data := d.wire
		if isNull(v) {
			data = nil
		} else if data == nil {
			data = []byte{}
		}
		d.buf, err = appendValue(d.buf, t, data)
	}
	if err != nil {
		return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err)
	}
	return nil
}

// key appends the columns of the key.
func (d *batchDecoder) key(r *logRow, clustered bool) error {
	for i := range d.table.base {
		b := &d.table.base[i]
		if b.kind > clusteringKey || b.kind == clusteringKey && !clustered {
			break
		}
		at := d.layout.base[i].value
		if isNull(r.values[at]) {
			return fmt.Errorf("column %s of its key is null", b.Name)
		}
		if err := d.member(b, r, at); err != nil {
			return err
		}
	}
	return nil
}

// ofRow reports whether the column belongs to the rows that are meant: those
// with a clustering key, or where there is none both; or the static ones.
func (d *batchDecoder) ofRow(b *captureColumn, clustered bool) bool {
	return b.kind == staticColumn && !clustered || b.kind == regularColumn && (clustered || !d.table.clustered())
}

// image appends a row as an image has it. Of a full one what is not there is
// null; of others it is not known, unless the image says that it was null.
func (d *batchDecoder) image(r *logRow, clustered, full bool) error {
	if err := d.key(r, clustered); err != nil {
		return err
	}
	for i := range d.table.base {
		b, l := &d.table.base[i], d.layout.base[i]
		if !d.ofRow(b, clustered) {
			continue
		}
		switch {
		case !isNull(r.values[l.value]):
			if err := d.whole(b, r, l); err != nil {
				return err
			}
		case full || isTrue(r.values[l.deleted]):
			d.name(b)
			d.buf = append(d.buf, "null"...)
		}
	}
	return nil
}

// untold lists the columns that are never part of the row's image: those of the
// other kind of rows.
func (d *batchDecoder) untold(clustered bool) (names []string) {
	if !clustered {
		return nil
	}
	for i := range d.table.base {
		if b := &d.table.base[i]; b.kind == staticColumn {
			names = append(names, b.Name)
		}
	}
	return names
}

// lasting tells of a row with an image what was written, and leaves out what was
// not: its time to live is that of the change, and not that of the row.
func (d *batchDecoder) lasting(c *cdc.Change, r, after *logRow, clustered bool) (err error) {
	c.After, err = d.object(func() error {
		if err := d.key(r, clustered); err != nil {
			return err
		}
		for i := range d.table.base {
			b, l := &d.table.base[i], d.layout.base[i]
			if b.kind <= clusteringKey || b.kind == regularColumn && !d.ofRow(b, clustered) {
				continue
			}
			there, err := d.wrote(r, l)
			if err != nil {
				return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err)
			}
			switch {
			case !there && !isTrue(r.values[l.deleted]) && (l.elements < 0 || isNull(r.values[l.elements])):
				c.Unchanged = append(c.Unchanged, b.Name)
			case isNull(after.values[l.value]):
				d.name(b)
				d.buf = append(d.buf, "null"...)
			default:
				if err := d.whole(b, after, l); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return err
}

// written tells what a row of the log says was written: what is known whole in
// After, parts in Delta, and what was not touched in Unchanged.
func (d *batchDecoder) written(c *cdc.Change, r *logRow, clustered bool) (err error) {
	var parts []int
	told := c.Op == cdc.Insert // of an update without any column nothing is known
	c.After, err = d.object(func() error {
		if err := d.key(r, clustered); err != nil {
			return err
		}
		for i := range d.table.base {
			b, l := &d.table.base[i], d.layout.base[i]
			if b.kind <= clusteringKey {
				continue
			}
			there, err := d.wrote(r, l)
			if err != nil {
				return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err)
			}
			deleted := isTrue(r.values[l.deleted])
			removed := l.elements >= 0 && !isNull(r.values[l.elements])
			if l.form != atomicForm && (there || deleted) {
				if deleted, err = d.fromNothing(r, b, there, deleted); err != nil {
					return err
				}
			}
			switch {
			case !there && !deleted && !removed:
				if clustered || d.ofRow(b, clustered) {
					c.Unchanged = append(c.Unchanged, b.Name)
				}
				continue
			case there && (deleted || l.form == atomicForm):
				if err := d.whole(b, r, l); err != nil {
					return err
				}
			case deleted:
				d.name(b)
				d.buf = append(d.buf, "null"...)
			default:
				parts = append(parts, i)
			}
			told = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !told {
		c.After, c.Unchanged = nil, nil
		return nil
	}
	if len(parts) > 0 {
		c.Delta, err = d.object(func() error {
			for _, i := range parts {
				if err := d.part(&d.table.base[i], r, d.layout.base[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return err
}

// wrote reports whether a row of the log has a value that was written. Of an
// unfrozen user-defined type it shows one without fields where only some were
// removed.
func (d *batchDecoder) wrote(r *logRow, l logColumn) (bool, error) {
	v := r.values[l.value]
	if l.form != udtForm || isNull(v) {
		return !isNull(v), nil
	}
	fields, err := udtFields(d.layout.columns[l.value].TypeInfo, v)
	return slices.ContainsFunc(fields, func(f []byte) bool { return f != nil }), err
}

// fromNothing reports whether what a row wrote of an unfrozen value is all that
// there is: the row removed what was there before, or one before it did and wrote
// nothing, as when what was written has a time to live and what was removed has
// none.
func (d *batchDecoder) fromNothing(r *logRow, b *captureColumn, there, deleted bool) (bool, error) {
	if len(d.rows) == 1 || there && !deleted && d.emptied == nil {
		return deleted, nil
	}
	key, err := d.keyOf(r)
	if err != nil {
		return false, err
	}
	key = string(b.json) + key
	was := d.emptied[key]
	delete(d.emptied, key)
	if deleted && !there {
		if d.emptied == nil {
			d.emptied = map[string]bool{}
		}
		d.emptied[key] = true
	}
	return deleted || was, nil
}

// whole appends a value that is known whole.
func (d *batchDecoder) whole(b *captureColumn, r *logRow, l logColumn) error {
	t, v := d.layout.columns[l.value].TypeInfo, r.values[l.value]
	switch l.form {
	case listForm:
		elements, err := listElements(t, v)
		if err != nil {
			return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err)
		}
		d.name(b)
		d.buf = append(d.buf, '[')
		for i, e := range elements {
			if i > 0 {
				d.buf = append(d.buf, ',')
			}
			if err := d.value(b, t.(gocql.CollectionType).Elem, wireValue(e.value)); err != nil {
				return err
			}
		}
		d.buf = append(d.buf, ']')
		return nil
	case udtForm:
		// An unfrozen one without any field is null.
		if wrote, err := d.wrote(r, l); err != nil {
			return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err)
		} else if !wrote {
			d.name(b)
			d.buf = append(d.buf, "null"...)
			return nil
		}
	}
	return d.member(b, r, l.value)
}

// part appends what was done to a part of a value, as docs/cdc.md has it.
func (d *batchDecoder) part(b *captureColumn, r *logRow, l logColumn) error {
	fail := func(err error) error { return fmt.Errorf("column %s of type %s: %w", b.Name, b.Type, err) }
	t, v := d.layout.columns[l.value].TypeInfo, r.values[l.value]
	d.name(b)
	d.buf = append(d.buf, '{')
	wrote, err := d.wrote(r, l)
	if err != nil {
		return fail(err)
	}
	if wrote {
		switch l.form {
		case setForm:
			d.buf = append(d.buf, `"add":`...)
			if err := d.value(b, t, v); err != nil {
				return err
			}
		case mapForm:
			d.buf = append(d.buf, `"put":`...)
			if err := d.value(b, t, v); err != nil {
				return err
			}
		case listForm:
			elements, err := listElements(t, v)
			if err != nil {
				return fail(err)
			}
			d.buf = append(d.buf, `"append":[`...)
			for i, e := range elements {
				if i > 0 {
					d.buf = append(d.buf, ',')
				}
				d.buf = append(d.buf, `{"key":`...)
				if err := d.value(b, t.(gocql.CollectionType).Key, wireValue(e.key)); err != nil {
					return err
				}
				d.buf = append(d.buf, `,"value":`...)
				if err := d.value(b, t.(gocql.CollectionType).Elem, wireValue(e.value)); err != nil {
					return err
				}
				d.buf = append(d.buf, '}')
			}
			d.buf = append(d.buf, ']')
		case udtForm:
			fields, err := udtFields(t, v)
			if err != nil {
				return fail(err)
			}
			d.buf = append(d.buf, `"set":{`...)
			for i, f := range fields {
				if f == nil { // it was not written
					continue
				}
				if d.buf[len(d.buf)-1] != '{' {
					d.buf = append(d.buf, ',')
				}
				field := t.(gocql.UDTTypeInfo).Elements[i]
				d.buf = append(cdc.AppendString(d.buf, field.Name), ':')
				if err := d.value(b, field.Type, wireValue(f)); err != nil {
					return err
				}
			}
			d.buf = append(d.buf, '}')
		}
	}
	if !isNull(r.values[l.elements]) {
		if d.buf[len(d.buf)-1] != '{' {
			d.buf = append(d.buf, ',')
		}
		t, v := d.layout.columns[l.elements].TypeInfo, r.values[l.elements]
		if l.form != udtForm {
			d.buf = append(d.buf, `"remove":`...)
			if err := d.value(b, t, v); err != nil {
				return err
			}
		} else if err := d.unset(d.layout.columns[l.value].TypeInfo, t, v); err != nil {
			return fail(err)
		}
	}
	d.buf = append(d.buf, '}')
	return nil
}

// unset names the fields of a user-defined type that were removed; the log has
// their numbers.
func (d *batchDecoder) unset(udt, t gocql.TypeInfo, v any) error {
	data, err := appendWire(nil, t, v)
	if err != nil {
		return err
	}
	numbers, err := readElements(data)
	if err != nil {
		return err
	}
	d.buf = append(d.buf, `"unset":[`...)
	for i, n := range numbers {
		if i > 0 {
			d.buf = append(d.buf, ',')
		}
		fields := udt.(gocql.UDTTypeInfo).Elements
		if len(n) != 2 || int(n[0])<<8|int(n[1]) >= len(fields) {
			return fmt.Errorf("field number %x of the type is not known", n)
		}
		d.buf = cdc.AppendString(d.buf, fields[int(n[0])<<8|int(n[1])].Name)
	}
	d.buf = append(d.buf, ']')
	return nil
}

// reject keeps a row that cannot be told.
func (d *batchDecoder) reject(r *logRow, reason error) {
	op := cdc.Op("")
	switch r.op {
	case scyllacdc.Insert:
		op = cdc.Insert
	case scyllacdc.Update:
		op = cdc.Update
	case scyllacdc.RowDelete, serviceRowDelete:
		op = cdc.Delete
	case scyllacdc.PartitionDelete, servicePartitionDelete:
		op = cdc.DeletePartition
	case scyllacdc.RangeDeleteStartInclusive, scyllacdc.RangeDeleteStartExclusive,
		scyllacdc.RangeDeleteEndInclusive, scyllacdc.RangeDeleteEndExclusive:
		op = cdc.DeleteRange
	}
	d.rejected = append(d.rejected, driver.Rejected{
		Op: op, Schema: d.table.name.Schema, Table: d.table.name.Table,
		Reason: reason.Error(), Raw: d.raw(r),
	})
}

// raw is a row of the log as JSON. Where a value has none, its wire form in
// base64 stands for it, and null where it has not even that.
func (d *batchDecoder) raw(r *logRow) []byte {
	dst := append([]byte(`{"`+columnSeq+`":`), strconv.Itoa(int(r.seq))...)
	dst = append(append(dst, `,"`+columnOperation+`":`...), strconv.Itoa(int(r.op))...)
	dst = append(append(dst, `,"`+columnTTL+`":`...), strconv.FormatInt(r.ttl, 10)...)
	for i, c := range d.layout.columns {
		if i >= len(r.values) || isNull(r.values[i]) || bytes.HasPrefix([]byte(c.Name), []byte(metaPrefix)) && !bytes.HasPrefix([]byte(c.Name), []byte(deletedPrefix)) {
			continue
		}
		dst = append(cdc.AppendString(append(dst, ','), c.Name), ':')
		data, err := appendWire([]byte{}, c.TypeInfo, r.values[i])
		from := len(dst)
		if err == nil {
			dst, err = appendValue(dst, c.TypeInfo, data)
		}
		if err != nil {
			coded, _ := json.Marshal(data)
			dst = append(dst[:from], coded...)
		}
	}
	return append(dst, '}')
}
