package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// TestAMergedTableIsEqualToItsSource merges random rows into random ones, and
// sees that what is equal is not touched.
func TestAMergedTableIsEqualToItsSource(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE EXTENSION citext`)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		name := public(fmt.Sprintf("m%d", n))
		r.exec("CREATE TABLE " + quoteTable(name) + " (a int, b numeric, v text, j json, c citext, p point, d numeric, PRIMARY KEY (a, b))")
		s := &record.Schema{Columns: []record.Column{
			{Name: "b", Type: record.TypeDecimal}, {Name: "a", Type: record.TypeInt32}, {Name: "v", Type: record.TypeText, Nullable: true},
			{Name: "j", Type: record.TypeJSON, Nullable: true}, {Name: "c", Type: record.TypeText, Nullable: true}, {Name: "p", Type: record.TypeText, Nullable: true},
			{Name: "d", Type: record.TypeDecimal, Nullable: true},
		}}
		type row struct{ v, j, c, p, d string }
		draw := func(label string) map[string]row {
			m := map[string]row{}
			for range rapid.IntRange(0, 12).Draw(t, label) {
				k := fmt.Sprintf("%d %d", rapid.IntRange(0, 2).Draw(t, "a"), rapid.IntRange(0, 3).Draw(t, "b"))
				m[k] = row{rapid.SampledFrom([]string{"", "x", "NULL"}).Draw(t, "v"), rapid.SampledFrom([]string{`{"a":1}`, `{"a": 1}`}).Draw(t, "j"),
					rapid.SampledFrom([]string{"q", "Q"}).Draw(t, "c"), rapid.SampledFrom([]string{"(1,2)", "(1,3)"}).Draw(t, "p"), rapid.SampledFrom([]string{"1.0", "1.00"}).Draw(t, "d")}
			}
			return m
		}
		was, is := draw("rows before"), draw("rows")
		for k, x := range was {
			a, b, _ := strings.Cut(k, " ")
			r.exec(fmt.Sprintf("INSERT INTO %s VALUES (%s, %s, nullif('%s', 'NULL'), '%s', '%s', '%s', %s)", quoteTable(name), a, b, x.v, x.j, x.c, x.p, x.d))
		}
		r.exec("CREATE TABLE before AS SELECT ctid AS place, * FROM " + quoteTable(name))
		target := driver.TableTarget{Table: name, Mode: driver.Merge, Key: []string{"a", "b"}, Schema: s, Run: fmt.Sprint(n)}
		r.prepare(target)
		batch := record.New(s, len(is))
		want := 0
		for k, x := range is {
			a, b, _ := strings.Cut(k, " ")
			batch.Columns[0].AppendString(b + ".00") // the same key
			batch.Columns[1].AppendInt(int64(a[0] - '0'))
			if x.v == "NULL" {
				batch.Columns[2].AppendNull()
			} else {
				batch.Columns[2].AppendString(x.v)
			}
			batch.Columns[3].AppendString(x.j)
			batch.Columns[4].AppendString(x.c)
			batch.Columns[5].AppendString(x.p)
			batch.Columns[6].AppendString(x.d)
			batch.Done()
			if old, there := was[k]; !there || old != x {
				want++
			}
		}
		for k := range was {
			if _, there := is[k]; !there {
				want++
			}
		}
		half := batch.Rows() / 2
		for _, part := range []*record.Batch{batch.Slice(0, half), batch.Slice(half, batch.Rows())} {
			if rejected := r.write(target, done(), part); rejected != nil {
				t.Fatal(rejected)
			}
		}
		c := done()
		changed, err := r.b.FinishTable(t.Context(), target, c)
		if err != nil || changed != int64(want) {
			t.Fatalf("%d rows changed, %v; want %d", changed, err, want)
		}
		if err := r.b.ForgetTable(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if changed, err := r.b.FinishTable(t.Context(), target, c); err != nil || changed != int64(want) {
			t.Fatalf("finished again: %d, %v", changed, err)
		}
		var got []string
		rows := r.text("SELECT coalesce(string_agg(format('%s %s %s %s %s %s %s', a, b, coalesce(v, 'NULL'), j, c, p, d), '|'), '') FROM (SELECT a, trim_scale(b) AS b, v, j, c, p, d FROM " + quoteTable(name) + ") x")
		if rows != "" {
			got = strings.Split(rows, "|")
		}
		var wanted []string
		for k, x := range is {
			wanted = append(wanted, strings.Join([]string{k, x.v, x.j, x.c, x.p, x.d}, " "))
		}
		slices.Sort(got)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Fatalf("the table has\n%q\nwant\n%q", got, wanted)
		}
		r.exec("DROP TABLE before, " + quoteTable(name))
	})
}

// TestAnOverwrittenTableKeepsWhatBelongsToIt replaces the rows of a table on which
// much depends.
func TestAnOverwrittenTableKeepsWhatBelongsToIt(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE ROLE reader_of_tables; CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE CHECK (name <> 'bad'), n serial);
		INSERT INTO t SELECT i, 'old ' || i FROM generate_series(1, 10) i; CREATE VIEW v AS SELECT * FROM t; GRANT SELECT ON t TO reader_of_tables; CREATE INDEX named ON t (n);
		COMMENT ON TABLE t IS 'kept'; CREATE PUBLICATION p FOR TABLE t; ALTER TABLE t REPLICA IDENTITY FULL`)
	t.Cleanup(func() { r.exec("DROP OWNED BY reader_of_tables; DROP ROLE reader_of_tables") })
	target := driver.TableTarget{Table: public("t"), Mode: driver.Overwrite, Schema: people, Run: "a run/1"}
	plan := r.prepare(target)
	if !slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, "readers wait") }) {
		t.Errorf("the plan does not say who waits: %q", plan.Notes)
	}
	if slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, "setval") }) {
		t.Errorf("a sequence is spoken of that no row has to do with: %q", plan.Notes)
	}
	b := peopleRows(100, 110)
	b.Columns[0].AppendInt(1) // twice the same name, and a check
	b.Columns[1].AppendString("name 100")
	b.Done()
	b.Columns[0].AppendInt(2)
	b.Columns[1].AppendString("bad")
	b.Done()
	rejected := r.write(target, done(), b)
	if got := rowsOf(rejected); !slices.Equal(got, []int{10, 11}) {
		t.Errorf("rejected %+v", rejected)
	}
	if got := r.text("SELECT count(*) FROM t WHERE name LIKE 'old%'"); got != "10" {
		t.Errorf("%s rows before the end, want those of before", got)
	}
	c := done()
	if changed, err := r.b.FinishTable(t.Context(), target, c); err != nil || changed != 10 {
		t.Fatal(changed, err)
	}
	if got := r.text("SELECT count(*) || ' ' || min(name) || ' ' || max(n) FROM v"); got != "10 name 100 20" {
		t.Error(got)
	}
	if got := r.text(`SELECT has_table_privilege('reader_of_tables', 't', 'SELECT') || ' ' || obj_description('t'::regclass) || ' ' || (SELECT count(*) FROM pg_publication_tables) || (SELECT relreplident::text FROM pg_class WHERE relname = 't')`); got != "true kept 1f" {
		t.Error(got)
	}
	other := c
	other.Position = "else"
	if _, err := r.b.FinishTable(t.Context(), target, other); !errors.Is(err, driver.ErrOvertaken) {
		t.Errorf("finished at another position: %v", err)
	}
	if err := r.b.ForgetTable(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if err := r.b.ForgetTable(t.Context(), target); err != nil {
		t.Error(err)
	}
	if _, err := r.b.FinishTable(t.Context(), target, done()); athena.CodeOf(err) != athena.CodeConflict {
		t.Errorf("finished without a staging table: %v", err)
	}
	if got := r.text("SELECT count(*) FROM t"); got != "10" {
		t.Errorf("%s rows", got)
	}
}

