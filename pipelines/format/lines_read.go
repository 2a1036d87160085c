package format

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

const (
	mostLine      = 16 << 20 // of ndjson and csv; longer ones are rejected
	mostColumns   = 2000     // that a file may show
	inferredRows  = 1000     // that types are inferred from
	inferredBytes = 1 << 20
)

// OpenLines reads ndjson or csv.
func OpenLines(format, compression string, r io.Reader, o ReadOptions) (Reader, error) {
	if err := Check(format, compression); err != nil {
		return nil, err
	}
	l := &linesReader{options: o}
	switch compression {
	case Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, readError(err, "it is no gzip")
		}
		r = z
	case Zstd:
		b := bufio.NewReader(r)
		if _, err := b.Peek(1); err != nil { // the library takes nothing at all for an empty file
			return nil, readError(err, "it is no zstd")
		}
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, readError(err, "it is no zstd")
		}
		l.close, r = z.Close, z
	}
	l.in.r = bufio.NewReaderSize(r, 256<<10)
	l.in.csv = format == CSV
	if err := l.begin(format); err != nil {
		if l.close != nil {
			l.close()
		}
		return nil, err
	}
	return l, nil
}

// A rowParser appends the row that a line stands for. Of a ndjson it returns the
// members that are no columns.
type rowParser interface {
	parse(b *record.Batch, line []byte) (unknown []string, err error)
}

type linesReader struct {
	options ReadOptions
	in      lineReader
	held    []line // that types were inferred from
	evolve  bool
	csv     *csvParser
	known   *record.Schema // all columns
	schema  *record.Schema // those of the next batch
	parser  rowParser
	batch   *record.Batch
	done    int64
	close   func()
}

func (l *linesReader) Schema() *record.Schema { return l.schema }

func (l *linesReader) Close() error {
	if l.close != nil {
		l.close()
		l.close = nil
	}
	return nil
}

// begin reads the header and as many rows as types are inferred from.
func (l *linesReader) begin(format string) error {
	o := l.options
	l.evolve = o.Schema == nil || o.Evolve
	known := &record.Schema{}
	if o.Schema != nil {
		known.Columns, known.Key = slices.Clone(o.Schema.Columns), o.Schema.Key
	}
	if format == CSV {
		header, err := l.in.next()
		if err == io.EOF {
			return damaged(nil, "it has no header")
		}
		if err != nil {
			return err
		}
		if header.bad != "" {
			return damaged(nil, "its header cannot be read: %s", header.bad)
		}
		if l.csv, err = newCSV(header.text, known, o.Schema != nil && !o.Evolve); err != nil {
			return err
		}
		l.in.single = len(l.csv.names) == 1
	}
	if l.evolve {
		if err := l.hold(); err != nil {
			return err
		}
		l.infer(known)
	}
	return l.use(known)
}

// hold reads the first rows and keeps them.
func (l *linesReader) hold() error {
	for size := 0; len(l.held) < inferredRows && size < inferredBytes; {
		next, err := l.in.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		next.text = bytes.Clone(next.text)
		size += len(next.text)
		l.held = append(l.held, next)
	}
	return nil
}

// infer adds the columns that the rows show and known lacks.
func (l *linesReader) infer(known *record.Schema) {
	in := newInference(known)
	if l.csv != nil {
		for _, name := range l.csv.names {
			in.column(name)
		}
	}
	for _, row := range l.held {
		if row.bad != "" {
			continue
		}
		if l.csv != nil {
			l.csv.infer(in, row.text)
		} else {
			in.object(row.text)
		}
	}
	in.addTo(known)
}

// use takes a schema for the rows to come.
func (l *linesReader) use(known *record.Schema) error {
	s, err := pick(known, l.options.Columns)
	if err != nil {
		return err
	}
	l.known, l.schema = known, s
	if l.csv != nil {
		l.csv.use(s)
		l.parser = l.csv
	} else {
		l.parser = jsonLines{record.NewParser(s)}
	}
	l.batch = record.New(s, 0)
	return nil
}

func (l *linesReader) next() (line, error) {
	if len(l.held) > 0 {
		next := l.held[0]
		l.held = l.held[1:]
		return next, nil
	}
	return l.in.next()
}

func (l *linesReader) Next(size driver.BatchSize) (Batch, error) {
	size = size.Or()
	b := l.batch
	b.Reset()
	out := Batch{Batch: b}
	for b.Rows() < size.Rows && b.Size() < size.Bytes && len(out.Rejected) < size.Rows {
		next, err := l.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Batch{}, err
		}
		if next.bad != "" {
			l.done++
			out.Rejected = append(out.Rejected, Rejected{Line: next.number, Reason: next.bad, Row: cut(next.text)})
			continue
		}
		unknown, err := l.parser.parse(b, next.text)
		if err != nil {
			var syntax *record.SyntaxError
			if next.last && errors.As(err, &syntax) { // no line break ends it
				return Batch{}, damaged(err, "line %d ends in the middle", next.number)
			}
			l.done++
			out.Rejected = append(out.Rejected, rejected(next, err))
			continue
		}
		if more := l.learn(unknown); more != nil {
			b.Truncate(b.Rows() - 1)
			row := next.text
			next.text = bytes.Clone(row)
			l.held = append([]line{next}, l.held...)
			if err := l.use(l.extended(more, row)); err != nil {
				return Batch{}, err
			}
			if b.Rows() == 0 && len(out.Rejected) == 0 {
				return l.Next(size)
			}
			break
		}
		l.done++
	}
	if out.Done = l.done; b.Rows() == 0 && len(out.Rejected) == 0 {
		return Batch{}, io.EOF
	}
	return out, nil
}

