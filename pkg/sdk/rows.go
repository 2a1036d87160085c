package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
)

// Rows is a result that is read row by row. It is not safe for concurrent use
// and must be closed. An answer that broke off is an error, never a short
// result.
type Rows struct {
	next  func() (json.RawMessage, error) // io.EOF after the last row
	close func() error
	meta  *Meta
	row   json.RawMessage
	err   error
	done  bool
}

// Next moves to the next row; false after the last one, and after an error.
func (r *Rows) Next() bool {
	if r.done {
		return false
	}
	row, err := r.next()
	if err == nil {
		r.row = row
		return true
	}
	r.done, r.row = true, nil
	if !errors.Is(err, io.EOF) {
		r.err = err
	}
	return false
}

// Row is the current row, a JSON object whose members stand in the order of the
// columns. It is valid until the next call of Next.
func (r *Rows) Row() json.RawMessage { return r.row }

// Scan decodes the current row into v as encoding/json does.
func (r *Rows) Scan(v any) error {
	if err := json.Unmarshal(r.row, v); err != nil {
		return fmt.Errorf("sdk: scan row: %w", err)
	}
	return nil
}

// Meta describes the result; it is complete once Next has returned false.
func (r *Rows) Meta() Meta { return *r.meta }

// Err is the error that ended the rows, if one did.
func (r *Rows) Err() error { return r.err }

// Close ends the rows; those not read are dropped. It returns Err.
func (r *Rows) Close() error {
	r.done = true
	if err := r.close(); r.err == nil && err != nil {
		r.err = err
	}
	return r.err
}

// All yields the rows of a result, each decoded into a T, and closes it. After
// an error it yields nothing more.
func All[T any](rows *Rows, err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		if err != nil {
			yield(none, err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var v T
			if err := rows.Scan(&v); !yield(v, err) || err != nil {
				return
			}
		}
		if rows.Err() != nil {
			yield(none, rows.Err())
		}
	}
}

// rows reads an answer that holds rows, or the manifest of a job's large result,
// whose segments it then fetches.
func (a *API) rows(ctx context.Context, resp *http.Response, job string) (*Rows, error) {
	d := &enveloped{ctx: ctx, dec: json.NewDecoder(resp.Body), meta: &Meta{}}
	large, err := d.open()
	switch {
	case err != nil:
		resp.Body.Close()
		return nil, err
	case !large:
		return &Rows{next: d.next, close: resp.Body.Close, meta: d.meta}, nil
	}
	defer resp.Body.Close()
	m, err := d.manifest()
	if err != nil {
		return nil, err
	}
	if m.To != nil {
		return m.objects(*d.meta), nil
	}
	return a.Job(job).segments(ctx, m, *d.meta), nil
}

// enveloped walks an envelope whose data is an array, one element at a time.
type enveloped struct {
	ctx  context.Context
	dec  *json.Decoder
	meta *Meta
	row  json.RawMessage
}

// open goes to the first element. It reports true if the data is an object,
// which is a manifest then.
func (d *enveloped) open() (large bool, err error) {
	if err := d.expect('{'); err != nil {
		return false, err
	}
	for d.dec.More() {
		name, err := d.dec.Token()
		if err != nil {
			return false, lost(d.ctx, err)
		}
		if name != "data" {
			if err := d.field(name); err != nil {
				return false, err
			}
			continue
		}
		switch t, err := d.dec.Token(); {
		case err != nil:
			return false, lost(d.ctx, err)
		case t == json.Delim('['):
			return false, nil
		case t == json.Delim('{'):
			return true, nil
		}
		break
	}
	return false, strange(errors.New("there are no rows in it"))
}

// next returns the next element, and io.EOF once the envelope was read to its
// end.
func (d *enveloped) next() (json.RawMessage, error) {
	if d.dec.More() {
		if err := d.dec.Decode(&d.row); err != nil {
			return nil, lost(d.ctx, err)
		}
		return d.row, nil
	}
	// What is known only after the rows stands behind them.
	if err := d.finish(']'); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// manifest reads the rest of an envelope whose data is one.
func (d *enveloped) manifest() (m Manifest, err error) {
	members := map[string]json.RawMessage{}
	for d.dec.More() {
		name, err := d.dec.Token()
		if err != nil {
			return m, lost(d.ctx, err)
		}
		var value json.RawMessage
		if err := d.dec.Decode(&value); err != nil {
			return m, lost(d.ctx, err)
		}
		members[fmt.Sprint(name)] = value
	}
	if err := d.finish('}'); err != nil {
		return m, err
	}
	raw, err := json.Marshal(members)
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		return m, strange(err)
	}
	return m, nil
}

// finish reads the end of data and what stands behind it.
func (d *enveloped) finish(end json.Delim) error {
	if err := d.expect(end); err != nil {
		return err
	}
	for d.dec.More() {
		name, err := d.dec.Token()
		if err != nil {
			return lost(d.ctx, err)
		}
		if err := d.field(name); err != nil {
			return err
		}
	}
	return d.expect('}')
}

// field reads a member of the envelope other than data.
func (d *enveloped) field(name json.Token) error {
	var err error
	switch name {
	case "meta":
		err = d.dec.Decode(d.meta)
	case "request_id":
		err = d.dec.Decode(&d.meta.RequestID)
	default:
		var skip json.RawMessage
		err = d.dec.Decode(&skip)
	}
	if err != nil {
		return lost(d.ctx, err)
	}
	return nil
}

func (d *enveloped) expect(delim json.Delim) error {
	t, err := d.dec.Token()
	if err != nil {
		return lost(d.ctx, err)
	}
	if t != delim {
		return strange(fmt.Errorf("%v where %v belongs", t, delim))
	}
	return nil
}