// TestPlansNameWhatIsInTheWay holds targets against a database in which something
// is wrong with each.
func TestPlansNameWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE t (id bigint PRIMARY KEY, name text);
		CREATE TABLE filled (id bigint PRIMARY KEY, name text, must int NOT NULL);
		CREATE TABLE made (id bigint PRIMARY KEY, name text GENERATED ALWAYS AS ('x') STORED);
		CREATE TABLE keyless (id bigint, name text); CREATE UNIQUE INDEX ON keyless (id) WHERE id > 0; CREATE UNIQUE INDEX ON keyless (id, name);
		CREATE TABLE typed (id date PRIMARY KEY, name bytea); CREATE TABLE narrow (id int PRIMARY KEY, name varchar(10));
		CREATE TABLE wide (id bigint PRIMARY KEY, name text); CREATE UNIQUE INDEX ON wide (name, id);
		CREATE VIEW v AS SELECT * FROM t; CREATE TABLE child (id bigint REFERENCES t); CREATE TABLE "Odd ""Name""" ("the key" bigint UNIQUE NOT NULL, "x,y" text);
		CREATE TABLE lacking (id bigint); CREATE SCHEMA closed; CREATE TABLE closed.t (id bigint PRIMARY KEY, name text)`)
	named := func(schema, table string) driver.TableName { return driver.TableName{Schema: schema, Table: table} }
	quoted := &record.Schema{Columns: []record.Column{{Name: "the key", Type: record.TypeInt64}, {Name: "x,y", Type: record.TypeText}}}
	cases := map[string]struct {
		target driver.TableTarget
		want   string // codes and columns
	}{
		"nothing":                      {driver.TableTarget{Table: public("t"), Mode: driver.Append}, ""},
		"nothing of an upsert":         {driver.TableTarget{Table: public("t"), Mode: driver.Upsert, Key: []string{"id"}}, ""},
		"strange names":                {driver.TableTarget{Table: public(`Odd "Name"`), Mode: driver.Upsert, Key: []string{"the key"}, Schema: quoted}, ""},
		"no table":                     {driver.TableTarget{Table: public("none"), Mode: driver.Append}, "no_table"},
		"no schema":                    {driver.TableTarget{Table: named("x", "y"), Mode: driver.Append, Create: true}, "no_table"},
		"it is created":                {driver.TableTarget{Table: public("x"), Mode: driver.Append, Create: true}, ""},
		"no column":                    {driver.TableTarget{Table: public("lacking"), Mode: driver.Append}, "no_column:name"},
		"the column is added":          {driver.TableTarget{Table: public("child"), Mode: driver.Append, AddColumns: true}, ""},
		"a column must be filled":      {driver.TableTarget{Table: public("filled"), Mode: driver.Append}, "not_null:must"},
		"a column is generated":        {driver.TableTarget{Table: public("made"), Mode: driver.Append}, "generated:name"},
		"the index is partial":         {driver.TableTarget{Table: public("keyless"), Mode: driver.Upsert, Key: []string{"id"}}, "key_not_unique"},
		"the key has another order":    {driver.TableTarget{Table: public("wide"), Mode: driver.Merge, Key: []string{"id", "name"}, Run: "r"}, ""},
		"more than the key":            {driver.TableTarget{Table: public("t"), Mode: driver.Upsert, Key: []string{"id", "name"}}, "key_not_unique"},
		"types":                        {driver.TableTarget{Table: public("typed"), Mode: driver.Append}, "column_type:id column_type:name"},
		"narrow types are checked":     {driver.TableTarget{Table: public("narrow"), Mode: driver.Append}, ""},
		"a view":                       {driver.TableTarget{Table: public("v"), Mode: driver.Append}, "no_rows_of_mode"},
		"a referenced table":           {driver.TableTarget{Table: public("t"), Mode: driver.Overwrite, Run: "r"}, "no_rows_of_mode"},
		"a referenced table is merged": {driver.TableTarget{Table: public("t"), Mode: driver.Merge, Key: []string{"id"}, Run: "r"}, ""},
	}
	r.exec(`CREATE TABLE serial (id bigserial PRIMARY KEY, name text); CREATE TABLE numbered (id bigint GENERATED BY DEFAULT AS IDENTITY, name text)`)
	for _, table := range []string{"serial", "numbered"} {
		plan, err := r.b.PlanTable(t.Context(), driver.TableTarget{Table: public(table), Mode: driver.Append, Schema: people})
		if err != nil || len(plan.Problems) > 0 || len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], "setval") {
			t.Errorf("%s: %+v, %v", table, plan, err)
		}
	}
	for name, c := range cases {
		if c.target.Schema == nil {
			c.target.Schema = people
		}
		plan, err := r.b.PlanTable(t.Context(), c.target)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, p := range plan.Problems {
			got = append(got, strings.TrimSuffix(p.Code+":"+p.Column, ":"))
			if p.Message == "" {
				t.Errorf("%s: %s says nothing", name, p.Code)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %+v, want %s", name, plan.Problems, c.want)
		}
		if _, err := r.b.PrepareTable(t.Context(), c.target); (err == nil) != (c.want == "") {
			t.Errorf("%s: prepared with %v", name, err)
		}
		if c.want == "" {
			if again, err := r.b.PrepareTable(t.Context(), c.target); err != nil || again.Creates != "" || len(again.Alters) > 0 {
				t.Errorf("%s: prepared again: %+v, %v", name, again, err)
			}
		}
	}
	if got := r.text("SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'closed'::regnamespace AND relkind = 'r'"); got != "t" {
		t.Error(got)
	}
}

// TestARoleThatMayLittleIsToldWhat takes privileges away, and looks at what the
// plan says and at what row security hides.
func TestARoleThatMayLittleIsToldWhat(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE ROLE small_role LOGIN PASSWORD 'x'; CREATE TABLE t (id bigint PRIMARY KEY, name text CHECK (name !~ '7$')); GRANT INSERT ON t TO small_role`)
	t.Cleanup(func() { r.exec("DROP OWNED BY small_role CASCADE; DROP ROLE small_role") })
	cfg, err := pgx.ParseConfig(r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	small, err := Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(fmt.Sprintf("host=%s port=%d dbname=%s user=small_role password=x", cfg.Host, cfg.Port, cfg.Database))})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close(t.Context())
	say := func(target driver.TableTarget) string {
		target.Schema, target.Table, target.Run = people, public("t"), "r"
		plan, err := small.PlanTable(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range plan.Problems {
			out = append(out, p.Code+": "+p.Message)
		}
		return strings.Join(out, "\n")
	}
	if got := say(driver.TableTarget{Mode: driver.Append}); !strings.Contains(got, "GRANT CREATE ON DATABASE") {
		t.Error(got)
	}
	r.exec("CREATE SCHEMA athena; GRANT USAGE, CREATE ON SCHEMA athena TO small_role")
	if got := say(driver.TableTarget{Mode: driver.Append}); got != "" {
		t.Error(got)
	}
	if got := say(driver.TableTarget{Mode: driver.Upsert, Key: []string{"id"}, Changes: true}); !strings.Contains(got, "GRANT SELECT, UPDATE, DELETE ON") {
		t.Error(got)
	}
	if got := say(driver.TableTarget{Mode: driver.Append, AddColumns: true, WidenTypes: true}); got != "" {
		t.Error(got)
	}
	r.exec("GRANT ALL ON t TO small_role; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (true) WITH CHECK (id % 10 <> 3)")
	if got := say(driver.TableTarget{Mode: driver.Merge, Key: []string{"id"}}); !strings.Contains(got, "row security") {
		t.Error(got)
	}
	rig := *r
	rig.b, rig.TB = small, t
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert} {
		r.exec("TRUNCATE t")
		target := driver.TableTarget{Table: public("t"), Mode: mode, Key: []string{"id"}, Schema: people}
		rig.prepare(target)
		rejected := rig.write(target, done(), peopleRows(0, 10))
		if got := rowsOf(rejected); !slices.Equal(got, []int{3, 7}) {
			t.Errorf("%s: rejected %+v", mode, rejected)
		}
	}
}

