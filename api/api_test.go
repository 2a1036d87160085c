package api_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
)

func TestRoutesAndDocumentAgreeBothWays(t *testing.T) {
	t.Parallel()
	openapitest.Walk(t, apitest.Start(t, nil).Engine.Routes())
}

// TestTheOrderOfChecks asks the same of clients in every condition. Each answer
// is another one, and no backend is asked for before its turn.
func TestTheOrderOfChecks(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Client(t, "shop", nil)
	w.Client(t, "cold", func(c *athena.Client) { c.Lifecycle = athena.Frozen })
	w.Client(t, "old", func(c *athena.Client) { c.Lifecycle = athena.Inactive })
	w.Client(t, "poor", func(c *athena.Client) { c.Capabilities = athena.Allow(athena.DeferredQuery) })
	foreign(t, w, "scylla", "active", `{"schema_read":true}`)
	foreign(t, w, "bare", "active", "{}")
	foreign(t, w, "iced", "frozen", "{}")
	key := w.Key(t, []string{"query", "schema"})
	bound := w.Key(t, []string{"query", "schema"}, "lake")
	wrong := key[:len(key)-2] + "zA"
	const statement = `{"query":"select 1"}`

	// The routes on the left must all keep the order; on the right is what
	// differs between them.
	for route, body := range map[string]string{
		"POST /gateway/query":         statement,
		"POST /gateway/sql":           statement,
		"POST /query/sql":             statement,
		"POST /query/count":           `{"table":"t"}`,
		"GET /schema":                 "",
		"GET /schema/tables":          "",
		"GET /schema/columns?table=t": "",
	} {
		t.Run(route, func(t *testing.T) {
			method, path, _ := strings.Cut(route, " ")
			for _, step := range []struct {
				who, key, client string
				status           int
				code             athena.Code
			}{
				{"a stranger", "", "shop", 401, athena.CodeUnauthenticated},
				{"a stranger who asks for nobody", "", "nobody", 401, athena.CodeUnauthenticated},
				{"a wrong key", wrong, "shop", 401, athena.CodeUnauthenticated},
				{"a key without the right", w.Key(t, []string{"objects"}), "shop", 403, athena.CodeForbidden},
				{"a key of other clients", bound, "shop", 403, athena.CodeForbidden},
				{"a key of other clients that asks for nobody", bound, "nobody", 403, athena.CodeForbidden},
				{"no client", key, "", 400, athena.CodeMissingClientHeader},
				{"a client that is not there", key, "nobody", 404, athena.CodeClientNotFound},
				{"a frozen client", key, "cold", 423, athena.CodeClientFrozen},
				{"an inactive client", key, "old", 410, athena.CodeClientInactive},
				{"a client without the capability", key, "poor", 403, athena.CodeCapabilityDenied},
			} {
				var headers []string
				if step.client != "" {
					headers = append(headers, "X-Athena-Client: "+step.client)
				}
				before := w.Opens.Load()
				a := w.Do(t, step.key, method, path, body, headers...)
				if a.Code != step.status || a.Kind != step.code {
					t.Errorf("%s: got %d %s, want %d %s: %s", step.who, a.Code, a.Kind, step.status, step.code, a.Raw)
				}
				if n := w.Opens.Load() - before; n != 0 {
					t.Errorf("%s: %d connections were opened", step.who, n)
				}
			}
		})
	}

	t.Run("unsupported by the engine", func(t *testing.T) {
		before := w.Opens.Load()
		for _, client := range []string{"scylla", "bare"} { // whether it is granted or not
			a := w.Do(t, key, "GET", "/schema", "", "X-Athena-Client: "+client).Want(t, 422, athena.CodeCapabilityUnsupported)
			if strings.Contains(a.Message, "grant") {
				t.Errorf("%s: no owner can mend it: %s", client, a.Raw)
			}
		}
		w.Do(t, key, "GET", "/schema", "", "X-Athena-Client: iced").Want(t, 423, athena.CodeClientFrozen)
		w.Do(t, bound, "GET", "/schema", "", "X-Athena-Client: bare").Want(t, 403, athena.CodeForbidden)
		if w.Opens.Load() != before {
			t.Error("a connection was opened")
		}
	})
	t.Run("unreachable", func(t *testing.T) {
		w.DB.Inject(func(f *memory.Faults) { f.Unreachable = true })
		before := w.Opens.Load()
		a := w.Do(t, key, "GET", "/schema", "", "X-Athena-Client: shop").Want(t, 503, athena.CodeBackendUnavailable)
		if !a.Retryable || w.Opens.Load() != before+1 {
			t.Errorf("after %d openings: %s", w.Opens.Load()-before, a.Raw)
		}
	})
	if strings.Contains(w.Log.String(), apitest.Password) {
		t.Error("the password is in the log")
	}
}

