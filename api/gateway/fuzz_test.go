package gateway_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/deferred"
)

// FuzzRoutes sends anything to every route: it is never answered with 500, and
// always within the document.
func FuzzRoutes(f *testing.F) {
	w := start(f, nil)
	large := w.submit("shop", stmt{"query": "select generate(200, 100)"})
	w.finish(large, deferred.ResultSizes{Inline: 10, Segment: 4 << 10})
	waiting := w.submit("shop", stmt{"query": "select 1"})

	routes := []string{
		"POST /gateway/query", "POST /gateway/sql", "POST /query/sql", "POST /query/count",
		"GET /gateway/deferred", "GET /gateway/deferred/{id}", "GET /gateway/deferred/{id}/result", "GET /gateway/deferred/{id}/result/{n}",
		"GET /gateway/deferred/{id}/events", "POST /gateway/deferred/{id}/cancel", "POST /gateway/deferred/{id}/requeue", "DELETE /gateway/deferred/{id}",
	}
	for i := range routes {
		for _, s := range []struct{ id, n, query, name, value, body string }{
			{large, "0", "", "Accept", "text/csv", `{"query":"select 1"}`},
			{waiting, "1", "dry_run=true", "Prefer", "respond-async, wait=0", `{"query":"select 1","params":[1,null,{}],"deferred":true,"not_before":"2026-01-01T00:00:00Z","labels":{"a":"b"}}`},
			{"x/..", "-1", "wait=1ms&limit=1&label=a=b", "If-None-Match", `W/"1-queued", *`, `{"table":"items"}`},
			{"%00", "9e9", "state=held&cursor=AAAAAAAAAAA&client=shop", "Last-Event-ID", "7", `{"query":"select fail('internal')","row_limit":9223372036854775807,"timeout":"1ms"}`},
			{large, "1", "manifest=false", "Range", "bytes=1-2,4-", `[]`},
			{large, "1", "manifest=true", "Idempotency-Key", "k", `{"query":"select 1","deferred":true,"deadline":"9999-12-31T23:59:59Z","result":{"ttl":"1h","format":"csv"}}`},
			{large, "1", "x=%zz", "Accept", "application/x-ndjson;q=0.1, application/problem+json", `{"query":"x"`},
		} {
			f.Add(uint8(i), s.id, s.n, s.query, s.name, s.value, s.body)
		}
	}
	judge := &openapitest.Relay{TB: f}
	client := openapitest.Client(judge, nil)
	f.Fuzz(func(t *testing.T, route uint8, id, n, query, name, value, body string) {
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		path = strings.NewReplacer("{id}", url.PathEscape(id), "{n}", url.PathEscape(n)).Replace(path)
		if query != "" {
			path += "?" + query
		}
		if strings.Contains(query, "wait") && len(query) > 8 || strings.Contains(value, "wait") && len(value) > 22 {
			t.Skip("it might wait long")
		}
		if strings.HasSuffix(path, "/events") && id == waiting {
			t.Skip("it does not end")
		}
		if strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Skip("net/http refuses it before anybody is asked")
		}
		req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
		if err != nil {
			t.Skip("no request")
		}
		req.Header.Set("Authorization", "Bearer full")
		req.Header.Set("X-Athena-Client", "shop")
		if method == http.MethodPost && strings.Contains(path, "quer") || strings.Contains(path, "sql") {
			req.Header.Set("Content-Type", "application/json")
		}
		if name != "" {
			req.Header[http.CanonicalHeaderKey(name)] = []string{value}
		}
		judge.TB = t
		resp, err := client.Do(req)
		if err != nil {
			t.Skip("not sent: " + err.Error())
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
		if resp.StatusCode == http.StatusInternalServerError && !strings.Contains(body, "internal") {
			t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, got)
		}
	})
}
