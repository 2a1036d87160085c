package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// people is a small schema, and rows of it.
var people = &record.Schema{Columns: []record.Column{
	{Name: "id", Type: record.TypeInt64}, {Name: "name", Type: record.TypeText, Nullable: true},
}, Key: []string{"id"}}

func peopleRows(from, to int) *record.Batch {
	b := record.New(people, to-from)
	for i := from; i < to; i++ {
		b.Columns[0].AppendInt(int64(i))
		b.Columns[1].AppendString(fmt.Sprintf("name %d", i))
		b.Done()
	}
	return b
}

func rowsOf(rejected []record.Rejected) (rows []int) {
	for _, r := range rejected {
		rows = append(rows, r.Row)
	}
	return rows
}

// TestTheServersRefusalsAreFoundRowByRow lets the server refuse rows for reasons
// that it alone can see, with and without the number of the row.
func TestTheServersRefusalsAreFoundRowByRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ setup, where string }{
		"a check":               {`CREATE TABLE t (id bigint PRIMARY KEY, name text CHECK (name !~ '[37]$'))`, `CHECK`},
		"a unique index":        {`CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE); INSERT INTO t SELECT -i, 'name ' || i FROM generate_series(1, 1000) i WHERE i % 10 IN (3, 7)`, `unique`},
		"a foreign key":         {`CREATE TABLE p (name text PRIMARY KEY); INSERT INTO p SELECT 'name ' || i FROM generate_series(0, 1000) i WHERE i % 10 NOT IN (3, 7); CREATE TABLE t (id bigint PRIMARY KEY, name text REFERENCES p)`, ``},
		"a trigger before":      {`CREATE TABLE t (id bigint PRIMARY KEY, name text); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id % 10 IN (3, 7) THEN RAISE 'not this one'; END IF; RETURN NEW; END $$; CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()`, ``},
		"a trigger after":       {`CREATE TABLE t (id bigint PRIMARY KEY, name text); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id % 10 IN (3, 7) THEN RAISE 'not this one'; END IF; RETURN NEW; END $$; CREATE TRIGGER f AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()`, ``},
		"a type read from text": {`CREATE DOMAIN d AS text CHECK (VALUE !~ '[37]$'); CREATE TABLE t (id bigint PRIMARY KEY, name d, x interval)`, ``},
		"a partition":           {`CREATE TABLE t (id bigint, name text CHECK (name !~ '[37]$')) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (500); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (500) TO (1000); ALTER TABLE t ADD PRIMARY KEY (id)`, ``},
		"row security":          {`CREATE TABLE t (id bigint PRIMARY KEY, name text); ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (true) WITH CHECK (true); ALTER TABLE t ADD CHECK (id % 10 NOT IN (3, 7))`, ``},
	} {
		for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				t.Parallel()
				r := newTableRig(t, c.setup)
				target := driver.TableTarget{Table: public("t"), Mode: mode, Key: []string{"id"}, Schema: people}
				r.prepare(target)
				rejected := r.write(target, done(), peopleRows(0, 300), peopleRows(600, 700))
				var want []int
				for i := range 300 {
					if i%10 == 3 || i%10 == 7 {
						want = append(want, i)
					}
				}
				for i := range 100 {
					if i%10 == 3 || i%10 == 7 {
						want = append(want, i)
					}
				}
				if got := rowsOf(rejected); !slices.Equal(got, want) {
					t.Errorf("rejected %v\nwant %v", got, want)
				}
				for _, x := range rejected {
					if x.Reason == "" {
						t.Errorf("row %d is rejected without a reason", x.Row)
					}
				}
				if got := r.text("SELECT count(*) FROM t WHERE id >= 0"); got != "320" {
					t.Errorf("%s rows are in the table, want 320", got)
				}
			})
		}
	}
}

