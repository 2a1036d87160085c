package envelope

import (
	"net/http"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// StatusClientClosed is what a request is logged with whose caller went away;
// nobody reads it.
const StatusClientClosed = 499

// Status is the HTTP status of a code; 500 for one that is not known.
func Status(code athena.Code) int {
	if s, ok := statuses()[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Title is the code's meaning in a few words, the same for every occurrence.
func Title(code athena.Code) string { return titles()[code] }

func statuses() map[athena.Code]int {
	return map[athena.Code]int{
		athena.CodeInvalidRequest:        http.StatusBadRequest,
		athena.CodeMissingClientHeader:   http.StatusBadRequest,
		athena.CodeUnauthenticated:       http.StatusUnauthorized,
		athena.CodeForbidden:             http.StatusForbidden,
		athena.CodeCapabilityDenied:      http.StatusForbidden,
		athena.CodeClientNotFound:        http.StatusNotFound,
		athena.CodeNotFound:              http.StatusNotFound,
		athena.CodeMethodNotAllowed:      http.StatusMethodNotAllowed,
		athena.CodeConflict:              http.StatusConflict,
		athena.CodeClientInactive:        http.StatusGone,
		athena.CodeCursorExpired:         http.StatusGone,
		athena.CodePayloadTooLarge:       http.StatusRequestEntityTooLarge,
		athena.CodeCapabilityUnsupported: http.StatusUnprocessableEntity,
		athena.CodeQueryFailed:           http.StatusUnprocessableEntity,
		athena.CodeRejectedRows:          http.StatusUnprocessableEntity,
		athena.CodeSchemaChanged:         http.StatusUnprocessableEntity,
		athena.CodeIdempotencyMismatch:   http.StatusUnprocessableEntity,
		athena.CodeClientFrozen:          http.StatusLocked,
		athena.CodeTooManyRequests:       http.StatusTooManyRequests,
		athena.CodeCancelled:             StatusClientClosed,
		athena.CodeBackendUnavailable:    http.StatusServiceUnavailable,
		athena.CodeBusUnavailable:        http.StatusServiceUnavailable,
		athena.CodeTimeout:               http.StatusGatewayTimeout,
		athena.CodeInternal:              http.StatusInternalServerError,
	}
}

func titles() map[athena.Code]string {
	return map[athena.Code]string{
		athena.CodeInvalidRequest:        "The request is malformed",
		athena.CodeMissingClientHeader:   "No client is named",
		athena.CodeUnauthenticated:       "The key is missing or not valid",
		athena.CodeForbidden:             "The key may not do this",
		athena.CodeCapabilityDenied:      "The client is not granted this capability",
		athena.CodeClientNotFound:        "There is no such client",
		athena.CodeNotFound:              "There is no such thing",
		athena.CodeMethodNotAllowed:      "The route has no such method",
		athena.CodeConflict:              "The request conflicts with the present state",
		athena.CodeClientInactive:        "The client is not active",
		athena.CodeCursorExpired:         "What comes after the cursor is no longer all kept",
		athena.CodePayloadTooLarge:       "The request is too large",
		athena.CodeCapabilityUnsupported: "The engine cannot do this",
		athena.CodeQueryFailed:           "The backend refused the statement",
		athena.CodeRejectedRows:          "Too many rows of a pipeline could not go on",
		athena.CodeSchemaChanged:         "The source of a pipeline has another schema",
		athena.CodeIdempotencyMismatch:   "The idempotency key was used for another request",
		athena.CodeClientFrozen:          "The client is frozen",
		athena.CodeTooManyRequests:       "A limit is reached",
		athena.CodeCancelled:             "The request was cancelled",
		athena.CodeBackendUnavailable:    "The backend cannot be reached",
		athena.CodeBusUnavailable:        "The bus did not store it",
		athena.CodeTimeout:               "The operation took too long",
		athena.CodeInternal:              "Something went wrong inside",
	}
}
