package scylla_test

import (
	"fmt"
	"testing"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

const benchRows = 20_000

// BenchmarkRows reads rows as JSON, and the same with gocql's own Iter into Go
// values that nobody looks at.
func BenchmarkRows(b *testing.B) {
	b.Run("double", func(b *testing.B) {
		double := scyllatest.Start(b)
		if err := double.Exec(`CREATE KEYSPACE bench WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}`); err != nil {
			b.Fatal(err)
		}
		cfg := gocql.NewCluster(double.Hosts()...)
		benchmarkRows(b, cfg, athena.ScyllaConn{Hosts: double.Hosts(), Keyspace: "bench"})
	})
	b.Run("cassandra", func(b *testing.B) {
		server := cassandratest.Start(b)
		cfg := gocql.NewCluster(server.Addr)
		cfg.Authenticator = gocql.PasswordAuthenticator{Username: server.Username, Password: server.Password}
		benchmarkRows(b, cfg, server.Conn(server.Keyspace(b)))
	})
}

func benchmarkRows(b *testing.B, cfg *gocql.ClusterConfig, conn athena.ScyllaConn) {
	cfg.Keyspace = conn.Keyspace
	session, err := cfg.CreateSession()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(session.Close)
	if err := session.Query(`CREATE TABLE wide (id bigint PRIMARY KEY, name text, at timestamp, total decimal, tags set<text>)`).Exec(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	const writers = 32
	for w := range writers {
		go func() {
			for i := w; i < benchRows; i += writers {
				if err := session.Query(fmt.Sprintf(`INSERT INTO wide (id, name, at, total, tags) VALUES (%d, 'somebody by name %d', %d, 19.90, {'a', 'longer'})`, i, i, i)).Exec(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	backend, err := scylla.Open(b.Context(), conn)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { backend.Close(b.Context()) })
	const cql = `SELECT id, name, at, total, tags FROM wide`

	ours := func(b *testing.B) {
		var buf []byte
		rows, err := backend.Query(b.Context(), driver.Statement{Text: cql})
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for rows.Next() {
			buf = rows.AppendJSON(buf[:0])
			n++
		}
		if err := rows.Close(); err != nil || n != benchRows {
			b.Fatalf("%d rows, %v", n, err)
		}
	}
	theirs := func(b *testing.B) {
		iter := session.Query(cql).WithContext(b.Context()).Iter()
		data, err := iter.RowData()
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for iter.Scan(data.Values...) {
			n++
		}
		if err := iter.Close(); err != nil || n != benchRows {
			b.Fatalf("%d rows, %v", n, err)
		}
	}
	ours(b) // both are prepared
	theirs(b)
	b.Run("athena", func(b *testing.B) { perRow(b, ours) })
	b.Run("gocql", func(b *testing.B) { perRow(b, theirs) })
}

func perRow(b *testing.B, read func(*testing.B)) {
	b.ReportAllocs()
	for b.Loop() {
		read(b)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchRows), "ns/row")
	b.ReportMetric(float64(b.N*benchRows)/b.Elapsed().Seconds(), "rows/s")
}
