package source

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"

	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Changes reads the changes of some tables of a client from its stream, as rows.
// It is not safe for concurrent use.
type Changes struct {
	Store  *changefeed.Store
	Client string
	// Types gives the type of a column by the engine's name of it, and Sorts whether
	// values sort as those of that type do; nil is that they do.
	Types func(native string) record.Type
	Sorts func(native string) bool
	// Reader reads the stream, with a filter that lets changes of columns through.
	Reader *changefeed.Reader

	tables map[driver.TableName]*changedTable
	line   cdc.Change
	at     cdc.Position     // behind the last chunk
	held   changefeed.Batch // what came with it and stands behind a change of columns
}

// changedTable is what is known of one table.
type changedTable struct {
	version int
	schema  *record.Schema
	rows    *record.Parser
	keys    *record.Parser // of the key's columns alone
	keyOnly *record.Schema
}

// A Chunk is what Next gives at once.
type Chunk struct {
	// Batches have rows of one table each. A table is in one of them at most.
	Batches []*record.Batch
	// Cursor stands behind all of it.
	Cursor cdc.Position
	// Columns names a table whose columns are others behind this chunk, which ends
	// there: whoever writes its rows can finish with them first.
	Columns string
	// Gaps are told of in the chunk: where the capture began anew.
	Gaps []changefeed.Gap
	// Bytes is how large the lines were.
	Bytes int64
	More  bool
	Lines int
}

// Next waits for changes and returns them, at most about so many. After the
// reader's heartbeat it returns what there is, which may be nothing. What is no
// row is handed to reject.
func (c *Changes) Next(ctx context.Context, most int, reject func(stage.Unread, cdc.Position) error) (Chunk, error) {
	if c.at == "" {
		c.at = c.Reader.Cursor()
	}
	lines, err := c.take(ctx, most)
	if err != nil {
		return Chunk{}, err
	}
	out := Chunk{Cursor: lines.Cursor, More: lines.More}
	at := map[*record.Schema]*record.Batch{}
	for n, line := range lines.Lines {
		c.line = cdc.Change{Unchanged: c.line.Unchanged[:0]}
		if err := cdc.Decode(line, &c.line); err != nil {
			return Chunk{}, err
		}
		known := false // that the row's table has other columns now
		switch c.line.Op {
		case cdc.Message:
			if c.line.Prefix == changefeed.PrefixBegin {
				var g changefeed.Gap
				_ = json.Unmarshal(c.line.Content, &g) // what cannot be read is a gap of which no more is known
				out.Gaps = append(out.Gaps, g)
			}
		case cdc.Schema:
			if c.know(c.name(), c.line.SchemaVersion, c.line.Columns) {
				out.Columns = c.name().String()
			}
		default:
			if known, err = c.add(ctx, &out, at, reject); err != nil {
				return Chunk{}, err
			}
		}
		if known { // by this row, which goes into the next chunk
			out.Columns = c.name().String()
			c.hold(&out, lines, n)
			break
		}
		out.Bytes += int64(len(line))
		out.Lines++
		c.at = c.line.Pos
		if out.Columns != "" {
			c.hold(&out, lines, n+1)
			break
		}
	}
	c.at = out.Cursor
	return out, nil
}

// take returns what was held back, or what the reader has.
func (c *Changes) take(ctx context.Context, most int) (changefeed.Batch, error) {
	if len(c.held.Lines) > 0 {
		lines := c.held
		c.held = changefeed.Batch{}
		return lines, nil
	}
	lines, err := c.Reader.Take(ctx, most)
	if err != nil || len(lines.Lines) > 0 || lines.More {
		return lines, err
	}
	return c.Reader.Next(ctx)
}

// hold ends a chunk behind its first n lines.
func (c *Changes) hold(out *Chunk, lines changefeed.Batch, n int) {
	if n == len(lines.Lines) {
		return
	}
	out.Cursor, out.More = c.at, true
	lines.Lines = lines.Lines[n:]
	c.held = lines
}

// name is the table of c.line.
func (c *Changes) name() driver.TableName {
	return driver.TableName{Schema: c.line.Schema, Table: c.line.Table}
}

