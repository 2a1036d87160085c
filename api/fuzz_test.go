package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/apitest"
)

// FuzzRouter sends anything to the assembled router, past the checks that
// net/http makes of real connections, with a key that may do everything. It must
// not panic, nor answer 500, nor let the password out.
func FuzzRouter(f *testing.F) {
	for _, seed := range []struct{ method, target, header, value, body string }{
		{"POST", "/gateway/query", "Prefer", "respond-async", `{"query":"select 1"}`},
		{"POST", "/gateway/query?dry_run=true", "Idempotency-Key", "a", `{"query":"select * from t","params":[1]}`},
		{"POST", "/query/sql", "Accept", "text/csv", `{"query":"select generate(3)"}`},
		{"POST", "/query/count", "Accept", "application/problem+json", `{"table":"t"}`},
		{"GET", "/schema/columns?table=t&schema=main", "X-Request-Id", "\x00", ""},
		{"GET", "/gateway/deferred?label=a=b&cursor=x", "Traceparent", "00-", ""},
		{"GET", "/gateway/deferred/0199b3b0-5cf4-7d6b-9d2e-0a4b6c8d0e1f/result/0", "Range", "bytes=0-", ""},
		{"GET", "/gateway/deferred/0199b3b0-5cf4-7d6b-9d2e-0a4b6c8d0e1f/events", "Last-Event-ID", "-1", ""},
		{"PUT", "/admin/clients/shop", "If-Match", `"1"`, `{"engine":"postgres","lifecycle":"active","connection":{"dsn":"***"}}`},
		{"PUT", "/admin/clients/%2e%2e", "If-None-Match", "*", `{"engine":"s3","lifecycle":"active","connection":{"bucket":"b"}}`},
		{"PUT", "/admin/clients/shop/lifecycle", "Content-Type", "application/json; charset=latin1", `{"lifecycle":"active"}`},
		{"POST", "/admin/keys", "X-Athena-Client", "shop", `{"name":"n","rights":["query:read"],"clients":["shop"]}`},
		{"DELETE", "/admin/keys/0000000000000001", "Content-Length", "-5", ""},
		{"GET", "/admin/audit?since=2026-01-01T00:00:00Z&limit=5", "Accept", "*/*;q=9", ""},
		{"DELETE", "/admin/dead/18446744073709551615", "Accept", ";", ""},
		{"POST", "/management/provision", "Authorization", "Basic x", `{"kind":"schema","name":"\u0000"}`},
		{"\x00", "*", "\xff", "\xff", "\xff"},
		{"CONNECT", "//", "", "", "null"},
	} {
		f.Add(seed.method, seed.target, seed.header, seed.value, seed.body)
	}
	w := apitest.Start(f, nil)
	w.Client(f, "shop", nil)
	w.Run(f, "create table t (id int primary key, note text)")
	f.Fuzz(func(t *testing.T, method, target, header, value, body string) {
		if strings.Contains(target, "deferred") && strings.Contains(target, "wait") {
			target = strings.ReplaceAll(target, "wait", "wail") // nothing here takes a minute
		}
		if strings.Contains(body, "sleep") {
			return
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = &url.URL{Path: "/" + target}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		req := (&http.Request{
			Method: method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "localhost", RemoteAddr: "127.0.0.1:1",
			Header: http.Header{"X-Athena-Client": {"shop"}, "X-Athena-Key": {w.Admin}},
			Body:   http.NoBody,
		}).WithContext(ctx)
		if body != "" {
			req.Body, req.ContentLength = readCloser{strings.NewReader(body)}, int64(len(body))
		}
		if header != "" {
			req.Header[http.CanonicalHeaderKey(header)] = []string{value}
		}
		rec := httptest.NewRecorder()
		w.Engine.ServeHTTP(rec, req)
		if rec.Code == http.StatusInternalServerError {
			t.Errorf("%q %q with %q: %q and %q was answered with 500: %s", method, target, header, value, body, rec.Body)
		}
		if strings.Contains(rec.Body.String(), apitest.Password) {
			t.Errorf("%q %q showed the password", method, target)
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
