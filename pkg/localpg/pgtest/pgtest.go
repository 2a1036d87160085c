// Package pgtest gives tests a real PostgreSQL.
//
// Tests of one process share one server, each with a database of its own. A
// package that uses it calls Main from its TestMain, which stops the server.
package pgtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/localpg"
)

// shared is the test process's one server. It is the package's only state, and
// it is there because a testing.T cannot carry it from test to test.
var shared struct {
	main   atomic.Bool
	once   sync.Once
	server *localpg.Server
	err    error
	next   atomic.Int64
}

// Main runs the tests and stops the shared server:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M) { os.Exit(Run(m)) }

// parallel is how many tests run side by side: those with a database wait more than
// they work. -parallel wins.
const parallel = "6"

// Run is Main for a TestMain that has something else to do at the end.
func Run(m interface{ Run() int }) int {
	if f := flag.Lookup("test.parallel"); f != nil && !flag.Parsed() {
		_ = f.Value.Set(parallel)
	}
	shared.main.Store(true)
	code := m.Run()
	if s := shared.server; s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx, localpg.Immediate); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// DSN makes a fresh database on the shared server, drops it when the test ends,
// and returns its connection string. The shared server runs with fsync off: it
// is fast, and of no use for tests of durability (see Server). It allows 300
// connections and has wal_level=logical.
func DSN(t testing.TB) string {
	t.Helper()
	s := sharedServer(t)
	name := fmt.Sprintf("test_%d", shared.next.Add(1))
	exec(t, s, "CREATE DATABASE "+name)
	t.Cleanup(func() {
		exec(t, s, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	})
	return s.DSN(name)
}

func sharedServer(t testing.TB) *localpg.Server {
	t.Helper()
	if !shared.main.Load() {
		t.Fatal("pgtest: call pgtest.Main from TestMain, or the server outlives the tests")
	}
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.server, shared.err = localpg.Start(ctx, localpg.Config{Settings: map[string]string{
			"fsync":              "off",
			"synchronous_commit": "off",
			"full_page_writes":   "off",
			"max_connections":    "300",
			"shared_buffers":     "64MB",
		}})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Server starts a server for this test alone, with real fsync, that the test
// may stop, crash and restart. settings are server settings such as
// {"wal_level": "replica"}; nil is fine. It is stopped when the test ends.
func Server(t testing.TB, settings map[string]string) *localpg.Server {
	t.Helper()
	// Not t.TempDir: its parent is closed to the user that the server runs as
	// when the tests run as root. Not an empty Dir: Stop would remove the data.
	dir, err := os.MkdirTemp("", "athena-pgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := localpg.Start(t.Context(), localpg.Config{Dir: dir, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx, localpg.Immediate); err != nil {
			t.Error(err)
		}
	})
	return s
}

func exec(t testing.TB, s *localpg.Server, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
}
