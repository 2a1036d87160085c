package capture_test

import (
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// What was seen of a source outlasts the worker that saw it: a log that was off for a
// while does not tell so.
func TestDoubleWhoseLogWasOffNeedsAHandWhoeverReadsItNext(t *testing.T) {
	t.Parallel()
	const off, on = `ALTER TABLE ks.t WITH cdc = {'enabled': false}`, `ALTER TABLE ks.t WITH cdc = {'enabled': true}`
	c := scyllatest.Start(t, scyllatest.KeepLogs())
	c.MustExec(t, `CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}`,
		`CREATE TABLE ks.t (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}`)
	for name, running := range map[string]bool{"while a worker reads": true, "while none does": false} {
		t.Run(name, func(t *testing.T) {
			c.MustExec(t, on)
			d := deployTo(t, athena.ScyllaConn{Hosts: c.Hosts()}, driver.New(scylla.Open))
			capture := changefeed.Capture{
				ID: "kept", Client: d.client, CreatedAt: time.Now(), Tables: []driver.TableName{{Schema: "ks", Table: "t"}},
				Confidence: athena.Duration(500 * time.Millisecond), NoSweep: true,
			}
			if _, err := d.store.PutCapture(t.Context(), capture.WithDefaults()); err != nil {
				t.Fatal(err)
			}
			stop := d.work()
			d.awaitState(changefeed.Streaming)
			needsAHand := func() {
				t.Helper()
				if st := d.awaitState(changefeed.Failed); st.Cause == nil || st.Cause.Code != "log_missing" {
					t.Errorf("the cause is %+v", st.Cause)
				}
			}
			if running {
				c.MustExec(t, off)
				needsAHand()
				stop()
			} else {
				stop()
				c.MustExec(t, off)
				d.config.ID = "two"
				stop = d.work()
				needsAHand()
				stop()
			}
			c.MustExec(t, `INSERT INTO ks.t (pk, v) VALUES (1, 1)`, on) // which is in no log
			d.config.ID = "three"
			d.work()
			d.await("a look of the next worker", func() bool {
				st, _ := d.store.Status(d.client)
				return st.Worker == "three" && (st.State == changefeed.Failed || st.State == changefeed.Streaming)
			})
			needsAHand()
		})
	}
}
