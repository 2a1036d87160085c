// Package s3test gives tests real S3-compatible servers.
//
// Tests of one process share one server that checks signatures, each with a
// bucket of its own. A package that uses it calls Main, or Run, from its
// TestMain, which is also what makes the test's program able to be the server.
package s3test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/locals3"
)

// The keys of all servers of tests.
const (
	AccessKeyID     = "AKIAPLANTEDACCESSKEY"
	SecretAccessKey = "plantedS3cretAccessKey0123456789abcdefgh"
)

// shared is the test process's one server. It is the package's only state, and
// it is there because a testing.T cannot carry it from test to test.
var shared struct {
	main   atomic.Bool
	once   sync.Once
	server *locals3.Server
	err    error
	next   atomic.Int64
}

// Main runs the tests and stops the shared server:
//
//	func TestMain(m *testing.M) { s3test.Main(m) }
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has something else to do. It is called before
// anything else is done.
func Run(m interface{ Run() int }) int {
	locals3.Serve()
	shared.main.Store(true)
	code := m.Run()
	if s := shared.server; s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// Bucket makes a bucket on the shared server and returns how it is reached.
func Bucket(t testing.TB) athena.S3Conn {
	t.Helper()
	conn := Absent(t)
	makeBucket(t, conn)
	return conn
}

// Absent is Bucket without making it.
func Absent(t testing.TB) athena.S3Conn {
	t.Helper()
	if !shared.main.Load() {
		t.Fatal("s3test: call s3test.Main from TestMain, or the server cannot start")
	}
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.server, shared.err = locals3.Start(ctx, locals3.Config{AccessKeyID: AccessKeyID, SecretAccessKey: SecretAccessKey})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return conn(shared.server.Endpoint())
}

// Server starts a server for this test alone that it may stop and restart; its
// data outlives both. It is stopped when the test ends.
func Server(t testing.TB) (*locals3.Server, athena.S3Conn) {
	t.Helper()
	if !shared.main.Load() {
		t.Fatal("s3test: call s3test.Main from TestMain, or the server cannot start")
	}
	s, err := locals3.Start(t.Context(), locals3.Config{Dir: t.TempDir(), AccessKeyID: AccessKeyID, SecretAccessKey: SecretAccessKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	c := conn(s.Endpoint())
	makeBucket(t, c)
	return s, c
}

// Fake is a bucket of gofakes3: in memory, within the test's process, and open to
// all keys.
func Fake(t testing.TB) athena.S3Conn {
	t.Helper()
	c, _ := FakeBehind(t, func(h http.Handler) http.Handler { return h })
	return c
}

// untold takes checksums out of requests: gofakes3 keeps them, and shows them for
// the object that replaces the one that had them.
func untold(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Amz-Checksum-") {
				r.Header.Del(name)
			}
		}
		h.ServeHTTP(w, r)
	})
}

// FakeBehind is Fake with a handler in front, which may fail on purpose.
func FakeBehind(t testing.TB, front func(http.Handler) http.Handler) (athena.S3Conn, *httptest.Server) {
	t.Helper()
	srv := httptest.NewUnstartedServer(front(untold(gofakes3.New(s3mem.New()).Server())))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it answers some requests twice
	srv.Start()
	t.Cleanup(srv.Close)
	c := conn(srv.URL)
	makeBucket(t, c)
	return c, srv
}

// Seed puts an object into a bucket, by its whole name.
func Seed(t testing.TB, c athena.S3Conn, name string, body []byte) {
	t.Helper()
	_, err := client(c).PutObject(t.Context(), &s3.PutObjectInput{Bucket: &c.Bucket, Key: &name, Body: bytes.NewReader(body)})
	if err != nil {
		t.Fatal(err)
	}
}

func conn(endpoint string) athena.S3Conn {
	return athena.S3Conn{
		Endpoint: endpoint, Region: locals3.Region, Bucket: fmt.Sprintf("test-%d", shared.next.Add(1)), PathStyle: true,
		AccessKeyID: AccessKeyID, SecretAccessKey: athena.NewSecret(SecretAccessKey),
	}
}

func makeBucket(t testing.TB, c athena.S3Conn) {
	t.Helper()
	if _, err := client(c).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &c.Bucket}); err != nil {
		t.Fatal(err)
	}
}

func client(c athena.S3Conn) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &c.Endpoint, Region: c.Region, UsePathStyle: true,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		Credentials:                credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey.Reveal(), ""),
	})
}
