package storage

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// FuzzKey holds what a path names to be a clean key, the same that a caller who
// escapes once gets.
func FuzzKey(f *testing.F) {
	for _, path := range []string{"a", "a/b", "a%20b", "..%2Fx", "%2e%2e/x", "a//b", "%25", "%zz", "%c3%bc", "a;b", "a?b", "%00"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(objects + "/" + path)
		if err != nil {
			return
		}
		c, _ := gin.CreateTestContext(httptest.NewRecorder())
		c.Request = &http.Request{Method: "GET", URL: u, Header: http.Header{}}
		k, err := key(c)
		if err != nil {
			if e := athena.AsError(err); e.Code != athena.CodeInvalidRequest || e.Details["field"] != "key" {
				t.Fatalf("%q: %v %v", path, err, e.Details)
			}
			return
		}
		if _, err := driver.CleanKey("team/", k); err != nil && len(k) <= driver.MaxKey-5 {
			t.Fatalf("%q names %q: %v", path, k, err)
		}
		again := &url.URL{Path: objects + "/" + k}
		c.Request.URL, err = url.ParseRequestURI(again.EscapedPath())
		if err != nil {
			t.Fatal(err)
		}
		if same, err := key(c); same != k || err != nil {
			t.Fatalf("%q names %q, and escaped once it is %q, %v", path, k, same, err)
		}
	})
}

// FuzzRange holds what a header asks for to lie within any object, or to be
// refused.
func FuzzRange(f *testing.F) {
	for _, header := range []string{"bytes=0-4", "bytes=5-", "bytes=-5", "bytes=0-1,2-3", "bytes=", "lines=1-2", "bytes=99999999999999999999-", "bytes=-0", "bytes=4611686018427387903-"} {
		f.Add(header, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		c, _ := gin.CreateTestContext(httptest.NewRecorder())
		c.Request = &http.Request{Header: http.Header{"Range": {header}}}
		r, ranged, err := rangeOf(c)
		if err != nil {
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatal(err)
			}
			return
		}
		if !ranged && strings.HasPrefix(header, "bytes=") {
			t.Fatalf("%q is as none", header)
		}
		if size < 0 || !ranged {
			return
		}
		if from, to, err := r.Window(size); err == nil && (from < 0 || to < from || to > size) {
			t.Fatalf("%q of %d bytes is from %d to %d", header, size, from, to)
		}
	})
}
