package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const maxPage = 1000

// Objects lists one page.
func (b *Backend) Objects(ctx context.Context, l driver.ObjectList) (driver.ObjectPage, error) {
	prefix, err := driver.CleanPrefix(b.prefix, l.Prefix)
	if err != nil {
		return driver.ObjectPage{}, err
	}
	if l.Limit < 0 || l.Limit > maxPage {
		return driver.ObjectPage{}, athena.Errorf(athena.CodeInvalidRequest, "limit is %d; it must be between 1 and %d", l.Limit, maxPage).At("limit")
	}
	limit := int32(l.Limit)
	if limit == 0 {
		limit = maxPage
	}
	out, err := b.client.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{
		Bucket: &b.bucket, Prefix: &prefix, Delimiter: orNil(l.Delimiter), ContinuationToken: orNil(l.After), MaxKeys: &limit,
		// XML cannot carry every key that somebody else may have made.
		EncodingType: types.EncodingTypeUrl,
	})
	if err != nil {
		return driver.ObjectPage{}, b.failed(ctx, err)
	}
	encoded := out.EncodingType == types.EncodingTypeUrl
	page := driver.ObjectPage{Objects: []driver.Object{}}
	for _, o := range out.Contents {
		// A folder's own mark has the prefix for its key, and none below it.
		key, ok := strings.CutPrefix(decoded(value(o.Key), encoded), b.prefix)
		if !ok || key == "" {
			continue
		}
		page.Objects = append(page.Objects, driver.Object{Key: key, Bytes: value(o.Size), Modified: value(o.LastModified).UTC(), ETag: bare(value(o.ETag))})
	}
	for _, p := range out.CommonPrefixes {
		if key, ok := strings.CutPrefix(decoded(value(p.Prefix), encoded), b.prefix); ok && key != "" {
			page.Prefixes = append(page.Prefixes, key)
		}
	}
	if value(out.IsTruncated) {
		page.Next = value(out.NextContinuationToken)
	}
	return page, nil
}

// Object describes one object.
func (b *Backend) Object(ctx context.Context, key string) (driver.Object, error) {
	head, err := b.head(ctx, key)
	if err != nil {
		return driver.Object{}, err
	}
	return objectOf(key, head), nil
}

func (b *Backend) head(ctx context.Context, key string) (*awss3.HeadObjectOutput, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return nil, err
	}
	out, err := b.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &b.bucket, Key: &full, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, b.missing(ctx, key, err)
	}
	return out, nil
}

// missing is failed for a request about one object. The answer to a HEAD does
// not tell a missing object from a missing bucket.
func (b *Backend) missing(ctx context.Context, key string, err error) error {
	if code, status := codeOf(err); code == "NoSuchKey" || status == http.StatusNotFound && code != "NoSuchBucket" {
		return athena.Wrap(athena.CodeNotFound, err, "object %q does not exist", key).At("key")
	}
	return b.failed(ctx, err)
}

func objectOf(key string, h *awss3.HeadObjectOutput) driver.Object {
	return driver.Object{
		Key: key, Bytes: value(h.ContentLength), Modified: value(h.LastModified).UTC(), ETag: bare(value(h.ETag)),
		ContentType: value(h.ContentType), Metadata: shown(h.Metadata),
		Checksum: checksum(h.ChecksumCRC32C, h.ChecksumCRC64NVME, h.ChecksumSHA256, h.ChecksumCRC32),
	}
}

// shown is metadata without the driver's own.
func shown(metadata map[string]string) map[string]string {
	var m map[string]string
	for name, value := range metadata {
		if name = strings.ToLower(name); strings.HasPrefix(name, driver.ReservedMetadata) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = value
	}
	return m
}

func checksum(crc32c, crc64, sha256, crc32 *string) string {
	for _, c := range []struct {
		name string
		sum  *string
	}{{"crc32c", crc32c}, {"crc64nvme", crc64}, {"sha256", sha256}, {"crc32", crc32}} {
		if value(c.sum) != "" {
			return c.name + "=" + *c.sum
		}
	}
	return ""
}

