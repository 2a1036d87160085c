package scylla

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// What scylla-cdc-go asks for generations by.
const (
	vnodeTimes  = "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'"
	tabletTimes = "SELECT timestamp FROM system.cdc_timestamps WHERE keyspace_name = ? AND table_name = ?"
	// oldTimes is how it asks a cluster whose generations are still told as they
	// were before ScyllaDB 4.4.
	oldTimes = "SELECT time FROM system_distributed.cdc_streams_descriptions"
)

// generations are where the server says which streams logs have: those of a
// table on tablets are its own, all others share those of the vnodes.
type generations struct {
	backend *Backend
	tablets bool
	table   driver.TableName // only with tablets
}

// consistency is scylla-cdc-go's: the tables are copied to all nodes.
func (g generations) consistency(ctx context.Context) (gocql.Consistency, error) {
	if g.tablets { // tables of the node itself
		return gocql.One, nil
	}
	var peers int
	if err := g.backend.session.Query("SELECT COUNT(*) FROM system.peers").WithContext(ctx).Consistency(gocql.One).Scan(&peers); err != nil {
		return 0, err
	}
	if peers == 0 {
		return gocql.One, nil
	}
	return gocql.Quorum, nil
}

// begins tells when generations begin, the earliest first.
func (g generations) begins(ctx context.Context) (list []time.Time, err error) {
	level, err := g.consistency(ctx)
	if err != nil {
		return nil, err
	}
	q := g.backend.session.Query(vnodeTimes)
	if g.tablets {
		q = g.backend.session.Query(tabletTimes, g.table.Schema, g.table.Table)
	}
	iter := q.WithContext(ctx).Consistency(level).Iter()
	var at time.Time
	for iter.Scan(&at) {
		list = append(list, at)
	}
	slices.SortFunc(list, time.Time.Compare)
	return list, iter.Close()
}

// streams are those of the generation that begins at a time; none if its
// description is not there.
func (g generations) streams(ctx context.Context, at time.Time) (list [][]byte, err error) {
	level, err := g.consistency(ctx)
	if err != nil {
		return nil, err
	}
	if g.tablets {
		iter := g.backend.session.Query("SELECT stream_id FROM system.cdc_streams WHERE keyspace_name = ? AND table_name = ? AND timestamp = ? AND stream_state = ?",
			g.table.Schema, g.table.Table, at, 0).WithContext(ctx).Consistency(level).Iter()
		var id []byte
		for iter.Scan(&id) {
			list = append(list, id)
			id = nil
		}
		return list, iter.Close()
	}
	iter := g.backend.session.Query("SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ?", at).
		WithContext(ctx).Consistency(level).Iter()
	var ids [][]byte
	for iter.Scan(&ids) {
		list = append(list, ids...)
		ids = nil
	}
	return list, iter.Close()
}

// groups are the streams of a generation as they are read together.
func (g generations) groups(ctx context.Context, at time.Time) ([][]string, error) {
	list, err := g.streams(ctx, at)
	if err != nil {
		return nil, err
	}
	if g.tablets {
		return tabletGroups(list), nil
	}
	return vnodeGroups(list), nil
}

// from are those of the begins that a reader meets who begins at a time.
func from(begins []time.Time, start ticks) []time.Time {
	i, _ := slices.BinarySearchFunc(begins, start.time().Add(1), time.Time.Compare)
	return begins[max(0, i-1):]
}

// captureLayout reports whether a table's log has streams of its own tablets. It
// refuses a table of which scylla-cdc-go would not see that it has not: it takes
// every keyspace for one with tablets that has a row in scylla_keyspaces, and then
// reads nothing, and says nothing.
func (b *Backend) captureLayout(ctx context.Context, t driver.TableName) (tablets bool, err error) {
	var initial *int
	found := false
	err = b.catalog(ctx, "SELECT initial_tablets FROM system_schema.scylla_keyspaces WHERE keyspace_name = ?", []any{t.Schema}, []any{&initial}, func() error {
		found = true
		return nil
	})
	if err != nil || !found {
		return false, err
	}
	if initial != nil {
		return true, nil
	}
	begins, err := generations{b, true, t}.begins(ctx)
	if err != nil {
		return false, err
	}
	if len(begins) == 0 {
		return false, athena.Errorf(athena.CodeInvalidRequest, "the log of %s cannot be read: system_schema.scylla_keyspaces has a row for its keyspace that does not say whether it uses tablets (initial_tablets is null), and there are no streams of its tablets; the library that reads logs would read nothing and not say so; move the table into a keyspace without storage or consistency options", t).With("table", t.String())
	}
	return true, nil
}

// A gate keeps scylla-cdc-go from generations whose streams are not there to be
// read: it would divide by their number, and end the process. The streams of a
// generation are written before the generation is told of; so where ours are
// there, so are its own when it reads them afterwards.
type gate struct {
	generations
	mu     sync.Mutex
	open   map[int64][][]string // groups by begin, in Unix ms
	closed string               // what it waits for
}

func newGate(g generations) *gate { return &gate{generations: g, open: map[int64][][]string{}} }

const (
	firstWait = 100 * time.Millisecond
	mostWait  = 5 * time.Second
)

// pass waits until all generations from a time on have streams, and returns when
// they begin.
func (g *gate) pass(ctx context.Context, start ticks) (begins []time.Time, err error) {
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		begins, err = g.begins(ctx)
		var empty []string
		if err == nil {
			empty, err = g.enter(ctx, from(begins, start))
		}
		if err == nil && len(empty) == 0 {
			g.say("")
			return begins, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			g.say("the generations of streams cannot be read: " + err.Error())
		default:
			g.say("the generation of " + strings.Join(empty, ", ") + " has no streams; until it has, nothing is read of it, nor behind it")
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// enter looks at the streams of generations that were not there before.
func (g *gate) enter(ctx context.Context, begins []time.Time) (empty []string, err error) {
	for _, at := range begins {
		if _, known := g.known(at); known {
			continue
		}
		groups, err := g.groups(ctx, at)
		if err != nil {
			return nil, err
		}
		if len(groups) == 0 {
			empty = append(empty, at.UTC().Format(time.RFC3339Nano))
			continue
		}
		g.mu.Lock()
		g.open[at.UnixMilli()] = groups
		g.mu.Unlock()
	}
	return empty, nil
}

func (g *gate) known(at time.Time) ([][]string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	groups, ok := g.open[at.UnixMilli()]
	return groups, ok
}

func (g *gate) say(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = what
}

// waits says what the gate waits for; empty is nothing.
func (g *gate) waits() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// errOldGenerations: such clusters are older than any that is supported.
var errOldGenerations = errors.New("scylla: the cluster tells of its streams as ScyllaDB did before 4.4; upgrade it, or finish the upgrade")

// errOtherStreams says that scylla-cdc-go has read other streams than we have.
func errOtherStreams(t driver.TableName, stream string) error {
	return fmt.Errorf("scylla: the log of %s has a stream %s that its generation has not", t, hexText(stream))
}
