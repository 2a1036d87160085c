package changefeed_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// What a capture begins with is what was stored last, whichever replica has it:
// an origin from before would make its slot look like one that somebody moved.
func TestACaptureBeginsWithWhatWasStoredLast(t *testing.T) {
	t.Parallel()
	b := bustest.StartCluster(t, 3).Bus(3)
	store, _ := changefeedtest.Store(t, b)
	c := changefeed.Capture{ID: "one", Client: "shop"}.WithDefaults()
	if _, err := store.PrepareStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	table := driver.TableName{Schema: "public", Table: "t"}
	o := changefeed.Origin{Capture: c.ID}
	for i := range 300 {
		o.Confirmed = fmt.Sprint(i)
		var err error
		if o, err = store.PutOrigin(t.Context(), "shop", o); err != nil {
			t.Fatal(err)
		}
		got, begun, err := store.Origin(t.Context(), c)
		if err != nil || !begun || got.Confirmed != o.Confirmed || got.Revision != o.Revision {
			t.Fatalf("the origin is %+v, %v, %v; stored was %+v", got, begun, err, o)
		}
		line := cdc.NewEncoder("shop").Append(nil, &cdc.Change{Pos: cdc.Position(fmt.Sprintf("%016X.00000000s", i)), Op: cdc.Schema, Schema: "public", Table: "t", SchemaVersion: i + 1})
		if _, err := b.JetStream().Publish(t.Context(), bus.CDCSchema("shop", "public", "t"), line); err != nil {
			t.Fatal(err)
		}
		if got, err := store.TableVersions(t.Context(), "shop"); err != nil || got[table].Version != i+1 {
			t.Fatalf("version %d is %+v, %v", i+1, got[table], err)
		}
		body, _ := json.Marshal(changefeed.SnapshotProgress{ID: "x", State: fmt.Sprint(i)})
		if _, err := b.JetStream().Publish(t.Context(), bus.CDCSnapshot("shop", "x"), body); err != nil {
			t.Fatal(err)
		}
		if got, err := store.Progress(t.Context(), "shop"); err != nil || got["x"].State != fmt.Sprint(i) {
			t.Fatalf("progress %d is %+v, %v", i, got["x"], err)
		}
	}
}

// A write that comes late does nothing.
func TestAnOriginIsWrittenOverTheOneThatWasRead(t *testing.T) {
	t.Parallel()
	store, _ := changefeedtest.Store(t, bustest.Start(t))
	c := changefeed.Capture{ID: "one", Client: "shop"}
	first, err := store.PutOrigin(t.Context(), "shop", changefeed.Origin{Capture: "one", Confirmed: "1"})
	if err != nil {
		t.Fatal(err)
	}
	second := first
	second.Confirmed = "2"
	if _, err := store.PutOrigin(t.Context(), "shop", second); err != nil {
		t.Fatal(err)
	}
	for _, late := range []changefeed.Origin{first, {Capture: "one"}} {
		if _, err := store.PutOrigin(t.Context(), "shop", late); athena.CodeOf(err) != athena.CodeConflict {
			t.Errorf("a write that comes late: %v", err)
		}
	}
	if got, begun, err := store.Origin(t.Context(), c); err != nil || !begun || got.Confirmed != "2" {
		t.Errorf("the origin is %+v, %v, %v", got, begun, err)
	}
	if c, err = store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	before := c
	c.Purge = true
	if c, err = store.PutCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := store.ForgetCapture(t.Context(), before); athena.CodeOf(err) != athena.CodeConflict {
		t.Errorf("a capture that is another one now is removed: %v", err)
	}
	if err := store.ForgetCapture(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got, begun, err := store.Origin(t.Context(), c); err != nil || begun || got.Revision != 0 {
		t.Errorf("the origin of a capture that is gone is %+v, %v, %v", got, begun, err)
	}
	if _, err := store.PutOrigin(t.Context(), "shop", changefeed.Origin{Capture: "two"}); err != nil {
		t.Errorf("a new one: %v", err)
	}
}

// Streams can be made with every age that a capture may have.
func TestStreamsOfEveryAge(t *testing.T) {
	t.Parallel()
	store, _ := changefeedtest.Store(t, bustest.Start(t))
	for _, age := range []time.Duration{time.Minute, 10 * time.Minute, changefeed.DefaultMaxAge} {
		if _, err := store.PrepareStream(t.Context(), changefeed.Capture{Client: "shop", MaxAge: athena.Duration(age)}.WithDefaults()); err != nil {
			t.Errorf("%s: %v", age, err)
		}
	}
}
