package system

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
)

// page is a document that never changes while the process lives.
type page struct {
	kind, policy, etag string
	body               []byte
}

func newPage(kind, policy string, body []byte) page {
	sum := sha256.Sum256(body)
	return page{kind, policy, `"` + hex.EncodeToString(sum[:8]) + `"`, body}
}

func (p *page) serve(c *gin.Context) {
	if err := params.None(c); err != nil {
		envelope.Fail(c, err)
		return
	}
	c.Header("Cache-Control", "no-cache")
	c.Header("ETag", p.etag)
	if p.policy != "" {
		c.Header("Content-Security-Policy", p.policy)
	}
	if strings.Contains(c.GetHeader("If-None-Match"), p.etag) {
		c.Status(http.StatusNotModified)
		return
	}
	c.Data(http.StatusOK, p.kind, p.body)
}
