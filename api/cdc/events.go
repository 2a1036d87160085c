package cdc

import (
	"context"
	"maps"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// events sends the stream as server-sent events named change, whose id is the
// cursor. A block with an id and no data is no event to the reader, but sets what
// he sends as Last-Event-ID: so his cursor moves while nothing that he wants
// comes (WHATWG HTML, 9.2.6).
func (s *subscriber) events(c *gin.Context) {
	middleware.SetStall(c, s.cfg.Limit)
	c.Header("Content-Type", "text/event-stream; charset=utf-8")
	c.Header("X-Accel-Buffering", "no") // nginx would hold events back
	c.Status(http.StatusOK)
	s.guard.onCut(func() { _ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now()) })
	s.told = s.reader.Cursor()
	e := &eventWriter{c: c}
	if e.block(appendID([]byte("retry: 1000\n"), s.told)) == nil {
		s.pump(c.Request.Context(), e)
	}
}

// eventWriter is a reader of server-sent events.
type eventWriter struct {
	c   *gin.Context
	buf []byte
}

func appendID(dst []byte, cursor cdc.Position) []byte {
	return append(append(append(dst, "id: "...), cursor...), '\n')
}

func (e *eventWriter) write(block []byte) error {
	_, err := e.c.Writer.Write(block)
	return err
}

func (e *eventWriter) change(_ context.Context, pos cdc.Position, data []byte) error {
	if cap(e.buf) > 64<<10 {
		e.buf = nil
	}
	e.buf = append(appendID(e.buf[:0], pos), "event: change\ndata: "...)
	e.buf = append(append(e.buf, data...), "\n\n"...)
	return e.write(e.buf)
}

func (e *eventWriter) flush(context.Context, cdc.Position) error {
	e.c.Writer.Flush()
	return nil
}

// block writes one block at once.
func (e *eventWriter) block(text []byte) error {
	err := e.write(append(text, '\n'))
	e.c.Writer.Flush()
	return err
}

func (e *eventWriter) beat(_ context.Context, cursor cdc.Position, known bool) error {
	block := []byte(": heartbeat\n")
	if !known {
		block = appendID(block, cursor)
	}
	return e.block(block)
}

func (e *eventWriter) fail(err *athena.Error, cursor cdc.Position) {
	_ = e.c.Error(err)
	details := maps.Clone(err.Details)
	if details == nil {
		details = map[string]any{}
	}
	details["cursor"] = cursor
	raw, bad := envelope.Encode(envelope.Error{
		Status: "error", Message: err.Message, Error: err.Message, Code: err.Code,
		RequestID: telemetry.RequestID(e.c.Request.Context()), Retryable: err.Retryable(), Details: details,
	})
	if bad != nil {
		return
	}
	block := append(appendID(nil, cursor), "event: error\ndata: "...)
	_ = e.block(append(append(block, raw...), '\n'))
}

func (e *eventWriter) bye(cursor cdc.Position) {
	_ = e.block(appendID([]byte(": the server is stopping; come again\nretry: 1000\n"), cursor))
}
