package scylla

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// openDouble opens a backend on a double.
func openDouble(t testing.TB, c *scyllatest.Cluster) *Backend {
	t.Helper()
	b, err := Open(t.Context(), athena.ScyllaConn{Hosts: c.Hosts()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.session.Close() })
	return b
}

// logColumns are the columns that ScyllaDB documents for the table's log.
func (m *captureTable) logColumns() []gocql.ColumnInfo {
	native := func(t gocql.Type) gocql.TypeInfo { return gocql.NewNativeType(protocol, t) }
	columns := []gocql.ColumnInfo{
		{Name: columnStream, TypeInfo: native(gocql.TypeBlob)}, {Name: columnTime, TypeInfo: native(gocql.TypeTimeUUID)},
		{Name: columnSeq, TypeInfo: native(gocql.TypeInt)}, {Name: "cdc$end_of_batch", TypeInfo: native(gocql.TypeBoolean)},
		{Name: columnOperation, TypeInfo: native(gocql.TypeTinyInt)}, {Name: columnTTL, TypeInfo: native(gocql.TypeBigInt)},
	}
	for _, b := range m.base {
		columns = append(columns, gocql.ColumnInfo{Name: b.Name, TypeInfo: b.log})
		if b.kind <= clusteringKey {
			continue
		}
		columns = append(columns, gocql.ColumnInfo{Name: deletedPrefix + b.Name, TypeInfo: native(gocql.TypeBoolean)})
		if b.form == atomicForm {
			continue
		}
		element := native(gocql.TypeSmallInt)
		if c, ok := b.log.(gocql.CollectionType); ok {
			if element = c.Elem; c.Type() == gocql.TypeMap {
				element = c.Key
			}
		}
		columns = append(columns, gocql.ColumnInfo{Name: elementsPrefix + b.Name, TypeInfo: gocql.NewCollectionType(gocql.NewNativeType(protocol, gocql.TypeSet), nil, element)})
	}
	return columns
}

// logBatch is a batch of a log that a test gives.
type logBatch struct {
	stream []byte
	at     gocql.UUID
	rows   []logRow
}

func (m *captureTable) decodeBatch(b logBatch) ([]cdc.Change, []driver.Rejected, error) {
	d := batchDecoder{table: m, layout: m.layoutOf(m.logColumns()), rows: b.rows}
	return d.decode(context.Background(), b.stream, b.at)
}

// batchesOf makes batches of rows by the names of their columns.
func batchesOf(t testing.TB, m *captureTable, rows []cdcfixture.Row) (batches []logBatch) {
	t.Helper()
	columns := m.logColumns()
	for n, row := range rows {
		var b logBatch
		var r logRow
		left := maps.Clone(row)
		for _, c := range columns {
			raw, ok := row[c.Name]
			if !ok {
				r.values = append(r.values, wireValue(nil))
				continue
			}
			delete(left, c.Name)
			data, err := marshalJSON(c.TypeInfo, raw)
			if err != nil {
				t.Fatalf("row %d: %s: %v", n, c.Name, err)
			}
			r.values = append(r.values, wireValue(data))
			switch c.Name {
			case columnStream:
				b.stream = data
			case columnTime:
				b.at = gocql.UUID(data)
			case columnSeq:
				r.seq = int32(smallInt(data))
			case columnOperation:
				r.op = scyllacdc.OperationType(smallInt(data))
			case columnTTL:
				r.ttl = smallInt(data)
			}
		}
		if len(left) > 0 {
			t.Fatalf("row %d: the log has no columns %v", n, slices.Sorted(maps.Keys(left)))
		}
		if last := len(batches) - 1; last < 0 || batches[last].at != b.at || !bytes.Equal(batches[last].stream, b.stream) {
			batches = append(batches, b)
		}
		last := &batches[len(batches)-1]
		last.rows = append(last.rows, r)
	}
	return batches
}

// told is the envelope of a change without what a batch does not say.
func told(t testing.TB, c *cdc.Change) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(cdc.NewEncoder("").Append(nil, c), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pos", "client", "schema", "table"} {
		delete(members, name)
	}
	return string(marshal(t, members))
}

