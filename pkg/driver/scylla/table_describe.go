package scylla

import (
	"context"
	"fmt"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// DescribeTable describes a table or materialized view. How large it is the nodes
// estimate now and then, and not where it is new.
func (b *Backend) DescribeTable(ctx context.Context, t driver.TableName) (driver.TableShape, error) {
	m, err := b.tableMeta(ctx, t.Schema, t.Table)
	if err != nil {
		return driver.TableShape{}, err
	}
	shape := driver.TableShape{Schema: m.schema(m.columns), Kind: "table", Notes: m.notes()}
	if m.view {
		shape.Kind = "materialized_view"
	}
	shape.Rows, shape.Bytes, err = b.estimate(ctx, m)
	return shape, err
}

// notes are what a reader of the table may want to know.
func (m *tableMeta) notes() (list []string) {
	switch {
	case strings.EqualFold(m.cdc["enabled"], "true"):
		list = append(list, fmt.Sprintf("its changes are logged (cdc: delta %s, preimage %s, postimage %s, kept for %s s)", m.option("delta", "full"), m.option("preimage", "false"), m.option("postimage", "false"), m.option("ttl", "86400")))
	case !m.view && !m.counter: // whose changes cannot be
		list = append(list, "its changes are not logged; ALTER TABLE "+m.from()+" WITH cdc = {'enabled': true} has ScyllaDB log them")
	}
	if m.counter {
		list = append(list, "it has counters, which are read as they are when they are read")
	}
	if m.ttl > 0 {
		list = append(list, fmt.Sprintf("its rows live %d s unless they are written otherwise", m.ttl))
	}
	return list
}

func (m *tableMeta) option(name, fallback string) string {
	if v := m.cdc[name]; v != "" {
		return v
	}
	return fallback
}
