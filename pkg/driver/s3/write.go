package s3

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// WriteObject stores what fits into one part in one request, and more in parts.
func (b *Backend) WriteObject(ctx context.Context, key string, body io.Reader, w driver.ObjectWrite) (driver.Object, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return driver.Object{}, err
	}
	if w, err = w.Clean(); err != nil {
		return driver.Object{}, err
	}
	var first part
	defer func() { first.release() }()
	switch err := first.fill(body, partSize(b.limits.part, w.Bytes, 1)); {
	case errors.Is(err, io.EOF):
		if err := length(first.size, w); err != nil {
			return driver.Object{}, err
		}
		return b.put(ctx, key, full, &first, w)
	case err != nil:
		return driver.Object{}, unread(ctx, err)
	}
	// A condition that does not hold already is found before the body is sent.
	if err := b.holds(ctx, key, w); err != nil {
		return driver.Object{}, err
	}
	s, err := b.beginUpload(ctx, key, w, true)
	if err != nil {
		return driver.Object{}, err
	}
	s.filling, first = first, part{}
	staged, err := s.copy(ctx, body, w)
	var o driver.Object
	if err == nil {
		o, err = b.complete(ctx, key, s.mark, s.upload, staged.Parts, staged.Bytes, w)
	}
	if err != nil { // invariant 4; the listing of uploads has what cannot be aborted now
		_ = s.Discard(ctx)
		return driver.Object{}, err
	}
	return o, nil
}

// copy sends body behind what the stage holds.
func (s *stage) copy(ctx context.Context, body io.Reader, w driver.ObjectWrite) (driver.StagedObject, error) {
	for {
		err := s.usable()
		if err == nil {
			err = s.send()
		}
		if err != nil {
			return driver.StagedObject{}, err
		}
		switch err := s.filling.fill(body, partSize(s.b.limits.part, s.known, s.next)); {
		case errors.Is(err, io.EOF):
			if err := length(s.bytes+s.filling.size, w); err != nil {
				return driver.StagedObject{}, err
			}
			return s.Stage(ctx)
		case err != nil:
			return driver.StagedObject{}, unread(ctx, err)
		}
	}
}

// length refuses a body of another length than was announced.
func length(got int64, w driver.ObjectWrite) error {
	if w.Bytes > 0 && got != w.Bytes {
		return athena.Errorf(athena.CodeInvalidRequest, "the body has %d bytes, and %d were announced; nothing was stored", got, w.Bytes).At("body")
	}
	return nil
}

// unread is for an error of the body that was to be stored.
func unread(ctx context.Context, err error) error {
	var own *athena.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &own):
		return err
	}
	return athena.Wrap(athena.CodeInvalidRequest, err, "the body could not be read to its end; nothing was stored").At("body")
}

// put stores a part as an object.
func (b *Backend) put(ctx context.Context, key, full string, p *part, w driver.ObjectWrite) (driver.Object, error) {
	metadata, mark := w.Metadata, ""
	if w.IfNoneMatch || w.IfMatch != "" {
		metadata, mark = marked(metadata) // a repetition must be told from another's
	}
	in := &awss3.PutObjectInput{
		Bucket: &b.bucket, Key: &full, Body: p, ContentLength: &p.size, ContentType: orNil(w.ContentType), Metadata: metadata,
		IfMatch: quoted(w.IfMatch), IfNoneMatch: star(w.IfNoneMatch),
	}
	var out *awss3.PutObjectOutput
	err := b.withSums(func(sums bool) (err error) {
		in.ChecksumCRC32C = nil
		if sums {
			in.ChecksumCRC32C = orNil(p.checksum())
		}
		if _, err := p.Seek(0, io.SeekStart); err != nil {
			return err
		}
		out, err = b.client.PutObject(ctx, in, b.unsigned)
		return err
	})
	if err != nil {
		if mark != "" && isCondition(err) {
			if o, ok := b.ours(ctx, key, mark); ok {
				return o, nil
			}
		}
		return driver.Object{}, b.unmatched(ctx, key, w, err)
	}
	return driver.Object{
		Key: key, Bytes: p.size, ETag: bare(value(out.ETag)), ContentType: w.ContentType, Metadata: shown(w.Metadata),
		Checksum: checksum(out.ChecksumCRC32C, out.ChecksumCRC64NVME, out.ChecksumSHA256, out.ChecksumCRC32),
	}, nil
}

