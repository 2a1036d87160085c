// Package openapitest holds handlers to the API's description: what they answer
// must be in it, what they accept must be in it, and it must have no route that
// they do not.
package openapitest

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/openapi"
)

// Load reads and checks the document.
func Load(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Document())
	if err != nil {
		t.Fatalf("the document does not load: %v", err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatalf("the document is not valid: %v", err)
	}
	return doc
}

// Walk compares a router's routes with the operations of the document that bear
// one of the tags, all of them if no tag is given, both ways.
func Walk(t testing.TB, routes gin.RoutesInfo, tags ...string) {
	t.Helper()
	var routed, documented []string
	for _, r := range routes {
		routed = append(routed, r.Method+" "+parameter.ReplaceAllString(r.Path, "{$1}"))
	}
	for path, item := range Load(t).Paths.Map() {
		for method, op := range item.Operations() {
			if len(tags) == 0 || slices.ContainsFunc(op.Tags, func(tag string) bool { return slices.Contains(tags, tag) }) {
				documented = append(documented, method+" "+path)
			}
		}
	}
	for _, r := range routed {
		if !slices.Contains(documented, r) {
			t.Errorf("route %s is not in the document", r)
		}
	}
	for _, d := range documented {
		if !slices.Contains(routed, d) {
			t.Errorf("the document has %s, the router has not", d)
		}
	}
}

var parameter = regexp.MustCompile(`[:*]([a-z_]+)`)

// Client returns an HTTP client that holds each exchange to the document and
// reports what does not fit as a failure of t. A nil base is the default
// transport.
//
// Tests may send what they like: a request that does not fit the document must
// not be answered with success, and no more is asked of it. Bodies that are not
// JSON are not read; their media type must be documented.
func Client(t testing.TB, base http.RoundTripper) *http.Client {
	t.Helper()
	router, err := gorillamux.NewRouter(Load(t))
	if err != nil {
		t.Fatalf("the document's routes: %v", err)
	}
	if base == nil {
		base = http.DefaultTransport
	}
	return &http.Client{
		Transport:     &transport{t, base, router},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type transport struct {
	t      testing.TB
	base   http.RoundTripper
	router routers.Router
}

// RoundTrip makes the exchange and judges it.
func (tr *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var sent []byte
	if req.Body != nil {
		var err error
		if sent, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(sent))
	}
	resp, err := tr.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	name := req.Method + " " + req.URL.Path
	judged := req.Clone(req.Context())
	judged.Body = io.NopCloser(bytes.NewReader(sent))
	// The document has one server, "/": the host does not matter.
	judged.Host, judged.URL.Host, judged.URL.Scheme = "", "", ""
	// A document has no parameter that takes the rest of a path: the key of an
	// object is one that does, and is any.
	if key, ok := strings.CutPrefix(req.URL.Path, "/storage/objects/"); ok && key != "" {
		judged.URL.Path, judged.URL.RawPath = "/storage/objects/key", ""
	}
	route, params, err := tr.router.FindRoute(judged)
	if err != nil {
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusBadRequest {
			tr.t.Errorf("%s is not in the document, and was answered with %d", name, resp.StatusCode)
		}
		return resp, nil
	}
	in := &openapi3filter.RequestValidationInput{
		Request: judged, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateRequest(req.Context(), in); err != nil && resp.StatusCode < 300 {
		tr.t.Errorf("%s was answered with %d, and the document refuses the request: %v", name, resp.StatusCode, err)
	}
	tr.judge(name, route, in, resp)
	return resp, nil
}

func (tr *transport) judge(name string, route *routers.Route, in *openapi3filter.RequestValidationInput, resp *http.Response) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options}
	if !strings.HasSuffix(kind, "json") || kind == "application/x-ndjson" {
		documented := route.Operation.Responses.Status(resp.StatusCode)
		switch {
		case documented == nil:
			tr.t.Errorf("%s answered %d, which is not documented", name, resp.StatusCode)
		case kind != "" && documented.Value.Content.Get(kind) == nil:
			tr.t.Errorf("%s answered %d as %s, which is not documented", name, resp.StatusCode, kind)
		}
		return
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil { // a broken answer: the reader shall see it break
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(got), broken{err}))
		return
	}
	resp.Body = io.NopCloser(bytes.NewReader(got))
	out.SetBodyBytes(got)
	if err := openapi3filter.ValidateResponse(in.Request.Context(), out); err != nil {
		tr.t.Errorf("%s answered %d with what the document does not have: %v\n%.2000s", name, resp.StatusCode, err, got)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }
