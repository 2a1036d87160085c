package scylla

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// serverError is what gocql makes of an ERROR of the protocol; its own interface
// of that kind fits none of them.
type serverError interface {
	error
	GetCode() int
	GetMessage() string
}

// statementError adds to an error what only the statement knows.
type statementError struct {
	err      error
	analysis analysis
}

// unreachable is a failure to get a session. It hides its cause from errors.Is,
// because a dial that took too long is no deadline of the caller's.
type unreachable struct {
	cause error
	why   string // for people; empty if only cause tells
}

func (e *unreachable) Error() string    { return e.cause.Error() }
func (e *statementError) Error() string { return e.err.Error() }
func (e *statementError) Unwrap() error { return e.err }

// readError is for errors of statements of our own that read.
func readError(err error) error {
	return &statementError{err, analysis{Analysis: driver.Analysis{Effect: driver.Read}}}
}

// A retryPolicy makes a request again on another node if it was not sent, or is
// idempotent and failed by what may pass. gocql's own would take the server's
// errors for a proof that nothing was done, and make a counter's write again
// (invariant 2).
type retryPolicy struct{}

const mostRetries = 2

// Attempt bounds the attempts.
func (retryPolicy) Attempt(q gocql.RetryableQuery) bool { return q.Attempts() <= mostRetries }

// GetRetryType decides by the error.
func (retryPolicy) GetRetryType(err error) gocql.RetryType {
	var q *gocql.QueryError
	if errors.As(err, &q) && (notSent(err) || q.IsIdempotent() && passes(err)) {
		return gocql.RetryNextHost
	}
	return gocql.Rethrow
}

