package params_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func query(raw string) *params.Query {
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = &http.Request{URL: httptest.NewRequest(http.MethodGet, "/", nil).URL}
	c.Request.URL.RawQuery = raw
	return params.Of(c)
}

func TestParameters(t *testing.T) {
	t.Parallel()
	read := func(q *params.Query) {
		q.Required("table", "a table")
		q.Client("client")
		q.OneOf("state", "queued", "running")
		q.Bool("dry_run")
		q.Int("limit", 100, 1, 1000)
		q.Duration("wait", 0, time.Minute)
		q.Time("since")
		q.Strings("label")
	}
	for name, test := range map[string]struct{ query, field string }{
		"all there":              {"table=t&client=shop&state=queued&dry_run=true&limit=5&wait=5s&since=2026-01-31T15:04:05Z&label=a&label=b", ""},
		"only what must be":      {"table=t", ""},
		"one that must be":       {"limit=5", "table"},
		"an empty one":           {"table=", "table"},
		"no client's name":       {"table=t&client=A", "client"},
		"none of the words":      {"table=t&state=lost", "state"},
		"no truth":               {"table=t&dry_run=yes", "dry_run"},
		"no number":              {"table=t&limit=1e3", "limit"},
		"a number too large":     {"table=t&limit=99999999999999999999", "limit"},
		"a span too long":        {"table=t&wait=1h", "wait"},
		"a span below zero":      {"table=t&wait=-1s", "wait"},
		"no instant":             {"table=t&since=2026-01-31", "since"},
		"an instant of no year":  {"table=t&since=9999-12-31T23:59:59-12:00", "since"},
		"one that nobody knows":  {"table=t&Table=t", "Table"},
		"one twice":              {"table=t&table=u", "table"},
		"a list with a control":  {"table=t&label=%07", "label"},
		"a name that is no text": {"table=t&%ff=1", "�"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := query(test.query)
			read(q)
			err := q.Err()
			if (err == nil) != (test.field == "") {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				return
			}
			if e := athena.AsError(err); e.Code != athena.CodeInvalidRequest || e.Details["field"] != test.field {
				t.Errorf("got %v %v, want the field %q", err, e.Details, test.field)
			}
		})
	}
	if query("a=%zz").Err() == nil || query("a=1;b=2").Err() == nil {
		t.Error("a malformed query string was read")
	}
}
