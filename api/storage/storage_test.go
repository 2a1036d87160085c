package storage_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

func TestMain(m *testing.M) { s3test.Main(m) }

const lake = "X-Athena-Client: lake"

// world serves the API with a client lake on a bucket of the real server, below
// a prefix.
func world(t *testing.T) (*apitest.World, athena.S3Conn) {
	t.Helper()
	w := apitest.Start(t, nil)
	bucket := s3test.Bucket(t)
	conn := bucket
	conn.Prefix = "team/a"
	w.Lake(t, "lake", conn, nil)
	return w, bucket
}

func TestTheRoutesAreDocumented(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	openapitest.Walk(t, w.Engine.Routes())
}

func TestObjects(t *testing.T) {
	t.Parallel()
	w, bucket := world(t)
	s3test.Seed(t, bucket, "team/b/secret", []byte("of another team"))
	write, read := w.Key(t, []string{"objects"}), w.Key(t, []string{"objects:read"})
	const path = "/storage/objects/day=1/a%20b%2520.txt" // the key is day=1/a b%20.txt

	put := w.Do(t, write, "PUT", path, "hello, lake", lake, "Content-Type: text/plain", "X-Athena-Meta-Team: checkout").Want(t, 200, "")
	var o driver.Object
	put.Decode(t, &o)
	if o.Key != "day=1/a b%20.txt" || o.Bytes != 11 || put.Header.Get("ETag") != `"`+o.ETag+`"` || put.Meta.Client != "lake" || put.Meta.Engine != "s3" {
		t.Fatalf("PUT gave %s %v", put.Raw, put.Header)
	}
	etag := put.Header.Get("ETag")

	t.Run("an object is read as it was stored", func(t *testing.T) {
		got := w.Do(t, read, "GET", path, "", lake).Want(t, 200, "")
		h := got.Header
		if string(got.Raw) != "hello, lake" || h.Get("ETag") != etag || h.Get("X-Athena-Meta-Team") != "checkout" ||
			!strings.HasPrefix(h.Get("Content-Type"), "text/plain") || h.Get("Content-Length") != "11" || h.Get("Accept-Ranges") != "bytes" || h.Get("Last-Modified") == "" {
			t.Errorf("%q %v", got.Raw, h)
		}
		if h.Get("Content-Disposition") != "attachment" || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("a browser may take it for more than a file: %v", h)
		}
		head := w.Do(t, read, "HEAD", path, "", lake)
		if head.Code != 200 || len(head.Raw) != 0 || head.Header.Get("Content-Length") != "11" || head.Header.Get("X-Athena-Meta-Team") != "checkout" {
			t.Errorf("HEAD: %d %v", head.Code, head.Header)
		}
	})
	for name, test := range map[string]struct{ header, body, contentRange string }{
		"the first bytes":                {"bytes=0-4", "hello", "bytes 0-4/11"},
		"the rest":                       {"bytes=7-", "lake", "bytes 7-10/11"},
		"the last bytes":                 {"bytes=-4", "lake", "bytes 7-10/11"},
		"more of the last than there is": {"bytes=-100", "hello, lake", "bytes 0-10/11"},
		"an end behind the object's":     {"bytes=7-100", "lake", "bytes 7-10/11"},
	} {
		t.Run("a range may be "+name, func(t *testing.T) {
			got := w.Do(t, read, "GET", path, "", lake, "Range: "+test.header).Want(t, 206, "")
			if string(got.Raw) != test.body || got.Header.Get("Content-Range") != test.contentRange {
				t.Errorf("%q %v", got.Raw, got.Header)
			}
		})
	}
	t.Run("a range behind the object is 416 and tells its size", func(t *testing.T) {
		for _, r := range []string{"bytes=11-", "bytes=500-600"} {
			got := w.Do(t, read, "GET", path, "", lake, "Range: "+r).Want(t, 416, athena.CodeInvalidRequest)
			if got.Header.Get("Content-Range") != "bytes */11" || got.Details["field"] != "range" {
				t.Errorf("%s: %v %s", r, got.Header, got.Raw)
			}
		}
		w.Do(t, write, "PUT", "/storage/objects/empty", "", lake).Want(t, 200, "")
		w.Do(t, read, "GET", "/storage/objects/empty", "", lake, "Range: bytes=0-").Want(t, 416, athena.CodeInvalidRequest)
		if got := w.Do(t, read, "GET", "/storage/objects/empty", "", lake).Want(t, 200, ""); len(got.Raw) != 0 || got.Header.Get("Content-Length") != "0" {
			t.Errorf("%q %v", got.Raw, got.Header)
		}
	})
	for _, r := range []string{"bytes=", "bytes=a-b", "bytes=5-2", "bytes=0-1,3-4", "bytes=-", "bytes=--1", "bytes=99999999999999999999-"} {
		t.Run("Range "+r+" is refused", func(t *testing.T) {
			w.Do(t, read, "GET", path, "", lake, "Range: "+r).Want(t, 400, athena.CodeInvalidRequest)
		})
	}
	t.Run("ranges of other units are as none", func(t *testing.T) {
		w.Do(t, read, "GET", path, "", lake, "Range: lines=1-2").Want(t, 200, "")
	})
	t.Run("a range of another object is the whole", func(t *testing.T) {
		w.Do(t, read, "GET", path, "", lake, "Range: bytes=0-1", "If-Range: "+etag).Want(t, 206, "")
		w.Do(t, read, "GET", path, "", lake, "Range: bytes=0-1", `If-Range: "another"`).Want(t, 200, "")
		w.Do(t, read, "GET", path, "", lake, "Range: bytes=0-1", "If-Range: Wed, 21 Oct 2015 07:28:00 GMT").Want(t, 200, "")
	})
	t.Run("what is known is not sent again", func(t *testing.T) {
		for _, method := range []string{"GET", "HEAD"} {
			got := w.Do(t, read, method, path, "", lake, `If-None-Match: "x", W/`+etag)
			if got.Code != 304 || len(got.Raw) != 0 || got.Header.Get("ETag") != etag {
				t.Errorf("%s: %d %q %v", method, got.Code, got.Raw, got.Header)
			}
			if got := w.Do(t, read, method, path, "", lake, `If-None-Match: "x"`); got.Code != 200 {
				t.Errorf("%s: %d", method, got.Code)
			}
		}
		w.Do(t, read, "GET", path, "", lake, "If-Match: "+etag).Want(t, 200, "")
		w.Do(t, read, "GET", path, "", lake, `If-Match: "x"`).Want(t, 409, athena.CodeConflict)
		w.Do(t, read, "GET", path, "", lake, `If-Match: x`).Want(t, 400, athena.CodeInvalidRequest)
	})
	t.Run("writes may have conditions", func(t *testing.T) {
		const path = "/storage/objects/conditional"
		w.Do(t, write, "PUT", path, "0", lake, `If-Match: "x"`).Want(t, 409, athena.CodeConflict)
		first := w.Do(t, write, "PUT", path, "1", lake, "If-None-Match: *").Want(t, 200, "")
		w.Do(t, write, "PUT", path, "2", lake, "If-None-Match: *").Want(t, 409, athena.CodeConflict)
		w.Do(t, write, "PUT", path, "3", lake, "Content-Type: text/plain", "If-Match: "+first.Header.Get("ETag")).Want(t, 200, "")
		w.Do(t, write, "PUT", path, "4", lake, "If-Match: "+first.Header.Get("ETag")).Want(t, 409, athena.CodeConflict)
		w.Do(t, write, "PUT", path, "5", lake, "If-None-Match: "+first.Header.Get("ETag")).Want(t, 400, athena.CodeInvalidRequest)
		if got := w.Do(t, read, "GET", path, "", lake); string(got.Raw) != "3" {
			t.Errorf("it holds %q", got.Raw)
		}
	})
	t.Run("copies are made by the engine", func(t *testing.T) {
		a := w.Do(t, write, "POST", "/storage/copy", `{"from":"day=1/a b%20.txt","to":"copies/ü","metadata":{"copied":"yes"}}`, lake).Want(t, 200, "")
		got := w.Do(t, read, "GET", "/storage/objects/copies/%C3%BC", "", lake).Want(t, 200, "")
		if string(got.Raw) != "hello, lake" || got.Header.Get("X-Athena-Meta-Copied") != "yes" || got.Header.Get("X-Athena-Meta-Team") != "checkout" {
			t.Errorf("%q %v, after %s", got.Raw, got.Header, a.Raw)
		}
		w.Do(t, write, "POST", "/storage/copy", `{"from":"day=1/a b%20.txt","to":"copies/ü","if_none_match":true}`, lake).Want(t, 409, athena.CodeConflict)
		if a := w.Do(t, write, "POST", "/storage/copy", `{"from":"nothing","to":"x"}`, lake).Want(t, 404, athena.CodeNotFound); a.Details["field"] != "from" {
			t.Errorf("%s", a.Raw)
		}
		for body, field := range map[string]string{`{"from":"","to":"x"}`: "from", `{"from":"a","to":"../b"}`: "to", `{"from":"a","to":"b","x":1}`: "x", `{"from":"a","to":"b","if_match":"e","if_none_match":true}`: "if_match"} {
			if a := w.Do(t, write, "POST", "/storage/copy", body, lake).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
				t.Errorf("%s: the field is %v, want %s", body, a.Details["field"], field)
			}
		}
	})
	t.Run("what is not there is not found", func(t *testing.T) {
		w.Do(t, read, "GET", "/storage/objects/nothing", "", lake).Want(t, 404, athena.CodeNotFound)
		if got := w.Do(t, read, "HEAD", "/storage/objects/nothing", "", lake); got.Code != 404 || len(got.Raw) != 0 {
			t.Errorf("%d %q", got.Code, got.Raw)
		}
	})
	t.Run("what is removed is gone, and so is what was not there", func(t *testing.T) {
		w.Do(t, write, "PUT", "/storage/objects/gone", "x", lake).Want(t, 200, "")
		for range 2 {
			w.Do(t, write, "DELETE", "/storage/objects/gone", "", lake).Want(t, 200, "")
		}
		w.Do(t, read, "GET", "/storage/objects/gone", "", lake).Want(t, 404, athena.CodeNotFound)
	})
}

