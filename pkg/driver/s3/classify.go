package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// failure is an error of a request. It hides its cause from errors.Is, because a
// server that took too long is no deadline of the caller's.
type failure struct{ cause error }

func (e *failure) Error() string { return e.cause.Error() }

// failed is how a method returns the error of a request: the caller's context's
// if that is over, errors of our own as they are.
func (b *Backend) failed(ctx context.Context, err error) error {
	var own *athena.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &own):
		return own
	}
	var already *failure
	if errors.As(err, &already) {
		return already
	}
	return &failure{err}
}

// as is errors.As that looks into a failure.
func as[T error](err error, target *T) bool {
	var f *failure
	if errors.As(err, &f) {
		err = f.cause
	}
	return errors.As(err, target)
}

// codeOf is the server's own code of an error, and the HTTP status; empty and 0
// if the server did not answer.
func codeOf(err error) (code string, status int) {
	var named smithy.APIError
	if as(err, &named) {
		code = named.ErrorCode()
	}
	var answer *smithyhttp.ResponseError
	if as(err, &answer) && answer.Response != nil {
		status = answer.HTTPStatusCode()
	}
	return code, status
}

// A meaning is what a caller is told of a code.
type meaning struct {
	code    athena.Code
	message string
}

// meanings are of the codes of S3's documentation, "Error responses", and of
// what answers to HEAD, which have no body, are made of.
var meanings = map[string]meaning{
	"NoSuchKey":                          {athena.CodeNotFound, "the object does not exist"},
	"NotFound":                           {athena.CodeNotFound, "the object or the bucket does not exist"},
	"NoSuchVersion":                      {athena.CodeNotFound, "the object does not exist in that version"},
	"NoSuchUpload":                       {athena.CodeNotFound, "the upload does not exist any more"},
	"NoSuchBucket":                       {athena.CodeNotFound, "the bucket does not exist; provision it, or mend connection.bucket"},
	"PreconditionFailed":                 {athena.CodeConflict, "the object is not in the state that the request asks for"},
	"ConditionalRequestConflict":         {athena.CodeConflict, "the object is written by somebody else just now"},
	"OperationAborted":                   {athena.CodeConflict, "somebody else changes the same just now"},
	"BucketAlreadyExists":                {athena.CodeConflict, "a bucket of that name belongs to somebody else"},
	"ObjectLocked":                       {athena.CodeConflict, "the object is locked against changes"},
	"InvalidObjectState":                 {athena.CodeConflict, "the object is archived; restore it first"},
	"AccessDenied":                       {athena.CodeQueryFailed, "the bucket's policy does not allow this to the client's keys"},
	"Forbidden":                          {athena.CodeQueryFailed, "the bucket's policy does not allow this to the client's keys"},
	"AllAccessDisabled":                  {athena.CodeQueryFailed, "the bucket is closed to all access"},
	"MethodNotAllowed":                   {athena.CodeQueryFailed, "the server does not allow this"},
	"NotImplemented":                     {athena.CodeCapabilityUnsupported, "the server does not know how to do this"},
	"EntityTooLarge":                     {athena.CodePayloadTooLarge, "the object is larger than the server takes"},
	"EntityTooSmall":                     {athena.CodeInternal, "a part of the upload is smaller than the server takes"},
	"KeyTooLongError":                    {athena.CodeInvalidRequest, "the key is longer than the server takes"},
	"MetadataTooLarge":                   {athena.CodeInvalidRequest, "the metadata is larger than the server takes"},
	"InvalidBucketName":                  {athena.CodeInvalidRequest, "the bucket's name is not one that the server takes"},
	"InvalidRange":                       {athena.CodeInvalidRequest, "the range is not within the object"},
	"TooManyBuckets":                     {athena.CodeQueryFailed, "the account has as many buckets as it may have"},
	"QuotaExceeded":                      {athena.CodeQueryFailed, "the bucket holds as much as it may"},
	"XMinioStorageFull":                  {athena.CodeBackendUnavailable, "the server's storage is full"},
	"BadDigest":                          {athena.CodeBackendUnavailable, "the object was damaged on the way; nothing was stored"},
	"XAmzContentSHA256Mismatch":          {athena.CodeBackendUnavailable, "the object was damaged on the way; nothing was stored"},
	"XAmzContentChecksumMismatch":        {athena.CodeBackendUnavailable, "the object was damaged on the way; nothing was stored"},
	"IncompleteBody":                     {athena.CodeBackendUnavailable, "the object did not arrive whole; nothing was stored"},
	"InvalidAccessKeyId":                 {athena.CodeBackendUnavailable, "the server does not know connection.access_key_id"},
	"SignatureDoesNotMatch":              {athena.CodeBackendUnavailable, "the server refused the signature; check connection.secret_access_key and connection.region"},
	"InvalidToken":                       {athena.CodeBackendUnavailable, "the credentials' token is not valid"},
	"ExpiredToken":                       {athena.CodeBackendUnavailable, "the credentials have expired"},
	"RequestTimeTooSkewed":               {athena.CodeBackendUnavailable, "this machine's clock differs from the server's by too much"},
	"AuthorizationHeaderMalformed":       {athena.CodeBackendUnavailable, "the server refused the signature; check connection.region"},
	"AuthorizationQueryParametersError":  {athena.CodeBackendUnavailable, "the server refused the signature; check connection.region"},
	"PermanentRedirect":                  {athena.CodeBackendUnavailable, "the bucket is in another region; mend connection.region or connection.endpoint"},
	"IllegalLocationConstraintException": {athena.CodeBackendUnavailable, "the bucket cannot be made in this region; mend connection.region or connection.endpoint"},
	"SlowDown":                           {athena.CodeBackendUnavailable, "the server asks to slow down"},
	"Busy":                               {athena.CodeBackendUnavailable, "the server asks to slow down"},
	"ServiceUnavailable":                 {athena.CodeBackendUnavailable, "the server is not available"},
	"InternalError":                      {athena.CodeBackendUnavailable, "the server had an error of its own"},
	"RequestTimeout":                     {athena.CodeBackendUnavailable, "the server did not get the request in time"},
}