// marshal writes a value with the members of objects in order, all the way down.
func marshal(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err == nil {
		var any any
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		if err = dec.Decode(&any); err == nil {
			raw, err = json.Marshal(any)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestFixturesAreReadAsTheySayDouble(t *testing.T) {
	t.Parallel()
	fixtures, err := cdcfixture.Load("testdata/fixtures")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("logs that are read: %s", cdcfixture.Tally(fixtures))
	cluster := scyllatest.Start(t)
	b := openDouble(t, cluster)
	for i, f := range fixtures {
		t.Run(strings.TrimSuffix(f.File, ".json"), func(t *testing.T) {
			keyspace := fmt.Sprintf("fixture_%d", i)
			cluster.MustExec(t, `CREATE KEYSPACE `+keyspace+` WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}`)
			for _, statement := range f.Create {
				cluster.MustExec(t, cdcfixture.In(statement, keyspace, f.Table))
			}
			m, err := b.captureTable(t.Context(), driver.TableName{Schema: keyspace, Table: f.Table})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, batch := range batchesOf(t, m, f.Log) {
				changes, rejected, err := m.decodeBatch(batch)
				if err != nil || len(rejected) > 0 {
					t.Fatalf("%v, rejected %+v", err, rejected)
				}
				for _, c := range changes {
					got = append(got, told(t, &c))
				}
			}
			for n := range max(len(got), len(f.Changes)) {
				g, w := "none", "none"
				if n < len(got) {
					g = got[n]
				}
				if n < len(f.Changes) {
					w = string(marshal(t, f.Changes[n]))
				}
				if g != w {
					t.Errorf("change %d is\n%s\nwant\n%s", n, g, w)
				}
			}
		})
	}
}

// tableOf describes a table by lines such as "ck int clustering desc".
func tableOf(t testing.TB, columns ...string) *captureTable {
	t.Helper()
	meta := &tableMeta{keyspace: "ks", name: "t", cdc: map[string]string{"enabled": "true", "delta": "full", "preimage": "false", "postimage": "false", "ttl": "86400"}}
	types := typeParser{"ks", map[string]userType{
		"address": {[]string{"street", "zip", "tags"}, []string{"text", "int", "frozen<list<text>>"}},
	}}
	for _, line := range columns {
		name, rest, _ := strings.Cut(line, " ")
		c := tableColumn{name: name, kind: kindRegular, position: -1}
		if s, ok := strings.CutSuffix(rest, " desc"); ok {
			rest, c.desc = s, true
		}
		for _, kind := range []string{kindPartitionKey, kindClustering, kindStatic} {
			if s, ok := strings.CutSuffix(rest, " "+kind); ok {
				rest, c.kind = s, kind
			}
		}
		c.text = rest
		var err error
		if c.typ, err = types.parse(rest); err != nil {
			t.Fatal(err)
		}
		meta.columns = append(meta.columns, c)
	}
	m, err := newCaptureTable(driver.TableName{Schema: "ks", Table: "t"}, meta)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func row(t testing.TB, text string) (r cdcfixture.Row) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for name, value := range map[string]string{columnStream: `"AAAAAAAAAAAAAAAAAAAAAQ=="`, columnTime: `"c72c7c3e-2fda-11eb-ba1d-e2d8e9bb0299"`} {
		if _, ok := r[name]; !ok {
			r[name] = json.RawMessage(value)
		}
	}
	return r
}

func rowsFrom(t testing.TB, texts ...string) (rows []cdcfixture.Row) {
	for _, text := range texts {
		rows = append(rows, row(t, text))
	}
	return rows
}

func TestWhatCannotBeToldIsRejected(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		rows   []string
		told   int      // changes that there are nevertheless
		op     []cdc.Op // of what is rejected
		reason string
	}{
		"an operation that is not known": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":42,"pk":1,"ck":2,"v":3}`}, 0, []cdc.Op{""}, "cdc$operation 42"},
		"beside one that is": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":10,"pk":1}`, `{"cdc$batch_seq_no":1,"cdc$operation":3,"pk":1,"ck":2}`},
			1, []cdc.Op{""}, "cdc$operation 10"},
		"a range that does not end":   {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":5,"pk":1,"ck":2}`}, 0, []cdc.Op{cdc.DeleteRange}, "does not end"},
		"a range that does not begin": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":7,"pk":1,"ck":2}`}, 0, []cdc.Op{cdc.DeleteRange}, "cdc$operation 7"},
		"a range over two partitions": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":5,"pk":1,"ck":2}`, `{"cdc$batch_seq_no":1,"cdc$operation":7,"pk":2,"ck":2}`},
			0, []cdc.Op{cdc.DeleteRange, cdc.DeleteRange}, "another partition"},
		"a row without its key": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":2,"ck":2}`}, 0, []cdc.Op{cdc.Insert}, "column pk of its key is null"},
		"an image without its row": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":0,"pk":1,"ck":1,"v":1}`, `{"cdc$batch_seq_no":1,"cdc$operation":1,"pk":1,"ck":2,"v":1}`},
			1, []cdc.Op{""}, "image of a row"},
		"two batches in one": {[]string{`{"cdc$batch_seq_no":0,"cdc$operation":2,"pk":1,"ck":1}`, `{"cdc$batch_seq_no":0,"cdc$operation":2,"pk":1,"ck":2}`},
			0, []cdc.Op{cdc.Insert, cdc.Insert}, "whose end the log does not have"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := tableOf(t, "pk int partition_key", "ck int clustering", "v int")
			changes, rejected, err := m.decodeBatch(batchesOf(t, m, rowsFrom(t, tc.rows...))[0])
			if err != nil || len(changes) != tc.told || len(rejected) != len(tc.op) {
				t.Fatalf("%d changes, %d rejected, %v; want %d and %d", len(changes), len(rejected), err, tc.told, len(tc.op))
			}
			var ops []cdc.Op
			for _, r := range rejected {
				ops = append(ops, r.Op)
				if !strings.Contains(r.Reason, tc.reason) && !strings.Contains(r.Reason, "another partition") {
					t.Errorf("the reason is %q", r.Reason)
				}
				if r.Schema != "ks" || r.Table != "t" || !json.Valid(r.Raw) || !strings.Contains(string(r.Raw), `"pk":1`) && !strings.Contains(string(r.Raw), `"ck":2`) {
					t.Errorf("rejected as %+v of %s", r, r.Raw)
				}
			}
			if !slices.Equal(ops, tc.op) {
				t.Errorf("the operations are %q, want %q", ops, tc.op)
			}
		})
	}
}

