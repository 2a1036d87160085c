package scyllatest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

// A collector keeps what scylla-cdc-go reads, and ends the reading when it has so
// many changes.
type collector struct {
	mu   sync.Mutex
	got  []string
	want int
	done chan struct{}
}

func (c *collector) CreateChangeConsumer(context.Context, scyllacdc.CreateChangeConsumerInput) (scyllacdc.ChangeConsumer, error) {
	return c, nil
}

func (c *collector) End() error { return nil }

func (c *collector) Consume(_ context.Context, ch scyllacdc.Change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rows []string
	for _, r := range slices.Concat(ch.PreImage, ch.Delta, ch.PostImage) {
		pk, _ := r.GetValue("pk")
		v, _ := r.GetValue("v")
		rows = append(rows, fmt.Sprintf("%s pk=%s v=%s", r.GetOperation(), pointed(pk), pointed(v)))
	}
	c.got = append(c.got, strings.Join(rows, ", "))
	if len(c.got) == c.want {
		close(c.done)
	}
	return nil
}

func pointed(v any) string {
	if p, ok := v.(*int); ok && p != nil {
		return fmt.Sprint(*p)
	}
	return "null"
}

// readLog reads changes of ks.t with scylla-cdc-go, as it is, until there are so many.
func readLog(t *testing.T, s *gocql.Session, want int, during func()) []string {
	t.Helper()
	c := &collector{want: want, done: make(chan struct{})}
	r, err := scyllacdc.NewReader(t.Context(), &scyllacdc.ReaderConfig{
		Session: s, TableNames: []string{"ks.t"}, ChangeConsumerFactory: c, Consistency: gocql.Quorum,
		Advanced: scyllacdc.AdvancedReaderConfig{ConfidenceWindowSize: time.Millisecond, ChangeAgeLimit: time.Minute, QueryTimeWindowSize: time.Minute,
			PostNonEmptyQueryDelay: time.Millisecond, PostEmptyQueryDelay: 10 * time.Millisecond, PostFailedQueryDelay: 10 * time.Millisecond, PostGenerationFetchDelay: 10 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	during()
	select {
	case <-c.done:
	case err := <-ended:
		t.Fatalf("the reader ended: %v", err)
	}
	cancel()
	<-ended
	slices.Sort(c.got)
	return c.got
}

func TestDoubleIsReadByScyllaCDCGo(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		keyspace string
		next     func(*scyllatest.Cluster)
	}{
		"two generations of vnodes": {newKeyspace, func(c *scyllatest.Cluster) { c.NewGeneration(c.Now().Add(100*time.Millisecond), 3, 4) }},
		"tablets that are split":    {newKeyspace + ` AND tablets = {'enabled': true}`, func(c *scyllatest.Cluster) { c.SplitTablets("ks", "t", 4) }},
		"tablets split by CQL": {newKeyspace + ` AND tablets = {'enabled': true}`, func(c *scyllatest.Cluster) {
			if err := c.Exec(`ALTER TABLE ks.t WITH tablets = {'min_tablet_count': 8}`); err != nil {
				panic(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := scyllatest.Start(t)
			c.MustExec(t, tt.keyspace, `CREATE TABLE ks.t (pk int, ck int, v int, tags set<text>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true, 'preimage': true}`)
			s := connect(t, c, func(cl *gocql.ClusterConfig) { cl.PageSize = 1 })
			hits := c.Fail(func(r scyllatest.Request) bool {
				return r.Op == "EXECUTE" && strings.Contains(r.CQL, "_cdc_log") && r.Page == 1
			}, scyllatest.ReadTimeout(), 2)
			for i := range 5 {
				must(t, s, `INSERT INTO ks.t (pk, ck, v) VALUES (?, 1, 1)`, i)
			}
			got := readLog(t, s, 11, func() {
				must(t, s, `BEGIN BATCH UPDATE ks.t SET v = 2 WHERE pk = 0 AND ck = 1; INSERT INTO ks.t (pk, ck, v) VALUES (0, 2, 3); APPLY BATCH`)
				tt.next(c)
				// A moment of the clock lies in the new generation once it has begun.
				for begin := c.Now().Add(150 * time.Millisecond); c.Now().Before(begin); time.Sleep(time.Millisecond) {
				}
				for i := range 5 {
					must(t, s, `UPDATE ks.t SET v = 9 WHERE pk = ? AND ck = 5`, 10+i)
				}
			})
			var want []string
			for i := range 5 {
				want = append(want, fmt.Sprintf("INSERT pk=%d v=1", i), fmt.Sprintf("UPDATE pk=%d v=9", 10+i))
			}
			want = append(want, "PREIMAGE pk=0 v=1, UPDATE pk=0 v=2, INSERT pk=0 v=3")
			slices.Sort(want)
			same(t, "changes", got, want)
			if hits() != 2 {
				t.Errorf("%d pages failed", hits())
			}
		})
	}
}

func TestDoubleAddsLateRowsToItsLog(t *testing.T) {
	t.Parallel()
	c := scyllatest.Start(t)
	s := connect(t, c)
	c.MustExec(t, newKeyspace, `CREATE TABLE ks.t (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}`)
	count := func(want int) {
		t.Helper()
		same(t, "base rows", len(texts(t, s, `SELECT pk FROM ks.t`)), 3)
		same(t, "log rows", len(texts(t, s, `SELECT pk FROM ks.t_scylla_cdc_log`)), want)
	}
	release := c.HoldLog("ks.t")
	for i := range 3 {
		must(t, s, `INSERT INTO ks.t (pk, v) VALUES (?, 1)`, i)
	}
	count(0)
	release()
	count(3)
	end := c.DelayLog("ks.t", time.Hour)
	must(t, s, `INSERT INTO ks.t (pk, v) VALUES (0, 2)`)
	end()
	must(t, s, `INSERT INTO ks.t (pk, v) VALUES (0, 3)`)
	count(4)
	c.Advance(2 * time.Hour)
	count(5)
	if err := c.ExecAt(c.Now().Add(-time.Minute), `INSERT INTO ks.t (pk, v) VALUES (1, 7)`); err != nil {
		t.Fatal(err)
	}
	count(6)
	if err := c.ExecAt(c.Now().Add(-5*time.Hour), `INSERT INTO ks.t (pk, v) VALUES (1, 7)`); err == nil || !strings.Contains(err.Error(), "from the past") {
		t.Error(err)
	}
	if err := c.ExecAt(c.Now().Add(time.Minute), `INSERT INTO ks.t (pk, v) VALUES (1, 7)`); err == nil || !strings.Contains(err.Error(), "from the future") {
		t.Error(err)
	}
}
