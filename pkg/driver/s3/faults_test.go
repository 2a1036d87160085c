package s3_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

// A fault is what happens to a request that it takes: after reports whether the
// server sees the request first.
type fault struct {
	takes func(*http.Request) bool
	times int32 // how often
	after bool
	act   func(w http.ResponseWriter)

	met atomic.Int32
}

func (f *fault) front(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.takes == nil || !f.takes(r) || f.met.Add(1) > f.times {
			h.ServeHTTP(w, r)
			return
		}
		if f.after {
			h.ServeHTTP(httptest.NewRecorder(), r)
		} else {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		f.act(w)
	})
}

func cut(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

func is(method, query string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == method && r.URL.Query().Has(query) && strings.Contains(r.URL.Path, "key")
	}
}

// behind opens a backend on gofakes3 behind a fault.
func behind(t *testing.T, f *fault, l s3.Limits) *s3.Backend {
	t.Helper()
	conn, _ := s3test.FakeBehind(t, f.front)
	l.Part = part
	b, err := s3.OpenWith(t.Context(), conn, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

func large() []byte {
	b := make([]byte, 2*part+100)
	_, _ = rand.Read(b)
	return b
}

func stored(t *testing.T, b *s3.Backend, key string) []byte {
	t.Helper()
	body, err := b.ReadObject(t.Context(), key, driver.ObjectRead{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestARequestThatFailsIsMadeAgain(t *testing.T) {
	t.Parallel()
	put := func(r *http.Request) bool { return r.Method == "PUT" && strings.HasSuffix(r.URL.Path, "/key") }
	for name, f := range map[string]*fault{
		"after a 503":                     {takes: put, times: 2, act: status(503)},
		"after a cut connection":          {takes: put, times: 2, act: cut},
		"after an answer that was lost":   {takes: put, times: 2, after: true, act: cut},
		"after a 500 that stored it":      {takes: put, times: 1, after: true, act: status(500)},
		"after a part that was cut":       {takes: is("PUT", "partNumber"), times: 3, act: cut},
		"after a completion that is lost": {takes: is("POST", "uploadId"), times: 1, after: true, act: cut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := behind(t, f, s3.Limits{})
			for _, body := range [][]byte{[]byte("small"), large()} {
				f.met.Store(0)
				if err := b.DeleteObjects(t.Context(), "key"); err != nil {
					t.Fatal(err)
				}
				// On a condition: the repetition must not take the first for another's.
				o, err := b.WriteObject(t.Context(), "key", bytes.NewReader(body), driver.ObjectWrite{IfNoneMatch: true})
				if err != nil || o.Bytes != int64(len(body)) || len(o.Metadata) != 0 {
					t.Fatalf("%d bytes: %+v, %v", len(body), o, err)
				}
				if !bytes.Equal(stored(t, b, "key"), body) {
					t.Error("something else is stored")
				}
				if _, err := b.WriteObject(t.Context(), "key", strings.NewReader("x"), driver.ObjectWrite{IfNoneMatch: true}); b.Classify(err).Code != athena.CodeConflict {
					t.Errorf("a second writer: %v", err)
				}
			}
		})
	}
}

func TestAWriteThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]*fault{
		"a part is refused":            {takes: is("PUT", "partNumber"), times: 1 << 30, act: status(403)},
		"the parts are cut for ever":   {takes: is("PUT", "partNumber"), times: 1 << 30, act: cut},
		"the completion is refused":    {takes: is("POST", "uploadId"), times: 1 << 30, act: status(403)},
		"the completion is overloaded": {takes: is("POST", "uploadId"), times: 1 << 30, act: status(503)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := behind(t, f, s3.Limits{})
			_, err := b.WriteObject(t.Context(), "key", bytes.NewReader(large()), driver.ObjectWrite{})
			if got := b.Classify(err); err == nil || got.Code != athena.CodeQueryFailed && got.Code != athena.CodeBackendUnavailable || got.Message == "" {
				t.Errorf("%v is %+v", err, got)
			}
			if list, err := b.StagedObjects(t.Context(), "", time.Now().Add(time.Hour)); err != nil || len(list) != 0 {
				t.Errorf("uploads that are left: %v, %v", list, err)
			}
			if _, err := b.Object(t.Context(), "key"); athena.CodeOf(err) != athena.CodeNotFound {
				t.Errorf("the object: %v", err)
			}
		})
	}
}

func TestPublishingOutlivesALostAnswer(t *testing.T) {
	t.Parallel()
	f := &fault{takes: is("POST", "uploadId"), times: 4, after: true, act: cut}
	b := behind(t, f, s3.Limits{})
	stage, err := b.StageObject(t.Context(), "key", driver.ObjectWrite{})
	if err != nil {
		t.Fatal(err)
	}
	body := large()
	if _, err := stage.Write(body); err != nil {
		t.Fatal(err)
	}
	staged, err := stage.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// All that this one hears of is cut connections.
	if _, err := b.PublishObject(t.Context(), staged); b.Classify(err).Code != athena.CodeBackendUnavailable {
		t.Fatalf("%v", err)
	}
	if o, err := b.PublishObject(t.Context(), staged); err != nil || o.Bytes != int64(len(body)) {
		t.Fatalf("the next one: %+v, %v", o, err)
	}
	if !bytes.Equal(stored(t, b, "key"), body) {
		t.Error("something else is stored")
	}
}

// limp lets a body's reader have so many bytes of each answer to a GET, and then
// does what happens next.
func limp(after int, times int32, next func()) (func(http.Handler) http.Handler, *atomic.Int32) {
	var met atomic.Int32
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || !strings.HasSuffix(r.URL.Path, "/key") || met.Add(1) > times {
				h.ServeHTTP(w, r)
				return
			}
			h.ServeHTTP(&limping{w, after, next}, r)
		})
	}, &met
}

