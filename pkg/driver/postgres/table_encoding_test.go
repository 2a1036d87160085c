package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// TestDatabasesOfOtherEncodings reads bytes that are no UTF-8, which the server
// refuses to send, and writes what an encoding has no characters for.
func TestDatabasesOfOtherEncodings(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	root := newTableRigOn(t, dsn)
	in := func(encoding string) *tableRig {
		name := cfg.Database + "_" + strings.ToLower(encoding)
		root.exec("CREATE DATABASE " + name + " ENCODING '" + encoding + "' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
		t.Cleanup(func() { root.exec("DROP DATABASE " + name + " WITH (FORCE)") })
		return newTableRigOn(t, strings.Replace(dsn, "/"+cfg.Database, "/"+name, 1))
	}

	ascii := in("SQL_ASCII")
	ascii.exec(`CREATE TABLE t (id bigint PRIMARY KEY, name text, tags text[]); INSERT INTO t VALUES (1, convert_from('\x61ff62', 'SQL_ASCII'), ARRAY[convert_from('\xff', 'SQL_ASCII')])`)
	read := driver.TableRead{Table: public("t"), Columns: []string{"id", "name"}}
	err = ascii.b.ReadTable(t.Context(), read, driver.TablePart{}, driver.BatchSize{}, func(*record.Batch) error { return nil })
	if f := ascii.b.Classify(err); f.Code != athena.CodeQueryFailed || !strings.Contains(f.Message, "0xff") {
		t.Errorf("bytes that are no UTF-8: %+v, %v", f, err)
	}
	if b := ascii.read(driver.TableRead{Table: public("t"), Columns: []string{"id"}}, driver.TablePart{}); b.Rows() != 1 {
		t.Errorf("%d rows without them", b.Rows())
	}

	latin := in("LATIN1")
	latin.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text)")
	for _, mode := range []driver.WriteMode{driver.Append, driver.Upsert} {
		latin.exec("TRUNCATE t")
		target := driver.TableTarget{Table: public("t"), Mode: mode, Key: []string{"id"}, Schema: people}
		latin.prepare(target)
		rows := peopleRows(0, 20)
		rows.Columns[0].AppendInt(20)
		rows.Columns[1].AppendString("日本")
		rows.Done()
		rows.Columns[0].AppendInt(21)
		rows.Columns[1].AppendString("né")
		rows.Done()
		if got := rowsOf(latin.write(target, done(), rows)); !slices.Equal(got, []int{20}) {
			t.Errorf("%s: rejected %v", mode, got)
		}
		if got := latin.text("SELECT count(*) || max(name) FROM t"); got != "21né" {
			t.Errorf("%s: %s", mode, got)
		}
	}
}
