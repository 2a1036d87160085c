package postgres

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgproto3"
)

// replicationName is the application_name of our replication connections, as the
// server shows it: it cuts longer ones.
func replicationName(client string) string {
	name := "athena-cdc-" + client
	return name[:min(len(name), maxName)]
}

// connectReplication makes a connection that understands replication commands
// and SQL.
func (b *Backend) connectReplication(ctx context.Context, client string) (*logConn, error) {
	cfg := b.config.Config.Copy()
	params := maps.Clone(cfg.RuntimeParams)
	params["replication"] = "database"
	params["application_name"] = replicationName(client)
	cfg.RuntimeParams = params
	// A context that is done cuts the connection: there is no statement to save.
	cfg.BuildContextWatcherHandler = func(pc *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: pc.Conn()}
	}
	c := &logConn{}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		c.in = bufio.NewReaderSize(&gatherer{r: r}, readAhead)
		return pgproto3.NewFrontend(c.in, w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unreachable{err}
	}
	c.pg = conn
	return c, nil
}

// readAhead is how much is read from the network at once.
const readAhead = 256 << 10

// A gatherer lets what comes in quick succession gather for a moment. The server
// sends each change by itself; on a busy machine, to be woken for each costs
// more than to decode it, and takes the time from the server.
type gatherer struct {
	r    io.Reader
	last time.Time // when something came
	few  bool      // and it was little
}

const (
	gatherTime  = 500 * time.Microsecond
	gatherBytes = 16 << 10
)

func (g *gatherer) Read(p []byte) (int, error) {
	if g.few && time.Since(g.last) < gatherTime {
		time.Sleep(gatherTime)
	}
	n, err := g.r.Read(p)
	g.last, g.few = time.Now(), n < gatherBytes
	return n, err
}

// A logConn is a connection in the midst of replication. One goroutine receives;
// status may be called by any.
type logConn struct {
	pg *pgconn.PgConn
	in *bufio.Reader // below pg
	mu sync.Mutex    // one writer at a time
}

// buffered is how many bytes can be had without waiting.
func (c *logConn) buffered() int { return c.in.Buffered() + c.pg.Frontend().ReadBufferLen() }

// A batch holds messages as they came, one after the other.
type batch struct {
	data  []byte
	items []item
}

// An item is one message of a batch.
type item struct {
	from, to  int // in data
	keepalive bool
	// end is how far the server's log reached when it sent the message; of a
	// keepalive, how far everything before it was sent.
	end uint64
}

const (
	batchBytes    = 256 << 10
	xlogHeader    = 25
	keepaliveSize = 18
)

// receive appends messages to the batch until it is full, or until the next one
// would have to be waited for. It calls urgent when the server wants an answer.
func (c *logConn) receive(b *batch, urgent func()) error {
	for {
		msg, err := c.pg.Frontend().Receive()
		if err != nil {
			return err
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			if err := b.add(m.Data, urgent); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		case *pgproto3.CopyDone:
			return errServerStops
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return fmt.Errorf("%w: %T", errMalformed, msg)
		}
		if len(b.data) >= batchBytes || c.buffered() == 0 && len(b.items) > 0 {
			return nil
		}
	}
}

// errServerStops: the server ended the stream, as it does when it shuts down.
var errServerStops = errors.New("postgres: the server ended the stream")

func (b *batch) add(data []byte, urgent func()) error {
	if len(data) == 0 {
		return errMalformed
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		if len(data) < xlogHeader {
			return errMalformed
		}
		from := len(b.data)
		b.data = append(b.data, data[xlogHeader:]...)
		b.items = append(b.items, item{from: from, to: len(b.data), end: binary.BigEndian.Uint64(data[9:])})
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		if len(data) != keepaliveSize {
			return errMalformed
		}
		b.items = append(b.items, item{keepalive: true, end: binary.BigEndian.Uint64(data[1:])})
		if data[17] != 0 {
			urgent()
		}
	}
	return nil
}

// status tells the server what is safe with us. Write, flush and apply are three
// fields of the protocol, and all three are said: a server may go by any. It is
// asked for an answer, if reply says so.
func (c *logConn) status(flushed uint64, reply bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.pg.Conn().SetWriteDeadline(time.Now().Add(statusTimeout)); err != nil {
		return err
	}
	lsn := pglogrepl.LSN(flushed)
	return pglogrepl.SendStandbyStatusUpdate(context.Background(), c.pg, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: lsn, WALFlushPosition: lsn, WALApplyPosition: lsn, ClientTime: time.Now(), ReplyRequested: reply,
	})
}

const statusTimeout = 10 * time.Second

// interrupt makes a receive that waits fail.
func (c *logConn) interrupt() { _ = c.pg.Conn().SetReadDeadline(time.Unix(1, 0)) }

func formatLSN(lsn uint64) string { return fmt.Sprintf("%016X", lsn) }

func parseLSN(mark string) (uint64, error) {
	if mark == "" {
		return 0, nil
	}
	return strconv.ParseUint(mark, 16, 64)
}
