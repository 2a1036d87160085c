package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// partObjects is how many objects a part has at most.
const partObjects = 1000

// Objects is a stage.Source over the objects below a prefix. Those in a folder
// whose name begins with "_" or ".", and those with such names, are none of it:
// manifests and marks.
//
// An object is read as it was when it was listed, or not at all.
type Objects struct {
	Reader driver.ObjectReader
	What   spec.ObjectSource
	Size   driver.BatchSize
	// PartBytes is about how large a part is; PartBytes if it is 0. An object is
	// never divided.
	PartBytes int64
}

var _ stage.Source = (*Objects)(nil)

// An objectPart says which objects are read. It is kept as JSON.
type objectPart struct {
	Objects []listed `json:"objects"`
	// Schema is what the first object of the source shows, where the format has no
	// types of its own: all objects are read alike.
	Schema *record.Schema `json:"schema,omitempty"`
}

type listed struct {
	Key   string `json:"key"`
	ETag  string `json:"etag,omitempty"`
	Bytes int64  `json:"bytes"`
}

// Describe describes the columns that the definition names, or those of the first
// object.
func (o *Objects) Describe(ctx context.Context) (*record.Schema, error) {
	if s := o.given(); s != nil {
		return s, nil
	}
	var first *listed
	err := o.each(ctx, func(l listed) bool {
		first = &l
		return false
	})
	if err != nil {
		return nil, err
	}
	if first == nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "there is no object below %q that its columns could be told by; give source.objects.columns", o.What.Prefix).At("source.objects.prefix")
	}
	r, closer, err := o.open(ctx, *first, nil)
	if err != nil {
		return nil, err
	}
	defer closer()
	return r.Schema(), nil
}

// given is the schema that the definition names; nil if it names none.
func (o *Objects) given() *record.Schema {
	if len(o.What.Columns) == 0 {
		return nil
	}
	s := &record.Schema{}
	for _, c := range o.What.Columns {
		s.Columns = append(s.Columns, record.Column{Name: c.Name, Type: c.Type, Nullable: true})
	}
	return s
}

// Split lists the objects and divides them.
func (o *Objects) Split(ctx context.Context, whole bool) ([]stage.Part, error) {
	var all []listed
	if err := o.each(ctx, func(l listed) bool { all = append(all, l); return true }); err != nil {
		return nil, err
	}
	var s *record.Schema
	if o.given() == nil && slices.ContainsFunc(all, func(l listed) bool { f, _, _ := o.format(l.Key); return f != format.Parquet }) {
		var err error
		if s, err = o.Describe(ctx); err != nil {
			return nil, err
		}
	}
	most := cmp.Or(o.PartBytes, PartBytes)
	var parts []stage.Part
	for len(all) > 0 || parts == nil {
		n, bytes := 0, int64(0)
		for n < len(all) && (whole || bytes < most && n < partObjects) {
			bytes += all[n].Bytes
			n++
		}
		what, err := json.Marshal(objectPart{Objects: all[:n], Schema: s})
		if err != nil {
			return nil, err
		}
		parts = append(parts, stage.Part{What: what, Rows: -1, Bytes: bytes})
		all = all[n:]
	}
	return parts, nil
}

