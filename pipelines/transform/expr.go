package transform

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// mostCost bounds one evaluation of an expression that has a loop, or calls what
// makes texts grow, in CEL's units: a comparison is about one, and so are ten
// characters. Others are bounded by their length.
const mostCost = 1_000_000

// growing are the functions whose results can be many times their arguments.
var growing = []string{"replace", "join", "format"}

// An expr is a compiled expression.
type expr struct {
	program cel.Program
	out     *cel.Type
	refs    []int // columns that it may look at
	// column is the one that the whole expression is; -1 if it is more than that.
	column int
}

// compile makes an expression on rows of the provider's schema.
func (c *compiler) compile(text string) (*expr, error) {
	if c.env == nil {
		env, err := newEnv(c.provider)
		if err != nil {
			return nil, err
		}
		c.env = env
	}
	c.provider.missed = ""
	tree, issues := c.env.Compile(text)
	if issues.Err() != nil {
		return nil, c.explain(issues)
	}
	e := &expr{out: tree.OutputType(), column: -1}
	costly := false
	root := tree.NativeRep().Expr()
	ast.PreOrderVisit(root, ast.NewExprVisitor(func(n ast.Expr) {
		switch n.Kind() {
		case ast.ComprehensionKind:
			costly = true
		case ast.CallKind:
			costly = costly || slices.Contains(growing, n.AsCall().FunctionName())
		case ast.SelectKind:
			if s := n.AsSelect(); s.Operand().Kind() == ast.IdentKind && s.Operand().AsIdent() == rowName {
				if i := c.provider.schema.Index(s.FieldName()); i >= 0 && !slices.Contains(e.refs, i) {
					e.refs = append(e.refs, i)
				}
				if n.ID() == root.ID() && !s.IsTestOnly() {
					e.column = c.provider.schema.Index(s.FieldName())
				}
			}
		}
	}))
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if costly {
		options = append(options, cel.CostLimit(mostCost))
	}
	var err error
	e.program, err = c.env.Program(tree, options...)
	if err != nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the expression cannot be used: %.300s", err)
	}
	return e, nil
}

func (c *compiler) explain(issues *cel.Issues) error {
	first := issues.Errors()[0]
	message := first.Message
	if c.provider != nil && c.provider.missed != "" {
		message = c.provider.missed
	}
	return athena.Errorf(athena.CodeInvalidRequest, "line %d, column %d of the expression is not understood: %.300s", first.Location.Line(), first.Location.Column()+1, message)
}

// want refuses an expression that gives something else.
func (e *expr) want(t *cel.Type, example string) error {
	switch {
	case e.out.IsExactType(cel.DynType): // what a JSON column holds is known when it is there
		return nil
	case e.out.Kind() != t.Kind():
		return athena.Errorf(athena.CodeInvalidRequest, "the expression gives %s; it must give %s, as in %s", article(e.out), article(t), example)
	}
	return nil
}

func article(t *cel.Type) string { return "a value of type " + cel.FormatCELType(t) }

// errAbsent says that an expression has looked at a value that the source did not
// give.
var errAbsent = errors.New("a column that the expression needs was not given by the source, as the change did not touch it; have the source log whole rows (PostgreSQL: REPLICA IDENTITY FULL; ScyllaDB: 'postimage': true), or leave the column out")

// eval returns the value for a row; nil is null (law 1), and errAbsent stands for
// law 3.
func (e *expr) eval(r *row) (ref.Val, error) {
	r.null, r.absent = false, false
	v, _, err := e.program.Eval(r)
	if r.absent {
		return nil, errAbsent
	}
	if err != nil {
		var stopped interpreter.EvalCancelledError
		if r.null && !errors.As(err, &stopped) {
			return nil, nil
		}
		return nil, err
	}
	if v == types.NullValue {
		return nil, nil
	}
	return v, nil
}

// blank reports whether nothing of what the expression looks at was given.
func (e *expr) blank(r *row) bool {
	for _, c := range e.refs {
		if !r.batch.Columns[c].Absent(r.i) {
			return false
		}
	}
	return len(e.refs) > 0
}

