package scylla

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// readLog reads a table's log by scylla-cdc-go until it has given so many batches.
func readLog(t testing.TB, b *Backend, name driver.TableName, batches int) (read []scyllacdc.Change) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	taken := make(chan scyllacdc.Change, batches)
	reader, err := scyllacdc.NewReader(ctx, &scyllacdc.ReaderConfig{
		Session: b.session, TableNames: []string{name.Schema + "." + name.Table},
		ChangeConsumerFactory: scyllacdc.MakeChangeConsumerFactoryFromFunc(func(ctx context.Context, _ string, c scyllacdc.Change) error {
			c.StreamID = slices.Clone(c.StreamID) // its memory is that of the next row, too
			select {
			case taken <- c:
			case <-ctx.Done():
			}
			return nil
		}),
		Logger: discard{},
		Advanced: scyllacdc.AdvancedReaderConfig{
			ConfidenceWindowSize: time.Millisecond, QueryTimeWindowSize: time.Hour, ChangeAgeLimit: time.Minute,
			PostNonEmptyQueryDelay: 20 * time.Millisecond, PostEmptyQueryDelay: 20 * time.Millisecond,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- reader.Run(ctx) }()
	for len(read) < batches {
		select {
		case c := <-taken:
			read = append(read, c)
		case err := <-done:
			t.Fatalf("reading ended with %d of %d batches: %v", len(read), batches, err)
		case <-ctx.Done():
			t.Fatalf("%d of %d batches were read", len(read), batches)
		}
	}
	cancel()
	<-done
	return read
}

type discard struct{}

func (discard) Printf(string, ...any) {}

func exec(t *testing.T, b *Backend, text string, params ...json.RawMessage) {
	t.Helper()
	rows, err := b.Query(t.Context(), driver.Statement{Text: text, Params: params})
	if err == nil {
		err = rows.Close()
	}
	if err != nil {
		t.Fatalf("%s with %s: %v", text, params, err)
	}
}

func TestARowHasOneFormInAQueryAndInTheLogDouble(t *testing.T) {
	t.Parallel()
	types := []string{
		"ascii", "bigint", "blob", "boolean", "date", "decimal", "double", "duration", "float", "inet", "int", "smallint", "text",
		"time", "timestamp", "timeuuid", "tinyint", "uuid", "varint",
		"list<int>", "list<text>", "set<text>", "set<timestamp>", "map<text, int>", "map<int, text>", "map<timeuuid, blob>", "map<inet, decimal>",
		"frozen<list<int>>", "frozen<set<blob>>", "frozen<map<varint, double>>", "frozen<map<date, frozen<list<text>>>>",
		"list<frozen<tuple<int, text>>>", "frozen<tuple<blob, frozen<list<int>>, inet>>", "frozen<tuple<int, frozen<tuple<text, blob>>>>",
		"address", "frozen<address>", "set<frozen<address>>", "map<text, frozen<address>>", "frozen<list<frozen<list<int>>>>",
	}
	const rows = 40
	cluster := scyllatest.Start(t)
	cluster.MustExec(t, createShop, "CREATE TYPE shop.address (street text, zip int, tags frozen<list<text>>, at frozen<tuple<double, double>>)")
	var columns, marks []string
	for i, text := range types {
		columns, marks = append(columns, fmt.Sprintf("c%02d %s", i, text)), append(marks, "?")
	}
	// The key goes one way and the other, and the table has tuples.
	cluster.MustExec(t, "CREATE TABLE shop.t (pk int, ck text, "+strings.Join(columns, ", ")+", PRIMARY KEY (pk, ck)) WITH CLUSTERING ORDER BY (ck DESC) AND cdc = {'enabled': true, 'postimage': true, 'preimage': 'full'}")
	b := openDouble(t, cluster)
	name := driver.TableName{Schema: "shop", Table: "t"}
	m, err := b.captureTable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	again := m.again
	asked := 0
	m.again = func(ctx context.Context, stream []byte, at gocql.UUID, columns []string) ([]logRow, error) {
		asked++
		return again(ctx, stream, at, columns)
	}
	meta, err := b.tableMeta(t.Context(), "shop", "t")
	if err != nil {
		t.Fatal(err)
	}
	insert := "INSERT INTO shop.t (pk, ck, c" + strings.Join(numbered(len(types)), ", c") + ") VALUES (?, ?, " + strings.Join(marks, ", ") + ")"
	for n := range rows {
		params := []json.RawMessage{json.RawMessage(fmt.Sprint(n)), json.RawMessage(`"x"`)}
		for i := range types {
			c := meta.columns[2+i]
			if c.name != fmt.Sprintf("c%02d", i) {
				t.Fatalf("column %d is %s", i, c.name)
			}
			value, err := appendValue(nil, c.typ, rapid.Custom(func(r *rapid.T) []byte { return drawValue(r, c.typ) }).Example(n))
			if err != nil {
				t.Fatal(err)
			}
			if (n+i)%7 == 0 {
				value = []byte("null")
			}
			params = append(params, value)
		}
		exec(t, b, insert, params...)
	}
	query := map[string]string{}
	result, err := b.Query(t.Context(), driver.Statement{Text: "SELECT * FROM shop.t"})
	if err != nil {
		t.Fatal(err)
	}
	for result.Next() {
		row := result.AppendJSON(nil)
		query[keyText(t, row)] = string(row)
	}
	if err := result.Close(); err != nil || len(query) != rows {
		t.Fatalf("%d rows are queried, %v", len(query), err)
	}
	for _, batch := range readLog(t, b, name, rows) {
		for _, whole := range []bool{true, false} { // by its image, and by what was written
			if !whole {
				batch.PostImage = nil
			}
			changes, rejected, err := m.decode(t.Context(), &batch)
			if err != nil || len(rejected) > 0 || len(changes) != 1 {
				t.Fatalf("%d changes, rejected %+v, %v", len(changes), rejected, err)
			}
			c := changes[0]
			if c.Op != cdc.Insert || c.Delta != nil || len(c.Unchanged) > 0 {
				t.Errorf("the change is an %s with %s and %q", c.Op, c.Delta, c.Unchanged)
			}
			if want := query[keyText(t, c.After)]; string(c.After) != want {
				t.Errorf("in a change\n%s\nin a query\n%s", c.After, want)
			}
		}
	}
	if asked == 0 {
		t.Error("nothing was read again, though empty lists look like none")
	}
}

func numbered(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("%02d", i))
	}
	return list
}

