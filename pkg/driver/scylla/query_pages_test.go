package scylla

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
	"github.com/athena-pipelines/athena/pkg/record"
)

func TestPagesOfAnySizeHaveTheSameRowsOnCassandra(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	keyspace := server.Keyspace(t)
	pagesOfAnySize(t, server.Conn(keyspace), keyspace)
}

func TestPagesOfAnySizeHaveTheSameRowsOnDouble(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 2, 3, 5000} { // of every page, whatever is asked for
		double := scyllatest.Start(t, scyllatest.ShortPages(most))
		double.MustExec(t, "CREATE KEYSPACE pages WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}")
		pagesOfAnySize(t, athena.ScyllaConn{Hosts: double.Hosts(), Keyspace: "pages"}, "pages")
	}
}

// pagesOfAnySize reads rows whose first page has any size; those behind it are as
// large as the rows let them be.
func pagesOfAnySize(t *testing.T, conn athena.ScyllaConn, keyspace string) {
	b, err := Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	if err := b.session.Query("CREATE TABLE " + keyspace + ".t (p int, c int, s text static, v text, PRIMARY KEY (p, c))").Exec(); err != nil {
		t.Fatal(err)
	}
	const partitions, each = 7, 60
	var want []string
	for p := range partitions {
		batch := b.session.Batch(gocql.UnloggedBatch)
		for c := range each {
			batch.Query("INSERT INTO "+keyspace+".t (p, c, s, v) VALUES (?, ?, ?, ?)", p, c, "of "+strconv.Itoa(p), fmt.Sprintf("%0*d", c, c))
			want = append(want, fmt.Sprintf(`{"p":%d,"c":%d,"s":"of %d","v":"%0*d"}`, p, c, p, c, c))
		}
		if err := b.session.ExecuteBatch(batch); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{1, 2, 3, 5000} {
		analysis := analyze("SELECT p, c, s, v FROM " + keyspace + ".t")
		r := &rows{caller: t.Context(), analysis: analysis, size: size}
		r.ctx, r.cancel = context.WithCancel(t.Context())
		if err := b.begin(r, time.Now(), nil); err != nil {
			t.Fatal(err)
		}
		var got []string
		last := map[byte]int{}
		for r.Next() {
			row := string(r.AppendJSON(nil))
			got = append(got, row)
			n := slices.Index(want, row)
			if p := row[len(`{"p":`)]; n < last[p] {
				t.Errorf("pages of %d: %s is out of its order", size, row)
			} else {
				last[p] = n
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		sameRows(t, fmt.Sprintf("a statement, a first page of %d", size), got, want)

		got = nil
		err := b.ReadTable(t.Context(), driver.TableRead{Table: driver.TableName{Schema: keyspace, Table: "t"}, Columns: []string{"p", "c", "s", "v"}},
			driver.TablePart{}, driver.BatchSize{Rows: size}, func(batch *record.Batch) error {
				if batch.Rows() > size {
					t.Errorf("a batch has %d rows, and at most %d were asked for", batch.Rows(), size)
				}
				for i := range batch.Rows() {
					got = append(got, string(batch.AppendJSON(nil, i)))
				}
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		sameRows(t, fmt.Sprintf("a table, batches of %d", size), got, want)
	}
}

func sameRows(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: %d rows, want %d", what, len(got), len(want))
	}
}
