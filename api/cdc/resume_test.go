package cdc_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	model "github.com/athena-pipelines/athena/pkg/cdc"
)

// TestReadersThatComeAgainMissNothing: readers of server-sent events break their
// connections at any place while changes are written, and come again with the id
// of the last event, as a browser does.
func TestReadersThatComeAgainMissNothing(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s := w.stream()
	var all []model.Change
	for i := range 400 {
		all = append(all, s.Change(model.Insert, []string{"orders", "items"}[i/3%2], i, fmt.Sprintf(`{"n":%d}`, i)))
	}
	var odd []model.Position
	for i, c := range all {
		if i%2 == 1 {
			odd = append(odd, c.Pos)
		}
	}
	var reading sync.WaitGroup
	for n := range 6 {
		query, want := "from=earliest", positions(all...)
		if n%2 == 1 {
			query, want = "from=earliest&where=after.n%252%3D%3D1", odd
		}
		reading.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 7))
			var got []model.Position
			last := ""
			for len(got) < len(want) {
				var headers []string
				if last != "" {
					headers = []string{"Last-Event-ID: " + last}
				}
				r := w.open(w.key, query, headers...)
				for blocks := 2 + rng.IntN(60); blocks > 0 && len(got) < len(want); blocks-- {
					e, ok := r.block()
					if !ok {
						break
					}
					if last = e.id; !e.bare {
						got = append(got, e.change(t).Pos)
					}
				}
				r.close()
			}
			if !slices.Equal(got, want) {
				t.Errorf("reader %d got %d changes, and not each once and in order", n, len(got))
			}
		})
	}
	for i := 0; i < len(all); i += 8 {
		s.Write(1+i%5, all[i:i+8]...)
	}
	reading.Wait()
}
