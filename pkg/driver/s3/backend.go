// Package s3 is the driver for S3 and what speaks its protocol, on the AWS SDK.
//
// A Backend is one bucket, and within it one prefix. Keys are relative to the
// prefix, which stands for a folder: "lake" and "lake/" are one. The package
// knows nothing of clients, capabilities or envelopes.
//
// Invariants:
//
//  1. No key leads out of the prefix (driver.CleanKey).
//  2. Nothing larger than a few parts is held in memory, whatever its size, and
//     what is sent can be sent again as it is.
//  3. A write that is made on a condition, or staged, carries a mark that no
//     other has. So its repetition is told from another's write (mark).
//  4. An upload that does not become an object is aborted.
//  5. A server that says nothing for a while is given up, a reader or writer who
//     is slow is not (conn).
//  6. No error text leaves through Classify that names the host or a key of
//     access.
package s3

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

var (
	_ driver.Backend      = (*Backend)(nil)
	_ driver.ObjectReader = (*Backend)(nil)
	_ driver.ObjectWriter = (*Backend)(nil)
	_ driver.ObjectStager = (*Backend)(nil)
	_ driver.Provisioner  = (*Backend)(nil)
	_ driver.Identifier   = (*Backend)(nil)
)

// Driver opens S3 backends.
func Driver() driver.Driver { return driver.New(Open) }

const (
	defaultRegion = "us-east-1"
	// attempts are made of a request, with growing pauses of at most maxPause.
	attempts = 4
	maxPause = 5 * time.Second
	// abortGrace bounds the abort of an upload that failed.
	abortGrace = 30 * time.Second
)

// limits are the sizes and times of a Backend; tests make them small.
type limits struct {
	part      int64         // bytes of a part, to begin with
	copyWhole int64         // the most bytes that the server copies in one request
	copyPart  int64         // bytes of a part of a larger copy
	silence   time.Duration // of a server that is given up
	// patience is silence for requests whose work at the server grows with the
	// object: a copy, the assembly of parts.
	patience time.Duration
}

func defaults() limits {
	return limits{part: 8 << 20, copyWhole: 5 << 30, copyPart: 512 << 20, silence: time.Minute, patience: 15 * time.Minute}
}

// Backend is one bucket, or the part of it below a prefix.
type Backend struct {
	client  *awss3.Client
	presign *awss3.PresignClient
	bucket  string
	prefix  string // empty, or it ends in "/"
	region  string
	limits  limits
	http    []*http.Client
	// plain says that the server refuses checksums of its own kind, so that they
	// are left out.
	plain atomic.Bool
	// Options of requests: slow for those that take patience, once for those that
	// are made a single time, unsigned for those that have a body.
	slow, once, unsigned func(*awss3.Options)
}

// Open reaches the bucket, which need not be there yet, and fails if the server
// does not answer or does not know the keys. Secrets must be the secrets
// themselves, not references to them.
func Open(ctx context.Context, conn athena.S3Conn) (*Backend, error) {
	return open(ctx, conn, defaults())
}

func open(ctx context.Context, conn athena.S3Conn, l limits) (*Backend, error) {
	b := &Backend{bucket: conn.Bucket, limits: l}
	var err error
	if b.prefix, err = folder(conn.Prefix); err != nil {
		return nil, err
	}
	endpoint, err := checkEndpoint(conn.Endpoint)
	if err != nil {
		return nil, err
	}
	cfg, err := awsConfig(ctx, conn)
	if err != nil {
		return nil, err
	}
	protect, err := tlsConfig(conn.TLS, cfg)
	if err != nil {
		return nil, err
	}
	quick, patient := httpClient(protect, l.silence), httpClient(protect, l.patience)
	b.http = []*http.Client{quick, patient}
	b.region = cfg.Region
	b.client = awss3.NewFromConfig(cfg, func(o *awss3.Options) {
		o.HTTPClient = quick
		o.UsePathStyle = conn.PathStyle
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
		o.Retryer = retry.NewStandard(func(s *retry.StandardOptions) { s.MaxAttempts, s.MaxBackoff = attempts, maxPause })
		// Checksums are given where they are known to help, in headers: many
		// servers refuse those that trail.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
		o.ContinueHeaderThresholdBytes = -1
	})
	b.presign = awss3.NewPresignClient(b.client)
	b.slow = func(o *awss3.Options) { o.HTTPClient = patient }
	b.once = func(o *awss3.Options) { o.Retryer = aws.NopRetryer{} }
	b.unsigned = func(o *awss3.Options) {
		if !strings.HasPrefix(endpoint, "http:") {
			// TLS protects the body, and its checksum says that it arrived: to
			// hash it once more would cost more than to send it.
			o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
		}
	}
	err = b.Ping(ctx)
	var missing *types.NoSuchBucket
	if err != nil && !as(err, &missing) { // Provision can make it
		return nil, errors.Join(err, b.Close(ctx))
	}
	return b, nil
}

