package pipelines_test

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pipelines/runs"
)

// FuzzRequests sends requests of all kinds: none of them is answered with 500, or
// with anything that the document does not have.
func FuzzRequests(f *testing.F) {
	w := start(f)
	w.put("copy", scheduled)
	w.put("changes", follower)
	w.put("of-table", template)
	r := decode[run](f, w.do("POST", "/pipelines/copy/runs", "").Want(f, 202, ""))
	if err := w.Runs.Reject(context.Background(), "p", []runs.Rejected{{Run: r.ID, Row: "1", Reason: "x"}}); err != nil {
		f.Fatal(err)
	}
	routes := []string{
		"GET /pipelines", "POST /pipelines", "POST /pipelines/plan", "POST /pipelines/simulate", "GET /pipelines/{name}", "PUT /pipelines/{name}",
		"DELETE /pipelines/{name}", "GET /pipelines/{name}/runs", "POST /pipelines/{name}/runs", "POST /pipelines/templates/{name}/runs",
		"POST /pipelines/{name}/start", "POST /pipelines/{name}/pause", "POST /pipelines/{name}/resume", "POST /pipelines/{name}/stop",
		"GET /pipelines/{name}/dead", "DELETE /pipelines/{name}/dead", "POST /pipelines/{name}/dead/redrive",
		"GET /runs/{id}", "GET /runs/{id}/events", "GET /runs/{id}/dead", "POST /runs/{id}/cancel", "POST /runs/{id}/pause", "POST /runs/{id}/resume",
	}
	for i := range routes {
		for _, seed := range []struct{ name, id, query, header, value, body string }{
			{"copy", r.ID, "", "Accept", "text/event-stream", batch},
			{"changes", "x", "limit=1&cursor=1", "Last-Event-ID", "1.1", follower},
			{"of-table", "..", "generation=1", "If-Match", `"1"`, `{"params":{"table":"a"}}`},
			{"%00", "%2F", "level=static", "If-None-Match", "*", `{"definition":` + batch + `}`},
			{"A b", "é", "upto=1&wait=1ms", "Idempotency-Key", "k", `{"name":"copy","level":"static"}`},
			{"templates", "", "state=failed", "Accept", "application/problem+json", `{"reset":true}`},
			{"plan", "0", "cursor=a.b", "Content-Type", "text/yaml", `{"source":{},"transform":{"group_by":["a"]},"sink":{"table_name":"\u0000"}}`},
		} {
			f.Add(uint8(i), seed.name, seed.id, seed.query, seed.header, seed.value, seed.body)
		}
	}
	judge := &openapitest.Relay{TB: f}
	client := openapitest.Client(judge, nil)
	f.Fuzz(func(t *testing.T, route uint8, name, id, query, header, value, body string) {
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		path = strings.NewReplacer("{id}", url.PathEscape(id), "{name}", url.PathEscape(name)).Replace(path)
		if query != "" {
			path += "?" + query
		}
		if strings.Contains(strings.ReplaceAll(query, "wait=1ms", ""), "wait") || strings.Contains(body, "wait") {
			t.Skip("it might wait long")
		}
		if strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Skip("net/http refuses it before anybody is asked")
		}
		streams := strings.Contains(path, "/events")
		ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: 50 * time.Millisecond, false: 20 * time.Second}[streams])
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, w.URL+path, strings.NewReader(body))
		if err != nil {
			t.Skip("no request")
		}
		if method == http.MethodGet || method == http.MethodDelete || body == "" {
			req.Body, req.ContentLength = http.NoBody, 0
		} else {
			req.Header.Set("Content-Type", "application/json")
		}
		req.Header.Set("Authorization", "Bearer "+w.key)
		if header != "" {
			req.Header[http.CanonicalHeaderKey(header)] = []string{value}
		}
		judge.TB = t
		resp, err := client.Do(req)
		if err != nil {
			t.Skip("not sent: " + err.Error())
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil && !streams {
			t.Errorf("%s %s: %v", method, path, err)
		}
		if resp.StatusCode == http.StatusInternalServerError {
			t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, got)
		}
	})
}
