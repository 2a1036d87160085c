package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// A cqlServer is what stands at the other end: a real Cassandra where
// ATHENA_TEST_CASSANDRA=1, else the double of a ScyllaDB. Neither is a ScyllaDB, and
// the figures name which it was.
type cqlServer struct {
	name    string
	session *gocql.Session
	stop    func()
}

const wideKeyspace = "bench"

// pipedWide is the table piped as CQL has it.
const pipedWide = `CREATE TABLE bench.%s (id bigint PRIMARY KEY, customer bigint, status text, total decimal, placed_at timestamp, day date, paid boolean, reference uuid, note text, payload text)`

// wide starts a server, and defines it as the client wide.
func (p *plant) wide(ctx context.Context) (*cqlServer, error) {
	s := &cqlServer{name: "the double"}
	var conn athena.ScyllaConn
	replication := `{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}`
	if os.Getenv(cassandratest.Switch) == "1" {
		server, stop, err := cassandratest.StartAlone(ctx)
		if err != nil {
			return nil, err
		}
		s.name, s.stop = "Apache Cassandra "+cassandratest.Version, stop
		conn = server.Conn(wideKeyspace)
	} else {
		double, err := scyllatest.New()
		if err != nil {
			return nil, err
		}
		s.stop = double.Close
		conn = athena.ScyllaConn{Hosts: double.Hosts(), Keyspace: wideKeyspace}
	}
	cfg := gocql.NewCluster(conn.Hosts...)
	cfg.Timeout = time.Minute
	if conn.Username != "" {
		cfg.Authenticator = gocql.PasswordAuthenticator{Username: conn.Username, Password: conn.Password.Reveal()}
	}
	var err error
	if s.session, err = cfg.CreateSession(); err != nil {
		s.stop()
		return nil, err
	}
	stop := s.stop
	s.stop = func() { s.session.Close(); stop() }
	password := filepath.Join(p.dir, "wide.password")
	connection := map[string]any{"hosts": conn.Hosts, "keyspace": conn.Keyspace}
	if conn.Username != "" {
		connection["username"], connection["password"] = conn.Username, "file:"+password
		err = os.WriteFile(password, []byte(conn.Password.Reveal()), 0o600)
	}
	if err == nil {
		err = s.session.Query("CREATE KEYSPACE IF NOT EXISTS bench WITH replication = " + replication).Exec()
	}
	if err == nil {
		err = p.put("wide", map[string]any{
			"client_name": "wide", "engine": "scylla", "lifecycle": "active", "connection": connection,
			"capabilities": map[string]bool{"gateway_query": true, "pipeline_source": true, "pipeline_sink": true},
		})
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// fill writes the rows of piped with gocql alone, as many at once as the sink does.
func (s *cqlServer) fill(ctx context.Context, table string, n int) (time.Duration, error) {
	if err := s.session.Query(fmt.Sprintf(pipedWide, table)).Exec(); err != nil {
		return 0, err
	}
	if err := s.session.AwaitSchemaAgreement(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	const writers = 64
	for w := range writers {
		g.Go(func() error {
			var reference gocql.UUID
			for id := w + 1; id <= n; id += writers {
				reference[0], reference[1], reference[6], reference[8] = byte(id), byte(id>>8), 0x40, 0x80
				at := time.Unix(1767225600+int64(id), 0)
				err := s.session.Query("INSERT INTO bench."+table+" (id, customer, status, total, placed_at, day, paid, reference, note, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
					int64(id), int64(id%100000), fmt.Sprintf("status %d", id%7), cents(id%1000000), at, at, id%3 == 0, reference,
					fmt.Sprintf("%032x %032x", id, id+1), fmt.Sprintf(`{"n": %d, "tag": "%032x"}`, id, id*7)).WithContext(ctx).Exec()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(begin), err
}

// cents are a decimal with two digits behind the point.
type cents int64

// MarshalCQL writes the scale and the number.
func (c cents) MarshalCQL(gocql.TypeInfo) ([]byte, error) {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, 2), uint64(c)), nil
}

// toCQL measures a table going to a table of CQL, beside gocql writing equal rows.
func toCQL(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 200_000
	if quick {
		n = 50_000
	}
	p, err := planted(ctx, r, n)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	s, err := p.wide(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if _, err := s.fill(ctx, "warm", n/10); err != nil {
		return nil, err
	}
	before, err := s.fill(ctx, "first", n)
	if err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, took, err := p.run(ctx, map[string]any{
		"source": map[string]any{"client": "shop", "table": "public.piped"},
		"sink":   map[string]any{"client": "wide", "table": "bench.piped", "mode": "upsert", "key": []string{"id"}, "create": true},
	})
	rss := stop()
	if err != nil {
		return nil, err
	}
	if info.Counts.Written != int64(n) {
		return nil, fmt.Errorf("%d rows were written of %d", info.Counts.Written, n)
	}
	after, err := s.fill(ctx, "last", n)
	if err != nil {
		return nil, err
	}
	limit := min(before, after)
	return []figure{
		{"PostgreSQL to CQL (" + s.name + "), of gocql writing equal rows", perSecond(n, took) / perSecond(n, limit), "", 0.7, false,
			note("%.0f rows/s of %.0f; upsert, each row at a time of its own", perSecond(n, took), perSecond(n, limit))},
		{"worker RSS, to CQL", mib(rss), "MiB", 256, true, "peak"},
	}, nil
}

// fromCQL measures a table of CQL going to parquet, beside gocql reading it to nowhere.
func fromCQL(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 400_000
	if quick {
		n = 50_000
	}
	p, err := planted(ctx, r, 0)
	defer p.close(ctx)
	if err != nil {
		return nil, err
	}
	s, err := p.wide(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if _, err := s.fill(ctx, "piped", n); err != nil {
		return nil, err
	}
	raw := func() (time.Duration, error) {
		begin := time.Now()
		iter := s.session.Query("SELECT * FROM bench.piped").WithContext(ctx).PageSize(5000).Iter()
		dest := make([]any, len(iter.Columns()))
		for i := range dest {
			dest[i] = nowhere{}
		}
		rows := 0
		for iter.Scan(dest...) {
			rows++
		}
		if err := iter.Close(); err != nil || rows != n {
			return 0, errors.Join(err, fmt.Errorf("%d rows were read of %d", rows, n))
		}
		return time.Since(begin), nil
	}
	before, err := raw()
	if err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	info, took, err := p.run(ctx, map[string]any{
		"source": map[string]any{"client": "wide", "table": "bench.piped"},
		"sink":   map[string]any{"client": "lake", "objects": map[string]any{"prefix": "wide/"}},
	})
	rss := stop()
	if err != nil {
		return nil, err
	}
	if info.Counts.Written != int64(n) {
		return nil, fmt.Errorf("%d rows were written of %d", info.Counts.Written, n)
	}
	after, err := raw()
	if err != nil {
		return nil, err
	}
	limit := min(before, after)
	return []figure{
		{"CQL (" + s.name + ") to parquet, of gocql reading to nowhere", perSecond(n, took) / perSecond(n, limit), "", 0.5, false,
			note("%.0f rows/s of %.0f; %d objects, zstd", perSecond(n, took), perSecond(n, limit), info.Counts.Objects)},
		{"worker RSS, from CQL", mib(rss), "MiB", 256, true, "peak"},
	}, nil
}
