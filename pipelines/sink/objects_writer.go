package sink

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// ObjectsWriter is a stage.Writer over staged objects.
type ObjectsWriter struct {
	sink *Objects
	name string
	next int // number of the next object

	open    map[string]*object // by what its key begins with
	clock   int64              // of writes
	ended   []stage.Object
	size    stage.Size // of those that are ended
	rows    int64
	decided bool

	logs log
	key  []byte
	part []*object // that rows of the batch go to
}

var _ stage.Writer = (*ObjectsWriter)(nil)

// Begin returns a writer whose objects are named after a task or commit.
func (o *Objects) Begin(name string) *ObjectsWriter {
	return &ObjectsWriter{sink: o, name: string(appendSegment(nil, []byte(name))), open: map[string]*object{}}
}

// object is one that is open.
type object struct {
	prefix      string
	schema      *record.Schema // of the rows that come
	stage       driver.ObjectStage
	file        format.Writer
	rows        int64
	first, last string
	used        int64 // by the writer's clock
	part        []int // rows of the batch
}

// memory is about what an object holds: its file, and the parts of it that are
// being sent.
func (o *object) memory() int64 { return o.file.Buffered() + min(o.file.Size(), mostParts) }

// Write writes rows to the objects that their route and the prefix's columns
// name.
func (w *ObjectsWriter) Write(ctx context.Context, route string, b *record.Batch) ([]record.Rejected, error) {
	rows, out, err := w.logs.take(w.sink, b)
	if err != nil || len(rows) == 0 && rows != nil {
		return nil, err
	}
	rejected, err := w.assign(route, b, rows)
	if err != nil {
		return nil, err
	}
	for _, o := range w.part {
		refused, err := w.fill(ctx, o, b, out)
		if err != nil {
			return nil, w.sink.fault(err)
		}
		rejected = append(rejected, refused...)
	}
	return rejected, w.sink.fault(w.bound(ctx))
}

// assign divides rows among the open objects, and names those that are to be
// opened. Rows of one object keep their order.
func (w *ObjectsWriter) assign(route string, b *record.Batch, rows []int) (rejected []record.Rejected, err error) {
	w.part = w.part[:0]
	below := folders(route)
	var columns []int
	for _, p := range w.sink.prefix {
		if p.Column == "" {
			continue
		}
		i := b.Schema.Index(p.Column)
		if i < 0 {
			return nil, fmt.Errorf("sink: the rows have no column %q, which the prefix names", p.Column)
		}
		columns = append(columns, i)
	}
	var last *object
	put := func(i int) {
		if len(columns) > 0 || last == nil {
			w.key = w.sink.appendPrefix(w.key[:0], below, b, columns, i)
			if last == nil || string(w.key) != last.prefix {
				if last = w.open[string(w.key)]; last == nil {
					prefix := string(w.key)
					if _, why := driver.CleanKey("", prefix+w.name+"-"); why != nil {
						rejected = append(rejected, record.Rejected{Row: i, Reason: "its object would have a key that no object can have: " + why.Error()})
						return
					}
					last = &object{prefix: prefix}
					w.open[prefix] = last
				}
			}
		}
		if len(last.part) == 0 {
			w.part = append(w.part, last)
		}
		last.part = append(last.part, i)
	}
	if rows == nil {
		for i := range b.Rows() {
			put(i)
		}
	}
	for _, i := range rows {
		put(i)
	}
	return rejected, nil
}

// fill writes the rows that were assigned to an object, and ends it wherever it is
// full.
func (w *ObjectsWriter) fill(ctx context.Context, o *object, b, out *record.Batch) (rejected []record.Rejected, err error) {
	part := o.part
	defer func() { o.part = o.part[:0] }()
	for len(part) > 0 {
		if o.file != nil && o.schema != b.Schema && !o.schema.Equal(b.Schema) {
			if err := w.end(ctx, o); err != nil {
				return rejected, err
			}
		}
		if o.file == nil {
			if err := w.begin(ctx, o, b.Schema, out.Schema); err != nil {
				return rejected, err
			}
		}
		rows := part[:min(int64(len(part)), w.sink.What.Roll.Rows-o.rows)]
		part = part[len(rows):]
		refused, err := o.file.Write(out, rows)
		if err != nil {
			return rejected, err
		}
		rejected = append(rejected, refused...)
		o.rows += int64(len(rows) - len(refused))
		w.rows += int64(len(rows) - len(refused))
		if w.clock++; len(rows) > len(refused) {
			o.used = w.clock
			o.span(b, rows)
		}
		if o.rows >= w.sink.What.Roll.Rows || o.file.Size() >= int64(w.sink.What.Roll.Bytes) {
			if err := w.end(ctx, o); err != nil {
				return rejected, err
			}
		}
	}
	return rejected, nil
}

// span extends the positions of what an object has.
func (o *object) span(b *record.Batch, rows []int) {
	if b.Changes == nil {
		return
	}
	if o.first == "" {
		o.first = string(b.Changes[rows[0]].Pos)
	}
	o.last = string(b.Changes[rows[len(rows)-1]].Pos)
}

func (w *ObjectsWriter) begin(ctx context.Context, o *object, rows, file *record.Schema) error {
	if err := w.room(ctx, o); err != nil {
		return err
	}
	what := w.sink.What
	key := o.prefix + w.name + "-" + strconv.Itoa(w.next) + format.Suffix(what.Format, what.Compression)
	s, err := w.sink.Store.StageObject(ctx, key, driver.ObjectWrite{ContentType: format.ContentType(what.Format, what.Compression)})
	if err != nil {
		return err
	}
	f, err := format.New(what.Format, what.Compression, s, file, map[string]string{"athena.pipeline": w.sink.Pipeline, "athena.run": w.sink.Run})
	if err != nil {
		_ = s.Discard(ctx) // the cause is what counts; upkeep clears away
		return err
	}
	w.next++
	o.stage, o.file, o.schema, o.rows, o.first, o.last = s, f, rows, 0, "", ""
	return nil
}

