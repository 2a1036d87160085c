package pipelines_test

import (
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// Rows that could not go on between two clients are not handed to who may see what
// is between two others, by a definition that changes.
func TestAPipelineThatKeepsRowsKeepsItsClients(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.Client(t, "vault", nil)
	secret := strings.ReplaceAll(batch, `"shop"`, `"vault"`)
	made := w.put("copy", secret)
	r := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, ""))
	w.do("PUT", "/pipelines/copy", batch).Want(t, 409, athena.CodeConflict) // it may still reject some
	w.to(r.ID, runs.Succeeded)
	if err := w.Runs.Reject(t.Context(), made.ID, []runs.Rejected{{Run: r.ID, Row: "0", Stage: "sink", Record: []byte(`{"pin":1234}`), At: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	w.do("PUT", "/pipelines/copy", batch).Want(t, 409, athena.CodeConflict)
	w.put("copy", strings.Replace(secret, "public.copy", "public.other", 1))
	w.do("DELETE", "/pipelines/copy/dead", "").Want(t, 200, "")
	w.put("copy", batch)
	if a := w.Do(t, w.Key(t, []string{"pipelines"}, "shop", "mart"), "GET", "/pipelines/copy/dead", "").Want(t, 200, ""); strings.Contains(string(a.Raw), "1234") {
		t.Errorf("got %s", a.Raw)
	}
}
