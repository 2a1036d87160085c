package changefeed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
)

// world is a bus with a store and its feeds.
type world struct {
	t     testing.TB
	bus   *bus.Bus
	store *changefeed.Store
	feeds *changefeed.Feeds
}

func start(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, bus: bustest.Start(t)}
	w.store, w.feeds = changefeedtest.Store(t, w.bus)
	return w
}

func (w *world) open(client, from string, f *changefeed.Filter) *changefeed.Reader {
	w.t.Helper()
	r, err := w.feeds.Open(w.t.Context(), client, from, f)
	if err != nil {
		w.t.Fatalf("open %s from %s: %v", client, from, err)
	}
	w.t.Cleanup(r.Close)
	return r
}

func (w *world) capture(client string) changefeed.Capture {
	w.t.Helper()
	c, err := w.store.PutCapture(w.t.Context(), changefeed.Capture{ID: "one", Client: client, CreatedAt: time.Now()}.WithDefaults())
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// next reads until it has so many changes.
func next(t testing.TB, r *changefeed.Reader, n int) (positions []cdc.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(positions) < n {
		b, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d changes: %v", len(positions), n, err)
		}
		positions = append(positions, of(t, b)...)
	}
	if len(positions) > n {
		t.Fatalf("got %d changes, want %d", len(positions), n)
	}
	return positions
}

func of(t interface{ Fatalf(string, ...any) }, b changefeed.Batch) (positions []cdc.Position) {
	for _, l := range b.Lines {
		pos := changefeed.PositionOf(l)
		if pos == "" {
			t.Fatalf("not a change: %s", l)
		}
		positions = append(positions, pos)
	}
	if n := len(positions); n > 0 && b.Cursor < positions[n-1] {
		t.Fatalf("the cursor %s is before %s", b.Cursor, positions[n-1])
	}
	return positions
}

func code(err error) athena.Code { return athena.CodeOf(err) }