func TestKeysLeadNowhereElse(t *testing.T) {
	t.Parallel()
	w, bucket := world(t)
	s3test.Seed(t, bucket, "team/b/secret", []byte("of another team"))
	s3test.Seed(t, bucket, "secret", []byte("of another team"))
	before := w.Opens.Load()
	for _, path := range []string{
		"", "..", "../b/secret", "../../secret", "x/../../b/secret", "x/..", "./x", "x/./y", "/secret", "//secret", "x//y",
		"..%2Fb%2Fsecret", "..%2fb/secret", "x%2Fy", "%2e%2e/b/secret", "%2E%2E/b/secret", ".%2e/b/secret", "%2Fteam/b/secret", "a%00b", "a%0Ab", "a%7F", "%ff", "%EF%BF%BF",
		strings.Repeat("k", 1025),
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			a := w.Do(t, w.Admin, method, "/storage/objects/"+path, "", lake)
			if method == "HEAD" {
				if a.Code != 400 {
					t.Errorf("%s %q: %d", method, path, a.Code)
				}
				continue
			}
			if a.Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != "key" && !strings.Contains(a.Message, "the path holds control characters") {
				t.Errorf("%s %q: the field is %v: %s", method, path, a.Details["field"], a.Raw)
			}
		}
		if raw, err := url.PathUnescape(path); err == nil && raw != "" && utf8.ValidString(raw) && !strings.Contains(path, "%2F") && !strings.Contains(path, "%2f") {
			body, _ := json.Marshal(map[string]string{"method": "GET", "key": raw})
			w.Do(t, w.Admin, "POST", "/storage/presign", string(body), lake).Want(t, 400, athena.CodeInvalidRequest)
			w.Do(t, w.Admin, "GET", "/storage/objects?prefix="+url.QueryEscape(raw), "", lake).Want(t, 400, athena.CodeInvalidRequest)
		}
	}
	if n := w.Opens.Load() - before; n != 0 {
		t.Errorf("%d connections were opened", n)
	}
	// Escaped twice is a name, and one that is not there.
	w.Do(t, w.Admin, "GET", "/storage/objects/%252e%252e/b/secret", "", lake).Want(t, 404, athena.CodeNotFound)
	w.Do(t, w.Admin, "GET", "/storage/objects/..%252Fb%252Fsecret", "", lake).Want(t, 404, athena.CodeNotFound)
	a := w.Do(t, w.Admin, "GET", "/storage/objects", "", lake).Want(t, 200, "")
	if bytes.Contains(a.Raw, []byte("secret")) {
		t.Errorf("the listing shows what is outside: %s", a.Raw)
	}
}

