package cdcfixture_test

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
)

const whole = `{"origin":"documented","source":"cdc-basic-operations#insert","keyspace":"ks","table":"t",
	"create":["CREATE TABLE {table} (pk int PRIMARY KEY) WITH cdc = {'enabled': true}"],
	"statements":["INSERT INTO {table} (pk) VALUES (1)"],
	"log":[{"cdc$stream_id":"AAAAAAAAAAAAAAAAAAAAAQ==","cdc$operation":2,"pk":1}]}`

func TestAFixtureIsWrittenAsItIsRead(t *testing.T) {
	t.Parallel()
	f, err := cdcfixture.Parse([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := f.Write(filepath.Join(dir, "a.json")); err != nil {
		t.Fatal(err)
	}
	all, err := cdcfixture.Load(dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d fixtures, %v", len(all), err)
	}
	if f.File = "a.json"; !reflect.DeepEqual(all[0], f) {
		t.Errorf("read back as %+v, want %+v", all[0], f)
	}
	if got := cdcfixture.Tally(all); got != "documented 1, recorded 0" {
		t.Errorf("the tally is %q", got)
	}
	if got := cdcfixture.In(f.Statements[0], "k2", "u"); got != "INSERT INTO k2.u (pk) VALUES (1)" {
		t.Errorf("in another keyspace: %q", got)
	}
}

func TestAFixtureMustSayWhereItComesFrom(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nowhere":                      strings.Replace(whole, "documented", "", 1),
		"hearsay":                      strings.Replace(whole, "documented", "heard", 1),
		"a document without its page":  strings.Replace(whole, "cdc-basic-operations#insert", "", 1),
		"a recording without versions": strings.Replace(whole, "documented", "recorded", 1),
		"a member that is none":        strings.Replace(whole, `"source"`, `"sauce"`, 1),
	} {
		if _, err := cdcfixture.Parse([]byte(text)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestWriteTimesMoveToThePresentTogether(t *testing.T) {
	t.Parallel()
	got := cdcfixture.AtPresent([]string{
		"UPDATE {table} USING TIMESTAMP 1584971217889333 SET a = 1 WHERE k = 1",
		"UPDATE {table} USING TTL 5 AND TIMESTAMP 1584971217889330 SET a = 1 WHERE k = 1",
		"UPDATE {table} SET a = 1584971217889330 WHERE k = 1",
	}, time.UnixMicro(2000000000000000))
	want := []string{
		"UPDATE {table} USING TIMESTAMP 2000000000000003 SET a = 1 WHERE k = 1",
		"UPDATE {table} USING TTL 5 AND TIMESTAMP 2000000000000000 SET a = 1 WHERE k = 1",
		"UPDATE {table} SET a = 1584971217889330 WHERE k = 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the statements are %q", got)
	}
}
