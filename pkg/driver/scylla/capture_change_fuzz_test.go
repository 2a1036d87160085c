package scylla

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"
)

// fuzzTable has a column of each form.
func fuzzTable(t testing.TB) *captureTable {
	return tableOf(t, "pk int partition_key", "ck text clustering desc", "c2 int clustering", "s text static", "v decimal",
		"l list<frozen<tuple<int, text>>>", "t set<text>", "m map<int, blob>", "u address", "f frozen<map<text, frozen<list<int>>>>")
}

// cut takes n bytes off.
func cut(data []byte, n int) (head, rest []byte) {
	n = min(n, len(data))
	return data[:n:n], data[n:]
}

// rowsOf makes rows of bytes: an operation, a number and a time to live, and then
// for each column how long its value is; 255 is null.
func rowsOf(m *captureTable, data []byte) (rows []logRow) {
	columns := m.logColumns()
	for len(data) > 2 && len(rows) < 16 {
		r := logRow{op: scyllacdc.OperationType(int8(data[0])), seq: int32(data[1] % 16), ttl: int64(data[2] % 3)}
		data = data[3:]
		for range columns {
			v := wireValue(nil)
			if len(data) > 0 {
				n := data[0]
				if data = data[1:]; n < 255 {
					var head []byte
					head, data = cut(data, int(n))
					v = append(wireValue{}, head...)
				}
			}
			r.values = append(r.values, v)
		}
		rows = append(rows, r)
	}
	return rows
}

// bytesOf is what rowsOf reads the rows of.
func bytesOf(rows []logRow) (data []byte) {
	for _, r := range rows {
		data = append(data, byte(r.op), byte(r.seq), byte(r.ttl))
		for _, v := range r.values {
			if w := v.(wireValue); w == nil {
				data = append(data, 255)
			} else {
				data = append(append(data, byte(len(w))), w...)
			}
		}
	}
	return data
}

func FuzzABatchIsToldOrRejected(f *testing.F) {
	m := fuzzTable(f)
	for _, text := range []string{
		`{"cdc$batch_seq_no":0,"cdc$operation":2,"pk":1,"ck":"a","c2":1,"v":"1.5","u":{"street":"a","zip":1,"tags":["x"]},"cdc$deleted_u":true,"f":{"a":[1]}}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":1,"pk":1,"ck":"a","c2":1,"l":{"c72c7c3e-2fda-11eb-ba1d-e2d8e9bb0299":[1,"b"]},"t":["x"],"cdc$deleted_elements_t":["y"],"m":{"1":"AA=="},"cdc$deleted_elements_m":[2],"u":{"street":"b"},"cdc$deleted_elements_u":[1]}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":1,"pk":1,"s":"static"}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":5,"pk":1,"ck":"a","c2":1}`,
		`{"cdc$batch_seq_no":1,"cdc$operation":8,"pk":1,"ck":"A"}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":0,"pk":1,"ck":"a","c2":1,"v":"1"}`,
		`{"cdc$batch_seq_no":2,"cdc$operation":9,"pk":1,"ck":"a","c2":1,"v":"2"}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":4,"pk":1}`,
	} {
		f.Add(bytesOf(batchesOf(f, m, rowsFrom(f, text))[0].rows))
	}
	f.Add(bytesOf(batchesOf(f, m, rowsFrom(f,
		`{"cdc$batch_seq_no":0,"cdc$operation":0,"pk":1,"ck":"a","c2":1,"v":"1"}`,
		`{"cdc$batch_seq_no":1,"cdc$operation":1,"pk":1,"ck":"a","c2":1,"v":"2"}`,
		`{"cdc$batch_seq_no":2,"cdc$operation":6,"pk":1}`, `{"cdc$batch_seq_no":3,"cdc$operation":7,"pk":1,"ck":"b"}`))[0].rows))
	f.Fuzz(func(t *testing.T, data []byte) {
		rows := rowsOf(m, data)
		if len(rows) == 0 {
			return
		}
		images, ranges := 0, 0
		for _, r := range rows {
			switch r.op {
			case scyllacdc.PreImage, scyllacdc.PostImage:
				images++
			case scyllacdc.RangeDeleteStartInclusive, scyllacdc.RangeDeleteStartExclusive, scyllacdc.RangeDeleteEndInclusive, scyllacdc.RangeDeleteEndExclusive:
				ranges++
			}
		}
		changes, rejected, err := m.decodeBatch(logBatch{stream: make([]byte, 16), at: gocql.UUID{}, rows: rows})
		if err != nil {
			t.Fatal(err)
		}
		used := 0
		for _, c := range changes {
			for _, raw := range []json.RawMessage{c.Key, c.Before, c.After, c.Delta, c.Range} {
				if raw != nil && (!json.Valid(raw) || raw[0] != '{' || bytes.ContainsAny(raw, "\r\n")) {
					t.Fatalf("a change has %q", raw)
				}
			}
			if c.Key == nil || c.Op == "" || c.Schema != "ks" || c.Table != "t" {
				t.Fatalf("the change %+v is not whole", c)
			}
			if c.Before != nil {
				used++
			}
			if c.After != nil {
				used++
			}
		}
		for _, r := range rejected {
			if r.Reason == "" || !json.Valid(r.Raw) {
				t.Fatalf("rejected %+v", r)
			}
		}
		if told := len(changes) + len(rejected) + used; told < len(rows)-ranges/2-images {
			t.Fatalf("of %d rows, %d of them images and %d bounds, come %d changes and %d rejected", len(rows), images, ranges, len(changes), len(rejected))
		}
	})
}
