package pipelines_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestADefinitionIsMadeChangedReadAndDeleted(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.do("GET", "/pipelines/copy", "").Want(t, 404, athena.CodeNotFound)

	a := w.do("PUT", "/pipelines/copy", batch, "If-None-Match: *").Want(t, 201, "")
	made := decode[pipeline](t, a)
	if made.Name != "copy" || made.ID == "" || made.Generation != 1 || made.Kind != "batch" || made.Revision == 0 || a.Header.Get("Location") != "/pipelines/copy" || a.Header.Get("ETag") == "" {
		t.Errorf("got %s", a.Raw)
	}
	w.do("PUT", "/pipelines/copy", batch, "If-None-Match: *").Want(t, 409, athena.CodeConflict)

	// The same again changes nothing; by another key it is that key's.
	if same := decode[pipeline](t, w.do("PUT", "/pipelines/copy", batch).Want(t, 200, "")); same.Revision != made.Revision {
		t.Errorf("it went from %d to %d", made.Revision, same.Revision)
	}
	if other := decode[pipeline](t, w.Do(t, w.Admin, "PUT", "/pipelines/copy", batch).Want(t, 200, "")); other.Generation != 2 || other.Key == made.Key {
		t.Errorf("got %+v", other)
	}
	a = w.do("PUT", "/pipelines/copy", scheduled, "If-Match: "+a.Header.Get("ETag")).Want(t, 409, athena.CodeConflict)
	a = w.do("GET", "/pipelines/copy", "").Want(t, 200, "")
	a = w.do("PUT", "/pipelines/copy", scheduled, "If-Match: "+a.Header.Get("ETag")).Want(t, 200, "")
	third := decode[pipeline](t, a)
	if third.Generation != 3 || third.ID != made.ID || third.NextAt.IsZero() || !strings.Contains(string(third.Spec), "*/15") {
		t.Errorf("got %s", a.Raw)
	}
	w.do("GET", "/pipelines/copy", "", "If-None-Match: "+a.Header.Get("ETag")).Want(t, http.StatusNotModified, "")

	old := decode[pipeline](t, w.do("GET", "/pipelines/copy?generation=1", "").Want(t, 200, ""))
	if old.Generation != 1 || old.Revision != 0 || strings.Contains(string(old.Spec), "schedule") {
		t.Errorf("got %+v", old)
	}
	w.do("GET", "/pipelines/copy?generation=4", "").Want(t, 404, athena.CodeNotFound)

	// A live run keeps it.
	r := decode[run](t, w.do("POST", "/pipelines/copy/runs", "").Want(t, 202, ""))
	if a := w.do("DELETE", "/pipelines/copy", "").Want(t, 409, athena.CodeConflict); !strings.Contains(a.Message, "/runs/"+r.ID+"/cancel") {
		t.Errorf("got %s", a.Raw)
	}
	w.to(r.ID, runs.Succeeded)
	if list := decode[[]pipeline](t, w.do("GET", "/pipelines", "").Want(t, 200, "")); len(list) != 1 || list[0].LastRun == nil || list[0].LastRun.State != runs.Succeeded || list[0].Spec != nil {
		t.Errorf("got %+v", list)
	}
	w.do("DELETE", "/pipelines/copy", "", `If-Match: "1"`).Want(t, 409, athena.CodeConflict)
	w.do("DELETE", "/pipelines/copy", "").Want(t, 200, "")
	w.do("GET", "/pipelines/copy", "").Want(t, 404, athena.CodeNotFound)
	w.do("GET", "/runs/"+r.ID, "").Want(t, 200, "") // it is kept
	if anew := w.put("copy", batch); anew.Generation != 1 || anew.ID == made.ID {
		t.Errorf("got %+v", anew)
	}

	audit := decode[[]struct{ Action, Target, Client string }](t, w.Do(t, w.Admin, "GET", "/admin/audit", "").Want(t, 200, ""))
	var actions []string
	for _, e := range audit {
		actions = append(actions, e.Action)
	}
	if got := strings.Join(actions, " "); got != "pipeline.put pipeline.delete pipeline.run pipeline.put pipeline.put pipeline.put" {
		t.Errorf("the audit has %s", got)
	}
}

