package postgres

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A tableConn is a connection beside the pool that reads or writes in bulk: whoever
// reads waits for whoever writes, for long, and neither must hold what the other
// one waits for.
type tableConn struct {
	*pgx.Conn
	wire     *wire
	prepared bool // readStatement is
}

// tableConns keeps connections between one part and the next.
type tableConns struct {
	mu     sync.Mutex
	idle   []*tableConn // the last one was used last
	closed bool
}

const (
	maxIdleTables  = 8
	idleTableAfter = 15 * time.Second
)

func (l *tableConns) take() *tableConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.idle)
	if n == 0 {
		return nil
	}
	c := l.idle[n-1]
	l.idle = l.idle[:n-1]
	return c
}

// give keeps a connection for a while, or hangs up.
func (l *tableConns) give(c *tableConn) {
	l.mu.Lock()
	keep := !l.closed && len(l.idle) < maxIdleTables
	if keep {
		l.idle = append(l.idle, c)
	}
	l.mu.Unlock()
	if !keep {
		hangUp(c.Conn)
		return
	}
	time.AfterFunc(idleTableAfter, func() {
		l.mu.Lock()
		i := slices.Index(l.idle, c)
		if i >= 0 {
			l.idle = slices.Delete(l.idle, i, i+1)
		}
		l.mu.Unlock()
		if i >= 0 {
			hangUp(c.Conn)
		}
	})
}

func (l *tableConns) close() {
	l.mu.Lock()
	idle := l.idle
	l.idle, l.closed = nil, true
	l.mu.Unlock()
	for _, c := range idle {
		hangUp(c.Conn)
	}
}

// tableConn takes a connection and begins a transaction. No timeout of the role's
// ends what runs on it: reading takes as long as the rows need to be taken, and
// writing as long as they need to come.
func (b *Backend) tableConn(ctx context.Context, begin string) (*tableConn, error) {
	for {
		c := b.tables.take()
		if c == nil {
			break
		}
		if _, err := c.PgConn().Exec(ctx, begin).ReadAll(); err == nil {
			return c, nil
		}
		hangUp(c.Conn) // it was lost while it idled
	}
	c := &tableConn{}
	cfg := b.config.Copy()
	cfg.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		c.wire = &wire{r: r, buf: make([]byte, readAhead)}
		return pgproto3.NewFrontend(c.wire, w)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	default:
		return nil, &unreachable{err}
	}
	c.Conn = conn
	settings := "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = '" + idleTable + "'; "
	if serverMajor(conn.PgConn()) >= 17 {
		settings += "SET transaction_timeout = 0; "
	}
	if err = prepareSession(ctx, conn); err == nil {
		_, err = conn.PgConn().Exec(ctx, settings+begin).ReadAll()
	}
	if err != nil {
		hangUp(conn)
		return nil, err
	}
	return c, nil
}

// idleTable is how long a transaction may wait for rows. Longer than others may
// idle, for a source may be slow; not for ever, for it holds its rows' locks.
const idleTable = "10min"

// tableRead begins a transaction that cannot write.
func (b *Backend) tableRead(ctx context.Context) (*tableConn, error) {
	return b.tableConn(ctx, "BEGIN READ ONLY")
}

// endTable rolls back what is open. A connection that failed in the midst of rows
// is cut: the server finds out when it sends the next ones.
func (b *Backend) endTable(c *tableConn, failed bool) {
	pc := c.PgConn()
	if failed || pc.IsClosed() || sessionOf(pc).spent.Load() {
		pc.Conn().Close()
		hangUp(c.Conn)
		return
	}
	sql := "ROLLBACK"
	if c.prepared {
		sql += "; DEALLOCATE " + readStatement
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if pc.TxStatus() != 'I' { // of what receive has read it does not know
		if _, err := pc.Exec(ctx, sql).ReadAll(); err != nil {
			hangUp(c.Conn)
			return
		}
		c.prepared = false
	}
	if !sessionOf(pc).intact() {
		hangUp(c.Conn)
		return
	}
	b.tables.give(c)
}

// rows runs a prepared statement and hands over each row as it came: the number
// of its values, and of each its length and its bytes.
func (c *tableConn) rows(ctx context.Context, statement string, params [][]byte, formats []int16, row func(body []byte) error) error {
	front := c.PgConn().Frontend()
	front.SendBind(&pgproto3.Bind{PreparedStatement: statement, Parameters: params, ResultFormatCodes: formats})
	front.SendExecute(&pgproto3.Execute{})
	front.SendSync(&pgproto3.Sync{})
	_, err := c.receive(ctx, 'D', row)
	return err
}

// copyOut runs a COPY TO STDOUT, and returns the number of rows.
func (c *tableConn) copyOut(ctx context.Context, sql string, w io.Writer) (rows int64, err error) {
	c.PgConn().Frontend().SendQuery(&pgproto3.Query{String: sql})
	tag, err := c.receive(ctx, 'd', func(body []byte) error {
		_, err := w.Write(body)
		return err
	})
	return tag.RowsAffected(), err
}

// receive sends what the frontend holds, and hands over the bodies of one kind of
// message until the server is ready again.
func (c *tableConn) receive(ctx context.Context, wanted byte, each func(body []byte) error) (tag pgconn.CommandTag, err error) {
	pc := c.PgConn()
	stop := context.AfterFunc(ctx, func() { sessionOf(pc).HandleCancel(ctx) })
	defer func() {
		if !stop() {
			sessionOf(pc).spent.Store(true) // a cancel is on its way, and must not meet another statement
		}
	}()
	if err := pc.Frontend().Flush(); err != nil {
		return tag, err
	}
	var failed error
	for {
		kind, body, err := c.wire.next()
		if err != nil {
			return tag, err
		}
		if kind == wanted {
			if err := each(body); err != nil {
				return tag, err
			}
			continue
		}
		switch kind {
		case 'E':
			var e pgproto3.ErrorResponse
			if err := e.Decode(body); err != nil {
				return tag, err
			}
			failed = pgconn.ErrorResponseToPgError(&e)
		case 'C':
			tag = pgconn.NewCommandTag(string(bytes.TrimSuffix(body, []byte{0})))
		case 'Z':
			return tag, failed
		case '2', 'H', 'c', 'I', 'N', 'S', 'A': // bound, copying, copied, empty; notices
		default:
			return tag, fmt.Errorf("%w: message %q among rows", errMalformed, kind)
		}
	}
}