// each calls fn with the objects that are read, in the order of their keys, until
// it returns false.
func (o *Objects) each(ctx context.Context, fn func(listed) bool) error {
	for after := ""; ; {
		page, err := o.Reader.Objects(ctx, driver.ObjectList{Prefix: o.What.Prefix, After: after})
		if err != nil {
			return fault(o.Reader, err)
		}
		for _, obj := range page.Objects {
			if hidden(obj.Key[strings.LastIndexByte(o.What.Prefix, '/')+1:]) || strings.HasSuffix(obj.Key, "/") {
				continue
			}
			if _, _, err := o.format(obj.Key); err != nil {
				return err
			}
			if !fn(listed{obj.Key, obj.ETag, obj.Bytes}) {
				return nil
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

// hidden reports whether a key below the prefix's folder is left out.
func hidden(key string) bool {
	for segment := range strings.SplitSeq(key, "/") {
		if strings.HasPrefix(segment, "_") || strings.HasPrefix(segment, ".") {
			return true
		}
	}
	return false
}

// format tells an object's format and compression.
func (o *Objects) format(key string) (name, compression string, err error) {
	name, compression, ok := format.Of(key)
	if o.What.Format != "" {
		return o.What.Format, compression, nil
	}
	if !ok {
		return "", "", athena.Errorf(athena.CodeInvalidRequest, "the name of the object %q does not tell its format; give source.objects.format, or a prefix that leaves it out", key).At("source.objects.format")
	}
	return name, compression, nil
}

// open opens an object that was listed.
func (o *Objects) open(ctx context.Context, l listed, s *record.Schema) (format.Reader, func(), error) {
	name, compression, err := o.format(l.Key)
	if err != nil {
		return nil, nil, err
	}
	given := o.given()
	if name == format.Parquet {
		var columns []string
		if given != nil {
			columns = given.Names()
		}
		r, err := format.OpenParquet(&ranges{ctx: ctx, from: o, what: l}, l.Bytes, format.ReadOptions{Columns: columns})
		if err != nil {
			return nil, nil, o.about(l, err)
		}
		return r, func() { _ = r.Close() }, nil
	}
	options := format.ReadOptions{Schema: given}
	if given == nil {
		options = format.ReadOptions{Schema: s, Evolve: true}
	}
	body, err := o.Reader.ReadObject(ctx, l.Key, driver.ObjectRead{IfMatch: l.ETag})
	if err != nil {
		return nil, nil, o.about(l, err)
	}
	r, err := format.OpenLines(name, compression, &stream{body, o}, options)
	if err != nil {
		_ = body.Close()
		return nil, nil, o.about(l, err)
	}
	return r, func() { _, _ = r.Close(), body.Close() }, nil
}

// about says which object an error is about.
func (o *Objects) about(l listed, err error) error {
	err = fault(o.Reader, err)
	switch athena.CodeOf(err) {
	case athena.CodeConflict, athena.CodeNotFound:
		return athena.Wrap(athena.CodeConflict, err, "the object %q was changed or deleted since it was listed; start the run again", l.Key).With("object", l.Key)
	case athena.CodeInvalidRequest:
		var e *athena.Error
		errors.As(err, &e)
		return athena.Wrap(e.Code, err, "object %q: %s", l.Key, e.Message).With("object", l.Key)
	}
	return err
}

// Read reads the objects of a part, one after the other.
func (o *Objects) Read(ctx context.Context, part stage.Part, fn func(*record.Batch) error, reject func(stage.Unread) error) error {
	var p objectPart
	if err := json.Unmarshal(part.What, &p); err != nil {
		return err
	}
	for _, l := range p.Objects {
		if err := o.read(ctx, l, p.Schema, fn, reject); err != nil {
			return err
		}
	}
	return nil
}

func (o *Objects) read(ctx context.Context, l listed, s *record.Schema, fn func(*record.Batch) error, reject func(stage.Unread) error) error {
	r, closer, err := o.open(ctx, l, s)
	if err != nil {
		return err
	}
	defer closer()
	given := o.given()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := r.Next(o.Size)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return o.about(l, err)
		}
		for _, bad := range b.Rejected {
			if err := reject(unread(l, bad)); err != nil {
				return err
			}
		}
		rows := b.Batch
		if given != nil && !rows.Schema.Equal(given) {
			var bad []stage.Unread
			rows, bad = cast(rows, given, l)
			for _, u := range bad {
				if err := reject(u); err != nil {
					return err
				}
			}
		}
		if rows.Rows() == 0 {
			continue
		}
		rows.From = l.Key
		if err := fn(rows); err != nil {
			return err
		}
	}
}

func unread(l listed, r format.Rejected) stage.Unread {
	return stage.Unread{Text: string(r.Row), Reason: r.Reason, Column: r.Column, From: fmt.Sprintf("%s:%d", l.Key, r.Line)}
}

// cast gives rows of a parquet file the types that the definition names.
func cast(b *record.Batch, to *record.Schema, l listed) (*record.Batch, []stage.Unread) {
	out := record.New(to, b.Rows())
	var bad []stage.Unread
rows:
	for i := range b.Rows() {
		for c := range to.Columns {
			if err := record.Convert(&out.Columns[c], to.Columns[c].Type, &b.Columns[c], b.Schema.Columns[c].Type, i); err != nil {
				bad = append(bad, stage.Unread{Text: string(b.AppendJSON(nil, i)), Reason: err.Error(), Column: to.Columns[c].Name, From: l.Key})
				out.Undo()
				continue rows
			}
		}
		out.Done()
	}
	return out, bad
}

// stream marks the errors of an object's body as those of the engine.
type stream struct {
	io.Reader
	from *Objects
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = &format.ReadError{Err: fault(s.from.Reader, err)}
	}
	return n, err
}

// ranges reads an object in ranges, as parquet wants it. The context is that of the
// reading which the object was opened for.
type ranges struct {
	ctx  context.Context
	from *Objects
	what listed
}

func (r *ranges) ReadAt(p []byte, at int64) (int, error) {
	if at >= r.what.Bytes {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	to := min(at+int64(len(p)), r.what.Bytes)
	body, err := r.from.Reader.ReadObject(r.ctx, r.what.Key, driver.ObjectRead{From: at, To: to, IfMatch: r.what.ETag})
	if err != nil {
		return 0, &format.ReadError{Err: err}
	}
	defer body.Close()
	n, err := io.ReadFull(body, p[:to-at])
	if err != nil {
		return n, &format.ReadError{Err: err}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
