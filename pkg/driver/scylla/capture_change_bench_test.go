package scylla

import (
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// BenchmarkDecode reads what scylla-cdc-go hands over of one insert as a change.
func BenchmarkDecode(b *testing.B) {
	cluster := scyllatest.Start(b)
	cluster.MustExec(b, createShop, `CREATE TYPE shop.address (street text, zip int)`,
		`CREATE TABLE shop.flat (pk bigint, ck timeuuid, a text, b double, c timestamp, d boolean, e int, f text, PRIMARY KEY (pk, ck))`+withLog,
		`CREATE TABLE shop.deep (pk bigint, ck int, tags set<text>, attrs map<text, int>, xs list<int>, home address, PRIMARY KEY (pk, ck))`+withLog,
		`INSERT INTO shop.flat (pk, ck, a, b, c, d, e, f) VALUES (1, now(), 'a text of some length', 1.5, 1795341600123, true, 7, 'another text')`,
		`INSERT INTO shop.deep (pk, ck, tags, attrs, xs, home) VALUES (1, 2, {'a', 'b', 'c'}, {'k': 1, 'l': 2}, [1, 2, 3], {street: 'High', zip: 7})`)
	backend := openDouble(b, cluster)
	for _, table := range []string{"flat", "deep"} {
		name := driver.TableName{Schema: "shop", Table: table}
		m, err := backend.captureTable(b.Context(), name)
		if err != nil {
			b.Fatal(err)
		}
		change := readLog(b, backend, name, 1)[0]
		b.Run(table, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if changes, _, err := m.decode(b.Context(), &change); err != nil || len(changes) != 1 {
					b.Fatal(err)
				}
			}
		})
	}
}
