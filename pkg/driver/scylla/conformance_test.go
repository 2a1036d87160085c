package scylla_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/drivertest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// harness is what the suite must know of CQL, whatever answers it. The keyspace
// holds the tables that load makes.
func harness(t *testing.T, addr string, conn athena.ScyllaConn) drivertest.Harness {
	front := newRelay(t, addr)
	conn.Hosts = []string{front.addr()}
	open := func(t *testing.T, conn athena.ScyllaConn) driver.Backend {
		b, err := scylla.Driver().Open(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return drivertest.Harness{
		Open: func(t *testing.T) driver.Backend { return open(t, conn) },
		Claims: athena.Allow(athena.GatewayQuery, athena.DeferredQuery, athena.RawCQL, athena.SchemaRead, athena.Provisioning,
			athena.CDC, athena.PipelineSource, athena.PipelineSink),
		Counts: true, Identifies: true,
		Unreachable: func(t *testing.T) (driver.Backend, error) {
			r := newRelay(t, addr)
			away := conn
			away.Hosts = []string{r.addr()}
			b := open(t, away)
			r.cut()
			return b, nil
		},
		Secrets:   []string{conn.Password.Reveal()},
		Schema:    conn.Keyspace,
		Provision: driver.Provision{Kind: "keyspace", Name: "Tenant_" + conn.Keyspace},
		Stall:     func(*testing.T) func() { return front.hold() },
		Rows:      generated,
		Upserts:   true, Uncounted: true,
		Tables: drivertest.Tables{Kept: kept, Milliseconds: true, Loose: true},
		Statements: drivertest.Statements{
			Create:     `CREATE TABLE {t} (id bigint PRIMARY KEY, name text)`,
			Drop:       []string{`DROP TABLE {t}`},
			Insert:     `INSERT INTO {t} (id, name) VALUES (?, ?)`,
			Select:     `SELECT id, name FROM {t} WHERE id = ?`,
			All:        `SELECT id, name FROM {t}`,
			Rename:     `UPDATE {t} SET name = ? WHERE id = ? IF EXISTS`,
			Generate:   `SELECT i, filler FROM generated LIMIT ?`,
			Slow:       `SELECT key FROM system.local`,
			SlowWrite:  `INSERT INTO {t} (id, name) VALUES (?, ?)`,
			Duplicates: `SELECT key AS a, cql_version AS a, partitioner AS a FROM system.local WHERE key = 'local'`,
			MidError:   `SELECT 10 / w AS v FROM mid WHERE p = 1`,
			Syntax:     `SELCT 1`,
			Reads:      []string{`SELECT 'delete' AS x FROM t; -- insert`, `/* update */ SELECT * FROM "t" WHERE a = $$it's;$$`, `DESCRIBE TABLES`, `LIST ROLES`},
			Writes:     []string{`DELETE FROM t WHERE a = 1`, `BEGIN UNLOGGED BATCH INSERT INTO t (a) VALUES (1); INSERT INTO t (a) VALUES (2); APPLY BATCH;`, `TRUNCATE t`, `GRANT SELECT ON t TO x`},
			Refused:    []string{`USE ks`, `SELECT * FROM a; SELECT * FROM b`, `use "Ks";`},
		},
	}
}

// generated is how many rows of 2 KiB the table of that name has: more than fit
// into what the suite lets the heap grow by.
const generated = 30_000

// load makes the tables that Generate and MidError read.
func load(t *testing.T, session *gocql.Session, keyspace string) {
	t.Helper()
	exec := func(cql string, args ...any) error { return session.Query(cql, args...).Exec() }
	for _, cql := range []string{
		`CREATE TABLE ` + keyspace + `.generated (i int PRIMARY KEY, filler text)`,
		`CREATE TABLE ` + keyspace + `.mid (p int, c int, w int, PRIMARY KEY (p, c))`,
	} {
		if err := exec(cql); err != nil {
			t.Fatal(err)
		}
	}
	var g errgroup.Group
	g.SetLimit(64)
	filler := strings.Repeat("x", 2<<10)
	for i := range generated {
		g.Go(func() error { return exec(`INSERT INTO `+keyspace+`.generated (i, filler) VALUES (?, ?)`, i, filler) })
	}
	const mid = 1000 // more than the first page
	for i := range mid {
		g.Go(func() error {
			return exec(`INSERT INTO `+keyspace+`.mid (p, c, w) VALUES (1, ?, ?)`, i, mid-1-i)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// It looks at the heap of the process, so no other test runs beside it.
func TestConformanceDouble(t *testing.T) {
	const password = "pl4nted-password"
	double := scyllatest.Start(t, scyllatest.Password("tester", password))
	double.MustExec(t, `CREATE KEYSPACE conformance WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}`)
	conn := athena.ScyllaConn{Hosts: double.Hosts(), Username: "tester", Password: athena.NewSecret(password), Keyspace: "conformance"}
	load(t, session(t, conn), conn.Keyspace)
	h := harness(t, double.Hosts()[0], conn)
	h.Statements.MidError = `SELECT w AS v FROM mid WHERE p = 1`
	double.Fail(func(r scyllatest.Request) bool { return r.Page > 0 && strings.Contains(r.CQL, "FROM mid") }, scyllatest.Invalid("a page that fails"), -1)
	double.ExpectUnknown("SELCT 1")
	drivertest.Run(t, h)
}

// session is one of gocql's own.
func session(t *testing.T, conn athena.ScyllaConn) *gocql.Session {
	t.Helper()
	cfg := gocql.NewCluster(conn.Hosts...)
	cfg.Authenticator = gocql.PasswordAuthenticator{Username: conn.Username, Password: conn.Password.Reveal()}
	s, err := cfg.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestConformanceCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	keyspace := server.Keyspace(t)
	load(t, server.Session(t), keyspace)
	const password = "pl4nted-password"
	role := "conformance_" + keyspace
	server.Exec(t, fmt.Sprintf(`CREATE ROLE %s WITH PASSWORD = '%s' AND LOGIN = true AND SUPERUSER = true`, role, password))
	conn := server.Conn(keyspace)
	conn.Username, conn.Password = role, athena.NewSecret(password)
	h := harness(t, server.Addr, conn)
	t.Cleanup(func() {
		server.Exec(t, `DROP ROLE `+role, `DROP KEYSPACE "`+h.Provision.Name+`"`)
	})
	drivertest.Run(t, h)
}
