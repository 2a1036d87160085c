// Package envelope is the one shape of Athena's answers: success and error,
// the HTTP status of each error code, and what a client may accept instead.
//
// The shape never depends on the engine. The package knows nothing of routes
// and runs nothing.
package envelope

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// Success is the body of every answer that is no error and no raw stream.
type Success struct {
	Status    string `json:"status"` // "success"
	Message   string `json:"message"`
	Data      any    `json:"data"`
	RequestID string `json:"request_id"`
	Meta      Meta   `json:"meta"`
}

// Meta says how an answer came to be. Zero fields are left out, and the elapsed
// time is filled in where the answer is written.
type Meta struct {
	Client       string          `json:"client,omitempty"`
	Engine       athena.Engine   `json:"engine,omitempty"`
	Columns      []driver.Column `json:"columns,omitempty"`
	RowsAffected *int64          `json:"rows_affected,omitempty"`
	// Truncated says that a limit ended the rows.
	Truncated bool `json:"truncated,omitempty"`
	// NextCursor asks for the next page; empty on the last one.
	NextCursor string `json:"next_cursor,omitempty"`
	ElapsedMS  int64  `json:"elapsed_ms"`
}

// Of is the Meta of an operation in the client's name.
func Of(c *athena.Client) Meta { return Meta{Client: c.Name, Engine: c.Engine()} }

// OK answers 200 with data, which must encode as JSON.
func OK(c *gin.Context, message string, data any, m Meta) {
	Write(c, http.StatusOK, message, data, m)
}

// Created answers 201.
func Created(c *gin.Context, location, message string, data any, m Meta) {
	c.Header("Location", location)
	Write(c, http.StatusCreated, message, data, m)
}

// Accepted answers 202: location is where the outcome will be found.
func Accepted(c *gin.Context, location, message string, data any, m Meta) {
	c.Header("Location", location)
	Write(c, http.StatusAccepted, message, data, m)
}

// Write answers with the given status. Data that does not encode becomes an
// internal error.
func Write(c *gin.Context, status int, message string, data any, m Meta) {
	m.ElapsedMS = Elapsed(c.Request.Context()).Milliseconds()
	body, err := Encode(Success{"success", message, data, telemetry.RequestID(c.Request.Context()), m})
	if err != nil {
		Fail(c, err)
		return
	}
	c.Data(status, TypeJSON, body)
}

// Error is the body of every error.
type Error struct {
	Status    string         `json:"status"` // "error"
	Message   string         `json:"message"`
	Error     string         `json:"error"` // the message again, for clients that read it here
	Code      athena.Code    `json:"code"`
	RequestID string         `json:"request_id"`
	Retryable bool           `json:"retryable"`
	Details   map[string]any `json:"details"`
}

// Problem is the same error as RFC 9457 has it.
type Problem struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail"`
	Instance  string         `json:"instance"`
	Code      athena.Code    `json:"code"`
	RequestID string         `json:"request_id"`
	Retryable bool           `json:"retryable"`
	Details   map[string]any `json:"details"`
}

// Media types of answers.
const (
	TypeJSON    = "application/json; charset=utf-8"
	TypeProblem = "application/problem+json; charset=utf-8"
)

// Fail answers with err, and leaves it in c.Errors for the log: its cause is
// written there and nowhere else. No handler runs after it.
//
// Where a part of an answer is on its way already, Fail breaks the connection,
// by a panic with http.ErrAbortHandler: a reader must never take a part for the
// whole.
func Fail(c *gin.Context, err error) { FailAs(c, Status(athena.AsError(err).Code), err) }

// FailAs is Fail with a status of its own, where HTTP has one for what the code
// says in general.
func FailAs(c *gin.Context, status int, err error) {
	_ = c.Error(err)
	if c.Writer.Written() {
		panic(http.ErrAbortHandler)
	}
	c.Abort()
	e := athena.AsError(err)
	if e.RetryAfter > 0 {
		c.Header("Retry-After", strconv.FormatInt(int64(math.Ceil(e.RetryAfter.Seconds())), 10))
	}
	if status == http.StatusUnauthorized {
		c.Header("WWW-Authenticate", `Bearer realm="athena"`)
	}
	id, details := telemetry.RequestID(c.Request.Context()), e.Details
	if details == nil {
		details = map[string]any{}
	}
	kind, shape := TypeJSON, any(Error{"error", e.Message, e.Message, e.Code, id, e.Retryable(), details})
	if wantsProblem(c.Request.Header) {
		kind, shape = TypeProblem, Problem{
			Type: "/docs#error-" + string(e.Code), Title: Title(e.Code), Status: status, Detail: e.Message,
			Instance: "urn:request:" + id, Code: e.Code, RequestID: id, Retryable: e.Retryable(), Details: details,
		}
	}
	c.Header("Vary", "Accept")
	body, encodeErr := Encode(shape)
	if encodeErr != nil { // details that are not JSON: say the rest
		body, _ = Encode(Error{"error", e.Message, e.Message, e.Code, id, e.Retryable(), map[string]any{}})
		kind = TypeJSON
	}
	c.Data(status, kind, body)
}

// Encode writes v as JSON without a final newline, and leaves <, > and & as
// they are: statements are full of them.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

type startedKey struct{}

// Begin returns ctx carrying the time at which its request came in.
func Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, startedKey{}, time.Now())
}

// Elapsed is the time since Begin; 0 where that was not called.
func Elapsed(ctx context.Context) time.Duration {
	started, ok := ctx.Value(startedKey{}).(time.Time)
	if !ok {
		return 0
	}
	return time.Since(started)
}
