// Package postgres is the driver for PostgreSQL, on pgx.
//
// A Backend is a pool of connections to one database. Statements run in the
// extended protocol with values in text format, each in a transaction of its
// own and, where the statement was seen before, in one round trip. Types
// renders the values, and is used for change streams too. The package knows
// nothing of clients, capabilities or envelopes.
//
// Invariants:
//
//  1. A connection serves the next caller only if the session is as it was made:
//     after a cancel, a statement that changes the session, or a setting that
//     drifted, it is closed instead.
//  2. A statement that failed has had no effect, unless it ran outside of
//     transactions or the connection was lost while it was being committed.
//  3. The token of a transaction leaves only when the server can no longer give
//     its id to another transaction, whatever crashes (flush.go).
//  4. No error text leaves through Classify that names the host, the user or
//     the password.
package postgres

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

var (
	_ driver.Backend         = (*Backend)(nil)
	_ driver.Querier         = (*Backend)(nil)
	_ driver.TrackedQuerier  = (*Backend)(nil)
	_ driver.Explainer       = (*Backend)(nil)
	_ driver.Counter         = (*Backend)(nil)
	_ driver.SchemaReader    = (*Backend)(nil)
	_ driver.MigrationReader = (*Backend)(nil)
	_ driver.Provisioner     = (*Backend)(nil)
	_ driver.Identifier      = (*Backend)(nil)
	_ driver.ChangeSource    = (*Backend)(nil)
	_ driver.TableReader     = (*Backend)(nil)
	_ driver.TableCopier     = (*Backend)(nil)
	_ driver.TableWriter     = (*Backend)(nil)
)

// Backend is a pool of connections to one PostgreSQL database, one connection
// more while tracked writes run on a server before PostgreSQL 17, and one for
// each part of a table that a pipeline reads or writes.
type Backend struct {
	pool    *pgxpool.Pool
	config  *pgx.ConnConfig
	types   Types
	flusher flusher
	tables  tableConns
}

// Driver opens PostgreSQL backends.
func Driver() driver.Driver { return driver.New(Open) }

const (
	defaultMaxConns = 8
	// cancelGrace is how long the server has to act on a cancel before the
	// connection is cut.
	cancelGrace = 5 * time.Second
	// closeGrace bounds small, final acts such as a rollback.
	closeGrace = 3 * time.Second
	// commitGrace bounds a COMMIT, which the caller's context does not
	// interrupt: that would only make the outcome unknown.
	commitGrace = 30 * time.Second
)

// Open connects to a database and fails if it does not answer. The DSN must be
// the connection string itself, not a reference to one.
func Open(ctx context.Context, conn athena.PostgresConn) (*Backend, error) {
	cfg, err := pgxpool.ParseConfig(conn.DSN.Reveal())
	if err != nil {
		// Not pgx's text, which quotes the string.
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "connection.dsn is not a PostgreSQL connection string; write it as postgres://user:password@host:5432/database or as keywords and values").At("connection.dsn")
	}
	cfg.MaxConns = int32(conn.MaxConns)
	if cfg.MaxConns == 0 {
		cfg.MaxConns = defaultMaxConns
	}
	cfg.MinConns = 0
	cfg.MaxConnIdleTime = 5 * time.Minute
	cfg.MaxConnLifetime = time.Hour
	cfg.MaxConnLifetimeJitter = 5 * time.Minute
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	params := cfg.ConnConfig.RuntimeParams
	maps.Copy(params, SessionSettings())
	if params["application_name"] == "" {
		params["application_name"] = "athena"
	}
	cfg.ConnConfig.BuildContextWatcherHandler = func(pc *pgconn.PgConn) ctxwatch.Handler {
		s := &session{conn: pc, statements: map[string]*prepared{}}
		pc.CustomData()[sessionKey] = s
		return s
	}
	cfg.AfterConnect = prepareSession

	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	b := &Backend{pool: pool, config: cfg.ConnConfig.Copy()}
	if err := b.Ping(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return b, nil
}

