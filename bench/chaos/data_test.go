package chaos

import (
	"fmt"
	"net/http"
	"time"

	"github.com/athena-pipelines/athena/bench/judge"
)

// data are scenarios of what is written: columns and tables that change, values
// of any size.
func data() []scenario {
	return []scenario{
		{
			name: "columns added, renamed, retyped and dropped, and a table dropped and made again, are followed",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Define: true, Connections: 4})
				for range choose(2, 6) {
					s.rest(3 * time.Second)
					has, _ := s.worker()
					s.restart(has)
				}
				s.advances(time.Minute)
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "a table that is renamed within a transaction is followed under both names",
			run: func(s *stage) {
				s.enable(nil)
				for n := range 3 {
					from, to := fmt.Sprintf("shape_%d", n-1), fmt.Sprintf("shape_%d", n)
					if n == 0 {
						from = "shape"
					}
					insert := func(w *Work, table string) error {
						return w.Write("insert into " + table + " default values returning ver")
					}
					s.transact(Commit, func(w *Work) error {
						for _, do := range []func() error{
							func() error { return insert(w, from) },
							func() error { return w.Define("alter table " + from + " rename to " + to) },
							func() error { return insert(w, to) },
							func() error { return w.Write("update " + to + " set ver = nextval('versions') returning ver") },
						} {
							if err := do(); err != nil {
								return err
							}
						}
						return nil
					})
					s.transact(Commit, func(w *Work) error { return insert(w, to) })
					has, _ := s.worker()
					s.restart(has)
				}
				for i, t := range s.tables {
					if t.Name == "shape" {
						s.tables[i] = judge.Table{Schema: "public", Name: "shape_2"}
					}
				}
				s.verdict(time.Minute)
			},
		},
		{
			name: "values beyond what a message holds come through, up to 50 MB, also across restarts",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Large: true, Connections: 2})
				for _, mb := range []int{7, 9, 20, 50} {
					s.transact(Commit, func(w *Work) error {
						return w.Write("insert into orders (status, note, raw) values ('large', repeat(md5($1), $2), decode(repeat(md5($1), 3000), 'hex')) returning ver", fmt.Sprint(mb), mb<<20/32)
					})
					s.transact(Commit, func(w *Work) error {
						// The large value is left as it is; in the second it moves with its row.
						if err := w.Write("update orders set status = 'touched', ver = nextval('versions') where status = 'large' returning ver"); err != nil {
							return err
						}
						return w.Write("update orders set id = nextval('ids'), status = 'moved', ver = nextval('versions') where status = 'touched' returning ver")
					})
					has, _ := s.worker()
					s.restart(has)
				}
				s.advances(time.Minute)
				stop()
				s.verdict(3 * time.Minute)
			},
		},
		{
			name: "one change in a message, where that is asked for, comes as all others do",
			run: func(s *stage) {
				s.enable(setup{"pack": 1})
				stop := s.load(Load{})
				s.rest(choose(4*time.Second, 15*time.Second))
				stop()
				s.verdict(time.Minute)
			},
		},
		{
			name: "rows that are read while the stream goes on fit into it, and a restart continues them",
			run: func(s *stage) {
				s.again = true
				s.seedRows(choose(20_000, 100_000), seeded...)
				s.enable(nil)
				stop := s.load(Load{})
				s.rest(time.Second)
				s.call(http.MethodPost, "/cdc/"+client+"/snapshots", setup{"tables": []string{"public.orders", "public.items", "public.kinds", "public.parts", `"odd.one"."Strange ""name*"`}})
				s.rest(time.Second)
				has, _ := s.worker()
				s.restart(has)
				s.snapshotsEnd(2 * time.Minute)
				stop()
				s.verdict(2 * time.Minute)
			},
		},
	}
}
