package sink_test

import (
	"context"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// What begins the name of an object is whose it is, also where the prefix has no
// slash at its end.
func TestAPrefixIsOneOfFolders(t *testing.T) {
	t.Parallel()
	s := lake(t)
	for prefix, want := range map[string]string{"a": "a/t-0.ndjson", "a/": "a/t-0.ndjson", "a/{{day}}": "a/mon/t-0.ndjson", "": "t-0.ndjson"} {
		o := objects(t, s, spec.ObjectSink{Prefix: prefix, Format: "ndjson"}, false)
		w := o.Begin("t")
		if _, err := w.Write(t.Context(), "", rows(t, orders, `{"id":1,"day":"mon"}`)); err != nil {
			t.Fatal(err)
		}
		err := w.Commit(t.Context(), driver.Checkpoint{}, func(_ context.Context, list []stage.Object) error {
			if len(list) != 1 || list[0].Key != want {
				t.Errorf("%q: %+v", prefix, list)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