// folder is a prefix as it stands before keys.
func folder(prefix string) (string, error) {
	if prefix == "" || prefix == "/" {
		return "", nil
	}
	prefix = strings.TrimSuffix(prefix, "/") + "/"
	if _, err := driver.CleanKey("", prefix); err != nil {
		return "", athena.Errorf(athena.CodeInvalidRequest, `connection.prefix is %.120q; write it as names parted by "/", without "." and ".."`, prefix).At("connection.prefix")
	}
	return prefix, nil
}

func checkEndpoint(endpoint string) (string, error) {
	if endpoint == "" {
		return "", nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", athena.Errorf(athena.CodeInvalidRequest, "connection.endpoint is not the URL of a server; write it as https://host:port, without user and query").At("connection.endpoint")
	}
	return strings.TrimSuffix(endpoint, "/"), nil
}

// awsConfig has the region and the credentials: those of the connection, or what
// the environment, shared files and the machine's role give. With keys of its
// own a connection does not depend on the environment.
func awsConfig(ctx context.Context, conn athena.S3Conn) (aws.Config, error) {
	if conn.AccessKeyID != "" {
		region := conn.Region
		if region == "" {
			region = defaultRegion
		}
		keys := credentials.NewStaticCredentialsProvider(conn.AccessKeyID, conn.SecretAccessKey.Reveal(), "")
		return aws.Config{Region: region, Credentials: aws.NewCredentialsCache(keys)}, nil
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(conn.Region), config.WithDefaultRegion(defaultRegion))
	if err != nil {
		return cfg, athena.Wrap(athena.CodeBackendUnavailable, err, "the AWS configuration of this process cannot be read; mend it, or give connection.access_key_id and connection.secret_access_key").At("connection.access_key_id")
	}
	cfg.Credentials = keychain{cfg.Credentials}
	return cfg, nil
}

// Ping lists one object, for which the fewest rights are needed. A server that
// knows the keys and refuses that answers too.
func (b *Backend) Ping(ctx context.Context) error {
	one := int32(1)
	_, err := b.client.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: &b.prefix, MaxKeys: &one}, b.once)
	if code, _ := codeOf(err); code == "AccessDenied" {
		return nil
	}
	return b.failed(ctx, err)
}

// Close closes connections that are idle; others close when they are done.
func (b *Backend) Close(context.Context) error {
	for _, c := range b.http {
		c.CloseIdleConnections()
	}
	return nil
}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Provision makes a bucket.
func (b *Backend) Provision(ctx context.Context, p driver.Provision) (driver.Provisioned, error) {
	if p.Kind != "bucket" {
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, "kind is %.40q; S3 has buckets to provision", p.Kind).At("kind")
	}
	if !bucketName.MatchString(p.Name) || strings.Contains(p.Name, "..") {
		return driver.Provisioned{}, athena.Errorf(athena.CodeInvalidRequest, `name is %.80q; a bucket's name has 3 to 63 lower case letters, digits, "-" and "."`, p.Name).At("name")
	}
	// Asked first, since some regions answer a second creation like the first.
	_, err := b.client.HeadBucket(ctx, &awss3.HeadBucketInput{Bucket: &p.Name})
	if err == nil {
		return driver.Provisioned{}, nil
	}
	if _, status := codeOf(err); status != http.StatusNotFound {
		return driver.Provisioned{}, b.failed(ctx, err)
	}
	in := &awss3.CreateBucketInput{Bucket: &p.Name}
	if b.region != defaultRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(b.region)}
	}
	_, err = b.client.CreateBucket(ctx, in)
	var mine *types.BucketAlreadyOwnedByYou
	if errors.As(err, &mine) {
		return driver.Provisioned{}, nil
	}
	return driver.Provisioned{Created: err == nil}, b.failed(ctx, err)
}

// protocol is the version of the API, the only one that there is.
const protocol = "2006-03-01"

// Identity says what the server calls itself.
func (b *Backend) Identity(ctx context.Context) (driver.Identity, error) {
	id := driver.Identity{Product: "S3", Version: protocol, Facts: map[string]string{"region": b.region, "bucket": "present"}}
	out, err := b.client.HeadBucket(ctx, &awss3.HeadBucketInput{Bucket: &b.bucket})
	product := serverOf(err)
	if err == nil {
		product = serverIn(out.ResultMetadata)
	}
	switch _, status := codeOf(err); {
	case err == nil:
	case status == http.StatusNotFound:
		id.Facts["bucket"] = "missing"
	case status == http.StatusForbidden:
		id.Facts["bucket"] = "not shown to these keys"
	default:
		return driver.Identity{}, b.failed(ctx, err)
	}
	if product != "" {
		id.Product = product
	}
	return id, nil
}

// serverOf is the server's name of itself in the answer that err is.
func serverOf(err error) string {
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.Response == nil {
		return ""
	}
	return clip(answer.Response.Header.Get("Server"))
}

func serverIn(m middleware.Metadata) string {
	answer, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response)
	if !ok {
		return ""
	}
	return clip(answer.Header.Get("Server"))
}
