// Package storage is the route family of objects: what a client's bucket holds
// below its prefix. Bodies are streamed both ways and never held whole. It asks
// the driver through the road and knows no engine.
package storage

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Signer signs cursors; *secret.Keyring is one.
type Signer interface {
	Sign(purpose string, data []byte) []byte
}

// Config is what the family works with. Both must be set.
type Config struct {
	Dispatcher *dispatch.Dispatcher
	Cursors    Signer
}

// Family is the routes under /storage.
type Family struct{ cfg Config }

// New makes the family.
func New(cfg Config) *Family { return &Family{cfg} }

const (
	objects = "/storage/objects"
	object  = objects + "/*key"
)

// Register adds the routes to r.
func (f *Family) Register(r gin.IRouter) {
	r.GET(objects, f.list)
	r.GET(object, f.get)
	r.HEAD(object, f.head)
	r.PUT(object, f.put)
	r.DELETE(object, f.remove)
	r.POST("/storage/copy", f.copy)
	r.POST("/storage/presign", f.presign)
}

// Streams are the routes whose bodies have no most size: how long one may take
// is bounded by how long it may stand still.
func (f *Family) Streams() []string { return []string{http.MethodPut + " " + object} }

var (
	reads   = dispatch.Op{Family: "storage", Right: auth.Objects, Access: auth.Read, Needs: []athena.Capability{athena.ObjectRead}}
	writes  = dispatch.Op{Family: "storage", Right: auth.Objects, Needs: []athena.Capability{athena.ObjectWrite}}
	changes = dispatch.Op{Family: "storage", Right: auth.Objects, Needs: []athena.Capability{athena.ObjectWrite, athena.ObjectRead}}
)

// road takes the road, with what is wrong with the request judged before it.
func road[B, R any](c *gin.Context, f *Family, op dispatch.Op, bad error, do func(context.Context, B) (R, error)) (R, envelope.Meta, error) {
	var meta envelope.Meta
	if bad != nil {
		var none R
		return none, meta, bad
	}
	res, err := dispatch.Do(c.Request.Context(), f.cfg.Dispatcher, op, c.GetHeader(middleware.HeaderClient),
		func(ctx context.Context, call dispatch.Call, b B) (R, error) {
			meta = envelope.Of(call.Client)
			return do(ctx, b)
		})
	return res, meta, err
}

// brief bounds an operation that moves no bodies.
func brief(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Minute)
}

// key is the object that the path names. Its escapes are undone once. An escaped
// slash is refused: not all that stand between a caller and here keep it apart
// from a plain one.
func key(c *gin.Context) (string, error) {
	_, escaped, _ := strings.Cut(c.Request.URL.EscapedPath(), objects+"/")
	if strings.Contains(strings.ToLower(escaped), "%2f") {
		return "", athena.Errorf(athena.CodeInvalidRequest, `key %.120q has an escaped "/"; write the slashes of a key as they are, and a "%%" as %%25`, escaped).At("key")
	}
	k, err := url.PathUnescape(escaped)
	if err != nil {
		return "", athena.Errorf(athena.CodeInvalidRequest, "key %.120q is not escaped as a path is", escaped).At("key")
	}
	_, err = driver.CleanKey("", k)
	return k, err
}

// named reads the key of a route that has no parameters.
func named(c *gin.Context) (string, error) {
	k, err := key(c)
	if err == nil {
		err = params.None(c)
	}
	return k, err
}

// page is one page of objects, and of prefixes that stand for several.
type page struct {
	Objects  []driver.Object `json:"objects"`
	Prefixes []string        `json:"prefixes"`
}

