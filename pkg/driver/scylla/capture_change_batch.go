package scylla

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"
)

// sift takes rows out that are not of this batch. scylla-cdc-go keeps the rows of
// a batch whose last one was not marked as such for the next one it meets, so that
// numbers come twice. What belongs to the batch the log itself says.
func (d *batchDecoder) sift(ctx context.Context, stream []byte, at gocql.UUID) error {
	twice := false
	for i := 1; i < len(d.rows) && !twice; i++ {
		twice = d.rows[i].seq == d.rows[i-1].seq
	}
	if !twice {
		return nil
	}
	foreign := errors.New("it is of a batch whose end the log does not have")
	if d.table.again == nil {
		for i := range d.rows {
			d.reject(&d.rows[i], foreign)
		}
		d.rows = nil
		return nil
	}
	own, err := d.table.again(ctx, stream, at, nil)
	if err != nil {
		return err
	}
	var kept []logRow
	for i := len(d.rows) - 1; i >= 0; i-- { // those of the batch came last
		r := d.rows[i]
		n := slices.IndexFunc(own, func(o logRow) bool { return o.seq == r.seq && o.op == r.op })
		if n < 0 {
			d.reject(&r, foreign)
			continue
		}
		own = slices.Delete(own, n, n+1)
		kept = append(kept, r)
	}
	if len(own) > 0 {
		return errors.New("scylla: rows of the log are gone while they are read")
	}
	slices.Reverse(kept)
	d.rows = kept
	return nil
}

// clear has the log read again for values that scylla-cdc-go does not tell apart.
func (d *batchDecoder) clear(ctx context.Context, stream []byte, at gocql.UUID) error {
	var names []string
	var which []int
	for _, l := range d.layout.base {
		i := l.value
		if slices.ContainsFunc(d.rows, func(r logRow) bool { return d.doubtful(r, l) }) {
			names, which = append(names, d.layout.columns[i].Name), append(which, i)
		}
	}
	if len(names) == 0 || d.table.again == nil {
		return nil
	}
	exact, err := d.table.again(ctx, stream, at, names)
	if err != nil {
		return err
	}
	for i := range d.rows {
		r := &d.rows[i]
		n := slices.IndexFunc(exact, func(e logRow) bool { return e.seq == r.seq })
		if n < 0 {
			return errors.New("scylla: rows of the log are gone while they are read")
		}
		r.values = slices.Clone(r.values)
		for k, at := range which {
			// Of a tuple scylla-cdc-go knows well whether it is null: it asks for its
			// time of writing.
			if _, tuple := d.layout.columns[at].TypeInfo.(gocql.TupleTypeInfo); !tuple || !isNull(r.values[at]) {
				r.values[at] = exact[n].values[k]
			}
		}
	}
	return nil
}

// doubtful reports whether a value of a row of data may be another than the one
// that was handed over.
func (d *batchDecoder) doubtful(r logRow, l logColumn) bool {
	switch r.op {
	case scyllacdc.PreImage, scyllacdc.PostImage, scyllacdc.Insert, scyllacdc.Update:
	default:
		return false
	}
	if l.deleted >= 0 && isTrue(r.values[l.deleted]) && isNull(r.values[l.value]) {
		return false
	}
	if l.form != atomicForm && isNull(r.values[l.value]) {
		return false // an unfrozen one that is empty is null
	}
	return unclear(d.layout.columns[l.value].TypeInfo, r.values[l.value])
}

// unclear reports whether a value that scylla-cdc-go handed over may stand for
// more than one: its empty lists and sets are nil like those that are null, and
// so is, in a tuple, its empty blob a null one. Within lists, sets and maps there
// are no nulls.
func unclear(t gocql.TypeInfo, v any) bool {
	if _, ok := v.(wireValue); ok {
		return false
	}
	switch t := t.(type) {
	case gocql.CollectionType:
		return t.Type() != gocql.TypeMap && isNull(v) || unclearWithin(t, v)
	case gocql.TupleTypeInfo:
		elements, _ := v.([]any)
		for i, e := range elements {
			if i >= len(t.Elems) {
				break
			}
			if b, ok := e.([]byte); ok && len(b) == 0 || unclear(t.Elems[i], e) {
				return true
			}
		}
	case gocql.UDTTypeInfo:
		fields, _ := v.(map[string]any)
		for _, f := range t.Elements {
			if e, ok := fields[f.Name]; ok && unclear(f.Type, e) {
				return true
			}
		}
	}
	return false
}

// unclearWithin looks into the elements of a collection, where they have parts.
func unclearWithin(t gocql.CollectionType, v any) bool {
	rv := reflect.ValueOf(v)
	switch {
	case isNull(v):
	case t.Type() == gocql.TypeMap && (hasParts(t.Key) || hasParts(t.Elem)):
		for i := rv.MapRange(); i.Next(); {
			if unclearPart(t.Key, i.Key()) || unclearPart(t.Elem, i.Value()) {
				return true
			}
		}
	case t.Type() != gocql.TypeMap && hasParts(t.Elem):
		for i := range rv.Len() {
			if unclearPart(t.Elem, rv.Index(i)) {
				return true
			}
		}
	}
	return false
}

func unclearPart(t gocql.TypeInfo, v reflect.Value) bool {
	if c, ok := t.(gocql.CollectionType); ok {
		return unclearWithin(c, v.Interface())
	}
	return unclear(t, v.Interface())
}

func hasParts(t gocql.TypeInfo) bool {
	switch t := t.(type) {
	case gocql.TupleTypeInfo, gocql.UDTTypeInfo:
		return true
	case gocql.CollectionType:
		return t.Key != nil && hasParts(t.Key) || hasParts(t.Elem)
	}
	return false
}