func TestListing(t *testing.T) {
	t.Parallel()
	w, _ := world(t)
	want := []string{}
	for i := range 12 {
		key := fmt.Sprintf("d/%02d ü", i)
		want = append(want, key)
		w.Do(t, w.Admin, "PUT", "/storage/objects/"+(&url.URL{Path: key}).EscapedPath(), "x", lake).Want(t, 200, "")
	}
	w.Do(t, w.Admin, "PUT", "/storage/objects/d/sub/x", "x", lake).Want(t, 200, "")
	type page struct {
		Objects  []driver.Object
		Prefixes []string
	}
	var got, prefixes []string
	path, pages := "/storage/objects?prefix=d/&delimiter=/&limit=5", 0
	cursor := ""
	for next := path; ; pages++ {
		a := w.Do(t, w.Admin, "GET", next, "", lake).Want(t, 200, "")
		var p page
		a.Decode(t, &p)
		for _, o := range p.Objects {
			got = append(got, o.Key)
			if o.Bytes != 1 || o.Modified.IsZero() || o.ETag == "" {
				t.Errorf("%+v", o)
			}
		}
		prefixes = append(prefixes, p.Prefixes...)
		if a.Meta.NextCursor == "" || pages > 10 {
			break
		}
		cursor = a.Meta.NextCursor
		next = path + "&cursor=" + url.QueryEscape(cursor)
	}
	if strings.Join(got, ",") != strings.Join(want, ",") || len(prefixes) != 1 || prefixes[0] != "d/sub/" || pages != 2 {
		t.Errorf("%d pages with %q, %q", pages+1, got, prefixes)
	}
	if a := w.Do(t, w.Admin, "GET", "/storage/objects?prefix=nothing", "", lake).Want(t, 200, ""); string(a.Data) != `{"objects":[],"prefixes":[]}` {
		t.Errorf("%s", a.Raw)
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limt=1": "limt", "prefix=../x": "prefix", "cursor=abc": "cursor",
		"prefix=other&cursor=" + url.QueryEscape(cursor): "cursor",
	} {
		if a := w.Do(t, w.Admin, "GET", "/storage/objects?"+query, "", lake).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%s: the field is %v", query, a.Details["field"])
		}
	}
}

