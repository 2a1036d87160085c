package envelope_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

func answer(t *testing.T, accept string, handler gin.HandlerFunc) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	gin.SetMode(gin.ReleaseMode)
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	ctx := telemetry.WithRequestID(envelope.Begin(t.Context()), "r-1")
	c.Request = httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if accept != "" {
		c.Request.Header.Set("Accept", accept)
	}
	handler(c)
	var body map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatalf("the answer is not JSON: %v: %s", err, w.Body)
	}
	return w, body
}

func TestEveryCodeHasAStatusAndATitle(t *testing.T) {
	t.Parallel()
	for _, code := range athena.Codes() {
		if code != athena.CodeInternal && envelope.Status(code) == http.StatusInternalServerError {
			t.Errorf("code %s has no status of its own", code)
		}
		if envelope.Title(code) == "" {
			t.Errorf("code %s has no title", code)
		}
	}
	if got := envelope.Status("unheard of"); got != http.StatusInternalServerError {
		t.Errorf("an unknown code has status %d, want 500", got)
	}
}

func TestSuccessHasTheShapeOfTheContract(t *testing.T) {
	t.Parallel()
	client := &athena.Client{Name: "shop", Connection: athena.PostgresConn{}}
	w, body := answer(t, "", func(c *gin.Context) {
		envelope.OK(c, "a < b", []int{1}, envelope.Of(client))
	})
	if w.Code != http.StatusOK || body["status"] != "success" || body["message"] != "a < b" || body["request_id"] != "r-1" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	meta, _ := body["meta"].(map[string]any)
	if meta["client"] != "shop" || meta["engine"] != "postgres" || meta["elapsed_ms"] == nil {
		t.Errorf("meta is %v", meta)
	}
}

func TestErrorsShowTheirMessageAndNeverTheirCause(t *testing.T) {
	t.Parallel()
	err := athena.Wrap(athena.CodeConflict, errors.New("host=10.0.0.1 password=hunter2"), "it conflicts").
		At("client_name").RetryIn(1500 * time.Millisecond)
	for name, test := range map[string]struct {
		accept, kind, message string
		status                any
	}{
		"without Accept":                 {"", envelope.TypeJSON, "message", "error"},
		"with JSON":                      {"application/json", envelope.TypeJSON, "message", "error"},
		"with a problem document":        {"application/problem+json", envelope.TypeProblem, "detail", 409.0},
		"with a problem among others":    {"application/json, application/problem+json", envelope.TypeProblem, "detail", 409.0},
		"with a problem less liked":      {"application/json, application/problem+json;q=0.5", envelope.TypeJSON, "message", "error"},
		"with a problem that is refused": {"application/problem+json;q=0", envelope.TypeJSON, "message", "error"},
		"with anything":                  {"*/*", envelope.TypeJSON, "message", "error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, body := answer(t, test.accept, func(c *gin.Context) { envelope.Fail(c, err) })
			if w.Code != http.StatusConflict || w.Header().Get("Content-Type") != test.kind || w.Header().Get("Retry-After") != "2" {
				t.Errorf("got %d %v", w.Code, w.Header())
			}
			if body[test.message] != "it conflicts" || body["code"] != "conflict" || body["request_id"] != "r-1" || body["status"] != test.status {
				t.Errorf("got %s", w.Body)
			}
			if details, _ := body["details"].(map[string]any); details["field"] != "client_name" {
				t.Errorf("details are %v", body["details"])
			}
		})
	}
}

func TestDataThatDoesNotEncodeIsAnInternalError(t *testing.T) {
	t.Parallel()
	w, body := answer(t, "", func(c *gin.Context) { envelope.OK(c, "ok", func() {}, envelope.Meta{}) })
	if w.Code != http.StatusInternalServerError || body["code"] != "internal" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestFailAfterTheAnswerBeganBreaksIt(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := gin.CreateTestContext(w)
		c.Request = r
		c.String(http.StatusOK, "half of")
		c.Writer.Flush()
		envelope.Fail(c, errors.New("lost"))
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 64)
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if err.Error() != "unexpected EOF" {
		t.Errorf("the reader saw %v, want a broken body", err)
	}
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	offers := []string{"application/json", "application/x-ndjson", "text/csv"}
	for name, test := range map[string]struct{ accept, want string }{
		"nothing said":                  {"", "application/json"},
		"anything":                      {"*/*", "application/json"},
		"one in full":                   {"text/csv", "text/csv"},
		"a family":                      {"text/*", "text/csv"},
		"the heavier of two":            {"text/csv;q=0.4, application/x-ndjson;q=0.9", "application/x-ndjson"},
		"the exact of equals":           {"*/*, text/csv", "text/csv"},
		"nothing that is offered":       {"image/png", "application/json"},
		"all but the first":             {"application/json;q=0, */*;q=0.1", "application/x-ndjson"},
		"a header that is no header":    {";;;,,q=", "application/json"},
		"a weight that is no weight":    {"text/csv;q=much", "text/csv"},
		"the exact one overrides range": {"text/csv;q=0.1, */*", "application/json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			if test.accept != "" {
				h.Set("Accept", test.accept)
			}
			if got := envelope.Negotiate(h, offers...); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
