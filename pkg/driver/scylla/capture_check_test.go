package scylla

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

const (
	createShop = `CREATE KEYSPACE shop WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}`
	withLog    = ` WITH cdc = {'enabled': true}`
)

// finding returns what was found under a name; Level is empty if nothing was.
func finding(c driver.ChangeCheck, name string) (found driver.ChangeFinding) {
	for _, f := range c.Findings {
		if f.Name == name && (found.Level == "" || found.Level == levelOK || f.Level == levelError) {
			found = f
		}
	}
	return found
}

func TestCheckSaysWhatStandsInTheWayDouble(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t)
	cluster.MustExec(t, createShop, `CREATE TYPE shop.address (street text, zip int)`)
	b := openDouble(t, cluster)
	tests := map[string]struct {
		create      []string
		table       driver.TableName
		name, level string
		found, mend string
	}{
		"a table that is not there":    {nil, driver.TableName{Schema: "shop", Table: "none"}, findTable, levelError, "does not exist", "create it"},
		"a keyspace that is not there": {nil, driver.TableName{Schema: "market", Table: "none"}, findTable, levelError, "does not exist", "create it"},
		"no option": {[]string{`CREATE TABLE shop.plain (pk int PRIMARY KEY, v int)`}, driver.TableName{Schema: "shop", Table: "plain"},
			findOption, levelError, "off", `ALTER TABLE "shop"."plain" WITH cdc = {'enabled': true}`},
		"an option that was switched off": {[]string{`CREATE TABLE shop.off (pk int PRIMARY KEY, v int)` + withLog, `ALTER TABLE shop.off WITH cdc = {'enabled': false}`},
			driver.TableName{Schema: "shop", Table: "off"}, findOption, levelError, "off", `'enabled': true`},
		"all well": {[]string{`CREATE TABLE shop.well (pk int PRIMARY KEY, v int)` + withLog}, driver.TableName{Schema: "shop", Table: "well"},
			findOption, levelOK, "enabled", ""},
		"a short time": {[]string{`CREATE TABLE shop.short (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true, 'ttl': 600}`}, driver.TableName{Schema: "shop", Table: "short"},
			findTTL, levelWarning, "10m0s", `'ttl': '86400'`},
		"for ever": {[]string{`CREATE TABLE shop.ever (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true, 'ttl': 0}`}, driver.TableName{Schema: "shop", Table: "ever"},
			findTTL, levelOK, "for ever", ""},
		"keys alone": {[]string{`CREATE TABLE shop.keyed (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true, 'delta': 'keys'}`}, driver.TableName{Schema: "shop", Table: "keyed"},
			findDelta, levelWarning, "keys", `'delta': 'full'`},
		"keys and images": {[]string{`CREATE TABLE shop.imaged (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true, 'delta': 'keys', 'postimage': true}`}, driver.TableName{Schema: "shop", Table: "imaged"},
			findDelta, levelOK, "image", ""},
		"parts of values": {[]string{`CREATE TABLE shop.parts (pk int PRIMARY KEY, tags set<text>)` + withLog}, driver.TableName{Schema: "shop", Table: "parts"},
			findPostimage, levelWarning, "delta", `'postimage': 'true'`},
		"rows that expire": {[]string{`CREATE TABLE shop.expires (pk int PRIMARY KEY, v int) WITH default_time_to_live = 60 AND cdc = {'enabled': true}`}, driver.TableName{Schema: "shop", Table: "expires"},
			findExpiry, levelWarning, "60 s", ""},
		"counters": {[]string{`CREATE TABLE shop.counted (pk int PRIMARY KEY, n counter)`}, driver.TableName{Schema: "shop", Table: "counted"},
			findTable, levelError, "counters", "leave it out"},
		"a view": {[]string{`CREATE TABLE shop.viewed (pk int PRIMARY KEY, v int)`, `CREATE MATERIALIZED VIEW shop.view AS SELECT * FROM shop.viewed WHERE v IS NOT NULL AND pk IS NOT NULL PRIMARY KEY (v, pk)`},
			driver.TableName{Schema: "shop", Table: "view"}, findTable, levelError, "materialized view", "view's table"},
		"a log": {[]string{`CREATE TABLE shop.logged (pk int PRIMARY KEY, v int)` + withLog}, driver.TableName{Schema: "shop", Table: "logged" + logSuffix},
			findTable, levelError, "the change log of another table", "name logged"},
		"one of the cluster's": {nil, driver.TableName{Schema: "system", Table: "local"}, findTable, levelError, "the cluster's own", "leave it out"},
		"a name with capitals": {[]string{`CREATE TABLE shop."Orders" (pk int PRIMARY KEY, v int)` + withLog}, driver.TableName{Schema: "shop", Table: "Orders"},
			findNames, levelError, `"shop"."Orders", which needs quotes`, "another name"},
		"a column with capitals beside a tuple": {[]string{`CREATE TABLE shop.tuples (pk int PRIMARY KEY, "At" int, v frozen<tuple<int, int>>)` + withLog}, driver.TableName{Schema: "shop", Table: "tuples"},
			findNames, levelError, `the column "At"`, "rename"},
		"a column that is a word beside a tuple": {[]string{`CREATE TABLE shop.words (pk int PRIMARY KEY, "select" int, v frozen<tuple<int, int>>)` + withLog}, driver.TableName{Schema: "shop", Table: "words"},
			findNames, levelError, `the column "select"`, "rename"},
		"a column with capitals and no tuple": {[]string{`CREATE TABLE shop.capitals (pk int PRIMARY KEY, "At" int)` + withLog}, driver.TableName{Schema: "shop", Table: "capitals"},
			findNames, "", "", ""},
		"keys that Go does not compare": {[]string{`CREATE TABLE shop.blobs (pk int PRIMARY KEY, v frozen<list<frozen<map<blob, int>>>>)` + withLog}, driver.TableName{Schema: "shop", Table: "blobs"},
			findTypes, levelError, "keys are of the type blob", "leave the table out"},
		"its streams": {[]string{`CREATE TABLE shop.streams (pk int PRIMARY KEY, v int)` + withLog}, driver.TableName{Schema: "shop", Table: "streams"},
			findGeneration, levelOK, "streams since", ""},
		"its layout": {[]string{`CREATE TABLE shop.laid (pk int PRIMARY KEY, v int)` + withLog}, driver.TableName{Schema: "shop", Table: "laid"},
			findLayout, levelOK, "vnodes", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cluster.MustExec(t, tc.create...)
			check, err := b.CheckChanges(t.Context(), driver.ChangeSetup{Client: "shop", Tables: []driver.TableName{tc.table}})
			if err != nil {
				t.Fatal(err)
			}
			if v := finding(check, findVersion); v.Level != levelOK || v.Table != "" {
				t.Errorf("the version is %+v", v)
			}
			f := finding(check, tc.name)
			if f.Level != tc.level || !strings.Contains(f.Found, tc.found) || !strings.Contains(f.Mend, tc.mend) {
				t.Errorf("found %+v", f)
			}
			if f.Level != "" && f.Table != tc.table.String() {
				t.Errorf("it is of the table %q", f.Table)
			}
			if check.OK() != (tc.level != levelError) {
				t.Errorf("the check is %v with %+v", check.OK(), check.Findings)
			}
			for _, f := range check.Findings {
				if f.Level == levelError && (f.Want == "" || f.Mend == "") {
					t.Errorf("%s does not say what mends it", f.Name)
				}
			}
		})
	}
	t.Run("a table that is named twice", func(t *testing.T) {
		name := driver.TableName{Schema: "shop", Table: "well"}
		check, err := b.CheckChanges(t.Context(), driver.ChangeSetup{Tables: []driver.TableName{name, name}})
		if f := finding(check, findTable); err != nil || f.Level != levelError || f.Found != "named twice" {
			t.Errorf("found %+v, %v", f, err)
		}
	})
	t.Run("without tables, those that could be captured", func(t *testing.T) {
		check, err := b.CheckChanges(t.Context(), driver.ChangeSetup{})
		if err != nil || !check.OK() {
			t.Fatalf("%+v, %v", check.Findings, err)
		}
		var names []string
		for _, c := range check.Tables {
			names = append(names, c.Table.String())
			if c.Identity != "primary_key" || !slices.Equal(c.Key, []string{"pk"}) {
				t.Errorf("%s is told by %s %q", c.Table, c.Identity, c.Key)
			}
		}
		want := []string{"shop.capitals", "shop.ever", "shop.expires", "shop.imaged", "shop.keyed", "shop.laid", "shop.logged", "shop.off", "shop.parts", "shop.plain", "shop.short", "shop.streams", "shop.viewed", "shop.well"}
		if slices.Sort(names); !slices.Equal(names, want) {
			t.Errorf("got %q, want %q", names, want)
		}
	})
}

