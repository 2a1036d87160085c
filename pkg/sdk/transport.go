package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// headerClient names the logical client of a request.
const headerClient = "X-Athena-Client"

// maxError bounds the body of an error answer.
const maxError = 1 << 20

// request is one call of the API.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	client string // the header X-Athena-Client; none if empty
	header http.Header
	body   any  // sent as JSON; none if nil
	safe   bool // may be repeated
	// stream is sent as it is, once, in the place of body; size is its length, and
	// -1 where that is not known.
	stream io.Reader
	size   int64
}

func get(path string, query url.Values) request {
	return request{method: http.MethodGet, path: path, query: query, safe: true}
}

// send makes the request, repeats it where that is safe, and returns an answer
// of status 2xx or 304. Any other answer is an error. The caller closes the
// body.
func (a *API) send(ctx context.Context, r request) (*http.Response, error) {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the request cannot be written as JSON: %s", err)
		}
	}
	for attempt := 0; ; attempt++ {
		resp, err := a.once(ctx, r, body)
		if err == nil || !r.safe || attempt >= a.opts.Retries || !worthRepeating(err) || ctx.Err() != nil {
			return resp, err
		}
		if !a.pause(ctx, attempt, athena.AsError(err).RetryAfter) {
			return nil, err
		}
	}
}

func (a *API) once(ctx context.Context, r request, body []byte) (*http.Response, error) {
	u := *a.base
	target := u.String() + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, reader)
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "no request can be made of it: %s", err)
	}
	if r.stream != nil {
		req.Body, req.ContentLength = io.NopCloser(r.stream), r.size
		if r.size == 0 {
			req.Body = http.NoBody
		}
	}
	req.Header.Set("Accept", "application/json")
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", a.opts.UserAgent)
	if a.key != "" {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.client != "" {
		req.Header.Set(headerClient, r.client)
	}
	resp, err := a.opts.HTTP.Do(req)
	if err != nil {
		return nil, a.unreachable(ctx, err)
	}
	if resp.StatusCode/100 == 2 || resp.StatusCode == http.StatusNotModified {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, failure(resp)
}

// unreachable is the error for a request that got no answer.
func (a *API) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	reason := err
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		reason = wrapped.Err // without the URL, which is named below
	}
	return athena.Wrap(athena.CodeBackendUnavailable, err, "the Athena server at %s does not answer: %s", a.base.Redacted(), reason).With("url", a.base.Redacted())
}

// lost is the error for an answer that broke off.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return athena.Wrap(athena.CodeBackendUnavailable, err, "the answer broke off: %s", err)
}

// failure makes an error of an answer that is one.
func failure(resp *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	e := decodeFailure(raw)
	if e == nil {
		e = athena.Errorf(codeOf(resp.StatusCode), "the server answered %s; is it Athena that listens there?", resp.Status)
	}
	if id := resp.Header.Get("X-Request-Id"); id != "" && e.Details["request_id"] == nil {
		e = e.With("request_id", id)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e = e.RetryIn(time.Duration(s) * time.Second)
	}
	return e
}

func decodeFailure(raw []byte) *athena.Error {
	var body struct {
		Code      athena.Code    `json:"code"`
		Message   string         `json:"message"`
		RequestID string         `json:"request_id"`
		Details   map[string]any `json:"details"`
	}
	if json.Unmarshal(raw, &body) != nil || body.Code == "" {
		return nil
	}
	e := athena.Errorf(body.Code, "%s", body.Message)
	e.Details = body.Details
	if body.RequestID != "" {
		e = e.With("request_id", body.RequestID)
	}
	return e
}

// codeOf fits a code to the status of an answer that names none, as a proxy's.
func codeOf(status int) athena.Code {
	switch status {
	case http.StatusUnauthorized:
		return athena.CodeUnauthenticated
	case http.StatusForbidden:
		return athena.CodeForbidden
	case http.StatusNotFound:
		return athena.CodeNotFound
	case http.StatusRequestEntityTooLarge:
		return athena.CodePayloadTooLarge
	case http.StatusTooManyRequests:
		return athena.CodeTooManyRequests
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return athena.CodeBackendUnavailable
	case http.StatusGatewayTimeout:
		return athena.CodeTimeout
	}
	if status/100 == 4 {
		return athena.CodeInvalidRequest
	}
	return athena.CodeInternal
}

// RequestID is the id under which the server's log has the request that err
// comes from; empty if it is not known.
func RequestID(err error) string {
	var e *athena.Error
	if !errors.As(err, &e) {
		return ""
	}
	id, _ := e.Details["request_id"].(string)
	return id
}

// worthRepeating holds for errors of a moment. A frozen client is none: it may
// stay so for days.
func worthRepeating(err error) bool {
	switch athena.CodeOf(err) {
	case athena.CodeTooManyRequests, athena.CodeBackendUnavailable, athena.CodeBusUnavailable:
		return true
	}
	return false
}

// pause waits before a repetition; false if ctx is done first or the server
// asks for more patience than is sensible within a call.
func (a *API) pause(ctx context.Context, attempt int, atLeast time.Duration) bool {
	const most = 5 * time.Second
	if atLeast > 3*most {
		return false
	}
	wait := atLeast + rand.N(min(a.opts.Backoff<<min(attempt, 10), most)+1)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Meta says how an answer came to be.
type Meta struct {
	Client  string        `json:"client"`
	Engine  athena.Engine `json:"engine"`
	Columns []Column      `json:"columns"`
	// RowsAffected is the engine's own count; nil where there is none.
	RowsAffected *int64 `json:"rows_affected"`
	// Truncated says that a limit ended the rows.
	Truncated  bool   `json:"truncated"`
	NextCursor string `json:"next_cursor"`
	ElapsedMS  int64  `json:"elapsed_ms"`
	// RequestID is the id under which the server's log has the request.
	RequestID string `json:"-"`
}

// Column describes one column of a result.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"` // the engine's own name of the type
}

// answer reads a whole small answer, of which data is a T.
func answer[T any](ctx context.Context, a *API, r request) (data T, meta Meta, err error) {
	resp, err := a.send(ctx, r)
	if err != nil {
		return data, meta, err
	}
	defer resp.Body.Close()
	return decodeAnswer[T](ctx, resp)
}

func decodeAnswer[T any](ctx context.Context, resp *http.Response) (data T, meta Meta, err error) {
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return data, meta, lost(ctx, err)
	}
	var body struct {
		Data      T      `json:"data"`
		Meta      Meta   `json:"meta"`
		RequestID string `json:"request_id"`
	}
	if len(bytes.TrimSpace(raw)) == 0 { // 204
		return data, meta, nil
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		return data, meta, strange(err)
	}
	body.Meta.RequestID = body.RequestID
	return body.Data, body.Meta, nil
}

func strange(err error) error {
	return athena.Wrap(athena.CodeInternal, err, "the answer is not what this client understands: %s", strings.TrimPrefix(fmt.Sprint(err), "json: "))
}
