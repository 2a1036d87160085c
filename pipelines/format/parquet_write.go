package format

import (
	"cmp"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// What a row group has at most. Its compressed pages stay in memory until it is
// ended.
const (
	rowGroupRows  = 1 << 20
	rowGroupBytes = 16 << 20
)

var parquetCodecs = map[string]compress.Codec{
	Zstd: &fastZstd{}, Gzip: &parquet.Gzip, Snappy: &parquet.Snappy, None: &parquet.Uncompressed,
}

type parquetWriter struct {
	schema  *record.Schema
	out     *counter
	file    *parquet.GenericWriter[any]
	columns []*parquet.ColumnWriter
	rows    int64 // in the row group
	fixed   int64 // bytes of memory that a writer takes before it holds anything

	bad      []bool // rows of the batch
	keep     []int
	values   []parquet.Value
	unscaled [][]int128 // of the batch, by column
	scratch  []byte
}

// columnMemory is about what a column takes that has a few rows.
const columnMemory = 24 << 10

// chunk is how many values go to a column writer at once.
const chunk = 512

func newParquet(compression string, w io.Writer, s *record.Schema, meta map[string]string) (Writer, error) {
	p := &parquetWriter{schema: s, out: &counter{w: w}, unscaled: make([][]int128, len(s.Columns)), values: make([]parquet.Value, chunk)}
	options := []parquet.WriterOption{
		parquetSchema(s),
		parquet.Compression(parquetCodecs[cmp.Or(compression, Zstd)]),
		parquet.CreatedBy("athena", "", ""),
		parquet.DataPageStatistics(false), // the page index has them
		// What every reader takes, however old.
		parquet.DataPageVersion(1),
		parquet.DefaultEncodingFor(parquet.ByteArray, &parquet.Plain),
		parquet.KeyValueMetadata(schemaKey, schemaNote(s)),
	}
	for k, v := range meta {
		options = append(options, parquet.KeyValueMetadata(k, v))
	}
	config, err := parquet.NewWriterConfig(options...)
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the columns make no parquet file")
	}
	p.file = parquet.NewGenericWriter[any](p.out, config)
	p.columns = p.file.ColumnWriters()
	p.fixed = chunk * 24 // its values
	for _, c := range s.Columns {
		p.fixed += columnMemory
		if !c.Nullable { // the library makes room for a page at once
			p.fixed += parquet.DefaultPageBufferSize
		}
	}
	return p, nil
}

func (p *parquetWriter) Size() int64     { return p.file.Size() }
func (p *parquetWriter) Buffered() int64 { return p.fixed + p.group() }

// group is how many bytes of the row group are held.
func (p *parquetWriter) group() int64 { return p.file.Size() - p.out.n }

func (p *parquetWriter) Close() error { return p.file.Close() }

func (p *parquetWriter) Write(b *record.Batch, rows []int) ([]record.Rejected, error) {
	if !b.Schema.Equal(p.schema) {
		return nil, fmt.Errorf("format: the batch has another schema than the file")
	}
	rejected := p.check(b, rows)
	if rejected != nil {
		p.keep = p.keep[:0]
		each(rows, b.Rows(), func(i int) {
			if !p.bad[i] {
				p.keep = append(p.keep, i)
			}
		})
		rows = p.keep
	}
	n := len(rows)
	if rows == nil {
		n = b.Rows()
	}
	if n == 0 {
		return rejected, nil
	}
	for c := range b.Columns {
		if err := p.column(c, &b.Columns[c], rows, n); err != nil {
			return rejected, err
		}
	}
	if p.rows += int64(n); p.rows >= rowGroupRows || p.group() >= rowGroupBytes {
		p.rows = 0
		return rejected, p.file.Flush()
	}
	return rejected, nil
}

// each calls fn with the rows that are named; nil is all of so many.
func each(rows []int, all int, fn func(i int)) {
	if rows == nil {
		for i := range all {
			fn(i)
		}
		return
	}
	for _, i := range rows {
		fn(i)
	}
}

