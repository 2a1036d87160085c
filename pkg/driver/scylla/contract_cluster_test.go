package scylla_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// A contractCluster is what the contract is held against.
type contractCluster interface {
	// own is the cluster for one test: a new one, where that costs nothing.
	own(t *testing.T) contractCluster
	// conn reaches the cluster with all rights.
	conn(keyspace string) athena.ScyllaConn
	// exec runs statements behind the driver's back.
	exec(t *testing.T, cql ...string)
	// keyspace makes a keyspace that is gone when the test ends.
	keyspace(t *testing.T, layout string) string
	// atOnce is how many tables may be captured at once without hurting.
	atOnce() int
	// layouts are those in which the cluster has logs of changes; none if it has no
	// such logs.
	layouts() []string
	// newGeneration has the streams of the table's log replaced by others, soon. It
	// skips the test where that cannot be done.
	newGeneration(t *testing.T, keyspace, table, layout string)
}

// The layouts of a keyspace's data, and with it of its logs.
const (
	vnodes  = "vnodes"
	tablets = "tablets"
)

// doubleCluster is our own server, which lays logs out as ScyllaDB documents it.
type doubleCluster struct{ c *scyllatest.Cluster }

func (doubleCluster) atOnce() int { return 100 }

func (doubleCluster) own(t *testing.T) contractCluster {
	c := scyllatest.Start(t)
	for _, text := range unknownStatements {
		c.ExpectUnknown(text)
	}
	return doubleCluster{c}
}

// unknownStatements are sent to be refused.
var unknownStatements = []string{"SELCT 1"}

func (d doubleCluster) conn(keyspace string) athena.ScyllaConn {
	return athena.ScyllaConn{Hosts: d.c.Hosts(), Keyspace: keyspace}
}

func (d doubleCluster) exec(t *testing.T, cql ...string) {
	t.Helper()
	d.c.MustExec(t, cql...)
}

func (d doubleCluster) keyspace(t *testing.T, layout string) string {
	t.Helper()
	name := contractName()
	d.exec(t, createKeyspace(name, layout))
	return name
}

func (d doubleCluster) newGeneration(_ *testing.T, keyspace, table, layout string) {
	if layout == tablets {
		d.c.SplitTablets(keyspace, table, 4)
		return
	}
	d.c.NewGeneration(d.c.Now().Add(3*time.Second), 2, 4)
}

func (doubleCluster) layouts() []string { return []string{vnodes, tablets} }

// cassandraCluster is a real Apache Cassandra, which has no log of changes.
type cassandraCluster struct{ s *cassandratest.Server }

func (c cassandraCluster) own(*testing.T) contractCluster           { return c }
func (c cassandraCluster) conn(keyspace string) athena.ScyllaConn   { return c.s.Conn(keyspace) }
func (c cassandraCluster) exec(t *testing.T, cql ...string)         { t.Helper(); c.s.Exec(t, cql...) }
func (c cassandraCluster) keyspace(t *testing.T, _ string) string   { t.Helper(); return c.s.Keyspace(t) }
func (cassandraCluster) atOnce() int                                { return 1 }
func (cassandraCluster) layouts() []string                          { return nil }
func (cassandraCluster) newGeneration(t *testing.T, _, _, _ string) { t.Fatal("there are no logs") }

// realCluster is a ScyllaDB that somebody has, named by SCYLLA_TEST_HOSTS:
//
//	SCYLLA_TEST_HOSTS               contact points, host:port, separated by commas
//	SCYLLA_TEST_USERNAME _PASSWORD  a role that may create keyspaces and read system tables
//	SCYLLA_TEST_TLS_CA              file with the certificates that TLS is verified with
//	SCYLLA_TEST_DATACENTER          where to connect and to have replicas
//	SCYLLA_TEST_LAYOUTS             vnodes,tablets: which to test; both unless the release is older than 2025.4
//	SCYLLA_TEST_KEEP=1              leaves the keyspaces there
//	SCYLLA_TEST_NEW_GENERATION_CMD  a shell command that has the vnodes' streams replaced
//	SCYLLA_TEST_RESULT              file that the result is written to
//
// The tests work in keyspaces of their own names, which they drop, and touch no
// others.
type realCluster struct {
	base       athena.ScyllaConn
	session    *gocql.Session
	facts      map[string]string
	datacenter string
	kinds      []string
}

