package scylla

import (
	"errors"
	"fmt"

	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A rangeBound is one end of a deleted range: the first columns of the clustering
// key, as many as it names. An inclusive one takes the rows in that have them.
type rangeBound struct {
	row       *logRow
	columns   int // of the clustering key; 0 is open
	inclusive bool
}

// rangeDelete makes the change of two rows of the log, the start and the end of a
// range in the order of the clustering key. In the change the bounds stand in the
// order of the columns' values: where it is a descending column by which they
// differ, the log's end is the lower bound. Bounds of several columns compare one
// column after the other. That has no meaning where further columns go the other
// way; such a range comes as several changes, whose bounds differ in their last
// column only.
func (d *batchDecoder) rangeDelete(start, end *logRow) error {
	from, err := d.bound(start, start.op == scyllacdc.RangeDeleteStartInclusive)
	if err != nil {
		return err
	}
	to, err := d.bound(end, end.op == scyllacdc.RangeDeleteEndInclusive)
	if err != nil {
		return err
	}
	if same, err := d.samePartition(start, end); err != nil {
		return err
	} else if !same {
		return errors.New("a range of rows begins in another partition than it ends in")
	}
	common, err := d.commonColumns(from, to)
	if err != nil {
		return err
	}
	if backwards, err := d.backwards(from, to, common); err != nil {
		return err
	} else if backwards {
		return errors.New("a range of rows ends before it begins")
	}
	deepest := max(from.columns, to.columns)
	kept := len(d.changes)
	if !d.mixed(common, deepest) {
		err = d.rangeChange(from, to, common)
	} else {
		err = d.staircase(from, to, common)
	}
	if err != nil {
		d.changes = d.changes[:kept]
	}
	return err
}

// clusteringAt gives the place in base of a column of the clustering key.
func (d *batchDecoder) clusteringAt(n int) int {
	for i, b := range d.table.base {
		if b.kind == clusteringKey {
			return i + n
		}
	}
	return -1
}

func (m *captureTable) clusteringColumns() (n int) {
	for _, b := range m.base {
		n += b2i(b.kind == clusteringKey)
	}
	return n
}

func (d *batchDecoder) bound(r *logRow, inclusive bool) (rangeBound, error) {
	b := rangeBound{row: r, inclusive: inclusive}
	n := d.table.clusteringColumns()
	if n == 0 {
		return b, errors.New("the table has no clustering key, and so no ranges of rows")
	}
	for b.columns < n && !isNull(r.values[d.layout.base[d.clusteringAt(b.columns)].value]) {
		b.columns++
	}
	for i := b.columns; i < n; i++ {
		if at := d.clusteringAt(i); !isNull(r.values[d.layout.base[at].value]) {
			return b, fmt.Errorf("the range's bound has no column before %s", d.table.base[at].Name)
		}
	}
	return b, nil
}

func (d *batchDecoder) samePartition(a, b *logRow) (bool, error) {
	for i, c := range d.table.base {
		if c.kind != partitionKey {
			break
		}
		if same, err := d.sameValue(a, b, i); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (d *batchDecoder) sameValue(a, b *logRow, i int) (bool, error) {
	x, err := d.appendValueOf(nil, a, d.layout.base[i].value)
	if err != nil {
		return false, err
	}
	y, err := d.appendValueOf(nil, b, d.layout.base[i].value)
	return string(x) == string(y), err
}

// commonColumns counts the first columns that are equal in both bounds.
func (d *batchDecoder) commonColumns(from, to rangeBound) (n int, err error) {
	for n < from.columns && n < to.columns {
		same, err := d.sameValue(from.row, to.row, d.clusteringAt(n))
		if err != nil || !same {
			return n, err
		}
		n++
	}
	return n, nil
}

// backwards reports whether a range ends before it begins, in the log's order.
func (d *batchDecoder) backwards(from, to rangeBound, common int) (bool, error) {
	switch {
	case from.columns == common && to.columns == common:
		return false, nil
	case from.columns == common:
		return common > 0 && !from.inclusive, nil
	case to.columns == common:
		return common > 0 && !to.inclusive, nil
	}
	i := d.clusteringAt(common)
	at := d.layout.base[i].value
	t := d.layout.columns[at].TypeInfo
	x, err := appendWire(nil, t, from.row.values[at])
	if err != nil {
		return false, err
	}
	y, err := appendWire(nil, t, to.row.values[at])
	if err != nil {
		return false, err
	}
	order := compareWire(t, x, y)
	if d.table.base[i].desc {
		order = -order
	}
	return order > 0, nil
}

// mixed reports whether the columns from the first one by which the bounds differ
// are not all ascending or all descending.
func (d *batchDecoder) mixed(common, deepest int) bool {
	for i := common + 1; i < deepest; i++ {
		if d.table.base[d.clusteringAt(i)].desc != d.table.base[d.clusteringAt(common)].desc {
			return true
		}
	}
	return false
}

// staircase hands a range over step by step, each of which has all columns but
// the last in common.
func (d *batchDecoder) staircase(from, to rangeBound, common int) error {
	prefix := func(b rangeBound, n int) rangeBound { // up to all that has these columns
		return rangeBound{row: b.row, columns: n, inclusive: true}
	}
	step := func(b rangeBound, n int) rangeBound {
		return rangeBound{row: b.row, columns: n, inclusive: b.inclusive && n == b.columns}
	}
	for n := from.columns; n > common+1; n-- {
		if err := d.rangeChange(step(from, n), prefix(from, n-1), n-1); err != nil {
			return err
		}
	}
	lower, upper := prefix(from, common), prefix(to, common)
	if from.columns > common {
		lower = step(from, common+1)
	}
	if to.columns > common {
		upper = step(to, common+1)
	}
	if err := d.rangeChange(lower, upper, common); err != nil {
		return err
	}
	for n := common + 2; n <= to.columns; n++ {
		if err := d.rangeChange(prefix(to, n-1), step(to, n), n-1); err != nil {
			return err
		}
	}
	return nil
}

// rangeChange makes one change. The bounds have so many columns in common.
func (d *batchDecoder) rangeChange(from, to rangeBound, common int) error {
	c := cdc.Change{
		Op: cdc.DeleteRange, Client: d.table.client, Schema: d.table.name.Schema, Table: d.table.name.Table,
		WriteTime: d.micros,
	}
	var err error
	if c.Key, err = d.object(func() error { return d.key(from.row, false) }); err != nil {
		return err
	}
	if common < d.table.clusteringColumns() && d.table.base[d.clusteringAt(common)].desc {
		from, to = to, from
	}
	c.Range, err = d.object(func() error {
		if from.columns > 0 {
			d.buf = append(d.buf, `"from":`...)
			if err := d.appendBound(from); err != nil {
				return err
			}
		}
		if to.columns > 0 {
			if from.columns > 0 {
				d.buf = append(d.buf, ',')
			}
			d.buf = append(d.buf, `"to":`...)
			return d.appendBound(to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.changes = append(d.changes, c)
	return nil
}

func (d *batchDecoder) appendBound(b rangeBound) error {
	d.buf = append(d.buf, `{"key":{`...)
	for n := range b.columns {
		i := d.clusteringAt(n)
		if err := d.member(&d.table.base[i], b.row, d.layout.base[i].value); err != nil {
			return err
		}
	}
	d.buf = append(d.buf, `},"inclusive":`...)
	if b.inclusive {
		d.buf = append(d.buf, "true}"...)
	} else {
		d.buf = append(d.buf, "false}"...)
	}
	return nil
}