type limping struct {
	http.ResponseWriter
	left int
	next func()
}

func (l *limping) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	m, err := l.ResponseWriter.Write(p[:n])
	l.left -= m
	if l.left == 0 {
		l.ResponseWriter.(http.Flusher).Flush()
		l.next()
	}
	return m, err
}

func TestAReadGoesOnWhereItWasCut(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(){
		"after the connection was lost": func() { panic(http.ErrAbortHandler) },
		"after the server fell silent":  func() { time.Sleep(2 * time.Second); panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			front, met := limp(1<<20, 3, next)
			conn, _ := s3test.FakeBehind(t, front)
			b, err := s3.OpenWith(t.Context(), conn, s3.Limits{Part: part, Silence: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			body := large()
			if _, err := b.WriteObject(t.Context(), "key", bytes.NewReader(body), driver.ObjectWrite{}); err != nil {
				t.Fatal(err)
			}
			for _, r := range []driver.ObjectRead{{}, {From: 100, To: int64(len(body) - 100)}} {
				met.Store(0)
				got, err := b.ReadObject(t.Context(), "key", r)
				if err != nil {
					t.Fatal(err)
				}
				raw, err := io.ReadAll(got)
				from, to, _ := r.Window(int64(len(body)))
				if err := errors.Join(err, got.Close()); err != nil || !bytes.Equal(raw, body[from:to]) {
					t.Errorf("%+v: %d bytes of %d, or others; %v", r, len(raw), to-from, err)
				}
				if met.Load() < 4 {
					t.Errorf("only %d requests were made: the test shows nothing", met.Load())
				}
			}
			// But not with the bytes of another object.
			met.Store(0)
			got, err := b.ReadObject(t.Context(), "key", driver.ObjectRead{})
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if _, err := io.ReadFull(got, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			s3test.Seed(t, conn, "key", large())
			if _, err := io.Copy(io.Discard, got); athena.CodeOf(err) != athena.CodeConflict {
				t.Errorf("an object that was replaced: %v, want conflict", err)
			}
		})
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var conns atomic.Int32
	go func() { // takes connections and never says a word
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			defer c.Close()
		}
	}()
	b, err := s3.OpenWith(t.Context(), athena.S3Conn{
		Endpoint: "http://" + ln.Addr().String(), Bucket: "b", PathStyle: true,
		AccessKeyID: s3test.AccessKeyID, SecretAccessKey: athena.NewSecret(s3test.SecretAccessKey),
	}, s3.Limits{Silence: 100 * time.Millisecond})
	f := (*s3.Backend)(nil).Classify(err)
	if b != nil || f.Code != athena.CodeBackendUnavailable || strings.Contains(f.Message, "127.0.0.1") || conns.Load() != 1 {
		t.Errorf("%v is %+v after %d connections", err, f, conns.Load())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("it passes for a deadline of the caller")
	}
}

// A body that trickles for longer than the silence is no silence.
func TestSlowIsNotSilent(t *testing.T) {
	t.Parallel()
	const silence = 300 * time.Millisecond
	conn := s3test.Fake(t)
	b, err := s3.OpenWith(t.Context(), conn, s3.Limits{Part: part, Silence: silence})
	if err != nil {
		t.Fatal(err)
	}
	slow := &slowly{bytes.NewReader(large()), 4, 2 * silence}
	if _, err := b.WriteObject(t.Context(), "key", slow, driver.ObjectWrite{}); err != nil {
		t.Errorf("a slow writer: %v", err)
	}
	got, err := b.ReadObject(t.Context(), "key", driver.ObjectRead{})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	n, err := io.Copy(io.Discard, &slowly{got, 4, 2 * silence})
	if err != nil || n != 2*part+100 {
		t.Errorf("a slow reader: %d bytes, %v", n, err)
	}
}

// slowly pauses before its first reads.
type slowly struct {
	io.Reader
	pauses int
	pause  time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.pauses > 0 {
		s.pauses--
		time.Sleep(s.pause)
	}
	return s.Reader.Read(p[:min(len(p), 2<<20)])
}

func TestChecksumsThatAServerRefusesAreLeftOut(t *testing.T) {
	t.Parallel()
	var refused, plain atomic.Int32
	front := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name := range r.Header {
				if strings.HasPrefix(name, "X-Amz-Checksum-") && name != "X-Amz-Checksum-Mode" || name == "X-Amz-Sdk-Checksum-Algorithm" || name == "X-Amz-Trailer" {
					refused.Add(1)
					w.WriteHeader(http.StatusBadRequest)
					_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>InvalidArgument</Code><Message>Unsupported header '`+strings.ToLower(name)+`' (checksum)</Message></Error>`)
					return
				}
			}
			if r.Method == "PUT" {
				plain.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	}
	conn, _ := s3test.FakeBehind(t, front)
	b, err := s3.OpenWith(t.Context(), conn, s3.Limits{Part: part})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]byte{[]byte("small"), large(), []byte("again")} {
		if _, err := b.WriteObject(t.Context(), "key", bytes.NewReader(body), driver.ObjectWrite{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stored(t, b, "key"), body) {
			t.Error("something else is stored")
		}
	}
	if err := b.DeleteObjects(t.Context(), "key", "other"); err != nil {
		t.Errorf("DeleteObjects: %v", err)
	}
	if refused.Load() != 1 || plain.Load() < 5 {
		t.Errorf("%d requests were refused and %d were plain; want that one is enough", refused.Load(), plain.Load())
	}
}

// TestWhatIsSaidOfErrors goes over the codes that servers answer with.
func TestWhatIsSaidOfErrors(t *testing.T) {
	t.Parallel()
	const keyID, host = s3test.AccessKeyID, "bucket.internal.example"
	var answer atomic.Pointer[string]
	var code atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" && r.URL.Query().Has("list-type") && answer.Load() == nil {
			_, _ = io.WriteString(w, `<ListBucketResult></ListBucketResult>`)
			return
		}
		w.WriteHeader(int(code.Load()))
		_, _ = io.WriteString(w, `<Error><Code>`+*answer.Load()+`</Code><Message>The key `+keyID+` at `+host+`</Message><AWSAccessKeyId>`+keyID+`</AWSAccessKeyId></Error>`)
	}))
	defer srv.Close()
	b, err := s3.Open(t.Context(), athena.S3Conn{Endpoint: srv.URL, Bucket: "b", PathStyle: true, AccessKeyID: keyID, SecretAccessKey: athena.NewSecret(s3test.SecretAccessKey)})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		status   int
		code     athena.Code
		noEffect bool
	}{
		"NoSuchBucket":          {404, athena.CodeNotFound, false},
		"NoSuchKey":             {404, athena.CodeNotFound, false},
		"AccessDenied":          {403, athena.CodeQueryFailed, false},
		"SomethingNew":          {403, athena.CodeQueryFailed, false},
		"InvalidAccessKeyId":    {403, athena.CodeBackendUnavailable, true},
		"SignatureDoesNotMatch": {403, athena.CodeBackendUnavailable, true},
		"RequestTimeTooSkewed":  {403, athena.CodeBackendUnavailable, true},
		"ExpiredToken":          {400, athena.CodeBackendUnavailable, true},
		"PreconditionFailed":    {412, athena.CodeConflict, false},
		"OperationAborted":      {409, athena.CodeConflict, false},
		"PermanentRedirect":     {301, athena.CodeBackendUnavailable, true},
		"EntityTooLarge":        {400, athena.CodePayloadTooLarge, false},
		"NotImplemented":        {501, athena.CodeCapabilityUnsupported, false},
		"MalformedXML":          {400, athena.CodeQueryFailed, false},
		"SlowDown":              {503, athena.CodeBackendUnavailable, true},
		"InternalError":         {500, athena.CodeBackendUnavailable, false},
		"odd <b>code</b>":       {418, athena.CodeQueryFailed, false},
	} {
		answer.Store(&name)
		code.Store(int32(test.status))
		_, err := b.Objects(t.Context(), driver.ObjectList{})
		f := b.Classify(err)
		if f.Code != test.code || f.NoEffect != test.noEffect || f.Message == "" || f.Details["status"] != test.status {
			t.Errorf("%s: %+v, of %v", name, f, err)
		}
		for _, secret := range []string{keyID, host, "127.0.0.1", "<"} {
			if strings.Contains(f.Message, secret) || strings.Contains(fmtDetails(f.Details), secret) {
				t.Errorf("%s: %q is shown: %+v", name, secret, f)
			}
		}
	}
}

func fmtDetails(d map[string]any) string {
	s, _ := d["s3_code"].(string)
	return s
}

func TestTLS(t *testing.T) {
	t.Parallel()
	conn, plain := s3test.FakeBehind(t, through)
	srv := httptest.NewUnstartedServer(plain.Config.Handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	notCA := filepath.Join(t.TempDir(), "not.pem")
	if err := os.WriteFile(notCA, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	conn.Endpoint = srv.URL
	for name, test := range map[string]struct {
		tls   *athena.TLS
		code  athena.Code
		field string
	}{
		"a certificate that nobody knows": {nil, athena.CodeBackendUnavailable, ""},
		"one whose CA is given":           {&athena.TLS{CAFile: ca}, "", ""},
		"one under another name":          {&athena.TLS{CAFile: ca, ServerName: "other.example"}, athena.CodeBackendUnavailable, ""},
		"one under the name it has":       {&athena.TLS{CAFile: ca, ServerName: "example.com"}, "", ""},
		"one that is not looked at":       {&athena.TLS{SkipVerify: true}, "", ""},
		"a CA that is no file":            {&athena.TLS{CAFile: ca + "x"}, athena.CodeBackendUnavailable, "connection.tls.ca_file"},
		"a CA that is none":               {&athena.TLS{CAFile: notCA}, athena.CodeInvalidRequest, "connection.tls.ca_file"},
		"half a client certificate":       {&athena.TLS{CAFile: ca, CertFile: ca}, athena.CodeInvalidRequest, "connection.tls.cert_file"},
		"a client certificate that is no": {&athena.TLS{CAFile: ca, CertFile: notCA, KeyFile: notCA}, athena.CodeBackendUnavailable, "connection.tls.cert_file"},
	} {
		c := conn
		c.TLS = test.tls
		b, err := s3.Open(t.Context(), c)
		f := (*s3.Backend)(nil).Classify(err)
		if f.Code != test.code || test.field != "" && f.Details["field"] != test.field {
			t.Errorf("%s: %v, %+v", name, err, f)
		}
		if err == nil {
			// A body, whose signature is not over its content here.
			if _, err := b.WriteObject(t.Context(), "key", strings.NewReader("x"), driver.ObjectWrite{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_ = b.Close(t.Context())
		}
	}
}

func TestConnectionsThatAreNone(t *testing.T) {
	t.Parallel()
	good := s3test.Fake(t)
	for field, change := range map[string]func(*athena.S3Conn){
		"connection.endpoint": func(c *athena.S3Conn) { c.Endpoint = "127.0.0.1:9000" },
		"connection.prefix":   func(c *athena.S3Conn) { c.Prefix = "a/../b" },
	} {
		conn := good
		change(&conn)
		if _, err := s3.Open(t.Context(), conn); athena.AsError(err).Details["field"] != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, endpoint := range []string{"ftp://x", "http://", "http://user:password@x", "http://x?y", "://", "http://x#y"} {
		conn := good
		conn.Endpoint = endpoint
		if _, err := s3.Open(t.Context(), conn); athena.CodeOf(err) != athena.CodeInvalidRequest || strings.Contains(err.Error(), "password") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	for _, prefix := range []string{"a", "a/", "/", ""} {
		conn := good
		conn.Prefix = prefix
		if _, err := s3.Open(t.Context(), conn); err != nil {
			t.Errorf("prefix %q: %v", prefix, err)
		}
	}
}

func TestPartsSuffice(t *testing.T) {
	t.Parallel()
	var total int64
	for n := 1; n <= 10_000; n++ {
		total += s3.PartSize(8<<20, 0, n)
	}
	if total < 5<<40 {
		t.Errorf("10,000 parts hold %d bytes of 5 TiB", total)
	}
	if got := s3.PartSize(8<<20, 5<<40, 1) * 10_000; got < 5<<40 {
		t.Errorf("10,000 parts of a known size hold %d bytes of 5 TiB", got)
	}
	if got := s3.PartSize(8<<20, 1<<20, 1); got != 8<<20 {
		t.Errorf("a small object has parts of %d", got)
	}
}