// foreign stores a definition of an engine that this build does not have, as
// another build would.
func foreign(t *testing.T, w *apitest.World, name, lifecycle, capabilities string) {
	t.Helper()
	kv, err := w.Bus.JetStream().KeyValue(t.Context(), bus.BucketCatalog)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), name, fmt.Sprintf(`{"v":1,"definition":{"client_name":%q,"engine":"scylla","lifecycle":%q,"capabilities":%s,"connection":{"hosts":["h"]}}}`, name, lifecycle, capabilities)); err != nil {
		t.Fatal(err)
	}
	if err := w.Catalog.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEveryAnswerOfTheRouterIsAnEnvelope(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, func(_ *apitest.World, cfg *api.Config) {
		cfg.Bounds.MaxBody = 1000
		cfg.Public = append(cfg.Public, family(func(r gin.IRouter) {
			r.GET("/panic", func(*gin.Context) { panic("the secret of the handler") })
			r.GET("/half", func(c *gin.Context) {
				c.String(200, "half an answer")
				c.Writer.Flush()
				panic("too late")
			})
		}))
	})
	for name, test := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code               athena.Code
	}{
		"no such route":                 {"GET", "/nowhere", "", nil, 404, athena.CodeNotFound},
		"a slash too many":              {"GET", "/health/", "", nil, 404, athena.CodeNotFound},
		"the root":                      {"GET", "/", "", nil, 404, athena.CodeNotFound},
		"no such method":                {"DELETE", "/health", "", nil, 405, athena.CodeMethodNotAllowed},
		"a preflight":                   {"OPTIONS", "/schema", "", []string{"Origin: https://evil.example", "Access-Control-Request-Method: GET"}, 405, athena.CodeMethodNotAllowed},
		"an escaped slash":              {"GET", "/admin/clients/a%2Fb", "", nil, 404, athena.CodeClientNotFound},
		"a body too large":              {"PUT", "/admin/clients/shop", strings.Repeat(" ", 1001), nil, 413, athena.CodePayloadTooLarge},
		"a header that is not UTF-8":    {"GET", "/health", "", []string{"X-Any: \xff"}, 400, athena.CodeInvalidRequest},
		"two clients":                   {"GET", "/schema", "", []string{"X-Athena-Client: a", "X-Athena-Client: b"}, 400, athena.CodeInvalidRequest},
		"two keys":                      {"GET", "/schema", "", []string{"X-Athena-Key: a"}, 400, athena.CodeInvalidRequest},
		"a path that is not UTF-8":      {"GET", "/%ff", "", nil, 400, athena.CodeInvalidRequest},
		"a path with a control":         {"GET", "/a%00b", "", nil, 400, athena.CodeInvalidRequest},
		"a parameter that is not known": {"GET", "/health?verbose=1", "", nil, 400, athena.CodeInvalidRequest},
		"a body that is packed":         {"PUT", "/admin/clients/shop", "xx", []string{"Content-Encoding: gzip"}, 400, athena.CodeInvalidRequest},
		"a panic":                       {"GET", "/panic", "", nil, 500, athena.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "a panic" {
				// It is in no document.
				req := httptest.NewRequest(test.method, test.path, nil)
				rec := httptest.NewRecorder()
				w.Engine.ServeHTTP(rec, req)
				if rec.Code != 500 || !strings.Contains(rec.Body.String(), `"code":"internal"`) || strings.Contains(rec.Body.String(), "secret") {
					t.Errorf("got %d %s", rec.Code, rec.Body)
				}
				if !strings.Contains(w.Log.String(), "the secret of the handler") {
					t.Error("the panic is not in the log")
				}
				return
			}
			a := w.Do(t, w.Admin, test.method, test.path, test.body, test.headers...).Want(t, test.status, test.code)
			if a.Status != "error" || a.Message == "" || a.Error != a.Message || a.RequestID == "" || a.RequestID != a.Header.Get("X-Request-Id") {
				t.Errorf("got %s", a.Raw)
			}
			for _, h := range []string{"Access-Control-Allow-Origin", "Server", "X-Powered-By"} {
				if v := a.Header.Get(h); v != "" {
					t.Errorf("the answer has %s: %s", h, v)
				}
			}
			for h, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Frame-Options": "DENY"} {
				if v := a.Header.Get(h); v != want {
					t.Errorf("%s is %q, want %q", h, v, want)
				}
			}
			p := w.Do(t, w.Admin, test.method, test.path, test.body, append([]string{"Accept: application/problem+json"}, test.headers...)...)
			if p.Code != test.status || !strings.HasPrefix(p.Header.Get("Content-Type"), "application/problem+json") {
				t.Errorf("as a problem: %d %s", p.Code, p.Raw)
			}
		})
	}
	t.Run("a panic in the middle breaks the answer", func(t *testing.T) {
		t.Parallel()
		resp, err := http.Get(w.URL + "/half")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("the reader took %q for whole", body)
		}
	})
}

