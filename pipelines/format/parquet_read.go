package format

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// parquetBuffer is how much of a column is read at once.
const parquetBuffer = 1 << 20

// mostFooter bounds the description of a file.
const mostFooter = 64 << 20

// OpenParquet reads a file of so many bytes. The columns that rows are made of,
// and no others, are read in ranges.
//
// Groups, lists and maps become JSON.
func OpenParquet(r io.ReaderAt, size int64, o ReadOptions) (_ Reader, err error) {
	defer mend(&err)
	if err := checkFooter(r, size); err != nil {
		return nil, err
	}
	file, err := parquet.OpenFile(r, size, parquet.ReadBufferSize(parquetBuffer),
		parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return nil, parquetError(err)
	}
	all := &record.Schema{}
	byName := map[string]*parquetColumn{}
	note := noteOf(file)
	for _, c := range file.Root().Columns() {
		p := &parquetColumn{}
		column := record.Column{Name: c.Name(), Nullable: !c.Required()}
		if c.Leaf() && !c.Repeated() {
			column.Type, p.decode = leafType(c.Type())
			note.restore(&column, &p.decode)
		} else {
			column.Type, p.tree = record.TypeJSON, newNode(c)
		}
		if byName[column.Name] != nil {
			return nil, damaged(nil, "two columns have the name %.60q", column.Name)
		}
		p.leaves(c)
		p.column = column
		byName[column.Name] = p
		all.Columns = append(all.Columns, column)
	}
	all.Key = note.key(all)
	s, err := pick(all, o.Columns)
	if err != nil {
		return nil, err
	}
	p := &parquetReader{schema: s, rows: file.NumRows(), batch: record.New(s, 0)}
	for _, c := range s.Columns {
		column := byName[c.Name]
		column.open()
		p.columns = append(p.columns, column)
	}
	return p, nil
}

// checkFooter holds that the file ends as parquet does, and that its description
// is within it: the library believes what the file says of its length.
func checkFooter(r io.ReaderAt, size int64) error {
	var end [8]byte
	if size < 12 {
		return damaged(nil, "parquet has at least 12 bytes, and it has %d", size)
	}
	if _, err := r.ReadAt(end[:], size-8); err != nil && err != io.EOF {
		return parquetError(err)
	}
	if string(end[4:]) != "PAR1" {
		return damaged(nil, "it does not end as parquet does")
	}
	if n := int64(binary.LittleEndian.Uint32(end[:])); n > size-12 || n > mostFooter {
		return damaged(nil, "its description cannot have %d bytes", n)
	}
	return nil
}

type parquetReader struct {
	schema  *record.Schema
	columns []*parquetColumn
	rows    int64 // of the file
	done    int64
	batch   *record.Batch
}

func (p *parquetReader) Schema() *record.Schema { return p.schema }

func (p *parquetReader) Close() (err error) {
	defer mend(&err)
	for _, c := range p.columns {
		for _, cursor := range c.cursors {
			err = errors.Join(err, cursor.pages.Close())
		}
	}
	return err
}

func (p *parquetReader) Next(size driver.BatchSize) (_ Batch, err error) {
	defer mend(&err)
	size = size.Or()
	b := p.batch
	b.Reset()
	var bad map[int]Rejected
	for b.Rows() < size.Rows && p.done < p.rows && (b.Rows() == 0 || b.Size() < size.Bytes) {
		n := int(min(256, int64(size.Rows-b.Rows()), p.rows-p.done))
		for i, c := range p.columns {
			for row := range n {
				reason, err := c.next(&b.Columns[i])
				switch {
				case err == io.EOF:
					return Batch{}, damaged(nil, "column %q has fewer than %d rows", c.column.Name, p.rows)
				case err != nil:
					return Batch{}, parquetError(err)
				case reason != "":
					if bad == nil {
						bad = map[int]Rejected{}
					}
					if at := b.Rows() + row; bad[at].Line == 0 {
						bad[at] = Rejected{Line: p.done + int64(row) + 1, Column: c.column.Name, Reason: reason}
					}
				}
			}
		}
		if len(p.columns) > 0 {
			b.SetRows(b.Rows() + n)
		}
		p.done += int64(n)
	}
	if b.Rows() == 0 {
		return Batch{}, io.EOF
	}
	out := Batch{Batch: b, Done: p.done}
	if bad != nil {
		keep := make([]bool, b.Rows())
		for i := range keep {
			r, is := bad[i]
			if keep[i] = !is; is {
				r.Row = cut(b.AppendJSON(nil, i))
				out.Rejected = append(out.Rejected, r)
			}
		}
		out.Batch = b.Keep(keep)
	}
	return out, nil
}

type parquetColumn struct {
	column  record.Column
	decode  decode
	tree    *node // of a nested column
	sources []*parquet.Column
	cursors []*pages
	row     [][]parquet.Value
}

func (p *parquetColumn) leaves(c *parquet.Column) {
	if c.Leaf() {
		p.sources = append(p.sources, c)
	}
	for _, child := range c.Columns() {
		p.leaves(child)
	}
}

