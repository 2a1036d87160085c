package chaos

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/judge"
	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

// lost are scenarios in which the source no longer has what comes next: the
// capture stops, says why, and never goes on as if nothing were missing.
func lost() []scenario {
	// behind stops the workers, changes something at the source, and starts them
	// again.
	behind := func(code string, change func(s *stage)) func(s *stage) {
		return func(s *stage) {
			s.enable(nil)
			stop := s.load(Load{})
			s.rest(2 * time.Second)
			for _, w := range s.rig.Workers {
				w.Kill()
			}
			change(s)
			before := s.end()
			s.restart(s.rig.Workers...)
			s.fails(code)
			stop()
			if after := s.end(); after != before {
				s.Errorf("the stream went on from %s to %s", before, after)
			}
			s.Logf("%.0f s: %s", time.Since(s.begun).Seconds(), s.notes)
		}
	}
	drop := "select pg_drop_replication_slot('" + slot + "')"
	create := "select pg_create_logical_replication_slot('" + slot + "', 'pgoutput')"
	return []scenario{
		{
			name: "a slot that is dropped fails the capture",
			run:  behind("slot_missing", func(s *stage) { s.freeSlot(); s.exec(drop) }),
		},
		{
			name: "a slot that is dropped and made again fails the capture",
			run: behind("slot_recreated", func(s *stage) {
				s.freeSlot()
				s.exec(drop)
				s.moreWrites()
				s.exec(create)
				s.moreWrites()
			}),
		},
		{
			name: "a slot that somebody else has read from fails the capture",
			run: behind("slot_recreated", func(s *stage) {
				s.freeSlot()
				s.moreWrites()
				s.exec("select pg_replication_slot_advance('" + slot + "', pg_current_wal_flush_lsn())")
				s.moreWrites()
			}),
		},
		{
			name: "a slot that the server gave up for its size fails the capture",
			rig:  rig.Config{Postgres: map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}},
			run: behind("slot_lost", func(s *stage) {
				s.freeSlot()
				if err := rig.Until(s.ctx, time.Minute, func() bool {
					s.foreignWrites(16 << 20)
					s.exec("checkpoint")
					return ask[string](s, "select wal_status from pg_replication_slots where slot_name = $1", slot) == "lost"
				}); err != nil {
					s.Fatal("the server did not give the slot up")
				}
			}),
		},
		{
			name: "a publication that is dropped fails the capture",
			run:  behind("publication_missing", func(s *stage) { s.exec("drop publication " + publication) }),
		},
		{
			name: "a client that is pointed at another database is not captured from there",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.rest(time.Second)
				s.exec("create database other")
				s.execOn(s.rig.Database.DSN("other"), Schema+"create publication "+publication+" for all tables")
				dsn := filepath.Join(s.rig.Server.DataDir(), "other-dsn")
				s.check(os.WriteFile(dsn, []byte(s.rig.Database.DSN("other")), 0o600))
				s.call(http.MethodPut, "/admin/clients/"+client, setup{
					"client_name": client, "engine": "postgres", "lifecycle": "active",
					"capabilities": map[string]bool{"cdc": true},
					"connection":   setup{"dsn": "file:" + dsn},
				})
				s.fails("other_source")
				// And back again nothing is missing.
				s.check(s.rig.Client(client, 4, "cdc"))
				s.await(time.Minute, changefeed.Streaming)
				s.advances(30 * time.Second)
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a capture that is disabled leaves nothing at the source, and one that is enabled anew begins anew",
			run: func(s *stage) {
				s.again = true
				s.seedRows(1000, seeded...)
				for n := range choose(2, 4) {
					s.request(setup{"snapshot": changefeed.SnapshotInitial})
					s.begins(time.Minute)
					s.source.Exact()
					stop := s.load(Load{})
					s.await(time.Minute, changefeed.Streaming)
					s.rest(2 * time.Second)
					stop()
					if n == choose(2, 4)-1 {
						break
					}
					mark, err := s.main.Mark(s.ctx)
					s.check(err)
					s.stores(mark, time.Minute)
					s.call(http.MethodPost, "/cdc/"+client+"/disable", nil)
					if err := rig.Until(s.ctx, 30*time.Second, func() bool {
						return !ask[bool](s, "select exists (select from pg_replication_slots) or exists (select from pg_publication)")
					}); err != nil {
						s.Fatalf("slot or publication are left behind\n%s", s.logs())
					}
					// What is written in between is in no stream.
					s.exec("insert into orders (id, ver, status) values (-10 - " + num(n) + ", -10 - " + num(n) + ", 'unseen'); delete from items where id % 2 = 0")
				}
				s.verdict(time.Minute)
			},
		},
		{
			name: "a slot that is dropped while it streams fails the capture",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.rest(2 * time.Second)
				if err := rig.Until(s.ctx, 30*time.Second, func() bool {
					conn, err := pgx.Connect(s.ctx, s.rig.DSN())
					if err != nil {
						return false
					}
					defer conn.Close(context.WithoutCancel(s.ctx))
					// The worker is back soon: both in one breath.
					_, err = conn.Exec(s.ctx, "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '"+slot+"' and active; "+drop, pgx.QueryExecModeSimpleProtocol)
					return err == nil
				}); err != nil {
					s.Fatal("the slot could not be dropped")
				}
				s.fails("slot_missing")
				stop()
				s.Logf("%.0f s: %s", time.Since(s.begun).Seconds(), s.notes)
			},
		},
		{
			name: "with on_loss=resnapshot a lost slot is made again, and the rows are read anew",
			run: func(s *stage) {
				s.again = true
				s.enable(setup{"on_loss": changefeed.Resnapshot, "snapshot": changefeed.SnapshotInitial})
				s.transact(Commit, func(w *Work) error {
					return w.Write("insert into orders (status) select 'before' from generate_series(1, 100) returning ver")
				})
				s.passes()
				s.rest(time.Second)
				for _, w := range s.rig.Workers {
					w.Kill()
				}
				s.freeSlot()
				s.exec(drop)
				// What is done now is in no log that is read. A snapshot has its outcome.
				s.exec("insert into orders (id, ver, status) values (-5, -5, 'unseen'); delete from orders where id % 2 = 0")
				s.restart(s.rig.Workers...)
				s.begins(time.Minute)
				stop := s.load(Load{})
				s.rest(2 * time.Second)
				stop()
				s.verdict(time.Minute)
			},
		},
	}
}

// freeSlot waits until nobody reads from the slot.
func (s *stage) freeSlot() {
	s.Helper()
	if err := rig.Until(s.ctx, time.Minute, func() bool {
		return !ask[bool](s, "select coalesce(bool_or(active), false) from pg_replication_slots where slot_name = $1", slot)
	}); err != nil {
		s.Fatal("the slot is still in use")
	}
}

// moreWrites commits something that has to be missed.
func (s *stage) moreWrites() {
	s.Helper()
	s.transact(Commit, func(w *Work) error {
		return w.Write("insert into orders (status) select 'missed' from generate_series(1, 10) returning ver")
	})
}

// foreignWrites makes log that holds nothing for the capture.
func (s *stage) foreignWrites(bytes int) {
	s.Helper()
	for range max(1, bytes>>20) {
		s.exec("insert into foreign_rows select repeat(md5(g::text), 32 * 16) from generate_series(1, 64) g; truncate foreign_rows")
	}
}

func num(n int) string { return strconv.Itoa(n) }

func wrote(ver int) judge.Token { return judge.Wrote(int64(ver)) }