func TestColumnsAreAddedAndWidened(t *testing.T) {
	t.Parallel()
	r := newTableRig(t, `CREATE TABLE t (id int PRIMARY KEY, f real, n numeric(5,2), v varchar(10), kept varchar(20), i smallint)`)
	s := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt64}, {Name: "f", Type: record.TypeFloat64}, {Name: "n", Type: record.DecimalOf(10, 4)},
		{Name: "v", Type: record.TypeText, Native: "text"}, {Name: "kept", Type: record.TypeText, Native: "character varying(10)"}, {Name: "i", Type: record.TypeDecimal},
		{Name: "new one", Type: record.TypeTimestampTZ, Native: "timestamp(3) with time zone"}, {Name: "tags", Type: record.TypeJSON, Native: "text[]"},
	}}
	target := driver.TableTarget{Table: public("t"), Mode: driver.Upsert, Key: []string{"id"}, Schema: s, AddColumns: true, WidenTypes: true}
	plan := r.prepare(target)
	if len(plan.Alters) != 7 {
		t.Errorf("%q", plan.Alters)
	}
	if got := r.text(`SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0`); got != "bigint, double precision, numeric(10,4), text, character varying(20), numeric, timestamp(3) with time zone, text[]" {
		t.Error(got)
	}
}
