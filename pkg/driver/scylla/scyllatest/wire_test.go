package scyllatest_test

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func TestDoubleSpeaksVersions3And4Alone(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY, v text)`)
	for _, v := range []int{3, 4} {
		s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.ProtoVersion = v })
		must(t, s, `INSERT INTO ks.t (k, v) VALUES (?, ?)`, v, "x")
		same(t, "row", texts(t, s, `SELECT v FROM ks.t WHERE k = ?`, v), []string{"x"})
	}
	nc, err := net.Dial("tcp", c.Hosts()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	if _, err := nc.Write([]byte{5, 0, 0, 7, 5, 0, 0, 0, 0}); err != nil { // OPTIONS of version 5
		t.Fatal(err)
	}
	reply, err := io.ReadAll(nc) // the connection ends
	if err != nil || len(reply) < 17 || reply[0] != 0x84 || binary.BigEndian.Uint16(reply[2:]) != 7 || reply[4] != 0 ||
		binary.BigEndian.Uint32(reply[9:]) != 0x0a || !strings.Contains(string(reply), "unsupported protocol version (5)") {
		t.Errorf("%x %v", reply, err)
	}
}

func TestDoubleOutlivesWhatIsNoRequest(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	for _, b := range [][]byte{
		{4, 0, 0, 1, 0x63, 0, 0, 0, 0},          // no such code
		{4, 0, 0, 1, 7, 0, 0, 0, 2, 0xff, 0xff}, // a QUERY that is cut off
		{4, 0, 0, 1, 7, 0xff, 0xff, 0xff, 0xff}, // of a negative length
		{4, 1, 0, 1, 7, 0, 0, 0, 1, 0},          // compressed
		{4, 0, 0, 1, 9, 0, 0, 0, 4, 0, 0, 0, 0}, // PREPARE before STARTUP
		{0x84, 0, 0, 1, 8, 0, 0, 0, 0}, []byte("GET / HTTP/1.1\r\n\r\n"), {4},
	} {
		nc, err := net.Dial("tcp", c.Hosts()[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = nc.(*net.TCPConn).CloseWrite()
		if _, err := io.ReadAll(nc); err != nil {
			t.Errorf("%x: %v", b, err)
		}
		_ = nc.Close()
	}
	connect(t, c)
}

func TestDoubleMindsTheOptionsOfARequest(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY, v int)`)
	s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.Keyspace = "ks" })
	var mu sync.Mutex
	var seen []scyllatest.Request
	c.Fail(func(r scyllatest.Request) bool {
		if strings.Contains(r.CQL, "INSERT INTO t ") && r.Op == "EXECUTE" {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r)
		}
		return false
	}, scyllatest.Overloaded(), 1)
	q := s.Query(`INSERT INTO t (k, v) VALUES (?, 1) IF NOT EXISTS`, 1).CustomPayload(map[string][]byte{"x": {1}}).SerialConsistency(gocql.LocalSerial).Consistency(gocql.LocalQuorum)
	if applied, err := q.MapScanCAS(map[string]any{}); !applied || err != nil {
		t.Fatal(applied, err)
	}
	if err := s.Query(`INSERT INTO t (k, v) VALUES (?, ?)`, 2, 2).WithTimestamp(123).Exec(); err != nil {
		t.Fatal(err)
	}
	same(t, "time", texts(t, s, `SELECT writetime(v) FROM t WHERE k = 2`), []string{"123"})
	same(t, "serial", texts(t, s, `SELECT v FROM t WHERE k = 1`), []string{"1"})
	mu.Lock()
	if len(seen) != 2 || !strings.Contains(seen[0].Serial, "LOCAL_SERIAL") || !strings.Contains(seen[0].Consistency, "LOCAL_QUORUM") || seen[0].Node != c.Hosts()[0] {
		t.Errorf("%+v", seen)
	}
	mu.Unlock()
	if err := s.Query(`INSERT INTO t (k, v) VALUES (?, ?)`, 2, 2).Consistency(gocql.Serial).Exec(); err == nil || !strings.Contains(err.Error(), "conditional updates for serializable writes") {
		t.Error(err)
	}
}

// The estimates are of the ranges that a node is the first to hold, and exact.
func TestDoubleEstimatesSizes(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (k int PRIMARY KEY, v text)`)
	s := connect(t, c)
	for i := range 100 {
		must(t, s, `INSERT INTO ks.t (k, v) VALUES (?, ?)`, i, strings.Repeat("x", 96))
	}
	iter := s.Query(`SELECT range_start, range_end, mean_partition_size, partitions_count FROM system.size_estimates WHERE keyspace_name = 'ks' AND table_name = 't'`).Iter()
	var from, to string
	var size, n, all int64
	for iter.Scan(&from, &to, &size, &n) {
		all += n
		if n > 0 && size != 100 {
			t.Errorf("(%s, %s]: %d bytes", from, to, size)
		}
	}
	if err := iter.Close(); err != nil || all != 100 {
		t.Errorf("%d partitions, %v", all, err)
	}
}
