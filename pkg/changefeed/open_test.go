package changefeed_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
)

func positions(changes []cdc.Change) (list []cdc.Position) {
	for _, c := range changes {
		list = append(list, c.Pos)
	}
	return list
}

func (w *world) refused(code athena.Code, client, from string) *athena.Error {
	w.t.Helper()
	r, err := w.feeds.Open(w.t.Context(), client, from, nil)
	if err == nil {
		r.Close()
		w.t.Fatalf("%s from %s was opened; want %s", client, from, code)
	}
	if athena.CodeOf(err) != code {
		w.t.Fatalf("%s from %s: %v; want %s", client, from, err, code)
	}
	return athena.AsError(err)
}

func TestWhereAReaderBegins(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	var all []cdc.Change
	for i := range 6 {
		all = append(all, s.Change(cdc.Insert, "orders", i, `{"n":1}`))
	}
	s.Write(3, all[:3]...)
	time.Sleep(5 * time.Millisecond)
	between := time.Now()
	time.Sleep(5 * time.Millisecond)
	s.Write(3, all[3:]...)
	want := positions(all)

	for name, test := range map[string]struct {
		from string
		want []cdc.Position
	}{
		"earliest":                        {"earliest", want},
		"before the first":                {"0", want},
		"behind the first":                {string(want[0]), want[1:]},
		"behind the last of a message":    {string(want[2]), want[3:]},
		"in a message":                    {string(want[3]), want[4:]},
		"behind what is none, but may be": {string(want[3]) + "z", want[4:]},
		"behind all":                      {string(want[5]), nil},
		"an instant":                      {between.Format(time.RFC3339Nano), want[3:]},
		"an instant before all":           {"2001-01-01T00:00:00Z", want},
		"an instant that is to come":      {"2101-01-01T00:00:00Z", nil},
		"now":                             {"now", nil},
		"nothing said":                    {"", nil},
	} {
		r := w.open("shop", test.from, nil)
		if got := next(t, r, len(test.want)); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
		if b, err := r.Take(t.Context(), 10); err != nil || len(b.Lines) > 0 || b.More || b.Cursor != want[5] {
			t.Errorf("%s: at the end there was %d, %v, the cursor %s", name, len(b.Lines), err, b.Cursor)
		}
	}
	late := w.open("shop", "now", nil)
	again := w.open("shop", string(want[5]), nil)
	c := s.Insert("orders", 7, "")
	for _, r := range []*changefeed.Reader{late, again} {
		if got := next(t, r, 1); got[0] != c.Pos {
			t.Errorf("got %v, want %s", got, c.Pos)
		}
	}

	w.refused(athena.CodeInvalidRequest, "shop", "last")
	w.refused(athena.CodeNotFound, "nobody", "now")
	if e := w.refused(athena.CodeCursorExpired, "shop", "FFFFFFFFFFFFFFFF.00000001"); e.Details["last"] != c.Pos {
		t.Errorf("a cursor that is beyond the end: %v", e.Details)
	}
}