// lost reports whether the values of a row are not to be expected: law 3.
func lost(op cdc.Op) bool {
	switch op {
	case cdc.Delete, cdc.Truncate, cdc.DeletePartition, cdc.DeleteRange:
		return true
	}
	return false
}

// result is the type of a column that an expression computes.
func (e *expr) result(s *record.Schema, changes bool) (record.Column, error) {
	if e.column >= 0 {
		return s.Columns[e.column], nil
	}
	c := record.Column{Nullable: changes && len(e.refs) > 0}
	for _, i := range e.refs {
		c.Nullable = c.Nullable || s.Columns[i].Nullable
	}
	switch e.out.Kind() {
	case types.BoolKind:
		c.Type = record.TypeBool
	case types.IntKind:
		c.Type = record.TypeInt64
	case types.DoubleKind:
		c.Type = record.TypeFloat64
	case types.StringKind:
		c.Type = record.TypeText
	case types.BytesKind:
		c.Type = record.TypeBytes
	case types.TimestampKind:
		c.Type, c.Nullable = record.TypeTimestampTZ, true
	case types.DynKind, types.ListKind, types.MapKind:
		c.Type, c.Nullable = record.TypeJSON, true
	default:
		return c, athena.Errorf(athena.CodeInvalidRequest, "the expression gives %s, of which no column can be made; convert it, as in string(…) or int(…)", article(e.out))
	}
	c.Nullable = c.Nullable || e.out.IsAssignableType(cel.NullType)
	return c, nil
}

// appendValue appends what an expression gave to a column of its result's type.
func appendValue(dst *record.Vector, v ref.Val) error {
	switch v := v.(type) {
	case nil:
		dst.AppendNull()
		return nil
	case types.Bool:
		if dst.Kind == record.Bool {
			dst.AppendBool(bool(v))
			return nil
		}
	case types.Int:
		if dst.Kind == record.Int {
			dst.AppendInt(int64(v))
			return nil
		}
	case types.Double:
		if dst.Kind == record.Float {
			dst.AppendFloat(float64(v))
			return nil
		}
	case types.String:
		if dst.Kind == record.Text {
			dst.AppendString(string(v))
			return nil
		}
	case types.Bytes:
		if dst.Kind == record.Bytes {
			dst.AppendBytes(v)
			return nil
		}
	case types.Timestamp:
		if dst.Kind == record.TimestampTZ {
			dst.AppendInt(v.UnixMicro())
			return nil
		}
	}
	if dst.Kind != record.JSON {
		return fmt.Errorf("the expression gave a %s", v.Type().TypeName())
	}
	native, err := toNative(v, 0)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(native)
	if err == nil {
		dst.AppendBytes(raw)
	}
	return err
}

// toNative takes a value that is of JSON's making, or was put together of others.
func toNative(v ref.Val, depth int) (any, error) {
	if depth > 64 {
		return nil, errors.New("the value is nested too deeply")
	}
	switch v := v.(type) {
	case types.Null:
		return nil, nil
	case types.Bool:
		return bool(v), nil
	case types.Int:
		return int64(v), nil
	case types.Uint:
		return uint64(v), nil
	case types.Double:
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, errors.New("JSON has no number that is infinite or none")
		}
		return float64(v), nil
	case types.String:
		return string(v), nil
	case types.Bytes:
		return []byte(v), nil
	case types.Timestamp:
		return v.UTC().Format("2006-01-02T15:04:05.000000Z"), nil
	}
	switch v := v.(type) {
	case traits.Mapper:
		m := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			value, err := toNative(v.Get(k), depth+1)
			if err != nil {
				return nil, err
			}
			m[fmt.Sprint(k.Value())] = value
		}
		return m, nil
	case traits.Lister:
		list := []any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			value, err := toNative(it.Next(), depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		return list, nil
	}
	return nil, fmt.Errorf("a %s is nothing that JSON has", v.Type().TypeName())
}
