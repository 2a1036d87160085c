package deferred_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/record"
)

func TestRowsGoToObjects(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	bucket := s3test.Bucket(t)
	lake := func(c *athena.Client) {
		c.Connection, c.Capabilities = bucket, athena.Allow(athena.ObjectRead, athena.ObjectWrite)
	}
	d.client("lake", lake)
	d.work("one", nil)
	to := func(f deferred.Format, most int64) func(*deferred.Job) {
		return func(j *deferred.Job) {
			j.To, j.Format, j.RowLimit = &deferred.Destination{Client: "lake", Prefix: "reports/"}, f, most
		}
	}
	backend, err := s3.Open(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	rows := func(st deferred.Status) (n int64) {
		t.Helper()
		if st.Result == nil || len(st.Result.Objects) == 0 || !st.Result.Complete {
			t.Fatalf("the result is %s", show(st))
		}
		for _, o := range st.Result.Objects {
			src := &source.Objects{Reader: backend, What: spec.ObjectSource{Prefix: o.Key}}
			parts, err := src.Split(t.Context(), true)
			if err != nil || len(parts) != 1 {
				t.Fatalf("object %s: %d parts, %v", o.Key, len(parts), err)
			}
			err = src.Read(t.Context(), parts[0], func(b *record.Batch) error { n += int64(b.Rows()); return nil },
				func(u stage.Unread) error { t.Errorf("%+v", u); return nil })
			if err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	const numbers = "SELECT i, i * 1.5 AS x, 'row ' || i AS t FROM generate_series(1, 5000) i"
	for _, f := range []deferred.Format{deferred.Parquet, deferred.NDJSON, deferred.CSV} {
		if st := d.ends(d.submit("shop", numbers, to(f, 0)), deferred.Succeeded); st.Result.Rows != 5000 || rows(st) != 5000 {
			t.Errorf("%s: the result is %s", f, show(st))
		}
	}
	if st := d.ends(d.submit("shop", numbers, to(deferred.Parquet, 7)), deferred.Succeeded); st.Result.Rows != 7 || !st.Result.Truncated || rows(st) != 7 {
		t.Errorf("with a limit the result is %s", show(st))
	}
	if st := d.ends(d.submit("shop", "SELECT 1/0", to(deferred.Parquet, 0)), deferred.Failed); st.Error.Code != athena.CodeQueryFailed {
		t.Errorf("a division by zero ends as %s", show(st))
	}
	if st := d.ends(d.submit("shop", "SELECT 'NaN'::numeric(5,2) AS x", to(deferred.Parquet, 0)), deferred.Failed); st.Error.Code != athena.CodeQueryFailed || !strings.Contains(st.Error.Message, "row 1") {
		t.Errorf("a value that parquet does not have ends as %s", show(st))
	}
	// A frozen client holds the job, and nothing of it appears.
	d.lifecycle("lake", athena.Frozen)
	j := d.submit("shop", numbers, to(deferred.Parquet, 0))
	time.Sleep(300 * time.Millisecond)
	if st, _ := d.status(j); st.State.Terminal() {
		t.Errorf("with a frozen destination it ended as %s", show(st))
	}
	d.lifecycle("lake", athena.Active)
	d.endsIn(j, 60*time.Second, deferred.Succeeded)
	page, err := backend.Objects(context.Background(), driver.ObjectList{Prefix: "reports/"})
	if err != nil || len(page.Objects) != 5 {
		t.Errorf("%d objects are there, %v", len(page.Objects), err)
	}
}
