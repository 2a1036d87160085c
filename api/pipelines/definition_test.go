package pipelines_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
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
	w.do("PUT", "/pipelines/copy", scheduled, "If-Match: "+a.Header.Get("ETag")).Want(t, 409, athena.CodeConflict)
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
		"a template on a schedule":  {"/pipelines/a", `{"schedule":"* * * * *",` + template[1:], "schedule"},
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
	w.Client(t, "mart", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery) })
	for route, body := range map[string]string{
		"PUT /pipelines/other":                    batch,
		"POST /pipelines":                         batch,
		"POST /pipelines/copy/runs":               "",
		"POST /pipelines/changes/start":           "",
		"POST /pipelines/templates/of-table/runs": `{"params":{"table":"orders"}}`,
	} {
		method, path, _ := strings.Cut(route, " ")
		a := w.do(method, path, body).Want(t, 403, athena.CodeCapabilityDenied)
		if a.Details["field"] != "sink.client" || a.Details["stage"] != "sink" || a.Details["plan"] == nil {
			t.Errorf("%s: %s", route, a.Raw)
		}
	}
	w.do("GET", "/pipelines/other", "").Want(t, 404, athena.CodeNotFound)
	if all := w.Runs.Runs(""); len(all) != 0 {
		t.Errorf("stored were %+v", all)
	}
	// A plan that is asked for says so, and is no error.
	a := w.do("POST", "/pipelines/plan", batch).Want(t, 200, "")
	found := decode[sdk.PipelinePlan](t, a)
	if found.Verdict != sdk.PlanRefused || found.Level != sdk.PlanStatic || len(found.Stages) != 2 || found.Stages[1].Code != athena.CodeCapabilityDenied || !strings.Contains(a.Message, "pipeline_sink") {
		t.Errorf("got %s", a.Raw)
	}
	// A template may be stored whatever its runs will be, and a definition whose
	// client is frozen; but the latter is not run.
	w.Client(t, "mart", func(c *athena.Client) { c.Lifecycle = athena.Frozen })
	w.put("cold", strings.Replace(batch, "copy", "cold", 1))
	w.do("POST", "/pipelines/cold/runs", "").Want(t, 423, athena.CodeClientFrozen)
	if n := w.Opens.Load(); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

func TestPlansAreMadeOfDefinitionsAndOfWhatIsStored(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("copy", batch)
	w.put("copy", strings.Replace(batch, "public.orders", "public.items", 1))
	w.put("of-table", template)
	for body, level := range map[string]string{
		batch:                          sdk.PlanStatic,
		`{"definition":` + batch + `}`: sdk.PlanStatic,
		`{"definition":` + template + `,"params":{"table":"a"}}`: sdk.PlanStatic,
		`{"name":"copy"}`: sdk.PlanStatic,
		`{"name":"copy","generation":1,"level":"static"}`: sdk.PlanStatic,
		`{"name":"of-table","params":{"table":"orders"}}`: sdk.PlanStatic,
		// The older form.
		`{"source":{"client":"shop","table_name":"public.orders","conditions":[{"eq_column":"a","eq_value":1}]},"transform":{"group_by":["a"],"aggregation_strategy":"count"},"sink":{"client":"mart","table_name":"public.t"}}`: sdk.PlanStatic,
	} {
		if p := decode[sdk.PipelinePlan](t, w.do("POST", "/pipelines/plan", body).Want(t, 200, "")); p.Level != level || p.Verdict == sdk.PlanRefused {
			t.Errorf("%s: %+v", body, p)
		}
	}
	for body, field := range map[string]string{
		`{}`:                                                      "source",
		`{"name":"copy","x":1}`:                                   "x",
		`{"name":"nope"}`:                                         "name",
		`{"name":"copy","generation":9}`:                          "name",
		`{"name":"copy","generation":-1}`:                         "generation",
		`{"name":"copy","level":"deep"}`:                          "level",
		`{"name":"of-table"}`:                                     "params.table",
		`{"name":"copy","params":{"a":"b"}}`:                      "params.a",
		`{"name":"copy","definition":` + batch + `}`:              "name",
		`{"definition":{"source":{"client":"shop","table":"a"}}}`: "sink",
	} {
		if a := w.do("POST", "/pipelines/plan", body); a.Code != 400 && a.Code != 404 || a.Details["field"] != field {
			t.Errorf("%s: %d %s", body, a.Code, a.Raw)
		}
	}
	w.do("POST", "/pipelines/plan?level=connect", `{"name":"copy","level":"static"}`).Want(t, 400, athena.CodeInvalidRequest)
	w.do("POST", "/pipelines/plan?level=deep", batch).Want(t, 400, athena.CodeInvalidRequest)
	w.do("POST", "/pipelines/simulate?level=static", batch).Want(t, 400, athena.CodeInvalidRequest)
	if w.Opens.Load() != 0 {
		t.Error("a static plan has opened a connection")
	}
	// The engine in memory has no tables that pipelines read: beyond static, that shows.
	for path, level := range map[string]string{"/pipelines/plan?level=connect": sdk.PlanConnect, "/pipelines/simulate": sdk.PlanSample} {
		p := decode[sdk.PipelinePlan](t, w.do("POST", path, batch).Want(t, 200, ""))
		if p.Level != level || p.Verdict != sdk.PlanRefused || p.Stages[0].Code != athena.CodeCapabilityUnsupported {
			t.Errorf("%s: %+v", path, p)
		}
	}
	p := decode[sdk.PipelinePlan](t, w.do("POST", "/pipelines", `{"dry_run":true,`+batch[1:]).Want(t, 200, ""))
	if p.Level != sdk.PlanSample {
		t.Errorf("got %+v", p)
	}
	if all := w.Runs.Runs(""); len(all) != 0 {
		t.Errorf("stored were %+v", all)
	}
	// Two that write to one place are told of in time.
	merge := strings.Replace(batch, `"public.copy"`, `"public.copy","mode":"merge"`, 1)
	if a := w.do("PUT", "/pipelines/other", merge).Want(t, 409, athena.CodeConflict); !strings.Contains(a.Message, "copy") {
		t.Errorf("got %s", a.Raw)
	}
}
