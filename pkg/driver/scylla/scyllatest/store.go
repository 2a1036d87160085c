package scyllatest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/datastax/go-cassandra-native-protocol/datacodec"
	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// ctype is a CQL type: its text as system_schema.columns shows it and its wire form.
type ctype struct {
	text   string
	dt     datatype.DataType
	coll   string // list, set, map, udt, tuple, or "" for a primitive
	args   []ctype
	frozen bool
}

var primitives = map[string]datatype.DataType{
	"bigint": datatype.Bigint, "blob": datatype.Blob, "boolean": datatype.Boolean, "double": datatype.Double,
	"inet": datatype.Inet, "int": datatype.Int, "smallint": datatype.Smallint, "text": datatype.Varchar,
	"timestamp": datatype.Timestamp, "timeuuid": datatype.Timeuuid, "tinyint": datatype.Tinyint, "uuid": datatype.Uuid,
}

func collection(kind string, a []ctype) ctype {
	c := ctype{coll: kind, args: a}
	var names []string
	var dts []datatype.DataType
	for _, x := range a {
		names, dts = append(names, x.text), append(dts, x.dt)
	}
	c.text = kind + "<" + strings.Join(names, ", ") + ">"
	switch kind {
	case "list":
		c.dt = datatype.NewList(dts[0])
	case "set":
		c.dt = datatype.NewSet(dts[0])
	case "map":
		c.dt = datatype.NewMap(dts[0], dts[1])
	default:
		c.dt = datatype.NewTuple(dts...)
	}
	return c
}

type column struct {
	name, kind string // kind: partition_key, clustering, static, regular
	typ        ctype
	pos        int
	desc       bool
}

type cell struct {
	val []byte // as CQL encodes it: the store never decodes a value
	wt  int64
}

type row map[string]cell

// table keeps its rows sorted by partition key bytes, then clustering columns.
// (A real ring orders partitions by token; static columns are declared only.)
type table struct {
	ks, name string
	by       map[string]*column
	cols     []*column // in SELECT * order
	pk, ck   []*column
	rows     []row
	cdc      map[string]string
	isLog    bool
}

// finish orders the columns: key columns as declared, then the others by name.
func (t *table) finish(order []string) {
	var rest []string
	for n, c := range t.by {
		if c.kind == "regular" || c.kind == "static" {
			rest, c.pos = append(rest, n), -1
		}
	}
	slices.Sort(rest)
	for _, n := range append(slices.Clone(order), rest...) {
		c := t.by[n]
		t.cols = append(t.cols, c)
		switch c.kind {
		case "partition_key":
			c.pos, t.pk = len(t.pk), append(t.pk, c)
		case "clustering":
			c.pos, t.ck = len(t.ck), append(t.ck, c)
		}
	}
}

func (t *table) put(v map[string][]byte, now int64) {
	n := row{}
	for name, b := range v {
		n[name] = cell{b, now}
	}
	i, found := slices.BinarySearchFunc(t.rows, n, func(a, b row) int {
		for _, c := range append(slices.Clone(t.pk), t.ck...) {
			d := compare(c.typ.dt, a[c.name].val, b[c.name].val)
			if c.desc {
				d = -d
			}
			if d != 0 {
				return d
			}
		}
		return 0
	})
	if !found {
		t.rows = slices.Insert(t.rows, i, n)
	}
	for name, c := range n {
		t.rows[i][name] = c
	}
}

// compare orders two encoded values of a type as ScyllaDB's comparators do.
func compare(dt datatype.DataType, a, b []byte) int {
	switch dt.Code() {
	case primitive.DataTypeCodeInt, primitive.DataTypeCodeBigint, primitive.DataTypeCodeTimestamp, primitive.DataTypeCodeSmallint, primitive.DataTypeCodeTinyint:
		return cmp.Compare(signed(a), signed(b))
	case primitive.DataTypeCodeTimeuuid:
		if len(a) == 16 && len(b) == 16 { // by timestamp, then by the other bytes, signed
			ts := func(u []byte) []byte { return []byte{u[6] & 0x0f, u[7], u[4], u[5], u[0], u[1], u[2], u[3]} }
			d := bytes.Compare(ts(a), ts(b))
			for i := 8; i < 16 && d == 0; i++ {
				d = cmp.Compare(int8(a[i]), int8(b[i]))
			}
			return d
		}
	}
	return bytes.Compare(a, b)
}

