package bus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/bus"
)

func TestEscapeIsReversibleAndOneToken(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-c=.*>% /\\-]{0,9}`)).Draw(t, "s")
		e := bus.Escape(s)
		if e == "" || strings.ContainsAny(e, ".*> \t\r\n/\\%") {
			t.Fatalf("%q became %q", s, e)
		}
		if back, ok := bus.Unescape(e); !ok || back != s {
			t.Fatalf("%q became %q became %q", s, e, back)
		}
		// What Escape would not have written is not read: no two texts of one subject.
		if back, ok := bus.Unescape(s); ok && bus.Escape(back) != s {
			t.Fatalf("%q was read as %q", s, back)
		}
	})
}

func TestSubjectsAreReadBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-c.*> =]{2,5}`)).Filter(func(s string) bool { return s != bus.Any })
		a, b, c, d := text.Draw(t, "a"), text.Draw(t, "b"), text.Draw(t, "c"), text.Draw(t, "d")
		n := rapid.SliceOfN(rapid.IntRange(0, 1<<30), 3, 3).Draw(t, "n")
		for _, s := range []string{bus.JobSubject(a, b, c, d), bus.JobWake(a, b, c, d)} {
			if w, x, y, z, ok := bus.ParseJob(s); !ok || w != a || x != b || y != c || z != d || bus.JobID(s) != d {
				t.Fatalf("%q was read as %q %q %q %q", s, w, x, y, z)
			}
		}
		pairs := map[string]func(string) (string, string, bool){
			bus.JobEvent(a, b):    bus.ParseJobEvent,
			bus.JobHook(a, b):     bus.ParseJobHook,
			bus.JobHookWake(a, b): bus.ParseJobHook,
			bus.Dead(a, b):        bus.ParseDead,
			bus.Ops(a, b):         bus.ParseOps,
		}
		for s, parse := range pairs {
			if x, y, ok := parse(s); !ok || x != a || y != b {
				t.Fatalf("%q was read as %q %q", s, x, y)
			}
		}
		s := bus.Result(a, b, n[0], n[1], n[2])
		if x, y, i, j, k, ok := bus.ParseResult(s); !ok || x != a || y != b || i != n[0] || j != n[1] || k != n[2] {
			t.Fatalf("%q was read as %q %q %d %d %d", s, x, y, i, j, k)
		}
		if bus.CancelHintID(bus.CancelHint(a)) != a {
			t.Fatalf("cancel hint of %q", a)
		}
	})
}

func TestForeignSubjectsAreNotRead(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "ath", "ath.job", "ath.job.a.b.c", "ath.job.a.b.c.d.e", "ath.job.a.b.c.d.wake.wake", "ath.jobev.a", "ath.job.a.b.c.=4", "ath.job.a.b.c.=2e", "ath.job.a..c.d", "ath.result.a.b.c.d.e"} {
		if bus.JobID(s) != "" {
			t.Errorf("%q was read as a job", s)
		}
		if _, _, ok := bus.ParseJobEvent(s); ok {
			t.Errorf("%q was read as an event", s)
		}
		if _, _, _, _, _, ok := bus.ParseResult(s); ok {
			t.Errorf("%q was read as a result", s)
		}
		if bus.CancelHintID(s) != "" {
			t.Errorf("%q was read as a hint", s)
		}
	}
}

func TestSchedulesAndTimesToLiveRoundUp(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(0, rapid.Int64Range(0, 4e18).Draw(t, "at"))
		h := bus.Schedule("s", "t", at).Header.Get(jetstream.ScheduleHeader)
		got, err := time.Parse("@at "+time.RFC3339, h)
		if err != nil || got.Before(at) || got.Sub(at) >= time.Second {
			t.Fatalf("%s became %q: %v", at, h, err)
		}
		d := time.Duration(rapid.Int64Range(-1e9, 1e17).Draw(t, "ttl"))
		ttl, err := time.ParseDuration(bus.TTL(d))
		if err != nil || ttl < d || ttl < time.Second || ttl-max(d, 0) > time.Second {
			t.Fatalf("%s became %s: %v", d, ttl, err)
		}
	})
}
