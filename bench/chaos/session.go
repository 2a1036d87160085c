package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/bench/judge"
)

// A Source is the database that is written to, and the ledger of what was
// committed there. It is safe for concurrent use.
type Source struct {
	DSN    string
	Ledger judge.Ledger

	exact atomic.Bool
	next  atomic.Int64 // numbers of transactions
	top   atomic.Int64 // highest id that was given
	mu    sync.Mutex
	did   map[string]int // transactions by their fate
}

// Exact says that a capture has begun: what is committed by transactions that
// begin from now on has to arrive. What was committed before may or may not.
func (s *Source) Exact() { s.exact.Store(true) }

// Fate is what becomes of a transaction.
type Fate string

// The fates.
const (
	Commit           Fate = "commit"
	Rollback         Fate = "rollback"
	CommitPrepared   Fate = "commit prepared"
	RollbackPrepared Fate = "rollback prepared"
)

func (f Fate) prepared() bool { return f == CommitPrepared || f == RollbackPrepared }

// A Session is one connection to the source, made anew when it was lost. It is
// not safe for concurrent use.
type Session struct {
	source *Source
	rnd    *rand.Rand
	conn   *pgx.Conn
}

// Session returns a session whose choices follow the seed.
func (s *Source) Session(seed, n uint64) *Session {
	return &Session{source: s, rnd: rand.New(rand.NewPCG(seed, n))}
}

// Close ends the connection.
func (s *Session) Close() {
	if s.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.conn.Close(ctx)
		s.conn = nil
	}
}

// Refresh gives up a connection that does not answer, as after a restart of the
// server.
func (s *Session) Refresh(ctx context.Context) {
	if s.conn != nil && s.conn.Ping(ctx) != nil {
		s.Close()
	}
}

