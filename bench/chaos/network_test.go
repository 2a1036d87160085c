package chaos

import (
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
)

// proxied has a network between Athena and the database, and a server that
// notices soon when nobody is there.
var proxied = rig.Config{Proxied: true, Postgres: map[string]string{"wal_sender_timeout": "5s"}}

// network are scenarios of the network before the database.
func network() []scenario {
	return []scenario{
		{
			name: "connections that are cut are made anew, and nothing is lost or repeated", rig: proxied,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Large: true})
				for range choose(5, 20) {
					s.rest(time.Duration(200+s.rnd.IntN(1500)) * time.Millisecond)
					s.rig.Proxy.Cut()
				}
				s.advances(time.Minute)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
		{
			name: "a connection that is half open is given up for a new one", rig: proxied,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(1, 3) {
					s.rest(2 * time.Second)
					begin := time.Now()
					s.rig.Proxy.Strand()
					s.rest(2 * time.Second) // what is on its way arrives
					s.advances(90 * time.Second)
					s.note("stranded for %.1f s", time.Since(begin).Seconds())
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a network that is silent for a while delays changes, and loses and repeats none", rig: proxied,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(1, 3) {
					s.rest(2 * time.Second)
					s.rig.Proxy.Freeze(true)
					s.rest(choose(12*time.Second, 30*time.Second))
					s.rig.Proxy.Freeze(false)
					s.advances(90 * time.Second)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a database that cannot be reached for a while is captured on when it can", rig: proxied,
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				for range choose(1, 3) {
					s.rest(2 * time.Second)
					s.rig.Proxy.Refuse(true)
					s.rest(time.Duration(3+s.rnd.IntN(10)) * time.Second)
					s.rig.Proxy.Refuse(false)
					s.advances(90 * time.Second)
				}
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a network that is slow delays changes, and the server does not give up on the worker", rig: proxied,
			run: func(s *stage) {
				s.enable(nil)
				s.rig.Proxy.Slow(64 << 10)
				stop := s.load(Load{})
				s.rest(choose(12*time.Second, 40*time.Second)) // more than wal_sender_timeout
				before, err := s.status()
				s.check(err)
				if before.Restarts > 0 {
					s.Errorf("the worker began %d times anew\n%s", before.Restarts, s.logs())
				}
				s.rig.Proxy.Slow(0)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
	}
}
