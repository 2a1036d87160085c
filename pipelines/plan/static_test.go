package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// furnish defines clients that lead nowhere.
func furnish(h *house) {
	for _, name := range []string{"shop", "copy"} {
		h.define(name, nowhere[athena.EnginePostgres], everything)
	}
	h.define("lake", nowhere[athena.EngineS3], everything)
	h.define("wide", nowhere[athena.EngineScylla], everything)
	h.define("narrow", nowhere[athena.EngineScylla], everything.Minus(athena.Allow(athena.PipelineSink)))
	for name, to := range map[string]athena.Lifecycle{"frozen": athena.Frozen, "gone": athena.Inactive} {
		h.define(name, nowhere[athena.EnginePostgres], everything)
		h.clients[name].Lifecycle = to
	}
}

func TestAStaticPlanRefusesWhatCannotRun(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	furnish(h)
	h.capture("shop", "orders", "items")
	h.store("name: daily\nsource: {client: shop, table: orders}\nsink: {client: copy, table: orders, mode: overwrite}")
	h.store("name: files\nsource: {client: shop, table: orders}\nsink: {client: lake, objects: {prefix: 'orders/day={{day}}/'}}")
	h.store("name: onward\nsource: {client: copy, table: public.staging}\nsink: {client: copy, table: final}")
	h.store("name: back\nsource: {client: copy, table: final}\nsink: {client: shop, table: inbox}")
	const table = "source: {client: shop, table: orders}\n"
	tests := map[string]struct {
		text   string
		stage  string // that is refused; empty is none
		code   athena.Code
		field  string
		detail string
	}{
		"a pipeline that can run":          {table + "sink: {client: copy, table: other}", "", "", "", ""},
		"a mode of no such engine":         {table + "sink: {client: wide, table: k.t, mode: merge, key: [id]}", "sink", athena.CodeCapabilityUnsupported, "sink.mode", "use append or upsert"},
		"one that lacks a grant besides":   {table + "sink: {client: narrow, table: k.t, mode: overwrite}", "sink", athena.CodeCapabilityUnsupported, "sink.mode", "engine scylla does not support it"},
		"a mode of the engine, no grant":   {table + "sink: {client: narrow, table: k.t}", "sink", athena.CodeCapabilityDenied, "sink.client", ""},
		"a time that does not come out":    {"source: {client: lake, objects: {prefix: in/, format: csv, columns: [{name: id, type: int64}]}}\nsink: {client: wide, table: k.t, write_time: at, mode: upsert, key: [id]}", "sink", athena.CodeInvalidRequest, "sink.write_time", `no column "at"`},
		"an unknown source":                {"source: {client: shopp, table: orders}\nsink: {client: copy, table: t}", "source", athena.CodeClientNotFound, "source.client", `there is no client "shopp"; did you mean "shop"?`},
		"an unknown sink":                  {table + "sink: {client: cpoy, table: t}", "sink", athena.CodeClientNotFound, "sink.client", `there is no client "cpoy"; did you mean "copy"?`},
		"a frozen client":                  {table + "sink: {client: frozen, table: t}", "sink", athena.CodeClientFrozen, "sink.client", ""},
		"a client that is not active":      {"source: {client: gone, table: t}\nsink: {client: copy, table: t2}", "source", athena.CodeClientInactive, "source.client", ""},
		"an expression that is none":       {table + "transforms: [{filter: 'row.a ='}]\nsink: {client: copy, table: t}", "transforms[0]", athena.CodeInvalidRequest, "transforms[0].filter", "line 1, column 7 of the expression is not understood"},
		"a function that there is not":     {table + "transforms: [{drop: [a]}, {set: {b: 'lower(row.c)'}}]\nsink: {client: copy, table: t}", "transforms[1]", athena.CodeInvalidRequest, "transforms[1].set.b", "lower"},
		"changes that are not captured":    {"source: {client: copy, cdc: {tables: [t]}}\nsink: {client: shop, table: t}", "source", athena.CodeConflict, "source.cdc", "athena cdc enable --client copy --tables t"},
		"a table that is not captured":     {"source: {client: shop, cdc: {tables: [orders, users]}}\ntransforms: [{route: meta.table}]\nsink: {client: copy, table: t}", "source", athena.CodeConflict, "source.cdc.tables[1]", "athena cdc add --client shop --tables public.users"},
		"an odd table not captured":        {"source: {client: copy, cdc: {tables: ['public.\"O''d\"']}}\nsink: {client: shop, table: t}", "source", athena.CodeConflict, "source.cdc", `--tables 'public."O'\''d"'`},
		"a where that is none":             {"source: {client: shop, cdc: {tables: [orders], where: 'after.x +'}}\nsink: {client: copy, table: t}", "source", athena.CodeInvalidRequest, "source.cdc.where", ""},
		"changes that are captured":        {"source: {client: shop, cdc: {tables: [orders]}}\nsink: {client: copy, table: t}", "", "", "", ""},
		"a pipeline that feeds itself":     {table + "sink: {client: shop, table: public.orders}", "sink", athena.CodeConflict, "sink", "this pipeline → this pipeline"},
		"one that follows what it writes":  {"name: loop\nsource: {client: shop, cdc: {tables: [orders]}}\nsink: {client: shop, table: orders}", "sink", athena.CodeConflict, "sink", "loop → loop"},
		"objects that feed themselves":     {"source: {client: lake, objects: {prefix: a/}}\nsink: {client: lake, objects: {prefix: 'a/b={{x}}/'}}", "sink", athena.CodeConflict, "sink", `prefix "a/b=" of client lake`},
		"objects that stand apart":         {"source: {client: lake, objects: {prefix: a}}\nsink: {client: lake, objects: {prefix: ab/}}", "", "", "", ""},
		"one that feeds itself by others":  {"name: begin\nsource: {client: shop, table: inbox}\nsink: {client: copy, table: staging}", "sink", athena.CodeConflict, "sink", "begin → onward → back → begin"},
		"a table that another overwrites":  {table + "sink: {client: copy, table: orders}", "sink", athena.CodeConflict, "sink.table", "daily writes to table public.orders of client copy already, and overwrite leaves no rows but its own"},
		"a table that another writes too":  {table + "sink: {client: copy, table: final}", "", "", "", ""},
		"one that overwrites another's":    {table + "sink: {client: copy, table: final, mode: merge}", "sink", athena.CodeConflict, "sink.table", "onward writes to"},
		"the new version of itself":        {"name: daily\n" + table + "sink: {client: copy, table: orders, mode: overwrite}", "", "", "", ""},
		"a prefix that another writes":     {table + "sink: {client: lake, objects: {prefix: orders/}}", "sink", athena.CodeConflict, "sink.objects.prefix", "files writes below"},
		"a prefix beside another":          {table + "sink: {client: lake, objects: {prefix: 'orders/region={{r}}/'}}", "", "", "", ""},
		"columns that are declared":        {"source: {client: lake, objects: {prefix: in/, format: csv, columns: [{name: id, type: int64}]}}\ntransforms: [{filter: 'row.idd > 1'}]\nsink: {client: copy, table: t}", "transforms[0]", athena.CodeInvalidRequest, "transforms[0].filter", `did you mean "id"?`},
		"a key that does not come out":     {"source: {client: lake, objects: {prefix: in/, format: csv, columns: [{name: id, type: int64}]}}\nsink: {client: copy, table: t, mode: upsert, key: [idd]}", "sink", athena.CodeInvalidRequest, "sink.key[0]", `did you mean "id"?`},
		"a column of a prefix that is not": {"source: {client: lake, objects: {prefix: in/, format: csv, columns: [{name: id, type: int64}]}}\nsink: {client: lake, objects: {prefix: 'out/{{day}}/'}}", "sink", athena.CodeInvalidRequest, "sink.objects.prefix", `no column "day"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := h.plan(plan.Static, tt.text)
			s := first(got)
			if s.Stage != tt.stage || s.Code != tt.code || s.Field != tt.field || !strings.Contains(s.Detail, tt.detail) || s.Field != "" && strings.Contains(s.Detail, s.Field) {
				t.Errorf("%s", describe(got))
			}
		})
	}
}

// Every stage is judged, also behind one that is refused.
func TestAllStagesAreJudged(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	furnish(h)
	got := h.plan(plan.Static, "source: {client: nobody, table: t}\ntransforms: [{filter: '1'}, {drop: [a]}]\nsink: {client: frozen, table: t}")
	if got.Stages[0].Verdict != plan.Refused || got.Stages[1].Verdict != plan.Refused || got.Stages[2].Verdict != plan.Unknown || got.Stages[3].Verdict != plan.Refused {
		t.Errorf("%s", describe(got))
	}
	if s := got.Stages[3]; len(s.Required) != 2 || len(s.Granted) != 2 || len(s.Supported) != 2 || s.Engine != athena.EnginePostgres {
		t.Errorf("%+v", s)
	}
}

// The key is held against each client, and tells nothing of those that it is not
// bound to.
func TestTheKeyIsHeldAgainstEveryClient(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	furnish(h)
	h.store("name: secret-name\nsource: {client: copy, table: a}\nsink: {client: lake, objects: {prefix: x/}}")
	const text = "source: {client: shop, table: t}\nsink: {client: lake, objects: {prefix: x/y/}}"
	got := h.planAs(as(t.Context(), "shop"), plan.Static, text)
	if s := first(got); s.Stage != "sink" || s.Code != athena.CodeForbidden || s.Engine != "" || s.Granted != nil || s.Supported != nil {
		t.Errorf("%+v", s)
	}
	// A client that is gone since the key was bound to it, and others that are near.
	got = h.planAs(as(t.Context(), "shopp", "lake"), plan.Static, "source: {client: shopp, table: t}\nsink: {client: lake, objects: {prefix: x/}}")
	if s := first(got); s.Detail != `there is no client "shopp"` {
		t.Errorf("%+v", s)
	}
	for _, sink := range []string{"lake", "nobody"} { // whether it exists is not told
		got := h.planAs(as(t.Context(), "shop"), plan.Static, "source: {client: shop, table: t}\nsink: {client: "+sink+", objects: {prefix: x/}}")
		if s := named(got, "sink"); s.Code != athena.CodeForbidden {
			t.Errorf("%+v", s)
		}
	}
	got = h.planAs(as(t.Context(), "shop", "lake"), plan.Static, text)
	if s := first(got); s.Code != athena.CodeConflict || strings.Contains(s.Detail, "secret-name") || !strings.Contains(s.Detail, "another pipeline") {
		t.Errorf("%+v", s)
	}
	ctx := auth.NewContext(t.Context(), &auth.Principal{Key: "key", Grants: []auth.Grant{{Right: auth.Query}}})
	if s := first(h.planAs(ctx, plan.Static, text)); s.Stage != "source" || s.Code != athena.CodeForbidden {
		t.Errorf("%+v", s)
	}
	if s := first(h.planAs(t.Context(), plan.Connect, text)); s.Code != athena.CodeUnauthenticated {
		t.Errorf("%+v", s)
	}
	if h.opens.Load() != 0 {
		t.Error("somebody was dialled")
	}
}

func TestACaptureThatHasFailedStandsInTheWay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	furnish(h)
	c := h.capture("shop", "orders")
	text := "source: {client: shop, cdc: {tables: [orders]}}\nsink: {client: copy, table: t, mode: append}"
	if got := h.plan(plan.Static, strings.Replace(text, "client: copy, table: ", "client: wide, table: k.", 1)); got.Delivery.Class != plan.EffectivelyOnce || !strings.Contains(got.Checkpoint, "acknowledged") {
		t.Errorf("%+v, %s", got.Delivery, got.Checkpoint)
	}
	if got := h.plan(plan.Static, text); got.Delivery.Class != plan.ExactlyOnce {
		t.Errorf("%+v", got.Delivery)
	}
	c.OnLoss = changefeed.Resnapshot
	if _, err := h.changes.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := h.plan(plan.Static, text); got.Delivery.Class != plan.AtLeastOnce {
		t.Errorf("%+v", got.Delivery)
	}
	if err := h.changes.PutStatus(t.Context(), changefeed.Status{Capture: c.ID, Client: "shop", State: changefeed.Failed, Cause: &changefeed.Cause{Code: "slot_lost", Message: "the slot is lost"}}); err != nil {
		t.Fatal(err)
	}
	if s := first(h.plan(plan.Static, text)); s.Code != athena.CodeConflict || !strings.Contains(s.Detail, "the slot is lost") {
		t.Errorf("%+v", s)
	}
}

func TestWhatIsNoPlanIsAnError(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	furnish(h)
	p := read(t, "source: {client: shop, table: t}\nsink: {client: copy, table: t}")
	if got, err := h.planner.Plan(as(t.Context()), p, "deep"); got != nil || athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("%v, %v", got, err)
	}
	template := read(t, "source: {client: shop, table: '${t}'}\nparams: {t: {}}\nsink: {client: copy, table: t}")
	if got, err := h.planner.Plan(as(t.Context()), template, plan.Static); got != nil || athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("%v, %v", got, err)
	}
	p.Sink.Mode = "sideways"
	if got, err := h.planner.Plan(as(t.Context()), p, plan.Static); got != nil || athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("%v, %v", got, err)
	}
}

// BenchmarkStatic plans a hundred stages beside a hundred stored pipelines.
func BenchmarkStatic(b *testing.B) {
	h := newHouse(b)
	furnish(h)
	for i := range 100 {
		h.store(fmt.Sprintf("name: p%d\nsource: {client: shop, table: t%d}\nsink: {client: copy, table: t%d}", i, i, i))
	}
	var text strings.Builder
	text.WriteString("source: {client: shop, table: orders}\nsink: {client: copy, table: orders}\ntransforms:\n")
	for i := range 98 {
		if i%2 == 0 {
			fmt.Fprintf(&text, "- filter: 'row.status == \"paid\" && row.n%d > %d'\n", i, i)
		} else {
			fmt.Fprintf(&text, "- set: {c%d: 'int(double(row.total) * 100.0)'}\n", i)
		}
	}
	p := read(b, text.String())
	ctx := as(b.Context())
	for b.Loop() {
		if _, err := h.planner.Plan(ctx, p, plan.Static); err != nil {
			b.Fatal(err)
		}
	}
}
