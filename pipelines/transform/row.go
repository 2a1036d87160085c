package transform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A row is one row of a batch as expressions see it: it is the activation, and
// what row and meta stand for. It is used for one row after another.
type row struct {
	batch *record.Batch
	i     int
	// null and absent say that the expression has looked at such a value.
	null, absent bool
	scratch      []byte
}

// meta is what is known of a row beside its columns.
type meta struct{ row *row }

// Parent is no other activation.
func (r *row) Parent() cel.Activation { return nil }

// ResolveName gives what a name stands for.
func (r *row) ResolveName(name string) (any, bool) {
	switch name {
	case rowName:
		return r, true
	case metaName:
		return meta{r}, true
	}
	return nil, false
}

// value is that of a column.
func (r *row) value(c int) (any, error) {
	v := &r.batch.Columns[c]
	if v.Null(r.i) {
		if v.Absent(r.i) {
			r.absent = true
		} else {
			r.null = true
		}
		return types.NullValue, nil
	}
	switch v.Kind {
	case record.Bool:
		return types.Bool(v.Ints[r.i] != 0), nil
	case record.Int:
		return types.Int(v.Ints[r.i]), nil
	case record.Float:
		return types.Double(v.Floats[r.i]), nil
	case record.Text, record.Decimal:
		return types.String(v.Bytes(r.i)), nil
	case record.Bytes:
		return types.Bytes(bytes.Clone(v.Bytes(r.i))), nil
	case record.Timestamp, record.TimestampTZ:
		return timestamp(v.Ints[r.i])
	case record.JSON:
		value, err := parseJSON(v.Bytes(r.i))
		if value == nil && err == nil {
			r.null = true
			return types.NullValue, nil
		}
		return value, err
	}
	r.scratch = v.AppendText(r.scratch[:0], r.batch.Schema.Columns[c].Type, r.i)
	return types.String(r.scratch), nil
}

func (r *row) present(c int) bool {
	v := &r.batch.Columns[c]
	if v.Absent(r.i) {
		r.absent = true
	}
	return !v.Null(r.i)
}

// op is that of the row; empty in a batch.
func (r *row) op() cdc.Op {
	if r.batch.Changes == nil {
		return ""
	}
	return r.batch.Changes[r.i].Op
}

// The first and the last microsecond that CEL has a timestamp for.
var (
	firstMicro = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastMicro  = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC).UnixMicro()
)

func timestamp(micros int64) (any, error) {
	if micros < firstMicro || micros > lastMicro {
		return nil, errors.New("expressions have no timestamp before the year 1 and behind 9999")
	}
	return types.Timestamp{Time: time.UnixMicro(micros).UTC()}, nil
}

// parseJSON reads a value so that whole numbers are ints.
func parseJSON(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("the column is not JSON: %w", err)
	}
	return plain(v), nil
}

func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // what is too large is infinite
		return f
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	}
	return v
}
