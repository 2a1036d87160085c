package scylla

import (
	"context"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	// countParts is into how many ranges of tokens a table is cut to be counted, so
	// that no request takes longer than the cluster lets it.
	countParts = 128
	// countAtOnce is how many of them are counted at a time.
	countAtOnce = 8
)

// Count counts a table's rows by ranges of tokens. Rows that are written or
// removed meanwhile may be counted or not.
func (b *Backend) Count(ctx context.Context, schema, table string, timeout time.Duration) (int64, error) {
	call := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	n, err := b.count(ctx, schema, table)
	if err != nil && call.Err() == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return n, err
}

func (b *Backend) count(ctx context.Context, schema, table string) (int64, error) {
	m, err := b.tableMeta(ctx, schema, table)
	if err != nil {
		return 0, err
	}
	var partition []string
	for _, c := range m.columns {
		if c.kind == kindPartitionKey {
			partition = append(partition, quoteName(c.name))
		}
	}
	token := "token(" + strings.Join(partition, ", ") + ")"
	cql := "SELECT count(*) FROM " + quoteName(m.keyspace) + "." + quoteName(m.name) + " WHERE " + token + " >= ? AND " + token + " <= ?"
	var sum atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(countAtOnce)
	const step = math.MaxUint64/countParts + 1
	for i := range uint64(countParts) {
		first := int64(i*step - 1<<63)
		last := first + (step - 1)
		g.Go(func() error {
			var n int64
			err := b.session.Query(cql, first, last).WithContext(ctx).SetRequestTimeout(0).Idempotent(true).Scan(&n)
			if err != nil {
				return readError(err)
			}
			sum.Add(n)
			return nil
		})
	}
	err = g.Wait()
	return sum.Load(), err
}

// Identity describes the cluster by the node that answers.
func (b *Backend) Identity(ctx context.Context) (driver.Identity, error) {
	id := driver.Identity{Product: "Apache Cassandra", Facts: map[string]string{}}
	var cluster, datacenter, partitioner, protocol, cql string
	err := b.catalog(ctx, `SELECT cluster_name, data_center, partitioner, native_protocol_version, cql_version, release_version FROM system.local WHERE key = 'local'`,
		nil, []any{&cluster, &datacenter, &partitioner, &protocol, &cql, &id.Version}, func() error { return nil })
	if err != nil {
		return id, err
	}
	peers := 0
	var other string
	err = b.catalog(ctx, `SELECT data_center FROM system.peers`, nil, []any{&other}, func() error {
		peers++
		if other != "" && other != datacenter {
			id.Facts["datacenters"] = "several"
		}
		return nil
	})
	if err != nil {
		return id, err
	}
	fact := func(name, value string) {
		if value != "" {
			id.Facts[name] = value
		}
	}
	fact("cluster", cluster)
	fact("datacenter", datacenter)
	fact("partitioner", partitioner[strings.LastIndexByte(partitioner, '.')+1:])
	fact("protocol", protocol)
	fact("cql", cql)
	fact("nodes", strconv.Itoa(peers+1))
	return id, b.identifyScylla(ctx, &id)
}

// identifyScylla looks for what only ScyllaDB has. Without it nothing is changed.
func (b *Backend) identifyScylla(ctx context.Context, id *driver.Identity) error {
	shards := 0
	for _, h := range b.session.GetHosts() {
		if n := h.ScyllaShardCount(); n > 0 {
			shards += n
		}
	}
	var table string
	tables := map[string]bool{}
	err := b.catalog(ctx, `SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system'`, nil, []any{&table}, func() error {
		tables[table] = true
		return nil
	})
	if err != nil || shards == 0 && !tables["scylla_local"] {
		return err
	}
	id.Product = "ScyllaDB"
	if shards > 0 {
		id.Facts["shards"] = strconv.Itoa(shards)
	}
	id.Facts["tablets"] = strconv.FormatBool(tables["tablets"])
	if tables["versions"] { // release_version is that of the Cassandra it is alike
		return b.catalog(ctx, `SELECT version FROM system.versions WHERE key = 'local'`, nil, []any{&id.Version}, func() error { return nil })
	}
	return nil
}