func TestRequestsKeepTheirIdentity(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	a := w.Do(t, "", "GET", "/version", "", "X-Request-Id: my-id.1", "Traceparent: "+parent).Want(t, 200, "")
	if a.RequestID != "my-id.1" || !strings.HasPrefix(a.Header.Get("Traceparent"), parent[:35]) {
		t.Errorf("got %s, %v", a.RequestID, a.Header)
	}
	made := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for name, headers := range map[string][]string{
		"nothing":         nil,
		"too long":        {"X-Request-Id: " + strings.Repeat("x", 129)},
		"not for a log":   {"X-Request-Id: a b{}", "Traceparent: nonsense"},
		"another version": {"Traceparent: 00-00000000000000000000000000000000-0000000000000000-00"},
	} {
		a := w.Do(t, "", "GET", "/version", "", headers...).Want(t, 200, "")
		if !made.MatchString(a.RequestID) || !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`).MatchString(a.Header.Get("Traceparent")) {
			t.Errorf("%s: id %q, traceparent %q", name, a.RequestID, a.Header.Get("Traceparent"))
		}
	}
}

func TestRatesAreHeld(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, func(_ *apitest.World, cfg *api.Config) {
		cfg.Rates = middleware.Rates{PerKey: 5, Strangers: 0.001}
	})
	w.Client(t, "slow", func(c *athena.Client) { c.Limits.RequestsPerSecond = 0.001 })
	count := func(n int, key, client string) (got map[string]int) {
		got = map[string]int{}
		for range n {
			a := w.Do(t, key, "GET", "/schema", "", "X-Athena-Client: "+client)
			got[fmt.Sprintf("%d %v", a.Code, a.Details["limit"])]++
			if a.Code == 429 && a.Header.Get("Retry-After") == "" {
				t.Errorf("no Retry-After: %v", a.Header)
			}
		}
		return got
	}
	if got := count(5, w.Key(t, []string{"schema"}), "slow"); got["200 <nil>"] != 1 || got["429 client"] != 4 {
		t.Errorf("the client's limit: %v", got)
	}
	if got := count(50, w.Key(t, []string{"schema"}), "nobody"); got["429 key"] < 5 || got["404 <nil>"] < 5 {
		t.Errorf("the key's limit: %v", got)
	}
	if got := count(40, "ath_wrong", "nobody"); got["401 <nil>"] != 20 || got["429 <nil>"] != 20 {
		t.Errorf("the strangers' limit: %v", got)
	}
	// Strangers do not keep out a key behind the same address.
	w.Do(t, w.Key(t, []string{"schema"}), "GET", "/schema", "", "X-Athena-Client: nobody").Want(t, 404, athena.CodeClientNotFound)
}

func TestSystemRoutesNeedNoKeySaveMetrics(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	for _, path := range []string{"/health", "/ready", "/version"} {
		w.Do(t, "", "GET", path, "").Want(t, 200, "")
	}
	for path, kind := range map[string]string{"/docs": "text/html", "/openapi.yaml": "application/yaml"} {
		a := w.Do(t, "", "GET", path, "").Want(t, 200, "")
		if !strings.HasPrefix(a.Header.Get("Content-Type"), kind) || len(a.Raw) < 10_000 {
			t.Errorf("%s: %v, %d bytes", path, a.Header, len(a.Raw))
		}
		w.Do(t, "", "GET", path, "", "If-None-Match: "+a.Header.Get("ETag")).Want(t, 304, "")
	}
	w.Do(t, "", "GET", "/metrics", "").Want(t, 401, athena.CodeUnauthenticated)
	w.Do(t, w.Key(t, []string{"query"}), "GET", "/metrics", "").Want(t, 403, athena.CodeForbidden)
	a := w.Do(t, w.Key(t, []string{"admin:read"}), "GET", "/metrics", "").Want(t, 200, "")
	if !strings.Contains(string(a.Raw), "go_goroutines") {
		t.Errorf("the metrics are %.200s", a.Raw)
	}
}

func TestAuthThatIsOffLetsEverybodyIn(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, func(_ *apitest.World, cfg *api.Config) { cfg.Keys = middleware.Open() })
	w.Client(t, "shop", nil)
	w.Do(t, "", "GET", "/admin/clients", "").Want(t, 200, "")
	if _, err := api.New(api.Config{}); err == nil {
		t.Error("a router without Keys was built")
	}
	if _, err := api.New(api.Config{Keys: middleware.Open(), TrustedProxies: []string{"everybody"}}); err == nil {
		t.Error("a router that trusts nonsense was built")
	}
}

type family func(gin.IRouter)

func (f family) Register(r gin.IRouter) { f(r) }