// ReadObject opens an object. Where the connection is lost on the way, the rest
// is asked for, of the same object.
func (b *Backend) ReadObject(ctx context.Context, key string, r driver.ObjectRead) (driver.ObjectBody, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return driver.ObjectBody{}, err
	}
	if _, err := (driver.ObjectWrite{IfMatch: r.IfMatch}).Clean(); err != nil {
		return driver.ObjectBody{}, err
	}
	in := &awss3.GetObjectInput{Bucket: &b.bucket, Key: &full, IfMatch: quoted(r.IfMatch)}
	switch {
	case r.From < 0 || r.From > 0 || r.To != 0:
		// What is wrong whatever the size is said before asking.
		if _, _, err := r.Window(1<<63 - 1); err != nil {
			return driver.ObjectBody{}, err
		}
		in.Range = rangeOf(r)
	default:
		in.ChecksumMode = types.ChecksumModeEnabled // of a part there is none to check
	}
	out, err := b.client.GetObject(ctx, in)
	if _, status := codeOf(err); status == http.StatusRequestedRangeNotSatisfiable {
		return b.emptyRange(ctx, key, r)
	}
	if r.IfMatch != "" && err == nil && bare(value(out.ETag)) != r.IfMatch { // a server that does not look at it
		return driver.ObjectBody{}, errors.Join(athena.Errorf(athena.CodeConflict, "object %q is not the one with the ETag %.80q", key, r.IfMatch).At("if_match"), out.Body.Close())
	}
	if err != nil {
		return driver.ObjectBody{}, b.missing(ctx, key, err)
	}
	o := driver.Object{
		Key: key, Bytes: value(out.ContentLength), Modified: value(out.LastModified).UTC(), ETag: bare(value(out.ETag)),
		ContentType: value(out.ContentType), Metadata: shown(out.Metadata),
		Checksum: checksum(out.ChecksumCRC32C, out.ChecksumCRC64NVME, out.ChecksumSHA256, out.ChecksumCRC32),
	}
	whole := out.ContentRange == nil
	if !whole {
		if o.Bytes, err = sizeOf(*out.ContentRange); err != nil {
			return driver.ObjectBody{}, errors.Join(err, out.Body.Close())
		}
	}
	from, to, err := r.Window(o.Bytes)
	if err != nil {
		return driver.ObjectBody{}, errors.Join(err, out.Body.Close())
	}
	body := &body{b: b, ctx: ctx, key: full, etag: o.ETag, at: from, to: to, open: out.Body}
	if whole && from > 0 { // a server that knows no ranges
		if _, err := io.CopyN(io.Discard, out.Body, from); err != nil {
			return driver.ObjectBody{}, errors.Join(b.failed(ctx, err), out.Body.Close())
		}
	}
	return driver.ObjectBody{ReadCloser: body, Object: o, From: from, To: to}, nil
}

func rangeOf(r driver.ObjectRead) *string {
	text := fmt.Sprintf("bytes=%d-", r.From)
	switch {
	case r.From < 0:
		text = fmt.Sprintf("bytes=%d", r.From)
	case r.To > 0:
		text = fmt.Sprintf("bytes=%d-%d", r.From, r.To-1)
	}
	return &text
}

// sizeOf reads the object's size from bytes 0-9/100.
func sizeOf(contentRange string) (int64, error) {
	_, size, _ := strings.Cut(contentRange, "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 {
		return 0, &failure{fmt.Errorf("s3: the answer has the Content-Range %.80q", contentRange)}
	}
	return n, nil
}