func TestPresigned(t *testing.T) {
	t.Parallel()
	w, _ := world(t)
	read := w.Key(t, []string{"objects:read"})
	use := func(p driver.Presigned, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), p.Method, p.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range p.Headers {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	var p driver.Presigned
	w.Do(t, w.Admin, "POST", "/storage/presign", `{"method":"PUT","key":"up/load","expires":"1m","content_type":"text/x","if_none_match":true}`, lake).Want(t, 200, "").Decode(t, &p)
	if status, raw := use(p, "loaded"); status != 200 {
		t.Fatalf("%d %s", status, raw)
	}
	if status, _ := use(p, "again"); status/100 == 2 {
		t.Errorf("a second upload, which was presigned for nothing there: %d", status)
	}
	p = driver.Presigned{}
	w.Do(t, read, "POST", "/storage/presign", `{"method":"GET","key":"up/load"}`, lake).Want(t, 200, "").Decode(t, &p)
	if status, raw := use(p, ""); status != 200 || raw != "loaded" {
		t.Errorf("%d %s", status, raw)
	}
	w.Do(t, read, "POST", "/storage/presign", `{"method":"PUT","key":"up/load"}`, lake).Want(t, 403, athena.CodeForbidden)
	for body, field := range map[string]string{
		`{"method":"DELETE","key":"a"}`:                      "method",
		`{"key":"a"}`:                                        "method",
		`{"method":"GET","key":"a","expires":"8d"}`:          "expires",
		`{"method":"GET","key":"a","expires":"200h"}`:        "expires",
		`{"method":"GET","key":"a","expires":"1ms"}`:         "expires",
		`{"method":"GET","key":"a","content_type":"text/x"}`: "method",
		`{"method":"GET","key":"../a"}`:                      "key",
		`{"method":"PUT","key":"a","metadata":{"a b":"c"}}`:  "metadata.a b",
	} {
		if a := w.Do(t, w.Admin, "POST", "/storage/presign", body, lake).Want(t, 400, athena.CodeInvalidRequest); a.Details["field"] != field {
			t.Errorf("%s: the field is %v", body, a.Details["field"])
		}
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	w, bucket := world(t)
	w.Client(t, "shop", nil)
	w.Lake(t, "reader", bucket, func(c *athena.Client) { c.Capabilities = athena.Allow(athena.ObjectRead) })
	w.Lake(t, "writer", bucket, func(c *athena.Client) { c.Capabilities = athena.Allow(athena.ObjectWrite) })
	w.Lake(t, "bare", bucket, func(c *athena.Client) { c.Capabilities = 0 })
	w.Lake(t, "frozen", bucket, func(c *athena.Client) { c.Lifecycle = athena.Frozen })
	w.Do(t, w.Admin, "PUT", "/storage/objects/x", "x", lake).Want(t, 200, "")
	before := w.Opens.Load()
	read, write, none := w.Key(t, []string{"objects:read"}), w.Key(t, []string{"objects"}), w.Key(t, []string{"query"})
	bound := w.Key(t, []string{"objects"}, "shop")
	type call struct{ method, path, body string }
	reads := []call{{"GET", "/storage/objects", ""}, {"GET", "/storage/objects/x", ""}, {"POST", "/storage/presign", `{"method":"GET","key":"x"}`}}
	writes := []call{{"PUT", "/storage/objects/x", "y"}, {"DELETE", "/storage/objects/x", ""}, {"POST", "/storage/presign", `{"method":"PUT","key":"x"}`}}
	both := []call{{"POST", "/storage/copy", `{"from":"x","to":"y"}`}}
	for name, test := range map[string]struct {
		key, client string
		calls       [][]call
		status      int
		code        athena.Code
	}{
		"no key":                          {"", "lake", [][]call{reads, writes, both}, 401, athena.CodeUnauthenticated},
		"another right":                   {none, "lake", [][]call{reads, writes, both}, 403, athena.CodeForbidden},
		"a key that reads writes":         {read, "lake", [][]call{writes, both}, 403, athena.CodeForbidden},
		"a key of another client":         {bound, "lake", [][]call{reads, writes, both}, 403, athena.CodeForbidden},
		"no client":                       {write, "", [][]call{reads, writes, both}, 400, athena.CodeMissingClientHeader},
		"a client that there is not":      {write, "nobody", [][]call{reads, writes, both}, 404, athena.CodeClientNotFound},
		"a client that is frozen":         {write, "frozen", [][]call{reads, writes, both}, 423, athena.CodeClientFrozen},
		"a client without writing":        {write, "reader", [][]call{writes, both}, 403, athena.CodeCapabilityDenied},
		"a client without reading":        {write, "writer", [][]call{reads, both}, 403, athena.CodeCapabilityDenied},
		"a client that is granted no one": {write, "bare", [][]call{reads, writes, both}, 403, athena.CodeCapabilityDenied},
		"a client that has no objects":    {write, "shop", [][]call{reads, writes, both}, 422, athena.CodeCapabilityUnsupported},
	} {
		for _, calls := range test.calls {
			for _, c := range calls {
				headers := []string{}
				if test.client != "" {
					headers = append(headers, "X-Athena-Client: "+test.client)
				}
				a := w.Do(t, test.key, c.method, c.path, c.body, headers...)
				if a.Code != test.status || a.Kind != test.code {
					t.Errorf("%s: %s %s: %d %q, want %d %q", name, c.method, c.path, a.Code, a.Kind, test.status, test.code)
				}
			}
		}
	}
	if n := w.Opens.Load() - before; n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

func TestABucketThatIsNotThereCanBeProvisioned(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	conn := s3test.Absent(t)
	w.Lake(t, "lake", conn, nil)
	w.Do(t, w.Admin, "PUT", "/storage/objects/a", "x", lake).Want(t, 404, athena.CodeNotFound)
	body := fmt.Sprintf(`{"kind":"bucket","name":%q}`, conn.Bucket)
	for _, created := range []bool{true, false} {
		a := w.Do(t, w.Admin, "POST", "/management/provision", body, lake).Want(t, 200, "")
		if !strings.Contains(string(a.Data), fmt.Sprintf(`"created":%v`, created)) {
			t.Errorf("%s", a.Raw)
		}
	}
	w.Do(t, w.Admin, "PUT", "/storage/objects/a", "x", lake).Want(t, 200, "")
	w.Do(t, w.Admin, "POST", "/management/provision", `{"kind":"bucket","name":"No_Bucket"}`, lake).Want(t, 400, athena.CodeInvalidRequest)
}

// TestBodiesAreStreamed sends and reads an object that is larger than the bound
// of bodies, and than what may be held of it.
func TestBodiesAreStreamed(t *testing.T) {
	w := apitest.Start(t, func(_ *apitest.World, cfg *api.Config) { cfg.Bounds = middleware.Bounds{MaxBody: 1 << 10} })
	w.Lake(t, "lake", s3test.Bucket(t), nil)
	const size = 192 << 20
	peak := watchMemory(t)
	req, err := http.NewRequestWithContext(t.Context(), "PUT", w.URL+"/storage/objects/large", io.LimitReader(ramp{}, size))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Admin)
	req.Header.Set("X-Athena-Client", "lake")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %s %v", resp.StatusCode, raw, err)
	}
	req, err = http.NewRequestWithContext(t.Context(), "GET", w.URL+"/storage/objects/large", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Admin)
	req.Header.Set("X-Athena-Client", "lake")
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || n != size {
		t.Fatalf("%d bytes of %d, %v", n, size, err)
	}
	if got := peak(); got > 96<<20 {
		t.Errorf("the heap grew by %d MiB for an object of %d MiB", got>>20, size>>20)
	} else {
		t.Logf("the heap grew by %d MiB", got>>20)
	}
	// Other routes keep their bound.
	w.Do(t, w.Admin, "POST", "/storage/copy", `{"from":"`+strings.Repeat("x", 2<<10)+`"}`, lake).Want(t, 413, athena.CodePayloadTooLarge)
}

func TestASenderWhoFallsSilentIsGivenUp(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, func(_ *apitest.World, cfg *api.Config) { cfg.Bounds = middleware.Bounds{Stall: 200 * time.Millisecond} })
	w.Lake(t, "lake", s3test.Bucket(t), nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /storage/objects/half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nX-Athena-Client: lake\r\nContent-Length: 1000\r\n\r\nhalf", w.Admin)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode/100 != 4 { // to the server it is as if they had gone
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
	w.Do(t, w.Admin, "GET", "/storage/objects/half", "", lake).Want(t, 404, athena.CodeNotFound)
}

// watchMemory samples the heap until it is asked for the most that it grew by.
func watchMemory(t *testing.T) func() int64 {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	most := make(chan int64)
	go func() {
		var top int64
		for ctx.Err() == nil {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			top = max(top, int64(now.HeapInuse)-int64(before.HeapInuse))
			time.Sleep(2 * time.Millisecond)
		}
		most <- top
	}()
	return func() int64 { cancel(); return <-most }
}

// ramp is endless.
type ramp struct{}

func (ramp) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	return len(p), nil
}