func TestCheckLooksForStreamsDouble(t *testing.T) {
	t.Parallel()
	name := driver.TableName{Schema: "shop", Table: "t"}
	for title, tc := range map[string]struct {
		options     []scyllatest.Option
		prepare     func(*scyllatest.Cluster)
		keyspace    string
		name, level string
		found, mend string
	}{
		"none": {[]scyllatest.Option{scyllatest.NoGeneration()}, nil, createShop, findGeneration, levelError, "missing", "wait"},
		"to come": {[]scyllatest.Option{scyllatest.NoGeneration()}, func(c *scyllatest.Cluster) { c.NewGeneration(time.Now().Add(time.Hour), 1, 4) },
			createShop, findGeneration, levelError, "not there yet", "wait"},
		"an empty generation": {[]scyllatest.Option{scyllatest.NoGeneration()}, func(c *scyllatest.Cluster) { c.EmptyGeneration(time.Now().Add(-time.Minute)) },
			createShop, findGeneration, levelError, "0 streams", "checkAndRepairCdcStreams"},
		"tablets of an old version": {[]scyllatest.Option{scyllatest.Tablets()}, func(c *scyllatest.Cluster) {
			c.Fail(scyllatest.Containing("system.cdc_timestamps"), scyllatest.Invalid("unconfigured table cdc_timestamps"), 1<<20)
		}, strings.Replace(createShop, "false", "true", 1), findLayout, levelError, "tablets, and this version has no change logs", "upgrade"},
		"a keyspace that does not say": {nil, func(c *scyllatest.Cluster) {
			c.MustExec(t, `INSERT INTO system_schema.scylla_keyspaces (keyspace_name, storage_type) VALUES ('shop', 'S3')`)
		}, createShop, findLayout, levelError, "initial_tablets of its keyspace is null", "move the table"},
		"of tablets": {[]scyllatest.Option{scyllatest.Tablets()}, nil, strings.Replace(createShop, "false", "true", 1), findLayout, levelOK, "tablets", ""},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			cluster := scyllatest.Start(t, tc.options...)
			if tc.prepare != nil {
				tc.prepare(cluster)
			}
			cluster.MustExec(t, tc.keyspace, `CREATE TABLE shop.t (pk int PRIMARY KEY, v int)`+withLog)
			check, err := openDouble(t, cluster).CheckChanges(t.Context(), driver.ChangeSetup{Tables: []driver.TableName{name}})
			if err != nil {
				t.Fatal(err)
			}
			if f := finding(check, tc.name); f.Level != tc.level || !strings.Contains(f.Found, tc.found) || !strings.Contains(f.Mend, tc.mend) {
				t.Errorf("found %+v", f)
			}
			if check.OK() != (tc.level == levelOK) {
				t.Errorf("the check is %v with %+v", check.OK(), check.Findings)
			}
		})
	}
}