// unmatched is failed for a write on a condition: that there is no object to
// match is a condition that does not hold.
func (b *Backend) unmatched(ctx context.Context, key string, w driver.ObjectWrite, err error) error {
	if code, _ := codeOf(err); w.IfMatch != "" && code == "NoSuchKey" {
		return athena.Wrap(athena.CodeConflict, err, "object %q is not the one with the ETag %.80q", key, w.IfMatch).At("if_match")
	}
	return b.failed(ctx, err)
}

// holds asks whether the conditions of a write hold now.
func (b *Backend) holds(ctx context.Context, key string, w driver.ObjectWrite) error {
	if !w.IfNoneMatch && w.IfMatch == "" {
		return nil
	}
	o, err := b.Object(ctx, key)
	switch there := err == nil; {
	case err != nil && athena.CodeOf(err) != athena.CodeNotFound:
		return err
	case w.IfNoneMatch && there:
		return athena.Errorf(athena.CodeConflict, "object %q is there already", key).At("key")
	case w.IfMatch != "" && (!there || o.ETag != w.IfMatch):
		return athena.Errorf(athena.CodeConflict, "object %q is not the one with the ETag %.80q", key, w.IfMatch).At("if_match")
	}
	return nil
}

// CopyObject has the server copy, in parts where the object is large.
func (b *Backend) CopyObject(ctx context.Context, from, to string, w driver.ObjectWrite) (driver.Object, error) {
	full, err := driver.CleanKey(b.prefix, to)
	if err != nil {
		return driver.Object{}, athena.AsError(err).At("to")
	}
	source, err := driver.CleanKey(b.prefix, from)
	if err != nil {
		return driver.Object{}, athena.AsError(err).At("from")
	}
	if w, err = w.Clean(); err != nil {
		return driver.Object{}, err
	}
	head, err := b.head(ctx, from)
	if err != nil {
		if e := athena.AsError(err); e.Code == athena.CodeNotFound {
			return driver.Object{}, e.At("from")
		}
		return driver.Object{}, err
	}
	// Not all servers look at conditions of a copy; this finds most of what they
	// would.
	if err := b.holds(ctx, to, w); err != nil {
		return driver.Object{}, err
	}
	if from == to && w.ContentType == "" && len(w.Metadata) == 0 {
		return objectOf(to, head), nil // S3 refuses a copy that changes nothing
	}
	w = likeSource(w, head)
	if value(head.ContentLength) > b.limits.copyWhole {
		return b.copyParts(ctx, source, to, head, w)
	}
	metadata, mark := w.Metadata, ""
	if w.IfNoneMatch || w.IfMatch != "" {
		metadata, mark = marked(metadata)
	}
	out, err := b.client.CopyObject(ctx, &awss3.CopyObjectInput{
		Bucket: &b.bucket, Key: &full, CopySource: b.source(source), CopySourceIfMatch: head.ETag,
		IfMatch: quoted(w.IfMatch), IfNoneMatch: star(w.IfNoneMatch),
		MetadataDirective: types.MetadataDirectiveReplace, ContentType: orNil(w.ContentType), Metadata: metadata,
		CacheControl: head.CacheControl, ContentDisposition: head.ContentDisposition,
		ContentEncoding: head.ContentEncoding, ContentLanguage: head.ContentLanguage,
	}, b.slow)
	if err != nil {
		if mark != "" && isCondition(err) {
			if o, ok := b.ours(ctx, to, mark); ok {
				return o, nil
			}
		}
		return driver.Object{}, b.unmatched(ctx, to, w, err)
	}
	o := driver.Object{Key: to, Bytes: value(head.ContentLength), ContentType: w.ContentType, Metadata: shown(w.Metadata)}
	if r := out.CopyObjectResult; r != nil {
		o.ETag, o.Modified = bare(value(r.ETag)), value(r.LastModified).UTC()
		o.Checksum = checksum(r.ChecksumCRC32C, r.ChecksumCRC64NVME, r.ChecksumSHA256, r.ChecksumCRC32)
	}
	return o, nil
}