func TestABatchThatHasRowsOfAnotherIsParted(t *testing.T) {
	t.Parallel()
	m := tableOf(t, "pk int partition_key", "ck int clustering", "v int")
	// An insert whose end is missing, and then the batch that was read with it: an
	// image and its update.
	rows := batchesOf(t, m, rowsFrom(t,
		`{"cdc$batch_seq_no":0,"cdc$operation":1,"pk":1,"ck":1,"v":1}`,
		`{"cdc$batch_seq_no":0,"cdc$operation":0,"pk":1,"ck":2,"v":2}`,
		`{"cdc$batch_seq_no":1,"cdc$operation":1,"pk":1,"ck":2,"v":3}`))[0]
	m.again = func(_ context.Context, stream []byte, at gocql.UUID, columns []string) ([]logRow, error) {
		if !bytes.Equal(stream, rows.stream) || at != rows.at || len(columns) > 0 {
			t.Errorf("read again: %x %s %q", stream, at, columns)
		}
		return []logRow{{op: scyllacdc.PreImage, seq: 0}, {op: scyllacdc.Update, seq: 1}}, nil
	}
	changes, rejected, err := m.decodeBatch(rows)
	if err != nil || len(changes) != 1 || len(rejected) != 1 {
		t.Fatalf("%d changes, %d rejected, %v", len(changes), len(rejected), err)
	}
	if c := changes[0]; string(c.Before) != `{"pk":1,"ck":2,"v":2}` || string(c.After) != `{"pk":1,"ck":2,"v":3}` {
		t.Errorf("the change is %+v", c)
	}
	if r := rejected[0]; r.Op != cdc.Update || !strings.Contains(string(r.Raw), `"ck":1`) {
		t.Errorf("rejected is %s %s", r.Op, r.Raw)
	}
}

func TestATableThatWasAlteredIsNotGuessed(t *testing.T) {
	t.Parallel()
	m := tableOf(t, "pk int partition_key", "v int", "tags set<text>", "home address")
	for name, other := range map[string]*captureTable{
		"the same":               m,
		"another column":         tableOf(t, "pk int partition_key", "v int", "w int", "tags set<text>", "home address"),
		"a column that is gone":  tableOf(t, "pk int partition_key", "tags set<text>", "home address"),
		"a column of a new name": tableOf(t, "pk int partition_key", "w int", "tags set<text>", "home address"),
		"another type":           tableOf(t, "pk int partition_key", "v bigint", "tags set<text>", "home address"),
		"another element":        tableOf(t, "pk int partition_key", "v int", "tags set<blob>", "home address"),
		"a frozen one":           tableOf(t, "pk int partition_key", "v int", "tags frozen<set<text>>", "home address"),
	} {
		if got := m.layoutOf(other.logColumns()).known; got != (name == "the same") {
			t.Errorf("%s: known is %v", name, got)
		}
	}
}