// add appends the change of c.line, unless its table is found to have other
// columns than were known: then it reports so, and they are known.
func (c *Changes) add(ctx context.Context, out *Chunk, at map[*record.Schema]*record.Batch, reject func(stage.Unread, cdc.Position) error) (news bool, err error) {
	t, news, err := c.table(ctx)
	if err != nil || news {
		return news, err
	}
	b := at[t.schema]
	if b == nil {
		b = record.New(t.schema, 256)
		b.From = c.line.Schema + "." + c.line.Table
		b.Changes = make([]record.Change, 0, 256)
		at[t.schema] = b
		out.Batches = append(out.Batches, b)
	}
	was := b.Rows()
	if err := c.rows(ctx, t, b); err != nil {
		b.Drop(was) // the delete that goes before an update
		row := c.line.After
		if row == nil {
			row = c.line.Key
		}
		if c.line.Range != nil {
			row = slices.Concat([]byte(`{"key":`), c.line.Key, []byte(`,"range":`), c.line.Range, []byte("}"))
		}
		return false, reject(stage.Unread{Text: string(row[:min(len(row), 1<<16)]), Reason: err.Error(), From: b.From}, c.line.Pos)
	}
	return false, nil
}

// rows appends the rows that a change comes to.
func (c *Changes) rows(ctx context.Context, t *changedTable, b *record.Batch) error {
	l := &c.line
	mark := record.Change{Op: l.Op, Pos: l.Pos, WriteTime: l.WriteTime, TTL: l.TTL}
	if l.Tx != nil {
		mark.At = l.Tx.At.UnixMicro()
	}
	row := l.After
	switch l.Op {
	case cdc.Truncate:
		row = json.RawMessage("{}")
	case cdc.Delete:
		if row = l.Before; row == nil {
			row = l.Key
		}
	case cdc.DeletePartition:
		row = l.Key
	case cdc.DeleteRange:
		return c.ranges(t, b, mark)
	case cdc.Insert, cdc.Update, cdc.Read:
		if row == nil {
			return errKeysOnly
		}
		var err error
		if mark.Parts, err = parts(l.Delta); err != nil {
			return err
		}
	}
	if l.Op == cdc.Update {
		moved, err := t.moved(l)
		if err != nil {
			return err
		}
		if moved != nil {
			if _, err := t.rows.Parse(b, moved); err != nil {
				return err
			}
			b.Changes = append(b.Changes, record.Change{Op: cdc.Delete, Pos: l.Pos, At: mark.At, Implied: true})
		}
	}
	if bytes.Contains(row, []byte(`{"$ref":"`)) {
		var err error
		if row, err = c.whole(ctx, row); err != nil {
			return err
		}
	}
	if _, err := t.rows.Parse(b, row); err != nil {
		return err
	}
	if err := t.identify(b, l.Key); err != nil {
		return err
	}
	b.Changes = append(b.Changes, mark)
	return nil
}

var errKeysOnly = athena.Errorf(athena.CodeInvalidRequest, "the source logs the keys of what was written, and not the values (cdc = {'delta': 'keys'}); have it log whole deltas, or follow the deletes alone (source.cdc.where)")

// parts lists the columns of which no more is known than what was done to parts of
// them.
func parts(delta json.RawMessage) ([]string, error) {
	if delta == nil {
		return nil, nil
	}
	var columns map[string]json.RawMessage
	if err := json.Unmarshal(delta, &columns); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(columns)), nil
}

// identify gives the last row of a batch the values of its key, where the change has
// them beside the row alone.
func (t *changedTable) identify(b *record.Batch, key json.RawMessage) error {
	if key == nil || t.keys == nil {
		return nil
	}
	last := b.Rows() - 1
	var known *record.Batch
	for i, c := range t.keyOnly.Columns {
		v := &b.Columns[t.schema.Index(c.Name)]
		if !v.Absent(last) {
			continue
		}
		if known == nil {
			known = record.New(t.keyOnly, 1)
			if _, err := t.keys.Parse(known, key); err != nil {
				return err
			}
		}
		v.Truncate(last)
		v.AppendFrom(&known.Columns[i], 0)
	}
	return nil
}

