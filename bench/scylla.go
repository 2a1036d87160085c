package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// logged is a table of rows of some 200 bytes, on a double: the figure is that of
// Athena and of the libraries that it reads logs with, not of a ScyllaDB.
const logged = `CREATE TABLE ks.changed (account int, n int, status text, total double, note text, PRIMARY KEY (account, n)) WITH cdc = {'enabled': true}`

// drainLog measures how fast a backlog of a log is stored, beside how fast gocql
// alone reads the same rows and throws them away, before and after.
func drainLog(changes int) func(context.Context, *rig.Rig, bool) ([]figure, error) {
	return func(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
		n := changes
		if quick {
			n /= 4
		}
		cluster, err := scyllatest.New(scyllatest.Generation(time.Minute, 8, 4))
		if err != nil {
			return nil, err
		}
		defer cluster.Close()
		for _, cql := range []string{
			`CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}`, logged,
		} {
			if err := cluster.Exec(cql); err != nil {
				return nil, err
			}
		}
		session, err := gocql.NewCluster(cluster.Hosts()...).CreateSession()
		if err != nil {
			return nil, err
		}
		defer session.Close()
		for _, c := range []struct {
			method, path string
			body         map[string]any
		}{
			{http.MethodPut, "/admin/clients/shop", map[string]any{
				"client_name": "shop", "engine": "scylla", "lifecycle": "active",
				"capabilities": map[string]bool{"cdc": true}, "connection": map[string]any{"hosts": cluster.Hosts()},
			}},
			{http.MethodPost, "/cdc/shop/enable", map[string]any{
				"tables": []string{"ks.changed"}, "snapshot": "none", "confidence": "1s", "max_bytes": int64(64 << 30),
			}},
		} {
			if status, reply, err := r.Call(c.method, c.path, "", c.body); err != nil || status >= 300 {
				return nil, fmt.Errorf("%s: %d %s %w", c.path, status, reply.Message, err)
			}
		}
		if err := streams(ctx, r); err != nil {
			return nil, err
		}
		r.Workers[0].Kill()
		if err := writeLog(session, n); err != nil {
			return nil, err
		}
		time.Sleep(3 * time.Second) // all is older than the confidence
		before, err := readLog(session, n)
		if err != nil {
			return nil, err
		}
		if err := r.Workers[0].Start(""); err != nil {
			return nil, err
		}
		nc, err := r.Broker(ctx)
		if err != nil {
			return nil, err
		}
		defer nc.Close()
		b, err := bus.New(nc, bus.Config{})
		if err != nil {
			return nil, err
		}
		s, err := countStream(ctx, b, "ath.cdc.shop.ks.changed", n)
		if err != nil {
			return nil, err
		}
		after, err := readLog(session, n)
		if err != nil {
			return nil, err
		}
		rate, peer := float64(n)/s.last.Sub(s.first).Seconds(), float64(n)/min(before, after).Seconds()
		return []figure{
			{name: "ScyllaDB log (double): stored", got: rate, unit: "changes/s", target: 20_000, note: fmt.Sprintf("%d changes of some 200 bytes, from the first that was stored to the last", n)},
			{name: "  share of gocql reading to nowhere", got: rate / peer, unit: "", target: 0.05, note: fmt.Sprintf("gocql: %.0f rows/s, from the same double", peer)},
		}, nil
	}
}

// writeLog writes rows, 50 to a partition.
func writeLog(session *gocql.Session, n int) error {
	var writers sync.WaitGroup
	errs := make(chan error, 8)
	for w := range 8 {
		writers.Go(func() {
			for account := w; account*50 < n; account += 8 {
				for i := range min(50, n-account*50) {
					err := session.Query(`INSERT INTO ks.changed (account, n, status, total, note) VALUES (?, ?, ?, ?, ?)`,
						account, i, "status "+strconv.Itoa(i%7), float64(account)/100, strings.Repeat("0123456789abcdef", 6)).Exec()
					if err != nil {
						errs <- err
						return
					}
				}
			}
		})
	}
	writers.Wait()
	close(errs)
	return <-errs
}

// nowhere takes a column and looks at nothing.
type nowhere struct{}

func (nowhere) UnmarshalCQL(gocql.TypeInfo, []byte) error { return nil }

// readLog reads the whole log, and gives how long that took.
func readLog(session *gocql.Session, n int) (time.Duration, error) {
	begin := time.Now()
	iter := session.Query(`SELECT * FROM ks.changed_scylla_cdc_log`).PageSize(5000).Iter()
	dest := make([]any, len(iter.Columns()))
	for i := range dest {
		dest[i] = nowhere{}
	}
	rows := 0
	for iter.Scan(dest...) {
		rows++
	}
	if err := iter.Close(); err != nil {
		return 0, err
	}
	if rows != n {
		return 0, fmt.Errorf("the log has %d rows, of %d", rows, n)
	}
	return time.Since(begin), nil
}

// countStream reads messages of a subject until there are so many changes.
func countStream(ctx context.Context, b *bus.Bus, subject string, changes int) (s stored, err error) {
	seq, deadline := uint64(1), time.Now().Add(5*time.Minute)
	for s.changes < changes {
		found, err := b.Scan(ctx, bus.CDCStream("shop"), subject, seq, 500)
		if err != nil {
			return s, err
		}
		for _, m := range found {
			n, err := strconv.Atoi(m.Header.Get(changefeed.HeaderCount))
			if err != nil {
				return s, fmt.Errorf("message %d counts %q", m.Sequence, m.Header.Get(changefeed.HeaderCount))
			}
			if s.messages == 0 {
				s.first = m.Time
			}
			s.changes, s.messages, s.last, seq = s.changes+n, s.messages+1, m.Time, m.Sequence+1
		}
		if len(found) == 0 {
			if time.Now().After(deadline) {
				return s, fmt.Errorf("only %d of %d changes were stored", s.changes, changes)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if s.changes > changes {
		err = fmt.Errorf("%d changes were stored of %d", s.changes, changes)
	}
	return s, err
}