func TestOnlyOneOfManyCommitsUnderACheckpoint(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, "CREATE TABLE t (id bigint, name text)")
	target := driver.TableTarget{Table: public("t"), Mode: driver.Append, Schema: people}
	r.prepare(target)
	k := driver.CheckpointKey{Pipeline: "p", Run: "", Part: "stream"}
	before := cdc.Position("")
	for round := range 5 {
		after := cdc.Position(fmt.Sprintf("%03d", round))
		const many = 6
		errs := make([]error, many)
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				tx, err := r.b.BeginTable(t.Context(), target)
				if err != nil {
					errs[i] = err
					return
				}
				defer tx.Rollback(t.Context())
				if _, errs[i] = tx.Write(t.Context(), peopleRows(0, 10)); errs[i] == nil {
					errs[i] = tx.Commit(t.Context(), driver.Checkpoint{CheckpointKey: k, Before: before, Position: after, Note: []byte(fmt.Sprintf(`{"by": %d}`, i))})
				}
			})
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case !errors.Is(err, driver.ErrOvertaken):
				t.Errorf("round %d: %v", round, err)
			}
		}
		c, ok, err := r.b.Checkpoint(t.Context(), k)
		if err != nil || !ok || c.Position != after || string(c.Note) != fmt.Sprintf(`{"by": %d}`, won) {
			t.Errorf("round %d: the checkpoint is %+v, %v, %v; %d won", round, c, ok, err, won)
		}
		before = after
	}
	if got := r.text("SELECT count(*) FROM t"); got != "50" {
		t.Errorf("%s rows, want those of one in each round", got)
	}
}

func TestAKilledWriterLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, "CREATE TABLE t (id bigint PRIMARY KEY, name text)")
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert} {
		target := driver.TableTarget{Table: public("t"), Mode: mode, Key: []string{"id"}, Schema: people}
		r.prepare(target)
		for _, when := range []string{"between writes", "before the commit", "by its context"} {
			ctx, cancel := context.WithCancel(t.Context())
			tx, err := r.b.BeginTable(ctx, target)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Write(ctx, peopleRows(0, 1000)); err != nil {
				t.Fatal(err)
			}
			c := done()
			if when == "by its context" {
				cancel()
			} else {
				r.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'")
			}
			if when == "before the commit" {
				err = tx.Commit(ctx, c)
			} else {
				_, err = tx.Write(ctx, peopleRows(1000, 2000))
			}
			if err == nil {
				t.Fatalf("%s, %s: no error", mode, when)
			}
			if f := r.b.Classify(err); f.Code != athena.CodeBackendUnavailable && f.Code != athena.CodeCancelled {
				t.Errorf("%s, %s: classified as %+v: %v", mode, when, f, err)
			}
			if err := tx.Commit(ctx, c); err == nil {
				t.Errorf("%s, %s: a transaction that has ended is committed", mode, when)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Error(err)
			}
			cancel()
			if _, ok, err := r.b.Checkpoint(t.Context(), c.CheckpointKey); ok || err != nil {
				t.Errorf("%s, %s: a checkpoint is there, %v", mode, when, err)
			}
			if got := r.text("SELECT count(*) FROM t"); got != "0" {
				t.Errorf("%s, %s: %s rows are there", mode, when, got)
			}
		}
	}
}

