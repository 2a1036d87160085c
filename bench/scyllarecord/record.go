package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
)

// recorder reads logs through the driver's own queries, so that values have the
// forms that they have everywhere.
type recorder struct {
	backend driver.Backend
	out     string
	most    int
	stdout  io.Writer

	cluster cdcfixture.Cluster
	double  bool
}

// identify finds out what writes the logs.
func (r *recorder) identify(ctx context.Context) error {
	rows, err := r.query(ctx, "SELECT cluster_name, release_version FROM system.local WHERE key = 'local'")
	if err != nil {
		return err
	}
	if len(rows) != 1 {
		return errors.New("system.local has no row")
	}
	name, release := text(rows[0]["cluster_name"]), text(rows[0]["release_version"])
	r.cluster = cdcfixture.Cluster{Product: "Cassandra " + release, Version: release, Date: time.Now().UTC().Format(time.DateOnly)}
	if r.double = name == "double"; r.double {
		r.cluster.Product = "double"
		return nil
	}
	// Only ScyllaDB has this table.
	if rows, err := r.query(ctx, "SELECT version FROM system.versions WHERE key = 'local'"); err == nil && len(rows) == 1 {
		r.cluster.Product, r.cluster.Version = "ScyllaDB", text(rows[0]["version"])
		return nil
	}
	return fmt.Errorf("the cluster is no ScyllaDB: it has no system.versions, and says of itself that it is %s", r.cluster.Product)
}

// recordTable records the log of a table that is there.
func (r *recorder) recordTable(ctx context.Context, keyspace, table string) error {
	create, err := r.describe(ctx, keyspace, table)
	if err != nil {
		return err
	}
	log, err := r.log(ctx, keyspace, table)
	if err != nil {
		return err
	}
	if r.cluster.Layout, err = r.layout(ctx, keyspace); err != nil {
		return err
	}
	f := &cdcfixture.Fixture{Keyspace: keyspace, Table: table, Create: create, Log: log}
	return r.write(f, "recorded-"+keyspace+"."+table+".json", "a table in use")
}

// recordAgain does what fixtures say was done, and records what the cluster made
// of it.
func (r *recorder) recordAgain(ctx context.Context, all []*cdcfixture.Fixture, layout string, wait time.Duration) (err error) {
	keyspace := "athena_record_" + strings.ToLower(rand.Text()[:8])
	r.cluster.Layout = layout
	tablets := ""
	if layout == "tablets" {
		tablets = " AND tablets = {'enabled': true}"
	} else if !r.double {
		tablets = " AND tablets = {'enabled': false}"
	}
	create := "CREATE KEYSPACE " + keyspace + " WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}" + tablets
	if _, err := r.query(ctx, create); err != nil {
		return err
	}
	defer func() {
		_, dropErr := r.query(context.WithoutCancel(ctx), "DROP KEYSPACE "+keyspace)
		err = cmp.Or(err, dropErr)
	}()
	done := 0
	var failed []error
	for _, f := range all {
		if f.Origin == cdcfixture.Recorded || len(f.Statements) == 0 {
			continue
		}
		// What one of them cannot do says nothing of the others.
		if err := r.again(ctx, f, keyspace, fmt.Sprintf("t%d", done+len(failed)), wait); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", f.File, err))
			continue
		}
		done++
	}
	fmt.Fprintf(r.stdout, "%d fixtures recorded from %s %s\n", done, r.cluster.Product, r.cluster.Version)
	return errors.Join(failed...)
}

// again does what one fixture says was done, to a table of its own.
func (r *recorder) again(ctx context.Context, f *cdcfixture.Fixture, keyspace, table string, wait time.Duration) (err error) {
	do := func(statements []string) error {
		for _, s := range statements {
			// Types have no number: the same one in two fixtures is made once.
			s = cdcfixture.In(s, keyspace, table)
			if _, err := r.query(ctx, s); err != nil && !strings.Contains(err.Error(), "already exist") {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}
	if err := do(f.Create); err != nil {
		return err
	}
	if err := do(cdcfixture.AtPresent(f.Statements, time.Now())); err != nil { // behind the streams that were just made
		return err
	}
	again := *f
	again.Keyspace, again.Table = keyspace, table
	if again.Log, err = r.resting(ctx, keyspace, table, wait); err != nil {
		return err
	}
	return r.write(&again, "recorded-"+r.cluster.Layout+"-"+f.File, "the statements of "+f.File)
}

// resting reads a log until it has not grown for a while.
func (r *recorder) resting(ctx context.Context, keyspace, table string, wait time.Duration) ([]cdcfixture.Row, error) {
	last := -1
	for {
		rows, err := r.log(ctx, keyspace, table)
		if err != nil || len(rows) == last {
			return rows, err
		}
		last = len(rows)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// log reads the whole log of a table.
func (r *recorder) log(ctx context.Context, keyspace, table string) ([]cdcfixture.Row, error) {
	return r.query(ctx, "SELECT * FROM "+quote(keyspace)+"."+quote(table+"_scylla_cdc_log"))
}

func (r *recorder) write(f *cdcfixture.Fixture, name, of string) error {
	f.Origin, f.Cluster = cdcfixture.Recorded, &r.cluster
	if r.double {
		f.Origin, f.Cluster, of = cdcfixture.Synthetic, nil, "written by the double: "+of
		name = "double-" + name
	}
	f.Source = of
	if err := f.Write(filepath.Join(r.out, name)); err != nil {
		return err
	}
	fmt.Fprintf(r.stdout, "%s: %d rows\n", name, len(f.Log))
	return nil
}

// query runs a statement and returns its rows, without nulls.
func (r *recorder) query(ctx context.Context, statement string, params ...json.RawMessage) ([]cdcfixture.Row, error) {
	rows, err := r.backend.(driver.Querier).Query(ctx, driver.Statement{Text: statement, Params: params})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []cdcfixture.Row
	for rows.Next() {
		if len(all) == r.most {
			return nil, fmt.Errorf("there are more than %d rows", r.most)
		}
		var row cdcfixture.Row
		if err := json.Unmarshal(rows.AppendJSON(nil), &row); err != nil {
			return nil, err
		}
		for column, value := range row {
			if bytes.Equal(value, []byte("null")) {
				delete(row, column)
			}
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// text is a JSON string's; empty if it is none.
func text(raw json.RawMessage) (s string) {
	json.Unmarshal(raw, &s)
	return s
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
