package chaos

import (
	"net/http"
	"syscall"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

const (
	stopSignal = syscall.SIGSTOP
	goSignal   = syscall.SIGCONT
)

// owners are scenarios of who captures.
func owners() []scenario {
	return []scenario{
		{
			name: "a worker that sleeps past its lease and wakes up beside its successor writes nothing more",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Pace: 5 * time.Millisecond})
				for range choose(2, 4) {
					s.rest(time.Second)
					has, other := s.worker()
					s.check(has.Signal(stopSignal))
					begin := time.Now()
					s.taken(other, 40*time.Second)
					s.note("taken over after %.1f s", time.Since(begin).Seconds())
					s.advances(time.Minute)
					s.check(has.Signal(goSignal))
					s.rest(3 * time.Second)
					if now, _ := s.worker(); now != other {
						s.Errorf("the sleeper took the capture back\n%s", s.logs())
					}
					s.advances(time.Minute)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a clean stop hands the capture over within 5 s", alone: true,
			run: func(s *stage) { s.handOver(5*time.Second, func(p *rig.Process) { s.check(p.Signal(syscall.SIGTERM)) }) },
		},
		{
			name: "kill -9 hands the capture over within 15 s", alone: true,
			run: func(s *stage) { s.handOver(15*time.Second, (*rig.Process).Kill) },
		},
		{
			name: "a frozen client is not captured, and nothing is missing once it is thawed",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(2, 4) {
					s.rest(time.Second)
					s.lifecycle("frozen")
					s.await(20*time.Second, changefeed.Held)
					before := s.stored()
					s.rest(3 * time.Second)
					if after := s.stored(); after != before {
						s.Errorf("%d messages of a frozen client were stored", after-before)
					}
					s.lifecycle("active")
					s.await(30*time.Second, changefeed.Streaming)
					s.advances(30 * time.Second)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
	}
}

func (s *stage) lifecycle(to string) {
	s.Helper()
	s.call(http.MethodPut, "/admin/clients/"+client+"/lifecycle", map[string]string{"lifecycle": to})
}

// taken waits until a worker has the capture.
func (s *stage) taken(by *rig.Process, most time.Duration) {
	s.Helper()
	if err := rig.Until(s.ctx, most, func() bool {
		st, err := s.status()
		return err == nil && st.State == changefeed.Streaming && st.Worker == by.Name
	}); err != nil {
		s.Fatalf("%s did not take the capture over: %v\n%s", by.Name, err, s.logs())
	}
}

// handOver measures from a worker's end to the first change that the other one
// stores.
func (s *stage) handOver(most time.Duration, end func(*rig.Process)) {
	s.Helper()
	s.enable(nil)
	stop := s.load(Load{Pace: 5 * time.Millisecond})
	var worst time.Duration
	for range choose(2, 5) {
		s.rest(2 * time.Second)
		has, other := s.worker()
		begin := time.Now()
		end(has)
		s.taken(other, 60*time.Second)
		s.advances(time.Minute)
		worst = max(worst, time.Since(begin))
		<-has.Done()
		s.restart(has)
	}
	stop()
	s.note("handed over within %.1f s, at the worst", worst.Seconds())
	if worst > most {
		s.Errorf("it took %.1f s to hand over, at the worst; want %s", worst.Seconds(), most)
	}
	s.verdict(time.Minute)
}