// TestAnErrorThatIsNoRowsEndsTheTransaction lets the server fail in a way that no
// other row would mend.
func TestAnErrorThatIsNoRowsEndsTheTransaction(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE t (id bigint PRIMARY KEY, name text); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 FROM nothing; RETURN NEW; END $$;
		CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()`)
	target := driver.TableTarget{Table: public("t"), Mode: driver.Append, Schema: people}
	r.prepare(target)
	tx, err := r.b.BeginTable(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	var e *pgconn.PgError
	if rejected, err := tx.Write(t.Context(), peopleRows(0, 10)); !errors.As(err, &e) || e.Code != "42P01" || rejected != nil {
		t.Errorf("%v, %v", rejected, err)
	}
	if _, err := tx.Write(t.Context(), peopleRows(0, 10)); err == nil {
		t.Error("the transaction goes on")
	}
}

func TestValuesThatDoNotFitAreRefusedBeforeTheyAreSent(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE t (id bigint NOT NULL, v5 varchar(5), c3 char(3), n numeric(5,2), i2 smallint, m mood, j jsonb, u uuid, d date, f real, "a b" int[])`)
	text := func(name string) record.Column {
		return record.Column{Name: name, Type: record.TypeText, Nullable: true}
	}
	cases := []struct {
		column record.Column
		value  any
		want   string // part of the reason; empty if it fits
	}{
		{record.Column{Name: "id", Type: record.TypeInt64}, nil, "takes no nulls"},
		{text("v5"), "äöüßé", ""},
		{text("v5"), "abcdef", "6 characters, and the column takes 5"},
		{text("v5"), "abc       ", ""},
		{text("v5"), "a\x00", "U+0000"},
		{text("v5"), "a\xff", "UTF-8"},
		{text("c3"), "abcd", "4 characters"},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "999.99", ""},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "999.990", ""},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "1000", "beyond numeric(5,2)"},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "1.005", "more digits"},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "1e5", "no decimal number"},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "Infinity", "cannot hold"},
		{record.Column{Name: "n", Type: record.TypeDecimal}, "NaN", ""},
		{record.Column{Name: "n", Type: record.TypeFloat64}, 0.30000000000000004, ""},
		{record.Column{Name: "i2", Type: record.TypeInt64}, 32768, "beyond smallint"},
		{record.Column{Name: "i2", Type: record.TypeDecimal}, "12.0", ""},
		{record.Column{Name: "i2", Type: record.TypeDecimal}, "12.5", "whole numbers"},
		{text("m"), "angry", "not among the values of mood"},
		{text("m"), "happy", ""},
		{record.Column{Name: "j", Type: record.TypeJSON}, `{"a":"\u0000"}`, "jsonb cannot keep"},
		{record.Column{Name: "j", Type: record.TypeJSON}, `"\ud800x"`, "surrogate"},
		{record.Column{Name: "j", Type: record.TypeJSON}, `"\\u0000"`, ""},
		{record.Column{Name: "j", Type: record.TypeJSON}, `"\ud83d\ude00"`, ""},
		{record.Column{Name: "j", Type: record.TypeJSON}, `{"a":}`, "invalid input syntax"},
		{record.Column{Name: "d", Type: record.TypeDate}, 1 << 40, "PostgreSQL does not have"},
		{record.Column{Name: "f", Type: record.TypeFloat64}, 1e300, "beyond real"},
		{record.Column{Name: "a b", Type: record.TypeJSON}, `[1,"x"]`, "whole number"},
		{record.Column{Name: "a b", Type: record.TypeJSON}, `{"x":1}`, "takes an array"},
		{record.Column{Name: "a b", Type: record.TypeJSON}, `[1,2]`, ""},
		{text("u"), "A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11", ""},
		{text("u"), "nonsense", "invalid input syntax"},
	}
	for _, c := range cases {
		s := &record.Schema{Columns: []record.Column{{Name: "id", Type: record.TypeInt64}}}
		at := 0
		if c.column.Name != "id" {
			s.Columns = append(s.Columns, c.column)
			at = 1
		}
		b := record.New(s, 3)
		for i := range 3 {
			if at == 1 {
				b.Columns[0].AppendInt(int64(i))
			}
			v := &b.Columns[at]
			switch value := c.value.(type) {
			case nil:
				if i == 1 {
					v.AppendNull()
				} else {
					v.AppendInt(1)
				}
			case string:
				if i == 1 {
					v.AppendString(value)
				} else {
					v.AppendNull()
				}
			case int:
				if i == 1 {
					v.AppendInt(int64(value))
				} else {
					v.AppendNull()
				}
			case float64:
				if i == 1 {
					v.AppendFloat(value)
				} else {
					v.AppendNull()
				}
			}
			b.Done()
		}
		target := driver.TableTarget{Table: public("t"), Mode: driver.Append, Schema: s}
		r.prepare(target)
		rejected := r.write(target, done(), b)
		switch {
		case c.want == "" && rejected != nil:
			t.Errorf("%s %v: %+v", c.column.Name, c.value, rejected)
		case c.want != "" && (len(rejected) != 1 || rejected[0].Row != 1 || !strings.Contains(rejected[0].Reason, c.want)):
			t.Errorf("%s %v: %+v, want %q", c.column.Name, c.value, rejected, c.want)
		}
	}
}

