package runner_test

import (
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// A run that failed may be resumed at the moment in which a new one is started: the
// one that is not the pipeline's any more does not follow.
func TestOneRunFollowsThePipelinesSource(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, `CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2), big text)`)
	d.capture("orders")
	r := d.submit(runs.Stream, follow)
	if err := d.store.Remember(t.Context(), r.PipelineID, func(st *runs.Standing) { st.Stream = "another" }); err != nil {
		t.Fatal(err)
	}
	d.work("one")
	if r = d.state(r.ID, runs.Failed); r.Cause == nil || r.Cause.Code != athena.CodeConflict || !strings.Contains(r.Cause.Message, "another") {
		t.Errorf("the cause is %+v", r.Cause)
	}
}
