package postgres

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// flushPrefix marks the messages that flush writes into the WAL; readers of
// logical messages pass over them.
const flushPrefix = "athena"

// A transaction id is only safe to write down once the server cannot forget
// that it gave it out. Until something that carries the id, or a later one, has
// reached the disk, a crash makes the server give the same id to another
// transaction, whose commit would then pass for ours. So the WAL is flushed
// before a token leaves: from PostgreSQL 17 on by a function that can be called
// in the transaction itself, and before that by a small transaction elsewhere.
const (
	tokenQuery   = `SELECT pg_catalog.pg_current_xact_id()::text, ` + here
	tokenQuery17 = tokenQuery + `, pg_catalog.pg_logical_emit_message(false, '` + flushPrefix + `', '', true)`
	flushText    = `BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_catalog.pg_logical_emit_message(true, '` + flushPrefix + `', ''); COMMIT`
)

// flushesItself reports whether the server can flush within a transaction.
func flushesItself(pc *pgconn.PgConn) bool {
	version := pc.ParameterStatus("server_version")
	if i := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		version = version[:i]
	}
	major, _ := strconv.Atoi(version)
	return major >= 17
}

// flusher flushes the WAL on a connection of its own, one beyond the pool's: a
// pool whose connections all wait for it would otherwise wait for ever. Callers
// that come while a flush is under way share the next one.
type flusher struct {
	mu      sync.Mutex // guards next
	next    *flushRound
	running sync.Mutex // held by the round that flushes; guards conn
	conn    *pgx.Conn
}

type flushRound struct {
	done chan struct{}
	err  error
}

// flush returns when all that was in the WAL as it was called is on disk.
func (f *flusher) flush(ctx context.Context, cfg *pgx.ConnConfig) error {
	f.mu.Lock()
	round, leads := f.next, f.next == nil
	if leads {
		round = &flushRound{done: make(chan struct{})}
		f.next = round
	}
	f.mu.Unlock()
	if leads {
		go f.lead(context.WithoutCancel(ctx), round, cfg)
	}
	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *flusher) lead(ctx context.Context, round *flushRound, cfg *pgx.ConnConfig) {
	defer close(round.done)
	ctx, cancel := context.WithTimeout(ctx, commitGrace)
	defer cancel()
	f.running.Lock()
	defer f.running.Unlock()
	f.mu.Lock()
	f.next = nil // who comes from here on may have written after we flush
	f.mu.Unlock()

	for range 2 { // the connection may have died since it was last used
		fresh := f.conn == nil
		if fresh {
			conn, err := pgx.ConnectConfig(ctx, cfg)
			if err != nil {
				round.err = &unreachable{err}
				return
			}
			f.conn = conn
		}
		if _, round.err = f.conn.PgConn().Exec(ctx, flushText).ReadAll(); round.err == nil {
			return
		}
		f.conn.Close(ctx)
		f.conn = nil
		if fresh {
			return
		}
	}
}

func (f *flusher) close(ctx context.Context) {
	f.running.Lock()
	defer f.running.Unlock()
	if f.conn != nil {
		f.conn.Close(ctx)
		f.conn = nil
	}
}
