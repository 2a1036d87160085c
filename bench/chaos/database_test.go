package chaos

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/localpg"
)

// spilling is a server that streams large transactions while they are open, to
// workers that keep little of them in memory.
var spilling = rig.Config{
	Postgres:       map[string]string{"logical_decoding_work_mem": "64kB"},
	WorkerSettings: "cdc:\n  spill_memory: 1MiB\n",
}

// database are scenarios of the database server and of what transactions do.
func database() []scenario {
	restarts := func(mode localpg.StopMode) func(s *stage) {
		return func(s *stage) {
			s.enable(nil)
			stop := s.load(Load{Prepare: true})
			for range choose(2, 5) {
				s.rest(time.Duration(1000+s.rnd.IntN(2000)) * time.Millisecond)
				ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
				s.check(s.rig.Database.Restart(ctx, mode))
				cancel()
				s.advances(time.Minute)
			}
			stop()
			s.verdict(time.Minute)
		}
	}
	return []scenario{
		{name: "a database restarted fast is captured on, and nothing is lost or repeated", run: restarts(localpg.Fast)},
		{name: "a database that crashes is captured on, and nothing is lost or repeated", run: restarts(localpg.Immediate)},
		{
			name: "a long transaction across restarts of the worker, overtaken by many short ones, comes whole",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				long := s.source.Session(s.seed, 4000)
				defer long.Close()
				s.check(long.Transact(s.ctx, Commit, func(w *Work) error {
					for range 3 {
						if err := w.Write("insert into orders (status) select 'long' from generate_series(1, 50) returning ver"); err != nil {
							return err
						}
						has, _ := s.worker()
						s.restart(has)
						s.advances(time.Minute)
					}
					return nil
				}))
				has, _ := s.worker()
				s.restart(has)
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a savepoint that is rolled back within a large transaction takes its rows along, and no others",
			rig:  spilling,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for i := range choose(4, 20) {
					s.large(i%2 == 0)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "large transactions that are open at once, and streamed in turns, come in the order of their commits",
			rig:  spilling,
			run: func(s *stage) {
				s.enable(nil)
				var stops []func()
				for n := range 4 {
					session := s.source.Session(s.seed, 5000+uint64(n))
					defer session.Close()
					stops = append(stops, s.alongside(func() { s.largeOn(session, n%2 == 0) }))
				}
				s.rest(choose(6*time.Second, 20*time.Second))
				for _, stop := range stops {
					stop()
				}
				s.verdict(5 * time.Minute)
			},
		},
		{
			name: "prepared transactions come when they are committed, whatever is restarted in between",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Prepare: true})
				for i := range choose(2, 4) {
					// One that is prepared through all of it.
					s.exec("begin; insert into orders (id, ver, status) values (-1 - " + num(i) + ", -1 - " + num(i) + ", 'prepared'); prepare transaction 'across_" + num(i) + "'")
					s.rest(500 * time.Millisecond)
					has, _ := s.worker()
					s.restart(has)
					s.advances(time.Minute)
					s.check(s.rig.Database.Restart(s.ctx, localpg.Fast))
					s.advances(time.Minute)
					s.exec("commit prepared 'across_" + num(i) + "'")
					s.source.Ledger.Committed(wrote(-1 - i))
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "an open transaction that the disk has no room for stops nothing for good and loses nothing",
			rig: rig.Config{
				Postgres:       map[string]string{"logical_decoding_work_mem": "64kB"},
				WorkerSettings: "cdc:\n  spill_memory: 1MiB\n  spill_max: 1MiB\n",
			},
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(2, 5) {
					s.transact(Commit, func(w *Work) error {
						err := w.Write("insert into logs (line) select repeat(md5(g::text), 8) from generate_series(1, 20000) g returning ver")
						s.rest(2 * time.Second)
						return err
					})
				}
				stop()
				s.noRoom()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "a disk that is full while a transaction is open stops nothing for good and loses nothing",
			rig:  spilling,
			run: func(s *stage) {
				for _, w := range s.rig.Workers {
					dir := filepath.Join(w.DataDir(), "spill")
					s.check(os.MkdirAll(dir, 0o700))
					if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", dir).CombinedOutput(); err != nil {
						s.Skipf("a small disk cannot be mounted here: %v: %s", err, out)
					}
					s.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
				}
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(2, 5) {
					s.large(true)
				}
				stop()
				s.noRoom()
				s.verdict(2 * time.Minute)
			},
		},
	}
}

// noRoom expects that a session has ended, as it does where there is no room.
func (s *stage) noRoom() {
	s.Helper()
	st, err := s.status()
	s.check(err)
	s.note("the worker began %d times anew", st.Restarts)
	if st.Restarts == 0 {
		s.Errorf("there was room for everything: the scenario shows nothing")
	}
}

// large runs a transaction that does not fit into memory at either end, with
// parts that are rolled back.
func (s *stage) large(commit bool) {
	session := s.source.Session(s.seed, uint64(6000+s.source.next.Load()))
	defer session.Close()
	s.largeOn(session, commit)
}

func (s *stage) largeOn(session *Session, commit bool) {
	fate := Commit
	if !commit {
		fate = Rollback
	}
	rows := func(w *Work, what string) func() error {
		return func() error {
			return w.Write("insert into orders (status, note) select $1, repeat('x', g % 300) from generate_series(1, 2500) g returning ver", what)
		}
	}
	if err := session.Transact(s.ctx, fate, func(w *Work) error {
		return errors.Join(
			rows(w, "kept")(),
			w.Savepoint(false, rows(w, "gone")),
			w.Savepoint(true, func() error {
				return errors.Join(rows(w, "kept")(), w.Savepoint(false, rows(w, "gone")), w.Savepoint(true, rows(w, "kept")))
			}),
			w.Savepoint(false, func() error {
				return errors.Join(rows(w, "gone")(), w.Savepoint(true, rows(w, "gone with the other")))
			}),
			rows(w, "kept")(),
		)
	}); err != nil && s.ctx.Err() == nil {
		s.Error(err)
	}
}
