package scylla_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// onDouble starts a double with tables items and counted in the keyspace shop,
// and opens a backend on it.
func onDouble(t *testing.T, change func(*athena.ScyllaConn), opts ...scyllatest.Option) (*scyllatest.Cluster, *scylla.Backend) {
	t.Helper()
	double := scyllatest.Start(t, opts...)
	double.MustExec(t,
		`CREATE KEYSPACE shop WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}`,
		`CREATE TABLE shop.items (id bigint PRIMARY KEY, name text, pair tuple<int, text>)`,
		`CREATE TABLE shop.counted (id bigint PRIMARY KEY, n counter)`)
	conn := athena.ScyllaConn{Hosts: double.Hosts(), Keyspace: "shop"}
	if change != nil {
		change(&conn)
	}
	b, err := scylla.Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(t.Context()) })
	return double, b
}

// all runs a statement and gives its rows.
func all(t *testing.T, b driver.Querier, cql string, params ...string) ([]string, error) {
	t.Helper()
	st := driver.Statement{Text: cql}
	for _, p := range params {
		st.Params = append(st.Params, json.RawMessage(p))
	}
	rows, err := b.Query(t.Context(), st)
	if err != nil {
		return nil, err
	}
	var list []string
	for rows.Next() {
		list = append(list, string(rows.AppendJSON(nil)))
	}
	return list, rows.Close()
}

func TestWhatFailsIsToldOnTheDouble(t *testing.T) {
	t.Parallel()
	const (
		insert  = `INSERT INTO items (id, name) VALUES (1, 'a')`
		counter = `UPDATE counted SET n = n + 1 WHERE id = 1`
		lwt     = `INSERT INTO items (id, name) VALUES (1, 'a') IF NOT EXISTS`
		batch   = `BEGIN UNLOGGED BATCH INSERT INTO items (id) VALUES (1); INSERT INTO items (id) VALUES (2); APPLY BATCH`
		read    = `SELECT id FROM items`
	)
	for name, tt := range map[string]struct {
		cql      string
		fault    scyllatest.Fault
		code     athena.Code
		cqlCode  string // of the details
		noEffect bool   // it provably changed nothing
		unknown  bool   // it may have changed something
		attempts int
	}{
		"a counter that was not confirmed is not counted again": {counter, scyllatest.WriteTimeout("COUNTER").After(), athena.CodeBackendUnavailable, "WRITE_TIMEOUT", false, true, 1},
		"a write that was not confirmed is not made again here": {insert, scyllatest.WriteTimeout("SIMPLE").After(), athena.CodeBackendUnavailable, "WRITE_TIMEOUT", false, true, 1},
		"a write that replicas failed at":                       {insert, scyllatest.WriteFailure("SIMPLE"), athena.CodeBackendUnavailable, "WRITE_FAILURE", false, true, 1},
		"a condition of unknown outcome":                        {lwt, scyllatest.CASUnknown(), athena.CodeBackendUnavailable, "CAS_WRITE_UNKNOWN", false, true, 1},
		"a write without enough replicas was not begun":         {insert, scyllatest.Unavailable(), athena.CodeBackendUnavailable, "UNAVAILABLE", true, false, 1},
		"of a batch a part may have been made":                  {batch, scyllatest.Unavailable(), athena.CodeBackendUnavailable, "UNAVAILABLE", false, false, 1},
		"a write refused for load may have been begun":          {insert, scyllatest.Overloaded(), athena.CodeBackendUnavailable, "OVERLOADED", false, true, 1},
		"a write whose connection was lost":                     {insert, scyllatest.Dropped(), athena.CodeBackendUnavailable, "", false, true, 1},
		"a write at which the server broke":                     {insert, scyllatest.ServerError("oops"), athena.CodeBackendUnavailable, "SERVER_ERROR", false, true, 1},
		"a read at which the server broke":                      {read, scyllatest.ServerError("oops"), athena.CodeQueryFailed, "SERVER_ERROR", true, false, 1},
		"a read that replicas failed at is tried elsewhere":     {read, scyllatest.ReadFailure(), athena.CodeQueryFailed, "READ_FAILURE", true, false, 2},
		"a read that took too long is tried elsewhere":          {read, scyllatest.ReadTimeout(), athena.CodeBackendUnavailable, "READ_TIMEOUT", true, false, 2},
		"a read without enough replicas is tried elsewhere":     {read, scyllatest.Unavailable(), athena.CodeBackendUnavailable, "UNAVAILABLE", true, false, 2},
		"a read whose connection was lost is tried elsewhere":   {read, scyllatest.Dropped(), athena.CodeBackendUnavailable, "", true, false, 2},
		"a statement that is not valid":                         {insert, scyllatest.Invalid("no such thing"), athena.CodeQueryFailed, "INVALID", false, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			double, b := onDouble(t, nil, scyllatest.Nodes(2))
			table := "items"
			if tt.cql == counter {
				table = "counted"
			}
			hits := double.Fail(scyllatest.Containing(table), tt.fault, -1)
			_, err := all(t, b, tt.cql)
			if err == nil {
				t.Fatal("it succeeded")
			}
			f := b.Classify(err)
			if f.Code != tt.code || f.NoEffect != tt.noEffect || (f.Details["effect"] == athena.EffectUnknown) != tt.unknown {
				t.Errorf("%v is %s, no effect %v, %v; want %s, %v, unknown %v", err, f.Code, f.NoEffect, f.Details, tt.code, tt.noEffect, tt.unknown)
			}
			if got, _ := f.Details["cql_code"].(string); got != tt.cqlCode {
				t.Errorf("the details are %v, want the code %s", f.Details, tt.cqlCode)
			}
			if got := hits(); got != tt.attempts {
				t.Errorf("it was sent %d times, want %d", got, tt.attempts)
			}
		})
	}
}