// byStatus is for codes that are not known.
func byStatus(status int) meaning {
	switch {
	case status == http.StatusNotFound:
		return meanings["NotFound"]
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return meanings["AccessDenied"]
	case status == http.StatusPreconditionFailed:
		return meanings["PreconditionFailed"]
	case status == http.StatusConflict:
		return meanings["OperationAborted"]
	case status == http.StatusRequestedRangeNotSatisfiable:
		return meanings["InvalidRange"]
	case status == http.StatusRequestEntityTooLarge:
		return meanings["EntityTooLarge"]
	case status == http.StatusTooManyRequests:
		return meanings["SlowDown"]
	case status == http.StatusNotImplemented:
		return meanings["NotImplemented"]
	case status >= 500:
		return meanings["ServiceUnavailable"]
	case status >= 400:
		return meaning{athena.CodeQueryFailed, "the server refused the request"}
	case status >= 300:
		return meanings["PermanentRedirect"]
	}
	return meaning{}
}

// Classify goes by the server's code, then by the status, then by how the
// connection failed. The server's text is not shown: it quotes keys of access
// and hosts.
func (b *Backend) Classify(err error) driver.Failure {
	var own *athena.Error
	switch {
	case err == nil:
		return driver.Failure{}
	case errors.As(err, &own):
		return driver.Failure{Code: own.Code, Message: own.Message, Details: own.Details}
	case errors.Is(err, context.Canceled):
		return driver.Failure{Code: athena.CodeCancelled}
	case errors.Is(err, context.DeadlineExceeded):
		return driver.Failure{Code: athena.CodeTimeout}
	}
	code, status := codeOf(err)
	if code == "" && status == 0 {
		return classifyNetwork(err)
	}
	m, known := meanings[code]
	if !known {
		m = byStatus(status)
	}
	f := driver.Failure{Code: m.code, Message: m.message, Details: map[string]any{}}
	if sane.MatchString(code) {
		f.Details["s3_code"] = code
	}
	if status != 0 {
		f.Details["status"] = status
	}
	// A server that refuses has done nothing; one that failed may have.
	f.NoEffect = status == http.StatusTooManyRequests || code == "SlowDown" || code == "Busy" || code == "ServiceUnavailable" || status > 0 && status < 500 && m.code == athena.CodeBackendUnavailable
	return f
}

var sane = regexp.MustCompile(`^[A-Za-z0-9.]{1,64}$`)

func classifyNetwork(err error) driver.Failure {
	unavailable := func(noEffect bool, message string) driver.Failure {
		return driver.Failure{Code: athena.CodeBackendUnavailable, Message: message, NoEffect: noEffect}
	}
	var (
		name     *net.DNSError
		op       *net.OpError
		unknown  x509.UnknownAuthorityError
		host     x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		record   tls.RecordHeaderError
		keys     *credentialsError
		overload *aws.RequestCanceledError
	)
	switch {
	case as(err, &keys):
		return unavailable(true, "this process has no AWS credentials; give connection.access_key_id and connection.secret_access_key, or set it up for the default chain")
	case as(err, &name):
		return unavailable(true, "the server's name is not known; check connection.endpoint and connection.region")
	case as(err, &unknown), as(err, &host), as(err, &invalid), as(err, &verify):
		return unavailable(true, "the server's certificate is not trusted; check connection.tls")
	case as(err, &record):
		return unavailable(true, "the server does not speak TLS; check connection.endpoint")
	case as(err, &op) && op.Op == "dial":
		return unavailable(true, "the server cannot be reached")
	case as(err, &overload):
		return driver.Failure{Code: athena.CodeCancelled}
	case isSilence(err):
		return unavailable(false, "the server did not answer in time")
	case isLost(err), as(err, &op):
		return unavailable(false, "the connection to the server was lost")
	}
	return driver.Failure{}
}

// keychain marks errors of the credential chain.
type keychain struct{ aws.CredentialsProvider }

type credentialsError struct{ error }

func (e *credentialsError) Unwrap() error { return e.error }

// Retrieve asks the chain.
func (k keychain) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := k.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}

func cause(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return f.cause
	}
	return err
}

// isSilence reports that the server was given up.
func isSilence(err error) bool {
	err = cause(err)
	var network net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}

// isLost reports the end of a connection in the middle of a conversation.
func isLost(err error) bool {
	err = cause(err)
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func clip(s string) string {
	if !sane.MatchString(strings.ReplaceAll(strings.ReplaceAll(s, "/", ""), "-", "")) {
		return ""
	}
	return s
}
