package s3_test

import (
	"net/http"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/drivertest"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

func TestMain(m *testing.M) { s3test.Main(m) }

// part is the least that S3 takes for one, so that tests are quick.
const part = 5 << 20

var small = s3.Limits{Part: part, CopyWhole: part, CopyPart: part}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]struct {
		bucket func(testing.TB) athena.S3Conn
		limits s3.Limits
		at     []string // prefixes
		lacks  drivertest.Lacks
	}{
		"versitygw": {s3test.Bucket, small, []string{"", "some/where"}, drivertest.Lacks{Folders: true}},
		// It copies whole objects only, of any size.
		"gofakes3": {s3test.Fake, s3.Limits{Part: part}, []string{"some/where/"}, drivertest.Lacks{
			Conditions: true, Signatures: true, ETags: true, Metadata: true, Prefixes: true, EmptyStages: true,
		}},
	} {
		for _, prefix := range server.at {
			t.Run(name+" at "+prefix, func(t *testing.T) {
				t.Parallel()
				conn := server.bucket(t)
				bucket := conn
				conn.Prefix = prefix
				down := func(t *testing.T) (driver.Backend, error) {
					away, srv := s3test.FakeBehind(t, through)
					b, err := s3.OpenWith(t.Context(), away, server.limits)
					if err != nil {
						t.Fatal(err)
					}
					srv.Close()
					return b, nil
				}
				h := drivertest.Harness{
					Open: func(t *testing.T) driver.Backend {
						b, err := s3.OpenWith(t.Context(), conn, server.limits)
						if err != nil {
							t.Fatal(err)
						}
						return b
					},
					Claims:      athena.Allow(athena.ObjectRead, athena.ObjectWrite, athena.PipelineSource, athena.PipelineSink, athena.Provisioning),
					Identifies:  true,
					Unreachable: down,
					Secrets:     []string{s3test.AccessKeyID, s3test.SecretAccessKey, "127.0.0.1"},
					Provision:   driver.Provision{Kind: "bucket", Name: "made-" + bucket.Bucket},
					Objects:     &drivertest.Objects{Part: part, Lacks: server.lacks},
				}
				if prefix != "" {
					h.Objects.Seed = func(t *testing.T, name string, body []byte) { s3test.Seed(t, bucket, name, body) }
				}
				drivertest.Run(t, h)
			})
		}
	}
}

func through(h http.Handler) http.Handler { return h }