// moved returns the old row of an update that changed the key; nil if it did not.
func (t *changedTable) moved(l *cdc.Change) (json.RawMessage, error) {
	if l.Before == nil || t.keys == nil {
		return nil, nil
	}
	pair := record.New(t.keyOnly, 2)
	for _, row := range []json.RawMessage{l.Before, l.After} {
		if _, err := t.keys.Parse(pair, row); err != nil {
			return nil, err
		}
	}
	var was, is []byte
	for i, c := range t.keyOnly.Columns {
		v := &pair.Columns[i]
		if v.Absent(1) { // the new row does not say, so it did not change
			continue
		}
		was, is = v.AppendJSON(was, c.Type, 0), v.AppendJSON(is, c.Type, 1)
	}
	if bytes.Equal(was, is) {
		return nil, nil
	}
	return l.Before, nil
}

// table returns what is known of the table of c.line, at its version, and whether
// its columns are others than were known.
func (c *Changes) table(ctx context.Context) (t *changedTable, news bool, err error) {
	name := c.name()
	if t := c.tables[name]; t != nil && (t.version == c.line.SchemaVersion || c.line.SchemaVersion == 0) {
		return t, false, nil
	}
	// The reader has begun behind the change of columns that tells of it.
	v, err := c.Store.ColumnsOf(ctx, c.Client, name, c.line.SchemaVersion)
	if err != nil {
		return nil, false, err
	}
	news = c.know(name, v.Version, v.Columns)
	return c.tables[name], news, nil
}

// know takes over the columns of a table, and reports whether they are others
// than were known.
func (c *Changes) know(name driver.TableName, version int, columns []cdc.Column) bool {
	was := c.tables[name]
	s := Schema(columns, c.Types)
	t := &changedTable{version: version, schema: s, rows: record.NewParser(s)}
	if was != nil && was.schema.Equal(s) {
		was.version = version
		return false
	}
	t.rows.Absent = true
	if len(s.Key) > 0 {
		t.keyOnly = &record.Schema{Key: s.Key}
		for _, col := range s.Columns {
			if slices.Contains(s.Key, col.Name) {
				t.keyOnly.Columns = append(t.keyOnly.Columns, col)
			}
		}
		t.keys = record.NewParser(t.keyOnly)
		t.keys.Absent = true
	}
	if c.tables == nil {
		c.tables = map[driver.TableName]*changedTable{}
	}
	c.tables[name] = t
	return was != nil
}

// Schema makes a schema of the columns of a change.
func Schema(columns []cdc.Column, types func(string) record.Type) *record.Schema {
	s := &record.Schema{}
	for _, col := range columns {
		s.Columns = append(s.Columns, record.Column{Name: col.Name, Type: types(col.Type), Native: col.Type, Nullable: !col.Key})
		if col.Key {
			s.Key = append(s.Key, col.Name)
		}
	}
	return s
}

// wholeMost is how large a value may be that is put back into its row.
const wholeMost = 64 << 20

// whole puts the values back that were too large for the stream.
func (c *Changes) whole(ctx context.Context, row json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(row, &fields); err != nil {
		return nil, err
	}
	changed := false
	for name, raw := range fields {
		var ref struct {
			Ref    string `json:"$ref"`
			SHA256 string `json:"sha256"`
			Bytes  int64  `json:"bytes"`
		}
		if !bytes.HasPrefix(raw, []byte(`{"$ref":"`)) || json.Unmarshal(raw, &ref) != nil || ref.SHA256 == "" {
			continue
		}
		if ref.Bytes > wholeMost {
			return nil, athena.Errorf(athena.CodePayloadTooLarge, "column %q has a value of %d bytes; a pipeline takes at most %d", name, ref.Bytes, int64(wholeMost))
		}
		o, err := c.Store.Object(ctx, c.Client, ref.Ref)
		if err != nil {
			return nil, err
		}
		value, err := io.ReadAll(io.LimitReader(o, wholeMost))
		o.Close()
		if err != nil {
			return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the value of column %q cannot be read", name)
		}
		fields[name], changed = value, true
	}
	if !changed {
		return row, nil
	}
	return json.Marshal(fields)
}

// Known reports the schema of a table, where it is known by now.
func (c *Changes) Known(name driver.TableName) *record.Schema {
	if t := c.tables[name]; t != nil {
		return t.schema
	}
	return nil
}