func TestWhatIsWrongWithADefinitionIsNamed(t *testing.T) {
	t.Parallel()
	w := start(t)
	for name, tt := range map[string]struct{ path, body, field string }{
		"an unknown field":          {"/pipelines/a", `{"source":{"client":"shop","tabel":"t"},"sink":{"client":"mart","table":"t"}}`, "source.tabel"},
		"no sink":                   {"/pipelines/a", `{"source":{"client":"shop","table":"t"}}`, "sink"},
		"another name":              {"/pipelines/a", `{"name":"b",` + batch[1:], "name"},
		"a name that is none":       {"/pipelines/A%20b", batch, "name"},
		"a dry run":                 {"/pipelines/a", `{"dry_run":true,` + batch[1:], "dry_run"},
		"a mode that is none":       {"/pipelines/a", strings.Replace(batch, `"public.copy"`, `"public.copy","mode":"replace"`, 1), "sink.mode"},
		"a schedule that is none":   {"/pipelines/a", strings.Replace(scheduled, "*/15", "61", 1), "schedule"},
		"a stream on a schedule":    {"/pipelines/a", `{"schedule":"* * * * *",` + follower[1:], "schedule"},
		"a value where no param is": {"/pipelines/a", strings.Replace(template, `"params":{"table":{}}`, `"params":{"x":{}}`, 1), "source.table"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := w.do("PUT", tt.path, tt.body); a.Code != 400 || a.Kind != athena.CodeInvalidRequest || a.Details["field"] != tt.field {
				t.Errorf("got %d %s", a.Code, a.Raw)
			}
		})
	}
	for _, body := range []string{"", "null", "[]", "{", "1", `{"source":{}}x`} {
		w.do("PUT", "/pipelines/a", body).Want(t, 400, athena.CodeInvalidRequest)
	}
	for _, header := range []string{"If-Match: 12", `If-Match: "x"`, `If-None-Match: "12"`} {
		w.do("PUT", "/pipelines/a", batch, header).Want(t, 400, athena.CodeInvalidRequest)
	}
	w.do("PUT", "/pipelines/a", batch, `If-Match: "1"`, "If-None-Match: *").Want(t, 400, athena.CodeInvalidRequest)
	w.do("PUT", "/pipelines/a", batch, "If-Match: *").Want(t, 404, athena.CodeNotFound)
	w.do("PUT", "/pipelines/a", batch, `If-Match: "7"`).Want(t, 409, athena.CodeConflict)
	w.do("GET", "/pipelines?x=1", "").Want(t, 400, athena.CodeInvalidRequest)
	w.do("GET", "/pipelines/a?generation=0", "").Want(t, 400, athena.CodeInvalidRequest)
	if n := len(decode[[]pipeline](t, w.do("GET", "/pipelines", "").Want(t, 200, ""))); n != 0 {
		t.Errorf("%d were stored", n)
	}
}

// TestWhatThePlanRefusesIsNotStored: the code is the stage's, and the plan is in
// the details.
func TestWhatThePlanRefusesIsNotStored(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	w.put("changes", follower)
	w.put("of-table", template)
	w.Plans.Answer(map[string]any{"stages": []string{"sink"}}, athena.Errorf(athena.CodeCapabilityUnsupported, "the sink cannot do this").At("sink"))
	for path, body := range map[string]string{
		"PUT /pipelines/other":                    batch,
		"POST /pipelines":                         batch,
		"POST /pipelines/copy/runs":               "",
		"POST /pipelines/changes/start":           "",
		"POST /pipelines/templates/of-table/runs": `{"params":{"table":"orders"}}`,
	} {
		method, path, _ := strings.Cut(path, " ")
		a := w.do(method, path, body).Want(t, 422, athena.CodeCapabilityUnsupported)
		if a.Details["field"] != "sink" || a.Details["plan"] == nil {
			t.Errorf("%s: %s", path, a.Raw)
		}
	}
	w.do("GET", "/pipelines/other", "").Want(t, 404, athena.CodeNotFound)
	if all := w.Runs.Runs(""); len(all) != 0 {
		t.Errorf("stored were %+v", all)
	}
	// A plan that is asked for says so, and is no error.
	a := w.do("POST", "/pipelines/plan", batch).Want(t, 200, "")
	if !strings.Contains(a.Message, "the sink cannot do this") || !strings.Contains(string(a.Data), "stages") {
		t.Errorf("got %s", a.Raw)
	}
	w.Plans.Answer(nil, athena.Errorf(athena.CodeBusUnavailable, "not now"))
	w.do("POST", "/pipelines/plan", batch).Want(t, 503, athena.CodeBusUnavailable)
	w.do("POST", "/pipelines/copy/runs", "").Want(t, 503, athena.CodeBusUnavailable)
}
