package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// inFlight is how many parts of one object are sent at once, while the next one
// fills.
const inFlight = 2

// markName is the metadata in which a write is marked (invariant 3).
const markName = driver.ReservedMetadata + "write"

// marked adds a mark to metadata.
func marked(metadata map[string]string) (map[string]string, string) {
	mark := rand.Text()
	with := map[string]string{markName: mark}
	for name, value := range metadata {
		with[name] = value
	}
	return with, mark
}

// stage is an upload in parts: S3 shows nothing of it until it is completed.
type stage struct {
	b       *Backend
	key     string // with the prefix
	name    string // without it
	upload  string
	mark    string
	known   int64 // bytes, if they are
	sums    bool  // the server keeps checksums of the parts
	begun   time.Time
	cancel  context.CancelFunc
	ctx     context.Context // of the uploads, which outlive a Write
	uploads *errgroup.Group
	filling part
	next    int // number of the part that fills
	bytes   int64

	mu    sync.Mutex
	marks []string // of the parts that were sent, in order

	staged *driver.StagedObject
	over   bool
}

// StageObject begins an upload.
func (b *Backend) StageObject(ctx context.Context, key string, w driver.ObjectWrite) (driver.ObjectStage, error) {
	if w.IfMatch != "" || w.IfNoneMatch {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "a staged object replaces what is there; conditions are for WriteObject").At("if_match")
	}
	s, err := b.beginUpload(ctx, key, w, true)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// beginUpload begins an upload whose parts have checksums, where summed and the
// server knows them.
func (b *Backend) beginUpload(ctx context.Context, key string, w driver.ObjectWrite, summed bool) (*stage, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return nil, err
	}
	if w, err = w.Clean(); err != nil {
		return nil, err
	}
	metadata, mark := marked(w.Metadata)
	in := &awss3.CreateMultipartUploadInput{Bucket: &b.bucket, Key: &full, ContentType: orNil(w.ContentType), Metadata: metadata}
	var out *awss3.CreateMultipartUploadOutput
	err = b.withSums(func(sums bool) (err error) {
		in.ChecksumAlgorithm = ""
		if sums && summed {
			in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c
		}
		out, err = b.client.CreateMultipartUpload(ctx, in)
		return err
	})
	if err != nil {
		return nil, b.failed(ctx, err)
	}
	s := &stage{
		b: b, key: full, name: key, upload: value(out.UploadId), mark: mark, known: w.Bytes,
		sums: out.ChecksumAlgorithm == types.ChecksumAlgorithmCrc32c, begun: time.Now().UTC(), next: 1,
	}
	under, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	s.uploads, s.ctx = errgroup.WithContext(under)
	s.uploads.SetLimit(inFlight)
	return s, nil
}

// withSums makes a request with checksums, and without them where the server
// does not know them: from then on all are.
func (b *Backend) withSums(request func(sums bool) error) error {
	plain := b.plain.Load()
	err := request(!plain)
	if err == nil || plain {
		return err
	}
	code, status := codeOf(err)
	refused := code == "NotImplemented" || status == http.StatusNotImplemented ||
		(code == "InvalidArgument" || code == "InvalidRequest") && strings.Contains(strings.ToLower(cause(err).Error()), "checksum")
	if !refused {
		return err
	}
	if err := request(false); err != nil {
		return err
	}
	b.plain.Store(true)
	return nil
}

var errOver = errors.New("s3: the object is staged or discarded; nothing is written to it any more")