// notSent reports that gocql had no connection to send the request on.
func notSent(err error) bool {
	var q *gocql.QueryError
	if errors.As(err, &q) && q.PotentiallyExecuted() {
		return false
	}
	for _, target := range [...]error{
		gocql.ErrNoConnections, gocql.ErrNoConnectionsInPool, gocql.ErrNoPool, gocql.ErrHostDown,
		gocql.ErrNoStreams, gocql.ErrConnectionClosed, gocql.ErrNoConnectionsStarted,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// passes reports an error that another node, or a later time, may not have.
func passes(err error) bool {
	var e serverError
	if errors.As(err, &e) {
		switch e.GetCode() {
		case gocql.ErrCodeUnavailable, gocql.ErrCodeOverloaded, gocql.ErrCodeBootstrapping, gocql.ErrCodeReadTimeout, gocql.ErrCodeReadFailure:
			return true
		}
		return false
	}
	return isLost(err)
}

// isLost reports an end of the connection in the middle of a conversation.
func isLost(err error) bool {
	for _, target := range [...]error{
		net.ErrClosed, io.EOF, io.ErrUnexpectedEOF, gocql.ErrConnectionClosed, gocql.ErrTimeoutNoResponse, gocql.ErrSessionClosed,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return errors.As(err, new(net.Error))
}

// Classify goes by the code of the protocol. The server's text is shown, since it
// speaks of the caller's own statement; errors of connecting are told in our
// words, since theirs name hosts and users.
func (b *Backend) Classify(err error) driver.Failure {
	var own *athena.Error
	var connecting *unreachable
	var e serverError
	st := &statementError{}
	errors.As(err, &st)
	switch {
	case err == nil:
		return driver.Failure{}
	case errors.As(err, &own):
		return driver.Failure{Code: own.Code, Message: own.Message, Details: own.Details}
	case errors.Is(err, context.Canceled):
		return driver.Failure{Code: athena.CodeCancelled}
	case errors.As(err, &connecting):
		return classifyConnect(connecting)
	case errors.Is(err, context.DeadlineExceeded):
		return driver.Failure{Code: athena.CodeTimeout}
	case errors.As(err, &e):
		return classifyServer(st.analysis, e)
	case notSent(err):
		return driver.Failure{Code: athena.CodeBackendUnavailable, Message: "no node of the cluster can be reached", NoEffect: true}
	case isLost(err):
		return st.analysis.unknown(driver.Failure{Code: athena.CodeBackendUnavailable, Message: "the connection to the cluster was lost"})
	}
	return driver.Failure{}
}

// classifyConnect is for errors before a session was there. gocql gives their
// text only.
func classifyConnect(err *unreachable) driver.Failure {
	f := driver.Failure{Code: athena.CodeBackendUnavailable, Message: "the cluster cannot be reached", NoEffect: true}
	switch text := strings.ToLower(err.Error()); {
	case err.why != "":
		f.Message = err.why
	case strings.Contains(text, "password"), strings.Contains(text, "credentials"), strings.Contains(text, "authenticat"):
		f.Message = "the cluster refused the login; check username and password"
	case strings.Contains(text, "was filtered"):
		f.Message = "no contact point that answers is in the datacenter of the connection"
	case strings.Contains(text, gocql.ErrNoConnectionsStarted.Error()):
		f.Message = "the cluster answers and no connection could be set up; check that the keyspace of the connection exists, and that the addresses that nodes tell of each other can be reached"
	case strings.Contains(text, "tls:"), strings.Contains(text, "x509:"):
		f.Message = "the cluster's certificate is not trusted, or it does not speak TLS"
	}
	return f
}

// A verdict is what a code of the protocol means. NoEffect of the classification
// is more: it takes the statement into account (invariant 3).
type verdict struct {
	name string
	code athena.Code
	// refused: the coordinator answers so before it begins. unsure: a write may have
	// been made, or may still be.
	refused, unsure bool
}

var verdicts = map[int]verdict{
	gocql.ErrCodeServer:          {"SERVER_ERROR", athena.CodeQueryFailed, false, true},
	gocql.ErrCodeProtocol:        {"PROTOCOL_ERROR", athena.CodeInternal, false, true},
	gocql.ErrCodeCredentials:     {"BAD_CREDENTIALS", athena.CodeBackendUnavailable, true, false},
	gocql.ErrCodeUnavailable:     {"UNAVAILABLE", athena.CodeBackendUnavailable, true, false},
	gocql.ErrCodeOverloaded:      {"OVERLOADED", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeBootstrapping:   {"IS_BOOTSTRAPPING", athena.CodeBackendUnavailable, true, false},
	gocql.ErrCodeTruncate:        {"TRUNCATE_ERROR", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeWriteTimeout:    {"WRITE_TIMEOUT", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeReadTimeout:     {"READ_TIMEOUT", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeReadFailure:     {"READ_FAILURE", athena.CodeQueryFailed, false, true},
	gocql.ErrCodeFunctionFailure: {"FUNCTION_FAILURE", athena.CodeQueryFailed, false, false},
	gocql.ErrCodeWriteFailure:    {"WRITE_FAILURE", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeCDCWriteFailure: {"CDC_WRITE_FAILURE", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeCASWriteUnknown: {"CAS_WRITE_UNKNOWN", athena.CodeBackendUnavailable, false, true},
	gocql.ErrCodeSyntax:          {"SYNTAX_ERROR", athena.CodeQueryFailed, false, false},
	gocql.ErrCodeUnauthorized:    {"UNAUTHORIZED", athena.CodeQueryFailed, false, false},
	gocql.ErrCodeInvalid:         {"INVALID", athena.CodeQueryFailed, false, false},
	gocql.ErrCodeConfig:          {"CONFIG_ERROR", athena.CodeQueryFailed, false, false},
	gocql.ErrCodeAlreadyExists:   {"ALREADY_EXISTS", athena.CodeConflict, false, false},
	gocql.ErrCodeUnprepared:      {"UNPREPARED", athena.CodeBackendUnavailable, true, false},
}

func classifyServer(a analysis, e serverError) driver.Failure {
	v, known := verdicts[e.GetCode()]
	if limited := (*gocql.RequestErrRateLimitReached)(nil); errors.As(e, &limited) {
		v, known = verdict{"RATE_LIMIT", athena.CodeBackendUnavailable, limited.RejectedByCoordinator, !limited.RejectedByCoordinator}, true
	}
	if !known {
		v = verdict{"UNKNOWN", athena.CodeQueryFailed, false, true}
	}
	f := driver.Failure{Code: v.code, Message: clip(e.GetMessage()), Details: map[string]any{"cql_code": v.name, "cql_number": e.GetCode()}}
	for name, value := range facts(e) {
		f.Details[name] = value
	}
	switch {
	case v.code == athena.CodeBackendUnavailable && a.Effect == driver.Read:
		f.NoEffect = true
	case v.refused:
		// Of several partitions some may have been written before one was refused.
		f.NoEffect = a.single
	case v.unsure:
		f = a.unknown(f)
	}
	return f
}

// unknown says of a write that it may have been made. One that cannot be made
// again is not to look like one that can.
func (a analysis) unknown(f driver.Failure) driver.Failure {
	if a.Effect == driver.Read {
		f.NoEffect = true
		return f
	}
	if f.Details == nil {
		f.Details = map[string]any{}
	}
	f.Code = athena.CodeBackendUnavailable
	f.Details["effect"] = athena.EffectUnknown
	return f
}

// facts are the parts of an error that help to mend what caused it.
func facts(e serverError) map[string]any {
	replicas := func(c gocql.Consistency, received, wanted int) map[string]any {
		return map[string]any{"consistency": c.String(), "replicas_answered": received, "replicas_needed": wanted}
	}
	switch e := e.(type) {
	case *gocql.RequestErrUnavailable:
		return map[string]any{"consistency": e.Consistency.String(), "replicas_alive": e.Alive, "replicas_needed": e.Required}
	case *gocql.RequestErrWriteTimeout:
		m := replicas(e.Consistency, e.Received, e.BlockFor)
		m["write_type"] = e.WriteType
		return m
	case *gocql.RequestErrReadTimeout:
		return replicas(e.Consistency, e.Received, e.BlockFor)
	case *gocql.RequestErrWriteFailure:
		m := replicas(e.Consistency, e.Received, e.BlockFor)
		m["write_type"], m["replicas_failed"] = e.WriteType, e.NumFailures
		return m
	case *gocql.RequestErrReadFailure:
		m := replicas(e.Consistency, e.Received, e.BlockFor)
		m["replicas_failed"] = e.NumFailures
		return m
	case *gocql.RequestErrCASWriteUnknown:
		return replicas(e.Consistency, e.Received, e.BlockFor)
	case *gocql.RequestErrAlreadyExists:
		return map[string]any{"keyspace": e.Keyspace, "table": e.Table}
	}
	return nil
}
