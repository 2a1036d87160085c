package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

const fixtures = "../../pkg/driver/scylla/testdata/fixtures"

func none(string) string { return "" }

func TestFixturesAreDoneAgainOnDouble(t *testing.T) {
	t.Parallel()
	d := scyllatest.Start(t)
	want, err := cdcfixture.Load(fixtures)
	if err != nil {
		t.Fatal(err)
	}
	for _, layout := range []string{"vnodes", "tablets"} {
		dir := t.TempDir()
		var out bytes.Buffer
		if err := run(t.Context(), []string{"-hosts", d.Hosts()[0], "-fixtures", fixtures, "-layout", layout, "-wait", "1ms", "-out", dir}, none, &out); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		got, err := cdcfixture.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		recorded := map[string]*cdcfixture.Fixture{}
		for _, f := range got {
			recorded[f.File] = f
		}
		for _, f := range want {
			if len(f.Statements) == 0 || f.Origin == cdcfixture.Recorded {
				continue
			}
			r := recorded["double-recorded-"+layout+"-"+f.File]
			if r == nil {
				t.Errorf("%s was not recorded", f.File)
				continue
			}
			if r.Origin != cdcfixture.Synthetic || !strings.Contains(r.Source, "double") {
				t.Errorf("%s: what the double wrote is said to be %s, %q", f.File, r.Origin, r.Source)
			}
			if len(r.Log) != len(f.Log) {
				t.Errorf("%s: %d rows were recorded, and %d are documented", f.File, len(r.Log), len(f.Log))
			}
			for _, row := range r.Log {
				if row["cdc$stream_id"] == nil || row["cdc$operation"] == nil {
					t.Errorf("%s: the row %s is none of a log", f.File, row)
				}
			}
		}
	}
	if _, rows, err := d.Rows("SELECT keyspace_name FROM system_schema.keyspaces"); err != nil || strings.Contains(strings.ToLower(joined(rows)), "athena_record") {
		t.Errorf("keyspaces are left behind: %s, %v", rows, err)
	}
}

func joined(rows [][]string) string {
	var all []string
	for _, r := range rows {
		all = append(all, strings.Join(r, " "))
	}
	return strings.Join(all, "\n")
}

func TestATableInUseIsOnlyReadOnDouble(t *testing.T) {
	t.Parallel()
	d := scyllatest.Start(t)
	d.MustExec(t,
		"CREATE KEYSPACE shop WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
		"CREATE TYPE shop.part (street text, zip int)",
		"CREATE TYPE shop.home (main frozen<part>, note text)",
		`CREATE TABLE shop.orders (day date, id int, "Owner" text static, tags set<text>, home home, PRIMARY KEY ((day), id)) WITH CLUSTERING ORDER BY (id DESC) AND cdc = {'enabled': true, 'postimage': true}`,
		"INSERT INTO shop.orders (day, id, tags) VALUES ('2026-11-27', 1, {'a'})",
	)
	dir := t.TempDir()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-hosts", d.Hosts()[0], "-keyspace", "shop", "-table", "orders", "-out", dir}, none, &out); err != nil {
		t.Fatal(err)
	}
	all, err := cdcfixture.Load(dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d fixtures, %v", len(all), err)
	}
	f := all[0]
	if len(f.Log) != 2 { // and the image
		t.Errorf("the log has %d rows: %s", len(f.Log), f.Log)
	}
	if len(f.Create) != 3 || !strings.Contains(f.Create[0], `"part"`) || !strings.Contains(f.Create[2], "'postimage': 'true'") ||
		!strings.Contains(f.Create[2], `CLUSTERING ORDER BY ("id" DESC)`) || !strings.Contains(f.Create[2], `"Owner" text static`) {
		t.Errorf("it is made by %q", f.Create)
	}
	d.MustExec(t, "CREATE KEYSPACE again WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}")
	for _, s := range f.Create {
		d.MustExec(t, cdcfixture.In(s, "again", "t"))
	}
}

func TestWhatCannotBeRecordedIsRefusedOnDouble(t *testing.T) {
	t.Parallel()
	d := scyllatest.Start(t)
	for name, args := range map[string][]string{
		"nothing":                   nil,
		"no hosts":                  {"-keyspace", "a", "-table", "b"},
		"a table and fixtures":      {"-hosts", d.Hosts()[0], "-keyspace", "a", "-table", "b", "-fixtures", fixtures},
		"a table that is not there": {"-hosts", d.Hosts()[0], "-keyspace", "a", "-table", "b", "-out", t.TempDir()},
	} {
		if err := run(t.Context(), args, none, &bytes.Buffer{}); err == nil {
			t.Errorf("%s was recorded", name)
		}
	}
}
