package admin_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/api/admin"
	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
)

const definition = `{"engine":"postgres","lifecycle":"active","capabilities":{"gateway_query":true},"connection":{"dsn":"postgres://u:` + apitest.Password + `@h/d"}}`

func TestClientsAreChangedByCompareAndSet(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	key := w.Key(t, []string{"manage"})

	made := w.Do(t, key, "PUT", "/admin/clients/shop", definition, "If-None-Match: *").Want(t, http.StatusCreated, "")
	first := made.Header.Get("ETag")
	if made.Header.Get("Location") != "/admin/clients/shop" || first == "" {
		t.Errorf("headers are %v", made.Header)
	}
	if !strings.Contains(string(made.Data), `"dsn":"***"`) || strings.Contains(string(made.Raw), apitest.Password) {
		t.Errorf("the secret is not redacted: %s", made.Raw)
	}
	w.Do(t, key, "PUT", "/admin/clients/shop", definition, "If-None-Match: *").Want(t, http.StatusConflict, athena.CodeConflict)
	w.Do(t, key, "GET", "/admin/clients/shop", "", "If-None-Match: "+first).Want(t, http.StatusNotModified, "")

	// What was read can be sent back, secret and revision included.
	read := w.Do(t, key, "GET", "/admin/clients/shop", "").Want(t, http.StatusOK, "")
	changed := w.Do(t, key, "PUT", "/admin/clients/shop", string(read.Data), "If-Match: "+first).Want(t, http.StatusOK, "")
	def, err := w.Catalog.Client(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if kind, _ := def.Connection.(athena.PostgresConn).DSN.Reference(); kind != athena.SecretSealed {
		t.Errorf("the kept secret is of kind %q, want sealed", kind)
	}
	second := changed.Header.Get("ETag")
	frozen := w.Do(t, key, "PUT", "/admin/clients/shop/lifecycle", `{"lifecycle":"frozen"}`, "If-Match: "+second).Want(t, http.StatusOK, "")
	if !strings.Contains(string(frozen.Data), `"lifecycle":"frozen"`) {
		t.Errorf("got %s", frozen.Data)
	}
	w.Do(t, key, "PUT", "/admin/clients/shop", definition, "If-Match: "+second).Want(t, http.StatusConflict, athena.CodeConflict)
	w.Do(t, key, "PUT", "/admin/clients/shop", definition, "If-Match: *").Want(t, http.StatusOK, "")
	w.Do(t, key, "DELETE", "/admin/clients/shop", "", "If-Match: "+second).Want(t, http.StatusConflict, athena.CodeConflict)
	w.Do(t, key, "DELETE", "/admin/clients/shop", "").Want(t, http.StatusOK, "")
	w.Do(t, key, "GET", "/admin/clients/shop", "").Want(t, http.StatusNotFound, athena.CodeClientNotFound)
	w.Do(t, key, "DELETE", "/admin/clients/shop", "").Want(t, http.StatusNotFound, athena.CodeClientNotFound)
	w.Do(t, key, "PUT", "/admin/clients/shop", definition, "If-Match: *").Want(t, http.StatusNotFound, athena.CodeClientNotFound)

	audit := w.Do(t, w.Admin, "GET", "/admin/audit?client=shop", "").Want(t, http.StatusOK, "")
	var changes []struct {
		Action  string
		Actor   string
		Details struct{ Failed, Before, After string }
	}
	audit.Decode(t, &changes)
	var actions []string
	for _, c := range changes {
		if c.Details.Failed == "" {
			actions = append(actions, c.Action)
		}
		if c.Actor == "" {
			t.Errorf("a change has no actor: %s", audit.Raw)
		}
	}
	if got := strings.Join(actions, " "); !strings.HasPrefix(got, "client.delete client.delete client.put client.put client.lifecycle") {
		t.Errorf("the audit says %s", got)
	}
	if strings.Contains(string(audit.Raw)+w.Log.String(), apitest.Password) {
		t.Error("the password is in the audit or the log")
	}
}

func TestDefinitionsThatDoNotFitAreRefusedWithTheirField(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	for name, test := range map[string]struct {
		path, body, header string
		status             int
		code               athena.Code
		field              string
	}{
		"another name":          {"/admin/clients/shop", strings.Replace(definition, "{", `{"client_name":"lake",`, 1), "", 400, athena.CodeInvalidRequest, "client_name"},
		"an unknown field":      {"/admin/clients/shop", strings.Replace(definition, "{", `{"colour":"red",`, 1), "", 400, athena.CodeInvalidRequest, "colour"},
		"an unknown capability": {"/admin/clients/shop", strings.Replace(definition, "gateway_query", "teleport", 1), "", 400, athena.CodeInvalidRequest, "capabilities.teleport"},
		"too much granted":      {"/admin/clients/shop", strings.Replace(definition, "gateway_query", "object_read", 1), "", 422, athena.CodeCapabilityUnsupported, "capabilities.object_read"},
		"a name that is none":   {"/admin/clients/Shop!", definition, "", 400, athena.CodeInvalidRequest, "client_name"},
		"null":                  {"/admin/clients/shop", "null", "", 400, athena.CodeInvalidRequest, ""},
		"a list":                {"/admin/clients/shop", "[]", "", 400, athena.CodeInvalidRequest, ""},
		"half of it":            {"/admin/clients/shop", definition[:40], "", 400, athena.CodeInvalidRequest, ""},
		"nothing":               {"/admin/clients/shop", "", "", 400, athena.CodeInvalidRequest, ""},
		"an ETag that is none":  {"/admin/clients/shop", definition, "If-Match: 12", 400, athena.CodeInvalidRequest, "If-Match"},
		"a weak ETag":           {"/admin/clients/shop", definition, `If-Match: W/"12"`, 400, athena.CodeInvalidRequest, "If-Match"},
		"a revision to come":    {"/admin/clients/shop", definition, `If-Match: "999"`, 409, athena.CodeConflict, ""},
		"If-None-Match, not *":  {"/admin/clients/shop", definition, `If-None-Match: "1"`, 400, athena.CodeInvalidRequest, "If-None-Match"},
		"no lifecycle":          {"/admin/clients/shop/lifecycle", "{}", "", 400, athena.CodeInvalidRequest, "lifecycle"},
		"a strange lifecycle":   {"/admin/clients/shop/lifecycle", `{"lifecycle":"dead"}`, "", 400, athena.CodeInvalidRequest, "lifecycle"},
		"another content type":  {"/admin/clients/shop", definition, "Content-Type: text/plain", 400, athena.CodeInvalidRequest, "Content-Type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var headers []string
			if test.header != "" {
				headers = append(headers, test.header)
			}
			a := w.Do(t, w.Admin, "PUT", test.path, test.body, headers...).Want(t, test.status, test.code)
			if field, _ := a.Details["field"].(string); field != test.field {
				t.Errorf("the field is %q, want %q: %s", field, test.field, a.Raw)
			}
		})
	}
}