// keyText is the part of a row before its first column that is not of the key.
func keyText(t *testing.T, row []byte) string {
	t.Helper()
	key, _, ok := bytes.Cut(row, []byte(`,"c00"`))
	if !ok {
		t.Fatalf("the row %s has no column c00", row)
	}
	return string(key)
}

// timeuuids are the keys that the server gives to elements of lists.
var timeuuids = regexp.MustCompile(`"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"`)

// alike is the envelope of a change without what another writing of it has not.
func alike(t *testing.T, raw []byte) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		t.Fatal(err)
	}
	delete(members, "writetime")
	return timeuuids.ReplaceAllString(string(marshal(t, members)), `"key"`)
}

// microseconds are write times that a statement gives itself.
var microseconds = regexp.MustCompile(`\b1[0-9]{15}\b`)

// today moves the write times of a statement to now: a log has no stream for what
// is written long ago.
func today(statement string) string {
	var move int64
	return microseconds.ReplaceAllStringFunc(statement, func(text string) string {
		n, _ := strconv.ParseInt(text, 10, 64) // it has sixteen digits
		if move == 0 {
			move = time.Now().UnixMicro() - n
		}
		return strconv.FormatInt(n+move, 10)
	})
}

// The statements of a fixture are done to a double, whose log is read by
// scylla-cdc-go. What comes out must be what the document, or the cluster that was
// recorded, says. It holds the double against the fixtures, and what lies between.
func TestStatementsOfFixturesGiveTheirChangesDouble(t *testing.T) {
	t.Parallel()
	fixtures, err := cdcfixture.Load("testdata/fixtures")
	if err != nil {
		t.Fatal(err)
	}
	cluster := scyllatest.Start(t)
	b := openDouble(t, cluster)
	done := 0
	for i, f := range fixtures {
		if len(f.Statements) == 0 {
			continue // a log that no statement is told of; it is read above
		}
		done++
		t.Run(strings.TrimSuffix(f.File, ".json"), func(t *testing.T) {
			t.Parallel()
			keyspace := fmt.Sprintf("done_%d", i)
			cluster.MustExec(t, strings.Replace(createShop, "shop", keyspace, 1))
			for _, statement := range append(slices.Clone(f.Create), f.Statements...) {
				cluster.MustExec(t, cdcfixture.In(today(statement), keyspace, f.Table))
			}
			name := driver.TableName{Schema: keyspace, Table: f.Table}
			m, err := b.captureTable(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, batch := range readLog(t, b, name, len(batchesOf(t, m, f.Log))) {
				changes, rejected, err := m.decode(t.Context(), &batch)
				if err != nil || len(rejected) > 0 {
					t.Fatalf("%v, rejected %+v", err, rejected)
				}
				for _, c := range changes {
					got = append(got, alike(t, []byte(told(t, &c))))
				}
			}
			for _, c := range f.Changes {
				want = append(want, alike(t, c))
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
	t.Logf("%d of %d fixtures have statements", done, len(fixtures))
}

func TestABatchWithoutItsEndIsNotMixedWithTheNextDouble(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t)
	cluster.MustExec(t, createShop, `CREATE TABLE shop.t (pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`,
		`INSERT INTO shop.t (pk, ck, v) VALUES (1, 1, 1)`)
	rows, err := cluster.LogRows("shop.t")
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	r := rows[0]
	cluster.MustExec(t, fmt.Sprintf(`UPDATE shop.t_scylla_cdc_log SET "cdc$end_of_batch" = null WHERE "cdc$stream_id" = %s AND "cdc$time" = %s AND "cdc$batch_seq_no" = %s`,
		r[columnStream], r[columnTime], r[columnSeq]), `UPDATE shop.t SET v = 2 WHERE pk = 1 AND ck = 1`)
	b := openDouble(t, cluster)
	name := driver.TableName{Schema: "shop", Table: "t"}
	m, err := b.captureTable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	batch := readLog(t, b, name, 1)[0]
	if n := len(batch.PreImage) + len(batch.Delta); n != 3 {
		t.Fatalf("the library handed %d rows over, so that there is nothing to be parted", n)
	}
	changes, rejected, err := m.decode(t.Context(), &batch)
	if err != nil || len(changes) != 1 || len(rejected) != 1 {
		t.Fatalf("%d changes, rejected %+v, %v", len(changes), rejected, err)
	}
	if c := changes[0]; c.Op != cdc.Update || string(c.Before) != `{"pk":1,"ck":1,"v":1}` || string(c.After) != `{"pk":1,"ck":1,"v":2}` {
		t.Errorf("the change is %+v", c)
	}
	if r := rejected[0]; r.Op != cdc.Insert || !strings.Contains(string(r.Raw), `"v":1`) {
		t.Errorf("rejected is %s %s", r.Op, r.Raw)
	}
}