// likeSource gives a copy what its source has, but for what w has. A name that w
// gives replaces the source's.
func likeSource(w driver.ObjectWrite, head *awss3.HeadObjectOutput) driver.ObjectWrite {
	if w.ContentType == "" {
		w.ContentType = value(head.ContentType)
	}
	metadata := map[string]string{}
	maps.Copy(metadata, shown(head.Metadata))
	maps.Copy(metadata, w.Metadata)
	w.Metadata = metadata
	return w
}

// source names an object as the source of a copy: encoded once, its slashes
// left.
func (b *Backend) source(full string) *string {
	segments := strings.Split(full, "/")
	for i, s := range segments {
		segments[i] = strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
	}
	text := b.bucket + "/" + strings.Join(segments, "/")
	return &text
}

// copyParts has the server copy ranges. It answers for what it copies, so there
// are no checksums.
func (b *Backend) copyParts(ctx context.Context, source, to string, head *awss3.HeadObjectOutput, w driver.ObjectWrite) (driver.Object, error) {
	bytes := value(head.ContentLength)
	s, err := b.beginUpload(ctx, to, w, false)
	if err != nil {
		return driver.Object{}, err
	}
	size := partSize(b.limits.copyPart, bytes, 1)
	parts := make([]string, (bytes+size-1)/size)
	for i := range parts {
		s.uploads.Go(func() error {
			number, from := int32(i+1), int64(i)*size
			out, err := b.client.UploadPartCopy(s.ctx, &awss3.UploadPartCopyInput{
				Bucket: &b.bucket, Key: &s.key, UploadId: &s.upload, PartNumber: &number,
				CopySource: b.source(source), CopySourceIfMatch: head.ETag,
				CopySourceRange: rangeOf(driver.ObjectRead{From: from, To: min(from+size, bytes)}),
			}, b.slow)
			if err != nil {
				return b.failed(s.ctx, err)
			}
			if r := out.CopyPartResult; r != nil {
				parts[i] = bare(value(r.ETag))
			}
			return nil
		})
	}
	err = s.uploads.Wait()
	var o driver.Object
	if err == nil {
		o, err = b.complete(ctx, to, s.mark, s.upload, parts, bytes, w)
	}
	if err != nil {
		_ = s.Discard(ctx)
		return driver.Object{}, err
	}
	return o, nil
}

// DeleteObjects removes objects, a thousand in a request where the server can.
func (b *Backend) DeleteObjects(ctx context.Context, keys ...string) error {
	full := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if full[i], err = driver.CleanKey(b.prefix, key); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(full, maxPage) {
		err := errSingly
		if len(batch) > 1 {
			err = b.deleteBatch(ctx, batch)
		}
		if code, status := codeOf(err); err == errSingly || code == "NotImplemented" || status == http.StatusNotImplemented {
			err = b.deleteSingly(ctx, batch)
		}
		if err != nil {
			return b.failed(ctx, err)
		}
	}
	return nil
}

var errSingly = errors.New("s3: delete one by one")

func (b *Backend) deleteSingly(ctx context.Context, full []string) error {
	for _, key := range full {
		_, err := b.client.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: &b.bucket, Key: &key})
		if code, status := codeOf(err); code == "NoSuchKey" || status == http.StatusNotFound && code != "NoSuchBucket" {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) deleteBatch(ctx context.Context, full []string) error {
	quiet := true
	in := &awss3.DeleteObjectsInput{Bucket: &b.bucket, Delete: &types.Delete{Quiet: &quiet}}
	for _, key := range full {
		in.Delete.Objects = append(in.Delete.Objects, types.ObjectIdentifier{Key: &key})
	}
	out, err := b.client.DeleteObjects(ctx, in, digested)
	if err != nil {
		return err
	}
	for _, e := range out.Errors {
		if code := value(e.Code); code != "NoSuchKey" {
			return &smithy.GenericAPIError{Code: code, Message: value(e.Message)}
		}
	}
	return nil
}