func TestABoundKeySeesAndChangesOnlyItsClients(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Client(t, "shop", nil)
	w.Client(t, "lake", nil)
	key := w.Key(t, []string{"admin"}, "shop")

	var list []struct {
		Name string `json:"client_name"`
	}
	w.Do(t, key, "GET", "/admin/clients", "").Want(t, http.StatusOK, "").Decode(t, &list)
	if len(list) != 1 || list[0].Name != "shop" {
		t.Errorf("sees %+v", list)
	}
	for _, r := range []struct{ method, path, body string }{
		{"GET", "/admin/clients/lake", ""},
		{"GET", "/admin/clients/no-such-client", ""}, // no way to tell which exist
		{"PUT", "/admin/clients/lake", definition},
		{"DELETE", "/admin/clients/lake", ""},
		{"PUT", "/admin/clients/lake/lifecycle", `{"lifecycle":"frozen"}`},
		{"POST", "/admin/clients/lake/check", ""},
		{"GET", "/admin/audit?client=lake", ""},
		{"GET", "/admin/dead", ""},
		{"POST", "/admin/keys", `{"name":"x","rights":["query"]}`},
		{"POST", "/admin/keys", `{"name":"x","rights":["query"],"clients":["shop","lake"]}`},
	} {
		w.Do(t, key, r.method, r.path, r.body).Want(t, http.StatusForbidden, athena.CodeForbidden)
	}

	// It knows the keys of its clients, and can revoke those alone.
	w.Key(t, []string{"query"}, "lake")
	var made struct {
		ID            string `json:"id"`
		Key           string `json:"key"`
		WebhookSecret string `json:"webhook_secret"`
	}
	w.Do(t, key, "POST", "/admin/keys", `{"name":"mine","rights":["query"],"clients":["shop"]}`).Want(t, http.StatusCreated, "").Decode(t, &made)
	var keys []struct{ ID, Name string }
	all := w.Do(t, key, "GET", "/admin/keys", "").Want(t, http.StatusOK, "")
	all.Decode(t, &keys)
	if len(keys) != 2 || strings.Contains(string(all.Raw), made.Key) {
		t.Errorf("sees the keys %s", all.Raw)
	}
	var everyone []struct{ ID string }
	w.Do(t, w.Admin, "GET", "/admin/keys", "").Want(t, http.StatusOK, "").Decode(t, &everyone)
	for _, k := range everyone {
		if k.ID != keys[0].ID && k.ID != keys[1].ID {
			w.Do(t, key, "DELETE", "/admin/keys/"+k.ID, "").Want(t, http.StatusNotFound, athena.CodeNotFound)
		}
	}
	w.Do(t, key, "DELETE", "/admin/keys/"+made.ID, "").Want(t, http.StatusOK, "")
	w.Do(t, made.Key, "GET", "/schema", "", "X-Athena-Client: shop").Want(t, http.StatusUnauthorized, athena.CodeUnauthenticated)
}