// TestEveryChangeOnceAndInOrder is law 2 with everything at random: how changes
// are packed, when they are written, where a reader goes away and comes back,
// what he filters, and what the stream lets go of at its head.
func TestEveryChangeOnceAndInOrder(t *testing.T) {
	t.Parallel()
	w := start(t)
	small := changefeed.NewFeeds(w.store, nil)
	small.KeepLittle()
	var running sync.WaitGroup
	running.Go(func() { _ = small.Run(t.Context()) })
	t.Cleanup(running.Wait)
	serial := 0
	rapid.Check(t, func(t *rapid.T) {
		serial++
		client := fmt.Sprintf("c%d", serial)
		s := changefeedtest.Make(w.t, w.bus, client, 1<<32)
		ctx, feeds := w.t.Context(), w.feeds
		if rapid.Bool().Draw(t, "little is at hand") {
			feeds = small
		}

		spec := rapid.SampledFrom([]changefeed.FilterSpec{
			{},
			{Tables: []string{"public.a", "public.c*"}},
			{Ops: []cdc.Op{cdc.Insert, cdc.Truncate}},
			{Where: "after.n > 2"},
			{Tables: []string{"*.b"}, Ops: []cdc.Op{cdc.Insert, cdc.Schema}, Where: `key.id % 2 == 0`},
		}).Draw(t, "filter")
		wants := func(c cdc.Change, n int) bool {
			table := len(spec.Tables) == 0 || spec.Tables[0] == "*.b" && c.Table == "b" || spec.Tables[0] == "public.a" && c.Table != "b"
			op := len(spec.Ops) == 0 || slices.Contains(spec.Ops, c.Op)
			where := true
			if c.Op != cdc.Schema {
				switch spec.Where {
				case "after.n > 2":
					where = c.After != nil && n > 2
				case `key.id % 2 == 0`:
					where = c.Key != nil && n%2 == 0
				}
			}
			return table && op && where
		}
		filter, err := changefeed.NewFilter(spec)
		if err != nil {
			t.Fatal(err)
		}

		type written struct {
			pos    cdc.Position
			wanted bool
		}
		var (
			all    []written
			kept   int // the first that the stream holds
			at     int // the first that the reader has not had
			r      *changefeed.Reader
			cursor cdc.Position
		)
		// open opens at a cursor, of which the change behind it is number from.
		open := func(text string, from int) {
			if r != nil {
				r.Close()
			}
			at = from
			var err error
			r, err = feeds.Open(ctx, client, text, filter)
			if code(err) == athena.CodeCursorExpired && at < kept {
				earliest, _ := athena.AsError(err).Details["earliest"].(cdc.Position)
				at = kept
				r, err = feeds.Open(ctx, client, string(earliest), filter)
			}
			if err != nil {
				t.Fatalf("open at %s: %v", text, err)
			}
			// Where at is before kept the stream has let go of changes that the hub
			// still has at hand: then take sees them.
			cursor = r.Cursor()
		}
		take := func(most int) {
			b, err := r.Take(ctx, most)
			if code(err) == athena.CodeCursorExpired && at < kept {
				open(string(cursor), at)
				return
			}
			if err != nil {
				t.Fatalf("take behind %s: %v", cursor, err)
			}
			if len(b.Lines) > most {
				t.Fatalf("asked for %d, got %d", most, len(b.Lines))
			}
			for _, pos := range of(t, b) {
				for at < len(all) && !all[at].wanted {
					at++
				}
				if at == len(all) || all[at].pos != pos {
					t.Fatalf("got %s as number %d of %v", pos, at, all)
				}
				at++
			}
			for at < len(all) && all[at].pos <= b.Cursor {
				if all[at].wanted {
					t.Fatalf("the cursor %s passes over %s", b.Cursor, all[at].pos)
				}
				at++
			}
			if b.Cursor < cursor {
				t.Fatalf("the cursor went back from %s to %s", cursor, b.Cursor)
			}
			cursor = b.Cursor
		}
		open(changefeed.FromEarliest, 0)
		actions := map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				var changes []cdc.Change
				for range rapid.IntRange(1, 12).Draw(t, "changes") {
					table := rapid.SampledFrom([]string{"a", "a", "a", "b", "cc"}).Draw(t, "table")
					op := rapid.SampledFrom([]cdc.Op{cdc.Insert, cdc.Insert, cdc.Update, cdc.Delete, cdc.Schema, cdc.Truncate}).Draw(t, "op")
					n := rapid.IntRange(0, 5).Draw(t, "n")
					after := ""
					if op == cdc.Insert || op == cdc.Update {
						after = fmt.Sprintf(`{"id":%d,"n":%d}`, n, n)
					}
					c := s.Change(op, table, n, after)
					all = append(all, written{c.Pos, wants(c, n)})
					changes = append(changes, c)
				}
				s.Write(rapid.SampledFrom([]int{1, 2, 3, 7, 512}).Draw(t, "pack"), changes...)
			},
			"tell of a snapshot": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("the first message is of a change")
				}
				s.Progress(changefeed.SnapshotProgress{ID: "s"})
			},
			"take":       func(t *rapid.T) { take(rapid.SampledFrom([]int{1, 2, 5, 1000}).Draw(t, "most")) },
			"come again": func(t *rapid.T) { open(string(cursor), at) },
			"come again anywhere": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("nowhere to come to")
				}
				n := rapid.IntRange(0, len(all)-1).Draw(t, "behind")
				open(string(all[n].pos), n+1)
			},
			"begin at the earliest": func(t *rapid.T) { open(changefeed.FromEarliest, kept) },
			"begin now":             func(t *rapid.T) { open(changefeed.FromNow, len(all)) },
		}
		if rapid.Bool().Draw(t, "the stream lets go of its oldest") {
			actions["let go"] = func(t *rapid.T) {
				stream, err := w.bus.JetStream().Stream(ctx, bus.CDCStream(client))
				if err != nil {
					t.Fatal(err)
				}
				state := stream.CachedInfo().State
				if state.Msgs == 0 {
					t.Skip("nothing to let go of")
				}
				// The worker has told the last position before that is gone.
				if err := w.store.PutStatus(ctx, changefeed.Status{Client: client, Position: all[len(all)-1].pos}); err != nil {
					t.Fatal(err)
				}
				s.Drop(rapid.Uint64Range(state.FirstSeq, state.LastSeq+1).Draw(t, "up to"))
				kept = len(all)
				first, err := w.bus.MsgFrom(ctx, bus.CDCStream(client), 1)
				if errors.Is(err, bus.ErrNoMessage) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if pos := first.Header.Get(changefeed.HeaderFirst); pos != "" {
					kept = slices.IndexFunc(all, func(c written) bool { return string(c.pos) == pos })
				} else {
					kept = 1 + slices.IndexFunc(all, func(c written) bool { return string(c.pos) == first.Header.Get(changefeed.HeaderPos) })
				}
			}
		}
		t.Repeat(actions)
		for deadline := time.Now().Add(20 * time.Second); at < len(all); {
			moved := r.Moved()
			before := at
			if take(1000); at == before && at < len(all) {
				select {
				case <-moved:
				case <-time.After(time.Until(deadline)):
					t.Fatalf("number %d of %v did not come", at, all)
				}
			}
		}
		r.Close()
	})
}
