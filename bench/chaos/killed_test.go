package chaos

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
)

// killed are scenarios in which processes die without a word.
func killed() []scenario {
	var all []scenario
	for _, at := range []struct{ point, when string }{
		{crashpoint.CDCRead, "it has read a transaction's first change"},
		{crashpoint.CDCPacked, "a group is packed and not sent"},
		{crashpoint.CDCPublished, "a group is sent and not answered"},
		{crashpoint.CDCStored, "a group is stored and not confirmed"},
		{crashpoint.CDCConfirmed, "a group is confirmed"},
	} {
		all = append(all, scenario{
			name: "a worker killed when " + at.when + " loses and repeats nothing",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.kill(at.point, choose(2, 5))
				stop()
				s.verdict(2 * time.Minute)
			},
		})
	}
	return append(all,
		scenario{
			name: "a worker killed when an open transaction is on disk loses and repeats nothing",
			rig:  spilling,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				running := s.alongside(func() { s.large(s.rnd.IntN(2) == 0) })
				s.kill(crashpoint.CDCSpilled, choose(2, 5))
				running()
				stop()
				s.verdict(3 * time.Minute)
			},
		},
		scenario{
			name: "a worker killed between making the slot and storing where it begins begins anew",
			run: func(s *stage) {
				s.seedRows(2000, append(seeded, "logs (line)", "indexed (body)")...)
				s.rig.Workers[1].Kill()
				s.check(s.rig.Workers[0].Start(crashpoint.CDCStarted + ":1"))
				s.request(setup{"snapshot": changefeed.SnapshotInitial})
				s.dies(s.rig.Workers[0], 30*time.Second)
				s.restart(s.rig.Workers...)
				s.await(time.Minute, changefeed.Streaming)
				s.source.Exact()
				stop := s.load(Load{})
				s.rest(3 * time.Second)
				stop()
				s.verdict(time.Minute)
			},
		},
		scenario{
			name: "a snapshot that kill -9 interrupts is continued, and the stream behind it is whole",
			run: func(s *stage) {
				s.again = true
				s.seedRows(choose(20_000, 100_000), append(seeded, "logs (line)", "indexed (body)")...)
				for _, w := range s.rig.Workers {
					s.check(w.Start(crashpoint.CDCSnapshotChunk + ":2"))
				}
				s.request(setup{"snapshot": changefeed.SnapshotInitial})
				s.begins(time.Minute)
				s.source.Exact()
				stop := s.load(Load{})
				s.dies(s.rig.Workers[0], time.Minute)
				s.dies(s.rig.Workers[1], time.Minute)
				s.restart(s.rig.Workers...)
				s.await(time.Minute, changefeed.Streaming)
				s.snapshotsEnd(2 * time.Minute)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		scenario{
			name: "kills of any process at any step, one after the other, lose and repeat nothing",
			long: true,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Large: true, Define: true, Prepare: true})
				var servers sync.WaitGroup
				servers.Go(func() {
					for range 5 {
						s.rest(time.Duration(5+s.rnd.IntN(10)) * time.Second)
						s.restart(s.rig.Server)
					}
				})
				s.kill("", 15)
				servers.Wait()
				stop()
				s.verdict(4 * time.Minute)
			},
		},
	)
}

// kill has the workers die at a point, or at any, until so many kills were.
// Then it leaves them running, and waits until one streams again.
func (s *stage) kill(point string, most int) {
	s.Helper()
	points := []string{crashpoint.CDCRead, crashpoint.CDCPacked, crashpoint.CDCPublished, crashpoint.CDCStored, crashpoint.CDCConfirmed}
	var kills, outside atomic.Int64
	var killers sync.WaitGroup
	for i, p := range s.rig.Workers {
		rnd := rand.New(rand.NewPCG(s.seed, 3000+uint64(i)))
		killers.Go(func() {
			for s.ctx.Err() == nil && kills.Load()+outside.Load() < int64(most) {
				at := point
				if at == "" {
					at = points[rnd.IntN(len(points))]
				}
				if err := p.Start(fmt.Sprintf("%s:%d", at, 1+rnd.IntN(25))); err != nil {
					s.Error(err)
					return
				}
				select {
				case <-p.Done():
				case <-time.After(40 * time.Second): // the other one has the capture
				case <-s.ctx.Done():
					return
				}
				if p.Killed() {
					kills.Add(1)
				} else {
					p.Kill()
					outside.Add(1)
				}
			}
		})
	}
	killers.Wait()
	if kills.Load() == 0 {
		s.Errorf("no worker came to %s", point)
	}
	s.note("%d kills at %q, %d from outside", kills.Load(), point, outside.Load())
	s.restart(s.rig.Workers...)
	s.await(90*time.Second, changefeed.Streaming)
	s.advances(time.Minute)
}

// begins waits until there is a slot that has found its beginning: everything
// from then on is kept for us.
func (s *stage) begins(most time.Duration) {
	s.Helper()
	if err := rig.Until(s.ctx, most, func() bool {
		return ask[bool](s, "select exists (select from pg_replication_slots where slot_name = $1 and confirmed_flush_lsn is not null)", slot)
	}); err != nil {
		s.Fatalf("there is no slot: %v\n%s", err, s.logs())
	}
}

// restart kills processes, and starts them without a crash point.
func (s *stage) restart(processes ...*rig.Process) {
	s.Helper()
	for _, p := range processes {
		s.check(p.Start(""))
	}
}

// dies waits until a process has killed itself.
func (s *stage) dies(p *rig.Process, most time.Duration) {
	s.Helper()
	select {
	case <-p.Done():
	case <-time.After(most):
		s.Fatalf("%s did not come to its crash point\n%s", p.Name, s.logs())
	}
	if !p.Killed() {
		s.Fatalf("%s ended otherwise\n%s", p.Name, s.logs())
	}
}

// alongside does something again and again until the returned function is called.
func (s *stage) alongside(do func()) (stop func()) {
	var running sync.WaitGroup
	done := make(chan struct{})
	running.Go(func() {
		for {
			do()
			select {
			case <-done:
				return
			case <-s.ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	return func() { close(done); running.Wait() }
}

// seeded are tables with a primary key, which a snapshot can read in chunks.
var seeded = []string{"orders (note)", "items (region)", "parts (body)", `"odd.one"."Strange ""name*" ("Val ue")`}

// seedRows fills tables before a capture is asked for, with so many rows in all.
func (s *stage) seedRows(n int, tables ...string) {
	s.Helper()
	s.transact(Commit, func(w *Work) error {
		for _, table := range tables {
			if err := w.Write("insert into "+table+" select 'seed ' || g from generate_series(1, $1) g returning ver", n/len(tables)); err != nil {
				return err
			}
		}
		return w.Write("insert into kinds (" + kindColumns + ") values (" + kindValues(s.rnd) + "), (" + kindValues(s.rnd) + ") returning ver")
	})
}

// snapshotsEnd waits until no snapshot is under way.
func (s *stage) snapshotsEnd(most time.Duration) {
	s.Helper()
	if err := rig.Until(s.ctx, most, func() bool {
		st, err := s.status()
		if err != nil || len(st.Snapshots) == 0 {
			return false
		}
		for _, p := range st.Snapshots {
			if p.State != "done" {
				return false
			}
		}
		return true
	}); err != nil {
		s.Fatalf("the snapshot did not end: %v\n%s", err, s.logs())
	}
}
