package locals3_test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

func TestMain(m *testing.M) { s3test.Main(m) }

func TestObjectsOutliveTheServer(t *testing.T) {
	t.Parallel()
	for name, crash := range map[string]bool{"a stop": false, "a crash": true} {
		t.Run("after "+name, func(t *testing.T) {
			t.Parallel()
			server, conn := s3test.Server(t)
			b, err := s3.Open(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close(t.Context())
			kept := driver.ObjectWrite{ContentType: "text/plain", Metadata: map[string]string{"who": "me"}}
			if _, err := b.WriteObject(t.Context(), "a/b", strings.NewReader("kept"), kept); err != nil {
				t.Fatal(err)
			}
			stage, err := b.StageObject(t.Context(), "a/c", driver.ObjectWrite{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stage.Write([]byte("staged")); err != nil {
				t.Fatal(err)
			}
			staged, err := stage.Stage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			port := server.Port
			if err := server.Restart(t.Context(), crash); err != nil {
				t.Fatal(err)
			}
			if server.Port != port {
				t.Errorf("the port was %d and is %d", port, server.Port)
			}
			o, err := b.Object(t.Context(), "a/b")
			if err != nil || o.Bytes != 4 || o.ContentType != "text/plain" || o.Metadata["who"] != "me" {
				t.Errorf("the object is %+v, %v", o, err)
			}
			if o, err := b.PublishObject(t.Context(), staged); err != nil || o.Bytes != 6 {
				t.Errorf("what was staged before is published as %+v, %v", o, err)
			}
		})
	}
}

func TestRequestsMustBeSigned(t *testing.T) {
	t.Parallel()
	conn := s3test.Bucket(t)
	resp, err := http.Get(conn.Endpoint + "/" + conn.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a request without a signature was answered with %s", resp.Status)
	}
	conn.SecretAccessKey = athena.NewSecret("another secret")
	if _, err := s3.Open(t.Context(), conn); err == nil {
		t.Error("another secret was taken")
	}
}

func TestAServerIsGoneAfterItsStop(t *testing.T) {
	t.Parallel()
	s, err := locals3.Start(t.Context(), locals3.Config{AccessKeyID: "key", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if resp, err := http.Get(s.Endpoint()); err == nil {
		resp.Body.Close()
		t.Error("it still answers")
	}
	if _, err := locals3.Start(t.Context(), locals3.Config{Dir: os.DevNull, AccessKeyID: "key", SecretAccessKey: "secret"}); err == nil {
		t.Error("a server started over what is no directory")
	}
	if _, err := locals3.Start(t.Context(), locals3.Config{}); err == nil {
		t.Error("a server started without keys")
	}
}