// prepareSession makes the server notice soon that we are gone, so that what a
// lost worker left open does not hold its locks for long. Settings that a
// server does not have, or does not let us have, are left out.
func prepareSession(ctx context.Context, conn *pgx.Conn) error {
	const wanted = `SELECT set_config(param, want, false)
		FROM (VALUES ('idle_in_transaction_session_timeout', '60s'), ('tcp_keepalives_idle', '15'),
		             ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3')%s) AS w (param, want)
		WHERE current_setting(param, true) IS NOT NULL
		  AND (param <> 'idle_in_transaction_session_timeout' OR current_setting(param, true) = '0')`
	for _, more := range []string{`, ('client_connection_check_interval', '2s')`, ``} {
		_, err := conn.PgConn().Exec(ctx, fmt.Sprintf(wanted, more)).ReadAll()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// Ping reports whether the database answers now.
func (b *Backend) Ping(ctx context.Context) error {
	conn, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	defer release(conn)
	return conn.Ping(ctx)
}

// acquire takes a connection. Its errors are the caller's context's, or an
// unreachable.
func (b *Backend) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := b.pool.Acquire(ctx)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, &unreachable{err}
}

// catalog runs a query of our own and hands each row to scan. It returns the
// number of rows.
func (b *Backend) catalog(ctx context.Context, sql string, args []any, scan func(pgx.Rows) error) (n int, err error) {
	conn, err := b.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer release(conn)
	return on(conn.Conn())(ctx, sql, args, scan)
}

// Close closes all connections, once the statements that run have ended; those
// that still run when ctx is done lose theirs as they end.
func (b *Backend) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		b.pool.Close()
		b.flusher.close(ctx)
		b.tables.close()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("postgres: statements still run: %w", ctx.Err())
	}
}

// Language is SQL.
func (*Backend) Language() driver.Language { return driver.SQL }

// Analyze classifies a statement by its text.
func (*Backend) Analyze(text string) driver.Analysis { return analyze(text).Analysis }

// session is what we know of one connection. It also is the connection's
// context watcher.
type session struct {
	conn       *pgconn.PgConn
	statements map[string]*prepared // by text
	size       int                  // bytes of text
	clock      int                  // counts uses, for the choice of what to forget
	hasToken   bool                 // tokenStatement is prepared
	spent      atomic.Bool          // invariant 1: not to be used again
}

const sessionKey = "athena"

func sessionOf(pc *pgconn.PgConn) *session { return pc.CustomData()[sessionKey].(*session) }

// HandleCancel asks the server to stop what it does. A cancel request can
// arrive late, when another statement runs: so the connection is given up.
func (s *session) HandleCancel(context.Context) {
	s.spent.Store(true)
	s.conn.Conn().SetDeadline(time.Now().Add(cancelGrace))
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
		defer cancel()
		s.conn.CancelRequest(ctx) // if it fails, the deadline cuts the connection
	}()
}

// HandleUnwatchAfterCancel leaves the deadline: the connection is given up.
func (s *session) HandleUnwatchAfterCancel() {}

// intact reports whether the session's settings still are ours, as far as the
// server reports them.
func (s *session) intact() bool {
	for _, p := range [...]struct{ name, want string }{
		{"client_encoding", "UTF8"}, {"IntervalStyle", "iso_8601"}, {"TimeZone", "UTC"}, {"standard_conforming_strings", "on"},
	} {
		if got := s.conn.ParameterStatus(p.name); got != p.want && got != "" {
			return false
		}
	}
	style := s.conn.ParameterStatus("DateStyle")
	return style == "" || strings.HasPrefix(style, "ISO")
}

// release gives a connection back, after rolling back what may be open, or
// closes it.
func release(c *pgxpool.Conn) {
	pc := c.Conn().PgConn()
	s := sessionOf(pc)
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if !pc.IsClosed() && !s.spent.Load() && pc.TxStatus() != 'I' {
		if _, err := pc.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
			s.spent.Store(true)
		}
	}
	if !pc.IsClosed() && (s.spent.Load() || !s.intact()) {
		pc.Close(ctx)
	}
	c.Release()
}
