package rows_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/rows"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// source gives n rows, then err.
type source struct {
	n, at  int
	row    string
	err    error
	closed bool
}

func (s *source) Columns() []driver.Column {
	return []driver.Column{{Name: "id", Type: "int4"}, {Name: "note, odd", Type: "text"}}
}
func (s *source) Next() bool                   { s.at++; return s.at <= s.n }
func (s *source) AppendJSON(dst []byte) []byte { return append(dst, s.row...) }
func (s *source) RowsAffected() int64          { return int64(s.n) }
func (s *source) Err() error                   { return s.err }
func (s *source) Close() error                 { s.closed = true; return s.err }

func get(t *testing.T, s *source, accept string, limit int64) (*http.Response, string, error) {
	t.Helper()
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.GET("/", func(c *gin.Context) {
		if err := rows.Write(c, s, rows.Options{Message: "done", Meta: envelope.Meta{Client: "shop"}, Limit: limit}); err != nil {
			envelope.Fail(c, err)
		}
	})
	srv := httptest.NewServer(e)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

const odd = `{"id":1,"note, odd":"say \"hi\",\r\nnow"}`

func TestRowsComeInTheFormThatIsAccepted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		accept, row, want string
	}{
		"ndjson":                  {"application/x-ndjson", odd, odd + "\n" + odd + "\n"},
		"csv":                     {"text/csv", odd, "id,\"note, odd\"\r\n" + strings.Repeat("1,\"say \"\"hi\"\",\r\nnow\"\r\n", 2)},
		"csv tells null from ''":  {"text/csv", `{"id":null,"note, odd":""}`, "id,\"note, odd\"\r\n,\"\"\r\n,\"\"\r\n"},
		"csv keeps what is JSON":  {"text/csv", `{"id":[1,2],"note, odd":{"a":true}}`, "id,\"note, odd\"\r\n" + strings.Repeat("\"[1,2]\",\"{\"\"a\"\":true}\"\r\n", 2)},
		"csv keeps exact numbers": {"text/csv", `{"id":12345678901234567890.10,"note, odd":false}`, "id,\"note, odd\"\r\n" + strings.Repeat("12345678901234567890.10,false\r\n", 2)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body, err := get(t, &source{n: 2, row: test.row}, test.accept, 0)
			if err != nil || body != test.want {
				t.Errorf("got %q, %v; want %q", body, err, test.want)
			}
			if got := resp.Header.Get(rows.HeaderRows); got != "2" {
				t.Errorf("%s is %q", rows.HeaderRows, got)
			}
		})
	}
}

func TestTheEnvelopeCarriesColumnsCountAndTruncation(t *testing.T) {
	t.Parallel()
	s := &source{n: 5, row: odd}
	_, body, err := get(t, s, "", 3)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Status, Message string
		Data            []map[string]any
		Meta            envelope.Meta
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if got.Status != "success" || len(got.Data) != 3 || !got.Meta.Truncated || len(got.Meta.Columns) != 2 || *got.Meta.RowsAffected != 5 || got.Meta.Client != "shop" {
		t.Errorf("got %+v", got)
	}
	if !s.closed {
		t.Error("rows beyond the limit were not dropped")
	}
}

func TestALongAnswerIsWholeAndTellsItsCountBehind(t *testing.T) {
	t.Parallel()
	n := 3*rows.Held/len(odd) + 1
	resp, body, err := get(t, &source{n: n, row: odd}, "application/x-ndjson", 0)
	if err != nil || strings.Count(body, "\n") != n {
		t.Fatalf("got %d rows, %v", strings.Count(body, "\n"), err)
	}
	if got := resp.Trailer.Get(rows.HeaderRows); got != fmt.Sprint(n) {
		t.Errorf("the trailer %s is %q, want %d", rows.HeaderRows, got, n)
	}
	_, body, err = get(t, &source{n: n, row: odd}, "", 0)
	if err != nil || !json.Valid([]byte(body)) {
		t.Errorf("a long envelope is not valid JSON: %v", err)
	}
}

func TestAnErrorIsCleanBeforeTheAnswerBeginsAndBreaksItAfter(t *testing.T) {
	t.Parallel()
	failure := athena.Errorf(athena.CodeQueryFailed, "division by zero")
	for _, accept := range []string{"application/json", "application/x-ndjson", "text/csv"} {
		t.Run(accept, func(t *testing.T) {
			t.Parallel()
			resp, body, err := get(t, &source{n: 10, row: odd, err: failure}, accept, 0)
			if err != nil || resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(body, `"code":"query_failed"`) {
				t.Errorf("early: got %d %s, %v", resp.StatusCode, body, err)
			}
			resp, _, err = get(t, &source{n: 3 * rows.Held / len(odd), row: odd, err: failure}, accept, 0)
			if resp.StatusCode != http.StatusOK || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("late: got %d and %v, want a broken body", resp.StatusCode, err)
			}
		})
	}
}

func FuzzCSV(f *testing.F) {
	for _, s := range []string{odd, `{}`, `{"a":null}`, `{"a":[{"b":"\u0000"}]}`, `[`, `{"a":`, `nul`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		line, err := rows.AppendCSV(nil, object)
		if err == nil && !strings.HasSuffix(string(line), "\r\n") {
			t.Errorf("%q became %q", object, line)
		}
	})
}
