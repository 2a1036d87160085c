package source

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Deferred is a stage.Source over the result of a deferred query. It is one part.
type Deferred struct {
	Store  *deferred.Store
	Client string
	Job    string
	// Types gives the type of a column by the engine's name of it.
	Types func(native string) record.Type
	Size  driver.BatchSize
}

var _ stage.Source = (*Deferred)(nil)

func (d *Deferred) result(ctx context.Context) (*deferred.Job, *deferred.Result, error) {
	j, st, err := d.Store.Load(ctx, d.Client, d.Job)
	if err != nil {
		return nil, nil, err
	}
	if st.Result == nil || !st.Result.Complete {
		return nil, nil, athena.Errorf(athena.CodeConflict, "job %s has no result that is complete: its state is %q", d.Job, st.State).At("source.deferred")
	}
	if to := st.Result.To; to != nil {
		return nil, nil, athena.Errorf(athena.CodeConflict, "the rows of job %s went to objects of client %q below %q; read them as source.objects", d.Job, to.Client, to.Prefix).At("source.deferred")
	}
	return j, st.Result, nil
}

// Describe describes the result's columns; not_found once it has expired, and
// conflict before it is complete.
func (d *Deferred) Describe(ctx context.Context) (*record.Schema, error) {
	_, r, err := d.result(ctx)
	if err != nil {
		return nil, err
	}
	s := &record.Schema{}
	for _, c := range r.Columns {
		s.Columns = append(s.Columns, record.Column{Name: c.Name, Type: d.Types(c.Type), Native: c.Type, Nullable: true})
	}
	return s, nil
}

// Split returns one part.
func (d *Deferred) Split(ctx context.Context, _ bool) ([]stage.Part, error) {
	_, r, err := d.result(ctx)
	if err != nil {
		return nil, err
	}
	return []stage.Part{{Rows: r.Rows, Bytes: r.Bytes}}, nil
}

// Read reads the result.
func (d *Deferred) Read(ctx context.Context, _ stage.Part, fn func(*record.Batch) error, reject func(stage.Unread) error) error {
	j, r, err := d.result(ctx)
	if err != nil {
		return err
	}
	schema, err := d.Describe(ctx)
	if err != nil {
		return err
	}
	size := d.Size.Or()
	p := record.NewParser(schema)
	b := record.New(schema, min(size.Rows, int(r.Rows)+1))
	b.From = "job " + d.Job
	add := func(row []byte) error {
		if _, err := p.Parse(b, row); err != nil {
			return reject(stage.Unread{Text: string(row[:min(len(row), 1<<16)]), Reason: err.Error(), From: b.From})
		}
		if b.Rows() < size.Rows && (b.Rows()&63 != 0 || b.Size() < size.Bytes) {
			return nil
		}
		err := fn(b)
		b.Reset()
		return err
	}
	if len(r.Inline) > 0 {
		var rows []json.RawMessage
		if err := json.Unmarshal(r.Inline, &rows); err != nil {
			return err
		}
		for _, row := range rows {
			if err := add(row); err != nil {
				return err
			}
		}
	}
	var buf []byte
	for _, seg := range r.Segments {
		if buf, err = d.Store.Segment(ctx, j, r, seg.N, buf); err != nil {
			return err
		}
		for line := range bytes.Lines(buf) {
			if err := add(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		}
	}
	if b.Rows() == 0 {
		return nil
	}
	return fn(b)
}
