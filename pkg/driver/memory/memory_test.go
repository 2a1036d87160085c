package memory_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/drivertest"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
)

func TestConformance(t *testing.T) {
	const dsn = "postgres://user:planted-password@host/db"
	conn := athena.PostgresConn{DSN: athena.NewSecret(dsn)}
	db := memory.New()
	open := func(t *testing.T) driver.Backend {
		b, err := memory.Driver(db).Open(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	drivertest.Run(t, drivertest.Harness{
		Open: open,
		Claims: athena.Allow(athena.GatewayQuery, athena.DeferredQuery, athena.RawSQL,
			athena.SchemaRead, athena.MigrationsRead, athena.Provisioning),
		Tracked: true, Explains: true, Counts: true, Identifies: true,
		Unreachable: func(t *testing.T) (driver.Backend, error) {
			down := memory.New()
			b, err := down.Open(t.Context())
			down.Inject(func(f *memory.Faults) { f.Unreachable = true })
			return b, err
		},
		Secrets:   []string{dsn, "planted-password"},
		Schema:    "main",
		Provision: driver.Provision{Kind: "schema", Name: "tenant"},
		Running:   func(*testing.T) int { return db.Stats().Running },
		Statements: drivertest.Statements{
			Create:          "create table {t} (id int primary key, name text)",
			Drop:            []string{"drop table {t}"},
			Insert:          "insert into {t} values ($1, $2)",
			InsertReturning: "insert into {t} values ($1, $2) returning *",
			Select:          "select id, name from {t} where id = $1",
			All:             "select * from {t}",
			Rename:          "update {t} set name = $1 where id = $2",
			Generate:        "select generate($1, 200)",
			Slow:            "select sleep(60000)",
			SlowWrite:       "select put({t}, $1, $2), sleep(60000)",
			Duplicates:      "select 1 as a, 2 as a, 'x' as a",
			MidError:        "select fail('query_failed', 3)",
			Syntax:          "selct 1",
			HiddenWrite:     "select put({t}, 900, 'hidden')",
			Outside:         "nontx insert into {t} values (800, 'outside')",
			Reads:           []string{"SELECT count(*) FROM t WHERE a = 'it''s';"},
			Writes:          []string{"delete from t", "drop table t", "update t set a = 1"},
			Refused:         []string{"begin", "COMMIT;", "rollback"},
		},
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	write := driver.Statement{Text: "insert into t values (1)"}
	setup := func(t *testing.T) (*memory.DB, *memory.Backend) {
		db := memory.New()
		b, err := db.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, err := b.Query(t.Context(), driver.Statement{Text: "create table t (id int)"})
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		return db, b
	}
	tests := map[string]struct {
		inject  func(*memory.Faults)
		outcome driver.Outcome
		rows    []string
	}{
		"a connection lost before the commit has no effect": {func(f *memory.Faults) { f.LoseBeforeCommit = 1 }, driver.Aborted, []string{}},
		"a connection lost after the commit has its effect": {func(f *memory.Faults) { f.LoseAfterCommit = 1 }, driver.Committed, []string{`{"id":1}`}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, b := setup(t)
			db.Inject(tt.inject)
			rows, err := b.QueryTracked(t.Context(), write)
			if err != nil {
				t.Fatal(err)
			}
			var token driver.Token
			err = rows.Commit(t.Context(), func(_ context.Context, got driver.Token) error { token = got; return nil })
			rows.Close()
			if f := b.Classify(err); err == nil || f.Code != athena.CodeBackendUnavailable || f.NoEffect {
				t.Errorf("Commit: %v is classified as %+v; want backend_unavailable, effect not known", err, f)
			}
			if got, err := b.Outcome(t.Context(), token); got != tt.outcome || err != nil {
				t.Errorf("Outcome = %v, %v; want %v", got, err, tt.outcome)
			}
			if got := db.Rows("t"); !slices.Equal(got, tt.rows) {
				t.Errorf("the table holds %v, want %v", got, tt.rows)
			}
			if rows, err := b.QueryTracked(t.Context(), write); err != nil {
				t.Errorf("the next statement: %v", err)
			} else {
				rows.Close()
			}
		})
	}
	t.Run("latency counts against the timeout", func(t *testing.T) {
		t.Parallel()
		db, b := setup(t)
		db.Inject(func(f *memory.Faults) { f.Latency = time.Minute })
		_, err := b.Query(t.Context(), driver.Statement{Text: "select 1", Timeout: 10 * time.Millisecond})
		if b.Classify(err).Code != athena.CodeTimeout {
			t.Errorf("the error is %v, want a timeout", err)
		}
		if got := db.Stats(); got.Running != 0 || got.Statements != 2 || got.Open != 1 || got.Opened != 1 {
			t.Errorf("stats are %+v", got)
		}
	})
	t.Run("writers of one table wait for each other", func(t *testing.T) {
		t.Parallel()
		db, b := setup(t)
		first, err := b.QueryTracked(t.Context(), write)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := b.Query(ctx, write); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the second writer got %v, want to wait until its deadline", err)
		}
		first.Close()
		rows, err := b.Query(t.Context(), write)
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		if got := db.Rows("t"); len(got) != 1 {
			t.Errorf("the table holds %v, want one row", got)
		}
	})
	t.Run("codes can be asked for", func(t *testing.T) {
		t.Parallel()
		_, b := setup(t)
		for _, code := range athena.Codes() {
			_, err := b.Query(t.Context(), driver.Statement{Text: "select fail('" + string(code) + "')"})
			if got := b.Classify(err).Code; got != code {
				t.Errorf("fail(%s) gave %v", code, err)
			}
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, text := range []string{
		"select * from t where id = $1 and name = 'a'", "insert into t values (1, 'x') returning *", "select 1 as a, null as a;",
		"update t set name = $2 where id = $1", "delete from t", "create table u (a int primary key, b json)", "drop table t",
		"nontx select 1", "select fail('x', 2)", "select put(t, 1, 2)", "select count(*) from t", "commit", "(((((", "select f(f(f(", "'",
	} {
		f.Add(text, "[1]")
	}
	f.Fuzz(func(t *testing.T, text, param string) {
		if strings.Contains(strings.ToLower(text), "sleep") {
			return
		}
		db := memory.New()
		b, _ := db.Open(t.Context())
		for _, st := range []driver.Statement{{Text: "create table t (id int, name text)"}, {Text: text, Params: []json.RawMessage{json.RawMessage(param)}, Timeout: 100 * time.Millisecond}} {
			rows, err := b.Query(t.Context(), st)
			if err != nil {
				continue
			}
			for n := 0; n < 100 && rows.Next(); n++ {
				rows.AppendJSON(nil)
			}
			rows.Close()
		}
		if got := db.Stats().Running; got != 0 {
			t.Errorf("%d statements still run", got)
		}
	})
}
