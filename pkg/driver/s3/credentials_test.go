package s3_test

import (
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

// TestTheDefaultChain changes the environment, so it runs alone.
func TestTheDefaultChain(t *testing.T) {
	dir := t.TempDir()
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": dir + "/none", "AWS_SHARED_CREDENTIALS_FILE": dir + "/none", "HOME": dir,
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
	} {
		t.Setenv(name, value)
	}
	conn := s3test.Bucket(t)
	keyless := conn
	keyless.AccessKeyID, keyless.SecretAccessKey, keyless.Region = "", athena.Secret{}, ""

	_, err := s3.Open(t.Context(), keyless)
	f := (*s3.Backend)(nil).Classify(err)
	if f.Code != athena.CodeBackendUnavailable || !f.NoEffect || !strings.Contains(f.Message, "no AWS credentials") {
		t.Errorf("without keys: %v, %+v", err, f)
	}

	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretAccessKey)
	b, err := s3.Open(t.Context(), keyless)
	if err != nil {
		t.Fatalf("with keys in the environment: %v", err)
	}
	if _, err := b.WriteObject(t.Context(), "a", strings.NewReader("x"), driver.ObjectWrite{}); err != nil {
		t.Error(err)
	}

	// A connection with keys of its own does not look there.
	t.Setenv("AWS_ACCESS_KEY_ID", "another")
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_REGION", "mars-1")
	if _, err := s3.Open(t.Context(), conn); err != nil {
		t.Errorf("with keys of its own: %v", err)
	}
}
