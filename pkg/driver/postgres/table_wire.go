package postgres

import (
	"encoding/binary"
	"io"
)

// A wire reads the server's messages where millions of them follow each other:
// they are handed out where they lie in its buffer. It stands below the
// connection's frontend, which reads all other messages through it.
type wire struct {
	r        io.Reader
	buf      []byte
	from, to int // what was read and is not taken yet
}

const (
	messageHead = 5 // a letter, and the length of what follows the letter
	// maxMessage is a little more than the server can allocate.
	maxMessage = 1<<30 + 1<<20
	keptBuffer = 8 << 20
)

// Read serves the frontend.
func (w *wire) Read(p []byte) (int, error) {
	if w.from == w.to {
		w.from, w.to = 0, 0
		n, err := w.r.Read(w.buf)
		if n == 0 {
			return 0, err
		}
		w.to = n
	}
	n := copy(p, w.buf[w.from:w.to])
	w.from += n
	return n, nil
}

// next takes a message. It is good until the next call.
func (w *wire) next() (kind byte, body []byte, err error) {
	if w.to-w.from < messageHead {
		if err := w.fill(messageHead); err != nil {
			return 0, nil, err
		}
	}
	size := int(binary.BigEndian.Uint32(w.buf[w.from+1:])) + 1
	if size < messageHead || size > maxMessage {
		return 0, nil, errMalformed
	}
	if w.to-w.from < size {
		if err := w.fill(size); err != nil {
			return 0, nil, err
		}
	}
	m := w.buf[w.from : w.from+size]
	w.from += size
	return m[0], m[messageHead:], nil
}

// fill reads until there are n bytes at once.
func (w *wire) fill(n int) error {
	if len(w.buf)-w.from < n || w.from == w.to {
		buf := w.buf
		if len(buf) > keptBuffer && n <= readAhead && w.to-w.from < readAhead {
			buf = make([]byte, readAhead) // the large row is gone
		}
		if len(buf) < n {
			buf = make([]byte, max(n, min(2*len(buf), maxMessage)))
		}
		w.to = copy(buf, w.buf[w.from:w.to])
		w.from, w.buf = 0, buf
	}
	for w.to-w.from < n {
		got, err := w.r.Read(w.buf[w.to:])
		w.to += got
		if err != nil && w.to-w.from < n {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
