package cdc

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// protocol is the subprotocol that a browser offers beside its key, since it can
// set no other header and takes no connection that chooses none of what it
// offered.
const protocol = "athena"

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// webSocket sends the stream over a WebSocket: each change in a text frame of its
// own. A frame {"cursor":"…"} tells how far the stream is where changes do not: at
// its beginning, behind each batch in an envelope other than athena's, and with a
// heartbeat where nothing wanted has come.
func (s *subscriber) webSocket(c *gin.Context, name string) {
	w := &upgrade{ResponseWriter: c.Writer}
	conn, err := websocket.Accept(w, c.Request, &websocket.AcceptOptions{Subprotocols: []string{protocol}})
	if err != nil {
		code := athena.CodeInvalidRequest
		if w.refused == http.StatusForbidden { // the page is of another origin
			code = athena.CodeForbidden
		}
		for _, name := range []string{"Content-Type", "Connection", "Upgrade"} { // of the answer that is not sent
			c.Writer.Header().Del(name)
		}
		envelope.Fail(c, athena.Wrap(code, err, "no WebSocket can be opened: %.300s", strings.TrimSpace(w.why)))
		return
	}
	defer func() { _ = conn.CloseNow() }()
	s.guard.onCut(func() { _ = conn.CloseNow() })
	ctx := conn.CloseRead(c.Request.Context()) // done when the peer has gone, or sends what he should not
	k := &socket{c: c, conn: conn, cursors: name != "" && name != cdc.EnvelopeAthena, stall: s.cfg.Limit}
	s.told = s.reader.Cursor()
	if k.tell(ctx, s.told) == nil { // who asked for now, say, comes again behind it
		s.pump(ctx, k)
	}
}

// upgrade keeps back what Accept says of a request that it refuses.
type upgrade struct {
	gin.ResponseWriter
	refused int
	why     string
}

func (u *upgrade) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		u.refused = status
		return
	}
	u.ResponseWriter.WriteHeader(status)
}

func (u *upgrade) Write(p []byte) (int, error) {
	u.why += string(p)
	return len(p), nil
}

// socket is a reader over a WebSocket.
type socket struct {
	c       *gin.Context
	conn    *websocket.Conn
	cursors bool // changes do not tell their position
	stall   time.Duration
	busy    bool // something was sent since the last heartbeat
}

func (k *socket) write(ctx context.Context, data []byte) error {
	k.busy = true
	ctx, cancel := context.WithTimeout(ctx, k.stall)
	defer cancel()
	return k.conn.Write(ctx, websocket.MessageText, data)
}

func (k *socket) change(ctx context.Context, _ cdc.Position, data []byte) error {
	return k.write(ctx, data)
}

func (k *socket) flush(ctx context.Context, cursor cdc.Position) error {
	if !k.cursors {
		return nil
	}
	return k.tell(ctx, cursor)
}

func (k *socket) tell(ctx context.Context, cursor cdc.Position) error {
	return k.write(ctx, []byte(`{"cursor":"`+string(cursor)+`"}`))
}

// beat pings a peer to whom nothing was sent, and waits for his answer.
func (k *socket) beat(ctx context.Context, cursor cdc.Position, known bool) error {
	if !known {
		if err := k.tell(ctx, cursor); err != nil {
			return err
		}
	}
	if k.busy {
		k.busy = false
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.stall)
	defer cancel()
	return k.conn.Ping(ctx)
}

// fail closes with 1013 where the peer may come again behind the cursor, which
// the reason holds, and with 1008 and the error's code as the reason where he may
// not before that is mended.
func (k *socket) fail(err *athena.Error, cursor cdc.Position) {
	_ = k.c.Error(err)
	switch {
	case err.Code == athena.CodeInternal:
		_ = k.conn.Close(websocket.StatusInternalError, string(err.Code)+" cursor="+string(cursor))
	case err.Retryable() && err.Code != athena.CodeClientFrozen:
		_ = k.conn.Close(websocket.StatusTryAgainLater, string(err.Code)+" cursor="+string(cursor))
	default:
		_ = k.conn.Close(websocket.StatusPolicyViolation, string(err.Code))
	}
}

func (k *socket) bye(cursor cdc.Position) {
	_ = k.conn.Close(websocket.StatusGoingAway, "the server is stopping cursor="+string(cursor))
}