func TestAReadGoesOnAtAnotherNodeOfTheDouble(t *testing.T) {
	t.Parallel()
	const n = 2000
	for name, fault := range map[string]scyllatest.Fault{
		"a page whose connection is lost": scyllatest.Dropped(), "a page that takes too long": scyllatest.ReadTimeout(), "a page without replicas": scyllatest.Unavailable(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			double, b := onDouble(t, nil, scyllatest.Nodes(2))
			for i := range n {
				double.MustExec(t, fmt.Sprintf(`INSERT INTO shop.items (id, name) VALUES (%d, 'x')`, i))
			}
			hits := double.Fail(func(r scyllatest.Request) bool { return r.Page == 1 && strings.Contains(r.CQL, "FROM items") }, fault, 1)
			rows, err := all(t, b, `SELECT id FROM items`)
			seen := map[string]bool{}
			for _, row := range rows {
				seen[row] = true
			}
			if err != nil || len(rows) != n || len(seen) != n || hits() != 1 {
				t.Errorf("%d rows, %d of them distinct, %d faults, %v; want %d, each once, and one fault", len(rows), len(seen), hits(), err, n)
			}
		})
	}
}

func TestShortPagesOfTheDoubleAreReadToTheEnd(t *testing.T) {
	t.Parallel()
	for _, short := range []int{1, 3} {
		t.Run(strconv.Itoa(short), func(t *testing.T) {
			t.Parallel()
			double, b := onDouble(t, nil, scyllatest.ShortPages(short))
			for i := range 20 {
				double.MustExec(t, fmt.Sprintf(`INSERT INTO shop.items (id, pair) VALUES (%d, (%d, 'x'))`, i, i), fmt.Sprintf(`INSERT INTO shop.items (id) VALUES (%d)`, 100+i))
			}
			rows, err := all(t, b, `SELECT id, pair FROM items`)
			if err != nil || len(rows) != 40 {
				t.Fatalf("%d rows, %v; want 40", len(rows), err)
			}
			for _, row := range rows {
				var v struct {
					ID   int
					Pair []any
				}
				if err := json.Unmarshal([]byte(row), &v); err != nil || (v.Pair == nil) != (v.ID >= 100) || v.Pair != nil && v.Pair[0] != float64(v.ID) {
					t.Errorf("%s, %v", row, err)
				}
			}
		})
	}
}