// emptyRange answers for a range that the server finds nothing in. Some do so
// where it counts from the end and begins before the object.
func (b *Backend) emptyRange(ctx context.Context, key string, r driver.ObjectRead) (driver.ObjectBody, error) {
	head, err := b.head(ctx, key)
	if err != nil {
		return driver.ObjectBody{}, err
	}
	o := objectOf(key, head)
	from, to, err := r.Window(o.Bytes)
	switch {
	case err != nil:
		return driver.ObjectBody{}, err
	case from != to && (r.From >= 0 || r.To != 0): // it has grown since
		return driver.ObjectBody{}, athena.Errorf(athena.CodeConflict, "object %q was replaced while it was read", key)
	case from != to:
		return b.ReadObject(ctx, key, driver.ObjectRead{From: from, To: to, IfMatch: o.ETag})
	}
	return driver.ObjectBody{ReadCloser: io.NopCloser(strings.NewReader("")), Object: o, From: from, To: to}, nil
}

// body reads an object from at to to.
type body struct {
	b      *Backend
	ctx    context.Context
	key    string
	etag   string
	at, to int64
	open   io.ReadCloser // nil once it was lost
	lost   int           // connections, since the last byte
	closed bool
}

// Read reads on, over another connection if need be.
func (r *body) Read(p []byte) (int, error) {
	for {
		switch {
		case r.closed:
			return 0, errors.New("s3: read of a closed body")
		case r.at == r.to && r.open != nil:
			return 0, r.end()
		case r.at == r.to:
			return 0, io.EOF
		}
		n, err := r.open.Read(p[:min(int64(len(p)), r.to-r.at)])
		r.at += int64(n)
		if n > 0 {
			r.lost = 0
			return n, nil // an error comes again, or does not matter
		}
		switch {
		case err == nil:
			return 0, nil
		case r.ctx.Err() != nil:
			return 0, r.ctx.Err()
		case errors.Is(err, io.EOF), isLost(err), isSilence(err):
			if err = r.again(err); err != nil {
				return 0, err
			}
		default:
			return 0, r.b.failed(r.ctx, err)
		}
	}
}

// end reads to the end of the answer, where its checksum is checked.
func (r *body) end() error {
	var one [1]byte
	n, err := r.open.Read(one[:])
	switch {
	case n > 0, errors.Is(err, io.EOF), err == nil:
		// More than was asked for is what a server without ranges sends.
		err = io.EOF
	default:
		err = r.b.failed(r.ctx, err)
	}
	return err
}

// again opens the rest, a few times.
func (r *body) again(why error) error {
	_ = r.open.Close()
	for r.lost++; r.lost < attempts; r.lost++ {
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(time.Duration(r.lost-1) * 200 * time.Millisecond):
		}
		read := driver.ObjectRead{From: r.at, To: r.to}
		out, err := r.b.client.GetObject(r.ctx, &awss3.GetObjectInput{Bucket: &r.b.bucket, Key: &r.key, IfMatch: quoted(r.etag), Range: rangeOf(read)})
		switch {
		case err == nil && bare(value(out.ETag)) != r.etag: // a server that does not look at it
			_ = out.Body.Close()
			return athena.Errorf(athena.CodeConflict, "the object was replaced while it was read")
		case err == nil && out.ContentRange != nil:
			r.open = out.Body
			return nil
		case err == nil:
			_ = out.Body.Close()
			return r.b.failed(r.ctx, why)
		case isCondition(err):
			return athena.Wrap(athena.CodeConflict, err, "the object was replaced while it was read")
		case !isLost(err) && !isSilence(err):
			return r.b.failed(r.ctx, err)
		}
		why = err
	}
	return r.b.failed(r.ctx, why)
}

// Close lets go of the connection.
func (r *body) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.open.Close()
}

// value is what p points to, or nothing.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// bare is an ETag without its quotes.
func bare(etag string) string { return strings.Trim(etag, `"`) }

func quoted(etag string) *string {
	if etag == "" {
		return nil
	}
	etag = `"` + etag + `"`
	return &etag
}

// star is the value of If-None-Match.
func star(none bool) *string {
	if !none {
		return nil
	}
	return orNil("*")
}