// end closes and stages an object. One that has no rows is let go of.
func (w *ObjectsWriter) end(ctx context.Context, o *object) error {
	if o.file == nil {
		return nil
	}
	if err := o.file.Close(); err != nil {
		return err
	}
	if o.rows == 0 {
		err := o.stage.Discard(ctx)
		o.file, o.stage = nil, nil
		return err
	}
	staged, err := o.stage.Stage(ctx)
	if err != nil {
		return err // Abort lets go of it
	}
	o.file, o.stage = nil, nil
	w.size.Bytes += staged.Bytes
	w.ended = append(w.ended, stage.Object{StagedObject: staged, Rows: o.rows, First: o.first, Last: o.last, Schema: o.schema})
	return nil
}

// room ends an object if as many as there may be are open.
func (w *ObjectsWriter) room(ctx context.Context, but *object) error {
	if len(w.open) <= mostOpen {
		return nil
	}
	n := 0
	for _, o := range w.open {
		if o.file != nil {
			n++
		}
	}
	if n < mostOpen {
		return nil
	}
	return w.endOldest(ctx, but)
}

// bound ends objects as long as all of them hold too much, and forgets those that
// are ended where they are many.
func (w *ObjectsWriter) bound(ctx context.Context) error {
	for {
		var held int64
		n := 0
		for _, o := range w.open {
			if o.file != nil {
				held += o.memory()
				n++
			}
		}
		if held <= mostMemory || n < 2 {
			break
		}
		if err := w.endOldest(ctx, nil); err != nil {
			return err
		}
	}
	if len(w.open) > 2*mostOpen {
		for prefix, o := range w.open {
			if o.file == nil {
				delete(w.open, prefix)
			}
		}
	}
	return nil
}

func (w *ObjectsWriter) endOldest(ctx context.Context, but *object) error {
	var oldest *object
	for _, o := range w.open {
		if o.file != nil && o != but && (oldest == nil || o.used < oldest.used) {
			oldest = o
		}
	}
	if oldest == nil {
		return nil
	}
	return w.end(ctx, oldest)
}

// Size is what was written.
func (w *ObjectsWriter) Size() stage.Size {
	size := stage.Size{Rows: w.rows, Bytes: w.size.Bytes}
	for _, o := range w.open {
		if o.file != nil {
			size.Bytes += o.file.Size()
		}
	}
	return size
}

// Commit stages what is open, has it decided, and publishes it. Once decide was
// called nothing is let go of here: it may be stored though it failed.
func (w *ObjectsWriter) Commit(ctx context.Context, _ driver.Checkpoint, decide func(context.Context, []stage.Object) error) error {
	for _, o := range w.inOrder() {
		if err := w.end(ctx, o); err != nil {
			return w.sink.fault(err)
		}
	}
	w.decided = true
	if err := decide(ctx, w.ended); err != nil {
		return err
	}
	return w.sink.Publish(ctx, w.ended)
}

// inOrder are the open objects in the order of their keys.
func (w *ObjectsWriter) inOrder() (open []*object) {
	for _, o := range w.open {
		if o.file != nil {
			open = append(open, o)
		}
	}
	slices.SortFunc(open, func(a, b *object) int { return strings.Compare(a.prefix, b.prefix) })
	return open
}

// Abort lets go of what is open or staged, unless it was to be decided. What
// cannot be let go of is left to upkeep.
func (w *ObjectsWriter) Abort(ctx context.Context) {
	if w.decided {
		return
	}
	w.decided = true
	for _, o := range w.open {
		if o.stage != nil {
			_ = o.stage.Discard(ctx)
			o.stage, o.file = nil, nil
		}
	}
	_ = w.sink.Discard(ctx, w.ended)
}

// folders are those of a route, below the prefix.
func folders(route string) string {
	var b strings.Builder
	for segment := range strings.SplitSeq(route, "/") {
		if segment != "" {
			b.Write(appendSegment(nil, []byte(segment)))
			b.WriteByte('/')
		}
	}
	return b.String()
}

// appendPrefix appends what the key of a row begins with.
func (o *Objects) appendPrefix(dst []byte, below string, b *record.Batch, columns []int, row int) []byte {
	for _, p := range o.prefix {
		if p.Column == "" {
			dst = append(dst, p.Text...)
			continue
		}
		v, c := &b.Columns[columns[0]], &b.Schema.Columns[columns[0]]
		columns = columns[1:]
		if v.Null(row) {
			dst = append(dst, "__null__"...)
			continue
		}
		var buf [64]byte
		dst = appendSegment(dst, v.AppendText(buf[:0], c.Type, row))
	}
	return append(dst, below...)
}

// appendSegment writes a value so that it is a segment of a key, or a piece of one,
// and another value has another one: bytes that a path or a URL gives a meaning
// stand as %XX.
func appendSegment(dst, value []byte) []byte {
	if len(value) == 0 {
		return append(dst, "__empty__"...)
	}
	taken := len(bytes.Trim(value, ".")) == 0 || bytes.HasPrefix(value, []byte("__"))
	for i, c := range value {
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '-' || c == '_' || c == '.' || c == '~' || c == ':' || c == '+' || c == '@' || c == ','
		if plain && !(taken && i == 0) {
			dst = append(dst, c)
			continue
		}
		const hex = "0123456789ABCDEF"
		dst = append(dst, '%', hex[c>>4], hex[c&15])
	}
	return dst
}
