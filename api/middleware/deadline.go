package middleware

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// timedBody gives the body a deadline from the first read on, and takes it away
// at the end: one that stayed would cancel a long request later, since the
// server keeps reading to notice that its peer is gone.
type timedBody struct {
	io.ReadCloser
	rc      *http.ResponseController
	within  time.Duration
	started bool
	done    bool
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.started {
		b.started = true
		_ = b.rc.SetReadDeadline(time.Now().Add(b.within))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && !b.done {
		b.done = true
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// movingBody gives each read its own deadline, so that a body may last as long
// as it moves. Between reads, and at the end, there is none; one that stood still
// is not waited for again.
type movingBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration
	done  bool
}

func (b *movingBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.stall))
	n, err := b.ReadCloser.Read(p)
	b.done = b.done || err != nil
	if err == nil || errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// patientWriter gives each write its own deadline, so that a stream may last
// and a reader who stalls is dropped. Between writes there is none: HTTP/2
// would end a quiet stream by it.
type patientWriter struct {
	gin.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

func (w *patientWriter) Write(p []byte) (int, error) {
	defer w.limit()()
	return w.ResponseWriter.Write(p)
}

func (w *patientWriter) WriteString(s string) (int, error) {
	defer w.limit()()
	return w.ResponseWriter.WriteString(s)
}

func (w *patientWriter) Flush() {
	defer w.limit()()
	w.ResponseWriter.Flush()
}

func (w *patientWriter) limit() func() {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.stall))
	return func() { _ = w.rc.SetWriteDeadline(time.Time{}) }
}

// SetStall has the writes of c's answer wait for their reader as long as this,
// in place of Bounds.Stall.
func SetStall(c *gin.Context, stall time.Duration) {
	if w, ok := c.Writer.(*patientWriter); ok {
		w.stall = stall
	}
}

// Unwrap lets http.ResponseController through to the connection.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
