package cdc

import (
	"io"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
)

// object gives a value that was too large for its change, under the name that
// stands in its place.
func (f *Family) object(c *gin.Context) {
	if !allowed(c, reading, params.None(c)) {
		return
	}
	client := f.client(c, reading)
	if client == nil {
		return
	}
	o, err := f.cfg.Store.Object(c.Request.Context(), client.Name, c.Param("name"))
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	defer o.Close()
	c.Header("Content-Type", "application/octet-stream")
	c.Header("Content-Length", strconv.FormatUint(o.Size, 10))
	c.Status(http.StatusOK)
	if _, err := io.Copy(c.Writer, o); err != nil {
		envelope.Fail(c, err) // which breaks the connection: a part is not the whole
	}
}
