package scylla

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// captures are the open streams of a backend. Methods are safe for concurrent use.
type captures struct {
	mu   sync.Mutex
	open map[string]*changeStream // by client
}

func (c *captures) add(s *changeStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[string]*changeStream{}
	}
	c.open[s.cfg.Client] = s
}

func (c *captures) remove(s *changeStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[s.cfg.Client] == s {
		delete(c.open, s.cfg.Client)
	}
}

func (c *captures) of(client string) *changeStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[client]
}

// A source is what a capture reads: which cluster, and which tables and logs. One
// that was made anew has another id.
type source struct {
	Cluster string                 `json:"cluster"`
	Tables  map[string]sourceTable `json:"tables"`
}

type sourceTable struct {
	Table gocql.UUID `json:"table"`
	Log   gocql.UUID `json:"log"`
	// Since is where the log is read from.
	Since ticks `json:"since"`
	// Off says that the option cdc was seen to be off. A log that is kept meanwhile
	// does not tell it, and lacks what was written.
	Off bool `json:"off,omitempty"`
}

func (s source) String() string {
	text, _ := json.Marshal(s) // it holds nothing that cannot be written
	return string(text)
}

// askSource asks what the tables are now. Those without a log are left out.
func (b *Backend) askSource(ctx context.Context, tables []driver.TableName) (s source, err error) {
	s.Tables = map[string]sourceTable{}
	if err := b.catalog(ctx, "SELECT cluster_name FROM system.local WHERE key = 'local'", nil, []any{&s.Cluster}, func() error { return nil }); err != nil {
		return s, err
	}
	for _, name := range tables {
		ids := map[string]gocql.UUID{}
		for _, table := range []string{name.Table, name.Table + logSuffix} {
			var id gocql.UUID
			err := b.catalog(ctx, "SELECT id FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?", []any{name.Schema, table}, []any{&id}, func() error {
				ids[table] = id
				return nil
			})
			if err != nil {
				return s, err
			}
		}
		if len(ids) == 2 {
			s.Tables[name.String()] = sourceTable{Table: ids[name.Table], Log: ids[name.Table+logSuffix]}
		}
	}
	return s, nil
}

// verifySource refuses another cluster than the capture began with, and tables
// that are no longer what they were. Tables that came to the capture are read from
// floor on.
func (b *Backend) verifySource(ctx context.Context, cfg driver.ChangeConfig, floor ticks) (source, error) {
	var was source
	if err := json.Unmarshal([]byte(cfg.Source), &was); err != nil {
		return was, fmt.Errorf("scylla: the source %q is none of ours: %w", cfg.Source, err)
	}
	now, err := b.askSource(ctx, cfg.Tables)
	if err != nil {
		return now, err
	}
	if now.Cluster != was.Cluster {
		return now, &driver.SourceLost{Code: "other_source", Message: fmt.Sprintf(
			"the client's cluster is %q, and the capture began with %q; point the client at that, or disable the capture and enable it with purge", now.Cluster, was.Cluster)}
	}
	for _, name := range cfg.Tables {
		then, captured := was.Tables[name.String()]
		t, there := now.Tables[name.String()]
		if !captured {
			then = sourceTable{Table: t.Table, Log: t.Log, Since: floor}
		}
		if err := sameLog(name, then, t, there); err != nil {
			return now, err
		}
		now.Tables[name.String()] = then
	}
	return now, nil
}

func sameLog(name driver.TableName, then, now sourceTable, there bool) error {
	switch {
	case !there:
		return logMissing(name, "the table or its log is gone")
	case then.Table != now.Table:
		return logMissing(name, "the table was dropped and made anew")
	case then.Log != now.Log:
		return logMissing(name, "its log was dropped and made anew")
	case then.Off:
		return logMissing(name, "cdc was switched off")
	}
	return nil
}

func logMissing(name driver.TableName, what string) error {
	return &driver.SourceLost{Code: "log_missing", Message: fmt.Sprintf(
		"the log of %s does not go on: %s, so that changes may be missing; see that the table has cdc = {'enabled': true}, then disable the capture and enable it again, take the table out of it, or set on_loss to resnapshot", name, what)}
}

// inTime fails once rows of the log may have been let go of that were not read.
// The library would begin behind them, and not say so.
func (r *logReader) inTime(now time.Time) error {
	ttl := time.Duration(r.ttl.Load())
	if ttl == 0 {
		return nil
	}
	read := r.floor.at().time()
	if margin := min(5*time.Minute, ttl/20); now.Sub(read) < ttl-margin {
		return nil
	}
	return &driver.SourceLost{Code: "log_expired", Message: fmt.Sprintf(
		"the log of %s keeps changes for %s (ttl), and is read up to %s, %s ago, so that changes may be missing; disable the capture and enable it again, or set on_loss to resnapshot", r.name, ttl, read.UTC().Format(time.RFC3339), now.Sub(read).Round(time.Second))}
}

// guardEvery is how often the tables are looked at while their logs are read. It is
// less than changes wait until they are read: so a column that the library must not
// read is seen before its first value.
const guardEvery = 3 * time.Second

// guard fails once a table is no longer what it was.
func (s *changeStream) guard(ctx context.Context, src source) error {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for _, r := range s.main {
		if src.Tables[r.name.String()].Off { // as the stream was opened
			return logMissing(r.name, "cdc is switched off")
		}
	}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := s.backend.askSource(ctx, s.cfg.Tables)
		if err != nil {
			continue // the readers tell if the cluster is gone
		}
		for _, r := range s.main {
			key := r.name.String()
			t, there := now.Tables[key]
			if err := sameLog(r.name, src.Tables[key], t, there); err != nil {
				return err
			}
			d, err := s.describe(ctx, r.name)
			switch {
			case d != nil && err != nil:
				return err
			case err != nil:
				continue
			}
			if !d.options.enabled {
				s.noteOff(r.name)
				return logMissing(r.name, "cdc is switched off")
			}
			r.ttl.Store(int64(d.ttl()))
		}
	}
}

// noteOff has the source say that a table's option was seen to be off.
func (s *changeStream) noteOff(name driver.TableName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.source.Tables[name.String()]
	t.Off = true
	s.source.Tables = maps.Clone(s.source.Tables) // others hold it
	s.source.Tables[name.String()] = t
}

// openWatched opens a session whose questions are seen. It asks for a page when the
// one before is used up: so no question is under way when another one is made of
// the same values.
func (b *Backend) openWatched(ctx context.Context, w *watch) (*gocql.Session, error) {
	cfg, err := clusterConfig(b.conn)
	if err != nil {
		return nil, err
	}
	cfg.QueryObserver = w
	session, err := openSession(ctx, cfg)
	if err != nil {
		return nil, err
	}
	session.SetPrefetch(0)
	return session, nil
}
