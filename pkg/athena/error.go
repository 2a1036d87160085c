package athena

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// A Code says to machines what went wrong. Codes are part of the public
// contract and never change their meaning.
type Code string

// The codes that a caller can meet. Their HTTP status stands in api/envelope.
const (
	CodeInvalidRequest        Code = "invalid_request"
	CodeMissingClientHeader   Code = "missing_client_header"
	CodeUnauthenticated       Code = "unauthenticated"
	CodeForbidden             Code = "forbidden"
	CodeCapabilityDenied      Code = "capability_denied"
	CodeClientNotFound        Code = "client_not_found"
	CodeNotFound              Code = "not_found"
	CodeMethodNotAllowed      Code = "method_not_allowed"
	CodeConflict              Code = "conflict"
	CodeClientInactive        Code = "client_inactive"
	CodeCursorExpired         Code = "cursor_expired"
	CodePayloadTooLarge       Code = "payload_too_large"
	CodeCapabilityUnsupported Code = "capability_unsupported"
	CodeQueryFailed           Code = "query_failed"
	CodeRejectedRows          Code = "rejected_rows"
	CodeSchemaChanged         Code = "schema_changed"
	CodeIdempotencyMismatch   Code = "idempotency_mismatch"
	CodeClientFrozen          Code = "client_frozen"
	CodeTooManyRequests       Code = "too_many_requests"
	CodeCancelled             Code = "cancelled"
	CodeBackendUnavailable    Code = "backend_unavailable"
	CodeBusUnavailable        Code = "bus_unavailable"
	CodeTimeout               Code = "timeout"
	CodeInternal              Code = "internal"
)

// Codes lists every code, for tests and documents that must cover all of them.
func Codes() []Code {
	return []Code{
		CodeInvalidRequest, CodeMissingClientHeader, CodeUnauthenticated, CodeForbidden,
		CodeCapabilityDenied, CodeClientNotFound, CodeNotFound, CodeMethodNotAllowed, CodeConflict,
		CodeClientInactive, CodeCursorExpired, CodePayloadTooLarge, CodeCapabilityUnsupported, CodeQueryFailed,
		CodeRejectedRows, CodeSchemaChanged,
		CodeIdempotencyMismatch, CodeClientFrozen, CodeTooManyRequests, CodeCancelled,
		CodeBackendUnavailable, CodeBusUnavailable, CodeTimeout, CodeInternal,
	}
}

// Retryable reports whether the same request may succeed later without being
// changed.
func (c Code) Retryable() bool {
	switch c {
	case CodeClientFrozen, CodeTooManyRequests, CodeBackendUnavailable, CodeBusUnavailable, CodeTimeout:
		return true
	}
	return false
}

// Error is an Athena-owned error: Code for machines, Message and Details for
// the caller, and a cause that is logged and never shown.
//
// Errors are values: At, With and RetryIn return changed copies.
type Error struct {
	Code    Code
	Message string
	// Details are safe to show: a field's path, a SQLSTATE, a limit.
	Details map[string]any
	// RetryAfter, when positive, is the least time to wait before a retry.
	RetryAfter time.Duration
	cause      error
}

// Errorf makes an Error without a cause.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error whose cause stays reachable with errors.Is and errors.As
// and is never shown to the caller.
func Wrap(code Code, cause error, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), cause: cause}
}

// EffectUnknown is the value of the detail "effect" of an error after which the
// request may have had its effect or not.
const EffectUnknown = "unknown"

// Retryable reports whether the same request may be sent again: its code allows
// it, and nothing says that it may have had its effect already.
func (e *Error) Retryable() bool {
	return e.Code.Retryable() && e.Details["effect"] != EffectUnknown
}

// Error gives the code and the caller's message; the cause is left to Unwrap,
// so that an Error that is printed by mistake shows no backend text.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// At names the field that the error is about by its path, such as
// "connection.dsn" or "params[2]".
func (e *Error) At(path string) *Error { return e.With("field", path) }

// With returns a copy of e with one more detail.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Details = maps.Clone(e.Details)
	if c.Details == nil {
		c.Details = map[string]any{}
	}
	c.Details[key] = value
	return &c
}

// RetryIn returns a copy of e that asks to wait at least d before a retry.
func (e *Error) RetryIn(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// CodeOf returns the code of the outermost Error in err's chain, the code that
// fits a context error, and the empty code for nil.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return CodeCancelled
	case errors.Is(err, context.DeadlineExceeded):
		return CodeTimeout
	}
	return CodeInternal
}

// AsError returns the outermost Error in err's chain, or makes one that fits a
// context error, or an internal one that says nothing of err. It returns nil
// for nil.
func AsError(err error) *Error {
	var e *Error
	switch code := CodeOf(err); {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case code == CodeCancelled:
		return Wrap(code, err, "the request was cancelled")
	case code == CodeTimeout:
		return Wrap(code, err, "the operation took longer than its time limit")
	}
	return Wrap(CodeInternal, err, "internal error; the log has the cause under this request's id")
}
