package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/bench/judge"
)

// A Load writes to the tables of Schema, of everything some. Its choices follow
// its seed; how they interleave does not.
type Load struct {
	Source      *Source
	Seed        uint64
	Connections int
	Pace        time.Duration // mean wait of a connection between transactions
	// Large allows values of 1 MiB, and of 9 MiB, which no message takes.
	Large bool
	// Define has one connection change the columns of a table, and drop it and
	// make it again, in the publication of that name.
	Define      bool
	Publication string
	// Prepare allows prepared transactions.
	Prepare bool
}

// Run writes until ctx is done, and then ends what it has begun.
func (l *Load) Run(ctx context.Context) error {
	// Once ctx is done no transaction begins; those under way have a while.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(time.Minute, cancel) })()
	errs := make([]error, l.Connections)
	var running sync.WaitGroup
	for n := range l.Connections {
		running.Go(func() {
			s := l.Source.Session(l.Seed, uint64(n))
			defer s.Close()
			for ctx.Err() == nil && errs[n] == nil {
				errs[n] = l.one(work, s, n == 0)
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(s.rnd.Int64N(2*int64(l.Pace) + 1))):
				}
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// one runs one transaction of a few acts.
func (l *Load) one(ctx context.Context, s *Session, defines bool) error {
	fate := Commit
	switch n := s.rnd.IntN(100); {
	case n < 10:
		fate = Rollback
	case n < 14 && l.Prepare:
		fate = CommitPrepared
	case n < 16 && l.Prepare:
		fate = RollbackPrepared
	}
	if l.Define && defines && s.rnd.IntN(8) == 0 {
		return s.Transact(ctx, fate, func(w *Work) error { return l.reshape(w, s.rnd) })
	}
	acts := []int{1, 1, 1, 2, 3, 8, 40}[s.rnd.IntN(7)]
	return s.Transact(ctx, fate, func(w *Work) error {
		for range acts {
			act := func() error { return l.act(w, s.rnd) }
			var err error
			switch s.rnd.IntN(10) {
			case 0:
				err = w.Savepoint(true, act)
			case 1: // one within another
				err = w.Savepoint(s.rnd.IntN(2) == 0, func() error {
					return errors.Join(act(), w.Savepoint(s.rnd.IntN(2) == 0, act))
				})
			default:
				err = act()
			}
			if err != nil {
				return err
			}
		}
		if s.rnd.IntN(30) == 0 { // others overtake it
			select {
			case <-time.After(time.Duration(s.rnd.IntN(1500)) * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	})
}

const (
	someOrder   = "id = (select id from orders where id >= $1 order by id limit 1 for update skip locked)"
	someItem    = "(region, id) = (select region, id from items where id >= $1 order by id limit 1 for update skip locked)"
	someKind    = "id = (select id from kinds where id >= $1 order by id limit 1 for update skip locked)"
	someStrange = `id = (select id from "odd.one"."Strange ""name*" where id >= $1 order by id limit 1 for update skip locked)`
	somePart    = "id = (select id from parts where id >= $1 order by id limit 1 for update skip locked)"
	someLog     = "ctid = (select ctid from logs limit 1 offset $1)"
)

// act does one thing.
func (l *Load) act(w *Work, rnd *rand.Rand) error {
	src := l.Source
	some := func() int64 { return rnd.Int64N(src.top.Load() + 1) }
	word := fmt.Sprintf("%x", rnd.Uint32())
	switch rnd.IntN(34) {
	case 0, 1, 2, 3:
		var top int64
		if err := w.conn.QueryRow(w.ctx, "select nextval('ids')").Scan(&top); err != nil {
			return err
		}
		src.top.Store(max(src.top.Load(), top))
		return w.Write("insert into orders (id, status, total, note, raw) values ($1, 'new', $2::float8, repeat(md5($3), $4), decode(repeat(md5($3), $5), 'hex')) returning ver",
			top, float64(rnd.IntN(1e6))/100, word, l.size(rnd)/32, l.size(rnd)/128)
	case 4, 5:
		return w.Write("insert into items (region, sku, qty) select $1, $2, g from generate_series(1, $3) g returning ver", []string{"north", "süd", "o'st"}[rnd.IntN(3)], word, 1+rnd.IntN(5))
	case 6, 7, 8: // the large value of some rows is left as it is
		return w.Write("update orders set status = $2, ver = nextval('versions') where "+someOrder+" returning ver", some(), word)
	case 9:
		return w.Write("update orders set note = repeat(md5($2), $3), ver = nextval('versions') where "+someOrder+" returning ver", some(), word, l.size(rnd)/32)
	case 10: // and the key
		return w.Write("update orders set id = nextval('ids'), ver = nextval('versions') where "+someOrder+" returning ver", some())
	case 11:
		return w.Delete("delete from orders where "+someOrder+" returning id", some())
	case 12:
		return w.Write("update items set qty = qty + 1, ver = nextval('versions') where id between $1 and $1 + 40 returning ver", some())
	case 13:
		return w.Write("update items set region = 'west', id = nextval('ids'), ver = nextval('versions') where "+someItem+" returning ver", some())
	case 14:
		return w.Delete("delete from items where id between $1 and $1 + 10 returning id", some())
	case 15, 16:
		return w.Write("insert into kinds (" + kindColumns + ") values (" + kindValues(rnd) + ") returning ver")
	case 17:
		return w.Write("update kinds set ("+kindColumns+") = row("+kindValues(rnd)+"), ver = nextval('versions') where "+someKind+" returning ver", some())
	case 18, 19:
		return w.Write("insert into logs (line) values (repeat($1, $2)), ('twin') returning ver", word, 1+l.size(rnd)/64)
	case 20:
		return w.Write("update logs set at = clock_timestamp(), ver = nextval('versions') where "+someLog+" returning ver", rnd.IntN(20))
	case 21:
		return w.Drop("delete from logs where "+someLog+" returning ver", rnd.IntN(20))
	case 22, 23:
		return w.Write(`insert into "odd.one"."Strange ""name*" ("Val ue") values ($1) returning ver`, `tab	"quote" \ <&> €`+word)
	case 24:
		return w.Write(`update "odd.one"."Strange ""name*" set "Val ue" = null, ver = nextval('versions') where `+someStrange+" returning ver", some())
	case 25:
		return w.Write("insert into indexed (body) values ($1), (null) returning ver", word)
	case 26:
		return w.Write("update indexed set id = nextval('ids'), ver = nextval('versions') where id between $1 and $1 + 10 returning ver", some())
	case 27:
		return w.Delete("delete from indexed where id between $1 and $1 + 5 returning id", some())
	case 28:
		return w.Write("insert into parts (body) values ($1), ($1), ($1) returning ver", word)
	case 29:
		return errors.Join(
			w.Write("update parts set body = $2, ver = nextval('versions') where "+somePart+" returning ver", some(), word),
			w.Delete("delete from parts where "+somePart+" returning id", some()))
	case 30:
		return w.Say(rnd.IntN(4) > 0, "chaos", fmt.Sprintf("%s-%d", word, src.next.Load()))
	case 31:
		if err := w.Write("insert into scratch (body) values ($1), ($1) returning ver", word); err != nil || rnd.IntN(3) > 0 {
			return err
		}
		if rnd.IntN(3) == 0 {
			return w.Truncate(judge.Table{Schema: "public", Name: "scratch"}, judge.Table{Schema: "public", Name: "logs"})
		}
		return w.Truncate(judge.Table{Schema: "public", Name: "scratch"})
	case 32:
		return w.Exec("insert into foreign_rows values (repeat($1, 100))", word)
	default:
		return w.Write("insert into shape default values returning ver")
	}
}

// size is that of a value: mostly small, sometimes out of line, seldom large.
func (l *Load) size(rnd *rand.Rand) int {
	switch n := rnd.IntN(1000); {
	case n < 850:
		return rnd.IntN(200)
	case n < 970 || !l.Large:
		return 3000 + rnd.IntN(40_000)
	case n < 998:
		return 100_000 + rnd.IntN(900_000)
	}
	return 9 << 20
}

const kindColumns = "si, bi, re, dp, nu, bo, vc, ch, ts, tz, da, ti, tt, iv, by, js, jb, uu, ip, ia, ta, ra, tr, mu, co, ca, en, po, pt, bx, mo, tv, ls"

// kindValues writes values for kindColumns, each of which may be null.
func kindValues(rnd *rand.Rand) string {
	n := rnd.Int64() >> rnd.IntN(63)
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	values := []string{
		fmt.Sprint(int16(n)), fmt.Sprint(n), pick(fmt.Sprint(float32(n)/3), "'NaN'"), pick(fmt.Sprint(float64(n)/7), "'-Infinity'"),
		pick(fmt.Sprintf("%d.%03d", n, rnd.IntN(1000)), "'NaN'", "1e-30", "0.10"), pick("true", "false"), "'vérité'", "'ab'",
		pick("'2026-11-22 10:00:00.123456'", "'infinity'", "'0044-03-15 10:00:00 BC'"), pick("'2026-11-22 10:00:00.5+05:30'", "'-infinity'", "clock_timestamp()"),
		pick("'2026-02-28'", "'infinity'", "'5874897-12-31'"), "'23:59:59.999999'", "'10:00:00+05:30'", pick("'1 year 2 mons -3 days 04:05:06.789'", "'-1 second'"),
		pick(`'\x'`, fmt.Sprintf(`'\x%016x'`, uint64(n))), pick(`'{"b" : [1, {"c":"d, e"}]}'`, `'"<&>"'`), pick(`'{"a": 1.50, "z": null, "€": "\u0001"}'`, "'[]'"),
		fmt.Sprintf("'%08x-0000-4000-8000-%012x'", uint32(n), n&0xffffffffffff), pick("'10.0.0.1/8'", "'::1'"),
		pick("'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'"), pick(`'{"a,b","say \"x\"","back\\slash",NULL,"","NULL"}'`, "array['ü']"),
		pick("'[1,10)'", "'empty'", "'(,5]'"), pick("'[2026-01-01 00:00:00+00,)'", "'(,)'"), pick("'{[1,3),[5,7)}'", "'{}'"),
		pick(`row(1, 'a "b", c')`, "row(null, '')"), `array[row(1, 'z')::pair, null]`, pick("'so so'", "'glad'"), fmt.Sprint(1 + rnd.IntN(100)),
		"'(1.5,-2)'", "'10110'", "'$12.34'", "'fat & cat'::text::tsvector", "'16/B374D848'",
	}
	for i := range values {
		if rnd.IntN(6) == 0 {
			values[i] = "null"
		}
	}
	return strings.Join(values, ", ")
}

// reshape changes the columns of a table, or the table for another, and writes
// to it before and after.
func (l *Load) reshape(w *Work, rnd *rand.Rand) error {
	columns, err := w.shape()
	if err != nil {
		return err
	}
	insert := func() error { return w.Write("insert into shape default values returning ver") }
	if err := insert(); err != nil {
		return err
	}
	fresh := fmt.Sprintf("c%d", l.Source.next.Load())
	switch n := rnd.IntN(6); {
	case n == 0:
		err = w.Define("drop table shape; create table shape (id bigint primary key default nextval('ids'), " + fresh + " date, ver bigint default nextval('versions'))")
		if err == nil {
			err = w.Exec("alter publication " + l.Publication + " add table shape")
		}
	case n == 1 && len(columns) > 0:
		err = w.Define("alter table shape rename " + columns[0] + " to " + fresh)
	case n == 2 && len(columns) > 0:
		err = w.Define("alter table shape drop " + columns[0])
	case n == 3 && len(columns) > 0:
		err = w.Define("alter table shape alter " + columns[0] + " type text")
	default:
		err = w.Define("alter table shape add " + fresh + " " + []string{"text", "int", "timestamptz"}[rnd.IntN(3)])
	}
	if err != nil {
		return err
	}
	return errors.Join(insert(), w.Write("update shape set ver = nextval('versions') where id > $1 returning ver", rnd.Int64N(l.Source.top.Load()+1)))
}

// shape lists the columns of the table shape beside id and ver.
func (w *Work) shape() ([]string, error) {
	var columns []string
	err := w.conn.QueryRow(w.ctx, `select coalesce(array_agg(attname::text), '{}') from pg_attribute
		where attrelid = 'shape'::regclass and attnum > 0 and not attisdropped and attname not in ('id', 'ver')`).Scan(&columns)
	return columns, err
}

// Mark commits a row of the table marks, and returns the token of it.
func (s *Session) Mark(ctx context.Context) (judge.Token, error) {
	var mark judge.Token
	for ctx.Err() == nil {
		before := s.source.Ledger.Len()
		if err := s.Transact(ctx, Commit, func(w *Work) error {
			err := w.Write("insert into marks default values returning ver")
			if err == nil {
				mark = w.tokens[0]
			}
			return err
		}); err != nil {
			return "", err
		}
		if s.source.Ledger.Len() > before || !s.source.exact.Load() && mark != "" {
			return mark, nil
		}
	}
	return "", ctx.Err()
}