func (*realCluster) atOnce() int { return 8 }

func (r *realCluster) own(*testing.T) contractCluster { return r }

func (r *realCluster) conn(keyspace string) athena.ScyllaConn {
	c := r.base
	c.Keyspace = keyspace
	return c
}

func (r *realCluster) exec(t *testing.T, cql ...string) {
	t.Helper()
	for _, text := range cql {
		if err := r.session.Query(text).WithContext(t.Context()).Exec(); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

func (r *realCluster) keyspace(t *testing.T, layout string) string {
	t.Helper()
	name := contractName()
	text := createKeyspace(name, layout)
	r.exec(t, strings.Replace(text, "'replication_factor'", "'"+r.datacenter+"'", 1))
	t.Cleanup(func() {
		if os.Getenv("SCYLLA_TEST_KEEP") == "" {
			if err := r.session.Query("DROP KEYSPACE " + name).Exec(); err != nil {
				t.Errorf("the keyspace %s is left behind: %v", name, err)
			}
		}
	})
	return name
}

func (r *realCluster) layouts() []string { return r.kinds }

func (r *realCluster) newGeneration(t *testing.T, keyspace, table, layout string) {
	t.Helper()
	if layout == tablets {
		r.exec(t, "ALTER TABLE "+keyspace+"."+table+" WITH tablets = {'min_tablet_count': 8}")
		return
	}
	command := os.Getenv("SCYLLA_TEST_NEW_GENERATION_CMD")
	if command == "" {
		t.Skip("streams of vnodes are not replaced by a statement: no SCYLLA_TEST_NEW_GENERATION_CMD")
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("SCYLLA_TEST_NEW_GENERATION_CMD: %v: %s", err, out)
	}
}

func contractName() string { return "athena_test_" + strings.ToLower(rand.Text()[:10]) }

// createKeyspace says of a layout what the engine's default may not be. An engine
// that knows of none is given none.
func createKeyspace(name, layout string) string {
	text := "CREATE KEYSPACE " + name + " WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"
	switch layout {
	case vnodes:
		text += " AND tablets = {'enabled': false}"
	case tablets:
		text += " AND tablets = {'enabled': true}"
	}
	return text
}

// real is the account of the tests of a real cluster. It is there because a
// testing.T cannot carry it to the end of the process.
var real struct {
	once    sync.Once
	cluster *realCluster
	err     error

	mu           sync.Mutex
	ran, skipped []string
	failed       []string
}

// openReal gives the cluster of SCYLLA_TEST_HOSTS. Without it the test is counted as
// skipped; with one that does not answer it fails.
func openReal(t *testing.T) *realCluster {
	t.Helper()
	hosts := os.Getenv("SCYLLA_TEST_HOSTS")
	real.mu.Lock()
	if hosts == "" {
		real.skipped = append(real.skipped, t.Name())
	} else {
		real.ran = append(real.ran, t.Name())
	}
	real.mu.Unlock()
	if hosts == "" {
		t.Skip("no SCYLLA_TEST_HOSTS: not run against a real ScyllaDB")
	}
	t.Cleanup(func() {
		if t.Failed() {
			real.mu.Lock()
			defer real.mu.Unlock()
			real.failed = append(real.failed, t.Name())
		}
	})
	real.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		real.cluster, real.err = reach(ctx, hosts)
	})
	if real.err != nil {
		t.Fatalf("SCYLLA_TEST_HOSTS is set, and the cluster cannot be reached: %v", real.err)
	}
	return real.cluster
}

