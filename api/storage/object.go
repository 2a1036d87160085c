package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Headers of objects.
const (
	HeaderMeta     = "X-Athena-Meta-"
	HeaderChecksum = "X-Athena-Checksum"
)

func (f *Family) head(c *gin.Context) {
	k, bad := named(c)
	o, _, err := road(c, f, reads, bad, func(ctx context.Context, b driver.ObjectReader) (driver.Object, error) {
		ctx, cancel := brief(ctx)
		defer cancel()
		return b.Object(ctx, k)
	})
	switch {
	case err != nil:
		envelope.Fail(c, err)
	case known(c, o):
		c.Header("ETag", quote(o.ETag))
		c.Status(http.StatusNotModified)
	default:
		describe(c, o)
		c.Header("Content-Length", strconv.FormatInt(o.Bytes, 10))
		c.Status(http.StatusOK)
	}
}

// describe sets the headers of an answer that is an object. A browser must make
// nothing of it but a file.
func describe(c *gin.Context, o driver.Object) {
	h := c.Writer.Header()
	contentType := o.ContentType
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", "attachment")
	h.Set("Accept-Ranges", "bytes")
	if o.ETag != "" {
		h.Set("ETag", quote(o.ETag))
	}
	if !o.Modified.IsZero() {
		h.Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	}
	if o.Checksum != "" {
		h.Set(HeaderChecksum, o.Checksum)
	}
	for name, value := range o.Metadata {
		h.Set(HeaderMeta+name, value)
	}
}

// known reports whether the caller has this object already.
func known(c *gin.Context, o driver.Object) bool {
	return slices.ContainsFunc(strings.Split(c.GetHeader("If-None-Match"), ","), func(tag string) bool {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		return tag != "" && (tag == "*" || tag == quote(o.ETag))
	})
}

func quote(etag string) string { return `"` + etag + `"` }

// get answers with an object, or a part of it. It streams on the road, so that
// the backend is there until the last byte.
func (f *Family) get(c *gin.Context) {
	k, bad := named(c)
	r, ranged, err := rangeOf(c)
	if bad == nil {
		bad = err
	}
	match, err := etag(c, "If-Match")
	if bad == nil {
		bad = err
	}
	_, _, err = road(c, f, reads, bad, func(ctx context.Context, b driver.ObjectReader) (struct{}, error) {
		if c.GetHeader("If-None-Match") != "" {
			o, err := b.Object(ctx, k)
			if err != nil {
				return struct{}{}, err
			}
			if known(c, o) {
				c.Header("ETag", quote(o.ETag))
				c.Status(http.StatusNotModified)
				return struct{}{}, nil
			}
		}
		body, ranged, err := openRange(ctx, b, k, r, ranged, match, c.GetHeader("If-Range"))
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, errors.Join(send(c, body, ranged), body.Close())
	})
	var beyond *athena.Error
	switch {
	case err == nil:
	case errors.As(err, &beyond) && beyond.Details["field"] == "range" && !c.Writer.Written():
		if size, ok := beyond.Details["bytes"].(int64); ok {
			c.Header("Content-Range", fmt.Sprintf("bytes */%d", size))
		}
		envelope.FailAs(c, http.StatusRequestedRangeNotSatisfiable, err)
	default:
		envelope.Fail(c, err)
	}
}

// openRange opens what was asked for. A range that was asked for of another
// object than there is (If-Range) is the whole of it.
func openRange(ctx context.Context, b driver.ObjectReader, k string, r driver.ObjectRead, ranged bool, match, ifRange string) (driver.ObjectBody, bool, error) {
	r.IfMatch = match
	if !ranged || ifRange == "" {
		body, err := b.ReadObject(ctx, k, r)
		return body, ranged, err
	}
	whole := driver.ObjectRead{IfMatch: match}
	tag, strong := strings.CutPrefix(ifRange, `"`)
	if tag = strings.TrimSuffix(tag, `"`); !strong || match != "" && match != tag {
		body, err := b.ReadObject(ctx, k, whole)
		return body, false, err
	}
	r.IfMatch = tag
	body, err := b.ReadObject(ctx, k, r)
	if athena.CodeOf(err) == athena.CodeConflict || isConflict(b, err) {
		body, err = b.ReadObject(ctx, k, whole)
		return body, false, err
	}
	return body, true, err
}

// isConflict asks the backend what its own error means.
func isConflict(b driver.ObjectReader, err error) bool {
	backend, ok := b.(driver.Backend)
	return err != nil && ok && backend.Classify(err).Code == athena.CodeConflict
}

