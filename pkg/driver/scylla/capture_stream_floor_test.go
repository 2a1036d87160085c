package scylla

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestFloorNeverPassesWhatIsNotRead(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := &floor{begin: 100}
		read := map[string]ticks{}
		next, looked := ticks(0), ticks(0)
		begin := ticks(100)
		generation := 0
		start := func() {
			var groups [][]string
			clear(read)
			for g := range rapid.IntRange(1, 4).Draw(t, "groups") {
				var streams []string
				for i := range rapid.IntRange(1, 3).Draw(t, "streams") {
					streams = append(streams, fmt.Sprintf("%d.%d.%d", generation, g, i))
				}
				groups = append(groups, streams)
				for _, id := range streams {
					read[id] = begin
				}
			}
			generation++
			f.start(begin, groups)
		}
		start()
		last := f.at()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1: // a group is read
				g := f.groups[rapid.IntRange(0, len(f.groups)-1).Draw(t, "group")]
				at := g.read + ticks(rapid.IntRange(0, 50).Draw(t, "by"))
				for _, id := range g.streams {
					read[id] = at
				}
				if !f.pass(g.streams[0], at) {
					t.Fatal("the stream is not known")
				}
			case 2: // somebody looks, and a generation is told of that begins behind all that was looked at
				looked += ticks(rapid.IntRange(0, 100).Draw(t, "later"))
				if next == 0 && rapid.Bool().Draw(t, "told") {
					next = max(looked, begin) + ticks(rapid.IntRange(1, 80).Draw(t, "ahead"))
				}
				f.look([]ticks{begin, next}, looked)
			case 3: // the next generation is read, once the one before has been
				if next == 0 {
					continue
				}
				begin, next = next, 0
				start()
			}
			at := f.at()
			if at < last {
				t.Fatalf("it went back from %d to %d", last, at)
			}
			last = at
			for id, r := range read {
				if at > r {
					t.Fatalf("it is %d, and %s is read up to %d", at, id, r)
				}
			}
			if next != 0 && at > next {
				t.Fatalf("it is %d, beyond %d where the next generation begins", at, next)
			}
			if at > looked && at > begin {
				t.Fatalf("it is %d, and generations are known up to %d", at, looked)
			}
		}
		if f.pass("none", 1<<40) {
			t.Fatal("a stream is known that is none")
		}
	})
}

func TestStreamsAreParted(t *testing.T) {
	t.Parallel()
	id := func(version, vnode byte, n byte) []byte {
		b := make([]byte, streamBytes)
		b[0], b[15], b[14] = n, version|vnode<<4, vnode>>4
		return b
	}
	groups := vnodeGroups([][]byte{id(1, 0, 1), id(1, 1, 2), id(1, 0, 3), id(2, 0, 4), id(2, 0, 5), []byte("short")})
	var sizes []int
	for _, g := range groups {
		sizes = append(sizes, len(g))
	}
	if got := fmt.Sprint(sizes); got != "[2 1 1 1 1]" {
		t.Errorf("vnodes: the groups have %s streams", got)
	}
	if n := len(tabletGroups([][]byte{id(1, 0, 1), id(1, 0, 3)})); n != 2 {
		t.Errorf("tablets: there are %d groups", n)
	}
}

func TestHandedRemembersAsFarAsItSays(t *testing.T) {
	t.Parallel()
	var h handed
	rnd := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var all []batchID
	for i := range 5000 {
		b := batchID{table: uint32(i % 3), at: gocql.UUIDFromTime(now.Add(-time.Duration(rnd.IntN(600)) * time.Second))}
		if h.has(b) {
			t.Fatal("it has what it was not given")
		}
		h.add(b)
		all = append(all, b)
		if o := all[rnd.IntN(len(all))]; !h.has(o) {
			t.Fatal("it has not what it was given")
		}
	}
	h.forget(ticksOf(now.Add(-5 * time.Minute)))
	kept := 0
	for _, b := range all {
		switch young := b.at.Time().After(now.Add(-5 * time.Minute)); {
		case young && !h.has(b):
			t.Fatal("it forgot what is young")
		case h.has(b):
			kept++
		}
	}
	if kept == len(all) || h.count != kept {
		t.Errorf("it keeps %d of %d, and counts %d", kept, len(all), h.count)
	}
	if got := h.horizon(time.Hour); got != time.Hour {
		t.Errorf("it looks back %s", got)
	}
	h.ignore(ticksOf(now.Add(-time.Minute)))
	if got := h.horizon(time.Hour); got > 2*time.Minute {
		t.Errorf("told to ignore what is older it looks back %s", got)
	}
}

func TestPaceFollowsFromTheNumberOfGroups(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		setup  driver.ChangeSetup
		groups int
		delay  time.Duration
		page   int
	}{
		"few":        {driver.ChangeSetup{}, 16, leastDelay, 5000},
		"many":       {driver.ChangeSetup{}, 3000, 3 * time.Second, 100},
		"very many":  {driver.ChangeSetup{}, 50_000, mostDelay, 100},
		"none known": {driver.ChangeSetup{}, 0, leastDelay, 5000},
	} {
		p := newPace(tt.setup).with(tt.groups)
		if p.delay != tt.delay || p.page != tt.page || p.confidence != defaultConfidence || p.sweep != defaultSweep {
			t.Errorf("%s: it is %+v", name, p)
		}
		if a := p.advance(20 * time.Hour); a.QueryTimeWindowSize != 20*time.Minute || a.ConfidenceWindowSize != defaultConfidence {
			t.Errorf("%s: the library is told %+v", name, a)
		}
		if a := p.behind(0); a.QueryTimeWindowSize != 5*time.Minute || a.ConfidenceWindowSize != defaultSweep {
			t.Errorf("%s: the library is told %+v for the sweep", name, a)
		}
	}
	if p := newPace(driver.ChangeSetup{Sweep: -1}); p.sweep != 0 {
		t.Errorf("without a sweep it is %+v", p)
	}
}

func TestPanicInACallbackIsAnError(t *testing.T) {
	t.Parallel()
	s := &changeStream{failed: make(chan error, 1)}
	r := &logReader{stream: s, ctx: t.Context(), take: func(context.Context, *logReader, batchID, *scyllacdc.Change) error { panic("on purpose") }}
	c := consumer{r}
	for range 2 { // and what comes behind is dropped
		if err := c.Consume(t.Context(), scyllacdc.Change{StreamID: make([]byte, streamBytes)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-s.failed; !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("it fails with %v", err)
	}
	if !s.over.Load() {
		t.Error("the stream goes on")
	}
}
