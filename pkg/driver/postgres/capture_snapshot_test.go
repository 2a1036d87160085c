package postgres

import (
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// readAll reads a snapshot with several readers and returns "table key after" of
// every row, sorted.
func readAll(t *testing.T, snap driver.ChangeSnapshot, readers int) []string {
	t.Helper()
	parts, err := snap.Tables(t.Context(), readers)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	list := []string{}
	var g errgroup.Group
	g.SetLimit(readers)
	for _, p := range parts {
		g.Go(func() error {
			return snap.Read(t.Context(), p, func(key, after []byte) error {
				mu.Lock()
				defer mu.Unlock()
				list = append(list, p.Table.String()+" "+string(key)+" "+string(after))
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}