func (f *Family) list(c *gin.Context) {
	q := params.Of(c)
	l := driver.ObjectList{Prefix: q.String("prefix"), Delimiter: q.String("delimiter"), Limit: q.Int("limit", 100, 1, 1000)}
	if _, err := driver.CleanPrefix("", l.Prefix); err != nil {
		q.Refuse(err)
	}
	scope := fmt.Sprintf("%q %q %q ", c.GetHeader(middleware.HeaderClient), l.Prefix, l.Delimiter)
	l.After = f.cursor(q, scope)
	found, meta, err := road(c, f, reads, q.Err(), func(ctx context.Context, b driver.ObjectReader) (driver.ObjectPage, error) {
		ctx, cancel := brief(ctx)
		defer cancel()
		return b.Objects(ctx, l)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	shown := page{found.Objects, found.Prefixes}
	if shown.Objects == nil {
		shown.Objects = []driver.Object{}
	}
	if shown.Prefixes == nil {
		shown.Prefixes = []string{}
	}
	if found.Next != "" {
		meta.NextCursor = base64.RawURLEncoding.EncodeToString(append(f.mac(scope, found.Next), found.Next...))
	}
	envelope.OK(c, fmt.Sprintf("%d objects, %d prefixes", len(shown.Objects), len(shown.Prefixes)), shown, meta)
}

const macSize = 16 // 128 bits cannot be guessed

// cursor reads the engine's own out of what the last page gave: it holds a MAC
// over it and what was asked for.
func (f *Family) cursor(q *params.Query, scope string) string {
	text := q.String("cursor")
	if text == "" {
		return ""
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) <= macSize || !hmac.Equal(f.mac(scope, string(raw[macSize:])), raw[:macSize]) {
		q.Refuse(athena.Errorf(athena.CodeInvalidRequest, "cursor is not one that this list gave for this client, prefix and delimiter; begin again without it").At("cursor"))
		return ""
	}
	return string(raw[macSize:])
}

func (f *Family) mac(scope, cursor string) []byte {
	return f.cfg.Cursors.Sign("api/storage cursor", []byte(scope+cursor))[:macSize]
}

func (f *Family) remove(c *gin.Context) {
	k, bad := named(c)
	_, meta, err := road(c, f, writes, bad, func(ctx context.Context, b driver.ObjectWriter) (struct{}, error) {
		ctx, cancel := brief(ctx)
		defer cancel()
		return struct{}{}, b.DeleteObjects(ctx, k)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("object %s is gone", k), map[string]string{"key": k}, meta)
}

// fields are how an object is written, where a body says it.
type fields struct {
	ContentType string            `json:"content_type,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	IfNoneMatch bool              `json:"if_none_match,omitempty"` // nothing must be there
	IfMatch     string            `json:"if_match,omitempty"`      // an ETag
}

func (b fields) write() (driver.ObjectWrite, error) {
	return driver.ObjectWrite{ContentType: b.ContentType, Metadata: b.Metadata, IfNoneMatch: b.IfNoneMatch, IfMatch: strings.Trim(b.IfMatch, `"`)}.Clean()
}

func (f *Family) copy(c *gin.Context) {
	var body struct {
		From string `json:"from"`
		To   string `json:"to"`
		fields
	}
	bad := envelope.Decode(c, &body)
	w, err := body.write()
	for _, check := range []func() error{
		func() error { return params.None(c) },
		func() error { return clean("from", body.From) },
		func() error { return clean("to", body.To) },
		func() error { return err },
	} {
		if bad == nil {
			bad = check()
		}
	}
	made, meta, err := road(c, f, changes, bad, func(ctx context.Context, b driver.ObjectWriter) (driver.Object, error) {
		return b.CopyObject(ctx, body.From, body.To, w)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("object %s was copied to %s", body.From, body.To), made, meta)
}

// clean refuses a key at the field that has it.
func clean(field, key string) error {
	if _, err := driver.CleanKey("", key); err != nil {
		return athena.AsError(err).At(field)
	}
	return nil
}

func (f *Family) presign(c *gin.Context) {
	var body struct {
		Method  string          `json:"method"`
		Key     string          `json:"key"`
		Expires athena.Duration `json:"expires"`
		fields
	}
	bad := envelope.Decode(c, &body)
	if body.Expires == 0 {
		body.Expires = athena.Duration(15 * time.Minute)
	}
	w, err := body.write()
	for _, check := range []func() error{
		func() error { return params.None(c) },
		func() error { return clean("key", body.Key) },
		func() error { return driver.CheckPresign(body.Expires.Std()) },
		func() error { return err },
		func() error {
			switch body.Method {
			case http.MethodPut:
				return nil
			case http.MethodGet:
				if w.ContentType != "" || len(w.Metadata) > 0 || w.IfNoneMatch || w.IfMatch != "" {
					return athena.Errorf(athena.CodeInvalidRequest, "content_type, metadata and conditions are for PUT").At("method")
				}
				return nil
			}
			return athena.Errorf(athena.CodeInvalidRequest, "method is %.40q; it must be GET or PUT", body.Method).At("method")
		},
	} {
		if bad == nil {
			bad = check()
		}
	}
	var signed driver.Presigned
	var meta envelope.Meta
	if body.Method == http.MethodPut {
		signed, meta, err = road(c, f, writes, bad, func(ctx context.Context, b driver.ObjectWriter) (driver.Presigned, error) {
			return b.PresignWrite(ctx, body.Key, body.Expires.Std(), w)
		})
	} else {
		signed, meta, err = road(c, f, reads, bad, func(ctx context.Context, b driver.ObjectReader) (driver.Presigned, error) {
			return b.PresignRead(ctx, body.Key, body.Expires.Std())
		})
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("whoever has this URL may %s object %s until it expires", strings.ToLower(signed.Method), body.Key), signed, meta)
}
