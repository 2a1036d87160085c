package capture_test

import (
	"testing"

	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// A table that leaves the publication behind the capture's back is told; the
// others are captured on, and mending the publication mends the capture.
func TestTableThatIsNoLongerPublished(t *testing.T) {
	t.Parallel()
	d := deploy(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)`)
	d.enable(nil, "t", "u")
	d.work()
	d.awaitState(changefeed.Streaming)
	d.exec("BEGIN; ALTER TABLE u RENAME TO u_old; CREATE TABLE u (id int PRIMARY KEY, v text); COMMIT")
	st := d.awaitState(changefeed.Degraded)
	if st.Cause == nil || st.Cause.Code != "table_unpublished" || st.Cause.Runbook == "" {
		t.Errorf("the cause is %+v", st.Cause)
	}
	d.exec("INSERT INTO t VALUES (1, 'captured on')")
	d.equal("t")
	var name string
	if err := d.db.QueryRow(t.Context(), "SELECT pubname FROM pg_publication WHERE pubname NOT LIKE '%inserts'").Scan(&name); err != nil {
		t.Fatal(err)
	}
	d.exec("ALTER PUBLICATION " + name + " ADD TABLE u")
	d.awaitState(changefeed.Streaming)
	d.exec("INSERT INTO u VALUES (1, 'again')")
	d.equal("u")
}
