package scylla_test

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

var update = flag.Bool("update", false, "write the golden files of what the libraries send")

// TestDoubleIsSentNothingButWhatTheLedgerHas keeps a list of all that gocql,
// scylla-cdc-go and we send to read logs: a release of a library that sends
// something else shows here, and is looked at by a person.
func TestDoubleIsSentNothingButWhatTheLedgerHas(t *testing.T) {
	t.Parallel()
	for _, layout := range []string{"vnodes", "tablets"} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			// Not from the fixture's session: it writes.
			c := scyllatest.Start(t, scyllatest.Generation(time.Minute, 2, 2))
			enabled := map[string]string{"vnodes": "false", "tablets": "true"}[layout]
			c.MustExec(t, strings.Replace(keyspaceCQL, "'enabled': false", "'enabled': "+enabled, 1),
				`CREATE TABLE ks.t (pk int, ck int, v int, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}`)
			f := &fixture{t: t, cluster: c, backend: openDouble(t, c), setup: driver.ChangeSetup{
				Client: "c", Confidence: testConfidence, Sweep: 2 * time.Second, Tables: []driver.TableName{{Schema: "ks", Table: "t"}},
			}}
			start := f.start()
			release := c.HoldLog("ks.t")
			c.MustExec(t, `UPDATE ks.t SET v = 2 WHERE pk = 2 AND ck = 2`)
			p := &tape{t: t, want: 1}
			time.AfterFunc(2*time.Second, func() {
				release() // it is late now
				_ = c.Exec(`UPDATE ks.t SET v = 1 WHERE pk = 1 AND ck = 1`)
			})
			p.want = 3
			if err := p.run(f.backend, p.config(f.setup, start), 30*time.Second); err != nil {
				t.Fatal(err)
			}
			var list []string
			for _, s := range c.Statements() {
				list = append(list, strings.TrimSpace(s.Statement))
			}
			slices.Sort(list)
			got := strings.Join(slices.Compact(list), "\n") + "\n"
			file := "testdata/statements." + layout + ".golden"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("sent is\n%s\nwant\n%s\nif that is meant, write it with -update", got, want)
			}
		})
	}
}
