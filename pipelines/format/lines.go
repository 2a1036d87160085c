package format

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/athena-pipelines/athena/pkg/record"
)

// linesBuffer is how much of ndjson and csv is gathered before it is compressed.
const linesBuffer = 256 << 10

// lines writes formats that have one row after the other.
type lines struct {
	schema *record.Schema
	row    func(dst []byte, b *record.Batch, i int) []byte
	buf    []byte
	out    *counter
	pack   io.WriteCloser // nil if nothing is compressed
	fixed  int64          // bytes of memory that it takes
}

func newLines(format, compression string, w io.Writer, s *record.Schema) (Writer, error) {
	l := &lines{schema: s, row: appendJSONLine, out: &counter{w: w}}
	switch compression {
	case Gzip:
		z, err := gzip.NewWriterLevel(l.out, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		l.pack, l.fixed = z, 1<<20
	case Zstd:
		z, err := zstd.NewWriter(l.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true), zstd.WithZeroFrames(true))
		if err != nil {
			return nil, err
		}
		l.pack, l.fixed = z, 3<<20
	}
	if format == CSV {
		l.row = appendCSVLine
		for i, c := range s.Columns {
			if i > 0 {
				l.buf = append(l.buf, ',')
			}
			l.buf = appendCSVText(l.buf, []byte(c.Name))
		}
		l.buf = append(l.buf, "\r\n"...)
	}
	return l, nil
}

func (l *lines) Write(b *record.Batch, rows []int) ([]record.Rejected, error) {
	if !b.Schema.Equal(l.schema) {
		return nil, fmt.Errorf("format: the batch has another schema than the file")
	}
	var err error
	each(rows, b.Rows(), func(i int) {
		if l.buf = l.row(l.buf, b, i); len(l.buf) >= linesBuffer && err == nil {
			err = l.flush()
		}
	})
	return nil, err
}

func (l *lines) flush() (err error) {
	if l.pack != nil {
		_, err = l.pack.Write(l.buf)
	} else {
		_, err = l.out.Write(l.buf)
	}
	l.buf = l.buf[:0]
	return err
}

func (l *lines) Size() int64     { return l.out.n + int64(len(l.buf)) }
func (l *lines) Buffered() int64 { return int64(cap(l.buf)) + l.fixed }

func (l *lines) Close() error {
	if err := l.flush(); err != nil || l.pack == nil {
		return err
	}
	return l.pack.Close()
}

func appendJSONLine(dst []byte, b *record.Batch, i int) []byte {
	return append(b.AppendJSON(dst, i), '\n')
}

// appendCSVLine appends a record of RFC 4180. A null is nothing, an empty text is
// two quotes.
func appendCSVLine(dst []byte, b *record.Batch, i int) []byte {
	for c := range b.Columns {
		if c > 0 {
			dst = append(dst, ',')
		}
		v := &b.Columns[c]
		if v.Null(i) {
			continue
		}
		if v.Kind == record.Text || v.Kind == record.JSON || v.Kind == record.Bytes {
			from := len(dst)
			dst = v.AppendText(dst, b.Schema.Columns[c].Type, i)
			if v.Kind == record.Bytes && len(dst) > from {
				continue // base64 has nothing to be quoted
			}
			dst = quoteCSV(dst, from)
			continue
		}
		dst = v.AppendText(dst, b.Schema.Columns[c].Type, i)
	}
	return append(dst, "\r\n"...)
}

func appendCSVText(dst, text []byte) []byte { return quoteCSV(append(dst, text...), len(dst)) }

// quoteCSV puts what dst has from a byte on into quotes, if it needs them.
func quoteCSV(dst []byte, from int) []byte {
	text := dst[from:]
	if len(text) > 0 && !bytes.ContainsAny(text, "\",\r\n") {
		return dst
	}
	extra := 2 + bytes.Count(text, []byte{'"'})
	n := len(text)
	for range extra {
		dst = append(dst, '"')
	}
	to := len(dst) - 2 // from behind, so that nothing is overwritten before it is read
	for i := from + n - 1; i >= from; i-- {
		c := dst[i]
		dst[to] = c
		if to--; c == '"' {
			dst[to] = '"'
			to--
		}
	}
	dst[from] = '"'
	return dst
}