func TestAKeyGivesNoMoreThanItHas(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	read := w.Key(t, []string{"admin:read"})
	w.Do(t, read, "POST", "/admin/keys", `{"name":"x","rights":["query:read"]}`).Want(t, http.StatusForbidden, athena.CodeForbidden)
	w.Do(t, w.Key(t, []string{"manage"}), "GET", "/admin/keys", "").Want(t, http.StatusForbidden, athena.CodeForbidden)

	for name, test := range map[string]struct{ body, field string }{
		"no rights":          {`{"name":"x","rights":[]}`, "rights"},
		"an unknown right":   {`{"name":"x","rights":["fly"]}`, "rights"},
		"no name":            {`{"rights":["query"]}`, "name"},
		"an unknown field":   {`{"name":"x","rights":["query"],"grants":["admin"]}`, "grants"},
		"a name with bells":  {`{"name":"\u0007","rights":["query"]}`, "name"},
		"a time that passed": {`{"name":"x","rights":["query"],"expires_at":"2020-01-01T00:00:00Z"}`, "expires_at"},
		"a client's no-name": {`{"name":"x","rights":["query"],"clients":["A B"]}`, "clients[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := w.Do(t, w.Admin, "POST", "/admin/keys", test.body).Want(t, http.StatusBadRequest, athena.CodeInvalidRequest)
			if a.Details["field"] != test.field {
				t.Errorf("got %s", a.Raw)
			}
		})
	}
}

func TestCheckSaysWhatStandsAtTheOtherEnd(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Client(t, "shop", nil)
	w.Client(t, "cold", func(c *athena.Client) { c.Lifecycle = athena.Frozen })
	w.Client(t, "bare", func(c *athena.Client) { c.Capabilities = 0 })
	check := func(name string) (f admin.Findings) {
		w.Do(t, w.Admin, "POST", "/admin/clients/"+name+"/check", "").Want(t, http.StatusOK, "").Decode(t, &f)
		return f
	}
	if f := check("shop"); !f.Reachable || f.Identity == nil || f.Identity.Product != "memory" || len(f.Problems) != 0 || len(f.Supported) == 0 {
		t.Errorf("shop: %+v", f)
	}
	if f := check("bare"); !f.Reachable || len(f.Problems) != 1 {
		t.Errorf("bare: %+v", f)
	}
	before := w.Opens.Load()
	if f := check("cold"); f.Reachable || len(f.Problems) != 1 || w.Opens.Load() != before {
		t.Errorf("cold: %+v, after %d openings", f, w.Opens.Load()-before)
	}
	w.Client(t, "gone", nil)
	w.DB.Inject(func(f *memory.Faults) { f.Unreachable = true })
	if f := check("gone"); f.Reachable || len(f.Problems) != 1 || strings.Contains(fmt.Sprint(f), apitest.Password) {
		t.Errorf("gone: %+v", f)
	}
	w.Do(t, w.Admin, "POST", "/admin/clients/nobody/check", "").Want(t, http.StatusNotFound, athena.CodeClientNotFound)
}

func TestProvisioningMakesWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Client(t, "shop", nil)
	const shop = "X-Athena-Client: shop"
	body := `{"kind":"schema","name":"tenant_42"}`
	for i, want := range []string{"true", "false"} {
		if a := w.Do(t, w.Admin, "POST", "/management/provision", body, shop).Want(t, http.StatusOK, ""); string(a.Data) != `{"created":`+want+`}` {
			t.Errorf("round %d: %s", i, a.Data)
		}
	}
	w.Do(t, w.Admin, "POST", "/management/provision", body).Want(t, http.StatusBadRequest, athena.CodeMissingClientHeader)
	w.Do(t, w.Admin, "POST", "/management/provision", `{"kind":"schema"}`, shop).Want(t, http.StatusBadRequest, athena.CodeInvalidRequest)
	w.Do(t, w.Key(t, []string{"query"}), "POST", "/management/provision", body, shop).Want(t, http.StatusForbidden, athena.CodeForbidden)
	w.Client(t, "poor", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.GatewayQuery) })
	w.Do(t, w.Admin, "POST", "/management/provision", body, "X-Athena-Client: poor").Want(t, http.StatusForbidden, athena.CodeCapabilityDenied)
}

func TestTheAuditIsPagedByCursorsThatCannotBeMadeUp(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	for i := range 5 {
		w.Do(t, w.Admin, "PUT", fmt.Sprintf("/admin/clients/c%d", i), definition).Want(t, http.StatusCreated, "")
	}
	var seen []string
	cursor, pages := "", 0
	for {
		a := w.Do(t, w.Admin, "GET", "/admin/audit?limit=2"+cursor, "").Want(t, http.StatusOK, "")
		var page []struct{ Client string }
		a.Decode(t, &page)
		for _, c := range page {
			seen = append(seen, c.Client)
		}
		if pages++; a.Meta.NextCursor == "" || pages > 10 {
			break
		}
		cursor = "&cursor=" + a.Meta.NextCursor
	}
	if got := strings.Join(seen, " "); got != "c4 c3 c2 c1 c0" {
		t.Errorf("saw %s in %d pages", got, pages)
	}
	for name, query := range map[string]string{
		"made up":        "cursor=MTI",
		"not base64":     "cursor=***",
		"plain":          "cursor=3",
		"of others":      cursor[1:] + "&actor=x",
		"changed":        cursor[1:len(cursor)-1] + "A",
		"no such limit":  "limit=0",
		"too much":       "limit=1001",
		"no such time":   "since=yesterday",
		"no such client": "client=A%20B",
		"unknown":        "before=3",
	} {
		if name == "changed" && strings.HasSuffix(cursor, "A") {
			continue
		}
		if a := w.Do(t, w.Admin, "GET", "/admin/audit?"+query, ""); a.Kind != athena.CodeInvalidRequest {
			t.Errorf("%s: got %d %s", name, a.Code, a.Raw)
		}
	}
}

func TestDeadLettersAreBrowsedAndDeleted(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	for i, subject := range []string{bus.Dead("job", "shop"), bus.Dead("hook", "shop"), bus.Dead("job", "lake")} {
		if _, err := w.Bus.JetStream().Publish(t.Context(), subject, fmt.Appendf(nil, `{"n":%d}`, i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Bus.JetStream().Publish(t.Context(), bus.Dead("hook", "x"), []byte("\xff no JSON")); err != nil {
		t.Fatal(err)
	}
	list := func(query string) (letters []admin.DeadLetter, next string) {
		a := w.Do(t, w.Admin, "GET", "/admin/dead"+query, "").Want(t, http.StatusOK, "")
		a.Decode(t, &letters)
		return letters, a.Meta.NextCursor
	}
	all, _ := list("")
	if len(all) != 4 || all[0].Data != "� no JSON" || all[3].Kind != "job" || all[3].Owner != "shop" {
		t.Errorf("got %+v", all)
	}
	first, next := list("?kind=job&limit=1")
	rest, end := list("?kind=job&limit=1&cursor=" + next)
	if len(first) != 1 || len(rest) != 1 || first[0].Owner != "lake" || rest[0].Owner != "shop" || end != "" {
		t.Errorf("got %+v then %+v, %q", first, rest, end)
	}
	path := fmt.Sprintf("/admin/dead/%d", first[0].Seq)
	w.Do(t, w.Admin, "DELETE", path, "").Want(t, http.StatusOK, "")
	w.Do(t, w.Admin, "DELETE", path, "").Want(t, http.StatusNotFound, athena.CodeNotFound)
	w.Do(t, w.Admin, "DELETE", "/admin/dead/zero", "").Want(t, http.StatusBadRequest, athena.CodeInvalidRequest)
	if got, _ := list("?kind=job"); len(got) != 1 {
		t.Errorf("after the deletion there are %+v", got)
	}
	var raw json.RawMessage
	w.Do(t, w.Admin, "GET", "/admin/dead?kind=no.such", "").Want(t, http.StatusOK, "").Decode(t, &raw)
	if string(raw) != "[]" {
		t.Errorf("got %s", raw)
	}
}