// check finds the rows that parquet cannot hold, and marks them as bad.
func (p *parquetWriter) check(b *record.Batch, rows []int) (rejected []record.Rejected) {
	reject := func(i, c int, reason string) {
		if rejected == nil {
			p.bad = append(p.bad[:0], make([]bool, b.Rows())...)
		}
		if !p.bad[i] {
			p.bad[i] = true
			rejected = append(rejected, record.Rejected{Row: i, Column: b.Schema.Columns[c].Name, Reason: reason})
		}
	}
	for c := range b.Columns {
		column, v := &b.Schema.Columns[c], &b.Columns[c]
		if !column.Nullable && v.Nulls() {
			each(rows, b.Rows(), func(i int) {
				if v.Null(i) {
					reject(i, c, "null in a column that has none")
				}
			})
		}
		switch t := column.Type; {
		case t.Kind == record.Decimal && t.Precision > 0:
			if cap(p.unscaled[c]) < b.Rows() {
				p.unscaled[c] = make([]int128, b.Rows())
			}
			out := p.unscaled[c][:b.Rows()]
			each(rows, b.Rows(), func(i int) {
				if v.Null(i) {
					return
				}
				var ok bool
				if out[i], ok = unscaled(v.Bytes(i), t.Precision, t.Scale); !ok {
					reject(i, c, fmt.Sprintf("parquet's %s cannot hold %.60s", t, v.Bytes(i)))
				}
			})
		case t.Kind == record.Date:
			each(rows, b.Rows(), func(i int) {
				if n := v.Ints[i]; n != int64(int32(n)) {
					reject(i, c, "parquet's date cannot hold "+string(v.AppendText(nil, t, i)))
				}
			})
		case t.Kind == record.Timestamp || t.Kind == record.TimestampTZ:
			each(rows, b.Rows(), func(i int) {
				if n := v.Ints[i]; n == record.Infinity || n == record.MinusInfinity {
					reject(i, c, "parquet's timestamp cannot hold "+string(v.AppendText(nil, t, i)))
				}
			})
		case t.Kind == record.Time:
			each(rows, b.Rows(), func(i int) {
				if n := v.Ints[i]; n < 0 || n >= 24*60*60*1e6 {
					reject(i, c, "parquet's time cannot hold "+string(v.AppendText(nil, t, i)))
				}
			})
		case t.Kind == record.UUID:
			each(rows, b.Rows(), func(i int) {
				if !v.Null(i) && len(v.Bytes(i)) != 16 {
					reject(i, c, "a uuid has 16 bytes")
				}
			})
		}
	}
	return rejected
}

// column appends n values to a column.
func (p *parquetWriter) column(c int, v *record.Vector, rows []int, n int) error {
	t, level := p.schema.Columns[c].Type, 0
	if p.schema.Columns[c].Nullable {
		level = 1
	}
	for from := 0; from < n; from += chunk {
		values := p.values[:min(chunk, n-from)]
		var part []int
		if rows != nil {
			part = rows[from : from+len(values)]
		}
		p.fill(values, c, t, v, from, part)
		if level > 0 {
			for k := range values {
				if i := at(part, from, k); v.Null(i) {
					values[k] = parquet.Value{}
				} else {
					values[k] = values[k].Level(0, 1, c)
				}
			}
		}
		if _, err := p.columns[c].WriteRowValues(values); err != nil {
			return err
		}
	}
	return nil
}

// at is the row of the k-th value of a chunk.
func at(part []int, from, k int) int {
	if part == nil {
		return from + k
	}
	return part[k]
}

func (p *parquetWriter) fill(values []parquet.Value, c int, t record.Type, v *record.Vector, from int, part []int) {
	switch t.Kind {
	case record.Bool:
		for k := range values {
			values[k] = parquet.BooleanValue(v.Ints[at(part, from, k)] != 0)
		}
	case record.Date:
		for k := range values {
			values[k] = parquet.Int32Value(int32(v.Ints[at(part, from, k)]))
		}
	case record.Int:
		if t.Bits < 64 {
			for k := range values {
				values[k] = parquet.Int32Value(int32(v.Ints[at(part, from, k)]))
			}
			return
		}
		fallthrough
	case record.Time, record.Timestamp, record.TimestampTZ:
		for k := range values {
			values[k] = parquet.Int64Value(v.Ints[at(part, from, k)])
		}
	case record.Float:
		if t.Bits == 32 {
			for k := range values {
				values[k] = parquet.FloatValue(float32(v.Floats[at(part, from, k)]))
			}
			return
		}
		for k := range values {
			values[k] = parquet.DoubleValue(v.Floats[at(part, from, k)])
		}
	case record.UUID:
		for k := range values {
			values[k] = parquet.FixedLenByteArrayValue(v.Bytes(at(part, from, k)))
		}
	case record.Decimal:
		p.fillDecimals(values, c, t, v, from, part)
	default:
		for k := range values {
			values[k] = parquet.ByteArrayValue(v.Bytes(at(part, from, k)))
		}
	}
}

func (p *parquetWriter) fillDecimals(values []parquet.Value, c int, t record.Type, v *record.Vector, from int, part []int) {
	numbers := p.unscaled[c]
	switch {
	case t.Precision == 0:
		for k := range values {
			values[k] = parquet.ByteArrayValue(v.Bytes(at(part, from, k)))
		}
	case t.Precision <= 9:
		for k := range values {
			values[k] = parquet.Int32Value(int32(numbers[at(part, from, k)].lo))
		}
	case t.Precision <= 18:
		for k := range values {
			values[k] = parquet.Int64Value(int64(numbers[at(part, from, k)].lo))
		}
	default:
		size := decimalBytes(t.Precision)
		if cap(p.scratch) < chunk*size {
			p.scratch = make([]byte, 0, chunk*size)
		}
		b := p.scratch[:0]
		for k := range values {
			b = numbers[at(part, from, k)].appendBytes(b, size)
			values[k] = parquet.FixedLenByteArrayValue(b[k*size : (k+1)*size])
		}
	}
}

// A counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
