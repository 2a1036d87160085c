package deferred_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// untracked is a backend without transactions that can be looked up, as of an
// engine that settles writes by time. Its first statements fail as they are told.
type untracked struct {
	driver.Backend
	driver.Querier
	*script
}

type script struct {
	mu    sync.Mutex
	fails []driver.Failure
	times []time.Time
}

var errScripted = errors.New("as it was told")

func (b untracked) Analyze(string) driver.Analysis {
	return driver.Analysis{Effect: driver.Write, Idempotent: true}
}

func (b untracked) Query(ctx context.Context, s driver.Statement) (driver.Rows, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times = append(b.times, s.WriteTime)
	if len(b.times) <= len(b.fails) {
		return nil, errScripted
	}
	return b.Querier.Query(ctx, s)
}

func (b untracked) Classify(err error) driver.Failure {
	if !errors.Is(err, errScripted) {
		return b.Backend.Classify(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fails[len(b.times)-1]
}

// A write may be made twice where an answer is lost: at one time, so that it is one.
// What provably was not made leaves no time behind.
func TestAllAttemptsOfAWriteAreOfOneTime(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE notes (n int)`)
	s := &script{fails: []driver.Failure{
		{Code: athena.CodeBackendUnavailable, NoEffect: true},
		{Code: athena.CodeBackendUnavailable},
		{Code: athena.CodeBackendUnavailable, NoEffect: true},
	}}
	d.workOn(d.parts, "one", func(b driver.Backend) driver.Backend { return untracked{b, b.(driver.Querier), s} }, nil)
	before := time.Now()
	j := d.submit("shop", `INSERT INTO notes VALUES (1)`, nil)
	st := d.endsIn(j, 60*time.Second, deferred.Succeeded)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.times) != 4 || len(st.Attempts) != 4 {
		t.Fatalf("%d attempts at %v", len(st.Attempts), s.times)
	}
	first, second := s.times[0], s.times[1]
	if first.Before(before) || !second.After(first) || !s.times[2].Equal(second) || !s.times[3].Equal(second) {
		t.Errorf("the write was made at %v; the second attempt, which may have had an effect, settles it", s.times)
	}
	if n := d.count(`SELECT count(*) FROM notes`); n != 1 {
		t.Errorf("%d rows", n)
	}
}
