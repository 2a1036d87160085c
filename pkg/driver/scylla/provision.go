package scylla

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// keyspaceName is what ScyllaDB and Cassandra take as the name of a keyspace.
var keyspaceName = regexp.MustCompile(`^[a-zA-Z0-9_]{1,48}$`)

// mostReplicas is how many copies a keyspace gets in a datacenter that has so many
// nodes.
const mostReplicas = 3

// Provision creates a keyspace with three copies of all data in the datacenter of
// the connection, or in each one if it names none; in a datacenter with fewer nodes
// one for each.
func (b *Backend) Provision(ctx context.Context, p driver.Provision) (driver.Provisioned, error) {
	switch {
	case p.Kind != "keyspace":
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, "kind %.40q is unknown to ScyllaDB; it must be keyspace", p.Kind).At("kind")
	case !keyspaceName.MatchString(p.Name):
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, "name %.60q is no name of a keyspace; it has 1 to 48 letters, digits and _", p.Name).At("name")
	}
	found := false
	var name string
	err := b.catalog(ctx, `SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?`, []any{p.Name}, []any{&name}, func() error {
		found = true
		return nil
	})
	if err != nil || found {
		return driver.Provisioned{}, err
	}
	replication, err := b.replication()
	if err != nil {
		return driver.Provisioned{}, err
	}
	rows, err := b.Query(ctx, driver.Statement{Text: "CREATE KEYSPACE " + quoteName(p.Name) + " WITH replication = {'class': 'NetworkTopologyStrategy', " + replication + "}"})
	if err == nil {
		err = rows.Close()
	}
	if b.Classify(err).Code == athena.CodeConflict {
		return driver.Provisioned{}, nil // somebody was faster
	}
	return driver.Provisioned{Created: err == nil}, err
}

// replication says how many copies each datacenter gets.
func (b *Backend) replication() (string, error) {
	nodes := map[string]int{}
	for _, h := range b.session.GetHosts() {
		if dc := h.DataCenter(); b.conn.Datacenter == "" || dc == b.conn.Datacenter {
			nodes[dc]++
		}
	}
	if len(nodes) == 0 {
		return "", athena.Errorf(athena.CodeBackendUnavailable, "no node of the cluster is known")
	}
	var copies []string
	for _, dc := range slices.Sorted(maps.Keys(nodes)) {
		copies = append(copies, fmt.Sprintf("'%s': %d", strings.ReplaceAll(dc, "'", "''"), min(nodes[dc], mostReplicas)))
	}
	return strings.Join(copies, ", "), nil
}