func TestCheckLooksWhetherTheLogMayBeReadDouble(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t, scyllatest.Password("admin", "secret"))
	cluster.MustExec(t, createShop, `CREATE TABLE shop.t (pk int PRIMARY KEY, v int)`+withLog,
		`CREATE ROLE reader WITH PASSWORD = 'secret' AND LOGIN = true`)
	open := func() *Backend {
		b, err := Open(t.Context(), athena.ScyllaConn{Hosts: cluster.Hosts(), Username: "reader", Password: athena.NewSecret("secret")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.session.Close() })
		return b
	}
	// Each mend that is told is done, until nothing stands in the way.
	for range 5 {
		check, err := open().CheckChanges(t.Context(), driver.ChangeSetup{Tables: []driver.TableName{{Schema: "shop", Table: "t"}}})
		if err != nil {
			t.Fatal(err)
		}
		if check.OK() {
			return
		}
		for _, f := range check.Findings {
			if f.Level != levelError {
				continue
			}
			if f.Name != findPrivileges || !strings.Contains(f.Found, `"reader"`) {
				t.Fatalf("found %+v", f)
			}
			for grant := range strings.SplitSeq(f.Mend, "; ") {
				cluster.MustExec(t, grant)
			}
		}
	}
	t.Error("the mends do not mend it")
}

func TestDoubleIsNotCapturedWithAConsistencyThatSeesTooLittle(t *testing.T) {
	t.Parallel()
	cluster := scyllatest.Start(t)
	cluster.MustExec(t, createShop, `CREATE TABLE shop.t (pk int PRIMARY KEY, v int)`+withLog)
	setup := driver.ChangeSetup{Client: "shop", Tables: []driver.TableName{{Schema: "shop", Table: "t"}}}
	for level, want := range map[string]string{
		"": levelOK, "LOCAL_QUORUM": levelOK, "QUORUM": levelOK, "ALL": levelOK, "TWO": levelWarning, "THREE": levelWarning,
		"ONE": levelError, "LOCAL_ONE": levelError, "ANY": levelError, "EACH_QUORUM": levelError,
	} {
		b := &Backend{conn: athena.ScyllaConn{Consistency: level}}
		b.session = openDouble(t, cluster).session
		check, err := b.CheckChanges(t.Context(), setup)
		if f := finding(check, findLevel); err != nil || f.Level != want || !strings.HasPrefix(f.Found, cmp.Or(level, "LOCAL_QUORUM")) {
			t.Errorf("%s: found %+v, %v", level, f, err)
		}
		err = b.PrepareChanges(t.Context(), setup)
		if (err != nil) != (want == levelError) {
			t.Errorf("%s: it is prepared with %v", level, err)
		}
		// Also where the client was changed while it is captured.
		if _, err = b.OpenChanges(t.Context(), driver.ChangeConfig{ChangeSetup: setup}); strings.Contains(err.Error(), "connection.consistency") != (want == levelError) {
			t.Errorf("%s: it is opened with %v", level, err)
		}
	}
}