// learn returns those of the members that become columns.
func (l *linesReader) learn(unknown []string) (more []string) {
	if !l.evolve || l.options.Columns != nil || unknown == nil {
		return nil
	}
	for _, name := range unknown {
		if l.known.Index(name) < 0 && len(l.known.Columns)+len(more) < mostColumns && !slices.Contains(more, name) {
			more = append(more, name)
		}
	}
	return more
}

func (l *linesReader) extended(more []string, row []byte) *record.Schema {
	s := &record.Schema{Columns: slices.Clone(l.known.Columns), Key: l.known.Key}
	in := newInference(s)
	for _, name := range more {
		in.column(name)
	}
	in.only = true
	in.object(row)
	in.addTo(s)
	return s
}

func rejected(l line, err error) Rejected {
	r := Rejected{Line: l.number, Reason: err.Error(), Row: cut(l.text)}
	var value *record.ValueError
	if errors.As(err, &value) {
		r.Column = value.Column
	}
	return r
}

type jsonLines struct{ *record.Parser }

func (p jsonLines) parse(b *record.Batch, line []byte) ([]string, error) { return p.Parse(b, line) }

// A line is one row as it stands in a file.
type line struct {
	number int64 // where it begins, from 1
	text   []byte
	last   bool   // nothing stands behind it, not even the end of a line
	bad    string // why it is no row
}

// A lineReader divides a file into lines, or into the records of csv, which may
// have line breaks within quotes. Empty lines are left out.
type lineReader struct {
	r      *bufio.Reader
	csv    bool
	single bool  // a csv of one column, where an empty line is a null
	number int64 // of lines so far
	long   []byte
	record []byte
}

// next returns the next line without its end; io.EOF behind the last. It is valid
// until next is called again.
func (l *lineReader) next() (line, error) {
	for {
		out, err := l.one()
		if err != nil || len(out.text) > 0 || out.bad != "" || l.single {
			return out, err
		}
	}
}

func (l *lineReader) one() (line, error) {
	text, ended, err := l.physical()
	if err != nil {
		return line{}, err
	}
	out := line{number: l.number, last: !ended}
	if l.csv {
		if text, err = l.quoted(&out, text); err != nil {
			return line{}, err
		}
	}
	if len(text) > mostLine {
		out.bad = fmt.Sprintf("it has more than %d bytes", mostLine)
	}
	out.text = bytes.TrimSuffix(text, []byte{'\r'})
	if out.number == 1 {
		out.text = bytes.TrimPrefix(out.text, []byte("\ufeff"))
	}
	return out, nil
}

// quoted reads on where a line ends within quotes.
func (l *lineReader) quoted(out *line, text []byte) ([]byte, error) {
	state := csvFieldBegins.over(text)
	if state == csvInQuotes {
		l.record = append(l.record[:0], text...)
		for state == csvInQuotes && len(l.record) <= mostLine {
			more, ended, err := l.physical()
			if err != nil && err != io.EOF {
				return nil, err
			}
			if err == io.EOF || out.last {
				return nil, damaged(nil, "it ends within quotes that line %d begins", out.number)
			}
			out.last = !ended
			state = state.over(more)
			l.record = append(append(l.record, '\n'), more...)
		}
		if state == csvInQuotes && out.last {
			return nil, damaged(nil, "it ends within quotes that line %d begins", out.number)
		}
		text = l.record
	}
	if state == csvMisplaced {
		out.bad = "a quote stands where none can"
	}
	return text, nil
}

// physical reads up to the next line break, and says whether there was one. Of a
// line that is too long it returns the beginning.
func (l *lineReader) physical() (text []byte, ended bool, err error) {
	text, err = l.r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		l.long = append(l.long[:0], text...)
		for err == bufio.ErrBufferFull {
			if text, err = l.r.ReadSlice('\n'); len(l.long) <= mostLine {
				l.long = append(l.long, text...)
			}
		}
		text = l.long
	}
	switch {
	case err == io.EOF && len(text) == 0:
		return nil, false, io.EOF
	case err != nil && err != io.EOF:
		return nil, false, readError(err, "line %d cannot be read", l.number+1)
	}
	l.number++
	return bytes.TrimSuffix(text, []byte{'\n'}), err == nil, nil
}

// readError keeps the errors of what is read, and explains the others.
func readError(err error, format string, args ...any) error {
	var read *ReadError
	if errors.As(err, &read) {
		return read.Err
	}
	return damaged(err, format, args...)
}