func TestIdentityAndDefaultsAreAsTheyShouldBe(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, up text GENERATED ALWAYS AS (upper(name)) STORED, at int DEFAULT 7, seen interval)`)
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert, driver.Overwrite, driver.Merge} {
		r.exec("TRUNCATE t")
		target := driver.TableTarget{Table: public("t"), Mode: mode, Key: []string{"id"}, Schema: people, Run: string(mode)}
		r.prepare(target)
		for range 2 {
			if mode == driver.Append {
				r.exec("TRUNCATE t")
			}
			if rejected := r.write(target, done(), peopleRows(5, 7)); rejected != nil && !mode.Staged() {
				t.Errorf("%s: %+v", mode, rejected)
			}
		}
		if mode.Staged() {
			if _, err := r.b.FinishTable(t.Context(), target, done()); err != nil {
				t.Fatal(err)
			}
		}
		if got := r.text("SELECT string_agg(t::text, ' ' ORDER BY id) FROM t"); got != `(5,"name 5","NAME 5",7,) (6,"name 6","NAME 6",7,)` {
			t.Errorf("%s: %s", mode, got)
		}
	}
	// Without the identity the server gives the numbers, staged or not.
	names := &record.Schema{Columns: people.Columns[1:]}
	b := record.New(names, 1)
	b.Columns[0].AppendString("x")
	b.Done()
	target := driver.TableTarget{Table: public("t"), Mode: driver.Overwrite, Schema: names, Run: "without"}
	r.prepare(target)
	r.write(target, done(), b)
	if _, err := r.b.FinishTable(t.Context(), target, done()); err != nil {
		t.Fatal(err)
	}
	if got := r.text("SELECT string_agg(t::text, ' ') FROM t"); got != "(1,x,X,7,)" {
		t.Error(got)
	}
}

func TestChangesBecomeALog(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, "")
	target := driver.TableTarget{Table: public("log"), Mode: driver.Append, Create: true, Schema: people, Changes: true}
	r.prepare(target)
	b := peopleRows(1, 4)
	for i := range b.Rows() {
		b.Changes = append(b.Changes, record.Change{Op: cdc.Insert, Pos: cdc.Position(fmt.Sprint("p", i)), At: int64(i)})
	}
	b.Columns[0].AppendInt(1)
	b.Columns[1].AppendAbsent()
	b.Changes = append(b.Changes, record.Change{Op: cdc.Delete, Pos: "p3", Implied: true})
	b.Done()
	b.Columns[0].AppendAbsent()
	b.Columns[1].AppendAbsent()
	b.Changes = append(b.Changes, record.Change{Op: cdc.Truncate, Pos: "p4", At: 1_000_000})
	b.Done()
	if rejected := r.write(target, done(), b); rejected != nil {
		t.Fatal(rejected)
	}
	if got := r.text("SELECT string_agg(l::text, ' ' ORDER BY _pos) FROM log l"); got != `(insert,p0,,1,"name 1") (insert,p1,"1970-01-01 00:00:00.000001+00",2,"name 2") (insert,p2,"1970-01-01 00:00:00.000002+00",3,"name 3") (truncate,p4,"1970-01-01 00:00:01+00",,)` {
		t.Error(got)
	}
}

// TestValuesThatMoveFromRowToRowAreNoConflict passes unique values on between rows
// within one batch, and then writes the first row once more: what the rows come to
// conflicts in any order, but not what they did.
func TestValuesThatMoveFromRowToRowAreNoConflict(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')`)
	target := driver.TableTarget{Table: public("t"), Mode: driver.Upsert, Key: []string{"id"}, Schema: people, Changes: true}
	r.prepare(target)
	b := record.New(people, 8)
	for _, step := range []struct {
		id   int64
		name string
	}{{1, "free"}, {2, "a"}, {3, "b"}, {1, "c"}, {3, "z"}, {2, "b"}, {3, "a"}} {
		b.Columns[0].AppendInt(step.id)
		b.Columns[1].AppendString(step.name)
		b.Changes = append(b.Changes, record.Change{Op: cdc.Update})
		b.Done()
	}
	if rejected := r.write(target, done(), b); rejected != nil {
		t.Errorf("rejected: %+v", rejected)
	}
	if got := r.text("SELECT string_agg(t::text, ' ' ORDER BY id) FROM t"); got != "(1,c) (2,b) (3,a)" {
		t.Error(got)
	}
}
