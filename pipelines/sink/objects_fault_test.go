package sink_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A store that fails in the middle of an upload fails the attempt, in a way that is
// worth another one, which has the same names and is all that is seen.
func TestAnAttemptThatTheStoreFailsIsDoneAgain(t *testing.T) {
	t.Parallel()
	faults := map[string]http.HandlerFunc{
		"answers 503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"cuts the connection": func(w http.ResponseWriter, _ *http.Request) {
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				_ = c.Close()
			}
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			conn, _ := s3test.FakeBehind(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if failing.Load() && r.Method == http.MethodPut && r.URL.Query().Has("partNumber") {
						fault(w, r)
						return
					}
					h.ServeHTTP(w, r)
				})
			})
			store, err := s3.Open(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close(context.Background()) })
			o, err := sink.NewObjects(store, spec.ObjectSink{Prefix: "p/", Format: "ndjson"}, "p", "r", false)
			if err != nil {
				t.Fatal(err)
			}
			s := &record.Schema{Columns: []record.Column{{Name: "raw", Type: record.TypeBytes}}}
			b := record.New(s, 1)
			noise := make([]byte, 1<<20)
			if _, err := rand.Read(noise); err != nil {
				t.Fatal(err)
			}
			b.Columns[0].AppendBytes(noise)
			b.Done()

			attempt := func() (decided []stage.Object, err error) {
				w := o.Begin("t")
				defer w.Abort(t.Context())
				for range 16 {
					if _, err := w.Write(t.Context(), "", b); err != nil {
						return nil, err
					}
				}
				err = w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
					decided = list
					return nil
				})
				return decided, err
			}
			failing.Store(true)
			decided, err := attempt()
			if err == nil || !athena.CodeOf(err).Retryable() || decided != nil {
				t.Fatal(decided, err)
			}
			failing.Store(false)
			if decided, err = attempt(); err != nil || len(decided) != 1 || decided[0].Rows != 16 {
				t.Fatal(decided, err)
			}
			page, err := store.Objects(t.Context(), driver.ObjectList{})
			if err != nil || len(page.Objects) != 1 || page.Objects[0].Key != "p/t-0.ndjson" || page.Objects[0].Bytes != decided[0].Bytes {
				t.Fatal(page, err)
			}
			staged, err := store.StagedObjects(t.Context(), "", time.Now().Add(time.Hour))
			if err != nil || len(staged) != 0 {
				t.Fatal(staged, err)
			}
		})
	}
}
