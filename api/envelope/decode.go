package envelope

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Decode reads the request's body, one JSON value without unknown fields, into
// v. Errors are invalid_request with the field's path, or payload_too_large.
func Decode(c *gin.Context, v any) error {
	raw, err := Body(c)
	if err != nil {
		return err
	}
	return athena.DecodeJSON(raw, v, "")
}

// Body reads the whole body of a request that is declared as JSON, or not
// declared at all. Its size is bounded by middleware.Body.
func Body(c *gin.Context) ([]byte, error) {
	if declared := c.GetHeader("Content-Type"); declared != "" {
		name, _, err := mime.ParseMediaType(declared)
		if err != nil || name != "application/json" && !strings.HasSuffix(name, "+json") {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "Content-Type is %.80q; it must be application/json", declared).At("Content-Type")
		}
	}
	if enc := c.GetHeader("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "Content-Encoding is %.80q; send the body as it is", enc).At("Content-Encoding")
	}
	raw, err := io.ReadAll(c.Request.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, athena.Errorf(athena.CodePayloadTooLarge, "the body is larger than %d bytes, which is the most", tooLarge.Limit).
			With("limit_bytes", tooLarge.Limit)
	case err != nil:
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the body could not be read to its end")
	}
	return raw, nil
}
