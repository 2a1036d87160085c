package chaos

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/localpg"
)

// broker are scenarios of JetStream, which is in the server's process.
func broker() []scenario {
	return []scenario{
		{
			name: "a broker killed and started again loses and repeats nothing",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(3, 10) {
					s.rest(time.Duration(500+s.rnd.IntN(2500)) * time.Millisecond)
					s.restart(s.rig.Server)
					s.check(s.rig.Ready(s.ctx))
					s.advances(time.Minute)
				}
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "a broker that is away holds up neither the database's stop nor, later, any change",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.rest(2 * time.Second)
				s.rig.Server.Kill()
				// Longer than any worker waits for an answer.
				s.rest(choose(15*time.Second, 60*time.Second))
				ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
				begin := time.Now()
				s.check(s.rig.Database.Stop(ctx, localpg.Fast))
				cancel()
				took := time.Since(begin)
				s.note("the database stopped in %.1f s", took.Seconds())
				if took > 5*time.Second {
					s.Errorf("the database took %.1f s to stop while the broker was away", took.Seconds())
				}
				s.check(s.rig.Database.Restart(s.ctx, localpg.Fast))
				s.restart(s.rig.Server)
				s.check(s.rig.Ready(s.ctx))
				s.advances(time.Minute)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "an outage of the broker longer than its memory for duplicates repeats nothing", long: true,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Pace: 100 * time.Millisecond})
				s.rest(2 * time.Second)
				// What is sent now is stored, and its answer lost.
				s.check(s.rig.Server.Signal(stopSignal))
				s.rest(time.Second)
				s.rig.Server.Kill()
				s.rest(2*time.Minute + 20*time.Second)
				s.restart(s.rig.Server)
				s.check(s.rig.Ready(s.ctx))
				s.advances(time.Minute)
				stop()
				s.verdict(3 * time.Minute)
			},
		},
		{
			name: "a broker that hangs for a while loses and repeats nothing",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(2, 5) {
					s.rest(time.Duration(500+s.rnd.IntN(1500)) * time.Millisecond)
					s.check(s.rig.Server.Signal(stopSignal))
					s.rest(time.Duration(3+s.rnd.IntN(12)) * time.Second)
					s.check(s.rig.Server.Signal(goSignal))
					s.advances(time.Minute)
				}
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "a stream that is full stops the capture, says so, and goes on when it may grow",
			rig:  rig.Config{Postgres: map[string]string{"wal_sender_timeout": "10s"}},
			run: func(s *stage) {
				s.enable(setup{"max_bytes": 1 << 20})
				stop := s.load(Load{Pace: 2 * time.Millisecond})
				// S2 makes little of what repeats itself.
				fill := s.alongside(func() {
					s.transact(Commit, func(w *Work) error {
						return w.Write("insert into logs (line) select string_agg(md5(random()::text), '') from generate_series(1, 400) g group by g % 20 returning ver")
					})
				})
				st := s.await(2*time.Minute, changefeed.Degraded)
				if st.Cause == nil || st.Cause.Code != "stream_full" {
					s.Errorf("it is degraded because of %+v, want stream_full\n%s", st.Cause, s.logs())
				}
				before := s.stored()
				s.rest(3 * time.Second)
				if after := s.stored(); after > before+1 {
					s.Logf("%d messages found room meanwhile", after-before)
				}
				fill()
				s.request(setup{"max_bytes": 1 << 30})
				s.await(90*time.Second, changefeed.Streaming)
				s.advances(time.Minute)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "a stream that somebody else writes to is never written to blindly",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.rest(time.Second)
				for range choose(6, 20) {
					// It says nothing, as one does that speaks of a snapshot.
					last, err := s.bus.LastMsg(s.ctx, bus.CDCStream(client), "ath.>")
					s.check(err)
					msg := nats.NewMsg(bus.CDCSnapshot(client, "stranger"))
					for _, name := range []string{changefeed.HeaderPos, changefeed.HeaderMark} {
						msg.Header.Set(name, last.Header.Get(name))
					}
					msg.Header.Set(changefeed.HeaderCount, "0")
					msg.Data = []byte("{}")
					if _, err := s.bus.JetStream().PublishMsg(s.ctx, msg, jetstream.WithExpectLastSequence(last.Sequence)); err != nil {
						s.Logf("the stranger was too late: %v", err)
					}
					s.advances(time.Minute)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
	}
}
