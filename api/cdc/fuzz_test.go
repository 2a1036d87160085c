package cdc_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	model "github.com/athena-pipelines/athena/pkg/cdc"
)

// FuzzRoutes sends anything to every route: it is never answered with 500, and
// always within the document.
func FuzzRoutes(f *testing.F) {
	w := start(f, nil)
	s := w.stream()
	first := s.Insert("orders", 1, `{"id":1,"total":"19.90"}`)
	s.Write(3, s.Change(model.Schema, "orders", 0, ""), s.Change(model.Truncate, "orders", 0, ""), s.Change(model.Message, "note", 0, "x"))
	w.do("POST", "/cdc/shop/enable", `{"tables":["public.orders"]}`).Want(f, 202, "")
	w.do("POST", "/cdc/shop/subscriptions", `{"name":"s","from":"earliest"}`).Want(f, 201, "")

	routes := []string{
		"GET /cdc", "GET /cdc/{client}", "POST /cdc/{client}/check", "POST /cdc/{client}/enable", "POST /cdc/{client}/disable",
		"GET /cdc/{client}/snapshots", "POST /cdc/{client}/snapshots", "DELETE /cdc/{client}/snapshots/{name}",
		"GET /cdc/{client}/stream", "GET /cdc/{client}/objects/{name}",
		"GET /cdc/{client}/subscriptions", "POST /cdc/{client}/subscriptions", "GET /cdc/{client}/subscriptions/{name}",
		"GET /cdc/{client}/subscriptions/{name}/changes", "POST /cdc/{client}/subscriptions/{name}/ack", "DELETE /cdc/{client}/subscriptions/{name}",
	}
	for i := range routes {
		for _, s := range []struct{ client, name, query, header, value, body string }{
			{"shop", "s", "", "Accept", "text/event-stream", `{"tables":["public.orders"]}`},
			{"shop", "s", "from=earliest&envelope=debezium", "Last-Event-ID", string(first.Pos), fmt.Sprintf(`{"cursor":%q,"rewind":true}`, first.Pos)},
			{"shop", "..", "tables=public.*,\"a\"\"b\".c&ops=insert&where=after.id%3E0", "Accept", "application/problem+json", `{"name":"t","where":"after.total > 1","from":"now"}`},
			{"shop", "%00", "max=1&wait=1ms", "Last-Event-ID", "ZZZ", `{"purge":true,"tables":["\u0000"]}`},
			{"nobody", "x", "from=2026-01-01T00:00:00Z", "Upgrade", "websocket", `{"cursor":"0"}`},
			{"", "é", "x=%zz", "Sec-WebSocket-Protocol", "athena, ath_x", `{"tables":["a.b.c"],"pack":-1}`},
			{"shop", "s", "where=[1].all(x,x>0)&from=0", "Range", "bytes=0-", `[]`},
		} {
			f.Add(uint8(i), s.client, s.name, s.query, s.header, s.value, s.body)
		}
	}
	judge := &openapitest.Relay{TB: f}
	client := openapitest.Client(judge, nil)
	f.Fuzz(func(t *testing.T, route uint8, name, item, query, header, value, body string) {
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		path = strings.NewReplacer("{client}", url.PathEscape(name), "{name}", url.PathEscape(item)).Replace(path)
		if query != "" {
			path += "?" + query
		}
		if strings.Contains(query, "wait") && len(query) > 16 {
			t.Skip("it might wait long")
		}
		if strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Skip("net/http refuses it before anybody is asked")
		}
		streams := strings.Contains(path, "/stream")
		ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: 50 * time.Millisecond, false: 20 * time.Second}[streams])
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, w.URL+path, strings.NewReader(body))
		if err != nil {
			t.Skip("no request")
		}
		if method == http.MethodGet || method == http.MethodDelete {
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