// connect connects, for as long as it takes.
func (s *Session) connect(ctx context.Context) error {
	for s.conn == nil || s.conn.IsClosed() {
		conn, err := pgx.Connect(ctx, s.source.DSN)
		if err == nil {
			// Somebody else holds a lock for long: give up and do something else.
			_, err = conn.Exec(ctx, "set lock_timeout = '1s'; set deadlock_timeout = '100ms'", pgx.QueryExecModeSimpleProtocol)
			if err == nil {
				s.conn = conn
				return nil
			}
			conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// Work is a transaction under way.
type Work struct {
	ctx    context.Context
	conn   *pgx.Conn
	source *Source
	tokens []judge.Token
	loose  []judge.Token // not bound to the transaction's fate
	points int           // savepoints so far
}

// Transact runs one transaction, and enters what it has changed into the ledger
// if it was committed. A body that fails is rolled back, and so is everything if
// the connection is lost before the commit; both are no error. If it is lost at
// the commit, what became of it is found out. An error says that ctx was done
// before that.
func (s *Session) Transact(ctx context.Context, fate Fate, body func(*Work) error) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	exact, n := s.source.exact.Load(), s.source.next.Add(1)
	w := &Work{ctx: ctx, conn: s.conn, source: s.source}
	gid := fmt.Sprintf("chaos_%d", n)
	failed := func() error {
		if _, err := s.conn.Exec(ctx, "begin"); err != nil {
			return err
		}
		// The lock is held until the transaction has ended, wherever it is by
		// then; see settle.
		if _, err := s.conn.Exec(ctx, "select pg_advisory_xact_lock($1)", n); err != nil {
			return err
		}
		if _, err := s.conn.Exec(ctx, "insert into outcomes values ($1)", n); err != nil {
			return err
		}
		return body(w)
	}()
	committed, err := false, error(nil)
	switch {
	case failed != nil || fate == Rollback:
		fate = Rollback
		if _, err := s.conn.Exec(ctx, "rollback"); err != nil {
			s.Close()
		}
	case fate.prepared():
		if _, err = s.conn.Exec(ctx, "prepare transaction '"+gid+"'"); err == nil {
			time.Sleep(time.Duration(s.rnd.IntN(300)) * time.Millisecond)
			_, err = s.conn.Exec(ctx, string(fate)+" '"+gid+"'")
		}
		committed = fate == CommitPrepared
	default:
		_, err = s.conn.Exec(ctx, "commit")
		committed = true
	}
	if err != nil && fate != Rollback {
		s.Close()
		if committed, err = s.settle(ctx, n, gid, fate); err != nil {
			s.source.Ledger.Perhaps(append(w.tokens, w.loose...)...)
			return err
		}
	}
	if s.source.count(fate); failed != nil {
		s.source.count(Fate("failed with " + failure(failed)))
	}
	s.source.Ledger.Perhaps(w.loose...)
	switch {
	case committed && exact:
		s.source.Ledger.Committed(w.tokens...)
	case committed:
		s.source.Ledger.Perhaps(w.tokens...)
	}
	return ctx.Err()
}

// settle finds out what became of a transaction at whose end the connection was
// lost, and ends it if it is prepared.
func (s *Session) settle(ctx context.Context, n int64, gid string, fate Fate) (committed bool, err error) {
	for {
		if err := s.connect(ctx); err != nil {
			return false, err
		}
		committed, err = func() (bool, error) {
			var prepared bool
			if err := s.conn.QueryRow(ctx, "select exists (select from pg_prepared_xacts where gid = $1)", gid).Scan(&prepared); err != nil {
				return false, err
			}
			if prepared {
				if _, err := s.conn.Exec(ctx, string(fate)+" '"+gid+"'"); err != nil {
					return false, err
				}
			}
			// The lock is free once the transaction's own backend is through
			// with it.
			if _, err := s.conn.Exec(ctx, "select pg_advisory_lock($1), pg_advisory_unlock($1)", n); err != nil {
				return false, err
			}
			var done bool
			err := s.conn.QueryRow(ctx, "select exists (select from outcomes where n = $1)", n).Scan(&done)
			return done, err
		}()
		if err == nil {
			return committed, nil
		}
		select {
		case <-ctx.Done():
			return false, errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// failure is the SQLSTATE of an error of the server, or what else it is.
func failure(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return "a lost connection"
}

func (s *Source) count(f Fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.did == nil {
		s.did = map[string]int{}
	}
	s.did[string(f)]++
}

// Did counts the transactions by their fate.
func (s *Source) Did() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.did)
}

// Write runs an insert or update that returns the versions it has given.
func (w *Work) Write(sql string, args ...any) error { return w.enter(judge.Wrote, sql, args) }

// Delete runs a delete that returns the ids of its rows.
func (w *Work) Delete(sql string, args ...any) error { return w.enter(judge.Deleted, sql, args) }

// Drop runs a delete in a table without a key that returns the rows' versions.
func (w *Work) Drop(sql string, args ...any) error { return w.enter(judge.Dropped, sql, args) }

func (w *Work) enter(token func(int64) judge.Token, sql string, args []any) error {
	rows, err := w.conn.Query(w.ctx, sql, args...)
	if err != nil {
		return err
	}
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&n}, func() error {
		w.tokens = append(w.tokens, token(n))
		return nil
	})
	return err
}

// Truncate truncates tables.
func (w *Work) Truncate(tables ...judge.Table) error {
	sql := "truncate "
	for i, t := range tables {
		if i > 0 {
			sql += ", "
		}
		sql += pgx.Identifier{t.Schema, t.Name}.Sanitize()
		w.tokens = append(w.tokens, judge.Truncated(t.Schema, t.Name))
	}
	return w.Exec(sql)
}

// Say writes a message to the log, bound to the transaction or not.
func (w *Work) Say(bound bool, prefix, content string) error {
	if err := w.Exec("select pg_logical_emit_message($1, $2, $3)", bound, prefix, content); err != nil {
		return err
	}
	if bound {
		w.tokens = append(w.tokens, judge.Said(prefix, content))
	} else {
		w.loose = append(w.loose, judge.Said(prefix, content))
	}
	return nil
}

// Define changes tables, here and, through the stream, in the replica.
func (w *Work) Define(sql string) error {
	if err := w.Exec(sql); err != nil {
		return err
	}
	return w.Say(true, judge.DDL, sql)
}

// Exec runs what changes no captured rows.
func (w *Work) Exec(sql string, args ...any) error {
	_, err := w.conn.Exec(w.ctx, sql, args...)
	return err
}

// Savepoint runs a part of the transaction that is kept or rolled back.
func (w *Work) Savepoint(keep bool, body func() error) error {
	w.points++
	kept, name := len(w.tokens), fmt.Sprintf("s%d", w.points)
	if err := w.Exec("savepoint " + name); err != nil {
		return err
	}
	if err := body(); err == nil && keep {
		return w.Exec("release savepoint " + name)
	}
	w.tokens = w.tokens[:kept]
	return w.Exec("rollback to savepoint " + name)
}