func TestWhatWasLetGoOfIsNotPassedOver(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	var all []cdc.Change
	for i := range 8 {
		all = append(all, s.Change(cdc.Insert, "orders", i, ""))
	}
	want := positions(all)
	s.Write(2, all...) // messages 1 to 4
	slow := w.open("shop", "earliest", nil)
	if b, err := slow.Take(t.Context(), 1); err != nil || len(b.Lines) != 1 {
		t.Fatal(b, err)
	}
	s.Drop(3)

	for _, from := range []cdc.Position{"0", want[0], want[2], want[2] + "z"} {
		e := w.refused(athena.CodeCursorExpired, "shop", string(from))
		if e.Details["earliest"] != want[3] || e.Retryable() {
			t.Errorf("behind %s: %v", from, e.Details)
		}
	}
	if e := w.refused(athena.CodeCursorExpired, "shop", "2001-01-01T00:00:00Z"); e.Details["earliest"] != want[3] {
		t.Errorf("an instant before what is kept: %v", e.Details)
	}
	for from, left := range map[string][]cdc.Position{string(want[3]): want[4:], string(want[4]): want[5:], "earliest": want[4:]} {
		if got := next(t, w.open("shop", from, nil), len(left)); !slices.Equal(got, left) {
			t.Errorf("from %s got %v, want %v", from, got, left)
		}
	}

	// Those that a reader holds already he still gets; then he is told.
	got := []cdc.Position{want[0]}
	for {
		b, err := slow.Take(t.Context(), 1)
		if err != nil {
			t.Fatalf("what is held: %v", err)
		}
		if got = append(got, of(t, b)...); len(got) == len(want) {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}

	// All of it: what the capture has told last is where one can go on.
	s.Drop(5)
	if err := w.store.PutStatus(t.Context(), changefeed.Status{Client: "shop", Position: want[7]}); err != nil {
		t.Fatal(err)
	}
	w.refused(athena.CodeCursorExpired, "shop", string(want[6]))
	idle := w.open("shop", "now", nil)
	if idle.Cursor() != want[7] {
		t.Errorf("now is %s", idle.Cursor())
	}
	again := w.open("shop", string(want[7]), nil)
	c := s.Insert("orders", 9, "")
	for _, r := range []*changefeed.Reader{idle, again, w.open("shop", string(want[7]), nil)} {
		if got := next(t, r, 1); got[0] != c.Pos {
			t.Errorf("got %v, want %s", got, c.Pos)
		}
	}
}

func TestAReaderSlowerThanRetentionIsTold(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.feeds.KeepLittle()
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	for i := range 200 {
		s.Insert("orders", i, "")
	}
	r := w.open("shop", "earliest", nil)
	if b, err := r.Take(t.Context(), 1); err != nil || len(b.Lines) != 1 {
		t.Fatal(b, err)
	}
	s.Drop(150)
	had := 1
	for {
		b, err := r.Take(t.Context(), 10)
		if code(err) == athena.CodeCursorExpired {
			e := athena.AsError(err)
			if e.Details["cursor"] != b.Cursor || e.Details["earliest"] == nil {
				t.Errorf("got %v with the cursor %s", e.Details, b.Cursor)
			}
			break
		}
		if err != nil || len(b.Lines) == 0 {
			t.Fatalf("after %d: %v, %v", had, b, err)
		}
		had += len(b.Lines)
	}
	if had >= 150 {
		t.Errorf("%d changes were had of a stream that holds 51", had)
	}
}

func TestAStreamThatIsRemovedOrMadeAnewIsAnError(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	c := s.Insert("orders", 1, "")
	r := w.open("shop", "earliest", nil)
	next(t, r, 1)
	if err := w.bus.JetStream().DeleteStream(t.Context(), bus.CDCStream("shop")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.Next(ctx); code(err) != athena.CodeNotFound {
		t.Errorf("a stream that is gone: %v", err)
	}
	w.capture("shop")
	w.refused(athena.CodeCursorExpired, "shop", string(c.Pos))
	waiting := w.open("shop", "now", nil) // what is captured will come

	s = changefeedtest.Make(t, w.bus, "shop", 2000)
	first := s.Insert("orders", 1, "")
	if got := next(t, waiting, 1); got[0] != first.Pos {
		t.Errorf("got %v", got)
	}
	if _, err := r.Next(ctx); code(err) != athena.CodeCursorExpired {
		t.Errorf("a stream that was made anew: %v", err)
	}
	if e := w.refused(athena.CodeCursorExpired, "shop", string(c.Pos)); e.Details["earliest"] != cdc.Position("00000000000007D0.00000000") {
		t.Errorf("an old cursor: %v", e.Details)
	}
}

// TestACursorOfAStreamThatIsGoneIsSeenInANewOne: as long as the new one is empty
// nobody can tell; its first message does.
func TestACursorOfAStreamThatIsGoneIsSeenInANewOne(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 2000)
	old, begun := w.open("shop", "00000000000003F8.00000001", nil), w.open("shop", "00000000000007D0.00000000", nil)
	first := w.open("shop", "0", nil)
	c := s.Insert("orders", 1, "")
	for _, r := range []*changefeed.Reader{begun, first} {
		if got := next(t, r, 1); got[0] != c.Pos {
			t.Errorf("got %v", got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if b, err := old.Next(ctx); code(err) != athena.CodeCursorExpired || len(b.Lines) > 0 {
		t.Errorf("a cursor from before: %v, %v", b, err)
	}
}

func TestAReaderSeesWhatNoHintTellsOf(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	s.Insert("orders", 1, "")
	r := w.open("shop", "now", nil)
	c := s.Change(cdc.Insert, "orders", 2, "")
	msg := nats.NewMsg(bus.CDC("shop", "public", "orders"))
	msg.Header.Set(changefeed.HeaderPos, string(c.Pos))
	msg.Data = cdc.NewEncoder("shop").Append(nil, &c)
	if _, err := w.bus.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	if got := next(t, r, 1); got[0] != c.Pos {
		t.Errorf("got %v", got)
	}
}

func TestAHeartbeatHasTheCursorOfWhatWasLeftOut(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	f, err := changefeed.NewFilter(changefeed.FilterSpec{Tables: []string{"items"}})
	if err != nil {
		t.Fatal(err)
	}
	s.Insert("orders", 1, "")
	r := w.open("shop", "now", f)
	r.Heartbeat = 50 * time.Millisecond
	begin := r.Cursor()
	var last cdc.Change
	for i := range 10 {
		last = s.Insert("orders", i, "")
	}
	for r.Cursor() < last.Pos {
		b, err := r.Next(t.Context())
		if err != nil || len(b.Lines) != 0 || b.Cursor < begin || b.Cursor != r.Cursor() {
			t.Fatal(b, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := r.Next(ctx); err != context.Canceled || b.Cursor != last.Pos {
		t.Errorf("got %v, %v", b, err)
	}
}

func TestALogMessageBelongsToNoTable(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	message := s.Change(cdc.Message, "audit", 0, "hello")
	row := s.Change(cdc.Insert, "orders", 1, "")
	s.Write(10, message, row)
	for want, spec := range map[cdc.Position]changefeed.FilterSpec{
		message.Pos: {Ops: []cdc.Op{cdc.Message}},
		row.Pos:     {Tables: []string{"*"}},
	} {
		f, err := changefeed.NewFilter(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := next(t, w.open("shop", "earliest", f), 1); got[0] != want {
			t.Errorf("%v: got %v", spec, got)
		}
	}
}

// TestReadersAtTheEndCostLittle holds that who waits has no goroutine, no
// consumer, and hardly any memory of his own here.
func TestReadersAtTheEndCostLittle(t *testing.T) {
	w := start(t) // not parallel: it counts goroutines and memory
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	s.Insert("orders", 1, "")
	w.open("shop", "now", nil)
	const n = 1000
	measure := func() (heap uint64, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	heap, goroutines := measure()
	readers := make([]*changefeed.Reader, n)
	for i := range readers {
		f, err := changefeed.NewFilter(changefeed.FilterSpec{Tables: []string{"public.*"}})
		if err != nil {
			t.Fatal(err)
		}
		readers[i] = w.open("shop", "now", f)
	}
	c := s.Insert("orders", 2, "") // each has read something
	for _, r := range readers {
		if got := next(t, r, 1); got[0] != c.Pos {
			t.Fatalf("got %v", got)
		}
	}
	more, routines := measure()
	if each := int64(more-heap) / n; each > 2<<10 {
		t.Errorf("a waiting reader costs %d bytes", each)
	}
	if routines > goroutines+10 {
		t.Errorf("%d readers have %d goroutines", n, routines-goroutines)
	}
	stream, err := w.bus.JetStream().Stream(t.Context(), bus.CDCStream("shop"))
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Consumers; got != 0 {
		t.Errorf("there are %d consumers", got)
	}
	runtime.KeepAlive(readers)
}

// TestManyReadersAtOnce has readers come, wait and go while changes are written.
func TestManyReadersAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t)
	s := changefeedtest.Make(t, w.bus, "shop", 1000)
	var all []cdc.Change
	for i := range 500 {
		all = append(all, s.Change(cdc.Insert, fmt.Sprintf("t%d", i/7%3), i, ""))
	}
	want := positions(all)
	s.Write(5, all[:100]...)
	var reading sync.WaitGroup
	for n := range 50 {
		reading.Go(func() {
			from := string(want[n])
			got := want[: n+1 : n+1]
			for len(got) < len(want) {
				r, err := w.feeds.Open(t.Context(), "shop", from, nil)
				if err != nil {
					t.Errorf("reader %d: %v", n, err)
					return
				}
				for i := 0; i < 3 && len(got) < len(want); i++ {
					b, err := r.Next(t.Context())
					if err != nil {
						t.Errorf("reader %d: %v", n, err)
						return
					}
					got = append(got, of(t, b)...)
					from = string(b.Cursor)
				}
				r.Close()
			}
			if !slices.Equal(got, want) {
				t.Errorf("reader %d did not get every change once", n)
			}
		})
	}
	for i := 100; i < len(all); i += 20 {
		s.Write(1+i/20%9, all[i:i+20]...)
	}
	reading.Wait()
}

func TestEnvelopeFor(t *testing.T) {
	t.Parallel()
	for _, name := range append(cdc.EnvelopeNames(), "") {
		if _, err := changefeed.EnvelopeFor(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := changefeed.EnvelopeFor("avro"); code(err) != athena.CodeInvalidRequest || athena.AsError(err).Details["field"] != "envelope" {
		t.Errorf("got %v", err)
	}
}