func TestATableThatWouldEndTheProcessIsNotReadable(t *testing.T) {
	t.Parallel()
	for text, readable := range map[string]bool{
		"map<text, int>": true, "map<inet, decimal>": true, "map<timeuuid, frozen<list<blob>>>": true, "set<blob>": true, "vector<float, 3>": true,
		"map<blob, int>": false, "frozen<map<frozen<list<int>>, int>>": false, "list<frozen<map<frozen<address>, int>>>": false,
		"tuple<int, frozen<map<frozen<tuple<int, int>>, int>>>": false, "map<text, frozen<map<blob, int>>>": false, "'org.example.Custom'": false,
	} {
		if err := tableOf(t, "pk int partition_key", "v "+text).readable(); (err == nil) != readable {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestBoundsOfMixedColumnsCoverTheRange(t *testing.T) {
	t.Parallel()
	// Every range over three columns of small values, in all orders, must delete
	// the rows that the log's own order puts between its bounds.
	for order := range 8 {
		desc := func(i int) string {
			if order>>i&1 == 1 {
				return " desc"
			}
			return ""
		}
		m := tableOf(t, "pk int partition_key", "a int clustering"+desc(0), "b int clustering"+desc(1), "c int clustering"+desc(2))
		var bounds [][]int
		for n := range 4 {
			total := 1
			for range n {
				total *= 3
			}
			for v := range total {
				var bound []int
				for range n {
					bound, v = append(bound, v%3), v/3
				}
				bounds = append(bounds, bound)
			}
		}
		compare := func(row [3]int, bound []int) int { // in the log's order; 0 lies on it
			for i, v := range bound {
				if d := cmp.Compare(row[i], v); d != 0 {
					if order>>i&1 == 1 {
						return -d
					}
					return d
				}
			}
			return 0
		}
		for _, from := range bounds {
			for _, to := range bounds {
				for ends := range 4 {
					checkRange(t, m, from, to, ends&1 == 0, ends&2 == 0, compare)
				}
			}
		}
	}
}

func checkRange(t *testing.T, m *captureTable, from, to []int, fromIn, toIn bool, compare func([3]int, []int) int) {
	bound := func(op, seq int, key []int) cdcfixture.Row {
		text := fmt.Sprintf(`{"cdc$batch_seq_no":%d,"cdc$operation":%d,"pk":1`, seq, op)
		for i, v := range key {
			text += fmt.Sprintf(`,"%c":%d`, 'a'+i, v)
		}
		return row(t, text+"}")
	}
	start, end := 6, 8
	if fromIn {
		start = 5
	}
	if toIn {
		end = 7
	}
	lies := func(d int, in bool, n int) bool { return d < 0 || d == 0 && (in || n == 0) }
	changes, rejected, err := m.decodeBatch(batchesOf(t, m, []cdcfixture.Row{bound(start, 0, from), bound(end, 1, to)})[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(rejected) > 0 { // it may have no row at all, if it ends before it begins
		changes = nil
	}
	var ranges []func([3]int) bool
	for _, c := range changes {
		ranges = append(ranges, rangeOf(t, c.Range))
	}
	for n := range 27 {
		r := [3]int{n % 3, n / 3 % 3, n / 9}
		want := lies(-compare(r, from), fromIn, len(from)) && lies(compare(r, to), toIn, len(to))
		got := false
		for _, in := range ranges {
			got = got || in(r)
		}
		if got != want {
			t.Fatalf("%v from %v (%v) to %v (%v): deleted is %v, want %v, by %d changes", r, from, fromIn, to, toIn, got, want, len(changes))
		}
	}
}

// rangeOf reads a range as cdc.Change documents it.
func rangeOf(t *testing.T, raw json.RawMessage) func(row [3]int) bool {
	type bound struct {
		Key       map[string]int
		Inclusive bool
	}
	var r struct{ From, To *bound }
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	within := func(b *bound, row [3]int, side int) bool {
		if b == nil {
			return true
		}
		for i := range len(b.Key) {
			if d := cmp.Compare(row[i], b.Key[string(rune('a'+i))]); d != 0 {
				return d == side
			}
		}
		return b.Inclusive
	}
	return func(row [3]int) bool { return within(r.From, row, 1) && within(r.To, row, -1) }
}