func reach(ctx context.Context, hosts string) (*realCluster, error) {
	r := &realCluster{facts: map[string]string{}}
	r.base = athena.ScyllaConn{Hosts: strings.Split(hosts, ","), Datacenter: os.Getenv("SCYLLA_TEST_DATACENTER"), Username: os.Getenv("SCYLLA_TEST_USERNAME")}
	cfg := gocql.NewCluster(r.base.Hosts...)
	if p := os.Getenv("SCYLLA_TEST_PASSWORD"); p != "" {
		r.base.Password = athena.NewSecret(p)
		cfg.Authenticator = gocql.PasswordAuthenticator{Username: r.base.Username, Password: p}
	}
	if ca := os.Getenv("SCYLLA_TEST_TLS_CA"); ca != "" {
		r.base.TLS = &athena.TLS{CAFile: ca}
		cfg.SslOpts = &gocql.SslOptions{CaPath: ca, EnableHostVerification: true}
	}
	cfg.Timeout, cfg.ConnectTimeout = 20*time.Second, 10*time.Second
	cfg.ProtoVersion = 4
	var err error
	if r.session, err = cfg.CreateSession(); err != nil {
		return nil, err
	}
	local := map[string]any{}
	if err := r.session.Query("SELECT cluster_name, release_version, data_center, partitioner FROM system.local WHERE key = 'local'").WithContext(ctx).MapScan(local); err != nil {
		return nil, err
	}
	for k, v := range local {
		r.facts[k] = fmt.Sprint(v)
	}
	if r.datacenter = r.base.Datacenter; r.datacenter == "" {
		r.datacenter = r.facts["data_center"]
	}
	r.facts["product"] = "double"
	if r.facts["cluster_name"] != "double" {
		var version string
		if err := r.session.Query("SELECT version FROM system.versions WHERE key = 'local'").WithContext(ctx).Scan(&version); err != nil {
			return nil, errors.New("it has no system.versions, so that it is no ScyllaDB")
		}
		r.facts["product"], r.facts["version"] = "ScyllaDB", version
	}
	r.kinds = []string{vnodes, tablets}
	if major, _, _ := strings.Cut(r.facts["version"], "-"); r.facts["version"] != "" && !atLeast(major, 2025, 4) {
		r.kinds = []string{vnodes}
	}
	if text := os.Getenv("SCYLLA_TEST_LAYOUTS"); text != "" {
		r.kinds = strings.Split(text, ",")
	}
	for _, k := range r.kinds {
		if k != vnodes && k != tablets {
			return nil, fmt.Errorf("SCYLLA_TEST_LAYOUTS has %q, which is no layout", k)
		}
	}
	r.facts["layouts"] = strings.Join(r.kinds, ",")
	return r, nil
}

// atLeast compares a version by its first two numbers.
func atLeast(version string, major, minor int) bool {
	var a, b int
	fmt.Sscanf(version, "%d.%d", &a, &b)
	return a > major || a == major && b >= minor
}

// tellReal says last what ran on a real cluster, and writes it down with what is
// known of the cluster.
func tellReal() {
	real.mu.Lock()
	defer real.mu.Unlock()
	if n := len(real.skipped); n > 0 {
		fmt.Printf("real ScyllaDB: 0 run, %d skipped (no SCYLLA_TEST_HOSTS)\n", n)
	}
	if len(real.ran) == 0 || real.cluster == nil {
		return
	}
	facts := real.cluster.facts
	name := facts["product"] + " " + facts["version"]
	if facts["product"] == "double" {
		name = "a double, which is no ScyllaDB"
	}
	fmt.Printf("SCYLLA_TEST_HOSTS is %s: %d run, %d failed\n", name, len(real.ran), len(real.failed))
	file := os.Getenv("SCYLLA_TEST_RESULT")
	if file == "" {
		file = filepath.Join(os.TempDir(), "scylla-contract.json")
	}
	slices.Sort(real.ran)
	slices.Sort(real.failed)
	raw, _ := json.MarshalIndent(map[string]any{
		"at": time.Now().UTC().Format(time.RFC3339), "cluster": facts, "ran": real.ran, "failed": real.failed,
	}, "", "  ")
	if err := os.WriteFile(file, append(raw, '\n'), 0o644); err != nil {
		fmt.Println("the result could not be written:", err)
		return
	}
	fmt.Println("the result is in", file)
}