// Write takes bytes, and waits while two parts are under way and a third is
// full.
func (s *stage) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if err := s.usable(); err != nil {
			return n, err
		}
		limit := partSize(s.b.limits.part, s.known, s.next)
		m := s.filling.append(p, limit)
		p, n = p[m:], n+m
		if s.filling.size == limit {
			if err := s.send(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (s *stage) usable() error {
	if s.over || s.staged != nil {
		return errOver
	}
	if s.ctx.Err() != nil {
		return s.wait() // the first error, which ended the others
	}
	return nil
}

// wait waits for the uploads, and returns the first error.
func (s *stage) wait() error {
	err := s.uploads.Wait()
	if err == nil {
		err = s.ctx.Err()
	}
	return err
}

// send uploads the part that was filled, once there is room in flight.
func (s *stage) send() error {
	if s.next > maxParts || s.bytes+s.filling.size > maxObject {
		return athena.Errorf(athena.CodePayloadTooLarge, "the object has more than the 10,000 parts or 5 TiB that S3 takes; write several")
	}
	p, number := s.filling, s.next
	s.filling = part{}
	s.next++
	s.bytes += p.size
	s.mu.Lock()
	s.marks = append(s.marks, "")
	s.mu.Unlock()
	s.uploads.Go(func() error {
		defer p.release()
		mark, err := s.b.uploadPart(s.ctx, s, number, &p)
		if err != nil {
			return s.b.failed(s.ctx, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.marks[number-1] = mark
		return nil
	})
	return nil
}

// uploadPart sends one part and returns its mark: the ETag, and the checksum
// where the upload has them.
func (b *Backend) uploadPart(ctx context.Context, s *stage, number int, p *part) (string, error) {
	n := int32(number)
	in := &awss3.UploadPartInput{Bucket: &b.bucket, Key: &s.key, UploadId: &s.upload, PartNumber: &n, Body: p, ContentLength: &p.size}
	if s.sums {
		sum := p.checksum()
		in.ChecksumCRC32C = &sum
	}
	out, err := b.client.UploadPart(ctx, in, b.unsigned)
	if err != nil {
		return "", err
	}
	return partMark(value(out.ETag), value(in.ChecksumCRC32C)), nil
}

func partMark(etag, sum string) string {
	return strings.TrimSpace(bare(etag) + " " + sum)
}

// Stage sends what is left and waits for all parts. An object without bytes is
// one empty part.
func (s *stage) Stage(context.Context) (driver.StagedObject, error) {
	if s.staged != nil {
		return *s.staged, nil
	}
	if err := s.usable(); err != nil {
		return driver.StagedObject{}, err
	}
	if s.filling.size > 0 || s.next == 1 {
		if err := s.send(); err != nil {
			return driver.StagedObject{}, err
		}
	}
	if err := s.uploads.Wait(); err != nil {
		return driver.StagedObject{}, err
	}
	s.cancel()
	s.staged = &driver.StagedObject{Key: s.name, ID: stagePrefix + s.upload, Bytes: s.bytes, Mark: s.mark, Parts: s.marks, Begun: s.begun}
	return *s.staged, nil
}

// Discard aborts the upload.
func (s *stage) Discard(ctx context.Context) error {
	s.cancel()
	_ = s.uploads.Wait()
	s.filling.release()
	if s.over {
		return nil
	}
	if err := s.b.abort(ctx, s.key, s.upload); err != nil {
		return err
	}
	s.over = true
	return nil
}

// aborts is how often an upload is aborted: a part that was on its way may come
// after the first time, as S3's documentation has it.
const aborts = 4

// abort ends an upload, whatever became of ctx.
func (b *Backend) abort(ctx context.Context, key, upload string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortGrace)
	defer cancel()
	for try := 0; ; try++ {
		_, err := b.client.AbortMultipartUpload(ctx, &awss3.AbortMultipartUploadInput{Bucket: &b.bucket, Key: &key, UploadId: &upload})
		if code, status := codeOf(err); code == "NoSuchUpload" || status == http.StatusNotFound {
			return nil
		}
		if err == nil {
			if _, gone := b.client.ListParts(ctx, &awss3.ListPartsInput{Bucket: &b.bucket, Key: &key, UploadId: &upload, MaxParts: aws.Int32(1)}); gone != nil {
				return nil // or nobody can tell
			}
		}
		if try == aborts-1 || ctx.Err() != nil { // upkeep looks again
			return b.failed(ctx, err)
		}
		select {
		case <-time.After(50 * time.Millisecond << try):
		case <-ctx.Done():
		}
	}
}

// stagePrefix begins the ids of staged objects, which are those of uploads.
const stagePrefix = "upload:"

func uploadOf(s driver.StagedObject) (string, error) {
	upload, ours := strings.CutPrefix(s.ID, stagePrefix)
	if !ours || upload == "" {
		return "", athena.Errorf(athena.CodeInvalidRequest, "the id of the staged object %.120q is none of this engine's", s.Key).At("id")
	}
	return upload, nil
}

// PublishObject completes the upload.
func (b *Backend) PublishObject(ctx context.Context, s driver.StagedObject) (driver.Object, error) {
	upload, err := uploadOf(s)
	if err != nil {
		return driver.Object{}, err
	}
	if s.Mark == "" || len(s.Parts) == 0 {
		return driver.Object{}, athena.Errorf(athena.CodeInvalidRequest, "the staged object %.120q was listed; only what Stage returned can be published", s.Key).At("id")
	}
	return b.complete(ctx, s.Key, s.Mark, upload, s.Parts, s.Bytes, driver.ObjectWrite{})
}

// complete makes an object of an upload's parts, on the conditions of w.
func (b *Backend) complete(ctx context.Context, key, mark, upload string, parts []string, bytes int64, w driver.ObjectWrite) (driver.Object, error) {
	full, err := driver.CleanKey(b.prefix, key)
	if err != nil {
		return driver.Object{}, err
	}
	in := &awss3.CompleteMultipartUploadInput{
		Bucket: &b.bucket, Key: &full, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{},
		IfMatch: quoted(w.IfMatch), IfNoneMatch: star(w.IfNoneMatch),
	}
	for i, mark := range parts {
		etag, sum, _ := strings.Cut(mark, " ")
		number := int32(i + 1)
		in.MultipartUpload.Parts = append(in.MultipartUpload.Parts, types.CompletedPart{PartNumber: &number, ETag: quoted(etag), ChecksumCRC32C: orNil(sum)})
	}
	out, err := b.client.CompleteMultipartUpload(ctx, in, b.slow)
	if err == nil {
		return driver.Object{Key: key, Bytes: bytes, ETag: bare(value(out.ETag)), Checksum: checksum(out.ChecksumCRC32C, nil, nil, nil)}, nil
	}
	// It may have been completed before, and the answer was lost.
	if code, status := codeOf(err); code == "NoSuchUpload" || status == http.StatusNotFound || isCondition(err) {
		if o, ok := b.ours(ctx, key, mark); ok {
			return o, nil
		}
		if !isCondition(err) && ctx.Err() == nil && code != "NoSuchBucket" && w.IfMatch == "" {
			return driver.Object{}, athena.Wrap(athena.CodeNotFound, err, "what was staged for %q is gone, and the object is not there as it was staged", key)
		}
	}
	return driver.Object{}, b.unmatched(ctx, key, w, err)
}

// isCondition reports that a condition did not hold.
func isCondition(err error) bool {
	code, status := codeOf(err)
	return code == "PreconditionFailed" || status == http.StatusPreconditionFailed
}

// ours reports whether the object that is there was written with this mark.
func (b *Backend) ours(ctx context.Context, key, mark string) (driver.Object, bool) {
	head, err := b.head(ctx, key)
	if err != nil || head.Metadata[markName] != mark {
		return driver.Object{}, false
	}
	return objectOf(key, head), true
}

// DiscardObject aborts the upload.
func (b *Backend) DiscardObject(ctx context.Context, s driver.StagedObject) error {
	full, err := driver.CleanKey(b.prefix, s.Key)
	if err != nil {
		return err
	}
	upload, err := uploadOf(s)
	if err != nil {
		return err
	}
	return b.abort(ctx, full, upload)
}

// StagedObjects lists the uploads that are not complete.
func (b *Backend) StagedObjects(ctx context.Context, prefix string, before time.Time) ([]driver.StagedObject, error) {
	full, err := driver.CleanPrefix(b.prefix, prefix)
	if err != nil {
		return nil, err
	}
	in := &awss3.ListMultipartUploadsInput{Bucket: &b.bucket, Prefix: &full, EncodingType: types.EncodingTypeUrl}
	list := []driver.StagedObject{}
	for {
		out, err := b.client.ListMultipartUploads(ctx, in)
		if err != nil {
			return nil, b.failed(ctx, err)
		}
		encoded := out.EncodingType == types.EncodingTypeUrl
		for _, u := range out.Uploads {
			key, ok := strings.CutPrefix(decoded(value(u.Key), encoded), b.prefix)
			if !ok || u.Initiated == nil || !u.Initiated.Before(before) {
				continue
			}
			list = append(list, driver.StagedObject{Key: key, ID: stagePrefix + value(u.UploadId), Begun: u.Initiated.UTC()})
			if len(list) == maxPage {
				return list, nil
			}
		}
		key, upload := decoded(value(out.NextKeyMarker), encoded), value(out.NextUploadIdMarker)
		if out.IsTruncated == nil || !*out.IsTruncated || key == value(in.KeyMarker) && upload == value(in.UploadIdMarker) {
			return list, nil
		}
		in.KeyMarker, in.UploadIdMarker = &key, orNil(upload)
	}
}

// decoded undoes the encoding of a listing, where the server says that it made
// one.
func decoded(key string, encoded bool) string {
	if !encoded {
		return key
	}
	plain, err := url.QueryUnescape(key)
	if err != nil {
		return key
	}
	return plain
}
