package postgres

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/record"
)

// fuzzDecoder has a column of every form that the decoder knows.
func fuzzDecoder() *rowDecoder {
	ts := fuzzTypes()
	d := &rowDecoder{schema: &record.Schema{}}
	for _, oid := range []uint32{boolOID, int2OID, int4OID, int8OID, oidOID, float4OID, float8OID, numericOID, byteaOID, dateOID, timeOID,
		timestampOID, timestamptzOID, uuidOID, textOID, jsonOID, jsonbOID, 1007, 3904, 20001} {
		t := ts.lookup(oid)
		d.columns = append(d.columns, decodedColumn{name: "c", oid: oid, typ: t})
		d.schema.Columns = append(d.schema.Columns, record.Column{Name: "c", Type: recordType(t, oid, -1)})
	}
	return d
}

// FuzzDecodeRow gives the decoder what no server sends: it must neither fail nor
// leave half a row behind.
func FuzzDecodeRow(f *testing.F) {
	d := fuzzDecoder()
	row := binary.BigEndian.AppendUint16(nil, uint16(len(d.columns)))
	for _, value := range []string{"\x01", "\x00\x07", "\x00\x00\x00\x07", strings.Repeat("\x01", 8), "\xff\xff\xff\xff", "\x3f\x80\x00\x00", strings.Repeat("\x40", 8),
		"\x00\x02\x00\x00\x40\x00\x00\x02\x00\x0c\x0b\xb8", "\x00\xff", "\x00\x00\x10\x00", strings.Repeat("\x00", 8), strings.Repeat("\x00", 8), "\x7f" + strings.Repeat("\xff", 7),
		strings.Repeat("u", 16), "text\xff", "{\n}", `{"a": 1}`, "{1,NULL}", "[1,2)", "(1,2,3)"} {
		row = binary.BigEndian.AppendUint32(row, uint32(len(value)))
		row = append(row, value...)
	}
	if err := d.row(record.New(d.schema, 1), row); err != nil {
		f.Fatal(err)
	}
	f.Add(row)
	f.Add([]byte{0, 20, 0xff, 0xff, 0xff, 0xff})
	f.Add(append(binary.BigEndian.AppendUint16(nil, uint16(len(d.columns))), bytes.Repeat([]byte{0xff}, 4*len(d.columns))...))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := record.New(d.schema, 1)
		for i := range b.Columns {
			b.Columns[i].AppendNull()
		}
		b.Done()
		err := d.row(b, body)
		want := 2
		if err != nil {
			want = 1
		}
		b.SetRows(want) // which holds all columns against it
		b.AppendJSON(nil, want-1)
	})
}

// FuzzNumeric writes any text as a numeric and reads it back, and reads any bytes
// as a numeric.
func FuzzNumeric(f *testing.F) {
	for _, s := range []string{"0", "-0.0", "1.50", "10000", "0.0001", "-12345.6789", "NaN", "Infinity", "1e5", "--1", "00012", "\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01"} {
		f.Add(s)
	}
	w, _ := newColumnWriter(&shapeColumn{oid: numericOID, typ: static[numericOID], typmod: -1, native: "numeric"}, record.TypeDecimal)
	f.Fuzz(func(t *testing.T, s string) {
		appendNumeric(nil, []byte(s))
		v := &record.Vector{Kind: record.Decimal}
		v.AppendString(s)
		p, problem := w.numeric(nil, v, 0)
		if problem != "" {
			return
		}
		got, ok := appendNumeric(nil, p)
		want := s
		if rest, negative := strings.CutPrefix(s, "-"); rest != "Infinity" && rest != "NaN" && rest != "" {
			whole, fraction, dot := strings.Cut(rest, ".")
			want = strings.TrimLeft(whole, "0")
			if want == "" {
				want = "0"
			}
			if dot {
				want += "." + fraction
			}
			if negative && strings.Trim(rest, "0.") != "" {
				want = "-" + want
			}
		}
		if !ok || string(got) != want {
			t.Fatalf("%q came back as %q, %v", s, got, ok)
		}
	})
}

// FuzzFitJSON fits any JSON to types that are made of others.
func FuzzFitJSON(f *testing.F) {
	ts := fuzzTypes()
	oids := []uint32{1007, 1009, 3904, 4451, 22, 20001, 20002, 20003, 20004, jsonOID, jsonbOID}
	for i, seed := range []string{`[1,null]`, `{"lower":[0],"values":[1]}`, `{"lower":1,"upper":null,"bounds":"[)"}`, `{"empty":true}`, `{"a":1,"b":["x"],"c":null}`, `"\u0000"`, `"\ud800"`, `[[]]`} {
		f.Add(i, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, which int, raw []byte) {
		oid := oids[uint(which)%uint(len(oids))]
		w, ok := newColumnWriter(&shapeColumn{oid: oid, typ: ts.lookup(oid), typmod: -1}, record.TypeJSON)
		if !ok {
			return
		}
		v := &record.Vector{Kind: record.JSON}
		v.AppendBytes(raw)
		if text, problem := w.append(nil, v, 0); problem == "" && w.wire == textOID && bytes.IndexByte(text[4:], 0) >= 0 {
			t.Fatalf("%q gives a zero byte: %q", raw, text)
		}
	})
}