func TestTuplesCanBeParametersOnTheDouble(t *testing.T) {
	t.Parallel()
	_, b := onDouble(t, nil)
	for i, want := range []string{`[1,"a"]`, `[null,"b"]`, `null`} {
		id := strconv.Itoa(i)
		if _, err := all(t, b, `INSERT INTO items (id, pair, name) VALUES (?, ?, ?)`, id, want, `"x"`); err != nil {
			t.Fatal(err)
		}
		if rows, err := all(t, b, `SELECT pair FROM items WHERE id = ?`, id); err != nil || len(rows) != 1 || rows[0] != `{"pair":`+want+`}` {
			t.Errorf("%v, %v; want %s", rows, err, want)
		}
	}
	for params, field := range map[string]string{`[1, 5, "x"]`: "params[1]", `[1, [1], "x"]`: "params[1]", `[1, [1, "a"], {}]`: "params[2]"} {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(params), &list); err != nil {
			t.Fatal(err)
		}
		_, err := b.Query(t.Context(), driver.Statement{Text: `INSERT INTO items (id, pair, name) VALUES (?, ?, ?)`, Params: list})
		if own := athena.AsError(err); athena.CodeOf(err) != athena.CodeInvalidRequest || own.Details["field"] != field {
			t.Errorf("%s: %v, want invalid_request of %s", params, err, field)
		}
	}
}

func TestWritesCountAsMadeWhenTheyWereSubmittedOnTheDouble(t *testing.T) {
	t.Parallel()
	_, b := onDouble(t, nil)
	at := time.UnixMicro(1_700_000_000_123_456)
	run := func(cql string) {
		t.Helper()
		rows, err := b.Query(t.Context(), driver.Statement{Text: cql, WriteTime: at})
		if err == nil {
			err = rows.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run(`INSERT INTO items (id, name) VALUES (1, 'early')`)
	run(`INSERT INTO items (id, name) VALUES (2, 'own') USING TIMESTAMP 5`)
	if rows, err := all(t, b, `SELECT writetime(name) AS at FROM items WHERE id = 1`); err != nil || len(rows) != 1 || rows[0] != `{"at":1700000000123456}` {
		t.Errorf("%v, %v; want the time of the statement", rows, err)
	}
	if rows, err := all(t, b, `SELECT writetime(name) AS at FROM items WHERE id = 2`); err != nil || len(rows) != 1 || rows[0] != `{"at":5}` {
		t.Errorf("%v, %v; want the time in the text", rows, err)
	}
	if _, err := all(t, b, `INSERT INTO items (id, name) VALUES (1, 'later')`); err != nil {
		t.Fatal(err)
	}
	run(`INSERT INTO items (id, name) VALUES (1, 'early')`) // the attempt that comes again
	if rows, err := all(t, b, `SELECT name FROM items WHERE id = 1`); err != nil || rows[0] != `{"name":"later"}` {
		t.Errorf("%v, %v; a write that is made again took back a later one", rows, err)
	}
}

func TestReadsOnlyOnTheDouble(t *testing.T) {
	t.Parallel()
	double, b := onDouble(t, nil)
	for _, cql := range []string{`INSERT INTO items (id) VALUES (1)`, `CREATE TABLE more (id int PRIMARY KEY)`, `BEGIN BATCH INSERT INTO items (id) VALUES (1) APPLY BATCH`, `TRUNCATE items`} {
		if _, err := b.Query(t.Context(), driver.Statement{Text: cql, ReadOnly: true}); !errors.Is(err, driver.ErrWrites) {
			t.Errorf("%s: %v, want ErrWrites", cql, err)
		}
		for _, seen := range double.Statements() {
			if strings.Contains(seen.Statement, cql) {
				t.Errorf("%s was sent", cql)
			}
		}
	}
}
