package scylla_test

import (
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// With its parameters a statement goes to the node that has its partition.
func TestStatementsGoToTheNodeOfTheirPartitionOnTheDouble(t *testing.T) {
	t.Parallel()
	double, b := onDouble(t, nil, scyllatest.Nodes(3))
	var mu sync.Mutex
	nodes := map[string]bool{}
	double.Fail(func(r scyllatest.Request) bool {
		if r.Op == "EXECUTE" && strings.Contains(r.CQL, "FROM items WHERE") {
			mu.Lock()
			nodes[r.Node] = true
			mu.Unlock()
		}
		return false
	}, scyllatest.ServerError("never"), -1)
	seen := map[string]bool{}
	for id := range 20 {
		mu.Lock()
		clear(nodes)
		mu.Unlock()
		for range 6 {
			if _, err := all(t, b, `SELECT name FROM items WHERE id = ?`, strconv.Itoa(id)); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock()
		if len(nodes) != 1 {
			t.Errorf("the partition %d was read at %d nodes", id, len(nodes))
		}
		maps.Copy(seen, nodes)
		mu.Unlock()
	}
	if len(seen) != 3 {
		t.Errorf("20 partitions are at %d nodes, want 3", len(seen))
	}
}
