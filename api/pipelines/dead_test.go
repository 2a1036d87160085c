package pipelines_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestDeadRowsAreListedRedrivenAndDeleted(t *testing.T) {
	t.Parallel()
	w := start(t)
	made := w.put("copy", batch)
	first := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, ""))
	var rows []runs.Rejected
	for n := range 5 {
		run := first.ID
		if n == 4 {
			run = "another"
		}
		rows = append(rows, runs.Rejected{Run: run, Row: fmt.Sprint(n), Stage: "transforms[0]", Column: "id", Reason: "it is null", Record: []byte(fmt.Sprintf(`{"id":%d}`, n)), At: time.Now().UTC()})
	}
	if err := w.Runs.Reject(t.Context(), made.ID, rows); err != nil {
		t.Fatal(err)
	}
	if list := decode[[]pipeline](t, w.do("GET", "/pipelines", "").Want(t, 200, "")); *list[0].Dead != 5 {
		t.Errorf("%d rows are kept", *list[0].Dead)
	}
	var got []runs.Rejected
	query := "?limit=2"
	for range 4 {
		a := w.do("GET", "/pipelines/copy/dead"+query, "").Want(t, 200, "")
		got = append(got, decode[[]runs.Rejected](t, a)...)
		if query = "?limit=2&cursor=" + a.Meta.NextCursor; a.Meta.NextCursor == "" {
			break
		}
	}
	if len(got) != 5 || got[0].Row != "0" || got[4].Row != "4" || got[0].Reason != "it is null" || got[0].Seq == 0 || string(got[3].Record) != `{"id":3}` {
		t.Fatalf("got %+v", got)
	}
	if list := decode[[]runs.Rejected](t, w.do("GET", "/runs/"+first.ID+"/dead", "").Want(t, 200, "")); len(list) != 4 {
		t.Errorf("of the run there are %d", len(list))
	}
	for _, query := range []string{"cursor=x", "limit=0", "x=1"} {
		w.do("GET", "/pipelines/copy/dead?"+query, "").Want(t, 400, athena.CodeInvalidRequest)
	}
	// Of a run that has not succeeded nothing stands to which rows could be added.
	w.do("POST", "/pipelines/copy/dead/redrive", "").Want(t, 409, athena.CodeConflict)
	w.to(first.ID, runs.Failed)
	w.do("POST", "/pipelines/copy/dead/redrive", "").Want(t, 409, athena.CodeConflict)
	w.to(first.ID, runs.Succeeded)
	// The bound is the last row that there was.
	r := decode[run](t, w.do("POST", "/pipelines/copy/dead/redrive", "", "Idempotency-Key: k").Want(t, 202, ""))
	stored, _ := w.Runs.Load(r.ID)
	if stored.Kind != runs.Redrive || stored.Upto != got[4].Seq || stored.PipelineID != made.ID || stored.Generation != 1 || !slices.Equal(stored.Redrives, []string{first.ID}) {
		t.Errorf("got %+v", stored)
	}
	if a := w.do("POST", "/pipelines/copy/dead/redrive", "", "Idempotency-Key: k").Want(t, 202, ""); decode[run](t, a).ID != r.ID {
		t.Errorf("got %s", a.Raw)
	}
	if a := w.do("POST", "/pipelines/copy/dead/redrive", "").Want(t, 409, athena.CodeConflict); !strings.Contains(a.Message, r.ID) {
		t.Errorf("got %s", a.Raw)
	}
	w.to(r.ID, runs.Succeeded)

	type gone struct{ Deleted, Left int64 }
	if g := decode[gone](t, w.do("DELETE", fmt.Sprintf("/pipelines/copy/dead?upto=%d", got[1].Seq), "").Want(t, 200, "")); g != (gone{2, 3}) {
		t.Errorf("got %+v", g)
	}
	for _, query := range []string{"upto=0", "upto=x", "x=1"} {
		w.do("DELETE", "/pipelines/copy/dead?"+query, "").Want(t, 400, athena.CodeInvalidRequest)
	}
	if g := decode[gone](t, w.do("DELETE", "/pipelines/copy/dead", "").Want(t, 200, "")); g != (gone{3, 0}) {
		t.Errorf("got %+v", g)
	}
	w.do("POST", "/pipelines/copy/dead/redrive", "").Want(t, 409, athena.CodeConflict)
	if list := decode[[]runs.Rejected](t, w.do("GET", "/pipelines/copy/dead", "").Want(t, 200, "")); len(list) != 0 {
		t.Errorf("got %+v", list)
	}
}

func TestRowsOfAKeyedStreamAreNotRedriven(t *testing.T) {
	t.Parallel()
	w := start(t)
	made := w.put("changes", follower)
	if err := w.Runs.Reject(t.Context(), made.ID, []runs.Rejected{{Run: "r", Row: "0", Stage: "sink", Reason: "it is null", Record: []byte(`{"id":1}`), Pos: "1", At: time.Now().UTC()}}); err != nil {
		t.Fatal(err)
	}
	if a := w.do("POST", "/pipelines/changes/dead/redrive", "").Want(t, 409, athena.CodeConflict); !strings.Contains(a.Message, "athena cdc snapshot start --client shop --tables public.orders") {
		t.Errorf("got %s", a.Raw)
	}
}