// send streams a body. What breaks off is visibly broken, since its length was
// told before.
func send(c *gin.Context, body driver.ObjectBody, ranged bool) error {
	if ranged && body.From == body.To {
		return athena.Errorf(athena.CodeInvalidRequest, "the range is not within the object, which has %d bytes", body.Bytes).At("range").With("bytes", body.Bytes)
	}
	describe(c, body.Object)
	c.Header("Content-Length", strconv.FormatInt(body.To-body.From, 10))
	status := http.StatusOK
	if ranged {
		status = http.StatusPartialContent
		c.Header("Content-Range", fmt.Sprintf("bytes %d-%d/%d", body.From, body.To-1, body.Bytes))
	}
	buffer := make([]byte, 128<<10)
	// What cannot be read from its beginning is an error that can still be told.
	n, err := io.ReadFull(body, buffer[:min(int64(len(buffer)), body.To-body.From)])
	if err != nil && !errors.Is(err, io.EOF) {
		for name := range c.Writer.Header() {
			if strings.HasPrefix(name, HeaderMeta) || name == "Content-Length" || name == "Content-Range" || name == "Content-Disposition" || name == "Etag" || name == "Last-Modified" || name == HeaderChecksum {
				c.Writer.Header().Del(name)
			}
		}
		return err
	}
	c.Status(status)
	c.Writer.WriteHeaderNow()
	if _, err := c.Writer.Write(buffer[:n]); err != nil {
		return gone(err)
	}
	_, err = io.CopyBuffer(onlyWriter{c.Writer}, onlyReader{body}, buffer)
	return err
}

// gone is the error for a reader that went away.
func gone(err error) error {
	return athena.Wrap(athena.CodeCancelled, err, "the reader of the object went away")
}

type onlyWriter struct{ io.Writer }

func (w onlyWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		err = gone(err)
	}
	return n, err
}

type onlyReader struct{ io.Reader }

// rangeOf reads the header Range: one range of bytes. Units that are not bytes
// are as if there were none (RFC 9110, 14.2).
func rangeOf(c *gin.Context) (r driver.ObjectRead, ranged bool, err error) {
	header := c.GetHeader("Range")
	spec, bytes := strings.CutPrefix(header, "bytes=")
	if header == "" || !bytes {
		return r, false, nil
	}
	refuse := func() (driver.ObjectRead, bool, error) {
		return r, false, athena.Errorf(athena.CodeInvalidRequest, "Range is %.80q; give one range, such as bytes=0-499, bytes=500- or bytes=-500", header).At("Range")
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	from, fromErr := strconv.ParseUint(first, 10, 62)
	to, toErr := strconv.ParseUint(last, 10, 62)
	switch {
	case !ok || strings.Contains(spec, ","):
		return refuse()
	case first == "" && toErr == nil:
		if to == 0 {
			return r, true, athena.Errorf(athena.CodeInvalidRequest, "Range asks for the last 0 bytes").At("range")
		}
		return driver.ObjectRead{From: -int64(to)}, true, nil
	case fromErr == nil && last == "":
		return driver.ObjectRead{From: int64(from)}, true, nil
	case fromErr == nil && toErr == nil && from <= to:
		return driver.ObjectRead{From: int64(from), To: int64(to) + 1}, true, nil
	}
	return refuse()
}

// etag reads a header that holds one ETag; empty if it is absent.
func etag(c *gin.Context, name string) (string, error) {
	header := c.GetHeader(name)
	if header == "" {
		return "", nil
	}
	tag, opened := strings.CutPrefix(header, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	if !opened || !closed || tag == "" || strings.Contains(tag, `"`) {
		return "", athena.Errorf(athena.CodeInvalidRequest, `%s is %.80q; give one ETag as it was read, in quotes`, name, header).At(name)
	}
	return tag, nil
}

// put stores the request's body as it comes.
func (f *Family) put(c *gin.Context) {
	k, bad := named(c)
	w, err := writeOf(c)
	if bad == nil {
		bad = err
	}
	o, meta, err := road(c, f, writes, bad, func(ctx context.Context, b driver.ObjectWriter) (driver.Object, error) {
		return b.WriteObject(ctx, k, c.Request.Body, w)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	c.Header("ETag", quote(o.ETag))
	envelope.OK(c, fmt.Sprintf("object %s has %d bytes", k, o.Bytes), o, meta)
}

// writeOf reads the headers of a PUT.
func writeOf(c *gin.Context) (driver.ObjectWrite, error) {
	h := c.Request.Header
	w := driver.ObjectWrite{ContentType: h.Get("Content-Type"), Bytes: max(0, c.Request.ContentLength)}
	for name, values := range h {
		meta, ok := strings.CutPrefix(name, HeaderMeta)
		if !ok {
			continue
		}
		if len(values) > 1 {
			return w, athena.Errorf(athena.CodeInvalidRequest, "the header %.80q is given %d times; give it once", name, len(values)).At(name)
		}
		if w.Metadata == nil {
			w.Metadata = map[string]string{}
		}
		w.Metadata[meta] = values[0]
	}
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return w, athena.Errorf(athena.CodeInvalidRequest, "Content-Encoding is %.80q; an object is stored as it is sent, so leave the header out", enc).At("Content-Encoding")
	}
	switch none := h.Get("If-None-Match"); none {
	case "":
	case "*":
		w.IfNoneMatch = true
	default:
		return w, athena.Errorf(athena.CodeInvalidRequest, "If-None-Match is %.80q; only * is understood in a change", none).At("If-None-Match")
	}
	var err error
	if w.IfMatch, err = etag(c, "If-Match"); err != nil {
		return w, err
	}
	return w.Clean()
}
