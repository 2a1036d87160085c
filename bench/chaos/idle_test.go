package chaos

import (
	"context"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/localpg"
)

// idle are scenarios of a capture that has nothing to do.
func idle() []scenario {
	return []scenario{
		{
			name: "a database whose capture is idle stops within 2 s", alone: true,
			run: func(s *stage) {
				s.enable(nil)
				var worst time.Duration
				for range 3 {
					s.passes()
					s.rest(3 * time.Second)
					ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
					begin := time.Now()
					s.check(s.rig.Database.Stop(ctx, localpg.Fast))
					worst = max(worst, time.Since(begin))
					cancel()
					s.check(s.rig.Database.Restart(s.ctx, localpg.Fast))
					s.worker()
				}
				s.note("stopped within %.2f s, at the worst", worst.Seconds())
				if worst > 2*time.Second {
					s.Errorf("it took %.2f s to stop the database, at the worst", worst.Seconds())
				}
				s.verdict(time.Minute)
			},
		},
		{
			name: "a database whose captured tables are idle keeps at most 64 MB of log after others wrote much", alone: true,
			rig: rig.Config{Postgres: map[string]string{"max_wal_size": "256MB", "min_wal_size": "80MB"}},
			run: func(s *stage) {
				s.enable(nil)
				s.passes()
				start := ask[string](s, "select pg_current_wal_lsn()::text")
				most := choose(256, 1024)
				for written := 0; written < most<<20; {
					s.foreignWrites(32 << 20)
					written = ask[int](s, "select pg_wal_lsn_diff(pg_current_wal_lsn(), $1)::bigint", start)
				}
				begin := time.Now()
				s.exec("checkpoint")
				retained := func() int {
					return ask[int](s, "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint from pg_replication_slots where slot_name = $1", slot)
				}
				first := retained()
				err := rig.Until(s.ctx, 60*time.Second, func() bool { return retained() <= 64<<20 })
				took := time.Since(begin)
				s.note("%d MB written by others; %d MB were kept at their end, and %d MB %.1f s later", most, first>>20, retained()>>20, took.Seconds())
				if err != nil || took > 30*time.Second {
					s.Errorf("after %.0f s the slot keeps %d MB\n%s", took.Seconds(), retained()>>20, s.logs())
				}
				s.verdict(time.Minute)
			},
		},
	}
}
