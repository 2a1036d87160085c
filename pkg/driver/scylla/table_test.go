package scylla_test

import (
	"slices"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
	"github.com/athena-pipelines/athena/pkg/record"
)

// kept is the type that a column of a type has that was created.
func kept(t record.Type) record.Type {
	switch t.Kind {
	case record.Decimal:
		return record.TypeDecimal
	case record.Timestamp:
		return record.TypeTimestampTZ
	case record.JSON:
		return record.TypeText
	}
	return t
}

// Whatever fails while a row moves to another key, its values are in the table, and the
// change can be made again.
func TestDoubleARowThatMovesIsNeverGone(t *testing.T) {
	t.Parallel()
	s := &record.Schema{Columns: []record.Column{
		{Name: "id", Type: record.TypeInt32}, {Name: "v", Type: record.TypeText, Nullable: true}, {Name: "large", Type: record.TypeText, Nullable: true},
	}, Key: []string{"id"}}
	change := record.New(s, 2)
	partitionedRow(change, "1")
	partitionedRow(change, "2", "new", "-")
	change.Changes = []record.Change{{Op: cdc.Delete, Pos: "1", At: 1795341600123456, Implied: true}, {Op: cdc.Update, Pos: "1", At: 1795341600123456}}
	for _, statement := range []string{"INSERT INTO", "DELETE FROM"} {
		for name, fault := range map[string]scyllatest.Fault{
			"failed": scyllatest.ServerError("out of luck"), "done and not answered": scyllatest.ServerError("out of luck").After(), "refused": scyllatest.Invalid("too much"),
		} {
			t.Run(statement+" "+name, func(t *testing.T) {
				t.Parallel()
				c := scyllatest.Start(t)
				c.MustExec(t, "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}", "CREATE TABLE ks.t (id int PRIMARY KEY, v text, large text)",
					"INSERT INTO ks.t (id, v, large) VALUES (1, 'old', 'kept') USING TIMESTAMP 1")
				r := newTablesRig(t, athena.ScyllaConn{Hosts: c.Hosts(), Keyspace: "ks"})
				target := driver.TableTarget{Table: r.name("t"), Mode: driver.Upsert, Key: s.Key, Schema: s, Changes: true}
				r.prepare(target)
				c.Fail(scyllatest.Containing(statement), fault, -1)
				tx, err := r.b.BeginTable(t.Context(), target)
				if err != nil {
					t.Fatal(err)
				}
				rejected, err := tx.Write(t.Context(), change)
				if err == nil && rejected == nil {
					t.Error("nothing has failed")
				}
				_ = tx.Rollback(t.Context())
				if got := r.lines("SELECT large FROM t"); !slices.Contains(got, `{"large":"kept"}`) {
					t.Errorf("the table has %s", got)
				}
				c.Heal()
				if rejected := r.write(target, nil, change); rejected != nil {
					t.Errorf("rejected: %+v", rejected)
				}
				if got, want := r.lines("SELECT * FROM t"), []string{`{"id":2,"large":"kept","v":"new"}`}; !slices.Equal(got, want) {
					t.Errorf("the table has %s", got)
				}
			})
		}
	}
}