func signed(b []byte) (v int64) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		v = -1
	}
	for _, x := range b {
		v = v<<8 | int64(x)
	}
	return v
}

func enc(dt datatype.DataType, v any) []byte {
	c, err := datacodec.NewCodec(dt)
	if err == nil {
		var b []byte
		if b, err = c.Encode(v, primitive.ProtocolVersion4); err == nil {
			return b
		}
	}
	panic(invalid("cannot encode %v as %s: %v", v, dt.AsCql(), err))
}

func (t term) value(vals []*primitive.Value) []byte {
	if t.tuple != nil {
		b := []byte{}
		for _, e := range t.tuple {
			v, n := e.value(vals), int32(-1)
			if v != nil {
				n = int32(len(v))
			}
			b = append(binary.BigEndian.AppendUint32(b, uint32(n)), v...)
		}
		return b
	} else if t.bind < 0 {
		return t.lit
	} else if t.bind >= len(vals) {
		panic(invalid("Invalid amount of bind variables"))
	}
	return vals[t.bind].Contents
}

func (s *Cluster) run(st *stmt, o *message.QueryOptions) message.Message {
	switch st.kind {
	case "select":
		return s.selectRows(st, o)
	case "insert":
		v := map[string][]byte{}
		for i, c := range st.cols {
			if b := st.vals[i].value(o.PositionalValues); b != nil {
				v[c.name] = b
			}
		}
		s.clock = max(s.clock+1, time.Now().UnixMicro())
		st.t.put(v, s.clock)
		return &message.VoidResult{}
	}
	return s.create(st)
}

func (s *Cluster) selectRows(st *stmt, o *message.QueryOptions) message.Message {
	var hits []row
	for _, r := range st.t.rows {
		if match(st, r, o.PositionalValues) {
			hits = append(hits, r)
		}
	}
	if st.limit != nil {
		hits = hits[:min(len(hits), int(signed(st.limit.value(o.PositionalValues))))]
	}
	meta := &message.RowsMetadata{ColumnCount: int32(len(st.out)), Columns: st.out}
	if o.SkipMetadata {
		meta.Columns = nil
	}
	res := &message.RowsResult{Metadata: meta, Data: message.RowSet{}}
	if st.sel[0].fn == "count" {
		res.Data = append(res.Data, message.Row{enc(datatype.Bigint, int64(len(hits)))})
		return res
	}
	from, to := int(signed(o.PagingState)), len(hits) // an offset: rows inserted between pages would shift it
	if from = min(from, to); o.PageSize > 0 && from+int(o.PageSize) < to {
		to = from + int(o.PageSize)
		meta.PagingState = binary.BigEndian.AppendUint64(nil, uint64(to))
		s.Pages++
	}
	for _, r := range hits[from:to] {
		var out message.Row
		for _, sel := range st.sel {
			c, ok := r[sel.col.name]
			if sel.fn == "writetime" && ok {
				c.val = binary.BigEndian.AppendUint64(nil, uint64(c.wt))
			}
			out = append(out, c.val)
		}
		res.Data = append(res.Data, out)
	}
	return res
}

func match(st *stmt, r row, vals []*primitive.Value) bool {
	for _, rel := range st.where {
		c, ok := r[rel.col.name]
		hit := false
		for _, t := range rel.terms {
			d := compare(rel.col.typ.dt, c.val, t.value(vals))
			switch rel.op {
			case "=", "in":
				hit = hit || d == 0
			case "<", "<=":
				hit = d < 0 || d == 0 && rel.op == "<="
			case ">", ">=":
				hit = d > 0 || d == 0 && rel.op == ">="
			}
		}
		if !ok || !hit {
			return false
		}
	}
	return true
}
