package changefeed_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed/changefeedtest"
)

func TestThePositionsBehindAnotherAreAllThatAreKept(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.capture("shop")
	positions := func(behind cdc.Position) (all []cdc.Position) {
		t.Helper()
		if err := w.store.Positions(t.Context(), "shop", behind, func(p cdc.Position) error {
			all = append(all, p)
			return nil
		}); err != nil {
			t.Fatalf("behind %q: %v", behind, err)
		}
		return all
	}
	if got := positions(""); got != nil {
		t.Errorf("a client without a stream has positions: %v", got)
	}
	s := changefeedtest.Make(t, w.bus, "shop", 100)
	if got := positions(""); got != nil {
		t.Errorf("an empty stream has positions: %v", got)
	}
	var want []cdc.Position
	for i := range 2500 { // more messages than are asked for at once
		a, b := s.Change(cdc.Insert, "orders", i, `{"id":1}`), s.Change(cdc.Insert, "orders", i, `{"id":2}`)
		if i%10 == 0 {
			s.Write(2, a)
			want = append(want, a.Pos)
			continue
		}
		s.Write(1+i%2, a, b)
		want = append(want, a.Pos, b.Pos)
	}
	if got := positions(""); !slices.Equal(got, want) {
		t.Errorf("got %d positions, want %d", len(got), len(want))
	}
	for _, i := range []int{0, 1, 17, len(want) / 2, len(want) - 2, len(want) - 1} {
		if got := positions(want[i]); !slices.Equal(got, want[i+1:]) {
			t.Errorf("behind the %dth there are %d positions, want %d", i, len(got), len(want)-i-1)
		}
	}
	if got := positions("ZZZZ"); got != nil {
		t.Errorf("behind the end there are %v", got)
	}
	s.Drop(2)
	if got := positions(""); len(got) >= len(want) || !slices.Equal(got, want[len(want)-len(got):]) {
		t.Errorf("of a stream whose first message is gone there are %d of %d positions", len(got), len(want))
	}
	if got := positions("0"); len(got) == 0 || got[len(got)-1] != want[len(want)-1] {
		t.Errorf("behind a position that is gone there are %d positions", len(got))
	}
	stop := errors.New("enough")
	if err := w.store.Positions(context.Background(), "shop", "", func(cdc.Position) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of the caller's is lost: %v", err)
	}
}
