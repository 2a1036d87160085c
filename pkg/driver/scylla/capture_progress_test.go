package scylla

import (
	"slices"
	"testing"
	"time"

	"github.com/gocql/gocql"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func drawPlace(t *rapid.T) place {
	p := place{
		counter: rapid.Uint64().Draw(t, "counter"),
		batchID: batchID{table: rapid.Uint32().Draw(t, "table")},
		n:       rapid.Uint32Range(0, mostChanges).Draw(t, "n"),
		last:    rapid.Bool().Draw(t, "last"),
		late:    rapid.Bool().Draw(t, "late"),
	}
	copy(p.stream[:], rapid.SliceOfN(rapid.Byte(), streamBytes, streamBytes).Draw(t, "stream"))
	copy(p.at[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "at"))
	return p
}

func TestPositionsOfOneStreamSortAsTheirBatchesWereHandedOver(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := drawPlace(t)
		pos := a.position()
		if !pos.Valid() || len(pos) != placeLength {
			t.Fatalf("%q is no position", pos)
		}
		got, err := parsePlace(pos)
		if err != nil || got != a {
			t.Fatalf("%q is %+v, %v, want %+v", pos, got, err, a)
		}
		for _, beside := range []cdc.Position{pos.Read(7), pos.BeforeNext(), pos.BeforeNext().BeforeNext()} {
			if got, err := parsePlace(beside); err != nil || got != a {
				t.Fatalf("%q is %+v, %v, want %+v", beside, got, err, a)
			}
		}
		next := a // the next change of the batch
		if a.n < mostChanges && !a.last {
			next.n++
			next.last = rapid.Bool().Draw(t, "next is last")
			if got := next.position(); got <= pos.BeforeNext() || batchPosition(got) != batchPosition(pos) {
				t.Fatalf("%q does not follow %q", got, pos)
			}
		}
		b := drawPlace(t)
		if (a.counter < b.counter) != (pos < b.position()) && a.counter != b.counter {
			t.Fatalf("%q and %q are not in the order of their counters", pos, b.position())
		}
		if a.counter > 0 {
			if at := counterPosition(a.counter); at >= pos || at <= (place{counter: a.counter - 1, batchID: b.batchID, n: mostChanges, last: true, late: true}).position().BeforeNext() {
				t.Fatalf("%q does not part the batches", at)
			}
		}
	})
}

func TestMarksGrowWithWhatWasHandedOver(t *testing.T) {
	t.Parallel()
	draw := func(t *rapid.T) mark {
		return mark{
			ticks(rapid.Int64Min(0).Draw(t, "floor")), rapid.Uint64().Draw(t, "behind"),
			ticks(rapid.Int64Min(0).Draw(t, "swept")), rapid.Uint64().Draw(t, "since"), rapid.Uint64().Draw(t, "counter"),
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := draw(t)
		if got, err := parseMark(a.String()); err != nil || got != a {
			t.Fatalf("%q is %+v, %v", a, got, err)
		}
		b := mark{max(a.floor, draw(t).floor), max(a.behind, draw(t).behind), max(a.swept, draw(t).swept), max(a.since, draw(t).since), max(a.counter, draw(t).counter)}
		if b.String() < a.String() || a != b && b.String() == a.String() {
			t.Fatalf("%q does not follow %q", b, a)
		}
	})
}

func FuzzPlacesAndMarks(f *testing.F) {
	f.Add(string(place{counter: 1, n: 1, last: true}.position()))
	f.Add(mark{floor: 1, counter: 2}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parsePlace(cdc.Position(text)); err == nil && len(text) == placeLength {
			if again, err := parsePlace(p.position()); err != nil || again != p {
				t.Errorf("%q is %+v, and then %+v, %v", text, p, again, err)
			}
		}
		if m, err := parseMark(text); err == nil && m.String() != text {
			t.Errorf("%q is %+v", text, m)
		}
	})
}

func TestTrailFindsACounterBeforeWhichAllIsOlder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const floor = 1000
		var l trail
		l.begin(10, floor)
		type batch struct {
			counter uint64
			at      ticks
		}
		var all []batch
		now := time.Unix(0, 0)
		for i := range rapid.IntRange(0, 200).Draw(t, "batches") {
			b := batch{uint64(11 + i), floor + ticks(rapid.IntRange(0, 500).Draw(t, "at"))}
			all = append(all, b)
			now = now.Add(time.Duration(rapid.IntRange(0, 80).Draw(t, "ms")) * time.Millisecond)
			l.add(b.counter, b.at, now)
		}
		floors := rapid.SliceOfN(rapid.IntRange(0, 600), 1, 5).Draw(t, "floors")
		slices.Sort(floors)
		last := uint64(0)
		for _, f := range floors {
			at := floor + ticks(f)
			got := l.before(at)
			if got < last {
				t.Fatalf("it went back from %d to %d", last, got)
			}
			last = got
			for _, b := range all {
				if b.counter <= got && b.at >= at {
					t.Fatalf("%d is said to be older than %d, and has %d", got, at, b.at)
				}
			}
			l.forget(at)
		}
		if got := l.before(floor + 501); len(all) > 0 && got != all[len(all)-1].counter {
			t.Fatalf("all is older, and it says %d", got)
		}
	})
}

func TestTrailOfAFloorThatStaysIsBounded(t *testing.T) {
	t.Parallel()
	var l trail
	l.begin(0, 1)
	now := time.Unix(0, 0)
	for i := range 3 * mostSteps {
		now = now.Add(trailEvery)
		l.add(uint64(i+1), ticks(i+1), now)
	}
	if len(l.steps) > mostSteps {
		t.Errorf("it has %d steps", len(l.steps))
	}
	if got := l.before(3 * mostSteps); got > 3*mostSteps || got < mostSteps {
		t.Errorf("it says %d", got)
	}
}

func TestTicksAreThoseOfTimeUUIDs(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 1, 2, 3, 456789100, time.UTC)
	if got := ticksOf(at).time(); !got.Equal(at) {
		t.Errorf("%s became %s", at, got)
	}
	u := gocql.UUIDFromTime(at)
	if got := ticks(u.Timestamp()); got != ticksOf(at) {
		t.Errorf("the timeuuid's is %d, the time's %d", got, ticksOf(at))
	}
	if tableHash(driver.TableName{Schema: "a", Table: "bc"}) == tableHash(driver.TableName{Schema: "ab", Table: "c"}) {
		t.Error("two tables have one hash")
	}
}