// digested has the request carry a Content-MD5, which every server takes for a
// deletion of many, in place of a checksum of a newer kind, which some refuse.
func digested(o *awss3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		for _, step := range []struct {
			remove func(string) (any, error)
			id     string
		}{
			{func(id string) (any, error) { return stack.Initialize.Remove(id) }, "AWSChecksum:SetupInputContext"},
			{func(id string) (any, error) { return stack.Build.Remove(id) }, "AWSChecksum:RequestMetricsTracking"},
			{func(id string) (any, error) { return stack.Finalize.Remove(id) }, "AWSChecksum:ComputeInputPayloadChecksum"},
			{func(id string) (any, error) { return stack.Finalize.Remove(id) }, "addInputChecksumTrailer"},
		} {
			_, _ = step.remove(step.id) // what is not there need not be removed
		}
		return smithyhttp.AddContentChecksumMiddleware(stack)
	})
}

// PresignRead signs a GET.
func (b *Backend) PresignRead(ctx context.Context, key string, expires time.Duration) (driver.Presigned, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return driver.Presigned{}, err
	}
	until, err := b.until(ctx, expires)
	if err != nil {
		return driver.Presigned{}, err
	}
	signed, err := b.presign.PresignGetObject(ctx, &awss3.GetObjectInput{Bucket: &b.bucket, Key: &full}, awss3.WithPresignExpires(expires))
	if err != nil {
		return driver.Presigned{}, b.failed(ctx, err)
	}
	return driver.Presigned{Method: signed.Method, URL: signed.URL, Headers: toSend(signed.SignedHeader), Expires: until}, nil
}

// PresignWrite signs a PUT, with its conditions, type and metadata.
func (b *Backend) PresignWrite(ctx context.Context, key string, expires time.Duration, w driver.ObjectWrite) (driver.Presigned, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return driver.Presigned{}, err
	}
	if w, err = w.Clean(); err != nil {
		return driver.Presigned{}, err
	}
	until, err := b.until(ctx, expires)
	if err != nil {
		return driver.Presigned{}, err
	}
	in := &awss3.PutObjectInput{
		Bucket: &b.bucket, Key: &full, ContentType: orNil(w.ContentType), Metadata: w.Metadata,
		IfMatch: quoted(w.IfMatch), IfNoneMatch: star(w.IfNoneMatch),
	}
	if w.Bytes > 0 {
		in.ContentLength = &w.Bytes
	}
	signed, err := b.presign.PresignPutObject(ctx, in, awss3.WithPresignExpires(expires))
	if err != nil {
		return driver.Presigned{}, b.failed(ctx, err)
	}
	return driver.Presigned{Method: signed.Method, URL: signed.URL, Headers: toSend(signed.SignedHeader), Expires: until}, nil
}

// until is when a URL that is signed now expires: no later than the credentials.
func (b *Backend) until(ctx context.Context, expires time.Duration) (time.Time, error) {
	if err := driver.CheckPresign(expires); err != nil {
		return time.Time{}, err
	}
	keys, err := b.client.Options().Credentials.Retrieve(ctx)
	if err != nil {
		return time.Time{}, b.failed(ctx, err)
	}
	until := time.Now().Add(expires).UTC().Truncate(time.Second)
	if keys.CanExpire && keys.Expires.Before(until) {
		until = keys.Expires.UTC()
	}
	return until, nil
}

// toSend are the headers that were signed, but for those that any client sends.
func toSend(signed http.Header) map[string]string {
	var h map[string]string
	for name, values := range signed {
		if name = http.CanonicalHeaderKey(name); name == "Host" || name == "Content-Length" {
			continue
		}
		if h == nil {
			h = map[string]string{}
		}
		h[name] = strings.Join(values, ",")
	}
	return h
}
