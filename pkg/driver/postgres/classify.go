package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// SQLSTATEs that mean something of their own here; the rest goes by class.
const (
	queryCanceled       = "57014"
	readOnlyTransaction = "25006"
	syntaxError         = "42601"
	uniqueViolation     = "23505"
	exclusionViolation  = "23P01"
)

// statementError adds to the server's error what only the statement knows.
type statementError struct {
	err      error
	timedOut bool // its own timeout ended it
	outside  bool // it ran outside of a transaction: it may have had effects
}

// unreachable is a failure to get a connection. It hides its cause from
// errors.Is, because a dial that took too long is no deadline of the caller's.
type unreachable struct{ cause error }

func (e *unreachable) Error() string { return e.cause.Error() }

func (e *statementError) Error() string { return e.err.Error() }
func (e *statementError) Unwrap() error { return e.err }

// Classify goes by SQLSTATE. The server's text is shown, since it speaks of the
// caller's own statement; errors of connecting are told in our words, since
// theirs name host and user.
func (b *Backend) Classify(err error) driver.Failure {
	var own *athena.Error
	var connecting *unreachable
	var e *pgconn.PgError
	var network net.Error
	switch {
	case err == nil:
		return driver.Failure{}
	case errors.As(err, &own):
		return driver.Failure{Code: own.Code, Message: own.Message, Details: own.Details}
	case errors.Is(err, context.Canceled):
		return driver.Failure{Code: athena.CodeCancelled}
	case errors.As(err, &connecting):
		return classifyConnect(connecting.cause)
	case errors.Is(err, context.DeadlineExceeded):
		return driver.Failure{Code: athena.CodeTimeout}
	case errors.As(err, &e):
		return classifyServer(err, e)
	case pgconn.SafeToRetry(err):
		return driver.Failure{Code: athena.CodeBackendUnavailable, Message: "the connection to the database was lost before the statement was sent", NoEffect: true}
	case errors.As(err, &network), pgconn.Timeout(err), isLost(err):
		return driver.Failure{Code: athena.CodeBackendUnavailable, Message: "the connection to the database was lost"}
	}
	return driver.Failure{}
}

// classifyConnect is for errors before a session was there.
func classifyConnect(err error) driver.Failure {
	f := driver.Failure{Code: athena.CodeBackendUnavailable, Message: "the database cannot be reached", NoEffect: true}
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return f
	}
	f.Details = map[string]any{"sqlstate": e.Code}
	switch {
	case strings.HasPrefix(e.Code, "28"):
		f.Message = "the database refused the login; check user, password and pg_hba.conf"
	case e.Code == "3D000":
		f.Message = "the database does not exist"
	case e.Code == "53300":
		f.Message = "the database has no free connection slots"
	case e.Code == "57P03":
		f.Message = "the database is starting up or shutting down"
	}
	return f
}

func classifyServer(err error, e *pgconn.PgError) driver.Failure {
	var st *statementError
	if !errors.As(err, &st) {
		st = &statementError{}
	}
	f := driver.Failure{Code: athena.CodeQueryFailed, Message: clip(e.Message), Details: details(e)}
	switch code := e.Code; {
	case code == uniqueViolation, code == exclusionViolation:
		f.Code = athena.CodeConflict
	case code == queryCanceled && st.timedOut:
		f.Code, f.Message = athena.CodeTimeout, "the statement took longer than its timeout"
	case code == queryCanceled:
		f.Code = athena.CodeCancelled
	case code == "25P03", code == "25P04", code == "57P05": // idle or transaction too long
		f.Code = athena.CodeTimeout
	case code == "53300", strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"):
		f.Code = athena.CodeBackendUnavailable
	case code == "40001", code == "40P01", code == "55P03":
		// A serialization failure, a deadlock, a lock that was not to be had.
		f.NoEffect = !st.outside
	}
	return f
}

// details are the parts of a server's error that help to mend the statement.
func details(e *pgconn.PgError) map[string]any {
	d := map[string]any{"sqlstate": e.Code}
	for _, part := range []struct{ key, value string }{
		{"detail", e.Detail}, {"hint", e.Hint}, {"schema", e.SchemaName}, {"table", e.TableName},
		{"column", e.ColumnName}, {"type", e.DataTypeName}, {"constraint", e.ConstraintName},
	} {
		if part.value != "" {
			d[part.key] = clip(part.value)
		}
	}
	if e.Position > 0 {
		d["position"] = e.Position
	}
	return d
}

// isLost reports an end of the stream in the middle of a conversation.
func isLost(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

var portalParameter = regexp.MustCompile(`portal(?: "[^"]*")? parameter \$(\d+)`)

// misfit finds the index of the parameter whose text the server could not read
// as the parameter's type: it says so in the error's context.
func misfit(e *pgconn.PgError) (int, bool) {
	if !strings.HasPrefix(e.Code, "22") && !strings.HasPrefix(e.Code, "23") {
		return 0, false
	}
	m := portalParameter.FindStringSubmatch(e.Where)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n - 1, err == nil && n > 0
}

// clip bounds a message of the database, which a RAISE may make as long as it
// likes.
func clip(message string) string {
	const most = 4 << 10
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most], "") + "…"
}