func (p *parquetColumn) open() {
	for _, c := range p.sources {
		p.cursors = append(p.cursors, &pages{pages: c.Pages(), keep: p.tree != nil})
	}
	p.row = make([][]parquet.Value, len(p.sources))
}

// next appends the value of the next row. Where there is none of the type it says
// why, and appends a null.
func (p *parquetColumn) next(v *record.Vector) (reason string, err error) {
	if p.tree != nil {
		return p.nextNested(v)
	}
	x, err := p.cursors[0].next()
	if err != nil {
		return "", err
	}
	if x.IsNull() {
		v.AppendNull()
		return "", nil
	}
	if !p.decode(v, x) {
		v.AppendNull()
		return fmt.Sprintf("%.80q is no %s", x.String(), p.column.Type), nil
	}
	return "", nil
}

func (p *parquetColumn) nextNested(v *record.Vector) (reason string, err error) {
	for i, c := range p.cursors {
		if p.row[i], err = c.nextRow(p.row[i][:0]); err != nil {
			return "", err
		}
	}
	if p.tree.optional && len(p.row) > 0 && p.row[0][0].DefinitionLevel() < p.tree.def {
		v.AppendNull()
		return "", nil
	}
	from := len(v.Data)
	data, ok := p.tree.append(v.Data, p.row)
	if !ok {
		v.Data = v.Data[:from]
		v.AppendNull()
		return "it holds a value that has no form in JSON", nil
	}
	v.Data = data
	v.End()
	return "", nil
}

// pages reads the values of one column, page by page.
type pages struct {
	pages  parquet.Pages
	keep   bool // values outlast their page
	page   parquet.Page
	values parquet.ValueReader
	buf    []parquet.Value
	i      int
	ended  bool // the page is
}

func (p *pages) next() (parquet.Value, error) {
	if p.i == len(p.buf) {
		if err := p.fill(); err != nil {
			return parquet.Value{}, err
		}
	}
	p.i++
	return p.buf[p.i-1], nil
}

// nextRow appends the values of a row, of which the first repeats nothing.
func (p *pages) nextRow(row []parquet.Value) ([]parquet.Value, error) {
	for {
		if p.i == len(p.buf) {
			err := p.fill()
			if err == io.EOF && len(row) > 0 {
				return row, nil
			}
			if err != nil {
				return row, err
			}
		}
		x := p.buf[p.i]
		if len(row) > 0 && x.RepetitionLevel() == 0 {
			return row, nil
		}
		row = append(row, x)
		p.i++
	}
}

func (p *pages) fill() error {
	if p.buf == nil {
		p.buf = make([]parquet.Value, 256)
	}
	for {
		for p.values == nil || p.ended {
			if p.page != nil && !p.keep {
				parquet.Release(p.page)
			}
			p.page, p.values = nil, nil
			page, err := p.pages.ReadPage()
			if err != nil {
				p.buf, p.i = p.buf[:0], 0
				return err
			}
			p.page, p.values, p.ended = page, page.Values(), false
		}
		buf := p.buf[:cap(p.buf)]
		n, err := p.values.ReadValues(buf)
		p.ended = err == io.EOF
		if p.buf, p.i = buf[:n], 0; n > 0 {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		p.ended = true // a page that gives nothing has nothing more
	}
}

// A note is what a file says of the schema that its rows had before.
type note struct{ record.Schema }

func noteOf(file *parquet.File) *note {
	n := &note{}
	if text, ok := file.Lookup(schemaKey); ok && json.Unmarshal([]byte(text), &n.Schema) != nil {
		n.Schema = record.Schema{}
	}
	return n
}

// restore gives a column the type that it had, if the file's type is what
// parquetNode made of that.
func (n *note) restore(c *record.Column, d *decode) {
	i := n.Index(c.Name)
	if i < 0 {
		return
	}
	switch was := n.Columns[i]; {
	case was.Type == c.Type:
		c.Native = was.Native
	case was.Type == record.TypeDecimal && c.Type == record.TypeText:
		c.Type, c.Native = was.Type, was.Native
		*d = func(v *record.Vector, x parquet.Value) bool {
			return v.AppendParsed(record.TypeDecimal, x.ByteArray()) == nil
		}
	}
}

func (n *note) key(s *record.Schema) []string {
	for _, k := range n.Key {
		if s.Index(k) < 0 {
			return nil
		}
	}
	return n.Key
}

// mend turns the library's panics, which damaged files can cause, into errors.
func mend(err *error) {
	if r := recover(); r != nil {
		*err = damaged(fmt.Errorf("%v", r), "its pages contradict its schema")
	}
}

// parquetError keeps the errors of what is read, and explains the others.
func parquetError(err error) error {
	var read *ReadError
	if errors.As(err, &read) {
		return read.Err
	}
	return damaged(err, "%.200s", err)
}

// A ReadError is one of what a file is read from, not of the file. A ReaderAt that
// is given to OpenParquet wraps its errors so.
type ReadError struct{ Err error }

func (e *ReadError) Error() string { return e.Err.Error() }
func (e *ReadError) Unwrap() error { return e.Err }
