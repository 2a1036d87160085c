package sdk

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const headerMeta = "X-Athena-Meta-"

// Objects lists one page of the client's objects. After is the Next of the page
// before.
func (c *Client) Objects(ctx context.Context, l driver.ObjectList) (driver.ObjectPage, error) {
	q := optional("prefix", l.Prefix)
	for name, value := range map[string]string{"delimiter": l.Delimiter, "cursor": l.After} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if l.Limit != 0 {
		q.Set("limit", strconv.Itoa(l.Limit))
	}
	r := get("/storage/objects", q)
	r.client = c.name
	page, meta, err := answer[driver.ObjectPage](ctx, c.api, r)
	page.Next = meta.NextCursor
	return page, err
}

// objectPath is the path of an object: its slashes stay as they are.
func objectPath(key string) string {
	segments := strings.Split(key, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/storage/objects/" + strings.Join(segments, "/")
}

// Object describes one object.
func (c *Client) Object(ctx context.Context, key string) (driver.Object, error) {
	r := get(objectPath(key), nil)
	r.method, r.client = http.MethodHead, c.name
	resp, err := c.api.send(ctx, r)
	if err != nil {
		return driver.Object{}, headless(err, key)
	}
	resp.Body.Close()
	return objectOf(key, resp), nil
}

// headless words the error of a HEAD, whose answer has no body that could.
func headless(err error, key string) error {
	e := athena.AsError(err)
	if e.Code != athena.CodeNotFound {
		return err
	}
	named := athena.Wrap(e.Code, err, "object %q does not exist, or its client does not", key)
	named.Details = e.Details
	return named
}

func objectOf(key string, resp *http.Response) driver.Object {
	h := resp.Header
	o := driver.Object{
		Key: key, Bytes: max(0, resp.ContentLength), ETag: strings.Trim(h.Get("ETag"), `"`),
		ContentType: h.Get("Content-Type"), Checksum: h.Get("X-Athena-Checksum"),
	}
	o.Modified, _ = time.Parse(http.TimeFormat, h.Get("Last-Modified"))
	for name, values := range h {
		if meta, ok := strings.CutPrefix(name, headerMeta); ok {
			if o.Metadata == nil {
				o.Metadata = map[string]string{}
			}
			o.Metadata[strings.ToLower(meta)] = values[0]
		}
	}
	return o
}

// ReadObject opens an object. The body must be closed; reading it fails if it
// breaks off.
func (c *Client) ReadObject(ctx context.Context, key string, read driver.ObjectRead) (driver.ObjectBody, error) {
	r := get(objectPath(key), nil)
	r.client, r.header = c.name, http.Header{"Accept": {"*/*"}}
	ranged := read.From != 0 || read.To != 0
	switch {
	case read.From < 0:
		r.header.Set("Range", fmt.Sprintf("bytes=%d", read.From))
	case read.To > 0:
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", read.From, read.To-1))
	case ranged:
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", read.From))
	}
	if read.IfMatch != "" {
		r.header.Set("If-Match", `"`+read.IfMatch+`"`)
	}
	resp, err := c.api.send(ctx, r)
	if err != nil {
		return driver.ObjectBody{}, err
	}
	body := driver.ObjectBody{ReadCloser: unbroken{ctx, resp.Body}, Object: objectOf(key, resp), To: max(0, resp.ContentLength)}
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &body.From, &body.To, &body.Bytes); err == nil {
		body.To++
	}
	return body, nil
}

// unbroken says in the API's words that a body broke off.
type unbroken struct {
	ctx context.Context
	io.ReadCloser
}

func (u unbroken) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = lost(u.ctx, err)
	}
	return n, err
}

// WriteObject stores body under key. It is sent once: where the answer is lost,
// the object may be there or not.
func (c *Client) WriteObject(ctx context.Context, key string, body io.Reader, w driver.ObjectWrite) (driver.Object, error) {
	r := request{method: http.MethodPut, path: objectPath(key), client: c.name, header: http.Header{}, stream: body, size: -1}
	if w.Bytes > 0 {
		r.size = w.Bytes
	}
	contentType := w.ContentType
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	r.header.Set("Content-Type", contentType)
	for name, value := range w.Metadata {
		r.header.Set(headerMeta+name, value)
	}
	if w.IfNoneMatch {
		r.header.Set("If-None-Match", "*")
	}
	if w.IfMatch != "" {
		r.header.Set("If-Match", `"`+w.IfMatch+`"`)
	}
	o, _, err := answer[driver.Object](ctx, c.api, r)
	return o, err
}

// DeleteObject removes an object. One that is not there is no error.
func (c *Client) DeleteObject(ctx context.Context, key string) error {
	_, _, err := answer[struct{}](ctx, c.api, request{method: http.MethodDelete, path: objectPath(key), client: c.name, safe: true})
	return err
}

// CopyObject has the engine copy an object. What w has is added to what from has.
func (c *Client) CopyObject(ctx context.Context, from, to string, w driver.ObjectWrite) (driver.Object, error) {
	body := map[string]any{"from": from, "to": to}
	written(body, w)
	o, _, err := answer[driver.Object](ctx, c.api, request{method: http.MethodPost, path: "/storage/copy", client: c.name, body: body})
	return o, err
}

// written adds how an object is written to a body.
func written(body map[string]any, w driver.ObjectWrite) {
	if w.ContentType != "" {
		body["content_type"] = w.ContentType
	}
	if len(w.Metadata) > 0 {
		body["metadata"] = w.Metadata
	}
	if w.IfNoneMatch {
		body["if_none_match"] = true
	}
	if w.IfMatch != "" {
		body["if_match"] = w.IfMatch
	}
}

// PresignRead returns a URL that reads an object without a key until it expires.
func (c *Client) PresignRead(ctx context.Context, key string, expires time.Duration) (driver.Presigned, error) {
	return c.presign(ctx, http.MethodGet, key, expires, driver.ObjectWrite{})
}

// PresignWrite returns a URL that stores an object without a key until it
// expires.
func (c *Client) PresignWrite(ctx context.Context, key string, expires time.Duration, w driver.ObjectWrite) (driver.Presigned, error) {
	return c.presign(ctx, http.MethodPut, key, expires, w)
}

func (c *Client) presign(ctx context.Context, method, key string, expires time.Duration, w driver.ObjectWrite) (driver.Presigned, error) {
	body := map[string]any{"method": method, "key": key, "expires": athena.Duration(expires)}
	written(body, w)
	p, _, err := answer[driver.Presigned](ctx, c.api, request{method: http.MethodPost, path: "/storage/presign", client: c.name, body: body, safe: true})
	return p, err
}
