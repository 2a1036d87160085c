package scylla

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A param is one parameter of a statement. gocql asks it for its wire form once
// the server has told the type.
type param struct {
	index int
	raw   json.RawMessage
}

// MarshalCQL fits the value to the type. Errors are invalid_request and name the
// parameter.
func (p param) MarshalCQL(t gocql.TypeInfo) ([]byte, error) {
	data, err := marshalJSON(t, p.raw)
	if err != nil {
		path := "params[" + strconv.Itoa(p.index) + "]"
		return nil, athena.Errorf(athena.CodeInvalidRequest, "%s is %s; parameter %d is of type %s and %s", path, jsonKind(p.raw), p.index+1, typeName(t), err).At(path)
	}
	return data, nil
}

// jsonKind names what a valid JSON value is.
func jsonKind(raw []byte) string {
	raw = bytes.TrimSpace(raw)
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return string(raw)
	}
	if len(raw) > 40 {
		return "a number"
	}
	return "the number " + string(raw)
}

// bind makes gocql's arguments of a statement's parameters.
func bind(a analysis, params []json.RawMessage) ([]any, error) {
	if len(params) > 0 && !a.prepared {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "only SELECT, INSERT, UPDATE, DELETE and BATCH take parameters, and params holds %d", len(params)).At("params")
	}
	if len(params) != len(a.markers) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the statement has %d parameters (each a ?) and params holds %d", len(a.markers), len(params)).At("params")
	}
	args := make([]any, len(params))
	for i, raw := range params {
		if !json.Valid(raw) {
			path := "params[" + strconv.Itoa(i) + "]"
			return nil, athena.Errorf(athena.CodeInvalidRequest, "%s is not valid JSON", path).At(path)
		}
		args[i] = param{i, raw}
	}
	return args, nil
}

// countsTuples reports that gocql wants a value for each element of a tuple, of
// which it cannot bind a whole one. Nothing was sent.
func countsTuples(err error) bool {
	return strings.Contains(err.Error(), "gocql: expected ") && !errors.As(err, new(serverError))
}

var errDescribed = errors.New("scylla: the parameters were described")

// spreadTuples writes (?, ?) in place of each parameter that is a tuple, and null
// for one that is null, and gives the arguments that go with it.
func (b *Backend) spreadTuples(ctx context.Context, a analysis, args []any) (text string, spread []any, err error) {
	var columns []gocql.ColumnInfo
	err = b.session.Bind(a.text, func(q *gocql.QueryInfo) ([]any, error) {
		columns = q.Args
		return nil, errDescribed
	}).WithContext(ctx).SetRequestTimeout(0).Exec()
	if !errors.Is(err, errDescribed) {
		return "", nil, err
	}
	if len(columns) != len(args) {
		return "", nil, athena.Errorf(athena.CodeInvalidRequest, "the statement has %d parameters and params holds %d; write each parameter as ?", len(columns), len(args)).At("params")
	}
	var out strings.Builder
	from := 0
	for i, at := range a.markers {
		out.WriteString(a.text[from:at])
		from = at + 1
		p := args[i].(param)
		if _, err := p.MarshalCQL(columns[i].TypeInfo); err != nil {
			return "", nil, err
		}
		spread = spreadTuple(&out, spread, columns[i].TypeInfo, p)
	}
	out.WriteString(a.text[from:])
	return out.String(), spread, nil
}

// spreadTuple is for a parameter that fits its type.
func spreadTuple(out *strings.Builder, spread []any, t gocql.TypeInfo, p param) []any {
	tuple, ok := t.(gocql.TupleTypeInfo)
	raw := bytes.TrimSpace(p.raw)
	if !ok {
		out.WriteByte('?')
		return append(spread, p)
	}
	list, ok := items(raw)
	if !ok {
		out.WriteString("null")
		return spread
	}
	for i, elem := range tuple.Elems {
		out.WriteString([...]string{"(", ", "}[min(i, 1)])
		spread = spreadTuple(out, spread, elem, param{p.index, list[i]})
	}
	out.WriteByte(')')
	return spread
}
